// Package store keeps one log in one bbolt file, and a write-ahead file beside it that takes commits first.
//
// It knows bytes, numbers and order, not what they mean: everything it returns is unverified until package record has parsed it
// and the ledger, or a verifier, has checked it. The layout:
//
//	log/      v, origin, wal (the mark of the write-ahead file, while the log is open), head (the signed checkpoint over everything in the file)
//	batches/  first index (8 bytes, big endian) -> a sub-bucket for consecutive batches:
//	              index (8 bytes) -> entry bytes
//	              "h"             -> the stored tree hashes that these entries added, 32 bytes each
//	marks/    kind, 0, index (8 bytes) -> nothing: where the entries are that are not events
//	streams/  uid (4 bytes), stream -> last number (8 bytes): a snapshot; and "at" in log/ is the log size it was taken at
//
// What is moved at a time has a bucket of its own because a bbolt leaf splits only above four items: appended as values of one bucket,
// large entries would rewrite their neighbours every time. Tree hashes need no index: the hashes that entry n adds are
// consecutive in tlog.StoredHashIndex order, so those of a batch are one run.
package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync/atomic"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
	"golang.org/x/mod/sumdb/tlog"
	"golang.org/x/sys/unix"

	"bulla/internal/durable"
	"bulla/record"
)

var (
	// ErrUnknown means that a commit may or may not have taken effect. The process must stop: only opening the file again,
	// after a restart, tells.
	ErrUnknown = errors.New("the outcome of the commit is unknown")
	// ErrFull means that the disk had no room; nothing was taken.
	ErrFull = errors.New("no space left for the log")
	// ErrDamaged means that the file's structure is broken.
	ErrDamaged = errors.New("the log file is damaged")
	// ErrNotFound means that the log has no such entry or hash.
	ErrNotFound = errors.New("not in the log")
)

const (
	version     = "bulla log 1"
	hashSize    = tlog.HashSize
	initialMmap = 32 << 30 // address space only; a growing log is then not mapped anew, which would wait for every reader
	lockWait    = 200 * time.Millisecond
)

var (
	bucketLog     = []byte("log")
	bucketBatches = []byte("batches")
	bucketMarks   = []byte("marks")
	bucketStreams = []byte("streams")
	keyVersion    = []byte("v")
	keyOrigin     = []byte("origin")
	keyHead       = []byte("head")
	keyWAL        = []byte("wal")
	keyStreamsAt  = []byte("streams-at")
	keyHashes     = []byte("h")
)

// Batch is what one commit adds: the entries, the tree hashes that they add, and the signed head that covers both.
type Batch struct {
	First      uint64        // index of Entries[0]: the log's size before
	Entries    [][]byte      // canonical bytes
	Hashes     []record.Hash // new stored hashes in tlog.StoredHashIndex order
	Marks      []Mark        // the entries among them that are not events
	Checkpoint []byte        // signed note over size First+len(Entries)
}

// Mark says where an entry of a kind is.
type Mark struct {
	Kind  record.Kind
	Index uint64
}

// Stream is the last number seen of one producer's stream.
type Stream struct {
	UID uint32
	ID  string
	N   int64
}

// Log is one open log. Reads may run concurrently with each other and with Commit.
type Log struct {
	db      *bbolt.DB
	path    string
	touched atomic.Int64 // bytes read or written through the mapping since it was last given back
	blocks  int64        // of a write-ahead file that is made
	ahead   *ahead       // what is not yet in bbolt
}

// giveBack is after how many bytes the mapping of the file is given back to the kernel. The pages stay cached; but what is mapped
// counts as this process's memory, and in time that would be the whole log.
const giveBack = 64 << 20

// touch counts bytes that went through the mapping.
func (l *Log) touch(n int) {
	if l.touched.Add(int64(n)) < giveBack {
		return
	}
	l.touched.Store(0)
	info, err := os.Stat(l.path)
	if err != nil {
		return // it only would have saved memory
	}
	size := min(info.Size(), initialMmap)
	_, _, _ = unix.Syscall(unix.SYS_MADVISE, l.db.Info().Data, uintptr(size), unix.MADV_DONTNEED)
}

// Create makes a new log whose first batch is b (the genesis); it fails with fs.ErrExist when path is taken. A crash leaves
// either no log at path or one with its genesis.
func Create(path, origin string, b *Batch) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("creating log %s: %w", path, err)
	}
	if err := tmp.Close(); err != nil {
		return fmt.Errorf("creating log %s: %w", path, err)
	}
	if err := fill(tmp.Name(), origin, b); err != nil {
		return errors.Join(fmt.Errorf("creating log %s: %w", path, err), os.Remove(tmp.Name()))
	}
	return durable.Publish(tmp.Name(), path)
}

func fill(path, origin string, b *Batch) error {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: lockWait, FreelistType: bbolt.FreelistMapType})
	if err != nil {
		return err
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{bucketLog, bucketBatches, bucketMarks, bucketStreams} {
			if _, err := tx.CreateBucket(name); err != nil {
				return err
			}
		}
		log := tx.Bucket(bucketLog)
		if err := errors.Join(log.Put(keyVersion, []byte(version)), log.Put(keyOrigin, []byte(origin))); err != nil {
			return err
		}
		return put(tx, b)
	})
	return errors.Join(err, db.Close())
}

// Open opens an existing log file and locks it against other processes.
func Open(path string) (*Log, error) {
	return openWith(path, walBlocks)
}

func openWith(path string, blocks int64) (*Log, error) {
	return open(path, blocks, &bbolt.Options{Timeout: lockWait, FreelistType: bbolt.FreelistMapType, InitialMmapSize: initialMmap})
}

// OpenAtRest opens a log file for reading only; it changes nothing and may share the file with other readers.
func OpenAtRest(path string) (*Log, error) {
	return open(path, 0, &bbolt.Options{Timeout: lockWait, ReadOnly: true})
}

func open(path string, blocks int64, o *bbolt.Options) (l *Log, err error) {
	o.OpenFile = func(name string, flag int, mode fs.FileMode) (*os.File, error) {
		return os.OpenFile(name, flag&^os.O_CREATE, mode) // a second, empty log under a known name would be a fork
	}
	// bbolt would fill an empty file with a fresh database, and maps what is shorter than its own header.
	if info, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("opening log: %w", err)
	} else if info.Size() < int64(4*os.Getpagesize()) {
		return nil, fmt.Errorf("opening log %s: %w: %d bytes are too few", path, ErrDamaged, info.Size())
	}
	defer guard(&err)
	db, err := bbolt.Open(path, 0o600, o)
	if errors.Is(err, berrors.ErrTimeout) {
		return nil, fmt.Errorf("opening log %s: it is in use by another process; stop that bullad first", path)
	}
	if err != nil {
		return nil, fmt.Errorf("opening log %s: %w", path, err)
	}
	l = &Log{db: db, path: path, blocks: blocks}
	var mark []byte
	var stored uint64
	err = l.view(func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{bucketLog, bucketBatches, bucketMarks, bucketStreams} {
			if tx.Bucket(name) == nil {
				return fmt.Errorf("opening log %s: %w: bucket %s is missing", path, ErrDamaged, name)
			}
		}
		if v := tx.Bucket(bucketLog).Get(keyVersion); string(v) != version {
			return fmt.Errorf("opening log %s: it is not a %q file", path, version)
		}
		mark = bytes.Clone(tx.Bucket(bucketLog).Get(keyWAL))
		stored, err = size(tx.Bucket(bucketBatches))
		return err
	})
	if err == nil {
		err = l.openAhead(mark, stored, o.ReadOnly)
	}
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return l, nil
}

// openAhead reads what is not yet in bbolt, and begins to move it there. Without a mark the log was closed: nothing is missing, and
// nothing is written before something is committed.
func (l *Log) openAhead(mark []byte, stored uint64, readOnly bool) (err error) {
	var w *wal
	var tail []pending
	if mark != nil {
		if w, err = openWAL(walPath(l.path), mark, readOnly); err == nil {
			tail, err = w.read(stored)
		}
		if w != nil && (err != nil || readOnly) {
			err = errors.Join(err, w.close())
			w = nil
		}
	}
	if err != nil {
		return fmt.Errorf("opening log %s: %w", l.path, err)
	}
	l.ahead = newAhead(w, tail, stored)
	if !readOnly {
		go l.mover()
	}
	return nil
}

// beginAhead makes the write-ahead file of a log that was closed.
func (l *Log) beginAhead() error {
	w, err := renewWAL(walPath(l.path), l.blocks)
	if err != nil {
		return failure(err)
	}
	if err := l.setMark(w.mark[:]); err != nil {
		return errors.Join(failure(err), w.close())
	}
	l.ahead.wal = w
	return nil
}

// setMark records the write-ahead file that goes with the bbolt file; nil: none, all is in bbolt.
func (l *Log) setMark(mark []byte) error {
	return l.db.Update(func(tx *bbolt.Tx) error {
		if mark == nil {
			return tx.Bucket(bucketLog).Delete(keyWAL)
		}
		return tx.Bucket(bucketLog).Put(keyWAL, mark)
	})
}

// Close moves what is left to bbolt, and releases the files; it waits for reads under way. What cannot be moved, as the disk is full,
// stays in the write-ahead file.
func (l *Log) Close() (err error) {
	a := l.ahead
	a.commit.Lock() // for good: nothing is committed any more
	if !l.db.IsReadOnly() {
		close(a.stop)
		<-a.done
	}
	if a.wal != nil {
		if tail, failed := a.state(); len(tail) == 0 && failed == nil {
			err = l.setMark(nil)
		}
		err = errors.Join(err, a.wal.close())
	}
	return errors.Join(err, l.db.Close())
}

// Path is the bbolt file's name.
func (l *Log) Path() string { return l.path }

func put(tx *bbolt.Tx, b *Batch) error {
	batches := tx.Bucket(bucketBatches)
	if next, err := size(batches); err != nil || next != b.First {
		return fmt.Errorf("%d entries from index %d do not follow on size %d (%v)", len(b.Entries), b.First, next, err)
	}
	batches.FillPercent = 1 // keys only ever grow
	batch, err := batches.CreateBucket(key(b.First))
	if err != nil {
		return err
	}
	batch.FillPercent = 1
	for i, e := range b.Entries {
		if err := batch.Put(key(b.First+uint64(i)), e); err != nil {
			return err
		}
	}
	hashes := make([]byte, 0, len(b.Hashes)*hashSize)
	for i := range b.Hashes {
		hashes = append(hashes, b.Hashes[i][:]...)
	}
	if err := batch.Put(keyHashes, hashes); err != nil {
		return err
	}
	marks := tx.Bucket(bucketMarks)
	for _, m := range b.Marks {
		if err := marks.Put(markKey(m.Kind, m.Index), []byte{}); err != nil {
			return err
		}
	}
	return tx.Bucket(bucketLog).Put(keyHead, b.Checkpoint)
}

// PutStreams replaces the snapshot of streams by what changed since the last one; size is the log's size that it reflects.
func (l *Log) PutStreams(changed []Stream, size uint64) (err error) {
	defer guard(&err)
	err = l.db.Update(func(tx *bbolt.Tx) error {
		streams := tx.Bucket(bucketStreams)
		for _, s := range changed {
			k := append(binary.BigEndian.AppendUint32(nil, s.UID), s.ID...)
			if err := streams.Put(k, key(uint64(s.N))); err != nil {
				return err
			}
		}
		return tx.Bucket(bucketLog).Put(keyStreamsAt, key(size))
	})
	if err != nil {
		return fmt.Errorf("writing the streams' snapshot: %w", err)
	}
	return nil
}

// Streams returns the snapshot and the log size that it reflects.
func (l *Log) Streams() (all []Stream, size uint64, err error) {
	err = l.view(func(tx *bbolt.Tx) error {
		if at := tx.Bucket(bucketLog).Get(keyStreamsAt); len(at) == 8 {
			size = binary.BigEndian.Uint64(at)
		}
		return tx.Bucket(bucketStreams).ForEach(func(k, v []byte) error {
			if len(k) < 5 || len(v) != 8 {
				return fmt.Errorf("%w: stream snapshot", ErrDamaged)
			}
			all = append(all, Stream{UID: binary.BigEndian.Uint32(k), ID: string(k[4:]), N: int64(binary.BigEndian.Uint64(v))})
			return nil
		})
	})
	return all, size, err
}

// Origin is the name the file was created for.
func (l *Log) Origin() (origin string, err error) {
	err = l.view(func(tx *bbolt.Tx) error {
		origin = string(tx.Bucket(bucketLog).Get(keyOrigin))
		return nil
	})
	return origin, err
}

// Head returns the signed checkpoint of the last commit.
func (l *Log) Head() (head []byte, err error) {
	if tail := l.ahead.batches(); len(tail) > 0 {
		return bytes.Clone(tail[len(tail)-1].Checkpoint), nil
	}
	return l.stored()
}

// Size is the number of entries in the log, whatever its head claims.
func (l *Log) Size() (n uint64, err error) {
	tail := l.ahead.batches()
	err = l.view(func(tx *bbolt.Tx) error {
		n, err = size(tx.Bucket(bucketBatches))
		if len(tail) > 0 {
			n = max(n, tail[len(tail)-1].end())
		}
		return err
	})
	return n, err
}

// Range calls f with the entries from index `from` on, in order, until f returns false, until entries below `to` are through, or
// the log ends. The bytes are valid only during the call. f must not block: a long read delays the reuse of pages.
func (l *Log) Range(from, to uint64, f func(index uint64, entry []byte) bool) error {
	tail := l.ahead.batches()
	return l.view(func(tx *bbolt.Tx) error {
		batches := tx.Bucket(bucketBatches)
		c := batches.Cursor()
		for k, batch := seek(batches, c, from); k != nil; k, _ = c.Next() {
			if batch == nil {
				batch = batches.Bucket(k)
			}
			if batch == nil || len(k) != 8 {
				return fmt.Errorf("%w: batch %x", ErrDamaged, k)
			}
			in := batch.Cursor()
			for k, v := in.Seek(key(from)); len(k) == 8; k, v = in.Next() {
				l.touch(len(v))
				if i := binary.BigEndian.Uint64(k); i >= to || !f(i, v) {
					return nil
				}
			}
			batch = nil
		}
		tail, err := after(tail, tx)
		if err != nil {
			return err
		}
		for _, b := range tail {
			for i, e := range b.Entries {
				if n := b.First + uint64(i); n >= from && (n >= to || !f(n, e)) {
					return nil
				}
			}
		}
		return nil
	})
}

// Entry returns the bytes of one entry.
func (l *Log) Entry(index uint64) (entry []byte, err error) {
	err = l.Range(index, index+1, func(i uint64, e []byte) bool {
		if i == index {
			entry = bytes.Clone(e)
		}
		return false
	})
	if err == nil && entry == nil {
		err = fmt.Errorf("entry %d: %w", index, ErrNotFound)
	}
	return entry, err
}

// Marks calls f with the indices of the entries of one kind, from index `from` on, in order, until f returns false.
func (l *Log) Marks(kind record.Kind, from uint64, f func(index uint64) bool) error {
	tail := l.ahead.batches()
	return l.view(func(tx *bbolt.Tx) error {
		prefix := append([]byte(kind), 0)
		c := tx.Bucket(bucketMarks).Cursor()
		for k, _ := c.Seek(markKey(kind, from)); bytes.HasPrefix(k, prefix) && len(k) == len(prefix)+8; k, _ = c.Next() {
			if !f(binary.BigEndian.Uint64(k[len(prefix):])) {
				return nil
			}
		}
		tail, err := after(tail, tx)
		if err != nil {
			return err
		}
		for _, index := range marked(tail, kind, from) {
			if !f(index) {
				return nil
			}
		}
		return nil
	})
}

// LastMark returns the highest index of a kind.
func (l *Log) LastMark(kind record.Kind) (index uint64, ok bool, err error) {
	if all := marked(l.ahead.batches(), kind, 0); len(all) > 0 {
		return all[len(all)-1], true, nil
	}
	err = l.view(func(tx *bbolt.Tx) error {
		index, ok = lastMark(tx.Bucket(bucketMarks).Cursor(), kind)
		return nil
	})
	return index, ok, err
}

// ReadHashes implements tlog.HashReader over the stored tree hashes.
func (l *Log) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	tail := l.ahead.batches()
	out := make([]tlog.Hash, len(indexes))
	var rest []int // places in indexes that bbolt has to be asked for
	for i, index := range indexes {
		h, ok := tlog.Hash{}, false
		if b := holder(tail, entryOf(index)); b != nil {
			h, ok = b.hash(index)
		}
		if out[i] = h; !ok {
			rest = append(rest, i)
		}
	}
	if len(rest) == 0 {
		return out, nil
	}
	err := l.view(func(tx *bbolt.Tx) error {
		batches := tx.Bucket(bucketBatches)
		c := batches.Cursor()
		var run []byte // the hashes of the batch last found, and the index of the first
		var first int64
		for _, i := range rest {
			index := indexes[i]
			at := (index - first) * hashSize
			if at < 0 || int64(len(run)) < at+hashSize {
				k, batch := seek(batches, c, entryOf(index))
				if k == nil {
					return fmt.Errorf("tree hash %d: %w", index, ErrNotFound)
				}
				run, first = batch.Get(keyHashes), tlog.StoredHashIndex(0, int64(binary.BigEndian.Uint64(k)))
				at = (index - first) * hashSize
			}
			if at < 0 || int64(len(run)) < at+hashSize {
				return fmt.Errorf("tree hash %d: %w", index, ErrNotFound)
			}
			copy(out[i][:], run[at:])
		}
		return nil
	})
	return out, err
}

// Tile returns the bytes of a C2SP tlog tile of height 8: hashes, or with level -1 a bundle of entries. The error wraps ErrNotFound
// for a tile that the log does not reach.
func (l *Log) Tile(t tlog.Tile) ([]byte, error) {
	if t.L >= 0 {
		return tlog.ReadTileData(t, l)
	}
	var out []byte
	from, n := uint64(t.N)<<8, 0
	err := l.Range(from, from+uint64(t.W), func(_ uint64, e []byte) bool {
		out = record.AppendBundle(out, e)
		n++
		return true
	})
	if err == nil && n != t.W {
		err = fmt.Errorf("entries %d to %d: %w", from, from+uint64(t.W), ErrNotFound)
	}
	return out, err
}

// seek finds the batch that holds, or would hold, the entry.
func seek(batches *bbolt.Bucket, c *bbolt.Cursor, entry uint64) ([]byte, *bbolt.Bucket) {
	k, _ := c.Seek(key(entry))
	if k == nil {
		k, _ = c.Last()
	} else if len(k) == 8 && binary.BigEndian.Uint64(k) > entry {
		k, _ = c.Prev()
	}
	if len(k) != 8 {
		return nil, nil
	}
	batch := batches.Bucket(k)
	if batch == nil {
		return nil, nil
	}
	return k, batch
}

func size(batches *bbolt.Bucket) (uint64, error) {
	k, _ := batches.Cursor().Last()
	if k == nil {
		return 0, nil
	}
	batch := batches.Bucket(k)
	if batch == nil {
		return 0, fmt.Errorf("%w: the last batch is not a bucket", ErrDamaged)
	}
	c := batch.Cursor()
	c.Seek(keyHashes) // the one key that is not an index, and the greatest
	last, _ := c.Prev()
	if len(last) != 8 {
		return 0, fmt.Errorf("%w: the last batch has no entries", ErrDamaged)
	}
	return binary.BigEndian.Uint64(last) + 1, nil
}

func (l *Log) view(f func(tx *bbolt.Tx) error) (err error) {
	defer guard(&err)
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	return l.db.View(f)
}

// guard turns what a damaged or vanishing file does to its reader (bbolt panics on inconsistent pages, the kernel faults on
// mapped ones that it cannot read) into an error.
func guard(err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("%w: %v", ErrDamaged, p)
	}
}

func key(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

func markKey(kind record.Kind, index uint64) []byte {
	return binary.BigEndian.AppendUint64(append([]byte(kind), 0), index)
}
