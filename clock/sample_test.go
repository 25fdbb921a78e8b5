package clock

import "testing"

func TestSamplesAreJudged(t *testing.T) {
	t.Parallel()
	w := newWorld()
	for _, c := range []struct {
		name   string
		change func(s *Sample)
		reason string
	}{
		{"honest", func(s *Sample) {}, ""},
		{"no answer", func(s *Sample) { s.Failure = "timeout" }, "timeout"},
		{"kiss of death", func(s *Sample) { s.Stratum, s.Kiss = 0, "RATE" }, ReasonKiss},
		{"version 3", func(s *Sample) { s.Version = 3 }, ReasonVersion},
		{"not synchronised", func(s *Sample) { s.Leap = 3 }, ReasonLeap},
		{"stratum 15", func(s *Sample) { s.Stratum = 15 }, ""},
		{"stratum 16", func(s *Sample) { s.Stratum = 16 }, ReasonStratum},
		{"negative stratum", func(s *Sample) { s.Stratum = -1 }, ReasonStratum},
		{"30 years ago", func(s *Sample) { move(s, -30*365*86400*s1) }, ReasonEra},
		{"in 40 years", func(s *Sample) { move(s, 40*365*86400*s1) }, ""}, // the hull's business
		{"in 85 years", func(s *Sample) { move(s, 85*365*86400*s1) }, ReasonEra},
		{"set 36 hours ago", func(s *Sample) { s.RefTime = s.T3 - maxStale }, ""},
		{"set two days ago", func(s *Sample) { s.RefTime = s.T3 - 2*86400*s1 }, ReasonStale},
		{"set in the future", func(s *Sample) { s.RefTime = s.T3 + 1 }, ReasonReference},
		{"answered before it received", func(s *Sample) { s.T3 = s.T2 - 1 }, ReasonBackwards},
		{"claims more work than the round trip", func(s *Sample) { s.T3 = s.T2 + (s.T4 - s.T1) + 1 }, ReasonNegative},
		{"claims all of the round trip", func(s *Sample) { s.T3 = s.T2 + (s.T4 - s.T1) }, ""},
		{"sent before the reading before", func(s *Sample) { s.T1 = s.Before.Real - 1 }, ReasonMoved},
		{"received after the reading after", func(s *Sample) { s.T4 = s.After.Real + 1 }, ReasonMoved},
		{"received before it was sent", func(s *Sample) { s.T4 = s.T1 - 1 }, ReasonMoved},
		{"step of 2 ms in between", func(s *Sample) { s.After.Real += 5 * ms }, ReasonMoved},
		{"step of 0.9 ms in between", func(s *Sample) { s.After.Real += 900_000 }, ""},
		{"round trip of 299 ms", func(s *Sample) {
			s.Before.Real, s.Before.Raw, s.T1 = s.Before.Real-294*ms, s.Before.Raw-294*ms, s.T1-294*ms
		}, ""},
		{"round trip of 301 ms", func(s *Sample) {
			s.Before.Real, s.Before.Raw, s.T1 = s.Before.Real-297*ms, s.Before.Raw-297*ms, s.T1-297*ms
		}, ReasonDelay},
		{"root dispersion of 990 ms", func(s *Sample) { s.Disp = 990 * ms }, ""},
		{"root dispersion of 15 s", func(s *Sample) { s.Disp = 15 * s1 }, ReasonDistance},
		{"root delay of 3 s", func(s *Sample) { s.Delay = 3 * s1 }, ReasonDistance},
		{"precision of 2 s", func(s *Sample) { s.Prec = 2 * s1 }, ReasonDistance},
		{"negative dispersion", func(s *Sample) { s.Disp = -1 }, ReasonRange},
		{"negative delay", func(s *Sample) { s.Delay = -1 }, ReasonRange},
		{"dispersion beyond reason", func(s *Sample) { s.Disp = 1<<63 - 1 }, ReasonRange},
		{"system's clock before 1970", func(s *Sample) { s.T1, s.Before.Real = -1, -2 }, ReasonRange},
		{"readings in the wrong order", func(s *Sample) { s.Before, s.After = s.After, s.Before }, ReasonRange},
		{"read after the round", func(s *Sample) { s.After.Raw += 1 }, ReasonRange},
	} {
		s := w.answer("a", server{disp: ms, out: 2 * ms, back: 3 * ms})
		c.change(&s)
		j := s.judge(DefaultPolicy(), w.reading(), 0)
		if j.Reason != c.reason || (j.Verdict == OK) != (c.reason == "") {
			t.Errorf("%s: %s %s, want %q", c.name, j.Verdict, j.Reason, c.reason)
		}
		if j.Verdict == OK && (j.Distance < ms || j.RTT < 0) {
			t.Errorf("%s: %+v", c.name, j)
		}
	}
}

func move(s *Sample, by int64) {
	s.T2, s.T3, s.RefTime = s.T2+by, s.T3+by, s.RefTime+by
}

// An asymmetric path makes a sample wrong, by less than it says.
func TestAsymmetryIsWithinTheDistance(t *testing.T) {
	t.Parallel()
	w := newWorld()
	for _, v := range []server{{out: 80 * ms}, {back: 80 * ms}, {out: 290 * ms}, {}} {
		s := w.answer("a", v)
		j := s.judge(DefaultPolicy(), w.reading(), 0)
		if wrong := abs(j.Theta - w.truth); j.Verdict != OK || wrong > j.Distance || wrong < (v.out+v.back)/2-1000 {
			t.Errorf("%+v: %+v, truth %d", v, j, w.truth)
		}
	}
}

// A slew of the system's clock in the middle of a query moves the answer by less than its distance says.
func TestSlewDuringQuery(t *testing.T) {
	t.Parallel()
	w := newWorld()
	s := w.answer("a", server{out: 20 * ms, back: 20 * ms})
	slewed := 40 * ms / 12 // 83,333 ppm, as fast as chronyd goes
	s.T4 += slewed
	s.After.Real += slewed
	if j := s.judge(DefaultPolicy(), w.reading(), 0); j.Verdict != OK || abs(j.Theta-w.truth) > j.Distance || j.Distance < slewed {
		t.Errorf("%+v, truth %d", j, w.truth)
	}
}
