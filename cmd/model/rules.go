package main

// The rules of the stream protocol, as they stand at the head of stream.go.
// Every number is a position in the stream, from its first element.
//
//	message                                   direction             meaning
//	Subscribe{Consumer, From}                 consumer → producer   I hold everything before From: serve me from there on; 0 from one that has received nothing: from wherever you are
//	Subscribed{Seq}                           producer → consumer   I serve you, from Seq on
//	StreamDemand{Consumer, Received, Demand}  consumer → producer   I hold everything before Received; you may send what is before Demand
//	StreamElement{Seq, Elements}              producer → consumer   the elements that start at Seq
//	StreamCompleted{Seq}                      producer → consumer   the stream ends at Seq, one more position to acknowledge
//	StreamFailed{Seq, Reason}                 producer → consumer   the same, with a reason
//	StreamRefused{Reason}                     producer → consumer   I do not serve you
//	StreamCancel{Consumer}                    consumer → producer   I want no more
//
// Here a StreamElement carries one element, and StreamFailed is no other case
// than StreamCompleted. What a rule says about time happens whenever it can.

const (
	nothing = iota
	Subscribe
	Subscribed
	StreamDemand
	StreamElement
	StreamCompleted
	StreamRefused
	StreamCancel
)

type rules struct {
	elements position // all are there from the start, and the stream ends behind them
	window   position // of each consumer
	bug      string   // the planted mistake, by its name in mistakes.go
}

// A producer serves one consumer at a time.
type producer struct {
	serves name     // or nobody
	lost   bool     // the consumer that it serves is unreachable, and has not spoken since
	acked  position // what is before has been acknowledged, and dropped
	cursor position // the next to send
	demand position // nothing at or past it is sent

	waits name     // another consumer that has subscribed, or nobody
	from  position // where that one wants to begin

	stopped outcome
}

// Rule 1. The producer keeps what it has taken from its sink until it is
// acknowledged. It never sends at or past Demand. The end needs no demand. What it
// has sent it sends again only when a Subscribe makes it go back.
func (r *rules) producerSends(p *producer) (m message) {
	switch {
	case p.serves == nobody || p.stopped != no:
		return nothing
	case p.cursor < r.elements && (p.cursor < p.demand || r.bug == "greedy"):
		m = say(StreamElement, p.cursor)
	case p.cursor == r.elements:
		m = say(StreamCompleted, p.cursor)
	default:
		return nothing
	}
	p.cursor++
	switch {
	case r.bug == "careless":
		p.acked = min(p.cursor, r.elements)
	case r.bug == "hurry" && p.cursor > r.elements:
		p.stopped = completed
	}
	return m
}

// Rule 2. Nobody's demand or cancel counts but those of the consumer that the
// producer serves.
func (r *rules) producerHears(p *producer, x name, m message) (told [2]message) {
	ours := x == p.serves
	switch m.kind() {
	case Subscribe:
		return r.subscribe(p, x, m.seq())
	case StreamDemand:
		if ours || r.bug == "strangerack" {
			r.acknowledge(p, m.seq())
		}
		if ours || r.bug == "stranger" {
			p.demand = max(p.demand, m.demand())
		}
		if ours {
			r.spoke(p, &told)
		}
	case StreamCancel:
		if ours || r.bug == "anycancel" {
			p.stopped = cancelled // rule 4
		}
	}
	return told
}

// Rule 2. On Subscribe from the consumer that it serves, or from anyone when
// it serves none, the producer goes back, or on, to what is acknowledged, and
// answers Subscribed with that. From acknowledges as Received does. A From past
// its end is of another stream, and refused; one from before what is acknowledged
// is not: the answer may have been lost.
//
// Rule 3. A rival, another consumer that subscribes, waits.
func (r *rules) subscribe(p *producer, x name, from position) (told [2]message) {
	switch {
	case from > r.elements:
		told[x] = say(StreamRefused)
	case x == p.serves && from < p.acked && r.bug == "stale":
	case x == p.serves && from < p.acked && r.bug == "strict":
		told[x] = say(StreamRefused)
	case x == p.serves:
		told[x] = r.resume(p, from)
		r.spoke(p, &told)
	case p.serves != nobody && !p.lost && r.bug == "hasty":
		told[x] = say(StreamRefused)
	default:
		p.waits, p.from = x, from
		return r.admit(p)
	}
	return told
}

func (r *rules) resume(p *producer, from position) message {
	from = max(from, p.acked)
	if r.bug != "mutefrom" {
		p.acked = from
	}
	if r.bug != "norewind" || p.cursor < from {
		p.cursor = from
	}
	return say(Subscribed, from)
}

// Rule 2. What the consumer holds is not sent again, whatever it has asked for
// before.
//
// Rule 4. The producer stops when its end is acknowledged, or when the
// consumer that it serves cancels.
func (r *rules) acknowledge(p *producer, received position) {
	if received <= p.cursor || r.bug != "doubting" {
		p.acked = max(p.acked, received)
		p.cursor = max(p.cursor, p.acked)
	}
	if p.acked > r.elements {
		p.stopped = completed
	}
}

// Rule 3. As soon as the consumer that is served speaks, the rival is refused.
func (r *rules) spoke(p *producer, told *[2]message) {
	p.lost = p.lost && r.bug == "deaf"
	if p.waits != nobody && r.bug != "mute" {
		told[p.waits] = say(StreamRefused)
		p.waits, p.from = nobody, 0
	}
}

// Rule 3. When the consumer that is served has stopped, or has been
// unreachable for a heartbeat, the rival takes its place.
func (r *rules) producerLoses(p *producer) (told [2]message) {
	p.serves, p.lost = nobody, false
	p.cursor = p.acked
	if r.bug != "noreset" {
		p.demand = 0
	}
	return r.admit(p)
}

// Rule 3. A new consumer starts with no demand; the positions need no reset.
func (r *rules) admit(p *producer) (told [2]message) {
	if p.serves == nobody && p.waits != nobody {
		p.serves = p.waits
		told[p.serves] = r.resume(p, p.from)
		p.waits, p.from = nobody, 0
	}
	return told
}

// A consumer hands what it takes to its user, who consumes it in that order.
type consumer struct {
	phase    phase
	served   bool     // Subscribed has told it where it starts
	asked    bool     // its last Subscribe is unanswered
	first    position // where it starts
	received position // the next to take
	gap      position // behind the last position that was found missing, and asked for
	consumed position // what its user has consumed ends here
	lastWord message  // nothing: it has more to say
}

// Rule 5. The consumer subscribes when GetSource first asks for the source: from
// the next position that it takes, or from 0 if it has taken nothing.
func (r *rules) consumerSubscribes(c *consumer) message {
	c.phase, c.asked = running, true
	if c.received == c.first {
		return say(Subscribe, 0)
	}
	return say(Subscribe, c.received)
}

func (r *rules) consumerHears(c *consumer, m message) message {
	switch m.kind() {
	case Subscribed:
		return r.begin(c, m.seq())
	case StreamElement, StreamCompleted:
		return r.take(c, m)
	case StreamRefused:
		// A refusal that comes when nothing has been asked is late.
		if c.asked || c.lastWord != nothing {
			c.phase = refused
		}
	}
	return nothing
}

// Rule 8. A Subscribed past what the consumer needs means that others have had
// what is between: ErrCannotResume. If it has taken nothing yet, it starts
// there instead; it never goes back for a late one.
//
// Rule 9. A consumer that left before it was served cancels once it is: nobody
// heeds the cancel of a stranger.
func (r *rules) begin(c *consumer, seq position) message {
	took := c.received > c.first
	switch {
	case c.lastWord != nothing:
		c.served = true
		return c.lastWord
	case took && seq > c.received && r.bug != "jump":
		c.phase = overtaken
		return nothing
	case !c.served, seq > c.received, !took && r.bug == "back":
		c.first, c.received, c.consumed = seq, seq, seq
	}
	c.served, c.asked = true, false
	return r.demands(c)
}

// Rule 5. Until Subscribed has told it where it starts, it takes nothing.
//
// Rule 6. The consumer takes exactly the next position, and drops everything
// else. At a gap it subscribes again, once for each position that is missing: not
// needed for safety, but it saves a heartbeat.
//
// Rule 9. Its last word is that the end is acknowledged, or StreamCancel.
func (r *rules) take(c *consumer, m message) message {
	if !c.served && r.bug == "eager" {
		c.served, c.first, c.received, c.consumed = true, m.seq(), m.seq(), m.seq()
	}
	switch seq := m.seq(); {
	case c.lastWord != nothing || !c.served || seq < c.received:
	case seq > c.received && r.bug != "gap":
		if c.received >= c.gap && r.bug != "patient" {
			c.gap = c.received + 1
			return r.consumerSubscribes(c)
		}
	case m.kind() == StreamCompleted:
		c.lastWord = say(StreamDemand, seq+1, seq+1)
		return c.lastWord
	case seq < r.room(c):
		c.received, c.asked = seq+1, false // a new element is an answer, too
	}
	return nothing
}

// Rule 7. Once per heartbeat the consumer says its demand. If it has taken
// nothing new since the last time, it subscribes again from where it is. That
// is all of recovery.
//
// Rule 9. Its last word is a value that it repeats once per heartbeat until it
// learns that the producer has stopped. A cancel before it is served first
// subscribes.
func (r *rules) consumerTicks(c *consumer, quiet bool) message {
	switch {
	case c.lastWord != nothing && r.bug == "forget":
	case c.lastWord != nothing && (c.served || r.bug == "barecancel"):
		return c.lastWord
	case quiet && r.bug != "lazy":
		return r.consumerSubscribes(c)
	case c.served:
		return r.demands(c)
	}
	return nothing
}

// Rule 9. A consumer that leaves before it is served goes on subscribing.
func (r *rules) consumerCancels(c *consumer) message {
	c.lastWord = say(StreamCancel)
	if !c.served {
		return nothing
	}
	return c.lastWord
}

// Rule 10. The consumer gives up when its last word has been unanswered for
// PeerTimeout: the producer serves another, or waits for one.
func (r *rules) consumerGivesUp(c *consumer) bool {
	return c.lastWord != nothing && r.bug != "stubborn"
}

// Rule 11. Demand is what has been consumed plus the window, renewed when half
// a window has been consumed.
func (r *rules) consumerConsumes(c *consumer) message {
	c.consumed++
	if c.consumed%r.renewal() == 0 {
		return r.demands(c)
	}
	return nothing
}

func (r *rules) demands(c *consumer) message { return say(StreamDemand, c.received, r.room(c)) }

// room is the demand: nothing at or past it has room. The end needs none.
func (r *rules) room(c *consumer) position { return min(c.consumed+r.window, r.elements+1) }

func (r *rules) renewal() position { return max(1, r.window/2) }
