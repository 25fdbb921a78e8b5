package svg

import (
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
	"time"
)

// Whatever is drawn over whatever time is well-formed, and what others wrote is no markup.
func TestPictures(t *testing.T) {
	t.Parallel()
	const hostile = `</title><script>alert(1)</script>&"'`
	for _, length := range []time.Duration{time.Nanosecond, time.Second, time.Minute, 7 * time.Hour, 20 * 24 * time.Hour, 200 * 365 * 24 * time.Hour} {
		p := &Picture{X0: 1795398000123456789, X1: 1795398000123456789 + int64(length)}
		p.Open(300, "p", hostile, hostile)
		offset := Scale{Name: "Offset", Low: -float64(length), High: float64(length), Top: 20, Floor: 120}
		offset.Room()
		p.Durations(&offset)
		p.Counts(&Scale{Name: "Entries", Low: 0, High: 1e15, Top: 140, Floor: 200})
		p.Times(20, 200)
		p.Strip(210, 230, p.X0, p.X1, Fill["synced"], hostile)
		for _, mark := range []func(x, y float64){p.Triangle, p.Square, p.Diamond, p.Cross} {
			mark(p.X(p.X0), offset.Y(0))
		}
		p.Dot(p.X(p.X1), offset.Y(0), 2)
		b := string(p.Close())
		if strings.Contains(b, "<script") || strings.Contains(b, "NaN") || len(b) > 40_000 {
			t.Errorf("over %v, %d bytes: %.3000s", length, len(b), b)
		}
		for d := xml.NewDecoder(strings.NewReader(b)); ; {
			if _, err := d.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("over %v: %v", length, err)
			}
		}
	}
	p := &Picture{X0: 10, X1: 20}
	if p.X(10) != Left || p.X(20) != Right {
		t.Error(p.X(10), p.X(20))
	}
}
