package clock

import (
	"fmt"
	"math"
	"slices"
	"time"
)

// Finding is something in a log that an honest daemon does not write.
type Finding struct {
	Rule     string // one of the rules below
	Field    string // of the evidence or of the stamp; empty: all of it
	Expected string
	Found    string
}

func (f Finding) String() string {
	return fmt.Sprintf("%s: %s is %s, expected %s", f.Rule, f.Field, f.Found, f.Expected)
}

// Rules of findings. The names are stable.
const (
	RuleEvidence = "clock-evidence" // a record of the clock is malformed, or before the daemon's start
	RuleOrder    = "clock-order"    // rounds, epochs or entries are not in the order of time
	RuleRound    = "clock-round"    // what a round says does not follow from its samples and from what came before
	RuleState    = "clock-state"    // a change of state does not follow from what came before
	RuleMissing  = "clock-missing"  // an entry names a round that is not before it in the log
	RuleStamp    = "clock-stamp"    // an entry's offset, bound or state does not follow from the round it names
	RulePolicy   = "clock-policy"   // an event was taken although policy refuses such time
)

// Rules lists every rule with what it means, for reports.
func Rules() map[string]string {
	return map[string]string{
		RuleEvidence: "a record of the clock is malformed, or comes before any start",
		RuleOrder:    "rounds, epochs or entries are not in the order of time",
		RuleRound:    "what a round of measurement claims does not follow from its samples",
		RuleState:    "a change of the clock's state does not follow from what came before",
		RuleMissing:  "an entry names a round of measurement that is not before it in the log",
		RuleStamp:    "an entry's offset, bound or state does not follow from the round it names",
		RulePolicy:   "an event was taken although the policy refuses such time",
	}
}

// keptRounds is how many estimates the checker remembers for entries to name. A producer's entry names the newest or, while a newer
// one is on its way, the one before; holdover with a log that could not record is the only reason for older ones.
const keptRounds = 1024

// Checker recomputes, from a log's own entries in their order, what the clock claimed. It holds the state of one log; the zero
// Checker is at a log's beginning.
type Checker struct {
	started bool
	now     Discipline // after the last evidence
	before  Discipline // before the last round: where things go on if that took no effect
	last    Evidence
	highest uint64 // round number since the last start
	rounds  []Estimate
	raw     int64 // CLOCK_MONOTONIC_RAW had come to here by the stamps since the last start
}

// rawSlack is by how much CLOCK_MONOTONIC_RAW may be behind a stamp before. It never is, but on a machine that is not the one that it
// was; the daemon watches for that every few seconds, and then says so.
const rawSlack = int64(10 * time.Second)

// Evidence checks the next entry of kind clock.
func (c *Checker) Evidence(e *Evidence) []Finding {
	if err := e.Check(); err != nil {
		return []Finding{{RuleEvidence, "", "what a daemon records", err.Error()}}
	}
	if e.Transition != nil && e.Round == nil && e.Transition.Reason == ReasonStart {
		return c.start(e)
	}
	if !c.started {
		return []Finding{{RuleEvidence, "", "a transition with reason start first", "a record without one"}}
	}
	if e.Round == nil && equalEvidence(e, &c.last) {
		return nil // recorded again, because not every log of the daemon had taken it
	}
	d, ok := c.from(e)
	if !ok {
		return []Finding{{RuleOrder, "base", fmt.Sprint(c.now.base), fmt.Sprint(base(e))}}
	}
	if r := e.Round; r != nil && r.Number <= c.highest {
		return []Finding{{RuleOrder, "round.number", fmt.Sprintf("above %d", c.highest), fmt.Sprint(r.Number)}}
	}
	if r := e.Round; r != nil && !slices.EqualFunc(r.Samples, d.sources, func(s Sample, name string) bool { return s.Name == name }) {
		return []Finding{{RuleRound, "round.samples", fmt.Sprintf("one of each of %q", d.sources), fmt.Sprintf("%d samples of others", len(r.Samples))}}
	}
	want, next, err := d.replay(e)
	if err != nil {
		return []Finding{{RuleState, "", "a change that can happen", err.Error()}}
	}
	c.advance(e, d, next)
	if t := e.Transition; t != nil && (t.Reason == ReasonRaw || t.Reason == ReasonBoot) {
		c.raw = math.MinInt64
	}
	return differences(&want, e)
}

// start begins anew, as a daemon does.
func (c *Checker) start(e *Evidence) []Finding {
	t := e.Transition
	if c.started && equalEvidence(e, &c.last) {
		return nil
	}
	var f []Finding
	if c.started && t.Epoch <= c.now.epoch {
		f = append(f, Finding{RuleOrder, "transition.epoch", fmt.Sprintf("above %d", c.now.epoch), fmt.Sprint(t.Epoch)})
	}
	want, next := Begin(Start{Policy: *t.Policy, Sources: t.Sources, BootID: t.BootID, Reading: t.Reading, Resume: Resume{t.Epoch - 1, t.NotBefore}})
	c.started, c.rounds, c.highest, c.raw = true, nil, 0, math.MinInt64
	c.advance(e, next, next)
	return append(f, differences(&want, e)...)
}

func base(e *Evidence) uint64 {
	if e.Round != nil {
		return e.Round.Base
	}
	return e.Transition.Base
}

// from is the discipline that the evidence goes on from: a round that not every log could record took no effect, and the next
// evidence names the one before as its base.
func (c *Checker) from(e *Evidence) (Discipline, bool) {
	switch base(e) {
	case c.now.base:
		return c.now, true
	case c.before.base:
		return c.before, true
	}
	return Discipline{}, false
}

func (c *Checker) advance(e *Evidence, from, next Discipline) {
	c.last, c.now = *e, next
	if e.Round == nil {
		c.before = next
		return
	}
	c.before, c.highest = from, e.Round.Number
	if e.Round.Mapping != nil && next.estimate.Round == e.Round.Number {
		if len(c.rounds) >= keptRounds {
			c.rounds = slices.Delete(c.rounds, 0, 1)
		}
		c.rounds = append(c.rounds, next.estimate)
	}
}

// replay is what d would have recorded given the evidence's inputs.
func (d Discipline) replay(e *Evidence) (Evidence, Discipline, error) {
	if r := e.Round; r != nil {
		want, next := d.Measure(Measurement{Number: r.Number, Reading: r.Reading, Samples: r.Samples, Kernel: r.Kernel, Chronyd: r.Chronyd})
		return want, next, nil
	}
	switch t := e.Transition; t.Reason {
	case ReasonPolicy:
		want, next := d.Govern(*t.Policy, t.Reading)
		return want, next, nil
	case ReasonAge:
		want, next, ok := d.Pass(t.Reading)
		if !ok {
			return want, next, fmt.Errorf("%v to %v by time passing, at a time that changes nothing", t.From, t.To)
		}
		return want, next, nil
	case ReasonStep, ReasonSuspend, ReasonPause, ReasonBoot, ReasonRaw:
		want, next := d.Disturb(t.Reason, t.Moved, t.BootID, t.Reading)
		return want, next, nil
	default:
		return Evidence{}, d, fmt.Errorf("reason %.40q", t.Reason)
	}
}

// Policy is the policy that the last start or change of policy names; ok is false before a start. It must be what governs the log.
func (c *Checker) Policy() (p Policy, ok bool) { return c.now.policy, c.started }

// Estimate is the one that holds after the last evidence.
func (c *Checker) Estimate() Estimate { return c.now.estimate }

// Stamp checks the stamp of the next entry against the round that it names. p is the policy that governs the log there, for an
// event, and nil for the daemon's own records, which are made whatever the clock's state. Entries are stamped in their order, so that
// none names an earlier time of the oscillator than one before it.
func (c *Checker) Stamp(s Stamp, p *Policy) []Finding {
	want, f := c.expect(s)
	if e := c.round(s.Round); s.HasEstimate && len(f) == 0 {
		raw := add(e.AsOf, s.Age)
		if raw < sub(c.raw, rawSlack) {
			return []Finding{{RuleOrder, "clock.age", fmt.Sprintf("%d or more, not before an entry before it", sub(c.raw, e.AsOf)), fmt.Sprint(s.Age)}}
		}
		c.raw = max(c.raw, raw)
	}
	if len(f) > 0 || p == nil {
		return f
	}
	s.Flags = want.Flags
	if err := p.Allows(s); err != nil {
		return []Finding{{RulePolicy, "clock", "an event that the policy takes", err.Error()}}
	}
	return nil
}

// Reading checks a reading of the clock that an entry holds beside its stamp, and that was made at another time, against the round
// that it names.
func (c *Checker) Reading(s Stamp) []Finding {
	_, f := c.expect(s)
	return f
}

// expect is the stamp that follows from the round that s names.
func (c *Checker) expect(s Stamp) (want Stamp, f []Finding) {
	if !s.HasEstimate {
		return s, c.bare(s)
	}
	e := c.round(s.Round)
	if e == nil {
		return s, []Finding{{RuleMissing, "clock.round", "a round since the last start that yielded an estimate", fmt.Sprint(s.Round)}}
	}
	r := Reading{Real: s.Sys, Raw: add(e.AsOf, s.Age)}
	want = e.At(r)
	if s.State != want.State { // the policy may have changed since
		governed := e.governed(c.now.policy)
		e = &governed
		want = e.At(r)
	}
	if !want.HasEstimate || s.Offset != want.Offset {
		f = append(f, Finding{RuleStamp, "clock.offset", fmt.Sprint(want.Offset), fmt.Sprint(s.Offset)})
	}
	if s.Bound < want.Bound { // a greater one claims less: the time it took to read the clocks is in it
		f = append(f, Finding{RuleStamp, "clock.bound", fmt.Sprintf("at least %d", want.Bound), fmt.Sprint(s.Bound)})
	}
	// The daemon may know better than to rely on the estimate.
	doubted := s.State == Unsynced || s.State == Disrupted
	if s.State != want.State && !doubted {
		f = append(f, Finding{RuleStamp, "clock.state", want.State.String(), s.State.String()})
	}
	if s.Epoch != e.Epoch && (s.Epoch < e.Epoch || !doubted) {
		f = append(f, Finding{RuleStamp, "clock.epoch", fmt.Sprint(e.Epoch), fmt.Sprint(s.Epoch)})
	}
	return want, f
}

// round finds the estimate of a round, nearly always the newest; nil: there is none.
func (c *Checker) round(number uint64) *Estimate {
	for i := len(c.rounds) - 1; i >= 0; i-- {
		if e := &c.rounds[i]; e.Round == number {
			return e
		}
	}
	return nil
}

// bare checks a stamp without an estimate: in a state that claims one, the system's clock must be too far away to record it.
func (c *Checker) bare(s Stamp) []Finding {
	if s.State == Unknown || s.State == Disrupted {
		return nil
	}
	e := c.now.estimate
	if e.Round == 0 {
		e = c.before.estimate
	}
	const slack = 2 * maxHold
	if offset := sub(add(e.AsOf, e.UTCMinusRaw), s.Sys); e.Round > 0 && abs(offset) > MaxInt-slack {
		return nil
	}
	return []Finding{{RuleStamp, "clock.round", "an estimate, in state " + s.State.String(), "none"}}
}
