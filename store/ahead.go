package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sort"
	"sync"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/mod/sumdb/tlog"

	"bulla/record"
)

// How far bbolt may lag behind. One transaction for many batches costs about what one for a single batch costs.
const (
	fillBytes = 4 << 20 // of records that wait, or
	fillDelay = time.Second
	fillRetry = 250 * time.Millisecond // after a full disk
)

// ahead is what was committed and is not yet in bbolt. It is durable in the write-ahead file, and kept in memory for readers.
type ahead struct {
	wal    *wal       // nil before the first commit
	commit sync.Mutex // held by who commits; it guards wal
	moving sync.Mutex // held by who moves the tail, or a part of it, to bbolt

	mu     sync.Mutex
	tail   []pending // consecutive
	bytes  int       // of their records
	size   uint64    // of the log, with the tail
	failed error     // why the tail could not be moved to bbolt: no room, or the outcome is unknown

	wanted chan struct{} // holds a token when something waits to be moved
	urgent chan struct{} // and when it should be soon
	moved  chan struct{} // holds a token when something was moved, or that failed
	stop   chan struct{} // closed to end the mover
	done   chan struct{} // closed when it has ended
}

func newAhead(w *wal, tail []pending, size uint64) *ahead {
	a := &ahead{
		wal: w, tail: tail, size: size,
		wanted: make(chan struct{}, 1), urgent: make(chan struct{}, 1), moved: make(chan struct{}, 1),
		stop: make(chan struct{}), done: make(chan struct{}),
	}
	for _, b := range tail {
		a.bytes += b.at.bytes()
		a.size = b.end()
		token(a.wanted)
	}
	return a
}

func token(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// batches is the tail as it is now. Take it before a transaction in bbolt begins: what that does not hold is in it.
func (a *ahead) batches() []pending {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.tail[:len(a.tail):len(a.tail)]
}

// Commit makes b durable: entries, hashes, marks and head, or nothing of them. It must follow on from the log's size, and its
// memory belongs to the log from then on. An error that wraps ErrUnknown leaves open whether b was taken; with any other, it was not.
func (l *Log) Commit(b *Batch) error {
	if err := l.append(b); err != nil {
		return fmt.Errorf("committing to %s: %w", l.path, err)
	}
	return nil
}

func (l *Log) append(b *Batch) error {
	a := l.ahead
	a.commit.Lock()
	defer a.commit.Unlock()
	if size := a.sizeNow(); size != b.First || len(b.Entries) == 0 {
		return fmt.Errorf("%d entries from index %d do not follow on size %d", len(b.Entries), b.First, size)
	}
	if a.wal == nil {
		if err := l.beginAhead(); err != nil {
			return err
		}
	}
	if a.wal.encode(b) != nil {
		return l.direct(b)
	}
	for tried := false; ; tried = true {
		tail, err := a.state()
		switch {
		case err != nil && (tried || errors.Is(err, ErrUnknown)):
			return err
		case err == nil:
			var oldest *span
			if len(tail) > 0 {
				oldest = &tail[0].at
			}
			if at, err := a.wal.place(oldest); err == nil {
				return a.take(b, at)
			}
		}
		select {
		case <-a.moved: // of before
		default:
		}
		token(a.urgent) // there is no room before something has been moved
		token(a.wanted)
		<-a.moved
	}
}

// direct commits a large batch, and what is before it, to bbolt: a transaction of its own is what it will need anyway.
func (l *Log) direct(b *Batch) error {
	l.ahead.moving.Lock()
	defer l.ahead.moving.Unlock()
	tail, err := l.ahead.state()
	if errors.Is(err, ErrUnknown) {
		return err
	}
	return l.move(append(tail[:len(tail):len(tail)], pending{b, span{}}))
}

// take writes the encoded record of b, and adds b to the tail.
func (a *ahead) take(b *Batch, at span) error {
	if err := a.wal.write(at); err != nil {
		return failure(err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.tail = append(a.tail, pending{b, at})
	a.size = b.end()
	a.bytes += at.bytes()
	token(a.wanted)
	if a.bytes >= fillBytes {
		token(a.urgent)
	}
	return nil
}

func (a *ahead) sizeNow() uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.size
}

func (a *ahead) state() ([]pending, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.tail, a.failed
}

// failure is what a failed write means: without room nothing was taken; anything else may have reached the disk.
func failure(err error) error {
	var write *fs.PathError
	switch full := errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EFBIG); {
	case errors.Is(err, ErrUnknown):
		return err
	case full && errors.As(err, &write):
		return fmt.Errorf("%w: %w", ErrFull, err)
	}
	return fmt.Errorf("%w: %w", ErrUnknown, err)
}

// mover moves the tail to bbolt, much at a time, until the log is closed.
func (l *Log) mover() {
	a := l.ahead
	defer close(a.done)
	for {
		select {
		case <-a.wanted:
		case <-a.stop:
			l.moveAll()
			return
		}
		select {
		case <-a.urgent:
		case <-time.After(fillDelay):
		case <-a.stop:
		}
		for !l.moveAll() {
			select {
			case <-a.urgent:
			case <-time.After(fillRetry):
			case <-a.stop:
				return // it stays in the write-ahead file
			}
		}
	}
}

// moveAll moves what is in the tail now. It reports false if it has to be tried again.
func (l *Log) moveAll() bool {
	a := l.ahead
	a.moving.Lock()
	defer a.moving.Unlock()
	tail := a.batches()
	var err error
	for len(tail) > 0 && err == nil {
		n := 0
		for size := 0; n < len(tail) && (n == 0 || size < fillBytes); n++ {
			size += tail[n].at.bytes()
		}
		err = l.move(tail[:n])
		tail = tail[n:]
	}
	a.mu.Lock()
	a.failed = err
	a.mu.Unlock()
	token(a.moved)
	return err == nil || errors.Is(err, ErrUnknown) // that ends the process
}

// move commits consecutive batches to bbolt, in one bucket, and takes them out of the tail.
func (l *Log) move(batches []pending) (err error) {
	defer guard(&err)
	before, err := l.stored()
	if err != nil {
		return err
	}
	all := merge(batches)
	if err := l.db.Update(func(tx *bbolt.Tx) error { return put(tx, all) }); err != nil {
		// bbolt writes data pages, syncs, writes the meta page, syncs. Only a failed write of data pages surely left the old state:
		// after a failed sync the kernel may have dropped dirty pages, and a meta page may have reached the disk.
		after, readErr := l.stored()
		if readErr != nil || !bytes.Equal(before, after) {
			return fmt.Errorf("%w: %w", ErrUnknown, err)
		}
		return failure(err)
	}
	n := 0
	for _, e := range all.Entries {
		n += len(e)
	}
	l.touch(n)
	a := l.ahead
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, b := range batches {
		a.bytes -= b.at.bytes()
	}
	a.size = max(a.size, all.end())                                // the last may have come straight here
	a.tail = slices.Clone(a.tail[min(len(batches), len(a.tail)):]) // lets go of their memory
	a.failed = nil
	token(a.moved)
	return nil
}

func merge(batches []pending) *Batch {
	if len(batches) == 1 {
		return batches[0].Batch
	}
	all := &Batch{First: batches[0].First, Checkpoint: batches[len(batches)-1].Checkpoint}
	for _, b := range batches {
		all.Entries = append(all.Entries, b.Entries...)
		all.Hashes = append(all.Hashes, b.Hashes...)
		all.Marks = append(all.Marks, b.Marks...)
	}
	return all
}

// stored is the head in bbolt.
func (l *Log) stored() (head []byte, err error) {
	err = l.view(func(tx *bbolt.Tx) error {
		head = bytes.Clone(tx.Bucket(bucketLog).Get(keyHead))
		return nil
	})
	return head, err
}

func (s span) bytes() int { return int(s.to-s.from) * walBlock }

// after returns the batches of a tail that a transaction in bbolt does not hold.
func after(tail []pending, tx *bbolt.Tx) ([]pending, error) {
	stored, err := size(tx.Bucket(bucketBatches))
	if err != nil {
		return nil, err
	}
	for len(tail) > 0 && tail[0].First < stored {
		tail = tail[1:]
	}
	return tail, nil
}

// holder returns the batch of a tail that holds an entry; nil if none does.
func holder(tail []pending, entry uint64) *Batch {
	i := sort.Search(len(tail), func(i int) bool { return tail[i].end() > entry })
	if i == len(tail) || tail[i].First > entry {
		return nil
	}
	return tail[i].Batch
}

// hash returns a stored tree hash that the batch added.
func (b *Batch) hash(index int64) (h tlog.Hash, ok bool) {
	i := index - tlog.StoredHashIndex(0, int64(b.First))
	if i < 0 || i >= int64(len(b.Hashes)) {
		return h, false
	}
	return tlog.Hash(b.Hashes[i]), true
}

// marked returns the indices among a tail's marks of a kind, from one on.
func marked(tail []pending, kind record.Kind, from uint64) (all []uint64) {
	for _, b := range tail {
		for _, m := range b.Marks {
			if m.Kind == kind && m.Index >= from {
				all = append(all, m.Index)
			}
		}
	}
	return all
}

// entryOf is the entry that completed the subtree of a stored hash, and with which the hash was stored.
func entryOf(index int64) uint64 {
	level, n := tlog.SplitStoredHashIndex(index)
	return uint64(n+1)<<level - 1
}

func lastMark(c *bbolt.Cursor, kind record.Kind) (index uint64, ok bool) {
	prefix := append([]byte(kind), 0)
	k, _ := c.Seek(append([]byte(kind), 1))
	if k == nil {
		k, _ = c.Last()
	} else {
		k, _ = c.Prev()
	}
	if !bytes.HasPrefix(k, prefix) || len(k) != len(prefix)+8 {
		return 0, false
	}
	return binary.BigEndian.Uint64(k[len(prefix):]), true
}
