package ledger

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"bulla/attest"
	"bulla/ceremony"
	"bulla/record"
)

// Reasons of a seal, as its statement gives them.
const (
	ReasonStart     = "start"     // the daemon began to serve
	ReasonStop      = "stop"      // the daemon ends in order
	ReasonInterval  = "interval"  // new entries since the last seal
	ReasonIncrement = "increment" // the counter was due
	ReasonDemand    = "demand"    // an operator asked
	ReasonChallenge = "challenge" // an auditor asked, with a nonce
)

var (
	// ErrRollback means that the store is older than what the TPM attested: an old file was put back.
	ErrRollback = errors.New("the store is older than its TPM")
	// ErrUncovered means that a log that the sealer covers is missing.
	ErrUncovered = errors.New("a sealed log is missing")
)

// SealerConfig is what a sealer works with.
type SealerConfig struct {
	Path     string                     // the sealer's durable file
	TPM      attest.TPM                 // attached to the enrolment that governs the logs; nil: it is not there, as Foreign says
	Foreign  error                      // why the TPM cannot be attached to: no seal is made and no event taken until another is enrolled
	Logs     []*Ledger                  // every log of the daemon
	Policy   func() ceremony.SealPolicy // that governs now
	Software attest.Software            // the daemon's claim about itself
	// Boot are further PCRs that the first seal of a start quotes, ascending: what was measured while the machine started, and since.
	Boot []int
	// Started is told the first seal of the start, the body of its entry, when every log has it; it must not wait. Nil: not told.
	Started func(seal []byte)
}

// Sealer has the machine's TPM attest the heads of all logs of the daemon, as DESIGN section 7 in docs/formats.md describes. There is
// one a machine; it works beside the append path and never on it.
//
// Its order is: intent, increment; certify the counter; statement, stored; extend; quote, stored; append to every log; done. At any
// point the process may end, or the TPM's answer may be lost: Settle finds out from the TPM how far it came, and finishes it.
type Sealer struct {
	cfg SealerConfig

	mu          sync.Mutex // one seal at a time
	state       sealerState
	sizes       map[string]uint64 // each log's size behind its last seal
	incremented time.Time         // when the counter last grew; zero: not by this process
	started     bool              // this process has made the seal of its start
	published   []byte            // body of the last seal
	rollback    *Refusal          // once found, no seal is made any more

	statusMu sync.Mutex
	status   SealerStatus

	wake      chan struct{}
	recovered chan struct{} // a rollback has ended
	enrolled  chan struct{} // a TPM was enrolled
}

// SealerStatus is how sealing goes.
type SealerStatus struct {
	Number    uint64    // of the last seal
	At        time.Time // when it was made, by the system's clock; zero: none since the start
	Counter   uint64
	Pending   bool
	Rollback  string // what shows that the store is older than its TPM
	LastError string
}

// Status returns a snapshot.
func (s *Sealer) Status() SealerStatus {
	s.statusMu.Lock()
	defer s.statusMu.Unlock()
	return s.status
}

// OpenSealer reads the sealer's file, which Cover made, and checks that every log it covers is there. It asks nothing of the TPM yet.
func OpenSealer(cfg SealerConfig) (*Sealer, error) {
	s := &Sealer{cfg: cfg, sizes: map[string]uint64{}, wake: make(chan struct{}, 1), recovered: make(chan struct{}, 1), enrolled: make(chan struct{}, 1)}
	st, err := readSealer(cfg.Path)
	if err != nil {
		return nil, err
	}
	if st == nil {
		return nil, fmt.Errorf("the sealer's file %s is missing: it was made with the first log, and the TPM remembers more than it", cfg.Path)
	}
	s.state = *st
	if err := s.follow(); err != nil {
		return nil, err
	}
	open := map[string]bool{}
	for _, l := range cfg.Logs {
		open[l.Origin()] = true
	}
	for _, covered := range s.state.Logs {
		if !open[covered] {
			return nil, fmt.Errorf("%w: %s is covered by the seals in %s; configure it again, or close it by ceremony", ErrUncovered, covered, cfg.Path)
		}
	}
	for origin := range open {
		if !slices.Contains(s.state.Logs, origin) {
			return nil, fmt.Errorf("log %s is not covered by the seals in %s: it was made without a TPM, or for another machine", origin, cfg.Path)
		}
	}
	return s, nil
}

// Run seals until ctx ends. Events are refused until what an earlier process left has been settled and the store has been compared
// with the TPM; later, a TPM that fails leaves them unharmed for as long as policy allows.
func (s *Sealer) Run(ctx context.Context) error {
	if !s.waitEnrolled(ctx) {
		return nil
	}
	s.holdAll(&Refusal{Code: record.CodeTPM, Message: "the last seal is being settled with the TPM", RetryAfter: time.Second})
	s.start(ctx)
	tick := time.NewTicker(min(time.Duration(s.cfg.Policy().Interval), time.Second))
	defer tick.Stop()
	last := time.Now()
	sealed, alarmed := last, false // all that there was then was sealed; events are refused since it is too long ago
	for {
		var reason string
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			reason = s.due(time.Since(last) >= time.Duration(s.cfg.Policy().Interval))
		case <-s.wake:
			reason = ReasonDemand
		}
		if reason != "" {
			last = time.Now()
			if _, err := s.Seal(ctx, reason, nil); errors.Is(err, ErrRollback) {
				s.rolledBack(ctx)
			}
		}
		if s.Status().LastError == "" { // sealed, or nothing was waiting for a seal
			sealed = time.Now()
		}
		limit := time.Duration(s.cfg.Policy().Unsealed)
		switch overdue := limit > 0 && time.Since(sealed) > limit; {
		case overdue:
			why := fmt.Sprintf("no seal for more than %v: %s", limit, s.Status().LastError)
			s.holdAll(&Refusal{Code: record.CodeUnsealed, Message: why, RetryAfter: 10 * time.Second})
			if !alarmed {
				alarmed = s.say(ctx, &record.System{Event: record.SystemAlarm, Code: record.CodeUnsealed, Message: clip(why)}) == nil
			}
		case alarmed:
			alarmed = s.say(ctx, &record.System{Event: record.SystemRecovery, Code: record.CodeUnsealed}) != nil
		}
	}
}

// sayTime bounds how long an alarm waits to be recorded: seals must go on meanwhile.
const sayTime = 5 * time.Second

// say records something of the sealer's in every log.
func (s *Sealer) say(ctx context.Context, what *record.System) error {
	ctx, cancel := context.WithTimeout(ctx, sayTime)
	defer cancel()
	body, err := record.MarshalCanonical(what)
	if err != nil {
		return err
	}
	for _, l := range s.cfg.Logs {
		if _, err := l.Record(ctx, record.KindSystem, body); err != nil {
			return fmt.Errorf("recording %s: %w", what.Event, err)
		}
	}
	return nil
}

// start settles what was left, compares store and TPM, and makes the first seal. It tries until it knows.
func (s *Sealer) start(ctx context.Context) {
	for ctx.Err() == nil {
		err := s.begin(ctx)
		if err == nil {
			s.holdAll(nil)
			if _, err = s.Seal(ctx, ReasonStart, nil); !errors.Is(err, ErrRollback) {
				return // without a seal, policy's time runs from here
			}
		}
		if errors.Is(err, ErrRollback) {
			s.rolledBack(ctx)
			continue
		}
		s.note(err)
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

func (s *Sealer) begin(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.settle(ctx); err != nil {
		return s.stuck(err)
	}
	return s.stuck(s.judge(ctx))
}

// stuck keeps a rollback: it does not pass by itself, and Run must hear of what others' seals find.
func (s *Sealer) stuck(err error) error {
	if !errors.Is(err, ErrRollback) {
		return err
	}
	if s.rollback == nil {
		s.rollback = &Refusal{Code: record.CodeRollback, Err: err, Message: err.Error() + "; put the newer files back, or have the officers declare what they held lost: bulla ceremony propose recovery.declare"}
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
	return s.rollback
}

// rolledBack refuses events until a recovery ends it, or ctx. Reads go on, and the alarm is in the log.
func (s *Sealer) rolledBack(ctx context.Context) {
	s.mu.Lock()
	r := s.rollback
	s.mu.Unlock()
	if r == nil {
		return // it has ended already
	}
	s.holdAll(r)
	why := r.Err.Error()
	s.statusMu.Lock()
	s.status.Rollback = why
	s.statusMu.Unlock()
	for {
		err := s.say(ctx, &record.System{Event: record.SystemAlarm, Code: record.CodeRollback, Message: clip(why)})
		var again <-chan time.Time
		if err != nil {
			s.note(err)
			again = time.After(sayTime) // the alarm must be in the log once it can be
		}
		select {
		case <-ctx.Done():
			return
		case <-s.recovered:
			s.note(nil)
			s.holdAll(nil)
			return
		case <-again:
		}
	}
}

// due says why a seal is due, or nothing.
func (s *Sealer) due(interval bool) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.incrementDue():
		return ReasonIncrement
	case !interval:
		return ""
	case !s.started: // the TPM did not answer then
		return ReasonStart
	case s.state.Pending != nil || s.Status().LastError != "":
		return ReasonInterval
	}
	for _, l := range s.cfg.Logs {
		if l.Size() > s.sizes[l.Origin()] {
			return ReasonInterval
		}
	}
	return ""
}

func (s *Sealer) incrementDue() bool {
	return !s.incremented.IsZero() && time.Since(s.incremented) >= time.Duration(s.cfg.Policy().Increment)
}

// note keeps the last error for the status; nil clears it.
func (s *Sealer) note(err error) {
	s.statusMu.Lock()
	defer s.statusMu.Unlock()
	s.status.LastError = ""
	if err != nil {
		s.status.LastError = err.Error()
	}
}

func (s *Sealer) holdAll(r *Refusal) {
	for _, l := range s.cfg.Logs {
		l.Hold(r)
	}
}

func clip(s string) string { return s[:min(len(s), record.MaxMessage)] }
