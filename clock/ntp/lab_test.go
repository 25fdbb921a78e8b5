package ntp

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"bulla/clock"
)

const (
	ms  = int64(time.Millisecond)
	sec = int64(time.Second)
)

// lab is a machine in virtual time, with sources that tell the truth unless told otherwise. Its methods are safe for concurrent use.
type lab struct {
	mu     sync.Mutex
	begun  time.Time
	truth  int64 // UTC minus CLOCK_MONOTONIC_RAW
	real   int64 // CLOCK_REALTIME minus CLOCK_MONOTONIC_RAW
	jumped int64 // CLOCK_MONOTONIC_RAW against virtual time
	slept  int64
	boot   string
	wrong  map[int]int64 // sources that lie, and by how much
	silent bool
	leap   int
	asked  []time.Duration // when, since the beginning
	steps  chan struct{}
}

func newLab() *lab {
	return &lab{begun: time.Now(), truth: 1795397000 * sec, real: 1795397000*sec - 3*ms, boot: "one", wrong: map[int]int64{}, steps: make(chan struct{}, 1)}
}

// set changes the lab.
func (l *lab) set(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f()
}

func (l *lab) raw() int64 { return 1000*sec + int64(time.Since(l.begun)) + l.jumped }

func (l *lab) Read() clock.Reading {
	l.mu.Lock()
	defer l.mu.Unlock()
	raw := l.raw()
	return clock.Reading{Raw: raw, Real: raw + l.real, Mono: raw, Boot: raw + l.slept, Width: 2000}
}

func (l *lab) Stamp() clock.Reading {
	r := l.Read()
	return clock.Reading{Raw: r.Raw, Real: r.Real, Width: 1000}
}

func (l *lab) BootID() (string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.boot, nil
}

func (l *lab) Kernel() (*clock.Kernel, error) { return nil, errors.New("there is none") }

func (l *lab) Steps(ctx context.Context, stepped func()) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-l.steps:
			stepped()
		}
	}
}

func (l *lab) step(by int64) {
	l.set(func() { l.real += by })
	l.steps <- struct{}{}
}

// utc is the truth now.
func (l *lab) utc() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.raw() + l.truth
}

const labSources = 4

// ask takes half a second.
func (l *lab) ask(context.Context) []clock.Sample {
	l.set(func() { l.asked = append(l.asked, time.Since(l.begun)) })
	time.Sleep(500 * time.Millisecond)
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []clock.Sample
	for i := range labSources {
		s := clock.Sample{Name: fmt.Sprintf("s%d", i), Failure: failTimeout}
		if !l.silent {
			now := l.raw()
			utc := now - 5*ms + l.truth + l.wrong[i]
			s = clock.Sample{Name: s.Name, T1: now - 9*ms + l.real, T2: utc, T3: utc, T4: now - ms + l.real,
				Before: clock.Reading{Raw: now - 10*ms, Real: now - 10*ms + l.real}, After: clock.Reading{Raw: now, Real: now + l.real},
				RefTime: utc - sec, Disp: ms, Stratum: 1, Version: 4, Leap: l.leap}
		}
		out = append(out, s)
	}
	return out
}

// inLab runs f with a monitor in virtual time, and checks what it recorded, and every stamp on the way, as an auditor does.
func inLab(t *testing.T, f func(t *testing.T, l *lab, m *Monitor, b *logbook)) {
	t.Helper()
	inLabWith(t, func(*Config, *logbook) {}, f)
}

func inLabWith(t *testing.T, change func(*Config, *logbook), f func(t *testing.T, l *lab, m *Monitor, b *logbook)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		l, b := newLab(), newLogbook()
		cfg := Config{Policy: clock.DefaultPolicy(), Record: b.record}
		for i := range labSources {
			cfg.Sources = append(cfg.Sources, Source{Name: fmt.Sprintf("s%d", i), Address: "192.0.2.1:123"})
		}
		change(&cfg, b)
		m := newMonitor(cfg, l)
		m.ask = l.ask
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- m.Run(ctx) }()
		f(t, l, m, b)
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
		b.checked(t)
	})
}

// wants lets everything settle and compares state and truth.
func wants(t *testing.T, l *lab, m *Monitor, want clock.State) clock.Stamp {
	t.Helper()
	synctest.Wait()
	s := m.Now()
	if s.State != want {
		t.Errorf("state %v, want %v", s.State, want)
	}
	if utc := l.utc(); s.HasEstimate && (utc < s.Earliest() || utc > s.Latest()) {
		t.Errorf("%v: truth %d outside %d..%d", s.State, utc, s.Earliest(), s.Latest())
	}
	return s
}

// transitions lists the changes of state in a log as from-to(reason).
func (b *logbook) transitions() (out []string) {
	for _, e := range b.all() {
		if t := e.Transition; t != nil && t.From != t.To {
			out = append(out, fmt.Sprintf("%v-%v(%s)", t.From, t.To, t.Reason))
		}
	}
	return out
}
