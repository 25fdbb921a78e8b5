package ledger

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"bulla/attest"
	"bulla/ceremony"
	"bulla/internal/durable"
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
	Path     string     // the sealer's durable file
	TPM      attest.TPM // attached to the enrolment that Enrolled returns
	Logs     []*Ledger  // every log of the daemon
	Policy   ceremony.SealPolicy
	Software attest.Software // the daemon's claim about itself
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

	statusMu sync.Mutex
	status   SealerStatus

	wake chan struct{}
}

// sealerState is the sealer's file.
type sealerState struct {
	Enrolment *attest.Enrolment  `json:"enrolment"`
	Logs      []string           `json:"logs"` // origins covered
	Last      *lastSeal          `json:"last,omitzero"`
	Intent    uint64             `json:"intent,omitzero"` // the counter may have been incremented to this value and not be sealed yet
	Pending   *pendingSeal       `json:"pending,omitzero"`
	Abandoned []attest.Abandoned `json:"abandoned,omitzero"`
}

// lastSeal is what the next seal follows on.
type lastSeal struct {
	Clock   uint64      `json:"clock"` // TPM clock, ms
	Counter uint64      `json:"counter"`
	Number  uint64      `json:"number"`
	PCR     record.Hash `json:"pcr"`   // the seal PCR after it
	Quote   record.Hash `json:"quote"` // SHA-256 of its quote
	Resets  uint32      `json:"resets"`
}

// pendingSeal is a seal whose statement stands; Quote is there once the TPM has made it.
type pendingSeal struct {
	Counter   attest.Signed   `json:"counter"`
	Quote     *attest.Quoted  `json:"quote,omitzero"`
	Statement json.RawMessage `json:"statement"`
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
	s := &Sealer{cfg: cfg, sizes: map[string]uint64{}, wake: make(chan struct{}, 1)}
	st, err := readSealer(cfg.Path)
	if err != nil {
		return nil, err
	}
	if st == nil {
		return nil, fmt.Errorf("the sealer's file %s is missing: it was made with the first log, and the TPM remembers more than it", cfg.Path)
	}
	s.state = *st
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
	s.holdAll(&Refusal{Code: record.CodeTPM, Message: "the last seal is being settled with the TPM", RetryAfter: time.Second})
	if err := s.start(ctx); err != nil {
		return err
	}
	interval := time.Duration(s.cfg.Policy.Interval)
	tick := time.NewTicker(min(interval, time.Second))
	defer tick.Stop()
	sealed := time.Now()
	last := sealed
	for {
		var reason string
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			reason = s.due(time.Since(last) >= interval)
		case <-s.wake:
			reason = ReasonDemand
		}
		if reason != "" {
			last = time.Now()
			if _, err := s.Seal(ctx, reason, nil); err == nil {
				sealed = time.Now()
				continue
			} else if errors.Is(err, ErrRollback) {
				return s.rolledBack(ctx, err)
			}
		} else if s.Status().LastError == "" {
			sealed = time.Now() // nothing is waiting for a seal
		}
		if limit := time.Duration(s.cfg.Policy.Unsealed); limit > 0 && time.Since(sealed) > limit {
			s.holdAll(&Refusal{Code: record.CodeUnsealed, Message: fmt.Sprintf("no seal for more than %v: %s", limit, s.Status().LastError), RetryAfter: 10 * time.Second})
		}
	}
}

// start settles what was left, compares store and TPM, and makes the first seal. It tries until it knows.
func (s *Sealer) start(ctx context.Context) error {
	for {
		err := s.begin(ctx)
		switch {
		case err == nil:
			s.holdAll(nil)
			_, err = s.Seal(ctx, ReasonStart, nil)
			if errors.Is(err, ErrRollback) {
				return s.rolledBack(ctx, err)
			}
			return nil // without a seal, policy's time runs from here
		case errors.Is(err, ErrRollback):
			return s.rolledBack(ctx, err)
		}
		s.note(err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Second):
		}
	}
}

func (s *Sealer) begin(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.settle(ctx); err != nil {
		return err
	}
	return s.judge(ctx)
}

// rolledBack refuses events for good: only a recovery ends it. Reads go on, and the alarm is in the log.
func (s *Sealer) rolledBack(ctx context.Context, err error) error {
	s.holdAll(&Refusal{Code: record.CodeRollback, Message: err.Error() + "; events are refused until a recovery is recorded", Err: err})
	s.statusMu.Lock()
	s.status.Rollback = err.Error()
	s.statusMu.Unlock()
	body, err := record.MarshalCanonical(&record.System{Event: record.SystemAlarm, Code: record.CodeRollback, Message: clip(err.Error())})
	if err != nil {
		return err
	}
	for _, l := range s.cfg.Logs {
		if _, err := l.Record(ctx, record.KindSystem, body); err != nil {
			s.note(err)
		}
	}
	<-ctx.Done()
	return nil
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
	case s.state.Pending != nil:
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
	return !s.incremented.IsZero() && time.Since(s.incremented) >= time.Duration(s.cfg.Policy.Increment)
}

// Seal makes one seal over the committed heads of all logs and returns its number when every log has it durable. A nonce goes into
// the statement. What an earlier, unfinished seal left is finished first.
func (s *Sealer) Seal(ctx context.Context, reason string, nonce []byte) (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	number, err := s.seal(ctx, reason, nonce)
	s.note(err)
	return number, err
}

func (s *Sealer) seal(ctx context.Context, reason string, nonce []byte) (uint64, error) {
	if err := s.settle(ctx); err != nil {
		return 0, err
	}
	// 1. The counter, if it is due. The heads are fixed after it, so that a value covers what was there when it was reached.
	if err := s.increment(ctx, reason); err != nil {
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
	before, err := s.cfg.TPM.PCR(ctx, s.state.Enrolment.PCR)
	if err != nil {
		return 0, fmt.Errorf("reading the seal PCR: %w", err)
	}
	// 3. The statement, stored before the TPM is asked to commit to it.
	statement, err := s.statement(heads, a, before, reason, nonce)
	if err != nil {
		return 0, err
	}
	s.state.Pending = &pendingSeal{Counter: a, Statement: statement}
	if err := s.save(); err != nil {
		s.state.Pending = nil
		return 0, err
	}
	// 4. to 6. as after a restart.
	number := s.last().Number + 1
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
		Number:    last.Number + 1,
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
func (s *Sealer) increment(ctx context.Context, reason string) error {
	value, err := s.cfg.TPM.Counter(ctx)
	if err != nil {
		return fmt.Errorf("reading the counter: %w", err)
	}
	clock, err := s.cfg.TPM.Clock(ctx)
	if err != nil {
		return fmt.Errorf("reading the TPM's clock: %w", err)
	}
	last := s.last()
	used, err := s.used()
	if err != nil {
		return err
	}
	if value != used {
		if value == used+1 && s.state.Intent == value {
			return nil
		}
		return fmt.Errorf("%w: the counter is at %d, the last seal has %d", ErrRollback, value, used)
	}
	due := reason == ReasonStart || reason == ReasonStop || s.incrementDue() || s.state.Last == nil || clock.ResetCount != last.Resets
	if !due {
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
		return false, fmt.Errorf("%w: PCR %d is neither before nor after the pending seal %d: another program extends it, or an old file was put back", ErrRollback, st.PCR.Index, st.Number)
	}
	// 5. Quote.
	q, err := s.cfg.TPM.Quote(ctx, s.cfg.Policy.PCRs, digest)
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

// abandonPending gives up a seal that a reset of the machine interrupted. The next one lists it.
func (s *Sealer) abandonPending(p *pendingSeal) error {
	s.state.Abandoned = append(s.state.Abandoned, attest.Abandoned{Attest: p.Counter.Attest, Signature: p.Counter.Signature, Statement: p.Statement})
	s.state.Pending = nil
	return s.save()
}

// publish appends the seal to every log that does not have it, and is then done with it.
func (s *Sealer) publish(ctx context.Context, p *pendingSeal, st *attest.Statement) error {
	body, err := (&attest.Seal{Counter: p.Counter, Quote: p.Quote.Signed, PCRs: p.Quote.PCRs, Statement: p.Statement}).Encode()
	if err != nil {
		return fmt.Errorf("encoding seal %d: %w", st.Number, err)
	}
	for _, l := range s.cfg.Logs {
		last, err := s.lastIn(l)
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

// judge compares the store with the TPM: is the last seal that the logs hold the last that the TPM made?
func (s *Sealer) judge(ctx context.Context) error {
	for _, l := range s.cfg.Logs {
		found, err := s.lastIn(l)
		if err != nil {
			return err
		}
		if found != nil && (s.state.Last == nil || found.Number > s.state.Last.Number) {
			s.state.Last, s.state.Intent = found, found.Counter+1 // the sealer's own file is the older one; the logs are signed
		}
	}
	last := s.last()
	for _, l := range s.cfg.Logs {
		found, err := s.lastIn(l)
		if err != nil {
			return err
		}
		if since := l.State().Policy.TPM; found == nil && since != nil && since.Seal >= last.Number {
			continue // the log was made after the last seal
		}
		if found == nil || found.Number != last.Number {
			return fmt.Errorf("%w: log %s ends before seal %d", ErrRollback, l.Origin(), last.Number)
		}
	}
	used, err := s.used()
	if err != nil {
		return err
	}
	value, err := s.cfg.TPM.Counter(ctx)
	if err != nil {
		return fmt.Errorf("reading the counter: %w", err)
	}
	clock, err := s.cfg.TPM.Clock(ctx)
	if err != nil {
		return fmt.Errorf("reading the TPM's clock: %w", err)
	}
	pcr, err := s.cfg.TPM.PCR(ctx, s.state.Enrolment.PCR)
	if err != nil {
		return fmt.Errorf("reading the seal PCR: %w", err)
	}
	switch {
	case value != used && (value != used+1 || s.state.Intent != value):
		return fmt.Errorf("%w: the TPM's counter is at %d, the last seal in the logs has %d", ErrRollback, value, used)
	case s.state.Last == nil:
	case len(s.state.Abandoned) > 0: // the machine was reset since the last seal
	case clock.ResetCount == last.Resets && pcr != last.PCR:
		return fmt.Errorf("%w: PCR %d is not as the last seal in the logs left it", ErrRollback, s.state.Enrolment.PCR)
	case clock.ResetCount == last.Resets && clock.Clock < last.Clock:
		return fmt.Errorf("%w: the TPM's clock is at %d ms, the last seal in the logs has %d", ErrRollback, clock.Clock, last.Clock)
	}
	return s.save()
}

// last is what the next seal follows on: the last seal, or the enrolment.
func (s *Sealer) last() lastSeal {
	if s.state.Last != nil {
		return *s.state.Last
	}
	e := s.state.Enrolment
	return lastSeal{Counter: e.Counter.Value, Number: e.Seal, PCR: e.Base, Quote: e.Previous}
}

// used is the highest value of the counter that a seal has, abandoned ones included.
func (s *Sealer) used() (uint64, error) {
	used := s.last().Counter
	for _, a := range s.state.Abandoned {
		c, err := attest.ParseCertify(a.Attest)
		if err != nil {
			return 0, fmt.Errorf("an abandoned seal: %w", err)
		}
		used = max(used, c.Counter)
	}
	return used, nil
}

// lastIn reads the last seal in a log; nil when it has none.
func (s *Sealer) lastIn(l *Ledger) (*lastSeal, error) {
	i, ok, err := l.LastKind(record.KindSeal)
	if err != nil || !ok {
		return nil, err
	}
	entry, err := l.Entry(i)
	if err != nil {
		return nil, err
	}
	e, err := record.ParseEntry(entry)
	if err != nil {
		return nil, fmt.Errorf("entry %d of %s: %w", i, l.Origin(), err)
	}
	return s.describe(e.Body)
}

// describe extracts from a seal's body what the next one follows on.
func (s *Sealer) describe(body []byte) (*lastSeal, error) {
	seal, err := attest.ParseSeal(body)
	if err != nil {
		return nil, fmt.Errorf("reading a seal: %w", err)
	}
	st, err := attest.ParseStatement(seal.Statement)
	if err != nil {
		return nil, fmt.Errorf("reading a seal: %w", err)
	}
	certified, err := attest.ParseCertify(seal.Counter.Attest)
	if err != nil {
		return nil, fmt.Errorf("reading seal %d: %w", st.Number, err)
	}
	quoted, err := attest.ParseQuote(seal.Quote.Attest)
	if err != nil {
		return nil, fmt.Errorf("reading seal %d: %w", st.Number, err)
	}
	return &lastSeal{
		Clock:   quoted.Clock.Clock,
		Counter: certified.Counter,
		Number:  st.Number,
		PCR:     attest.ExtendPCR(st.PCR.Before, sha256.Sum256(seal.Statement)),
		Quote:   sha256.Sum256(seal.Quote.Attest),
		Resets:  quoted.Clock.ResetCount,
	}, nil
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

// save makes the sealer's state durable.
func (s *Sealer) save() error {
	b, err := record.MarshalCanonical(&s.state)
	if err != nil {
		return fmt.Errorf("encoding the sealer's file: %w", err)
	}
	if err := durable.Replace(s.cfg.Path, b, 0o600); err != nil {
		return fmt.Errorf("the sealer's file: %w", err)
	}
	s.statusMu.Lock()
	s.status.Pending = s.state.Pending != nil
	s.statusMu.Unlock()
	return nil
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

// Enrolled returns the enrolment that a further log of the machine shares, as of the last seal, from the sealer's file; nil when the
// machine has none yet. It is an error while a seal is pending: serve settles it.
func Enrolled(path string) (*attest.Enrolment, error) {
	st, err := readSealer(path)
	if err != nil || st == nil || st.Enrolment == nil {
		return nil, err
	}
	if st.Pending != nil {
		return nil, fmt.Errorf("a seal is pending in %s: run bullad serve until it is settled, stop it, and try again", path)
	}
	e := *st.Enrolment
	if l := st.Last; l != nil {
		e.Counter.Value, e.Seal, e.Previous, e.Base = l.Counter, l.Number, l.Quote, l.PCR
	}
	return &e, nil
}

// Cover adds a new log to those that the machine's seals cover.
func Cover(path, origin string, e *attest.Enrolment) error {
	st, err := readSealer(path)
	if err != nil {
		return err
	}
	if st == nil {
		st = &sealerState{Enrolment: e}
	}
	st.Logs = append(st.Logs, origin)
	slices.Sort(st.Logs)
	b, err := record.MarshalCanonical(st)
	if err != nil {
		return fmt.Errorf("encoding the sealer's file: %w", err)
	}
	return durable.Replace(path, b, 0o600)
}

// readSealer reads the sealer's file; nil when there is none.
func readSealer(path string) (*sealerState, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the sealer's file: %w", err)
	}
	st := new(sealerState)
	if err := record.UnmarshalCanonical(b, st); err != nil {
		return nil, fmt.Errorf("reading the sealer's file %s: %w", path, err)
	}
	return st, nil
}
