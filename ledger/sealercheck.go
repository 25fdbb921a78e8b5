package ledger

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	"bulla/attest"
	"bulla/record"
)

// errReset means that nothing can be said at the moment; the next attempt finds out.
var errReset = errors.New("the TPM was reset meanwhile")

// found is how the TPM was found.
type found struct {
	counter uint64
	used    bool // a seal has this value of the counter, or an abandoned one
	clock   attest.ClockInfo
	pcr     record.Hash // the seal PCR
	anew    bool        // PCRs have begun anew since the last seal
}

// read asks the TPM how it is.
func (s *Sealer) read(ctx context.Context) (*found, error) {
	var now found
	var err error
	if now.counter, err = s.cfg.TPM.Counter(ctx); err != nil {
		return nil, fmt.Errorf("reading the counter: %w", err)
	}
	if now.clock, err = s.cfg.TPM.Clock(ctx); err != nil {
		return nil, fmt.Errorf("reading the TPM's clock: %w", err)
	}
	if now.pcr, err = s.cfg.TPM.PCR(ctx, s.state.Enrolment.PCR); err != nil {
		return nil, fmt.Errorf("reading the seal PCR: %w", err)
	}
	again, err := s.cfg.TPM.Clock(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading the TPM's clock: %w", err)
	}
	if again.ResetCount != now.clock.ResetCount || again.RestartCount != now.clock.RestartCount {
		return nil, errReset
	}
	return &now, nil
}

// look asks the TPM how it is, and compares that with the last seal by the verifier's rules. What these would call tampered is
// ErrRollback: the store was put back, or something else than this sealer used counter or PCR.
func (s *Sealer) look(ctx context.Context) (*found, error) {
	now, err := s.read(ctx)
	if err != nil {
		return nil, err
	}
	used, err := s.used()
	if err != nil {
		return nil, err
	}
	if now.used = now.counter == used; !now.used && (now.counter != used+1 || s.state.Intent != now.counter) {
		return nil, fmt.Errorf("%w: the TPM's counter is at %d, the last seal in the logs has %d", ErrRollback, now.counter, used)
	}
	boot, err := s.boot()
	if err != nil {
		return nil, err
	}
	anew, findings := boot.Follows(now.clock, now.pcr)
	now.anew = anew
	for _, f := range findings {
		return nil, fmt.Errorf("%w: PCR %d or the TPM's clock is not as the last seal in the logs left it: %s (expected %s, found %s)",
			ErrRollback, s.state.Enrolment.PCR, attest.Rules[f.Rule], f.Expected, f.Found)
	}
	return now, nil
}

// boot is what is known of the TPM since the last seal, or since the last abandoned one.
func (s *Sealer) boot() (attest.Boot, error) {
	last := s.last()
	b := attest.Boot{PCR: []record.Hash{last.PCR, {}}} // after an enrolment, which does not say in which boot it was made
	if s.state.Last != nil {
		b = attest.Boot{
			Clock: &attest.ClockInfo{Clock: last.Clock, ResetCount: last.Resets, RestartCount: last.Restarts, Safe: true},
			PCR:   []record.Hash{last.PCR}, Late: []record.Hash{{}},
		}
	}
	if len(s.state.Abandoned) > 0 {
		var err error
		if b, err = attest.Interrupted(s.state.Abandoned); err != nil {
			return b, fmt.Errorf("an abandoned seal: %w", err)
		}
	}
	b.Saved = last.Saved
	return b, nil
}

// judge compares the store with the TPM: is the last seal that the logs hold the last that the TPM made?
func (s *Sealer) judge(ctx context.Context) error {
	if err := s.adopt(); err != nil {
		return err
	}
	last := s.last()
	for _, l := range s.cfg.Logs {
		in, err := s.lastIn(l)
		if err != nil {
			return err
		}
		if last.Lost && (in == nil || !in.recovered) {
			return fmt.Errorf("%w: log %s was put back like the others, and no recovery is declared in it", ErrRollback, l.Origin())
		}
		if since := l.State().Policy.TPM; in == nil && since != nil && since.Seal >= last.Number {
			continue // the log was made after the last seal
		}
		if in == nil || in.Number != last.Number {
			return fmt.Errorf("%w: log %s ends before seal %d", ErrRollback, l.Origin(), last.Number)
		}
	}
	for _, a := range s.state.Abandoned {
		st, err := attest.ParseStatement(a.Statement)
		if err != nil {
			return fmt.Errorf("an abandoned seal: %w", err)
		}
		if err := s.hold(st); err != nil {
			return err
		}
	}
	if _, err := s.look(ctx); err != nil {
		return err
	}
	return s.save()
}

// adopt takes the last seal from the logs where the sealer's own file is the older one: the logs are signed.
func (s *Sealer) adopt() error {
	for _, l := range s.cfg.Logs {
		in, err := s.lastIn(l)
		if err != nil {
			return err
		}
		last := s.last() // a seal of a TPM that was enrolled before is none of this one's
		if in != nil && (in.Number > last.Number || in.Number == last.Number && in.recovered && !last.Lost) {
			in.Lost = in.recovered && (in.Counter != last.Counter || in.PCR != last.PCR)
			s.state.Last, s.state.Intent = in, in.Counter+1
		}
	}
	return nil
}

// hold checks that the logs hold the heads that a statement of this sealer names: it took them from there.
func (s *Sealer) hold(st *attest.Statement) error {
	for _, l := range s.cfg.Logs {
		i := slices.IndexFunc(st.Logs, func(h attest.Head) bool { return h.Log == l.Origin() })
		if i < 0 {
			continue // the log was made after it
		}
		want := st.Logs[i]
		if want.Size <= l.Size() {
			root, err := l.RootAt(want.Size)
			if err != nil {
				return fmt.Errorf("the head of %s at size %d: %w", l.Origin(), want.Size, err)
			}
			if sha256.Sum256([]byte(record.Checkpoint{Origin: l.Origin(), Size: want.Size, Root: root}.Text())) == want.Hash {
				continue
			}
		}
		return fmt.Errorf("%w: log %s does not hold the head of %d entries that seal %d is over", ErrRollback, l.Origin(), want.Size, st.Number)
	}
	return nil
}

// sealIn reads the last seal in a log, and the index of its entry; nil when it has none.
func (s *Sealer) sealIn(l *Ledger) (last *lastSeal, index uint64, err error) {
	i, ok, err := l.LastKind(record.KindSeal)
	if err != nil || !ok {
		return nil, 0, err
	}
	e, err := parsedEntry(l, i)
	if err != nil {
		return nil, 0, err
	}
	last, err = s.describe(e.Body)
	return last, i, err
}

// lastIn reads what the next seal of a log follows on: its last seal, or a recovery declared after that; nil when it has neither.
func (s *Sealer) lastIn(l *Ledger) (*lastSeal, error) {
	last, at, err := s.sealIn(l)
	if err != nil {
		return nil, err
	}
	recovery, closed, err := declared(l)
	if err != nil {
		return nil, err
	}
	if recovery != nil && (last == nil || closed > at) {
		return recovery, nil
	}
	return last, nil
}

func parsedEntry(l *Ledger, i uint64) (*record.Entry, error) {
	b, err := l.Entry(i)
	if err != nil {
		return nil, err
	}
	e, err := record.ParseEntry(b)
	if err != nil {
		return nil, fmt.Errorf("entry %d of %s: %w", i, l.Origin(), err)
	}
	return e, nil
}
