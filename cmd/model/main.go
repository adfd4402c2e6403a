// Model explores every interleaving of the stream protocol between a producer
// and two consumers, of which either may take the other's place, over
// connections that get lost. It is the protocol's executable specification:
//
//	rules.go     what the ends do: the rules at the head of stream.go, in their words and order
//	world.go     what can happen to them, and what must not
//	explore.go   all that can happen, breadth first
//	mistakes.go  what breaks when a rule is changed
//	ladder.go    how a counterexample is printed
//
// Change a rule, and see what breaks.
package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"text/tabwriter"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run is the program: 0 if nothing is unsafe or stuck, 1 with a counterexample,
// 2 if the arguments are wrong or it gave up.
func run(ctx context.Context, args []string, out, log io.Writer) int {
	w, limit, err := parse(args)
	switch {
	case err == flag.ErrHelp:
		help(out)
		return 0
	case err != nil:
		fmt.Fprintln(log, "model:", err)
		return 2
	}
	fmt.Fprintf(out, "exploring %v\n", w)
	v := w.explore(ctx, limit, func(v verdict) { fmt.Fprintf(log, "%s, %d steps deep\n", v.progress(), v.depth) })
	switch {
	case v.broken != "":
		ladder(out, v.example)
		fmt.Fprintf(out, "%s\n(%d steps; %s)\n", v.broken, len(v.example), v.progress())
		return 1
	case !v.complete:
		fmt.Fprintf(out, "gave up: nothing unsafe in any %d steps; %s\n", v.depth, v.progress())
		return 2
	}
	for _, p := range properties {
		fmt.Fprintf(out, "holds: %s\n", p.what)
	}
	fmt.Fprintf(out, "nothing is unsafe, and nothing stuck: %s, %d of them final, none further than %d steps\n", v.progress(), v.finals, v.depth)
	return 0
}

func (v verdict) progress() string {
	return fmt.Sprintf("%d states in %.1fs, %.0f/s, %d MiB", v.states, v.took.Seconds(), float64(v.states)/max(v.took.Seconds(), 1e-3), memory())
}

// flags are a world's. Their defaults make up a world of its own.
func flags(w *world, limit *int) *flag.FlagSet {
	set := flag.NewFlagSet("model", flag.ContinueOnError)
	set.SetOutput(io.Discard)
	number(set, &w.elements, "n", 2, 0, 6, "`elements` in the stream")
	number(set, &w.window, "w", 1, 1, 6, "`elements` in the window of a consumer")
	number(set, &w.consumers, "consumers", 2, 1, 2, "`consumers` at the same time")
	number(set, &w.capacity, "capacity", 1, 1, 7, "`messages` under way in one direction of a connection")
	number(set, &w.losses, "losses", 1, unlimited, 100, "`times` that a direction of a connection is lost; -1: any number")
	number(set, &w.cuts, "cuts", 1, unlimited, 100, "`times` that a consumer is unreachable for no good reason; -1: any number")
	number(set, &w.crashes, "crashes", 0, 0, 100, "`consumers` that crash")
	number(set, &w.again, "again", 0, 0, 100, "`consumers` that come in the place of those that are gone")
	set.BoolVar(&w.cancels, "cancels", false, "users may leave at any time")
	set.BoolVar(&w.silent, "silent", false, "a consumer that has crashed is only ever unreachable")
	set.BoolVar(&w.slow, "slow", false, "users take their time to consume, which puts the window to the test")
	set.BoolVar(&w.repeats, "repeats", false, "also ticks while messages are under way, and the same message twice in a row")
	set.BoolVar(&w.checks, "twice", false, "also check which elements both users are handed")
	set.StringVar(&w.bug, "bug", "", "the `mistake` to plant, one of those below, with the flags beside it")
	number(set, limit, "limit", 40_000_000, 1, 1<<31-1, "`states` to give up after, of some 200 bytes each")
	return set
}

func number[T ~int | ~int8 | ~uint8](set *flag.FlagSet, p *T, name string, value, least, most int, usage string) {
	*p = T(value)
	set.Func(name, fmt.Sprintf("%s (%d)", usage, value), func(s string) error {
		n, err := strconv.Atoi(s)
		if err != nil || n < least || n > most {
			return fmt.Errorf("not a number from %d to %d", least, most)
		}
		*p = T(n)
		return nil
	})
}

// parse makes a world from flags. A mistake has flags of its own, which these
// may change again.
func parse(args []string) (w *world, limit int, err error) {
	w = new(world)
	set := flags(w, &limit)
	if err = set.Parse(args); err == nil && w.bug != "" {
		m := find(w.bug)
		if m == nil {
			return nil, 0, fmt.Errorf("there is no mistake %q; -h lists them", w.bug)
		}
		err = set.Parse(append(strings.Fields(m.flags), args...))
	}
	if err == nil && set.NArg() > 0 {
		err = fmt.Errorf("unknown argument %q", set.Arg(0))
	}
	return w, limit, err
}

// help prints a line for each flag, property and mistake.
func help(out io.Writer) {
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	defer table.Flush()
	fmt.Fprintln(table, "Explores every interleaving of the stream protocol. Exits with 0 if it finds nothing, with 1 and a counterexample, or with 2.\n\nflag")
	flags(new(world), new(int)).VisitAll(func(f *flag.Flag) {
		value, usage := flag.UnquoteUsage(f)
		fmt.Fprintf(table, "-%s %s\t%s\n", f.Name, value, usage)
	})
	fmt.Fprintln(table, "\nproperty")
	for _, p := range properties {
		fmt.Fprintf(table, "%s\t%s\n", p.name, p.what)
	}
	fmt.Fprintln(table, "\nmistake\t\tbreaks\tflags")
	for _, m := range mistakes {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", m.name, m.what, cmp.Or(m.breaks, "nothing: "+m.why), m.flags)
	}
}
