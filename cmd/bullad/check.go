package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"bulla/clock"
	"bulla/clock/ntp"
	"bulla/hsm"
)

func checkCommand() *cobra.Command {
	var config string
	c := &cobra.Command{
		Use:   "check --config FILE",
		Short: "Try HSM, TPM, clock and disk before relying on them",
		Long: `Try the devices that the configuration names. In each token a throwaway key is made and everything is tried to get it out: a module that
lets a non-extractable key out is refused. Keys and logs that exist are not touched, and need not exist yet.`,
		Example: "  bullad check --config /etc/bulla/bullad.toml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadConfig(config)
			if err != nil {
				return err
			}
			return check(cmd.Context(), cfg, cmd.OutOrStdout())
		},
	}
	c.Flags().StringVar(&config, "config", "/etc/bulla/bullad.toml", "configuration file")
	return c
}

// commissioning runs tests and reports each on a line.
type commissioning struct {
	out    io.Writer
	failed []error
}

func (c *commissioning) report(what, result string, err error) {
	if err != nil {
		c.failed = append(c.failed, fmt.Errorf("%s: %w", what, err))
		fmt.Fprintf(c.out, "FAIL  %s: %v\n", what, err)
		return
	}
	fmt.Fprintf(c.out, "ok    %s: %s\n", what, result)
}

// check tries all devices, and fails if one does.
func check(ctx context.Context, cfg *Config, out io.Writer) (err error) {
	c := &commissioning{out: out}
	d, err := openDevices(ctx, cfg)
	if err != nil {
		c.report("tpm", "", err)
		d = newDevices()
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	c.tokens(ctx, d, cfg)
	c.tpm(ctx, d)
	c.tsa(ctx, d, cfg)
	c.time(ctx, cfg)
	c.disks(cfg)
	return errors.Join(c.failed...)
}

// tokens tries every token that a log's key, or that of time-stamps, is in.
func (c *commissioning) tokens(ctx context.Context, d *devices, cfg *Config) {
	var done []string
	all := slices.Clone(cfg.Logs)
	if cfg.TSA != nil {
		all = append(all, LogConfig{Name: cfg.TSA.Log, Key: cfg.TSA.Key})
	}
	for _, l := range all {
		for _, uri := range []string{l.Key, l.Interop} {
			if !strings.HasPrefix(uri, "pkcs11:") {
				continue
			}
			u, err := hsm.ParseURI(uri)
			if err != nil {
				c.report("log "+l.Name, "", usage(err))
				continue
			}
			name := u.TokenConfig().String()
			if slices.Contains(done, name) {
				continue
			}
			done = append(done, name)
			result, err := tryToken(ctx, d, u)
			c.report("hsm "+name, result, err)
		}
	}
}

// tryToken tries to get a throwaway key out of a token.
func tryToken(ctx context.Context, d *devices, u hsm.URI) (string, error) {
	t, err := d.token(ctx, u)
	if err != nil {
		return "", err
	}
	info, err := t.Info(ctx)
	if err != nil {
		return "", err
	}
	attempts, err := t.TryExtract(ctx, hsm.ECDSAP256)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s %s, serial %s, firmware %s; a throwaway key resisted %d attempts to get it out", info.Manufacturer, info.Model, info.Serial, info.Firmware, len(attempts)), nil
}

func (c *commissioning) tpm(ctx context.Context, d *devices) {
	if d.tpm == nil {
		return
	}
	info, err := d.tpm.Info(ctx)
	if err != nil {
		c.report("tpm", "", err)
		return
	}
	c.report("tpm", fmt.Sprintf("%s, firmware %s", info.Manufacturer, info.Firmware), nil)
}

// time measures until the first round has succeeded.
func (c *commissioning) time(ctx context.Context, cfg *Config) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	recorded := make(chan struct{}, 1)
	m := ntp.Config{Policy: clock.DefaultPolicy(), Record: func(context.Context, clock.Evidence) error {
		select {
		case recorded <- struct{}{}:
		default:
		}
		return nil
	}}
	for _, s := range cfg.Clock.Sources {
		m.Sources = append(m.Sources, ntp.Source{Name: s.Name, Address: s.Address})
	}
	monitor, err := ntp.New(m)
	if err != nil {
		c.report("clock", "", usage(err))
		return
	}
	done := make(chan error, 1)
	go func() { done <- monitor.Run(ctx) }()
	poll := time.NewTicker(50 * time.Millisecond)
	defer poll.Stop()
	for monitor.Now().State != clock.Synced && ctx.Err() == nil {
		select {
		case <-recorded:
		case <-poll.C:
		case <-ctx.Done():
		}
	}
	s := monitor.Status()
	cancel()
	if err := <-done; err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		c.report("clock", "", err)
		return
	}
	for _, x := range s.Sources {
		if x.Verdict != "" && x.Verdict != "ok" {
			fmt.Fprintf(c.out, "      %s: %s %s\n", x.Name, x.Verdict, x.Reason)
		}
	}
	if s.Stamp.State != clock.Synced {
		c.report("clock", "", fmt.Errorf("no round of measurement succeeded within 30 s; are the sources reachable?"))
		return
	}
	c.report("clock", fmt.Sprintf("the system's clock is %v from UTC, known to %v, from %d sources", time.Duration(s.Stamp.Offset), time.Duration(s.Stamp.Bound), len(s.Sources)), nil)
}

// disks measures 4 KiB synced writes in each directory that a log is to lie in.
func (c *commissioning) disks(cfg *Config) {
	var done []string
	for _, l := range cfg.Logs {
		dir := filepath.Dir(l.File)
		if slices.Contains(done, dir) {
			continue
		}
		done = append(done, dir)
		p50, err := syncTime(dir)
		c.report("disk "+dir, fmt.Sprintf("4 KiB written and synced in %v (median of %d)", p50, syncRounds), err)
	}
}

const syncRounds = 200

func syncTime(dir string) (_ time.Duration, err error) {
	f, err := os.CreateTemp(dir, ".check-*")
	if err != nil {
		return 0, usage(err)
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
	page := make([]byte, 4096)
	for range syncRounds { // blocks that exist, as in a log that has grown ahead
		if _, err := f.Write(page); err != nil {
			return 0, err
		}
	}
	if err := f.Sync(); err != nil {
		return 0, err
	}
	var took []time.Duration
	for i := range syncRounds {
		page[0] = byte(i)
		start := time.Now()
		if _, err := f.WriteAt(page, int64(i)*4096); err != nil {
			return 0, err
		}
		if err := syscall.Fdatasync(int(f.Fd())); err != nil {
			return 0, err
		}
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	return took[len(took)/2], nil
}
