package casty

// Processes exchange frames over TCP connections, used both ways. A frame is
// four bytes of header and a body:
//
//	length 0             I am still here: once per heartbeat; never answered
//	length n             n bytes of gob: one envelope, and the types that it is the first to use
//	top bit, length n    the same, for a new gob decoder
//	top bit, length 0    I have said everything: hang up
//
// The first frame each way is a hello; the dialler speaks first. What follows
// are envelopes, addressed to an actor or, with an empty To, to the process:
//
//	hello{Version, System, Host, ...}         who I am, what I am called, and what must be the same
//	hello{Refused}                            I do not talk to you, because
//	envelope{To, message}                     a message to the actor To
//	envelope{watching{Actor, Takes}}          I count on your actor, which takes such messages: at first, and once per heartbeat
//	envelope{mistaken{Actor, Takes}}          you should not: it takes these or, if that is empty, it is not there
//	envelope{undecodable{Actor, Reason}}      I could not decode your message to that actor; describe your types again
//
// A connection is a pipe that may lose its contents, and nothing relies on it:
//
//   - What is sent to a host gathers with the peer, whether there is a connection
//     or not. The first connection that has shaken hands carries it, ours or
//     theirs, until it is lost. Another, after both sides have dialled at once,
//     is read all the same, and takes over within a heartbeat. So a dial that
//     hangs holds nothing up, and a connection that is alive is never replaced
//     by one that claims the same peer.
//   - Nothing is remembered for a peer that watches an actor here. It asks again
//     once per heartbeat, and is contradicted as often.
//   - Losing a connection that the peer may have used is ErrUnreachable for all
//     watches on the peer's actors, because an answer may have been lost with it.
//
// gob describes a type once per encoder, so a peer has one encoder until the
// connection that carries its messages is lost. The frames keep the two ends in
// step: whatever gob makes of a body, the next frame is where it should be.
//
// Without TLS anyone who can connect can claim any address that is not
// connected; the ids of clients cannot be guessed. With TLS, a peer's
// certificate must be valid for the address that it claims. Neither defends
// against a peer that is let in and means harm: gob is not hardened against
// hostile input beyond the limits set here.

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
	protocolVersion = 2
	freshBit        = 1 << 31  // in a frame's header: start a new decoder
	maxHello        = 4 << 10  // bytes of a hello
	maxQueued       = 16 << 20 // bytes that may gather for a peer
	maxBulk         = 1 << 20  // the same, of runs of elements: enough to keep a connection busy, and little to wait behind
	minShare        = 64 << 10 // bytes of a run of elements, however many streams share a connection
	maxDials        = 64       // under way at once, seeds apart
	silence         = 3        // heartbeats without a byte, in or out, before a connection is given up
	patience        = 10       // heartbeats for dialling, for the handshake and for the first frame behind it
)

var errRefused = errors.New("refused")

type (
	hello struct {
		Version      int
		System, Host string
		Heartbeat    time.Duration
		MaxMessage   int
		Refused      string
	}
	envelope struct {
		To      string // the actor's name#incarnation; empty: the process itself
		Message any
	}
	watching struct{ Actor, Takes string }
	mistaken struct{ Actor, Takes string }
	// undecodable names no actor if the message may only have lacked types that
	// an earlier one, which could not be decoded either, had described.
	undecodable struct{ Actor, Reason string }
)

// gossip is what processes say of themselves. It counts only if it comes from
// the process that it is about.
type gossip interface{ from() string }

// bulk is a message that its sender keeps and can make smaller.
type bulk interface{ count() int }

// remote is a system's network.
type remote struct {
	system   *System
	listener net.Listener       // nil for a client
	running  sync.WaitGroup     // the accept loop, and one goroutine for each link
	closing  context.Context    // ends when close begins
	finish   context.CancelFunc // begins it
	ctx      context.Context    // ends when every connection has to
	cancel   context.CancelFunc

	mu    sync.Mutex       // guards peers, and the fields of peers and links that say so
	peers map[string]*peer // by host
}

// newRemote makes a system's network, which accepts from listener unless that is nil.
func newRemote(s *System, listener net.Listener) *remote {
	learn(watching{}, mistaken{}, undecodable{})
	r := &remote{system: s, listener: listener, peers: map[string]*peer{}}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	r.closing, r.finish = context.WithCancel(r.ctx)
	if listener != nil {
		r.running.Go(r.accept)
	}
	return r
}

// listen binds a node, and tells what its peers dial.
func listen(cfg Config) (listener net.Listener, address string, err error) {
	if listener = cfg.Listener; listener == nil {
		if listener, err = net.Listen("tcp", cmp.Or(cfg.Address, "127.0.0.1:0")); err != nil {
			return nil, "", err
		}
	}
	if address, err = dialled(cfg.Address, listener.Addr().String()); err != nil {
		listener.Close()
		return nil, "", err
	}
	if at, ok := listener.Addr().(*net.TCPAddr); ok && !at.IP.IsLoopback() && cfg.TLS == nil {
		cfg.Logger.Warn("casty: listening without TLS: whoever can connect can send anything to any actor", "on", at.String())
	}
	return listener, address, nil
}

// dialled is the address that peers dial: the one wanted, if any, with the port
// that is listened on if it leaves that open.
func dialled(wanted, bound string) (string, error) {
	host, port, err := net.SplitHostPort(cmp.Or(wanted, bound))
	if err != nil {
		return "", err
	}
	if port == "0" {
		_, port, _ = net.SplitHostPort(bound)
	}
	address := net.JoinHostPort(host, port)
	if net.ParseIP(host).IsUnspecified() {
		return "", fmt.Errorf("peers cannot dial %s: set Listener to listen on all interfaces", address)
	}
	return address, checkHost(address)
}

// close sends what is under way, waits a little for peers to take it, and
// closes every connection.
func (r *remote) close() error {
	r.mu.Lock() // so that nobody is about to be dialled
	r.finish()
	r.mu.Unlock()
	defer time.AfterFunc(r.heartbeats(silence), r.cancel).Stop()
	defer r.running.Wait()
	if r.listener != nil {
		return r.listener.Close()
	}
	return nil
}

func (r *remote) heartbeats(n int) time.Duration {
	return time.Duration(n) * r.system.config.Heartbeat
}

// rest returns after a while, or when close begins.
func (r *remote) rest(d time.Duration) {
	select {
	case <-time.After(d):
	case <-r.closing.Done():
	}
}

// accept owns the listener. Only Close ends it.
func (r *remote) accept() {
	for r.closing.Err() == nil {
		conn, err := r.listener.Accept()
		if err == nil {
			l := &link{remote: r, state: greeting}
			r.running.Go(func() { l.end(l.serve(conn)) })
		} else if r.closing.Err() == nil { // out of file descriptors, perhaps: others may be closed soon
			r.system.config.Logger.Error("casty: accept", "on", r.system.host, "error", err)
			r.rest(r.heartbeats(1))
		}
	}
}

func (r *remote) send(to Address, msg any) error {
	r.mu.Lock()
	p, err := r.peer(to.Host)
	r.mu.Unlock()
	if err != nil {
		return err
	}
	return p.outbox.send(envelope{to.path(), msg})
}

// watch asks at once, unless the same is being asked already.
func (r *remote) watch(w *watch) error {
	r.mu.Lock()
	p, err := r.peer(w.target.Host)
	if err != nil {
		r.mu.Unlock()
		return err
	}
	question := w.question()
	asked := p.watches[question] != nil
	if !asked {
		p.watches[question] = map[*watch]bool{}
	}
	p.watches[question][w] = true
	r.mu.Unlock()
	if !asked {
		p.outbox.send(envelope{Message: question}) // or with the next heartbeat
	}
	return nil
}

func (r *remote) forget(w *watch) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := r.peers[w.target.Host]; p != nil {
		delete(p.watches[w.question()], w)
		if len(p.watches[w.question()]) == 0 {
			delete(p.watches, w.question())
		}
	}
}

func (w *watch) question() watching { return watching{w.target.path(), w.takes} }

// A peer is a host as a sender sees it, from the first message to it until the
// connection that carries them is lost.
type peer struct {
	outbox  *outbox
	link    *link                        // carries the outbox, once it is open; guarded by remote.mu
	watches map[watching]map[*watch]bool // of actors there; guarded by remote.mu
}

// peer returns what gathers for a host. If that is new it dials, and does not
// wait. The caller holds r.mu.
func (r *remote) peer(host string) (*peer, error) {
	switch p := r.peers[host]; {
	case p != nil:
		return p, nil
	case !dialable(host):
		return nil, fmt.Errorf("%w: not connected, and nobody can dial it", ErrUnreachable)
	case r.closing.Err() != nil:
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, ErrClosed)
	case r.dialling() >= maxDials && !slices.Contains(r.system.config.Seeds, host):
		return nil, fmt.Errorf("%w: too many others are being dialled", ErrUnreachable)
	}
	l := &link{remote: r, host: host}
	r.running.Go(func() {
		err := l.dial()
		r.rest(r.heartbeats(1) / 64) // so that one who refuses us is not dialled in a tight loop
		l.end(err)
	})
	return r.newPeer(l), nil
}

// dialling counts the peers that are not connected yet. The caller holds r.mu.
func (r *remote) dialling() (n int) {
	for _, p := range r.peers {
		if p.link.state != open {
			n++
		}
	}
	return n
}

// newPeer makes the peer that a link carries messages for. The caller holds r.mu.
func (r *remote) newPeer(l *link) *peer {
	p := &peer{link: l, outbox: newOutbox(r.system.config.MaxMessage), watches: map[watching]map[*watch]bool{}}
	r.peers[l.host] = p
	return p
}

// An outbox is what gathers for a peer. A message is encoded by its sender, who
// so learns if it cannot be. The link's writer takes all that there is at once:
// messages are batched while the network is busy, and none waits while it is not.
type outbox struct {
	wake  chan struct{} // tells the writer that there is something to do
	limit int           // bytes of a message

	mu      sync.Mutex // guards what follows
	out     bytes.Buffer
	enc     *gob.Encoder          // nil: the next message starts a new one
	learnt  map[reflect.Type]bool // types of messages that gob knows
	letters int                   // messages in out that are dead letters if they get lost
	aboard  map[string]bool       // actors with bulk in out
	room    chan struct{}         // closed when out is taken; nil: nobody waits for that
	err     error                 // the peer is lost, and takes nothing more
}

func newOutbox(limit int) *outbox {
	return &outbox{wake: make(chan struct{}, 1), limit: limit, learnt: map[reflect.Type]bool{}, aboard: map[string]bool{}}
}

// send encodes a message for the writer, unless too much has gathered: the
// sender is told then, and when to try again. What is being written is as much
// again.
func (o *outbox) send(msg envelope) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	room, limit := o.terms(msg)
	switch {
	case o.err != nil:
		return o.err
	case o.out.Len() > room:
		if o.room == nil {
			o.room = make(chan struct{})
		}
		return roomAhead{fmt.Errorf("%w: its connection has %d bytes waiting", ErrMailboxFull, o.out.Len()), o.room}
	}
	if err := o.encode(msg, limit); err != nil {
		return fmt.Errorf("%w: %w", ErrUnsendable, err)
	}
	if _, ok := msg.Message.(bulk); ok {
		o.aboard[msg.To] = true
	}
	if _, again := msg.Message.(repeated); !again && msg.To != "" {
		o.letters++
	}
	poke(o.wake)
	return nil
}

// terms are how much may have gathered before a message, and how large it may
// be. The less its sender can wait, the more may have gathered:
//
//   - bulk, which its sender keeps: maxBulk, or if none is waiting for the same
//     actor, maxQueued, so that each stream has its turn. No bulk is larger than
//     a share of maxBulk, but for a single element, which cannot be less than it is;
//   - what users send: maxQueued;
//   - what processes say, which is little, and keeps others from giving us up:
//     twice that.
func (o *outbox) terms(msg envelope) (room, limit int) {
	room, limit = maxQueued, o.limit
	if b, ok := msg.Message.(bulk); ok {
		if b.count() > 1 {
			limit = min(limit, max(maxBulk/(1+len(o.aboard)), minShare))
		}
		if o.aboard[msg.To] {
			room = maxBulk
		}
	}
	if _, ok := msg.Message.(gossip); ok || msg.To == "" {
		room = 2 * maxQueued
	}
	return room, limit
}

// encode appends a frame to out, or nothing: a message that fails may have been
// the first of its types, so it takes the encoder that has described them with
// it, and the next message starts with a new one.
func (o *outbox) encode(msg envelope, limit int) (err error) {
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
	if t := reflect.TypeOf(msg.Message); !o.learnt[t] {
		if err := learn(msg.Message); err != nil {
			return err
		}
		o.learnt[t] = true
	}
	header := uint32(0)
	if o.enc == nil {
		o.enc = gob.NewEncoder(&o.out)
		header = freshBit
	}
	o.out.Write(make([]byte, 4))
	if err := o.enc.Encode(msg); err != nil {
		return err
	}
	frame := o.out.Bytes()[start:]
	size := len(frame) - 4
	if size > limit {
		return fmt.Errorf("its %d bytes are more than MaxMessage, %d", size, limit)
	}
	binary.BigEndian.PutUint32(frame, header|uint32(size))
	return nil
}

// take adds a header to what has gathered, and swaps that for an empty buffer:
// the two take turns.
func (o *outbox) take(out *bytes.Buffer, header []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.out, *out = *out, o.out
	o.letters = 0
	out.Write(header)
	o.makeRoom()
}

// makeRoom tells those who wait that it is worth sending again. The caller
// holds o.mu.
func (o *outbox) makeRoom() {
	clear(o.aboard)
	if o.room != nil {
		close(o.room)
		o.room = nil
	}
}

// discard refuses what is sent from now on, and returns how many dead letters
// had gathered.
func (o *outbox) discard(err error) (letters int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.err = err
	o.makeRoom()
	return o.letters
}

// relearn has the next message describe its types again.
func (o *outbox) relearn() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.enc = nil
}

// A link is one connection, from before it is dialled until it is lost.
type link struct {
	remote *remote
	host   string    // what was dialled or, if the peer has dialled, what it is called
	called string    // what the peer calls itself; guarded by remote.mu, until the link is open
	state  linkState // guarded by remote.mu
}

type linkState int

const (
	dialling linkState = iota
	greeting           // the peer may have heard of the connection, and use it
	open               // both have
)

// become changes the link's state.
func (l *link) become(state linkState, host, called string) {
	l.remote.mu.Lock()
	defer l.remote.mu.Unlock()
	l.state, l.host, l.called = state, host, called
}

// claim returns the outbox that the link is to carry: a blank one while another
// link carries the peer's.
func (l *link) claim() *outbox {
	r := l.remote
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.peers[l.host]
	switch {
	case p == nil:
		p = r.newPeer(l)
	case p.link != l && p.link.state == open:
		return &outbox{}
	}
	p.link = l
	return p.outbox
}

// reaches says whether a peer may be the process at the other end, which can go
// by several names. The caller holds remote.mu.
func (l *link) reaches(host string, p *peer) bool {
	return p.link == l || l.state != dialling && (host == l.host || l.called != "" && p.link.called == l.called)
}

// ask says again, once per heartbeat, what is counted on at the peer whose
// messages this link carries.
func (l *link) ask() {
	l.remote.mu.Lock()
	p := l.remote.peers[l.host]
	if p == nil || p.link != l {
		p = &peer{} // another link asks
	}
	questions := slices.Collect(maps.Keys(p.watches))
	l.remote.mu.Unlock()
	for _, question := range questions {
		p.outbox.send(envelope{Message: question})
	}
}

// fire ends the watches on the process at the other end that have a reason to.
// Before anybody else can watch it, then is called.
func (l *link) fire(why func(watching) error, then func()) {
	fired := map[*watch]error{}
	l.remote.mu.Lock()
	for host, p := range l.remote.peers {
		for question, watches := range p.watches {
			if err := why(question); err != nil && l.reaches(host, p) {
				delete(p.watches, question)
				for w := range watches {
					fired[w] = err
				}
			}
		}
	}
	then()
	l.remote.mu.Unlock()
	for w, err := range fired {
		w.fire(err)
	}
}

// end tells those who watch the process at the other end that a connection with
// it is lost, and with it what we had to send on it: what had not even been
// written is so many dead letters.
func (l *link) end(err error) {
	letters := 0
	l.fire(func(watching) error { return err }, func() {
		if p := l.remote.peers[l.host]; p != nil && p.link == l {
			delete(l.remote.peers, l.host)
			letters = p.outbox.discard(err)
		}
	})
	if s := l.remote.system; letters > 0 {
		s.deadLetters.Add(uint64(letters))
		s.warn("dead letters: lost", "casty: dead letters", "to", l.host, "messages", letters, "reason", err)
	}
}

func (l *link) dial() error {
	cfg := l.remote.system.config
	ctx, cancel := context.WithTimeout(l.remote.closing, l.remote.heartbeats(patience))
	defer cancel()
	conn, err := cfg.Dial(ctx, l.host)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnreachable, plainly(err))
	}
	l.become(greeting, l.host, "")
	conn = persistent{conn, l.remote.heartbeats(silence)}
	if cfg.TLS != nil {
		secure := cfg.TLS.Clone()
		if secure.ServerName == "" {
			secure.ServerName, _, _ = net.SplitHostPort(l.host)
		}
		conn = tls.Client(conn, secure)
	}
	return l.talk(conn, l.host, true)
}

func (l *link) serve(conn net.Conn) error {
	peer := conn.RemoteAddr().String()
	if host, _, err := net.SplitHostPort(peer); err == nil {
		peer = host
	}
	conn = persistent{conn, l.remote.heartbeats(silence)}
	if cfg := l.remote.system.config; cfg.TLS != nil {
		conn = tls.Server(conn, demanding(cfg.TLS))
	}
	return l.talk(conn, peer, false)
}

// demanding requires a certificate, also of those for whom a callback chooses
// another configuration.
func demanding(cfg *tls.Config) *tls.Config {
	secure := cfg.Clone()
	secure.ClientAuth = tls.RequireAndVerifyClientCert
	if secure.ClientCAs == nil {
		secure.ClientCAs = secure.RootCAs
	}
	if choose := cfg.GetConfigForClient; choose != nil {
		secure.GetConfigForClient = func(client *tls.ClientHelloInfo) (*tls.Config, error) {
			chosen, err := choose(client)
			if chosen != nil {
				chosen = demanding(chosen)
			}
			return chosen, err
		}
	}
	return secure
}

// shake introduces both sides to each other, the dialler first, so that the
// other can say why it refuses.
func (r *remote) shake(conn net.Conn, dialler bool) (theirs hello, err error) {
	if dialler {
		if err := r.greet(conn, ""); err != nil {
			return theirs, err
		}
		return r.meet(conn)
	}
	if theirs, err = r.meet(conn); err != nil {
		r.greet(conn, strings.TrimPrefix(brief(err), errRefused.Error()+": "))
		return theirs, err
	}
	return theirs, r.greet(conn, "")
}

// greet says who we are, or why we do not talk to the peer.
func (r *remote) greet(conn net.Conn, refused string) error {
	var frame bytes.Buffer
	frame.Write(make([]byte, 4))
	cfg := r.system.config
	err := gob.NewEncoder(&frame).Encode(hello{protocolVersion, cfg.Name, r.system.host, cfg.Heartbeat, cfg.MaxMessage, refused})
	if err == nil {
		binary.BigEndian.PutUint32(frame.Bytes(), uint32(frame.Len()-4)|freshBit)
		_, err = conn.Write(frame.Bytes())
	}
	return err
}

// meet reads the peer's hello, and says whether we talk to it.
func (r *remote) meet(conn net.Conn) (theirs hello, err error) {
	body, _, err := readFrame(conn, nil, maxHello)
	if err == nil {
		err = gob.NewDecoder(bytes.NewReader(body)).Decode(&theirs)
	}
	if err != nil {
		return theirs, fmt.Errorf("no hello: %w", err)
	}
	switch cfg := r.system.config; {
	case theirs.Refused != "":
		return theirs, fmt.Errorf("%w: the peer says: %s", errRefused, theirs.Refused)
	case theirs.Version != protocolVersion:
		return theirs, fmt.Errorf("%w: protocol version %d is not %d", errRefused, theirs.Version, protocolVersion)
	case theirs.System != cfg.Name:
		return theirs, fmt.Errorf("%w: system %q is not %q", errRefused, theirs.System, cfg.Name)
	case theirs.Heartbeat != cfg.Heartbeat:
		return theirs, fmt.Errorf("%w: a heartbeat of %v is not %v", errRefused, theirs.Heartbeat, cfg.Heartbeat)
	case theirs.MaxMessage != cfg.MaxMessage:
		return theirs, fmt.Errorf("%w: a MaxMessage of %d is not %d", errRefused, theirs.MaxMessage, cfg.MaxMessage)
	}
	if err := checkHost(theirs.Host); err != nil {
		return theirs, err
	}
	if r.system.config.TLS != nil {
		return theirs, vouches(conn.(*tls.Conn).ConnectionState(), theirs.Host)
	}
	return theirs, nil
}

// vouches is nil if a certificate that was verified is valid for a host. An id
// is anybody's.
func vouches(state tls.ConnectionState, host string) error {
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
	case errors.Is(err, errSpeaksTLS):
		return fmt.Errorf("%w: %w", errRefused, errSpeaksTLS)
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

// These begin what a peer says that speaks TLS.
const (
	tlsAlert     = 0x15
	tlsHandshake = 0x16
)

var errSpeaksTLS = errors.New("the peer speaks TLS")

// talk owns a connection: it shakes hands, then reads and writes until either
// fails, and says why.
func (l *link) talk(conn net.Conn, peer string, dialler bool) error {
	r := l.remote
	defer conn.Close()
	ctx, cancel := context.WithCancel(r.ctx)
	defer context.AfterFunc(ctx, func() { conn.Close() })() // what ends the writing ends the reading, and the reverse
	defer cancel()
	shaken := context.AfterFunc(r.closing, cancel) // Close does not wait for those who may never answer
	conn.SetDeadline(time.Now().Add(r.heartbeats(patience)))
	theirs, err := r.shake(conn, dialler)
	if err != nil {
		err = plainly(err)
		r.system.warn("handshake with "+peer, "casty: no handshake", "with", peer, "reason", err)
		return fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	shaken()
	conn.SetDeadline(time.Time{})
	l.become(open, cmp.Or(l.host, theirs.Host), theirs.Host)
	outbox := l.claim()
	var writing sync.WaitGroup
	writing.Go(func() {
		if l.write(ctx, conn, outbox) != nil {
			cancel()
		}
	})
	err = plainly(l.read(conn))
	r.system.config.Logger.Debug("casty: lost a connection", "to", theirs.Host, "reason", err)
	cancel()
	writing.Wait() // or it might claim an outbox that nobody discards
	return fmt.Errorf("%w: %w", ErrUnreachable, err)
}

// write owns the sending side, until it fails or there is nothing more to send.
func (l *link) write(ctx context.Context, conn net.Conn, from *outbox) error {
	heartbeat := time.NewTicker(l.remote.heartbeats(1))
	defer heartbeat.Stop()
	var out bytes.Buffer
	for last := false; !last; {
		var header []byte
		select {
		case <-from.wake: // of a blank outbox it is nil, and never ready
		case <-heartbeat.C:
			from = l.claim()
			l.ask()
			header = []byte{0, 0, 0, 0}
			out = bytes.Buffer{} // what a burst needed is not kept
		case <-l.remote.closing.Done():
			last, header = true, []byte{0x80, 0, 0, 0}
		case <-ctx.Done():
			return ctx.Err()
		}
		from.take(&out, header)
		if _, err := out.WriteTo(conn); err != nil {
			return err
		}
	}
	return nil
}

// A persistent connection goes on writing, however long that takes, until the
// peer has taken nothing at all for too long. It is below TLS, which does not go
// on after a write that was cut short.
type persistent struct {
	net.Conn
	limit time.Duration
}

func (c persistent) Write(p []byte) (n int, err error) {
	for n < len(p) {
		c.SetWriteDeadline(time.Now().Add(c.limit))
		more, err := c.Conn.Write(p[n:])
		n += more
		if err != nil && (more == 0 || !errors.Is(err, os.ErrDeadlineExceeded)) {
			return n, err
		}
	}
	return n, nil
}

// An impatient connection fails when it is silent for too long, also in the
// middle of a message.
type impatient struct {
	net.Conn
	limit time.Duration
}

func (c *impatient) Read(p []byte) (int, error) {
	c.SetReadDeadline(time.Now().Add(c.limit))
	return c.Conn.Read(p)
}

// read owns the receiving side, and never waits for an actor.
func (l *link) read(conn net.Conn) error {
	r := l.remote
	source := &impatient{conn, r.heartbeats(patience)} // until the peer has our hello, and we its first frame
	in := bufio.NewReader(source)
	var frame bytes.Reader
	var body []byte
	dec := gob.NewDecoder(&frame)
	doubtful := false // it has failed before, and may lack types
	for {
		var fresh bool
		var err error
		if body, fresh, err = readFrame(in, body, r.system.config.MaxMessage); err != nil {
			return err
		}
		source.limit = r.heartbeats(silence)
		switch {
		case fresh && len(body) == 0:
			return io.EOF
		case len(body) == 0:
			body = nil // nor is it kept here
			continue
		case fresh:
			dec, doubtful = gob.NewDecoder(&frame), false
		}
		frame.Reset(body)
		msg, err := decode(dec)
		if err != nil {
			l.deplore(msg, err, doubtful)
			doubtful = true
			continue
		}
		l.receive(msg)
	}
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
	case header[0] == tlsHandshake || header[0] == tlsAlert:
		return nil, false, errSpeaksTLS
	default:
		return nil, false, fmt.Errorf("it begins with %q: a message of %d bytes is larger than MaxMessage, %d", header, size, limit)
	}
	body = slices.Grow(body[:0], int(size))[:size]
	if _, err = io.ReadFull(in, body); err == nil && !whole(body) {
		err = fmt.Errorf("a frame of %d bytes claims more than it holds", size)
	}
	return body, fresh, err
}

// whole says whether a body is what gob makes: parts that each begin with their
// length, a byte or, from 128 on, minus the number of bytes that follow with it.
// gob allocates for what a part claims before it finds that there is less.
func whole(body []byte) bool {
	for len(body) > 0 {
		size, digits := uint64(body[0]), 0
		if size >= 128 {
			size, digits = 0, -int(int8(body[0]))
		}
		if digits > 8 || digits >= len(body) {
			return false
		}
		for _, digit := range body[1 : 1+digits] {
			size = size<<8 | uint64(digit)
		}
		if body = body[1+digits:]; size > uint64(len(body)) {
			return false
		}
		body = body[size:]
	}
	return true
}

func decode(dec *gob.Decoder) (msg envelope, err error) {
	defer func() {
		if panicked := recover(); panicked != nil { // in somebody's GobDecode
			err = fmt.Errorf("decoding panicked: %v", panicked)
		}
	}()
	err = dec.Decode(&msg)
	return msg, err
}

// deplore is about a message that could not be decoded: a dead letter, of which
// the sender is told.
func (l *link) deplore(msg envelope, err error, doubtful bool) {
	s := l.remote.system
	to := s.actor(msg.To)
	s.deadLetter(to, msg.Message, fmt.Errorf("%w; it takes %s", err, cmp.Or(s.takes(to), "nothing: no such actor")))
	answer := undecodable{Reason: brief(err)}
	if !doubtful {
		answer.Actor = msg.To
	}
	l.remote.send(Address{Host: l.called}, answer)
}

// actor is the address of the actor of this process that has a path.
func (s *System) actor(path string) Address {
	name, incarnation, _ := strings.Cut(path, "#")
	return Address{s.config.Name, s.host, name, incarnation}
}

func (l *link) receive(msg envelope) {
	r, s := l.remote, l.remote.system
	from, to := Address{System: s.config.Name, Host: l.called}, s.actor(msg.To)
	switch m := msg.Message.(type) {
	case watching:
		if takes := s.takes(s.actor(m.Actor)); takes != m.Takes {
			r.send(from, mistaken{m.Actor, takes})
		}
	case mistaken:
		l.fire(m.concerns, func() {})
	case undecodable:
		l.fire(m.concerns, func() {
			for host, p := range r.peers {
				if l.reaches(host, p) {
					p.outbox.relearn()
				}
			}
		})
	case gossip:
		if m.from() == l.called {
			s.deliver(from, to, m)
		}
	default:
		if err := s.deliver(from, to, m); err != nil {
			s.deadLetter(to, m, err)
		}
	}
}

// concerns is the reason that the message is for a watch to end, if any.
func (m mistaken) concerns(question watching) error {
	if question.Actor != m.Actor || question.Takes == m.Takes {
		return nil
	}
	return mismatch(m.Takes, question.Takes)
}

// concerns is the reason that the message is for a watch to end, if any: who
// watches an actor that cannot be told something probably waits for an answer.
func (m undecodable) concerns(question watching) error {
	if question.Actor != m.Actor {
		return nil
	}
	return fmt.Errorf("%w: the other end cannot decode it: %s", ErrUnsendable, m.Reason)
}
