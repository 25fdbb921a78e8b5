// Package softhsmtest makes throwaway devices that are real in every respect but their hardware: PKCS#11 tokens (SoftHSM, and NSS as a
// second, different module), TPMs (swtpm) whose endorsement keys are certified by a CA of their own, NTP servers that may lie, a real
// chronyd that never touches the machine's clock, and officers with SSH keys. Tests use them, and bullad dev does.
//
// Each device lives in a directory. Create makes one and never opens one, Open never creates one; neither leaves anything half made.
// Child processes end with the process that started them, even when it is killed. What is named ...For(t) makes a device for the
// time of one test.
package softhsmtest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"bulla/hsm"
	"bulla/internal/durable"
)

// SoftHSM is a directory of SoftHSM tokens. The library has one state a process, taken from SOFTHSM2_CONF when it is initialised, so a
// process uses one such directory; a process that is to use it without this package gets SOFTHSM2_CONF=s.Config().
type SoftHSM struct {
	Dir    string // absolute
	Module string // the PKCS#11 library
}

var softHSMPaths = []string{
	"/usr/lib/softhsm/libsofthsm2.so",
	"/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so", "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
	"/usr/lib64/softhsm/libsofthsm2.so", "/usr/lib64/pkcs11/libsofthsm2.so",
}

// findLibrary returns the first path that there is.
func findLibrary(paths []string, debianPackage string) (string, error) {
	for _, p := range paths {
		if _, err := os.Stat(p); err == nil {
			return p, nil
		}
	}
	return "", fmt.Errorf("%s was not found: run make deps (it is in Debian's package %s)", filepath.Base(paths[0]), debianPackage)
}

// CreateSoftHSM makes dir, which must not exist, and makes it this process's token directory.
func CreateSoftHSM(dir string) (*SoftHSM, error) {
	s, err := newSoftHSM(dir)
	if err != nil {
		return nil, fmt.Errorf("making a token directory: %w", err)
	}
	if err := os.Mkdir(s.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("making a token directory: %w", err)
	}
	if err := errors.Join(os.Mkdir(s.tokens(), 0o700), s.use()); err != nil {
		return nil, fmt.Errorf("making a token directory: %w", errors.Join(err, os.RemoveAll(s.Dir)))
	}
	return s, nil
}

// OpenSoftHSM makes an existing token directory this process's, wherever it was moved meanwhile.
func OpenSoftHSM(dir string) (*SoftHSM, error) {
	s, err := newSoftHSM(dir)
	if err != nil {
		return nil, fmt.Errorf("opening a token directory: %w", err)
	}
	for _, p := range []string{s.Config(), s.tokens()} {
		if _, err := os.Stat(p); err != nil {
			return nil, fmt.Errorf("opening a token directory: %w", err)
		}
	}
	if err := s.use(); err != nil {
		return nil, fmt.Errorf("opening a token directory: %w", err)
	}
	return s, nil
}

func newSoftHSM(dir string) (*SoftHSM, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if strings.ContainsAny(dir, "#\n") {
		return nil, fmt.Errorf("the directory %q: SoftHSM's configuration takes no # or newline in a path", dir)
	}
	module, err := findLibrary(softHSMPaths, "softhsm2")
	if err != nil {
		return nil, err
	}
	return &SoftHSM{Dir: dir, Module: module}, nil
}

// Config is the path of the configuration, for SOFTHSM2_CONF.
func (s *SoftHSM) Config() string { return filepath.Join(s.Dir, "softhsm2.conf") }

func (s *SoftHSM) tokens() string { return filepath.Join(s.Dir, "tokens") }

func (s *SoftHSM) away() string { return filepath.Join(s.Dir, "away") }

// use writes the configuration for where the directory is now, and names it to the library.
func (s *SoftHSM) use() error {
	conf := "directories.tokendir = " + s.tokens() + "\nobjectstore.backend = file\nlog.level = ERROR\nslots.removable = false\nslots.mechanisms = ALL\nlibrary.reset_on_fork = false\n"
	if err := durable.Replace(s.Config(), []byte(conf), 0o600); err != nil {
		return err
	}
	return os.Setenv("SOFTHSM2_CONF", s.Config())
}

// InitToken makes a token with a random PIN, which is left in a file of mode 0600, and returns that file's path. The security officer's
// PIN is random and forgotten. The label is one file name of at most 32 bytes; one in use is refused, with the file left as it was.
func (s *SoftHSM) InitToken(ctx context.Context, label string) (pinFile string, err error) {
	if len(label) > 32 || label != filepath.Base(label) || label == "." || label == ".." {
		return "", fmt.Errorf("making token %q: the label must be a file name of 1 to 32 bytes", label)
	}
	pinFile = s.pinFile(label)
	pin := rand.Text()
	// The PIN comes first: a token whose PIN is lost is of no use.
	if err := durable.Create(pinFile, []byte(pin+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("making token %s: %w", label, err)
	}
	if err := s.initToken(ctx, label, pin); err != nil {
		return "", errors.Join(err, os.Remove(pinFile))
	}
	return pinFile, nil
}

// initToken does what softhsm2-util does, which takes PINs from its arguments, where every user of the machine reads them.
func (s *SoftHSM) initToken(ctx context.Context, label, pin string) error {
	m, err := hsm.Load(hsm.ModuleConfig{Path: s.Module})
	if err != nil {
		return err
	}
	return errors.Join(m.InitToken(ctx, label, []byte(rand.Text()), []byte(pin)), m.Close())
}

func (s *SoftHSM) pinFile(label string) string { return filepath.Join(s.Dir, label+".pin") }

// URI names a key in a token that InitToken made, as configurations do.
func (s *SoftHSM) URI(label, object string) string {
	return hsm.URI{Token: label, Object: object, ModulePath: s.Module, PINSource: "file:" + s.pinFile(label)}.String()
}

// Away moves the tokens out of the library's sight, as a device that is unplugged; Back returns them.
func (s *SoftHSM) Away() error {
	if err := os.Rename(s.tokens(), s.away()); err != nil {
		return fmt.Errorf("moving the tokens away: %w", err)
	}
	return nil
}

// Back undoes Away.
func (s *SoftHSM) Back() error {
	if _, err := os.Stat(s.away()); err != nil {
		return fmt.Errorf("bringing the tokens back: %w", err)
	}
	if err := os.Remove(s.tokens()); err != nil && !errors.Is(err, fs.ErrNotExist) { // the library may have made it anew, empty
		return fmt.Errorf("bringing the tokens back: %w", err)
	}
	if err := os.Rename(s.away(), s.tokens()); err != nil {
		return fmt.Errorf("bringing the tokens back: %w", err)
	}
	return nil
}
