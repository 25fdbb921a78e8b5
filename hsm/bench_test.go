package hsm_test

import (
	"crypto"
	"crypto/rsa"
	"testing"

	"bulla/hsm"
)

// BenchmarkStage is a signature by SoftHSM, verified as every one is, by one caller and by several.
func BenchmarkStage(b *testing.B) {
	for _, a := range []hsm.Algorithm{hsm.ECDSAP256, hsm.ECDSAP384, hsm.Ed25519, hsm.RSA3072PSS} {
		b.Run("sign/"+string(a), func(b *testing.B) {
			k := generate(b, open(b), a, "log")
			input, opts := make([]byte, 32), crypto.SignerOpts(crypto.SHA256)
			switch a {
			case hsm.Ed25519:
				opts = crypto.Hash(0)
			case hsm.RSA3072PSS:
				opts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256}
			}
			b.Run("alone", func(b *testing.B) {
				for b.Loop() {
					if _, err := k.Sign(nil, input, opts); err != nil {
						b.Fatal(err)
					}
				}
			})
			b.Run("parallel", func(b *testing.B) {
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						if _, err := k.Sign(nil, input, opts); err != nil {
							b.Error(err)
							return
						}
					}
				})
			})
		})
	}
}
