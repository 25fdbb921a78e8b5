package tpm

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"bulla/attest"
)

// ErrExists means that there is something already where something was to be made: making never takes over what exists.
var ErrExists = errors.New("exists in the TPM already")

// Where enrolment puts what it makes, unless told otherwise: persistent objects of the endorsement hierarchy, and NV indices of the
// owner's (TCG Registry of Reserved TPM 2.0 Handles and Localities, sections 2.3.1 and 2.2).
const (
	defaultAK      = 0x81010B01
	defaultCounter = 0x01800B01
)

// EnrolConfig says what to enrol.
type EnrolConfig struct {
	Roots   []byte // PEM: authorities that endorsement keys are certified by, intermediate ones among them
	PCR     int    // the seal PCR, 0 to 15: the others can be reset while the machine runs, or not be extended
	AK      uint32 // persistent handle for the attestation key; 0: 0x81010B01
	Counter uint32 // NV index of the counter; 0: 0x01800B01
}

// Enrol makes the attestation key and the counter in the TPM, and returns the evidence for them. The endorsement key's certificate
// must lead to one of the roots, and be for a key that the TPM has. It refuses with ErrExists what is there already; if it fails, it
// takes away what it made.
func (t *TPM) Enrol(ctx context.Context, cfg EnrolConfig) (e *attest.Enrolment, err error) {
	if cfg.AK == 0 {
		cfg.AK = defaultAK
	}
	if cfg.Counter == 0 {
		cfg.Counter = defaultCounter
	}
	if cfg.PCR < 0 || cfg.PCR > 15 {
		return nil, fmt.Errorf("enrolling the TPM: PCR %d is not one of 0 to 15, which last until the machine is reset", cfg.PCR)
	}
	if err := persistent(cfg.AK); err != nil {
		return nil, fmt.Errorf("enrolling the TPM: %w", err)
	}
	if cfg.Counter < 0x01800000 || cfg.Counter > 0x01BFFFFF {
		return nil, fmt.Errorf("enrolling the TPM: 0x%08X is not an NV index of the owner's", cfg.Counter)
	}
	err = t.do(ctx, func(b bus) error {
		e, err = b.enrol(cfg)
		return refused("owner", err)
	})
	if err != nil {
		return nil, fmt.Errorf("enrolling the TPM: %w", err)
	}
	return e, nil
}

func (b bus) enrol(cfg EnrolConfig) (e *attest.Enrolment, err error) {
	ak, index := tpm2.TPMHandle(cfg.AK), tpm2.TPMHandle(cfg.Counter)
	if err := errors.Join(b.vacant(ak), b.vacant(index)); err != nil {
		return nil, err
	}
	endorsement, err := b.endorsement(cfg.Roots)
	if err != nil {
		return nil, err
	}
	base, err := b.pcrs([]int{cfg.PCR})
	if err != nil {
		return nil, err
	}
	info, err := b.info()
	if err != nil {
		return nil, err
	}
	key, public, err := b.createAK(ak)
	if err != nil {
		return nil, err
	}
	counter, err := b.createCounter(index)
	if err != nil {
		return nil, errors.Join(err, b.evict(key))
	}
	return &attest.Enrolment{
		AK: public, AKName: key.Name.Buffer, Base: base[0].Value, ClockUpdate: info.ClockUpdate, Counter: *counter,
		EK: endorsement.public, EKCertificates: endorsement.certificates,
		Firmware: info.Firmware, Manufacturer: info.Manufacturer, Model: info.Model, PCR: cfg.PCR,
	}, nil
}

// createAK makes the attestation key in the endorsement hierarchy: attestations by a key of the owner's have their reset counts and
// firmware obfuscated (Part 1, section 36.7). Each enrolment has its own: the same template would make the same key again after the TPM
// was cleared, as clearing leaves the endorsement seed (Part 1, section 37.2).
func (b bus) createAK(at tpm2.TPMHandle) (key tpm2.NamedHandle, public []byte, err error) {
	template := signingTemplate(true)
	unique := make([]byte, 64)
	if _, err := rand.Read(unique); err != nil {
		return tpm2.NamedHandle{}, nil, fmt.Errorf("the attestation key: %w", err)
	}
	template.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{X: tpm2.TPM2BECCParameter{Buffer: unique[:32]}, Y: tpm2.TPM2BECCParameter{Buffer: unique[32:]}})
	created, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHEndorsement, InPublic: tpm2.New2B(template)}.Execute(b)
	if err != nil {
		return tpm2.NamedHandle{}, nil, fmt.Errorf("TPM2_CreatePrimary of the attestation key: %w", err)
	}
	loaded := tpm2.NamedHandle{Handle: created.ObjectHandle, Name: created.Name}
	if err := errors.Join(b.persist(loaded, at), flush(b, loaded.Handle)); err != nil {
		return tpm2.NamedHandle{}, nil, fmt.Errorf("the attestation key: %w", err)
	}
	key = tpm2.NamedHandle{Handle: at, Name: created.Name}
	p, err := created.OutPublic.Contents()
	if err == nil {
		public = tpm2.Marshal(p)
		_, err = attest.ParseAK(public)
	}
	if err != nil {
		return tpm2.NamedHandle{}, nil, errors.Join(fmt.Errorf("the attestation key: %w", err), b.evict(key))
	}
	return key, public, nil
}

// signingTemplate is a P-256 signing key that never leaves the TPM and that failed authorisations do not lock. A restricted one signs
// only what the TPM itself made.
func signingTemplate(restricted bool) tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true, Restricted: restricted, SignEncrypt: true,
		},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			Scheme:  tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256})},
			CurveID: tpm2.TPMECCNistP256,
		}),
	}
}

// createCounter defines the machine's counter and moves it once, without which it has no value. Its Name changes with that.
func (b bus) createCounter(index tpm2.TPMHandle) (*attest.Counter, error) {
	_, err := tpm2.NVDefineSpace{
		AuthHandle: b.owner(),
		PublicInfo: tpm2.New2B(tpm2.TPMSNVPublic{
			NVIndex: index, NameAlg: tpm2.TPMAlgSHA256, DataSize: 8,
			Attributes: tpm2.TPMANV{NT: tpm2.TPMNTCounter, AuthRead: true, AuthWrite: true, OwnerRead: true, NoDA: true},
		}),
	}.Execute(b)
	if err != nil {
		return nil, fmt.Errorf("TPM2_NV_DefineSpace of the counter: %w", outcome(err))
	}
	c, err := b.startCounter(index)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("the counter: %w", err), b.undefine(index))
	}
	return c, nil
}

func (b bus) startCounter(index tpm2.TPMHandle) (*attest.Counter, error) {
	named, err := b.nvName(index)
	if err != nil {
		return nil, err
	}
	if err := b.increment(named); err != nil {
		return nil, err
	}
	if named, err = b.nvName(index); err != nil {
		return nil, err
	}
	value, err := b.counter(named)
	if err != nil {
		return nil, err
	}
	return &attest.Counter{Index: uint32(index), Name: named.Name.Buffer, Value: value}, nil
}

// evict removes a persistent object that was just made.
func (b bus) evict(object tpm2.NamedHandle) error {
	_, err := tpm2.EvictControl{Auth: b.owner(), ObjectHandle: &object, PersistentHandle: object.Handle}.Execute(b)
	if err != nil {
		return fmt.Errorf("removing 0x%08X again (tpm2_evictcontrol -c 0x%08X does it): %w", uint32(object.Handle), uint32(object.Handle), err)
	}
	return nil
}

// undefine removes an NV index that was just made.
func (b bus) undefine(index tpm2.TPMHandle) error {
	named, err := b.nvName(index)
	if err == nil {
		_, err = tpm2.NVUndefineSpace{AuthHandle: b.owner(), NVIndex: named}.Execute(b)
	}
	if err != nil {
		return fmt.Errorf("removing 0x%08X again (tpm2_nvundefine 0x%08X does it): %w", uint32(index), uint32(index), err)
	}
	return nil
}

// persistent refuses what is not an owner's persistent handle.
func persistent(h uint32) error {
	if h < 0x81000000 || h > 0x817FFFFF {
		return fmt.Errorf("0x%08X is not one of the owner's persistent handles, 0x81000000 to 0x817FFFFF", h)
	}
	return nil
}
