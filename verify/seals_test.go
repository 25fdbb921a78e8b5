package verify_test

import (
	"strings"
	"testing"

	"bulla/record"
	"bulla/verify"
)

// sealedPolicy wants seals.
func (b *builder) sealedPolicy() *verify.Policy {
	b.t.Helper()
	p := b.policy()
	p.NoSeals = false
	return p
}

// Heads of every position within bundles and tiles are computed, from what was judged before the seal.
func TestSealsOfEverySize(t *testing.T) {
	t.Parallel()
	b := newBuilder(t).enrolled().begin()
	for _, n := range []int{1, 5, 200, 47, 1, 1, 255, 256, 500, 3} {
		b.events(n)
		b.seal(b.head(b.tree.Size()))
		b.seal(b.head(b.tree.Size() - 1)) // the head before the last seal: a log that took nothing meanwhile
	}
	sealed := b.tree.Size() - 2
	b.events(10)
	rep := run(t, b.export(), b.sealedPolicy())
	want(t, rep, verify.OutcomeVerified)
	for _, name := range []string{verify.ClaimSeals, verify.ClaimRollback} {
		if c := claim(t, rep, name); c.Status != verify.Verified || c.To != sealed || !c.Required {
			t.Errorf("%+v", c)
		}
	}
	if u := rep.Unanchored; u == nil || u.From != sealed || u.To != b.tree.Size() {
		t.Errorf("unanchored: %+v", u)
	}
}

func TestLogWithoutSealsIsNotChecked(t *testing.T) {
	t.Parallel()
	b := newBuilder(t).enrolled().begin().events(3)
	rep := run(t, b.export(), b.sealedPolicy())
	want(t, rep, verify.OutcomeNotCheckable)
	if why := claim(t, rep, verify.ClaimSeals).Why; why != "the log holds no seal" {
		t.Error(why)
	}
	if rep.Unanchored == nil || rep.Unanchored.From != 0 {
		t.Errorf("unanchored: %+v", rep.Unanchored)
	}
}

// Who has the HSM's key can sign any history; the TPM's seals are of another.
func TestHistoryRewrittenWithAStolenKey(t *testing.T) {
	t.Parallel()
	honest := newBuilder(t).enrolled().begin().events(300)
	body := honest.sealed(honest.head(301))

	rewritten := newBuilder(t).enrolled().begin().events(99)
	rewritten.add(record.KindEvent, &record.Producer{UID: 1000}, []byte(`{"type":"harmless"}`))
	rewritten.events(200)
	rewritten.add(record.KindSeal, nil, body)
	rep := run(t, rewritten.events(5).export(), rewritten.sealedPolicy())
	want(t, rep, verify.OutcomeTampered, "seal.head@301")
	if rep.Unanchored == nil || rep.Unanchored.From != 0 {
		t.Errorf("unanchored: %+v", rep.Unanchored)
	}
}

func TestSealsThatDoNotFit(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		about    string
		make     func(b *builder)
		findings []string
	}{
		{"a seal over itself", func(b *builder) {
			h := b.head(20)
			h.Size = 21
			b.seal(h)
		}, []string{"seal.head@20"}},
		{"a seal over what does not exist", func(b *builder) {
			h := b.head(20)
			h.Size = 9_000_000_000
			b.seal(h)
		}, []string{"seal.head@20"}},
		{"a seal of another log only", func(b *builder) {
			h := b.head(20)
			h.Log = "other.example/log"
			b.seal(h)
		}, []string{"seal.head@20"}},
		{"a later seal over less", func(b *builder) { b.seal(b.head(20)).seal(b.head(10)) }, []string{"seal.head.order@21"}},
		{"the same seal twice", func(b *builder) {
			body := b.sealed(b.head(20))
			b.add(record.KindSeal, nil, body)
			b.add(record.KindSeal, nil, body)
		}, nil},
		{"a body that is none", func(b *builder) { b.add(record.KindSeal, nil, []byte(`{}`)) }, []string{"seal.format@20"}},
	} {
		b := newBuilder(t).enrolled().begin().events(19)
		c.make(b)
		rep := run(t, b.events(3).export(), b.sealedPolicy())
		if c.findings != nil {
			want(t, rep, verify.OutcomeTampered, c.findings...)
		} else if rep.Verdict != verify.OutcomeTampered || len(rep.Findings) > 8 {
			t.Errorf("%s: %s", c.about, text(t, rep))
		}
	}
}

func TestSealInALogWithoutTPM(t *testing.T) {
	t.Parallel()
	b := newBuilder(t).enrolled()
	b.genesis.TPM = nil
	b.begin().events(5).seal(b.head(6))
	want(t, run(t, b.export(), b.policy()), verify.OutcomeTampered, "seal.enrolment@6")
}

// A tile that was changed is one finding; the heads of seals behind it are computed from the entries.
func TestChangedTileDoesNotAccuseSeals(t *testing.T) {
	t.Parallel()
	b := newBuilder(t).enrolled().begin().events(600)
	b.seal(b.head(300)).events(300)
	f := b.export()
	f["tile/0/001"][33] ^= 1
	f["tile/1/000.p/3"][33] ^= 1
	rep := run(t, f, b.sealedPolicy())
	want(t, rep, verify.OutcomeTampered, "tile.hash@257", "tile.hash@256")
	if why := claim(t, rep, verify.ClaimSeals).Why; !strings.Contains(why, "the head that the seal in entry 601 names cannot be computed") {
		t.Error(why)
	}
}

// Behind an event that was changed the fold goes on, for further findings; behind a seal that was changed it does not.
func TestFindingsBehindDamage(t *testing.T) {
	t.Parallel()
	b := newBuilder(t).enrolled().begin().events(20)
	b.seal(b.head(21)).events(3)
	h := b.head(22)
	h.Hash = record.Hash{1}
	b.seal(h)
	f := b.export()
	damaged := f.clone()
	replace(damaged, "tile/entries/000.p/26", "number 5", "number 6")
	rep := run(t, damaged, b.sealedPolicy())
	want(t, rep, verify.OutcomeTampered, "tree.leaf@5", "seal.head@25")
	if c := claim(t, rep, verify.ClaimGovernance); c.Status != verify.NotCheckable || c.To != 5 {
		t.Errorf("%+v", c)
	}
	damaged = f.clone()
	replace(damaged, "tile/entries/000.p/26", `"reason":"interval"`, `"reason":"intervals"`)
	rep = run(t, damaged, b.sealedPolicy())
	if rep.Verdict != verify.OutcomeTampered || *rep.Findings[0].Index != 21 || len(rep.Findings) != 1 {
		t.Error(text(t, rep))
	}
}
