package verify_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"io"
	"math/big"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"golang.org/x/crypto/ssh"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"bulla/attest"
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
	c := people(t, repeated(t))
	c.enrolled()
	c.endorsed()
	c.begin()
	c.approveGenesis("alice", "bob")
	c.startClock().measure()
	return c
}

// people has alice, bob and carol govern a log, two of them together.
func people(t testing.TB, b *builder) *council {
	t.Helper()
	c := &council{builder: b, people: map[string]ssh.Signer{}}
	c.genesis.Clock = clock.DefaultPolicy()
	c.genesis.ProposerCounts, c.genesis.Thresholds = true, map[string]int{ceremony.Default: 2}
	for i, name := range []string{"alice", "bob", "carol"} {
		key := testEd25519(byte(100 + i))
		s, err := ssh.NewSignerFromSigner(key)
		c.must(err)
		c.people[name] = s
		c.genesis.Officers = append(c.genesis.Officers, ceremony.Officer{Name: name, Key: authorized(t, key)})
	}
	c.state.Root = c.rootAt
	return c
}

// authorized is a key as it stands in authorized_keys.
func authorized(t testing.TB, key crypto.Signer) string {
	t.Helper()
	p, err := ssh.NewPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(p)))
}

// endorsed gives the TPM an endorsement key that a maker certifies.
func (b *builder) endorsed() {
	b.t.Helper()
	b.certify(b.genesis.TPM, 50, "Maker of the tests")
}

// certify gives a TPM an endorsement key that the maker of a number certifies.
func (b *builder) certify(e *attest.Enrolment, n byte, name string) {
	b.t.Helper()
	key, rootDER := testKey(b.t, n+1), maker(b.t, n, name)
	root, err := x509.ParseCertificate(rootDER)
	b.must(err)
	leaf := certificate("", false)
	leaf.UnknownExtKeyUsage = []asn1.ObjectIdentifier{{2, 23, 133, 8, 1}}
	leafDER, err := x509.CreateCertificate(nil, leaf, root, key.Public(), repeatable{testKey(b.t, n)})
	b.must(err)
	point, err := key.PublicKey.Bytes()
	b.must(err)
	ek := tpm2.ECCEKTemplate
	ek.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{X: tpm2.TPM2BECCParameter{Buffer: point[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: point[33:]}})
	e.EK, e.EKCertificates = tpm2.Marshal(ek), [][]byte{leafDER, rootDER}
}

func certificate(subject string, ca bool) *x509.Certificate {
	return &x509.Certificate{SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: subject}, IsCA: ca, BasicConstraintsValid: true, NotBefore: time.Unix(0, 0).UTC(), NotAfter: time.Unix(1<<32, 0).UTC()}
}

// maker is the certificate of a maker of TPMs.
func maker(t testing.TB, n byte, name string) []byte {
	t.Helper()
	root, key := certificate(name, true), repeatable{testKey(t, n)}
	der, err := x509.CreateCertificate(nil, root, root, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return der
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

// withCopies is the evidence with the files for standard tools.
func withCopies(t testing.TB, f files) files {
	t.Helper()
	out := files{}
	var mu sync.Mutex
	if _, err := verify.Export(t.Context(), f, func(name string, data []byte) error {
		mu.Lock()
		defer mu.Unlock()
		out[name] = bytes.Clone(data)
		return nil
	}, nil); err != nil {
		t.Fatal(err)
	}
	return out
}

// ownKeys are the log's own, in the hands of who tampers.
func (b *builder) ownKeys(origin string) (out []note.Signer, err error) {
	for _, k := range b.keys {
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
	closed, _, _ := recovered(t)
	tried := map[string]bool{}
	for _, c := range []*council{town(t).busy(300), closed} {
		for _, x := range selftest(t, withCopies(t, c.export()), c.trust(), verify.SelftestOptions{}).Trials {
			tried[x.Name] = tried[x.Name] || x.Outcome != verify.NotApplicable
		}
	}
	for _, m := range verify.Mutations() {
		if !tried[m.Name] {
			t.Errorf("%s: not applicable", m.Name)
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

const docFile = "../docs/selftest.md"

// The catalogue that is published is the one that is tried.
func TestCatalogueIsPublished(t *testing.T) {
	t.Parallel()
	have, err := os.ReadFile(docFile)
	if err != nil {
		t.Fatal(err)
	}
	const begin, end = "<!-- catalogue -->\n", "<!-- end of catalogue -->\n"
	before, rest, ok := bytes.Cut(have, []byte(begin))
	_, after, ok2 := bytes.Cut(rest, []byte(end))
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the catalogue", docFile)
	}
	var b bytes.Buffer
	needs := ""
	all := verify.Mutations()
	first := func(m verify.Mutation) int {
		return slices.IndexFunc(verify.Mutations(), func(x verify.Mutation) bool { return x.Needs == m.Needs })
	}
	slices.SortStableFunc(all, func(a, b verify.Mutation) int { return first(a) - first(b) })
	for _, m := range all {
		if m.Needs != needs {
			needs = m.Needs
			fmt.Fprintf(&b, "\nWith %s:\n\n| mutation | what is done | found by |\n|---|---|---|\n", needs)
		}
		by := "nothing contradicts: *not checkable*, and what is missing"
		if len(m.Rules) > 0 {
			by = "`" + m.Rules[0] + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", m.Name, m.Does, by)
	}
	want := slices.Concat(before, []byte(begin), b.Bytes(), []byte("\n"+end), after)
	if *update {
		err = os.WriteFile(docFile, want, 0o644)
	} else if !bytes.Equal(have, want) {
		t.Errorf("%s does not have the catalogue: run go test ./verify -run Catalogue -update", docFile)
	}
	if err != nil {
		t.Error(err)
	}
}

func TestCatalogue(t *testing.T) {
	t.Parallel()
	rules, names := map[string]bool{}, map[string]bool{}
	for _, r := range verify.Rules() {
		rules[r.Name] = true
	}
	for _, m := range verify.Mutations() {
		if names[m.Name] {
			t.Errorf("two mutations %s", m.Name)
		}
		names[m.Name] = true
		if !strings.HasSuffix(m.Does, ".") || m.Needs == "" {
			t.Errorf("%s: %q, %q", m.Name, m.Does, m.Needs)
		}
		for _, r := range m.Rules {
			if !rules[r] {
				t.Errorf("%s: there is no rule %s", m.Name, r)
			}
		}
	}
}

// Large logs are not copied: what is mutated lies in memory beside them.
func TestSelftestOfALargeLog(t *testing.T) {
	t.Parallel()
	f, p := large(t)
	rep := selftest(t, f, p, verify.SelftestOptions{})
	if n := rep.Counts[verify.Caught]; n < 50 {
		t.Errorf("%d caught", n)
	}
	for _, x := range rep.Trials {
		if x.Outcome == verify.NotApplicable && x.Why == "" {
			t.Errorf("%s: why not?", x.Name)
		}
	}
}

// Whatever honestly happened to a log, tampering with it is found.
func TestSelftestOfHonestLogs(t *testing.T) {
	t.Parallel()
	for _, x := range scenes {
		if x.verdict != verify.OutcomeVerified {
			continue
		}
		t.Run(x.name, func(t *testing.T) {
			t.Parallel()
			v := x.make(t)
			rep := selftest(t, v.files, v.policy, verify.SelftestOptions{Receipts: v.receipts})
			for _, trial := range rep.Trials {
				if strings.Contains(trial.Why, "imitated") {
					t.Errorf("%s: %s", trial.Name, trial.Why)
				}
			}
		})
	}
}

func TestSelftestBeginsWithVerifiedEvidence(t *testing.T) {
	t.Parallel()
	b := newBuilder(t).begin().events(5)
	bad := b.export()
	bad["checkpoint"] = newBuilder(t).begin().events(6).sign()
	for _, c := range []struct {
		files   files
		policy  *verify.Policy
		verdict verify.Verdict
	}{{bad, b.policy(), verify.OutcomeNotCheckable}, {b.export(), nil, verify.OutcomeNotCheckable}} {
		rep, err := verify.Selftest(t.Context(), c.files, c.policy, verify.SelftestOptions{})
		if err != nil || rep.Evidence.Verdict == verify.OutcomeVerified || len(rep.Trials) > 0 || rep.Passed() {
			t.Errorf("%v: %+v", err, rep)
			continue
		}
		var out bytes.Buffer
		if err := rep.WriteText(&out); err != nil || !strings.HasPrefix(out.String(), "nothing was tried: the evidence itself is "+string(rep.Evidence.Verdict)) {
			t.Error(err, out.String())
		}
	}
}

// What fails is printed first.
func TestSelftestThatFails(t *testing.T) {
	t.Parallel()
	b := newBuilder(t).begin().events(5)
	for _, c := range []struct {
		make    verify.Mutation
		outcome verify.Outcome
		why     string
	}{
		{verify.MutationOf("nothing", nil, "tree.leaf"), verify.Missed, "expected tree.leaf at entry 3, found nothing: verified"},
		{verify.MutationOf("nothing, quietly", nil), verify.Missed, `the answer is "verified"`},
		{verify.MutationOf("otherwise", map[string][]byte{"tile/0/000.p/6": b.tile(tlog.Tile{H: 8, L: 0, N: 0, W: 6})[:9]}, "tree.leaf"), verify.Misattributed, "expected tree.leaf at entry 3, found tile.format at entry 0"},
	} {
		rep, err := verify.SelftestOf(t.Context(), b.export(), b.policy(), c.make)
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := rep.WriteText(&out); err != nil {
			t.Fatal(err)
		}
		if x := rep.Trials[0]; x.Outcome != c.outcome || !strings.Contains(x.Why, c.why) || rep.Passed() || !strings.HasPrefix(out.String(), "FAILED  "+c.make.Name+": ") {
			t.Errorf("%+v\n%s", x, out.String())
		}
	}
}
