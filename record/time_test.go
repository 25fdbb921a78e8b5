package record

import (
	"math/rand/v2"
	"testing"
	"time"
)

// Our reader of times must accept what the standard library reads and writes back the same, and nothing else.
func FuzzTime(f *testing.F) {
	for _, s := range []string{
		"2026-11-23T01:40:00.123456789Z", "0000-01-01T00:00:00.000000000Z", "9999-12-31T23:59:59.999999999Z", "2024-02-29T00:00:00.000000000Z",
		"2023-02-29T00:00:00.000000000Z", "1900-02-29T00:00:00.000000000Z", "2000-02-29T00:00:00.000000000Z", "2016-12-31T23:59:60.000000000Z",
		"2026-11-23T24:00:00.000000000Z", "2026-11-23T01:40:00,123456789Z", "1677-12-31T23:59:59.999999999Z", "2262-01-01T00:00:00.000000000Z",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		want, err := time.Parse(timeLayout, s)
		valid := err == nil && want.Format(timeLayout) == s
		if got := checkTime([]byte(s)) == ""; got != valid {
			t.Fatalf("checkTime accepts %q: %v", s, got)
		}
		ns, err := ParseTime(s)
		if inRange := valid && want.Year() >= 1678 && want.Year() <= 2261; (err == nil) != inRange {
			t.Fatalf("ParseTime of %q: %v", s, err)
		}
		if err == nil && (ns != want.UnixNano() || string(AppendTime(nil, ns)) != s) {
			t.Fatalf("%q is read as %d", s, ns)
		}
	})
}

func TestTimeRoundTrip(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(3, 4))
	for range 10_000 {
		ns := r.Int64N(9_200_000_000_000_000_000) * int64(1-2*r.IntN(2))
		s := string(AppendTime(nil, ns))
		if got, err := ParseTime(s); err != nil || got != ns {
			t.Fatalf("%d is written %s and read %d, %v", ns, s, got, err)
		}
	}
}
