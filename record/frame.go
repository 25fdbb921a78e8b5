package record

import (
	"encoding/base64"
	"strconv"

	"bulla/clock"
)

// Frame encodes the entries of one batch: what their envelopes have in common is encoded once. It makes the same bytes as
// Entry.Append and checks nothing: origin, stamp and bodies were checked when they came in.
type Frame struct {
	clock []byte // from after the body to before the index
	log   []byte // from after the kind to after the origin
	tail  []byte // from the time to the end
}

// NewFrame prepares for entries of one log with one stamp.
func NewFrame(log string, s clock.Stamp) *Frame {
	tail := append(AppendTime(append([]byte(nil), `,"time":"`...), s.Sys), `","v":1}`...)
	return &Frame{
		clock: append(appendStamp(append([]byte(nil), `,"clock":`...), s), `,"index":`...),
		log:   appendString([]byte(`","log":`), log),
		tail:  tail,
	}
}

// Append appends an entry. producer is what Producer.Append made, or nil; prev is ignored at index 0.
func (f *Frame) Append(dst []byte, kind Kind, index uint64, prev Hash, producer []byte, body []byte) []byte {
	dst = append(append(dst, `{"body":`...), body...)
	dst = strconv.AppendUint(append(dst, f.clock...), index, 10)
	dst = append(append(dst, `,"kind":"`...), kind...)
	dst = append(dst, f.log...)
	if index > 0 {
		dst = append(base64.StdEncoding.AppendEncode(append(dst, `,"prev":"`...), prev[:]), '"')
	}
	if producer != nil {
		dst = append(append(dst, `,"producer":`...), producer...)
	}
	return append(dst, f.tail...)
}

// estimate reports whether a stamp's estimate can be written: it is left out where there is none, and where a value is beyond
// what a number may be.
func estimate(s clock.Stamp) bool {
	return s.HasEstimate && 0 <= s.Age && s.Age <= MaxInt && 0 <= s.Bound && s.Bound <= MaxInt &&
		-MaxInt <= s.Offset && s.Offset <= MaxInt && uint64(s.Round) <= MaxInt
}

func appendStamp(dst []byte, s clock.Stamp) []byte {
	has := estimate(s)
	dst = append(dst, '{')
	if has {
		dst = strconv.AppendInt(append(dst, `"age":`...), s.Age, 10)
		dst = strconv.AppendInt(append(dst, `,"bound":`...), s.Bound, 10)
		dst = append(dst, ',')
	}
	dst = strconv.AppendUint(append(dst, `"epoch":`...), uint64(s.Epoch), 10)
	if has {
		dst = strconv.AppendInt(append(dst, `,"offset":`...), s.Offset, 10)
		dst = strconv.AppendUint(append(dst, `,"round":`...), s.Round, 10)
	}
	return append(append(append(dst, `,"state":"`...), s.State.String()...), `"}`...)
}

// appendString appends s as RFC 8785 section 3.2.2.2 writes strings. s is printable, so only two characters need an escape.
func appendString(dst []byte, s string) []byte {
	dst = append(dst, '"')
	for i := range len(s) {
		if s[i] == '"' || s[i] == '\\' {
			dst = append(dst, '\\')
		}
		dst = append(dst, s[i])
	}
	return append(dst, '"')
}

func parseState(name string) (clock.State, bool) {
	for s, known := range stateNames {
		if known == name {
			return clock.State(s), true
		}
	}
	return 0, false
}

// stateNames are the names of the clock's states.
var stateNames = func() (names [clock.Disrupted + 1]string) {
	for s := range names {
		names[s] = clock.State(s).String()
	}
	return names
}()

func checkStamp(s clock.Stamp) error {
	if s.State > clock.Disrupted {
		return refuse("clock.state", "unknown state %d", s.State)
	}
	if _, ok := scanTime(AppendTime(nil, s.Sys)); !ok {
		return refuse("time", "must lie between the years 1678 and 2261")
	}
	return nil
}
