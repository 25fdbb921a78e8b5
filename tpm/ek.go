package tpm

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"bulla/attest"
)

// Endorsement keys, with where the TCG's EK Credential Profile (2.5, section 2.2) places certificates and keys, and the templates
// from which a TPM makes the key that the certificate is for (appendix B).
var endorsements = []struct {
	certificate, key tpm2.TPMHandle
	template         tpm2.TPMTPublic
}{
	{0x01C0000A, 0x81010002, tpm2.ECCEKTemplate}, // L-2: ECC P-256
	{0x01C00014, 0x81010014, highP256},           // H-2: ECC P-256
	{0x01C00016, 0x81010016, highP384},           // H-3: ECC P-384
	{0x01C00002, 0x81010001, tpm2.RSAEKTemplate}, // L-1: RSA 2048
}

// Certificates of authorities that a TPM brings with it (section 2.2.1.5.2): concatenated, in as many indices as needed.
const firstChain, lastChain tpm2.TPMHandle = 0x01C00100, 0x01C001FF

// The templates of the high range differ in authorisation: by password or policy, PolicySecret or what the owner authorises.
var (
	highP256 = highTemplate(tpm2.TPMAlgSHA256, tpm2.TPMECCNistP256, 128, []byte{
		0xCA, 0x3D, 0x0A, 0x99, 0xA2, 0xB9, 0x39, 0x06, 0xF7, 0xA3, 0x34, 0x24, 0x14, 0xEF, 0xCF, 0xB3,
		0xA3, 0x85, 0xD4, 0x4C, 0xD1, 0xFD, 0x45, 0x90, 0x89, 0xD1, 0x9B, 0x50, 0x71, 0xC0, 0xB7, 0xA0,
	})
	highP384 = highTemplate(tpm2.TPMAlgSHA384, tpm2.TPMECCNistP384, 256, []byte{
		0xB2, 0x6E, 0x7D, 0x28, 0xD1, 0x1A, 0x50, 0xBC, 0x53, 0xD8, 0x82, 0xBC, 0xF5, 0xFD, 0x3A, 0x1A,
		0x07, 0x41, 0x48, 0xBB, 0x35, 0xD3, 0xB4, 0xE4, 0xCB, 0x1C, 0x0A, 0xD9, 0xBD, 0xE4, 0x19, 0xCA,
		0xCB, 0x47, 0xBA, 0x09, 0x69, 0x96, 0x46, 0x15, 0x0F, 0x9F, 0xC0, 0x00, 0xF3, 0xF8, 0x0E, 0x12,
	})
)

func highTemplate(name tpm2.TPMAlgID, curve tpm2.TPMECCCurve, bits tpm2.TPMKeyBits, policy []byte) tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: name,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, AdminWithPolicy: true, Restricted: true, Decrypt: true,
		},
		AuthPolicy: tpm2.TPM2BDigest{Buffer: policy},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			Symmetric: tpm2.TPMTSymDefObject{
				Algorithm: tpm2.TPMAlgAES, KeyBits: tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, bits), Mode: tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, tpm2.TPMAlgCFB),
			},
			CurveID: curve,
		}),
	}
}

// endorsement is an endorsement key with the evidence for it.
type endorsement struct {
	public       []byte // TPMT_PUBLIC
	certificates [][]byte
}

// endorsement finds the first endorsement key whose certificate leads to one of the roots.
func (b bus) endorsement(rootsPEM []byte) (*endorsement, error) {
	roots, others, err := parseCertificates(rootsPEM)
	if err != nil {
		return nil, err
	}
	brought, err := b.chain()
	if err != nil {
		return nil, err
	}
	for _, c := range brought {
		others.AddCert(c)
	}
	var tried []error
	for _, k := range endorsements {
		der, err := b.certificate(k.certificate)
		if absent(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("certificate at 0x%08X: %w", uint32(k.certificate), err)
		}
		chain, err := attest.VerifyEK(der, roots, others)
		if err != nil {
			tried = append(tried, fmt.Errorf("certificate at 0x%08X: %w", uint32(k.certificate), err))
			continue
		}
		public, err := b.certified(chain[0], k.key, k.template)
		if err != nil {
			tried = append(tried, fmt.Errorf("key 0x%08X: %w", uint32(k.key), err))
			continue
		}
		out := &endorsement{public: public}
		for _, c := range chain {
			out.certificates = append(out.certificates, c.Raw)
		}
		return out, nil
	}
	if len(tried) == 0 {
		return nil, errors.New("the TPM has no certificate of an endorsement key")
	}
	return nil, fmt.Errorf("no endorsement key is certified by the given roots: %w", errors.Join(tried...))
}

// certified returns the public area of the key that a certificate is for: the persistent one, or the one made from the template.
func (b bus) certified(c *x509.Certificate, at tpm2.TPMHandle, template tpm2.TPMTPublic) ([]byte, error) {
	var public []byte
	err := b.withEK(at, template, func(_ tpm2.NamedHandle, p *tpm2.TPMTPublic) error {
		public = tpm2.Marshal(p)
		return attest.CheckEK(public, c)
	})
	return public, err
}

// withEK runs use with an endorsement key, which it makes for the time if it is not persistent.
func (b bus) withEK(at tpm2.TPMHandle, template tpm2.TPMTPublic, use func(tpm2.NamedHandle, *tpm2.TPMTPublic) error) error {
	var key tpm2.NamedHandle
	var public tpm2.TPM2BPublic
	r, err := tpm2.ReadPublic{ObjectHandle: at}.Execute(b)
	switch {
	case err == nil:
		key, public = tpm2.NamedHandle{Handle: at, Name: r.Name}, r.OutPublic
	case absent(err):
		created, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHEndorsement, InPublic: tpm2.New2B(template)}.Execute(b)
		if err != nil {
			return fmt.Errorf("TPM2_CreatePrimary: %w", err)
		}
		key, public = tpm2.NamedHandle{Handle: created.ObjectHandle, Name: created.Name}, created.OutPublic
	default:
		return fmt.Errorf("TPM2_ReadPublic: %w", err)
	}
	p, err := public.Contents()
	if err == nil {
		err = use(key, p)
	}
	if key.Handle != at {
		err = errors.Join(err, flush(b, key.Handle))
	}
	return err
}

// withPinned runs use with the endorsement key that has this TPMT_PUBLIC. The error wraps ErrOtherMachine if the TPM has another one.
func (b bus) withPinned(ek []byte, use func(tpm2.NamedHandle, *tpm2.TPMTPublic) error) error {
	pinned, err := tpm2.Unmarshal[tpm2.TPMTPublic](ek)
	if err != nil {
		return fmt.Errorf("the enrolled endorsement key: %w", err)
	}
	for _, k := range endorsements {
		if k.template.NameAlg != pinned.NameAlg || k.template.Type != pinned.Type || k.template.ObjectAttributes != pinned.ObjectAttributes {
			continue
		}
		return b.withEK(k.key, k.template, func(key tpm2.NamedHandle, p *tpm2.TPMTPublic) error {
			if !bytes.Equal(tpm2.Marshal(p), ek) {
				return fmt.Errorf("%w: its endorsement key is another", ErrOtherMachine)
			}
			return use(key, p)
		})
	}
	return errors.New("the enrolled endorsement key is of no known template")
}

// ActivateCredential opens a credential that an auditor made for the enrolled attestation key and the endorsement key beside it. That
// it can be opened proves that one TPM holds both (TPM2_ActivateCredential; Part 1, section 24). If this TPM cannot open it, for it is
// another or the credential is for other keys, the error wraps attest.ErrNotOpened.
func (m *Machine) ActivateCredential(ctx context.Context, e *attest.Enrolment, c attest.Credential) (secret []byte, err error) {
	err = m.t.do(ctx, func(b bus) error {
		err := b.withPinned(e.EK, func(key tpm2.NamedHandle, public *tpm2.TPMTPublic) error {
			secret, err = m.activate(b, key, public, c)
			return err
		})
		if errors.Is(err, ErrOtherMachine) {
			return fmt.Errorf("%w: %w", attest.ErrNotOpened, err)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("activating a credential: %w", err)
	}
	return secret, nil
}

func (m *Machine) activate(b bus, key tpm2.NamedHandle, public *tpm2.TPMTPublic, c attest.Credential) (secret []byte, err error) {
	ek := authorised(key)
	if !public.ObjectAttributes.UserWithAuth { // then by the policy of the template: PolicySecret of the endorsement hierarchy
		session, done, err := tpm2.PolicySession(b, tpm2.TPMAlgSHA256, 16)
		if err != nil {
			return nil, fmt.Errorf("TPM2_StartAuthSession: %w", err)
		}
		defer func() { err = errors.Join(err, done()) }()
		_, err = tpm2.PolicySecret{
			AuthHandle: authorised(tpm2.NamedHandle{Handle: tpm2.TPMRHEndorsement, Name: tpm2.HandleName(tpm2.TPMRHEndorsement)}), PolicySession: session.Handle(), NonceTPM: session.NonceTPM(),
		}.Execute(b)
		if err != nil {
			return nil, fmt.Errorf("TPM2_PolicySecret: %w", err)
		}
		ek.Auth = session
	}
	r, err := tpm2.ActivateCredential{
		ActivateHandle: authorised(m.ak), KeyHandle: ek,
		CredentialBlob: tpm2.TPM2BIDObject{Buffer: c.Blob}, Secret: tpm2.TPM2BEncryptedSecret{Buffer: c.Secret},
	}.Execute(b)
	if b.unopened(err) {
		return nil, fmt.Errorf("%w: TPM2_ActivateCredential: %w", attest.ErrNotOpened, err)
	}
	if err != nil {
		return nil, fmt.Errorf("TPM2_ActivateCredential: %w", err)
	}
	return r.CertInfo.Buffer, nil
}

// unopened reports whether TPM2_ActivateCredential failed because of what it was given, and not of how the TPM is: with a code of format
// one (Part 2, section 6.6.2), or, as libtpms does for an RSA key, with TPM_RC_FAILURE while it goes on working.
func (b bus) unopened(err error) bool {
	var code tpm2.TPMRC
	switch {
	case !errors.As(err, &code):
		return false
	case code&0x80 != 0:
		return true
	case code != tpm2.TPMRCFailure:
		return false
	}
	_, err = tpm2.ReadClock{}.Execute(b)
	return err == nil
}

// chain reads the certificates of authorities that the TPM brings with it.
func (b bus) chain() ([]*x509.Certificate, error) {
	indices, err := handlesFrom(b, firstChain)
	if err != nil {
		return nil, err
	}
	var all []byte
	for _, i := range indices {
		if i > lastChain {
			break
		}
		part, err := b.nvAll(i)
		if err != nil {
			return nil, err
		}
		all = append(all, part...)
	}
	var out []*x509.Certificate
	for len(all) > 0 && all[0] == 0x30 { // what follows the last is padding
		var der asn1.RawValue
		if all, err = asn1.Unmarshal(all, &der); err != nil {
			return nil, fmt.Errorf("certificates from 0x%08X on: %w", uint32(firstChain), err)
		}
		c, err := x509.ParseCertificate(der.FullBytes)
		if err != nil {
			return nil, fmt.Errorf("certificates from 0x%08X on: %w", uint32(firstChain), err)
		}
		out = append(out, c)
	}
	return out, nil
}

// certificate reads a DER certificate from NV, where it may be padded.
func (b bus) certificate(index tpm2.TPMHandle) ([]byte, error) {
	all, err := b.nvAll(index)
	if err != nil {
		return nil, err
	}
	var der asn1.RawValue
	if _, err := asn1.Unmarshal(all, &der); err != nil {
		return nil, fmt.Errorf("not a certificate: %w", err)
	}
	return der.FullBytes, nil
}

// nvAll reads all of an NV index, in parts that every TPM gives.
func (b bus) nvAll(index tpm2.TPMHandle) ([]byte, error) {
	r, err := tpm2.NVReadPublic{NVIndex: index}.Execute(b)
	if err != nil {
		return nil, fmt.Errorf("TPM2_NV_ReadPublic: %w", err)
	}
	public, err := r.NVPublic.Contents()
	if err != nil {
		return nil, fmt.Errorf("TPM2_NV_ReadPublic: %w", err)
	}
	named := tpm2.NamedHandle{Handle: index, Name: r.NVName}
	out := make([]byte, 0, public.DataSize)
	for len(out) < int(public.DataSize) {
		part, err := b.nvRead(named, min(512, public.DataSize-uint16(len(out))), uint16(len(out)))
		if err != nil {
			return nil, err
		}
		if len(part) == 0 {
			return nil, fmt.Errorf("TPM2_NV_Read 0x%08X: nothing", uint32(index))
		}
		out = append(out, part...)
	}
	return out, nil
}

// parseCertificates sorts a PEM file into self-signed roots and the rest.
func parseCertificates(b []byte) (roots, others *x509.CertPool, err error) {
	roots, others = x509.NewCertPool(), x509.NewCertPool()
	n := 0
	for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, nil, fmt.Errorf("roots: %w", err)
		}
		if bytes.Equal(c.RawIssuer, c.RawSubject) {
			roots.AddCert(c)
			n++
		} else {
			others.AddCert(c)
		}
	}
	if n == 0 {
		return nil, nil, errors.New("roots: no self-signed certificate in PEM form")
	}
	return roots, others, nil
}
