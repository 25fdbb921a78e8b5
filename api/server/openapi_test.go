package server

import (
	"encoding/json"
	"fmt"
	"math"
	"mime"
	"net/http"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"bulla/api"
	"bulla/attest"
	"bulla/ceremony"
	"bulla/record"
)

// description is docs/openapi.yaml, read.
type description struct{ doc map[string]any }

var describe = sync.OnceValues(func() (*description, error) {
	b, err := os.ReadFile("../../docs/openapi.yaml")
	if err != nil {
		return nil, err
	}
	v, err := parseYAML(string(b))
	if err != nil {
		return nil, fmt.Errorf("docs/openapi.yaml: %w", err)
	}
	return &description{v.(map[string]any)}, nil
})

// at walks down to a value; nil where there is none.
func at(v any, keys ...string) any {
	for _, k := range keys {
		m, _ := v.(map[string]any)
		v = m[k]
	}
	return v
}

// resolve follows a $ref.
func (d *description) resolve(v any) (any, error) {
	ref, ok := at(v, "$ref").(string)
	if !ok {
		return v, nil
	}
	if v = at(d.doc, strings.Split(strings.TrimPrefix(ref, "#/"), "/")...); v == nil {
		return nil, fmt.Errorf("%s leads nowhere", ref)
	}
	return v, nil
}

// operation finds what is said of a route; nil if nothing is.
func (d *description) operation(method, path string) any {
	return at(d.doc, "paths", strings.ReplaceAll(path, "...", ""), strings.ToLower(method))
}

// Every route is described, no other is, and the messages have the members that they are said to have.
func TestOpenAPIIsCurrent(t *testing.T) {
	t.Parallel()
	d, err := describe()
	if err != nil {
		t.Fatal(err)
	}
	operations := 0
	for _, methods := range at(d.doc, "paths").(map[string]any) {
		operations += len(methods.(map[string]any))
	}
	if operations != len(routes) {
		t.Errorf("%d operations are described, there are %d", operations, len(routes))
	}
	for _, r := range routes {
		op := d.operation(r.method, r.path)
		if op == nil {
			t.Errorf("%s %s is not described", r.method, r.path)
			continue
		}
		if (at(op, "servers") == nil) != r.log {
			t.Errorf("%s %s: below /logs/{name} it is %t", r.method, r.path, r.log)
		}
		var query []string
		params, _ := at(op, "parameters").([]any)
		for _, p := range params {
			if at(p, "in") == "query" {
				query = append(query, at(p, "name").(string))
			}
		}
		if !slices.Equal(query, r.query) {
			t.Errorf("%s %s: parameters %v, the server takes %v", r.method, r.path, query, r.query)
		}
	}
	if err := d.everyRef(d.doc); err != nil {
		t.Error(err)
	}
	for _, v := range []any{api.Failure{}, api.FailureDetail{}, api.Page{}, api.Seals{}, api.Challenge{}, api.Sealed{}, api.Activated{}, api.Taken{}, api.Enact{}, api.Enacted{}, api.Waiting{}, ceremony.Proposed{}, ceremony.Approval{}, api.Status{}, api.LogStatus{},
		api.Machine{}, api.SealStatus{}, api.SelfCheckStatus{}, api.CheckRound{}, api.WitnessStatus{}, attest.CredentialChallenge{}, attest.Activation{}, record.Event{}} {
		var want []string
		typ := reflect.TypeOf(v)
		for i := range typ.NumField() {
			if name, _, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ","); name != "" && name != "-" {
				want = append(want, name)
			}
		}
		var have []string
		properties, _ := at(d.doc, "components", "schemas", typ.Name(), "properties").(map[string]any)
		for name := range properties {
			have = append(have, name)
		}
		slices.Sort(have)
		slices.Sort(want)
		if !slices.Equal(have, want) {
			t.Errorf("schema %s has %v, the message %v", typ.Name(), have, want)
		}
	}
	var codes []string
	for _, c := range at(d.doc, "components", "schemas", "FailureDetail", "properties", "code", "enum").([]any) {
		codes = append(codes, c.(string))
	}
	for _, c := range []record.Code{record.CodeInvalid, record.CodeTooLarge, record.CodeForbidden, record.CodeConflict, record.CodeStale, record.CodeBusy, record.CodeClock,
		record.CodeHSM, record.CodeTPM, record.CodeDisk, record.CodeRollback, record.CodeUnsealed, record.CodeInternal, api.CodeUnknown} {
		if !slices.Contains(codes, string(c)) {
			t.Errorf("code %s is not described", c)
		}
	}
}

func (d *description) everyRef(v any) error {
	if _, err := d.resolve(v); err != nil {
		return err
	}
	switch v := v.(type) {
	case map[string]any:
		for _, x := range v {
			if err := d.everyRef(x); err != nil {
				return err
			}
		}
	case []any:
		for _, x := range v {
			if err := d.everyRef(x); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkReply checks an answer against the description: its status, its media type, and what it consists of. All HTTP tests do it.
func (r *rig) checkReply(method, path string, p reply) {
	r.t.Helper()
	d, err := describe()
	if err != nil {
		r.t.Fatal(err)
	}
	op := d.operation(described(method, path))
	if op == nil {
		if p.status != http.StatusNotFound && p.status != http.StatusMethodNotAllowed {
			r.t.Errorf("%s %s: %d, and it is not described", method, path, p.status)
		}
		return
	}
	res, err := d.resolve(at(op, "responses", strconv.Itoa(p.status)))
	if err != nil || res == nil {
		r.t.Errorf("%s %s: status %d is not described (%v)", method, path, p.status, err)
		return
	}
	kind, _, err := mime.ParseMediaType(p.header.Get("Content-Type"))
	schema := at(res, "content", kind, "schema")
	if err != nil || schema == nil {
		r.t.Errorf("%s %s: %d with %q is not described (%v)", method, path, p.status, kind, err)
		return
	}
	if kind != "application/json" || method == http.MethodHead {
		return
	}
	var v any
	err = json.Unmarshal(p.body, &v)
	if err == nil {
		err = d.check(schema, v)
	}
	if err != nil {
		r.t.Errorf("%s %s: %d %.500s: %v", method, path, p.status, p.body, err)
	}
}

// described turns a path into the one of its route.
func described(method, path string) (string, string) {
	path, _, _ = strings.Cut(path, "?")
	if rest, ok := strings.CutPrefix(path, "/logs/"); ok {
		_, rest, _ = strings.Cut(rest, "/")
		path = "/" + rest
	}
	if strings.HasPrefix(path, "/witness/") {
		path = "/witness/{n}"
	}
	if rest, ok := strings.CutPrefix(path, "/v1/entries/"); ok {
		_, tail, found := strings.Cut(rest, "/")
		if path = "/v1/entries/{index}"; found {
			path += "/" + tail
		}
	}
	if strings.HasPrefix(path, "/tile/") && !strings.Contains(path, "..") {
		path = "/tile/{path}"
	}
	if method == http.MethodHead {
		method = http.MethodGet
	}
	return method, path
}

// check is as much of JSON Schema as the description uses; it is strict about members that are not described.
func (d *description) check(schema, v any) error {
	schema, err := d.resolve(schema)
	if err != nil {
		return err
	}
	if choices, ok := at(schema, "oneOf").([]any); ok {
		for _, c := range choices {
			if err = d.check(c, v); err == nil {
				return nil
			}
		}
		return err
	}
	if enum, ok := at(schema, "enum").([]any); ok && !slices.Contains(enum, v) {
		return fmt.Errorf("%v is not one of %v", v, enum)
	}
	switch kind := at(schema, "type"); x := v.(type) {
	case map[string]any:
		if kind != "object" {
			return fmt.Errorf("an object where %v should be", kind)
		}
		return d.checkObject(schema, x)
	case []any:
		if kind != "array" {
			return fmt.Errorf("an array where %v should be", kind)
		}
		for i, item := range x {
			if err := d.check(at(schema, "items"), item); err != nil {
				return fmt.Errorf("[%d]: %w", i, err)
			}
		}
	case string, bool, float64:
		if n, ok := v.(float64); !(kind == "string" && reflect.TypeOf(v).Kind() == reflect.String || kind == "boolean" && v == true || kind == "boolean" && v == false || kind == "integer" && ok && n == math.Trunc(n)) {
			return fmt.Errorf("%v where %v should be", v, kind)
		}
	default:
		return fmt.Errorf("%v", v)
	}
	return nil
}

func (d *description) checkObject(schema any, v map[string]any) error {
	required, _ := at(schema, "required").([]any)
	for _, name := range required {
		if _, ok := v[name.(string)]; !ok {
			return fmt.Errorf("%s is missing", name)
		}
	}
	properties, _ := at(schema, "properties").(map[string]any)
	rest := at(schema, "additionalProperties")
	for name, x := range v {
		p := properties[name]
		if p == nil {
			p = rest
		}
		if p == nil && properties != nil {
			return fmt.Errorf("%s is not described", name)
		}
		if p == nil {
			continue // nothing is said of its members
		}
		if err := d.check(p, x); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}
