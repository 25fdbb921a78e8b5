package main

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// sealedExport is real evidence: two boots of an appliance, five seals.
const sealedExport = "../../testdata/vectors/verify/sealed"

func runTool(t *testing.T, args ...string) (out, said string, code int) {
	t.Helper()
	var o, e bytes.Buffer
	code = run(args, strings.NewReader(""), &o, &e)
	return o.String(), e.String(), code
}

func TestSealsOfAnExport(t *testing.T) {
	t.Parallel()
	out, said, code := runTool(t, "seal", "list", sealedExport, "--json")
	var seals []sealLine
	if err := json.Unmarshal([]byte(out), &seals); err != nil || code != exitOK {
		t.Fatalf("exit code %d, %v: %s", code, err, said)
	}
	if len(seals) != 5 {
		t.Fatalf("%d seals", len(seals))
	}
	for i, l := range seals {
		if l.Number != uint64(i+1) || l.Size > l.Index || l.Time.IsZero() || i > 0 && (l.Boot < seals[i-1].Boot || l.Counter < seals[i-1].Counter) {
			t.Errorf("seal %+v", l)
		}
	}
	if seals[4].Boot == seals[0].Boot {
		t.Error("there is one boot, not two")
	}
	if out, _, code = runTool(t, "seal", "list", sealedExport); code != exitOK || strings.Count(out, "\n") != 6 || !strings.Contains(out, "start") {
		t.Errorf("exit code %d: %s", code, out)
	}
	out, _, code = runTool(t, "seal", "list", sealedExport, "--plot", "-")
	if code != exitOK || !strings.Contains(out, "boots    A") || !strings.Contains(out, "B") || !strings.Contains(out, "  none\n") || !strings.Contains(out, " 5 seals") {
		t.Errorf("exit code %d:\n%s", code, out)
	}
	path := filepath.Join(t.TempDir(), "seals.svg")
	if _, said, code = runTool(t, "seal", "list", sealedExport, "--plot", path); code != exitOK || !strings.Contains(said, "5 seals, 2 boots, 0 gaps") {
		t.Errorf("exit code %d: %s", code, said)
	}
	svg, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	readSVG(t, svg)
	if _, said, code = runTool(t, "seal", "list", sealedExport, "--plot", path); code != exitUsage || !strings.Contains(said, "seals.svg exists") {
		t.Errorf("a picture over another file: exit code %d: %s", code, said)
	}
	if _, _, code = runTool(t, "seal", "list", sealedExport, "--last", "1ns"); code != exitOK {
		t.Errorf("exit code %d", code)
	}
	for _, wrong := range [][]string{{"seal", "list", t.TempDir()}, {"seal", "list", "/nonexistent"}, {"seal", "list", sealedExport, "--last", "-1s"}} {
		if _, _, code = runTool(t, wrong...); code == exitOK {
			t.Errorf("%v: accepted", wrong)
		}
	}
}

// readSVG reads a picture as XML: how many elements of each kind it has, and its text.
func readSVG(t *testing.T, svg []byte) (elements map[string]int, text string) {
	t.Helper()
	elements = map[string]int{}
	for d := xml.NewDecoder(bytes.NewReader(svg)); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return elements, text
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
}

// sealStory is a week in short: a boot, a day without the machine, another boot, an abandoned seal, a challenge, a stop.
func sealStory() *sealHistory {
	h := &sealHistory{origin: "test.example/<seals>&", quiet: 10*time.Minute + 10*time.Second}
	at := time.Date(2026, 11, 23, 1, 0, 0, 0, time.UTC)
	add := func(reason string, boot uint32, later time.Duration, counts bool, entries uint64) *sealLine {
		at = at.Add(later)
		l := sealLine{Number: uint64(len(h.seals) + 1), Time: at, Reason: reason, Boot: boot, Counter: 100, Size: entries}
		if n := len(h.seals); n > 0 {
			l.Counter, l.Size = h.seals[n-1].Counter, h.seals[n-1].Size+entries
		}
		if counts {
			l.Counter++
		}
		h.seals = append(h.seals, l)
		return &h.seals[len(h.seals)-1]
	}
	add("start", 7, 0, true, 3)
	for i := range 60 {
		add("interval", 7, 5*time.Minute, i%2 == 0, uint64(40+i))
	}
	add("stop", 7, time.Minute, true, 1)
	add("start", 8, 9*time.Hour, true, 2).Abandoned = 1
	for i := range 40 {
		add("interval", 8, 5*time.Minute, i%2 == 0, uint64(400-i))
	}
	add("challenge", 8, time.Minute, false, 1)
	for i := range 20 {
		add("interval", 8, 5*time.Minute, i%2 == 0, 5)
	}
	return h
}

func TestSealPicture(t *testing.T) {
	t.Parallel()
	h := sealStory()
	elements, text := readSVG(t, sealSVG(h))
	for _, want := range []string{"Seals of test.example/<seals>&", "boot 7", "boot 8", "no seal for 9h0m0s", "1 abandoned", "Entries sealed", "TPM counter", "first of a start", "no seal for longer than 10m10s"} {
		if !strings.Contains(text, want) {
			t.Errorf("the picture does not say %q", want)
		}
	}
	if elements["seals"] != 0 || elements["polyline"] != 2 || elements["circle"] < 100 || elements["path"] != 5 {
		t.Errorf("the picture is made of %v", elements)
	}
	if gaps := h.gaps(); len(gaps) != 1 || gaps[0].to.Sub(gaps[0].from) != 9*time.Hour {
		t.Errorf("gaps %v", gaps)
	}
	lines := sealLines(h)
	for _, want := range []string{"heads ", "counter ", "A", "BB", "2, reset counts 7 to 8", "░", "1, the longest 9h0m0s"} {
		if !strings.Contains(lines, want) {
			t.Errorf("the lines do not say %q:\n%s", want, lines)
		}
	}
	// One seal, and seals that no honest log has, are drawn too.
	one := &sealHistory{origin: "o", seals: h.seals[:1]}
	readSVG(t, sealSVG(one))
	sealLines(one)
	h.seals[0], h.seals[50] = h.seals[50], h.seals[0]
	h.seals[3].Counter, h.seals[3].Size = 1<<63, 1<<53
	readSVG(t, sealSVG(h))
	sealLines(h)
}
