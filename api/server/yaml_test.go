package server

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
)

// yamlReader reads as much of YAML as docs/openapi.yaml uses, and refuses the rest: block and flow collections, plain and double-quoted
// scalars (all of them strings), and texts behind | and >.
type yamlReader struct {
	lines []string
	i     int
}

func parseYAML(s string) (any, error) {
	y := &yamlReader{lines: strings.Split(strings.TrimRight(s, "\n"), "\n")}
	v, err := y.block(0)
	if err == nil && y.i < len(y.lines) {
		err = fmt.Errorf("indentation")
	}
	if err != nil {
		return nil, fmt.Errorf("line %d: %w", y.i+1, err)
	}
	return v, nil
}

func indent(line string) int { return len(line) - len(strings.TrimLeft(line, " ")) }

// block reads the collection whose lines are indented by n.
func (y *yamlReader) block(n int) (any, error) {
	if strings.HasPrefix(y.lines[y.i][n:], "- ") {
		return y.list(n)
	}
	out := map[string]any{}
	for y.i < len(y.lines) && indent(y.lines[y.i]) == n {
		key, rest, ok := strings.Cut(y.lines[y.i][n:], ":")
		if key = strings.Trim(key, `"`); !ok || key == "" || out[key] != nil || rest != "" && rest[0] != ' ' {
			return nil, fmt.Errorf("no key, or there twice: %q", key)
		}
		v, err := y.value(strings.TrimSpace(rest), n)
		if err != nil {
			return nil, err
		}
		out[key] = v
	}
	return out, nil
}

func (y *yamlReader) list(n int) (any, error) {
	var out []any
	for y.i < len(y.lines) && indent(y.lines[y.i]) == n && strings.HasPrefix(y.lines[y.i][n:], "- ") {
		if item := y.lines[y.i][n+2:]; item[0] == '{' {
			v, err := flow(item)
			if err != nil {
				return nil, err
			}
			out = append(out, v)
			y.i++
			continue
		}
		y.lines[y.i] = y.lines[y.i][:n] + "  " + y.lines[y.i][n+2:] // the item is a block behind the dash
		v, err := y.block(n + 2)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}

// value reads what belongs to a key in a line that is indented by n.
func (y *yamlReader) value(rest string, n int) (any, error) {
	y.i++
	switch {
	case rest == "|" || rest == ">":
		var text []string
		for y.i < len(y.lines) && (indent(y.lines[y.i]) > n || y.lines[y.i] == "") {
			text = append(text, strings.TrimSpace(y.lines[y.i]))
			y.i++
		}
		return strings.Join(text, "\n"), nil
	case rest != "":
		v, err := flow(rest)
		if err != nil {
			y.i--
		}
		return v, err
	case y.i < len(y.lines) && indent(y.lines[y.i]) > n:
		return y.block(indent(y.lines[y.i]))
	}
	y.i--
	return nil, fmt.Errorf("no value")
}

// flow reads a value in one line.
func flow(s string) (any, error) {
	if s[0] != '{' && s[0] != '[' && s[0] != '"' {
		if strings.Contains(s, ": ") || strings.Contains(s, " #") || strings.ContainsAny(s[:1], "&*!%@`'|>") {
			return nil, fmt.Errorf("%q must be quoted", s)
		}
		return s, nil
	}
	v, rest, err := flowValue(s)
	if err == nil && rest != "" {
		err = fmt.Errorf("%q follows", rest)
	}
	return v, err
}

func flowValue(s string) (v any, rest string, err error) {
	switch {
	case s == "":
		return nil, "", fmt.Errorf("it ends early")
	case s[0] == '{':
		return flowMap(s[1:])
	case s[0] == '[':
		return flowList(s[1:])
	case s[0] == '"':
		text, rest, ok := strings.Cut(s[1:], `"`)
		if !ok || strings.Contains(text, `\`) {
			return nil, "", fmt.Errorf("a quote is missing: %q", s)
		}
		return text, strings.TrimLeft(rest, " "), nil
	}
	i := strings.IndexAny(s, ",]}")
	if i < 0 || strings.Contains(s[:i], ": ") || strings.ContainsAny(s[:i], `{["#`) {
		return nil, "", fmt.Errorf("%q must be quoted", s)
	}
	return strings.TrimSpace(s[:i]), s[i:], nil
}

func flowMap(s string) (v any, rest string, err error) {
	out := map[string]any{}
	for {
		key, after, ok := strings.Cut(strings.TrimLeft(s, " "), ": ")
		if key = strings.Trim(key, `"`); !ok || out[key] != nil || strings.ContainsAny(key, "{}[],") {
			return nil, "", fmt.Errorf("no key, or there twice: %q", s)
		}
		if out[key], s, err = flowValue(strings.TrimLeft(after, " ")); err != nil {
			return nil, "", err
		}
		if s != "" && s[0] == '}' {
			return out, strings.TrimLeft(s[1:], " "), nil
		}
		if s == "" || s[0] != ',' {
			return nil, "", fmt.Errorf("} is missing: %q", s)
		}
		s = s[1:]
	}
}

func flowList(s string) (v any, rest string, err error) {
	out := []any{}
	if s = strings.TrimLeft(s, " "); s != "" && s[0] == ']' {
		return out, s[1:], nil
	}
	for {
		var item any
		if item, s, err = flowValue(strings.TrimLeft(s, " ")); err != nil {
			return nil, "", err
		}
		out = append(out, item)
		if s != "" && s[0] == ']' {
			return out, strings.TrimLeft(s[1:], " "), nil
		}
		if s == "" || s[0] != ',' {
			return nil, "", fmt.Errorf("] is missing: %q", s)
		}
		s = s[1:]
	}
}

func TestYAML(t *testing.T) {
	t.Parallel()
	got, err := parseYAML("a: x\nb:\n  - {c: d, \"e\": [f, \"g, h\"], i: {j: []}}\n  - k: l\n    m: {n: o}\np: |\n  q: r\n\n  s\nt: http://u\n")
	want := map[string]any{
		"a": "x", "b": []any{
			map[string]any{"c": "d", "e": []any{"f", "g, h"}, "i": map[string]any{"j": []any{}}},
			map[string]any{"k": "l", "m": map[string]any{"n": "o"}},
		},
		"p": "q: r\n\ns", "t": "http://u",
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []string{"a: b: c", "a:", "a: x\na: y", "a: {b: c", "a: {b: c, b: d}", "a: [b", "a: 'b'", "a: \"b", "a: x # y", "a: *b", "a: x\n  b: y", "a", "a: {b: c: d}", "a: {b: c}}"} {
		if v, err := parseYAML(bad); err == nil {
			t.Errorf("%q is read as %v", bad, v)
		}
	}
}
