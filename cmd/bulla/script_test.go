package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"bulla/api/server"
	"bulla/ceremony"
	"bulla/clock"
	"bulla/ledger"
	"bulla/record"
	"bulla/store"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"bulla": main})
}

// TestScripts runs the command's stories. Those in testdata/script have an appliance behind $BULLA_SOCKET: real sockets and a real
// ledger, with a software key, no TPM, and a clock that nobody measures.
func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			dir, err := os.MkdirTemp("", "bulla") // a socket's path must be short
			if err != nil {
				return err
			}
			stop, err := serve(dir)
			if err != nil {
				return errors.Join(err, os.RemoveAll(dir))
			}
			env.Defer(func() {
				if err := errors.Join(stop(), os.RemoveAll(dir)); err != nil {
					t.Error(err)
				}
			})
			env.Setenv("BULLA_SOCKET", filepath.Join(dir, "sign.sock"))
			env.Setenv("XDG_STATE_HOME", filepath.Join(env.WorkDir, ".state"))
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"exits": exits, "flip": flip},
	})
}

// exits runs a command and requires its exit code: `exits 64 bulla verify`.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	code := 0
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		code = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if code != want {
		ts.Fatalf("%v exits with %d, want %d", args[1:], code, want)
	}
}

// flip flips the lowest bit of the first byte of a text in a file: `flip FILE TEXT`.
func flip(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: flip FILE TEXT")
	}
	path := ts.MkAbs(args[0])
	b, err := os.ReadFile(path)
	ts.Check(err)
	i := indexOf(b, args[1])
	if i < 0 {
		ts.Fatalf("%s does not hold %q", args[0], args[1])
	}
	b[i] ^= 1
	ts.Check(os.WriteFile(path, b, 0o644))
}

func indexOf(b []byte, text string) int {
	for i := 0; i+len(text) <= len(b); i++ {
		if string(b[i:i+len(text)]) == text {
			return i
		}
	}
	return -1
}

// ticking is a clock that nobody measures.
type ticking struct{ ns atomic.Int64 }

func (c *ticking) Now() clock.Stamp {
	return clock.Stamp{Sys: 1795398000123456789 + c.ns.Add(1), Epoch: 1, State: clock.Unknown}
}

// serve runs an appliance with one log in dir until stop is called.
func serve(dir string) (stop func() error, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, err
	}
	policy := clock.DefaultPolicy()
	policy.Mode = clock.Mark
	const origin = "test.example/log"
	cfg := ledger.Config{Origin: origin, Clock: new(ticking), Signer: func(ceremony.Key) (ledger.Signer, error) {
		return ledger.Signer{Signer: key, Device: record.CodeHSM}, nil
	}}
	genesis := &ceremony.Genesis{
		Origin: origin, Clock: policy, Software: "test",
		Keys:  []ceremony.Key{{Algorithm: "ecdsa-p256", Purpose: ceremony.PurposeLog, SPKI: spki}},
		Roles: []ceremony.Role{{Name: ceremony.Producer, Any: true}, {Name: ceremony.Auditor, Any: true}},
	}
	path := filepath.Join(dir, "log.db")
	if err := ledger.Create(path, cfg, genesis); err != nil {
		return nil, err
	}
	s, err := store.Open(path)
	if err != nil {
		return nil, err
	}
	l, err := ledger.Open(cfg, s)
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() {
		done <- server.Serve(ctx, server.Config{
			Directory: dir, Logs: []server.Log{{Name: "log", Ledger: l}}, Log: slog.New(slog.DiscardHandler), Ready: func() { close(ready) },
		})
	}()
	stop = func() error {
		cancel()
		return errors.Join(<-done, l.Close())
	}
	select {
	case <-ready:
		return stop, nil
	case err := <-done:
		done <- nil
		return nil, errors.Join(err, stop())
	case <-time.After(20 * time.Second):
		return nil, errors.Join(errors.New("the appliance does not become ready"), stop())
	}
}
