package attest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"bulla/record"
)

// Rules of answers to a live challenge, beside those of every seal. A log by itself cannot violate them.
const (
	RuleNonce Rule = "challenge.nonce"
	RuleLeast Rule = "challenge.counter"
)

// ChallengeRules says what the violation of each rule of answers means.
var ChallengeRules = map[Rule]string{
	RuleNonce: "the seal carries another nonce: it was not made for this challenge",
	RuleLeast: "the counter is below what it is known to have reached: an older state of the TPM, or another counter",
}

// Challenge is what an auditor demands of a machine that he asks for a seal now.
type Challenge struct {
	Nonce   []byte
	Counter uint64                                // the least value of the TPM's counter, from an earlier answer or export; 0: that of the enrolment
	Log     string                                // origin of the log whose head he looks at
	Head    func(size uint64) (record.Hash, bool) // hash of that log's checkpoint text at a size
}

// Answer is what an answer to a live challenge says.
type Answer struct {
	Number  uint64
	Counter uint64
	Clock   ClockInfo
	Head    Head // of the log
	PCRs    []PCRValue
	Reason  string
	// Software is the daemon's claim about itself.
	Software Software
}

// CheckAnswer checks a seal, the body of an entry, that answers a live challenge: that the enrolled TPM made it, now, over the log's
// head. It looks at the one seal; whether it follows on those before is for Replay. Without findings the answer holds.
func CheckAnswer(e Enrolment, body []byte, want Challenge) (*Answer, []Finding, error) {
	r, err := NewReplay(e, want.Log, want.Head)
	if err != nil {
		return nil, nil, err
	}
	c := &checker{}
	s, err := ParseSeal(body)
	if err != nil {
		return nil, c.fail(RuleFormat, "a seal", err.Error()), nil
	}
	st, err := ParseStatement(s.Statement)
	if err != nil {
		return nil, c.fail(RuleFormat, "a statement", err.Error()), nil
	}
	a, err := ParseCertify(s.Counter.Attest)
	if err != nil {
		return nil, c.fail(RuleFormat, "the attestation of a counter", err.Error()), nil
	}
	q, err := ParseQuote(s.Quote.Attest)
	if err != nil {
		return nil, c.fail(RuleFormat, "a quote", err.Error()), nil
	}
	if !bytes.Equal(st.Nonce, want.Nonce) {
		c.fail(RuleNonce, hex.EncodeToString(want.Nonce), hex.EncodeToString(st.Nonce))
	}
	r.certified(c, s.Counter, st, a)
	r.quoted(c, s, st, a, q, sha256.Sum256(s.Statement))
	r.heads(c, st, false)
	if least := max(want.Counter, e.Counter.Value); a.Counter < least {
		c.fail(RuleLeast, fmt.Sprintf("at least %d", least), fmt.Sprint(a.Counter))
	}
	out := &Answer{Number: st.Number, Counter: a.Counter, Clock: q.Clock, PCRs: s.PCRs, Reason: st.Reason, Software: st.Software}
	for _, h := range st.Logs {
		if h.Log == want.Log {
			out.Head = h
		}
	}
	return out, c.findings, nil
}
