package verify

import (
	"fmt"

	"bulla/record"
)

// Verdict is the answer.
type Verdict string

// The three answers.
const (
	OutcomeVerified     Verdict = "verified"      // everything that the policy requires was checked and holds
	OutcomeTampered     Verdict = "tampered"      // the evidence contradicts itself or the policy
	OutcomeNotCheckable Verdict = "not checkable" // nothing contradicts, but something needed is missing
)

// Status is the answer for one claim.
type Status string

// Statuses of a claim.
const (
	Verified     Status = "verified"
	Violated     Status = "violated"
	NotCheckable Status = "not checkable"
	Lost         Status = "lost, declared" // of a receipt: a declared recovery says that its entry is lost
)

// Claims, in the order of the report.
const (
	ClaimBytes      = "bytes"      // every byte of entries, bundles and tiles is what it must be
	ClaimChain      = "chain"      // entries are numbered, named and linked one to the next
	ClaimTree       = "tree"       // the entries are the leaves of the signed tree
	ClaimSignatures = "signatures" // the head is signed by the log's keys
	ClaimGovernance = "governance" // everything was permitted, from the trusted genesis on
	ClaimTime       = "time"       // the times recorded follow from the measurements recorded
	ClaimSeals      = "seals"      // the TPM attested the heads that the seals name
	ClaimRollback   = "rollback"   // counter, PCR and clock of the TPM never go back
	ClaimReceipts   = "receipts"   // the receipts given are of this log
	ClaimWitnesses  = "witnesses"  // a quorum of witnesses cosigned heads of this log
	ClaimContinuity = "continuity" // the log extends what was seen of it before
)

var claimNames = []string{ClaimBytes, ClaimChain, ClaimTree, ClaimSignatures, ClaimGovernance, ClaimTime, ClaimSeals, ClaimRollback, ClaimReceipts, ClaimWitnesses, ClaimContinuity}

// Report is the outcome of a run. Its JSON form is stable: members may be added, none changes its meaning.
type Report struct {
	Verdict    Verdict           `json:"verdict"`
	Log        string            `json:"log,omitempty"`  // origin
	Size       uint64            `json:"size"`           // entries under the head
	Root       string            `json:"root,omitempty"` // base64, as in the checkpoint
	Head       string            `json:"head,omitempty"` // SHA-256 of the checkpoint's text, hex: its identity
	Genesis    string            `json:"genesis,omitempty"`
	Claims     []Claim           `json:"claims"`
	Findings   []Finding         `json:"findings,omitempty"`
	Omitted    uint64            `json:"findings_omitted,omitempty"` // findings beyond those listed
	Unanchored *Range            `json:"unanchored,omitempty"`       // entries that no seal, receipt or quorum of witnesses anchors
	Resettable *Range            `json:"resettable,omitempty"`       // entries that nothing anchors against somebody who could reset or clear the TPM
	Recovery   *Recovery         `json:"recovery,omitempty"`         // declared
	Missing    []string          `json:"missing,omitempty"`          // what would have to be there for a better answer
	Governance Governance        `json:"governance"`
	Receipts   []ReceiptResult   `json:"receipts,omitempty"`
	Witnesses  []WitnessResult   `json:"witnesses,omitempty"` // those that the policy names
	Earlier    []EarlierResult   `json:"earlier,omitempty"`   // seen of the log before
	Entries    map[string]uint64 `json:"entries"`             // by kind
	Remarks    []string          `json:"remarks,omitempty"`
	Timeline   *Timeline         `json:"timeline,omitempty"` // as far as the log was followed

	// Memory is for the next run on this log; nil when there is nothing that it could rely on, or this run did not find all that was
	// seen before.
	Memory *Memory `json:"-"`
}

// Claim is one thing that the evidence is to show, and how far it does.
type Claim struct {
	Name     string `json:"name"`
	Status   Status `json:"status"`
	From     uint64 `json:"from"` // entries [From,To) were checked for it
	To       uint64 `json:"to"`
	Required bool   `json:"required"` // the verdict depends on it
	Why      string `json:"why,omitempty"`
}

// Finding is one violation of a rule.
type Finding struct {
	Rule     string  `json:"rule"`
	Log      string  `json:"log,omitempty"`
	Index    *uint64 `json:"index,omitempty"` // of the entry
	File     string  `json:"file,omitempty"`  // where in the evidence
	Expected string  `json:"expected"`
	Found    string  `json:"found"`
	Meaning  string  `json:"meaning"`
}

// Range is the entries [From,To).
type Range struct {
	From uint64 `json:"from"`
	To   uint64 `json:"to"`
}

// Recovery is the officers' declaration that the log was put back to an older state, which closed it: entries [From,To) that others
// were shown before may be lost. It is worth what the genesis is that names the officers: Governance.Trusted.
type Recovery struct {
	Index uint64 `json:"index"` // of the enactment
	Seal  uint64 `json:"seal"`  // number of the last seal that the log still had; 0: none
	From  uint64 `json:"from"`  // entries that are there for certain
	To    uint64 `json:"to"`    // size of the highest head that the officers know of
	Why   string `json:"why"`

	time int64 // of the entry, ns
}

// Governance is who governs the log at its end.
type Governance struct {
	Known      bool           `json:"known"` // the genesis could be read
	Trusted    bool           `json:"trusted"`
	Officers   []string       `json:"officers"`
	Thresholds map[string]int `json:"thresholds,omitempty"`
	Roles      []string       `json:"roles,omitempty"`
	Keys       []string       `json:"keys,omitempty"` // verifier keys in force
	TPM        bool           `json:"tpm"`            // a TPM is enrolled
}

// ReceiptResult is what came of one receipt.
type ReceiptResult struct {
	Name   string  `json:"name"`
	Index  *uint64 `json:"index,omitempty"`
	Size   uint64  `json:"size,omitempty"` // of the tree it was given under
	Status Status  `json:"status"`
	Why    string  `json:"why,omitempty"`
}

// conclude turns what was found and missed into an answer.
func (r *run) conclude() *Report {
	rep := r.report
	r.fold.summarize()
	r.anchor()
	rep.Verdict = OutcomeVerified
	for _, name := range claimNames {
		c := r.claims[name]
		claim := Claim{Name: name, Status: Verified, From: c.from, To: c.to, Required: r.requires(name), Why: c.gap}
		switch {
		case c.violated:
			claim.Status = Violated
		case c.gap != "":
			claim.Status = NotCheckable
		}
		if claim.Required && claim.Status == NotCheckable {
			rep.Verdict = OutcomeNotCheckable
			rep.Missing = append(rep.Missing, name+": "+c.gap)
		}
		rep.Claims = append(rep.Claims, claim)
	}
	if rep.Unanchored != nil && r.policy != nil && r.policy.Tail != nil && rep.Unanchored.To-rep.Unanchored.From > *r.policy.Tail {
		rep.Verdict = OutcomeNotCheckable
		rep.Missing = append(rep.Missing, fmt.Sprintf("anchor: the policy allows %d entries without a seal or receipt, there are %d; have the log sealed and export again", *r.policy.Tail, rep.Unanchored.To-rep.Unanchored.From))
	}
	if len(rep.Findings) > 0 {
		rep.Verdict = OutcomeTampered
	}
	rep.Memory = r.remember()
	rep.Timeline = r.fold.line.report()
	return rep
}

// requires reports whether the verdict depends on a claim.
func (r *run) requires(name string) bool {
	switch name {
	case ClaimTime:
		return r.policy == nil || !r.policy.NoTime
	case ClaimSeals, ClaimRollback:
		return r.policy == nil || !r.policy.NoSeals
	case ClaimReceipts:
		return len(r.opt.Receipts) > 0
	case ClaimWitnesses:
		return r.policy.quorum() != ""
	case ClaimContinuity:
		return len(r.earlier) > 0
	}
	return true
}

// anchor states which entries nothing outside the log's own storage vouches for.
func (r *run) anchor() {
	if !r.headOK {
		return
	}
	held := r.witnessed // by others
	for _, res := range r.report.Receipts {
		if res.Status == Verified {
			held = max(held, res.Size)
		}
	}
	size := r.head.Size
	if from := max(r.fold.sealed, held); from < size {
		r.report.Unanchored = &Range{From: from, To: size}
	}
	if r.fold.sealed > 0 {
		if from := max(r.fold.replay.Counted(), held); from < size {
			r.report.Resettable = &Range{From: from, To: size}
		}
	}
}

func base64Hash(h record.Hash) string { return h.String() }
