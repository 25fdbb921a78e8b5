package softhsmtest_test

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"bulla/api"
	"bulla/record"
)

// TestAccessIsRecorded reads, exports and challenges as an auditor does. Each is in the log with who and what for, an export in few
// entries, and what was read just before a crash is there as well.
func TestAccessIsRecorded(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	policy := readPolicy(t, r.dir)
	daemon := r.serve()
	client := dial(t, r.dir)
	for i := range 60 { // with a gap in each batch, so that no bundle is all the reader's own
		var events [][]byte
		for j := range 200 {
			events = append(events, fmt.Appendf(nil, `{"stream":{"id":"s","n":%d},"type":"access.test"}`, i*201+j+2))
		}
		if _, err := client.AppendBatch(t.Context(), "", api.WantAck, events...); err != nil {
			t.Fatal(err)
		}
	}
	w := browse(t, r.dir)
	tool := program(t, "bulla")
	bulla := func(args ...string) string {
		t.Helper()
		c := exec.CommandContext(t.Context(), tool, append([]string{"--socket", filepath.Join(r.dir, "sign.sock")}, args...)...)
		out, err := c.Output()
		if err != nil {
			t.Fatalf("bulla %v: %v: %s", args, err, out)
		}
		return string(out)
	}
	before := len(w.accesses(t))
	bulla("export", "--out", r.path("evidence"), "--purpose", "yearly audit")
	all := w.accesses(t)
	var exported uint64
	n := 0
	for _, a := range all[before:] {
		if a.Action != "export" {
			continue
		}
		if n++; a.Purpose != "yearly audit" || a.Role != "auditor" || !strings.HasSuffix(a.By.Exe, "/bulla") || a.By.PID == 0 {
			t.Errorf("%+v", a)
		}
		exported = max(exported, *a.To)
	}
	if n == 0 || n > 25 || exported < 12_000 {
		t.Errorf("the export is %d entries, up to %d", n, exported)
	}
	nonce := "MTIzNDU2Nzg5MDEyMzQ1Ng=="
	if status, b, err := w.do(t.Context(), "POST", "/v1/challenge", "application/json", `{"nonce":"`+nonce+`"}`); err != nil || status != 201 {
		t.Fatalf("challenge: %d %s: %v", status, b, err)
	}
	if a := w.accesses(t); !contains(a, func(a record.Access) bool { return a.Action == "challenge" && a.Query == nonce }) {
		t.Error("the challenge is not recorded")
	}
	bulla("get", "0", "--purpose", "before the crash")
	daemon.kill()
	daemon = r.serve()
	w = browse(t, r.dir)
	if !contains(w.accesses(t), func(a record.Access) bool { return a.Purpose == "before the crash" && *a.From == 0 && *a.To == 1 }) {
		t.Error("what was read before the crash is not recorded")
	}
	w.requireSeal(t)
	w.requireVerified(t, policy)
	if code := daemon.stop(); code != 0 {
		t.Errorf("exit code %d:\n%s", code, daemon.stderr)
	}
}

func contains(all []record.Access, f func(record.Access) bool) bool {
	for _, a := range all {
		if f(a) {
			return true
		}
	}
	return false
}

// accesses are the records of access in the log.
func (w *web) accesses(t *testing.T) []record.Access {
	t.Helper()
	var page api.Page
	w.getJSON(t, w.prefix+"/v1/entries?kind=access&limit=1000", &page)
	var out []record.Access
	for _, b := range page.Entries {
		e, err := record.ParseEntry(b)
		if err != nil {
			t.Fatal(err)
		}
		a, err := record.ParseAccess(e.Body)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, *a)
	}
	return out
}
