package attest_test

import (
	"crypto/sha256"
	"slices"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"bulla/attest"
	"bulla/record"
)

var start = edit{increment: true} // the first seal of a start

// story is what a machine does from its enrolment on: seals and declared recoveries, in order, and the rule that they violate.
type story struct {
	rule attest.Rule // "": none
	name string
	run  func(m *machine) [][]byte
}

// machine is where a story begins.
func (c story) machine(t *testing.T) *machine {
	m := newMachine(t)
	m.size = 3
	if c.name == usedPCR {
		m.extend([32]byte{1})
	}
	return m
}

const usedPCR = "the seal PCR was in use when the machine was enrolled"

// honest is what happens to honest machines.
var honest = []story{
	{"", "a run", func(m *machine) [][]byte {
		return [][]byte{m.seal(start), m.seal(edit{}), m.seal(edit{}), m.seal(edit{increment: true}), m.seal(edit{})}
	}},
	{"", "restarts of the daemon", func(m *machine) [][]byte {
		return [][]byte{m.seal(start), m.seal(start), m.seal(start)}
	}},
	{"", usedPCR, func(m *machine) [][]byte {
		return [][]byte{m.seal(start), m.seal(edit{})}
	}},
	{"", "reset before the first seal", func(m *machine) [][]byte {
		m.reset(0)
		return [][]byte{m.seal(start), m.seal(edit{})}
	}},
	{"", "a reboot", func(m *machine) [][]byte {
		a := m.seal(start)
		m.reset(0)
		return [][]byte{a, m.seal(start), m.seal(edit{})}
	}},
	{"", "power cut, the clock behind by less than a save", func(m *machine) [][]byte {
		a := m.seal(start)
		m.reset(15000)
		return [][]byte{a, m.seal(start), m.seal(edit{})}
	}},
	{"", "power cut, the clock set back to where the counter grew, and called safe too early, as swtpm does", func(m *machine) [][]byte {
		a := m.seal(start)
		m.clock.Clock += 60_000
		b, c := m.seal(start), m.seal(edit{})
		m.clock.Clock += 60_000
		d := m.seal(edit{})
		m.reset(60_000)
		m.clock.Safe = true
		e, f := m.seal(start), m.seal(edit{})
		m.reset(50_000)
		m.clock.Safe = true
		return [][]byte{a, b, c, d, e, f, m.seal(start)}
	}},
	{"", "a declared recovery", func(m *machine) [][]byte {
		a, b := m.seal(start), m.seal(edit{})
		quote, size := m.quote, m.size
		m.seal(edit{})
		m.seal(start)
		m.seal(edit{}) // these are lost: the store is put back
		m.size = size
		return [][]byte{a, b, m.recovery(2, quote), m.seal(start), m.seal(edit{})}
	}},
	{"", "a declared recovery behind a seal that only another log has, and a reset after it", func(m *machine) [][]byte {
		a, size := m.seal(start), m.size
		m.seal(edit{})
		quote := m.quote
		m.size = size
		r := m.recovery(2, quote)
		m.reset(0)
		return [][]byte{a, r, m.recovery(2, quote), m.seal(start), m.seal(edit{})}
	}},
	{"", "a declared recovery before any seal", func(m *machine) [][]byte {
		m.seal(start)
		m.size = 3
		return [][]byte{m.recovery(0, record.Hash{}), m.seal(start)}
	}},
	{"", "several resets without a seal", func(m *machine) [][]byte {
		a := m.seal(start)
		m.reset(0)
		m.reset(100)
		m.reset(0)
		return [][]byte{a, m.seal(start)}
	}},
	{"", "suspended and resumed", func(m *machine) [][]byte {
		a := m.seal(start)
		m.clock.RestartCount++
		return [][]byte{a, m.seal(edit{}), m.seal(edit{})}
	}},
	{"", "suspended between the two signatures", func(m *machine) [][]byte {
		return [][]byte{m.seal(start), m.seal(edit{extend: func() { m.clock.RestartCount++ }}), m.seal(edit{})}
	}},
	{"", "hibernated: the PCRs begin anew", func(m *machine) [][]byte {
		a := m.seal(start)
		m.clock.RestartCount++
		m.pcrs = [24]record.Hash{}
		return [][]byte{a, m.seal(start), m.seal(edit{})}
	}},
	{"", "reset before the statement was made", func(m *machine) [][]byte {
		a, p := m.seal(start), m.begin(edit{statement: func(s *attest.Statement) { s.PCR.Before = record.Hash{} }})
		m.reset(0)
		m.abandon(p)
		return [][]byte{a, m.seal(start), m.seal(edit{})}
	}},
	{"", "reset before the statement went into the PCR", func(m *machine) [][]byte {
		a, p := m.seal(start), m.begin(edit{})
		m.reset(0)
		m.abandon(p)
		return [][]byte{a, m.seal(start), m.seal(edit{})}
	}},
	{"", "reset after the statement went into the PCR", func(m *machine) [][]byte {
		a, p := m.seal(start), m.begin(edit{})
		m.extend(sha256.Sum256(p.statement))
		m.reset(0)
		m.abandon(p)
		return [][]byte{a, m.seal(start), m.seal(edit{})}
	}},
	{"", "the statement went into the PCR after the reset", func(m *machine) [][]byte {
		a, p := m.seal(start), m.begin(edit{})
		m.reset(0)
		m.extend(sha256.Sum256(p.statement))
		m.abandon(p)
		return [][]byte{a, m.seal(start), m.seal(edit{})}
	}},
	{"", "reset in the first seal, and again in the second", func(m *machine) [][]byte {
		m.abandon(m.begin(start))
		m.reset(0)
		p := m.begin(start)
		m.reset(0)
		m.extend(sha256.Sum256(p.statement))
		m.abandon(p)
		p = m.begin(start)
		m.reset(0)
		m.abandon(p)
		return [][]byte{m.seal(start), m.seal(edit{})}
	}},
}

// What happens to honest machines gives no finding.
func TestReplayHonest(t *testing.T) {
	t.Parallel()
	for _, c := range honest {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m := c.machine(t)
			e := m.enrolment()
			if got := replayed(t, e, m.head, c.run(m)...); got != nil {
				t.Errorf("findings %v", got)
			}
		})
	}
}

// A log that was made later begins at the machine's last seal, in the same boot or after a reset.
func TestReplayOfALaterLog(t *testing.T) {
	t.Parallel()
	for _, reset := range []bool{false, true} {
		m := newMachine(t)
		m.size = 3
		m.seal(start)
		m.seal(edit{})
		e := m.enrolment()
		next := edit{}
		if reset {
			m.reset(0)
			next = start
		}
		if got := replayed(t, e, m.head, m.seal(next), m.seal(edit{})); got != nil {
			t.Errorf("reset %t: findings %v", reset, got)
		}
	}
}

// nv changes what the TPM says of its counter.
func nv(t *testing.T, a *tpm2.TPMSAttest, change func(*tpm2.TPMSNVCertifyInfo)) {
	t.Helper()
	info, err := a.Attested.NV()
	if err != nil {
		t.Fatal(err)
	}
	change(info)
	a.Attested = tpm2.NewTPMUAttest(tpm2.TPMSTAttestNV, info)
}

func flip(b []byte) []byte {
	b = slices.Clone(b)
	b[len(b)-1] ^= 1
	return b
}

// violations break each rule alone, but for RuleEnrolment: TestParseAK has what breaks that.
var violations = []story{
	{attest.RuleFormat, "an unknown member", func(m *machine) [][]byte {
		b := m.seal(start)
		return [][]byte{append(b[:len(b)-1:len(b)-1], `,"x":1}`...)}
	}},
	{attest.RuleFormat, "another structure signed: magic", func(m *machine) [][]byte {
		return [][]byte{m.seal(edit{increment: true, certify: func(a *tpm2.TPMSAttest) { a.Magic = 0x41414141 }})}
	}},
	{attest.RuleFormat, "the counter read from within", func(m *machine) [][]byte {
		return [][]byte{m.seal(edit{increment: true, certify: func(a *tpm2.TPMSAttest) {
			nv(m.t, a, func(i *tpm2.TPMSNVCertifyInfo) { i.Offset = 8 })
		}})}
	}},
	{attest.RuleFormat, "a quote in place of the counter", func(m *machine) [][]byte {
		return [][]byte{m.seal(edit{increment: true, seal: func(s *attest.Seal) { s.Counter = s.Quote }})}
	}},
	{attest.RuleCounterSig, "altered", func(m *machine) [][]byte {
		return [][]byte{m.seal(edit{increment: true, seal: func(s *attest.Seal) { s.Counter.Signature = flip(s.Counter.Signature) }})}
	}},
	{attest.RuleQuoteSig, "altered", func(m *machine) [][]byte {
		return [][]byte{m.seal(edit{increment: true, seal: func(s *attest.Seal) { s.Quote.Signature = flip(s.Quote.Signature) }})}
	}},
	{attest.RuleQuoteSig, "another machine's quote", func(m *machine) [][]byte {
		own := m.key
		other := machineWith(m.t, 2)
		b := m.seal(edit{increment: true, extend: func() { m.key = other.key }})
		m.key = own
		return [][]byte{b}
	}},
	{attest.RuleCounterExtra, "for other heads", func(m *machine) [][]byte {
		return [][]byte{m.seal(edit{increment: true, certify: func(a *tpm2.TPMSAttest) { a.ExtraData.Buffer = flip(a.ExtraData.Buffer) }})}
	}},
	{attest.RuleQuoteExtra, "another statement", func(m *machine) [][]byte {
		return [][]byte{m.seal(edit{increment: true, quote: func(a *tpm2.TPMSAttest) { a.ExtraData.Buffer = flip(a.ExtraData.Buffer) }})}
	}},
	{attest.RuleCounterName, "another counter", func(m *machine) [][]byte {
		return [][]byte{m.seal(edit{increment: true, certify: func(a *tpm2.TPMSAttest) {
			nv(m.t, a, func(i *tpm2.TPMSNVCertifyInfo) { i.IndexName.Buffer = flip(i.IndexName.Buffer) })
		}})}
	}},
	{attest.RuleCounterName, "another in the statement", func(m *machine) [][]byte {
		return [][]byte{m.seal(edit{increment: true, statement: func(s *attest.Statement) { s.Counter.Name = flip(s.Counter.Name) }})}
	}},
	{attest.RuleCounterBound, "another attestation", func(m *machine) [][]byte {
		return [][]byte{m.seal(edit{increment: true, statement: func(s *attest.Statement) { s.Counter.Attest[0] ^= 1 }})}
	}},
	{attest.RulePCRDigest, "another value", func(m *machine) [][]byte {
		return [][]byte{m.seal(edit{increment: true, seal: func(s *attest.Seal) { s.PCRs[0].Value[0] ^= 1 }})}
	}},
	{attest.RulePCRSelection, "without the seal PCR", func(m *machine) [][]byte {
		return [][]byte{m.seal(edit{increment: true, pcrs: func(v []attest.PCRValue) []attest.PCRValue { return v[:2] }})}
	}},
	{attest.RulePCRSelection, "another seal PCR", func(m *machine) [][]byte {
		return [][]byte{m.seal(edit{increment: true, statement: func(s *attest.Statement) { s.PCR.Index = 12 }})}
	}},
	{attest.RulePCRExtend, "something else between statement and quote", func(m *machine) [][]byte {
		return [][]byte{m.seal(edit{increment: true, extend: func() { m.extend([32]byte{1}) }})}
	}},
	{attest.RulePCRReplay, "another program extends the PCR", func(m *machine) [][]byte {
		a := m.seal(start)
		m.extend([32]byte{1})
		return [][]byte{a, m.seal(edit{})}
	}},
	{attest.RulePCRReplay, "a fork quoted before the daemon was started", func(m *machine) [][]byte {
		a := m.seal(start)
		m.reset(0)
		m.extend([32]byte{1})
		return [][]byte{a, m.seal(start)}
	}},
	{attest.RuleOneBoot, "reset between the signatures", func(m *machine) [][]byte {
		return [][]byte{m.seal(edit{increment: true, extend: func() { m.clock.ResetCount++ }})}
	}},
	{attest.RuleClock, "back within a seal", func(m *machine) [][]byte {
		return [][]byte{m.seal(edit{increment: true, extend: func() { m.clock.Clock -= 20 }})}
	}},
	{attest.RuleClock, "back within a boot", func(m *machine) [][]byte {
		a := m.seal(start)
		m.clock.Clock -= 1000
		return [][]byte{a, m.seal(edit{})}
	}},
	{attest.RuleClock, "back with a reset, but said to be safe", func(m *machine) [][]byte {
		a, b := m.seal(start), m.seal(start)
		m.reset(1000)
		m.clock.Safe = true
		return [][]byte{a, b, m.seal(start)}
	}},
	{attest.RuleClock, "cleared: fewer resets", func(m *machine) [][]byte {
		a := m.seal(start)
		m.reset(0)
		m.clock.ResetCount = 0
		return [][]byte{a, m.seal(start)}
	}},
	{attest.RuleClock, "fewer restarts", func(m *machine) [][]byte {
		a := m.seal(start)
		m.clock.RestartCount--
		return [][]byte{a, m.seal(edit{})}
	}},
	{attest.RuleSigner, "an AK of the owner's hierarchy", func(m *machine) [][]byte {
		m.signer = primary(tpm2.TPMRHOwner, m.name())
		return [][]byte{m.seal(start)}
	}},
	{attest.RuleFirmware, "two firmwares", func(m *machine) [][]byte {
		return [][]byte{m.seal(edit{increment: true, quote: func(a *tpm2.TPMSAttest) { a.FirmwareVersion++ }})}
	}},
	{attest.RuleNumber, "one left out", func(m *machine) [][]byte {
		return [][]byte{m.seal(start), m.seal(edit{statement: func(s *attest.Statement) { s.Number++ }})}
	}},
	{attest.RulePrevious, "follows on another", func(m *machine) [][]byte {
		return [][]byte{m.seal(start), m.seal(edit{statement: func(s *attest.Statement) { s.Previous[0] ^= 1 }})}
	}},
	{attest.RuleCounterGrow, "by two: another program", func(m *machine) [][]byte {
		a := m.seal(start)
		m.counter += 2
		return [][]byte{a, m.seal(edit{})}
	}},
	{attest.RuleCounterGrow, "back", func(m *machine) [][]byte {
		a := m.seal(start)
		m.counter--
		return [][]byte{a, m.seal(edit{})}
	}},
	{attest.RuleCounterBoot, "none at a boot", func(m *machine) [][]byte {
		a := m.seal(start)
		m.reset(0)
		return [][]byte{a, m.seal(edit{})}
	}},
	{attest.RuleCounterBoot, "the value of an abandoned seal", func(m *machine) [][]byte {
		m.abandon(m.begin(start))
		m.reset(0)
		return [][]byte{m.seal(edit{})}
	}},
	{attest.RuleHead, "another history", func(m *machine) [][]byte {
		return [][]byte{m.rewritten(func(s []attest.Head) []attest.Head { s[1].Hash[0] ^= 1; return s })}
	}},
	{attest.RuleHead, "a log cut off", func(m *machine) [][]byte {
		return [][]byte{m.rewritten(func(s []attest.Head) []attest.Head { s[1].Size = 1000; return s })}
	}},
	{attest.RuleHead, "another log's seal", func(m *machine) [][]byte {
		return [][]byte{m.rewritten(func(s []attest.Head) []attest.Head { return s[:1] })}
	}},
	{attest.RuleHeadOrder, "a smaller log", func(m *machine) [][]byte {
		a := m.seal(start)
		m.size = 2
		b := m.seal(edit{})
		m.size = 100
		return [][]byte{a, b}
	}},
	{attest.RuleRecovery, "behind another seal", func(m *machine) [][]byte {
		return [][]byte{m.seal(start), m.seal(edit{}), m.recovery(2, record.Hash{1}), m.seal(start)}
	}},
	{attest.RuleRecovery, "behind an earlier seal than the log has", func(m *machine) [][]byte {
		a, quote := m.seal(start), m.quote
		return [][]byte{a, m.seal(edit{}), m.recovery(1, quote), m.seal(start)}
	}},
	{attest.RuleRecovery, "one that cannot be read", func(m *machine) [][]byte {
		return [][]byte{m.seal(start), []byte(`{"clock":1}`)}
	}},
	{attest.RuleCounterGrow, "the counter was not as a recovery declares", func(m *machine) [][]byte {
		a := m.seal(start)
		m.counter += 2
		r := m.recovery(1, m.quote)
		m.counter -= 2
		return [][]byte{a, r, m.seal(edit{})}
	}},
	{attest.RulePCRReplay, "the PCR was not as a recovery declares", func(m *machine) [][]byte {
		a, r := m.seal(start), m.recovery(1, m.quote)
		m.extend([32]byte{1})
		return [][]byte{a, r, m.seal(edit{})}
	}},
	{attest.RuleClock, "the clock was not as a recovery declares", func(m *machine) [][]byte {
		a, r := m.seal(start), m.recovery(1, m.quote)
		m.clock.Clock -= 50
		return [][]byte{a, r, m.seal(edit{})}
	}},
	{attest.RuleAbandoned, "without a reset", func(m *machine) [][]byte {
		m.abandon(m.begin(start))
		return [][]byte{m.seal(start)}
	}},
	{attest.RuleAbandoned, "of another PCR", func(m *machine) [][]byte {
		m.abandon(m.begin(edit{statement: func(s *attest.Statement) { s.PCR.Index = 12 }}))
		m.reset(0)
		return [][]byte{m.seal(start)}
	}},
}

// Each rule, violated alone.
func TestRules(t *testing.T) {
	t.Parallel()
	for _, c := range violations {
		t.Run(string(c.rule)+" "+c.name, func(t *testing.T) {
			t.Parallel()
			m := c.machine(t)
			e := m.enrolment()
			if got := replayed(t, e, m.head, c.run(m)...); !slices.Equal(got, []attest.Rule{c.rule}) {
				t.Errorf("violates %v, want %s alone", got, c.rule)
			}
		})
	}
	for r := range attest.Rules {
		if r != attest.RuleEnrolment && !slices.ContainsFunc(violations, func(c story) bool { return c.rule == r }) {
			t.Errorf("no case violates %s", r)
		}
	}
}

// attacks are what somebody does who has the machine: put a copy back, move the log, clear the TPM. Where no rule is violated, the
// span that is not anchored says so.
var attacks = []struct {
	story
	rules []attest.Rule // all that is violated, in order of their names
}{
	{story{name: "the store put back in the same boot", run: func(m *machine) [][]byte {
		a := m.seal(start)
		n, quote, size := m.last, m.quote, m.size
		m.seal(edit{})
		m.last, m.quote, m.size = n, quote, size
		return [][]byte{a, m.seal(edit{})}
	}}, []attest.Rule{attest.RulePCRReplay}},
	{story{name: "the store put back past an increment, the machine reset", run: func(m *machine) [][]byte {
		a := m.seal(start)
		n, quote, size := m.last, m.quote, m.size
		m.seal(start)
		m.last, m.quote, m.size = n, quote, size
		m.reset(0)
		return [][]byte{a, m.seal(start)}
	}}, []attest.Rule{attest.RuleCounterGrow}},
	{story{name: "the TPM cleared, its clock set forward, its resets regrown, the store put back past an increment", run: func(m *machine) [][]byte {
		a := m.seal(start)
		n, quote, size := m.last, m.quote, m.size
		m.seal(start)
		m.last, m.quote, m.size = n, quote, size
		m.cleared()
		return [][]byte{a, m.seal(start)}
	}}, []attest.Rule{attest.RuleCounterGrow}},
	{story{name: "the same, put back within an increment: no rule shows it, and the span is not anchored against it", run: func(m *machine) [][]byte {
		a, b := m.seal(start), m.seal(start)
		n, quote, size := m.last, m.quote, m.size
		m.seal(edit{})
		m.last, m.quote, m.size = n, quote, size
		m.cleared()
		return [][]byte{a, b, m.seal(start), m.seal(edit{})}
	}}, nil},
	{story{name: "the counter redefined, the store put back past an increment", run: func(m *machine) [][]byte {
		a := m.seal(start)
		n, quote, size := m.last, m.quote, m.size
		m.seal(start)
		m.last, m.quote, m.size = n, quote, size
		m.reset(0)
		m.counter++ // a counter made anew goes on above the old one
		return [][]byte{a, m.seal(edit{})}
	}}, []attest.Rule{attest.RuleCounterGrow}},
	{story{name: "the counter redefined, put back within an increment: no rule shows it, and the span is not anchored against it", run: func(m *machine) [][]byte {
		a, b := m.seal(start), m.seal(start)
		n, quote, size := m.last, m.quote, m.size
		m.seal(edit{})
		m.last, m.quote, m.size = n, quote, size
		m.reset(0)
		m.counter++
		return [][]byte{a, b, m.seal(edit{}), m.seal(edit{})}
	}}, nil},
	{story{name: "the TPM put back to an older state", run: func(m *machine) [][]byte {
		a := m.seal(start)
		clock, counter := m.clock, m.counter
		b := m.seal(start)
		m.reset(0)
		m.clock, m.counter = clock, counter
		m.clock.ResetCount++ // its start
		return [][]byte{a, b, m.seal(edit{})}
	}}, []attest.Rule{attest.RuleCounterGrow}},
	{story{name: "the log moved to another TPM", run: func(m *machine) [][]byte {
		a := m.seal(start)
		elsewhere := machineWith(m.t, 2)
		m.key, m.signer = elsewhere.key, elsewhere.signer
		m.reset(0)
		return [][]byte{a, m.seal(start)}
	}}, []attest.Rule{attest.RuleCounterSig, attest.RuleQuoteSig, attest.RuleSigner}},
	{story{name: "a seal taken from the middle", run: func(m *machine) [][]byte {
		a := m.seal(start)
		m.seal(edit{})
		return [][]byte{a, m.seal(edit{}), m.seal(edit{})}
	}}, []attest.Rule{attest.RuleNumber, attest.RulePCRReplay, attest.RulePrevious}},
	{story{name: "seals taken from the end: no rule shows it, and the log is sealed no further", run: func(m *machine) [][]byte {
		a, b := m.seal(start), m.seal(edit{})
		m.seal(edit{})
		return [][]byte{a, b}
	}}, nil},
	{story{name: "one log of two put back, and sealed on with the other", run: func(m *machine) [][]byte {
		a, size := m.seal(start), m.size
		m.seal(edit{})
		m.seal(edit{})
		m.size = size
		return [][]byte{a, m.seal(edit{})}
	}}, []attest.Rule{attest.RuleNumber, attest.RulePCRReplay, attest.RulePrevious}},
}

func TestAttacks(t *testing.T) {
	t.Parallel()
	for _, c := range attacks {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m := c.machine(t)
			e := m.enrolment()
			if got := replayed(t, e, m.head, c.run(m)...); !slices.Equal(got, c.rules) {
				t.Errorf("violates %v, want %v", got, c.rules)
			}
		})
	}
}

// rewritten is a first seal over other heads, certified for them.
func (m *machine) rewritten(change func([]attest.Head) []attest.Head) []byte {
	h, _ := m.head(m.size)
	logs := change([]attest.Head{{Hash: record.Hash{1}, Log: "example.com/another", Size: 5}, {Hash: h, Log: origin, Size: m.size}})
	heads, err := attest.HeadsHash(logs)
	if err != nil {
		m.t.Fatal(err)
	}
	return m.seal(edit{
		increment: true,
		certify:   func(a *tpm2.TPMSAttest) { a.ExtraData.Buffer = heads[:] },
		statement: func(s *attest.Statement) { s.Logs = logs },
	})
}

// What is sealed since the counter grew last can be taken back by whoever can reset the TPM.
func TestCounted(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.size = 3
	r, err := attest.NewReplay(m.enrolment(), origin, m.head)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		x               edit
		sealed, counted uint64
	}{{start, 3, 0}, {edit{}, 7, 0}, {edit{}, 11, 0}, {start, 15, 11}, {edit{}, 19, 11}, {start, 23, 19}} {
		if f := r.Next(m.seal(c.x)); f != nil {
			t.Fatal(f)
		}
		if sealed, _ := r.Sealed(); sealed != c.sealed || r.Counted() != c.counted {
			t.Errorf("sealed %d, counted %d, want %d, %d", sealed, r.Counted(), c.sealed, c.counted)
		}
	}
}

func TestParseAK(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	if _, err := attest.ParseAK(tpm2.Marshal(m.ak)); err != nil {
		t.Fatal(err)
	}
	for name, change := range brokenAKs {
		p := m.ak
		change(&p)
		if _, err := attest.ParseAK(tpm2.Marshal(p)); err == nil {
			t.Errorf("took an attestation key that is %s", name)
		}
	}
	e := m.enrolment()
	e.AKName = flip(e.AKName)
	if _, err := attest.NewReplay(e, origin, m.head); err == nil {
		t.Error("took an enrolment whose AK has another name")
	}
}

// brokenAKs are keys that prove nothing.
var brokenAKs = map[string]func(*tpm2.TPMTPublic){
	"not restricted": func(p *tpm2.TPMTPublic) { p.ObjectAttributes.Restricted = false },
	"can leave":      func(p *tpm2.TPMTPublic) { p.ObjectAttributes.FixedTPM = false },
	"can move":       func(p *tpm2.TPMTPublic) { p.ObjectAttributes.FixedParent = false },
	"imported":       func(p *tpm2.TPMTPublic) { p.ObjectAttributes.SensitiveDataOrigin = false },
	"cannot sign":    func(p *tpm2.TPMTPublic) { p.ObjectAttributes.SignEncrypt = false },
	"decrypts":       func(p *tpm2.TPMTPublic) { p.ObjectAttributes.Decrypt = true },
	"can be locked":  func(p *tpm2.TPMTPublic) { p.ObjectAttributes.NoDA = false },
	"not a point": func(p *tpm2.TPMTPublic) {
		p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{X: tpm2.TPM2BECCParameter{Buffer: make([]byte, 32)}, Y: tpm2.TPM2BECCParameter{Buffer: make([]byte, 32)}})
	},
	"any hash": func(p *tpm2.TPMTPublic) {
		p.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{Scheme: tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgNull}, CurveID: tpm2.TPMECCNistP256})
	},
	"another curve": func(p *tpm2.TPMTPublic) {
		p.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			Scheme:  tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256})},
			CurveID: tpm2.TPMECCNistP384,
		})
	},
}

// A further key counts only in the replay that was told of it.
func TestAlso(t *testing.T) {
	t.Parallel()
	m, other := newMachine(t), machineWith(t, 2)
	e := m.enrolment()
	m.key = other.key
	seal := m.seal(start)
	if got := replayed(t, e, m.head, seal); !slices.Equal(got, []attest.Rule{attest.RuleCounterSig, attest.RuleQuoteSig}) {
		t.Errorf("not told of: %v", got)
	}
	r, err := attest.NewReplay(e, origin, m.head)
	if err != nil {
		t.Fatal(err)
	}
	r.Also(&other.key.PublicKey)
	if got := r.Next(seal); len(got) > 0 {
		t.Errorf("told of: %v", got)
	}
	m.key = machineWith(t, 3).key
	if got := r.Next(m.seal(edit{})); len(got) != 2 {
		t.Errorf("a third key: %v", got)
	}
}
