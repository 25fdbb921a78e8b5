package softhsmtest_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"bulla/api"
	"bulla/record"
)

// drilled is what the test reads of a drill's report.
type drilled struct {
	Entry  uint64 `json:"entry"`
	Drills []struct {
		Name    string `json:"name"`
		Outcome string `json:"outcome"`
		Why     string `json:"why"`
		Noticed []struct {
			By    string `json:"by"`
			Found string `json:"found"`
		} `json:"noticed"`
	} `json:"drills"`
}

// TestDrill attacks a throwaway appliance in every way that there is a drill for. Each is detected by what should, the outcome is in the
// appliance's log, the appliance itself is unharmed, and nothing else is ever touched.
func TestDrill(t *testing.T) {
	t.Parallel()
	bullad := program(t, "bullad")
	dir := filepath.Join(shortDir(t), "dev")
	report := filepath.Join(filepath.Dir(dir), "report.md")
	drill := func(code int, args ...string) (stdout []byte, stderr string) {
		t.Helper()
		var errs strings.Builder
		c := exec.CommandContext(t.Context(), program(t, "bulla"), append([]string{"drill", "--bullad", bullad}, args...)...)
		c.Stderr = &errs
		out, err := c.Output()
		if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		if got := c.ProcessState.ExitCode(); got != code {
			t.Fatalf("bulla drill %v: exit code %d, want %d\n%s%s", args, got, code, out, errs.String())
		}
		return out, errs.String()
	}
	out, _ := drill(0, "--dir", dir, "--out", report, "--json")
	var rep drilled
	if err := json.Unmarshal(out, &rep); err != nil {
		t.Fatal(err)
	}
	want := map[string][]string{
		"clock-step": {"clock entry", "refusal"}, "rollback": {"refusal", "alarm", "verifier"}, "stolen-key": {"verifier", "verifier"}, "fork": {"verifier", "verifier"},
		"hsm-loss": {"refusal", "status"}, "tpm-reset": {"refusal", "status", "seal"}, "tpm-clear": {"refusal", "refusal"},
		"disk-full": {"refusal", "status"}, "flip": {"alarm", "status", "verifier", "start"},
	}
	text, err := os.ReadFile(report)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range rep.Drills {
		var by []string
		for _, n := range d.Noticed {
			by = append(by, n.By)
		}
		if d.Outcome != "detected" || !slices.Equal(by, want[d.Name]) {
			t.Errorf("%s: %s, noticed by %q, want %q: %s", d.Name, d.Outcome, by, want[d.Name], d.Why)
		}
		if !strings.Contains(string(text), "## "+d.Name+": detected\n") {
			t.Errorf("the report does not say that %s was detected:\n%s", d.Name, text)
		}
	}
	if len(rep.Drills) != len(want) {
		t.Errorf("%d drills, want %d", len(rep.Drills), len(want))
	}

	// The appliance is running: its directory is not taken.
	daemon := startDev(t, dir)
	if _, why := drill(64, "--dir", dir); !strings.Contains(why, "is running") {
		t.Errorf("of a running appliance: %s", why)
	}
	w := browse(t, dir)
	var page api.Page
	w.getJSON(t, fmt.Sprintf("/v1/entries?from=%d&limit=1", rep.Entry), &page)
	e, err := record.ParseEntry(page.Entries[0])
	if err != nil {
		t.Fatal(err)
	}
	event, err := record.ParseEvent(e.Body)
	if err != nil {
		t.Fatal(err)
	}
	if event.Type != "bulla.drill" || event.Outcome != "success" || !strings.Contains(string(event.Data), `{"by":"refusal, alarm, verifier","name":"rollback","outcome":"detected"`) {
		t.Errorf("entry %d is %s", rep.Entry, e.Body)
	}
	w.requireSeal(t)
	w.requireVerified(t, readPolicy(t, dir))
	if code := daemon.stop(); code != 0 {
		t.Errorf("exit code %d:\n%s", code, daemon.stderr)
	}

	// Copies of its log's file, of before and after another drill, as of a real one. They are only read.
	copyOf := func(name string) string {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(dir, "dev.db"))
		if err == nil {
			err = os.WriteFile(filepath.Join(filepath.Dir(dir), name), b, 0o400)
		}
		if err != nil {
			t.Fatal(err)
		}
		return filepath.Join(filepath.Dir(dir), name)
	}
	older := copyOf("older.db")
	if out, _ := drill(0, "--dir", dir, "--only", "hsm-loss"); !strings.Contains(string(out), "hsm-loss  detected") {
		t.Errorf("on an existing appliance: %s", out)
	}
	newer, policy := copyOf("newer.db"), filepath.Join(dir, "auditor.policy")
	out, _ = drill(0, "--shadow", older, "--shadow", newer, "--policy", policy, "--json")
	rep = drilled{}
	if err := json.Unmarshal(out, &rep); err != nil {
		t.Fatal(err)
	}
	for i, name := range []string{"shadow-flip", "shadow-cut", "shadow-put-back"} {
		if i >= len(rep.Drills) || rep.Drills[i].Name != name || rep.Drills[i].Outcome != "detected" {
			t.Errorf("of copies, no %s was detected: %s", name, out)
		}
	}
	if out, _ := drill(0, "--shadow", newer, "--policy", policy); !strings.Contains(string(out), "shadow-put-back  not run") {
		t.Errorf("of one copy: %s", out)
	}

	// A directory that bullad dev did not make is left alone.
	real := filepath.Join(filepath.Dir(dir), "real")
	if err := os.Mkdir(real, 0o700); err != nil {
		t.Fatal(err)
	}
	config, err := os.ReadFile("../docs/bullad.toml")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(real, "bullad.toml"), config, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, why := drill(64, "--dir", real); !strings.Contains(why, "throwaway appliances only") {
		t.Errorf("of another directory: %s", why)
	}
	if names, err := os.ReadDir(real); err != nil || len(names) != 1 {
		t.Errorf("it holds %v (%v)", names, err)
	}
}
