package softhsmtest

import (
	"encoding/hex"
	"testing"
)

// The examples of RFC 4493, section 4 (AES-128), and of NIST SP 800-38B, appendix D.3 (AES-256).
func TestCMAC(t *testing.T) {
	t.Parallel()
	const (
		key128  = "2b7e151628aed2a6abf7158809cf4f3c"
		key256  = "603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4"
		message = "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e5130c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
	)
	for _, c := range []struct {
		key  string
		size int
		want string
	}{
		{key128, 0, "bb1d6929e95937287fa37d129b756746"},
		{key128, 16, "070a16b46b4d4144f79bdd9dd04a287c"},
		{key128, 40, "dfa66747de9ae63030ca32611497c827"},
		{key128, 64, "51f0bebf7e3b9d92fc49741779363cfe"},
		{key256, 0, "028962f61b7bf89efc6b551f4667d983"},
		{key256, 16, "28a7023f452e8f82bd4bf28d8c37c35c"},
		{key256, 40, "aaf3d8f1de5640c232f5b169b9c911e6"},
		{key256, 64, "e1992190549f6ed5696a2c056c315410"},
	} {
		if got := hex.EncodeToString(cmac(unhex(t, c.key), unhex(t, message)[:c.size])); got != c.want {
			t.Errorf("AES-%d, %d bytes: %s, want %s", len(c.key)*4, c.size, got, c.want)
		}
	}
}

// A server answers in kind: an open query openly, one with its key with its key, one with another key with a refusal.
func TestAuthentication(t *testing.T) {
	t.Parallel()
	key := NTPKey{ID: 7, Algorithm: "AES128", Secret: make([]byte, 16)}
	other := NTPKey{ID: 8, Algorithm: "SHA256", Secret: make([]byte, 20)}
	unknown := NTPKey{ID: 7, Algorithm: "AES128", Secret: make([]byte, 5)}
	query, answer := make([]byte, ntpHeader), make([]byte, ntpHeader)
	query[0], answer[0] = 4<<3|modeClient, 4<<3|modeServer
	right, wrong := key.mac(answer), key.mac(answer)
	wrong[len(wrong)-1] ^= 1
	const nak = "\x00\x00\x00\x00"
	for _, c := range []struct {
		name string
		b    Behaviour
		mac  []byte
		want string
	}{
		{"open", Behaviour{Key: &key}, nil, ""},
		{"without keys", Behaviour{}, key.mac(query), ""},
		{"right", Behaviour{Key: &key}, key.mac(query), string(right)},
		{"another key", Behaviour{Key: &key}, other.mac(query), nak},
		{"of another query", Behaviour{Key: &key}, key.mac(answer), nak},
		{"number without digest", Behaviour{Key: &key}, []byte{0, 0, 0, 7}, nak},
		{"a key that is none", Behaviour{Key: &unknown}, key.mac(query), nak},
		{"made wrong", Behaviour{Key: &key, WrongMAC: true}, key.mac(query), string(wrong)},
		{"refused", Behaviour{Key: &key, NAK: true}, key.mac(query), nak},
	} {
		out := c.b.authenticate(append([]byte(nil), answer...), append(append([]byte(nil), query...), c.mac...))
		if got := string(out[ntpHeader:]); got != c.want {
			t.Errorf("%s: % x, want % x", c.name, got, c.want)
		}
	}
}

// Version 4 has room for 20 bytes of a digest; version 3 sends all.
func TestDigestsAreCut(t *testing.T) {
	t.Parallel()
	for algorithm, sizes := range map[string][2]int{"AES128": {16, 16}, "SHA256": {32, 20}, "SHA512": {64, 20}} {
		k := NTPKey{ID: 1, Algorithm: algorithm, Secret: make([]byte, 16)}
		for i, version := range []byte{3, 4} {
			packet := make([]byte, ntpHeader)
			packet[0] = version << 3
			if got := len(k.mac(packet)) - 4; got != sizes[i] {
				t.Errorf("%s, version %d: %d bytes, want %d", algorithm, version, got, sizes[i])
			}
		}
	}
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
