package casty

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
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
func Connect(ctx context.Context, cfg Config) (*System, error) {
	cfg = cfg.withDefaults()
	client, err := connect(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("casty: connect to %q: %w", cfg.Name, err)
	}
	return client, nil
}

func connect(ctx context.Context, cfg Config) (*System, error) {
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

// contact waits until a node has announced itself to the client's
// receptionist. It watches the seeds' only to learn why none has.
func contact(ctx context.Context, client *System) error {
	type failure struct {
		seed int
		err  error
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	seeds := client.config.Seeds
	failures := make(chan failure, len(seeds)) // one for each watch
	watch := func(seed int) {
		receptionist := Address{client.config.Name, seeds[seed], receptionistName, ""}
		client.watchUntil(ctx, receptionist, typeName[receptionistMsg](), func(err error) {
			failures <- failure{seed, err}
		})
	}
	reasons := make([]error, len(seeds))
	for seed := range seeds {
		reasons[seed] = errors.New("no answer")
		watch(seed)
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
			if !slices.ContainsFunc(reasons, func(err error) bool { return !errors.Is(err, errRefused) }) {
				return describe(errRefused, seeds, reasons)
			}
			time.AfterFunc(client.config.Heartbeat/8, func() {
				if ctx.Err() == nil {
					watch(f.seed)
				}
			})
		case <-ctx.Done():
			return describe(context.Cause(ctx), seeds, reasons)
		}
	}
}

func describe(err error, seeds []string, reasons []error) error {
	for seed, reason := range reasons {
		err = fmt.Errorf("%w; %s: %w", err, seeds[seed], reason)
	}
	return err
}
