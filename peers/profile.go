package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
)

// profile has a new appliance profile itself under the load of each case, into a directory a case.
func profile(ctx context.Context, s *settings, dir string) error {
	for _, c := range []struct {
		name string
		run  func(*appliance) error
	}{
		{"single", func(a *appliance) error { return benched(a.bench(ctx, 1, 1, eventSize, "ack", s.length())) }},
		{"many", func(a *appliance) error { return benched(a.bench(ctx, 256, 1, eventSize, "ack", s.length())) }},
		{"bulk", func(a *appliance) error {
			return benched(a.bench(ctx, bulkProducers, bulkBatch, eventSize, "ack", s.length()))
		}},
		{"reads", func(a *appliance) error { return reads(ctx, s, "", a, newReport(s)) }},
		{"overload", func(a *appliance) error { return overloaded(ctx, s, a, newReport(s)) }},
	} {
		if !s.has(c.name) {
			continue
		}
		progress("profiling: %s", c.name)
		if err := profileCase(ctx, s, filepath.Join(dir, c.name), filepath.Join(s.profile, c.name), c.run); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	fmt.Printf("cpu, allocs, heap, block and mutex profiles of each case are in %s: go tool pprof -top %s\n", s.profile, filepath.Join(s.profile, "single", "cpu.prof"))
	return nil
}

func profileCase(ctx context.Context, s *settings, dir, out string, run func(*appliance) error) error {
	a, err := startAppliance(ctx, s.bin, dir, "--profile", out)
	if err != nil {
		return err
	}
	return errors.Join(run(a), a.stop())
}

// benched shows what a profiled run did.
func benched(m measurement, err error) error {
	if err == nil {
		progress("  %s entries/s, p50 %s ms, p99 %s ms", number(m.Rate), number(m.P50), number(m.P99))
	}
	return err
}
