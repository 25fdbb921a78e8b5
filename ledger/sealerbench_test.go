package ledger_test

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"bulla/attest"
	"bulla/ledger"
)

// BenchmarkSeal is one seal, of a head with a new event, on a software TPM: it is not on the append path.
func BenchmarkSeal(b *testing.B) {
	for _, reason := range []string{ledger.ReasonInterval, ledger.ReasonStop} { // the latter with an increment of the counter
		b.Run(reason, func(b *testing.B) {
			p := newPlant(b, origin)
			d := p.start(b)
			defer d.close(b)
			var took []time.Duration
			for b.Loop() {
				b.StopTimer()
				d.append(b)
				b.StartTimer()
				begin := time.Now()
				d.seal(b, reason)
				took = append(took, time.Since(begin))
			}
			report(b, "seal", took)
		})
	}
}

// BenchmarkAppendWhileSealed is what seals add to appends: four producers, each waiting for its receipt, while the sealer works at
// different intervals. The default is 10 s. A hardware TPM is slow, and does its work elsewhere: that must not show at all.
func BenchmarkAppendWhileSealed(b *testing.B) {
	for _, c := range []struct {
		name     string
		interval time.Duration // 0: no seals
		slow     time.Duration // a command takes so much longer
	}{
		{"never", 0, 0}, {"10s", 10 * time.Second, 0}, {"1s", time.Second, 0}, {"100ms", 100 * time.Millisecond, 0}, {"endlessly", time.Microsecond, 0},
		{"endlessly,slow", time.Microsecond, 50 * time.Millisecond},
	} {
		b.Run(c.name, func(b *testing.B) {
			p := newPlant(b, origin)
			p.start(b).close(b)
			d := p.open(b, func(device attest.TPM) attest.TPM { return &slowTPM{device, c.slow} })
			defer d.close(b)
			ctx, cancel := context.WithCancel(context.Background())
			var sealing sync.WaitGroup
			if c.interval > 0 {
				sealing.Go(func() {
					for tick := time.NewTicker(c.interval); ; {
						select {
						case <-tick.C:
							if _, err := d.sealer.Seal(ctx, ledger.ReasonInterval, nil); err != nil && ctx.Err() == nil {
								b.Error(err)
							}
						case <-ctx.Done():
							return
						}
					}
				})
			}
			const producers = 4
			took := make([][]time.Duration, producers)
			var appending sync.WaitGroup
			b.ResetTimer()
			for i := range producers {
				appending.Go(func() {
					for range b.N / producers {
						begin := time.Now()
						if _, err := appendOne(d.logs[0], event(b, "")); err != nil {
							b.Error(err)
							return
						}
						took[i] = append(took[i], time.Since(begin))
					}
				})
			}
			appending.Wait()
			b.StopTimer()
			cancel()
			sealing.Wait()
			report(b, "append", slices.Concat(took...))
			b.ReportMetric(float64(d.sealer.Status().Number), "seals")
		})
	}
}

// slowTPM takes its time.
type slowTPM struct {
	attest.TPM
	by time.Duration
}

func (s *slowTPM) CertifyCounter(ctx context.Context, x [32]byte) (attest.Signed, error) {
	time.Sleep(s.by)
	return s.TPM.CertifyCounter(ctx, x)
}

func (s *slowTPM) Extend(ctx context.Context, i int, d [32]byte) error {
	time.Sleep(s.by)
	return s.TPM.Extend(ctx, i, d)
}

func (s *slowTPM) Quote(ctx context.Context, selection []int, x [32]byte) (attest.Quoted, error) {
	time.Sleep(s.by)
	return s.TPM.Quote(ctx, selection, x)
}

// report reports percentiles, in ms.
func report(b *testing.B, what string, took []time.Duration) {
	b.Helper()
	if len(took) == 0 {
		return
	}
	slices.Sort(took)
	for name, at := range map[string]int{"p50": len(took) / 2, "p99": len(took) * 99 / 100, "max": len(took) - 1} {
		b.ReportMetric(float64(took[at].Microseconds())/1000, what+"-"+name+"-ms")
	}
}
