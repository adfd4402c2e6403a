package main

import (
	"fmt"
	"iter"
	"math/bits"
)

// The world: a producer, the consumers A and B, and between the producer and
// each of them two directions of messages. What can happen, and what must not.

type (
	position  = uint8 // up to 7
	name      uint8   // of a consumer
	direction uint8
	phase     uint8 // of a consumer
	outcome   uint8 // of the stream
)

const (
	A, B, nobody name = 0, 1, 2

	up, down direction = 0, 1 // to the producer, to the consumer
)

const (
	absent phase = iota
	running
	gone // for one of the reasons that follow, which nobody asks for later
	refused
	overtaken // it cannot resume
	stopped   // with the producer
	resigned  // nobody heeds its last word
	crashed
)

const (
	no outcome = iota
	completed
	cancelled
)

// A message is a kind and up to two positions, of three bits each.
type message uint16

func say(kind uint8, positions ...position) message {
	m := message(kind) << 6
	for i, p := range positions {
		m |= message(p) << (3 - 3*i)
	}
	return m
}

func (m message) kind() uint8      { return uint8(m >> 6) }
func (m message) seq() position    { return position(m >> 3 & 7) } // From, Seq or Received
func (m message) demand() position { return position(m & 7) }

// A queue is up to seven messages under way, the first one lowest.
type queue uint64

const inQueue = 9 // bits for each message, of which none is zero

func (q queue) len() int              { return (bits.Len64(uint64(q)) + inQueue - 1) / inQueue }
func (q queue) first() message        { return message(q & (1<<inQueue - 1)) }
func (q queue) last() message         { return q.after(max(q.len()-1, 0)).first() }
func (q queue) before(i int) queue    { return q & (1<<(inQueue*i) - 1) }
func (q queue) after(i int) queue     { return q >> (inQueue * i) }
func (q queue) with(m message) queue  { return q | queue(m)<<(inQueue*q.len()) }
func (q *queue) pop() (first message) { first, *q = q.first(), q.after(1); return first }

// A link is one direction between the producer and a consumer: its connection,
// and perhaps what was under way on an earlier one. Each of the two keeps its
// order, and neither waits for the other.
type link struct{ now, late queue }

// A state has a few bytes and no pointers, so that millions can be compared.
type state struct {
	producer  producer
	consumers [2]consumer
	links     [2][2]link // of A and B, up and down
	spent     faults

	// Known to the checks alone.
	got    [2]uint8 // the positions that each user was handed, one bit each; the end is one more
	served [2]bool  // at any time
	sent   uint8    // the positions that have been sent, with -twice
	twice  uint8    // those of them that were not acknowledged when one took the other's place
}

type faults struct{ losses, cuts, crashes, again int8 }

const unlimited = -1

// A world is what can happen: the rules, and how much is against them.
type world struct {
	rules
	faults
	consumers int  // at the same time
	capacity  int  // messages under way in one direction of a connection
	cancels   bool // users may leave
	silent    bool // a consumer that has crashed is only ever unreachable
	slow      bool // users take their time to consume
	repeats   bool // also ticks while messages are under way, and demands that overtake each other
	checks    bool // -twice
}

func (w *world) String() string {
	s := fmt.Sprintf("%d elements, window %d, %d consumers, %d messages under way; losses %d, cuts %d, crashes %d, newcomers %d",
		w.elements, w.window, w.consumers, w.capacity, w.losses, w.cuts, w.crashes, w.again)
	for _, f := range []struct {
		on   bool
		name string
	}{{w.cancels, "cancels"}, {w.silent, "silent"}, {w.slow, "slow"}, {w.repeats, "repeats"}, {w.checks, "twice"}} {
		if f.on {
			s += ", " + f.name
		}
	}
	if w.bug != "" {
		s += "; the mistake " + w.bug
	}
	return s
}

// A step is what happens next, and the state that it leads to.
type step struct {
	state
	x      name      // whom it is about: the consumer, or the one at the producer's other end
	at     direction // where it happens: up at the producer, down at the consumer
	what   string    // in words, unless a message is sent, heard or lost
	said   message
	heard  message
	late   bool
	lost   queue
	fault  bool   // things must come right without it
	broken string // the property that it breaks
}

// may says whether there may be one more of some fault, and counts it.
func may(spent *int8, limit int8) bool {
	switch {
	case limit == unlimited:
		return true
	case *spent < limit:
		*spent++
		return true
	}
	return false
}

// A move is something that can happen with consumer x, at one end. It changes
// the step's state, and says whether it was possible.
type move struct {
	at    direction
	what  string // in words, unless a message is sent or heard
	fault bool   // the world can do without, and things must come right without
	do    func(w *world, t *step, x name) bool
}

var moves = []move{
	{up, "", false, (*world).sends},
	{up, "", false, (*world).producerHearsNow},
	{up, "", false, (*world).producerHearsLate},
	{up, "is unreachable", true, (*world).cut},
	{up, "is unreachable, being gone", false, (*world).silence},
	{up, "has stopped", false, (*world).stop},
	{up, "was unreachable for a heartbeat", false, (*world).heartbeat},
	{down, "", false, (*world).consumerHearsNow},
	{down, "", false, (*world).consumerHearsLate},
	{down, "subscribes", true, (*world).begins},
	{down, "subscribes again", false, (*world).ticksQuietly},
	{down, "repeats itself", false, (*world).ticks},
	{down, "has consumed one", false, (*world).consumes},
	{down, "cancels", true, (*world).leaves},
	{down, "learns that the producer has stopped", false, (*world).learns},
	{down, "gives up: nobody heeds its last word", false, (*world).resigns},
	{down, "crashes", true, (*world).crash},
	{down, "makes way for a new consumer", true, (*world).makesWay},
}

// next ranges over all that can happen in a state.
func (w *world) next(s *state) iter.Seq[*step] {
	return func(yield func(*step) bool) {
		t := new(step)
		for x := A; int(x) < w.consumers; x++ {
			for i := range moves {
				m := &moves[i]
				*t = step{state: *s, x: x, at: m.at, what: m.what, fault: m.fault}
				if m.do(w, t, x) && !yield(t.settled()) {
					return
				}
			}
			for at := up; at <= down; at++ {
				for keep := 0; keep <= s.links[x][at].now.len(); keep++ {
					*t = step{state: *s, x: x, at: at, fault: true}
					if w.loses(t, x, at, keep) && !yield(t.settled()) {
						return
					}
				}
			}
		}
	}
}

// sends: the producer may take its time to do so.
func (w *world) sends(t *step, x name) bool {
	p := &t.producer
	before := p.acked
	if p.serves == x {
		t.said = w.producerSends(p)
	}
	if t.said == nothing || !w.push(t, x, down, t.said) {
		return false
	}
	t.checkSent(w, x, t.said, before)
	return true
}

func (w *world) producerHearsNow(t *step, x name) bool {
	return w.producerIsTold(t, x, &t.links[x][up].now)
}

func (w *world) producerHearsLate(t *step, x name) bool {
	t.late = true
	return w.producerIsTold(t, x, &t.links[x][up].late)
}

func (w *world) producerIsTold(t *step, x name, q *queue) bool {
	if q.len() == 0 {
		return false
	}
	before := t.producer
	t.heard = q.pop()
	w.tell(t, before.serves, w.producerHears(&t.producer, x, t.heard))
	t.checkHeard(w, x, before)
	return true
}

// serves says whether the producer serves a consumer, and believes that it can
// be reached or not.
func (t *step) serves(x name, lost bool) bool {
	return t.producer.serves == x && t.producer.lost == lost
}

// cut: the watch says so without a good reason.
func (w *world) cut(t *step, x name) bool {
	return t.serves(x, false) && t.lose() && may(&t.spent.cuts, w.cuts)
}

// silence: the watch has a good reason, but does not know it.
func (w *world) silence(t *step, x name) bool {
	return w.silent && t.serves(x, false) && t.consumers[x].phase == gone && t.lose()
}

func (t *step) lose() bool { t.producer.lost = true; return true }

// stop: the watch says so behind the consumer's last words, unless those are
// lost, or late.
func (w *world) stop(t *step, x name) bool {
	if w.silent || t.producer.serves != x || t.consumers[x].phase != gone || t.links[x][up].now.len() > 0 {
		return false
	}
	w.makesRoom(t, x)
	return true
}

func (w *world) heartbeat(t *step, x name) bool {
	if !t.serves(x, true) || t.producer.waits == nobody || w.bug == "loyal" {
		return false
	}
	w.makesRoom(t, x)
	return true
}

func (w *world) makesRoom(t *step, x name) {
	acked := t.producer.acked
	w.tell(t, x, w.producerLoses(&t.producer))
	t.checkDropped(t.producer.serves, acked)
}

func (w *world) consumerHearsNow(t *step, x name) bool {
	return w.consumerIsTold(t, x, &t.links[x][down].now)
}

func (w *world) consumerHearsLate(t *step, x name) bool {
	t.late = true
	return w.consumerIsTold(t, x, &t.links[x][down].late)
}

func (w *world) consumerIsTold(t *step, x name, q *queue) bool {
	if q.len() == 0 {
		return false
	}
	c := &t.consumers[x]
	before := *c
	t.heard = q.pop()
	t.said = w.consumerHears(c, t.heard)
	t.checkTaken(w, x, t.heard, before)
	for !w.slow && c.lastWord == nothing && c.consumed < c.received {
		t.said = w.consumerConsumes(c)
	}
	w.push(t, x, up, t.said)
	return true
}

// says is about a consumer that speaks unasked: it can wait until it can.
func (w *world) says(t *step, x name, m message) bool {
	t.said = m
	return w.push(t, x, up, m)
}

// begins: A is the first to do so, since the two are alike.
func (w *world) begins(t *step, x name) bool {
	c := &t.consumers[x]
	return c.phase == absent && (x == A || t.consumers[A].phase != absent || t.spent.again > 0) &&
		w.says(t, x, w.consumerSubscribes(c))
}

func (w *world) ticksQuietly(t *step, x name) bool { return w.ticking(t, x, true) }
func (w *world) ticks(t *step, x name) bool        { return w.ticking(t, x, false) }

// ticking: a heartbeat is longer than what is under way takes to arrive, or it
// is late. It is not always so, but w.repeats makes too many states.
func (w *world) ticking(t *step, x name, quiet bool) bool {
	underWay := t.links[x][up].now.len() + t.links[x][down].now.len()
	if t.consumers[x].phase != running || t.producer.stopped != no || underWay > 0 && !w.repeats {
		return false
	}
	m := w.consumerTicks(&t.consumers[x], quiet)
	return m != nothing && w.says(t, x, m)
}

func (w *world) consumes(t *step, x name) bool {
	c := &t.consumers[x]
	return c.phase == running && c.lastWord == nothing && c.consumed < c.received && w.says(t, x, w.consumerConsumes(c))
}

func (w *world) leaves(t *step, x name) bool {
	c := &t.consumers[x]
	return w.cancels && c.phase == running && c.lastWord == nothing && w.says(t, x, w.consumerCancels(c))
}

// ends is about a consumer that ends without being told so.
func (t *step) ends(x name, because phase) bool {
	c := &t.consumers[x]
	was := c.phase
	c.phase = because
	return was == running
}

// learns: the watch says so behind the producer's last words, unless those are
// lost, or late.
func (w *world) learns(t *step, x name) bool {
	return t.producer.stopped != no && t.links[x][down].now.len() == 0 && t.ends(x, stopped)
}

func (w *world) resigns(t *step, x name) bool {
	p, c := &t.producer, &t.consumers[x]
	return p.stopped == no && p.serves != x && p.waits != x && c.served && w.consumerGivesUp(c) && t.ends(x, resigned)
}

func (w *world) crash(t *step, x name) bool {
	if !t.ends(x, crashed) || !may(&t.spent.crashes, w.crashes) {
		return false
	}
	if w.bug == "namesake" {
		t.consumers[x] = consumer{phase: absent}
	}
	return true
}

// makesWay: the new one has a name of its own, and so nothing is under way to it.
func (w *world) makesWay(t *step, x name) bool {
	p := &t.producer
	if t.consumers[x].phase != gone || p.serves == x || p.waits == x || p.stopped != no || !may(&t.spent.again, w.again) {
		return false
	}
	t.consumers[x], t.links[x], t.got[x], t.served[x] = consumer{}, [2]link{}, 0, false
	return true
}

// loses: one direction of a connection is lost, unnoticed. Any number of its
// last messages vanish; those before arrive late.
func (w *world) loses(t *step, x name, at direction, keep int) bool {
	l := &t.links[x][at]
	t.lost = l.now.after(keep)
	possible := l.now.len() > 0 && l.late.len() == 0
	*l = link{late: l.now.before(keep)}
	return possible && may(&t.spent.losses, w.losses)
}

// push sends a message: false if there is no room, and it can wait. To have
// fewer states, what is said right behind something that it repeats, or brings
// up to date, takes its place unless w.repeats.
func (w *world) push(t *step, x name, to direction, m message) bool {
	dead := to == down && t.consumers[x].phase != running || to == up && t.producer.stopped != no
	if m == nothing || dead {
		return true
	}
	q := &t.links[x][to].now
	last := q.last()
	switch {
	case !w.repeats && (last == m || m.kind() == StreamDemand && last.kind() == StreamDemand):
		*q = q.before(q.len() - 1).with(m)
	case q.len() == w.capacity:
		return false
	default:
		*q = q.with(m)
	}
	return true
}

// tell sends answers, after which another consumer may be served than before.
// Those without room are lost, as in a full mailbox.
func (w *world) tell(t *step, before name, told [2]message) {
	if x, p := t.producer.serves, &t.producer; x != before && x != nobody {
		t.served[x] = true
		t.twice |= t.sent >> p.acked << p.acked
	}
	w.push(t, A, down, told[A])
	w.push(t, B, down, told[B])
}

// settled forgets what can make no difference any more, so that states are one
// that differ in nothing else.
func (t *step) settled() *step {
	for x := A; x <= B; x++ {
		c := &t.consumers[x]
		if c.phase >= gone {
			*c = consumer{phase: gone}
			t.links[x][down] = link{}
			if t.twice|t.sent == 0 && t.producer.serves != x && t.producer.waits != x && t.links[x][up] == (link{}) {
				t.got[x] = 0 // nobody asks any more
			}
		}
		if c.lastWord != nothing {
			c.first, c.consumed, c.asked = 0, 0, false
		}
		if t.producer.stopped != no {
			t.links[x][up] = link{}
		}
	}
	if t.producer.stopped != no {
		t.producer = producer{serves: nobody, waits: nobody, stopped: t.producer.stopped}
	}
	return t
}

// final is where all must be able to get to: nobody waits for anything. A
// producer that has not stopped waits for a newcomer then.
func (s *state) final() bool {
	return s.consumers[A].phase != running && s.consumers[B].phase != running
}

// ---- Safety: what must not happen

var properties = []struct{ name, what string }{
	{"order", "a user is handed consecutive positions, each once, the end behind the last"},
	{"kept", "nothing is dropped, or sent after it, unless the consumer that acknowledged it was handed it"},
	{"demand", "nothing is sent or handed over for which the consumer has no room"},
	{"complete", "the producer completes only when the consumer that it serves has the end"},
	{"refusal", "a consumer that never had a rival is not refused (not checked with -crashes or -again)"},
	{"cancel", "nobody cancels while the other is served"},
	{"bound", "the producer sends no more elements than the window beyond what is acknowledged"},
	{"twice", "both users are handed a position only if it had been sent, and its acknowledgement not been heard, when one took the other's place (with -twice)"},
	{"stuck", "from anywhere, all can come to an end without a further loss, cut, crash, cancel or newcomer"},
}

func (t *step) check(ok bool, property, format string, args ...any) {
	if !ok && t.broken == "" {
		t.broken = property + ": " + fmt.Sprintf(format, args...)
	}
}

func has(positions uint8, p position) bool { return positions>>p&1 == 1 }

// checkSent is about a message of the producer's own accord.
func (t *step) checkSent(w *world, x name, m message, acked position) {
	p, c, seq := &t.producer, &t.consumers[x], m.seq()
	t.check(seq >= acked, "kept", "position %d is sent to %v after it was acknowledged", seq, x)
	if c.phase == running && c.lastWord == nothing && m.kind() == StreamElement {
		t.check(c.served && seq < w.room(c), "demand", "position %d is sent to %v, which has not demanded it", seq, x)
	}
	t.check(min(p.cursor, w.elements)-min(p.acked, w.elements) <= w.window, "bound", "%d elements are kept for %v", p.cursor-p.acked, x)
	t.checkDropped(x, acked)
	t.checkCompleted(w)
	if w.checks && seq < w.elements {
		t.sent |= 1 << seq
	}
}

// checkHeard is about a message of x that has changed the producer.
func (t *step) checkHeard(w *world, x name, before producer) {
	p := &t.producer
	t.checkDropped(x, before.acked)
	t.checkCompleted(w)
	t.check(p.stopped != cancelled || before.serves == x || before.serves == nobody, "cancel", "%v cancels while the other is served", x)
}

func (t *step) checkDropped(x name, acked position) {
	for p := acked; p < t.producer.acked; p++ {
		t.check(has(t.got[x], p), "kept", "position %d is dropped because of %v, which does not have it", p, x)
	}
}

func (t *step) checkCompleted(w *world) {
	if p := &t.producer; p.stopped == completed && p.serves != nobody && t.consumers[p.serves].phase == running {
		t.check(has(t.got[p.serves], w.elements), "complete", "the producer has completed, but %v does not have the end", p.serves)
	}
}

// checkTaken is about a message that consumer x has heard.
func (t *step) checkTaken(w *world, x name, m message, before consumer) {
	c, seq := &t.consumers[x], m.seq()
	ended := c.lastWord != nothing && before.lastWord == nothing
	if c.phase != running && before.lastWord == nothing {
		t.check(t.served[1-x] || w.crashes > 0 || w.again > 0, "refusal", "%v, which never had a rival, is not served any more", x)
	}
	if m.kind() == StreamCompleted && ended || m.kind() == StreamElement && c.received != before.received {
		t.check(!has(t.got[x], seq), "order", "%v is handed position %d again", x, seq)
		t.check(t.got[x] == 0 || bits.Len8(t.got[x]) == int(seq), "order", "%v is handed position %d after %d", x, seq, bits.Len8(t.got[x])-1)
		t.check(ended || seq < w.room(c), "demand", "%v is handed position %d, for which it has no room", x, seq)
		t.check(!w.checks || ended || !has(t.got[1-x], seq) || has(t.twice, seq), "twice", "both are handed position %d", seq)
		t.got[x] |= 1 << seq
	}
}
