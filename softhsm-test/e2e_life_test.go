package softhsmtest_test

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"bulla/api"
	softhsmtest "bulla/softhsm-test"
	"bulla/verify"
)

// life is an appliance that init made from a plan, with its own TPM, and the officers who govern it.
type life struct {
	*rig
	work   string // where people keep their files
	agent  string // ssh-agent's socket
	daemon *child
}

func newLife(t *testing.T) *life {
	t.Helper()
	l := &life{rig: newRig(t)}
	for _, dir := range []string{"state", "work"} {
		if err := os.Mkdir(l.path(dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	l.work = l.path("work")
	tpm, err := softhsmtest.CreateTPM(t.Context(), l.path("t2"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tpm.Kill(); err != nil {
			t.Error(err)
		}
	})
	c := &l.config
	c.State, c.TPM = l.path("state"), map[string]any{"device": tpm.Address(), "roots": tpm.Roots()}
	c.Logs = []logConfig{{Name: "audit", Origin: "example.org/audit", File: l.path("audit.db"), Key: strings.Replace(c.Logs[0].Key, "object=log", "object=audit", 1)}}
	l.write("bullad.toml", l.config)
	plan := "origin = \"example.org/audit\"\nproposer_counts = true\n[tpm]\nauth = \"none\"\n"
	for _, name := range []string{"producer", "auditor", "operator"} {
		plan += fmt.Sprintf("[[role]]\nname = %q\nany = true\n", name)
	}
	for action, n := range map[string]int{"default": 2, "genesis": 3} {
		plan += fmt.Sprintf("[[threshold]]\naction = %q\nofficers = %d\n", action, n)
	}
	l.startAgent()
	for _, name := range []string{"alice", "bob", "carol"} {
		o, err := softhsmtest.OpenOfficer(l.path("officers"), name)
		if err != nil {
			t.Fatal(err)
		}
		plan += fmt.Sprintf("[[officer]]\nname = %q\nkey = %q\n", name, o.Key)
		l.sh("ssh-add -q " + o.KeyFile)
	}
	if err := os.WriteFile(l.path("genesis.toml"), []byte(plan), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := softhsmtest.CreateOfficer(l.work, "dave"); err != nil {
		t.Fatal(err)
	}
	return l
}

// startAgent starts the ssh-agent that holds the officers' keys.
func (l *life) startAgent() {
	l.t.Helper()
	l.agent = l.path("agent")
	agent := startChild(l.t, nil, "ssh-agent", "-D", "-a", l.agent)
	l.t.Cleanup(agent.kill)
	requireSoon(l.t, func() error { _, err := os.Stat(l.agent); return err })
}

// sh runs commands as people type them, and returns what they print.
func (l *life) sh(lines string) string {
	l.t.Helper()
	cmd := exec.CommandContext(l.t.Context(), "bash", "-euo", "pipefail", "-c", lines)
	cmd.Dir = l.work
	cmd.Env = append(os.Environ(), "BULLA_SOCKET="+l.path("sign.sock"), "SSH_AUTH_SOCK="+l.agent, "SOFTHSM2_CONF="+l.path("hsm/softhsm2.conf"),
		"PATH="+filepath.Dir(program(l.t, "bulla"))+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		l.t.Fatalf("%v\n%s\n%s", err, lines, out)
	}
	return string(out)
}

// start starts the daemon. It is ready for officers when it knows the time.
func (l *life) start() {
	l.t.Helper()
	program(l.t, "bullad")
	l.daemon = l.bullad("serve", "--config", l.write("bullad.toml", l.config))
	w := browse(l.t, l.dir)
	requireSoon(l.t, func() error {
		status, b, err := w.do(l.t.Context(), "GET", "/v1/status", "", "")
		if err == nil && status != http.StatusOK || err == nil && !bytes.Contains(b, []byte(`"synced"`)) {
			err = fmt.Errorf("GET /v1/status: %d %s", status, b)
		}
		return err
	})
}

// TestLife is the whole life of an appliance, by the scripts of docs/ceremonies.md as they stand: genesis, change of policy, rotation under load,
// another officer, a key destroyed, and in the end a backup that was put back and is declared. It verifies from the genesis alone.
func TestLife(t *testing.T) {
	t.Parallel()
	l := newLife(t)
	b, err := os.ReadFile("../docs/ceremonies.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?ms)^```sh\n(.*?)^```").FindAllStringSubmatch(string(b), -1)
	if len(blocks) != 8 {
		t.Fatalf("%d blocks of commands", len(blocks))
	}
	var traffic *load
	for i, block := range blocks {
		lines := strings.ReplaceAll(block[1], "/etc/bulla/", l.dir+"/")
		before, after, starts := strings.Cut(lines, "systemctl start bullad\n")
		l.sh(before)
		if starts {
			l.start()
			var refused *api.Refusal
			if _, err := dial(t, l.dir).Append(t.Context(), "", []byte(`{"type":"too.early"}`)); !errors.As(err, &refused) || !strings.Contains(refused.Message, "approval") {
				t.Errorf("an event before the genesis is approved: %v", err)
			}
			l.sh(after)
		}
		if i == 1 { // the officers have approved
			traffic = startLoad(t, l.dir, "", 3)
			traffic.requireMore(patience, 50)
		}
		if i > 1 {
			traffic.requireMore(patience, 20)
		}
	}
	given, refused := traffic.end()
	if len(refused) > 0 {
		t.Errorf("events were refused: %v", refused)
	}
	w := browse(t, l.dir)
	policy := l.policy()
	h := newHistory(t, &verify.Policy{VKeys: append(l.vkeys(), policy.VKeys...)})
	h.add(t, given[:10])
	h.add(t, given[10:])
	h.check(t, w)
	w.requireSeal(t)
	w.requireVerified(t, policy, h.sample...)

	// A backup, traffic that it lacks, and the backup put back.
	surviving := l.sh("curl -sS --unix-socket " + l.path("http.sock") + " http://bulla/checkpoint")
	l.stop()
	backup := l.copyDisk()
	l.start()
	c := dial(t, l.dir)
	var lost []byte
	requireSoon(t, func() error {
		r, err := c.Append(t.Context(), "", []byte(`{"type":"not.in.the.backup"}`))
		if err == nil {
			lost, err = r.MarshalJSON()
		}
		return err
	})
	w = browse(t, l.dir)
	w.requireSeal(t)
	known := parseHead(t, l.sh("curl -sS --unix-socket "+l.path("http.sock")+" http://bulla/checkpoint"))
	l.stop()
	l.putBack(backup)
	l.start()
	w = browse(t, l.dir)
	requireSoon(t, func() error {
		if status, b, err := w.do(t.Context(), "GET", "/health/ready", "", ""); err != nil || status != http.StatusServiceUnavailable || !bytes.Contains(b, []byte(`"rollback"`)) {
			return fmt.Errorf("GET /health/ready: %d %s: %v", status, b, err)
		}
		return nil
	})
	l.sh(fmt.Sprintf("bulla ceremony propose recovery.declare --reason 'restored from the backup' --known %d:%s --successor example.org/audit-2 --as alice", known.Size, known.Root))
	l.sh("bulla ceremony approve 6 --as bob; bulla ceremony enact 6 --dry-run; bulla ceremony enact 6")
	requireSoon(t, func() error {
		if status, b, err := w.do(t.Context(), "POST", "/v1/seals", "", ""); err != nil || status != http.StatusCreated {
			return fmt.Errorf("a seal: %d %s: %v", status, b, err)
		}
		return nil
	})
	report := w.requireVerified(t, policy, append(h.sample, verify.Receipt{Name: "lost.json", Data: lost})...)
	if last := report.Receipts[len(report.Receipts)-1]; last.Status != verify.Lost {
		t.Errorf("the receipt of what was lost: %+v", last)
	}
	if said := l.sh("bulla ceremony list; bulla ceremony minutes 6"); !strings.Contains(said, "restored from the backup") || !strings.Contains(said, "key.rotate") {
		t.Errorf("it says %s", said)
	}
	if parseHead(t, surviving).Size >= known.Size {
		t.Error("nothing was lost")
	}
	l.stop()
}

func (l *life) stop() {
	l.t.Helper()
	if code := l.daemon.stop(); code != 0 {
		l.t.Errorf("exit code %d:\n%s", code, l.daemon.stderr)
	}
}

// policy is what bulla policy init wrote before anything was changed: from the genesis alone.
func (l *life) policy() *verify.Policy {
	l.t.Helper()
	b, err := os.ReadFile(filepath.Join(l.work, "auditor.policy"))
	if err != nil {
		l.t.Fatal(err)
	}
	p, err := verify.ParsePolicy(b)
	if err != nil {
		l.t.Fatal(err)
	}
	return p
}

// vkeys are the log's verifier keys now.
func (l *life) vkeys() []string {
	l.t.Helper()
	var st api.Status
	browse(l.t, l.dir).getJSON(l.t, "/v1/status", &st)
	return st.Logs[0].VKeys
}
