package casty

// Processes exchange frames over one TCP connection for each pair of them,
// used both ways. A frame is four bytes of header and a body:
//
//	length 0            I am still here: once per heartbeat, if nothing else waits; never answered
//	length n            n bytes of gob: one envelope, and the types that it is the first to use
//	top bit, length n   the same, for a new gob decoder
//
// The first frame each way is a hello; the dialler speaks first. What follows
// are envelopes, addressed to an actor or, with an empty To, to the process:
//
//	hello{Version, System, Host, Heartbeat}   who I am, and what I am called
//	hello{Refused}                            I do not talk to you, because
//	envelope{To, message}                     a message to the actor To
//	envelope{watchMsg{Target, Takes}}         tell me when the actor Target, which takes such messages, stops
//	envelope{endedMsg{watchMsg, Reason}}      it has
//	envelope{relearnMsg{}}                    I could not decode that; describe your types again
//
// gob describes a type once per encoder, so each direction has one encoder for
// as long as its connection lives. The frames around it keep the two ends in
// step: whatever is wrong with a body, the next frame is where it should be.
//
// Without TLS anyone who can connect can claim any address. This much holds
// even so: a connection that is alive is never replaced by another that claims
// the same peer, and the ids of clients cannot be guessed. With TLS, a peer's
// certificate must be valid for the address that it claims. Neither defends
// against a peer that is let in and means harm: gob is not hardened against
// hostile input beyond the limits set here, and allocates up to 10 MB for a
// message before it has arrived.

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
	"reflect"
	"slices"
	"sync"
	"time"
)

const (
	protocolVersion = 1
	freshBit        = 1 << 31  // in a frame's header: start a new decoder
	maxHello        = 4 << 10  // bytes of a hello
	maxQueued       = 16 << 20 // bytes gathering for a connection; see link.send
	maxSpare        = 64 << 10 // bytes of buffer that a connection keeps, whatever it sends
	silence         = 3        // heartbeats without a byte before a connection is given up, also at Close
	patience        = 10       // heartbeats for dialling and the handshake
)

var errRefused = errors.New("refused")

type (
	hello struct {
		Version      int
		System, Host string
		Heartbeat    time.Duration
		Refused      string
	}
	envelope struct {
		To      string // the actor's name#incarnation; empty: the process itself
		Message any
	}
	watchMsg struct{ Target, Takes string }
	endedMsg struct {
		Watch     watchMsg
		Reason    string
		WrongType bool
	}
	relearnMsg struct{}
)

// gossip is what processes say of themselves, again and again: it counts only
// if it comes from whom it is about, and may be lost.
type gossip interface{ from() string }

// remote is a system's network.
type remote struct {
	system   *System
	listener net.Listener // nil for a client
	ctx      context.Context
	cancel   context.CancelFunc // gives up all dialling and every connection
	running  sync.WaitGroup     // the accept loop, and two goroutines for each link

	mu     sync.Mutex // guards what follows
	closed bool
	links  map[*link]struct{} // all, whether their peer is known or not
	peers  map[string]*peer   // by each host that a peer goes by
}

// A peer is another process. Two connections, after both have dialled at once,
// are both read; each end sends on the first that has not failed. Guarded by remote.mu.
type peer struct {
	links   []*link
	watches map[watchMsg]map[*func(error)]struct{} // each is called at most once
}

// newRemote makes a system's network, which accepts from listener unless that is nil.
func newRemote(s *System, listener net.Listener) *remote {
	learn(watchMsg{}, endedMsg{}, relearnMsg{})
	ctx, cancel := context.WithCancel(context.Background())
	r := &remote{system: s, listener: listener, ctx: ctx, cancel: cancel, links: map[*link]struct{}{}, peers: map[string]*peer{}}
	if listener != nil {
		r.running.Go(r.accept)
	}
	return r
}

// listen binds a node, and tells what its peers dial.
func listen(cfg Config) (net.Listener, string, error) {
	address := cmp.Or(cfg.Address, "127.0.0.1:0")
	listener, err := cfg.Listener, error(nil)
	if listener == nil {
		if listener, err = net.Listen("tcp", address); err != nil {
			return nil, "", err
		}
	} else if cfg.Address == "" {
		address = listener.Addr().String()
	}
	host, port, err := net.SplitHostPort(address)
	if err == nil && port == "0" {
		if _, port, err = net.SplitHostPort(listener.Addr().String()); err == nil {
			address = net.JoinHostPort(host, port)
		}
	}
	if err = cmp.Or(err, checkHost(address)); err == nil && net.ParseIP(host).IsUnspecified() {
		err = fmt.Errorf("peers cannot dial %s: set Listener to listen on all interfaces", address)
	}
	if err != nil {
		listener.Close()
		return nil, "", err
	}
	if at, ok := listener.Addr().(*net.TCPAddr); ok && !at.IP.IsLoopback() && cfg.TLS == nil {
		cfg.Logger.Warn("casty: listening without TLS: whoever can connect can send anything to any actor", "on", at.String())
	}
	return listener, address, nil
}

// close sends what is under way, waits a little for peers to take it, and
// closes every connection.
func (r *remote) close() error {
	var err error
	if r.listener != nil {
		err = r.listener.Close()
	}
	r.mu.Lock()
	r.closed = true
	for l := range r.links {
		if l.met {
			l.finish()
		} else {
			l.fail(ErrClosed) // do not wait for those who may never answer
		}
	}
	r.mu.Unlock()
	impatience := time.AfterFunc(r.heartbeats(silence), r.cancel)
	defer impatience.Stop()
	r.running.Wait()
	r.cancel()
	return err
}

func (r *remote) heartbeats(n int) time.Duration {
	return time.Duration(n) * r.system.config.Heartbeat
}

// slower is our heartbeat, or a peer's that is slower.
func (c Config) slower(peer time.Duration) time.Duration {
	return max(c.Heartbeat, min(peer, time.Minute))
}

func (r *remote) send(to Address, msg any) error {
	l, err := r.linkTo(to.Host)
	if err != nil {
		return err
	}
	return l.send(envelope{to.path(), msg})
}

// linkTo returns the connection to send to a host on. It dials if there is
// none, and does not wait: what is sent meanwhile is kept with the link.
func (r *remote) linkTo(host string) (*link, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var failed error
	for _, l := range r.peer(host).links {
		if failed = l.failed(); failed == nil {
			return l, nil
		}
	}
	switch {
	case failed != nil:
		return nil, failed // a moment ago: do not dial again at once
	case !dialable(host):
		r.forget(host)
		return nil, fmt.Errorf("%w: it is not connected, and nobody can dial it", ErrUnreachable)
	case r.closed:
		r.forget(host)
		return nil, ErrClosed
	}
	l := r.newLink()
	r.join(l, host)
	r.running.Go(func() { l.end(l.dial(host)) })
	return l, nil
}

// peer returns what is known of a host, from now on at least that it exists:
// forget it if it comes to nothing. The caller holds r.mu.
func (r *remote) peer(host string) *peer {
	if r.peers[host] == nil {
		r.peers[host] = &peer{watches: map[watchMsg]map[*func(error)]struct{}{}}
	}
	return r.peers[host]
}

// join makes a link one of those to a host. The caller holds r.mu.
func (r *remote) join(l *link, host string) {
	if p := r.peer(host); !slices.Contains(p.links, l) {
		p.links = append(p.links, l)
		l.hosts = append(l.hosts, host)
	}
}

// watch keeps fire until the peer says that the actor has stopped, or any
// connection to the peer is lost: with it, that message might be.
func (r *remote) watch(target Address, takes string, fire func(error)) (cancel func()) {
	watched := watchMsg{target.path(), takes}
	r.mu.Lock()
	p := r.peer(target.Host)
	if p.watches[watched] == nil {
		p.watches[watched] = map[*func(error)]struct{}{}
	}
	p.watches[watched][&fire] = struct{}{}
	r.mu.Unlock()
	if err := r.send(Address{Host: target.Host}, watched); err != nil {
		if !errors.Is(err, ErrUnreachable) { // its connection is full: another message may get through later
			err = fmt.Errorf("%w: %w", ErrUnreachable, err)
		}
		r.fire([]string{target.Host}, watched, err)
	}
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(p.watches[watched], &fire)
		if len(p.watches[watched]) == 0 {
			delete(p.watches, watched)
		}
		r.forget(target.Host)
	}
}

// names are all that a peer goes by. It may have been watched by one, on one
// connection, and answer on another.
func (r *remote) names(peer string) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	hosts := []string{peer}
	for _, l := range r.peer(peer).links {
		hosts = append(hosts, l.hosts...)
	}
	return hosts
}

// fire calls the watches of an actor of a peer that goes by hosts, or of all
// of its actors if which is zero.
func (r *remote) fire(hosts []string, which watchMsg, err error) {
	var watches []*func(error)
	r.mu.Lock()
	for _, host := range hosts {
		p := r.peer(host)
		for watched := range p.watches {
			if watched == which || which == (watchMsg{}) {
				watches = slices.AppendSeq(watches, maps.Keys(p.watches[watched]))
				delete(p.watches, watched)
			}
		}
		r.forget(host)
	}
	r.mu.Unlock()
	for _, fire := range watches {
		(*fire)(err)
	}
}

// forget drops a peer that has neither links nor watches. The caller holds r.mu.
func (r *remote) forget(host string) {
	if p := r.peers[host]; p != nil && len(p.links)+len(p.watches) == 0 {
		delete(r.peers, host)
	}
}

// accept owns the listener. Only Close ends it.
func (r *remote) accept() {
	for {
		conn, err := r.listener.Accept()
		switch {
		case err == nil:
			r.mu.Lock()
			l := r.newLink()
			r.mu.Unlock()
			r.running.Go(func() { l.end(l.serve(conn)) })
		case errors.Is(err, net.ErrClosed) || r.system.ctx.Err() != nil:
			return
		default: // out of file descriptors, perhaps: others may be closed soon
			r.system.config.Logger.Error("casty: accept", "on", r.system.host, "error", err)
			select {
			case <-time.After(r.heartbeats(1)):
			case <-r.ctx.Done():
				return
			}
		}
	}
}

// A link is one connection, from before it is dialled until it is lost. What
// is sent on it is encoded by the sender, so that the sender learns what
// cannot be, and gathers in out until the writer takes it all at once: messages
// are batched while the network is busy, and none waits while it is not.
type link struct {
	remote *remote
	hosts  []string        // what the peer goes by; written under remote.mu, until we have shaken hands
	met    bool            // we have shaken hands; guarded by remote.mu
	ctx    context.Context // ends when the link is lost
	cancel context.CancelFunc
	wake   chan struct{} // tells the writer that there is something to do

	mu         sync.Mutex // guards what follows
	out        bytes.Buffer
	waiting    int                   // users' messages in out, or on their way from there
	unrepeated bool                  // has been given a message that nobody repeats
	enc        *gob.Encoder          // nil: the next message starts a new one
	learnt     map[reflect.Type]bool // types of messages that gob knows
	watched    map[watchMsg]bool     // actors here that the peer watches
	finishing  bool                  // what is sent from now on is lost
	err        error                 // why it is lost
}

// newLink makes a link; end is the end of it. The caller holds r.mu.
func (r *remote) newLink() *link {
	ctx, cancel := context.WithCancel(r.ctx)
	l := &link{remote: r, ctx: ctx, cancel: cancel, wake: make(chan struct{}, 1), learnt: map[reflect.Type]bool{}, watched: map[watchMsg]bool{}}
	if r.closed {
		l.fail(ErrClosed)
	}
	r.links[l] = struct{}{}
	return l
}

// end tells those who watch the peer's actors that a connection is lost. If we
// have not shaken hands, the peer does not know that there was one: if that was
// given what nobody repeats, the peer's other connections end too, and those
// it does notice. The link is forgotten a moment later, so that a peer who
// refuses us is not dialled in a tight loop.
func (l *link) end(err error) {
	r := l.remote
	unrepeated := l.fail(err)
	r.mu.Lock()
	if unrepeated && !l.met {
		for _, host := range l.hosts {
			for _, other := range r.peers[host].links {
				other.fail(err)
			}
		}
	}
	r.mu.Unlock()
	r.fire(l.hosts, watchMsg{}, l.failed())
	select {
	case <-time.After(r.heartbeats(1) / 64):
	case <-r.ctx.Done():
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.links, l)
	for _, host := range l.hosts {
		r.peers[host].links = slices.DeleteFunc(r.peers[host].links, func(other *link) bool { return other == l })
		r.forget(host)
	}
}

func (l *link) dial(host string) error {
	cfg := l.remote.system.config
	ctx, cancel := context.WithTimeout(l.ctx, l.remote.heartbeats(patience))
	defer cancel()
	conn, err := cfg.Dial(ctx, host)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	if cfg.TLS != nil {
		secure := cfg.TLS.Clone()
		if secure.ServerName == "" {
			secure.ServerName, _, _ = net.SplitHostPort(host)
		}
		conn = tls.Client(conn, secure)
	}
	return l.talk(conn, func() (hello, error) {
		if err := l.remote.greet(conn, ""); err != nil {
			return hello{}, err
		}
		return l.remote.meet(conn)
	})
}

func (l *link) serve(conn net.Conn) error {
	if cfg := l.remote.system.config; cfg.TLS != nil {
		secure := cfg.TLS.Clone()
		secure.ClientAuth = tls.RequireAndVerifyClientCert
		if secure.ClientCAs == nil {
			secure.ClientCAs = secure.RootCAs
		}
		conn = tls.Server(conn, secure)
	}
	return l.talk(conn, func() (hello, error) {
		theirs, err := l.remote.meet(conn)
		if err != nil {
			l.remote.greet(conn, brief(err))
			return hello{}, err
		}
		return theirs, l.remote.greet(conn, "")
	})
}

// greet says who we are, or why we do not talk to the peer.
func (r *remote) greet(conn net.Conn, refused string) error {
	var frame bytes.Buffer
	frame.Write(make([]byte, 4))
	err := gob.NewEncoder(&frame).Encode(hello{protocolVersion, r.system.config.Name, r.system.host, r.system.config.Heartbeat, refused})
	if err == nil {
		binary.BigEndian.PutUint32(frame.Bytes(), uint32(frame.Len()-4)|freshBit)
		_, err = conn.Write(frame.Bytes())
	}
	return err
}

// meet reads the peer's hello, and says whether we talk to it.
func (r *remote) meet(conn net.Conn) (theirs hello, err error) {
	var header [4]byte
	if _, err := io.ReadFull(conn, header[:]); err != nil {
		return theirs, err
	}
	size := binary.BigEndian.Uint32(header[:]) &^ freshBit
	if size == 0 || size > maxHello {
		return theirs, fmt.Errorf("not a hello: it begins with %q", header)
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(conn, body); err != nil {
		return theirs, err
	}
	if err := gob.NewDecoder(bytes.NewReader(body)).Decode(&theirs); err != nil {
		return theirs, fmt.Errorf("not a hello: %w", err)
	}
	switch name := r.system.config.Name; {
	case theirs.Refused != "":
		return theirs, fmt.Errorf("%w: the peer says: %s", errRefused, theirs.Refused)
	case theirs.Version != protocolVersion:
		return theirs, fmt.Errorf("%w: protocol version %d is not %d", errRefused, theirs.Version, protocolVersion)
	case theirs.System != name:
		return theirs, fmt.Errorf("%w: system %q is not %q", errRefused, theirs.System, name)
	}
	if err := checkHost(theirs.Host); err != nil {
		return theirs, err
	}
	if secure, ok := conn.(*tls.Conn); ok && dialable(theirs.Host) {
		name, _, _ := net.SplitHostPort(theirs.Host)
		return theirs, secure.ConnectionState().PeerCertificates[0].VerifyHostname(name)
	}
	return theirs, nil
}

// talk owns a connection: it shakes hands, then writes and reads until one of
// these fails, and says why.
func (l *link) talk(conn net.Conn, shake func() (hello, error)) error {
	r := l.remote
	defer conn.Close()
	defer context.AfterFunc(l.ctx, func() { conn.Close() })() // a lost link ends read, too
	conn.SetDeadline(time.Now().Add(r.heartbeats(patience)))
	theirs, err := shake()
	if err != nil {
		r.system.warn("casty: no handshake", "with", conn.RemoteAddr(), "reason", err)
		return fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	conn.SetDeadline(time.Time{})
	r.mu.Lock()
	l.met = true
	r.join(l, theirs.Host)
	r.mu.Unlock()
	r.running.Go(func() { l.write(conn) })
	err = l.read(conn, theirs)
	r.system.config.Logger.Debug("casty: lost a connection", "to", theirs.Host, "reason", err)
	return fmt.Errorf("%w: %w", ErrUnreachable, err)
}

// write owns the sending side: it writes what has gathered, or a heartbeat.
func (l *link) write(conn net.Conn) {
	heartbeat := time.NewTicker(l.remote.heartbeats(1))
	defer heartbeat.Stop()
	var out bytes.Buffer
	most, before := 0, 0 // bytes written at once, since the last heartbeat and before it
	for {
		tick := false
		select {
		case <-l.wake:
		case <-heartbeat.C:
			tick = true
		case <-l.ctx.Done():
			return
		}
		l.mu.Lock()
		l.out, out = out, l.out // they take turns
		waiting, finishing := l.waiting, l.finishing
		l.mu.Unlock()
		if tick && out.Len() == 0 {
			out.Write(make([]byte, 4))
		}
		most = max(most, out.Len())
		if _, err := out.WriteTo(conn); err != nil {
			l.fail(fmt.Errorf("%w: %w", ErrUnreachable, err))
			return
		}
		l.mu.Lock()
		l.waiting -= waiting
		l.mu.Unlock()
		if finishing {
			hangUp(conn)
			return
		}
		if out.Cap() > max(maxSpare, 4*most, 4*before) {
			out = bytes.Buffer{} // what a burst needed is not kept for long
		}
		if tick {
			before, most = most, 0
		}
	}
}

// hangUp closes our half of a connection, so that the peer reads to the end and
// then closes the other; or, if it has no halves, all of it.
func hangUp(conn net.Conn) {
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		half.CloseWrite()
	} else {
		conn.Close()
	}
}

// awake is a connection that fails when it has been silent for too long, and
// stays so, even if it then goes on in the middle of a message. Its first
// bytes may take longer, until the peer has our hello.
type awake struct {
	net.Conn
	first, silence time.Duration
	err            error
}

func (a *awake) Read(p []byte) (n int, err error) {
	if a.err == nil {
		a.SetReadDeadline(time.Now().Add(max(a.first, a.silence)))
		a.first = 0
		n, a.err = a.Conn.Read(p)
	}
	return n, a.err
}

// read owns the receiving side, and never waits for an actor.
func (l *link) read(conn net.Conn, peer hello) error {
	heartbeat := l.remote.system.config.slower(peer.Heartbeat)
	in := bufio.NewReader(&awake{Conn: conn, first: patience * heartbeat, silence: silence * heartbeat})
	limit := uint32(l.remote.system.config.MaxMessage)
	body := &frameBody{io.LimitedReader{R: in}}
	dec := gob.NewDecoder(body)
	for {
		var header [4]byte
		if _, err := io.ReadFull(in, header[:]); err != nil {
			return err
		}
		size := binary.BigEndian.Uint32(header[:])
		if size&freshBit != 0 {
			dec = gob.NewDecoder(body)
			size &^= freshBit
		}
		if size == 0 {
			continue
		}
		if size > limit {
			return fmt.Errorf("a message of %d bytes is larger than MaxMessage, %d", size, limit)
		}
		body.N = int64(size)
		msg, err := decode(dec)
		if _, lost := in.Discard(int(body.N)); lost != nil {
			return lost
		}
		l.receive(peer.Host, msg, err)
	}
}

// A frameBody is what is left to read of a frame, and ends there, whatever the
// decoder has been told to expect.
type frameBody struct{ io.LimitedReader }

// ReadByte is there so that gob does not read ahead, into a buffer of its own.
func (b *frameBody) ReadByte() (byte, error) {
	var p [1]byte
	_, err := io.ReadFull(b, p[:])
	return p[0], err
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

func (l *link) receive(peer string, msg envelope, err error) {
	s := l.remote.system
	to := s.at(msg.To)
	if err != nil {
		s.deadLetter(to, msg.Message, fmt.Errorf("%w; %s", err, s.takes(to)))
		l.send(envelope{Message: relearnMsg{}})
		return
	}
	switch m := msg.Message.(type) {
	case watchMsg:
		l.watchFor(peer, m)
	case endedMsg:
		reason := &peerError{m.Reason, ErrStopped}
		if m.WrongType {
			reason.is = ErrWrongType
		}
		l.remote.fire(l.remote.names(peer), m.Watch, reason)
	case relearnMsg:
		l.mu.Lock()
		l.enc = nil
		l.mu.Unlock()
	case gossip:
		if m.from() == peer {
			s.deliver(to, m)
		}
	default:
		if err := s.deliver(to, m); err != nil {
			s.deadLetter(to, m, err)
		}
	}
}

// A peerError is an error that has crossed the wire as its text.
type peerError struct {
	text string
	is   error
}

func (e *peerError) Error() string { return e.text }
func (e *peerError) Unwrap() error { return e.is }

// watchFor tells the peer when an actor here stops, once however often it asks.
func (l *link) watchFor(peer string, m watchMsg) {
	l.mu.Lock()
	again := l.watched[m]
	l.watched[m] = true
	l.mu.Unlock()
	if again {
		return
	}
	s := l.remote.system
	s.watchUntil(l.ctx, s.at(m.Target), m.Takes, func(err error) {
		l.mu.Lock()
		delete(l.watched, m)
		l.mu.Unlock()
		if l.remote.send(Address{Host: peer}, endedMsg{m, brief(err), errors.Is(err, ErrWrongType)}) != nil {
			l.fail(fmt.Errorf("%w: it does not read what it has asked for", ErrUnreachable))
		}
	})
}

func (l *link) failed() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// fail makes the link useless, and says whether it has had anything to carry
// that will not be said again anyway. The first reason counts.
func (l *link) fail(err error) (unrepeated bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return l.unrepeated
	}
	l.err = err
	l.cancel()
	if s := l.remote.system; l.waiting > 0 { // what was written may be lost too; nobody can tell
		s.deadLetters.Add(uint64(l.waiting))
		s.warn("casty: dead letters", "messages", l.waiting, "to", l.hosts, "reason", err)
	}
	l.out, l.waiting = bytes.Buffer{}, 0
	return l.unrepeated
}

// finish lets the writer end when it has written everything.
func (l *link) finish() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.finishing = true
	poke(l.wake)
}

// send encodes a message for the writer. What gathers for it is bounded by
// maxQueued and one message more, and what it is writing by as much; beyond
// that nothing is accepted, and the sender is told.
func (l *link) send(msg envelope) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.err != nil:
		return l.err
	case l.out.Len() > maxQueued:
		return fmt.Errorf("%w: its connection has %d bytes waiting", ErrMailboxFull, l.out.Len())
	}
	if err := l.encode(msg); err != nil {
		return fmt.Errorf("%w: %w", ErrUnsendable, err)
	}
	if _, repeated := msg.Message.(gossip); !repeated {
		l.unrepeated = true
		if msg.To != "" {
			l.waiting++
		}
	}
	poke(l.wake)
	return nil
}

// encode appends a frame to out, or nothing: a message that fails, or panics in
// somebody's GobEncode, may have been the first of its types, so it takes the
// encoder that has described them with it, and the next starts with a new one.
func (l *link) encode(msg envelope) error {
	start, done := l.out.Len(), false
	defer func() {
		if !done {
			l.out.Truncate(start)
			l.enc = nil
		}
	}()
	t := reflect.TypeOf(msg.Message)
	if t == nil {
		return errors.New("it is nil")
	}
	if !l.learnt[t] {
		if err := learn(msg.Message); err != nil {
			return err
		}
		l.learnt[t] = true
	}
	header := uint32(0)
	if l.enc == nil {
		l.enc = gob.NewEncoder(&l.out)
		header = freshBit
	}
	l.out.Write(make([]byte, 4))
	if err := l.enc.Encode(msg); err != nil {
		return err
	}
	frame := l.out.Bytes()[start:]
	size := len(frame) - 4
	if limit := l.remote.system.config.MaxMessage; size > limit {
		return fmt.Errorf("its %d bytes are more than MaxMessage, %d", size, limit)
	}
	binary.BigEndian.PutUint32(frame, header|uint32(size))
	done = true
	return nil
}
