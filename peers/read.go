package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// reader is one connection to http.sock, over which one entry after the other is read, with its proof and the signed head.
type reader struct {
	conn net.Conn
	in   *bufio.Reader
	out  []byte
}

func dialReader(path string) (*reader, error) {
	conn, err := net.Dial("unix", path)
	if err != nil {
		return nil, err
	}
	return &reader{conn: conn, in: bufio.NewReaderSize(conn, 16<<10)}, nil
}

// read reads an entry's receipt, and makes sure that it is one.
func (r *reader) read(index uint64) error {
	r.out = strconv.AppendUint(append(r.out[:0], "GET /v1/entries/"...), index, 10)
	r.out = append(r.out, "/proof HTTP/1.1\r\nHost: bulla\r\n\r\n"...)
	if _, err := r.conn.Write(r.out); err != nil {
		return err
	}
	status, err := r.in.ReadSlice('\n')
	if err != nil {
		return err
	}
	if ok := bytes.HasPrefix(status, []byte("HTTP/1.1 200 ")); !ok {
		return fmt.Errorf("entry %d: %s", index, bytes.TrimSpace(status))
	}
	length := -1 // chunked
	for {
		line, err := r.in.ReadSlice('\n')
		if err != nil {
			return err
		}
		if line = bytes.TrimSpace(line); len(line) == 0 {
			break
		}
		if value, ok := bytes.CutPrefix(line, []byte("Content-Length: ")); ok {
			if length, err = strconv.Atoi(string(value)); err != nil {
				return err
			}
		}
	}
	n, err := r.body(length)
	if err == nil && n < eventSize {
		err = fmt.Errorf("entry %d: a receipt of %d bytes", index, n)
	}
	return err
}

// body reads past the body, and returns its size. Without a length, it is chunked.
func (r *reader) body(length int) (n int, err error) {
	if length >= 0 {
		return r.in.Discard(length)
	}
	for {
		line, err := r.in.ReadSlice('\n')
		if err != nil {
			return n, err
		}
		size, err := strconv.ParseUint(string(bytes.TrimSpace(line)), 16, 31)
		if err != nil {
			return n, err
		}
		if _, err := r.in.Discard(int(size) + len("\r\n")); err != nil {
			return n, err
		}
		if n += int(size); size == 0 {
			return n, nil
		}
	}
}

// readRandom has readers read random entries below size until the context ends.
func readRandom(ctx context.Context, a *appliance, readers int, size uint64) (latencies, error) {
	var mu sync.Mutex
	var all latencies
	var g errgroup.Group
	for range readers {
		g.Go(func() (err error) {
			r, err := dialReader(a.http())
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, r.conn.Close()) }()
			var took latencies
			for ctx.Err() == nil {
				start := time.Now()
				if err := r.read(rand.Uint64N(size)); err != nil {
					return err
				}
				took = append(took, time.Since(start))
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, took...)
			return nil
		})
	}
	return all, g.Wait()
}

// size is how many entries the log has, by its checkpoint (C2SP tlog-checkpoint: the second line).
func (a *appliance) size() (n uint64, err error) {
	conn, err := net.Dial("unix", a.http())
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	if _, err := io.WriteString(conn, "GET /checkpoint HTTP/1.0\r\n\r\n"); err != nil {
		return 0, err
	}
	b, err := io.ReadAll(io.LimitReader(conn, 64<<10))
	if err != nil {
		return 0, err
	}
	_, body, _ := bytes.Cut(b, []byte("\r\n\r\n"))
	lines := bytes.Split(body, []byte("\n"))
	if len(lines) < 3 {
		return 0, fmt.Errorf("not a checkpoint: %.200q", b)
	}
	return strconv.ParseUint(string(lines[1]), 10, 64)
}
