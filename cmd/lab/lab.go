package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"casty"
)

// An Element carries its number, so that the elements alone tell whether one is
// missing, or comes twice. Its ballast makes a slow connection felt.
type Element struct {
	Number  int
	Ballast [64]byte
}

func (e Element) String() string { return fmt.Sprint(e.Number) }

var key = casty.NewServiceKey[casty.StreamProducerMsg[Element]]("numbers")

// A lab has one run at a time, which all pages show.
type lab struct {
	ctx    context.Context
	second time.Duration  // the heartbeat, and the unit of all times, so that a test can be fast
	going  sync.WaitGroup // the goroutines of all runs

	buttons sync.Mutex // one after the other
	run     atomic.Pointer[run]
}

// A run is one stream from its beginning. The producer is on one node, and each
// consumer in a client; they find each other through another node, the seed.
type run struct {
	lab     *lab
	began   time.Time
	ctx     context.Context
	end     context.CancelFunc
	network network
	seeds   []string
	sink    *casty.SinkRef[Element]

	mu sync.Mutex // guards what follows
	picture
	events []event
	next   int               // the number of the next event
	names  map[string]string // of processes, by what peers call them
	gate   chan struct{}     // closed while time goes on; else it lets through who has waited longest
	steps  []step            // that the scenario has yet to take
}

// A process is a node or, with a consumer and its user, a client. Pages are told
// what is exported here of clients.
type process struct {
	Name, Fate                string // no Fate: it goes on
	Served                    bool
	First, Received, Consumed int // positions: where it began, and before which it holds or has consumed all
	ctx, loop                 context.Context
	kill, leave               context.CancelCauseFunc // end ctx, and the loop alone
}

const killed = "killed"

// begin ends a run, and begins another. The caller holds l.buttons.
func (l *lab) begin(story string, s scenario) error {
	r := &run{lab: l, began: time.Now(), names: map[string]string{}, gate: make(chan struct{}), steps: s.steps,
		picture: picture{Run: time.Now().UnixMicro(), Story: story, settings: s.settings}}
	close(r.gate)
	r.network.second, r.network.going = l.second, &l.going
	r.ctx, r.end = context.WithCancel(l.ctx)
	if err := r.start(); err != nil {
		r.end()
		return err
	}
	if old := l.run.Swap(r); old != nil {
		old.end()
	}
	return nil
}

// start starts the nodes, the stream and its first consumer.
func (r *run) start() (err error) {
	var node *casty.System
	for _, name := range []string{"seed", "producer"} {
		if node, err = r.join(&process{Name: name, ctx: r.ctx}, casty.StartNode); err != nil {
			return err
		}
		r.seeds = append(r.seeds, node.Address())
	}
	producer, err := casty.Spawn(node, "producer", casty.Discoverable(key, casty.StreamProducer[Element](r.Buffer)))
	if err != nil {
		return err
	}
	if r.sink, err = casty.GetSink(r.ctx, node, producer); err != nil {
		return err
	}
	r.lab.going.Go(r.produce)
	r.change(r.subscribe)
	return nil
}

// join starts a process's system, which is closed when the process ends.
func (r *run) join(p *process, start func(casty.Config) (*casty.System, error)) (*casty.System, error) {
	system, err := start(casty.Config{Name: "lab", Heartbeat: r.lab.second, Seeds: r.seeds,
		Dial: r.network.dial(p.ctx), Logger: slog.New(tap{slog.DiscardHandler, r, p})})
	if err != nil {
		return nil, err
	}
	r.change(func() { r.names[system.Address()] = p.Name })
	r.lab.going.Go(func() { <-p.ctx.Done(); system.Close() })
	return system, nil
}

func (r *run) seconds(n float64) time.Duration { return time.Duration(n * float64(r.lab.second)) }
func (r *run) now() float64                    { return float64(time.Since(r.began)) / float64(r.lab.second) }

// rest is a user's pause between two elements. It returns false once ctx has ended.
func (r *run) rest(ctx context.Context, pace *int) bool {
	var pause time.Duration
	r.change(func() { pause = r.seconds(1 / float64(*pace)) })
	select {
	case <-time.After(pause):
	case <-ctx.Done():
	}
	r.pass(ctx, event{What: "held"})
	return ctx.Err() == nil
}

// pass returns at once while time goes on. Otherwise its caller is held, which e
// says, until a step lets it through.
func (r *run) pass(ctx context.Context, e event) {
	var gate chan struct{}
	r.change(func() {
		if gate = r.gate; r.Standing {
			r.note(e)
		}
	})
	select {
	case <-gate:
	case <-ctx.Done():
	}
}

// produce is the producer's user, who puts one number after the other.
func (r *run) produce() {
	var err error
	for n := 0; err == nil && (n == 0 || n != r.Elements) && r.rest(r.ctx, &r.Produce); n++ {
		began := r.now()
		blocks := time.AfterFunc(r.seconds(0.05), func() { r.change(func() { r.Blocked = r.Put == n }) })
		err = r.sink.Put(r.ctx, Element{Number: n})
		blocks.Stop()
		r.change(func() {
			r.Blocked = false
			r.Waited += r.now() - began
			if err == nil {
				r.Put++
			} else if !r.Ending {
				r.over("Put", err)
			}
		})
	}
}

// over notes that the stream is, for the producer's user. The caller holds r.mu.
func (r *run) over(what string, err error) {
	r.Ending = true
	r.note(event{What: "returns", From: "producer", Text: fmt.Sprintf("%s returns %v", what, err)})
}

const maxReaders = 50 // of a run, since a page is told of all

// subscribe adds a consumer, in a client of its own. The client stays when the user
// has left, so that the consumer's last word is heard. The caller holds r.mu.
func (r *run) subscribe() {
	if len(r.Readers) == maxReaders {
		r.note(event{What: "refuses", Text: "no more consumers come: start anew"})
		return
	}
	p := &process{Name: fmt.Sprintf("reader-%d", len(r.Readers)+1)}
	p.ctx, p.kill = context.WithCancelCause(r.ctx)
	p.loop, p.leave = context.WithCancelCause(p.ctx)
	r.Readers = append(r.Readers, p)
	r.note(event{What: "comes", From: p.Name, Text: "comes"})
	r.lab.going.Go(func() {
		err := r.consume(p)
		r.change(func() {
			if err == nil && p.loop.Err() == nil {
				r.reach(r.Put)
			}
			p.Fate = cmp.Or(context.Cause(p.loop), err, errors.New("has everything")).Error()
			r.note(event{What: "ends", From: p.Name, Text: p.Fate})
		})
	})
}

// consume is a consumer's user, who finds the producer in the listing, and takes
// time for each element.
func (r *run) consume(p *process) error {
	client, err := r.join(p, func(cfg casty.Config) (*casty.System, error) { return casty.Connect(p.ctx, cfg) })
	if err != nil {
		return err
	}
	var producer casty.ActorRef[casty.StreamProducerMsg[Element]]
	for listing := range casty.Listings(p.loop, client, key) {
		if len(listing.Instances) > 0 {
			producer = listing.Instances[0].Ref
			break
		}
	}
	// Time can stand still for as long as PeerTimeout.
	consumer, err := casty.Spawn(client, p.Name, casty.StreamConsumer(producer, casty.Window(r.Window), casty.PeerTimeout(24*time.Hour)))
	if err != nil {
		return err
	}
	source, err := casty.GetSource(p.loop, client, consumer)
	if err != nil {
		return err
	}
	for element, err := range source.All(p.loop) {
		if err != nil {
			return err
		}
		if r.rest(p.loop, &r.Consume) {
			r.change(func() { r.count(p, element.Number) })
		}
	}
	return nil
}
