// Package ceremony holds the governance of a log: who may do what, and how that changes.
//
// State is a pure fold over the log: the genesis (entry 0) makes it, each enactment changes it, and Apply refuses what was not
// authorised. The ledger folds while it writes and the verifier folds while it reads, with this same code; so an auditor who
// knows the genesis leaf hash knows everything that was ever permitted.
package ceremony

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	"bulla/attest"
	"bulla/clock"
	"bulla/record"
)

// Genesis is the body of entry 0: what the log is, who governs it and which devices it began with.
type Genesis struct {
	Clock       clock.Policy      `json:"clock"`
	Keys        []Key             `json:"keys"`
	Officers    []Officer         `json:"officers,omitempty"`
	Origin      string            `json:"origin"`
	Predecessor *Predecessor      `json:"predecessor,omitempty"`
	Quotas      Quotas            `json:"quotas"`
	Roles       []Role            `json:"roles"`
	Seal        SealPolicy        `json:"seal"`
	Software    string            `json:"software"`
	Thresholds  map[string]int    `json:"thresholds,omitempty"`
	TPM         *attest.Enrolment `json:"tpm,omitempty"`
}

// Key is a signing key of the log, as the device that made it describes it.
type Key struct {
	Algorithm  string            `json:"algorithm"`            // ecdsa-p256, ecdsa-p384, ed25519
	Attributes map[string]string `json:"attributes,omitempty"` // read back from the device: CKA_SENSITIVE, serial, firmware, ...
	Purpose    string            `json:"purpose"`              // PurposeLog or PurposeInterop
	SPKI       []byte            `json:"spki"`                 // DER SubjectPublicKeyInfo
}

// Purposes of a key.
const (
	PurposeLog     = "log"     // signs the authoritative line of every checkpoint
	PurposeInterop = "interop" // signs the additional Ed25519 line
)

// Officer is a person who takes part in ceremonies.
type Officer struct {
	Key       string `json:"key"`                  // an SSH public key in authorized_keys form, without comment
	Name      string `json:"name"`                 // unique within the log
	Touch     bool   `json:"touch,omitzero"`       // sk keys: user presence required
	Verify    bool   `json:"verify,omitzero"`      // sk keys: user verification (PIN) required
	ValidFrom string `json:"valid_from,omitempty"` // time with nine digits and Z; absent: always
	ValidTo   string `json:"valid_to,omitempty"`
}

// Role maps local users to what they may do.
type Role struct {
	Any  bool     `json:"any,omitzero"` // everyone who may open the socket
	GIDs []uint32 `json:"gids,omitempty"`
	Name string   `json:"name"`
	UIDs []uint32 `json:"uids,omitempty"`
}

// Names of roles.
const (
	Producer = "producer" // appends events
	Auditor  = "auditor"  // reads, exports, challenges
	Operator = "operator" // status, seals on demand
	Security = "officer"  // takes part in ceremonies
)

// Quotas bound what one producer (uid) may use.
type Quotas struct {
	Streams int `json:"streams"` // distinct stream ids a uid; 0: DefaultStreams
}

// DefaultStreams is the number of streams a uid may use where the policy names none.
const DefaultStreams = 10000

// SealPolicy says when and what the TPM attests. All times are in nanoseconds.
type SealPolicy struct {
	Increment int64 `json:"increment"` // the counter grows at least this often
	Interval  int64 `json:"interval"`  // a seal at least this often while there are new entries
	PCRs      []int `json:"pcrs"`      // the selection that is quoted; includes the seal PCR
	Unsealed  int64 `json:"unsealed"`  // events are refused when no seal was made for longer than this; 0: never refused
}

// DefaultSealPolicy is the policy of DESIGN.md section 7 for the given seal PCR.
func DefaultSealPolicy(sealPCR int) SealPolicy {
	selection := []int{0, 2, 4, 7, sealPCR}
	slices.Sort(selection)
	return SealPolicy{
		Increment: int64(10 * time.Minute),
		Interval:  int64(10 * time.Second),
		PCRs:      slices.Compact(selection),
		Unsealed:  int64(10 * time.Minute),
	}
}

// Predecessor names the log that this one succeeds.
type Predecessor struct {
	Origin string      `json:"origin"`
	Root   record.Hash `json:"root"`
	Size   uint64      `json:"size"`
}

// State is what governs the log before entry Next. The zero State is that of an empty log. A State is a value: Apply makes a new
// one and shares nothing that changes.
type State struct {
	Genesis record.Hash // leaf hash of entry 0: the trust root
	Next    uint64      // index of the first entry that this state does not include
	Policy  Genesis     // what is in force: the genesis as changed by enactments
}

// Apply returns the state after the entry at index s.Next, whose leaf hash is leaf. An error means that the entry is not allowed
// in this state; the state is then unchanged.
func (s State) Apply(e *record.Entry, leaf record.Hash) (State, error) {
	if e.Index != s.Next {
		return s, fmt.Errorf("entry %d cannot follow on a state of %d entries", e.Index, s.Next)
	}
	if (e.Kind == record.KindGenesis) != (e.Index == 0) {
		return s, fmt.Errorf("entry %d is of kind %s: a log has one genesis, its first entry", e.Index, e.Kind)
	}
	next := s
	next.Next++
	switch e.Kind {
	case record.KindGenesis:
		g, err := ParseGenesis(e.Body)
		if err != nil {
			return s, err
		}
		if g.Origin != e.Log {
			return s, fmt.Errorf("genesis of %q in log %q", g.Origin, e.Log)
		}
		next.Genesis, next.Policy = leaf, *g
	case record.KindEnactment, record.KindProposal, record.KindApproval:
		return s, fmt.Errorf("entry %d: no officers are appointed who could authorise an entry of kind %s", e.Index, e.Kind)
	}
	return next, nil
}

// Skip returns the state after n entries that govern nothing (events and the machine's records).
func (s State) Skip(n uint64) State {
	s.Next += n
	return s
}

// Governs reports whether an entry of the kind takes part in the fold; all others only count.
func Governs(k record.Kind) bool {
	switch k {
	case record.KindGenesis, record.KindProposal, record.KindApproval, record.KindEnactment:
		return true
	}
	return false
}

// Roles is what one caller may do.
type Roles struct{ Producer, Auditor, Operator, Officer bool }

// Roles decides what a local user may do, from the ids that the kernel proved.
func (s State) Roles(uid uint32, gids []uint32) Roles {
	var r Roles
	for _, role := range s.Policy.Roles {
		if !role.Any && !slices.Contains(role.UIDs, uid) && !slices.ContainsFunc(gids, func(g uint32) bool { return slices.Contains(role.GIDs, g) }) {
			continue
		}
		switch role.Name {
		case Producer:
			r.Producer = true
		case Auditor:
			r.Auditor = true
		case Operator:
			r.Operator = true
		case Security:
			r.Officer = true
		}
	}
	return r
}

// StreamQuota is the number of streams one uid may use.
func (s State) StreamQuota() int {
	if n := s.Policy.Quotas.Streams; n > 0 {
		return n
	}
	return DefaultStreams
}

// Key returns the public key in force for a purpose.
func (s State) Key(purpose string) (crypto.PublicKey, bool) {
	for _, k := range s.Policy.Keys {
		if k.Purpose == purpose {
			pub, err := x509.ParsePKIXPublicKey(k.SPKI)
			return pub, err == nil
		}
	}
	return nil, false
}

// VKeys are the verifier keys (C2SP signed-note) of every line that a checkpoint must carry in this state, the authoritative first.
func (s State) VKeys() ([]string, error) {
	var out []string
	for _, purpose := range []string{PurposeLog, PurposeInterop} {
		pub, ok := s.Key(purpose)
		if !ok {
			continue
		}
		v, err := record.VKey(s.Policy.Origin, pub)
		if err != nil {
			return nil, fmt.Errorf("key for %s: %w", purpose, err)
		}
		out = append(out, v)
	}
	return out, nil
}

// ParseGenesis reads and checks the body of entry 0.
func ParseGenesis(body []byte) (*Genesis, error) {
	var g Genesis
	if err := record.UnmarshalCanonical(body, &g); err != nil {
		return nil, fmt.Errorf("genesis: %w", err)
	}
	again, err := record.MarshalCanonical(&g)
	if err != nil {
		return nil, fmt.Errorf("genesis: %w", err)
	}
	if !bytes.Equal(again, body) {
		return nil, fmt.Errorf("genesis: not in its one encoding (an empty member is left out)")
	}
	if err := g.Validate(); err != nil {
		return nil, fmt.Errorf("genesis: %w", err)
	}
	return &g, nil
}

// Validate refuses a genesis that could not work, or that contradicts itself; the error names the field.
func (g *Genesis) Validate() error {
	if err := g.Clock.Validate(); err != nil {
		return fmt.Errorf("clock: %w", err)
	}
	if err := g.validateKeys(); err != nil {
		return err
	}
	if len(g.Officers) > 0 || len(g.Thresholds) > 0 {
		return fmt.Errorf("officers: ceremonies are not available; leave officers and thresholds out")
	}
	producers, officers := Role{}, Role{}
	for i, r := range g.Roles {
		switch r.Name {
		case Producer:
			producers = r
		case Security:
			officers = r
		case Auditor, Operator:
		default:
			return fmt.Errorf("roles[%d].name: %q is not one of producer, auditor, operator, officer", i, r.Name)
		}
		if slices.ContainsFunc(g.Roles[:i], func(o Role) bool { return o.Name == r.Name }) {
			return fmt.Errorf("roles[%d].name: %q is there twice", i, r.Name)
		}
		if !r.Any && len(r.UIDs) == 0 && len(r.GIDs) == 0 {
			return fmt.Errorf("roles[%d]: name uids or gids, or say any = true", i)
		}
	}
	if overlap(producers, officers) {
		return fmt.Errorf("roles: nobody may be both producer and officer")
	}
	if g.Quotas.Streams < 0 {
		return fmt.Errorf("quotas.streams: must not be negative")
	}
	return g.Seal.validate(g.TPM)
}

func (g *Genesis) validateKeys() error {
	seen := map[string]bool{}
	for i, k := range g.Keys {
		pub, err := x509.ParsePKIXPublicKey(k.SPKI)
		if err != nil {
			return fmt.Errorf("keys[%d].spki: not a DER SubjectPublicKeyInfo", i)
		}
		if _, err := record.VKey(g.Origin, pub); err != nil {
			return fmt.Errorf("keys[%d]: %w", i, err)
		}
		if k.Purpose != PurposeLog && k.Purpose != PurposeInterop || seen[k.Purpose] {
			return fmt.Errorf("keys[%d].purpose: %q is unknown or there twice", i, k.Purpose)
		}
		if k.Purpose == PurposeInterop && k.Algorithm != "ed25519" {
			return fmt.Errorf("keys[%d].algorithm: the additional line is made with ed25519", i)
		}
		if k.Purpose == PurposeLog && k.Algorithm == "ed25519" {
			return fmt.Errorf("keys[%d].algorithm: the authoritative line is made with ECDSA", i)
		}
		seen[k.Purpose] = true
	}
	if !seen[PurposeLog] {
		return fmt.Errorf("keys: there is none for %q", PurposeLog)
	}
	return nil
}

func (p SealPolicy) validate(tpm *attest.Enrolment) error {
	if p.Interval < 0 || p.Increment < 0 || p.Unsealed < 0 {
		return fmt.Errorf("seal: times must not be negative")
	}
	if tpm == nil {
		return nil
	}
	if p.Interval == 0 || p.Increment == 0 {
		return fmt.Errorf("seal: interval and increment are needed with a TPM")
	}
	if !slices.Contains(p.PCRs, tpm.PCR) || !slices.IsSorted(p.PCRs) || len(slices.Compact(slices.Clone(p.PCRs))) != len(p.PCRs) {
		return fmt.Errorf("seal.pcrs: must be ascending and include the seal PCR %d", tpm.PCR)
	}
	if p.PCRs[0] < 0 || p.PCRs[len(p.PCRs)-1] > 23 {
		return fmt.Errorf("seal.pcrs: a PCR index is 0 to 23")
	}
	return nil
}

func overlap(a, b Role) bool {
	if a.Name == "" || b.Name == "" {
		return false
	}
	return a.Any || b.Any ||
		slices.ContainsFunc(a.UIDs, func(u uint32) bool { return slices.Contains(b.UIDs, u) }) ||
		slices.ContainsFunc(a.GIDs, func(u uint32) bool { return slices.Contains(b.GIDs, u) })
}
