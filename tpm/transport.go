package tpm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/go-tpm/tpm2"

	"bulla/attest"
)

// ErrUnavailable means that the TPM does not answer now; nothing was executed. Try again later.
var ErrUnavailable = errors.New("TPM unavailable")

const (
	defaultTimeout = 10 * time.Second
	maxMessage     = 4096 // bytes of a command or response (Part 2, TPM2_MAX_COMMAND_SIZE)
	headerSize     = 10
)

// conn exchanges commands for responses, one at a time; its caller sees to that. It is closed after an error, and made anew for the
// next command.
type conn struct {
	network, path string // network "": a device file
	managed       bool   // a resource manager is in between: what this process leaks, nobody else's command suffers from
	timeout       time.Duration

	s    stream // nil: to be opened
	owed bool   // a device: the answer to the last command has not been read
}

// stream is an open way to a TPM. A read or write that passes the deadline fails with os.ErrDeadlineExceeded.
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
	c.managed = c.network == "" && strings.HasPrefix(filepath.Base(c.path), "tpmrm")
	return c, nil
}

// exchange sends a command and returns its response. It waits out the TPM's "try again" codes within the timeout and ctx's deadline;
// once a command has been sent, the end of ctx no longer stops the wait for its answer.
func (c *conn) exchange(ctx context.Context, in []byte) ([]byte, error) {
	deadline := time.Now().Add(c.timeout)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		out, err := c.once(in, deadline)
		if err != nil {
			return nil, err
		}
		code := tpm2.TPMRC(binary.BigEndian.Uint32(out[6:]))
		if !again(code) {
			return out, nil
		}
		if time.Now().Add(pause).After(deadline) {
			return nil, fmt.Errorf("%w: it keeps asking to try again: %w", ErrUnavailable, code)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}

// again reports whether a response code asks to send the command once more; it was not executed (Part 2, section 6.6.3).
func again(code tpm2.TPMRC) bool {
	switch code {
	case tpm2.TPMRCRetry, tpm2.TPMRCYielded, tpm2.TPMRCTesting, tpm2.TPMRCNVRate:
		return true
	}
	return false
}

// once sends a command and reads its response.
func (c *conn) once(in []byte, deadline time.Time) (out []byte, err error) {
	if len(in) < headerSize || len(in) > maxMessage {
		return nil, fmt.Errorf("a TPM command of %d bytes", len(in))
	}
	kept := c.s != nil
	err = c.send(in, deadline)
	if kept && c.s == nil && errors.Is(err, ErrUnavailable) { // the TPM was restarted since the last command
		err = c.send(in, deadline)
	}
	if err != nil {
		return nil, err
	}
	out, err = c.receive()
	if err != nil {
		return nil, fmt.Errorf("%w: reading the answer: %w", attest.ErrUnknown, c.broken(err))
	}
	return out, nil
}

// send writes a command. With ErrUnavailable, nothing of it left.
func (c *conn) send(in []byte, deadline time.Time) error {
	if err := c.open(deadline); err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if err := c.s.SetDeadline(deadline); err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, c.broken(err))
	}
	if c.owed { // an answer that came too late for the command before is waited for, and dropped
		if _, err := c.receive(); err != nil {
			return fmt.Errorf("%w: the answer to the command before: %w", ErrUnavailable, c.broken(err))
		}
	}
	n, err := c.s.Write(in)
	switch {
	case err == nil:
		_, c.owed = c.s.(*device)
		return nil
	case n == 0:
		return fmt.Errorf("%w: %w", ErrUnavailable, c.broken(err))
	}
	return fmt.Errorf("%w: sending it: %w", attest.ErrUnknown, c.broken(err))
}

// receive reads one response. /dev/tpm* gives it in one piece; others may not.
func (c *conn) receive() ([]byte, error) {
	buf := make([]byte, maxMessage)
	n, err := io.ReadAtLeast(c.s, buf, headerSize)
	if n > 0 {
		c.owed = false // what is left of it after an error is nothing that could be waited for
	}
	if err != nil {
		return nil, err
	}
	size := int(binary.BigEndian.Uint32(buf[2:]))
	if size < headerSize || size > maxMessage || size < n {
		return nil, fmt.Errorf("a response of %d bytes that says it has %d", n, size)
	}
	if _, err := io.ReadFull(c.s, buf[n:size]); err != nil {
		return nil, err
	}
	return buf[:size], nil
}

func (c *conn) open(deadline time.Time) error {
	if c.s != nil {
		return nil
	}
	if c.network == "" {
		d, err := openDevice(c.path)
		if err != nil {
			return err
		}
		c.s = d
	} else {
		s, err := (&net.Dialer{Deadline: deadline}).Dial(c.network, c.path)
		if err != nil {
			return err
		}
		c.s = s
	}
	if c.managed {
		return nil
	}
	if err := flushAll(direct{c, deadline}); err != nil {
		return fmt.Errorf("making room in it: %w", errors.Join(err, c.close()))
	}
	return nil
}

// broken closes what failed, so that the next command opens it anew. A device that is late keeps its connection: the kernel would
// wait for the answer in close, and hands it out when it comes.
func (c *conn) broken(err error) error {
	if c.owed && errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	return errors.Join(err, c.close())
}

func (c *conn) close() error {
	if c.s == nil {
		return nil
	}
	err := c.s.Close()
	c.s, c.owed = nil, false
	return err
}

// direct is a conn that is being opened, as a go-tpm transport.
type direct struct {
	c        *conn
	deadline time.Time
}

func (d direct) Send(in []byte) ([]byte, error) {
	if d.c.s == nil {
		return nil, errors.New("the connection broke")
	}
	return d.c.once(in, d.deadline)
}
