package ledger

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"bulla/attest"
	"bulla/record"
)

// Seal makes one seal over the committed heads of all logs and returns its number when every log has it durable. A nonce goes into
// the statement. What an earlier, unfinished seal left is finished first.
func (s *Sealer) Seal(ctx context.Context, reason string, nonce []byte) (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rollback != nil {
		return 0, s.rollback
	}
	if s.cfg.TPM == nil {
		return 0, s.foreign()
	}
	number, err := s.seal(ctx, reason, nonce)
	s.note(s.stuck(err))
	if err == nil && reason == ReasonStart {
		s.started = true
		if s.cfg.Started != nil {
			s.cfg.Started(s.published)
		}
	}
	return number, err
}

func (s *Sealer) seal(ctx context.Context, reason string, nonce []byte) (uint64, error) {
	if err := s.settle(ctx); err != nil {
		return 0, err
	}
	// 0. The TPM must be as the last seal left it: a seal that the verifier would call a fork's is not made.
	now, err := s.look(ctx)
	if err != nil {
		return 0, err
	}
	// 1. The counter, if it is due. The heads are fixed after it, so that a value covers what was there when it was reached.
	if err := s.increment(ctx, now, reason); err != nil {
		return 0, err
	}
	heads := s.heads()
	// 2. The counter's value, certified together with the heads.
	digest, err := attest.HeadsHash(heads)
	if err != nil {
		return 0, err
	}
	a, err := s.cfg.TPM.CertifyCounter(ctx, digest)
	if err != nil {
		return 0, fmt.Errorf("certifying the counter: %w", err)
	}
	if certified, err := attest.ParseCertify(a.Attest); err != nil {
		return 0, fmt.Errorf("certifying the counter: %w", err)
	} else if c := certified.Clock; c.ResetCount != now.clock.ResetCount || c.RestartCount != now.clock.RestartCount {
		return 0, errReset // the PCR that was read is of another boot
	}
	// 3. The statement, stored before the TPM is asked to commit to it.
	statement, err := s.statement(heads, a, now.pcr, reason, nonce)
	if err != nil {
		return 0, err
	}
	s.state.Pending = &pendingSeal{Counter: a, Statement: statement}
	if err := s.save(); err != nil {
		s.state.Pending = nil
		return 0, err
	}
	// 4. to 6. as after a restart.
	number := s.next()
	if err := s.settle(ctx); err != nil {
		return 0, err
	}
	if s.last().Number != number {
		return 0, fmt.Errorf("seal %d was abandoned: the TPM was reset while it was made", number)
	}
	return number, nil
}

func (s *Sealer) statement(heads []attest.Head, a attest.Signed, before record.Hash, reason string, nonce []byte) ([]byte, error) {
	last := s.last()
	st := attest.Statement{
		Counter:   attest.StatementCounter{Attest: sha256.Sum256(a.Attest), Name: s.state.Enrolment.Counter.Name},
		Logs:      heads,
		Number:    s.next(),
		PCR:       attest.StatementPCR{Before: before, Index: s.state.Enrolment.PCR},
		Previous:  last.Quote,
		Reason:    reason,
		Software:  s.cfg.Software,
		Nonce:     nonce,
		Abandoned: s.state.Abandoned,
		V:         1,
	}
	b, err := st.Encode()
	if err != nil {
		return nil, fmt.Errorf("making the statement: %w", err)
	}
	return b, nil
}

// increment moves the counter on where that is due. A value that an earlier intent reached, and that no seal has used, is used
// first: between consecutive seals the counter grows by 0 or 1.
func (s *Sealer) increment(ctx context.Context, now *found, reason string) error {
	value := now.counter
	due := reason == ReasonStart || reason == ReasonStop || s.incrementDue() || now.anew || s.state.Last == nil
	if !now.used && s.incremented.IsZero() {
		s.incremented = time.Now() // by an earlier attempt: the next is due from here
	}
	if !due || !now.used {
		return nil
	}
	s.state.Intent = value + 1
	if err := s.save(); err != nil {
		return err
	}
	if err := s.cfg.TPM.Increment(ctx); err != nil && !errors.Is(err, attest.ErrUnknown) {
		return fmt.Errorf("incrementing the counter: %w", err)
	}
	switch again, err := s.cfg.TPM.Counter(ctx); {
	case err != nil:
		return fmt.Errorf("reading the counter: %w", err)
	case again != value+1:
		return fmt.Errorf("incrementing the counter: it is at %d, not %d", again, value+1)
	}
	s.incremented = time.Now()
	return nil
}

// settle finishes the pending seal, if there is one, wherever it stopped.
func (s *Sealer) settle(ctx context.Context) error {
	p := s.state.Pending
	if p == nil {
		return nil
	}
	st, err := attest.ParseStatement(p.Statement)
	if err != nil {
		return fmt.Errorf("the pending seal: %w", err)
	}
	if err := s.hold(st); err != nil {
		return err
	}
	if p.Quote == nil {
		if done, err := s.quote(ctx, p, st); err != nil || done {
			return err
		}
	}
	return s.publish(ctx, p, st)
}

// quote takes the pending seal from its statement to its quote. It is done, without one, when the machine was reset in between.
func (s *Sealer) quote(ctx context.Context, p *pendingSeal, st *attest.Statement) (abandoned bool, err error) {
	certified, err := attest.ParseCertify(p.Counter.Attest)
	if err != nil {
		return false, fmt.Errorf("the pending seal: %w", err)
	}
	clock, err := s.cfg.TPM.Clock(ctx)
	if err != nil {
		return false, fmt.Errorf("reading the TPM's clock: %w", err)
	}
	if clock.ResetCount != certified.Clock.ResetCount {
		return true, s.abandonPending(p)
	}
	digest := sha256.Sum256(p.Statement)
	extended := attest.ExtendPCR(st.PCR.Before, digest)
	now, err := s.cfg.TPM.PCR(ctx, st.PCR.Index)
	if err != nil {
		return false, fmt.Errorf("reading the seal PCR: %w", err)
	}
	// 4. Extend, once.
	if now == st.PCR.Before {
		if err := s.cfg.TPM.Extend(ctx, st.PCR.Index, digest); err != nil && !errors.Is(err, attest.ErrUnknown) {
			return false, fmt.Errorf("extending the seal PCR: %w", err)
		}
		if now, err = s.cfg.TPM.PCR(ctx, st.PCR.Index); err != nil {
			return false, fmt.Errorf("reading the seal PCR: %w", err)
		}
	}
	if now != extended {
		// Unless PCRs began anew while this went on: the machine was reset, or hibernated.
		if clock, err = s.cfg.TPM.Clock(ctx); err != nil {
			return false, fmt.Errorf("reading the TPM's clock: %w", err)
		}
		hibernated := clock.RestartCount != certified.Clock.RestartCount && (now == record.Hash{} || now == attest.ExtendPCR(record.Hash{}, digest))
		if clock.ResetCount != certified.Clock.ResetCount || hibernated {
			return true, s.abandonPending(p)
		}
		return false, fmt.Errorf("%w: PCR %d is neither before nor after the pending seal %d: another program extends it, or an old file was put back", ErrRollback, st.PCR.Index, st.Number)
	}
	// 5. Quote.
	q, err := s.cfg.TPM.Quote(ctx, s.selection(st), digest)
	if err != nil {
		return false, fmt.Errorf("quoting: %w", err)
	}
	quoted, err := attest.ParseQuote(q.Attest)
	if err != nil {
		return false, fmt.Errorf("quoting: %w", err)
	}
	if quoted.Clock.ResetCount != certified.Clock.ResetCount {
		return true, s.abandonPending(p)
	}
	p.Quote = &q
	if err := s.save(); err != nil {
		p.Quote = nil
		return false, err
	}
	return false, nil
}

// selection are the PCRs that a seal quotes: those of the policy, and at a start those of boot.
func (s *Sealer) selection(st *attest.Statement) []int {
	if st.Reason != ReasonStart {
		return s.cfg.Policy().PCRs
	}
	all := slices.Concat(s.cfg.Policy().PCRs, s.cfg.Boot)
	slices.Sort(all)
	return slices.Compact(all)
}

// abandonPending gives up a seal that a reset of the machine interrupted. The next one lists it.
func (s *Sealer) abandonPending(p *pendingSeal) error {
	list, err := attest.Abandon(p.Statement, p.Counter)
	if err != nil {
		return fmt.Errorf("the pending seal: %w", err)
	}
	s.state.Abandoned, s.state.Pending = list, nil
	return s.save()
}

// publish appends the seal to every log that does not have it, and is then done with it.
func (s *Sealer) publish(ctx context.Context, p *pendingSeal, st *attest.Statement) error {
	body, err := (&attest.Seal{Counter: p.Counter, Quote: p.Quote.Signed, PCRs: p.Quote.PCRs, Statement: p.Statement}).Encode()
	if err != nil {
		return fmt.Errorf("encoding seal %d: %w", st.Number, err)
	}
	for _, l := range s.cfg.Logs {
		last, _, err := s.sealIn(l)
		if err != nil {
			return err
		}
		if last == nil || last.Number < st.Number {
			if _, err := l.Record(ctx, record.KindSeal, body); err != nil {
				return fmt.Errorf("recording seal %d: %w", st.Number, err)
			}
		}
	}
	last, err := s.describe(body)
	if err != nil {
		return err
	}
	last.Saved = s.last().Saved
	if before := s.last(); last.Counter != before.Counter && last.Resets == before.Resets {
		last.Saved = before.Clock // the TPM saved it with the counter
	}
	s.published = body
	s.state.Last, s.state.Pending, s.state.Abandoned, s.state.Intent = last, nil, nil, 0
	if err := s.save(); err != nil {
		return err
	}
	for _, l := range s.cfg.Logs {
		s.sizes[l.Origin()] = l.Size()
	}
	s.statusMu.Lock()
	s.status.Number, s.status.Counter, s.status.At = last.Number, last.Counter, time.Now()
	s.statusMu.Unlock()
	s.holdAll(nil)
	return nil
}

// heads are the committed heads of all logs, by name.
func (s *Sealer) heads() []attest.Head {
	var out []attest.Head
	for _, l := range s.cfg.Logs {
		c := l.Head()
		out = append(out, attest.Head{Hash: sha256.Sum256([]byte(c.Text())), Log: c.Origin, Size: c.Size})
	}
	slices.SortFunc(out, func(a, b attest.Head) int { return strings.Compare(a.Log, b.Log) })
	return out
}
