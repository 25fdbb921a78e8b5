package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestCeremonyScripts runs the stories in testdata/ceremony. Each has a governed log behind $BULLA_SOCKET; alice, bob and carol are its
// officers, whose keys are in $KEYS. ssh-agent holds bob's and carol's; dave's has a passphrase, and dave is no officer.
func TestCeremonyScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/ceremony",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			dir, err := os.MkdirTemp("", "bulla") // a socket's path must be short
			if err != nil {
				return err
			}
			log, agent, stop, err := convene(dir, 0)
			if err != nil {
				return errors.Join(err, os.RemoveAll(dir))
			}
			env.Defer(func() {
				if err := errors.Join(stop(), os.RemoveAll(dir)); err != nil {
					t.Error(err)
				}
			})
			if _, err := keygen(filepath.Join(dir, "dave"), "-t", "ed25519", "-a", "1", "-N", "correct horse"); err != nil {
				return err
			}
			env.Setenv("BULLA_SOCKET", filepath.Join(dir, "http.sock"))
			env.Setenv("SSH_AUTH_SOCK", agent)
			env.Setenv("KEYS", dir)
			env.Values[logKey{}] = log
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"exits": exits, "thelog": theLog},
	})
}

// logKey finds a script's log.
type logKey struct{}

// theLog does something to the log: `thelog export DIR`, `thelog event`, `thelog fails REASON`, `thelog rolled`, `thelog genesis FILE`, a policy
// that names it, or with other another.
func theLog(ts *testscript.TestScript, neg bool, args []string) {
	l, ok := ts.Value(logKey{}).(*governedLog)
	if neg || !ok || len(args) == 0 {
		ts.Fatalf("usage: thelog export DIR, event, fails REASON, rolled or genesis FILE [other]")
	}
	switch args[0] {
	case "export":
		ts.Check(l.export(ts.MkAbs(args[1])))
		return
	case "genesis":
		leaf := l.state.Genesis
		if len(args) == 3 { // another
			leaf[0] ^= 1
		}
		vkeys, err := l.state.VKeys()
		ts.Check(err)
		ts.Check(os.WriteFile(ts.MkAbs(args[1]), fmt.Appendf(nil, "genesis %x\nlog %s\n", leaf[:], vkeys[0]), 0o644))
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch args[0] {
	case "event":
		ts.Check(l.event())
	case "fails":
		l.fail = args[1]
	case "rolled":
		l.rolled = true
	default:
		ts.Fatalf("thelog: %s is unknown", args[0])
	}
}
