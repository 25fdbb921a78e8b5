package attest

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/go-tpm/tpm2"
)

// Object identifiers of EK certificates (TCG EK Credential Profile, section 3).
var (
	oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidEKCertificate  = asn1.ObjectIdentifier{2, 23, 133, 8, 1}
)

// VerifyEK checks that an endorsement key's certificate leads to one of the roots, and returns the chain, the certificate first. The
// subject alternative name of such certificates holds the TPM's model, which x509 does not know and would refuse as critical.
func VerifyEK(der []byte, roots, intermediates *x509.CertPool) ([]*x509.Certificate, error) {
	return verifyEK(der, roots, intermediates, time.Time{})
}

// verifyEK is VerifyEK at a time; zero: now.
func verifyEK(der []byte, roots, intermediates *x509.CertPool, at time.Time) ([]*x509.Certificate, error) {
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("EK certificate: %w", err)
	}
	c.UnhandledCriticalExtensions = slices.DeleteFunc(c.UnhandledCriticalExtensions, oidSubjectAltName.Equal)
	if !slices.ContainsFunc(c.UnknownExtKeyUsage, oidEKCertificate.Equal) {
		return nil, errors.New("EK certificate: its extended key usage is not tcg-kp-EKCertificate")
	}
	chains, err := c.Verify(x509.VerifyOptions{Roots: roots, Intermediates: intermediates, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return nil, fmt.Errorf("EK certificate: %w", err)
	}
	return chains[0], nil
}

// CheckEK checks that a TPMT_PUBLIC is an endorsement key, a restricted decryption key that never leaves its TPM, and the one that
// the certificate is for.
func CheckEK(public []byte, c *x509.Certificate) error {
	p, err := parseEK(public)
	if err != nil {
		return err
	}
	key, err := tpm2.Pub(*p)
	if err != nil {
		return fmt.Errorf("EK: %w", err)
	}
	spki, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return fmt.Errorf("EK: %w", err)
	}
	if !bytes.Equal(spki, c.RawSubjectPublicKeyInfo) {
		return errors.New("EK: the certificate is for another key")
	}
	return nil
}

// CheckEndorsement checks that the enrolment's endorsement key is one that the roots certify. That the attestation key is of the same
// TPM is shown by a credential only. Certificates are judged as of when the last of them came into force, whenever this is asked: a
// log must not become untrue because a certificate has expired since, and enrolling looked at the time that it was.
func (e *Enrolment) CheckEndorsement(roots *x509.CertPool) error {
	if len(e.EKCertificates) == 0 {
		return errors.New("the enrolment has no certificate of an endorsement key")
	}
	others := x509.NewCertPool()
	var at time.Time
	for i, der := range e.EKCertificates {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return fmt.Errorf("ek_certificates[%d]: %w", i, err)
		}
		if c.NotBefore.After(at) {
			at = c.NotBefore
		}
		if i > 0 {
			others.AddCert(c)
		}
	}
	chain, err := verifyEK(e.EKCertificates[0], roots, others, at)
	if err != nil {
		return err
	}
	return CheckEK(e.EK, chain[0])
}

func parseEK(public []byte) (*tpm2.TPMTPublic, error) {
	p, err := parsePublic(public)
	if err != nil {
		return nil, fmt.Errorf("EK: %w", err)
	}
	if a := p.ObjectAttributes; !a.FixedTPM || !a.FixedParent || !a.SensitiveDataOrigin || !a.Restricted || !a.Decrypt || a.SignEncrypt {
		return nil, errors.New("EK: it is not a restricted decryption key that was made in a TPM and stays there")
	}
	return p, nil
}

// Credential is a secret that only the TPM that holds both an endorsement key and an attestation key can open: the proof that the
// attestation key is of the TPM that the certificate is for (TPM2_MakeCredential; Part 1, section 24).
type Credential struct {
	Blob   []byte `json:"blob"`   // TPM2B_ID_OBJECT, without size
	Secret []byte `json:"secret"` // TPM2B_ENCRYPTED_SECRET, without size
}

// MakeCredential makes a credential for an enrolled TPM, and the secret that opening it must give. It needs no TPM. It proves nothing
// of an enrolment whose EK certificate has not been checked with VerifyEK and CheckEK.
func MakeCredential(e *Enrolment) (c *Credential, secret [32]byte, err error) {
	ak, err := ParseAK(e.AK)
	if err != nil {
		return nil, secret, fmt.Errorf("making a credential: %w", err)
	}
	p, err := parseEK(e.EK)
	if err != nil {
		return nil, secret, fmt.Errorf("making a credential: %w", err)
	}
	ek, err := tpm2.ImportEncapsulationKey(p)
	if err != nil {
		return nil, secret, fmt.Errorf("making a credential: EK: %w", err)
	}
	if _, err := rand.Read(secret[:]); err != nil {
		return nil, secret, fmt.Errorf("making a credential: %w", err)
	}
	c = new(Credential)
	if c.Blob, c.Secret, err = tpm2.CreateCredential(rand.Reader, ek, ak.Name, secret[:]); err != nil {
		return nil, secret, fmt.Errorf("making a credential: %w", err)
	}
	return c, secret, nil
}

// qualifiedName is the qualified Name of a primary key of the endorsement hierarchy (Part 1, section 26.5): attestations by it name
// their signer so. A key elsewhere in the TPM has another.
func qualifiedName(name []byte) []byte {
	h := sha256.New()
	h.Write(tpm2.HandleName(tpm2.TPMRHEndorsement).Buffer)
	h.Write(name)
	return h.Sum([]byte{0x00, 0x0B})
}
