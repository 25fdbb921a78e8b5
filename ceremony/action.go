package ceremony

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"

	"golang.org/x/mod/sumdb/note"

	"bulla/attest"
	"bulla/clock"
	"bulla/record"
)

// Actions of proposals. ActionGenesis is not one: it names the threshold for approving the genesis.
const (
	ActionPolicySet       = "policy.set"
	ActionOfficersSet     = "officers.set"
	ActionKeyGenerate     = "key.generate"
	ActionKeyRotate       = "key.rotate"
	ActionKeyRetire       = "key.retire"
	ActionTPMEnrol        = "tpm.enrol"
	ActionPCRApprove      = "pcr.approve"
	ActionRecoveryDeclare = "recovery.declare"

	ActionGenesis = "genesis"
)

// content is what an action is about, as it was parsed.
type content interface {
	// check refuses what could be right in no state.
	check() error
	// prepare changes s, a copy, as far as the content alone says, and refuses what cannot be.
	prepare(s *State, at clock.Stamp) error
	// finish adds what the devices made, and refuses what is not what was approved. of is the proposal that e enacts.
	finish(s *State, e *record.Entry, of *Pending, outcome []byte) error
	// describe says in words how it would change s. Text of others in it is to be made printable.
	describe(s *State) []string
}

func newContent(action string) content {
	switch action {
	case ActionPolicySet:
		return new(PolicySet)
	case ActionOfficersSet:
		return new(OfficersSet)
	case ActionKeyGenerate:
		return new(KeyGenerate)
	case ActionKeyRotate:
		return new(KeyRotate)
	case ActionKeyRetire:
		return new(KeyRetire)
	case ActionTPMEnrol:
		return new(TPMEnrol)
	case ActionPCRApprove:
		return new(PCRApprove)
	case ActionRecoveryDeclare:
		return new(RecoveryDeclare)
	}
	return nil
}

func knownAction(action string) bool { return newContent(action) != nil }

func parseContent(action string, raw json.RawMessage) (content, error) {
	c := newContent(action)
	if c == nil {
		return nil, refuse(RuleDocument, "action: there is no %s", quoted(action))
	}
	if err := record.UnmarshalCanonical(raw, c); err != nil {
		return nil, refuse(RuleDocument, "content: %v", err)
	}
	if err := c.check(); err != nil {
		return nil, refuse(RuleDocument, "content.%v", err)
	}
	return c, nil
}

func readOutcome(raw []byte, to any) error {
	if len(raw) == 0 {
		return refuse(RuleOutcome, "there is none: nothing shows that it was done")
	}
	if err := record.UnmarshalCanonical(raw, to); err != nil {
		return refuse(RuleOutcome, "%v", err)
	}
	return nil
}

func noOutcome(raw []byte) error {
	if len(raw) > 0 {
		return refuse(RuleOutcome, "the action has none")
	}
	return nil
}

// PolicySet is the content of policy.set: the whole policy, which replaces the one in force.
type PolicySet struct {
	Clock  clock.Policy `json:"clock"`
	Quotas Quotas       `json:"quotas"`
	Roles  []Role       `json:"roles"`
	Seal   SealPolicy   `json:"seal"`
}

func (c *PolicySet) check() error {
	if err := c.Clock.Validate(); err != nil {
		return fmt.Errorf("clock: %w", err)
	}
	g := Genesis{Quotas: c.Quotas, Roles: c.Roles, Seal: c.Seal}
	if err := g.validateRoles(); err != nil {
		return err
	}
	return g.validateLimits()
}

func (c *PolicySet) prepare(s *State, _ clock.Stamp) error {
	s.Policy.Clock, s.Policy.Quotas, s.Policy.Roles, s.Policy.Seal = c.Clock, c.Quotas, c.Roles, c.Seal
	return s.valid()
}

func (c *PolicySet) finish(_ *State, _ *record.Entry, _ *Pending, outcome []byte) error {
	return noOutcome(outcome)
}

// OfficersSet is the content of officers.set: all officers and thresholds, which replace those in force.
type OfficersSet struct {
	Officers       []Officer      `json:"officers"`
	ProposerCounts bool           `json:"proposer_counts,omitzero"`
	Thresholds     map[string]int `json:"thresholds"`
}

func (c *OfficersSet) check() error {
	if len(c.Officers) == 0 {
		return fmt.Errorf("officers: without officers nothing could change any more")
	}
	return (&Genesis{Officers: c.Officers, ProposerCounts: c.ProposerCounts, Thresholds: c.Thresholds}).validateOfficers()
}

func (c *OfficersSet) prepare(s *State, at clock.Stamp) error {
	s.Policy.Officers, s.Policy.ProposerCounts, s.Policy.Thresholds = c.Officers, c.ProposerCounts, c.Thresholds
	if err := s.valid(); err != nil {
		return err
	}
	if err := s.Policy.enoughFrom(at.UTC()); err != nil {
		return refuse(RuleDocument, "content.%v", err)
	}
	return nil
}

func (c *OfficersSet) finish(_ *State, _ *record.Entry, _ *Pending, outcome []byte) error {
	return noOutcome(outcome)
}

// KeyGenerate is the content of key.generate: a device makes a key, which is not in force until it is rotated to. The outcome is the
// Key that the device made.
type KeyGenerate struct {
	Algorithm string `json:"algorithm"`
	Label     string `json:"label,omitempty"` // of the object in the token, where the device has labels
	Purpose   string `json:"purpose"`
}

// Limits of keys that are not in force.
const (
	maxGenerated = 8
	maxPast      = 256
)

func (c *KeyGenerate) check() error {
	ok := false
	switch c.Purpose {
	case PurposeLog:
		ok = c.Algorithm == "ecdsa-p256" || c.Algorithm == "ecdsa-p384"
	case PurposeInterop:
		ok = c.Algorithm == "ed25519"
	case PurposePCR:
		ok = c.Algorithm == "ecdsa-p256"
	default:
		return fmt.Errorf("purpose: must be log, interop or pcr")
	}
	if !ok {
		return fmt.Errorf("algorithm: not one for purpose %s", c.Purpose)
	}
	return checkText("label", c.Label)
}

func (c *KeyGenerate) prepare(s *State, _ clock.Stamp) error {
	if len(s.Generated) >= maxGenerated {
		return refuse(RuleDocument, "content: %d generated keys wait to be used; retire one first", maxGenerated)
	}
	return nil
}

func (c *KeyGenerate) finish(s *State, _ *record.Entry, _ *Pending, outcome []byte) error {
	var k Key
	if err := readOutcome(outcome, &k); err != nil {
		return err
	}
	if err := k.check(); err != nil {
		return refuse(RuleOutcome, "%v", err)
	}
	if k.Algorithm != c.Algorithm || k.Purpose != c.Purpose {
		return refuse(RuleOutcome, "a key of %s for %s, not of %s for %s", k.Algorithm, k.Purpose, c.Algorithm, c.Purpose)
	}
	if s.find(k.Hash()) != nil {
		return refuse(RuleOutcome, "the key %x is not new", sha256.Sum256(k.SPKI))
	}
	s.Generated = append(slices.Clone(s.Generated), k)
	return nil
}

// KeyRotate is the content of key.rotate: a generated key takes the place of the one in force for its purpose.
type KeyRotate struct {
	Old     string      `json:"old"` // what can be said of the key in force: one of the Old constants
	Purpose string      `json:"purpose"`
	SPKI    record.Hash `json:"spki"` // of the generated key: SHA-256
}

// What can be said of a key whose place is taken.
const (
	OldSigns       = "signs"       // it signs the handover
	OldLost        = "lost"        // it cannot sign any more, and nobody else can
	OldCompromised = "compromised" // somebody else may sign with it
	OldNone        = "none"        // there was none
)

// Rotated is the outcome of key.rotate for keys that sign heads.
type Rotated struct {
	// Checkpoint is the last head before the rotation, a signed note with the new key's line, and the old key's if that signs.
	Checkpoint string `json:"checkpoint"`
}

func (c *KeyRotate) check() error {
	switch c.Old {
	case OldSigns, OldLost, OldCompromised, OldNone:
		return nil
	}
	return fmt.Errorf("old: must be signs, lost, compromised or none")
}

func (c *KeyRotate) prepare(s *State, _ clock.Stamp) error {
	i := slices.IndexFunc(s.Generated, func(k Key) bool { return k.Hash() == c.SPKI })
	if i < 0 || s.Generated[i].Purpose != c.Purpose {
		return refuse(RuleDocument, "content.spki: no key %x was generated for %s; key.generate makes one", c.SPKI[:], quoted(c.Purpose))
	}
	old := slices.IndexFunc(s.Policy.Keys, func(k Key) bool { return k.Purpose == c.Purpose })
	switch {
	case (c.Old == OldNone) != (old < 0):
		return refuse(RuleDocument, "content.old: %s, but there is a key in force for %s: %t", c.Old, c.Purpose, old >= 0)
	case len(s.Past) >= maxPast:
		return refuse(RuleDocument, "content: %d keys have been replaced in this log; begin a new one", maxPast)
	}
	keys := slices.Clone(s.Policy.Keys)
	if old >= 0 {
		s.Past = append(slices.Clone(s.Past), PastKey{Key: keys[old], Old: c.Old, Until: s.Next})
		keys[old] = s.Generated[i]
	} else {
		keys = append(keys, s.Generated[i])
	}
	s.Policy.Keys = keys
	s.Generated = slices.Delete(slices.Clone(s.Generated), i, i+1)
	if c.Purpose == PurposePCR {
		s.PCRs = nil // the TPM asks for the new key's signature
	}
	return s.valid()
}

func (c *KeyRotate) finish(s *State, e *record.Entry, of *Pending, outcome []byte) error {
	if c.Purpose == PurposePCR {
		return noOutcome(outcome)
	}
	var out Rotated
	if err := readOutcome(outcome, &out); err != nil {
		return err
	}
	must := 1
	verifiers, err := lineVerifiers(s.Policy.Origin, s.key(c.Purpose))
	if err == nil && c.Old == OldSigns {
		must = 2
		var old []note.Verifier
		old, err = lineVerifiers(s.Policy.Origin, &s.Past[len(s.Past)-1].Key)
		verifiers = append(verifiers, old...)
	}
	if err != nil {
		return refuse(RuleOutcome, "checkpoint: %v", err)
	}
	head, n, err := record.OpenCheckpoint([]byte(out.Checkpoint), verifiers...)
	switch {
	case err != nil:
		return refuse(RuleOutcome, "checkpoint: %v", err)
	case len(n.Sigs) != must || len(n.UnverifiedSigs) > 0:
		return refuse(RuleOutcome, "checkpoint: signed by %d of the %d keys that must, and by %d others", len(n.Sigs), must, len(n.UnverifiedSigs))
	case head.Origin != s.Policy.Origin:
		return refuse(RuleOutcome, "checkpoint: of log %s", quoted(head.Origin))
	case head.Size <= of.Index || head.Size > e.Index:
		return refuse(RuleOutcome, "checkpoint: over %d entries: it must be a head between the proposal (entry %d) and the enactment", head.Size, of.Index)
	}
	return s.inLog("outcome.checkpoint", Head{Root: head.Root, Size: head.Size})
}

func lineVerifiers(origin string, k *Key) ([]note.Verifier, error) {
	vkey, err := k.VKey(origin)
	if err != nil {
		return nil, err
	}
	v, err := record.NewVerifier(vkey)
	return []note.Verifier{v}, err
}

// KeyRetire is the content of key.retire: a key that is not needed any more is destroyed in its device. The key of the authoritative
// line cannot be, while it is in force.
type KeyRetire struct {
	SPKI record.Hash `json:"spki"` // SHA-256
}

func (c *KeyRetire) check() error { return nil }

func (c *KeyRetire) prepare(s *State, _ clock.Stamp) error {
	if i := slices.IndexFunc(s.Generated, func(k Key) bool { return k.Hash() == c.SPKI }); i >= 0 {
		s.Generated = slices.Delete(slices.Clone(s.Generated), i, i+1)
		return nil
	}
	if i := slices.IndexFunc(s.Past, func(k PastKey) bool { return k.Key.Hash() == c.SPKI }); i >= 0 {
		if s.Past[i].Retired > 0 {
			return refuse(RuleDocument, "content.spki: the key %x was retired at entry %d", c.SPKI[:], s.Past[i].Retired)
		}
		s.Past = slices.Clone(s.Past)
		s.Past[i].Retired = s.Next
		return nil
	}
	i := slices.IndexFunc(s.Policy.Keys, func(k Key) bool { return k.Hash() == c.SPKI })
	switch {
	case i < 0:
		return refuse(RuleDocument, "content.spki: the log has no key %x", c.SPKI[:])
	case s.Policy.Keys[i].Purpose == PurposeLog:
		return refuse(RuleDocument, "content.spki: the key %x signs the log; rotate to another first", c.SPKI[:])
	case len(s.Past) >= maxPast:
		return refuse(RuleDocument, "content: %d keys have been replaced in this log; begin a new one", maxPast)
	}
	k := s.Policy.Keys[i]
	s.Past = append(slices.Clone(s.Past), PastKey{Key: k, Old: OldSigns, Retired: s.Next, Until: s.Next})
	s.Policy.Keys = slices.Delete(slices.Clone(s.Policy.Keys), i, i+1)
	if k.Purpose == PurposePCR {
		s.PCRs = nil
	}
	return s.valid()
}

func (c *KeyRetire) finish(_ *State, _ *record.Entry, _ *Pending, outcome []byte) error {
	return noOutcome(outcome)
}

// TPMEnrol is the content of tpm.enrol: another TPM, or the same after it was cleared. The outcome is the attest.Enrolment.
type TPMEnrol struct {
	AKName []byte      `json:"ak_name"` // TPM2B_NAME of the attestation key, without size
	EK     record.Hash `json:"ek"`      // SHA-256 of the endorsement key's TPMT_PUBLIC
	PCR    int         `json:"pcr"`     // the seal PCR
}

func (c *TPMEnrol) check() error {
	switch {
	case len(c.AKName) != 34:
		return fmt.Errorf("ak_name: must be a Name of SHA-256: 34 bytes")
	case c.PCR < 0 || c.PCR > 22 || c.PCR == 16:
		return fmt.Errorf("pcr: must be a PCR that no program can reset: 0 to 22 without 16")
	}
	return nil
}

func (c *TPMEnrol) prepare(s *State, _ clock.Stamp) error {
	if !slices.Contains(s.Policy.Seal.PCRs, c.PCR) {
		return refuse(RuleDocument, "content.pcr: the policy's seal.pcrs do not include %d; set the policy first", c.PCR)
	}
	return nil
}

func (c *TPMEnrol) finish(s *State, _ *record.Entry, _ *Pending, outcome []byte) error {
	var t attest.Enrolment
	if err := readOutcome(outcome, &t); err != nil {
		return err
	}
	ak, err := attest.ParseAK(t.AK)
	switch {
	case err != nil:
		return refuse(RuleOutcome, "%v", err)
	case !bytes.Equal(ak.Name, t.AKName) || !bytes.Equal(c.AKName, t.AKName):
		return refuse(RuleOutcome, "the attestation key is %x, not %x", t.AKName, c.AKName)
	case sha256.Sum256(t.EK) != c.EK:
		return refuse(RuleOutcome, "the endorsement key is %x, not %x", sha256.Sum256(t.EK), c.EK[:])
	case t.PCR != c.PCR:
		return refuse(RuleOutcome, "the seal PCR is %d, not %d", t.PCR, c.PCR)
	}
	s.Policy.TPM = &t
	return s.valid()
}

// PCRApprove is the content of pcr.approve: values of PCRs with which the TPM gives out what is sealed to the governed policy.
type PCRApprove struct {
	Label string            `json:"label,omitempty"` // for people, as `kernel 6.12.9`
	PCRs  []attest.PCRValue `json:"pcrs"`            // ascending, of the SHA-256 bank
}

// PCRSet is a set of approved values, with the signature that the TPM asks for.
type PCRSet struct {
	Label     string            `json:"label,omitempty"`
	PCRs      []attest.PCRValue `json:"pcrs"`
	Signature []byte            `json:"signature"` // ECDSA, DER
}

// PCRApproved is the outcome of pcr.approve.
type PCRApproved struct {
	Signature []byte `json:"signature"` // by the key for PurposePCR, of PCRPolicy (TPM2_PolicyAuthorize, without policyRef); ECDSA, DER
}

const maxPCRSets = 16

func (c *PCRApprove) check() error {
	if len(c.PCRs) == 0 {
		return fmt.Errorf("pcrs: must name at least one PCR")
	}
	for i, p := range c.PCRs {
		if p.Index < 0 || p.Index > 23 || i > 0 && p.Index <= c.PCRs[i-1].Index {
			return fmt.Errorf("pcrs[%d].index: must be 0 to 23, ascending", i)
		}
	}
	return checkText("label", c.Label)
}

func (c *PCRApprove) prepare(s *State, _ clock.Stamp) error {
	switch {
	case s.Policy.TPM == nil:
		return refuse(RuleDocument, "action: the log has no TPM enrolled")
	case s.key(PurposePCR) == nil:
		return refuse(RuleDocument, "action: there is no key for %q; generate one and rotate to it first", PurposePCR)
	case slices.ContainsFunc(c.PCRs, func(p attest.PCRValue) bool { return p.Index == s.Policy.TPM.PCR }):
		return refuse(RuleDocument, "content.pcrs: PCR %d changes with every seal", s.Policy.TPM.PCR)
	case len(s.PCRs) >= maxPCRSets:
		return refuse(RuleDocument, "content: %d sets are approved; rotate the key for %q, which ends them, first", maxPCRSets, PurposePCR)
	}
	return nil
}

func (c *PCRApprove) finish(s *State, _ *record.Entry, _ *Pending, outcome []byte) error {
	var out PCRApproved
	if err := readOutcome(outcome, &out); err != nil {
		return err
	}
	pub, err := x509.ParsePKIXPublicKey(s.key(PurposePCR).SPKI)
	if err != nil {
		return refuse(RuleOutcome, "signature: %v", err)
	}
	policy := PCRPolicy(c.PCRs)
	digest := sha256.Sum256(policy[:])
	if key, ok := pub.(*ecdsa.PublicKey); !ok || !ecdsa.VerifyASN1(key, digest[:], out.Signature) {
		return refuse(RuleOutcome, "signature: it is not that of the key for %q over these values", PurposePCR)
	}
	s.PCRs = append(slices.Clone(s.PCRs), PCRSet{Label: c.Label, PCRs: c.PCRs, Signature: out.Signature})
	return nil
}

// PCRPolicy is the digest of a policy of TPM2_PolicyPCR alone over values of the SHA-256 bank (TPM 2.0 Library, Part 3, section
// 23.7): what TPM2_PolicyAuthorize takes as approvedPolicy. The key signs its SHA-256.
func PCRPolicy(pcrs []attest.PCRValue) record.Hash {
	const policyPCR = 0x0000017F // TPM_CC_PolicyPCR
	values := sha256.New()
	var selected [3]byte
	for _, p := range pcrs {
		selected[p.Index/8] |= 1 << (p.Index % 8)
		values.Write(p.Value[:])
	}
	b := make([]byte, 32, 96) // the policy before: empty
	b = binary.BigEndian.AppendUint32(b, policyPCR)
	b = binary.BigEndian.AppendUint32(b, 1)   // TPML_PCR_SELECTION: one bank,
	b = binary.BigEndian.AppendUint16(b, 0xB) // of TPM_ALG_SHA256,
	b = append(b, byte(len(selected)))
	b = append(b, selected[:]...)
	return sha256.Sum256(values.Sum(b))
}

// RecoveryDeclare is the content of recovery.declare: entries were lost, and the log ends. It is closed at the surviving head; a
// successor names it as its predecessor. Receipts for lost entries are then declared lost, not evidence of tampering.
type RecoveryDeclare struct {
	Known     Head   `json:"known"`               // the highest head that anybody knows of; the surviving one where nothing was lost
	Reason    string `json:"reason"`              // for people
	Successor string `json:"successor,omitempty"` // origin of the log that goes on
	Surviving Head   `json:"surviving"`           // the last head of what is there
}

// Recovered is the outcome of recovery.declare.
type Recovered struct {
	TPM *attest.Recovery `json:"tpm,omitempty"` // as it was found; absent in a log without one
}

func (c *RecoveryDeclare) check() error {
	if c.Successor != "" {
		if err := record.CheckOrigin(c.Successor); err != nil {
			return fmt.Errorf("successor: %w", err)
		}
	}
	switch {
	case c.Reason == "":
		return fmt.Errorf("reason: required")
	case c.Surviving.Size == 0:
		return fmt.Errorf("surviving.size: must be at least 1")
	case c.Known.Size < c.Surviving.Size || c.Known.Size > record.MaxInt:
		return fmt.Errorf("known.size: must be at least the surviving size")
	case c.Known.Size == c.Surviving.Size && c.Known != c.Surviving:
		return fmt.Errorf("known.root: two roots at one size are a fork, not a loss")
	}
	return checkText("reason", c.Reason)
}

func (c *RecoveryDeclare) prepare(s *State, _ clock.Stamp) error {
	if c.Successor == s.Policy.Origin {
		return refuse(RuleDocument, "content.successor: a log cannot succeed itself; choose a new origin")
	}
	if err := s.inLog("content.surviving", c.Surviving); err != nil {
		return err
	}
	closed := s.Next
	s.Closed = &closed
	return nil
}

func (c *RecoveryDeclare) finish(s *State, _ *record.Entry, _ *Pending, outcome []byte) error {
	var out Recovered
	if err := readOutcome(outcome, &out); err != nil {
		return err
	}
	if (out.TPM == nil) != (s.Policy.TPM == nil) {
		return refuse(RuleOutcome, "tpm: a log with a TPM records how that was found, and no other")
	}
	if out.TPM == nil {
		return nil
	}
	raw, err := out.TPM.Encode()
	if err == nil {
		_, err = attest.ParseRecovery(raw)
	}
	if err != nil {
		return refuse(RuleOutcome, "tpm: %v", err)
	}
	return nil
}

// actionOf is the action that a content is of; "" of what is none.
func actionOf(c any) string {
	switch c.(type) {
	case *PolicySet:
		return ActionPolicySet
	case *OfficersSet:
		return ActionOfficersSet
	case *KeyGenerate:
		return ActionKeyGenerate
	case *KeyRotate:
		return ActionKeyRotate
	case *KeyRetire:
		return ActionKeyRetire
	case *TPMEnrol:
		return ActionTPMEnrol
	case *PCRApprove:
		return ActionPCRApprove
	case *RecoveryDeclare:
		return ActionRecoveryDeclare
	}
	return ""
}
