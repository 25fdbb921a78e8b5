package attest

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"

	"bulla/record"
)

// CredentialChallenge is what an auditor asks a machine to prove that its attestation key is held by the TPM that its endorsement key's
// certificate is for. The secret that proves it exists only inside the credential until a TPM opens it: whoever made the challenge
// keeps this document, and need keep nothing secret.
type CredentialChallenge struct {
	AKName     []byte      `json:"ak_name"`    // Name of the attestation key
	Commitment record.Hash `json:"commitment"` // SHA-256 of the secret
	Credential Credential  `json:"credential"`
	EK         record.Hash `json:"ek"` // SHA-256 of the endorsement key's TPMT_PUBLIC
	V          int         `json:"v"`
}

// Bounds of a challenge, in bytes. The largest credential of a TPM is for an RSA key of 4096 bits.
const (
	maxCredential = 1024
	secretSize    = 32

	// MaxActivation bounds the encoding of a challenge and of a transcript.
	MaxActivation = 8 << 10
)

// NewCredentialChallenge makes a challenge for an enrolled TPM; it needs no TPM. The answer shows that one TPM holds both keys of the
// enrolment. That the endorsement key is a TPM's at all, only CheckEndorsement shows.
func NewCredentialChallenge(e *Enrolment) (*CredentialChallenge, error) {
	credential, secret, err := MakeCredential(e)
	if err != nil {
		return nil, err
	}
	defer clear(secret[:])
	return &CredentialChallenge{
		AKName: e.AKName, Commitment: sha256.Sum256(secret[:]), Credential: *credential, EK: sha256.Sum256(e.EK), V: 1,
	}, nil
}

// Encode returns the challenge's one encoding.
func (c *CredentialChallenge) Encode() ([]byte, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	return record.MarshalCanonical(c)
}

// ParseCredentialChallenge reads a challenge; it accepts what Encode makes and nothing else.
func ParseCredentialChallenge(b []byte) (*CredentialChallenge, error) {
	if len(b) > MaxActivation {
		return nil, &record.FieldError{Reason: fmt.Sprintf("a challenge of %d bytes is larger than %d", len(b), MaxActivation), TooLarge: true}
	}
	c := new(CredentialChallenge)
	if err := record.UnmarshalCanonical(b, c); err != nil {
		return nil, err
	}
	return c, c.check()
}

func (c *CredentialChallenge) check() error {
	switch {
	case c.V != 1:
		return &record.FieldError{Field: "v", Reason: "must be 1"}
	case len(c.AKName) != nameSize:
		return &record.FieldError{Field: "ak_name", Reason: fmt.Sprintf("must have %d bytes", nameSize)}
	case len(c.Credential.Blob) == 0 || len(c.Credential.Blob) > maxCredential:
		return &record.FieldError{Field: "credential.blob", Reason: fmt.Sprintf("must have 1 to %d bytes", maxCredential)}
	case len(c.Credential.Secret) == 0 || len(c.Credential.Secret) > maxCredential:
		return &record.FieldError{Field: "credential.secret", Reason: fmt.Sprintf("must have 1 to %d bytes", maxCredential)}
	}
	return nil
}

// Names checks that the challenge is for the keys of an enrolment.
func (c *CredentialChallenge) Names(e *Enrolment) error {
	if !bytes.Equal(c.AKName, e.AKName) {
		return &record.FieldError{Field: "ak_name", Reason: fmt.Sprintf("the challenge is for the attestation key %x, the enrolled one is %x", c.AKName, e.AKName)}
	}
	if have := record.Hash(sha256.Sum256(e.EK)); c.EK != have {
		return &record.FieldError{Field: "ek", Reason: fmt.Sprintf("the challenge is for the endorsement key %x, the enrolled one is %x (SHA-256 of its public area)", c.EK[:], have[:])}
	}
	return nil
}

// Activation is the transcript of a credential activation: the challenge, and the secret that the TPM found in its credential. Without
// a secret the TPM did not open it.
type Activation struct {
	Challenge CredentialChallenge `json:"challenge"`
	Secret    []byte              `json:"secret,omitempty"`
}

// Encode returns the transcript's one encoding.
func (a *Activation) Encode() ([]byte, error) {
	if err := a.check(); err != nil {
		return nil, err
	}
	return record.MarshalCanonical(a)
}

// ParseActivation reads a transcript; it accepts what Encode makes and nothing else.
func ParseActivation(b []byte) (*Activation, error) {
	if len(b) > MaxActivation {
		return nil, fmt.Errorf("activation: %d bytes are more than %d", len(b), MaxActivation)
	}
	a := new(Activation)
	if err := record.UnmarshalCanonical(b, a); err != nil {
		return nil, fmt.Errorf("activation: %w", err)
	}
	return a, a.check()
}

func (a *Activation) check() error {
	if err := a.Challenge.check(); err != nil {
		return fmt.Errorf("activation: challenge: %w", err)
	}
	if len(a.Secret) > maxCredential {
		return fmt.Errorf("activation: the secret has %d bytes, more than %d", len(a.Secret), maxCredential)
	}
	return nil
}

// ErrNotOpened means that a transcript has no secret: the machine did not open the credential.
var ErrNotOpened = errors.New("the machine did not open the credential")

// Proves checks that the secret is the one in the challenge's credential: that the TPM with the challenge's endorsement key holds its
// attestation key too. It is proof to those who know that the challenge is the one they made.
func (a *Activation) Proves() error {
	if len(a.Secret) == 0 {
		return ErrNotOpened
	}
	if len(a.Secret) != secretSize || sha256.Sum256(a.Secret) != a.Challenge.Commitment {
		return errors.New("the secret is not the one in the credential: nothing shows that the attestation key is held by the TPM of the endorsement key")
	}
	return nil
}

// Answers checks that the transcript is of this challenge, and proves what it asks.
func (a *Activation) Answers(c *CredentialChallenge) error {
	mine, err := c.Encode()
	if err != nil {
		return err
	}
	theirs, err := a.Challenge.Encode()
	if err != nil {
		return err
	}
	if !bytes.Equal(mine, theirs) {
		return errors.New("the answer is to another challenge")
	}
	return a.Proves()
}
