package ntp

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"bulla/clock"
)

func TestParseKey(t *testing.T) {
	t.Parallel()
	const secret = "000102030405060708090a0b0c0d0e0f"
	for line, want := range map[string]string{
		"7 AES128 " + secret:              "",
		"7 AES128 HEX:" + secret:          "",
		"7 AES256 " + secret + secret:     "",
		"4294967295 SHA256 " + secret:     "",
		"1 SHA512 " + secret + secret:     "",
		"":                                "ID TYPE HEX",
		"7 AES128":                        "ID TYPE HEX",
		"0 AES128 " + secret:              "ID is a number",
		"x AES128 " + secret:              "ID is a number",
		"4294967296 AES128 " + secret:     "ID is a number",
		"7 MD5 " + secret:                 "broken",
		"7 SHA1 " + secret:                "broken",
		"7 AES128 " + secret[2:]:          "16 to 16 bytes",
		"7 AES128 " + secret + "00":       "16 to 16 bytes",
		"7 SHA256 " + secret[2:]:          "16 to 32 bytes",
		"7 SHA256 ASCII:" + secret:        "hexadecimal",
		"7 SHA256 " + secret[1:] + "\x00": "hexadecimal",
	} {
		k, err := ParseKey(line)
		if want == "" {
			if err != nil {
				t.Errorf("%q: %v", line, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), secret[2:]) {
			t.Errorf("%q: %v, %v, want %q", line, k, err, want)
		}
	}
}

func TestKeyIsNotShown(t *testing.T) {
	t.Parallel()
	k, err := ParseKey("7 AES128 000102030405060708090a0b0c0d0e0f")
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(Source{Name: "a", Key: k})
	if err != nil {
		t.Fatal(err)
	}
	shown := fmt.Sprintf("%v %+v %#v %s %s %v", k, Source{Key: k}, Source{Key: k}, k, b, k.LogValue())
	if strings.Contains(shown, "0001") || !strings.Contains(shown, "AES128 key 7") {
		t.Error(shown)
	}
}

func TestConfigIsChecked(t *testing.T) {
	t.Parallel()
	four := []Source{{Address: "a"}, {Address: "b"}, {Address: "c"}, {Address: "d"}}
	record := func(context.Context, clock.Evidence) error { return nil }
	for _, c := range []struct {
		name string
		cfg  Config
		want string // of the error; empty: none
	}{
		{"good", Config{Sources: four, Policy: clock.DefaultPolicy(), Record: record}, ""},
		{"no policy", Config{Sources: four, Record: record}, "clock policy: mode"},
		{"no log", Config{Sources: four, Policy: clock.DefaultPolicy()}, "nothing to record"},
		{"three sources", Config{Sources: four[:3], Policy: clock.DefaultPolicy(), Record: record}, "3 sources are configured, the policy demands 4"},
		{"twice", Config{Sources: append(four[:3:3], Source{Name: "x", Address: "a:123"}), Policy: clock.DefaultPolicy(), Record: record}, "configured twice"},
		{"same name", Config{Sources: append(four[:3:3], Source{Name: "a", Address: "e"}), Policy: clock.DefaultPolicy(), Record: record}, "configured twice"},
		{"no address", Config{Sources: append(four[:3:3], Source{Name: "e"}), Policy: clock.DefaultPolicy(), Record: record}, `clock.source[3].address: ""`},
		{"bad port", Config{Sources: append(four[:3:3], Source{Address: "e:70000"}), Policy: clock.DefaultPolicy(), Record: record}, "the port is a number"},
		{"smeared and not", Config{Sources: append(four[:3:3], Source{Address: "TIME2.google.com."}), Policy: clock.DefaultPolicy(), Record: record}, "smears leap seconds and"},
		{"not google", Config{Sources: append(four[:3:3], Source{Address: "notgoogle.com"}), Policy: clock.DefaultPolicy(), Record: record}, ""},
		{"name too long", Config{Sources: append(four[:3:3], Source{Name: strings.Repeat("x", 256), Address: "e"}), Policy: clock.DefaultPolicy(), Record: record}, "longer than 255"},
	} {
		_, err := New(c.cfg)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

func TestWithPort(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"time.example": "time.example:123", "time.example:11123": "time.example:11123", "192.0.2.1": "192.0.2.1:123", "2001:db8::1": "[2001:db8::1]:123",
		"[2001:db8::1]": "[2001:db8::1]:123", "[2001:db8::1]:5": "[2001:db8::1]:5", "": "", "a:b:c": "", "a:0": "", ":123": "", "a:-1": "",
	} {
		if got, err := withPort(in); got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v, want %q", in, got, err, want)
		}
	}
}
