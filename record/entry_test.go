package record

import (
	"bytes"
	"math"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"bulla/clock"
)

const testOrigin = "log.example/audit"

func testStamp() clock.Stamp {
	return clock.Stamp{Sys: 1795397000123456789, Offset: -30217, Bound: 1840211, Age: 4120331, Round: 7, Epoch: 1, State: clock.Synced, HasEstimate: true}
}

// An estimate that the number range cannot hold is left out, and no other than that.
func TestEstimateBeyondTheRange(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(*clock.Stamp)
		has    bool
	}{
		"as it is":        {func(*clock.Stamp) {}, true},
		"none":            {func(s *clock.Stamp) { s.HasEstimate = false }, false},
		"greatest":        {func(s *clock.Stamp) { s.Age, s.Bound, s.Offset, s.Round = MaxInt, MaxInt, MaxInt, MaxInt }, true},
		"least":           {func(s *clock.Stamp) { s.Age, s.Bound, s.Offset, s.Round = 0, 0, -MaxInt, 0 }, true},
		"age":             {func(s *clock.Stamp) { s.Age = MaxInt + 1 }, false},
		"age negative":    {func(s *clock.Stamp) { s.Age = -1 }, false},
		"bound":           {func(s *clock.Stamp) { s.Bound = math.MaxInt64 }, false},
		"bound negative":  {func(s *clock.Stamp) { s.Bound = math.MinInt64 }, false},
		"offset":          {func(s *clock.Stamp) { s.Offset = MaxInt + 1 }, false},
		"offset negative": {func(s *clock.Stamp) { s.Offset = math.MinInt64 }, false},
		"round":           {func(s *clock.Stamp) { s.Round = math.MaxUint64 }, false},
	} {
		e := Entry{Kind: KindClock, Log: testOrigin, Stamp: testStamp(), Body: []byte("{}")}
		c.change(&e.Stamp)
		b, err := e.Append(nil)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got, err := ParseEntry(b)
		if err != nil {
			t.Errorf("%s: %s: %v", name, b, err)
			continue
		}
		want := e.Stamp
		if !c.has {
			want = clock.Stamp{Sys: want.Sys, Epoch: want.Epoch, State: want.State}
		}
		if got.Stamp != want {
			t.Errorf("%s: %+v comes back as %+v", name, e.Stamp, got.Stamp)
		}
	}
}

func TestEntryAppendRefuses(t *testing.T) {
	t.Parallel()
	for field, change := range map[string]func(*Entry){
		"index":         func(e *Entry) { e.Index = MaxInt + 1 },
		"kind":          func(e *Entry) { e.Kind = "other" },
		"log":           func(e *Entry) { e.Log = "a b" },
		"prev":          func(e *Entry) { e.Prev = Hash{} },
		"body":          func(e *Entry) { e.Body = nil },
		"body.a":        func(e *Entry) { e.Kind, e.Body = KindClock, []byte(`{"a":1.5}`) },
		"body.type":     func(e *Entry) { e.Body = []byte(`{"id":"x"}`) },
		"producer.exe":  func(e *Entry) { e.Producer.Exe = "\xff" },
		"producer.unit": func(e *Entry) { e.Producer.Unit = "a\nb" },
		"producer.pid":  func(e *Entry) { e.Producer.PID = -1 },
		"clock.state":   func(e *Entry) { e.Stamp.State = 99 },
		"time":          func(e *Entry) { e.Stamp.Sys = math.MinInt64 },
	} {
		e := Entry{Index: 1, Kind: KindEvent, Log: testOrigin, Prev: Hash{1}, Producer: &Producer{}, Stamp: testStamp(), Body: event300}
		change(&e)
		b, err := e.Append(nil)
		if fe, ok := err.(*FieldError); !ok || fe.Field != field {
			t.Errorf("%s: %s, %v", field, b, err)
		}
	}
}

func TestDropUnrecordable(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{"\xff", "a\nb", "a\u202eb", "\x00", strings.Repeat("x", 513)} {
		p := Producer{Exe: bad, Unit: bad, PID: -1, UID: 3, GID: 4}
		if b, err := p.Append(nil); err == nil {
			t.Errorf("%.20q is recorded as %s", bad, b)
		}
		if p.DropUnrecordable(); p != (Producer{UID: 3, GID: 4}) {
			t.Errorf("%.20q leaves %+v", bad, p)
		}
	}
	good := Producer{Exe: "/usr/bin/ü (deleted)", Unit: "a@b.service", PID: math.MaxInt32}
	p := good
	if p.DropUnrecordable(); p != good {
		t.Errorf("%+v is left of %+v", p, good)
	}
}

// However large the envelope, an event of the greatest size fits into an entry.
func TestLargestEventFits(t *testing.T) {
	t.Parallel()
	body := []byte(`{"data":{"a":"` + strings.Repeat("x", MaxEvent-37) + `"},"type":"auth.login"}`)
	if _, _, err := CanonicalEvent(body); err != nil || len(body) != MaxEvent {
		t.Fatal(len(body), err)
	}
	e := Entry{
		Index: MaxInt, Kind: KindEvent, Log: strings.Repeat(`"`, MaxOrigin), Prev: Hash{255},
		Producer: &Producer{Exe: strings.Repeat(`\`, MaxExe), GID: math.MaxUint32, PID: math.MaxInt32, UID: math.MaxUint32, Unit: strings.Repeat(`"`, MaxUnit)},
		Stamp:    clock.Stamp{Sys: testStamp().Sys, Offset: -MaxInt, Bound: MaxInt, Age: MaxInt, Round: MaxInt, Epoch: math.MaxUint32, State: clock.Disrupted, HasEstimate: true},
		Body:     body,
	}
	b, err := e.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d of %d bytes", len(b), MaxEntry)
	if _, err := ParseEntry(b); err != nil {
		t.Error(err)
	}
}

// Random entries must come back as they were, by both paths, and a frame must make the same bytes.
func TestEntryRoundTrip(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(1, 2))
	kinds := []Kind{KindGenesis, KindEvent, KindClock, KindSeal, KindProposal, KindApproval, KindEnactment, KindAccess, KindSystem, KindToken, KindBlob}
	pick := func(n int64) int64 { return r.Int64N(n) >> r.IntN(53) }
	var log EntryParser
	var round uint64 // of many entries
	for range 3000 {
		s := clock.Stamp{Sys: pick(1 << 62), State: clock.State(r.IntN(5)), Epoch: r.Uint32() >> r.IntN(32)}
		if s.HasEstimate = r.IntN(4) > 0; s.HasEstimate {
			s.Age, s.Bound, s.Offset, s.Round = pick(MaxInt+1), pick(MaxInt+1), pick(MaxInt+1)*int64(r.IntN(3)-1), round
		}
		if r.IntN(4) == 0 {
			round = uint64(pick(MaxInt + 1))
		}
		e := &Entry{Index: uint64(pick(MaxInt + 1)), Kind: kinds[r.IntN(len(kinds))], Log: `l"ög\` + strings.Repeat("x", r.IntN(9)), Stamp: s, Body: []byte(`{"type":"a.b"}`)}
		if e.Index > 0 {
			e.Prev = Hash{1, byte(r.IntN(256)), 31: byte(r.IntN(256))}
		}
		var producer []byte
		if r.IntN(2) > 0 {
			e.Producer = &Producer{GID: r.Uint32(), UID: r.Uint32() >> r.IntN(32), PID: r.IntN(3) * 4711, Exe: []string{"", `/usr/b"n\ö`}[r.IntN(2)], Unit: []string{"", "a.service"}[r.IntN(2)]}
			var err error
			if producer, err = e.Producer.Append(nil); err != nil {
				t.Fatal(err)
			}
			if err := CheckCanonical(producer, 1); err != nil {
				t.Fatalf("%s: %v", producer, err)
			}
		}
		b, err := e.Append([]byte("before"))
		if err != nil {
			t.Fatal(err)
		}
		b = b[len("before"):]
		if framed := NewFrame(e.Log, e.Stamp).Append(nil, e.Kind, e.Index, e.Prev, producer, e.Body); !bytes.Equal(framed, b) {
			t.Fatalf("frame makes %s, entry %s", framed, b)
		}
		if err := CheckCanonical(b, MaxDepth); err != nil {
			t.Fatalf("%s: %v", b, err)
		}
		fast, ok := scanEntry(b)
		if !ok || !reflect.DeepEqual(fast, e) {
			t.Fatalf("%s: is read as %+v", b, fast)
		}
		if ok := log.scan(fast, b); !ok || !reflect.DeepEqual(fast, e) {
			t.Fatalf("%s: is read as %+v behind another entry", b, fast)
		}
		if slow, err := parseEntry(b); err != nil || !reflect.DeepEqual(slow, e) {
			t.Fatalf("%s: is read as %+v, %v", b, slow, err)
		}
	}
}

// No entry survives the change of any one byte as the same entry; most do not survive it at all.
func TestEntryEveryByteCounts(t *testing.T) {
	t.Parallel()
	e := Entry{Index: 1, Kind: KindEvent, Log: testOrigin, Prev: Hash{1}, Producer: &Producer{Exe: "/bin/x", PID: 7, Unit: "x.service"}, Stamp: testStamp(), Body: event300}
	b, err := e.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range b {
		for _, c := range []byte{b[i] ^ 1, b[i] ^ 0x20, b[i] ^ 0x80, ' ', '"', '0', 0} {
			if c == b[i] {
				continue
			}
			changed := bytes.Clone(b)
			changed[i] = c
			checkEntryPaths(t, changed)
			checkEntryBehind(t, b, changed)
			if got, err := ParseEntry(changed); err == nil && reflect.DeepEqual(got, &e) {
				t.Fatalf("byte %d does not count: %s", i, changed)
			}
		}
		checkEntryPaths(t, b[:i])
		checkEntryBehind(t, b, b[:i])
	}
}

// scanEntry is the fast path for one entry alone.
func scanEntry(b []byte) (*Entry, bool) {
	e := new(Entry)
	return e, (&EntryParser{single: true}).scan(e, b)
}

// checkEntryBehind reads an entry behind another, and again: what was read before must not matter.
func checkEntryBehind(t *testing.T, before, src []byte) {
	t.Helper()
	slow, err := parseEntry(src)
	var p EntryParser
	for _, b := range [][]byte{before, src, before, src, src} {
		var fast Entry
		ok := p.scan(&fast, b)
		if !bytes.Equal(b, src) {
			continue
		}
		if ok != (err == nil) {
			t.Fatalf("behind %q: fast path says %v of %q, reference %v", before, ok, src, err)
		}
		if ok && !reflect.DeepEqual(slow, &fast) {
			t.Fatalf("behind %q: %q: fast path reads %+v, reference %+v", before, src, fast, slow)
		}
	}
}

// Both paths must agree on every text: on whether it is an entry, and on what it says.
func checkEntryPaths(t *testing.T, src []byte) {
	t.Helper()
	slow, err := parseEntry(src)
	fast, ok := scanEntry(src)
	if ok != (err == nil) {
		t.Fatalf("fast path says %v of %q, reference %v", ok, src, err)
	}
	if err != nil {
		if _, ok := err.(*FieldError); !ok {
			t.Fatalf("%q: %T: %v", src, err, err)
		}
		return
	}
	if !reflect.DeepEqual(slow, fast) {
		t.Fatalf("%q: fast path reads %+v, reference %+v", src, fast, slow)
	}
	if again, err := fast.Append(nil); err != nil || !bytes.Equal(again, src) {
		t.Fatalf("%q encodes as %q, %v", src, again, err)
	}
}

func FuzzEntry(f *testing.F) {
	for _, s := range seeds(f, "entry.json") {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		if len(src) <= MaxEntry {
			checkEntryPaths(t, src)
		}
	})
}

func FuzzEntryBehind(f *testing.F) {
	var last []byte
	for _, s := range seeds(f, "entry.json") {
		f.Add(last, s)
		f.Add(s, last)
		last = s
	}
	f.Fuzz(func(t *testing.T, before, src []byte) {
		if len(before) <= MaxEntry && len(src) <= MaxEntry {
			checkEntryBehind(t, before, src)
		}
	})
}
