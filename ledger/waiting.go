package ledger

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"bulla/ceremony"
	"bulla/internal/durable"
	"bulla/record"
)

// A log that is older than its TPM takes nothing more, or it would grow into a fork of itself. So the proposal of a recovery and the
// decisions on it wait beside the log, in the order in which they came, until all of it is written with the enactment in one commit.

// Bounds of what waits.
const (
	maxWaitingEntries = 64
	maxWaitingFile    = 4 << 20
)

// Governance is what governs the log, as it will be with what waits outside it; and that, as far as the log would take it now.
func (l *Ledger) Governance() (ceremony.State, []Governing, error) {
	all, err := l.readWaiting()
	if err != nil {
		return ceremony.State{}, nil, err
	}
	base := l.committed.Load()
	state, kept := base.state, []Governing(nil)
	for _, g := range all { // one that has expired meanwhile is left out, and with it what was decided on it
		if next, err := l.try(append(kept, g)); err == nil {
			state, kept = next, append(kept, g)
		}
	}
	return state, kept, nil
}

// try folds what a ceremony would make into the state, as if it were in the log.
func (l *Ledger) try(entries []Governing) (ceremony.State, error) {
	b := &batch{base: l.committed.Load()}
	for _, g := range entries {
		b.drafts = append(b.drafts, draft{kind: g.Kind, body: g.Body})
	}
	next, err := l.compose(b, l.cfg.Clock.Now())
	if err != nil {
		return ceremony.State{}, err
	}
	return next.state, nil
}

// wait keeps what officers sent about the recovery of a log that was rolled back.
func (l *Ledger) wait(entries []Governing, held *Refusal) error {
	l.waiting.Lock()
	defer l.waiting.Unlock()
	for _, g := range entries {
		if !ofRecovery(g) {
			return held
		}
	}
	_, kept, err := l.Governance()
	if err != nil {
		return err
	}
	kept = append(kept, entries...)
	if len(kept) > maxWaitingEntries {
		return &Refusal{Code: record.CodeBusy, Message: fmt.Sprintf("%d documents and decisions on a recovery wait already", maxWaitingEntries)}
	}
	if _, err := l.try(kept); err != nil {
		if r := Ungoverned(err); r != nil {
			return r
		}
		return err
	}
	return l.writeWaiting(kept)
}

// ofRecovery reports whether an entry may wait: a recovery is proposed, or something is decided.
func ofRecovery(g Governing) bool {
	if g.Kind == record.KindApproval {
		return true
	}
	_, p, err := ceremony.ParseProposed(g.Body)
	return g.Kind == record.KindProposal && err == nil && p.Action == ceremony.ActionRecoveryDeclare
}

// readWaiting reads the file of what waits; it has an entry's kind and body on each line.
func (l *Ledger) readWaiting() ([]Governing, error) {
	if l.cfg.Waiting == "" {
		return nil, nil
	}
	b, err := os.ReadFile(l.cfg.Waiting)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading what waits outside the log: %w", err)
	}
	var out []Governing
	for line := range bytes.Lines(b) {
		kind, body, ok := bytes.Cut(bytes.TrimSuffix(line, []byte("\n")), []byte(" "))
		if !ok || len(out) == maxWaitingEntries || len(b) > maxWaitingFile {
			return nil, fmt.Errorf("what waits outside the log: %s is damaged: remove it, and have the recovery proposed anew", l.cfg.Waiting)
		}
		out = append(out, Governing{Kind: record.Kind(kind), Body: body})
	}
	return out, nil
}

func (l *Ledger) writeWaiting(entries []Governing) error {
	if l.cfg.Waiting == "" {
		return &Refusal{Code: record.CodeInternal, Message: "there is no place for what waits outside the log"}
	}
	var b bytes.Buffer
	for _, g := range entries {
		fmt.Fprintf(&b, "%s %s\n", g.Kind, g.Body)
	}
	if err := durable.Replace(l.cfg.Waiting, b.Bytes(), 0o600); err != nil {
		return fmt.Errorf("what waits outside the log: %w", err)
	}
	return nil
}

// forgetWaiting removes what waits, which the log has now.
func (l *Ledger) forgetWaiting() error {
	if err := os.Remove(l.cfg.Waiting); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("what waited outside the log: %w", err)
	}
	return nil
}
