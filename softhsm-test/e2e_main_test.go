package softhsmtest_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"bulla/api"
	"bulla/verify"
)

// The end-to-end tests run the real daemon as a child process, with devices of this package, and talk to its sockets only.

// patience bounds every wait for something that must come, on a busy machine.
const patience = 60 * time.Second

func TestMain(m *testing.M) {
	state, err := os.MkdirTemp("", "state") // what bulla verify remembers
	if err == nil {
		err = os.Setenv("XDG_STATE_HOME", state)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	if err := errors.Join(programs.remove(), os.RemoveAll(state)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// programs are the commands under test, each built once and only when a test needs it.
var programs built

type built struct {
	mu   sync.Mutex
	dir  string
	errs map[string]error
}

// path builds a command, if that was not done yet, and returns where it is.
func (b *built) path(name string) (string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.dir == "" {
		dir, err := os.MkdirTemp("", "bin")
		if err != nil {
			return "", err
		}
		b.dir, b.errs = dir, map[string]error{}
	}
	path := filepath.Join(b.dir, name)
	err, done := b.errs[name]
	if !done {
		out, failed := exec.Command("go", "build", "-o", path, "bulla/cmd/"+name).CombinedOutput()
		if failed != nil {
			err = fmt.Errorf("building %s: %w: %s", name, failed, out)
		}
		b.errs[name] = err
	}
	return path, err
}

func (b *built) remove() error {
	if b.dir == "" {
		return nil
	}
	return os.RemoveAll(b.dir)
}

func program(t *testing.T, name string) string {
	t.Helper()
	path, err := programs.path(name)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// shortDir is a new directory whose path is short enough for the sockets in it.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "e")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// child is a running command under test.
type child struct {
	t      *testing.T
	cmd    *exec.Cmd
	lines  chan string // of its standard output; closed at its end
	stderr *output
	done   chan struct{} // closed when it has ended
}

// output collects what a child prints.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// startChild starts a command in a process group of its own. It ends with the test, and with the test's process.
func startChild(t *testing.T, env []string, name string, args ...string) *child {
	t.Helper()
	c := &child{t: t, cmd: exec.Command(name, args...), lines: make(chan string, 100), stderr: &output{}, done: make(chan struct{})}
	c.cmd.Env = append(os.Environ(), env...)
	c.cmd.Stderr = c.stderr
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	stdout, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	started := make(chan error)
	go func() { // the kernel kills the child with the thread that started it
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := c.cmd.Start()
		started <- err
		if err != nil {
			return
		}
		for s := bufio.NewScanner(stdout); s.Scan(); {
			c.lines <- s.Text()
		}
		close(c.lines)
		_ = c.cmd.Wait() // ProcessState tells
		close(c.done)
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.kill)
	return c
}

// line waits until the child prints a line that has the given beginning.
func (c *child) line(begin string) {
	c.t.Helper()
	timeout := time.After(patience)
	for {
		select {
		case l, ok := <-c.lines:
			if !ok {
				<-c.done
				c.t.Fatalf("%s ended (%v) before it said %q:\n%s", filepath.Base(c.cmd.Path), c.cmd.ProcessState, begin, c.stderr)
			}
			if strings.HasPrefix(l, begin) {
				return
			}
		case <-timeout:
			c.t.Fatalf("%s did not say %q:\n%s", filepath.Base(c.cmd.Path), begin, c.stderr)
		}
	}
}

// kill ends the child at once, as a crash does.
func (c *child) kill() {
	_ = syscall.Kill(-c.cmd.Process.Pid, syscall.SIGKILL) // it may have ended by itself
	<-c.done
}

// stop ends the child in order and returns its exit code.
func (c *child) stop() int {
	c.t.Helper()
	if err := syscall.Kill(-c.cmd.Process.Pid, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
		c.t.Fatal(err)
	}
	return c.exit()
}

// exit waits for the child's end and returns its exit code.
func (c *child) exit() int {
	c.t.Helper()
	select {
	case <-c.done:
	case <-time.After(patience):
		c.t.Fatalf("%s did not end:\n%s", filepath.Base(c.cmd.Path), c.stderr)
	}
	return c.cmd.ProcessState.ExitCode()
}

// startDev runs a throwaway appliance in dir until it takes events.
func startDev(t *testing.T, dir string, args ...string) *child {
	t.Helper()
	c := startChild(t, nil, program(t, "bullad"), append([]string{"dev", "--dir", dir}, args...)...)
	c.line("ready")
	return c
}

// dial connects to the sign.sock in dir.
func dial(t *testing.T, dir string) *api.Client {
	t.Helper()
	c, err := api.Dial(t.Context(), filepath.Join(dir, "sign.sock"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() }) // it may have ended already
	return c
}

// web talks to the http.sock in a directory. It is a verify.Source of one log.
type web struct {
	client *http.Client
	prefix string // of the log's paths
}

func browse(t *testing.T, dir string) *web {
	path := filepath.Join(dir, "http.sock")
	transport := &http.Transport{DisableCompression: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}}
	t.Cleanup(transport.CloseIdleConnections)
	return &web{client: &http.Client{Transport: transport, Timeout: patience}}
}

// do returns status and body of the answer to a request.
func (w *web) do(ctx context.Context, method, path, kind, body string) (int, []byte, error) {
	r, err := http.NewRequestWithContext(ctx, method, "http://bulla"+path, strings.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	if kind != "" {
		r.Header.Set("Content-Type", kind)
	}
	res, err := w.client.Do(r)
	if err != nil {
		return 0, nil, err
	}
	b, err := io.ReadAll(res.Body)
	return res.StatusCode, b, errors.Join(err, res.Body.Close())
}

// getJSON reads a successful answer.
func (w *web) getJSON(t *testing.T, path string, v any) {
	t.Helper()
	status, b, err := w.do(t.Context(), "GET", path, "", "")
	if err == nil && status == http.StatusOK {
		err = json.Unmarshal(b, v)
	}
	if err != nil || status != http.StatusOK {
		t.Fatalf("GET %s: %d %s: %v", path, status, b, err)
	}
}

// Open implements verify.Source.
func (w *web) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	status, b, err := w.do(ctx, "GET", w.prefix+"/"+name, "", "")
	switch {
	case err != nil:
		return nil, err
	case status == http.StatusNotFound:
		return nil, &fs.PathError{Op: "get", Path: name, Err: fs.ErrNotExist}
	case status != http.StatusOK:
		return nil, fmt.Errorf("GET %s: %d %s", name, status, b)
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

// Walk implements verify.Source: what is served cannot be listed.
func (w *web) Walk(context.Context, func(string) error) error { return errors.ErrUnsupported }

// requireSeal has the TPM attest the head now; it waits while the appliance settles an earlier seal.
func (w *web) requireSeal(t *testing.T) api.Sealed {
	t.Helper()
	var sealed api.Sealed
	requireSoon(t, func() error {
		status, b, err := w.do(t.Context(), "POST", "/v1/seals", "", "")
		if err == nil && status != http.StatusCreated {
			err = fmt.Errorf("POST /v1/seals: %d %s", status, b)
		}
		if err != nil {
			return err
		}
		return json.Unmarshal(b, &sealed)
	})
	return sealed
}

// requireVerified verifies the served log as an auditor does.
func (w *web) requireVerified(t *testing.T, policy *verify.Policy, receipts ...verify.Receipt) *verify.Report {
	t.Helper()
	rep, err := verify.Run(t.Context(), w, policy, verify.Options{Receipts: receipts})
	if err != nil {
		t.Fatal(err)
	}
	if rep.Verdict != verify.OutcomeVerified {
		var text strings.Builder
		_ = rep.WriteText(&text) // to memory
		t.Fatalf("the log is not verified:\n%s", &text)
	}
	return rep
}

// readPolicy reads what an auditor trusts of a throwaway appliance.
func readPolicy(t *testing.T, dir string) *verify.Policy {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "auditor.policy"))
	if err != nil {
		t.Fatal(err)
	}
	p, err := verify.ParsePolicy(b)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// requireSoon asks again and again until there is no error.
func requireSoon(t *testing.T, ask func() error) { t.Helper(); requireWithin(t, patience, ask) }

func requireWithin(t *testing.T, limit time.Duration, ask func() error) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		err := ask()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %v", limit, err)
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-t.Context().Done():
			t.Fatal(t.Context().Err())
		}
	}
}
