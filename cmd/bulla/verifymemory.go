package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"bulla/internal/durable"
	"bulla/record"
	"bulla/verify"
)

// memory is where a run of verify finds what an earlier one remembered, and leaves what it found itself.
type memory struct {
	path string // "": a file for each log in the default directory
	off  bool
	was  []byte // what the file held; nil: it was not there
}

// recall reads what an earlier run remembered of a log.
func (m *memory) recall(origin string, genesis record.Hash) (*verify.Memory, error) {
	if m.path == "" {
		dir, err := memoryDir()
		if err != nil {
			return nil, nil // said when there is something to keep
		}
		// Origins have neither spaces nor zero bytes: what is hashed is said in one way only.
		m.path = filepath.Join(dir, fmt.Sprintf("%x.json", sha256.Sum256(append([]byte(origin+"\n"), genesis[:]...))))
	}
	if _, err := os.Lstat(m.path); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	b, err := readSmall(m.path)
	if err != nil {
		return nil, err
	}
	was, err := verify.ParseMemory(b)
	if err != nil {
		return nil, usagef("%s, which holds what an earlier run knew of log %s, is damaged: %w; restore it from a copy, or, if you know why, move it away: the log is then not compared with what was seen before", m.path, printable(origin, 80), err)
	}
	m.was, was.File = b, m.path
	return was, nil
}

// keep leaves what a run found for the next one.
func (m *memory) keep(now *verify.Memory) error {
	if m.off || now == nil {
		return nil
	}
	if m.path == "" {
		_, err := memoryDir()
		return err
	}
	b, err := now.Encode()
	if err != nil {
		return err
	}
	if bytes.Equal(b, m.was) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(m.path), 0o700); err != nil {
		return err
	}
	if there, err := os.ReadFile(m.path); err == nil && !bytes.Equal(there, m.was) {
		return fmt.Errorf("%s was changed by another run meanwhile, and is left as that made it", m.path)
	}
	return durable.Replace(m.path, b, 0o600)
}

// memoryDir is where memories are kept (XDG Base Directory Specification).
func memoryDir() (string, error) {
	state := os.Getenv("XDG_STATE_HOME")
	if !filepath.IsAbs(state) {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", err
		}
		state = filepath.Join(home, ".local", "state")
	}
	return filepath.Join(state, "bulla", "verify"), nil
}

// readEarlier reads what was seen of the log before: a checkpoint, or an export in a directory or a tar file.
func readEarlier(ctx context.Context, path string) (verify.Earlier, error) {
	name := filepath.Base(path)
	if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Size() <= record.MaxCheckpoint {
		b, err := readSmall(path)
		if err != nil {
			return verify.Earlier{}, err
		}
		if e, err := verify.NewEarlier(name, b); err == nil {
			return e, nil
		}
	}
	src, done, err := openEvidence(ctx, path)
	if err != nil {
		return verify.Earlier{}, coded(exitUsage, fmt.Errorf("--earlier: neither a signed checkpoint nor an export: %w", err))
	}
	defer done()
	e, err := verify.ReadEarlier(ctx, name, src)
	if err != nil {
		return e, coded(exitUsage, fmt.Errorf("--earlier: %w", err))
	}
	return e, nil
}
