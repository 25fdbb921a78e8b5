package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"bulla/api"
	"bulla/record"
)

// quiet is progress that nobody sees.
func quiet() *progress { return (&tool{err: io.Discard}).progress("") }

func queryOf(t testing.TB, text string) *api.Query {
	t.Helper()
	v, err := url.ParseQuery(text)
	if err != nil {
		t.Fatal(err)
	}
	q, err := api.ParseQuery(v)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

// found are the indices that a search finds.
func found(t testing.TB, a *archive, x *index, q *api.Query) (indices []uint64, s *search) {
	t.Helper()
	s = &search{a: a, q: q, index: x, progress: quiet()}
	if err := s.run(t.Context(), func(h *hit) error {
		indices = append(indices, h.entry.Index)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return indices, s
}

func indexed(t testing.TB, a *archive) *index {
	t.Helper()
	dir := indexPath(t.TempDir(), a.head)
	if err := buildIndex(t.Context(), dir, a, nil); err != nil {
		t.Fatal(err)
	}
	x, err := openIndex(dir, a.head)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// An index and a reading of every entry find the same, whatever is asked for.
func TestIndexFindsWhatAScanFinds(t *testing.T) {
	t.Parallel()
	a := made(t, 1200)
	x := indexed(t, a)
	random := rand.New(rand.NewPCG(1, 2))
	conditions := map[string]func(i int) string{
		"session": func(i int) string { return fmt.Sprint("s-", i/10) }, "transaction": func(i int) string { return fmt.Sprint("t-", i) },
		"trace": func(i int) string { return fmt.Sprintf("%032x", i/5) }, "actor": func(i int) string { return fmt.Sprint("user", i%97) },
		"src":  func(i int) string { return fmt.Sprintf("10.%d.%d.0/%d", i%5, i%256, 8+i%25) },
		"type": func(i int) string { return []string{"http.get", "http.put.*", "http.*", "none.*"}[i%4] },
		"uid":  func(i int) string { return fmt.Sprint(1000 + i%8/7) }, "unit": func(int) string { return "nginx.service" },
		"outcome": func(i int) string { return []string{"success", "failure", "unknown"}[i%3] }, "severity": func(i int) string { return fmt.Sprint(1 + i%20) },
		"text":  func(i int) string { return fmt.Sprint("NUMBER ", i) },
		"since": func(i int) string { return fmt.Sprintf("2026-11-23T01:40:%02d.%03dZ", i/1000%60, i%1000) },
		"until": func(i int) string { return fmt.Sprintf("2026-11-23T01:40:%02d.%03dZ", (i+1)/1000%60, (i+1)%1000) },
		"kind":  func(i int) string { return []string{"event", "seal"}[i%10/9] },
	}
	all := 0
	for range 200 {
		v := url.Values{}
		about := random.IntN(1250)
		for _, name := range api.QueryFields {
			if c := conditions[name]; c != nil && random.IntN(4) == 0 {
				v.Set(name, c(about))
			}
		}
		q := queryOf(t, v.Encode())
		want, _ := found(t, a, nil, q)
		got, s := found(t, a, x, q)
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("%s: the index finds %v, a scan %v", v.Encode(), got, want)
		}
		if s.damaged != nil {
			t.Fatalf("%s: %v", v.Encode(), s.damaged)
		}
		all += len(want)
	}
	if all < 200 {
		t.Errorf("only %d results: the test asks for nothing", all)
	}
	got, s := found(t, a, x, queryOf(t, "trace="+fmt.Sprintf("%032x", 120)))
	if fmt.Sprint(got) != "[600 601 602 603 604]" || s.looked != 256 {
		t.Errorf("found %v, having read %d entries", got, s.looked)
	}
}

// Any byte that is lost or changed, of any file of the index, is noticed before something is missed because of it.
func TestDamagedIndexIsNoticed(t *testing.T) {
	t.Parallel()
	a := made(t, 1500)
	dir := indexPath(t.TempDir(), a.head)
	if err := buildIndex(t.Context(), dir, a, nil); err != nil {
		t.Fatal(err)
	}
	q := queryOf(t, "transaction=t-200")
	want, _ := found(t, a, nil, q)
	try := func(what string) {
		t.Helper()
		x, err := openIndex(dir, a.head)
		if err == nil {
			s := &search{a: a, q: q, index: x, progress: quiet()}
			var got []uint64
			err = s.run(t.Context(), func(h *hit) error {
				got = append(got, h.entry.Index)
				return nil
			})
			if err == nil && fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("%s: %v is found instead of %v, in silence", what, got, want)
			}
		}
		if err != nil && !errors.Is(err, errIndex) {
			t.Errorf("%s: %v does not say that the index cannot be used", what, err)
		}
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 3 {
		t.Fatalf("%v (%v)", files, err)
	}
	noticed := 0
	for _, f := range files {
		path := filepath.Join(dir, f.Name())
		sound, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		write := func(b []byte) {
			t.Helper()
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		for at := 0; at < len(sound); at += 1 + len(sound)/60 {
			b := append([]byte(nil), sound...)
			b[at] ^= 0x40
			write(b)
			try(fmt.Sprintf("%s, byte %d", f.Name(), at))
			if _, err := openIndex(dir, a.head); err != nil {
				noticed++
			}
			write(sound[:at])
			try(fmt.Sprintf("%s, cut at %d", f.Name(), at))
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		try(f.Name() + " gone")
		write(sound)
	}
	if noticed < 60 {
		t.Errorf("only %d of the changes were noticed on opening", noticed)
	}
	// An index of another head is another's.
	other := a.head
	other.Size--
	if _, err := openIndex(dir, other); !errors.Is(err, errIndex) {
		t.Errorf("an index is used for another size: %v", err)
	}
}

// Of entries that do not lead to the checkpoint's root no index is kept; with one that was made before, changed entries are noticed.
func TestIndexOfChangedEvidence(t *testing.T) {
	t.Parallel()
	a := made(t, 600)
	x := indexed(t, a)
	path := filepath.Join(a.path, "tile/entries/001")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	changed := strings.Replace(string(b), `"session_id":"s-30"`, `"session_id":"s-99"`, 1)
	if err := os.WriteFile(path, []byte(changed), 0o644); err != nil || changed == string(b) {
		t.Fatal("nothing was changed", err)
	}
	base := t.TempDir()
	if err := buildIndex(t.Context(), indexPath(base, a.head), a, nil); !errors.Is(err, errNotTheLog) {
		t.Errorf("an index was made: %v", err)
	}
	if left, err := os.ReadDir(base); err != nil || len(left) != 0 {
		t.Errorf("%v was left behind (%v)", left, err)
	}
	got, s := found(t, a, x, queryOf(t, "session=s-30"))
	if len(got) != 9 || len(s.damaged) != 1 || s.damaged[0].Entry != 256 || !strings.Contains(s.damaged[0].Why, "from 256 on are not those") {
		t.Errorf("found %v, damaged %v", got, s.damaged)
	}
	if got, s = found(t, a, nil, queryOf(t, "session=s-30")); len(got) != 9 || len(s.damaged) != 1 || !strings.Contains(s.damaged[0].Why, "do not lead to the root") {
		t.Errorf("without an index: found %v, damaged %v", got, s.damaged)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	for _, x := range []*index{nil, x} {
		got, s = found(t, a, x, queryOf(t, "session=s-30"))
		if len(got) != 0 || len(s.damaged) == 0 || !strings.Contains(s.damaged[0].Why, "tile/entries/001 is missing") {
			t.Errorf("found %v, damaged %v", got, s.damaged)
		}
	}
	if err := buildIndex(t.Context(), indexPath(base, a.head), a, nil); !errors.Is(err, errNotTheLog) {
		t.Errorf("an index was made of what is missing: %v", err)
	}
}

// What was left behind by a build that was killed goes away in time; one that is under way stays.
func TestStaleBuildsAreRemoved(t *testing.T) {
	t.Parallel()
	a := made(t, 10)
	base := t.TempDir()
	for _, name := range []string{"0123.tmp-1", "0123.tmp-2", "kept"} {
		if err := os.Mkdir(filepath.Join(base, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	info, err := os.Stat(base)
	if err != nil {
		t.Fatal(err)
	}
	old := info.ModTime().Add(-2 * staleAfter)
	if err := os.Chtimes(filepath.Join(base, "0123.tmp-1"), old, old); err != nil {
		t.Fatal(err)
	}
	if err := buildIndex(t.Context(), indexPath(base, a.head), a, nil); err != nil {
		t.Fatal(err)
	}
	for name, there := range map[string]bool{"0123.tmp-1": false, "0123.tmp-2": true, "kept": true} {
		if _, err := os.Stat(filepath.Join(base, name)); errors.Is(err, fs.ErrNotExist) == there {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A checkpoint that states more than there is does not keep a search busy for ever.
func TestSearchOfWhatIsNotThere(t *testing.T) {
	t.Parallel()
	a := made(t, 10)
	a.head.Size = record.MaxInt
	s := &search{a: a, q: queryOf(t, "type=http.get"), progress: quiet()}
	err := s.run(t.Context(), func(*hit) error { return nil })
	if err == nil || exitCode(err) != exitNotCheckable || !strings.Contains(err.Error(), "tile/entries/000 is missing") {
		t.Errorf("%v", err)
	}
	if err := buildIndex(t.Context(), filepath.Join(t.TempDir(), "x"), a, nil); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("%v", err)
	}
}

// A search that is broken off leaves nothing running, and says why it ended.
func TestSearchEndsEarly(t *testing.T) {
	t.Parallel()
	a := made(t, 5000)
	enough := errors.New("enough of it")
	seen := 0
	s := &search{a: a, q: queryOf(t, "type=http.get"), progress: quiet()}
	if err := s.run(t.Context(), func(*hit) error {
		if seen++; seen == 3 {
			return enough
		}
		return nil
	}); !errors.Is(err, enough) || seen != 3 {
		t.Errorf("%v after %d", err, seen)
	}
}

// An index knows of an event what the event itself says, whatever is in it that looks like something else.
func TestTermsAreOfTheEvent(t *testing.T) {
	t.Parallel()
	for _, body := range []string{
		`{"actor":{"id":"a\"},{","name":"\\","on_behalf_of":"é😀","type":"t"},"data":{"session_id":"no","x":[{"actor":{"id":"no"}},"}]\\",1,true]},"outcome":"success","session_id":"s\n\u0001","src":{"ip":"2001:db8::7","port":1},"target":{"id":"\"","type":"no"},"type":"a.b.c"}`,
		`{"data":{},"severity":24,"src":{"port":0},"stream":{"id":"type","n":0},"target":{"type":"no"},"transaction_id":",\":","type":"x"}`,
		`{"actor":{"type":"only"},"data":{"a":[[],{}]},"src":{"ip":"192.0.2.7"},"trace_id":"4bf92f3577b34da6a3ce929d0e0e4736","type":"y-z.w"}`,
	} {
		e := &record.Entry{Index: 1, Kind: record.KindEvent, Log: "l", Prev: record.Hash{1}, Producer: &record.Producer{UID: 7, Unit: "u"}, Body: []byte(body)}
		raw, err := e.Append(nil)
		if err != nil {
			t.Fatal(err)
		}
		r := newRow()
		got := r.add(raw, nil)
		ev, err := record.ParseEvent(e.Body)
		if err != nil {
			t.Fatal(err)
		}
		want := wantedTerms(e, ev)
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) || int(r.severity) != ev.Severity || r.opaque || r.kinds != kindBit(record.KindEvent) {
			t.Errorf("%s: terms %x, want %x; %+v", body, got, want, r)
		}
	}
	r := newRow()
	if terms := r.add([]byte(`{"body":{}}`), nil); len(terms) != 0 || !r.opaque || !r.may(queryOf(t, "kind=seal&severity=24&until=1970-01-01")) {
		t.Errorf("a bundle with an entry that cannot be read is left out: %+v", r)
	}
}

// wantedTerms are an entry's terms by the parser that the rest of the program uses.
func wantedTerms(e *record.Entry, ev *record.Event) (out []uint64) {
	add := func(field byte, values ...string) {
		for _, v := range values {
			if v != "" {
				out = append(out, termOf(field, v))
			}
		}
	}
	add(termUID, fmt.Sprint(e.Producer.UID))
	add(termUnit, e.Producer.Unit)
	if ev.Actor != nil {
		add(termActor, ev.Actor.ID, ev.Actor.Name, ev.Actor.OnBehalfOf)
	}
	if ev.Target != nil {
		add(termTarget, ev.Target.ID)
	}
	if ev.Src != nil && ev.Src.IP != "" {
		addr := netip.MustParseAddr(ev.Src.IP)
		for _, bits := range networks[addr.Is4()] {
			p, err := addr.Prefix(bits)
			if err != nil {
				panic(err)
			}
			add(termNet, p.String())
		}
	}
	add(termSession, ev.SessionID)
	add(termTransaction, ev.TransactionID)
	add(termTrace, ev.TraceID)
	add(termOutcome, ev.Outcome)
	add(termType, ev.Type)
	for i := range ev.Type {
		if ev.Type[i] == '.' {
			add(termBelow, ev.Type[:i+1])
		}
	}
	return out
}
