package hsm_test

import (
	"testing"

	"bulla/hsm"
)

func TestSoftHSMKeepsItsKeys(t *testing.T) {
	t.Parallel()
	for _, a := range []hsm.Algorithm{"", hsm.ECDSAP384, hsm.Ed25519, hsm.RSA3072PSS} {
		tok := open(t)
		attempts, err := tok.TryExtract(t.Context(), a)
		for _, x := range attempts {
			t.Logf("%s: %s", x.Way, x.Result)
		}
		if err != nil {
			t.Error(err)
		}
	}
}
