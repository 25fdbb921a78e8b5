package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"bulla/record"
)

// Request is a request on sign.sock: events to append to a log, all or none.
type Request struct {
	ID     uint64
	Log    string // empty: the only one
	Want   string
	Events []Event
}

// Event is an event as record.CanonicalEvent returned it.
type Event struct {
	Body []byte
	Key  record.EventKey
}

// maxDepth bounds the nesting of a frame: the request, its events, and an event's own.
const maxDepth = record.MaxDepth + 2

// ParseRequest reads a request. An error is a *record.FieldError that names the field; the id is set as soon as it is known. Events may
// share memory with b.
func ParseRequest(b []byte) (*Request, error) {
	r := &Request{Want: WantReceipt}
	var op string
	var seen [5]bool
	s := scanner{b: b}
	events := -1
	err := s.object(func(name string) error {
		var err error
		field := 0
		switch name {
		case "id":
			field = 0
			r.ID, err = s.number()
		case "op":
			field = 1
			op, err = s.text()
		case "log":
			field = 2
			r.Log, err = s.text()
		case "want":
			field = 3
			r.Want, err = s.text()
		case "events":
			field = 4
			events = s.i // read when the rest is known, so that an error can be answered by id
			err = s.skip(0)
		default:
			return &record.FieldError{Field: clip(name), Reason: "unknown member"}
		}
		if err != nil {
			return within(name, err)
		}
		if seen[field] {
			return &record.FieldError{Field: name, Reason: "is there twice"}
		}
		seen[field] = true
		return nil
	})
	if err == nil {
		err = s.end()
	}
	switch {
	case err != nil:
		return r, err
	case !seen[0]:
		return r, &record.FieldError{Field: "id", Reason: "is missing"}
	case op != "append":
		return r, &record.FieldError{Field: "op", Reason: fmt.Sprintf("%q is not known: the operation is append", clip(op))}
	case r.Want != WantReceipt && r.Want != WantAck:
		return r, &record.FieldError{Field: "want", Reason: fmt.Sprintf("%q is not receipt or ack", clip(r.Want))}
	case events < 0:
		return r, &record.FieldError{Field: "events", Reason: "is missing"}
	}
	s.i = events
	r.Events, err = s.events()
	return r, err
}

// ParseEvents reads an array of events, or one event.
func ParseEvents(b []byte) ([]Event, error) {
	s := scanner{b: b}
	s.space()
	if s.peek() != '[' {
		body, key, err := record.CanonicalEvent(b)
		if err != nil {
			return nil, err
		}
		return []Event{{body, key}}, nil
	}
	events, err := s.events()
	if err == nil {
		err = s.end()
	}
	return events, err
}

// events reads the array of events at s.i.
func (s *scanner) events() ([]Event, error) {
	var out []Event
	err := s.array(func(i int) error {
		if i >= MaxEvents {
			return &record.FieldError{Field: "events", Reason: fmt.Sprintf("more than %d", MaxEvents), TooLarge: true}
		}
		start := s.i
		if err := s.skip(0); err != nil {
			return within(fmt.Sprintf("events[%d]", i), err)
		}
		body, key, err := record.CanonicalEvent(s.b[start:s.i])
		if err != nil {
			return within(fmt.Sprintf("events[%d]", i), err)
		}
		out = append(out, Event{body, key})
		return nil
	})
	if err != nil {
		return nil, err
	}
	if len(out) == 0 {
		return nil, &record.FieldError{Field: "events", Reason: "is empty"}
	}
	return out, nil
}

// within puts a field in front of the one that an error names.
func within(field string, err error) error {
	var f *record.FieldError
	if !errors.As(err, &f) {
		return fmt.Errorf("%s: %w", field, err)
	}
	out := *f
	if f.Field == "" {
		out.Field = field
	} else {
		out.Field = field + "." + f.Field
	}
	return &out
}

func clip(s string) string { return s[:min(len(s), 64)] }

// scanner walks over JSON and finds where its values end. What is inside events is left to package record; what is read here is
// checked here.
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

func (s *scanner) peek() byte {
	if s.i < len(s.b) {
		return s.b[s.i]
	}
	return 0
}

func (s *scanner) expect(c byte) error {
	s.space()
	if s.peek() != c || s.i >= len(s.b) {
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
func (s *scanner) object(member func(name string) error) error {
	if err := s.expect('{'); err != nil {
		return err
	}
	for first := true; ; first = false {
		if s.space(); s.peek() == '}' && first {
			s.i++
			return nil
		}
		name, err := s.text()
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

// text reads a short string.
func (s *scanner) text() (string, error) {
	s.space()
	start := s.i
	if s.peek() != '"' {
		return "", s.fail("a string expected")
	}
	if err := s.skip(0); err != nil {
		return "", err
	}
	if s.i-start > 4096 {
		return "", s.fail("a string of %d bytes is too long", s.i-start)
	}
	if inner := s.b[start+1 : s.i-1]; !bytes.ContainsFunc(inner, func(r rune) bool { return r < ' ' || r > '~' || r == '\\' }) {
		return string(inner), nil
	}
	b, err := record.Canonicalize(s.b[start:s.i], 1)
	if err != nil {
		return "", err
	}
	var out string
	if err := json.Unmarshal(b, &out); err != nil {
		return "", s.fail("not a string")
	}
	return out, nil
}

// number reads an integer from 0 to 2^53-1.
func (s *scanner) number() (uint64, error) {
	start := s.i
	for s.i < len(s.b) && '0' <= s.b[s.i] && s.b[s.i] <= '9' {
		s.i++
	}
	digits := s.b[start:s.i]
	n, err := strconv.ParseUint(string(digits), 10, 64)
	if err != nil || n > record.MaxInt || len(digits) > 1 && digits[0] == '0' {
		return 0, s.fail("an integer from 0 to 2^53-1 expected")
	}
	return n, nil
}

// skip passes one value: it finds its end, and bounds its depth.
func (s *scanner) skip(depth int) error {
	s.space()
	switch s.peek() {
	case '"':
		return s.skipString()
	case '{', '[':
		return s.skipNested()
	}
	start := s.i
	for s.i < len(s.b) && !bytes.ContainsRune([]byte(",]} \n\r\t"), rune(s.b[s.i])) {
		s.i++
	}
	if s.i == start {
		return s.fail("a value expected")
	}
	return nil
}

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

func (s *scanner) skipNested() error {
	var open [maxDepth]byte
	depth := 0
	for s.i < len(s.b) {
		switch c := s.b[s.i]; c {
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
