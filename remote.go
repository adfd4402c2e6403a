package casty

// A message to an actor of another process goes through these hands:
//
//	Tell  →  outbox  →  writer  ══ connection ══  reader  →  mailbox  →  actor
//
// Tell encodes the message and appends it to an outbox. It does not wait: if 16 MiB
// wait already, the message is a dead letter; a stream waits at less, and sends its
// elements when there is room. The writer and the reader are the two goroutines of a
// link. The writer takes all that the outbox holds, and waits for the network only.
// The reader waits for nobody: a message to a full mailbox is a dead letter. Who
// owns whom:
//
//	remote              the network of a system
//	  routes, by host   what this process says to a host
//	    outbox          encoded messages that wait for the writer
//	    watches         what is asked about the host's actors, again and again
//	    link            the connection that carries the outbox
//
// A connection may lose whatever is written to it, at any time. These rules make
// that harmless to whatever is said again:
//
//   - A link is open once the peer has shown that it has our hello: by sending its own,
//     if we have dialled; otherwise by its first frame after its own.
//   - An outbox is for a host. Messages gather in it until a link to the host is
//     open, which carries it from then on, whoever has dialled; with that link it is
//     lost. If both sides dial at once, there are two links. Each process reads both
//     and writes to the one that was open first; when that one is lost, the other
//     carries what is said from its next heartbeat on. So a dial that hangs does not
//     hold up a peer that has dialled us, and no stranger gets what is said to a peer
//     whose connection is alive.
//   - A watch is a question that is asked once per heartbeat. The process that is
//     asked does not remember who watches its actors, and answers only if the
//     answer is no, as often as it is asked.
//   - When a connection is lost over which the peer may have said something, all
//     watches on the peer's actors get ErrUnreachable. Whoever still wants to know
//     asks again, over the next connection.
//
// # On the wire
//
// A connection carries frames both ways. A frame is four bytes of header, and a
// body of as many bytes as the header says. The header's top bit is a flag:
//
//	length n             a message
//	top bit, length n    the same, for a new decoder, see below
//	length 0             I am still here: once per heartbeat; never answered
//	top bit, length 0    I have said everything: hang up
//
// The body of a message has three parts. The second is a varint:
//
//	path of its actor, and a zero byte  |  number of its type  |  the message in gob
//
// gob describes what a type consists of only once, in the first message of an encoder
// that uses it. But nothing in a message says which Go type it is, unless it comes in an
// interface, with the type's name; and to write that and look it up, each time, takes
// longer than all the rest of a small message. So each encoder numbers the types of its
// messages. The first message of a type has 0 for a number, and comes as named{n, message},
// with an interface. The later ones have the number n, and come by themselves.
//
// So a connection needs one encoder and one decoder that live as long as it does,
// or are replaced together: that is what the flag says. Lengths keep the two ends
// in step: whatever gob makes of a body, the next frame begins behind it.
//
// The first frame each way is a hello, of which the body is gob alone; the dialler
// speaks first. What follows is for an actor or, with an empty path, for the
// process itself:
//
//	hello{Version, System, Host, ...}   who I am, what I am called, and what must be the same
//	hello{Refused}                      I do not talk to you, because
//	path   any message                  a message to the actor with that path
//	""     watching{Actor, Takes}       is your actor there, and does it take such messages?
//	""     mistaken{Actor, Takes}       no: it takes these or, if Takes is empty, it is not there
//	""     undecodable{Actor, ...}      I cannot decode your message to my actor
//
// # Who can be trusted
//
// Without TLS anyone who can connect can claim any address. As long as the real
// peer is connected, what is sent to it still goes to it alone, but what others
// say in its name is believed. A process that only dials is called by a random
// id, which cannot be guessed. With TLS, a node's certificate must be valid for the
// host in the address that it claims. Neither defends against a peer that is let in
// and means harm: gob is not hardened against hostile input beyond the limits set here.

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	protocolVersion = 3
	maxHello        = 4 << 10  // bytes of a hello
	maxHead         = 520      // bytes of a message before what gob makes of it: its actor's path, of 511 at most, and the number of its type
	maxNumber       = 1 << 16  // of a type: more than any program has
	maxTypes        = 64 << 10 // bytes that a frame may have beyond MaxMessage, for types: whether it describes them depends on what was sent before
	maxDescribed    = 4 << 20  // bytes that describe types to one decoder, which keeps them
	maxQueued       = 16 << 20 // bytes that may gather for a host
	maxBulk         = 1 << 19  // bytes after which a stream waits, see outbox.send; twice as much is no faster
	minShare        = 64 << 10 // bytes that a run may have in any case, see outbox.send
	readAhead       = 4 << 10  // bytes, which each connection has: room for a run of 128 small elements; twice as much is 3% faster at best
	maxDials        = 128      // under way at once, besides those to seeds: a node can meet a hundred others at once
	silence         = 3        // heartbeats without a byte, in or out, before a connection is given up
	patience        = 10       // heartbeats for the dial, for the handshake, and for the dialler's first frame after its hello, since its handshake may end later than ours

	freshBit  = 1 << 31            // in a frame's header: for a new decoder
	stillHere = "\x00\x00\x00\x00" // the two frames without a body
	hangUp    = "\x80\x00\x00\x00"
)

type (
	hello struct {
		Version      int
		System, Host string
		Heartbeat    time.Duration
		MaxMessage   int
		Refused      string
	}
	named struct {
		Number  uint64
		Message any
	}
	watching    struct{ Actor, Takes string }
	mistaken    struct{ Actor, Takes string }
	undecodable struct {
		Actor, Reason string
		Doubtful      bool // an earlier message could not be decoded either, and may be the reason
	}
)

// ---- The network, and its routes.

// A remote is a system's network.
type remote struct {
	system       *System
	listener     net.Listener    // nil for a client
	running      sync.WaitGroup  // the accept loop, and one goroutine for each link
	closing      context.Context // ends when close begins
	beginClosing context.CancelFunc

	mu     sync.Mutex        // guards routes, and the fields of routes and links that say so
	routes map[string]*route // by host
}

// newRemote makes a system's network, which accepts from listener unless that is nil.
func newRemote(s *System, listener net.Listener) *remote {
	learn(watching{}, mistaken{}, undecodable{})
	r := &remote{system: s, listener: listener, routes: map[string]*route{}}
	r.closing, r.beginClosing = context.WithCancel(context.Background())
	if listener != nil {
		r.running.Go(r.accept)
	}
	return r
}

// close waits until each open link has sent what is left: three heartbeats at most.
func (r *remote) close() error {
	r.mu.Lock() // so that nobody is about to be dialled
	r.beginClosing()
	r.mu.Unlock()
	defer r.running.Wait()
	if r.listener != nil {
		return r.listener.Close()
	}
	return nil
}

func (r *remote) heartbeats(n int) time.Duration {
	return time.Duration(n) * r.system.config.Heartbeat
}

// A route is what this process says to a host. It begins with the first message to
// the host, for which a link is dialled, or with a link that the host has dialled. It
// ends with the link that carries it: what is encoded for one connection relies on
// the types that were described there, and means nothing on another.
type route struct {
	outbox  *outbox
	link    *link             // guarded by remote.mu, like what follows
	watches map[*watch]bool   // on actors of the host
	asked   map[watching]bool // the questions that have been sent since the last heartbeat
}

// route returns the route to a host. If there is none it makes one, and begins to
// dial. The caller holds r.mu.
func (r *remote) route(host string) (*route, error) {
	switch way := r.routes[host]; {
	case way != nil:
		return way, nil
	case !dialable(host):
		return nil, fmt.Errorf("%w: not connected, and nobody can dial it", ErrUnreachable)
	case r.closing.Err() != nil:
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, ErrClosed)
	case r.dials() >= maxDials && !slices.Contains(r.system.config.Seeds, host):
		return nil, fmt.Errorf("%w: too many others are being dialled", ErrUnreachable)
	}
	l := newLink(r, host)
	r.running.Go(l.dial)
	return r.newRoute(host, l), nil
}

// dials counts the routes whose link is being dialled, and not open yet, but for those
// to seeds. The caller holds r.mu.
func (r *remote) dials() (n int) {
	for host, way := range r.routes {
		if way.link.dialled != "" && !way.link.open && !slices.Contains(r.system.config.Seeds, host) {
			n++
		}
	}
	return n
}

// newRoute makes the route that a link carries. The caller holds r.mu.
func (r *remote) newRoute(host string, l *link) *route {
	way := &route{link: l, outbox: newOutbox(r.system.config.MaxMessage), watches: map[*watch]bool{}, asked: map[watching]bool{}}
	r.routes[host] = way
	return way
}

func (r *remote) send(to Address, msg any) error {
	r.mu.Lock()
	way, err := r.route(to.Host)
	r.mu.Unlock()
	if err != nil {
		return err
	}
	return way.outbox.send(to, msg)
}

// watch asks at once, unless the same has been asked since the last heartbeat. The
// link asks again with each heartbeat.
func (r *remote) watch(w *watch) error {
	question := w.question()
	r.mu.Lock()
	way, err := r.route(w.target.Host)
	if err != nil {
		r.mu.Unlock()
		return err
	}
	asked := way.asked[question]
	way.watches[w], way.asked[question] = true, true
	r.mu.Unlock()
	if !asked {
		way.outbox.send(Address{}, question)
	}
	return nil
}

func (w *watch) question() watching { return watching{w.target.path(), w.takes} }

func (r *remote) forget(w *watch) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if way := r.routes[w.target.Host]; way != nil {
		delete(way.watches, w)
	}
}

// ---- What waits for the writer.

// A bulk is what its sender keeps, and could make smaller: a stream's run of elements.
type bulk interface{ count() int }

// An outbox is what gathers for a host. A message is encoded by its sender, who so
// learns if it cannot be. Since the writer takes all that there is at once, messages
// are batched while the network is busy, and none waits while it is not.
type outbox struct {
	wake  chan struct{} // tells the writer that there is something to do
	limit int           // bytes of a message

	mu      sync.Mutex // guards what follows
	out     bytes.Buffer
	enc     *gob.Encoder            // nil: the next message starts a new one
	numbers map[reflect.Type]uint64 // of the types that enc has named
	letters int                     // messages in out that nobody says again: dead letters, if out is lost
	aboard  map[Address]bool        // actors for which there is bulk in out
	room    chan struct{}           // closed when out is taken; nil: nobody waits for that
	err     error                   // why nothing more is taken
}

func newOutbox(limit int) *outbox {
	return &outbox{wake: make(chan struct{}, 1), limit: limit, aboard: map[Address]bool{}}
}

// send encodes a message to an actor or, without a name, to the process itself, unless
// too much has gathered; then the error says when to try again, see roomAhead in
// stream.go. The batch that is being written can be as large again, and is not counted.
func (o *outbox) send(to Address, msg any) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	full, largest := maxQueued, o.limit
	run, isRun := msg.(bulk)
	_, again := msg.(repeated)
	again = again || to.Name == "" // what processes say to each other is no user's message
	switch {
	case isRun && o.aboard[to]: // a second run waits, so that there is room for the first of other streams
		full = maxBulk
	case again && !isRun: // such messages are small, and without them nodes would be taken for dead
		full = 2 * maxQueued
	}
	if isRun && run.count() > 1 { // its share of maxBulk: a larger run fails, and its producer halves it
		largest = min(largest, max(maxBulk/(1+len(o.aboard)), minShare))
	}
	switch {
	case o.err != nil:
		return o.err
	case o.out.Len() > full:
		if o.room == nil {
			o.room = make(chan struct{})
		}
		return roomAhead{fmt.Errorf("%w: its connection has %d bytes waiting", ErrMailboxFull, o.out.Len()), o.room}
	}
	if err := o.encode(to, msg, largest); err != nil {
		return fmt.Errorf("%w: %w", ErrUnsendable, err)
	}
	if isRun {
		o.aboard[to] = true
	}
	if !again {
		o.letters++
	}
	poke(o.wake)
	return nil
}

// encode appends a frame to out, or nothing. With a message that fails, the types
// that it describes are cut off, too, though the encoder counts them as sent. So
// the next message starts with a new encoder.
func (o *outbox) encode(to Address, msg any, largest int) (err error) {
	start := o.out.Len()
	defer func() {
		if panicked := recover(); panicked != nil { // in somebody's GobEncode
			err = fmt.Errorf("encoding panicked: %v", panicked)
		}
		if err != nil {
			o.out.Truncate(start)
			o.enc = nil
		}
	}()
	flags := uint32(0)
	if o.enc == nil {
		o.enc, o.numbers, flags = gob.NewEncoder(&o.out), map[reflect.Type]uint64{}, freshBit
	}
	number := o.numbers[reflect.TypeOf(msg)]            // 0 for the first message of a type
	head := append(o.out.AvailableBuffer(), 0, 0, 0, 0) // the header, which is known last
	head = append(to.appendPath(head), 0)
	o.out.Write(binary.AppendUvarint(head, number))
	if err := o.encodeValue(number, msg); err != nil {
		return err
	}
	length := o.out.Len() - start - 4
	size := length
	if size > largest { // perhaps because of types, which do not count: what fits must not depend on what was sent before
		size, err = o.sizeOf(msg)
	}
	switch {
	case err != nil:
		return err
	case size > largest: // for a run that is larger than its share nobody reads this: the stream sends less
		return fmt.Errorf("its %d bytes are more than MaxMessage, %d", size, o.limit)
	case length > maxTypes+o.limit:
		return fmt.Errorf("its types take %d bytes to describe, which is more than %d", length-size, maxTypes)
	}
	binary.BigEndian.PutUint32(o.out.Bytes()[start:], flags|uint32(length))
	return nil
}

// encodeValue names the type of a message if it has no number yet. The type may be one
// that gob does not know, since no actor for it need have been spawned here.
func (o *outbox) encodeValue(number uint64, msg any) error {
	if number > 0 || msg == nil { // for nil, gob says that it cannot be sent
		return o.enc.Encode(msg)
	}
	if err := learn(msg); err != nil {
		return err
	}
	t := reflect.TypeOf(msg)
	o.numbers[t] = uint64(len(o.numbers) + 1)
	return o.enc.Encode(named{o.numbers[t], msg})
}

// sizeOf is how many bytes a message takes without its types. The message has just been
// encoded with them; to measure it, it is encoded again, and cut off.
func (o *outbox) sizeOf(msg any) (size int, err error) {
	end := o.out.Len()
	defer o.out.Truncate(end)
	err = o.enc.Encode(msg)
	return o.out.Len() - end, err
}

// take swaps what has gathered for out, which is empty and may have room already.
func (o *outbox) take(out *bytes.Buffer) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.out, *out = *out, o.out
	o.letters = 0
	o.emptied()
}

// emptied tells those who wait that it is worth sending again. The caller holds
// o.mu.
func (o *outbox) emptied() {
	clear(o.aboard)
	if o.room != nil {
		close(o.room)
		o.room = nil
	}
}

// discard refuses what is sent from now on, and returns how many messages had
// gathered that nobody says again.
func (o *outbox) discard(err error) (letters int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.err = err
	o.emptied()
	return o.letters
}

// relearn has the next message describe its types again.
func (o *outbox) relearn() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.enc = nil
}

// ---- A connection.

// A link is one connection, from before it is dialled until it is lost.
type link struct {
	remote  *remote
	dialled string        // the host that we dial; empty: the peer has dialled us
	opened  chan struct{} // poked when the link opens

	// Guarded by remote.mu. The goroutine of dial, talk and read alone writes them, and
	// may read them without the lock.
	peer string // what the peer calls itself; empty: it has not said hello
	open bool   // the peer has shown that it has our hello
}

func newLink(r *remote, dialled string) *link {
	return &link{remote: r, dialled: dialled, opened: make(chan struct{}, 1)}
}

// know notes who the peer is. From now on what is said to it gathers for this link, so
// that the peer is not dialled meanwhile, unless its host has a route already.
func (l *link) know(peer string) {
	r := l.remote
	r.mu.Lock()
	defer r.mu.Unlock()
	if l.peer = peer; r.routes[l.host()] == nil {
		r.newRoute(l.host(), l)
	}
}

// host is whose route the link is for: we may have dialled the peer by another name
// than its own.
func (l *link) host() string { return cmp.Or(l.dialled, l.peer) }

// begin opens a link, which so may carry the route. From now on the peer says once per
// heartbeat that it is there.
func (l *link) begin(raw *steady) {
	raw.reads = l.remote.heartbeats(silence)
	l.remote.mu.Lock()
	l.open = true
	l.remote.mu.Unlock()
	l.claim() // before anything is read that may be answered: an answer that finds no route has the peer dialled
	poke(l.opened)
}

// accept owns the listener. Only Close ends it.
func (r *remote) accept() {
	for r.closing.Err() == nil {
		conn, err := r.listener.Accept()
		if err != nil { // perhaps out of file descriptors, and others may be closed soon
			r.system.warn("accept", "casty: accept", "on", r.system.host, "reason", err)
			r.pause()
			continue
		}
		l := newLink(r, "")
		r.running.Go(func() { l.end(l.talk(conn)) })
	}
}

// dial has the whole life of a link that we dial.
func (l *link) dial() {
	r := l.remote
	ctx, cancel := context.WithTimeout(r.closing, r.heartbeats(patience))
	conn, err := r.system.config.Dial(ctx, l.dialled)
	cancel()
	if err == nil {
		err = l.talk(conn)
	}
	r.pause() // as long as the route is there, nobody dials the host again
	l.end(err)
}

// pause keeps what fails at once from being tried again in a tight loop. It is too
// short to be noticed.
func (r *remote) pause() { time.Sleep(r.heartbeats(1) / 64) }

// talk owns a connection: it shakes hands, then reads and writes until either fails,
// and says why. Whatever is to end the connection calls fail, which closes it, and so
// ends the reading and the writing. The first reason counts.
func (l *link) talk(conn net.Conn) error {
	r := l.remote
	ctx, fail := context.WithCancelCause(context.Background())
	defer conn.Close()
	context.AfterFunc(ctx, func() { conn.Close() })
	raw := &steady{Conn: conn, reads: r.heartbeats(patience), writes: r.heartbeats(silence)}
	secured := l.secure(raw)
	if err := l.handshake(secured, fail); err != nil {
		fail(err)
		err = context.Cause(ctx)
		from, _, _ := net.SplitHostPort(conn.RemoteAddr().String()) // without the port, so that all warnings about a host are of one kind
		with := cmp.Or(l.dialled, from)
		r.system.warn("handshake with "+with, "casty: no handshake", "with", with, "reason", plainly(err))
		return err
	}
	defer context.AfterFunc(r.closing, func() { // what is left is sent, but not for ever
		time.AfterFunc(r.heartbeats(silence), func() { fail(ErrClosed) })
	})()
	if l.dialled != "" { // the peer has answered our hello
		l.begin(raw)
	}
	var writing sync.WaitGroup
	writing.Go(func() { fail(l.write(ctx, secured)) })
	fail(l.read(secured, raw))
	writing.Wait() // end follows, and must find every route that the writer has claimed
	return context.Cause(ctx)
}

// handshake introduces both sides to each other, the dialler first, so that the
// other can say why it refuses. It has a limit as a whole, and fails when close
// begins, which does not wait for those who may never answer.
func (l *link) handshake(conn net.Conn, fail func(error)) error {
	r := l.remote
	defer time.AfterFunc(r.heartbeats(patience), func() { fail(os.ErrDeadlineExceeded) }).Stop()
	defer context.AfterFunc(r.closing, func() { fail(ErrClosed) })()
	if l.dialled == "" {
		err := l.meet(conn)
		return cmp.Or(err, r.greet(conn, err)) // also to say why not
	}
	if err := r.greet(conn, nil); err != nil {
		return err
	}
	return l.meet(conn)
}

// errRefused means that the peer and we will never talk, as things are.
var errRefused = errors.New("refused")

// greet says who we are, or why we do not talk to the peer: without our "refused: ",
// since the peer will add its own.
func (r *remote) greet(conn net.Conn, refusal error) error {
	cfg := r.system.config
	ours := hello{protocolVersion, cfg.Name, r.system.host, cfg.Heartbeat, cfg.MaxMessage, ""}
	if refusal != nil {
		ours.Refused = strings.TrimPrefix(brief(refusal), errRefused.Error()+": ")
	}
	var body bytes.Buffer
	if err := gob.NewEncoder(&body).Encode(ours); err != nil {
		return err
	}
	header := binary.BigEndian.AppendUint32(nil, freshBit|uint32(body.Len()))
	_, err := conn.Write(append(header, body.Bytes()...))
	return err
}

// meet reads the peer's hello, notes who the peer is, and says whether we talk to it.
func (l *link) meet(conn net.Conn) error {
	var theirs hello
	body, _, err := readFrame(conn, nil, maxHello)
	if err == nil {
		_, err = measure(body) // gob would allocate whatever a hello claims to hold
	}
	if err == nil {
		err = gob.NewDecoder(bytes.NewReader(body)).Decode(&theirs)
	}
	switch cfg := l.remote.system.config; {
	case errors.Is(err, errRefused): // because one end speaks TLS
		return err
	case err != nil:
		return fmt.Errorf("no hello: %w", err)
	case theirs.Refused != "":
		return fmt.Errorf("%w: the peer says: %s", errRefused, theirs.Refused)
	case theirs.Version != protocolVersion:
		return fmt.Errorf("%w: protocol version %d is not %d", errRefused, theirs.Version, protocolVersion)
	case theirs.System != cfg.Name:
		return fmt.Errorf("%w: system %q is not %q", errRefused, theirs.System, cfg.Name)
	case theirs.Heartbeat != cfg.Heartbeat:
		return fmt.Errorf("%w: a heartbeat of %v is not %v", errRefused, theirs.Heartbeat, cfg.Heartbeat)
	case theirs.MaxMessage != cfg.MaxMessage:
		return fmt.Errorf("%w: a MaxMessage of %d is not %d", errRefused, theirs.MaxMessage, cfg.MaxMessage)
	}
	err = checkHost(theirs.Host)
	if secured, ok := conn.(*tls.Conn); ok && err == nil {
		err = certified(secured.ConnectionState(), theirs.Host)
	}
	if err == nil {
		l.know(theirs.Host)
	}
	return err
}

// claim makes this link the one that carries the route to its host, and returns the
// route. If the link is not open yet, or another open link carries the route, there is
// nothing to write but heartbeats, and claim returns an empty one.
func (l *link) claim() *route {
	r := l.remote
	r.mu.Lock()
	defer r.mu.Unlock()
	switch way := r.routes[l.host()]; {
	case !l.open, way != nil && way.link != l && way.link.open:
		return &route{outbox: &outbox{}}
	case way == nil: // the other link, which carried it, is lost
		return r.newRoute(l.host(), l)
	default: // ours already, or messages have gathered for a link that is not open yet
		way.link = l
		return way
	}
}

// askAgain repeats the questions of all watches, once per heartbeat.
func (r *remote) askAgain(way *route) {
	r.mu.Lock()
	clear(way.asked)
	for w := range way.watches {
		way.asked[w.question()] = true
	}
	questions := slices.Collect(maps.Keys(way.asked))
	r.mu.Unlock() // an outbox may be busy with a large message, and all others would wait
	for _, question := range questions {
		way.outbox.send(Address{}, question)
	}
}

// write owns the sending side, until it fails or the peer has hung up.
func (l *link) write(ctx context.Context, conn net.Conn) error {
	way := l.claim()
	heartbeat := time.NewTicker(l.remote.heartbeats(1))
	defer heartbeat.Stop()
	var out bytes.Buffer
	for {
		last := "" // a frame without a body, to be written behind the messages
		select {
		case <-way.outbox.wake: // never, if the route is an empty one
		case <-l.opened:
		case <-heartbeat.C:
			last = stillHere
			out = bytes.Buffer{} // the memory that a burst needed is let go
		case <-l.remote.closing.Done():
			last = hangUp
		case <-ctx.Done():
		}
		if ctx.Err() != nil { // what is not taken can still be counted as lost
			return ctx.Err()
		}
		way = l.claim()
		if last == stillHere {
			l.remote.askAgain(way)
		}
		way.outbox.take(&out)
		out.WriteString(last)
		if _, err := out.WriteTo(conn); err != nil {
			return err
		}
		if last == hangUp {
			<-ctx.Done() // until the peer has hung up, too
			return ctx.Err()
		}
	}
}

// read owns the receiving side, and never waits for an actor.
func (l *link) read(conn net.Conn, raw *steady) error {
	limit := maxTypes + l.remote.system.config.MaxMessage
	in := bufio.NewReaderSize(conn, readAhead)
	dec := newDecoder()
	var body []byte
	for {
		next, fresh, err := readFrame(in, body, limit)
		if err != nil {
			return err
		}
		if !l.open { // the peer has dialled, and this shows that it has our hello
			l.begin(raw)
		}
		if fresh {
			dec = newDecoder()
		}
		body = next
		switch {
		case len(body) > 0:
			if err := l.understand(body, dec); err != nil {
				return err
			}
		case fresh: // hangUp
			return io.EOF
		default: // stillHere
			body = nil // the memory that a burst needed is let go
		}
	}
}

// A decoder is the other end of an encoder. A message that it cannot decode may be
// the one that describes a type, or names it. Then the decoder lacks that type, and
// will fail at messages that are as they should be: it is doubtful, until the sender
// begins a new encoder.
type decoder struct {
	gob       *gob.Decoder
	value     bytes.Reader            // what gob decodes
	types     map[uint64]reflect.Type // by number
	described int                     // bytes that have described types
	doubtful  bool
	path      string // the last message's: often the next one is for the same actor
}

func newDecoder() *decoder {
	d := &decoder{types: map[uint64]reflect.Type{}}
	d.gob = gob.NewDecoder(&d.value)
	return d
}

func (d *decoder) decode(number uint64, value []byte) (msg any, err error) {
	defer func() {
		if panicked := recover(); panicked != nil { // in somebody's GobDecode
			err = fmt.Errorf("decoding panicked: %v", panicked)
		}
	}()
	d.value.Reset(value)
	switch t := d.types[number]; {
	case number == 0:
		var first named
		if err = d.gob.Decode(&first); err == nil && first.Number <= maxNumber {
			d.types[first.Number] = reflect.TypeOf(first.Message)
		}
		return first.Message, err
	case t == nil: // the first message of the type could not be decoded
		err = d.gob.DecodeValue(reflect.Value{}) // which takes in the types, and skips the value
		return nil, cmp.Or(err, fmt.Errorf("its type, of number %d, has no name", number))
	default:
		decoded := reflect.New(t)
		err = d.gob.DecodeValue(decoded)
		return decoded.Elem().Interface(), err
	}
}

// understand decodes the message in a frame, and hands it on. Its error costs the
// connection. A message that cannot be decoded does not; it may cost some of its type
// that follow, see decoder.
func (l *link) understand(body []byte, dec *decoder) error {
	path, rest, ended := bytes.Cut(body, []byte{0})
	number, length := binary.Uvarint(rest)
	value := rest[max(length, 0):]
	types, err := measure(value)
	dec.described += types
	switch {
	case !ended || length <= 0 || len(body)-len(value) > maxHead:
		return fmt.Errorf("a frame of %d bytes holds no message", len(body))
	case err != nil:
		return err
	case dec.described > maxDescribed:
		return fmt.Errorf("the peer describes types in more than %d bytes", maxDescribed)
	}
	if dec.path != string(path) { // to compare allocates nothing, to convert does
		dec.path = string(path)
	}
	to := l.remote.system.actor(dec.path)
	if msg, err := dec.decode(number, value); err == nil {
		l.receive(to, msg)
	} else {
		l.reject(to, err, dec.doubtful)
		dec.doubtful = true
	}
	return nil
}

// receive acts upon what only processes say, and hands the rest to its actor.
func (l *link) receive(to Address, msg any) {
	r, s := l.remote, l.remote.system
	from := Address{System: s.config.Name, Host: l.peer}
	switch m := msg.(type) {
	case watching:
		if takes := s.takes(s.actor(m.Actor)); takes != m.Takes {
			r.send(from, mistaken{m.Actor, takes})
		}
	case mistaken:
		r.fire(l.reached(), m.concerns)
	case undecodable:
		ways := l.reached()
		for _, way := range ways {
			way.outbox.relearn()
		}
		r.fire(ways, m.concerns)
	default:
		if g, ok := msg.(gossip); ok && g.from() != l.peer {
			return
		}
		if err := s.deliver(from, to, msg); err != nil {
			s.deadLetter(to, msg, err)
		}
	}
}

// gossip is what processes say of themselves, in receptionist.go. It counts only if it
// comes from the process that it is about.
type gossip interface{ from() string }

// reject is about a message that could not be decoded, so that nobody can tell
// what it was: a dead letter, of which the sender is told. The log gives the type of the
// answer, as that of the message is not known.
func (l *link) reject(to Address, err error, doubtful bool) {
	s, answer := l.remote.system, undecodable{to.path(), brief(err), doubtful}
	s.deadLetter(to, answer, fmt.Errorf("%w; it takes %s", err, cmp.Or(s.takes(to), "nothing: no such actor")))
	l.remote.send(Address{Host: l.peer}, answer)
}

// actor is the address of the actor of this process that has a path.
func (s *System) actor(path string) Address {
	name, incarnation, _ := strings.Cut(path, "#")
	return Address{s.config.Name, s.host, name, incarnation}
}

// ---- What ends a watch: an answer, or a lost connection.

// concerns is why the answer ends a watch: its actor is gone, or takes messages of
// another type. Others may watch the same actor, and be right about the type.
func (m mistaken) concerns(w *watch) error {
	if w.target.path() != m.Actor || w.takes == m.Takes {
		return nil
	}
	return mismatch(m.Takes, w.takes)
}

// concerns is why the message ends a watch: who watches an actor that cannot be
// told something probably waits for an answer.
func (m undecodable) concerns(w *watch) error {
	switch {
	case w.target.path() != m.Actor:
		return nil
	case m.Doubtful: // to say it again, with a new encoder, may help
		return fmt.Errorf("%w: a message to it was lost", ErrUnreachable)
	}
	return fmt.Errorf("%w: the other end cannot decode it: %s", ErrUnsendable, m.Reason)
}

// reached are the routes that an answer on this link may concern, or its loss: the one
// that it carries and, once the peer has said hello, all others to the same peer. For
// there are two links if both have dialled, and each process chooses where it writes;
// and we may have dialled the peer by another name, too.
func (l *link) reached() (ways []*route) {
	l.remote.mu.Lock()
	defer l.remote.mu.Unlock()
	for host, way := range l.remote.routes {
		if way.link == l || l.peer != "" && (host == l.peer || way.link.peer == l.peer) {
			ways = append(ways, way)
		}
	}
	return ways
}

// fire ends the watches that have a reason to.
func (r *remote) fire(ways []*route, why func(*watch) error) {
	fired := map[*watch]error{}
	r.mu.Lock()
	for _, way := range ways {
		for w := range way.watches {
			if err := why(w); err != nil {
				fired[w] = err
				delete(way.watches, w)          // so that it is fired once
				delete(way.asked, w.question()) // so that whoever watches from now on is answered at once, too
			}
		}
	}
	r.mu.Unlock()
	for w, err := range fired {
		w.fire(err)
	}
}

// end follows a lost connection, or one that never came about. The route that the
// link carries ends with it: messages that still wait in the outbox, and that
// nobody says again, are counted as dead letters.
func (l *link) end(err error) {
	r, s := l.remote, l.remote.system
	err = fmt.Errorf("%w: %w", ErrUnreachable, plainly(err))
	to, letters := cmp.Or(l.peer, l.dialled), 0
	ways := l.reached()
	r.mu.Lock()
	for host, way := range r.routes {
		if way.link == l { // one at most
			delete(r.routes, host)
			letters = way.outbox.discard(err)
		}
	}
	r.mu.Unlock()
	what := "casty: no connection"
	if l.open {
		what = "casty: lost a connection"
	}
	s.config.Logger.Debug(what, "to", to, "reason", err)
	if letters > 0 {
		s.deadLetters.Add(uint64(letters))
		s.warn("dead letters: lost", "casty: dead letters", "to", to, "messages", letters, "reason", err)
	}
	r.fire(ways, func(*watch) error { return err })
	// Until the peer notices, it may write replies to the dead connection, and a reply
	// is said only once. So those who have asked since, over another connection, are
	// told, too, if they still wait when the peer must have noticed.
	time.AfterFunc(r.heartbeats(silence+1), func() {
		r.fire(l.reached(), func(w *watch) error {
			if w.asks {
				return err
			}
			return nil
		})
	})
}

// ---- What connections are made of.

// secure adds TLS to a connection, if it is configured.
func (l *link) secure(conn net.Conn) net.Conn {
	cfg := l.remote.system.config.TLS.Clone() // nil, if TLS is
	switch {
	case cfg == nil:
		return conn
	case l.dialled == "":
		cfg.ClientAuth = tls.RequireAndVerifyClientCert
		cfg.ClientCAs = cmp.Or(cfg.ClientCAs, cfg.RootCAs)
		return tls.Server(conn, cfg)
	case cfg.ServerName == "":
		cfg.ServerName, _, _ = net.SplitHostPort(l.dialled)
	}
	return tls.Client(conn, cfg)
}

// certified is nil if a certificate that was verified is valid for a host. It looks
// at what was verified, since a callback in the configuration may have demanded
// less. A random id needs no certificate of its own.
func certified(state tls.ConnectionState, host string) error {
	if len(state.VerifiedChains) == 0 {
		return fmt.Errorf("%w: no certificate was verified", errRefused)
	}
	if name, _, err := net.SplitHostPort(host); err == nil {
		if err := state.PeerCertificates[0].VerifyHostname(name); err != nil {
			return fmt.Errorf("%w: %w", errRefused, err)
		}
	}
	return nil
}

// plainly puts into words what went wrong with a connection, and tells the
// peers that will never talk to us from those that might.
func plainly(err error) error {
	var notTLS tls.RecordHeaderError
	var unverified *tls.CertificateVerificationError
	var op *net.OpError
	switch {
	case errors.As(err, &notTLS):
		return fmt.Errorf("%w: the peer does not speak TLS", errRefused)
	case errors.As(err, &unverified):
		return fmt.Errorf("%w: %w", errRefused, unverified)
	case errors.As(err, &op) && op.Op == "remote error": // TLS's
		return fmt.Errorf("%w: the peer says: %w", errRefused, op.Err)
	case errors.As(err, &op) && op.Op == "dial":
		return op.Err // without the address, which whoever is told knows
	case errors.Is(err, io.EOF):
		return errors.New("the peer has closed the connection")
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("the peer is silent: %w", os.ErrDeadlineExceeded)
	}
	return err
}

// A steady connection lets a message take as long as it needs, and fails when
// nothing at all of it has come or gone for too long. It is below TLS, which does
// not go on after a write that was cut short.
type steady struct {
	net.Conn
	reads, writes time.Duration // how long is too long
}

func (c *steady) Read(p []byte) (int, error) {
	c.SetReadDeadline(time.Now().Add(c.reads))
	return c.Conn.Read(p)
}

func (c *steady) Write(p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		c.SetWriteDeadline(time.Now().Add(c.writes))
		var taken int
		if taken, err = c.Conn.Write(p[n:]); taken > 0 && errors.Is(err, os.ErrDeadlineExceeded) {
			err = nil // the peer reads slowly
		}
		n += taken
	}
	return n, err
}

// readFrame reads the next frame, into body if it fits there.
func readFrame(in io.Reader, body []byte, limit int) (_ []byte, fresh bool, err error) {
	var header [4]byte
	if _, err := io.ReadFull(in, header[:]); err != nil {
		return nil, false, err
	}
	size := binary.BigEndian.Uint32(header[:])
	fresh = size&freshBit != 0
	size &^= freshBit
	switch {
	case int64(size) <= int64(limit):
	case header[0] == 0x16 || header[0] == 0x15: // how TLS begins a handshake, or an alert
		return nil, false, fmt.Errorf("%w: the peer speaks TLS", errRefused)
	default:
		return nil, false, fmt.Errorf("it begins with %q: a message of %d bytes is larger than the limit, %d", header, size, limit)
	}
	body = slices.Grow(body[:0], int(size))[:size]
	_, err = io.ReadFull(in, body)
	return body, fresh, err
}

// measure takes apart what gob has put together: the descriptions of any number of
// types, and the value. It returns how many bytes the types take. Each item stands
// behind its length, and begins with the number of a type, which is negative if that
// type is described; gob writes negative numbers as odd ones. What is not whole is not
// for gob, which would allocate what it claims to hold.
func measure(message []byte) (types int, err error) {
	for rest := message; len(rest) > 0; {
		size, behind, whole := cutUint(rest)
		if !whole || size > uint64(len(behind)) {
			return types, errors.New("a message claims more than it holds")
		}
		item, next := behind[:size], behind[size:]
		if number, _, _ := cutUint(item); number%2 == 1 {
			types += len(rest) - len(next)
		}
		rest = next
	}
	return types, nil
}

// cutUint cuts off a number as gob writes it: as one byte, if it is less than 128;
// otherwise the first byte, as a signed one, is minus how many bytes follow.
func cutUint(b []byte) (n uint64, rest []byte, whole bool) {
	if len(b) == 0 {
		return 0, b, false
	}
	if b[0] < 128 {
		return uint64(b[0]), b[1:], true
	}
	digits := -int(int8(b[0]))
	if digits > 8 || digits >= len(b) {
		return 0, b, false
	}
	for _, digit := range b[1 : 1+digits] {
		n = n<<8 | uint64(digit)
	}
	return n, b[1+digits:], true
}
