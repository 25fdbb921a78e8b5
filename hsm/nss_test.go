package hsm_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"

	"bulla/hsm"
)

const softokn = "/usr/lib/x86_64-linux-gnu/libsoftokn3.so"

// newNSS makes an NSS database and opens it through the faulty module.
func newNSS(t *testing.T) (*hsm.Token, *faults) {
	t.Helper()
	dir := t.TempDir()
	password := filepath.Join(dir, "password")
	must(t, os.WriteFile(password, []byte(userPIN+"\n"), 0o600))
	run(t, "certutil", "-N", "-d", "sql:"+dir, "-f", password)
	path, f := faulty(t)
	must(t, os.Setenv("FAULTY_REAL", softokn))
	u := hsm.URI{Token: "NSS Certificate DB", ModulePath: path, PINSource: password, ModuleInit: "configdir='sql:" + dir + "' certPrefix='' keyPrefix='' secmod='secmod.db' flags="}
	u, err := hsm.ParseURI(u.String())
	must(t, err)
	tok, err := load(t, u.ModuleConfig()).Token(t.Context(), u.TokenConfig())
	must(t, err)
	return tok, f
}

// NSS softokn is a really different module: another state machine for logins, keys visible without one, labels that overwrite.
func TestNSSSigns(t *testing.T) {
	t.Parallel()
	if !isolated(t) {
		return
	}
	tok, f := newNSS(t)
	var first *hsm.Key
	for _, a := range []hsm.Algorithm{hsm.ECDSAP256, hsm.ECDSAP384, hsm.RSA3072PSS} {
		k := generate(t, tok, a, string(a))
		signAndVerify(t, k)
		if first == nil {
			first = k
		}
	}
	if _, err := tok.Generate(t.Context(), hsm.Ed25519, "ed25519"); !errors.Is(err, hsm.ErrUnsupported) {
		t.Errorf("Ed25519: %v", err)
	}
	// It would replace a key of the same label and id in silence.
	if _, err := tok.Generate(t.Context(), hsm.ECDSAP256, string(hsm.ECDSAP256)); !errors.Is(err, hsm.ErrKeyExists) {
		t.Errorf("a second key of the label: %v", err)
	}
	must(t, sign(first))
	if i := first.Info(); i.NeverExtractable == nil || !*i.NeverExtractable || i.AlwaysSensitive == nil || !*i.AlwaysSensitive {
		t.Errorf("it claims %+v", i)
	}

	p := press(3, first)
	for _, fault := range []struct {
		function int
		code     uint64
	}{
		{cSignInit, pkcs11.CKR_DEVICE_ERROR}, // C_Initialize, with its string
		{cSign, pkcs11.CKR_SESSION_HANDLE_INVALID}, {cSignInit, pkcs11.CKR_OBJECT_HANDLE_INVALID}, {cSignInit, pkcs11.CKR_USER_NOT_LOGGED_IN}, {cSign, pkcs11.CKR_GENERAL_ERROR},
	} {
		f.set(fault.function, fail, 1, fault.code)
		heals(t, first)
	}
	p.end(t)
	if tok.Health().Reinits == 0 {
		t.Error("it was never initialised again")
	}
}

// NSS wraps a key that it calls never extractable, under an AES key of our choice.
func TestNSSLetsKeysOut(t *testing.T) {
	t.Parallel()
	if !isolated(t) {
		return
	}
	tok, _ := newNSS(t)
	for range 2 {
		attempts, err := tok.TryExtract(t.Context(), "")
		if !errors.Is(err, hsm.ErrExtractable) || !strings.Contains(err.Error(), "AES-CBC-PAD") {
			t.Errorf("NSS passed: %v", err)
		}
		for _, a := range attempts {
			t.Logf("%s: %s (leaked: %t)", a.Way, a.Result, a.Leaked)
		}
	}
	if _, err := tok.Key(t.Context(), hsm.KeyRef{Label: "bulla extraction test"}); !errors.Is(err, hsm.ErrNoKey) {
		t.Errorf("the throwaway key is still there: %v", err)
	}
}
