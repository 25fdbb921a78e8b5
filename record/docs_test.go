package record

import (
	"bytes"
	"crypto/elliptic"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"
)

// block is a fenced block of docs/formats.md; tag is what follows the fence.
type block struct{ tag, text string }

func readBlocks(t *testing.T) (blocks []block) {
	b, err := os.ReadFile("../docs/formats.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile("(?ms)^```([^\n]+)\n(.*?\n)```$").FindAllStringSubmatch(string(b), -1) {
		blocks = append(blocks, block{m[1], m[2]})
	}
	return blocks
}

// joined undoes the line breaks of an example in canonical JSON.
func joined(text string) []byte {
	return []byte(regexp.MustCompile(`\n *`).ReplaceAllString(text, ""))
}

// The examples of docs/formats.md must be what it says they are.
func TestDocumentedFormats(t *testing.T) {
	t.Parallel()
	var vs []note.Verifier
	last := make(map[string][]byte) // by tag
	blocks := readBlocks(t)
	for _, b := range blocks {
		if b.tag == "vkey" {
			v, err := NewVerifier(strings.TrimSpace(b.text))
			if err != nil {
				t.Fatal(err)
			}
			vs = append(vs, v)
			last["vkey"] = []byte(b.text)
		}
	}
	checks := map[string]func(text string){
		"canonical":         func(s string) { accepted(t, "canonical", joined(s), string(joined(s)), nil) },
		"event":             func(s string) { accepted(t, "event", joined(s), string(joined(s)), nil) },
		"system":            func(s string) { accepted(t, "system", joined(s), string(joined(s)), nil) },
		"access":            func(s string) { accepted(t, "access", joined(s), string(joined(s)), nil) },
		"blob":              func(s string) { accepted(t, "blob", joined(s), string(joined(s)), nil) },
		"token":             func(s string) { accepted(t, "token", joined(s), string(joined(s)), nil) },
		"vkey":              func(string) {},
		"event-source":      func(string) {}, // checked with the event that follows
		"refused canonical": func(s string) { refused(t, "canonical", s) },
		"refused event":     func(s string) { refused(t, "event", s) },
		"leaf": func(s string) {
			accepted(t, "entry", last["entry"], strings.TrimSpace(s), nil)
		},
		"entry": func(s string) {
			if _, err := ParseEntry(joined(s)); err != nil {
				t.Error(err)
			}
		},
		"checkpoint": func(s string) {
			text, _, _ := strings.Cut(s, "\n\n")
			accepted(t, "checkpoint", []byte(s), text+"\n", vs)
		},
		"receipt": func(s string) {
			r, err := ParseReceipt(joined(s))
			if err != nil {
				t.Fatal(err)
			}
			if _, _, err := r.Verify(vs...); err != nil || !bytes.Equal(r.Entry, last["entry"]) || string(r.Checkpoint) != string(last["checkpoint"]) {
				t.Errorf("the receipt is not for the entry and checkpoint shown: %v", err)
			}
			last["receipt proof"] = r.TLogProof()
		},
		"tlog-proof": func(s string) {
			if s != string(last["receipt proof"]) {
				t.Error("the tlog-proof is not that of the receipt")
			}
		},
		"sh receipt": func(s string) {
			checkWithStandardTools(t, s, last)
		},
	}
	seen := make(map[string]bool)
	for i, b := range blocks {
		check := checks[b.tag]
		if check == nil {
			continue // another package's
		}
		seen[b.tag] = true
		check(b.text)
		switch b.tag {
		case "checkpoint", "tlog-proof":
			last[b.tag] = []byte(b.text)
		case "event-source":
			accepted(t, "event", []byte(b.text), string(joined(blocks[i+1].text)), nil)
		default:
			last[b.tag] = joined(b.text)
		}
	}
	for tag := range checks {
		if !seen[tag] {
			t.Errorf("no example of %q", tag)
		}
	}
}

func accepted(t *testing.T, format string, in []byte, want string, vs []note.Verifier) {
	t.Helper()
	if got, err := parsers[format](in, vs); err != nil || got != want {
		t.Errorf("%s %q is read as %q, %v", format, in, got, err)
	}
}

func refused(t *testing.T, format, lines string) {
	t.Helper()
	for line := range strings.Lines(lines) {
		if out, err := parsers[format]([]byte(strings.TrimSpace(line)), nil); err == nil {
			t.Errorf("%s %q is accepted as %q", format, line, out)
		}
	}
}

// The script must accept what the document shows, every other receipt too, and nothing that was altered.
func checkWithStandardTools(t *testing.T, script string, last map[string][]byte) {
	t.Helper()
	if out, err := runScript(t, script, last["entry"], last["tlog-proof"], last["vkey"]); err != nil || strings.Count(out, "Verified OK\n") != 2 {
		t.Errorf("the script says %q, %v", out, err)
	}
	altered := bytes.Replace(last["entry"], []byte("alice"), []byte("alicf"), 1)
	if out, err := runScript(t, script, altered, last["tlog-proof"], last["vkey"]); err == nil {
		t.Errorf("of an altered entry the script says %q", out)
	}
	resized := bytes.Replace(last["tlog-proof"], []byte("\n11\n"), []byte("\n12\n"), 1)
	if out, err := runScript(t, script, last["entry"], resized, last["vkey"]); err == nil {
		t.Errorf("of an altered checkpoint the script says %q", out)
	}
	receipts, v := testLog(t, 7)
	vkey, err := VKey(v.Name(), testKey(t, elliptic.P256(), "receipt").Public())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range receipts {
		if out, err := runScript(t, script, r.Entry, r.TLogProof(), []byte(vkey)); err != nil {
			t.Errorf("entry %d of 7: the script says %q, %v", r.Index, out, err)
		}
	}
}

func runScript(t *testing.T, script string, entry, proof, vkey []byte) (string, error) {
	dir := t.TempDir()
	for name, b := range map[string][]byte{"1.entry": entry, "1.tlog-proof": proof, "log.vkey": vkey} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("sh", "-c", script)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// The table of codes and that of limits must have what the package has.
func TestDocumentedCodesAndLimits(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("../docs/formats.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []Code{CodeInvalid, CodeTooLarge, CodeForbidden, CodeConflict, CodeStale, CodeBusy, CodeClock, CodeHSM, CodeTPM, CodeDisk, CodeRollback, CodeUnsealed, CodeInternal} {
		if !c.known() || !bytes.Contains(b, []byte("| `"+string(c)+"` |")) {
			t.Errorf("code %s", c)
		}
	}
	if MaxEntry != 65535 || MaxEvent != 60_000 || MaxEventSource != 360_000 || MaxDepth != 8 || MaxID != 255 || MaxType != 255 || MaxOrigin != 255 || MaxUnit != 255 ||
		MaxString != 1024 || MaxExe != 512 || MaxCheckpoint != 256<<10 || MaxProof != 63 || MaxReceipt != 512<<10 || MaxBundle != 256 || MaxBlobPart != 32768 || MaxBlobPart*MaxBlobParts != 16<<20 || MaxMessage != 4096 {
		t.Error("docs/formats.md states other limits")
	}
}
