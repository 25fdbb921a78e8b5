package clock

import "time"

// Sample is the best answer of one source in a round (of a burst, the one with the shortest round trip), and what was made of it.
// Everything that the judgement rests on is in it. Durations are ns.
type Sample struct {
	Name    string `json:"name"`
	Address string `json:"address,omitzero"` // IP address and port that was asked
	Auth    string `json:"auth,omitzero"`    // algorithm of the symmetric key that authenticated the answer; absent: not authenticated
	Sent    int    `json:"sent,omitzero"`    // queries of the burst
	Good    int    `json:"good,omitzero"`    // answers that could be used

	// Why there is no answer to judge, or why it was not used; absent if it was.
	Failure string `json:"failure,omitzero"`

	T1      int64   `json:"t1,string,omitzero"` // query sent, by the system's clock
	T2      int64   `json:"t2,string,omitzero"` // query received, by the server's
	T3      int64   `json:"t3,string,omitzero"` // answer sent, by the server's
	T4      int64   `json:"t4,string,omitzero"` // answer received, by the system's, as the kernel stamped it
	Before  Reading `json:"before,omitzero"`    // of the machine's clocks before T1
	After   Reading `json:"after,omitzero"`     // and after T4
	RefTime int64   `json:"ref_time,string,omitzero"`
	Delay   int64   `json:"root_delay,omitzero"`
	Disp    int64   `json:"root_dispersion,omitzero"`
	Prec    int64   `json:"precision,omitzero"`
	Stratum int     `json:"stratum,omitzero"`
	RefID   string  `json:"ref_id,omitzero"` // eight hexadecimal digits
	Leap    int     `json:"leap,omitzero"`
	Version int     `json:"version,omitzero"`
	Kiss    string  `json:"kiss,omitzero"` // kiss code of a server that wants not to be asked, RFC 5905 section 7.4
	Judgement
}

// Judgement is what follows from a sample, its round and the policy.
type Judgement struct {
	Verdict  string `json:"verdict"`               // ok, falseticker or rejected
	Reason   string `json:"reason,omitzero"`       // why rejected
	RTT      int64  `json:"rtt,omitzero"`          // the round trip without the server's own time
	Theta    int64  `json:"theta,string,omitzero"` // UTC minus CLOCK_MONOTONIC_RAW at the round's reading
	Distance int64  `json:"distance,omitzero"`     // by which Theta may be wrong if the server is honest
}

// Verdicts.
const (
	OK          = "ok"
	Falseticker = "falseticker" // contradicts what enough others agree on
	Rejected    = "rejected"
)

// Reasons for which a sample is rejected. Those of package clock/ntp, in Failure, come before a judgement; "moved" may come from both.
const (
	ReasonRange     = "range"     // a value is beyond what this package computes with: the system's clock is outside 1970 to 2116, or the answer is garbage
	ReasonKiss      = "kiss"      // the server asks to be left alone
	ReasonVersion   = "version"   // not NTP version 4
	ReasonLeap      = "leap"      // the server says that it is not synchronised
	ReasonStratum   = "stratum"   // 16 or more: not synchronised
	ReasonEra       = "era"       // before this software was written, or after 2106
	ReasonStale     = "stale"     // the server itself was set more than 36 hours ago
	ReasonReference = "reference" // the server was set after it answered
	ReasonBackwards = "backwards" // it sent the answer before it received the query
	ReasonMoved     = "moved"     // the system's clock was set during the query
	ReasonNegative  = "negative"  // it claims to have worked on the answer for longer than the round trip took
	ReasonDelay     = "delay"     // the round trip is above the policy's max_rtt
	ReasonDistance  = "distance"  // the uncertainty is above the policy's max_dist
)

const (
	horizon        = 1 << 62                        // readings and timestamps lie in 0..horizon (146 years): differences of two cannot overflow
	shortHorizon   = 1 << 44                        // delays, dispersions, widths: 4.9 hours
	firstPlausible = 1767225600 * billion           // 2026-01-01
	lastPlausible  = (1 << 32) * billion            // 2106-02-07: NTP timestamps are read as of 1970 or later
	maxStale       = (1 << 17) * int64(time.Second) // RFC 5905's greatest poll interval
	stepSize       = int64(time.Millisecond)        // smaller steps are left to the offset, which tracks them
	localPrec      = int64(time.Microsecond)        // of reading the system's clock
	fieldRounding  = 2 * 15_259                     // root delay and dispersion have a resolution of 2^-16 s
)

// Judge says what the sample is worth by itself, at the end of its own query.
func (s *Sample) Judge(p Policy) Judgement { return s.judge(p, s.After, 0) }

// judge says what a sample is worth at the round's reading: where it puts UTC and how surely, or why not. rate is the oscillator's
// known error in ppb.
func (s *Sample) judge(p Policy, asOf Reading, rate int64) Judgement {
	reject := func(reason string) Judgement { return Judgement{Verdict: Rejected, Reason: reason} }
	if s.Failure != "" {
		return reject(s.Failure)
	}
	if reason := s.flaw(asOf); reason != "" {
		return reject(reason)
	}
	before, after := s.Before.Real-s.Before.Raw, s.After.Real-s.After.Raw
	moved := abs(after - before)
	width := s.Before.Width + s.After.Width
	elapsed := s.After.Raw - s.Before.Raw
	rtt := (s.T4 - s.T1) - (s.T3 - s.T2)
	switch {
	case s.T1 < s.Before.Real, s.T4 < s.T1, s.T4 > s.After.Real, moved > stepSize+width+elapsed/8:
		return reject(ReasonMoved) // a slew, of at most an eighth, only widens
	case rtt < 0:
		return reject(ReasonNegative)
	case rtt > p.MaxRTT:
		return reject(ReasonDelay)
	}
	// RFC 5905's root distance, and what it leaves out: the precision of both clocks, the fields' resolution, the system's clock
	// moving under the query, the time it took to read, the oscillator's error until the round's reading.
	dist := sum(half(rtt+s.Delay), s.Disp, s.Prec, localPrec, fieldRounding, moved, width,
		grown(asOf.Raw+asOf.Width-s.Before.Raw, p.GrowthFree))
	dist = max(dist, p.MinDist)
	if dist > p.MaxDist {
		return reject(ReasonDistance)
	}
	theta := sum(middle(s.T2-s.T1, s.T3-s.T4), middle(before, after), drifted(asOf.Raw-s.After.Raw, rate))
	return Judgement{Verdict: OK, RTT: rtt, Theta: theta, Distance: dist}
}

// flaw is what is wrong with an answer by itself, or empty.
func (s *Sample) flaw(asOf Reading) string {
	for _, t := range [...]int64{s.T1, s.T2, s.T3, s.T4, s.Before.Real, s.Before.Raw, s.After.Real, s.After.Raw, asOf.Raw} {
		if t < 0 || t > horizon {
			return ReasonRange
		}
	}
	for _, d := range [...]int64{s.Delay, s.Disp, s.Prec, s.Before.Width, s.After.Width, asOf.Width} {
		if d < 0 || d > shortHorizon {
			return ReasonRange
		}
	}
	switch {
	case s.Before.Raw > s.After.Raw || s.After.Raw > asOf.Raw:
		return ReasonRange
	case s.Stratum == 0:
		return ReasonKiss
	case s.Version != 4:
		return ReasonVersion
	case s.Leap == 3:
		return ReasonLeap
	case s.Stratum < 0 || s.Stratum > 15:
		return ReasonStratum
	case s.T2 < firstPlausible || s.T3 > lastPlausible:
		return ReasonEra
	case s.T3 < s.T2:
		return ReasonBackwards
	case s.RefTime > s.T3:
		return ReasonReference
	case sub(s.T3, s.RefTime) > maxStale:
		return ReasonStale
	}
	return ""
}

func (j Judgement) interval() interval {
	return interval{sub(j.Theta, j.Distance), add(j.Theta, j.Distance)}
}
