package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"time"

	"casty"
)

// A picture is what pages show, besides the messages. Times are in heartbeats.
type picture struct {
	Run   int    // tells it from others
	Story string // the scenario; empty: none
	settings
	counter
	Readers                          []*reader
	Latency, Slow, Stalled, Standing bool
	Blocked, Ending, Over, Done      bool           // Put is blocked; the stream has its end; the producer has stopped; the story is told
	Waited, Noticed, Took            float64        // how long Put was blocked in all, silence was not noticed, and Complete took
	Said                             map[string]int // messages told, by type
	Sent, Most                       uint64         // elements told, and the most that have waited in a window
	End                              uint64         // the position behind the end, once that is told; or 0
}

// An event is a message that is held, told or delivered, the loss of a
// connection, or a note.
type event struct {
	ID                   int
	At                   float64
	What, From, To, Text string
}

// maxEvents are remembered, for pages that are new, or slow. Nothing is queued
// for a page. One that has missed events goes on with those that there are: in
// these messages every number is a position, so what it shows is soon right.
const maxEvents = 400

func (r *run) look(at func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	at()
}

// change changes the picture, and wakes those who look at it.
func (r *run) change(how func()) {
	r.look(func() {
		how()
		close(r.changed)
		r.changed = make(chan struct{})
	})
}

// since returns the picture and the events from a number on, as JSON, the
// number of the next event, and what is closed when there is something new.
func (r *run) since(id int) (update []byte, next int, changed <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	news := r.events[min(len(r.events), max(0, len(r.events)-(r.next-id))):]
	update, _ = json.Marshal(struct {
		*picture
		Events []event
	}{&r.picture, news})
	return update, r.next, r.changed
}

// until waits until something holds, or returns false when the run ends.
func (r *run) until(holds func() bool) bool {
	for r.ctx.Err() == nil {
		var done bool
		var changed chan struct{}
		if r.look(func() { done, changed = holds(), r.changed }); done {
			return true
		}
		select {
		case <-changed:
		case <-r.ctx.Done():
		}
	}
	return false
}

// note adds an event. The caller holds r.mu.
func (r *run) note(e event) {
	e.ID, e.At = r.next, r.now()
	r.next++
	r.events = append(r.events[max(0, len(r.events)+1-maxEvents):], e)
}

// now is the run's time, in heartbeats.
func (r *run) now() float64 { return float64(time.Since(r.began)) / float64(r.heartbeat) }

// A tap is the handler of a process's log: all that the lab knows of messages.
type tap struct {
	slog.Handler
	*run
	process context.Context
	end     string // of the stream, in this process
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
	e := event{From: from.Name, To: to.Name}
	if e.What = strings.TrimPrefix(record.Message, "casty: "); e.What == "lost a connection" {
		t.change(func() { t.lost(fmt.Sprint(attrs["to"]), e, attrs["reason"]) })
		return nil
	}
	kind := ofStream.FindStringSubmatch(fmt.Sprintf("%T", attrs["message"]))
	if kind == nil {
		return nil
	}
	e.Text = fmt.Sprintf("%s%+v", kind[1], attrs["message"])
	switch {
	case e.What == "delivered":
		t.change(func() { t.delivered(e, attrs["message"]) })
	case e.What == "told":
		t.pass(t.process, func() { t.note(event{What: "held", From: e.From, To: e.To, Text: e.Text}) })
		if t.process.Err() == nil { // nobody hears what a dead process says
			t.change(func() { t.told(e, kind[1], attrs["message"]) })
		}
	}
	return nil
}

func (r *run) told(e event, kind string, message any) {
	r.note(e)
	switch m := message.(type) {
	case casty.StreamElement[Element]:
		r.Sent += uint64(len(m.Elements))
	case casty.StreamCompleted[Element]:
		r.End = m.Seq + 1
	case casty.StreamFailed[Element]:
		r.End = m.Seq + 1
	case casty.StreamDemand[Element]:
		if r.End > 0 && m.Received == r.End && !r.Over {
			kind = "last word"
		}
	}
	r.Said[kind]++
}

func (r *run) delivered(e event, message any) {
	r.note(e)
	to := slices.IndexFunc(r.Readers, func(rd *reader) bool { return rd.Name == e.To })
	switch m := message.(type) {
	case casty.Subscribed[Element]:
		if rd := r.Readers[to]; !rd.Served {
			rd.Served, rd.First, rd.Received, rd.Consumed = true, m.Seq, m.Seq, m.Seq
		}
	case casty.StreamElement[Element]:
		if rd := r.Readers[to]; m.Seq <= rd.Received {
			rd.Received = max(rd.Received, m.Seq+uint64(len(m.Elements)))
			r.Most = max(r.Most, rd.Received-rd.Consumed)
		}
	}
}

// lost notes that a process has lost its connection to another, if both have an
// end of the stream. What was on its way there is lost.
func (t tap) lost(host string, e event, reason any) {
	e.From, e.To, e.Text = t.end, t.ends[host], fmt.Sprint(reason)
	if e.From == "" || e.To == "" {
		return
	}
	t.note(e)
	if t.Stalled && t.Noticed == 0 {
		t.Noticed = t.now() - t.stalledAt
	}
}

// ---- The counter.

// A counter knows from the numbers of elements what has become of them. Lost,
// Repeated and Disordered break the promises of a stream. An element has Died if
// it was in the window of a consumer whose process was killed; the next consumer
// is handed elements Again that the first had consumed, but not acknowledged.
type counter struct {
	Put, Consumed, Lost, Repeated, Disordered, Died, Again uint64
	reached                                                uint64          // behind the last that anybody has consumed
	missing                                                map[uint64]bool // before that, and not consumed: windowfuls, unless there are losses
}

// reach notes that everything before a number should have been consumed.
func (c *counter) reach(number uint64) {
	for ; c.reached < number; c.reached++ {
		c.missing[c.reached] = true
	}
}

// count counts an element that one of the readers has consumed.
func (c *counter) count(rd *reader, number uint64, readers []*reader) {
	fresh := number >= c.reached || c.missing[number]
	c.reach(number + 1)
	delete(c.missing, number)
	switch behind := number < rd.Consumed; {
	case fresh && behind:
		c.Consumed++
		c.Disordered++
	case fresh:
		c.Consumed++
	case behind:
		c.Repeated++
	default:
		c.Again++
	}
	rd.Consumed = max(rd.Consumed, number+1)
	rd.Received = max(rd.Received, rd.Consumed)
	c.audit(readers)
}

// audit tells what is missing because its consumer died, or will be consumed
// yet, from what is lost.
func (c *counter) audit(readers []*reader) {
	c.Lost, c.Died = 0, 0
	for number := range c.missing {
		has := func(rd *reader) bool { return rd.Consumed <= number && number < rd.Received }
		switch {
		case slices.ContainsFunc(readers, func(rd *reader) bool { return has(rd) && rd.Fate == "" }):
		case slices.ContainsFunc(readers, func(rd *reader) bool { return has(rd) && rd.Killed }):
			c.Died++
		default:
			c.Lost++
		}
	}
}
