package ntp

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"bulla/clock"
)

// machine is the clocks of a machine.
type machine interface {
	Read() clock.Reading  // all of them
	Stamp() clock.Reading // Real, Raw and Width, as fast as can be
	BootID() (string, error)
	Kernel() (*clock.Kernel, error)
	// Steps calls stepped whenever the system's clock was set, until ctx ends.
	Steps(ctx context.Context, stepped func()) error
}

// local is this machine.
type local struct{}

func gettime(id int32) int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(id, &ts); err != nil {
		return 0 // cannot happen: these clocks exist in every kernel since 2.6.39; a zero is seen as a disturbance
	}
	return ts.Nano()
}

// Read takes CLOCK_MONOTONIC_RAW first and last.
func (local) Read() clock.Reading {
	r := clock.Reading{Raw: gettime(unix.CLOCK_MONOTONIC_RAW), Real: gettime(unix.CLOCK_REALTIME), Mono: gettime(unix.CLOCK_MONOTONIC), Boot: gettime(unix.CLOCK_BOOTTIME)}
	r.Width = gettime(unix.CLOCK_MONOTONIC_RAW) - r.Raw
	return r
}

// Stamp pays for one system call only: CLOCK_MONOTONIC_RAW has no vDSO on some kernels. Go reads CLOCK_REALTIME before
// CLOCK_MONOTONIC, so the time between the readings of the latter bounds how long after Raw the second CLOCK_REALTIME was read, up
// to a slew of at most an eighth.
func (local) Stamp() clock.Reading {
	before := time.Now()
	raw := gettime(unix.CLOCK_MONOTONIC_RAW)
	now := time.Now()
	width := int64(now.Sub(before))
	return clock.Reading{Raw: raw, Real: now.UnixNano(), Width: width + width/8 + 1}
}

func (local) BootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("reading the boot id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// Kernel reads adjtimex(2) without modes, which changes nothing and needs no right.
func (local) Kernel() (*clock.Kernel, error) {
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	if err != nil {
		return nil, fmt.Errorf("reading the kernel's discipline: %w", err)
	}
	k := &clock.Kernel{State: state, Status: int(t.Status), Offset: int64(t.Offset), Freq: int64(t.Freq), MaxError: int64(t.Maxerror), EstError: int64(t.Esterror), TAI: int(t.Tai)}
	if t.Status&unix.STA_NANO == 0 {
		k.Offset *= 1000
	}
	return k, nil
}

// Steps waits on a timer that the kernel cancels when CLOCK_REALTIME is set (timerfd_create(2)). Slews do not cancel it.
func (local) Steps(ctx context.Context, stepped func()) error {
	fd, err := unix.TimerfdCreate(unix.CLOCK_REALTIME, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("watching for steps: %w", err)
	}
	timer := os.NewFile(uintptr(fd), "timerfd")
	defer timer.Close()
	stop := context.AfterFunc(ctx, func() { timer.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	for ctx.Err() == nil {
		far := unix.ItimerSpec{Value: unix.NsecToTimespec(1<<62 - 1)}
		if err := unix.TimerfdSettime(fd, unix.TFD_TIMER_ABSTIME|unix.TFD_TIMER_CANCEL_ON_SET, &far, nil); err != nil && !errors.Is(err, syscall.ECANCELED) {
			return fmt.Errorf("watching for steps: %w", err)
		}
		_, err := timer.Read(make([]byte, 8))
		switch {
		case errors.Is(err, syscall.ECANCELED), err == nil:
			stepped()
		case ctx.Err() == nil:
			return fmt.Errorf("watching for steps: %w", err)
		}
	}
	return ctx.Err()
}
