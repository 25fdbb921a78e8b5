package tpm_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"bulla/attest"
	softhsmtest "bulla/softhsm-test"
	"bulla/tpm"
)

const sealPCR = 13

// device starts a throwaway TPM for the time of the test.
func device(t testing.TB) *softhsmtest.TPM {
	t.Helper()
	dir, err := os.MkdirTemp("", "tpm")
	if err != nil {
		t.Fatal(err)
	}
	d, err := softhsmtest.CreateTPM(t.Context(), filepath.Join(dir, "t"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(d.Kill(), os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
	})
	return d
}

func open(t testing.TB, d *softhsmtest.TPM, timeout time.Duration) *tpm.TPM {
	t.Helper()
	x, err := tpm.Open(t.Context(), tpm.Config{Address: d.Address(), Timeout: timeout})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := x.Close(); err != nil {
			t.Error(err)
		}
	})
	return x
}

func enrol(t testing.TB, d *softhsmtest.TPM, x *tpm.TPM) *attest.Enrolment {
	t.Helper()
	roots, err := os.ReadFile(d.Roots())
	if err != nil {
		t.Fatal(err)
	}
	e, err := x.Enrol(t.Context(), tpm.EnrolConfig{Roots: roots, PCR: sealPCR})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestEnrolAndAttest(t *testing.T) {
	t.Parallel()
	d := device(t)
	x := open(t, d, 0)
	e := enrol(t, d, x)
	if len(e.EKCertificates) < 3 || e.Counter.Value == 0 || e.Manufacturer == "" || e.Firmware == "" {
		t.Errorf("enrolment %+v", e)
	}
	ctx := t.Context()
	roots, err := os.ReadFile(d.Roots())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := x.Enrol(ctx, tpm.EnrolConfig{Roots: roots, PCR: sealPCR}); !errors.Is(err, tpm.ErrExists) {
		t.Errorf("enrolled twice: %v", err)
	}
	for _, pcr := range []int{-1, 16, 17, 23, 24} {
		if _, err := x.Enrol(ctx, tpm.EnrolConfig{Roots: roots, PCR: pcr}); err == nil || errors.Is(err, tpm.ErrExists) {
			t.Errorf("seal PCR %d: %v", pcr, err)
		}
	}
	m, err := x.Attach(ctx, e)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Increment(ctx); err != nil {
		t.Fatal(err)
	}
	if v, err := m.Counter(ctx); err != nil || v != e.Counter.Value+1 {
		t.Errorf("counter %d (%v), want %d", v, err, e.Counter.Value+1)
	}
	a, err := m.CertifyCounter(ctx, sha256.Sum256([]byte("heads")))
	if err != nil {
		t.Fatal(err)
	}
	if c, err := attest.ParseCertify(a.Attest); err != nil || c.Counter != e.Counter.Value+1 || string(c.Name) != string(e.Counter.Name) {
		t.Errorf("certified %+v (%v)", c, err)
	}
	before, err := m.PCR(ctx, sealPCR)
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256([]byte("statement"))
	if err := m.Extend(ctx, sealPCR, digest); err != nil {
		t.Fatal(err)
	}
	q, err := m.Quote(ctx, []int{0, 7, sealPCR}, digest)
	if err != nil {
		t.Fatal(err)
	}
	if len(q.PCRs) != 3 || q.PCRs[2].Value != attest.ExtendPCR(before, digest) {
		t.Errorf("PCRs %v", q.PCRs)
	}
	if c, err := m.Clock(ctx); err != nil || c.Clock == 0 {
		t.Errorf("clock %+v (%v)", c, err)
	}
	other := *e
	other.AKName = append([]byte{}, e.AKName...)
	other.AKName[5] ^= 1
	if _, err := x.Attach(ctx, &other); !errors.Is(err, tpm.ErrOtherMachine) {
		t.Errorf("attached to another machine's enrolment: %v", err)
	}
}

func TestEnrolRefusesUnknownRoots(t *testing.T) {
	t.Parallel()
	d, other := device(t), device(t)
	x := open(t, d, 0)
	foreign, err := os.ReadFile(other.Roots())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := x.Enrol(t.Context(), tpm.EnrolConfig{Roots: foreign, PCR: sealPCR}); err == nil {
		t.Fatal("enrolled a TPM of unknown origin")
	}
	enrol(t, d, x) // the refusal left nothing behind
}

// A TPM may bring the authorities' certificates with it; then the roots are enough.
func TestEnrolWithTheTPMsChain(t *testing.T) {
	t.Parallel()
	d := device(t)
	x := open(t, d, 0)
	all, err := os.ReadFile(d.Roots())
	if err != nil {
		t.Fatal(err)
	}
	var root, chain []byte
	for block, rest := pem.Decode(all); block != nil; block, rest = pem.Decode(rest) {
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		if string(c.RawIssuer) == string(c.RawSubject) {
			root = append(root, pem.EncodeToMemory(block)...)
		} else {
			chain = append(chain, block.Bytes...)
		}
	}
	if _, err := x.Enrol(t.Context(), tpm.EnrolConfig{Roots: root, PCR: sealPCR}); err == nil {
		t.Fatal("enrolled without the chain")
	}
	if err := tpm.StoreChain(x, append(chain, make([]byte, 100)...)); err != nil {
		t.Fatal(err)
	}
	e, err := x.Enrol(t.Context(), tpm.EnrolConfig{Roots: root, PCR: sealPCR})
	if err != nil {
		t.Fatal(err)
	}
	if len(e.EKCertificates) != 3 {
		t.Errorf("%d certificates in the chain", len(e.EKCertificates))
	}
}

func TestKey(t *testing.T) {
	t.Parallel()
	d := device(t)
	x := open(t, d, 0)
	const uri = "tpm:handle=0x81020001"
	if _, err := x.Key(t.Context(), uri); !errors.Is(err, tpm.ErrNoKey) {
		t.Errorf("key before it was made: %v", err)
	}
	if _, err := x.GenerateKey(t.Context(), uri); err != nil {
		t.Fatal(err)
	}
	if _, err := x.GenerateKey(t.Context(), uri); !errors.Is(err, tpm.ErrExists) {
		t.Errorf("made over an existing key: %v", err)
	}
	k, err := x.Key(t.Context(), uri)
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256([]byte("message"))
	for range 5 {
		sig, err := k.Sign(nil, digest[:], crypto.SHA256)
		if err != nil {
			t.Fatal(err)
		}
		if !ecdsa.VerifyASN1(k.Public().(*ecdsa.PublicKey), digest[:], sig) {
			t.Fatal("a signature that does not verify got out")
		}
	}
	for _, c := range []struct {
		digest []byte
		hash   crypto.SignerOpts
	}{{digest[:31], crypto.SHA256}, {digest[:], crypto.SHA384}, {digest[:], nil}} {
		if _, err := k.Sign(nil, c.digest, c.hash); err == nil {
			t.Errorf("signed %d bytes as %v", len(c.digest), c.hash)
		}
	}
	for _, bad := range []string{"", "tpm:", "tpm:handle=1", "tpm:handle=0x80000000", "tpm:handle=0x81800000", "tpm:handle=0x81020001;x=1", "pkcs11:object=x"} {
		if _, err := x.Key(t.Context(), bad); err == nil || errors.Is(err, tpm.ErrNoKey) {
			t.Errorf("URI %q: %v", bad, err)
		}
	}
}

func TestSurvivesRestart(t *testing.T) {
	t.Parallel()
	d := device(t)
	x := open(t, d, 2*time.Second)
	e := enrol(t, d, x)
	m, err := x.Attach(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Counter(t.Context()); !errors.Is(err, tpm.ErrUnavailable) && !errors.Is(err, attest.ErrUnknown) {
		t.Errorf("while the TPM is off: %v", err)
	}
	if err := m.Increment(t.Context()); !errors.Is(err, tpm.ErrUnavailable) {
		t.Errorf("incrementing while the TPM is off: %v", err)
	}
	if err := d.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if v, err := m.Counter(t.Context()); err != nil || v != e.Counter.Value {
		t.Errorf("after its restart: %d, %v", v, err)
	}
}

func TestDeadline(t *testing.T) {
	t.Parallel()
	d := device(t)
	x := open(t, d, 300*time.Millisecond)
	m, err := x.Attach(t.Context(), enrol(t, d, x))
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Pause(); err != nil {
		t.Fatal(err)
	}
	if err := m.Increment(t.Context()); !errors.Is(err, attest.ErrUnknown) {
		t.Errorf("a TPM that hangs: %v", err)
	}
	if err := d.Resume(); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Clock(context.Background()); err != nil {
		t.Errorf("after it went on: %v", err)
	}
}

// A process that ended with objects loaded leaves a TPM full; the next one makes room.
func TestFlushesWhatWasLeaked(t *testing.T) {
	t.Parallel()
	d := device(t)
	for range 3 {
		x := open(t, d, 0)
		if err := tpm.Leak(x, 3); err != nil {
			t.Fatal(err)
		}
		if err := x.Close(); err != nil {
			t.Fatal(err)
		}
	}
	x := open(t, d, 0)
	enrol(t, d, x)
}

func BenchmarkSeal(b *testing.B) {
	d := device(b)
	x := open(b, d, 0)
	m, err := x.Attach(b.Context(), enrol(b, d, x))
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := m.CertifyCounter(b.Context(), [32]byte{}); err != nil {
			b.Fatal(err)
		}
		if err := m.Extend(b.Context(), sealPCR, [32]byte{}); err != nil {
			b.Fatal(err)
		}
		if _, err := m.Quote(b.Context(), []int{0, 7, sealPCR}, [32]byte{}); err != nil {
			b.Fatal(err)
		}
	}
}
