package store

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"bulla/internal/durable"
	"bulla/record"
)

// The write-ahead file: what was committed and is not yet in bbolt. It is a ring of blocks, made once and filled with zeros, so that
// a commit is one write and one sync that changes nothing but data. A record takes whole blocks: nothing that was acknowledged is
// ever written again.
//
//	block 0   "bulla wal 1\n", number of blocks (4 bytes), mark (16 bytes), CRC (4)
//	record    mark (16), length of the payload (4), CRC of length and payload (4), payload, zeros to the end of its last block
//	payload   first index (8); number of entries (4), of hashes (4), of marks (4), length of the checkpoint (4); the checkpoint;
//	          per entry its length (4) and bytes; the hashes; per mark its index (8), length of the kind (1) and kind
//
// Numbers are big endian, the CRC is CRC-32C. The mark is random: no producer can make an event that looks like a record. It is kept in
// the bbolt file too, so that each knows the other. When a log is closed, bbolt holds everything and no mark: then nothing in the
// write-ahead file counts, it may as well be missing, and gets a new mark at the next opening.
const (
	walMagic  = "bulla wal 1\n"
	walBlock  = 4096
	walBlocks = 16 << 20 / walBlock // as new files are made
	markSize  = 16
	walHeader = markSize + 8
)

// AheadBytes is how large a batch may be that the write-ahead file takes. A larger one goes straight to bbolt, which takes longer.
const AheadBytes = 512 << 10

var (
	castagnoli = crc32.MakeTable(crc32.Castagnoli)

	errTooLarge = errors.New("larger than the write-ahead file takes")
	errNoRoom   = errors.New("the write-ahead file is full")
)

func walPath(log string) string { return log + "-wal" }

// wal is an open write-ahead file. Its methods are for one goroutine at a time.
type wal struct {
	f      *os.File
	mark   [markSize]byte
	blocks int64
	next   int64  // block of the next record
	buf    []byte // of the record being written
}

// span is where a record lies: blocks from up to before to.
type span struct{ from, to int64 }

// pending is a batch that is durable in the write-ahead file, and not yet in bbolt.
type pending struct {
	*Batch
	at span
}

// end is the index after the batch's last entry.
func (b *Batch) end() uint64 { return b.First + uint64(len(b.Entries)) }

// renewWAL leaves a write-ahead file at path with no records but a new mark. Its blocks are kept if it has them.
func renewWAL(path string, blocks int64) (*wal, error) {
	w := &wal{next: 1, blocks: blocks}
	_, _ = rand.Read(w.mark[:]) // it never fails
	head := binary.BigEndian.AppendUint32([]byte(walMagic), uint32(blocks))
	head = append(head, w.mark[:]...)
	head = binary.BigEndian.AppendUint32(head, crc32.Checksum(head, castagnoli))
	if info, err := os.Lstat(path); err != nil || !info.Mode().IsRegular() || info.Size() != blocks*walBlock {
		if err := durable.Replace(path, make([]byte, blocks*walBlock), 0o600); err != nil {
			return nil, err
		}
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	if _, err = f.WriteAt(head, 0); err == nil {
		err = f.Sync()
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	w.f = f
	return w, nil
}

// openWAL opens the write-ahead file that belongs to a log with the mark.
func openWAL(path string, mark []byte, readOnly bool) (_ *wal, err error) {
	flag := os.O_RDWR
	if readOnly {
		flag = os.O_RDONLY
	}
	f, err := os.OpenFile(path, flag, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: the log was not closed, and %s is missing, which may hold acknowledged entries: put it back", ErrDamaged, path)
	}
	if err != nil {
		return nil, fmt.Errorf("opening the write-ahead file: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	head := make([]byte, walBlock)
	if _, err := io.ReadFull(f, head); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrDamaged, path, err)
	}
	n := len(walMagic) + 4 + markSize
	w := &wal{f: f, next: 1, blocks: int64(binary.BigEndian.Uint32(head[len(walMagic):]))}
	copy(w.mark[:], head[len(walMagic)+4:])
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !bytes.HasPrefix(head, []byte(walMagic)) || binary.BigEndian.Uint32(head[n:]) != crc32.Checksum(head[:n], castagnoli):
		return nil, fmt.Errorf("%w: %s is not a write-ahead file", ErrDamaged, path)
	case w.blocks < 2 || info.Size() != w.blocks*walBlock:
		return nil, fmt.Errorf("%w: %s has %d bytes, not %d blocks", ErrDamaged, path, info.Size(), w.blocks)
	case !bytes.Equal(w.mark[:], mark):
		return nil, fmt.Errorf("%w: %s belongs to another log", ErrDamaged, filepath.Base(path))
	}
	return w, nil
}

// encode makes the record of a batch, to be placed and written.
func (w *wal) encode(b *Batch) error {
	n := 0
	for _, e := range b.Entries {
		n += len(e)
	}
	if n > AheadBytes {
		return errTooLarge
	}
	w.buf = appendRecord(w.buf[:0], &w.mark, b)
	if len(w.buf) > AheadBytes || int64(len(w.buf))/walBlock > w.blocks/2 {
		return errTooLarge
	}
	return nil
}

// place chooses where the record goes. From the oldest record on that is not yet in bbolt, nothing is overwritten (nil: there is none).
func (w *wal) place(oldest *span) (span, error) {
	n := int64(len(w.buf)) / walBlock
	at := span{w.next, w.next + n}
	if at.to > w.blocks {
		at = span{1, 1 + n}
	}
	switch {
	case oldest == nil:
	case oldest.from >= w.next: // the ring has come round: free is what lies before the oldest
		if at.from < w.next || at.to > oldest.from {
			return span{}, errNoRoom
		}
	case at.from < w.next && at.to > oldest.from: // it starts anew
		return span{}, errNoRoom
	}
	return at, nil
}

// write makes the record durable. An error that wraps ErrUnknown leaves open whether it is.
func (w *wal) write(at span) error {
	if _, err := w.f.WriteAt(w.buf, at.from*walBlock); err != nil {
		return err
	}
	if err := syscall.Fdatasync(int(w.f.Fd())); err != nil {
		return fmt.Errorf("%w: syncing: %w", ErrUnknown, err)
	}
	w.next = at.to
	return nil
}

// read returns the batches in the file that follow on size, in order. A record that was being written when the machine stopped is not
// whole, and was not acknowledged; any other that is missing is damage.
func (w *wal) read(size uint64) ([]pending, error) {
	var found []pending
	for at := int64(1); at < w.blocks; {
		b, n, err := w.record(at)
		switch {
		case err != nil:
			return nil, fmt.Errorf("reading the write-ahead file: %w", err)
		case b == nil:
			n = 1
		case b.end() > size: // others are in bbolt already
			found = append(found, pending{b, span{at, at + n}})
		}
		at += n
	}
	slices.SortFunc(found, func(a, b pending) int { return cmp.Compare(a.First, b.First) })
	for _, b := range found {
		if b.First != size {
			return nil, fmt.Errorf("%w: the log file has %d entries, and the write-ahead file goes on with index %d: one of the two is older than the other, or was changed",
				ErrDamaged, size, b.First)
		}
		size = b.end()
	}
	if n := len(found); n > 0 {
		w.next = found[n-1].at.to
	}
	return found, nil
}

func (w *wal) close() error { return w.f.Close() }

func appendRecord(dst []byte, mark *[markSize]byte, b *Batch) []byte {
	dst = append(append(dst, mark[:]...), make([]byte, 8)...)
	dst = binary.BigEndian.AppendUint64(dst, b.First)
	for _, n := range []int{len(b.Entries), len(b.Hashes), len(b.Marks), len(b.Checkpoint)} {
		dst = binary.BigEndian.AppendUint32(dst, uint32(n))
	}
	dst = append(dst, b.Checkpoint...)
	for _, e := range b.Entries {
		dst = append(binary.BigEndian.AppendUint32(dst, uint32(len(e))), e...)
	}
	for i := range b.Hashes {
		dst = append(dst, b.Hashes[i][:]...)
	}
	for _, m := range b.Marks {
		dst = append(binary.BigEndian.AppendUint64(dst, m.Index), byte(len(m.Kind)))
		dst = append(dst, m.Kind...)
	}
	binary.BigEndian.PutUint32(dst[markSize:], uint32(len(dst)-walHeader))
	binary.BigEndian.PutUint32(dst[markSize+4:], checksum(dst))
	if rest := len(dst) % walBlock; rest > 0 {
		dst = append(dst, make([]byte, walBlock-rest)...)
	}
	return dst
}

// checksum is over a record's length and payload.
func checksum(r []byte) uint32 {
	return crc32.Update(crc32.Checksum(r[markSize:markSize+4], castagnoli), castagnoli, r[walHeader:])
}

// record reads the record that begins at a block, and how many it takes; nil if none does.
func (w *wal) record(at int64) (*Batch, int64, error) {
	r := make([]byte, walHeader)
	if _, err := w.f.ReadAt(r, at*walBlock); err != nil {
		return nil, 0, err
	}
	n := int64(binary.BigEndian.Uint32(r[markSize:])) + walHeader
	if !bytes.HasPrefix(r, w.mark[:]) || n > min(AheadBytes, (w.blocks-at)*walBlock) {
		return nil, 0, nil
	}
	r = make([]byte, n)
	if _, err := w.f.ReadAt(r, at*walBlock); err != nil {
		return nil, 0, err
	}
	return parseRecord(r), (n + walBlock - 1) / walBlock, nil
}

// parseRecord reads a record without its padding; nil if it is not whole.
func parseRecord(r []byte) *Batch {
	if len(r) < walHeader || checksum(r) != binary.BigEndian.Uint32(r[markSize+4:]) {
		return nil
	}
	b, ok := parsePayload(r[walHeader:])
	if !ok {
		return nil
	}
	return b
}

func parsePayload(p []byte) (_ *Batch, ok bool) {
	take := func(n uint64) []byte {
		if !ok || n > uint64(len(p)) {
			ok = false
			return make([]byte, 8) // enough for any number
		}
		b := p[:n:n]
		p = p[n:]
		return b
	}
	number := func() uint64 { return uint64(binary.BigEndian.Uint32(take(4))) }
	ok = true
	b := &Batch{First: binary.BigEndian.Uint64(take(8))}
	entries, hashes, marks, checkpoint := number(), number(), number(), number()
	b.Checkpoint = take(checkpoint)
	for i := uint64(0); ok && i < entries; i++ {
		b.Entries = append(b.Entries, take(number()))
	}
	for h := take(hashes * hashSize); len(h) >= hashSize; h = h[hashSize:] {
		b.Hashes = append(b.Hashes, record.Hash(h[:hashSize]))
	}
	for i := uint64(0); ok && i < marks; i++ {
		m := Mark{Index: binary.BigEndian.Uint64(take(8))}
		m.Kind = record.Kind(take(uint64(take(1)[0])))
		b.Marks = append(b.Marks, m)
	}
	return b, ok && len(p) == 0 && len(b.Entries) > 0
}
