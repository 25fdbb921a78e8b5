package attest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"

	"bulla/record"
)

// Rule names what a seal violates. The names are stable; Rules says what each means.
type Rule string

// Finding is one violated rule.
type Finding struct {
	Rule     Rule
	Expected string
	Found    string
}

// Rules of seals, each with what its violation means.
const (
	RuleEnrolment    Rule = "seal.enrolment"
	RuleFormat       Rule = "seal.format"
	RuleCounterSig   Rule = "seal.counter.signature"
	RuleQuoteSig     Rule = "seal.quote.signature"
	RuleCounterExtra Rule = "seal.counter.heads"
	RuleQuoteExtra   Rule = "seal.quote.statement"
	RuleCounterName  Rule = "seal.counter.name"
	RuleCounterBound Rule = "seal.counter.attest"
	RulePCRDigest    Rule = "seal.pcr.digest"
	RulePCRSelection Rule = "seal.pcr.selection"
	RulePCRExtend    Rule = "seal.pcr.extend"
	RulePCRReplay    Rule = "seal.pcr.replay"
	RuleOneBoot      Rule = "seal.clock.one-boot"
	RuleClock        Rule = "seal.clock.order"
	RuleSigner       Rule = "seal.signer"
	RuleFirmware     Rule = "seal.firmware"
	RuleNumber       Rule = "seal.number"
	RulePrevious     Rule = "seal.previous"
	RuleCounterGrow  Rule = "seal.counter.growth"
	RuleCounterBoot  Rule = "seal.counter.boot"
	RuleHead         Rule = "seal.head"
	RuleHeadOrder    Rule = "seal.head.order"
)

// Rules says what the violation of each rule means.
var Rules = map[Rule]string{
	RuleEnrolment:    "the enrolment's attestation key is not a restricted signing key of a TPM, or its name is another's",
	RuleFormat:       "the seal cannot be read: it was altered, or something else is in its place",
	RuleCounterSig:   "the counter's attestation was not signed by the enrolled TPM",
	RuleQuoteSig:     "the quote was not signed by the enrolled TPM",
	RuleCounterExtra: "the counter was certified for other heads than the statement's",
	RuleQuoteExtra:   "the quote is over another statement",
	RuleCounterName:  "another counter than the enrolled one was certified",
	RuleCounterBound: "the statement names another attestation of the counter",
	RulePCRDigest:    "the PCR values are not those that were quoted",
	RulePCRSelection: "the seal PCR is not among the quoted ones, or the values are of others",
	RulePCRExtend:    "the statement was not extended into the seal PCR as the last step before the quote",
	RulePCRReplay:    "something that no statement accounts for was extended into the seal PCR: a fork, or another program",
	RuleOneBoot:      "the machine was reset between the two signatures of one seal",
	RuleClock:        "the TPM's clock or its counts run backwards: an older state, another TPM, or TPM2_Clear",
	RuleSigner:       "the two signatures of one seal are of different keys",
	RuleFirmware:     "the TPM's firmware changed between the two signatures of one seal",
	RuleNumber:       "a seal is missing, or was put in twice",
	RulePrevious:     "the seal follows on another one than the one before it",
	RuleCounterGrow:  "the counter grew by other than 0 or 1: seals are missing, or the counter was used by another program",
	RuleCounterBoot:  "the first seal after a reset does not have a new counter value",
	RuleHead:         "the sealed head is not the log's: the log was rewritten after it was sealed, or the seal is another log's",
	RuleHeadOrder:    "a later seal is over a smaller log",
}

// Replay checks the seals of one log in their order. Each violated rule is a finding; after one, replay goes on from what the seal
// says, so that one fault is not reported at every later seal.
type Replay struct {
	e  Enrolment
	ak *AK

	// Head returns the hash of the log's checkpoint text at a size, if the log has reached it.
	Head func(size uint64) (record.Hash, bool)
	// Log is the log's origin.
	Log string

	last   *sealed
	number uint64
	quote  record.Hash
	pcr    record.Hash
	value  uint64 // of the counter
	size   uint64 // of the log, at the last seal
}

// sealed is what the last seal left.
type sealed struct{ clock ClockInfo }

// NewReplay begins at an enrolment.
func NewReplay(e Enrolment, log string, head func(size uint64) (record.Hash, bool)) (*Replay, error) {
	ak, err := ParseAK(e.AK)
	if err != nil {
		return nil, fmt.Errorf("enrolment: %w", err)
	}
	if !bytes.Equal(ak.Name, e.AKName) {
		return nil, fmt.Errorf("enrolment: the AK's name is %x, not %x", ak.Name, e.AKName)
	}
	return &Replay{e: e, ak: ak, Head: head, Log: log, number: e.Seal, quote: e.Previous, pcr: e.Base, value: e.Counter.Value}, nil
}

// Sealed is the size of the log that the last good seal covers, and its number.
func (r *Replay) Sealed() (size, number uint64) { return r.size, r.number }

// Next checks the next seal, the body of an entry.
func (r *Replay) Next(body []byte) []Finding {
	c := &checker{}
	s, err := ParseSeal(body)
	if err != nil {
		return c.fail(RuleFormat, "a seal", err.Error())
	}
	st, err := ParseStatement(s.Statement)
	if err != nil {
		return c.fail(RuleFormat, "a statement", err.Error())
	}
	a, err := ParseCertify(s.Counter.Attest)
	if err != nil {
		return c.fail(RuleFormat, "the attestation of a counter", err.Error())
	}
	q, err := ParseQuote(s.Quote.Attest)
	if err != nil {
		return c.fail(RuleFormat, "a quote", err.Error())
	}
	r.alone(c, s, st, a, q)
	r.inOrder(c, st, a, q, sha256.Sum256(s.Statement))
	r.heads(c, st)

	r.last = &sealed{q.Clock}
	r.number, r.quote, r.value = st.Number, sha256.Sum256(s.Quote.Attest), a.Counter
	r.pcr = ExtendPCR(st.PCR.Before, sha256.Sum256(s.Statement))
	return c.findings
}

// alone checks what one seal says by itself.
func (r *Replay) alone(c *checker, s *Seal, st *Statement, a, q *Attested) {
	if err := r.ak.verify(s.Counter); err != nil {
		c.fail(RuleCounterSig, "a signature by the AK "+hex.EncodeToString(r.ak.Name), err.Error())
	}
	if err := r.ak.verify(s.Quote); err != nil {
		c.fail(RuleQuoteSig, "a signature by the AK "+hex.EncodeToString(r.ak.Name), err.Error())
	}
	heads, err := HeadsHash(st.Logs)
	if err != nil {
		c.fail(RuleFormat, "heads", err.Error())
	}
	c.same(RuleCounterExtra, heads[:], a.Extra)
	digest := sha256.Sum256(s.Statement)
	c.same(RuleQuoteExtra, digest[:], q.Extra)
	c.same(RuleCounterName, r.e.Counter.Name, a.Name)
	c.same(RuleCounterName, r.e.Counter.Name, st.Counter.Name)
	certified := sha256.Sum256(s.Counter.Attest)
	c.same(RuleCounterBound, certified[:], st.Counter.Attest[:])
	c.same(RuleSigner, a.Signer, q.Signer)
	if a.Firmware != q.Firmware {
		c.fail(RuleFirmware, fmt.Sprintf("%x", a.Firmware), fmt.Sprintf("%x", q.Firmware))
	}
	if a.Clock.ResetCount != q.Clock.ResetCount || a.Clock.RestartCount > q.Clock.RestartCount {
		c.fail(RuleOneBoot, fmt.Sprintf("reset count %d", a.Clock.ResetCount), fmt.Sprint(q.Clock.ResetCount))
	} else if a.Clock.Clock > q.Clock.Clock {
		c.fail(RuleClock, fmt.Sprintf("at least %d ms", a.Clock.Clock), fmt.Sprintf("%d ms", q.Clock.Clock))
	}

	var selection []int
	var value record.Hash
	for _, p := range s.PCRs {
		selection = append(selection, p.Index)
		if p.Index == r.e.PCR {
			value = p.Value
		}
	}
	if !slices.Equal(selection, q.Selection) || !slices.Contains(selection, r.e.PCR) || st.PCR.Index != r.e.PCR {
		c.fail(RulePCRSelection, fmt.Sprintf("%v, with PCR %d", q.Selection, r.e.PCR), fmt.Sprintf("%v, with PCR %d", selection, st.PCR.Index))
		return
	}
	want := PCRDigest(s.PCRs)
	c.same(RulePCRDigest, want[:], q.Digest)
	extended := ExtendPCR(st.PCR.Before, digest)
	c.same(RulePCRExtend, extended[:], value[:])
}

// inOrder checks that the seal follows on the one before.
func (r *Replay) inOrder(c *checker, st *Statement, a, q *Attested, _ [32]byte) {
	if st.Number != r.number+1 {
		c.fail(RuleNumber, fmt.Sprint(r.number+1), fmt.Sprint(st.Number))
	}
	c.same(RulePrevious, r.quote[:], st.Previous[:])
	highest := r.value
	for _, x := range st.Abandoned {
		highest = max(highest, r.abandoned(c, x, highest))
	}
	if a.Counter != highest && a.Counter != highest+1 {
		c.fail(RuleCounterGrow, fmt.Sprintf("%d or %d", highest, highest+1), fmt.Sprint(a.Counter))
	}
	reset := r.last != nil && a.Clock.ResetCount != r.last.clock.ResetCount
	switch {
	case r.last == nil:
	case a.Clock.ResetCount < r.last.clock.ResetCount:
		c.fail(RuleClock, fmt.Sprintf("reset count at least %d", r.last.clock.ResetCount), fmt.Sprint(a.Clock.ResetCount))
	case !reset && (a.Clock.RestartCount < r.last.clock.RestartCount || a.Clock.Clock < r.last.clock.Clock):
		c.fail(RuleClock, fmt.Sprintf("at least %d ms, restart count %d", r.last.clock.Clock, r.last.clock.RestartCount),
			fmt.Sprintf("%d ms, %d", a.Clock.Clock, a.Clock.RestartCount))
	}
	if (reset || len(st.Abandoned) > 0) && a.Counter <= highest {
		c.fail(RuleCounterBoot, fmt.Sprintf("more than %d", highest), fmt.Sprint(a.Counter))
	}
	// Within a boot the PCR goes on where the last seal left it; a reset sets it to zero.
	expected := r.pcr
	if reset || r.last == nil && st.PCR.Before == (record.Hash{}) { // an enrolment does not say in which boot it was made
		expected = record.Hash{}
	}
	c.same(RulePCRReplay, expected[:], st.PCR.Before[:])
}

// abandoned checks an interrupted seal that the statement lists, and returns the counter's value in it.
func (r *Replay) abandoned(c *checker, x Abandoned, highest uint64) uint64 {
	a, err := ParseCertify(x.Attest)
	if err != nil {
		c.fail(RuleFormat, "the attestation of a counter", err.Error())
		return 0
	}
	st, err := ParseStatement(x.Statement)
	if err != nil {
		c.fail(RuleFormat, "an abandoned statement", err.Error())
		return 0
	}
	if err := r.ak.verify(Signed{x.Attest, x.Signature}); err != nil {
		c.fail(RuleCounterSig, "a signature by the AK "+hex.EncodeToString(r.ak.Name), err.Error())
	}
	heads, err := HeadsHash(st.Logs)
	if err != nil {
		c.fail(RuleFormat, "heads", err.Error())
	}
	c.same(RuleCounterExtra, heads[:], a.Extra)
	c.same(RuleCounterName, r.e.Counter.Name, a.Name)
	if a.Counter != highest && a.Counter != highest+1 {
		c.fail(RuleCounterGrow, fmt.Sprintf("%d or %d", highest, highest+1), fmt.Sprint(a.Counter))
	}
	r.heads(c, st)
	return a.Counter
}

// heads checks the statement's head of this log.
func (r *Replay) heads(c *checker, st *Statement) {
	i := slices.IndexFunc(st.Logs, func(h Head) bool { return h.Log == r.Log })
	if i < 0 {
		c.fail(RuleHead, "a head of "+r.Log, "none")
		return
	}
	h := st.Logs[i]
	if h.Size < r.size {
		c.fail(RuleHeadOrder, fmt.Sprintf("size at least %d", r.size), fmt.Sprint(h.Size))
	}
	want, ok := r.Head(h.Size)
	if !ok {
		c.fail(RuleHead, fmt.Sprintf("a log of at least %d entries before the seal", h.Size), "a smaller one")
		return
	}
	if c.same(RuleHead, want[:], h.Hash[:]) {
		r.size = max(r.size, h.Size)
	}
}

// checker collects findings.
type checker struct{ findings []Finding }

func (c *checker) fail(r Rule, expected, found string) []Finding {
	c.findings = append(c.findings, Finding{r, expected, found})
	return c.findings
}

func (c *checker) same(r Rule, expected, found []byte) bool {
	if bytes.Equal(expected, found) {
		return true
	}
	c.fail(r, hex.EncodeToString(expected), hex.EncodeToString(found))
	return false
}
