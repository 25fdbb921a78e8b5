package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"bulla/api/server"
	"bulla/hsm"
	"bulla/ledger"
	"bulla/tpm"
)

// TSAConfig is the time-stamping authority (RFC 3161); without one no time-stamps are issued.
type TSAConfig struct {
	Key         string `toml:"key"`         // pkcs11: or tpm: URI, of a key on P-256 or P-384 that signs nothing else
	Certificate string `toml:"certificate"` // PEM file: the key's certificate, and those of its issuers, each behind what it issued
	Policy      string `toml:"policy"`      // object identifier that tokens are issued under
	Log         string `toml:"log"`         // name of the log that takes their entries
	Listen      string `toml:"listen"`      // TCP address, host:port; absent: http.sock alone
}

// maxChain bounds the file of certificates.
const maxChain = 64 << 10

// validateTSA checks what can be checked without devices.
func (c *Config) validateTSA() error {
	t := c.TSA
	if t == nil {
		return nil
	}
	if t.Key == "" {
		return errors.New("tsa.key: is missing")
	}
	for _, l := range c.Logs {
		if t.Key == l.Key || t.Key == l.Interop {
			return fmt.Errorf("tsa.key: is a key of log %s: time-stamps need one of their own", l.Name)
		}
	}
	if !filepath.IsAbs(t.Certificate) {
		return fmt.Errorf("tsa.certificate: %q must be an absolute path", t.Certificate)
	}
	if _, err := parseOID(t.Policy); err != nil {
		return fmt.Errorf("tsa.policy: %w", err)
	}
	if !slices.ContainsFunc(c.Logs, func(l LogConfig) bool { return l.Name == t.Log }) {
		return fmt.Errorf("tsa.log: there is no log with the name %q", t.Log)
	}
	if t.Listen != "" {
		if _, port, err := net.SplitHostPort(t.Listen); err != nil || port == "" {
			return fmt.Errorf("tsa.listen: %q must be host:port, as 192.0.2.1:3161", t.Listen)
		}
	}
	return nil
}

// parseOID reads an object identifier in dotted form, of at most 128 bytes.
func parseOID(s string) (asn1.ObjectIdentifier, error) {
	var oid asn1.ObjectIdentifier
	for _, arc := range strings.Split(s, ".") {
		n, err := strconv.ParseInt(arc, 10, 32)
		if err != nil || n < 0 || len(s) > 128 {
			return nil, fmt.Errorf("%.140q must be an object identifier, as 1.3.6.1.4.1.32473.1", s)
		}
		oid = append(oid, int(n))
	}
	if _, err := asn1.Marshal(oid); err != nil || oid.String() != s {
		return nil, fmt.Errorf("%.140q must be an object identifier, as 1.3.6.1.4.1.32473.1", s)
	}
	return oid, nil
}

// readChain reads a PEM file of certificates, and of nothing else.
func readChain(path string) ([]*x509.Certificate, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, usage(err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxChain+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	if len(data) > maxChain {
		return nil, usagef("%s: larger than %d bytes", path, maxChain)
	}
	var chain []*x509.Certificate
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, usagef("%s: has a %s in it: certificates only", path, block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, usagef("%s: certificate %d: %w", path, len(chain)+1, err)
		}
		chain = append(chain, c)
	}
	if len(chain) == 0 {
		return nil, usagef("%s: has no certificate in PEM", path)
	}
	return chain, nil
}

// authority puts key and certificate together, and refuses what clients would not trust. What serves it is for the caller to add.
func (t *TSAConfig) authority(ctx context.Context, d *devices) (cfg server.TSAConfig, err error) {
	if cfg.Key, _, err = d.signer(ctx, t.Key); err != nil {
		return cfg, fmt.Errorf("tsa.key: %w", err)
	}
	if cfg.Chain, err = readChain(t.Certificate); err != nil {
		return cfg, fmt.Errorf("tsa.certificate: %w", err)
	}
	if cfg.Policy, err = parseOID(t.Policy); err != nil {
		return cfg, usagef("tsa.policy: %w", err)
	}
	if _, err := server.NewTSA(cfg, time.Now()); err != nil {
		return cfg, usagef("tsa.certificate: %s: %w", t.Certificate, err)
	}
	cfg.Listen = t.Listen
	return cfg, nil
}

// openTSA makes the time-stamping authority, if there is to be one.
func (a *appliance) openTSA(ctx context.Context) error {
	if a.cfg.TSA == nil {
		return nil
	}
	cfg, err := a.cfg.TSA.authority(ctx, a.devices)
	if err != nil {
		return err
	}
	cfg.Ledger, cfg.Clock, cfg.Log = a.ledger(a.cfg.TSA.Log), a.clock.Now, a.log
	a.tsa, err = server.NewTSA(cfg, time.Now())
	return usage(err)
}

// ledger is that of the log with the name.
func (a *appliance) ledger(name string) *ledger.Ledger {
	for _, l := range a.logs {
		if l.Name == name {
			return l.Ledger
		}
	}
	return nil // validateTSA has refused such a name
}

// tsa tries the key and the certificate of time-stamps.
func (c *commissioning) tsa(ctx context.Context, d *devices, cfg *Config) {
	if cfg.TSA == nil {
		return
	}
	t, err := cfg.TSA.authority(ctx, d)
	if err != nil {
		c.report("tsa", "", err)
		return
	}
	leaf := t.Chain[0]
	left := time.Until(leaf.NotAfter).Hours() / 24
	c.report("tsa", fmt.Sprintf("the certificate of %s is the key's, and valid until %s (%.0f days)", leaf.Subject, leaf.NotAfter.UTC().Format(time.DateOnly), left), nil)
}

func tsaRequestCommand() *cobra.Command {
	var config, name, algorithm string
	c := &cobra.Command{
		Use:   "tsa-request --config FILE --name NAME",
		Short: "Make the key of time-stamps, and a request for its certificate",
		Long: `Print a certificate request (PKCS #10, PEM) for the key that [tsa] names. The key is made in its device if it is not there yet; one that is
there is used as it is. The request asks for what a TSA's certificate must have: the extended key usage timeStamping alone, and critical.`,
		Example: `  bullad tsa-request --config /etc/bulla/bullad.toml --name "Example TSA" >tsa.csr`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadConfig(config)
			if err != nil {
				return err
			}
			return tsaRequest(cmd.Context(), cfg, name, hsm.Algorithm(algorithm), cmd.OutOrStdout())
		},
	}
	c.Flags().StringVar(&config, "config", "/etc/bulla/bullad.toml", "configuration file")
	c.Flags().StringVar(&name, "name", "", "common name of the certificate's subject")
	c.Flags().StringVar(&algorithm, "algorithm", string(hsm.ECDSAP256), "of a key that is made: ecdsa-p256 or ecdsa-p384")
	must(c.MarkFlagRequired("name"))
	return c
}

func tsaRequest(ctx context.Context, cfg *Config, name string, a hsm.Algorithm, out io.Writer) (err error) {
	switch {
	case cfg.TSA == nil:
		return usagef("tsa: the configuration has no [tsa]: docs/bullad.toml shows one")
	case a != hsm.ECDSAP256 && a != hsm.ECDSAP384:
		return usagef("algorithm: %q is not one of ecdsa-p256, ecdsa-p384", string(a))
	case name == "" || len(name) > 64:
		return usagef("name: must be 1 to 64 bytes")
	}
	d, err := openDevices(ctx, cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	key, err := d.tsaKey(ctx, cfg.TSA.Key, a)
	if err != nil {
		return err
	}
	usages, err := timeStampingAlone()
	if err != nil {
		return err
	}
	request, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: name}, ExtraExtensions: []pkix.Extension{usages},
	}, key)
	if err != nil {
		return fmt.Errorf("making the request: %w", err)
	}
	return pem.Encode(out, &pem.Block{Type: "CERTIFICATE REQUEST", Bytes: request})
}

// tsaKey opens the key of time-stamps, and makes it if it is not there.
func (d *devices) tsaKey(ctx context.Context, uri string, a hsm.Algorithm) (crypto.Signer, error) {
	key, _, err := d.signer(ctx, uri)
	if !errors.Is(err, hsm.ErrNoKey) && !errors.Is(err, tpm.ErrNoKey) {
		return key, err
	}
	_, made, err := d.generate(ctx, uri, a, "tsa")
	return made.Signer, err
}

// timeStampingAlone is the extended key usage of a TSA's certificate (RFC 3161 section 2.3), which must be critical.
func timeStampingAlone() (pkix.Extension, error) {
	b, err := asn1.Marshal([]asn1.ObjectIdentifier{{1, 3, 6, 1, 5, 5, 7, 3, 8}})
	if err != nil {
		return pkix.Extension{}, fmt.Errorf("encoding the key usage: %w", err)
	}
	return pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 37}, Critical: true, Value: b}, nil
}

// encodeChain is the inverse of readChain.
func encodeChain(chain ...[]byte) []byte {
	var b bytes.Buffer
	for _, der := range chain {
		b.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	}
	return b.Bytes()
}
