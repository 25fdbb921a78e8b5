package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"
	"unicode/utf8"

	"bulla/record"
)

// line is one line of a producer's input.
type line struct {
	text       []byte // without its line end
	number     int    // in its file, from 1
	generation int    // counts files: a rotated one is another
}

// maxLine bounds an input line, in bytes.
const maxLine = record.MaxEventSource

// pollEvery is how often a followed file is looked at.
const pollEvery = 200 * time.Millisecond

// eachLine calls f with every line that is not empty. With follow it goes on when the file grows, is truncated, or is replaced by
// another of its name, until ctx ends.
func eachLine(ctx context.Context, path string, follow bool, f func(line) error) error {
	for generation := 0; ; generation++ {
		replaced, err := eachLineOf(ctx, path, generation, follow, f)
		if err != nil || !replaced {
			return err
		}
	}
}

// eachLineOf reads one file to its end, or until another has its name.
func eachLineOf(ctx context.Context, path string, generation int, follow bool, f func(line) error) (replaced bool, err error) {
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) && !follow {
		return false, usagef("%s: there is no such file", path)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return true, sleep(ctx, pollEvery)
	}
	if err != nil {
		return false, err
	}
	defer file.Close() // read only: closing loses nothing
	s := splitter{generation: generation, f: f}
	buf := make([]byte, 64<<10)
	for {
		n, err := file.Read(buf)
		if err := s.write(buf[:n]); err != nil {
			return false, err
		}
		switch {
		case err == nil:
			if ctx.Err() != nil {
				return false, ctx.Err()
			}
			continue
		case !errors.Is(err, io.EOF):
			return false, fmt.Errorf("reading %s: %w", path, err)
		case !follow:
			return false, s.flush()
		}
		if replaced, err := isReplaced(path, file); err != nil || replaced {
			return replaced, errors.Join(err, s.flush())
		}
		if err := sleep(ctx, pollEvery); err != nil {
			return false, err
		}
	}
}

// isReplaced reports whether the name belongs to another file by now, or the file was truncated.
func isReplaced(path string, file *os.File) (bool, error) {
	now, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil // between the two steps of a rotation
	}
	if err != nil {
		return false, err
	}
	have, err := file.Stat()
	if err != nil {
		return false, err
	}
	at, err := file.Seek(0, io.SeekCurrent)
	return !os.SameFile(now, have) || now.Size() < at, err
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// eachLineFrom is eachLine for a stream. It returns when ctx ends even while the stream is silent.
func eachLineFrom(ctx context.Context, r io.Reader, f func(line) error) error {
	chunks := make(chan []byte)
	failed := make(chan error, 1)
	go func() {
		for {
			buf := make([]byte, 64<<10)
			n, err := r.Read(buf)
			select {
			case chunks <- buf[:n]:
			case <-ctx.Done():
				return
			}
			if err != nil {
				failed <- err
				return
			}
		}
	}()
	s := splitter{f: f}
	for {
		select {
		case b := <-chunks:
			if err := s.write(b); err != nil {
				return err
			}
		case err := <-failed:
			if !errors.Is(err, io.EOF) {
				return fmt.Errorf("reading standard input: %w", err)
			}
			return s.flush()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// splitter makes lines of what it is given.
type splitter struct {
	f          func(line) error
	rest       []byte
	number     int
	generation int
}

func (s *splitter) write(b []byte) error {
	for {
		i := bytes.IndexByte(b, '\n')
		if i < 0 {
			break
		}
		if err := s.line(append(s.rest, b[:i]...)); err != nil {
			return err
		}
		s.rest, b = nil, b[i+1:]
	}
	if s.rest = append(s.rest, b...); len(s.rest) > maxLine {
		return usagef("line %d is longer than %d bytes", s.number+1, maxLine)
	}
	return nil
}

// flush takes a last line that has no line end.
func (s *splitter) flush() error {
	rest := s.rest
	s.rest = nil
	if len(rest) == 0 {
		return nil
	}
	return s.line(rest)
}

func (s *splitter) line(text []byte) error {
	s.number++
	if len(text) > maxLine {
		return usagef("line %d is longer than %d bytes", s.number, maxLine)
	}
	if len(bytes.TrimSpace(text)) == 0 {
		return nil
	}
	return s.f(line{text, s.number, s.generation})
}

// decode returns a line's text as UTF-8.
func (l line) decode(latin1 bool) (string, error) {
	switch {
	case latin1:
		runes := make([]rune, len(l.text))
		for i, b := range l.text {
			runes[i] = rune(b)
		}
		return string(runes), nil
	case !utf8.Valid(l.text):
		return "", usagef("line %d is not UTF-8; what was before it is appended; --latin1 takes every byte as a character of ISO 8859-1", l.number)
	}
	return string(l.text), nil
}

// fingerprint names the numbering of a file's lines: the same file gets the same name again, also after it has grown or was renamed,
// so that what was appended before is recognised.
func fingerprint(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d:%s", len(p), p)
	}
	return "lines-" + hex.EncodeToString(h.Sum(nil)[:16])
}
