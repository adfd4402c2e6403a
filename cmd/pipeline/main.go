// Pipeline is a small distributed program built on casty: sensors on three
// nodes, a client outside the cluster that finds them and receives their
// readings, and a monitor on one of the nodes that receives an alert from the
// client for each anomaly.
//
//	node  sensor-temp      ──readings──▶  client  ──alerts──▶  monitor  (on one of the nodes)
//	node  sensor-humidity  ──readings──▶
//	node  sensor-pressure  ──readings──▶
//
// Without a role, it runs all of them in one process, over TCP all the same:
//
//	go run ./cmd/pipeline
//
// With one, each runs where you like, started in any order:
//
//	go run ./cmd/pipeline node -address 127.0.0.1:25520 -sensor temp -alert-monitor
//	go run ./cmd/pipeline node -address 127.0.0.1:25521 -sensor humidity -seeds 127.0.0.1:25520
//	go run ./cmd/pipeline node -address 127.0.0.1:25522 -sensor pressure -seeds 127.0.0.1:25520
//	go run ./cmd/pipeline client -seeds 127.0.0.1:25520
//
// The role certificates makes what all of them need to use TLS. Each has -h.
//
// The exit status is 0 if everything has arrived, 1 if not, 2 if the flags are
// wrong, and 130 if it was interrupted.
//
// Read messages.go first, then node.go and client.go: they are the example.
// The other files are about what it shows and what it is told.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // so that a second Ctrl-C does not wait for anything
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run is main without the process around it. It returns the exit status.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	out, log := newConsole(stdout), newConsole(stderr)
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	out.broken = func(err error) { fail(brokenOutput{err}) }

	role, args := roleOf(args)
	p := newProgram(role, out, log)
	action := role.define(p)
	err := p.parse(args)
	if err == nil {
		err = action(ctx)
	}
	if errors.Is(err, flag.ErrHelp) {
		p.usage(role)
		err = nil
	}
	if broken := (brokenOutput{}); errors.As(context.Cause(ctx), &broken) {
		err = broken
	}
	return p.report(err, ctx.Err() != nil)
}

// A brokenOutput is why nothing more can be shown.
type brokenOutput struct{ error }

// report says what went wrong, and makes an exit status of it.
func (p *program) report(err error, interrupted bool) int {
	name := p.flags.Name()
	switch {
	case err == nil:
		return 0
	case errors.As(err, new(usageError)):
		fmt.Fprintf(p.log, "%s: %v; %s -h says more\n", name, err, name)
		return 2
	case errors.As(err, new(brokenOutput)):
		fmt.Fprintf(p.log, "%s: standard output: %v\n", name, err)
		return 1
	case interrupted:
		fmt.Fprintf(p.log, "%s: interrupted\n", name)
		return 130 // what shells make of it
	default:
		fmt.Fprintf(p.log, "%s: %v\n", name, err)
		return 1
	}
}
