package attest

import (
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
)

// Object identifiers of EK certificates (TCG EK Credential Profile, section 3).
var (
	oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidEKCertificate  = asn1.ObjectIdentifier{2, 23, 133, 8, 1}
)

// VerifyEK checks that an endorsement key's certificate leads to one of the roots, and returns the chain, the certificate first. The
// subject alternative name of such certificates holds the TPM's model, which x509 does not know and would refuse as critical.
func VerifyEK(der []byte, roots, intermediates *x509.CertPool) ([]*x509.Certificate, error) {
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("EK certificate: %w", err)
	}
	c.UnhandledCriticalExtensions = slices.DeleteFunc(c.UnhandledCriticalExtensions, oidSubjectAltName.Equal)
	if !slices.ContainsFunc(c.UnknownExtKeyUsage, oidEKCertificate.Equal) {
		return nil, errors.New("EK certificate: its extended key usage is not tcg-kp-EKCertificate")
	}
	chains, err := c.Verify(x509.VerifyOptions{Roots: roots, Intermediates: intermediates, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return nil, fmt.Errorf("EK certificate: %w", err)
	}
	return chains[0], nil
}
