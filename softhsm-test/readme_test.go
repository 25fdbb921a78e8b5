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
