package main

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"strings"

	"bulla/hsm"
	"bulla/ledger"
	"bulla/record"
	"bulla/tpm"
)

// devices holds the hardware that the daemon uses: PKCS#11 modules and tokens, opened once however many logs use them, and the TPM.
type devices struct {
	modules map[string]*hsm.Module
	tokens  map[string]*hsm.Token
	tpm     *tpm.TPM              // nil when none is configured
	turns   map[any]*ledger.Turns // by token, and of the TPM: for the logs that it signs
	given   givenPIN              // in place of one that the TPM keeps
}

func newDevices() *devices {
	return &devices{modules: map[string]*hsm.Module{}, tokens: map[string]*hsm.Token{}, turns: map[any]*ledger.Turns{}}
}

// openDevices opens the TPM; tokens are opened when a key in them is asked for.
func openDevices(ctx context.Context, c *Config) (*devices, error) {
	d := newDevices()
	if c.TPM.Device == "" {
		return d, nil
	}
	t, err := tpm.Open(ctx, tpm.Config{Address: c.TPM.Device})
	if err != nil {
		return nil, fmt.Errorf("opening the TPM: %w", err)
	}
	d.tpm, d.turns[t] = t, ledger.NewTurns(1)
	return d, nil
}

// token opens the token that a pkcs11: URI names.
func (d *devices) token(ctx context.Context, u hsm.URI) (*hsm.Token, error) {
	mc := u.ModuleConfig()
	m, ok := d.modules[mc.Path]
	if !ok {
		var err error
		if m, err = hsm.Load(mc); err != nil {
			return nil, usage(err)
		}
		d.modules[mc.Path] = m
	}
	tc := d.tokenConfig(u)
	id := mc.Path + "\n" + tc.String()
	t, ok := d.tokens[id]
	if !ok {
		var err error
		if t, err = m.Token(ctx, tc); err != nil {
			return nil, err
		}
		d.tokens[id], d.turns[t] = t, ledger.NewTurns(sessions)
	}
	return t, nil
}

// signer opens the key that a URI names. The code says what its failures are called.
func (d *devices) signer(ctx context.Context, uri string) (crypto.Signer, record.Code, error) {
	scheme, _, _ := strings.Cut(uri, ":")
	switch scheme {
	case "pkcs11":
		u, err := hsm.ParseURI(uri)
		if err != nil {
			return nil, "", usage(err)
		}
		t, err := d.token(ctx, u)
		if err != nil {
			return nil, "", err
		}
		k, err := t.Key(ctx, u.KeyRef())
		return k, record.CodeHSM, err
	case "tpm":
		if d.tpm == nil {
			return nil, "", usagef("key %s: name the TPM in [tpm] device", uri)
		}
		k, err := d.tpm.Key(ctx, uri)
		return k, record.CodeTPM, err
	}
	return nil, "", usagef("key %q: must be a pkcs11: or tpm: URI", uri)
}

// Close lets go of every device.
func (d *devices) Close() error {
	var errs []error
	for _, t := range d.tokens {
		errs = append(errs, t.Close())
	}
	for _, m := range d.modules {
		errs = append(errs, m.Close())
	}
	if d.tpm != nil {
		errs = append(errs, d.tpm.Close())
	}
	return errors.Join(errs...)
}
