package casty

// Every process has a receptionist, an actor at a well-known name. It keeps
// what this process knows of the cluster, and tells the others of itself:
//
//	announcement{From, Heartbeat, Services, Members}   all my services, and the nodes I have heard from
//	departure{From}                                    I leave
//
// An announcement goes to every node and observer known, at each change and
// once per heartbeat. It is always the full set, and a node speaks only for
// itself, so there is nothing to merge, and one that is lost or repeated does
// no harm. What others say of a third node is only a reason to contact it:
// members are those that have been heard from, or a dead one would live on in
// what the others repeat. Seeds are the first to be contacted. A client, which
// nobody can dial, is an observer: it is told everything and listed nowhere.

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
	unheard     = 4    // heartbeats without an announcement before a node's services are no longer listed
	forgetAfter = 1000 // and before it is no longer tried, unless it is a seed
	maxMembers  = 1000 // that a process keeps track of; more are ignored
)

type receptionistMsg interface{ receptionistMsg() }

type (
	announcement struct {
		From      string // host
		Heartbeat time.Duration
		Services  []service
		Members   []string
	}
	departure struct{ From string }
	service   struct{ Key, URI string }
)

func (announcement) receptionistMsg() {}
func (departure) receptionistMsg()    {}

// from lets the connection that a message came over vouch for its sender.
func (a announcement) from() string { return a.From }
func (d departure) from() string    { return d.From }

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
	mu        sync.Mutex // guards what follows
	own       map[service]context.CancelFunc
	others    map[string]*member // by host
	changed   chan struct{}      // closed, and replaced, when services or members change
	announced chan struct{}      // tells the receptionist that own has changed
}

// A member is another process that has been heard from.
type member struct {
	heard     time.Time
	heartbeat time.Duration // how often to expect an announcement
	lost      bool          // not heard from of late: not listed, but still tried
	services  []service
}

// directoryOf returns a system's directory, which every system has.
func directoryOf(in Host) *directory {
	s := in.system()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.directory == nil {
		s.directory = &directory{
			own:       map[service]context.CancelFunc{},
			others:    map[string]*member{},
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

// changeOwn is change, and has the receptionist tell the others.
func (d *directory) changeOwn() {
	d.change()
	poke(d.announced)
}

// Register lists an actor of this system under a key, in every process of the
// cluster, until it stops or is deregistered. Lookup here sees it at once. It
// fails with ErrNotLocal for an actor of another process.
func Register[M any](in Host, key ServiceKey[M], ref ActorRef[M]) error {
	s := in.system()
	if !s.local(ref.address) {
		return fmt.Errorf("casty: register %v as %q: %w", ref, key.name, ErrNotLocal)
	}
	d := directoryOf(in)
	d.mu.Lock()
	entry := service{key.name, ref.address.URI()}
	if d.own[entry] != nil {
		d.mu.Unlock()
		return nil
	}
	ctx, cancel := context.WithCancel(s.ctx)
	d.own[entry] = cancel
	d.changeOwn()
	d.mu.Unlock()
	ended := make(chan error, 1)
	s.watchUntil(ctx, ref.address, typeName[M](), func(err error) {
		Deregister(in, key, ref)
		ended <- err
	})
	select {
	case err := <-ended:
		return fmt.Errorf("casty: register %v as %q: %w", ref, key.name, err)
	default:
		return nil
	}
}

// Deregister takes a registration back. It does nothing if there is none.
func Deregister[M any](in Host, key ServiceKey[M], ref ActorRef[M]) {
	d := directoryOf(in)
	d.mu.Lock()
	defer d.mu.Unlock()
	entry := service{key.name, ref.address.URI()}
	if unwatch := d.own[entry]; unwatch != nil {
		delete(d.own, entry)
		d.changeOwn()
		unwatch()
	}
}

// Discoverable is a behaviour that registers its actor first of all: soon
// after Spawn has returned, as Listings tells.
func Discoverable[M any](key ServiceKey[M], behavior Behavior[M]) Behavior[M] {
	return func(self *Actor[M]) {
		if err := Register(self, key, self.Ref()); err != nil {
			panic(err) // nobody else can have stopped it yet
		}
		behavior(self)
	}
}

// Lookup returns the instances known at this moment. It asks nobody: the
// answer is in this process.
func Lookup[M any](from Host, key ServiceKey[M]) Listing[M] {
	listing, _ := lookup(from, key)
	return listing
}

// lookup also returns what is closed when the listing may no longer hold.
func lookup[M any](from Host, key ServiceKey[M]) (Listing[M], <-chan struct{}) {
	d := directoryOf(from)
	listing := Listing[M]{Key: key}
	d.mu.Lock()
	add := func(entry service) {
		if address, err := ParseAddress(entry.URI); err == nil && entry.Key == key.name {
			listing.Instances = append(listing.Instances, ServiceInstance[M]{ActorRef[M]{address}, address.Host})
		}
	}
	for entry := range d.own {
		add(entry)
	}
	for _, m := range d.others {
		for _, entry := range m.services {
			add(entry)
		}
	}
	changed := d.changed
	d.mu.Unlock()
	slices.SortFunc(listing.Instances, func(a, b ServiceInstance[M]) int {
		return strings.Compare(a.Ref.address.URI(), b.Ref.address.URI())
	})
	return listing, changed
}

// Listings yields the listing now and after every change, until ctx ends or
// the system is closed. Of changes that come faster than the loop turns, it
// yields the last.
func Listings[M any](ctx context.Context, from Host, key ServiceKey[M]) iter.Seq[Listing[M]] {
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
func Members(of Host) []string {
	members, _ := membersOf(of)
	return members
}

func membersOf(of Host) ([]string, <-chan struct{}) {
	s, d := of.system(), directoryOf(of)
	d.mu.Lock()
	defer d.mu.Unlock()
	var members []string
	if dialable(s.host) {
		members = append(members, s.host)
	}
	for host, m := range d.others {
		if dialable(host) && !m.lost {
			members = append(members, host)
		}
	}
	slices.Sort(members)
	return members, d.changed
}

// WaitForMembers blocks until the cluster has at least n nodes that this
// process knows of, or returns the error of ctx, or ErrClosed.
func WaitForMembers(ctx context.Context, of Host, n int) error {
	for {
		members, changed := membersOf(of)
		if len(members) >= n {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("casty: wait for %d members, have %d: %w", n, len(members), context.Cause(ctx))
		case <-of.system().ctx.Done():
			return fmt.Errorf("casty: wait for %d members: %w", n, ErrClosed)
		}
	}
}

// StartNode starts a system that others can dial, and joins the cluster of
// its seeds: those that are not there yet, it keeps trying. It returns at
// once. The error is about the configuration, or about listening.
func StartNode(cfg Config) (*System, error) {
	cfg = cfg.withDefaults()
	node, err := startNode(cfg)
	if err != nil {
		return nil, fmt.Errorf("casty: start node %q: %w", cfg.Address, err)
	}
	return node, nil
}

func startNode(cfg Config) (*System, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	listener, address, err := listen(cfg)
	if err != nil {
		return nil, err
	}
	return join(cfg, address, listener)
}

// join makes a system with a network and a receptionist.
func join(cfg Config, host string, listener net.Listener) (*System, error) {
	s := newSystem(cfg, host)
	s.network = newRemote(s, listener)
	learn(announcement{}, departure{})
	_, err := spawn(s, receptionistName, func(self *Actor[receptionistMsg]) {
		(&receptionist{self: self, directory: directoryOf(self)}).run()
	})
	return s, err
}

// A receptionist's fields are owned by its actor's goroutine.
type receptionist struct {
	self *Actor[receptionistMsg]
	tick *time.Timer
	soon bool // the next tick has been brought forward
	// hearsay are the strangers that we have heard of, and when it is our turn
	// to contact them: when many nodes join at once, each hears of each from all.
	hearsay map[string]time.Time
	*directory
}

func (r *receptionist) run() {
	heartbeat := r.self.in.config.Heartbeat
	r.tick, r.hearsay = time.NewTimer(heartbeat), map[string]time.Time{}
	r.announce()
	for {
		select {
		case msg := <-r.self.Mailbox():
			r.hear(msg)
		case <-r.announced:
			r.announce()
		case <-r.tick.C:
			r.soon = false
			r.tick.Reset(heartbeat)
			r.expire()
			r.announce()
		case <-r.self.Done():
			_, others := r.now()
			for _, host := range others {
				r.tell(host, departure{r.self.in.host})
			}
			return
		}
	}
}

// now returns what to announce, and to whom. Those lost are told as well: it
// is how they find back, if they still live.
func (r *receptionist) now() (announcement, []string) {
	members, _ := membersOf(r.self)
	r.mu.Lock()
	defer r.mu.Unlock()
	services := slices.Collect(maps.Keys(r.own))
	others := slices.Collect(maps.Keys(r.others))
	return announcement{r.self.in.host, r.self.in.config.Heartbeat, services, members}, others
}

func (r *receptionist) announce() {
	a, others := r.now()
	others = append(others, r.self.in.config.Seeds...)
	slices.Sort(others)
	for _, host := range slices.Compact(others) {
		if host != a.From {
			r.tell(host, a)
		}
	}
}

// tell tells another receptionist. What does not arrive will be said again,
// in vain only if there is more of it than MaxMessage.
func (r *receptionist) tell(host string, msg receptionistMsg) {
	ref := ActorRef[receptionistMsg]{Address{r.self.in.config.Name, host, receptionistName, ""}}
	if err := ref.tell(r.self, msg); errors.Is(err, ErrUnsendable) {
		r.self.in.warn("casty: announce", "to", host, "reason", err)
	}
}

func (r *receptionist) hear(msg receptionistMsg) {
	switch m := msg.(type) {
	case announcement:
		if m.From == r.self.in.host {
			return // we are among our own seeds, by another name
		}
		known, ok := r.note(m)
		if !ok {
			return
		}
		strangers := r.strangers(m.Members)
		if known && len(strangers) == 0 {
			return
		}
		a, _ := r.now()
		if !known {
			r.tell(m.From, a)
			r.hurry()
		}
		for _, host := range strangers {
			r.tell(host, a) // it becomes a member when it answers
		}
	case departure:
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.others[m.From] != nil {
			delete(r.others, m.From)
			r.change()
		}
	}
}

// strangers are those of a peer's members that it is our turn to contact, at
// most twice per heartbeat. Of two nodes that hear of each other, the lesser
// goes first, or most would end up with two connections between them.
func (r *receptionist) strangers(members []string) (hosts []string) {
	self, now := r.self.in.host, time.Now()
	pause := r.self.in.config.Heartbeat / 2
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, host := range members {
		turn, heard := r.hearsay[host]
		switch {
		case host == self || r.others[host] != nil || checkHost(host) != nil || !dialable(host):
		case !heard && len(r.others)+len(r.hearsay) >= maxMembers:
		case !heard && dialable(self) && self > host:
			r.hearsay[host] = now.Add(pause)
		case !now.Before(turn):
			r.hearsay[host] = now.Add(pause)
			hosts = append(hosts, host)
		}
	}
	return hosts
}

// hurry brings the next tick forward, to tell the others of a new node: of all
// who join together, at once.
func (r *receptionist) hurry() {
	if !r.soon {
		r.soon = true
		r.tick.Reset(r.self.in.config.Heartbeat / 16)
	}
}

// note takes in what another process says of itself, and says whether we
// already knew of it; not ok if there are too many.
func (r *receptionist) note(a announcement) (known, ok bool) {
	services := slices.DeleteFunc(a.Services, func(entry service) bool {
		address, err := ParseAddress(entry.URI)
		return err != nil || !dialable(a.From) || address.Host != a.From // not a node, or it speaks for another
	})
	slices.SortFunc(services, func(a, b service) int {
		return cmp.Or(strings.Compare(a.Key, b.Key), strings.Compare(a.URI, b.URI))
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	old := r.others[a.From]
	if old == nil && len(r.others) >= maxMembers {
		return false, false
	}
	known = old != nil && !old.lost
	r.others[a.From] = &member{heard: time.Now(), heartbeat: r.self.in.config.slower(a.Heartbeat), services: services}
	delete(r.hearsay, a.From)
	if !known || !slices.Equal(services, old.services) {
		r.change()
	}
	return known, true
}

// expire drops those that have not been heard from, and the strangers when
// there is no room for more: those that live will be heard of again.
func (r *receptionist) expire() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.others)+len(r.hearsay) >= maxMembers {
		clear(r.hearsay)
	}
	for host, m := range r.others {
		silent := time.Since(m.heard) / m.heartbeat
		if silent >= unheard && !m.lost {
			m.lost, m.services = true, nil
			r.change()
		}
		if m.lost && (silent >= forgetAfter || !dialable(host)) {
			delete(r.others, host)
		}
	}
}
