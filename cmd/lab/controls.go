package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// A lab has one run at a time, which all pages show.
type lab struct {
	heartbeat time.Duration

	mu  sync.Mutex // one button after the other; guards what follows
	run *run
}

func (l *lab) now() *run {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.run
}

// begin ends a run, and begins the next: a scenario or, without a name, one that
// does what the buttons say. The caller holds l.mu.
func (l *lab) begin(story string, s settings) error {
	number := 1
	if l.run != nil {
		l.run.close()
		number = l.run.Run + 1
	}
	l.run = newRun(l.heartbeat, picture{Run: number, Story: story, settings: s})
	if err := l.run.start(); err != nil || story == "" {
		return err
	}
	l.run.going.Go(func() { l.run.play(scenarios[story]) })
	return nil
}

// press does what a button stands for, or says why it cannot. A new run begins
// for another buffer or window, which an end is given when it is spawned.
func (l *lab) press(button string, value int) (err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := settings{Produce: 2, Consume: 2, Buffer: 4, Window: 6}
	if l.run != nil {
		l.run.look(func() { s = l.run.settings })
	}
	s.Elements = 0
	switch story, isStory := scenarios[button]; {
	case isStory:
		return l.begin(button, story.settings)
	case button == "buffer":
		s.Buffer = max(0, min(value, 16))
	case button == "window":
		s.Window = max(1, min(value, 16))
	case button != "anew":
		l.run.change(func() { err = l.run.press(button, value) })
		return err
	}
	return l.begin("", s)
}

// press is for the buttons that need no new run. The caller holds r.mu.
func (r *run) press(button string, value int) error {
	rd := r.current()
	switch {
	case rd == nil && (button == "kill" || button == "cancel" || button == "rival"):
		return errors.New("there is no consumer")
	case rd != nil && button == "another":
		return errors.New("there is a consumer: another would be a rival")
	case r.Ending && (button == "complete" || button == "fail"):
		return errors.New("the stream has its end already")
	}
	switch button {
	case "produce":
		r.Produce = max(1, min(value, 50))
	case "consume":
		r.Consume = max(1, min(value, 50))
	case "pause":
		r.pause()
	case "step":
		r.letOne()
	case "cut", "stall", "latency", "bandwidth":
		r.disturb(button)
	case "kill":
		rd.Killed = true
		rd.kill()
	case "cancel":
		rd.leave()
	case "another", "rival":
		return r.subscribe()
	case "complete":
		r.finish("Complete", r.sink.Complete)
	case "fail":
		r.finish("Fail", func(ctx context.Context) error { return r.sink.Fail(ctx, errors.New("the sensor is broken")) })
	default:
		return fmt.Errorf("there is no button %q", button)
	}
	return nil
}

// current is the consumer that is served or, if none is, the last to come.
func (r *run) current() (current *reader) {
	for _, rd := range r.Readers {
		if rd.Fate == "" && (current == nil || !current.Served) {
			current = rd
		}
	}
	return current
}

// pause makes time stand still, or go on.
func (r *run) pause() {
	if r.Standing = !r.Standing; r.Standing {
		r.moving = make(chan struct{})
	} else {
		close(r.moving)
	}
}

// letOne lets one message leave, or one user go on. Time stands still then.
func (r *run) letOne() {
	select {
	case r.step <- struct{}{}:
	default: // nobody waits
		if !r.Standing {
			r.pause()
		}
	}
}

// disturb does to the network what networks do.
func (r *run) disturb(how string) {
	n := r.network
	switch how {
	case "cut":
		r.note(event{What: "note", Text: "every connection is cut"})
		n.set(n.cut)
	case "stall":
		r.Stalled, r.stalledAt, r.Noticed = true, r.now(), 0
		n.set(func() { n.stalled = time.Now().Add(5 * r.heartbeat) })
		time.AfterFunc(5*r.heartbeat, func() { r.change(func() { r.Stalled = r.now() < r.stalledAt+5 }) })
	case "latency":
		r.Latency = !r.Latency
		n.set(func() { n.latency = map[bool]time.Duration{true: 3 * r.heartbeat / 10}[r.Latency] })
	case "bandwidth":
		r.Slow = !r.Slow
		n.set(func() {
			n.perByte = r.heartbeat / map[bool]time.Duration{false: bandwidth, true: bandwidth / 100}[r.Slow]
		})
	}
}

// finish ends the stream from the producer's side, and does not wait until the
// consumer has everything.
func (r *run) finish(what string, end func(context.Context) error) {
	r.Ending = true
	r.hush()
	r.going.Go(func() {
		<-r.quiet
		began := r.now()
		err := end(r.ctx)
		r.change(func() { r.Took = r.now() - began; r.over(what, err) })
	})
}
