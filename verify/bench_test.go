package verify_test

import (
	"crypto/sha256"
	"fmt"
	"testing"
	"time"

	"bulla/record"
	"bulla/verify"
)

// BenchmarkStage is an export verified, from memory: entries a second, and as sha256-ratio its bytes a second to those that the
// machine's own SHA-256 hashes, on one core.
func BenchmarkStage(b *testing.B) {
	f, p := large(b)
	var bundles [][]byte
	bytes := int64(0)
	for name, data := range f {
		if t, ok := record.ParseTilePath(name); ok && t.L < 0 {
			bundles = append(bundles, data)
			bytes += int64(len(data))
		}
	}
	entries := float64(256*256 + 257)
	hashed := hashSpeed(bundles)
	for _, workers := range []int{1, 2} {
		b.Run(fmt.Sprintf("verify/workers=%d", workers), func(b *testing.B) {
			b.SetBytes(bytes)
			for b.Loop() {
				rep, err := verify.Run(b.Context(), f, p, verify.Options{Workers: workers})
				if err != nil || rep.Verdict != verify.OutcomeVerified {
					b.Fatal(rep, err)
				}
			}
			b.ReportMetric(entries*float64(b.N)/b.Elapsed().Seconds(), "entries/s")
			b.ReportMetric(float64(bytes)*float64(b.N)/b.Elapsed().Seconds()/hashed, "sha256-ratio")
		})
	}
}

// hashSpeed is how many bytes of bundles SHA-256 hashes a second, at its best of a few times.
func hashSpeed(bundles [][]byte) (best float64) {
	for range 5 {
		bytes := 0
		start := time.Now()
		for _, data := range bundles {
			_ = sha256.Sum256(data)
			bytes += len(data)
		}
		best = max(best, float64(bytes)/time.Since(start).Seconds())
	}
	return best
}
