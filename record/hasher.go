package record

import (
	"crypto/sha256"
	"encoding"
	"encoding/binary"
	"hash"
)

// Hasher hashes many entries and the trees over them: a third faster than LeafHash and tlog.NodeHash, which for texts as short as these
// spend much of their time beside the hashing. It pads a text itself (FIPS 180-4 section 5.1.1), so that crypto/sha256 gets whole
// blocks only and copies none; the hash is then the digest's state, which AppendBinary writes behind four bytes of magic. Should that
// form ever change, all hashes would be wrong, and nothing could be taken for verified. The zero value is ready; it is for one
// goroutine.
type Hasher struct {
	digest hash.Hash
	state  encoding.BinaryAppender // of digest
	leaf   []byte                  // room for an entry, padded
	node   [2 * sha256.BlockSize]byte
	sum    [4 + sha256.Size + sha256.BlockSize + 8]byte // room for the state: magic, hash, text not yet hashed, length
}

// Leaf is LeafHash.
func (h *Hasher) Leaf(entry []byte) Hash {
	size := padded(1 + len(entry))
	if cap(h.leaf) < size {
		h.leaf = make([]byte, size, 2*size)
	}
	h.leaf = h.leaf[:size]
	h.leaf[0] = 0
	copy(h.leaf[1:], entry)
	return h.hash(h.leaf, 1+len(entry))
}

func (h *Hasher) pair(left, right *Hash) Hash {
	h.node[0] = 1
	copy(h.node[1:], left[:])
	copy(h.node[1+sha256.Size:], right[:])
	return h.hash(h.node[:], 1+2*sha256.Size)
}

// padded is the length of a text of n bytes with its padding: a one bit, zeros, and its length in eight bytes.
func padded(n int) int {
	return (n + 1 + 8 + sha256.BlockSize - 1) / sha256.BlockSize * sha256.BlockSize
}

// hash hashes the first n bytes of text, behind which there is room for the padding.
func (h *Hasher) hash(text []byte, n int) Hash {
	if h.digest == nil {
		h.digest = sha256.New()
		h.state = h.digest.(encoding.BinaryAppender)
	}
	text[n] = 0x80
	clear(text[n+1:])
	binary.BigEndian.PutUint64(text[len(text)-8:], uint64(n)*8)
	h.digest.Reset()
	h.digest.Write(text)
	state, err := h.state.AppendBinary(h.sum[:0])
	if err != nil {
		panic("record: " + err.Error()) // crypto/sha256 never fails
	}
	return Hash(state[4:])
}

// Root is the tree head over leaves, at least one, which it overwrites.
func (h *Hasher) Root(leaves []Hash) Hash {
	for len(leaves) > 1 {
		// A last hash without another to its right goes up as it is.
		n := len(leaves) / 2
		for i := range n {
			leaves[i] = h.pair(&leaves[2*i], &leaves[2*i+1])
		}
		if len(leaves)%2 == 1 {
			leaves[n] = leaves[2*n]
			n++
		}
		leaves = leaves[:n]
	}
	return leaves[0]
}
