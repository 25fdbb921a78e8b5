package tpm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"math/big"
	"strconv"
	"strings"

	"github.com/google/go-tpm/tpm2"
)

var (
	// ErrNoKey means that there is no key at the handle.
	ErrNoKey = errors.New("no such key in the TPM")
	// ErrWrongKey means that a signature did not verify under the key's public part.
	ErrWrongKey = errors.New("the TPM signed with another key")
)

// Key is a signing key that the TPM holds: P-256, under the storage root key, not subject to dictionary attack lockout.
type Key struct {
	t      *TPM
	handle tpm2.NamedHandle
	pub    *ecdsa.PublicKey
	srk    tpm2.TPMTPublic // for salting sessions
}

var _ crypto.Signer = (*Key)(nil)

// KeyInfo is what the TPM says about a key, for evidence.
type KeyInfo struct {
	Handle       string `json:"handle"`
	Name         string `json:"name"` // hex
	Attributes   string `json:"attributes"`
	Manufacturer string `json:"manufacturer"`
	Firmware     string `json:"firmware"`
}

// srkHandle is where the TCG's Provisioning Guidance has the storage root key.
const srkHandle tpm2.TPMHandle = 0x81000001

// parseURI reads tpm:handle=0x81nnnnnn.
func parseURI(uri string) (tpm2.TPMHandle, error) {
	rest, ok := strings.CutPrefix(uri, "tpm:handle=0x")
	h, err := strconv.ParseUint(rest, 16, 32)
	if !ok || err != nil || persistent(uint32(h)) != nil {
		return 0, fmt.Errorf("key URI %q: must be tpm:handle=0x81000000 to 0x817FFFFF (the owner's persistent handles)", uri)
	}
	return tpm2.TPMHandle(h), nil
}

// GenerateKey makes a key at the handle that the URI names; it refuses with ErrExists one that is taken.
func (t *TPM) GenerateKey(ctx context.Context, uri string) (*KeyInfo, error) {
	h, err := parseURI(uri)
	if err != nil {
		return nil, err
	}
	var out *KeyInfo
	err = t.do(ctx, func(b bus) error {
		if err := b.vacant(h); err != nil {
			return err
		}
		name, err := b.createKey(h)
		if err != nil {
			return refused("owner", err)
		}
		out, err = b.keyInfo(tpm2.NamedHandle{Handle: h, Name: name})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("making key %s: %w", uri, err)
	}
	return out, nil
}

func (b bus) keyInfo(h tpm2.NamedHandle) (*KeyInfo, error) {
	info, err := b.info()
	if err != nil {
		return nil, err
	}
	return &KeyInfo{
		Handle: fmt.Sprintf("0x%08X", uint32(h.Handle)), Name: fmt.Sprintf("%x", h.Name.Buffer),
		Attributes: "fixedTPM fixedParent sensitiveDataOrigin userWithAuth noDA sign", Manufacturer: info.Manufacturer, Firmware: info.Firmware,
	}, nil
}

// Info is what the TPM says about the key.
func (k *Key) Info(ctx context.Context) (info *KeyInfo, err error) {
	err = k.t.do(ctx, func(b bus) error {
		info, err = b.keyInfo(k.handle)
		return err
	})
	return info, err
}

// DestroyKey removes the key at the handle that the URI names, whose public key (DER SubjectPublicKeyInfo) is spki; it refuses another.
func (t *TPM) DestroyKey(ctx context.Context, uri string, spki []byte) error {
	key, err := t.Key(ctx, uri)
	if err != nil {
		return err
	}
	found, err := x509.MarshalPKIXPublicKey(key.pub)
	if err == nil && !bytes.Equal(found, spki) {
		err = fmt.Errorf("it has another public key")
	}
	if err == nil {
		err = t.do(ctx, func(b bus) error { return refused("owner", b.evict(key.handle)) })
	}
	if err != nil {
		return fmt.Errorf("destroying key %s: %w", uri, err)
	}
	return nil
}

// createKey makes a signing key under the storage root key and keeps it at a handle.
func (b bus) createKey(at tpm2.TPMHandle) (tpm2.TPM2BName, error) {
	srk, err := b.storageRoot()
	if err != nil {
		return tpm2.TPM2BName{}, err
	}
	created, err := tpm2.Create{ParentHandle: authorised(srk), InPublic: tpm2.New2B(signingTemplate(false))}.Execute(b)
	if err != nil {
		return tpm2.TPM2BName{}, fmt.Errorf("TPM2_Create: %w", err)
	}
	loaded, err := tpm2.Load{ParentHandle: authorised(srk), InPrivate: created.OutPrivate, InPublic: created.OutPublic}.Execute(b)
	if err != nil {
		return tpm2.TPM2BName{}, fmt.Errorf("TPM2_Load: %w", err)
	}
	err = b.persist(tpm2.NamedHandle{Handle: loaded.ObjectHandle, Name: loaded.Name}, at)
	return loaded.Name, errors.Join(err, flush(b, loaded.ObjectHandle))
}

// storageRoot returns the storage root key, made from the TCG's template if the TPM has none yet.
func (b bus) storageRoot() (tpm2.NamedHandle, error) {
	r, err := tpm2.ReadPublic{ObjectHandle: srkHandle}.Execute(b)
	if err == nil {
		return tpm2.NamedHandle{Handle: srkHandle, Name: r.Name}, nil
	}
	if !absent(err) {
		return tpm2.NamedHandle{}, fmt.Errorf("TPM2_ReadPublic of the storage root key: %w", err)
	}
	created, err := tpm2.CreatePrimary{PrimaryHandle: b.owner(), InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}.Execute(b)
	if err != nil {
		return tpm2.NamedHandle{}, fmt.Errorf("TPM2_CreatePrimary of the storage root key: %w", err)
	}
	err = b.persist(tpm2.NamedHandle{Handle: created.ObjectHandle, Name: created.Name}, srkHandle)
	return tpm2.NamedHandle{Handle: srkHandle, Name: created.Name}, errors.Join(err, flush(b, created.ObjectHandle))
}

// Key opens the key that the URI names. The result signs with this key or not at all, whatever is put at the handle later.
func (t *TPM) Key(ctx context.Context, uri string) (*Key, error) {
	h, err := parseURI(uri)
	if err != nil {
		return nil, err
	}
	k := &Key{t: t}
	err = t.do(ctx, func(b bus) error {
		r, err := tpm2.ReadPublic{ObjectHandle: h}.Execute(b)
		if absent(err) {
			return fmt.Errorf("%w: %w", ErrNoKey, err)
		}
		if err != nil {
			return fmt.Errorf("TPM2_ReadPublic: %w", err)
		}
		k.handle = tpm2.NamedHandle{Handle: h, Name: r.Name}
		if k.pub, err = signingKey(r.OutPublic); err != nil {
			return err
		}
		srk, err := tpm2.ReadPublic{ObjectHandle: srkHandle}.Execute(b)
		if err != nil {
			return fmt.Errorf("TPM2_ReadPublic of the storage root key: %w", err)
		}
		public, err := srk.OutPublic.Contents()
		if err != nil {
			return fmt.Errorf("TPM2_ReadPublic of the storage root key: %w", err)
		}
		k.srk = *public
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("opening key %s: %w", uri, err)
	}
	return k, nil
}

// signingKey returns the public key of what is a signing key that was made in the TPM and stays there.
func signingKey(b tpm2.TPM2BPublic) (*ecdsa.PublicKey, error) {
	public, err := b.Contents()
	if err != nil {
		return nil, err
	}
	a := public.ObjectAttributes
	if !a.FixedTPM || !a.FixedParent || !a.SensitiveDataOrigin || !a.SignEncrypt || a.Decrypt || a.Restricted || !a.NoDA {
		return nil, errors.New("it is not a signing key that was made in the TPM and stays there")
	}
	pub, err := tpm2.Pub(*public)
	if err != nil {
		return nil, err
	}
	key, ok := pub.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, errors.New("it is not a P-256 key")
	}
	return key, nil
}

// Public returns the key's public part, an *ecdsa.PublicKey.
func (k *Key) Public() crypto.PublicKey { return k.pub }

// Sign signs a SHA-256 digest and returns the signature in DER, verified. The session's secret is known only to this process and to
// the TPM that has the storage root key, so that nothing on the bus between them can pass for its answer.
func (k *Key) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if opts == nil || opts.HashFunc() != crypto.SHA256 || len(digest) != crypto.SHA256.Size() {
		return nil, fmt.Errorf("signing with the TPM: the digest must be of SHA-256, 32 bytes, not %d", len(digest))
	}
	var sig *tpm2.TPMSSignatureECC
	err := k.t.do(context.Background(), func(b bus) error {
		session := tpm2.HMAC(tpm2.TPMAlgSHA256, 16, tpm2.Salted(srkHandle, k.srk), tpm2.AESEncryption(128, tpm2.EncryptIn))
		r, err := tpm2.Sign{
			KeyHandle:  tpm2.AuthHandle{Handle: k.handle.Handle, Name: k.handle.Name, Auth: session},
			Digest:     tpm2.TPM2BDigest{Buffer: digest},
			InScheme:   tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUSigScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSchemeHash{HashAlg: tpm2.TPMAlgSHA256})},
			Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck, Hierarchy: tpm2.TPMRHNull},
		}.Execute(b)
		if err != nil {
			return fmt.Errorf("TPM2_Sign: %w", err)
		}
		if sig, err = r.Signature.Signature.ECDSA(); err != nil {
			return fmt.Errorf("TPM2_Sign: %w", err)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("signing with the TPM: %w", err)
	}
	der, err := asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(sig.SignatureR.Buffer), new(big.Int).SetBytes(sig.SignatureS.Buffer)})
	if err != nil {
		return nil, fmt.Errorf("signing with the TPM: %w", err)
	}
	if !ecdsa.VerifyASN1(k.pub, digest, der) {
		return nil, fmt.Errorf("signing with the TPM: %w", ErrWrongKey)
	}
	return der, nil
}
