package softhsmtest_test

import (
	"encoding/json"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"bulla/ceremony"
	"bulla/verify"
)

// TestSelftest tampers with copies of what a real appliance exported, of two boots and two signing keys: all of it is found by the
// command that auditors have, with the policy that they were given on the first day.
func TestSelftest(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	daemon := startDev(t, dir)
	w := browse(t, dir)
	c := newCouncil(t, w, dir)
	take := func(events ...string) {
		t.Helper()
		for _, e := range events {
			if _, err := dial(t, dir).Append(t.Context(), "", []byte(e)); err != nil {
				t.Fatal(err)
			}
		}
	}
	take(`{"stream":{"id":"s","n":0},"type":"selftest.first"}`, `{"stream":{"id":"s","n":5},"type":"selftest.gap"}`, `{"type":"selftest.more"}`)
	w.requireSeal(t)
	var key ceremony.Key
	if err := json.Unmarshal(c.carry(&ceremony.KeyGenerate{Algorithm: "ecdsa-p256", Purpose: ceremony.PurposeLog}).Outcome, &key); err != nil {
		t.Fatal(err)
	}
	c.carry(&ceremony.KeyRotate{Old: ceremony.OldSigns, Purpose: ceremony.PurposeLog, SPKI: key.Hash()})
	take(`{"type":"selftest.rotated"}`)
	if code := daemon.stop(); code != 0 {
		t.Fatalf("exit code %d:\n%s", code, daemon.stderr)
	}
	daemon = startDev(t, dir)
	w = browse(t, dir)
	take(`{"type":"selftest.again"}`)
	w.requireSeal(t)
	take(`{"type":"selftest.last"}`)
	evidence := filepath.Join(dir, "evidence")
	bulla := func(args ...string) []byte {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), program(t, "bulla"), args...).CombinedOutput()
		if err != nil {
			t.Fatalf("bulla %v: %v\n%s", args, err, out)
		}
		return out
	}
	bulla("export", "--out", evidence, "--socket", filepath.Join(dir, "sign.sock"))
	if code := daemon.stop(); code != 0 {
		t.Errorf("exit code %d:\n%s", code, daemon.stderr)
	}

	var rep verify.SelftestReport
	if err := json.Unmarshal(bulla("verify", evidence, "--policy", filepath.Join(dir, "auditor.policy"), "--selftest", "--json"), &rep); err != nil {
		t.Fatal(err)
	}
	// A log of dev has no tokens, no more than 256 entries here, and everybody may append to it; this one was never put back, as the one of
	// TestPutBack was.
	may := []string{"flip-upper-tile", "append-without-right", "date-token-back", "recover-elsewhere"}
	for _, x := range rep.Trials {
		if x.Outcome != verify.Caught && (x.Outcome != verify.NotApplicable || !slices.Contains(may, x.Name)) {
			t.Errorf("%s: %s: %s", x.Name, x.Outcome, x.Why)
		}
	}
	if len(rep.Trials) != len(verify.Mutations()) {
		t.Errorf("%d mutations of %d were tried", len(rep.Trials), len(verify.Mutations()))
	}
}
