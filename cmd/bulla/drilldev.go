package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"bulla/api"
	"bulla/record"
	"bulla/verify"
)

const (
	drillPatience = time.Minute            // for what must come, on a busy machine
	drillStop     = 30 * time.Second       // for an appliance to end in order
	drillCall     = 10 * time.Second       // for one answer
	drillAgain    = 100 * time.Millisecond // between two looks
)

// devAppliance is a running bullad dev.
type devAppliance struct {
	*appliance
	dir    string
	client *api.Client
	cmd    *exec.Cmd
	lines  chan string // of its standard output that are not read yet
	says   *lastWords
	done   chan struct{} // closed when it has ended
	err    error         // how; valid then
}

// startDev starts an appliance, and returns when it answers on its sockets; whether it takes events is another matter.
func (t *tool) startDev(ctx context.Context, bullad, dir string, args ...string) (*devAppliance, error) {
	d := &devAppliance{dir: dir, lines: make(chan string, 1000), says: &lastWords{}, done: make(chan struct{})}
	d.cmd = exec.Command(bullad, append([]string{"dev", "--dir", dir}, args...)...)
	d.cmd.Stderr = d.says
	ours(d.cmd)
	out, err := d.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // see ours
		defer runtime.UnlockOSThread()
		err := d.cmd.Start()
		started <- err
		if err == nil {
			d.follow(out)
		}
	}()
	if err := <-started; err != nil {
		return nil, coded(exitUsage, fmt.Errorf("starting %s: %w; name it with --bullad", bullad, err))
	}
	local := &tool{socket: dir, purpose: "drill"}
	err = d.soon(ctx, "the appliance in "+dir+" does not answer", func(ctx context.Context) error {
		c, err := readDev(dir)
		if err != nil {
			return err
		}
		local.log = c.Logs[0].Name // which the auditor's policy is for
		d.appliance, err = local.connect(ctx)
		return err
	})
	if err == nil {
		sign, _ := local.sockets()
		d.client, err = api.Dial(ctx, sign)
	}
	if err == nil {
		return d, nil
	}
	select {
	case <-d.done: // the error says so
		return nil, err
	default:
		return nil, errors.Join(err, d.stop())
	}
}

// follow reads what the process prints until its end.
func (d *devAppliance) follow(out io.Reader) {
	for s := bufio.NewScanner(out); s.Scan(); {
		select {
		case d.lines <- s.Text():
		default: // nobody waits for any of it
		}
	}
	d.err = d.cmd.Wait()
	close(d.done)
}

// lastWords keeps the end of what a process complains about.
type lastWords struct {
	mu sync.Mutex
	b  []byte
}

func (l *lastWords) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.b = append(l.b, b...)
	l.b = l.b[max(0, len(l.b)-2048):]
	return len(b), nil
}

func (l *lastWords) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(bytes.TrimSpace(l.b))
}

// stop ends the appliance in order; one that does not end is killed, which is an error.
func (d *devAppliance) stop() error {
	var errs []error
	if d.client != nil {
		errs = append(errs, d.client.Close())
	}
	if d.appliance != nil {
		d.appliance.client.CloseIdleConnections()
	}
	_ = d.cmd.Process.Signal(os.Interrupt) // it may have ended by itself
	select {
	case <-d.done:
	case <-time.After(drillStop):
		errs = append(errs, errors.New("it does not end, and was killed"), d.cmd.Process.Kill())
		<-d.done
	}
	if d.err != nil {
		errs = append(errs, d.err)
	}
	if err := errors.Join(errs...); err != nil {
		return coded(exitUnavailable, fmt.Errorf("stopping the appliance in %s: %w: %s", d.dir, err, printable(d.says.String(), 2000)))
	}
	return nil
}

// soon asks until there is no error; what it was that did not come says why.
func (d *devAppliance) soon(ctx context.Context, failed string, ask func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, drillPatience)
	defer cancel()
	for {
		call, end := context.WithTimeout(ctx, drillCall)
		err := ask(call)
		end()
		if err == nil {
			return nil
		}
		select {
		case <-time.After(drillAgain):
		case <-d.done:
			return coded(exitUnavailable, fmt.Errorf("%s: bullad ended (%v): %s", failed, d.err, printable(d.says.String(), 2000)))
		case <-ctx.Done():
			return coded(exitUnavailable, fmt.Errorf("%s: %w", failed, err))
		}
	}
}

// line waits for one of the lines that begin as given.
func (d *devAppliance) line(ctx context.Context, begins ...string) (string, error) {
	timeout := time.After(drillPatience)
	for {
		select {
		case l := <-d.lines:
			for _, b := range begins {
				if strings.HasPrefix(l, b) {
					return l, nil
				}
			}
		case <-d.done:
			return "", coded(exitUnavailable, fmt.Errorf("bullad ended (%v): %s", d.err, printable(d.says.String(), 2000)))
		case <-timeout:
			return "", coded(exitUnavailable, fmt.Errorf("bullad dev does not say %q", begins))
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
}

// faults has the appliance's devices misbehave; none: no more.
func (d *devAppliance) faults(ctx context.Context, toml string) error {
	if err := os.WriteFile(filepath.Join(d.dir, "faults.toml"), []byte(toml), 0o600); err != nil {
		return err
	}
	if err := sendFaults(d.cmd.Process); err != nil {
		return err
	}
	l, err := d.line(ctx, "faults", "no faults")
	if err == nil && l != "faults" {
		err = coded(exitUnavailable, fmt.Errorf("bullad dev: %s", printable(l, 300)))
	}
	return err
}

// take has an event of a drill taken.
func (d *devAppliance) take(ctx context.Context, data any) (record.Receipt, error) {
	b, err := json.Marshal(map[string]any{"type": "bulla.drill.event", "source": "bulla drill", "data": data})
	if err != nil {
		return record.Receipt{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, drillCall)
	defer cancel()
	return d.client.Append(ctx, d.log.Origin, b)
}

// refused reports the refusal of an event with a code; nil: it is not refused like that.
func (d *devAppliance) refused(ctx context.Context, code record.Code) (string, error) {
	_, err := d.take(ctx, map[string]string{"is": "one that should be refused"})
	var r *api.Refusal
	switch {
	case err == nil:
		return "", errors.New("an event was taken")
	case errors.As(err, &r) && r.Code == code:
		return r.Error(), nil
	}
	return "", err
}

// sealNow has the TPM attest the head.
func (d *devAppliance) sealNow(ctx context.Context) (*api.Sealed, error) {
	b, err := d.do(ctx, http.MethodPost, "/v1/seals", "", nil)
	if err != nil {
		return nil, err
	}
	var s api.Sealed
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("sealing: %w", err)
	}
	return &s, nil
}

// entries reads the entries of a kind from an index on, at most a page.
func (d *devAppliance) entries(ctx context.Context, kind record.Kind, from uint64) ([]*record.Entry, error) {
	var page api.Page
	if err := d.getJSON(ctx, fmt.Sprintf("%s/v1/entries?kind=%s&from=%d&limit=1000", d.prefix, kind, from), &page); err != nil {
		return nil, err
	}
	var out []*record.Entry
	for _, b := range page.Entries {
		e, err := record.ParseEntry(b)
		if err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	return out, nil
}

// alarm looks for an alarm with a code behind an index.
func (d *devAppliance) alarm(ctx context.Context, code record.Code, from uint64) (string, error) {
	all, err := d.entries(ctx, record.KindSystem, from)
	if err != nil {
		return "", err
	}
	for _, e := range all {
		s, err := record.ParseSystem(e.Body)
		if err != nil {
			return "", err
		}
		if s.Event == record.SystemAlarm && s.Code == code {
			return fmt.Sprintf("entry %d: alarm (%s): %s", e.Index, s.Code, s.Message), nil
		}
	}
	return "", nil
}

// now is the appliance's status.
func (d *devAppliance) now(ctx context.Context) (*api.Status, error) {
	var s api.Status
	if err := d.getJSON(ctx, "/v1/status", &s); err != nil {
		return nil, err
	}
	if s.Machine == nil || s.Machine.Seal == nil || s.Machine.Clock == nil {
		return nil, errors.New("the status says nothing of TPM and clock")
	}
	return &s, nil
}

// policy is what an auditor trusts of the appliance.
func (d *devAppliance) policy() (*verify.Policy, error) {
	p, _, err := readPolicy(filepath.Join(d.dir, "auditor.policy"))
	return p, err
}

// judge verifies the served log as an auditor does who kept what is given.
func (d *devAppliance) judge(ctx context.Context, opt verify.Options) (*verify.Report, error) {
	p, err := d.policy()
	if err != nil {
		return nil, err
	}
	return verify.Run(ctx, d.appliance, p, opt)
}
