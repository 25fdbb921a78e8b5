package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// Outcomes of a drill.
const (
	drillDetected = "detected"
	drillMissed   = "missed"  // something that should have did not notice it
	drillFailed   = "failed"  // it could not be carried out, or service did not resume where it should
	drillNotRun   = "not run" // why says what it would need
)

// What notices.
const (
	byRefusal  = "refusal"
	byAlarm    = "alarm"
	byStatus   = "status"
	byClock    = "clock entry"
	bySeal     = "seal"
	byVerifier = "verifier"
	byStart    = "start"  // of the daemon, which does not
	byExport   = "export" // of a file at rest
)

// drillReport is the outcome of drills. Its JSON form is stable: members may be added, none changes its meaning.
type drillReport struct {
	Began  time.Time     `json:"began"`
	Ended  time.Time     `json:"ended"`
	Tool   string        `json:"tool"`
	Bullad string        `json:"bullad,omitempty"` // version
	Log    string        `json:"log"`
	Entry  *uint64       `json:"entry,omitempty"` // where the outcome is recorded in it
	Leaf   string        `json:"leaf,omitempty"`  // hash of that entry, base64
	Drills []drillResult `json:"drills"`

	Shadows []string `json:"shadows,omitempty"` // copies of log files, instead of an appliance
}

// drillResult is the outcome of one drill.
type drillResult struct {
	Name    string        `json:"name"`
	Does    string        `json:"does"`
	Did     string        `json:"did"` // what was done
	Outcome string        `json:"outcome"`
	Why     string        `json:"why,omitempty"` // not detected
	Noticed []drillNotice `json:"noticed"`       // everything that should notice
	Seconds *float64      `json:"seconds,omitempty"`
	Service string        `json:"service,omitempty"`
	Resumed *float64      `json:"resumed_seconds,omitempty"` // after what was broken was whole again
}

// drillNotice is something that should notice an attack, and whether it did.
type drillNotice struct {
	By       string  `json:"by"`
	Expected string  `json:"expected"`
	Found    string  `json:"found,omitempty"`   // empty: it did not
	Seconds  float64 `json:"seconds"`           // after the attack, when found
	Instead  string  `json:"instead,omitempty"` // what there was last, when not found
}

// rounded is a duration in seconds, to the millisecond.
func rounded(d time.Duration) float64 { return math.Round(d.Seconds()*1000) / 1000 }

// lasting is a time as a person writes it.
func lasting(seconds float64) string {
	if seconds < 1 {
		return fmt.Sprintf("%.0f ms", seconds*1000)
	}
	return fmt.Sprintf("%.1f s", seconds)
}

// conclude says what came of a drill that ended with an error, or none.
func (r *drillResult) conclude(err error) {
	var missing []string
	for _, n := range r.Noticed {
		switch {
		case n.Found == "":
			missing = append(missing, fmt.Sprintf("%s (instead: %s)", n.Expected, n.Instead))
		case r.Seconds == nil || n.Seconds < *r.Seconds:
			r.Seconds = &n.Seconds
		}
	}
	switch {
	case len(missing) > 0:
		r.Outcome, r.Why = drillMissed, "not noticed: "+strings.Join(missing, "; ")
	case err != nil:
		r.Outcome, r.Why = drillFailed, printable(strings.ReplaceAll(err.Error(), "\n", "; "), 1000)
	case len(r.Noticed) == 0 && r.Why != "":
		r.Outcome = drillNotRun
	case len(r.Noticed) == 0:
		r.Outcome, r.Why = drillFailed, "nothing was expected to notice it"
	default:
		r.Outcome = drillDetected
	}
}

// by lists what noticed, once each.
func (r *drillResult) by() string {
	var out []string
	seen := map[string]bool{}
	for _, n := range r.Noticed {
		if n.Found != "" && !seen[n.By] {
			seen[n.By] = true
			out = append(out, n.By)
		}
	}
	return strings.Join(out, ", ")
}

// passed reports whether every drill that ran was detected.
func (rep *drillReport) passed() bool {
	ran := 0
	for _, r := range rep.Drills {
		if r.Outcome == drillNotRun {
			continue
		}
		if ran++; r.Outcome != drillDetected {
			return false
		}
	}
	return ran > 0
}

// event is what the log keeps of it.
func (rep *drillReport) event() ([]byte, error) {
	type summary struct {
		Name    string `json:"name"`
		Outcome string `json:"outcome"`
		By      string `json:"by,omitempty"`
		Seconds string `json:"seconds,omitempty"` // entries have no fractions
	}
	var all []summary
	for i := range rep.Drills {
		r := &rep.Drills[i]
		s := summary{Name: r.Name, Outcome: r.Outcome, By: r.by()}
		if r.Seconds != nil {
			s.Seconds = strconv.FormatFloat(*r.Seconds, 'f', 3, 64)
		}
		all = append(all, s)
	}
	outcome := "success"
	if !rep.passed() {
		outcome = "failure"
	}
	return json.Marshal(map[string]any{
		"type": "bulla.drill", "source": "bulla drill", "outcome": outcome,
		"data": map[string]any{"drills": all, "tool": rep.Tool, "began": rep.Began.Format(time.RFC3339), "ended": rep.Ended.Format(time.RFC3339)},
	})
}

// reportDrills prints the report; the error carries the exit code.
func (t *tool) reportDrills(rep *drillReport, file string) error {
	if file != "" {
		var b bytes.Buffer
		rep.writeMarkdown(&b)
		if err := writeNew(file, b.Bytes()); err != nil {
			return err
		}
	}
	var err error
	if t.json {
		err = t.printJSON(rep)
	} else {
		err = rep.writeText(t.out)
	}
	if err == nil && !rep.passed() {
		err = coded(exitTampered, nil)
	}
	return err
}

func (rep *drillReport) writeText(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "DRILL\tOUTCOME\tNOTICED BY\tAFTER\tSERVICE")
	for i := range rep.Drills {
		r := &rep.Drills[i]
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", r.Name, r.Outcome, r.by(), r.after(), short(r.Service))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for i := range rep.Drills {
		if r := &rep.Drills[i]; r.Why != "" {
			fmt.Fprintf(out, "\n%s: %s: %s\n", r.Name, r.Outcome, r.Why)
		}
	}
	if rep.Entry == nil {
		return nil
	}
	_, err := fmt.Fprintf(out, "\nrecorded in entry %d of %s, leaf hash %s\n", *rep.Entry, rep.Log, rep.Leaf)
	return err
}

// after is when it was noticed first.
func (r *drillResult) after() string {
	if r.Seconds == nil {
		return "-"
	}
	return lasting(*r.Seconds)
}

// short is the beginning of what there is to say.
func short(s string) string {
	s, _, _ = strings.Cut(s, ":")
	s, _, _ = strings.Cut(s, ";")
	return s
}

// writeMarkdown writes the report for people who were not there.
func (rep *drillReport) writeMarkdown(b *bytes.Buffer) {
	verdict := "Every drill that ran was detected."
	if !rep.passed() {
		verdict = "**Not every drill was detected.**"
	}
	fmt.Fprintf(b, "# Drills of %s\n\n%s\n\n", rep.Log, verdict)
	fmt.Fprintf(b, "%s to %s, %s, ", rep.Began.Format(time.RFC3339), rep.Ended.Format(time.RFC3339), rep.Tool)
	if rep.Entry != nil {
		fmt.Fprintf(b, "bullad %s, on a throwaway appliance (`bullad dev`) and copies of it.\nRecorded in entry %d, leaf hash `%s`.\n\n", rep.Bullad, *rep.Entry, rep.Leaf)
	} else {
		fmt.Fprintf(b, "on copies of %s.\n\n", cell(strings.Join(rep.Shadows, ", ")))
	}
	fmt.Fprintf(b, "| drill | outcome | noticed by | after | service |\n|---|---|---|---|---|\n")
	for i := range rep.Drills {
		r := &rep.Drills[i]
		fmt.Fprintf(b, "| %s | %s | %s | %s | %s |\n", r.Name, r.Outcome, r.by(), r.after(), cell(r.Service))
	}
	for i := range rep.Drills {
		rep.Drills[i].writeMarkdown(b)
	}
}

func (r *drillResult) writeMarkdown(b *bytes.Buffer) {
	fmt.Fprintf(b, "\n## %s: %s\n\n%s.\n\n", r.Name, r.Outcome, strings.ToUpper(r.Does[:1])+r.Does[1:])
	if r.Did != "" {
		fmt.Fprintf(b, "**Done.** %s\n\n", r.Did)
	}
	if len(r.Noticed) > 0 {
		fmt.Fprintf(b, "| expected | noticed | after |\n|---|---|---|\n")
		for _, n := range r.Noticed {
			found, after := cell(n.Found), lasting(n.Seconds)
			if n.Found == "" {
				found, after = "**no**; instead: "+cell(n.Instead), "-"
			}
			fmt.Fprintf(b, "| %s | %s | %s |\n", cell(n.Expected), found, after)
		}
		fmt.Fprintln(b)
	}
	if r.Service != "" {
		fmt.Fprintf(b, "**Service** %s.\n", r.Service)
	}
	if r.Why != "" {
		fmt.Fprintf(b, "**%s.** %s\n", strings.ToUpper(r.Outcome[:1])+r.Outcome[1:], r.Why)
	}
}

// cell is text that cannot end a cell of a Markdown table.
func cell(s string) string {
	return strings.NewReplacer("|", "\\|", "\n", " ", "<", "&lt;").Replace(s)
}
