package verify

import (
	"crypto/sha256"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"bulla/ceremony"
	"bulla/clock"
	"bulla/record"
)

// The examples of genesis and clock entries in docs/formats.md are what the parsers take, once their line breaks are removed.
func TestFormatsExamples(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("../docs/formats.md")
	if err != nil {
		t.Fatal(err)
	}
	example := func(tag string) []byte {
		m := regexp.MustCompile("(?s)```" + tag + "\n(.*?)```").FindStringSubmatch(string(b))
		if m == nil {
			t.Fatalf("no example of %s", tag)
		}
		return []byte(strings.ReplaceAll(strings.ReplaceAll(m[1], "\n ", ""), "\n", ""))
	}
	g, err := ceremony.ParseGenesis(example("genesis"))
	if err != nil {
		t.Error(err)
	} else if g.Origin != "bulla.example/dev" || !(ceremony.State{Policy: *g}).Roles(1001, nil).Auditor {
		t.Errorf("the example of a genesis says something else: %+v", g)
	}
	memory := example("memory")
	if m, err := ParseMemory(fmt.Appendf(memory, "\n%x\n", sha256.Sum256(memory))); err != nil || m.Seal.Counter != 2 {
		t.Errorf("the example of a memory: %+v, %v", m, err)
	}
	var e clock.Evidence
	if err := record.UnmarshalCanonical(example("clock"), &e); err != nil {
		t.Fatal(err)
	}
	if err := e.Check(); err != nil {
		t.Error(err)
	}
	// The arithmetic in the text, on the example.
	s := e.Round.Samples[0]
	theta := ((s.T2-s.T1)+(s.T3-s.T4))/2 + ((s.Before.Real-s.Before.Raw)+(s.After.Real-s.After.Raw))/2
	if rtt := (s.T4 - s.T1) - (s.T3 - s.T2); rtt != s.RTT || theta-s.Theta > 1 || s.Theta-theta > 1 {
		t.Errorf("rtt %d, theta %d; the example has %d, %d", rtt, theta, s.RTT, s.Theta)
	}
	if j := s.Judge(clock.DefaultPolicy()); j.Distance != s.Distance || j.RTT != s.RTT {
		t.Errorf("judged %+v", j)
	}
}

// Every rule is in docs/formats.md, with its claim and meaning, and no other.
func TestFormatsRules(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("../docs/formats.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, found := strings.Cut(string(b), "| rule | claim | its violation means |\n|---|---|---|\n")
	if !found {
		t.Fatal("no table of rules")
	}
	table, _, _ := strings.Cut(section, "\n\n")
	var want []string
	for _, r := range Rules() {
		want = append(want, "| `"+r.Name+"` | "+r.Claim+" | "+r.Meaning+" |")
	}
	if table != strings.Join(want, "\n") {
		t.Errorf("the table of rules is not current; it should be\n%s", strings.Join(want, "\n"))
	}
}
