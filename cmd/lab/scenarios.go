package main

import "time"

// A scenario is a run in which buttons are pressed by themselves. The page says
// what to look for and, when the run is done, what has happened.
type scenario struct {
	settings
	presses []press
}

// A press waits until something holds, and then some heartbeats.
type press struct {
	button string
	when   func(r *run) bool
	after  float64
}

var scenarios = map[string]scenario{
	"slow": {settings{Produce: 10, Consume: 3, Buffer: 4, Window: 6, Elements: 24}, nil},
	"lost": {settings{Produce: 5, Consume: 10, Buffer: 4, Window: 6, Elements: 24}, []press{
		{"latency", consumed(3), 0}, {"cut", consumed(8), 0.1}}},
	"acknowledgement": {settings{Produce: 5, Consume: 5, Buffer: 4, Window: 6, Elements: 6}, []press{
		{"latency", consumed(3), 0}, {"complete", allPut, 0}, {"cut", lastWord, 0.1}}},
	"successor": {settings{Produce: 5, Consume: 3, Buffer: 4, Window: 6, Elements: 30}, []press{
		{"kill", consumed(8), 0}, {"another", blocked, 1}}},
	"refused": {settings{Produce: 3, Consume: 3, Buffer: 4, Window: 6, Elements: 18}, []press{{"rival", consumed(5), 0}}},
	"silence": {settings{Produce: 5, Consume: 5, Buffer: 4, Window: 6, Elements: 24}, []press{{"stall", consumed(8), 0}}},
}

func consumed(n uint64) func(*run) bool { return func(r *run) bool { return r.Consumed >= n } }
func allPut(r *run) bool                { return int(r.Put) == r.Elements }
func lastWord(r *run) bool              { return r.Said["last word"] > 0 }
func blocked(r *run) bool               { return r.Blocked }

// play presses the buttons of a scenario, and completes the stream when
// everything has been put.
func (r *run) play(s scenario) {
	for _, p := range append(s.presses, press{"complete", allPut, 0}) {
		if !r.until(func() bool { return p.when(r) }) {
			return
		}
		select {
		case <-time.After(time.Duration(p.after * float64(r.heartbeat))):
		case <-r.ctx.Done():
			return
		}
		r.change(func() { r.press(p.button, 0) }) // that the stream is complete already is no matter
	}
	if r.until(func() bool { return r.Over && r.current() == nil }) {
		r.change(func() { r.Done = true })
	}
}
