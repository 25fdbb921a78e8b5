package hsm_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"bulla/hsm"
)

func TestLoad(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	text := filepath.Join(dir, "text.so")
	must(t, os.WriteFile(text, []byte("no library"), 0o600))
	libc := strings.TrimSpace(string(run(t, "gcc", "-print-file-name=libm.so.6")))
	link := filepath.Join(dir, "link.so")
	must(t, os.Symlink(softHSM, link))
	for path, say := range map[string]string{
		"":                            "absolute path",
		"libsofthsm2.so":              "absolute path",
		filepath.Join(dir, "missing"): "no such file",
		text:                          "not a PKCS#11 library",
		libc:                          "not a PKCS#11 library",
	} {
		m, err := hsm.Load(hsm.ModuleConfig{Path: path})
		if err == nil || !strings.Contains(err.Error(), say) {
			t.Errorf("%s: %v, %v; want an error that says %q", path, m, err, say)
		}
	}
	a, b := load(t, hsm.ModuleConfig{Path: softHSM}), load(t, hsm.ModuleConfig{Path: link})
	if a != b {
		t.Error("one library has two modules in one process")
	}
	if _, err := hsm.Load(hsm.ModuleConfig{Path: softHSM, Init: "other"}); err == nil || !strings.Contains(err.Error(), "module-init") {
		t.Errorf("another module-init: %v", err)
	}
}

func TestTokenIsTheOneThatMatches(t *testing.T) {
	t.Parallel()
	if !isolated(t) {
		return
	}
	label := newToken(t)
	m := load(t, hsm.ModuleConfig{Path: softHSM})
	with := func(c hsm.TokenConfig) hsm.TokenConfig { c.PIN = pin(userPIN); return c }
	tok, err := m.Token(t.Context(), with(hsm.TokenConfig{Label: label}))
	must(t, err)
	info, err := tok.Info(t.Context())
	must(t, err)
	if _, err := m.Token(t.Context(), with(hsm.TokenConfig{Serial: info.Serial})); err == nil || !strings.Contains(err.Error(), "share its Token") {
		t.Errorf("opening it again: %v", err)
	}
	must(t, tok.Close())
	if err := tok.Close(); !errors.Is(err, hsm.ErrClosed) {
		t.Errorf("closing it again: %v", err)
	}
	if _, err := tok.Info(t.Context()); !errors.Is(err, hsm.ErrClosed) {
		t.Errorf("using it closed: %v", err)
	}
	tok, err = m.Token(t.Context(), with(hsm.TokenConfig{Label: label, Serial: info.Serial, Manufacturer: info.Manufacturer, Model: info.Model}))
	must(t, err)
	must(t, tok.Close())
	for name, c := range map[string]hsm.TokenConfig{
		"label": {Label: "none"}, "serial": {Label: label, Serial: "0"}, "maker": {Label: label, Manufacturer: "ACME"}, "model": {Label: label, Model: "2"},
	} {
		if _, err := m.Token(t.Context(), with(c)); !errors.Is(err, hsm.ErrNoToken) {
			t.Errorf("another %s: %v", name, err)
		}
	}
	run(t, "softhsm2-util", "--init-token", "--free", "--label", label, "--so-pin", soPIN, "--pin", userPIN)
	if _, err := hsm.Load(hsm.ModuleConfig{Path: softHSM}); err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if _, err := m.Token(t.Context(), with(hsm.TokenConfig{Label: "none, but look again"})); !errors.Is(err, hsm.ErrNoToken) {
		t.Fatal(err)
	}
	if _, err := m.Token(t.Context(), with(hsm.TokenConfig{Label: label})); !errors.Is(err, hsm.ErrNoToken) || !strings.Contains(err.Error(), "2 of") {
		t.Errorf("two tokens of one label: %v", err)
	}
	for name, c := range map[string]hsm.TokenConfig{"nothing named": {}, "sessions": {Label: label, Sessions: 65}, "negative sessions": {Label: label, Sessions: -1}} {
		if _, err := m.Token(t.Context(), with(c)); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

// A token of the same label in the place of ours is not ours.
func TestReplacedToken(t *testing.T) {
	t.Parallel()
	if !isolated(t) {
		return
	}
	label := newToken(t)
	path, f := faulty(t)
	tok, err := load(t, hsm.ModuleConfig{Path: path}).Token(t.Context(), hsm.TokenConfig{Label: label, PIN: pin(userPIN)})
	must(t, err)
	k := generate(t, tok, "", "log")
	tokens := filepath.Join(filepath.Dir(os.Getenv("SOFTHSM2_CONF")), "tokens")
	entries, err := os.ReadDir(tokens)
	must(t, err)
	ours := filepath.Join(tokens, entries[0].Name())
	must(t, os.Rename(ours, tokens+".away"))
	eventually(t, 5*time.Second, "the token is down", func() bool { return tok.Health().State == hsm.Down })
	run(t, "softhsm2-util", "--init-token", "--free", "--label", label, "--so-pin", soPIN, "--pin", userPIN)
	reinits, logins := tok.Health().Reinits, f.calls(cLogin)
	eventually(t, 5*time.Second, "the supervisor looks again", func() bool { return tok.Health().Reinits > reinits+2 })
	if err := sign(k); !errors.Is(err, hsm.ErrUnavailable) || !errors.Is(err, hsm.ErrNoToken) {
		t.Errorf("signing with another token: %v", err)
	}
	if n := f.calls(cLogin) - logins; n != 0 {
		t.Errorf("our PIN was given to the other token %d times", n)
	}
	must(t, os.Rename(tokens+".away", ours))
	heals(t, k)
}

// One token goes away; another in the same module goes on.
func TestOneTokenOfTwoAway(t *testing.T) {
	t.Parallel()
	if !isolated(t) {
		return
	}
	path, _ := faulty(t)
	m := load(t, hsm.ModuleConfig{Path: path})
	tokens := filepath.Join(filepath.Dir(os.Getenv("SOFTHSM2_CONF")), "tokens")
	label := newToken(t)
	entries, err := os.ReadDir(tokens)
	must(t, err)
	goes, err := m.Token(t.Context(), hsm.TokenConfig{Label: label, PIN: pin(userPIN)})
	must(t, err)
	stays, err := m.Token(t.Context(), hsm.TokenConfig{Label: newToken(t), PIN: pin(userPIN)})
	must(t, err)
	gone, stayed := generate(t, goes, "", "log"), generate(t, stays, "", "log")
	p := press(2, stayed)
	must(t, os.Rename(filepath.Join(tokens, entries[0].Name()), tokens+".away"))
	eventually(t, 5*time.Second, "the token is down", func() bool { sign(gone); return goes.Health().State == hsm.Down })
	reinits := goes.Health().Reinits
	eventually(t, 10*time.Second, "the supervisor tries", func() bool { return goes.Health().Reinits > reinits+4 })
	p.progress(t, 5*time.Second)
	must(t, os.Rename(tokens+".away", filepath.Join(tokens, entries[0].Name())))
	heals(t, gone)
	p.end(t)
	if n := p.failed.Load(); n != 0 {
		t.Errorf("the token that stayed refused %d times", n)
	}
}

// A slow restore: the token is back before its keys are.
func TestKeysComeBackLate(t *testing.T) {
	t.Parallel()
	if !isolated(t) {
		return
	}
	path, _ := faulty(t)
	tok, err := load(t, hsm.ModuleConfig{Path: path}).Token(t.Context(), hsm.TokenConfig{Label: newToken(t), PIN: pin(userPIN)})
	must(t, err)
	k := generate(t, tok, "", "log")
	tokens := filepath.Join(filepath.Dir(os.Getenv("SOFTHSM2_CONF")), "tokens")
	must(t, os.Rename(tokens, tokens+".away"))
	eventually(t, 5*time.Second, "the token is down", func() bool { return tok.Health().State == hsm.Down })
	objects, err := filepath.Glob(tokens + ".away/*/*-*.object")
	must(t, err)
	if len(objects) != 2 {
		t.Fatalf("the key pair is in %q", objects)
	}
	for _, o := range objects {
		must(t, os.Rename(o, o+".late"))
	}
	must(t, os.Rename(tokens+".away", tokens))
	eventually(t, 5*time.Second, "the key is missed", func() bool { return errors.Is(sign(k), hsm.ErrKeyGone) })
	for _, o := range objects {
		o = strings.Replace(o, ".away", "", 1)
		must(t, os.Rename(o+".late", o))
	}
	eventually(t, 5*time.Second, "the key is found", func() bool { return sign(k) == nil })
}

// SoftHSM signs on from memory when a key's file is damaged, and does not find the key after C_Initialize, without an error.
func TestDamagedKey(t *testing.T) {
	t.Parallel()
	if !isolated(t) {
		return
	}
	path, f := faulty(t)
	tok, err := load(t, hsm.ModuleConfig{Path: path}).Token(t.Context(), hsm.TokenConfig{Label: newToken(t), PIN: pin(userPIN)})
	must(t, err)
	k := generate(t, tok, "", "log")
	objects, err := filepath.Glob(filepath.Join(filepath.Dir(os.Getenv("SOFTHSM2_CONF")), "tokens/*/*-*.object"))
	must(t, err)
	for _, o := range objects {
		must(t, os.Truncate(o, 10))
	}
	must(t, sign(k))
	f.set(cSignInit, fail, 1, pkcs11.CKR_DEVICE_ERROR)
	eventually(t, 5*time.Second, "the damage shows", func() bool { return errors.Is(sign(k), hsm.ErrKeyGone) })
}

func TestUnconfiguredModule(t *testing.T) {
	t.Parallel()
	if !isolated(t) {
		return
	}
	conf := os.Getenv("SOFTHSM2_CONF")
	must(t, os.Setenv("SOFTHSM2_CONF", conf+".missing"))
	if _, err := hsm.Load(hsm.ModuleConfig{Path: softHSM}); err == nil || !strings.Contains(err.Error(), "SOFTHSM2_CONF") {
		t.Errorf("without configuration: %v", err)
	}
	must(t, os.Setenv("SOFTHSM2_CONF", conf))
	m := load(t, hsm.ModuleConfig{Path: softHSM})
	if _, err := m.Token(t.Context(), hsm.TokenConfig{Label: "audit", PIN: pin(userPIN)}); !errors.Is(err, hsm.ErrNoToken) {
		t.Errorf("without a token: %v", err)
	}
}

func TestCloseUnderLoad(t *testing.T) {
	t.Parallel()
	if !isolated(t) {
		return
	}
	path, _ := faulty(t)
	label := newToken(t)
	for range 10 {
		m, err := hsm.Load(hsm.ModuleConfig{Path: path})
		must(t, err)
		tok, err := m.Token(t.Context(), hsm.TokenConfig{Label: label, PIN: pin(userPIN)})
		must(t, err)
		k, err := tok.Key(t.Context(), hsm.KeyRef{Label: "log"})
		if errors.Is(err, hsm.ErrNoKey) {
			k = generate(t, tok, "", "log")
		} else {
			must(t, err)
		}
		var done sync.WaitGroup
		for range 4 {
			done.Go(func() {
				for {
					if err := sign(k); errors.Is(err, hsm.ErrClosed) {
						return
					} else if err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		eventually(t, 5*time.Second, "it signs", func() bool { return tok.Health().Signatures > 20 })
		must(t, m.Close())
		done.Wait()
		if h := tok.Health(); h.State != hsm.Closed || h.Open != 0 {
			t.Errorf("after Close: %+v", h)
		}
		if err := m.Close(); !errors.Is(err, hsm.ErrClosed) {
			t.Errorf("closing it again: %v", err)
		}
		if _, err := m.Token(t.Context(), hsm.TokenConfig{Label: label, PIN: pin(userPIN)}); !errors.Is(err, hsm.ErrClosed) {
			t.Errorf("using it closed: %v", err)
		}
	}
}

// Another process makes, uses and destroys keys meanwhile.
func TestOtherProcess(t *testing.T) {
	t.Parallel()
	label := newToken(t)
	tok := openAs(t, hsm.TokenConfig{Label: label, PIN: pin(userPIN)})
	k := generate(t, tok, "", "log")
	p := press(2, k)
	for range 3 {
		tool(t, label, "--keypairgen", "--key-type", "EC:prime256v1", "--sensitive", "--usage-sign", "--label", "foreign", "--id", "01")
		theirs, err := tok.Key(t.Context(), hsm.KeyRef{Label: "foreign"})
		must(t, err)
		must(t, sign(theirs))
		must(t, tok.Destroy(t.Context(), theirs.Ref()))
	}
	p.end(t)
	if p.failed.Load() != 0 || p.signed.Load() == 0 {
		t.Error("it was disturbed")
	}
}

// A child process that runs beside us inherits nothing that hurts.
func TestExec(t *testing.T) {
	t.Parallel()
	k := generate(t, open(t), "", "log")
	p := press(2, k)
	for range 10 {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		must(t, exec.CommandContext(ctx, "/bin/true").Run())
		cancel()
	}
	p.progress(t, 5*time.Second)
	p.end(t)
}
