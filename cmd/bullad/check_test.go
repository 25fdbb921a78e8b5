package main

import (
	"bytes"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"bulla/hsm"
	softhsmtest "bulla/softhsm-test"
)

// Commissioning refuses NSS, which lets out keys that it calls never extractable, and passes SoftHSM, which does not.
func TestCheckTriesToGetKeysOut(t *testing.T) {
	nss := softhsmtest.NSSFor(t)
	soft, label := softhsmtest.HSMFor(t)
	var sources []SourceConfig
	for range 4 {
		sources = append(sources, SourceConfig{Name: "", Address: softhsmtest.NTPFor(t, softhsmtest.Behaviour{}).Address})
	}
	for i := range sources {
		sources[i].Name = sources[i].Address
	}
	for _, c := range []struct {
		name, key, want string
		err             error
	}{
		{"SoftHSM", soft.URI(label, "log"), "ok    hsm", nil},
		{"NSS", nss.URI("log"), "FAIL  hsm", hsm.ErrExtractable},
	} {
		cfg := &Config{Clock: ClockConfig{Sources: sources}, Logs: []LogConfig{{Name: "a", Origin: "o.example/a", File: filepath.Join(t.TempDir(), "a.db"), Key: c.key}}}
		var out bytes.Buffer
		err := check(t.Context(), cfg, &out)
		if !errors.Is(err, c.err) || !strings.Contains(out.String(), c.want) {
			t.Errorf("%s: %v\n%s", c.name, err, &out)
		}
		if c.err != nil && exitCode(err) != exitUsage {
			t.Errorf("%s: exit %d, want %d", c.name, exitCode(err), exitUsage)
		}
		for _, want := range []string{"ok    clock", "ok    disk"} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%s: no %q in\n%s", c.name, want, &out)
			}
		}
	}
}
