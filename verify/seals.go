package verify

import (
	"context"
	"crypto/sha256"
	"fmt"
	"slices"

	"bulla/attest"
	"bulla/ceremony"
	"bulla/record"
)

// headAt answers the question of a seal's replay for the log's head at a size.
type headAt struct {
	r       *run
	ctx     context.Context // of the entry being seen
	unknown bool            // a head could not be made, for want of hashes
	err     error
}

// hash is the hash of the checkpoint's text at a size.
func (h *headAt) hash(size uint64) (record.Hash, bool) {
	if size >= h.r.chain.at { // the seal's own entry is judged already, and cannot be sealed by itself
		return record.Hash{}, false
	}
	root, ok, err := h.r.rootAt(h.ctx, size)
	if err != nil || !ok {
		h.err, h.unknown = err, true
		return record.Hash{}, false
	}
	return sha256.Sum256([]byte(record.Checkpoint{Origin: h.r.origin, Size: size, Root: root}.Text())), true
}

// enrol begins the replay of seals at the enrolment that the genesis names.
func (f *fold) enrol() {
	tpm := f.state.Policy.TPM
	if tpm == nil {
		return
	}
	f.head, f.sealAt, f.wanted = headAt{r: f.r}, map[uint64]uint64{}, f.state.Policy.Seal.PCRs
	f.first = tpm
	if !f.trusted() { // else what officers enrol later counts too
		f.judgeEnrolment(nil)
	}
	replay, err := attest.NewReplay(*tpm, f.r.origin, f.head.hash)
	if err != nil {
		f.r.find(Finding{Rule: string(attest.RuleEnrolment), Index: at(0), Expected: "the attestation key of a TPM", Found: fmt.Sprintf("%.300s", err.Error())})
		return
	}
	if t := f.r.opt.thief; t != nil {
		replay.Also(t.seals)
	}
	f.replay = replay
}

// seal checks an entry of kind seal.
func (f *fold) seal(ctx context.Context, e *record.Entry) error {
	f.seals++
	if f.replay == nil {
		if f.state.Policy.TPM == nil {
			f.r.find(Finding{Rule: string(attest.RuleEnrolment), Index: at(e.Index), Expected: "no seal: the log has no TPM enrolled", Found: "a seal"})
		}
		return nil
	}
	f.head.ctx, f.head.unknown = ctx, false
	found := f.replay.Next(e.Body)
	if f.head.err != nil {
		return f.head.err
	}
	if len(found) == 0 {
		found = f.unquoted(e.Body)
	}
	f.wanted = f.state.Policy.Seal.PCRs
	good := true
	for _, x := range found {
		if x.Rule == attest.RuleHead && f.head.unknown {
			f.r.miss(fmt.Sprintf("the head that the seal in entry %d names cannot be computed", e.Index), ClaimSeals)
		} else {
			f.r.find(Finding{Rule: string(x.Rule), Index: at(e.Index), Expected: fmt.Sprintf("%.300s", x.Expected), Found: fmt.Sprintf("%.300s", x.Found)})
		}
		good = false
	}
	if good {
		var number uint64
		f.sealed, number = f.replay.Sealed()
		f.sealAt[number] = e.Index
		f.outline.sealed(number, e.Index)
		f.boots.seal(e.Body)
		f.line.seal(e, f.sealed)
		f.r.covered(f.sealed, ClaimSeals, ClaimRollback)
	}
	return nil
}

// unquoted finds PCRs that the policy wants quoted and a seal has not. A seal that was made before a change of the policy may come behind
// it, so what counts is what all policies since the last seal want.
func (f *fold) unquoted(body []byte) []attest.Finding {
	s, err := attest.ParseSeal(body)
	if err != nil {
		return nil // it was just checked
	}
	var quoted []int
	for _, p := range s.PCRs {
		quoted = append(quoted, p.Index)
	}
	if !slices.ContainsFunc(f.wanted, func(i int) bool { return !slices.Contains(quoted, i) }) {
		return nil
	}
	return []attest.Finding{{Rule: attest.RulePCRSelection, Expected: fmt.Sprintf("%v, as the policy wants", f.wanted), Found: fmt.Sprint(quoted)}}
}

// closed goes on from a recovery that officers have declared, which closed the log: seals are judged by the TPM as it was found.
func (f *fold) closed(e *record.Entry, c *ceremony.RecoveryDeclare) {
	enactment, err := ceremony.ParseEnactment(e.Body)
	if err != nil {
		return // it was just applied
	}
	var out ceremony.Recovered
	if err := record.UnmarshalCanonical(enactment.Outcome, &out); err != nil {
		return // the same
	}
	x := &Recovery{Index: e.Index, From: c.Surviving.Size, To: c.Known.Size, Why: c.Reason, time: e.Stamp.Sys}
	f.r.report.Recovery = x
	if !f.r.pinned() {
		f.r.miss(x.declares(), ClaimRollback)
	}
	if f.replay == nil || out.TPM == nil {
		return
	}
	sealed, number := f.replay.Sealed()
	x.Seal, x.From = number, min(x.From, sealed)
	tpm, err := out.TPM.Encode()
	if err != nil {
		return // the same
	}
	for _, found := range f.replay.Recover(tpm) {
		f.r.find(Finding{Rule: string(found.Rule), Index: at(x.Index), Expected: fmt.Sprintf("%.300s", found.Expected), Found: fmt.Sprintf("%.300s", found.Found)})
	}
}

// lost returns the recovery if it declares lost what was shown before a time, in ns, of a tree of so many entries; nil if it does not.
func (r *run) lost(size uint64, before int64) *Recovery {
	if x := r.report.Recovery; x != nil && x.From < size && size <= x.To && before < x.time {
		return x
	}
	return nil
}

// declares says what a recovery does.
func (x *Recovery) declares() string {
	return fmt.Sprintf("entry %d declares lost what was shown from entry %d on, of at most %d entries", x.Index, x.From, x.To)
}

// summarizeSeals settles the claims that rest on seals.
func (f *fold) summarizeSeals() {
	if f.trusted() {
		f.judgeEnrolment(f.later)
	}
	switch {
	case f.known && f.state.Policy.TPM == nil:
		f.r.miss("the log has no TPM enrolled", ClaimSeals, ClaimRollback)
	case f.seals == 0:
		f.r.miss("the log holds no seal", ClaimSeals, ClaimRollback)
	case f.sealed == 0:
		f.r.miss("no seal of the log holds", ClaimSeals, ClaimRollback)
	default:
		f.remarkEnrolment()
		f.boots.remark(f.r)
		f.r.remark("rollback: judged within this evidence; an older copy of the whole log can be told only by a receipt, an earlier export or a challenge")
	}
}
