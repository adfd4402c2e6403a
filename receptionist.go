package casty

// Every process of a cluster has a receptionist, an actor at a well-known name. It
// keeps the process's directory of services and members up to date, and tells the
// other receptionists of itself:
//
//	announcement{From, Services, Members}   all my services, and nodes that I have heard from
//	departure{From}                         I leave
//
// An announcement goes to every process that has been heard from, whenever my
// services change and once per heartbeat. Services are always the full set, as far as
// a message has room, and a process lists its own alone. So there is nothing to merge,
// and an announcement that is lost or repeated does no harm.
//
// Hearsay is not membership. The Members of an announcement are only a reason to
// contact nodes: a node becomes a member by being heard from, and is lost when it
// has been silent for too long. Otherwise a dead node would live on in what the
// others repeat. A receptionist also contacts some nodes that it has not heard from
// of late:
//
//	seeds       at every heartbeat, as long as the process lives
//	strangers   nodes that others have named, at once and at the next four heartbeats:
//	            if they live they will be named again;
//	            and nodes that were lost, at the next thousand: so they return
//
// A client, which nobody can dial, is told everything and listed nowhere.

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	unheard      = 4      // heartbeats without an announcement before a node is lost: one more than a connection may be silent
	triesNamed   = 4      // heartbeats at which a node is contacted that others have named: those who are busy meeting a hundred others answer late
	triesLost    = 1000   // heartbeats at which a lost node is contacted
	maxStrangers = 1000   // at any time: one more takes the place of another
	maxNamed     = 1000   // members in an announcement: if there are more, each announcement names others
	maxServices  = 10_000 // of one node, if a message has room for them: more are not listed
	maxPending   = 1000   // announcements that wait for the receptionist: more are lost, and said again
)

type receptionistMsg interface{ receptionistMsg() }

type (
	announcement struct {
		From     string // host
		Services []service
		Members  []string // hosts
	}
	departure struct{ From string }
	service   struct{ Key, URI string } // an offer, as it crosses the wire
)

func (s service) compare(t service) int {
	return cmp.Or(strings.Compare(s.Key, t.Key), strings.Compare(s.URI, t.URI))
}

func (announcement) receptionistMsg() {}
func (departure) receptionistMsg()    {}

// from lets the connection that a message came over vouch for its sender.
func (a announcement) from() string { return a.From }
func (d departure) from() string    { return d.From }

func (announcement) repeated() {}
func (departure) repeated()    {} // silence says the same, later

// A ServiceKey names a kind of service, and the messages that it takes.
type ServiceKey[M any] struct{ name string }

// NewServiceKey makes a key. Its name is what counts: whoever uses it with
// another type than the actors listed under it gets ErrWrongType from them.
func NewServiceKey[M any](name string) ServiceKey[M] { return ServiceKey[M]{name} }

// A ServiceInstance is one actor that offers a service.
type ServiceInstance[M any] struct {
	Ref  ActorRef[M]
	Node string // the address of its process
}

// A Listing is all instances of a service at one time, sorted by address.
type Listing[M any] struct {
	Key       ServiceKey[M]
	Instances []ServiceInstance[M]
}

// ---- The directory, and its users.

// A directory is what a process knows of services and members.
type directory struct {
	ownChanged chan struct{} // tells the receptionist to announce what is in own

	mu      sync.Mutex                   // guards what follows
	own     map[offer]context.CancelFunc // what this process offers; the function ends the watch on the actor
	others  map[string]peer              // by host; written by the receptionist alone
	changed chan struct{}                // closed, and replaced, when own or others have changed
}

// An offer is an actor that is listed under a key.
type offer struct {
	key   string
	actor Address
}

// A peer is another process, node or client, that has been heard from of late.
type peer struct {
	heard  time.Time
	offers []offer
}

// directoryOf returns a system's directory. It is made here, when it is first
// asked for, because casty.go makes systems and does not know its type.
func directoryOf(in Place) *directory {
	s := in.system()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.directory == nil {
		s.directory = &directory{
			ownChanged: make(chan struct{}, 1),
			own:        map[offer]context.CancelFunc{},
			others:     map[string]peer{},
			changed:    make(chan struct{}),
		}
	}
	return s.directory.(*directory)
}

// change wakes whoever waits for changes. The caller holds d.mu.
func (d *directory) change() {
	close(d.changed)
	d.changed = make(chan struct{})
}

// add lists an actor of this process, and returns false if it is listed already.
func (d *directory) add(o offer, unwatch context.CancelFunc) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.own[o] != nil {
		return false
	}
	d.own[o] = unwatch
	d.change()
	poke(d.ownChanged)
	return true
}

func (d *directory) remove(o offer) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if unwatch := d.own[o]; unwatch != nil {
		unwatch()
		delete(d.own, o)
		d.change()
		poke(d.ownChanged)
	}
}

// Register lists an actor of this system under a key, in every process of the
// cluster, until it stops or is deregistered. Lookup here sees it at once,
// others within a heartbeat. A client's actors are listed in the client alone.
// To register an actor again changes nothing. The error is ErrNotLocal for an actor
// of another process, ErrStopped for one that has stopped, or ErrWrongType for one
// that takes other messages; or the name of the key is longer than 255 bytes.
func Register[M any](in Place, key ServiceKey[M], ref ActorRef[M]) (err error) {
	defer doing(&err, "register %v as %q", ref, key.name)
	s := in.system()
	switch {
	case !s.local(ref.address):
		return ErrNotLocal
	case len(key.name) > 255:
		return errors.New("the name of the key is longer than 255 bytes")
	}
	if takes := s.takes(ref.address); takes != typeName[M]() {
		return mismatch(takes, typeName[M]())
	}
	// The watch comes second: should the actor have stopped, it fires, and takes
	// the offer back.
	ctx, cancel := context.WithCancel(s.ctx)
	if directoryOf(in).add(offer{key.name, ref.address}, cancel) {
		s.watchUntil(ctx, &watch{target: ref.address, takes: typeName[M](), fire: func(error) { Deregister(in, key, ref) }})
	} else {
		cancel() // it is watched already
	}
	return nil
}

// Deregister takes a registration back. It does nothing if there is none.
func Deregister[M any](in Place, key ServiceKey[M], ref ActorRef[M]) {
	directoryOf(in).remove(offer{key.name, ref.address})
}

// Discoverable is a behaviour that registers its actor before anything else. That
// may be a moment after Spawn has returned, and then Listings yields again.
func Discoverable[M any](key ServiceKey[M], behavior Behavior[M]) Behavior[M] {
	return func(self *Actor[M]) {
		if err := Register(self, key, self.Ref()); err != nil { // the key is too long
			self.in.warn("not listed", "casty: not listed", "actor", self.address, "reason", err)
		}
		behavior(self)
	}
}

// Lookup returns the instances known at this moment. It asks nobody: the
// answer is in this process.
func Lookup[M any](from Place, key ServiceKey[M]) Listing[M] {
	listing, _ := lookup(from, key)
	return listing
}

// lookup also returns what is closed when the listing may no longer hold.
func lookup[M any](from Place, key ServiceKey[M]) (Listing[M], <-chan struct{}) {
	d := directoryOf(from)
	listing := Listing[M]{Key: key}
	add := func(o offer) {
		if o.key == key.name {
			listing.Instances = append(listing.Instances, ServiceInstance[M]{ActorRef[M]{o.actor}, o.actor.Host})
		}
	}
	d.mu.Lock()
	for o := range d.own {
		add(o)
	}
	for _, p := range d.others {
		for _, o := range p.offers {
			add(o)
		}
	}
	changed := d.changed
	d.mu.Unlock()
	slices.SortFunc(listing.Instances, func(a, b ServiceInstance[M]) int {
		return compare(a.Ref.address, b.Ref.address)
	})
	return listing, changed
}

func compare(a, b Address) int { return strings.Compare(a.URI(), b.URI()) }

// Listings yields the listing now and after every change, until ctx ends or
// the system is closed. Of changes that come faster than the loop turns, it
// yields the last.
func Listings[M any](ctx context.Context, from Place, key ServiceKey[M]) iter.Seq[Listing[M]] {
	return func(yield func(Listing[M]) bool) {
		s := from.system()
		var last []ServiceInstance[M]
		for first := true; ctx.Err() == nil && s.ctx.Err() == nil; first = false {
			listing, changed := lookup(from, key)
			news := first || !slices.Equal(listing.Instances, last)
			last = slices.Clone(listing.Instances) // the listing itself is the user's
			if news && !yield(listing) {
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
			case <-s.ctx.Done():
			}
		}
	}
}

// Members returns the addresses of the cluster's nodes that this process
// knows to be up, itself included if it is one, sorted.
func Members(of Place) []string {
	members, _ := membersOf(of)
	return members
}

func membersOf(of Place) ([]string, <-chan struct{}) {
	s, d := of.system(), directoryOf(of)
	d.mu.Lock()
	defer d.mu.Unlock()
	var members []string
	if dialable(s.host) {
		members = append(members, s.host)
	}
	for host := range d.others {
		if dialable(host) {
			members = append(members, host)
		}
	}
	slices.Sort(members)
	return members, d.changed
}

// WaitForMembers blocks until the cluster has at least n nodes that this
// process knows of, or returns the error of ctx, or ErrClosed.
func WaitForMembers(ctx context.Context, of Place, n int) (err error) {
	defer doing(&err, "wait for %d members", n)
	for {
		members, changed := membersOf(of)
		if len(members) >= n {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("have %d: %w", len(members), context.Cause(ctx))
		case <-of.system().ctx.Done():
			return ErrClosed
		}
	}
}

// ---- Nodes.

// StartNode starts a system that others can dial, and joins the cluster of
// its seeds: those that are not there yet, it keeps trying. It returns at
// once. The error names the setting that cannot work, or is about listening.
func StartNode(cfg Config) (_ *System, err error) {
	defer doing(&err, "start node %q", cfg.Address)
	cfg = cfg.withDefaults()
	if err := cfg.check(); err != nil {
		return nil, err
	}
	// This is not in check, since a client may have GetClientCertificate alone.
	if t := cfg.TLS; t != nil && len(t.Certificates) == 0 && t.GetCertificate == nil && t.GetConfigForClient == nil {
		return nil, errors.New("TLS has no certificate")
	}
	listener, address, err := listen(cfg)
	if err != nil {
		return nil, err
	}
	return join(cfg, address, listener), nil
}

// listen binds a node, and tells what its peers dial.
func listen(cfg Config) (listener net.Listener, address string, err error) {
	listener = cfg.Listener
	if listener == nil {
		listener, err = net.Listen("tcp", cmp.Or(cfg.Address, "127.0.0.1:0"))
	}
	if err != nil {
		return nil, "", err
	}
	if address, err = reachable(cfg.Address, listener.Addr().String()); err != nil {
		if cfg.Listener == nil {
			listener.Close()
		}
		return nil, "", err
	}
	if at, ok := listener.Addr().(*net.TCPAddr); ok && !at.IP.IsLoopback() && cfg.TLS == nil {
		cfg.Logger.Warn("casty: listening without TLS: whoever can connect can send anything to any actor", "on", at.String())
	}
	return listener, address, nil
}

// reachable is the address that peers dial: the one wanted, if any, or the one that
// is listened on. A wanted port 0 stands for the port that is listened on.
func reachable(wanted, bound string) (string, error) {
	host, port, err := net.SplitHostPort(cmp.Or(wanted, bound))
	if err != nil {
		return "", err
	}
	if port == "0" {
		_, port, _ = net.SplitHostPort(bound)
	}
	address := net.JoinHostPort(host, port)
	if net.ParseIP(host).IsUnspecified() {
		return "", fmt.Errorf("peers cannot dial %s: set Address to what they can dial, and Listener to listen on all interfaces", address)
	}
	return address, checkHost(address)
}

// join makes a system with a network and a receptionist.
func join(cfg Config, host string, listener net.Listener) *System {
	learn(announcement{}, departure{})
	s := newSystem(cfg, host)
	s.network = newRemote(s, listener)
	spawn(s, receptionistName, maxPending, func(self *Actor[receptionistMsg]) {
		(&receptionist{self: self, directory: directoryOf(self), strangers: map[string]int{}}).run()
	})
	return s
}

// ---- The receptionist.

// A receptionist's fields are owned by its actor's goroutine, but for what the
// directory guards. Since the receptionist alone writes the map others, it reads that
// without the lock.
type receptionist struct {
	self *Actor[receptionistMsg]
	*directory
	strangers map[string]int // by host: at how many heartbeats more it is contacted
}

func (r *receptionist) run() {
	tick := time.NewTicker(r.self.in.config.Heartbeat)
	defer tick.Stop()
	r.announce(r.contacts())
	for {
		select {
		case msg := <-r.self.Mailbox():
			r.receive(msg)
		case <-r.ownChanged:
			r.announce(nil)
		case <-tick.C:
			r.expire()
			r.announce(r.contacts())
		case <-r.self.Done():
			r.tell(departure{r.self.in.host}, slices.Collect(maps.Keys(r.others)))
			return
		}
	}
}

// ours is what this process announces, as far as a message has room: of the services
// always the first, of the members others each time, as a map has a random order.
// Nobody lists a client's services.
func (r *receptionist) ours() announcement {
	var services []service
	var members []string
	s := r.self.in
	if dialable(s.host) {
		r.mu.Lock()
		for o := range r.own {
			services = append(services, service{o.key, o.actor.URI()})
		}
		r.mu.Unlock()
	}
	slices.SortFunc(services, service.compare)
	for host := range r.others {
		if dialable(host) {
			members = append(members, host)
		}
	}
	listed := fitting(services, maxServices, s.config.MaxMessage/4*3, func(s service) int { return len(s.Key) + len(s.URI) })
	if len(listed) < len(services) {
		r.tooMany("services of this node", len(listed))
	}
	named := fitting(members, maxNamed, s.config.MaxMessage/8, func(host string) int { return len(host) })
	return announcement{s.host, listed, named}
}

// fitting returns as many of all, from the front, as are allowed and have room, with
// the bytes that gob adds to each.
func fitting[T any](all []T, most, room int, size func(T) int) []T {
	for i, one := range all {
		if room -= size(one) + 10; room < 0 || i == most {
			return all[:i]
		}
	}
	return all
}

// announce tells whoever has been heard from, and some besides.
func (r *receptionist) announce(besides []string) {
	r.tell(r.ours(), slices.AppendSeq(besides, maps.Keys(r.others)))
}

// contacts are the seeds that are not heard from, and the strangers, each of which has
// one contact less to come after each call. The strangers are in the random order of a
// map: since only so many can be dialled at once, each has its turn.
func (r *receptionist) contacts() (hosts []string) {
	for _, seed := range r.self.in.config.Seeds {
		if _, heard := r.others[seed]; !heard {
			hosts = append(hosts, seed)
		}
	}
	for host, left := range r.strangers {
		hosts = append(hosts, host)
		if left > 1 {
			r.strangers[host] = left - 1
		} else {
			delete(r.strangers, host)
		}
	}
	return hosts
}

// tell tells other receptionists. To lose it does no harm.
func (r *receptionist) tell(msg receptionistMsg, hosts []string) {
	s := r.self.in
	for _, host := range hosts {
		if host != s.host { // a node may be among its own seeds
			ref := ActorRef[receptionistMsg]{Address{System: s.config.Name, Host: host, Name: receptionistName}}
			ref.tell(r.self, msg)
		}
	}
}

func (r *receptionist) receive(msg receptionistMsg) {
	switch m := msg.(type) {
	case announcement:
		if m.From != r.self.in.host { // it is ours if the node is among its own seeds, by another name
			r.hear(m)
		}
	case departure:
		r.forget(m.From)
	}
}

// hear takes in what another process says of itself. Of what it says of others
// only this counts: that there are such. They are contacted at once, and heard
// from when they answer. A process that is new, or back, is answered at once, unless
// it has just been named and contacted, so that this is its own answer.
func (r *receptionist) hear(a announcement) {
	var greet []string
	left := r.strangers[a.From] // before note deletes it
	isAnswer := 0 < left && left <= triesNamed
	if known := r.note(a.From, r.offers(a)); !known && !isAnswer {
		greet = append(greet, a.From)
	}
	for _, host := range a.Members[:min(len(a.Members), maxNamed)] {
		if r.unknown(host) {
			r.remember(host, triesNamed)
			greet = append(greet, host)
		}
	}
	if len(greet) > 0 {
		r.tell(r.ours(), greet)
	}
}

// note enters a process, and says whether it had been heard from of late.
func (r *receptionist) note(host string, offers []offer) (known bool) {
	delete(r.strangers, host)
	r.mu.Lock()
	defer r.mu.Unlock()
	old, known := r.others[host]
	r.others[host] = peer{time.Now(), offers}
	if !known || !slices.Equal(offers, old.offers) {
		r.change()
	}
	return known
}

// offers are what a node announces of its own, sorted, so that note can compare
// them. A client's are not listed, and nobody speaks for another.
func (r *receptionist) offers(a announcement) (offers []offer) {
	if !dialable(a.From) {
		return nil
	}
	for _, s := range slices.SortedFunc(slices.Values(a.Services), service.compare) {
		actor, err := ParseAddress(s.URI)
		if err == nil && actor.Host == a.From && actor.System == r.self.in.config.Name {
			offers = append(offers, offer{s.Key, actor})
		}
	}
	if len(offers) > maxServices {
		r.tooMany("services of "+a.From, maxServices)
		offers = offers[:maxServices]
	}
	return offers
}

// unknown says whether a host can be a node, and is neither heard from nor a
// stranger.
func (r *receptionist) unknown(host string) bool {
	_, heard := r.others[host]
	_, stranger := r.strangers[host]
	return !heard && !stranger &&
		host != r.self.in.host && dialable(host) && checkHost(host) == nil
}

// remember makes a host a stranger. If there are too many, another one goes: one
// that was only named, if there is such, since it has been contacted already. So
// names that somebody makes up keep nobody out.
func (r *receptionist) remember(host string, heartbeats int) {
	if len(r.strangers) >= maxStrangers {
		r.tooMany("nodes that do not answer", maxStrangers)
		var other string
		for candidate, left := range r.strangers {
			other = candidate
			if left <= triesNamed { // or a lost one that has few left
				break
			}
		}
		delete(r.strangers, other)
	}
	r.strangers[host] = heartbeats
}

// tooMany logs, now and then, that a limit is exceeded.
func (r *receptionist) tooMany(of string, limit int) {
	r.self.in.warn("too many "+of, "casty: too many", "of", of, "limit", limit)
}

// expire makes strangers of the nodes that have been silent for too long. A client
// is forgotten, since nobody can dial it.
func (r *receptionist) expire() {
	for host, p := range r.others {
		if time.Since(p.heard) < unheard*r.self.in.config.Heartbeat {
			continue
		}
		r.forget(host)
		if dialable(host) {
			r.remember(host, triesLost)
		}
	}
}

// forget is about a process that has left, or is lost.
func (r *receptionist) forget(host string) {
	delete(r.strangers, host)
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, known := r.others[host]; known {
		delete(r.others, host)
		r.change()
	}
}
