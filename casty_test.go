package casty_test

// The tests are scenarios, in the order of the files; helpers are at the end.

import (
	"bufio"
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"casty"
)

// casty.go: actors.

func TestMessagesArriveInOrder(t *testing.T) {
	for _, at := range places(t) {
		t.Run(at.name, func(t *testing.T) {
			got := make(chan int, 100)
			ref := spawn(t, at.producer, "sink", func(self *casty.Actor[int]) {
				for n := range self.Messages() {
					got <- n
				}
			})
			for n := range 100 {
				ref.Tell(at.consumer, n)
			}
			for n := range 100 {
				if m := receive(t, got); m != n {
					t.Fatalf("got %d instead of %d", m, n)
				}
			}
		})
	}
}

type double struct {
	N       int
	ReplyTo casty.ActorRef[int]
}

func doubler(self *casty.Actor[double]) {
	for m := range self.Messages() {
		if m.N < 0 {
			panic("negative")
		}
		m.ReplyTo.Tell(self, 2*m.N)
	}
}

func askDouble(ctx context.Context, from casty.Host, to casty.ActorRef[double], n int) (int, error) {
	return casty.Ask(ctx, from, to, func(replyTo casty.ActorRef[int]) double { return double{n, replyTo} })
}

func TestAsk(t *testing.T) {
	for _, at := range places(t) {
		t.Run(at.name, func(t *testing.T) {
			ref := spawn(t, at.producer, "doubler", doubler)
			if n, err := askDouble(t.Context(), at.consumer, ref, 21); n != 42 || err != nil {
				t.Fatal(n, err)
			}
			casty.Stop(at.producer, ref)
			wantError(t, receive(t, ref.Watch(t.Context(), at.consumer)), casty.ErrStopped)
			_, err := askDouble(t.Context(), at.consumer, ref, 21)
			wantError(t, err, casty.ErrStopped, "casty: ask "+ref.String())
		})
	}
}

func TestAskEndsWithItsContext(t *testing.T) {
	system := local(t)
	mute := spawn(t, system, "mute", func(self *casty.Actor[double]) { <-self.Done() })
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("enough"))
	_, err := askDouble(ctx, system, mute, 1)
	wantError(t, err, nil, "enough")
}

func TestTwoClientsGetTheirOwnReplies(t *testing.T) {
	node := startNode(t)
	ref := spawn(t, node, "doubler", doubler)
	var wg sync.WaitGroup
	for range 2 {
		client := connect(t, node)
		for worker := range 4 {
			wg.Go(func() {
				for n := range 100 {
					n = 1000*worker + n
					if got, err := askDouble(t.Context(), client, ref, n); got != 2*n || err != nil {
						t.Errorf("asked for twice %d: %d, %v", n, got, err)
					}
				}
			})
		}
	}
	wg.Wait()
}

func TestPanicStopsOnlyItsActor(t *testing.T) {
	for _, at := range places(t) {
		t.Run(at.name, func(t *testing.T) {
			ref := spawn(t, at.producer, "doubler", doubler)
			watch := ref.Watch(t.Context(), at.consumer)
			ref.Tell(at.consumer, double{N: -1})
			wantError(t, receive(t, watch), casty.ErrStopped, "panicked: negative")
			again := spawn(t, at.producer, "doubler", doubler)
			if n, err := askDouble(t.Context(), at.consumer, again, 1); n != 2 || err != nil {
				t.Fatal("the name cannot be used again:", n, err)
			}
			// A ref means the actor that it was made for, not the next of its name.
			_, err := askDouble(t.Context(), at.consumer, ref, 1)
			wantError(t, err, casty.ErrStopped)
		})
	}
}

func TestWatchEndsWithItsContext(t *testing.T) {
	for _, at := range places(t) {
		t.Run(at.name, func(t *testing.T) {
			ref := spawn(t, at.producer, "doubler", doubler)
			ctx, cancel := context.WithCancel(t.Context())
			watch := ref.Watch(ctx, at.consumer)
			cancel()
			still := ref.Watch(t.Context(), at.consumer)
			casty.Stop(at.producer, ref)
			wantError(t, receive(t, still), casty.ErrStopped)
			select {
			case err := <-watch:
				t.Fatal("a watch fired after its context had ended:", err)
			default:
			}
		})
	}
}

func TestDeadLetters(t *testing.T) {
	var log syncBuffer
	system := casty.NewSystem(casty.Config{Mailbox: 2, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	defer system.Close()
	deaf := spawn(t, system, "deaf", func(self *casty.Actor[int]) { <-self.Done() })
	for n := range 5 {
		deaf.Tell(system, n)
	}
	if n := system.DeadLetters(); n != 3 {
		t.Errorf("%d dead letters, of 5 messages to a mailbox of 2", n)
	}
	var nobody casty.ActorRef[int]
	nobody.Tell(system, 1)
	if n := system.DeadLetters(); n != 4 {
		t.Errorf("a message to nobody is no dead letter: %d", n)
	}
	if s := log.String(); !strings.Contains(s, "mailbox full") || !strings.Contains(s, deaf.String()) {
		t.Error("not logged:", s)
	}
	// What is left in the mailbox of an actor that stops is dead too.
	casty.Stop(system, deaf)
	receive(t, deaf.Watch(t.Context(), system))
	for system.DeadLetters() != 6 {
		runtime.Gosched()
	}
}

func TestBadNames(t *testing.T) {
	system := local(t)
	if _, err := casty.Spawn(system, "taken", doubler); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"":                       `casty: spawn "": the name of the actor is empty`,
		"a/b":                    "has a slash",
		"a#b":                    "has a slash",
		"a\nb":                   "control character",
		"\xff":                   "control character",
		strings.Repeat("x", 256): "longer than 255 bytes",
		"receptionist":           "the name is reserved",
		"taken":                  "the name is in use",
	} {
		_, err := casty.Spawn(system, name, doubler)
		wantError(t, err, nil, want)
	}
	for uri, want := range map[string]string{
		"http://a@b:1/c":      "not of the form",
		"casty://a@b:1":       "not of the form",
		"casty://a/b":         "not of the form",
		"casty://@b:1/c":      "the name of the system is empty",
		"casty://a@/c":        "the name of the host is empty",
		"casty://a@b:/c":      "not a host and a port",
		"casty://a@b:0/c":     "not a host and a port",
		"casty://a@b:99999/c": "not a host and a port",
		"casty://a@:1/c":      "not a host and a port",
		"casty://a@b:1/":      "the name of the actor is empty",
		"casty://a@b:1/c/d":   "has a slash",
	} {
		_, err := casty.ParseAddress(uri)
		wantError(t, err, nil, want)
	}
	for _, uri := range []string{"casty://a@b:1/c", "casty://a@[::1]:65535/c#d", "casty://a@id/c"} {
		address, err := casty.ParseAddress(uri)
		if err != nil || address.URI() != uri {
			t.Errorf("%s became %v, %v", uri, address, err)
		}
	}
}

// stream.go: streams, first inside one system and in simulated time.

func TestPutBlocksUntilThereIsDemand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		system := local(t)
		sink, producer := newSink(t, system, 3)
		puts := putAll(t, sink, 100)
		synctest.Wait()
		if n := len(puts.done); n != 3 {
			t.Fatalf("%d elements were put into a buffer of 3 that nobody reads", n)
		}
		consumer := spawn(t, system, "consumer", casty.StreamConsumer(producer, casty.Window(2)))
		synctest.Wait()
		if n := len(puts.done); n != 3 {
			t.Fatalf("%d elements were put before GetSource", n)
		}
		source := getSource(t, system, consumer)
		consumed := 0
		for n, err := range source.All(t.Context()) {
			if err != nil || n != consumed {
				t.Fatalf("got %d, %v, instead of %d", n, err, consumed)
			}
			synctest.Wait()
			if n := len(puts.done); n > consumed+2+3 {
				t.Fatalf("%d put with %d consumed, a window of 2 and a buffer of 3", n, consumed)
			}
			consumed++
		}
		if err := <-puts.err; err != nil || consumed != 100 {
			t.Fatal(consumed, err)
		}
	})
}

func TestPutEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		system := local(t)
		sink, _ := newSink(t, system, 1)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := sink.Put(ctx, 1); err != nil {
			t.Fatal(err)
		}
		wantError(t, sink.Put(ctx, 2), context.DeadlineExceeded, "casty: put to ", "no consumer has subscribed")
		ctx, cancel = context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		wantError(t, sink.Complete(ctx), context.DeadlineExceeded, "casty: complete ", "no consumer has subscribed")
	})
}

func TestEndReleasesPut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		system := local(t)
		sink, producer := newSink(t, system, 0)
		puts := putAll(t, sink, 1)
		synctest.Wait()
		go sink.Complete(t.Context())
		wantError(t, <-puts.err, casty.ErrCompleted)
		wantError(t, sink.Put(t.Context(), 1), casty.ErrCompleted)
		wantError(t, sink.Fail(t.Context(), errors.New("late")), casty.ErrCompleted)
		if got := consume(t, system, producer); len(got) != 0 {
			t.Fatal(got)
		}
		if err := sink.Complete(t.Context()); err != nil {
			t.Fatal("a second Complete:", err)
		}
	})
}

// The same code works wherever the ends are.

func TestStream(t *testing.T) {
	for _, at := range places(t) {
		for _, elements := range []int{0, 1, 2, 1000} {
			for _, window := range []int{1, 2, 256} {
				t.Run(fmt.Sprintf("%s/%d elements/window %d", at.name, elements, window), func(t *testing.T) {
					sink, producer := newSink(t, at.producer, 16)
					puts := putAll(t, sink, elements)
					got := consume(t, at.consumer, producer, casty.Window(window))
					if err := receive(t, puts.err); err != nil || !slices.Equal(got, upTo(elements)) {
						t.Fatal(len(got), err)
					}
					wantError(t, receive(t, producer.Watch(t.Context(), at.consumer)), casty.ErrStopped)
				})
			}
		}
	}
}

func TestCompletionBeforeGetSourceIsNotLost(t *testing.T) {
	for _, at := range places(t) {
		t.Run(at.name, func(t *testing.T) {
			sink, producer := newSink(t, at.producer, 3)
			consumer := spawn(t, at.consumer, "consumer", casty.StreamConsumer(producer))
			puts := putAll(t, sink, 3)
			for len(puts.done) < 3 {
				runtime.Gosched()
			}
			got := drain(t, getSource(t, at.consumer, consumer))
			if err := receive(t, puts.err); err != nil || !slices.Equal(got, upTo(3)) {
				t.Fatal(got, err)
			}
		})
	}
}

func TestProducerNeverSendsBeyondDemand(t *testing.T) {
	for _, at := range places(t) {
		t.Run(at.name, func(t *testing.T) {
			sink, producer := newSink(t, at.producer, 16)
			putAll(t, sink, 100)
			heard := make(chan casty.StreamConsumerMsg[int], 16)
			me := spawn(t, at.consumer, "consumer", func(self *casty.Actor[casty.StreamConsumerMsg[int]]) {
				for msg := range self.Messages() {
					heard <- msg
				}
			})
			next := uint64(0)
			producer.Tell(at.consumer, casty.Subscribe[int]{Consumer: me, Demand: 2})
			for demand := uint64(2); demand <= 10; demand += 2 {
				for next < demand {
					m, ok := receive(t, heard).(casty.StreamElement[int])
					if !ok || m.Seq != next || m.Seq+uint64(len(m.Elements)) > demand {
						t.Fatalf("got %v at position %d with demand %d", m, next, demand)
					}
					next += uint64(len(m.Elements))
				}
				// A demand that is no news is answered behind all that has been sent.
				producer.Tell(at.consumer, casty.StreamDemand[int]{Consumer: me, Received: 0, Demand: demand})
				for {
					m, ok := receive(t, heard).(casty.StreamElement[int])
					if !ok || len(m.Elements) > 0 && m.Seq+uint64(len(m.Elements)) > demand {
						t.Fatalf("got %v with demand %d", m, demand)
					}
					if len(m.Elements) == 0 && m.Seq == demand {
						break
					}
				}
				producer.Tell(at.consumer, casty.StreamDemand[int]{Consumer: me, Received: next, Demand: demand + 2})
			}
		})
	}
}

func TestLeavingTheLoopCancels(t *testing.T) {
	leave := map[string]func(t *testing.T, source *casty.SourceRef[int]){
		"break": func(t *testing.T, source *casty.SourceRef[int]) {
			for range source.All(t.Context()) {
				break
			}
		},
		"return": func(t *testing.T, source *casty.SourceRef[int]) {
			for range source.All(t.Context()) {
				return
			}
		},
		"panic": func(t *testing.T, source *casty.SourceRef[int]) {
			defer func() { recover() }()
			for range source.All(t.Context()) {
				panic("in the loop")
			}
		},
		"context": func(t *testing.T, source *casty.SourceRef[int]) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var last error
			for _, err := range source.All(ctx) {
				cancel()
				last = err
			}
			wantError(t, last, context.Canceled)
		},
	}
	for _, at := range places(t) {
		for how, leave := range leave {
			t.Run(at.name+"/"+how, func(t *testing.T) {
				key := casty.NewServiceKey[casty.StreamProducerMsg[int]](t.Name())
				producer := spawn(t, at.producer, "producer", casty.Discoverable(key, casty.StreamProducer[int](4)))
				if at.listed {
					waitForInstances(t, at.consumer, key, 1)
				}
				sink := getSink(t, at.producer, producer)
				puts := putAll(t, sink, 1_000_000)
				consumer := spawn(t, at.consumer, "consumer", casty.StreamConsumer(producer))
				leave(t, getSource(t, at.consumer, consumer))
				wantError(t, receive(t, puts.err), casty.ErrCancelled, "casty: put to "+producer.String())
				wantError(t, sink.Complete(t.Context()), casty.ErrCancelled, "casty: complete "+producer.String())
				wantError(t, receive(t, producer.Watch(t.Context(), at.consumer)), casty.ErrStopped)
				waitForInstances(t, at.consumer, key, 0)
			})
		}
	}
}

func TestFail(t *testing.T) {
	for _, at := range places(t) {
		t.Run(at.name, func(t *testing.T) {
			sink, producer := newSink(t, at.producer, 4)
			for n := range 3 {
				if err := sink.Put(t.Context(), n); err != nil {
					t.Fatal(err)
				}
			}
			failed := make(chan error, 1)
			go func() { failed <- sink.Fail(t.Context(), errors.New("the sensor is broken")) }()
			got, err := tryConsume(t, at.consumer, producer)
			wantError(t, err, nil, "casty: stream from "+producer.String()+": the sensor is broken")
			if err := receive(t, failed); err != nil || !slices.Equal(got, upTo(3)) {
				t.Fatal(got, err)
			}
		})
	}
}

func TestProducerStopsBeforeCompletion(t *testing.T) {
	for _, at := range places(t) {
		t.Run(at.name, func(t *testing.T) {
			sink, producer := newSink(t, at.producer, 4)
			for n := range 3 {
				if err := sink.Put(t.Context(), n); err != nil {
					t.Fatal(err)
				}
			}
			consumer := spawn(t, at.consumer, "consumer", casty.StreamConsumer(producer))
			var last error
			for n, err := range getSource(t, at.consumer, consumer).All(t.Context()) {
				if last = err; n == 2 {
					casty.Stop(at.producer, producer)
				}
			}
			wantError(t, last, casty.ErrStopped, "before completion")
			wantError(t, sink.Put(t.Context(), 4), casty.ErrStopped)
			wantError(t, sink.Complete(t.Context()), casty.ErrStopped)
		})
	}
}

func TestSecondConsumerIsRefused(t *testing.T) {
	for _, at := range places(t) {
		t.Run(at.name, func(t *testing.T) {
			sink, producer := newSink(t, at.producer, 4)
			puts := putAll(t, sink, 1000)
			first := spawn(t, at.consumer, "first", casty.StreamConsumer(producer))
			var got []int
			for n, err := range getSource(t, at.consumer, first).All(t.Context()) {
				if err != nil {
					t.Fatal(err)
				}
				if got = append(got, n); n == 100 {
					_, err := tryConsume(t, at.consumer, producer)
					wantError(t, err, casty.ErrAlreadySubscribed, "casty: stream from "+producer.String()+": already subscribed")
				}
			}
			if err := receive(t, puts.err); err != nil || !slices.Equal(got, upTo(1000)) {
				t.Fatal(len(got), err)
			}
		})
	}
}

func TestNextConsumerContinues(t *testing.T) {
	for _, at := range places(t) {
		t.Run(at.name, func(t *testing.T) {
			sink, producer := newSink(t, at.producer, 4)
			puts := putAll(t, sink, 1000)
			first := spawn(t, at.consumer, "consumer", casty.StreamConsumer(producer, casty.Window(1)))
			consumed := 0
			for _, err := range getSource(t, at.consumer, first).All(t.Context()) {
				if err != nil {
					wantError(t, err, casty.ErrStopped)
					break
				}
				if consumed++; consumed == 10 {
					casty.Stop(at.consumer, first) // a crash, not a cancel
				}
			}
			receive(t, first.Watch(t.Context(), at.producer))
			got := consume(t, at.consumer, producer)
			if err := receive(t, puts.err); err != nil || len(got) == 0 || !slices.Equal(got, upTo(1000)[got[0]:]) || got[0] > 11 {
				t.Fatal(got, err)
			}
		})
	}
}

func TestEndsDisagreeAboutTheType(t *testing.T) {
	for _, at := range places(t) {
		t.Run(at.name, func(t *testing.T) {
			sink, producer := newSink(t, at.producer, 4)
			var mistaken casty.ActorRef[casty.StreamProducerMsg[string]]
			if err := mistaken.GobDecode([]byte(producer.Address().URI())); err != nil {
				t.Fatal(err)
			}
			consumer := spawn(t, at.consumer, "consumer", casty.StreamConsumer(mistaken))
			types := []string{"casty.StreamProducerMsg[int]", "casty.StreamProducerMsg[string]"}
			source, err := casty.GetSource(t.Context(), at.consumer, consumer)
			if err != nil {
				t.Fatal(err)
			}
			for _, err := range source.All(t.Context()) {
				wantError(t, err, casty.ErrWrongType, types...)
			}
			wantError(t, sink.Complete(t.Context()), casty.ErrWrongType, types...)
		})
	}
}

func TestSinkAndSourceAreLocal(t *testing.T) {
	for _, at := range places(t)[1:] {
		_, producer := newSink(t, at.producer, 1)
		_, err := casty.GetSink(t.Context(), at.consumer, producer)
		wantError(t, err, casty.ErrNotLocal, "casty: get the sink of "+producer.String())
		consumer := spawn(t, at.consumer, "consumer", casty.StreamConsumer(producer))
		_, err = casty.GetSource(t.Context(), at.producer, consumer)
		wantError(t, err, casty.ErrNotLocal, "casty: get the source of "+consumer.String())
	}
}

// receptionist.go and client.go: discovery.

func TestServicesAreListedEverywhere(t *testing.T) {
	key := casty.NewServiceKey[double]("doubler")
	a := startNode(t)
	b := startNode(t, a.Address())
	client := connect(t, a)
	ref := spawn(t, b, "doubler", doubler)
	if err := casty.Register(b, key, ref); err != nil {
		t.Fatal(err)
	}
	if got := casty.Lookup(b, key).Instances; len(got) != 1 || got[0].Ref != ref || got[0].Node != b.Address() {
		t.Fatal("not visible at once where it was registered:", got)
	}
	for _, from := range []*casty.System{a, b, client} {
		instance := waitForInstances(t, from, key, 1)[0]
		if n, err := askDouble(t.Context(), from, instance.Ref, 4); n != 8 || err != nil {
			t.Fatal(n, err)
		}
	}
	casty.Stop(b, ref) // the node lives on
	for _, from := range []*casty.System{a, b, client} {
		waitForInstances(t, from, key, 0)
	}
	wantError(t, casty.Register(a, key, ref), casty.ErrNotLocal)
	wantError(t, casty.Register(b, key, ref), casty.ErrStopped)
	if got := casty.Lookup(b, key).Instances; len(got) != 0 {
		t.Fatal("a stopped actor is listed:", got)
	}
	again := spawn(t, b, "doubler", casty.Discoverable(key, doubler))
	waitForInstances(t, client, key, 1)
	casty.Deregister(b, key, again)
	waitForInstances(t, client, key, 0)
}

func TestNodeThatStopsLeaves(t *testing.T) {
	key := casty.NewServiceKey[double]("doubler")
	a := startNode(t)
	b := startNode(t, a.Address())
	c := startNode(t, a.Address())
	client := connect(t, b) // the node it first contacts is the one that goes
	spawn(t, b, "doubler", casty.Discoverable(key, doubler))
	for _, at := range []*casty.System{a, c, client} {
		waitForInstances(t, at, key, 1)
		waitForMembers(t, at, a, b, c)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	for _, at := range []*casty.System{a, c, client} {
		waitForInstances(t, at, key, 0)
		waitForMembers(t, at, a, c)
	}
	spawn(t, c, "doubler", casty.Discoverable(key, doubler))
	waitForInstances(t, client, key, 1)
}

func TestConnectSaysWhyNot(t *testing.T) {
	node := startNode(t)
	dead := startNode(t)
	dead.Close()
	quick := 10 * time.Millisecond
	for _, c := range []struct {
		name string
		cfg  casty.Config
		is   error
		want []string
	}{
		{"no seeds", casty.Config{}, nil, []string{`casty: connect to "casty": there are no seeds`}},
		{"a bad seed", casty.Config{Seeds: []string{"nowhere"}}, nil, []string{`seed "nowhere" is not host:port`}},
		{"a bad name", casty.Config{Name: "a/b", Seeds: []string{node.Address()}}, nil, []string{`the name of the system, "a/b", has a slash`}},
		{"another system", casty.Config{Name: "other", Seeds: []string{node.Address()}}, nil,
			[]string{"refused", node.Address(), `system "other" is not "casty"`}},
		{"unreachable", casty.Config{Seeds: []string{dead.Address()}, Heartbeat: quick}, context.DeadlineExceeded,
			[]string{dead.Address(), "unreachable", "connection refused"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.cfg.Logger = logger(t)
			_, err := casty.Connect(t.Context(), c.cfg)
			wantError(t, err, c.is, c.want...)
		})
	}
}

func TestStartNodeSaysWhyNot(t *testing.T) {
	node := startNode(t)
	for address, want := range map[string]string{
		node.Address(): "address already in use",
		"nowhere":      "casty: start node nowhere: ",
	} {
		_, err := casty.StartNode(casty.Config{Address: address})
		wantError(t, err, nil, want)
	}
}

// A client has no address, so its producer's ref is told to an actor on a
// node, which consumes it and answers.
func TestClientStreamsBack(t *testing.T) {
	node := startNode(t)
	client := connect(t, node)
	type intake = casty.ActorRef[casty.StreamProducerMsg[int]]
	total := make(chan int, 1)
	monitor := spawn(t, node, "monitor", func(self *casty.Actor[intake]) {
		for producer := range self.Messages() {
			consumer, err := casty.Spawn(self, "monitor-consumer", casty.StreamConsumer(producer))
			if err != nil {
				panic(err)
			}
			source, err := casty.GetSource(self.Context(), self, consumer)
			if err != nil {
				panic(err)
			}
			sum := 0
			for n, err := range source.All(self.Context()) {
				if err != nil {
					panic(err)
				}
				sum += n
			}
			total <- sum
		}
	})
	sink, producer := newSink(t, client, 16)
	monitor.Tell(client, producer)
	puts := putAll(t, sink, 101)
	if sum := receive(t, total); sum != 5050 {
		t.Fatal(sum)
	}
	if err := receive(t, puts.err); err != nil {
		t.Fatal(err)
	}
}

func TestCloseLeavesNoGoroutine(t *testing.T) {
	before := runtime.NumGoroutine()
	a := startNode(t)
	b := startNode(t, a.Address())
	client := connect(t, a)
	for i, ends := range [][2]*casty.System{{a, a}, {a, b}, {a, client}, {client, b}} {
		producer := spawn(t, ends[0], fmt.Sprint("producer-", i), casty.StreamProducer[int](1))
		puts := putAll(t, getSink(t, ends[0], producer), 1_000_000)
		consumer := spawn(t, ends[1], fmt.Sprint("consumer-", i), casty.StreamConsumer(producer))
		source := getSource(t, ends[1], consumer)
		started, ended := make(chan int, 1), make(chan error, 1)
		go func() {
			for n, err := range source.All(t.Context()) {
				if n == 100 {
					started <- n
				}
				if err != nil {
					ended <- err
				}
			}
		}()
		receive(t, started)
		defer func() {
			wantError(t, receive(t, puts.err), casty.ErrStopped)
			wantError(t, receive(t, ended), casty.ErrStopped)
			for runtime.NumGoroutine() > before {
				if t.Context().Err() != nil {
					t.Fatal("goroutines are left")
				}
				runtime.Gosched()
			}
		}()
	}
	if err := errors.Join(client.Close(), b.Close(), a.Close()); err != nil {
		t.Fatal(err)
	}
	_, err := casty.Spawn(a, "late", doubler)
	wantError(t, err, casty.ErrClosed)
	if err := a.Close(); err != nil {
		t.Fatal("a second Close:", err)
	}
}

// Benchmarks: each next to raw gob over one TCP connection, in the same run.

type sample struct {
	Sensor, Unit string
	Value        float64
	At           int64
}

func reading(i int) sample { return sample{"temp", "°C", 20.5, int64(i)} }

func BenchmarkStream(b *testing.B) {
	for _, window := range []int{256, 4096} {
		b.Run(fmt.Sprintf("gob/window=%d", window), func(b *testing.B) { benchmarkGob(b, window, reading) })
		b.Run(fmt.Sprintf("network/window=%d", window), func(b *testing.B) {
			a := startNode(b)
			benchmarkStream(b, a, startNode(b, a.Address()), window, reading)
		})
		b.Run(fmt.Sprintf("local/window=%d", window), func(b *testing.B) {
			system := local(b)
			benchmarkStream(b, system, system, window, reading)
		})
	}
}

func benchmarkStream[E any](b *testing.B, from, to *casty.System, window int, element func(int) E) {
	producer := spawn(b, from, "producer", casty.StreamProducer[E](256))
	sink, err := casty.GetSink(b.Context(), from, producer)
	if err != nil {
		b.Fatal(err)
	}
	consumer := spawn(b, to, "consumer", casty.StreamConsumer(producer, casty.Window(window)))
	source, err := casty.GetSource(b.Context(), to, consumer)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.ResetTimer()
	completed := make(chan error, 1)
	go func() {
		for i := range b.N {
			if err := sink.Put(b.Context(), element(i)); err != nil {
				completed <- err
				return
			}
		}
		completed <- sink.Complete(b.Context())
	}()
	n := 0
	for _, err := range source.All(b.Context()) {
		if err != nil {
			b.Fatal(err)
		}
		n++
	}
	if err := <-completed; err != nil || n != b.N {
		b.Fatalf("%d of %d elements arrived: %v", n, b.N, err)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "elements/s")
}

type batch[E any] struct{ Elements []E }

// benchmarkGob streams batches of up to 64 under the same window, with an
// acknowledgement for each half of it, and nothing else.
func benchmarkGob[E any](b *testing.B, window int, element func(int) E) {
	here, there := loopback(b)
	go func() {
		dec, enc := gob.NewDecoder(there), gob.NewEncoder(there)
		for got, told := 0, 0; ; {
			var m batch[E]
			if dec.Decode(&m) != nil {
				return
			}
			if got += len(m.Elements); got-told >= window/2 || got == b.N {
				told = got
				if enc.Encode(got) != nil {
					return
				}
			}
		}
	}()
	b.ReportAllocs()
	b.ResetTimer()
	out := bufio.NewWriterSize(here, 64<<10)
	enc, dec := gob.NewEncoder(out), gob.NewDecoder(here)
	acked := 0
	for sent := 0; acked < b.N; {
		for sent < b.N && sent-acked < window {
			var m batch[E]
			for range min(64, b.N-sent, window-(sent-acked)) {
				m.Elements = append(m.Elements, element(sent))
				sent++
			}
			if err := enc.Encode(m); err != nil {
				b.Fatal(err)
			}
		}
		if err := out.Flush(); err != nil {
			b.Fatal(err)
		}
		if err := dec.Decode(&acked); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "elements/s")
}

// loopback returns the two ends of a TCP connection.
func loopback(t testing.TB) (here, there net.Conn) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	if here, err = net.Dial("tcp", listener.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if there, err = listener.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { here.Close(); there.Close() })
	return here, there
}

// Helpers.

// A place is where the two ends of something are.
type place struct {
	name               string
	producer, consumer *casty.System
	listed             bool // services of the producer's system are listed at the consumer
}

// places starts a small cluster and a client, and returns the pairs in it.
func places(t *testing.T) []place {
	a := startNode(t)
	b := startNode(t, a.Address())
	client := connect(t, a)
	waitForMembers(t, client, a, b)
	return []place{
		{"one system", a, a, true},
		{"node to node", a, b, true},
		{"node to client", b, client, true},
		{"client to node", client, a, false},
	}
}

func logger(t testing.TB) *slog.Logger { return slog.New(slog.NewTextHandler(t.Output(), nil)) }

func local(t testing.TB) *casty.System {
	system := casty.NewSystem(casty.Config{Logger: logger(t)})
	t.Cleanup(func() { system.Close() })
	return system
}

func startNode(t testing.TB, seeds ...string) *casty.System {
	t.Helper()
	node, err := casty.StartNode(casty.Config{Seeds: seeds, Logger: logger(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { node.Close() })
	return node
}

func connect(t testing.TB, to *casty.System) *casty.System {
	t.Helper()
	client, err := casty.Connect(t.Context(), casty.Config{Seeds: []string{to.Address()}, Logger: logger(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client
}

// spawn makes names unique, so that the subtests of a test can share systems.
func spawn[M any](t testing.TB, in casty.Host, name string, b casty.Behavior[M]) casty.ActorRef[M] {
	t.Helper()
	ref, err := casty.Spawn(in, strings.NewReplacer("/", ".").Replace(t.Name())+"-"+name, b)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		casty.Stop(in, ref)
		<-ref.Watch(context.Background(), in)
	})
	return ref
}

func newSink(t *testing.T, in *casty.System, buffer int) (*casty.SinkRef[int], casty.ActorRef[casty.StreamProducerMsg[int]]) {
	t.Helper()
	producer := spawn(t, in, "producer", casty.StreamProducer[int](buffer))
	return getSink(t, in, producer), producer
}

func getSink(t *testing.T, in *casty.System, producer casty.ActorRef[casty.StreamProducerMsg[int]]) *casty.SinkRef[int] {
	t.Helper()
	sink, err := casty.GetSink(t.Context(), in, producer)
	if err != nil {
		t.Fatal(err)
	}
	return sink
}

func getSource(t *testing.T, in *casty.System, consumer casty.ActorRef[casty.StreamConsumerMsg[int]]) *casty.SourceRef[int] {
	t.Helper()
	source, err := casty.GetSource(t.Context(), in, consumer)
	if err != nil {
		t.Fatal(err)
	}
	return source
}

type puts struct {
	done chan int   // elements that have been put
	err  chan error // of the first Put that failed, or of Complete
}

// putAll puts 0 to n-1 into a sink, and completes it.
func putAll(t *testing.T, sink *casty.SinkRef[int], n int) puts {
	p := puts{make(chan int, n), make(chan error, 1)}
	ctx := t.Context()
	go func() {
		for i := range n {
			if err := sink.Put(ctx, i); err != nil {
				p.err <- err
				return
			}
			p.done <- i
		}
		p.err <- sink.Complete(ctx)
	}()
	return p
}

func consume(t *testing.T, in *casty.System, producer casty.ActorRef[casty.StreamProducerMsg[int]], options ...casty.StreamOption) []int {
	t.Helper()
	got, err := tryConsume(t, in, producer, options...)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func tryConsume(t *testing.T, in *casty.System, producer casty.ActorRef[casty.StreamProducerMsg[int]], options ...casty.StreamOption) (got []int, err error) {
	t.Helper()
	consumer := spawn(t, in, "another-consumer", casty.StreamConsumer(producer, options...))
	for n, e := range getSource(t, in, consumer).All(t.Context()) {
		if err = e; err == nil {
			got = append(got, n)
		}
	}
	return got, err
}

func drain(t *testing.T, source *casty.SourceRef[int]) (got []int) {
	t.Helper()
	for n, err := range source.All(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, n)
	}
	return got
}

func upTo(n int) []int {
	all := make([]int, n)
	for i := range all {
		all[i] = i
	}
	return all
}

func receive[T any](t *testing.T, from <-chan T) (value T) {
	t.Helper()
	select {
	case value = <-from:
	case <-time.After(20 * time.Second):
		t.Fatal("nothing came")
	}
	return value
}

// wantError checks an error's identity, unless is is nil, and its text.
func wantError(t *testing.T, err, is error, texts ...string) {
	t.Helper()
	if err == nil || is != nil && !errors.Is(err, is) {
		t.Fatalf("got error %v instead of %v", err, is)
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Fatalf("error %q does not say %q", err, text)
		}
	}
}

func waitForInstances[M any](t *testing.T, from casty.Host, key casty.ServiceKey[M], n int) []casty.ServiceInstance[M] {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var last casty.Listing[M]
	for last = range casty.Listings(ctx, from, key) {
		if len(last.Instances) == n {
			return last.Instances
		}
	}
	t.Fatalf("%v instead of %d instances", last, n)
	return nil
}

func waitForMembers(t *testing.T, at *casty.System, nodes ...*casty.System) {
	t.Helper()
	want := []string{}
	for _, node := range nodes {
		want = append(want, node.Address())
	}
	slices.Sort(want)
	for deadline := time.Now().Add(20 * time.Second); !slices.Equal(casty.Members(at), want); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("members %v instead of %v", casty.Members(at), want)
		}
	}
}

type syncBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
