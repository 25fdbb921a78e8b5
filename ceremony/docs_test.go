package ceremony_test

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"bulla/ceremony"
	"bulla/record"
)

func formats(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("../docs/formats.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(b), "\n## Governance\n")
	if !ok {
		t.Fatal("there is no section Governance")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	return section
}

// block is what follows a fence with a tag.
func block(t *testing.T, tag string) string {
	t.Helper()
	m := regexp.MustCompile("(?s)```" + regexp.QuoteMeta(tag) + "\n(.*?)```").FindStringSubmatch(formats(t))
	if m == nil {
		t.Fatalf("no example of %s", tag)
	}
	return m[1]
}

// The examples are what the parsers take, once their line breaks are removed.
func TestDocumentedFormats(t *testing.T) {
	t.Parallel()
	example := func(tag string) []byte {
		return []byte(regexp.MustCompile(`\n *`).ReplaceAllString(block(t, tag), ""))
	}
	for tag, format := range map[string]string{"proposal": "proposal", "approval": "approval", "enactment": "enactment"} {
		in := example(tag)
		if out, err := parsers[format](in); err != nil || !bytes.Equal(out, in) {
			t.Errorf("the example of %s: %v", tag, err)
		}
	}
	if a, err := ceremony.ParseApproval(example("approval")); err != nil || a.Document != ceremony.DocumentHash(example("proposal")) {
		t.Errorf("the approval is not of the document: %v", err)
	}
	if e, err := ceremony.ParseEnactment(example("enactment")); err != nil || e.Document != ceremony.DocumentHash(example("proposal")) {
		t.Errorf("the enactment is not of the document: %v", err)
	}
	var g struct {
		Action, Log string
		Leaf        record.Hash
		V           int
	}
	genesis := example("genesis-document")
	if err := json.Unmarshal(genesis, &g); err != nil {
		t.Fatal(err)
	}
	if again, err := ceremony.GenesisDocument(g.Log, g.Leaf); err != nil || !bytes.Equal(again, genesis) {
		t.Errorf("the document of a genesis is %s, %v", again, err)
	}
}

// Every rule and every action has its row, and the limits are those of the code.
func TestDocumentedRules(t *testing.T) {
	t.Parallel()
	section := formats(t)
	source, err := os.ReadFile("refused.go")
	if err != nil {
		t.Fatal(err)
	}
	rules := regexp.MustCompile(`Rule\w+ +Rule += "(\w+)" +// (.*)`).FindAllSubmatch(source, -1)
	if len(rules) != 17 {
		t.Errorf("%d rules", len(rules))
	}
	for _, r := range rules {
		if want := "| `" + string(r[1]) + "` | " + string(r[2]) + " |"; !strings.Contains(section, want) {
			t.Errorf("there is no row %s", want)
		}
	}
	for _, a := range []string{ceremony.ActionPolicySet, ceremony.ActionOfficersSet, ceremony.ActionKeyGenerate, ceremony.ActionKeyRotate, ceremony.ActionKeyRetire,
		ceremony.ActionTPMEnrol, ceremony.ActionPCRApprove, ceremony.ActionRecoveryDeclare} {
		if !strings.Contains(section, "| `"+a+"` |") {
			t.Errorf("there is no row for %s", a)
		}
	}
	if ceremony.MaxDocument != 48<<10 || ceremony.Namespace != "ceremony@bulla" || ceremony.NamespaceReject != "ceremony-reject@bulla" {
		t.Error("docs/formats.md states other limits")
	}
}

// The script checks approvals of a log without our software, and refuses an altered one.
func TestDocumentedScript(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.begin(r.genesis())
	n := r.propose(r.policy(5))
	proposal := r.entries[len(r.entries)-1]
	for _, name := range []string{"bob", "carol"} {
		r.approve(n, name)
		approval := r.entries[len(r.entries)-1]
		if out, err := script(t, r, proposal, approval); err != nil || !strings.Contains(out, "Good") {
			t.Errorf("of %s the script says %q, %v", name, out, err)
		}
		if out, err := script(t, r, bytes.Replace(proposal, []byte(`"streams":5`), []byte(`"streams":6`), 1), approval); err == nil {
			t.Errorf("of an altered document the script says %q", out)
		}
	}
}

func script(t *testing.T, r *rig, proposal, approval []byte) (string, error) {
	t.Helper()
	dir := t.TempDir()
	for name, b := range map[string][]byte{"proposal.entry": proposal, "approval.entry": approval, "allowed_signers": r.state.Policy.AllowedSigners()} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("sh", "-ec", block(t, "sh approval"))
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	return string(out), err
}
