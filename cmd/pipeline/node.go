package main

import (
	"context"
	"crypto/rand"
	"errors"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"casty"
)

type nodeConfig struct {
	system   casty.Config
	nodes    int // members to wait for before the first reading
	sensor   Sensor
	monitor  bool // run the alert monitor as well
	readings int
	interval time.Duration // between readings
	random   uint64        // the same seed gives the same readings
}

// A nodeReport is what a node has counted, to be held against what the client has.
type nodeReport struct{ pushed, alerts int }

// runNode is a node's life: it offers its sensor as a stream, pushes the
// readings, and leaves when the client has them all and its monitor, if it has
// one, is not needed either.
func runNode(ctx context.Context, cfg nodeConfig, view *view) (report nodeReport, err error) {
	node, err := casty.StartNode(cfg.system)
	if err != nil {
		return report, err
	}
	defer func() { err = errors.Join(err, node.Close()) }()
	view.introduce("node", "%s has %s", node.Address(), cfg)

	m := monitor{node: node, view: view, nodeDone: make(chan struct{}), coming: map[AlertsRef]bool{}}
	var left <-chan error
	if cfg.monitor {
		ref, err := casty.Spawn(node, "monitor", casty.Discoverable(MonitorKey, m.run))
		if err != nil {
			return report, err
		}
		left = ref.Watch(ctx, node)
	}
	report.pushed, err = pushReadings(ctx, node, cfg, view)
	if err != nil || !cfg.monitor {
		return report, err
	}
	close(m.nodeDone)
	defer view.waitForAlerts(ctx, &m)()
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
func pushReadings(ctx context.Context, node *casty.System, cfg nodeConfig, view *view) (pushed int, err error) {
	found := view.waitForNodes(ctx, node, cfg)
	err = casty.WaitForMembers(ctx, node, cfg.nodes)
	found()
	if err != nil {
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
	stream, leave := view.offer(ctx, cfg, producer, sink) // the sink, and what is to be said about it
	defer leave()
	for reading := range cfg.measure(ctx) {
		if err := stream.Put(ctx, reading); err != nil { // blocks while the client is behind
			return pushed, err
		}
		pushed++
	}
	if ctx.Err() != nil {
		return pushed, context.Cause(ctx) // what has been interrupted is not complete
	}
	return pushed, stream.Complete(ctx)
}

// A monitor receives the alerts of every client that wants it to.
type monitor struct {
	node     *casty.System
	view     *view
	nodeDone chan struct{} // closed when the node's own readings have arrived
	waitsFor atomic.Value  // a string, for the view
	received int           // owned by the actor, as is what follows; to be read when it has stopped

	// A monitor leaves when its node may, some client needs it no more, and
	// nobody's alerts are still coming. A client that has died does not count:
	// the one that takes its place has alerts too.
	nodeMayLeave bool
	clientIsDone bool               // has completed its alerts, or has them received elsewhere
	coming       map[AlertsRef]bool // false: it has completed them
}

// An alertsEnd is how one client's stream of alerts has ended.
type alertsEnd struct {
	from     AlertsRef
	received int
	err      error
}

// run is the monitor's behaviour.
func (m *monitor) run(self *casty.Actor[MonitorMsg]) {
	nodeDone := m.nodeDone
	ends := make(chan alertsEnd)
	for m.stays() {
		select {
		case msg := <-self.Mailbox():
			_, known := m.coming[msg.Alerts]
			switch {
			case msg.For != self.Ref():
				m.clientIsDone = true
			case !known: // or it tells us again, as it cannot know that we have heard
				m.coming[msg.Alerts] = true
				go func() { // a stream blocks, and there may be others
					received, err := m.receive(self.Context(), msg.Alerts)
					select {
					case ends <- alertsEnd{msg.Alerts, received, err}:
					case <-self.Done():
					}
				}()
			}
		case end := <-ends:
			m.received += end.received
			if end.err == nil {
				m.coming[end.from], m.clientIsDone = false, true
			} else {
				delete(m.coming, end.from) // it may come back
				m.view.say("monitor", "lost a client: %v", end.err)
			}
		case <-nodeDone:
			nodeDone, m.nodeMayLeave = nil, true
		case <-self.Done():
			return
		}
	}
}

// stays says whether the monitor is still needed, and notes what for.
func (m *monitor) stays() bool {
	why := ""
	switch {
	case !m.nodeMayLeave:
		m.waitsFor.Store("")
		return true // the node says itself what it waits for
	case slices.Contains(slices.Collect(maps.Values(m.coming)), true):
		why = "waiting for a client to complete its alerts"
	case !m.clientIsDone:
		why = "waiting for a client to tell of its alerts"
	}
	m.waitsFor.Store(why)
	return why != ""
}

// receive is a monitor's view of one client.
func (m *monitor) receive(ctx context.Context, alerts AlertsRef) (received int, err error) {
	// Nobody can dial a client: it comes back by itself, and soon, or never.
	consumer := casty.StreamConsumer(alerts, casty.PeerTimeout(5*time.Second))
	err = consume(ctx, m.node, "alerts-"+rand.Text()[:4], consumer, func(alert Alert) {
		received++
		m.view.showAlert(alert)
	})
	return received, err
}
