package main

import (
	"context"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"
)

// interrupts tells the first interruption, which ends ctx, from a second one.
// A second after the first, leave ends; with a second one until then, or if
// the streams are to be cancelled anyway, streams does.
func interrupts(ctx context.Context, cfg clientConfig, view *view) (leave, streams context.Context, over func()) {
	if cfg.cancel {
		return context.Background(), ctx, func() {}
	}
	leave, left := context.WithCancel(context.Background())
	streams, cancel := context.WithCancel(context.Background())
	finished := make(chan struct{})
	var waiting sync.WaitGroup
	waiting.Go(func() {
		select {
		case <-ctx.Done():
		case <-finished:
			return
		}
		again, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		view.say("client", "leaves in a second, and the nodes wait for another; interrupt again to end the streams")
		select {
		case <-again.Done():
			cancel()
		case <-time.After(time.Second):
			left()
		case <-finished:
		}
	})
	return leave, streams, func() {
		close(finished)
		waiting.Wait()
		left()
		cancel()
	}
}
