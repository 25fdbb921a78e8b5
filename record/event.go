package record

import (
	"bytes"
	"encoding/json"
	"net/netip"

	"github.com/go-json-experiment/json/jsontext"
)

// Event is what a producer says happened: the body of an entry of kind event. Only Type is required; what is absent is zero.
// Strings are never empty when present. docs/formats.md maps the members to other schemas.
type Event struct {
	Actor         *Actor          `json:"actor,omitzero"`
	Data          json.RawMessage `json:"data,omitzero"` // a free object, canonical
	ID            string          `json:"id,omitzero"`   // the producer's own identifier, at most MaxID bytes
	Outcome       string          `json:"outcome,omitzero"`
	SessionID     string          `json:"session_id,omitzero"`
	Severity      int             `json:"severity,omitzero"` // 1 to 24, as in OpenTelemetry
	Source        string          `json:"source,omitzero"`
	SpanID        string          `json:"span_id,omitzero"` // 16 lower-case hex digits (W3C Trace Context)
	Src           *Endpoint       `json:"src,omitzero"`
	Stream        *Stream         `json:"stream,omitzero"`
	Target        *Target         `json:"target,omitzero"`
	Time          string          `json:"time,omitzero"`     // the producer's own time: RFC 3339, UTC, nine digits
	TraceID       string          `json:"trace_id,omitzero"` // 32 lower-case hex digits
	TransactionID string          `json:"transaction_id,omitzero"`
	Type          string          `json:"type"` // dotted lower case, as `auth.login`, at most MaxType bytes
}

// Actor is who did it.
type Actor struct {
	ID         string `json:"id,omitzero"`
	Name       string `json:"name,omitzero"`
	OnBehalfOf string `json:"on_behalf_of,omitzero"`
	Type       string `json:"type,omitzero"`
}

// Target is what it was done to.
type Target struct {
	ID   string `json:"id,omitzero"`
	Type string `json:"type,omitzero"`
}

// Endpoint is the network address it came from.
type Endpoint struct {
	IP   string `json:"ip,omitzero"`   // the canonical text of RFC 5952, without a zone
	Port *int   `json:"port,omitzero"` // 0 to 65535
}

// Stream is the producer's own gap-free numbering.
type Stream struct {
	ID string `json:"id"` // at most MaxID bytes
	N  int64  `json:"n"`  // 0 to MaxInt
}

// Limits of an event's members, in bytes of UTF-8.
const (
	MaxID     = 255  // id, stream.id
	MaxType   = 255  // type
	MaxString = 1024 // every other string outside data
)

// EventKey is what recognises a repeated event, within one log and producer.
type EventKey struct {
	ID        string // "" without one
	Stream    string
	N         int64
	HasStream bool
}

// Key returns the event's key.
func (e *Event) Key() EventKey {
	k := EventKey{ID: e.ID}
	if e.Stream != nil {
		k.Stream, k.N, k.HasStream = e.Stream.ID, e.Stream.N, true
	}
	return k
}

// CanonicalEvent checks an event as it was received, ordinary JSON of at most MaxEventSource bytes, and returns its canonical
// form, which is src itself when that is canonical already. Errors are *FieldError.
func CanonicalEvent(src []byte) (body []byte, key EventKey, err error) {
	if isEvent(src, &key) {
		return src, key, nil
	}
	if body, err = canonicalSource(src); err != nil {
		return nil, EventKey{}, err
	}
	if isEvent(body, &key) {
		return body, key, nil
	}
	e, err := parseEvent(body) // says why not
	if err != nil {
		return nil, EventKey{}, err
	}
	return body, e.Key(), nil
}

// canonicalEvent is CanonicalEvent by the reference alone.
func canonicalEvent(src []byte) ([]byte, EventKey, error) {
	body, err := canonicalSource(src)
	if err != nil {
		return nil, EventKey{}, err
	}
	e, err := parseEvent(body)
	if err != nil {
		return nil, EventKey{}, err
	}
	return body, e.Key(), nil
}

// canonicalSource canonicalizes what may become an event.
func canonicalSource(src []byte) ([]byte, error) {
	if len(src) > MaxEventSource {
		return nil, tooLarge("", len(src), MaxEventSource)
	}
	body, err := Canonicalize(src, MaxDepth-1)
	if err != nil {
		return nil, err
	}
	if len(body) > MaxEvent {
		return nil, tooLarge("", len(body), MaxEvent)
	}
	return body, nil
}

// ParseEvent reads the canonical bytes of an event. Errors are *FieldError.
func ParseEvent(body []byte) (*Event, error) {
	if len(body) > MaxEvent {
		return nil, tooLarge("", len(body), MaxEvent)
	}
	if err := CheckCanonical(body, MaxDepth-1); err != nil {
		return nil, err
	}
	return parseEvent(body)
}

func parseEvent(body []byte) (*Event, error) {
	e := new(Event)
	if err := eachMember(body, e.set); err != nil {
		return nil, err
	}
	if e.Type == "" {
		return nil, refuse("type", "required: what happened, as `auth.login`")
	}
	return e, nil
}

func (e *Event) set(name string, v jsontext.Value) error {
	switch name {
	case "actor":
		e.Actor = new(Actor)
		return eachOf(v, e.Actor.set)
	case "data":
		if v.Kind() != '{' {
			return refuse("", "must be an object")
		}
		e.Data = json.RawMessage(v)
		return nil
	case "id":
		return setText(&e.ID, v, MaxID)
	case "outcome":
		return setChecked(&e.Outcome, v, checkOutcome)
	case "session_id":
		return setText(&e.SessionID, v, MaxString)
	case "severity":
		n, err := number(v, 1, 24)
		e.Severity = int(n)
		return err
	case "source":
		return setText(&e.Source, v, MaxString)
	case "span_id":
		return setChecked(&e.SpanID, v, checkSpanID)
	case "src":
		e.Src = new(Endpoint)
		return eachOf(v, e.Src.set)
	case "stream":
		e.Stream = &Stream{N: -1}
		return e.Stream.parse(v)
	case "target":
		e.Target = new(Target)
		return eachOf(v, e.Target.set)
	case "time":
		return setChecked(&e.Time, v, checkTime)
	case "trace_id":
		return setChecked(&e.TraceID, v, checkTraceID)
	case "transaction_id":
		return setText(&e.TransactionID, v, MaxString)
	case "type":
		return setChecked(&e.Type, v, checkType)
	}
	return refuse("", "unknown member; an event's own members go into data")
}

func (a *Actor) set(name string, v jsontext.Value) error {
	switch name {
	case "id":
		return setText(&a.ID, v, MaxString)
	case "name":
		return setText(&a.Name, v, MaxString)
	case "on_behalf_of":
		return setText(&a.OnBehalfOf, v, MaxString)
	case "type":
		return setText(&a.Type, v, MaxString)
	}
	return refuse("", "unknown member: an actor has id, name, on_behalf_of and type")
}

func (t *Target) set(name string, v jsontext.Value) error {
	switch name {
	case "id":
		return setText(&t.ID, v, MaxString)
	case "type":
		return setText(&t.Type, v, MaxString)
	}
	return refuse("", "unknown member: a target has id and type")
}

func (s *Endpoint) set(name string, v jsontext.Value) error {
	switch name {
	case "ip":
		return setChecked(&s.IP, v, checkIP)
	case "port":
		n, err := number(v, 0, 65535)
		port := int(n)
		s.Port = &port
		return err
	}
	return refuse("", "unknown member: src has ip and port")
}

func (s *Stream) parse(v jsontext.Value) error {
	if err := eachMember(v, s.set); err != nil {
		return err
	}
	switch {
	case s.ID == "":
		return refuse("id", "required: the name of the stream")
	case s.N < 0:
		return refuse("n", "required: the number within the stream")
	}
	return nil
}

func (s *Stream) set(name string, v jsontext.Value) error {
	switch name {
	case "id":
		return setText(&s.ID, v, MaxID)
	case "n":
		n, err := number(v, 0, MaxInt)
		s.N = n
		return err
	}
	return refuse("", "unknown member: a stream has id and n")
}

// eachMember calls set with every member of an object that is known to be canonical.
func eachMember(v []byte, set func(name string, v jsontext.Value) error) error {
	d := jsontext.NewDecoder(bytes.NewReader(v))
	if d.PeekKind() != '{' {
		return refuse("", "must be an object")
	}
	if _, err := d.ReadToken(); err != nil {
		return syntaxError(d, err)
	}
	for d.PeekKind() != '}' {
		tok, err := d.ReadToken()
		if err != nil {
			return syntaxError(d, err)
		}
		name := tok.String()
		value, err := d.ReadValue()
		if err != nil {
			return syntaxError(d, err)
		}
		if err := set(name, value.Clone()); err != nil {
			return within(path(d), err)
		}
	}
	return nil
}

// eachOf is eachMember for an object that says nothing when it is empty.
func eachOf(v []byte, set func(name string, v jsontext.Value) error) error {
	if string(v) == "{}" {
		return refuse("", "must not be empty: leave it out")
	}
	return eachMember(v, set)
}

func setText(s *string, v jsontext.Value, limit int) error {
	if v.Kind() != '"' {
		return refuse("", "must be a string")
	}
	*s = string(unescape(v[1 : len(v)-1]))
	if *s == "" {
		return refuse("", "must not be empty: leave it out")
	}
	if len(*s) > limit {
		return tooLarge("", len(*s), limit)
	}
	return nil
}

func setChecked(s *string, v jsontext.Value, check func([]byte) string) error {
	if err := setText(s, v, MaxString); err != nil {
		return err
	}
	if reason := check([]byte(*s)); reason != "" {
		return refuse("", "%s", reason)
	}
	return nil
}

func number(v jsontext.Value, lowest, highest int64) (int64, error) {
	n, ok := integer(v)
	if v.Kind() != '0' || !ok || n < lowest || n > highest {
		return 0, refuse("", "must be an integer from %d to %d", lowest, highest)
	}
	return n, nil
}

// The checks below return what is wrong, or "".

func checkOutcome(s []byte) string {
	switch string(s) {
	case "success", "failure", "unknown":
		return ""
	}
	return "must be success, failure or unknown"
}

func checkType(s []byte) string {
	if len(s) > MaxType {
		return "must have at most 255 bytes"
	}
	dot := true // an empty part would start here
	for _, c := range s {
		switch {
		case 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '_' || c == '-':
			dot = false
		case c == '.' && !dot:
			dot = true
		default:
			return "must be parts of a-z, 0-9, _ and - joined by dots, as `auth.login`"
		}
	}
	if dot {
		return "must not end in a dot"
	}
	return ""
}

func checkTraceID(s []byte) string {
	if len(s) != 32 || !lowerHex(s) {
		return "must be 32 lower-case hex digits"
	}
	return ""
}

func checkSpanID(s []byte) string {
	if len(s) != 16 || !lowerHex(s) {
		return "must be 16 lower-case hex digits"
	}
	return ""
}

func lowerHex(s []byte) bool {
	for _, c := range s {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// checkIP accepts an address in its one canonical text. A zone (`%eth0`) means something on one machine only and is refused.
func checkIP(s []byte) string {
	const reason = "must be an IPv4 address, or an IPv6 address in the form of RFC 5952, without a zone"
	if isIPv4(s) {
		return ""
	}
	if len(s) > 45 || bytes.IndexByte(s, ':') < 0 || bytes.IndexByte(s, '%') >= 0 {
		return reason
	}
	a, err := netip.ParseAddr(string(s))
	var buf [48]byte
	if err != nil || !bytes.Equal(a.AppendTo(buf[:0]), s) {
		return reason
	}
	return ""
}

// isIPv4 is netip's rule without its copy of the text: four numbers to 255 without leading zeros.
func isIPv4(s []byte) bool {
	parts, digits, n := 1, 0, 0
	for _, c := range s {
		switch {
		case c == '.' && digits > 0 && parts < 4:
			parts, digits, n = parts+1, 0, 0
		case '0' <= c && c <= '9' && (digits == 0 || n > 0):
			n = n*10 + int(c-'0')
			if digits++; n > 255 {
				return false
			}
		default:
			return false
		}
	}
	return parts == 4 && digits > 0
}
