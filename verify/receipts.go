package verify

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"

	"golang.org/x/mod/sumdb/tlog"

	"bulla/record"
)

// judgeReceipts checks every receipt by itself and against the log.
func (r *run) judgeReceipts(ctx context.Context) error {
	for _, given := range r.opt.Receipts {
		res, err := r.judgeReceipt(ctx, given)
		if err != nil {
			return err
		}
		r.report.Receipts = append(r.report.Receipts, res)
		if res.Status == NotCheckable {
			r.miss(fmt.Sprintf("%s: %s", given.Name, res.Why), ClaimReceipts)
		}
	}
	if len(r.opt.Receipts) > 0 {
		r.covered(r.head.Size, ClaimReceipts)
	}
	return nil
}

func (r *run) judgeReceipt(ctx context.Context, given Receipt) (ReceiptResult, error) {
	res := ReceiptResult{Name: given.Name, Status: NotCheckable}
	violated := func(rule, expected, found string) (ReceiptResult, error) {
		r.find(Finding{Rule: rule, Index: res.Index, File: given.Name, Expected: expected, Found: found})
		res.Status, res.Why = Violated, found
		return res, nil
	}
	p, err := parseReceipt(given.Data)
	if err != nil {
		return violated("receipt.format", "a receipt in JSON or C2SP tlog-proof", fmt.Sprintf("%.300s", err.Error()))
	}
	res.Index = at(p.index)
	head, err := headText(p.checkpoint)
	if err != nil {
		return violated("receipt.format", "a checkpoint", fmt.Sprintf("%.300s", err.Error()))
	}
	if head.Origin != r.head.Origin {
		res.Why = fmt.Sprintf("it is of log %s, not of this one", quote(head.Origin))
		return res, nil
	}
	res.Size = head.Size

	// The receipt by itself: signed, and the entry in the tree that was signed.
	keys, trusted := r.fold.signers(head.Size)
	for _, vkey := range keys {
		if _, err := r.checkLine(p.checkpoint, vkey); errors.Is(err, errNoLine) && !r.fold.followed() {
			res.Why = fmt.Sprintf("it has no line by %s, and what governs the log could not be followed: a ceremony may have replaced the key", short(vkey))
			return res, nil
		} else if err != nil {
			return violated("receipt.signature", "a valid line by "+short(vkey), fmt.Sprintf("%.300s", err.Error()))
		}
	}
	if len(keys) == 0 {
		res.Why = "no key of the log is known"
		return res, nil
	}
	leaf := p.leaf
	if !p.hasEntry && p.index < r.head.Size { // a tlog-proof does not carry its entry: it proves the log's
		var ok bool
		if leaf, ok, err = r.leafAt(ctx, p.index); err != nil || !ok {
			return unknown(res, err)
		}
	} else if !p.hasEntry {
		res.Why = fmt.Sprintf("the log ends at entry %d, before the receipt's", r.head.Size)
		return res, nil
	}
	if err := checkProof(p, head, leaf); err != nil {
		if x := r.lost(head.Size, p.stamped()); !p.hasEntry && x != nil {
			res.Why = fmt.Sprintf("it may be of an entry that entry %d declares to be lost: the receipt in JSON says", x.Index)
			return res, nil
		}
		if !p.hasEntry {
			return violated("receipt.entry", fmt.Sprintf("the entry that the receipt proves at %d", p.index), "leaf hash "+base64Hash(leaf))
		}
		return violated("receipt.proof", "a proof that leads to the signed root", fmt.Sprintf("%.300s", err.Error()))
	}

	// The receipt against the log: the same entry, and a tree that grew out of the receipt's.
	// Where it contradicts the log, a declared recovery may say why.
	lost := r.lost(p.index+1, p.stamped())
	if lost != nil && p.hasEntry && p.index >= r.head.Size {
		return r.isLost(given, res, lost), nil
	}
	if p.index >= r.head.Size {
		if closed := r.fold.state.Closed; closed != nil && p.isEvent() {
			return violated("receipt.entry", fmt.Sprintf("no event behind entry %d, which closed the log", *closed), fmt.Sprintf("an event, entry %d", p.index))
		}
		res.Why = fmt.Sprintf("the log ends at entry %d, before the receipt's", r.head.Size)
		return res, nil
	}
	if p.hasEntry {
		in, ok, err := r.leafAt(ctx, p.index)
		if err != nil || !ok {
			return unknown(res, err)
		}
		if in != leaf && lost != nil {
			return r.isLost(given, res, lost), nil
		}
		if in != leaf {
			return violated("receipt.entry", "leaf hash "+base64Hash(leaf), "leaf hash "+base64Hash(in))
		}
	}
	if head.Size > r.head.Size {
		res.Why = fmt.Sprintf("the entry is in the log, but the receipt is under a tree of %d entries, and the log ends at %d", head.Size, r.head.Size)
		return res, nil
	}
	root, ok, err := r.rootAt(ctx, head.Size)
	if err != nil || !ok {
		return unknown(res, err)
	}
	if x := r.lost(head.Size, p.stamped()); root != head.Root && x != nil {
		res.Why = fmt.Sprintf("the entry is in the log; the tree that the receipt is under held entries that entry %d declares to be lost", x.Index)
		return res, nil
	}
	if root != head.Root {
		return violated("receipt.tree", "root "+base64Hash(head.Root)+fmt.Sprintf(" at size %d", head.Size), "root "+base64Hash(root))
	}
	if !trusted {
		res.Why = "it agrees with the log, but no policy says that the log's keys are to be trusted"
		return res, nil
	}
	res.Status = Verified
	return res, nil
}

// isLost says that a receipt is of an entry that is declared lost, which leaves open what that entry was unless the policy pins the
// genesis of who declares it.
func (r *run) isLost(given Receipt, res ReceiptResult, x *Recovery) ReceiptResult {
	res.Status, res.Why = Lost, x.declares()
	if !r.pinned() {
		r.miss(fmt.Sprintf("%s: %s", given.Name, res.Why), ClaimReceipts)
	}
	return res
}

// unknown says that a receipt cannot be compared; err is about reading.
func unknown(res ReceiptResult, err error) (ReceiptResult, error) {
	res.Why = "the log's hashes at that place could not be found out"
	return res, err
}

// proof is a receipt in either form.
type proof struct {
	checkpoint []byte
	index      uint64
	hashes     []record.Hash
	leaf       record.Hash
	hasEntry   bool
	entry      []byte
}

// stamped is when the receipt's entry was, in ns; without the entry it may have been at any time.
func (p *proof) stamped() int64 {
	if !p.hasEntry {
		return math.MinInt64
	}
	e, err := record.ParseEntry(p.entry)
	if err != nil {
		return math.MaxInt64
	}
	return e.Stamp.Sys
}

// isEvent reports whether the receipt carries its entry, and that is an event.
func (p *proof) isEvent() bool {
	if !p.hasEntry {
		return false
	}
	e, err := record.ParseEntry(p.entry)
	return err == nil && e.Kind == record.KindEvent
}

func parseReceipt(b []byte) (*proof, error) {
	if bytes.HasPrefix(b, []byte("c2sp.org/")) {
		index, hashes, signed, err := record.ParseTLogProof(b)
		return &proof{checkpoint: signed, index: index, hashes: hashes}, err
	}
	if len(b) > record.MaxReceipt {
		return nil, fmt.Errorf("more than %d bytes", record.MaxReceipt)
	}
	canonical, err := record.Canonicalize(b, record.MaxDepth) // other tools may have changed its layout; its content is checked
	if err != nil {
		return nil, err
	}
	rc, err := record.ParseReceipt(canonical)
	if err != nil {
		return nil, err
	}
	return &proof{checkpoint: rc.Checkpoint, index: rc.Index, hashes: rc.Proof, leaf: record.LeafHash(rc.Entry), hasEntry: true, entry: rc.Entry}, nil
}

func checkProof(p *proof, head record.Checkpoint, leaf record.Hash) error {
	if p.index >= head.Size {
		return fmt.Errorf("index %d is beyond the tree of %d entries", p.index, head.Size)
	}
	if err := tlog.CheckRecord(p.hashes, int64(head.Size), head.Root, int64(p.index), leaf); err != nil {
		return err
	}
	if !p.hasEntry {
		return nil
	}
	e, err := record.ParseEntry(p.entry)
	if err != nil {
		return err
	}
	if e.Index != p.index || e.Log != head.Origin {
		return fmt.Errorf("the entry says index %d of %s", e.Index, quote(e.Log))
	}
	return nil
}
