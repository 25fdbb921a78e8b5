package verify_test

import (
	"crypto/sha256"
	"fmt"
	"runtime"
	"testing"
	"time"

	"bulla/record"
	"bulla/verify"
)

// BenchmarkStage is an export verified, from memory, on one core and on two: entries a second; as sha256-ratio its bytes a second to
// those that the machine's own SHA-256 hashes on one core; and as two-cores how many times as fast two are as one. It compares the best
// of short turns of each, so that what else the machine does counts little.
func BenchmarkStage(b *testing.B) {
	b.Run("verify/plain", func(b *testing.B) { // stamps say what the machine's clock said
		f, p := large(b)
		benchmarkVerify(b, f, p)
	})
	b.Run("verify/proved", func(b *testing.B) { // every stamp follows from the round of measurement before it, one in 16 s
		log := newBuilder(b).begin().startClock().measure()
		for range 4 {
			log.events(1<<14 - 1).measure()
		}
		benchmarkVerify(b, log.export(), log.policy())
	})
}

func benchmarkVerify(b *testing.B, f files, p *verify.Policy) {
	var bundles [][]byte
	bytes, entries := 0, 0
	for name, data := range f {
		if t, ok := record.ParseTilePath(name); ok && t.L < 0 {
			bundles = append(bundles, data)
			bytes, entries = bytes+len(data), entries+t.W
		}
	}
	var hashed, one, two time.Duration
	b.ReportAllocs()
	for b.Loop() {
		best(&hashed, func() {
			for _, data := range bundles {
				sha256.Sum256(data)
			}
		})
		best(&one, func() { runOn(b, 1, f, p) })
		best(&two, func() { runOn(b, 2, f, p) })
	}
	b.ReportMetric(float64(entries)/one.Seconds(), "entries/s")
	b.ReportMetric(hashed.Seconds()/one.Seconds(), "sha256-ratio")
	b.ReportMetric(one.Seconds()/two.Seconds(), "two-cores")
	b.Logf("%d entries, %d bytes", entries, bytes)
}

// best notes how long f takes, if no time before was shorter.
func best(of *time.Duration, f func()) {
	start := time.Now()
	f()
	if took := time.Since(start); *of == 0 || took < *of {
		*of = took
	}
}

// runOn verifies on so many cores.
func runOn(b *testing.B, cores int, src verify.Source, p *verify.Policy) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(cores))
	rep, err := verify.Run(b.Context(), src, p, verify.Options{})
	if err != nil || rep.Verdict != verify.OutcomeVerified {
		b.Fatal(fmt.Sprint(rep), err)
	}
}
