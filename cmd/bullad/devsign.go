package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"
	"golang.org/x/mod/sumdb/note"

	"bulla/ceremony"
	"bulla/ledger"
	"bulla/record"
	softhsmtest "bulla/softhsm-test"
	"bulla/store"
)

// devSignCommand is the thief of a dev appliance's HSM: it signs any head.
func devSignCommand() *cobra.Command {
	var dir, log string
	c := &cobra.Command{
		Use:   "sign --dir DIR < TEXT > NOTE",
		Short: "Sign any head with the log's keys, as a thief of the HSM would",
		Long: `Sign the text of a checkpoint, whatever it says, with all keys that sign a dev appliance's log, as somebody would who stole its token and
PIN. The appliance must not be running. bulla drill uses this.`,
		Example: "  bullad dev sign --dir stolen < forged > checkpoint",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return devSign(cmd.Context(), dir, log, cmd.InOrStdin(), cmd.OutOrStdout())
		},
	}
	c.Flags().StringVar(&dir, "dir", "", "directory of the appliance")
	c.Flags().StringVar(&log, "log", devName, "name of the log")
	must(c.MarkFlagRequired("dir"))
	return c
}

func devSign(ctx context.Context, dir, log string, in io.Reader, out io.Writer) (err error) {
	text, err := io.ReadAll(io.LimitReader(in, record.MaxCheckpoint))
	if err != nil {
		return fmt.Errorf("reading the head: %w", err)
	}
	if _, err := record.ParseCheckpoint(string(text)); err != nil {
		return usagef("standard input: %w", err)
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return usage(err)
	}
	t := &throwaway{dir: dir}
	cfg, err := loadConfig(t.path("bullad.toml"))
	if err != nil {
		return err
	}
	if cfg.Logs, err = t.oldLogs(cfg); err != nil {
		return err
	}
	if t.hsm, err = softhsmtest.OpenSoftHSM(t.path("hsm")); err != nil {
		return err
	}
	i := slices.IndexFunc(cfg.Logs, func(l LogConfig) bool { return l.Name == log })
	if i < 0 {
		return usagef("--log: there is no log %q", log)
	}
	signed, err := signStolen(ctx, cfg, cfg.Logs[i], string(text))
	if err != nil {
		return err
	}
	_, err = out.Write(signed)
	return err
}

// signStolen signs a text with the keys that sign a log now: those that it is opened with.
func signStolen(ctx context.Context, cfg *Config, l LogConfig, text string) (signed []byte, err error) {
	d, err := openDevices(ctx, &Config{})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	a := &appliance{cfg: cfg, devices: d}
	var signers []note.Signer
	s, err := store.Open(l.File)
	if err != nil {
		return nil, err
	}
	opened, err := ledger.Open(ledger.Config{Origin: l.Origin, Clock: &lateClock{}, Signer: func(k ceremony.Key) (ledger.Signer, error) {
		key, err := a.signer(ctx, l, k)
		if err != nil {
			return key, err
		}
		signer, err := record.NewSigner(l.Origin, key.Signer)
		signers = append(signers, signer)
		return key, err
	}}, s)
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	defer func() { err = errors.Join(err, opened.Close()) }()
	return note.Sign(&note.Note{Text: text}, signers...)
}
