package verify

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
)

// WriteText prints the report for people.
func (rep *Report) WriteText(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n\n", strings.ToUpper(string(rep.Verdict)))
	rep.writeHead(&b)
	b.WriteByte('\n')
	rep.writeClaims(&b)
	rep.writeFindings(&b)
	section(&b, "Missing", rep.Missing)
	rep.writeReceipts(&b)
	rep.writeEarlier(&b)
	section(&b, "Remarks", rep.Remarks)
	_, err := io.WriteString(w, b.String())
	return err
}

func (rep *Report) writeHead(w io.Writer) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	defer t.Flush()
	row := func(name, format string, args ...any) { fmt.Fprintf(t, "%s\t%s\n", name, fmt.Sprintf(format, args...)) }
	if rep.Log == "" {
		return
	}
	row("log", "%s", rep.Log)
	row("entries", "%d%s", rep.Size, rep.kinds())
	row("root", "%s", rep.Root)
	if rep.Genesis != "" {
		trust := "not pinned by a policy"
		if rep.Governance.Trusted {
			trust = "as the policy pins it"
		}
		row("genesis", "%s (%s)", rep.Genesis, trust)
		officers := "none appointed"
		if len(rep.Governance.Officers) > 0 {
			officers = strings.Join(rep.Governance.Officers, ", ")
		}
		row("officers", "%s", officers)
		row("roles", "%s", strings.Join(rep.Governance.Roles, "; "))
	}
	before := ""
	if rep.Verdict == OutcomeTampered {
		before = "; the rest is anchored only as far as the findings leave it"
	}
	switch u := rep.Unanchored; {
	case u == nil:
		row("unanchored", "nothing%s", before)
	case u.From == 0:
		row("unanchored", "every entry: no seal, receipt or witness vouches for what the appliance's storage says")
	default:
		row("unanchored", "%s: behind the last seal, receipt or cosignature%s", span(u.From, u.To), before)
	}
	if u := rep.Resettable; u != nil {
		row("if the TPM was reset", "%s: not anchored against somebody who could reset or clear it", span(u.From, u.To))
	}
	if x := rep.Recovery; x != nil {
		row("lost, declared", "what was shown from entry %d on, of at most %d entries, before officers closed the log in entry %d: %q", x.From, x.To, x.Index, x.Why)
	}
}

// span names the entries [from,to).
func span(from, to uint64) string {
	if to == from+1 {
		return fmt.Sprintf("entry %d", from)
	}
	return fmt.Sprintf("entries %d to %d", from, to-1)
}

func (rep *Report) kinds() string {
	var parts []string
	for _, kind := range slices.Sorted(maps.Keys(rep.Entries)) {
		parts = append(parts, fmt.Sprintf("%d %s", rep.Entries[kind], kind))
	}
	if len(parts) == 0 {
		return ""
	}
	return " (" + strings.Join(parts, ", ") + ")"
}

func (rep *Report) writeClaims(w io.Writer) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	defer t.Flush()
	fmt.Fprintln(t, "CLAIM\tSTATUS\tENTRIES\tWHY")
	for _, c := range rep.Claims {
		covered := "-"
		if c.To > c.From {
			covered = fmt.Sprintf("%d to %d", c.From, c.To-1)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", c.Name, c.Status, covered, c.Why)
	}
}

// maxOfRule is how many findings of one rule are printed: what a wrong key or a rewritten end does to a log repeats itself.
const maxOfRule = 5

// repeat says how many findings of a rule are left out where people read.
type repeat struct {
	Rule string
	More int
}

// printed are the findings for people to read, and what is left out of them; --json has all.
func (rep *Report) printed() (out []Finding, more []repeat) {
	seen := map[string]int{}
	for _, f := range rep.Findings {
		if seen[f.Rule]++; seen[f.Rule] <= maxOfRule {
			out = append(out, f)
		}
	}
	for _, f := range out {
		if n := seen[f.Rule] - maxOfRule; n > 0 {
			more = append(more, repeat{f.Rule, n})
		}
		seen[f.Rule] = 0
	}
	return out, more
}

func (rep *Report) writeFindings(w io.Writer) {
	if len(rep.Findings) == 0 {
		return
	}
	fmt.Fprintln(w, "\nFindings")
	findings, more := rep.printed()
	explained := map[string]bool{}
	for _, f := range findings {
		fmt.Fprintf(w, "  %s%s\n", f.Rule, f.where())
		if !explained[f.Rule] {
			fmt.Fprintf(w, "    %s\n", f.Meaning)
		}
		explained[f.Rule] = true
		fmt.Fprintf(w, "    expected: %s\n    found:    %s\n", f.Expected, f.Found)
	}
	for _, r := range more {
		fmt.Fprintf(w, "  and %d more of %s, which --json lists\n", r.More, r.Rule)
	}
	if rep.Omitted > 0 {
		fmt.Fprintf(w, "  and %d more that are not listed\n", rep.Omitted)
	}
}

// where is the place of a finding, in brackets.
func (f *Finding) where() string {
	where := f.File
	if f.Index != nil {
		where = fmt.Sprintf("entry %d", *f.Index)
		if f.File != "" {
			where += ", " + f.File
		}
	}
	if where == "" {
		return ""
	}
	return " (" + where + ")"
}

func (rep *Report) writeReceipts(w io.Writer) {
	if len(rep.Receipts) == 0 {
		return
	}
	fmt.Fprintln(w, "\nReceipts")
	for _, res := range rep.Receipts {
		why := ""
		if res.Why != "" {
			why = ": " + res.Why
		}
		if res.Index != nil {
			fmt.Fprintf(w, "  %s, entry %d: %s%s\n", res.Name, *res.Index, res.Status, why)
		} else {
			fmt.Fprintf(w, "  %s: %s%s\n", res.Name, res.Status, why)
		}
	}
}

func (rep *Report) writeEarlier(w io.Writer) {
	if len(rep.Earlier) == 0 {
		return
	}
	fmt.Fprintln(w, "\nSeen before")
	for _, res := range rep.Earlier {
		why := ""
		if res.Why != "" {
			why = ": " + res.Why
		}
		fmt.Fprintf(w, "  %s, %d entries: %s%s\n", res.Name, res.Size, res.Status, why)
	}
}

func section(w io.Writer, title string, lines []string) {
	if len(lines) == 0 {
		return
	}
	fmt.Fprintf(w, "\n%s\n", title)
	for _, l := range lines {
		fmt.Fprintf(w, "  %s\n", l)
	}
}
