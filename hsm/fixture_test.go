package hsm_test

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"bulla/hsm"
)

const (
	softHSM = "/usr/lib/softhsm/libsofthsm2.so"
	userPIN = "4711-user"
	soPIN   = "0815-officer"
)

// SoftHSM reads its configuration once a process, so there is one token directory for all tests; each makes its own token in it.
func TestMain(m *testing.M) {
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	dir, err := os.MkdirTemp("", "hsm-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if err := configureSoftHSM(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// configureSoftHSM makes a configuration in dir, with its token directory, and names it to the library and its tools.
func configureSoftHSM(dir string) error {
	tokens, conf := filepath.Join(dir, "tokens"), filepath.Join(dir, "softhsm2.conf")
	if err := os.Mkdir(tokens, 0o700); err != nil {
		return err
	}
	text := "directories.tokendir = " + tokens + "\nobjectstore.backend = file\nlog.level = ERROR\nslots.removable = false\nslots.mechanisms = ALL\n"
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return err
	}
	return os.Setenv("SOFTHSM2_CONF", conf)
}

// files is held while token files change in another process, or SoftHSM is initialised: it misses a token whose files change just then.
var files sync.Mutex

// newToken makes a token with a random label.
func newToken(t testing.TB) (label string) {
	t.Helper()
	name := make([]byte, 8)
	rand.Read(name)
	label = "test-" + hex.EncodeToString(name)
	files.Lock()
	defer files.Unlock()
	run(t, "softhsm2-util", "--init-token", "--free", "--label", label, "--so-pin", soPIN, "--pin", userPIN)
	return label
}

func run(t testing.TB, name string, args ...string) []byte {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return bytes.TrimSpace(out)
}

func pin(s string) func() ([]byte, error) {
	return func() ([]byte, error) { return []byte(s), nil }
}

// load loads a module for the time of the test.
func load(t testing.TB, cfg hsm.ModuleConfig) *hsm.Module {
	t.Helper()
	m, err := hsm.Load(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

// open opens a new SoftHSM token for the time of the test.
func open(t testing.TB) *hsm.Token {
	t.Helper()
	return openAs(t, hsm.TokenConfig{Label: newToken(t), PIN: pin(userPIN)})
}

func openAs(t testing.TB, cfg hsm.TokenConfig) *hsm.Token {
	t.Helper()
	m := load(t, hsm.ModuleConfig{Path: softHSM})
	files.Lock()
	tok, err := m.Token(t.Context(), cfg)
	files.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tok.Close(); err != nil {
			t.Error(err)
		}
	})
	return tok
}

// generate makes a key and opens it.
func generate(t testing.TB, tok *hsm.Token, a hsm.Algorithm, label string) *hsm.Key {
	t.Helper()
	if _, err := tok.Generate(t.Context(), a, label); err != nil {
		t.Fatal(err)
	}
	k, err := tok.Key(t.Context(), hsm.KeyRef{Label: label})
	if err != nil {
		t.Fatal(err)
	}
	return k
}
