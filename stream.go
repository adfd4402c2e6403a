package casty

// A stream is two actors, one at each end, that tell each other what stands in
// this table. Every number is a position in the stream: 0 is its first element,
// for everybody, for ever.
//
//	from the consumer                            it means
//	  Subscribe{Consumer, From}                  I hold everything before From: serve me from there on. One that has
//	                                             taken nothing says 0, and begins wherever the producer is
//	  StreamDemand{Consumer, Received, Demand}   I hold everything before Received; you may send what is before Demand
//	  StreamCancel{Consumer}                     I want no more
//
//	from the producer
//	  Subscribed{Seq}                            I serve you, from Seq on
//	  StreamElement{Seq, Elements}               the elements that start at Seq
//	  StreamCompleted{Seq}                       the stream ends at Seq
//	  StreamFailed{Seq, Reason}                  the same, with a reason
//	  StreamRefused{Reason}                      I do not serve you
//
// A stream of three elements, with a window of two (demands between those that
// are shown are left out):
//
//	Subscribe{From: 0}                  →
//	                                    ←  Subscribed{0}
//	StreamDemand{Received: 0, Demand: 2} →
//	                                    ←  StreamElement{0, [a b]}
//	StreamDemand{Received: 2, Demand: 4} →  the loop over the source has consumed a and b
//	                                    ←  StreamElement{2, [c]}
//	                                    ←  StreamCompleted{3}
//	StreamDemand{Received: 4, Demand: 4} →  the end counts as a position, and is acknowledged like one
//
// The rules below exist to keep three promises:
//
//   - a consumer is handed consecutive positions, each once;
//   - no element is sent at or past the demand, so a slow consumer is never
//     flooded;
//   - the producer keeps what it has taken from its sink until the consumer has
//     acknowledged it, and completes only when everything is acknowledged.
//
// The producer
//
//  1. keeps what it has taken until it is acknowledged, and never sends an
//     element at or past Demand. The end needs no demand. What it has sent it
//     sends again only when a Subscribe makes it go back;
//  2. serves one consumer at a time, and heeds nobody else's demand or cancel.
//     On a Subscribe from the consumer that it serves, or from anyone when it
//     serves none, it goes on from the first position that is not acknowledged, and
//     says so with Subscribed. From acknowledges as Received does. Whoever says From past
//     what the producer has taken from its sink holds elements of another stream,
//     and is refused;
//  3. lets a rival, another consumer that subscribes, wait. If the served consumer
//     speaks, the rival is refused. If the served consumer has stopped, or has
//     been unreachable for a heartbeat, the rival takes its place;
//  4. stops when its end is acknowledged, or when the served consumer cancels. An
//     element that cannot be encoded ends the stream before it. If the consumer's
//     process cannot decode one, nobody knows which: whoever subscribes from then
//     on is refused, with the reason, and the producer stops once its consumer has.
//
// The consumer
//
//  5. subscribes when GetSource first asks for its source, and takes nothing
//     before Subscribed has told it where it begins;
//  6. takes exactly the next position, and drops everything else. At a gap it
//     subscribes again, but only once until the first missing position has come;
//  7. says its demand once per heartbeat, and renews its watch of the producer.
//     If it has taken nothing new since the heartbeat before, something may have
//     been lost: it subscribes instead, so that the producer goes back. While
//     nothing comes, the pause until the next Subscribe doubles, up to eight
//     heartbeats (or a third of PeerTimeout, see rule 10, if that is less), because
//     on a slow link each Subscribe makes for copies of what is still under way.
//     The pause is one heartbeat again when something has come, or when the
//     producer has become unreachable;
//  8. ends with ErrCannotResume if Subscribed is past what it needs: others have
//     had what is between. If it has taken nothing yet it begins there instead.
//     A Subscribed with an earlier position is late, and moves nothing;
//  9. repeats its last word, which acknowledges the end or cancels, once per
//     heartbeat until it learns that the producer has stopped. A consumer that
//     leaves before it is served goes on subscribing, and cancels once it is
//     served: nobody heeds the cancel of a stranger;
//  10. gives up when it has waited PeerTimeout for an answer. The answer to a
//     Subscribe is Subscribed or a new element; the answer to its last word is
//     that the producer stops;
//  11. demands what it has consumed plus its window, each time that half a
//     window has been consumed.
//
// What a watch says reaches an actor through its own mailbox, as a message of
// type peerLost. Since a watch fires after everything that the peer had said
// before is in that mailbox, the peer's last words are read first.
//
// Nothing below opens a connection or encodes anything: it tells actors things.

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// StreamProducerMsg is what a stream producer's mailbox takes. The E keeps the
// messages of a stream of other elements out.
type StreamProducerMsg[E any] interface{ producerMsg(E) }

// StreamConsumerMsg is what a stream consumer's mailbox takes.
type StreamConsumerMsg[E any] interface{ consumerMsg(E) }

// From the consumer to its producer.
type (
	// Subscribe asks a producer to serve a consumer.
	Subscribe[E any] struct {
		Consumer ActorRef[StreamConsumerMsg[E]] // who asks, and is to be told the elements
		From     uint64                         // it holds everything before this position; 0 if it has taken nothing
	}
	// StreamDemand acknowledges elements and allows more to be sent. It is what
	// Reactive Streams calls request(n), as a position instead of a number.
	StreamDemand[E any] struct {
		Consumer ActorRef[StreamConsumerMsg[E]] // who speaks
		Received uint64                         // it holds everything before this position
		Demand   uint64                         // the producer may send what is before this position
	}
	// StreamCancel ends a stream from the consumer's side.
	StreamCancel[E any] struct {
		Consumer ActorRef[StreamConsumerMsg[E]] // who speaks
	}
)

// From the producer to its consumer.
type (
	// Subscribed answers Subscribe. It is Reactive Streams' onSubscribe.
	Subscribed[E any] struct {
		Seq uint64 // the position from which the consumer is served
	}
	// StreamElement carries a run of elements that are ready, up to 128 of them,
	// because a message for each would cost far more. It is Reactive Streams'
	// onNext.
	StreamElement[E any] struct {
		Seq      uint64 // the position of the first of them
		Elements []E    // at least one
	}
	// StreamCompleted ends a stream after all its elements: onComplete.
	StreamCompleted[E any] struct {
		Seq uint64 // the position behind the last element
	}
	// StreamFailed ends a stream like StreamCompleted, with an error: onError.
	StreamFailed[E any] struct {
		Seq    uint64 // the position behind the last element
		Reason string // the text of the error, up to 1 KiB of it
	}
	// StreamRefused tells a consumer that it is not served, or no longer.
	StreamRefused[E any] struct {
		Reason string // the text of an error, up to 1 KiB of it
	}
)

// These never leave their process.
type (
	getSink[E any]   struct{ replyTo ActorRef[*SinkRef[E]] }
	getSource[E any] struct{ replyTo ActorRef[*SourceRef[E]] }
	peerLost[E any]  struct {
		peer Address
		err  error
	}
)

func (Subscribe[E]) producerMsg(E)       {}
func (StreamDemand[E]) producerMsg(E)    {}
func (StreamCancel[E]) producerMsg(E)    {}
func (getSink[E]) producerMsg(E)         {}
func (peerLost[E]) producerMsg(E)        {}
func (Subscribed[E]) consumerMsg(E)      {}
func (StreamElement[E]) consumerMsg(E)   {}
func (StreamCompleted[E]) consumerMsg(E) {}
func (StreamFailed[E]) consumerMsg(E)    {}
func (StreamRefused[E]) consumerMsg(E)   {}
func (getSource[E]) consumerMsg(E)       {}
func (peerLost[E]) consumerMsg(E)        {}

// count is for remote.go, where a connection that many streams share gives each its turn.
func (m StreamElement[E]) count() int { return len(m.Elements) }

// To lose a message of these types is no dead letter: the stream says it again. A
// peerLost that nobody reads comes again, too, with the next watch.
func (Subscribe[E]) repeated()       {}
func (StreamDemand[E]) repeated()    {}
func (StreamCancel[E]) repeated()    {}
func (Subscribed[E]) repeated()      {}
func (StreamElement[E]) repeated()   {}
func (StreamCompleted[E]) repeated() {}
func (StreamFailed[E]) repeated()    {}
func (StreamRefused[E]) repeated()   {}
func (peerLost[E]) repeated()        {}

// learnStream lets the messages of a stream cross the wire. The error of learn, that
// two types have one name, is dropped, because the stream works within a process
// all the same. Elements that gob cannot carry are no error here: such a stream
// fails at the first element that is to leave the process.
func learnStream[E any]() {
	learn(Subscribe[E]{}, StreamDemand[E]{}, StreamCancel[E]{},
		Subscribed[E]{}, StreamElement[E]{}, StreamCompleted[E]{}, StreamFailed[E]{}, StreamRefused[E]{})
}

// The errors of sinks and sources, besides those of casty.go. They come wrapped,
// with the address of the producer.
var (
	// ErrCompleted, from Put, Complete and Fail: the stream has been ended from
	// this side.
	ErrCompleted = errors.New("the stream has been completed")
	// ErrCancelled, from Put, Complete and Fail: the consumer wants no more. A
	// loop over a source that an earlier loop has left ends with it, too.
	ErrCancelled = errors.New("cancelled by the consumer")
	// ErrAlreadySubscribed, from the loop over a source: the producer serves
	// another consumer. Try again later, with a new consumer.
	ErrAlreadySubscribed = errors.New("already subscribed")
	// ErrCannotResume, from the loop over a source: the next elements are not to
	// be had any more, because others have received them, or the producer is
	// gone. A new consumer begins behind them.
	ErrCannotResume = errors.New("cannot resume")
	// ErrIdle, from the loop over a source: no element came for IdleTimeout.
	ErrIdle = errors.New("idle: no element for too long")
)

// maxWindow is the largest window, in elements. It also bounds what a producer keeps
// for a consumer that acknowledges nothing, however much that demands.
const maxWindow = 1 << 16

// watchPeer watches the other end of a stream. A watch that has fired is not kept any
// more, so each end keeps it again once per heartbeat.
func watchPeer[E, M, P any](self *Actor[M], peer ActorRef[P]) *watch {
	w := &watch{target: peer.address, takes: typeName[P](), fire: func(err error) {
		self.accept(peerLost[E]{peer.address, err})
	}}
	self.in.watch(w)
	return w
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// poke wakes whoever receives from c, or will: c has room for one.
func poke(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// ---- The consumer, and the source behind it.

// A StreamOption changes a setting of a StreamConsumer.
type StreamOption func(*streamOptions)

type streamOptions struct {
	window      int
	idle        time.Duration
	peerTimeout time.Duration
}

// Window sets how many elements the consumer has room for: from 1 to 65536. Other
// numbers are brought into that range. Each costs 16 bytes at once, besides the
// element when it has come. The default is 256. With half of that, small elements
// stream a third slower, and with twice as much a fifth faster at best; elements of
// 64 KiB gain nothing from more, and 256 of them are 16 MiB in each process.
func Window(elements int) StreamOption {
	return func(o *streamOptions) { o.window = elements }
}

// IdleTimeout ends the stream, with ErrIdle, when the consumer has waited that
// long for an element. The default, and anything that is not positive, is to
// wait without limit: a producer that has died or cannot be reached is noticed
// anyway.
func IdleTimeout(d time.Duration) StreamOption {
	return func(o *streamOptions) { o.idle = d }
}

// PeerTimeout sets how long the consumer waits for an answer of the producer before
// it gives up. Less than five heartbeats count as five, which it can take to get
// the place of a consumer that has vanished: three until the producer notices, one
// in which that consumer might come back, and one until this one asks again. The
// default is 30s.
func PeerTimeout(d time.Duration) StreamOption {
	return func(o *streamOptions) { o.peerTimeout = d }
}

// A SourceRef takes elements out of a stream. It belongs to the process of
// its consumer.
type SourceRef[E any] struct {
	producer ActorRef[StreamProducerMsg[E]]
	idle     time.Duration

	// From the consumer to the loop.
	runs    chan [][]E // holds one value at most: all that the loop has not taken, see add; closed at the end
	err     error      // why it ended; nil if completed; set before runs is closed
	closing sync.Once

	// From the loop to the consumer.
	consumed atomic.Uint64 // the position up to which the loop has come
	window   uint64        // how many elements the consumer has room for
	progress chan struct{} // poked each time that the loop has consumed half a window
	left     chan struct{} // closed when the user wants no more
	leave    func()        // closes left, at the first call only
}

// GetSource returns a consumer's source, always the same; the consumer
// subscribes when it is first asked for, unless ctx has ended before. It fails
// with ErrNotLocal for a consumer of another process, and like [Ask] otherwise.
func GetSource[E any](ctx context.Context, in Place, consumer ActorRef[StreamConsumerMsg[E]]) (*SourceRef[E], error) {
	if !in.system().local(consumer.address) {
		return nil, fmt.Errorf("casty: get the source of %v: %w", consumer, ErrNotLocal)
	}
	return Ask(ctx, in, consumer, func(replyTo ActorRef[*SourceRef[E]]) StreamConsumerMsg[E] {
		return getSource[E]{replyTo}
	})
}

// All ranges over the elements, blocking for each. It ends without an error
// only when the stream was completed and everything has arrived. Otherwise the
// last pair carries an error:
//
//   - the producer's own, from Fail, as its text: nothing else crosses the wire;
//   - ErrStopped: the producer or this consumer has stopped;
//   - ErrUnreachable: the producer has not answered for PeerTimeout;
//   - ErrAlreadySubscribed: the producer serves another consumer;
//   - ErrCannotResume: the next elements went to another consumer, or the
//     producer stopped before its end (then also ErrStopped);
//   - ErrWrongType: the producer is for other elements;
//   - ErrIdle: no element came for IdleTimeout;
//   - ErrCancelled: an earlier loop over this source was left;
//   - an element cannot be encoded or decoded, or is too large: the text says so;
//   - the cause of ctx's end.
//
// Leaving the loop early, by break, return or panic, cancels the stream, and
// so do ErrIdle and the end of ctx. An element counts as consumed, and makes
// room for another, once the loop asks for the next.
func (s *SourceRef[E]) All(ctx context.Context) iter.Seq2[E, error] {
	return func(yield func(E, error) bool) {
		over := false // the stream has ended, so that leaving cancels nothing, and a later loop ends the same way
		defer func() {
			if !over { // the user leaves, by break, return or panic
				s.leave()
			}
		}()
		halfWindow := max(1, s.window/2)
		for {
			runs, err := s.next(ctx)
			if runs == nil {
				over = true
				if err != nil {
					var none E
					yield(none, s.failed(err))
				}
				return
			}
			for i, run := range runs {
				runs[i] = nil // so that what has been consumed is not kept
				for _, element := range run {
					if ctx.Err() != nil {
						break // as in the other runs; then next says why
					}
					if !yield(element, nil) {
						return
					}
					if s.consumed.Add(1)%halfWindow == 0 {
						poke(s.progress)
					}
				}
			}
		}
	}
}

// next waits for elements; there are none, and perhaps an error, at the end.
func (s *SourceRef[E]) next(ctx context.Context) ([][]E, error) {
	var idle <-chan time.Time
	if s.idle > 0 {
		idle = time.After(s.idle)
	}
	if closed(s.left) {
		return nil, ErrCancelled
	}
	if ctx.Err() == nil { // otherwise the select might pick another case
		select {
		case runs, open := <-s.runs:
			if !open {
				return nil, s.err
			}
			return runs, nil
		case <-idle:
			s.leave()
			return nil, ErrIdle
		case <-ctx.Done():
		}
	}
	s.leave()
	return nil, context.Cause(ctx)
}

// add is for the consumer, which never waits for the loop: what the loop has not
// taken is put together with what comes now.
func (s *SourceRef[E]) add(run []E) {
	var runs [][]E
	select {
	case runs = <-s.runs:
	default:
	}
	s.runs <- append(runs, run)
}

// close is for the consumer. The first reason counts.
func (s *SourceRef[E]) close(err error) {
	s.closing.Do(func() {
		s.err = err
		close(s.runs)
	})
}

// String is for the log, which shows what is told, and so reads a source while others
// change it: nothing of that is in the text.
func (s *SourceRef[E]) String() string { return "source of " + s.producer.String() }

// failed is not a part of All, where it would double the stack of a loop that waits.
func (s *SourceRef[E]) failed(err error) error {
	return fmt.Errorf("casty: stream from %v: %w", s.producer, err)
}

// StreamConsumer is the behaviour of a stream's receiving end. It subscribes
// to the producer when its source is asked for, and not before; it demands as
// many elements as its window has room for, and more as they are consumed. Once
// it has subscribed it stops after its producer, or when it gives the producer up:
// the errors of [SourceRef.All] say why.
func StreamConsumer[E any](producer ActorRef[StreamProducerMsg[E]], options ...StreamOption) Behavior[StreamConsumerMsg[E]] {
	learnStream[E]()
	o := streamOptions{window: 256, peerTimeout: 30 * time.Second}
	for _, option := range options {
		option(&o)
	}
	o.window = max(1, min(o.window, maxWindow))
	return func(self *Actor[StreamConsumerMsg[E]]) {
		self.resize(o.window + 64) // a window of elements, each in a message of its own, and 64 other messages
		c := newConsumer(self, producer, o)
		defer c.source.close(fmt.Errorf("the consumer has %w", ErrStopped))
		c.run()
		self.in.forget(c.watch)
	}
}

// A consumer's fields are owned by its actor's goroutine.
type consumer[E any] struct {
	self        *Actor[StreamConsumerMsg[E]]
	source      *SourceRef[E] // knows the producer, and the window
	peerTimeout time.Duration
	watch       *watch // of the producer; nil until the consumer subscribes

	phase    phase
	first    uint64 // the position where it began
	received uint64 // the next to take
	asked    bool   // the next position is missing, and has been asked for

	lastWord StreamProducerMsg[E] // rule 9. It is nil while elements are wanted; once it is set, the source is closed
	waiting  time.Time            // since when the consumer has waited for an answer, rule 10; zero: it does not wait
	lost     error                // why the producer has become unreachable meanwhile; nil: it has not, as far as is known
	retry    backoff              // when to subscribe again
}

func newConsumer[E any](self *Actor[StreamConsumerMsg[E]], producer ActorRef[StreamProducerMsg[E]], o streamOptions) *consumer[E] {
	heartbeat := self.in.config.Heartbeat
	peerTimeout := max(o.peerTimeout, 5*heartbeat)
	left := make(chan struct{})
	return &consumer[E]{
		self:        self,
		peerTimeout: peerTimeout,
		retry:       backoff{pause: 1, longest: min(8, int(peerTimeout/heartbeat)/3)},
		source: &SourceRef[E]{
			producer: producer,
			idle:     o.idle,
			runs:     make(chan [][]E, 1),
			window:   uint64(o.window),
			progress: make(chan struct{}, 1),
			left:     left,
			leave:    sync.OnceFunc(func() { close(left) }),
		},
	}
}

// A phase is how far a consumer has come.
type phase int

const (
	unsubscribed phase = iota // nobody has asked for its source
	subscribing               // it has not been told yet where it begins
	subscribed                // it has been told; if its user had left by then, it only says its last word
	finished                  // it has nothing left to say
)

func (c *consumer[E]) run() {
	tick := time.NewTicker(c.self.in.config.Heartbeat)
	defer tick.Stop()
	left := c.source.left
	for c.phase != finished {
		select {
		case msg := <-c.self.Mailbox():
			c.receive(msg)
		case <-c.source.progress:
			c.sayDemand()
		case <-left:
			left = nil
			c.cancel()
		case <-tick.C:
			c.onTick()
		case <-c.self.Done():
			if closed(c.source.left) { // the user left the loop, then closed the system, and select took this case
				c.cancel()
			}
			return
		}
	}
}

func (c *consumer[E]) receive(msg StreamConsumerMsg[E]) {
	if m, ok := msg.(getSource[E]); ok {
		m.replyTo.Tell(c.self, c.source)
		c.start()
		return
	}
	if c.phase == unsubscribed {
		return // it has not subscribed, so nobody can have anything to say to it
	}
	switch m := msg.(type) {
	case Subscribed[E]:
		c.onSubscribed(m.Seq)
	case StreamElement[E]:
		c.onElements(m.Seq, m.Elements)
	case StreamCompleted[E]:
		c.onEnd(m.Seq, nil)
	case StreamFailed[E]:
		c.onEnd(m.Seq, errors.New(m.Reason))
	case StreamRefused[E]:
		c.onRefused(m.Reason)
	case peerLost[E]:
		c.onLost(m.err)
	}
}

// start subscribes, when the source is first asked for: rule 5.
func (c *consumer[E]) start() {
	if c.phase == unsubscribed {
		c.phase = subscribing
		c.watch = watchPeer[E](c.self, c.source.producer)
		c.subscribe()
	}
}

// tell ignores errors: what was not told is told again.
func (c *consumer[E]) tell(msg StreamProducerMsg[E]) { c.source.producer.tell(c.self, msg) }

// subscribe asks to be served from the next position on, or from anywhere as
// long as nothing has been taken: a producer that has come back under the same name
// may have begun anew.
func (c *consumer[E]) subscribe() {
	from := c.received
	if c.tookNothing() {
		from = 0
	}
	c.waiting = cmp.Or(c.waiting, time.Now())
	c.tell(Subscribe[E]{c.self.Ref(), from})
}

func (c *consumer[E]) tookNothing() bool { return c.received == c.first }

// demand is the position up to which there is room: rule 11.
func (c *consumer[E]) demand() uint64 {
	return c.source.consumed.Load() + c.source.window
}

func (c *consumer[E]) sayDemand() {
	if c.phase == subscribed && c.lastWord == nil {
		c.tell(StreamDemand[E]{c.self.Ref(), c.received, c.demand()})
	}
}

// onSubscribed has the consumer go on where it is. If it has taken nothing, it
// begins where the producer is; if others have had what comes next, it cannot go
// on: rule 8.
func (c *consumer[E]) onSubscribed(seq uint64) {
	switch {
	case c.lastWord != nil: // the user left before the consumer was served, or this is late
		c.phase, c.waiting = subscribed, time.Now() // from now on the last word is heeded
		c.tell(c.lastWord)
		return
	case c.phase == subscribing || c.tookNothing() && seq > c.received:
		c.phase, c.first, c.received, c.asked = subscribed, seq, seq, false
		c.source.consumed.Store(seq)
	case seq > c.received:
		c.quit(fmt.Errorf("%w: others have received the elements from %d to %d", ErrCannotResume, c.received, seq-1))
		return
	}
	c.answered()
	c.sayDemand()
}

// answered notes that the producer is there.
func (c *consumer[E]) answered() { c.waiting, c.lost = time.Time{}, nil }

// onElements is rule 6: it hands on what is new. What exceeds the demand, from a
// producer that breaks rule 1, is dropped, and shows as a gap.
func (c *consumer[E]) onElements(seq uint64, elements []E) {
	if !c.noGap(seq) {
		return
	}
	run := elements[min(c.received-seq, uint64(len(elements))):] // what it has not taken
	run = run[:min(uint64(len(run)), c.demand()-c.received)]     // and has room for
	if len(run) > 0 {
		c.source.add(run)
		c.received += uint64(len(run))
		c.asked = false
		c.answered()
	}
}

// noGap says that elements are wanted, and that none is missing before seq. If some
// are, noGap asks for them, but once only, since each message that is still under way
// shows the same gap. Should the answer be lost, onTick asks again.
func (c *consumer[E]) noGap(seq uint64) bool {
	if c.phase == subscribing || c.lastWord != nil {
		return false
	}
	if seq > c.received && !c.asked {
		c.asked = true
		c.subscribe()
	}
	return seq <= c.received
}

// onEnd takes the end of the stream. The last word acknowledges it: rule 9.
func (c *consumer[E]) onEnd(seq uint64, err error) {
	if c.noGap(seq) && seq == c.received { // nothing is missing, and no element is behind the end
		c.sayLast(StreamDemand[E]{c.self.Ref(), seq + 1, seq + 1}, err)
	}
}

func (c *consumer[E]) cancel() {
	if c.lastWord == nil {
		c.sayLast(StreamCancel[E]{c.self.Ref()}, ErrCancelled)
	}
}

// sayLast closes the source. What remains is to make the last word heard: rule 9.
// It is told first, so that a producer in the same process has it when the loop
// ends, even if the user then closes the system.
func (c *consumer[E]) sayLast(word StreamProducerMsg[E], err error) {
	c.lastWord = word
	c.waiting = time.Now()
	if c.phase == subscribed {
		c.tell(word)
	}
	c.source.close(err)
}

// quit closes the source without a last word: the producer is gone, refuses the
// consumer, does not answer, or has gone on without it.
func (c *consumer[E]) quit(err error) {
	c.source.close(err)
	c.phase = finished
}

// onRefused makes an error of the text, which is all that crosses the wire. A
// consumer that waits for no answer ignores a refusal: either it is late, or the
// next Subscribe will be refused again.
func (c *consumer[E]) onRefused(reason string) {
	switch {
	case c.waiting.IsZero():
	case reason == ErrAlreadySubscribed.Error():
		c.quit(ErrAlreadySubscribed)
	case reason == ErrCannotResume.Error():
		c.quit(ErrCannotResume)
	default:
		c.quit(errors.New(reason))
	}
}

// onLost gives a producer up that has stopped, or is for other elements. One
// that is unreachable may come back, and is asked soon. If its process could not
// decode a message, that was not the consumer's, but another sender's of this process:
// a process with a producer of these elements can decode all that a consumer says.
func (c *consumer[E]) onLost(err error) {
	switch {
	case errors.Is(err, ErrUnreachable):
		c.lost = err
		c.retry.begin(c.received) // so that the next onTick subscribes
	case errors.Is(err, ErrUnsendable):
	case errors.Is(err, ErrStopped) && !c.tookNothing():
		c.quit(fmt.Errorf("%w: the producer has %w", ErrCannotResume, err)) // it reads "the producer has stopped"
	default:
		c.quit(err)
	}
}

// onTick says again what may not have been heard: rules 7, 9 and 10.
func (c *consumer[E]) onTick() {
	switch {
	case c.phase == unsubscribed:
		return
	case !c.waiting.IsZero() && time.Since(c.waiting) >= c.peerTimeout:
		c.quit(fmt.Errorf("%w (no answer for %v)", cmp.Or(c.lost, ErrUnreachable), c.peerTimeout))
		return
	}
	c.self.in.watch(c.watch)
	switch {
	case c.lastWord != nil && c.phase == subscribed:
		c.tell(c.lastWord)
	case c.retry.due(c.received):
		c.subscribe()
	default:
		c.sayDemand()
	}
}

// A backoff says at which ticks to subscribe again: at the first tick that finds
// nothing new since the tick before, and then after pauses that double.
type backoff struct {
	reached uint64 // the position at the last tick
	waited  int    // ticks since the last Subscribe
	pause   int    // ticks from one Subscribe to the next
	longest int    // ticks that a pause may have: so few that three Subscribes at least go unanswered before PeerTimeout
}

// begin makes the next tick due, unless something new has come by then.
func (b *backoff) begin(position uint64) { b.reached, b.waited, b.pause = position, 0, 1 }

// due is called once per tick.
func (b *backoff) due(position uint64) bool {
	if position > b.reached {
		b.begin(position)
		return false
	}
	if b.waited++; b.waited < b.pause {
		return false
	}
	b.waited, b.pause = 0, min(2*b.pause, b.longest)
	return true
}

// ---- The producer, and the sink in front of it.

// A SinkRef puts elements into a stream. It belongs to the process of its
// producer, and any number of goroutines may use it.
type SinkRef[E any] struct {
	producer Address
	elements chan E                // what has been put, and not yet taken by the producer: as many as the buffer has room for
	excuse   atomic.Pointer[error] // why Put and Complete wait, if it is because of the consumer

	// From the sink to the producer.
	ending  chan struct{} // closed at the end, so that whoever is putting leaves
	ends    sync.Once
	cause   error        // Fail's; set before ending is closed
	putting sync.RWMutex // held for reading by Put, so that takeRest can wait until nobody puts

	// From the producer to the sink.
	stopped chan struct{} // closed when nothing that is put will be sent
	err     error         // why; nil after a clean end; set before stopped is closed
}

// GetSink returns a producer's sink, always the same. It fails with
// ErrNotLocal for a producer of another process, and like [Ask] otherwise.
func GetSink[E any](ctx context.Context, in Place, producer ActorRef[StreamProducerMsg[E]]) (*SinkRef[E], error) {
	if !in.system().local(producer.address) {
		return nil, fmt.Errorf("casty: get the sink of %v: %w", producer, ErrNotLocal)
	}
	return Ask(ctx, in, producer, func(replyTo ActorRef[*SinkRef[E]]) StreamProducerMsg[E] {
		return getSink[E]{replyTo}
	})
}

// Put adds an element to the stream. It blocks while the buffer is full, until
// the consumer demands more or ctx ends; the error then says what became of
// the consumer. It fails after Complete or Fail (ErrCompleted), once the
// consumer has cancelled (ErrCancelled), once an element cannot be sent
// (ErrUnsendable), and when the producer has stopped (ErrStopped). Nil means
// that the producer will send the element, if the stream does not end before, and
// not that it has arrived.
func (s *SinkRef[E]) Put(ctx context.Context, element E) error {
	s.putting.RLock()
	defer s.putting.RUnlock()
	if err := s.over(ctx); err != nil {
		return s.failed(err)
	}
	select { // quicker than the select over four
	case s.elements <- element:
		return nil
	default:
	}
	select {
	case s.elements <- element:
		return nil
	case <-s.stopped:
	case <-s.ending:
	case <-ctx.Done():
	}
	return s.failed(s.over(ctx))
}

// failed is for Put, which is too busy to defer doing.
func (s *SinkRef[E]) failed(err error) error {
	return fmt.Errorf("casty: put to %v: %w", s.producer, err)
}

// over says why nothing can be put, if so.
func (s *SinkRef[E]) over(ctx context.Context) error {
	switch {
	case closed(s.stopped):
		return cmp.Or(s.err, ErrCompleted)
	case closed(s.ending):
		return ErrCompleted
	case ctx.Err() != nil:
		return s.late(ctx)
	}
	return nil
}

// Complete ends the stream after everything that was put. It blocks until the
// consumer has acknowledged everything, and returns nil then; until ctx ends,
// and says what became of the consumer; or until the stream ends otherwise,
// with the errors of Put. Acknowledged means that the consumer's process holds
// it, not that the loop over the source has seen it. Calling Complete again
// waits again.
func (s *SinkRef[E]) Complete(ctx context.Context) (err error) {
	defer doing(&err, "complete %v", s.producer)
	return s.finish(ctx, nil)
}

// Fail is Complete with a cause. The loop over the source ends with an error that
// has the text of the cause, up to 1 KiB of it; [errors.Is] and [errors.As] do not
// find the cause itself there. A nil cause reads "failed".
func (s *SinkRef[E]) Fail(ctx context.Context, cause error) (err error) {
	defer doing(&err, "fail %v", s.producer)
	return s.finish(ctx, fmt.Errorf("%w", cmp.Or(cause, errors.New("failed")))) // a new error, which finish tells from all others
}

func (s *SinkRef[E]) finish(ctx context.Context, cause error) error {
	s.ends.Do(func() {
		s.cause = cause
		close(s.ending)
	})
	if s.cause != cause { // a second call is an error, unless both are Complete
		return ErrCompleted
	}
	select {
	case <-s.stopped:
	case <-ctx.Done():
		if !closed(s.stopped) {
			return s.late(ctx)
		}
	}
	return s.err
}

// close is for the producer. The first reason counts.
func (s *SinkRef[E]) close(err error) {
	if !closed(s.stopped) {
		s.err = err
		close(s.stopped)
	}
}

// late is ctx's error and, if it was the consumer that kept us waiting, why.
func (s *SinkRef[E]) late(ctx context.Context) error {
	if excuse := s.excuse.Load(); excuse != nil {
		return fmt.Errorf("%w: %w", context.Cause(ctx), *excuse)
	}
	return context.Cause(ctx)
}

// String is for the log, like that of a source.
func (s *SinkRef[E]) String() string { return "sink of " + s.producer.String() }

// StreamProducer is the behaviour of a stream's sending end. It takes what is
// put into its sink, which has room for buffer elements that nobody has
// demanded yet; less than 0 counts as 0. It stops when its consumer has
// acknowledged the end or has cancelled.
//
// It never sends an element that was not demanded (rule 1.1 of the Reactive
// Streams specification), and serves one consumer at a time. When that one has
// stopped, or has been unreachable for a heartbeat, another may subscribe, and is
// served all that was not acknowledged. Elements that gob cannot carry can be
// streamed within a process only.
func StreamProducer[E any](buffer int) Behavior[StreamProducerMsg[E]] {
	learnStream[E]()
	return func(self *Actor[StreamProducerMsg[E]]) {
		self.resize(128) // a consumer says little, but a hundred may ask for the sink at once
		p := newProducer(self, buffer)
		defer p.sink.close(ErrStopped)
		p.run()
		self.in.forget(p.watch)
	}
}

// A producer's fields are owned by its actor's goroutine.
type producer[E any] struct {
	self    *Actor[StreamProducerMsg[E]]
	sink    *SinkRef[E]
	backlog backlog[E]
	served  *subscription[E] // nil: nobody is served
	watch   *watch           // of the consumer that is served, or was; nil if nobody has been
	rival   *Subscribe[E]    // of a consumer that waits for the place; nil: none does
	refusal error            // why nothing is sent any more, to anybody: rule 4; nil: something may be
}

func newProducer[E any](self *Actor[StreamProducerMsg[E]], buffer int) *producer[E] {
	p := &producer[E]{self: self, sink: &SinkRef[E]{
		producer: self.address,
		elements: make(chan E, max(buffer, 0)),
		ending:   make(chan struct{}),
		stopped:  make(chan struct{}),
	}}
	p.excuse(errors.New("no consumer has subscribed"))
	return p
}

// A backlog is what a producer has taken from its sink and its consumer has not
// acknowledged. It is the same for every consumer.
type backlog[E any] struct {
	base uint64 // the position of the first element here
	// elements are maxWindow at most, since the demand is limited. Those that were in the
	// sink's buffer come on top when the stream is ended.
	elements []E
	last     StreamConsumerMsg[E] // the end of the stream; nil: more may come
}

// end is the position behind the last element taken from the sink.
func (b *backlog[E]) end() uint64 { return b.base + uint64(len(b.elements)) }

// has says whether a consumer may hold everything before a position.
func (b *backlog[E]) has(position uint64) bool {
	return position <= b.end() || b.last != nil && position == b.end()+1
}

// drop forgets what is before a position. If that is a quarter of the elements or
// more, the rest, which is three times as many at most, is moved down, so that the
// array is used again: without that, a stream is a tenth to a quarter slower. If it
// is less, moving would cost more than it saves.
func (b *backlog[E]) drop(before uint64) {
	n := int(before - b.base)
	if n < len(b.elements)/4 {
		clear(b.elements[:n])
		b.elements = b.elements[n:]
	} else {
		b.elements = slices.Delete(b.elements, 0, n)
	}
	b.base = before
}

// endAt makes a position the end of the stream. What is behind is never sent.
func (b *backlog[E]) endAt(at uint64, cause error) {
	b.elements = b.elements[:at-b.base]
	b.last = StreamCompleted[E]{at}
	if cause != nil {
		b.last = StreamFailed[E]{at, brief(cause)}
	}
}

// A subscription is what a producer knows of a consumer that it serves.
type subscription[E any] struct {
	self     *Actor[StreamProducerMsg[E]]
	consumer ActorRef[StreamConsumerMsg[E]]
	lost     time.Time // since when the consumer is unreachable; zero: it is not

	// Positions, of which acked is never past cursor.
	acked  uint64 // the consumer holds everything before it
	cursor uint64 // the next to send
	demand uint64 // send nothing at or past it

	// length is how many elements to send together. A run that is too large to
	// send halves it, and each run that is sent adds growth.
	length float64
}

const (
	maxRun = 128      // elements in a message; longer runs are no faster
	growth = 1.0 / 64 // elements; runs grow slowly, because each that is too large is encoded in vain
)

func (s *subscription[E]) tell(msg StreamConsumerMsg[E]) error { return s.consumer.tell(s.self, msg) }

// resume goes to where the consumer wants to go on, or as near as it can: rule 2.
func (s *subscription[E]) resume(from uint64) {
	s.acked = max(s.acked, from)
	s.cursor = s.acked
	s.tell(Subscribed[E]{s.cursor})
}

// note takes in what the consumer holds, which needs not be sent again, and how
// much more it wants, which is bounded whatever it says.
func (s *subscription[E]) note(m StreamDemand[E]) {
	s.acked = max(s.acked, m.Received)
	s.cursor = max(s.cursor, s.acked)
	s.demand = max(s.demand, min(m.Demand, s.acked+maxWindow))
}

// send tells the consumer what it has demanded and has not been sent. The error
// says why some of it could not be told.
func (s *subscription[E]) send(b *backlog[E]) error {
	for s.cursor < min(b.end(), s.demand) {
		if err := s.sendRun(b.elements[s.cursor-b.base:]); err != nil {
			return err
		}
	}
	if b.last == nil || s.cursor != b.end() {
		return nil
	}
	err := s.tell(b.last)
	if err == nil {
		s.cursor++ // the end is a position, too
	}
	return err
}

// sendRun sends as many elements as may travel together. A run that is too
// large is halved, and those behind it, which are probably alike, grow slowly.
func (s *subscription[E]) sendRun(run []E) error {
	run = run[:min(uint64(len(run)), uint64(s.length), s.demand-s.cursor)]
	message := run
	if s.self.in.local(s.consumer.address) {
		message = slices.Clone(run) // for a local message is not copied, and drop moves others into its place
	}
	err := s.tell(StreamElement[E]{s.cursor, message})
	switch {
	case errors.Is(err, ErrUnsendable) && len(run) > 1:
		s.length = float64(len(run) / 2)
		return nil // send tries again
	case err != nil:
		return err
	}
	s.cursor += uint64(len(run))
	s.length = min(s.length+growth, maxRun)
	return nil
}

func (p *producer[E]) run() {
	tick := time.NewTicker(p.self.in.config.Heartbeat)
	defer tick.Stop()
	for p.self.ctx.Err() == nil {
		room := p.send()
		elements, ending := p.sink.elements, p.sink.ending
		switch {
		case p.served == nil || p.backlog.last != nil || p.refusal != nil: // nobody to take them for, or none to take
			elements, ending = nil, nil
		case p.backlog.end() >= p.served.demand:
			// No demand: a nil channel never fires, the buffer fills, and Put
			// blocks. Only the end needs no demand.
			elements = nil
		}
		select {
		case element := <-elements:
			p.backlog.elements = append(p.backlog.elements, element)
			p.takeBefore(p.served.demand) // whatever is ready behind it
		case <-ending:
			p.takeRest()
		case msg := <-p.self.Mailbox():
			p.receive(msg)
		case <-room: // the connection takes more
		case <-tick.C:
			p.onTick()
		case <-p.self.Done():
		}
	}
	for range len(p.self.mailbox) { // if the end has been acknowledged meanwhile, Complete is to return nil
		p.receive(<-p.self.mailbox)
	}
}

// stop ends the sink, and asks the actor to stop: rule 4.
func (p *producer[E]) stop(err error) {
	p.sink.close(err)
	p.self.stop()
}

// takeBefore takes what the sink holds, up to a position.
func (p *producer[E]) takeBefore(position uint64) {
	for len(p.sink.elements) > 0 && p.backlog.end() < position {
		p.backlog.elements = append(p.backlog.elements, <-p.sink.elements)
	}
}

// takeRest takes all that the sink holds. Its ending makes whoever is putting
// leave, so the lock is soon free, and nothing is put later.
func (p *producer[E]) takeRest() {
	p.sink.putting.Lock()
	defer p.sink.putting.Unlock()
	p.takeBefore(math.MaxUint64)
	p.backlog.endAt(p.backlog.end(), p.sink.cause)
}

// A roomAhead is an ErrMailboxFull that is known to pass: remote.go closes room
// when a connection takes more.
type roomAhead struct {
	error
	room <-chan struct{}
}

func (r roomAhead) Unwrap() error { return r.error }

// send sends what may be sent, and returns what is closed when there is room
// for more. An element that can never be sent ends the stream before it.
func (p *producer[E]) send() (room <-chan struct{}) {
	if p.served == nil || p.refusal != nil {
		return nil
	}
	err := p.served.send(&p.backlog)
	if errors.Is(err, ErrUnsendable) {
		p.sink.close(err)
		p.backlog.endAt(p.served.cursor, err)
		p.rival = nil // its From may be past the end, which has moved back; it will ask again
		err = p.served.send(&p.backlog)
	}
	var full roomAhead
	errors.As(err, &full)
	return full.room // nil, if there is another reason: then run tries again after the next message or tick
}

func (p *producer[E]) receive(msg StreamProducerMsg[E]) {
	switch m := msg.(type) {
	case getSink[E]:
		m.replyTo.Tell(p.self, p.sink)
	case Subscribe[E]:
		p.onSubscribe(m)
	case StreamDemand[E]:
		if p.serves(m.Consumer) && p.backlog.has(m.Received) {
			p.served.note(m)
			p.onWord()
		}
	case StreamCancel[E]:
		if p.serves(m.Consumer) {
			p.stop(ErrCancelled)
		}
	case peerLost[E]:
		if p.serves(ActorRef[StreamConsumerMsg[E]]{m.peer}) {
			p.onLost(m.err)
		}
	}
}

// serves says whether it is the consumer that is served who speaks.
func (p *producer[E]) serves(consumer ActorRef[StreamConsumerMsg[E]]) bool {
	return p.served != nil && p.served.consumer == consumer
}

// onSubscribe goes on with the consumer that is served (rule 2), and lets another
// one wait (rule 3).
func (p *producer[E]) onSubscribe(m Subscribe[E]) {
	switch {
	case m.Consumer == (ActorRef[StreamConsumerMsg[E]]{}):
		// Nonsense: it comes from nobody.
	case m.From > p.backlog.end(): // it holds elements of another stream, of an earlier producer of this name
		p.refuse(m.Consumer, ErrCannotResume)
	case p.refusal != nil:
		p.refuse(m.Consumer, p.refusal)
	case p.serves(m.Consumer):
		p.served.resume(m.From)
		p.onWord()
	default:
		p.rival = &m // in place of another that waits, and will ask again
		p.admit()
	}
}

func (p *producer[E]) refuse(consumer ActorRef[StreamConsumerMsg[E]], why error) {
	consumer.tell(p.self, StreamRefused[E]{brief(why)})
}

// onWord is what follows from any word of the served consumer: it is there, and
// holds what it has acknowledged.
func (p *producer[E]) onWord() {
	p.served.lost = time.Time{}
	p.sink.excuse.Store(nil)
	if p.rival != nil {
		p.refuse(p.rival.Consumer, ErrAlreadySubscribed)
		p.rival = nil
	}
	if p.served.acked > p.backlog.end() { // the consumer has the end itself
		p.stop(nil)
	} else {
		p.backlog.drop(p.served.acked)
	}
}

// admit serves a rival if the place is free, or the consumer that has it has been
// unreachable for a heartbeat: rule 3. The rival begins at the first element that
// has not been acknowledged, or behind that if it holds more, which it may if it
// has been served before. It has demanded nothing yet.
func (p *producer[E]) admit() {
	free := p.served == nil || !p.served.lost.IsZero() && time.Since(p.served.lost) >= p.self.in.config.Heartbeat
	if p.rival == nil || !free || p.refusal != nil {
		return
	}
	m := *p.rival
	p.rival = nil
	p.served = &subscription[E]{self: p.self, consumer: m.Consumer, acked: p.backlog.base, length: maxRun}
	p.served.resume(m.From)
	p.onWord()
	p.self.in.forget(p.watch)
	p.watch = watchPeer[E](p.self, m.Consumer)
}

// onLost is about the served consumer. If it is unreachable it may come back; if it
// has stopped, or is for other elements, what it did not acknowledge is kept for the
// next one. If its
// process cannot decode an element, the consumer hears nothing more until it
// subscribes, and is refused: rule 4.
func (p *producer[E]) onLost(err error) {
	p.excuse(fmt.Errorf("the consumer %v is lost: %w", p.served.consumer, err))
	switch {
	case errors.Is(err, ErrUnsendable):
		p.refusal = err
		p.sink.close(err)
	case errors.Is(err, ErrUnreachable):
		p.served.lost = cmp.Or(p.served.lost, time.Now())
		p.admit()
	case p.refusal != nil: // the consumer has stopped, most likely because it has heard
		p.stop(p.refusal)
	default:
		p.served = nil
		p.admit()
	}
}

// excuse notes why the callers of the sink may have to wait.
func (p *producer[E]) excuse(why error) { p.sink.excuse.Store(&why) }

// onTick renews the watch, and looks whether a rival has waited long enough.
func (p *producer[E]) onTick() {
	if p.served != nil {
		p.self.in.watch(p.watch)
	}
	p.admit()
}
