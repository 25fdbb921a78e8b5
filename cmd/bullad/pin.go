package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"bulla/hsm"
	"bulla/tpm"
)

// PINConfig is a PIN of an HSM token that the TPM keeps. Keys' URIs name it with pin-source=tpm:FILE.
type PINConfig struct {
	File     string `toml:"file"`     // what seal-pin makes
	Approver string `toml:"approver"` // pkcs11: URI of the key that approves PCR values: P-256, used for this alone
	PCRs     []int  `toml:"pcrs"`     // that it is sealed to
}

// pinScheme begins the pin-source of a PIN that the TPM keeps.
const pinScheme = "tpm:"

func (p *PINConfig) source() string { return pinScheme + p.File }

// pinTime bounds the unsealing of a PIN.
const pinTime = 30 * time.Second

// validatePINs checks what can be checked without devices.
func (c *Config) validatePINs() error {
	if len(c.PINs) > 0 && (c.TPM.Device == "" || c.TPM.Roots == "") {
		return errors.New("tpm: device and roots are needed for a [[pin]], which the TPM keeps")
	}
	var sources, keys []string
	for _, l := range c.Logs {
		keys = append(keys, l.Key, l.Interop)
	}
	if c.TSA != nil {
		keys = append(keys, c.TSA.Key)
	}
	for i, p := range c.PINs {
		where := fmt.Sprintf("pin[%d]", i)
		if !filepath.IsAbs(p.File) || slices.Contains(sources, p.source()) {
			return fmt.Errorf("%s.file: %q must be an absolute path of its own", where, p.File)
		}
		if !strings.HasPrefix(p.Approver, "pkcs11:") {
			return fmt.Errorf("%s.approver: must be the pkcs11: URI of a key in an HSM", where)
		}
		if slices.Contains(keys, p.Approver) {
			return fmt.Errorf("%s.approver: signs something else already: PCR values are approved by a key of their own", where)
		}
		if err := tpm.CheckSelection(p.PCRs, -1); err != nil {
			return fmt.Errorf("%s.pcrs: %w", where, err)
		}
		sources = append(sources, p.source())
	}
	for _, uri := range c.keyURIs() {
		u, err := hsm.ParseURI(uri)
		if err == nil && strings.HasPrefix(u.PINSource, pinScheme) && !slices.Contains(sources, u.PINSource) {
			return fmt.Errorf("pin-source=%s: no [[pin]] has this file", u.PINSource)
		}
	}
	return nil
}

// keyURIs are all that the configuration names.
func (c *Config) keyURIs() []string {
	var out []string
	for _, l := range c.Logs {
		out = append(out, l.Key, l.Interop)
	}
	if c.TSA != nil {
		out = append(out, c.TSA.Key)
	}
	for _, p := range c.PINs {
		out = append(out, p.Approver)
	}
	return slices.DeleteFunc(out, func(uri string) bool { return uri == "" })
}

// pin finds the section of a file; of the only one, if it is not named.
func (c *Config) pin(file string) (*PINConfig, error) {
	if file == "" && len(c.PINs) == 1 {
		return &c.PINs[0], nil
	}
	for i := range c.PINs {
		if file == c.PINs[i].File {
			return &c.PINs[i], nil
		}
	}
	switch {
	case len(c.PINs) == 0:
		return nil, usagef("the configuration has no [[pin]]: docs/bullad.toml shows one")
	case file == "":
		return nil, usagef("--file: name one of the %d [[pin]] sections by its file", len(c.PINs))
	}
	return nil, usagef("--file: no [[pin]] has the file %s", file)
}

// read reads the sealed PIN.
func (p *PINConfig) read() (*tpm.Secret, error) {
	f, err := os.Open(p.File)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, usagef("no PIN is sealed yet, or its file is gone: bullad seal-pin makes %s", p.File)
	}
	if err != nil {
		return nil, usage(err)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxConfig))
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("reading the sealed PIN: %w", err)
	}
	s, err := tpm.ParseSecret(b)
	if err != nil {
		return nil, usagef("%s: %w", p.File, err)
	}
	return s, nil
}

// givenPIN is a PIN that an operator gives in place of one that the TPM keeps.
type givenPIN struct {
	source string // pin-source; empty: there is none
	pin    []byte
}

// sessions of a token: a slow one is asked for several signatures at once.
const sessions = 4

// tokenConfig is what a URI says of its token, with PINs that the TPM keeps.
func (d *devices) tokenConfig(u hsm.URI) hsm.TokenConfig {
	tc := u.TokenConfig()
	tc.Sessions = sessions
	file, kept := strings.CutPrefix(u.PINSource, pinScheme)
	switch {
	case kept && d.given.source == u.PINSource:
		tc.PIN = func() ([]byte, error) { return bytes.Clone(d.given.pin), nil }
	case kept:
		tc.PIN = func() ([]byte, error) { return d.unseal(&PINConfig{File: file}) }
	}
	return tc
}

// unseal has the TPM give a PIN.
func (d *devices) unseal(p *PINConfig) ([]byte, error) {
	if d.tpm == nil {
		return nil, usagef("the PIN is kept by the TPM: name it in [tpm] device")
	}
	s, err := p.read()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), pinTime)
	defer cancel()
	return d.tpm.Unseal(ctx, s)
}
