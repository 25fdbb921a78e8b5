package main

import (
	"fmt"
	"time"

	"bulla/api"
)

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

// shown is what the status's text shows instead of lists.
func shown(m *api.Machine) map[string]any {
	checks, witnesses := map[string]any{}, map[string]any{}
	for i := range m.SelfCheck {
		checks[m.SelfCheck[i].Log] = selfCheckLine(&m.SelfCheck[i])
	}
	for i := range m.Witnesses {
		w := &m.Witnesses[i]
		witnesses[w.Log+" "+w.Witness] = witnessLine(w)
	}
	return map[string]any{"selfcheck": checks, "witnesses": witnesses}
}
