package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"regexp"
	"strings"

	"casty"
)

// A picture is what pages show, besides the events.
type picture struct {
	Run   int64  // when it began: tells it from others
	Story string // the scenario; empty: none
	settings
	counter
	Readers         []*process
	Standing        bool    // time stands still
	Blocked, Ending bool    // Put is blocked; the stream has its end
	Waited          float64 // seconds that Put has taken in all
	Most            int     // elements that have waited in a window
	held            int     // the position before which a consumer has said that it holds everything
}

// An event is a message that is held, told or delivered, the loss of a
// connection, or what somebody does. Its time is in seconds.
type event struct {
	ID                   int
	At                   float64
	What, From, To, Text string
}

// maxEvents are remembered, for pages that are new, or slow. Nothing is queued
// for a page. One that has missed events goes on with those that there are: in
// these messages every number is a position, so what it shows is soon right.
const maxEvents = 1000

// change changes the picture of a run that goes on, takes the steps of its
// scenario which that allows, and has the network do as the settings say.
func (r *run) change(how func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ctx.Err() != nil {
		return
	}
	how()
	for len(r.steps) > 0 && r.steps[0].when(r) {
		r.steps[0].press(r)
		r.steps = r.steps[1:]
	}
	r.network.set(r.settings)
}

// since returns the picture and the events from a number on, as JSON, and the
// number of the next event.
func (r *run) since(id int) (news []byte, next int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.audit(r.Readers)
	news, _ = json.Marshal(struct {
		*picture
		Events []event
	}{&r.picture, r.events[max(0, len(r.events)-(r.next-id)):]})
	return news, r.next
}

// note adds an event. The caller holds r.mu.
func (r *run) note(e event) {
	e.ID, e.At = r.next, r.now()
	r.next++
	r.events = append(r.events[max(0, len(r.events)+1-maxEvents):], e)
}

// A tap is the handler of a process's log: all that the lab knows of messages.
type tap struct {
	slog.Handler
	*run
	*process
}

func (t tap) Enabled(context.Context, slog.Level) bool { return true }

var ofStream = regexp.MustCompile(`^casty\.(S\w+)\[.*\.Element\]$`)

// Handle holds whoever tells a message of the stream while time stands still: an
// actor, which has no lock and no connection then. What has been told travels on.
func (t tap) Handle(_ context.Context, record slog.Record) error {
	attrs := map[string]any{}
	record.Attrs(func(a slog.Attr) bool { attrs[a.Key] = a.Value.Any(); return true })
	from, _ := attrs["from"].(casty.Address)
	to, _ := attrs["to"].(casty.Address)
	e := event{What: strings.TrimPrefix(record.Message, "casty: "), From: from.Name, To: to.Name}
	if kind := ofStream.FindStringSubmatch(fmt.Sprintf("%T", attrs["message"])); kind != nil {
		e.Text = fmt.Sprintf("%s%+v", kind[1], attrs["message"])
	} else if e.What != "lost a connection" {
		return nil
	}
	if e.What == "told" {
		t.pass(t.process.ctx, event{What: "held", From: e.From, To: e.To, Text: e.Text})
		if t.process.ctx.Err() != nil { // nobody hears what a dead process says
			return nil
		}
	}
	t.change(func() {
		if e.Text == "" {
			e.From, e.To, e.Text = t.Name, t.names[fmt.Sprint(attrs["to"])], fmt.Sprint(attrs["reason"])
		}
		t.note(e)
		t.learn(e.What, attrs["message"])
	})
	return nil
}

// learn is what a message tells the lab, besides the page. The caller holds r.mu.
func (t tap) learn(what string, message any) {
	p := t.process
	switch m := message.(type) {
	case casty.StreamDemand[Element]:
		t.held = max(t.held, int(m.Received))
	case casty.Subscribed[Element]:
		if what == "delivered" && !p.Served {
			p.Served, p.First, p.Received, p.Consumed = true, int(m.Seq), int(m.Seq), int(m.Seq)
		}
	case casty.StreamElement[Element]:
		if what == "delivered" && int(m.Seq) <= p.Received {
			p.Received = max(p.Received, int(m.Seq)+len(m.Elements))
			t.Most = max(t.Most, p.Received-p.Consumed)
		}
	}
}

// ---- The counter.

// A counter knows from the numbers of elements what has become of them. Lost,
// Repeated and Disordered break the promises of a stream. An element has Died if
// it was in the window of a consumer whose process was killed; the next consumer
// is handed elements Again that the first had consumed, but not acknowledged.
type counter struct {
	Put, Consumed, Lost, Repeated, Disordered, Died, Again int
	takers                                                 []*process // by number: who has consumed it last; nil: nobody yet. An hour at full pace takes 1.4 MB
}

// reach notes that everything before a number should have been consumed.
func (c *counter) reach(number int) {
	c.takers = append(c.takers, make([]*process, max(0, number-len(c.takers)))...)
}

// count counts an element that a consumer's user has consumed.
func (c *counter) count(p *process, number int) {
	c.reach(number + 1)
	switch taker := c.takers[number]; {
	case taker == p:
		c.Repeated++
	case taker != nil:
		c.Again++
	default:
		c.Consumed++
		if number < p.Consumed {
			c.Disordered++
		}
	}
	c.takers[number] = p
	p.Consumed = max(p.Consumed, number+1)
}

// audit tells what nobody has consumed because its consumer died, or will be
// consumed yet, from what is lost.
func (c *counter) audit(readers []*process) {
	c.Lost, c.Died = 0, 0
	for number, taker := range c.takers {
		if taker != nil {
			continue
		}
		fate := "lost"
		for _, p := range readers {
			if p.Consumed <= number && number < p.Received {
				fate = p.Fate
			}
		}
		switch fate {
		case "":
		case killed:
			c.Died++
		default:
			c.Lost++
		}
	}
}
