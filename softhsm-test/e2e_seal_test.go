package softhsmtest_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"bulla/api"
	"bulla/ceremony"
	"bulla/record"
	"bulla/verify"
)

// disk is what is on an appliance's disk: logs and the sealer's file, by path.
type disk map[string][]byte

// copyDisk reads them; the appliance must be stopped.
func (r *rig) copyDisk() disk {
	r.t.Helper()
	out := disk{}
	paths := []string{r.path("sealer.json")}
	for _, l := range r.config.Logs {
		paths = append(paths, l.File, l.File+"-wal")
	}
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			r.t.Fatal(err)
		}
		out[path] = b
	}
	return out
}

func (r *rig) putBack(d disk) {
	r.t.Helper()
	for path, b := range d {
		err := os.Remove(path)
		if b != nil {
			err = os.WriteFile(path, b, 0o600)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			r.t.Fatal(err)
		}
	}
}

// run runs a command of bullad to its end.
func (r *rig) run(code int, args ...string) (stdout, stderr string) {
	r.t.Helper()
	c := exec.CommandContext(r.t.Context(), program(r.t, "bullad"), args...)
	c.Env = append(os.Environ(), "SOFTHSM2_CONF="+r.path("hsm/softhsm2.conf"))
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	err := c.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		r.t.Fatal(err)
	}
	if got := c.ProcessState.ExitCode(); got != code {
		r.t.Fatalf("bullad %v: exit code %d, want %d\n%s%s", args, got, code, &out, &errs)
	}
	return out.String(), errs.String()
}

// TestPutBack puts an appliance's store back to an older copy. The daemon serves reads, refuses events, and its log says why; so it is after
// another start. A recovery that officers declare ends it: the log is closed, sealed on, and auditors read what was lost as declared.
func TestPutBack(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	policy := readPolicy(t, r.dir)
	event := func(n int) []byte { return fmt.Appendf(nil, `{"data":{"n":%d},"type":"rollback.test"}`, n) }
	var receipts []verify.Receipt
	run := func(do func(w *web, c *api.Client)) {
		t.Helper()
		daemon := r.serve()
		w := browse(t, r.dir)
		do(w, dial(t, r.dir))
		if code := daemon.stop(); code != 0 {
			t.Errorf("exit code %d:\n%s", code, daemon.stderr)
		}
	}
	take := func(w *web, c *api.Client, n int) {
		t.Helper()
		rec, err := c.Append(t.Context(), "", event(n))
		if err != nil {
			t.Fatal(err)
		}
		b, err := rec.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		receipts = append(receipts, verify.Receipt{Name: fmt.Sprintf("%d.json", n), Data: b})
		w.requireSeal(t)
	}
	officers := newCouncil(t, nil, r.dir)
	var surviving, known ceremony.Head
	run(func(w *web, c *api.Client) {
		take(w, c, 0)
		officers.w = w
		surviving = officers.head()
	})
	config := r.write("serve.toml", r.config)
	old := r.copyDisk()
	run(func(w *web, c *api.Client) {
		take(w, c, 1)
		officers.w = w
		known = officers.head()
	})
	newest := r.copyDisk()
	r.putBack(old)

	rolledBack := func() (*child, *web) {
		daemon := r.bullad("serve", "--config", config)
		w := browse(t, r.dir)
		requireSoon(t, func() error {
			var st api.Status
			status, b, err := w.do(t.Context(), "GET", "/health/ready", "", "")
			if err != nil || status != http.StatusServiceUnavailable || !strings.Contains(string(b), `"rollback"`) {
				return fmt.Errorf("GET /health/ready: %d %s: %v", status, b, err)
			}
			if w.getJSON(t, "/v1/status", &st); st.Machine.Seal.Rollback == "" {
				return errors.New("the status has no rollback")
			}
			if st.Machine.Clock.State != "synced" {
				return fmt.Errorf("the clock is %s", st.Machine.Clock.State)
			}
			if a := w.alarms(t); len(a) == 0 || !strings.Contains(a[len(a)-1], "older than its TPM") {
				return fmt.Errorf("alarms %q", a)
			}
			return nil
		})
		return daemon, w
	}
	for range 2 {
		daemon, w := rolledBack()
		_, err := dial(t, r.dir).Append(t.Context(), "", event(2))
		var refused *api.Refusal
		if !errors.As(err, &refused) || refused.Code != record.CodeRollback || !strings.Contains(refused.Message, "recovery.declare") {
			t.Errorf("an event: %v", err)
		}
		if status, b, err := w.do(t.Context(), "POST", "/v1/seals", "", ""); err != nil || status != http.StatusServiceUnavailable || !strings.Contains(string(b), `"rollback"`) {
			t.Errorf("a seal on demand: %d %s: %v", status, b, err)
		}
		var page api.Page
		if w.getJSON(t, "/v1/entries?from=0&limit=3", &page); len(page.Entries) != 3 {
			t.Errorf("%d entries were read", len(page.Entries))
		}
		if code := daemon.stop(); code != 0 {
			t.Errorf("exit code %d:\n%s", code, daemon.stderr)
		}
	}
	// The newer files, put back, are as good as ever.
	putBack := r.copyDisk()
	r.putBack(newest)
	run(func(w *web, _ *api.Client) { w.requireVerified(t, policy, receipts...) })
	// Or they are gone: the copy that was found, and a machine that went on since.
	r.putBack(putBack)
	daemon, w := rolledBack()
	officers.w = w
	officers.carry(&ceremony.RecoveryDeclare{Known: known, Reason: "the disk failed; restored from backup", Surviving: surviving})
	checkClosed := func(w *web, c *api.Client) {
		t.Helper()
		_, err := c.Append(t.Context(), "", event(3))
		var refused *api.Refusal
		if !errors.As(err, &refused) || refused.Code != record.CodeForbidden || !strings.Contains(refused.Message, "closed") {
			t.Errorf("an event after the recovery: %v", err)
		}
		w.requireSeal(t)
		rep := w.requireVerified(t, policy, receipts...)
		for i, want := range []verify.Status{verify.Verified, verify.Lost} {
			if got := rep.Receipts[i]; got.Status != want {
				t.Errorf("receipt %s: %s, want %s: %s", got.Name, got.Status, want, got.Why)
			}
		}
		if x := rep.Recovery; x == nil || x.To != known.Size || x.Why != "the disk failed; restored from backup" {
			t.Errorf("recovery: %+v", x)
		}
	}
	requireSoon(t, func() error {
		if status, b, err := w.do(t.Context(), "POST", "/v1/seals", "", ""); err != nil || status != http.StatusCreated {
			return fmt.Errorf("a seal: %d %s: %v", status, b, err)
		}
		return nil
	})
	checkClosed(w, dial(t, r.dir))
	if code := daemon.stop(); code != 0 {
		t.Errorf("exit code %d:\n%s", code, daemon.stderr)
	}
	daemon = r.bullad("serve", "--config", config)
	w = browse(t, r.dir)
	requireSoon(t, func() error {
		if status, b, err := w.do(t.Context(), "POST", "/v1/seals", "", ""); err != nil || status != http.StatusCreated {
			return fmt.Errorf("a seal: %d %s: %v", status, b, err)
		}
		return nil
	})
	checkClosed(w, dial(t, r.dir))
	if code := daemon.stop(); code != 0 {
		t.Errorf("exit code %d:\n%s", code, daemon.stderr)
	}

	// Tampering with what such a log holds is found as with any other: what its machine says of the TPM that officers do not sign, too.
	r.run(0, "export", "--config", config, "--log", "dev", "--out", r.path("evidence"))
	src, err := verify.OpenDir(r.path("evidence"))
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	rep, err := verify.Selftest(t.Context(), src, policy, verify.SelftestOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range rep.Trials {
		if x.Outcome != verify.Caught && x.Outcome != verify.NotApplicable || x.Name == "recover-elsewhere" && x.Outcome != verify.Caught {
			t.Errorf("%s: %s: %s", x.Name, x.Outcome, x.Why)
		}
	}
	if !rep.Passed() {
		t.Errorf("the selftest: %v", rep.Counts)
	}
}

// TestInitStopped has init stop at each place that leaves something behind. The next one finishes, or says exactly what to do.
func TestInitStopped(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	first := r.config.Logs[0]
	config := func(key string) string {
		c := r.config
		l := first
		l.File, l.Key, l.Interop = r.path(key+".db"), strings.Replace(first.Key, "object=log", "object="+key, 1), ""
		c.Logs = []logConfig{l}
		return r.write(key+".toml", c)
	}
	sealer, err := os.ReadFile(r.path("sealer.json"))
	if err != nil {
		t.Fatal(err)
	}
	tool := func(line string) string {
		t.Helper()
		words := strings.Fields(line)
		c := exec.CommandContext(t.Context(), words[0], words[1:]...)
		c.Env = append(os.Environ(), "TPM2TOOLS_TCTI=swtpm:path="+strings.TrimPrefix(r.tpm.Address(), "unix:"))
		out, err := c.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v: %s", line, err, out)
		}
		return string(out)
	}

	// Before the enrolment was noted: key and counter are in the TPM, or the key alone.
	if err := os.Remove(r.path("sealer.json")); err != nil {
		t.Fatal(err)
	}
	for _, want := range [][]string{{"tpm2_evictcontrol -C o -c 0x81010B01", "tpm2_nvundefine -C o 0x01800B01"}, {"tpm2_evictcontrol -C o -c 0x81010B01"}} {
		_, why := r.run(64, "init", "--config", config("one"), "--plan", r.path("genesis.toml"))
		var do []string
		for line := range strings.Lines(why) {
			if line, ok := strings.CutPrefix(line, "  tpm2_"); ok {
				do = append(do, "tpm2_"+strings.TrimSpace(line))
			}
		}
		if !slices.Equal(do, want) {
			t.Fatalf("it says %s", why)
		}
		tool(do[len(do)-1]) // in the first round the counter: the key stays
	}
	r.run(0, "init", "--config", config("one"), "--plan", r.path("genesis.toml"))
	// After it was noted, before a key was made or a log.
	kept, err := os.ReadFile(r.path("sealer.json"))
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(kept, sealer) {
		t.Fatal("the TPM was not enrolled anew")
	}
	none := bytes.Replace(kept, []byte(`"logs":["bulla.example/dev"]`), []byte(`"logs":[]`), 1)
	if err := os.WriteFile(r.path("sealer.json"), none, 0o600); err != nil {
		t.Fatal(err)
	}
	two, _ := r.run(0, "init", "--config", config("two"), "--plan", r.path("genesis.toml"))
	// After the key: it is not taken over.
	if err := os.WriteFile(r.path("sealer.json"), none, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(r.path("two.db"), r.path("moved.db")); err != nil {
		t.Fatal(err)
	}
	if _, why := r.run(64, "init", "--config", config("two"), "--plan", r.path("genesis.toml")); !strings.Contains(why, "name another") && !strings.Contains(why, "Name another") {
		t.Errorf("with a key that exists: %s", why)
	}
	// After the log, before it is covered: finished, with the genesis that it has.
	if err := os.Rename(r.path("moved.db"), r.path("two.db")); err != nil {
		t.Fatal(err)
	}
	if dry, _ := r.run(0, "init", "--config", config("two"), "--plan", r.path("genesis.toml"), "--dry-run"); !strings.Contains(dry, "would finish it") {
		t.Errorf("a dry run: %s", dry)
	}
	if again, _ := r.run(0, "init", "--config", config("two"), "--plan", r.path("genesis.toml")); again != two || !strings.Contains(two, "genesis leaf hash") {
		t.Errorf("it finished with %s, not %s", again, two)
	}
	// A log that is covered is never touched.
	if _, why := r.run(64, "init", "--config", config("two"), "--plan", r.path("genesis.toml")); !strings.Contains(why, "exists already") {
		t.Errorf("over a log: %s", why)
	}
	r.config.Logs = []logConfig{{Name: first.Name, Origin: first.Origin, File: r.path("two.db"), Key: strings.Replace(first.Key, "object=log", "object=two", 1)}}
	daemon := r.serve()
	browse(t, r.dir).requireSeal(t)
	if code := daemon.stop(); code != 0 {
		t.Errorf("exit code %d:\n%s", code, daemon.stderr)
	}
}

// TestClearedTPM clears the appliance's TPM, as root can: the daemon does not start, and says what that means; the log can be copied, and
// verifies up to its last seal.
func TestClearedTPM(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	policy := readPolicy(t, r.dir)
	clearing := exec.CommandContext(t.Context(), "tpm2_clear")
	clearing.Env = append(os.Environ(), "TPM2TOOLS_TCTI=swtpm:path="+strings.TrimPrefix(r.tpm.Address(), "unix:"))
	if out, err := clearing.CombinedOutput(); err != nil {
		t.Fatalf("tpm2_clear: %v: %s", err, out)
	}
	config := r.write("serve.toml", r.config)
	r.run(0, "export", "--config", config, "--log", "dev", "--out", r.path("evidence"))
	src, err := verify.OpenDir(r.path("evidence"))
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	if rep, err := verify.Run(t.Context(), src, policy, verify.Options{}); err != nil || rep.Verdict != verify.OutcomeVerified {
		t.Errorf("%+v: %v", rep, err)
	}

	// Without its TPM the appliance serves its officers and readers, and refuses events.
	said, _ := r.run(0, "tpm-prepare", "--config", config, "--auth", "none")
	if _, why := r.run(64, "tpm-prepare", "--config", config, "--auth", "none"); !strings.Contains(why, "there already") {
		t.Errorf("prepared twice: %s", why)
	}
	var content ceremony.TPMEnrol
	var ak, ek string
	if _, err := fmt.Sscanf(said[strings.Index(said, "--ak-name"):], "--ak-name %s --ek %s --pcr %d", &ak, &ek, &content.PCR); err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	if content.AKName, err = hex.DecodeString(ak); err != nil {
		t.Fatal(err)
	}
	if b, err := hex.DecodeString(ek); err != nil || copy(content.EK[:], b) != len(content.EK) {
		t.Fatalf("%v: %s", err, ek)
	}
	daemon := r.bullad("serve", "--config", config)
	w := browse(t, r.dir)
	officers := newCouncil(t, w, r.dir)
	requireSoon(t, func() error {
		var st api.Status
		status, b, err := w.do(t.Context(), "GET", "/health/ready", "", "")
		if err != nil || status != http.StatusServiceUnavailable || !strings.Contains(string(b), "not the enrolled TPM") {
			return fmt.Errorf("GET /health/ready: %d %s: %v", status, b, err)
		}
		if w.getJSON(t, "/v1/status", &st); st.Machine.Clock.State != "synced" {
			return fmt.Errorf("the clock is %s", st.Machine.Clock.State)
		}
		return nil
	})
	first := officers.chronicle().State().Policy.TPM.AKName
	officers.carry(&content)
	requireSoon(t, func() error {
		_, err := dial(t, r.dir).Append(t.Context(), "", []byte(`{"type":"after.enrolment"}`))
		return err
	})
	check := func() {
		t.Helper()
		w.requireSeal(t)
		rep := w.requireVerified(t, policy)
		if !slices.ContainsFunc(rep.Remarks, func(s string) bool { return strings.Contains(s, "another TPM, which officers enrolled") }) {
			t.Errorf("remarks: %q", rep.Remarks)
		}
		// Who pins the one that is gone is told what is missing; nothing was tampered with.
		pinning := *policy
		pinning.AKs = [][]byte{first}
		if rep, err := verify.Run(t.Context(), w, &pinning, verify.Options{}); err != nil || rep.Verdict != verify.OutcomeNotCheckable || !strings.Contains(strings.Join(rep.Missing, "\n"), "ak "+ak) {
			t.Errorf("%+v: %v", rep, err)
		}
	}
	check()
	if code := daemon.stop(); code != 0 {
		t.Errorf("exit code %d:\n%s", code, daemon.stderr)
	}
	daemon = r.serve()
	w = browse(t, r.dir)
	check()
	if code := daemon.stop(); code != 0 {
		t.Errorf("exit code %d:\n%s", code, daemon.stderr)
	}
}
