package record

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
)

// typeCosignature is the signature type of a witness's Ed25519 cosignature (C2SP tlog-cosignature v1).
const typeCosignature = 0x04

// cosignatureSize is the size of a cosignature, in bytes: a time and an Ed25519 signature.
const cosignatureSize = 8 + ed25519.SignatureSize

// WitnessVKey returns the verifier key of a witness's Ed25519 public key.
func WitnessVKey(name string, pub ed25519.PublicKey) (string, error) {
	if err := CheckOrigin(name); err != nil {
		return "", within("witness", err)
	}
	if len(pub) != ed25519.PublicKeySize {
		return "", fmt.Errorf("verifier key of witness %q: %d bytes are no Ed25519 key", clip(name, 300), len(pub))
	}
	key := append([]byte{typeCosignature}, pub...)
	id := sha256.Sum256(append([]byte(name+"\n"), key...))
	return fmt.Sprintf("%s+%08x+%s", name, binary.BigEndian.Uint32(id[:4]), base64.StdEncoding.EncodeToString(key)), nil
}

// NewWitnessVerifier reads a witness's verifier key; it accepts exactly what WitnessVKey makes. The verifier checks cosignatures on
// the text of a checkpoint, whatever time they state.
func NewWitnessVerifier(vkey string) (note.Verifier, error) {
	name, rest, _ := strings.Cut(vkey, "+")
	hash, key64, _ := strings.Cut(rest, "+")
	key, ok := decodeBase64(key64)
	if !ok || len(key) != 1+ed25519.PublicKeySize {
		return nil, fmt.Errorf("malformed verifier key of a witness %q: expected name+hash+key, with an Ed25519 key", clip(vkey, 300))
	}
	if key[0] != typeCosignature {
		return nil, fmt.Errorf("verifier key of %q has type 0x%02x: only 0x04 (Ed25519 cosignatures) is a witness's", clip(name, 300), key[0])
	}
	again, err := WitnessVKey(name, key[1:])
	if err != nil {
		return nil, err
	}
	if again != vkey {
		return nil, fmt.Errorf("malformed verifier key of a witness %q: should be %q", clip(vkey, 300), again)
	}
	id, err := strconv.ParseUint(hash, 16, 32)
	return &witnessVerifier{name: name, id: uint32(id), key: key[1:]}, err
}

type witnessVerifier struct {
	name string
	id   uint32
	key  ed25519.PublicKey
}

func (v *witnessVerifier) Name() string    { return v.name }
func (v *witnessVerifier) KeyHash() uint32 { return v.id }

func (v *witnessVerifier) Verify(text, sig []byte) bool {
	if len(sig) != cosignatureSize {
		return false
	}
	at := binary.BigEndian.Uint64(sig)
	return at <= MaxInt && ed25519.Verify(v.key, CosignatureInput(at, text), sig[8:])
}

// CosignatureInput is what a witness signs to say that at a time (seconds of Unix time) a checkpoint extended all that it had seen.
func CosignatureInput(at uint64, text []byte) []byte {
	return fmt.Appendf(nil, "cosignature/v1\ntime %d\n%s", at, text)
}

// CosignatureTime is the time that a cosignature states, in seconds of Unix time. The signature must have been verified.
func CosignatureTime(s note.Signature) (uint64, error) {
	raw, ok := decodeBase64(s.Base64)
	if !ok || len(raw) != 4+cosignatureSize {
		return 0, fmt.Errorf("the signature of %q is not a cosignature", clip(s.Name, 300))
	}
	return binary.BigEndian.Uint64(raw[4:]), nil
}
