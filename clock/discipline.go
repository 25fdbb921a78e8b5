package clock

import "slices"

// Discipline is the state machine that turns rounds of measurement, disturbances and the passing of time into estimates and
// evidence. It is a value: each method returns the evidence of what happened and the discipline after it, and leaves the receiver
// as it was. Whoever runs it goes on with the new one once its evidence is durable, and only then publishes its estimate. An
// auditor runs the same machine over the recorded evidence and compares.
//
//	from               event                                                to
//	unknown            good round                                           synced
//	synced             no good round for 3 polls                            holdover
//	synced, holdover   older than holdover_max, or bound above limit        unsynced
//	synced, holdover   round that the estimate before it excludes           unsynced, until two rounds agree
//	any                step, suspend, pause, other boot, raw backwards      disrupted, in a new epoch
//	disrupted          good round after a step, which left raw alone;       synced
//	                   two rounds that agree after anything else
//	holdover, unsynced good round                                           synced
type Discipline struct {
	policy    Policy
	sources   []string
	epoch     uint32
	base      uint64 // last round that took effect
	state     State  // as last recorded
	estimate  Estimate
	points    []point
	drift     Drift
	notBefore int64

	settling bool // the timescale is in doubt: a round counts when another agrees with it
	pending  *doubt
}

// doubt is a hull that another round has to confirm.
type doubt struct {
	interval
	raw int64
}

// Start is what a discipline begins with.
type Start struct {
	Policy  Policy
	Sources []string // names
	BootID  string
	Reading Reading
	Resume  Resume
}

// Resume is what the daemon's logs say of its clock before this start. The zero Resume is that of new logs.
type Resume struct {
	Epoch    uint32 // the last one; this start's is the next
	Earliest int64  // the earliest that UTC can be, ns since 1970
}

// LearnBack is how many entries at the end of a log are learnt from at most.
const LearnBack = 10_000

// Learn learns from an entry: its stamp, and its body if it is of kind clock. It is shown a log's entries from the last one
// backwards, until it is done; with several logs the same Resume learns from each.
func (r *Resume) Learn(s Stamp, e *Evidence) (done bool) {
	r.Epoch = max(r.Epoch, s.Epoch)
	if s.HasEstimate && (s.State == Synced || s.State == Holdover) {
		r.Earliest = max(r.Earliest, s.Earliest())
		return true
	}
	if e == nil || e.Transition == nil || e.Transition.Reason != ReasonStart {
		return false
	}
	r.Epoch = max(r.Epoch, e.Transition.Epoch)
	r.Earliest = max(r.Earliest, e.Transition.NotBefore)
	return true
}

// Begin starts a discipline that knows nothing.
func Begin(s Start) (Evidence, Discipline) {
	d := Discipline{policy: s.Policy, sources: slices.Clone(s.Sources), epoch: s.Resume.Epoch + 1, state: Unknown, notBefore: s.Resume.Earliest}
	d.estimate = Estimate{State: Unknown, Epoch: d.epoch}.governed(s.Policy)
	t := Transition{Reason: ReasonStart, From: Unknown, To: Unknown, Epoch: d.epoch, Reading: s.Reading,
		Policy: &s.Policy, Sources: d.sources, BootID: s.BootID, NotBefore: s.Resume.Earliest}
	return Evidence{Transition: &t}, d
}

// Estimate is what may be published.
func (d *Discipline) Estimate() Estimate { return d.estimate }

// Policy is what governs.
func (d *Discipline) Policy() Policy { return d.policy }

// Settling reports whether the next round is wanted soon: one has been bad for want of a second that agrees, or there is none yet.
func (d *Discipline) Settling() bool { return d.settling || d.estimate.State != Synced }

// Govern changes the policy.
func (d Discipline) Govern(p Policy, r Reading) (Evidence, Discipline) {
	t := d.transition(ReasonPolicy, r)
	t.Policy = &p
	d.policy = p
	d.estimate = d.estimate.governed(p)
	return d.become(t, d.estimate.At(r).State)
}

// Disturb is a disturbance found at r: the reason, and by how much a clock moved.
func (d Discipline) Disturb(reason string, moved int64, bootID string, r Reading) (Evidence, Discipline) {
	t := d.transition(reason, r)
	t.Moved, t.BootID = moved, bootID
	d.epoch++
	d.estimate.Epoch, d.estimate.State = d.epoch, Disrupted
	if reason != ReasonStep { // a step leaves CLOCK_MONOTONIC_RAW alone, and UTC is kept against that
		d.estimate = Estimate{State: Disrupted, Epoch: d.epoch}.governed(d.policy)
		d.settling, d.pending, d.points, d.drift = true, nil, nil, Drift{}
	}
	return d.become(t, Disrupted)
}

// Pass lets time pass until r; ok is false if that changes nothing.
func (d Discipline) Pass(r Reading) (e Evidence, next Discipline, ok bool) {
	s := d.estimate.At(r).State
	if s == d.state {
		return Evidence{}, d, false
	}
	e, next = d.become(d.transition(ReasonAge, r), s)
	return e, next, true
}

func (d *Discipline) transition(reason string, r Reading) Transition {
	return Transition{Base: d.base, Reason: reason, From: d.state, Reading: r}
}

// become completes a transition.
func (d Discipline) become(t Transition, s State) (Evidence, Discipline) {
	t.To, t.Epoch = s, d.epoch
	d.state = s
	return Evidence{Transition: &t}, d
}

// Measurement is what a round rests on. The judgements of the samples are ignored, and made anew.
type Measurement struct {
	Number  uint64 // above that of every round since the start
	Reading Reading
	Samples []Sample
	Kernel  *Kernel
	Chronyd *Chronyd
}

// Measure makes a round of a measurement.
func (d Discipline) Measure(m Measurement) (Evidence, Discipline) {
	r := &Round{Number: m.Number, Base: d.base, Epoch: d.epoch, Reading: m.Reading, Samples: slices.Clone(m.Samples),
		Kernel: m.Kernel, Chronyd: m.Chronyd, F: d.policy.F}
	d.base = m.Number
	h, reason := d.judge(r)
	if reason == "" {
		reason = d.place(r, h)
	}
	if r.Reason = reason; reason == "" {
		d.adopt(r, h)
	}
	r.State = d.estimate.At(r.Reading).State
	e := Evidence{Round: r}
	if r.State != d.state {
		t := d.transition(ReasonRound, r.Reading)
		t.Base, t.To, t.Epoch = r.Base, r.State, d.epoch
		e.Transition, d.state = &t, r.State
	}
	return e, d
}

// judge fills in the samples' judgements and the hull.
func (d *Discipline) judge(r *Round) (h interval, reason string) {
	var usable []interval
	for i := range r.Samples {
		s := &r.Samples[i]
		if s.Judgement = s.judge(d.policy, r.Reading, d.estimate.Rate); s.Verdict == OK {
			usable = append(usable, s.interval())
		}
	}
	r.Usable = len(usable)
	if len(r.Samples) < d.policy.MinSources || r.Usable < 2*r.F+1 {
		return h, ReasonSources
	}
	h, ok := hull(usable, r.F)
	if !ok {
		return h, ReasonDisagreement
	}
	r.Low, r.High = h.low, h.high
	r.Agree = name(r.Samples, usable, h)
	if d.policy.Strict && 2*(r.Usable-r.F) <= len(r.Samples) {
		return h, ReasonMinority
	}
	return h, ""
}

// name marks the falsetickers: what does not meet the hull must be lying if at most f do; what does not meet RFC 5905's selection
// probably is. It returns how many samples meet the hull.
func name(samples []Sample, usable []interval, h interval) (agree int) {
	majority, known := intersect(usable)
	for i := range samples {
		s := &samples[i]
		if s.Verdict == Rejected {
			continue
		}
		in := s.interval()
		if in.meets(h) {
			agree++
		}
		if !in.meets(h) || known && !in.meets(majority) {
			s.Verdict = Falseticker
		}
	}
	return agree
}

// place decides whether UTC may be in h, given what is known from before.
func (d *Discipline) place(r *Round, h interval) (reason string) {
	raw := r.Reading.Raw
	m := d.mapping(r, h)
	if m.Bound > d.policy.Limit {
		return ReasonBound
	}
	if latest := sum(raw, m.UTCMinusRaw, m.Bound); latest < d.notBefore {
		return ReasonBehind
	}
	agrees := false // with the estimate before it
	if d.estimate.Round > 0 {
		utc, bound, wider, flags := d.estimate.utc(raw, r.Reading.Width)
		if flags&InLeap != 0 {
			return ReasonLeapSecond
		}
		at := sub(utc, raw)
		if agrees = raw >= d.estimate.AsOf && h.meets(interval{at, at}.widened(add(bound, wider))); !agrees && !d.settling {
			d.settling, d.pending = true, &doubt{h, raw}
			d.estimate.State = Unsynced
			return ReasonDiscontinuity
		}
	}
	if !d.settling || agrees {
		return ""
	}
	confirmed := d.pending != nil && raw >= d.pending.raw &&
		h.meets(d.pending.widened(grown(sub(raw, d.pending.raw), d.policy.GrowthFree)))
	if !confirmed {
		d.pending = &doubt{h, raw}
		return ReasonSettling
	}
	d.points, d.drift = nil, Drift{} // a new timescale
	return ""
}

// mapping is UTC if it lies in h: the mean of the samples that agree, weighted by the inverse of their distances.
func (d *Discipline) mapping(r *Round, h interval) Mapping {
	least := int64(0)
	for _, s := range r.Samples {
		if s.Verdict == OK && (least == 0 || s.Distance < least) {
			least = s.Distance
		}
	}
	centre := h.middle()
	weights, weighted := int64(0), int64(0)
	for _, s := range r.Samples {
		if s.Verdict == OK {
			// At most 2^20, and deviations are at most some seconds: 2^35. With 32 samples that stays below 2^60.
			w := max(1, least<<20/s.Distance)
			weights += w
			weighted = add(weighted, w*min(max(sub(s.Theta, centre), -1<<38), 1<<38))
		}
	}
	theta := centre
	if weights > 0 {
		theta = h.clamp(add(centre, weighted/weights))
	}
	return Mapping{UTCMinusRaw: theta, Bound: add(max(sub(theta, h.low), sub(h.high, theta)), r.Reading.Width)}
}

// adopt makes the round's estimate the one that holds.
func (d *Discipline) adopt(r *Round, h interval) {
	m := d.mapping(r, h)
	if d.estimate.Leap != 0 {
		if by, _, _ := d.estimate.shift(sum(r.Reading.Raw, m.UTCMinusRaw), 0); by != 0 {
			d.points = nil // from before the leap second
		}
	}
	d.points = remember(d.points, point{r.Reading.Raw, m.UTCMinusRaw, m.Bound})
	d.drift = fit(d.points)
	m.Rate, m.Growth = d.drift.apply(d.policy)
	if m.Leap = majorityLeap(r.Samples, r.F); m.Leap != 0 {
		m.LeapAt = monthEnd(sum(r.Reading.Raw, m.UTCMinusRaw))
	}
	r.Mapping = &m
	if d.drift.Points > 0 {
		drift := d.drift
		r.Drift = &drift
	}
	r.Alarms = d.alarms(r)
	d.settling, d.pending = false, nil
	d.estimate = Estimate{Mapping: m, AsOf: r.Reading.Raw, Round: r.Number, Epoch: d.epoch, State: Synced}.governed(d.policy)
}

// alarms names what contradicts the round without being able to change it.
func (d *Discipline) alarms(r *Round) (alarms []string) {
	if jumped(d.points) {
		alarms = append(alarms, AlarmRate)
	}
	// How far the system's clock is behind UTC, and how sure that is.
	behind := sub(sum(r.Reading.Raw, r.Mapping.UTCMinusRaw), r.Reading.Real)
	sure := add(r.Mapping.Bound, r.Reading.Width)
	if k := r.Kernel; k != nil && k.Status&staUnsync == 0 {
		if claimed := add(k.MaxError, 1); claimed < MaxInt/1000 && abs(behind) > add(claimed*1000, sure) {
			alarms = append(alarms, AlarmKernel)
		}
	}
	if c := r.Chronyd; c != nil && c.Leap != 3 {
		if abs(sub(behind, c.Correction)) > sum(c.RootDisp, half(c.RootDelay), sure) {
			alarms = append(alarms, AlarmChronyd)
		}
	}
	return alarms
}
