package main

import (
	"bytes"
	"crypto"
	"io"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"
)

// Only a dev appliance can be profiled or slowed down: serve has no flag for it, and no configuration a key.
func TestServeCannotBeProfiledOrSlowed(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"profile", "hsm-delay"} {
		if devCommand().Flags().Lookup(name) == nil || serveCommand().Flags().Lookup(name) != nil {
			t.Errorf("--%s: dev must have it, and serve must not", name)
		}
	}
	path := filepath.Join(t.TempDir(), "bullad.toml")
	for _, key := range []string{"signDelay", "sign_delay"} {
		if err := os.WriteFile(path, []byte(key+" = 5\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := loadConfig(path); err == nil || exitCode(err) != exitUsage {
			t.Errorf("%s in the configuration: %v", key, err)
		}
	}
}

func TestProfilesAreWritten(t *testing.T) { // not parallel: a process has one CPU profile
	dir := filepath.Join(t.TempDir(), "profiles")
	p, err := startProfiles(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"cpu", "allocs", "heap", "block", "mutex"} {
		b, err := os.ReadFile(filepath.Join(dir, name+".prof"))
		if gzip := []byte{0x1f, 0x8b}; err != nil || !bytes.HasPrefix(b, gzip) {
			t.Errorf("%s: %d bytes, %v", name, len(b), err)
		}
	}
	if _, err := startProfiles(filepath.Join(dir, "cpu.prof")); exitCode(err) != exitUsage {
		t.Errorf("a directory that is a file: %v", err)
	}
}

// echo signs by returning the digest.
type echo struct{ crypto.Signer }

func (echo) Sign(_ io.Reader, digest []byte, _ crypto.SignerOpts) ([]byte, error) { return digest, nil }

func TestSlowKey(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		got, err := slowKey{echo{}, 5 * time.Millisecond}.Sign(nil, []byte("digest"), crypto.SHA256)
		if took := time.Since(start); err != nil || string(got) != "digest" || took != 5*time.Millisecond {
			t.Errorf("%q, %v after %v", got, err, took)
		}
	})
}
