package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"bulla/record"
)

// errNotTheLog is evidence whose entries do not lead to the root of its checkpoint. No index is kept of it.
var errNotTheLog = errors.New("the entries do not lead to the root that the checkpoint states")

// staleAfter is when the remains of a build that did not finish are removed.
const staleAfter = 24 * time.Hour

// buildIndex reads the whole log and writes its index to dir, which appears when it is complete. Nothing is synced: what a crash of the
// machine leaves behind does not meet its checksums, and is made anew.
func buildIndex(ctx context.Context, dir string, a *archive, show func(done, total uint64)) (err error) {
	if a.head.Size > maxIndexed {
		return fmt.Errorf("making an index: the log has more than %d entries", uint64(maxIndexed))
	}
	base := filepath.Dir(dir)
	if err := os.MkdirAll(base, 0o700); err != nil {
		return fmt.Errorf("making an index: %w", err)
	}
	if err := removeStale(base); err != nil {
		return fmt.Errorf("making an index: %w", err)
	}
	tmp, err := os.MkdirTemp(base, filepath.Base(dir)+".tmp-")
	if err != nil {
		return fmt.Errorf("making an index: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }() // after the renaming there is none
	b := &indexBuild{dir: tmp, m: manifest{V: indexVersion, Log: a.head.Origin, Size: a.head.Size, Root: a.head.Root}}
	err = a.eachBundle(ctx, a.all, func(l *look) { b.read(ctx, a, l) }, func(l *look) error {
		if show != nil {
			show(l.n*record.TileWidth, a.head.Size)
		}
		return b.take(l)
	})
	if err == nil {
		err = b.finish()
	}
	if err != nil {
		return err
	}
	// Two may make the same index at a time; either will do.
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("making an index: %w", err)
	}
	if err := os.Rename(tmp, dir); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("making an index: %w", err)
	}
	return nil
}

// removeStale removes what builds left behind that did not finish.
func removeStale(base string) error {
	list, err := os.ReadDir(base)
	if err != nil {
		return err
	}
	for _, e := range list {
		info, err := e.Info()
		if err != nil || !isStale(e.Name()) || time.Since(info.ModTime()) < staleAfter {
			continue
		}
		if err := os.RemoveAll(filepath.Join(base, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// indexBuild is an index being made.
type indexBuild struct {
	dir      string
	m        manifest
	rows     []byte
	tree     record.Tree
	stored   []record.Hash
	postings []posting
	spare    []posting // of the sort
	buffers  sync.Pool // of bundles' bytes
}

// read makes a bundle's row and terms.
func (b *indexBuild) read(ctx context.Context, a *archive, l *look) {
	buf, ok := b.buffers.Get().(*[]byte)
	if !ok {
		buf = new([]byte)
	}
	entries, used, err := a.bundle(ctx, l.n, *buf)
	*buf = used
	defer b.buffers.Put(buf)
	if errors.Is(err, errDamaged) {
		err = fmt.Errorf("%w: %w", errNotTheLog, err)
	}
	if err != nil {
		l.err = err
		return
	}
	l.row = newRow()
	l.row.root = bundleRoot(entries)
	for _, raw := range entries {
		l.terms = l.row.add(raw, l.terms)
	}
	slices.Sort(l.terms)
	l.terms = slices.Compact(l.terms)
}

func (b *indexBuild) take(l *look) error {
	b.rows = l.row.append(b.rows)
	b.stored = b.tree.Append(b.stored[:0], l.row.root)
	for _, t := range l.terms {
		b.postings = append(b.postings, posting{t, uint32(l.n)})
	}
	if len(b.postings) < runPostings {
		return nil
	}
	return b.writeRun()
}

// finish writes the rest, if the entries are those of the log.
func (b *indexBuild) finish() error {
	if b.m.Size == 0 || b.tree.Root() != b.m.Root {
		return errNotTheLog
	}
	if len(b.postings) > 0 {
		if err := b.writeRun(); err != nil {
			return err
		}
	}
	b.m.Rows = sha256.Sum256(b.rows)
	if err := os.WriteFile(filepath.Join(b.dir, "rows"), b.rows, 0o600); err != nil {
		return fmt.Errorf("making an index: %w", err)
	}
	text, err := b.m.encode()
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(b.dir, "manifest"), text, 0o600); err != nil {
		return fmt.Errorf("making an index: %w", err)
	}
	return nil
}

// writeRun sorts what there is and writes it.
func (b *indexBuild) writeRun() (err error) {
	b.sort()
	f, err := os.OpenFile(runPath(b.dir, len(b.m.Runs)), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("making an index: %w", err)
	}
	w := bufio.NewWriterSize(f, 1<<20)
	var page, directory []byte
	for p := range slices.Chunk(b.postings, pagePostings) {
		page = page[:0]
		for _, x := range p {
			page = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint64(page, x.term), x.bundle)
		}
		sum := sha256.Sum256(page)
		directory = append(binary.BigEndian.AppendUint64(directory, p[0].term), sum[:]...)
		if _, err = w.Write(page); err != nil {
			break
		}
	}
	if err == nil {
		_, err = w.Write(directory)
	}
	if err == nil {
		err = w.Flush()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("making an index: %w", err)
	}
	b.m.Runs = append(b.m.Runs, manifestRun{Postings: len(b.postings), Directory: sha256.Sum256(directory)})
	b.postings = b.postings[:0]
	return nil
}

// sort orders postings by term, a byte at a time from the lowest; those of one term stay in the order of bundles.
func (b *indexBuild) sort() {
	from, to := b.postings, b.spare
	if cap(to) < len(from) {
		to = make([]posting, len(from))
	}
	to = to[:len(from)]
	for shift := 0; shift < 64; shift += 8 {
		var at [257]int
		for i := range from {
			at[int(byte(from[i].term>>shift))+1]++
		}
		for i := 1; i < len(at); i++ {
			at[i] += at[i-1]
		}
		for _, p := range from {
			k := byte(p.term >> shift)
			to[at[k]] = p
			at[k]++
		}
		from, to = to, from
	}
	b.postings, b.spare = from, to
}
