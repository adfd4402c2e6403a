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
//	page.html     the page, which does the drawing
package main

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	address := flag.String("address", "127.0.0.1:25530", "`host:port` of the page; port 0 takes a free one")
	heartbeat := flag.Duration("heartbeat", time.Second, "what the page calls a second; more is slow motion")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // so that a second Ctrl-C does not wait for anything
	if err := serve(ctx, *address, *heartbeat, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
}

// serve serves the page until ctx ends.
func serve(ctx context.Context, address string, heartbeat time.Duration, out io.Writer) error {
	if least := 10 * time.Millisecond; heartbeat < least {
		return fmt.Errorf("the heartbeat is %v: it must be at least %v", heartbeat, least)
	}
	listener, err := net.Listen("tcp", address)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("%s is in use; -address 127.0.0.1:0 takes a free port", address)
	case err != nil:
		return err
	}
	defer listener.Close()
	l := &lab{heartbeat: heartbeat}
	if err := l.press("anew", 0); err != nil {
		return err
	}
	defer func() { l.now().close() }()
	server := &http.Server{Handler: l.handler(address), ReadHeaderTimeout: patience,
		BaseContext: func(net.Listener) context.Context { return ctx }}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	fmt.Fprintf(out, "the lab is at http://%v, until Ctrl-C\n", listener.Addr())
	select {
	case err := <-served:
		return err
	case <-ctx.Done(): // which every page is told
	}
	soon, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	server.Shutdown(soon)
	<-served
	return server.Close()
}

//go:embed page.html
var page string

// policy lets the page run its own script and nothing else, from nowhere else.
func policy() string {
	_, script, _ := strings.Cut(page, "<script>")
	script, _, _ = strings.Cut(script, "</script>")
	hash := sha256.Sum256([]byte(script))
	return "default-src 'none'; connect-src 'self'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; " +
		"frame-ancestors 'none'; script-src 'sha256-" + base64.StdEncoding.EncodeToString(hash[:]) + "'"
}

// handler serves those who ask for a number, localhost or the host of address,
// and not for another name: somebody may have made that point here. Only the
// page itself can press buttons.
func (l *lab) handler(address string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, page) })
	mux.HandleFunc("GET /events", l.events)
	mux.HandleFunc("POST /press", func(w http.ResponseWriter, req *http.Request) {
		asked := req.URL.Query()
		value, _ := strconv.Atoi(asked.Get("value")) // for a button that sets something
		if err := l.press(asked.Get("button"), value); err != nil {
			http.Error(w, err.Error(), http.StatusConflict)
		}
	})
	guarded, csp := http.NewCrossOriginProtection().Handler(mux), policy()
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		host := hostOf(req.Host)
		if _, err := netip.ParseAddr(host); err != nil && host != "localhost" && host != hostOf(address) {
			http.Error(w, "this is not "+req.Host, http.StatusMisdirectedRequest)
			return
		}
		w.Header().Set("Content-Security-Policy", csp)
		guarded.ServeHTTP(w, req)
	})
}

func hostOf(address string) string {
	if host, _, err := net.SplitHostPort(address); err == nil {
		return host
	}
	return address
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
	for next := 0; ; {
		if now := l.now(); now != shown {
			shown, next = now, 0
		}
		var update []byte
		var changed <-chan struct{}
		update, next, changed = shown.since(next)
		control.SetWriteDeadline(time.Now().Add(patience))
		fmt.Fprintf(w, "data: %s\n\n", update)
		if control.Flush() != nil {
			return
		}
		time.Sleep(frame)
		select {
		case <-changed:
		case <-req.Context().Done():
			return
		}
	}
}
