package record

import (
	"fmt"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// Receipt proves, offline and without the appliance, that an entry is in a log: the exact bytes of the entry, and its inclusion
// proof under a signed checkpoint.
type Receipt struct {
	Checkpoint []byte // signed note
	Entry      []byte // the exact bytes
	Index      uint64
	Proof      []Hash // RFC 6962 audit path, the leaf's sibling first
}

type wireReceipt struct {
	Checkpoint string `json:"checkpoint"`
	Entry      []byte `json:"entry"`
	Index      uint64 `json:"index"`
	Proof      []Hash `json:"proof"`
}

// MarshalJSON returns the canonical JSON of the receipt: checkpoint as text, entry and proof in base64.
func (r Receipt) MarshalJSON() ([]byte, error) {
	return MarshalCanonical(wireReceipt{Checkpoint: string(r.Checkpoint), Entry: r.Entry, Index: r.Index, Proof: r.Proof})
}

// UnmarshalJSON reads a receipt inside another document, whose encoder may have spaced and escaped it in its own way.
func (r *Receipt) UnmarshalJSON(b []byte) error {
	if len(b) > 2*MaxReceipt {
		return tooLarge("", len(b), 2*MaxReceipt)
	}
	b, err := Canonicalize(b, MaxDepth)
	if err != nil {
		return err
	}
	*r, err = ParseReceipt(b)
	return err
}

// ParseReceipt reads a receipt's canonical JSON and checks its limits; only Verify says whether it holds. A receipt that went
// through other tools is read after Canonicalize(b, MaxDepth).
func ParseReceipt(b []byte) (Receipt, error) {
	if len(b) > MaxReceipt {
		return Receipt{}, tooLarge("", len(b), MaxReceipt)
	}
	var w wireReceipt
	if err := UnmarshalCanonical(b, &w); err != nil {
		return Receipt{}, err
	}
	r := Receipt{Checkpoint: []byte(w.Checkpoint), Entry: w.Entry, Index: w.Index, Proof: w.Proof}
	return r, r.checkSizes()
}

func (r Receipt) checkSizes() error {
	switch {
	case len(r.Checkpoint) > MaxCheckpoint:
		return tooLarge("checkpoint", len(r.Checkpoint), MaxCheckpoint)
	case len(r.Entry) > MaxEntry:
		return tooLarge("entry", len(r.Entry), MaxEntry)
	case len(r.Proof) > MaxProof:
		return refuse("proof", "%d hashes are too many: the limit is %d", len(r.Proof), MaxProof)
	case r.Index > MaxInt:
		return refuse("index", "must be at most 2^53-1")
	}
	return nil
}

// Verify checks everything that a receipt claims: that a key among vs signed the checkpoint (see OpenCheckpoint), that the
// checkpoint's tree has the entry at the index, and that the entry itself says that it is at this index of this log.
func (r Receipt) Verify(vs ...note.Verifier) (*Entry, Checkpoint, error) {
	if err := r.checkSizes(); err != nil {
		return nil, Checkpoint{}, err
	}
	c, _, err := OpenCheckpoint(r.Checkpoint, vs...)
	if err != nil {
		return nil, Checkpoint{}, err
	}
	if r.Index >= c.Size {
		return nil, Checkpoint{}, fmt.Errorf("verifying receipt: index %d is beyond the checkpoint's size %d", r.Index, c.Size)
	}
	if err := tlog.CheckRecord(r.Proof, int64(c.Size), c.Root, int64(r.Index), LeafHash(r.Entry)); err != nil {
		return nil, Checkpoint{}, fmt.Errorf("verifying receipt: the entry is not at index %d of the checkpoint's tree: %w", r.Index, err)
	}
	e, err := ParseEntry(r.Entry)
	if err != nil {
		return nil, Checkpoint{}, fmt.Errorf("verifying receipt: %w", within("entry", err))
	}
	if e.Index != r.Index || e.Log != c.Origin {
		return nil, Checkpoint{}, fmt.Errorf("verifying receipt: the entry says index %d of %q, the receipt %d of %q", e.Index, e.Log, r.Index, c.Origin)
	}
	return e, c, nil
}
