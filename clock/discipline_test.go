package clock

import (
	"math"
	"testing"
	"time"
)

func TestFirstGoodRoundSyncs(t *testing.T) {
	t.Parallel()
	x := start(t, newWorld(), DefaultPolicy(), 4)
	x.wants(Unknown)
	if r := x.round(honest(4)...); r.Mapping == nil || r.Usable != 4 || r.Agree != 4 {
		t.Errorf("round %+v", r)
	}
	x.wants(Synced)
	if s := x.stamp(); s.Offset-s.Bound > 3*ms || s.Offset+s.Bound < 3*ms || s.Bound > 10*ms {
		t.Errorf("offset %d bound %d, the truth is 3 ms", s.Offset, s.Bound)
	}
	if tr := x.last().Transition; tr == nil || tr.From != Unknown || tr.To != Synced || tr.Reason != ReasonRound {
		t.Errorf("transition %+v", tr)
	}
	x.verified()
}

func TestLiarsAreNamedOrRefused(t *testing.T) {
	t.Parallel()
	lie := server{wrong: 250 * ms, disp: ms, out: 2 * ms, back: 2 * ms}
	slight := server{wrong: 5 * ms, disp: ms, out: 2 * ms, back: 2 * ms}
	two := DefaultPolicy()
	two.F, two.MinSources = 2, 5
	strict := DefaultPolicy()
	strict.Strict = true
	for _, c := range []struct {
		name         string
		policy       Policy
		servers      []server
		reason       string
		falsetickers int
	}{
		{"one liar", DefaultPolicy(), with(honest(4), lie), "", 1},
		{"one slight liar", DefaultPolicy(), with(honest(4), slight), "", 0}, // it overlaps the honest: not to be told from an error
		{"3 of 5 collude, f=1", DefaultPolicy(), with(honest(5), lie, lie, lie), ReasonDisagreement, 0},
		{"2 against 2", DefaultPolicy(), with(honest(4), lie, lie), ReasonDisagreement, 0},
		{"two collude, f=2", two, with(honest(5), lie, lie), "", 2},
		{"strict, two silent of four", strict, honest(4), "", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := start(t, newWorld(), c.policy, len(c.servers))
			r := x.round(c.servers...)
			falsetickers := 0
			for _, s := range r.Samples {
				if s.Verdict == Falseticker {
					falsetickers++
				}
			}
			if r.Reason != c.reason || falsetickers != c.falsetickers {
				t.Errorf("reason %q with %d falsetickers, want %q with %d", r.Reason, falsetickers, c.reason, c.falsetickers)
			}
			want := Synced
			if c.reason != "" {
				want = Unknown
			}
			x.wants(want)
			x.verified()
		})
	}
}

func TestSilenceMakesNoMajority(t *testing.T) {
	t.Parallel()
	p := DefaultPolicy()
	p.Strict = true
	x := start(t, newWorld(), p, 5)
	m := Measurement{Number: 1, Reading: x.reading(), Samples: x.ask(honest(5)...)}
	for i := range 2 {
		m.Samples[i] = Sample{Name: names[i], Failure: "timeout"}
	}
	e, _ := x.d.Measure(m) // 3 answer, 2 of them must agree: fewer than half of 5
	if e.Round.Reason != ReasonMinority {
		t.Errorf("strict: reason %q", e.Round.Reason)
	}
	x = start(t, newWorld(), DefaultPolicy(), 5)
	if e, _ = x.d.Measure(m); e.Round.Reason != "" || e.Round.Usable != 3 || e.Round.Samples[0].Reason != "timeout" {
		t.Errorf("not strict: %+v", e.Round)
	}
	m.Samples[2] = Sample{Name: names[2], Failure: "denied"}
	if e, _ = x.d.Measure(m); e.Round.Reason != ReasonSources {
		t.Errorf("two answers: reason %q", e.Round.Reason)
	}
}

func TestHoldoverGrowsAndEnds(t *testing.T) {
	t.Parallel()
	x := start(t, newWorld(), DefaultPolicy(), 4)
	x.round(honest(4)...)
	first := x.stamp().Bound
	x.wait(96 * time.Second)
	x.wants(Synced)
	x.wait(time.Second)
	x.wants(Holdover)
	x.wait(time.Hour)
	if s := x.stamp(); s.Bound < first+3697*50_000 || s.Bound > first+3698*50_000 { // 50 ppm of 3697 s
		t.Errorf("bound %d after an hour, %d at first", s.Bound, first)
	}
	x.truth += 30_000 * 3600 // the oscillator is 30 ppm off
	x.wants(Holdover)
	x.wait(3 * time.Hour)
	x.wants(Unsynced)
	if tr := x.last().Transition; tr.Reason != ReasonAge || tr.From != Holdover {
		t.Errorf("transition %+v", tr)
	}
	x.round(honest(4)...)
	x.wants(Synced)
	x.verified()
}

func TestHoldoverEndsAtTheLimit(t *testing.T) {
	t.Parallel()
	p := DefaultPolicy()
	p.Limit, p.Warn = 100*ms, 50*ms
	x := start(t, newWorld(), p, 4)
	x.round(honest(4)...)
	x.wait(25 * time.Minute) // 75 ms
	x.wants(Holdover)
	if x.stamp().Flags&Warn == 0 {
		t.Error("no warning above 50 ms")
	}
	x.wait(10 * time.Minute)
	x.wants(Unsynced)
	x.verified()
}

func TestDisturbances(t *testing.T) {
	t.Parallel()
	t.Run("step", func(t *testing.T) {
		x := start(t, newWorld(), DefaultPolicy(), 4)
		x.round(honest(4)...)
		x.real -= 3 * s1
		if s := x.stamp(); abs(s.Offset-3003*ms) > s.Bound { // before anyone noticed
			t.Errorf("offset %d right after the step", s.Offset)
		}
		x.disturb(ReasonStep, -3*s1)
		x.wants(Disrupted)
		if s := x.stamp(); !s.HasEstimate || s.Epoch != 2 || abs(s.Offset-3003*ms) > s.Bound {
			t.Errorf("stamp %+v", s)
		}
		x.verified()
		x.round(honest(4)...) // one is enough
		x.wants(Synced)
		x.verified()
	})
	for _, reason := range []string{ReasonSuspend, ReasonPause, ReasonBoot, ReasonRaw} {
		t.Run(reason, func(t *testing.T) {
			x := start(t, newWorld(), DefaultPolicy(), 4)
			x.round(honest(4)...)
			x.truth += 600 * s1 // the oscillator stood still
			if reason == ReasonRaw {
				x.raw -= 300 * s1
			}
			x.disturb(reason, 600*s1)
			x.wants(Disrupted)
			if s := x.stamp(); s.HasEstimate || s.Epoch != 2 {
				t.Errorf("stamp %+v", s)
			}
			x.wait(time.Second)
			if r := x.round(honest(4)...); r.Reason != ReasonSettling {
				t.Errorf("first round: %q", r.Reason)
			}
			x.wants(Disrupted)
			x.wait(2 * time.Second)
			x.round(honest(4)...)
			x.wants(Synced)
			x.verified()
		})
	}
	t.Run("two rounds that disagree settle nothing", func(t *testing.T) {
		x := start(t, newWorld(), DefaultPolicy(), 4)
		x.disturb(ReasonSuspend, s1)
		x.round(honest(4)...)
		x.truth += s1
		if r := x.round(honest(4)...); r.Reason != ReasonSettling {
			t.Errorf("reason %q", r.Reason)
		}
		x.wants(Disrupted)
		x.round(honest(4)...)
		x.wants(Synced)
		x.verified()
	})
}

func TestDiscontinuity(t *testing.T) {
	t.Parallel()
	x := start(t, newWorld(), DefaultPolicy(), 4)
	x.round(honest(4)...)
	x.wait(32 * time.Second)
	x.truth += 100 * ms // the machine was migrated, or everybody lies
	if r := x.round(honest(4)...); r.Reason != ReasonDiscontinuity {
		t.Errorf("reason %q", r.Reason)
	}
	x.wants(Unsynced)
	x.wait(2 * time.Second)
	x.round(honest(4)...)
	x.wants(Synced)
	x.verified()

	x.truth += 100 * ms // once, and back: the estimate before it was right
	x.round(honest(4)...)
	x.wants(Unsynced)
	x.truth -= 100 * ms
	x.round(honest(4)...)
	x.wants(Synced)
	x.verified()
}

func TestRefusesTimeBeforeTheRecorded(t *testing.T) {
	t.Parallel()
	w := newWorld()
	recorded := w.raw + w.truth + 60*s1
	_, d := Begin(Start{Policy: DefaultPolicy(), Sources: names[:4], Reading: w.reading(), Resume: Resume{7, recorded}})
	e, d := d.Measure(Measurement{Number: 1, Reading: w.reading(), Samples: w.ask(honest(4)...)})
	if e.Round.Reason != ReasonBehind || e.Round.State != Unknown || e.Round.Epoch != 8 {
		t.Errorf("round %+v", e.Round)
	}
	w.raw += 61 * s1
	e, _ = d.Measure(Measurement{Number: 2, Reading: w.reading(), Samples: w.ask(honest(4)...)})
	if e.Round.Reason != "" || e.Round.State != Synced {
		t.Errorf("when it has passed: %+v", e.Round)
	}
}

// The system's clock may be anywhere: UTC is not kept against it.
func TestSystemClockFarAway(t *testing.T) {
	t.Parallel()
	const year = 365 * 86400 * s1
	for _, away := range []int64{-50 * year, -100 * 86400 * s1, 100 * 86400 * s1, 50 * year, 80 * year} {
		x := start(t, newWorld(), DefaultPolicy(), 4)
		x.round(honest(4)...)
		x.real += away
		x.disturb(ReasonStep, away)
		x.round(honest(4)...)
		x.wants(Synced)
		s := x.stamp()
		if recordable := abs(away) < MaxInt; s.HasEstimate != recordable {
			t.Errorf("%d ns away: estimate %v", away, s.HasEstimate)
		}
		if err := DefaultPolicy().Allows(s); err == nil {
			t.Errorf("%d ns away: events are taken", away)
		}
		x.verified()
	}
}

func TestUptimeBeyond104Days(t *testing.T) {
	t.Parallel()
	for _, days := range []int64{103, 105, 366, 50 * 366} {
		w := newWorld()
		w.raw = days * 86400 * s1
		w.truth -= w.raw
		w.real -= w.raw
		x := start(t, w, DefaultPolicy(), 4)
		for range 400 {
			x.wait(32 * time.Second)
			x.truth += 20 * 32_000 // 20 ppm
			x.round(honest(4)...)
			x.wants(Synced)
		}
		if d := x.last().Round.Drift; d == nil || d.Rate < 19_990 || d.Rate > 20_010 {
			t.Errorf("after %d days: drift %+v, want 20 ppm", days, d)
		}
		x.verified()
	}
}

func TestDriftIsLearnt(t *testing.T) {
	t.Parallel()
	x := start(t, newWorld(), DefaultPolicy(), 4)
	rates := map[bool]int{}
	for i := range 200 {
		x.wait(32 * time.Second)
		x.truth += 45 * 32_000
		v := honest(4)
		for k := range v { // each answer is off by up to 50 us
			v[k].wrong = int64((i*7919+k*104729)%100-50) * 1000
		}
		m := x.round(v...).Mapping
		rates[m.Rate != 0]++
		if m.Rate != 0 && (m.Growth != 15_000 || abs(m.Rate-45_000) > 1_000) {
			t.Fatalf("round %d: %+v", i, m)
		}
		if m.Rate == 0 && m.Growth < 50_000 {
			t.Fatalf("round %d: %+v", i, m)
		}
		x.wants(Synced)
	}
	if rates[true] < 80 || rates[false] < 100 { // an hour is 113 rounds
		t.Errorf("rounds with and without a rate: %v", rates)
	}
	x.wait(4 * time.Hour)
	x.truth += 45_000 * 4 * 3600
	x.wants(Holdover)
	if s := x.stamp(); s.Bound > 230*ms { // 15 ppm of 4 h are 216 ms
		t.Errorf("bound %d after 4 h", s.Bound)
	}
	x.verified()
}

func TestRateJumpAlarms(t *testing.T) {
	t.Parallel()
	x := start(t, newWorld(), DefaultPolicy(), 4)
	alarmed := 0
	for i := range 260 {
		x.wait(32 * time.Second)
		x.truth += 5 * 32_000
		if i > 160 {
			x.truth += 20 * 32_000 // a slow drag by everybody
		}
		if r := x.round(honest(4)...); len(r.Alarms) > 0 {
			if i <= 160 {
				t.Fatalf("round %d: alarms %v", i, r.Alarms)
			}
			alarmed++
		}
	}
	if alarmed == 0 {
		t.Error("no alarm")
	}
	x.verified()
}

func TestKernelAndChronydAlarms(t *testing.T) {
	t.Parallel()
	x := start(t, newWorld(), DefaultPolicy(), 4) // its system's clock is 3 ms behind
	for _, c := range []struct {
		kernel  Kernel
		chronyd Chronyd
		alarms  int
	}{
		{Kernel{MaxError: 10_000}, Chronyd{Correction: 3 * ms}, 0},
		{Kernel{MaxError: 10, Status: staUnsync}, Chronyd{Leap: 3}, 0},
		{Kernel{MaxError: math.MaxInt64}, Chronyd{Correction: math.MinInt64, RootDisp: math.MaxInt64}, 0},
		{Kernel{MaxError: 0}, Chronyd{Correction: 3 * ms}, 0}, // within the round's own bound
		{Kernel{MaxError: 10_000}, Chronyd{Correction: 40 * ms, RootDelay: ms, RootDisp: ms}, 1},
	} {
		e, _ := x.d.Measure(Measurement{Number: 1, Reading: x.reading(), Samples: x.ask(honest(4)...), Kernel: &c.kernel, Chronyd: &c.chronyd})
		if len(e.Round.Alarms) != c.alarms {
			t.Errorf("%+v %+v: alarms %v, want %d", c.kernel, c.chronyd, e.Round.Alarms, c.alarms)
		}
	}
	x.real -= 100 * ms
	e, _ := x.d.Measure(Measurement{Number: 1, Reading: x.reading(), Samples: x.ask(honest(4)...), Kernel: &Kernel{MaxError: 10_000}})
	if len(e.Round.Alarms) != 1 || e.Round.Alarms[0] != AlarmKernel {
		t.Errorf("kernel 103 ms off: alarms %v", e.Round.Alarms)
	}
}

func TestPolicyChanges(t *testing.T) {
	t.Parallel()
	x := start(t, newWorld(), DefaultPolicy(), 4)
	x.round(honest(4)...)
	x.wait(5 * time.Minute)
	x.wants(Holdover)
	p := DefaultPolicy()
	p.Poll = 120 * s1
	e, d := x.d.Govern(p, x.reading())
	x.d, x.log = d, append(x.log, e)
	x.wants(Synced)
	x.verified()
}

// A step, and then a round that the estimate from before excludes.
func TestStepThenDiscontinuity(t *testing.T) {
	t.Parallel()
	x := start(t, newWorld(), DefaultPolicy(), 4)
	x.round(honest(4)...)
	x.real += s1
	x.disturb(ReasonStep, s1)
	x.truth += 100 * ms
	if r := x.round(honest(4)...); r.Reason != ReasonDiscontinuity {
		t.Errorf("reason %q", r.Reason)
	}
	x.wants(Unsynced)
	x.verified()
	x.round(honest(4)...)
	x.wants(Synced)
	x.verified()
}

// A round that was read before the one that the estimate rests on: the machine is not the one that it was, and the watch has not
// seen it yet.
func TestRoundFromThePast(t *testing.T) {
	t.Parallel()
	x := start(t, newWorld(), DefaultPolicy(), 4)
	x.round(honest(4)...)
	x.raw -= s1
	x.truth += s1
	if r := x.round(honest(4)...); r.Reason != ReasonDiscontinuity {
		t.Errorf("reason %q", r.Reason)
	}
	if s := x.stamp(); s.HasEstimate || s.State != Disrupted {
		t.Errorf("%+v", s)
	}
}

func TestResumeLearnsFromTheLogsEnd(t *testing.T) {
	t.Parallel()
	start := &Evidence{Transition: &Transition{Reason: ReasonStart, Epoch: 3, NotBefore: 500}}
	good := Stamp{Sys: 1000, Bound: 10, Epoch: 2, State: Synced, HasEstimate: true}
	doubtful := good
	doubtful.State, doubtful.Sys = Unsynced, 9000
	for _, c := range []struct {
		name   string
		stamps []Stamp // from the end
		clocks []*Evidence
		want   Resume
		done   bool
	}{
		{"estimate", []Stamp{good}, []*Evidence{nil}, Resume{2, 990}, true},
		{"restarted without", []Stamp{{}, {Epoch: 4, State: Disrupted}, {Epoch: 3}}, []*Evidence{nil, nil, start}, Resume{4, 500}, true},
		{"doubtful ones do not count", []Stamp{doubtful, good}, []*Evidence{nil, nil}, Resume{2, 990}, true},
		{"genesis only", []Stamp{{}}, []*Evidence{nil}, Resume{}, false},
	} {
		var r Resume
		done := false
		for i := range c.stamps {
			done = r.Learn(c.stamps[i], c.clocks[i])
		}
		if r != c.want || done != c.done {
			t.Errorf("%s: %+v %v, want %+v", c.name, r, done, c.want)
		}
	}
}
