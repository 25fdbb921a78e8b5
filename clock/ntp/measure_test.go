package ntp

import (
	"context"
	"sync"
	"testing"
	"time"

	"bulla/clock"
)

// logbook is a log that keeps the clock's evidence, and says no when told to.
type logbook struct {
	mu      sync.Mutex
	entries []clock.Evidence
	refuse  error
	grown   chan struct{}
}

func newLogbook() *logbook { return &logbook{grown: make(chan struct{}, 1000)} }

func (l *logbook) record(_ context.Context, e clock.Evidence) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.refuse != nil {
		return l.refuse
	}
	l.entries = append(l.entries, e)
	select {
	case l.grown <- struct{}{}:
	default:
	}
	return nil
}

func (l *logbook) all() []clock.Evidence {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]clock.Evidence(nil), l.entries...)
}

// testPolicy is the default with rounds as fast as a test wants them.
func testPolicy() clock.Policy {
	p := clock.DefaultPolicy()
	p.Poll = int64(time.Second)
	return p
}

// runMonitor runs a monitor over real sockets until the test ends.
func runMonitor(t *testing.T, cfg Config) *Monitor {
	t.Helper()
	m, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != context.Canceled {
			t.Errorf("the monitor ended with %v", err)
		}
	})
	return m
}

// until waits for evidence that satisfies ok.
func (l *logbook) until(t *testing.T, what string, ok func(clock.Evidence) bool) clock.Evidence {
	t.Helper()
	late := time.After(20 * time.Second)
	for seen := 0; ; {
		all := l.all()
		for _, e := range all[seen:] {
			if ok(e) {
				return e
			}
		}
		seen = len(all)
		select {
		case <-l.grown:
		case <-late:
			t.Fatalf("no %s in 20 s; %d entries", what, seen)
		}
	}
}

func goodRound(e clock.Evidence) bool { return e.Round != nil && e.Round.Mapping != nil }

// checked verifies a whole log as an auditor would.
func (l *logbook) checked(t *testing.T) *clock.Checker {
	t.Helper()
	var c clock.Checker
	for i, e := range l.all() {
		for _, f := range c.Evidence(&e) {
			t.Errorf("entry %d: %v", i, f)
		}
	}
	return &c
}

func TestMeasuresAgainstLoopbackServers(t *testing.T) {
	t.Parallel()
	var sources []Source
	for _, b := range []behaviour{{offset: 3 * time.Millisecond}, {offset: 3 * time.Millisecond}, {offset: 3 * time.Millisecond}, {offset: 253 * time.Millisecond}} {
		sources = append(sources, Source{Address: newResponder(t, b).address()})
	}
	l := newLogbook()
	m := runMonitor(t, Config{Sources: sources, Policy: testPolicy(), Record: l.record})
	r := l.until(t, "good round", goodRound).Round
	if v := r.Samples[3].Verdict; v != clock.Falseticker {
		t.Errorf("the liar is %q", v)
	}
	if truth := r.Reading.Real - r.Reading.Raw + 3e6; truth < r.Low || truth > r.High {
		t.Errorf("truth %d outside %d..%d", truth, r.Low, r.High)
	}
	l.until(t, "second good round", func(e clock.Evidence) bool { return goodRound(e) && e.Round.Number > r.Number })
	s := m.Now()
	if s.State != clock.Synced || !s.HasEstimate || s.Offset-s.Bound > 3e6 || s.Offset+s.Bound < 3e6 {
		t.Errorf("stamp %+v does not hold an offset of 3 ms", s)
	}
	c := l.checked(t)
	p := testPolicy()
	if f := c.Stamp(s, &p); f != nil {
		t.Errorf("stamp: %v", f)
	}
}
