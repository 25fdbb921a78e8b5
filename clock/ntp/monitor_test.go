package ntp

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"bulla/clock"
)

func TestStartsUnknownAndSyncs(t *testing.T) {
	t.Parallel()
	inLab(t, func(t *testing.T, l *lab, m *Monitor, b *logbook) {
		if s := wants(t, l, m, clock.Unknown); s.Epoch != 1 || s.HasEstimate {
			t.Errorf("%+v", s)
		}
		time.Sleep(time.Second)
		if s := wants(t, l, m, clock.Synced); s.Offset-s.Bound > 3*ms || s.Offset+s.Bound < 3*ms || s.Round != 1 || s.Epoch != 1 {
			t.Errorf("%+v", s)
		}
		if got := b.transitions(); !slices.Equal(got, []string{"unknown-synced(round)"}) {
			t.Error(got)
		}
	})
}

// An estimate stamps entries only when its round is durable.
func TestDurableBeforePublished(t *testing.T) {
	t.Parallel()
	var m *Monitor
	durable := make(chan struct{})
	inLabWith(t, func(c *Config, b *logbook) {
		durable = make(chan struct{}) // of the bubble
		c.Record = func(ctx context.Context, e clock.Evidence) error {
			if e.Round != nil && e.Round.Number == 1 {
				<-durable
			}
			return b.record(ctx, e)
		}
	}, func(t *testing.T, l *lab, monitor *Monitor, b *logbook) {
		m = monitor
		time.Sleep(20 * time.Second)
		wants(t, l, m, clock.Unknown)
		close(durable)
		wants(t, l, m, clock.Synced)
		if got := b.transitions(); !slices.Equal(got, []string{"unknown-synced(round)"}) { // a slow log is no pause of the machine
			t.Error(got)
		}
	})
}

func TestPollsFasterAtFirst(t *testing.T) {
	t.Parallel()
	inLab(t, func(t *testing.T, l *lab, m *Monitor, b *logbook) {
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		var gaps []time.Duration
		for i := range l.asked[1:] {
			gaps = append(gaps, l.asked[i+1]-l.asked[i])
		}
		if len(gaps) < 12 || gaps[0] != 8*time.Second || gaps[5] != 8*time.Second || gaps[9] != 32*time.Second {
			t.Errorf("gaps %v", gaps)
		}
	})
}

func TestHoldoverUntilTheSourcesAreBack(t *testing.T) {
	t.Parallel()
	inLab(t, func(t *testing.T, l *lab, m *Monitor, b *logbook) {
		time.Sleep(time.Second)
		l.set(func() { l.silent = true })
		time.Sleep(95 * time.Second)
		wants(t, l, m, clock.Synced)
		time.Sleep(3 * time.Second)
		wants(t, l, m, clock.Holdover)
		time.Sleep(time.Hour)
		if s := wants(t, l, m, clock.Holdover); s.Bound < 180*ms || s.Flags&clock.Warn == 0 {
			t.Errorf("%+v", s)
		}
		time.Sleep(3 * time.Hour)
		s := wants(t, l, m, clock.Unsynced)
		if err := m.Policy().Allows(s); err == nil {
			t.Error("events are taken")
		}
		l.set(func() { l.silent = false })
		time.Sleep(33 * time.Second)
		wants(t, l, m, clock.Synced)
		if got := b.transitions(); !slices.Equal(got, []string{"unknown-synced(round)", "synced-holdover(age)", "holdover-unsynced(age)", "unsynced-synced(round)"}) {
			t.Error(got)
		}
	})
}

// A monitor that has died cannot leave its last estimate behind as if it were good.
func TestDeadMonitorExpires(t *testing.T) {
	t.Parallel()
	var m *Monitor
	var l *lab
	synctest.Test(t, func(t *testing.T) {
		l = newLab()
		b := newLogbook()
		m = newMonitor(Config{Policy: clock.DefaultPolicy(), Record: b.record, Sources: make([]Source, labSources)}, l)
		for i := range labSources {
			m.cfg.Sources[i].Name = string(rune('a' + i))
		}
		m.ask = l.ask
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- m.Run(ctx) }()
		time.Sleep(time.Second)
		wants(t, l, m, clock.Synced)
		cancel()
		<-done
		time.Sleep(7 * time.Second)
		if s := wants(t, l, m, clock.Disrupted); s.HasEstimate {
			t.Errorf("%+v", s)
		}
	})
}

func TestStepIsSeenAtOnce(t *testing.T) {
	t.Parallel()
	inLab(t, func(t *testing.T, l *lab, m *Monitor, b *logbook) {
		time.Sleep(100500 * time.Millisecond)
		l.step(-3 * sec)
		s := wants(t, l, m, clock.Disrupted)
		if !s.HasEstimate || s.Epoch != 2 || s.Offset < 3002*ms || s.Offset > 3004*ms {
			t.Errorf("%+v", s)
		}
		time.Sleep(time.Second)
		if s := wants(t, l, m, clock.Synced); s.Epoch != 2 {
			t.Errorf("%+v", s)
		}
		if got := b.transitions(); !slices.Equal(got, []string{"unknown-synced(round)", "synced-disrupted(step)", "disrupted-synced(round)"}) {
			t.Error(got)
		}
		steps := m.Status().Steps
		if last := steps[len(steps)-2]; last.Reason != clock.ReasonStep || last.Moved != -3*sec {
			t.Errorf("status: %+v", steps)
		}
	})
}

// Steps of 50 years and back: nothing overflows, and time goes on when the clock is right again.
func TestStepsOf50Years(t *testing.T) {
	t.Parallel()
	const away = 50 * 365 * 86400 * sec
	inLab(t, func(t *testing.T, l *lab, m *Monitor, b *logbook) {
		for _, by := range []int64{away, -2 * away, away} {
			time.Sleep(10 * time.Second)
			l.step(by)
			wants(t, l, m, clock.Disrupted)
			time.Sleep(time.Second)
			s := wants(t, l, m, clock.Synced)
			if far := l.real-l.truth > away/2 || l.truth-l.real > away/2; s.HasEstimate == far {
				t.Errorf("%+v", s)
			}
		}
	})
}

func TestDisturbancesOfTheTimescale(t *testing.T) {
	t.Parallel()
	for reason, disturb := range map[string]func(l *lab){
		clock.ReasonSuspend: func(l *lab) { l.slept, l.truth, l.real = 600*sec, l.truth+600*sec, l.real+600*sec },
		clock.ReasonPause:   func(l *lab) { l.jumped = 60 * sec },
		clock.ReasonRaw:     func(l *lab) { l.jumped, l.truth, l.real = -500*sec, l.truth+500*sec, l.real+500*sec },
		clock.ReasonBoot:    func(l *lab) { l.boot = "two" },
	} {
		t.Run(reason, func(t *testing.T) {
			t.Parallel()
			inLab(t, func(t *testing.T, l *lab, m *Monitor, b *logbook) {
				time.Sleep(100500 * time.Millisecond)
				l.set(func() { disturb(l) })
				time.Sleep(time.Second)
				if s := wants(t, l, m, clock.Disrupted); s.HasEstimate || s.Epoch != 2 {
					t.Errorf("%+v", s)
				}
				time.Sleep(time.Second) // one round
				wants(t, l, m, clock.Disrupted)
				time.Sleep(3 * time.Second)
				if s := wants(t, l, m, clock.Synced); s.Epoch != 2 {
					t.Errorf("%+v", s)
				}
				if got := b.transitions(); !slices.Equal(got, []string{"unknown-synced(round)", "synced-disrupted(" + reason + ")", "disrupted-synced(round)"}) {
					t.Error(got)
				}
			})
		})
	}
}

// Between a pause, or a machine that is another one, and the watch that finds it, nothing is stamped with the old estimate.
func TestJumpIsSeenBeforeTheWatch(t *testing.T) {
	t.Parallel()
	for _, jump := range []int64{60 * sec, -sec} {
		inLab(t, func(t *testing.T, l *lab, m *Monitor, b *logbook) {
			time.Sleep(100500 * time.Millisecond)
			wants(t, l, m, clock.Synced)
			l.set(func() { l.jumped = jump })
			if s := m.Now(); s.State != clock.Disrupted || s.HasEstimate {
				t.Errorf("%d: %+v", jump, s)
			}
		})
	}
}

// A round that was under way when the clocks were disturbed is worth nothing.
func TestRoundAcrossAStepIsVoid(t *testing.T) {
	t.Parallel()
	inLab(t, func(t *testing.T, l *lab, m *Monitor, b *logbook) {
		time.Sleep(8200 * time.Millisecond) // within the second round's half second
		l.step(sec)
		time.Sleep(2 * time.Second)
		wants(t, l, m, clock.Synced)
		var epochs []uint32
		for _, e := range b.all() {
			if e.Round != nil {
				epochs = append(epochs, e.Round.Epoch)
			}
		}
		if !slices.Equal(epochs, []uint32{1, 2}) {
			t.Errorf("rounds of epochs %v", epochs)
		}
	})
}

func TestDiscontinuityUnsyncs(t *testing.T) {
	t.Parallel()
	inLab(t, func(t *testing.T, l *lab, m *Monitor, b *logbook) {
		time.Sleep(100 * time.Second)
		l.set(func() { l.truth += 100 * ms }) // migrated to a machine with another oscillator
		time.Sleep(40 * time.Second)
		wants(t, l, m, clock.Synced)
		if got := b.transitions(); !slices.Equal(got, []string{"unknown-synced(round)", "synced-unsynced(round)", "unsynced-synced(round)"}) {
			t.Error(got)
		}
	})
}

func TestColludingMajorityIsRefused(t *testing.T) {
	t.Parallel()
	inLab(t, func(t *testing.T, l *lab, m *Monitor, b *logbook) {
		time.Sleep(time.Second)
		l.set(func() { l.wrong[0], l.wrong[1] = 250*ms, 250*ms })
		time.Sleep(99 * time.Second)
		wants(t, l, m, clock.Holdover)
		if st := m.Status(); st.Round.Reason != clock.ReasonDisagreement || st.Failed == 0 || len(st.Sources) != labSources {
			t.Errorf("%+v", st.Round)
		}
		l.set(func() { delete(l.wrong, 1) })
		time.Sleep(33 * time.Second)
		wants(t, l, m, clock.Synced)
		if st := m.Status(); st.Sources[0].Verdict != clock.Falseticker || st.Sources[0].Offset < 252*ms || st.Sources[1].Verdict != clock.OK {
			t.Errorf("%+v", st.Sources)
		}
	})
}

var errFull = errors.New("no space left on device")

// A log that refuses the clock's evidence ends in holdover and then in refusal, never in an estimate that nobody can check; what
// happened meanwhile is recorded when it can be, in order.
func TestRefusingLog(t *testing.T) {
	t.Parallel()
	inLab(t, func(t *testing.T, l *lab, m *Monitor, b *logbook) {
		time.Sleep(time.Second)
		round := wants(t, l, m, clock.Synced).Round
		refuse := func(err error) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.refuse = err
		}
		refuse(errFull)
		time.Sleep(2 * time.Minute)
		if s := wants(t, l, m, clock.Holdover); s.Round != round {
			t.Errorf("%+v rests on a round that is not recorded", s)
		}
		if st := m.Status(); st.Unrecorded == "" {
			t.Error("status does not say why")
		}
		l.step(sec)
		if s := wants(t, l, m, clock.Disrupted); s.Epoch != 2 {
			t.Errorf("%+v", s)
		}
		refuse(nil)
		time.Sleep(3 * time.Second)
		if s := wants(t, l, m, clock.Synced); s.Round <= round || s.Epoch != 2 {
			t.Errorf("%+v", s)
		}
		if got := b.transitions(); !slices.Equal(got, []string{"unknown-synced(round)", "synced-holdover(age)", "holdover-disrupted(step)", "disrupted-synced(round)"}) {
			t.Error(got)
		}
	})
}

// When one of two logs refuses, the other has evidence that took no effect, or has it twice; both verify.
func TestOneOfTwoLogsRefuses(t *testing.T) {
	t.Parallel()
	second := newLogbook()
	var n atomic.Int64
	inLabWith(t, func(c *Config, b *logbook) {
		c.Record = func(ctx context.Context, e clock.Evidence) error {
			err := b.record(ctx, e)
			if n.Add(1)%3 == 0 {
				return errors.Join(err, errFull)
			}
			return errors.Join(err, second.record(ctx, e))
		}
	}, func(t *testing.T, l *lab, m *Monitor, b *logbook) {
		for i := range 30 {
			time.Sleep(45 * time.Second)
			switch i % 6 {
			case 1:
				l.step(sec)
			case 2:
				l.set(func() { l.slept += 60 * sec; l.truth += 60 * sec; l.real += 60 * sec })
			case 3:
				l.set(func() { l.silent = true })
				time.Sleep(5 * time.Minute)
				l.set(func() { l.silent = false })
			case 4:
				l.set(func() { l.truth += 50 * ms })
			}
		}
		time.Sleep(5 * time.Minute)
		wants(t, l, m, clock.Synced)
		if len(b.all()) <= len(second.all()) || len(second.all()) < 50 {
			t.Errorf("%d and %d entries", len(b.all()), len(second.all()))
		}
		second.checked(t)
	})
}

func TestResumesWhereTheLogsLeftOff(t *testing.T) {
	t.Parallel()
	var l0 *lab
	inLabWith(t, func(c *Config, b *logbook) {
		l0 = newLab()
		c.Resume = clock.Resume{Epoch: 6, Earliest: l0.utc() + 60*sec}
	}, func(t *testing.T, l *lab, m *Monitor, b *logbook) {
		time.Sleep(time.Second)
		if s := wants(t, l, m, clock.Unknown); s.Epoch != 7 { // UTC is earlier than it was
			t.Errorf("%+v", s)
		}
		if r := m.Status().Round; r.Reason != clock.ReasonBehind {
			t.Errorf("%+v", r)
		}
		time.Sleep(70 * time.Second)
		wants(t, l, m, clock.Synced)
	})
}

func TestLeapSecondPauses(t *testing.T) {
	t.Parallel()
	inLab(t, func(t *testing.T, l *lab, m *Monitor, b *logbook) {
		end := time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC).UnixNano()
		l.set(func() {
			l.truth = end - 300*sec - l.raw()
			l.real = l.truth
			l.leap = 1
		})
		l.steps <- struct{}{} // the lab's beginning was a step
		time.Sleep(20 * time.Second)
		if s := wants(t, l, m, clock.Synced); s.Flags&clock.LeapPending == 0 || m.Policy().Allows(s) != nil {
			t.Errorf("%+v", s)
		}
		time.Sleep(time.Duration(end-l.utc()) - 500*time.Millisecond)
		if s := m.Now(); m.Policy().Allows(s) == nil {
			t.Errorf("half a second before it events are taken: %+v", s)
		}
		time.Sleep(time.Second) // within 23:59:60
		l.set(func() { l.truth -= sec; l.leap = 0 })
		l.step(-sec) // as the kernel does
		if s := m.Now(); m.Policy().Allows(s) == nil {
			t.Errorf("during it events are taken: %+v", s)
		}
		time.Sleep(8 * time.Second)
		s := wants(t, l, m, clock.Synced)
		if err := m.Policy().Allows(s); err != nil || s.Flags != 0 {
			t.Errorf("8 s after it: %v, %+v", err, s)
		}
	})
}

func TestGovern(t *testing.T) {
	t.Parallel()
	inLab(t, func(t *testing.T, l *lab, m *Monitor, b *logbook) {
		time.Sleep(time.Second)
		p := clock.DefaultPolicy()
		p.Poll = 4 * sec
		if err := m.Govern(p, func() error { return nil }); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute)
		wants(t, l, m, clock.Synced)
		if n := m.Status().Rounds; n < 20 {
			t.Errorf("%d rounds in 2 minutes", n)
		}
		p.MinSources = labSources + 1
		if err := m.Govern(p, func() error { return nil }); err == nil {
			t.Error("a policy that demands more sources than there are")
		}
		p.Poll = 0
		if err := m.Govern(p, func() error { return nil }); err == nil {
			t.Error("an invalid policy")
		}
	})
}

// Disturbances beyond what can be kept stand for each other, and nothing is published meanwhile.
func TestManyDisturbancesWhileTheLogRefuses(t *testing.T) {
	t.Parallel()
	inLab(t, func(t *testing.T, l *lab, m *Monitor, b *logbook) {
		time.Sleep(time.Second)
		b.mu.Lock()
		b.refuse = errFull
		b.mu.Unlock()
		for range 3 * maxWaiting {
			time.Sleep(time.Second)
			l.step(sec)
			wants(t, l, m, clock.Disrupted)
		}
		b.mu.Lock()
		b.refuse = nil
		b.mu.Unlock()
		time.Sleep(3 * time.Second)
		wants(t, l, m, clock.Synced)
	})
}
