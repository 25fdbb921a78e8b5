package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"bulla/api"
)

func (t *tool) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show how the appliance and its logs are doing",
		Long: `status shows each log's size and whether it takes events, and how clock, HSM, TPM, self-check and witnesses are doing. With --json it
shows all there is, also each log's checkpoint, verifier keys and genesis. bulla clock shows more of the clock.`,
		Example: "  bulla status\n  bulla status --json | jq -r '.logs[].vkeys[]'",
		Args:    args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			a, err := t.reach(cmd.Context())
			if err != nil {
				return err
			}
			if t.json {
				return t.printJSON(a.status)
			}
			return printStatus(t.out, &a.status)
		},
	}
}

// printStatus prints the logs, and then a line for each part of the machine.
func printStatus(out io.Writer, s *api.Status) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "LOG\tORIGIN\tENTRIES\tEVENTS")
	for i := range s.Logs {
		l := &s.Logs[i]
		fmt.Fprintf(w, "%s\t%s\t%d\t%s\n", printable(l.Name, 80), printable(l.Origin, 120), l.Size, taking(l))
	}
	if err := w.Flush(); err != nil || s.Machine == nil {
		return err
	}
	fmt.Fprintln(w)
	for _, line := range machineLines(s.Machine) {
		fmt.Fprintf(w, "%s\t%s\n", line[0], line[1])
	}
	return w.Flush()
}

// taking says whether a log takes events.
func taking(l *api.LogStatus) string {
	switch {
	case l.Refusing != nil:
		return fmt.Sprintf("refused (%s): %s", printable(string(l.Refusing.Code), 20), printable(l.Refusing.Message, 500))
	case l.LastFault != "":
		return "taken; last fault: " + printable(l.LastFault, 500)
	}
	return "taken"
}

// machineLines are names and states of the machine's parts.
func machineLines(m *api.Machine) (lines [][2]string) {
	add := func(name, text string) { lines = append(lines, [2]string{name, text}) }
	if m.Clock != nil {
		add("clock", clockLine(m.Clock))
	}
	for _, name := range sortedKeys(m.HSM) {
		add("hsm "+printable(strings.TrimPrefix(name, "pkcs11:"), 80), tokenLine(m.HSM[name]))
	}
	if m.Seal != nil {
		add("seal", sealStateLine(m.Seal))
	}
	for i := range m.SelfCheck {
		add("self-check "+printable(m.SelfCheck[i].Log, 80), selfCheckLine(&m.SelfCheck[i]))
	}
	for i := range m.Witnesses {
		x := &m.Witnesses[i]
		add("witness "+printable(x.Log+" "+x.Witness, 120), witnessLine(x))
	}
	if m.Version != "" {
		add("version", printable(m.Version, 80))
	}
	return lines
}

// tokenLine says how a token is doing, from its health as the appliance gives it.
func tokenLine(health any) string {
	var h struct {
		State      string    `json:"state"`
		Since      time.Time `json:"since"`
		Error      string    `json:"error"`
		Signatures uint64    `json:"signatures"`
		Stuck      int       `json:"stuck"`
		Stale      uint64    `json:"stale"`
	}
	b, err := json.Marshal(health)
	if err == nil {
		err = json.Unmarshal(b, &h)
	}
	if err != nil {
		return printable(string(b), 200)
	}
	line := fmt.Sprintf("%s since %s, %d signatures", printable(h.State, 40), h.Since.UTC().Format(time.RFC3339), h.Signatures)
	if h.Stuck > 0 {
		line += fmt.Sprintf(", %d calls do not return", h.Stuck)
	}
	if h.Stale > 0 {
		line += fmt.Sprintf(", %d signatures of ANOTHER KEY discarded", h.Stale)
	}
	if h.Error != "" {
		line += "; " + printable(h.Error, 300)
	}
	return line
}

// sealStateLine says how sealing is doing.
func sealStateLine(s *api.SealStatus) string {
	line := "none since the start"
	if s.AgeSeconds != nil {
		line = fmt.Sprintf("seal %d, counter %d, %s ago", s.Number, s.Counter, time.Duration(*s.AgeSeconds)*time.Second)
	}
	if s.Pending {
		line += "; one begun before a crash is not settled yet"
	}
	if s.LastError != "" {
		line += "; last error: " + printable(s.LastError, 300)
	}
	if s.Rollback != "" {
		line += "; ROLLBACK: " + printable(s.Rollback, 500)
	}
	return line
}

// selfCheckLine says how the daemon's check of what it has stored goes.
func selfCheckLine(s *api.SelfCheckStatus) string {
	last := "no full round yet"
	if r := s.Last; r != nil {
		last = fmt.Sprintf("last full round %s, %d entries", r.Ended.Format(time.RFC3339), r.Entries)
	}
	if s.Failures == 0 {
		return last + ", nothing differs"
	}
	return fmt.Sprintf("%s; %d DIFFERENCES: %s", last, s.Failures, printable(s.Finding, 500))
}

// witnessLine says how it goes with a witness.
func witnessLine(s *api.WitnessStatus) string {
	line := "nothing cosigned yet"
	if s.Time != nil {
		line = fmt.Sprintf("%d entries cosigned, %s", s.Size, s.Time.Format(time.RFC3339))
	}
	if s.LastError != "" {
		line += "; last error: " + printable(s.LastError, 300)
	}
	if s.Conflicts > 0 {
		line += "; CONFLICT: " + printable(s.Conflict, 500)
	}
	return line
}
