package verify

import (
	"bulla/attest"
	"bulla/ceremony"
	"bulla/record"
)

// outline is where a log says what its export's README leads to, and copies for standard tools rest on. It is filled in the order of the
// log, by who exports it and by who verifies it.
type outline struct {
	tpms     []enrolled  // in the order of the log
	officers member      // who they are
	approval *approvalAt // the last one; nil: there is none
	seals    int         // with copies
	first    uint64      // number of the lowest
	last     uint64      // and of the highest
	lastAt   uint64      // entry of that
}

// member is a member of an entry's body.
type member struct {
	Entry uint64
	Path  string // as jq takes it
}

// enrolled is a TPM from the entry on that enrols it.
type enrolled struct {
	member // of the attestation key
	*attest.Enrolment
}

// approvalAt is an officer's approval, and what was signed.
type approvalAt struct {
	Entry    uint64
	Number   uint64 // of the proposal; 0: the genesis
	Document uint64 // entry with the proposal
	Officers member
}

// governed takes an entry of governance that was applied.
func (o *outline) governed(before, after *ceremony.State, e *record.Entry) {
	switch e.Kind {
	case record.KindGenesis:
		o.officers = member{e.Index, ".body.officers"}
		if tpm := after.Policy.TPM; tpm != nil {
			o.tpms = append(o.tpms, enrolled{member{e.Index, ".body.tpm.ak"}, tpm})
		}
	case record.KindApproval:
		a, err := ceremony.ParseApproval(e.Body)
		if err != nil || a.Decision != ceremony.Approve {
			return // it was just applied
		}
		x := &approvalAt{Entry: e.Index, Number: a.Number, Officers: o.officers}
		if p := open(before, a.Number); p != nil {
			x.Document = p.Index
		}
		o.approval = x
	case record.KindEnactment:
		body, err := ceremony.ParseEnactment(e.Body)
		if err != nil || after.Changed != e.Index {
			return // or it failed
		}
		p := open(before, body.Number)
		if p == nil {
			return
		}
		switch p.Proposal.Asks().(type) {
		case *ceremony.OfficersSet:
			o.officers = member{p.Index, ".body.document.content.officers"}
		case *ceremony.TPMEnrol:
			o.tpms = append(o.tpms, enrolled{member{e.Index, ".body.outcome.ak"}, after.Policy.TPM})
		}
	}
}

// open is the open proposal of a number.
func open(s *ceremony.State, number uint64) *ceremony.Pending {
	for _, p := range s.Open() {
		if p.Proposal.Number == number {
			return p
		}
	}
	return nil
}

// tpm is the one whose seals an entry would hold; nil: none.
func (o *outline) tpm(entry uint64) *enrolled {
	for i := len(o.tpms) - 1; i >= 0; i-- {
		if o.tpms[i].Entry < entry {
			return &o.tpms[i]
		}
	}
	return nil
}

// current is the TPM at the log's end; nil: none.
func (o *outline) current() *enrolled { return o.tpm(record.MaxInt) }

// sealed takes a seal.
func (o *outline) sealed(number, entry uint64) {
	if o.seals == 0 || number < o.first {
		o.first = number
	}
	if o.seals == 0 || number >= o.last {
		o.last, o.lastAt = number, entry
	}
	o.seals++
}
