package ledger_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"bulla/clock"
	"bulla/ledger"
	"bulla/record"
	"bulla/store"
)

func TestReceipts(t *testing.T) {
	t.Parallel()
	d := newDevices(t)
	path := create(t, d)
	l := open(t, d, path)
	var all []*ledger.Result
	for n := range 40 {
		events := make([]ledger.Event, 1+n%7)
		for i := range events {
			events[i] = event(t, "")
		}
		res := mustAppend(t, l, events...)
		for i, it := range res.Items {
			if want := res.Items[0].Index + uint64(i); it.Index != want {
				t.Fatalf("event %d at index %d, want %d: a request's indices are consecutive", i, it.Index, want)
			}
			if leaf := record.LeafHash(it.Entry); leaf != it.Leaf {
				t.Fatalf("leaf hash %v of entry %d, want %v", it.Leaf, it.Index, leaf)
			}
		}
		all = append(all, res)
	}
	checkLog(t, l)
	closed(t, l)
	l = open(t, d, path)
	defer closed(t, l)
	for _, res := range all {
		checkReceipts(t, l, d, res)
	}
	checkLog(t, l)
}

func TestConcurrentProducersShareBatches(t *testing.T) {
	t.Parallel()
	d := newDevices(t)
	l := open(t, d, create(t, d))
	defer closed(t, l)
	const producers, each = 32, 20
	seen := make(chan uint64, producers*each)
	var wg sync.WaitGroup
	for p := range producers {
		wg.Go(func() {
			for i := range each {
				res, err := appendOne(l, event(t, fmt.Sprintf(`"id":"%d-%d",`, p, i)))
				if err != nil {
					t.Error(err)
					return
				}
				checkReceipts(t, l, d, res)
				seen <- res.Items[0].Index
			}
		})
	}
	wg.Wait()
	close(seen)
	indices := map[uint64]bool{}
	for i := range seen {
		if indices[i] {
			t.Fatalf("index %d was given twice", i)
		}
		indices[i] = true
	}
	checkLog(t, l)
	s, err := l.Status()
	if err != nil {
		t.Fatal(err)
	}
	if s.Size != producers*each+1 || s.Stats.Entries != producers*each || s.Stats.Batches >= s.Stats.Entries {
		t.Errorf("size %d, %d entries in %d batches", s.Size, s.Stats.Entries, s.Stats.Batches)
	}
}

func TestRequestIsAtomic(t *testing.T) {
	t.Parallel()
	d := newDevices(t)
	l := open(t, d, create(t, d))
	defer closed(t, l)
	mustAppend(t, l, event(t, `"id":"a","outcome":"success",`))
	_, err := appendOne(l, event(t, `"id":"b",`), event(t, `"stream":{"id":"s","n":1},`), event(t, `"id":"a","outcome":"failure",`))
	if r := requireCode(t, err, record.CodeConflict); r.Field != "events[2].id" {
		t.Errorf("field %q, want events[2].id", r.Field)
	}
	if l.Size() != 2 {
		t.Fatalf("size %d: part of a refused request was taken", l.Size())
	}
	// Neither the id nor the stream number of the refused request is taken.
	res := mustAppend(t, l, event(t, `"id":"b","outcome":"failure",`), event(t, `"severity":9,"stream":{"id":"s","n":1},`))
	if res.Items[0].Index != 2 || l.Size() != 4 {
		t.Errorf("index %d, size %d, want 2 and 4", res.Items[0].Index, l.Size())
	}
	_, err = appendOne(l)
	requireCode(t, err, record.CodeInvalid)
	checkLog(t, l)
}

func TestRepeats(t *testing.T) {
	t.Parallel()
	d := newDevices(t)
	path := create(t, d)
	l := open(t, d, path)
	first := mustAppend(t, l, event(t, `"id":"a","stream":{"id":"s","n":1},`), event(t, `"stream":{"id":"s","n":2},`))
	for range 2 { // once while running, once after a restart
		again := mustAppend(t, l, event(t, `"stream":{"id":"s","n":2},`), event(t, `"id":"a","stream":{"id":"s","n":1},`))
		if again.Items[0].Index != first.Items[1].Index || again.Items[1].Index != first.Items[0].Index {
			t.Fatalf("repeats at %d and %d, want %d and %d", again.Items[0].Index, again.Items[1].Index, first.Items[1].Index, first.Items[0].Index)
		}
		checkReceipts(t, l, d, again)
		if l.Size() != 3 {
			t.Fatalf("size %d: a repeat was logged again", l.Size())
		}
		_, err := appendOne(l, event(t, `"severity":1,"stream":{"id":"s","n":2},`))
		if r := requireCode(t, err, record.CodeConflict); r.Field != "events[0].stream.n" {
			t.Errorf("field %q", r.Field)
		}
		closed(t, l)
		l = open(t, d, path)
	}
	// A mixed request: one repeat, one new.
	mixed := mustAppend(t, l, event(t, `"stream":{"id":"s","n":2},`), event(t, `"stream":{"id":"s","n":3},`))
	if mixed.Items[0].Index != 2 || mixed.Items[1].Index != 3 {
		t.Errorf("mixed: indices %d and %d, want 2 and 3", mixed.Items[0].Index, mixed.Items[1].Index)
	}
	checkReceipts(t, l, d, mixed)
	// Another uid has names of its own.
	other := &ledger.Caller{Producer: record.Producer{UID: 1001}}
	res, err := l.Append(context.Background(), other, []ledger.Event{event(t, `"stream":{"id":"s","n":1},`)})
	if err != nil || res.Items[0].Index != 4 {
		t.Errorf("another producer's event with the same number: %v", err)
	}
	checkLog(t, l)
	closed(t, l)
}

func TestStreams(t *testing.T) {
	t.Parallel()
	d := newDevices(t)
	l := open(t, d, create(t, d))
	defer closed(t, l)
	n := func(stream string, n int) ledger.Event {
		return event(t, fmt.Sprintf(`"stream":{"id":%q,"n":%d},`, stream, n))
	}
	mustAppend(t, l, n("s", 1), n("s", 2))
	res := mustAppend(t, l, n("s", 3), n("s", 7), n("s", 8))
	if res.Items[0].Index != 4 || res.Items[2].Index != 6 {
		t.Errorf("indices %d to %d, want 4 to 6 behind the gap's record", res.Items[0].Index, res.Items[2].Index)
	}
	requireGap(t, l, 3, record.Gap{UID: 1000, Stream: "s", After: 3, Next: 7})
	_, err := appendOne(l, n("s", 5))
	if r := requireCode(t, err, record.CodeStale); r.Field != "events[0].stream.n" {
		t.Errorf("field %q", r.Field)
	}
	mustAppend(t, l, n("begins at nought", 0))
	mustAppend(t, l, n("begins late", 5))
	requireGap(t, l, 8, record.Gap{UID: 1000, Stream: "begins late", After: -1, Next: 5})
	_, err = appendOne(l, n("one too many", 1))
	requireCode(t, err, record.CodeForbidden)
	checkLog(t, l)
}

func requireGap(t *testing.T, l *ledger.Ledger, index uint64, want record.Gap) {
	t.Helper()
	b, err := l.Entry(index)
	if err != nil {
		t.Fatal(err)
	}
	e, err := record.ParseEntry(b)
	if err != nil {
		t.Fatal(err)
	}
	s, err := record.ParseSystem(e.Body)
	if err != nil || s.Gap == nil || *s.Gap != want || e.Producer != nil {
		t.Fatalf("entry %d is %s (%v), want the gap %+v", index, b, err, want)
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	d := newDevices(t)
	l := open(t, d, create(t, d))
	defer closed(t, l)
	stranger := &ledger.Caller{Producer: record.Producer{UID: 4711}}
	_, err := l.Append(context.Background(), stranger, []ledger.Event{event(t, "")})
	requireCode(t, err, record.CodeForbidden)

	l.Hold(&ledger.Refusal{Code: record.CodeUnsealed, Message: "no seal"})
	_, err = appendOne(l, event(t, ""))
	requireCode(t, err, record.CodeUnsealed)
	body, err := record.MarshalCanonical(&record.System{Event: record.SystemConfig})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Record(context.Background(), record.KindSystem, body); err != nil {
		t.Errorf("the daemon's own record was refused: %v", err)
	}
	l.Hold(nil)
	mustAppend(t, l, event(t, ""))
	if _, err := l.Record(context.Background(), record.KindEnactment, body); err == nil {
		t.Error("an enactment was recorded without a ceremony")
	}
	s, err := l.Status()
	if err != nil {
		t.Fatal(err)
	}
	if s.Stats.Refused[record.CodeForbidden] != 1 || s.Stats.Refused[record.CodeUnsealed] != 1 {
		t.Errorf("refusals counted: %v", s.Stats.Refused)
	}
	checkLog(t, l)
}

// The daemon's own records survive failing batches, keep their order, and come before the events that waited with them.
func TestOwnRecordsAreSequencedAnew(t *testing.T) {
	t.Parallel()
	d := newDevices(t)
	l := open(t, d, create(t, d))
	defer closed(t, l)
	fails := make(chan struct{}, 3)
	for range 3 {
		fails <- struct{}{}
	}
	d.sign = func(real func() ([]byte, error)) ([]byte, error) {
		select {
		case <-fails:
			return nil, errors.New("no token")
		default:
			return real()
		}
	}
	for i := range 3 {
		body, err := record.MarshalCanonical(&record.System{Event: record.SystemConfig, Message: fmt.Sprint(i)})
		if err != nil {
			t.Fatal(err)
		}
		res, err := l.Record(context.Background(), record.KindSystem, body)
		if err != nil || res.Items[0].Index != uint64(i+1) {
			t.Fatalf("record %d: %v", i, err)
		}
	}
	if len(fails) != 0 {
		t.Error("the device never failed")
	}
	checkLog(t, l)
}

func TestCreateNeverOpensAndOpenNeverCreates(t *testing.T) {
	t.Parallel()
	d := newDevices(t)
	path := create(t, d)
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := ledger.Create(path, d.config(), d.genesis(t)); !errors.Is(err, fs.ErrExist) {
		t.Errorf("Create over a log: %v", err)
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
		t.Errorf("Create changed the log that was there (%v)", err)
	}
	missing := filepath.Join(t.TempDir(), "missing.db")
	if _, err := store.Open(missing); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open of a missing log: %v", err)
	}
	if _, err := os.Stat(missing); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open made a file: %v", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	d := newDevices(t)
	path := create(t, d)
	for _, c := range []struct {
		name   string
		change func(*ledger.Config)
		want   error
	}{
		{"another origin", func(c *ledger.Config) { c.Origin = "other.example/log" }, ledger.ErrOrigin},
		{"another key", func(c *ledger.Config) { c.Signer = newDevices(t).config().Signer }, ledger.ErrKey},
	} {
		cfg := d.config()
		c.change(&cfg)
		s, err := store.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ledger.Open(cfg, s); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// A byte of the file changed while the ledger was down is found at Open wherever the window reaches, and nothing is repaired.
func TestOpenFindsTampering(t *testing.T) {
	t.Parallel()
	d := newDevices(t)
	path := create(t, d)
	l := open(t, d, path)
	mustAppend(t, l, event(t, `"data":{"amount":"100"},`), event(t, ""))
	closed(t, l)
	clean, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, victim := range []string{`"amount":"100"`, origin + "\n3\n", `"kind":"genesis"`} {
		b := bytes.Clone(clean)
		n := 0
		for at := 0; ; n++ { // every copy: bbolt keeps old pages
			i := bytes.Index(b[at:], []byte(victim))
			if i < 0 {
				break
			}
			at += i + len(victim)
			b[at-3] ^= 1
		}
		if n == 0 {
			t.Fatalf("%q is not in the file", victim)
		}
		tampered := powerCut(t, path)
		if err := os.WriteFile(tampered, b, 0o600); err != nil {
			t.Fatal(err)
		}
		for range 2 { // opening repairs nothing
			s, err := store.Open(tampered)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := ledger.Open(d.config(), s); !errors.Is(err, ledger.ErrInconsistent) {
				t.Errorf("after changing %q: %v", victim, err)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestClockRefusesEventsOnly(t *testing.T) {
	t.Parallel()
	d := newDevices(t)
	d.stamp = func(s clock.Stamp) clock.Stamp { return clock.Stamp{Sys: s.Sys, State: clock.Unsynced} }
	l := open(t, d, create(t, d))
	defer closed(t, l)
	_, err := appendOne(l, event(t, ""))
	if r := requireCode(t, err, record.CodeClock); r.RetryAfter == 0 {
		t.Error("no hint when to try again")
	}
	body, err := record.MarshalCanonical(&record.System{Event: record.SystemConfig})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Record(context.Background(), record.KindSystem, body); err != nil {
		t.Error(err)
	}
}
