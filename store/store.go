// Package store keeps one log in one bbolt file.
//
// It knows bytes, numbers and order, not what they mean: everything it returns is unverified until package record has parsed it
// and the ledger, or a verifier, has checked it. The layout:
//
//	log/      v, origin, head (the signed checkpoint over everything in the file)
//	batches/  first index (8 bytes, big endian) -> a sub-bucket a batch:
//	              index (8 bytes) -> entry bytes
//	              "h"             -> the stored tree hashes that these entries added, 32 bytes each
//	marks/    kind, 0, index (8 bytes) -> nothing: where the entries are that are not events
//	streams/  uid (4 bytes), stream -> last number (8 bytes): a snapshot; and "at" in log/ is the log size it was taken at
//
// A batch has a bucket of its own because a bbolt leaf splits only above four items: appended as values of one bucket, large
// batches would rewrite their neighbours at every commit. Tree hashes need no index: the hashes that entry n adds are
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
	"syscall"
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

// Log is one open log file. Reads may run concurrently with each other and with Commit.
type Log struct {
	db      *bbolt.DB
	file    *os.File // bbolt's
	path    string
	touched atomic.Int64 // bytes read or written through the mapping since it was last given back
	filled  int64        // up to where the file has blocks; used by the writer only
}

// What is written where the file has no blocks yet is synced more slowly: the file system must first record them. So zeros go ahead
// of small commits.
const (
	fillStep  = 1 << 20
	fillSmall = 64 << 10 // a larger commit is not worth it
)

// fill sees to it that a commit of about n bytes is written where the file has blocks. It runs in the transaction, before that writes:
// nothing that is used lies beyond its size.
func (l *Log) fill(tx *bbolt.Tx, n int) error {
	used := tx.Size()
	if n > fillSmall || used+4*fillSmall < l.filled {
		return nil
	}
	info, err := l.file.Stat()
	if err != nil {
		return err
	}
	from := max(used, l.filled)
	to := min(from+fillStep, info.Size())
	if from < to {
		if _, err := l.file.WriteAt(make([]byte, to-from), from); err != nil {
			return err
		}
		l.filled = to
	}
	return nil
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

// Create makes a new log file whose first batch is b (the genesis); it fails with fs.ErrExist when path is taken. A crash leaves
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
	return open(path, &bbolt.Options{Timeout: lockWait, FreelistType: bbolt.FreelistMapType, InitialMmapSize: initialMmap})
}

// OpenAtRest opens a log file for reading only; it changes nothing and may share the file with other readers.
func OpenAtRest(path string) (*Log, error) {
	return open(path, &bbolt.Options{Timeout: lockWait, ReadOnly: true})
}

func open(path string, o *bbolt.Options) (l *Log, err error) {
	var file *os.File
	o.OpenFile = func(name string, flag int, mode fs.FileMode) (_ *os.File, err error) {
		file, err = os.OpenFile(name, flag&^os.O_CREATE, mode) // a second, empty log under a known name would be a fork
		return file, err
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
	l = &Log{db: db, file: file, path: path}
	err = l.view(func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{bucketLog, bucketBatches, bucketMarks, bucketStreams} {
			if tx.Bucket(name) == nil {
				return fmt.Errorf("opening log %s: %w: bucket %s is missing", path, ErrDamaged, name)
			}
		}
		if v := tx.Bucket(bucketLog).Get(keyVersion); string(v) != version {
			return fmt.Errorf("opening log %s: it is not a %q file", path, version)
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return l, nil
}

// Close releases the file; it waits for reads under way.
func (l *Log) Close() error { return l.db.Close() }

// Path is the file's name.
func (l *Log) Path() string { return l.path }

// Commit makes b durable in one transaction: entries, hashes, marks and head, or nothing of them. It must follow on from the
// log's size. An error that wraps ErrUnknown leaves open which; with any other, nothing was taken.
func (l *Log) Commit(b *Batch) (err error) {
	defer guard(&err)
	before, err := l.Head()
	if err != nil {
		return err
	}
	n := 0
	for _, e := range b.Entries {
		n += len(e)
	}
	err = l.db.Update(func(tx *bbolt.Tx) error {
		if err := l.fill(tx, n); err != nil {
			return err
		}
		return put(tx, b)
	})
	if err == nil {
		l.touch(n)
		return nil
	}
	// bbolt writes data pages, syncs, writes the meta page, syncs. Only a failed write of data pages surely left the old state:
	// after a failed sync the kernel may have dropped dirty pages, and a meta page may have reached the disk.
	var write *fs.PathError
	full := errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EFBIG)
	after, readErr := l.Head()
	switch {
	case readErr != nil || !bytes.Equal(before, after):
		return fmt.Errorf("committing to %s: %w: %w", l.path, ErrUnknown, err)
	case full && errors.As(err, &write):
		return fmt.Errorf("committing to %s: %w: %w", l.path, ErrFull, err)
	case errors.Is(err, errRefused):
		return fmt.Errorf("committing to %s: %w", l.path, err)
	default:
		return fmt.Errorf("committing to %s: %w: %w", l.path, ErrUnknown, err)
	}
}

// errRefused marks a batch that was refused before anything was written.
var errRefused = errors.New("batch refused")

func put(tx *bbolt.Tx, b *Batch) error {
	batches := tx.Bucket(bucketBatches)
	if next, err := size(batches); err != nil || next != b.First || len(b.Entries) == 0 {
		return fmt.Errorf("%w: %d entries from index %d do not follow on size %d (%v)", errRefused, len(b.Entries), b.First, next, err)
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
	err = l.view(func(tx *bbolt.Tx) error {
		head = bytes.Clone(tx.Bucket(bucketLog).Get(keyHead))
		return nil
	})
	return head, err
}

// Size is the number of entries in the file, whatever its head claims.
func (l *Log) Size() (n uint64, err error) {
	err = l.view(func(tx *bbolt.Tx) (err error) {
		n, err = size(tx.Bucket(bucketBatches))
		return err
	})
	return n, err
}

// Range calls f with the entries from index `from` on, in order, until f returns false, until entries below `to` are through, or
// the log ends. The bytes are valid only during the call. f must not block: a long read delays the reuse of pages.
func (l *Log) Range(from, to uint64, f func(index uint64, entry []byte) bool) error {
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
	return l.view(func(tx *bbolt.Tx) error {
		prefix := append([]byte(kind), 0)
		c := tx.Bucket(bucketMarks).Cursor()
		for k, _ := c.Seek(markKey(kind, from)); bytes.HasPrefix(k, prefix) && len(k) == len(prefix)+8; k, _ = c.Next() {
			if !f(binary.BigEndian.Uint64(k[len(prefix):])) {
				return nil
			}
		}
		return nil
	})
}

// LastMark returns the highest index of a kind.
func (l *Log) LastMark(kind record.Kind) (index uint64, ok bool, err error) {
	err = l.view(func(tx *bbolt.Tx) error {
		prefix := append([]byte(kind), 0)
		c := tx.Bucket(bucketMarks).Cursor()
		k, _ := c.Seek(append([]byte(kind), 1))
		if k == nil {
			k, _ = c.Last()
		} else {
			k, _ = c.Prev()
		}
		if bytes.HasPrefix(k, prefix) && len(k) == len(prefix)+8 {
			index, ok = binary.BigEndian.Uint64(k[len(prefix):]), true
		}
		return nil
	})
	return index, ok, err
}

// ReadHashes implements tlog.HashReader over the stored tree hashes.
func (l *Log) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	err := l.view(func(tx *bbolt.Tx) error {
		batches := tx.Bucket(bucketBatches)
		c := batches.Cursor()
		for i, index := range indexes {
			// The hash was stored with the entry that completed its subtree.
			level, n := tlog.SplitStoredHashIndex(index)
			entry := uint64(n+1)<<level - 1
			k, batch := seek(batches, c, entry)
			if k == nil {
				return fmt.Errorf("tree hash %d: %w", index, ErrNotFound)
			}
			at := (index - tlog.StoredHashIndex(0, int64(binary.BigEndian.Uint64(k)))) * hashSize
			run := batch.Get(keyHashes)
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
