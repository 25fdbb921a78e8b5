package verify

import (
	"bytes"
	"context"
	"crypto"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"bulla/record"
)

// overlay is evidence with some files in place of those beneath.
type overlay struct {
	base  Source
	files map[string][]byte      // nil: there is none
	hides func(name string) bool // files beneath that are not shown either; nil: all are
}

// Open implements Source.
func (o *overlay) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	if b, ok := o.files[name]; ok && b != nil {
		return io.NopCloser(bytes.NewReader(b)), nil
	} else if ok || o.hides != nil && o.hides(name) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return o.base.Open(ctx, name)
}

// Walk implements Source.
func (o *overlay) Walk(ctx context.Context, f func(name string) error) error {
	err := o.base.Walk(ctx, func(name string) error {
		if _, ok := o.files[name]; ok || o.hides != nil && o.hides(name) {
			return nil
		}
		return f(name)
	})
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(o.files)) {
		if o.files[name] == nil {
			continue
		}
		if err := f(name); err != nil {
			return err
		}
	}
	return nil
}

// edited is the evidence with one file changed.
func (s *subject) edited(ctx context.Context, name string, edit func([]byte) []byte) (*overlay, error) {
	b, ok, err := read(ctx, s.src, name, maxBundle)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, inapplicable("there is no file " + name)
	}
	return &overlay{base: s.src, files: map[string][]byte{name: edit(bytes.Clone(b))}}, nil
}

// bundleOf names the bundle that holds an entry and splits it.
func (s *subject) bundleOf(ctx context.Context, index uint64) (name string, raw [][]byte, err error) {
	name = record.TilePath(tileOf(entries, index, s.head.Size))
	b, ok, err := read(ctx, s.src, name, maxBundle)
	if err != nil {
		return "", nil, err
	}
	if !ok {
		return "", nil, fmt.Errorf("%s is gone: the evidence changes while it is read", name)
	}
	if raw, err = record.ParseBundle(b); err != nil || int(index%tileWidth) >= len(raw) {
		return "", nil, fmt.Errorf("%s is another: the evidence changes while it is read", name)
	}
	return name, raw, nil
}

func joinBundle(raw [][]byte) []byte {
	var out []byte
	for _, e := range raw {
		out = record.AppendBundle(out, e)
	}
	return out
}

// entry is an entry of the evidence.
func (s *subject) entry(ctx context.Context, index uint64) (*record.Entry, error) {
	_, raw, err := s.bundleOf(ctx, index)
	if err != nil {
		return nil, err
	}
	return record.ParseEntry(raw[index%tileWidth])
}

// ReadHashes reads hashes of the given evidence's tree (tlog.HashReader). It was verified.
func (s *subject) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, x := range indexes {
		at := tlog.TileForIndex(8, x)
		t := tileOf(at.L, uint64(at.N)*tileWidth, s.head.Size)
		b, ok, err := read(s.ctx, s.src, record.TilePath(t), tileWidth*tlog.HashSize)
		if err != nil {
			return nil, err
		}
		if !ok {
			return nil, fmt.Errorf("%s is gone: the evidence changes while it is read", record.TilePath(t))
		}
		if out[i], err = tlog.HashFromTile(t, b, x); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// history is another history of the log: the given one up to an entry, and then what somebody made of it who can sign.
type history struct {
	s     *subject
	from  uint64 // entries before are the given ones
	raw   [][]byte
	added []record.Hash // stored hashes of the entries from there on, in the order of tlog.StoredHashIndex
	prev  record.Hash
	err   error // the first; the methods after it do nothing
}

// history begins one that has the first n entries of the given one.
func (s *subject) history(n uint64) *history {
	h := &history{s: s, from: n}
	if n > 0 {
		var leaf []tlog.Hash
		if leaf, h.err = s.ReadHashes([]int64{tlog.StoredHashIndex(0, int64(n-1))}); h.err == nil {
			h.prev = leaf[0]
		}
	}
	return h
}

func (h *history) size() uint64 { return h.from + uint64(len(h.raw)) }

// add appends an entry, numbered and chained.
func (h *history) add(e *record.Entry) *history {
	e.Index, e.Prev = h.size(), h.prev
	if e.Index == 0 {
		e.Prev = record.Hash{}
	}
	return h.addAs(e)
}

// addAs appends an entry as it says that it is.
func (h *history) addAs(e *record.Entry) *history {
	raw, err := e.Append(nil)
	if err != nil && h.err == nil {
		h.err = err
	}
	return h.addRaw(raw)
}

// addRaw appends any bytes as an entry.
func (h *history) addRaw(raw []byte) *history {
	if h.err != nil {
		return h
	}
	leaf := record.LeafHash(raw)
	var more []tlog.Hash
	if more, h.err = tlog.StoredHashesForRecordHash(int64(h.size()), leaf, h); h.err == nil {
		h.raw, h.added, h.prev = append(h.raw, raw), append(h.added, more...), leaf
	}
	return h
}

// maxRewritten bounds the entries that a history chains anew: they lie in memory.
const maxRewritten = 1 << 18

// goOn appends the given entries from an index to before another, numbered and chained anew.
func (h *history) goOn(ctx context.Context, from, to uint64) *history {
	if to > from+maxRewritten && h.err == nil {
		h.err = inapplicable(fmt.Sprintf("it would have to chain %d entries anew, and a selftest keeps at most %d in memory", to-from, maxRewritten))
	}
	for index := from; index < to && h.err == nil; {
		_, raw, err := h.s.bundleOf(ctx, index)
		if err != nil {
			h.err = err
			break
		}
		for ; index < to && h.err == nil; index++ {
			var e *record.Entry
			if e, h.err = record.ParseEntry(raw[index%tileWidth]); h.err == nil {
				h.add(e)
			}
			if index%tileWidth == tileWidth-1 {
				index++
				break
			}
		}
	}
	return h
}

// ReadHashes implements tlog.HashReader for the tree of this history.
func (h *history) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	known := tlog.StoredHashCount(int64(h.from))
	out := make([]tlog.Hash, len(indexes))
	for i, x := range indexes {
		if x >= known {
			out[i] = h.added[x-known]
			continue
		}
		one, err := h.s.ReadHashes([]int64{x})
		if err != nil {
			return nil, err
		}
		out[i] = one[0]
	}
	return out, nil
}

// checkpoint is the head of this history, not signed.
func (h *history) checkpoint() (c record.Checkpoint, err error) {
	if h.err != nil {
		return c, h.err
	}
	c = record.Checkpoint{Origin: h.s.head.Origin, Size: h.size()}
	c.Root, err = tlog.TreeHash(int64(c.Size), h)
	return c, err
}

// sign is the signed head of this history.
func (h *history) sign() ([]byte, error) {
	c, err := h.checkpoint()
	if err != nil {
		return nil, err
	}
	return h.s.keys.sign(c)
}

// export makes evidence of this history: the given tiles as far as they hold, and its own.
func (h *history) export(ctx context.Context) (*overlay, error) {
	signed, err := h.sign()
	if err != nil {
		return nil, err
	}
	o := &overlay{base: h.s.src, files: map[string][]byte{checkpoint: signed}}
	own := func(t tlog.Tile) bool { // what it is over is not all given, or not all of its width
		return t.W < tileWidth || (uint64(t.N+1)*tileWidth)<<(8*max(t.L, 0)) > h.from
	}
	o.hides = func(name string) bool {
		t, ok := record.ParseTilePath(name)
		return !ok && name != checkpoint || ok && own(t)
	}
	return o, Tiles(h.size(), func(t tlog.Tile) error {
		if !own(t) {
			return nil
		}
		var data []byte
		var err error
		if t.L >= 0 {
			data, err = tlog.ReadTileData(t, h)
		} else {
			data, err = h.bundle(ctx, t)
		}
		o.files[record.TilePath(t)] = data
		return err
	})
}

func (h *history) bundle(ctx context.Context, t tlog.Tile) ([]byte, error) {
	first := uint64(t.N) * tileWidth
	var raw [][]byte
	if first < h.from {
		_, given, err := h.s.bundleOf(ctx, first)
		if err != nil {
			return nil, err
		}
		raw = given[:min(h.from-first, tileWidth, uint64(t.W))]
	}
	for i := first + uint64(len(raw)); i < first+uint64(t.W); i++ {
		raw = append(raw, h.raw[i-h.from])
	}
	return joinBundle(raw), nil
}

// receipt is what a producer would have got for an entry of this history, as it is.
func (h *history) receipt(ctx context.Context, index uint64) (r record.Receipt, err error) {
	if r.Checkpoint, err = h.sign(); err != nil {
		return r, err
	}
	r.Index = index
	if r.Proof, err = tlog.ProveRecord(int64(h.size()), int64(index), h); err != nil {
		return r, err
	}
	if index >= h.from {
		r.Entry = h.raw[index-h.from]
		return r, nil
	}
	_, raw, err := h.s.bundleOf(ctx, index)
	if err == nil {
		r.Entry = raw[index%tileWidth]
	}
	return r, err
}

// keyring is what whoever tampers has.
type keyring struct {
	heads func(origin string) ([]note.Signer, error) // of every key that must sign the log's head
	seals crypto.Signer                              // the attestation key: ECDSA on P-256
	thief *thief                                     // whose keys the verifier is told to accept; nil where the keys are the log's own
}

// sign makes a signed head.
func (k *keyring) sign(c record.Checkpoint) ([]byte, error) {
	signers, err := k.heads(c.Origin)
	if err != nil {
		return nil, err
	}
	return note.Sign(&note.Note{Text: c.Text()}, signers...)
}
