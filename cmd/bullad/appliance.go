package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"bulla/api/server"
	"bulla/ceremony"
	"bulla/clock"
	"bulla/clock/ntp"
	"bulla/ledger"
	"bulla/record"
	"bulla/store"
	"bulla/tpm"
)

// appliance is a running daemon: its devices, its logs, and what serves them.
type appliance struct {
	cfg     *Config
	log     *slog.Logger
	devices *devices
	clock   *lateClock
	monitor *ntp.Monitor
	logs    []*openLog
	sealer  *ledger.Sealer              // nil without a TPM
	machine atomic.Pointer[tpm.Machine] // as enrolled; nil without that TPM
	boot    *boot                       // what was measured at boot; nil without a TPM
	exe     record.Hash                 // of the running executable

	selfCheck *ledger.SelfCheck
	witnesses *witnesses
	tsa       *server.TSA // nil without [tsa]
	config    record.Hash // of the configuration file
}

type openLog struct {
	LogConfig
	*ledger.Ledger
}

// lateClock is the clock that ledgers stamp with. The monitor, which needs the logs to record in, follows them; nothing is stamped
// before it is there, and a stamp made without it would claim nothing: its state is unknown.
type lateClock struct{ monitor atomic.Pointer[ntp.Monitor] }

func (c *lateClock) Now() clock.Stamp {
	if m := c.monitor.Load(); m != nil {
		return m.Now()
	}
	return clock.Stamp{Sys: time.Now().UnixNano()}
}

// openAppliance opens devices and logs, in that order, and starts nothing yet. What it opened is closed again on error.
func openAppliance(ctx context.Context, path string, cfg *Config, log *slog.Logger) (*appliance, error) {
	a := &appliance{cfg: cfg, log: log, clock: &lateClock{}}
	if err := a.open(ctx, path); err != nil {
		return nil, errors.Join(err, a.Close())
	}
	return a, nil
}

func (a *appliance) open(ctx context.Context, path string) (err error) {
	if a.exe, err = fileHash("/proc/self/exe"); err != nil {
		return err
	}
	if a.config, err = fileHash(path); err != nil {
		return err
	}
	if a.devices, err = openDevices(ctx, a.cfg); err != nil {
		return err
	}
	for _, lc := range a.cfg.Logs {
		l, err := a.openLog(ctx, lc)
		if err != nil {
			return fmt.Errorf("log %s: %w", lc.Name, err)
		}
		a.logs = append(a.logs, &openLog{lc, l})
	}
	a.openSelfCheck()
	if err := a.openWitnesses(); err != nil {
		return err
	}
	if err := a.openMonitor(); err != nil {
		return err
	}
	if err := a.openTSA(ctx); err != nil {
		return err
	}
	return a.openSealer(ctx)
}

func (a *appliance) openLog(ctx context.Context, lc LogConfig) (*ledger.Ledger, error) {
	cfg := ledger.Config{Origin: lc.Origin, Clock: a.clock, Waiting: lc.File + "-recovery", Signer: func(k ceremony.Key) (ledger.Signer, error) { return a.signer(ctx, lc, k) }}
	s, err := store.Open(lc.File)
	if err != nil {
		return nil, err
	}
	l, err := ledger.Open(cfg, s)
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return l, nil
}

// signer opens a key that is governed to sign a log. ctx bounds opening alone.
func (a *appliance) signer(ctx context.Context, lc LogConfig, k ceremony.Key) (ledger.Signer, error) {
	uri, err := a.cfg.uri(lc, k.Purpose)
	if err != nil {
		return ledger.Signer{}, err
	}
	s, err := a.devices.governed(ctx, uri, k)
	if err != nil {
		return ledger.Signer{}, fmt.Errorf("%s: %w", keyField(k.Purpose), err)
	}
	if a.cfg.signDelay > 0 {
		s.Signer = slowKey{s.Signer, a.cfg.signDelay}
	}
	return s, nil
}

// keyField is the configuration's key for a purpose.
func keyField(purpose string) string {
	if purpose == ceremony.PurposeInterop {
		return "interop"
	}
	return "key"
}

// recordAll writes one of the machine's own records into every log and returns when all have it durable.
func (a *appliance) recordAll(ctx context.Context, kind record.Kind, body []byte) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, l := range a.logs {
		g.Go(func() error {
			if _, err := l.Record(ctx, kind, body); err != nil {
				return fmt.Errorf("log %s: %w", l.Name, err)
			}
			return nil
		})
	}
	return g.Wait()
}

func (a *appliance) system(ctx context.Context, s *record.System) error {
	if err := s.Check(); err != nil {
		return fmt.Errorf("recording %s: %w", s.Event, err)
	}
	body, err := record.MarshalCanonical(s)
	if err != nil {
		return fmt.Errorf("recording %s: %w", s.Event, err)
	}
	return a.recordAll(ctx, record.KindSystem, body)
}

// serve runs the appliance until ctx ends or it cannot go on. ready is called once it serves, and as soon as it takes events.
func (a *appliance) serve(ctx context.Context, ready func()) error {
	g, ctx := errgroup.WithContext(ctx)
	a.recordStart(ctx, g)
	g.Go(func() error { return a.monitor.Run(ctx) })
	if a.sealer != nil {
		g.Go(func() error { return a.sealer.Run(ctx) })
		g.Go(func() error { return a.recordBoot(ctx) })
	}
	g.Go(func() error { a.resume(ctx); return nil })
	g.Go(func() error { return a.selfCheck.Run(ctx) })
	g.Go(func() error { return a.witnesses.run(ctx, a.logs) })
	for _, l := range a.logs {
		g.Go(func() error {
			select {
			case <-l.Done():
				return fmt.Errorf("log %s stopped: %w", l.Name, l.Err())
			case <-ctx.Done():
				return nil
			}
		})
	}
	serving := make(chan struct{})
	g.Go(func() error { return server.Serve(ctx, a.serverConfig(func() { close(serving) })) })
	g.Go(func() error {
		select {
		case <-serving:
			if a.takesEvents(ctx); ctx.Err() == nil {
				ready()
			}
		case <-ctx.Done():
		}
		return nil
	})
	err := g.Wait()
	if errors.Is(err, ledger.ErrUnknown) {
		return err
	}
	return errors.Join(ignoreCanceled(err), a.stop())
}

// startTime is how long serving waits for its own start to be recorded; with a full disk it goes on, so that reads are served.
const startTime = 2 * time.Second

// recordStart records the start, before anything else of this run if the devices let it.
func (a *appliance) recordStart(ctx context.Context, g *errgroup.Group) {
	done := make(chan struct{})
	g.Go(func() error {
		defer close(done)
		if err := a.system(ctx, &record.System{Event: record.SystemStart, Version: version(), Exe: &a.exe, Config: &a.config}); err != nil {
			a.log.Error("the start could not be recorded", "error", err)
		}
		return nil
	})
	select {
	case <-done:
	case <-time.After(startTime):
		a.log.Warn("the start is not recorded yet: a device or the disk does not answer")
	}
}

// takesEvents waits until events are taken: the clock is within policy and the last seal is settled. It returns earlier with ctx.
func (a *appliance) takesEvents(ctx context.Context) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		fit := true
		for _, l := range a.logs {
			fit = fit && l.Held() == nil && l.State().Policy.Clock.Allows(a.clock.Now()) == nil
		}
		if fit {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// stop seals and records the end, as far as the devices still answer.
func (a *appliance) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := a.system(ctx, &record.System{Event: record.SystemStop}); err != nil {
		a.log.Error("the stop could not be recorded", "error", err)
	}
	if a.sealer != nil {
		if _, err := a.sealer.Seal(ctx, "stop", nil); err != nil {
			a.log.Error("no last seal", "error", err)
		}
	}
	return nil
}

// Close closes logs and devices.
func (a *appliance) Close() error {
	var errs []error
	for _, l := range a.logs {
		errs = append(errs, l.Close())
	}
	if a.devices != nil {
		errs = append(errs, a.devices.Close())
	}
	return errors.Join(errs...)
}

// state is what governs the machine: the policies of clock and seals, which all its logs must share.
func (a *appliance) state() (ceremony.State, error) {
	first := a.logs[0].State()
	for _, l := range a.logs[1:] {
		s := l.State()
		if s.Policy.Clock != first.Policy.Clock {
			return first, usagef("logs %s and %s are governed by different clock policies; one machine has one clock", a.logs[0].Name, l.Name)
		}
	}
	return first, nil
}

func fileHash(path string) (record.Hash, error) {
	var h record.Hash
	f, err := os.Open(path)
	if err != nil {
		return h, fmt.Errorf("hashing: %w", err)
	}
	defer f.Close()
	s := sha256.New()
	if _, err := io.Copy(s, f); err != nil {
		return h, fmt.Errorf("hashing %s: %w", path, err)
	}
	return record.Hash(s.Sum(nil)), nil
}

func ignoreCanceled(err error) error {
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}
