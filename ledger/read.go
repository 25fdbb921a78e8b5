package ledger

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"bulla/ceremony"
	"bulla/record"
)

// Result is where a request's events are, under one signed checkpoint that covers them all.
type Result struct {
	Checkpoint []byte // signed note
	Items      []Item // in the order of the request
	size       uint64
	span       record.Span
	ledger     *Ledger
}

// Item is one event of a request, as logged.
type Item struct {
	Index uint64
	Entry []byte // the exact bytes; of a repeat, those of the first time
	Leaf  record.Hash
}

// result makes the answer to a request of the committed batch b.
func (l *Ledger) result(b *batch, r *request) *Result {
	res := &Result{Checkpoint: b.next.checkpoint, Items: make([]Item, len(r.places)), size: b.next.size(), span: b.span, ledger: l}
	first := b.base.size()
	for i, p := range r.places {
		res.Items[i].Index = p.index
		if p.index >= first {
			res.Items[i].Entry = b.content.Entries[p.index-first]
			res.Items[i].Leaf = b.content.Hashes[tlog.StoredHashIndex(0, int64(p.index))-tlog.StoredHashIndex(0, int64(first))]
		}
	}
	return res
}

// Item returns the i-th event's place in the log; a repeat's entry is read back here.
func (r *Result) Item(i int) (Item, error) {
	it := r.Items[i]
	if it.Entry != nil {
		return it, nil
	}
	entry, err := r.ledger.Entry(it.Index)
	if err != nil {
		return it, err
	}
	return Item{Index: it.Index, Entry: entry, Leaf: record.LeafHash(entry)}, nil
}

// Proof returns the inclusion proof of the i-th event under the result's checkpoint.
func (r *Result) Proof(i int) ([]record.Hash, error) {
	if index := r.Items[i].Index; index < r.span.Base.Size() || r.span.Size == 0 {
		return r.ledger.Proof(index, r.size)
	}
	return tlog.ProveRecord(int64(r.size), int64(r.Items[i].Index), r.span)
}

// Checkpoint is the signed note over all committed entries. If the log has an Ed25519 key, it has that line too: it is made here,
// once a head, and not for every batch, because a token takes longer for it than for all the rest. Should its device fail, the
// checkpoint is as good without.
func (l *Ledger) Checkpoint() []byte { return l.lined(l.committed.Load()) }

// shown is a head with all its lines, and when it was shown first.
type shown struct {
	*head
	at time.Time
}

// showFor is how long readers of entries are shown the same head, so that many of them, while events are written, do not ask the device
// for a signature each.
const showFor = time.Second

// Covering is a signed note over a committed entry, with all its lines, and its size. It was the current one within the last second.
func (l *Ledger) Covering(index uint64) (checkpoint []byte, size uint64) {
	s := l.shown.Load()
	if now := time.Now(); s == nil || s.size() <= index || now.Sub(s.at) > showFor {
		s = &shown{l.committed.Load(), now}
		l.lined(s.head)
		l.shown.Store(s)
	}
	return l.lined(s.head), s.size()
}

func (l *Ledger) lined(h *head) []byte {
	if h.lines.interop == nil {
		return h.checkpoint
	}
	h.both.Do(func() {
		text := l.text(h)
		signed, err := note.Sign(&note.Note{Text: text}, h.lines.interop)
		if err != nil {
			l.stats.failed(fmt.Errorf("the additional signature: %w", err))
			h.twice = h.checkpoint
			return
		}
		h.twice = append(slices.Clone(h.checkpoint), signed[len(text)+1:]...)
	})
	return h.twice
}

// Size is the number of committed entries.
func (l *Ledger) Size() uint64 { return l.committed.Load().size() }

// State is what governs the log after its last committed entry.
func (l *Ledger) State() ceremony.State { return l.committed.Load().state }

// Head is the committed head: its checkpoint without signatures.
func (l *Ledger) Head() record.Checkpoint {
	h := l.committed.Load()
	return record.Checkpoint{Origin: l.cfg.Origin, Size: h.size(), Root: h.tree.Root()}
}

// Entry returns a committed entry's bytes; an error wraps store.ErrNotFound when there is none.
func (l *Ledger) Entry(index uint64) ([]byte, error) { return l.store.Entry(index) }

// Entries returns at most limit committed entries from an index on, and no more than about 4 MiB of them.
func (l *Ledger) Entries(from uint64, limit int) ([][]byte, error) {
	var out [][]byte
	bytes := 0
	err := l.store.Range(from, from+uint64(limit), func(_ uint64, e []byte) bool {
		out = append(out, slices.Clone(e))
		bytes += len(e)
		return bytes < 4<<20
	})
	return out, err
}

// Kind returns the indices of at most limit committed entries of a kind other than event, from an index on.
func (l *Ledger) Kind(kind record.Kind, from uint64, limit int) ([]uint64, error) {
	var out []uint64
	err := l.store.Marks(kind, from, func(i uint64) bool {
		out = append(out, i)
		return len(out) < limit
	})
	return out, err
}

// LastKind returns the index of the last entry of a kind other than event.
func (l *Ledger) LastKind(kind record.Kind) (uint64, bool, error) { return l.store.LastMark(kind) }

// Proof returns the inclusion proof of an entry in the tree of a committed size.
func (l *Ledger) Proof(index, size uint64) ([]record.Hash, error) {
	if index >= size || size > l.Size() {
		return nil, fmt.Errorf("proving entry %d in a tree of size %d: the log has %d entries", index, size, l.Size())
	}
	return tlog.ProveRecord(int64(size), int64(index), l.hashes)
}

// Consistency returns the consistency proof between two committed sizes.
func (l *Ledger) Consistency(old, size uint64) ([]record.Hash, error) {
	if old == 0 || old > size || size > l.Size() {
		return nil, fmt.Errorf("proving that size %d extends %d: the log has %d entries", size, old, l.Size())
	}
	return tlog.ProveTree(int64(size), int64(old), l.hashes)
}

// RootAt computes the tree's root at a committed size.
func (l *Ledger) RootAt(size uint64) (record.Hash, error) {
	if size > l.Size() {
		return record.Hash{}, fmt.Errorf("the root at size %d: the log has %d entries", size, l.Size())
	}
	return tlog.TreeHash(int64(size), l.store)
}

// Tile returns the bytes of a C2SP tlog tile of height 8: hashes, or with level -1 a bundle of entries. The error wraps
// store.ErrNotFound for a tile that the log does not reach.
func (l *Ledger) Tile(t tlog.Tile) ([]byte, error) { return l.store.Tile(t) }

// Status is how a log is doing.
type Status struct {
	Origin     string
	Size       uint64
	Checkpoint []byte
	VKeys      []string // of the lines that the checkpoint carries, the authoritative first
	Refusing   *Refusal // why events are refused by order of the sealer; nil when they are not
	LastFault  string   // the last failure of device or disk
	Waiting    int      // events in the queue
	Stats      Stats
}

// Stats counts since the ledger was opened.
type Stats struct {
	Entries    uint64
	Batches    uint64
	Refused    map[record.Code]uint64
	SignTime   time.Duration // summed over batches
	CommitTime time.Duration
	Faults     uint64
}

// Status returns a snapshot.
func (l *Ledger) Status() (Status, error) {
	h := l.committed.Load()
	vkeys, err := h.state.VKeys()
	if err != nil {
		return Status{}, err
	}
	s := Status{Origin: l.cfg.Origin, Size: h.size(), Checkpoint: l.Checkpoint(), VKeys: vkeys, Refusing: l.hold.Load()}
	s.Waiting, _ = l.queue.waiting()
	s.Stats, s.LastFault = l.stats.snapshot()
	return s, nil
}

// stats collects what Stats shows.
type stats struct {
	mu    sync.Mutex
	s     Stats
	fault string
	code  record.Code // of the fault; "" if it has none
}

func (s *stats) snapshot() (Stats, string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.s
	out.Refused = maps.Clone(s.s.Refused)
	return out, s.fault
}

func (s *stats) signed(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.s.SignTime += d
}

func (s *stats) committed(entries int, d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.s.Entries += uint64(entries)
	s.s.Batches++
	s.s.CommitTime += d
}

func (s *stats) failed(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.s.Faults++
	s.fault, s.code = err.Error(), ""
	if r, ok := err.(*Refusal); ok {
		s.code = r.Code
	}
}

// lastFault is the last failure of device or disk, and the code that it is refused with.
func (s *stats) lastFault() (record.Code, string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.code, s.fault
}

// refused counts a refusal, and passes the error on.
func (s *stats) refused(err error) error {
	if r, ok := err.(*Refusal); ok {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.s.Refused == nil {
			s.s.Refused = map[record.Code]uint64{}
		}
		s.s.Refused[r.Code]++
	}
	return err
}
