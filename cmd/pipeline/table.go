package main

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// A summary is what the client knows at the end.
type summary struct {
	wanted       int
	sensors      map[SensorRef]*record
	monitored    bool // there was a monitor
	acknowledged int  // alerts that it has
	alertErr     error
}

// A record is what has become of one sensor's stream.
type record struct {
	sensor   Sensor
	node     string
	readings []SensorReading
	err      error
}

func (s *summary) add(e event) {
	r := s.sensors[e.from]
	if r == nil {
		sensor, err := SensorNamed(kind(e.from))
		if err != nil {
			sensor.Name = kind(e.from) // one that only the node knows
		}
		r = &record{sensor: sensor, node: e.from.Address().Host}
		s.sensors[e.from] = r
	}
	if e.ended {
		r.err = e.err
	} else {
		r.readings = append(r.readings, e.reading)
	}
}

// totals counts the readings of all sensors, and the anomalies among them.
func (s *summary) totals() (readings, anomalies int) {
	for _, r := range s.sensors {
		readings += len(r.readings)
		anomalies += r.anomalies()
	}
	return readings, anomalies
}

func (r *record) anomalies() (n int) {
	for _, reading := range r.readings {
		if _, anomaly := reading.Alert(); anomaly {
			n++
		}
	}
	return n
}

// err is all that went wrong.
func (s *summary) err() error {
	var errs []error
	for _, r := range s.sorted() {
		errs = append(errs, r.err)
	}
	if len(s.sensors) < s.wanted {
		errs = append(errs, fmt.Errorf("%d of %d sensors were found", len(s.sensors), s.wanted))
	}
	return errors.Join(append(errs, s.alertErr)...)
}

func (s *summary) sorted() []*record {
	return slices.SortedFunc(maps.Values(s.sensors), func(a, b *record) int {
		return cmp.Or(cmp.Compare(a.sensor.Name, b.sensor.Name), cmp.Compare(a.node, b.node))
	})
}

const (
	leastValues = 16 // columns of a sparkline
	mostValues  = 60
)

// print shows who is who and a row for each sensor. What does not fit is left
// out, the least important first; a block of a sparkline may stand for several
// readings then.
func (s *summary) print(out *console) {
	fmt.Fprintf(out, "\n%s\n", out.introductions())
	records := s.sorted()
	rows, limit := s.rows(records), cmp.Or(out.width(), math.MaxInt)
	for _, least := range []string{"AVERAGE", "MIN", "MAX", "NODE"} {
		if total(widths(rows))+leastValues > limit {
			at := slices.Index(rows[0], least)
			for i := range rows {
				rows[i] = slices.Delete(rows[i], at, at+1)
			}
		}
	}
	indent := total(widths(rows))
	room, each := max(1, min(limit-indent, mostValues)), 1
	for _, r := range records {
		each = max(each, (len(r.readings)+room-1)/room)
	}
	for i, line := range aligned(rows) {
		values, marks := "", ""
		switch {
		case i == 0:
			values = "VALUES"
		case i <= len(records):
			values, marks = sparkline(records[i-1].readings, each, out)
		}
		fmt.Fprintln(out, strings.TrimRight(line+values, " "))
		if !out.colour && marks != "" {
			fmt.Fprintln(out, strings.Repeat(" ", indent)+marks)
		}
	}
	if each > 1 {
		fmt.Fprintf(out, "each block stands for %d readings, and shows the highest\n", each)
	}
}

// rows are the table but for the values: headings, sensors and totals.
func (s *summary) rows(records []*record) [][]string {
	rows := [][]string{{"SENSOR", "NODE", "STREAM", "COUNT", "AVERAGE", "MIN", "MAX", "ANOMALIES"}}
	for _, r := range records {
		state := "complete"
		if r.err != nil {
			state = "cut short"
		}
		average, low, high := r.statistics()
		rows = append(rows, []string{shorten(r.sensor.Name+" "+r.sensor.Unit, 16), r.node, state,
			strconv.Itoa(len(r.readings)), average, low, high, strconv.Itoa(r.anomalies())})
	}
	readings, anomalies := s.totals()
	return append(rows, []string{"total", "", "", strconv.Itoa(readings), "", "", "", strconv.Itoa(anomalies)})
}

func widths(rows [][]string) []int {
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	return widths
}

const gap = "  " // between columns

func total(widths []int) (total int) {
	for _, width := range widths {
		total += width + len(gap)
	}
	return total
}

// aligned puts words on the left of their columns, and numbers on the right.
func aligned(rows [][]string) (lines []string) {
	words := []string{"SENSOR", "NODE", "STREAM"}
	widths := widths(rows)
	for _, row := range rows {
		line := ""
		for i, cell := range row {
			if slices.Contains(words, rows[0][i]) {
				line += fmt.Sprintf("%-*s", widths[i], cell) + gap
			} else {
				line += fmt.Sprintf("%*s", widths[i], cell) + gap
			}
		}
		lines = append(lines, line)
	}
	return lines
}

func shorten(text string, most int) string {
	if runes := []rune(text); len(runes) > most {
		return string(runes[:most-1]) + "…"
	}
	return text
}

// statistics are of nothing where there are no readings.
func (r *record) statistics() (average, low, high string) {
	if len(r.readings) == 0 {
		return "", "", ""
	}
	sum := 0.0
	for _, reading := range r.readings {
		sum += reading.Value
	}
	least, most := bounds(r.readings)
	show := func(value float64) string { return fmt.Sprintf("%.2f", value) }
	return show(sum / float64(len(r.readings))), show(least), show(most)
}

func bounds(readings []SensorReading) (low, high float64) {
	low, high = math.Inf(1), math.Inf(-1)
	for _, reading := range readings {
		low, high = min(low, reading.Value), max(high, reading.Value)
	}
	return low, high
}

// sparkline draws a block for each so many readings, as high as the highest of
// them, with anomalies in red, and makes marks to go below where there is no
// colour.
func sparkline(readings []SensorReading, each int, out *console) (line, marks string) {
	steps := []rune("▁▂▃▄▅▆▇█")
	low, high := bounds(readings)
	for some := range slices.Chunk(readings, each) {
		highest := slices.MaxFunc(some, func(a, b SensorReading) int { return cmp.Compare(a.Value, b.Value) })
		step := 0
		if high > low {
			step = int(math.Round((highest.Value - low) / (high - low) * float64(len(steps)-1)))
		}
		block, mark := string(steps[step]), " "
		if _, anomaly := highest.Alert(); anomaly {
			block, mark = out.paint(red, block), "!"
		}
		line, marks = line+block, marks+mark
	}
	return line, strings.TrimRight(marks, " ")
}
