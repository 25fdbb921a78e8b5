package clock

import (
	"fmt"
	"testing"
	"time"
)

// world is a machine and its time sources, in which the truth is known.
type world struct {
	raw   int64 // CLOCK_MONOTONIC_RAW now
	truth int64 // UTC minus CLOCK_MONOTONIC_RAW
	real  int64 // CLOCK_REALTIME minus CLOCK_MONOTONIC_RAW
	mono  int64 // CLOCK_MONOTONIC minus CLOCK_MONOTONIC_RAW
	slept int64 // CLOCK_BOOTTIME minus CLOCK_MONOTONIC
}

const (
	ms = int64(time.Millisecond)
	s1 = int64(time.Second)
)

func newWorld() *world {
	return &world{raw: 1000 * s1, truth: 1795397000 * s1, real: 1795397000*s1 - 3*ms, mono: 5}
}

func (w *world) reading() Reading {
	return Reading{Real: w.raw + w.real, Mono: w.raw + w.mono, Raw: w.raw, Boot: w.raw + w.mono + w.slept, Width: 2000}
}

// server is one source, as it is.
type server struct {
	wrong     int64 // its clock against UTC, ns; honest if at most disp+delay/2
	disp      int64 // root dispersion
	delay     int64 // root delay
	out, back int64 // on the wire
	leap      int
}

// answer asks a server. The exchange takes no time of the world's.
func (w *world) answer(name string, v server) Sample {
	begin := w.raw - v.out - v.back - 3000
	sent := begin + 1000
	t2 := sent + v.out + w.truth + v.wrong
	return Sample{
		Name: name, Address: "127.0.0.1:123", Sent: 1, Good: 1,
		T1: sent + w.real, T2: t2, T3: t2 + 500, T4: sent + v.out + 500 + v.back + w.real,
		Before: Reading{Real: begin + w.real, Raw: begin, Width: 400}, After: Reading{Real: w.raw + w.real, Raw: w.raw, Width: 400},
		RefTime: t2 - 10*s1, Delay: v.delay, Disp: v.disp, Prec: 60, Stratum: 1, RefID: "54455354", Leap: v.leap, Version: 4,
	}
}

func (w *world) ask(servers ...server) (out []Sample) {
	for i, v := range servers {
		out = append(out, w.answer(names[i], v))
	}
	return out
}

var names = func() (n []string) {
	for i := range MaxSources {
		n = append(n, fmt.Sprintf("s%d", i))
	}
	return n
}()

func honest(n int) []server {
	out := make([]server, n)
	for i := range out {
		out[i] = server{wrong: int64(i) * 1000, disp: ms, out: 2 * ms, back: 3 * ms}
	}
	return out
}

// with returns servers of which the last ones are replaced by others.
func with(servers []server, others ...server) []server {
	return append(servers[:len(servers)-len(others):len(servers)-len(others)], others...)
}

// daemon runs a discipline in a world, and keeps what it records.
type daemon struct {
	*world
	t      *testing.T
	d      Discipline
	log    []Evidence
	number uint64
}

func start(t *testing.T, w *world, p Policy, sources int) *daemon {
	t.Helper()
	if err := p.Validate(); err != nil {
		t.Fatal(err)
	}
	e, d := Begin(Start{Policy: p, Sources: names[:sources], BootID: "boot", Reading: w.reading()})
	return &daemon{world: w, t: t, d: d, log: []Evidence{e}}
}

func (x *daemon) round(servers ...server) *Round {
	x.number++
	e, d := x.d.Measure(Measurement{Number: x.number, Reading: x.reading(), Samples: x.ask(servers...)})
	x.d, x.log = d, append(x.log, e)
	return e.Round
}

func (x *daemon) disturb(reason string, moved int64) {
	e, d := x.d.Disturb(reason, moved, "", x.reading())
	x.d, x.log = d, append(x.log, e)
}

// wait lets time pass, and records what that changes.
func (x *daemon) wait(d time.Duration) {
	x.raw += int64(d)
	if e, d, ok := x.d.Pass(x.reading()); ok {
		x.d, x.log = d, append(x.log, e)
	}
}

func (x *daemon) stamp() Stamp {
	e := x.d.Estimate()
	return e.At(x.reading())
}

// wants compares the state, and that stamps which claim to know hold the truth.
func (x *daemon) wants(s State) {
	x.t.Helper()
	got := x.stamp()
	if got.State != s || x.d.state != s {
		x.t.Errorf("state %v, recorded %v, want %v", got.State, x.d.state, s)
	}
	if utc := x.raw + x.truth; got.HasEstimate && (got.State == Synced || got.State == Holdover) && (utc < got.Earliest() || utc > got.Latest()) {
		x.t.Errorf("truth %d outside %d..%d", utc, got.Earliest(), got.Latest())
	}
}

// verified replays the log as an auditor does, with stamps made after each entry.
func (x *daemon) verified() {
	x.t.Helper()
	var c Checker
	for i, e := range x.log {
		for _, f := range c.Evidence(&e) {
			x.t.Errorf("entry %d: %v", i, f)
		}
	}
	for _, f := range c.Stamp(x.stamp(), nil) {
		x.t.Errorf("stamp: %v", f)
	}
}

func (x *daemon) last() Evidence { return x.log[len(x.log)-1] }
