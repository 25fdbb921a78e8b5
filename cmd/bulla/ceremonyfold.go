package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"golang.org/x/mod/sumdb/tlog"

	"bulla/api"
	"bulla/attest"
	"bulla/ceremony"
	"bulla/record"
	"bulla/verify"
)

// governance is what governs a log, folded here from entries that are in it.
type governance struct {
	chronicle *ceremony.Chronicle
	state     ceremony.State // after all that the log's head covers, and what waits outside it
	head      ceremony.Head
	signed    []byte              // the head, as it is signed
	tpms      []enrolled          // that seal or sealed the log, oldest first
	tree      *servedTree         // under the head
	waiting   []*ceremony.Pending // recoveries that wait outside the log
	remark    string              // why something that waits cannot be taken; "": all can
	done      func()              // closes the export; earlier roots are read from it until then
}

// enrolled is a TPM as an entry enrolled it.
type enrolled struct {
	tpm   *attest.Enrolment
	entry uint64 // 0: the genesis
}

// govern reads what governs: from an appliance, or from the export that is named, without one. The caller calls done.
func (o *officer) govern(ctx context.Context) (*governance, *appliance, error) {
	pins, err := challengePolicy(o.policy)
	if err != nil {
		return nil, nil, err
	}
	if o.export != "" {
		g, err := o.exported(ctx, o.export)
		if err != nil {
			return nil, nil, err
		}
		if err := g.pinned(pins); err != nil {
			g.done()
			return nil, nil, err
		}
		return g, nil, nil
	}
	a, err := o.connect(ctx)
	if err != nil {
		return nil, nil, err
	}
	g, err := a.governance(ctx)
	if err == nil {
		err = g.pinned(pins)
	}
	if err == nil {
		err = g.recovery(ctx, a)
	}
	return g, a, err
}

// pinned refuses another log than the one that a policy names.
func (g *governance) pinned(p *verify.Policy) error {
	if len(p.Genesis) == 0 {
		return nil
	}
	origin, leaf := g.state.Policy.Origin, g.state.Genesis
	want := genesisOf(p, origin)
	if want == nil {
		return coded(exitTampered, fmt.Errorf("the policy has no genesis of log %s", ceremony.Printable(origin)))
	}
	if *want != leaf {
		return coded(exitTampered, fmt.Errorf("the genesis of %s has the hash %x, the policy says %x", ceremony.Printable(origin), leaf[:], want[:]))
	}
	return nil
}

// attempts is how often an appliance is asked anew, when the key was changed between two answers.
const attempts = 3

// governance reads the entries that govern an appliance's log. It is not believed: they must be in the tree whose head is signed by the
// key that they lead to.
func (a *appliance) governance(ctx context.Context) (*governance, error) {
	for i := 1; ; i++ {
		lines, err := a.get(ctx, a.prefix+"/v1/governance")
		if err != nil {
			return nil, err
		}
		signed, err := a.get(ctx, a.prefix+"/checkpoint") // after the entries, so that it covers them
		if err != nil {
			return nil, err
		}
		g, err := governed(ctx, a, signed, func(take func(entry []byte) error) error {
			for len(lines) > 0 {
				line, rest, _ := bytes.Cut(lines, []byte("\n"))
				if lines = rest; len(line) == 0 {
					continue
				}
				if err := take(line); err != nil {
					return err
				}
			}
			return nil
		})
		if err == nil || !errors.Is(err, errSigned) || i == attempts {
			return g, err
		}
	}
}

// exported reads the entries that govern from an export.
func (t *tool) exported(ctx context.Context, path string) (*governance, error) {
	a, err := openArchive(ctx, path)
	if err != nil {
		return nil, err
	}
	g, err := governed(ctx, a.src, a.signed, func(take func(entry []byte) error) error { return a.governing(ctx, t.progress("reading"), take) })
	if err != nil {
		a.done()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	g.done = a.done
	return g, nil
}

// governing calls take with every entry of an export that governs, or records that somebody was refused.
func (a *archive) governing(ctx context.Context, p *progress, take func(entry []byte) error) error {
	defer p.clear()
	read := func(l *look) {
		entries, _, err := a.bundle(ctx, l.n, nil)
		if err != nil {
			l.err = coded(exitNotCheckable, err)
			return
		}
		for i, raw := range entries {
			e, err := record.ParseEntry(raw)
			if err != nil {
				l.err = coded(exitTampered, fmt.Errorf("entry %d: %w; bulla verify says more", l.n*record.TileWidth+uint64(i), err))
				return
			}
			if ceremony.Governs(e.Kind) || e.Kind == record.KindAccess {
				l.hits = append(l.hits, newHit(nil, bytes.Clone(raw), e))
			}
		}
	}
	return a.eachBundle(ctx, a.all, read, func(l *look) error {
		for _, h := range l.hits {
			if err := take(h.raw); err != nil {
				return err
			}
		}
		p.show(l.n*record.TileWidth, a.head.Size)
		return nil
	})
}

// errSigned says that a head is not signed by the key in force.
var errSigned = errors.New("the log's head is not signed by the key that governs it")

// governed folds entries. src has the tiles of the tree whose head is signed.
func governed(ctx context.Context, src verify.Source, signed []byte, entries func(take func(entry []byte) error) error) (*governance, error) {
	text, _, _ := bytes.Cut(signed, []byte("\n\n"))
	head, err := record.ParseCheckpoint(string(text) + "\n")
	if err != nil {
		return nil, coded(exitTampered, fmt.Errorf("the log's head: %w", err))
	}
	tree := &servedTree{ctx: ctx, src: src, head: head, tiles: map[tlog.Tile][]byte{}}
	g := &governance{done: func() {}, chronicle: ceremony.NewChronicle(tree.root), head: ceremony.Head{Root: head.Root, Size: head.Size}, signed: signed, tree: tree}
	var indexes []int64
	var leaves []record.Hash
	err = entries(func(b []byte) error {
		e, err := record.ParseEntry(b)
		if err != nil {
			return err
		}
		if e.Log != head.Origin || e.Index >= head.Size {
			return fmt.Errorf("entry %d of log %s is not under the head, of %d entries of %s", e.Index, ceremony.Printable(e.Log), head.Size, ceremony.Printable(head.Origin))
		}
		if len(leaves) == 0 && e.Kind != record.KindGenesis {
			return fmt.Errorf("entry %d comes first: there is no genesis", e.Index)
		}
		leaf := record.LeafHash(b)
		indexes, leaves = append(indexes, tlog.StoredHashIndex(0, int64(e.Index))), append(leaves, leaf)
		if err := g.chronicle.Add(e, leaf); err != nil {
			return err
		}
		g.noteTPM(e.Index)
		return nil
	})
	if err == nil && len(leaves) == 0 {
		err = errors.New("there is no genesis")
	}
	if err == nil {
		err = tree.holds(indexes, leaves)
	}
	if err == nil {
		logged := g.chronicle.State()
		g.state = logged.Skip(head.Size - logged.Next)
		err = signedBy(g.state, signed)
	}
	if c := (*codedError)(nil); err != nil && !errors.As(err, &c) {
		err = coded(exitTampered, fmt.Errorf("what governs the log does not hold: %w", err))
	}
	return g, err
}

// noteTPM notes a TPM that an entry put in the place of another.
func (g *governance) noteTPM(entry uint64) {
	tpm := g.chronicle.State().Policy.TPM
	if n := len(g.tpms); tpm != nil && (n == 0 || !bytes.Equal(g.tpms[n-1].tpm.AKName, tpm.AKName)) {
		g.tpms = append(g.tpms, enrolled{tpm, entry})
	}
}

// toNewest has the chronicle know the time of the log's newest entry, which says what has expired.
func (g *governance) toNewest() error {
	last := g.head.Size - 1
	if g.chronicle.State().Next > last {
		return nil
	}
	var newest *record.Entry
	err := bundle(g.tree.ctx, g.tree.src, g.head.Size, last/record.TileWidth, func(e *record.Entry) error {
		if e.Index == last {
			newest = e
		}
		return nil
	}, "")
	if err != nil {
		return err
	}
	if newest == nil {
		return coded(exitTampered, fmt.Errorf("entry %d is not where it belongs", last))
	}
	b, err := newest.Append(nil)
	if err != nil {
		return err
	}
	leaf := record.LeafHash(b)
	if err = g.tree.holds([]int64{tlog.StoredHashIndex(0, int64(last))}, []record.Hash{leaf}); err == nil {
		err = g.chronicle.Add(newest, leaf)
	}
	if c := (*codedError)(nil); err != nil && !errors.As(err, &c) {
		err = coded(exitTampered, err)
	}
	return err
}

// over says that a proposal has expired by now; "" of every other.
func (g *governance) over(number uint64) string {
	for _, p := range g.state.Open() {
		if p.Proposal.Number == number && g.state.Expired(p.Proposal, here()) {
			return p.Proposal.Over()
		}
	}
	return ""
}

// signedBy checks that a head is signed by the key in force for the authoritative line.
func signedBy(s ceremony.State, signed []byte) error {
	vkeys, err := s.VKeys()
	if err != nil {
		return err
	}
	v, err := record.NewVerifier(vkeys[0])
	if err != nil {
		return err
	}
	if _, _, err := record.OpenCheckpoint(signed, v); err != nil {
		return fmt.Errorf("%w: %w", errSigned, err)
	}
	return nil
}

// servedTree is the tree under a head; what is read of it is checked against that head.
type servedTree struct {
	ctx   context.Context
	src   verify.Source
	head  record.Checkpoint
	tiles map[tlog.Tile][]byte // that were read and checked
}

func (t *servedTree) reader() tlog.HashReader {
	return tlog.TileHashReader(tlog.Tree{N: int64(t.head.Size), Hash: t.head.Root}, t)
}

// root is the root at an earlier size: State.Root.
func (t *servedTree) root(size uint64) (record.Hash, error) {
	switch {
	case size == t.head.Size:
		return t.head.Root, nil
	case size > t.head.Size:
		return record.Hash{}, fmt.Errorf("the head has only %d entries", t.head.Size)
	}
	return tlog.TreeHash(int64(size), t.reader())
}

// holds checks that leaves are in the tree.
func (t *servedTree) holds(indexes []int64, leaves []record.Hash) error {
	have, err := t.reader().ReadHashes(indexes)
	if err != nil {
		return err
	}
	for i, h := range have {
		if h != leaves[i] {
			_, n := tlog.SplitStoredHashIndex(indexes[i])
			return fmt.Errorf("entry %d is not the one that the log's head covers", n)
		}
	}
	return nil
}

// Height implements tlog.TileReader.
func (*servedTree) Height() int { return 8 }

// ReadTiles implements tlog.TileReader.
func (t *servedTree) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	out := make([][]byte, len(tiles))
	for i, tile := range tiles {
		if b, ok := t.tiles[tile]; ok {
			out[i] = b
			continue
		}
		b, err := t.read(record.TilePath(tile), tile.W*tlog.HashSize)
		if err != nil {
			return nil, err
		}
		out[i] = b
	}
	return out, nil
}

func (t *servedTree) read(name string, size int) ([]byte, error) {
	f, err := t.src.Open(t.ctx, name)
	if err != nil {
		return nil, notCheckable(fmt.Errorf("reading %s: %w", name, err))
	}
	b, err := io.ReadAll(io.LimitReader(f, int64(size)+1))
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, notCheckable(fmt.Errorf("reading %s: %w", name, err))
	}
	if len(b) != size {
		return nil, notCheckable(fmt.Errorf("reading %s: it has not %d bytes", name, size))
	}
	return b, nil
}

// notCheckable is the error of what is missing, unless it says already what it ends with.
func notCheckable(err error) error {
	if c := (*codedError)(nil); errors.As(err, &c) {
		return err
	}
	return coded(exitNotCheckable, err)
}

// SaveTiles implements tlog.TileReader.
func (t *servedTree) SaveTiles(tiles []tlog.Tile, data [][]byte) {
	for i, tile := range tiles {
		t.tiles[tile] = data[i]
	}
}

// recovery adds what waits outside a log that was rolled back, as far as the log would take it.
func (g *governance) recovery(ctx context.Context, a *appliance) error {
	var w api.Waiting
	err := a.getJSON(ctx, a.prefix+"/v1/recovery", &w)
	if missing := (*notThere)(nil); errors.As(err, &missing) {
		return nil
	}
	if err != nil {
		return err
	}
	for i := range w.Proposals {
		g.wait(record.KindProposal, &w.Proposals[i])
	}
	for i := range w.Decisions {
		g.wait(record.KindApproval, &w.Decisions[i])
	}
	for _, p := range g.state.Open() {
		if p.Index >= g.head.Size {
			g.waiting = append(g.waiting, p)
		}
	}
	return nil
}

// wait folds what waits outside the log, as if it were the next entry.
func (g *governance) wait(kind record.Kind, body any) {
	b, err := record.MarshalCanonical(body)
	if err == nil {
		e := &record.Entry{Index: g.state.Next, Kind: kind, Log: g.state.Policy.Origin, Stamp: here(), Body: b}
		var next ceremony.State
		if next, err = g.state.Apply(e, record.Hash{}); err == nil {
			g.state = next
			return
		}
	}
	if g.remark == "" {
		g.remark = fmt.Sprintf("something waits outside the log, which would not take it: %v", err)
	}
}

// open finds a proposal that can be decided on; the error says why it cannot.
func (g *governance) open(number uint64) (*ceremony.Pending, error) {
	all := g.state.Open()
	if i := slices.IndexFunc(all, func(p *ceremony.Pending) bool { return p.Proposal.Number == number }); i >= 0 {
		return all[i], nil
	}
	for _, l := range g.chronicle.Ceremonies() {
		if l.Number == number && number > 0 {
			return nil, coded(exitUnavailable, fmt.Errorf("proposal %d is not open: %s", number, l.Ended))
		}
	}
	return nil, usagef("there is no proposal %d; see `bulla ceremony list`", number)
}
