package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"bulla/ceremony"
	"bulla/record"
)

// fido is a FIDO2 key in software (openssh PROTOCOL.u2f), as an agent gives it out.
type fido struct {
	agent.ExtendedAgent
	key     ed25519.PrivateKey
	pub     ssh.PublicKey
	flags   byte
	spoiled bool // signs something else
	asked   chan struct{}
	silent  <-chan struct{} // it answers only when this is closed; nil: at once
}

func newFIDO(t *testing.T, flags byte) *fido {
	t.Helper()
	public, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	pub, err := ssh.ParsePublicKey(ssh.Marshal(struct {
		Type        string
		Key         []byte
		Application string
	}{ssh.KeyAlgoSKED25519, public, "ssh:"}))
	if err != nil {
		t.Fatal(err)
	}
	return &fido{key: key, pub: pub, flags: flags, asked: make(chan struct{}, 1)}
}

func (f *fido) List() ([]*agent.Key, error) {
	return []*agent.Key{{Format: f.pub.Type(), Blob: f.pub.Marshal()}}, nil
}

func (f *fido) SignWithFlags(key ssh.PublicKey, data []byte, _ agent.SignatureFlags) (*ssh.Signature, error) {
	return f.Sign(key, data)
}

func (f *fido) Sign(_ ssh.PublicKey, data []byte) (*ssh.Signature, error) {
	f.asked <- struct{}{}
	if f.silent != nil { // it waits for a touch
		<-f.silent
	}
	if f.spoiled {
		data = append(data, 0)
	}
	application, message := sha256.Sum256([]byte("ssh:")), sha256.Sum256(data)
	rest := binary.BigEndian.AppendUint32([]byte{f.flags}, 7)
	blob, err := f.key.Sign(rand.Reader, bytes.Join([][]byte{application[:], rest, message[:]}, nil), crypto.Hash(0))
	return &ssh.Signature{Format: f.pub.Type(), Blob: blob, Rest: rest}, err
}

// serve is an agent that holds the key.
func (f *fido) serve(t *testing.T) (socket string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "bulla")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "agent.sock"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(l.Close(), os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
	})
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_ = agent.ServeAgent(f, c) // ends with the connection
				_ = c.Close()
			}()
		}
	}()
	return l.Addr().String()
}

// A FIDO2 key signs through ssh-agent, and what it did not prove is found before anything is sent.
func TestFIDOKeyInAgent(t *testing.T) {
	t.Parallel()
	document := []byte(`{"a":1}`)
	for _, c := range []struct {
		name    string
		flags   byte
		verify  bool
		spoiled bool
		why     string
	}{
		{"touched", 1, false, false, ""},
		{"touched, with PIN", 5, true, false, ""},
		{"not touched", 0, false, false, "touch: the key was not touched"},
		{"without the PIN", 1, true, false, "pin: made without PIN"},
		{"of something else", 1, false, true, "signature: it is not bob's signature of this document"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := newFIDO(t, c.flags)
			f.spoiled = c.spoiled
			var errOut bytes.Buffer
			o := &officer{tool: &tool{err: &errOut}, as: "bob", agent: f.serve(t)}
			appointed := &ceremony.Officer{Name: "bob", Key: keyText(f.pub), Touch: true, Verify: c.verify}
			armored, err := o.sign(t.Context(), document, ceremony.Approve, appointed)
			if !strings.Contains(errOut.String(), "touch the key SHA256:") {
				t.Errorf("it says %q", errOut.String())
			}
			if c.why != "" {
				if err == nil || !strings.Contains(err.Error(), c.why) || exitCode(err) != exitUnavailable || armored != "" {
					t.Errorf("%v, want %q", err, c.why)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if p, err := appointed.Check(document, ceremony.Approve, armored); err != nil || !p.Touched || p.Counter != 7 {
				t.Errorf("%+v %v", p, err)
			}
		})
	}
}

// Whoever does not touch the key after all interrupts the command.
func TestAgentThatWaitsIsInterrupted(t *testing.T) {
	t.Parallel()
	f := newFIDO(t, 1)
	f.silent = t.Context().Done()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	o := &officer{tool: &tool{err: new(bytes.Buffer)}, as: "bob", agent: f.serve(t)}
	go func() {
		<-f.asked
		cancel()
	}()
	_, err := o.sign(ctx, []byte("{}"), ceremony.Approve, &ceremony.Officer{Name: "bob", Key: keyText(f.pub), Touch: true})
	if !errors.Is(err, context.Canceled) || exitCode(err) != exitUnavailable {
		t.Errorf("%v", err)
	}
}

// The file of a FIDO2 key holds no key, only what its device needs: it is said what to do instead.
func TestFIDOKeyFile(t *testing.T) {
	t.Parallel()
	pub := newFIDO(t, 1).pub
	for _, cipher := range []string{"none", "aes256-ctr"} {
		head := ssh.Marshal(struct {
			Cipher, KDF, Options string
			Keys                 uint32
			Public, Private      []byte
		}{cipher, "none", "", 1, pub.Marshal(), []byte("no private key")})
		path := filepath.Join(t.TempDir(), "id_ed25519_sk")
		file := pem.EncodeToMemory(&pem.Block{Type: "OPENSSH PRIVATE KEY", Bytes: append([]byte("openssh-key-v1\x00"), head...)})
		if err := os.WriteFile(path, file, 0o600); err != nil {
			t.Fatal(err)
		}
		o := &officer{tool: &tool{in: strings.NewReader("")}, as: "bob", key: path}
		_, err := o.sign(t.Context(), []byte("{}"), ceremony.Approve, nil)
		if err == nil || exitCode(err) != exitUsage || !strings.Contains(err.Error(), "is of a FIDO2 key: `ssh-add` it") || !strings.Contains(err.Error(), "ssh-keygen -Y sign -n ceremony@bulla -f "+path) {
			t.Errorf("%v", err)
		}
	}
}

// ssh-agent signs with every kind of key that an officer may have, and so do files.
func TestKinds(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "bulla")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	kinds := map[string][]string{"ed25519": {"-t", "ed25519"}, "p256": {"-t", "ecdsa", "-b", "256"}, "p384": {"-t", "ecdsa", "-b", "384"}, "rsa": {"-t", "rsa", "-b", "3072"}, "pem": {"-t", "ecdsa", "-m", "PEM"}}
	officers := map[string]ceremony.Officer{}
	var files []string
	for name, options := range kinds {
		o, err := keygen(filepath.Join(dir, name), append(options, "-N", "")...)
		if err != nil {
			t.Fatal(err)
		}
		officers[name], files = o, append(files, filepath.Join(dir, name))
	}
	socket, stop, err := sshAgent(dir, files...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
	document := []byte(`{"a":1}`)
	for name, appointed := range officers {
		for _, key := range []string{"", filepath.Join(dir, name), filepath.Join(dir, name) + ".pub"} {
			o := &officer{tool: &tool{err: new(bytes.Buffer)}, as: name, key: key, agent: socket}
			for _, d := range []ceremony.Decision{ceremony.Approve, ceremony.Reject} {
				armored, err := o.sign(t.Context(), document, d, &appointed)
				if err == nil {
					_, err = appointed.Check(document, d, armored)
				}
				if err != nil {
					t.Errorf("%s, key %q: %v", name, key, err)
				}
			}
		}
	}
}

// Every action makes the content that was asked for, byte for byte.
func TestContents(t *testing.T) {
	t.Parallel()
	c := newCouncil(t).begin()
	hash := hex.EncodeToString(bytes.Repeat([]byte{0xab}, 32))
	name := "000b" + hash
	for i, k := range []string{"dave", "erin"} {
		if _, err := keygen(c.path(k), "-t", "ed25519", "-N", ""); err != nil {
			t.Fatal(i, err)
		}
	}
	if err := os.WriteFile(c.path("erin.pub"), []byte(keyText(newFIDO(t, 1).pub)+" erin's\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(c.path("changes.json"), []byte(`{"seal":{"pcrs":[0,13],"interval":"3s"},"clock":{"strict":true,"f":1}}`), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(c.path("generate.json"), []byte("{\n  \"purpose\": \"pcr\",\n  \"algorithm\": \"ecdsa-p256\"\n}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for i, f := range []struct {
		args []string
		want []string // parts of the content
	}{
		{[]string{"policy.set", "--changes", c.path("changes.json"), "--set", "role.operator=any", "--set", "seal.interval=4s"},
			[]string{`"pcrs":[0,13]`, `"interval":4000000000`, `"strict":true`, `{"any":true,"name":"operator"}`, `{"name":"producer","uids":[1000]}`}},
		{[]string{"officers.set", "--add", "dave=" + c.path("dave.pub"), "--add", "erin=" + c.path("erin.pub"), "--verify", "erin", "--remove", "alice", "--from", "dave=2026-01-02T03:04:05.5Z", "--until", "bob=2099-01-01T00:00:00+01:00",
			"--threshold", "genesis=3", "--threshold", "key.rotate=3", "--threshold", "key.rotate=0", "--proposer-counts", "true"},
			[]string{`"name":"dave","valid_from":"2026-01-02T03:04:05.500000000Z"`, `"name":"bob","valid_to":"2098-12-31T23:00:00.000000000Z"`, `"name":"erin","touch":true,"verify":true`, `"thresholds":{"default":2,"genesis":3}`, `"proposer_counts":true`}},
		{[]string{"key.generate", "--purpose", "interop", "--label", "x"}, []string{`{"algorithm":"ed25519","label":"x","purpose":"interop"}`}},
		{[]string{"key.generate", "--purpose", "log", "--algorithm", "ecdsa-p384"}, []string{`{"algorithm":"ecdsa-p384","purpose":"log"}`}},
		{[]string{"key.generate", "--content", c.path("generate.json")}, []string{`{"algorithm":"ecdsa-p256","purpose":"pcr"}`}},
		{[]string{"tpm.enrol", "--ak-name", name, "--ek", hash}, []string{`"pcr":13`, `"ak_name":"AAur`}},
		{[]string{"recovery.declare", "--reason", "r", "--known", "99:" + hash, "--successor", "next.example/a"}, []string{`"known":{"root":"` + record.Hash(bytes.Repeat([]byte{0xab}, 32)).String() + `","size":99}`, `"successor":"next.example/a"`, `"surviving":{"root":"`}},
		{[]string{"recovery.declare", "--reason", "r"}, []string{`"size":4}}`}},
	} {
		file := c.path("content" + string(rune('a'+i)))
		c.ok(append([]string{"propose", f.args[0], "--offline", "--as", "carol", "--out", file, "--expires", "2h"}, f.args[1:]...)...)
		document, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		p, err := ceremony.ParseProposal(document)
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range f.want {
			if !strings.Contains(string(p.Content), w) {
				t.Errorf("%v makes no %s: %s", f.args, w, p.Content)
			}
		}
	}
}

// The JSON of each command is one object, or list, that has what the text has.
func TestCeremonyJSON(t *testing.T) {
	t.Parallel()
	c := newCouncil(t).begin()
	get := func(args ...string) (m map[string]any) {
		t.Helper()
		if err := json.Unmarshal([]byte(c.ok(append(args, "--json")...)), &m); err != nil {
			t.Fatal(args, err)
		}
		return m
	}
	m := get("propose", "policy.set", "--set", "quotas.streams=5", "--as", "alice", "--out", c.path("p.json"))
	document, err := os.ReadFile(c.path("p.json"))
	if err != nil {
		t.Fatal(err)
	}
	hash := ceremony.DocumentHash(document)
	if m["sha256"] != hex.EncodeToString(hash[:]) || m["number"] != 1.0 || m["index"] != 4.0 || m["missing"] == nil || len(m["words"].([]any)) != 32 {
		t.Errorf("propose: %v", m)
	}
	if m := get("show", "1"); m["sha256"] != hex.EncodeToString(hash[:]) || m["given"] != 1.0 || m["needed"] != 2.0 || m["document"].(map[string]any)["number"] != 1.0 {
		t.Errorf("show: %v", m)
	}
	if m := get("approve", "1", "--as", "bob", "--offline", "--out", c.path("bob.json")); m["document"] != c.path("bob.json") || m["signature"] != c.path("bob.json.sig") {
		t.Errorf("approve offline: %v", m)
	}
	if m := get("approve", "1", "--as", "bob", "--signature", c.path("bob.json.sig")); m["given"] != 2.0 || m["missing"] != nil {
		t.Errorf("approve: %v", m)
	}
	if m := get("reject", "1", "--as", "carol"); m["given"] != 2.0 {
		t.Errorf("reject: %v", m)
	}
	if m := get("enact", "1"); m["index"] != 7.0 || len(m["steps"].([]any)) != 1 {
		t.Errorf("enact: %v", m)
	}
	if m := get("minutes", "1", "--html", "--out", c.path("m.html")); m["out"] != c.path("m.html") {
		t.Errorf("minutes: %v", m)
	}
}
