package casty

// Every process has a receptionist, an actor at a well-known name. It keeps
// what this process knows of the cluster, and tells the others of itself:
//
//	announcement{From, Services, Members}   all my services, and the nodes that I have heard from
//	departure{From}                         I leave
//
// An announcement goes to all that are known, at each change and once per
// heartbeat. It is always the full set, and a node speaks only for itself, so
// there is nothing to merge, and an announcement that is lost or repeated does
// no harm.
//
// Hearsay is not membership. What others say of a third node is only a reason
// to contact it: members are those that have been heard from, or a dead node
// would live on in what the others repeat. The seeds are the first to be
// contacted, and are contacted at every heartbeat. A client, which nobody can
// dial, is told everything and listed nowhere.

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"net"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	unheard      = 4      // heartbeats without an announcement before a node is lost, and no longer listed
	tries        = 1000   // to find a lost node, one per heartbeat
	maxStrangers = 1000   // that are contacted at once, and that one announcement can name; others take their turn
	maxServices  = 10_000 // of one node; others are not listed
)

type receptionistMsg interface{ receptionistMsg() }

type (
	announcement struct {
		From     string // host
		Services []service
		Members  []string // hosts
	}
	departure struct{ From string }
	service   struct{ Key, URI string }
)

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

// A directory is what a process knows of services and members.
type directory struct {
	mu        sync.Mutex                   // guards what follows
	own       map[offer]context.CancelFunc // ends the watch on the actor
	others    map[string]member            // by host
	changed   chan struct{}                // closed, and replaced, when services or members change
	announced chan struct{}                // tells the receptionist that own has changed
}

// An offer is an actor that is listed under a key.
type offer struct {
	key   string
	actor Address
}

// A member is another process that has been heard from of late.
type member struct {
	heard  time.Time
	offers []offer
}

// directoryOf returns a system's directory, which every system has.
func directoryOf(in Place) *directory {
	s := in.system()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.directory == nil {
		s.directory = &directory{
			own:       map[offer]context.CancelFunc{},
			others:    map[string]member{},
			changed:   make(chan struct{}),
			announced: make(chan struct{}, 1),
		}
	}
	return s.directory.(*directory)
}

// change tells those who follow. The caller holds d.mu.
func (d *directory) change() {
	close(d.changed)
	d.changed = make(chan struct{})
}

// add lists an actor of this process, unless it is listed already.
func (d *directory) add(o offer, unwatch context.CancelFunc) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.own[o] != nil {
		return false
	}
	d.own[o] = unwatch
	d.change()
	poke(d.announced)
	return true
}

func (d *directory) remove(o offer) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if unwatch := d.own[o]; unwatch != nil {
		unwatch()
		delete(d.own, o)
		d.change()
		poke(d.announced)
	}
}

// Register lists an actor of this system under a key, in every process of the
// cluster, until it stops or is deregistered. Lookup here sees it at once,
// others within a heartbeat. To register it again changes nothing. The error
// is ErrNotLocal for an actor of another process, ErrStopped for one that has
// stopped, or ErrWrongType for one that takes other messages.
func Register[M any](in Place, key ServiceKey[M], ref ActorRef[M]) (err error) {
	defer doing(&err, "register %v as %q", ref, key.name)
	s := in.system()
	if !s.local(ref.address) {
		return ErrNotLocal
	}
	if takes := s.takes(ref.address); takes != typeName[M]() {
		return mismatch(takes, typeName[M]())
	}
	ctx, cancel := context.WithCancel(s.ctx)
	if directoryOf(in).add(offer{key.name, ref.address}, cancel) {
		s.watch(ctx, &watch{target: ref.address, takes: typeName[M](), fire: func(error) { Deregister(in, key, ref) }})
	} else {
		cancel() // it is watched already
	}
	return nil
}

// Deregister takes a registration back. It does nothing if there is none.
func Deregister[M any](in Place, key ServiceKey[M], ref ActorRef[M]) {
	directoryOf(in).remove(offer{key.name, ref.address})
}

// Discoverable is a behaviour that registers its actor first of all: soon
// after Spawn has returned, as Listings tells.
func Discoverable[M any](key ServiceKey[M], behavior Behavior[M]) Behavior[M] {
	return func(self *Actor[M]) {
		if err := Register(self, key, self.Ref()); err == nil {
			behavior(self)
		} // otherwise it has been asked to stop in the meantime
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
	for _, m := range d.others {
		for _, o := range m.offers {
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

func compare(a, b Address) int {
	return cmp.Or(strings.Compare(a.Host, b.Host), strings.Compare(a.path(), b.path()))
}

// Listings yields the listing now and after every change, until ctx ends or
// the system is closed. Of changes that come faster than the loop turns, it
// yields the last.
func Listings[M any](ctx context.Context, from Place, key ServiceKey[M]) iter.Seq[Listing[M]] {
	return func(yield func(Listing[M]) bool) {
		for first, last := true, (Listing[M]{}); ; first = false {
			listing, changed := lookup(from, key)
			if ctx.Err() != nil || from.system().ctx.Err() != nil {
				return
			}
			if (first || !slices.Equal(listing.Instances, last.Instances)) && !yield(listing) {
				return
			}
			last = listing
			select {
			case <-changed:
			case <-ctx.Done():
			case <-from.system().ctx.Done():
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

// StartNode starts a system that others can dial, and joins the cluster of
// its seeds: those that are not there yet, it keeps trying. It returns at
// once. The error names the setting that cannot work, or is about listening.
func StartNode(cfg Config) (_ *System, err error) {
	defer doing(&err, "start node %q", cfg.Address)
	cfg = cfg.withDefaults()
	if err := cfg.check(); err != nil {
		return nil, err
	}
	if t := cfg.TLS; t != nil && len(t.Certificates) == 0 && t.GetCertificate == nil && t.GetConfigForClient == nil {
		return nil, errors.New("TLS has no certificate")
	}
	listener, address, err := listen(cfg)
	if err != nil {
		return nil, err
	}
	return join(cfg, address, listener)
}

// listen binds a node, and tells what its peers dial.
func listen(cfg Config) (listener net.Listener, address string, err error) {
	if listener = cfg.Listener; listener == nil {
		if listener, err = net.Listen("tcp", cmp.Or(cfg.Address, "127.0.0.1:0")); err != nil {
			return nil, "", err
		}
	}
	if address, err = reachable(cfg.Address, listener.Addr().String()); err != nil {
		listener.Close()
		return nil, "", err
	}
	if at, ok := listener.Addr().(*net.TCPAddr); ok && !at.IP.IsLoopback() && cfg.TLS == nil {
		cfg.Logger.Warn("casty: listening without TLS: whoever can connect can send anything to any actor", "on", at.String())
	}
	return listener, address, nil
}

// reachable is the address that peers dial: the one wanted, if any, with the port
// that is listened on if it leaves that open.
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
		return "", fmt.Errorf("peers cannot dial %s: set Listener to listen on all interfaces", address)
	}
	return address, checkHost(address)
}

// join makes a system with a network and a receptionist.
func join(cfg Config, host string, listener net.Listener) (*System, error) {
	learn(announcement{}, departure{})
	s := newSystem(cfg, host)
	s.network = newRemote(s, listener)
	_, err := spawn(s, receptionistName, maxStrangers, func(self *Actor[receptionistMsg]) {
		(&receptionist{self: self, directory: directoryOf(self), strangers: map[string]int{}}).run()
	})
	return s, err
}

// A receptionist's fields are owned by its actor's goroutine.
type receptionist struct {
	self *Actor[receptionistMsg]
	*directory
	// strangers are nodes that have been named, or lost, and at how many
	// heartbeats more they are contacted. That is how the lost find back, if
	// they still live. Those that others name will be named again.
	strangers map[string]int
}

func (r *receptionist) run() {
	tick := time.NewTicker(r.self.in.config.Heartbeat)
	defer tick.Stop()
	r.announce(r.self.in.config.Seeds)
	for {
		select {
		case msg := <-r.self.Mailbox():
			r.receive(msg)
		case <-r.announced:
			r.announce(nil)
		case <-tick.C:
			r.expire()
			r.announce(r.contacts())
		case <-r.self.Done():
			_, others := r.now()
			r.tell(departure{r.self.in.host}, others...)
			return
		}
	}
}

// now returns what to announce, and to whom at least.
func (r *receptionist) now() (a announcement, others []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	a.From = r.self.in.host
	for o := range r.own {
		a.Services = append(a.Services, service{o.key, o.actor.URI()})
	}
	for host := range r.others { // others each time, if there are too many
		others = append(others, host)
		if dialable(host) && len(a.Members) < maxStrangers {
			a.Members = append(a.Members, host)
		}
	}
	return a, others
}

func (r *receptionist) announce(more []string) {
	a, hosts := r.now()
	hosts = append(hosts, more...)
	slices.Sort(hosts)
	r.tell(a, slices.Compact(hosts)...)
}

// contacts are those to be told at this heartbeat, though they are not known.
func (r *receptionist) contacts() []string {
	hosts := slices.Clone(r.self.in.config.Seeds)
	for host, left := range r.strangers {
		hosts = append(hosts, host)
		if r.strangers[host] = left - 1; left <= 1 {
			delete(r.strangers, host)
		}
	}
	return hosts
}

// tell tells other receptionists. What is lost is said again. Only what is larger
// than MaxMessage never arrives.
func (r *receptionist) tell(msg receptionistMsg, hosts ...string) {
	s := r.self.in
	for _, host := range hosts {
		if host == s.host {
			continue // a node may be among its own seeds
		}
		ref := ActorRef[receptionistMsg]{Address{s.config.Name, host, receptionistName, ""}}
		if err := ref.tell(r.self, msg); errors.Is(err, ErrUnsendable) {
			s.warn("announce", "casty: announce", "to", host, "reason", err)
		}
	}
}

func (r *receptionist) receive(msg receptionistMsg) {
	switch m := msg.(type) {
	case announcement:
		if m.From != r.self.in.host { // or the node is among its own seeds, by another name
			r.hear(m)
		}
	case departure:
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.others, m.From)
		r.change()
	}
}

// hear takes in what another process says of itself. Of what it says of others
// only this counts: that there are such. They are contacted at once, and become
// members when they answer.
func (r *receptionist) hear(a announcement) {
	var news []string
	if !r.note(a.From, r.offers(a)) {
		news = append(news, a.From)
	}
	for _, host := range a.Members {
		if r.unknown(host) && r.room("members of "+a.From, len(news), maxStrangers) {
			r.contact(host)
			news = append(news, host)
		}
	}
	if len(news) > 0 {
		ours, _ := r.now()
		r.tell(ours, news...)
	}
}

// note makes a process a member, and says whether it had been one.
func (r *receptionist) note(host string, offers []offer) (known bool) {
	delete(r.strangers, host)
	r.mu.Lock()
	defer r.mu.Unlock()
	old, known := r.others[host]
	r.others[host] = member{time.Now(), offers}
	if !known || !slices.Equal(offers, old.offers) {
		r.change()
	}
	return known
}

// offers are what a node announces of its own, sorted: a client's are not
// listed, and nobody speaks for another.
func (r *receptionist) offers(a announcement) (offers []offer) {
	for _, s := range a.Services {
		actor, err := ParseAddress(s.URI)
		if err == nil && dialable(a.From) && actor.Host == a.From && r.room("services of "+a.From, len(offers), maxServices) {
			offers = append(offers, offer{s.Key, actor})
		}
	}
	slices.SortFunc(offers, func(a, b offer) int {
		return cmp.Or(strings.Compare(a.key, b.key), compare(a.actor, b.actor))
	})
	return offers
}

// unknown says whether a node is neither a member nor being contacted.
func (r *receptionist) unknown(host string) bool {
	_, member := r.others[host]
	_, stranger := r.strangers[host]
	return !member && !stranger &&
		host != r.self.in.host && dialable(host) && checkHost(host) == nil
}

// contact makes a node that was named a stranger, in place of another such if
// there are too many: whoever is named has a turn, so that made-up names keep
// nobody out.
func (r *receptionist) contact(host string) {
	if !r.room("nodes that do not answer", len(r.strangers), maxStrangers) {
		for other, left := range r.strangers {
			if left == 1 {
				delete(r.strangers, other)
				break
			}
		}
	}
	r.strangers[host] = 1
}

// room says whether there may be more of what peers can make up, and logs if
// not. Who answers cannot be made up.
func (r *receptionist) room(of string, have, most int) bool {
	if have >= most {
		r.self.in.warn("too many "+of, "casty: too many", "of", of, "limit", most)
	}
	return have < most
}

// expire makes strangers of the nodes that have not been heard from.
func (r *receptionist) expire() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for host, m := range r.others {
		if time.Since(m.heard) < unheard*r.self.in.config.Heartbeat {
			continue
		}
		delete(r.others, host)
		r.change()
		if dialable(host) {
			r.strangers[host] = tries
		}
	}
}
