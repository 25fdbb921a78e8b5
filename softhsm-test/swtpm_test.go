package softhsmtest_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	softhsmtest "bulla/softhsm-test"
)

// client is one connection to a TPM.
type client struct{ net.Conn }

func dialTPM(t *testing.T, d *softhsmtest.TPM) client {
	t.Helper()
	c, err := net.Dial("unix", strings.TrimPrefix(d.Address(), "unix:"))
	if err != nil {
		t.Fatal(err)
	}
	return client{c}
}

// readClock is TPM2_ReadClock (TPM 2.0 Part 3, section 29.1): how often the TPM was reset, and whether its clock can be trusted.
func (c client) readClock(within time.Duration) (resets uint32, safe bool, err error) {
	if err := c.SetDeadline(time.Now().Add(within)); err != nil {
		return 0, false, err
	}
	if _, err := c.Write([]byte{0x80, 1, 0, 0, 0, 10, 0, 0, 1, 0x81}); err != nil {
		return 0, false, err
	}
	var out [10 + 8 + 8 + 4 + 4 + 1]byte
	if _, err := io.ReadFull(c, out[:]); err != nil {
		return 0, false, err
	}
	if binary.BigEndian.Uint32(out[6:]) != 0 {
		return 0, false, errors.New("refused")
	}
	return binary.BigEndian.Uint32(out[26:]), out[34] == 1, nil
}

// clockOf asks a TPM that must answer.
func clockOf(t *testing.T, d *softhsmtest.TPM) (resets uint32, safe bool) {
	t.Helper()
	c := dialTPM(t, d)
	defer c.Close()
	resets, safe, err := c.readClock(10 * time.Second)
	if err != nil {
		t.Fatal(err)
	}
	return resets, safe
}

func do(t *testing.T, steps ...func() error) {
	t.Helper()
	for _, step := range steps {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTPMPower(t *testing.T) {
	t.Parallel()
	d := softhsmtest.TPMFor(t)
	start := func() error { return d.Start(t.Context()) }
	restart := func() error { return d.Restart(t.Context()) }
	do(t, restart) // the first start after the making
	before, _ := clockOf(t, d)
	for _, c := range []struct {
		name  string
		steps []func() error
		safe  bool
	}{
		{"stop", []func() error{d.Stop, start}, true},
		{"restart", []func() error{restart}, true},
		{"stop while it hangs", []func() error{d.Pause, d.Stop, start}, true},
		{"stop and kill what is off", []func() error{d.Stop, d.Stop, d.Kill, start}, true},
		{"kill", []func() error{d.Kill, start}, false},
		{"kill while it hangs", []func() error{d.Pause, d.Kill, start}, false},
	} {
		do(t, c.steps...)
		resets, safe := clockOf(t, d)
		if resets != before+1 || safe != c.safe {
			t.Errorf("%s: %d resets, safe %t; want %d, %t", c.name, resets, safe, before+1, c.safe)
		}
		before = resets
	}
	if err := d.Start(t.Context()); err == nil {
		t.Error("started twice")
	}
	if resets, _ := clockOf(t, d); resets != before {
		t.Error("the second start reset it")
	}
	do(t, d.Kill)
	for name, f := range map[string]func() error{"Pause": d.Pause, "Resume": d.Resume} {
		if f() == nil {
			t.Errorf("%s of a TPM that is off", name)
		}
	}
}

func TestTPMHangs(t *testing.T) {
	t.Parallel()
	d := softhsmtest.TPMFor(t)
	c := dialTPM(t, d)
	do(t, d.Pause)
	if _, _, err := c.readClock(100 * time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("while it hangs: %v", err)
	}
	c.Close()
	do(t, d.Resume)
	clockOf(t, d)
}

// A client that holds the TPM's only connection, and one that waits for it to come back, are what a daemon under test is.
func TestTPMWithAClient(t *testing.T) {
	t.Parallel()
	d := softhsmtest.TPMFor(t)
	holder := dialTPM(t, d)
	if _, _, err := holder.readClock(10 * time.Second); err != nil {
		t.Fatal(err)
	}
	if err := d.Stop(); err == nil || !strings.Contains(err.Error(), "still hold its connection") {
		t.Errorf("stopped under a client: %v", err)
	}
	if _, _, err := holder.readClock(10 * time.Second); err == nil {
		t.Error("it answers still")
	}
	holder.Close()

	ended := make(chan error, 1)
	quit := make(chan struct{})
	go func() { // takes the connection as soon as there is one, and keeps it
		for {
			if c, err := net.Dial("unix", strings.TrimPrefix(d.Address(), "unix:")); err == nil {
				_, _, err := client{c}.readClock(10 * time.Second)
				ended <- err
				<-quit
				c.Close()
				return
			}
			select {
			case <-quit:
				return
			case <-time.After(time.Millisecond):
			}
		}
	}()
	do(t, func() error { return d.Start(t.Context()) })
	if err := <-ended; err != nil {
		t.Errorf("the waiting client: %v", err)
	}
	close(quit)
}

func TestTPMRollback(t *testing.T) {
	t.Parallel()
	d := softhsmtest.TPMFor(t)
	if _, err := d.Snapshot(); err == nil {
		t.Error("copied the state of a TPM that is on")
	}
	do(t, d.Stop)
	old, err := d.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	start := func() error { return d.Start(t.Context()) }
	do(t, start)
	first, _ := clockOf(t, d)
	do(t, d.Kill, start)
	if second, _ := clockOf(t, d); second != first+1 {
		t.Errorf("%d resets after %d", second, first)
	}
	if err := d.Rollback(old); err == nil {
		t.Error("replaced the state of a TPM that is on")
	}
	do(t, d.Kill)
	if err := d.Rollback(filepath.Join(d.Dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no such snapshot: %v", err)
	}
	for range 2 { // the snapshot stays good
		do(t, d.Kill, func() error { return d.Rollback(old) }, start)
		if again, _ := clockOf(t, d); again != first {
			t.Errorf("%d resets after the rollback, want %d", again, first)
		}
	}
}

func TestTPMsAreDifferent(t *testing.T) {
	t.Parallel()
	made := make(chan string, 2) // their roots
	t.Run("parallel", func(t *testing.T) {
		for range cap(made) {
			t.Run("", func(t *testing.T) {
				t.Parallel()
				d := softhsmtest.TPMFor(t)
				clockOf(t, d)
				roots, err := os.ReadFile(d.Roots())
				if err != nil || bytes.Count(roots, []byte("BEGIN CERTIFICATE")) != 2 {
					t.Errorf("roots: %v\n%s", err, roots)
				}
				made <- string(roots)
			})
		}
	})
	seen := map[string]bool{}
	for range cap(made) {
		seen[<-made] = true
	}
	if len(seen) != cap(made) {
		t.Errorf("%d certificate authorities for %d TPMs", len(seen), cap(made))
	}
}

func TestTPMRefusals(t *testing.T) {
	t.Parallel()
	d := softhsmtest.TPMFor(t)
	ctx := t.Context()
	if _, err := softhsmtest.CreateTPM(ctx, d.Dir); !errors.Is(err, fs.ErrExist) {
		t.Errorf("made over an existing directory: %v", err)
	}
	if _, err := softhsmtest.OpenTPM(ctx, d.Dir); err == nil || !strings.Contains(err.Error(), "is using it") {
		t.Errorf("opened a TPM that is on: %v", err)
	}
	clockOf(t, d) // which did it no harm
	if _, err := softhsmtest.OpenTPM(ctx, t.TempDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("opened what is not there: %v", err)
	}
	for dir, want := range map[string]string{
		filepath.Join(t.TempDir(), strings.Repeat("long", 25)): "shorter directory",
		filepath.Join(t.TempDir(), "a,b"):                      "comma",
		filepath.Join(t.TempDir(), "none", "tpm"):              "no such file",
	} {
		if _, err := softhsmtest.CreateTPM(ctx, dir); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v does not mention %q", dir, err, want)
		}
	}
	do(t, d.Stop)
	again, err := softhsmtest.OpenTPM(ctx, d.Dir)
	if err != nil {
		t.Fatal(err)
	}
	do(t, again.Stop)
}

func TestTPMHalfMade(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	failed := make(chan error, 1)
	go func() {
		_, err := softhsmtest.CreateTPM(ctx, filepath.Join(dir, "t"))
		failed <- err
	}()
	eventually(t, 20*time.Second, "certificates are being made", func() bool {
		names, err := filepath.Glob(filepath.Join(dir, ".making-*", "ca", "*"))
		return err == nil && len(names) > 0
	})
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled while it was made: %v", err)
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) > 0 {
		t.Errorf("left behind: %v, %v", names, err)
	}
	if left := running(t, dir); len(left) > 0 {
		t.Errorf("still running: %v", left)
	}
}
