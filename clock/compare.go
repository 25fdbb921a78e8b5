package clock

import (
	"fmt"
	"slices"
)

// differences compares what follows with what is recorded, field by field.
func differences(want, got *Evidence) (f []Finding) {
	switch {
	case (want.Round == nil) != (got.Round == nil):
		f = append(f, Finding{RuleRound, "round", presence(want.Round != nil), presence(got.Round != nil)})
	case want.Round != nil:
		f = append(f, compareRounds(want.Round, got.Round)...)
	}
	switch {
	case (want.Transition == nil) != (got.Transition == nil):
		f = append(f, Finding{RuleState, "transition", presence(want.Transition != nil), presence(got.Transition != nil)})
	case want.Transition != nil:
		f = append(f, compareTransitions(want.Transition, got.Transition)...)
	}
	return f
}

func presence(present bool) string {
	if present {
		return "present"
	}
	return "absent"
}

// field compares one value.
func field[T comparable](f []Finding, rule, name string, want, got T) []Finding {
	if want == got {
		return f
	}
	return append(f, Finding{rule, name, fmt.Sprint(want), fmt.Sprint(got)})
}

// pointed compares what pointers point to.
func pointed[T comparable](f []Finding, rule, name string, want, got *T) []Finding {
	if want == nil || got == nil {
		return field(f, rule, name, presence(want != nil), presence(got != nil))
	}
	if *want == *got {
		return f
	}
	return append(f, Finding{rule, name, fmt.Sprintf("%+v", *want), fmt.Sprintf("%+v", *got)})
}

func compareRounds(want, got *Round) (f []Finding) {
	const rule = RuleRound
	for i := range want.Samples { // as many as got: they are its own
		name := fmt.Sprintf("round.samples[%d]", i)
		w, g := want.Samples[i].Judgement, got.Samples[i].Judgement
		f = field(f, rule, name+".verdict", w.Verdict, g.Verdict)
		f = field(f, rule, name+".reason", w.Reason, g.Reason)
		f = field(f, rule, name+".rtt", w.RTT, g.RTT)
		f = field(f, rule, name+".theta", w.Theta, g.Theta)
		f = field(f, rule, name+".distance", w.Distance, g.Distance)
	}
	f = field(f, RuleOrder, "round.epoch", want.Epoch, got.Epoch)
	f = field(f, rule, "round.f", want.F, got.F)
	f = field(f, rule, "round.usable", want.Usable, got.Usable)
	f = field(f, rule, "round.agree", want.Agree, got.Agree)
	f = field(f, rule, "round.low", want.Low, got.Low)
	f = field(f, rule, "round.high", want.High, got.High)
	f = pointed(f, rule, "round.drift", want.Drift, got.Drift)
	if !slices.Equal(want.Alarms, got.Alarms) {
		f = append(f, Finding{rule, "round.alarms", fmt.Sprint(want.Alarms), fmt.Sprint(got.Alarms)})
	}
	f = field(f, rule, "round.reason", want.Reason, got.Reason)
	f = pointed(f, rule, "round.estimate", want.Mapping, got.Mapping)
	return field(f, RuleState, "round.state", want.State, got.State)
}

func compareTransitions(want, got *Transition) (f []Finding) {
	const rule = RuleState
	f = field(f, rule, "transition.reason", want.Reason, got.Reason)
	f = field(f, rule, "transition.from", want.From, got.From)
	f = field(f, rule, "transition.to", want.To, got.To)
	f = field(f, RuleOrder, "transition.epoch", want.Epoch, got.Epoch)
	f = field(f, RuleOrder, "transition.base", want.Base, got.Base)
	f = field(f, rule, "transition.reading", want.Reading, got.Reading)
	f = field(f, rule, "transition.moved", want.Moved, got.Moved)
	f = field(f, rule, "transition.boot_id", want.BootID, got.BootID)
	f = field(f, rule, "transition.not_before", want.NotBefore, got.NotBefore)
	if !slices.Equal(want.Sources, got.Sources) {
		f = append(f, Finding{rule, "transition.sources", fmt.Sprint(want.Sources), fmt.Sprint(got.Sources)})
	}
	return pointed(f, rule, "transition.policy", want.Policy, got.Policy)
}

// equalEvidence reports whether two transitions are the same.
func equalEvidence(a, b *Evidence) bool {
	return a.Transition != nil && b.Transition != nil && a.Round == nil && b.Round == nil && len(compareTransitions(a.Transition, b.Transition)) == 0
}
