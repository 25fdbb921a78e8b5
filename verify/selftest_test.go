package verify_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"io"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"golang.org/x/crypto/ssh"
	"golang.org/x/mod/sumdb/note"

	"bulla/ceremony"
	"bulla/clock"
	"bulla/record"
	"bulla/verify"
)

// repeatable is an ECDSA key whose signatures are the same every time (RFC 6979).
type repeatable struct{ *ecdsa.PrivateKey }

func (k repeatable) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return k.PrivateKey.Sign(nil, digest, opts)
}

// town is a log that has everything a mutation needs: officers, measured time, tokens, gaps, seals of two boots, a TPM that its maker
// certifies. It is made the same every time.
func town(t testing.TB) *council {
	t.Helper()
	c := &council{builder: newBuilder(t), people: map[string]ssh.Signer{}}
	c.keys = []crypto.Signer{repeatable{testKey(t, 1)}, testEd25519(1)}
	c.genesis.Clock = clock.DefaultPolicy()
	c.genesis.ProposerCounts, c.genesis.Thresholds = true, map[string]int{ceremony.Default: 2}
	for i, name := range []string{"alice", "bob", "carol"} {
		s, err := ssh.NewSignerFromSigner(testEd25519(byte(100 + i)))
		c.must(err)
		c.people[name] = s
		c.genesis.Officers = append(c.genesis.Officers, ceremony.Officer{Name: name, Key: strings.TrimSpace(string(ssh.MarshalAuthorizedKey(s.PublicKey())))})
	}
	c.enrolled()
	c.endorsed()
	c.begin()
	c.approveGenesis("alice", "bob")
	c.startClock().measure()
	return c
}

// endorsed gives the TPM an endorsement key that a maker certifies.
func (b *builder) endorsed() {
	b.t.Helper()
	maker, key := repeatable{testKey(b.t, 50)}, testKey(b.t, 51)
	long := func(subject string, ca bool) *x509.Certificate {
		return &x509.Certificate{SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: subject}, IsCA: ca, BasicConstraintsValid: true, NotBefore: time.Unix(0, 0).UTC(), NotAfter: time.Unix(1<<32, 0).UTC()}
	}
	root := long("Maker of the tests", true)
	rootDER, err := x509.CreateCertificate(nil, root, root, maker.Public(), maker)
	b.must(err)
	leaf := long("", false)
	leaf.UnknownExtKeyUsage = []asn1.ObjectIdentifier{{2, 23, 133, 8, 1}}
	leafDER, err := x509.CreateCertificate(nil, leaf, root, key.Public(), maker)
	b.must(err)
	point, err := key.PublicKey.Bytes()
	b.must(err)
	ek := tpm2.ECCEKTemplate
	ek.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{X: tpm2.TPM2BECCParameter{Buffer: point[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: point[33:]}})
	b.genesis.TPM.EK, b.genesis.TPM.EKCertificates = tpm2.Marshal(ek), [][]byte{leafDER, rootDER}
}

// busy goes on with n events between seals, of two boots.
func (c *council) busy(n int) *council {
	c.t.Helper()
	c.events(n / 3)
	c.add(record.KindSystem, nil, []byte(`{"event":"gap","gap":{"after":3,"next":5,"stream":"s","uid":1000}}`))
	c.events(2)
	c.seal(c.head(c.tree.Size()))
	c.events(n / 3)
	c.chip.reset()
	c.chip.increment = true
	c.seal(c.head(c.tree.Size() - 1))
	c.measure()
	c.token(func(*record.Token) {})
	c.events(n - 2*(n/3) + 1)
	c.seal(c.head(c.tree.Size()))
	c.events(3)
	return c
}

// trusting is the policy of an auditor who wants all of it.
func (c *council) trusting() *verify.Policy {
	p := c.sealedPolicy()
	p.NoTime = false
	return p
}

// withCopies is the evidence with the files for standard tools.
func withCopies(t testing.TB, f files) files {
	t.Helper()
	out := files{}
	if _, err := verify.Export(t.Context(), f, func(name string, data []byte) error {
		out[name] = bytes.Clone(data)
		return nil
	}, nil); err != nil {
		t.Fatal(err)
	}
	return out
}

// ownKeys are the log's own, in the hands of who tampers.
func (c *council) ownKeys(origin string) (out []note.Signer, err error) {
	for _, k := range c.keys {
		s, err := record.NewSigner(origin, k)
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, nil
}

// selftest fails where a mutation is not caught, or where a rule finds something that the catalogue does not say it may.
func selftest(t *testing.T, src verify.Source, p *verify.Policy, opt verify.SelftestOptions) *verify.SelftestReport {
	t.Helper()
	rep, err := verify.Selftest(t.Context(), src, p, opt)
	if err != nil {
		t.Fatal(err)
	}
	if !rep.Passed() {
		var b bytes.Buffer
		if err := rep.WriteText(&b); err != nil {
			t.Fatal(err)
		}
		t.Errorf("%s", b.String())
	}
	for _, x := range rep.Trials {
		for _, other := range x.Others {
			rule, _, _ := strings.Cut(other, " ")
			if x.Outcome == verify.Caught && !slices.Contains(x.Rules, rule) {
				t.Errorf("%s: %s found something too", x.Name, other)
			}
		}
	}
	return rep
}

func TestSelftest(t *testing.T) {
	t.Parallel()
	c := town(t).busy(300)
	rep := selftest(t, withCopies(t, c.export()), c.trusting(), verify.SelftestOptions{})
	for _, x := range rep.Trials {
		if x.Outcome == verify.NotApplicable {
			t.Errorf("%s: not applicable: %s", x.Name, x.Why)
		}
	}
}

func TestEveryRuleHasAMutation(t *testing.T) {
	t.Parallel()
	known := map[string]bool{}
	for _, m := range verify.Mutations() {
		if len(m.Rules) > 0 {
			known[m.Rules[0]] = true
		}
	}
	for _, r := range verify.Rules() {
		if !known[r.Name] {
			t.Errorf("no mutation is caught by %s", r.Name)
		}
	}
}
