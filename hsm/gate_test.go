package hsm

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/pkcs11"
)

func TestGate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var g gate
		if err := g.enter(t.Context()); err != nil {
			t.Fatal(err)
		}
		// A call that does not return: the gate opens again, and others go on.
		begun := time.Now()
		if err := g.shut(time.Second); !errors.Is(err, errCallsInside) || time.Since(begun) != time.Second {
			t.Errorf("shut after %v: %v", time.Since(begun), err)
		}
		if err := g.enter(t.Context()); err != nil {
			t.Errorf("after a failed shut: %v", err)
		}
		g.leave()
		// One that returns late.
		go func() { time.Sleep(500 * time.Millisecond); g.leave() }()
		if err := g.shut(time.Second); err != nil || time.Since(begun) != 1500*time.Millisecond {
			t.Errorf("shut after %v: %v", time.Since(begun), err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := g.enter(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("entering the shut gate: %v", err)
		}
		entered := make(chan error)
		go func() { entered <- g.enter(t.Context()) }()
		synctest.Wait()
		g.open()
		if err := <-entered; err != nil {
			t.Errorf("entering when it opens: %v", err)
		}
		g.leave()
	})
}

func TestGateKeepsOut(t *testing.T) {
	t.Parallel()
	var g gate
	var inside atomic.Int64
	var done sync.WaitGroup
	stop := make(chan struct{})
	for range 4 {
		done.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := g.enter(context.Background()); err != nil {
					t.Error(err)
					return
				}
				inside.Add(1)
				inside.Add(-1)
				g.leave()
			}
		})
	}
	for range 2000 {
		if err := g.shut(time.Minute); err != nil {
			t.Fatal(err)
		}
		if n := inside.Load(); n != 0 {
			t.Fatalf("%d inside the shut gate", n)
		}
		g.open()
	}
	close(stop)
	done.Wait()
}

func TestPointsAreTakenWrappedAndRaw(t *testing.T) {
	t.Parallel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	edPublic, _, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	wrap := func(b []byte) []byte { return append([]byte{4, byte(len(b))}, b...) }
	for _, point := range [][]byte{raw, wrap(raw)} {
		if a, pub, err := parseEC(oidP256, point); err != nil || a != ECDSAP256 || !key.PublicKey.Equal(pub) {
			t.Errorf("%x: %s, %v", point, a, err)
		}
	}
	for _, params := range [][]byte{oidEd25519, nameEd25519, gnuOIDEd25519} {
		for _, point := range [][]byte{edPublic, wrap(edPublic)} {
			if a, pub, err := parseEdwards(params, point); err != nil || a != Ed25519 || !edPublic.Equal(pub) {
				t.Errorf("%x: %s, %v", point, a, err)
			}
		}
	}
	offCurve := bytes.Clone(raw)
	offCurve[64] ^= 1
	compressed := append([]byte{2}, raw[1:33]...)
	for _, point := range [][]byte{nil, raw[:64], append(bytes.Clone(raw), 0), wrap(raw)[:66], append(wrap(raw), 0), offCurve, wrap(offCurve), compressed, make([]byte, 65), bytes.Repeat([]byte{0xFF}, 67)} {
		if a, _, err := parseEC(oidP256, point); err == nil {
			t.Errorf("%x was taken for a point of %s", point, a)
		}
	}
	if _, _, err := parseEC(oidP384, raw); err == nil {
		t.Error("a point of P-256 was taken for one of P-384")
	}
	if _, _, err := parseEC([]byte{0x06, 0x05, 0x2B, 0x81, 0x04, 0x00, 0x0A}, raw); !errors.Is(err, ErrUnsupported) {
		t.Errorf("secp256k1: %v", err)
	}
	for _, sig := range [][]byte{nil, make([]byte, 63), make([]byte, 65), make([]byte, 96)} {
		if der, err := encodeSignature(&key.PublicKey, sig); !errors.Is(err, errBadSignature) {
			t.Errorf("%d bytes were taken for a signature: %x, %v", len(sig), der, err)
		}
	}
}

func TestSessionLimit(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		all, readWrite uint
		want           int
	}{{0, 0, maxSessions}, {^uint(0), ^uint(0), maxSessions}, {1, 0, 1}, {8, 3, 3}, {2, ^uint(0), 2}, {1 << 40, 1 << 40, maxSessions}} {
		if got := sessionLimit(pkcs11.TokenInfo{MaxSessionCount: row.all, MaxRwSessionCount: row.readWrite}); got != row.want {
			t.Errorf("%+v: %d", row, got)
		}
	}
}
