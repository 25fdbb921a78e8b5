package ledger

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"bulla/attest"
	"bulla/record"
)

// foreign is the refusal while the TPM is not the one that governs the logs.
func (s *Sealer) foreign() *Refusal {
	return &Refusal{Code: record.CodeTPM, Err: s.cfg.Foreign, Message: fmt.Sprintf("%v; put the TPM back that is enrolled, or have the officers enrol this one: bullad tpm-prepare", s.cfg.Foreign)}
}

// waitEnrolled refuses events until there is a TPM to seal with. It is false when ctx ended before.
func (s *Sealer) waitEnrolled(ctx context.Context) bool {
	s.mu.Lock()
	there := s.cfg.TPM != nil
	s.mu.Unlock()
	if there {
		return true
	}
	s.holdAll(s.foreign())
	s.note(s.cfg.Foreign)
	select {
	case <-s.enrolled:
		return true
	case <-ctx.Done():
		return false
	}
}

// Enrol has seals go on in another TPM, or in the same after it was cleared: e is its enrolment, t is attached to it. What of e depends
// on the moment is set here; declare makes it durable in the log, as officers have approved it. No seal is made meanwhile.
func (s *Sealer) Enrol(ctx context.Context, e attest.Enrolment, t attest.TPM, declare func(*attest.Enrolment) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.cfg.Logs) > 1 {
		return &Refusal{Code: record.CodeInvalid, Message: "the machine's seals cover several logs, and no ceremony of one can change them for all"}
	}
	if err := s.adopt(); err != nil {
		return err
	}
	last := s.last()
	e.Seal, e.Previous = last.Number, last.Quote
	var err error
	if e.Counter.Value, err = t.Counter(ctx); err != nil {
		return &Refusal{Code: record.CodeTPM, Message: "reading the counter: " + err.Error(), Err: err}
	}
	if e.Base, err = t.PCR(ctx, e.PCR); err != nil {
		return &Refusal{Code: record.CodeTPM, Message: "reading the seal PCR: " + err.Error(), Err: err}
	}
	if err := declare(&e); err != nil {
		return err
	}
	s.cfg.TPM, s.rollback, s.started, s.incremented = t, nil, false, time.Time{}
	s.state = sealerState{Enrolment: &e, Logs: s.state.Logs}
	if err := s.save(); err != nil {
		return err
	}
	select {
	case s.enrolled <- struct{}{}:
	default:
	}
	return nil
}

// follow takes over the enrolment that governs the logs, where a ceremony changed it and the sealer's file was not written any more.
func (s *Sealer) follow() error {
	if len(s.cfg.Logs) == 0 {
		return nil
	}
	e := s.cfg.Logs[0].State().Policy.TPM
	if e == nil || s.state.Enrolment == nil || bytes.Equal(e.AKName, s.state.Enrolment.AKName) {
		return nil
	}
	if e.Seal < s.state.Enrolment.Seal {
		return fmt.Errorf("%w: the sealer's file %s knows of a TPM that was enrolled after what the log holds; put the newer log back", ErrRollback, s.cfg.Path)
	}
	s.state = sealerState{Enrolment: e, Logs: s.state.Logs}
	return s.save()
}
