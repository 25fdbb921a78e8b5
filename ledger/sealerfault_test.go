package ledger_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"bulla/attest"
	"bulla/ledger"
	"bulla/record"
	"bulla/store"
)

// A process that ends in a seal, at every step: each command to the TPM not executed, or executed and its answer lost; each commit of
// a log before it, or after. Between two of them lies at most one write of the sealer's file, so ending after the one is ending before
// that write, and ending before the other is ending after it. Then the machine goes on as it was, or its power is cut, or it
// hibernates. The next start must cry no rollback, the logs must verify, and a copy from before must still be found.
func TestSealFaults(t *testing.T) {
	t.Parallel()
	for _, then := range []struct {
		name string
		do   func(*plant, *testing.T)
	}{
		{"", func(*plant, *testing.T) {}},
		{", then a power cut", func(p *plant, t *testing.T) { p.reset(t) }},
		{", then hibernation", func(p *plant, t *testing.T) { p.hibernate(t) }},
	} {
		t.Run("ends"+then.name, func(t *testing.T) {
			t.Parallel()
			p := newPlant(t, origin, "test.example/other")
			p.start(t).close(t)
			steps := p.dying(t, &death{}) // it does not die, and counts
			if len(steps) < 12 {
				t.Fatalf("a seal has the steps %v", steps)
			}
			for at := range steps {
				for _, executed := range []bool{false, true} {
					if executed && slices.Contains([]string{"Counter", "Clock", "PCR"}, steps[at]) {
						continue // what only reads leaves nothing behind
					}
					name := fmt.Sprintf("step %d %s%s%s", at, steps[at], pick(executed, " not executed", " executed"), then.name)
					before := p.copy(t)
					p.dying(t, &death{at: at + 1, executed: executed})
					then.do(p, t)
					d := p.start(t)
					d.append(t)
					d.seal(t, ledger.ReasonDemand)
					d.requireHonest(t)
					d.close(t)
					now := p.copy(t)
					p.put(t, before)
					if found := p.requireRollback(t); found == "" {
						t.Errorf("%s: a copy from before was not found", name)
					}
					p.put(t, now)
					if t.Failed() {
						t.Fatal(name)
					}
				}
			}
		})
	}
}

func pick(b bool, no, yes string) string {
	if b {
		return yes
	}
	return no
}

// dying opens the plant and seals it, with all that a seal does, but ends where death says. It returns the steps.
func (p *plant) dying(t *testing.T, x *death) []string {
	t.Helper()
	d := p.open(t, func(device attest.TPM) attest.TPM { return &mortalTPM{device, x} })
	defer d.close(t)
	d.append(t)
	for _, l := range p.logs {
		l.devices.write = func(real func() error) error {
			err := x.step("commit of "+l.origin, real)
			if errors.Is(err, errDead) {
				return fmt.Errorf("%w: %w", store.ErrUnknown, err)
			}
			return err
		}
		defer func() { l.devices.write = nil }()
	}
	if _, err := d.sealer.Seal(context.Background(), ledger.ReasonStart, nil); (err == nil) == x.dead {
		t.Fatalf("the seal at %d: %v", x.at, err)
	}
	return x.steps
}

var errDead = errors.New("the process has ended")

// death is a process's end at a step; 0: never.
type death struct {
	at       int
	executed bool // the step takes effect

	mu    sync.Mutex
	steps []string
	dead  bool
}

func (x *death) step(name string, run func() error) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.dead {
		return errDead
	}
	x.steps = append(x.steps, name)
	if len(x.steps) != x.at {
		return run()
	}
	x.dead = true
	if x.executed {
		if err := run(); err != nil {
			return err
		}
	}
	return errors.Join(attest.ErrUnknown, errDead)
}

// mortalTPM is a TPM as a process sees it that ends.
type mortalTPM struct {
	attest.TPM
	x *death
}

func (m *mortalTPM) Increment(ctx context.Context) error {
	return m.x.step("Increment", func() error { return m.TPM.Increment(ctx) })
}

func (m *mortalTPM) Extend(ctx context.Context, i int, d [32]byte) error {
	return m.x.step("Extend", func() error { return m.TPM.Extend(ctx, i, d) })
}

func (m *mortalTPM) Counter(ctx context.Context) (out uint64, err error) {
	err = m.x.step("Counter", func() (err error) { out, err = m.TPM.Counter(ctx); return err })
	return out, err
}

func (m *mortalTPM) PCR(ctx context.Context, i int) (out record.Hash, err error) {
	err = m.x.step("PCR", func() (err error) { out, err = m.TPM.PCR(ctx, i); return err })
	return out, err
}

func (m *mortalTPM) Clock(ctx context.Context) (out attest.ClockInfo, err error) {
	err = m.x.step("Clock", func() (err error) { out, err = m.TPM.Clock(ctx); return err })
	return out, err
}

func (m *mortalTPM) CertifyCounter(ctx context.Context, x [32]byte) (out attest.Signed, err error) {
	err = m.x.step("CertifyCounter", func() (err error) { out, err = m.TPM.CertifyCounter(ctx, x); return err })
	return out, err
}

func (m *mortalTPM) Quote(ctx context.Context, s []int, x [32]byte) (out attest.Quoted, err error) {
	err = m.x.step("Quote", func() (err error) { out, err = m.TPM.Quote(ctx, s, x); return err })
	return out, err
}
