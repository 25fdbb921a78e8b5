package ceremony

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"
)

// Rule names why something of a ceremony was refused. The names are stable: logs, answers and tests carry them.
type Rule string

// Rules of ceremonies.
const (
	RuleDocument  Rule = "document"  // it is not a document, or asks for what cannot be
	RuleLog       Rule = "log"       // it is of another log
	RuleNumber    Rule = "number"    // the number is used, or is not the next one
	RuleState     Rule = "state"     // it was made against another state than the one in force
	RuleHead      Rule = "head"      // the head that it names is not one of this log
	RuleExpired   Rule = "expired"   // it expired, or nobody can be sure that it has not
	RuleOfficer   Rule = "officer"   // no such officer is appointed, or not at this time
	RuleKey       Rule = "key"       // it was signed by another key than the officer's
	RuleNamespace Rule = "namespace" // it was signed for another purpose
	RuleSignature Rule = "signature" // it was not signed, or something else was
	RuleTouch     Rule = "touch"     // a FIDO2 key was not touched
	RulePIN       Rule = "pin"       // a FIDO2 key's PIN was not asked for
	RuleDuplicate Rule = "duplicate" // the officer has decided already
	RuleProposer  Rule = "proposer"  // who proposes does not count
	RuleClosed    Rule = "closed"    // the proposal, or the log, is not open
	RuleThreshold Rule = "threshold" // too few have approved
	RuleOutcome   Rule = "outcome"   // what was done is not what was approved
)

// Refused is why something of a ceremony was refused.
type Refused struct {
	Rule   Rule
	Reason string // for people
}

func (r *Refused) Error() string { return string(r.Rule) + ": " + r.Reason }

func refuse(rule Rule, format string, args ...any) error {
	return &Refused{Rule: rule, Reason: fmt.Sprintf(format, args...)}
}

// Printable shows text of others so that it cannot pretend to be something else: control, bidirectional and other invisible
// characters are escaped as in Go.
func Printable(s string) string {
	var b strings.Builder
	for _, r := range s {
		if unicode.IsPrint(r) && r != '\\' && r != unicode.ReplacementChar {
			b.WriteRune(r)
			continue
		}
		q := strconv.QuoteRuneToASCII(r)
		b.WriteString(q[1 : len(q)-1])
	}
	return b.String()
}

// quoted is untrusted text in a reason, cut where it is long.
func quoted(s string) string {
	if len(s) > 80 {
		s = s[:80] + "..."
	}
	return `"` + Printable(s) + `"`
}
