package verify_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"bulla/record"
	"bulla/verify"
)

// again verifies evidence that something was seen of before.
func again(t testing.TB, src verify.Source, p *verify.Policy, m *verify.Memory, earlier ...verify.Earlier) *verify.Report {
	t.Helper()
	rep, err := verify.Run(t.Context(), src, p, verify.Options{Earlier: earlier, Recall: func(string, record.Hash) (*verify.Memory, error) { return m, nil }})
	if err != nil {
		t.Fatal(err)
	}
	return rep
}

// remembered is what a run leaves of a log as it is now, after the way through its file.
func (b *builder) remembered(p *verify.Policy) *verify.Memory {
	b.t.Helper()
	rep := run(b.t, b.export(), p)
	if rep.Memory == nil {
		b.t.Fatal("nothing is remembered\n" + text(b.t, rep))
	}
	file, err := rep.Memory.Encode()
	b.must(err)
	m, err := verify.ParseMemory(file)
	b.must(err)
	return m
}

// note is the log's head as it is now, kept as a file.
func (b *builder) note() verify.Earlier {
	b.t.Helper()
	e, err := verify.NewEarlier("kept.checkpoint", b.sign())
	b.must(err)
	return e
}

// kept is an export of the log as it is now.
func (b *builder) kept() verify.Earlier {
	b.t.Helper()
	e, err := verify.ReadEarlier(b.t.Context(), "last-year", b.export())
	b.must(err)
	return e
}

// A log that only grew extends all that was seen of it, at whatever size that was.
func TestContinuityOfHonestLogs(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 2, 255, 256, 257, 600} {
		b := newBuilder(t).enrolled().begin().events(n - 1)
		if n > 2 {
			b.seal(b.head(b.tree.Size()))
		}
		m, note, kept, size := b.remembered(b.policy()), b.note(), b.kept(), b.tree.Size()
		want(t, again(t, b.export(), b.policy(), m, note, kept), verify.OutcomeVerified) // nothing new
		b.events(300)
		b.seal(b.head(b.tree.Size()))
		rep := again(t, b.events(5).export(), b.policy(), m, note, kept)
		want(t, rep, verify.OutcomeVerified)
		if c := claim(t, rep, verify.ClaimContinuity); c.Status != verify.Verified || !c.Required || c.To != size {
			t.Errorf("%d entries: %+v", n, c)
		}
		if len(rep.Earlier) != 3 || slices.ContainsFunc(rep.Earlier, func(e verify.EarlierResult) bool { return e.Status != verify.Verified || e.Size != size }) {
			t.Errorf("%d entries: %+v", n, rep.Earlier)
		}
		if rep.Memory == nil || rep.Memory.Size != b.tree.Size() || rep.Memory.Seal == nil || rep.Memory.Root != b.tree.Root() {
			t.Errorf("%d entries: remembered is %+v", n, rep.Memory)
		}
		// What somebody else remembers is no anchor: otherwise it would be enough to verify twice.
		if !strings.Contains(text(t, rep), "Seen before") || rep.Unanchored == nil {
			t.Error(text(t, rep))
		}
	}
	b := newBuilder(t).begin().events(5)
	if c := claim(t, again(t, b.export(), b.policy(), nil), verify.ClaimContinuity); c.Required || c.Why != "no earlier export or checkpoint was given" {
		t.Errorf("%+v", c)
	}
}

// continuity is a log that breaks one rule, in view of what was seen before.
type continuity struct {
	rule, about string
	make        func(b *builder) (files, *verify.Policy, *verify.Memory, []verify.Earlier)
}

// rewritten is a log whose entries differ from entry 200 on, signed over with its own keys.
func rewritten(b *builder) files {
	fork := b.cut(200)
	fork.add(record.KindEvent, &record.Producer{UID: 1000}, []byte(`{"type":"fork"}`))
	return fork.events(300).export()
}

var continuityViolations = []continuity{
	{"continuity.beyond", "a run saw more", func(b *builder) (files, *verify.Policy, *verify.Memory, []verify.Earlier) {
		return b.cut(200).export(), b.policy(), b.remembered(b.policy()), nil
	}},
	{"continuity.beyond", "a checkpoint is over more", func(b *builder) (files, *verify.Policy, *verify.Memory, []verify.Earlier) {
		return b.cut(200).export(), b.policy(), nil, []verify.Earlier{b.note()}
	}},
	{"continuity.beyond", "an earlier export has more", func(b *builder) (files, *verify.Policy, *verify.Memory, []verify.Earlier) {
		return b.cut(200).export(), b.policy(), nil, []verify.Earlier{b.kept()}
	}},
	{"continuity.tree", "a run saw another log", func(b *builder) (files, *verify.Policy, *verify.Memory, []verify.Earlier) {
		return rewritten(b), b.policy(), b.remembered(b.policy()), nil
	}},
	{"continuity.tree", "a checkpoint is over another log", func(b *builder) (files, *verify.Policy, *verify.Memory, []verify.Earlier) {
		return rewritten(b), b.policy(), nil, []verify.Earlier{b.note()}
	}},
	{"continuity.tree", "an earlier export is another log", func(b *builder) (files, *verify.Policy, *verify.Memory, []verify.Earlier) {
		return rewritten(b), b.policy(), nil, []verify.Earlier{b.kept()}
	}},
	{"continuity.signature", "a checkpoint was changed", func(b *builder) (files, *verify.Policy, *verify.Memory, []verify.Earlier) {
		e, err := verify.NewEarlier("changed", bytes.Replace(b.sign(), []byte("\n301\n"), []byte("\n300\n"), 1))
		b.must(err)
		return b.events(3).export(), b.policy(), nil, []verify.Earlier{e}
	}},
	{"continuity.counter", "the counter went back, and a recovery says so", func(b *builder) (files, *verify.Policy, *verify.Memory, []verify.Earlier) {
		return wentBack(b.t, func(c *chip) { c.counter -= 2 })
	}},
	{"continuity.clock", "the clock went back, and a recovery says so", func(b *builder) (files, *verify.Policy, *verify.Memory, []verify.Earlier) {
		return wentBack(b.t, func(c *chip) { c.ticks -= 1000 })
	}},
}

// wentBack is a log whose TPM is not as far as was remembered, when officers declare that nothing is lost.
func wentBack(t testing.TB, change func(c *chip)) (files, *verify.Policy, *verify.Memory, []verify.Earlier) {
	log := town(t)
	log.events(3).sealOn()
	m := log.remembered(log.trust())
	change(log.chip)
	log.recovery(log.chip.number, log.chip.quote, log.whole())
	log.seal(log.head(log.tree.Size()))
	return log.export(), log.trust(), m, nil
}

func TestEachRuleOfContinuityIsBrokenAlone(t *testing.T) {
	t.Parallel()
	broken := map[string]bool{}
	for _, v := range continuityViolations {
		broken[v.rule] = true
		t.Run(v.rule+" "+v.about, func(t *testing.T) {
			t.Parallel()
			b := newBuilder(t).enrolled().begin().events(150)
			b.seal(b.head(b.tree.Size())).events(149)
			f, p, m, earlier := v.make(b)
			rep := again(t, f, p, m, earlier...)
			want(t, rep, verify.OutcomeTampered, v.rule)
			if rep.Memory != nil || claim(t, rep, verify.ClaimContinuity).Status != verify.Violated {
				t.Errorf("remembered is %+v\n%s", rep.Memory, text(t, rep))
			}
		})
	}
	for _, r := range verify.Rules() {
		if r.Claim == verify.ClaimContinuity && !broken[r.Name] {
			t.Errorf("no test breaks %s", r.Name)
		}
	}
}

// What a declared recovery says is lost was seen before: no contradiction, and no continuity either unless the policy pins the genesis of
// the officers who say so.
func TestContinuityAcrossADeclaredRecovery(t *testing.T) {
	t.Parallel()
	b := town(t)
	b.events(5).sealOn()
	n, quote, size := b.chip.number, b.chip.quote, len(b.raw)
	b.events(2)
	b.seal(b.head(b.tree.Size()))
	m, note, kept, known := b.remembered(b.trust()), b.note(), b.kept(), b.whole()
	b.events(60)
	hidden := b.kept()

	log := b.cut(size)
	log.recovery(n, quote, known)
	log.seal(log.head(log.tree.Size()))
	for range 40 {
		log.system(`{"event":"config"}`)
	}
	after := log.remembered(log.trust())
	f, pinning, trusting := log.export(), log.trust(), log.trust()
	trusting.Genesis = nil

	for _, c := range []struct {
		about   string
		policy  *verify.Policy
		m       *verify.Memory
		earlier []verify.Earlier
		verdict verify.Verdict
		status  verify.Status
	}{
		{"remembered, no genesis pinned", trusting, m, nil, verify.OutcomeNotCheckable, verify.NotCheckable},
		{"remembered", pinning, m, nil, verify.OutcomeVerified, verify.Lost},
		{"an export, no genesis pinned", trusting, nil, []verify.Earlier{kept}, verify.OutcomeNotCheckable, verify.NotCheckable},
		{"an export", pinning, nil, []verify.Earlier{kept}, verify.OutcomeVerified, verify.Lost},
		{"a checkpoint, which does not say of when it is", pinning, nil, []verify.Earlier{note}, verify.OutcomeNotCheckable, verify.NotCheckable},
		{"remembered after the recovery", pinning, after, nil, verify.OutcomeVerified, verify.Verified},
	} {
		rep := again(t, f, c.policy, c.m, c.earlier...)
		want(t, rep, c.verdict)
		if len(rep.Earlier) != 1 || rep.Earlier[0].Status != c.status || (rep.Memory != nil) != (c.verdict == verify.OutcomeVerified) {
			t.Errorf("%s: %+v, remembered %+v", c.about, rep.Earlier, rep.Memory)
		}
	}
	// What was seen beyond the head that the officers knew of is not excused by the recovery, nor is a history put back behind it.
	want(t, again(t, f, pinning, nil, hidden), verify.OutcomeTampered, "continuity.beyond")
	fork := log.cut(len(log.raw) - 9)
	for range 50 {
		fork.system(`{"event":"stop"}`)
	}
	want(t, again(t, fork.export(), pinning, after), verify.OutcomeTampered, "continuity.tree")
	want(t, again(t, fork.export(), pinning, nil, log.kept()), verify.OutcomeTampered, "continuity.tree")
}

func TestEarlierThatSaysNothing(t *testing.T) {
	t.Parallel()
	b, other := newBuilder(t).begin().events(10), newBuilder(t)
	other.origin = "other.example/log"
	other.begin().events(10)
	stranger := newBuilder(t)
	stranger.keys = stranger.keys[:0:0]
	stranger.keys = append(stranger.keys, testKey(t, 9))
	stranger.begin().events(3)
	for about, c := range map[string]struct {
		e   verify.Earlier
		why string
	}{"of another log": {other.note(), "not of this one"}, "signed by a stranger": {stranger.note(), "signed by no key"}} {
		rep := again(t, b.export(), b.policy(), nil, c.e)
		want(t, rep, verify.OutcomeNotCheckable)
		if !strings.Contains(rep.Earlier[0].Why, c.why) || rep.Memory != nil {
			t.Errorf("%s: %+v", about, rep.Earlier)
		}
	}
	if _, err := verify.NewEarlier("x", []byte("hello")); err == nil || !strings.Contains(err.Error(), "x is no signed checkpoint") {
		t.Error(err)
	}
	if _, err := verify.ReadEarlier(t.Context(), "x", files{}); err == nil || !strings.Contains(err.Error(), "x holds no checkpoint") {
		t.Error(err)
	}
}

// Nothing is remembered of what was not read, or that nobody known signed; and what is remembered is of one log.
func TestWhatIsRemembered(t *testing.T) {
	t.Parallel()
	b := newBuilder(t).begin().events(300)
	damaged := b.export()
	delete(damaged, "tile/entries/001.p/45")
	delete(damaged, "tile/0/001.p/45")
	empty := newBuilder(t)
	for about, f := range map[string]files{"a bundle is missing": damaged, "an empty log": empty.export()} {
		if rep := run(t, f, b.policy()); rep.Memory != nil {
			t.Errorf("%s: %+v", about, rep.Memory)
		}
	}
	if rep := run(t, b.export(), nil); rep.Memory == nil { // by the log's own word: continuity needs no more
		t.Error(text(t, rep))
	}
	m := b.remembered(b.policy())
	m.Log = "other.example/log"
	_, err := verify.Run(t.Context(), b.export(), b.policy(), verify.Options{Recall: func(string, record.Hash) (*verify.Memory, error) { return m, nil }})
	if err == nil || !strings.Contains(err.Error(), "give another file") {
		t.Error(err)
	}
	broken := errors.New("broken")
	_, err = verify.Run(t.Context(), b.export(), b.policy(), verify.Options{Recall: func(log string, genesis record.Hash) (*verify.Memory, error) {
		if log != origin || genesis != record.LeafHash(b.raw[0]) {
			t.Errorf("asked for %s, %v", log, genesis)
		}
		return nil, broken
	}})
	if !errors.Is(err, broken) {
		t.Error(err)
	}
}

// A memory that was damaged anywhere is refused, never taken for another.
func TestDamagedMemoryIsRefused(t *testing.T) {
	t.Parallel()
	b := newBuilder(t).enrolled().begin().events(9)
	b.seal(b.head(b.tree.Size()))
	file, err := b.remembered(b.policy()).Encode()
	b.must(err)
	for at := range file {
		for bit := range 8 {
			bad := bytes.Clone(file)
			bad[at] ^= 1 << bit
			if _, err := verify.ParseMemory(bad); err == nil {
				t.Fatalf("bit %d of byte %d flipped, and it was read", bit, at)
			}
		}
		if _, err := verify.ParseMemory(file[:at]); err == nil {
			t.Fatalf("cut to %d bytes, and it was read", at)
		}
	}
	for about, change := range map[string]func(*verify.Memory){
		"version": func(m *verify.Memory) { m.V = 2 }, "no size": func(m *verify.Memory) { m.Size = 0 },
		"no genesis": func(m *verify.Memory) { m.Genesis = "" }, "no time": func(m *verify.Memory) { m.Time = "yesterday" }, "no log": func(m *verify.Memory) { m.Log = " " },
	} {
		m := b.remembered(b.policy())
		change(m)
		if _, err := m.Encode(); err == nil {
			t.Errorf("%s: encoded", about)
		}
	}
}

func FuzzMemory(f *testing.F) {
	b := newBuilder(f).enrolled().begin().events(9)
	b.seal(b.head(b.tree.Size()))
	file, err := b.remembered(b.policy()).Encode()
	b.must(err)
	f.Add(file)
	f.Add([]byte("{}\n" + fmt.Sprintf("%x\n", make([]byte, 32))))
	f.Fuzz(func(t *testing.T, in []byte) {
		m, err := verify.ParseMemory(in)
		if err != nil {
			return
		}
		if out, err := m.Encode(); err != nil || !bytes.Equal(in, out) {
			t.Fatalf("%q became %q, %v", in, out, err)
		}
	})
}
