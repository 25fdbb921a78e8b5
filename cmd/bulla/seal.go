package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"bulla/api"
	"bulla/attest"
	"bulla/record"
)

func (t *tool) sealCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "seal",
		Short: "Have the TPM attest the logs' heads; show its seals",
		Args:  cobra.ArbitraryArgs,
		RunE:  help,
	}
	now := &cobra.Command{
		Use:     "now",
		Short:   "Make a seal now",
		Example: "  bulla seal now",
		Args:    args(cobra.NoArgs),
		RunE:    func(cmd *cobra.Command, _ []string) error { return t.sealNow(cmd.Context()) },
	}
	list := &cobra.Command{
		Use:     "list",
		Short:   "List the seals in a log",
		Example: "  bulla seal list",
		Args:    args(cobra.NoArgs),
		RunE:    func(cmd *cobra.Command, _ []string) error { return t.sealList(cmd.Context()) },
	}
	show := &cobra.Command{
		Use:     "show INDEX",
		Short:   "Print the statement of the seal in an entry",
		Example: "  bulla seal show 41 | jq .logs",
		Args:    args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, given []string) error {
			index, err := parseIndex(given[0])
			if err != nil {
				return err
			}
			a, err := t.connect(cmd.Context())
			if err != nil {
				return err
			}
			s, err := a.seal(cmd.Context(), index)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(t.out, "%s\n", s.Statement)
			return err
		},
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

// sealLine is what is listed of a seal.
type sealLine struct {
	Index   uint64 `json:"index"`
	Number  uint64 `json:"number"`
	Reason  string `json:"reason"`
	Counter uint64 `json:"counter"`
	Size    uint64 `json:"size"` // of the log that it covers
}

func (t *tool) sealList(ctx context.Context) error {
	a, err := t.connect(ctx)
	if err != nil {
		return err
	}
	lines := []sealLine{}
	err = a.eachSeal(ctx, func(index uint64) error {
		s, err := a.seal(ctx, index)
		if err != nil {
			return err
		}
		l, err := describeSeal(index, s, a.log.Origin)
		lines = append(lines, l)
		return err
	})
	if err != nil {
		return err
	}
	if t.json {
		return t.printJSON(lines)
	}
	w := tabwriter.NewWriter(t.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SEAL\tENTRY\tREASON\tCOUNTER\tCOVERS")
	for _, l := range lines {
		fmt.Fprintf(w, "%d\t%d\t%s\t%d\t%d entries\n", l.Number, l.Index, l.Reason, l.Counter, l.Size)
	}
	return w.Flush()
}

func describeSeal(index uint64, s *attest.Seal, origin string) (sealLine, error) {
	l := sealLine{Index: index}
	st, err := attest.ParseStatement(s.Statement)
	if err != nil {
		return l, coded(exitUnavailable, fmt.Errorf("the seal in entry %d: %w", index, err))
	}
	certified, err := attest.ParseCertify(s.Counter.Attest)
	if err != nil {
		return l, coded(exitUnavailable, fmt.Errorf("the seal in entry %d: %w", index, err))
	}
	l.Number, l.Reason, l.Counter = st.Number, printable(st.Reason, 40), certified.Counter
	for _, h := range st.Logs {
		if h.Log == origin {
			l.Size = h.Size
		}
	}
	return l, nil
}

// eachSeal calls f with the index of every seal of the log.
func (a *appliance) eachSeal(ctx context.Context, f func(index uint64) error) error {
	const page = 1000
	for from := uint64(0); ; {
		var s api.Seals
		if err := a.getJSON(ctx, fmt.Sprintf("%s/v1/seals?from=%d&limit=%d", a.prefix, from, page), &s); err != nil {
			return err
		}
		for _, i := range s.Indices {
			if i < from {
				return coded(exitUnavailable, fmt.Errorf("the appliance lists its seals out of order"))
			}
			if err := f(i); err != nil {
				return err
			}
			from = i + 1
		}
		if len(s.Indices) < page {
			return nil
		}
	}
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
