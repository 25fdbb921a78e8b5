package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"bulla/api"
	"bulla/attest"
	"bulla/record"
)

func (t *tool) sealCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "seal",
		Short:   "Have the TPM attest the logs' heads; show its seals",
		Example: "  bulla seal now\n  bulla seal list --plot -",
		Args:    cobra.ArbitraryArgs,
		RunE:    help,
	}
	now := &cobra.Command{
		Use:     "now",
		Short:   "Make a seal now",
		Example: "  bulla seal now",
		Args:    args(cobra.NoArgs),
		RunE:    func(cmd *cobra.Command, _ []string) error { return t.sealNow(cmd.Context()) },
	}
	var plot string
	var last time.Duration
	list := &cobra.Command{
		Use:   "list [DIR]",
		Short: "List the seals in a log, or draw them",
		Long: `list prints the seals of a running appliance's log, or of DIR, an export.

--plot draws them over time, as an SVG file, or with "-" as lines in the terminal: the heads that they cover, the TPM's counter, the boots of
the machine, and gaps: times in which there was no seal for longer than the log's policy lets pass even when nothing happens. Whether the
seals are true is what bulla verify finds out.`,
		Example: "  bulla seal list\n  bulla seal list --plot seals.svg --last 168h\n  bulla seal list /evidence/2026-11 --plot -",
		Args:    args(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, given []string) error {
			if last < 0 {
				return usagef("--last must not be below 0")
			}
			if err := freePlot(plot); err != nil {
				return err
			}
			h, err := t.sealHistory(cmd.Context(), given, last)
			if err != nil {
				return err
			}
			if plot == "" {
				return t.printSeals(h)
			}
			return t.plotSeals(h, plot)
		},
	}
	list.Flags().StringVar(&plot, "plot", "", "draw the seals over time: an SVG file to write, or - for the terminal")
	list.Flags().DurationVar(&last, "last", 0, "how far back, from the last seal (default: all)")
	show := &cobra.Command{
		Use:     "show INDEX",
		Short:   "Print the statement of the seal in an entry",
		Example: "  bulla seal show 41 | jq .logs",
		Args:    args(cobra.ExactArgs(1)),
		RunE: t.ofEntry(func(ctx context.Context, a *appliance, index uint64) error {
			s, err := a.seal(ctx, index)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(t.out, "%s\n", s.Statement)
			return err
		}),
	}
	cmd.AddCommand(now, list, show)
	return cmd
}

func (t *tool) sealNow(ctx context.Context) error {
	a, err := t.reach(ctx)
	if err != nil {
		return err
	}
	b, err := a.do(ctx, http.MethodPost, "/v1/seals", "", http.NoBody)
	if err != nil {
		return err
	}
	var s api.Sealed
	if err := json.Unmarshal(b, &s); err != nil {
		return coded(exitUnavailable, fmt.Errorf("the appliance's answer: %w", err))
	}
	if t.json {
		return t.printJSON(s)
	}
	for _, name := range sortedKeys(s.Entries) {
		if _, err := fmt.Fprintf(t.out, "seal %d is entry %d of log %s\n", s.Number, s.Entries[name], name); err != nil {
			return err
		}
	}
	return nil
}

// printSeals lists seals.
func (t *tool) printSeals(h *sealHistory) error {
	if t.json {
		return t.printJSON(h.seals)
	}
	w := tabwriter.NewWriter(t.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SEAL\tENTRY\tTIME\tREASON\tBOOT\tCOUNTER\tCOVERS")
	for _, l := range h.seals {
		fmt.Fprintf(w, "%d\t%d\t%s\t%s\t%d\t%d\t%d entries\n", l.Number, l.Index, l.Time.Format("2006-01-02T15:04:05Z"), l.Reason, l.Boot, l.Counter, l.Size)
	}
	return w.Flush()
}

// seal fetches and parses the seal in an entry.
func (a *appliance) seal(ctx context.Context, index uint64) (*attest.Seal, error) {
	b, err := a.entry(ctx, index)
	if err != nil {
		return nil, err
	}
	return parseSeal(index, b)
}

func parseSeal(index uint64, entry []byte) (*attest.Seal, error) {
	e, err := record.ParseEntry(entry)
	if err != nil {
		return nil, fmt.Errorf("entry %d: %w", index, err)
	}
	if e.Kind != record.KindSeal {
		return nil, usagef("entry %d is of kind %s, not a seal; see `bulla seal list`", index, e.Kind)
	}
	s, err := attest.ParseSeal(e.Body)
	if err != nil {
		return nil, fmt.Errorf("entry %d: %w", index, err)
	}
	return s, nil
}
