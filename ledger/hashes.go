package ledger

import (
	"sync/atomic"

	"golang.org/x/mod/sumdb/tlog"
)

// High hashes are those of subtrees of at least 256 entries. They take part in most proofs, and there are few of them.
const (
	highLevel = 8
	highBits  = 15 // 2^15 are kept: 2 MiB
)

// hashes reads tree hashes for proofs, and keeps the high ones: a stored hash never changes. Were the store damaged since, the proof
// is right all the same; the self-check reads the store itself.
type hashes struct {
	store Store
	kept  [1 << highBits]atomic.Pointer[keptHash]
}

type keptHash struct {
	index int64
	hash  tlog.Hash
}

// slot is where a hash is kept, if it is; another may take its place.
func (h *hashes) slot(index int64) *atomic.Pointer[keptHash] {
	return &h.kept[uint64(index)*0x9E3779B97F4A7C15>>(64-highBits)] // Fibonacci hashing
}

// ReadHashes implements tlog.HashReader.
func (h *hashes) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	var missing []int64
	var places []int
	for i, index := range indexes {
		if k := h.slot(index).Load(); k != nil && k.index == index {
			out[i] = k.hash
			continue
		}
		missing, places = append(missing, index), append(places, i)
	}
	if len(missing) == 0 {
		return out, nil
	}
	read, err := h.store.ReadHashes(missing)
	if err != nil {
		return nil, err
	}
	for i, index := range missing {
		out[places[i]] = read[i]
		if level, _ := tlog.SplitStoredHashIndex(index); level >= highLevel {
			h.slot(index).Store(&keptHash{index, read[i]})
		}
	}
	return out, nil
}
