package record

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	"golang.org/x/mod/sumdb/tlog"
)

// stored is a whole log as x/mod keeps it.
type stored []Hash

func (s stored) ReadHashes(indexes []int64) ([]Hash, error) {
	out := make([]Hash, len(indexes))
	for i, index := range indexes {
		if index >= int64(len(s)) {
			return nil, fmt.Errorf("hash %d of %d", index, len(s))
		}
		out[i] = s[index]
	}
	return out, nil
}

func leafOf(i int) Hash { return LeafHash(fmt.Append(nil, "entry ", i)) }

// The tree must store the same hashes and have the same root as x/mod's, at every size.
func TestTreeAgreesWithTlog(t *testing.T) {
	t.Parallel()
	const sizes = 600
	var want stored
	var got []Hash
	tree := new(Tree)
	for n := range sizes {
		root, err := tlog.TreeHash(int64(n), want)
		if err != nil {
			t.Fatal(err)
		}
		if tree.Root() != root || tree.Size() != uint64(n) {
			t.Fatalf("size %d: root %v, want %v", n, tree.Root(), root)
		}
		again, err := NewTree(tree.Size(), tree.Edge())
		if err != nil || again.Root() != root {
			t.Fatalf("size %d: from its edge: %v", n, err)
		}
		hashes, err := tlog.StoredHashesForRecordHash(int64(n), leafOf(n), want)
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, hashes...)
		got = tree.Append(got, leafOf(n))
		if !slices.Equal(got, want) {
			t.Fatalf("size %d: other stored hashes", n)
		}
	}
}

// A hasher must hash as everything else does, however often it is used.
func TestHasherAgrees(t *testing.T) {
	t.Parallel()
	var h Hasher
	tree := new(Tree)
	var leaves []Hash
	for n := range 700 {
		entry := bytes.Repeat([]byte{byte(n)}, n*337%700) // every length to 699, shorter ones behind longer ones
		if got := h.Leaf(entry); got != LeafHash(entry) {
			t.Fatalf("leaf %d: %v", n, got)
		}
		leaves = append(leaves, LeafHash(entry))
		tree.Append(nil, leaves[n])
		if got := h.Root(slices.Clone(leaves)); got != tree.Root() {
			t.Fatalf("size %d: root %v, want %v", n+1, got, tree.Root())
		}
	}
}

// A span must prove every leaf appended after its base, and know nothing else than it should.
func TestSpanProvesItsLeaves(t *testing.T) {
	t.Parallel()
	const largest = 300
	var all stored
	trees := []*Tree{new(Tree)}
	for n := range largest {
		next := trees[n].Clone()
		all = next.Append(all, leafOf(n))
		trees = append(trees, next)
	}
	bases := []int{0, 1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 64, 100, 127, 128, 129, 200, 255, 256, 257, 299}
	for _, base := range bases {
		from := tlog.StoredHashCount(int64(base))
		for size := base; size <= largest; size++ {
			span := Span{Base: trees[base], Hashes: all[from:tlog.StoredHashCount(int64(size))], Size: uint64(size)}
			if root, err := tlog.TreeHash(int64(size), span); err != nil || root != trees[size].Root() {
				t.Fatalf("root of %d on %d: %v, %v", size, base, root, err)
			}
			step := 1 + size/80 // every leaf of small trees, some of large ones, always the first
			for leaf := base; leaf < size; leaf += step {
				proof, err := tlog.ProveRecord(int64(size), int64(leaf), span)
				if err != nil {
					t.Fatalf("leaf %d of %d on %d: %v", leaf, size, base, err)
				}
				if err := tlog.CheckRecord(proof, int64(size), trees[size].Root(), int64(leaf), leafOf(leaf)); err != nil {
					t.Fatalf("leaf %d of %d on %d: %v", leaf, size, base, err)
				}
			}
		}
	}
}

func TestSpanRefuses(t *testing.T) {
	t.Parallel()
	tree := new(Tree)
	for i := range 5 {
		tree.Append(nil, leafOf(i))
	}
	base := tree.Clone()
	hashes := tree.Append(nil, leafOf(5))
	good := Span{Base: base, Hashes: hashes, Size: 6}
	for _, index := range []int64{-1, 0, 1, 2, 3, 4, 5, 10, 100, 1 << 60} {
		_, err := good.ReadHashes([]int64{index})
		// Leaves 0 to 3 are under the edge hash with index 6; leaf 4 is an edge hash itself, index 7.
		if known := index == 6 || index == 7 || index == 8 || index == 9; (err == nil) != known {
			t.Errorf("hash %d: %v", index, err)
		}
	}
	for _, bad := range []Span{{base, hashes, 5}, {base, hashes, 7}, {base, hashes[:1], 6}, {base, nil, 6}, {base, append(hashes, Hash{}), 6}, {base, hashes, 4}} {
		if _, err := tlog.TreeHash(int64(bad.Size), bad); err == nil {
			t.Errorf("a span of %d hashes to size %d was taken", len(bad.Hashes), bad.Size)
		}
	}
}

func TestNewTreeRefuses(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		size  uint64
		edges int
	}{{0, 1}, {1, 0}, {1, 2}, {3, 1}, {8, 3}, {MaxInt + 1, 1}, {1 << 63, 1}} {
		if _, err := NewTree(c.size, make([]Hash, c.edges)); err == nil {
			t.Errorf("a tree of %d with %d hashes was taken", c.size, c.edges)
		}
	}
	if _, err := NewTree(MaxInt, make([]Hash, 53)); err != nil {
		t.Error(err)
	}
}

// What grows from a clone must not show in the original, nor the other way round.
func TestTreeCloneIsApart(t *testing.T) {
	t.Parallel()
	a := new(Tree)
	for i := range 7 {
		a.Append(nil, leafOf(i))
	}
	root, b := a.Root(), a.Clone()
	b.Append(nil, leafOf(7))
	b.Append(nil, leafOf(8))
	edge := a.Edge()
	edge[0] = Hash{}
	if a.Root() != root || a.Size() != 7 {
		t.Error("the original changed")
	}
}
