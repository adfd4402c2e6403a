package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestReadingsStayInRange(t *testing.T) {
	for _, sensor := range Sensors() {
		for seed := range uint64(100) {
			n := 0
			for reading := range measure(sensor, 50, seed) {
				n++
				if reading.Value < sensor.Low || reading.Value > sensor.High {
					t.Errorf("seed %d: %v is not between %v and %v", seed, reading, sensor.Low, sensor.High)
				}
				if reading.Seq != n || reading.Sensor != sensor.Name || reading.Unit != sensor.Unit {
					t.Errorf("reading %d of %v is %+v", n, sensor, reading)
				}
			}
			if n != 50 {
				t.Errorf("%d readings, not 50", n)
			}
		}
	}
}

func TestReadingsDependOnSeedAndSensor(t *testing.T) {
	values := func(sensor Sensor, seed uint64) (in []float64) { // between 0 and 1, to compare kinds
		for reading := range measure(sensor, 20, seed) {
			in = append(in, (reading.Value-sensor.Low)/(sensor.High-sensor.Low))
		}
		return in
	}
	temp, humidity := Sensors()[0], Sensors()[1]
	if !slices.Equal(values(temp, 1), values(temp, 1)) {
		t.Error("one seed gave two series")
	}
	if slices.Equal(values(temp, 1), values(temp, 2)) {
		t.Error("two seeds gave one series")
	}
	if slices.EqualFunc(values(temp, 1), values(humidity, 1), func(a, b float64) bool { return a-b < 0.01 && b-a < 0.01 }) {
		t.Error("two kinds of sensors rise and fall together")
	}
}

func TestAnomalyIsStrictlyAboveTheLimit(t *testing.T) {
	for kind, limit := range map[string]float64{"temp": 30, "humidity": 70, "pressure": 1020} {
		for value, want := range map[float64]bool{limit - 0.01: false, limit: false, limit + 0.01: true} {
			alert, anomaly := SensorReading{Sensor: kind, Value: value}.Alert()
			if anomaly != want || alert.Limit != limit {
				t.Errorf("%s %v: anomaly %v, limit %v", kind, value, anomaly, alert.Limit)
			}
		}
	}
	if _, anomaly := (SensorReading{Sensor: "noise", Value: 1e9}).Alert(); anomaly {
		t.Error("a reading of an unknown kind is an anomaly")
	}
}

func TestUsage(t *testing.T) {
	tests := map[string]string{ // the arguments, and what must be said of them
		"sensor":                                `"sensor": want node, client, certificates or nothing`,
		"node extra":                            `unexpected argument "extra"`,
		"client -producers 2 extra":             `unexpected argument "extra"`,
		"node -alert-monitor true":              `unexpected argument "true"`,
		"node -alert-monitor=perhaps":           `-alert-monitor: want true, false or nothing`,
		"node -colour":                          `not defined: -colour: want one of -address, -alert-monitor, -bind, `,
		"client -sensor temp":                   `not defined: -sensor`,
		"certificates -tls-ca a":                `not defined: -tls-ca: want one of -dir, -names;`,
		"-producers 3":                          `not defined: -producers`,
		"node -sensor noise":                    `"noise" for flag -sensor: want one of temp, humidity, pressure`,
		"node -address localhost":               `"localhost" for flag -address: want host:port`,
		"node -address :25520":                  `":25520" for flag -address: want host:port`,
		"node -address 127.0.0.1:65536":         `for flag -address: want host:port`,
		"node -address 0.0.0.0:25520":           `want an address of this machine, and beside it -bind 0.0.0.0:25520`,
		"node -address [::]:25520":              `and beside it -bind [::]:25520`,
		"node -bind 0.0.0.0":                    `"0.0.0.0" for flag -bind: want host:port`,
		"node -seeds a:1,b":                     `"a:1,b" for flag -seeds: want host:port`,
		"client -seeds 127.0.0.1:http":          `for flag -seeds: want host:port`,
		"client -seeds a:1,b:0":                 `"a:1,b:0" for flag -seeds: want the port`,
		"client -producers 0":                   `"0" for flag -producers: want a whole number from 1 on`,
		"client -patience -1s":                  `"-1s" for flag -patience: want a time like`,
		"client -window 0":                      `for flag -window: want a whole number from 1 to 65536`,
		"client -window 65537":                  `for flag -window: want a whole number from 1 to 65536`,
		"client -slow 3":                        `for flag -slow: want a time like 1s or 200ms, and no less than 0s`,
		"-cut 1ms":                              `for flag -cut: want a time like 1s or 200ms, and no less than 100ms`,
		"node -nodes three":                     `"three" for flag -nodes: want a whole number`,
		"node -interval 1":                      `"1" for flag -interval: want a time like`,
		"-readings -1":                          `"-1" for flag -readings: want a whole number`,
		"-random x":                             `"x" for flag -random: want a whole number from 0 on`,
		"-tls-cert a":                           `want all three of -tls-cert, -tls-key and -tls-ca`,
		"client -tls-key a -tls-ca b":           `want all three of -tls-cert, -tls-key and -tls-ca`,
		"node -tls-cert a -tls-key a -tls-ca /": `-tls-cert a, -tls-key a: `,
		"certificates -names a,":                `"" is no name: want hosts or other words`,
		"certificates -names ../a":              `"../a" is no name`,
		"certificates -names ca":                `"ca" is what the files of the authority`,
		"certificates -names a-key,a":           `"a-key" is what the files of the authority and of keys are called`,
		"certificates -names a,b,a":             `"a" is there twice`,
	}
	for args, want := range tests {
		var stdout, stderr bytes.Buffer
		if status := run(t.Context(), strings.Fields(args), &stdout, &stderr); status != 2 {
			t.Errorf("%s: status %d", args, status)
		}
		if got := stderr.String(); !strings.Contains(got, want) || !strings.HasSuffix(got, " -h says more\n") ||
			strings.Count(got, "\n") != 1 || stdout.Len() > 0 {
			t.Errorf("%s: printed %q and %q, want %q", args, &stdout, got, want)
		}
	}
}

func TestHelp(t *testing.T) {
	tests := map[string]struct{ says, not string }{ // regular expressions
		"-h":              {`(?s)^usage: pipeline \[role\].*Runs three nodes.*certificates +makes.*-cut.*-slow.*-trace`, `-address|-seeds|-dir`},
		"node -h":         {`(?s)Runs a node.*-address.*-alert-monitor.*-interval.*default 1s.*-tls-ca`, `-window|-slow|-patience|-dir|-cut`},
		"client -h":       {`(?s)Runs the client.*-cancel.*-patience.*-producers.*-seeds.*-window`, `-sensor|-interval|-readings|-address|-dir|-cut`},
		"certificates -h": {`(?s)Makes an authority.*-dir.*-names`, `-tls-ca|-trace|-seeds|-interval`},
	}
	for args, want := range tests {
		var stdout, stderr bytes.Buffer
		if status := run(t.Context(), strings.Fields(args), &stdout, &stderr); status != 0 || stderr.Len() > 0 {
			t.Errorf("%s: status %d, stderr %s", args, status, &stderr)
		}
		_, flags, _ := strings.Cut(stdout.String(), "\n  -")
		if !regexp.MustCompile(want.says).MatchString(stdout.String()) || regexp.MustCompile(want.not).MatchString("-"+flags) {
			t.Errorf("%s: want %s, and not %s, in:\n%s", args, want.says, want.not, &stdout)
		}
		for line := range strings.Lines(stdout.String()) {
			if len(line) > 90 {
				t.Errorf("%s: a long line: %s", args, line)
			}
		}
	}
}

// TestFullDisk: /dev/full takes nothing.
func TestFullDisk(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip(err)
	}
	defer full.Close()
	for _, args := range []string{"-h", "-readings 1000000", "node -address 127.0.0.1:0"} {
		var stderr bytes.Buffer
		if status := run(t.Context(), strings.Fields(args), full, &stderr); status != 1 ||
			!strings.Contains(stderr.String(), "standard output: write /dev/full: no space left on device\n") {
			t.Errorf("%s: status %d: %s", args, status, &stderr)
		}
	}
}

func TestEverything(t *testing.T) {
	all := launch(t, "-interval", "5ms")
	out := all.succeeds(t)
	if got := all.stderr.String(); got != "" {
		t.Errorf("nothing is wrong, but stderr has %s", got)
	}
	for _, want := range []string{
		`(?m)^humidity %    127\.0\.0\.1:\d+ +complete +20 +[\d.]+ +[\d.]+ +[\d.]+ +7  [▁-█]{20}$`,
		`(?m)^pressure hPa  127\.0\.0\.1:\d+ +complete +20 `,
		`(?m)^temp °C       127\.0\.0\.1:\d+ +complete +20 `,
		`(?m)^total +60 +17$`,
		`(?m)^60 readings pushed, 60 received: they agree$`,
		`(?m)^17 anomalies found, 17 alerts received by the monitor: they agree$`,
	} {
		if !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("no %s in:\n%s", want, out)
		}
	}
	for line, want := range map[string]int{ // of each, how many there are
		`reading .*`:                             60,
		`reading .*!.* is above \d+: alert sent`: 17, // and nowhere else
		`.*!.*\d.*`:                              17,
		`node .* has the sensor \w+(, and the monitor)?`:                         6, // once at the beginning, and once above the table
		`node .* measures \w+`:                                                   3,
		`node .* has pushed 20 readings; Put was blocked for .* in all`:          3,
		`client   receives from .*`:                                              6,
		`client   sends its alerts to casty://pipeline@127\.0\.0\.1:\d+/monitor`: 1,
	} {
		if n := len(regexp.MustCompile(`(?m)^`+line+`$`).FindAllString(out, -1)); n != want {
			t.Errorf("%d of %s, not %d, in:\n%s", n, line, want, out)
		}
	}
	if strings.Contains(out, "\x1b") {
		t.Error("there is colour where there is no terminal")
	}
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	ports := regexp.MustCompile(`:\d{5}\b`)
	_, summary, _ := strings.Cut(out, "\nSENSOR")
	for line := range strings.Lines(ports.ReplaceAllString("SENSOR"+summary, ":port")) {
		if !strings.Contains(ports.ReplaceAllString(string(readme), ":port"), line) {
			t.Errorf("the README does not show: %s", line)
		}
	}
}

// What becomes of an alert depends on when the monitor is found, so it does not count.
func TestTheSameSeedGivesTheSameReadings(t *testing.T) {
	fate := regexp.MustCompile(`: alert .*`)
	readings := func(seed string) []string {
		out := launch(t, "-interval", "1ms", "-readings", "10", "-random", seed).succeeds(t)
		return starting(fate.ReplaceAllString(out, ""), "reading")
	}
	first := readings("1")
	if again := readings("1"); !slices.Equal(first, again) {
		t.Errorf("%q\n%q", first, again)
	}
	if other := readings("2"); slices.Equal(first, other) {
		t.Error("another seed gave the same")
	}
}

func TestOverTLS(t *testing.T) {
	nodeFlags, clientFlags := certificates(t)
	monitor, others := cluster(t, launch, append(nodeFlags, "-interval", "1ms")...)
	launch(t, append([]string{"client", "-seeds", monitor.address(t)}, clientFlags...)...).succeeds(t)
	for _, node := range append(others, monitor) {
		node.succeeds(t)
	}
	launch(t, append(nodeFlags, "-interval", "1ms")...).succeeds(t) // all in one process

	node := launch(t, append([]string{"node", "-address", "127.0.0.1:0", "-nodes", "1"}, nodeFlags...)...)
	_, strangers := certificates(t)
	for name, flags := range map[string][]string{
		"does not trust the node": strangers,
		"is not trusted":          append(clientFlags[:2:2], strangers[2:]...),
		"has no TLS":              nil,
	} {
		client := launch(t, append([]string{"client", "-seeds", node.address(t)}, flags...)...)
		client.stderr.await(t, "\n") // whatever is said of it
		client.interrupt()           // it would try again for a while
		if status := client.wait(t); status != 130 && status != 1 {
			t.Errorf("a client that %s: status %d", name, status)
		}
	}
	if out := node.stdout.String(); strings.Contains(out, "pushed") {
		t.Error("a stranger was let in")
	}
}

func TestInterrupt(t *testing.T) {
	all := launch(t, "-interval", "5ms", "-readings", "1000000")
	for _, sensor := range Sensors() {
		all.stdout.await(t, fmt.Sprintf("reading  %-8s    3", sensor))
	}
	all.interrupt()
	if status := all.wait(t); status != 130 {
		t.Errorf("status %d", status)
	}
	out := all.stdout.String()
	if got := regexp.MustCompile(`(?m)^total +(\d+)`).FindStringSubmatch(out); got == nil ||
		got[1] != fmt.Sprint(len(starting(out, "reading"))) {
		t.Errorf("the total is %q in:\n%s", got, out)
	}
	if n := strings.Count(out, "cut short"); n != 3 {
		t.Errorf("%d streams were cut short in:\n%s", n, out)
	}
	if got := all.stderr.String(); !strings.HasSuffix(got, "pipeline: interrupted\n") {
		t.Errorf("stderr: %s", got)
	}
}

func TestInterruptWhileWaitingForOthers(t *testing.T) {
	node := launch(t, "node", "-address", "127.0.0.1:0", "-nodes", "2")
	client := launch(t, "client", "-seeds", node.address(t), "-producers", "1")
	client.interrupt()
	if status := client.wait(t); status != 130 || !strings.Contains(client.stdout.String(), "total") {
		t.Errorf("client: status %d: %s", status, client.stdout)
	}
	node.interrupt()
	if status := node.wait(t); status != 130 {
		t.Errorf("node: status %d", status)
	}
}

func TestNoCluster(t *testing.T) {
	nobody, err := net.Listen("tcp", "127.0.0.1:0") // it takes connections, and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer nobody.Close()
	inUse := launch(t, "node", "-address", nobody.Addr().String())
	if status := inUse.wait(t); status != 1 || !strings.Contains(inUse.stderr.String(), "in use") {
		t.Errorf("status %d: %s", status, inUse.stderr)
	}
	client := launch(t, "client", "-seeds", nobody.Addr().String())
	client.interrupt()
	if status := client.wait(t); status != 130 {
		t.Errorf("status %d: %s", status, client.stderr)
	}
}

// TestRoles runs each role by itself, as on machines of their own.
func TestRoles(t *testing.T) {
	monitor, others := cluster(t, launch, "-interval", "5ms")
	client := launch(t, "client", "-seeds", monitor.address(t))
	out := client.succeeds(t)
	if want := "17 anomalies found, 17 alerts acknowledged by the monitor: they agree\n"; !strings.HasSuffix(out, want) {
		t.Errorf("no %s in:\n%s", want, out)
	}
	if out := monitor.succeeds(t); len(starting(out, "alert")) != 17 {
		t.Errorf("not 17 alerts in:\n%s", out)
	}
	for _, other := range others {
		if out := other.succeeds(t); !strings.Contains(out, "has pushed 20 readings") {
			t.Error(out)
		}
	}
}

// TestSecondClient: what one client receives is not for another, whose coming
// and going does the first no harm.
func TestSecondClient(t *testing.T) {
	monitor, others := cluster(t, launch, "-interval", "10ms", "-readings", "100")
	first := launch(t, "client", "-seeds", monitor.address(t))
	for _, sensor := range Sensors() {
		first.stdout.await(t, fmt.Sprintf("reading  %-8s    1", sensor))
	}
	second := launch(t, "client", "-seeds", monitor.address(t), "-producers", "1")
	out := first.succeeds(t)
	for _, node := range append(others, monitor) {
		node.succeeds(t)
	}
	if n := len(starting(out, "reading")); n != 300 {
		t.Errorf("%d readings, not 300", n)
	}
	second.interrupt() // in case it was too late to find a sensor
	if status := second.wait(t); status == 0 || len(starting(second.stdout.String(), "reading")) > 0 {
		t.Errorf("status %d:\n%s", status, second.stdout)
	}
}

// TestProcesses does it with real ones, some of which do not live to the end.
func TestProcesses(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "pipeline")
	if out, err := exec.Command("go", "build", "-o", binary, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	spawn := func(t *testing.T, args ...string) *running { return start(t, binary, args...) }
	for name, scenario := range map[string]func(*testing.T, launcher){
		"all live":           allLive,
		"a node is killed":   nodeKilled,
		"the monitor dies":   monitorReplaced,
		"the client dies":    clientReplaced,
		"client interrupted": clientInterrupted,
		"interrupted twice":  clientInterruptedTwice,
		"client cancels":     clientCancels,
		"node interrupted":   nodeInterrupted,
		"break it yourself":  breakItYourself,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			scenario(t, spawn)
		})
	}
}

func allLive(t *testing.T, spawn launcher) {
	monitor, others := cluster(t, spawn, "-interval", "20ms")
	spawn(t, "client", "-seeds", monitor.address(t)).succeeds(t)
	for _, node := range append(others, monitor) {
		node.succeeds(t)
	}
}

func nodeKilled(t *testing.T, spawn launcher) {
	monitor, others := cluster(t, spawn, "-interval", "20ms", "-nodes", "4")
	victim := spawn(t, "node", "-address", "127.0.0.1:0", "-seeds", monitor.address(t), "-nodes", "4",
		"-sensor", "pressure", "-interval", "20ms", "-readings", "1000000", "-random", "3")
	victims, survivors := victim.address(t), append(others, monitor)
	client := spawn(t, "client", "-seeds", monitor.address(t), "-producers", "4", "-patience", "2s")
	for _, node := range survivors {
		client.stdout.await(t, "receives from casty://pipeline@"+node.address(t))
	}
	client.stdout.await(t, "reading  pressure   21") // only the victim comes that far
	victim.kill()
	if status := client.wait(t); status != 1 {
		t.Errorf("status %d", status)
	}
	out := client.stdout.String()
	if !regexp.MustCompile(`(?m)^pressure hPa +`+victims+` +cut short `).MatchString(out) || strings.Count(out, " complete ") != 3 {
		t.Errorf("the summary does not tell who failed:\n%s", out)
	}
	if got := client.stderr.String(); !strings.Contains(got, victims+"/sensor-pressure: unreachable") {
		t.Errorf("stderr: %s", got)
	}
	for _, node := range survivors {
		node.succeeds(t)
	}
}

// monitorReplaced: the alerts that the dead monitor has not acknowledged, and
// all later ones, go to the node that takes its place.
func monitorReplaced(t *testing.T, spawn launcher) {
	seed := spawn(t, "node", "-address", "127.0.0.1:0", "-nodes", "1", "-interval", "20ms", "-readings", "100")
	victim := spawn(t, "node", "-address", "127.0.0.1:0", "-seeds", seed.address(t), "-nodes", "2",
		"-sensor", "humidity", "-interval", "20ms", "-readings", "1000000", "-alert-monitor")
	client := spawn(t, "client", "-seeds", seed.address(t), "-producers", "2", "-patience", "5s")
	victim.stdout.await(t, "alert ")
	victim.kill()
	next := spawn(t, "node", "-address", "127.0.0.1:0", "-seeds", seed.address(t), "-nodes", "2",
		"-sensor", "pressure", "-interval", "20ms", "-alert-monitor")
	if status := client.wait(t); status != 1 {
		t.Errorf("status %d", status)
	}
	if !strings.Contains(client.stdout.String(), "acknowledged by the monitor: they agree") ||
		strings.Count(client.stdout.String(), " complete ") != 1 {
		t.Errorf("client:\n%s", client.stdout)
	}
	seed.succeeds(t)
	next.interrupt() // it came too late for anyone to receive from its own sensor
	if status := next.wait(t); status != 130 || len(starting(next.stdout.String(), "alert")) == 0 {
		t.Errorf("status %d, no alerts in:\n%s", status, next.stdout)
	}
}

// clientReplaced: the next client gets all that the dead one has not acknowledged.
func clientReplaced(t *testing.T, spawn launcher) {
	monitor, others := cluster(t, spawn, "-interval", "20ms", "-readings", "50")
	first := spawn(t, "client", "-seeds", monitor.address(t))
	monitor.stdout.await(t, "alert ")
	first.kill()
	first.wait(t) // while it lives, its streams are not for another
	out := spawn(t, "client", "-seeds", monitor.address(t)).succeeds(t)
	for _, sensor := range Sensors() {
		if !strings.Contains(out, fmt.Sprintf("reading  %-8s   50", sensor)) {
			t.Errorf("the last reading of %v is not in:\n%s", sensor, out)
		}
	}
	for _, node := range append(others, monitor) {
		node.succeeds(t)
	}
}

// clientInterrupted: the nodes wait for the next client.
func clientInterrupted(t *testing.T, spawn launcher) {
	monitor, others := cluster(t, spawn, "-interval", "20ms", "-readings", "150")
	client := spawn(t, "client", "-seeds", monitor.address(t))
	for _, sensor := range Sensors() {
		client.stdout.await(t, fmt.Sprintf("reading  %-8s    3", sensor))
	}
	client.interrupt()
	if status := client.wait(t); status != 130 || strings.Count(client.stdout.String(), "cut short") != 3 {
		t.Errorf("status %d:\n%s", status, client.stdout)
	}
	out := spawn(t, "client", "-seeds", monitor.address(t)).succeeds(t)
	for _, sensor := range Sensors() {
		if !strings.Contains(out, fmt.Sprintf("reading  %-8s  150", sensor)) {
			t.Errorf("the last reading of %v is not in:\n%s", sensor, out)
		}
	}
	for _, node := range append(others, monitor) {
		node.succeeds(t)
	}
}

// clientInterruptedTwice: the streams end.
func clientInterruptedTwice(t *testing.T, spawn launcher) {
	monitor, others := cluster(t, spawn, "-interval", "20ms", "-readings", "1000000")
	client := spawn(t, "client", "-seeds", monitor.address(t))
	client.stdout.await(t, "reading  pressure    3")
	client.interrupt()
	client.stdout.await(t, "interrupt again to end the streams")
	client.interrupt()
	streamsEnd(t, client, append(others, monitor))
}

// clientCancels: so they do without a second time.
func clientCancels(t *testing.T, spawn launcher) {
	monitor, others := cluster(t, spawn, "-interval", "20ms", "-readings", "1000000")
	client := spawn(t, "client", "-seeds", monitor.address(t), "-cancel")
	client.stdout.await(t, "reading  pressure    3")
	client.interrupt()
	streamsEnd(t, client, append(others, monitor))
}

func streamsEnd(t *testing.T, client *running, nodes []*running) {
	t.Helper()
	if status := client.wait(t); status != 130 || strings.Count(client.stdout.String(), "cut short") != 3 {
		t.Errorf("status %d:\n%s", status, client.stdout)
	}
	for _, node := range nodes {
		if status := node.wait(t); status != 1 || !strings.Contains(node.stderr.String(), "cancelled by the consumer") {
			t.Errorf("status %d: %s", status, node.stderr)
		}
	}
}

func nodeInterrupted(t *testing.T, spawn launcher) {
	node := spawn(t, "node", "-address", "127.0.0.1:0", "-nodes", "1", "-interval", "20ms", "-readings", "1000000", "-alert-monitor")
	client := spawn(t, "client", "-seeds", node.address(t), "-producers", "1", "-patience", "1s")
	client.stdout.await(t, "reading  temp        3")
	node.interrupt()
	if status := node.wait(t); status != 130 {
		t.Errorf("node: status %d: %s", status, node.stderr)
	}
	if status := client.wait(t); status != 1 || !strings.Contains(client.stdout.String(), "cut short") {
		t.Errorf("client: status %d:\n%s", status, client.stdout)
	}
}

// Helpers.

// A running program, in this process or another.
type running struct {
	stdout, stderr  *output
	ended           chan struct{} // then there is a status
	status          int
	interrupt, kill func()
	signal          func(string) // as the command kill takes it
}

type launcher func(t *testing.T, args ...string) *running

// launch runs the program in this process.
func launch(t *testing.T, args ...string) *running {
	ctx, cancel := context.WithCancel(t.Context())
	r := &running{stdout: newOutput(), stderr: newOutput(), ended: make(chan struct{}), interrupt: cancel}
	go func() {
		defer close(r.ended)
		r.status = run(ctx, args, r.stdout, r.stderr)
	}()
	t.Cleanup(func() {
		cancel()
		<-r.ended
	})
	return r
}

// start runs the program in another process.
func start(t *testing.T, binary string, args ...string) *running {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), binary, args...)
	r := &running{stdout: newOutput(), stderr: newOutput(), ended: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = r.stdout, r.stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r.interrupt = func() { cmd.Process.Signal(os.Interrupt) }
	r.kill = func() { cmd.Process.Kill() }
	r.signal = func(signal string) {
		if out, err := exec.Command("kill", signal, fmt.Sprint(cmd.Process.Pid)).CombinedOutput(); err != nil {
			t.Errorf("kill %s: %v: %s", signal, err, out)
		}
	}
	go func() {
		defer close(r.ended)
		cmd.Wait()
		r.status = cmd.ProcessState.ExitCode()
	}()
	t.Cleanup(func() {
		r.kill()
		<-r.ended
	})
	return r
}

// cluster starts three nodes, the first of which is the seed and the monitor.
func cluster(t *testing.T, begin launcher, flags ...string) (monitor *running, others []*running) {
	t.Helper()
	// Port 0 twice: the address takes over the port that was bound.
	monitor = begin(t, append([]string{"node", "-address", "127.0.0.1:0", "-bind", "127.0.0.1:0", "-seeds", "", "-alert-monitor"}, flags...)...)
	for _, sensor := range []string{"humidity", "pressure"} {
		others = append(others, begin(t, append([]string{"node", "-address", "127.0.0.1:0",
			"-seeds", monitor.address(t), "-sensor", sensor}, flags...)...))
	}
	return monitor, others
}

// address waits for a node to say where it is.
func (r *running) address(t *testing.T) string {
	t.Helper()
	return strings.Fields(r.stdout.await(t, " has the sensor "))[1]
}

func (r *running) wait(t *testing.T) int {
	t.Helper()
	select {
	case <-r.ended:
	case <-time.After(time.Minute):
		t.Fatalf("it does not end; so far:\n%s%s", r.stdout, r.stderr)
	}
	return r.status
}

// succeeds waits for status 0, and returns what was printed.
func (r *running) succeeds(t *testing.T) string {
	t.Helper()
	if status := r.wait(t); status != 0 {
		t.Errorf("status %d:\n%s%s", status, r.stdout, r.stderr)
	}
	return r.stdout.String()
}

// starting returns the lines that start with a word, sorted.
func starting(text, word string) (lines []string) {
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, word+" ") {
			lines = append(lines, line)
		}
	}
	slices.Sort(lines)
	return lines
}

// An output collects what is written, and lets a test wait for some of it.
type output struct {
	mu   sync.Mutex // guards what follows
	text strings.Builder
	more chan struct{} // closed, and replaced, at each write
}

func newOutput() *output { return &output{more: make(chan struct{})} }

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	close(o.more)
	o.more = make(chan struct{})
	return o.text.Write(p)
}

func (o *output) String() string {
	text, _ := o.now()
	return text
}

func (o *output) now() (string, <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String(), o.more
}

// await returns the first whole line that has some text in it.
func (o *output) await(t *testing.T, part string) string {
	t.Helper()
	deadline := time.After(time.Minute)
	for {
		text, more := o.now()
		for line := range strings.Lines(text) {
			if strings.Contains(line, part) && strings.HasSuffix(line, "\n") {
				return line
			}
		}
		select {
		case <-more:
		case <-deadline:
			t.Fatalf("no %q in:\n%s", part, text)
		}
	}
}

// certificates makes some with the role for that, and returns the flags to use each.
func certificates(t *testing.T) (node, client []string) {
	t.Helper()
	out := strings.Split(launch(t, "certificates", "-dir", t.TempDir()).succeeds(t), "\n")
	return strings.Fields(out[0]), strings.Fields(out[1])
}
