package ntp

import (
	"testing"

	"bulla/clock"
)

// BenchmarkStage is a stamp: less than 1.5 us.
func BenchmarkStage(b *testing.B) {
	m := newMonitor(Config{Policy: clock.DefaultPolicy()}, local{})
	r := local{}.Read()
	m.published.Store(&clock.Estimate{Mapping: clock.Mapping{UTCMinusRaw: r.Real - r.Raw, Bound: ms, Rate: 12345, Growth: 15_000, Leap: 1, LeapAt: 1 << 61}, AsOf: r.Raw, Round: 1, State: clock.Synced})
	b.Run("stamp", func(b *testing.B) {
		for b.Loop() {
			if s := m.Now(); !s.HasEstimate {
				b.Fatal(s)
			}
		}
	})
	b.Run("stamp/parallel", func(b *testing.B) { // from several connections at once
		b.RunParallel(func(p *testing.PB) {
			for p.Next() {
				m.Now()
			}
		})
	})
}
