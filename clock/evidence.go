package clock

import "fmt"

// Evidence is the body of an entry of kind clock: a round of measurement, a change of state, or a round with the change that it
// made. It is canonical JSON by itself: no floats, no null, and numbers that can exceed +-MaxInt are decimal strings.
type Evidence struct {
	Round      *Round      `json:"round,omitzero"`
	Transition *Transition `json:"transition,omitzero"`
}

// Round is one round of measurement: every source's best sample, and what followed from them. Given the rounds before it since
// the last start, and the policy, an auditor recomputes everything but samples, readings and what the kernel and chronyd said.
type Round struct {
	Number  uint64   `json:"number"`        // counts rounds since the start, also those that failed; never used twice
	Base    uint64   `json:"base,omitzero"` // the last round before it that took effect: those between could not be recorded everywhere
	Epoch   uint32   `json:"epoch"`
	Reading Reading  `json:"reading"` // the instant that the round is about
	Samples []Sample `json:"samples,omitzero"`
	Kernel  *Kernel  `json:"kernel,omitzero"`
	Chronyd *Chronyd `json:"chronyd,omitzero"`

	F       int      `json:"f"`                    // how many sources may lie
	Usable  int      `json:"usable"`               // samples not rejected
	Agree   int      `json:"agree"`                // samples that meet the hull
	Low     int64    `json:"low,string,omitzero"`  // the hull: UTC minus CLOCK_MONOTONIC_RAW lies between Low
	High    int64    `json:"high,string,omitzero"` // and High
	Drift   *Drift   `json:"drift,omitzero"`       // with this round
	Alarms  []string `json:"alarms,omitzero"`      // what an operator should look at: rate, kernel, chronyd
	Reason  string   `json:"reason,omitzero"`      // why the round yields no estimate
	Mapping *Mapping `json:"estimate,omitzero"`    // the estimate that holds from here on; absent: the one before goes on
	State   State    `json:"state"`                // after the round
}

// Reasons for which a round yields no estimate.
const (
	ReasonSources       = "sources"       // fewer than 2F+1 samples can be used, or too few are configured
	ReasonMinority      = "minority"      // the policy is strict, and those that agree are not more than half of the configured
	ReasonDisagreement  = "disagreement"  // there is no point that all but F samples cover
	ReasonBound         = "bound"         // the bound is above the policy's limit
	ReasonLeapSecond    = "leap-second"   // servers may disagree during a leap second
	ReasonBehind        = "behind"        // UTC would be before what was recorded before the last start
	ReasonDiscontinuity = "discontinuity" // UTC cannot be where the estimate before it puts it
	ReasonSettling      = "settling"      // the first of two rounds that have to agree
)

// Alarms of a round. None of them changes an estimate.
const (
	AlarmRate    = "rate"    // the oscillator's rate has changed by more than its errors explain: a slow attack, or a migration
	AlarmKernel  = "kernel"  // the kernel claims to be disciplined to within an error that the round contradicts
	AlarmChronyd = "chronyd" // chronyd claims so
)

// Transition is a change of state, or of what governs it.
type Transition struct {
	Base    uint64  `json:"base,omitzero"` // as in Round
	Reason  string  `json:"reason"`
	From    State   `json:"from"`
	To      State   `json:"to"`
	Epoch   uint32  `json:"epoch"` // after it
	Reading Reading `json:"reading"`
	Moved   int64   `json:"moved,string,omitzero"` // ns: the step, the time suspended, the pause

	// With start and policy.
	Policy    *Policy  `json:"policy,omitzero"`
	Sources   []string `json:"sources,omitzero"`           // names, in the order of samples
	BootID    string   `json:"boot_id,omitzero"`           // with boot as well
	NotBefore int64    `json:"not_before,string,omitzero"` // with start: the earliest that UTC can be, as recorded before
}

// Reasons of transitions.
const (
	ReasonStart   = "start"   // the daemon starts: nothing is known
	ReasonPolicy  = "policy"  // another policy governs from here on
	ReasonRound   = "round"   // the round in the same entry
	ReasonAge     = "age"     // time has passed without a good round
	ReasonStep    = "step"    // the system's clock was set; CLOCK_MONOTONIC_RAW was not
	ReasonSuspend = "suspend" // the machine slept
	ReasonPause   = "pause"   // the machine or the process stood still
	ReasonBoot    = "boot"    // the boot id changed: this is another machine, or a restored one
	ReasonRaw     = "raw"     // CLOCK_MONOTONIC_RAW went backwards
)

// Kernel is what the kernel says of its own discipline, as adjtimex(2) has it. It is evidence beside the samples: it never makes a
// bound smaller.
type Kernel struct {
	State    int   `json:"state"`
	Status   int   `json:"status"`
	Offset   int64 `json:"offset"`    // ns
	Freq     int64 `json:"freq"`      // 2^-16 ppm
	MaxError int64 `json:"max_error"` // us
	EstError int64 `json:"est_error"` // us
	TAI      int   `json:"tai,omitzero"`
}

// staUnsync is STA_UNSYNC of adjtimex(2): nobody disciplines the clock.
const staUnsync = 0x40

// Chronyd is what a local chronyd says of the system's clock (chronyc tracking). Like Kernel it is evidence beside the samples.
type Chronyd struct {
	RefID      string `json:"ref_id"` // eight hexadecimal digits
	Address    string `json:"address,omitzero"`
	Stratum    int    `json:"stratum"`
	Leap       int    `json:"leap,omitzero"`
	RefTime    int64  `json:"ref_time,string,omitzero"`
	Correction int64  `json:"correction"`      // ns that the system's clock is behind chronyd's UTC
	RootDelay  int64  `json:"root_delay"`      // ns
	RootDisp   int64  `json:"root_dispersion"` // ns
}

// MaxText bounds what names and reasons may be in evidence.
const MaxText = 255

// Check refuses evidence that no daemon of ours writes: it bounds what the checks after it have to cope with. Errors name the field.
func (e *Evidence) Check() error {
	if e.Round == nil && e.Transition == nil {
		return fmt.Errorf("neither round nor transition")
	}
	if r := e.Round; r != nil {
		if err := r.check(); err != nil {
			return fmt.Errorf("round.%w", err)
		}
	}
	if t := e.Transition; t != nil {
		if err := t.check(); err != nil {
			return fmt.Errorf("transition.%w", err)
		}
	}
	return nil
}

func (r *Round) check() error {
	if r.Number == 0 || r.Number > MaxInt || r.Base >= r.Number {
		return fmt.Errorf("number: must be above base, and within 1..2^53-1")
	}
	if len(r.Samples) > MaxSources {
		return fmt.Errorf("samples: %d are more than %d", len(r.Samples), MaxSources)
	}
	names := map[string]bool{}
	for i, s := range r.Samples {
		for _, x := range []string{s.Name, s.Address, s.Auth, s.Failure, s.RefID, s.Kiss, s.Verdict, s.Reason} {
			if len(x) > MaxText {
				return fmt.Errorf("samples[%d]: a text is longer than %d bytes", i, MaxText)
			}
		}
		if s.Name == "" || names[s.Name] {
			return fmt.Errorf("samples[%d].name: empty, or there twice", i)
		}
		names[s.Name] = true
	}
	return r.Reading.check()
}

func (t *Transition) check() error {
	if t.Base > MaxInt {
		return fmt.Errorf("base: above 2^53-1")
	}
	if len(t.Reason) > MaxText || len(t.BootID) > MaxText {
		return fmt.Errorf("reason or boot_id: longer than %d bytes", MaxText)
	}
	if len(t.Sources) > MaxSources {
		return fmt.Errorf("sources: %d are more than %d", len(t.Sources), MaxSources)
	}
	for i, s := range t.Sources {
		if s == "" || len(s) > MaxText {
			return fmt.Errorf("sources[%d]: must have 1 to %d bytes", i, MaxText)
		}
	}
	if needs := t.Reason == ReasonStart || t.Reason == ReasonPolicy; needs != (t.Policy != nil) {
		return fmt.Errorf("policy: belongs to start and policy, and only there")
	}
	if t.Policy != nil {
		if err := t.Policy.Validate(); err != nil {
			return fmt.Errorf("policy.%w", err)
		}
	}
	return t.Reading.check()
}

func (r Reading) check() error {
	if r.Raw < 0 || r.Raw > horizon || r.Width < 0 || r.Width > shortHorizon {
		return fmt.Errorf("reading: raw or width is beyond what clocks show")
	}
	return nil
}
