package main

import (
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func readme(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// shape is what lines have in common that differ in numbers, in how many there
// are, and in whose they are. What the readings add up to does not differ.
func shape(line string) string {
	if strings.HasSuffix(line, ": they agree\n") {
		return line
	}
	line = regexp.MustCompile(`[▁-█]+`).ReplaceAllString(line, "▁")
	line = regexp.MustCompile(`\d+(\.\d+)?`).ReplaceAllString(line, "0")
	line = regexp.MustCompile(`\[[^\]]*\]`).ReplaceAllString(line, "[0]")
	line = regexp.MustCompile(`─+`).ReplaceAllString(line, "─")
	line = regexp.MustCompile(`\b(temp|humidity|pressure)\b`).ReplaceAllString(line, "sensor")
	line = regexp.MustCompile(`0m?s`).ReplaceAllString(line, "0s")
	return strings.Join(strings.Fields(line), " ")
}

// Each command of the README with its output is run, and prints lines like those.
func TestREADMEShowsWhatIsPrinted(t *testing.T) {
	blocks := regexp.MustCompile("(?s)\n\\$ go run ./cmd/pipeline([^\n]*)\n(.*?)```").FindAllStringSubmatch(readme(t), -1)
	if len(blocks) < 3 {
		t.Fatalf("there are only %d", len(blocks))
	}
	for _, block := range blocks {
		t.Run(block[1], func(t *testing.T) {
			t.Parallel()
			printed := map[string]bool{}
			for line := range strings.Lines(launch(t, strings.Fields(block[1])...).succeeds(t)) {
				printed[shape(line)] = true
			}
			for line := range strings.Lines(block[2]) {
				if line != "...\n" && !printed[shape(line)] {
					t.Errorf("nothing like this is printed: %s", line)
				}
			}
		})
	}
}

// Each command of the README has flags that there are.
func TestREADMECommands(t *testing.T) {
	commands := regexp.MustCompile(`(?:go run |\./)(?:\./cmd/)?pipeline( [^\n&|`+"`"+`]*)?`).FindAllStringSubmatch(readme(t), -1)
	if len(commands) < 8 {
		t.Fatalf("there are only %d", len(commands))
	}
	for _, command := range commands {
		role, args := roleOf(strings.Fields(command[1]))
		p := newProgram(role, newConsole(t.Output()), newConsole(t.Output()))
		role.define(p)
		if err := p.parse(args); err != nil {
			t.Errorf("%s: %v", command[0], err)
		}
	}
}

// The four commands of the README make TLS work as it says. Only the addresses
// and the directory differ.
func TestREADMETLS(t *testing.T) {
	section := regexp.MustCompile("(?s)```\n(go run ./cmd/pipeline certificates.*?)\n```.*?```\n(.*?)\n```").FindStringSubmatch(readme(t))
	if section == nil {
		t.Fatal("there are no such commands")
	}
	commands := strings.Split(strings.ReplaceAll(section[1], "certs", t.TempDir()), "\n")
	if len(commands) != 4 {
		t.Fatalf("there are %d commands", len(commands))
	}
	args := func(n int, more ...string) []string {
		return append(strings.Fields(strings.TrimSuffix(strings.TrimPrefix(commands[n], "go run ./cmd/pipeline"), "&")), more...)
	}
	launch(t, args(0)...).succeeds(t)
	node := launch(t, args(1, "-address", "127.0.0.1:0", "-interval", "1ms")...)
	stranger := launch(t, args(2, "-seeds", node.address(t))...)
	if status := stranger.wait(t); status != 1 {
		t.Errorf("without a certificate: status %d", status)
	}
	lines := strings.Split(strings.TrimSpace(stranger.stderr.String()), "\n")
	if last := lines[len(lines)-1]; shape(last) != shape(section[2]) {
		t.Errorf("it prints %q, and the README shows %q", last, section[2])
	}
	launch(t, args(3, "-seeds", node.address(t))...).succeeds(t)
	node.succeeds(t)
}

// breakItYourself does what the README has its readers do, and sees what it says.
func breakItYourself(t *testing.T, spawn launcher) {
	if _, err := exec.LookPath("kill"); err != nil {
		t.Skip(err)
	}
	_, section, _ := strings.Cut(readme(t), "### Break it yourself")
	section, _, _ = strings.Cut(section, "\n## ")
	var seen []string // what the README says that one sees, in order, up to its first number
	for _, quoted := range regexp.MustCompile("\\| .* \\|.*?`([^`]*)`[^`]*\\|\n").FindAllStringSubmatch(section, -1) {
		seen = append(seen, regexp.MustCompile(`^\D*`).FindString(quoted[1]))
	}
	next := func(from *output) {
		t.Helper()
		if len(seen) == 0 {
			t.Fatal("the README does not say what is seen next")
		}
		from.await(t, seen[0])
		seen = seen[1:]
	}
	flags := []string{"-interval", "20ms", "-readings", "700"}
	monitor, others := cluster(t, func(t *testing.T, args ...string) *running {
		if slices.Contains(args, "humidity") { // it is killed before its end, however slow the machine is
			args = append(args, "-readings", "1000000")
		}
		return spawn(t, args...)
	}, flags...)
	humidity, pressure := others[0], others[1]
	seeds := []string{"client", "-seeds", monitor.address(t)}
	client := spawn(t, seeds...)
	client.stdout.await(t, "reading  pressure    3")
	pressure.signal("-STOP")
	next(client.stdout)
	pressure.signal("-CONT")
	next(client.stdout)
	client.interrupt()
	next(client.stdout)
	client.wait(t)
	client = spawn(t, seeds...)
	client.stdout.await(t, "reading  humidity")
	rival := spawn(t, seeds...)
	rival.wait(t)
	next(rival.stderr)
	humidity.kill()
	next(client.stdout)
	at := humidity.address(t)
	humidity.wait(t)
	again := spawn(t, append([]string{"node", "-address", at, "-seeds", monitor.address(t), "-sensor", "humidity"}, flags...)...)
	if status := client.wait(t); status != 1 {
		t.Errorf("status %d", status)
	}
	next(client.stderr)
	for _, node := range []*running{monitor, pressure} {
		node.succeeds(t)
	}
	again.interrupt()
	again.wait(t)
	if len(seen) > 0 {
		t.Errorf("nobody has seen %q", seen)
	}
}
