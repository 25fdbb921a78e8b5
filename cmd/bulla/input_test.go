package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// collect gathers lines as "generation:number:text".
func collect(out *[]string) func(line) error {
	return func(l line) error {
		*out = append(*out, fmt.Sprintf("%d:%d:%s", l.generation, l.number, l.text))
		return nil
	}
}

func TestLinesOfAStream(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		in   string
		want []string
	}{
		{"", nil},
		{"\n\n \t\n", nil},
		{"a", []string{"0:1:a"}},
		{"a\n", []string{"0:1:a"}},
		{"a\n\nb\r\n c", []string{"0:1:a", "0:3:b\r", "0:4: c"}},
		{strings.Repeat("x", 100_000) + "\ny", []string{"0:1:" + strings.Repeat("x", 100_000), "0:2:y"}},
	} {
		var got []string
		if err := eachLineFrom(t.Context(), strings.NewReader(c.in), collect(&got)); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%.40q: %s", c.in, d)
		}
	}
}

func TestLineWithoutEnd(t *testing.T) {
	t.Parallel()
	var got []string
	err := eachLineFrom(t.Context(), io.LimitReader(endless{}, 1<<30), collect(&got))
	if err == nil || exitCode(err) != exitUsage || !strings.Contains(err.Error(), "line 1 is longer than") {
		t.Error(err)
	}
}

type endless struct{}

func (endless) Read(b []byte) (int, error) { return copy(b, bytes.Repeat([]byte("x"), len(b))), nil }

func TestReadingASilentStreamCanBeInterrupted(t *testing.T) {
	t.Parallel()
	r, w := io.Pipe()
	defer w.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	seen := make(chan struct{})
	go func() {
		done <- eachLineFrom(ctx, r, func(line) error { close(seen); return nil })
	}()
	if _, err := io.WriteString(w, "one\n"); err != nil {
		t.Fatal(err)
	}
	<-seen
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// A file is followed as it grows, is truncated, vanishes, and is replaced.
func TestFollow(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "app.log")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	lines, done := make(chan string), make(chan error, 1)
	go func() {
		done <- eachLine(ctx, path, true, func(l line) error {
			lines <- fmt.Sprintf("%d:%d:%s", l.generation, l.number, l.text)
			return nil
		})
	}()
	grow := func(text string) {
		t.Helper()
		f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
		if err == nil {
			_, err = f.WriteString(text)
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	var generation string
	next := func(want string, newFile bool) {
		t.Helper()
		got := <-lines
		g, rest, _ := strings.Cut(got, ":")
		if rest != want || (g != generation) != newFile {
			t.Fatalf("%q after generation %s, want %q, new file %t", got, generation, want, newFile)
		}
		generation = g
	}
	grow("one\ntwo\nthr") // it may begin before there is a file
	next("1:one", true)
	next("2:two", false)
	grow("ee\n")
	next("3:three", false)
	grow("last words") // without a line end
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	grow("new\n")
	next("4:last words", false)
	next("1:new", true)
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	grow("x\n") // shorter than what was read before
	next("1:x", true)
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestFingerprint(t *testing.T) {
	t.Parallel()
	if fingerprint("a", "b") == fingerprint("ab", "") || fingerprint("a") == fingerprint("a", "") {
		t.Error("different parts have one fingerprint")
	}
	if got := fingerprint("a", "b"); got != "lines-facdde7abf1eac5b301273ab2e282f79" {
		t.Errorf("%s: a file that was appended before gets another name", got)
	}
}
