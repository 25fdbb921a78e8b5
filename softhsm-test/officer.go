package softhsmtest

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/crypto/ssh"
)

// CreateOfficer makes an SSH key pair in dir, NAME and NAME.pub, in OpenSSH's formats.
func CreateOfficer(dir, name string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("making officer %s: %w", name, err)
	}
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return fmt.Errorf("making officer %s: %w", name, err)
	}
	block, err := ssh.MarshalPrivateKey(key, name)
	if err != nil {
		return fmt.Errorf("making officer %s: %w", name, err)
	}
	public, err := ssh.NewPublicKey(pub)
	if err != nil {
		return fmt.Errorf("making officer %s: %w", name, err)
	}
	for file, b := range map[string][]byte{name: pem.EncodeToMemory(block), name + ".pub": ssh.MarshalAuthorizedKey(public)} {
		f, err := os.OpenFile(filepath.Join(dir, file), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return fmt.Errorf("making officer %s: %w", name, err)
		}
		_, err = f.Write(b)
		if closeErr := f.Close(); err == nil {
			err = closeErr
		}
		if err != nil {
			return fmt.Errorf("making officer %s: %w", name, err)
		}
	}
	return nil
}
