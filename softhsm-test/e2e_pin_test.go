package softhsmtest_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"bulla/attest"
	softhsmtest "bulla/softhsm-test"
)

// sealPIN runs bullad seal-pin with a PIN on its standard input.
func (r *rig) sealPIN(code int, pin string, args ...string) (stdout, stderr string) {
	r.t.Helper()
	args = append([]string{"seal-pin", "--config", r.write("serve.toml", r.config)}, args...)
	c := exec.CommandContext(r.t.Context(), program(r.t, "bullad"), args...)
	c.Env = append(os.Environ(), "SOFTHSM2_CONF="+r.path("hsm/softhsm2.conf"))
	c.Stdin = strings.NewReader(pin)
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
	if text := out.String() + errs.String(); pin != "" && strings.Contains(text, strings.TrimSpace(pin)) {
		r.t.Errorf("bullad %v says the PIN", args)
	}
	return out.String(), errs.String()
}

// keepPIN has the rig's keys get their PIN from the TPM, and returns it: no file has it any more.
func (r *rig) keepPIN() (pin string) {
	r.t.Helper()
	b, err := os.ReadFile(r.path("hsm/dev.pin"))
	if err == nil {
		err = os.Remove(r.path("hsm/dev.pin"))
	}
	if err != nil {
		r.t.Fatal(err)
	}
	l := &r.config.Logs[0]
	from, to := "file:"+r.path("hsm/dev.pin"), "tpm:"+r.path("pin.json")
	for _, uri := range []*string{&l.Key, &l.Interop} {
		if !strings.Contains(*uri, from) {
			r.t.Fatalf("%s has another pin-source than %s", *uri, from)
		}
		*uri = strings.Replace(*uri, from, to, 1)
	}
	r.config.PINs = []map[string]any{{"file": r.path("pin.json"), "approver": strings.Replace(l.Key, "object=log", "object=pcr-approval", 1), "pcrs": []int{0, 2, 7}}}
	return strings.TrimSpace(string(b))
}

// requireNowhere fails if a file of the rig has the text in it.
func (r *rig) requireNowhere(text string) {
	r.t.Helper()
	err := filepath.WalkDir(r.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, []byte(text)) {
			r.t.Errorf("%s has the PIN in it", path)
		}
		return err
	})
	if err != nil {
		r.t.Fatal(err)
	}
}

// requireServes starts the appliance, has it seal, and ends it.
func (r *rig) requireServes(seals int) {
	r.t.Helper()
	daemon := r.serve()
	w := browse(r.t, r.dir)
	for range seals {
		w.requireSeal(r.t)
	}
	if code := daemon.stop(); code != 0 {
		r.t.Errorf("exit code %d:\n%s", code, daemon.stderr)
	}
}

// extended is an argument for rig.extend.
func extended(pcr int, text string) (arg string, digest [32]byte) {
	digest = sha256.Sum256([]byte(text))
	return fmt.Sprintf("%d:sha256=%x", pcr, digest), digest
}

// TestPINInTheTPM runs an appliance whose token's PIN is on no disk: it starts unattended while the machine boots what it did, refuses after
// a change that nobody approved, and starts after one that was approved, before the change or after it.
func TestPINInTheTPM(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	pin := r.keepPIN()
	given := []string{"--pin-source", "fd:0"}
	r.requireRefusal("nothing sealed", []string{"bullad seal-pin makes", "pin.json"})

	// What cannot be sealed is refused, and nothing is made.
	for _, c := range []struct {
		name, pin string
		args      []string
		words     string
	}{
		{"a wrong PIN", "wrong-0815\n", given, "PIN refused"},
		{"no PIN", "", given, "in one line"},
		{"two lines", pin + "\n" + pin + "\n", given, "in one line"},
		{"no source", "", nil, "--pin-source"},
		{"the PIN for its source", "", []string{"--pin-source", pin}, "never the PIN itself"},
		{"a source that is not open", "", []string{"--pin-source", "fd:77"}, "--pin-source"},
		{"no approval key", pin, given, "--generate makes it"},
		{"another file", pin, append([]string{"--file", "/nowhere"}, given...), "no [[pin]] has the file"},
		{"approving before sealing", pin, append([]string{"--approve"}, given...), "bullad seal-pin makes"},
	} {
		if _, why := r.sealPIN(64, c.pin, c.args...); !strings.Contains(why, c.words) || strings.Contains(why, pin) {
			t.Errorf("%s: %s", c.name, why)
		}
	}
	for _, pcrs := range [][]int{{0, 13}, {16}, {7, 23}} {
		r.config.PINs[0]["pcrs"] = pcrs
		if _, why := r.sealPIN(64, pin, append(given, "--generate")...); !strings.Contains(why, fmt.Sprintf("PCR %d is", pcrs[len(pcrs)-1])) {
			t.Errorf("PCRs %v: %s", pcrs, why)
		}
	}
	r.config.PINs[0]["pcrs"] = []int{0, 2, 7}
	if _, err := os.Lstat(r.path("pin.json")); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("after refusals: %v", err)
	}

	if out, _ := r.sealPIN(0, pin+"\n", append(given, "--generate")...); !strings.Contains(out, "gave it back once") {
		t.Errorf("it says %s", out)
	}
	if info, err := os.Stat(r.path("pin.json")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file: %v, %v", info.Mode(), err)
	}
	if _, why := r.sealPIN(64, pin, append(given, "--generate")...); !strings.Contains(why, "exists already") {
		t.Errorf("made over an approval key: %s", why)
	}
	r.requireServes(4)
	r.requireServes(4) // in the same boot, after many seals
	r.requireNowhere(pin)

	// A change that nobody approved.
	change, digest := extended(7, "something else was booted")
	r.extend(change)
	r.requireRefusal("a changed PCR", []string{"PCR 7 changed", "bullad seal-pin --approve --pin-source", "find out what was booted"})
	if _, why := r.sealPIN(64, "", "--approve"); !strings.Contains(why, "PCR 7 changed") {
		t.Errorf("approved without the PIN: %s", why)
	}
	if out, _ := r.sealPIN(0, pin, append(given, "--approve")...); !strings.Contains(out, "approved, until") {
		t.Errorf("it says %s", out)
	}
	if out, _ := r.sealPIN(0, "", "--approve"); !strings.Contains(out, "approved already") {
		t.Errorf("it says %s", out)
	}
	r.requireServes(1)

	// A change that is approved before it comes, by nobody who has the PIN.
	var kept struct{ Approvals []attest.Quoted }
	b, err := os.ReadFile(r.path("pin.json"))
	if err == nil {
		err = json.Unmarshal(b, &kept)
	}
	if err != nil || len(kept.Approvals) != 2 {
		t.Fatalf("%d approvals: %v", len(kept.Approvals), err)
	}
	planned, by := extended(2, "an update")
	next := attest.ExtendPCR(kept.Approvals[1].PCRs[1].Value, by)
	for _, bad := range []string{"", "2: 00\n", "2 zero\n", "3: " + strings.Repeat("0", 64) + "\n", fmt.Sprintf("2: %x\n2: %x\n", next, next)} {
		if err := os.WriteFile(r.path("values"), []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		r.sealPIN(64, "", "--approve", "--values", r.path("values"))
	}
	if err := os.WriteFile(r.path("values"), fmt.Appendf(nil, "  sha256:\n    2 : 0x%X\n", next[:]), 0o600); err != nil {
		t.Fatal(err)
	}
	r.sealPIN(0, "", "--approve", "--values", r.path("values"))
	r.extend(planned)
	r.requireServes(1)

	// After a reset the machine is as it was when the PIN was sealed; sealed again, what was approved before is approved no more.
	if err := r.tpm.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.requireServes(1)
	r.sealPIN(0, pin, given...)
	r.requireServes(1)
	r.extend(change)
	r.requireRefusal("approved for an earlier sealing", []string{"PCR 7 changed"})
	if digest == by {
		t.Fatal("two changes are one")
	}
	r.requireNowhere(pin)

	// The file is damaged; the TPM does not answer.
	if b, err = os.ReadFile(r.path("pin.json")); err != nil {
		t.Fatal(err)
	}
	damaged := bytes.Replace(b, []byte(`"ref":"`), []byte(`"ref":"AAAA`), 1)
	damaged = append(damaged[:bytes.Index(damaged, []byte(`"ref":"AAAA`))+11], damaged[bytes.Index(damaged, []byte(`"ref":"AAAA`))+15:]...)
	if err := os.WriteFile(r.path("pin.json"), damaged, 0o600); err != nil {
		t.Fatal(err)
	}
	r.requireRefusal("a damaged file", []string{"altered", "seal the PIN again"})
	if err := os.WriteFile(r.path("pin.json"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.tpm.Kill(); err != nil {
		t.Fatal(err)
	}
	c := r.bullad("serve", "--config", r.write("serve.toml", r.config))
	if code := c.exit(); code != 69 {
		t.Errorf("without a TPM: exit code %d: %s", code, c.stderr)
	}
}

// TestInitClosesTheTPM makes a log on a TPM that nobody has set up: officers take its authorisation away, the genesis says what is closed,
// and nobody without it can do what they could.
func TestInitClosesTheTPM(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		brought string // by officers; else init makes it
	}{{"made", ""}, {"brought", "owner = \"brought-by-officers-for-owner\"\nlockout = \"brought-by-officers-for-lockout\"\n"}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			testInitClosesTheTPM(t, c.brought)
		})
	}
}

func testInitClosesTheTPM(t *testing.T, brought string) {
	r := newRig(t)
	fresh, err := softhsmtest.CreateTPM(t.Context(), r.path("fresh"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := fresh.Kill(); err != nil {
			t.Error(err)
		}
	})
	if err := os.Remove(r.path("sealer.json")); err != nil {
		t.Fatal(err)
	}
	r.config.TPM["device"], r.config.TPM["roots"] = fresh.Address(), fresh.Roots()
	first := r.config.Logs[0]
	configured := func(name, key string) string {
		l := first
		l.Name, l.Origin, l.File, l.Key, l.Interop = name, "bulla.example/"+name, r.path(name+".db"), key, ""
		r.config.Logs = []logConfig{l}
		return r.write(name+".toml", r.config)
	}
	planned := func(name, auth string) string {
		p := plan("bulla.example/" + name)
		if auth != "" {
			p += fmt.Sprintf("\n[tpm]\nauth = %q\n", auth)
		}
		if err := os.WriteFile(r.path(name+".plan"), []byte(p), 0o600); err != nil {
			t.Fatal(err)
		}
		return r.path(name + ".plan")
	}
	tool := func(words ...string) error {
		c := exec.CommandContext(t.Context(), words[0], words[1:]...)
		c.Env = append(os.Environ(), "TPM2TOOLS_TCTI=swtpm:path="+strings.TrimPrefix(fresh.Address(), "unix:"))
		out, err := c.CombinedOutput()
		t.Logf("%s: %v: %s", words[0], err, out)
		return err
	}

	one, auth := configured("one", strings.Replace(first.Key, "object=log", "object=one", 1)), r.path("officers-tpm.toml")
	for path, words := range map[string]string{"": "tpm.auth: name a file", "relative": "absolute path"} {
		if _, why := r.run(64, "init", "--config", one, "--plan", planned("one", path)); !strings.Contains(why, words) {
			t.Errorf("tpm.auth %q: %s", path, why)
		}
	}
	r.run(0, "init", "--config", one, "--plan", planned("one", auth), "--dry-run")
	if _, err := os.Lstat(auth); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("a dry run made the authorisation: %v", err)
	}
	if brought != "" {
		if err := os.WriteFile(auth, []byte(brought), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	out, errs := r.run(0, "init", "--config", one, "--plan", planned("one", auth))
	text, err := os.ReadFile(auth)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(auth); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the officers' file: %v (%v)", info.Mode(), err)
	}
	var owner, lockout string
	if _, err := fmt.Sscanf(string(text[bytes.Index(text, []byte("owner")):]), "owner = %q\nlockout = %q\n", &owner, &lockout); err != nil || len(owner) < 26 || len(lockout) < 26 || owner == lockout {
		t.Fatalf("the officers' file: %v", err)
	}
	for _, secret := range []string{owner, lockout} {
		if strings.Contains(out+errs, secret) {
			t.Error("init prints an authorisation")
		}
	}
	if !strings.Contains(out, "owner officers, lockout officers, clear closed, endorsement open, platform open") {
		t.Errorf("init says %s", out)
	}
	if tool("tpm2_clear", lockout) == nil || tool("tpm2_evictcontrol", "-C", "o", "-c", "0x81010B01") == nil || tool("tpm2_nvundefine", "-C", "o", "0x01800B01") == nil {
		t.Error("the TPM is open")
	}

	// An init that stopped after it closed the TPM: the next one goes on with the file that the first one made.
	sealer, err := os.ReadFile(r.path("sealer.json"))
	if err == nil {
		err = os.WriteFile(r.path("sealer.json"), bytes.Replace(sealer, []byte(`"logs":["bulla.example/one"]`), []byte(`"logs":[]`), 1), 0o600)
	}
	if err == nil {
		err = os.Remove(r.path("one.db"))
	}
	if err != nil {
		t.Fatal(err)
	}
	one = configured("one", strings.Replace(first.Key, "object=log", "object=again", 1))
	if again, _ := r.run(0, "init", "--config", one, "--plan", planned("one", auth)); !strings.Contains(again, "owner officers, lockout officers") {
		t.Errorf("again it says %s", again)
	}
	if now, err := os.ReadFile(auth); err != nil || !bytes.Equal(now, text) {
		t.Errorf("the file was changed: %v", err)
	}

	// The daemon needs none of it, and the genesis has what was closed.
	if err := os.Rename(auth, auth+".away"); err != nil {
		t.Fatal(err)
	}
	r.config.Logs[0].Interop = ""
	daemon := r.serve()
	w := browse(t, r.dir)
	w.requireSeal(t)
	var genesis struct {
		Body struct {
			TPM struct{ Protection attest.Protection }
		}
	}
	w.getJSON(t, "/v1/entries/0", &genesis)
	want := attest.Protection{Clear: "closed", Endorsement: "open", Lockout: "officers", Owner: "officers", Platform: "open"}
	if got := genesis.Body.TPM.Protection; got != want {
		t.Errorf("the genesis has %+v", got)
	}
	if code := daemon.stop(); code != 0 {
		t.Errorf("exit code %d:\n%s", code, daemon.stderr)
	}

	// A further key in the TPM takes the officers.
	two := configured("two", "tpm:handle=0x81020001")
	if _, why := r.run(64, "init", "--config", two, "--plan", planned("two", "")); !strings.Contains(why, "tpm.auth in the plan") {
		t.Errorf("without the authorisation: %s", why)
	}
	if err := os.WriteFile(auth, bytes.Replace(text, []byte(owner), []byte("wrong"), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, why := r.run(64, "init", "--config", two, "--plan", planned("two", auth)); !strings.Contains(why, "refused the authorisation of the owner") || strings.Contains(why, "\"wrong\"") {
		t.Errorf("with a wrong authorisation: %s", why)
	}
	if err := os.WriteFile(auth, text, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(auth, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, why := r.run(64, "init", "--config", two, "--plan", planned("two", auth)); !strings.Contains(why, "chmod 0600") {
		t.Errorf("with a file that others can read: %s", why)
	}
	if out, _ := r.run(0, "init", "--config", two, "--plan", planned("two", auth+".away")); !strings.Contains(out, "owner officers") {
		t.Errorf("with the authorisation: %s", out)
	}
}
