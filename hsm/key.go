package hsm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"

	"github.com/miekg/pkcs11"
)

// KeyRef names a key in a token. Label or ID is required; what is given must all match, and exactly one key may.
type KeyRef struct {
	Label      string // CKA_LABEL
	ID         []byte // CKA_ID
	SPKISHA256 []byte // SHA-256 of the public key's DER SubjectPublicKeyInfo
}

// String names the key as in a URI.
func (r KeyRef) String() string { return URI{Object: r.Label, ID: r.ID}.String() }

func (r KeyRef) check() error {
	if r.Label == "" && len(r.ID) == 0 {
		return errors.New("name the key by label (object) or id")
	}
	if len(r.SPKISHA256) != 0 && len(r.SPKISHA256) != sha256.Size {
		return fmt.Errorf("a public key's hash of %d bytes, want %d", len(r.SPKISHA256), sha256.Size)
	}
	return nil
}

// KeyInfo is what a token says of a key, for evidence. Flags are the token's claims; an absent one it does not know.
type KeyInfo struct {
	Label      string    `json:"label"`
	ID         string    `json:"id"` // hex
	Algorithm  Algorithm `json:"algorithm"`
	SPKI       []byte    `json:"spki"`        // DER SubjectPublicKeyInfo
	SPKISHA256 string    `json:"spki_sha256"` // hex

	Sensitive        *bool `json:"sensitive,omitempty"`
	AlwaysSensitive  *bool `json:"always_sensitive,omitempty"`
	Extractable      *bool `json:"extractable,omitempty"`
	NeverExtractable *bool `json:"never_extractable,omitempty"`
	Local            *bool `json:"local,omitempty"` // made in the token; NSS denies it of keys that it made
	Private          *bool `json:"private,omitempty"`
	Sign             *bool `json:"sign,omitempty"`
	Decrypt          *bool `json:"decrypt,omitempty"`
	Unwrap           *bool `json:"unwrap,omitempty"`
	Derive           *bool `json:"derive,omitempty"`
	Modifiable       *bool `json:"modifiable,omitempty"`
	Copyable         *bool `json:"copyable,omitempty"`
}

// Key is a private key in a token, pinned to its public key: whatever happens to the token, it signs with this key or not at all.
type Key struct {
	t    *Token
	pin  pin
	pub  crypto.PublicKey
	info KeyInfo
}

// pin is what makes a found key the right one.
type pin struct {
	label, id string
	spki      [sha256.Size]byte
}

func (p pin) ref() KeyRef { return KeyRef{Label: p.label, ID: []byte(p.id), SPKISHA256: p.spki[:]} }

// Key finds the one key that matches, reads its attributes, and refuses a key that may leave the token ([ErrWeakKey]).
func (t *Token) Key(ctx context.Context, ref KeyRef) (*Key, error) {
	k, err := t.key(ctx, ref)
	if err != nil {
		return nil, fmt.Errorf("finding key %s in token %s: %w", ref, t.cfg, err)
	}
	return k, nil
}

func (t *Token) key(ctx context.Context, ref KeyRef) (*Key, error) {
	if err := ref.check(); err != nil {
		return nil, err
	}
	var k *Key
	err := t.do(ctx, func(s *session) error {
		return s.recover(func() error {
			found, err := s.match(ref)
			if err != nil {
				return err
			}
			info, err := s.describe(found)
			if err != nil {
				return err
			}
			k = &Key{t: t, pin: found.pin(), pub: found.pub, info: info}
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	if err := k.info.guarded(); err != nil {
		return nil, err
	}
	return k, nil
}

// Public returns the pinned public key: *ecdsa.PublicKey, ed25519.PublicKey or *rsa.PublicKey.
func (k *Key) Public() crypto.PublicKey { return k.pub }

// Info returns the key's attributes as they were when it was found.
func (k *Key) Info() KeyInfo { return k.info }

// Ref names the key by all that pins it, as Destroy wants it.
func (k *Key) Ref() KeyRef { return k.pin.ref() }

// Sign implements [crypto.Signer]; see SignContext. The token is its own source of randomness.
func (k *Key) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return k.SignContext(context.Background(), digest, opts)
}

// SignContext signs a digest made with opts.HashFunc(), or for Ed25519 a message, with crypto.Hash(0) as opts. RSA needs
// *rsa.PSSOptions with the salt as long as the hash. ECDSA signatures are ASN.1 DER. The signature has been verified under the
// public key. ctx bounds the waiting for a session and for the token's answer.
func (k *Key) SignContext(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if err := checkInput(k.pub, digest, opts); err != nil {
		return nil, fmt.Errorf("signing: %w", err)
	}
	input, hash := bytes.Clone(digest), opts.HashFunc() // a call that hangs outlives its caller's buffer
	result := make(chan []byte, 1)
	err := k.t.do(ctx, func(s *session) error {
		return s.recover(func() error {
			sig, err := s.sign(k, input, hash)
			if err == nil {
				result <- sig
			}
			return err
		})
	})
	if err != nil {
		return nil, fmt.Errorf("signing with key %s in token %s: %w", k.pin.ref(), k.t.cfg, err)
	}
	k.t.signatures.Add(1)
	k.t.module.works.Store(true)
	return <-result, nil
}

// sign makes one attempt and verifies what comes of it.
func (s *session) sign(k *Key, input []byte, hash crypto.Hash) ([]byte, error) {
	private, ok := s.keys[k.pin]
	if !ok {
		found, err := s.match(k.pin.ref())
		switch {
		case errors.Is(err, ErrNoKey):
			s.t.module.missing.Store(true)
			return nil, fmt.Errorf("%w: %w", ErrKeyGone, err)
		case err != nil:
			return nil, err
		}
		private = found.private
		s.keys[k.pin] = private
	}
	sig, err := s.rawSign(private, k.pub, input, hash)
	if err != nil {
		return nil, err
	}
	if !verify(k.pub, input, hash, sig) {
		return nil, errBadSignature
	}
	return sig, nil
}

func (s *session) rawSign(private pkcs11.ObjectHandle, pub crypto.PublicKey, input []byte, hash crypto.Hash) ([]byte, error) {
	lib := s.t.module.lib
	if err := lib.SignInit(s.handle, []*pkcs11.Mechanism{mechanism(pub, hash)}, private); err != nil {
		return nil, call("C_SignInit", err)
	}
	raw, err := lib.Sign(s.handle, input)
	if err != nil {
		return nil, call("C_Sign", err)
	}
	return encodeSignature(pub, raw)
}

// found is a private key and the public key beside it.
type found struct {
	private, public pkcs11.ObjectHandle
	label           string
	id              []byte
	algorithm       Algorithm
	pub             crypto.PublicKey
	spki            []byte
}

func (f found) pin() pin { return pin{f.label, string(f.id), sha256.Sum256(f.spki)} }

// match finds the one private key that ref names, with its public key. Handles pair by CKA_ID; two of a kind with one ID cannot be
// told apart, whatever the pin says.
func (s *session) match(ref KeyRef) (found, error) {
	privates, err := s.privates(ref)
	if err != nil {
		return found{}, err
	}
	var pairs []found
	var mismatch error // why a public key was passed over
	for _, private := range privates {
		publics, id, err := s.publics(private)
		if err != nil {
			return found{}, err
		}
		for _, public := range publics {
			f, err := s.readPublic(public)
			if err == nil {
				f.private, f.id = private, id
				err = f.pinned(ref)
			}
			switch {
			case err == nil:
				pairs = append(pairs, f)
			case errors.Is(err, ErrUnsupported), errors.Is(err, ErrWrongKey):
				mismatch = err
			default:
				return found{}, err
			}
		}
	}
	switch {
	case len(pairs) > 1:
		return found{}, fmt.Errorf("%w: %d private keys, %d pairs; name it by id, or destroy what is not it", ErrManyKeys, len(privates), len(pairs))
	case len(pairs) == 0 && mismatch != nil:
		return found{}, mismatch
	case len(pairs) == 0:
		return found{}, fmt.Errorf("%w: there is a private key, and no public key of its id", ErrNoKey)
	}
	return s.complete(pairs[0])
}

// most is how many objects of one name are looked at.
const most = 16

// privates finds the private keys that label and id name.
func (s *session) privates(ref KeyRef) ([]pkcs11.ObjectHandle, error) {
	template := []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_CLASS, uint(pkcs11.CKO_PRIVATE_KEY))}
	if ref.Label != "" {
		template = append(template, pkcs11.NewAttribute(pkcs11.CKA_LABEL, ref.Label))
	}
	if len(ref.ID) != 0 {
		template = append(template, pkcs11.NewAttribute(pkcs11.CKA_ID, ref.ID))
	}
	privates, err := s.find(most, template...)
	switch {
	case err != nil:
		return nil, err
	case len(privates) == 0:
		return nil, s.absent(ErrNoKey)
	case len(privates) == most:
		return nil, fmt.Errorf("%w: %d or more", ErrManyKeys, most)
	}
	return privates, nil
}

// publics finds the public keys that have a private key's id.
func (s *session) publics(private pkcs11.ObjectHandle) (publics []pkcs11.ObjectHandle, id []byte, err error) {
	if id, err = s.attribute(private, pkcs11.CKA_ID); err != nil {
		return nil, nil, err
	}
	publics, err = s.find(most, pkcs11.NewAttribute(pkcs11.CKA_CLASS, uint(pkcs11.CKO_PUBLIC_KEY)), pkcs11.NewAttribute(pkcs11.CKA_ID, id))
	return publics, id, err
}

// pinned refuses another public key than the one that ref pins, if it does.
func (f found) pinned(ref KeyRef) error {
	hash := sha256.Sum256(f.spki)
	if len(ref.SPKISHA256) != 0 && !bytes.Equal(hash[:], ref.SPKISHA256) {
		return fmt.Errorf("%w: its public key's SHA-256 is %x, want %x", ErrWrongKey, hash, ref.SPKISHA256)
	}
	return nil
}

// complete reads what only the private key tells, and checks that the two are of one type.
func (s *session) complete(f found) (found, error) {
	label, err := s.attribute(f.private, pkcs11.CKA_LABEL)
	if err != nil {
		return found{}, err
	}
	kind, err := s.number(f.private, pkcs11.CKA_KEY_TYPE)
	if err != nil {
		return found{}, err
	}
	if kind != schemes[f.algorithm].keyType {
		return found{}, fmt.Errorf("%w: the private key is of type 0x%X, its public key says %s", ErrWrongKey, kind, f.algorithm)
	}
	f.label = string(label)
	return f, nil
}

// readPublic reads a public key object.
func (s *session) readPublic(public pkcs11.ObjectHandle) (found, error) {
	f := found{public: public}
	kind, err := s.number(public, pkcs11.CKA_KEY_TYPE)
	if err != nil {
		return f, err
	}
	var parse func(a, b []byte) (Algorithm, crypto.PublicKey, error)
	attributes := [2]uint{pkcs11.CKA_EC_PARAMS, pkcs11.CKA_EC_POINT}
	switch kind {
	case pkcs11.CKK_EC:
		parse = parseEC
	case ckkECEdwards:
		parse = parseEdwards
	case pkcs11.CKK_RSA:
		parse = parseRSA
		attributes = [2]uint{pkcs11.CKA_MODULUS, pkcs11.CKA_PUBLIC_EXPONENT}
	default:
		return f, fmt.Errorf("%w: key type 0x%X", ErrUnsupported, kind)
	}
	a, err := s.attribute(public, attributes[0])
	if err != nil {
		return f, err
	}
	b, err := s.attribute(public, attributes[1])
	if err != nil {
		return f, err
	}
	if f.algorithm, f.pub, err = parse(a, b); err != nil {
		return f, err
	}
	f.spki, err = x509.MarshalPKIXPublicKey(f.pub)
	return f, err
}

func (s *session) number(object pkcs11.ObjectHandle, kind uint) (uint, error) {
	b, err := s.attribute(object, kind)
	if err != nil {
		return 0, err
	}
	return ulong(b)
}

// describe reads the flags of a private key.
func (s *session) describe(f found) (KeyInfo, error) {
	hash := sha256.Sum256(f.spki)
	info := KeyInfo{Label: printable(f.label), ID: hex.EncodeToString(f.id), Algorithm: f.algorithm, SPKI: f.spki, SPKISHA256: hex.EncodeToString(hash[:])}
	for _, flag := range []struct {
		attribute uint
		value     **bool
	}{
		{pkcs11.CKA_SENSITIVE, &info.Sensitive}, {pkcs11.CKA_ALWAYS_SENSITIVE, &info.AlwaysSensitive},
		{pkcs11.CKA_EXTRACTABLE, &info.Extractable}, {pkcs11.CKA_NEVER_EXTRACTABLE, &info.NeverExtractable},
		{pkcs11.CKA_LOCAL, &info.Local}, {pkcs11.CKA_PRIVATE, &info.Private}, {pkcs11.CKA_SIGN, &info.Sign},
		{pkcs11.CKA_DECRYPT, &info.Decrypt}, {pkcs11.CKA_UNWRAP, &info.Unwrap}, {pkcs11.CKA_DERIVE, &info.Derive},
		{pkcs11.CKA_MODIFIABLE, &info.Modifiable}, {pkcs11.CKA_COPYABLE, &info.Copyable},
	} {
		b, err := s.attribute(f.private, flag.attribute)
		if codeOf(err) == pkcs11.CKR_ATTRIBUTE_TYPE_INVALID {
			continue
		}
		if err != nil {
			return KeyInfo{}, err
		}
		if len(b) == 1 {
			set := b[0] != 0
			*flag.value = &set
		}
	}
	return info, nil
}

// guarded checks what every key that we use must claim.
func (i KeyInfo) guarded() error {
	return i.require([]claim{{"CKA_SENSITIVE", i.Sensitive, true}, {"CKA_EXTRACTABLE", i.Extractable, false}, {"CKA_SIGN", i.Sign, true}})
}

// fresh checks what a key must claim besides that was just made in the token.
func (i KeyInfo) fresh() error {
	if err := i.guarded(); err != nil {
		return err
	}
	return i.require([]claim{{"CKA_ALWAYS_SENSITIVE", i.AlwaysSensitive, true}, {"CKA_NEVER_EXTRACTABLE", i.NeverExtractable, true}, {"CKA_PRIVATE", i.Private, true}})
}

type claim struct {
	name string
	have *bool
	want bool
}

func (i KeyInfo) require(claims []claim) error {
	for _, c := range claims {
		if c.have == nil {
			return fmt.Errorf("%w: the token does not tell its %s", ErrWeakKey, c.name)
		}
		if *c.have != c.want {
			return fmt.Errorf("%w: its %s is %t", ErrWeakKey, c.name, *c.have)
		}
	}
	return nil
}
