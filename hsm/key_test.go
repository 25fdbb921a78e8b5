package hsm_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"testing"

	"bulla/hsm"
)

// signAndVerify has k sign in each way that its algorithm allows, and verifies with Go's own code.
func signAndVerify(t *testing.T, k *hsm.Key) {
	t.Helper()
	message := []byte("the head of a log")
	d256, d384, d512 := sha256.Sum256(message), sha512.Sum384(message), sha512.Sum512(message)
	digests := map[crypto.Hash][]byte{crypto.SHA256: d256[:], crypto.SHA384: d384[:], crypto.SHA512: d512[:]}
	sign := func(input []byte, opts crypto.SignerOpts) []byte {
		t.Helper()
		sig, err := k.Sign(rand.Reader, input, opts)
		if err != nil {
			t.Fatal(err)
		}
		return sig
	}
	switch pub := k.Public().(type) {
	case *ecdsa.PublicKey:
		hashes := []crypto.Hash{crypto.SHA256}
		if pub.Curve.Params().BitSize == 384 {
			hashes = append(hashes, crypto.SHA384)
		}
		for _, h := range hashes {
			if !ecdsa.VerifyASN1(pub, digests[h], sign(digests[h], h)) {
				t.Errorf("the %v signature does not verify", h)
			}
		}
	case ed25519.PublicKey:
		for _, m := range [][]byte{message, nil, make([]byte, 1<<20)} {
			if !ed25519.Verify(pub, m, sign(m, crypto.Hash(0))) {
				t.Errorf("the signature of %d bytes does not verify", len(m))
			}
		}
	case *rsa.PublicKey:
		for h, d := range digests {
			opts := &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: h}
			if err := rsa.VerifyPSS(pub, h, d, sign(d, opts), opts); err != nil {
				t.Errorf("the %v signature does not verify: %v", h, err)
			}
		}
	default:
		t.Fatalf("public key of type %T", pub)
	}
}

func TestSign(t *testing.T) {
	t.Parallel()
	for _, a := range []hsm.Algorithm{hsm.ECDSAP256, hsm.ECDSAP384, hsm.Ed25519, hsm.RSA3072PSS} {
		t.Run(string(a), func(t *testing.T) {
			t.Parallel()
			k := generate(t, open(t), a, "log")
			if got := k.Info().Algorithm; got != a {
				t.Errorf("the key says it is %s", got)
			}
			signAndVerify(t, k)
		})
	}
}
