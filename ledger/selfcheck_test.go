package ledger_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"bulla/ledger"
	"bulla/record"
)

// checking runs a self-check of logs until the test ends.
func checking(t *testing.T, cfg ledger.SelfCheckConfig) *ledger.SelfCheck {
	t.Helper()
	s := ledger.NewSelfCheck(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s
}

// fill appends n marked events, in batches of different sizes.
func fill(t *testing.T, l *ledger.Ledger, n int) {
	t.Helper()
	for i, step := 0, 1; i < n; i, step = i+step, step%90+7 {
		var events []ledger.Event
		for j := i; j < min(i+step, n); j++ {
			events = append(events, event(t, fmt.Sprintf(`"data":{"mark":"mark-%06d"},`, j)))
		}
		mustAppend(t, l, events...)
	}
}

// stored makes a log of n marked events whose file holds all of them.
func stored(t *testing.T, n int) (*ledger.Ledger, string) {
	t.Helper()
	d := newDevices(t)
	path := create(t, d)
	l := open(t, d, path)
	fill(t, l, n)
	closed(t, l) // moves all of it to the file
	l = open(t, d, path)
	t.Cleanup(func() { closed(t, l) })
	return l, path
}

// spoil replaces bytes of the log's file behind the daemon's back.
func spoil(t *testing.T, path string, old, with []byte) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for at := bytes.Index(b, old); at >= 0; at, n = bytes.Index(b, old), n+1 {
		if _, err := f.WriteAt(with, int64(at)); err != nil {
			t.Fatal(err)
		}
		copy(b[at:], with)
	}
	if err := f.Close(); err != nil || n == 0 {
		t.Fatalf("%d places in %s: %v", n, path, err)
	}
}

func alarms(t *testing.T, l *ledger.Ledger) []string {
	t.Helper()
	indices, err := l.Kind(record.KindSystem, 0, 1000)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, i := range indices {
		b, err := l.Entry(i)
		if err != nil {
			t.Fatal(err)
		}
		e, err := record.ParseEntry(b)
		if err != nil {
			t.Fatal(err)
		}
		if s, err := record.ParseSystem(e.Body); err != nil || s.Event != record.SystemAlarm || s.Code != record.CodeDisk {
			t.Errorf("entry %d is no alarm about the disk: %s (%v)", i, b, err)
		} else {
			out = append(out, s.Message)
		}
	}
	return out
}

// until waits until the self-check has come so far.
func until(t *testing.T, s *ledger.SelfCheck, enough func(ledger.SelfCheckStatus) bool) ledger.SelfCheckStatus {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if st := s.Status()[0]; enough(st) {
			return st
		}
	}
	t.Fatalf("the self-check does not come so far: %+v", s.Status()[0])
	panic("unreachable")
}

const quick = 1 << 30 // bytes a second

func TestSelfCheckOfASoundLogFindsNothing(t *testing.T) {
	t.Parallel()
	d := newDevices(t)
	path := create(t, d)
	l := open(t, d, path)
	t.Cleanup(func() { closed(t, l) })
	s := checking(t, ledger.SelfCheckConfig{Logs: []*ledger.Ledger{l}, Rate: quick, Round: time.Millisecond, Sample: time.Millisecond})
	fill(t, l, 1500) // it grows meanwhile
	size := l.Size()
	st := until(t, s, func(st ledger.SelfCheckStatus) bool {
		return st.Last.Entries >= size && st.Rounds > 3 && st.Samples > 20
	})
	if st.Failures != 0 || st.Finding != "" || st.Last.Failures != 0 || st.Last.Ended.Before(st.Last.Began) || st.Entries < size {
		t.Errorf("%+v", st)
	}
	if a := alarms(t, l); len(a) > 0 {
		t.Error(a)
	}
}

func TestSelfCheckFindsAByteBehindTheDaemonsBack(t *testing.T) {
	t.Parallel()
	l, path := stored(t, 1500)
	other, _ := stored(t, 3)
	var index uint64
	var leaf record.Hash
	for ; ; index++ {
		b, err := l.Entry(index)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(b, []byte("mark-000700")) {
			leaf = record.LeafHash(b)
			break
		}
	}
	s := checking(t, ledger.SelfCheckConfig{Logs: []*ledger.Ledger{l, other}, Rate: quick, Round: time.Millisecond, Sample: time.Millisecond})
	until(t, s, func(st ledger.SelfCheckStatus) bool { return st.Rounds > 0 })
	spoil(t, path, []byte("mark-000700"), []byte("mark-000701"))
	st := until(t, s, func(st ledger.SelfCheckStatus) bool { return st.Last.Failures > 0 })
	until(t, s, func(again ledger.SelfCheckStatus) bool {
		return again.Rounds > st.Rounds+2 && again.Samples > st.Samples+20
	})
	b, err := l.Entry(index)
	if err != nil {
		t.Fatal(err)
	}
	for _, log := range []*ledger.Ledger{l, other} { // once, in every log
		a := alarms(t, log)
		if len(a) != 1 || !strings.Contains(a[0], fmt.Sprintf("log %s differs", origin)) || !strings.Contains(a[0], fmt.Sprintf("entry %d: expected leaf hash %v, found leaf hash %v", index, leaf, record.LeafHash(b))) {
			t.Errorf("alarms %q, want one of entry %d with %v and %v", a, index, leaf, record.LeafHash(b))
		}
	}
	if st := s.Status()[1]; st.Failures != 0 {
		t.Errorf("the other log: %+v", st)
	}
	mustAppend(t, l, event(t, "")) // appending goes on
}

func TestSelfCheckFindsATreeHash(t *testing.T) {
	t.Parallel()
	l, path := stored(t, 600)
	for _, c := range []struct {
		name  string
		index int64 // of the stored hash
	}{{"leaf", tlog.StoredHashIndex(0, 40)}, {"inner", tlog.StoredHashIndex(5, 0)}} {
		hashes, err := readHashes{l}.ReadHashes([]int64{c.index})
		if err != nil {
			t.Fatal(err)
		}
		h, bad := hashes[0], hashes[0]
		bad[7] ^= 1
		spoil(t, path, h[:], bad[:])
		s := checking(t, ledger.SelfCheckConfig{Logs: []*ledger.Ledger{l}, Rate: quick, Round: time.Hour, Sample: time.Hour})
		if st := until(t, s, func(st ledger.SelfCheckStatus) bool { return st.Rounds == 1 }); st.Last.Failures != 1 { // samples may find it too
			t.Errorf("%s: %+v", c.name, st)
		}
		a := alarms(t, l)
		if want := fmt.Sprintf("tree hash %d: expected %v, found %v", c.index, h, bad); len(a) == 0 || !strings.Contains(a[len(a)-1], want) {
			t.Errorf("%s: alarms %q, want one with %q", c.name, a, want)
		}
		spoil(t, path, bad[:], h[:])
	}
}

func TestSelfCheckFindsTheHead(t *testing.T) {
	t.Parallel()
	l, path := stored(t, 20)
	head := l.Checkpoint()
	bad := bytes.Clone(head)
	bad[len(bad)-20] ^= 1
	spoil(t, path, head, bad)
	s := checking(t, ledger.SelfCheckConfig{Logs: []*ledger.Ledger{l}, Rate: quick, Round: time.Hour, Sample: time.Hour})
	st := until(t, s, func(st ledger.SelfCheckStatus) bool { return st.Rounds == 1 })
	if a := alarms(t, l); len(a) != 1 || st.Last.Failures != 1 || !strings.Contains(a[0], "checkpoint: expected "+strconv.Quote(string(head))+", found "+strconv.Quote(string(bad))) {
		t.Errorf("%+v, alarms %q", st, a)
	}
}

// A file that is broken in its structure is found as well, is not the end of the daemon, and does not fill the log with alarms.
func TestSelfCheckOfABrokenFile(t *testing.T) {
	t.Parallel()
	l, path := stored(t, 3000)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	const page = 4096
	for at := int64(0); at+page <= info.Size(); at += page { // the headers of pages that hold events
		if bytes.Contains(b[at:at+page], []byte("mark-001")) {
			if _, err := f.WriteAt([]byte{0xff, 0xff}, at+8); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	s := checking(t, ledger.SelfCheckConfig{Logs: []*ledger.Ledger{l}, Rate: quick, Round: time.Millisecond, Sample: time.Millisecond})
	st := until(t, s, func(st ledger.SelfCheckStatus) bool { return st.Rounds > 1 })
	if st.Failures < 100 {
		t.Errorf("%+v", st)
	}
	if a := alarms(t, l); len(a) != 101 || !strings.Contains(a[100], "more than 100 places") {
		t.Errorf("%d alarms, the last %q", len(a), a[len(a)-1])
	}
}

func TestSelfCheckKeepsItsRate(t *testing.T) {
	t.Parallel()
	l, _ := stored(t, 2000)
	const rate = 50_000
	synctest.Test(t, func(t *testing.T) {
		s := ledger.NewSelfCheck(ledger.SelfCheckConfig{Logs: []*ledger.Ledger{l}, Rate: rate, Round: time.Hour})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		began, ended := time.Now(), time.Duration(0)
		for ended == 0 {
			time.Sleep(100 * time.Millisecond)
			synctest.Wait()
			st, passed := s.Status()[0], time.Since(began)
			if allowed := uint64(passed.Seconds()*rate) + 100_000; st.Bytes > allowed { // and what is read at a time
				t.Fatalf("%d bytes in %v, allowed are %d", st.Bytes, passed, allowed)
			}
			if st.Rounds == 1 {
				ended = passed
			}
		}
		st := s.Status()[0]
		if slowest := time.Duration(float64(st.Bytes)/rate*1.5*float64(time.Second)) + time.Second; ended > slowest {
			t.Errorf("%d bytes took %v", st.Bytes, ended)
		}
		time.Sleep(10 * time.Minute) // only samples, one a second
		synctest.Wait()
		again := s.Status()[0]
		if n := again.Samples - st.Samples; again.Rounds != 1 || n < 590 || n > 610 {
			t.Errorf("after ten minutes: %+v", again)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if again = s.Status()[0]; again.Rounds != 2 || again.Failures != 0 {
			t.Errorf("after an hour: %+v", again)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
