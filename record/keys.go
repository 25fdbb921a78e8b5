package record

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"strings"

	formats "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"
)

// Signature types of C2SP signed-note v1.0.0.
const (
	typeEd25519 = 0x01
	typeECDSA   = 0x02
)

// NewSigner returns a signer of checkpoints for a log: ECDSA on P-256 or P-384 makes lines of type 0x02 (over SHA-256 on both
// curves), Ed25519 of type 0x01; other keys are refused. It asks the key for one signature a note and returns it unverified:
// what it made counts only once OpenCheckpoint has accepted the whole note.
func NewSigner(origin string, key crypto.Signer) (note.Signer, error) {
	vkey, err := VKey(origin, key.Public())
	if err != nil {
		return nil, err
	}
	v, err := NewVerifier(vkey)
	if err != nil {
		return nil, err
	}
	_, ed := key.Public().(ed25519.PublicKey)
	return &signer{Verifier: v, key: key, ed: ed}, nil
}

type signer struct {
	note.Verifier
	key crypto.Signer
	ed  bool
}

func (s *signer) Sign(msg []byte) ([]byte, error) {
	input, opts := msg, crypto.Hash(0)
	if !s.ed {
		digest := sha256.Sum256(msg)
		input, opts = digest[:], crypto.SHA256
	}
	sig, err := s.key.Sign(rand.Reader, input, opts)
	if err != nil {
		return nil, fmt.Errorf("signing checkpoint of %s: %w", s.Name(), err)
	}
	return sig, nil
}

// VKey returns the verifier key of a log's public key: name+hash+key, the hash and the key as C2SP signed-note has them for the
// type of the key.
func VKey(origin string, pub crypto.PublicKey) (string, error) {
	if err := CheckOrigin(origin); err != nil {
		return "", within("origin", err)
	}
	switch pub := pub.(type) {
	case ed25519.PublicKey:
		return note.NewEd25519VerifierKey(origin, pub)
	case *ecdsa.PublicKey:
		if pub.Curve != elliptic.P256() && pub.Curve != elliptic.P384() {
			return "", fmt.Errorf("no verifier key for a key on %s: only P-256, P-384 and Ed25519 keys sign logs", pub.Params().Name)
		}
		spki, err := x509.MarshalPKIXPublicKey(pub)
		if err != nil {
			return "", fmt.Errorf("encoding public key: %w", err)
		}
		id := sha256.Sum256(spki)
		key := base64.StdEncoding.EncodeToString(append([]byte{typeECDSA}, spki...))
		return fmt.Sprintf("%s+%08x+%s", origin, binary.BigEndian.Uint32(id[:4]), key), nil
	}
	return "", fmt.Errorf("no verifier key for a %T: only P-256, P-384 and Ed25519 keys sign logs", pub)
}

// NewVerifier reads a verifier key of type 0x01 or 0x02; it accepts exactly what VKey makes.
func NewVerifier(vkey string) (note.Verifier, error) {
	name, rest, _ := strings.Cut(vkey, "+")
	_, key64, _ := strings.Cut(rest, "+")
	key, ok := decodeBase64(key64)
	if !ok || len(key) < 2 || len(key) > 256 {
		return nil, fmt.Errorf("malformed verifier key %q: expected name+hash+key", clip(vkey, 300))
	}
	var pub crypto.PublicKey
	switch key[0] {
	case typeEd25519:
		pub = ed25519.PublicKey(key[1:])
	case typeECDSA:
		var err error
		if pub, err = x509.ParsePKIXPublicKey(key[1:]); err != nil {
			return nil, fmt.Errorf("reading verifier key of %q: %w", clip(name, 300), err)
		}
	default:
		return nil, fmt.Errorf("verifier key of %q has type 0x%02x: only 0x01 (Ed25519) and 0x02 (ECDSA) sign logs", clip(name, 300), key[0])
	}
	if again, err := VKey(name, pub); err != nil {
		return nil, err
	} else if again != vkey {
		return nil, fmt.Errorf("malformed verifier key %q: should be %q", clip(vkey, 300), again)
	}
	if key[0] == typeEd25519 {
		return note.NewVerifier(vkey)
	}
	return formats.NewECDSAVerifier(vkey)
}

func isKnown(vs []note.Verifier, name string, id []byte) bool {
	for _, v := range vs {
		if v.Name() == name && v.KeyHash() == binary.BigEndian.Uint32(id) {
			return true
		}
	}
	return false
}
