package clock

import "time"

// A leap second is announced by the servers' leap indicator, which speaks of the end of the current month (RFC 5905 section 7.3).
// POSIX time has no number for it: at an insertion 23:59:59 is counted twice, at a deletion not at all. UTC kept against an
// oscillator runs on; shift makes of it what POSIX counts.

// Leap indicators, as in NTP.
const (
	leapInsert = 1
	leapDelete = 2
)

// leapMargin is how far around a leap second events wait, and by how much bounds are wider until a round has confirmed it.
const leapMargin = billion

// monthEnd is when the month of utc ends.
func monthEnd(utc int64) int64 {
	t := time.Unix(0, utc).UTC()
	return time.Date(t.Year(), t.Month()+1, 1, 0, 0, 0, 0, time.UTC).UnixNano()
}

// majorityLeap is the leap indicator that more than half of the samples that agree show, and more of them than may lie.
func majorityLeap(samples []Sample, f int) int {
	agree := 0
	var votes [4]int
	for _, s := range samples {
		if s.Verdict == OK {
			agree++
			votes[s.Leap&3]++
		}
	}
	for leap := leapInsert; leap <= leapDelete; leap++ {
		if votes[leap] > f && 2*votes[leap] > agree {
			return leap
		}
	}
	return 0
}

// shift is what a leap second adds to utc, which was counted on without it and is known to within bound; by how much more the bound
// must grow; and what to tell.
func (m *Mapping) shift(utc, bound int64) (by, wider int64, flags Flags) {
	if m.Leap == 0 {
		return 0, 0, 0
	}
	at, by := m.LeapAt, int64(-billion)
	if m.Leap == leapDelete {
		at, by = m.LeapAt-billion, billion
	}
	if utc < at {
		by, flags = 0, LeapPending
	}
	if near := sum(2*leapMargin, bound); utc >= sub(at, near) {
		wider = leapMargin
		if utc <= add(at, near) {
			flags |= InLeap
		}
	}
	return by, wider, flags
}
