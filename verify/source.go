package verify

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
)

// Source is where evidence is read from. Names are those of C2SP tlog-tiles: "checkpoint", "tile/0/x001/234.p/5",
// "tile/entries/000". It is used by several goroutines at once. What it returns is not trusted.
type Source interface {
	// Open opens a file for one reading from its start. The error wraps fs.ErrNotExist exactly when there is no such file.
	Open(ctx context.Context, name string) (io.ReadCloser, error)
	// Walk calls f with the name of every file there is, in any order, until it returns an error. A source that cannot tell (one
	// that is served) returns errors.ErrUnsupported; then only files that the head needs are checked.
	Walk(ctx context.Context, f func(name string) error) error
}

// read reads a file of at most limit bytes, and one more byte of a longer one; ok is false when there is none.
func read(ctx context.Context, src Source, name string, limit int) (b []byte, ok bool, err error) {
	return readInto(ctx, src, name, limit, nil)
}

// readInto is read into buf, as far as that is large enough.
func readInto(ctx context.Context, src Source, name string, limit int, buf []byte) (b []byte, ok bool, err error) {
	f, err := src.Open(ctx, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("reading %s: %w", name, err)
	}
	b = buf[:0]
	for err == nil && len(b) <= limit {
		if len(b) == cap(b) {
			b = slices.Grow(b, max(4096, min(cap(b), limit+1-len(b))))
		}
		var n int
		n, err = f.Read(b[len(b):min(cap(b), limit+1)])
		b = b[:len(b)+n]
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, false, fmt.Errorf("reading %s: %w", name, err)
	}
	return b, true, nil
}

// Dir is evidence in a directory. Symbolic links that lead out of it and files that are not regular are refused.
type Dir struct {
	root *os.Root

	mu     sync.RWMutex
	recent []recentDir // the last ones that files were read from, oldest first
}

// recentDir is a directory below the root, kept open: walking to it from the root costs more than reading most files.
type recentDir struct {
	name string
	root *os.Root
}

// recentDirs is how many are kept: those of bundles and of their tiles, while the next ones begin.
const recentDirs = 8

// OpenDir opens a directory of evidence; the caller closes it.
func OpenDir(path string) (*Dir, error) {
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, fmt.Errorf("opening evidence: %w", err)
	}
	return &Dir{root: root}, nil
}

// Open implements Source.
func (d *Dir) Open(_ context.Context, name string) (io.ReadCloser, error) {
	dir, base := path.Split(name)
	if f, err := d.openIn(dir, base); err == nil {
		return f, nil
	}
	f, err := openRegular(d.root, name) // whatever is wrong is said of the whole name
	if err != nil {
		return nil, err
	}
	if err := d.remember(dir); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

var errNotOpen = errors.New("the directory is not open")

// openIn opens a file in a directory that is open.
func (d *Dir) openIn(dir, base string) (*os.File, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	for _, r := range d.recent {
		if r.name == dir {
			return openRegular(r.root, base)
		}
	}
	return nil, errNotOpen
}

// remember keeps a directory open for the next file in it.
func (d *Dir) remember(dir string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if dir == "" || slices.ContainsFunc(d.recent, func(r recentDir) bool { return r.name == dir }) {
		return nil
	}
	root, err := d.root.OpenRoot(path.Clean(dir))
	if err != nil {
		return err
	}
	d.recent = append(d.recent, recentDir{dir, root})
	if len(d.recent) <= recentDirs {
		return nil
	}
	oldest := d.recent[0].root
	d.recent = slices.Delete(d.recent, 0, 1)
	return oldest.Close()
}

func openRegular(root *os.Root, name string) (*os.File, error) {
	info, err := root.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", name)
	}
	return root.Open(name)
}

// Walk implements Source.
func (d *Dir) Walk(ctx context.Context, f func(name string) error) error {
	return fs.WalkDir(d.root.FS(), ".", func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() {
			return ctx.Err()
		}
		return f(name)
	})
}

// Close closes the directory.
func (d *Dir) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	err := d.root.Close()
	for _, r := range d.recent {
		err = errors.Join(err, r.root.Close())
	}
	d.recent = nil
	return err
}

// Tar is evidence in an uncompressed tar file. It may lie within one directory, as tar makes it from a directory's name.
type Tar struct {
	r     io.ReaderAt
	files map[string]extent
}

type extent struct{ at, size int64 }

// maxTarFiles bounds the index of a tar file: enough for 600 million entries.
const maxTarFiles = 5 << 20

// OpenTar indexes a tar file of evidence of the given size.
func OpenTar(ctx context.Context, r io.ReaderAt, size int64) (*Tar, error) {
	t := &Tar{r: r, files: map[string]extent{}}
	section := io.NewSectionReader(r, 0, size)
	for in := tar.NewReader(section); ; {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("reading tar file: %w", err)
		}
		if h.Typeflag == tar.TypeDir || h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		// The reader takes whole headers from section and nothing beyond, so section now stands at the file's first byte.
		from, err := section.Seek(0, io.SeekCurrent)
		if err != nil {
			return nil, fmt.Errorf("reading tar file: %w", err)
		}
		name := path.Clean(h.Name)
		switch _, twice := t.files[name]; {
		case h.Typeflag != tar.TypeReg || isSparse(h):
			return nil, fmt.Errorf("reading tar file: %q is not a regular file", h.Name)
		case !fs.ValidPath(name):
			return nil, fmt.Errorf("reading tar file: %q is not a path within it", h.Name)
		case twice:
			return nil, fmt.Errorf("reading tar file: %q is there twice", h.Name)
		case len(t.files) >= maxTarFiles:
			return nil, fmt.Errorf("reading tar file: more than %d files", maxTarFiles)
		case h.Size > size-from:
			return nil, fmt.Errorf("reading tar file: %q is cut off", h.Name)
		}
		t.files[name] = extent{from, h.Size}
	}
	return t, t.enter()
}

func isSparse(h *tar.Header) bool {
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// enter strips the directory that everything lies in, if there is one.
func (t *Tar) enter() error {
	if _, ok := t.files[checkpoint]; ok {
		return nil
	}
	for name := range t.files {
		if dir, base := path.Split(name); base == checkpoint && strings.Count(dir, "/") == 1 {
			inner := make(map[string]extent, len(t.files))
			for name, at := range t.files {
				rest, ok := strings.CutPrefix(name, dir)
				if !ok {
					return fmt.Errorf("reading tar file: %q lies outside %s: which of them is the evidence?", name, dir)
				}
				inner[rest] = at
			}
			t.files = inner
			return nil
		}
	}
	return nil
}

// Open implements Source.
func (t *Tar) Open(_ context.Context, name string) (io.ReadCloser, error) {
	at, ok := t.files[name]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return io.NopCloser(io.NewSectionReader(t.r, at.at, at.size)), nil
}

// Walk implements Source.
func (t *Tar) Walk(_ context.Context, f func(name string) error) error {
	names := make([]string, 0, len(t.files))
	for name := range t.files {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if err := f(name); err != nil {
			return err
		}
	}
	return nil
}
