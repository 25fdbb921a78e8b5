package ledger_test

import (
	"context"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"bulla/ceremony"
	"bulla/clock"
	"bulla/ledger"
)

// rehearsed is an executor that only rehearses.
type rehearsed struct{ ledger.Executor }

func (rehearsed) Rehearse(context.Context, *ledger.Ledger, *ceremony.Pending) ([]string, error) {
	return []string{"ask the device"}, nil
}

// A rehearsal says what the enactment would be refused for: approvals, as long as some are missing, and then time.
func TestRehearse(t *testing.T) {
	t.Parallel()
	d := newDevices(t)
	var later atomic.Int64 // ns that have passed
	d.stamp = func(s clock.Stamp) clock.Stamp { s.Sys += later.Load(); return s }
	officers := newCouncil(t)
	g := d.genesis(t)
	officers.appoint(g)
	path := filepath.Join(t.TempDir(), "log.db")
	if err := ledger.Create(path, d.config(), g); err != nil {
		t.Fatal(err)
	}
	l := open(t, d, path)
	defer closed(t, l)
	officers.approveGenesis(t, l)
	document := officers.document(t, l, &ceremony.PolicySet{Clock: g.Clock, Quotas: ceremony.Quotas{Streams: 4}, Roles: g.Roles, Seal: g.Seal})
	for _, step := range []struct {
		entry   ledger.Governing
		passes  time.Duration
		missing ceremony.Rule // "": nothing
	}{
		{officers.proposed(t, document), 0, ceremony.RuleThreshold},
		{officers.approval(t, 1, 1, document), 0, ""},
		{ledger.Governing{}, 2 * time.Hour, ceremony.RuleExpired},
	} {
		if step.entry.Body != nil {
			if _, err := l.Govern(t.Context(), step.entry); err != nil {
				t.Fatal(err)
			}
		}
		later.Add(int64(step.passes))
		size := l.Size()
		out, err := l.Rehearse(t.Context(), 1, ceremony.DocumentHash(document), rehearsed{})
		if err != nil || len(out.Steps) != 1 || out.Index != 0 {
			t.Fatalf("%+v: %v", out, err)
		}
		if step.missing == "" && out.Missing != nil || step.missing != "" && !isRefused(out.Missing, step.missing) {
			t.Errorf("what is missing is %v, want %q", out.Missing, step.missing)
		}
		if l.Size() != size {
			t.Errorf("the rehearsal made %d entries", l.Size()-size)
		}
	}
}
