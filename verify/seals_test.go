package verify_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"bulla/attest"
	"bulla/ceremony"
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

// What officers declare lost is reported so, and never as tampered with; up to the head that they knew of, and from a genesis that the
// auditor pins.
func TestDeclaredRecovery(t *testing.T) {
	t.Parallel()
	b := town(t)
	first := b.tree.Size()
	b.events(3)
	sealed := b.tree.Size()
	b.seal(b.head(sealed)).events(3)
	n, quote, size := b.chip.number, b.chip.quote, len(b.raw)
	kept := b.receipt(first)
	b.add(record.KindEvent, &record.Producer{UID: 1000}, []byte(`{"type":"lost"}`))
	gone, known := b.receipt(uint64(size)), b.whole()
	survived := b.receipt(first)
	b.events(1)
	hidden := b.receipt(known.Size)
	b.seal(b.head(b.tree.Size())).events(30)
	far := b.receipt(b.tree.Size() - 1)

	undeclared, log := b.cut(size), b.cut(size)
	closed := log.recovery(n, quote, known)
	covered := log.tree.Size()
	log.seal(log.head(covered)).system(`{"event":"stop"}`)
	after := log.receipt(log.tree.Size() - 1)
	f, pinning, trusting := log.export(), log.trust(), log.trust()
	trusting.Genesis = nil
	for _, p := range []*verify.Policy{pinning, trusting} {
		rep := run(t, f, p, jsonReceipt(t, kept), jsonReceipt(t, gone), jsonReceipt(t, after))
		verdict, status := verify.OutcomeVerified, verify.Verified
		if p == trusting {
			verdict, status = verify.OutcomeNotCheckable, verify.NotCheckable
		}
		want(t, rep, verdict)
		if x := rep.Recovery; x == nil || x.Seal != 1 || x.From != sealed || x.To != known.Size || x.Index != closed || x.Why != "the disk failed" {
			t.Errorf("recovery: %+v", x)
		}
		if got := rep.Receipts; got[0].Status != verify.Verified || got[1].Status != verify.Lost || got[2].Status != verify.Verified {
			t.Errorf("receipts: %+v", got)
		}
		for _, name := range []string{verify.ClaimReceipts, verify.ClaimRollback} {
			if c := claim(t, rep, name); c.Status != status {
				t.Errorf("%+v, want %s", c, status)
			}
		}
		if told := rep.Timeline.Ceremonies; told[len(told)-1].What != verify.MarkLost || told[len(told)-1].Entry != closed {
			t.Errorf("told of ceremonies: %+v", told)
		}
		if out := text(t, rep); !strings.Contains(out, `lost, declared`) || !strings.Contains(out, "the disk failed") {
			t.Error(out)
		}
		if c := claim(t, rep, verify.ClaimSeals); c.Status != verify.Verified || c.To != covered {
			t.Errorf("%+v", c)
		}
	}
	// The entry survived, the tree of its receipt did not.
	for _, r := range []verify.Receipt{jsonReceipt(t, survived), {Name: "first.tlog-proof", Data: survived.TLogProof()}} {
		rep := run(t, f, pinning, r)
		want(t, rep, verify.OutcomeNotCheckable)
		if why := rep.Receipts[0].Why; !strings.Contains(why, "declare") {
			t.Error(why)
		}
	}
	want(t, run(t, f, pinning, verify.Receipt{Name: "x.tlog-proof", Data: gone.TLogProof()}), verify.OutcomeNotCheckable)
	// What the officers did not know of is not declared lost, be the log as long by now or not.
	want(t, run(t, f, pinning, jsonReceipt(t, hidden)), verify.OutcomeTampered, fmt.Sprintf("receipt.entry@%d", hidden.Index))
	want(t, run(t, f, pinning, jsonReceipt(t, far)), verify.OutcomeTampered, fmt.Sprintf("receipt.entry@%d", far.Index))
	// A witness saw the lost head: before the declaration that is so, after it the log shows two histories.
	for _, c := range []struct {
		policy  *verify.Policy
		after   time.Duration
		verdict verify.Verdict
		finding []string
	}{
		{pinning, -time.Hour, verify.OutcomeVerified, nil},
		{trusting, -time.Hour, verify.OutcomeNotCheckable, nil},
		{pinning, time.Hour, verify.OutcomeTampered, []string{"witness.tree"}},
	} {
		shown := f.clone()
		shown["witness/0"] = cosignedAt(t, gone.Checkpoint, 1, uint64(time.Unix(0, log.stamp.Sys).Add(c.after).Unix()))
		p := *c.policy
		p.Witnesses = []verify.Witness{{Name: "w", VKey: witnessKey(t, 1)}}
		want(t, run(t, shown, &p), c.verdict, c.finding...)
	}
	// What came after the recovery is not excused by it, and events do not come.
	fork := log.cut(len(log.raw) - 1)
	fork.system(`{"event":"config"}`)
	want(t, run(t, fork.export(), pinning, jsonReceipt(t, after)), verify.OutcomeTampered, fmt.Sprintf("receipt.entry@%d", after.Index))
	fork.events(1)
	want(t, run(t, fork.export(), pinning), verify.OutcomeTampered, fmt.Sprintf("governance.unauthorised@%d", len(fork.raw)-1))
	// One officer alone, with the machine, excuses nothing.
	alone := b.cut(size)
	document := alone.proposing(&ceremony.RecoveryDeclare{Known: known, Reason: "it was I", Surviving: alone.whole()}, same)
	alone.enactWith(1, document, &ceremony.Recovered{TPM: &attest.Recovery{Previous: quote, Seal: n}})
	rep := run(t, alone.export(), pinning, jsonReceipt(t, gone))
	want(t, rep, verify.OutcomeTampered, fmt.Sprintf("governance.unauthorised@%d", size+1), fmt.Sprintf("receipt.entry@%d", size))
	if rep.Recovery != nil {
		t.Errorf("%+v", rep.Recovery)
	}
	// Nor is a history that goes on without declaring anything.
	undeclared.chip.number, undeclared.chip.quote, undeclared.chip.increment = n, quote, true
	undeclared.seal(undeclared.head(undeclared.tree.Size()))
	if rep := run(t, undeclared.export(), pinning); rep.Verdict != verify.OutcomeTampered || rep.Recovery != nil {
		t.Error(text(t, rep))
	}
}

// Every seal quotes the PCRs that the policy wants. One that was quoted before officers changed the policy may come behind the change;
// the next one may not lack any.
func TestQuotedPCRs(t *testing.T) {
	t.Parallel()
	grown := func(t *testing.T, old, now []int) *council {
		b := repeated(t).enrolled()
		b.genesis.Seal.PCRs = old
		c := people(t, b)
		c.begin()
		c.approveGenesis("alice", "bob").startClock().measure().events(1)
		c.follow()
		p := c.state.Policy
		p.Seal.PCRs = now
		document := c.proposing(&ceremony.PolicySet{Clock: p.Clock, Quotas: p.Quotas, Seal: p.Seal, Roles: p.Roles}, same)
		c.approve(1, document, "bob")
		c.enact(document)
		return c
	}
	for _, x := range []struct {
		about    string
		old, now []int
		seals    int // each quotes PCRs 0 and that of the seals
		found    []int
	}{
		{"all that is wanted", []int{0, sealPCR}, []int{0, sealPCR}, 2, nil},
		{"less is wanted now", []int{0, 7, sealPCR}, []int{0, sealPCR}, 2, nil},
		{"more is wanted now", []int{0, sealPCR}, []int{0, 7, sealPCR}, 1, nil},
		{"more was wanted before", []int{0, sealPCR}, []int{0, 7, sealPCR}, 2, []int{1}},
		{"it was never there", []int{7, sealPCR}, []int{2, 7, sealPCR}, 1, []int{0}},
	} {
		t.Run(x.about, func(t *testing.T) {
			t.Parallel()
			c := grown(t, x.old, x.now)
			first := len(c.raw)
			for range x.seals {
				c.seal(c.head(c.tree.Size()))
			}
			verdict, findings := verify.OutcomeVerified, []string(nil)
			for _, i := range x.found {
				verdict, findings = verify.OutcomeTampered, append(findings, fmt.Sprintf("seal.pcr.selection@%d", first+i))
			}
			want(t, run(t, c.export(), c.trust()), verdict, findings...)
		})
	}
}

// What the machine says of its TPM when officers declare a recovery must go on from the last seal that is there, and show in the next.
func TestRecoveryThatDoesNotFit(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		about   string
		declare func(log *council, n uint64, quote record.Hash)
		finding string
		behind  int // the end of the log
	}{
		{"behind another seal of the number", func(log *council, n uint64, _ record.Hash) { log.recovery(n, record.Hash{1}, log.whole()) }, "seal.recovery", 1},
		{"behind an earlier seal", func(log *council, n uint64, _ record.Hash) { log.recovery(n-1, record.Hash{1}, log.whole()) }, "seal.recovery", 1},
		{"with another counter", func(log *council, n uint64, quote record.Hash) {
			log.chip.counter--
			log.recovery(n, quote, log.whole())
			log.chip.counter++
		}, "seal.counter.growth", 0},
	} {
		b := town(t)
		b.events(3)
		for range 2 {
			b.sealOn()
		}
		log := b.cut(len(b.raw))
		b.sealOn()
		last, err := record.ParseEntry(log.raw[len(log.raw)-2])
		b.must(err)
		n, quote := uint64(2), quoteOf(t, last.Body)
		c.declare(log, n, quote)
		log.seal(log.head(log.tree.Size()))
		rep := run(t, log.export(), log.trust())
		if x := rep.Findings; rep.Verdict != verify.OutcomeTampered || len(x) != 1 || x[0].Rule != c.finding || *x[0].Index != log.tree.Size()-1-uint64(c.behind) {
			t.Errorf("%s: %s", c.about, text(t, rep))
		}
	}
}

// quoteOf is the hash that a seal's successor names.
func quoteOf(t testing.TB, body []byte) record.Hash {
	t.Helper()
	s, err := attest.ParseSeal(body)
	if err != nil {
		t.Fatal(err)
	}
	return sha256.Sum256(s.Quote.Attest)
}

// Without a TPM nothing shows that a log was put back but what others hold; officers can declare it all the same.
func TestRecoveryInALogWithoutTPM(t *testing.T) {
	t.Parallel()
	c := hamlet(t)
	size := len(c.raw)
	c.events(1)
	gone, known := jsonReceipt(t, c.receipt(uint64(size))), c.whole()
	log, forged := c.cut(size), c.cut(size)
	log.recovery(0, record.Hash{}, known)
	rep := run(t, log.export(), log.trust(), gone)
	want(t, rep, verify.OutcomeVerified)
	if x := rep.Recovery; x == nil || x.From != uint64(size) || x.To != known.Size || rep.Receipts[0].Status != verify.Lost {
		t.Errorf("%+v, %+v", x, rep.Receipts)
	}
	forged.chip = &chip{}
	closed := forged.recovery(0, record.Hash{}, known)
	forged.chip = nil
	want(t, run(t, forged.export(), forged.trust(), gone), verify.OutcomeTampered, fmt.Sprintf("governance.unauthorised@%d", closed), fmt.Sprintf("receipt.entry@%d", size))
}

// A policy of somebody who came after the TPM was replaced names the TPM that is there now. What it lacks of the first is missing, if it trusts the
// genesis; what names none of the log's TPMs is contradicted.
func TestReplacedTPM(t *testing.T) {
	t.Parallel()
	log := town(t)
	next := log.replaceTPM(func(*attest.Enrolment) {})
	f, first, stranger := log.export(), log.genesis.TPM.AKName, bytes.Repeat([]byte{9}, 34)
	for _, c := range []struct {
		about    string
		aks      [][]byte
		genesis  bool
		verdict  verify.Verdict
		missing  string
		findings []string
	}{
		{"both", [][]byte{first, next.AKName}, true, verify.OutcomeVerified, "", nil},
		{"the first", [][]byte{first}, true, verify.OutcomeNotCheckable, fmt.Sprintf("add the line: ak %x", next.AKName), nil},
		{"the other", [][]byte{next.AKName}, true, verify.OutcomeNotCheckable, fmt.Sprintf("add the line: ak %x", first), nil},
		{"the other, and no genesis", [][]byte{next.AKName}, false, verify.OutcomeTampered, "", []string{"enrolment.ak@0"}},
		{"neither", [][]byte{stranger}, true, verify.OutcomeTampered, fmt.Sprintf("add the line: ak %x", next.AKName), []string{"enrolment.ak@0"}},
	} {
		t.Run(c.about, func(t *testing.T) {
			t.Parallel()
			p := log.trust()
			if p.AKs = c.aks; !c.genesis {
				p.Genesis = nil
			}
			rep := run(t, f, p)
			want(t, rep, c.verdict, c.findings...)
			if why := claim(t, rep, verify.ClaimSeals).Why; !strings.Contains(why, c.missing) {
				t.Errorf("seals: %q, want %q", why, c.missing)
			}
		})
	}
}

// The same of makers of TPMs.
func TestReplacedTPMOfAnotherMaker(t *testing.T) {
	t.Parallel()
	const name = "Maker of the other"
	log := town(t)
	log.replaceTPM(func(next *attest.Enrolment) { log.certify(next, 53, name) })
	p, f, chain := log.trust(), log.export(), log.genesis.TPM.EKCertificates
	first, other := chain[len(chain)-1], maker(t, 53, name)
	p.EKRoots = [][]byte{first, other}
	want(t, run(t, f, p), verify.OutcomeVerified)
	p.EKRoots = [][]byte{other}
	rep := run(t, f, p)
	want(t, rep, verify.OutcomeNotCheckable)
	if why := claim(t, rep, verify.ClaimSeals).Why; !strings.HasPrefix(why, "the genesis enrols a TPM that officers replaced, which none of the policy's authorities certifies") {
		t.Errorf("seals: %q", why)
	}
	p.EKRoots = [][]byte{maker(t, 52, "Another maker")}
	want(t, run(t, f, p), verify.OutcomeTampered, "enrolment.endorsement@0")
}
