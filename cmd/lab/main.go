// Lab shows a reactive stream over a network at work, on a page, and does to it
// what networks do:
//
//	go run ./cmd/lab
//
// All of it is real: nodes and clients, in one process, over TCP. What the page
// shows comes from the package's log at debug level.
//
//	lab.go        a run: the nodes, the stream, its users
//	network.go    connections that can be cut, stalled, delayed and throttled
//	watch.go      what the log says, for pages; and the counter
//	controls.go   the buttons
//	scenarios.go  buttons that are pressed by themselves
//	page.html     draws, explains and sums up what it is told
package main

import (
	"bytes"
	"context"
	_ "embed"
	"flag"
	"fmt"
	"html/template"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/signal"
	"time"
)

func main() {
	address := flag.String("address", "127.0.0.1:25530", "`host:port` of the page; port 0 takes a free one")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	context.AfterFunc(ctx, stop) // so that a second Ctrl-C does not wait for anything
	if err := serve(ctx, *address, time.Second, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
}

// serve serves the page until ctx ends. A second is what the page calls one, so
// that a test can be fast.
func serve(ctx context.Context, address string, second time.Duration, out io.Writer) error {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	l := &lab{ctx: ctx, second: second}
	defer l.going.Wait()
	defer stop()
	defer listener.Close()
	if err := l.begin("", usual); err != nil {
		return err
	}
	server := &http.Server{Handler: l.handler(address), ReadHeaderTimeout: patience,
		BaseContext: func(net.Listener) context.Context { return ctx }} // so that every page is told when it ends
	defer context.AfterFunc(ctx, func() { server.Close() })()
	fmt.Fprintf(out, "the lab is at http://%v, until Ctrl-C\n", listener.Addr())
	if err := server.Serve(listener); ctx.Err() == nil {
		return err
	}
	return nil
}

//go:embed page.html
var source string

var page = template.Must(template.New("page").Parse(source))

// policy lets the page use nothing that is not in it, or from elsewhere.
const policy = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; img-src data:; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// handler serves those who ask for a number, localhost or the host of address,
// and not for another name: somebody may have made that point here. Only the
// page itself can press buttons.
func (l *lab) handler(address string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { page.Execute(w, controls) })
	mux.HandleFunc("GET /events", l.events)
	mux.HandleFunc("POST /press", func(w http.ResponseWriter, req *http.Request) {
		if err := l.press(req.URL.Query().Get("button")); err != nil {
			http.Error(w, err.Error(), http.StatusConflict)
		}
	})
	guarded := http.NewCrossOriginProtection().Handler(mux)
	served, _, _ := net.SplitHostPort(address)
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		host := (&url.URL{Host: req.Host}).Hostname()
		if _, err := netip.ParseAddr(host); err != nil && host != "localhost" && host != served {
			http.Error(w, "this is not "+req.Host, http.StatusMisdirectedRequest)
			return
		}
		w.Header().Set("Content-Security-Policy", policy)
		guarded.ServeHTTP(w, req)
	})
}

const (
	frame    = 40 * time.Millisecond // between what a page is told and the next
	patience = 5 * time.Second       // for a page that does not read
)

// events tells a page what is new, as long as the page reads.
func (l *lab) events(w http.ResponseWriter, req *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	control := http.NewResponseController(w)
	var shown *run
	var last []byte
	for next := 0; req.Context().Err() == nil; time.Sleep(frame) {
		now := l.run.Load()
		if now != shown {
			shown, next = now, 0
		}
		var news []byte
		if news, next = now.since(next); bytes.Equal(news, last) {
			continue
		}
		last = news
		control.SetWriteDeadline(time.Now().Add(patience))
		fmt.Fprintf(w, "data: %s\n\n", news)
		if control.Flush() != nil {
			return
		}
	}
}
