package softhsmtest_test

import (
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	softhsmtest "bulla/softhsm-test"
)

func TestChronydServesTime(t *testing.T) {
	t.Parallel()
	c := softhsmtest.ChronydFor(t, "local stratum 1")
	a, err := ask(t, dialNTP(t, c.Address), 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if a.packet[1] != 1 || string(a.packet[fieldOrigin:fieldOrigin+8]) != origin || a.at(fieldSent).Sub(a.asked).Abs() > time.Second {
		t.Errorf("answer % x", a.packet)
	}
	unableToSetTheClock(t, c.Dir)
	if _, err := softhsmtest.StartChronyd(t.Context(), c.Dir); err == nil {
		t.Error("started in an existing directory")
	}
	if _, err := softhsmtest.StartChronyd(t.Context(), filepath.Join(t.TempDir(), "c"), "no such directive"); err == nil || !strings.Contains(err.Error(), "directive") {
		t.Errorf("a wrong configuration: %v", err)
	}
	if err := c.Stop(); err != nil {
		t.Fatal(err)
	}
	if left := running(t, c.Dir); len(left) > 0 {
		t.Errorf("still running: %v", left)
	}
}

// unableToSetTheClock looks at the capabilities of what runs in dir.
func unableToSetTheClock(t *testing.T, dir string) {
	t.Helper()
	found := running(t, dir)
	if len(found) != 1 {
		t.Fatalf("running: %q, want chronyd alone", found)
	}
	pid, command, _ := strings.Cut(found[0], " ")
	if !strings.Contains(command, " -x ") {
		t.Errorf("it runs as %s", command)
	}
	status, err := os.ReadFile(filepath.Join("/proc", pid, "status"))
	if err != nil {
		t.Fatal(err)
	}
	const sysTime = 25 // CAP_SYS_TIME, capabilities(7)
	seen := 0
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":\t")
		if name != "CapEff" && name != "CapPrm" {
			continue
		}
		set, err := strconv.ParseUint(value, 16, 64)
		if err != nil || set>>sysTime&1 != 0 {
			t.Errorf("%s %s: it could set the clock (%v)", name, value, err)
		}
		seen++
	}
	if seen != 2 {
		t.Errorf("no capabilities in %s", status)
	}
}

// A real client takes the time of our server, authenticated by each kind of key, and hands it on. So packets and keys are right.
func TestChronydFollows(t *testing.T) {
	t.Parallel()
	const lie = 250 * time.Millisecond
	for i, algorithm := range []string{"", "AES128", "AES256", "SHA256", "SHA512"} {
		t.Run(algorithm, func(t *testing.T) {
			t.Parallel()
			b, server, keys := softhsmtest.Behaviour{Offset: lie}, "server %s port %s minpoll -4 maxpoll -4", "# none"
			if algorithm != "" {
				secret := make([]byte, 32)
				if algorithm == "AES128" {
					secret = secret[:16]
				}
				rand.Read(secret)
				b.Key = &softhsmtest.NTPKey{ID: uint32(i), Algorithm: algorithm, Secret: secret}
				file := filepath.Join(t.TempDir(), "keys")
				if err := os.WriteFile(file, []byte(keyLine(b.Key)), 0o600); err != nil {
					t.Fatal(err)
				}
				server, keys = server+fmt.Sprintf(" key %d", i), "keyfile "+file
			}
			s := softhsmtest.NTPFor(t, b)
			host, port, err := net.SplitHostPort(s.Address)
			if err != nil {
				t.Fatal(err)
			}
			c := softhsmtest.ChronydFor(t, fmt.Sprintf(server, host, port), keys, "maxslewrate 100000")
			conn := dialNTP(t, c.Address)
			ahead := time.Duration(0)
			follows := func() bool {
				a, err := ask(t, conn, time.Second)
				if err != nil || a.packet[1] == 0 || a.packet[1] > 15 {
					return false
				}
				ahead = (a.at(fieldReceived).Sub(a.asked) + a.at(fieldSent).Sub(a.heard)) / 2
				return (ahead - lie).Abs() < 10*time.Millisecond
			}
			eventually(t, 30*time.Second, fmt.Sprintf("chronyd is %v ahead", lie), follows)
		})
	}
}

// keyLine is a key as chrony has it in its file.
func keyLine(k *softhsmtest.NTPKey) string {
	f := strings.Fields(k.Line())
	return fmt.Sprintf("%s %s HEX:%s\n", f[0], f[1], f[2])
}
