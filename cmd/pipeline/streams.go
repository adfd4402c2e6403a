package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"casty"
)

// A message is an entry of the package's debug log: a message that has been
// told or, if delivered, has reached a mailbox.
type message struct {
	delivered bool
	from, to  casty.Address // from has no name where the network tells only the process
	value     any
}

// A tap is a log handler that also sees each message.
type tap struct {
	slog.Handler // of what is not about messages
	see          []func(message)
}

func (t tap) Enabled(context.Context, slog.Level) bool { return true }

func (t tap) Handle(ctx context.Context, record slog.Record) error {
	if t.Handler.Enabled(ctx, record.Level) {
		return t.Handler.Handle(ctx, record)
	}
	m := message{delivered: record.Message == "casty: delivered"}
	if !m.delivered && record.Message != "casty: told" {
		return nil
	}
	record.Attrs(func(attr slog.Attr) bool {
		switch attr.Key {
		case "from":
			m.from, _ = attr.Value.Any().(casty.Address)
		case "to":
			m.to, _ = attr.Value.Any().(casty.Address)
		case "message":
			m.value = attr.Value.Any()
		}
		return true
	})
	for _, see := range t.see {
		see(m)
	}
	return nil
}

// streams is what a process knows of the streams of readings that begin or end
// in it: from the messages that it sees, and by watching.
type streams struct {
	say func(about, format string, args ...any)

	mu     sync.Mutex             // guards what follows
	served map[casty.Address]bool // producers that have a consumer
	ends   map[string]*streamEnd  // by the name of the consumer
}

// A streamEnd is what a consumer here has of its stream.
type streamEnd struct {
	sensor  string        // what it measures
	next    uint64        // the position that is to come
	arrived bool          // all of it
	back    chan struct{} // is closed when the producer is back; nil: it is not lost
}

func newStreams(out *console) *streams {
	return &streams{say: out.say, served: map[casty.Address]bool{}, ends: map[string]*streamEnd{}}
}

func (s *streams) see(m message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := m.value.(casty.Subscribed[SensorReading]); ok && !m.delivered {
		s.served[m.from] = true
	} else if end := s.ends[m.to.Name]; end != nil && m.delivered {
		switch v := m.value.(type) {
		case casty.Subscribed[SensorReading]:
			end.next = max(end.next, v.Seq)
		case casty.StreamElement[SensorReading]:
			s.take(end, v)
		case casty.StreamCompleted[SensorReading]:
			if v.Seq == end.next {
				end.arrived = true
				s.found(end, "at its end")
			}
		}
	}
}

// take notes what is new in a run of elements. There may be nothing: one from
// before what has come is a repetition, one from after it will be repeated.
func (s *streams) take(end *streamEnd, run casty.StreamElement[SensorReading]) {
	past := run.Seq + uint64(len(run.Elements))
	if run.Seq > end.next || past <= end.next {
		return
	}
	s.found(end, fmt.Sprintf("at reading %d", run.Elements[end.next-run.Seq].Seq))
	end.next = past
}

// found says that a producer that was lost is back.
func (s *streams) found(end *streamEnd, where string) {
	if end.back != nil {
		s.say("client", "%s goes on %s", end.sensor, where)
		close(end.back)
		end.back = nil
	}
}

// hasConsumer says whether a producer here serves anybody, or has.
func (s *streams) hasConsumer(producer SensorRef) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.served[producer.Address()]
}

// follow says when a consumer that is about to subscribe loses its sensor's
// node, and when it has that back, until over is called.
func (s *streams) follow(ctx context.Context, in *casty.System, consumer string, sensor SensorRef) (over func()) {
	ctx, cancel := context.WithCancel(ctx)
	end := &streamEnd{sensor: kind(sensor)}
	s.mu.Lock()
	s.ends[consumer] = end
	s.mu.Unlock()
	var watching sync.WaitGroup
	watching.Go(func() {
		for s.isLost(ctx, in, sensor) {
			select {
			case <-s.lose(end):
			case <-ctx.Done():
			}
		}
	})
	return func() {
		cancel()
		watching.Wait()
	}
}

// isLost waits until the sensor's node is lost, or returns false. A watch ends
// with the connection, so each loss takes another.
func (s *streams) isLost(ctx context.Context, in *casty.System, sensor SensorRef) bool {
	select {
	case err := <-sensor.Watch(ctx, in):
		return errors.Is(err, casty.ErrUnreachable)
	case <-ctx.Done():
		return false
	}
}

// lose returns what is closed when the node is back: never, if it has nothing
// more to send.
func (s *streams) lose(end *streamEnd) (back <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if end.arrived {
		return nil
	}
	s.say("client", "lost the node of %s", end.sensor)
	end.back = make(chan struct{})
	return end.back
}
