package main

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"bulla/api"
	"bulla/ceremony"
	"bulla/record"
)

// An appliance is not believed. Whatever it changes in what it says of the log is found, and nothing is signed on it.
func TestApplianceIsNotBelieved(t *testing.T) {
	t.Parallel()
	c := newCouncil(t).begin()
	c.propose(500)
	c.ok("approve", "1", "--as", "bob")
	c.ok("enact", "1")
	c.propose(600)

	forged, err := newGovernedLog(0, c.log.state.Policy.Officers...)
	if err != nil {
		t.Fatal(err)
	}
	stranger, _, err := p256()
	if err != nil {
		t.Fatal(err)
	}
	log := c.log
	governance := func(change func(lines [][]byte) [][]byte) func(string, []byte) []byte {
		return func(path string, b []byte) []byte {
			if path == "/logs/log/v1/governance" {
				return bytes.Join(change(bytes.SplitAfter(b, []byte("\n"))), nil)
			}
			return b
		}
	}
	of := func(path string, change func(b []byte) []byte) func(string, []byte) []byte {
		return func(p string, b []byte) []byte {
			if strings.HasPrefix(p, "/logs/log/"+path) {
				return change(bytes.Clone(b))
			}
			return b
		}
	}
	for _, f := range []struct {
		name   string
		why    string
		tamper func(path string, b []byte) []byte
	}{
		{"the genesis changed", "it approves another genesis than this log's", governance(func(l [][]byte) [][]byte {
			l[0] = bytes.Replace(l[0], []byte(`"software":"test"`), []byte(`"software":"tesu"`), 1)
			return l
		})},
		{"a time changed", "entry 6 is not the one that the log's head covers", governance(func(l [][]byte) [][]byte {
			l[5] = bytes.Replace(l[5], []byte(`"bound":2000000`), []byte(`"bound":1000000`), 1)
			return l
		})},
		{"an approval left out", "threshold: proposal 1 has 1 of 2 approvals", governance(func(l [][]byte) [][]byte { return append(l[:4:4], l[5:]...) })},
		{"an enactment left out", "state: it was made against state", governance(func(l [][]byte) [][]byte { return append(l[:5:5], l[6:]...) })},
		{"the genesis left out", "entry 1 comes first: there is no genesis", governance(func(l [][]byte) [][]byte { return l[1:] })},
		{"an entry twice", "was added before", governance(func(l [][]byte) [][]byte { return append(l[:2:2], l[1:]...) })},
		{"nothing", "there is no genesis", governance(func([][]byte) [][]byte { return nil })},
		{"what is no entry", "what governs the log does not hold", governance(func([][]byte) [][]byte { return [][]byte{[]byte("{}\n")} })},
		{"another genesis", "is not the one that the log's head covers", governance(func(l [][]byte) [][]byte {
			return [][]byte{forged.entries[0], []byte("\n")}
		})},
		{"a head that a stranger signed", "the log's head is not signed by the key that governs it", of("checkpoint", func([]byte) []byte {
			b, err := log.checkpoint(stranger)
			if err != nil {
				t.Error(err)
			}
			return b
		})},
		{"a head with another root", "does not hold", of("checkpoint", func(b []byte) []byte {
			lines := strings.SplitAfter(string(b), "\n")
			lines[2] = record.Hash{1}.String() + "\n"
			return []byte(strings.Join(lines, ""))
		})},
		{"a shorter head", "is not under the head, of 3 entries", of("checkpoint", func(b []byte) []byte {
			return bytes.Replace(b, []byte("\n8\n"), []byte("\n3\n"), 1)
		})},
		{"no head", "the log's head: ", of("checkpoint", func([]byte) []byte { return []byte("well\n") })},
		{"other tiles", "does not hold", of("tile/", func(b []byte) []byte { b[0] ^= 1; return b })},
	} {
		log.tamper = f.tamper
		posts := log.posts
		for _, args := range [][]string{{"list"}, {"show", "2"}, {"minutes", "1"}, {"approve", "2", "--as", "bob"}, {"enact", "2"}} {
			code, out, errOut := c.bulla(args...)
			if code != exitTampered || !strings.Contains(errOut, f.why) || out != "" {
				t.Errorf("%s: bulla ceremony %s exits with %d: %s%s", f.name, args, code, errOut, out)
			}
		}
		if log.posts != posts {
			t.Errorf("%s: something was sent", f.name)
		}
	}
	// What is missing, and says nothing against anybody.
	log.tamper = of("tile/", func(b []byte) []byte { return b[:len(b)-1] })
	c.fails(exitNotCheckable, []string{"it has not"}, "list")
	log.tamper = nil
	c.ok("list")
}

// A key that is changed between two answers is no contradiction: the appliance is asked again.
func TestRotationWhileReading(t *testing.T) {
	t.Parallel()
	c := newCouncil(t).begin()
	c.ok("propose", "key.generate", "--purpose", "log", "--as", "bob")
	c.ok("approve", "1", "--as", "carol")
	c.ok("enact", "1")
	c.ok("propose", "key.rotate", "--as", "bob")
	c.ok("approve", "2", "--as", "carol")
	rotated := false
	c.log.tamper = func(path string, b []byte) []byte {
		if path != "/logs/log/v1/governance" || rotated {
			return b
		}
		rotated = true
		p := c.log.state.Open()[0]
		if _, err := c.log.enact(p.Proposal.Number, &api.Enact{Document: p.Hash}); err != nil {
			t.Error(err)
		}
		return b
	}
	if out := c.ok("list"); !rotated || !strings.Contains(out, "enacted at entry") {
		t.Error(out)
	}
}

// Damage in an export is found too.
func TestDamagedExportIsNotBelieved(t *testing.T) {
	t.Parallel()
	c := newCouncil(t).begin()
	c.propose(500)
	c.ok("approve", "1", "--as", "bob")
	c.ok("enact", "1")
	for _, d := range []struct {
		name string
		code int
		why  string
		do   func(dir string) error
	}{
		{"whole", exitOK, "", func(string) error { return nil }},
		{"altered", exitTampered, "entry 6 is not the one that the log's head covers", replaceIn("tile/entries/000.p/7", `"offset":0,"round":1,"state":"synced"},"index":6`, `"offset":1,"round":1,"state":"synced"},"index":6`)},
		{"no entry", exitTampered, "bulla verify says more", replaceIn("tile/entries/000.p/7", `"kind":"genesis"`, `"kind":"genetic"`)},
		{"without entries", exitNotCheckable, "is missing", func(dir string) error { return os.RemoveAll(filepath.Join(dir, "tile", "entries")) }},
		{"without tiles", exitNotCheckable, "reading tile/0/", func(dir string) error { return os.RemoveAll(filepath.Join(dir, "tile", "0")) }},
		{"another key", exitTampered, "not signed by the key that governs it", func(dir string) error {
			key, _, err := p256()
			if err != nil {
				return err
			}
			b, err := c.log.checkpoint(key)
			return errors.Join(err, os.WriteFile(filepath.Join(dir, "checkpoint"), b, 0o644))
		}},
		{"without a head", exitNotCheckable, "checkpoint", func(dir string) error { return os.Remove(filepath.Join(dir, "checkpoint")) }},
	} {
		dir := c.path("evidence " + d.name)
		if err := errors.Join(c.log.export(dir), d.do(dir)); err != nil {
			t.Fatal(err)
		}
		c.fails(d.code, []string{d.why}, "list", "--export", dir)
	}
}

func replaceIn(name, old, with string) func(dir string) error {
	return func(dir string) error {
		path := filepath.Join(dir, filepath.FromSlash(name))
		b, err := os.ReadFile(path)
		if err == nil && !bytes.Contains(b, []byte(old)) {
			err = fs.ErrNotExist
		}
		return errors.Join(err, os.WriteFile(path, bytes.Replace(b, []byte(old), []byte(with), 1), 0o644))
	}
}

// What waits outside the log is shown as far as the log would take it; what it would not take is said.
func TestWhatWaitsIsChecked(t *testing.T) {
	t.Parallel()
	c := newCouncil(t).begin()
	c.log.rolled = true
	c.ok("propose", "recovery.declare", "--reason", "disk lost", "--as", "alice")
	c.ok("propose", "recovery.declare", "--reason", "another disk lost", "--as", "bob")
	c.ok("approve", "2", "--as", "carol")
	if out := c.ok("show", "2"); !strings.Contains(out, "another disk lost") || !strings.Contains(out, "approved by bob, carol: 2 of 2 needed") || strings.Contains(out, "missing:") {
		t.Error(out)
	}
	if out := c.ok("show", "1"); !strings.Contains(out, "approved by alice: 1 of 2 needed") {
		t.Error(out)
	}
	c.log.waiting.Decisions[0].Officer = "alice" // as if a signature of carol's were alice's
	out := c.ok("show", "2")
	if !strings.Contains(out, "approved by bob: 1 of 2 needed") || !strings.Contains(out, "note: something waits outside the log, which would not take it: ") || !strings.Contains(out, "key: signed by the key") {
		t.Error(out)
	}
}

// Text of others is shown so that it cannot pretend to be something else, and stays JSON of the same meaning.
func TestLegible(t *testing.T) {
	t.Parallel()
	text := "a\u202eb\u0007\U000e0041\\n\"\u00a0\ufffd é漢"
	b, err := record.MarshalCanonical(map[string]string{"reason": text})
	if err != nil {
		t.Fatal(err)
	}
	shown := legible(b)
	if want := "{\n  \"reason\": \"a\\u202eb\\u0007\\udb40\\udc41\\\\n\\\"\\u00a0\\ufffd é漢\"\n}"; shown != want {
		t.Errorf("%s", shown)
	}
	again, err := record.Canonicalize([]byte(shown), record.MaxDepth)
	if err != nil || !bytes.Equal(again, b) {
		t.Errorf("%s %v", again, err)
	}
	for _, c := range []struct{ name, text string }{{"no JSON", "\x1b[2J"}, {"a document", ""}} {
		if c.text == "" {
			c.text = string(b)
		}
		for _, r := range legible([]byte(c.text)) {
			if r != '\n' && (r < ' ' || r == '\u202e') {
				t.Errorf("%s: %q is shown", c.name, r)
			}
		}
	}
}

// A document of another log is shown as that, and not signed.
func TestDocumentOfAnotherLog(t *testing.T) {
	t.Parallel()
	c := newCouncil(t).begin()
	other, err := ceremony.GenesisDocument("other.example/audit", record.Hash{1})
	if err != nil {
		t.Fatal(err)
	}
	fork, err := ceremony.GenesisDocument(governedOrigin, record.Hash{1})
	if err != nil {
		t.Fatal(err)
	}
	for name, document := range map[string][]byte{"other.json": other, "fork.json": fork} {
		if err := os.WriteFile(c.path(name), document, 0o644); err != nil {
			t.Fatal(err)
		}
		c.fails(exitUsage, []string{"the document is not for this log"}, "approve", c.path(name), "--as", "carol")
	}
	if out := c.ok("show", c.path("other.json")); !strings.Contains(out, "note: it is for another log than this, governed.example/audit") {
		t.Error(out)
	}
	if out := c.ok("show", c.path("fork.json")); !strings.Contains(out, "note: it approves another genesis than this log's, whose leaf hash is ") {
		t.Error(out)
	}
	// A proposal against a state that is not in force any more.
	c.propose(500, "--offline", "--out", c.path("late.json"))
	c.propose(600)
	c.ok("approve", "1", "--as", "bob")
	c.ok("enact", "1")
	if out := c.ok("show", c.path("late.json")); !strings.Contains(out, "missing: the log does not have it, and would refuse it: number: ") || strings.Contains(out, "what it changes") {
		t.Error(out)
	}
	c.fails(exitUnavailable, []string{"number: "}, "propose", "--document", c.path("late.json"), "--signature", c.path("late.json.sig"))
}

// A proposal that is made and signed offline is brought by anybody, and is the same.
func TestProposeOffline(t *testing.T) {
	t.Parallel()
	c := newCouncil(t).begin()
	if err := c.log.export(c.path("evidence")); err != nil {
		t.Fatal(err)
	}
	posts := c.log.posts
	out := c.propose(500, "--offline", "--out", c.path("p.json"), "--export", c.path("evidence"))
	if !strings.Contains(out, "bring it with: bulla ceremony propose --document ") || c.log.posts != posts {
		t.Error(out)
	}
	if out := c.ok("show", c.path("p.json")); !strings.Contains(out, "missing: the log does not have it: it must be proposed first") || !strings.Contains(out, "quotas.streams: 0 becomes 500") {
		t.Error(out)
	}
	c.ok("propose", "--document", c.path("p.json"), "--signature", c.path("p.json.sig"))
	document, err := os.ReadFile(c.path("p.json"))
	if open := c.log.state.Open(); err != nil || len(open) != 1 || !bytes.Equal(open[0].Document, document) {
		t.Errorf("%v %v", open, err)
	}
	o, _ := c.log.state.Policy.Officer("alice")
	sig, err := os.ReadFile(c.path("p.json.sig"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := o.Check(document, ceremony.Approve, string(sig)); err != nil {
		t.Error(err)
	}
	document[len(document)-2] ^= 1
	if err := os.WriteFile(c.path("altered.json"), document, 0o644); err != nil {
		t.Fatal(err)
	}
	c.fails(exitUsage, []string{"not the exact bytes of a document"}, "propose", "--document", c.path("altered.json"), "--signature", c.path("p.json.sig"))
}
