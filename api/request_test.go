package api

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"

	"bulla/record"
)

const good = `{"type":"a.b"}`

func TestParseRequest(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		in   string
		want Request
	}{
		{`{"id":1,"op":"append","events":[{"type":"a.b"}]}`, Request{ID: 1, Want: WantReceipt}},
		{` { "events" : [ {"type":"a.b"} ] , "want" : "ack" , "log" : "a.example\/log" , "op":"append" , "id" : 9007199254740991 } `, Request{ID: record.MaxInt, Want: WantAck, Log: "a.example/log"}},
		{`{"\u0069d":2,"op":"\u0061ppend","log":"ü","events":[{"type":"a\u002eb"}]}`, Request{ID: 2, Want: WantReceipt, Log: "ü"}},
	} {
		r, err := ParseRequest([]byte(c.in))
		if err != nil {
			t.Errorf("%s: %v", c.in, err)
			continue
		}
		c.want.Events = []Event{{Body: []byte(good)}}
		if !reflect.DeepEqual(*r, c.want) {
			t.Errorf("%s is read as %+v", c.in, *r)
		}
	}
}

// An event that comes in canonical form stays where it is, with no room behind it that an append could write to.
func TestEventsAreNotCopied(t *testing.T) {
	t.Parallel()
	b := []byte(`{"id":1,"op":"append","events":[{"type":"a.b"},{"id":"x","stream":{"id":"s","n":7},"type":"a.b"}]}`)
	r, err := ParseRequest(b)
	if err != nil {
		t.Fatal(err)
	}
	for i, e := range r.Events {
		if at := bytes.Index(b, e.Body); &b[at] != &e.Body[0] || cap(e.Body) != len(e.Body) {
			t.Errorf("event %d was copied, or has a capacity of %d for %d bytes", i, cap(e.Body), len(e.Body))
		}
	}
	if want := (record.EventKey{ID: "x", Stream: "s", N: 7, HasStream: true}); r.Events[1].Key != want {
		t.Errorf("key %+v", r.Events[1].Key)
	}
}

func TestRefusedRequests(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		in    string
		id    uint64 // that the refusal can be answered by
		field string
		why   string
	}{
		{``, 0, "", "expected"},
		{`[]`, 0, "", "expected"},
		{`{`, 0, "", "a string expected"},
		{`{"id":1`, 1, "", "expected"},
		{`{"id":1,}`, 1, "", "a string expected"},
		{`{"id":1,"op":"append","events":[` + good + `]}x`, 1, "", "something follows"},
		{`{"id":1,"op":"append","events":[` + good + `],"more":true}`, 1, "more", "unknown member"},
		{`{"id":1,"id":1,"op":"append","events":[` + good + `]}`, 0, "id", "twice"},
		{`{"op":"append","events":[` + good + `]}`, 0, "id", "missing"},
		{`{"id":0,"op":"append","events":[` + good + `]}`, 0, "id", "missing"},
		{`{"id":-1,"op":"append","events":[` + good + `]}`, 0, "id", "integer"},
		{`{"id":1.0,"op":"append","events":[` + good + `]}`, 0, "id", "integer"},
		{`{"id":1e2,"op":"append","events":[` + good + `]}`, 0, "id", "integer"},
		{`{"id":7,"id":8,"op":"append","events":[` + good + `]}`, 0, "id", "twice"},
		{`{"id":01,"op":"append","events":[` + good + `]}`, 0, "id", "integer"},
		{`{"id":9007199254740992,"op":"append","events":[` + good + `]}`, 0, "id", "integer"},
		{`{"id":"1","op":"append","events":[` + good + `]}`, 0, "id", "integer"},
		{`{"id":1,"events":[` + good + `]}`, 1, "op", "append"},
		{`{"id":1,"op":"delete","events":[` + good + `]}`, 1, "op", `"delete"`},
		{`{"id":1,"op":7,"events":[` + good + `]}`, 1, "op", "string"},
		{`{"id":1,"op":"append","want":"all","events":[` + good + `]}`, 1, "want", `"all"`},
		{"{\"id\":1,\"op\":\"append\",\"log\":\"\xff\",\"events\":[" + good + "]}", 1, "log", "UTF-8"},
		{`{"id":1,"op":"append","log":"\ud800","events":[` + good + `]}`, 1, "log", "surrogate"},
		{`{"id":1,"op":"append","log":"` + strings.Repeat("x", 5000) + `","events":[` + good + `]}`, 1, "log", "too long"},
		{`{"id":1,"op":"append"}`, 1, "events", "missing"},
		{`{"id":1,"op":"append","events":[]}`, 1, "events", "empty"},
		{`{"id":1,"op":"append","events":{}}`, 1, "events", "'[' expected"},
		{`{"id":1,"op":"append","events":[` + good + `,]}`, 1, "events[1]", "a value expected"},
		{`{"id":1,"op":"append","events":[` + good + good + `]}`, 1, "events", "expected"},
		{`{"id":1,"op":"append","events":[` + good + `,{"colour":1,"type":"a.b"}]}`, 1, "events[1].colour", "unknown"},
		{`{"events":[{"type":"A"}],"op":"append","id":5}`, 5, "events[0].type", "a-z"},
		{`{"events":[null],"op":"append","id":5}`, 5, "events[0]", "null"},
		{`{"events":["` + strings.Repeat("x", 400_000) + `"],"op":"append","id":5}`, 5, "events[0]", "too many"},
		{`{"id":5,"op":"append","events":[` + strings.Repeat(good+",", MaxEvents) + good + `]}`, 5, "events", "more than 10000"},
		{`{"id":5,"op":"append","events":` + strings.Repeat("[", 10_000) + strings.Repeat("]", 10_000) + `}`, 5, "events", "nested deeper"},
		{`{"id":5,"op":"append","events":[` + strings.Repeat(`{"data":`, 9) + strings.Repeat("}", 9) + `]}`, 5, "events[0].data.data.data.data.data.data.data", "deep"},
	} {
		r, err := ParseRequest([]byte(c.in))
		var f *record.FieldError
		if !errors.As(err, &f) || f.Field != c.field || !strings.Contains(f.Reason, c.why) || r.ID != c.id {
			t.Errorf("%.80s: id %d, %.200v; want id %d, %s: %s", c.in, r.ID, err, c.id, c.field, c.why)
		}
		if tooLarge := strings.Contains(c.why, "too many") || strings.Contains(c.why, "more than"); f != nil && f.TooLarge != tooLarge {
			t.Errorf("%.80s: too large: %t", c.in, f.TooLarge)
		}
	}
}

func TestRequestID(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]uint64{
		`{"id":17,"op":"append","events":[{"ty`: 17,
		`{"op":"append", "want":"ack", "id":3}`: 3,
		`{"op":"append","events":[{"type":"a`:   0,
		`{"id":17`:                              0, // it may go on
		`{"id":0,`:                              0,
		`{"id":"x",`:                            0,
		``:                                      0,
		`garbage`:                               0,
	} {
		if id, ok := RequestID([]byte(in)); id != want || ok != (want != 0) {
			t.Errorf("%s: %d, %t", in, id, ok)
		}
	}
}

func TestParseEvents(t *testing.T) {
	t.Parallel()
	for in, n := range map[string]int{good: 1, "[" + good + "]": 1, " [ " + good + " , " + good + " ] ": 2} {
		events, array, err := ParseEvents([]byte(in))
		if err != nil || len(events) != n || array != (strings.TrimSpace(in)[0] == '[') || string(events[0].Body) != good {
			t.Errorf("%s: %v, %t, %v", in, events, array, err)
		}
	}
	for _, in := range []string{"", "[", "[]", "null", good + good, "[" + good + "]]", "[" + good + "] x", "[[" + good + "]]"} {
		if events, _, err := ParseEvents([]byte(in)); err == nil {
			t.Errorf("%s: %v", in, events)
		}
	}
}

// parseReference is ParseRequest by the reference decoder.
func parseReference(b []byte) (*Request, error) {
	r := &Request{Want: WantReceipt}
	d := jsontext.NewDecoder(bytes.NewReader(b))
	if d.PeekKind() != '{' {
		return nil, errors.New("no object")
	}
	if _, err := d.ReadToken(); err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	for d.PeekKind() != '}' {
		tok, err := d.ReadToken()
		if err != nil {
			return nil, err
		}
		name := tok.String()
		seen[name] = true
		switch name {
		case "id":
			v, err := d.ReadValue()
			if err != nil {
				return nil, err
			}
			if r.ID, err = strconv.ParseUint(string(v), 10, 53); err != nil || r.ID == 0 {
				return nil, fmt.Errorf("id %s", v)
			}
		case "op", "log", "want":
			v, err := d.ReadToken()
			if err != nil || v.Kind() != '"' {
				return nil, fmt.Errorf("no string: %w", err)
			}
			switch s := v.String(); {
			case name == "op" && s != "append", name == "want" && s != WantAck && s != WantReceipt:
				return nil, errors.New("not known")
			case name == "log":
				r.Log = s
			case name == "want":
				r.Want = s
			}
		case "events":
			if d.PeekKind() != '[' {
				return nil, errors.New("no array")
			}
			if _, err := d.ReadToken(); err != nil {
				return nil, err
			}
			for d.PeekKind() != ']' {
				v, err := d.ReadValue()
				if err != nil {
					return nil, err
				}
				body, key, err := record.CanonicalEvent(bytes.Clone(v))
				if err != nil {
					return nil, err
				}
				r.Events = append(r.Events, Event{body, key})
			}
			if _, err := d.ReadToken(); err != nil {
				return nil, err
			}
		default:
			return nil, fmt.Errorf("unknown %s", name)
		}
	}
	if _, err := d.ReadToken(); err != nil {
		return nil, err
	}
	if _, err := d.ReadToken(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows")
	}
	if !seen["id"] || !seen["op"] || len(r.Events) == 0 || len(r.Events) > MaxEvents {
		return nil, errors.New("incomplete")
	}
	return r, nil
}

// The scanner and the reference decoder take the same requests, and read the same in them.
func FuzzParseRequest(f *testing.F) {
	for _, s := range []string{
		`{"id":1,"op":"append","events":[{"type":"a.b"}]}`,
		`{ "events":[ {"type":"a.b","id":"\u0041\\\""} , {"data":{"x":[1,{"y":"]}"}]},"type":"c"} ],"op":"append","want":"ack","log":"o","id":2}`,
		`{"id":1,"\u006fp":"append","events":[{"type":"a.b","stream":{"n":3,"id":"s"}}]}`,
		`{"id":1,"op":"append","events":[{"type":"a.b"},{"type":"A"}]}`,
		`{"id":1,"op":"append","log":"\ud83d\ude00","events":[{"type":"a.b","data":{"\\":"\\\\\""}}]}`,
		`{"id":01,"op":"append","events":[{"type":"a.b"}]}`,
		`{"id":1,"op":"append","events":[tru]}`,
		"{\"id\":1,\"op\":\"append\",\"log\":\"\x01\",\"events\":[{\"type\":\"a\"}]}",
		`{"id":1,"op":"append","op":"append","events":[{"type":"a"}]}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		want, wantErr := parseReference(bytes.Clone(b))
		got, err := ParseRequest(b)
		if got == nil {
			t.Fatal("no request, though its id may be needed")
		}
		if len(want.text()) > 4096 { // only the scanner bounds names
			return
		}
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("%q: %v, the reference: %v", b, err, wantErr)
		}
		var field *record.FieldError
		if err != nil && !errors.As(err, &field) {
			t.Fatalf("%q: %T", b, err)
		}
		if err == nil && !reflect.DeepEqual(got, want) {
			t.Fatalf("%q: %+v, the reference: %+v", b, got, want)
		}
	})
}

func (r *Request) text() string {
	if r == nil {
		return ""
	}
	return r.Log
}
