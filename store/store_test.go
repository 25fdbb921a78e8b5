package store_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"bulla/record"
	"bulla/store"
)

// batches writes n batches of the given sizes with made-up entries and the true tree hashes.
func fill(t testing.TB, path string, sizes ...int) *store.Log {
	t.Helper()
	tree, err := record.NewTree(0, nil)
	if err != nil {
		t.Fatal(err)
	}
	var l *store.Log
	for i, n := range sizes {
		b := batch(tree, n)
		if i == 0 {
			if err := store.Create(path, "test.example/log", b); err != nil {
				t.Fatal(err)
			}
			if l, err = store.Open(path); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := l.Commit(b); err != nil {
			t.Fatal(err)
		}
	}
	return l
}

func batch(tree *record.Tree, n int) *store.Batch {
	b := &store.Batch{First: tree.Size()}
	for i := range n {
		index := b.First + uint64(i)
		e := entry(index)
		b.Entries = append(b.Entries, e)
		b.Hashes = tree.Append(b.Hashes, record.LeafHash(e))
		if index%5 == 0 {
			b.Marks = append(b.Marks, store.Mark{Kind: record.KindSystem, Index: index})
		}
	}
	b.Checkpoint = fmt.Appendf(nil, "checkpoint over %d", tree.Size())
	return b
}

func entry(i uint64) []byte {
	return fmt.Appendf(nil, "entry %d %s", i, bytes.Repeat([]byte{'x'}, int(i%300)))
}

func TestReadBack(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "log.db")
	sizes := []int{1, 1, 2, 1, 700, 3, 256, 1, 1, 40}
	l := fill(t, path, sizes...)
	total := uint64(0)
	for _, n := range sizes {
		total += uint64(n)
	}
	for range 2 { // as written, and opened again
		if n, err := l.Size(); err != nil || n != total {
			t.Fatalf("size %d (%v), want %d", n, err, total)
		}
		if head, err := l.Head(); err != nil || string(head) != fmt.Sprintf("checkpoint over %d", total) {
			t.Fatalf("head %q (%v)", head, err)
		}
		for i := range total {
			if e, err := l.Entry(i); err != nil || !bytes.Equal(e, entry(i)) {
				t.Fatalf("entry %d: %q, %v", i, e, err)
			}
			if h, err := l.ReadHashes([]int64{tlog.StoredHashIndex(0, int64(i))}); err != nil || h[0] != record.LeafHash(entry(i)) {
				t.Fatalf("leaf hash %d: %v", i, err)
			}
		}
		if _, err := l.Entry(total); !errors.Is(err, store.ErrNotFound) {
			t.Fatalf("entry beyond the log: %v", err)
		}
		if _, err := l.ReadHashes([]int64{tlog.StoredHashIndex(0, int64(total))}); !errors.Is(err, store.ErrNotFound) {
			t.Fatalf("hash beyond the log: %v", err)
		}
		var seen []uint64
		if err := l.Range(3, total-1, func(i uint64, _ []byte) bool { seen = append(seen, i); return true }); err != nil {
			t.Fatal(err)
		}
		for i, index := range seen {
			if index != uint64(i+3) {
				t.Fatalf("range yields %d at %d", index, i)
			}
		}
		if uint64(len(seen)) != total-4 {
			t.Fatalf("range yields %d entries, want %d", len(seen), total-4)
		}
		var marks []uint64
		if err := l.Marks(record.KindSystem, 7, func(i uint64) bool { marks = append(marks, i); return len(marks) < 3 }); err != nil {
			t.Fatal(err)
		}
		if fmt.Sprint(marks) != "[10 15 20]" {
			t.Fatalf("marks %v", marks)
		}
		if last, ok, err := l.LastMark(record.KindSystem); err != nil || !ok || last != (total-1)/5*5 {
			t.Fatalf("last mark %d %t %v", last, ok, err)
		}
		if _, ok, err := l.LastMark(record.KindClock); err != nil || ok {
			t.Fatalf("a mark of a kind that is not there (%v)", err)
		}
		root, err := tlog.TreeHash(int64(total), l)
		if err != nil {
			t.Fatal(err)
		}
		proof, err := tlog.ProveRecord(int64(total), 4, l)
		if err != nil || tlog.CheckRecord(proof, int64(total), root, 4, record.LeafHash(entry(4))) != nil {
			t.Fatalf("proof of entry 4: %v", err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if l, err = store.Open(path); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestCommitMustFollow(t *testing.T) {
	t.Parallel()
	l := fill(t, filepath.Join(t.TempDir(), "log.db"), 3)
	defer l.Close()
	for _, b := range []*store.Batch{
		{First: 2, Entries: [][]byte{{1}}, Checkpoint: []byte("x")},
		{First: 4, Entries: [][]byte{{1}}, Checkpoint: []byte("x")},
		{First: 3, Checkpoint: []byte("x")},
	} {
		if err := l.Commit(b); err == nil || errors.Is(err, store.ErrUnknown) {
			t.Errorf("a batch of %d entries from %d on size 3: %v", len(b.Entries), b.First, err)
		}
	}
	if n, err := l.Size(); err != nil || n != 3 {
		t.Errorf("size %d (%v)", n, err)
	}
}

func TestStreamsSnapshot(t *testing.T) {
	t.Parallel()
	l := fill(t, filepath.Join(t.TempDir(), "log.db"), 3)
	defer l.Close()
	if err := l.PutStreams([]store.Stream{{UID: 1, ID: "a", N: 5}, {UID: 2, ID: "a", N: 6}}, 2); err != nil {
		t.Fatal(err)
	}
	if err := l.PutStreams([]store.Stream{{UID: 1, ID: "a", N: 7}}, 3); err != nil {
		t.Fatal(err)
	}
	got, at, err := l.Streams()
	if err != nil || at != 3 || fmt.Sprint(got) != "[{1 a 7} {2 a 6}]" {
		t.Errorf("%v at %d (%v)", got, at, err)
	}
}

func TestOneProcessAtATime(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "log.db")
	l := fill(t, path, 1)
	if _, err := store.Open(path); err == nil {
		t.Fatal("two opened the same log for writing")
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	a, err := store.OpenAtRest(path)
	if err != nil {
		t.Fatal(err)
	}
	b, err := store.OpenAtRest(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(a.Close(), b.Close()); err != nil {
		t.Fatal(err)
	}
}

// Whatever is done to the file, reading it ends in data or an error, never in a crash of the process.
func TestDamagedFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "log.db")
	if err := fill(t, path, 1, 300, 5, 80).Close(); err != nil {
		t.Fatal(err)
	}
	clean, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	clean = bytes.TrimRight(clean, "\x00") // bbolt grows the file ahead of its use
	clean = append(clean, make([]byte, -len(clean)&4095)...)
	r := rand.New(rand.NewPCG(1, 2))
	failed := 0
	for i := range 300 {
		b := bytes.Clone(clean)
		switch i % 3 {
		case 0:
			for range 1 + r.IntN(20) {
				b[r.IntN(len(b))] ^= byte(1 + r.IntN(255))
			}
		case 1:
			at := r.IntN(len(b)/4096) * 4096
			copy(b[at:at+4096], make([]byte, 4096))
		case 2:
			b = b[:r.IntN(len(b))]
		}
		damaged := filepath.Join(t.TempDir(), "damaged.db")
		if err := os.WriteFile(damaged, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if readAll(damaged) != nil {
			failed++
		}
	}
	if failed < 100 {
		t.Errorf("only %d of 300 damaged files gave an error", failed)
	}
}

func readAll(path string) error {
	l, err := store.OpenAtRest(path)
	if err != nil {
		return err
	}
	n, err := l.Size()
	err = errors.Join(err, l.Range(0, min(n, 1000), func(uint64, []byte) bool { return true }))
	_, headErr := l.Head()
	_, hashErr := l.ReadHashes([]int64{0, 1, 2, 100, 500})
	return errors.Join(err, headErr, hashErr, l.Close())
}

// A file that is cut short under a running process faults in the memory map; the reader gets an error.
func TestTruncatedWhileOpen(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "log.db")
	l := fill(t, path, 1, 2000)
	if err := os.Truncate(path, 8192); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Entry(1500); !errors.Is(err, store.ErrDamaged) {
		t.Errorf("reading past the end of the file: %v", err)
	}
}
