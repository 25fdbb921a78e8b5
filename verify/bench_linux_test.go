package verify_test

import (
	"bytes"
	"crypto/sha256"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"bulla/record"
	"bulla/verify"
)

// BenchmarkLarge is a log of BULLA_BENCH_ENTRIES entries (100,000 without it) verified from a directory: as BenchmarkStage, and as
// peak-MB how much memory it took at most. The log is made for it below the user's cache directory, some 400 bytes for each entry, and
// removed afterwards.
func BenchmarkLarge(b *testing.B) {
	entries := uint64(100_000)
	if s := os.Getenv("BULLA_BENCH_ENTRIES"); s != "" {
		var err error
		if entries, err = strconv.ParseUint(s, 10, 32); err != nil {
			b.Fatalf("BULLA_BENCH_ENTRIES: %v", err)
		}
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		b.Fatal(err)
	}
	if err := os.MkdirAll(cache, 0o700); err != nil {
		b.Fatal(err)
	}
	path, err := os.MkdirTemp(cache, "bulla-bench-")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := os.RemoveAll(path); err != nil {
			b.Error(err)
		}
	})
	s := stream{builder: newBuilder(b), dir: path}
	s.make(entries)
	dir, err := verify.OpenDir(path)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := dir.Close(); err != nil {
			b.Error(err)
		}
	})
	syscall.Sync() // what the kernel still has to write would take part of the time
	hashed := s.hashSpeed()
	debug.FreeOSMemory()
	resetPeak(b)
	var one, two time.Duration
	for b.Loop() {
		best(&two, func() { runOn(b, 2, dir, s.trust) })
		best(&one, func() { runOn(b, 1, dir, s.trust) })
	}
	b.ReportMetric(float64(entries)/one.Seconds(), "entries/s")
	b.ReportMetric(float64(s.bytes)/one.Seconds()/hashed, "sha256-ratio")
	b.ReportMetric(one.Seconds()/two.Seconds(), "two-cores")
	b.ReportMetric(peak(b), "peak-MB")
}

// stream makes a log in a directory, holding no more of it than what is not written yet.
type stream struct {
	*builder
	dir    string
	trust  *verify.Policy
	bytes  int64 // of bundles
	sample [][]byte
	levels [8]struct {
		hashes []record.Hash
		number int64
	}
}

func (s *stream) make(entries uint64) {
	s.begin().startClock().measure()
	s.trust = s.policy()
	for s.tree.Size() < entries {
		if s.events(1); s.tree.Size()%(1<<14) == 0 && s.tree.Size() < entries {
			s.measure()
		}
		if len(s.raw) >= 256 {
			s.flush(256)
		}
	}
	if len(s.raw) > 0 {
		s.flush(len(s.raw))
	}
	for level := range s.levels {
		s.tile(level)
	}
	s.write("checkpoint", s.sign())
}

// flush writes the first n entries that are not written.
func (s *stream) flush(n int) {
	data := bundle(s.raw[:n])
	s.write(record.TilePath(tlog.Tile{H: 8, L: -1, N: s.levels[0].number, W: n}), data)
	if s.bytes += int64(len(data)); len(s.sample) < 100 {
		s.sample = append(s.sample, data)
	}
	for _, raw := range s.raw[:n] {
		s.grow(0, record.LeafHash(raw))
	}
	s.raw, s.hashes = append(s.raw[:0], s.raw[n:]...), s.hashes[:0]
}

// grow adds a hash to a level of tiles.
func (s *stream) grow(level int, h record.Hash) {
	l := &s.levels[level]
	if l.hashes = append(l.hashes, h); len(l.hashes) < 256 {
		return
	}
	var tree record.Tree
	for _, h := range l.hashes {
		tree.Append(nil, h)
	}
	s.tile(level)
	s.grow(level+1, tree.Root())
}

// tile writes what a level has of a tile.
func (s *stream) tile(level int) {
	l := &s.levels[level]
	if len(l.hashes) == 0 {
		return
	}
	var data bytes.Buffer
	for _, h := range l.hashes {
		data.Write(h[:])
	}
	s.write(record.TilePath(tlog.Tile{H: 8, L: level, N: l.number, W: len(l.hashes)}), data.Bytes())
	l.hashes, l.number = l.hashes[:0], l.number+1
}

func (s *stream) write(name string, data []byte) {
	s.t.Helper()
	path := filepath.Join(s.dir, name)
	s.must(os.MkdirAll(filepath.Dir(path), 0o700))
	s.must(os.WriteFile(path, data, 0o600))
}

// hashSpeed is how many bytes of bundles SHA-256 hashes a second, at its best.
func (s *stream) hashSpeed() (best float64) {
	for range 20 {
		size, start := 0, time.Now()
		for _, data := range s.sample {
			sha256.Sum256(data)
			size += len(data)
		}
		best = max(best, float64(size)/time.Since(start).Seconds())
	}
	return best
}

// resetPeak makes the kernel forget how much memory the process has used so far.
func resetPeak(b *testing.B) {
	runtime.GC()
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil {
		b.Fatal(err)
	}
}

// peak is the most memory that the process has used since, in MB.
func peak(b *testing.B) float64 {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kB, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 64)
			if err != nil {
				b.Fatal(err)
			}
			return kB * 1024 / 1e6
		}
	}
	b.Fatal("no VmHWM in /proc/self/status")
	return 0
}
