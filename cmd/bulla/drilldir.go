package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
)

// devConfig is what a dev appliance's configuration says of where it is.
type devConfig struct {
	State   string `toml:"state"`
	Sockets struct {
		Directory string `toml:"directory"`
	} `toml:"sockets"`
	TPM struct {
		Device string `toml:"device"`
	} `toml:"tpm"`
	Logs []struct {
		Name string `toml:"name"`
		File string `toml:"file"`
		Key  string `toml:"key"`
	} `toml:"log"`
}

// checkDrillDir refuses a directory that is neither new nor a stopped dev appliance: what drills do must never be done to another. It
// returns the directory's absolute path.
func checkDrillDir(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", usagef("--dir: %w", err)
	}
	names, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist), err == nil && len(names) == 0:
		return dir, nil
	case err != nil:
		return "", usagef("--dir: %w", err)
	}
	if err := isDev(dir); err != nil {
		return "", usagef("--dir: %s is not new, and not made by bullad dev (%w): drills run on throwaway appliances only; name a directory that does not exist", dir, err)
	}
	c, err := net.DialTimeout("unix", filepath.Join(dir, "http.sock"), time.Second)
	if err == nil {
		return "", errors.Join(usagef("--dir: the appliance in %s is running: stop it first", dir), c.Close())
	}
	return dir, nil
}

// isDev looks for what only bullad dev makes: all devices of the appliance, and its officers' keys, in its own directory.
func isDev(dir string) error {
	c, err := readDev(dir)
	if err != nil {
		return err
	}
	for _, x := range []struct{ key, found, want string }{
		{"state", c.State, dir},
		{"sockets.directory", c.Sockets.Directory, dir},
		{"tpm.device", c.TPM.Device, "unix:" + filepath.Join(dir, "tpm", "tpm.sock")},
	} {
		if x.found != x.want {
			return fmt.Errorf("bullad.toml: %s is %q, not %q", x.key, x.found, x.want)
		}
	}
	for _, l := range c.Logs {
		if filepath.Dir(l.File) != dir {
			return fmt.Errorf("bullad.toml: log %s is in %s", l.Name, l.File)
		}
	}
	for _, name := range []string{"hsm/softhsm2.conf", "tpm/roots.pem", "officers/alice", "auditor.policy"} {
		if _, err := os.Stat(filepath.Join(dir, filepath.FromSlash(name))); err != nil {
			return err
		}
	}
	return nil
}

func readDev(dir string) (*devConfig, error) {
	b, err := readSmall(filepath.Join(dir, "bullad.toml"))
	if err != nil {
		return nil, err
	}
	var c devConfig
	if err := toml.Unmarshal(b, &c); err != nil {
		return nil, fmt.Errorf("bullad.toml: %w", err)
	}
	if len(c.Logs) == 0 {
		return nil, errors.New("bullad.toml: there is no log")
	}
	return &c, nil
}

// tpmSigns reports whether a log is signed by the TPM.
func tpmSigns(dir, log string) (bool, error) {
	c, err := readDev(dir)
	if err != nil {
		return false, err
	}
	for _, l := range c.Logs {
		if l.Name == log {
			return strings.HasPrefix(l.Key, "tpm:"), nil
		}
	}
	return false, fmt.Errorf("%s/bullad.toml has no log %s", dir, log)
}

// logFiles are the files of the logs in a dev appliance's directory, and the sealer's, without their directory.
func logFiles(dir string) ([]string, error) {
	c, err := readDev(dir)
	if err != nil {
		return nil, err
	}
	out := []string{"sealer.json"}
	for _, l := range c.Logs {
		out = append(out, filepath.Base(l.File))
	}
	return out, nil
}

// copyAppliance copies the directory of an appliance that was stopped in order: its write-ahead files hold nothing then.
func copyAppliance(from, to string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		switch {
		case d.IsDir():
			return os.Mkdir(filepath.Join(to, rel), 0o700)
		case !d.Type().IsRegular(), strings.HasSuffix(rel, "-wal"):
			return nil
		}
		return copyFile(path, filepath.Join(to, rel))
	})
}

// copyFile copies a file over another, or makes it.
func copyFile(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
