package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"casty"
)

type clientConfig struct {
	system    casty.Config
	producers int           // sensors to wait for
	patience  time.Duration // how long to wait for a sensor, or a monitor, that is lost
}

// runClient receives from every sensor until all their streams have ended,
// and sends the monitor an alert for each anomaly. What it returns is never
// nil, and says what has been received even if something failed.
func runClient(ctx context.Context, cfg clientConfig, out *console) (*summary, error) {
	sum := &summary{wanted: cfg.producers, sensors: map[SensorRef]*record{}}
	client, err := casty.Connect(ctx, cfg.system)
	if err != nil {
		return sum, err
	}
	defer client.Close()
	alerts, err := newAlerter(ctx, client, cfg.patience)
	if err != nil {
		return sum, err
	}
	for e := range receive(ctx, client, cfg, out) {
		sum.add(e)
		if e.ended {
			continue
		}
		alert, anomaly := e.reading.Alert()
		if !anomaly {
			fmt.Fprintf(out, "reading  %v\n", e.reading)
			continue
		}
		fmt.Fprintf(out, "reading  %s\n", out.paint(red, e.reading.String()))
		// This may block, and so nothing more is received, and so the sensors'
		// own Put blocks in the end: all the way to the nodes, nobody sends
		// faster than the monitor takes.
		alerts.raise(ctx, alert)
	}
	sum.acknowledged, sum.alertErr = alerts.complete(ctx)
	return sum, nil
}

// An event is a reading from one of the sensors, or the end of its stream.
type event struct {
	from    SensorRef
	reading SensorReading
	ended   bool
	err     error // why it ended, if not because it was complete
}

// receive merges the streams of as many sensors as are wanted, once all of
// them are there. The channel is closed when the last has ended, as all do
// when ctx ends; it is to be read until then.
func receive(ctx context.Context, client *casty.System, cfg clientConfig, out *console) <-chan event {
	events := make(chan event)
	go func() {
		var streams sync.WaitGroup
		for n, instance := range discover(ctx, client, cfg.producers) {
			sensor := instance.Ref
			fmt.Fprintf(out, "client   receives from %v\n", sensor)
			streams.Go(func() {
				consumer := casty.StreamConsumer(sensor, casty.PeerTimeout(cfg.patience))
				err := consume(ctx, client, fmt.Sprintf("reader-%d", n), consumer, func(reading SensorReading) {
					events <- event{from: sensor, reading: reading}
				})
				events <- event{from: sensor, ended: true, err: err}
			})
		}
		streams.Wait()
		close(events)
	}()
	return events
}

// discover waits until there are as many sensors as are wanted. To begin with
// the first of them at once would be a mistake: a node leaves when its stream
// is complete, and one that still waits for it as a member would wait forever.
func discover(ctx context.Context, client *casty.System, wanted int) []casty.ServiceInstance[casty.StreamProducerMsg[SensorReading]] {
	for listing := range casty.Listings(ctx, client, SensorKey) {
		if len(listing.Instances) >= wanted {
			return listing.Instances[:wanted]
		}
	}
	return nil
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

// An alerter is the producing end of the client's own stream, to the monitor.
type alerter struct {
	sink     *casty.SinkRef[Alert]
	patience time.Duration
	raised   int
	err      error // the first one: after it, no more alerts are raised
}

func newAlerter(ctx context.Context, client *casty.System, patience time.Duration) (*alerter, error) {
	producer, err := casty.Spawn(client, "alerts", casty.StreamProducer[Alert](16))
	if err != nil {
		return nil, err
	}
	sink, err := casty.GetSink(ctx, client, producer)
	if err != nil {
		return nil, err
	}
	go tellMonitors(ctx, client, producer) // until the client is closed
	return &alerter{sink: sink, patience: patience}, nil
}

// tellMonitors tells the cluster's monitor of the alerts and, should it
// disappear, the next one, which is then sent what the first did not get.
func tellMonitors(ctx context.Context, client *casty.System, alerts AlertsRef) {
	var told casty.ServiceInstance[MonitorMsg]
	for listing := range casty.Listings(ctx, client, MonitorKey) {
		if slices.Contains(listing.Instances, told) {
			continue
		}
		told = casty.ServiceInstance[MonitorMsg]{}
		if len(listing.Instances) > 0 {
			told = listing.Instances[0]
			told.Ref.Tell(client, MonitorMsg{alerts})
		}
	}
}

// raise waits for a monitor that is lost, or never was, only so long: the
// readings are worth having without it.
func (a *alerter) raise(ctx context.Context, alert Alert) {
	if a.err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, a.patience)
	defer cancel()
	if a.err = a.sink.Put(ctx, alert); a.err == nil {
		a.raised++
	}
}

// complete returns how many alerts the monitor has acknowledged: all of them,
// or it cannot tell.
func (a *alerter) complete(ctx context.Context) (acknowledged int, err error) {
	if a.err != nil {
		return 0, a.err
	}
	ctx, cancel := context.WithTimeout(ctx, a.patience)
	defer cancel()
	if err := a.sink.Complete(ctx); err != nil {
		return 0, err
	}
	return a.raised, nil
}

// A summary is what the client knows at the end.
type summary struct {
	wanted       int
	sensors      map[SensorRef]*record
	acknowledged int // alerts that the monitor has
	alertErr     error
}

// A record is what has become of one sensor's stream.
type record struct {
	sensor   Sensor
	node     string
	readings []SensorReading
	err      error
}

func (s *summary) add(e event) {
	r := s.sensors[e.from]
	if r == nil {
		address := e.from.Address()
		name := strings.TrimPrefix(address.Name, sensorPrefix)
		sensor, err := SensorNamed(name)
		if err != nil {
			sensor.Name = name // a kind that only the node knows
		}
		r = &record{sensor: sensor, node: address.Host}
		s.sensors[e.from] = r
	}
	if e.ended {
		r.err = e.err
	} else {
		r.readings = append(r.readings, e.reading)
	}
}

// totals counts the readings of all sensors, and the anomalies among them.
func (s *summary) totals() (readings, anomalies int) {
	for _, r := range s.sensors {
		readings += len(r.readings)
		anomalies += r.anomalies()
	}
	return readings, anomalies
}

func (r *record) anomalies() (n int) {
	for _, reading := range r.readings {
		if _, anomaly := reading.Alert(); anomaly {
			n++
		}
	}
	return n
}

// err is all that went wrong.
func (s *summary) err() error {
	var errs []error
	for _, r := range s.sorted() {
		errs = append(errs, r.err)
	}
	if len(s.sensors) < s.wanted {
		errs = append(errs, fmt.Errorf("%d of %d sensors were found", len(s.sensors), s.wanted))
	}
	return errors.Join(append(errs, s.alertErr)...)
}

func (s *summary) sorted() []*record {
	return slices.SortedFunc(maps.Values(s.sensors), func(a, b *record) int {
		return cmp.Or(cmp.Compare(a.sensor.Name, b.sensor.Name), cmp.Compare(a.node, b.node))
	})
}

// print shows a table with a row for each sensor. Numbers are padded by their
// formats, for tabwriter would align them as it does the names.
func (s *summary) print(out *console) {
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "\nSENSOR\tNODE\tSTREAM\tREADINGS\tAVERAGE\t    MIN\t    MAX\tANOMALIES\tVALUES")
	for _, r := range s.sorted() {
		r.print(table, out)
	}
	readings, anomalies := s.totals()
	fmt.Fprintf(table, "total\t\t\t%8d\t\t\t\t%9d\n", readings, anomalies)
	table.Flush()
}

func (r *record) print(table io.Writer, out *console) {
	state := "complete"
	if r.err != nil {
		state = "cut short"
	}
	statistics, line, marks := "\t\t", "", "" // of nothing
	if len(r.readings) > 0 {
		var values []float64
		var sum float64
		for _, reading := range r.readings {
			values = append(values, reading.Value)
			sum += reading.Value
		}
		low, high := slices.Min(values), slices.Max(values)
		statistics = fmt.Sprintf("%7.2f\t%7.2f\t%7.2f", sum/float64(len(values)), low, high)
		line, marks = sparkline(r.readings, low, high, out)
	}
	fmt.Fprintf(table, "%s %s\t%s\t%s\t%8d\t%s\t%9d\t%s\n",
		r.sensor.Name, r.sensor.Unit, r.node, state, len(r.readings), statistics, r.anomalies(), line)
	if !out.colour && marks != "" {
		fmt.Fprintf(table, "\t\t\t\t\t\t\t\t%s\n", marks)
	}
}

// sparkline draws the last of the readings, with the anomalies in red, and
// makes marks to go below it where there is no colour.
func sparkline(readings []SensorReading, low, high float64, out *console) (line, marks string) {
	const width = 60
	steps := []rune("▁▂▃▄▅▆▇█")
	for _, reading := range readings[max(0, len(readings)-width):] {
		step := 0
		if high > low {
			step = int(math.Round((reading.Value - low) / (high - low) * float64(len(steps)-1)))
		}
		block, mark := string(steps[step]), " "
		if _, anomaly := reading.Alert(); anomaly {
			block, mark = out.paint(red, block), "!"
		}
		line, marks = line+block, marks+mark
	}
	return line, strings.TrimRight(marks, " ")
}
