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
//	producer, _ := casty.Spawn(system, "numbers", casty.StreamProducer[int](16))
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
// Each file adds one idea and uses only the files before it:
//
//	casty.go         an actor is one goroutine reading one mailbox; a ref is its address
//	stream.go        a stream moves elements only against demand; no network here
//	remote.go        carry messages to actors in other processes
//	receptionist.go  turn names into refs, everywhere in the cluster
//	client.go        reach a cluster from outside: dial, never listen
//
// # Terms
//
//   - dead letter: a message that reached no mailbox. It is counted, and
//     logged once in a while.
//   - demand: how far a consumer allows its producer to send. It is a
//     position in the stream, not a difference, so that saying it twice does
//     no harm.
//   - window: how many elements a consumer has room for; demand is always
//     the number of elements consumed plus the window.
//   - acknowledge: to say "I hold everything before this position". Until
//     then a producer keeps what it has sent.
//   - complete: to end a stream from the producer's side, after everything
//     in it; cancel: to end it from the consumer's, at once.
//
// # Goroutines
//
// Every goroutine has an owner that stops it, and [System.Close] ends all:
//
//	one per actor                runs its Behavior; Stop or Close asks it to end
//	two per connection           a reader, which dials or greets first, and a
//	                             writer; the first to fail ends both
//	one per listener             accepts; Close closes its listener
//
// Besides, contexts and timers call back; none of these calls blocks.
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

// Config says how a system is built. Every zero field has a sensible default.
type Config struct {
	// Name of the system. Peers of another name are refused. Default "casty".
	Name string
	// Address, host:port, is what peers dial to reach a node. Port 0 picks a
	// free one. Default "127.0.0.1:0". Only nodes have one.
	Address string
	// Listener, if set, accepts a node's connections in place of one that
	// listens on Address: to bind elsewhere than peers dial. Close closes it.
	Listener net.Listener
	// Seeds are addresses of nodes to contact first. They need not be up yet.
	Seeds []string
	// TLS, if set, is required of every peer, with certificates on both sides.
	// Without ClientCAs of its own, RootCAs serve for both directions.
	TLS *tls.Config
	// Dial opens a connection to a peer's address, before TLS. Default: TCP.
	Dial func(ctx context.Context, address string) (net.Conn, error)
	// Logger takes what the package has to say. Its handler must not tell
	// actors anything. Default slog.Default().
	Logger *slog.Logger
	// Heartbeat is how often peers assure each other that they are there.
	// A connection with three of the slower peer's missing is given up; a
	// peer's counts for a minute at most. Default 1s.
	Heartbeat time.Duration
	// Mailbox is how many messages wait for an actor before the next one is
	// a dead letter. Default 512.
	Mailbox int
	// MaxMessage bounds a message on the network, in bytes. Default 4 MiB;
	// at most 2 GiB.
	MaxMessage int
}

func (c Config) withDefaults() Config {
	c.Name = cmp.Or(c.Name, "casty")
	c.Logger = cmp.Or(c.Logger, slog.Default())
	c.Heartbeat = cmp.Or(max(c.Heartbeat, 0), time.Second)
	c.Mailbox = cmp.Or(max(c.Mailbox, 0), 512)
	c.MaxMessage = min(cmp.Or(max(c.MaxMessage, 0), 4<<20), 1<<31-1)
	if c.Dial == nil {
		c.Dial = func(ctx context.Context, address string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", address)
		}
	}
	return c
}

// check finds what cannot work in what others will have to parse or dial.
func (c Config) check() error {
	if err := checkName("system", c.Name); err != nil {
		return err
	}
	for _, seed := range c.Seeds {
		if err := checkHost(seed); err != nil || !dialable(seed) {
			return fmt.Errorf("seed %q is not host:port", seed)
		}
	}
	return nil
}

// An Address names an actor anywhere: casty://system@host:port/name.
type Address struct {
	System string
	Host   string // host:port, or the random id of a process that nobody can dial
	Name   string
	// Incarnation tells an actor from an earlier one of the same name, here
	// or before a restart. Empty, it stands for whoever has the name now.
	Incarnation string
}

// String is the address as people know it, without the incarnation.
func (a Address) String() string {
	return "casty://" + a.System + "@" + a.Host + "/" + a.Name
}

// URI is the whole address, as it crosses the wire: String, and "#" with the
// incarnation if there is one.
func (a Address) URI() string { return "casty://" + a.System + "@" + a.Host + "/" + a.path() }

// path is the part of the URI that tells the actors of a process apart.
func (a Address) path() string {
	if a.Incarnation == "" {
		return a.Name
	}
	return a.Name + "#" + a.Incarnation
}

// at is the actor of this process that has a path.
func (s *System) at(path string) Address {
	name, incarnation, _ := strings.Cut(path, "#")
	return Address{s.config.Name, s.host, name, incarnation}
}

// ParseAddress is the inverse of [Address.URI]. Its errors say which part is wrong.
func ParseAddress(uri string) (Address, error) {
	rest, scheme := strings.CutPrefix(uri, "casty://")
	system, rest, at := strings.Cut(rest, "@")
	host, path, slash := strings.Cut(rest, "/")
	name, incarnation, _ := strings.Cut(path, "#")
	if !scheme || !at || !slash {
		return Address{}, fmt.Errorf("casty: address %q: not of the form casty://system@host:port/name", uri)
	}
	err := cmp.Or(checkName("system", system), checkHost(host), checkName("actor", name))
	if err != nil {
		return Address{}, fmt.Errorf("casty: address %q: %w", uri, err)
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

// A Host is whatever lives in a system: a [*System] or, from inside a
// behaviour, an [*Actor]. Sending names the Host it is sent from, so that a
// ref needs no hidden state and one fresh out of a decoder works.
type Host interface{ system() *System }

// network carries messages to other processes. remote.go implements it.
type network interface {
	// send never blocks. Its error is immediate: what fails later is lost,
	// and the watches on that peer say so.
	send(to Address, msg any) error
	// watch calls fire at most once, when the actor stops or its host is lost.
	watch(to Address, takes string, fire func(error)) (cancel func())
	// close sends what is under way, then closes every connection.
	close() error
}

// What Tell's dead letters, Watch and Ask report. They come wrapped, with the
// address; test for them with [errors.Is].
var (
	ErrStopped     = errors.New("stopped")        // there is no such actor, or no longer
	ErrUnreachable = errors.New("unreachable")    // its process does not answer
	ErrMailboxFull = errors.New("mailbox full")   // it takes its messages too slowly
	ErrWrongType   = errors.New("wrong type")     // its mailbox is for another type of messages
	ErrUnsendable  = errors.New("cannot be sent") // too large, or not encodable; it never will be
	ErrClosed      = errors.New("system closed")  // our own system is closed
	ErrNotLocal    = errors.New("not local")      // it only works in the actor's own process
)

// A System is the actors of one process and their way to others.
type System struct {
	config      Config
	host        string // what peers call this process: host:port, or a random id
	network     network
	ctx         context.Context // ends when Close begins
	cancel      context.CancelFunc
	closing     sync.Once
	closeErr    error
	running     sync.WaitGroup // the actors
	deadLetters atomic.Uint64
	lastLogged  atomic.Int64 // second of the last warning
	logged      atomic.Int64 // how many were, in that second

	mu        sync.RWMutex     // guards what follows
	actors    map[string]*cell // by name
	directory any              // what receptionist.go knows; its type is no business of this file
}

// NewSystem makes a system whose actors are in this process only. It uses
// Config's Name, Logger and Mailbox.
func NewSystem(cfg Config) *System {
	return newSystem(cfg.withDefaults(), rand.Text())
}

func newSystem(cfg Config, host string) *System {
	ctx, cancel := context.WithCancel(context.Background())
	return &System{config: cfg, host: host, ctx: ctx, cancel: cancel, actors: map[string]*cell{}}
}

func (s *System) system() *System { return s }

// Address is what peers call this process: the host:port that they dial, or
// a random id if nobody can dial it.
func (s *System) Address() string { return s.host }

// DeadLetters is how many messages from or to this system reached no mailbox.
func (s *System) DeadLetters() uint64 { return s.deadLetters.Load() }

// Close leaves the cluster, asks every actor to stop and waits until it has,
// sends what is under way and closes the connections. It leaves no goroutine
// behind. A behaviour must not call it, as it would wait for itself. Calling
// it again waits for the first call and returns the same error.
func (s *System) Close() error {
	s.closing.Do(func() {
		s.mu.Lock() // so that no actor is being added
		s.cancel()
		s.mu.Unlock()
		s.running.Wait()
		if s.network != nil {
			s.closeErr = s.network.close()
		}
	})
	return s.closeErr
}

// deadLetter counts a message that reached nobody, and logs it once in a while.
func (s *System) deadLetter(to Address, msg any, reason error) {
	total := s.deadLetters.Add(1)
	if s.ctx.Err() != nil {
		return // we are leaving, and what still comes for us is nobody's concern
	}
	s.warn("casty: dead letter", "to", to.String(), "message", fmt.Sprintf("%T", msg), "reason", reason, "total", total)
}

// warn logs the first ten warnings of any second: a flood must not become a
// flood of log lines.
func (s *System) warn(what string, details ...any) {
	if now := time.Now().Unix(); s.lastLogged.Swap(now) != now {
		s.logged.Store(0)
	}
	if s.logged.Add(1) <= 10 {
		s.config.Logger.Warn(what, details...)
	}
}

// A cell is the part of an actor that does not depend on its type.
type cell struct {
	address  Address
	takes    string // the type of its messages
	deliver  func(msg any) error
	ctx      context.Context // ends when the actor is asked to stop
	stop     context.CancelFunc
	mistaken chan error                // someone watches it for messages of another type: a mailbox gets to see none of those
	watchers map[*func(error)]struct{} // each is called at most once; guarded by System.mu
}

// An Actor is what a [Behavior] sees of itself. It is not for use elsewhere.
type Actor[M any] struct {
	*cell
	in *System
	// mailbox is bounded, and a message to a full one is a dead letter: Tell
	// must not block, or two actors that tell each other things deadlock.
	// That limit is why streams exist: they never send more than is asked for.
	mailbox chan M
}

// A Behavior is an actor's code. It runs in the actor's own goroutine, and
// the actor stops when it returns. It should return soon after Done is closed.
type Behavior[M any] func(self *Actor[M])

func (self *Actor[M]) system() *System { return self.in }

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

// Spawn starts an actor in the host's system, whose lifetime does not depend
// on the host's. If M is not an interface, its messages can come over the
// network at once; for an interface, say gob.Register for each of its types,
// as with net/rpc. The error is about the name: it is in use, empty, longer
// than 255 bytes, reserved, or has a slash, @, # or a control character; or
// about a type that gob does not accept; or ErrClosed.
func Spawn[M any](in Host, name string, b Behavior[M]) (ActorRef[M], error) {
	err := checkName("actor", name)
	if name == receptionistName {
		err = errors.New("the name is reserved")
	}
	if err != nil {
		return ActorRef[M]{}, fmt.Errorf("casty: spawn %q: %w", name, err)
	}
	return spawn(in.system(), name, b)
}

// receptionistName is where each process's receptionist is found.
const receptionistName = "receptionist"

func spawn[M any](s *System, name string, b Behavior[M]) (ActorRef[M], error) {
	self, err := newActor[M](s, name, s.config.Mailbox)
	if err != nil {
		return ActorRef[M]{}, fmt.Errorf("casty: spawn %q: %w", name, err)
	}
	go func() {
		defer s.running.Done()
		reason := ErrStopped
		defer func() {
			if panicked := recover(); panicked != nil {
				reason = fmt.Errorf("%w: it panicked: %v", ErrStopped, panicked)
				s.config.Logger.Error("casty: an actor panicked", "actor", self.address.String(),
					"panic", panicked, "stack", string(debug.Stack()))
			}
			s.remove(self.cell, reason)
			for len(self.mailbox) > 0 {
				s.deadLetter(self.address, <-self.mailbox, reason)
			}
		}()
		b(self)
	}()
	return self.Ref(), nil
}

// newActor makes an actor that others can reach, and counts it as running.
func newActor[M any](s *System, name string, mailbox int) (*Actor[M], error) {
	var zero M
	if err := learn(zero); err != nil {
		return nil, err
	}
	self := &Actor[M]{in: s, mailbox: make(chan M, mailbox), cell: &cell{
		address:  Address{s.config.Name, s.host, name, rand.Text()[:10]},
		takes:    typeName[M](),
		mistaken: make(chan error, 1),
		watchers: map[*func(error)]struct{}{},
	}}
	self.deliver = func(msg any) error {
		m, ok := msg.(M)
		if !ok {
			return fmt.Errorf("%w: it takes %s, not %T", ErrWrongType, self.takes, msg)
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

// find returns the actor at an address of this process. The caller holds s.mu.
func (s *System) find(at Address) (*cell, error) {
	c := s.actors[at.Name]
	if c == nil || at.Incarnation != "" && at.Incarnation != c.address.Incarnation {
		return nil, fmt.Errorf("%w: no such actor", ErrStopped)
	}
	return c, nil
}

// remove takes an actor's name back and tells its watchers why.
func (s *System) remove(c *cell, reason error) {
	c.stop()
	s.mu.Lock()
	delete(s.actors, c.address.Name)
	watchers := c.watchers
	c.watchers = nil
	s.mu.Unlock()
	for fire := range watchers {
		(*fire)(reason)
	}
}

// local says whether an address is one of this process.
func (s *System) local(a Address) bool { return a.Host == s.host && a.System == s.config.Name }

// send is Tell before its error becomes a dead letter.
func (s *System) send(to Address, msg any) error {
	switch {
	case s.local(to):
		return s.deliver(to, msg)
	case s.network == nil || to.System != s.config.Name:
		return fmt.Errorf("%w: not in this process, nor in a cluster with it", ErrUnreachable)
	}
	return s.network.send(to, msg)
}

// deliver puts a message into a mailbox here. The lock is shared, and held so
// that no message slips into the mailbox of an actor that has just stopped.
func (s *System) deliver(to Address, msg any) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	c, err := s.find(to)
	if err != nil {
		return err
	}
	return c.deliver(msg)
}

// takes says which messages the actor at an address of this process is for.
func (s *System) takes(at Address) string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	c, err := s.find(at)
	if err != nil {
		return err.Error()
	}
	return "it takes " + c.takes
}

// watch is Watch with a callback, which must not block.
func (s *System) watch(target Address, takes string, fire func(error)) (cancel func()) {
	switch {
	case s.local(target):
		return s.watchHere(target, takes, fire)
	case s.network == nil || target.System != s.config.Name:
		fire(fmt.Errorf("%w: not in this process, nor in a cluster with it", ErrUnreachable))
		return func() {}
	}
	return s.network.watch(target, takes, fire)
}

// watchUntil is watch, cancelled when ctx ends.
func (s *System) watchUntil(ctx context.Context, target Address, takes string, fire func(error)) {
	ctx, done := context.WithCancel(ctx)
	cancel := s.watch(target, takes, func(err error) {
		if ctx.Err() == nil {
			fire(err)
			done()
		}
	})
	context.AfterFunc(ctx, cancel)
}

func (s *System) watchHere(target Address, takes string, fire func(error)) (cancel func()) {
	s.mu.Lock()
	c, err := s.find(target)
	if err == nil && takes != c.takes {
		err = fmt.Errorf("%w: %v takes %s, not %s", ErrWrongType, target, c.takes, takes)
		select {
		case c.mistaken <- err:
		default: // it has been told of another
		}
	}
	if err != nil {
		s.mu.Unlock()
		fire(err)
		return func() {}
	}
	c.watchers[&fire] = struct{}{}
	s.mu.Unlock()
	return func() {
		s.mu.Lock()
		delete(c.watchers, &fire)
		s.mu.Unlock()
	}
}

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

// Tell sends a message and never blocks. Messages from one actor to another
// arrive at most once, and in order while a connection lasts. One that cannot
// arrive is a dead letter where that is noticed, here or in the actor's
// process: tell when an answer is not needed, or use Ask, Watch or a stream.
//
// A message to this process is shared, not copied: do not change it later.
// One to another process has been encoded when Tell returns; a GobEncode in it
// must not tell actors anything.
func (r ActorRef[M]) Tell(from Host, msg M) {
	if err := r.tell(from, msg); err != nil {
		from.system().deadLetter(r.address, msg, err)
	}
}

func (r ActorRef[M]) tell(from Host, msg M) error { return from.system().send(r.address, msg) }

// Watch returns a channel that gets one error when the actor has stopped
// (ErrStopped), its process does not answer (ErrUnreachable) or its mailbox
// is for messages of another type (ErrWrongType); it gets nothing once ctx
// has ended. To watch an actor that had been unreachable, call Watch again.
func (r ActorRef[M]) Watch(ctx context.Context, from Host) <-chan error {
	ended := make(chan error, 1)
	from.system().watchUntil(ctx, r.address, typeName[M](), func(err error) { ended <- err })
	return ended
}

// Stop asks an actor of this system to stop, and does not wait for it: Watch
// tells when it has. A ref of another system is logged and ignored.
func Stop[M any](in Host, ref ActorRef[M]) {
	s := in.system()
	s.mu.RLock()
	defer s.mu.RUnlock()
	if !s.local(ref.address) {
		s.config.Logger.Warn("casty: stop", "actor", ref.String(), "reason", ErrNotLocal)
	} else if c, err := s.find(ref.address); err == nil {
		c.stop()
	}
}

// Ask sends the message that ask makes, and waits for the reply that is told
// to the ref in it. It returns early if ctx ends or the actor stops or becomes
// unreachable.
func Ask[M, R any](ctx context.Context, from Host, to ActorRef[M], ask func(replyTo ActorRef[R]) M) (R, error) {
	reply, err := askFor(ctx, from, to, ask)
	if err != nil {
		err = fmt.Errorf("casty: ask %v: %w", to, err)
	}
	return reply, err
}

func askFor[M, R any](ctx context.Context, from Host, to ActorRef[M], ask func(replyTo ActorRef[R]) M) (none R, _ error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s := from.system()
	self, err := newActor[R](s, "ask-"+rand.Text(), 1)
	if err != nil {
		return none, err
	}
	defer s.running.Done()
	defer s.remove(self.cell, ErrStopped)
	ended := to.Watch(ctx, from)
	if err := to.tell(from, ask(self.Ref())); err != nil {
		return none, err
	}
	select {
	case reply := <-self.mailbox:
		return reply, nil
	case err := <-ended:
		select {
		case reply := <-self.mailbox: // it had answered before it stopped
			return reply, nil
		default:
			return none, err
		}
	case <-ctx.Done():
		return none, context.Cause(ctx)
	case <-s.ctx.Done():
		return none, ErrClosed
	}
}

// brief is the text of an error for a peer, who must not choke on it.
func brief(err error) string {
	text := err.Error()
	return text[:min(len(text), 1024)]
}

func typeName[M any]() string { return reflect.TypeFor[M]().String() }

// learn tells gob the names of message types, and turns its panic about two
// types of one name into an error. What cannot cross the wire is harmless.
func learn(values ...any) (err error) {
	defer func() {
		if conflict := recover(); conflict != nil {
			err = fmt.Errorf("%v", conflict)
		}
	}()
	for _, value := range values {
		if value != nil { // the zero value of an interface type
			gob.Register(value)
		}
	}
	return nil
}
