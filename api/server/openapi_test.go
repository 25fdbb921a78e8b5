package server

import (
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"bulla/api"
	"bulla/record"
)

// docs/openapi.yaml describes every route and no other, and the messages' members as they are.
func TestOpenAPIIsCurrent(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("../../docs/openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	paths, components, found := strings.Cut(string(b), "\ncomponents:\n")
	if !found {
		t.Fatal("no components")
	}
	_, schemas, _ := strings.Cut(components, "  schemas:")
	_, paths, _ = strings.Cut(paths, "\npaths:\n")
	described := operations(paths)
	for _, r := range routes {
		path := strings.ReplaceAll(r.path, "...", "")
		op, ok := described[r.method+" "+path]
		if !ok {
			t.Errorf("%s %s is not described", r.method, path)
			continue
		}
		delete(described, r.method+" "+path)
		if strings.Contains(op, "x-log: true") != r.log {
			t.Errorf("%s %s: x-log is not %t", r.method, path, r.log)
		}
		var query []string
		for _, m := range regexp.MustCompile(`name: (\w+), in: query`).FindAllStringSubmatch(op, -1) {
			query = append(query, m[1])
		}
		if !slices.Equal(query, r.query) {
			t.Errorf("%s %s: query %v, the server takes %v", r.method, path, query, r.query)
		}
		if !strings.Contains(op, `"405"`) {
			t.Errorf("%s %s: no answer to a wrong method", r.method, path)
		}
	}
	for op := range described {
		t.Errorf("%s is described, but does not exist", op)
	}
	for _, v := range []any{api.Failure{}, api.FailureDetail{}, api.Page{}, api.Seals{}, api.Challenge{}, api.Sealed{}, api.Status{}, api.LogStatus{},
		api.Machine{}, api.SealStatus{}, record.Event{}} {
		typ := reflect.TypeOf(v)
		section := regexp.MustCompile(`(?s)\n    ` + typ.Name() + `:\n(.*?)(\n    \w|$)`).FindStringSubmatch(schemas)
		if section == nil {
			t.Errorf("no schema %s", typ.Name())
			continue
		}
		var have, want []string
		for _, m := range regexp.MustCompile(`(?m)^        (\w+): `).FindAllStringSubmatch(section[1], -1) {
			have = append(have, m[1])
		}
		for i := range typ.NumField() {
			if name, _, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ","); name != "" && name != "-" {
				want = append(want, name)
			}
		}
		slices.Sort(have)
		slices.Sort(want)
		if !slices.Equal(have, want) {
			t.Errorf("schema %s has %v, the message %v", typ.Name(), have, want)
		}
	}
}

// operations splits the description by "METHOD path".
func operations(paths string) map[string]string {
	out := map[string]string{}
	var path, op string
	for line := range strings.Lines(paths) {
		if m := regexp.MustCompile(`^  (/\S*):`).FindStringSubmatch(line); m != nil {
			path = m[1]
		} else if m := regexp.MustCompile(`^    (\w+):`).FindStringSubmatch(line); m != nil {
			op = strings.ToUpper(m[1]) + " " + path
			out[op] = ""
		} else {
			out[op] += line
		}
	}
	return out
}
