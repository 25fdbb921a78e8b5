package record

import (
	"bytes"
	"crypto/sha256"
	"math"
	"strings"
	"testing"
	"time"

	"bulla/clock"
)

func testToken() *Token {
	reading := clock.Stamp{Sys: 1795396800123456789, Offset: -30217, Bound: 1840211, Age: 4120331, Round: 7, Epoch: 1, State: clock.Synced, HasEstimate: true}
	hash := sha256.Sum256([]byte("a document"))
	t := &Token{Certificate: Hash{1}, Imprint: Imprint{"sha256", hash[:]}, Policy: "1.3.6.1.4.1.32473.1", Reading: reading, Serial: "5f", Token: Hash{2}}
	t.GenTime, t.Accuracy = TokenTime(reading)
	return t
}

// The interval that a token states holds the one that its reading states, and is hardly wider.
func TestTokenTime(t *testing.T) {
	t.Parallel()
	for _, s := range []clock.Stamp{
		{},
		{Bound: 1},
		{Sys: 1, Bound: 1},
		{Sys: -1, Bound: 1},
		{Sys: -1_000_000, Bound: 999},
		{Sys: 1795396800123456789, Offset: -30217, Bound: 1840211},
		{Sys: 1795396800999999999, Offset: MaxInt, Bound: 1_000_000_000},
		{Sys: 1795396800999999999, Offset: -MaxInt, Bound: MaxInt},
		{Sys: math.MaxInt64 - MaxInt, Offset: MaxInt, Bound: 1001},
	} {
		g, a := TokenTime(s)
		if g%1_000_000 != 0 || a%1000 != 0 || g > s.UTC() || s.UTC()-g >= 1_000_000 {
			t.Errorf("%+v: %d within %d", s, g, a)
		}
		if slack := a - s.Bound - (s.UTC() - g); slack < 0 || slack >= 1000 {
			t.Errorf("%+v: accuracy %d leaves %d", s, a, slack)
		}
	}
}

func TestTokenAgrees(t *testing.T) {
	t.Parallel()
	reading := testToken().Reading
	entry := func(change func(s *clock.Stamp)) clock.Stamp {
		s := reading
		s.Sys, s.Age = s.Sys+3_000_000, s.Age+3_000_000
		change(&s)
		return s
	}
	later := func(s *clock.Stamp, d time.Duration) { s.Sys, s.Age = s.Sys+int64(d), s.Age+int64(d) }
	for _, c := range []struct {
		name   string
		change func(*Token)
		entry  clock.Stamp
		field  string // "-": it agrees
	}{
		{"a moment later", nil, entry(func(*clock.Stamp) {}), "-"},
		{"the same instant", nil, reading, "-"},
		{"the system's clock was stepped back meanwhile", nil, entry(func(s *clock.Stamp) { s.Sys -= int64(time.Hour); s.Offset += int64(time.Hour) }), "-"},
		{"a round came between", nil, entry(func(s *clock.Stamp) { s.Round, s.Age = 8, 0; s.Offset -= 1_000_000 }), "-"},
		{"the clock was disturbed meanwhile", nil, clock.Stamp{Sys: 5, Epoch: 2, State: clock.Disrupted}, "-"},
		{"after 30 s", nil, entry(func(s *clock.Stamp) { later(s, 30*time.Second-3*time.Millisecond) }), "-"},
		{"after more than 30 s", nil, entry(func(s *clock.Stamp) { later(s, 30*time.Second) }), "clock"},
		{"after more than 30 s and a round", nil, entry(func(s *clock.Stamp) { later(s, 31*time.Second); s.Round, s.Age = 8, 0 }), "clock"},
		{"after centuries", nil, clock.Stamp{HasEstimate: true, Sys: math.MaxInt64, Round: 8, Epoch: 1, State: clock.Synced}, "clock"},
		{"before it was read", nil, entry(func(s *clock.Stamp) { s.Age = reading.Age - 1 }), "clock"},
		{"before the round that it names", nil, entry(func(s *clock.Stamp) { s.Round = 6 }), "clock"},
		{"time dated back", func(t *Token) { t.GenTime -= 1_000_000 }, reading, "gen_time"},
		{"time ahead", func(t *Token) { t.GenTime += 1_000_000 }, reading, "gen_time"},
		{"more accurate than it can be", func(t *Token) { t.Accuracy -= 1000 }, reading, "accuracy"},
		{"less accurate than it is", func(t *Token) { t.Accuracy += 1000 }, reading, "accuracy"},
	} {
		token := testToken()
		if c.change != nil {
			c.change(token)
		}
		err := token.Agrees(c.entry)
		fe, _ := err.(*FieldError)
		if c.field == "-" && err != nil || c.field != "-" && (fe == nil || fe.Field != c.field) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// What cannot be read back is not encoded.
func TestTokenEncodeRefuses(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*Token){
		"no estimate":          func(t *Token) { t.Reading.HasEstimate = false },
		"disrupted":            func(t *Token) { t.Reading.State = clock.Disrupted },
		"unknown state":        func(t *Token) { t.Reading.State = 9 },
		"time out of range":    func(t *Token) { t.Reading.Sys = math.MinInt64 },
		"genTime out of range": func(t *Token) { t.GenTime = math.MinInt64 / 1_000_000 * 1_000_000 },
		"no hash":              func(t *Token) { t.Imprint.Hash = nil },
		"SHA-1":                func(t *Token) { t.Imprint.Algorithm = "sha1" },
		"no serial":            func(t *Token) { t.Serial = "" },
		"long serial":          func(t *Token) { t.Serial = strings.Repeat("f", 41) },
		"serial from zero":     func(t *Token) { t.Serial = "0f" },
		"no policy":            func(t *Token) { t.Policy = "" },
	} {
		token := testToken()
		change(token)
		if b, err := token.Encode(); err == nil {
			t.Errorf("%s: %s", name, b)
		}
	}
}

func FuzzToken(f *testing.F) {
	for _, s := range seeds(f, "token.json") {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		token, err := ParseToken(src)
		if err != nil {
			return
		}
		again, err := token.Encode()
		if err != nil || !bytes.Equal(again, src) {
			t.Fatalf("%q encodes as %q (%v)", src, again, err)
		}
		_ = token.Agrees(token.Reading) // must not panic, whatever is in it
	})
}
