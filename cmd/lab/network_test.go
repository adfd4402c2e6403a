package main

import (
	"context"
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// connect returns the ends of a connection over a network, each of a process.
func connect(t *testing.T, n *network) (here, there net.Conn, kill context.CancelFunc) {
	t.Helper()
	process, kill := context.WithCancel(t.Context())
	t.Cleanup(n.going.Wait)
	t.Cleanup(kill)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if here, err = n.dial(process)(t.Context(), l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if there, err = l.Accept(); err != nil {
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
	n := &network{second: time.Second, going: new(sync.WaitGroup)}
	n.set(settings{Bandwidth: 100})
	here, there, kill := connect(t, n)
	for name, change := range map[string]func(){
		"latency":   func() { n.set(settings{Bandwidth: 100, Latency: 200}) },
		"bandwidth": func() { n.set(settings{Bandwidth: 5}) }, // 5 KiB per second
		"stalled":   func() { n.stalled.Store(time.Now().Add(long).UnixNano()) },
	} {
		for _, ends := range [][2]net.Conn{{here, there}, {there, here}} {
			change()
			if took := takes(t, ends[0], ends[1], 1024); took < long*9/10 {
				t.Errorf("%s: 1024 bytes took %v", name, took)
			}
			n.set(settings{Bandwidth: 100})
		}
	}
	n.set(settings{Bandwidth: 100, Latency: 200})
	here.Write([]byte("lost"))
	there.Write([]byte("lost"))
	n.cut()
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
	n.set(settings{Bandwidth: 100})
	takes(t, here, there, 1)
	kill2()
	if _, err := there.Read(make([]byte, 1)); err == nil {
		t.Error("a process that is killed says something")
	}
}
