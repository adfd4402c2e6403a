package main

import "time"

// A scenario is a run in which buttons are pressed by themselves. The page says
// what to look for and, when the run is done, what has happened.
type scenario struct {
	settings
	steps []step
}

// settings are those of the stream, its users and the network.
type settings struct {
	Produce, Consume int // elements per second
	Buffer, Window   int
	Latency          int // milliseconds
	Bandwidth        int // percent of 100 KiB per second
	Elements         int // to be put; 0: without end
}

// A step is taken as soon as something holds.
type step struct {
	when  func(*run) bool
	press func(*run)
}

var (
	usual     = scenario{stream(2, 2, 0), nil}
	end       = step{allPut, (*run).complete}
	scenarios = map[string]scenario{
		"slow":            {stream(10, 3, 24), []step{end}},
		"lost":            {stream(5, 10, 24), []step{{consumed(3), late}, {consumed(8), after(0.1, (*run).cut)}, end}},
		"acknowledgement": {stream(5, 5, 6), []step{{consumed(3), late}, end, {lastWord, after(0.1, (*run).cut)}}},
		"successor":       {stream(5, 3, 30), []step{{consumed(8), (*run).kill}, {blocked, after(1, (*run).subscribe)}, end}},
		"refused":         {stream(3, 3, 18), []step{{consumed(5), (*run).subscribe}, end}},
		"silence":         {stream(5, 5, 24), []step{{consumed(8), (*run).stall}, end}},
	}
)

func stream(produce, consume, elements int) settings {
	return settings{produce, consume, 4, 6, 0, 100, elements}
}

func consumed(n int) func(*run) bool { return func(r *run) bool { return r.Consumed >= n } }
func allPut(r *run) bool             { return r.Put == r.Elements }
func lastWord(r *run) bool           { return r.held > r.Elements } // the end is a position, too
func blocked(r *run) bool            { return r.Blocked }
func late(r *run)                    { r.Latency = 300 }

func after(seconds float64, press func(*run)) func(*run) {
	return func(r *run) {
		time.AfterFunc(r.seconds(seconds), func() { r.change(func() { press(r) }) })
	}
}
