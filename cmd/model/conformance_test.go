package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"casty"
)

// The model takes random walks. In one half of them a real producer hears what
// the model's hears, in the other a real consumer; actors of the test stand at
// the other end, and what they are told must be what the model says.
//
// Where the code does more than the model, this is how it maps:
//
//   - A StreamElement with a run of elements is one for each of them. The
//     element at position p is p+100. StreamFailed is a StreamCompleted.
//   - The producer sends at once what it may send: the model does so, too,
//     before the walk goes on. A queue of the model that is full is a
//     connection that gets lost.
//   - The model's producer has taken all elements from the start, the code's when
//     it first serves somebody. Before that, nobody says that it holds any.
//   - Demand past the end means the end: the model does not count further.
//   - Time stands still but for the ticks. At a tick, a consumer repeats itself
//     or subscribes again; the model permits either, and the code must
//     subscribe again at the ninth in a row, or before.
//   - A consumer that has stopped is an actor that stops. An unreachable one
//     has an address in another process, to which there is no network: the
//     code finds it unreachable when it is served and at every tick. It hears
//     nothing, and so says nothing but Subscribe{From: 0} and StreamCancel.
//     What one says that has stopped is followed by the news that it has; it
//     says nothing where the other is unreachable, as nobody could see what
//     follows.
//   - The code may, and within three ticks must, give the place of a consumer
//     that has been unreachable for a tick to the one that waits.
//   - Mailboxes and maxWindow are larger than anything in a walk. Nobody
//     crashes or gives up where the code is.
//
// Besides, both ends hear what nobody would say, now and then.

const (
	heartbeat = time.Second
	walks     = 2000 // for each end
	stride    = 80   // steps in a walk
)

type (
	toProducer = casty.StreamProducerMsg[int]
	toConsumer = casty.StreamConsumerMsg[int]
)

// A fake is an end that the test plays.
type fake[M any] struct {
	ref   casty.ActorRef[M]
	heard chan M
}

func play[M any](t *testing.T, system *casty.System, name string) *fake[M] {
	f := &fake[M]{heard: make(chan M, 100)}
	var err error
	f.ref, err = casty.Spawn(system, name, func(self *casty.Actor[M]) {
		for m := range self.Messages() {
			f.heard <- m
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// drain returns what has been heard since the last time.
func (f *fake[M]) drain() (heard []M) {
	for len(f.heard) > 0 {
		heard = append(heard, <-f.heard)
	}
	return heard
}

// A walk is a way through the model, with something real beside it.
type walk struct {
	*testing.T
	*rand.Rand
	world
	state
	system *casty.System
	log    []string
}

func newWalk(t *testing.T, seed uint64) *walk {
	w := &walk{T: t, Rand: rand.New(rand.NewPCG(seed, 1))}
	w.world = world{
		rules:     rules{elements: position(1 + w.IntN(5)), window: position(1 + w.IntN(5))},
		faults:    faults{losses: unlimited, cuts: 0, crashes: 2, again: 2},
		consumers: 2, capacity: 7, cancels: w.IntN(3) == 0, slow: true, repeats: true,
	}
	w.producer = producer{serves: nobody, waits: nobody}
	w.system = casty.NewSystem(casty.Config{Heartbeat: heartbeat, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	w.note("%d elements, window %d, seed %d", w.elements, w.window, seed)
	return w
}

func (w *walk) note(format string, args ...any) { w.log = append(w.log, fmt.Sprintf(format, args...)) }

// pick chooses one of the things that can happen next and are wanted.
func (w *walk) pick(wanted func(*step) bool) *step {
	var found []step
	for t := range w.next(&w.state) {
		if wanted(t) {
			found = append(found, *t)
		}
	}
	if len(found) == 0 {
		return nil
	}
	return &found[w.IntN(len(found))]
}

// require compares what was said with what the model says.
func (w *walk) require(who string, said, want []message) {
	w.Helper()
	if !slices.Equal(said, want) {
		for _, line := range w.log {
			w.Log(line)
		}
		w.Fatalf("%s says %v, but the model %v", who, said, want)
	}
}

// everyWalk keeps to one processor: under the race detector, timers of a bubble
// that two of them fire at once corrupt the detector (go.dev/issue/78156).
func everyWalk(t *testing.T, do func(t *testing.T, seed uint64)) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	for seed := range uint64(walks) {
		synctest.Test(t, func(t *testing.T) { do(t, seed) })
		if t.Failed() {
			return
		}
	}
}

// ---- A real producer

type producerWalk struct {
	*walk
	ref       casty.ActorRef[toProducer]
	consumers [2]*fake[toConsumer]
	dead      [2]bool // actors that have stopped
	names     int
	ghost     bool // B is unreachable
	lostFor   int  // ticks
	serving   name // before the last step
	served    bool // somebody has been
	completed chan error
}

func TestProducerSaysWhatTheModelSays(t *testing.T) {
	everyWalk(t, func(t *testing.T, seed uint64) {
		w := &producerWalk{walk: newWalk(t, seed), completed: make(chan error, 1), serving: nobody}
		defer w.system.Close()
		w.ghost = w.IntN(2) == 0
		w.begin()
		for range stride {
			switch n := w.IntN(12); {
			case n == 0:
				w.nonsense()
			case n <= 2:
				w.tick()
			default:
				w.step()
			}
			if w.producer.stopped != no {
				w.ended()
				return
			}
		}
	})
}

// begin puts all elements into a producer's sink, and ends the stream.
func (w *producerWalk) begin() {
	var err error
	w.ref, err = casty.Spawn(w.system, "producer", casty.StreamProducer[int](int(w.elements)))
	if err != nil {
		w.Fatal(err)
	}
	sink, err := casty.GetSink(w.Context(), w.system, w.ref)
	if err != nil {
		w.Fatal(err)
	}
	for p := range int(w.elements) {
		if err := sink.Put(w.Context(), p+100); err != nil {
			w.Fatal(err)
		}
	}
	fails := w.IntN(4) == 0
	go func() {
		if fails {
			w.completed <- sink.Fail(context.Background(), errors.New("a cause"))
		} else {
			w.completed <- sink.Complete(context.Background())
		}
	}()
	w.newcomer(A)
	w.newcomer(B)
	synctest.Wait()
}

func (w *producerWalk) newcomer(x name) {
	w.names++
	f := play[toConsumer](w.T, w.system, fmt.Sprintf("consumer-%d", w.names))
	if w.ghost && x == B {
		if err := f.ref.GobDecode(fmt.Appendf(nil, "casty://casty@192.0.2.1:1/consumer#%d", w.names)); err != nil {
			w.Fatal(err)
		}
	}
	w.consumers[x], w.dead[x] = f, false
}

// step is a step of the model, in which the real producer takes part if it is
// one of its own.
func (w *producerWalk) step() {
	t := w.pick(func(t *step) bool {
		sends := t.at == up && t.what == "" && t.heard == nothing && t.lost == 0
		unseen := w.ghost && (t.x == B && t.what == "has stopped" || t.at == up && w.dead[t.x])
		return !sends && !unseen && t.what != "was unreachable for a heartbeat"
	})
	if t == nil {
		return
	}
	before := w.producer
	w.state = t.state
	switch {
	case t.at == up && t.heard != nothing:
		w.hears(t.x, t.heard, w.producerHears(&before, t.x, t.heard))
	case t.what == "has stopped":
		w.note("%v has stopped", t.x)
		casty.Stop(w.system, w.consumers[t.x].ref)
		w.dead[t.x] = true
		w.compare(w.producerLoses(&before))
	case t.what == "makes way for a new consumer":
		w.newcomer(t.x)
	}
}

// nonsense is a message that nobody has sent.
func (w *producerWalk) nonsense() {
	x := name(w.IntN(2))
	m := say(StreamDemand, w.position(w.elements+1), w.position(w.elements+1))
	if w.IntN(2) == 0 || w.ghost && x == B {
		m = say(Subscribe, 0)
		if w.served {
			m = say(Subscribe, w.position(w.elements+1))
		}
	}
	if w.ghost && w.dead[x] {
		return
	}
	told := w.producerHears(&w.producer, x, m)
	w.hears(x, m, told)
}

func (w *walk) position(last position) position { return position(w.IntN(int(last) + 1)) }

func (w *producerWalk) hears(x name, m message, told [2]message) {
	w.note("%v says %v", x, m)
	ref := w.consumers[x].ref
	switch m.kind() {
	case Subscribe:
		w.ref.Tell(w.system, casty.Subscribe[int]{Consumer: ref, From: uint64(m.seq())})
	case StreamDemand:
		w.ref.Tell(w.system, casty.StreamDemand[int]{Consumer: ref, Received: uint64(m.seq()), Demand: uint64(m.demand())})
	case StreamCancel:
		w.ref.Tell(w.system, casty.StreamCancel[int]{Consumer: ref})
	}
	w.compare(told)
}

// tick lets a heartbeat pass, in which an unreachable consumer is found to be.
func (w *producerWalk) tick() {
	w.note("a heartbeat passes")
	if w.ghost && w.producer.serves == B {
		if w.lostFor++; !w.producer.lost {
			w.producer.lost, w.lostFor = true, 0
		}
	}
	time.Sleep(heartbeat)
	w.compare([2]message{})
}

// compare lets the producer say all that it has to say, and the model too.
func (w *producerWalk) compare(told [2]message) {
	w.Helper()
	synctest.Wait()
	said := [2][]message{w.said(A), w.said(B)}
	var want [2][]message
	w.expect(&want, told)
	if p := &w.producer; p.serves == B && p.lost && p.waits != nobody && w.lostFor > 0 {
		if w.lostFor >= 3 || len(said[A]) > len(want[A]) {
			w.expect(&want, w.producerLoses(p))
		}
	}
	for x := A; x <= B; x++ {
		if !w.dead[x] && !(w.ghost && x == B) {
			w.require(fmt.Sprintf("the producer, to %v,", x), said[x], want[x])
		}
	}
}

// expect is what the model says: an answer, and what may be sent then.
func (w *producerWalk) expect(want *[2][]message, told [2]message) {
	for x := A; x <= B; x++ {
		if told[x] != nothing {
			want[x] = append(want[x], told[x])
		}
	}
	for x := w.producer.serves; x != nobody; {
		if w.links[x][down].now.len() == w.capacity {
			w.links[x][down].now = 0
		}
		t := step{state: w.state}
		if !w.sends(&t, x) {
			break
		}
		w.state = t.settled().state
		want[x] = append(want[x], t.said)
	}
	if w.ghost {
		w.links[B][down] = link{}
		if w.producer.serves == B && w.serving != B {
			w.producer.lost, w.lostFor = true, 0
		}
	}
	if w.serving = w.producer.serves; w.serving != nobody && w.dead[w.serving] {
		w.expect(want, w.producerLoses(&w.producer))
	}
	w.served = w.served || w.producer.serves != nobody
}

// said is what a consumer has been told since the last time.
func (w *producerWalk) said(x name) (said []message) {
	for _, m := range w.consumers[x].drain() {
		switch m := m.(type) {
		case casty.Subscribed[int]:
			said = append(said, say(Subscribed, position(m.Seq)))
		case casty.StreamElement[int]:
			for i, element := range m.Elements {
				p := int(m.Seq) + i
				if element != p+100 {
					w.Fatalf("element %d at position %d", element, p)
				}
				said = append(said, say(StreamElement, position(p)))
			}
		case casty.StreamCompleted[int]:
			said = append(said, say(StreamCompleted, position(m.Seq)))
		case casty.StreamFailed[int]:
			said = append(said, say(StreamCompleted, position(m.Seq)))
		case casty.StreamRefused[int]:
			said = append(said, say(StreamRefused))
		}
	}
	return said
}

// ended compares how the stream has ended.
func (w *producerWalk) ended() {
	var want error
	if w.producer.stopped == cancelled {
		want = casty.ErrCancelled
	}
	select {
	case err := <-w.completed:
		if !errors.Is(err, want) {
			w.Fatalf("%v: the sink says %v", w.log, err)
		}
	default:
		w.Fatalf("%v: the producer goes on", w.log)
	}
}

// ---- A real consumer

// The real consumer is A; B is its rival in the model alone.
type consumerWalk struct {
	*walk
	ref      casty.ActorRef[toConsumer]
	producer *fake[toProducer]
	quiet    int // ticks in which it has neither taken anything nor subscribed

	handed []int         // what the user was handed
	onward chan struct{} // lets the user go on
	leave  context.CancelFunc
	ended  chan error // how the user's loop has ended; nil: well, or left
}

func TestConsumerSaysWhatTheModelSays(t *testing.T) {
	everyWalk(t, func(t *testing.T, seed uint64) {
		w := &consumerWalk{walk: newWalk(t, seed), onward: make(chan struct{}), ended: make(chan error, 1), leave: func() {}}
		defer w.system.Close()
		w.begin()
		defer func() { w.leave() }()
		for range 2 * stride {
			c := w.state.consumers[A]
			switch n := w.IntN(16); {
			case c.phase == gone:
				return
			case n == 0 && c.phase == running:
				w.nonsense()
			case n == 1 && c.phase == running:
				w.tick()
			default:
				w.step()
			}
		}
		for range 20 { // and then a long silence
			if w.state.consumers[A].phase == running {
				w.tick()
			}
		}
	})
}

func (w *consumerWalk) begin() {
	w.producer = play[toProducer](w.T, w.system, "producer")
	var err error
	w.ref, err = casty.Spawn(w.system, "consumer",
		casty.StreamConsumer(w.producer.ref, casty.Window(int(w.window)), casty.PeerTimeout(time.Hour)))
	if err != nil {
		w.Fatal(err)
	}
	synctest.Wait()
}

// use is the user, who is handed one element after the other.
func (w *consumerWalk) use(ctx context.Context, source *casty.SourceRef[int]) {
	var last error
	for element, err := range source.All(ctx) {
		if last = err; err != nil {
			break
		}
		w.handed = append(w.handed, element-100)
		select {
		case <-w.onward:
			continue
		case <-ctx.Done():
		}
		break
	}
	w.ended <- last
}

// step is a step of the model, in which the real consumer takes part if it is
// A's. Its ticks are another matter.
func (w *consumerWalk) step() {
	t := w.pick(func(t *step) bool {
		ours := t.at == down && t.x == A && t.lost == 0
		return !ours || t.heard != nothing || slices.Contains([]string{
			"subscribes", "has consumed one", "cancels", "learns that the producer has stopped"}, t.what)
	})
	if t == nil {
		return
	}
	before := w.state.consumers[A]
	w.state = t.state
	switch {
	case t.at == up || t.x == B || t.lost != 0:
	case t.heard != nothing:
		w.hears(t.heard, t.said, before)
	default:
		w.does(t, before)
	}
}

// does is a step of its user, or of the watch on its producer.
func (w *consumerWalk) does(t *step, before consumer) {
	w.note("it %s", t.what)
	switch t.what {
	case "subscribes":
		source, err := casty.GetSource(w.Context(), w.system, w.ref)
		if err != nil {
			w.Fatal(err)
		}
		ctx, leave := context.WithCancel(context.Background())
		w.leave = leave
		go w.use(ctx, source)
	case "has consumed one":
		w.onward <- struct{}{}
	case "cancels":
		w.leave()
	default:
		casty.Stop(w.system, w.producer.ref)
	}
	w.compare(t.said)
	if t.what == "learns that the producer has stopped" {
		w.over(before, errAny)
	}
}

// nonsense is a message that nobody has sent.
func (w *consumerWalk) nonsense() {
	kinds := []uint8{Subscribed, StreamElement, StreamElement, StreamElement, StreamCompleted}
	m := say(kinds[w.IntN(len(kinds))], w.position(w.elements))
	before := w.state.consumers[A]
	t := step{state: w.state}
	said := w.consumerHears(&t.consumers[A], m)
	w.state = t.settled().state
	w.hears(m, said, before)
}

func (w *consumerWalk) hears(m, said message, before consumer) {
	w.note("it hears %v", m)
	switch seq := uint64(m.seq()); m.kind() {
	case Subscribed:
		w.ref.Tell(w.system, casty.Subscribed[int]{Seq: seq})
	case StreamElement:
		w.ref.Tell(w.system, casty.StreamElement[int]{Seq: seq, Elements: []int{int(seq) + 100}})
	case StreamCompleted:
		w.ref.Tell(w.system, casty.StreamCompleted[int]{Seq: seq})
	case StreamRefused:
		w.ref.Tell(w.system, casty.StreamRefused[int]{Reason: casty.ErrAlreadySubscribed.Error()})
	}
	w.compare(said)
	c := w.state.consumers[A]
	switch {
	case c.received > before.received:
		w.quiet = 0
	case c.phase != running && m.kind() == StreamRefused:
		w.over(before, casty.ErrAlreadySubscribed)
	case c.phase != running && before.phase == running:
		w.over(before, casty.ErrCannotResume)
	}
}

// tick lets a heartbeat pass. What the consumer says then is one of two things.
func (w *consumerWalk) tick() {
	w.note("a heartbeat passes")
	time.Sleep(heartbeat)
	synctest.Wait()
	said := w.said()
	again, loud := w.state, w.state
	subscribes, repeats := w.consumerTicks(&again.consumers[A], true), w.consumerTicks(&loud.consumers[A], false)
	t, want := &step{state: loud}, repeats
	if w.quiet++; len(said) > 0 && said[0] == subscribes || w.quiet > 9 {
		t.state, want, w.quiet = again, subscribes, 0
	}
	w.push(t, A, up, want)
	w.state = t.settled().state
	w.require("the consumer", said, list(want))
}

func list(m message) []message {
	if m == nothing {
		return nil
	}
	return []message{m}
}

// compare lets the consumer say all that it has to say, and looks at what its
// user has been handed.
func (w *consumerWalk) compare(want message) {
	w.Helper()
	synctest.Wait()
	w.require("the consumer", w.said(), list(want))
	if c := w.state.consumers[A]; c.phase == running && c.lastWord == nothing {
		var handed []int
		for p := c.first; p < min(c.received, c.consumed+1); p++ {
			handed = append(handed, int(p))
		}
		if !slices.Equal(w.handed, handed) {
			w.Fatalf("%v: the user was handed %v, in the model %v", w.log, w.handed, handed)
		}
	}
}

// said is what the producer has been told since the last time.
func (w *consumerWalk) said() (said []message) {
	end := uint64(w.elements) + 1
	for _, m := range w.producer.drain() {
		var from casty.ActorRef[toConsumer]
		switch m := m.(type) {
		case casty.Subscribe[int]:
			from, said = m.Consumer, append(said, say(Subscribe, position(m.From)))
		case casty.StreamDemand[int]:
			from, said = m.Consumer, append(said, say(StreamDemand, position(m.Received), position(min(m.Demand, end))))
		case casty.StreamCancel[int]:
			from, said = m.Consumer, append(said, say(StreamCancel))
		}
		if from != w.ref {
			w.Fatalf("%v says %v as %v", w.ref, m, from)
		}
	}
	return said
}

var errAny = errors.New("any")

// over compares how the user's loop ends: cleanly behind the end, or when the
// user has left it; with an error otherwise.
func (w *consumerWalk) over(before consumer, want error) {
	close(w.onward)
	synctest.Wait()
	if len(w.ended) == 0 {
		w.Fatalf("%v: the user's loop goes on", w.log)
	}
	err := <-w.ended
	left := before.lastWord.kind() == StreamCancel
	switch well := before.lastWord.kind() == StreamDemand; {
	case left:
	case well != (err == nil), !well && want != errAny && !errors.Is(err, want):
		w.Fatalf("%v: the user's loop ends with %v, want %v", w.log, err, want)
	}
}
