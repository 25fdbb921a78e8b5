// Command peers measures a running Bulla appliance beside other logs and stores, on one disk, in turns.
//
// Every store appends the same events, one by one or a hundred at once, and answers a producer only when its events are durable. The
// peers run inside this process, without a socket, validation, or a hardware's signature; Bulla runs as the built binaries, and its
// producers speak to its socket. The peers lead by that much; docs/performance.md says how to read the result.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// settings is what the run is told.
type settings struct {
	disk    string // directory on the disk that is measured
	bin     string // where bullad and bulla were built
	rounds  int
	seconds float64
	cases   string // comma-separated; empty: all but growth
	growth  uint64 // entries that the growth case fills a log with; 0: leave it out
	json    string // file to write
	doc     string // Markdown file whose section between the markers is replaced
	profile string // directory for profiles, taken instead of measuring; empty: measure
}

// length is how long one case of one store runs.
func (s *settings) length() time.Duration { return time.Duration(s.seconds * float64(time.Second)) }

// has reports whether a case was asked for.
func (s *settings) has(name string) bool {
	if s.cases == "" {
		return true
	}
	for c := range strings.SplitSeq(s.cases, ",") {
		if c == name {
			return true
		}
	}
	return false
}

// known reports whether there are only cases that there are.
func (s *settings) known() bool {
	for c := range strings.SplitSeq(s.cases, ",") {
		if s.cases != "" && !slices.Contains([]string{"single", "many", "bulk", "hsm", "reads", "overload", "shape"}, c) {
			return false
		}
	}
	return true
}

func main() { os.Exit(run()) }

func run() int {
	var s settings
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = "."
	}
	flag.StringVar(&s.disk, "disk", filepath.Join(cache, "bulla-peers"), "`directory` on the disk to measure; made if missing, must not be in memory")
	flag.StringVar(&s.bin, "bin", "bin", "`directory` of bullad and bulla")
	flag.IntVar(&s.rounds, "rounds", 5, "rounds, in each of which every store runs every case once")
	flag.Float64Var(&s.seconds, "seconds", 5, "seconds a case takes")
	flag.StringVar(&s.cases, "cases", "", "comma-separated: single,many,bulk,hsm,reads,overload,shape; empty: all")
	flag.Uint64Var(&s.growth, "growth", 0, "also fill a log with so many entries, and measure it there (50000000 takes minutes)")
	flag.StringVar(&s.json, "json", "", "`file` for the result as JSON")
	flag.StringVar(&s.doc, "doc", "", "Markdown `file` whose section between the markers is replaced")
	flag.StringVar(&s.profile, "profile", "", "take profiles of a running bullad in each case, into this `directory`, instead of measuring")
	flag.Parse()
	if flag.NArg() > 0 || s.rounds < 1 || s.seconds < 0.5 || !s.known() {
		flag.Usage()
		return 64
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := measure(ctx, &s); err != nil {
		fmt.Fprintln(os.Stderr, "peers:", err)
		return 74
	}
	return 0
}

// measure runs everything and writes the report.
func measure(ctx context.Context, s *settings) (err error) {
	if err := os.MkdirAll(s.disk, 0o700); err != nil {
		return err
	}
	if err := onDisk(s.disk); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(s.disk, "run-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	if s.profile != "" {
		return profile(ctx, s, dir)
	}
	r := newReport(s)
	if err := rounds(ctx, s, dir, r); err != nil {
		return err
	}
	if s.growth > 0 {
		if err := grow(ctx, s, dir, r); err != nil {
			return err
		}
	}
	fmt.Print(r.markdown())
	return errors.Join(r.writeJSON(s.json), r.writeDoc(s.doc))
}

// rounds runs each case of each store once a round, so that what changes on the machine meanwhile meets all of them.
func rounds(ctx context.Context, s *settings, dir string, r *report) (err error) {
	fast, err := startAppliance(ctx, s.bin, filepath.Join(dir, "bulla"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, fast.stop()) }()
	for round := range s.rounds {
		r.observe(idle(ctx))
		for _, c := range cases {
			if !s.has(c.name) {
				continue
			}
			for _, st := range c.stores {
				progress("round %d of %d: %s, %s", round+1, s.rounds, c.name, st.name)
				m, err := st.measure(ctx, s, c, fast, filepath.Join(dir, "peer"))
				if err != nil {
					return fmt.Errorf("%s, %s: %w", c.name, st.name, err)
				}
				if c.producers == 1 && !m.durable() {
					return fmt.Errorf("%s: %d answers with %d flushes of the disk: they were not durable", st.name, m.Answers, *m.Flushes)
				}
				r.add(c.name, st.name, m)
				settle(ctx)
			}
		}
		if err := ours(ctx, s, round, dir, fast, r); err != nil {
			return err
		}
	}
	return nil
}

// ours runs the cases that no peer has.
func ours(ctx context.Context, s *settings, round int, dir string, fast *appliance, r *report) error {
	for _, c := range []struct {
		name string
		run  func(context.Context, *settings, string, *appliance, *report) error
	}{{"hsm", slowHSM}, {"reads", reads}, {"overload", overload}, {"shape", shapes}} {
		if !s.has(c.name) {
			continue
		}
		progress("round %d of %d: %s", round+1, s.rounds, c.name)
		if err := c.run(ctx, s, dir, fast, r); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		settle(ctx)
	}
	return ctx.Err()
}

// progress says what is being done.
func progress(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
