// Package clock keeps UTC with a proven bound, and checks such claims from their evidence.
//
// It is not a copy of the system's clock. UTC is kept against CLOCK_MONOTONIC_RAW, an oscillator that nobody sets or slews: a round
// of measurements of several NTP servers says how far UTC is from it, and how sure that is. An entry of the log records the
// system's time as it was, and beside it the offset to UTC and its bound. So a step or a slew of the system's clock changes the
// recorded offset, correctly and at once, and never the truth of what is recorded.
//
//	clock.go       states, readings of the machine's clocks, the stamp of an entry
//	policy.go      what the governed policy demands of measurements and of stamps
//	sample.go      one server's answer: is it usable, which interval does it put UTC in
//	hull.go        the interval that holds UTC if at most f servers lie
//	rate.go        the oscillator's error, from the rounds of the last hours
//	estimate.go    UTC between rounds: what a round implies for any later instant
//	leap.go        leap seconds
//	discipline.go  the state machine: rounds, steps, suspends, time passing
//	evidence.go    what is recorded of all this
//	check.go       the same again, by an auditor, from the evidence alone; compare.go says what differs
//	arith.go       integers that saturate
//
// Nothing here reads a clock or a socket: package clock/ntp does. All arithmetic that an auditor repeats is on integers, with
// nanoseconds (ns) and parts per billion (ppb) as units, and saturates instead of overflowing, so that it yields the same on every
// machine and for every input. Times are ns since 1970 in UTC as POSIX counts it, without leap seconds.
package clock

import (
	"fmt"
	"math"
)

// MaxInt bounds the numbers that an entry can record: +-(2^53-1), as ns 104 days.
const MaxInt = 1<<53 - 1

// State says how far the clock may be relied upon.
type State uint8

const (
	Unknown   State = iota // no round has succeeded since the start
	Synced                 // the last round is recent and good
	Holdover               // no good round lately; the bound has grown, and still holds
	Unsynced               // too long without a good round, or rounds that contradict each other
	Disrupted              // a step, a suspend or a pause happened; new rounds must come first
)

var states = [...]string{"unknown", "synced", "holdover", "unsynced", "disrupted"}

func (s State) String() string {
	if int(s) < len(states) {
		return states[s]
	}
	return fmt.Sprintf("state(%d)", uint8(s))
}

// ParseState is the inverse of String.
func ParseState(name string) (State, error) {
	for i, s := range states {
		if s == name {
			return State(i), nil
		}
	}
	return Unknown, fmt.Errorf("%.40q is not a state of the clock: unknown, synced, holdover, unsynced, disrupted", name)
}

// MarshalText is the state's name; a value that has none is an error.
func (s State) MarshalText() ([]byte, error) {
	if int(s) >= len(states) {
		return nil, fmt.Errorf("encoding a state of the clock: %d has no name", uint8(s))
	}
	return []byte(states[s]), nil
}

// UnmarshalText reads what MarshalText makes.
func (s *State) UnmarshalText(b []byte) (err error) {
	*s, err = ParseState(string(b))
	return err
}

// Reading is one reading of the machine's clocks, in ns. They cannot be read in one instant: when Real, Mono and Boot were read,
// CLOCK_MONOTONIC_RAW stood within [Raw, Raw+Width].
type Reading struct {
	Real  int64 `json:"real,string"`          // CLOCK_REALTIME: ns since 1970
	Mono  int64 `json:"mono,string,omitzero"` // CLOCK_MONOTONIC
	Raw   int64 `json:"raw,string"`           // CLOCK_MONOTONIC_RAW
	Boot  int64 `json:"boot,string,omitzero"` // CLOCK_BOOTTIME: CLOCK_MONOTONIC that goes on during suspend
	Width int64 `json:"width,omitzero"`       // how long the reading took
}

// Flags of a stamp. They are not recorded: they follow from the round and the policy.
type Flags uint8

const (
	Warn        Flags = 1 << iota // the bound is above the policy's warning level
	LeapPending                   // a leap second comes at the end of this month
	InLeap                        // within a second of the leap second
)

// Stamp is what an entry records of the clock at the instant it was received.
//
// Without HasEstimate, Offset, Bound, Age and Round are zero and not recorded: there is no estimate, or a value would be beyond
// +-MaxInt.
type Stamp struct {
	Sys         int64  // the system's time, ns since 1970, never corrected
	Offset      int64  // ns to add to Sys to get UTC
	Bound       int64  // ns by which that may be wrong, either way
	Age         int64  // ns of CLOCK_MONOTONIC_RAW since round Round
	Round       uint64 // the round of measurement that Offset and Bound follow from
	Epoch       uint32 // counts starts and disruptions
	State       State
	Flags       Flags
	HasEstimate bool
}

// UTC is the best estimate of UTC; without an estimate it is the system's time.
func (s Stamp) UTC() int64 { return add(s.Sys, s.Offset) }

// Earliest is the earliest instant of UTC that the stamp may have been made at: without an estimate, math.MinInt64.
func (s Stamp) Earliest() int64 {
	if !s.HasEstimate {
		return math.MinInt64
	}
	return sub(s.UTC(), s.Bound)
}

// Latest is the latest instant of UTC that the stamp may have been made at: without an estimate, math.MaxInt64.
func (s Stamp) Latest() int64 {
	if !s.HasEstimate {
		return math.MaxInt64
	}
	return add(s.UTC(), s.Bound)
}

// Source stamps entries. It is safe for concurrent use and takes less than 1.5 us.
type Source interface {
	Now() Stamp
}
