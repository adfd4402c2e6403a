package main

import (
	"cmp"
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"casty"
)

type clientConfig struct {
	system    casty.Config
	producers int           // sensors to wait for
	patience  time.Duration // to wait for what is missing; 0: see toStart and ifLost
	window    int           // elements of a stream that may be under way
	slow      time.Duration // pause after each reading
	cancel    bool          // the streams when ctx ends; else leave them to the next client
}

// toStart is how long to wait for the next of those who are to take part.
func (c clientConfig) toStart() time.Duration { return cmp.Or(c.patience, forever) }

// ifLost is how long to wait for a sensor or monitor that is lost.
func (c clientConfig) ifLost() time.Duration { return cmp.Or(c.patience, 30*time.Second) }

// runClient receives from every sensor until all their streams have ended,
// and sends the monitor an alert for each anomaly. What it returns is never
// nil, and says what has been received even if something failed.
func runClient(ctx context.Context, cfg clientConfig, view *view) (*summary, error) {
	sum := &summary{wanted: cfg.producers, sensors: map[SensorRef]*record{}}
	client, err := connect(ctx, cfg, view)
	if err != nil {
		return sum, err
	}
	defer client.Close()
	sensors, err := discover(ctx, client, cfg, view)
	if err != nil {
		return sum, err
	}
	leave, streams, over := interrupts(ctx, cfg, view)
	defer over()
	// To end a loop cancels its stream. To close the client does not: its nodes
	// wait for the next one.
	defer context.AfterFunc(leave, func() { client.Close() })()
	alerts, err := newAlerter(leave, client, cfg, view)
	if err != nil {
		return sum, err
	}
	defer alerts.leave()
	for e := range receive(streams, client, sensors, cfg, view) {
		sum.add(e)
		if e.ended {
			continue
		}
		fate := ""
		if alert, anomaly := e.reading.Alert(); anomaly {
			// This may block, and so nothing more is received, and so the sensors'
			// own Put blocks in the end: all the way to the nodes, nobody sends
			// faster than the monitor takes.
			fate = alerts.raise(streams, alert)
		}
		view.showReading(e.reading, fate)
		if leave.Err() == nil {
			pause(streams, cfg.slow)
		}
	}
	sum.acknowledged, sum.alertErr = alerts.complete(streams)
	sum.monitored = alerts.chosen.Load() != nil
	return sum, nil
}

func connect(ctx context.Context, cfg clientConfig, view *view) (*casty.System, error) {
	waiting, over := view.waitForAnswer(ctx, cfg)
	defer over()
	waiting, cancel := context.WithTimeout(waiting, forever) // without a deadline, Connect has one of its own
	defer cancel()
	return casty.Connect(waiting, cfg.system)
}

// discover waits until there are as many sensors as are wanted. To begin with
// the first of them at once would be a mistake: a node leaves when its stream
// is complete, and one that still waits for it as a member would wait forever.
func discover(ctx context.Context, client *casty.System, cfg clientConfig, view *view) (sensors []SensorRef, err error) {
	waiting, over := view.waitForSensors(ctx, client, cfg)
	defer over()
	for listing := range casty.Listings(waiting, client, SensorKey) {
		if len(listing.Instances) >= cfg.producers {
			for _, instance := range listing.Instances[:cfg.producers] {
				view.introduce("client", "receives from %v", instance.Ref)
				sensors = append(sensors, instance.Ref)
			}
			return sensors, nil
		}
	}
	return nil, cmp.Or(context.Cause(waiting), casty.ErrClosed)
}

// An event is a reading from one of the sensors, or the end of its stream.
type event struct {
	from    SensorRef
	reading SensorReading
	ended   bool
	err     error // why it ended, if not because it was complete
}

// receive merges the streams of sensors. The channel is closed when the last
// has ended, as all do when ctx ends or the client is closed; it is to be read
// until then.
func receive(ctx context.Context, client *casty.System, sensors []SensorRef, cfg clientConfig, view *view) <-chan event {
	events := make(chan event)
	var streams sync.WaitGroup
	for n, sensor := range sensors {
		name := fmt.Sprintf("reader-%d", n+1)
		streams.Go(func() {
			defer view.streams.follow(ctx, client, name, sensor)()
			consumer := casty.StreamConsumer(sensor, casty.Window(cfg.window), casty.PeerTimeout(cfg.ifLost()))
			err := consume(ctx, client, name, consumer, func(reading SensorReading) {
				events <- event{from: sensor, reading: reading}
			})
			events <- event{from: sensor, ended: true, err: err}
		})
	}
	go func() {
		streams.Wait()
		close(events)
	}()
	return events
}

// consume is all there is to the consuming end of a stream. It returns nil
// only if the stream was completed and every element has been through each.
func consume[E any](ctx context.Context, in *casty.System, name string,
	behavior casty.Behavior[casty.StreamConsumerMsg[E]], each func(E)) error {
	consumer, err := casty.Spawn(in, name, behavior)
	if err != nil {
		return err
	}
	source, err := casty.GetSource(ctx, in, consumer)
	if err != nil {
		return err
	}
	for element, err := range source.All(ctx) {
		if err != nil {
			return err
		}
		each(element)
	}
	return nil
}

// An alerter is the producing end of the client's own stream, to a monitor.
type alerter struct {
	stream   *outlet[Alert]
	patience time.Duration
	say      speaker
	chosen   atomic.Pointer[MonitorRef] // the last to be told that the alerts are for it
	there    atomic.Bool                // as long as it is listed
	err      error                      // the first one: after it, no more alerts are raised
	leave    func()                     // is to be called before the client is closed
}

func newAlerter(ctx context.Context, client *casty.System, cfg clientConfig, view *view) (*alerter, error) {
	producer, err := casty.Spawn(client, "alerts", casty.StreamProducer[Alert](16))
	if err != nil {
		return nil, err
	}
	sink, err := casty.GetSink(ctx, client, producer)
	if err != nil {
		return nil, err
	}
	say := view.speaker("client")
	a := &alerter{patience: cfg.ifLost(), say: say, stream: &outlet[Alert]{SinkRef: sink, consumer: "a monitor", say: say}}
	telling, over := view.waitForMonitor(ctx, client)
	var teller sync.WaitGroup
	teller.Go(func() { a.tellMonitors(telling, client, producer) })
	a.leave = func() {
		over()
		teller.Wait()
	}
	return a, nil
}

// tellMonitors tells all monitors of the alerts, and which of them is to
// receive them: now, at each change, and once per second, for it may not have
// been heard. Should that one disappear, the next is sent what it did not get.
func (a *alerter) tellMonitors(ctx context.Context, client *casty.System, alerts AlertsRef) {
	for ctx.Err() == nil {
		second, cancel := context.WithTimeout(ctx, time.Second)
		for listing := range casty.Listings(second, client, MonitorKey) {
			chosen := a.choose(listing.Instances)
			for _, monitor := range listing.Instances {
				monitor.Ref.Tell(client, MonitorMsg{alerts, chosen})
			}
		}
		cancel()
	}
}

// choose keeps to one monitor as long as that is there.
func (a *alerter) choose(monitors []casty.ServiceInstance[MonitorMsg]) (chosen MonitorRef) {
	a.there.Store(len(monitors) > 0)
	for _, monitor := range monitors {
		if last := a.chosen.Load(); last != nil && monitor.Ref == *last {
			return *last
		}
	}
	if len(monitors) > 0 {
		chosen = monitors[0].Ref
		a.chosen.Store(&chosen)
		a.say(fmt.Sprintf("sends its alerts to %v%s", chosen, oneOf(len(monitors))))
	}
	return chosen
}

// raise waits for a monitor that is lost, or never was, only so long: the
// readings are worth having without it. It says what becomes of the alert.
func (a *alerter) raise(ctx context.Context, alert Alert) (fate string) {
	if a.err != nil {
		return "no alert, as before"
	}
	ctx, cancel := context.WithTimeout(ctx, a.patience)
	defer cancel()
	if a.err = a.stream.Put(ctx, alert); a.err != nil {
		return fmt.Sprintf("no alert: %v", a.err)
	}
	if a.there.Load() {
		return "alert sent"
	}
	return "alert waits for a monitor"
}

// complete returns how many alerts the monitor has acknowledged: all of them,
// or it cannot tell. Without alerts, there need not be a monitor.
func (a *alerter) complete(ctx context.Context) (acknowledged int, err error) {
	if a.err != nil {
		return 0, a.err
	}
	if a.stream.put == 0 && a.chosen.Load() == nil {
		return 0, nil
	}
	ctx, cancel := context.WithTimeout(ctx, a.patience)
	defer cancel()
	if err := a.stream.Complete(ctx); err != nil {
		return 0, err
	}
	return a.stream.put, nil
}
