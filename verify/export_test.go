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
	commandsOf(t, path)
}

// commandsOf runs the commands of an export's README: those of a person who has only standard tools.
func commandsOf(t *testing.T, path string) {
	t.Helper()
	readme, err := os.ReadFile(filepath.Join(path, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	policy := readVector(t, "policy")
	for block, shows := range map[string]string{"genesis": "", "checkpoint": "Verified OK", "seal": "Verified OK"} {
		_, rest, ok := strings.Cut(string(readme), "```sh "+block+"\n")
		script, _, end := strings.Cut(rest, "\n```\n")
		if !ok || !end {
			t.Fatalf("the README has no block %s", block)
		}
		cmd := exec.Command("bash", "-c", script)
		cmd.Dir = path
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), shows) {
			t.Errorf("%s: %v\n%s\n%s", block, err, script, out)
		}
		if block == "genesis" && !bytes.Contains(policy, out[:64]) {
			t.Errorf("the genesis hash is %s, the policy has\n%s", out, policy)
		}
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
