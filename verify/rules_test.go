package verify_test

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

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

// forged is a log whose keeper has the keys and logs what he should not: everything is signed over.
func forged(forge func(b *builder)) func(*testing.T) (files, *verify.Policy, []verify.Receipt) {
	return func(t *testing.T) (files, *verify.Policy, []verify.Receipt) {
		b := newBuilder(t).begin().events(9)
		forge(b)
		b.events(5)
		return evidence(b, b.export())
	}
}

// spoilt is a receipt of an honest log that was changed.
func spoilt(spoil func(t *testing.T, b *builder, r *record.Receipt)) func(*testing.T) (files, *verify.Policy, []verify.Receipt) {
	return func(t *testing.T) (files, *verify.Policy, []verify.Receipt) {
		b := newBuilder(t).begin().events(300)
		r := b.receipt(7)
		spoil(t, b, &r)
		b.events(300)
		return evidence(b, b.export(), jsonReceipt(t, r))
	}
}

var violations = []violation{
	{"checkpoint.format", "", "the checkpoint's text has a line more", edited("checkpoint", func(b []byte) []byte {
		return bytes.Replace(b, []byte("\n\n"), []byte("\nextension\n\n"), 1)
	})},
	{"bundle.format", "256", "a bundle is cut, and there is no tile to tell the entries by", func(t *testing.T) (files, *verify.Policy, []verify.Receipt) {
		b := newBuilder(t).begin().events(600)
		f := b.export()
		delete(f, "tile/0/001")
		f["tile/entries/001"] = f["tile/entries/001"][:1000]
		return evidence(b, f)
	}},
	{"bundle.length", "256", "the length of an entry is one too large", edited("tile/entries/001", func(b []byte) []byte { b[1]++; return b })},
	{"bundle.partial", "512", "an older copy of the last bundle has one entry changed", func(t *testing.T) (files, *verify.Policy, []verify.Receipt) {
		b := newBuilder(t).begin().events(600)
		f := b.export()
		f["tile/entries/002.p/3"] = bytes.Replace(bundle(b.raw[512:515]), []byte("number 513"), []byte("number 999"), 1)
		return evidence(b, f)
	}},
	{"entry.canonical", "3", "a space was added within an entry", rebundled("tile/entries/000", func(raw [][]byte) [][]byte {
		raw[3] = bytes.Replace(raw[3], []byte(`,"index"`), []byte(`, "index"`), 1)
		return raw
	})},
	{"entry.canonical", "10", "the log itself signed an entry with a space", forged(func(b *builder) {
		raw, err := b.entry(record.KindEvent, &record.Producer{UID: 1000}, []byte(`{"type":"a"}`)).Append(nil)
		b.must(err)
		b.addRaw(bytes.Replace(raw, []byte(`,"index"`), []byte(`, "index"`), 1))
	})},
	{"entry.body", "10", "a system record of an event that there is not", forged(func(b *builder) {
		b.add(record.KindSystem, nil, []byte(`{"event":"party"}`))
	})},
	{"entry.producer", "10", "an event from nobody", forged(func(b *builder) {
		b.add(record.KindEvent, nil, []byte(`{"type":"a"}`))
	})},
	{"entry.producer", "10", "a record of the machine from a user", forged(func(b *builder) {
		b.add(record.KindSystem, &record.Producer{UID: 1000}, []byte(`{"event":"start"}`))
	})},
	{"tile.format", "256", "a tile is cut", edited("tile/0/001", func(b []byte) []byte { return b[:len(b)-1] })},
	{"tile.format", "0", "a tile above level 0 is too long", edited("tile/1/000.p/2", func(b []byte) []byte { return append(b, 0) })},
	{"tile.hash", "257", "a hash in a tile was changed", edited("tile/0/001", func(b []byte) []byte { b[32] ^= 1; return b })},
	{"tile.hash", "600", "the hash of the last entry was changed", edited("tile/0/002.p/89", func(b []byte) []byte { b[88*32] ^= 1; return b })},
	{"tile.hash", "256", "a hash in a tile above level 0 was changed", edited("tile/1/000.p/2", func(b []byte) []byte { b[32] ^= 1; return b })},
	{"tile.partial", "0", "an older copy of a tile has one hash changed", func(t *testing.T) (files, *verify.Policy, []verify.Receipt) {
		b := newBuilder(t).begin().events(600)
		f := b.export()
		f["tile/0/000.p/9"] = b.tile(tlog.Tile{H: 8, L: 0, N: 0, W: 9})
		f["tile/0/000.p/9"][70] ^= 1
		return evidence(b, f)
	}},

	{"entry.index", "10", "an entry says another index", forged(func(b *builder) {
		e := b.entry(record.KindEvent, &record.Producer{UID: 1000}, []byte(`{"type":"a"}`))
		e.Index += 3
		raw, err := e.Append(nil)
		b.must(err)
		b.addRaw(raw)
	})},
	{"entry.log", "10", "an entry of another log, linked into this one", forged(func(b *builder) {
		e := b.entry(record.KindEvent, &record.Producer{UID: 1000}, []byte(`{"type":"a"}`))
		e.Log = "other.example/log"
		raw, err := e.Append(nil)
		b.must(err)
		b.addRaw(raw)
	})},
	{"chain.prev", "10", "an entry was replaced and the head signed again with a stolen key, but not what links to it", forged(func(b *builder) {
		b.prev = record.LeafHash([]byte("what was here before"))
	})},

	{"tree.leaf", "300", "a letter of an entry was changed", rebundled("tile/entries/001", func(raw [][]byte) [][]byte {
		raw[44] = bytes.Replace(raw[44], []byte("number 300"), []byte("number 301"), 1)
		return raw
	})},
	{"tree.leaf", "600", "a letter of the last entry was changed", rebundled("tile/entries/002.p/89", func(raw [][]byte) [][]byte {
		raw[88] = bytes.Replace(raw[88], []byte("number 600"), []byte("number 601"), 1)
		return raw
	})},
	{"tree.leaf", "255", "the last entry of a bundle was changed", rebundled("tile/entries/000", func(raw [][]byte) [][]byte {
		raw[255] = bytes.Replace(raw[255], []byte("number 255"), []byte("number 256"), 1)
		return raw
	})},
	{"entry.missing", "300", "an entry was dropped", rebundled("tile/entries/001", func(raw [][]byte) [][]byte {
		return slices.Delete(raw, 44, 45)
	})},
	{"entry.extra", "300", "an entry was put in", rebundled("tile/entries/001", func(raw [][]byte) [][]byte {
		return slices.Insert(raw, 44, bytes.Replace(raw[44], []byte("number 300"), []byte("number 3e0"), 1))
	})},
	{"entry.order", "300", "two entries were swapped", rebundled("tile/entries/001", func(raw [][]byte) [][]byte {
		raw[44], raw[45] = raw[45], raw[44]
		return raw
	})},
	{"tree.root", "", "the head is of another history, signed by the log's own keys", func(t *testing.T) (files, *verify.Policy, []verify.Receipt) {
		b := newBuilder(t).begin().events(600)
		other := newBuilder(t).begin().events(599)
		other.add(record.KindEvent, &record.Producer{UID: 1000}, []byte(`{"type":"a"}`))
		f := b.export()
		f["checkpoint"] = other.sign()
		return evidence(b, f)
	}},

	{"checkpoint.signature", "", "the head's ECDSA line is missing", edited("checkpoint", func(b []byte) []byte {
		text, lines, _ := bytes.Cut(b, []byte("\n\n"))
		_, rest, _ := bytes.Cut(lines, []byte("\n"))
		return slices.Concat(text, []byte("\n\n"), rest)
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
	{"checkpoint.origin", "", "the head carries a line by the key of another log that the policy trusts", func(t *testing.T) (files, *verify.Policy, []verify.Receipt) {
		b := newBuilder(t).begin().events(9)
		p, f := b.policy(), b.export()
		v, err := record.VKey("other.example/log", testKey(t, 7).Public())
		b.must(err)
		p.VKeys = append(p.VKeys, v)
		s, err := record.NewSigner("other.example/log", testKey(t, 7))
		b.must(err)
		text, lines, _ := bytes.Cut(f["checkpoint"], []byte("\n\n"))
		more, err := note.Sign(&note.Note{Text: string(text) + "\n"}, s)
		b.must(err)
		f["checkpoint"] = append(more, lines...)
		return f, p, nil
	}},

	{"genesis.format", "0", "the genesis names no key", func(t *testing.T) (files, *verify.Policy, []verify.Receipt) {
		b := newBuilder(t)
		b.genesis.Origin = origin
		body, err := record.MarshalCanonical(b.genesis)
		b.must(err)
		b.add(record.KindGenesis, nil, body)
		return evidence(b, b.export())
	}},
	{"genesis.fingerprint", "0", "the log was made anew with the same keys", func(t *testing.T) (files, *verify.Policy, []verify.Receipt) {
		b, again := newBuilder(t).begin().events(9), newBuilder(t)
		again.genesis.Software = "other"
		return again.begin().events(9).export(), b.policy(), nil
	}},
	{"governance.unauthorised", "10", "a proposal in a log without officers", forged(func(b *builder) {
		b.add(record.KindProposal, nil, []byte(`{"action":"officers.set"}`))
	})},
	{"governance.unauthorised", "10", "a second genesis", forged(func(b *builder) {
		body, err := record.MarshalCanonical(b.genesis)
		b.must(err)
		b.add(record.KindGenesis, nil, body)
	})},
	{"governance.role", "10", "an event from a user without the role", forged(func(b *builder) {
		b.add(record.KindEvent, &record.Producer{UID: 666, GID: 666}, []byte(`{"type":"a"}`))
	})},

	{"receipt.format", "", "a receipt that is none", func(t *testing.T) (files, *verify.Policy, []verify.Receipt) {
		b := newBuilder(t).begin().events(9)
		return evidence(b, b.export(), verify.Receipt{Name: "x.json", Data: []byte(`{"entry":1}`)})
	}},
	{"receipt.signature", "7", "the receipt's head was changed", spoilt(func(t *testing.T, b *builder, r *record.Receipt) {
		r.Checkpoint = bytes.Replace(r.Checkpoint, []byte("\n301\n"), []byte("\n299\n"), 1)
	})},
	{"receipt.proof", "7", "the receipt's entry was changed", spoilt(func(t *testing.T, b *builder, r *record.Receipt) {
		r.Entry = bytes.Replace(r.Entry, []byte("number 7"), []byte("number 8"), 1)
	})},
	{"receipt.entry", "7", "the log was rewritten from the receipt's entry on", func(t *testing.T) (files, *verify.Policy, []verify.Receipt) {
		b, again := newBuilder(t).begin().events(300), newBuilder(t).begin().events(6)
		again.add(record.KindEvent, &record.Producer{UID: 1000}, []byte(`{"type":"a"}`))
		return evidence(again, again.events(400).export(), jsonReceipt(t, b.receipt(7)))
	}},
	{"receipt.entry", "7", "the same, told by a receipt without its entry", func(t *testing.T) (files, *verify.Policy, []verify.Receipt) {
		b, again := newBuilder(t).begin().events(300), newBuilder(t).begin().events(6)
		again.add(record.KindEvent, &record.Producer{UID: 1000}, []byte(`{"type":"a"}`))
		return evidence(again, again.events(400).export(), verify.Receipt{Name: "7.tlog-proof", Data: b.receipt(7).TLogProof()})
	}},
	{"receipt.tree", "7", "the log was rewritten behind the receipt's entry", func(t *testing.T) (files, *verify.Policy, []verify.Receipt) {
		b, again := newBuilder(t).begin().events(300), newBuilder(t).begin().events(200)
		again.add(record.KindEvent, &record.Producer{UID: 1000}, []byte(`{"type":"a"}`))
		return evidence(again, again.events(400).export(), jsonReceipt(t, b.receipt(7)))
	}},

	{"time.evidence", "10", "a record of the clock before any start", forged(func(b *builder) {
		e, _ := b.round()
		b.clock(&e)
	})},
	{"time.order", "11", "two rounds have one number", mistimed(func(b *builder) {
		first, _ := b.round()
		b.clock(&first)
		b.machine.number--
		again, _ := b.round()
		b.clock(&again)
	})},
	{"time.round", "10", "a round claims a smaller bound than its samples give", mistimed(func(b *builder) {
		e, _ := b.round()
		e.Round.Mapping.Bound /= 2
		b.clock(&e)
	})},
	{"time.state", "10", "the clock's state changes by time passing when none has passed", mistimed(func(b *builder) {
		b.clock(&clock.Evidence{Transition: &clock.Transition{Base: 1, Reason: clock.ReasonAge, From: clock.Synced, To: clock.Holdover, Reading: b.machine.reading()}})
	})},
	{"time.missing", "10", "an event names a round that is not in the log", mistimed(func(b *builder) {
		e := b.event()
		e.Stamp.Round = 2
		b.append(e)
	})},
	{"time.stamp", "10", "an event was dated back by an hour", mistimed(func(b *builder) {
		e := b.event()
		e.Stamp.Sys -= int64(time.Hour)
		b.append(e)
	})},
	{"time.policy", "1", "an event was taken before the clock was known", func(t *testing.T) (files, *verify.Policy, []verify.Receipt) {
		b := newBuilder(t)
		b.genesis.Clock = clock.DefaultPolicy()
		b.begin().events(1)
		return evidence(b, b.export())
	}},
	{"time.policy", "1", "the clock is judged by another policy than the governed", func(t *testing.T) (files, *verify.Policy, []verify.Receipt) {
		b := newBuilder(t).begin()
		b.genesis.Clock.Limit++
		b.startClock()
		return evidence(b, b.export())
	}},
	{"enrolment.endorsement", "0", "an endorsement key without a certificate, where the policy names its makers", func(t *testing.T) (files, *verify.Policy, []verify.Receipt) {
		b := newBuilder(t).enrolled().begin().events(5)
		p := b.policy()
		p.EKRoots = [][]byte{testRoot(t)}
		return b.export(), p, nil
	}},
	{"enrolment.ak", "0", "another attestation key than the policy names", func(t *testing.T) (files, *verify.Policy, []verify.Receipt) {
		b := newBuilder(t).enrolled().begin().events(5)
		p := b.policy()
		p.AKs = [][]byte{append([]byte{0, 11}, make([]byte, 32)...)}
		return b.export(), p, nil
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

// testRoot is a certificate of an authority.
func testRoot(t *testing.T) []byte {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true, NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<32, 0)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, testKey(t, 9).Public(), testKey(t, 9))
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestEachRuleIsBrokenAlone(t *testing.T) {
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

func TestEveryRuleHasAViolation(t *testing.T) {
	t.Parallel()
	for _, r := range verify.Rules() {
		if strings.HasPrefix(r.Name, "seal.") || r.Claim == verify.ClaimContinuity || r.Name == "copy.differs" { // package attest breaks its own; the vectors the other
			continue
		}
		if !slices.ContainsFunc(slices.Concat(violations, witnessViolations, tokenViolations), func(v violation) bool { return v.rule == r.Name }) {
			t.Errorf("no test breaks %s", r.Name)
		}
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
