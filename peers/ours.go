package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// What only Bulla is asked: no peer has an HSM, proofs of what it serves, or an answer to more than it can take.

// The bulk load: each producer waits for its answer.
const (
	bulkProducers = 16
	bulkBatch     = 100
)

var bulk = work{producers: bulkProducers, batch: bulkBatch, size: eventSize, window: 1}

// signTime is how long the slow HSM takes for a signature, beyond what SoftHSM does.
const signTime = 5 * time.Millisecond

// slowHSM compares bulk loads with the HSM as it is, and with one that is slow.
func slowHSM(ctx context.Context, s *settings, dir string, fast *appliance, r *report) (err error) {
	slow, err := startAppliance(ctx, s.bin, filepath.Join(dir, "slow"), "--hsm-delay", signTime.String())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, slow.stop()) }()
	for _, c := range []struct {
		name                     string
		producers, batch, window int
	}{{"16 x 100", bulkProducers, bulkBatch, 1}, {"16 x 100, four requests under way each", bulkProducers, bulkBatch, 4}, {"256 x 1", 256, 1, 1}} {
		var rates []float64
		for _, a := range []*appliance{fast, slow} {
			o, err := load(ctx, a, work{producers: c.producers, batch: c.batch, size: eventSize, window: c.window}, s.length())
			if err != nil {
				return err
			}
			settle(ctx)
			rates = append(rates, float64(o.taken)/s.seconds)
		}
		r.note("hsm", c.name+", SoftHSM", "entries/s", rates[0])
		r.note("hsm", c.name+", 5 ms slower", "entries/s", rates[1])
		r.note("hsm", c.name+", ratio", "", rates[1]/rates[0])
	}
	return nil
}

// Load of the reads' case.
const (
	writtenRate = 50_000 // entries/s
	readers     = 16
)

// reads reads random entries with their proofs while entries are written at a rate, and alone.
func reads(ctx context.Context, s *settings, _ string, a *appliance, r *report) error {
	write := func(d time.Duration) (offered, error) {
		return load(ctx, a, work{producers: bulkProducers, batch: bulkBatch, size: eventSize, rate: writtenRate}, d)
	}
	if _, err := write(max(s.length(), 2*time.Second)); err != nil { // there must be something to read
		return err
	}
	settle(ctx)
	size, err := a.size()
	if err != nil {
		return err
	}
	alone, err := write(s.length())
	if err != nil {
		return err
	}
	settle(ctx)
	reading, stop := context.WithCancel(ctx)
	defer stop()
	type result struct {
		took latencies
		err  error
	}
	done := make(chan result, 1)
	start := time.Now()
	go func() {
		took, err := readRandom(reading, a, readers, size)
		done <- result{took, err}
	}()
	with, err := write(s.length())
	stop()
	took := time.Since(start)
	got := <-done
	if err = errors.Join(err, got.err); err != nil {
		return err
	}
	r.note("reads", "written meanwhile", "entries/s", float64(with.taken)/took.Seconds())
	r.note("reads", "read, each with its proof", "reads/s", float64(len(got.took))/took.Seconds())
	r.note("reads", "a read, p50", "ms", got.took.quantile(0.5))
	r.note("reads", "a read, p99", "ms", got.took.quantile(0.99))
	r.note("reads", "a write of 100, p99, nobody reads", "ms", alone.took.quantile(0.99))
	r.note("reads", "a write of 100, p99, while read", "ms", with.took.quantile(0.99))
	r.note("reads", "p99 of writes, ratio", "", with.took.quantile(0.99)/alone.took.quantile(0.99))
	return nil
}

// overload offers four times what the appliance can sustain: a new one, whose memory tells of nothing else.
func overload(ctx context.Context, s *settings, dir string, _ *appliance, r *report) (err error) {
	a, err := startAppliance(ctx, s.bin, filepath.Join(dir, "overload"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.stop(), os.RemoveAll(a.dir)) }()
	return overloaded(ctx, s, a, r)
}

func overloaded(ctx context.Context, s *settings, a *appliance, r *report) error {
	_, before, err := a.memory()
	if err != nil {
		return err
	}
	best, err := load(ctx, a, bulk, s.length())
	if err != nil {
		return err
	}
	_, busy, err := a.memory()
	if err != nil {
		return err
	}
	settle(ctx)
	sustained := float64(best.taken) / s.seconds
	start := time.Now()
	over, err := load(ctx, a, work{producers: bulkProducers, batch: bulkBatch, size: eventSize, rate: 4 * sustained}, s.length())
	took := time.Since(start).Seconds()
	if err != nil {
		return err
	}
	_, peak, err := a.memory()
	if err != nil {
		return err
	}
	r.note("overload", "sustained: 16 producers wait for their answers", "entries/s", sustained)
	r.note("overload", "offered", "entries/s", float64(over.sent)/took)
	r.note("overload", "offered of sustained, ratio", "", float64(over.sent)/took/sustained)
	r.note("overload", "taken", "entries/s", float64(over.taken)/took)
	r.note("overload", "taken of sustained, ratio", "", float64(over.taken)/took/sustained)
	r.note("overload", "refused as busy, of what was offered", "%", 100*float64(over.busy)/float64(over.sent))
	r.note("overload", "until busy was said, p99", "ms", over.refusal.quantile(0.99))
	r.note("overload", "resident memory at its highest, before any load", "MB", float64(before)/1e6)
	r.note("overload", "with what it can sustain", "MB", float64(busy)/1e6)
	r.note("overload", "with four times that", "MB", float64(peak)/1e6)
	return nil
}

// shapes is what other events and keys cost, on a log of their own.
func shapes(ctx context.Context, s *settings, dir string, _ *appliance, r *report) (err error) {
	a, err := startAppliance(ctx, s.bin, filepath.Join(dir, "shapes"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.stop(), os.RemoveAll(a.dir)) }()
	for _, c := range []struct {
		name        string
		size, batch int
	}{{"events of 64 B", 64, 100}, {"events of 300 B", 300, 100}, {"events of 4 KB", 4 << 10, 100}, {"events of 60,000 B", 60_000, 16}} {
		o, err := load(ctx, a, work{producers: bulkProducers, batch: c.batch, size: c.size, window: 1}, s.length())
		if err != nil {
			return err
		}
		settle(ctx)
		r.note("shape", c.name+", "+fmt.Sprintf("%d x %d", bulkProducers, c.batch), "entries/s", float64(o.taken)/s.seconds)
		r.note("shape", c.name, "MB/s", float64(o.taken*c.size)/s.seconds/1e6)
	}
	return errors.Join(tpmKey(ctx, s, dir, r), logs(ctx, s, dir, r))
}

// logs is the load spread over several logs of one daemon, each with a key, a file, and commits of its own.
func logs(ctx context.Context, s *settings, dir string, r *report) error {
	for _, n := range []int{1, 4, 16} {
		if err := manyLogs(ctx, s, filepath.Join(dir, "logs"), n, r); err != nil {
			return err
		}
	}
	return nil
}

func manyLogs(ctx context.Context, s *settings, dir string, n int, r *report) (err error) {
	a, err := startAppliance(ctx, s.bin, dir, "--logs", fmt.Sprint(n))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.stop(), os.RemoveAll(dir)) }()
	for _, w := range []work{{producers: bulkProducers, batch: bulkBatch}, {producers: 256, batch: 1}} {
		w.size, w.logs, w.window = eventSize, n, 1
		o, err := load(ctx, a, w, s.length())
		if err != nil {
			return err
		}
		settle(ctx)
		r.note("shape", fmt.Sprintf("logs: %d, %d x %d", n, w.producers, w.batch), "entries/s", float64(o.taken)/s.seconds)
	}
	return nil
}

// tpmKey is the load with a log that is signed by a key in a software TPM.
func tpmKey(ctx context.Context, s *settings, dir string, r *report) (err error) {
	a, err := startAppliance(ctx, s.bin, filepath.Join(dir, "tpmkey"), "--tpm-key")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.stop()) }()
	for _, c := range []struct {
		name             string
		producers, batch int
	}{{"signed by a TPM's key, 1 x 1", 1, 1}, {"signed by a TPM's key, 16 x 100", bulkProducers, bulkBatch}} {
		m, err := a.bench(ctx, c.producers, c.batch, eventSize, "ack", s.length())
		if err != nil {
			return err
		}
		settle(ctx)
		r.note("shape", c.name, "entries/s", m.Rate)
	}
	return nil
}

// grow fills a log, and compares what it does at a million entries and at its end, and how it starts then.
func grow(ctx context.Context, s *settings, dir string, r *report) (err error) {
	path := filepath.Join(dir, "growth")
	empty, err := startAppliance(ctx, s.bin, path)
	if err != nil {
		return err
	}
	if err := empty.stop(); err != nil {
		return err
	}
	a, err := startAppliance(ctx, s.bin, path)
	if err != nil {
		return err
	}
	running := true
	defer func() {
		if running {
			err = errors.Join(err, a.stop())
		}
	}()
	const step = 3 * time.Second
	var at, rates []float64 // entries after a step, and its rate
	for {
		o, err := load(ctx, a, bulk, step)
		if err != nil {
			return err
		}
		n, err := a.size()
		if err != nil {
			return err
		}
		at, rates = append(at, float64(n)), append(rates, float64(o.taken)/step.Seconds())
		progress("growth: %s entries, %s entries/s", number(float64(n)), number(rates[len(rates)-1]))
		if n >= s.growth {
			break
		}
	}
	now, peak, err := a.memory()
	if err != nil {
		return err
	}
	first, last := around(at, rates, 1e6), spreadOf(rates[max(0, len(rates)-5):]).median
	r.note("growth", "entries", "", at[len(at)-1])
	r.note("growth", "at a million", "entries/s", first)
	r.note("growth", "at the end", "entries/s", last)
	r.note("growth", "ratio", "", last/first)
	r.note("growth", "resident memory after the load", "MB", float64(now)/1e6)
	r.note("growth", "resident memory at its highest", "MB", float64(peak)/1e6)
	running = false
	if err := a.stop(); err != nil {
		return err
	}
	b, err := startAppliance(ctx, s.bin, path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.stop()) }()
	if now, _, err = b.memory(); err != nil {
		return err
	}
	r.note("growth", "start until ready with an empty log, with the devices of dev", "s", a.ready.Seconds())
	r.note("growth", "start until ready, with the devices of dev", "s", b.ready.Seconds())
	r.note("growth", "resident memory after the start", "MB", float64(now)/1e6)
	return nil
}

// around is the rate of the five steps that end closest to n entries.
func around(at, rates []float64, n float64) float64 {
	i := 0
	for i < len(at)-1 && at[i] < n {
		i++
	}
	return spreadOf(rates[max(0, i-2):min(len(rates), i+3)]).median
}
