package server

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"bulla/api"
)

// BenchmarkSocket is what producers get through sign.sock: client and server in one process, keys in memory, a real disk. Each producer
// has a connection and waits for its answer before it sends again, but for the last, which has 64 requests under way.
func BenchmarkSocket(b *testing.B) {
	for _, c := range []struct {
		producers, batch, window int
		want                     string
	}{{1, 1, 1, api.WantReceipt}, {16, 1, 1, api.WantReceipt}, {256, 1, 1, api.WantReceipt}, {256, 1, 1, api.WantAck}, {16, 100, 1, api.WantReceipt}, {16, 100, 1, api.WantAck}, {16, 1000, 1, api.WantAck}, {4, 1, 64, api.WantReceipt}} {
		b.Run(fmt.Sprintf("%dx%d/window=%d/%s", c.producers, c.batch, c.window, c.want), func(b *testing.B) {
			r := newRig(b, everyone).serve()
			event := fmt.Appendf(nil, `{"actor":{"id":"alice","type":"user"},"data":{"note":%q},"outcome":"success","type":"auth.login"}`, strings.Repeat("x", 200))
			batch := slices.Repeat([][]byte{event}, c.batch)
			var left atomic.Int64
			left.Store(int64(b.N))
			took := make([]time.Duration, b.N)
			var producers sync.WaitGroup
			before := cpu(b)
			b.ResetTimer()
			for range c.producers {
				client := r.dial()
				for range c.window {
					producers.Go(func() {
						for n := left.Add(-1); n >= 0; n = left.Add(-1) {
							start := time.Now()
							if _, err := client.AppendBatch(b.Context(), "", c.want, batch...); err != nil {
								b.Error(err)
								return
							}
							took[n] = time.Since(start)
						}
					})
				}
			}
			producers.Wait()
			b.StopTimer()
			slices.Sort(took)
			b.ReportMetric(float64(b.N*c.batch)/b.Elapsed().Seconds(), "entries/s")
			b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
			b.ReportMetric(float64((cpu(b)-before).Nanoseconds())/1000/float64(b.N*c.batch), "cpu-us/entry") // of both sides; other load does not change it
			b.ReportMetric(0, "ns/op")
		})
	}
}

// cpu is the processor time that this process has used.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
