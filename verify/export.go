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
	if err := e.copies(ctx); err != nil {
		return nil, err
	}
	if err := put("README.md", e.outline.readme(head, &e.state, cosigned, e.sealed.commands, e.out.Skipped).text()); err != nil {
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

	mu     sync.Mutex
	done   uint64
	out    Exported
	follow []uint64 // entries of governance, and seals

	// Once all is copied:
	state   ceremony.State
	outline outline
	sealed  sealCopies // the highest
	bundle  [][]byte   // that the last entry was read from
	at      uint64     // its first entry
}

// copy copies a tile or a bundle, and notes which entries are to be followed.
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
	var follow []uint64
	for i, b := range raw {
		if k := kindOf(b); k == record.KindSeal || ceremony.Governs(k) {
			follow = append(follow, uint64(t.N)*tileWidth+uint64(i))
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.follow = append(e.follow, follow...)
	if e.done += uint64(len(raw)); e.progress != nil {
		e.progress(e.done, e.out.Head.Size)
	}
	return nil
}

// kindOf is the kind that an entry states, without reading all of it: behind the body, whose members may have the same name, none has.
func kindOf(b []byte) record.Kind {
	member := []byte(`,"kind":"`)
	_, rest, _ := bytes.Cut(b[max(0, bytes.LastIndex(b, member)):], member)
	kind, _, _ := bytes.Cut(rest, []byte(`"`))
	return record.Kind(kind)
}

func (e *exporter) skip(name string, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.out.Skipped) < maxMissing {
		e.out.Skipped = append(e.out.Skipped, ceremony.Printable(fmt.Sprintf("%s: %.300v", name, err)))
	}
}

// copies follows the log's governance, whose keys and TPM may have been replaced, and makes the copies for standard tools: of the TPM
// that is enrolled at the end, and of every seal with the TPM of its time.
func (e *exporter) copies(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(exportWorkers)
	e.state.Root = func(size uint64) (record.Hash, error) {
		return tlog.TreeHash(int64(size), tlog.TileHashReader(tlog.Tree{N: int64(e.out.Head.Size), Hash: e.out.Head.Root}, tiles{ctx, e.src}))
	}
	slices.Sort(e.follow)
	err := e.followAll(ctx, g)
	if waited := g.Wait(); waited != nil {
		err = waited
	}
	if err != nil {
		return err
	}
	if tpm := e.outline.current(); tpm != nil {
		files, err := tpm.Files()
		if err != nil {
			e.skip("enrolment", err)
		}
		return e.putAll("enrolment", files)
	}
	return nil
}

func (e *exporter) followAll(ctx context.Context, g *errgroup.Group) error {
	for _, index := range e.follow {
		b, err := e.entryAt(ctx, index)
		if err != nil {
			return err
		}
		entry, err := record.ParseEntry(b)
		if err != nil {
			e.skip(fmt.Sprintf("entry %d", index), err)
			continue
		}
		if entry.Kind == record.KindSeal {
			e.seal(g, index, entry.Body)
			continue
		}
		before := e.state
		before.Next = index
		after, err := before.Apply(entry, record.LeafHash(b))
		if err != nil { // what follows is judged by what is known: those who verify say what is wrong
			e.skip(fmt.Sprintf("entry %d", index), err)
			continue
		}
		e.outline.governed(&before, &after, entry)
		e.state = after
	}
	return nil
}

// entryAt reads an entry again.
func (e *exporter) entryAt(ctx context.Context, index uint64) ([]byte, error) {
	if first := index - index%tileWidth; e.bundle == nil || e.at != first {
		name := record.TilePath(tileOf(entries, index, e.out.Head.Size))
		data, ok, err := read(ctx, e.src, name, maxBundle)
		if err != nil {
			return nil, err
		}
		if e.bundle, err = record.ParseBundle(data); err != nil || !ok {
			return nil, fmt.Errorf("exporting: %s is not any more what it was", name)
		}
		e.at = first
	}
	if i := index - e.at; i < uint64(len(e.bundle)) {
		return e.bundle[i], nil
	}
	return nil, fmt.Errorf("exporting: entry %d is not there any more", index)
}

// seal has copies made of a seal.
func (e *exporter) seal(g *errgroup.Group, index uint64, body []byte) {
	tpm := e.outline.tpm(index)
	if tpm == nil {
		return
	}
	c, err := copiesOf(tpm.Enrolment, body)
	if err != nil {
		e.skip(fmt.Sprintf("the seal in entry %d", index), err)
		return
	}
	if e.outline.sealed(c.number, index); e.outline.lastAt == index {
		e.sealed = c
	}
	e.out.Seals++
	g.Go(func() error { return e.putAll(fmt.Sprintf("seals/%d", c.number), c.files) })
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

// sealCopies are the copies of one seal.
type sealCopies struct {
	number   uint64
	files    map[string][]byte // by name
	commands []attest.Command  // that check them
}

func copiesOf(tpm *attest.Enrolment, body []byte) (sealCopies, error) {
	s, err := attest.ParseSeal(body)
	if err != nil {
		return sealCopies{}, err
	}
	st, err := attest.ParseStatement(s.Statement)
	if err != nil {
		return sealCopies{}, err
	}
	files, err := s.Files(tpm)
	return sealCopies{st.Number, files, s.Commands()}, err
}
