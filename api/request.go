package api

import (
	"errors"
	"fmt"

	"bulla/record"
)

// Request is a request on sign.sock: events to append to a log, all or none.
type Request struct {
	ID     uint64 // from 1
	Log    string // empty: the only one
	Want   string
	Events []Event
}

// Event is an event as record.CanonicalEvent returned it.
type Event struct {
	Body []byte
	Key  record.EventKey
}

// ParseRequest reads a request. An error is a *record.FieldError that names the field; the request's id is set even then, unless it
// could not be found. Events may share memory with b.
func ParseRequest(b []byte) (*Request, error) {
	r := &Request{Want: WantReceipt}
	var op string
	var eventsErr error
	var seen [5]bool
	s := scanner{b: b}
	err := s.object(func(name []byte) error {
		field, ok := members[string(name)]
		switch {
		case !ok:
			return &record.FieldError{Field: clip(string(name)), Reason: "unknown member: a request has id, op, log, want and events"}
		case seen[field]:
			if field == memberID {
				r.ID = 0 // nobody can tell which one is meant, and the other may be another request's
			}
			return &record.FieldError{Field: string(name), Reason: "is there twice"}
		}
		seen[field] = true
		var err error
		switch field {
		case memberID:
			r.ID, err = s.number()
		case memberOp:
			op, err = s.text()
		case memberLog:
			r.Log, err = s.text()
		case memberWant:
			r.Want, err = s.text()
		case memberEvents:
			start := s.i
			if r.Events, eventsErr = s.events(); eventsErr != nil {
				s.i = start // the id may follow, so that the error can be answered by it
				err = s.skip()
			}
		}
		if err != nil {
			return within(string(name), err)
		}
		return nil
	})
	if err == nil {
		err = s.end()
	}
	switch {
	case err != nil:
		return r, err
	case r.ID == 0:
		return r, &record.FieldError{Field: "id", Reason: "is missing: a number from 1 to 2^53-1, which the answer carries"}
	case op != "append":
		return r, &record.FieldError{Field: "op", Reason: fmt.Sprintf("%q is not known: the operation is append", clip(op))}
	case r.Want != WantReceipt && r.Want != WantAck:
		return r, &record.FieldError{Field: "want", Reason: fmt.Sprintf("%q is not receipt or ack", clip(r.Want))}
	case !seen[memberEvents]:
		return r, &record.FieldError{Field: "events", Reason: "is missing: an array of events"}
	}
	return r, eventsErr
}

const (
	memberID = iota
	memberOp
	memberLog
	memberWant
	memberEvents
)

var members = map[string]int{"id": memberID, "op": memberOp, "log": memberLog, "want": memberWant, "events": memberEvents}

// RequestID looks for the id of a request of which only a beginning is there. It is found where it comes before the events.
func RequestID(beginning []byte) (id uint64, ok bool) {
	s := scanner{b: beginning}
	_ = s.object(func(name []byte) error { // it ends in an error where the beginning ends
		if string(name) != "id" {
			return s.skip()
		}
		n, err := s.number()
		if err == nil && s.i < len(s.b) && delimiter[s.b[s.i]] {
			id, ok = n, n != 0
		}
		return s.fail("enough")
	})
	return id, ok
}

// ParseEvents reads an array of 1 to MaxEvents events, or one event; array says which. Errors are *record.FieldError.
func ParseEvents(b []byte) (events []Event, array bool, err error) {
	s := scanner{b: b}
	s.space()
	if s.peek() != '[' {
		body, key, err := record.CanonicalEvent(b)
		if err != nil {
			return nil, false, err
		}
		return []Event{{body, key}}, false, nil
	}
	events, err = s.events()
	if err == nil {
		err = s.end()
	}
	return events, true, err
}

// events reads the array of events at s.i. Nothing is copied: events that come in canonical form stay where they are.
func (s *scanner) events() ([]Event, error) {
	var out []Event
	err := s.array(func(i int) error {
		if i >= MaxEvents {
			return &record.FieldError{Field: "events", Reason: fmt.Sprintf("more than %d", MaxEvents), TooLarge: true}
		}
		start := s.i
		err := s.skip()
		if err == nil {
			var e Event
			if e.Body, e.Key, err = record.CanonicalEvent(s.b[start:s.i:s.i]); err == nil {
				if out == nil { // guess the number by the first one's size
					out = make([]Event, 0, min(MaxEvents, 1+(len(s.b)-start)/(s.i-start+1)))
				}
				out = append(out, e)
				return nil
			}
		}
		return within(fmt.Sprintf("events[%d]", i), err)
	})
	var f *record.FieldError
	if errors.As(err, &f) && f.Field == "" {
		err = within("events", err)
	}
	if err != nil {
		return nil, err
	}
	if len(out) == 0 {
		return nil, &record.FieldError{Field: "events", Reason: "is empty"}
	}
	return out, nil
}
