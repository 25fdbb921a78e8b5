package tpm

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"math/big"
	"strconv"
	"strings"

	"github.com/google/go-tpm/tpm2"

	"bulla/attest"
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
	srk    tpm2.TPMHandle // for salting sessions
	srkPub tpm2.TPMTPublic
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

// parseURI reads tpm:handle=0x81XXXXXX.
func parseURI(uri string) (tpm2.TPMHandle, error) {
	rest, ok := strings.CutPrefix(uri, "tpm:handle=0x")
	h, err := strconv.ParseUint(rest, 16, 32)
	if !ok || err != nil || h < 0x81000000 || h > 0x817FFFFF {
		return 0, fmt.Errorf("key URI %q: must be tpm:handle=0x81000000 to 0x817FFFFF (owner's persistent handles)", uri)
	}
	return tpm2.TPMHandle(h), nil
}

// GenerateKey makes a key at the handle that the URI names, which must be free.
func (t *TPM) GenerateKey(_ context.Context, uri string) (*KeyInfo, error) {
	h, err := parseURI(uri)
	if err != nil {
		return nil, err
	}
	if err := t.free(h); err != nil {
		return nil, fmt.Errorf("making key %s: %w", uri, err)
	}
	srk, err := t.root()
	if err != nil {
		return nil, fmt.Errorf("making key %s: %w", uri, err)
	}
	created, err := tpm2.Create{ParentHandle: authorised(*srk), InPublic: tpm2.New2B(signingTemplate(false))}.Execute(t.conn)
	if err != nil {
		return nil, fmt.Errorf("making key %s: TPM2_Create: %w", uri, err)
	}
	loaded, err := tpm2.Load{ParentHandle: authorised(*srk), InPrivate: created.OutPrivate, InPublic: created.OutPublic}.Execute(t.conn)
	if err != nil {
		return nil, fmt.Errorf("making key %s: TPM2_Load: %w", uri, err)
	}
	if err := errors.Join(t.persist(loaded.ObjectHandle, loaded.Name, h), t.flush(loaded.ObjectHandle)); err != nil {
		return nil, fmt.Errorf("making key %s: %w", uri, err)
	}
	info, err := t.Info()
	if err != nil {
		return nil, err
	}
	return &KeyInfo{
		Handle: fmt.Sprintf("0x%08X", uint32(h)), Name: fmt.Sprintf("%x", loaded.Name.Buffer),
		Attributes: "fixedTPM fixedParent sensitiveDataOrigin userWithAuth noDA sign", Manufacturer: info.Manufacturer, Firmware: info.Firmware,
	}, nil
}

// root returns the storage root key, made from the TCG's template if the TPM has none yet.
func (t *TPM) root() (*tpm2.NamedHandle, error) {
	if r, err := (tpm2.ReadPublic{ObjectHandle: srkHandle}).Execute(t.conn); err == nil {
		return &tpm2.NamedHandle{Handle: srkHandle, Name: r.Name}, nil
	} else if errors.Is(err, ErrUnavailable) || errors.Is(err, attest.ErrUnknown) {
		return nil, err
	}
	r, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}.Execute(t.conn)
	if err != nil {
		return nil, fmt.Errorf("TPM2_CreatePrimary of the storage root key: %w", err)
	}
	return &tpm2.NamedHandle{Handle: srkHandle, Name: r.Name}, errors.Join(t.persist(r.ObjectHandle, r.Name, srkHandle), t.flush(r.ObjectHandle))
}

// Key opens the key that the URI names. The result signs with this key or not at all, whatever is put at the handle later.
func (t *TPM) Key(_ context.Context, uri string) (*Key, error) {
	h, err := parseURI(uri)
	if err != nil {
		return nil, err
	}
	r, err := tpm2.ReadPublic{ObjectHandle: h}.Execute(t.conn)
	if errors.Is(err, ErrUnavailable) || errors.Is(err, attest.ErrUnknown) {
		return nil, fmt.Errorf("opening key %s: %w", uri, err)
	}
	if err != nil {
		return nil, fmt.Errorf("opening key %s: %w: %w", uri, ErrNoKey, err)
	}
	k := &Key{t: t, handle: tpm2.NamedHandle{Handle: h, Name: r.Name}, srk: srkHandle}
	if k.pub, err = signingKey(r.OutPublic); err != nil {
		return nil, fmt.Errorf("opening key %s: %w", uri, err)
	}
	srk, err := tpm2.ReadPublic{ObjectHandle: srkHandle}.Execute(t.conn)
	if err != nil {
		return nil, fmt.Errorf("opening key %s: the storage root key: %w", uri, err)
	}
	public, err := srk.OutPublic.Contents()
	if err != nil {
		return nil, fmt.Errorf("opening key %s: the storage root key: %w", uri, err)
	}
	k.srkPub = *public
	return k, nil
}

func signingKey(b tpm2.TPM2BPublic) (*ecdsa.PublicKey, error) {
	public, err := b.Contents()
	if err != nil {
		return nil, err
	}
	a := public.ObjectAttributes
	if !a.FixedTPM || !a.SensitiveDataOrigin || !a.SignEncrypt || a.Decrypt || a.Restricted || !a.NoDA {
		return nil, errors.New("it is not a signing key that was made in the TPM and stays there")
	}
	pub, err := tpm2.Pub(*public)
	if err != nil {
		return nil, err
	}
	key, ok := pub.(*ecdsa.PublicKey)
	if !ok || key.Curve.Params().BitSize != 256 {
		return nil, errors.New("it is not a P-256 key")
	}
	return key, nil
}

// Public returns the key's public part, an *ecdsa.PublicKey.
func (k *Key) Public() crypto.PublicKey { return k.pub }

// Sign signs a SHA-256 digest and returns the signature in DER, verified.
func (k *Key) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if opts == nil || opts.HashFunc() != crypto.SHA256 || len(digest) != crypto.SHA256.Size() {
		return nil, fmt.Errorf("signing with the TPM: the digest must be of SHA-256, 32 bytes, not %d", len(digest))
	}
	session := tpm2.HMAC(tpm2.TPMAlgSHA256, 16, tpm2.Salted(k.srk, k.srkPub), tpm2.AESEncryption(128, tpm2.EncryptIn))
	r, err := tpm2.Sign{
		KeyHandle:  tpm2.AuthHandle{Handle: k.handle.Handle, Name: k.handle.Name, Auth: session},
		Digest:     tpm2.TPM2BDigest{Buffer: digest},
		InScheme:   tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUSigScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSchemeHash{HashAlg: tpm2.TPMAlgSHA256})},
		Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck, Hierarchy: tpm2.TPMRHNull},
	}.Execute(k.t.conn)
	if err != nil {
		return nil, fmt.Errorf("TPM2_Sign: %w", err)
	}
	sig, err := r.Signature.Signature.ECDSA()
	if err != nil {
		return nil, fmt.Errorf("TPM2_Sign: %w", err)
	}
	der, err := asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(sig.SignatureR.Buffer), new(big.Int).SetBytes(sig.SignatureS.Buffer)})
	if err != nil {
		return nil, fmt.Errorf("TPM2_Sign: %w", err)
	}
	if !ecdsa.VerifyASN1(k.pub, digest, der) {
		return nil, ErrWrongKey
	}
	return der, nil
}
