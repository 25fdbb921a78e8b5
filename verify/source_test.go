package verify_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"

	"bulla/verify"
)

// write puts evidence into a directory.
func write(t testing.TB, f files) string {
	t.Helper()
	dir := t.TempDir()
	for name, data := range f {
		path := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func openDir(t testing.TB, path string) *verify.Dir {
	t.Helper()
	d, err := verify.OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// archive makes a tar file of evidence, below a directory if prefix says so.
func archive(t testing.TB, f files, prefix string, more ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	put := func(h tar.Header, data []byte) {
		h.Size = int64(len(data))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	if prefix != "" {
		put(tar.Header{Name: prefix, Typeflag: tar.TypeDir, Mode: 0o755}, nil)
	}
	for name, data := range f {
		put(tar.Header{Name: prefix + name, Typeflag: tar.TypeReg, Mode: 0o644}, data)
	}
	for _, h := range more {
		put(h, nil)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestDirectoriesAndTarFiles(t *testing.T) {
	t.Parallel()
	b := newBuilder(t).begin().events(600)
	f, p := b.export(), b.policy()
	want(t, run(t, openDir(t, write(t, f)), p), verify.OutcomeVerified)
	long := strings.Repeat("long-name-", 20) + "/" // beyond what a plain header holds
	for _, prefix := range []string{"", "./", "evidence/", "./evidence/", long} {
		a := archive(t, f, prefix)
		src, err := verify.OpenTar(t.Context(), bytes.NewReader(a), int64(len(a)))
		if err != nil {
			t.Fatalf("%q: %v", prefix, err)
		}
		want(t, run(t, src, p), verify.OutcomeVerified)
	}
}

func TestTarFilesThatAreRefused(t *testing.T) {
	t.Parallel()
	f := newBuilder(t).begin().events(9).export()
	good := archive(t, f, "")
	for about, a := range map[string][]byte{
		"a file twice":            archive(t, f, "", tar.Header{Name: "checkpoint", Typeflag: tar.TypeReg}),
		"a file twice, spelled":   archive(t, f, "", tar.Header{Name: "./checkpoint", Typeflag: tar.TypeReg}),
		"a symbolic link":         archive(t, f, "", tar.Header{Name: "x", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"}),
		"a hard link":             archive(t, f, "", tar.Header{Name: "x", Typeflag: tar.TypeLink, Linkname: "checkpoint"}),
		"a device":                archive(t, f, "", tar.Header{Name: "x", Typeflag: tar.TypeChar}),
		"a path out of it":        archive(t, f, "", tar.Header{Name: "../x", Typeflag: tar.TypeReg}),
		"an absolute path":        archive(t, f, "", tar.Header{Name: "/x", Typeflag: tar.TypeReg}),
		"something beside a tree": archive(t, f, "evidence/", tar.Header{Name: "other/x", Typeflag: tar.TypeReg}),
		"cut within a header":     good[:len(good)-1024-300],
		"not a tar file":          []byte(strings.Repeat("no tar file at all. ", 100)),
	} {
		if _, err := verify.OpenTar(t.Context(), bytes.NewReader(a), int64(len(a))); err == nil {
			t.Errorf("%s: opened", about)
		}
	}
}

func TestDirectoryThatLeadsElsewhere(t *testing.T) {
	t.Parallel()
	b := newBuilder(t).begin().events(9)
	outside := filepath.Join(t.TempDir(), "checkpoint")
	if err := os.WriteFile(outside, b.export()["checkpoint"], 0o644); err != nil {
		t.Fatal(err)
	}
	for about, place := range map[string]func(path string) error{
		"a link out of it": func(path string) error { return os.Symlink(outside, path) },
		"a directory":      func(path string) error { return os.Mkdir(path, 0o755) },
	} {
		f := b.export()
		delete(f, "checkpoint")
		dir := write(t, f)
		if err := place(filepath.Join(dir, "checkpoint")); err != nil {
			t.Fatal(err)
		}
		if rep, err := verify.Run(t.Context(), openDir(t, dir), b.policy(), verify.Options{}); err == nil {
			t.Errorf("%s: %s", about, rep.Verdict)
		}
	}
	if _, err := verify.OpenDir(filepath.Join(t.TempDir(), "no")); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// A directory that files were read from before is judged as one that is opened for each: also when there are too many to be kept open,
// when links lead about in it, and when it is gone.
func TestDirectoriesThatAreKeptOpen(t *testing.T) {
	t.Parallel()
	f := files{"checkpoint": []byte("c")}
	for i := range 30 {
		f[fmt.Sprintf("tile/%d/a", i)] = []byte(fmt.Sprint("a", i))
		f[fmt.Sprintf("tile/%d/b", i)] = []byte(fmt.Sprint("b", i))
	}
	path := write(t, f)
	outside := write(t, files{"secret": []byte("x")})
	for link, target := range map[string]string{"within": "../2/b", "out": filepath.Join(outside, "secret"), "up": "../../../secret"} {
		if err := os.Symlink(target, filepath.Join(path, "tile", "1", link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(path, "tile", "1", "dir"), 0o755); err != nil {
		t.Fatal(err)
	}
	d := openDir(t, path)
	var g errgroup.Group
	for name, want := range f {
		g.Go(func() error {
			for range 3 {
				if got, err := readAll(d, name); err != nil || got != string(want) {
					return fmt.Errorf("%s: %q, %w", name, got, err)
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	for range 2 {
		for name, want := range map[string]string{"tile/1/a": "a1", "tile/1/within": "b2", "tile/1/b": "b1"} {
			if got, err := readAll(d, name); err != nil || got != want {
				t.Errorf("%s: %q, %v", name, got, err)
			}
		}
		for _, name := range []string{"tile/1/out", "tile/1/up", "tile/1/dir"} {
			if got, err := readAll(d, name); err == nil || errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), name) {
				t.Errorf("%s: %q, %v", name, got, err)
			}
		}
		if _, err := readAll(d, "tile/1/none"); !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	}
	if err := os.RemoveAll(filepath.Join(path, "tile", "1")); err != nil {
		t.Fatal(err)
	}
	if got, err := readAll(d, "tile/1/a"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%q, %v", got, err)
	}
}

func readAll(src verify.Source, name string) (string, error) {
	f, err := src.Open(context.Background(), name)
	if err != nil {
		return "", err
	}
	b, err := io.ReadAll(f)
	return string(b), errors.Join(err, f.Close())
}

func FuzzTar(f *testing.F) {
	b := newBuilder(f).begin().events(9)
	p := b.policy()
	f.Add(archive(f, b.export(), ""), uint16(0), byte(0))
	f.Add(archive(f, b.export(), "evidence/"), uint16(100), byte(1))
	f.Fuzz(func(t *testing.T, a []byte, at uint16, flip byte) {
		if len(a) > 0 {
			a = bytes.Clone(a)
			a[int(at)%len(a)] ^= flip
		}
		src, err := verify.OpenTar(t.Context(), bytes.NewReader(a), int64(len(a)))
		if err != nil {
			return
		}
		if _, err := verify.Run(t.Context(), src, p, verify.Options{}); err != nil {
			return // a file that ends early
		}
	})
}
