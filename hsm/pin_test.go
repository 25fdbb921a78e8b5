package hsm_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"bulla/hsm"
)

// A wrong PIN reaches the token once in the life of the process, whoever asks again, and however.
func TestWrongPINIsTriedOnce(t *testing.T) {
	t.Parallel()
	if !isolated(t) {
		return
	}
	path, f := faulty(t)
	m := load(t, hsm.ModuleConfig{Path: path})
	for _, label := range []string{newToken(t), newToken(t)} {
		before := f.calls(cLogin)
		for range 5 {
			if _, err := m.Token(t.Context(), hsm.TokenConfig{Label: label, PIN: pin("wrong")}); !errors.Is(err, hsm.ErrPIN) {
				t.Fatalf("a wrong PIN: %v", err)
			}
		}
		if _, err := m.Token(t.Context(), hsm.TokenConfig{Label: label, PIN: pin(userPIN)}); !errors.Is(err, hsm.ErrPIN) {
			t.Errorf("another PIN after a wrong one: %v", err)
		}
		if n := f.calls(cLogin) - before; n != 1 {
			t.Errorf("%d logins", n)
		}
	}
}

// The PIN changes while the token is away. Nobody gets to try the old one twice.
func TestPINThatBecomesWrong(t *testing.T) {
	t.Parallel()
	if !isolated(t) {
		return
	}
	path, f := faulty(t)
	m := load(t, hsm.ModuleConfig{Path: path})
	label := newToken(t)
	tok, err := m.Token(t.Context(), hsm.TokenConfig{Label: label, PIN: pin(userPIN)})
	must(t, err)
	k := generate(t, tok, "", "log")
	run(t, "pkcs11-tool", "--module", softHSM, "--token-label", label, "--login", "--pin", userPIN, "--change-pin", "--new-pin", "another")
	before := f.calls(cLogin)
	p := press(4, k)
	f.set(cSignInit, fail, 1, pkcs11.CKR_DEVICE_REMOVED) // SoftHSM reads the new PIN after C_Initialize
	select {
	case err := <-p.unexpected:
		if !errors.Is(err, hsm.ErrPIN) {
			t.Errorf("signing: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("signing goes on")
	}
	close(p.stop)
	p.done.Wait()
	if err := sign(k); !errors.Is(err, hsm.ErrPIN) {
		t.Errorf("signing afterwards: %v", err)
	}
	if n := f.calls(cLogin) - before; n != 1 {
		t.Errorf("%d logins", n)
	}
	if h := tok.Health(); h.State != hsm.Failed || !strings.Contains(h.Error, "restart") {
		t.Errorf("health %+v", h)
	}
}

// With one try left, or none, the PIN is not risked.
func TestLastTryIsLeftToPeople(t *testing.T) {
	t.Parallel()
	if !isolated(t) {
		return
	}
	path, f := faulty(t)
	m := load(t, hsm.ModuleConfig{Path: path})
	for _, flag := range []uint64{pkcs11.CKF_USER_PIN_FINAL_TRY, pkcs11.CKF_USER_PIN_LOCKED} {
		label := newToken(t)
		f.set(cGetTokenInfo, setFlags, -1, flag)
		if _, err := m.Token(t.Context(), hsm.TokenConfig{Label: label, PIN: pin(userPIN)}); !errors.Is(err, hsm.ErrPIN) {
			t.Errorf("flag 0x%X: %v", flag, err)
		}
		f.clear()
	}
	if n := f.calls(cLogin); n != 0 {
		t.Errorf("%d logins", n)
	}
}

// C_Login says CKR_USER_ALREADY_LOGGED_IN to any PIN. At opening that proves nothing.
func TestAlreadyLoggedInIsNoProof(t *testing.T) {
	t.Parallel()
	if !isolated(t) {
		return
	}
	label := newToken(t)
	m := load(t, hsm.ModuleConfig{Path: softHSM})
	if _, err := m.Token(t.Context(), hsm.TokenConfig{Label: "none", PIN: pin("")}); !errors.Is(err, hsm.ErrNoToken) {
		t.Fatal(err) // and the new token is seen
	}
	lib, slot := saboteur(t, label)
	session, err := lib.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	must(t, err)
	must(t, lib.Login(session, pkcs11.CKU_USER, userPIN))
	if _, err := m.Token(t.Context(), hsm.TokenConfig{Label: label, PIN: pin("wrong")}); !errors.Is(err, hsm.ErrPIN) {
		t.Errorf("a wrong PIN while somebody is logged in: %v", err)
	}
}

func TestPINIsZeroed(t *testing.T) {
	t.Parallel()
	given := []byte(userPIN)
	openAs(t, hsm.TokenConfig{Label: newToken(t), PIN: func() ([]byte, error) { return given, nil }})
	if !bytes.Equal(given, make([]byte, len(given))) {
		t.Error("the PIN is still in memory after the login")
	}
}

func TestPINSourceFails(t *testing.T) {
	t.Parallel()
	if !isolated(t) {
		return
	}
	m := load(t, hsm.ModuleConfig{Path: softHSM})
	label := newToken(t)
	broken := errors.New("no file")
	for _, source := range []func() ([]byte, error){nil, pin(""), func() ([]byte, error) { return nil, broken }} {
		if tok, err := m.Token(t.Context(), hsm.TokenConfig{Label: label, PIN: source}); !errors.Is(err, hsm.ErrNoPIN) || errors.Is(err, hsm.ErrUnavailable) {
			t.Errorf("without a PIN: %v, %v", tok, err)
		}
	}
	tok, err := m.Token(t.Context(), hsm.TokenConfig{Label: label, PIN: pin(userPIN)}) // none of these was a try
	must(t, err)
	must(t, tok.Close())
}

func TestReadPIN(t *testing.T) {
	// Not parallel: it sets CREDENTIALS_DIRECTORY.
	dir := t.TempDir()
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	write := func(name, content string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		must(t, os.WriteFile(path, []byte(content), 0o600))
		must(t, os.Chmod(path, mode))
		return path
	}
	good := write("good", "1234\n", 0o600)
	for source, want := range map[string]string{
		good: "1234", "file:" + good: "1234", "file://" + good: "1234", "credential:good": "1234",
		write("read-only", "1234", 0o400):                      "1234",
		write("spaces", " 12 34 \n", 0o600):                    " 12 34 ",
		write("longest", strings.Repeat("9", 255)+"\n", 0o600): strings.Repeat("9", 255),
	} {
		if got, err := hsm.ReadPIN(source); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", source, got, err)
		}
	}
	write("group", "1234", 0o440)
	if got, err := hsm.ReadPIN("credential:group"); err != nil || string(got) != "1234" {
		t.Errorf("a credential with an ACL: %q, %v", got, err)
	}
	fifo := filepath.Join(dir, "fifo")
	must(t, syscall.Mkfifo(fifo, 0o600))
	open := write("open", "secret-1234", 0o644)
	for source, say := range map[string]string{
		open:                                 "chmod 0600 " + open,
		"credential:open":                    "chmod 0600 " + open,
		filepath.Join(dir, "group"):          "chmod 0600",
		filepath.Join(dir, "missing"):        "no such file",
		dir:                                  "not a regular file",
		fifo:                                 "not a regular file",
		write("empty", "", 0o600):            "empty",
		write("newline", "\n", 0o600):        "empty",
		write("two", "secret-1\nx\n", 0o600): "one line",
		write("crlf", "secret-1\r\n", 0o600): "one line",
		write("nul", "secret-1\x00", 0o600):  "one line",
		write("long", strings.Repeat("9", 256), 0o600):     "more than 255",
		write("endless", strings.Repeat("9", 9999), 0o600): "more than 255",
		"pin":                "absolute path",
		"":                   "absolute path",
		"file:pin":           "absolute path",
		"|cat /etc/passwd":   "absolute path",
		"credential:":        "no credential's name",
		"credential:..":      "no credential's name",
		"credential:../x":    "no credential's name",
		"credential:missing": "no such file",
	} {
		got, err := hsm.ReadPIN(source)
		if err == nil || !strings.Contains(err.Error(), say) {
			t.Errorf("%s: %q, %v; want an error that says %q", source, got, err, say)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: the PIN is in the error: %v", source, err)
		}
	}
	if os.Geteuid() == 0 {
		foreign := write("foreign", "secret-1234", 0o600)
		must(t, os.Chown(foreign, 12345, 12345))
		if _, err := hsm.ReadPIN(foreign); err == nil || !strings.Contains(err.Error(), "chown") {
			t.Errorf("another user's file: %v", err)
		}
	}
	t.Setenv("CREDENTIALS_DIRECTORY", "")
	if _, err := hsm.ReadPIN("credential:good"); err == nil || !strings.Contains(err.Error(), "LoadCredential") {
		t.Errorf("without credentials: %v", err)
	}
}
