package hsm

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"

	"github.com/miekg/pkcs11"
)

// Algorithm of a key: what it is and how it signs.
type Algorithm string

const (
	ECDSAP256  Algorithm = "ecdsa-p256"   // the default; digests of SHA-256
	ECDSAP384  Algorithm = "ecdsa-p384"   // digests of SHA-256 or SHA-384
	Ed25519    Algorithm = "ed25519"      // messages, not digests
	RSA3072PSS Algorithm = "rsa-3072-pss" // MGF1 and salt of the digest's hash and length
)

// maxMessage bounds what Ed25519 signs, in bytes.
const maxMessage = 1 << 20

// scheme is what PKCS#11 calls an algorithm's parts.
type scheme struct {
	keyType  uint
	params   []byte // CKA_EC_PARAMS
	generate uint   // mechanism
	sign     uint   // mechanism
}

var schemes = map[Algorithm]scheme{
	ECDSAP256:  {pkcs11.CKK_EC, oidP256, pkcs11.CKM_EC_KEY_PAIR_GEN, pkcs11.CKM_ECDSA},
	ECDSAP384:  {pkcs11.CKK_EC, oidP384, pkcs11.CKM_EC_KEY_PAIR_GEN, pkcs11.CKM_ECDSA},
	Ed25519:    {ckkECEdwards, oidEd25519, ckmECEdwardsKeyPairGen, ckmEdDSA},
	RSA3072PSS: {pkcs11.CKK_RSA, nil, pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN, pkcs11.CKM_RSA_PKCS_PSS},
}

// DER of the curves' names in CKA_EC_PARAMS.
var (
	oidP256    = []byte{0x06, 0x08, 0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x03, 0x01, 0x07}
	oidP384    = []byte{0x06, 0x05, 0x2B, 0x81, 0x04, 0x00, 0x22}
	oidEd25519 = []byte{0x06, 0x03, 0x2B, 0x65, 0x70} // RFC 8410
	// Other names for Ed25519 that tokens report: PKCS#11 3.0's curveName, and the OID it cites.
	nameEd25519   = append([]byte{0x13, 12}, "edwards25519"...)
	gnuOIDEd25519 = []byte{0x06, 0x09, 0x2B, 0x06, 0x01, 0x04, 0x01, 0xDA, 0x47, 0x0F, 0x01}
)

// parseAlgorithm defaults to ECDSA P-256.
func parseAlgorithm(a Algorithm) (Algorithm, scheme, error) {
	if a == "" {
		a = ECDSAP256
	}
	s, ok := schemes[a]
	if !ok {
		return "", scheme{}, fmt.Errorf("%w: algorithm %q; choose %s, %s, %s or %s", ErrUnsupported, a, ECDSAP256, ECDSAP384, Ed25519, RSA3072PSS)
	}
	return a, s, nil
}

// parseEC reads a public key of CKK_EC from CKA_EC_PARAMS and CKA_EC_POINT.
func parseEC(params, point []byte) (Algorithm, crypto.PublicKey, error) {
	var algorithm Algorithm
	var curve elliptic.Curve
	switch {
	case bytes.Equal(params, oidP256):
		algorithm, curve = ECDSAP256, elliptic.P256()
	case bytes.Equal(params, oidP384):
		algorithm, curve = ECDSAP384, elliptic.P384()
	default:
		return "", nil, fmt.Errorf("%w: curve with parameters %x", ErrUnsupported, params)
	}
	raw, err := unwrapPoint(point, 1+2*((curve.Params().BitSize+7)/8))
	if err != nil {
		return "", nil, err
	}
	key, err := ecdsa.ParseUncompressedPublicKey(curve, raw)
	if err != nil {
		return "", nil, fmt.Errorf("reading CKA_EC_POINT: %w", err)
	}
	return algorithm, key, nil
}

// parseEdwards reads a public key of CKK_EC_EDWARDS.
func parseEdwards(params, point []byte) (Algorithm, crypto.PublicKey, error) {
	if !bytes.Equal(params, oidEd25519) && !bytes.Equal(params, nameEd25519) && !bytes.Equal(params, gnuOIDEd25519) {
		return "", nil, fmt.Errorf("%w: Edwards curve with parameters %x", ErrUnsupported, params)
	}
	raw, err := unwrapPoint(point, ed25519.PublicKeySize)
	if err != nil {
		return "", nil, err
	}
	return Ed25519, ed25519.PublicKey(raw), nil
}

// unwrapPoint takes CKA_EC_POINT as the DER OCTET STRING that PKCS#11 asks for, or as the bare point that some tokens give. The
// lengths tell them apart.
func unwrapPoint(point []byte, size int) ([]byte, error) {
	switch {
	case len(point) == size:
		return bytes.Clone(point), nil
	case len(point) == size+2 && point[0] == 0x04 && int(point[1]) == size:
		return bytes.Clone(point[2:]), nil
	}
	return nil, fmt.Errorf("reading CKA_EC_POINT: %d bytes are neither a point of %d bytes nor its OCTET STRING", len(point), size)
}

// parseRSA reads a public key of CKK_RSA.
func parseRSA(modulus, exponent []byte) (Algorithm, crypto.PublicKey, error) {
	n, e := new(big.Int).SetBytes(modulus), new(big.Int).SetBytes(exponent)
	if n.BitLen() != 3072 {
		return "", nil, fmt.Errorf("%w: RSA of %d bits, want 3072", ErrUnsupported, n.BitLen())
	}
	if !e.IsInt64() || e.Int64() < 65537 || e.Int64() > 1<<31-1 || e.Bit(0) == 0 {
		return "", nil, fmt.Errorf("%w: RSA public exponent %s", ErrUnsupported, e)
	}
	return RSA3072PSS, &rsa.PublicKey{N: n, E: int(e.Int64())}, nil
}

// checkInput refuses what a token would sign without a look: a digest of the wrong length, options it ignores.
func checkInput(pub crypto.PublicKey, input []byte, opts crypto.SignerOpts) error {
	if opts == nil {
		return errors.New("no options: name the hash")
	}
	hash := opts.HashFunc()
	if _, ok := pub.(ed25519.PublicKey); ok {
		if o, ok := opts.(*ed25519.Options); hash != 0 || ok && o.Context != "" {
			return fmt.Errorf("%w: Ed25519ph or Ed25519ctx; Ed25519 signs the message, with crypto.Hash(0)", ErrUnsupported)
		}
		if len(input) > maxMessage {
			return fmt.Errorf("message of %d bytes: at most %d", len(input), maxMessage)
		}
		return nil
	}
	pss, isPSS := opts.(*rsa.PSSOptions)
	var allowed []crypto.Hash
	switch pub := pub.(type) {
	case *ecdsa.PublicKey:
		allowed = []crypto.Hash{crypto.SHA256}
		if pub.Curve == elliptic.P384() {
			allowed = append(allowed, crypto.SHA384)
		}
		if isPSS {
			return fmt.Errorf("%w: PSS options for an ECDSA key", ErrUnsupported)
		}
	case *rsa.PublicKey:
		allowed = []crypto.Hash{crypto.SHA256, crypto.SHA384, crypto.SHA512}
		if !isPSS {
			return fmt.Errorf("%w: RSA signs with *rsa.PSSOptions only", ErrUnsupported)
		}
		if pss.SaltLength != rsa.PSSSaltLengthEqualsHash && pss.SaltLength != hash.Size() {
			return fmt.Errorf("%w: PSS salt must be as long as the hash", ErrUnsupported)
		}
	default:
		return fmt.Errorf("%w: %T", ErrUnsupported, pub)
	}
	for _, h := range allowed {
		if h == hash {
			if len(input) != h.Size() {
				return fmt.Errorf("digest of %d bytes: %v has %d", len(input), h, h.Size())
			}
			return nil
		}
	}
	return fmt.Errorf("%w: hash %d for this key; it signs %v", ErrUnsupported, uint(hash), allowed)
}

// mechanism is how a checked input is signed. Hashing is always ours: many tokens sign digests only.
func mechanism(pub crypto.PublicKey, hash crypto.Hash) *pkcs11.Mechanism {
	switch pub.(type) {
	case *ecdsa.PublicKey:
		return pkcs11.NewMechanism(pkcs11.CKM_ECDSA, nil)
	case ed25519.PublicKey:
		return pkcs11.NewMechanism(ckmEdDSA, nil)
	}
	params := map[crypto.Hash][]byte{
		crypto.SHA256: pkcs11.NewPSSParams(pkcs11.CKM_SHA256, pkcs11.CKG_MGF1_SHA256, 32),
		crypto.SHA384: pkcs11.NewPSSParams(pkcs11.CKM_SHA384, pkcs11.CKG_MGF1_SHA384, 48),
		crypto.SHA512: pkcs11.NewPSSParams(pkcs11.CKM_SHA512, pkcs11.CKG_MGF1_SHA512, 64),
	}
	return pkcs11.NewMechanism(pkcs11.CKM_RSA_PKCS_PSS, params[hash])
}

// encodeSignature turns what the token returned into what Go's verifiers take: for ECDSA r||s into ASN.1 DER.
func encodeSignature(pub crypto.PublicKey, raw []byte) ([]byte, error) {
	key, ok := pub.(*ecdsa.PublicKey)
	if !ok {
		return raw, nil
	}
	size := (key.Curve.Params().BitSize + 7) / 8
	if len(raw) != 2*size {
		return nil, fmt.Errorf("%w: it has %d bytes, want %d", errBadSignature, len(raw), 2*size)
	}
	return asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(raw[:size]), new(big.Int).SetBytes(raw[size:])})
}

func verify(pub crypto.PublicKey, input []byte, hash crypto.Hash, sig []byte) bool {
	switch pub := pub.(type) {
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(pub, input, sig)
	case ed25519.PublicKey:
		return ed25519.Verify(pub, input, sig)
	case *rsa.PublicKey:
		return rsa.VerifyPSS(pub, hash, input, sig, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}) == nil
	}
	return false
}

// ulong decodes a CK_ULONG attribute.
func ulong(b []byte) (uint, error) {
	if len(b) != 8 {
		return 0, fmt.Errorf("a number of %d bytes", len(b))
	}
	return uint(binary.NativeEndian.Uint64(b)), nil
}
