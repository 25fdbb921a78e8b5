package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"bulla/api"
	"bulla/verify"
)

func (t *tool) clockCommand() *cobra.Command {
	var plot string
	var last time.Duration
	cmd := &cobra.Command{
		Use:   "clock [DIR]",
		Short: "Show how sure the time is, and how it came about",
		Long: `clock prints the state of the appliance's clock, its offset from UTC and the bound on it, every source with its verdict, and the
last changes of state.

--plot draws offset and bound over time from the log's own records, as an SVG file, or with "-" as a line in the terminal. That needs a
role that reads entries. Given DIR, an export, it draws what is recorded there and asks no appliance; whether the records are true is
what bulla verify finds out.`,
		Example: "  bulla clock\n  bulla clock --plot clock.svg --last 168h\n  bulla clock /evidence/2026-11 --plot -",
		Args:    args(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, given []string) error {
			if last <= 0 {
				return usagef("--last must be above 0")
			}
			if err := freePlot(plot); err != nil {
				return err
			}
			if len(given) == 1 {
				return t.clockOfExport(cmd.Context(), given[0], plot, last)
			}
			return t.clockOfAppliance(cmd.Context(), plot, last)
		},
	}
	cmd.Flags().StringVar(&plot, "plot", "", "draw offset and bound over time: an SVG file to write, or - for the terminal")
	cmd.Flags().DurationVar(&last, "last", 24*time.Hour, "how far back to draw, from the last record")
	return cmd
}

func (t *tool) clockOfExport(ctx context.Context, dir, plot string, last time.Duration) error {
	if plot == "" {
		return usagef("an export has a history, but no state of now: draw it with --plot FILE.svg or --plot -")
	}
	src, err := verify.OpenDir(dir)
	if err != nil {
		return usagef("%w", err)
	}
	defer src.Close()
	h, err := exportedHistory(ctx, src, last)
	if err != nil {
		return err
	}
	return t.plotClock(h, plot)
}

func (t *tool) clockOfAppliance(ctx context.Context, plot string, last time.Duration) error {
	a, err := t.reach(ctx)
	if err != nil {
		return err
	}
	if a.status.Machine == nil || a.status.Machine.Clock == nil {
		return coded(exitUnavailable, fmt.Errorf("the appliance says nothing about its clock"))
	}
	c := a.status.Machine.Clock
	if t.json {
		err = t.printJSON(c)
	} else {
		err = printClock(t.out, c)
	}
	if err != nil || plot == "" {
		return err
	}
	if a, err = t.connect(ctx); err != nil {
		return err
	}
	h, err := servedHistory(ctx, a, last)
	if err != nil {
		return err
	}
	return t.plotClock(h, plot)
}

// plotClock draws a history into a file, or on standard output as text.
func (t *tool) plotClock(h *history, path string) error {
	if len(h.points) == 0 {
		return coded(exitNotCheckable, fmt.Errorf("%s has no round of measurement that yielded an estimate in this time: try a longer --last", printable(h.origin, 80)))
	}
	if path == "-" {
		out := t.out
		if t.json { // standard output is one JSON value
			out = t.err
		}
		_, err := io.WriteString(out, sparklines(h))
		return err
	}
	if err := writeNew(path, drawSVG(h)); err != nil {
		return err
	}
	_, err := fmt.Fprintf(t.err, "%s: %d rounds, %d changes of state\n", path, len(h.points), len(h.changes))
	return err
}

// clockLine is the clock in a line.
func clockLine(c *api.ClockStatus) string {
	s := c.State
	if e := c.Estimate; e != nil {
		s += fmt.Sprintf(", UTC is the system's time %s +- %s", signed(e.Offset), span(e.Bound))
	}
	return s
}

// printClock prints the clock's state as tables.
func printClock(out io.Writer, c *api.ClockStatus) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "state\t%s\n", printable(c.State, 40))
	if e := c.Estimate; e != nil {
		fmt.Fprintf(w, "offset\t%s\tUTC minus the system's time\n", signed(e.Offset))
		fmt.Fprintf(w, "bound\t%s\tnow: it grows until the next round; warned of above %s; refused above %s (policy %s)\n", span(e.Bound), span(c.Policy.Warn), span(c.Policy.Limit), printable(c.Policy.Mode, 20))
		fmt.Fprintf(w, "round\t%d\t%s ago; %d since the start, %d of them failed\n", e.Round, span(e.Age), c.Rounds, c.Failed)
	} else {
		fmt.Fprintf(w, "round\tnone\t%d since the start, %d of them failed\n", c.Rounds, c.Failed)
	}
	if d := c.Drift; d != nil {
		fmt.Fprintf(w, "drift\t%+.3f ppm\t+- %.3f ppm\n", float64(d.Rate)/1e3, float64(d.Sigma)/1e3)
	}
	for _, warning := range []struct{ name, text string }{{"last round", c.Reason}, {"alarms", strings.Join(c.Alarms, ", ")}, {"unrecorded", c.Unrecorded}} {
		if warning.text != "" {
			fmt.Fprintf(w, "%s\t%s\n", warning.name, printable(warning.text, 200))
		}
	}
	fmt.Fprintf(w, "\nSOURCE\tADDRESS\tVERDICT\tOFFSET\tDISTANCE\tRTT\tSTRATUM\tAUTH\tOK/FALSE/REJECTED\n")
	for _, s := range c.Sources {
		printSource(w, &s)
	}
	if len(c.Steps) > 0 {
		fmt.Fprintf(w, "\nCHANGE\tFROM\tTO\tREASON\tSIZE\n")
	}
	for _, s := range c.Steps {
		size := "-"
		if s.Size != 0 {
			size = signed(s.Size)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", s.Time.UTC().Format("2006-01-02T15:04:05.000Z"), printable(s.From, 20), printable(s.To, 20), printable(s.Reason, 40), size)
	}
	return w.Flush()
}

func printSource(w io.Writer, s *api.ClockSource) {
	verdict, offset, distance, rtt, auth := "-", "-", "-", "-", "-"
	if s.Verdict != "" {
		verdict = s.Verdict
	}
	if s.Reason != "" {
		verdict += " (" + s.Reason + ")"
	}
	if s.Distance != 0 {
		offset, distance, rtt = signed(s.Offset), span(s.Distance), span(s.RTT)
	}
	if s.Auth != "" {
		auth = s.Auth
	}
	fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s\t%d/%d/%d\n", printable(s.Name, 40), printable(s.Address, 60), printable(verdict, 60), offset, distance, rtt,
		s.Stratum, printable(auth, 20), s.Verdicts["ok"], s.Verdicts["falseticker"], s.Verdicts["rejected"])
}

// span is a duration as a person reads it: four digits and a unit.
func span(ns int64) string {
	d := time.Duration(ns)
	switch a := d.Abs(); {
	case a >= 2*time.Minute:
		return d.Round(time.Second).String()
	case a >= time.Second:
		return fmt.Sprintf("%.4g s", d.Seconds())
	case a >= time.Millisecond:
		return fmt.Sprintf("%.4g ms", float64(d)/1e6)
	case a >= time.Microsecond:
		return fmt.Sprintf("%.4g us", float64(d)/1e3)
	}
	return fmt.Sprintf("%d ns", ns)
}

// signed is a difference.
func signed(ns int64) string {
	if ns > 0 {
		return "+" + span(ns)
	}
	return span(ns)
}
