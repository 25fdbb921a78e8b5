package server

import (
	"context"
	"encoding/base64"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"bulla/api"
	"bulla/ceremony"
	"bulla/record"
)

// accesses are the records of access in a log of the rig.
func (r *rig) accesses(log int) []record.Access {
	r.t.Helper()
	l := r.cfg.Logs[log].Ledger
	indices, err := l.Kind(record.KindAccess, 0, 10_000)
	if err != nil {
		r.t.Fatal(err)
	}
	var out []record.Access
	for _, i := range indices {
		b, err := l.Entry(i)
		if err != nil {
			r.t.Fatal(err)
		}
		e, err := record.ParseEntry(b)
		if err != nil {
			r.t.Fatal(err)
		}
		a, err := record.ParseAccess(e.Body)
		if err != nil {
			r.t.Fatalf("entry %d: %v", i, err)
		}
		out = append(out, *a)
	}
	return out
}

// What is read is in the log when the answer is there: who, by which right, what for, and which entries.
func TestReadingIsRecorded(t *testing.T) {
	t.Parallel()
	r := newRig(t, everyone).serve()
	if _, err := r.dial().AppendBatch(t.Context(), "", api.WantAck, events(9, `{"id":"%d","type":"a"}`)...); err != nil {
		t.Fatal(err)
	}
	b := r.browser()
	for _, c := range []struct{ path, action, query, span string }{
		{"/v1/entries/0", "read", "", "[0,1)"},
		{"/v1/entries?from=0&limit=4", "read", "", "[0,4)"},
		{"/v1/entries/0/proof", "read", "", "[0,1)"},
		{"/v1/entries?kind=genesis", "read", "kind=genesis", "[0,1)"},
		{"/tile/entries/000.p/7", "export", "", "[0,7)"},
	} {
		before := len(r.accesses(0))
		purpose := "case 4711, " + c.path + " – é"
		if p := r.do(b, "GET", c.path, "", purposeHeader+": "+purpose); p.status != 200 {
			t.Fatalf("%s: %d %s", c.path, p.status, p.body)
		}
		all := r.accesses(0)
		if len(all) != before+1 {
			t.Fatalf("%s: %d records", c.path, len(all)-before)
		}
		a := all[before]
		if got := fmt.Sprintf("[%d,%d)", *a.From, *a.To); got != c.span || a.Action != c.action || a.Query != c.query || a.Purpose != purpose || a.Role != ceremony.Auditor || a.Denied {
			t.Errorf("%s: %s %+v", c.path, got, a)
		}
		if a.By.UID != uint32(os.Getuid()) || a.By.GID != uint32(os.Getgid()) || a.By.PID != os.Getpid() || !strings.HasSuffix(a.By.Exe, ".test") {
			t.Errorf("%s: by %+v", c.path, a.By)
		}
		if p := r.do(b, "GET", c.path, "", purposeHeader+": "+purpose); p.status != 200 || len(r.accesses(0)) != before+1 {
			t.Errorf("%s: the same again made %d records", c.path, len(r.accesses(0))-before)
		}
	}
	n := len(r.accesses(0))
	for _, path := range []string{ // what one sent itself, and what no entry is in
		"/v1/entries/3", "/v1/entries?from=2&limit=5", "/v1/entries/3/proof", "/checkpoint", "/tile/0/000.p/9", "/v1/seals", "/v1/status", "/metrics", "/health/ready",
		"/v1/entries?from=5000", "/v1/entries?kind=token", "/v1/entries/5000", "/tile/entries/005",
	} {
		r.do(b, "GET", path, "")
		if got := r.accesses(0); len(got) != n {
			t.Fatalf("%s: recorded as %+v", path, got[n:])
		}
	}
	for _, bad := range []string{strings.Repeat("x", record.MaxPurpose+1), "\xff", "a\tb"} {
		if p := r.do(b, "GET", "/v1/entries/0", "", purposeHeader+": "+bad); p.status != 400 || p.failure(t).Field != purposeHeader {
			t.Errorf("purpose %.20q: %d %s", bad, p.status, p.body)
		}
	}
}

// An export through the sockets is a few records, and none of it comes before its record.
func TestExportIsRecordedInFew(t *testing.T) {
	t.Parallel()
	r := newRig(t, []ceremony.Role{{Name: ceremony.Operator, Any: true}, {Name: ceremony.Producer, UIDs: []uint32{uint32(os.Getuid())}}}).serve()
	client := r.dial()
	for i := range 6 {
		if _, err := client.AppendBatch(t.Context(), "", api.WantAck, events(2000, fmt.Sprintf(`{"id":"%d-%%d","type":"a"}`, i))...); err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 { // so that no bundle is the reader's alone
			if _, err := r.log().Record(t.Context(), record.KindSystem, []byte(`{"event":"stop"}`)); err != nil {
				t.Fatal(err)
			}
		}
	}
	b := r.browser()
	size := r.log().Size()
	given := 0
	for n := range size / 256 {
		p := r.do(b, "GET", fmt.Sprintf("/tile/entries/%03d", n), "", purposeHeader+": yearly audit")
		if p.status != 200 {
			t.Fatalf("bundle %d: %d %s", n, p.status, p.body)
		}
		raw, err := record.ParseBundle(p.body)
		if err != nil {
			t.Fatal(err)
		}
		own := !slices.ContainsFunc(raw, func(b []byte) bool {
			e, err := record.ParseEntry(b)
			return err != nil || e.Producer == nil
		})
		if own {
			continue
		}
		given++
		if !slices.ContainsFunc(r.accesses(0), func(a record.Access) bool { return *a.From <= n*256 && (n+1)*256 <= *a.To }) {
			t.Fatalf("bundle %d was given out and is not recorded", n)
		}
	}
	a := r.accesses(0)
	if given < 3 || len(a) > given || len(a) > 25 || a[0].Purpose != "yearly audit" || a[0].Role != ceremony.Operator || a[0].Action != actionExport {
		t.Errorf("%d bundles, %d records, %+v", given, len(a), a[0])
	}
}

func TestChallengeIsRecorded(t *testing.T) {
	t.Parallel()
	r := newRig(t, everyone, "a", "b")
	sizes := make(chan [2]uint64, 1)
	r.cfg.Seal = func(context.Context, string, []byte) (uint64, error) {
		sizes <- [2]uint64{r.cfg.Logs[0].Ledger.Size(), r.cfg.Logs[1].Ledger.Size()}
		return 7, nil
	}
	r.serve()
	nonce := base64.StdEncoding.EncodeToString([]byte("12345678"))
	if p := r.do(r.browser(), "POST", "/v1/challenge", `{"nonce":"`+nonce+`"}`, asJSON, purposeHeader+": visit"); p.status != 201 {
		t.Fatalf("%d %s", p.status, p.body)
	}
	if got := <-sizes; got != [2]uint64{2, 2} {
		t.Errorf("the seal attests sizes %v, without the record", got)
	}
	for i := range r.cfg.Logs {
		if a := r.accesses(i); len(a) != 1 || a[0].Action != actionChallenge || a[0].Query != nonce || a[0].Purpose != "visit" || a[0].From != nil || a[0].By.UID != uint32(os.Getuid()) {
			t.Errorf("log %d: %+v", i, a)
		}
	}
	if p := r.do(r.browser(), "POST", "/v1/challenge", `{"nonce":"`+nonce+`"}`, asJSON, purposeHeader+": "+"\xff"); p.status != 400 {
		t.Errorf("%d %s", p.status, p.body)
	}
}

// What cannot be recorded is not given out.
func TestReadingThatCannotBeRecorded(t *testing.T) {
	t.Parallel()
	r := newRig(t, everyone)
	held, release := r.holdSignatures()
	defer release()
	r.serve()
	b := r.browser()
	done := make(chan reply, 1)
	go func() { done <- r.do(b, "GET", "/v1/entries/0", "") }()
	<-held
	select {
	case p := <-done:
		t.Fatalf("given out before it was recorded: %d %s", p.status, p.body)
	default:
	}
	if p := r.do(r.browser(), "GET", "/checkpoint", ""); p.status != 200 {
		t.Errorf("what is no entry: %d", p.status)
	}
	release()
	if p := <-done; p.status != 200 || len(r.accesses(0)) != 1 {
		t.Errorf("%d %s, %d records", p.status, p.body, len(r.accesses(0)))
	}
}

// Who adds a route has to decide whether it gives out what a producer said; if it does, it is recorded.
func TestEveryRouteIsRecordedOrGivesOutNothing(t *testing.T) {
	t.Parallel()
	decided := map[string]bool{ // true: recorded
		"GET /v1/entries": true, "GET /v1/entries/{index}": true, "GET /v1/entries/{index}/proof": true, "GET /tile/{path...}": true, "GET /v1/search": true,
		"GET /v1/governance": true, "GET /v1/recovery": false, "POST /v1/proposals": true, "POST /v1/approvals": true, "POST /v1/proposals/{number}/enact": true, "POST /v1/challenge": true, "POST /v1/activation": true,
		"POST /v1/seals": true, "POST /v1/events": false, "GET /v1/seals": false, "GET /v1/status": false, "GET /checkpoint": false, "GET /witness/{n}": false,
		"GET /metrics": false, "GET /health/alive": false, "GET /health/ready": false, "GET /health/state": false, "POST /tsa": false,
	}
	for _, rt := range routes {
		if _, ok := decided[rt.method+" "+rt.path]; !ok {
			t.Errorf("%s %s: does it give out entries? Then set call.gives, and say so here", rt.method, rt.path)
		}
	}
}
