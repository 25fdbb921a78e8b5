package record

import (
	"bytes"
	"math"
	"strconv"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
	"golang.org/x/mod/sumdb/tlog"

	"bulla/clock"
)

// Kind says what an entry's body is.
type Kind string

const (
	KindGenesis   Kind = "genesis"
	KindEvent     Kind = "event"
	KindClock     Kind = "clock"
	KindSeal      Kind = "seal"
	KindProposal  Kind = "proposal"
	KindApproval  Kind = "approval"
	KindEnactment Kind = "enactment"
	KindAccess    Kind = "access"
	KindSystem    Kind = "system"
	KindToken     Kind = "token"
	KindBlob      Kind = "blob"
)

func (k Kind) known() bool {
	switch k {
	case KindGenesis, KindEvent, KindClock, KindSeal, KindProposal, KindApproval, KindEnactment, KindAccess, KindSystem, KindToken, KindBlob:
		return true
	}
	return false
}

// Producer is who sent an event. UID and GID are proven by the kernel when the connection is made; the others are observations,
// zero when they could not be made.
type Producer struct {
	Exe  string `json:"exe,omitzero"` // path of the executable, at most MaxExe bytes
	GID  uint32 `json:"gid"`
	PID  int    `json:"pid,omitzero"`
	UID  uint32 `json:"uid"`
	Unit string `json:"unit,omitzero"` // systemd unit, at most MaxUnit bytes
}

// Limits of a producer's members, in bytes of UTF-8.
const (
	MaxExe  = 512
	MaxUnit = 255
)

// Append appends the producer's canonical form. What does not fit the format is refused, not cut.
func (p *Producer) Append(dst []byte) ([]byte, error) {
	if err := p.check(); err != nil {
		return nil, err
	}
	dst = append(dst, '{')
	if p.Exe != "" {
		dst = append(appendString(append(dst, `"exe":`...), p.Exe), ',')
	}
	dst = strconv.AppendUint(append(dst, `"gid":`...), uint64(p.GID), 10)
	if p.PID != 0 {
		dst = strconv.AppendInt(append(dst, `,"pid":`...), int64(p.PID), 10)
	}
	dst = strconv.AppendUint(append(dst, `,"uid":`...), uint64(p.UID), 10)
	if p.Unit != "" {
		dst = appendString(append(dst, `,"unit":`...), p.Unit)
	}
	return append(dst, '}'), nil
}

// DropUnrecordable leaves out those observations that Append would refuse: a path or a unit that is too long or not printable.
// The file system allows such names; a producer must not be refused, nor an entry forged, because of them.
func (p *Producer) DropUnrecordable() {
	if len(p.Exe) > MaxExe || !printable(p.Exe) {
		p.Exe = ""
	}
	if len(p.Unit) > MaxUnit || !printable(p.Unit) {
		p.Unit = ""
	}
	if p.PID < 0 || p.PID > math.MaxInt32 {
		p.PID = 0
	}
}

func (p *Producer) check() error {
	switch {
	case len(p.Exe) > MaxExe:
		return tooLarge("exe", len(p.Exe), MaxExe)
	case !printable(p.Exe):
		return refuse("exe", "must be printable UTF-8")
	case len(p.Unit) > MaxUnit:
		return tooLarge("unit", len(p.Unit), MaxUnit)
	case !printable(p.Unit):
		return refuse("unit", "must be printable UTF-8")
	case p.PID < 0 || p.PID > math.MaxInt32:
		return refuse("pid", "must lie between 1 and 2^31-1")
	}
	return nil
}

func printable(s string) bool {
	i := 0
	for i < len(s) && ' ' <= s[i] && s[i] <= '~' {
		i++
	}
	if i == len(s) {
		return true
	}
	for _, r := range s[i:] {
		if !unicode.IsPrint(r) {
			return false
		}
	}
	return utf8.ValidString(s[i:])
}

// CheckOrigin refuses what cannot be the name of a log: 1 to MaxOrigin bytes of printable UTF-8 without spaces and plus signs
// (C2SP signed-note, key names).
func CheckOrigin(origin string) error {
	switch {
	case origin == "":
		return refuse("", "the origin is empty")
	case len(origin) > MaxOrigin:
		return tooLarge("", len(origin), MaxOrigin)
	case !printable(origin):
		return refuse("", "the origin has characters that cannot be printed")
	}
	for _, r := range origin {
		if r == '+' || unicode.IsSpace(r) {
			return refuse("", "the origin has a space or a plus sign")
		}
	}
	return nil
}

// Entry is one entry of a log, of any kind.
type Entry struct {
	Index    uint64      // place in the log, at most MaxInt
	Kind     Kind        //
	Log      string      // the log's origin
	Prev     Hash        // leaf hash of entry Index-1; zero at index 0
	Producer *Producer   // nil in the daemon's own entries
	Stamp    clock.Stamp // when it was received
	Body     []byte      // canonical JSON object
}

// LeafHash is the hash of an entry's bytes: SHA-256(0x00 || entry), the link of the chain and the leaf of the tree at once
// (RFC 6962 section 2.1).
func LeafHash(entry []byte) Hash { return tlog.RecordHash(entry) }

// Append appends the entry's bytes. An entry that ParseEntry would refuse is refused.
func (e *Entry) Append(dst []byte) ([]byte, error) {
	if err := e.check(); err != nil {
		return nil, err
	}
	var producer []byte
	if e.Producer != nil {
		var err error
		if producer, err = e.Producer.Append(nil); err != nil {
			return nil, within("producer", err)
		}
	}
	from := len(dst)
	dst = NewFrame(e.Log, e.Stamp).Append(dst, e.Kind, e.Index, e.Prev, producer, e.Body)
	if size := len(dst) - from; size > MaxEntry {
		return nil, tooLarge("", size, MaxEntry)
	}
	return dst, nil
}

func (e *Entry) check() error {
	if len(e.Body) > MaxEntry {
		return tooLarge("body", len(e.Body), MaxEntry)
	}
	if err := checkBody(e.Kind, e.Body); err != nil {
		return within("body", err)
	}
	if err := CheckOrigin(e.Log); err != nil {
		return within("log", err)
	}
	switch {
	case !e.Kind.known():
		return refuse("kind", "unknown kind %q", clip(string(e.Kind), 40))
	case e.Index > MaxInt:
		return refuse("index", "must be at most 2^53-1")
	case (e.Index == 0) != (e.Prev == Hash{}):
		return refuse("prev", "must be there after index 0, and only there")
	}
	return checkStamp(e.Stamp)
}

func checkBody(kind Kind, body []byte) error {
	if kind == KindEvent {
		if isEvent(body, nil) {
			return nil
		}
		_, err := ParseEvent(body)
		return err
	}
	if len(body) == 0 || body[0] != '{' {
		return refuse("", "must be an object")
	}
	return CheckCanonical(body, MaxDepth-1)
}

// ParseEntry reads an entry's bytes. It accepts exactly what Append makes; the bodies of events are checked as events, those of
// other kinds as canonical objects. The entry's Body is a part of b. Errors are *FieldError.
func ParseEntry(b []byte) (*Entry, error) {
	e := new(Entry)
	if err := (&EntryParser{single: true}).Parse(e, b); err != nil {
		return nil, err
	}
	return e, nil
}

// parseEntry is ParseEntry by the reference: decode, encode, compare.
func parseEntry(b []byte) (*Entry, error) {
	var w wireEntry
	if err := UnmarshalCanonical(b, &w); err != nil {
		return nil, err
	}
	e, err := w.entry()
	if err != nil {
		return nil, err
	}
	again, err := e.Append(nil)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(again, b) {
		return nil, firstDifference(b, again)
	}
	e.Body = b[len(`{"body":`):][:len(e.Body):len(e.Body)]
	return e, nil
}

type wireEntry struct {
	Body     jsontext.Value `json:"body"`
	Clock    wireClock      `json:"clock"`
	Index    uint64         `json:"index"`
	Kind     Kind           `json:"kind"`
	Log      string         `json:"log"`
	Prev     Hash           `json:"prev,omitzero"`
	Producer *Producer      `json:"producer,omitzero"`
	Time     string         `json:"time"`
	V        int            `json:"v"`
}

type wireClock struct {
	Age    *int64  `json:"age,omitzero"`
	Bound  *int64  `json:"bound,omitzero"`
	Epoch  uint32  `json:"epoch"`
	Offset *int64  `json:"offset,omitzero"`
	Round  *uint64 `json:"round,omitzero"`
	State  string  `json:"state"`
}

func (w *wireEntry) entry() (*Entry, error) {
	if w.V != 1 {
		return nil, refuse("v", "version %d is not known: only 1 is", w.V)
	}
	sys, err := ParseTime(w.Time)
	if err != nil {
		return nil, within("time", err)
	}
	stamp, err := w.Clock.stamp(sys)
	if err != nil {
		return nil, within("clock", err)
	}
	return &Entry{Index: w.Index, Kind: w.Kind, Log: w.Log, Prev: w.Prev, Producer: w.Producer, Stamp: stamp, Body: w.Body}, nil
}

func (c *wireClock) stamp(sys int64) (clock.Stamp, error) {
	s := clock.Stamp{Sys: sys, Epoch: c.Epoch}
	var ok bool
	if s.State, ok = parseState(c.State); !ok {
		return s, refuse("state", "unknown state %q", clip(c.State, 40))
	}
	switch {
	case c.Age == nil && c.Bound == nil && c.Offset == nil && c.Round == nil:
		return s, nil
	case c.Age == nil || c.Bound == nil || c.Offset == nil || c.Round == nil:
		return s, refuse("", "age, bound, offset and round are present together or not at all")
	case *c.Age < 0:
		return s, refuse("age", "must not be negative")
	case *c.Bound < 0:
		return s, refuse("bound", "must not be negative")
	}
	s.HasEstimate, s.Age, s.Bound, s.Offset, s.Round = true, *c.Age, *c.Bound, *c.Offset, *c.Round
	return s, nil
}
