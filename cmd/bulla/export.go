package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"bulla/verify"
)

// fetchers is how many connections to http.sock are kept.
const fetchers = 16

func (t *tool) exportCommand() *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use:   "export --out DIR",
		Short: "Copy a log's evidence out of the appliance",
		Long: `export copies everything that the log's current head covers into a new directory, in C2SP tlog-tiles layout, with copies of the
seals and of the TPM's enrolment for standard tools, and a README that says how to check it all. When it returns, the copy is on
disk and has been read back: its entries lead to the root of its head. Whether to trust that head is for bulla verify --policy.

An export kept elsewhere anchors everything in it: history that was exported cannot be rewritten unnoticed.`,
		Example: "  bulla export --out /media/evidence-2026-11-23\n  tar cf evidence.tar -C /media evidence-2026-11-23",
		Args:    args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if out == "" {
				return usagef("--out: name a directory that does not exist yet")
			}
			if strings.HasSuffix(out, ".tar") {
				return usagef("--out: an export is a directory: leave .tar out of its name, and make a tar file of it afterwards")
			}
			a, err := t.connect(cmd.Context())
			if err != nil {
				return err
			}
			return t.export(cmd.Context(), a, out)
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "directory to make")
	return cmd
}

// Open implements verify.Source over http.sock.
func (a *appliance) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	b, err := a.get(ctx, a.prefix+"/"+name)
	if missing := (*notThere)(nil); errors.As(err, &missing) {
		return nil, &fs.PathError{Op: "get", Path: name, Err: fs.ErrNotExist}
	}
	if err != nil {
		return nil, err
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

// Walk implements verify.Source: what an appliance serves cannot be listed.
func (a *appliance) Walk(context.Context, func(string) error) error { return errors.ErrUnsupported }

// exported is what export prints with --json.
type exported struct {
	Dir        string        `json:"dir"`
	Log        string        `json:"log"`
	Size       uint64        `json:"size"`
	Root       string        `json:"root"`
	Seals      int           `json:"seals"`
	Unanchored *verify.Range `json:"unanchored,omitempty"`
	Skipped    []string      `json:"skipped,omitempty"`
}

func (t *tool) export(ctx context.Context, a *appliance, out string) error {
	dir, err := verify.CreateDir(out)
	if errors.Is(err, fs.ErrExist) {
		return usagef("%s exists: an export goes into a new directory", out)
	}
	if err != nil {
		return err
	}
	p := t.progress("exporting")
	done, err := verify.Export(ctx, a, dir.Put, p.show)
	p.clear()
	if err == nil {
		err = dir.Sync()
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(out)) // this run made it, and without a checkpoint it is nothing
	}
	rep, err := t.reread(ctx, out)
	if err != nil {
		return err
	}
	res := exported{Dir: out, Log: done.Head.Origin, Size: done.Head.Size, Root: done.Head.Root.String(), Seals: done.Seals, Unanchored: rep.Unanchored, Skipped: done.Skipped}
	if t.json {
		return t.printJSON(res)
	}
	fmt.Fprintf(t.out, "%d entries of %s and %d seals are in %s\nroot %s\n", res.Size, res.Log, res.Seals, out, res.Root)
	for _, s := range res.Skipped {
		fmt.Fprintf(t.out, "no copy for standard tools of %s\n", s)
	}
	_, err = fmt.Fprintf(t.out, "check it with: bulla verify %s --policy FILE\n", out)
	return err
}

// reread checks that what was written hangs together: from the disk, without trusting anybody.
func (t *tool) reread(ctx context.Context, out string) (*verify.Report, error) {
	src, err := verify.OpenDir(out)
	if err != nil {
		return nil, err
	}
	p := t.progress("reading back")
	rep, err := verify.Run(ctx, src, nil, verify.Options{Progress: p.show})
	p.clear()
	if err = errors.Join(err, src.Close()); err != nil {
		return nil, fmt.Errorf("reading back %s: %w", out, err)
	}
	if rep.Verdict == verify.OutcomeTampered {
		if err := rep.WriteText(t.err); err != nil {
			return nil, err
		}
		return nil, coded(exitTampered, fmt.Errorf("what the appliance gave out contradicts itself; %s is kept as evidence", out))
	}
	for _, c := range rep.Claims {
		switch c.Name {
		case verify.ClaimBytes, verify.ClaimChain, verify.ClaimTree:
			if c.Status != verify.Verified {
				return nil, fmt.Errorf("reading back %s: %s: %s", out, c.Name, c.Why)
			}
		}
	}
	return rep, nil
}
