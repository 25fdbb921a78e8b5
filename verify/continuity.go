package verify

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"math"

	"bulla/record"
)

// EarlierResult is what came of something that was seen of the log before.
type EarlierResult struct {
	Name   string `json:"name"`
	Size   uint64 `json:"size"` // of the tree
	Status Status `json:"status"`
	Why    string `json:"why,omitempty"`
}

// recall asks for what an earlier run remembered of the log.
func (r *run) recall() error {
	if r.opt.Recall == nil || r.first == (record.Hash{}) {
		return nil
	}
	m, err := r.opt.Recall(r.origin, r.first)
	if err != nil || m == nil {
		return err
	}
	if m.Log != r.origin || m.Genesis != hex.EncodeToString(r.first[:]) {
		return fmt.Errorf("the memory is of log %s with the genesis %s, this is log %s with the genesis %x: give another file", quote(m.Log), m.Genesis, quote(r.origin), r.first[:])
	}
	before, err := record.ParseTime(m.Time)
	if err != nil {
		return fmt.Errorf("memory: time: %w", err)
	}
	r.earlier = append(r.earlier, Earlier{name: m.name(), head: record.Checkpoint{Origin: m.Log, Size: m.Size, Root: m.Root}, before: before, memory: m})
	return nil
}

// judgeContinuity checks that the log extends what was seen of it before.
func (r *run) judgeContinuity(ctx context.Context) error {
	for i := range r.earlier {
		res, err := r.judgeEarlier(ctx, &r.earlier[i])
		if err != nil {
			return err
		}
		r.report.Earlier = append(r.report.Earlier, res)
		switch res.Status {
		case NotCheckable:
			r.miss(res.Name+": "+res.Why, ClaimContinuity)
		case Verified:
			r.covered(res.Size, ClaimContinuity)
		}
	}
	return nil
}

func (r *run) judgeEarlier(ctx context.Context, e *Earlier) (EarlierResult, error) {
	res := EarlierResult{Name: e.name, Size: e.head.Size, Status: NotCheckable}
	violated := func(rule, expected, found string) (EarlierResult, error) {
		r.find(Finding{Rule: rule, File: e.name, Expected: expected, Found: found})
		res.Status, res.Why = Violated, found
		return res, nil
	}
	if e.head.Origin != r.head.Origin {
		res.Why = fmt.Sprintf("it is of log %s, not of this one", quote(e.head.Origin))
		return res, nil
	}
	if e.signed != nil {
		by, bad := r.signers(e)
		if bad != "" {
			return violated("continuity.signature", "a valid signature by the log's key", bad)
		}
		if by == 0 {
			res.Why = "it is signed by no key that policy or log name"
			return res, nil
		}
	}
	if e.head.Size > r.head.Size {
		if r.declared(e, &res) {
			return res, nil
		}
		if m := e.memory; m != nil {
			r.remark("continuity: %s saw %d entries of this log, %d more than are here. Fewer are what is left of a log whose end was cut off, or that was put back, and an older export cannot be told from one. If an older export is what you mean to check, which is legitimate, say --no-memory: nothing is then compared with what was seen before, or remembered", m.name(), e.head.Size, e.head.Size-r.head.Size)
		}
		return violated("continuity.beyond", fmt.Sprintf("a log of at least %d entries", e.head.Size), fmt.Sprintf("%d entries", r.head.Size))
	}
	root, ok, err := r.rootAt(ctx, e.head.Size)
	if err != nil || !ok {
		res.Why = fmt.Sprintf("the log's root at %d entries could not be found out", e.head.Size)
		return res, err
	}
	if root != e.head.Root {
		if r.declared(e, &res) {
			return res, nil
		}
		return violated("continuity.tree", fmt.Sprintf("root %v at size %d", e.head.Root, e.head.Size), "root "+root.String())
	}
	if rule, expected, found := r.wentBack(e.memory); rule != "" {
		return violated(rule, expected, found)
	}
	res.Status = Verified
	return res, nil
}

// signers counts the keys of the log at an earlier head's size that signed it; bad says what is wrong with a line of theirs.
func (r *run) signers(e *Earlier) (n int, bad string) {
	keys, _ := r.fold.signers(e.head.Size)
	for _, vkey := range keys {
		missing, bad := r.signedBy(e.signed, vkey)
		if bad != "" {
			return n, short(vkey) + ": " + bad
		}
		if !missing {
			n++
		}
	}
	return n, ""
}

// declared reports whether a declared recovery says that what was seen before is lost, which leaves open what it was unless the
// policy pins the genesis of who declares it.
func (r *run) declared(e *Earlier, res *EarlierResult) bool {
	x := r.lost(e.head.Size, e.before)
	switch {
	case x == nil:
		return false
	case e.before == math.MinInt64:
		res.Why = fmt.Sprintf("it may be of what entry %d declares to be lost: nothing says when it was made", x.Index)
	case !r.pinned():
		res.Why = x.declares()
	default:
		res.Status, res.Why = Lost, x.declares()
	}
	return true
}

// wentBack compares the TPM of the last seal with what an earlier run knew of it. Within the log the replay of seals has judged that,
// but for what a recovery says of the TPM: which is no reason for one that was known to be further.
func (r *run) wentBack(m *Memory) (rule, expected, found string) {
	now := r.fold.line.last
	if m == nil || m.Seal == nil || now == nil || !bytes.Equal(m.Seal.AK, now.AK) || !bytes.Equal(m.Seal.Name, now.Name) {
		return "", "", ""
	}
	was := m.Seal
	switch {
	case now.Counter < was.Counter:
		return "continuity.counter", fmt.Sprintf("a counter of at least %d", was.Counter), fmt.Sprintf("%d, at seal %d", now.Counter, now.Number)
	case now.Resets < was.Resets, now.Resets == was.Resets && (now.Restarts < was.Restarts || now.Clock < was.Clock):
		return "continuity.clock", "at or after " + was.clock(), now.clock() + fmt.Sprintf(", at seal %d", now.Number)
	}
	return "", "", ""
}

func (s *MemorySeal) clock() string {
	return fmt.Sprintf("%d resets, %d restarts, %d ms", s.Resets, s.Restarts, s.Clock)
}
