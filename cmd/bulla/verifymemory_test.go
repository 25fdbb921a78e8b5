package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"bulla/record"
	"bulla/verify"
)

// What another run remembered meanwhile is not taken back.
func TestMemoryOfTwoRuns(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "new", "memory.json")
	genesis := record.Hash{1}
	of := func(size uint64) *verify.Memory {
		return &verify.Memory{Genesis: strings.Repeat("01", 32), Log: "test.example/log", Size: size, Time: "2026-11-23T01:40:00.123456789Z", V: 1}
	}
	first, second := &memory{path: path}, &memory{path: path}
	for _, m := range []*memory{first, second} {
		if was, err := m.recall("test.example/log", genesis); was != nil || err != nil {
			t.Fatal(was, err)
		}
	}
	if err := second.keep(of(9)); err != nil {
		t.Fatal(err)
	}
	if err := first.keep(of(5)); err == nil || !strings.Contains(err.Error(), "was changed by another run meanwhile") {
		t.Error(err)
	}
	third := &memory{path: path}
	was, err := third.recall("test.example/log", genesis)
	if err != nil || was == nil || was.Size != 9 {
		t.Fatal(was, err)
	}
	before, err := os.Stat(path)
	if err != nil || before.Mode().Perm() != 0o600 {
		t.Fatal(before, err)
	}
	if err := third.keep(of(9)); err != nil { // nothing new
		t.Error(err)
	}
	if err := third.keep(of(12)); err != nil {
		t.Error(err)
	}
	b, err := os.ReadFile(path)
	if err != nil || !bytes.Contains(b, []byte(`"size":12`)) {
		t.Errorf("%s, %v", b, err)
	}
	if err := (&memory{off: true}).keep(of(1)); err != nil {
		t.Error(err)
	}
	if err := third.keep(nil); err != nil { // a run that found the log tampered
		t.Error(err)
	}
}
