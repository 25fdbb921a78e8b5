package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// onDisk refuses a directory in memory, where a sync costs nothing.
func onDisk(dir string) error {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return fmt.Errorf("looking at %s: %w", dir, err)
	}
	if s.Type == unix.TMPFS_MAGIC || s.Type == unix.RAMFS_MAGIC {
		return fmt.Errorf("%s lies in memory, where a sync costs nothing: name a directory on a real disk (DISK=)", dir)
	}
	return nil
}

// flushes is how often the disk that dir lies on was told to empty its cache since it was found; false where the kernel does not say, or
// does not tell a disk that has no cache to lose. It is counted for the whole disk.
func flushes(dir string) (uint64, bool) {
	var st unix.Stat_t
	if unix.Stat(dir, &st) != nil {
		return 0, false
	}
	path, err := filepath.EvalSymlinks(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev)))
	if err != nil {
		return 0, false
	}
	if _, err := os.Stat(filepath.Join(path, "partition")); err == nil {
		path = filepath.Dir(path)
	}
	if cache, err := os.ReadFile(filepath.Join(path, "queue/write_cache")); err != nil || strings.TrimSpace(string(cache)) != "write back" {
		return 0, false
	}
	b, err := os.ReadFile(filepath.Join(path, "stat"))
	if err != nil {
		return 0, false
	}
	const flushField = 15 // Documentation/block/stat.rst: flush I/Os
	f := strings.Fields(string(b))
	if len(f) <= flushField {
		return 0, false
	}
	n, err := strconv.ParseUint(f[flushField], 10, 64)
	return n, err == nil
}

// disk writes 4 KiB into a file filled with zeros, and syncs its data, one after the other: what one acknowledgement costs at least.
func disk(ctx context.Context, dir string, d time.Duration) (m measurement, err error) {
	const blocks, block = 4096, 4096
	f, err := os.CreateTemp(dir, "fdatasync-")
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
	zeros := make([]byte, 1<<20)
	for range blocks * block / len(zeros) {
		if _, err := f.Write(zeros); err != nil {
			return m, err
		}
	}
	if err := f.Sync(); err != nil {
		return m, err
	}
	b := []byte(strings.Repeat("b", block))
	var took latencies
	before, counted := flushes(dir)
	start := time.Now()
	for i := int64(0); time.Since(start) < d && ctx.Err() == nil; i++ {
		at := time.Now()
		if _, err := f.WriteAt(b, i%blocks*block); err != nil {
			return m, err
		}
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			return m, err
		}
		took = append(took, time.Since(at))
	}
	m = took.measurement(time.Since(start), len(took))
	m.flushed(dir, before, counted)
	return m, ctx.Err()
}

// idle is the share of the machine that others use while this run does nothing, from 0 to 1.
func idle(ctx context.Context) float64 {
	busy, all := processors()
	pause(ctx, time.Second)
	busy2, all2 := processors()
	if all2 == all {
		return 0
	}
	return float64(busy2-busy) / float64(all2-all)
}

// processors is the time that all processors worked, and all the time there was, in ticks (proc_stat(5)).
func processors() (busy, all uint64) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0
	}
	line, _, _ := strings.Cut(string(b), "\n")
	for i, f := range strings.Fields(line)[1:] {
		n, err := strconv.ParseUint(f, 10, 64)
		if err != nil || i > 7 {
			break
		}
		all += n
		if i != 3 && i != 4 { // idle, iowait
			busy += n
		}
	}
	return busy, all
}

// settle lets what a case leaves behind come to rest, so that the next does not pay for it.
func settle(ctx context.Context) {
	unix.Sync()
	pause(ctx, 500*time.Millisecond)
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}
