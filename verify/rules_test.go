package verify_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"testing"

	"bulla/attest"
	"bulla/clock"
	"bulla/record"
	"bulla/verify"
)

// violation is evidence that breaks one rule and no other.
type violation struct {
	rule  string
	place string // index of the entry; "" when the rule has none
	about string
	make  func(t *testing.T) (files, *verify.Policy, []verify.Receipt)
}

func evidence(b *builder, f files, receipts ...verify.Receipt) (files, *verify.Policy, []verify.Receipt) {
	return f, b.policy(), receipts
}

// edited is a log of 600 events of which one file was changed after it was exported.
func edited(name string, edit func([]byte) []byte) func(*testing.T) (files, *verify.Policy, []verify.Receipt) {
	return func(t *testing.T) (files, *verify.Policy, []verify.Receipt) {
		b := newBuilder(t).begin().events(600)
		f := b.export()
		f[name] = edit(f[name])
		return evidence(b, f)
	}
}

// rebundled is the same, with a change to the entries of a bundle.
func rebundled(name string, edit func([][]byte) [][]byte) func(*testing.T) (files, *verify.Policy, []verify.Receipt) {
	return edited(name, func(data []byte) []byte {
		raw, err := record.ParseBundle(data)
		if err != nil {
			panic(err)
		}
		return bundle(edit(raw))
	})
}

// violations are what the catalogue of the selftest leaves out: the same rules at other places, and what was not tampered with alone.
var violations = []violation{
	{"tile.format", "0", "a tile above level 0 is too long", edited("tile/1/000.p/2", func(b []byte) []byte { return append(b, 0) })},
	{"tile.hash", "600", "the hash of the last entry was changed", edited("tile/0/002.p/89", func(b []byte) []byte { b[88*32] ^= 1; return b })},
	{"tree.leaf", "600", "a letter of the last entry was changed", rebundled("tile/entries/002.p/89", func(raw [][]byte) [][]byte {
		raw[88] = bytes.Replace(raw[88], []byte("number 600"), []byte("number 601"), 1)
		return raw
	})},
	{"tree.leaf", "255", "the last entry of a bundle was changed", rebundled("tile/entries/000", func(raw [][]byte) [][]byte {
		raw[255] = bytes.Replace(raw[255], []byte("number 255"), []byte("number 256"), 1)
		return raw
	})},
	{"checkpoint.signature", "", "the head's Ed25519 line is of another head", func(t *testing.T) (files, *verify.Policy, []verify.Receipt) {
		b := newBuilder(t).begin().events(9)
		old := b.sign()
		f := b.events(9).export()
		line := func(b []byte) []byte { return b[bytes.LastIndex(b[:len(b)-1], []byte("\n"))+1:] }
		f["checkpoint"] = bytes.Replace(f["checkpoint"], line(f["checkpoint"]), line(old), 1)
		return evidence(b, f)
	}},
	{"checkpoint.signature", "", "the policy pins a further key, which did not sign", func(t *testing.T) (files, *verify.Policy, []verify.Receipt) {
		b := newBuilder(t).begin().events(9)
		p := b.policy()
		v, err := record.VKey(origin, testKey(t, 99).Public())
		b.must(err)
		p.VKeys = append(p.VKeys, v)
		return b.export(), p, nil
	}},
	{"receipt.entry", "7", "the log was rewritten from the entry of a receipt on, which does not hold it", func(t *testing.T) (files, *verify.Policy, []verify.Receipt) {
		b, again := newBuilder(t).begin().events(300), newBuilder(t).begin().events(6)
		again.add(record.KindEvent, &record.Producer{UID: 1000}, []byte(`{"type":"a"}`))
		return evidence(again, again.events(400).export(), verify.Receipt{Name: "7.tlog-proof", Data: b.receipt(7).TLogProof()})
	}},
	{"time.policy", "1", "an event was taken before the clock was known", func(t *testing.T) (files, *verify.Policy, []verify.Receipt) {
		b := newBuilder(t)
		b.genesis.Clock = clock.DefaultPolicy()
		b.begin().events(1)
		return evidence(b, b.export())
	}},
	{"enrolment.activation", "1", "a secret that is not the credential's", activated(func(_ *builder, a *attest.Activation, _ *record.Access) { a.Secret[0] ^= 1 })},
	{"enrolment.activation", "1", "no secret, and yet it is said that the credential was opened", activated(func(_ *builder, a *attest.Activation, _ *record.Access) { a.Secret = nil })},
	{"enrolment.activation", "1", "a secret, and yet it is said that the credential was not opened", activated(func(_ *builder, _ *attest.Activation, x *record.Access) { x.Denied = true })},
	{"enrolment.activation", "1", "a credential for another attestation key", activated(func(_ *builder, a *attest.Activation, _ *record.Access) { a.Challenge.AKName[5] ^= 1 })},
	{"enrolment.activation", "1", "a credential for another endorsement key", activated(func(_ *builder, a *attest.Activation, _ *record.Access) { a.Challenge.EK[5] ^= 1 })},
	{"enrolment.activation", "1", "an activation in a log without a TPM", activated(func(b *builder, _ *attest.Activation, _ *record.Access) { b.genesis.TPM = nil })},
}

// activated is a log with an activation, the second entry, that was changed before it was logged.
func activated(change func(*builder, *attest.Activation, *record.Access)) func(*testing.T) (files, *verify.Policy, []verify.Receipt) {
	return func(t *testing.T) (files, *verify.Policy, []verify.Receipt) {
		b := newBuilder(t).enrolled()
		secret := bytes.Repeat([]byte{5}, 32)
		a := attest.Activation{Secret: bytes.Clone(secret), Challenge: attest.CredentialChallenge{
			AKName: bytes.Clone(b.genesis.TPM.AKName), Commitment: sha256.Sum256(secret), EK: sha256.Sum256(b.genesis.TPM.EK), V: 1,
			Credential: attest.Credential{Blob: []byte{1}, Secret: []byte{2}},
		}}
		x := record.Access{Action: record.AccessActivate, By: record.Producer{UID: 7}, Role: "auditor"}
		change(b, &a, &x)
		b.begin()
		var err error
		x.Activation, err = a.Encode()
		b.must(err)
		body, err := record.MarshalCanonical(&x)
		b.must(err)
		b.add(record.KindAccess, nil, body)
		return evidence(b, b.events(3).export())
	}
}

// An activation that holds is no finding, and the report names it. So is one that was refused.
func TestActivations(t *testing.T) {
	t.Parallel()
	f, p, _ := activated(func(*builder, *attest.Activation, *record.Access) {})(t)
	rep := run(t, f, p)
	want(t, rep, verify.OutcomeVerified)
	refused, p, _ := activated(func(_ *builder, a *attest.Activation, x *record.Access) {
		a.Secret, x.Denied, a.Challenge.EK[0] = nil, true, 7
	})(t)
	want(t, run(t, refused, p), verify.OutcomeVerified)
}

func TestViolations(t *testing.T) {
	t.Parallel()
	for _, v := range slices.Concat(violations, witnessViolations, tokenViolations) {
		t.Run(v.rule+" "+v.about, func(t *testing.T) {
			t.Parallel()
			f, policy, receipts := v.make(t)
			finding := v.rule
			if v.place != "" {
				finding += "@" + v.place
			}
			want(t, run(t, f, policy, receipts...), verify.OutcomeTampered, finding)
		})
	}
}

func TestRulesOfOtherPackagesAreKnown(t *testing.T) {
	t.Parallel()
	known := map[string]bool{}
	for _, r := range verify.Rules() {
		if known[r.Name] {
			t.Errorf("%s is there twice", r.Name)
		}
		known[r.Name] = true
		if r.Meaning == "" || !strings.HasSuffix(r.Meaning, ".") {
			t.Errorf("%s: its meaning is not a sentence: %q", r.Name, r.Meaning)
		}
	}
	for name := range clock.Rules() {
		if ours := "time." + strings.TrimPrefix(name, "clock-"); !known[ours] {
			t.Errorf("rule %s of package clock is not known as %s", name, ours)
		}
	}
	for name := range attest.Rules {
		if !known[string(name)] {
			t.Errorf("rule %s of package attest is not known", name)
		}
	}
	if len(known) < 40 {
		t.Error(fmt.Sprint(len(known), " rules are too few"))
	}
}
