package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"casty"
)

// An Element carries its number, so that the elements alone tell whether one is
// missing, or comes twice. Its ballast makes a slow connection felt.
type Element struct {
	Number  uint64
	Ballast [64]byte
}

func (e Element) String() string { return fmt.Sprint(e.Number) }

const bandwidth = 100 << 10 // bytes per heartbeat, in each direction of a connection

var key = casty.NewServiceKey[casty.StreamProducerMsg[Element]]("numbers")

// settings are those of the stream and its users.
type settings struct {
	Produce, Consume int // elements per heartbeat
	Buffer, Window   int
	Elements         int // to be put; 0: without end
}

// A run is one stream from its beginning. The producer is on one node, and each
// consumer in a client; they find each other through another node, the seed.
type run struct {
	heartbeat time.Duration // the unit of all times, so that a test can be fast
	began     time.Time
	ctx       context.Context
	end       context.CancelFunc
	going     sync.WaitGroup // all goroutines but those of the network
	network   *network
	seeds     []string
	sink      *casty.SinkRef[Element]
	putting   context.Context // ends before the stream does
	hush      context.CancelFunc
	quiet     chan struct{} // closed when nothing more is put
	step      chan struct{} // lets through who has waited longest, while time stands still

	mu sync.Mutex // guards what follows
	picture
	stalledAt float64
	events    []event
	next      int               // the number of the next event
	ends      map[string]string // of the stream, by what peers call their process
	moving    chan struct{}     // closed while time goes on
	changed   chan struct{}     // closed, and replaced, with each change
}

// A reader is a consumer's user.
type reader struct {
	Name, Fate                string // no Fate: it goes on
	First, Received, Consumed uint64 // positions: where it began, and before which it holds or has consumed all
	Served, Killed            bool
	Began, Ended              float64
	kill                      context.CancelFunc // ends its process
	leave                     context.CancelFunc // ends its loop
}

func newRun(heartbeat time.Duration, p picture) *run {
	p.missing, p.Said, p.Ending = map[uint64]bool{}, map[string]int{}, true // until it has started
	r := &run{heartbeat: heartbeat, began: time.Now(), picture: p, ends: map[string]string{}, network: &network{wires: map[*wire]bool{}},
		quiet: make(chan struct{}), step: make(chan struct{}), moving: make(chan struct{}), changed: make(chan struct{})}
	r.network.perByte = heartbeat / bandwidth
	r.ctx, r.end = context.WithCancel(context.Background())
	r.putting, r.hush = context.WithCancel(r.ctx)
	close(r.moving)
	return r
}

// start starts the nodes, the stream and its first consumer.
func (r *run) start() error {
	seed, err := r.join(r.ctx, "")
	if err != nil {
		return err
	}
	r.seeds = []string{seed.Address()}
	node, err := r.join(r.ctx, "producer")
	if err != nil {
		return err
	}
	producer, err := casty.Spawn(node, "producer", casty.Discoverable(key, casty.StreamProducer[Element](r.Buffer)))
	if err != nil {
		return err
	}
	if r.sink, err = casty.GetSink(r.ctx, node, producer); err != nil {
		return err
	}
	r.going.Go(r.produce)
	r.change(func() { r.Ending, err = false, r.subscribe() })
	return err
}

// close ends everything that the run has started.
func (r *run) close() {
	r.end()
	r.going.Wait()
	r.network.carrying.Wait()
	r.change(func() {})
}

// join starts a process for an end of the stream, or for none: a client for a
// consumer, else a node. It is closed when its context ends.
func (r *run) join(process context.Context, end string) (s *casty.System, err error) {
	cfg := casty.Config{Name: "lab", Heartbeat: r.heartbeat, Seeds: r.seeds,
		Dial: r.network.dial(process), Logger: slog.New(tap{slog.DiscardHandler, r, process, end})}
	if strings.HasPrefix(end, "reader") {
		s, err = casty.Connect(process, cfg)
	} else {
		l, failed := net.Listen("tcp", "127.0.0.1:0")
		if failed != nil {
			return nil, failed
		}
		cfg.Address, cfg.Listener = l.Addr().String(), listener{l, r.network, process}
		s, err = casty.StartNode(cfg)
	}
	if err == nil {
		r.change(func() { r.ends[s.Address()] = end })
		r.going.Go(func() {
			<-process.Done()
			s.Close()
		})
	}
	return s, err
}

// pass returns at once while time goes on. Otherwise it says that its caller
// waits, and returns when a step lets it through.
func (r *run) pass(ctx context.Context, waits func()) {
	var moving chan struct{}
	r.look(func() { moving = r.moving })
	select {
	case <-moving:
		return
	default:
		r.change(waits)
	}
	select {
	case <-moving:
	case <-r.step:
	case <-ctx.Done():
	}
}

// rest is a user's pause between two elements. It returns false once ctx has ended.
func (r *run) rest(ctx context.Context, pace *int) bool {
	var pause time.Duration
	r.look(func() { pause = r.heartbeat / time.Duration(*pace) })
	select {
	case <-time.After(pause):
	case <-ctx.Done():
	}
	r.pass(ctx, func() {})
	return ctx.Err() == nil
}

// produce is the producer's user, who puts one number after the other.
func (r *run) produce() {
	defer close(r.quiet)
	for n := 0; (n == 0 || n != r.Elements) && r.rest(r.putting, &r.Produce); n++ {
		began := r.now()
		blocks := time.AfterFunc(r.heartbeat/20, func() { r.change(func() { r.Blocked = true }) })
		err := r.sink.Put(r.putting, Element{Number: uint64(n)})
		blocks.Stop()
		r.change(func() {
			if r.Blocked {
				r.Blocked, r.Waited = false, r.Waited+r.now()-began
			}
			if err == nil {
				r.Put++
			} else if r.putting.Err() == nil {
				r.over("Put", err)
			}
		})
		if err != nil {
			return
		}
	}
}

// over notes that the stream is, for the producer's user. The caller holds r.mu.
func (r *run) over(what string, err error) {
	r.Ending, r.Over = true, true
	r.note(event{What: "note", From: "producer", Text: what + " returns " + brief(err)})
}

// brief is what an error says behind the address of the stream.
func brief(err error) string {
	text := fmt.Sprint(err)
	if _, behind, found := strings.Cut(text, "/producer: "); found {
		return behind
	}
	return strings.Trim(text, "<>")
}

const maxReaders = 50 // of a run, since a page is told of all

// subscribe adds a consumer, in a client of its own. The caller holds r.mu.
func (r *run) subscribe() error {
	if len(r.Readers) == maxReaders {
		return errors.New("too many consumers have come: start anew")
	}
	process, kill := context.WithCancel(r.ctx)
	loop, leave := context.WithCancel(process)
	rd := &reader{Name: fmt.Sprintf("reader-%d", len(r.Readers)+1), Began: r.now(), kill: kill, leave: leave}
	r.Readers = append(r.Readers, rd)
	r.going.Go(func() {
		defer kill()
		stopped, err := r.consume(process, loop, rd)
		r.change(func() {
			rd.Fate, rd.Ended = brief(err), r.now()
			switch {
			case rd.Killed:
				rd.Fate = "killed"
			case loop.Err() != nil:
				rd.Fate = "has cancelled"
			case err == nil:
				rd.Fate = "has everything"
				r.reach(r.Put)
			}
			r.audit(r.Readers)
			r.note(event{What: "note", From: rd.Name, Text: rd.Fate})
		})
		select {
		case <-stopped: // its last word has been heard
		case <-process.Done():
		}
	})
	return nil
}

// consume is a consumer's user, who finds the producer in the listing, and takes
// time for each element.
func (r *run) consume(process, loop context.Context, rd *reader) (stopped <-chan error, err error) {
	client, err := r.join(process, rd.Name)
	if err != nil {
		return nil, err
	}
	var producer casty.ActorRef[casty.StreamProducerMsg[Element]]
	for listing := range casty.Listings(loop, client, key) {
		if len(listing.Instances) > 0 {
			producer = listing.Instances[0].Ref
			break
		}
	}
	// Time can stand still for as long as PeerTimeout.
	consumer, err := casty.Spawn(client, rd.Name, casty.StreamConsumer(producer, casty.Window(r.Window), casty.PeerTimeout(24*time.Hour)))
	if err != nil {
		return nil, err
	}
	stopped = consumer.Watch(process, client)
	source, err := casty.GetSource(loop, client, consumer)
	if err != nil {
		return stopped, err
	}
	for element, err := range source.All(loop) {
		if err != nil {
			return stopped, err
		}
		if r.rest(loop, &r.Consume) {
			r.change(func() { r.count(rd, element.Number, r.Readers) })
		}
	}
	return stopped, nil
}
