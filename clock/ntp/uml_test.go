//go:build uml

package ntp

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bulla/clock"
)

// A User-Mode Linux guest has a system clock of its own, which a test may set, slew and send through a leap second. This test
// binary is the guest's init. It needs BULLA_UML, the path of linux.uml, and to be static:
//
//	CGO_ENABLED=0 BULLA_UML=.../linux.uml go test -tags uml -run UML -v ./clock/ntp

func TestMain(m *testing.M) {
	if os.Getpid() == 1 {
		guest()
	}
	os.Exit(m.Run())
}

// TestUML starts the guest and reads its report.
func TestUML(t *testing.T) {
	kernel := os.Getenv("BULLA_UML")
	if kernel == "" {
		t.Fatal("BULLA_UML must name linux.uml (Debian: user-mode-linux, unpacked)")
	}
	dir, err := os.MkdirTemp("", "uml") // its path must be short: the guest makes sockets in it
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	image, err := os.ReadFile(kernel) // where it lies, the guest's user may not get to
	if err != nil {
		t.Fatal(err)
	}
	kernel = filepath.Join(dir, "linux.uml")
	if err := os.WriteFile(kernel, image, 0o755); err != nil {
		t.Fatal(err)
	}
	initrd := filepath.Join(dir, "initrd.gz")
	if err := writeInitrd(initrd); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, kernel, "mem=256M", "initrd="+initrd, "con=null", "con0=null,fd:1", "ssl=null", "quiet", "umid=bulla", "uml_dir="+dir)
	cmd.Env = []string{"HOME=" + dir, "TMPDIR=" + dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if os.Getuid() == 0 { // the guest has no rights on this machine
		const nobody = 65534
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
		if err := errors.Join(os.Chown(dir, nobody, nobody), os.Chown(initrd, nobody, nobody)); err != nil {
			t.Fatal(err)
		}
	}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Run() // the kernel's exit code says nothing about its init
	t.Logf("%s\n%v", out.String(), err)
	if !strings.Contains(out.String(), "GUEST PASSED") {
		t.Error("the guest did not pass")
	}
}

// writeInitrd makes an initramfs, a cpio archive in newc form, of this binary as init.
func writeInitrd(path string) (err error) {
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	z, err := gzip.NewWriterLevel(f, gzip.BestSpeed)
	if err != nil {
		return err
	}
	number := 0
	add := func(name string, mode, major, minor int, body []byte) {
		number++
		fmt.Fprintf(z, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", number, mode, 0, 0, 1, 0, len(body), 0, 0, major, minor, len(name)+1, 0)
		pad := func(n int) string { return strings.Repeat("\x00", (4-n%4)%4) }
		io.WriteString(z, name+"\x00"+pad(110+len(name)+1))
		z.Write(body)
		io.WriteString(z, pad(len(body)))
	}
	const dir, device, file = 0o040755, 0o020600, 0o100755
	add("dev", dir, 0, 0, nil)
	add("proc", dir, 0, 0, nil)
	add("dev/console", device, 5, 1, nil)
	add("init", file, 0, 0, self)
	add("TRAILER!!!", 0, 0, 0, nil)
	return z.Close()
}

// guest is init: it runs the story, reports, and turns the machine off.
func guest() {
	g := &inGuest{}
	if err := g.story(); err != nil {
		fmt.Println("guest:", err)
	} else if g.wrong.Load() == 0 {
		fmt.Println("GUEST PASSED")
	}
	time.Sleep(100 * time.Millisecond) // the console is slow
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		fmt.Println("guest: turning off:", err)
	}
	select {}
}

// inGuest knows the truth: UTC kept by CLOCK_MONOTONIC_RAW, with a leap second if one is planned.
type inGuest struct {
	offset atomic.Int64 // UTC minus CLOCK_MONOTONIC_RAW, not counting the leap second
	leapAt atomic.Int64 // UTC of the leap second, 0: none
	m      *Monitor
	book   *logbook
	stamps atomic.Int64
	wrong  atomic.Int64
	moving atomic.Bool // the story changes the truth, which no clock can know
	policy clock.Policy
}

func (g *inGuest) utc() int64 {
	utc := gettime(unix.CLOCK_MONOTONIC_RAW) + g.offset.Load()
	if at := g.leapAt.Load(); at != 0 && utc >= at {
		utc -= sec
	}
	return utc
}

func (g *inGuest) story() error {
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mounting /proc: %w", err)
	}
	if err := loopback(); err != nil {
		return err
	}
	g.offset.Store(1795397000*sec - gettime(unix.CLOCK_MONOTONIC_RAW))
	if err := g.set(g.utc() + 40*ms); err != nil {
		return err
	}
	g.book, g.policy = newLogbook(), clock.DefaultPolicy()
	g.policy.Poll, g.policy.MaxOffset = sec, 0
	var sources []Source
	var servers []*responder
	for range 4 {
		r, err := listen(behaviour{}, func() time.Time { return time.Unix(0, g.utc()) })
		if err != nil {
			return err
		}
		go r.serve()
		servers = append(servers, r)
		sources = append(sources, Source{Address: r.address()})
	}
	var err error
	if g.m, err = New(Config{Sources: sources, Policy: g.policy, Record: g.book.record}); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- g.m.Run(ctx) }()
	go g.stampAlways(ctx)

	if err := g.synced("the start"); err != nil {
		return err
	}
	const year = 365 * 86400 * sec
	for _, by := range []int64{-3 * sec, 250 * ms, -5 * ms, 3600 * sec, -3600 * sec, 50 * year, -90 * year, 40 * year} {
		if err := g.step(by); err != nil {
			return err
		}
	}
	for _, slew := range []unix.Timex{{Modes: unix.ADJ_FREQUENCY, Freq: 500 << 16}, {Modes: unix.ADJ_TICK, Tick: 10800}} {
		if err := g.slew(slew); err != nil {
			return err
		}
	}
	if err := g.leap(servers); err != nil {
		return err
	}
	cancel()
	<-done
	var c clock.Checker
	for i, e := range g.book.all() {
		for _, f := range c.Evidence(&e) {
			return fmt.Errorf("entry %d: %v", i, f)
		}
	}
	fmt.Printf("guest: %d entries verify; %d stamps, %d of them without the truth\n", len(g.book.all()), g.stamps.Load(), g.wrong.Load())
	if g.stamps.Load() < 1000 {
		return errors.New("too few stamps")
	}
	return nil
}

// stampAlways stamps all the time and compares with the truth. A leap second is ambiguous: then both readings count.
func (g *inGuest) stampAlways(ctx context.Context) {
	for ctx.Err() == nil {
		before := g.utc()
		s := g.m.Now()
		after := g.utc()
		if s.HasEstimate && s.State != clock.Unsynced && !g.moving.Load() {
			g.stamps.Add(1)
			if s.Earliest() > max(before, after) || s.Latest() < min(before, after) {
				g.wrong.Add(1)
				fmt.Printf("guest: WRONG: truth %d..%d, stamp %+v\n", before, after, s)
			}
		}
		time.Sleep(time.Millisecond)
	}
}

// synced waits until events are taken again.
func (g *inGuest) synced(what string) error {
	begun := gettime(unix.CLOCK_MONOTONIC_RAW)
	for {
		if s := g.m.Now(); s.State == clock.Synced {
			fmt.Printf("guest: %s: synced after %d ms, offset %d ns, bound %d ns\n", what, (gettime(unix.CLOCK_MONOTONIC_RAW)-begun)/ms, s.Offset, s.Bound)
			return nil
		}
		if gettime(unix.CLOCK_MONOTONIC_RAW)-begun > 40*sec {
			return fmt.Errorf("%s: not synced after 40 s: %+v", what, g.m.Status().Round)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (g *inGuest) set(real int64) error {
	ts := unix.NsecToTimespec(real)
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
		return fmt.Errorf("setting the guest's clock: %w", err)
	}
	return nil
}

// transitions since entry from.
func (g *inGuest) reasons(from int) (out []string) {
	for _, e := range g.book.all()[from:] {
		if e.Transition != nil {
			out = append(out, e.Transition.Reason)
		}
	}
	return out
}

func (g *inGuest) step(by int64) error {
	from := len(g.book.all())
	was := g.m.Now()
	if err := g.set(gettime(unix.CLOCK_REALTIME) + by); err != nil {
		return err
	}
	s := g.m.Now() // before anybody has noticed
	if moved := was.Offset - s.Offset; s.HasEstimate && was.HasEstimate && (moved-by > 50*ms || by-moved > 50*ms) {
		return fmt.Errorf("step of %d: the offset moved by %d", by, moved)
	}
	time.Sleep(300 * time.Millisecond) // the step must be seen by the timer, not by the watch
	if got := g.reasons(from); len(got) == 0 || got[0] != clock.ReasonStep {
		return fmt.Errorf("step of %d: recorded %q", by, got)
	}
	return g.synced(fmt.Sprintf("a step of %v", time.Duration(by)))
}

func (g *inGuest) slew(t unix.Timex) error {
	from := len(g.book.all())
	before := local{}.Read()
	if _, err := unix.Adjtimex(&t); err != nil {
		return fmt.Errorf("slewing the guest's clock: %w", err)
	}
	time.Sleep(3 * time.Second)
	after := local{}.Read()
	undo := unix.Timex{Modes: unix.ADJ_FREQUENCY | unix.ADJ_TICK, Tick: 10000}
	if _, err := unix.Adjtimex(&undo); err != nil {
		return fmt.Errorf("slewing the guest's clock: %w", err)
	}
	gained := (after.Mono - after.Raw) - (before.Mono - before.Raw)
	if gained < ms {
		return fmt.Errorf("the slew moved the clock by %d ns only", gained)
	}
	if got := g.reasons(from); len(got) != 0 {
		return fmt.Errorf("a slew of %v is taken for %q", time.Duration(gained), got)
	}
	return g.synced(fmt.Sprintf("a slew of %v", time.Duration(gained)))
}

func (g *inGuest) leap(servers []*responder) error {
	end := time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC).UnixNano()
	g.moving.Store(true)
	g.offset.Store(end - 12*sec - gettime(unix.CLOCK_MONOTONIC_RAW)) // everybody's time jumps: two rounds that agree settle it
	g.leapAt.Store(end)
	for _, r := range servers {
		r.becomes(behaviour{leap: 1})
	}
	if err := g.set(g.utc()); err != nil {
		return err
	}
	if _, err := unix.Adjtimex(&unix.Timex{Modes: unix.ADJ_STATUS, Status: unix.STA_INS}); err != nil {
		return fmt.Errorf("planning the guest's leap second: %w", err)
	}
	for g.m.Now().State != clock.Synced || g.m.Now().Flags&clock.LeapPending == 0 {
		if g.utc() > end-3*sec {
			return fmt.Errorf("the leap second is not announced: %+v", g.m.Status().Round)
		}
		time.Sleep(10 * time.Millisecond)
	}
	g.moving.Store(false)
	from := len(g.book.all())
	paused, taken := 0, 0
	var repeated bool
	for last := int64(0); gettime(unix.CLOCK_MONOTONIC_RAW)+g.offset.Load() < end+5*sec; time.Sleep(10 * time.Millisecond) {
		linear := gettime(unix.CLOCK_MONOTONIC_RAW) + g.offset.Load()
		s := g.m.Now()
		repeated = repeated || s.Sys < last-sec/2
		last = s.Sys
		switch near := linear > end-sec && linear < end+2*sec; {
		case g.policy.Allows(s) != nil:
			paused++
		case near:
			return fmt.Errorf("an event is taken %d ms from the leap second: %+v", (linear-end)/ms, s)
		default:
			taken++
		}
	}
	fmt.Printf("guest: leap second: system's clock repeated a second: %v; %d stamps refused, %d taken around it; %q\n", repeated, paused, taken, g.reasons(from))
	if !repeated || paused == 0 || taken == 0 || !slices.Contains(g.reasons(from), clock.ReasonStep) {
		return errors.New("that is not how a leap second goes")
	}
	return g.synced("the leap second")
}

// loopback brings up the interface lo.
func loopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("bringing up lo: %w", err)
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return fmt.Errorf("bringing up lo: %w", err)
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req); err != nil {
		return fmt.Errorf("bringing up lo: %w", err)
	}
	return nil
}
