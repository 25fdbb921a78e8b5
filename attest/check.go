package attest

import (
	"bytes"
	"crypto/ecdsa"
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
	RuleAbandoned    Rule = "seal.abandoned"
	RuleRecovery     Rule = "seal.recovery"
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
	RulePCRSelection: "the seal PCR or another one that the policy wants is not among the quoted ones, or the values are of others",
	RulePCRExtend:    "the statement was not extended into the seal PCR as the last step before the quote",
	RulePCRReplay:    "something that no statement accounts for was extended into the seal PCR: a fork, or another program",
	RuleOneBoot:      "the machine was reset between the two signatures of one seal",
	RuleClock:        "the TPM's clock or its counts run backwards: an older state, another TPM, or TPM2_Clear",
	RuleSigner:       "the signer is not the enrolled key in the endorsement hierarchy: what it says of resets is obfuscated, or it is another key",
	RuleFirmware:     "the TPM's firmware changed between the two signatures of one seal",
	RuleNumber:       "a seal is missing, or was put in twice",
	RulePrevious:     "the seal follows on another one than the one before it",
	RuleCounterGrow:  "the counter grew by other than 0 or 1: seals are missing, or the counter was used by another program",
	RuleCounterBoot:  "the first seal after a reset does not have a new counter value",
	RuleHead:         "the sealed head is not the log's: the log was rewritten after it was sealed, or the seal is another log's",
	RuleHeadOrder:    "a later seal is over a smaller log",
	RuleAbandoned:    "an abandoned seal is not one that a reset of the machine interrupted after the last seal",
	RuleRecovery:     "a declared recovery or a TPM's enrolment cannot be read, or does not go on from the last seal before it",
}

// Replay checks the seals of one log in their order. Each violated rule is a finding; after one, replay goes on from what the seal
// says, so that one fault is not reported at every later seal.
type Replay struct {
	e      Enrolment
	ak     *AK
	signer []byte // the AK's qualified Name

	// Head returns the hash of the log's checkpoint text at a size, if the log has reached it.
	Head func(size uint64) (record.Hash, bool)
	// Log is the log's origin.
	Log string

	number  uint64 // of the last seal
	quote   record.Hash
	boot    Boot
	value   uint64 // of the counter
	size    uint64 // of the log, at the last seal
	counted uint64 // of the log, at the last seal before the counter grew last
}

// NewReplay begins at an enrolment.
func NewReplay(e Enrolment, log string, head func(size uint64) (record.Hash, bool)) (*Replay, error) {
	ak, err := ParseAK(e.AK)
	if err != nil {
		return nil, fmt.Errorf("enrolment: %w", err)
	}
	if !bytes.Equal(ak.Name, e.AKName) {
		return nil, fmt.Errorf("enrolment: the AK's name is %x, not %x", ak.Name, e.AKName)
	}
	return &Replay{
		e: e, ak: ak, signer: qualifiedName(ak.Name), Head: head, Log: log,
		number: e.Seal, quote: e.Previous, value: e.Counter.Value, boot: Boot{PCR: []record.Hash{e.Base, {}}}, // an enrolment does not say in which boot it was made
	}, nil
}

// Enrol goes on in another TPM, or in the same after it was cleared, as an enactment enrols it.
func (r *Replay) Enrol(e Enrolment) ([]Finding, error) {
	next, err := NewReplay(e, r.Log, r.Head)
	if err != nil {
		return nil, err
	}
	c := &checker{}
	if e.Seal < r.number || e.Seal == r.number && e.Previous != r.quote {
		c.fail(RuleRecovery, fmt.Sprintf("seal %d, whose quote has the hash %x, or a later one", r.number, r.quote[:]), fmt.Sprintf("seal %d, %x", e.Seal, e.Previous[:]))
	}
	next.size, next.counted, next.ak.also = r.size, r.counted, r.ak.also
	*r = *next
	return c.findings, nil
}

// Also has a further key's signatures count as the attestation key's. It serves to try what this replay finds when the machine lies:
// whoever tries has a throwaway key in place of a TPM's. Nothing else may ever call it.
func (r *Replay) Also(key *ecdsa.PublicKey) { r.ak.also = key }

// Sealed is the size of the log that the last seal covers, and its number.
func (r *Replay) Sealed() (size, number uint64) { return r.size, r.number }

// Counted is the size of the log at the last seal before the counter last grew. To somebody who can reset the TPM, a store put back to
// that point looks as if it had just begun to use the counter's present value: what was sealed later is anchored only by evidence
// kept elsewhere.
func (r *Replay) Counted() uint64 { return r.counted }

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
	digest := sha256.Sum256(s.Statement)
	r.certified(c, s.Counter, st, a)
	r.quoted(c, s, st, a, q, digest)

	before, sealed := r.value, r.size
	for i := range st.Abandoned {
		r.abandoned(c, st.Abandoned[:i+1])
	}
	r.follows(c, st, a, false)
	r.heads(c, st, false)
	if a.Counter != before {
		r.counted = sealed
	}
	r.number, r.quote = st.Number, sha256.Sum256(s.Quote.Attest)
	r.boot = Boot{Clock: &q.Clock, PCR: []record.Hash{ExtendPCR(st.PCR.Before, digest)}, Late: []record.Hash{{}}, Saved: r.boot.Saved}
	return c.findings
}

// Recover goes on from a declared recovery, as its enactment says that the TPM was found. That is declared, not attested: the next seal
// shows whether it was so, and that what was sealed after the last seal is lost is reported by the caller.
func (r *Replay) Recover(body []byte) []Finding {
	c := &checker{}
	x, err := ParseRecovery(body)
	if err != nil {
		return c.fail(RuleRecovery, "a recovery", err.Error())
	}
	if x.Seal < r.number || x.Seal == r.number && x.Previous != r.quote {
		c.fail(RuleRecovery, fmt.Sprintf("seal %d, whose quote has the hash %x, or a later one", r.number, r.quote[:]), fmt.Sprintf("seal %d, %x", x.Seal, x.Previous[:]))
	}
	r.number, r.quote, r.value = x.Seal, x.Previous, x.Counter
	r.boot = Boot{Clock: &ClockInfo{x.Clock, x.Resets, x.Restarts, x.Safe}, PCR: []record.Hash{x.PCR}, Late: []record.Hash{{}}}
	return c.findings
}

// certified checks the attestation of the counter that a statement names.
func (r *Replay) certified(c *checker, s Signed, st *Statement, a *Attested) {
	if err := r.ak.verify(s); err != nil {
		c.fail(RuleCounterSig, "a signature by the AK "+hex.EncodeToString(r.ak.Name), err.Error())
	}
	c.same(RuleSigner, r.signer, a.Signer)
	heads, err := HeadsHash(st.Logs)
	if err != nil {
		c.fail(RuleFormat, "heads", err.Error())
	}
	c.same(RuleCounterExtra, heads[:], a.Extra)
	if c.same(RuleCounterName, r.e.Counter.Name, a.Name) {
		c.same(RuleCounterName, r.e.Counter.Name, st.Counter.Name)
	}
	certified := sha256.Sum256(s.Attest)
	c.same(RuleCounterBound, certified[:], st.Counter.Attest[:])
}

// quoted checks the quote over a statement, and that it was made right after the attestation of the counter.
func (r *Replay) quoted(c *checker, s *Seal, st *Statement, a, q *Attested, digest [32]byte) {
	if err := r.ak.verify(s.Quote); err != nil {
		c.fail(RuleQuoteSig, "a signature by the AK "+hex.EncodeToString(r.ak.Name), err.Error())
	}
	c.same(RuleSigner, r.signer, q.Signer)
	c.same(RuleQuoteExtra, digest[:], q.Extra)
	if a.Firmware != q.Firmware {
		c.fail(RuleFirmware, fmt.Sprintf("%016x", a.Firmware), fmt.Sprintf("%016x", q.Firmware))
	}
	switch {
	case a.Clock.ResetCount != q.Clock.ResetCount || a.Clock.RestartCount > q.Clock.RestartCount:
		c.fail(RuleOneBoot, a.Clock.String(), q.Clock.String())
	case a.Clock.Clock > q.Clock.Clock:
		c.fail(RuleClock, "after "+a.Clock.String(), q.Clock.String())
	}

	selection, value := make([]int, len(s.PCRs)), record.Hash{}
	for i, p := range s.PCRs {
		selection[i] = p.Index
		if p.Index == r.e.PCR {
			value = p.Value
		}
	}
	if !slices.Equal(selection, q.Selection) || !slices.Contains(selection, r.e.PCR) || st.PCR.Index != r.e.PCR {
		c.fail(RulePCRSelection, fmt.Sprintf("%v, with PCR %d", q.Selection, r.e.PCR), fmt.Sprintf("%v, with PCR %d", selection, st.PCR.Index))
		return
	}
	values := PCRDigest(s.PCRs)
	if c.same(RulePCRDigest, values[:], q.Digest) {
		extended := ExtendPCR(st.PCR.Before, digest)
		c.same(RulePCRExtend, extended[:], value[:])
	}
}

// follows checks that a seal, abandoned or not, follows on what is known: by number, quote before it, boot, counter and PCR.
func (r *Replay) follows(c *checker, st *Statement, a *Attested, abandoned bool) {
	if st.Number != r.number+1 {
		c.fail(RuleNumber, fmt.Sprint(r.number+1), fmt.Sprint(st.Number))
	}
	c.same(RulePrevious, r.quote[:], st.Previous[:])

	anew, found := r.boot.follows(a.Clock, st.PCR.Before, abandoned)
	c.findings = append(c.findings, found...)
	if last := r.boot.Clock; last != nil && a.Counter != r.value && a.Clock.ResetCount == last.ResetCount {
		r.boot.Saved = last.Clock // with the counter
	}
	switch {
	case a.Counter != r.value && a.Counter != r.value+1:
		c.fail(RuleCounterGrow, fmt.Sprintf("%d or %d", r.value, r.value+1), fmt.Sprint(a.Counter))
	case anew && a.Counter == r.value:
		c.fail(RuleCounterBoot, fmt.Sprint(r.value+1), fmt.Sprint(a.Counter))
	}
	r.value = a.Counter
}

// abandoned checks the last of the interrupted seals that a statement lists.
func (r *Replay) abandoned(c *checker, list []Abandoned) {
	x := list[len(list)-1]
	a, err := ParseCertify(x.Attest)
	if err != nil {
		c.fail(RuleFormat, "the attestation of a counter", err.Error())
		return
	}
	st, err := ParseStatement(x.Statement)
	if err != nil {
		c.fail(RuleFormat, "an abandoned statement", err.Error())
		return
	}
	if st.PCR.Index != r.e.PCR || len(st.Abandoned) > 0 {
		c.fail(RuleAbandoned, fmt.Sprintf("PCR %d, no list of its own", r.e.PCR), fmt.Sprintf("PCR %d, a list of %d", st.PCR.Index, len(st.Abandoned)))
		r.number = st.Number
		return
	}
	r.certified(c, Signed{x.Attest, x.Signature}, st, a)
	r.follows(c, st, a, true)
	r.number = st.Number
	r.heads(c, st, r.size == 0) // the log may have been made after it
	saved := r.boot.Saved
	if r.boot, err = interrupted(list, st, a); err != nil {
		c.fail(RuleFormat, "an abandoned statement", err.Error())
	}
	r.boot.Saved = saved
}

// heads checks the statement's head of this log.
func (r *Replay) heads(c *checker, st *Statement, optional bool) {
	i := slices.IndexFunc(st.Logs, func(h Head) bool { return h.Log == r.Log })
	if i < 0 && optional {
		return
	}
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
