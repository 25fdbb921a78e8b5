package ceremony

import (
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"

	"bulla/record"
)

// Proposed is the body of an entry of kind proposal: a document, and the signature of the officer who proposes it.
type Proposed struct {
	Document  json.RawMessage `json:"document"`
	Signature string          `json:"signature"` // armored SSHSIG, namespace ceremony@bulla
}

// Approval is the body of an entry of kind approval: what one officer decided of a document.
type Approval struct {
	Decision  Decision    `json:"decision"`
	Document  record.Hash `json:"document"`  // SHA-256 of it
	Number    uint64      `json:"number"`    // the proposal's; 0: the genesis
	Officer   string      `json:"officer"`   // name
	Signature string      `json:"signature"` // armored SSHSIG of the document
}

// Decision is what an officer says of a document.
type Decision string

// Decisions.
const (
	Approve Decision = "approve"
	Reject  Decision = "reject" // final; takes back an approval. The proposer's withdraws the proposal
)

func (d Decision) namespace() string {
	if d == Reject {
		return NamespaceReject
	}
	return Namespace
}

// Enactment is the body of an entry of kind enactment: the proposal was carried out, and what the devices answered; or it was tried
// and failed, which changes nothing and closes the proposal.
type Enactment struct {
	Document record.Hash     `json:"document"`         // SHA-256 of the proposal's document
	Failed   string          `json:"failed,omitempty"` // why nothing was changed, for people
	Number   uint64          `json:"number"`           // the proposal's
	Outcome  json.RawMessage `json:"outcome,omitzero"` // what the devices made, an object by action
	Steps    []Step          `json:"steps,omitempty"`  // as they were done, for the minutes
}

// Step is one thing that was done to a device.
type Step struct {
	Answer string `json:"answer,omitempty"` // what it answered
	Did    string `json:"did"`
	Time   string `json:"time"` // when it was done, by the appliance's clock
}

// Limits of an enactment.
const (
	MaxSteps = 64
	MaxText  = 1024 // bytes of a text for people
)

// ParseProposed reads the body of an entry of kind proposal.
func ParseProposed(body []byte) (*Proposed, *Proposal, error) {
	b := new(Proposed)
	if err := record.UnmarshalCanonical(body, b); err != nil {
		return nil, nil, refuse(RuleDocument, "%v", err)
	}
	if _, err := readSignature(b.Signature); err != nil {
		return nil, nil, err
	}
	p, err := ParseProposal(b.Document)
	if err != nil {
		return nil, nil, err
	}
	return b, p, nil
}

// ParseApproval reads the body of an entry of kind approval.
func ParseApproval(body []byte) (*Approval, error) {
	a := new(Approval)
	if err := record.UnmarshalCanonical(body, a); err != nil {
		return nil, refuse(RuleDocument, "%v", err)
	}
	switch {
	case a.Decision != Approve && a.Decision != Reject:
		return nil, refuse(RuleDocument, "decision: must be approve or reject")
	case a.Number > record.MaxInt:
		return nil, refuse(RuleDocument, "number: must be at most 2^53-1")
	case !isName(a.Officer):
		return nil, refuse(RuleDocument, "officer: must be the name of an officer")
	}
	if _, err := readSignature(a.Signature); err != nil {
		return nil, err
	}
	return a, nil
}

// ParseEnactment reads the body of an entry of kind enactment.
func ParseEnactment(body []byte) (*Enactment, error) {
	e := new(Enactment)
	if err := record.UnmarshalCanonical(body, e); err != nil {
		return nil, refuse(RuleDocument, "%v", err)
	}
	switch {
	case e.Number == 0 || e.Number > record.MaxInt:
		return nil, refuse(RuleDocument, "number: must be 1 to 2^53-1")
	case len(e.Outcome) > 0 && e.Outcome[0] != '{':
		return nil, refuse(RuleDocument, "outcome: must be an object")
	case len(e.Outcome) > 0 && e.Failed != "":
		return nil, refuse(RuleDocument, "outcome: what failed has none")
	case len(e.Steps) > MaxSteps:
		return nil, refuse(RuleDocument, "steps: %d are too many: the limit is %d", len(e.Steps), MaxSteps)
	}
	if err := checkText("failed", e.Failed); err != nil {
		return nil, refuse(RuleDocument, "%v", err)
	}
	for i, s := range e.Steps {
		at := fmt.Sprintf("steps[%d].", i)
		if s.Did == "" {
			return nil, refuse(RuleDocument, "%sdid: required", at)
		}
		if _, err := record.ParseTime(s.Time); err != nil {
			return nil, refuse(RuleDocument, "%stime: %v", at, err)
		}
		if err := errors.Join(checkText(at+"did", s.Did), checkText(at+"answer", s.Answer)); err != nil {
			return nil, refuse(RuleDocument, "%v", err)
		}
	}
	return e, nil
}

func checkText(field, s string) error {
	if len(s) > MaxText || !utf8.ValidString(s) {
		return fmt.Errorf("%s: must be UTF-8 of at most %d bytes", field, MaxText)
	}
	return nil
}
