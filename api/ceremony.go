package api

import (
	"encoding/json"

	"bulla/ceremony"
	"bulla/record"
)

// MaxCeremony bounds what a ceremony's call carries, in bytes: a document with its signature.
const MaxCeremony = ceremony.MaxDocument + 2*ceremony.MaxSignature

// Taken says where the log has what an officer sent: a ceremony.Proposed to POST /v1/proposals, or a ceremony.Approval to
// POST /v1/approvals.
type Taken struct {
	Number  uint64  `json:"number"`            // of the proposal; 0: the genesis
	Index   *uint64 `json:"index,omitempty"`   // of the entry; absent while it waits outside a log that was rolled back
	Needed  int     `json:"needed"`            // approvals
	Given   int     `json:"given"`             // that count
	Missing string  `json:"missing,omitempty"` // what it lacks to be enacted; empty when nothing is
}

// Enact asks POST /v1/proposals/{number}/enact for a proposal to be carried out, or only rehearsed.
type Enact struct {
	Document record.Hash `json:"document"`         // SHA-256 of the document that is meant
	DryRun   bool        `json:"dry_run,omitzero"` // say what would be done, and do nothing
}

// Enacted is what became of it.
type Enacted struct {
	Number  uint64          `json:"number"`
	DryRun  bool            `json:"dry_run,omitzero"`
	Index   *uint64         `json:"index,omitempty"` // of the enactment; absent of a rehearsal
	Failed  string          `json:"failed,omitempty"`
	Missing string          `json:"missing,omitempty"` // of a rehearsal: why the enactment would be refused now; absent where it would not
	Steps   []ceremony.Step `json:"steps"`             // done; of a rehearsal, that would be
	Outcome json.RawMessage `json:"outcome,omitzero"`  // what the devices made
}

// Waiting is what GET /v1/recovery answers: proposals of a recovery and the decisions on them, which wait outside a log that was
// rolled back until one of them is enacted. The log would take them in this order, proposals first.
type Waiting struct {
	Proposals []ceremony.Proposed `json:"proposals,omitempty"`
	Decisions []ceremony.Approval `json:"decisions,omitempty"`
}
