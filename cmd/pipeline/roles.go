package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"strings"
	"sync"
	"time"
)

// node runs one node.
func (p *program) node() func(context.Context) error {
	cfg := nodeConfig{nodes: 3, sensor: Sensors()[0]}
	address, bind, seeds := "127.0.0.1:25520", "", addresses(nil)
	accept(p.flags, &address, "address", "`host:port` that peers dial", parseDialled)
	accept(p.flags, &bind, "bind", "`host:port` to listen on, if not the address", optional(parseAddress))
	accept(p.flags, &seeds, "seeds", "nodes to contact first, as `host:port,...`", optional(parseAddresses))
	accept(p.flags, &cfg.nodes, "nodes", "`number` of nodes to wait for", number(1, math.MaxInt))
	accept(p.flags, &cfg.sensor, "sensor", "what to measure: `temp, humidity or pressure`", SensorNamed)
	toggle(p.flags, &cfg.monitor, "alert-monitor", "have the monitor too; one node should")
	p.sensorFlags(&cfg, time.Second)
	p.systemFlags()
	return func(ctx context.Context) error {
		system, view, err := p.start()
		if err != nil {
			return err
		}
		cfg.system = system
		cfg.system.Address, cfg.system.Seeds = address, seeds
		if bind != "" {
			if cfg.system.Listener, err = net.Listen("tcp", bind); err != nil {
				return err
			}
		}
		_, err = runNode(ctx, cfg, view)
		return err
	}
}

// client runs the client. It has only its own word for the readings, but the
// monitor's for the alerts: that is what it means that the stream is complete.
func (p *program) client() func(context.Context) error {
	cfg := clientConfig{producers: 3}
	seeds := addresses{"127.0.0.1:25520"}
	accept(p.flags, &seeds, "seeds", "nodes to contact first, as `host:port,...`", parseAddresses)
	accept(p.flags, &cfg.producers, "producers", "`number` of sensors to wait for", number(1, math.MaxInt))
	p.flags.Func("patience", "`time` to wait for a node, sensor or monitor that is missing\n(default: as long as it takes to start, 30s for one that is lost)", func(s string) (err error) {
		cfg.patience, err = duration(1)(s)
		return err
	})
	toggle(p.flags, &cfg.cancel, "cancel", "end the streams when interrupted, without being interrupted twice")
	p.consumerFlags(&cfg)
	p.systemFlags()
	return func(ctx context.Context) error {
		system, view, err := p.start()
		if err != nil {
			return err
		}
		cfg.system = system
		cfg.system.Seeds = seeds
		sum, err := runClient(ctx, cfg, view)
		if err != nil && ctx.Err() == nil {
			return err
		}
		sum.print(p.out)
		if ctx.Err() != nil {
			return ctx.Err() // it is too early to compare
		}
		return errors.Join(sum.err(), sum.compareAlerts(p.out))
	}
}

// certificates makes what the TLS flags of the other roles want.
func (p *program) certificates() func(context.Context) error {
	dir, names := "certs", []string{"127.0.0.1", "client"}
	p.flags.StringVar(&dir, "dir", dir, "`directory` to write to")
	p.flags.Func("names", "who they are for: `host,...` as dialled, for nodes; any name for clients\n(default "+strings.Join(names, ",")+")", func(s string) (err error) {
		names, err = parseNames(s)
		return err
	})
	return func(context.Context) error { return writeCertificates(dir, names, p.out) }
}

// everything runs three nodes and the client, each with a system of its own.
func (p *program) everything() func(context.Context) error {
	node, client := nodeConfig{nodes: len(Sensors())}, clientConfig{producers: len(Sensors()), cancel: true}
	p.sensorFlags(&node, 100*time.Millisecond)
	p.consumerFlags(&client)
	accept(p.flags, &p.cutAfter, "cut", "cut every connection when it has lasted for this `time`", duration(moment)) // the time to be of use
	p.systemFlags()
	return func(ctx context.Context) error {
		system, view, err := p.start()
		if err != nil {
			return err
		}
		view.whole = true
		seed, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		system.Seeds = []string{seed.Addr().String()}
		node.system, client.system = system, system
		return p.runAll(ctx, node, client, seed, view)
	}
}

// runAll compares what the nodes know with what the client knows.
func (p *program) runAll(ctx context.Context, node nodeConfig, client clientConfig, seed net.Listener, view *view) error {
	// The first to fail ends all: the others would wait for it in vain.
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	wait := startNodes(ctx, fail, node, seed, view)
	sum, err := runClient(ctx, client, view)
	if err := cmp.Or(err, sum.err()); err != nil {
		fail(err)
	}
	report := wait()
	view.end()
	sum.print(p.out)
	if p.cutAfter > 0 {
		fmt.Fprintf(p.out, "%d connections were cut\n", view.dials.cuts())
	}
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
func startNodes(ctx context.Context, fail func(error), cfg nodeConfig, seed net.Listener, view *view) (wait func() nodeReport) {
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
			if reports[i], err = runNode(ctx, cfg, view); err != nil {
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

// compareAlerts compares what the client has found with what the monitor has.
func (s *summary) compareAlerts(out *console) error {
	_, anomalies := s.totals()
	if !s.monitored {
		fmt.Fprintf(out, "%d anomalies found, and no monitor to tell: start one node with -alert-monitor\n", anomalies)
		return nil // if any is missing it, that has been noticed
	}
	return compare(out, "%d anomalies found, %d alerts acknowledged by the monitor", anomalies, s.acknowledged)
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
