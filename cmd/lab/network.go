package main

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// A network does to connections what networks do. All that processes dial goes
// through it, in both directions.
type network struct {
	second           time.Duration
	going            *sync.WaitGroup // its goroutines
	latency, perByte atomic.Int64    // nanoseconds; a byte takes its time in each direction of a connection
	stalled          atomic.Int64    // until when nothing passes, in Unix nanoseconds
	cables           sync.Map        // its keys cut a connection each
}

// set has what is read from now on take as long as the settings say.
func (n *network) set(s settings) {
	n.latency.Store(int64(n.second) * int64(s.Latency) / 1000)
	n.perByte.Store(int64(n.second) / int64(s.Bandwidth<<10))
}

// dial is the Config.Dial of a process, with which its connections end.
func (n *network) dial(process context.Context) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, address string) (net.Conn, error) {
		there, err := new(net.Dialer).DialContext(ctx, "tcp", address)
		if err != nil {
			return nil, err
		}
		here, end := net.Pipe()
		cable, cut := context.WithCancel(process)
		n.cables.Store(&cut, nil)
		context.AfterFunc(cable, func() {
			n.cables.Delete(&cut)
			there.(*net.TCPConn).SetLinger(0) // what is under way is lost
			there.Close()
			end.Close()
		})
		n.going.Go(func() { defer cut(); n.carry(cable, end, there) })
		n.going.Go(func() { defer cut(); n.carry(cable, there, end) })
		return here, nil
	}
}

// cut ends every connection, as a broken cable does.
func (n *network) cut() {
	for cut := range n.cables.Range {
		(*cut.(*context.CancelFunc))()
	}
}

// A parcel is what has been read at once, and when.
type parcel struct {
	bytes []byte
	read  time.Time
}

// carry takes bytes from one end of a cable to the other, until it is cut.
func (n *network) carry(cable context.Context, from, to net.Conn) {
	queue := make(chan parcel, 64) // a full one makes the sender wait, as a socket's full buffer does
	n.going.Go(func() {
		defer close(queue)
		for {
			bytes := make([]byte, 4<<10)
			size, err := from.Read(bytes)
			if err != nil {
				return
			}
			select {
			case queue <- parcel{bytes[:size], time.Now()}:
			case <-cable.Done():
				return
			}
		}
	})
	var left time.Time // when the last parcel has left
	for p := range queue {
		if p.read.After(left) {
			left = p.read
		}
		left = left.Add(time.Duration(n.perByte.Load()) * time.Duration(len(p.bytes)))
		n.wait(cable, left.Add(time.Duration(n.latency.Load())))
		if cable.Err() != nil { // nothing passes after that, even if the ends still are open
			return
		}
		if _, err := to.Write(p.bytes); err != nil {
			return
		}
	}
}

// wait returns when it is time and the network does not stall, or the cable is cut.
func (n *network) wait(cable context.Context, due time.Time) {
	for cable.Err() == nil {
		pause := max(time.Until(due), time.Until(time.Unix(0, n.stalled.Load())))
		if pause <= 0 {
			return
		}
		select {
		case <-time.After(pause):
		case <-cable.Done():
		}
	}
}
