package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"time"

	"bulla/hsm"
	"bulla/internal/durable"
)

// devPolicy is what a throwaway appliance issues tokens under: of the enterprise number that is kept for examples (RFC 5612).
const devPolicy = "1.3.6.1.4.1.32473.1"

// tsaConfig is the time-stamping authority of a throwaway appliance.
func (t *throwaway) tsaConfig() *TSAConfig {
	return &TSAConfig{Key: t.hsm.URI("dev", "tsa"), Certificate: t.path("tsa.pem"), Policy: devPolicy, Log: devName}
}

// certify has a throwaway authority, whose key is forgotten, issue the certificate of time-stamps, if there is none yet. It leaves the
// authority's own in tsa-ca.pem.
func (t *throwaway) certify(ctx context.Context, cfg *Config) (err error) {
	if _, err := os.Stat(cfg.TSA.Certificate); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	d, err := openDevices(ctx, &Config{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	key, err := d.tsaKey(ctx, cfg.TSA.Key, hsm.ECDSAP256)
	if err != nil {
		return fmt.Errorf("the key of time-stamps: %w", err)
	}
	usages, err := timeStampingAlone()
	if err != nil {
		return err
	}
	from := time.Now().Add(-time.Hour)
	authority, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("the authority of time-stamps: %w", err)
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Bulla dev CA"}, NotBefore: from, NotAfter: from.AddDate(10, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	root, err := x509.CreateCertificate(rand.Reader, ca, ca, authority.Public(), authority)
	if err != nil {
		return fmt.Errorf("the authority of time-stamps: %w", err)
	}
	leaf, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "Bulla dev TSA"}, NotBefore: from, NotAfter: from.AddDate(10, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtraExtensions: []pkix.Extension{usages},
	}, ca, key.Public(), authority)
	if err != nil {
		return fmt.Errorf("the certificate of time-stamps: %w", err)
	}
	if err := durable.Replace(t.path("tsa-ca.pem"), encodeChain(root), 0o600); err != nil {
		return err
	}
	return durable.Create(cfg.TSA.Certificate, encodeChain(leaf), 0o600)
}
