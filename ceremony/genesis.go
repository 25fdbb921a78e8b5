package ceremony

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/sha256"
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
	Clock       clock.Policy `json:"clock"`
	Keys        []Key        `json:"keys"`
	Officers    []Officer    `json:"officers,omitempty"`
	Origin      string       `json:"origin"`
	Predecessor *Predecessor `json:"predecessor,omitempty"`
	// ProposerCounts lets the officer who proposes count among those who approve.
	ProposerCounts bool              `json:"proposer_counts,omitzero"`
	Quotas         Quotas            `json:"quotas"`
	Roles          []Role            `json:"roles"`
	Seal           SealPolicy        `json:"seal"`
	Software       string            `json:"software"`
	Thresholds     map[string]int    `json:"thresholds,omitempty"` // officers who must approve, by action; Default for the others
	TPM            *attest.Enrolment `json:"tpm,omitempty"`
}

// Key is a signing key of the log, as the device that made it describes it.
type Key struct {
	Algorithm  string            `json:"algorithm"`            // ecdsa-p256, ecdsa-p384, ed25519
	Attributes map[string]string `json:"attributes,omitempty"` // read back from the device: CKA_SENSITIVE, serial, firmware, ...
	Purpose    string            `json:"purpose"`              // one of the Purpose constants
	SPKI       []byte            `json:"spki"`                 // DER SubjectPublicKeyInfo
}

// Purposes of a key.
const (
	PurposeLog     = "log"     // signs the authoritative line of every checkpoint
	PurposeInterop = "interop" // signs the additional Ed25519 line
	PurposePCR     = "pcr"     // signs the PCR values that pcr.approve approves, and nothing else
)

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
	if err := g.validateKeys(); err != nil {
		return err
	}
	return g.validatePolicy()
}

// ValidatePlan refuses what Validate would, before there are keys, and officers who would be too few at some time from t on (ns since
// 1970).
func (g *Genesis) ValidatePlan(t int64) error {
	if err := g.validatePolicy(); err != nil {
		return err
	}
	return g.enoughFrom(t)
}

// validatePolicy is what is governed but the keys.
func (g *Genesis) validatePolicy() error {
	if err := g.Clock.Validate(); err != nil {
		return fmt.Errorf("clock: %w", err)
	}
	if err := g.validateOfficers(); err != nil {
		return err
	}
	if err := g.validateRoles(); err != nil {
		return err
	}
	return g.validateLimits()
}

func (g *Genesis) validateLimits() error {
	if g.Quotas.Streams < 0 {
		return fmt.Errorf("quotas.streams: must not be negative")
	}
	return g.Seal.validate(g.TPM)
}

// validateRoles refuses roles that are unknown, empty, or that one user could hold against himself.
func (g *Genesis) validateRoles() error {
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
	return nil
}

func (g *Genesis) validateKeys() error {
	seen := map[string]bool{}
	for i, k := range g.Keys {
		if err := k.check(); err != nil {
			return fmt.Errorf("keys[%d].%w", i, err)
		}
		if seen[k.Purpose] {
			return fmt.Errorf("keys[%d].purpose: %q is there twice", i, k.Purpose)
		}
		seen[k.Purpose] = true
	}
	if !seen[PurposeLog] {
		return fmt.Errorf("keys: there is none for %q", PurposeLog)
	}
	return nil
}

// check refuses a key whose algorithm is not its own, or not one for its purpose.
func (k *Key) check() error {
	algorithm, err := k.algorithm()
	switch {
	case err != nil:
		return fmt.Errorf("spki: %w", err)
	case algorithm != k.Algorithm:
		return fmt.Errorf("algorithm: %q, but the key is of %s", k.Algorithm, algorithm)
	case k.Purpose == PurposeLog && algorithm == "ed25519":
		return fmt.Errorf("algorithm: the authoritative line is made with ECDSA")
	case k.Purpose == PurposeInterop && algorithm != "ed25519":
		return fmt.Errorf("algorithm: the additional line is made with ed25519")
	case k.Purpose == PurposePCR && algorithm != "ecdsa-p256":
		return fmt.Errorf("algorithm: PCR values are approved with ecdsa-p256")
	case k.Purpose != PurposeLog && k.Purpose != PurposeInterop && k.Purpose != PurposePCR:
		return fmt.Errorf("purpose: %q is not one of log, interop, pcr", k.Purpose)
	}
	return nil
}

// algorithm is what the public key itself says.
func (k *Key) algorithm() (string, error) {
	pub, err := x509.ParsePKIXPublicKey(k.SPKI)
	if err != nil {
		return "", fmt.Errorf("not a DER SubjectPublicKeyInfo")
	}
	switch pub := pub.(type) {
	case ed25519.PublicKey:
		return "ed25519", nil
	case *ecdsa.PublicKey:
		switch pub.Curve {
		case elliptic.P256():
			return "ecdsa-p256", nil
		case elliptic.P384():
			return "ecdsa-p384", nil
		}
	}
	return "", fmt.Errorf("not a key of ecdsa-p256, ecdsa-p384 or ed25519")
}

// Hash names the key: SHA-256 of its SubjectPublicKeyInfo.
func (k *Key) Hash() record.Hash { return sha256.Sum256(k.SPKI) }

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
