// Package attest is the evidence that binds log heads to a machine: what a TPM 2.0 is asked to sign, how it is recorded, and how an
// auditor checks it. It makes and checks bytes; package tpm talks to the device, and the ledger's sealer says when.
//
//	attest.go   what is recorded: enrolment, statement, seal
//	tpms.go     the TPM's own structures, parsed strictly (TPM 2.0 Library, Part 2)
//	check.go    one seal by itself, and seals in the order of a log; checkboot.go how a TPM goes on between two
//	recovery.go what a log goes on from when its store was put back
//	ek.go       endorsement keys, and the credential that ties an attestation key to one
//	activate.go the documents of credential activation      challenge.go  the answer to a live challenge
//	eventlog.go what was measured while the machine started, replayed; eventlogima.go what the kernel measured since
//	files.go    the same evidence as files, for standard tools
//
// A seal is two signatures by the attestation key (AK), a restricted key that signs only what the TPM itself says. A is NV_Certify of
// the machine's counter over the hash of the logs' heads. Q is a quote of PCRs, over the hash of a statement that names A, the heads,
// and the quote before; the statement's hash was extended into one of the quoted PCRs first. So the heads are bound to a counter
// that cannot go back, and to a PCR whose value commits to every statement since the machine was started.
package attest

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"

	"bulla/record"
)

// ErrUnknown is wrapped by errors of commands that may have taken effect: the answer was lost. Ask the TPM how it is before repeating.
var ErrUnknown = errors.New("the TPM may have executed the command")

// TPM is what a sealer needs of an enrolled TPM; package tpm has it.
type TPM interface {
	// Increment moves the enrolled counter on by one (TPM2_NV_Increment).
	Increment(ctx context.Context) error
	// Counter reads it (TPM2_NV_Read).
	Counter(ctx context.Context) (uint64, error)
	// CertifyCounter signs its value (TPM2_NV_Certify) with extra as the qualifying data.
	CertifyCounter(ctx context.Context, extra [32]byte) (Signed, error)
	// PCR reads one PCR of the SHA-256 bank.
	PCR(ctx context.Context, index int) (record.Hash, error)
	// Extend extends it (TPM2_PCR_Extend).
	Extend(ctx context.Context, index int, digest [32]byte) error
	// Quote signs the selected PCRs (TPM2_Quote) with extra as the qualifying data, and reads their values.
	Quote(ctx context.Context, selection []int, extra [32]byte) (Quoted, error)
	// Clock reads the TPM's clock and its counts of resets and restarts (TPM2_ReadClock).
	Clock(ctx context.Context) (ClockInfo, error)
}

// Signed is an attestation as the TPM made it: TPMS_ATTEST and TPMT_SIGNATURE, without size prefixes.
type Signed struct {
	Attest    []byte `json:"attest"`
	Signature []byte `json:"signature"`
}

// Quoted is a quote with the values of the PCRs that it is over, in ascending order.
type Quoted struct {
	Signed
	PCRs []PCRValue `json:"pcrs"`
}

// PCRValue is the value of a PCR in the SHA-256 bank.
type PCRValue struct {
	Index int         `json:"index"`
	Value record.Hash `json:"value"`
}

// ClockInfo is the TPM's clock (TPMS_CLOCK_INFO): milliseconds with power, and what happened since TPM2_Clear.
type ClockInfo struct {
	Clock        uint64
	ResetCount   uint32
	RestartCount uint32
	Safe         bool // no greater clock was ever reported before
}

// Enrolment is how an auditor comes to trust a TPM, recorded in the genesis: the attestation key with the certificates of the
// endorsement key beside it, the counter, and from where replay begins.
type Enrolment struct {
	AK             []byte      `json:"ak"`              // TPMT_PUBLIC
	AKName         []byte      `json:"ak_name"`         // TPM2B_NAME without size: 0x000B || SHA-256(AK)
	Base           record.Hash `json:"base"`            // seal PCR when the log was made
	ClockUpdate    uint32      `json:"clock_update"`    // how often the TPM saves its clock, ms: by so much power cuts may set it back
	Counter        Counter     `json:"counter"`         // as it was then
	EK             []byte      `json:"ek"`              // TPMT_PUBLIC of the endorsement key
	EKCertificates [][]byte    `json:"ek_certificates"` // DER, the endorsement key's first, then its chain as far as known
	Firmware       string      `json:"firmware"`        // as the TPM says
	Manufacturer   string      `json:"manufacturer"`
	Model          string      `json:"model"`
	PCR            int         `json:"pcr"`               // the seal PCR
	Previous       record.Hash `json:"previous,omitzero"` // SHA-256 of the quote of seal number Seal; absent with none
	Protection     *Protection `json:"protection,omitempty"`
	Seal           uint64      `json:"seal"` // number of the machine's last seal before this log; 0: none
}

// Protection says who can change the TPM itself, as it was when the log was made and as the TPM said.
type Protection struct {
	Clear       string `json:"clear"`       // TPM2_Clear by who has the lockout authorisation
	Endorsement string `json:"endorsement"` // open: the daemon needs it, unattended, for endorsement keys
	Lockout     string `json:"lockout"`
	Owner       string `json:"owner"`    // who can remove the attestation key and the counter, and define it anew above its value
	Platform    string `json:"platform"` // firmware's; who has it can do all of it, and allow TPM2_Clear again
}

// What Protection says of each.
const (
	AccessOpen     = "open"     // to every program that may use the TPM
	AccessClosed   = "closed"   // to everybody
	AccessOfficers = "officers" // closed by an authorisation that officers have, as the TPM confirmed
	AccessOthers   = "others"   // closed by an authorisation that was set before and not shown when the log was made
)

// Counter is the machine's NV counter.
type Counter struct {
	Index uint32 `json:"index"`        // NV index
	Name  []byte `json:"name"`         // its Name once written
	Value uint64 `json:"value,string"` // at enrolment
}

// Statement is what a quote attests: DESIGN section 7 in docs/formats.md. Its hash is the quote's qualifying data.
type Statement struct {
	Abandoned []Abandoned      `json:"abandoned,omitempty"`
	Counter   StatementCounter `json:"counter"`
	Logs      []Head           `json:"logs"` // by name
	Nonce     []byte           `json:"nonce,omitempty"`
	Number    uint64           `json:"number"`
	PCR       StatementPCR     `json:"pcr"`
	Previous  record.Hash      `json:"previous"` // SHA-256 of the last seal's quote (TPMS_ATTEST); zero: there was none
	Reason    string           `json:"reason"`
	Software  Software         `json:"software"`
	V         int              `json:"v"`
}

// StatementCounter binds the certified counter to the statement.
type StatementCounter struct {
	Attest record.Hash `json:"attest"` // SHA-256 of A's TPMS_ATTEST
	Name   []byte      `json:"name"`   // the counter's Name
}

// StatementPCR is the seal PCR before the statement's hash was extended into it.
type StatementPCR struct {
	Before record.Hash `json:"before"`
	Index  int         `json:"index"`
}

// Head is the signed head of a log: SHA-256 of its checkpoint's text.
type Head struct {
	Hash record.Hash `json:"hash"`
	Log  string      `json:"log"`
	Size uint64      `json:"size"`
}

// Software is the daemon's claim about itself. Only boot and IMA PCRs could prove it.
type Software struct {
	Config record.Hash `json:"config"` // SHA-256 of the configuration file
	Exe    record.Hash `json:"exe"`    // SHA-256 of the executable
}

// Abandoned is a seal that a reset of the machine interrupted before it was quoted.
type Abandoned struct {
	Attest    []byte          `json:"attest"`    // A
	Signature []byte          `json:"signature"` // A's
	Statement json.RawMessage `json:"statement"` // without its own list, which is what comes before it in this one
}

// Abandon is the list of abandoned seals for the next statement, after the machine was reset before a statement was quoted: what it
// listed, and itself. a is the attestation of the counter that it names.
func Abandon(statement []byte, a Signed) ([]Abandoned, error) {
	s, err := ParseStatement(statement)
	if err != nil {
		return nil, err
	}
	list := s.Abandoned
	s.Abandoned = nil
	b, err := s.Encode()
	if err != nil {
		return nil, err
	}
	return append(list, Abandoned{Attest: a.Attest, Signature: a.Signature, Statement: b}), nil
}

// Seal is the body of an entry of kind seal.
type Seal struct {
	Counter   Signed          `json:"counter"`
	PCRs      []PCRValue      `json:"pcrs"`
	Quote     Signed          `json:"quote"`
	Statement json.RawMessage `json:"statement"`
}

// Bounds of what a seal may hold.
const (
	maxLogs      = 256
	maxAbandoned = 64
	maxReason    = 64
	maxNonce     = 64
	nameSize     = 2 + sha256.Size // of a TPM's Name for something: the hash algorithm's identifier and the hash
)

// HeadsHash is the qualifying data of A: SHA-256 of the canonical JSON of a statement's logs.
func HeadsHash(logs []Head) ([32]byte, error) {
	b, err := record.MarshalCanonical(logs)
	if err != nil {
		return [32]byte{}, fmt.Errorf("encoding heads: %w", err)
	}
	return sha256.Sum256(b), nil
}

// ExtendPCR is the value of a PCR after digest is extended into it (Part 1, section 17.2).
func ExtendPCR(value record.Hash, digest [32]byte) record.Hash {
	return sha256.Sum256(append(value[:], digest[:]...))
}

// Encode returns the statement's one encoding.
func (s *Statement) Encode() ([]byte, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	return record.MarshalCanonical(s)
}

// ParseStatement reads a statement; it accepts what Encode makes and nothing else.
func ParseStatement(b []byte) (*Statement, error) {
	s := new(Statement)
	if err := record.UnmarshalCanonical(b, s); err != nil {
		return nil, fmt.Errorf("statement: %w", err)
	}
	return s, s.check()
}

func (s *Statement) check() error {
	switch {
	case s.V != 1:
		return fmt.Errorf("statement: v is %d, not 1", s.V)
	case s.Number == 0 || s.Number > record.MaxInt:
		return fmt.Errorf("statement: number %d is not 1 to 2^53-1", s.Number)
	case len(s.Logs) == 0 || len(s.Logs) > maxLogs:
		return fmt.Errorf("statement: %d logs are not 1 to %d", len(s.Logs), maxLogs)
	case len(s.Abandoned) > maxAbandoned:
		return fmt.Errorf("statement: %d abandoned seals are more than %d", len(s.Abandoned), maxAbandoned)
	case s.Reason == "" || len(s.Reason) > maxReason:
		return fmt.Errorf("statement: the reason has %d bytes, not 1 to %d", len(s.Reason), maxReason)
	case len(s.Nonce) > maxNonce:
		return fmt.Errorf("statement: the nonce has %d bytes, more than %d", len(s.Nonce), maxNonce)
	case len(s.Counter.Name) != nameSize:
		return fmt.Errorf("statement: the counter's name has %d bytes, not %d", len(s.Counter.Name), nameSize)
	case s.PCR.Index < 0 || s.PCR.Index > 23:
		return fmt.Errorf("statement: PCR %d does not exist", s.PCR.Index)
	}
	for i, h := range s.Logs {
		if err := record.CheckOrigin(h.Log); err != nil {
			return fmt.Errorf("statement: logs[%d]: %w", i, err)
		}
		if i > 0 && h.Log <= s.Logs[i-1].Log {
			return fmt.Errorf("statement: logs[%d]: %q is not after %q", i, h.Log, s.Logs[i-1].Log)
		}
	}
	return nil
}

// Encode returns the body of the seal's entry.
func (s *Seal) Encode() ([]byte, error) { return record.MarshalCanonical(s) }

// ParseSeal reads the body of an entry of kind seal.
func ParseSeal(body []byte) (*Seal, error) {
	s := new(Seal)
	if err := record.UnmarshalCanonical(body, s); err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	if len(s.PCRs) == 0 || len(s.PCRs) > 24 {
		return nil, fmt.Errorf("seal: %d PCRs are not 1 to 24", len(s.PCRs))
	}
	for i, p := range s.PCRs {
		if p.Index < 0 || p.Index > 23 || i > 0 && p.Index <= s.PCRs[i-1].Index {
			return nil, fmt.Errorf("seal: pcrs[%d]: index %d is out of order", i, p.Index)
		}
	}
	return s, nil
}
