package record

import (
	"crypto/sha256"
	"fmt"
	"math/bits"
	"slices"

	"golang.org/x/mod/sumdb/tlog"
)

// Tree is an RFC 6962 Merkle tree as what is needed to go on with it: its size and the roots of the perfect subtrees along its
// right edge, largest first, one for each bit set in size.
type Tree struct {
	size uint64
	edge []Hash
}

// NewTree returns a tree of the given size with a copy of the given edge; the zero Tree is the empty one.
func NewTree(size uint64, edge []Hash) (*Tree, error) {
	if size > MaxInt {
		return nil, fmt.Errorf("a tree of %d entries is too large: the limit is 2^53-1", size)
	}
	if n := bits.OnesCount64(size); n != len(edge) {
		return nil, fmt.Errorf("a tree of %d entries has an edge of %d hashes, not %d", size, n, len(edge))
	}
	return &Tree{size: size, edge: slices.Clone(edge)}, nil
}

// Size is the number of leaves.
func (t *Tree) Size() uint64 { return t.size }

// Edge returns a copy of the right edge.
func (t *Tree) Edge() []Hash { return slices.Clone(t.edge) }

// Clone returns a tree that grows independently.
func (t *Tree) Clone() *Tree { return &Tree{size: t.size, edge: slices.Clone(t.edge)} }

// Root is the tree head (RFC 6962 section 2.1).
func (t *Tree) Root() Hash {
	if t.size == 0 {
		return sha256.Sum256(nil)
	}
	last := len(t.edge) - 1
	root := t.edge[last]
	for i := last - 1; i >= 0; i-- {
		root = tlog.NodeHash(t.edge[i], root)
	}
	return root
}

// Append adds a leaf, and appends to dst the hashes to be stored for it: the leaf and every perfect subtree that it completes, in
// the order of tlog.StoredHashIndex.
func (t *Tree) Append(dst []Hash, leaf Hash) []Hash {
	dst = append(dst, leaf)
	for n := t.size; n&1 != 0; n >>= 1 {
		last := len(t.edge) - 1
		leaf = tlog.NodeHash(t.edge[last], leaf)
		t.edge = t.edge[:last]
		dst = append(dst, leaf)
	}
	t.edge = append(t.edge, leaf)
	t.size++
	return dst
}

// Span is a tree grown from Base to Size: the base's edge and the hashes that Append returned since. That is enough to prove, in
// the tree of Size, any leaf appended after Base, so proofs for a batch need no storage. It is a tlog.HashReader for exactly the
// hashes of such proofs and of the tree head.
type Span struct {
	Base   *Tree
	Hashes []Hash
	Size   uint64
}

// ReadHashes implements tlog.HashReader.
func (s Span) ReadHashes(indexes []int64) ([]Hash, error) {
	from := tlog.StoredHashCount(int64(s.Base.size))
	if want := tlog.StoredHashCount(int64(s.Size)) - from; want != int64(len(s.Hashes)) {
		return nil, fmt.Errorf("a span from %d to %d entries has %d new hashes, not %d", s.Base.size, s.Size, want, len(s.Hashes))
	}
	out := make([]Hash, len(indexes))
	for i, index := range indexes {
		switch {
		case index >= from && index-from < int64(len(s.Hashes)):
			out[i] = s.Hashes[index-from]
		default:
			h, ok := s.Base.edgeHash(index)
			if !ok {
				return nil, fmt.Errorf("hash %d is not in the span from %d to %d entries", index, s.Base.size, s.Size)
			}
			out[i] = h
		}
	}
	return out, nil
}

// edgeHash finds the hash with a stored index on the edge.
func (t *Tree) edgeHash(index int64) (Hash, bool) {
	if index < 0 {
		return Hash{}, false
	}
	level, n := tlog.SplitStoredHashIndex(index)
	// The edge has a subtree of this level where the size has the bit, and it is the last complete one.
	if above := t.size >> level; above&1 == 0 || n != int64(above-1) {
		return Hash{}, false
	}
	return t.edge[bits.OnesCount64(t.size>>(level+1))], true
}
