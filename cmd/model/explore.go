package main

import (
	"context"
	"hash/maphash"
	"runtime"
	"slices"
	"time"
)

// A space is the set of all states found, in the order of their discovery: the
// steps to them are counted breadth first, so that a way found is a shortest.
type space struct {
	blocks [][]state
	parent []uint32 // of each state, the one from which it was found first
	table  []uint32 // of each state, its number plus one; where to look is a hash's business
	seed   maphash.Seed
}

const block = 1 << 16

func newSpace() *space {
	return &space{seed: maphash.MakeSeed(), table: make([]uint32, block)}
}

func (sp *space) len() int              { return len(sp.parent) }
func (sp *space) state(i uint32) *state { return &sp.blocks[i/block][i%block] }

// add returns a state's number, which is a new one if the state is new.
func (sp *space) add(s *state, parent uint32) uint32 {
	slot := sp.slot(s)
	if i := sp.table[slot]; i > 0 {
		return i - 1
	}
	i := uint32(sp.len())
	if i%block == 0 {
		sp.blocks = append(sp.blocks, make([]state, 0, block))
	}
	sp.blocks[i/block] = append(sp.blocks[i/block], *s)
	sp.parent = append(sp.parent, parent)
	sp.table[slot] = i + 1
	if sp.len() > len(sp.table)/4*3 {
		sp.grow()
	}
	return i
}

// slot is where a state's number is, or belongs, in the table.
func (sp *space) slot(s *state) uint64 {
	mask := uint64(len(sp.table) - 1)
	slot := maphash.Comparable(sp.seed, *s) & mask
	for sp.table[slot] > 0 && *sp.state(sp.table[slot] - 1) != *s {
		slot = (slot + 1) & mask
	}
	return slot
}

func (sp *space) grow() {
	sp.table = make([]uint32, 2*len(sp.table))
	for i := range uint32(sp.len()) {
		sp.table[sp.slot(sp.state(i))] = i + 1
	}
}

// way is how a state came about, from the first one on.
func (sp *space) way(i uint32) (way []uint32) {
	for ; i > 0; i = sp.parent[i] {
		way = append(way, i)
	}
	way = append(way, 0)
	slices.Reverse(way)
	return way
}

// A verdict is what an exploration has found.
type verdict struct {
	states, finals int
	depth          int    // steps from the first state: all interleavings of so many have been seen
	complete       bool   // and there are no longer ones
	broken         string // the property that does not hold, and why; empty: all hold
	example        []step // a shortest way to there
	took           time.Duration
}

// explore visits every state of a world, until a property is broken, there are
// more than limit, or ctx ends. It reports once in a while, if report is set.
func (w *world) explore(ctx context.Context, limit int, report func(verdict)) (v verdict) {
	begin, reported := time.Now(), time.Now()
	sp := newSpace()
	sp.add(&state{producer: producer{serves: nobody, waits: nobody}}, 0)
	var edges graph
	for i, level := uint32(0), 1; int(i) < sp.len(); i++ {
		if int(i) == level {
			v.depth, level = v.depth+1, sp.len()
		}
		edges.from()
		for t := range w.next(sp.state(i)) {
			if t.broken != "" {
				v.broken, v.example = t.broken, append(w.steps(sp, i), *t)
				break
			}
			if j := sp.add(&t.state, i); !t.fault && j != i {
				edges.to(j)
			}
		}
		v.states, v.took = sp.len(), time.Since(begin)
		if v.broken != "" || ctx.Err() != nil || sp.len() > limit {
			return v
		}
		if report != nil && i%1024 == 0 && time.Since(reported) > time.Second {
			reported = time.Now()
			report(v)
		}
	}
	v.complete = true
	edges.from()
	w.findStuck(sp, &edges, &v)
	v.took = time.Since(begin)
	return v
}

// steps describes the way to a state.
func (w *world) steps(sp *space, to uint32) (steps []step) {
	way := sp.way(to)
	for k := range len(way) - 1 {
		for t := range w.next(sp.state(way[k])) {
			if t.state == *sp.state(way[k+1]) {
				steps = append(steps, *t)
				break
			}
		}
	}
	return steps
}

// A graph is where the steps lead that are no faults.
type graph struct {
	targets []uint32
	first   []int // of each state, its first step's place in targets; and the end
}

func (g *graph) from()                { g.first = append(g.first, len(g.targets)) }
func (g *graph) to(j uint32)          { g.targets = append(g.targets, j) }
func (g *graph) of(i uint32) []uint32 { return g.targets[g.first[i]:g.first[i+1]] }

// findStuck looks for the states from which no final one can be reached. Most
// steps lead to later states, so that a few sweeps backwards find the others.
func (w *world) findStuck(sp *space, edges *graph, v *verdict) {
	ends := make([]bool, sp.len())
	for changed := true; changed; {
		changed = false
		for i := uint32(sp.len()); i > 0; {
			i--
			if ends[i] {
				continue
			}
			final := sp.state(i).final()
			if final {
				v.finals++
			}
			ends[i] = final || slices.ContainsFunc(edges.of(i), func(j uint32) bool { return ends[j] })
			changed = changed || ends[i]
		}
	}
	if i := slices.Index(ends, false); i >= 0 {
		v.broken = "stuck: from here on, not all can come to an end without a further fault"
		v.example = w.steps(sp, uint32(i))
	}
}

func memory() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.Sys >> 20
}
