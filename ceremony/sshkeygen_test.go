package ceremony_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"bulla/ceremony"
	"bulla/record"
)

// keygen makes an officer's key with ssh-keygen, and returns its file.
func keygen(t *testing.T, args ...string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "id")
	run(t, "", append([]string{"-q", "-N", "", "-C", "", "-f", file}, args...)...)
	return file
}

func run(t *testing.T, stdin string, args ...string) (out string) {
	t.Helper()
	out, err := tryRun(stdin, args...)
	if err != nil {
		t.Fatalf("ssh-keygen %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func tryRun(stdin string, args ...string) (string, error) {
	cmd := exec.Command("ssh-keygen", args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func write(t *testing.T, name string, b []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// An officer needs nothing but ssh-keygen: it signs what we take, byte for byte as it wrote it, and it verifies what is in the log.
func TestSSHKeygen(t *testing.T) {
	t.Parallel()
	for _, kind := range [][]string{{"-t", "ed25519"}, {"-t", "ecdsa", "-b", "256"}, {"-t", "ecdsa", "-b", "384"}, {"-t", "rsa", "-b", "3072"}} {
		t.Run(strings.Join(kind, ""), func(t *testing.T) {
			t.Parallel()
			file := keygen(t, kind...)
			pub, err := os.ReadFile(file + ".pub")
			if err != nil {
				t.Fatal(err)
			}
			r := newRig(t)
			g := r.genesis()
			g.Officers[1].Key = strings.TrimSpace(string(pub)) // bob's
			r.people["bob"] = signer(t, file)
			r.begin(g)
			n := r.propose(r.policy(5))

			document := write(t, "proposal.json", r.numbers[n])
			run(t, "", "-Y", "sign", "-q", "-f", file, "-n", ceremony.Namespace, document)
			armored, err := os.ReadFile(document + ".sig")
			if err != nil {
				t.Fatal(err)
			}
			if again, err := ceremony.Armor(armored); err != nil || again != string(armored) {
				t.Errorf("the form that the log takes is not ssh-keygen's: %v\n%s", err, again)
			}
			a := r.decision(n, ceremony.Approve, "bob")
			a.Signature = string(armored)
			r.add(record.KindApproval, a)
			r.enact(n, nil)

			allowed := write(t, "allowed_signers", r.state.Policy.AllowedSigners())
			for _, name := range []string{"alice", "bob"} { // one signed by us, one by ssh-keygen
				sig := write(t, "sig", []byte(r.sign(r.numbers[n], ceremony.Approve, name)))
				out := run(t, string(r.numbers[n]), "-Y", "verify", "-f", allowed, "-I", name, "-n", ceremony.Namespace, "-s", sig)
				if want := `Good "ceremony@bulla" signature for ` + name; !strings.Contains(out, want) {
					t.Errorf("ssh-keygen says %q", out)
				}
				altered := bytes.Replace(r.numbers[n], []byte(`"streams":5`), []byte(`"streams":6`), 1)
				if out, err := tryRun(string(altered), "-Y", "verify", "-f", allowed, "-I", name, "-n", ceremony.Namespace, "-s", sig); err == nil {
					t.Errorf("of an altered document ssh-keygen says %q", out)
				}
			}
		})
	}
}

func signer(t *testing.T, file string) ssh.Signer {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ssh.ParsePrivateKey(b)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// ssh-keygen accepts a FIDO2 signature that nobody touched the key for; we do not. Both kinds of keys, all flags.
func TestTouchIsCheckedByUs(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	g := r.genesis()
	g.Officers = r.officers("alice", "carol", "dave")
	r.begin(g)
	n := r.propose(r.policy(5))
	allowed := write(t, "allowed_signers", r.state.Policy.AllowedSigners())
	for _, c := range []struct {
		officer string
		flags   byte
		rule    ceremony.Rule
	}{
		{"carol", 0x00, ceremony.RuleTouch}, {"carol", 0x04, ceremony.RuleTouch}, {"carol", 0x01, ceremony.RulePIN}, {"carol", 0x05, ""},
		{"dave", 0x00, ceremony.RuleTouch}, {"dave", 0x04, ceremony.RuleTouch}, {"dave", 0x01, ""}, {"dave", 0x05, ""},
	} {
		t.Run(fmt.Sprintf("%s %#02x", c.officer, c.flags), func(t *testing.T) {
			r := r.fork(t)
			r.people[c.officer] = r.people[c.officer].(sk).with(c.flags)
			a := r.decision(n, ceremony.Approve, c.officer)
			sig := write(t, "sig", []byte(a.Signature))
			out := run(t, string(r.numbers[n]), "-Y", "verify", "-f", allowed, "-I", c.officer, "-n", ceremony.Namespace, "-s", sig)
			if !strings.Contains(out, "Good") {
				t.Errorf("ssh-keygen says %q", out)
			}
			err := r.try(record.KindApproval, a)
			if c.rule == "" {
				if err != nil {
					t.Error(err)
				}
				p := r.state.Open()[0].Approvals[1].Presence
				if p == nil || !p.Touched || p.Verified != (c.flags&4 != 0) || p.Counter == 0 {
					t.Errorf("%+v", p)
				}
				return
			}
			refusedBy(t, err, c.rule)
		})
	}
}
