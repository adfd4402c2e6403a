package main

import (
	"fmt"
	"strings"
	"testing"
)

func explored(t *testing.T, args ...string) verdict {
	t.Helper()
	w, limit, err := parse(args)
	if err != nil {
		t.Fatal(err)
	}
	v := w.explore(t.Context(), limit, nil)
	t.Logf("%v: %d states, %q", args, v.states, v.broken)
	return v
}

func TestNothingIsUnsafeOrStuck(t *testing.T) {
	for _, args := range []string{
		"-n 1 -cuts 0 -capacity 2",
		"-n 1 -losses 0 -cuts 2 -twice",
		"-losses 0 -cuts 0 -crashes 1 -again 1 -silent -cancels",
		"-consumers 1 -crashes 1 -again 1 -cancels",
		"-consumers 1 -losses 0 -n 3 -w 2 -slow",
		"-consumers 1 -losses 0 -repeats",
	} {
		if v := explored(t, strings.Fields(args)...); v.broken != "" || !v.complete {
			t.Errorf("%s: %s", args, v.broken)
		}
	}
}

// A mistake that breaks something must break just that, in the world that the
// table names. One that breaks nothing must at least make a difference there.
func TestMistakes(t *testing.T) {
	for _, m := range mistakes {
		v := explored(t, "-bug", m.name)
		if breaks, _, _ := strings.Cut(v.broken, ":"); breaks != m.breaks {
			t.Errorf("%s breaks %q, not %q", m.name, breaks, m.breaks)
		}
		if m.breaks == "" && v.states == explored(t, strings.Fields(m.flags)...).states {
			t.Errorf("%s makes no difference", m.name)
		}
	}
}

func TestUsage(t *testing.T) {
	for _, c := range []struct {
		args string
		code int
		out  string
		log  string
	}{
		{"-h", 0, "norewind", ""},
		{"-n 7", 2, "", "not a number from 0 to 6"},
		{"-nonsense", 2, "", "not defined"},
		{"more", 2, "", `unknown argument "more"`},
		{"-bug moth", 2, "", `no mistake "moth"`},
		{"-limit 10", 2, "gave up", ""},
		{"-consumers 1 -losses 0", 0, "nothing is unsafe", ""},
		{"-bug gap", 1, "order: A is handed position 2 after 0", ""},
	} {
		var out, log strings.Builder
		code := run(t.Context(), strings.Fields(c.args), &out, &log)
		if code != c.code || !strings.Contains(out.String(), c.out) || !strings.Contains(log.String(), c.log) || strings.Count(log.String(), "\n") > 1 {
			t.Error(fmt.Sprintf("%s: exit %d", c.args, code), out.String(), log.String())
		}
	}
}
