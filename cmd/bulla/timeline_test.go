package main

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"bulla/clock"
)

// placed is a line of a timeline as NDJSON.
type placed struct {
	Log              string
	Index, Group     uint64
	Ordered          bool
	Earliest, Latest string
}

// timelineOf runs the command and reads its lines.
func timelineOf(t *testing.T, args ...string) (lines []placed) {
	t.Helper()
	var out, errOut bytes.Buffer
	if code := run(append([]string{"timeline", "--format", "ndjson"}, args...), strings.NewReader(""), &out, &errOut); code != exitOK {
		t.Fatalf("exit %d: %s", code, errOut.String())
	}
	for line := range bytes.Lines(out.Bytes()) {
		var s placed
		if err := json.Unmarshal(line, &s); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		lines = append(lines, s)
	}
	return lines
}

// brief is a timeline in a few words: log and index of each entry, ~ where its order is not known, | between groups.
func brief(lines []placed) string {
	var out strings.Builder
	for i, l := range lines {
		switch {
		case i > 0 && l.Group != lines[i-1].Group:
			out.WriteString(" | ")
		case i > 0:
			out.WriteString(" ")
		}
		if !l.Ordered {
			out.WriteString("~")
		}
		fmt.Fprintf(&out, "%s%d", l.Log[len(l.Log)-1:], l.Index)
	}
	return out.String()
}

// stamps makes a log of which entry i was received at[i], ms after the start of all logs, sure within bound[i] ms; below 0: not known.
func stamps(t *testing.T, name string, at, bound []int64) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), name)
	m := &madeLog{
		origin: "test.example/" + name, n: uint64(len(at)),
		event: func(dst []byte, i uint64) []byte {
			return fmt.Appendf(dst, `{"session_id":"s-%d","type":"step.%s"}`, i%2, name)
		},
		stamp: func(i uint64) clock.Stamp {
			// The system's clock is an hour slow; that must not matter.
			s := clock.Stamp{Sys: logStart + at[i]*1_000_000 - 3600_000_000_000, Offset: 3600_000_000_000, Bound: bound[i] * 1_000_000, Round: 1, Epoch: 1, State: clock.Synced, HasEstimate: true}
			if bound[i] < 0 {
				return clock.Stamp{Sys: s.Sys, Epoch: 1}
			}
			return s
		},
	}
	m.write(t, dir)
	return dir
}

func TestTimelineOrders(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name           string
		a, abound      []int64
		b, bbound      []int64
		want           string
		filter, wanted string
	}{
		{"apart", []int64{0, 10, 20}, []int64{1, 1, 1}, []int64{5, 15, 25}, []int64{1, 1, 1},
			"a0 | b0 | a1 | b1 | a2 | b2", "s-0", "a0 | b0 | a2 | b2"},
		{"some overlap", []int64{0, 10, 20}, []int64{1, 1, 1}, []int64{11, 30}, []int64{1, 1},
			"a0 | ~a1 ~b0 | a2 | b1", "s-1", "a1 | b1"},
		{"touching is not apart", []int64{0}, []int64{1}, []int64{2}, []int64{1}, "~a0 ~b0", "s-0", "~a0 ~b0"},
		{"wide one", []int64{10}, []int64{100}, []int64{0, 10, 20, 200}, []int64{1, 1, 1, 1}, "~a0 ~b0 ~b1 ~b2 | b3", "s-0", "~a0 ~b0 ~b2"},
		{"in one log, the log's order", []int64{0, 0, 0}, []int64{5, 5, 5}, []int64{100}, []int64{1}, "a0 | a1 | a2 | b0", "s-0", "a0 | a2 | b0"},
		{"an estimate that gets worse does not turn the log round", []int64{0, 1, 2}, []int64{1, 50, 1}, []int64{100}, []int64{1}, "a0 | a1 | a2 | b0", "s-0", "a0 | a2 | b0"},
		{"without an estimate, between its neighbours", []int64{0, 1, 2}, []int64{1, -1, 1}, []int64{10}, []int64{1}, "a0 | a1 | a2 | b0", "s-1", "a1"},
		{"first of its log without an estimate", []int64{0, 5}, []int64{-1, 1}, []int64{1, 10}, []int64{1, 1}, "~a0 ~b0 | a1 | b1", "s-1", "a1 | b1"},
		{"last of its log without an estimate", []int64{0, 5}, []int64{1, -1}, []int64{3, 10}, []int64{1, 1}, "a0 | ~a1 ~b0 ~b1", "s-0", "a0 | b0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			a, b := stamps(t, "a", c.a, c.abound), stamps(t, "b", c.b, c.bbound)
			if got := brief(timelineOf(t, a, b)); got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
			if got := brief(timelineOf(t, a, b, "--session", c.filter)); got != c.wanted {
				t.Errorf("%s: %s, want %s", c.filter, got, c.wanted)
			}
		})
	}
}

// Whatever the intervals are: the logs' own order is kept, what is apart is in order, and exactly what overlaps is marked.
func TestTimelineIsSound(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(3, 4))
	for range 30 {
		var paths []string
		for _, name := range []string{"a", "b", "c"} {
			var at, bound []int64
			for now := int64(0); len(at) < 12; {
				now += random.Int64N(30)
				at, bound = append(at, now), append(bound, random.Int64N(12)-1)
			}
			paths = append(paths, stamps(t, name, at, bound))
		}
		lines := timelineOf(t, paths...)
		if len(lines) != 36 {
			t.Fatalf("%d lines", len(lines))
		}
		before := func(x, y placed) bool { return x.Latest != "" && y.Earliest != "" && x.Latest < y.Earliest }
		for i, x := range lines {
			overlaps := false
			for j, y := range lines {
				switch {
				case i == j:
				case x.Log == y.Log:
					if (x.Index < y.Index) != (i < j) {
						t.Fatalf("%s: the order of %s is not kept", brief(lines), x.Log)
					}
				case before(x, y):
					if i > j {
						t.Fatalf("%s: %v stands behind %v", brief(lines), x, y)
					}
				case !before(y, x):
					overlaps = true
					if x.Group != y.Group {
						t.Fatalf("%s: %v and %v overlap, in different groups", brief(lines), x, y)
					}
				}
			}
			if x.Ordered == overlaps {
				t.Fatalf("%s: %v: ordered is %t", brief(lines), x, x.Ordered)
			}
		}
	}
}

func TestTimelineForms(t *testing.T) {
	t.Parallel()
	a, b := stamps(t, "a", []int64{0, 10}, []int64{1, 1}), stamps(t, "b", []int64{11, 50}, []int64{2, -1})
	svg := filepath.Join(t.TempDir(), "timeline.svg")
	var out, errOut bytes.Buffer
	if code := run([]string{"timeline", a, b, "--svg", svg}, nil, &out, &errOut); code != exitOK {
		t.Fatalf("exit %d: %s", code, errOut.String())
	}
	for _, want := range []string{
		"A  test.example/a (" + a + ")\n", "      1   A          0  2026-11-23T01:40:00.000000000Z  ±1 ms      uid=1000   step.a session=s-0\n",
		"      2 ~ A          1  2026-11-23T01:40:00.010000000Z  ±1 ms ", "      2 ~ B          0  2026-11-23T01:40:00.011000000Z  ±2 ms ",
		" B          1  2026-11-23T00:40:00.050000000Z  unknown ",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in\n%s", want, out.String())
		}
	}
	picture, err := os.ReadFile(svg)
	if err != nil {
		t.Fatal(err)
	}
	for d := xml.NewDecoder(bytes.NewReader(picture)); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if got := bytes.Count(picture, []byte("<title>")); got != 4 {
		t.Errorf("%d entries are drawn", got)
	}
	if got := bytes.Count(picture, []byte(`height="34.0" fill="url(#h)"/>`)); got != 3 {
		t.Errorf("%d entries are drawn as not ordered", got)
	}
	out.Reset()
	if code := run([]string{"timeline", a, b, "--svg", svg}, nil, &out, &errOut); code != exitUsage || out.Len() > 0 || !strings.Contains(errOut.String(), "timeline.svg exists") {
		t.Fatalf("exit %d, %d bytes: %s", code, out.Len(), errOut.String())
	}
	if code := run([]string{"timeline", a, b, "--format", "csv", "--limit", "3"}, nil, &out, &errOut); code != exitOK || !strings.Contains(errOut.String(), "more entries than --limit 3") {
		t.Fatalf("exit %d: %s", code, errOut.String())
	}
	rows, err := csv.NewReader(&out).ReadAll()
	if err != nil || len(rows) != 4 || rows[0][0] != "group" || rows[3][0] != "2" || rows[3][1] != "false" || rows[3][2] != "test.example/b" {
		t.Errorf("%v %v", rows, err)
	}
}
