package verify_test

import (
	"crypto/sha256"
	"fmt"
	"testing"

	"bulla/record"
	"bulla/verify"
)

// BenchmarkRun measures entries verified a second; beside it stands the machine's own SHA-256 over the same bytes.
func BenchmarkRun(b *testing.B) {
	f, p := large(b)
	bytes := int64(0)
	for name, data := range f {
		if t, ok := record.ParseTilePath(name); ok && t.L < 0 {
			bytes += int64(len(data))
		}
	}
	entries := float64(256*256 + 257)
	b.Run("sha256", func(b *testing.B) {
		b.SetBytes(bytes)
		for b.Loop() {
			for _, data := range f {
				_ = sha256.Sum256(data)
			}
		}
		b.ReportMetric(entries*float64(b.N)/b.Elapsed().Seconds(), "entries/s")
	})
	for _, workers := range []int{1, 2} {
		b.Run(fmt.Sprintf("workers=%d", workers), func(b *testing.B) {
			b.SetBytes(bytes)
			for b.Loop() {
				rep, err := verify.Run(b.Context(), f, p, verify.Options{Workers: workers})
				if err != nil || rep.Verdict != verify.OutcomeVerified {
					b.Fatal(rep, err)
				}
			}
			b.ReportMetric(entries*float64(b.N)/b.Elapsed().Seconds(), "entries/s")
		})
	}
}
