package ledger

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"bulla/attest"
	"bulla/internal/durable"
	"bulla/record"
)

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
	// Restarts is the TPM's count of suspensions.
	Restarts uint32 `json:"restarts,omitzero"`
	// Saved is behind what a reset does not set the TPM's clock back, ms.
	Saved uint64 `json:"saved,omitzero"`

	// Lost says that it is what a recovery found of a TPM that had gone on alone: then every log was put back.
	Lost bool `json:"lost,omitzero"`

	recovered bool // it is not a seal, but what a recovery found behind it
}

// pendingSeal is a seal whose statement stands; Quote is there once the TPM has made it.
type pendingSeal struct {
	Counter   attest.Signed   `json:"counter"`
	Quote     *attest.Quoted  `json:"quote,omitzero"`
	Statement json.RawMessage `json:"statement"`
}

// last is what the next seal follows on: the last seal, or the enrolment.
func (s *Sealer) last() lastSeal {
	if s.state.Last != nil {
		return *s.state.Last
	}
	e := s.state.Enrolment
	return lastSeal{Counter: e.Counter.Value, Number: e.Seal, PCR: e.Base, Quote: e.Previous}
}

// next is the number of the next seal: an abandoned one keeps its own.
func (s *Sealer) next() uint64 { return s.last().Number + uint64(len(s.state.Abandoned)) + 1 }

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
		Resets:  quoted.Clock.ResetCount, Restarts: quoted.Clock.RestartCount,
	}, nil
}

// save makes the sealer's state durable.
func (s *Sealer) save() error {
	if err := writeSealer(s.cfg.Path, &s.state); err != nil {
		return err
	}
	s.statusMu.Lock()
	s.status.Pending = s.state.Pending != nil
	s.statusMu.Unlock()
	return nil
}

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

// Keep makes the sealer's file of a machine that has just been enrolled, and has no log yet. It fails with fs.ErrExist when there is one.
func Keep(path string, e *attest.Enrolment) error {
	if st, err := readSealer(path); err != nil || st != nil {
		return errors.Join(fmt.Errorf("the sealer's file %s: %w", path, fs.ErrExist), err)
	}
	return writeSealer(path, &sealerState{Enrolment: e, Logs: []string{}})
}

// Covered are the logs that the machine's seals cover; none where it is not enrolled.
func Covered(path string) ([]string, error) {
	st, err := readSealer(path)
	if err != nil || st == nil {
		return nil, err
	}
	return st.Logs, nil
}

// Cover adds a new log to those that the machine's seals cover.
func Cover(path, origin string) error {
	st, err := readSealer(path)
	if err != nil {
		return err
	}
	if st == nil {
		return fmt.Errorf("the sealer's file %s: %w", path, fs.ErrNotExist)
	}
	if slices.Contains(st.Logs, origin) {
		return fmt.Errorf("the sealer's file %s: %s is covered already", path, origin)
	}
	st.Logs = append(st.Logs, origin)
	slices.Sort(st.Logs)
	return writeSealer(path, st)
}

func writeSealer(path string, st *sealerState) error {
	b, err := record.MarshalCanonical(st)
	if err != nil {
		return fmt.Errorf("encoding the sealer's file: %w", err)
	}
	if err := durable.Replace(path, b, 0o600); err != nil {
		return fmt.Errorf("the sealer's file: %w", err)
	}
	return nil
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
