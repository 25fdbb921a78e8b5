package softhsmtest_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bulla/hsm"
	softhsmtest "bulla/softhsm-test"
)

// The tests of tokens do not run in parallel: SoftHSM has one state a process, and some of them break it.

// open opens the token that a URI names for the time of the test.
func open(t *testing.T, uri string) (hsm.URI, *hsm.Token) {
	t.Helper()
	u, err := hsm.ParseURI(uri)
	if err != nil {
		t.Fatal(err)
	}
	m, err := hsm.Load(u.ModuleConfig())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	tok, err := m.Token(t.Context(), u.TokenConfig())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tok.Close(); err != nil {
			t.Error(err)
		}
	})
	return u, tok
}

// newKey makes the key that a URI names.
func newKey(t *testing.T, uri string) *hsm.Key {
	t.Helper()
	u, tok := open(t, uri)
	if _, err := tok.Generate(t.Context(), hsm.ECDSAP256, u.Object); err != nil {
		t.Fatal(err)
	}
	k, err := tok.Key(t.Context(), u.KeyRef())
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func signs(t *testing.T, k *hsm.Key) error {
	t.Helper()
	digest := sha256.Sum256([]byte("bulla"))
	sig, err := k.SignContext(t.Context(), digest[:], crypto.SHA256)
	if err == nil && !ecdsa.VerifyASN1(k.Public().(*ecdsa.PublicKey), digest[:], sig) {
		t.Error("the signature is bad")
	}
	return err
}

func TestTokenSigns(t *testing.T) {
	s, label := softhsmtest.HSMFor(t)
	other, otherLabel := softhsmtest.HSMFor(t)
	if s != other || label == otherLabel {
		t.Errorf("tokens %s in %s and %s in %s: want two in one directory", label, s.Dir, otherLabel, other.Dir)
	}
	if err := signs(t, newKey(t, s.URI(label, "a log"))); err != nil {
		t.Error(err)
	}
	if err := signs(t, newKey(t, other.URI(otherLabel, "a log"))); err != nil {
		t.Error(err)
	}
}

func TestTokenDirectoryGoesWithItsLastUser(t *testing.T) {
	var dir string
	t.Run("user", func(t *testing.T) {
		s, _ := softhsmtest.HSMFor(t)
		dir = s.Dir
		t.Run("another", func(t *testing.T) { softhsmtest.HSMFor(t) })
		if _, err := os.Stat(dir); err != nil {
			t.Error(err)
		}
	})
	if _, err := os.Stat(filepath.Dir(dir)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is still there: %v", dir, err)
	}
	if conf, set := os.LookupEnv("SOFTHSM2_CONF"); set {
		t.Errorf("SOFTHSM2_CONF is still %s", conf)
	}
}

func TestTokensAwayAndBack(t *testing.T) {
	s, label := softhsmtest.HSMFor(t)
	k := newKey(t, s.URI(label, "log"))
	if err := s.Back(); err == nil {
		t.Error("came back without having been away")
	}
	if err := s.Away(); err != nil {
		t.Fatal(err)
	}
	if err := s.Away(); err == nil {
		t.Error("went away twice")
	}
	if err := signs(t, k); err == nil {
		t.Error("signed while the token was away")
	}
	if err := s.Back(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "the key signs again", func() bool { return signs(t, k) == nil })
}

func TestTokenDirectoryMoved(t *testing.T) {
	dir := t.TempDir()
	s, err := softhsmtest.CreateSoftHSM(filepath.Join(dir, "a place"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Unsetenv("SOFTHSM2_CONF") })
	if _, err := s.InitToken(t.Context(), "audit"); err != nil {
		t.Fatal(err)
	}
	t.Run("before", func(t *testing.T) { newKey(t, s.URI("audit", "log")) })
	moved := filepath.Join(dir, "another place")
	if err := os.Rename(s.Dir, moved); err != nil {
		t.Fatal(err)
	}
	if _, err := softhsmtest.OpenSoftHSM(s.Dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("opened what is not there: %v", err)
	}
	if s, err = softhsmtest.OpenSoftHSM(moved); err != nil {
		t.Fatal(err)
	}
	u, tok := open(t, s.URI("audit", "log"))
	k, err := tok.Key(t.Context(), u.KeyRef())
	if err != nil {
		t.Fatal(err)
	}
	if err := signs(t, k); err != nil {
		t.Error(err)
	}
}

func TestTokenRefusals(t *testing.T) {
	s, label := softhsmtest.HSMFor(t)
	if _, err := softhsmtest.CreateSoftHSM(s.Dir); !errors.Is(err, fs.ErrExist) {
		t.Errorf("made over an existing directory: %v", err)
	}
	pinFile := filepath.Join(s.Dir, label+".pin")
	pin, err := os.ReadFile(pinFile)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(pinFile); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("PIN file: %v, %v", info.Mode(), err)
	}
	for _, label := range []string{"", ".", "..", "a/b", "../a", strings.Repeat("a", 33), label} {
		_, err := s.InitToken(t.Context(), label)
		if err == nil || strings.Contains(err.Error(), strings.TrimSpace(string(pin))) {
			t.Errorf("label %q: error %v", label, err)
		}
	}
	if now, err := os.ReadFile(pinFile); err != nil || string(now) != string(pin) {
		t.Errorf("the refusal changed the PIN file: %v", err)
	}
	// A token whose PIN file is lost keeps its label, and the attempt leaves no PIN that is not its.
	if err := os.Remove(pinFile); err != nil {
		t.Fatal(err)
	}
	if _, err := s.InitToken(t.Context(), label); err == nil {
		t.Error("made a second token of a label")
	}
	if _, err := os.Stat(pinFile); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the refusal left a PIN file: %v", err)
	}
}

func TestNSS(t *testing.T) {
	n := softhsmtest.NSSFor(t)
	if err := signs(t, newKey(t, n.URI("log"))); err != nil {
		t.Error(err)
	}
	if _, err := softhsmtest.CreateNSS(t.Context(), n.Dir); !errors.Is(err, fs.ErrExist) {
		t.Errorf("made over an existing directory: %v", err)
	}
	if again, err := softhsmtest.OpenNSS(n.Dir); err != nil || *again != *n {
		t.Errorf("opened %+v, %v", again, err)
	}
	if _, err := softhsmtest.OpenNSS(t.TempDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("opened what is not there: %v", err)
	}
}

// eventually fails the test unless ok becomes true within a time.
func eventually(t *testing.T, within time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(within); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", within, what)
		}
	}
}
