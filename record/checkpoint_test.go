package record

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"io"
	"math/big"
	"strings"
	"testing"

	formats "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"
)

// testKey derives a key from a name, so that tests are the same each time. It protects nothing.
func testKey(t testing.TB, curve elliptic.Curve, name string) *ecdsa.PrivateKey {
	h := sha512.Sum512([]byte(name))
	d := new(big.Int).Mod(new(big.Int).SetBytes(h[:]), curve.Params().N)
	key, err := ecdsa.ParseRawPrivateKey(curve, d.FillBytes(make([]byte, (curve.Params().BitSize+7)/8)))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func testEd25519(name string) ed25519.PrivateKey {
	seed := sha256.Sum256([]byte(name))
	return ed25519.NewKeyFromSeed(seed[:])
}

func newSigner(t testing.TB, origin string, key crypto.Signer) (note.Signer, note.Verifier) {
	t.Helper()
	s, err := NewSigner(origin, key)
	if err != nil {
		t.Fatal(err)
	}
	vkey, err := VKey(origin, key.Public())
	if err != nil {
		t.Fatal(err)
	}
	v, err := NewVerifier(vkey)
	if err != nil {
		t.Fatal(err)
	}
	if s.Name() != v.Name() || s.KeyHash() != v.KeyHash() {
		t.Fatalf("signer is %s+%08x, verifier %s+%08x", s.Name(), s.KeyHash(), v.Name(), v.KeyHash())
	}
	return s, v
}

// What we sign, the verifiers of others must accept: transparency-dev/formats the ECDSA lines, x/mod the Ed25519 line.
func TestOthersVerifyOurCheckpoint(t *testing.T) {
	t.Parallel()
	keys := map[string]crypto.Signer{"P-256": testKey(t, elliptic.P256(), "a"), "P-384": testKey(t, elliptic.P384(), "b"), "Ed25519": testEd25519("c")}
	var signers []note.Signer
	for _, key := range keys {
		s, _ := newSigner(t, testOrigin, key)
		signers = append(signers, s)
	}
	tree := new(Tree)
	tree.Append(nil, leafOf(0))
	signed, err := note.Sign(&note.Note{Text: Checkpoint{testOrigin, 1, tree.Root()}.Text()}, signers...)
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range keys {
		vkey, err := VKey(testOrigin, key.Public())
		if err != nil {
			t.Fatal(err)
		}
		foreign, err := formats.NewVerifier(vkey)
		if err != nil {
			t.Fatal(err)
		}
		n, err := note.Open(signed, note.VerifierList(foreign))
		if err != nil || len(n.Sigs) != 1 || len(n.UnverifiedSigs) != 2 {
			t.Errorf("%s: %v", name, err)
		}
		if name != "Ed25519" {
			continue
		}
		v, err := note.NewVerifier(vkey)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := note.Open(signed, note.VerifierList(v)); err != nil {
			t.Error(err)
		}
	}
}

// refusing is a key whose device has gone.
type refusing struct{ crypto.Signer }

var errGone = errors.New("token not present")

func (refusing) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) { return nil, errGone }

func TestSignerPassesTheDevicesError(t *testing.T) {
	t.Parallel()
	s, _ := newSigner(t, testOrigin, refusing{testKey(t, elliptic.P256(), "a")})
	_, err := note.Sign(&note.Note{Text: "x\n"}, s)
	if !errors.Is(err, errGone) || !strings.Contains(err.Error(), testOrigin) {
		t.Error(err)
	}
}

func TestKeysThatSignNoLog(t *testing.T) {
	t.Parallel()
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]crypto.Signer{"P-521": testKey(t, elliptic.P521(), "a"), "P-224": testKey(t, elliptic.P224(), "a"), "RSA": rsaKey} {
		if _, err := NewSigner(testOrigin, key); err == nil || !strings.Contains(err.Error(), "only P-256, P-384 and Ed25519") {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, origin := range []string{"", "a b", "a+b", "a\n", strings.Repeat("x", 256), "\xff", "a\u2028"} {
		if _, err := NewSigner(origin, testEd25519("a")); err == nil {
			t.Errorf("origin %q was taken", origin)
		}
	}
}

// A witness's good signature must not stand in for the log's.
func TestCheckpointNeedsTheLogsOwnSignature(t *testing.T) {
	t.Parallel()
	witness, witnessV := newSigner(t, "witness.example/w", testEd25519("w"))
	log, logV := newSigner(t, testOrigin, testKey(t, elliptic.P256(), "a"))
	text := Checkpoint{testOrigin, 0, new(Tree).Root()}.Text()
	byWitness, err := note.Sign(&note.Note{Text: text}, witness)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := OpenCheckpoint(byWitness, logV, witnessV); err == nil || !strings.Contains(err.Error(), "is not the name of a key that signed it") {
		t.Error(err)
	}
	byBoth, err := note.Sign(&note.Note{Text: text}, log, witness)
	if err != nil {
		t.Fatal(err)
	}
	if _, n, err := OpenCheckpoint(byBoth, logV, witnessV); err != nil || len(n.Sigs) != 2 {
		t.Error(err)
	}
	if _, _, err := OpenCheckpoint(byBoth); err == nil {
		t.Error("opened without keys")
	}
	if _, _, err := OpenCheckpoint(byBoth, logV, logV); err == nil {
		t.Error("opened with one key given twice")
	}
}

func FuzzCheckpoint(f *testing.F) {
	for _, s := range seeds(f, "checkpoint.json") {
		f.Add(s)
	}
	vs := vectorVerifiers(f, "checkpoint.json")
	f.Fuzz(func(t *testing.T, signed []byte) {
		if c, err := ParseCheckpoint(string(signed)); err == nil && c.Text() != string(signed) {
			t.Fatalf("%q encodes as %q", signed, c.Text())
		}
		c, n, err := OpenCheckpoint(signed, vs...)
		if err != nil {
			return
		}
		if c.Text() != n.Text || len(n.Sigs) == 0 {
			t.Fatalf("%q encodes as %q", n.Text, c.Text())
		}
		// The fuzzer can make no signatures, so whatever opens must say what the vectors said.
		if c.Origin != testOrigin || c.Size != 11 && c.Size != 0 && c.Size != MaxInt {
			t.Fatalf("a forged checkpoint: %q", signed)
		}
	})
}

func FuzzVerifierKey(f *testing.F) {
	for _, s := range seeds(f, "vkey.json") {
		f.Add(string(s))
	}
	f.Fuzz(func(t *testing.T, vkey string) {
		v, err := NewVerifier(vkey)
		if err != nil {
			return
		}
		if CheckOrigin(v.Name()) != nil || v.Verify([]byte("text\n"), []byte("no signature")) {
			t.Fatalf("%q", vkey)
		}
		if w, err := NewVerifier(vkey + "\n"); err == nil {
			t.Fatalf("%q and %q are one key %v", vkey, vkey+"\n", w)
		}
	})
}
