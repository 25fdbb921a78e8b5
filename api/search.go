package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"bulla/record"
)

// Query says which entries are searched for: those that meet every condition that is set. The zero value is met by all. ParseQuery
// makes it; GET /v1/search and bulla search mean the same by it.
type Query struct {
	Since, Until *time.Time  // true UTC: the entry may have been received at or after Since, and before Until
	Kind         record.Kind // of the entry
	UID          *uint32     // of the producer, as the kernel proved it
	Unit         string      // of the producer, as it was observed

	// Of events.
	Type        string // the whole of it; with Below, what it begins with: `auth.`
	Below       bool
	Actor       string // id, name or on_behalf_of
	Target      string // id
	Session     string
	Transaction string
	Trace       string
	Src         netip.Prefix // a single address is one of all its bits
	Outcome     string
	Severity    int // at least

	// Text lies in a name, string or number of an event's data, or of the body of an entry of another kind. Case does not count.
	Text string

	needles [][]byte // bytes that an entry that meets the query has
	folded  []byte   // Text as canonical JSON in lower case, without quotes
}

// MaxQuery bounds a query as it is encoded in a URL, in bytes: it is recorded with who asked.
const MaxQuery = 4096

// QueryFields are the names of a query's conditions, as parameters of GET /v1/search and as flags of bulla search.
var QueryFields = []string{"since", "until", "kind", "type", "actor", "target", "session", "transaction", "trace", "uid", "unit", "src", "outcome", "severity", "text"}

// kinds are what an entry can be.
var kinds = []record.Kind{record.KindGenesis, record.KindEvent, record.KindClock, record.KindSeal, record.KindProposal, record.KindApproval,
	record.KindEnactment, record.KindAccess, record.KindSystem, record.KindToken, record.KindBlob}

// ParseQuery reads a query from those of the values whose names are QueryFields. Errors are *record.FieldError.
func ParseQuery(values url.Values) (*Query, error) {
	q := new(Query)
	for _, name := range QueryFields {
		if !values.Has(name) {
			continue
		}
		value := values.Get(name)
		if value == "" || len(value) > record.MaxString || !utf8.ValidString(value) {
			return nil, &record.FieldError{Field: name, Reason: fmt.Sprintf("must have 1 to %d bytes of UTF-8", record.MaxString)}
		}
		if err := q.set(name, value); err != nil {
			return nil, &record.FieldError{Field: name, Reason: err.Error()}
		}
	}
	if q.Since != nil && q.Until != nil && !q.Since.Before(*q.Until) {
		return nil, &record.FieldError{Field: "until", Reason: "must be later than since: nothing was received between them"}
	}
	return q, nil
}

func (q *Query) set(name, value string) (err error) {
	switch name {
	case "since":
		q.Since, err = parseInstant(value)
		return err
	case "until":
		q.Until, err = parseInstant(value)
		return err
	case "kind":
		if q.Kind = record.Kind(value); !slices.Contains(kinds, q.Kind) {
			return fmt.Errorf("must be one of %v", kinds)
		}
		return q.need("kind", value)
	case "type":
		if q.Type, q.Below = strings.CutSuffix(value, "*"); q.Below {
			if !strings.HasSuffix(q.Type, ".") || len(q.Type) == 1 {
				return fmt.Errorf("must be a whole type, as auth.login, or all that begin alike, as auth.*")
			}
			return q.needOpen("type", q.Type)
		}
		return q.need("type", value)
	case "actor":
		q.Actor = value
		return q.need("", value)
	case "target":
		q.Target = value
		return q.need("id", value)
	case "session":
		q.Session = value
		return q.need("session_id", value)
	case "transaction":
		q.Transaction = value
		return q.need("transaction_id", value)
	case "trace":
		q.Trace = value
		return q.need("trace_id", value)
	case "uid":
		n, err := strconv.ParseUint(value, 10, 32)
		if err != nil {
			return fmt.Errorf("must be the number of a user")
		}
		uid := uint32(n)
		q.UID = &uid
		q.needles = append(q.needles, strconv.AppendUint([]byte(`"uid":`), n, 10))
	case "unit":
		q.Unit = value
		return q.need("unit", value)
	case "src":
		return q.setSrc(value)
	case "outcome":
		switch value {
		case "success", "failure", "unknown":
		default:
			return fmt.Errorf("must be success, failure or unknown")
		}
		q.Outcome = value
		return q.need("outcome", value)
	case "severity":
		if q.Severity, err = strconv.Atoi(value); err != nil || q.Severity < 1 || q.Severity > 24 {
			return fmt.Errorf("must be a number from 1 to 24, the least severity that is wanted")
		}
		q.needles = append(q.needles, []byte(`"severity":`))
	case "text":
		q.Text = strings.ToLower(value)
		if q.folded, err = record.MarshalCanonical(q.Text); err == nil {
			q.folded = q.folded[1 : len(q.folded)-1]
		}
		return err
	}
	return nil
}

func (q *Query) setSrc(value string) error {
	var err error
	if strings.Contains(value, "/") {
		q.Src, err = netip.ParsePrefix(value)
	} else {
		var addr netip.Addr
		if addr, err = netip.ParseAddr(value); err == nil {
			q.Src, err = addr.Prefix(addr.BitLen())
		}
	}
	if err != nil || strings.Contains(value, "%") { // a zone is of one machine alone
		return fmt.Errorf("must be an address or a network, as 192.0.2.7 or 2001:db8::/32")
	}
	if q.Src = q.Src.Masked(); q.Src.IsSingleIP() {
		return q.need("ip", q.Src.Addr().String())
	}
	q.needles = append(q.needles, []byte(`"ip":`))
	return nil
}

// need says that an entry that meets the query has a member of this name and value; with the name "", of any name. Canonical JSON
// writes both in one way only.
func (q *Query) need(name, value string) error {
	b, err := record.MarshalCanonical(value)
	if err != nil {
		return err
	}
	if name != "" {
		name = `"` + name + `"`
	}
	q.needles = append(q.needles, append([]byte(name+":"), b...))
	return nil
}

// needOpen is need for what a value begins with.
func (q *Query) needOpen(name, value string) error {
	err := q.need(name, value)
	if last := len(q.needles) - 1; err == nil {
		q.needles[last] = bytes.TrimSuffix(q.needles[last], []byte(`"`))
	}
	return err
}

// instants are the forms of a time in a query, all of UTC unless they say otherwise.
var instants = []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02"}

func parseInstant(value string) (*time.Time, error) {
	for _, layout := range instants {
		if t, err := time.Parse(layout, value); err == nil {
			if y := t.UTC().Year(); y < 1678 || y > 2261 {
				return nil, fmt.Errorf("must lie between the years 1678 and 2261")
			}
			return &t, nil
		}
	}
	return nil, fmt.Errorf("must be a time, as 2026-11-23T01:40:00Z, or a day, as 2026-11-23 (from its start, UTC)")
}

// May reports whether an entry's bytes may meet the query. It is fast, and never false for one that does.
func (q *Query) May(entry []byte) bool {
	for _, n := range q.needles {
		if !bytes.Contains(entry, n) {
			return false
		}
	}
	return true
}

// Match parses an entry and reports whether it meets the query; it is nil when May says that it does not. The error is of an entry
// that may and cannot be read.
func (q *Query) Match(entry []byte) (*record.Entry, bool, error) {
	if !q.May(entry) {
		return nil, false, nil
	}
	e, err := record.ParseEntry(entry)
	if err != nil {
		return nil, false, err
	}
	return e, q.ofEnvelope(e) && q.ofBody(e), nil
}

func (q *Query) ofEnvelope(e *record.Entry) bool {
	switch p := e.Producer; {
	case q.Since != nil && e.Stamp.Latest() < q.Since.UnixNano(),
		q.Until != nil && e.Stamp.Earliest() >= q.Until.UnixNano(),
		q.Kind != "" && e.Kind != q.Kind,
		q.UID != nil && (p == nil || p.UID != *q.UID),
		q.Unit != "" && (p == nil || p.Unit != q.Unit):
		return false
	}
	return true
}

// ofEvents reports whether the query has a condition that only events meet.
func (q *Query) ofEvents() bool {
	return q.Type != "" || q.Actor != "" || q.Target != "" || q.Session != "" || q.Transaction != "" || q.Trace != "" || q.Src.IsValid() ||
		q.Outcome != "" || q.Severity != 0
}

func (q *Query) ofBody(e *record.Entry) bool {
	switch {
	case e.Kind != record.KindEvent:
		return !q.ofEvents() && q.inText(e.Body)
	case !q.ofEvents() && q.Text == "":
		return true
	}
	ev, err := record.ParseEvent(e.Body)
	return err == nil && q.ofEvent(ev) && q.inText(ev.Data)
}

func (q *Query) ofEvent(ev *record.Event) bool {
	switch {
	case q.Below && !strings.HasPrefix(ev.Type, q.Type),
		!q.Below && q.Type != "" && ev.Type != q.Type,
		q.Actor != "" && (ev.Actor == nil || ev.Actor.ID != q.Actor && ev.Actor.Name != q.Actor && ev.Actor.OnBehalfOf != q.Actor),
		q.Target != "" && (ev.Target == nil || ev.Target.ID != q.Target),
		q.Session != "" && ev.SessionID != q.Session,
		q.Transaction != "" && ev.TransactionID != q.Transaction,
		q.Trace != "" && ev.TraceID != q.Trace,
		q.Outcome != "" && ev.Outcome != q.Outcome,
		ev.Severity < q.Severity:
		return false
	}
	if !q.Src.IsValid() {
		return true
	}
	if ev.Src == nil {
		return false
	}
	addr, err := netip.ParseAddr(ev.Src.IP)
	return err == nil && q.Src.Contains(addr)
}

// inText reports whether the text lies in a name, a string or a number of canonical JSON.
func (q *Query) inText(canonical []byte) bool {
	if q.Text == "" {
		return true
	}
	// Escapes stay the same in lower case, so a string that has the text has it escaped, too.
	if !bytes.Contains(bytes.ToLower(canonical), q.folded) {
		return false
	}
	d := json.NewDecoder(bytes.NewReader(canonical))
	d.UseNumber()
	for {
		t, err := d.Token()
		if err != nil {
			return false // io.EOF: what is canonical has no other end
		}
		var s string
		switch t := t.(type) {
		case string:
			s = t
		case json.Number:
			s = t.String()
		}
		if strings.Contains(strings.ToLower(s), q.Text) {
			return true
		}
	}
}
