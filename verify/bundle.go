package verify

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"bulla/record"
)

// bundle is up to 256 entries, read, parsed and hashed by a worker, without knowledge of what comes before or after. It is used again
// for others once it was judged.
type bundle struct {
	first   uint64        // index of its first entry
	slots   []slot        // one for each entry that the head says is here
	tile    []record.Hash // the hashes stored for them; nil when missing or unreadable
	found   []Finding     // what is wrong with the files as such
	missing []string      // files that are not there
	items   []item        // what the fold needs to see, in order
	events  uint64        // entries of kind event
	others  map[record.Kind]uint64
	timed   uint64      // entries with an estimate of UTC
	linked  bool        // every entry is there, is what the tile says, breaks no rule by itself and names the one before it here
	root    record.Hash // of the tree over the leaves, if whole
	whole   bool        // all 256 entries are there

	entries [tileWidth]record.Entry // by slot, as far as they were parsed
	parser  record.EntryParser
	hasher  record.Hasher
	raw     [][]byte      // what the file splits into
	room    []byte        // for the tile as it is read
	hashes  []record.Hash // for the tile
}

// slot is the place of one entry.
type slot struct {
	present bool
	leaf    record.Hash // of the bytes that are there
	prev    record.Hash // what the entry says
	parsed  bool        // it is an entry
	event   bool        // and of kind event
	fault   *Finding    // the first rule that the entry breaks by itself
	raw     []byte      // only while the worker has it
}

// item is an entry that the fold needs to see: anything but an event, and events whose stamp or producer is not that of the entry
// before.
type item struct {
	slot  int
	entry *record.Entry // an event's is without its body, and only there until the bundle was judged
}

// reset makes the bundle one of width entries of which nothing is known.
func (b *bundle) reset(first uint64, width int) {
	if cap(b.slots) < width {
		b.slots = make([]slot, tileWidth)
	}
	b.slots = b.slots[:width]
	clear(b.slots)
	clear(b.items)
	clear(b.others)
	if b.others == nil {
		b.others = map[record.Kind]uint64{}
	}
	b.first, b.tile, b.found, b.missing, b.items = first, nil, nil, nil, b.items[:0]
	b.events, b.timed, b.linked, b.whole = 0, 0, false, false
}

// gone reports whether there are no entries at all.
func (b *bundle) gone() bool {
	return slices.ContainsFunc(b.missing, func(name string) bool { return strings.HasPrefix(name, "tile/entries/") })
}

// bundleAt reads, parses and hashes the bundle that begins at index first.
func (r *run) bundleAt(ctx context.Context, first uint64) (*bundle, error) {
	t := tileOf(entries, first, r.head.Size)
	b, ok := r.bundles.Get().(*bundle)
	if !ok {
		b = new(bundle)
	}
	b.reset(first, t.W)
	if err := b.readTile(ctx, r.src, t); err != nil {
		return nil, err
	}
	buf, ok := r.buffers.Get().(*[]byte)
	if !ok {
		buf = new([]byte)
	}
	var err error
	if *buf, err = b.readEntries(ctx, r.src, t, *buf); err != nil {
		return nil, err
	}
	b.parse(r.origin)
	clear(b.raw)
	b.link()
	r.buffers.Put(buf) // nothing of b refers to it any more
	return b, nil
}

func (b *bundle) readTile(ctx context.Context, src Source, t tlog.Tile) error {
	t.L = 0
	name := record.TilePath(t)
	data, ok, err := readInto(ctx, src, name, tileWidth*tlog.HashSize, b.room)
	if err != nil {
		return err
	}
	if !ok {
		b.missing = append(b.missing, name)
		return nil
	}
	if b.room = data; len(data) != t.W*tlog.HashSize {
		b.found = append(b.found, tileSize(name, t.W, len(data), b.first))
		return nil
	}
	b.hashes = appendHashes(b.hashes[:0], data)
	b.tile = b.hashes
	return nil
}

func tileSize(name string, width, size int, first uint64) Finding {
	f := Finding{Rule: "tile.format", File: name, Expected: fmt.Sprintf("%d hashes, %d bytes", width, width*tlog.HashSize), Found: fmt.Sprintf("%d bytes", size), Index: at(first)}
	if size > tileWidth*tlog.HashSize {
		f.Found = fmt.Sprintf("more than %d bytes", tileWidth*tlog.HashSize)
	}
	return f
}

func hashes(data []byte) []record.Hash { return appendHashes(nil, data) }

func appendHashes(dst []record.Hash, data []byte) []record.Hash {
	dst = slices.Grow(dst, len(data)/tlog.HashSize)
	for ; len(data) >= tlog.HashSize; data = data[tlog.HashSize:] {
		dst = append(dst, record.Hash(data))
	}
	return dst
}

// readEntries reads the bundle, into buf if that is large enough, splits it, and puts each entry into its slot. Until parse has copied
// what is kept, the slots refer to the buffer that is returned.
func (b *bundle) readEntries(ctx context.Context, src Source, t tlog.Tile, buf []byte) ([]byte, error) {
	name := record.TilePath(t)
	data, ok, err := readInto(ctx, src, name, maxBundle, buf)
	if err != nil {
		return nil, err
	}
	if !ok {
		b.missing = append(b.missing, name)
		return buf, nil
	}
	b.place(name, t.W, data)
	return data, nil
}

// place splits a bundle and puts each entry into its slot.
func (b *bundle) place(name string, width int, data []byte) {
	var err error
	if b.raw, err = record.AppendEntries(b.raw[:0], data); err == nil && len(b.raw) == width {
		for i, e := range b.raw {
			s := &b.slots[i]
			s.present, s.leaf, s.raw = true, b.hasher.Leaf(e), e
		}
		if b.tile == nil || b.aligned() {
			return
		}
	}
	// Something does not fit. The stored hashes say which entries belong where, and so what exactly is wrong.
	clear(b.slots)
	if b.tile == nil {
		b.found = append(b.found, Finding{Rule: "bundle.format", File: name, Index: at(b.first), Expected: fmt.Sprintf("%d entries", width), Found: "bytes that do not split into them"})
		return
	}
	b.sort(name, split(data, b.tile))
}

// aligned reports whether no entry seems to be out of its place: each that differs from its stored hash is at least not another's.
func (b *bundle) aligned() bool {
	var set map[record.Hash]bool
	for i := range b.slots {
		if b.slots[i].leaf == b.tile[i] {
			continue
		}
		if set == nil {
			set = make(map[record.Hash]bool, len(b.tile))
			for _, h := range b.tile {
				set[h] = true
			}
		}
		if set[b.slots[i].leaf] || record.CheckCanonical(b.slots[i].raw, record.MaxDepth) != nil {
			return false
		}
	}
	return true
}

// piece is a part of a damaged bundle that is, or was, an entry.
type piece struct {
	raw       []byte
	leaf      record.Hash
	badLength bool // the two bytes before it do not say its length
}

// entryStart is how every entry begins.
var entryStart = []byte(`{"body":`)

// maxGuesses bounds the places that are tried as the end of an entry whose length is wrong.
const maxGuesses = 64

// split takes a bundle apart of which the lengths cannot be relied upon, with the stored hashes as a guide.
func split(data []byte, tile []record.Hash) []piece {
	known := make(map[record.Hash]bool, len(tile))
	for _, h := range tile {
		known[h] = true
	}
	var out []piece
	for len(data) > 0 && len(out) < 2*tileWidth {
		p, size := nextPiece(data, known)
		out = append(out, p)
		data = data[size:]
	}
	return out
}

// nextPiece takes the first entry off a damaged bundle and says how many bytes it took.
func nextPiece(data []byte, known map[record.Hash]bool) (piece, int) {
	stated := -1
	if len(data) >= 2 {
		if n := 2 + int(binary.BigEndian.Uint16(data)); n <= len(data) {
			if leaf := record.LeafHash(data[2:n]); known[leaf] {
				return piece{raw: data[2:n], leaf: leaf}, n
			}
			stated = n
		}
	}
	// Not an entry of the tree. Is it one with another length in front of it?
	from := min(2, len(data))
	guesses := 0
	resume := -1
	for end := nextStart(data, from+1); guesses < maxGuesses; end = nextStart(data, end+3) {
		guesses++
		if end-from <= record.MaxEntry {
			if leaf := record.LeafHash(data[from:end]); known[leaf] {
				return piece{raw: data[from:end], leaf: leaf, badLength: end != stated}, end
			}
		}
		if resume < 0 && framed(data[end:]) {
			resume = end
		}
		if end == len(data) {
			break
		}
	}
	// It is damaged itself, or does not belong here. Go on where entries go on.
	end := len(data)
	switch {
	case stated > 0 && framed(data[stated:]):
		end = stated
	case resume > 0:
		end = resume
	}
	raw := data[from:min(end, from+record.MaxEntry)]
	return piece{raw: raw, leaf: record.LeafHash(raw)}, end
}

// nextStart is where, at or after from, the length of a next entry may stand: two bytes before entryStart, or at the end.
func nextStart(data []byte, from int) int {
	if from+2 > len(data) {
		return len(data)
	}
	if i := bytes.Index(data[from+2:], entryStart); i >= 0 {
		return from + i
	}
	return len(data)
}

// framed reports whether data begins with a length that leads to another entry or to the end.
func framed(data []byte) bool {
	if len(data) == 0 {
		return true
	}
	if len(data) < 2 {
		return false
	}
	n := 2 + int(binary.BigEndian.Uint16(data))
	return n == len(data) || n+2 < len(data) && bytes.HasPrefix(data[n+2:], entryStart)
}

// sort puts pieces into slots by their hashes, and reports what is missing, extra or out of order.
func (b *bundle) sort(name string, pieces []piece) {
	ahead := func(h record.Hash, in []record.Hash) int {
		for i, x := range in {
			if x == h {
				return i
			}
		}
		return -1
	}
	leaves := make([]record.Hash, len(pieces))
	for i, p := range pieces {
		leaves[i] = p.leaf
	}
	i, j := 0, 0
	for i < len(b.slots) && j < len(pieces) {
		p := pieces[j]
		skip := 0
		if p.leaf != b.tile[i] {
			if skip = ahead(p.leaf, b.tile[i:]); skip > 0 {
				b.lost(name, i, i+skip, leaves)
			} else if extra := ahead(b.tile[i], leaves[j:]); extra > 0 {
				b.surplus(name, i, leaves, j, j+extra)
				j += extra
				continue
			}
			skip = max(skip, 0)
		}
		i += skip
		b.slots[i] = slot{present: true, leaf: p.leaf, raw: p.raw}
		if p.badLength {
			b.found = append(b.found, Finding{Rule: "bundle.length", File: name, Index: at(b.first + uint64(i)), Expected: fmt.Sprintf("%d bytes", len(p.raw)), Found: "another length"})
		}
		i, j = i+1, j+1
	}
	b.lost(name, i, len(b.slots), leaves)
	b.surplus(name, len(b.slots), leaves, j, len(leaves))
}

// lost reports the slots [from,to), whose entries are not where they belong.
func (b *bundle) lost(name string, from, to int, leaves []record.Hash) {
	for i := from; i < to; i++ {
		f := Finding{Rule: "entry.missing", File: name, Index: at(b.first + uint64(i)), Expected: "the entry with leaf hash " + base64Hash(b.tile[i]), Found: "no entry with it in the bundle"}
		for _, h := range leaves {
			if h == b.tile[i] {
				f.Rule, f.Found = "entry.order", "it stands elsewhere in the bundle"
				break
			}
		}
		b.found = append(b.found, f)
	}
}

// surplus reports those of the leaves [from,to), before slot i, that belong to no place: entries that are not the tree's, and one of the
// tree's that is there more often than in the tree. One out of its place was reported by lost.
func (b *bundle) surplus(name string, i int, leaves []record.Hash, from, to int) {
	count := func(in []record.Hash, h record.Hash) (n int) {
		for _, x := range in {
			if x == h {
				n++
			}
		}
		return n
	}
	for k := from; k < to; k++ {
		if h := leaves[k]; count(leaves[:k+1], h) > count(b.tile, h) {
			b.found = append(b.found, Finding{Rule: "entry.extra", File: name, Index: at(b.first + uint64(i)), Expected: "no further entry here", Found: "an entry with leaf hash " + base64Hash(h)})
		}
	}
}

// parse reads every entry and picks those that the fold needs to see.
func (b *bundle) parse(origin string) {
	var before *record.Entry
	for i := range b.slots {
		s, e := &b.slots[i], &b.entries[i]
		if !s.present {
			before = nil
			continue
		}
		err := b.parser.Parse(e, s.raw)
		s.raw = nil
		if err != nil {
			s.fault = &Finding{Rule: "entry.canonical", Expected: "an entry in its one form", Found: fmt.Sprintf("%.300s", err.Error())}
			before = nil
			continue
		}
		s.parsed, s.prev, s.event = true, e.Prev, e.Kind == record.KindEvent
		if e.Stamp.HasEstimate {
			b.timed++
		}
		s.fault = checkEntry(e, b.first+uint64(i), origin)
		switch {
		case !s.event:
			b.others[e.Kind]++
			b.items = append(b.items, item{i, keep(e)})
		case before == nil || e.Stamp != before.Stamp || !sameUser(e, before):
			b.items = append(b.items, item{i, e})
			fallthrough
		default:
			b.events++
		}
		e.Body = nil // the buffer that it lies in is not the bundle's
		before = e
	}
}

// link finds out whether all is well as far as this bundle shows, and makes the tree over its entries.
func (b *bundle) link() {
	b.linked = b.tile != nil
	for i := range b.slots {
		s := &b.slots[i]
		if !s.present {
			b.linked = false
			return
		}
		b.linked = b.linked && s.parsed && s.fault == nil && s.leaf == b.tile[i] && (i == 0 || s.prev == b.slots[i-1].leaf)
	}
	if b.whole = len(b.slots) == tileWidth; b.whole {
		var leaves [tileWidth]record.Hash
		for i := range b.slots {
			leaves[i] = b.slots[i].leaf
		}
		b.root = b.hasher.Root(leaves[:])
	}
}

// keep copies an entry, without what holds on to the bundle or its bytes.
func keep(e *record.Entry) *record.Entry {
	k := *e
	k.Body = bytes.Clone(e.Body)
	return &k
}

func sameUser(a, b *record.Entry) bool {
	return a.Kind == b.Kind && a.Producer != nil && b.Producer != nil && a.Producer.UID == b.Producer.UID && a.Producer.GID == b.Producer.GID
}

// checkEntry checks what an entry alone can break.
func checkEntry(e *record.Entry, index uint64, origin string) *Finding {
	switch {
	case e.Log != origin:
		return &Finding{Rule: "entry.log", Expected: quote(origin), Found: quote(e.Log)}
	case e.Index != index:
		return &Finding{Rule: "entry.index", Expected: fmt.Sprint(index), Found: fmt.Sprint(e.Index)}
	case e.Kind == record.KindEvent:
		if e.Producer == nil {
			return &Finding{Rule: "entry.producer", Expected: "a producer", Found: "none"}
		}
		return nil
	case isOwn(e.Kind) && e.Producer != nil:
		return &Finding{Rule: "entry.producer", Expected: "none in an entry of kind " + string(e.Kind), Found: fmt.Sprintf("uid %d", e.Producer.UID)}
	}
	if err := checkBody(e); err != nil {
		return &Finding{Rule: "entry.body", Expected: "a body of kind " + string(e.Kind), Found: fmt.Sprintf("%.300s", err.Error())}
	}
	return nil
}

// isOwn reports whether entries of the kind are the machine's own records.
func isOwn(k record.Kind) bool {
	switch k {
	case record.KindGenesis, record.KindClock, record.KindSeal, record.KindAccess, record.KindSystem, record.KindToken, record.KindBlob:
		return true
	}
	return false
}

// checkBody parses the bodies that no fold looks into.
func checkBody(e *record.Entry) (err error) {
	switch e.Kind {
	case record.KindSystem:
		_, err = record.ParseSystem(e.Body)
	case record.KindAccess:
		_, err = record.ParseAccess(e.Body)
	case record.KindBlob:
		_, err = record.ParseBlob(e.Body)
	}
	return err
}
