package softhsmtest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"bulla/hsm"
)

// NSS is a database of NSS softokn: the second module, really different from SoftHSM. It lets keys out that it calls never extractable.
type NSS struct {
	Dir    string // absolute
	Module string // the PKCS#11 library
}

var softoknPaths = []string{"/usr/lib/x86_64-linux-gnu/libsoftokn3.so", "/usr/lib/aarch64-linux-gnu/libsoftokn3.so", "/usr/lib64/libsoftokn3.so", "/usr/lib/libsoftokn3.so"}

// CreateNSS makes a database in dir, which must not exist, with a random password in a file of mode 0600.
func CreateNSS(ctx context.Context, dir string) (*NSS, error) {
	n, err := newNSS(dir)
	if err != nil {
		return nil, fmt.Errorf("making an NSS database: %w", err)
	}
	if err := os.Mkdir(n.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("making an NSS database: %w", err)
	}
	if err := n.create(ctx); err != nil {
		return nil, fmt.Errorf("making an NSS database in %s: %w", n.Dir, errors.Join(err, os.RemoveAll(n.Dir)))
	}
	return n, nil
}

// OpenNSS finds a database that CreateNSS made.
func OpenNSS(dir string) (*NSS, error) {
	n, err := newNSS(dir)
	if err != nil {
		return nil, fmt.Errorf("opening an NSS database: %w", err)
	}
	if _, err := os.Stat(filepath.Join(n.Dir, "key4.db")); err != nil {
		return nil, fmt.Errorf("opening an NSS database: %w", err)
	}
	return n, nil
}

func newNSS(dir string) (*NSS, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if strings.ContainsAny(dir, "'\"\\\n") {
		return nil, fmt.Errorf("the directory %q: NSS's parameters take no quotes, backslash or newline in a path", dir)
	}
	module, err := findLibrary(softoknPaths, "libnss3")
	if err != nil {
		return nil, err
	}
	return &NSS{Dir: dir, Module: module}, nil
}

func (n *NSS) create(ctx context.Context) error {
	if err := os.WriteFile(n.pinFile(), []byte(rand.Text()+"\n"), 0o600); err != nil {
		return err
	}
	p, err := start(exec.Command("certutil", "-N", "-d", "sql:"+n.Dir, "-f", n.pinFile()))
	if err != nil {
		return err
	}
	return p.wait(ctx)
}

func (n *NSS) pinFile() string { return filepath.Join(n.Dir, "pin") }

// URI names a key in the database, with the parameters that NSS wants when it is initialised.
func (n *NSS) URI(object string) string {
	return hsm.URI{Token: "NSS Certificate DB", Object: object, ModulePath: n.Module, PINSource: "file:" + n.pinFile(),
		ModuleInit: "configdir='sql:" + n.Dir + "' certPrefix='' keyPrefix='' secmod='secmod.db' flags="}.String()
}
