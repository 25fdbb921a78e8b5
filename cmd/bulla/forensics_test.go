package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The commands of docs/forensics.md do what they are said to, one after the other.
func TestForensicsDocument(t *testing.T) {
	text, err := os.ReadFile("../../docs/forensics.md")
	if err != nil {
		t.Fatal(err)
	}
	commands := documented(t, string(text))
	if len(commands) < 10 {
		t.Fatalf("only %d commands", len(commands))
	}
	dir, err := os.MkdirTemp("", "bulla") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	stop, err := serve(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	}()
	t.Setenv("BULLA_SOCKET", filepath.Join(dir, "sign.sock"))
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	t.Chdir(t.TempDir())
	for name, content := range map[string]string{
		"classes": "auth.login 3002 1\n",
		"events":  `{"type":"auth.login","actor":{"name":"alice"},"session_id":"s-77","transaction_id":"t-9","src":{"ip":"192.0.2.7"},"outcome":"failure","data":{"m":"publickey"}}` + "\n",
	} {
		if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"web", "db"} {
		(&madeLog{origin: name + ".example/audit", start: logStart, bound: 1_840_211, n: 9, event: func(dst []byte, i uint64) []byte {
			return append(dst, `{"session_id":"s-77","trace_id":"4bf92f3577b34da6a3ce929d0e0e4736","type":"http.post"}`...)
		}}).write(t, name)
	}
	before := [][]string{{"append", "events"}, {"list", "--purpose", "case 4711"}, {"export", "--out", "evidence"}, {"policy", "init", "--out", "auditor.policy"}}
	for _, args := range append(before, commands...) {
		var out, errOut bytes.Buffer
		code := run(args, strings.NewReader(""), &out, &errOut)
		if args[0] == "policy" { // this log's time was not measured
			if err := appendLine("auditor.policy", "time none"); err != nil {
				t.Fatal(err)
			}
		}
		if code != exitOK {
			t.Errorf("bulla %s: exit %d\n%s%s", strings.Join(args, " "), code, out.String(), errOut.String())
		}
		if text := out.String(); (args[0] == "search" || args[0] == "timeline") && !strings.Contains(text, "s-77") && !strings.Contains(text, "case 4711") {
			t.Errorf("bulla %s finds nothing\n%s", strings.Join(args, " "), text)
		}
	}
	if _, err := os.Stat("timeline.svg"); err != nil {
		t.Error(err)
	}
}

func appendLine(path, line string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, line+"\n"...), 0o644)
}

// documented are the commands of a document's sh blocks, in words. They use of the shell's language no more than single quotes.
func documented(t *testing.T, text string) (commands [][]string) {
	t.Helper()
	for i, block := range strings.Split(text, "```sh\n") {
		if i == 0 {
			continue
		}
		block, _, _ = strings.Cut(block, "```")
		for line := range strings.Lines(block) {
			var words []string
			for j, part := range strings.Split(strings.TrimSpace(line), "'") {
				if j%2 == 1 {
					words = append(words, part)
				} else {
					words = append(words, strings.Fields(part)...)
				}
			}
			if len(words) < 2 || words[0] != "bulla" || strings.ContainsAny(line, "|>$\"") {
				t.Fatalf("%q is not a plain command", line)
			}
			commands = append(commands, words[1:])
		}
	}
	return commands
}
