package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"strconv"
	"strings"
	"time"

	"casty"
)

// A role is one of the things that the program can be. It defines its flags,
// and returns what to do when they have been parsed.
type role struct {
	name, is, does string
	define         func(*program) func(context.Context) error
}

func roles() []role {
	return []role{
		{"", "", `Runs three nodes and the client in one process, over TCP all the same.`, (*program).everything},
		{"node", "offers a sensor's readings as a stream", `Runs a node. It offers the readings of a sensor as a stream, and leaves when
a client has received them all.`, (*program).node},
		{"client", "receives the readings of all sensors", `Runs the client. It receives the readings of all sensors, and sends an alert
for each anomaly to the monitor, which one of the nodes has. When it is
interrupted, the nodes wait for the next client; when it is interrupted
again, the streams end.`, (*program).client},
		{"certificates", "makes what the -tls flags want", `Makes an authority, if there is none yet, and a certificate of it for each
name: what the -tls flags of the other roles want.`, (*program).certificates},
	}
}

// roleOf takes the role from the arguments.
func roleOf(args []string) (role, []string) {
	for _, role := range roles() {
		if len(args) > 0 && args[0] == role.name {
			return role, args[1:]
		}
	}
	return roles()[0], args
}

// A program is one run: its flags, and where its output goes.
type program struct {
	flags    *flag.FlagSet
	out, log *console

	// Flags of all roles that take part in the cluster.
	tls      tlsFiles
	trace    bool
	cutAfter time.Duration
}

// A usageError is the user's, about the command line.
type usageError struct{ error }

func newProgram(role role, out, log *console) *program {
	p := &program{flags: flag.NewFlagSet(strings.TrimSpace("pipeline "+role.name), flag.ContinueOnError), out: out, log: log}
	p.flags.SetOutput(io.Discard) // report says what is wrong, whoever finds it
	return p
}

// usage says what the role does, and which flags it has.
func (p *program) usage(of role) {
	if of.name != "" {
		fmt.Fprintf(p.out, "usage: %s [flags]\n\n%s\n\n", p.flags.Name(), of.does)
	} else {
		fmt.Fprintf(p.out, "usage: %s [role] [flags]\n\n%s\nWith a role, it is only a part of that:\n\n", p.flags.Name(), of.does)
		for _, role := range roles()[1:] {
			fmt.Fprintf(p.out, "  %-12s  %s\n", role.name, role.is)
		}
		fmt.Fprintln(p.out)
	}
	p.flags.SetOutput(p.out)
	p.flags.PrintDefaults()
}

// systemFlags are those of whatever takes part in the cluster.
func (p *program) systemFlags() {
	toggle(p.flags, &p.trace, "trace", "draw the messages of streams as they travel")
	p.flags.StringVar(&p.tls.cert, "tls-cert", "", "`file` with the certificate to present; needs the other two")
	p.flags.StringVar(&p.tls.key, "tls-key", "", "`file` with its private key")
	p.flags.StringVar(&p.tls.ca, "tls-ca", "", "`file` with the authority that all certificates must be from")
}

// sensorFlags are those of whatever has a sensor.
func (p *program) sensorFlags(cfg *nodeConfig, interval time.Duration) {
	cfg.readings, cfg.interval, cfg.random = 20, interval, 7
	accept(p.flags, &cfg.readings, "readings", "`number` of readings to push", number(1, math.MaxInt))
	accept(p.flags, &cfg.interval, "interval", "`time` between readings, more or less; 0 is as fast as possible", duration(0))
	accept(p.flags, &cfg.random, "random", "`seed` of the readings; the same one gives the same readings", number[uint64](0, math.MaxInt))
}

// consumerFlags are those of whatever has a client.
func (p *program) consumerFlags(cfg *clientConfig) {
	cfg.window = 256
	accept(p.flags, &cfg.slow, "slow", "`time` that the client takes for each reading", duration(0))
	accept(p.flags, &cfg.window, "window", "`number` of readings of a sensor that the client has room for", number(1, 1<<16))
}

// parse parses the flags, after which a role may begin.
func (p *program) parse(args []string) error {
	err := p.flags.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return err
	case err != nil && strings.Contains(err.Error(), "not defined"):
		var names []string
		p.flags.VisitAll(func(f *flag.Flag) { names = append(names, "-"+f.Name) })
		return usageError{fmt.Errorf("%w: want one of %s", err, strings.Join(names, ", "))}
	case err != nil:
		return usageError{err}
	case p.flags.NArg() > 0:
		return usageError{fmt.Errorf("unexpected argument %q: want node, client, certificates or nothing, and then only flags", p.flags.Arg(0))}
	}
	return nil
}

// start makes what all systems of this process have in common.
func (p *program) start() (cfg casty.Config, v *view, err error) {
	tls, err := p.tls.config()
	if err != nil {
		return cfg, nil, usageError{err}
	}
	v = &view{console: p.out, streams: newStreams(p.out), dials: &dials{cutAfter: p.cutAfter, failed: map[string]error{}}}
	see := []func(message){v.streams.see}
	if p.trace {
		v.trace = newTrace(p.out)
		see = append(see, v.trace.see)
	}
	log := slog.NewTextHandler(p.log, &slog.HandlerOptions{Level: slog.LevelWarn})
	return casty.Config{Name: "pipeline", TLS: tls, Dial: v.dials.dial, Logger: slog.New(tap{log, see})}, v, nil
}

// accept defines a flag whose value is checked when it is parsed, so that the
// error names the flag, the value, and what would have been accepted.
func accept[T any](flags *flag.FlagSet, into *T, name, usage string, parse func(string) (T, error)) {
	if preset := fmt.Sprint(*into); preset != "" && preset != "0s" {
		usage += fmt.Sprintf(" (default %s)", preset)
	}
	flags.Func(name, usage, func(value string) (err error) {
		*into, err = parse(value)
		return err
	})
}

// toggle defines a flag that needs no value.
func toggle(flags *flag.FlagSet, into *bool, name, usage string) {
	flags.BoolFunc(name, usage, func(value string) (err error) {
		if *into, err = strconv.ParseBool(value); err != nil {
			return errors.New("want true, false or nothing")
		}
		return nil
	})
}

// number is a parse function for whole numbers.
func number[T int | uint64](least, most T) func(string) (T, error) {
	return func(s string) (T, error) {
		n, err := strconv.ParseUint(s, 10, 63)
		switch {
		case err == nil && T(n) >= least && T(n) <= most:
			return T(n), nil
		case most < math.MaxInt:
			return 0, fmt.Errorf("want a whole number from %d to %d", least, most)
		}
		return 0, fmt.Errorf("want a whole number from %d on", least)
	}
}

// duration is a parse function for times.
func duration(least time.Duration) func(string) (time.Duration, error) {
	return func(s string) (time.Duration, error) {
		if d, err := time.ParseDuration(s); err == nil && d >= least {
			return d, nil
		}
		return 0, fmt.Errorf("want a time like 1s or 200ms, and no less than %v", least)
	}
}

func parseAddress(s string) (string, error) {
	host, port, err := net.SplitHostPort(s)
	if _, wrong := strconv.ParseUint(port, 10, 16); err != nil || wrong != nil || host == "" {
		return "", errors.New("want host:port, like 127.0.0.1:25520")
	}
	return s, nil
}

// parseDialled is for an address that others dial.
func parseDialled(s string) (string, error) {
	s, err := parseAddress(s)
	if host, _, _ := net.SplitHostPort(s); net.ParseIP(host).IsUnspecified() {
		return "", fmt.Errorf("nobody can dial that: want an address of this machine, and beside it -bind %s", s)
	}
	return s, err
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
