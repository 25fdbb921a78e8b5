package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"runtime"
	"slices"
	"sync"

	"golang.org/x/mod/sumdb/tlog"

	"bulla/api"
	"bulla/record"
	"bulla/verify"
)

// archive is a log in an export, to be searched. Nothing of it is trusted, and nothing of it is verified: bulla verify does that.
type archive struct {
	src    verify.Source
	path   string
	signed []byte // the checkpoint
	head   record.Checkpoint
	done   func()
}

// openArchive opens a directory or a tar file of evidence; the caller calls done.
func openArchive(ctx context.Context, path string) (*archive, error) {
	src, done, err := openEvidence(ctx, path)
	if err != nil {
		return nil, err
	}
	a := &archive{src: src, path: path, done: done}
	if a.signed, err = readSource(ctx, src, "checkpoint", record.MaxCheckpoint); err == nil {
		text, _, _ := bytes.Cut(a.signed, []byte("\n\n"))
		if a.head, err = record.ParseCheckpoint(string(text) + "\n"); err != nil {
			err = coded(exitNotCheckable, fmt.Errorf("%s: the checkpoint: %w", path, err))
		}
	}
	if err != nil {
		done()
		return nil, err
	}
	return a, nil
}

// bundles is how many bundles of entries the log has.
func (a *archive) bundles() uint64 { return (a.head.Size + record.TileWidth - 1) / record.TileWidth }

// width is how many entries are in a bundle.
func (a *archive) width(n uint64) int {
	return int(min(record.TileWidth, a.head.Size-n*record.TileWidth))
}

// errDamaged is a bundle that is missing, or does not hold what it should.
var errDamaged = errors.New("bulla verify says more")

// bundle reads bundle n, into buf if that is large enough. The entries are parts of the buffer that is returned.
func (a *archive) bundle(ctx context.Context, n uint64, buf []byte) (entries [][]byte, used []byte, err error) {
	w := a.width(n)
	name := record.TilePath(tlog.Tile{H: 8, L: -1, N: int64(n), W: w})
	f, err := a.src.Open(ctx, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, buf, fmt.Errorf("%s is missing: %w", name, errDamaged)
	}
	if err != nil {
		return nil, buf, fmt.Errorf("reading %s: %w", name, err)
	}
	used, err = readAll(f, buf[:0])
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, used, fmt.Errorf("reading %s: %w", name, err)
	}
	entries, err = record.ParseBundle(used)
	if err != nil || len(entries) != w {
		return nil, used, fmt.Errorf("%s does not hold %d entries: %w", name, w, errDamaged)
	}
	return entries, used, nil
}

// readAll reads to the end, and one byte more than a bundle may have of what is longer.
func readAll(r io.Reader, b []byte) ([]byte, error) {
	for len(b) <= maxBundle {
		if len(b) == cap(b) {
			b = slices.Grow(b, max(64<<10, min(cap(b), maxBundle)))
		}
		n, err := r.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		if errors.Is(err, io.EOF) {
			return b, nil
		}
		if err != nil {
			return b, err
		}
	}
	return b, nil
}

// bundleRoot is the root of the tree over a bundle's entries: a hash of level 8 where the bundle is full.
func bundleRoot(entries [][]byte) record.Hash {
	var tree record.Tree
	var stored [2 * record.TileWidth]record.Hash
	for _, e := range entries {
		tree.Append(stored[:0], record.LeafHash(e))
	}
	return tree.Root()
}

// look is one bundle that was looked at.
type look struct {
	n      uint64
	done   chan struct{} // closed when the rest is there
	hits   []*hit
	faults []fault
	err    error    // of reading; the search ends
	row    row      // of it, the root; the rest for an index
	terms  []uint64 // for an index
}

// hit is an entry that meets a query, confirmed on its bytes.
type hit struct {
	log   *archive // nil: from an appliance
	raw   []byte
	entry *record.Entry
	event *record.Event // of an entry of kind event
}

func newHit(log *archive, raw []byte, e *record.Entry) *hit {
	h := &hit{log: log, raw: raw, entry: e}
	if e.Kind == record.KindEvent {
		h.event, _ = record.ParseEvent(e.Body) // ParseEntry has checked it
	}
	return h
}

// fault is something of the evidence that could not be searched.
type fault struct {
	Entry uint64 `json:"entry"` // the first that it is about
	Why   string `json:"why"`
}

// searchWorkers bounds the bundles that are looked at together, and so memory.
const searchWorkers = 16

// eachBundle looks at bundles on all cores and gives them to take in the order in which they are named.
func (a *archive) eachBundle(ctx context.Context, numbers func(yield func(uint64) bool), work func(*look), take func(*look) error) error {
	ctx, cancel := context.WithCancel(ctx)
	workers := min(runtime.GOMAXPROCS(0), searchWorkers)
	jobs, order := make(chan *look), make(chan *look, 2*workers)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for l := range jobs {
				work(l)
				close(l.done)
			}
		})
	}
	wg.Go(func() {
		defer close(order)
		defer close(jobs)
		numbers(func(n uint64) bool {
			l := &look{n: n, done: make(chan struct{})}
			select {
			case order <- l:
			case <-ctx.Done():
				return false
			}
			select {
			case jobs <- l:
				return true
			case <-ctx.Done():
				l.err = ctx.Err()
				close(l.done)
				return false
			}
		})
	})
	defer wg.Wait()
	defer cancel()
	for l := range order {
		<-l.done
		if l.err != nil {
			return l.err
		}
		if err := take(l); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// all names every bundle.
func (a *archive) all(yield func(uint64) bool) {
	for n := range a.bundles() {
		if !yield(n) {
			return
		}
	}
}

// search is a query on its way through an archive.
type search struct {
	a        *archive
	q        *api.Query
	index    *index // nil: every entry is read
	progress *progress
	looked   uint64 // entries
	damaged  []fault
	more     uint64 // damage that is not listed
	buffers  sync.Pool
	tree     record.Tree // over the bundles, where all are read
	stored   []record.Hash
}

// maxFaults bounds the damage that is listed.
const maxFaults = 100

// tooDamaged is how much damage beyond that ends a search.
const tooDamaged = 10_000

// run calls f with every hit, in the order of the log. When it returns without an error and without damage, what it found is all that
// there is in the log of which the checkpoint states the root.
func (s *search) run(ctx context.Context, f func(*hit) error) error {
	numbers := s.a.all
	if s.index != nil {
		candidates, err := s.index.candidates(s.q)
		if err != nil {
			return err
		}
		numbers = func(yield func(uint64) bool) {
			for _, n := range candidates {
				if !yield(uint64(n)) {
					return
				}
			}
		}
	}
	work := func(l *look) { s.look(ctx, l) }
	s.tree = record.Tree{}
	err := s.a.eachBundle(ctx, numbers, work, func(l *look) error {
		for _, d := range l.faults {
			s.damage(d)
		}
		if s.more > tooDamaged { // a checkpoint may state any size
			return coded(exitNotCheckable, fmt.Errorf("more than %d places of the evidence cannot be searched, the first of them: %s", tooDamaged, s.damaged[0].Why))
		}
		s.stored = s.tree.Append(s.stored[:0], l.row.root)
		for _, h := range l.hits {
			s.progress.clear() // results may go to the same terminal
			if err := f(h); err != nil {
				return err
			}
		}
		s.looked += uint64(s.a.width(l.n))
		s.progress.show(l.n*record.TileWidth, s.a.head.Size)
		return nil
	})
	s.progress.clear()
	if err == nil && s.index == nil && s.a.head.Size > 0 && s.tree.Root() != s.a.head.Root {
		s.damage(fault{0, fmt.Sprintf("%v, so that some may have been changed: %v", errNotTheLog, errDamaged)})
	}
	return err
}

// damage notes what could not be searched.
func (s *search) damage(f fault) {
	if len(s.damaged) >= maxFaults {
		s.more++
		return
	}
	s.damaged = append(s.damaged, f)
}

// look finds what meets the query in one bundle.
func (s *search) look(ctx context.Context, l *look) {
	buf, ok := s.buffers.Get().(*[]byte)
	if !ok {
		buf = new([]byte)
	}
	entries, used, err := s.a.bundle(ctx, l.n, *buf)
	*buf = used
	first := l.n * record.TileWidth
	switch {
	case errors.Is(err, errDamaged):
		l.faults = append(l.faults, fault{first, err.Error()})
		return
	case err != nil:
		l.err = err
		return
	}
	if l.row.root = bundleRoot(entries); s.index != nil && l.row.root != s.index.root(l.n) {
		l.faults = append(l.faults, fault{first, fmt.Sprintf("the entries from %d on are not those that the checkpoint's root is over: bulla verify says more", first)})
	}
	for i, raw := range entries {
		e, ok, err := s.q.Match(raw)
		if err != nil {
			l.faults = append(l.faults, fault{first + uint64(i), fmt.Sprintf("entry %d cannot be read: %v: bulla verify says more", first+uint64(i), err)})
			continue
		}
		if !ok {
			continue
		}
		if e.Index != first+uint64(i) {
			l.faults = append(l.faults, fault{first + uint64(i), fmt.Sprintf("entry %d says that it is entry %d: bulla verify says more", first+uint64(i), e.Index)})
			continue
		}
		l.hits = append(l.hits, newHit(s.a, raw, e))
	}
	if l.hits == nil { // else they are parts of it
		s.buffers.Put(buf)
	}
}

// receipt is what proves that a hit is in the log whose head the export's checkpoint signs.
func (a *archive) receipt(ctx context.Context, h *hit) (record.Receipt, error) {
	index, size := int64(h.entry.Index), int64(a.head.Size)
	tree := tlog.Tree{N: size, Hash: a.head.Root}
	proof, err := tlog.ProveRecord(size, index, tlog.TileHashReader(tree, exportTiles{ctx, a.src}))
	if err == nil {
		err = tlog.CheckRecord(proof, size, a.head.Root, index, record.LeafHash(h.raw))
	}
	if err != nil {
		return record.Receipt{}, coded(exitNotCheckable, fmt.Errorf("entry %d cannot be proven from this export: %w; bulla verify says more", index, err))
	}
	return record.Receipt{Checkpoint: a.signed, Entry: h.raw, Index: h.entry.Index, Proof: proof}, nil
}

// exportTiles reads tiles of hashes, which tlog.TileHashReader checks against the root.
type exportTiles struct {
	ctx context.Context
	src verify.Source
}

func (exportTiles) Height() int { return 8 }

func (r exportTiles) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	out := make([][]byte, len(tiles))
	for i, t := range tiles {
		var err error
		if out[i], err = readSource(r.ctx, r.src, record.TilePath(t), record.TileWidth*tlog.HashSize); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (exportTiles) SaveTiles([]tlog.Tile, [][]byte) {}

// bounds are the earliest and the latest instant of UTC, in ns, that an entry may have been received at; ok is false where it has
// no estimate, so that nothing is known.
func (h *hit) bounds() (earliest, latest int64, ok bool) {
	s := h.entry.Stamp
	if !s.HasEstimate {
		return math.MinInt64, math.MaxInt64, false
	}
	return s.Earliest(), s.Latest(), true
}
