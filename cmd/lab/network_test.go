package main

import (
	"context"
	"io"
	"net"
	"testing"
	"time"
)

// connect returns the ends of a connection over a network, each of a process.
func connect(t *testing.T, n *network) (here, there net.Conn, kill context.CancelFunc) {
	t.Helper()
	process, kill := context.WithCancel(t.Context())
	t.Cleanup(n.carrying.Wait)
	t.Cleanup(kill)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if here, err = n.dial(process)(t.Context(), l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if there, err = (listener{l, n, t.Context()}).Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { there.Close() })
	return here, there, kill
}

// takes is how long bytes take from one end to the other.
func takes(t *testing.T, here, there net.Conn, bytes int) time.Duration {
	t.Helper()
	began := time.Now()
	if _, err := here.Write(make([]byte, bytes)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(there, make([]byte, bytes)); err != nil {
		t.Fatal(err)
	}
	return time.Since(began)
}

func TestNetwork(t *testing.T) {
	const long = 200 * time.Millisecond
	n := &network{perByte: time.Nanosecond, wires: map[*wire]bool{}}
	here, there, kill := connect(t, n)
	for name, change := range map[string]func(){
		"latency":   func() { n.latency = long },
		"bandwidth": func() { n.perByte = long / 1000 },
		"stalled":   func() { n.stalled = time.Now().Add(long) },
	} {
		n.set(change)
		if took := takes(t, here, there, 1000); took < long*9/10 {
			t.Errorf("%s: 1000 bytes took %v", name, took)
		}
		n.set(func() { n.latency, n.perByte = 0, time.Nanosecond })
	}
	n.set(func() { n.latency = long })
	here.Write([]byte("lost"))
	n.set(n.cut)
	for _, end := range []net.Conn{here, there} {
		if read, err := end.Read(make([]byte, 10)); err == nil {
			t.Errorf("%d bytes have survived the cut", read)
		}
		if _, err := end.Write([]byte("late")); err == nil {
			t.Error("what is cut still takes bytes")
		}
	}
	here, there, kill2 := connect(t, n)
	kill()
	n.set(func() { n.latency = 0 })
	takes(t, here, there, 1)
	kill2()
	if _, err := there.Read(make([]byte, 1)); err == nil {
		t.Error("a process that is killed says something")
	}
}
