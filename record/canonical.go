package record

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Canonicalize returns the canonical form of the JSON value in src: RFC 8785 in a strict profile. Numbers are integers within
// +-MaxInt written `0|-?[1-9][0-9]*`, checked on the source text because RFC 8785 itself would round; null, duplicate names,
// lone surrogates and invalid UTF-8 are refused; Unicode is not normalized. At most maxDepth objects and arrays may be nested.
// The caller bounds the size of src. Errors are *FieldError.
//
// This is the reference that the faster paths of this package are compared with.
func Canonicalize(src []byte, maxDepth int) ([]byte, error) {
	if err := checkProfile(src, maxDepth); err != nil {
		return nil, err
	}
	out, err := jsontext.AppendFormat(nil, src, jsontext.CanonicalizeRawFloats(true), jsontext.ReorderRawObjects(true))
	if err != nil {
		return nil, refuse("", "not canonicalizable: %v", err)
	}
	return out, nil
}

// CheckCanonical refuses src unless it is exactly what Canonicalize would make of it.
func CheckCanonical(src []byte, maxDepth int) error {
	if isCanonical(src, maxDepth) {
		return nil
	}
	out, err := Canonicalize(src, maxDepth)
	if err != nil {
		return err
	}
	return firstDifference(src, out)
}

// MarshalCanonical returns the canonical form of one of our own structs. Struct tags are those of json/v2: a member that may be
// absent has omitzero. Anything that would become null, a float or too deep is an error.
func MarshalCanonical(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encoding %T: %w", v, err)
	}
	if isCanonical(b, MaxDepth) {
		return b, nil
	}
	if b, err = Canonicalize(b, MaxDepth); err != nil {
		return nil, fmt.Errorf("encoding %T: %w", v, err)
	}
	return b, nil
}

// UnmarshalCanonical reads canonical JSON into v, a pointer to a zero struct. Whatever MarshalCanonical(v) would not give back
// byte for byte is refused: other order or white space, unknown or wrongly cased members, members that are zero where absent
// means zero, sloppy base64, trailing data. Errors are *FieldError.
func UnmarshalCanonical(src []byte, v any) error {
	if err := CheckCanonical(src, MaxDepth); err != nil {
		return err
	}
	if err := json.Unmarshal(src, v, json.RejectUnknownMembers(true)); err != nil {
		return unmarshalError(src, err)
	}
	again, err := MarshalCanonical(v)
	if err != nil {
		return refuse("", "%v", err)
	}
	if !bytes.Equal(src, again) {
		return firstDifference(src, again)
	}
	return nil
}

// checkProfile reads src token by token, so that depth is known before anything nests deeper, and refuses what the profile does
// not have.
func checkProfile(src []byte, maxDepth int) error {
	d := jsontext.NewDecoder(bytes.NewReader(src))
	for values := 0; ; {
		tok, err := d.ReadToken()
		if err == io.EOF && values == 1 {
			return nil
		}
		if err != nil {
			return syntaxError(d, err)
		}
		switch tok.Kind() {
		case 'n':
			return refuse(path(d), "null is not allowed: leave the member out")
		case '0':
			if _, ok := integer([]byte(tok.String())); !ok {
				return refuse(path(d), "%s is not an integer within +-(2^53-1), written without sign of plus, leading zero, fraction or exponent: write other numbers as strings", clip(tok.String(), 40))
			}
		case '{', '[':
			if d.StackDepth() > maxDepth {
				return refuse(path(d), "nested too deeply: at most %d levels are allowed here", maxDepth)
			}
		}
		if d.StackDepth() == 0 {
			if values++; values > 1 {
				return refuse("", "more than one JSON value")
			}
		}
	}
}

// integer parses a number of the profile.
func integer(b []byte) (int64, bool) {
	digits := b
	if len(b) > 0 && b[0] == '-' {
		digits = b[1:]
	}
	if len(digits) == 0 || len(digits) > 16 || digits[0] == '0' && len(b) > 1 {
		return 0, false
	}
	var n int64
	for _, c := range digits {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	if len(digits) < len(b) {
		n = -n
	}
	return n, -MaxInt <= n && n <= MaxInt
}

func syntaxError(d *jsontext.Decoder, err error) error {
	var syn *jsontext.SyntacticError
	switch {
	case err == io.EOF:
		return refuse("", "empty: expected a JSON value")
	case !errors.As(err, &syn):
		return refuse("", "not JSON: %v", err)
	}
	field := pointerPath(syn.JSONPointer, d)
	switch {
	case errors.Is(syn.Err, jsontext.ErrDuplicateName):
		return refuse(field, "the member appears twice in its object")
	case errors.Is(syn.Err, io.ErrUnexpectedEOF):
		return refuse(field, "the JSON text ends too early")
	}
	return refuse(field, "not JSON: %v at byte %d", syn.Err, syn.ByteOffset)
}

func unmarshalError(src []byte, err error) error {
	var sem *json.SemanticError
	if !errors.As(err, &sem) {
		return refuse("", "%v", err)
	}
	field := pathAt(src, sem.JSONPointer)
	switch {
	case errors.Is(err, json.ErrUnknownName):
		return refuse(field, "unknown member")
	case sem.Err != nil:
		return refuse(field, "%v", sem.Err)
	}
	return refuse(field, "has the wrong type")
}

// firstDifference says where src departs from its canonical form.
func firstDifference(src, canonical []byte) error {
	n := 0
	for n < len(src) && n < len(canonical) && src[n] == canonical[n] {
		n++
	}
	d := jsontext.NewDecoder(bytes.NewReader(src))
	for {
		if _, err := d.ReadToken(); err != nil || d.InputOffset() > int64(n) {
			return refuse(path(d), "not in canonical form from byte %d on (RFC 8785: sorted members, no white space, shortest escapes; absent means absent)", n)
		}
	}
}

// path is where the last token that d read lies.
func path(d *jsontext.Decoder) string { return pointerPath(d.StackPointer(), d) }

// pathAt is the path of a pointer into src, which is valid JSON.
func pathAt(src []byte, p jsontext.Pointer) string {
	depth := 1
	for range p.Tokens() {
		depth++
	}
	d := jsontext.NewDecoder(bytes.NewReader(src))
	for {
		if _, err := d.ReadToken(); err != nil {
			return pointerPath(p, d)
		}
		// What lies deeper cannot match, and building its pointer costs as much as its names are long.
		if d.StackDepth() <= depth && d.StackPointer() == p {
			return path(d)
		}
	}
}

// pointerPath turns an RFC 6901 pointer into the form of FieldError; d stands where the pointer leads, and knows which of its parts
// are indexes of arrays. Names that are not plain are quoted as ASCII, long paths are cut.
func pointerPath(p jsontext.Pointer, d *jsontext.Decoder) string {
	var out []byte
	level := 0
	for name := range p.Tokens() {
		var container jsontext.Kind
		if level++; level <= d.StackDepth() {
			container, _ = d.StackIndex(level)
		}
		switch {
		case container == '[':
			out = append(append(append(out, '['), name...), ']')
		case plainName(name) && len(out) > 0:
			out = append(append(out, '.'), name...)
		case plainName(name):
			out = append(out, name...)
		default:
			out = append(append(append(out, '['), strconv.QuoteToASCII(clip(name, 40))...), ']')
		}
	}
	return clip(string(out), 200)
}

func plainName(s string) bool {
	for i := range len(s) {
		if c := s[i]; c != '_' && c != '-' && (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'z') {
			return false
		}
	}
	return s != "" && len(s) <= 40
}

// clip cuts what is shown of hostile input.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return s[:n] + "..."
}
