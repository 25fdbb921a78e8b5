package ledger

import (
	"context"
	"errors"
	"fmt"

	"bulla/attest"
	"bulla/record"
)

// ErrNoRollback means that there is nothing to recover from: the store is as its TPM knows it.
var ErrNoRollback = errors.New("the store is not older than its TPM")

// Recover declares, in an entry of every log, that a store which is older than its TPM is gone on with as it is: what the TPM
// attested behind the last seal that is left is lost. why is a person's statement, at most record.MaxMessage bytes. It is for a
// sealer that does not Run. The logs have it before the sealer's file: without the declaration nothing goes on.
func (s *Sealer) Recover(ctx context.Context, why string) (*attest.Recovery, error) {
	if err := s.begin(ctx); err == nil {
		return nil, ErrNoRollback
	} else if !errors.Is(err, ErrRollback) {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.adopt(); err != nil {
		return nil, err
	}
	now, err := s.read(ctx)
	if err != nil {
		return nil, err
	}
	last := s.last()
	r := &attest.Recovery{
		Clock: now.clock.Clock, Counter: now.counter, PCR: now.pcr, Previous: last.Quote,
		Resets: now.clock.ResetCount, Restarts: now.clock.RestartCount, Safe: now.clock.Safe, Seal: last.Number,
	}
	what := &record.System{Event: record.SystemRecovery, Code: record.CodeRollback, Message: why}
	if what.Recovery, err = r.Encode(); err != nil {
		return nil, fmt.Errorf("declaring a recovery: %w", err)
	}
	if err := what.Check(); err != nil {
		return nil, fmt.Errorf("declaring a recovery: %w", err)
	}
	if err := s.say(ctx, what); err != nil {
		return nil, err
	}
	s.state.Last, s.state.Intent, s.state.Pending, s.state.Abandoned = recovered(r), 0, nil, nil
	return r, s.save()
}

// recovered is what the next seal follows on after a recovery.
func recovered(r *attest.Recovery) *lastSeal {
	return &lastSeal{Clock: r.Clock, Counter: r.Counter, Number: r.Seal, PCR: r.PCR, Quote: r.Previous, Resets: r.Resets, Restarts: r.Restarts}
}

// declared reads the recovery in the body of an entry of kind system; nil when there is none.
func declared(body []byte) (*lastSeal, error) {
	what, err := record.ParseSystem(body)
	if err != nil || len(what.Recovery) == 0 {
		return nil, err
	}
	r, err := attest.ParseRecovery(what.Recovery)
	if err != nil {
		return nil, err
	}
	return recovered(r), nil
}
