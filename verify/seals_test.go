package verify_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

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

// Seals taken out of a log by somebody who has its key, and signs it again.
func TestSealsRemoved(t *testing.T) {
	t.Parallel()
	b := newBuilder(t).enrolled().begin().events(5)
	var at []int
	for range 4 {
		at = append(at, len(b.raw))
		b.seal(b.head(b.tree.Size())).events(3)
	}
	receipt := jsonReceipt(t, b.receipt(uint64(len(b.raw)-1)))
	without := func(n int) *builder {
		out := b.cut(at[n])
		for _, raw := range b.raw[at[n]+1:] {
			e, err := record.ParseEntry(raw)
			b.must(err)
			e.Index, e.Prev = out.tree.Size(), out.prev
			out.append(e)
		}
		return out
	}
	// From the middle: the next one is over another log, and does not follow.
	rep := run(t, without(1).export(), b.sealedPolicy())
	for _, rule := range []string{"seal.number", "seal.previous", "seal.pcr.replay", "seal.head"} {
		if rep.Verdict != verify.OutcomeTampered || !slices.ContainsFunc(rep.Findings, func(f verify.Finding) bool { return f.Rule == rule }) {
			t.Errorf("%s is not found:\n%s", rule, text(t, rep))
		}
	}
	// From the end: the start of the daemon shows that, and a receipt; the evidence alone says how far it reaches.
	for _, end := range []*builder{without(3), b.cut(at[3])} {
		rep = run(t, end.export(), b.sealedPolicy())
		want(t, rep, verify.OutcomeVerified)
		if u := rep.Unanchored; u == nil || u.From != uint64(at[2]) {
			t.Errorf("unanchored: %+v", u)
		}
	}
	want(t, run(t, without(3).events(9).export(), b.sealedPolicy(), receipt), verify.OutcomeTampered, "receipt.entry@"+fmt.Sprint(len(b.raw)-1))
}

// Against somebody who could reset or clear the TPM, seals anchor what was there before the counter grew last: such a history can be
// replaced from there on, and the report says that it rests on the TPM not having been reset.
func TestRangeThatAResetCouldReplace(t *testing.T) {
	t.Parallel()
	b := newBuilder(t).enrolled().begin().events(5)
	b.seal(b.head(6)).events(3)
	b.seal(b.head(10)).events(3)
	old, number, quote := b.cut(len(b.raw)), b.chip.number, b.chip.quote
	b.chip.increment = true
	b.seal(b.head(14)).events(3)
	honest := run(t, b.export(), b.sealedPolicy())
	receipt := jsonReceipt(t, b.receipt(16))

	// Put back within the increment, the machine cleared or its counter redefined, and another history sealed.
	old.chip.number, old.chip.quote, old.chip.increment, old.chip.counter = number, quote, true, old.chip.counter-1
	old.chip.reset()
	forged := old.events(4)
	forged.seal(forged.head(18)).events(2)
	rep := run(t, forged.export(), b.sealedPolicy())
	for _, rep := range []*verify.Report{honest, rep} {
		want(t, rep, verify.OutcomeVerified)
		if u := rep.Resettable; u == nil || u.From != 10 || u.To != rep.Size || !strings.Contains(text(t, rep), "entries 10 to") {
			t.Errorf("resettable: %+v\n%s", u, text(t, rep))
		}
	}
	want(t, run(t, forged.export(), b.sealedPolicy(), receipt), verify.OutcomeTampered, "receipt.entry@16")
	if rep := run(t, b.export(), b.sealedPolicy(), receipt); rep.Resettable != nil && rep.Resettable.From != 18 {
		t.Errorf("resettable, with a receipt: %+v", rep.Resettable)
	}
}

// What a declared recovery says is lost is reported so: never as tampered with, and never as verified unless the auditor accepts it.
func TestDeclaredRecovery(t *testing.T) {
	t.Parallel()
	b := newBuilder(t).enrolled().begin().events(5)
	b.seal(b.head(6)).events(3)
	n, quote, size := b.chip.number, b.chip.quote, len(b.raw)
	kept := b.receipt(4)
	b.add(record.KindEvent, &record.Producer{UID: 1000}, []byte(`{"type":"lost"}`))
	gone := b.receipt(uint64(size))
	survived, under := b.receipt(4), b.receipt(4).TLogProof()
	b.seal(b.head(b.tree.Size()))

	undeclared := b.cut(size)
	undeclared.chip = b.chip
	log := b.cut(size)
	log.add(record.KindSystem, nil, []byte(`{"code":"rollback","event":"alarm"}`))
	log.stamp.Sys += 1000
	leaf := log.recovery(n, quote)
	log.seal(log.head(log.tree.Size())).events(4)
	after := log.receipt(log.tree.Size() - 1)
	fork := log.cut(len(log.raw) - 1)
	fork.add(record.KindEvent, &record.Producer{UID: 1000}, []byte(`{"type":"fork"}`))
	f := log.export()

	accepting := b.sealedPolicy()
	accepting.Recoveries = append(accepting.Recoveries, leaf)
	other := b.sealedPolicy()
	other.Recoveries = append(other.Recoveries, record.Hash{1})
	for _, p := range []*verify.Policy{b.sealedPolicy(), other, accepting} {
		rep := run(t, f, p, jsonReceipt(t, kept), jsonReceipt(t, gone), jsonReceipt(t, after))
		verdict := verify.OutcomeNotCheckable
		if p == accepting {
			verdict = verify.OutcomeVerified
		}
		want(t, rep, verdict)
		if x := rep.Recoveries; len(x) != 1 || x[0].Seal != 1 || x[0].From != 6 || x[0].Index != uint64(size+1) || x[0].Why != "the disk failed" || x[0].Accepted != (p == accepting) {
			t.Errorf("recoveries: %+v", x)
		}
		if got := rep.Receipts; got[0].Status != verify.Verified || got[1].Status != verify.Lost || got[2].Status != verify.Verified {
			t.Errorf("receipts: %+v", got)
		}
		if out := text(t, rep); !strings.Contains(out, `lost, declared`) || !strings.Contains(out, "the disk failed") {
			t.Error(out)
		}
		if c := claim(t, rep, verify.ClaimSeals); c.Status != verify.Verified || c.To != uint64(size+2) {
			t.Errorf("%+v", c)
		}
	}
	// The entry survived, the tree of its receipt did not.
	for _, r := range []verify.Receipt{jsonReceipt(t, survived), {Name: "4.tlog-proof", Data: under}} {
		rep := run(t, f, accepting, r)
		want(t, rep, verify.OutcomeNotCheckable)
		if why := rep.Receipts[0].Why; !strings.Contains(why, "declare") {
			t.Error(why)
		}
	}
	want(t, run(t, f, accepting, verify.Receipt{Name: "x.tlog-proof", Data: gone.TLogProof()}), verify.OutcomeNotCheckable)
	// A witness saw the lost head: before the declaration that is so, after it the log shows two histories.
	for _, c := range []struct {
		after   time.Duration
		verdict verify.Verdict
		finding []string
	}{{-time.Hour, verify.OutcomeVerified, nil}, {time.Hour, verify.OutcomeTampered, []string{"witness.tree"}}} {
		shown := f.clone()
		shown["witness/0"] = cosignedAt(t, gone.Checkpoint, 1, uint64(time.Unix(0, log.stamp.Sys).Add(c.after).Unix()))
		p := *accepting
		p.Witnesses = []verify.Witness{{Name: "w", VKey: witnessKey(t, 1)}}
		want(t, run(t, shown, &p), c.verdict, c.finding...)
	}
	// What came after the recovery is not excused by it.
	want(t, run(t, fork.export(), accepting, jsonReceipt(t, after)), verify.OutcomeTampered, fmt.Sprintf("receipt.entry@%d", len(log.raw)-1))
	// Nor is a history that goes on without declaring anything.
	undeclared.chip.number, undeclared.chip.quote, undeclared.chip.increment = n, quote, true
	undeclared.seal(undeclared.head(undeclared.tree.Size()))
	if rep := run(t, undeclared.export(), accepting); rep.Verdict != verify.OutcomeTampered {
		t.Error(text(t, rep))
	}
}

func TestRecoveryInALogWithoutTPM(t *testing.T) {
	t.Parallel()
	b := newBuilder(t).enrolled()
	b.genesis.TPM = nil
	b.begin().events(5).recovery(0, record.Hash{})
	want(t, run(t, b.export(), b.policy()), verify.OutcomeTampered, "seal.recovery@6")
}
