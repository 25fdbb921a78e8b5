package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"go.etcd.io/bbolt"
	"golang.org/x/mod/sumdb/tlog"

	"bulla/record"
)

// maker makes batches that follow on each other.
type maker struct {
	t    testing.TB
	tree *record.Tree
	all  [][]byte // entries
}

func newMaker(t testing.TB) *maker {
	tree, err := record.NewTree(0, nil)
	if err != nil {
		t.Fatal(err)
	}
	return &maker{t: t, tree: tree}
}

// next is a batch of n entries of about the size.
func (m *maker) next(n, size int) *Batch {
	b := &Batch{First: m.tree.Size()}
	for i := range n {
		index := b.First + uint64(i)
		e := fmt.Appendf(nil, "entry %d %s", index, bytes.Repeat([]byte{byte('a' + index%26)}, size))
		b.Entries = append(b.Entries, e)
		b.Hashes = m.tree.Append(b.Hashes, record.LeafHash(e))
		if index%5 == 0 {
			b.Marks = append(b.Marks, Mark{Kind: record.KindSystem, Index: index})
		}
	}
	b.Checkpoint = fmt.Appendf(nil, "checkpoint over %d", m.tree.Size())
	m.all = append(m.all, b.Entries...)
	return b
}

// begin makes a log with a write-ahead file of so many blocks and opens it.
func (m *maker) begin(path string, blocks int64) *Log {
	m.t.Helper()
	if err := Create(path, "test.example/log", m.next(1, 10)); err != nil {
		m.t.Fatal(err)
	}
	l, err := openWith(path, blocks)
	if err == nil {
		err = l.beginAhead() // as the first commit does
	}
	if err != nil {
		m.t.Fatal(err)
	}
	return l
}

func (m *maker) commit(l *Log, n, size int) {
	m.t.Helper()
	if err := l.Commit(m.next(n, size)); err != nil {
		m.t.Fatal(err)
	}
}

// lag leaves, as a power cut could have, a copy of a log whose bbolt file has only the genesis, and whose write-ahead file the rest.
func (m *maker) lag(blocks int64, sizes ...int) (path string) {
	m.t.Helper()
	from := filepath.Join(m.t.TempDir(), "log")
	path = filepath.Join(m.t.TempDir(), "log")
	l := m.begin(from, blocks)
	copyBolt(m.t, l, path)
	for _, n := range sizes {
		m.commit(l, n, 150)
	}
	write(m.t, walPath(path), read(m.t, walPath(from)))
	if err := l.Close(); err != nil {
		m.t.Fatal(err)
	}
	return path
}

// copyBolt copies the bbolt file as of its last transaction.
func copyBolt(t testing.TB, l *Log, to string) {
	t.Helper()
	var b bytes.Buffer
	if err := l.db.View(func(tx *bbolt.Tx) error {
		_, err := tx.WriteTo(&b)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	write(t, to, b.Bytes())
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func write(t testing.TB, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// requireFirst checks that the log has exactly the first n entries that were made, whichever way it is read.
func (m *maker) requireFirst(l *Log, n int) {
	m.t.Helper()
	size, err := l.Size()
	if err != nil || size != uint64(n) {
		m.t.Fatalf("%d entries (%v), want %d", size, err, n)
	}
	head, err := l.Head()
	if want := fmt.Sprintf("checkpoint over %d", n); err != nil || string(head) != want {
		m.t.Fatalf("head %q (%v), want %q", head, err, want)
	}
	tree, err := record.NewTree(0, nil)
	if err != nil {
		m.t.Fatal(err)
	}
	next := 0
	var hashes []record.Hash
	err = l.Range(0, 1<<53, func(i uint64, e []byte) bool {
		if i != uint64(next) || !bytes.Equal(e, m.all[i]) {
			m.t.Fatalf("entry %d at %d: %.30s", i, next, e)
		}
		next++
		hashes = tree.Append(hashes, record.LeafHash(e))
		return true
	})
	if err != nil || next != n {
		m.t.Fatalf("%d entries in order (%v), want %d", next, err, n)
	}
	indexes := make([]int64, len(hashes))
	for i := range indexes {
		indexes[i] = int64(i)
	}
	got, err := l.ReadHashes(indexes)
	if err != nil {
		m.t.Fatal(err)
	}
	for i := range got {
		if got[i] != tlog.Hash(hashes[i]) {
			m.t.Fatalf("hash %d differs", i)
		}
	}
	if _, err := l.ReadHashes([]int64{int64(len(hashes))}); !errors.Is(err, ErrNotFound) {
		m.t.Fatalf("a hash beyond the tree: %v", err)
	}
	for _, i := range []int{0, n / 2, n - 1} {
		if e, err := l.Entry(uint64(i)); err != nil || !bytes.Equal(e, m.all[i]) {
			m.t.Fatalf("entry %d: %v", i, err)
		}
	}
	if _, err := l.Entry(uint64(n)); !errors.Is(err, ErrNotFound) {
		m.t.Fatalf("an entry beyond the log: %v", err)
	}
	last, ok, err := l.LastMark(record.KindSystem)
	if err != nil || !ok || last != uint64(n-1)/5*5 {
		m.t.Fatalf("last mark %d, %t (%v)", last, ok, err)
	}
	mark := uint64(5)
	if err := l.Marks(record.KindSystem, 1, func(i uint64) bool {
		if i != mark {
			m.t.Fatalf("mark %d, want %d", i, mark)
		}
		mark += 5
		return true
	}); err != nil || mark <= last {
		m.t.Fatalf("marks up to %d, want %d (%v)", mark, last, err)
	}
}

// requireSurvivors opens a log in both ways and checks what it holds.
func (m *maker) requireSurvivors(path string, n int) {
	m.t.Helper()
	for _, open := range []func(string) (*Log, error){OpenAtRest, Open, Open, OpenAtRest} {
		l, err := open(path)
		if err != nil {
			m.t.Fatal(err)
		}
		m.requireFirst(l, n)
		if err := l.Close(); err != nil {
			m.t.Fatal(err)
		}
	}
}

// What was committed is there after a power cut, though nothing had been moved; and moving it again, or half of it, changes nothing.
func TestReplay(t *testing.T) {
	t.Parallel()
	m := newMaker(t)
	path := m.lag(256, 1, 3, 300, 1, 17)
	boltBefore, wal := read(t, path), read(t, walPath(path))
	l, err := OpenAtRest(path)
	if err != nil {
		t.Fatal(err)
	}
	tail := l.ahead.batches()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	m.requireSurvivors(path, 1+322)

	// The machine stops once more, at each step of moving.
	for moved := 1; moved <= 5; moved++ {
		write(t, path, boltBefore)
		db, err := bbolt.Open(path, 0o600, nil)
		if err != nil {
			t.Fatal(err)
		}
		err = db.Update(func(tx *bbolt.Tx) error { return put(tx, merge(tail[:moved])) })
		if err := errors.Join(err, db.Close()); err != nil {
			t.Fatal(err)
		}
		write(t, walPath(path), wal)
		m.requireSurvivors(path, 1+322)
	}
}

// A record that was being written when the machine stopped: torn at every sector, and with any of its sectors missing.
func TestTornRecord(t *testing.T) {
	t.Parallel()
	const sector = 512
	m := newMaker(t)
	path := m.lag(64, 1, 20, 9, 60)
	bolt, whole := read(t, path), read(t, walPath(path))
	w, err := openWAL(walPath(path), whole[len(walMagic)+4:][:markSize], true)
	if err != nil {
		t.Fatal(err)
	}
	found, err := w.read(1)
	if err := errors.Join(err, w.close()); err != nil {
		t.Fatal(err)
	}
	last := found[len(found)-1].at
	from, to := last.from*walBlock, last.to*walBlock
	used := 0 // bytes of the record before its padding
	for i := from; i < to; i++ {
		if whole[i] != 0 {
			used = int(i-from) + 1
		}
	}
	try := func(missing func(sector int) bool, full bool) {
		t.Helper()
		torn := bytes.Clone(whole)
		for i := from; i < to; i += sector {
			if missing(int(i-from) / sector) {
				clear(torn[i : i+sector])
			}
		}
		write(t, path, bolt)
		write(t, walPath(path), torn)
		l, err := OpenAtRest(path)
		if err != nil {
			t.Fatal(err)
		}
		want := 1 + 30
		if full {
			want += 60
		}
		m.requireFirst(l, want)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	sectors := int(to-from) / sector
	for written := range sectors + 1 {
		try(func(s int) bool { return s >= written }, written*sector >= used)
	}
	r := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		gone := make([]bool, sectors)
		full := true
		for range 1 + r.IntN(sectors) {
			s := r.IntN(sectors)
			gone[s] = true
			full = full && s*sector >= used
		}
		try(func(s int) bool { return gone[s] }, full)
	}
	m.requireSurvivors(path, len(m.all)-60)
}

// A bit that flips in what was acknowledged is found, but in the last record, which looks like one that was being written.
func TestFlippedBit(t *testing.T) {
	t.Parallel()
	m := newMaker(t)
	path := m.lag(32, 2, 30, 3, 4)
	whole := read(t, walPath(path))
	w, err := openWAL(walPath(path), whole[len(walMagic)+4:][:markSize], true)
	if err != nil {
		t.Fatal(err)
	}
	found, err := w.read(1)
	if err := errors.Join(err, w.close()); err != nil {
		t.Fatal(err)
	}
	payload := func(b pending) int64 { // where its padding begins
		rec := appendRecord(nil, &w.mark, b.Batch)
		return b.at.from*walBlock + int64(len(bytes.TrimRight(rec, "\x00")))
	}
	damaged, lost := 0, 0
	for i := int64(0); i < int64(len(whole)); i += 1 + i%walBlock/64 {
		b := bytes.Clone(whole)
		b[i] ^= 1 << (i % 8)
		write(t, walPath(path), b)
		want := 40 // entries; -1: refused
		switch {
		case i < int64(len(walMagic))+4+markSize+4:
			want = -1
		default:
			for k, f := range found {
				if i >= f.at.from*walBlock && i < payload(f) {
					if want = -1; k == len(found)-1 {
						want = 36
					}
				}
			}
		}
		l, err := OpenAtRest(path)
		if want < 0 {
			if !errors.Is(err, ErrDamaged) {
				t.Fatalf("byte %d: %v", i, err)
			}
			damaged++
			continue
		}
		if err != nil {
			t.Fatalf("byte %d: %v", i, err)
		}
		if want == 36 {
			lost++
		}
		m.requireFirst(l, want)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if damaged < 100 || lost < 20 {
		t.Errorf("only %d and %d flips counted", damaged, lost)
	}
}

// The ring comes round many times, with readers, and with a power cut now and then.
func TestRing(t *testing.T) {
	t.Parallel()
	m := newMaker(t)
	l := m.begin(filepath.Join(t.TempDir(), "log"), 16)
	r := rand.New(rand.NewPCG(3, 4))
	dir := t.TempDir()
	for i := range 300 {
		m.commit(l, 1+r.IntN(40), r.IntN(900))
		if i%30 != 29 {
			continue
		}
		m.requireFirst(l, len(m.all))
		path := filepath.Join(dir, fmt.Sprint(i))
		write(t, walPath(path), read(t, walPath(l.path))) // first: what is moved meanwhile is in both
		copyBolt(t, l, path)
		m.requireSurvivors(path, len(m.all))
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	m.requireSurvivors(l.path, len(m.all))
}

// A producer's bytes are not taken for a record, wherever they lie.
func TestNoEventIsARecord(t *testing.T) {
	t.Parallel()
	m := newMaker(t)
	path := filepath.Join(t.TempDir(), "log")
	l := m.begin(path, 64)
	forged := *m.next(1, 10)
	forged.Entries = [][]byte{[]byte("forged")}
	m.all = m.all[:1]
	var mark [markSize]byte // a producer cannot know the true one
	e := bytes.Repeat([]byte{'x'}, 2*walBlock)
	at := walBlock - (walHeader + 24 + len("checkpoint over 3") + 4) // a block begins there
	copy(e[at:], appendRecord(nil, &mark, &forged))
	b := &Batch{First: 1, Entries: [][]byte{e}, Hashes: []record.Hash{record.LeafHash(e)}, Checkpoint: []byte("checkpoint over 3")}
	copyBolt(t, l, path+"-copy")
	if err := l.Commit(b); err != nil {
		t.Fatal(err)
	}
	wal := read(t, walPath(path))
	if n := bytes.Index(wal, []byte("forged")); n < 0 || !bytes.HasPrefix(wal[2*walBlock:], mark[:]) {
		t.Fatal("the forged record does not begin a block")
	}
	wal[walBlock+markSize] ^= 1 // the true one is torn
	write(t, walPath(path+"-copy"), wal)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	m.requireSurvivors(path+"-copy", 1)
}

// The two files belong together, unless the log was closed.
func TestPair(t *testing.T) {
	t.Parallel()
	m := newMaker(t)
	path := m.lag(32, 2, 3)
	bolt, wal := read(t, path), read(t, walPath(path))
	other := newMaker(t)
	foreign := read(t, walPath(other.lag(32, 1)))
	for name, change := range map[string]func() error{
		"missing":   func() error { return os.Remove(walPath(path)) },
		"another's": func() error { return os.WriteFile(walPath(path), foreign, 0o600) },
		"cut":       func() error { return os.Truncate(walPath(path), int64(len(wal))-walBlock) },
		"empty":     func() error { return os.Truncate(walPath(path), 0) },
		"a record out": func() error {
			b := bytes.Clone(wal)
			clear(b[walBlock : 2*walBlock])
			return os.WriteFile(walPath(path), b, 0o600)
		},
	} {
		write(t, path, bolt)
		write(t, walPath(path), wal)
		if err := change(); err != nil {
			t.Fatal(err)
		}
		for _, open := range []func(string) (*Log, error){Open, OpenAtRest} {
			if l, err := open(path); !errors.Is(err, ErrDamaged) {
				t.Errorf("%s: %v, %v", name, l, err)
			}
		}
	}
	write(t, path, bolt)
	write(t, walPath(path), wal)
	m.requireSurvivors(path, 6)
	if err := os.Remove(walPath(path)); err != nil { // it was closed
		t.Fatal(err)
	}
	m.requireSurvivors(path, 6)
}

// A batch that the write-ahead file does not take goes straight to bbolt, in its place.
func TestLargeBatch(t *testing.T) {
	t.Parallel()
	m := newMaker(t)
	l := m.begin(filepath.Join(t.TempDir(), "log"), 16)
	m.commit(l, 3, 10)
	m.commit(l, 100, 2000)
	m.commit(l, 3, 10)
	m.requireFirst(l, 107)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	m.requireSurvivors(l.path, 107)
}

func FuzzParseRecord(f *testing.F) {
	m := newMaker(f)
	mark := [markSize]byte{1, 2, 3}
	for _, n := range []int{1, 3, 40} {
		r := appendRecord(nil, &mark, m.next(n, 100))[markSize:]
		f.Add(r[8 : 8+binary.BigEndian.Uint32(r)])
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		b, ok := parsePayload(data) // as if the checksum were right
		if !ok {
			return
		}
		r := appendRecord(nil, &mark, b)
		if !bytes.HasPrefix(r[walHeader:], data) || len(bytes.Trim(r[walHeader+len(data):], "\x00")) > 0 {
			t.Error("not the same bytes again")
		}
		if parseRecord(r[:walHeader+len(data)]) == nil {
			t.Error("its record is not read")
		}
	})
}
