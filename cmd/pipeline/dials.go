package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

// dials opens a process's connections. It knows which could not be, and why,
// and cuts them when they reach an age. Where all roles are in one process,
// every connection has been dialled there.
type dials struct {
	cutAfter time.Duration // 0: never

	mu     sync.Mutex       // guards what follows
	failed map[string]error // by address: why the last attempt to dial it has
	cut    int              // connections
}

// dial is a casty.Config's Dial.
func (d *dials) dial(ctx context.Context, address string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failed[address] = err
	if err != nil || d.cutAfter == 0 {
		return conn, err
	}
	return mortal{conn, time.AfterFunc(d.cutAfter, func() { d.kill(conn) })}, nil
}

// A mortal connection is cut when its time has come.
type mortal struct {
	net.Conn
	death *time.Timer
}

func (m mortal) Close() error {
	m.death.Stop()
	return m.Conn.Close()
}

// kill ends a connection as a broken cable does, with what is under way.
func (d *dials) kill(conn net.Conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if tcp, ok := conn.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	if conn.Close() == nil {
		d.cut++
	}
}

// cuts is how many connections have been cut.
func (d *dials) cuts() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.cut
}

// trouble says which of the seeds could not be dialled, and why.
func (d *dials) trouble(seeds []string) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var text strings.Builder
	for _, seed := range seeds {
		var timeout net.Error
		switch err := d.failed[seed]; {
		case err == nil:
		case errors.Is(err, syscall.ECONNREFUSED):
			fmt.Fprintf(&text, "; seed %s refuses the connection", seed)
		case errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
			fmt.Fprintf(&text, "; seed %s does not answer", seed)
		default:
			fmt.Fprintf(&text, "; seed %s: %v", seed, err)
		}
	}
	return text.String()
}
