// Package casty is a small reference implementation of reactive streams over
// the network: actors in different processes run a back-pressured stream
// between them, and service discovery finds them. It is written to be read.
//
// The idea to hold on to is that the stream protocol is just actor messages.
// Subscribe, StreamDemand, StreamElement and StreamCompleted travel through
// ActorRefs, which work across the network, so a stream between machines is
// the same code as a stream inside one. The smallest complete program:
//
//	system := casty.NewSystem(casty.Config{})
//	defer system.Close()
//	producer, _ := casty.Spawn(system, "numbers", casty.StreamProducer[int](16)) // a buffer of 16 elements
//	consumer, _ := casty.Spawn(system, "reader", casty.StreamConsumer(producer))
//	go func() {
//		sink, _ := casty.GetSink(ctx, system, producer)
//		for n := range 3 {
//			sink.Put(ctx, n) // blocks while the buffer is full
//		}
//		sink.Complete(ctx) // returns once the consumer has everything
//	}()
//	source, _ := casty.GetSource(ctx, system, consumer)
//	for n, err := range source.All(ctx) {
//		fmt.Println(n, err)
//	}
//
// # Reading order
//
// Each file adds one idea and uses only the files before it; where a later one
// plugs in, the place says so:
//
//	casty.go         an actor is one goroutine reading one mailbox; a ref is its address
//	stream.go        a stream moves elements only against demand; no network here
//	remote.go        carry messages to actors in other processes
//	receptionist.go  turn names into refs, everywhere in the cluster
//	client.go        reach a cluster from outside: dial, never listen
//
// A message of a user's is sent once, and may be lost. What the package itself
// says follows one rule, in streams, watches and discovery: whoever may not have
// been heard says it again, at one of the next heartbeats, and everything said
// means the same whenever it arrives, however often. So whatever a connection
// loses does them no harm.
//
// # Terms
//
//   - dead letter: a message of a user's that no actor has read: it could not be
//     sent or decoded, found no mailbox or a full one, or was still in the mailbox
//     when the actor stopped. Dead letters are counted, but for a message that was
//     being written when its connection was lost, since nobody can tell whether it
//     has arrived, and for a question of [Ask], if Ask fails at once. The messages
//     of streams are none, because they are said again; only one that cannot be
//     decoded counts, since nobody can tell what it was.
//   - position: a place in a stream, counted from its first element, which is
//     at 0. A position means the same element for ever, to everybody.
//   - demand: a position. A consumer allows its producer to send every element
//     before it. Reactive Streams has a difference instead, "n more"; a
//     position can be said twice, or late, and do no harm.
//   - window: how many elements a consumer has room for. Demand is the position
//     of the next element to consume, plus the window.
//   - acknowledge: to say "I hold everything before this position". Until
//     then a producer keeps what it has sent.
//   - complete: to end a stream from the producer's side, after everything
//     in it; cancel: to end a stream from the consumer's side, at once.
//
// # Goroutines
//
// Every goroutine has an owner that stops it, and [System.Close] ends all:
//
//	one per actor         runs its Behavior; Stop or Close asks it to end
//	two per connection    a reader, which begins with the dial and the
//	                      handshake, and a writer; the first to fail ends both
//	one per listener      accepts; Close closes its listener
//
// Contexts and timers call back besides; none of these calls waits for anything
// but a lock that is held briefly.
//
// # What this is not
//
// Nothing is written to disk: what a process holds dies with it. There is no
// fan-out, no replay and no group of consumers that share a stream: a stream
// has one producer and one consumer at a time. For those, use a message broker.
package casty

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net"
	"reflect"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"
)

// ---- An actor: one goroutine reading one mailbox.

// A Behavior is an actor's code. It runs in the actor's own goroutine, and
// the actor stops when it returns. It should return soon after Done is closed.
type Behavior[M any] func(self *Actor[M])

// An Actor is what a [Behavior] sees of itself. It is not for use elsewhere.
type Actor[M any] struct {
	*cell
	in *System
	// mailbox is bounded, and a message to a full one is a dead letter: Tell
	// must not block, or two actors that tell each other things deadlock.
	// That limit is why streams exist: they never send more than is asked for.
	mailbox chan M
}

// A cell is the part of an actor that does not depend on its type.
type cell struct {
	address Address
	takes   string              // the type of its messages
	accept  func(msg any) error // puts a message into the mailbox
	ctx     context.Context     // ends when the actor is asked to stop
	stop    context.CancelFunc
	watches map[*watch]bool // guarded by System.mu
}

// Ref is the address to give to others.
func (self *Actor[M]) Ref() ActorRef[M] { return ActorRef[M]{self.address} }

// Mailbox is for behaviours that select over several channels. It is never closed.
func (self *Actor[M]) Mailbox() <-chan M { return self.mailbox }

// Done is closed when the actor has been asked to stop.
func (self *Actor[M]) Done() <-chan struct{} { return self.ctx.Done() }

// Context ends when the actor has been asked to stop.
func (self *Actor[M]) Context() context.Context { return self.ctx }

// Messages is for behaviours that take one message after the other. The loop
// ends when the actor has been asked to stop.
func (self *Actor[M]) Messages() iter.Seq[M] {
	return func(yield func(M) bool) {
		for {
			select {
			case <-self.Done():
				return
			case msg := <-self.mailbox:
				if !yield(msg) {
					return
				}
			}
		}
	}
}

// A Place is where something is spawned, or sent from: a [*System] or, from
// inside a behaviour, an [*Actor]. Whoever sends names the Place, because a ref
// holds no pointer to a system: one that has just been decoded works, too.
type Place interface {
	system() *System
	where() Address
}

func (s *System) system() *System      { return s }
func (s *System) where() Address       { return Address{System: s.config.Name, Host: s.host} }
func (self *Actor[M]) system() *System { return self.in }
func (self *Actor[M]) where() Address  { return self.address }

// Spawn starts an actor in the system of a place, and returns at once. The
// actor does not depend on the place: it lives until its behaviour returns,
// after [Stop] or [System.Close] at the latest. A behaviour that panics stops
// its own actor only.
//
// A name is 1 to 255 bytes of UTF-8 without a slash, @, # or control character,
// and no other actor of the system has it. "receptionist" is reserved. Spawn
// fails if the name is not such a name, if the system is closed (ErrClosed), if
// gob knows another type by M's name, or if gob cannot carry M: a channel, a
// function, or a struct with fields of which none is exported.
//
// If M is not an interface, its messages can come over the network without
// further ado; for an interface, say gob.Register for each of its types, as with
// net/rpc.
func Spawn[M any](in Place, name string, b Behavior[M]) (ref ActorRef[M], err error) {
	defer doing(&err, "spawn %q", name)
	if name == receptionistName {
		return ref, errors.New("the name is reserved")
	}
	if err := cmp.Or(checkName("actor", name), sendable[M]()); err != nil {
		return ref, err
	}
	s := in.system()
	return spawn(s, name, s.config.Mailbox, b)
}

// receptionistName is where each process's receptionist is found.
const receptionistName = "receptionist"

// spawn is Spawn for any name, and a mailbox of any size.
func spawn[M any](s *System, name string, mailbox int, b Behavior[M]) (ActorRef[M], error) {
	self, err := newActor[M](s, name, mailbox)
	if err != nil {
		return ActorRef[M]{}, err
	}
	go live(self, b)
	return self.Ref(), nil
}

// live is the whole life of an actor.
func live[M any](self *Actor[M], b Behavior[M]) {
	reason := ErrStopped
	defer func() {
		if panicked := recover(); panicked != nil {
			reason = fmt.Errorf("%w: it panicked: %v", ErrStopped, panicked)
			self.in.config.Logger.Error("casty: an actor panicked", "actor", self.address,
				"panic", panicked, "stack", string(debug.Stack()))
		}
		self.bury(reason)
	}()
	b(self)
}

// resize gives an actor another mailbox. A stream knows how many messages it can have
// waiting, and Spawn does not; so its behaviour calls this before anything else.
func (self *Actor[M]) resize(messages int) {
	self.in.mu.Lock() // deliver, which adds messages meanwhile, holds it for reading
	defer self.in.mu.Unlock()
	resized := make(chan M, max(messages, len(self.mailbox)))
	for len(self.mailbox) > 0 {
		resized <- <-self.mailbox
	}
	self.mailbox = resized
}

// bury removes an actor, and tells those who watch it why. What is left in its
// mailbox are dead letters.
func (self *Actor[M]) bury(reason error) {
	s := self.in
	self.stop()
	s.mu.Lock()
	delete(s.actors, self.address.Name) // from now on nobody else finds its watches
	s.mu.Unlock()
	for w := range self.watches {
		w.fire(reason)
	}
	for len(self.mailbox) > 0 { // deliver adds none any more, and what a stream's watch may still add is of no use
		s.deadLetter(self.address, <-self.mailbox, reason)
	}
	s.running.Done() // after the rest, since Close waits for it
}

// newActor makes an actor that others can reach. The caller owes it a bury.
func newActor[M any](s *System, name string, mailbox int) (*Actor[M], error) {
	var zero M
	if err := learn(zero); err != nil {
		return nil, err
	}
	self := &Actor[M]{in: s, mailbox: make(chan M, mailbox), cell: &cell{
		address: Address{System: s.config.Name, Host: s.host, Name: name, Incarnation: rand.Text()[:10]}, // 50 random bits
		takes:   typeName[M](),
		watches: map[*watch]bool{},
	}}
	self.accept = func(msg any) error {
		m, ok := msg.(M)
		if !ok {
			return mismatch(self.takes, nameOf(reflect.TypeOf(msg)))
		}
		select {
		case self.mailbox <- m:
			return nil
		default:
			return ErrMailboxFull
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.ctx.Err() != nil:
		return nil, ErrClosed
	case s.actors[name] != nil:
		return nil, errors.New("the name is in use")
	}
	self.ctx, self.stop = context.WithCancel(s.ctx)
	s.actors[name] = self.cell
	s.running.Add(1)
	return self, nil
}

// sendable returns why gob cannot carry messages of type M, if so. An empty slice
// of them is enough to find out.
func sendable[M any]() error { return gob.NewEncoder(io.Discard).Encode([]M{}) }

// learn registers the types of messages with gob, and turns its panic about two
// types of one name into an error.
func learn(values ...any) (err error) {
	defer func() {
		if conflict := recover(); conflict != nil {
			err = fmt.Errorf("%v", conflict)
		}
	}()
	for _, value := range values {
		if value != nil { // an interface's zero value is nil, and there is no single type to register
			gob.Register(value)
		}
	}
	return nil
}

// typeName is how processes tell each other which messages an actor takes.
func typeName[M any]() string { return nameOf(reflect.TypeFor[M]()) }

// nameOf has the whole path of a named type's package, because there may be others
// that end alike. A type without a name, such as *T, has the short one.
func nameOf(t reflect.Type) string {
	if t == nil || t.PkgPath() == "" {
		return fmt.Sprint(t)
	}
	return t.PkgPath() + "." + t.Name()
}

// ---- Its address, and what others can do with it.

// An ActorRef is the address of an actor that takes messages of type M. It is
// pure data: comparable, and sent inside messages as its URI. The zero value
// is nobody's address.
type ActorRef[M any] struct{ address Address }

// Address says where the actor is.
func (r ActorRef[M]) Address() Address { return r.address }

// String is the address without the incarnation.
func (r ActorRef[M]) String() string { return r.address.String() }

// GobEncode makes a ref cross the wire as its URI.
func (r ActorRef[M]) GobEncode() ([]byte, error) {
	if r.address == (Address{}) {
		return nil, nil
	}
	return []byte(r.address.URI()), nil
}

// GobDecode is the inverse of GobEncode.
func (r *ActorRef[M]) GobDecode(uri []byte) (err error) {
	r.address = Address{}
	if len(uri) > 0 {
		r.address, err = ParseAddress(string(uri))
	}
	return err
}

// Tell sends a message and never waits for the receiver. Messages from one actor
// to another arrive at most once, and in order while a connection lasts. One that
// is known not to arrive is a dead letter, here or in the actor's process. Tell is
// for what needs no answer; otherwise use Ask, Watch or a stream. A nil interface
// is no message.
//
// A message to this process is shared, not copied: do not change it later. One to
// another process is encoded before Tell returns, under a lock that all senders to
// that process share: a GobEncode method of its types must not wait, nor tell
// actors anything.
func (r ActorRef[M]) Tell(from Place, msg M) {
	if err := r.tell(from, msg); err != nil {
		from.system().deadLetter(r.address, msg, err)
	}
}

func (r ActorRef[M]) tell(from Place, msg M) error {
	return from.system().send(from.where(), r.address, msg)
}

// Watch returns a channel that gets one error when the actor is no longer what the
// ref says:
//
//   - ErrStopped: the actor has stopped. Within a process the news comes at once;
//     from another process within a heartbeat, and without the reason;
//   - ErrUnreachable: its process does not answer. To go on watching, call Watch
//     again;
//   - ErrUnsendable: its process could not decode a message that this process has
//     sent to the actor, so whoever expects an answer may expect it in vain;
//   - ErrWrongType: its mailbox is for messages of another type.
//
// It gets nothing if ctx ends before.
func (r ActorRef[M]) Watch(ctx context.Context, from Place) <-chan error {
	ended := make(chan error, 1)
	from.system().watchUntil(ctx, &watch{target: r.address, takes: typeName[M](), fire: func(err error) { ended <- err }})
	return ended
}

// Stop asks an actor of this system to stop, and does not wait for it: Watch
// tells when it has. A ref of another system is logged and ignored.
func Stop[M any](in Place, ref ActorRef[M]) {
	s := in.system()
	if !s.local(ref.address) {
		s.config.Logger.Warn("casty: stop", "actor", ref.address, "reason", ErrNotLocal)
		return
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if c, err := s.find(ref.address); err == nil {
		c.stop()
	}
}

// Ask sends the message that ask makes, and waits for the reply that is told to
// the ref in it. It fails if ctx ends, if the actor stops or becomes unreachable,
// with the errors of Watch, if the message cannot be sent (ErrMailboxFull,
// ErrUnsendable), or if the system is closed (ErrClosed). ErrUnreachable means
// that the question or the reply may be lost, not that nothing was done; it can
// come up to four heartbeats after a connection was lost, three for its other end
// to notice and one to spare. If ctx has ended before, Ask asks nothing.
//
// Give ctx an end, because Ask is not told everything:
//
//   - a reply cannot be sent or decoded;
//   - the actor is in another process, and its mailbox is full;
//   - the actor is in another process, stops without a reply, and another one takes
//     its name at once; and the ref, which has no incarnation, stands for either;
//   - this process has come back, within three heartbeats and at the same address,
//     and the actor's process replies on the old connection.
func Ask[M, R any](ctx context.Context, from Place, to ActorRef[M], ask func(replyTo ActorRef[R]) M) (reply R, err error) {
	defer doing(&err, "ask %v", to)
	if ctx.Err() != nil {
		return reply, context.Cause(ctx)
	}
	s := from.system()
	// The reply is sent to an actor that has no behaviour: Ask reads its mailbox.
	self, err := newActor[R](s, "ask-"+rand.Text(), 1)
	if err != nil {
		return reply, err
	}
	defer self.bury(ErrStopped)
	ended := make(chan error, 1)
	s.watchUntil(self.ctx, &watch{target: to.address, takes: typeName[M](), asks: true, fire: func(err error) { ended <- err }})
	if err := to.tell(from, ask(self.Ref())); err != nil {
		return reply, err
	}
	select {
	case reply = <-self.mailbox:
		return reply, nil
	case err = <-ended:
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-self.Done(): // somebody has stopped the reply's actor, or closes the system
		if err = ErrStopped; s.ctx.Err() != nil {
			err = ErrClosed
		}
	}
	if len(self.mailbox) > 0 { // the answer came first
		return <-self.mailbox, nil
	}
	return reply, err
}

// The errors of this package. The log of dead letters gives them as reasons, too.
// They come wrapped: test for them with [errors.Is]. "Streams" are the loop over a
// source, and Put, Complete and Fail. If ctx ends Put, Complete or Fail, the error
// also wraps what has become of the consumer, if that is why they had to wait.
var (
	// ErrStopped, from Watch, Ask, Register and streams: there is no such actor,
	// or no longer. Look up its successor.
	ErrStopped = errors.New("stopped")
	// ErrUnreachable, from Watch, Ask and the loop over a source: the actor's
	// process does not answer. It may come back: try again later.
	ErrUnreachable = errors.New("unreachable")
	// ErrMailboxFull, from Ask: the actor, or the connection to its process,
	// takes its messages more slowly than they come. Send fewer, or a stream.
	ErrMailboxFull = errors.New("mailbox full")
	// ErrWrongType, from Watch, Ask, Register and the loop over a source: the
	// actor's mailbox is for another type of messages. Mend the program.
	ErrWrongType = errors.New("wrong type")
	// ErrUnsendable, from Watch, Ask, Put, Complete and Fail: a message is too
	// large for MaxMessage, or cannot be encoded or decoded. To send it again is
	// no use. The loop over a source ends with an error that has its text, and is
	// another one.
	ErrUnsendable = errors.New("cannot be sent")
	// ErrClosed, from Spawn, Ask, GetSink, GetSource and WaitForMembers: the system
	// is closed.
	ErrClosed = errors.New("system closed")
	// ErrNotLocal, from GetSink, GetSource and Register: what was asked for
	// works in the actor's own process only.
	ErrNotLocal = errors.New("not local")

	errNoActor   = fmt.Errorf("%w: no such actor", ErrStopped)
	errElsewhere = fmt.Errorf("%w: not in this process, nor in a cluster with it", ErrUnreachable)
)

// doing adds to an error what was being done, and to what.
func doing(err *error, format string, what ...any) {
	if *err != nil {
		*err = fmt.Errorf("casty: "+format+": %w", append(what, *err)...)
	}
}

// brief is the text of an error for a peer: 1 KiB at most, which any MaxMessage admits.
func brief(err error) string {
	text := err.Error()
	return strings.ToValidUTF8(text[:min(len(text), 1024)], "")
}

// ---- The actors of a process, and how messages find them.

// A System is the actors of one process and their way to others. Two systems in
// one program are as two processes to each other.
type System struct {
	config      Config
	host        string // what peers call this process: host:port, or a random id
	network     network
	ctx         context.Context // ends when Close begins
	cancel      context.CancelFunc
	close       func() error   // end, at the first call only
	running     sync.WaitGroup // the actors
	deadLetters atomic.Uint64
	warnings    limiter

	mu        sync.RWMutex     // guards what follows
	actors    map[string]*cell // by name
	directory any              // what receptionist.go knows: so that this file can be read, and compiled, without it
}

// NewSystem makes a system whose actors are in this process only. It uses
// Config's Name, Logger, Heartbeat and Mailbox. Since it cannot fail, numbers that
// are not positive and names that cannot be in an address count as the defaults,
// and a larger Mailbox as the largest.
func NewSystem(cfg Config) *System {
	cfg.Heartbeat, cfg.Mailbox = max(cfg.Heartbeat, 0), max(0, min(cfg.Mailbox, maxMailbox))
	if checkName("system", cfg.Name) != nil {
		cfg.Name = ""
	}
	return newSystem(cfg.withDefaults(), rand.Text())
}

func newSystem(cfg Config, host string) *System {
	s := &System{config: cfg, host: host, actors: map[string]*cell{}}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.close = sync.OnceValue(s.end)
	return s
}

// Address is what peers call this process: the host:port that they dial, or
// a random id if nobody can dial it.
func (s *System) Address() string { return s.host }

// Close asks every actor to stop and waits until it has; one of them, the
// receptionist, leaves the cluster. Then Close sends what is under way, for which
// it waits three heartbeats at most, and closes the connections. It leaves no
// goroutine behind. A behaviour must not call it, as it would wait for itself.
// Calling it again waits for the first call and returns the same error.
func (s *System) Close() error { return s.close() }

func (s *System) end() error {
	s.mu.Lock() // so that no actor is being added
	s.cancel()
	s.mu.Unlock()
	s.running.Wait()
	if s.network != nil {
		return s.network.close()
	}
	return nil
}

// find returns the actor at an address of this process. The caller holds s.mu.
func (s *System) find(at Address) (*cell, error) {
	c := s.actors[at.Name]
	if c == nil || (at.Incarnation != "" && at.Incarnation != c.address.Incarnation) {
		return nil, errNoActor
	}
	return c, nil
}

// takes is for the files that follow: it returns the type of messages that the
// actor at an address of this process is for. It is empty if there is no such actor.
func (s *System) takes(at Address) string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if c, err := s.find(at); err == nil {
		return c.takes
	}
	return ""
}

// mismatch is the error about an actor that takes other messages than wanted, or
// does not exist, in which case takes is empty.
func mismatch(takes, wanted string) error {
	if takes == "" {
		return errNoActor
	}
	return fmt.Errorf("%w: it takes %s, not %s", ErrWrongType, takes, wanted)
}

// local says whether an address is one of this process.
func (s *System) local(a Address) bool { return a.Host == s.host && a.System == s.config.Name }

// A network carries messages to other processes. remote.go implements it.
type network interface {
	// send never blocks. Its errors are those of Ask; what is lost after it has
	// returned is lost without an error.
	send(to Address, msg any) error
	// watch keeps a watch until it fires or is forgotten.
	watch(w *watch) error
	forget(w *watch)
	// close sends what is under way, then closes every connection.
	close() error
}

// send is Tell, but returns the error in place of counting a dead letter.
func (s *System) send(from, to Address, msg any) error {
	s.trace("casty: told", from, to, msg)
	switch {
	case s.local(to):
		return s.deliver(from, to, msg)
	case s.network == nil || to.System != s.config.Name:
		return errElsewhere
	}
	return s.network.send(to, msg)
}

// deliver puts a message into a mailbox of this process. It holds the lock, which
// senders share, to keep bury out. So either the message is in the mailbox before the
// actor is removed, and bury finds it there, or there is no such actor any more.
func (s *System) deliver(from, to Address, msg any) error {
	s.mu.RLock()
	c, err := s.find(to)
	if err == nil {
		err = c.accept(msg)
	}
	s.mu.RUnlock()
	if err == nil {
		s.trace("casty: delivered", from, to, msg)
	}
	return err
}

// A watch counts on an actor to be there, and to take messages of a type. Whoever
// calls fire has first taken the watch from where it was kept, so that it is called
// once at most until the watch is kept again. No lock is held then, and fire must not
// block.
type watch struct {
	target Address
	takes  string
	asks   bool // it is Ask's, whose reply is said only once, and may be lost unnoticed: see end in remote.go
	fire   func(error)
}

// watch keeps a watch until it fires or is forgotten. It fires when it turns out that
// the target is gone, cannot be reached, or takes other messages.
func (s *System) watch(w *watch) {
	var err error
	switch target := w.target; {
	case s.local(target):
		err = s.watchHere(w)
	case s.network == nil || target.System != s.config.Name:
		err = errElsewhere
	default:
		err = s.network.watch(w)
	}
	if err != nil {
		w.fire(err)
	}
}

// watchUntil forgets the watch when ctx has ended, or when it has fired. It does not
// fire after ctx has ended.
func (s *System) watchUntil(ctx context.Context, w *watch) {
	if ctx.Err() != nil {
		return
	}
	ctx, done := context.WithCancel(ctx)
	fire := w.fire
	w.fire = func(err error) {
		if ctx.Err() == nil {
			fire(err)
			done() // which forgets it
		}
	}
	s.watch(w)
	context.AfterFunc(ctx, func() { s.forget(w) }) // after watch, or it might forget what is kept later
}

func (s *System) watchHere(w *watch) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, err := s.find(w.target)
	switch {
	case err != nil:
		return err
	case w.takes != c.takes:
		return mismatch(c.takes, w.takes)
	}
	c.watches[w] = true
	return nil
}

// forget does nothing if there is no watch, or none any more.
func (s *System) forget(w *watch) {
	if w == nil {
		return
	}
	if s.network != nil && !s.local(w.target) {
		s.network.forget(w)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if c, err := s.find(w.target); err == nil {
		delete(c.watches, w)
	}
}

// ---- What reached nobody, and what is logged.

// DeadLetters is how many dead letters there were from or to this system.
func (s *System) DeadLetters() uint64 { return s.deadLetters.Load() }

// deadLetter counts a message that reached nobody, unless it is said again.
func (s *System) deadLetter(to Address, msg any, reason error) {
	if _, again := msg.(repeated); !again {
		s.deadLetters.Add(1)
		s.warn("dead letter: "+kind(reason), "casty: dead letter", "to", to, "message", fmt.Sprintf("%T", msg), "reason", reason)
	}
}

// A repeated message, such as those of streams, is said again until it is heard,
// or until its sender gives up and says so. To lose one is no dead letter.
type repeated interface{ repeated() }

// kind is the text of that error of this package which a reason wraps.
func kind(reason error) string {
	for _, known := range []error{ErrStopped, ErrUnreachable, ErrMailboxFull, ErrWrongType, ErrUnsendable} {
		if errors.Is(reason, known) {
			return known.Error()
		}
	}
	return ""
}

// warn logs some of the warnings of a kind, and the number of those so far.
// While the system closes, what still comes for it is nobody's concern.
func (s *System) warn(kind, what string, details ...any) {
	if total, logged := s.warnings.count(kind); logged && s.ctx.Err() == nil {
		s.config.Logger.Warn(what, append(details, "total", total)...)
	}
}

// A limiter picks the 1st, 2nd, 4th, 8th and so on of the warnings of each
// kind, so that a flood of messages is not a flood of log lines.
type limiter struct {
	mu     sync.Mutex
	counts map[string]uint64
}

// maxKinds bounds what a limiter remembers. At so many it forgets all of them.
const maxKinds = 1000

func (l *limiter) count(kind string) (total uint64, picked bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.counts == nil || len(l.counts) >= maxKinds {
		l.counts = map[string]uint64{}
	}
	l.counts[kind]++
	total = l.counts[kind]
	return total, total&(total-1) == 0
}

// trace shows a message that has been told, or has reached a mailbox, to those
// who log at debug level.
func (s *System) trace(what string, from, to Address, msg any) {
	if s.config.Logger.Enabled(s.ctx, slog.LevelDebug) {
		s.config.Logger.Debug(what, "from", from, "to", to, "message", msg)
	}
}

// ---- Addresses.

// An Address names an actor anywhere: casty://system@host:port/name.
type Address struct {
	System string
	Host   string // host:port, or the random id of a process that nobody can dial
	Name   string // empty: not an actor, but the process itself
	// Incarnation tells an actor from an earlier one of the same name, here
	// or before a restart. Empty, it stands for whoever has the name now.
	Incarnation string
}

// String is the address as people know it, without the incarnation.
func (a Address) String() string { a.Incarnation = ""; return a.URI() }

// URI is the whole address, as it crosses the wire: String, and "#" with the
// incarnation if there is one.
func (a Address) URI() string { return "casty://" + a.System + "@" + a.Host + "/" + a.path() }

// path is the part of the URI that tells the actors of a process apart.
func (a Address) path() string { return string(a.appendPath(nil)) }

func (a Address) appendPath(to []byte) []byte {
	to = append(to, a.Name...)
	if a.Incarnation != "" {
		to = append(append(to, '#'), a.Incarnation...)
	}
	return to
}

// ParseAddress is the inverse of an actor's [Address.URI]. Its errors say which
// part is wrong.
func ParseAddress(uri string) (a Address, err error) {
	defer doing(&err, "address %q", uri)
	rest, scheme := strings.CutPrefix(uri, "casty://")
	system, rest, at := strings.Cut(rest, "@")
	host, path, slash := strings.Cut(rest, "/")
	name, incarnation, _ := strings.Cut(path, "#")
	if !scheme || !at || !slash {
		return a, errors.New("not of the form casty://system@host:port/name")
	}
	if err := cmp.Or(checkName("system", system), checkHost(host), checkName("actor", name),
		checkName("incarnation", cmp.Or(incarnation, "none"))); err != nil { // which may be missing
		return a, err
	}
	return Address{system, host, name, incarnation}, nil
}

// checkName keeps names from being mistaken for another part of an address.
func checkName(of, name string) error {
	switch {
	case name == "":
		return fmt.Errorf("the name of the %s is empty", of)
	case len(name) > 255:
		return fmt.Errorf("the name of the %s is longer than 255 bytes", of)
	case !utf8.ValidString(name) || strings.ContainsAny(name, "/@#") || strings.ContainsFunc(name, unicode.IsControl):
		return fmt.Errorf("the name of the %s, %q, has a slash, @, # or control character", of, name)
	}
	return nil
}

// checkHost accepts what a peer can be called: a host:port to dial, or an id.
func checkHost(host string) error {
	if !dialable(host) {
		return checkName("host", host)
	}
	name, port, err := net.SplitHostPort(host)
	if err != nil {
		return err
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("%q is not a host and a port between 1 and 65535", host)
	}
	return checkName("host", name)
}

// dialable tells a host:port from an id.
func dialable(host string) bool { return strings.Contains(host, ":") }

// ---- Settings.

// Config says how a system is built. Every zero field has a sensible default.
type Config struct {
	// Name of the system. Peers of another name are refused. Default "casty".
	Name string
	// Address, host:port, is what peers dial to reach a node, which is a system
	// that listens. Port 0 picks a free one. StartNode alone uses it, and has
	// "127.0.0.1:0" as its default.
	Address string
	// Listener, if set, accepts a node's connections. Then peers dial Address or, if
	// that is empty, the listener's own address. Without a Listener, StartNode
	// listens on Address. Once StartNode has succeeded, Close closes the Listener.
	Listener net.Listener
	// Seeds are addresses of nodes to contact first. They need not be up yet.
	Seeds []string
	// TLS, if set, is required of every peer, with certificates on both sides.
	// Its RootCAs serve for both directions if it has no ClientCAs. A node's
	// certificate must be valid for the host in its Address. What its
	// GetConfigForClient returns, if anything, must require and verify certificates
	// itself, since a peer without a verified one is refused.
	TLS *tls.Config
	// Dial opens a connection to a peer's address, before TLS. Default: TCP.
	Dial func(ctx context.Context, address string) (net.Conn, error)
	// Logger takes what the package has to say. At debug level that includes
	// every message, when it is told ("casty: told") and when it reaches a
	// mailbox ("casty: delivered"). The attributes from and to are each an
	// [Address]; message is the value itself, and its receiver may be using it
	// already. The Logger's handler must not tell actors anything, since that
	// would be logged too. Default slog.Default().
	Logger *slog.Logger
	// Heartbeat is how often peers assure each other that they are there. A
	// connection on which three are missing is given up. Peers with another
	// heartbeat are refused. Default 1s.
	Heartbeat time.Duration
	// Mailbox is how many messages wait for an actor before the next one is
	// a dead letter: up to 1048576, for which room is made at once. The actors of
	// streams have mailboxes of their own. Default 512.
	Mailbox int
	// MaxMessage bounds a message on the network, in bytes: from 4 KiB to 1 GiB.
	// Peers with another limit are refused. Default 1 MiB, because gob recurses
	// while it decodes: in the worst case a message of 1 MiB takes 512 MiB of stack,
	// and Go ends a process at 1 GB. A larger limit is for clusters in which no peer
	// means harm.
	MaxMessage int
}

func (c Config) withDefaults() Config {
	c.Name = cmp.Or(c.Name, "casty")
	c.Logger = cmp.Or(c.Logger, slog.Default())
	c.Heartbeat = cmp.Or(c.Heartbeat, time.Second)
	c.Mailbox = cmp.Or(c.Mailbox, 512)
	c.MaxMessage = cmp.Or(c.MaxMessage, 1<<20)
	if c.Dial == nil {
		c.Dial = func(ctx context.Context, address string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", address)
		}
	}
	return c
}

const (
	minMessage = 4 << 10 // so that what streams say fits, with the longest names and reasons
	maxMessage = 1 << 30
	maxMailbox = 1 << 20
)

// check names the first setting that cannot work, for StartNode and Connect.
func (c Config) check() error {
	if err := checkName("system", c.Name); err != nil {
		return err
	}
	for _, seed := range c.Seeds {
		if !dialable(seed) || checkHost(seed) != nil {
			return fmt.Errorf("seed %q is not host:port", seed)
		}
	}
	switch {
	case c.Heartbeat < 0:
		return fmt.Errorf("the setting Heartbeat is %v: it must be positive", c.Heartbeat)
	case c.Mailbox < 0 || c.Mailbox > maxMailbox:
		return fmt.Errorf("the setting Mailbox is %d: it must be from 1 to %d", c.Mailbox, maxMailbox)
	case c.MaxMessage < minMessage || c.MaxMessage > maxMessage:
		return fmt.Errorf("the setting MaxMessage is %d: it must be from %d to %d", c.MaxMessage, minMessage, maxMessage)
	}
	return nil
}
