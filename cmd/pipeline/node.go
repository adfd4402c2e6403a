package main

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"iter"
	"math"
	"math/rand/v2"
	"time"

	"casty"
)

type nodeConfig struct {
	system   casty.Config
	nodes    int // members to wait for before the first reading
	sensor   Sensor
	monitor  bool // run the alert monitor as well
	readings int
	interval time.Duration
	random   uint64 // the same seed gives the same readings
}

// A nodeReport is what a node has counted, to be held against what the client has.
type nodeReport struct{ pushed, alerts int }

// runNode is a node's life: it offers its sensor as a stream, pushes the
// readings, and leaves when the client has them all and, if it is the
// monitor, when it has all the client's alerts.
func runNode(ctx context.Context, cfg nodeConfig, out *console) (report nodeReport, err error) {
	node, err := casty.StartNode(cfg.system)
	if err != nil {
		return report, err
	}
	defer func() { err = errors.Join(err, node.Close()) }()
	fmt.Fprintf(out, "node     %s measures %s\n", node.Address(), cfg.sensor.Name)

	m := monitor{node: node, out: out, leave: make(chan struct{})}
	var left <-chan error
	if cfg.monitor {
		ref, err := casty.Spawn(node, "monitor", casty.Discoverable(MonitorKey, m.run))
		if err != nil {
			return report, err
		}
		left = ref.Watch(ctx, node)
	}
	report.pushed, err = pushReadings(ctx, node, cfg)
	fmt.Fprintf(out, "node     %s has pushed %d readings\n", node.Address(), report.pushed)
	if err != nil || !cfg.monitor {
		return report, err
	}
	close(m.leave)
	select {
	case <-left:
		report.alerts = m.received
		return report, nil
	case <-ctx.Done():
		return report, context.Cause(ctx)
	}
}

// pushReadings is all there is to the producing end of a stream. It returns
// when the consumer has everything: there is nothing to wait for after that.
func pushReadings(ctx context.Context, node *casty.System, cfg nodeConfig) (pushed int, err error) {
	if err := casty.WaitForMembers(ctx, node, cfg.nodes); err != nil {
		return 0, err
	}
	producer, err := casty.Spawn(node, sensorPrefix+cfg.sensor.Name,
		casty.Discoverable(SensorKey, casty.StreamProducer[SensorReading](16)))
	if err != nil {
		return 0, err
	}
	sink, err := casty.GetSink(ctx, node, producer)
	if err != nil {
		return 0, err
	}
	pauses := newRandom(cfg.random, "pauses of "+cfg.sensor.Name)
	for reading := range measure(cfg.sensor, cfg.readings, cfg.random) {
		if err := pause(ctx, cfg.interval, pauses); err != nil {
			return pushed, err
		}
		if err := sink.Put(ctx, reading); err != nil { // blocks while the client is behind
			return pushed, err
		}
		pushed++
	}
	return pushed, sink.Complete(ctx)
}

// newRandom gives each use of a seed numbers of its own, or all sensors with
// the same seed would rise and fall together.
func newRandom(seed uint64, use string) *rand.Rand {
	hash := fnv.New64a()
	hash.Write([]byte(use))
	return rand.New(rand.NewPCG(seed, hash.Sum64()))
}

// measure yields readings: a random walk that turns back at the sensor's bounds.
func measure(sensor Sensor, readings int, seed uint64) iter.Seq[SensorReading] {
	return func(yield func(SensorReading) bool) {
		random := newRandom(seed, sensor.Name)
		span := sensor.High - sensor.Low
		value := sensor.Low + span*random.Float64()
		for seq := 1; seq <= readings; seq++ {
			// Rounded here, so that what is compared with the limit is what is shown.
			if !yield(SensorReading{sensor.Name, seq, math.Round(value*100) / 100, sensor.Unit}) {
				return
			}
			value += span * (random.Float64() - 0.5)
			if value > sensor.High {
				value = 2*sensor.High - value
			} else if value < sensor.Low {
				value = 2*sensor.Low - value
			}
		}
	}
}

// pause waits for the interval, more or less: up to a fifth of it either way.
func pause(ctx context.Context, interval time.Duration, random *rand.Rand) error {
	varied := time.Duration(float64(interval) * (0.8 + 0.4*random.Float64()))
	select {
	case <-time.After(varied):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// A monitor shows the alerts of every client that tells it of some.
type monitor struct {
	node     *casty.System
	out      *console
	leave    chan struct{} // closed when the node's own sensor is done
	received int           // owned by the actor; to be read when it has stopped
}

// An alertsEnd is how one client's stream of alerts has ended.
type alertsEnd struct {
	from     AlertsRef
	received int
	err      error
}

// run is the monitor's behaviour. It stays until its node may leave, a client
// has completed its alerts, and no other's are still coming. A client that has
// died does not count: the one that takes its place has alerts too.
func (m *monitor) run(self *casty.Actor[MonitorMsg]) {
	leave := m.leave
	ends := make(chan alertsEnd)
	open, completed := map[AlertsRef]bool{}, false
	for leave != nil || !completed || len(open) > 0 {
		select {
		case msg := <-self.Mailbox():
			if open[msg.Alerts] {
				continue // it had lost sight of us, and tells us again
			}
			open[msg.Alerts] = true
			go func() { // a stream blocks, and there may be others
				received, err := m.show(self.Context(), msg.Alerts)
				select {
				case ends <- alertsEnd{msg.Alerts, received, err}:
				case <-self.Done():
				}
			}()
		case end := <-ends:
			delete(open, end.from)
			m.received += end.received
			if end.err == nil {
				completed = true
			} else {
				fmt.Fprintf(m.out, "monitor  lost a client: %v\n", end.err)
			}
		case <-leave:
			leave = nil
		case <-self.Done():
			return
		}
	}
}

// show is a monitor's view of one client.
func (m *monitor) show(ctx context.Context, alerts AlertsRef) (received int, err error) {
	// Nobody can dial a client: it comes back by itself, and soon, or never.
	consumer := casty.StreamConsumer(alerts, casty.PeerTimeout(5*time.Second))
	err = consume(ctx, m.node, "alerts-of-"+alerts.Address().Host, consumer, func(alert Alert) {
		received++
		fmt.Fprintln(m.out, m.out.paint(yellow, fmt.Sprintf("alert    %v", alert)))
	})
	return received, err
}
