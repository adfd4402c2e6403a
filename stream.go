package casty

// A stream is two actors, one at each end, that tell each other this:
//
//	Subscribe{Consumer, From, Demand}          →  send me the elements from position From on, before Demand
//	StreamDemand{Consumer, Received, Demand}   →  I hold everything before Received; send what is before Demand
//	StreamCancel{Consumer}                     →  I want no more
//	←  StreamElement{Seq, Elements}               the elements that start at position Seq
//	←  StreamCompleted{Seq}                       the stream ends at Seq; Received = Seq+1 acknowledges that
//	←  StreamFailed{Seq, Reason, Refused}         the same, with a reason; or: I refuse you
//
// Positions count from 0 for each consumer. They are cumulative, so saying
// something twice is harmless, and that is the whole of recovery: whoever may
// not have been heard says it again.
//
//   - The producer keeps what it has sent until it is acknowledged.
//   - The consumer takes exactly the next position. It drops what it has seen,
//     and at a gap it subscribes again, which rewinds the producer.
//   - An end whose peer is unreachable repeats itself with a growing pause.
//     The consumer gives up after a while; the producer never does.
//   - A consumer repeats its demand, and so acknowledges, at least once per
//     heartbeat. A demand that asks for no more is a question, "where are
//     you?", which the producer answers with an empty StreamElement: behind
//     everything that it has sent, so that a loss shows as a gap.
//   - The producer stops when its end is acknowledged. The consumer stays
//     until the producer has stopped, in case its last word was lost.
//   - The place of a consumer that cannot be reached may be taken by another.
//     It never gets it back: what it has received since would be mistaken for
//     the elements that have the same positions now.
//
// The code below opens no connection and encodes nothing: it tells actors things.

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

// StreamProducerMsg is what a stream producer's mailbox takes.
type StreamProducerMsg[E any] interface{ producerMsg(E) }

// StreamConsumerMsg is what a stream consumer's mailbox takes.
type StreamConsumerMsg[E any] interface{ consumerMsg(E) }

// From the consumer to its producer.
type (
	Subscribe[E any] struct {
		Consumer     ActorRef[StreamConsumerMsg[E]]
		From, Demand uint64
	}
	StreamDemand[E any] struct {
		Consumer         ActorRef[StreamConsumerMsg[E]]
		Received, Demand uint64
	}
	StreamCancel[E any] struct {
		Consumer ActorRef[StreamConsumerMsg[E]]
	}
)

// From the producer to its consumer.
type (
	StreamElement[E any] struct {
		Seq      uint64
		Elements []E // whatever was ready: one message for a run of elements costs far less than one for each
	}
	StreamCompleted[E any] struct {
		Seq uint64
	}
	StreamFailed[E any] struct {
		Seq     uint64
		Reason  string
		Refused bool
	}
)

// From GetSink and GetSource, in the same process.
type (
	getSink[E any]   struct{ replyTo ActorRef[*SinkRef[E]] }
	getSource[E any] struct{ replyTo ActorRef[*SourceRef[E]] }
)

func (Subscribe[E]) producerMsg(E)       {}
func (StreamDemand[E]) producerMsg(E)    {}
func (StreamCancel[E]) producerMsg(E)    {}
func (getSink[E]) producerMsg(E)         {}
func (StreamElement[E]) consumerMsg(E)   {}
func (StreamCompleted[E]) consumerMsg(E) {}
func (StreamFailed[E]) consumerMsg(E)    {}
func (getSource[E]) consumerMsg(E)       {}

func learnStream[E any]() error {
	return learn(Subscribe[E]{}, StreamDemand[E]{}, StreamCancel[E]{},
		StreamElement[E]{}, StreamCompleted[E]{}, StreamFailed[E]{})
}

const (
	maxRun    = 128     // elements in one message; larger ones are no faster
	maxWindow = 1 << 16 // elements that a producer keeps for a consumer that does not acknowledge them
)

// What the ends of a stream report. They come wrapped, with the address.
var (
	ErrCompleted         = errors.New("the stream has been completed")
	ErrCancelled         = errors.New("cancelled by the consumer")
	ErrAlreadySubscribed = errors.New("already subscribed")
	ErrCannotResume      = errors.New("cannot resume: the producer is not the same, or has gone on with another consumer")
	ErrIdle              = errors.New("idle: no element for too long")
	errNoConsumer        = errors.New("no consumer has subscribed")
)

// A SinkRef puts elements into a stream. It belongs to the process of its
// producer, and any number of goroutines may use it.
type SinkRef[E any] struct {
	producer Address
	elements chan E                // the next element to be taken; closed at the end of the stream
	ending   chan struct{}         // closed with it; the producer looks here when it may not take elements
	queue    chan struct{}         // held by the Put that is next when there is room
	stopped  chan struct{}         // closed when the producer has stopped
	err      error                 // why; nil after a clean end; set before stopped is closed
	waiting  atomic.Pointer[error] // what the consumer does, if it is what we wait for

	mu    sync.Mutex    // guards what follows, and sending to elements
	more  []E           // what has been put behind the next element, and is taken along with it
	puts  uint64        // elements put so far
	limit uint64        // how many may be: as many as have been demanded, and the buffer
	room  chan struct{} // closed, and replaced, when limit rises
	cause error         // Fail's
}

// GetSink returns a producer's sink, always the same. It fails with
// ErrNotLocal for a producer of another process.
func GetSink[E any](ctx context.Context, in Host, producer ActorRef[StreamProducerMsg[E]]) (*SinkRef[E], error) {
	if !in.system().local(producer.address) {
		return nil, fmt.Errorf("casty: get the sink of %v: %w", producer, ErrNotLocal)
	}
	return Ask(ctx, in, producer, func(replyTo ActorRef[*SinkRef[E]]) StreamProducerMsg[E] {
		return getSink[E]{replyTo}
	})
}

// Put adds an element to the stream. When everything that was demanded has
// been put and the buffer is full, it blocks until a consumer demands more, or
// until ctx ends; the error then says what became of the consumer. It fails
// after Complete or Fail (ErrCompleted), once the consumer has cancelled
// (ErrCancelled), and when the producer has stopped. Nil means that the
// producer will send the element, not that it has arrived.
func (s *SinkRef[E]) Put(ctx context.Context, element E) error {
	room, err := s.put(ctx, element)
	if room != nil {
		select {
		case s.queue <- struct{}{}: // those who wait take turns, so that none starves
			defer func() { <-s.queue }()
		case <-s.ending:
		case <-s.stopped:
		case <-ctx.Done():
		}
	}
	for room != nil {
		select {
		case <-room:
		case <-s.stopped:
		case <-ctx.Done():
		}
		room, err = s.put(ctx, element)
	}
	if err != nil {
		return s.failed("put to", err)
	}
	return nil
}

// put puts an element, or else returns what is closed when there may be room.
// One element waits in the channel, and the others behind it in a slice: if
// each went through the channel, a stream within a process would cost twice as
// much, and one across the network a third more.
func (s *SinkRef[E]) put(ctx context.Context, element E) (room <-chan struct{}, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case closed(s.stopped):
		return nil, cmp.Or(s.err, ErrCompleted)
	case closed(s.ending):
		return nil, ErrCompleted
	case ctx.Err() != nil:
		return nil, s.late(ctx)
	case s.puts == s.limit:
		return s.room, nil
	}
	s.puts++
	if len(s.more) == 0 {
		select {
		case s.elements <- element:
			return nil, nil
		default:
		}
	}
	s.more = append(s.more, element)
	return nil, nil
}

// allow raises the limit.
func (s *SinkRef[E]) allow(limit uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if limit > s.limit && !closed(s.ending) {
		s.limit = limit
		close(s.room)
		s.room = make(chan struct{})
	}
}

// take adds to taken what has been put behind the element just received.
func (s *SinkRef[E]) take(taken []E) []E {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.elements) > 0 {
		return taken // that one comes first
	}
	taken = append(taken, s.more...)
	clear(s.more)
	s.more = s.more[:0]
	return taken
}

// Complete ends the stream after everything that was put. It blocks until the
// consumer has everything, and returns nil then; until ctx ends, and says
// what became of the consumer; or until the stream ends otherwise, with the
// errors of Put. Calling it again waits again.
func (s *SinkRef[E]) Complete(ctx context.Context) error {
	return s.end(ctx, "complete", nil)
}

// Fail is Complete with a cause, whose text, up to 1 KiB of it, becomes the
// last error of the consumer.
func (s *SinkRef[E]) Fail(ctx context.Context, cause error) error {
	return s.end(ctx, "fail", cmp.Or(cause, errors.New("failed")))
}

func (s *SinkRef[E]) end(ctx context.Context, doing string, cause error) error {
	if !s.close(cause) {
		return s.failed(doing, ErrCompleted)
	}
	select {
	case <-s.stopped:
	case <-ctx.Done():
	}
	switch {
	case !closed(s.stopped):
		return s.failed(doing, s.late(ctx))
	case s.err != nil:
		return s.failed(doing, s.err)
	}
	return nil
}

// close ends the stream, or says that this is too late: only Complete can be
// called again, after itself.
func (s *SinkRef[E]) close(cause error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if closed(s.ending) {
		return cause == nil && s.cause == nil
	}
	s.cause = cause
	close(s.ending)
	close(s.elements)
	close(s.room)
	return true
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// poke wakes whoever receives from c, or will when they next look.
func poke(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// late is ctx's error and, if it was the consumer that kept us waiting, why.
func (s *SinkRef[E]) late(ctx context.Context) error {
	if waiting := s.waiting.Load(); waiting != nil {
		return fmt.Errorf("%w: %w", context.Cause(ctx), *waiting)
	}
	return context.Cause(ctx)
}

func (s *SinkRef[E]) failed(doing string, err error) error {
	return fmt.Errorf("casty: %s %v: %w", doing, s.producer, err)
}

// stop is for the producer. The first reason counts.
func (s *SinkRef[E]) stop(err error) {
	if !closed(s.stopped) {
		s.err = err
		close(s.stopped)
	}
}

// StreamProducer is the behaviour of a stream's source end. It takes what is
// put into its sink, of which up to buffer elements can be put before they are
// demanded, and stops when its consumer has everything or has cancelled.
//
// It never sends an element that was not demanded (Reactive Streams, rule
// 1.1), and serves one consumer at a time. When that one has died or cannot
// be reached, another may subscribe, and is sent all that was not
// acknowledged, from position 0.
func StreamProducer[E any](buffer int) Behavior[StreamProducerMsg[E]] {
	err := learnStream[E]()
	return func(self *Actor[StreamProducerMsg[E]]) {
		if err != nil {
			panic(err)
		}
		p := &producer[E]{self: self, lifeline: newLifeline(self), buffer: uint64(max(buffer, 0)), maxRun: maxRun, err: ErrStopped}
		p.replaced = map[ActorRef[StreamConsumerMsg[E]]]bool{}
		p.sink = &SinkRef[E]{
			producer: self.address,
			elements: make(chan E, 1),
			ending:   make(chan struct{}),
			queue:    make(chan struct{}, 1),
			stopped:  make(chan struct{}),
			limit:    p.buffer,
			room:     make(chan struct{}),
		}
		p.waitsFor(errNoConsumer)
		defer func() { p.sink.stop(p.err) }()
		p.run()
	}
}

// A producer's fields are owned by its actor's goroutine.
type producer[E any] struct {
	self *Actor[StreamProducerMsg[E]]
	sink *SinkRef[E]
	lifeline

	consumer ActorRef[StreamConsumerMsg[E]]          // zero: none is attached
	replaced map[ActorRef[StreamConsumerMsg[E]]]bool // whose place was taken: one entry for each that vanished
	buffer   uint64                                  // elements that can be put before they are demanded
	base     uint64                                  // elements that other consumers have acknowledged: those before position 0
	demand   uint64                                  // send nothing at or past this position
	acked    uint64                                  // the consumer has everything before this one
	cursor   uint64                                  // the next to send
	unacked  []E                                     // from acked on; bounded by the demand and the buffer, as Put is
	maxRun   int                                     // elements in a message; less once that many proved too large
	asked    bool                                    // the consumer waits for an answer
	stalled  bool                                    // the last message did not go out: try again at the next tick

	closing bool  // the sink is closed: take what it still holds, demanded or not
	drained bool  // and has been emptied: the stream ends at end()
	cause   error // of a failure
	done    bool
	err     error // for the sink, when done
}

// end is the position after the last element taken from the sink.
func (p *producer[E]) end() uint64 { return p.acked + uint64(len(p.unacked)) }

func (p *producer[E]) run() {
	for !p.done {
		p.send()
		elements, ending := p.sink.elements, p.sink.ending
		if p.end() >= p.demand && !p.closing || p.drained {
			elements = nil // no demand: a nil channel never fires, the buffer fills, and Put blocks
		}
		if p.closing {
			ending = nil
		}
		select {
		case element, open := <-elements:
			p.take(element, open)
		case <-ending:
			p.closing = true // completion needs no demand
		case msg := <-p.self.Mailbox():
			p.receive(msg)
		case err := <-p.watch:
			p.lose(err)
		case <-p.tick.C:
			p.retry()
		case err := <-p.self.mistaken: // a consumer of another type watches: all that gets here of it
			if !p.attached() {
				p.stop(err)
			}
		case <-p.self.Done():
			return
		}
	}
}

// stop is the last thing to happen to a producer.
func (p *producer[E]) stop(err error) { p.done, p.err = true, err }

// take adds an element and what was put behind it, or notes the end.
func (p *producer[E]) take(element E, open bool) {
	if open {
		p.unacked = p.sink.take(append(p.unacked, element))
	} else {
		p.drained = true
		p.cause = p.sink.cause
	}
}

// send tells the consumer all that it may have and has not been sent.
func (p *producer[E]) send() {
	for p.ready() && p.cursor < min(p.end(), p.demand) {
		p.sendRun()
	}
	if p.ready() && p.drained && p.cursor == p.end() && p.tell(p.last()) == nil {
		p.cursor++
	}
	if p.ready() && p.asked {
		p.asked = p.tell(StreamElement[E]{Seq: p.cursor}) != nil
	}
}

func (p *producer[E]) ready() bool { return p.attached() && !p.stalled }

// sendRun sends as many elements as may travel together. A run that is too
// large is halved, and so are those after it: they are probably alike. One
// element that cannot be sent ends the stream.
func (p *producer[E]) sendRun() {
	run := p.unacked[p.cursor-p.acked:]
	run = run[:min(uint64(len(run)), uint64(p.maxRun), p.demand-p.cursor)]
	told := run
	if p.self.in.local(p.consumer.address) {
		told = slices.Clone(run) // a message within the process is shared, and unacked is reused
	}
	err := p.tell(StreamElement[E]{p.cursor, told})
	switch {
	case err == nil:
		p.cursor += uint64(len(run))
	case p.stalled:
	case len(run) > 1:
		p.maxRun = len(run) / 2
	default:
		p.fail(err)
	}
}

// tell tells the consumer, or stalls until the next tick: its connection is
// full or gone, or its mailbox full.
func (p *producer[E]) tell(msg StreamConsumerMsg[E]) error {
	err := p.consumer.tell(p.self, msg)
	if err != nil && !errors.Is(err, ErrUnsendable) {
		p.stalled = true
		p.hurry()
	}
	return err
}

func (p *producer[E]) last() StreamConsumerMsg[E] {
	if p.cause == nil {
		return StreamCompleted[E]{p.end()}
	}
	return StreamFailed[E]{Seq: p.end(), Reason: brief(p.cause)}
}

// fail ends the stream before the element at cursor, which cannot be sent.
func (p *producer[E]) fail(err error) {
	p.unacked = p.unacked[:p.cursor-p.acked]
	p.closing, p.drained, p.cause = true, true, err
	p.sink.stop(err)
}

func (p *producer[E]) receive(msg StreamProducerMsg[E]) {
	switch m := msg.(type) {
	case getSink[E]:
		m.replyTo.Tell(p.self, p.sink)
	case Subscribe[E]:
		p.subscribe(m)
	case StreamDemand[E]:
		if p.isOurs(m.Consumer) {
			p.hears()
			p.asked = p.allow(m.Received, m.Demand)
		}
	case StreamCancel[E]:
		if p.isOurs(m.Consumer) {
			p.stop(ErrCancelled)
		}
	}
}

func (p *producer[E]) attached() bool { return p.consumer != (ActorRef[StreamConsumerMsg[E]]{}) }

// isOurs says whether it is our consumer that speaks; nobody else has a say.
func (p *producer[E]) isOurs(from ActorRef[StreamConsumerMsg[E]]) bool {
	return p.attached() && from == p.consumer
}

// hears notes that our consumer has spoken: nothing is in its way.
func (p *producer[E]) hears() {
	p.alive()
	p.stalled = false
	p.sink.waiting.Store(nil)
}

func (p *producer[E]) subscribe(m Subscribe[E]) {
	select {
	case err := <-p.watch:
		p.lose(err, m) // before we refuse somebody for its sake
		return
	default:
	}
	switch {
	case p.done || m.Consumer == (ActorRef[StreamConsumerMsg[E]]{}):
		return
	case p.isOurs(m.Consumer):
		p.hears()
		if m.From < p.acked || m.From > p.limit() {
			return // it is late: the consumer has since acknowledged more; or it is nonsense
		}
		p.cursor = m.From // the consumer has missed something: rewind
	case p.attached() && !p.lost.IsZero() && time.Since(p.lost) < p.heartbeat:
		return // ours may be back in a moment; this one will ask again
	case p.attached() && p.lost.IsZero():
		p.refuse(m.Consumer, ErrAlreadySubscribed)
		return
	case m.From > 0 || p.replaced[m.Consumer]:
		p.refuse(m.Consumer, ErrCannotResume)
		return
	default:
		if p.attached() {
			p.replaced[p.consumer] = true
		}
		p.base += p.acked
		p.consumer, p.demand, p.acked, p.cursor = m.Consumer, 0, 0, 0
		p.hears()
		watchOver(&p.lifeline, p.self, p.consumer)
	}
	p.allow(m.From, m.Demand)
	p.asked = true
}

func (p *producer[E]) refuse(consumer ActorRef[StreamConsumerMsg[E]], why error) {
	consumer.Tell(p.self, StreamFailed[E]{Reason: why.Error(), Refused: true})
}

// limit is a position beyond which no consumer can be that tells the truth.
func (p *producer[E]) limit() uint64 {
	if p.drained {
		return p.end() + 1
	}
	return p.end()
}

// allow notes what the consumer has and wants, and says whether it asks for no
// more than before.
func (p *producer[E]) allow(received, demand uint64) (question bool) {
	switch {
	case received > p.limit():
		return false // nonsense
	case received > p.end():
		p.stop(nil) // it has the end itself
		return false
	case received > p.acked:
		p.drop(int(received - p.acked))
		p.acked = received
		p.cursor = max(p.cursor, received)
	}
	demand = min(demand, p.acked+maxWindow)
	question = demand <= p.demand
	p.demand = max(p.demand, demand)
	p.sink.allow(p.base + p.demand + p.buffer)
	return question
}

// drop forgets the first n of unacked. Moving the others down reuses their
// memory, but must not be done again and again for a few out of many.
func (p *producer[E]) drop(n int) {
	if n < len(p.unacked)/16 {
		clear(p.unacked[:n])
		p.unacked = p.unacked[n:]
	} else {
		p.unacked = slices.Delete(p.unacked, 0, n)
	}
}

// lose is about a consumer that is unreachable, or has stopped: then it is no
// longer ours, and we keep what it did not acknowledge for the next one. Its
// last words, if they have arrived, are in the mailbox; others have to wait.
func (p *producer[E]) lose(err error, others ...StreamProducerMsg[E]) {
	for range len(p.self.mailbox) {
		switch msg := (<-p.self.mailbox).(type) {
		case StreamDemand[E]:
			p.receive(msg)
		case StreamCancel[E]:
			p.receive(msg)
			others = append(others, msg) // it may be one of the next consumer's first
		default:
			others = append(others, msg)
		}
	}
	if p.done {
		return
	}
	p.waitsFor(fmt.Errorf("the consumer %v is lost: %w", p.consumer, err))
	p.unreachable()
	if !errors.Is(err, ErrUnreachable) {
		p.unwatch()
		p.consumer = ActorRef[StreamConsumerMsg[E]]{}
		p.demand = 0
	}
	for _, msg := range others {
		p.receive(msg)
	}
}

// waitsFor notes what the callers of the sink are waiting for.
func (p *producer[E]) waitsFor(err error) { p.sink.waiting.Store(&err) }

// retry is what happens at a tick: what may not have arrived is said again.
func (p *producer[E]) retry() {
	p.again()
	p.stalled = false
	if p.attached() && p.watch == nil {
		watchOver(&p.lifeline, p.self, p.consumer)
		p.cursor = p.acked
	}
}

// A StreamOption changes a setting of a StreamConsumer.
type StreamOption func(*streamOptions)

type streamOptions struct {
	window      int
	idle        time.Duration
	peerTimeout time.Duration
}

// Window sets how many elements the consumer has room for, from 1 to 65536.
// The default is 256.
func Window(elements int) StreamOption {
	return func(o *streamOptions) { o.window = min(max(elements, 1), maxWindow) }
}

// IdleTimeout ends the stream, with ErrIdle, when the consumer has waited that
// long for an element. The default is to wait without limit: a producer that
// has died or cannot be reached is noticed anyway.
func IdleTimeout(d time.Duration) StreamOption {
	return func(o *streamOptions) { o.idle = d }
}

// PeerTimeout sets how long the consumer waits for a producer that has become
// unreachable. The default is 30s.
func PeerTimeout(d time.Duration) StreamOption {
	return func(o *streamOptions) { o.peerTimeout = d }
}

// A SourceRef takes elements out of a stream. It belongs to the process of
// its consumer.
type SourceRef[E any] struct {
	producer ActorRef[StreamProducerMsg[E]]
	idle     time.Duration
	step     uint64
	runs     chan []E      // closed at the end; as large as the window, so that the consumer never blocks on it
	err      error         // why it ended; nil if completed; set before runs is closed
	consumed atomic.Uint64 // elements taken by All
	taken    chan struct{} // tells the consumer that consumed has grown by step
	leaving  sync.Once
	left     chan struct{} // closed when the user wants no more
}

// GetSource returns a consumer's source, always the same; the consumer
// subscribes when it is first asked for. It fails with ErrNotLocal for a
// consumer of another process.
func GetSource[E any](ctx context.Context, in Host, consumer ActorRef[StreamConsumerMsg[E]]) (*SourceRef[E], error) {
	if !in.system().local(consumer.address) {
		return nil, fmt.Errorf("casty: get the source of %v: %w", consumer, ErrNotLocal)
	}
	return Ask(ctx, in, consumer, func(replyTo ActorRef[*SourceRef[E]]) StreamConsumerMsg[E] {
		return getSource[E]{replyTo}
	})
}

// All ranges over the elements, blocking for each. It ends without an error
// only when the stream was completed and everything has arrived; otherwise
// the last pair carries the error: the producer failed or stopped, is
// unreachable (ErrUnreachable) or idle (ErrIdle), has another consumer
// (ErrAlreadySubscribed), or ctx ended.
//
// Leaving the loop early, by break, return or panic, cancels the stream, and
// so does the end of ctx. An element counts as consumed, and makes room for
// another, once the loop asks for the next.
func (s *SourceRef[E]) All(ctx context.Context) iter.Seq2[E, error] {
	return func(yield func(E, error) bool) {
		completed := false
		defer func() {
			if !completed {
				s.leave() // by break, return, panic or error: also when the stream has failed by itself, harmlessly
			}
		}()
		for {
			run, err := s.next(ctx)
			if err != nil {
				var none E
				yield(none, err)
			}
			if run == nil {
				completed = err == nil
				return
			}
			for _, element := range run {
				if !yield(element, nil) {
					return
				}
				s.consume()
			}
		}
	}
}

// next waits for elements; there are none, and perhaps an error, at the end.
func (s *SourceRef[E]) next(ctx context.Context) ([]E, error) {
	var idle <-chan time.Time
	if s.idle > 0 {
		idle = time.After(s.idle)
	}
	switch {
	case closed(s.left):
		return nil, s.failed(ErrCancelled)
	case ctx.Err() != nil:
		return nil, s.failed(context.Cause(ctx))
	}
	select {
	case run, open := <-s.runs:
		if !open {
			return nil, s.err
		}
		return run, nil
	case <-idle:
		return nil, s.failed(ErrIdle)
	case <-ctx.Done():
		return nil, s.failed(context.Cause(ctx))
	}
}

func (s *SourceRef[E]) failed(err error) error {
	return fmt.Errorf("casty: stream from %v: %w", s.producer, err)
}

func (s *SourceRef[E]) consume() {
	if s.consumed.Add(1)%s.step == 0 {
		poke(s.taken)
	}
}

func (s *SourceRef[E]) leave() { s.leaving.Do(func() { close(s.left) }) }

// StreamConsumer is the behaviour of a stream's receiving end. It subscribes
// to the producer when its source is asked for, and not before; it demands as
// many elements as its window has room for, and more as they are consumed.
// Once it has subscribed it stops after its producer, or when the producer
// stays unreachable.
func StreamConsumer[E any](producer ActorRef[StreamProducerMsg[E]], options ...StreamOption) Behavior[StreamConsumerMsg[E]] {
	err := learnStream[E]()
	// The default window is where more no longer pays: measured on one machine,
	// small elements flow a third slower with half of it, and each doubling
	// gains a fifth or less; elements of 64 KiB gain nothing, and 256 of them
	// are 16 MiB in each process.
	o := streamOptions{window: 256, peerTimeout: 30 * time.Second}
	for _, option := range options {
		option(&o)
	}
	return func(self *Actor[StreamConsumerMsg[E]]) {
		if err != nil {
			panic(err)
		}
		c := &consumer[E]{self: self, producer: producer, options: o, lifeline: newLifeline(self), gap: none}
		c.source = &SourceRef[E]{
			producer: producer,
			idle:     o.idle,
			step:     uint64(max(1, o.window/2)),
			runs:     make(chan []E, o.window),
			taken:    make(chan struct{}, 1),
			left:     make(chan struct{}),
		}
		c.left = c.source.left
		defer func() { c.finish(fmt.Errorf("the consumer has %w", ErrStopped)) }()
		c.run()
	}
}

// A consumer's fields are owned by its actor's goroutine.
type consumer[E any] struct {
	self     *Actor[StreamConsumerMsg[E]]
	producer ActorRef[StreamProducerMsg[E]]
	source   *SourceRef[E]
	options  streamOptions
	lifeline

	left      <-chan struct{} // the source's, until we have seen it closed
	started   bool            // GetSource has been called
	answered  bool            // the producer knows us
	received  uint64          // the next position to take
	demand    uint64
	gap       uint64 // the position for which we have subscribed again since the last tick, or none
	finished  bool   // the source is closed: what remains is to make our last word heard
	cancelled bool   // and the last word is StreamCancel
	done      bool
}

const none = math.MaxUint64 // no position

func (c *consumer[E]) run() {
	for !c.done {
		select {
		case msg := <-c.self.Mailbox():
			c.receive(msg)
		case <-c.source.taken:
			c.replenish()
		case <-c.left:
			c.cancel()
		case err := <-c.watch:
			c.lose(err)
		case <-c.tick.C:
			c.retry()
		case <-c.self.Done():
			if closed(c.left) {
				c.cancel() // the user left the loop, and then closed the system
			}
			return
		}
	}
}

// finish ends the source.
func (c *consumer[E]) finish(err error) {
	if c.finished {
		return
	}
	c.finished = true
	if err != nil {
		c.source.err = c.source.failed(err)
	}
	close(c.source.runs)
}

func (c *consumer[E]) receive(msg StreamConsumerMsg[E]) {
	if m, local := msg.(getSource[E]); local {
		m.replyTo.Tell(c.self, c.source)
		c.start()
		return
	}
	if !c.started {
		return // nobody can know us
	}
	c.alive()
	c.answered = true
	switch m := msg.(type) {
	case StreamElement[E]:
		c.take(m)
	case StreamCompleted[E]:
		c.last(m.Seq, nil)
	case StreamFailed[E]:
		if m.Refused {
			c.finish(reason(m.Reason))
			c.done = true
		} else {
			c.last(m.Seq, reason(m.Reason))
		}
	}
}

// reason makes an error of a text that has crossed the wire.
func reason(text string) error {
	for _, known := range []error{ErrAlreadySubscribed, ErrCannotResume} {
		if text == known.Error() {
			return known
		}
	}
	return errors.New(text)
}

func (c *consumer[E]) start() {
	if !c.started {
		c.started = true
		c.demand = uint64(c.options.window)
		watchOver(&c.lifeline, c.self, c.producer)
		c.say()
	}
}

// say tells the producer where we stand. It can always be said again.
func (c *consumer[E]) say() {
	var where StreamProducerMsg[E] = StreamDemand[E]{c.self.Ref(), c.received, c.demand}
	if !c.answered {
		where = Subscribe[E]{c.self.Ref(), c.received, c.demand}
	}
	err := error(nil)
	if !c.cancelled || !c.answered { // a producer that does not know us would not listen to a cancel
		err = c.producer.tell(c.self, where)
	}
	if c.cancelled {
		err = cmp.Or(err, c.producer.tell(c.self, StreamCancel[E]{c.self.Ref()}))
	}
	if err != nil {
		c.hurry()
	}
}

// take hands on what is new in a run of elements.
func (c *consumer[E]) take(m StreamElement[E]) {
	if m.Seq > c.received {
		c.missed()
		return
	}
	run := m.Elements[min(c.received-m.Seq, uint64(len(m.Elements))):]
	run = run[:min(uint64(len(run)), c.demand-c.received)] // what exceeds the demand is dropped, and shows as a gap
	if len(run) > 0 && !c.finished {
		c.source.runs <- run
		c.received += uint64(len(run))
	}
}

// missed subscribes again from the first position that is missing: once per
// tick, for whatever is still under way shows the same gap.
func (c *consumer[E]) missed() {
	if !c.finished && c.gap != c.received {
		c.gap, c.answered = c.received, false
		c.say()
	}
}

// last takes the end of the stream, and acknowledges it however often it comes.
func (c *consumer[E]) last(seq uint64, err error) {
	if seq > c.received {
		c.missed()
		return
	}
	if seq == c.received && !c.finished {
		c.received++
		c.finish(err)
	}
	c.say()
}

// replenish demands as many elements as have been consumed since.
func (c *consumer[E]) replenish() {
	if !c.finished {
		c.demand = c.source.consumed.Load() + uint64(c.options.window)
		c.say()
	}
}

func (c *consumer[E]) cancel() {
	c.left = nil
	if !c.finished {
		c.cancelled = true
		c.finish(ErrCancelled)
		c.say()
	}
}

// lose is about a producer that is unreachable, or has stopped. All that it
// said before it stopped is in the mailbox.
func (c *consumer[E]) lose(err error) {
	c.unreachable()
	if errors.Is(err, ErrUnreachable) {
		return
	}
	for range len(c.self.mailbox) {
		c.receive(<-c.self.mailbox)
	}
	if errors.Is(err, ErrStopped) {
		err = fmt.Errorf("%w: it ended before completion: %w", ErrCannotResume, err)
	}
	c.finish(err)
	c.done = true
}

// retry is what happens at a tick: what may not have been heard is said again.
func (c *consumer[E]) retry() {
	c.again()
	if !c.started {
		return
	}
	if c.lost.IsZero() && c.quiet {
		c.lost = time.Now() // it does not answer
	}
	if !c.lost.IsZero() && time.Since(c.lost) >= c.options.peerTimeout {
		c.finish(fmt.Errorf("%w for %v", ErrUnreachable, c.options.peerTimeout))
		c.done = true
		return
	}
	if c.watch == nil {
		watchOver(&c.lifeline, c.self, c.producer)
		c.answered = false
	}
	c.say()
	c.quiet, c.gap = true, none
}

// A lifeline is what one end of a stream knows of the other: whether it can
// be reached, and when to say something again.
type lifeline struct {
	heartbeat time.Duration
	watch     <-chan error // nil once it has fired: the next tick watches, and so dials, again
	unwatch   context.CancelFunc
	tick      *time.Timer // once per heartbeat; in trouble, after a growing pause
	pause     time.Duration
	hurried   bool
	lost      time.Time // since when the peer is unreachable; zero: it is not
	quiet     bool      // nothing has been heard since the last tick
}

func newLifeline(in Host) lifeline {
	heartbeat := in.system().config.Heartbeat
	return lifeline{heartbeat: heartbeat, tick: time.NewTimer(heartbeat), pause: heartbeat, unwatch: func() {}}
}

// watchOver watches the peer, in place of whom it watched before.
func watchOver[M, P any](l *lifeline, self *Actor[M], peer ActorRef[P]) {
	l.unwatch()
	ctx, cancel := context.WithCancel(self.Context())
	l.watch, l.unwatch = peer.Watch(ctx, self), cancel
}

// alive notes a sign of life.
func (l *lifeline) alive() {
	l.quiet, l.hurried, l.lost, l.pause = false, false, time.Time{}, l.heartbeat
}

// unreachable notes that the peer is, or still is.
func (l *lifeline) unreachable() {
	l.watch = nil
	if l.lost.IsZero() {
		l.lost = time.Now()
	}
	l.hurry()
}

// hurry brings the next tick forward, and lets the pauses grow from there
// until something is heard.
func (l *lifeline) hurry() {
	if !l.hurried {
		l.hurried, l.pause = true, l.heartbeat/64
		l.again()
	}
}

// again sets the next tick.
func (l *lifeline) again() {
	l.tick.Reset(l.pause)
	l.pause = min(2*l.pause, l.heartbeat)
}
