package verify_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"bulla/record"
	"bulla/verify"
)

// witnessKey is the verifier key of witness n.
func witnessKey(t testing.TB, n byte) string {
	t.Helper()
	v, err := record.WitnessVKey(fmt.Sprintf("witness.example/w%d", n), testEd25519(n).Public().(ed25519.PublicKey))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// cosigned is a signed note with a line of witness n more, which states the time n.
func cosigned(t testing.TB, signed []byte, n byte) []byte {
	t.Helper()
	return cosignedAt(t, signed, n, uint64(n))
}

func cosignedAt(t testing.TB, signed []byte, n byte, seconds uint64) []byte {
	t.Helper()
	text, _, _ := bytes.Cut(signed, []byte("\n\n"))
	text = append(bytes.Clone(text), '\n')
	v, err := record.NewWitnessVerifier(witnessKey(t, n))
	if err != nil {
		t.Fatal(err)
	}
	raw := binary.BigEndian.AppendUint32(nil, v.KeyHash())
	raw = binary.BigEndian.AppendUint64(raw, seconds)
	raw = append(raw, ed25519.Sign(testEd25519(n), record.CosignatureInput(seconds, text))...)
	return fmt.Appendf(bytes.Clone(signed), "— %s %s\n", v.Name(), base64.StdEncoding.EncodeToString(raw))
}

// witnessed is the builder's policy with witnesses w1 to w3, and a quorum of two of them.
func witnessed(b *builder) *verify.Policy {
	p := b.policy()
	for n := byte(1); n <= 3; n++ {
		p.Witnesses = append(p.Witnesses, verify.Witness{Name: fmt.Sprintf("w%d", n), VKey: witnessKey(b.t, n)})
	}
	p.Groups = []verify.Group{{Name: "two", Threshold: 2, Members: []string{"w1", "w2", "w3"}}}
	p.Quorum = "two"
	return p
}

func TestCosignaturesAreAnchors(t *testing.T) {
	t.Parallel()
	b := newBuilder(t).begin().events(300)
	first := b.sign()
	at300 := b.tree.Size()
	second := b.events(100).sign()
	at400 := b.tree.Size()
	honest := b.events(200).export()
	size := b.tree.Size()
	for _, c := range []struct {
		about    string
		files    files
		verdict  verify.Verdict
		anchored uint64
		why      string
	}{
		{"nothing cosigned", files{}, verify.OutcomeNotCheckable, 0, "quorum two is not reached: cosignatures were found of 0 of the policy's 3 witnesses"},
		{"one witness", files{"witness/0": cosigned(t, first, 1)}, verify.OutcomeNotCheckable, 0, "of 1 of the policy's 3"},
		{"one witness twice", files{"witness/0": cosigned(t, first, 1), "witness/1": cosigned(t, second, 1)}, verify.OutcomeNotCheckable, 0, "of 1 of the policy's 3"},
		{"two on one head", files{"witness/0": cosigned(t, cosigned(t, first, 1), 3)}, verify.OutcomeVerified, at300, ""},
		{"two on two heads", files{"witness/0": cosigned(t, second, 2), "witness/1": cosigned(t, first, 1)}, verify.OutcomeVerified, at300, ""},
		{"three on two heads", files{"witness/0": cosigned(t, cosigned(t, second, 2), 3), "witness/1": cosigned(t, first, 1)}, verify.OutcomeVerified, at400, ""},
		{"on the head itself", files{"checkpoint": cosigned(t, cosigned(t, honest["checkpoint"], 2), 3)}, verify.OutcomeVerified, size, ""},
		{"a witness that the policy does not name", files{"witness/0": cosigned(t, cosigned(t, first, 1), 4)}, verify.OutcomeNotCheckable, 0, "of 1 of the policy's 3"},
		{"a gap in the numbers", files{"witness/1": cosigned(t, cosigned(t, first, 1), 3)}, verify.OutcomeNotCheckable, 0, "of 0 of the policy's 3"},
		{"the log's own lines are not needed", files{"witness/0": cosigned(t, cosigned(t, unsigned(first), 1), 3)}, verify.OutcomeVerified, at300, ""},
	} {
		f := honest.clone()
		maps.Copy(f, c.files)
		rep := run(t, f, witnessed(b))
		want(t, rep, c.verdict)
		got := claim(t, rep, verify.ClaimWitnesses)
		if got.To != c.anchored || !strings.Contains(got.Why, c.why) || !got.Required {
			t.Errorf("%s: %+v", c.about, got)
		}
		if c.anchored < size && (rep.Unanchored == nil || *rep.Unanchored != verify.Range{From: c.anchored, To: size}) || c.anchored == size && rep.Unanchored != nil {
			t.Errorf("%s: unanchored %+v", c.about, rep.Unanchored)
		}
		// Without a quorum they are no anchors, and nothing is asked of them.
		rep = run(t, f, b.policy())
		want(t, rep, verify.OutcomeVerified)
		if got := claim(t, rep, verify.ClaimWitnesses); got.Status != verify.NotCheckable || got.Required || rep.Unanchored == nil || rep.Unanchored.From != 0 {
			t.Errorf("%s, without a quorum: %+v, unanchored %+v", c.about, got, rep.Unanchored)
		}
	}
	f := honest.clone()
	f["witness/0"] = cosigned(t, cosigned(t, second, 2), 3)
	rep := run(t, f, witnessed(b))
	if w := rep.Witnesses; len(w) != 3 || w[0].Size != nil || w[1].Name != "w2" || *w[1].Size != at400 || w[1].Time != 2 || w[2].Time != 3 {
		t.Errorf("%+v", w)
	}
}

// unsigned is a note that only witnesses will have signed.
func unsigned(signed []byte) []byte {
	text, _, _ := bytes.Cut(signed, []byte("\n\n"))
	return append(bytes.Clone(text), "\n\n"...)
}

func TestQuorumsOfGroups(t *testing.T) {
	t.Parallel()
	b := newBuilder(t).begin().events(9)
	f := b.export()
	head := f["checkpoint"]
	policy, err := b.policy().MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		groups string
		signed []byte // witnesses
		ok     bool
	}{
		{"quorum w1", []byte{1}, true},
		{"quorum w1", []byte{2, 3}, false},
		{"group g any w1 w2\nquorum g", []byte{2}, true},
		{"group g all w1 w2\nquorum g", []byte{2}, false},
		{"group g all w1 w2\nquorum g", []byte{2, 1}, true},
		{"group a all w1 w2\ngroup b any w3 w4\ngroup both all a b\nquorum both", []byte{1, 2, 4}, true},
		{"group a all w1 w2\ngroup b any w3 w4\ngroup both all a b\nquorum both", []byte{1, 3, 4}, false},
		{"group a all w1 w2\ngroup g 2 a w3 w4\nquorum g", []byte{3, 4}, true},
		{"group a all w1 w2\ngroup g 2 a w3 w4\nquorum g", []byte{1, 3}, false},
	} {
		lines := strings.Replace(string(policy), "quorum none\n", "", 1)
		for n := byte(1); n <= 4; n++ {
			lines += fmt.Sprintf("witness w%d %s\n", n, witnessKey(t, n))
		}
		p, err := verify.ParsePolicy([]byte(lines + c.groups + "\n"))
		if err != nil {
			t.Fatal(err)
		}
		signed := head
		for _, n := range c.signed {
			signed = cosigned(t, signed, n)
		}
		g := f.clone()
		g["witness/0"] = signed
		verdict := verify.OutcomeNotCheckable
		if c.ok {
			verdict = verify.OutcomeVerified
		}
		if rep := run(t, g, p); rep.Verdict != verdict {
			t.Errorf("%q signed by %v: %s", c.groups, c.signed, text(t, rep))
		}
	}
}

// cosignedEvidence is a log of 600 events with a head over 300 that w1 and w2 cosigned, after a change to it.
func cosignedEvidence(change func(t *testing.T, b *builder, f files)) func(*testing.T) (files, *verify.Policy, []verify.Receipt) {
	return func(t *testing.T) (files, *verify.Policy, []verify.Receipt) {
		b := newBuilder(t).begin().events(300)
		old := b.sign()
		f := b.events(300).export()
		f["witness/0"] = cosigned(t, cosigned(t, old, 1), 2)
		change(t, b, f)
		return f, witnessed(b), nil
	}
}

var witnessViolations = []violation{
	{"witness.format", "", "a cosigned checkpoint has a line more", cosignedEvidence(func(_ *testing.T, _ *builder, f files) {
		f["witness/1"] = bytes.Replace(f["witness/0"], []byte("\n\n"), []byte("\nmore\n\n"), 1)
	})},
	{"witness.format", "", "a cosigned checkpoint is of another log", cosignedEvidence(func(t *testing.T, _ *builder, f files) {
		f["witness/1"] = cosigned(t, []byte("other.example/log\n1\nMSaNjJjKJBLy1QAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n\n"), 1)
	})},
	{"witness.signature", "", "a cosigned checkpoint says another root", cosignedEvidence(func(_ *testing.T, b *builder, f files) {
		f["witness/1"] = bytes.Replace(f["witness/0"], []byte("\n301\n"), []byte("\n302\n"), 1)
	})},
	{"witness.signature", "", "a cosignature is of another head", cosignedEvidence(func(t *testing.T, b *builder, f files) {
		line := func(b []byte) []byte { return b[bytes.LastIndex(b[:len(b)-1], []byte("\n"))+1:] }
		f["witness/1"] = append(b.sign(), line(f["witness/0"])...)
	})},
	{"witness.signature", "", "the head carries a cosignature of another", cosignedEvidence(func(t *testing.T, b *builder, f files) {
		line := func(b []byte) []byte { return b[bytes.LastIndex(b[:len(b)-1], []byte("\n"))+1:] }
		f["checkpoint"] = append(f["checkpoint"], line(f["witness/0"])...)
	})},
	{"witness.beyond", "", "the log was cut back to before what witnesses saw", func(t *testing.T) (files, *verify.Policy, []verify.Receipt) {
		b := newBuilder(t).begin().events(300)
		f := b.export()
		f["witness/0"] = cosigned(t, b.events(1).sign(), 1)
		return f, witnessed(b), nil
	}},
	{"witness.tree", "", "the log was rewritten behind what witnesses saw, with its own keys", func(t *testing.T) (files, *verify.Policy, []verify.Receipt) {
		b, again := newBuilder(t).begin().events(300), newBuilder(t).begin().events(200)
		again.add(record.KindEvent, &record.Producer{UID: 1000}, []byte(`{"type":"a"}`))
		f := again.events(400).export()
		f["witness/0"] = cosigned(t, cosigned(t, b.sign(), 1), 3)
		return f, witnessed(again), nil
	}},
	{"witness.tree", "", "the witnesses alone say so", func(t *testing.T) (files, *verify.Policy, []verify.Receipt) {
		b, again := newBuilder(t).begin().events(300), newBuilder(t).begin().events(200)
		again.add(record.KindEvent, &record.Producer{UID: 1000}, []byte(`{"type":"a"}`))
		f := again.events(400).export()
		f["witness/0"] = cosigned(t, unsigned(b.sign()), 1)
		return f, witnessed(again), nil
	}},
}

func TestCosignedByNobodyKnown(t *testing.T) {
	t.Parallel()
	b := newBuilder(t).begin().events(9)
	f := b.export()
	f["witness/0"] = cosigned(t, unsigned(f["checkpoint"]), 5)
	rep := run(t, f, b.policy())
	want(t, rep, verify.OutcomeVerified)
	if !slices.ContainsFunc(rep.Remarks, func(s string) bool { return strings.HasPrefix(s, "witness/0 is signed by nobody") }) {
		t.Error(rep.Remarks)
	}
}

// No byte of a cosigned checkpoint can be flipped so that it still counts.
func TestNoByteOfACosignedCheckpointCanBeFlipped(t *testing.T) {
	t.Parallel()
	b := newBuilder(t).begin().events(40)
	f := b.export()
	f["witness/0"] = cosigned(t, cosigned(t, b.sign(), 1), 2)
	p := witnessed(b)
	want(t, run(t, f, p), verify.OutcomeVerified)
	for at := range f["witness/0"] {
		bad := f.clone()
		bad["witness/0"][at] ^= 1 << (at % 8)
		if rep := run(t, bad, p); rep.Verdict == verify.OutcomeVerified && !unknownLine(rep) {
			t.Fatalf("verified with byte %d flipped\n%s", at, text(t, rep))
		}
	}
}

func TestExportCopiesWhatWitnessesCosigned(t *testing.T) {
	t.Parallel()
	b := newBuilder(t).begin().events(300)
	f := b.export()
	f["witness/0"], f["witness/1"] = cosigned(t, b.sign(), 1), cosigned(t, b.sign(), 2)
	out := files{}
	done := make(chan struct{}, 1)
	_, err := verify.Export(context.Background(), f, func(name string, data []byte) error {
		done <- struct{}{}
		out[name] = bytes.Clone(data)
		<-done
		return nil
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"witness/0", "witness/1"} {
		if !bytes.Equal(out[name], f[name]) {
			t.Errorf("%s: %q", name, out[name])
		}
	}
	if !bytes.Contains(out["README.md"], []byte("| `witness/` |")) {
		t.Errorf("%s", out["README.md"][:1000])
	}
	want(t, run(t, out, witnessed(b)), verify.OutcomeVerified)
}

// However a cosigned checkpoint is changed, it does not count as cosigned by more, or over more, than it was.
func FuzzCosigned(f *testing.F) {
	b := newBuilder(f).begin().events(20)
	half := cosigned(f, b.sign(), 1)
	honest := b.events(20).export()
	p := b.policy()
	p.Witnesses, p.Quorum = []verify.Witness{{Name: "w1", VKey: witnessKey(f, 1)}}, "w1"
	f.Add(half)
	f.Add(honest["checkpoint"])
	f.Add(unsigned(half))
	f.Fuzz(func(t *testing.T, in []byte) {
		files := honest.clone()
		files["witness/0"] = in
		rep := run(t, files, p)
		got := claim(t, rep, verify.ClaimWitnesses)
		if text, _, _ := bytes.Cut(half, []byte("\n\n")); rep.Verdict == verify.OutcomeVerified && (got.To != 21 || !bytes.HasPrefix(in, append(bytes.Clone(text), "\n\n"...))) {
			t.Fatalf("%q vouches for %d entries", in, got.To)
		}
	})
}

// The lines about witnesses have one meaning: what is read is written, and read again as the same.
func FuzzWitnessLines(f *testing.F) {
	b := newBuilder(f).begin()
	text, err := b.policy().MarshalText()
	if err != nil {
		f.Fatal(err)
	}
	log := strings.Replace(string(text), "quorum none\n", "", 1)
	f.Add("witness w1 " + witnessKey(f, 1) + "\nwitness w2 " + witnessKey(f, 2) + " https://w\ngroup g all w1 w2\nquorum g\n")
	f.Add("witness w1 " + witnessKey(f, 1) + "\ngroup g 1 w1\ngroup h any g\nquorum h\n")
	f.Fuzz(func(t *testing.T, lines string) {
		p, err := verify.ParsePolicy([]byte(log + lines))
		if err != nil {
			return
		}
		out, err := p.MarshalText()
		if err != nil {
			t.Fatal(err)
		}
		again, err := verify.ParsePolicy(out)
		if err != nil || again.Quorum != p.Quorum || !slices.Equal(again.Witnesses, p.Witnesses) || len(again.Groups) != len(p.Groups) {
			t.Fatalf("%q became %q: %v", lines, out, err)
		}
	})
}
