package ntp

import (
	"context"
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"bulla/clock"
)

func TestReadingIsASandwich(t *testing.T) {
	t.Parallel()
	before := local{}.Read()
	r := local{}.Read()
	if r.Width < 0 || r.Raw < before.Raw+before.Width || r.Real < before.Real || r.Mono < before.Mono || r.Boot < r.Mono {
		t.Errorf("%+v then %+v", before, r)
	}
	if now := time.Now().UnixNano(); now < r.Real || now > r.Real+int64(10*time.Second) {
		t.Errorf("real %d, now %d", r.Real, now)
	}
	if d, ok := disturbed(before, r); ok {
		t.Errorf("disturbed: %+v", d)
	}
	// The fast reading puts the same relation between the two clocks, within the widths.
	for range 1000 {
		a, b := local{}.Read(), local{}.Stamp()
		if diff := (a.Real - a.Raw) - (b.Real - b.Raw); diff > a.Width || -diff > b.Width {
			t.Fatalf("%+v and %+v differ by %d", a, b, diff)
		}
	}
}

func TestKernelAndBootID(t *testing.T) {
	t.Parallel()
	if id, err := (local{}).BootID(); err != nil || len(id) != 36 {
		t.Errorf("%q, %v", id, err)
	}
	k, err := local{}.Kernel()
	if err != nil || k.MaxError < 0 || k.State < 0 || k.State > 5 {
		t.Errorf("%+v, %v", k, err)
	}
}

func TestWatchForStepsEnds(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- local{}.Steps(ctx, func() { t.Error("nobody set the clock") }) }()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestDisturbedTellsWhat(t *testing.T) {
	t.Parallel()
	const s = int64(time.Second)
	base := clock.Reading{Real: 1795397000 * s, Mono: 100 * s, Raw: 90 * s, Boot: 120 * s, Width: 1000}
	for _, c := range []struct {
		name   string
		change func(r *clock.Reading)
		reason string
		moved  int64
	}{
		{"a second", func(r *clock.Reading) {}, "", 0},
		{"slewed by 8 %", func(r *clock.Reading) { r.Real += s / 12; r.Mono += s / 12; r.Boot += s / 12 }, "", 0},
		{"0.9 ms", func(r *clock.Reading) { r.Real += 900_000 }, "", 0},
		{"5 ms", func(r *clock.Reading) { r.Real += 5 * ms }, clock.ReasonStep, 5 * ms},
		{"back 3 s", func(r *clock.Reading) { r.Real -= 3 * s }, clock.ReasonStep, -3 * s},
		{"within a wide reading", func(r *clock.Reading) { r.Real += 5 * ms; r.Width = 5 * ms }, "", 0},
		{"slept", func(r *clock.Reading) { r.Real += 60 * s; r.Boot += 60 * s }, clock.ReasonSuspend, 60 * s},
		{"stood still", func(r *clock.Reading) { r.Real += 60 * s; r.Boot += 60 * s; r.Mono += 60 * s; r.Raw += 60 * s }, clock.ReasonPause, 60 * s},
		{"4 s late", func(r *clock.Reading) { r.Real += 4 * s; r.Boot += 4 * s; r.Mono += 4 * s; r.Raw += 4 * s }, "", 0},
		{"another machine", func(r *clock.Reading) { r.Raw -= 50 * s }, clock.ReasonRaw, -49 * s},
	} {
		now := clock.Reading{Real: base.Real + s, Mono: base.Mono + s, Raw: base.Raw + s, Boot: base.Boot + s, Width: 1000}
		c.change(&now)
		d, ok := disturbed(base, now)
		if ok != (c.reason != "") || d.reason != c.reason || d.moved != c.moved {
			t.Errorf("%s: %+v %v, want %s %d", c.name, d, ok, c.reason, c.moved)
		}
	}
}

func TestParseTracking(t *testing.T) {
	t.Parallel()
	b := make([]byte, trackingSize)
	be := binary.BigEndian
	b[0], b[1] = cmdVersion, cmdReply
	be.PutUint16(b[4:], reqTracking)
	be.PutUint16(b[6:], rpyTracking)
	be.PutUint32(b[16:], 77)
	copy(b[28:], []byte{0x7f, 0, 0, 1, 192, 0, 2, 9})
	be.PutUint16(b[48:], 1)                       // IPv4
	be.PutUint16(b[52:], 3)                       // stratum
	be.PutUint32(b[60:], 1795397000)              // reference time
	be.PutUint32(b[64:], 123456789)               // and its ns
	be.PutUint32(b[68:], 127<<25|1<<22)           // 2^22 * 2^(-1-25): 62.5 ms
	be.PutUint32(b[92:], 0<<25|1<<20)             // 2^20 * 2^-25: 31.25 ms
	be.PutUint32(b[96:], 127<<25|3<<23&(1<<25-1)) // -2^23 * 2^-26: -125 ms
	c, err := parseTracking(b, 77)
	want := clock.Chronyd{RefID: "7f000001", Address: "192.0.2.9", Stratum: 3, RefTime: 1795397000123456789, Correction: 62_500_000, RootDelay: 31_250_000, RootDisp: -125_000_000}
	if err != nil || *c != want {
		t.Errorf("%+v, %v, want %+v", c, err, want)
	}
	for at, what := range map[int]string{0: "version", 1: "type", 5: "command", 7: "reply", 9: "status", 19: "sequence"} {
		bad := append([]byte(nil), b...)
		bad[at] ^= 1
		if _, err := parseTracking(bad, 77); err == nil {
			t.Errorf("wrong %s is accepted", what)
		}
	}
	if _, err := parseTracking(b[:len(b)-1], 77); err == nil {
		t.Error("a short answer is accepted")
	}
	for _, x := range []uint32{0x7fffffff, 0x80000000, 0xffffffff, 63<<25 | 1<<24} {
		if ns := seconds(x); ns > clock.MaxInt || ns < -clock.MaxInt {
			t.Errorf("%x: %d", x, ns)
		}
	}
}

func FuzzTracking(f *testing.F) {
	f.Add(make([]byte, trackingSize), uint32(0))
	f.Fuzz(func(t *testing.T, b []byte, sequence uint32) {
		if c, err := parseTracking(b, sequence); err == nil && (c.Correction > clock.MaxInt || c.Correction < -clock.MaxInt) {
			t.Errorf("%+v", c)
		}
	})
}
