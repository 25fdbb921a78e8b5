package softhsmtest

import (
	"context"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

// TB is what the devices need of a test; testing.TB is one. (The daemon uses this package: it shall not have package testing in it.)
type TB interface {
	Helper()
	Fatal(...any)
	Error(...any)
	Cleanup(func())
	Context() context.Context
}

// TPMFor makes and starts a TPM for the time of a test.
func TPMFor(t TB) *TPM {
	t.Helper()
	dir := directory(t)
	d, err := CreateTPM(t.Context(), filepath.Join(dir, "t"))
	if err != nil {
		t.Fatal(err)
	}
	atEnd(t, d.Kill)
	return d
}

// NTPFor starts an NTP server for the time of a test.
func NTPFor(t TB, b Behaviour) *NTP {
	t.Helper()
	s, err := StartNTP(b)
	if err != nil {
		t.Fatal(err)
	}
	atEnd(t, s.Close)
	return s
}

// ChronydFor starts chronyd for the time of a test; see StartChronyd.
func ChronydFor(t TB, directives ...string) *Chronyd {
	t.Helper()
	c, err := StartChronyd(t.Context(), filepath.Join(directory(t), "c"), directives...)
	if err != nil {
		t.Fatal(err)
	}
	atEnd(t, c.Stop)
	return c
}

// NSSFor makes an NSS database for the time of a test.
func NSSFor(t TB) *NSS {
	t.Helper()
	n, err := CreateNSS(t.Context(), filepath.Join(directory(t), "nss"))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// OfficersFor makes officers for the time of a test.
func OfficersFor(t TB, names ...string) []*Officer {
	t.Helper()
	dir := directory(t)
	var all []*Officer
	for _, name := range names {
		o, err := CreateOfficer(dir, name)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, o)
	}
	return all
}

// HSMFor makes a SoftHSM token with a label of its own, in the token directory that all tests of the process share; s.URI(label, ...)
// names its keys. The directory goes with the last test that uses it, which must have closed the module by then.
func HSMFor(t TB) (s *SoftHSM, label string) {
	t.Helper()
	s, err := shared.join()
	if err != nil {
		t.Fatal(err)
	}
	atEnd(t, shared.leave)
	label = "test-" + strings.ToLower(rand.Text()[:10])
	if _, err := s.InitToken(t.Context(), label); err != nil {
		t.Fatal(err)
	}
	return s, label
}

// shared is the token directory of the tests of this process: SoftHSM has one a process.
var shared tokenDirectory

type tokenDirectory struct {
	mu    sync.Mutex
	users int
	hsm   *SoftHSM
}

func (d *tokenDirectory) join() (*SoftHSM, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.users == 0 {
		dir, err := os.MkdirTemp("", "b")
		if err != nil {
			return nil, err
		}
		if d.hsm, err = CreateSoftHSM(filepath.Join(dir, "hsm")); err != nil {
			return nil, errors.Join(err, os.RemoveAll(dir))
		}
	}
	d.users++
	return d.hsm, nil
}

func (d *tokenDirectory) leave() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.users--; d.users > 0 {
		return nil
	}
	return errors.Join(os.Unsetenv("SOFTHSM2_CONF"), os.RemoveAll(filepath.Dir(d.hsm.Dir)))
}

// directory is a new one with a short path, as sockets need, for the time of a test.
func directory(t TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "b")
	if err != nil {
		t.Fatal(err)
	}
	atEnd(t, func() error { return os.RemoveAll(dir) })
	return dir
}

// atEnd has a test fail when its device does not end well.
func atEnd(t TB, end func() error) {
	t.Cleanup(func() {
		t.Helper()
		if err := end(); err != nil {
			t.Error(err)
		}
	})
}
