package ledger

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/mod/sumdb/tlog"

	"bulla/ceremony"
	"bulla/record"
	"bulla/store"
)

var (
	// ErrOrigin means that the file holds another log than the one asked for.
	ErrOrigin = errors.New("the file holds another log")
	// ErrKey means that the signing key given is not the one that governs the log.
	ErrKey = errors.New("the key is not the log's")
	// ErrInconsistent means that what is stored does not agree with its signed head.
	ErrInconsistent = errors.New("the stored log does not agree with its signed head")
)

// Create makes a new log at path with the genesis g, signed by cfg's keys, and nothing else; Open serves it. It fails with
// fs.ErrExist, and changes nothing, when path is taken.
func Create(path string, cfg Config, g *ceremony.Genesis) error {
	if err := g.Validate(); err != nil {
		return fmt.Errorf("genesis: %w", err)
	}
	if g.Origin != cfg.Origin {
		return fmt.Errorf("genesis: it is for %q, not %q", g.Origin, cfg.Origin)
	}
	body, err := record.MarshalCanonical(g)
	if err != nil {
		return fmt.Errorf("genesis: %w", err)
	}
	tree, err := record.NewTree(0, nil)
	if err != nil {
		return err
	}
	l := &Ledger{cfg: cfg, tip: &head{tree: tree}}
	b := &batch{base: l.tip, drafts: []draft{{kind: record.KindGenesis, body: body}}}
	if err := l.chain(b, cfg.Clock.Now()); err != nil {
		return fmt.Errorf("genesis: %w", err)
	}
	if err := l.sign(b); err != nil {
		return fmt.Errorf("signing the genesis: %w", err)
	}
	return store.Create(path, cfg.Origin, &b.content)
}

// Open takes over the log in s, checks its tail against its signed head, and starts sequencing. It repairs nothing: what does not
// agree is an error wrapping ErrInconsistent that says where. On success the ledger owns s.
func Open(cfg Config, s Store) (*Ledger, error) {
	origin, err := s.Origin()
	if err != nil {
		return nil, err
	}
	if origin != cfg.Origin {
		return nil, fmt.Errorf("%w: %q, not %q", ErrOrigin, origin, cfg.Origin)
	}
	l := &Ledger{cfg: cfg, store: s, hashes: &hashes{store: s}, queue: newQueue(), window: newWindow(), done: make(chan struct{})}
	if err := l.load(); err != nil {
		return nil, fmt.Errorf("opening log %s: %w", origin, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	l.stop = cancel
	l.committed.Store(l.tip)
	go l.run(ctx)
	return l, nil
}

// load rebuilds the head and the window from the store.
func (l *Ledger) load() error {
	signed, err := l.store.Head()
	if err != nil {
		return err
	}
	size, err := l.store.Size()
	if err != nil {
		return err
	}
	state, err := l.governance(size)
	if err != nil {
		return err
	}
	keys, err := l.open(state)
	if err != nil {
		return err
	}
	c, _, err := record.OpenCheckpoint(signed, keys.verify)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInconsistent, err)
	}
	if c.Size != size {
		return fmt.Errorf("%w: the head is over %d entries, the file holds %d", ErrInconsistent, c.Size, size)
	}
	h, err := l.replay(size)
	if err != nil {
		return err
	}
	if root := h.tree.Root(); root != c.Root {
		return fmt.Errorf("%w: the root over %d entries is %v, the head says %v", ErrInconsistent, size, root, c.Root)
	}
	h.state, h.lines, h.checkpoint = state, keys, signed
	l.tip = h
	return nil
}

// governance folds the entries that govern; the others only count.
func (l *Ledger) governance(size uint64) (ceremony.State, error) {
	state := ceremony.State{Root: l.root}
	var indices []uint64
	for _, kind := range []record.Kind{record.KindGenesis, record.KindProposal, record.KindApproval, record.KindEnactment} {
		if err := l.store.Marks(kind, 0, func(i uint64) bool { indices = append(indices, i); return true }); err != nil {
			return state, err
		}
	}
	slices.Sort(indices)
	for _, i := range indices {
		entry, err := l.store.Entry(i)
		if err != nil {
			return state, err
		}
		e, err := record.ParseEntry(entry)
		if err != nil {
			return state, fmt.Errorf("%w: entry %d: %w", ErrInconsistent, i, err)
		}
		if state.Next > i {
			return state, fmt.Errorf("%w: entry %d is marked twice", ErrInconsistent, i)
		}
		if state, err = state.Skip(i-state.Next).Apply(e, record.LeafHash(entry)); err != nil {
			return state, fmt.Errorf("%w: %w", ErrInconsistent, err)
		}
	}
	if state.Policy.Origin != l.cfg.Origin {
		return state, fmt.Errorf("%w: its genesis is missing or for %q", ErrInconsistent, state.Policy.Origin)
	}
	return state.Skip(size - state.Next), nil
}

// root is that of the stored log's tree over its first size entries.
func (l *Ledger) root(size uint64) (record.Hash, error) {
	h, err := l.headAt(size)
	if err != nil {
		return record.Hash{}, err
	}
	return h.tree.Root(), nil
}

// open opens the keys in force in a state, and checks that the devices hold those very keys.
func (l *Ledger) open(state ceremony.State) (*lines, error) {
	out := new(lines)
	for _, k := range state.Policy.Keys {
		if k.Purpose != ceremony.PurposeLog && k.Purpose != ceremony.PurposeInterop {
			continue
		}
		signer, err := l.signer(k)
		if err != nil {
			return nil, err
		}
		line, err := record.NewSigner(l.cfg.Origin, signer.Signer)
		if err != nil {
			return nil, err
		}
		if k.Purpose == ceremony.PurposeInterop {
			out.interop = line
			continue
		}
		vkey, err := record.VKey(l.cfg.Origin, signer.Public())
		if err != nil {
			return nil, err
		}
		if out.verify, err = record.NewVerifier(vkey); err != nil {
			return nil, err
		}
		out.log, out.device, out.turns = line, signer.Device, signer.Turns
		if out.turns == nil {
			out.turns = NewTurns(underwaySlow)
		}
	}
	return out, nil
}

// signer opens one key.
func (l *Ledger) signer(k ceremony.Key) (Signer, error) {
	governed, err := x509.ParsePKIXPublicKey(k.SPKI)
	if err != nil {
		return Signer{}, fmt.Errorf("the key for %q: %w", k.Purpose, err)
	}
	s, err := l.cfg.Signer(k)
	if err != nil {
		return Signer{}, err
	}
	if pub, ok := governed.(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(s.Public()) {
		return Signer{}, fmt.Errorf("%w: the key configured for %q is not the one that %s is governed to be signed with; check the key's URI", ErrKey, k.Purpose, l.cfg.Origin)
	}
	return s, nil
}

// replay reads the last entries (as many as the window holds), checks that each links to the one before and that they lead to the
// stored tree, and fills the window with them.
func (l *Ledger) replay(size uint64) (*head, error) {
	streams, at, err := l.store.Streams()
	if err != nil {
		return nil, err
	}
	for _, s := range streams {
		l.window.streams[streamKey{s.UID, s.ID}] = s.N
		l.window.perUID[s.UID]++
	}
	from := uint64(0)
	if size > windowSize {
		from = size - windowSize
	}
	if at > size {
		return nil, fmt.Errorf("%w: the streams' snapshot is of size %d, the log of %d", ErrInconsistent, at, size)
	}
	from = min(from, at)
	h, err := l.headAt(from)
	if err != nil {
		return nil, err
	}
	if err := l.follow(h, from, size); err != nil {
		return nil, err
	}
	l.window.forget(size)
	l.window.at = at + snapshotEvery
	return h, l.sameEdge(h)
}

// headAt makes the head of the first n entries from the stored tree hashes.
func (l *Ledger) headAt(n uint64) (*head, error) {
	edge, err := l.edge(n)
	if err != nil {
		return nil, err
	}
	tree, err := record.NewTree(n, edge)
	if err != nil {
		return nil, err
	}
	h := &head{tree: tree}
	if n > 0 {
		leaf, err := l.store.ReadHashes([]int64{tlog.StoredHashIndex(0, int64(n-1))})
		if err != nil {
			return nil, err
		}
		h.prev = leaf[0]
	}
	return h, nil
}

// sameEdge checks that the tree hashes stored for h's size are those that the entries lead to.
func (l *Ledger) sameEdge(h *head) error {
	stored, err := l.edge(h.size())
	if err != nil {
		return err
	}
	for i, want := range h.tree.Edge() {
		if stored[i] != want {
			return fmt.Errorf("%w: stored tree hash %d of its right edge is not that of the entries", ErrInconsistent, i)
		}
	}
	return nil
}

// edge reads the hashes of the complete subtrees that make up a tree of n entries, largest first.
func (l *Ledger) edge(n uint64) ([]record.Hash, error) {
	var indexes []int64
	for level, rest := 63, n; level >= 0; level-- {
		if rest&(1<<level) != 0 {
			rest &^= 1 << level
			indexes = append(indexes, tlog.StoredHashIndex(level, int64((n-rest)>>level-1)))
		}
	}
	return l.store.ReadHashes(indexes)
}
