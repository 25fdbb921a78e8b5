package main

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"bulla/api"
	"bulla/record"
)

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// ofEntry makes a command of what is done with the entry whose index is the one argument.
func (t *tool) ofEntry(do func(ctx context.Context, a *appliance, index uint64) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, given []string) error {
		index, err := parseIndex(given[0])
		if err != nil {
			return err
		}
		a, err := t.connect(cmd.Context())
		if err != nil {
			return err
		}
		return do(cmd.Context(), a, index)
	}
}

func (t *tool) getCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "get INDEX",
		Short: "Print an entry",
		Long: `get prints an entry's exact bytes: what is hashed and signed. On a terminal, and with --json, a line end follows.
Its leaf hash is SHA-256 over a zero byte and these bytes.`,
		Example: "  bulla get 17 | jq .body\n  (printf '\\0'; bulla get 17) | sha256sum",
		Args:    args(cobra.ExactArgs(1)),
		RunE: t.ofEntry(func(ctx context.Context, a *appliance, index uint64) error {
			b, err := a.entry(ctx, index)
			if err != nil {
				return err
			}
			if t.json || terminal(t.out) {
				b = append(b, '\n')
			}
			_, err = t.out.Write(b)
			return err
		}),
	}
}

func parseIndex(s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 53)
	if err != nil {
		return 0, usagef("%q is not the index of an entry", s)
	}
	return n, nil
}

// entry fetches an entry's bytes.
func (a *appliance) entry(ctx context.Context, index uint64) ([]byte, error) {
	return a.get(ctx, fmt.Sprintf("%s/v1/entries/%d", a.prefix, index))
}

func (t *tool) listCommand() *cobra.Command {
	var from, limit uint64
	var kind string
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List entries",
		Long:    "list prints a line for each entry: index, time, kind, who, what. With --json it prints the entries themselves, one a line.",
		Example: "  bulla list --from 1000 --limit 20\n  bulla list --kind event --json | jq -r .body.type | sort | uniq -c",
		Args:    args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkKind(kind); err != nil {
				return err
			}
			a, err := t.connect(cmd.Context())
			if err != nil {
				return err
			}
			return t.list(cmd.Context(), a, from, limit, record.Kind(kind))
		},
	}
	cmd.Flags().Uint64Var(&from, "from", 0, "first index")
	cmd.Flags().Uint64Var(&limit, "limit", 100, "the most entries to print; 0: all")
	cmd.Flags().StringVar(&kind, "kind", "", "only entries of this kind: event, clock, seal, system, ...")
	return cmd
}

// checkKind refuses what no entry can be; "" is any.
func checkKind(kind string) error {
	if kind == "" {
		return nil
	}
	_, err := parseQuery(url.Values{"kind": {kind}})
	return err
}

func (t *tool) list(ctx context.Context, a *appliance, start, limit uint64, kind record.Kind) error {
	from, filter := start, ""
	if kind != "" && kind != record.KindEvent { // the appliance lists what is rare
		filter = "&kind=" + url.QueryEscape(string(kind))
	}
	printed := uint64(0)
	for limit == 0 || printed < limit {
		page := uint64(1000)
		if kind != record.KindEvent && limit > 0 {
			page = min(page, limit-printed)
		}
		var p api.Page
		if err := a.getJSON(ctx, fmt.Sprintf("%s/v1/entries?from=%d&limit=%d%s", a.prefix, from, page, filter), &p); err != nil {
			return err
		}
		for _, b := range p.Entries {
			e, err := record.ParseEntry(b)
			if err != nil {
				return coded(exitUnavailable, fmt.Errorf("the appliance's answer: %w", err))
			}
			if kind != "" && e.Kind != kind {
				continue
			}
			if limit > 0 && printed == limit {
				t.note("there are more than --limit %d: go on with --from %d", limit, e.Index)
				return nil
			}
			printed++
			if err := t.printEntry(e, b); err != nil {
				return err
			}
		}
		if p.Next == nil {
			if printed == 0 && !t.json {
				t.note("no entry%s among the %d of %s", sought(kind, start), a.log.Size, printable(a.log.Origin, 80))
			}
			return nil
		}
		if from = *p.Next; limit > 0 && printed == limit {
			t.note("there may be more than --limit %d: go on with --from %d", limit, from)
		}
	}
	return nil
}

// sought says which entries a list is of.
func sought(kind record.Kind, from uint64) (s string) {
	if kind != "" {
		s = " of kind " + string(kind)
	}
	if from > 0 {
		s += fmt.Sprintf(" from %d on", from)
	}
	return s
}

func (t *tool) printEntry(e *record.Entry, b []byte) error {
	if t.json {
		_, err := fmt.Fprintf(t.out, "%s\n", b)
		return err
	}
	who := "-"
	if e.Producer != nil {
		who = fmt.Sprintf("uid=%d", e.Producer.UID)
	}
	_, err := fmt.Fprintf(t.out, "%8d  %s  %-9s  %-9s  %s\n", e.Index, record.AppendTime(nil, e.Stamp.Sys), e.Kind, who, summary(e))
	return err
}

// summary is what an entry's body is about, in a few words. Canonical JSON escapes control characters; what else could disturb a
// terminal is escaped here.
func summary(e *record.Entry) string {
	s := string(e.Body)
	if e.Kind == record.KindEvent {
		if ev, err := record.ParseEvent(e.Body); err == nil {
			s = ev.Type
			if ev.Actor != nil {
				s += " actor=" + ev.Actor.ID + ev.Actor.Name
			}
			if ev.Outcome != "" {
				s += " " + ev.Outcome
			}
			if len(ev.Data) > 0 {
				s += " " + string(ev.Data)
			}
		}
	}
	return printable(s, 120)
}

// printable escapes what is not printable and cuts the text to n characters.
func printable(s string, n int) string {
	out := make([]rune, 0, n)
	for _, r := range s {
		if len(out) >= n {
			return string(out) + "..."
		}
		if !strconv.IsPrint(r) {
			out = append(out, []rune(fmt.Sprintf("\\u%04x", r))...)
			continue
		}
		out = append(out, r)
	}
	return string(out)
}

func (t *tool) proofCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "proof INDEX",
		Short: "Print an entry's receipt under the current checkpoint",
		Long: `proof prints a C2SP tlog-proof, or with --json the receipt with the entry itself. Either proves, without the appliance, that the
entry is in the log: bulla verify --receipt checks it, and so do other implementations.`,
		Example: "  bulla proof 17 > 17.tlog-proof\n  bulla proof 17 --out receipts",
		Args:    args(cobra.ExactArgs(1)),
		RunE: t.ofEntry(func(ctx context.Context, a *appliance, index uint64) error {
			return t.proof(ctx, a, index, dir)
		}),
	}
	cmd.Flags().StringVar(&dir, "out", "", "directory to write INDEX.json and INDEX.tlog-proof to, instead of printing")
	return cmd
}

func (t *tool) proof(ctx context.Context, a *appliance, index uint64, dir string) error {
	r, err := a.receipt(ctx, index)
	if err != nil {
		return err
	}
	canonical, err := r.MarshalJSON()
	if err != nil {
		return err
	}
	switch {
	case dir != "":
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		return writeReceipt(dir, r, canonical)
	case t.json:
		_, err = fmt.Fprintf(t.out, "%s\n", canonical)
	default:
		_, err = t.out.Write(r.TLogProof())
	}
	return err
}

// receipt fetches an entry's receipt and checks what can be checked without the log's key.
func (a *appliance) receipt(ctx context.Context, index uint64) (record.Receipt, error) {
	b, err := a.do(ctx, http.MethodGet, fmt.Sprintf("%s/v1/entries/%d/proof", a.prefix, index), "application/json", nil)
	if err != nil {
		return record.Receipt{}, err
	}
	var r record.Receipt
	if err := r.UnmarshalJSON(b); err != nil {
		return r, coded(exitUnavailable, fmt.Errorf("the appliance's receipt: %w", err))
	}
	if e, err := record.ParseEntry(r.Entry); err != nil || r.Index != index || checkReceipt(r, e.Body) != nil {
		return r, coded(exitTampered, fmt.Errorf("the appliance's receipt does not prove entry %d", index))
	}
	return r, nil
}
