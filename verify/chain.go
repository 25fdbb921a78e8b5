package verify

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"golang.org/x/mod/sumdb/tlog"
	"golang.org/x/sync/errgroup"

	"bulla/record"
)

// chain is what the judging of entries in order carries along.
type chain struct {
	at      uint64                 // entries judged
	prev    record.Hash            // leaf hash of the entry before
	known   bool                   // prev is certain
	tree    record.Tree            // over the roots of complete bundles: the log's tree above level 8
	stored  []record.Hash          // of tree, in the order of tlog.StoredHashIndex: a quarter byte an entry
	hashes  [tileWidth]record.Hash // leaf hashes of the bundle that is not complete
	levels  [tileLevels]upper      // tiles above level 0 under way
	unknown bool                   // some leaf's hash could not be found out: no root can be computed
	missing int                    // files found missing
	lost    bool                   // reading was given up
}

// upper collects the hashes of one tile above level 0.
type upper struct {
	hashes []record.Hash
	number int64
}

// maxMissing is how many missing files are looked for before the rest of the log is given up.
const maxMissing = 32

// readEntries reads the log: workers make bundles in any order, this goroutine judges them in theirs.
func (r *run) readEntries(ctx context.Context) error {
	work, stop := context.WithCancel(ctx)
	defer stop()
	g, work := errgroup.WithContext(work)
	g.SetLimit(r.opt.Workers + 1)
	// Each bundle travels in a channel of its own, and those channels in order; so few bundles are under way at a time.
	ordered := make(chan chan *bundle, 4*r.opt.Workers)
	g.Go(func() error {
		defer close(ordered)
		for first := uint64(0); first < r.head.Size; first += tileWidth {
			out := make(chan *bundle, 1)
			select {
			case ordered <- out:
			case <-work.Done():
				return nil
			}
			g.Go(func() error {
				defer close(out)
				b, err := r.bundleAt(work, first)
				if err == nil {
					out <- b
				}
				return err
			})
		}
		return nil
	})
	err := r.judgeAll(ctx, ordered)
	stop()
	switch waited := g.Wait(); {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil || r.chain.lost: // it was this goroutine that stopped the workers
		return err
	default:
		return waited
	}
}

// judgeAll judges bundles in order, each when the next is there too: the last entry's witness is in it.
func (r *run) judgeAll(ctx context.Context, ordered <-chan chan *bundle) error {
	var before *bundle
	for out := range ordered {
		b, ok := <-out
		if !ok {
			return nil // reading failed, or was cancelled: the workers' group knows why
		}
		if before != nil {
			if err := r.judgeBundle(ctx, before, b); err != nil {
				return err
			}
			r.bundles.Put(before)
		}
		before = b
		if r.chain.missing > maxMissing {
			r.chain.lost, r.chain.unknown = true, true
			r.remark("more than %d files are missing: what lies behind entry %d was not read", maxMissing, r.chain.at)
			return nil
		}
	}
	if before != nil {
		if err := r.judgeBundle(ctx, before, nil); err != nil {
			return err
		}
	}
	return r.judgeEdge(ctx)
}

// judgeBundle judges a bundle's entries in order; next is the bundle behind it, nil at the end.
func (r *run) judgeBundle(ctx context.Context, b, next *bundle) error {
	for _, f := range b.found {
		r.find(f)
	}
	for _, name := range b.missing {
		r.gone(name, b.first)
	}
	changed := false
	var err error
	if b.linked && (b.first == 0 || !r.chain.known || b.slots[0].prev == r.chain.prev) {
		err = r.follow(ctx, b)
	} else {
		changed, err = r.judgeSlots(ctx, b, next)
	}
	if err != nil {
		return err
	}
	if b.events > 0 {
		r.report.Entries[string(record.KindEvent)] += b.events
	}
	for kind, n := range b.others {
		r.report.Entries[string(kind)] += n
	}
	r.fold.estimated += b.timed
	if err := r.grow(ctx, b, changed); err != nil {
		return err
	}
	r.covered(r.chain.at, ClaimBytes, ClaimChain, ClaimTree)
	if r.opt.Progress != nil {
		r.opt.Progress(r.chain.at, r.head.Size)
	}
	return nil
}

// follow takes a bundle that is linked, and to what was judged before: of no entry is anything to be said but what only the fold knows.
func (r *run) follow(ctx context.Context, b *bundle) error {
	copy(r.chain.hashes[:], b.tile)
	for _, it := range b.items {
		r.chain.at = b.first + uint64(it.slot) + 1
		if err := r.fold.see(ctx, it.entry, b.tile[it.slot]); err != nil {
			return err
		}
	}
	r.chain.at = b.first + uint64(len(b.slots))
	r.chain.prev, r.chain.known = b.tile[len(b.tile)-1], true
	return nil
}

// judgeSlots judges a bundle entry by entry; changed says that hashes differ from those of the bytes that are there.
func (r *run) judgeSlots(ctx context.Context, b, next *bundle) (changed bool, err error) {
	items := b.items
	for i := range b.slots {
		hash, known, intact := r.judgeSlot(b, i, witness(b, i, next))
		r.chain.hashes[i] = hash
		changed = changed || hash != b.slots[i].leaf
		r.chain.prev, r.chain.known = hash, known
		r.chain.unknown = r.chain.unknown || !known
		r.chain.at = b.first + uint64(i) + 1
		if !intact {
			r.fold.damaged(b.first+uint64(i), b.slots[i].event)
		}
		for ; len(items) > 0 && items[0].slot <= i; items = items[1:] {
			if !intact {
				continue
			}
			if err := r.fold.see(ctx, items[0].entry, hash); err != nil {
				return changed, err
			}
		}
	}
	return changed, nil
}

// witness is what the entry behind slot i says of its hash; nil when there is none that can be read.
func witness(b *bundle, i int, next *bundle) *record.Hash {
	var s *slot
	switch {
	case i+1 < len(b.slots):
		s = &b.slots[i+1]
	case next != nil:
		s = &next.slots[0]
	}
	if s == nil || !s.parsed {
		return nil
	}
	return &s.prev
}

// judgeSlot decides what the leaf hash of an entry is, and whether the bytes that are there are the entry. Three witnesses speak of
// the hash: the bytes themselves, the tile, and the entry behind. One finding names the one that stands alone.
func (r *run) judgeSlot(b *bundle, i int, next *record.Hash) (hash record.Hash, known, intact bool) {
	s, index := &b.slots[i], b.first+uint64(i)
	if b.tile == nil {
		if !s.present {
			return hash, false, false
		}
		return s.leaf, true, r.judgeEntry(s, index)
	}
	stored := b.tile[i]
	switch {
	case s.present && s.leaf == stored:
		return s.leaf, true, r.judgeEntry(s, index)
	case !s.present: // reported with the bundle, as missing or as a finding
		if !b.gone() {
			r.violate(ClaimBytes, ClaimChain, ClaimTree)
		}
		return stored, true, false
	case s.parsed && (next != nil && *next == s.leaf || index+1 == r.head.Size && r.leadsToRoot(i, s.leaf)):
		r.find(Finding{Rule: "tile.hash", Index: at(index), File: record.TilePath(tileOf(0, index, r.head.Size)), Expected: base64Hash(s.leaf), Found: base64Hash(stored)})
		return s.leaf, true, r.judgeEntry(s, index)
	}
	f := Finding{Rule: "tree.leaf", Expected: "leaf hash " + base64Hash(stored), Found: "leaf hash " + base64Hash(s.leaf)}
	if s.fault != nil && s.fault.Rule == "entry.canonical" {
		f = *s.fault
	}
	f.Index, f.File = at(index), record.TilePath(tileOf(entries, index, r.head.Size))
	r.find(f)
	r.violate(ClaimBytes, ClaimChain, ClaimTree)
	return stored, true, false
}

// violate marks claims that a finding of another claim's rule breaks as well.
func (r *run) violate(claims ...string) {
	for _, c := range claims {
		r.claims[c].violated = true
	}
}

// judgeEntry judges an entry whose bytes are those that were logged; it is false when they say nothing.
func (r *run) judgeEntry(s *slot, index uint64) bool {
	switch {
	case s.fault != nil:
		f := *s.fault
		f.Index, f.File = at(index), record.TilePath(tileOf(entries, index, r.head.Size))
		r.find(f)
	case index > 0 && r.chain.known && s.prev != r.chain.prev:
		r.find(Finding{Rule: "chain.prev", Index: at(index), Expected: base64Hash(r.chain.prev), Found: base64Hash(s.prev)})
	}
	return s.parsed
}

// leadsToRoot reports whether the head's root follows when the log's last entry, in slot i, has the given hash.
func (r *run) leadsToRoot(i int, leaf record.Hash) bool {
	if r.chain.unknown {
		return false
	}
	return joined(&r.chain.tree, append(slices.Clone(r.chain.hashes[:i]), leaf)) == r.head.Root
}

// grow extends the tree by a judged bundle, and judges the tiles that it completes.
func (r *run) grow(ctx context.Context, b *bundle, changed bool) error {
	if r.chain.unknown {
		return nil
	}
	if len(b.slots) < tileWidth {
		return nil
	}
	root := b.root
	if changed || !b.whole {
		root = treeOf(r.chain.hashes[:]).Root()
	}
	r.chain.stored = r.chain.tree.Append(r.chain.stored, root)
	for level := 1; ; level++ {
		u := &r.chain.levels[level]
		if u.hashes = append(u.hashes, root); len(u.hashes) < tileWidth {
			return nil
		}
		if err := r.judgeTile(ctx, level, u); err != nil {
			return err
		}
		root = treeOf(u.hashes).Root()
		u.hashes, u.number = u.hashes[:0], u.number+1
	}
}

// judgeEdge judges the tiles above level 0 that the log leaves incomplete.
func (r *run) judgeEdge(ctx context.Context) error {
	for level := range r.chain.levels {
		if u := &r.chain.levels[level]; len(u.hashes) > 0 && !r.chain.unknown {
			if err := r.judgeTile(ctx, level, u); err != nil {
				return err
			}
		}
	}
	return nil
}

// judgeTile compares a tile above level 0 with the hashes that the entries lead to.
func (r *run) judgeTile(ctx context.Context, level int, u *upper) error {
	name := record.TilePath(tlog.Tile{H: 8, L: level, N: u.number, W: len(u.hashes)})
	under := uint64(1) << (8 * level) // entries under one hash
	first := uint64(u.number) * tileWidth * under
	data, ok, err := read(ctx, r.src, name, tileWidth*tlog.HashSize)
	if err != nil {
		return err
	}
	if !ok {
		r.gone(name, first)
		return nil
	}
	if len(data) != len(u.hashes)*tlog.HashSize {
		r.find(tileSize(name, len(u.hashes), len(data), first))
		return nil
	}
	for i, want := range u.hashes {
		if got := data[i*tlog.HashSize:][:tlog.HashSize]; !bytes.Equal(got, want[:]) {
			r.find(Finding{Rule: "tile.hash", Index: at(first + uint64(i)*under), File: name, Expected: base64Hash(want), Found: base64Hash(record.Hash(got))})
		}
	}
	return nil
}

// gone records that a file is missing that the head needs; entries from first on depend on it.
func (r *run) gone(name string, first uint64) {
	r.chain.missing++
	r.miss(fmt.Sprintf("%s is missing", name), ClaimBytes)
	if t, ok := record.ParseTilePath(name); ok && t.L == entries {
		r.miss(fmt.Sprintf("entries %d to %d are missing (%s)", first, min(first+tileWidth, r.head.Size)-1, name), ClaimChain, ClaimTree)
		r.fold.damaged(first, false)
	}
}

// judgeRoot compares the tree that the entries make with the root that the head states.
func (r *run) judgeRoot(ctx context.Context) error {
	root, ok, err := r.rootAt(ctx, r.head.Size)
	switch {
	case err != nil:
		return err
	case !ok:
		r.miss("not every entry's hash could be found out", ClaimTree)
	case root != r.head.Root:
		r.find(Finding{Rule: "tree.root", Expected: base64Hash(r.head.Root), Found: base64Hash(root)})
	}
	return nil
}
