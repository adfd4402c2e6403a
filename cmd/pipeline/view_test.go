package main

import (
	"cmp"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"casty"
)

// What is said of waiting.

// TestAnyOrder: the client comes first and the seed last, each when the others
// are known to wait for it.
func TestAnyOrder(t *testing.T) {
	seed := freeAddress(t)
	client := launch(t, "client", "-seeds", seed)
	client.stdout.await(t, "client   waiting for a node to answer; seed "+seed+" refuses the connection")
	var nodes []*running
	for _, sensor := range []string{"humidity", "pressure"} {
		node := launch(t, "node", "-address", "127.0.0.1:0", "-seeds", seed, "-sensor", sensor, "-interval", "5ms")
		node.stdout.await(t, "waiting for nodes: 1 of 3 ("+node.address(t)+"); seed "+seed+" refuses the connection")
		if strings.Contains(node.stdout.String(), "measures") {
			t.Errorf("it says that it measures, but it waits:\n%s", node.stdout)
		}
		nodes = append(nodes, node)
	}
	nodes = append(nodes, launch(t, "node", "-address", seed, "-alert-monitor", "-interval", "5ms"))
	client.succeeds(t)
	for _, node := range nodes {
		node.stdout.await(t, node.address(t)+" measures ")
		node.succeeds(t)
	}
}

func TestWaitForSensors(t *testing.T) {
	node := launch(t, "node", "-address", "127.0.0.1:0", "-nodes", "1", "-interval", "5ms")
	node.stdout.await(t, "waiting for a consumer")
	client := launch(t, "client", "-seeds", node.address(t), "-producers", "2")
	client.stdout.await(t, "client   waiting for sensors: 1 of 2 (temp)")
	launch(t, "node", "-address", "127.0.0.1:0", "-nodes", "2", "-seeds", node.address(t), "-sensor", "pressure", "-alert-monitor", "-interval", "5ms")
	client.succeeds(t)
	node.succeeds(t)
}

// TestPatience: whoever gives up says what was missing.
func TestPatience(t *testing.T) {
	seed := freeAddress(t)
	client := launch(t, "client", "-seeds", seed, "-patience", "300ms")
	if status := client.wait(t); status != 1 || !strings.Contains(client.stderr.String(),
		"gave up after 300ms of waiting for a node to answer; seed "+seed+" refuses the connection") {
		t.Errorf("status %d: %s", status, client.stderr)
	}
	node := launch(t, "node", "-address", "127.0.0.1:0", "-nodes", "1")
	client = launch(t, "client", "-seeds", node.address(t), "-producers", "9", "-patience", "2s")
	if status := client.wait(t); status != 1 || !strings.Contains(client.stderr.String(),
		"gave up after 2s of waiting for sensors: 1 of 9 (temp)") {
		t.Errorf("status %d: %s", status, client.stderr)
	}
}

// TestBlockedPut: a node says why it does not go on, and for how long it did not.
func TestBlockedPut(t *testing.T) {
	node := launch(t, "node", "-address", "127.0.0.1:0", "-nodes", "1", "-interval", "0", "-readings", "30")
	node.stdout.await(t, "waiting for a consumer")
	node.stdout.await(t, "waiting for a consumer: no consumer has subscribed")
	slow := launch(t, "client", "-seeds", node.address(t), "-producers", "1", "-slow", "2s", "-window", "2")
	node.stdout.await(t, "no longer waiting for a consumer")
	node.stdout.await(t, "goes on: Put was blocked for ")
	node.stdout.await(t, "Put has been blocked for a second") // because the client is slow
	slow.interrupt()
	slow.wait(t)
	launch(t, "client", "-seeds", node.address(t), "-producers", "1", "-patience", "2s").wait(t) // there is no monitor
	total := regexp.MustCompile(`has pushed 30 readings; Put was blocked for (\S+) in all`).FindStringSubmatch(node.succeeds(t))
	if total == nil {
		t.Fatalf("no total in:\n%s", node.stdout)
	}
	if blocked, err := time.ParseDuration(total[1]); err != nil || blocked < 2*time.Second { // it was said twice
		t.Errorf("Put was blocked for %s in all, but:\n%s", total[1], node.stdout)
	}
}

// What is said of losses.

func TestCut(t *testing.T) {
	out := launch(t, "-cut", "200ms", "-interval", "20ms", "-readings", "30", "-trace").succeeds(t)
	number := regexp.MustCompile(`(?m)^(\d+) connections were cut$`).FindStringSubmatch(out)
	if number == nil || number[1] == "0" {
		t.Errorf("%q connections were cut", number)
	}
	lost := map[string]bool{}
	back := regexp.MustCompile(`^client   (\w+) goes on at (?:reading (\d+)|its end)\n`)
	received := map[string]int{}
	for line := range strings.Lines(out) {
		if sensor, found := strings.CutPrefix(line, "client   lost the node of "); found {
			if sensor = strings.TrimSpace(sensor); lost[sensor] {
				t.Errorf("%s is lost twice", sensor)
			}
			lost[sensor] = true
		} else if match := back.FindStringSubmatch(line); match != nil {
			next := 31 // at the end
			if match[2] != "" {
				next, _ = strconv.Atoi(match[2])
			}
			if !lost[match[1]] || received[match[1]] >= next {
				t.Errorf("not lost, or %d received: %s", received[match[1]], line)
			}
			lost[match[1]] = false
		} else if fields := strings.Fields(line); len(fields) > 2 && fields[0] == "reading" {
			received[fields[1]]++
		}
	}
	for sensor, lost := range lost {
		if lost {
			t.Errorf("it is not said that %s has gone on", sensor)
		}
	}
	if len(lost) == 0 || !strings.Contains(out, "✗ │") {
		t.Errorf("nothing was lost in:\n%s", out)
	}
	if readings := len(starting(out, "reading")); readings != 90 || !strings.Contains(out, "90 received: they agree") {
		t.Errorf("%d readings in:\n%s", readings, out)
	}
}

// What a trace shows.

func TestTraceOfLosses(t *testing.T) {
	out := newOutput()
	trace := newTrace(newConsole(out))
	producer := casty.Address{System: "s", Host: "a:1", Name: "sensor-temp"}
	consumer := casty.Address{System: "s", Host: "id", Name: "reader-1"}
	process := casty.Address{System: "s", Host: "a:1"}
	told := func(from, to casty.Address, value any) { trace.see(message{false, from, to, value}) }
	delivered := func(from, to casty.Address, value any) { trace.see(message{true, from, to, value}) }
	run := func(seq uint64, values ...float64) casty.StreamElement[SensorReading] {
		var readings []SensorReading
		for _, value := range values {
			readings = append(readings, SensorReading{Value: value})
		}
		return casty.StreamElement[SensorReading]{Seq: seq, Elements: readings}
	}
	told(consumer, producer, "something else") // shows that the consumer is here
	told(producer, consumer, run(0, 1))
	delivered(process, consumer, run(0, 1))
	told(producer, consumer, run(1, 2))
	told(producer, consumer, run(1, 2, 3))
	told(producer, consumer, run(3, 4))
	told(producer, consumer, run(1, 2, 3, 4))
	delivered(process, consumer, run(1, 2, 3, 4))
	told(producer, consumer, casty.StreamCompleted[SensorReading]{Seq: 4})
	told(producer, casty.Address{Host: "elsewhere", Name: "reader-2"}, casty.Subscribed[SensorReading]{Seq: 7})
	delivered(casty.Address{Host: "elsewhere"}, consumer, run(9, 10, 11, 12, 13))
	trace.end()
	var got []string
	for line := range strings.Lines(out.String()) {
		got = append(got, strings.Join(strings.Fields(strings.NewReplacer("─", "", "│", "").Replace(line)), " "))
	}
	want := []string{
		"sensor-temp StreamElement{0, [1]} ▶ reader-1",
		"sensor-temp StreamElement{1, [2 3]} ✗ reader-1 ×2",
		"sensor-temp StreamElement{3, [4]} ✗ reader-1",
		"sensor-temp StreamElement{1, [2 3 …+1]} ▶ reader-1",
		"sensor-temp Subscribed{7} ▶ reader-2",
		"elsewhere StreamElement{9, [10 11 …+2]} ▶ reader-1",
		"sensor-temp StreamCompleted{4} ✗ reader-1",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s", strings.Join(got, "\n"))
	}
}

// TestTraceOfEverything: every element is drawn, in order, and so is what goes
// the other way.
func TestTraceOfEverything(t *testing.T) {
	out := launch(t, "-trace", "-interval", "5ms", "-window", "4").succeeds(t)
	for _, want := range []string{
		`sensor-temp │ ◀─+ Subscribe\{From: 0\} ─+ │ reader-\d`,
		`sensor-temp │ ─+ Subscribed\{0\} ─+▶ │ reader-\d`,
		`sensor-temp │ ◀─+ StreamDemand\{Received: 0, Demand: 4\} ─+ │ reader-\d`,
		`sensor-temp │ ─+ StreamElement\{0, \[[\d. …+]+\]\} ─+▶ │ reader-\d`,
		`sensor-temp │ ─+ StreamCompleted\{20\} ─+▶ │ reader-\d`,
		`sensor-temp │ ◀─+ StreamDemand\{Received: 21, Demand: 21\} ─+ │ reader-\d`,
		`alerts │ ─+ StreamCompleted\{17\} ─+▶ │ alerts-\w+`,
	} {
		if !regexp.MustCompile(`(?m)^ *` + want + `$`).MatchString(out) {
			t.Errorf("no %s in:\n%s", want, out)
		}
	}
	for line := range strings.Lines(out) {
		if n := utf8.RuneCountInString(line) - 1; strings.Contains(line, "│") && n > 80 {
			t.Errorf("%d columns: %s", n, line)
		}
	}
}

// TestTraceOfRoles: each process draws what it tells, and what it is told.
func TestTraceOfRoles(t *testing.T) {
	node := launch(t, "node", "-address", "127.0.0.1:0", "-nodes", "1", "-interval", "5ms", "-alert-monitor", "-trace")
	client := launch(t, "client", "-seeds", node.address(t), "-producers", "1", "-trace").succeeds(t)
	wants := map[string]string{
		`sensor-temp │ ◀─+ Subscribe\{From: 0\} ─+ │ reader-1`:             client + "\n" + node.succeeds(t),
		`sensor-temp │ ─+ StreamCompleted\{20\} ─+▶ │ reader-1`:            node.stdout.String(),
		`alerts │ ◀─+ Subscribe\{From: 0\} ─+ │ alerts-\w+`:                node.stdout.String(),
		node.address(t) + ` │ ─+ StreamCompleted\{20\} ─+▶ │ reader-1`:     client,
		`alerts │ ─+ StreamElement\{0, \[[\d. …+]+\]\} ─+▶ │ alerts-\w+`:   client,
		`alerts │ ◀─+ StreamDemand\{Received: 0, Demand: 256\} ─+ │ alert`: client,
	}
	for want, in := range wants {
		if !regexp.MustCompile(want).MatchString(in) {
			t.Errorf("no %s in:\n%s", want, in)
		}
	}
}

// What becomes of anomalies.

// quietSeed gives no anomaly in 3 readings of each sensor, as TestNoMonitor checks.
const quietSeed = "7"

func TestNoMonitor(t *testing.T) {
	for readings, want := range map[string]struct {
		anomalies, status int
	}{"3": {0, 0}, "20": {7, 1}} {
		node := launch(t, "node", "-address", "127.0.0.1:0", "-nodes", "1", "-interval", "0", "-random", quietSeed, "-readings", readings)
		client := launch(t, "client", "-seeds", node.address(t), "-producers", "1", "-patience", "2s", "-slow", "100ms")
		client.stdout.await(t, "client   waiting for a monitor: start one node with -alert-monitor")
		if status := client.wait(t); status != want.status {
			t.Errorf("%s readings: status %d: %s", readings, status, client.stderr)
		}
		out := client.stdout.String()
		if strings.Contains(out, "agree") || strings.Count(out, "alert waits for a monitor") != want.anomalies ||
			!strings.Contains(out, fmt.Sprintf("\n%d anomalies found, and no monitor to tell: start one node with -alert-monitor\n", want.anomalies)) {
			t.Errorf("%s readings:\n%s", readings, out)
		}
		node.succeeds(t)
	}
}

// TestTwoMonitors: the client uses one of them; the other does not wait for it.
func TestTwoMonitors(t *testing.T) {
	monitor, others := cluster(t, launch, "-interval", "5ms", "-nodes", "4")
	second := launch(t, "node", "-address", "127.0.0.1:0", "-nodes", "4", "-seeds", monitor.address(t), "-interval", "5ms", "-alert-monitor")
	client := launch(t, "client", "-seeds", monitor.address(t), "-producers", "4")
	out := client.succeeds(t)
	alerts := 0
	for _, node := range append(others, monitor, second) {
		chosen := strings.Contains(out, "client   sends its alerts to casty://pipeline@"+node.address(t)+"/monitor, one of 2 monitors\n")
		got := len(starting(node.succeeds(t), "alert"))
		if got > 0 != chosen {
			t.Errorf("chosen: %v, but %d alerts", chosen, got)
		}
		alerts += got
	}
	if alerts != 24 || !strings.Contains(out, "24 anomalies found, 24 alerts acknowledged by the monitor: they agree") {
		t.Errorf("%d alerts, and:\n%s", alerts, out)
	}
}

// What the table looks like.

func TestTable(t *testing.T) {
	headings := map[int]string{
		80:  "SENSOR NODE STREAM COUNT ANOMALIES VALUES",
		100: "SENSOR NODE STREAM COUNT MIN MAX ANOMALIES VALUES",
		110: "SENSOR NODE STREAM COUNT AVERAGE MIN MAX ANOMALIES VALUES",
		140: "SENSOR NODE STREAM COUNT AVERAGE MIN MAX ANOMALIES VALUES",
		0:   "SENSOR NODE STREAM COUNT AVERAGE MIN MAX ANOMALIES VALUES",
	}
	for width, want := range headings {
		for _, readings := range []int{0, 1, 20, 10_000} {
			for _, colour := range []bool{false, true} {
				table := tableOf(t, "127.0.0.1:25520", width, readings, colour)
				if got := strings.Join(strings.Fields(table[0]), " "); got != want && readings > 0 {
					t.Errorf("%d columns, %d readings: %s", width, readings, got)
				}
				most := 0
				for _, line := range table {
					most = max(most, utf8.RuneCountInString(line))
				}
				if most > cmp.Or(width, 150) {
					t.Errorf("%d columns, %d readings: %d columns in:\n%s", width, readings, most, strings.Join(table, "\n"))
				}
				resampled := strings.HasPrefix(table[len(table)-1], "each block stands for ")
				if resampled != (readings > 60) {
					t.Errorf("%d columns, %d readings: it says that it was resampled, or not:\n%s", width, readings, strings.Join(table, "\n"))
				}
			}
		}
	}
	long := tableOf(t, "node-1.of-a-very-long-name.measuring.example.org:25520", 80, 20, true)
	if strings.Contains(long[0], "NODE") || utf8.RuneCountInString(long[1]) > 80 {
		t.Errorf("a long name is shown:\n%s", strings.Join(long, "\n"))
	}
}

// tableOf has one cut-short sensor and the total. Colours are taken out again.
func tableOf(t *testing.T, node string, width, readings int, colour bool) []string {
	sensor, err := SensorNamed("pressure")
	if err != nil {
		t.Fatal(err)
	}
	sum := &summary{sensors: map[SensorRef]*record{{}: {sensor: sensor, node: node, err: casty.ErrStopped,
		readings: slices.Collect(measure(sensor, readings, 7))}}}
	out := newOutput()
	console := newConsole(out)
	console.colour, console.width = colour, func() int { return width }
	sum.print(console)
	painted := strings.Contains(out.String(), "\x1b[31m")
	if colour != painted && readings > 1 {
		t.Errorf("colour: %v, painted: %v", colour, painted)
	}
	plain := regexp.MustCompile("\x1b\\[\\d+m").ReplaceAllString(out.String(), "")
	return strings.Split(strings.Trim(plain, "\n"), "\n")
}

func TestSparkline(t *testing.T) {
	var readings []SensorReading
	for _, value := range []float64{18, 25, 30, 30.5, 35, 26} {
		readings = append(readings, SensorReading{Sensor: "temp", Value: value})
	}
	tests := []struct {
		readings    []SensorReading
		each        int
		line, marks string
	}{
		{readings, 1, "▁▄▆▆█▄", "   !!"},
		{readings, 2, "▄▆█", " !!"},
		{readings, 4, "▆█", "!!"},
		{readings[:1], 1, "▁", ""},
		{nil, 1, "", ""},
	}
	for _, test := range tests {
		if line, marks := sparkline(test.readings, test.each, &console{}); line != test.line || marks != test.marks {
			t.Errorf("%d readings, %d each: %q %q", len(test.readings), test.each, line, marks)
		}
	}
	if line, _ := sparkline(readings[3:5], 1, &console{colour: true}); line != "\x1b[31m▁\x1b[0m\x1b[31m█\x1b[0m" {
		t.Errorf("%q", line)
	}
}

// freeAddress is one that refuses connections until somebody listens there.
func freeAddress(t *testing.T) string {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}
