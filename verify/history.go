package verify

import (
	"context"

	"golang.org/x/mod/sumdb/tlog"

	"bulla/record"
)

// rootAt is the root that the log's tree had at a size, made of the leaf hashes as they were judged; ok is false when the log has
// not been judged that far, or when hashes are not known.
func (r *run) rootAt(ctx context.Context, size uint64) (root record.Hash, ok bool, err error) {
	if r.chain.unknown || size > r.chain.at {
		return record.Hash{}, false, nil
	}
	last, ok, err := r.leaves(ctx, size/tileWidth, int(size%tileWidth))
	if err != nil || !ok {
		return record.Hash{}, false, err
	}
	var edge []record.Hash
	full := size / tileWidth
	for level, rest := 63, full; level >= 0; level-- {
		if rest&(1<<level) != 0 {
			rest &^= 1 << level
			edge = append(edge, r.chain.stored[tlog.StoredHashIndex(level, int64((full-rest)>>level-1))])
		}
	}
	tree, err := record.NewTree(full, edge)
	if err != nil {
		return record.Hash{}, false, err
	}
	return joined(tree, last), true, nil
}

// leafAt is the leaf hash of a judged entry.
func (r *run) leafAt(ctx context.Context, index uint64) (leaf record.Hash, ok bool, err error) {
	if r.chain.unknown || index >= r.chain.at {
		return record.Hash{}, false, nil
	}
	hashes, ok, err := r.leaves(ctx, index/tileWidth, int(index%tileWidth)+1)
	if err != nil || !ok {
		return record.Hash{}, false, err
	}
	return hashes[len(hashes)-1], true, nil
}

// leaves are the first n leaf hashes of a bundle as they were judged. Those of complete bundles are read again, from the tile, and
// must lead to the hash that is remembered of the bundle.
func (r *run) leaves(ctx context.Context, bundle uint64, n int) ([]record.Hash, bool, error) {
	if n == 0 {
		return nil, true, nil
	}
	if bundle == r.chain.tree.Size() {
		return r.chain.hashes[:n], true, nil
	}
	data, ok, err := read(ctx, r.src, record.TilePath(tlog.Tile{H: 8, L: 0, N: int64(bundle), W: tileWidth}), tileWidth*tlog.HashSize)
	if err != nil || !ok || len(data) != tileWidth*tlog.HashSize {
		return nil, false, err
	}
	all := hashes(data)
	if treeOf(all).Root() != r.chain.stored[tlog.StoredHashIndex(0, int64(bundle))] {
		return nil, false, nil
	}
	return all[:n], true, nil
}

// joined is the root of a log of which tree is over its complete bundles' roots, and last are the leaves behind them.
func joined(tree *record.Tree, last []record.Hash) record.Hash {
	if len(last) == tileWidth {
		tree, last = tree.Clone(), append([]record.Hash(nil), last...)
		tree.Append(nil, treeOf(last).Root())
		last = nil
	}
	// The edge of the whole is the edge of the one, whose subtrees are all larger, followed by that of the other.
	all, err := record.NewTree(tree.Size()*tileWidth+uint64(len(last)), append(tree.Edge(), treeOf(last).Edge()...))
	if err != nil {
		panic("verify: " + err.Error()) // sizes are bounded by the head's
	}
	return all.Root()
}

func treeOf(leaves []record.Hash) *record.Tree {
	t := &record.Tree{}
	var scratch []record.Hash
	for _, h := range leaves {
		scratch = t.Append(scratch[:0], h)
	}
	return t
}
