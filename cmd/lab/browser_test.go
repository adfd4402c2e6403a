//go:build browser

package main

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A browser is a headless Chromium, told what to do through a pipe.
type browser struct {
	t       *testing.T
	to      io.Writer
	from    *bufio.Reader
	session string
	calls   int
	faults  []string // errors that the page has caused, or logged
}

type reply struct {
	ID     int
	Method string
	Params json.RawMessage
	Result json.RawMessage
	Error  *struct{ Message string }
}

// browse opens a page in a window of some size.
func browse(t *testing.T, address string, width, height int, scheme string) *browser {
	t.Helper()
	var path string
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if found, err := exec.LookPath(name); err == nil {
			path = found
			break
		}
	}
	if path == "" {
		t.Skip("there is no Chromium")
	}
	theirIn, toThem, _ := os.Pipe()
	fromThem, theirOut, _ := os.Pipe()
	command := exec.CommandContext(t.Context(), path, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--user-data-dir="+t.TempDir())
	command.ExtraFiles = []*os.File{theirIn, theirOut}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	theirIn.Close()
	theirOut.Close()
	b := &browser{t: t, to: toThem, from: bufio.NewReader(fromThem)}
	t.Cleanup(func() { // to lose the pipe ends it
		toThem.Close()
		fromThem.Close()
		command.Wait()
	})
	var made struct{ TargetID, SessionID string }
	b.call("Target.createTarget", is{"url": "about:blank"}, &made)
	b.call("Target.attachToTarget", is{"targetId": made.TargetID, "flatten": true}, &made)
	b.session = made.SessionID
	for _, domain := range []string{"Runtime", "Log", "Page"} {
		b.call(domain+".enable", nil, nil)
	}
	b.call("Emulation.setDeviceMetricsOverride", is{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false}, nil)
	b.call("Emulation.setEmulatedMedia", is{"features": []is{{"name": "prefers-color-scheme", "value": scheme}}}, nil)
	b.call("Page.navigate", is{"url": address}, nil)
	b.until("the page shows the stream", "Number(document.querySelector('#counter b')?.textContent) > 0")
	return b
}

type is map[string]any

// call does what the browser's protocol calls a method.
func (b *browser) call(method string, params is, result any) {
	b.t.Helper()
	b.calls++
	request := is{"id": b.calls, "method": method, "params": params}
	if b.session != "" {
		request["sessionId"] = b.session
	}
	if params == nil {
		delete(request, "params")
	}
	text, _ := json.Marshal(request)
	if _, err := b.to.Write(append(text, 0)); err != nil {
		b.t.Fatal(method, err)
	}
	for {
		text, err := b.from.ReadBytes(0)
		if err != nil {
			b.t.Fatal(method, err)
		}
		var r reply
		if err := json.Unmarshal(text[:len(text)-1], &r); err != nil {
			b.t.Fatal(err)
		}
		switch {
		case r.Method == "Runtime.exceptionThrown", r.Method == "Runtime.consoleAPICalled", r.Method == "Log.entryAdded":
			b.faults = append(b.faults, string(r.Params))
		case r.ID != b.calls:
		case r.Error != nil:
			b.t.Fatalf("%s: %s", method, r.Error.Message)
		default:
			if result != nil {
				if err := json.Unmarshal(r.Result, result); err != nil {
					b.t.Fatal(err)
				}
			}
			return
		}
	}
}

// value is that of an expression on the page.
func (b *browser) value(expression string) (value any) {
	b.t.Helper()
	var r struct{ Result struct{ Value any } }
	b.call("Runtime.evaluate", is{"expression": expression, "returnByValue": true}, &r)
	return r.Result.Value
}

func (b *browser) until(what, expression string) {
	b.t.Helper()
	for range 600 {
		if b.value(expression) == true {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	b.t.Fatalf("not in time: %s; the page says: %v", what, b.value("document.body.innerText"))
}

func (b *browser) key(key string) {
	b.t.Helper()
	b.call("Input.dispatchKeyEvent", is{"type": "keyDown", "key": key, "text": key}, nil)
	b.call("Input.dispatchKeyEvent", is{"type": "keyUp", "key": key}, nil)
}

// look saves a picture of the page, if PICTURES names a folder.
func (b *browser) look(name string) {
	b.t.Helper()
	var picture struct{ Data string }
	if folder := os.Getenv("PICTURES"); folder != "" {
		b.call("Page.captureScreenshot", nil, &picture)
		image, _ := base64.StdEncoding.DecodeString(picture.Data)
		if err := os.WriteFile(filepath.Join(folder, name+".png"), image, 0o644); err != nil {
			b.t.Error(err)
		}
	}
}

func (b *browser) faultless() {
	b.t.Helper()
	for _, fault := range b.faults {
		b.t.Error("the browser reports", fault)
	}
}

func TestScenariosInABrowser(t *testing.T) {
	address, _ := open(t)
	b := browse(t, address, 1200, 900, "light")
	for i, name := range []string{"slow", "lost", "acknowledgement", "successor", "refused", "silence"} {
		b.key(fmt.Sprint(i + 1))
		b.until(name+" begins", fmt.Sprintf("p.Story == %q", name))
		b.until(name+" is in its middle", "p.Consumed > 3")
		b.look(name)
		b.until(name+" is told", "document.querySelector('#closing').textContent > ''")
		b.look(name + "-end")
		closing := fmt.Sprint(b.value("document.querySelector('#closing').textContent"))
		t.Log(closing)
		if !strings.Contains(closing, fmt.Sprintf(" %d put, ", scenarios[name].Elements)) || !strings.HasSuffix(closing, "lost 0, repeated 0, out of order 0.") ||
			strings.Contains(closing, "undefined") || strings.Contains(closing, "NaN") {
			t.Errorf("%s ends with: %s", name, closing)
		}
		if bad := b.value("document.querySelector('#counter.bad') != null"); bad != false {
			t.Errorf("%s: the counter is red", name)
		}
	}
	b.faultless()
}

func TestButtonsAndKeysInABrowser(t *testing.T) {
	address, _ := open(t)
	narrow := browse(t, address, 800, 1000, "dark")
	wide := browse(t, address, 1400, 900, "light")
	if width := narrow.value("document.documentElement.scrollWidth").(float64); width > 800 {
		t.Errorf("in a window of 800 pixels the page is %v wide", width)
	}
	narrow.key(" ")
	wide.until("the other page stands still as well", "p.Standing && document.querySelectorAll('li.held').length > 0")
	wide.until("what is held is said", "[...document.querySelectorAll('li.held')].every(li => li.getAttribute('aria-label').endsWith('is to be told'))")
	narrow.look("narrow-held")
	narrow.key(" ")
	narrow.key("k")
	wide.until("the window is larger", "p.Window == 7 && document.querySelector('#window').value == '7'")
	narrow.key("n")
	narrow.until("a button that cannot be pressed is not", "document.querySelector('#said').textContent == '' && p.Readers.length == 1")
	narrow.key("c")
	wide.until("crosses are shown, and the stream goes on", "rungs.some(r => r.text.includes('cut')) && p.Consumed > 8")
	wide.until("the counter agrees", "document.querySelector('#counter').className == ''")
	narrow.key("x")
	wide.until("the dead consumer is shown", "document.querySelector('#path').textContent.includes('reader-1: killed') && p.Blocked")
	wide.look("wide-killed")
	if keyless := wide.value("[...document.querySelectorAll('button')].filter(b => !b.getAttribute('aria-keyshortcuts')).map(b => b.textContent).join()"); keyless != "Keys" {
		t.Errorf("without a key are: %v", keyless)
	}
	wide.value("toggle.click()")
	wide.key("n")
	narrow.key("n")
	wide.until("the keys of one page are off, and not of the other", "p.Readers.length > 1")
	if n := wide.value("p.Readers.length"); n != 2.0 {
		t.Errorf("there are %v consumers, not 2", n)
	}
	narrow.value("p.Lost = 1; showRest()")
	if red := narrow.value("document.querySelector('#counter').className"); red != "bad" {
		t.Error("a loss is not shown red")
	}
	narrow.faultless()
	wide.faultless()
}
