package tpm_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	softhsmtest "bulla/softhsm-test"
	"bulla/tpm"
)

// recorder stands between a client and a TPM and keeps all that crosses.
type recorder struct {
	path string
	l    net.Listener
	all  sync.WaitGroup

	mu    sync.Mutex
	bytes bytes.Buffer
}

func recorded(t *testing.T, d *softhsmtest.TPM) *recorder {
	t.Helper()
	r := &recorder{path: filepath.Join(d.Dir, "record")}
	var err error
	if r.l, err = net.Listen("unix", r.path); err != nil {
		t.Fatal(err)
	}
	r.all.Go(func() {
		for {
			c, err := r.l.Accept()
			if err != nil {
				return
			}
			r.all.Go(func() { r.pass(t, c, strings.TrimPrefix(d.Address(), "unix:")) })
		}
	})
	t.Cleanup(func() {
		if err := r.l.Close(); err != nil {
			t.Error(err)
		}
		r.all.Wait()
	})
	return r
}

// pass hands commands and responses on, one after the other.
func (r *recorder) pass(t *testing.T, c net.Conn, to string) {
	defer c.Close()
	d, err := net.Dial("unix", to)
	if err != nil {
		t.Error(err)
		return
	}
	defer d.Close()
	for from, into := c, d; ; from, into = into, from {
		m, err := message(from)
		if err == nil {
			r.mu.Lock()
			r.bytes.Write(m)
			r.mu.Unlock()
			_, err = into.Write(m)
		}
		if err != nil {
			if !errors.Is(err, io.EOF) {
				t.Errorf("recorder: %v", err)
			}
			return
		}
	}
}

func (r *recorder) open(t *testing.T) *tpm.TPM {
	t.Helper()
	x, err := tpm.Open(t.Context(), tpm.Config{Address: "unix:" + r.path})
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func (r *recorder) close(t *testing.T, x *tpm.TPM) {
	t.Helper()
	if err := x.Close(); err != nil {
		t.Error(err)
	}
}

// saw reports whether a text was among what crossed.
func (r *recorder) saw(text string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return bytes.Contains(r.bytes.Bytes(), []byte(text))
}
