package softhsmtest_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	softhsmtest "bulla/softhsm-test"
)

// running lists the processes, other than this one, that have text among their arguments.
func running(t *testing.T, text string) (found []string) {
	t.Helper()
	all, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		if pid, err := strconv.Atoi(e.Name()); err != nil || pid == os.Getpid() {
			continue
		}
		args, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err == nil && bytes.Contains(args, []byte(text)) { // an error: it ended meanwhile
			found = append(found, e.Name()+" "+strings.ReplaceAll(string(args), "\x00", " "))
		}
	}
	return found
}

const victimVariable = "BULLA_TEST_VICTIM"

// The victim is this test in another process, which is killed when it has devices running and is making another.
func TestKilledParentLeavesNothingRunning(t *testing.T) {
	if dir := os.Getenv(victimVariable); dir != "" {
		victim(t, dir)
		return
	}
	t.Parallel()
	dir, err := os.MkdirTemp("", "b") // not removed by the victim, which is killed
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKilledParentLeavesNothingRunning$", "-test.timeout=60s")
	cmd.Env = append(os.Environ(), victimVariable+"="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if line != "ready\n" {
		rest, _ := io.ReadAll(out)
		t.Errorf("the victim says %q (%v) %s", line, err, rest)
	}
	before := running(t, dir)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("the victim was not killed")
	}
	for _, p := range []string{"swtpm socket", "chronyd", "swtpm_setup"} {
		if !strings.Contains(strings.Join(before, "\n"), p) {
			t.Errorf("no %s was running in %q", p, before)
		}
	}
	eventually(t, 10*time.Second, "all have ended", func() bool { return len(running(t, dir)) == 0 })
}

func victim(t *testing.T, dir string) {
	if _, err := softhsmtest.CreateTPM(t.Context(), filepath.Join(dir, "t")); err != nil {
		t.Fatal(err)
	}
	if _, err := softhsmtest.StartChronyd(t.Context(), filepath.Join(dir, "c"), "local stratum 1"); err != nil {
		t.Fatal(err)
	}
	go softhsmtest.CreateTPM(t.Context(), filepath.Join(dir, "u"))
	eventually(t, 20*time.Second, "another is being made", func() bool {
		names, err := filepath.Glob(filepath.Join(dir, ".making-*", "ca", "*"))
		return err == nil && len(names) > 0
	})
	fmt.Println("ready")
	<-t.Context().Done()
}

func TestMissingProgramsSayWhatToInstall(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	dir := t.TempDir()
	for name, make := range map[string]func() error{
		"TPM":     func() error { _, err := softhsmtest.CreateTPM(t.Context(), filepath.Join(dir, "t")); return err },
		"NSS":     func() error { _, err := softhsmtest.CreateNSS(t.Context(), filepath.Join(dir, "n")); return err },
		"chronyd": func() error { _, err := softhsmtest.StartChronyd(t.Context(), filepath.Join(dir, "c")); return err },
	} {
		if err := make(); err == nil || !strings.Contains(err.Error(), "make deps") {
			t.Errorf("%s: error %v does not say what to do", name, err)
		}
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) > 0 {
		t.Errorf("left behind: %v, %v", names, err)
	}
}
