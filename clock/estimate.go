package clock

// Mapping is UTC as a function of CLOCK_MONOTONIC_RAW, as a round found it at its reading.
type Mapping struct {
	UTCMinusRaw int64 `json:"utc_minus_raw,string"`    // ns, at the round's reading
	Bound       int64 `json:"bound"`                   // ns by which it may be wrong there
	Rate        int64 `json:"rate"`                    // ppb by which UTC gains on the oscillator since
	Growth      int64 `json:"growth"`                  // ppb by which the bound grows since
	Leap        int   `json:"leap,omitzero"`           // 1: a leap second is inserted at LeapAt; 2: one is left out
	LeapAt      int64 `json:"leap_at,string,omitzero"` // UTC, the end of the month
}

// Estimate answers what UTC is, at any instant after the round it rests on, until it is too old. It is immutable, and safe to
// share between goroutines. The zero Estimate knows nothing.
type Estimate struct {
	Mapping
	AsOf  int64  // CLOCK_MONOTONIC_RAW of the round's reading
	Round uint64 // 0: there is none, and only State and Epoch mean anything
	Epoch uint32
	State State // Synced, or why the estimate is not to be relied upon whatever its age

	hold, void  int64 // ages after which it is holdover, and unsynced
	limit, warn int64 // bounds
}

// At is the stamp for what happened when the machine's clocks were read as r (Real, Raw and Width).
func (e *Estimate) At(r Reading) Stamp {
	s := Stamp{Sys: r.Real, Epoch: e.Epoch, State: e.State}
	if e.Round == 0 {
		return s
	}
	age := sub(r.Raw, e.AsOf)
	if age < 0 { // this clock never goes back, unless the machine is not the one that it was
		s.State = Disrupted
		return s
	}
	utc, bound, wider, flags := e.utc(r.Raw, r.Width)
	s.Flags = flags
	if s.State == Synced {
		s.State = e.aged(age, bound)
	}
	bound = sum(bound, wider, r.Width) // Real was read at some point of the reading
	offset := sub(utc, r.Real)
	if abs(offset) > MaxInt || bound > MaxInt || age > MaxInt {
		return s
	}
	s.HasEstimate, s.Offset, s.Bound, s.Age, s.Round = true, offset, bound, age, e.Round
	if bound > e.warn {
		s.Flags |= Warn
	}
	return s
}

// utc is UTC at raw, which may have been up to width later; its bound, and what a leap second adds to that.
func (e *Estimate) utc(raw, width int64) (utc, bound, wider int64, flags Flags) {
	age := sub(raw, e.AsOf)
	utc = sum(raw, e.UTCMinusRaw, drifted(age, e.Rate))
	bound = add(e.Bound, grown(add(age, width), e.Growth))
	by, wider, flags := e.shift(utc, bound)
	return add(utc, by), bound, wider, flags
}

// aged is the state of an estimate that was synced when made.
func (e *Estimate) aged(age, bound int64) State {
	switch {
	case age > e.void || bound > e.limit:
		return Unsynced
	case age > e.hold:
		return Holdover
	}
	return Synced
}

// holdAfter is how many polls without a good round make holdover.
const holdAfter = 3

// governed sets the ages and bounds that the policy demands.
func (e Estimate) governed(p Policy) Estimate {
	e.hold, e.void, e.limit, e.warn = holdAfter*p.Poll, p.HoldoverMax, p.Limit, p.Warn
	return e
}
