package main

import (
	"bytes"
	"context"
	"net"
	"sync"
	"time"
)

// A network does to connections what networks do. Both ends of each are in this
// program, so to hold what each end writes is to hold both directions.
type network struct {
	carrying sync.WaitGroup // one goroutine for each wire

	mu      sync.Mutex // guards what follows
	latency time.Duration
	perByte time.Duration // that a byte takes, in each direction of a connection
	stalled time.Time     // nothing passes before
	wires   map[*wire]bool
}

// A wire is one end of a connection.
type wire struct {
	net.Conn
	*network
	queue chan parcel // a full one makes Write block, as a socket's full buffer does
	ctx   context.Context
	close context.CancelFunc // drops what is still in the wire
}

// A parcel is what has been written at once, and when it may arrive.
type parcel struct {
	bytes []byte
	due   time.Time
}

// attach puts a wire around a connection of a process, which ends with that.
func (n *network) attach(process context.Context, conn net.Conn, err error) (net.Conn, error) {
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	w := &wire{Conn: conn, network: n, queue: make(chan parcel, 64)}
	w.ctx, w.close = context.WithCancel(process)
	n.wires[w] = true
	n.carrying.Go(w.carry)
	return w, nil
}

// dial is the Config.Dial of a process.
func (n *network) dial(process context.Context) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, address string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
		return n.attach(process, conn, err)
	}
}

// A listener is the Config.Listener of a process.
type listener struct {
	net.Listener
	*network
	process context.Context
}

func (l listener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	return l.attach(l.process, conn, err)
}

// set changes what the network is like, also for what is under way.
func (n *network) set(change func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	change()
}

// cut ends every connection, as a broken cable does. The caller holds n.mu.
func (n *network) cut() {
	for w := range n.wires {
		w.close()
	}
}

// Write returns once the wire has taken p.
func (w *wire) Write(p []byte) (int, error) {
	var latency time.Duration
	w.set(func() { latency = w.latency })
	if w.ctx.Err() == nil {
		select {
		case w.queue <- parcel{bytes.Clone(p), time.Now().Add(latency)}:
			return len(p), nil
		case <-w.ctx.Done():
		}
	}
	return 0, net.ErrClosed
}

// Deadlines are for reading only: here, a peer that takes nothing is silent, too.
func (w *wire) SetDeadline(t time.Time) error    { return w.SetReadDeadline(t) }
func (w *wire) SetWriteDeadline(time.Time) error { return nil }

func (w *wire) Close() error {
	w.close()
	return nil
}

// carry takes what is written to the other end, until the wire is closed or cut.
// On a slow wire a little passes all the time, so that it does not seem silent.
func (w *wire) carry() {
	defer w.hangUp()
	for w.ctx.Err() == nil {
		select {
		case <-w.ctx.Done():
		case p := <-w.queue:
			for len(p.bytes) > 0 && w.wait(&p) {
				var portion []byte
				w.set(func() {
					portion = p.bytes[:min(len(p.bytes), 1+int(20*time.Millisecond/w.perByte))]
					p.due = time.Now().Add(time.Duration(len(portion)) * w.perByte)
				})
				if _, err := w.Conn.Write(portion); err != nil {
					return
				}
				p.bytes = p.bytes[len(portion):]
			}
			w.wait(&p)
		}
	}
}

// wait returns true when a parcel is due and the network does not stall, and
// false when the wire is closed or cut.
func (w *wire) wait(p *parcel) bool {
	for w.ctx.Err() == nil {
		var pause time.Duration
		w.set(func() { pause = max(time.Until(p.due), time.Until(w.stalled)) })
		if pause <= 0 {
			return true
		}
		select {
		case <-time.After(pause):
		case <-w.ctx.Done():
		}
	}
	return false
}

func (w *wire) hangUp() {
	w.close()
	w.Conn.(*net.TCPConn).SetLinger(0) // what is under way is lost
	w.Conn.Close()
	w.set(func() { delete(w.wires, w) })
}
