package main

import (
	"bufio"
	"context"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Whoever starts first, each process prints what the README shows, and ends.
func TestHello(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	binary := filepath.Join(t.TempDir(), "hello")
	if out, err := exec.Command("go", "build", "-o", binary, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, order := range [][2]string{{"produce", "consume"}, {"consume", "produce"}} {
		t.Run(order[0]+" first", func(t *testing.T) {
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			address, printed := listener.Addr().String(), ""
			if order[0] == "produce" {
				listener.Close()
			}
			first := start(ctx, t, binary, address, order[0])
			if order[0] == "produce" {
				printed, _ = first.out.ReadString('\n') // so it has started
			} else {
				conn, err := listener.Accept() // so it looks for the producer
				if err != nil {
					t.Fatal(err)
				}
				conn.Close()
				listener.Close()
			}
			second := start(ctx, t, binary, address, order[1])
			first.prints(t, printed, shown(t, order[0]))
			second.prints(t, "", shown(t, order[1]))
		})
	}
}

type process struct {
	*exec.Cmd
	out *bufio.Reader
}

func start(ctx context.Context, t *testing.T, binary, address, role string) process {
	t.Helper()
	cmd := exec.CommandContext(ctx, binary, "-address", address, role)
	cmd.Stderr = t.Output()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return process{cmd, bufio.NewReader(out)}
}

// prints requires that the process ends well, and what it has printed.
func (p process) prints(t *testing.T, before, want string) {
	t.Helper()
	rest, _ := io.ReadAll(p.out)
	if err := p.Wait(); err != nil || before+string(rest) != want {
		t.Errorf("%v: %v: printed %q instead of %q", p.Args, err, before+string(rest), want)
	}
}

// What the README says of a program elsewhere works, from a copy of this directory.
func TestOwnProgram(t *testing.T) {
	if _, err := exec.LookPath("sh"); err != nil {
		t.Skip(err)
	}
	_, block, _ := strings.Cut(readme(t), "```\nCASTY=$HOME/casty # this repository\n")
	commands, _, _ := strings.Cut(block, "```")
	repository, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	shell := exec.Command("sh", "-ec", commands)
	shell.Dir, shell.Env = t.TempDir(), append(os.Environ(), "CASTY="+repository)
	if out, err := shell.CombinedOutput(); err != nil || commands == "" {
		t.Fatalf("%v: %s", err, out)
	}
	if _, err := os.Stat(filepath.Join(shell.Dir, "greeter", "greeter")); err != nil {
		t.Error(err)
	}
}

// shown is what the README says that a role prints.
func shown(t *testing.T, role string) string {
	t.Helper()
	_, after, _ := strings.Cut(readme(t), "\n$ go run ./cmd/hello "+role+"\n")
	lines, _, _ := strings.Cut(after, "```")
	if lines == "" {
		t.Fatalf("the README does not show what %s prints", role)
	}
	return lines
}

func readme(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
