package softhsmtest_test

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	softhsmtest "bulla/softhsm-test"
)

// Officers use their own tools: OpenSSH takes the keys, and signs and verifies with them.
func TestOfficersUseOpenSSH(t *testing.T) {
	t.Parallel()
	officers := softhsmtest.OfficersFor(t, "alice", "bob")
	alice, bob := officers[0], officers[1]
	if alice.Key == bob.Key {
		t.Error("two officers have one key")
	}
	if out := sshKeygen(t, "", "-y", "-f", alice.KeyFile); out != alice.Key+" alice" {
		t.Errorf("ssh-keygen reads %q, want %q", out, alice.Key+" alice")
	}
	if pub, err := os.ReadFile(alice.KeyFile + ".pub"); err != nil || string(pub) != alice.Key+" alice\n" {
		t.Errorf("public key %q (%v), want %q", pub, err, alice.Key)
	}
	if info, err := os.Stat(alice.KeyFile); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("private key: %v, %v", info.Mode(), err)
	}
	dir := t.TempDir()
	document, allowed := filepath.Join(dir, "proposal"), filepath.Join(dir, "allowed")
	for file, text := range map[string]string{document: "a proposal", allowed: "alice " + alice.Key + "\n"} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	sshKeygen(t, "", "-Y", "sign", "-n", "ceremony@bulla", "-f", alice.KeyFile, document)
	sshKeygen(t, "a proposal", "-Y", "verify", "-n", "ceremony@bulla", "-f", allowed, "-I", "alice", "-s", document+".sig")
}

func sshKeygen(t *testing.T, in string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "ssh-keygen", args...)
	cmd.Stdin = strings.NewReader(in)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("ssh-keygen %q: %v: %s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

func TestOfficersFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	alice, err := softhsmtest.CreateOfficer(dir, "alice")
	if err != nil {
		t.Fatal(err)
	}
	if again, err := softhsmtest.OpenOfficer(dir, "alice"); err != nil || *again != *alice {
		t.Errorf("opened %+v, %v; want %+v", again, err, alice)
	}
	if _, err := softhsmtest.CreateOfficer(dir, "alice"); !errors.Is(err, fs.ErrExist) {
		t.Errorf("made twice: %v", err)
	}
	if _, err := softhsmtest.OpenOfficer(dir, "bob"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("opened what is not there: %v", err)
	}
	// A private key whose public one is lost is not replaced, and no public key is left that is not its.
	if err := os.Remove(alice.KeyFile + ".pub"); err != nil {
		t.Fatal(err)
	}
	if _, err := softhsmtest.CreateOfficer(dir, "alice"); !errors.Is(err, fs.ErrExist) {
		t.Errorf("made over a private key: %v", err)
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 1 {
		t.Errorf("files: %v, %v; want the private key alone", names, err)
	}
	for _, name := range []string{"", ".", "..", "a/b", "a b", "a\nb"} {
		if _, err := softhsmtest.CreateOfficer(dir, name); err == nil {
			t.Errorf("an officer named %q", name)
		}
	}
}
