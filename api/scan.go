package api

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"unicode/utf8"

	"bulla/record"
)

// maxDepth bounds the nesting of a value in a message: an event's own, and what is around it.
const maxDepth = record.MaxDepth + 2

// scanner walks over JSON and finds where its values end. What is inside events is left to package record; what is read here is
// checked here. Errors are *record.FieldError.
type scanner struct {
	b []byte
	i int
}

func (s *scanner) fail(format string, args ...any) error {
	return &record.FieldError{Reason: fmt.Sprintf("byte %d: ", s.i) + fmt.Sprintf(format, args...)}
}

func (s *scanner) space() {
	for s.i < len(s.b) && (s.b[s.i] == ' ' || s.b[s.i] == '\n' || s.b[s.i] == '\t' || s.b[s.i] == '\r') {
		s.i++
	}
}

// peek is the next byte; 0, which JSON has nowhere outside strings, is the end.
func (s *scanner) peek() byte {
	if s.i < len(s.b) {
		return s.b[s.i]
	}
	return 0
}

func (s *scanner) expect(c byte) error {
	s.space()
	if s.peek() != c {
		return s.fail("%q expected", c)
	}
	s.i++
	return nil
}

func (s *scanner) end() error {
	if s.space(); s.i != len(s.b) {
		return s.fail("something follows")
	}
	return nil
}

// object calls member for each member of an object, with the value to be read next.
func (s *scanner) object(member func(name []byte) error) error {
	if err := s.expect('{'); err != nil {
		return err
	}
	for first := true; ; first = false {
		if s.space(); s.peek() == '}' && first {
			s.i++
			return nil
		}
		name, err := s.textBytes()
		if err != nil {
			return err
		}
		if err := s.expect(':'); err != nil {
			return err
		}
		s.space()
		if err := member(name); err != nil {
			return err
		}
		if done, err := s.next('}'); done || err != nil {
			return err
		}
	}
}

// array calls item for each item of an array, which it has to read.
func (s *scanner) array(item func(i int) error) error {
	if err := s.expect('['); err != nil {
		return err
	}
	for i := 0; ; i++ {
		if s.space(); s.peek() == ']' && i == 0 {
			s.i++
			return nil
		}
		if err := item(i); err != nil {
			return err
		}
		if done, err := s.next(']'); done || err != nil {
			return err
		}
	}
}

// next passes a comma, or the end.
func (s *scanner) next(end byte) (done bool, err error) {
	s.space()
	switch s.peek() {
	case ',':
		s.i++
		return false, nil
	case end:
		s.i++
		return true, nil
	}
	return false, s.fail("',' or %q expected", end)
}

// raw passes a string and returns what is written between its quotes.
func (s *scanner) raw() ([]byte, error) {
	s.space()
	start := s.i
	if s.peek() != '"' {
		return nil, s.fail("a string expected")
	}
	if err := s.skipString(); err != nil {
		return nil, err
	}
	return s.b[start+1 : s.i-1], nil
}

// text reads a string of at most 4,096 bytes.
func (s *scanner) text() (string, error) {
	b, err := s.textBytes()
	return string(b), err
}

// textBytes is text, where it stands if it is written as itself.
func (s *scanner) textBytes() ([]byte, error) {
	start := s.i
	raw, err := s.raw()
	if err != nil {
		return nil, err
	}
	if len(raw) > 4096 {
		return nil, s.fail("a string of %d bytes is too long", len(raw))
	}
	if plain(raw) {
		return raw, nil
	}
	b, err := record.Canonicalize(s.b[start:s.i], 1)
	if err != nil {
		return nil, err
	}
	text, err := s.decode(b)
	return []byte(text), err
}

// plain reports whether a string is written as itself and certainly valid.
func plain(raw []byte) bool {
	for _, c := range raw {
		if c < 0x20 || c >= 0x80 || c == '\\' {
			return false
		}
	}
	return true
}

// decode is the string that a JSON string stands for.
func (s *scanner) decode(quoted []byte) (string, error) {
	if b, ok := unescape(quoted[1 : len(quoted)-1]); ok {
		return string(b), nil
	}
	var out string
	if err := json.Unmarshal(quoted, &out); err != nil {
		return "", s.fail("not a string")
	}
	return out, nil
}

// unescape does what decode does for valid strings whose only escapes are newlines, as checkpoints are.
func unescape(raw []byte) ([]byte, bool) {
	if !utf8.Valid(raw) {
		return nil, false
	}
	out := make([]byte, 0, len(raw))
	for {
		i := bytes.IndexByte(raw, '\\')
		if i < 0 {
			i = len(raw)
		}
		for _, c := range raw[:i] {
			if c < 0x20 {
				return nil, false
			}
		}
		if out = append(out, raw[:i]...); i == len(raw) {
			return out, true
		}
		if i+1 == len(raw) || raw[i+1] != 'n' {
			return nil, false
		}
		out, raw = append(out, '\n'), raw[i+2:]
	}
}

// base64 reads a string of base64 and appends what it stands for.
func (s *scanner) base64(dst []byte) ([]byte, error) {
	raw, err := s.raw()
	if err != nil {
		return dst, err
	}
	if dst, err = base64.StdEncoding.AppendDecode(dst, raw); err != nil {
		return dst, s.fail("not base64")
	}
	return dst, nil
}

// number reads an integer from 0 to 2^53-1.
func (s *scanner) number() (uint64, error) {
	start := s.i
	for s.i < len(s.b) && '0' <= s.b[s.i] && s.b[s.i] <= '9' {
		s.i++
	}
	digits := s.b[start:s.i]
	n, err := strconv.ParseUint(string(digits), 10, 64)
	ended := s.i == len(s.b) || delimiter[s.b[s.i]] // 12.5 and 1e2 do not begin with a number of ours
	if err != nil || !ended || n > record.MaxInt || len(digits) > 1 && digits[0] == '0' {
		return 0, s.fail("an integer from 0 to 2^53-1 expected")
	}
	return n, nil
}

// skip passes one value: it finds its end, and bounds its depth. Whether it is well-formed inside is for whoever reads it.
func (s *scanner) skip() error {
	s.space()
	switch s.peek() {
	case '"':
		return s.skipString()
	case '{', '[':
		return s.skipNested()
	}
	start := s.i
	for s.i < len(s.b) && !delimiter[s.b[s.i]] {
		s.i++
	}
	if s.i == start {
		return s.fail("a value expected")
	}
	return nil
}

var delimiter = [256]bool{',': true, ':': true, '"': true, '{': true, '}': true, '[': true, ']': true, ' ': true, '\n': true, '\r': true, '\t': true}

func (s *scanner) skipString() error {
	for i := s.i + 1; ; {
		n := bytes.IndexByte(s.b[i:], '"')
		if n < 0 {
			return s.fail("the string does not end")
		}
		i += n
		slashes := 0
		for j := i - 1; j > s.i && s.b[j] == '\\'; j-- {
			slashes++
		}
		i++
		if slashes%2 == 0 {
			s.i = i
			return nil
		}
	}
}

// bracket marks the bytes that skipNested has to look at.
var bracket = [256]bool{'"': true, '{': true, '}': true, '[': true, ']': true}

func (s *scanner) skipNested() error {
	var open [maxDepth]byte
	depth := 0
	for s.i < len(s.b) {
		c := s.b[s.i]
		if !bracket[c] {
			s.i++
			continue
		}
		switch c {
		case '"':
			if err := s.skipString(); err != nil {
				return err
			}
			continue
		case '{', '[':
			if depth == len(open) {
				return s.fail("nested deeper than %d", record.MaxDepth)
			}
			open[depth] = c + 2 // '{' and '}' are two apart, as '[' and ']' are
			depth++
		case '}', ']':
			if depth--; open[depth] != c {
				return s.fail("%q closes nothing", c)
			}
			if depth == 0 {
				s.i++
				return nil
			}
		}
		s.i++
	}
	return s.fail("the value does not end")
}

// within puts a field in front of the one that an error names.
func within(field string, err error) error {
	var f *record.FieldError
	if !errors.As(err, &f) {
		return fmt.Errorf("%s: %w", field, err)
	}
	out := *f
	switch {
	case f.Field == "":
		out.Field = field
	case f.Field[0] == '[':
		out.Field = field + f.Field
	default:
		out.Field = field + "." + f.Field
	}
	return &out
}

// clip shortens what a peer sent, to be shown to it.
func clip(s string) string { return s[:min(len(s), 64)] }
