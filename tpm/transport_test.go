package tpm_test

import (
	"context"
	"crypto"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"bulla/attest"
	softhsmtest "bulla/softhsm-test"
	"bulla/tpm"
)

// Commands that tests watch (Part 2, TPM_CC).
const (
	ccIncrement        = 0x134
	ccStartAuthSession = 0x176
	ccNVDefineSpace    = 0x12A
)

// relay stands between a client and a TPM and does to answers what tests ask for.
type relay struct {
	t    testing.TB
	to   string // socket of the TPM
	mu   sync.Mutex
	seen map[uint32]int
	do   func(cc uint32, run func() []byte) []byte // nil: run; a nil answer ends the connection
}

// serve answers the commands that come over a connection, until it ends.
func (r *relay) serve(c io.ReadWriter) error {
	for {
		in, err := message(c)
		if err != nil {
			return err
		}
		out := r.handle(in)
		if out == nil {
			return nil
		}
		for len(out) > 0 { // in pieces, as a socket may
			n := min(len(out), 7)
			if _, err := c.Write(out[:n]); err != nil {
				return err
			}
			out = out[n:]
		}
	}
}

func (r *relay) handle(in []byte) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	run := func() []byte {
		tpm, err := net.Dial("unix", r.to)
		if err != nil {
			return nil
		}
		defer tpm.Close()
		if _, err := tpm.Write(in); err != nil {
			return nil
		}
		out, err := message(tpm)
		if err != nil {
			return nil
		}
		return out
	}
	cc := binary.BigEndian.Uint32(in[6:])
	r.seen[cc]++
	if r.do != nil {
		return r.do(cc, run)
	}
	return run()
}

func message(c io.Reader) ([]byte, error) {
	h := make([]byte, 10)
	if _, err := io.ReadFull(c, h); err != nil {
		return nil, err
	}
	out := make([]byte, binary.BigEndian.Uint32(h[2:]))
	copy(out, h)
	_, err := io.ReadFull(c, out[10:])
	return out, err
}

func (r *relay) set(do func(cc uint32, run func() []byte) []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.do = do
}

// relayed enrols a TPM and opens it through a relay.
func relayed(t *testing.T, d *softhsmtest.TPM, timeout time.Duration) (*relay, *tpm.TPM, *tpm.Machine, *attest.Enrolment) {
	t.Helper()
	direct := open(t, d, 0)
	e := enrol(t, d, direct)
	if err := direct.Close(); err != nil {
		t.Fatal(err)
	}
	r := &relay{t: t, to: strings.TrimPrefix(d.Address(), "unix:"), seen: map[uint32]int{}}
	path := filepath.Join(d.Dir, "relay")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer c.Close()
				if err := r.serve(c); err != nil && !errors.Is(err, io.EOF) {
					t.Logf("relay: %v", err)
				}
			})
		}
	})
	x, err := tpm.Open(t.Context(), tpm.Config{Address: "unix:" + path, Timeout: timeout})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(x.Close(), l.Close()); err != nil {
			t.Error(err)
		}
		all.Wait()
	})
	m, err := x.Attach(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	return r, x, m, e
}

// code is a response that only says why there is none.
func code(rc uint32) []byte {
	return binary.BigEndian.AppendUint32([]byte{0x80, 0x01, 0, 0, 0, 10}, rc)
}

// Each way in which an answer fails to come, for an increment: what the caller is told is true, and the next command works.
func TestLostAnswers(t *testing.T) {
	t.Parallel()
	r, _, m, _ := relayed(t, device(t), 2*time.Second)
	for _, c := range []struct {
		name     string
		answer   func(run func() []byte) []byte
		executed bool
	}{
		{"ended before it was executed", func(func() []byte) []byte { return nil }, false},
		{"ended after it was executed", func(run func() []byte) []byte { run(); return nil }, true},
		{"half an answer", func(run func() []byte) []byte { return run()[:12] }, true},
		{"an answer that says it is too long", func(run func() []byte) []byte { run(); return []byte{0x80, 2, 0, 0, 0x20, 0, 0, 0, 0, 0} }, true},
		{"an answer that says it is too short", func(run func() []byte) []byte { run(); return []byte{0x80, 2, 0, 0, 0, 9, 0, 0, 0, 0} }, true},
		{"success without what belongs to it", func(run func() []byte) []byte { run(); return code(0) }, true},
	} {
		before, err := m.Counter(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		r.set(func(cc uint32, run func() []byte) []byte {
			if cc != ccIncrement {
				return run()
			}
			return c.answer(run)
		})
		if c.name == "half an answer" { // the rest never comes
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			err = m.Increment(ctx)
			cancel()
		} else {
			err = m.Increment(t.Context())
		}
		if !errors.Is(err, attest.ErrUnknown) || errors.Is(err, tpm.ErrUnavailable) {
			t.Errorf("%s: %v", c.name, err)
		}
		r.set(nil)
		after, err := m.Counter(t.Context())
		if err != nil {
			t.Errorf("%s: afterwards: %v", c.name, err)
		}
		if (after == before+1) != c.executed || after > before+1 {
			t.Errorf("%s: the counter went from %d to %d", c.name, before, after)
		}
	}
}

// A TPM whose power is cut while it has a command.
func TestKilledWithACommand(t *testing.T) {
	t.Parallel()
	d := device(t)
	r, _, m, e := relayed(t, d, 2*time.Second)
	r.set(func(cc uint32, run func() []byte) []byte {
		if cc == ccIncrement {
			if err := d.Kill(); err != nil {
				t.Error(err)
			}
			return nil
		}
		return run()
	})
	if err := m.Increment(t.Context()); !errors.Is(err, attest.ErrUnknown) {
		t.Errorf("killed: %v", err)
	}
	r.set(nil)
	if _, err := m.Counter(t.Context()); err == nil {
		t.Error("a TPM without power answered")
	}
	if err := d.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if v, err := m.Counter(t.Context()); err != nil || v != e.Counter.Value {
		t.Errorf("after its start: %d (%v), want %d", v, err, e.Counter.Value)
	}
}

// An enrolment that fails leaves nothing behind, and another place can be named for it.
func TestEnrolTakesBack(t *testing.T) {
	t.Parallel()
	d := device(t)
	r, x, first, e := relayed(t, d, 2*time.Second)
	roots, err := os.ReadFile(d.Roots())
	if err != nil {
		t.Fatal(err)
	}
	cfg := tpm.EnrolConfig{Roots: roots, PCR: 14, AK: 0x81010B02, Counter: 0x01800B02}
	for _, cc := range []uint32{ccNVDefineSpace, ccIncrement} {
		r.set(func(c uint32, run func() []byte) []byte {
			if c == cc {
				return code(0x14B) // NV_SPACE
			}
			return run()
		})
		if _, err := x.Enrol(t.Context(), cfg); err == nil || errors.Is(err, tpm.ErrExists) || errors.Is(err, attest.ErrUnknown) {
			t.Errorf("command %x refused: %v", cc, err)
		}
	}
	r.set(nil)
	second, err := x.Enrol(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if second.PCR != 14 || second.Counter.Index != 0x01800B02 || string(second.EK) != string(e.EK) {
		t.Errorf("enrolment %+v", second)
	}
	m, err := x.Attach(t.Context(), second)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Increment(t.Context()); err != nil {
		t.Fatal(err)
	}
	if v, err := first.Counter(t.Context()); err != nil || v != e.Counter.Value {
		t.Errorf("the other counter moved to %d (%v)", v, err)
	}
	for _, bad := range []tpm.EnrolConfig{{AK: 0x80000000}, {AK: 0x81800000}, {Counter: 0x01C00002}, {Counter: 0x01000000}} {
		bad.Roots, bad.PCR = roots, sealPCR
		if _, err := x.Enrol(t.Context(), bad); err == nil || errors.Is(err, tpm.ErrExists) {
			t.Errorf("AK %x, counter %x: %v", bad.AK, bad.Counter, err)
		}
	}
}

// "Try again" is waited out, and is not executed; when it does not end, nothing was executed.
func TestTryAgain(t *testing.T) {
	t.Parallel()
	r, _, m, e := relayed(t, device(t), 500*time.Millisecond)
	for _, rc := range []uint32{0x922, 0x908, 0x920, 0x90A} { // RETRY, YIELDED, NV_RATE, TESTING
		left := 3
		r.set(func(cc uint32, run func() []byte) []byte {
			if left > 0 && cc == ccIncrement {
				left--
				return code(rc)
			}
			return run()
		})
		if err := m.Increment(t.Context()); err != nil {
			t.Errorf("%x three times: %v", rc, err)
		}
	}
	r.set(func(cc uint32, run func() []byte) []byte {
		if cc == ccIncrement {
			return code(0x922)
		}
		return run()
	})
	if err := m.Increment(t.Context()); !errors.Is(err, tpm.ErrUnavailable) || errors.Is(err, attest.ErrUnknown) {
		t.Errorf("for ever: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	r.set(func(cc uint32, run func() []byte) []byte {
		if cc == ccIncrement {
			cancel()
			return code(0x922)
		}
		return run()
	})
	if err := m.Increment(ctx); !errors.Is(err, tpm.ErrUnavailable) || !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled while it asks to try again: %v", err)
	}
	r.set(nil)
	if v, err := m.Counter(t.Context()); err != nil || v != e.Counter.Value+4 {
		t.Errorf("the counter is at %d (%v), want %d", v, err, e.Counter.Value+4)
	}
	if err := m.Increment(ctx); !errors.Is(err, tpm.ErrUnavailable) {
		t.Errorf("cancelled before: %v", err)
	}
}

// Sessions whose handles were lost with an answer are flushed when the connection is made anew: three would fill the TPM.
func TestLostSessions(t *testing.T) {
	t.Parallel()
	r, x, _, _ := relayed(t, device(t), 2*time.Second)
	const uri = "tpm:handle=0x81020001"
	if _, err := x.GenerateKey(t.Context(), uri); err != nil {
		t.Fatal(err)
	}
	k, err := x.Key(t.Context(), uri)
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256(nil)
	for range 5 {
		r.set(func(cc uint32, run func() []byte) []byte {
			out := run()
			if cc == ccStartAuthSession {
				return nil
			}
			return out
		})
		if _, err := k.Sign(nil, digest[:], crypto.SHA256); !errors.Is(err, attest.ErrUnknown) {
			t.Errorf("signed without a session: %v", err)
		}
		r.set(nil)
		if _, err := k.Sign(nil, digest[:], crypto.SHA256); err != nil {
			t.Fatal(err)
		}
	}
}

// Nobody waits longer than his context for another's operation.
func TestWaitsOnlyAsLongAsAsked(t *testing.T) {
	t.Parallel()
	r, _, m, _ := relayed(t, device(t), 5*time.Second)
	arrived, leave := make(chan struct{}), make(chan struct{})
	r.set(func(cc uint32, run func() []byte) []byte {
		if cc == ccIncrement {
			close(arrived)
			<-leave
		}
		return run()
	})
	first := make(chan error)
	go func() { first <- m.Increment(t.Context()) }()
	<-arrived
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := m.Counter(ctx); !errors.Is(err, tpm.ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("waiting: %v", err)
	}
	close(leave)
	if err := <-first; err != nil {
		t.Error(err)
	}
}

func TestAddress(t *testing.T) {
	t.Parallel()
	for _, address := range []string{"", "tpmrm0", "tcp:localhost:2321", "/dev/tpm-that-is-not-there", "unix:/tpm-that-is-not-there"} {
		if x, err := tpm.Open(t.Context(), tpm.Config{Address: address}); err == nil {
			t.Errorf("opened %q: %v", address, x.Close())
		}
	}
}

// asDevice makes a TPM answer behind a character device: a pseudo terminal.
func asDevice(t *testing.T, d *softhsmtest.TPM) (path string, r *relay) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	path = fmt.Sprintf("/dev/pts/%d", n)
	slave, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0) // kept open, so that it stays raw
	if err != nil {
		t.Fatal(err)
	}
	if _, err := term.MakeRaw(int(slave.Fd())); err != nil {
		t.Fatal(err)
	}
	r = &relay{t: t, to: strings.TrimPrefix(d.Address(), "unix:"), seen: map[uint32]int{}}
	ended := make(chan error)
	go func() { ended <- r.serve(master) }()
	t.Cleanup(func() {
		err := slave.Close() // the last one: the master's read ends
		<-ended
		if err := errors.Join(err, master.Close()); err != nil {
			t.Error(err)
		}
	})
	return path, r
}

func TestDevice(t *testing.T) {
	t.Parallel()
	d := device(t)
	direct := open(t, d, 0)
	e := enrol(t, d, direct)
	if err := direct.Close(); err != nil {
		t.Fatal(err)
	}
	path, r := asDevice(t, d)
	x, err := tpm.Open(t.Context(), tpm.Config{Address: path, Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := x.Close(); err != nil {
			t.Error(err)
		}
	}()
	m, err := x.Attach(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	seal(t, m, e, 1, attest.Statement{}.Previous)

	// An answer that is late is not taken for the next command's.
	late := make(chan struct{})
	r.set(func(cc uint32, run func() []byte) []byte {
		if cc == ccIncrement {
			<-late
		}
		return run()
	})
	if err := m.Increment(t.Context()); !errors.Is(err, attest.ErrUnknown) {
		t.Errorf("no answer in time: %v", err)
	}
	if _, err := m.Counter(t.Context()); !errors.Is(err, tpm.ErrUnavailable) || errors.Is(err, attest.ErrUnknown) {
		t.Errorf("while it is still busy: %v", err)
	}
	close(late)
	r.set(nil)
	if v, err := m.Counter(t.Context()); err != nil || v != e.Counter.Value+1 {
		t.Errorf("afterwards: %d (%v), want %d", v, err, e.Counter.Value+1)
	}
}
