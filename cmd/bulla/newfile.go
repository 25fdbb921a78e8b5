package main

import (
	"errors"
	"io/fs"
	"os"

	"bulla/internal/durable"
)

// Results are not written over other files: nothing is lost to a slip.

// free refuses names of files that exist, before anything is done. No name is no file.
func free(paths ...string) error {
	for _, path := range paths {
		if path == "" {
			continue
		}
		if _, err := os.Lstat(path); err == nil {
			return taken(path)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// freePlot is free for a picture, which "-" draws in the terminal.
func freePlot(path string) error {
	if path == "-" {
		return nil
	}
	return free(path)
}

// writeNew writes a file that does not exist yet.
func writeNew(path string, b []byte) error {
	err := durable.Create(path, b, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return taken(path)
	}
	return err
}

func taken(path string) error {
	return usagef("%s exists: choose another name, or remove it first", path)
}
