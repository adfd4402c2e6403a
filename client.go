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
// is never dialled, so it can be anywhere from where the nodes can be reached.
// It is listed nowhere, yet its own actors get messages like any others:
// nodes answer on the connections that it has opened.
//
// Connect blocks until a node has answered with what it knows of the cluster.
// Until then it keeps trying all of Seeds. It fails when ctx ends, after ten
// heartbeats if ctx has no deadline, or at once when every seed has refused
// it; the error says what became of each seed. ctx bounds the connecting
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
		ctx, cancel = context.WithTimeout(ctx, patience*cfg.Heartbeat)
		defer cancel()
	}
	client, err := join(cfg, rand.Text(), nil)
	if err != nil {
		return nil, err
	}
	if err := contact(ctx, client); err != nil {
		client.Close()
		return nil, err
	}
	return client, nil
}

// contact waits until a node has announced itself to the client's receptionist.
func contact(ctx context.Context, client *System) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	failures := make(chan failure, len(client.config.Seeds)) // one for each watch
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
	receptionist := Address{client.config.Name, seed, receptionistName, ""}
	client.watch(ctx, &watch{target: receptionist, takes: typeName[receptionistMsg](), fire: func(err error) {
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

func describe(err error, reasons map[string]error) error {
	for _, seed := range slices.Sorted(maps.Keys(reasons)) {
		err = fmt.Errorf("%w; %s: %w", err, seed, reasons[seed])
	}
	return err
}
