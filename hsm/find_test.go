package hsm_test

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"

	"bulla/hsm"
)

// tool runs pkcs11-tool, another process with the same token.
func tool(t testing.TB, label string, args ...string) {
	t.Helper()
	files.Lock()
	defer files.Unlock()
	run(t, "pkcs11-tool", append([]string{"--module", softHSM, "--token-label", label, "--login", "--pin", userPIN}, args...)...)
}

func TestKeyIsTheOneThatMatches(t *testing.T) {
	t.Parallel()
	label := newToken(t)
	tok := openAs(t, hsm.TokenConfig{Label: label, PIN: pin(userPIN)})
	ctx := t.Context()
	one, err := tok.Generate(ctx, hsm.ECDSAP256, "one")
	must(t, err)
	other, err := tok.Generate(ctx, hsm.Ed25519, "other")
	must(t, err)
	pair := []string{"--keypairgen", "--key-type", "EC:prime256v1", "--sensitive", "--usage-sign"}
	for _, args := range [][]string{
		{"--label", "same label", "--id", "a1"}, {"--label", "same label", "--id", "a2"},
		{"--label", "same all", "--id", "b1"}, {"--label", "same all", "--id", "b1"},
		{"--label", "no public", "--id", "c1"}, {"--label", "no private", "--id", "c2"},
	} {
		tool(t, label, append(slices.Clone(pair), args...)...)
	}
	tool(t, label, "--delete-object", "--type", "pubkey", "--label", "no public")
	tool(t, label, "--delete-object", "--type", "privkey", "--label", "no private")
	tool(t, label, "--keypairgen", "--key-type", "EC:prime256v1", "--usage-sign", "--extractable", "--label", "weak", "--id", "d1")
	tool(t, label, "--keypairgen", "--key-type", "EC:secp521r1", "--usage-sign", "--sensitive", "--label", "P-521", "--id", "d2")
	tool(t, label, "--keypairgen", "--key-type", "rsa:2048", "--usage-sign", "--sensitive", "--label", "RSA-2048", "--id", "d3")

	unhex := func(s string) []byte { b, err := hex.DecodeString(s); must(t, err); return b }
	hash := func(i hsm.KeyInfo) []byte { return unhex(i.SPKISHA256) }
	a1, err := tok.Key(ctx, hsm.KeyRef{Label: "same label", ID: unhex("a1")})
	must(t, err)
	for _, row := range []struct {
		name string
		ref  hsm.KeyRef
		want error
	}{
		{"by label", hsm.KeyRef{Label: "one"}, nil},
		{"by id", hsm.KeyRef{ID: unhex(one.ID)}, nil},
		{"by all", hsm.KeyRef{Label: "one", ID: unhex(one.ID), SPKISHA256: hash(one)}, nil},
		{"of two with the label, the one of the id", hsm.KeyRef{Label: "same label", ID: unhex("a2")}, nil},
		{"of two with the label, the pinned one", hsm.KeyRef{Label: "same label", SPKISHA256: hash(a1.Info())}, nil},
		{"no such label", hsm.KeyRef{Label: "none"}, hsm.ErrNoKey},
		{"no such id", hsm.KeyRef{Label: "one", ID: unhex("ff")}, hsm.ErrNoKey},
		{"the other's id", hsm.KeyRef{Label: "one", ID: unhex(other.ID)}, hsm.ErrNoKey},
		{"another public key", hsm.KeyRef{Label: "one", SPKISHA256: hash(other)}, hsm.ErrWrongKey},
		{"two with the label", hsm.KeyRef{Label: "same label"}, hsm.ErrManyKeys},
		{"two with label and id", hsm.KeyRef{Label: "same all", ID: unhex("b1")}, hsm.ErrManyKeys},
		{"private without public", hsm.KeyRef{Label: "no public"}, hsm.ErrNoKey},
		{"public without private", hsm.KeyRef{Label: "no private"}, hsm.ErrNoKey},
		{"extractable", hsm.KeyRef{Label: "weak"}, hsm.ErrWeakKey},
		{"curve", hsm.KeyRef{Label: "P-521"}, hsm.ErrUnsupported},
		{"size", hsm.KeyRef{Label: "RSA-2048"}, hsm.ErrUnsupported},
	} {
		k, err := tok.Key(ctx, row.ref)
		if !errors.Is(err, row.want) {
			t.Errorf("%s: %v, want %v", row.name, err, row.want)
		}
		if err == nil && row.ref.SPKISHA256 != nil && !bytes.Equal(hash(k.Info()), row.ref.SPKISHA256) {
			t.Errorf("%s: another key was found", row.name)
		}
	}
	for _, ref := range []hsm.KeyRef{{}, {SPKISHA256: hash(one)}, {Label: "one", SPKISHA256: []byte{1}}} {
		if _, err := tok.Key(ctx, ref); err == nil {
			t.Errorf("%+v is no reference, and found a key", ref)
		}
	}
	if h := tok.Health(); h.State != hsm.Ready {
		t.Errorf("looking in vain changed the token's health: %+v", h)
	}
}

func TestKeyGone(t *testing.T) {
	t.Parallel()
	label := newToken(t)
	tok := openAs(t, hsm.TokenConfig{Label: label, PIN: pin(userPIN)})
	k := generate(t, tok, hsm.ECDSAP256, "log")
	must(t, sign(k))
	tool(t, label, "--delete-object", "--type", "privkey", "--label", "log")
	if err := sign(k); !errors.Is(err, hsm.ErrKeyGone) {
		t.Errorf("signing with a key that another process destroyed: %v", err)
	}
	// A new key of the same label is not the pinned one.
	tool(t, label, "--delete-object", "--type", "pubkey", "--label", "log")
	generate(t, tok, hsm.ECDSAP256, "log")
	if err := sign(k); !errors.Is(err, hsm.ErrKeyGone) {
		t.Errorf("signing with a key that another one replaced: %v", err)
	}
	tool(t, label, "--keypairgen", "--key-type", "EC:prime256v1", "--sensitive", "--usage-sign", "--label", "log", "--id", k.Info().ID)
	if err := sign(k); !errors.Is(err, hsm.ErrWrongKey) {
		t.Errorf("signing with a key that one of the same label and id replaced: %v", err)
	}
}

func TestGenerate(t *testing.T) {
	t.Parallel()
	tok := open(t)
	ctx := t.Context()
	info, err := tok.Generate(ctx, "", "log")
	must(t, err)
	if info.Algorithm != hsm.ECDSAP256 || len(info.ID) != 32 || info.Label != "log" {
		t.Errorf("made %+v", info)
	}
	sum := sha256.Sum256(info.SPKI)
	if info.SPKISHA256 != hex.EncodeToString(sum[:]) {
		t.Error("the hash is not the public key's")
	}
	for _, f := range []struct {
		name string
		have *bool
		want bool
	}{
		{"sensitive", info.Sensitive, true}, {"always sensitive", info.AlwaysSensitive, true}, {"extractable", info.Extractable, false},
		{"never extractable", info.NeverExtractable, true}, {"local", info.Local, true}, {"private", info.Private, true}, {"sign", info.Sign, true},
		{"decrypt", info.Decrypt, false}, {"unwrap", info.Unwrap, false}, {"derive", info.Derive, false}, {"modifiable", info.Modifiable, false},
		{"copyable", info.Copyable, false},
	} {
		if f.have == nil || *f.have != f.want {
			t.Errorf("%s is not %t", f.name, f.want)
		}
	}
	if _, err := tok.Generate(ctx, hsm.Ed25519, "log"); !errors.Is(err, hsm.ErrKeyExists) {
		t.Errorf("a second key of the label: %v", err)
	}
	if _, err := tok.Generate(ctx, "dsa", "x"); !errors.Is(err, hsm.ErrUnsupported) {
		t.Errorf("an unknown algorithm: %v", err)
	}
	for _, label := range []string{"", "a\x00b", "a\nb", "a\xffb", strings.Repeat("x", 256), "bulla extraction test"} {
		if _, err := tok.Generate(ctx, "", label); err == nil {
			t.Errorf("label %q was taken", label)
		}
	}

	// Of many at once with one label, one succeeds.
	var done sync.WaitGroup
	results := make([]error, 8)
	for i := range results {
		done.Go(func() { _, results[i] = tok.Generate(ctx, "", "race") })
	}
	done.Wait()
	made := 0
	for _, err := range results {
		if err == nil {
			made++
		} else if !errors.Is(err, hsm.ErrKeyExists) {
			t.Error(err)
		}
	}
	if made != 1 {
		t.Errorf("%d keys of one label", made)
	}
}

func TestDestroy(t *testing.T) {
	t.Parallel()
	tok := open(t)
	k, other := generate(t, tok, "", "old"), generate(t, tok, "", "other")
	must(t, sign(k))
	for _, ref := range []hsm.KeyRef{{Label: "old"}, {Label: "old", SPKISHA256: other.Ref().SPKISHA256}} {
		if err := tok.Destroy(t.Context(), ref); err == nil {
			t.Errorf("%s was destroyed", ref)
		}
	}
	must(t, tok.Destroy(t.Context(), k.Ref()))
	if err := sign(k); !errors.Is(err, hsm.ErrKeyGone) {
		t.Errorf("the destroyed key: %v", err)
	}
	if err := tok.Destroy(t.Context(), k.Ref()); !errors.Is(err, hsm.ErrNoKey) {
		t.Errorf("destroying it again: %v", err)
	}
	must(t, sign(other))
}

// SoftHSM signs any number of bytes as a P-256 digest, and ignores options.
func TestInputIsChecked(t *testing.T) {
	t.Parallel()
	tok := open(t)
	p256, p384 := generate(t, tok, hsm.ECDSAP256, "p256"), generate(t, tok, hsm.ECDSAP384, "p384")
	ed, rsaKey := generate(t, tok, hsm.Ed25519, "ed25519"), generate(t, tok, hsm.RSA3072PSS, "rsa")
	pss := func(salt int, h crypto.Hash) crypto.SignerOpts { return &rsa.PSSOptions{SaltLength: salt, Hash: h} }
	for _, row := range []struct {
		name string
		key  *hsm.Key
		size int
		opts crypto.SignerOpts
		ok   bool
	}{
		{"P-256 with SHA-256", p256, 32, crypto.SHA256, true},
		{"P-256, empty digest", p256, 0, crypto.SHA256, false},
		{"P-256, 20 bytes", p256, 20, crypto.SHA256, false},
		{"P-256, 33 bytes", p256, 33, crypto.SHA256, false},
		{"P-256, 64 bytes", p256, 64, crypto.SHA256, false},
		{"P-256 with SHA-1", p256, 20, crypto.SHA1, false},
		{"P-256 with SHA-384", p256, 48, crypto.SHA384, false},
		{"P-256 without hash", p256, 32, crypto.Hash(0), false},
		{"P-256 without options", p256, 32, nil, false},
		{"P-256 with PSS", p256, 32, pss(rsa.PSSSaltLengthEqualsHash, crypto.SHA256), false},
		{"P-384 with SHA-384", p384, 48, crypto.SHA384, true},
		{"P-384 with SHA-256", p384, 32, crypto.SHA256, true},
		{"P-384 with SHA-512", p384, 64, crypto.SHA512, false},
		{"P-384, short digest", p384, 47, crypto.SHA384, false},
		{"Ed25519", ed, 32, crypto.Hash(0), true},
		{"Ed25519 with its options", ed, 32, &ed25519.Options{}, true},
		{"Ed25519ph", ed, 64, crypto.SHA512, false},
		{"Ed25519ctx", ed, 32, &ed25519.Options{Context: "c"}, false},
		{"Ed25519 of 1 MiB", ed, 1 << 20, crypto.Hash(0), true},
		{"Ed25519 of more", ed, 1<<20 + 1, crypto.Hash(0), false},
		{"RSA-PSS", rsaKey, 32, pss(rsa.PSSSaltLengthEqualsHash, crypto.SHA256), true},
		{"RSA-PSS, salt given", rsaKey, 64, pss(64, crypto.SHA512), true},
		{"RSA-PSS, other salt", rsaKey, 32, pss(20, crypto.SHA256), false},
		{"RSA-PSS, largest salt", rsaKey, 32, pss(rsa.PSSSaltLengthAuto, crypto.SHA256), false},
		{"RSA-PSS, short digest", rsaKey, 31, pss(rsa.PSSSaltLengthEqualsHash, crypto.SHA256), false},
		{"RSA-PSS with SHA-1", rsaKey, 20, pss(rsa.PSSSaltLengthEqualsHash, crypto.SHA1), false},
		{"RSA PKCS #1 v1.5", rsaKey, 32, crypto.SHA256, false},
	} {
		sig, err := row.key.Sign(rand.Reader, make([]byte, row.size), row.opts)
		if (err == nil) != row.ok || (sig != nil) != row.ok {
			t.Errorf("%s: %d bytes, %v", row.name, len(sig), err)
		}
		if errors.Is(err, hsm.ErrUnavailable) {
			t.Errorf("%s: misuse is called unavailable: %v", row.name, err)
		}
	}
}

func TestInfo(t *testing.T) {
	t.Parallel()
	label := newToken(t)
	info, err := openAs(t, hsm.TokenConfig{Label: label, PIN: pin(userPIN)}).Info(t.Context())
	must(t, err)
	want := hsm.TokenInfo{Label: label, Manufacturer: "SoftHSM project", Model: "SoftHSM v2", Serial: info.Serial, Hardware: "2.6", Firmware: "2.6",
		Library: "Implementation of PKCS11", LibraryMaker: "SoftHSM", LibraryVersion: "2.6", CryptokiVersion: "2.40"}
	if info != want || len(info.Serial) != 16 {
		t.Errorf("got  %+v\nwant %+v", info, want)
	}
}
