package tpm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"io"

	"github.com/google/go-tpm/tpm2"

	"bulla/attest"
	"bulla/record"
)

var (
	// ErrNotApproved means that the PCRs of the TPM have values that nobody approved for a secret.
	ErrNotApproved = errors.New("these PCR values are not approved")
	// ErrAltered means that a sealed secret is damaged, or was sealed in another TPM or before this one was cleared.
	ErrAltered = errors.New("the sealed secret is altered, or is not this TPM's")
)

// Secret is a secret that a TPM has sealed, as it is kept on disk: nothing in it is secret. The TPM opens it, without any
// authorisation, while its PCRs have values that the approval key has signed for this sealing.
type Secret struct {
	Approvals []Approval  `json:"approvals"`
	Approver  []byte      `json:"approver"` // the approval key: SubjectPublicKeyInfo, P-256
	EK        []byte      `json:"ek"`       // TPMT_PUBLIC of the endorsement key that the secret crosses the bus encrypted for
	Private   []byte      `json:"private"`  // TPM2B_PRIVATE without size
	Public    []byte      `json:"public"`   // TPMT_PUBLIC
	Ref       record.Hash `json:"ref"`      // random; an approval is for one
	V         int         `json:"v"`
}

// Approval allows the secret to be unsealed while PCRs of the SHA-256 bank have these values.
type Approval struct {
	PCRs      []attest.PCRValue `json:"pcrs"`      // in ascending order; of the same PCRs in all approvals
	Signature []byte            `json:"signature"` // by the approval key: ECDSA in DER, over what PolicyAuthorize calls aHash
}

// Bounds of a sealed secret.
const (
	maxSecret     = 128 // bytes (Part 2, MAX_SYM_DATA)
	maxApprovals  = 16
	maxSealedFile = 64 << 10
)

// SecretConfig says how to seal.
type SecretConfig struct {
	Roots    []byte        // PEM, as for Enrol: the endorsement key must be certified, for the secret crosses the bus encrypted for it
	PCRs     []int         // ascending, of 0 to 15; their values now are approved
	SealPCR  int           // that of the machine's seals, which changes with every seal and must not be one of PCRs
	Approver crypto.Signer // P-256
}

// Seal seals a secret of 1 to 128 bytes under the storage root key. What it returns was opened once, as a test.
func (t *TPM) Seal(ctx context.Context, cfg SecretConfig, secret []byte) (*Secret, error) {
	s, err := t.seal(ctx, cfg, secret)
	if err != nil {
		return nil, fmt.Errorf("sealing a secret: %w", err)
	}
	opened, err := t.Unseal(ctx, s)
	defer clear(opened)
	if err != nil {
		return nil, fmt.Errorf("trying what was sealed: %w", err)
	}
	if !bytes.Equal(opened, secret) {
		return nil, errors.New("trying what was sealed: the TPM returns something else")
	}
	return s, nil
}

func (t *TPM) seal(ctx context.Context, cfg SecretConfig, secret []byte) (*Secret, error) {
	if len(secret) == 0 || len(secret) > maxSecret {
		return nil, fmt.Errorf("it has %d bytes; a TPM seals 1 to %d", len(secret), maxSecret)
	}
	if err := CheckSelection(cfg.PCRs, cfg.SealPCR); err != nil {
		return nil, err
	}
	spki, err := x509.MarshalPKIXPublicKey(cfg.Approver.Public())
	if err != nil {
		return nil, fmt.Errorf("the approval key: %w", err)
	}
	s := &Secret{Approver: spki, V: 1}
	if _, err := io.ReadFull(rand.Reader, s.Ref[:]); err != nil {
		return nil, err
	}
	values, err := t.PCRs(ctx, cfg.PCRs)
	if err != nil {
		return nil, err
	}
	if err := s.approve(cfg.Approver, values); err != nil {
		return nil, err
	}
	policy, err := s.policy()
	if err != nil {
		return nil, err
	}
	err = t.do(ctx, func(b bus) error {
		ek, err := b.endorsement(cfg.Roots)
		if err != nil {
			return err
		}
		s.EK = ek.public
		return b.createSealed(s, policy, secret)
	})
	if err != nil {
		return nil, err
	}
	return s, s.check()
}

// createSealed has the TPM seal. The session authorises with the storage root key's empty authorisation; its secret encrypts what is
// sealed, and signs the names of the parent and the policy that it gets.
func (b bus) createSealed(s *Secret, policy, secret []byte) error {
	srk, err := b.sealingRoot()
	if err != nil {
		return err
	}
	session, done, err := b.salted(s.EK, tpm2.HMACSession, tpm2.AESEncryption(128, tpm2.EncryptIn))
	if err != nil {
		return err
	}
	created, err := tpm2.Create{
		ParentHandle: tpm2.AuthHandle{Handle: srk.Handle, Name: srk.Name, Auth: session},
		InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
			Data: tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: secret}),
		}},
		InPublic: tpm2.New2B(sealedTemplate(policy)),
	}.Execute(b)
	if err != nil {
		return errors.Join(fmt.Errorf("TPM2_Create: %w", err), done())
	}
	public, err := created.OutPublic.Contents()
	if err != nil {
		return errors.Join(fmt.Errorf("TPM2_Create: %w", err), done())
	}
	s.Public, s.Private = tpm2.Marshal(public), created.OutPrivate.Buffer
	return done()
}

// sealedTemplate is an object that only its policy opens, and that failed attempts do not lock.
func sealedTemplate(policy []byte) tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgKeyedHash, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, NoDA: true},
		AuthPolicy:       tpm2.TPM2BDigest{Buffer: policy},
		Parameters:       tpm2.NewTPMUPublicParms(tpm2.TPMAlgKeyedHash, &tpm2.TPMSKeyedHashParms{Scheme: tpm2.TPMTKeyedHashScheme{Scheme: tpm2.TPMAlgNull}}),
		Unique:           tpm2.NewTPMUPublicID(tpm2.TPMAlgKeyedHash, &tpm2.TPM2BDigest{}),
	}
}

// sealingRoot is the storage root key, which must be one whose private part no program ever had: only then does what is under it stay in
// the TPM. Its name is computed from what was looked at.
func (b bus) sealingRoot() (tpm2.NamedHandle, error) {
	srk, err := b.storageRoot()
	if err != nil {
		return tpm2.NamedHandle{}, err
	}
	r, err := tpm2.ReadPublic{ObjectHandle: srk.Handle}.Execute(b)
	if err != nil {
		return tpm2.NamedHandle{}, fmt.Errorf("TPM2_ReadPublic of the storage root key: %w", err)
	}
	public, err := r.OutPublic.Contents()
	if err != nil {
		return tpm2.NamedHandle{}, fmt.Errorf("TPM2_ReadPublic of the storage root key: %w", err)
	}
	if a := public.ObjectAttributes; !a.FixedTPM || !a.FixedParent || !a.SensitiveDataOrigin || !a.Restricted || !a.Decrypt || a.SignEncrypt {
		return tpm2.NamedHandle{}, fmt.Errorf("0x%08X holds no storage root key: move away what is there (tpm2_evictcontrol)", uint32(srk.Handle))
	}
	name, err := tpm2.ObjectName(public)
	if err != nil {
		return tpm2.NamedHandle{}, err
	}
	return tpm2.NamedHandle{Handle: srk.Handle, Name: *name}, nil
}

// PCRs reads PCRs of the SHA-256 bank.
func (t *TPM) PCRs(ctx context.Context, selection []int) (values []attest.PCRValue, err error) {
	err = t.do(ctx, func(b bus) error {
		values, err = b.pcrs(selection)
		return err
	})
	return values, err
}

// Unseal opens a secret. It crosses the bus encrypted, for a session that only the TPM with the pinned endorsement key can have joined.
// The error wraps ErrNotApproved or ErrAltered when trying again is of no use. The caller zeroes what it gets.
func (t *TPM) Unseal(ctx context.Context, s *Secret) (secret []byte, err error) {
	if err := s.check(); err != nil {
		return nil, fmt.Errorf("unsealing: %w", err)
	}
	err = t.do(ctx, func(b bus) error {
		for range 3 { // any PCR that any program extends meanwhile makes the TPM ask for the policy anew
			if secret, err = b.unseal(s); !errors.Is(err, tpm2.TPMRCPCRChanged) {
				return err
			}
		}
		return err
	})
	if errors.Is(err, ErrOtherMachine) {
		return nil, fmt.Errorf("unsealing: %w: the TPM has another endorsement key", ErrAltered)
	}
	if err != nil {
		return nil, fmt.Errorf("unsealing: %w", err)
	}
	return secret, nil
}

func (b bus) unseal(s *Secret) (secret []byte, err error) {
	values, err := b.pcrs(s.Selection())
	if err != nil {
		return nil, err
	}
	approval, err := s.approved(values)
	if err != nil {
		return nil, err
	}
	session, done, err := b.salted(s.EK, tpm2.PolicySession, tpm2.AESEncryption(128, tpm2.EncryptOut))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, done()) }()
	if err := b.satisfy(session, s, approval); err != nil {
		return nil, err
	}
	item, err := b.load(s)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, flush(b, item.Handle)) }()
	r, err := tpm2.Unseal{ItemHandle: tpm2.AuthHandle{Handle: item.Handle, Name: item.Name, Auth: session}}.Execute(b)
	if errors.Is(err, tpm2.TPMRCPolicyFail) {
		return nil, fmt.Errorf("%w: TPM2_Unseal: %w", ErrNotApproved, err)
	}
	if err != nil {
		return nil, fmt.Errorf("TPM2_Unseal: %w", err)
	}
	return r.OutData.Buffer, nil
}

// load loads the sealed object, with the name that its public part has.
func (b bus) load(s *Secret) (tpm2.NamedHandle, error) {
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](s.Public)
	if err != nil {
		return tpm2.NamedHandle{}, fmt.Errorf("%w: %w", ErrAltered, err)
	}
	name, err := tpm2.ObjectName(public)
	if err != nil {
		return tpm2.NamedHandle{}, fmt.Errorf("%w: %w", ErrAltered, err)
	}
	srk, err := tpm2.ReadPublic{ObjectHandle: srkHandle}.Execute(b)
	if absent(err) {
		return tpm2.NamedHandle{}, fmt.Errorf("%w: the TPM has no storage root key", ErrAltered)
	}
	if err != nil {
		return tpm2.NamedHandle{}, fmt.Errorf("TPM2_ReadPublic of the storage root key: %w", err)
	}
	loaded, err := tpm2.Load{
		ParentHandle: authorised(tpm2.NamedHandle{Handle: srkHandle, Name: srk.Name}),
		InPrivate:    tpm2.TPM2BPrivate{Buffer: s.Private}, InPublic: tpm2.New2B(*public),
	}.Execute(b)
	var code tpm2.TPMRC
	if errors.As(err, &code) && code&0x80 != 0 { // of format one: about what it was given (Part 2, section 6.6.2)
		return tpm2.NamedHandle{}, fmt.Errorf("%w: TPM2_Load: %w", ErrAltered, err)
	}
	if err != nil {
		return tpm2.NamedHandle{}, fmt.Errorf("TPM2_Load: %w", err)
	}
	return tpm2.NamedHandle{Handle: loaded.ObjectHandle, Name: *name}, nil
}
