package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math/bits"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"bulla/api"
)

// benchFlags is what `bulla bench` is told.
type benchFlags struct {
	producers int
	batch     int
	size      int
	duration  time.Duration
	want      string
	disk      string
}

func (t *tool) benchCommand() *cobra.Command {
	var f benchFlags
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure a running appliance, and the disk beside it",
		Long: `bench appends events of type bench.event from many producers at once, each of which waits for its answer before it sends
again, and prints entries a second and how long requests took. Before that it measures what the disk itself can do: 4 KiB written
into a file filled with zeros, and fdatasync. Compare the ratios, not the numbers, between machines.

The entries stay in the log: bench is for an appliance that you can throw away (bullad dev).`,
		Example: "  bulla bench --producers 256 --batch 1 --duration 10s --disk /var/lib/bulla",
		Args:    args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.check(); err != nil {
				return err
			}
			return t.bench(cmd.Context(), f)
		},
	}
	flags := cmd.Flags()
	flags.IntVar(&f.producers, "producers", 16, "connections, each with one request under way")
	flags.IntVar(&f.batch, "batch", 1, "events a request")
	flags.IntVar(&f.size, "size", 200, "bytes of an event, about")
	flags.DurationVar(&f.duration, "duration", 10*time.Second, "how long")
	flags.StringVar(&f.want, "want", api.WantReceipt, "receipt or ack")
	flags.StringVar(&f.disk, "disk", ".", "directory on the disk that the log lies on; empty: the disk is not measured")
	return cmd
}

func (f *benchFlags) check() error {
	for _, r := range []struct {
		name           string
		value, low, up int
	}{{"producers", f.producers, 1, 4096}, {"batch", f.batch, 1, api.MaxEvents}, {"size", f.size, 64, 50_000}, {"duration", int(f.duration / time.Millisecond), 100, 3_600_000}} {
		if r.value < r.low || r.value > r.up {
			return usagef("--%s: must lie between %d and %d", r.name, r.low, r.up)
		}
	}
	if f.want != api.WantReceipt && f.want != api.WantAck {
		return usagef("--want: receipt or ack")
	}
	if f.batch*f.size > api.MaxFrame*9/10 {
		return usagef("--batch times --size is more than a request may hold (%d bytes)", api.MaxFrame)
	}
	return nil
}

// benchResult is what bench prints. Times are in milliseconds.
type benchResult struct {
	Producers      int      `json:"producers"`
	Batch          int      `json:"batch"`
	Size           int      `json:"size"`
	Seconds        float64  `json:"seconds"`
	Entries        uint64   `json:"entries"`
	Refused        uint64   `json:"refused_requests"`
	EntriesPerSec  float64  `json:"entries_per_second"`
	Request        times    `json:"request"`
	Disk           *times   `json:"disk_fdatasync,omitempty"`
	RequestPerSync *float64 `json:"request_p50_in_fdatasyncs,omitempty"`
	EntriesPerSync *float64 `json:"entries_per_fdatasync,omitempty"`
}

type times struct {
	Count uint64  `json:"count"`
	P50   float64 `json:"p50_ms"`
	P99   float64 `json:"p99_ms"`
	P999  float64 `json:"p99_9_ms"`
}

func (t *tool) bench(ctx context.Context, f benchFlags) error {
	res := benchResult{Producers: f.producers, Batch: f.batch, Size: f.size}
	if f.disk != "" {
		h, err := measureDisk(ctx, f.disk, min(f.duration, 3*time.Second))
		if err != nil {
			return err
		}
		res.Disk = h.times()
	}
	if err := t.load(ctx, f, &res); err != nil {
		return err
	}
	if res.Disk != nil && res.Disk.P50 > 0 {
		latency, through := res.Request.P50/res.Disk.P50, res.EntriesPerSec*res.Disk.P50/1000
		res.RequestPerSync, res.EntriesPerSync = &latency, &through
	}
	if t.json {
		return t.printJSON(res)
	}
	fmt.Fprintf(t.out, "%d producers, %d event(s) of %d bytes a request, %.1f s\n", f.producers, f.batch, f.size, res.Seconds)
	fmt.Fprintf(t.out, "%10.0f entries/s  (%d entries, %d requests refused as busy)\n", res.EntriesPerSec, res.Entries, res.Refused)
	fmt.Fprintf(t.out, "request    p50 %.2f ms   p99 %.2f ms   p99.9 %.2f ms\n", res.Request.P50, res.Request.P99, res.Request.P999)
	if res.Disk != nil {
		fmt.Fprintf(t.out, "fdatasync  p50 %.2f ms   p99 %.2f ms   p99.9 %.2f ms   (4 KiB, zero-filled file)\n", res.Disk.P50, res.Disk.P99, res.Disk.P999)
	}
	if res.RequestPerSync != nil {
		fmt.Fprintf(t.out, "a request takes %.1f fdatasyncs; %.1f entries go through in the time of one\n", *res.RequestPerSync, *res.EntriesPerSync)
	}
	return nil
}

// load drives the appliance.
func (t *tool) load(ctx context.Context, f benchFlags, res *benchResult) error {
	sign, _ := t.sockets()
	clients := make([]*api.Client, f.producers)
	for i := range clients {
		c, err := api.Dial(ctx, sign)
		if err != nil {
			return coded(exitUnavailable, fmt.Errorf("%w; see --socket", err))
		}
		defer c.Close() // everything was answered
		clients[i] = c
	}
	var mu sync.Mutex
	var total histogram
	run := rand.Text()[:8]
	start := time.Now()
	end := start.Add(f.duration)
	g, ctx := errgroup.WithContext(ctx)
	for i, c := range clients {
		g.Go(func() error {
			h, entries, refused, err := produce(ctx, c, t.log, fmt.Sprintf("%s-%d", run, i), f, end)
			mu.Lock()
			defer mu.Unlock()
			total.add(h)
			res.Entries += entries
			res.Refused += refused
			return err
		})
	}
	err := g.Wait()
	res.Seconds = time.Since(start).Seconds()
	res.EntriesPerSec = float64(res.Entries) / res.Seconds
	res.Request = *total.times()
	if err != nil {
		return coded(exitUnavailable, err)
	}
	return nil
}

// produce is one producer: it sends, waits, and sends again.
func produce(ctx context.Context, c *api.Client, log, name string, f benchFlags, end time.Time) (h *histogram, entries, refused uint64, err error) {
	h = new(histogram)
	events := make([][]byte, f.batch)
	frame := len(fmt.Sprintf(`{"data":{"fill":""},"id":"%s-%020d","type":"bench.event"}`, name, 0))
	fill := strings.Repeat("x", max(f.size-frame, 0))
	for n := 0; time.Now().Before(end); {
		for i := range events {
			events[i] = fmt.Appendf(events[i][:0], `{"data":{"fill":"%s"},"id":"%s-%020d","type":"bench.event"}`, fill, name, n)
			n++
		}
		start := time.Now()
		_, err := c.AppendBatch(ctx, log, f.want, events...)
		if r := (*api.Refusal)(nil); errors.As(err, &r) && r.RetryAfter > 0 {
			refused++
			n -= len(events)
			if err := sleep(ctx, r.RetryAfter); err != nil {
				return h, entries, refused, err
			}
			continue
		}
		if err != nil {
			return h, entries, refused, err
		}
		h.record(time.Since(start))
		entries += uint64(len(events))
	}
	return h, entries, refused, nil
}

// measureDisk measures 4 KiB writes with fdatasync into a file filled with zeros.
func measureDisk(ctx context.Context, dir string, d time.Duration) (*histogram, error) {
	f, err := os.CreateTemp(dir, ".bulla-bench-*")
	if err != nil {
		return nil, usagef("--disk: %w", err)
	}
	h := new(histogram)
	err = fdatasyncs(ctx, f, d, h)
	if err = errors.Join(err, f.Close(), os.Remove(f.Name())); err != nil {
		return nil, fmt.Errorf("measuring the disk: %w", err)
	}
	return h, nil
}

func fdatasyncs(ctx context.Context, f *os.File, d time.Duration, h *histogram) error {
	const blocks, block = 4096, 4096
	zeros := make([]byte, 1<<20)
	for range blocks * block / len(zeros) {
		if _, err := f.Write(zeros); err != nil {
			return err
		}
	}
	if err := f.Sync(); err != nil {
		return err
	}
	b := []byte(strings.Repeat("b", block))
	end := time.Now().Add(d)
	for i := int64(0); time.Now().Before(end); i++ {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		start := time.Now()
		if _, err := f.WriteAt(b, i%blocks*block); err != nil {
			return err
		}
		if err := fdatasync(f); err != nil {
			return err
		}
		h.record(time.Since(start))
	}
	return nil
}

// histogram counts durations in buckets of about 3 %, in constant memory.
type histogram struct {
	count   uint64
	buckets [64 * 32]uint64
}

func (h *histogram) record(d time.Duration) {
	h.count++
	h.buckets[bucket(uint64(max(d, 1)))]++
}

// bucket is by the highest bit, and the five below it.
func bucket(ns uint64) int {
	high := bits.Len64(ns) - 1
	if high < 5 {
		return int(ns)
	}
	return high*32 + int(ns>>(high-5)&31)
}

// lowest is the smallest duration of a bucket, in ns.
func lowest(i int) float64 {
	if i < 5*32 {
		return float64(i)
	}
	return float64(uint64(32+i%32) << (i/32 - 5))
}

func (h *histogram) add(o *histogram) {
	h.count += o.count
	for i, n := range o.buckets {
		h.buckets[i] += n
	}
}

// quantile is the duration that a share of all are at most, in ms.
func (h *histogram) quantile(q float64) float64 {
	rank := uint64(q * float64(h.count))
	var seen uint64
	for i, n := range h.buckets {
		if seen += n; n > 0 && seen > rank {
			return lowest(i) / 1e6
		}
	}
	return 0
}

func (h *histogram) times() *times {
	return &times{Count: h.count, P50: h.quantile(0.5), P99: h.quantile(0.99), P999: h.quantile(0.999)}
}
