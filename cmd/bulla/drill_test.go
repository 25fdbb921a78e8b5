package main

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A drill is detected only if everything noticed it that should, and nothing went wrong.
func TestDrillOutcome(t *testing.T) {
	t.Parallel()
	noticed := drillNotice{By: byAlarm, Expected: "an alarm", Found: "entry 7", Seconds: 2}
	sooner := drillNotice{By: byRefusal, Expected: "a refusal", Found: "refused", Seconds: 1}
	missed := drillNotice{By: byVerifier, Expected: "a finding", Instead: "the log is verified"}
	for _, c := range []struct {
		name    string
		res     drillResult
		err     error
		outcome string
		by      string
		why     string
	}{
		{"all of it", drillResult{Noticed: []drillNotice{noticed, sooner}}, nil, drillDetected, "alarm, refusal", ""},
		{"not all of it", drillResult{Noticed: []drillNotice{noticed, missed}}, nil, drillMissed, "alarm", "a finding (instead: the log is verified)"},
		{"not all of it, and it broke", drillResult{Noticed: []drillNotice{missed}}, errors.New("broken"), drillMissed, "", "a finding"},
		{"service did not resume", drillResult{Noticed: []drillNotice{noticed}}, errors.New("service did not resume"), drillFailed, "alarm", "did not resume"},
		{"nothing was expected", drillResult{}, nil, drillFailed, "", "nothing was expected"},
		{"not possible here", drillResult{Why: "there is no HSM"}, nil, drillNotRun, "", "there is no HSM"},
	} {
		r := c.res
		r.conclude(c.err)
		if r.Outcome != c.outcome || r.by() != c.by || !strings.Contains(r.Why, c.why) || c.why == "" && r.Why != "" {
			t.Errorf("%s: %s, noticed by %q: %s", c.name, r.Outcome, r.by(), r.Why)
		}
		if c.outcome == drillDetected && (r.Seconds == nil || *r.Seconds != 1) {
			t.Errorf("%s: noticed first after %v s", c.name, r.Seconds)
		}
	}
	all := func(outcomes ...string) *drillReport {
		rep := &drillReport{}
		for _, o := range outcomes {
			rep.Drills = append(rep.Drills, drillResult{Outcome: o})
		}
		return rep
	}
	for _, rep := range []*drillReport{all(drillDetected), all(drillDetected, drillNotRun)} {
		if !rep.passed() {
			t.Errorf("%+v has not passed", rep.Drills)
		}
	}
	for _, rep := range []*drillReport{all(), all(drillNotRun), all(drillDetected, drillMissed), all(drillDetected, drillFailed)} {
		if rep.passed() {
			t.Errorf("%+v has passed", rep.Drills)
		}
	}
}

// What does not come is waited for for a minute, and then missed, with what there was last.
func TestDrillExpects(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		x := &trying{res: &drillResult{}}
		x.attack("Nothing.")
		x.expect(t.Context(), byAlarm, "soon", func(context.Context) (string, error) {
			if time.Since(x.attacked) < 3*time.Second {
				return "", nil
			}
			return "found", nil
		})
		x.expect(t.Context(), byAlarm, "never", func(context.Context) (string, error) { return "", errors.New("nothing there") })
		if took := time.Since(x.attacked); took < drillPatience || took > drillPatience+5*time.Second {
			t.Errorf("waited for %v", took)
		}
		soon, never := x.res.Noticed[0], x.res.Noticed[1]
		if soon.Found != "found" || soon.Seconds < 3 || soon.Seconds > 4 || never.Found != "" || never.Instead != "nothing there" {
			t.Errorf("%+v", x.res.Noticed)
		}
	})
}

// An entry is found wherever it lies in a file that is read in pieces.
func TestFindIn(t *testing.T) {
	t.Parallel()
	text := []byte("an entry of some length")
	b := make([]byte, 10<<20)
	want := []int64{0, 4<<20 - 5, 4<<20 + 40, 8<<20 - int64(len(text)), int64(len(b) - len(text))}
	for _, at := range want {
		copy(b[at:], text)
	}
	got, err := findIn(bytes.NewReader(b), text)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, want %v: %v", got, want, err)
	}
	if got, err := findIn(bytes.NewReader(nil), text); err != nil || len(got) != 0 {
		t.Errorf("in nothing: %v: %v", got, err)
	}
}
