package main

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// A ladder shows what happened, from above to below: consumer A at the left, B
// at the right, the producer between them. A message stands where it is heard,
// or lost; one that is late comes over a connection that has been lost since.

const lane = 45 // columns between the producer and a consumer

func ladder(out io.Writer, steps []step) {
	fmt.Fprintf(out, "A%*s%*s\n", lane+4, "producer", lane-2, "B")
	for i, t := range steps {
		switch {
		case t.heard != nothing && t.late:
			rung(out, t.x, arrow(t.x, t.at, t.heard.String()+" (late)", true))
		case t.heard != nothing:
			rung(out, t.x, arrow(t.x, t.at, t.heard.String(), true))
		case t.what != "":
			rung(out, t.x, justify(t.x == A != (t.at == up), " "+t.what+" ", " ", lane))
		case i == len(steps)-1 && t.said != nothing:
			rung(out, t.x, arrow(t.x, 1-t.at, t.said.String(), true))
		}
		for q := t.lost; q.len() > 0; {
			rung(out, t.x, arrow(t.x, t.at, q.pop().String(), false))
		}
	}
	if len(steps) > 0 && steps[len(steps)-1].broken == "" {
		underWay(out, &steps[len(steps)-1].state)
	}
}

// underWay lists what nobody has heard at the end of a ladder.
func underWay(out io.Writer, s *state) {
	for x := A; x <= B; x++ {
		for at, to := range []string{fmt.Sprintf("from %v", x), fmt.Sprintf("to %v", x)} {
			for _, q := range []queue{s.links[x][at].late, s.links[x][at].now} {
				for q.len() > 0 {
					fmt.Fprintf(out, "under way %s: %v\n", to, q.pop())
				}
			}
		}
	}
}

// rung is a line between the producer and consumer x.
func rung(out io.Writer, x name, line string) {
	lanes := [2]string{strings.Repeat(" ", lane), strings.Repeat(" ", lane)}
	lanes[x] = line
	fmt.Fprintf(out, "│%s│%s│\n", lanes[A], lanes[B])
}

// arrow is a message that goes to one end, and arrives or does not.
func arrow(x name, to direction, words string, arrives bool) string {
	right := x == A == (to == up)
	switch {
	case right && arrives:
		return " " + justify(true, "── "+words+" ", "─", lane-3) + "▶ "
	case right:
		return " ── " + words + " ──✗" + strings.Repeat(" ", lane-8-utf8.RuneCountInString(words))
	case arrives:
		return " ◀" + justify(false, " "+words+" ──", "─", lane-3) + " "
	}
	return strings.Repeat(" ", lane-8-utf8.RuneCountInString(words)) + "✗── " + words + " ── "
}

// justify fills a line of some width, behind the words or before them.
func justify(left bool, words, fill string, width int) string {
	rest := strings.Repeat(fill, width-utf8.RuneCountInString(words))
	if left {
		return words + rest
	}
	return rest + words
}

func (x name) String() string { return "AB"[x : x+1] }

func (m message) String() string {
	switch m.kind() {
	case Subscribe:
		return fmt.Sprintf("Subscribe{From: %d}", m.seq())
	case Subscribed:
		return fmt.Sprintf("Subscribed{%d}", m.seq())
	case StreamDemand:
		return fmt.Sprintf("StreamDemand{Received: %d, Demand: %d}", m.seq(), m.demand())
	case StreamElement:
		return fmt.Sprintf("StreamElement{%d}", m.seq())
	case StreamCompleted:
		return fmt.Sprintf("StreamCompleted{%d}", m.seq())
	case StreamRefused:
		return "StreamRefused{}"
	case StreamCancel:
		return "StreamCancel{}"
	}
	return "nothing"
}
