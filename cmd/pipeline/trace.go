package main

import (
	"cmp"
	"fmt"
	"strings"
	"sync"
	"unicode/utf8"

	"casty"
)

// A trace draws the messages of streams as a ladder: the producer on the left,
// the consumer on the right, and a line for each message. One that is told and
// delivered in this process is drawn when it is delivered or, if another that
// was told later has overtaken it, as lost. Of others it is known only that
// they have been told, or delivered.
type trace struct {
	out *console

	mu       sync.Mutex         // guards what follows
	here     map[string]bool    // the hosts in this process
	underWay map[route][]travel // told here, and to be delivered here, in order
}

// A route is where messages keep their order, as long as a connection lasts.
type route struct {
	from string // host
	to   casty.Address
}

// A travel is a message on its way.
type travel struct {
	from, to   string // names of actors or, where that is not known, of a host
	text       string
	toProducer bool
}

const maxUnderWay = 1000 // on a route; more are not expected to arrive

func newTrace(out *console) *trace {
	return &trace{out: out, here: map[string]bool{}, underWay: map[route][]travel{}}
}

func (t *trace) see(m message) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if m.delivered {
		t.here[m.to.Host] = true
	} else {
		t.here[m.from.Host] = true
	}
	travel, ok := travelOf(m, func(r SensorReading) string { return fmt.Sprint(r.Value) })
	if !ok {
		travel, ok = travelOf(m, func(a Alert) string { return fmt.Sprint(a.Reading.Value) })
	}
	route := route{m.from.Host, m.to}
	switch {
	case !ok:
	case !t.here[m.from.Host] || !t.here[m.to.Host]:
		t.draw(travel, 0)
	case m.delivered:
		t.arrive(route, travel)
	default:
		if len(t.underWay[route]) == maxUnderWay {
			t.lose(route, 1)
		}
		t.underWay[route] = append(t.underWay[route], travel)
	}
}

// arrive draws a message, and those that were told before it as lost.
func (t *trace) arrive(route route, arrived travel) {
	for i, told := range t.underWay[route] {
		if told.text == arrived.text {
			t.lose(route, i)
			t.underWay[route] = t.underWay[route][1:]
			arrived = told // which knows the sender's name
			break
		}
	}
	t.draw(arrived, 0)
}

// lose draws the first messages under way. What has been told again and again,
// from the same position on, is one line.
func (t *trace) lose(route route, n int) {
	lost := t.underWay[route][:n]
	t.underWay[route] = t.underWay[route][n:]
	for times := 1; len(lost) > 0; lost = lost[1:] {
		if len(lost) > 1 && lost[0].begins() == lost[1].begins() {
			times++
			continue
		}
		t.draw(lost[0], times)
		times = 1
	}
}

// begins is what a message has in common with the same, told later.
func (t travel) begins() string {
	begins, _, _ := strings.Cut(t.text, ",")
	return begins
}

// end draws what will not arrive any more.
func (t *trace) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for route, left := range t.underWay {
		t.lose(route, len(left))
	}
}

// draw draws a message that has arrived or, if it was lost, how many times.
func (t *trace) draw(m travel, lost int) {
	const width = 48 // so that a line takes 80 columns, with names as they are here
	dashes := max(4, width-3-utf8.RuneCountInString(m.text))
	before, after := strings.Repeat("─", dashes/2), strings.Repeat("─", dashes-dashes/2)
	producer, consumer, head, format := m.from, m.to, "▶", "%[1]s %[2]s %[3]s%[4]s"
	if m.toProducer {
		producer, consumer, head, format = m.to, m.from, "◀", "%[4]s%[1]s %[2]s %[3]s"
	}
	if lost > 0 {
		head = "✗"
	}
	line := fmt.Sprintf("%15s │ %s │ %s", producer, fmt.Sprintf(format, before, m.text, after, head), consumer)
	if lost > 1 {
		line += fmt.Sprintf(" ×%d", lost)
	}
	if lost > 0 {
		line = t.out.paint(red, line)
	}
	fmt.Fprintln(t.out, line)
}

// travelOf is what there is to draw of a message, if it is one of a stream of E.
func travelOf[E any](m message, show func(E) string) (_ travel, ok bool) {
	var consumer casty.ActorRef[casty.StreamConsumerMsg[E]]
	t := travel{from: cmp.Or(m.from.Name, m.from.Host), to: m.to.Name}
	switch v := m.value.(type) {
	case casty.Subscribe[E]:
		t.text, consumer = fmt.Sprintf("Subscribe{From: %d}", v.From), v.Consumer
	case casty.StreamDemand[E]:
		t.text, consumer = fmt.Sprintf("StreamDemand{Received: %d, Demand: %d}", v.Received, v.Demand), v.Consumer
	case casty.StreamCancel[E]:
		t.text, consumer = "StreamCancel{}", v.Consumer
	case casty.Subscribed[E]:
		t.text = fmt.Sprintf("Subscribed{%d}", v.Seq)
	case casty.StreamElement[E]:
		t.text = fmt.Sprintf("StreamElement{%d, [%s]}", v.Seq, some(v.Elements, show))
	case casty.StreamCompleted[E]:
		t.text = fmt.Sprintf("StreamCompleted{%d}", v.Seq)
	case casty.StreamFailed[E]:
		t.text = fmt.Sprintf("StreamFailed{%d, %q}", v.Seq, v.Reason)
	case casty.StreamRefused[E]:
		t.text = fmt.Sprintf("StreamRefused{%q}", v.Reason)
	default:
		return t, false
	}
	if t.toProducer = consumer != (casty.ActorRef[casty.StreamConsumerMsg[E]]{}); t.toProducer {
		t.from = consumer.Address().Name
	}
	return t, true
}

// some shows elements, as many as fit on a line.
func some[E any](elements []E, show func(E) string) string {
	const most = 2
	var shown []string
	for _, element := range elements[:min(len(elements), most)] {
		shown = append(shown, show(element))
	}
	if more := len(elements) - most; more > 0 {
		shown = append(shown, fmt.Sprintf("…+%d", more))
	}
	return strings.Join(shown, " ")
}
