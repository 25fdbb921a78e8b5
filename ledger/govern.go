package ledger

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/mod/sumdb/note"

	"bulla/ceremony"
	"bulla/clock"
	"bulla/record"
)

// Governing is the body of an entry that a ceremony makes: what an officer proposed or decided, or what was done.
type Governing struct {
	Kind record.Kind
	Body []byte
}

// Executor does to devices what a proposal asks for.
type Executor interface {
	// Rehearse says what Execute would do, a step each, and refuses what could not be done. It changes nothing.
	Rehearse(ctx context.Context, l *Ledger, p *ceremony.Pending) ([]string, error)
	// Execute does it, tells did of each step, and calls commit once, with the outcome (nil where the action has none), when all of it
	// is done; commit's error is its own. It may be called again for the same proposal, after a failure or another start: then it
	// goes on from what it finds.
	Execute(ctx context.Context, l *Ledger, p *ceremony.Pending, did func(what, answer string), commit func(outcome any) error) error
}

// Enacted is what became of a proposal that was to be carried out.
type Enacted struct {
	Index   uint64 // of the enactment; 0 of a rehearsal
	Missing error  // of a rehearsal: why the enactment would be refused now, though the devices could do it; nil: it would not
	Failed  string
	Steps   []ceremony.Step
	Outcome json.RawMessage
}

// Govern sequences what a ceremony makes, in one commit. What the state in force does not permit is refused with a *Refusal that
// wraps a *ceremony.Refused, and nothing is taken. Other than the daemon's own records it is not tried again when a batch fails. Where
// the log was rolled back, what is about its recovery waits outside it, and there is no result.
func (l *Ledger) Govern(ctx context.Context, entries ...Governing) (*Result, error) {
	if r := l.rolledBack(); r != nil {
		return nil, l.wait(entries, r)
	}
	return l.govern(ctx, entries)
}

// rolledBack is why nothing but a recovery may be taken, or nil.
func (l *Ledger) rolledBack() *Refusal {
	if r := l.hold.Load(); r != nil && r.Code == record.CodeRollback {
		return r
	}
	return nil
}

func (l *Ledger) govern(ctx context.Context, entries []Governing) (*Result, error) {
	r := &request{done: make(chan answer, 1)}
	for _, g := range entries {
		if !ceremony.Governs(g.Kind) || g.Kind == record.KindGenesis || len(g.Body) > record.MaxEvent {
			return nil, &Refusal{Code: record.CodeInvalid, Message: fmt.Sprintf("an entry of kind %s and %d bytes is not one that a ceremony makes", g.Kind, len(g.Body))}
		}
		r.governing = append(r.governing, draft{kind: g.Kind, body: g.Body})
		r.size += len(g.Body)
	}
	if err := l.queue.put(r); err != nil {
		return nil, err
	}
	select {
	case a := <-r.done:
		return a.result, a.err
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %w", ErrUnknown, ctx.Err())
	}
}

// Ungoverned is the refusal of what the state does not permit, or of a key that cannot be opened; nil of any other error.
func Ungoverned(err error) *Refusal {
	var refusal *Refusal
	var refused *ceremony.Refused
	switch {
	case errors.As(err, &refusal):
		return refusal
	case !errors.As(err, &refused):
		return nil
	}
	refusal = &Refusal{Code: record.CodeForbidden, Field: "ceremony." + string(refused.Rule), Message: refused.Reason, Err: err}
	switch refused.Rule {
	case ceremony.RuleDocument, ceremony.RuleLog, ceremony.RuleOutcome:
		refusal.Code = record.CodeInvalid
	case ceremony.RuleNumber, ceremony.RuleState, ceremony.RuleDuplicate, ceremony.RuleClosed:
		refusal.Code = record.CodeConflict
	}
	return refusal
}

// Pending finds the open proposal of a number, whose document is the one that is meant.
func (l *Ledger) Pending(number uint64, document record.Hash) (*ceremony.Pending, error) {
	state, _, err := l.Governance()
	if err != nil {
		return nil, err
	}
	open := state.Open()
	i := slices.IndexFunc(open, func(p *ceremony.Pending) bool { return p.Proposal.Number == number })
	switch {
	case i < 0:
		return nil, &Refusal{Code: record.CodeConflict, Field: "ceremony." + string(ceremony.RuleClosed), Message: fmt.Sprintf("proposal %d is not open", number)}
	case open[i].Hash != document:
		return nil, &Refusal{Code: record.CodeConflict, Field: "ceremony." + string(ceremony.RuleDocument), Message: fmt.Sprintf("proposal %d is another document than the one that was meant: look at it again", number)}
	}
	return open[i], nil
}

// Rehearse says what carrying out a proposal would do, and what the proposal lacks to be carried out now, without doing it. It refuses what the
// devices could not do.
func (l *Ledger) Rehearse(ctx context.Context, number uint64, document record.Hash, exec Executor) (*Enacted, error) {
	p, err := l.Pending(number, document)
	if err != nil {
		return nil, err
	}
	steps, err := exec.Rehearse(ctx, l, p)
	if err != nil {
		return nil, err
	}
	out := new(Enacted)
	for _, s := range steps {
		out.Steps = append(out.Steps, ceremony.Step{Did: s, Time: l.time()})
	}
	if _, out.Missing = l.mayEnact(p); out.Missing != nil && Ungoverned(out.Missing) == nil {
		return nil, out.Missing // nobody can tell
	}
	return out, nil
}

// mayEnact refuses a proposal that lacks approvals or time, or that must wait for a recovery. It returns what waits outside the log with it.
func (l *Ledger) mayEnact(p *ceremony.Pending) ([]Governing, error) {
	state, waiting, err := l.Governance()
	if err != nil {
		return nil, err
	}
	if err := state.Approved(p, l.cfg.Clock.Now()); err != nil {
		return nil, Ungoverned(err)
	}
	if r := l.rolledBack(); r != nil && p.Proposal.Action != ceremony.ActionRecoveryDeclare {
		return nil, r
	}
	return waiting, nil
}

// Enact carries out a proposal that enough officers have approved, and records that with what the devices answered. Where a device
// was changed and then failed, the enactment says so and closes the proposal; where nothing was changed, the error says why, and
// the proposal stays open.
func (l *Ledger) Enact(ctx context.Context, number uint64, document record.Hash, exec Executor) (*Enacted, error) {
	l.enacting.Lock()
	defer l.enacting.Unlock()
	p, err := l.Pending(number, document)
	if err != nil {
		return nil, err
	}
	waiting, err := l.mayEnact(p)
	if err != nil {
		return nil, err
	}
	e := &enacting{ledger: l, waiting: waiting, body: ceremony.Enactment{Document: p.Hash, Number: number}}
	err = exec.Execute(ctx, l, p, e.did, func(outcome any) error { return e.commit(ctx, outcome) })
	switch {
	case e.out != nil || errors.Is(err, ErrUnknown):
		return e.out, err
	case err == nil:
		return nil, fmt.Errorf("carrying out proposal %d: nothing was recorded", number)
	case len(e.body.Steps) == 0 || e.tried || len(waiting) > 0: // nothing was changed; or all of it was done, and only its entry is missing
		return nil, err
	}
	e.body.Failed = clip(err.Error())
	if err := e.record(ctx); err != nil {
		return nil, fmt.Errorf("%s; and that cannot be recorded: %w", e.body.Failed, err)
	}
	return e.out, nil
}

// Abandon records that a proposal which had been approved was begun and is given up, after undo has undone what was done.
func (l *Ledger) Abandon(ctx context.Context, p *ceremony.Pending, why string, undo func(ctx context.Context, did func(what, answer string)) error) (*Enacted, error) {
	l.enacting.Lock()
	defer l.enacting.Unlock()
	e := &enacting{ledger: l, body: ceremony.Enactment{Document: p.Hash, Failed: clip(why), Number: p.Proposal.Number}}
	if err := undo(ctx, e.did); err != nil {
		return nil, err
	}
	err := e.record(ctx)
	return e.out, err
}

// enacting is a proposal that is being carried out.
type enacting struct {
	ledger  *Ledger
	body    ceremony.Enactment
	waiting []Governing // outside the log, to be written with it
	tried   bool        // to commit what was done
	out     *Enacted
}

func (e *enacting) did(what, answer string) {
	if len(e.body.Steps) < ceremony.MaxSteps {
		e.body.Steps = append(e.body.Steps, ceremony.Step{Did: clip(what), Answer: clip(answer), Time: e.ledger.time()})
	}
}

func (e *enacting) commit(ctx context.Context, outcome any) error {
	e.tried = true
	if outcome != nil {
		var err error
		if e.body.Outcome, err = record.MarshalCanonical(outcome); err != nil {
			return fmt.Errorf("recording what was done: %w", err)
		}
	}
	return e.record(ctx)
}

func (e *enacting) record(ctx context.Context) error {
	body, err := record.MarshalCanonical(&e.body)
	if err != nil {
		return fmt.Errorf("recording what was done: %w", err)
	}
	res, err := e.ledger.govern(ctx, append(e.waiting, Governing{record.KindEnactment, body}))
	if err != nil {
		return err
	}
	e.out = &Enacted{Index: res.Items[len(e.waiting)].Index, Failed: e.body.Failed, Steps: e.body.Steps, Outcome: e.body.Outcome}
	if len(e.waiting) > 0 {
		return e.ledger.forgetWaiting()
	}
	return nil
}

// Now is the clock that entries are stamped with.
func (l *Ledger) Now() clock.Stamp { return l.cfg.Clock.Now() }

// time is now, by the clock that entries are stamped with.
func (l *Ledger) time() string {
	return string(record.AppendTime(nil, l.cfg.Clock.Now().UTC()))
}

// Handover is the log's head as key.rotate hands it over: signed by the key that is to come, and by the one in force if that can.
func (l *Ledger) Handover(purpose string, to Signer, old bool) (string, error) {
	h := l.committed.Load()
	line, err := record.NewSigner(l.cfg.Origin, to.Signer)
	if err != nil {
		return "", err
	}
	signers := []note.Signer{line}
	if old {
		before := h.lines.log
		if purpose == ceremony.PurposeInterop {
			before = h.lines.interop
		}
		signers = append([]note.Signer{before}, signers...)
	}
	signed, err := note.Sign(&note.Note{Text: l.text(h)}, signers...)
	if err != nil {
		return "", &Refusal{Code: to.Device, Message: "the head cannot be handed over: " + err.Error(), RetryAfter: time.Second, Err: err}
	}
	return string(signed), nil
}
