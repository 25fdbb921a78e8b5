package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"bulla/api"
	"bulla/ceremony"
)

func (o *officer) enactCommand() *cobra.Command {
	var dry bool
	cmd := &cobra.Command{
		Use:   "enact NUMBER",
		Short: "Have the appliance carry out a proposal that enough officers approved",
		Long: `enact has the appliance do what a proposal asks for, to the devices too, and record it in the log. --dry-run says what would be done, and
whether it would be refused for want of approvals or time. It changes nothing; that it was asked for is in the log, as an entry of kind
access.

Exit code 69: it was refused, or would be, or it was tried and failed. What failed changed nothing, and closes the proposal.`,
		Example: "  bulla ceremony enact 7 --dry-run\n  bulla ceremony enact 7",
		Args:    args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, given []string) error {
			number, ok := proposalNumber(given[0])
			if given[0] == genesisNumber {
				return usagef("number 0 is the genesis: it is in force when enough officers have approved it, with `bulla ceremony approve --genesis`")
			}
			if !ok {
				return usagef("%q is not the number of a proposal; see `bulla ceremony list`", given[0])
			}
			return o.enact(cmd.Context(), number, dry)
		},
	}
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only say what would be done, and whether it would be refused; only that this was asked is recorded")
	return cmd
}

// enact names the document that is meant by its hash, as the log itself has it.
func (o *officer) enact(ctx context.Context, number uint64, dry bool) error {
	g, a, err := o.govern(ctx)
	if err != nil {
		return err
	}
	defer g.done()
	s, err := g.subjectOf(fmt.Sprint(number))
	if err != nil {
		return err
	}
	var done api.Enacted
	if err := a.post(ctx, fmt.Sprintf("/v1/proposals/%d/enact", number), &api.Enact{Document: s.hash(), DryRun: dry}, &done); err != nil {
		return err
	}
	if o.json {
		err = o.printJSON(done)
	} else {
		err = o.enacted(s, &done)
	}
	switch {
	case err != nil:
	case done.Failed != "":
		err = coded(exitUnavailable, fmt.Errorf("proposal %d failed, and nothing was changed: %s", number, ceremony.Printable(done.Failed)))
	case done.Missing != "":
		err = coded(exitUnavailable, fmt.Errorf("proposal %d would be refused: %s", number, ceremony.Printable(done.Missing)))
	}
	return err
}

func (o *officer) enacted(s *subject, done *api.Enacted) error {
	for i, step := range done.Steps {
		fmt.Fprintf(o.out, "%d. %s\n", i+1, ceremony.Printable(step.Did))
		if step.Answer != "" {
			fmt.Fprintf(o.out, "   %s\n", ceremony.Printable(step.Answer))
		}
	}
	if len(done.Outcome) > 0 {
		fmt.Fprintf(o.out, "outcome\n%s", indent(legible(done.Outcome)))
	}
	var err error
	switch {
	case done.Failed != "":
	case done.DryRun:
		_, err = fmt.Fprintf(o.out, "rehearsed only: proposal %d, %s, was not carried out\n", s.number, s.proposal.Action)
	case done.Index == nil:
		_, err = fmt.Fprintf(o.out, "proposal %d, %s, is enacted\n", s.number, s.proposal.Action)
	default:
		_, err = fmt.Fprintf(o.out, "proposal %d, %s, is enacted by entry %d; its minutes: bulla ceremony minutes %[1]d\n", s.number, s.proposal.Action, *done.Index)
	}
	return err
}

func (o *officer) listCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List the ceremonies of a log",
		Long:    "list shows the genesis and every proposal: who proposed, who approved, and what became of it; whether an open one has expired, by this machine's clock. Recoveries that wait outside a log that was rolled back are listed last.",
		Example: "  bulla ceremony list\n  bulla ceremony list --export /media/evidence --json | jq '.[] | select(.enacted)'",
		Args:    args(cobra.NoArgs),
		RunE:    func(cmd *cobra.Command, _ []string) error { return o.ceremonies(cmd.Context()) },
	}
	return o.reading(cmd)
}

// listedCeremony is a line of list with --json.
type listedCeremony struct {
	ceremony.Ceremony
	Entry   *uint64 `json:"entry,omitempty"`  // of the proposal; absent while it waits outside the log
	Waiting bool    `json:"waiting,omitzero"` // outside the log
}

func (o *officer) ceremonies(ctx context.Context) error {
	g, _, err := o.govern(ctx)
	if err != nil {
		return err
	}
	defer g.done()
	lines := []listedCeremony{}
	for _, c := range g.chronicle.Ceremonies() {
		lines = append(lines, listedCeremony{Ceremony: c, Entry: &c.Entry})
	}
	for _, p := range g.waiting {
		lines = append(lines, listedCeremony{Waiting: true, Ceremony: ceremony.Ceremony{Action: p.Proposal.Action, Approved: names(p.Approvals), Expires: p.Proposal.Expires,
			Needed: p.Needed, Number: p.Proposal.Number, Proposer: p.Proposal.Proposer, Rejected: names(p.Rejections)}})
	}
	for i := range lines {
		lines[i].Ended = cmp.Or(lines[i].Ended, g.over(lines[i].Number))
	}
	if g.remark != "" {
		fmt.Fprintln(o.err, "bulla:", g.remark)
	}
	if o.json {
		return o.printJSON(lines)
	}
	w := tabwriter.NewWriter(o.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NUMBER\tACTION\tPROPOSER\tAPPROVED BY\tNEEDED\tRESULT")
	for i := range lines {
		l := &lines[i]
		proposer := l.Proposer
		if proposer == "" {
			proposer = "-"
		}
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%d\t%s\n", l.Number, l.Action, proposer, listed(l.Approved), l.Needed, l.result())
	}
	return w.Flush()
}

// result is how a ceremony stands.
func (l *listedCeremony) result() string {
	switch {
	case l.Ended != "":
		return l.Ended
	case l.Waiting:
		return "waits outside the log until " + l.Expires
	case l.Number == 0:
		return "open"
	}
	out := "open until " + l.Expires
	if l.Rejected != nil {
		out += ", rejected by " + listed(l.Rejected)
	}
	return out
}

func (o *officer) minutesCommand() *cobra.Command {
	var html bool
	var out string
	cmd := &cobra.Command{
		Use:   "minutes NUMBER",
		Short: "Write the minutes of a ceremony, to read, print and sign",
		Long: `minutes writes what a ceremony was, from the log alone: Markdown, or with --html a page to print. Whoever has the log or an export writes
the same minutes, byte for byte. Number 0 is the genesis. What nobody enacted has expired when the log's newest entry is later than that.`,
		Example: "  bulla ceremony minutes 7\n  bulla ceremony minutes 0 --html --out genesis.html --export /media/evidence",
		Args:    args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, given []string) error {
			number, ok := proposalNumber(given[0])
			if !ok && given[0] != genesisNumber {
				return usagef("%q is not the number of a ceremony; see `bulla ceremony list`", given[0])
			}
			return o.minutes(cmd.Context(), number, html, out)
		},
	}
	cmd.Flags().BoolVar(&html, "html", false, "write a page to print instead of Markdown")
	cmd.Flags().StringVar(&out, "out", "", "file to write; it must not exist (default: standard output)")
	return o.reading(cmd)
}

func (o *officer) minutes(ctx context.Context, number uint64, html bool, out string) error {
	g, _, err := o.govern(ctx)
	if err != nil {
		return err
	}
	defer g.done()
	if _, err := g.open(number); err == nil {
		if err := g.toNewest(); err != nil {
			return err
		}
	}
	m, err := g.chronicle.Minutes(number)
	if err != nil {
		return usagef("%w; see `bulla ceremony list`", err)
	}
	text := m.Markdown()
	if html {
		text = m.HTML()
	}
	switch {
	case out != "":
		err = writeNew(out, text)
		if err == nil && o.json {
			err = o.printJSON(map[string]any{"number": number, "out": out})
		}
	case o.json:
		b, e := json.Marshal(map[string]any{"number": number, "text": string(text)})
		if err = e; err == nil {
			_, err = fmt.Fprintf(o.out, "%s\n", b)
		}
	default:
		_, err = o.out.Write(text)
	}
	return err
}
