package casty_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"casty"
)

func TestSmoke(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	key := casty.NewServiceKey[casty.StreamProducerMsg[int]]("numbers")
	a, err := casty.StartNode(casty.Config{})
	if err != nil {
		t.Fatal(err)
	}
	b, err := casty.StartNode(casty.Config{Seeds: []string{a.Address()}})
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if err := casty.WaitForMembers(ctx, a, 2); err != nil {
		t.Fatal(err)
	}
	t.Log("members", time.Since(start))
	c, err := casty.Connect(ctx, casty.Config{Seeds: []string{a.Address()}})
	if err != nil {
		t.Fatal(err)
	}
	t.Log("connected", time.Since(start))
	p, err := casty.Spawn(b, "p", casty.Discoverable(key, casty.StreamProducer[int](4)))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		sink, err := casty.GetSink(ctx, b, p)
		if err != nil {
			done <- err
			return
		}
		for i := range 100000 {
			if err := sink.Put(ctx, i); err != nil {
				done <- err
				return
			}
		}
		done <- sink.Complete(ctx)
	}()
	for l := range casty.Listings(ctx, c, key) {
		t.Log(l, time.Since(start))
		if len(l.Instances) == 0 {
			continue
		}
		consumer, err := casty.Spawn(c, "c", casty.StreamConsumer(l.Instances[0].Ref))
		if err != nil {
			t.Fatal(err)
		}
		source, err := casty.GetSource(ctx, c, consumer)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for v, err := range source.All(ctx) {
			if err != nil {
				t.Fatal(err)
			}
			if v != n {
				t.Fatal(v, n)
			}
			n++
		}
		t.Log(n, time.Since(start))
		break
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	t.Log("complete", time.Since(start))
	err = errors.Join(c.Close(), b.Close(), a.Close())
	t.Log("closed", time.Since(start), err)
	if n := a.DeadLetters() + b.DeadLetters() + c.DeadLetters(); n > 0 {
		t.Log("dead letters", n)
	}
}
