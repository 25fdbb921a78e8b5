package ledger

import (
	"hash/maphash"

	"bulla/record"
	"bulla/store"
)

// windowSize is how many of the log's last entries are searched for repeats.
const windowSize = 1 << 20

// snapshotEvery is how many entries lie between two snapshots of the streams' last numbers.
const snapshotEvery = windowSize / 4

// window recognises events that were sent before, by the producer's own id or stream number, among the log's last entries. Both
// names are scoped to the log and the uid. Keys are hashes under a secret seed; a hit is always compared with the entry itself,
// so that a collision costs a read and changes nothing.
type window struct {
	seed    maphash.Seed
	seen    map[uint64]uint64 // key -> index of the entry
	order   []sighting        // what is in seen, oldest first
	streams map[streamKey]int64
	perUID  map[uint32]int         // streams a uid
	changed map[streamKey]struct{} // since the last snapshot
	at      uint64                 // log size at which the next snapshot is due
}

type sighting struct{ key, index uint64 }

type streamKey struct {
	uid uint32
	id  string
}

func newWindow() *window {
	return &window{
		seed: maphash.MakeSeed(), seen: map[uint64]uint64{}, streams: map[streamKey]int64{},
		perUID: map[uint32]int{}, changed: map[streamKey]struct{}{}, at: snapshotEvery,
	}
}

type nameKey struct {
	uid    uint32
	stream bool
	id     string
	n      int64
}

// expect makes room for n names.
func (w *window) expect(n uint64) {
	w.seen, w.order = make(map[uint64]uint64, n), make([]sighting, 0, n)
}

func (w *window) keys(uid uint32, k record.EventKey) (keys [2]uint64, n int) {
	if k.ID != "" {
		keys[n] = maphash.Comparable(w.seed, nameKey{uid: uid, id: k.ID})
		n++
	}
	if k.HasStream {
		keys[n] = maphash.Comparable(w.seed, nameKey{uid: uid, stream: true, id: k.Stream, n: k.N})
		n++
	}
	return keys, n
}

// add notes that the event is at index, and returns what takes the note back.
func (w *window) add(uid uint32, k record.EventKey, index uint64) (undo func()) {
	keys, n := w.keys(uid, k)
	if n == 0 {
		return nil
	}
	var before [2]uint64
	var had [2]bool
	for i, key := range keys[:n] {
		before[i], had[i] = w.seen[key]
		w.seen[key] = index
		w.order = append(w.order, sighting{key, index})
	}
	sk := streamKey{uid, k.Stream}
	last, known := w.streams[sk]
	if k.HasStream {
		if !known {
			w.perUID[uid]++
		}
		w.streams[sk] = k.N
		w.changed[sk] = struct{}{}
	}
	return func() {
		for i, key := range keys[:n] {
			delete(w.seen, key)
			if had[i] {
				w.seen[key] = before[i]
			}
		}
		w.order = w.order[:len(w.order)-n]
		switch {
		case k.HasStream && known:
			w.streams[sk] = last
		case k.HasStream:
			delete(w.streams, sk)
			w.perUID[uid]--
		}
	}
}

// forget drops what lies further back than the window from a committed size.
func (w *window) forget(size uint64) {
	i := 0
	for ; i < len(w.order) && w.order[i].index+windowSize < size; i++ {
		if s := w.order[i]; w.seen[s.key] == s.index {
			delete(w.seen, s.key)
		}
	}
	w.order = w.order[i:]
}

// dirty returns the streams to snapshot, once the log has grown enough since the last time; nil when it has not. A snapshot of no
// streams says as much: that nothing before it needs to be replayed for their sake.
func (w *window) dirty(size uint64) []store.Stream {
	if size < w.at {
		return nil
	}
	w.at = size + snapshotEvery
	out := make([]store.Stream, 0, len(w.changed))
	for k := range w.changed {
		if n, ok := w.streams[k]; ok {
			out = append(out, store.Stream{UID: k.uid, ID: k.id, N: n})
		}
	}
	clear(w.changed)
	return out
}

// snapshot writes the streams' last numbers beside the commits. When it fails, the next one covers everything.
func (l *Ledger) snapshot(streams []store.Stream, size uint64) {
	if err := l.store.PutStreams(streams, size); err != nil {
		l.stats.failed(err)
		l.resnapshot.Store(true)
	}
}
