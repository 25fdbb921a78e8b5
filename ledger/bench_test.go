package ledger_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"bulla/ledger"
	"bulla/record"
)

// BenchmarkAppend is the ledger alone: a software key, a real disk, no socket. Each producer waits for its answer.
func BenchmarkAppend(b *testing.B) {
	for _, c := range []struct{ producers, batch int }{{1, 1}, {16, 1}, {256, 1}, {16, 100}, {16, 1000}} {
		b.Run(fmt.Sprintf("%dx%d", c.producers, c.batch), func(b *testing.B) {
			d := newDevices(b)
			l := open(b, d, create(b, d))
			defer closed(b, l)
			body, key, err := record.CanonicalEvent(fmt.Appendf(nil, `{"actor":{"id":"alice","type":"user"},"data":{"note":%q},"outcome":"success","type":"auth.login"}`, strings.Repeat("x", 200)))
			if err != nil {
				b.Fatal(err)
			}
			events := make([]ledger.Event, c.batch)
			for i := range events {
				events[i] = ledger.Event{Body: body, Key: key}
			}
			var left atomic.Int64
			left.Store(int64(b.N))
			b.ResetTimer()
			var wg sync.WaitGroup
			for range c.producers {
				wg.Go(func() {
					for left.Add(-1) >= 0 {
						if _, err := l.Append(context.Background(), producer, events); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64(b.N*c.batch)/b.Elapsed().Seconds(), "entries/s")
			s, err := l.Status()
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(s.Stats.Entries)/float64(s.Stats.Batches), "entries/batch")
		})
	}
}

// BenchmarkOpen is a start over a log that fills the window with events that have names.
func BenchmarkOpen(b *testing.B) {
	const entries, batch = 1 << 20, 8192
	d := newDevices(b)
	path := create(b, d)
	l := open(b, d, path)
	for n := 0; n < entries; n += batch {
		events := make([]ledger.Event, batch)
		for i := range events {
			body, key, err := record.CanonicalEvent(fmt.Appendf(nil, `{"actor":{"id":"alice","type":"user"},"data":{"note":%q},"id":"event-%d","outcome":"success","type":"auth.login"}`, strings.Repeat("x", 180), n+i))
			if err != nil {
				b.Fatal(err)
			}
			events[i] = ledger.Event{Body: body, Key: key}
		}
		if _, err := l.Append(context.Background(), producer, events); err != nil {
			b.Fatal(err)
		}
	}
	closed(b, l)
	for b.Loop() {
		closed(b, open(b, d, path))
	}
	b.ReportMetric(float64(entries)*float64(b.N)/b.Elapsed().Seconds(), "entries/s")
}
