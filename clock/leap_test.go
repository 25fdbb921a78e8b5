package clock

import (
	"testing"
	"time"
)

// leapWorld is half an hour before the end of a year that ends with a leap second.
func leapWorld(t *testing.T, leap int) (*daemon, []server, int64) {
	w := newWorld()
	end := time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC).UnixNano()
	w.truth = end - 1800*s1 - w.raw
	w.real = w.truth + 2*ms
	x := start(t, w, DefaultPolicy(), 4)
	v := honest(4)
	for i := range v {
		v[i].leap = leap
	}
	v[3].leap = 0 // one has not heard of it
	return x, v, end
}

// POSIX time at an instant counted without the leap second.
func posix(utc, end int64, leap int) int64 {
	switch {
	case leap == leapInsert && utc >= end:
		return utc - s1
	case leap == leapDelete && utc >= end-s1:
		return utc + s1
	}
	return utc
}

func TestLeapSecond(t *testing.T) {
	t.Parallel()
	for leap, name := range map[int]string{leapInsert: "insert", leapDelete: "delete"} {
		t.Run(name, func(t *testing.T) {
			x, v, end := leapWorld(t, leap)
			r := x.round(v...)
			if r.Mapping.Leap != leap || r.Mapping.LeapAt != end {
				t.Fatalf("mapping %+v", r.Mapping)
			}
			if s := x.stamp(); s.Flags&LeapPending == 0 || DefaultPolicy().Allows(s) != nil {
				t.Errorf("half an hour before: %+v", s)
			}
			// Through the leap second in steps of 10 ms, without a round.
			truth := x.truth
			x.raw = end - 5*s1 - truth
			paused := 0
			for range 1000 {
				x.raw += 10 * ms
				x.truth = posix(x.raw+truth, end, leap) - x.raw
				s := x.stamp()
				if utc := x.raw + x.truth; utc < s.Earliest() || utc > s.Latest() {
					t.Fatalf("at %d before the end: truth outside %d..%d", end-utc, s.Earliest(), s.Latest())
				}
				near := abs(x.raw+truth-end) <= s1
				if s.Flags&InLeap != 0 {
					paused++
				} else if near {
					t.Fatalf("at %d before the end events are taken", end-x.raw-truth)
				}
			}
			if paused < 200 || paused > 450 {
				t.Errorf("paused for %d0 ms", paused)
			}
			for i := range v {
				v[i].leap = 0
			}
			if r := x.round(v...); r.Reason != "" || r.Mapping.Leap != 0 {
				t.Errorf("the round after it: %+v", r)
			}
			x.wants(Synced)
			if s := x.stamp(); s.Bound > 20*ms {
				t.Errorf("bound %d after it", s.Bound)
			}
			x.verified()
		})
	}
}

func TestNoRoundDuringLeapSecond(t *testing.T) {
	t.Parallel()
	x, v, end := leapWorld(t, leapInsert)
	x.round(v...)
	x.raw = end - x.truth
	if r := x.round(v...); r.Reason != ReasonLeapSecond {
		t.Errorf("reason %q", r.Reason)
	}
	x.verified()
}

// A leap second that was announced and does not come costs a second of bound for a while, and no truth.
func TestFalseLeapSecond(t *testing.T) {
	t.Parallel()
	x, v, end := leapWorld(t, leapInsert)
	x.round(v...)
	x.wait(time.Duration(end + 10*s1 - x.truth - x.raw))
	x.wants(Holdover)
	for i := range v {
		v[i].leap = 0
	}
	if r := x.round(v...); r.Reason != "" {
		t.Errorf("reason %q", r.Reason)
	}
	x.wants(Synced)
	x.verified()
}

func TestLeapNeedsAMajority(t *testing.T) {
	t.Parallel()
	for n, want := range map[int]int{0: 0, 1: 0, 2: 0, 3: leapInsert, 4: leapInsert} {
		w := newWorld()
		x := start(t, w, DefaultPolicy(), 4)
		v := honest(4)
		for i := range n {
			v[i].leap = leapInsert
		}
		if r := x.round(v...); r.Mapping.Leap != want {
			t.Errorf("%d of 4 announce one: %d", n, r.Mapping.Leap)
		}
	}
}

func TestMonthEnd(t *testing.T) {
	t.Parallel()
	for from, to := range map[string]string{
		"2026-12-31T23:59:59Z": "2027-01-01T00:00:00Z", "2028-02-01T00:00:00Z": "2028-03-01T00:00:00Z", "2026-11-30T12:00:00Z": "2026-12-01T00:00:00Z",
	} {
		a, err := time.Parse(time.RFC3339, from)
		if err != nil {
			t.Fatal(err)
		}
		if got := time.Unix(0, monthEnd(a.UnixNano())).UTC().Format(time.RFC3339); got != to {
			t.Errorf("%s: %s, want %s", from, got, to)
		}
	}
}
