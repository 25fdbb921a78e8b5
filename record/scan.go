package record

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"unicode/utf16"
	"unicode/utf8"
)

// The functions of this file read canonical JSON in one pass, without allocation. They take an index into b and return the index
// after what they read, or -1 when it is not canonical; why not is for the reference in canonical.go to say.

// isCanonical reports whether b is one canonical value nested at most depth levels. It agrees with the reference.
func isCanonical(b []byte, depth int) bool {
	return len(b) > 0 && scanValue(b, 0, depth) == len(b)
}

func scanValue(b []byte, i, depth int) int {
	if uint(i) >= uint(len(b)) {
		return -1
	}
	switch c := b[i]; {
	case c == '"':
		return scanString(b, i)
	case c == '{':
		return scanObject(b, i, depth)
	case c == '[':
		return scanArray(b, i, depth)
	case c == 't':
		return scanLiteral(b, i, "true")
	case c == 'f':
		return scanLiteral(b, i, "false")
	default:
		return scanNumber(b, i)
	}
}

func scanObject(b []byte, i, depth int) int {
	if depth <= 0 {
		return -1
	}
	if i++; i < len(b) && b[i] == '}' {
		return i + 1
	}
	var name []byte
	for {
		if name, i = scanName(b, i, name); i < 0 {
			return -1
		}
		if i = scanValue(b, i, depth-1); i < 0 || i >= len(b) {
			return -1
		}
		switch b[i] {
		case ',':
			i++
		case '}':
			return i + 1
		default:
			return -1
		}
	}
}

func scanArray(b []byte, i, depth int) int {
	if depth <= 0 {
		return -1
	}
	if i++; i < len(b) && b[i] == ']' {
		return i + 1
	}
	for {
		if i = scanValue(b, i, depth-1); i < 0 || i >= len(b) {
			return -1
		}
		switch b[i] {
		case ',':
			i++
		case ']':
			return i + 1
		default:
			return -1
		}
	}
}

// scanName reads a member's name and the colon; the name must come after prev, which is nil for the first member. The name is
// returned as it is written between the quotes.
func scanName(b []byte, i int, prev []byte) (name []byte, next int) {
	if uint(i) >= uint(len(b)) || b[i] != '"' {
		return nil, -1
	}
	end := scanString(b, i)
	if end < 0 || end >= len(b) || b[end] != ':' {
		return nil, -1
	}
	name = b[i+1 : end-1]
	if prev != nil && !nameLess(prev, name) {
		return nil, -1
	}
	return name, end + 1
}

func scanLiteral(b []byte, i int, lit string) int {
	if len(b)-i < len(lit) || string(b[i:i+len(lit)]) != lit {
		return -1
	}
	return i + len(lit)
}

func scanNumber(b []byte, i int) int {
	_, end := scanInt(b, i, -MaxInt, MaxInt)
	return end
}

// scanInt reads a number of the profile within limits.
func scanInt(b []byte, i int, lowest, highest int64) (int64, int) {
	negative := uint(i) < uint(len(b)) && b[i] == '-'
	if negative {
		i++
	}
	from, n := i, int64(0)
	for ; uint(i) < uint(len(b)) && i-from <= maxDigits; i++ {
		d := b[i] - '0'
		if d > 9 {
			break
		}
		n = n*10 + int64(d)
	}
	if i == from || i-from > maxDigits || b[from] == '0' && (negative || i-from > 1) {
		return 0, -1
	}
	if negative {
		n = -n
	}
	if n < lowest || n > highest {
		return 0, -1
	}
	return n, i
}

const maxDigits = 16 // of a number within MaxInt

// Classes of bytes inside a string.
const (
	plain   = iota // stands for itself
	quote          // ends the string
	escape         // a backslash
	multi          // starts a multi-byte character
	unplain        // a control character, or no start of a character
)

var class = func() (t [256]uint8) {
	for c := range t {
		switch {
		case c == '"':
			t[c] = quote
		case c == '\\':
			t[c] = escape
		case c < 0x20 || c >= 0x80 && c < 0xc2 || c > 0xf4:
			t[c] = unplain
		case c >= 0xc2:
			t[c] = multi
		}
	}
	return t
}()

// scanString reads a string from its opening quote to after its closing one.
func scanString(b []byte, i int) int {
	i++
	for {
		for ; i+8 <= len(b); i += 8 {
			if at := special(binary.LittleEndian.Uint64(b[i:])); at < 8 {
				i += at
				break
			}
		}
		for i < len(b) && class[b[i]] == plain {
			i++
		}
		if i >= len(b) {
			return -1
		}
		if b[i] == '"' {
			return i + 1
		}
		if i = scanSpecial(b, i); i < 0 {
			return -1
		}
	}
}

// special is which of eight bytes, the lowest being the first, is the first that is not plain; 8 when all are.
func special(w uint64) int {
	const ones, highs = 0x0101010101010101, 0x8080808080808080
	quotes, escapes := w^ones*'"', w^ones*'\\'
	// Of the high bits that are set, the lowest is that of a byte below 0x20, a quote, a backslash, or a byte above 0x7f.
	return bits.TrailingZeros64(((w-ones*0x20)&^w|(quotes-ones)&^quotes|(escapes-ones)&^escapes|w)&highs) / 8
}

// scanSpecial reads what does not stand for itself and does not end the string.
func scanSpecial(b []byte, i int) int {
	switch class[b[i]] {
	case escape:
		return scanEscape(b, i)
	case multi:
		r, n := utf8.DecodeRune(b[i:])
		if r == utf8.RuneError && n == 1 {
			return -1
		}
		return i + n
	}
	return -1
}

// scanEscape reads one of the escapes that RFC 8785 section 3.2.2.2 writes.
func scanEscape(b []byte, i int) int {
	if i+1 >= len(b) {
		return -1
	}
	switch b[i+1] {
	case '"', '\\', 'b', 'f', 'n', 'r', 't':
		return i + 2
	case 'u':
		if c, ok := controlEscape(b[i:]); ok && c != '\b' && c != '\t' && c != '\n' && c != '\f' && c != '\r' {
			return i + 6
		}
	}
	return -1
}

// controlEscape reads \u00XX with lower-case digits, which the canonical form has for control characters only.
func controlEscape(b []byte) (byte, bool) {
	if len(b) < 6 || string(b[:4]) != `\u00` || b[4] != '0' && b[4] != '1' {
		return 0, false
	}
	switch c := b[5]; {
	case '0' <= c && c <= '9':
		return (b[4]-'0')<<4 | (c - '0'), true
	case 'a' <= c && c <= 'f':
		return (b[4]-'0')<<4 | (c - 'a' + 10), true
	}
	return 0, false
}

// nameLess compares two names, as they are written, by the UTF-16 code units of what they mean (RFC 8785 section 3.2.3).
func nameLess(a, b []byte) bool {
	n := min(len(a), len(b))
	for i := range n {
		x, y := a[i], b[i]
		if x == y && x != '\\' {
			continue
		}
		if x == '\\' || y == '\\' {
			return compareUTF16(unescape(a), unescape(b)) < 0
		}
		// Byte order is code point order. It differs from UTF-16 order only between U+E000..U+FFFF and the characters beyond,
		// whose surrogates are lower.
		if x >= 0xf0 && y >= 0xee && y < 0xf0 {
			return true
		}
		if y >= 0xf0 && x >= 0xee && x < 0xf0 {
			return false
		}
		return x < y
	}
	return len(a) < len(b)
}

func compareUTF16(a, b []byte) int {
	x, y := utf16.Encode(bytes.Runes(a)), utf16.Encode(bytes.Runes(b))
	for i := range min(len(x), len(y)) {
		if x[i] != y[i] {
			return int(x[i]) - int(y[i])
		}
	}
	return len(x) - len(y)
}

// unescape returns what a canonical string means, given what is written between its quotes; s itself where nothing is escaped.
func unescape(s []byte) []byte {
	i := bytes.IndexByte(s, '\\')
	if i < 0 {
		return s
	}
	out := append(make([]byte, 0, len(s)), s[:i]...)
	for i < len(s) {
		if s[i] != '\\' {
			out = append(out, s[i])
			i++
			continue
		}
		switch c := s[i+1]; c {
		case 'b':
			out = append(out, '\b')
		case 'f':
			out = append(out, '\f')
		case 'n':
			out = append(out, '\n')
		case 'r':
			out = append(out, '\r')
		case 't':
			out = append(out, '\t')
		case 'u':
			c, _ := controlEscape(s[i:])
			out = append(out, c)
			i += 4
		default:
			out = append(out, c)
		}
		i += 2
	}
	return out
}
