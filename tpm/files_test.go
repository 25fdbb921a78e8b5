package tpm_test

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	pb "github.com/google/go-tpm-tools/proto/attest"
	"github.com/google/go-tpm-tools/server"
	"google.golang.org/protobuf/proto"

	"bulla/attest"
	"bulla/record"
	softhsmtest "bulla/softhsm-test"
	"bulla/tpm"
)

var quoted = []int{0, 7, sealPCR}

// seal makes one seal as the ledger's sealer does.
func seal(t testing.TB, m attest.TPM, e *attest.Enrolment, number uint64, previous record.Hash) *attest.Seal {
	t.Helper()
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	st := attest.Statement{
		Logs: []attest.Head{{Hash: record.Hash{7}, Log: "example.com/é", Size: 1<<53 - 1}}, Number: number, Previous: previous, Reason: "demand", V: 1,
	}
	st.Counter.Name, st.PCR.Index = e.Counter.Name, e.PCR
	heads, err := attest.HeadsHash(st.Logs)
	must(err)
	s := new(attest.Seal)
	s.Counter, err = m.CertifyCounter(ctx, heads)
	must(err)
	st.Counter.Attest = sha256.Sum256(s.Counter.Attest)
	st.PCR.Before, err = m.PCR(ctx, e.PCR)
	must(err)
	s.Statement, err = st.Encode()
	must(err)
	digest := sha256.Sum256(s.Statement)
	must(m.Extend(ctx, e.PCR, digest))
	q, err := m.Quote(ctx, quoted, digest)
	must(err)
	s.Quote, s.PCRs = q.Signed, q.PCRs
	return s
}

// The files of a seal are accepted by tools that share no code with us, by the commands that an export names, and refused when a
// byte of any of them changes.
func TestFilesWithStandardTools(t *testing.T) {
	t.Parallel()
	d := device(t)
	x := open(t, d, 0)
	e := enrol(t, d, x)
	m, err := x.Attach(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	s := seal(t, m, e, 1, record.Hash{})
	files, err := s.Files(e)
	if err != nil {
		t.Fatal(err)
	}
	run := func(t *testing.T, line string, files map[string][]byte) error {
		t.Helper()
		dir := t.TempDir()
		for name, b := range files {
			if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		cmd := exec.CommandContext(t.Context(), "sh", "-ec", line)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Logf("%s: %v: %s", line, err, out)
		}
		return err
	}
	commands := s.Commands()
	for _, c := range commands {
		if err := run(t, c.Line, files); err != nil {
			t.Errorf("refused: %s", c.Shows)
		}
	}
	refusedBy := map[string][]int{ // file: commands by their place in Commands
		"statement.json": {0, 4, 5}, "quote.attest": {0, 1}, "quote.sig": {0}, "quote.der": {1}, "quote.pcrs": {0, 5},
		"counter.attest": {2, 3}, "counter.der": {2},
	}
	for _, name := range slices.Sorted(maps.Keys(refusedBy)) {
		changed := maps.Clone(files)
		changed[name] = bytes.Replace(files[name], []byte("9007199254740991"), []byte("9007199254740990"), 1)
		if name != "statement.json" {
			changed[name][len(changed[name])-1] ^= 1
		}
		for _, i := range refusedBy[name] {
			if err := run(t, commands[i].Line, changed); err == nil {
				t.Errorf("%s changed, and yet: %s", name, commands[i].Shows)
			}
		}
	}

	t.Run("go-tpm-tools", func(t *testing.T) {
		t.Parallel()
		ak, err := attest.ParseAK(e.AK)
		if err != nil {
			t.Fatal(err)
		}
		var a pb.Attestation
		if err := proto.Unmarshal(files["attest.pb"], &a); err != nil {
			t.Fatal(err)
		}
		digest := sha256.Sum256(s.Statement)
		opts := server.VerifyOpts{Nonce: digest[:], TrustedAKs: []crypto.PublicKey{ak.Public}, Loader: server.UnsupportedLoader}
		if _, err := server.VerifyAttestation(&a, opts); err != nil {
			t.Errorf("refused: %v", err)
		}
		opts.Nonce = make([]byte, 32)
		if _, err := server.VerifyAttestation(&a, opts); err == nil {
			t.Error("accepted for another statement")
		}
	})
	t.Run("openssl verify", func(t *testing.T) {
		t.Parallel()
		files, err := e.Files()
		if err != nil {
			t.Fatal(err)
		}
		if files["roots.pem"], err = os.ReadFile(d.Roots()); err != nil {
			t.Fatal(err)
		}
		if err := run(t, "openssl verify -CAfile roots.pem -untrusted ek-chain.pem ek.pem", files); err != nil {
			t.Error("the endorsement key's certificate is refused")
		}
	})
}

// An auditor's credential is opened by the TPM that holds both keys, whichever endorsement key it was made for, persistent or made anew
// from its template.
func TestActivateCredential(t *testing.T) {
	t.Parallel()
	d := device(t)
	x := open(t, d, 0)
	e := enrol(t, d, x)
	m, err := x.Attach(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	other := device(t)
	foreign, err := tpm.Endorsed(open(t, other, 0), e, other.Roots())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		device *softhsmtest.TPM
		e      *attest.Enrolment
		good   bool
	}{{d, e, true}, {other, e, false}, {other, foreign[0], false}, {d, &attest.Enrolment{}, false}} {
		text, err := os.ReadFile(c.device.Roots())
		if err != nil {
			t.Fatal(err)
		}
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(text) {
			t.Fatal("no roots")
		}
		if err := c.e.CheckEndorsement(roots); (err == nil) != c.good {
			t.Errorf("endorsement: %v, want good: %t", err, c.good)
		}
	}
	for _, evicted := range []bool{false, true} {
		if evicted {
			if err := tpm.EvictEndorsements(x); err != nil {
				t.Fatal(err)
			}
		}
		all, err := tpm.Endorsed(x, e, d.Roots())
		if err != nil {
			t.Fatal(err)
		}
		if len(all) != 2 { // RSA and ECC P-384
			t.Fatalf("%d endorsement keys", len(all))
		}
		for i, e := range all {
			c, want, err := attest.MakeCredential(e)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := m.ActivateCredential(t.Context(), e, *c); err != nil || string(got) != string(want[:]) {
				t.Errorf("evicted %t, key %d: got %x (%v), want %x", evicted, i, got, err, want)
			}
			if c, _, err = attest.MakeCredential(foreign[i]); err != nil {
				t.Fatal(err)
			}
			if _, err := m.ActivateCredential(t.Context(), e, *c); !errors.Is(err, attest.ErrNotOpened) {
				t.Errorf("a credential for another TPM's endorsement key: %v", err)
			}
			if _, err := m.ActivateCredential(t.Context(), foreign[i], *c); !errors.Is(err, tpm.ErrOtherMachine) {
				t.Errorf("another TPM's endorsement key: %v", err)
			}
		}
	}
}
