package softhsmtest_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The commands that the README shows after starting an appliance work as they stand.
func TestReadme(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	startDev(t, filepath.Join(dir, "dev"))
	b, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, shown, found := strings.Cut(string(b), "and in another terminal\n")
	if !found {
		t.Fatal("the README does not show what to do in another terminal")
	}
	var lines []string
	for _, block := range regexp.MustCompile(`(?m)^(    .+\n)+`).FindAllString(shown, -1) {
		for _, line := range strings.Split(strings.TrimSpace(block), "\n") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	if len(lines) < 5 {
		t.Fatalf("only %d lines of commands in the README", len(lines))
	}
	script := "set -e\n" + strings.ReplaceAll(strings.Join(lines, "\n"), "bin/bulla ", program(t, "bulla")+" ")
	cmd := exec.CommandContext(t.Context(), "bash", "-c", script)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s\n%s", err, script, out)
	}
	for _, want := range []string{"VERIFIED", `"checkpoint"`} {
		if !strings.Contains(string(out), want) {
			t.Errorf("no %s in\n%s", want, out)
		}
	}
}

// The commands for an incident work as they stand, in their order, against an appliance that runs and is stopped on the way.
func TestIncidentResponse(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	dev := filepath.Join(dir, "dev")
	c := startDev(t, dev)
	client := dial(t, dev)
	for range 20 {
		if _, err := client.Append(t.Context(), "", []byte(`{"type":"incident.test"}`)); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile("../docs/incident-response.md")
	if err != nil {
		t.Fatal(err)
	}
	medium := filepath.Join(dir, "medium")
	if err := os.Mkdir(medium, 0o700); err != nil {
		t.Fatal(err)
	}
	policy, err := os.ReadFile(filepath.Join(dev, "auditor.policy"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(medium, "auditor.policy"), policy, 0o600); err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?ms)^```sh\n(.*?)^```").FindAllStringSubmatch(string(b), -1)
	if len(blocks) != 6 {
		t.Fatalf("%d blocks of commands", len(blocks))
	}
	for _, block := range blocks {
		lines := strings.ReplaceAll(block[1], "/var/lib/bulla/audit.db", filepath.Join(dev, "dev.db"))
		if strings.Contains(lines, "systemctl stop bullad") {
			if code := c.stop(); code != 0 {
				t.Fatalf("bullad: exit code %d", code)
			}
			lines = strings.ReplaceAll(lines, "systemctl stop bullad\n", "")
		}
		cmd := exec.CommandContext(t.Context(), "bash", "-euo", "pipefail", "-c", lines)
		cmd.Dir = medium
		cmd.Env = append(os.Environ(), "BULLA_SOCKET="+filepath.Join(dev, "sign.sock"), "PATH="+filepath.Dir(program(t, "bulla"))+":"+os.Getenv("PATH"))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s\n%s", err, lines, out)
		}
	}
	for name, want := range map[string]string{"report.txt": "VERIFIED", "report.json": `"verified"`, "access.ndjson": "incident 2026-17", "system.ndjson": `"start"`, "seals.svg": "<svg"} {
		if b, err := os.ReadFile(filepath.Join(medium, name)); err != nil || !strings.Contains(string(b), want) {
			t.Errorf("%s (%v) has no %s:\n%.2000s", name, err, want, b)
		}
	}
}
