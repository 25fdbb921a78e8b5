package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"bulla/ceremony"
	"bulla/hsm"
	"bulla/ledger"
	"bulla/record"
	"bulla/tpm"
)

// The configuration names where a log's keys are: the token, or the TPM, and in it the first key, which genesis made. Which key is in
// force is governed. Those that ceremonies make later lie beside the first: in the token as OBJECT-NUMBER, by the number of the
// proposal, in the TPM as many handles behind it.

// tpmKeys begins the URI of a key in the TPM, before its handle.
const tpmKeys = "tpm:handle="

// governed opens a key of a log, wherever it is beside the one that uri names.
func (d *devices) governed(ctx context.Context, uri string, k ceremony.Key) (ledger.Signer, error) {
	if uri == "" {
		return ledger.Signer{}, usagef("a key for %q is governed: name where it is in the configuration", k.Purpose)
	}
	if strings.HasPrefix(uri, tpmKeys) {
		if h := k.Attributes["handle"]; h != "" {
			uri = tpmKeys + h
		}
		s, code, err := d.signer(ctx, uri)
		return ledger.Signer{Signer: s, Device: code, Turns: d.turns[d.tpm]}, err
	}
	u, err := hsm.ParseURI(uri)
	if err != nil {
		return ledger.Signer{}, usage(err)
	}
	t, err := d.token(ctx, u)
	if err != nil {
		return ledger.Signer{}, err
	}
	hash := k.Hash()
	ref := u.KeyRef()
	if label := k.Attributes["label"]; label != "" {
		if u.Object != "" && !beside(u.Object, label) {
			if _, err := t.Key(ctx, ref); err != nil { // the better reason
				return ledger.Signer{}, err
			}
			return ledger.Signer{}, fmt.Errorf("%w: the configuration names object %q, the log's key is %q; check the key's URI", ledger.ErrKey, u.Object, label)
		}
		ref = hsm.KeyRef{Label: label}
	}
	ref.SPKISHA256 = hash[:]
	key, err := t.Key(ctx, ref)
	if err != nil {
		return ledger.Signer{}, err
	}
	return ledger.Signer{Signer: key, Device: record.CodeHSM, Turns: d.turns[t]}, nil
}

// beside reports whether label is that of the first object, or of a key that a ceremony made beside it.
func beside(object, label string) bool {
	return label == object || strings.HasPrefix(label, object+"-")
}

// uri is where the configuration has a log's keys for a purpose.
func (c *Config) uri(lc LogConfig, purpose string) (string, error) {
	switch {
	case purpose == ceremony.PurposeLog:
		return lc.Key, nil
	case purpose == ceremony.PurposeInterop && lc.Interop != "":
		return lc.Interop, nil
	case purpose == ceremony.PurposePCR && len(c.PINs) > 0:
		return c.PINs[0].Approver, nil
	}
	return "", usagef("the configuration has no place for keys for %q: set log.interop, or a [[pin]] with its approver", purpose)
}

// newPlace is where the key that a proposal asks for is made.
func newPlace(uri string, p *ceremony.KeyGenerate, number uint64) (string, error) {
	if handle, ok := strings.CutPrefix(uri, tpmKeys+"0x"); ok {
		first, err := strconv.ParseUint(handle, 16, 32)
		if err != nil || number > 0xFFFF {
			return "", usagef("key %s: no handle for proposal %d", uri, number)
		}
		if p.Label != "" {
			return "", usagef("label: keys in the TPM have none")
		}
		return fmt.Sprintf("%s0x%08X", tpmKeys, first+number), nil
	}
	u, err := hsm.ParseURI(uri)
	if err != nil {
		return "", usage(err)
	}
	label := p.Label
	if label == "" {
		label = fmt.Sprintf("%s-%d", u.Object, number)
	}
	if label == u.Object || !beside(u.Object, label) {
		return "", usagef("label: must begin with %q, so that the key is found beside the first", u.Object+"-")
	}
	u.Object, u.ID = label, nil
	return u.String(), nil
}

// exists reports whether a key is at a place.
func (d *devices) exists(ctx context.Context, uri string) (bool, error) {
	_, _, err := d.signer(ctx, uri)
	if errors.Is(err, hsm.ErrNoKey) || errors.Is(err, tpm.ErrNoKey) {
		return false, nil
	}
	return err == nil, err
}

// destroy destroys a key of a log in its device. It is no error that it is not there any more.
func (d *devices) destroy(ctx context.Context, uri string, k ceremony.Key) (found bool, err error) {
	if strings.HasPrefix(uri, tpmKeys) {
		err = d.tpm.DestroyKey(ctx, tpmKeys+""+k.Attributes["handle"], k.SPKI)
	} else {
		var u hsm.URI
		if u, err = hsm.ParseURI(uri); err != nil {
			return false, usage(err)
		}
		t, err2 := d.token(ctx, u)
		if err2 != nil {
			return false, err2
		}
		hash := k.Hash()
		err = t.Destroy(ctx, hsm.KeyRef{Label: k.Attributes["label"], SPKISHA256: hash[:]})
	}
	if errors.Is(err, hsm.ErrNoKey) || errors.Is(err, tpm.ErrNoKey) {
		return false, nil
	}
	return err == nil, err
}
