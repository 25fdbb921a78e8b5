package attest_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"bulla/attest"
	"bulla/record"
)

// docs/formats.md must be what it says it is: its examples are of one seal that a TPM made, over the checkpoint that it shows.
func TestDocumentedSeals(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../docs/formats.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := map[string][]byte{}
	for _, b := range regexp.MustCompile("(?ms)^```([^\n]+)\n(.*?\n)```$").FindAllSubmatch(text, -1) {
		if b := b; string(b[1]) != "checkpoint" && string(b[1]) != "sh seal" {
			blocks[string(b[1])] = regexp.MustCompile(`\n *`).ReplaceAll(b[2], nil)
		} else {
			blocks[string(b[1])] = b[2]
		}
	}
	var e attest.Enrolment
	if err := record.UnmarshalCanonical(blocks["enrolment"], &e); err != nil {
		t.Fatal(err)
	}
	s, err := attest.ParseSeal(blocks["seal"])
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(s.Statement, blocks["statement"]) {
		t.Error("the seal has another statement than the one shown")
	}
	st, err := attest.ParseStatement(s.Statement)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := record.MarshalCanonical(st.Logs); err != nil || !bytes.Equal(b, blocks["heads"]) {
		t.Errorf("the statement has the heads %s (%v)", b, err)
	}
	for _, of := range []string{"heads", "statement"} {
		if sum := sha256.Sum256(blocks[of]); hex.EncodeToString(sum[:]) != string(blocks[of+"-hash"]) {
			t.Errorf("the hash of the %s is %x", of, sum)
		}
	}
	checkpoint, _, _ := bytes.Cut(blocks["checkpoint"], []byte("\n\n"))
	c, err := record.ParseCheckpoint(string(checkpoint) + "\n")
	if err != nil {
		t.Fatal(err)
	}
	r, err := attest.NewReplay(e, c.Origin, func(size uint64) (record.Hash, bool) {
		return sha256.Sum256([]byte(c.Text())), size == c.Size
	})
	if err != nil {
		t.Fatal(err)
	}
	if f := r.Next(blocks["seal"]); f != nil {
		t.Errorf("the seal violates %v", f)
	}

	var lines strings.Builder
	for _, c := range s.Commands() {
		fmt.Fprintf(&lines, "# %s\n%s\n", c.Shows, c.Line)
	}
	if got := string(blocks["sh seal"]); got != lines.String() {
		t.Errorf("the commands are\n%s", lines.String())
	}
	var rules strings.Builder
	for _, name := range slices.Sorted(maps.Keys(attest.Rules)) {
		fmt.Fprintf(&rules, "| `%s` | %s |\n", name, attest.Rules[name])
	}
	if !bytes.Contains(text, []byte("| rule | violated, it means |\n|---|---|\n"+rules.String()+"\n")) {
		t.Errorf("the rules are\n%s", rules.String())
	}
	var answers strings.Builder
	for _, name := range slices.Sorted(maps.Keys(attest.ChallengeRules)) {
		fmt.Fprintf(&answers, "| `%s` | %s |\n", name, attest.ChallengeRules[name])
	}
	if !bytes.Contains(text, []byte("| rule | violated, it means |\n|---|---|\n"+answers.String()+"\n")) {
		t.Errorf("the rules of answers are\n%s", answers.String())
	}
	if a, err := attest.ParseActivation(blocks["activation"]); err != nil || a.Proves() != nil {
		t.Errorf("the transcript of an activation: %v, %+v", err, a)
	}
	files, err := s.Files(&e)
	if err != nil {
		t.Fatal(err)
	}
	for name := range files {
		if !bytes.Contains(text, []byte("`"+name+"`")) {
			t.Errorf("the file %s is not documented", name)
		}
	}
}
