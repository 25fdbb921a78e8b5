package tpm_test

import (
	"crypto/elliptic"
	"errors"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"bulla/attest"
	softhsmtest "bulla/softhsm-test"
	"bulla/tpm"
)

// tool runs one of the tpm2-tools on a TPM that nobody is connected to: another program than ours sees what we did.
func tool(t *testing.T, d *softhsmtest.TPM, words ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), words[0], words[1:]...)
	cmd.Env = append(cmd.Environ(), "TPM2TOOLS_TCTI=swtpm:path="+strings.TrimPrefix(d.Address(), "unix:"))
	cmd.Dir = t.TempDir()
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// use opens a TPM for one thing, so that other programs can have it before and after.
func use(t *testing.T, d *softhsmtest.TPM, with func(x *tpm.TPM)) {
	t.Helper()
	x, err := tpm.Open(t.Context(), tpm.Config{Address: d.Address()})
	if err != nil {
		t.Fatal(err)
	}
	with(x)
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
}

func requireProtection(t *testing.T, x *tpm.TPM, a tpm.Auth, want attest.Protection) {
	t.Helper()
	p, err := x.Protection(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&want, p); diff != "" {
		t.Errorf("protection: %s", diff)
	}
}

// What officers were given closes the TPM to everybody else, and opens it to them, by tools that are not ours.
func TestProtect(t *testing.T) {
	t.Parallel()
	d := device(t)
	a := tpm.NewAuth()
	if err := a.Check(); err != nil || a.Owner == a.Lockout || a == tpm.NewAuth() {
		t.Fatalf("authorisations: %v", err)
	}
	var e *attest.Enrolment
	rec := recorded(t, d)
	x := rec.open(t)
	e = enrol(t, d, x)
	requireProtection(t, x, tpm.Auth{}, attest.Protection{Clear: "open", Endorsement: "open", Lockout: "open", Owner: "open", Platform: "open"})
	for range 2 { // the second time there is nothing left to do
		if err := x.Protect(t.Context(), e.EK, a); err != nil {
			t.Fatal(err)
		}
	}
	closed := attest.Protection{Clear: "closed", Endorsement: "open", Lockout: "officers", Owner: "officers", Platform: "open"}
	requireProtection(t, x, a, closed)
	if _, err := x.GenerateKey(t.Context(), "tpm:handle=0x81020001"); err != nil {
		t.Errorf("with the owner's authorisation: %v", err)
	}
	if m, err := x.Attach(t.Context(), e); err != nil {
		t.Error(err)
	} else {
		seal(t, m, e, 1, attest.Statement{}.Previous) // needs none
	}
	requireOpens(t, x, sealSecret(t, x, sealing(t, d, approver(t, elliptic.P256())), "secret"), "secret") // nor does this
	requireEmpty(t, x)
	rec.close(t, x)
	for _, secret := range []string{a.Owner, a.Lockout} {
		if rec.saw(secret) {
			t.Error("an authorisation crossed the bus in clear")
		}
	}

	for _, c := range []struct {
		words []string
		good  bool
	}{
		{[]string{"tpm2_clear", a.Lockout}, false}, // disabled
		{[]string{"tpm2_dictionarylockout", "-c", "-p", a.Lockout}, true},
		{[]string{"tpm2_nvundefine", "-C", "o", "0x01800B01"}, false},
		{[]string{"tpm2_evictcontrol", "-C", "o", "-c", "0x81010B01"}, false},
		{[]string{"tpm2_nvdefine", "-C", "o", "-s", "8", "0x01800C01"}, false},
		{[]string{"tpm2_nvdefine", "-C", "o", "-P", a.Owner, "-s", "8", "0x01800C01"}, true},
		{[]string{"tpm2_evictcontrol", "-C", "o", "-P", a.Owner, "-c", "0x81020001"}, true},
	} {
		if out, err := tool(t, d, c.words...); (err == nil) != c.good {
			t.Errorf("%s: %v: %s", c.words[0], err, out)
		}
	}
	use(t, d, func(x *tpm.TPM) { // somebody who knows it and somebody who does not
		if _, err := x.GenerateKey(t.Context(), "tpm:handle=0x81020002"); !errors.Is(err, tpm.ErrAuth) {
			t.Errorf("a key without the owner's authorisation: %v", err)
		}
		if err := x.Protect(t.Context(), e.EK, tpm.Auth{Owner: "wrong"}); !errors.Is(err, tpm.ErrAuth) || strings.Contains(err.Error(), "wrong\"") {
			t.Errorf("with a wrong authorisation: %v", err)
		}
		requireProtection(t, x, a, closed)
		requireProtection(t, x, tpm.Auth{}, attest.Protection{Clear: "closed", Endorsement: "open", Lockout: "others", Owner: "others", Platform: "open"})
		x.UseOwner(a)
		if _, err := x.GenerateKey(t.Context(), "tpm:handle=0x81020002"); err != nil {
			t.Error(err)
		}
	})
}

// A TPM that somebody has set up before: what is set stays, what is open is closed, what cannot be closed is told.
func TestProtectWhatIsSet(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		before [][]string
		given  tpm.Auth
		want   attest.Protection
		failed error
	}{
		{
			"the owner's, by others", [][]string{{"tpm2_changeauth", "-c", "o", "theirs"}}, tpm.Auth{Lockout: "ours"},
			attest.Protection{Clear: "closed", Endorsement: "open", Lockout: "officers", Owner: "others", Platform: "open"}, nil,
		}, {
			"the owner's, by the officers", [][]string{{"tpm2_changeauth", "-c", "o", "ours"}}, tpm.Auth{Owner: "ours", Lockout: "ours2"},
			attest.Protection{Clear: "closed", Endorsement: "open", Lockout: "officers", Owner: "officers", Platform: "open"}, nil,
		}, {
			"lockout's, by others, which alone could disable Clear", [][]string{{"tpm2_changeauth", "-c", "l", "theirs"}}, tpm.Auth{Owner: "ours"},
			attest.Protection{Clear: "open", Endorsement: "open", Lockout: "others", Owner: "officers", Platform: "open"}, nil,
		}, {
			"lockout's, by the officers", [][]string{{"tpm2_changeauth", "-c", "l", "ours"}}, tpm.Auth{Lockout: "ours"},
			attest.Protection{Clear: "closed", Endorsement: "open", Lockout: "officers", Owner: "open", Platform: "open"}, nil,
		}, {
			"firmware's, as it should", [][]string{{"tpm2_changeauth", "-c", "p", "firmware"}}, tpm.Auth{Owner: "ours"},
			attest.Protection{Clear: "closed", Endorsement: "open", Lockout: "open", Owner: "officers", Platform: "others"}, nil,
		}, {
			"the owner's, by others, and the officers think it is theirs", [][]string{{"tpm2_changeauth", "-c", "o", "theirs"}}, tpm.Auth{Owner: "ours", Lockout: "ours"},
			attest.Protection{}, tpm.ErrAuth,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			d := device(t)
			var e *attest.Enrolment
			use(t, d, func(x *tpm.TPM) { e = enrol(t, d, x) })
			for _, words := range c.before {
				if out, err := tool(t, d, words...); err != nil {
					t.Fatalf("%s: %v: %s", words[0], err, out)
				}
			}
			x := open(t, d, 0)
			err := x.Protect(t.Context(), e.EK, c.given)
			if !errors.Is(err, c.failed) {
				t.Fatalf("%v, want %v", err, c.failed)
			}
			if err == nil {
				requireProtection(t, x, c.given, c.want)
			}
		})
	}
}

func TestAuthIsChecked(t *testing.T) {
	t.Parallel()
	for _, bad := range []tpm.Auth{{Owner: strings.Repeat("x", 33)}, {Lockout: "with space"}, {Owner: "zero\x00"}, {Lockout: "é"}} {
		if err := bad.Check(); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

// However closing a TPM stops, doing it again with the same authorisations ends it.
func TestProtectStopped(t *testing.T) {
	t.Parallel()
	const ccClearControl, ccChangeAuth = 0x127, 0x129
	for _, c := range []struct {
		name     string
		cc       uint32
		nth      int
		executed bool
	}{
		{"Clear disabled, answer lost", ccClearControl, 1, true},
		{"lockout's set, answer lost", ccChangeAuth, 1, true},
		{"the owner's not set", ccChangeAuth, 2, false},
		{"the owner's set, answer lost", ccChangeAuth, 2, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r, x, _, e := relayed(t, device(t), 2*time.Second)
			n := 0
			r.set(func(cc uint32, run func() []byte) []byte {
				if cc == c.cc {
					if n++; n == c.nth {
						if c.executed {
							run()
						}
						return nil
					}
				}
				return run()
			})
			a := tpm.NewAuth()
			if err := x.Protect(t.Context(), e.EK, a); !errors.Is(err, attest.ErrUnknown) {
				t.Fatalf("stopped: %v", err)
			}
			r.set(nil)
			if err := x.Protect(t.Context(), e.EK, a); err != nil {
				t.Fatal(err)
			}
			requireProtection(t, x, a, attest.Protection{Clear: "closed", Endorsement: "open", Lockout: "officers", Owner: "officers", Platform: "open"})
			requireEmpty(t, x)
		})
	}
}
