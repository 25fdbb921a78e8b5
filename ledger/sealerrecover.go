package ledger

import (
	"context"
	"errors"
	"fmt"

	"bulla/attest"
	"bulla/ceremony"
	"bulla/record"
)

// Recover has a recovery of a log declared: what the TPM attested behind the last seal that is left is lost, and seals go on from the TPM
// as it is found. declare makes that durable in the log, as officers have approved it; no seal is made meanwhile. Once every log that
// was put back has one, events of those that were not closed by it are taken again.
func (s *Sealer) Recover(ctx context.Context, declare func(*attest.Recovery) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cfg.TPM == nil {
		return s.foreign()
	}
	if err := s.adopt(); err != nil {
		return err
	}
	now, err := s.read(ctx)
	if err != nil {
		return &Refusal{Code: record.CodeTPM, Message: err.Error(), Err: err}
	}
	_, alone := s.look(ctx)
	last := s.last()
	r := &attest.Recovery{
		Clock: now.clock.Clock, Counter: now.counter, PCR: now.pcr, Previous: last.Quote,
		Resets: now.clock.ResetCount, Restarts: now.clock.RestartCount, Safe: now.clock.Safe, Seal: last.Number,
	}
	if err := declare(r); err != nil {
		return err
	}
	s.state.Last, s.state.Intent, s.state.Pending, s.state.Abandoned = recovered(r), 0, nil, nil
	s.state.Last.Lost = last.Lost || errors.Is(alone, ErrRollback)
	if err := s.save(); err != nil {
		return err
	}
	return s.release(ctx)
}

// release ends a rollback when nothing shows it any more.
func (s *Sealer) release(ctx context.Context) error {
	if s.rollback == nil {
		return nil
	}
	switch err := s.judge(ctx); {
	case errors.Is(err, ErrRollback): // another log was put back, too
		s.rollback = nil
		return ignoreRollback(s.stuck(err))
	case err != nil:
		return err
	}
	s.rollback = nil
	s.statusMu.Lock()
	s.status.Rollback = ""
	s.statusMu.Unlock()
	select {
	case s.recovered <- struct{}{}:
	default:
	}
	return nil
}

// ignoreRollback is nil where a log is still rolled back: that does not undo what another has declared.
func ignoreRollback(err error) error {
	if errors.Is(err, ErrRollback) {
		return nil
	}
	return err
}

// recovered is what the next seal follows on after a recovery.
func recovered(r *attest.Recovery) *lastSeal {
	return &lastSeal{Clock: r.Clock, Counter: r.Counter, Number: r.Seal, PCR: r.PCR, Quote: r.Previous, Resets: r.Resets, Restarts: r.Restarts, recovered: true}
}

// declared is the recovery that closed a log, and the index of its entry; nil when there is none.
func declared(l *Ledger) (*lastSeal, uint64, error) {
	closed := l.State().Closed
	if closed == nil {
		return nil, 0, nil
	}
	e, err := parsedEntry(l, *closed)
	if err != nil {
		return nil, 0, err
	}
	enactment, err := ceremony.ParseEnactment(e.Body)
	if err != nil {
		return nil, 0, fmt.Errorf("entry %d of %s: %w", *closed, l.Origin(), err)
	}
	var out ceremony.Recovered
	if err := record.UnmarshalCanonical(enactment.Outcome, &out); err != nil {
		return nil, 0, fmt.Errorf("entry %d of %s: %w", *closed, l.Origin(), err)
	}
	if out.TPM == nil {
		return nil, 0, nil
	}
	return recovered(out.TPM), *closed, nil
}
