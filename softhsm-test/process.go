package softhsmtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// process is a child that ends with its parent, even when the parent is killed.
type process struct {
	cmd    *exec.Cmd
	output *tail
	done   chan struct{} // closed when it has ended
	err    error         // how; valid then
}

// start runs a command in a process group of its own: a terminal's Ctrl-C is the parent's to handle, which then stops its devices in
// order. The kernel kills the child when the thread that made it ends, so that thread is kept until then.
func start(cmd *exec.Cmd) (*process, error) {
	p := &process{cmd: cmd, output: &tail{}, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = p.output, p.output
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig, cmd.SysProcAttr.Setpgid = syscall.SIGKILL, true
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			p.err = cmd.Wait()
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, missing(cmd.Path, err)
	}
	return p, nil
}

// missing says what to install when a program is not there.
func missing(name string, err error) error {
	if errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("starting %s: it is not installed: run make deps: %w", name, err)
	}
	return fmt.Errorf("starting %s: %w", name, err)
}

// wait waits until the process has ended, and kills it when ctx ends first.
func (p *process) wait(ctx context.Context) error {
	select {
	case <-p.done:
	case <-ctx.Done():
		return errors.Join(fmt.Errorf("%s: %w", p.cmd.Path, ctx.Err()), p.kill())
	}
	if p.err != nil {
		return fmt.Errorf("%s: %w: %s", p.cmd.Path, p.err, p.output)
	}
	return nil
}

// until asks ready, again and again, until it has no error. The process may end or ctx may; both are errors.
func (p *process) until(ctx context.Context, ready func() error) error {
	for {
		err := ready()
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("%s ended (%v): %s", p.cmd.Path, p.err, p.output)
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("%s does not answer: %s: %w: %w", p.cmd.Path, p.output, ctx.Err(), err), p.kill())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// ended reports whether the process has ended, after waiting for that at most the given time.
func (p *process) ended(within time.Duration) bool {
	if within <= 0 {
		select {
		case <-p.done:
			return true
		default:
			return false
		}
	}
	select {
	case <-p.done:
		return true
	case <-time.After(within):
		return false
	}
}

func (p *process) signal(s syscall.Signal) error {
	if p.ended(0) {
		return nil
	}
	if err := syscall.Kill(-p.cmd.Process.Pid, s); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("signalling %s: %w", p.cmd.Path, err)
	}
	return nil
}

// kill ends the process at once, with its group, and waits until it is gone.
func (p *process) kill() error {
	if err := p.signal(syscall.SIGKILL); err != nil {
		return err
	}
	<-p.done
	return nil
}

// tail keeps the last of what a process prints, for error messages.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, b...)
	if n := len(t.buf) - 4096; n > 0 {
		t.buf = t.buf[n:]
	}
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(bytes.TrimSpace(t.buf))
}
