package hsm

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// maxPIN bounds a PIN, in bytes.
const maxPIN = 255

// ReadPIN reads a PIN from what pin-source names: an absolute path, file:PATH, or credential:NAME, a systemd credential. The file must
// be regular, of root or this user, and nobody else's to read. One trailing newline is not part of the PIN. The caller zeroes it.
func ReadPIN(source string) ([]byte, error) {
	path, credential, err := pinPath(source)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a FIFO must not hold us up
	if err != nil {
		return nil, fmt.Errorf("reading the PIN file: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("reading the PIN file: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("reading the PIN file: %s is not a regular file", path)
	}
	others := os.FileMode(0o077)
	if credential {
		others = 0o007 // systemd grants by ACL, whose mask shows as the group's bits, in a directory of the service alone
	}
	if info.Mode().Perm()&others != 0 {
		return nil, fmt.Errorf("reading the PIN file: others can read or write %s: chmod 0600 %s", path, path)
	}
	if owner := info.Sys().(*syscall.Stat_t).Uid; owner != 0 && int(owner) != os.Geteuid() {
		return nil, fmt.Errorf("reading the PIN file: %s belongs to uid %d: chown it to root or to uid %d", path, owner, os.Geteuid())
	}
	pin, err := readPIN(f)
	if err != nil {
		return nil, fmt.Errorf("reading the PIN file %s: %w", path, err)
	}
	return pin, nil
}

func pinPath(source string) (path string, credential bool, err error) {
	if name, ok := strings.CutPrefix(source, "credential:"); ok {
		dir := os.Getenv("CREDENTIALS_DIRECTORY")
		if dir == "" {
			return "", false, fmt.Errorf("reading the PIN: no credential %q: CREDENTIALS_DIRECTORY is not set; does the unit have LoadCredential=?", name)
		}
		if name == "" || name != filepath.Base(name) || name == "." || name == ".." {
			return "", false, fmt.Errorf("reading the PIN: %q is no credential's name", name)
		}
		return filepath.Join(dir, name), true, nil
	}
	path = strings.TrimPrefix(source, "file:")
	if rest, ok := strings.CutPrefix(path, "//"); ok && path != source {
		path = rest // file:///PATH
	}
	if !filepath.IsAbs(path) || strings.ContainsRune(path, 0) {
		return "", false, fmt.Errorf("reading the PIN: pin-source %q: give an absolute path, file:PATH or credential:NAME", source)
	}
	return path, false, nil
}

func readPIN(r io.Reader) (pin []byte, err error) {
	buf := make([]byte, maxPIN+2) // a newline, and one to see that there is more
	defer func() {
		if err != nil {
			clear(buf)
		}
	}()
	n, err := io.ReadFull(r, buf)
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return nil, err
	}
	pin = bytes.TrimSuffix(buf[:n], []byte("\n"))
	switch {
	case len(pin) == 0:
		return nil, errors.New("it is empty")
	case len(pin) > maxPIN:
		return nil, fmt.Errorf("it has more than %d bytes", maxPIN)
	case bytes.ContainsAny(pin, "\x00\r\n"):
		return nil, errors.New("it must hold the PIN alone, in one line")
	}
	return pin, nil
}
