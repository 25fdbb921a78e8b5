// Package tpm talks to a TPM 2.0: quotes, a counter, signing keys. It satisfies attest.TPM for an enrolled machine, and its keys are
// crypto.Signers.
//
// The transport is our own because a TPM hangs, restarts and loses answers: every command has a deadline, a broken connection is
// made anew for the next command, the TPM's "try again" codes are waited out, and a command whose answer was lost is reported as
// attest.ErrUnknown, so that nobody repeats an increment blindly.
package tpm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/google/go-tpm/tpm2"

	"bulla/attest"
)

// ErrUnavailable means that the TPM does not answer now; nothing was executed. Try again later.
var ErrUnavailable = errors.New("TPM unavailable")

// Config says where a TPM is.
type Config struct {
	Address string        // /dev/tpmrm0, or unix:PATH of an swtpm's data socket
	Timeout time.Duration // of one command, waiting for "try again" included; 0: 10 s (a TPM may take seconds to make a key)
}

const (
	defaultTimeout = 10 * time.Second
	maxMessage     = 4096 // bytes of a command or response (Part 2, TPM2_MAX_COMMAND_SIZE)
	headerSize     = 10
)

// conn sends commands, one at a time. It is a go-tpm transport.TPM.
type conn struct {
	network, path string // network "": a device file
	timeout       time.Duration

	mu sync.Mutex
	c  stream // nil: to be opened
}

// stream is an open connection to a TPM.
type stream interface {
	io.ReadWriteCloser
	SetDeadline(time.Time) error
}

func newConn(cfg Config) (*conn, error) {
	c := &conn{path: cfg.Address, timeout: cfg.Timeout}
	if c.timeout <= 0 {
		c.timeout = defaultTimeout
	}
	if path, ok := strings.CutPrefix(cfg.Address, "unix:"); ok {
		c.network, c.path = "unix", path
	} else if !strings.HasPrefix(cfg.Address, "/") {
		return nil, fmt.Errorf("TPM address %q: must be a device, as /dev/tpmrm0, or unix:PATH", cfg.Address)
	}
	return c, nil
}

// Send sends a command and returns its response. It waits out the TPM's "try again" codes within the deadline.
func (c *conn) Send(in []byte) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	deadline := time.Now().Add(c.timeout)
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		out, err := c.once(in, deadline)
		if err != nil || !again(out) || time.Now().Add(pause).After(deadline) {
			return out, err
		}
		time.Sleep(pause)
	}
}

// again reports whether a response asks to send the command once more; it was not executed (Part 2, section 6.6.3).
func again(out []byte) bool {
	switch tpm2.TPMRC(binary.BigEndian.Uint32(out[6:])) {
	case tpm2.TPMRCRetry, tpm2.TPMRCYielded, tpm2.TPMRCTesting, tpm2.TPMRCNVRate:
		return true
	}
	return false
}

// once sends a command and reads its response. After any error the connection is closed, and made anew for the next command.
func (c *conn) once(in []byte, deadline time.Time) (out []byte, err error) {
	if len(in) < headerSize || len(in) > maxMessage {
		return nil, fmt.Errorf("a TPM command of %d bytes", len(in))
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.close())
		}
	}()
	kept := c.c != nil
	err = c.send(in, deadline)
	if kept && errors.Is(err, ErrUnavailable) { // the TPM was restarted since the last command
		if err := c.close(); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		err = c.send(in, deadline)
	}
	if err != nil {
		return nil, err
	}
	out, err = c.read()
	if err != nil {
		return nil, fmt.Errorf("%w: reading the answer: %w", attest.ErrUnknown, err)
	}
	return out, nil
}

// send writes a command. With ErrUnavailable, nothing of it left.
func (c *conn) send(in []byte, deadline time.Time) error {
	if err := c.open(deadline); err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if err := c.c.SetDeadline(deadline); err != nil && !errors.Is(err, os.ErrNoDeadline) {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	n, err := c.c.Write(in)
	switch {
	case err == nil:
		return nil
	case n == 0 && !errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return fmt.Errorf("%w: sending it: %w", attest.ErrUnknown, err)
}

// read reads one response. A device gives it in one piece; a socket may not.
func (c *conn) read() ([]byte, error) {
	buf := make([]byte, maxMessage)
	n, err := io.ReadAtLeast(c.c, buf, headerSize)
	if err != nil {
		return nil, err
	}
	size := int(binary.BigEndian.Uint32(buf[2:]))
	if size < headerSize || size > maxMessage || size < n {
		return nil, fmt.Errorf("a response of %d bytes that says it has %d", n, size)
	}
	if _, err := io.ReadFull(c.c, buf[n:size]); err != nil {
		return nil, err
	}
	return buf[:size], nil
}

func (c *conn) open(deadline time.Time) error {
	if c.c != nil {
		return nil
	}
	if c.network == "" {
		f, err := os.OpenFile(c.path, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		c.c = f
		return nil
	}
	s, err := (&net.Dialer{Deadline: deadline}).Dial(c.network, c.path)
	if err != nil {
		return err
	}
	c.c = s.(*net.UnixConn)
	return nil
}

func (c *conn) close() error {
	if c.c == nil {
		return nil
	}
	err := c.c.Close()
	c.c = nil
	return err
}

// Close lets go of the TPM.
func (c *conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.close()
}

// TPM is an open TPM. Its methods may be used concurrently; the TPM executes one command at a time.
type TPM struct {
	conn *conn
	raw  bool // no resource manager in between: what is leaked stays
	mu   sync.Mutex
}

// Open opens a TPM and makes sure that it answers. On one without a resource manager it flushes what an earlier process left loaded.
func Open(ctx context.Context, cfg Config) (*TPM, error) {
	c, err := newConn(cfg)
	if err != nil {
		return nil, err
	}
	t := &TPM{conn: c, raw: c.network != ""}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if t.raw {
		err = t.flushLeaked()
	} else {
		_, err = tpm2.ReadClock{}.Execute(c)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening the TPM at %s: %w", cfg.Address, err), c.Close())
	}
	return t, nil
}

// Close lets go of the TPM.
func (t *TPM) Close() error { return t.conn.Close() }

// flushLeaked removes transient objects and sessions that a process left behind; three of either fill a TPM.
func (t *TPM) flushLeaked() error {
	for _, first := range []uint32{0x80000000, 0x02000000, 0x03000000} {
		handles, err := t.handles(first)
		if err != nil {
			return err
		}
		for _, h := range handles {
			if _, err := (tpm2.FlushContext{FlushHandle: h}).Execute(t.conn); err != nil {
				return fmt.Errorf("TPM2_FlushContext %x: %w", h, err)
			}
		}
	}
	return nil
}

// handles lists the handles in use of one kind, from first on.
func (t *TPM) handles(first uint32) ([]tpm2.TPMHandle, error) {
	r, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: first, PropertyCount: 254}.Execute(t.conn)
	if err != nil {
		return nil, fmt.Errorf("TPM2_GetCapability handles %x: %w", first, err)
	}
	l, err := r.CapabilityData.Data.Handles()
	if err != nil {
		return nil, fmt.Errorf("TPM2_GetCapability handles %x: %w", first, err)
	}
	return l.Handle, nil
}

// property reads one fixed property as text.
func (t *TPM) property(p tpm2.TPMPT) (uint32, error) {
	r, err := tpm2.GetCapability{Capability: tpm2.TPMCapTPMProperties, Property: uint32(p), PropertyCount: 1}.Execute(t.conn)
	if err != nil {
		return 0, fmt.Errorf("TPM2_GetCapability property %x: %w", uint32(p), err)
	}
	l, err := r.CapabilityData.Data.TPMProperties()
	if err != nil || len(l.TPMProperty) != 1 || l.TPMProperty[0].Property != p {
		return 0, fmt.Errorf("TPM2_GetCapability property %x: not there (%v)", uint32(p), err)
	}
	return l.TPMProperty[0].Value, nil
}
