package tpm_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"bulla/attest"
	"bulla/record"
	softhsmtest "bulla/softhsm-test"
	"bulla/tpm"
)

const ccUnseal = 0x15E

var pinned = []int{0, 2, 7}

// approver is an approval key; that of an appliance is in an HSM.
func approver(t testing.TB, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func sealing(t testing.TB, d *softhsmtest.TPM, key crypto.Signer) tpm.SecretConfig {
	t.Helper()
	roots, err := os.ReadFile(d.Roots())
	if err != nil {
		t.Fatal(err)
	}
	return tpm.SecretConfig{Roots: roots, PCRs: pinned, SealPCR: sealPCR, Approver: key}
}

func sealSecret(t testing.TB, x *tpm.TPM, cfg tpm.SecretConfig, secret string) *tpm.Secret {
	t.Helper()
	s, err := x.Seal(t.Context(), cfg, []byte(secret))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func requireOpens(t testing.TB, x *tpm.TPM, s *tpm.Secret, want string) {
	t.Helper()
	if got, err := x.Unseal(t.Context(), s); err != nil || string(got) != want {
		t.Errorf("unsealed %q: %v", got, err)
	}
}

// requireRefused fails unless the TPM keeps the secret, for the reason given, and counts no failed authorisation.
func requireRefused(t testing.TB, x *tpm.TPM, s *tpm.Secret, why error, words string) {
	t.Helper()
	before, err := tpm.Lockouts(x)
	if err != nil {
		t.Fatal(err)
	}
	got, err := x.Unseal(t.Context(), s)
	if !errors.Is(err, why) || got != nil || !strings.Contains(err.Error(), words) {
		t.Errorf("unsealed %q: %v; want %v with %q", got, err, why, words)
	}
	after, err := tpm.Lockouts(x)
	if err != nil || after != before {
		t.Errorf("failed authorisations counted: %d, then %d (%v)", before, after, err)
	}
}

func requireEmpty(t testing.TB, x *tpm.TPM) {
	t.Helper()
	if n, err := tpm.Loaded(x); err != nil || n != 0 {
		t.Errorf("%d objects and sessions were left in the TPM (%v)", n, err)
	}
}

// The secret never crosses the bus in clear, at sealing or at unsealing: a recorder on the bus sees it when it is sealed in the plain way,
// and not in ours.
func TestSecretOnTheBus(t *testing.T) {
	t.Parallel()
	d := device(t)
	r := recorded(t, d)
	x := r.open(t)
	const plain, secret = "a PIN without care", "a PIN for the HSM"
	if err := tpm.SealPlainly(x, []byte(plain)); err != nil {
		t.Fatal(err)
	}
	s := sealSecret(t, x, sealing(t, d, approver(t, elliptic.P256())), secret)
	b, err := s.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(b, []byte(secret)) {
		t.Error("the file holds the secret in clear")
	}
	if s, err = tpm.ParseSecret(b); err != nil {
		t.Fatal(err)
	}
	requireOpens(t, x, s, secret)
	requireEmpty(t, x)
	r.close(t, x)
	if !r.saw(plain) {
		t.Error("the recorder sees nothing")
	}
	if r.saw(secret) {
		t.Error("the secret crossed the bus in clear")
	}
	y := r.open(t) // another process
	requireOpens(t, y, s, secret)
	r.close(t, y)
	if r.saw(secret) {
		t.Error("the secret crossed the bus in clear")
	}
}

// A machine's life: seals leave the secret alone, a changed PCR keeps it shut, an approval opens it, before the change or after.
func TestSecretThroughChanges(t *testing.T) {
	t.Parallel()
	d := device(t)
	x := open(t, d, 0)
	m, err := x.Attach(t.Context(), enrol(t, d, x))
	if err != nil {
		t.Fatal(err)
	}
	key := approver(t, elliptic.P256())
	cfg := sealing(t, d, key)
	const secret = "1234"
	first := sealSecret(t, x, cfg, secret)
	for i := range 20 { // of seals
		if err := m.Extend(t.Context(), sealPCR, [32]byte{byte(i)}); err != nil {
			t.Fatal(err)
		}
	}
	requireOpens(t, x, first, secret)

	// A planned change is approved before it comes.
	digest := sha256.Sum256([]byte("firmware"))
	expected, err := x.PCRs(t.Context(), pinned)
	if err != nil {
		t.Fatal(err)
	}
	booted := slices.Clone(expected)
	expected[2].Value = attest.ExtendPCR(expected[2].Value, digest)
	unplanned := *first
	unplanned.Approvals = slices.Clone(first.Approvals)
	if added, err := first.Approve(key, expected); err != nil || !added {
		t.Fatalf("approved: %v, %v", added, err)
	}
	if added, err := first.Approve(key, expected); err != nil || added {
		t.Errorf("approved twice: %v, %v", added, err)
	}
	requireOpens(t, x, first, secret) // as it was is still approved
	if err := m.Extend(t.Context(), 7, digest); err != nil {
		t.Fatal(err)
	}
	requireOpens(t, x, first, secret)
	for range 5 {
		requireRefused(t, x, &unplanned, tpm.ErrNotApproved, "PCR 7 changed")
	}
	requireEmpty(t, x)

	// Sealing again ends approvals: the TPM itself refuses one that was good for the first.
	other := sha256.Sum256([]byte("other"))
	again := sealSecret(t, x, cfg, secret)
	expected[2].Value = attest.ExtendPCR(expected[2].Value, other)
	if _, err := first.Approve(key, expected); err != nil {
		t.Fatal(err)
	}
	again.Approvals = append(again.Approvals, first.Approvals[len(first.Approvals)-1])
	if err := m.Extend(t.Context(), 7, other); err != nil {
		t.Fatal(err)
	}
	requireOpens(t, x, first, secret) // the old file with its approvals stays good: docs/threat-model.md says so
	requireRefused(t, x, again, tpm.ErrNotApproved, "earlier sealing")
	again.Approvals = again.Approvals[:1]
	if _, err := again.Approve(key, expected); err != nil {
		t.Fatal(err)
	}
	requireOpens(t, x, again, secret)
	requireEmpty(t, x)

	// After a reset of the machine PCRs are as they were when it was sealed first.
	if err := d.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := d.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if now, err := x.PCRs(t.Context(), pinned); err != nil || !slices.Equal(now, booted) {
		t.Errorf("PCRs after a reset: %v (%v)", now, err)
	}
	requireOpens(t, x, first, secret)
	requireRefused(t, x, again, tpm.ErrNotApproved, "PCR 7 changed")

	// Approvals are bounded, by the key and of the PCRs that it was sealed for.
	for i := len(first.Approvals); i <= 16; i++ {
		expected[0].Value[0]++
		if _, err := first.Approve(key, expected); (err == nil) != (i < 16) {
			t.Errorf("approval %d: %v", i+1, err)
		}
	}
	expected[0].Value[0]++
	if _, err := again.Approve(approver(t, elliptic.P256()), expected); err == nil {
		t.Error("another key approved")
	}
	if _, err := again.Approve(key, expected[:2]); err == nil {
		t.Error("approved values of other PCRs")
	}
}

// Whatever is altered in the file, the TPM or we refuse it.
func TestSecretAltered(t *testing.T) {
	t.Parallel()
	d, foreign := device(t), device(t)
	x, y := open(t, d, 0), open(t, foreign, 0)
	key := approver(t, elliptic.P256())
	s := sealSecret(t, x, sealing(t, d, key), "secret")
	theirs := sealSecret(t, y, sealing(t, foreign, key), "theirs")
	stranger := approver(t, elliptic.P256())
	strangers := sealSecret(t, x, sealing(t, d, stranger), "strangers")
	now, err := x.PCRs(t.Context(), pinned)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		alter func(s *tpm.Secret)
		why   error
		words string
	}{
		{"private", func(s *tpm.Secret) { s.Private[40] ^= 1 }, tpm.ErrAltered, "TPM2_Load"},
		{"private cut", func(s *tpm.Secret) { s.Private = s.Private[:20] }, tpm.ErrAltered, "TPM2_Load"},
		{"private of another", func(s *tpm.Secret) { s.Private = strangers.Private }, tpm.ErrAltered, "TPM2_Load"},
		{"public", func(s *tpm.Secret) { s.Public[len(s.Public)-1] ^= 1 }, tpm.ErrAltered, "TPM2_Load"},
		{"public without noDA", func(s *tpm.Secret) { s.Public[6] ^= 4 }, tpm.ErrAltered, "public"},
		{"public cut", func(s *tpm.Secret) { s.Public = s.Public[:9] }, tpm.ErrAltered, "public"},
		{"ref", func(s *tpm.Secret) { s.Ref[0] ^= 1 }, tpm.ErrAltered, "policy"},
		{"approver", func(s *tpm.Secret) { s.Approver = strangers.Approver }, tpm.ErrAltered, "policy"},
		{"approver with its policy", func(s *tpm.Secret) {
			s.Approver, s.Public, s.Ref, s.Approvals = strangers.Approver, strangers.Public, strangers.Ref, strangers.Approvals
		}, tpm.ErrAltered, "TPM2_Load"},
		{"approver that is no key", func(s *tpm.Secret) { s.Approver = s.Approver[1:] }, tpm.ErrAltered, "approver"},
		{"values", func(s *tpm.Secret) { s.Approvals[0].PCRs[1].Value[3] ^= 1 }, tpm.ErrNotApproved, "PCR 2 changed"},
		{"an approval by a stranger", func(s *tpm.Secret) { s.Approvals = strangers.Approvals }, tpm.ErrNotApproved, "not by the approval key"},
		{"an approval of other values with these", func(s *tpm.Secret) {
			other := slices.Clone(now)
			other[0].Value[0] ^= 1
			if _, err := s.Approve(key, other); err != nil {
				t.Fatal(err)
			}
			s.Approvals = s.Approvals[1:]
			s.Approvals[0].PCRs = now
		}, tpm.ErrNotApproved, "not by the approval key"},
		{"a signature that is none", func(s *tpm.Secret) { s.Approvals[0].Signature = []byte{0x30, 0} }, tpm.ErrAltered, "signature"},
		{"no approval", func(s *tpm.Secret) { s.Approvals = nil }, tpm.ErrAltered, "0 approvals"},
		{"approvals of different PCRs", func(s *tpm.Secret) {
			s.Approvals = append(s.Approvals, tpm.Approval{PCRs: s.Approvals[0].PCRs[1:], Signature: s.Approvals[0].Signature})
		}, tpm.ErrAltered, "approvals[1]"},
		{"an approval of a resettable PCR", func(s *tpm.Secret) { s.Approvals[0].PCRs[2].Index = 16 }, tpm.ErrAltered, "PCR 16"},
		{"v", func(s *tpm.Secret) { s.V = 2 }, tpm.ErrAltered, "v is 2"},
		{"the endorsement key", func(s *tpm.Secret) { s.EK = theirs.EK }, tpm.ErrAltered, "another endorsement key"},
		{"all of another TPM's", func(s *tpm.Secret) { *s = *theirs }, tpm.ErrAltered, "another endorsement key"},
		{"all of another TPM's but the endorsement key", func(s *tpm.Secret) { ek := s.EK; *s = *theirs; s.EK = ek }, tpm.ErrAltered, "TPM2_Load"},
	} {
		b, err := s.Encode()
		if err != nil {
			t.Fatal(err)
		}
		altered, err := tpm.ParseSecret(b)
		if err != nil {
			t.Fatal(err)
		}
		c.alter(altered)
		t.Log(c.name)
		requireRefused(t, x, altered, c.why, c.words)
		if b, err = altered.Encode(); err != nil {
			t.Fatal(err)
		}
		if parsed, err := tpm.ParseSecret(b); err == nil {
			requireRefused(t, x, parsed, c.why, c.words)
		} else if !errors.Is(err, c.why) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	requireEmpty(t, x)
	requireOpens(t, x, s, "secret")
}

func TestSealingIsRefused(t *testing.T) {
	t.Parallel()
	d, foreign := device(t), device(t)
	x := open(t, d, 0)
	good := sealing(t, d, approver(t, elliptic.P256()))
	for _, c := range []struct {
		name   string
		change func(c *tpm.SecretConfig)
		secret string
		words  string
	}{
		{"the seal PCR", func(c *tpm.SecretConfig) { c.PCRs = []int{7, sealPCR} }, "1234", "PCR 13 is the seal PCR"},
		{"another seal PCR", func(c *tpm.SecretConfig) { c.PCRs = []int{7, 14}; c.SealPCR = 14 }, "1234", "PCR 14 is the seal PCR"},
		{"debug PCR", func(c *tpm.SecretConfig) { c.PCRs = []int{7, 16} }, "1234", "PCR 16"},
		{"application PCR", func(c *tpm.SecretConfig) { c.PCRs = []int{23} }, "1234", "PCR 23"},
		{"no PCR there is", func(c *tpm.SecretConfig) { c.PCRs = []int{-1} }, "1234", "PCR -1"},
		{"no PCRs", func(c *tpm.SecretConfig) { c.PCRs = nil }, "1234", "at least one"},
		{"a PCR twice", func(c *tpm.SecretConfig) { c.PCRs = []int{7, 7} }, "1234", "once"},
		{"no secret", func(*tpm.SecretConfig) {}, "", "0 bytes"},
		{"a large secret", func(*tpm.SecretConfig) {}, strings.Repeat("1", 129), "129 bytes"},
		{"an approval key of another kind", func(c *tpm.SecretConfig) { c.Approver = approver(t, elliptic.P384()) }, "1234", "P-256"},
		{"a TPM that nobody vouches for", func(c *tpm.SecretConfig) { c.Roots = sealing(t, foreign, nil).Roots }, "1234", "roots"},
	} {
		cfg := good
		c.change(&cfg)
		if _, err := x.Seal(t.Context(), cfg, []byte(c.secret)); err == nil || !strings.Contains(err.Error(), c.words) || c.secret != "" && strings.Contains(err.Error(), c.secret) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	requireEmpty(t, x)
	s := sealSecret(t, x, good, strings.Repeat("1", 128)) // the largest
	requireOpens(t, x, s, strings.Repeat("1", 128))
}

// Programs that extend PCRs at the wrong moment: another PCR's change is tried again, one of ours is refused.
func TestSecretWhilePCRsChange(t *testing.T) {
	t.Parallel()
	d := device(t)
	r, x, _, _ := relayed(t, d, 5*time.Second)
	s := sealSecret(t, x, sealing(t, d, approver(t, elliptic.P256())), "secret")
	times := func(n int, pcr byte) {
		r.set(func(cc uint32, run func() []byte) []byte {
			if cc == ccUnseal && n > 0 {
				n--
				r.extend(pcr)
			}
			return run()
		})
	}
	times(2, 12)
	requireOpens(t, x, s, "secret")
	times(3, 12)
	if _, err := x.Unseal(t.Context(), s); err == nil || errors.Is(err, tpm.ErrNotApproved) {
		t.Errorf("while a PCR changes all the time: %v", err)
	}
	times(1, 7)
	requireRefused(t, x, s, tpm.ErrNotApproved, "PCR 7 changed")
	r.set(nil)
	requireEmpty(t, x)
}

// extend extends a PCR behind the client's back (TPM2_PCR_Extend; Part 3, section 22.2).
func (r *relay) extend(pcr byte) {
	in := []byte{0x80, 2, 0, 0, 0, 65, 0, 0, 1, 0x82, 0, 0, 0, pcr, 0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0x0B}
	in = append(in, make([]byte, 32)...)
	c, err := net.Dial("unix", r.to)
	if err != nil {
		r.t.Error(err)
		return
	}
	defer c.Close()
	if _, err := c.Write(in); err != nil {
		r.t.Error(err)
		return
	}
	if out, err := message(c); err != nil || !bytes.Equal(out[6:10], make([]byte, 4)) {
		r.t.Errorf("extending behind its back: %x %v", out, err)
	}
}

// FuzzParseSecret: what is accepted has one encoding.
func FuzzParseSecret(f *testing.F) {
	b, err := os.ReadFile("testdata/secret.json")
	if err != nil {
		f.Fatal(err)
	}
	if s, err := tpm.ParseSecret(b); err != nil || len(s.Approvals) != 1 || s.Ref == (record.Hash{}) {
		f.Fatalf("the sample: %v", err)
	}
	f.Add(b)
	f.Add([]byte(`{"approvals":[],"v":1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := tpm.ParseSecret(b)
		if err != nil {
			return
		}
		if again, err := s.Encode(); err != nil || !bytes.Equal(again, b) {
			t.Errorf("accepted %s, which encodes as %s (%v)", b, again, err)
		}
	})
}
