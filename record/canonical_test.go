package record

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

func TestCanonicalDepth(t *testing.T) {
	t.Parallel()
	for depth := range 12 {
		for _, open := range []string{"[", `{"a":`} {
			closing := map[string]string{"[": "]", `{"a":`: "}"}[open]
			src := []byte(strings.Repeat(open, depth) + "1" + strings.Repeat(closing, depth))
			err := CheckCanonical(src, MaxDepth)
			if want := depth <= MaxDepth; (err == nil) != want || isCanonical(src, MaxDepth) != want {
				t.Errorf("depth %d of %q: %v", depth, open, err)
			}
		}
	}
}

// Hostile nesting must be refused when the limit is reached, not after the whole of it was read or a stack was filled.
func TestCanonicalHostileNesting(t *testing.T) { // not parallel: it counts allocations
	for _, src := range []string{
		strings.Repeat("[", 10_000), strings.Repeat(`{"a":`, 10_000), strings.Repeat("[", 50_000_000),
		strings.Repeat("[", 10_000) + strings.Repeat("]", 10_000),
	} {
		start := time.Now()
		allocs := testing.AllocsPerRun(1, func() {
			if _, err := Canonicalize([]byte(src), MaxDepth); err == nil || !strings.Contains(err.Error(), "nested too deeply") {
				t.Errorf("%.20s...: %v", src, err)
			}
		})
		if took := time.Since(start); took > 2*time.Second || allocs > 200 {
			t.Errorf("%.20s...: %v and %v allocations", src, took, allocs)
		}
	}
}

func TestUnmarshalCanonical(t *testing.T) {
	t.Parallel()
	type inner struct {
		N int   `json:"n,omitzero"`
		H *Hash `json:"h,omitzero"`
	}
	type outer struct {
		List []inner `json:"list"`
		Data []byte  `json:"data,omitzero"`
		U    uint8   `json:"u,omitzero"`
	}
	for src, want := range map[string]string{
		`{"list":[]}`:                 "",
		`{"list":[{"n":1},{}]}`:       "",
		`{"data":"AAE=","list":[]}`:   "",
		`{"list":[{"n":0}]}`:          "list[0].n: not in canonical form",
		`{"list":[{"m":1}]}`:          "list[0].m: unknown member",
		`{"list":[{"N":1}]}`:          "list[0].N: unknown member",
		`{"list":[{"n":"1"}]}`:        "list[0].n: has the wrong type",
		`{"list":[{"n":null}]}`:       "list[0].n: null",
		`{"list":{}}`:                 "list: has the wrong type",
		`{}`:                          "not in canonical form",
		`{"list":[]} `:                "not in canonical form",
		`{"list":[]}{}`:               "more than one JSON value",
		`{"list":[],"data":"AAE="}`:   "list: not in canonical form",
		`{"data":"AAF=","list":[]}`:   "data: not in canonical form", // spare bits
		`{"data":"AA\nE=","list":[]}`: "data: ",
		`{"data":"AAE","list":[]}`:    "data: ",
		`{"data":"","list":[]}`:       "", // empty is not nil
		`{"list":[],"u":256}`:         "u: ",
		`{"list":[],"u":-1}`:          "u: ",
		`{"list":[{"h":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}]}`: "",
		`{"list":[{"h":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAB="}]}`: "list[0].h: not in canonical form",
		`{"list":[{"h":"AAAA"}]}`: "list[0].h: ",
	} {
		err := UnmarshalCanonical([]byte(src), new(outer))
		if want == "" && err != nil || want != "" && (err == nil || !strings.HasPrefix(err.Error(), want)) {
			t.Errorf("%s: got %v, want %q", src, err, want)
		}
		if _, ok := err.(*FieldError); err != nil && !ok {
			t.Errorf("%s: %T is not a *FieldError", src, err)
		}
	}
}

func TestMarshalCanonicalRefuses(t *testing.T) {
	t.Parallel()
	var deep any = 1
	for range MaxDepth + 1 {
		deep = []any{deep}
	}
	for name, v := range map[string]any{
		"float": 1.5, "large": uint64(MaxInt + 1), "null": map[string]any{"a": nil}, "deep": deep, "utf8": "\xff", "func": func() {},
	} {
		if b, err := MarshalCanonical(v); err == nil {
			t.Errorf("%s: encoded as %s", name, b)
		}
	}
}

// A hostile name must not make an error of any size, nor one that moves the cursor of a terminal.
func TestPathsAreClean(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 5000)
	for src, want := range map[string]string{
		`{"` + long + `":{"` + long + `":{"` + long + `":{"` + long + `":{"` + long + `":{"` + long + `":null}}}}}}`: "",
		"{\"\\u001b[2J\u202e\":null}": `["\x1b[2J\u202e"]`,
		`{"":[{"a.b":null}]}`:         `[""][0]["a.b"]`,
		`{"0":[{"1":null}]}`:          `0[0].1`,
	} {
		_, err := Canonicalize([]byte(src), MaxDepth)
		fe, ok := err.(*FieldError)
		if !ok || want != "" && fe.Field != want || len(fe.Error()) > 400 {
			t.Errorf("%.40s: %v", src, err)
		}
	}
}

func TestNameOrder(t *testing.T) {
	t.Parallel()
	names := []string{"", `\b`, `\t`, `\u001f`, " ", `\"`, "1", "A", "[", `\\`, "]", "a", "aa", "b", "\u007f", "\u0080", "ö", "€", "\ud7ff", "😀", "\U0010ffff", "\ue000", "\uffff"}
	for i, a := range names {
		for j, b := range names {
			if got := nameLess([]byte(a), []byte(b)); got != (i < j) {
				t.Errorf("nameLess(%q, %q) = %v", a, b, got)
			}
			for _, pad := range []string{"x", "é", `\n`, "😀"} {
				if got := nameLess([]byte(pad+a), []byte(pad+b)); got != (i < j) {
					t.Errorf("nameLess(%q, %q) = %v", pad+a, pad+b, got)
				}
			}
		}
	}
}

// The scanner and the reference must agree on every text: that what the reference makes is canonical, and that what the scanner
// calls canonical is what the reference makes of it.
func FuzzCanonical(f *testing.F) {
	for _, s := range seeds(f, "canonical.json") {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		out, err := Canonicalize(src, MaxDepth)
		if scanned := isCanonical(src, MaxDepth); scanned != (err == nil && bytes.Equal(src, out)) {
			t.Fatalf("scanner says %v, reference %q, %v", scanned, out, err)
		}
		if err != nil {
			if _, ok := err.(*FieldError); !ok || len(err.Error()) > 600 {
				t.Fatalf("%T: %v", err, err)
			}
			return
		}
		if !isCanonical(out, MaxDepth) {
			t.Fatalf("scanner refuses %q", out)
		}
		again, err := Canonicalize(out, MaxDepth)
		if err != nil || !bytes.Equal(again, out) {
			t.Fatalf("%q becomes %q, %v", out, again, err)
		}
	})
}
