package record

import (
	"crypto/ed25519"
	"strings"
	"testing"
	"time"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/note"
)

func TestCosignaturesOfAnotherImplementation(t *testing.T) {
	t.Parallel()
	key := ed25519.NewKeyFromSeed(make([]byte, 32))
	w, err := torchwood.NewCosignatureSigner("witness.example/w1", key)
	if err != nil {
		t.Fatal(err)
	}
	vkey, err := WitnessVKey("witness.example/w1", key.Public().(ed25519.PublicKey))
	if err != nil || vkey != w.Verifier().String() {
		t.Fatalf("%s, not %s: %v", vkey, w.Verifier(), err)
	}
	v, err := NewWitnessVerifier(vkey)
	if err != nil {
		t.Fatal(err)
	}
	text := Checkpoint{Origin: "log.example/a", Size: 7, Root: Hash{1}}.Text()
	before := uint64(time.Now().Unix())
	signed, err := note.Sign(&note.Note{Text: text}, w)
	if err != nil {
		t.Fatal(err)
	}
	n, err := note.Open(signed, note.VerifierList(v))
	if err != nil || len(n.Sigs) != 1 {
		t.Fatal(n, err)
	}
	if at, err := CosignatureTime(n.Sigs[0]); err != nil || at < before || at > before+60 {
		t.Errorf("time %d, %v; it is %d", at, err, before)
	}
	other := strings.Replace(string(signed), "\n7\n", "\n8\n", 1)
	if _, err := note.Open([]byte(other), note.VerifierList(v)); err == nil {
		t.Error("a cosignature of another checkpoint is accepted")
	}
	if v.Verify([]byte(text), nil) || v.Verify([]byte(text), make([]byte, cosignatureSize)) {
		t.Error("no signature is accepted")
	}
}

func TestWitnessKeysHaveOneEncoding(t *testing.T) {
	t.Parallel()
	pub := ed25519.NewKeyFromSeed(make([]byte, 32)).Public().(ed25519.PublicKey)
	good, err := WitnessVKey("w", pub)
	if err != nil {
		t.Fatal(err)
	}
	ofLog, err := VKey("w", pub)
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"", "w", "w+", "w++", ofLog, good + "=", "x" + good, strings.ToUpper(good), good[:len(good)-4], "w+00000000" + good[len("w+00000000"):], " " + good} {
		if _, err := NewWitnessVerifier(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
	if _, err := NewVerifier(good); err == nil {
		t.Error("a witness's key is accepted as a log's")
	}
	for _, name := range []string{"", "a b", "a+b", "a\n"} {
		if _, err := WitnessVKey(name, pub); err == nil {
			t.Errorf("name %q is accepted", name)
		}
	}
}
