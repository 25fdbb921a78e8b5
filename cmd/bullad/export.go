package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"

	"github.com/spf13/cobra"

	"bulla/record"
	"bulla/store"
	"bulla/verify"
)

func exportCommand() *cobra.Command {
	var config, log, file, out, state string
	c := &cobra.Command{
		Use:   "export (--config FILE [--log NAME] | --file LOG) --out DIR",
		Short: "Export a log at rest, after an incident",
		Long: `Export a log from its file, without the daemon and without its devices: what is in the file, as it is, whatever its state. bullad must not
be running. Nothing is checked and nothing is repaired: bulla verify judges the result.`,
		Example: "  bullad export --config /etc/bulla/bullad.toml --log audit --out evidence\n  bullad export --file audit.db --out evidence",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if file == "" {
				cfg, err := loadConfig(config)
				if err != nil {
					return err
				}
				for _, l := range cfg.Logs {
					if l.Name == log || log == "" && len(cfg.Logs) == 1 {
						file = l.File
					}
				}
				if file == "" {
					return usagef("--log: name one of the configured logs")
				}
				state = cfg.State
			}
			return export(cmd.Context(), file, state, out, cmd.OutOrStdout())
		},
	}
	c.Flags().StringVar(&config, "config", "/etc/bulla/bullad.toml", "configuration file")
	c.Flags().StringVar(&log, "log", "", "name of the log; needed where there are several")
	c.Flags().StringVar(&file, "file", "", "the log's file, instead of a configuration")
	c.Flags().StringVar(&out, "out", "", "directory to make")
	must(c.MarkFlagRequired("out"))
	return c
}

// export copies a log from its file, and what witnesses cosigned of it from the daemon's state directory; state may be empty.
func export(ctx context.Context, file, state, out string, w io.Writer) (err error) {
	s, err := store.OpenAtRest(file)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	src := atRest{log: s}
	if state != "" {
		if src.cosigned, err = cosignedAtRest(s, state); err != nil {
			return err
		}
	}
	dir, err := verify.CreateDir(out)
	if errors.Is(err, fs.ErrExist) {
		return usagef("%s exists: an export goes into a new directory", out)
	}
	if err != nil {
		return err
	}
	done, err := verify.Export(ctx, src, dir.Put, nil)
	if err == nil {
		err = dir.Sync()
	}
	if err != nil {
		return fmt.Errorf("%w (what could be read is in %s)", err, out)
	}
	_, err = fmt.Fprintf(w, "%d entries of %s and %d seals are in %s\ncheck it with: bulla verify %s --policy FILE\n", done.Head.Size, done.Head.Origin, done.Seals, out, out)
	return err
}

func cosignedAtRest(s *store.Log, state string) ([][]byte, error) {
	origin, err := s.Origin()
	if err != nil {
		return nil, err
	}
	notes, err := readWitnessNotes(filepath.Join(state, witnessFile))
	return cosignedNotes(notes, origin), err
}

// atRest serves a log file's tiles to an export.
type atRest struct {
	log      *store.Log
	cosigned [][]byte // checkpoints that witnesses cosigned
}

// Open opens the checkpoint, a tile or a cosigned checkpoint.
func (a atRest) Open(_ context.Context, name string) (io.ReadCloser, error) {
	var b []byte
	var err error
	if name == "checkpoint" {
		b, err = a.log.Head()
	} else if n := a.cosignedAt(name); n >= 0 {
		b = a.cosigned[n]
	} else {
		t, ok := record.ParseTilePath(name)
		if !ok {
			return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
		}
		b, err = a.log.Tile(t)
	}
	if errors.Is(err, store.ErrNotFound) {
		err = errors.Join(err, fs.ErrNotExist)
	}
	if err != nil {
		return nil, err
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

// cosignedAt is which cosigned checkpoint a name is of; -1 if of none.
func (a atRest) cosignedAt(name string) int {
	for n := range a.cosigned {
		if name == verify.WitnessFile(n) {
			return n
		}
	}
	return -1
}

// Walk cannot tell what there is beyond the head.
func (atRest) Walk(context.Context, func(string) error) error { return errors.ErrUnsupported }
