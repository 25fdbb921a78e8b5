package verify

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/mod/sumdb/tlog"
	"golang.org/x/sync/errgroup"

	"bulla/attest"
	"bulla/ceremony"
	"bulla/internal/durable"
	"bulla/record"
)

// Exported says what an export holds.
type Exported struct {
	Head  record.Checkpoint
	Seals int
	// Cosigned is how many checkpoints there are that witnesses cosigned.
	Cosigned int
	// Skipped names what was left out of the copies for standard tools because it could not be read. The evidence itself is complete.
	Skipped []string
}

// Export copies a log from where it is served or stored to put: the tiles and bundles under its head, copies of seals and enrolment
// in the forms that standard tools read, a README, and last the checkpoint: what has none is not finished. It checks nothing; Run on
// the copy does. put is called by several goroutines, once a name.
func Export(ctx context.Context, src Source, put func(name string, data []byte) error, progress func(done, total uint64)) (*Exported, error) {
	cosigned, err := exportWitnesses(ctx, src, put) // first: none is over a larger tree than the head
	if err != nil {
		return nil, err
	}
	signed, ok, err := read(ctx, src, checkpoint, record.MaxCheckpoint)
	if err != nil || !ok {
		return nil, errors.Join(err, fmt.Errorf("exporting: there is no checkpoint"))
	}
	head, err := headText(signed)
	if err != nil {
		return nil, fmt.Errorf("exporting: the checkpoint: %w", err)
	}
	e := &exporter{src: src, put: put, progress: progress, out: Exported{Head: head, Cosigned: cosigned}}
	g, work := errgroup.WithContext(ctx)
	g.SetLimit(exportWorkers)
	err = Tiles(head.Size, func(t tlog.Tile) error {
		if work.Err() != nil {
			return work.Err()
		}
		g.Go(func() error { return e.copy(work, t) })
		return nil
	})
	if waited := g.Wait(); waited != nil {
		err = waited
	}
	if err != nil {
		return nil, err
	}
	if err := put("README.md", e.readme()); err != nil {
		return nil, err
	}
	return &e.out, put(checkpoint, signed)
}

// exportWitnesses copies the checkpoints that witnesses cosigned, and returns how many.
func exportWitnesses(ctx context.Context, src Source, put func(name string, data []byte) error) (n int, err error) {
	for ; n < maxWitnesses; n++ {
		b, ok, err := read(ctx, src, WitnessFile(n), record.MaxCheckpoint)
		if err != nil || !ok {
			return n, err
		}
		if err := put(WitnessFile(n), b); err != nil {
			return n, err
		}
	}
	return n, nil
}

// exportWorkers is how many tiles are copied at a time.
const exportWorkers = 8

type exporter struct {
	src      Source
	put      func(string, []byte) error
	progress func(done, total uint64)

	mu    sync.Mutex
	done  uint64
	out   Exported
	state ceremony.State // of the genesis
	leaf  record.Hash    // of the genesis
	first uint64         // number of the lowest seal
	last  uint64         // and of the highest
	// commands check the copies of the highest seal
	commands []attest.Command
	seals    []sealEntry // seen before the genesis was
}

type sealEntry struct {
	index uint64
	body  []byte
}

// copy copies a tile or a bundle, and takes copies of what a bundle holds for standard tools.
func (e *exporter) copy(ctx context.Context, t tlog.Tile) error {
	name := record.TilePath(t)
	data, ok, err := read(ctx, e.src, name, maxBundle)
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("exporting: %s is missing", name)
	}
	if err := e.put(name, data); err != nil || t.L >= 0 {
		return err
	}
	raw, err := record.ParseBundle(data)
	if err != nil {
		e.skip(name, err)
		return nil
	}
	for i, b := range raw {
		if err := e.entry(uint64(t.N)*tileWidth+uint64(i), b); err != nil {
			return err
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.done += uint64(len(raw)); e.progress != nil {
		e.progress(e.done, e.out.Head.Size)
	}
	return nil
}

func (e *exporter) skip(name string, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.out.Skipped) < maxMissing {
		e.out.Skipped = append(e.out.Skipped, fmt.Sprintf("%s: %v", name, err))
	}
}

// entry takes copies of a genesis's enrolment and of a seal.
func (e *exporter) entry(index uint64, b []byte) error {
	if index > 0 && !bytes.Contains(b, []byte(`"kind":"seal"`)) {
		return nil
	}
	entry, err := record.ParseEntry(b)
	if err != nil {
		e.skip(fmt.Sprintf("entry %d", index), err)
		return nil
	}
	if entry.Kind == record.KindSeal {
		return e.seal(index, bytes.Clone(entry.Body))
	}
	if index > 0 {
		return nil
	}
	leaf := record.LeafHash(b)
	state, err := ceremony.State{}.Apply(entry, leaf)
	if err != nil {
		e.skip("entry 0", err)
		return nil
	}
	return e.genesis(state, leaf)
}

// genesis remembers the genesis, writes its enrolment, and the seals that came before it by chance of reading.
func (e *exporter) genesis(state ceremony.State, leaf record.Hash) error {
	e.mu.Lock()
	e.state, e.leaf = state, leaf
	early := e.seals
	e.seals = nil
	e.mu.Unlock()
	if tpm := state.Policy.TPM; tpm != nil {
		files, err := tpm.Files()
		if err != nil {
			e.skip("enrolment", err)
		}
		if err := e.putAll("enrolment", files); err != nil {
			return err
		}
	}
	for _, s := range early {
		if err := e.seal(s.index, s.body); err != nil {
			return err
		}
	}
	return nil
}

func (e *exporter) seal(index uint64, body []byte) error {
	e.mu.Lock()
	if e.state.Genesis == (record.Hash{}) {
		e.seals = append(e.seals, sealEntry{index, body})
		e.mu.Unlock()
		return nil
	}
	tpm := e.state.Policy.TPM
	e.mu.Unlock()
	if tpm == nil {
		return nil
	}
	number, files, commands, err := sealFiles(tpm, body)
	if err != nil {
		e.skip(fmt.Sprintf("the seal in entry %d", index), err)
		return nil
	}
	e.mu.Lock()
	if e.out.Seals == 0 || number < e.first {
		e.first = number
	}
	if e.out.Seals == 0 || number >= e.last {
		e.last, e.commands = number, commands
	}
	e.out.Seals++
	e.mu.Unlock()
	return e.putAll(fmt.Sprintf("seals/%d", number), files)
}

func (e *exporter) putAll(dir string, files map[string][]byte) error {
	for name, data := range files {
		err := e.put(path.Join(dir, name), data)
		if errors.Is(err, fs.ErrExist) { // a number twice: a finding for those who verify
			e.skip(path.Join(dir, name), err)
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// NewDir is a directory that evidence is written to.
type NewDir struct {
	path string
	mu   sync.Mutex
	dirs map[string]bool
}

// CreateDir makes a directory for an export. The name must be free.
func CreateDir(path string) (*NewDir, error) {
	if err := os.Mkdir(path, 0o755); err != nil {
		return nil, fmt.Errorf("making a directory for the export: %w", err)
	}
	return &NewDir{path: path, dirs: map[string]bool{".": true}}, nil
}

// Put writes a new file, on disk when it returns, though its name is only when Sync has.
func (d *NewDir) Put(name string, data []byte) error {
	if !fs.ValidPath(name) {
		return fmt.Errorf("exporting: %q is not a path within the export", name)
	}
	if err := d.mkdirs(path.Dir(name)); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(d.path, filepath.FromSlash(name)), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return fmt.Errorf("exporting: %w", err)
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("exporting %s: %w", name, err)
	}
	return nil
}

func (d *NewDir) mkdirs(dir string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dirs[dir] {
		return nil
	}
	if err := os.MkdirAll(filepath.Join(d.path, filepath.FromSlash(dir)), 0o755); err != nil {
		return fmt.Errorf("exporting: %w", err)
	}
	for ; !d.dirs[dir]; dir = path.Dir(dir) {
		d.dirs[dir] = true
	}
	return nil
}

// Sync makes every name durable, the directory's own too.
func (d *NewDir) Sync() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	dirs := []string{filepath.Dir(d.path)}
	for dir := range d.dirs {
		dirs = append(dirs, filepath.Join(d.path, filepath.FromSlash(dir)))
	}
	slices.Sort(dirs)
	for _, dir := range dirs {
		if err := durable.SyncDir(dir); err != nil {
			return fmt.Errorf("exporting: %w", err)
		}
	}
	return nil
}

// sealFiles are the copies of one seal, by name, its number, and the commands that check the copies.
func sealFiles(tpm *attest.Enrolment, body []byte) (number uint64, files map[string][]byte, commands []attest.Command, err error) {
	s, err := attest.ParseSeal(body)
	if err != nil {
		return 0, nil, nil, err
	}
	st, err := attest.ParseStatement(s.Statement)
	if err != nil {
		return 0, nil, nil, err
	}
	files, err = s.Files(tpm)
	return st.Number, files, s.Commands(), err
}
