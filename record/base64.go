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
