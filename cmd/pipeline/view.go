package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"casty"
)

// A view is how a process shows what goes on in it.
type view struct {
	*console
	dials   *dials
	streams *streams
	trace   *trace // nil: nobody wants one
	whole   bool   // the client is in the same process as the nodes
}

// end draws what a trace still has to show.
func (v *view) end() {
	if v.trace != nil {
		v.trace.end()
	}
}

// A speaker says something about somebody.
type speaker func(text string)

func (v *view) speaker(about string) speaker {
	role, who, _ := strings.Cut(about, " ")
	return func(text string) { v.say(role, "%s", strings.TrimSpace(who+" "+text)) }
}

const (
	moment  = 100 * time.Millisecond // what is there by then has not been waited for
	forever = 365 * 24 * time.Hour
)

// wait says what is missing, after a moment and whenever that changes, until
// over is called. The context that it returns ends, saying what was missing,
// when that has not changed for all of patience.
func wait(ctx context.Context, say speaker, patience time.Duration, missing func() string) (waiting context.Context, over func()) {
	waiting, end := context.WithCancelCause(ctx)
	var saying sync.WaitGroup
	saying.Go(func() {
		tick := time.NewTicker(moment)
		defer tick.Stop()
		said, changed := "", time.Now()
		for waiting.Err() == nil {
			select {
			case <-tick.C:
			case <-waiting.Done():
				return
			}
			switch now := missing(); {
			case now != said:
				before, _, _ := strings.Cut(said, ":")
				say(cmp.Or(now, "no longer "+before))
				said, changed = now, time.Now()
			case now != "" && time.Since(changed) >= patience:
				end(fmt.Errorf("gave up after %v of %s", patience, now))
			}
		}
	})
	return waiting, func() {
		end(nil)
		saying.Wait()
	}
}

// waitForNodes says which nodes there are, as long as there are too few.
func (v *view) waitForNodes(ctx context.Context, node *casty.System, cfg nodeConfig) (found func()) {
	_, found = wait(ctx, v.speaker("node "+node.Address()), forever, func() string {
		members := casty.Members(node)
		if len(members) >= cfg.nodes {
			return ""
		}
		return fmt.Sprintf("waiting for nodes: %d of %d (%s)%s", len(members), cfg.nodes,
			strings.Join(members, ", "), v.dials.trouble(cfg.system.Seeds))
	})
	return found
}

// offer says what becomes of a node's stream, until leave is called.
func (v *view) offer(ctx context.Context, cfg nodeConfig, producer SensorRef, sink *casty.SinkRef[SensorReading]) (stream *outlet[SensorReading], leave func()) {
	say := v.speaker("node " + producer.Address().Host)
	say("measures " + cfg.sensor.Name)
	_, found := wait(ctx, say, forever, func() string {
		if v.streams.hasConsumer(producer) {
			return ""
		}
		return "waiting for a consumer"
	})
	stream = &outlet[SensorReading]{SinkRef: sink, consumer: "a consumer", say: say}
	return stream, func() {
		found()
		say(fmt.Sprintf("has pushed %d readings; Put was blocked for %v in all", stream.put, stream.blocked.Round(time.Millisecond)))
	}
}

// waitForAlerts says why a monitor keeps its node from leaving.
func (v *view) waitForAlerts(ctx context.Context, m *monitor) (over func()) {
	_, over = wait(ctx, v.speaker("monitor"), forever, func() string {
		text, _ := m.waitsFor.Load().(string)
		return text
	})
	return over
}

// showAlert shows what a monitor is for. Where the client shows anomalies and
// what has become of them too, once is enough.
func (v *view) showAlert(alert Alert) {
	if !v.whole {
		v.say("alert", "%s", v.paint(yellow, alert.String()))
	}
}

// waitForAnswer says that nobody has answered a client yet, and why.
func (v *view) waitForAnswer(ctx context.Context, cfg clientConfig) (waiting context.Context, over func()) {
	return wait(ctx, v.speaker("client"), cfg.toStart(), func() string {
		return "waiting for a node to answer" + v.dials.trouble(cfg.system.Seeds)
	})
}

// waitForSensors says which sensors there are, as long as there are too few.
func (v *view) waitForSensors(ctx context.Context, client *casty.System, cfg clientConfig) (waiting context.Context, over func()) {
	return wait(ctx, v.speaker("client"), cfg.toStart(), func() string {
		var found []string
		for _, instance := range casty.Lookup(client, SensorKey).Instances {
			found = append(found, kind(instance.Ref))
		}
		if len(found) >= cfg.producers {
			return ""
		}
		text := fmt.Sprintf("waiting for sensors: %d of %d", len(found), cfg.producers)
		if len(found) > 0 {
			text += " (" + strings.Join(found, ", ") + ")"
		}
		return text
	})
}

// waitForMonitor says what to do as long as there is no monitor.
func (v *view) waitForMonitor(ctx context.Context, client *casty.System) (waiting context.Context, over func()) {
	return wait(ctx, v.speaker("client"), forever, func() string {
		if len(casty.Lookup(client, MonitorKey).Instances) > 0 {
			return ""
		}
		return "waiting for a monitor: start one node with -alert-monitor"
	})
}

// oneOf says that there was a choice.
func oneOf(monitors int) string {
	if monitors == 1 {
		return ""
	}
	return fmt.Sprintf(", one of %d monitors", monitors)
}

// showReading shows a reading and, of an anomaly, what becomes of its alert.
func (v *view) showReading(reading SensorReading, fate string) {
	if alert, anomaly := reading.Alert(); anomaly {
		v.say("reading", "%s: %s", v.paint(red, alert.String()), fate)
	} else {
		v.say("reading", "%v", reading)
	}
}

// An outlet is a sink that says so when it has been blocked for a second, and why.
type outlet[E any] struct {
	*casty.SinkRef[E]
	consumer string // what there should be at the other end
	say      speaker
	put      int           // elements
	blocked  time.Duration // of Put, in all
}

var errBlocked = errors.New("blocked for a second")

// Put is the sink's.
func (o *outlet[E]) Put(ctx context.Context, element E) error {
	began := time.Now()
	blocked, err := o.insist(ctx, "Put has been blocked for a second", func(ctx context.Context) error {
		return o.SinkRef.Put(ctx, element)
	})
	took := time.Since(began)
	o.blocked += took
	if err != nil {
		return err
	}
	o.put++
	if blocked {
		o.say(fmt.Sprintf("goes on: Put was blocked for %v", took.Round(time.Millisecond)))
	}
	return nil
}

// Complete is the sink's.
func (o *outlet[E]) Complete(ctx context.Context) error {
	_, err := o.insist(ctx, "waiting for "+o.consumer+" to take the rest", o.SinkRef.Complete)
	return err
}

// insist tries again, once per second. The error of a try that has not had
// more time says what has become of the consumer, if it is not just slow.
func (o *outlet[E]) insist(ctx context.Context, slow string, try func(context.Context) error) (blocked bool, _ error) {
	said := ""
	for {
		second, cancel := context.WithTimeoutCause(ctx, time.Second, errBlocked)
		err := try(second)
		cancel()
		if !errors.Is(err, errBlocked) {
			return said != "", err
		}
		why := slow
		if both := interface{ Unwrap() []error }(nil); errors.As(err, &both) { // that it took too long, and because of what
			errs := both.Unwrap()
			why = fmt.Sprintf("waiting for %s: %v", o.consumer, errs[len(errs)-1])
		}
		if why != said {
			o.say(why)
			said = why
		}
	}
}
