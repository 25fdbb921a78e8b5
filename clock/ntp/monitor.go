package ntp

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"bulla/clock"
)

const (
	firstMinute = time.Minute     // after a start or a disturbance rounds come faster
	firstPoll   = 8 * time.Second // namely this often
	settlePoll  = 2 * time.Second // when two rounds have to agree
	maxWaiting  = 64              // changes not recorded yet
	maxSteps    = 16              // transitions that Status shows
)

// Monitor disciplines the clock that entries are stamped with. Until Run has measured, its state is unknown.
type Monitor struct {
	cfg     Config
	machine machine
	ask     func(ctx context.Context) []clock.Sample
	chronyd func(ctx context.Context) *clock.Chronyd

	published atomic.Pointer[clock.Estimate]
	watched   atomic.Int64  // CLOCK_MONOTONIC_RAW when the clocks were last watched; 0: not yet
	wake      chan struct{} // something for the main loop

	recording sync.Mutex // held while something is made durable and taken over

	mu      sync.Mutex
	policy  clock.Policy
	waiting []change // to be recorded, in this order; while there are any, no estimate is published
	status  progress

	// Of the main loop alone.
	discipline clock.Discipline
	round      uint64    // the last number used
	fast       time.Time // until when rounds come faster
}

// change is something that the discipline has to go through and that must be recorded.
type change struct {
	reason  string
	moved   int64
	boot    string
	policy  clock.Policy
	reading clock.Reading
}

// New makes a monitor of this machine's clocks. Nothing is asked before Run.
func New(cfg Config) (*Monitor, error) {
	sources, err := cfg.check()
	if err != nil {
		return nil, err
	}
	cfg.Sources = sources
	m := newMonitor(cfg, local{})
	m.ask = newNetwork(m.machine, sources, m.Policy).ask
	if cfg.Chronyd != "" {
		m.chronyd = func(ctx context.Context) *clock.Chronyd { return tracking(ctx, cfg.Chronyd) }
	}
	return m, nil
}

func newMonitor(cfg Config, machine machine) *Monitor {
	m := &Monitor{cfg: cfg, machine: machine, policy: cfg.Policy, wake: make(chan struct{}, 1),
		chronyd: func(context.Context) *clock.Chronyd { return nil }}
	m.published.Store(&clock.Estimate{State: clock.Unknown, Epoch: cfg.Resume.Epoch + 1})
	return m
}

// Now stamps what happens now. It is safe for concurrent use.
func (m *Monitor) Now() clock.Stamp {
	e, w := m.published.Load(), m.watched.Load()
	r := m.machine.Stamp()
	s := e.At(r)
	if w != 0 && (r.Raw < w || r.Raw-w > int64(watchEvery+pauseAfter)) {
		// The machine stood still, or is another one, and the watch has yet to find out why.
		return clock.Stamp{Sys: r.Real, Epoch: s.Epoch, State: clock.Disrupted}
	}
	return s
}

// Policy is what governs measurement.
func (m *Monitor) Policy() clock.Policy {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.policy
}

// Governable refuses a policy that these sources cannot serve.
func (m *Monitor) Governable(p clock.Policy) error {
	if err := p.Validate(); err != nil {
		return fmt.Errorf("clock policy: %w", err)
	}
	if len(m.cfg.Sources) < p.MinSources {
		return fmt.Errorf("clock policy: min_sources: %d, but only %d are configured", p.MinSources, len(m.cfg.Sources))
	}
	return nil
}

// Govern changes the policy when enact, which makes that durable, returns nil. What the clock records after it is by the new one:
// nothing is recorded meanwhile.
func (m *Monitor) Govern(p clock.Policy, enact func() error) error {
	if err := m.Governable(p); err != nil {
		return err
	}
	m.recording.Lock()
	defer m.recording.Unlock()
	if err := enact(); err != nil {
		return err
	}
	r := m.machine.Read()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.policy = p
	switch {
	case len(m.waiting) == 0:
		m.enqueue(change{reason: clock.ReasonPolicy, policy: p, reading: r})
	case m.waiting[0].reason == clock.ReasonStart: // which says what governs
		m.waiting[0].policy = p
	default: // before what has happened meanwhile, which will be recorded later
		m.waiting = slices.Insert(m.waiting, 0, change{reason: clock.ReasonPolicy, policy: p, reading: m.waiting[0].reading})
	}
	return nil
}

// Run measures until ctx ends, and returns its error then, or another if the clocks cannot be watched.
func (m *Monitor) Run(ctx context.Context) error {
	boot, err := m.machine.BootID()
	if err != nil {
		return err
	}
	first := m.machine.Read()
	m.mu.Lock()
	m.enqueue(change{reason: clock.ReasonStart, boot: boot, policy: m.policy, reading: first})
	m.mu.Unlock()

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stepped := make(chan struct{}, 1)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := m.machine.Steps(ctx, func() { signal(stepped) }); ctx.Err() == nil {
			cancel(err)
		}
	})
	wg.Go(func() { m.watch(ctx, first, boot, stepped) })
	m.loop(ctx)
	wg.Wait()
	return context.Cause(ctx)
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default: // it is signalled already
	}
}

// watch reads the clocks once a second and whenever the system's was set, and degrades the published estimate at once when they
// were disturbed. Recording that is left to the main loop.
func (m *Monitor) watch(ctx context.Context, before clock.Reading, boot string, stepped <-chan struct{}) {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	m.watched.Store(before.Raw)
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-stepped:
		}
		now := m.machine.Read()
		if d, ok := disturbed(before, now); ok {
			m.disturb(change{reason: d.reason, moved: d.moved, reading: now})
		}
		if id, err := m.machine.BootID(); err == nil && id != boot { // unreadable for a moment: it cannot have changed unseen for long
			m.disturb(change{reason: clock.ReasonBoot, boot: id, reading: now})
			boot = id
		}
		before = now
		m.watched.Store(max(now.Raw, 1))
		signal(m.wake)
	}
}

// disturb takes the published estimate back, in a new epoch, before anyone else is stamped with it.
func (m *Monitor) disturb(c change) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := *m.published.Load()
	if c.reason != clock.ReasonStep {
		e = clock.Estimate{Epoch: e.Epoch}
	}
	e.State = clock.Disrupted
	if m.enqueue(c) {
		e.Epoch++
	}
	m.published.Store(&e)
}

// enqueue adds a change to those to be recorded, unless there are too many: then those before it stand for it.
func (m *Monitor) enqueue(c change) bool {
	if len(m.waiting) >= maxWaiting {
		return false
	}
	m.waiting = append(m.waiting, c)
	signal(m.wake)
	return true
}

// next is the change to be recorded next.
func (m *Monitor) next() (c change, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.waiting) == 0 {
		return c, false
	}
	return m.waiting[0], true
}

// loop records changes as they come and rounds when they are due.
func (m *Monitor) loop(ctx context.Context) {
	var due time.Time
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		changed, settled := m.settle(ctx)
		if changed {
			due = time.Now() // measure anew at once
			m.fast = due.Add(firstMinute)
		}
		if settled && !time.Now().Before(due) {
			begun := time.Now()
			due = begun.Add(m.measure(ctx)) // from beginning to beginning
			continue
		}
		timer.Reset(max(time.Until(due), time.Millisecond))
		select {
		case <-ctx.Done():
		case <-m.wake:
		case <-timer.C:
			if !settled { // rounds wait for what cannot be recorded yet: the watch wakes us
				due = time.Now().Add(watchEvery)
			}
		}
	}
}

// settle records what has happened since, disturbances and time passing. changed: something asks for a round at once. settled:
// everything is recorded.
func (m *Monitor) settle(ctx context.Context) (changed, settled bool) {
	if _, ok := m.next(); !ok {
		r := m.machine.Read()
		if _, _, ok := m.discipline.Pass(r); !ok {
			return false, true
		}
		m.mu.Lock()
		m.enqueue(change{reason: clock.ReasonAge, reading: r})
		m.mu.Unlock()
	}
	for {
		reason, err := m.recordNext(ctx)
		if reason == "" || err != nil {
			return changed, err == nil
		}
		changed = changed || reason != clock.ReasonAge && reason != clock.ReasonPolicy
	}
}

// recordNext records the next change, if there is one, and takes the discipline through it.
func (m *Monitor) recordNext(ctx context.Context) (reason string, err error) {
	m.recording.Lock()
	defer m.recording.Unlock()
	c, ok := m.next()
	if !ok {
		return "", nil
	}
	e, d := m.apply(c)
	if err := m.record(ctx, e); err != nil {
		return c.reason, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.discipline, m.waiting = d, m.waiting[1:]
	m.publish()
	return c.reason, nil
}

// apply takes the discipline through a change.
func (m *Monitor) apply(c change) (clock.Evidence, clock.Discipline) {
	switch c.reason {
	case clock.ReasonStart:
		names := make([]string, len(m.cfg.Sources))
		for i, s := range m.cfg.Sources {
			names[i] = s.Name
		}
		return clock.Begin(clock.Start{Policy: c.policy, Sources: names, BootID: c.boot, Reading: c.reading, Resume: m.cfg.Resume})
	case clock.ReasonPolicy:
		return m.discipline.Govern(c.policy, c.reading)
	case clock.ReasonAge:
		e, d, _ := m.discipline.Pass(c.reading)
		return e, d
	default:
		return m.discipline.Disturb(c.reason, c.moved, c.boot, c.reading)
	}
}

// measure makes one round, and returns how long after its beginning the next is due. A round during which the clocks were disturbed is void: its samples
// belong to both sides of the disturbance.
func (m *Monitor) measure(ctx context.Context) time.Duration {
	var measured clock.Measurement
	var tracked sync.WaitGroup
	tracked.Go(func() { measured.Chronyd = m.chronyd(ctx) })
	measured.Samples = m.ask(ctx)
	tracked.Wait()
	if ctx.Err() != nil {
		return 0
	}
	if k, err := m.machine.Kernel(); err == nil { // evidence beside the samples: a round is good without it
		measured.Kernel = k
	}
	measured.Reading = m.machine.Read()
	m.recording.Lock()
	defer m.recording.Unlock()
	if _, disturbed := m.next(); disturbed {
		return 0
	}
	m.round++
	measured.Number = m.round
	e, d := m.discipline.Measure(measured)
	if err := m.record(ctx, e); err != nil {
		return m.pause(e.Round)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.discipline = d
	m.publish()
	return m.pause(e.Round)
}

// publish stamps entries with the discipline's estimate from now on, unless something has happened that it does not know of yet.
func (m *Monitor) publish() {
	if len(m.waiting) == 0 {
		e := m.discipline.Estimate()
		m.published.Store(&e)
	}
}

// pause is how long after the beginning of a round the next is due.
func (m *Monitor) pause(r *clock.Round) time.Duration {
	poll := time.Duration(m.discipline.Policy().Poll)
	switch {
	case r.Reason == clock.ReasonSettling || r.Reason == clock.ReasonDiscontinuity:
		poll = min(poll, settlePoll)
	case time.Now().Before(m.fast):
		poll = min(poll, firstPoll)
	}
	if e := m.discipline.Estimate(); e.Leap != 0 { // the first round after a leap second confirms it
		utc := r.Reading.Raw + e.UTCMinusRaw
		if after := time.Duration(e.LeapAt - utc + 4*int64(time.Second)); after > 0 {
			poll = min(poll, max(after, time.Second))
		}
	}
	return poll
}

// record makes evidence durable and remembers it for Status.
func (m *Monitor) record(ctx context.Context, e clock.Evidence) error {
	err := m.cfg.Record(ctx, e)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.status.recorded(&e, err)
	if err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("recording the clock's evidence: %w", err)
	}
	return err
}
