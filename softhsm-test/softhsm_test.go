package softhsmtest_test

import (
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	softhsmtest "bulla/softhsm-test"

	"bulla/hsm"
)

func TestSoftHSMToken(t *testing.T) {
	s, err := softhsmtest.CreateSoftHSM(filepath.Join(t.TempDir(), "hsm"))
	if err != nil {
		t.Fatal(err)
	}
	pinFile, err := s.InitToken(t.Context(), "audit")
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(pinFile); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("PIN file: %v, %v", info.Mode(), err)
	}
	u, err := hsm.ParseURI(s.URI("audit", "log"))
	if err != nil {
		t.Fatal(err)
	}
	m, err := hsm.Load(u.ModuleConfig())
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	tok, err := m.Token(t.Context(), u.TokenConfig())
	if err != nil {
		t.Fatal(err)
	}
	defer tok.Close()
	if _, err := tok.Generate(t.Context(), hsm.ECDSAP256, u.Object); err != nil {
		t.Fatal(err)
	}
	k, err := tok.Key(t.Context(), u.KeyRef())
	if err != nil {
		t.Fatal(err)
	}
	digest := make([]byte, 32)
	if _, err := k.SignContext(t.Context(), digest, nil); err == nil {
		t.Error("signed without a hash")
	}
	if _, err := softhsmtest.CreateSoftHSM(s.Dir); err == nil {
		t.Error("Create opened an existing directory")
	}
}

func TestTPM(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "tpm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	tpm, err := softhsmtest.CreateTPM(t.Context(), filepath.Join(dir, "tpm"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := softhsmtest.CreateTPM(t.Context(), tpm.Dir); err == nil {
		t.Error("Create opened an existing TPM")
	}
	if roots, err := os.ReadFile(tpm.Roots()); err != nil || bytes.Count(roots, []byte("BEGIN CERTIFICATE")) != 2 {
		t.Errorf("roots: %v\n%s", err, roots)
	}
	for _, end := range []func() error{tpm.Stop, tpm.Kill} {
		if err := end(); err != nil {
			t.Fatal(err)
		}
		snapshot, err := tpm.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		if err := tpm.Rollback(snapshot); err != nil {
			t.Fatal(err)
		}
		if err := tpm.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := tpm.Kill(); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("pgrep", "-f", tpm.Dir).Output(); err == nil {
		t.Errorf("left running: %s", out)
	}
	again, err := softhsmtest.OpenTPM(t.Context(), tpm.Dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Stop(); err != nil {
		t.Fatal(err)
	}
}

func TestNTP(t *testing.T) {
	t.Parallel()
	a, err := softhsmtest.StartNTP(softhsmtest.Behaviour{})
	if err != nil {
		t.Fatal(err)
	}
	b, err := softhsmtest.StartNTP(softhsmtest.Behaviour{Kiss: "RATE"})
	if err != nil {
		t.Fatal(err)
	}
	if host := func(x string) string { h, _, _ := net.SplitHostPort(x); return h }; host(a.Address) == host(b.Address) {
		t.Error("two servers share an address")
	}
	answer := ask(t, a.Address)
	if answer[0]&7 != 4 || answer[1] != 1 || !bytes.Equal(answer[24:32], []byte("origin!!")) {
		t.Errorf("answer % x", answer)
	}
	if answer := ask(t, b.Address); answer[1] != 0 || string(answer[12:16]) != "RATE" {
		t.Errorf("kiss % x", answer)
	}
	if a.Queries() != 1 {
		t.Errorf("%d queries", a.Queries())
	}
	for _, s := range []*softhsmtest.NTP{a, b} {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

func ask(t *testing.T, address string) []byte {
	t.Helper()
	c, err := (&net.Dialer{}).DialContext(context.Background(), "udp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	query := append([]byte{4<<3 | 3}, make([]byte, 47)...)
	copy(query[40:], "origin!!")
	if _, err := c.Write(query); err != nil {
		t.Fatal(err)
	}
	out := make([]byte, 100)
	n, err := c.Read(out)
	if err != nil || n != 48 {
		t.Fatalf("%d bytes: %v", n, err)
	}
	return out[:n]
}

func TestMissingProgramSaysWhatToInstall(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if _, err := softhsmtest.CreateTPM(t.Context(), filepath.Join(t.TempDir(), "tpm")); err == nil || !strings.Contains(err.Error(), "make deps") {
		t.Errorf("error %v does not say what to do", err)
	}
}
