package record

import (
	"encoding/base64"
	"strings"

	"golang.org/x/mod/sumdb/tlog"
)

// decodeBase64 reads standard base64 in its one encoding: padded, spare bits zero, and none of the line ends that the standard
// library skips.
func decodeBase64(s string) ([]byte, bool) {
	if strings.ContainsAny(s, "\r\n") {
		return nil, false
	}
	b, err := base64.StdEncoding.Strict().DecodeString(s)
	return b, err == nil
}

func decodeHash(s string) (Hash, bool) {
	b, ok := decodeBase64(s)
	if !ok || len(b) != tlog.HashSize {
		return Hash{}, false
	}
	return Hash(b), true
}

const hashText = 44 // characters of a hash

// scanHash is decodeHash without an allocation.
func scanHash(h *Hash, s *[hashText]byte) bool {
	var bad byte
	for i := range 10 {
		a, b, c, d := sextet[s[4*i]], sextet[s[4*i+1]], sextet[s[4*i+2]], sextet[s[4*i+3]]
		bad |= a | b | c | d
		h[3*i], h[3*i+1], h[3*i+2] = a<<2|b>>4, b<<4|c>>2, c<<6|d
	}
	a, b, c := sextet[s[40]], sextet[s[41]], sextet[s[42]]
	bad |= a | b | c
	h[30], h[31] = a<<2|b>>4, b<<4|c>>2
	return bad < 1<<6 && c&3 == 0 && s[43] == '='
}

// sextet is what a character of standard base64 stands for; 255 where there is none such.
var sextet = func() (t [256]uint8) {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
	for c := range t {
		t[c] = 255
	}
	for i := range len(alphabet) {
		t[alphabet[i]] = uint8(i)
	}
	return t
}()
