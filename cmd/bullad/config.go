package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
)

// Config is bullad's configuration file: where things are. What is governed (keys, officers, roles, policies) is in each log's
// genesis and in what was enacted since, never here. docs/bullad.toml shows every key.
type Config struct {
	State   string        `toml:"state"` // directory of the sealer's file
	Sockets SocketsConfig `toml:"sockets"`
	TPM     TPMConfig     `toml:"tpm"`
	Clock   ClockConfig   `toml:"clock"`
	Logs    []LogConfig   `toml:"log"`

	SelfCheck SelfCheckConfig `toml:"selfcheck"`
	Witnesses []WitnessConfig `toml:"witness"`
	TSA       *TSAConfig      `toml:"tsa,omitempty"` // absent: no time-stamps
	PINs      []PINConfig     `toml:"pin,omitempty"` // kept by the TPM

	signDelay time.Duration // of each signature of a log: dev sets it, no file can
}

// SocketsConfig says where sign.sock and http.sock lie.
type SocketsConfig struct {
	Directory string `toml:"directory"`
	GID       *int   `toml:"gid"` // group that may connect; absent: the daemon's own
}

// TPMConfig names the TPM that seals the logs' heads.
type TPMConfig struct {
	Device string `toml:"device"` // /dev/tpmrm0, or unix:PATH of an swtpm
	Roots  string `toml:"roots"`  // PEM file of the EK certificate authorities, needed by init

	EventLog string `toml:"event_log,omitempty"` // the boot event log; absent: the kernel's, if there is one
	IMAList  string `toml:"ima_list,omitempty"`  // the IMA list; absent: the kernel's, if there is one
}

// ClockConfig names the time sources.
type ClockConfig struct {
	Sources []SourceConfig `toml:"source"`
}

// SourceConfig is one NTP server.
type SourceConfig struct {
	Name    string `toml:"name"`
	Address string `toml:"address"`  // host or host:port
	KeyFile string `toml:"key_file"` // symmetric key: "ID TYPE HEX" in a 0600 file
}

// LogConfig is one log of the daemon.
type LogConfig struct {
	Name    string `toml:"name"` // short name in /logs/NAME/
	Origin  string `toml:"origin"`
	File    string `toml:"file"`
	Key     string `toml:"key"`     // pkcs11: or tpm: URI of the authoritative key
	Interop string `toml:"interop"` // URI of the Ed25519 key for the additional line
}

// maxConfig bounds a configuration or plan file.
const maxConfig = 1 << 20

// loadConfig reads and checks the file. Every error is the operator's to mend, and names the key.
func loadConfig(path string) (*Config, error) {
	var c Config
	if err := loadTOML(path, &c); err != nil {
		return nil, err
	}
	if err := c.validate(); err != nil {
		return nil, usagef("%s: %w", path, err)
	}
	return &c, nil
}

// loadTOML decodes a bounded file strictly: an unknown key is an error that names it.
func loadTOML(path string, into any) error {
	f, err := os.Open(path)
	if err != nil {
		return usage(err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err != nil {
		return fmt.Errorf("reading %s: %w", path, err)
	}
	if len(data) > maxConfig {
		return usagef("%s: larger than %d bytes", path, maxConfig)
	}
	d := toml.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	err = d.Decode(into)
	var unknown *toml.StrictMissingError
	var syntax *toml.DecodeError
	switch {
	case errors.As(err, &unknown):
		e := unknown.Errors[0]
		line, _ := e.Position()
		return usagef("%s:%d: unknown key %q: remove it or correct its name (docs/bullad.toml lists all)", path, line, strings.Join(e.Key(), "."))
	case errors.As(err, &syntax):
		line, column := syntax.Position()
		return usagef("%s:%d:%d: %s", path, line, column, syntax.Error())
	case err != nil:
		return usagef("%s: %w", path, err)
	}
	return nil
}

func (c *Config) validate() error {
	switch {
	case c.State == "":
		return errors.New("state: name the directory for the daemon's state")
	case c.Sockets.Directory == "":
		return errors.New("sockets.directory: name the directory for sign.sock and http.sock, as /run/bulla")
	case len(c.Logs) == 0:
		return errors.New("log: at least one [[log]] is needed")
	}
	if err := c.SelfCheck.validate(); err != nil {
		return err
	}
	for i := range c.Clock.Sources {
		s := &c.Clock.Sources[i]
		if s.Address == "" {
			return fmt.Errorf("clock.source[%d].address: name an NTP server", i)
		}
		if s.Name == "" {
			s.Name = s.Address
		}
		if _, err := netip.ParseAddr(s.Address); err == nil || !strings.Contains(s.Address, ":") {
			s.Address = joinPort(s.Address)
		}
	}
	seen := map[string]string{}
	for i, l := range c.Logs {
		where := fmt.Sprintf("log[%d]", i)
		for _, f := range []struct{ key, value string }{{"name", l.Name}, {"origin", l.Origin}, {"file", l.File}, {"key", l.Key}} {
			if f.value == "" {
				return fmt.Errorf("%s.%s: is missing", where, f.key)
			}
			if f.key != "key" {
				if other, taken := seen[f.key+f.value]; taken {
					return fmt.Errorf("%s.%s: %q is %s's already", where, f.key, f.value, other)
				}
				seen[f.key+f.value] = where
			}
		}
		if strings.ContainsAny(l.Name, "/ ") || len(l.Name) > 64 {
			return fmt.Errorf("%s.name: %q must be short, without slash or space", where, l.Name)
		}
		if !filepath.IsAbs(l.File) {
			return fmt.Errorf("%s.file: %q must be an absolute path", where, l.File)
		}
	}
	if err := c.validateTSA(); err != nil {
		return err
	}
	if err := c.validatePINs(); err != nil {
		return err
	}
	return c.validateWitnesses()
}

func joinPort(host string) string {
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	return host + ":123"
}
