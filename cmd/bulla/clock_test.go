package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"bulla/api"
	"bulla/clock"
	"bulla/record"
	"bulla/verify"
)

// storyEntries is the clock's story as a log's entries.
func storyEntries(t *testing.T) (head record.Checkpoint, entries [][]byte) {
	t.Helper()
	story, err := os.ReadFile("../../clock/testdata/story.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	head.Origin = "test.example/<story>"
	var prev record.Hash
	for line := range bytes.Lines(story) {
		var evidence clock.Evidence
		body := bytes.TrimSpace(line)
		if err := record.UnmarshalCanonical(body, &evidence); err != nil {
			t.Fatal(err)
		}
		e := record.Entry{Index: head.Size, Kind: record.KindClock, Log: head.Origin, Prev: prev, Body: body}
		if evidence.Round != nil {
			e.Stamp.Sys = evidence.Round.Reading.Real
		} else {
			e.Stamp.Sys = evidence.Transition.Reading.Real
		}
		b, err := e.Append(nil)
		if err != nil {
			t.Fatal(err)
		}
		prev = record.LeafHash(b)
		entries = append(entries, b)
		head.Size++
	}
	return head, entries
}

// storyExport writes an export of the clock's story: nothing of it is signed, and drawing it needs no more.
func storyExport(t *testing.T) string {
	t.Helper()
	head, story := storyEntries(t)
	var entries []byte
	for _, b := range story {
		entries = append(binary.BigEndian.AppendUint16(entries, uint16(len(b))), b...)
	}
	dir := t.TempDir()
	for name, data := range map[string][]byte{"checkpoint": []byte(head.Text() + "\n"), "tile/entries/000.p/29": entries} {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, data, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// An export's clock is drawn: well-formed, a point a round that counted, a mark a change, and nothing that a name could smuggle in.
func TestPlotOfAnExport(t *testing.T) {
	t.Parallel()
	dir := storyExport(t)
	src, err := verify.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	h, err := exportedHistory(t.Context(), src, 1000*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if len(h.points) < 10 || len(h.changes) < 5 {
		t.Fatalf("the story has %d rounds and %d changes", len(h.points), len(h.changes))
	}
	path := filepath.Join(t.TempDir(), "clock.svg")
	var out, errOut bytes.Buffer
	if code := run([]string{"clock", dir, "--plot", path, "--last", "1000h"}, strings.NewReader(""), &out, &errOut); code != exitOK {
		t.Fatalf("exit %d: %s", code, errOut.String())
	}
	svg, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	elements := map[string]int{}
	text := ""
	for d := xml.NewDecoder(bytes.NewReader(svg)); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("the picture is not XML: %v", err)
		}
		switch token := token.(type) {
		case xml.StartElement:
			elements[token.Name.Local]++
		case xml.CharData:
			text += string(token) + "\n"
		}
	}
	if elements["story"] != 0 || !strings.Contains(text, "Clock of test.example/<story>") {
		t.Error("the log's name is not text")
	}
	if got := elements["circle"] - 1; got < 5 || got > len(h.points) { // one is the legend's
		t.Errorf("%d points for %d rounds", got, len(h.points))
	}
	if elements["polygon"] == 0 || bytes.Contains(svg, []byte("NaN")) || bytes.Contains(svg, []byte("Inf")) {
		t.Error("no area for the bound, or a place that is no number")
	}
	for _, want := range []string{"UTC \u2212 system time [", "Bound [", "Time [UTC], ", "bound: UTC lies within", "synced (round)"} {
		if !strings.Contains(text, want) {
			t.Errorf("the picture does not say %q", want)
		}
	}

	out.Reset()
	if code := run([]string{"clock", dir, "--plot", "-", "--last", "1000h"}, strings.NewReader(""), &out, &errOut); code != exitOK || !strings.Contains(out.String(), "█") {
		t.Errorf("exit %d: %s", code, out.String())
	}
}

// Hostile records are refused, or drawn without harm.
func TestPlotOfHostileRecords(t *testing.T) {
	t.Parallel()
	h := &history{origin: "x"}
	for _, c := range []struct{ name, body string }{
		{"before 1970", `{"round":{"agree":0,"epoch":1,"estimate":{"bound":1,"growth":0,"rate":0,"utc_minus_raw":"-9000000000000000000"},"f":0,"number":1,"reading":{"raw":"1","real":"1"},"state":"synced","usable":0}}`},
		{"after 2116", `{"transition":{"epoch":1,"from":"synced","reason":"step","reading":{"raw":"1","real":"9000000000000000000"},"to":"disrupted"}}`},
		{"nothing", `{}`},
		{"not evidence", `{"transition":7}`},
	} {
		if err := h.add(&record.Entry{Kind: record.KindClock, Body: []byte(c.body)}); err == nil {
			t.Errorf("%s: taken", c.name)
		}
	}
	widest := &history{origin: "\x1b]\x00<>&", points: []clockPoint{{0, -1 << 62, 1<<53 - 1, 1 << 53, 0}, {1 << 62, 1 << 62, -5, -1 << 53, 3}, {5, 0, 0, 0, 0}},
		changes: []clockChange{{at: 1 << 62, from: 99, to: 200, reason: "\x00"}, {at: 7}}}
	if err := xml.Unmarshal(drawSVG(widest), new(struct{})); err != nil {
		t.Error(err)
	}
	if s := sparklines(widest); strings.Contains(s, "\x1b") {
		t.Errorf("%q", s)
	}
}

// The tables show what there is, and dashes for what there is not.
func TestClockTables(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	err := printClock(&out, &api.ClockStatus{
		State: "holdover", Rounds: 12, Failed: 3, Reason: "sources", Alarms: []string{"rate"},
		Estimate: &api.ClockEstimate{Offset: -1_500_000, Bound: 12_345_678, Age: int64(3 * time.Minute), Round: 9},
		Drift:    &api.ClockDrift{Rate: -2_345, Sigma: 78},
		Policy:   api.ClockPolicy{Mode: "holdover", Limit: int64(time.Second), Warn: int64(50 * time.Millisecond), F: 1},
		Sources: []api.ClockSource{
			{Name: "ptb", Address: "ptb.example:123", Verdict: "ok", Auth: "aes-128-cmac", Stratum: 1, Offset: -1_400_000, Distance: 2_000_000, RTT: 3_000_000, Verdicts: map[string]uint64{"ok": 12}},
			{Name: "liar\x1b", Address: "l.example:123", Verdict: "rejected", Reason: "timeout", Verdicts: map[string]uint64{"falseticker": 1, "rejected": 11}},
			{Name: "new", Address: "n.example:123"},
		},
		Steps: []api.ClockStep{{Time: time.Unix(1795397000, 0), From: "synced", To: "disrupted", Reason: "step", Size: -250_000_000}},
	})
	if err != nil {
		t.Fatal(err)
	}
	const want = `state       holdover
offset      -1.5 ms           UTC minus the system's time
bound       12.35 ms          now: it grows until the next round; warned of above 50 ms; refused above 1 s (policy holdover)
round       9                 3m0s ago; 12 since the start, 3 of them failed
drift       -2.345 ppm        +- 0.078 ppm
last round  sources
alarms      rate
`
	head, tables, _ := strings.Cut(out.String(), "\n\n")
	if got := trimLines(head); got != trimLines(want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	for _, line := range []string{
		"ptb ptb.example:123 ok -1.4 ms 2 ms 3 ms 1 aes-128-cmac 12/0/0",
		`liar\u001b l.example:123 rejected (timeout) - - - 0 - 0/1/11`,
		"new n.example:123 - - - - 0 - 0/0/0",
		"2026-11-23T01:23:20.000Z synced disrupted step -250 ms",
	} {
		if !strings.Contains(trimLines(tables), line+"\n") {
			t.Errorf("no line %q in\n%s", line, tables)
		}
	}
}

// trimLines joins the columns of a table by single spaces.
func trimLines(s string) string {
	var out []string
	for line := range strings.Lines(s) {
		out = append(out, strings.Join(strings.Fields(line), " "))
	}
	return strings.Join(out, "\n") + "\n"
}

// An appliance is asked for the clock's records alone, a page after the other, and for no more than the time that is drawn.
func TestHistoryIsServedInPages(t *testing.T) {
	t.Parallel()
	_, entries := storyEntries(t)
	pages := 0
	circle := false
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/entries/{index}", func(w http.ResponseWriter, r *http.Request) {
		i, err := strconv.Atoi(r.PathValue("index"))
		if err != nil || i >= len(entries) {
			http.NotFound(w, r)
			return
		}
		w.Write(entries[i])
	})
	mux.HandleFunc("GET /v1/entries", func(w http.ResponseWriter, r *http.Request) {
		from, err := strconv.Atoi(r.FormValue("from"))
		if err != nil || r.FormValue("kind") != "clock" {
			http.Error(w, "{}", http.StatusBadRequest)
			return
		}
		pages++
		to := min(from+5, len(entries))
		p := api.Page{Size: uint64(len(entries))}
		for _, e := range entries[from:to] {
			p.Entries = append(p.Entries, e)
		}
		if next := uint64(to); to < len(entries) {
			p.Next = &next
		}
		if zero := uint64(0); circle {
			p.Next = &zero
		}
		out := json.NewEncoder(w)
		out.SetEscapeHTML(false) // entries are sent as they are
		if err := out.Encode(p); err != nil {
			t.Error(err)
		}
	})
	s := httptest.NewServer(mux)
	defer s.Close()
	a := &appliance{log: api.LogStatus{Origin: "o", Size: uint64(len(entries))}, client: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", s.Listener.Addr().String())
		},
	}}}
	defer a.client.CloseIdleConnections()
	all, err := servedHistory(t.Context(), a, 1000*time.Hour)
	if err != nil || pages != (len(entries)+4)/5 {
		t.Fatalf("%d pages: %v", pages, err)
	}
	some, err := servedHistory(t.Context(), a, 6*time.Hour)
	if err != nil || len(some.points) == 0 || len(some.points) >= len(all.points) {
		t.Errorf("%d rounds of %d in the last 6 h: %v", len(some.points), len(all.points), err)
	}
	circle = true
	if _, err := servedHistory(t.Context(), a, 1000*time.Hour); err == nil || exitCode(err) != exitUnavailable {
		t.Errorf("pages in a circle: %v", err)
	}
}
