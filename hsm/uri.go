package hsm

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// URI is a parsed pkcs11: URI (RFC 7512) that names a token or a private key in it. Empty fields are absent.
type URI struct {
	Token, Manufacturer, Serial, Model string // the token's
	Object                             string // CKA_LABEL
	ID                                 []byte // CKA_ID
	Type                               string // "private" or absent

	ModulePath string // absolute path of the library
	ModuleInit string // ours: its initialisation string
	PINSource  string // see ReadPIN
}

const (
	uriScheme = "pkcs11:"
	maxURI    = 4096
)

// attribute is one field of a URI; the order of the table is the canonical one.
type attribute struct {
	name  string
	value *string
	max   int // bytes
}

func (u *URI) path(id *string) []attribute {
	return []attribute{
		{"token", &u.Token, 32}, {"manufacturer", &u.Manufacturer, 32}, {"serial", &u.Serial, 16}, {"model", &u.Model, 16},
		{"object", &u.Object, maxLabel}, {"id", id, 255}, {"type", &u.Type, 7},
	}
}

func (u *URI) query() []attribute {
	return []attribute{{"module-path", &u.ModulePath, 1024}, {"module-init", &u.ModuleInit, 1024}, {"pin-source", &u.PINSource, 1024}}
}

// refusedAttributes are known and not taken, each for a reason.
var refusedAttributes = map[string]string{
	"pin-value":            "a PIN does not belong in a configuration; use pin-source",
	"slot-id":              "slot numbers change when a token is initialised; use token and serial",
	"slot-description":     "slots change; use token and serial",
	"slot-manufacturer":    "slots change; use token and serial",
	"library-manufacturer": "libraries are named by module-path",
	"library-description":  "libraries are named by module-path",
	"library-version":      "libraries are named by module-path",
	"module-name":          "libraries are named by module-path",
}

// ParseURI parses a pkcs11: URI. Unknown and repeated attributes, empty values and stray percent signs are refused; so is pin-value.
func ParseURI(s string) (URI, error) {
	u, err := parseURI(s)
	if err != nil {
		return URI{}, fmt.Errorf("reading pkcs11 URI: %w", err) // never with s: it may hold a pin-value
	}
	return u, nil
}

func parseURI(s string) (URI, error) {
	var u URI
	if len(s) > maxURI {
		return u, fmt.Errorf("longer than %d bytes", maxURI)
	}
	rest, ok := strings.CutPrefix(s, uriScheme)
	if !ok {
		return u, fmt.Errorf("does not begin with %s", uriScheme)
	}
	path, query, hasQuery := strings.Cut(rest, "?")
	var id string
	if err := parseAttributes(path, ";", pathCharacters, u.path(&id)); err != nil {
		return u, err
	}
	if id != "" {
		u.ID = []byte(id)
	}
	if hasQuery {
		if err := parseAttributes(query, "&", queryCharacters, u.query()); err != nil {
			return u, err
		}
	}
	if u.Type != "" && u.Type != "private" {
		return u, fmt.Errorf("type: only private keys are used here")
	}
	if u.ModulePath != "" && !strings.HasPrefix(u.ModulePath, "/") {
		return u, errors.New("module-path: not absolute")
	}
	return u, nil
}

func parseAttributes(s, separator, allowed string, attributes []attribute) error {
	if s == "" {
		return nil
	}
	seen := make(map[string]bool)
	for part := range strings.SplitSeq(s, separator) {
		name, value, ok := strings.Cut(part, "=")
		if why := refusedAttributes[name]; why != "" {
			return fmt.Errorf("%s: %s", name, why)
		}
		var a *attribute
		for i := range attributes {
			if attributes[i].name == name {
				a = &attributes[i]
			}
		}
		switch {
		case a == nil:
			return fmt.Errorf("unknown attribute %.40q", name)
		case !ok:
			return fmt.Errorf("%s: no value", name)
		case seen[name]:
			return fmt.Errorf("%s: given twice", name)
		}
		seen[name] = true
		decoded, err := unescape(value, allowed)
		switch {
		case err != nil:
			return fmt.Errorf("%s: %w", name, err)
		case decoded == "":
			return fmt.Errorf("%s: empty", name)
		case len(decoded) > a.max:
			return fmt.Errorf("%s: longer than %d bytes", name, a.max)
		case name != "id" && !plain(decoded):
			return fmt.Errorf("%s: not UTF-8, or control characters", name)
		}
		*a.value = decoded
	}
	return nil
}

func plain(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7F })
}

// What RFC 7512 allows unescaped besides letters and digits.
const (
	pathCharacters  = "-._~" + ":[]@!$'()*+,=" + "&"
	queryCharacters = "-._~" + ":[]@!$'()*+,=" + "/?|"
)

func literal(c byte, allowed string) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte(allowed, c) >= 0
}

func unescape(s, allowed string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '%':
			if i+2 >= len(s) || hexDigit(s[i+1]) < 0 || hexDigit(s[i+2]) < 0 {
				return "", errors.New("% without two hex digits")
			}
			b.WriteByte(byte(hexDigit(s[i+1])<<4 | hexDigit(s[i+2])))
			i += 2
		case literal(c, allowed):
			b.WriteByte(c)
		default:
			return "", fmt.Errorf("character %q must be written %%%02X", c, c)
		}
	}
	return b.String(), nil
}

func hexDigit(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

// String returns the canonical form: attributes in fixed order, escapes only where needed, and in all of id. It parses to u again.
func (u URI) String() string {
	id := string(u.ID)
	path := joinAttributes(u.path(&id), ";", "-._~:@+,=")
	query := joinAttributes(u.query(), "&", "-._~:@+,=/")
	if query != "" {
		query = "?" + query
	}
	return uriScheme + path + query
}

func joinAttributes(attributes []attribute, separator, allowed string) string {
	var parts []string
	for _, a := range attributes {
		if *a.value == "" {
			continue
		}
		var b strings.Builder
		b.WriteString(a.name + "=")
		for i := range len(*a.value) {
			if c := (*a.value)[i]; a.name != "id" && literal(c, allowed) {
				b.WriteByte(c)
			} else {
				fmt.Fprintf(&b, "%%%02X", c)
			}
		}
		parts = append(parts, b.String())
	}
	return strings.Join(parts, separator)
}

// ModuleConfig is what the URI says for [Load].
func (u URI) ModuleConfig() ModuleConfig { return ModuleConfig{Path: u.ModulePath, Init: u.ModuleInit} }

// TokenConfig is what the URI says for [Module.Token]. Its PIN is read from the pin-source, if there is one.
func (u URI) TokenConfig() TokenConfig {
	cfg := TokenConfig{Label: u.Token, Serial: u.Serial, Manufacturer: u.Manufacturer, Model: u.Model}
	if u.PINSource != "" {
		cfg.PIN = func() ([]byte, error) { return ReadPIN(u.PINSource) }
	}
	return cfg
}

// KeyRef is what the URI says for [Token.Key].
func (u URI) KeyRef() KeyRef { return KeyRef{Label: u.Object, ID: u.ID} }
