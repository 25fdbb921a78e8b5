package softhsmtest_test

import (
	"context"
	"errors"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// An appliance with two logs: commands name the one that they mean, its policy trusts both, and a timeline tells them apart.
func TestTwoLogs(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	dev := filepath.Join(dir, "dev")
	startDev(t, dev, "--logs", "2")
	run := func(want int, args ...string) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, program(t, "bulla"), append(args, "--socket", filepath.Join(dev, "sign.sock"))...)
		cmd.Dir = dir
		cmd.Env = append(cmd.Environ(), "XDG_STATE_HOME="+filepath.Join(dir, "state"))
		out, err := cmd.CombinedOutput()
		exit := (*exec.ExitError)(nil)
		if err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		if code := cmd.ProcessState.ExitCode(); code != want {
			t.Fatalf("bulla %v: exit code %d, want %d\n%s", args, code, want, out)
		}
		return string(out)
	}
	const logs = "bulla.example/dev, bulla.example/dev2"
	for _, args := range [][]string{{"append", "--type", "a.b"}, {"append", "--type", "a.b", "--log", "elsewhere"}, {"list"}} {
		if said := run(64, args...); !strings.Contains(said, "--log") || !strings.Contains(said, logs) {
			t.Errorf("bulla %v: %s", args, said)
		}
	}
	if said := run(0, "status"); !strings.Contains(said, "\nclock ") || !strings.Contains(said, "\nhsm token=dev ") || !strings.Contains(said, "\nself-check dev2 ") {
		t.Errorf("status: %s", said)
	}
	for _, name := range []string{"dev", "dev2"} {
		run(0, "append", "--type", "a.b", "--log", "bulla.example/"+name)
		run(0, "export", "--log", name, "--out", name+".out")
		if said := run(0, "verify", name+".out", "--policy", filepath.Join(dev, "auditor.policy")); !strings.HasPrefix(said, "VERIFIED") {
			t.Errorf("verify: %s", said)
		}
	}
	if said := run(0, "timeline", "dev.out", "dev2.out", "--type", "a.b"); !strings.Contains(said, "A  bulla.example/dev (dev.out)\nB  bulla.example/dev2 (dev2.out)\n") {
		t.Errorf("timeline: %s", said)
	}
}
