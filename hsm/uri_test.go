package hsm_test

import (
	"reflect"
	"strings"
	"testing"

	"bulla/hsm"
)

func TestParseURI(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		in        string
		want      hsm.URI
		canonical string // if another
	}{
		{"pkcs11:token=audit", hsm.URI{Token: "audit"}, ""},
		{"pkcs11:", hsm.URI{}, ""},
		{"pkcs11:token=audit;manufacturer=SoftHSM%20project;serial=0a1b;model=SoftHSM%20v2;object=log;id=%01%FF;type=private?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/etc/bulla/pin",
			hsm.URI{Token: "audit", Manufacturer: "SoftHSM project", Serial: "0a1b", Model: "SoftHSM v2", Object: "log", ID: []byte{1, 255}, Type: "private",
				ModulePath: "/usr/lib/softhsm/libsofthsm2.so", PINSource: "file:/etc/bulla/pin"}, ""},
		{"pkcs11:object=log;token=audit?pin-source=credential:pin&module-path=/m", hsm.URI{Token: "audit", Object: "log", ModulePath: "/m", PINSource: "credential:pin"},
			"pkcs11:token=audit;object=log?module-path=/m&pin-source=credential:pin"},
		{"pkcs11:token=NSS%20Certificate%20DB?module-path=/m&module-init=configdir%3D%27sql:/d%27%20flags%3D", hsm.URI{Token: "NSS Certificate DB", ModulePath: "/m", ModuleInit: "configdir='sql:/d' flags="},
			"pkcs11:token=NSS%20Certificate%20DB?module-path=/m&module-init=configdir=%27sql:/d%27%20flags="},
		{"pkcs11:token=%c3%a4", hsm.URI{Token: "ä"}, "pkcs11:token=%C3%A4"},
		{"pkcs11:id=abc", hsm.URI{ID: []byte("abc")}, "pkcs11:id=%61%62%63"},
		{"pkcs11:object=a=b", hsm.URI{Object: "a=b"}, ""},
		{"pkcs11:object=%2F%3B%3F", hsm.URI{Object: "/;?"}, ""},
		{"pkcs11:token=a?", hsm.URI{Token: "a"}, "pkcs11:token=a"},
	} {
		u, err := hsm.ParseURI(row.in)
		if err != nil || !reflect.DeepEqual(u, row.want) {
			t.Errorf("%s: %+v, %v", row.in, u, err)
		}
		if row.canonical == "" {
			row.canonical = row.in
		}
		if u.String() != row.canonical {
			t.Errorf("%s: canonical %s, want %s", row.in, u, row.canonical)
		}
	}
	for in, say := range map[string]string{
		"":                                           "does not begin",
		"pkcs12:token=a":                             "does not begin",
		"PKCS11:token=a":                             "does not begin",
		"pkcs11:token":                               "token: no value",
		"pkcs11:token=":                              "token: empty",
		"pkcs11:token=a;token=a":                     "token: given twice",
		"pkcs11:token=a;token=b":                     "token: given twice",
		"pkcs11:token=a;;object=b":                   "unknown attribute",
		"pkcs11:token=a;":                            "unknown attribute",
		"pkcs11:Token=a":                             "unknown attribute",
		"pkcs11:colour=red":                          "unknown attribute",
		"pkcs11:pin-source=/p":                       "unknown attribute", // belongs in the query
		"pkcs11:token=a?object=b":                    "unknown attribute",
		"pkcs11:token=a?x-vendor=b":                  "unknown attribute",
		"pkcs11:token=a?pin-source=/p&":              "unknown attribute",
		"pkcs11:token=a%":                            "two hex digits",
		"pkcs11:token=a%4":                           "two hex digits",
		"pkcs11:token=a%4g":                          "two hex digits",
		"pkcs11:token=a b":                           "must be written %20",
		"pkcs11:token=a/b":                           "must be written %2F",
		"pkcs11:token=ä":                             "must be written %C3",
		"pkcs11:token=a%00":                          "control characters",
		"pkcs11:token=%0A":                           "control characters",
		"pkcs11:token=%FF":                           "not UTF-8",
		"pkcs11:token=" + strings.Repeat("a", 33):    "longer than 32",
		"pkcs11:serial=" + strings.Repeat("a", 17):   "longer than 16",
		"pkcs11:token=a" + strings.Repeat(" ", 5000): "longer than 4096",
		"pkcs11:type=cert":                           "only private keys",
		"pkcs11:slot-id=1":                           "slot numbers change",
		"pkcs11:library-version=1":                   "module-path",
		"pkcs11:token=a?module-name=b":               "module-path",
		"pkcs11:token=a?module-path=m.so":            "not absolute",
		"pkcs11:token=a?pin-value=secret":            "use pin-source",
		"pkcs11:pin-value=secret":                    "use pin-source",
	} {
		u, err := hsm.ParseURI(in)
		if err == nil || !strings.Contains(err.Error(), say) {
			t.Errorf("%.60s: %+v, %v; want an error that says %q", in, u, err, say)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("the error tells the PIN: %v", err)
		}
	}
}

// What is accepted has one canonical form, which means the same.
func FuzzParseURI(f *testing.F) {
	for _, s := range []string{"pkcs11:token=audit;object=log;id=%01?module-path=/m&pin-source=file:/p", "pkcs11:object=%2F%3b=;type=private", "pkcs11:?module-init=a='b'"} {
		if _, err := hsm.ParseURI(s); err != nil {
			f.Fatal(err)
		}
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		u, err := hsm.ParseURI(s)
		if err != nil {
			return
		}
		again, err := hsm.ParseURI(u.String())
		if err != nil || !reflect.DeepEqual(u, again) || u.String() != again.String() {
			t.Errorf("%q: %+v, then %q: %+v, %v", s, u, u.String(), again, err)
		}
	})
}
