package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// heartbeat makes what takes seven seconds on the page take one.
const heartbeat = 150 * time.Millisecond

// A console collects what the program says.
type console struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text.Write(p)
}

func (c *console) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text.String()
}

// open starts the program, and returns the address of its page and what ends it.
func open(t *testing.T) (address string, end func() error) {
	t.Helper()
	ctx, interrupt := context.WithCancel(t.Context())
	var out console
	ended := make(chan error, 1)
	go func() { ended <- serve(ctx, "127.0.0.1:0", heartbeat, &out) }()
	end = sync.OnceValue(func() error { interrupt(); return <-ended })
	t.Cleanup(func() { end() })
	for range 1000 {
		if said := regexp.MustCompile(`http://\S+\d`).FindString(out.String()); said != "" {
			return said, end
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("the lab says no address, but %q", &out)
	return "", nil
}

// push presses a button, and returns the answer's status.
func push(t *testing.T, address, button string) int {
	t.Helper()
	answer, err := http.Post(address+"/press?button="+button, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	return answer.StatusCode
}

// A view is what a page knows of a run.
type view struct {
	picture
	Events []event
}

// watch is a page that reads until something holds, and returns the last view
// of it with all events.
func watch(t *testing.T, address string, holds func(view) bool) view {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	request, _ := http.NewRequestWithContext(ctx, "GET", address+"/events", nil)
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	var last view
	lines := bufio.NewScanner(answer.Body)
	for lines.Buffer(nil, 1<<20); lines.Scan(); {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		var v view
		if err := json.Unmarshal([]byte(data), &v); err != nil {
			t.Fatalf("%v in %s", err, data)
		}
		if v.Run == last.Run {
			v.Events = append(last.Events, v.Events...)
		}
		if last = v; holds(v) {
			return v
		}
	}
	t.Fatalf("it did not come to that: %+v: %v", last.picture, lines.Err())
	return last
}

// count is how many events of a view are of a kind, and say something.
func (v view) count(what, text string) (n int) {
	for _, e := range v.Events {
		if e.What == what && strings.Contains(e.Text, text) {
			n++
		}
	}
	return n
}

// at is when the first such event was.
func (v view) at(what, text string) float64 {
	for _, e := range v.Events {
		if e.What == what && strings.Contains(e.Text, text) {
			return e.At
		}
	}
	return -1
}

// over says whether both ends of the stream have ended.
func (v view) over() bool {
	return v.count("returns", "") > 0 && !slices.ContainsFunc(v.Readers, func(p *process) bool { return p.Fate == "" })
}

// sent is how many elements have been told.
func (v view) sent() (n int) {
	for _, e := range v.Events {
		if _, elements, ok := strings.Cut(e.Text, "Elements:["); ok && e.What == "told" {
			n += len(strings.Fields(elements))
		}
	}
	return n
}

func TestScenarios(t *testing.T) {
	told := map[string]func(v view) bool{
		"slow": func(v view) bool { return v.Waited > 1 && v.Most == 6 },
		"lost": func(v view) bool { return v.count("told", "Subscribe{") > 1 && v.sent() > v.Put },
		"acknowledgement": func(v view) bool {
			return v.count("told", "Received:7") > 1 && v.at("returns", "Complete returns <nil>")-v.at("calls", "Complete") > 0.3
		},
		"refused": func(v view) bool { return strings.HasSuffix(v.Readers[1].Fate, ": already subscribed") },
		"silence": func(v view) bool {
			noticed := slices.IndexFunc(v.Events, func(e event) bool { return e.What == "lost a connection" && e.At > v.at("stall", "") })
			return noticed >= 0 && v.Events[noticed].At-v.at("stall", "") > 1.5 && v.count("told", "Subscribe{") > 1
		},
		"successor": func(v view) bool {
			first, next := v.Readers[0], v.Readers[1]
			return first.Fate == "killed" && next.First+v.Again == first.Consumed+v.Died && next.First <= first.Received
		},
	}
	for name, scenario := range scenarios {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			address, _ := open(t)
			push(t, address, name)
			v := watch(t, address, func(v view) bool { return v.Story == name && v.over() })
			if v.Put != scenario.Elements || v.Consumed+v.Died != v.Put || v.Lost+v.Repeated+v.Disordered > 0 {
				t.Errorf("it counts %+v", v.counter)
			}
			if name != "successor" && v.Died+v.Again > 0 {
				t.Errorf("no consumer died, and it counts %+v", v.counter)
			}
			if !told[name](v) {
				t.Errorf("the end is told from %+v, %+v and %+v", v.picture, v.Readers[0], v.Readers[len(v.Readers)-1])
			}
		})
	}
}

func TestCounterSeesEveryFault(t *testing.T) {
	type is = []int
	for _, test := range []struct {
		name     string
		consumed is
		want     counter
	}{
		{"in order", is{0, 1, 2, 3}, counter{Consumed: 4}},
		{"lost", is{0, 1, 3}, counter{Consumed: 3, Lost: 1}},
		{"lost at the end", is{0, 1, 2}, counter{Consumed: 3, Lost: 1}},
		{"lost at the beginning", is{2, 3}, counter{Consumed: 2, Lost: 2}},
		{"repeated", is{0, 1, 1, 2, 3}, counter{Consumed: 4, Repeated: 1}},
		{"out of order", is{0, 2, 1, 3}, counter{Consumed: 4, Disordered: 1}},
	} {
		c, p := counter{}, &process{}
		for _, number := range test.consumed {
			c.count(p, number)
		}
		c.reach(4)
		c.audit([]*process{p})
		if got := text(c); got != text(test.want) {
			t.Errorf("%s: %s, not %s", test.name, got, text(test.want))
		}
	}
}

func TestCounterFollowsAHandover(t *testing.T) {
	c := counter{}
	dead := &process{Name: "reader-1", Fate: "killed"}
	for number := range 3 {
		c.count(dead, number)
	}
	dead.Received = 5
	next := &process{Name: "reader-2", First: 4, Consumed: 4, Received: 4}
	c.count(next, 4)
	if c.audit([]*process{dead, next}); c.Consumed != 4 || c.Died != 1 || c.Lost != 0 {
		t.Errorf("element 3 died with its consumer: %+v", c)
	}
	dead.Received = 3
	if c.audit([]*process{dead, next}); c.Died != 0 || c.Lost != 1 {
		t.Errorf("element 3 never was in a window: %+v", c)
	}
	if c.count(&process{Name: "reader-3", First: 4, Consumed: 4}, 4); c.Again != 1 || c.Repeated != 0 {
		t.Errorf("element 4 was consumed and not acknowledged: %+v", c)
	}
}

func text(v any) string {
	b, _ := json.Marshal(v)
	return string(b)
}

func TestTimeStandsStill(t *testing.T) {
	t.Parallel()
	address, _ := open(t)
	progress := func(v view) int { return v.Put + v.Consumed + v.count("told", "") }
	after := func(d time.Duration) view {
		time.Sleep(d)
		return watch(t, address, func(view) bool { return true })
	}
	watch(t, address, func(v view) bool { return v.Consumed > 2 })
	push(t, address, "pause")
	before := after(5 * heartbeat)
	for step := range 6 {
		now := after(2 * heartbeat)
		if progress(now) != progress(before)+step {
			t.Fatalf("after %d steps it went from %+v to %+v", step, before.picture, now.picture)
		}
		push(t, address, "step")
		watch(t, address, func(v view) bool { return progress(v) > progress(now) })
	}
	push(t, address, "pause")
	watch(t, address, func(v view) bool { return v.Consumed > before.Consumed+5 })
}

func TestButtons(t *testing.T) {
	t.Parallel()
	address, _ := open(t)
	last := func(v view) *process { return v.Readers[len(v.Readers)-1] }
	for _, step := range []struct {
		button string
		status int
		then   func(v view) bool
	}{
		{"another", http.StatusConflict, func(v view) bool { return v.Consumed > 2 }},
		{"produce%2B", http.StatusOK, func(v view) bool { return v.Produce == 4 }},
		{"produce-", http.StatusOK, func(v view) bool { return v.Produce == 2 }},
		{"bandwidth", http.StatusOK, func(v view) bool { return v.Bandwidth == 1 && v.Consumed > 4 }},
		{"bandwidth", http.StatusOK, func(v view) bool { return v.Bandwidth == 100 }},
		{"kill", http.StatusOK, func(v view) bool { return last(v).Fate == "killed" && v.Blocked }},
		{"rival", http.StatusConflict, func(v view) bool { return true }},
		{"kill", http.StatusConflict, func(v view) bool { return true }},
		{"another", http.StatusOK, func(v view) bool { return len(v.Readers) == 2 && last(v).Consumed > last(v).First }},
		{"fail", http.StatusOK, func(v view) bool { return strings.HasSuffix(last(v).Fate, "the sensor is broken") && v.over() }},
		{"complete", http.StatusConflict, func(v view) bool { return true }},
		{"window%2B", http.StatusOK, func(v view) bool { return v.Window == 7 && v.Consumed > 1 }},
		{"buffer-", http.StatusOK, func(v view) bool { return v.Buffer == 3 && v.Consumed > 1 }},
		{"cancel", http.StatusOK, func(v view) bool { return last(v).Fate == "has cancelled" && v.over() }},
		{"nonsense", http.StatusConflict, func(v view) bool { return true }},
		{"anew", http.StatusOK, func(v view) bool { return v.Consumed > 1 && !v.over() }},
	} {
		if got := push(t, address, step.button); got != step.status {
			t.Errorf("%s is answered by %d, not %d", step.button, got, step.status)
		}
		v := watch(t, address, step.then)
		if v.Lost+v.Repeated+v.Disordered > 0 {
			t.Errorf("after %s it counts %+v", step.button, v.counter)
		}
	}
}

func TestOnlyThePageCanPress(t *testing.T) {
	t.Parallel()
	address, _ := open(t)
	host := strings.TrimPrefix(address, "http://")
	_, port, _ := net.SplitHostPort(host)
	for _, test := range []struct {
		method, path, host, origin string
		want                       int
	}{
		{"POST", "/press?button=latency", host, "", http.StatusOK},
		{"POST", "/press?button=latency", host, "http://" + host, http.StatusOK},
		{"POST", "/press?button=latency", "localhost:" + port, "http://localhost:" + port, http.StatusOK},
		{"POST", "/press?button=latency", host, "http://evil.example", http.StatusForbidden},
		{"POST", "/press?button=latency", host, "null", http.StatusForbidden},
		{"POST", "/press?button=latency", "evil.example:" + port, "http://evil.example:" + port, http.StatusMisdirectedRequest},
		{"GET", "/events", "evil.example", "", http.StatusMisdirectedRequest},
		{"GET", "/press?button=latency", host, "", http.StatusMethodNotAllowed},
		{"GET", "/", host, "", http.StatusOK},
		{"GET", "/", "localhost", "", http.StatusOK},
		{"GET", "/other", host, "", http.StatusNotFound},
	} {
		request, _ := http.NewRequestWithContext(t.Context(), test.method, address+test.path, nil)
		if request.Host = test.host; test.origin != "" {
			request.Header.Set("Origin", test.origin)
		}
		answer, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if answer.StatusCode != test.want {
			t.Errorf("%+v is answered by %d", test, answer.StatusCode)
		}
	}
}

// A stuck page takes nothing of what it is sent.
type stuck struct {
	*httptest.ResponseRecorder
	writes  chan struct{}
	release <-chan struct{}
}

func (s stuck) Write(p []byte) (int, error) {
	s.writes <- struct{}{}
	<-s.release
	return len(p), nil
}

func TestAPageThatDoesNotReadHoldsNothingUp(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	l := &lab{ctx: ctx, second: heartbeat}
	if err := l.begin("", usual); err != nil {
		t.Fatal(err)
	}
	defer l.going.Wait()
	var pages sync.WaitGroup
	defer pages.Wait()
	defer cancel()
	page := stuck{httptest.NewRecorder(), make(chan struct{}, 100), ctx.Done()}
	pages.Go(func() {
		l.handler("page").ServeHTTP(page, httptest.NewRequestWithContext(ctx, "GET", "http://page/events", nil))
	})
	<-page.writes
	server := httptest.NewServer(l.handler(""))
	defer server.Close()
	push(t, server.URL, "slow")
	watch(t, server.URL, func(v view) bool { return v.Story == "slow" && v.over() })
}

func TestAPortInUse(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	err = serve(t.Context(), taken.Addr().String(), heartbeat, io.Discard)
	if want := taken.Addr().String() + ": bind: address already in use"; err == nil || !strings.HasSuffix(err.Error(), want) {
		t.Errorf("the error is %v", err)
	}
}

func TestNothingIsLeft(t *testing.T) {
	before := runtime.NumGoroutine()
	for _, button := range []string{"silence", "pause", "kill"} { // in the middle of these
		address, end := open(t)
		push(t, address, button)
		page, err := http.Get(address + "/events")
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * heartbeat)
		if err := end(); err != nil {
			t.Errorf("%s: %v", button, err)
		}
		page.Body.Close()
	}
	http.DefaultClient.CloseIdleConnections()
	for range 500 {
		if runtime.NumGoroutine() <= before {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	stacks := make([]byte, 1<<20)
	t.Errorf("%d goroutines before, and now:\n%s", before, stacks[:runtime.Stack(stacks, true)])
}
