package record

import (
	"encoding/base64"
	"encoding/binary"
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
	var bad uint32
	for i := range 10 {
		q := s[4*i : 4*i+4]
		v := sextets[0][q[0]] | sextets[1][q[1]] | sextets[2][q[2]] | sextets[3][q[3]]
		bad |= v
		binary.BigEndian.PutUint32(h[3*i:], v) // the fourth byte is the next group's
	}
	v := sextets[0][s[40]] | sextets[1][s[41]] | sextets[2][s[42]]
	h[30], h[31] = byte(v>>24), byte(v>>16)
	return (bad|v)&1 == 0 && v>>8&0xff == 0 && s[43] == '='
}

// sextets is what a character of standard base64 adds to the upper three bytes of a number, by its place in a group of four; 1 where
// there is no such character.
var sextets = func() (t [4][256]uint32) {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
	for place := range t {
		for c := range t[place] {
			t[place][c] = 1
		}
		for i := range len(alphabet) {
			t[place][alphabet[i]] = uint32(i) << (26 - 6*place)
		}
	}
	return t
}()
