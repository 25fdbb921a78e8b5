package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"bulla/record"
	"bulla/verify"
)

// drillFlags is what `bulla drill` is told.
type drillFlags struct {
	dir    string
	shadow []string
	policy string
	bullad string
	out    string
	only   []string
}

const (
	drillsAtOnce = 4       // drills that run at the same time
	maxDrillLog  = 100_000 // entries of the appliance's log
)

func (t *tool) drillCommand() *cobra.Command {
	var f drillFlags
	cmd := &cobra.Command{
		Use:   "drill --dir DIR | --shadow FILE... --policy FILE",
		Short: "Attack a throwaway appliance, and show that each attack is noticed",
		Long: `drill has an appliance that bullad dev made attacked, or one of its devices fail, and shows what noticed it, after how long, and whether
service resumed:

` + named(drills) + `

DIR is new, or holds a dev appliance that is not running; any other directory is refused. Each drill works on a copy of it, and its
outcome is recorded in DIR's own log, as an event of type bulla.drill. Neither another appliance nor the machine's clock is touched.

--shadow takes copies of a real log's file instead, made while its bullad was stopped (with FILE-wal, if that was killed), and does to
copies of them what can be done at rest. FILE is only read. Nothing is recorded.

` + named(shadowDrills) + `

A drill is detected only if everything noticed it that should (docs/drill.md). Exit codes: 0 every drill that ran was detected; 1 one
was not.`,
		Example: "  bulla drill --dir drill --out drill-report.md\n  bulla drill --dir dev --only rollback,fork --json\n  bulla drill --shadow monday/audit.db --shadow friday/audit.db --policy auditor.policy",
		Args:    args(cobra.NoArgs),
		RunE:    func(cmd *cobra.Command, _ []string) error { return t.drill(cmd.Context(), f) },
	}
	cmd.Flags().StringVar(&f.dir, "dir", "", "directory of the throwaway appliance")
	cmd.Flags().StringArrayVar(&f.shadow, "shadow", nil, "copy of a log's file; may be repeated")
	cmd.Flags().StringVar(&f.policy, "policy", "", "with --shadow: file that says what to trust")
	cmd.Flags().StringVar(&f.bullad, "bullad", "", "the bullad program (default: the one beside bulla, or in PATH)")
	cmd.Flags().StringVar(&f.out, "out", "", "file for a report in Markdown")
	cmd.Flags().StringSliceVar(&f.only, "only", nil, "names of drills (default: all)")
	return cmd
}

// drill runs drills and reports them; the error carries the exit code.
func (t *tool) drill(ctx context.Context, f drillFlags) error {
	all := drills
	switch {
	case t.log != "":
		return usagef("--log: drills are of the first log of a dev appliance, or of the copies given")
	case (f.dir == "") == (len(f.shadow) == 0):
		return usagef("give --dir with a new directory or one that bullad dev made, or --shadow with copies of a log's file")
	case len(f.shadow) > 0:
		all = shadowDrills
	case f.policy != "":
		return usagef("--policy goes with --shadow: a dev appliance has its own")
	}
	chosen, err := chooseDrills(all, f.only)
	if err != nil {
		return err
	}
	if err := free(f.out); err != nil {
		return err
	}
	if f.dir != "" {
		if f.dir, err = checkDrillDir(f.dir); err != nil {
			return err
		}
	}
	if f.bullad, err = findBullad(f.bullad); err != nil {
		return err
	}
	if len(f.shadow) > 0 {
		return t.drillShadow(ctx, f, chosen)
	}
	return t.drillLive(ctx, f, chosen)
}

func chooseDrills(all []drill, only []string) ([]*drill, error) {
	var out []*drill
	for i := range all {
		if len(only) == 0 || slices.Contains(only, all[i].name) {
			out = append(out, &all[i])
		}
	}
	for _, name := range only {
		if !slices.ContainsFunc(out, func(d *drill) bool { return d.name == name }) {
			return nil, usagef("--only: there is no drill %q; see `bulla drill --help`", name)
		}
	}
	return out, nil
}

// findBullad finds the daemon's program.
func findBullad(given string) (string, error) {
	if given != "" {
		return given, nil
	}
	if exe, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(exe), "bullad")
		if _, err := os.Stat(beside); err == nil {
			return beside, nil
		}
	}
	path, err := exec.LookPath("bullad")
	if err != nil {
		return "", usagef("bullad is neither beside bulla nor in PATH: name it with --bullad")
	}
	return path, nil
}

// lab is where drills take place.
type lab struct {
	t      *tool
	bullad string
	base   string // directory of the appliance, stopped
	work   string // directory for copies of it

	origin   string // of the log
	log      string // its name
	tpmSigns bool   // and not the HSM
	size     uint64 // of the log before the drills
	mark     string // what an event of it holds, and nothing else
	evidence string // an export of it

	shadows []*shadow // instead of an appliance
	policy  *verify.Policy
}

// inLab has drills done in a directory for copies, and reports them.
func (t *tool) inLab(f drillFlags, do func(*lab, *drillReport) error) (err error) {
	work, err := os.MkdirTemp("", "drill") // sockets need short paths
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	l := &lab{t: t, bullad: f.bullad, base: f.dir, work: work}
	rep := &drillReport{Began: time.Now().UTC(), Tool: "bulla " + version()}
	if err := do(l, rep); err != nil {
		return err
	}
	return t.reportDrills(rep, f.out)
}

// drillLive attacks an appliance.
func (t *tool) drillLive(ctx context.Context, f drillFlags, chosen []*drill) error {
	return t.inLab(f, func(l *lab, rep *drillReport) error {
		// 1. An appliance with something in its log.
		if err := l.prepare(ctx, rep); err != nil {
			return err
		}
		// 2. The drills, each on a copy.
		if err := l.runAll(ctx, rep, chosen); err != nil {
			return err
		}
		// 3. What came of them, in the log.
		return l.record(ctx, rep)
	})
}

// runAll runs drills, some at the same time.
func (l *lab) runAll(ctx context.Context, rep *drillReport, chosen []*drill) error {
	rep.Drills = make([]drillResult, len(chosen))
	p := l.t.progress("drilling:")
	p.unit = "drills"
	var mu sync.Mutex
	var ended uint64
	var g errgroup.Group
	g.SetLimit(drillsAtOnce)
	for i, d := range chosen {
		g.Go(func() error {
			rep.Drills[i] = *l.run(ctx, d)
			mu.Lock()
			defer mu.Unlock()
			ended++
			p.show(ended, uint64(len(chosen)))
			return ctx.Err()
		})
	}
	err := g.Wait()
	p.clear()
	if err != nil {
		return coded(exitUnavailable, fmt.Errorf("interrupted, and nothing recorded: %w", err))
	}
	rep.Ended = time.Now().UTC()
	return nil
}

// prepare starts the appliance, has some events taken and sealed, and stops it.
func (l *lab) prepare(ctx context.Context, rep *drillReport) (err error) {
	d, err := l.t.startDev(ctx, l.bullad, l.base)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	if _, err := d.line(ctx, "ready"); err != nil {
		return err
	}
	l.origin, l.log = d.log.Origin, d.log.Name
	if l.tpmSigns, err = tpmSigns(l.base, l.log); err != nil {
		return err
	}
	if d.log.Size > maxDrillLog {
		return usagef("--dir: the log has %d entries, and each drill copies and verifies it: name a new directory, or one with at most %d", d.log.Size, maxDrillLog)
	}
	rep.Log, rep.Bullad = d.log.Origin, d.status.Machine.Version
	if err := d.work(ctx, "before the drills", 5); err != nil {
		return err
	}
	l.mark = rand.Text()
	receipt, err := d.take(ctx, map[string]string{"mark": l.mark})
	if err != nil {
		return coded(exitUnavailable, err)
	}
	if err := d.work(ctx, "before the drills", 1); err != nil {
		return err
	}
	l.size, l.evidence = receipt.Index, filepath.Join(l.work, "evidence")
	out, err := verify.CreateDir(l.evidence)
	if err != nil {
		return err
	}
	_, err = verify.Export(ctx, d.appliance, out.Put, nil)
	return errors.Join(err, out.Sync())
}

// work has events taken and sealed.
func (d *devAppliance) work(ctx context.Context, what string, n int) error {
	for i := range n {
		if _, err := d.take(ctx, map[string]any{"is": what, "n": i}); err != nil {
			return coded(exitUnavailable, err)
		}
	}
	return d.soon(ctx, "no seal", func(ctx context.Context) error {
		_, err := d.sealNow(ctx)
		return err
	})
}

// run runs one drill on a copy of its own.
func (l *lab) run(ctx context.Context, d *drill) *drillResult {
	r := &drillResult{Name: d.name, Does: d.does, Noticed: []drillNotice{}}
	x := &trying{lab: l, drill: d, res: r}
	err := d.run(ctx, x)
	for _, a := range x.running {
		err = errors.Join(err, a.stop())
	}
	r.conclude(err)
	return r
}

// record has the outcome taken as an event.
func (l *lab) record(ctx context.Context, rep *drillReport) (err error) {
	d, err := l.t.startDev(ctx, l.bullad, l.base)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	if _, err := d.line(ctx, "ready"); err != nil {
		return err
	}
	event, err := rep.event()
	if err != nil {
		return err
	}
	receipt, err := d.client.Append(ctx, d.log.Origin, event)
	if err != nil {
		return coded(exitUnavailable, fmt.Errorf("recording the drills: %w", err))
	}
	rep.Entry, rep.Leaf = &receipt.Index, record.LeafHash(receipt.Entry).String()
	return nil
}
