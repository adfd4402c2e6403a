package casty

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"
)

// Connect starts a system that reaches a cluster from outside: it dials and
// is never dialled, so it can run wherever the nodes can be reached from. Others list
// neither it nor its actors, yet these get messages like any others: nodes answer on
// the connections that it has opened.
//
// Connect blocks until a node has answered with what it knows of the cluster.
// Until then it keeps trying all of Seeds. It fails when ctx ends, after ten
// heartbeats if ctx has no deadline, or at once when every seed has refused
// it; then the error says what became of each seed. ctx bounds the connecting
// only: the system lasts until Close, and stays in touch with every node, so
// that losing the one that answered first does not matter.
func Connect(ctx context.Context, cfg Config) (_ *System, err error) {
	cfg = cfg.withDefaults()
	defer doing(&err, "connect to %q", cfg.Name)
	if err := cfg.check(); err != nil {
		return nil, err
	}
	if len(cfg.Seeds) == 0 {
		return nil, errors.New("there are no seeds")
	}
	if _, limited := ctx.Deadline(); !limited {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, 10*cfg.Heartbeat)
		defer cancel()
	}
	client := join(cfg, rand.Text(), nil)
	if err := awaitNode(ctx, client); err != nil {
		client.Close()
		return nil, err
	}
	return client, nil
}

// awaitNode waits until a node has announced itself to the client's receptionist,
// which contacts the seeds. Meanwhile it gathers why each seed does not answer.
func awaitNode(ctx context.Context, client *System) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	failures := make(chan failure, len(client.config.Seeds)) // each seed is watched once at a time, so there is room
	reasons := map[string]error{}
	for _, seed := range client.config.Seeds {
		reasons[seed] = errors.New("no answer")
		watchSeed(ctx, client, seed, failures)
	}
	for {
		members, changed := membersOf(client)
		if len(members) > 0 {
			return nil
		}
		select {
		case <-changed:
		case f := <-failures:
			reasons[f.seed] = f.err
			if allRefused(reasons) {
				return describe(errors.New("no seed wants us"), reasons)
			}
			// Watch it again soon, for its latest reason: it may be up by then, or
			// refuse us. The watch does nothing once ctx has ended.
			time.AfterFunc(client.config.Heartbeat/8, func() { watchSeed(ctx, client, f.seed, failures) })
		case <-ctx.Done():
			return describe(context.Cause(ctx), reasons)
		}
	}
}

type failure struct {
	seed string
	err  error
}

// watchSeed watches a seed's receptionist, to learn why it does not answer.
func watchSeed(ctx context.Context, client *System, seed string, failures chan<- failure) {
	receptionist := Address{System: client.config.Name, Host: seed, Name: receptionistName}
	client.watchUntil(ctx, &watch{target: receptionist, takes: typeName[receptionistMsg](), fire: func(err error) {
		failures <- failure{seed, err}
	}})
}

// allRefused says whether there is no seed left that might still talk to us.
func allRefused(reasons map[string]error) bool {
	for _, reason := range reasons {
		if !errors.Is(reason, errRefused) {
			return false
		}
	}
	return true
}

// describe adds to an error what became of each seed, so that errors.Is finds it.
func describe(err error, reasons map[string]error) error {
	for _, seed := range slices.Sorted(maps.Keys(reasons)) {
		err = fmt.Errorf("%w; %s: %w", err, seed, reasons[seed])
	}
	return err
}
