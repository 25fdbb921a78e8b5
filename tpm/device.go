package tpm

import (
	"errors"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// device is a TPM's device file, as /dev/tpmrm0. Such a file is not like others: opened not to block, a read before the answer is
// there returns 0 bytes, which an os.File takes for the end; opened to block, a write returns when the TPM is done, however long
// that takes. So it is opened not to block, and poll says when to read.
type device struct {
	fd       int
	path     string
	deadline time.Time
}

func openDevice(path string) (*device, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return &device{fd: fd, path: path}, nil
}

// SetDeadline bounds all reads and writes to come.
func (d *device) SetDeadline(t time.Time) error {
	d.deadline = t
	return nil
}

// Write hands a command to the kernel.
func (d *device) Write(b []byte) (int, error) {
	n, err := retry(func() (int, error) { return unix.Write(d.fd, b) })
	if err != nil {
		return 0, &os.PathError{Op: "write", Path: d.path, Err: err}
	}
	if n < len(b) {
		return n, io.ErrShortWrite
	}
	return n, nil
}

// Read waits for an answer and returns what of it fits.
func (d *device) Read(b []byte) (int, error) {
	if err := d.wait(); err != nil {
		return 0, err
	}
	n, err := retry(func() (int, error) { return unix.Read(d.fd, b) })
	if err != nil {
		return 0, &os.PathError{Op: "read", Path: d.path, Err: err}
	}
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

// wait returns when there is something to read.
func (d *device) wait() error {
	for {
		left := time.Until(d.deadline)
		if left <= 0 {
			return os.ErrDeadlineExceeded
		}
		p := []unix.PollFd{{Fd: int32(d.fd), Events: unix.POLLIN}}
		n, err := unix.Poll(p, int(left.Milliseconds())+1)
		switch {
		case errors.Is(err, unix.EINTR), n == 0:
		case err != nil:
			return &os.PathError{Op: "poll", Path: d.path, Err: err}
		case p[0].Revents&unix.POLLIN != 0:
			return nil
		default:
			return &os.PathError{Op: "poll", Path: d.path, Err: unix.EIO}
		}
	}
}

// Close closes the file. The kernel waits for a command that is still being executed.
func (d *device) Close() error { return unix.Close(d.fd) }

// retry repeats a system call that a signal interrupted.
func retry(call func() (int, error)) (int, error) {
	for {
		if n, err := call(); !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}
