package main

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// measurement is what one store did in one case of one round. Times are in milliseconds.
type measurement struct {
	Rate    float64 `json:"entries_per_second"`
	P50     float64 `json:"p50_ms"`
	P99     float64 `json:"p99_ms"`
	Answers int     `json:"answers"`
	Flushes *uint64 `json:"disk_flushes,omitempty"` // of the whole disk meanwhile; nil: not known
}

// flushed notes how often the disk was flushed since before.
func (m *measurement) flushed(dir string, before uint64, counted bool) {
	if after, ok := flushes(dir); ok && counted {
		n := after - before
		m.Flushes = &n
	}
}

// perAnswer is how often the disk was flushed an answer; NaN if that is not known.
func (m measurement) perAnswer() float64 {
	if m.Flushes == nil {
		return math.NaN()
	}
	return float64(*m.Flushes) / float64(m.Answers)
}

// durable reports whether the answers of a single producer, who waits for each, can all have been synced.
func (m measurement) durable() bool { return m.Flushes == nil || m.perAnswer() > 0.95 }

// latencies are how long requests took.
type latencies []time.Duration

// quantile is the duration that a share of all are at most, in ms.
func (l latencies) quantile(q float64) float64 {
	if len(l) == 0 {
		return math.NaN()
	}
	slices.Sort(l)
	return float64(l[min(int(q*float64(len(l))), len(l)-1)]) / 1e6
}

// measurement sums up what took so long and appended so many entries.
func (l latencies) measurement(took time.Duration, entries int) measurement {
	return measurement{Rate: float64(entries) / took.Seconds(), P50: l.quantile(0.5), P99: l.quantile(0.99), Answers: len(l)}
}

// eventSize is how many bytes an event has, as canonical JSON.
const eventSize = 300

// event is the n-th event of a producer: canonical JSON of size bytes if that is enough, with an id of its own.
func event(dst []byte, producer string, n, size int) []byte {
	const data, rest = `"data":{"fill":""},`, `{"id":"-","type":"bench.event"}`
	const digits = 10
	fill := size - len(rest) - len(producer) - digits
	dst = append(dst, '{')
	if fill >= len(data) {
		dst = append(dst, `"data":{"fill":"`...)
		dst = append(dst, strings.Repeat("x", fill-len(data))...)
		dst = append(dst, `"},`...)
		fill = 0
	}
	return fmt.Appendf(dst, `"id":"%s%s-%0*d","type":"bench.event"}`, strings.Repeat("x", max(fill, 0)), producer, digits, n)
}

// store is a log or database that appends events.
type store interface {
	// append stores the events, each as an entry of its own, and returns when all are durable.
	append(ctx context.Context, events [][]byte) error
	close() error
}

// warmup is how long a store runs before it is measured: its files have been made then.
const warmup = 500 * time.Millisecond

// drive has producers append to a store, each of which waits for its answer before it sends again.
func drive(ctx context.Context, s store, dir string, producers, batch int, d time.Duration) (measurement, error) {
	var mu sync.Mutex
	var took latencies
	start := time.Now().Add(warmup)
	end := start.Add(d)
	g, ctx := errgroup.WithContext(ctx)
	before, counted := uint64(0), false
	g.Go(func() error {
		pause(ctx, time.Until(start))
		before, counted = flushes(dir)
		return nil
	})
	for p := range producers {
		g.Go(func() error {
			mine, err := produce(ctx, s, fmt.Sprintf("%d-%04d", start.UnixMilli(), p), batch, start, end)
			mu.Lock()
			defer mu.Unlock()
			took = append(took, mine...)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return measurement{}, err
	}
	m := took.measurement(d, len(took)*batch)
	m.flushed(dir, before, counted)
	return m, nil
}

// produce is one producer. What began before start or ended after end does not count.
func produce(ctx context.Context, s store, name string, batch int, start, end time.Time) (took latencies, err error) {
	for n := 0; time.Now().Before(end) && ctx.Err() == nil; {
		events := make([][]byte, batch)
		for i := range events {
			events[i] = event(nil, name, n, eventSize)
			n++
		}
		began := time.Now()
		if err := s.append(ctx, events); err != nil {
			return took, err
		}
		if ended := time.Now(); began.After(start) && ended.Before(end) {
			took = append(took, ended.Sub(began))
		}
	}
	return took, ctx.Err()
}
