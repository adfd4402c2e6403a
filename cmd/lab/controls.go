package main

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// A control is a button of the page. Two that end in - and + are for a number.
type control struct {
	Group, Name, Label, Key string
	kind                    kind
	press                   func(*run) // the caller holds run.mu
}

// A kind of button begins a new run, since the ends of a stream are given their
// buffer and window when they are spawned, or does not work without something.
type kind string

const (
	plain      kind = "always works"
	anew       kind = "begins a run"
	aConsumer  kind = "there is no consumer"
	noConsumer kind = "there is a consumer: another would be a rival"
	noEnd      kind = "the stream has its end already"
)

var controls = []control{
	{"Time", "pause", "Pause", " ", plain, (*run).pause},
	{"Time", "step", "One step", ".", plain, (*run).step},
	{"Time", "anew", "Start anew", "0", anew, func(*run) {}},
	{"Producer", "produce-", "pace", "q", plain, func(r *run) { r.Produce = max(1, r.Produce/2) }},
	{"Producer", "produce+", "pace", "w", plain, func(r *run) { r.Produce = min(2*r.Produce, 50) }},
	{"Producer", "buffer-", "buffer", "a", anew, func(r *run) { r.Buffer = max(0, r.Buffer-1) }},
	{"Producer", "buffer+", "buffer", "s", anew, func(r *run) { r.Buffer = min(r.Buffer+1, 16) }},
	{"Producer", "complete", "Complete", "e", noEnd, (*run).complete},
	{"Producer", "fail", "Fail", "f", noEnd, (*run).fail},
	{"Network", "cut", "Cut", "c", plain, (*run).cut},
	{"Network", "stall", "Stall for 5 s", "t", plain, (*run).stall},
	{"Network", "latency", "300 ms latency", "l", plain, func(r *run) { r.Latency = 300 - r.Latency }},
	{"Network", "bandwidth", "1 % bandwidth", "b", plain, func(r *run) { r.Bandwidth = 101 - r.Bandwidth }},
	{"Consumer", "consume-", "pace", "o", plain, func(r *run) { r.Consume = max(1, r.Consume/2) }},
	{"Consumer", "consume+", "pace", "p", plain, func(r *run) { r.Consume = min(2*r.Consume, 50) }},
	{"Consumer", "window-", "window", "j", anew, func(r *run) { r.Window = max(1, r.Window-1) }},
	{"Consumer", "window+", "window", "k", anew, func(r *run) { r.Window = min(r.Window+1, 16) }},
	{"Consumer", "kill", "Kill", "x", aConsumer, (*run).kill},
	{"Consumer", "another", "Another", "n", noConsumer, (*run).subscribe},
	{"Consumer", "rival", "A rival", "r", aConsumer, (*run).subscribe},
	{"Consumer", "cancel", "Cancel", "g", aConsumer, func(r *run) { r.consumer().leave(errors.New("has cancelled")) }},
}

// press does what a button stands for, or says why it cannot.
func (l *lab) press(button string) (err error) {
	l.buttons.Lock()
	defer l.buttons.Unlock()
	if s, ok := scenarios[button]; ok {
		return l.begin(button, s)
	}
	i := slices.IndexFunc(controls, func(c control) bool { return c.Name == button })
	if i < 0 {
		return fmt.Errorf("there is no button %q", button)
	}
	c, r := controls[i], l.run.Load()
	r.change(func() {
		works := map[kind]bool{plain: true, anew: true, aConsumer: r.consumer() != nil, noConsumer: r.consumer() == nil, noEnd: !r.Ending}
		switch {
		case !works[c.kind]:
			err = errors.New(string(c.kind))
		case c.kind == anew:
			next := &run{picture: picture{settings: r.settings}}
			c.press(next)
			next.Elements = 0
			err = l.begin("", scenario{settings: next.settings})
		default:
			c.press(r)
		}
	})
	return err
}

// consumer is the one that is served or, if none is, the last to come.
func (r *run) consumer() (current *process) {
	for _, p := range r.Readers {
		if p.Fate == "" && (current == nil || !current.Served) {
			current = p
		}
	}
	return current
}

// pause makes time stand still, or go on.
func (r *run) pause() {
	if r.Standing = !r.Standing; r.Standing {
		r.gate = make(chan struct{})
	} else {
		close(r.gate)
	}
}

// step lets one message leave, or one user go on. Time stands still then.
func (r *run) step() {
	if !r.Standing {
		r.pause()
	}
	select {
	case r.gate <- struct{}{}:
	default: // nobody waits
	}
}

func (r *run) cut() {
	r.note(event{What: "cut", Text: "every connection is cut"})
	r.network.cut()
}

func (r *run) stall() {
	r.note(event{What: "stall", Text: "nothing passes for 5 s"})
	r.network.stalled.Store(time.Now().Add(r.seconds(5)).UnixNano())
}

func (r *run) kill() {
	if p := r.consumer(); p != nil { // a scenario presses this, whatever else was pressed
		p.kill(errors.New(killed))
	}
}

func (r *run) complete() { r.finish("Complete", func() error { return r.sink.Complete(r.ctx) }) }
func (r *run) fail() {
	r.finish("Fail", func() error { return r.sink.Fail(r.ctx, errors.New("the sensor is broken")) })
}

// finish ends the stream from the producer's side, and does not wait until the
// consumer has everything.
func (r *run) finish(what string, end func() error) {
	r.Ending = true
	r.note(event{What: "calls", From: "producer", Text: what + " is called"})
	r.lab.going.Go(func() {
		err := end()
		r.change(func() { r.over(what, err) })
	})
}
