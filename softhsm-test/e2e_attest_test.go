package softhsmtest_test

import (
	"bytes"
	"crypto"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	pb "github.com/google/go-tpm-tools/proto/attest"
	"github.com/google/go-tpm-tools/server"
	"google.golang.org/protobuf/proto"

	"bulla/api"
	"bulla/attest"
	"bulla/record"
	"bulla/verify"
)

// auditor runs bulla against one appliance, in a directory of his own.
type auditor struct {
	t   *testing.T
	dir string
	env string
}

func newAuditor(t *testing.T, r *rig) *auditor {
	t.Helper()
	return &auditor{t: t, dir: t.TempDir(), env: "BULLA_SOCKET=" + r.path("sign.sock")}
}

func (a *auditor) path(name string) string { return filepath.Join(a.dir, name) }

// run runs a command and returns what it prints, both ways, and its exit code.
func (a *auditor) run(args ...string) (out, said string, code int) {
	a.t.Helper()
	cmd := exec.CommandContext(a.t.Context(), program(a.t, "bulla"), args...)
	cmd.Dir, cmd.Env = a.dir, append(os.Environ(), a.env)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		a.t.Fatal(err)
	}
	return stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()
}

// require runs a command that must end with the code, and say the words.
func (a *auditor) require(code int, words string, args ...string) string {
	a.t.Helper()
	out, said, got := a.run(args...)
	if got != code || !strings.Contains(out+said, words) {
		a.t.Errorf("bulla %s: exit code %d, want %d and %q:\n%s%s", strings.Join(args, " "), got, code, words, out, said)
	}
	return out
}

func (a *auditor) write(name string, b []byte) string {
	a.t.Helper()
	if err := os.WriteFile(a.path(name), b, 0o600); err != nil {
		a.t.Fatal(err)
	}
	return name
}

func (a *auditor) read(name string) []byte {
	a.t.Helper()
	b, err := os.ReadFile(a.path(name))
	if err != nil {
		a.t.Fatal(err)
	}
	return b
}

// TestAuditorsFirstDay is docs/operations.md: from the makers' certificates to a TPM that has proved itself, and a log that verifies with it.
func TestAuditorsFirstDay(t *testing.T) {
	t.Parallel()
	r, other := newRig(t), newRig(t)
	daemon, stranger := r.serve(), other.serve()
	a, b := newAuditor(t, r), newAuditor(t, other)
	roots, foreign := r.path("tpm/roots.pem"), other.path("tpm/roots.pem")
	a.require(0, "", "export", "--out", "evidence")
	b.require(0, "", "export", "--out", "evidence")

	// Offline: nobody is asked to make a challenge, and a TPM of another maker gets none.
	offline := &auditor{t: t, dir: a.dir, env: "BULLA_SOCKET=/nonexistent"}
	offline.require(64, "say who certifies TPMs", "attest", "challenge-new", "evidence")
	offline.require(1, "not certified by those that you trust", "attest", "challenge-new", "evidence", "--ek-roots", foreign)
	offline.require(0, "next: bulla attest activate", "attest", "challenge-new", "evidence", "--ek-roots", roots, "--out", "challenge.json")
	offline.require(64, "challenge.json exists", "attest", "challenge-new", "evidence", "--ek-roots", roots, "--out", "challenge.json")
	b.require(0, "", "attest", "challenge-new", "--ek-roots", foreign, "--out", "foreign.json")

	// The appliance opens it; not one for another machine's keys, and not another machine's credential under its own names.
	a.require(0, "recorded as entry", "attest", "activate", "challenge.json", "--out", "answer.json")
	a.require(69, "the challenge is for the attestation key", "attest", "activate", b.path("foreign.json"))
	var mine, theirs attest.CredentialChallenge
	for _, c := range []struct {
		text []byte
		into *attest.CredentialChallenge
	}{{a.read("challenge.json"), &mine}, {b.read("foreign.json"), &theirs}} {
		if err := json.Unmarshal(c.text, c.into); err != nil {
			t.Fatal(err)
		}
	}
	mixed := mine
	mixed.Credential = theirs.Credential
	text, err := mixed.Encode()
	if err != nil {
		t.Fatal(err)
	}
	a.require(69, "did not open the credential", "attest", "activate", a.write("mixed.json", text))

	// The auditor judges the answer, offline again.
	said := offline.require(0, "verified: the TPM", "attest", "challenge-check", "challenge.json", "answer.json", "evidence", "--ek-roots", roots)
	var answer attest.Activation
	if err := json.Unmarshal(a.read("answer.json"), &answer); err != nil {
		t.Fatal(err)
	}
	answer.Secret[7] ^= 1
	if text, err = answer.Encode(); err != nil {
		t.Fatal(err)
	}
	offline.require(1, "the secret is not the one in the credential", "attest", "challenge-check", "challenge.json", a.write("altered.json", text), "evidence", "--ek-roots", roots)
	answer.Secret = nil
	if text, err = answer.Encode(); err != nil {
		t.Fatal(err)
	}
	offline.require(1, "did not open the credential", "attest", "challenge-check", "challenge.json", a.write("empty.json", text), "evidence", "--ek-roots", roots)
	offline.require(0, "", "attest", "challenge-new", "evidence", "--ek-roots", roots, "--out", "second.json")
	offline.require(1, "to another challenge", "attest", "challenge-check", "second.json", "answer.json", "evidence", "--ek-roots", roots)
	b.require(1, "not the one that the challenge was made for", "attest", "challenge-check", a.path("challenge.json"), a.path("answer.json"), "--ek-roots", foreign)

	// With what he trusts written down, the log verifies, and says that its TPM proved itself; twice it would not.
	a.require(1, "the appliance's TPM, by the authorities in", "policy", "init", "--ek-roots", foreign, "--out", "policy")
	a.require(0, "", "policy", "init", "--ek-roots", roots, "--out", "policy")
	_, line, _ := strings.Cut(said, "\n")
	a.write("policy", append(a.read("policy"), line...)) // the ak line that challenge-check printed
	a.require(0, "", "seal", "now")
	a.require(0, "", "export", "--out", "later")
	out := a.require(0, "VERIFIED", "verify", "later", "--policy", "policy")
	for _, want := range []string{"an authority of the policy certifies the endorsement key", "the TPM opened credentials in entries ["} {
		if !strings.Contains(out, want) {
			t.Errorf("the report does not say %q:\n%s", want, out)
		}
	}
	var denied []bool
	for _, body := range browse(t, r.dir).entriesOf(t, record.KindAccess) {
		x, err := record.ParseAccess(body)
		if err != nil {
			t.Fatal(err)
		}
		if x.Action == record.AccessActivate {
			denied = append(denied, x.Denied)
		}
	}
	if !slices.Equal(denied, []bool{false, true, true}) {
		t.Errorf("of the activations these are recorded as refused: %v", denied)
	}
	b.require(0, "", "policy", "init", "--ek-roots", foreign, "--out", "policy")
	mixedPolicy := append(bytes.Clone(a.read("policy")), "ek-root "+lineOf(b.read("policy"), "ek-root")+"\n"...)
	a.require(0, "VERIFIED", "verify", "later", "--policy", a.write("two", mixedPolicy))
	swapped := bytes.ReplaceAll(a.read("policy"), []byte(lineOf(a.read("policy"), "ek-root")), []byte(lineOf(b.read("policy"), "ek-root")))
	a.require(1, "enrolment.endorsement", "verify", "later", "--policy", a.write("swapped", swapped))

	for _, c := range []*child{daemon, stranger} {
		if code := c.stop(); code != 0 {
			t.Errorf("exit code %d:\n%s", code, c.stderr)
		}
	}
}

// lineOf is what follows a word at the beginning of a line.
func lineOf(text []byte, word string) string {
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, word+" "); ok {
			return strings.TrimSpace(rest)
		}
	}
	return ""
}

// TestLiveChallenge asks for attestations now, with right and wrong pins, until it is too often.
func TestLiveChallenge(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	daemon := r.serve()
	a := newAuditor(t, r)
	w := browse(t, r.dir)
	policy := r.path("auditor.policy")
	genesis := lineOf(readFile(t, policy), "genesis")

	const nonce = "00112233445566778899aabbccddeeff"
	var first struct {
		Nonce, Head string
		Exe, Config string
		Entry, Seal uint64
		Counter     uint64
		Verdict     verify.Verdict
		Receipt     json.RawMessage
	}
	out := a.require(0, "", "challenge", "--nonce", nonce, "--policy", policy, "--json")
	if err := json.Unmarshal([]byte(out), &first); err != nil || first.Nonce != nonce || first.Verdict != verify.OutcomeVerified || first.Counter == 0 {
		t.Fatalf("%s: %v", out, err)
	}
	if exe := fmt.Sprintf("%x", sha256.Sum256(readFile(t, program(t, "bullad")))); first.Exe != exe {
		t.Errorf("the daemon says that its executable is %s, it is %s", first.Exe, exe)
	}
	if config := fmt.Sprintf("%x", sha256.Sum256(readFile(t, r.path("serve.toml")))); first.Config != config {
		t.Errorf("the daemon says that its configuration is %s, it is %s", first.Config, config)
	}
	statement := a.require(0, "", "seal", "show", fmt.Sprint(first.Entry))
	raw, err := hex.DecodeString(nonce)
	if err != nil {
		t.Fatal(err)
	}
	if want := base64.StdEncoding.EncodeToString(raw); !strings.Contains(statement, `"nonce":"`+want+`"`) || !strings.Contains(statement, `"reason":"challenge"`) {
		t.Errorf("the seal's statement is %s", statement)
	}
	a.require(0, "verified: the TPM attests the head", "challenge", "--genesis", genesis, "--counter", fmt.Sprint(first.Counter))
	ak := akName(t, w)
	a.require(0, "verified", "challenge", "--policy", a.write("ak", fmt.Appendf(nil, "%sak %s\n", keyLines(t, policy), ak)))

	a.require(2, "nothing pins", "challenge")
	a.require(2, "nothing pins", "challenge", "--policy", a.write("keys", keyLines(t, policy)))
	a.require(1, "--genesis says 0000", "challenge", "--genesis", strings.Repeat("0", 64))
	a.require(1, "the policy says 1111", "challenge", "--policy", a.write("genesis", fmt.Appendf(keyLines(t, policy), "genesis %s\n", strings.Repeat("1", 64))))
	a.require(1, "not one of the policy's ak lines", "challenge", "--policy", a.write("other", fmt.Appendf(keyLines(t, policy), "ak 000b%s\n", strings.Repeat("2", 64))))
	a.require(1, "challenge.counter", "challenge", "--genesis", genesis, "--counter", fmt.Sprint(first.Counter+1))
	a.require(64, "8 to 64 bytes in hex", "challenge", "--nonce", "0011", "--policy", policy)

	// Too often is answered with busy, and when to come back.
	requireSoon(t, func() error {
		_, said, code := a.run("challenge", "--policy", policy)
		if code == 69 && strings.Contains(said, "refused (busy): too many seals were asked for; try again in 1 s") {
			return nil
		}
		return fmt.Errorf("exit code %d: %s", code, said)
	})
	requireSoon(t, func() error {
		req, err := http.NewRequestWithContext(t.Context(), "POST", "http://bulla/v1/challenge", strings.NewReader(`{"nonce":"AAAAAAAAAAA="}`))
		if err != nil {
			return err
		}
		req.Header.Set("Content-Type", "application/json")
		res, err := w.client.Do(req)
		if err != nil {
			return err
		}
		if err := res.Body.Close(); err != nil {
			return err
		}
		if res.StatusCode != http.StatusTooManyRequests || res.Header.Get("Retry-After") == "" {
			return fmt.Errorf("%s, Retry-After %q", res.Status, res.Header.Get("Retry-After"))
		}
		return nil
	})
	w.requireVerified(t, readPolicy(t, r.dir))
	if code := daemon.stop(); code != 0 {
		t.Errorf("exit code %d:\n%s", code, daemon.stderr)
	}
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// keyLines are the lines of a policy that name the log's keys.
func keyLines(t *testing.T, policy string) (out []byte) {
	t.Helper()
	for line := range strings.Lines(string(readFile(t, policy))) {
		if strings.HasPrefix(line, "log ") {
			out = append(out, line...)
		}
	}
	return out
}

// akName is the Name of the attestation key in the served log's genesis.
func akName(t *testing.T, w *web) string {
	t.Helper()
	var p api.Page
	w.getJSON(t, "/v1/entries?limit=1", &p)
	var entry struct {
		Body struct {
			TPM attest.Enrolment `json:"tpm"`
		} `json:"body"`
	}
	if err := json.Unmarshal(p.Entries[0], &entry); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(entry.Body.TPM.AKName)
}

// TestBootEventLog boots a TPM as a real machine's firmware did, by its event log, and measures the daemon as a kernel does. The lists are
// recorded once, and lead to what the TPM quotes; another event log does not.
func TestBootEventLog(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	sample := readFile(t, "../testdata/eventlog/rhel8-uefi.bin")
	r.measure(sample)
	exe := sha256.Sum256(readFile(t, program(t, "bullad")))
	list, extended := imaList("/usr/bin/bullad", exe[:])
	r.extend(fmt.Sprintf("10:sha256=%x", extended))
	for key, content := range map[string][]byte{"event_log": sample, "ima_list": list} {
		r.config.TPM[key] = r.path(key)
		if err := os.WriteFile(r.path(key), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	policy := readPolicy(t, r.dir)
	for start := 1; start <= 2; start++ { // in one boot of the machine
		daemon := r.serve()
		w := browse(t, r.dir)
		all := w.requireBoots(t, start)
		if last := all[start-1]; last.Boot == nil || !last.Boot.Replayed || last.Boot.EventLog == nil || last.Boot.IMA == nil || last.Message != "" {
			t.Errorf("start %d: %+v", start, last)
		}
		if n := len(w.entriesOf(t, record.KindBlob)); n != 3 { // 34,034 bytes of the event log, and the kernel's list; once
			t.Errorf("start %d: %d parts", start, n)
		}
		w.requireSeal(t)
		rep := w.requireVerified(t, policy)
		for _, shown := range []string{"the boot event log leads to", "the kernel had measured the executable that the daemon claims"} {
			if all := strings.Join(rep.Remarks, "\n"); !strings.Contains(all, fmt.Sprintf("boot: in %d of %d recorded starts %s", start, start, shown)) {
				t.Errorf("start %d: %s", start, all)
			}
		}
		if code := daemon.stop(); code != 0 {
			t.Errorf("exit code %d:\n%s", code, daemon.stderr)
		}
	}

	// Another boot loader than the log says: the digest of an event in it is changed.
	changed := bytes.Clone(sample)
	changed[bytes.Index(changed, digestsOf(t, sample)[0].digest)] ^= 1
	if err := os.WriteFile(r.path("event_log"), changed, 0o600); err != nil {
		t.Fatal(err)
	}
	daemon := r.serve()
	w := browse(t, r.dir)
	last := w.requireBoots(t, 3)[2]
	if last.Boot.Replayed || !strings.Contains(last.Message, "event log") {
		t.Errorf("%+v", last)
	}
	w.requireSeal(t)
	rep := w.requireVerified(t, policy)
	if all := strings.Join(rep.Remarks, "\n"); !strings.Contains(all, "boot: in 2 of 3 recorded starts") || !strings.Contains(all, "does not lead to the quoted values of PCRs [0") {
		t.Error(all)
	}
	// Both event logs are in the log, as they were, for other tools.
	a := newAuditor(t, r)
	out := a.require(0, "it leads to the quoted PCRs", "attest", "boots")
	sum := fmt.Sprintf("%x", sha256.Sum256(sample))
	if strings.Count(out, sum) != 2 || strings.Count(out, "\n") != 7 {
		t.Error(out)
	}
	a.require(0, "", "export", "--out", "evidence")
	a.require(0, "", "attest", "boots", "evidence", "--extract", sum, "--out", "sample")
	if !bytes.Equal(a.read("sample"), sample) {
		t.Error("the extracted event log is another")
	}
	a.requireAttestations(sample)
	a.require(64, "sample exists", "attest", "boots", "--extract", sum, "--out", "sample")
	a.require(2, "does not hold all of", "attest", "boots", "--extract", strings.Repeat("0", 64), "--out", "none")
	a.require(64, "go together", "attest", "boots", "--extract", sum)
	if out, err := exec.CommandContext(t.Context(), "tpm2_eventlog", a.path("sample")).CombinedOutput(); err != nil || !bytes.Contains(out, []byte("24af52a4f429b71a3184a6d64cddad17e54ea030e2aa6576bf3a5a3d8bd3328f")) {
		t.Errorf("tpm2_eventlog: %v", err)
	}
	if code := daemon.stop(); code != 0 {
		t.Errorf("exit code %d:\n%s", code, daemon.stderr)
	}
}

// requireAttestations has go-tpm-tools judge the attest.pb of every exported seal; with the event log too, where the seal is of a start.
func (a *auditor) requireAttestations(eventLog []byte) {
	a.t.Helper()
	seals, err := filepath.Glob(a.path("evidence/seals/*"))
	if err != nil || len(seals) < 5 {
		a.t.Fatalf("%d seals, %v", len(seals), err)
	}
	booted := 0
	for _, dir := range seals {
		read := func(name string) []byte { return readFile(a.t, filepath.Join(dir, name)) }
		var x pb.Attestation
		if err := proto.Unmarshal(read("attest.pb"), &x); err != nil {
			a.t.Fatal(err)
		}
		block, _ := pem.Decode(read("ak.pem"))
		ak, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			a.t.Fatal(err)
		}
		digest := sha256.Sum256(read("statement.json"))
		opts := server.VerifyOpts{Nonce: digest[:], TrustedAKs: []crypto.PublicKey{ak}, Loader: server.UnsupportedLoader}
		if _, err := server.VerifyAttestation(&x, opts); err != nil {
			a.t.Errorf("%s: %v", dir, err)
		}
		if !bytes.Contains(read("statement.json"), []byte(`"reason":"start"`)) || len(x.GetQuotes()[0].GetPcrs().GetPcrs()) < 11 {
			continue // made before there was an event log
		}
		booted++
		x.EventLog = eventLog
		state, err := server.VerifyAttestation(&x, opts)
		if err != nil || !state.GetSecureBoot().GetEnabled() {
			a.t.Errorf("%s, with the event log: %v", dir, err)
		}
		opts.Nonce = make([]byte, 32)
		if _, err := server.VerifyAttestation(&x, opts); err == nil {
			a.t.Errorf("%s is accepted for another statement", dir)
		}
	}
	if booted < 2 {
		a.t.Errorf("%d seals quote what was booted", booted)
	}
}

// measured is an event of a boot event log.
type measured struct {
	pcr    uint32
	digest []byte
}

// digestsOf reads what was extended, by its own understanding of the format: the digests of the sample are SHA-1, SHA-256 and SHA-384.
func digestsOf(t *testing.T, log []byte) (out []measured) {
	t.Helper()
	u32 := binary.LittleEndian.Uint32
	log = log[32+u32(log[28:]):]
	for len(log) > 0 {
		const digests = 2 + 20 + 2 + 32 + 2 + 48
		if u32(log[8:]) != 3 || binary.LittleEndian.Uint16(log[12+22:]) != 11 {
			t.Fatalf("an event of %d digests", u32(log[8:]))
		}
		if u32(log[4:]) != 3 {
			out = append(out, measured{u32(log), log[12+24 : 12+24+32]})
		}
		log = log[12+digests+4+u32(log[12+digests:]):]
	}
	return out
}

// measure extends the rig's TPM as firmware did.
func (r *rig) measure(log []byte) {
	r.t.Helper()
	var args []string
	for _, m := range digestsOf(r.t, log) {
		args = append(args, fmt.Sprintf("%d:sha256=%x", m.pcr, m.digest))
	}
	if len(args) < 20 {
		r.t.Fatalf("%d events", len(args))
	}
	r.extend(args...)
}

// extend extends PCRs of the rig's TPM, each given as N:sha256=HEX.
func (r *rig) extend(args ...string) {
	r.t.Helper()
	cmd := exec.CommandContext(r.t.Context(), "tpm2_pcrextend", args...)
	cmd.Env = append(os.Environ(), "TPM2TOOLS_TCTI=swtpm:path="+r.path("tpm/tpm.sock"))
	if out, err := cmd.CombinedOutput(); err != nil {
		r.t.Fatalf("tpm2_pcrextend: %v: %s", err, out)
	}
}

// imaList is a kernel's list of measurements with one executable in it (template ima-ng), and what the kernel extended PCR 10 with.
func imaList(path string, digest []byte) (list []byte, extended [32]byte) {
	u32 := func(n int) []byte { return binary.LittleEndian.AppendUint32(nil, uint32(n)) }
	field := append([]byte("sha256:\x00"), digest...)
	data := bytes.Join([][]byte{u32(len(field)), field, u32(len(path) + 1), []byte(path), {0}}, nil)
	sum := sha1.Sum(data)
	return bytes.Join([][]byte{u32(10), sum[:], u32(6), []byte("ima-ng"), u32(len(data)), data}, nil), sha256.Sum256(data)
}

// entriesOf are the bodies of the served log's entries of a kind.
func (w *web) entriesOf(t *testing.T, kind record.Kind) (bodies []json.RawMessage) {
	t.Helper()
	var p api.Page
	w.getJSON(t, "/v1/entries?limit=1000&kind="+string(kind), &p)
	for _, b := range p.Entries {
		e, err := record.ParseEntry(b)
		if err != nil {
			t.Fatal(err)
		}
		bodies = append(bodies, e.Body)
	}
	return bodies
}

// requireBoots waits until so many starts are recorded with what was measured.
func (w *web) requireBoots(t *testing.T, n int) (out []record.System) {
	t.Helper()
	requireSoon(t, func() error {
		out = nil
		for _, body := range w.entriesOf(t, record.KindSystem) {
			s, err := record.ParseSystem(body)
			if err != nil {
				return err
			}
			if s.Event == record.SystemBoot {
				out = append(out, *s)
			}
		}
		if len(out) != n {
			return fmt.Errorf("%d starts are recorded, not %d", len(out), n)
		}
		return nil
	})
	return out
}
