package clock

import (
	"fmt"
	"time"
)

// Modes of a policy: what happens to events when the clock is not synced.
const (
	Refuse   = "refuse"   // events are refused
	Mark     = "mark"     // events are taken, and record the state
	InHold   = "holdover" // events are taken while the bound is within Limit, for at most HoldoverMax, and then refused
	LeapHold = "pause"    // Leap: events are refused from a second before a leap second until a second after it
	LeapMark = "mark"     // Leap: events are taken, with a bound wider by a second
)

// Policy is the governed policy on time. It is canonical JSON by itself: integers and strings. Durations are ns.
type Policy struct {
	Mode        string `json:"mode"`         // refuse, mark or holdover
	Limit       int64  `json:"limit"`        // the greatest bound that events are taken with, and that a round may have
	Warn        int64  `json:"warn"`         // the bound above which operators are warned; at most Limit
	HoldoverMax int64  `json:"holdover_max"` // how long after its round an estimate may be used
	MaxOffset   int64  `json:"max_offset"`   // how far the system's clock may be from UTC while events are taken; 0: any distance
	Leap        string `json:"leap"`         // pause or mark

	F          int   `json:"f"`               // how many of the configured sources may lie without the bound becoming wrong
	MinSources int   `json:"min_sources"`     // how many sources must be configured, at least 2F+1
	Strict     bool  `json:"strict,omitzero"` // rounds need agreement of more than half of the configured sources, not only of those that answer
	Poll       int64 `json:"poll"`            // between rounds
	MinDist    int64 `json:"min_dist"`        // the least uncertainty that is believed of a sample
	MaxDist    int64 `json:"max_dist"`        // samples more uncertain than this are rejected
	MaxRTT     int64 `json:"max_rtt"`         // samples with a longer round trip are rejected
	Growth     int64 `json:"growth"`          // ppb by which a bound grows once the oscillator's rate is known
	GrowthFree int64 `json:"growth_free"`     // ppb by which a bound grows before that
}

// DefaultPolicy takes events within 1 s of UTC, for at most 4 h without its sources, and survives one liar.
func DefaultPolicy() Policy {
	return Policy{
		Mode: InHold, Limit: int64(time.Second), Warn: int64(50 * time.Millisecond), HoldoverMax: int64(4 * time.Hour), MaxOffset: int64(1000 * time.Second), Leap: LeapHold,
		F: 1, MinSources: 4, Poll: int64(32 * time.Second), MinDist: int64(time.Millisecond), MaxDist: int64(time.Second), MaxRTT: int64(300 * time.Millisecond),
		Growth: 15_000, GrowthFree: 50_000,
	}
}

// Limits of what a policy may say: within them no arithmetic of this package can saturate on honest clocks.
const (
	MaxSources = 32
	maxPoll    = int64(1024 * time.Second)
	maxHold    = int64(7 * 24 * time.Hour)
)

// Validate refuses a policy that contradicts itself or promises what cannot be kept; the error names the field.
func (p Policy) Validate() error {
	if p.Mode != Refuse && p.Mode != Mark && p.Mode != InHold {
		return fmt.Errorf("mode: %.40q is not one of %s, %s, %s", p.Mode, Refuse, Mark, InHold)
	}
	if p.Leap != LeapHold && p.Leap != LeapMark {
		return fmt.Errorf("leap: %.40q is not one of %s, %s", p.Leap, LeapHold, LeapMark)
	}
	for _, r := range []struct {
		field            string
		value, low, high int64
	}{
		{"f", int64(p.F), 0, MaxSources / 2},
		{"min_sources", int64(p.MinSources), 2*int64(p.F) + 1, MaxSources},
		{"poll", p.Poll, int64(time.Second), maxPoll},
		{"min_dist", p.MinDist, int64(10 * time.Microsecond), int64(time.Second)},
		{"max_dist", p.MaxDist, p.MinDist, int64(16 * time.Second)},
		{"max_rtt", p.MaxRTT, int64(time.Millisecond), int64(10 * time.Second)},
		{"limit", p.Limit, p.MinDist, int64(time.Minute)},
		{"warn", p.Warn, 0, p.Limit},
		{"holdover_max", p.HoldoverMax, 3 * p.Poll, maxHold},
		{"max_offset", p.MaxOffset, 0, MaxInt},
		{"growth", p.Growth, 1_000, 500_000},
		{"growth_free", p.GrowthFree, p.Growth, 1_000_000},
	} {
		if r.value < r.low || r.value > r.high {
			return fmt.Errorf("%s: %d is outside %d..%d", r.field, r.value, r.low, r.high)
		}
	}
	return nil
}

// Allows reports why an event stamped s must be refused, or nil. The error is for producers and operators: it says what is wrong
// and what would help.
func (p Policy) Allows(s Stamp) error {
	if p.Mode == Mark {
		return nil
	}
	switch {
	case s.State == Unknown:
		return fmt.Errorf("the clock is unknown: no round of measurement has succeeded since the start; see bulla clock for the sources' answers")
	case s.State == Disrupted:
		return fmt.Errorf("the clock was disrupted (a step, a suspend or a pause of the machine) and must be measured anew: try again")
	case s.State == Unsynced:
		return fmt.Errorf("the clock is unsynced: no good round of measurement for too long, or rounds that contradict each other; see bulla clock for the sources' answers")
	case s.State == Holdover && p.Mode == Refuse:
		return fmt.Errorf("the clock is in holdover, %v after its last good round, and the policy refuses that: check that the time sources answer", time.Duration(s.Age))
	case s.State != Synced && s.State != Holdover:
		return fmt.Errorf("the clock's state %v is not one that events are taken in", s.State)
	case !s.HasEstimate:
		return fmt.Errorf("the system's clock is more than 104 days from UTC, which cannot be recorded: set it right")
	case s.Bound > p.Limit:
		return fmt.Errorf("time is known to %v only, the policy demands %v: check that enough time sources answer and how far they are", time.Duration(s.Bound), time.Duration(p.Limit))
	case s.Age > p.HoldoverMax:
		return fmt.Errorf("the last good round of measurement was %v ago, the policy allows %v: check that the time sources answer", time.Duration(s.Age), time.Duration(p.HoldoverMax))
	case p.MaxOffset > 0 && abs(s.Offset) > p.MaxOffset:
		return fmt.Errorf("the system's clock is %v from UTC, the policy allows %v: set it right", time.Duration(s.Offset), time.Duration(p.MaxOffset))
	case s.Flags&InLeap != 0 && p.Leap == LeapHold:
		return fmt.Errorf("a leap second is under way: try again in two seconds")
	}
	return nil
}
