package main

import (
	"fmt"
	"io"
	"os"
	"sync"
)

// A console takes whole lines from many goroutines.
type console struct {
	colour bool
	width  func() int // columns; 0 where lines may be of any length

	mu      sync.Mutex // guards what follows
	w       io.Writer
	opening []byte      // the lines that say who is who
	broken  func(error) // is called when a line cannot be written
}

// newConsole uses colour on a terminal, unless https://no-color.org says not to.
func newConsole(w io.Writer) *console {
	c := &console{w: w, width: func() int { return 0 }, broken: func(error) {}}
	file, ok := w.(*os.File)
	if !ok {
		return c
	}
	if info, err := file.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
		c.colour = os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
		c.width = func() int { return columns(file) }
	}
	return c
}

func (c *console) Write(lines []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n, err := c.w.Write(lines)
	if err != nil {
		c.broken(err)
	}
	return n, err
}

// say writes a line that begins with whom or what it is about.
func (c *console) say(about, format string, args ...any) {
	fmt.Fprintf(c, "%-8s %s\n", about, fmt.Sprintf(format, args...))
}

// introduce says who somebody is.
func (c *console) introduce(about, format string, args ...any) {
	c.say(about, format, args...)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.opening = fmt.Appendf(c.opening, "%-8s %s\n", about, fmt.Sprintf(format, args...))
}

// introductions are all of them so far.
func (c *console) introductions() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.opening
}

type colour int // its ANSI code

const (
	red    colour = 31
	yellow colour = 33
)

func (c *console) paint(in colour, text string) string {
	if !c.colour {
		return text
	}
	return fmt.Sprintf("\x1b[%dm%s\x1b[0m", in, text)
}
