package api

import (
	"crypto/sha256"
	"os"
	"regexp"
	"strings"
	"testing"

	"bulla/record"
)

// The examples of frames in docs/formats.md are what the parsers take.
func TestFormatsExamples(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("../docs/formats.md")
	if err != nil {
		t.Fatal(err)
	}
	examples := func(tag string, least int) [][]byte {
		var out [][]byte
		for _, m := range regexp.MustCompile("(?s)```"+tag+"\n(.*?)\n```").FindAllStringSubmatch(string(b), -1) {
			out = append(out, []byte(m[1]))
		}
		if len(out) < least {
			t.Fatalf("%d examples of %s, want %d", len(out), tag, least)
		}
		return out
	}
	hellos := examples("hello", 2)
	for _, h := range hellos {
		if _, err := parseHello(h); err != nil {
			t.Errorf("%s: %v", h, err)
		}
	}
	if !strings.Contains(string(b), "`00 00 00 38` and those 56 bytes") || len(hellos[0]) != 0x38 {
		t.Errorf("the first hello has %d bytes", len(hellos[0]))
	}
	for _, r := range examples("request", 1) {
		if q, err := ParseRequest(r); err != nil || len(q.Events) != 1 || q.Want != WantAck {
			t.Errorf("%s: %v", r, err)
		}
	}
	statuses := map[string]bool{}
	for _, x := range examples("answer", 4) {
		a, err := parseAnswer(x)
		if err != nil {
			t.Errorf("%s: %v", x, err)
			continue
		}
		statuses[a.Status] = true
		for _, it := range a.Items {
			if it.Entry == nil {
				continue
			}
			e, err := record.ParseEntry(it.Entry)
			if err != nil || e.Index != it.Index {
				t.Errorf("the entry of the example: %v", err)
			}
			if leaf := record.LeafHash(it.Entry); leaf != sha256.Sum256(append([]byte{0}, it.Entry...)) {
				t.Error("leaf hash")
			}
		}
	}
	if len(statuses) != 3 {
		t.Errorf("examples of %v only", statuses)
	}
}
