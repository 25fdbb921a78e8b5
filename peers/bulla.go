package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// appliance is a running bullad dev: a SoftHSM token, a software TPM that seals every ten seconds, a clock that is measured.
type appliance struct {
	bin, dir string
	cmd      *exec.Cmd
	ready    time.Duration // from its start until it took events
	errors   *bytes.Buffer
}

// readyTime bounds how long an appliance may take until it serves.
const readyTime = 2 * time.Minute

// startAppliance makes the appliance in dir, or opens it again, and returns when it serves.
func startAppliance(ctx context.Context, bin, dir string, args ...string) (*appliance, error) {
	a := &appliance{bin: bin, dir: dir, errors: new(bytes.Buffer)}
	a.cmd = exec.Command(filepath.Join(bin, "bullad"), append([]string{"dev", "--dir", dir}, args...)...)
	a.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for this process, which then ends it
	a.cmd.Stderr = a.errors
	out, err := a.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	start := time.Now()
	if err := a.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting bullad (make build makes it): %w", err)
	}
	serves := make(chan bool, 1)
	go func() {
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			if lines.Text() == "ready" {
				serves <- true
			}
		}
		close(serves)
	}()
	select {
	case ok := <-serves:
		if ok {
			a.ready = time.Since(start)
			return a, nil
		}
		err = errors.New("it ended before it was ready")
	case <-time.After(readyTime):
		err = fmt.Errorf("it was not ready after %v", readyTime)
	case <-ctx.Done():
		err = ctx.Err()
	}
	return nil, errors.Join(fmt.Errorf("bullad dev: %w: %s", err, a.errors), a.stop())
}

// stop ends the appliance and waits until it and its children are gone.
func (a *appliance) stop() error {
	if err := a.cmd.Process.Signal(os.Interrupt); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	if err := a.cmd.Wait(); err != nil {
		return fmt.Errorf("bullad dev ended: %w: %s", err, a.errors)
	}
	return nil
}

func (a *appliance) sign() string { return filepath.Join(a.dir, "sign.sock") }
func (a *appliance) http() string { return filepath.Join(a.dir, "http.sock") }

// bench runs bulla bench, the product's own client: it parses each answer, with the receipts in it if it wants them.
func (a *appliance) bench(ctx context.Context, producers, batch, size int, want string, d time.Duration) (measurement, error) {
	before, counted := flushes(a.dir)
	cmd := exec.CommandContext(ctx, filepath.Join(a.bin, "bulla"), "bench", "--json", "--disk", "", "--socket", a.sign(),
		"--producers", strconv.Itoa(producers), "--batch", strconv.Itoa(batch), "--size", strconv.Itoa(size), "--want", want, "--duration", d.String())
	var messages strings.Builder
	cmd.Stderr = &messages
	out, err := cmd.Output()
	if err != nil {
		return measurement{}, fmt.Errorf("bulla bench: %w: %s", err, messages.String())
	}
	var res struct {
		Rate    float64 `json:"entries_per_second"`
		Request struct {
			Count int     `json:"count"`
			P50   float64 `json:"p50_ms"`
			P99   float64 `json:"p99_ms"`
		} `json:"request"`
	}
	if err := json.Unmarshal(out, &res); err != nil {
		return measurement{}, fmt.Errorf("bulla bench: %w", err)
	}
	m := measurement{Rate: res.Rate, P50: res.Request.P50, P99: res.Request.P99, Answers: res.Request.Count}
	m.flushed(a.dir, before, counted)
	return m, nil
}

// memory is the appliance's resident memory now and at its highest, in bytes (proc_pid_status(5)).
func (a *appliance) memory() (now, peak uint64, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", a.cmd.Process.Pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(line, ":")
		if key != "VmRSS" && key != "VmHWM" {
			continue
		}
		kb, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		if err != nil {
			return 0, 0, fmt.Errorf("reading %s: %w", key, err)
		}
		if key == "VmRSS" {
			now = kb << 10
		} else {
			peak = kb << 10
		}
	}
	return now, peak, nil
}
