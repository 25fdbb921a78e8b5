package clock_test

import (
	"encoding/json"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"

	"bulla/clock"
	"bulla/record"
)

// story reads testdata/story.jsonl: what one daemon recorded from its start on. Each line is the body of an entry of kind clock, in
// canonical JSON; TestStoryIsCurrent makes it.
func story(t testing.TB) (lines [][]byte, log []clock.Evidence) {
	t.Helper()
	b, err := os.ReadFile("testdata/story.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		line := []byte(strings.TrimSuffix(line, "\n"))
		var e clock.Evidence
		if err := record.UnmarshalCanonical(line, &e); err != nil {
			t.Fatal(err)
		}
		lines, log = append(lines, line), append(log, e)
	}
	if len(log) < 10 {
		t.Fatalf("%d entries are no story", len(log))
	}
	return lines, log
}

func replay(log []clock.Evidence) (out []string) {
	var c clock.Checker
	for i := range log {
		for _, f := range c.Evidence(&log[i]) {
			out = append(out, fmt.Sprintf("entry %d: %v", i, f))
		}
	}
	return out
}

// The recorded bytes verify, on every machine.
func TestStoryVerifies(t *testing.T) {
	t.Parallel()
	lines, log := story(t)
	if f := replay(log); f != nil {
		t.Error(f)
	}
	for i, e := range log {
		again, err := record.MarshalCanonical(&e)
		if err != nil || string(again) != string(lines[i]) {
			t.Errorf("line %d becomes %s, %v", i+1, again, err)
		}
		if b, err := json.Marshal(e); err != nil {
			t.Error(err)
		} else if b, err = record.Canonicalize(b, record.MaxDepth); err != nil || string(b) != string(lines[i]) {
			t.Errorf("encoding/json makes %s of line %d", b, i+1)
		}
	}
}

// Whatever is changed in the evidence, the auditor notices: each value of each entry, one at a time, but for what no computation
// rests on.
func TestChangedEvidenceIsFound(t *testing.T) {
	t.Parallel()
	free := []string{ // inputs that only people read, that matter beyond a limit only, or that the caller compares with what governs
		"Address", "Auth", "Sent", "Good", "RefID", "Kiss", "Failure", "Stratum", "RefTime", "Leap", "Prec", "Kernel", "Chronyd",
		"BootID", "Moved", "NotBefore", "Policy", "Reading.Width", "Reading.Real", "Reading.Mono", "Reading.Boot", "Transition.Reading",
		"Before.Mono", "Before.Boot", "After.Mono", "After.Boot",
	}
	_, log := story(t)
	changed, unnoticed := 0, map[string]int{}
	for i := range log {
		each(reflect.ValueOf(&log[i]).Elem(), "", func(path string, undo func()) {
			defer undo()
			changed++
			if replay(log) == nil {
				unnoticed[path]++
			}
		})
	}
	for path, n := range unnoticed {
		known := false
		for _, f := range free {
			known = known || strings.Contains(path+".", "."+f+".")
		}
		if !known {
			t.Errorf("%s: %d changes unnoticed", path, n)
		}
	}
	t.Logf("%d changes, unnoticed only in %d fields that nothing follows from", changed, len(unnoticed))
	if changed < 500 {
		t.Error("too few changes to mean anything")
	}
}

// each changes every leaf of v in turn.
func each(v reflect.Value, path string, try func(path string, undo func())) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			each(v.Elem(), path, try)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			f := v.Type().Field(i)
			name := path + "." + f.Name
			if f.Anonymous {
				name = path
			}
			each(v.Field(i), name, try)
		}
	case reflect.Slice:
		for i := range min(v.Len(), 2) { // one source is as good as another
			each(v.Index(i), path, try)
		}
	default:
		old := reflect.New(v.Type()).Elem()
		old.Set(v)
		switch v.Kind() {
		case reflect.String:
			v.SetString(v.String() + "x")
		case reflect.Bool:
			v.SetBool(!v.Bool())
		case reflect.Uint8, reflect.Uint32, reflect.Uint64:
			v.SetUint(v.Uint() + 1)
		default:
			v.SetInt(v.Int() + 7 + v.Int()>>20)
		}
		try(path, func() { v.Set(old) })
	}
}

func TestMissingEvidenceIsFound(t *testing.T) {
	t.Parallel()
	_, log := story(t)
	for i := range log[:len(log)-1] {
		if tr := log[i].Transition; tr != nil && tr.Reason == clock.ReasonPolicy {
			continue // the caller compares Checker.Policy with what governs
		}
		without := append(append([]clock.Evidence(nil), log[:i]...), log[i+1:]...)
		if replay(without) == nil {
			t.Errorf("without entry %d nothing is missing", i)
		}
		if e := log[i]; e.Round != nil {
			twice := append(append(append([]clock.Evidence(nil), log[:i+1]...), e), log[i+1:]...)
			if replay(twice) == nil {
				t.Errorf("round %d twice is not found", e.Round.Number)
			}
		}
	}
}

func TestStampsAreChecked(t *testing.T) {
	t.Parallel()
	_, log := story(t)
	var c clock.Checker
	var round *clock.Round
	for i := range log {
		if f := c.Evidence(&log[i]); f != nil {
			t.Fatal(f)
		}
		if r := log[i].Round; r != nil && r.Mapping != nil {
			round = r
			break
		}
	}
	p, ok := c.Policy()
	if !ok {
		t.Fatal("no policy after a start")
	}
	e := c.Estimate()
	good := e.At(clock.Reading{Real: round.Reading.Real + 5e9, Raw: round.Reading.Raw + 5e9, Width: 1500})
	if f := c.Stamp(good, &p); f != nil {
		t.Fatalf("%+v: %v", good, f)
	}
	for _, x := range []struct {
		name   string
		change func(s *clock.Stamp)
		rule   string
		event  bool
	}{
		{"offset", func(s *clock.Stamp) { s.Offset++ }, clock.RuleStamp, true},
		{"system's time", func(s *clock.Stamp) { s.Sys-- }, clock.RuleStamp, true},
		{"age", func(s *clock.Stamp) { s.Age += 1e9 }, clock.RuleStamp, true},
		{"bound too small", func(s *clock.Stamp) { s.Bound -= 5000 }, clock.RuleStamp, true},
		{"bound larger", func(s *clock.Stamp) { s.Bound += 5000 }, "", true},
		{"missing round", func(s *clock.Stamp) { s.Round++ }, clock.RuleMissing, true},
		{"state worse", func(s *clock.Stamp) { s.State = clock.Unsynced }, "", false},
		{"worse, and yet an event", func(s *clock.Stamp) { s.State = clock.Unsynced }, clock.RulePolicy, true},
		{"holdover too early", func(s *clock.Stamp) { s.State = clock.Holdover }, clock.RuleStamp, true},
		{"another epoch", func(s *clock.Stamp) { s.Epoch++ }, clock.RuleStamp, true},
		{"disrupted in the next epoch", func(s *clock.Stamp) { s.Epoch++; s.State = clock.Disrupted }, "", false},
		{"synced without an estimate", func(s *clock.Stamp) { *s = clock.Stamp{Sys: s.Sys, State: clock.Synced, Epoch: s.Epoch} }, clock.RuleStamp, false},
		{"50 years away without an estimate", func(s *clock.Stamp) {
			*s = clock.Stamp{Sys: s.Sys - 50*365*86400e9, State: clock.Synced, Epoch: s.Epoch}
		}, "", false},
		{"an event 50 years away", func(s *clock.Stamp) {
			*s = clock.Stamp{Sys: s.Sys - 50*365*86400e9, State: clock.Synced, Epoch: s.Epoch}
		}, clock.RulePolicy, true},
		{"unknown", func(s *clock.Stamp) { *s = clock.Stamp{Sys: s.Sys} }, "", false},
		{"an event in an unknown state", func(s *clock.Stamp) { *s = clock.Stamp{Sys: s.Sys} }, clock.RulePolicy, true},
		{"bound above the limit", func(s *clock.Stamp) { s.Bound = p.Limit + 1 }, clock.RulePolicy, true},
	} {
		s := good
		x.change(&s)
		governed := &p
		if !x.event {
			governed = nil
		}
		got := ""
		if f := c.Stamp(s, governed); len(f) > 0 {
			got = f[0].Rule
		}
		if got != x.rule {
			t.Errorf("%s: rule %q, want %q", x.name, got, x.rule)
		}
	}
}

// An entry cannot be stamped before the entries before it, whatever rounds there are to name.
func TestStampsAreInOrder(t *testing.T) {
	t.Parallel()
	_, log := story(t)
	var c clock.Checker
	var estimates []clock.Estimate
	for i := range log {
		if f := c.Evidence(&log[i]); f != nil {
			t.Fatal(f)
		}
		if r := log[i].Round; r != nil && r.Mapping != nil {
			estimates = append(estimates, c.Estimate())
		}
		if len(estimates) == 2 {
			break
		}
	}
	stamp := func(e clock.Estimate, after int64) clock.Stamp {
		return e.At(clock.Reading{Real: e.AsOf + e.UTCMinusRaw, Raw: e.AsOf + after})
	}
	early, late := estimates[0], estimates[1]
	if late.AsOf-early.AsOf > 50e9 {
		t.Fatalf("rounds %d ns apart", late.AsOf-early.AsOf)
	}
	for i, x := range []struct {
		stamp clock.Stamp
		rule  string
	}{
		{stamp(late, 60e9), ""},
		{stamp(late, 60e9), ""},
		{stamp(late, 55e9), ""}, // less than the daemon watches for
		{stamp(late, 40e9), clock.RuleOrder},
		{stamp(early, 1e9), clock.RuleOrder},
		{stamp(late, 61e9), ""},
	} {
		if !x.stamp.HasEstimate {
			t.Fatalf("stamp %d: no estimate", i)
		}
		got := ""
		if f := c.Stamp(x.stamp, nil); len(f) > 0 {
			got = f[0].Rule
		}
		if got != x.rule {
			t.Errorf("stamp %d: rule %q, want %q", i, got, x.rule)
		}
	}
	if f := c.Reading(stamp(early, 1e9)); f != nil {
		t.Errorf("a reading beside a stamp: %v", f)
	}
}

func TestEvidenceBeforeAStart(t *testing.T) {
	t.Parallel()
	_, log := story(t)
	var c clock.Checker
	if f := c.Evidence(&log[1]); len(f) != 1 || f[0].Rule != clock.RuleEvidence {
		t.Errorf("%v", f)
	}
	if _, ok := c.Policy(); ok {
		t.Error("a policy out of nothing")
	}
	if f := c.Evidence(&clock.Evidence{}); len(f) != 1 || f[0].Rule != clock.RuleEvidence {
		t.Errorf("empty evidence: %v", f)
	}
}

func TestRulesAreComplete(t *testing.T) {
	t.Parallel()
	for _, r := range []string{clock.RuleEvidence, clock.RuleOrder, clock.RuleRound, clock.RuleState, clock.RuleMissing, clock.RuleStamp, clock.RulePolicy} {
		if clock.Rules()[r] == "" {
			t.Errorf("%s is not explained", r)
		}
	}
}

// The largest evidence there can be fits an entry.
func TestLargestRoundFits(t *testing.T) {
	t.Parallel()
	_, log := story(t)
	var r clock.Round
	for _, e := range log {
		if e.Round != nil && e.Round.Mapping != nil {
			r = *e.Round
		}
	}
	s := r.Samples[0]
	s.Address = "[2001:db8:1111:2222:3333:4444:5555:6666%eth0]:65535"
	r.Samples = nil
	for i := range clock.MaxSources {
		s.Name = fmt.Sprintf("%0253d", i) // the longest host name
		r.Samples = append(r.Samples, s)
	}
	b, err := record.MarshalCanonical(&clock.Evidence{Round: &r})
	if err != nil || len(b) > record.MaxEntry-2000 {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}

func FuzzEvidence(f *testing.F) {
	lines, log := story(f)
	for _, l := range lines {
		f.Add(l, int64(1795397000e9), int64(5e9), uint64(1))
	}
	f.Fuzz(func(t *testing.T, b []byte, sys, age int64, round uint64) {
		var e clock.Evidence
		if json.Unmarshal(b, &e) != nil {
			return
		}
		var c clock.Checker
		c.Evidence(&log[0])
		c.Evidence(&log[1])
		for range 2 {
			c.Evidence(&e)
			c.Stamp(clock.Stamp{Sys: sys, Age: age, Round: round, HasEstimate: true, Offset: sys, Bound: age}, nil)
		}
	})
}
