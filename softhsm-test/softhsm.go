// Package softhsmtest makes throwaway devices that are real in every respect but their hardware: SoftHSM tokens, TPMs (swtpm) whose
// endorsement keys are certified by a CA of their own, NTP servers that may lie, and officers with SSH keys. Tests use them, and
// bullad dev does. Each lives in a directory; Create never opens one and Open never creates one.
package softhsmtest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"

	"bulla/hsm"
)

// SoftHSM is a directory of SoftHSM tokens. The library has one configuration a process, taken from SOFTHSM2_CONF when it is
// initialised, so a process uses one such directory.
type SoftHSM struct {
	Dir    string // absolute
	Module string // the PKCS#11 library
}

var softHSMPaths = []string{"/usr/lib/softhsm/libsofthsm2.so", "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so", "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so", "/usr/lib64/softhsm/libsofthsm2.so"}

// CreateSoftHSM makes dir, which must not exist, and makes it this process's token directory.
func CreateSoftHSM(dir string) (*SoftHSM, error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making a token directory: %w", err)
	}
	tokens := filepath.Join(dir, "tokens")
	if err := os.Mkdir(tokens, 0o700); err != nil {
		return nil, fmt.Errorf("making a token directory: %w", err)
	}
	conf := fmt.Sprintf("directories.tokendir = %s\nobjectstore.backend = file\nlog.level = ERROR\nslots.removable = false\nslots.mechanisms = ALL\nlibrary.reset_on_fork = false\n", tokens)
	if err := os.WriteFile(filepath.Join(dir, "softhsm2.conf"), []byte(conf), 0o600); err != nil {
		return nil, fmt.Errorf("making a token directory: %w", err)
	}
	return OpenSoftHSM(dir)
}

// OpenSoftHSM makes an existing token directory this process's.
func OpenSoftHSM(dir string) (*SoftHSM, error) {
	conf := filepath.Join(dir, "softhsm2.conf")
	if _, err := os.Stat(conf); err != nil {
		return nil, fmt.Errorf("opening a token directory: %w", err)
	}
	if err := os.Setenv("SOFTHSM2_CONF", conf); err != nil {
		return nil, err
	}
	for _, p := range softHSMPaths {
		if _, err := os.Stat(p); err == nil {
			return &SoftHSM{Dir: dir, Module: p}, nil
		}
	}
	return nil, errors.New("libsofthsm2.so was not found: run make deps (Debian's package softhsm2)")
}

// InitToken makes a token with a random PIN, which is left in a file of mode 0600, and returns that file's path.
func (s *SoftHSM) InitToken(ctx context.Context, label string) (pinFile string, err error) {
	pinFile = filepath.Join(s.Dir, label+".pin")
	pin, so := []byte(rand.Text()), []byte(rand.Text())
	f, err := os.OpenFile(pinFile, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", fmt.Errorf("making token %s: %w", label, err)
	}
	_, err = f.Write(append(bytes.Clone(pin), '\n'))
	if err := errors.Join(err, f.Close()); err != nil {
		return "", fmt.Errorf("making token %s: %w", label, err)
	}
	m, err := hsm.Load(hsm.ModuleConfig{Path: s.Module})
	if err != nil {
		return "", err
	}
	return pinFile, errors.Join(m.InitToken(ctx, label, so, pin), m.Close())
}

// URI names a key in a token that InitToken made.
func (s *SoftHSM) URI(label, object string) string {
	return fmt.Sprintf("pkcs11:token=%s;object=%s?module-path=%s&pin-source=file:%s", url.PathEscape(label), url.PathEscape(object), s.Module, filepath.Join(s.Dir, label+".pin"))
}

// Away moves the tokens out of the library's sight; Back returns them.
func (s *SoftHSM) Away() error {
	return os.Rename(filepath.Join(s.Dir, "tokens"), filepath.Join(s.Dir, "away"))
}

// Back undoes Away.
func (s *SoftHSM) Back() error {
	away, tokens := filepath.Join(s.Dir, "away"), filepath.Join(s.Dir, "tokens")
	if err := os.Remove(tokens); err != nil && !errors.Is(err, fs.ErrNotExist) { // the library may have made it anew, empty
		return err
	}
	return os.Rename(away, tokens)
}
