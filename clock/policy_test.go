package clock

import (
	"strings"
	"testing"
)

func TestDefaultPolicyIsValid(t *testing.T) {
	t.Parallel()
	if err := DefaultPolicy().Validate(); err != nil {
		t.Error(err)
	}
}

func TestPolicyNamesTheField(t *testing.T) {
	t.Parallel()
	for field, change := range map[string]func(p *Policy){
		"mode":         func(p *Policy) { p.Mode = "maybe" },
		"leap":         func(p *Policy) { p.Leap = "" },
		"f":            func(p *Policy) { p.F = -1 },
		"min_sources":  func(p *Policy) { p.F = 2 },
		"poll":         func(p *Policy) { p.Poll = 0 },
		"min_dist":     func(p *Policy) { p.MinDist = 0 },
		"max_dist":     func(p *Policy) { p.MaxDist = p.MinDist - 1 },
		"max_rtt":      func(p *Policy) { p.MaxRTT = 0 },
		"limit":        func(p *Policy) { p.Limit = 0 },
		"warn":         func(p *Policy) { p.Warn = p.Limit + 1 },
		"holdover_max": func(p *Policy) { p.HoldoverMax = 3*p.Poll - 1 },
		"max_offset":   func(p *Policy) { p.MaxOffset = -1 },
		"growth":       func(p *Policy) { p.Growth = 0 },
		"growth_free":  func(p *Policy) { p.GrowthFree = p.Growth - 1 },
	} {
		p := DefaultPolicy()
		change(&p)
		if err := p.Validate(); err == nil || !strings.HasPrefix(err.Error(), field+":") {
			t.Errorf("%s: %v", field, err)
		}
	}
}

func TestPolicyAllows(t *testing.T) {
	t.Parallel()
	good := Stamp{State: Synced, HasEstimate: true, Bound: 5 * ms, Offset: -3 * ms, Round: 1}
	of := func(change func(s *Stamp)) Stamp {
		s := good
		change(&s)
		return s
	}
	for _, c := range []struct {
		name                   string
		stamp                  Stamp
		refuse, holdover, mark string // what the refusal contains; empty: allowed
	}{
		{"synced", good, "", "", ""},
		{"unknown", Stamp{}, "unknown", "unknown", ""},
		{"holdover", of(func(s *Stamp) { s.State = Holdover }), "in holdover", "", ""},
		{"holdover too long", of(func(s *Stamp) { s.State, s.Age = Holdover, 4*3600*s1+1 }), "in holdover", "was 4h0m0.000000001s ago", ""},
		{"unsynced", of(func(s *Stamp) { s.State = Unsynced }), "unsynced", "unsynced", ""},
		{"disrupted", of(func(s *Stamp) { s.State = Disrupted }), "disrupted", "disrupted", ""},
		{"bound at the limit", of(func(s *Stamp) { s.Bound = s1 }), "", "", ""},
		{"bound above", of(func(s *Stamp) { s.Bound = s1 + 1 }), "1.000000001s", "1.000000001s", ""},
		{"1000 s off", of(func(s *Stamp) { s.Offset = -1000 * s1 }), "", "", ""},
		{"more", of(func(s *Stamp) { s.Offset = -1000*s1 - 1 }), "set it right", "set it right", ""},
		{"50 years off", Stamp{State: Synced}, "104 days", "104 days", ""},
		{"in a leap second", of(func(s *Stamp) { s.Flags = InLeap }), "leap second", "leap second", ""},
		{"before a leap second", of(func(s *Stamp) { s.Flags = LeapPending | Warn }), "", "", ""},
		{"a state from the future", of(func(s *Stamp) { s.State = 77 }), "state(77)", "state(77)", ""},
	} {
		for mode, want := range map[string]string{Refuse: c.refuse, InHold: c.holdover, Mark: c.mark} {
			p := DefaultPolicy()
			p.Mode = mode
			if err := p.Allows(c.stamp); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
				t.Errorf("%s, %s: %v, want %q", c.name, mode, err, want)
			}
		}
	}
	p := DefaultPolicy()
	p.Leap, p.MaxOffset = LeapMark, 0
	if err := p.Allows(of(func(s *Stamp) { s.Flags, s.Offset = InLeap, MaxInt })); err != nil {
		t.Errorf("leap marked, any offset: %v", err)
	}
}
