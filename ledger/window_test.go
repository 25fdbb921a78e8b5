package ledger

import (
	"fmt"
	"testing"

	"bulla/record"
)

// However long a log is, and whether its producers number their events or not, opening it reads no more than its last entries: a
// snapshot says regularly that what is before it need not be read for the streams' sake.
func TestSnapshotsComeRegularly(t *testing.T) {
	t.Parallel()
	w := newWindow()
	if w.dirty(snapshotEvery-1) != nil {
		t.Error("a snapshot before it is due")
	}
	if got := w.dirty(snapshotEvery); got == nil || len(got) != 0 {
		t.Errorf("snapshot of no streams: %v", got)
	}
	w.add(1, record.EventKey{Stream: "s", N: 7, HasStream: true}, 5)
	if w.dirty(2*snapshotEvery-1) != nil {
		t.Error("a snapshot before it is due")
	}
	if got := w.dirty(2 * snapshotEvery); fmt.Sprint(got) != "[{1 s 7}]" {
		t.Errorf("snapshot %v", got)
	}
	if got := w.dirty(3 * snapshotEvery); got == nil || len(got) != 0 {
		t.Errorf("what did not change is written again: %v", got)
	}
}

func TestWindowForgets(t *testing.T) {
	t.Parallel()
	w := newWindow()
	key := func(i uint64) record.EventKey {
		return record.EventKey{ID: fmt.Sprint(i), Stream: "s", N: int64(i), HasStream: true}
	}
	for i := range uint64(1000) {
		w.add(1, key(i), i)
	}
	w.add(1, record.EventKey{ID: "3"}, 1000) // the name of an older event, used again
	w.forget(windowSize + 500)
	for i := range uint64(1000) {
		keys, n := w.keys(1, key(i))
		for j, k := range keys[:n] {
			at, found := w.seen[k]
			if want := i >= 500 || i == 3 && j == 0; found != want {
				t.Fatalf("name %d of event %d: found %t, want %t", j, i, found, want)
			}
			if i == 3 && j == 0 && at != 1000 {
				t.Fatalf("the name used again is at %d", at)
			}
		}
	}
	if len(w.order) != 1001 {
		t.Errorf("%d names are held, want 1001", len(w.order))
	}
}

func TestUndo(t *testing.T) {
	t.Parallel()
	w := newWindow()
	w.add(1, record.EventKey{ID: "a", Stream: "s", N: 1, HasStream: true}, 0)
	undo := []func(){
		w.add(1, record.EventKey{ID: "a", Stream: "s", N: 2, HasStream: true}, 1),
		w.add(1, record.EventKey{ID: "b", Stream: "t", N: 1, HasStream: true}, 2),
	}
	for i := len(undo) - 1; i >= 0; i-- {
		undo[i]()
	}
	if len(w.seen) != 2 || len(w.order) != 2 || w.perUID[1] != 1 || len(w.streams) != 1 || w.streams[streamKey{1, "s"}] != 1 {
		t.Errorf("after undoing: %d names, %d in order, streams %v, %v a uid", len(w.seen), len(w.order), w.streams, w.perUID)
	}
	keys, _ := w.keys(1, record.EventKey{ID: "a"})
	if w.seen[keys[0]] != 0 {
		t.Error("the earlier place of a name was not restored")
	}
}
