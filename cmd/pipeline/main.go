// Pipeline is a small distributed program built on casty: sensors on three
// nodes, a client outside the cluster that finds them and receives their
// readings, and a monitor on one of the nodes that receives an alert from the
// client for each anomaly.
//
//	node  sensor-temp      ──readings──▶  client  ──alerts──▶  monitor  (on one of the nodes)
//	node  sensor-humidity  ──readings──▶
//	node  sensor-pressure  ──readings──▶
//
// Without a role, it runs all of them in one process, over TCP all the same:
//
//	go run ./cmd/pipeline
//
// With one, each runs where you like:
//
//	go run ./cmd/pipeline node -address 127.0.0.1:25520 -sensor temp -alert-monitor
//	go run ./cmd/pipeline node -address 127.0.0.1:25521 -sensor humidity -seeds 127.0.0.1:25520
//	go run ./cmd/pipeline node -address 127.0.0.1:25522 -sensor pressure -seeds 127.0.0.1:25520
//	go run ./cmd/pipeline client -seeds 127.0.0.1:25520
//
// The role certificates makes what all of them need to use TLS.
//
// The exit status is 0 if everything has arrived, 1 if not, 2 if the flags are
// wrong, and 130 if it was interrupted.
//
// Read messages.go first, then node.go and client.go.
package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"casty"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // so that a second Ctrl-C does not wait for anything
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run is main without the process around it. It returns the exit status.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	out, log := newConsole(stdout), newConsole(stderr)
	role := ""
	if len(args) > 0 && slices.Contains([]string{"node", "client", "certificates"}, args[0]) {
		role, args = args[0], args[1:]
	}
	p := newProgram(role, out, log)
	err := p.run(ctx, role, args)
	switch {
	case err == nil:
		return 0
	case errors.Is(err, flag.ErrHelp):
		p.usage(out)
		return 0
	case errors.As(err, new(usageError)):
		fmt.Fprintf(log, "%s: %v\n", p.flags.Name(), err)
		p.usage(log)
		return 2
	case ctx.Err() != nil:
		fmt.Fprintf(log, "%s: interrupted\n", p.flags.Name())
		return 130 // what shells make of it
	default:
		fmt.Fprintf(log, "%s: %v\n", p.flags.Name(), err)
		return 1
	}
}

// A program is one run: its flags, and where its output goes.
type program struct {
	flags  *flag.FlagSet
	out    *console
	system casty.Config // what all roles have in common
	tls    tlsFiles
}

// A usageError is the user's, about the command line.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func newProgram(role string, out, log *console) *program {
	p := &program{
		flags: flag.NewFlagSet(strings.TrimSpace("pipeline "+role), flag.ContinueOnError),
		out:   out,
		system: casty.Config{
			Name:   "pipeline",
			Logger: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelWarn})),
		},
	}
	p.flags.SetOutput(io.Discard) // run reports errors, whoever finds them
	p.flags.StringVar(&p.tls.cert, "tls-cert", "", "`file` with the certificate to present; needs the other two")
	p.flags.StringVar(&p.tls.key, "tls-key", "", "`file` with its private key")
	p.flags.StringVar(&p.tls.ca, "tls-ca", "", "`file` with the authority that all certificates must be from")
	return p
}

func (p *program) run(ctx context.Context, role string, args []string) error {
	switch role {
	case "node":
		return p.node(ctx, args)
	case "client":
		return p.client(ctx, args)
	case "certificates":
		return p.certificates(args)
	default:
		return p.everything(ctx, args)
	}
}

func (p *program) usage(w io.Writer) {
	fmt.Fprintf(w, "usage: pipeline [node | client | certificates] [flags]\nflags of %s:\n", p.flags.Name())
	p.flags.SetOutput(w)
	p.flags.PrintDefaults()
}

// node runs one node.
func (p *program) node(ctx context.Context, args []string) error {
	cfg := nodeConfig{nodes: 3, sensor: Sensors()[0]}
	address, bind, seeds := "127.0.0.1:25520", "", addresses(nil)
	accept(p.flags, &address, "address", "`host:port` that peers dial", parseAddress)
	accept(p.flags, &bind, "bind", "`host:port` to listen on, if not the address", optional(parseAddress))
	accept(p.flags, &seeds, "seeds", "nodes to contact first, as `host:port,...`", optional(parseAddresses))
	accept(p.flags, &cfg.nodes, "nodes", "`number` of nodes to wait for", parseNumber)
	accept(p.flags, &cfg.sensor, "sensor", "what to measure: `temp, humidity or pressure`", SensorNamed)
	p.flags.BoolVar(&cfg.monitor, "alert-monitor", false, "run the alert monitor too; on one node only")
	p.sensorFlags(&cfg, time.Second)
	if err := p.parse(args); err != nil {
		return err
	}
	cfg.system = p.system
	cfg.system.Address, cfg.system.Seeds = address, seeds
	if bind != "" {
		listener, err := net.Listen("tcp", bind)
		if err != nil {
			return err
		}
		cfg.system.Listener = listener
	}
	_, err := runNode(ctx, cfg, p.out)
	return err
}

// client runs the client. It has only its own word for the readings, but the
// monitor's for the alerts: that is what it means that the stream is complete.
func (p *program) client(ctx context.Context, args []string) error {
	cfg := clientConfig{producers: 3, patience: 30 * time.Second}
	seeds := addresses{"127.0.0.1:25520"}
	accept(p.flags, &seeds, "seeds", "nodes to contact first, as `host:port,...`", parseAddresses)
	accept(p.flags, &cfg.producers, "producers", "`number` of sensors to wait for", parseNumber)
	accept(p.flags, &cfg.patience, "patience", "`time` to wait for a sensor or monitor that is lost", parseDuration)
	if err := p.parse(args); err != nil {
		return err
	}
	cfg.system = p.system
	cfg.system.Seeds = seeds
	sum, err := runClient(ctx, cfg, p.out)
	if err != nil && ctx.Err() == nil {
		return err
	}
	sum.print(p.out)
	if ctx.Err() != nil {
		return ctx.Err() // it is too early to compare
	}
	_, anomalies := sum.totals()
	err = compare(p.out, "%d anomalies found, %d alerts acknowledged by the monitor", anomalies, sum.acknowledged)
	return errors.Join(sum.err(), err)
}

// certificates makes what the TLS flags of the other roles want.
func (p *program) certificates(args []string) error {
	dir, names := "certs", "127.0.0.1,client"
	p.flags.StringVar(&dir, "dir", dir, "`directory` to write to")
	p.flags.StringVar(&names, "names", names, "who they are for: `host,...` as dialled, for nodes; any name for clients")
	if err := p.parse(args); err != nil {
		return err
	}
	return writeCertificates(dir, strings.Split(names, ","), p.out)
}

// everything runs three nodes and the client, each with a system of its own.
func (p *program) everything(ctx context.Context, args []string) error {
	cfg := nodeConfig{nodes: len(Sensors())}
	p.sensorFlags(&cfg, 100*time.Millisecond)
	if err := p.parse(args); err != nil {
		return err
	}
	// The first to fail ends all: the others would wait for it in vain.
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	seed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	cfg.system = p.system
	cfg.system.Seeds = []string{seed.Addr().String()}
	wait := startNodes(ctx, fail, cfg, seed, p.out)
	client := clientConfig{system: cfg.system, producers: len(Sensors()), patience: 30 * time.Second}
	sum, err := runClient(ctx, client, p.out)
	if err := cmp.Or(err, sum.err()); err != nil {
		fail(err)
	}
	report := wait()
	sum.print(p.out)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	readings, anomalies := sum.totals()
	pushed := compare(p.out, "%d readings pushed, %d received", report.pushed, readings)
	alerts := compare(p.out, "%d anomalies found, %d alerts received by the monitor", anomalies, report.alerts)
	return errors.Join(pushed, alerts)
}

// startNodes starts a node for each kind of sensor. The first is the seed, and
// the monitor. What it returns waits for all, and adds up what they counted.
func startNodes(ctx context.Context, fail func(error), cfg nodeConfig, seed net.Listener, out *console) (wait func() nodeReport) {
	var nodes sync.WaitGroup
	reports := make([]nodeReport, len(Sensors()))
	for i, sensor := range Sensors() {
		cfg := cfg
		cfg.sensor = sensor
		if i == 0 {
			cfg.system.Listener, cfg.monitor = seed, true
		}
		nodes.Go(func() {
			var err error
			if reports[i], err = runNode(ctx, cfg, out); err != nil {
				fail(err)
			}
		})
	}
	return func() (total nodeReport) {
		nodes.Wait()
		for _, report := range reports {
			total.pushed += report.pushed
			total.alerts += report.alerts
		}
		return total
	}
}

// compare shows two counts of the same things, and fails if they differ.
func compare(out *console, format string, a, b int) error {
	text := fmt.Sprintf(format, a, b)
	if a == b {
		fmt.Fprintf(out, "%s: they agree\n", text)
		return nil
	}
	fmt.Fprintln(out, out.paint(red, text+": they differ"))
	return errors.New(text)
}

// sensorFlags are the flags of whatever has a sensor.
func (p *program) sensorFlags(cfg *nodeConfig, interval time.Duration) {
	cfg.readings, cfg.interval = 20, interval
	accept(p.flags, &cfg.readings, "readings", "`number` of readings to push", parseNumber)
	accept(p.flags, &cfg.interval, "interval", "`time` between readings, varied by up to a fifth", parseDuration)
	p.flags.Uint64Var(&cfg.random, "random", 7, "`seed` of the readings; the same one gives the same readings")
}

// accept defines a flag whose value is checked when it is parsed, so that the
// error names the flag, the value, and what would have been accepted.
func accept[T any](flags *flag.FlagSet, into *T, name, usage string, parse func(string) (T, error)) {
	if preset := fmt.Sprint(*into); preset != "" {
		usage += fmt.Sprintf(" (default %s)", preset)
	}
	flags.Func(name, usage, func(value string) (err error) {
		*into, err = parse(value)
		return err
	})
}

// parse parses the flags, and what they say of TLS.
func (p *program) parse(args []string) (err error) {
	if err := p.flags.Parse(args); err != nil {
		return usageError{err}
	}
	if p.flags.NArg() > 0 {
		return usageError{fmt.Errorf("unexpected argument %q: want node, client, certificates or nothing, and then only flags", p.flags.Arg(0))}
	}
	if p.system.TLS, err = p.tls.config(); err != nil {
		return usageError{err}
	}
	return nil
}

func parseNumber(s string) (int, error) {
	if n, err := strconv.Atoi(s); err == nil && n > 0 {
		return n, nil
	}
	return 0, errors.New("want a whole number from 1 on")
}

func parseDuration(s string) (time.Duration, error) {
	if d, err := time.ParseDuration(s); err == nil && d > 0 {
		return d, nil
	}
	return 0, errors.New("want a time like 1s or 20ms")
}

func parseAddress(s string) (string, error) {
	host, port, err := net.SplitHostPort(s)
	if _, wrong := strconv.ParseUint(port, 10, 16); err != nil || wrong != nil || host == "" {
		return "", errors.New("want host:port, like 127.0.0.1:25520")
	}
	return s, nil
}

// addresses are of nodes to dial.
type addresses []string

func (a addresses) String() string { return strings.Join(a, ",") }

func parseAddresses(s string) (list addresses, err error) {
	for address := range strings.SplitSeq(s, ",") {
		if address, err = parseAddress(strings.TrimSpace(address)); err != nil {
			return nil, err
		}
		if strings.HasSuffix(address, ":0") {
			return nil, errors.New("want the port that the node has, not 0")
		}
		list = append(list, address)
	}
	return list, nil
}

// optional makes a parse function take nothing for an answer.
func optional[T any](parse func(string) (T, error)) func(string) (T, error) {
	return func(s string) (none T, _ error) {
		if s == "" {
			return none, nil
		}
		return parse(s)
	}
}

// tlsFiles are where a process's certificate is, and whose it accepts.
type tlsFiles struct{ cert, key, ca string }

// config is for both directions: here, each process proves to its peer who it
// is, whichever of them has dialled. It is nil where there are no files.
func (f tlsFiles) config() (*tls.Config, error) {
	if f == (tlsFiles{}) {
		return nil, nil
	}
	if f.cert == "" || f.key == "" || f.ca == "" {
		return nil, errors.New("want all three of -tls-cert, -tls-key and -tls-ca, or none")
	}
	certificate, err := tls.LoadX509KeyPair(f.cert, f.key)
	if err != nil {
		return nil, fmt.Errorf("-tls-cert %s, -tls-key %s: %w", f.cert, f.key, err)
	}
	pem, err := os.ReadFile(f.ca)
	if err != nil {
		return nil, fmt.Errorf("-tls-ca: %w", err)
	}
	authority := x509.NewCertPool()
	if !authority.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("-tls-ca %s: want certificates in PEM", f.ca)
	}
	return &tls.Config{
		Certificates: []tls.Certificate{certificate},
		RootCAs:      authority,
		ClientCAs:    authority,
		MinVersion:   tls.VersionTLS13,
	}, nil
}

// A console takes whole lines from many goroutines.
type console struct {
	mu     sync.Mutex
	w      io.Writer
	colour bool
}

// newConsole uses colour on a terminal, unless https://no-color.org says not to.
func newConsole(w io.Writer) *console {
	c := &console{w: w}
	if file, ok := w.(*os.File); ok && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" {
		info, err := file.Stat()
		c.colour = err == nil && info.Mode()&os.ModeCharDevice != 0
	}
	return c
}

func (c *console) Write(line []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.w.Write(line)
}

type colour int // its ANSI code

const (
	red    colour = 31
	yellow colour = 33
)

func (c *console) paint(in colour, text string) string {
	if !c.colour {
		return text
	}
	return fmt.Sprintf("\x1b[%dm%s\x1b[0m", in, text)
}
