package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"bulla/api/server"
	"bulla/attest"
	"bulla/ceremony"
	"bulla/clock"
	"bulla/clock/ntp"
	"bulla/hsm"
	"bulla/ledger"
	"bulla/record"
	"bulla/tpm"
)

// sealerFile is the sealer's file in the state directory.
const sealerFile = "sealer.json"

func serveCommand() *cobra.Command {
	var config string
	var verbose bool
	c := &cobra.Command{
		Use:     "serve --config FILE",
		Short:   "Run the appliance",
		Example: "  bullad serve --config /etc/bulla/bullad.toml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadConfig(config)
			if err != nil {
				return err
			}
			return serve(cmd.Context(), config, cfg, newLog(verbose), func() {})
		},
	}
	c.Flags().StringVar(&config, "config", "/etc/bulla/bullad.toml", "configuration file")
	c.Flags().BoolVarP(&verbose, "verbose", "v", false, "log more")
	return c
}

func newLog(verbose bool) *slog.Logger {
	level := slog.LevelInfo
	if verbose {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
}

// serve opens the appliance and runs it until ctx ends; ready is called when it takes events.
func serve(ctx context.Context, path string, cfg *Config, log *slog.Logger, ready func()) error {
	a, err := openAppliance(ctx, path, cfg, log)
	if err != nil {
		return err
	}
	return errors.Join(a.serve(ctx, ready), a.Close())
}

// openMonitor makes the clock's monitor, which continues where the logs left off.
func (a *appliance) openMonitor() error {
	state, err := a.state()
	if err != nil {
		return err
	}
	cfg := ntp.Config{Policy: state.Policy.Clock, Record: a.recordClock}
	for i, s := range a.cfg.Clock.Sources {
		source := ntp.Source{Name: s.Name, Address: s.Address}
		if s.KeyFile != "" {
			line, err := hsm.ReadPIN("file:" + s.KeyFile)
			if err != nil {
				return usagef("clock.source[%d].key_file: %w", i, err)
			}
			source.Key, err = ntp.ParseKey(string(line))
			clear(line)
			if err != nil {
				return usagef("clock.source[%d].key_file: %s: %w", i, s.KeyFile, err)
			}
		}
		cfg.Sources = append(cfg.Sources, source)
	}
	for _, l := range a.logs {
		if err := learn(&cfg.Resume, l.Ledger); err != nil {
			return err
		}
	}
	if a.monitor, err = ntp.New(cfg); err != nil {
		return usagef("clock: %w", err)
	}
	a.clock.monitor.Store(a.monitor)
	return nil
}

// learn shows the end of a log to the clock.
func learn(r *clock.Resume, l *ledger.Ledger) error {
	for i := l.Size(); i > 0 && l.Size()-i < clock.LearnBack; i-- {
		b, err := l.Entry(i - 1)
		if err != nil {
			return err
		}
		e, err := record.ParseEntry(b)
		if err != nil {
			return fmt.Errorf("entry %d: %w", i-1, err)
		}
		var evidence *clock.Evidence
		if e.Kind == record.KindClock {
			evidence = new(clock.Evidence)
			if err := record.UnmarshalCanonical(e.Body, evidence); err != nil {
				return fmt.Errorf("entry %d: %w", i-1, err)
			}
		}
		if r.Learn(e.Stamp, evidence) {
			return nil
		}
	}
	return nil
}

// recordClock makes a round or a transition durable in every log.
func (a *appliance) recordClock(ctx context.Context, e clock.Evidence) error {
	body, err := record.MarshalCanonical(&e)
	if err != nil {
		return fmt.Errorf("recording the clock: %w", err)
	}
	return a.recordAll(ctx, record.KindClock, body)
}

// openSealer attaches to the enrolled TPM, if the logs have one.
func (a *appliance) openSealer(ctx context.Context) error {
	state, err := a.state()
	if err != nil {
		return err
	}
	if state.Policy.TPM == nil {
		return nil
	}
	if a.devices.tpm == nil {
		return usagef("the logs are governed to be sealed by a TPM: name it in [tpm] device")
	}
	cfg := ledger.SealerConfig{
		Path: filepath.Join(a.cfg.State, sealerFile), Software: attest.Software{Config: a.config, Exe: a.exe},
		Policy: a.sealPolicy,
	}
	switch m, err := a.devices.tpm.Attach(ctx, state.Policy.TPM); {
	case errors.Is(err, tpm.ErrOtherMachine) && len(state.Policy.Officers) > 0: // they may enrol another
		cfg.Foreign = err
	case err != nil:
		return err
	default:
		a.machine.Store(m)
		cfg.TPM = m
	}
	if a.boot, err = readBoot(a.cfg.TPM, a.log); err != nil {
		return err
	}
	cfg.Boot, cfg.Started = a.boot.pcrs(state.Policy.TPM.PCR), a.boot.started
	for _, l := range a.logs {
		cfg.Logs = append(cfg.Logs, l.Ledger)
	}
	a.sealer, err = ledger.OpenSealer(cfg)
	return err
}

// sealPolicy is the first log's, with the PCRs that any log wants quoted.
func (a *appliance) sealPolicy() ceremony.SealPolicy {
	p := a.logs[0].State().Policy.Seal
	for _, l := range a.logs[1:] {
		p.PCRs = slices.Concat(p.PCRs, l.State().Policy.Seal.PCRs)
	}
	if len(a.logs) > 1 {
		slices.Sort(p.PCRs)
		p.PCRs = slices.Compact(p.PCRs)
	}
	return p
}

// activate has the enrolled TPM open an auditor's credential.
func (a *appliance) activate(ctx context.Context, e *attest.Enrolment, c attest.Credential) ([]byte, error) {
	m := a.machine.Load()
	if m == nil {
		return nil, fmt.Errorf("the TPM is not the enrolled one")
	}
	return m.ActivateCredential(ctx, e, c)
}

// serverConfig describes the appliance to its sockets.
func (a *appliance) serverConfig(ready func()) server.Config {
	c := server.Config{
		Directory: a.cfg.Sockets.Directory, GID: a.cfg.Sockets.GID, Log: a.log, Ready: ready, Now: a.clock.Now,
		Status: a.machineStatus, Gauges: a.gauges, Cosigned: a.witnesses.cosigned, TSA: a.tsa,
	}
	for _, l := range a.logs {
		c.Logs = append(c.Logs, server.Log{Name: l.Name, Ledger: l.Ledger, Executor: &executor{a, l.LogConfig}})
	}
	if a.sealer != nil {
		c.Seal, c.Activate = a.sealer.Seal, a.activate
	}
	return c
}
