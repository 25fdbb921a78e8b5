package record

import (
	"crypto"
	"slices"
	"strings"
	"time"

	"bulla/clock"
)

// Token is the body of an entry of kind token: an RFC 3161 time-stamp token that the appliance issues. The entry is durable before
// the token is given out. Who has a token finds its entry by the SHA-256 of its bytes, or by its serial number.
//
// The token's time rests on a reading of the clock that was made for it, a moment before the entry was stamped. The reading is
// recorded as an entry's own is, and checked against the round that it names; from it GenTime and Accuracy follow by TokenTime.
type Token struct {
	Accuracy    int64       // of GenTime: ns, whole microseconds
	Certificate Hash        // SHA-256 of the certificate, in DER, of the key that signs the token
	GenTime     int64       // the token's time: ns since 1970 UTC, whole milliseconds
	Imprint     Imprint     // what was time-stamped
	Policy      string      // the TSA's policy, an object identifier in dotted form
	Reading     clock.Stamp // of the clock: synced or in holdover, with an estimate
	Serial      string      // the token's serial number: 1 to 40 lower-case hex digits, without leading zeros
	Token       Hash        // SHA-256 of the token: a CMS ContentInfo in DER, as `openssl ts -reply -token_out` writes it
}

// Imprint is the hash of what a client had time-stamped.
type Imprint struct {
	Algorithm string `json:"algorithm"` // sha256, sha384 or sha512
	Hash      []byte `json:"hash"`
}

// imprintAlgorithms are what an imprint may be made by.
var imprintAlgorithms = map[string]crypto.Hash{"sha256": crypto.SHA256, "sha384": crypto.SHA384, "sha512": crypto.SHA512}

// MaxTokenDelay is how long after the reading that its time rests on a token's entry may be stamped, in ns. It is far more than signing
// takes: a later entry is the mark of a token that was dated back.
const MaxTokenDelay = int64(30 * time.Second)

// Limits of a token's members, in bytes.
const (
	maxPolicyOID = 128
	maxSerial    = 40 // RFC 3161 section 2.4.2: 160 bits
)

const (
	genTimeUnit  = int64(time.Millisecond)
	accuracyUnit = int64(time.Microsecond)
)

// TokenTime is the time that a token states for a reading of the clock, and how sure that is: UTC by its estimate in whole milliseconds,
// never later than the estimate, and the bound with what that rounding took away, in microseconds rounded up.
func TokenTime(s clock.Stamp) (genTime, accuracy int64) {
	rest := s.UTC() % genTimeUnit
	if rest < 0 {
		rest += genTimeUnit
	}
	accuracy = s.Bound + rest + accuracyUnit - 1
	return s.UTC() - rest, accuracy - accuracy%accuracyUnit
}

// wireToken is a Token as it is encoded.
type wireToken struct {
	Accuracy    int64     `json:"accuracy"`
	Certificate Hash      `json:"certificate"`
	Clock       wireClock `json:"clock"`
	GenTime     string    `json:"gen_time"`
	Imprint     Imprint   `json:"imprint"`
	Policy      string    `json:"policy"`
	Serial      string    `json:"serial"`
	Time        string    `json:"time"`
	Token       Hash      `json:"token"`
}

// ParseToken reads the body of an entry of kind token.
func ParseToken(body []byte) (*Token, error) {
	var w wireToken
	if err := UnmarshalCanonical(body, &w); err != nil {
		return nil, err
	}
	t := &Token{Accuracy: w.Accuracy, Certificate: w.Certificate, Imprint: w.Imprint, Policy: w.Policy, Serial: w.Serial, Token: w.Token}
	sys, err := ParseTime(w.Time)
	if err != nil {
		return nil, within("time", err)
	}
	if t.Reading, err = w.Clock.stamp(sys); err != nil {
		return nil, within("clock", err)
	}
	if t.GenTime, err = ParseTime(w.GenTime); err != nil {
		return nil, within("gen_time", err)
	}
	return t, t.Check()
}

// Encode is the inverse of ParseToken.
func (t *Token) Encode() ([]byte, error) {
	if err := t.Check(); err != nil {
		return nil, err
	}
	r := t.Reading
	return MarshalCanonical(&wireToken{
		Accuracy: t.Accuracy, Certificate: t.Certificate, GenTime: string(AppendTime(nil, t.GenTime)), Imprint: t.Imprint, Policy: t.Policy, Serial: t.Serial,
		Clock: wireClock{Age: &r.Age, Bound: &r.Bound, Epoch: r.Epoch, Offset: &r.Offset, Round: &r.Round, State: r.State.String()},
		Time:  string(AppendTime(nil, r.Sys)), Token: t.Token,
	})
}

// Check refuses what ParseToken would not accept.
func (t *Token) Check() error {
	if err := checkStamp(t.Reading); err != nil {
		return err
	}
	if r := t.Reading; !r.HasEstimate || r.State != clock.Synced && r.State != clock.Holdover {
		return refuse("clock", "a token needs an estimate of UTC, in state synced or holdover")
	}
	h, ok := imprintAlgorithms[t.Imprint.Algorithm]
	switch {
	case !ok:
		return refuse("imprint.algorithm", "must be sha256, sha384 or sha512")
	case len(t.Imprint.Hash) != h.Size():
		return refuse("imprint.hash", "must have %d bytes", h.Size())
	case t.GenTime%genTimeUnit != 0:
		return refuse("gen_time", "must be whole milliseconds")
	case t.Accuracy <= 0 || t.Accuracy > MaxInt || t.Accuracy%accuracyUnit != 0:
		return refuse("accuracy", "must be above 0 and whole microseconds")
	case !isOID(t.Policy):
		return refuse("policy", "must be an object identifier in dotted form, as 1.3.6.1.4.1.32473.1")
	case len(t.Serial) > maxSerial || strings.Trim(t.Serial, "0123456789abcdef") != "" || t.Serial == "" || t.Serial[0] == '0':
		return refuse("serial", "must be 1 to %d lower-case hex digits without leading zeros", maxSerial)
	}
	if _, ok := scanTime(AppendTime(nil, t.GenTime)); !ok {
		return refuse("gen_time", "must lie between the years 1678 and 2261")
	}
	return nil
}

// isOID reports whether s is an object identifier whose arcs fit into 31 bits, in the one form that it has.
func isOID(s string) bool {
	arcs := strings.Split(s, ".")
	if len(s) > maxPolicyOID || len(arcs) < 2 {
		return false
	}
	first := slices.Index([]string{"0", "1", "2"}, arcs[0])
	for _, a := range arcs {
		if a == "" || len(a) > 10 || len(a) == 10 && a > "2147483647" || len(a) > 1 && a[0] == '0' || strings.Trim(a, "0123456789") != "" {
			return false
		}
	}
	return first == 2 || first >= 0 && (len(arcs[1]) < 2 || len(arcs[1]) == 2 && arcs[1] < "40")
}

// Agrees checks the token's time against the reading that it rests on, and that reading against the stamp of the token's own entry: it
// was made before, and not long before. Whether the reading follows from the round that it names is for a clock.Checker. The error is
// a *FieldError whose reason says what was expected.
func (t *Token) Agrees(entry clock.Stamp) error {
	r := t.Reading
	genTime, accuracy := TokenTime(r)
	switch {
	case t.GenTime != genTime:
		return refuse("gen_time", "must be %s, by time and clock.offset", AppendTime(nil, genTime))
	case t.Accuracy != accuracy:
		return refuse("accuracy", "must be %d, by clock.bound and what rounding took away", accuracy)
	case !entry.HasEstimate:
		return nil // the clock was disturbed in between
	case entry.Round < r.Round, entry.Round == r.Round && entry.Age < r.Age:
		return refuse("clock", "must have been read before its entry was stamped")
	case entry.Round == r.Round && entry.Age-r.Age > MaxTokenDelay, entry.Round > r.Round && exceeds(entry.Earliest(), r.Latest(), MaxTokenDelay):
		return refuse("clock", "must have been read at most %v before its entry was stamped", time.Duration(MaxTokenDelay))
	}
	return nil
}

// exceeds reports whether a is more than d after b.
func exceeds(a, b, d int64) bool { return a > b && uint64(a)-uint64(b) > uint64(d) }
