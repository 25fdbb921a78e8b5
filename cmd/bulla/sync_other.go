//go:build !linux

package main

import "os"

// fdatasync is what bullad's own disk uses on Linux, the only system it runs on; elsewhere bench measures the nearest thing.
func fdatasync(f *os.File) error { return f.Sync() }
