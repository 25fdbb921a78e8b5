package softhsmtest

import (
	"bytes"
	"crypto/ed25519"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/crypto/ssh"

	"bulla/internal/durable"
)

// Officer is a security officer with an SSH key (Ed25519), in the files that ssh-keygen would make: NAME and NAME.pub.
type Officer struct {
	Name    string
	KeyFile string // absolute; OpenSSH's private key format, unencrypted, mode 0600
	Key     string // the public key in authorized_keys form, without comment
}

// CreateOfficer makes an officer's key in dir, which must exist; a key of that name must not.
func CreateOfficer(dir, name string) (*Officer, error) {
	o, err := newOfficer(dir, name)
	if err != nil {
		return nil, fmt.Errorf("making a key for officer %q: %w", name, err)
	}
	if err := o.create(); err != nil {
		return nil, fmt.Errorf("making a key for officer %q: %w", name, err)
	}
	return o, nil
}

// OpenOfficer finds the key that CreateOfficer made.
func OpenOfficer(dir, name string) (*Officer, error) {
	o, err := newOfficer(dir, name)
	if err != nil {
		return nil, fmt.Errorf("opening officer %q's key: %w", name, err)
	}
	signer, err := o.Signer()
	if err != nil {
		return nil, err
	}
	o.Key = authorizedKey(signer.PublicKey())
	return o, nil
}

func newOfficer(dir, name string) (*Officer, error) {
	if name != filepath.Base(name) || name == "." || name == ".." || strings.ContainsAny(name, " \n") {
		return nil, errors.New("the name must be a file name without spaces")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	return &Officer{Name: name, KeyFile: filepath.Join(dir, name)}, nil
}

func (o *Officer) create() error {
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		return err
	}
	block, err := ssh.MarshalPrivateKey(private, o.Name)
	if err != nil {
		return err
	}
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		return err
	}
	o.Key = authorizedKey(key)
	if err := durable.Create(o.KeyFile+".pub", []byte(o.Key+" "+o.Name+"\n"), 0o644); err != nil {
		return err
	}
	if err := durable.Create(o.KeyFile, pem.EncodeToMemory(block), 0o600); err != nil {
		return errors.Join(err, os.Remove(o.KeyFile+".pub"))
	}
	return nil
}

// Signer is the private key, for package ssh.
func (o *Officer) Signer() (ssh.Signer, error) {
	text, err := os.ReadFile(o.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("reading officer %s's key: %w", o.Name, err)
	}
	signer, err := ssh.ParsePrivateKey(text)
	if err != nil {
		return nil, fmt.Errorf("reading officer %s's key: %w", o.Name, err)
	}
	return signer, nil
}

func authorizedKey(k ssh.PublicKey) string {
	return string(bytes.TrimSpace(ssh.MarshalAuthorizedKey(k)))
}
