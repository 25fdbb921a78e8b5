package ceremony_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/big"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/mod/sumdb/note"

	"bulla/attest"
	"bulla/ceremony"
	"bulla/clock"
	"bulla/record"
)

const origin = "log.example/audit"

// rig is a log under governance, in memory, with everybody's keys.
type rig struct {
	t       testing.TB
	state   ceremony.State
	entries [][]byte
	roots   []record.Hash // by size
	tree    *record.Tree
	prev    record.Hash
	now     int64 // UTC
	stamp   func(*clock.Stamp)
	people  map[string]ssh.Signer
	device  map[record.Hash]*ecdsa.PrivateKey // by hash of SPKI
	numbers map[uint64][]byte                 // documents
}

// newRig is an empty log, and people who may become officers: alice (Ed25519), bob (ECDSA), carol and dave (FIDO2), eve (Ed25519).
func newRig(t testing.TB) *rig {
	t.Helper()
	tree, err := record.NewTree(0, nil)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, tree: tree, roots: []record.Hash{tree.Root()}, now: time.Date(2026, 11, 23, 1, 0, 0, 0, time.UTC).UnixNano(),
		device: map[record.Hash]*ecdsa.PrivateKey{}, numbers: map[uint64][]byte{}}
	r.state.Root = r.root
	r.people = map[string]ssh.Signer{
		"alice": plain(t, ed25519Key(t)), "bob": plain(t, ecdsaKey(t, elliptic.P256())), "eve": plain(t, ed25519Key(t)),
		"carol": newSK(t, ed25519Key(t)), "dave": newSK(t, ecdsaKey(t, elliptic.P256())),
	}
	return r
}

// fork is a copy of the log that grows by itself.
func (r *rig) fork(t testing.TB) *rig {
	c := *r
	c.t, c.tree = t, r.tree.Clone()
	c.entries, c.roots = slices.Clone(r.entries), slices.Clone(r.roots)
	c.people, c.device, c.numbers = maps.Clone(r.people), maps.Clone(r.device), maps.Clone(r.numbers)
	for name, p := range c.people {
		if key, ok := p.(sk); ok {
			n := *key.counter
			key.counter = &n
			c.people[name] = key
		}
	}
	c.state.Root = c.root
	return &c
}

func (r *rig) root(size uint64) (record.Hash, error) {
	if size >= uint64(len(r.roots)) {
		return record.Hash{}, errors.New("not that large yet")
	}
	return r.roots[size], nil
}

func (r *rig) head() ceremony.Head {
	return ceremony.Head{Root: r.roots[len(r.roots)-1], Size: uint64(len(r.entries))}
}

// make is the next entry.
func (r *rig) make(kind record.Kind, body any) (*record.Entry, []byte) {
	r.t.Helper()
	raw, ok := body.([]byte)
	if !ok {
		var err error
		if raw, err = record.MarshalCanonical(body); err != nil {
			r.t.Fatal(err)
		}
	}
	r.now += int64(time.Second)
	e := &record.Entry{Index: uint64(len(r.entries)), Kind: kind, Log: origin, Prev: r.prev, Body: raw,
		Stamp: clock.Stamp{Sys: r.now - 30_000, Offset: 30_000, Bound: 2_000_000, Age: 5, Round: 1, Epoch: 1, State: clock.Synced, HasEstimate: true}}
	if kind == record.KindEvent {
		e.Producer = &record.Producer{UID: 1000, GID: 1000}
	}
	if r.stamp != nil {
		r.stamp(&e.Stamp)
	}
	b, err := e.Append(nil)
	if err != nil {
		r.t.Fatal(err)
	}
	return e, b
}

// try appends an entry if the state permits it.
func (r *rig) try(kind record.Kind, body any) error {
	r.t.Helper()
	e, b := r.make(kind, body)
	leaf := record.LeafHash(b)
	next, err := r.state.Apply(e, leaf)
	if err != nil {
		return err
	}
	r.state, r.prev = next, leaf
	r.tree.Append(nil, leaf)
	r.entries, r.roots = append(r.entries, b), append(r.roots, r.tree.Root())
	return nil
}

// add appends an entry that the state must permit.
func (r *rig) add(kind record.Kind, body any) uint64 {
	r.t.Helper()
	if err := r.try(kind, body); err != nil {
		r.t.Fatal(err)
	}
	return uint64(len(r.entries) - 1)
}

func (r *rig) event() { r.t.Helper(); r.add(record.KindEvent, []byte(`{"type":"auth.login"}`)) }

func (r *rig) officer(name string) ceremony.Officer {
	pub := r.people[name].PublicKey()
	sk := strings.HasPrefix(pub.Type(), "sk-")
	return ceremony.Officer{Name: name, Key: strings.TrimSpace(string(ssh.MarshalAuthorizedKey(pub))), Touch: sk, Verify: name == "carol"}
}

func (r *rig) officers(names ...string) (out []ceremony.Officer) {
	for _, n := range names {
		out = append(out, r.officer(n))
	}
	return out
}

// genesis is the body of entry 0, with a new key for the log: alice, bob and carol are officers, two of them are needed.
func (r *rig) genesis() *ceremony.Genesis {
	return &ceremony.Genesis{
		Clock: clock.DefaultPolicy(), Keys: []ceremony.Key{r.newKey(ceremony.PurposeLog)}, Officers: r.officers("alice", "bob", "carol"), Origin: origin,
		ProposerCounts: true, Roles: []ceremony.Role{{Name: ceremony.Producer, UIDs: []uint32{1000}}, {Name: ceremony.Auditor, UIDs: []uint32{1001}}},
		Seal: ceremony.DefaultSealPolicy(13), Software: "test", Thresholds: map[string]int{ceremony.Default: 2},
	}
}

// begin makes the log, and has its genesis approved.
func (r *rig) begin(g *ceremony.Genesis) *rig {
	r.t.Helper()
	r.add(record.KindGenesis, g)
	for _, o := range g.Officers {
		if r.state.Ready() == nil {
			break
		}
		r.add(record.KindApproval, r.genesisApproval(o.Name))
	}
	r.event()
	return r
}

func (r *rig) newKey(purpose string) ceremony.Key {
	r.t.Helper()
	key := ecdsaKey(r.t, elliptic.P256())
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		r.t.Fatal(err)
	}
	r.device[sha256.Sum256(spki)] = key
	return ceremony.Key{Algorithm: "ecdsa-p256", Purpose: purpose, SPKI: spki, Attributes: map[string]string{
		"extractable": "false", "firmware": "2.6", "manufacturer": "SoftHSM project", "sensitive": "true", "serial": "a1b2c3d4e5f60718"}}
}

func (r *rig) sign(document []byte, d ceremony.Decision, name string) string {
	r.t.Helper()
	s, err := ceremony.Sign(rand.Reader, document, d, r.people[name])
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}

func (r *rig) genesisApproval(name string) *ceremony.Approval {
	r.t.Helper()
	document, err := ceremony.GenesisDocument(origin, r.state.Genesis)
	if err != nil {
		r.t.Fatal(err)
	}
	return &ceremony.Approval{Decision: ceremony.Approve, Document: ceremony.DocumentHash(document), Officer: name, Signature: r.sign(document, ceremony.Approve, name)}
}

// document is a proposal that is good for an hour.
func (r *rig) document(content any, proposer string) []byte {
	r.t.Helper()
	d, err := r.state.Propose(content, proposer, r.head(), r.now+int64(time.Hour))
	if err != nil {
		r.t.Fatal(err)
	}
	return d
}

func (r *rig) proposed(document []byte, by string) *ceremony.Proposed {
	r.t.Helper()
	return &ceremony.Proposed{Document: document, Signature: r.sign(document, ceremony.Approve, by)}
}

// propose adds a proposal by alice, and returns its number.
func (r *rig) propose(content any) uint64 {
	r.t.Helper()
	n := r.state.Number()
	r.numbers[n] = r.document(content, "alice")
	r.add(record.KindProposal, r.proposed(r.numbers[n], "alice"))
	return n
}

func (r *rig) decision(n uint64, d ceremony.Decision, name string) *ceremony.Approval {
	r.t.Helper()
	return &ceremony.Approval{Decision: d, Document: ceremony.DocumentHash(r.numbers[n]), Number: n, Officer: name, Signature: r.sign(r.numbers[n], d, name)}
}

func (r *rig) approve(n uint64, name string) {
	r.t.Helper()
	r.add(record.KindApproval, r.decision(n, ceremony.Approve, name))
}

func (r *rig) enactment(n uint64, outcome any) *ceremony.Enactment {
	r.t.Helper()
	e := &ceremony.Enactment{Document: ceremony.DocumentHash(r.numbers[n]), Number: n}
	if outcome != nil {
		b, err := record.MarshalCanonical(outcome)
		if err != nil {
			r.t.Fatal(err)
		}
		e.Outcome = b
		e.Steps = []ceremony.Step{{Did: "asked the device", Answer: "done", Time: string(record.AppendTime(nil, r.now))}}
	}
	return e
}

func (r *rig) enact(n uint64, outcome any) {
	r.t.Helper()
	r.add(record.KindEnactment, r.enactment(n, outcome))
}

// carry proposes, approves and enacts.
func (r *rig) carry(content, outcome any) {
	r.t.Helper()
	n := r.propose(content)
	r.approve(n, "bob")
	r.enact(n, outcome)
}

// policy is what is in force, with another quota.
func (r *rig) policy(streams int) *ceremony.PolicySet {
	p := r.state.Policy
	return &ceremony.PolicySet{Clock: p.Clock, Quotas: ceremony.Quotas{Streams: streams}, Roles: p.Roles, Seal: p.Seal}
}

// handover is the present head signed by the keys of the given hashes.
func (r *rig) handover(keys ...record.Hash) *ceremony.Rotated {
	r.t.Helper()
	var signers []note.Signer
	for _, h := range keys {
		s, err := record.NewSigner(origin, r.device[h])
		if err != nil {
			r.t.Fatal(err)
		}
		signers = append(signers, s)
	}
	h := r.head()
	signed, err := note.Sign(&note.Note{Text: record.Checkpoint{Origin: origin, Size: h.Size, Root: h.Root}.Text()}, signers...)
	if err != nil {
		r.t.Fatal(err)
	}
	return &ceremony.Rotated{Checkpoint: string(signed)}
}

// rotate generates a key and puts it in force; it returns the key that was.
func (r *rig) rotate() record.Hash {
	r.t.Helper()
	old := r.keyInForce(ceremony.PurposeLog)
	k := r.newKey(ceremony.PurposeLog)
	r.carry(&ceremony.KeyGenerate{Algorithm: "ecdsa-p256", Label: "log-2", Purpose: ceremony.PurposeLog}, k)
	n := r.propose(&ceremony.KeyRotate{Old: ceremony.OldSigns, Purpose: ceremony.PurposeLog, SPKI: k.Hash()})
	r.approve(n, "bob")
	r.enact(n, r.handover(old, k.Hash()))
	return old
}

func (r *rig) keyInForce(purpose string) record.Hash {
	for _, k := range r.state.Policy.Keys {
		if k.Purpose == purpose {
			return k.Hash()
		}
	}
	r.t.Fatalf("no key for %s", purpose)
	return record.Hash{}
}

// enrolment is that of a software TPM, from the vectors of the verifier.
func enrolment(t testing.TB) *attest.Enrolment {
	t.Helper()
	b, err := os.ReadFile("../testdata/vectors/verify/sealed/tile/entries/000.p/19")
	if err != nil {
		t.Fatal(err)
	}
	entries, err := record.ParseBundle(b)
	if err != nil {
		t.Fatal(err)
	}
	e, err := record.ParseEntry(entries[0])
	if err != nil {
		t.Fatal(err)
	}
	g, err := ceremony.ParseGenesis(e.Body)
	if err != nil || g.TPM == nil {
		t.Fatal("the genesis has no enrolment", err)
	}
	return g.TPM
}

// pcrSignature is what the key for PCR values signs.
func (r *rig) pcrSignature(pcrs []attest.PCRValue, key record.Hash) *ceremony.PCRApproved {
	r.t.Helper()
	policy := ceremony.PCRPolicy(pcrs)
	digest := sha256.Sum256(policy[:])
	sig, err := ecdsa.SignASN1(rand.Reader, r.device[key], digest[:])
	if err != nil {
		r.t.Fatal(err)
	}
	return &ceremony.PCRApproved{Signature: sig}
}

func stampOf(t testing.TB, entry []byte) clock.Stamp {
	t.Helper()
	e, err := record.ParseEntry(entry)
	if err != nil {
		t.Fatal(err)
	}
	return e.Stamp
}

// refusedBy checks that an error is a refusal by the rule.
func refusedBy(t testing.TB, err error, rule ceremony.Rule) {
	t.Helper()
	var refused *ceremony.Refused
	if !errors.As(err, &refused) || refused.Rule != rule {
		t.Errorf("should be refused by rule %s: %v", rule, err)
	}
}

func ed25519Key(t testing.TB) ed25519.PrivateKey {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func ecdsaKey(t testing.TB, c elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func plain(t testing.TB, key crypto.Signer) ssh.Signer {
	t.Helper()
	s, err := ssh.NewSignerFromSigner(key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// sk is a FIDO2 key in software (openssh PROTOCOL.u2f).
type sk struct {
	pub     ssh.PublicKey
	key     crypto.Signer
	flags   byte
	counter *uint32
}

const skApplication = "ssh:"

// newSK makes one whose owner touches it and gives its PIN.
func newSK(t testing.TB, key crypto.Signer) sk {
	t.Helper()
	var blob []byte
	switch pub := key.Public().(type) {
	case ed25519.PublicKey:
		blob = ssh.Marshal(struct {
			Type        string
			Key         []byte
			Application string
		}{ssh.KeyAlgoSKED25519, pub, skApplication})
	case *ecdsa.PublicKey:
		point, err := pub.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		blob = ssh.Marshal(struct {
			Type, Curve string
			Key         []byte
			Application string
		}{ssh.KeyAlgoSKECDSA256, "nistp256", point, skApplication})
	}
	pub, err := ssh.ParsePublicKey(blob)
	if err != nil {
		t.Fatal(err)
	}
	return sk{pub, key, 0x05, new(uint32)}
}

// with is the same key, used otherwise.
func (s sk) with(flags byte) sk { s.flags = flags; return s }

func (s sk) PublicKey() ssh.PublicKey { return s.pub }

func (s sk) Sign(random io.Reader, data []byte) (*ssh.Signature, error) {
	*s.counter++
	app, message := sha256.Sum256([]byte(skApplication)), sha256.Sum256(data)
	rest := binary.BigEndian.AppendUint32([]byte{s.flags}, *s.counter)
	signed := bytes.Join([][]byte{app[:], rest, message[:]}, nil)
	sig := &ssh.Signature{Format: s.pub.Type(), Rest: rest}
	if _, ok := s.key.(ed25519.PrivateKey); ok {
		var err error
		sig.Blob, err = s.key.Sign(random, signed, crypto.Hash(0))
		return sig, err
	}
	digest := sha256.Sum256(signed)
	der, err := s.key.Sign(random, digest[:], crypto.SHA256)
	if err != nil {
		return nil, err
	}
	var rs struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(der, &rs); err != nil {
		return nil, err
	}
	sig.Blob = ssh.Marshal(rs)
	return sig, nil
}

// altered is body with a change in its canonical JSON.
func altered(t testing.TB, body any, change func(m map[string]any)) []byte {
	t.Helper()
	b, err := record.MarshalCanonical(body)
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	if err := d.Decode(&m); err != nil {
		t.Fatal(err)
	}
	change(m)
	b, err = json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	b, err = record.Canonicalize(b, record.MaxDepth)
	if err != nil {
		t.Fatal(fmt.Errorf("%w: %s", err, b))
	}
	return b
}
