package softhsmtest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// TPM is a software TPM 2.0 (swtpm) with endorsement keys and certificates from a CA of its own: RSA-2048 and P-384. Its state is
// files: it is a test of logic, not protection. It ends with its process, however that ends; the state stays.
type TPM struct {
	Dir string // absolute

	mu sync.Mutex
	p  *process // nil: off
}

const (
	tpmStart = 30 * time.Second // for a TPM to answer after power on, on a busy machine
	tpmReply = 3 * time.Second  // for one answer
	tpmFree  = 3 * time.Second  // for the state to be let go by a process that is being killed
)

// CreateTPM manufactures a TPM in dir, which must not exist, and starts it. It takes about two seconds. Nothing is left of a failure,
// and no TPM is half made. ctx bounds the making only.
func CreateTPM(ctx context.Context, dir string) (*TPM, error) {
	t, err := newTPM(dir)
	if err != nil {
		return nil, fmt.Errorf("making a TPM: %w", err)
	}
	if err := t.create(ctx); err != nil {
		return nil, fmt.Errorf("making a TPM in %s: %w", t.Dir, err)
	}
	if err := t.Start(ctx); err != nil {
		return nil, errors.Join(err, os.RemoveAll(t.Dir))
	}
	return t, nil
}

// OpenTPM starts a TPM that CreateTPM made.
func OpenTPM(ctx context.Context, dir string) (*TPM, error) {
	t, err := newTPM(dir)
	if err != nil {
		return nil, fmt.Errorf("opening a TPM: %w", err)
	}
	if _, err := os.Stat(t.Roots()); err != nil {
		return nil, fmt.Errorf("opening a TPM: there is none in %s: %w", t.Dir, err)
	}
	if err := t.Start(ctx); err != nil {
		return nil, err
	}
	return t, nil
}

func newTPM(dir string) (*TPM, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	t := &TPM{Dir: dir}
	if n := len(t.control()); n > maxSocketPath {
		return nil, fmt.Errorf("its socket %s would have a path of %d bytes, and the system allows %d: use a shorter directory", t.control(), n, maxSocketPath)
	}
	if strings.ContainsAny(dir, ",\n") {
		return nil, fmt.Errorf("the directory %q: swtpm takes no comma or newline in a path", dir)
	}
	return t, nil
}

// maxSocketPath is what sockaddr_un holds besides its NUL (unix(7)).
const maxSocketPath = 107

func (t *TPM) path(name string) string { return filepath.Join(t.Dir, name) }

func (t *TPM) socket() string { return t.path("tpm.sock") }

// control is swtpm's control channel. tpm2-tools insist on this name.
func (t *TPM) control() string { return t.socket() + ".ctrl" }

// Address is where the TPM answers, as package tpm takes it. It serves one connection at a time.
func (t *TPM) Address() string { return "unix:" + t.socket() }

// Roots is a PEM file of the certificate authorities above the endorsement keys: root and intermediate.
func (t *TPM) Roots() string { return t.path("roots.pem") }

// create makes the TPM beside its place and moves it there when it is complete.
func (t *TPM) create(ctx context.Context) (err error) {
	if _, err := os.Lstat(t.Dir); !errors.Is(err, fs.ErrNotExist) {
		return errors.Join(fs.ErrExist, err)
	}
	making, err := os.MkdirTemp(filepath.Dir(t.Dir), ".making-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(making)) }()
	done := filepath.Join(making, "done")
	for _, d := range []string{done, filepath.Join(done, "state"), filepath.Join(making, "ca"), filepath.Join(making, "tmp")} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return err
		}
	}
	if err := manufacture(ctx, making, filepath.Join(done, "state")); err != nil {
		return err
	}
	var roots []byte
	for _, name := range []string{"swtpm-localca-rootca-cert.pem", "issuercert.pem"} {
		b, err := os.ReadFile(filepath.Join(making, "ca", name))
		if err != nil {
			return err
		}
		roots = append(roots, b...)
	}
	if err := os.WriteFile(filepath.Join(done, filepath.Base(t.Roots())), roots, 0o600); err != nil {
		return err
	}
	return unix.Renameat2(unix.AT_FDCWD, done, unix.AT_FDCWD, t.Dir, unix.RENAME_NOREPLACE)
}

// manufacture makes a TPM's state, with endorsement keys certified by a CA of its own, using the directory making. All paths must be
// absolute.
func manufacture(ctx context.Context, making, state string) error {
	options := filepath.Join(making, "localca.options")
	localca := filepath.Join(making, "localca.conf")
	setup := filepath.Join(making, "setup.conf")
	for name, text := range map[string]string{
		options: "--platform-manufacturer Bulla\n--platform-version 1.0\n--platform-model Throwaway\n",
		localca: fmt.Sprintf("statedir = %[1]s\nsigningkey = %[1]s/signkey.pem\nissuercert = %[1]s/issuercert.pem\ncertserial = %[1]s/certserial\n", filepath.Join(making, "ca")),
		setup:   fmt.Sprintf("create_certs_tool = /usr/bin/swtpm_localca\ncreate_certs_tool_config = %s\ncreate_certs_tool_options = %s\nactive_pcr_banks = sha256\n", localca, options),
	} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			return err
		}
	}
	command := func() *exec.Cmd {
		cmd := exec.Command("swtpm_setup", "--tpm2", "--config", setup, "--tpmstate", state,
			"--create-ek-cert", "--create-platform-cert", "--lock-nvram", "--pcr-banks", "sha256", "--vmid", "throwaway")
		cmd.Env = append(os.Environ(), "XDG_CONFIG_HOME="+making, "TMPDIR="+filepath.Join(making, "tmp"))
		return cmd
	}
	// swtpm_setup makes daemons of its own, which nobody would end if it were killed: they go with its PID namespace.
	cmd := command()
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}
	if uid, gid := os.Getuid(), os.Getgid(); uid != 0 {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: uid, HostID: uid, Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: gid, HostID: gid, Size: 1}}
	}
	p, err := start(cmd)
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.ENOSPC) { // no namespaces in this container
		p, err = start(command())
	}
	if err != nil {
		return err
	}
	return p.wait(ctx)
}

// Start powers the TPM on and waits until it answers; ctx bounds only that. It fails when the TPM is on already, in this process or in
// another.
func (t *TPM) Start(ctx context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.start(ctx); err != nil {
		return fmt.Errorf("starting the TPM in %s: %w", t.Dir, err)
	}
	return nil
}

func (t *TPM) start(ctx context.Context) error {
	if t.on() {
		return errors.New("it is on already")
	}
	if err := t.unused(ctx); err != nil {
		return err
	}
	for _, s := range []string{t.socket(), t.control()} {
		if err := os.Remove(s); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	p, err := start(exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+t.path("state")+",mode=0600",
		"--server", "type=unixio,path="+t.socket()+",mode=0600", "--ctrl", "type=unixio,path="+t.control()+",mode=0600",
		"--log", "file="+t.path("swtpm.log")+",level=1", "--flags", "not-need-init,startup-clear"))
	if err != nil {
		return err
	}
	t.p = p
	ctx, cancel := context.WithTimeout(ctx, tpmStart)
	defer cancel()
	// Not over the TPM's own connection: a client that waits for the TPM to return may have it already.
	return p.until(ctx, func() error { return t.order(ctlCapability) })
}

// unused waits until no process has the state: one that is being killed may have it a moment longer.
func (t *TPM) unused(ctx context.Context) error {
	f, err := os.OpenFile(t.path("state/.lock"), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	for end := time.Now().Add(tpmFree); ; {
		lock := unix.Flock_t{Type: unix.F_WRLCK}
		if err := unix.FcntlFlock(f.Fd(), unix.F_GETLK, &lock); err != nil {
			return fmt.Errorf("looking at %s: %w", f.Name(), err)
		}
		switch {
		case lock.Type == unix.F_UNLCK:
			return nil
		case time.Now().After(end):
			return fmt.Errorf("process %d is using it: stop that first", lock.Pid)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (t *TPM) on() bool { return t.p != nil && !t.p.ended(0) }

// Stop powers the TPM off in order, TPM2_Shutdown first. Its clients must have closed their connections: if one has not, the TPM
// is off nevertheless, as after Kill, and an error says so. A TPM that is off is left so.
func (t *TPM) Stop() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.on() {
		return nil
	}
	err := t.p.signal(syscall.SIGCONT)
	if e := t.shutdown(); e != nil {
		err = errors.Join(err, fmt.Errorf("stopping the TPM in %s: switched off without TPM2_Shutdown (does a client still hold its connection?): %w", t.Dir, e))
	}
	if e := t.order(ctlShutdown); e != nil || !t.p.ended(tpmReply) {
		err = errors.Join(err, e, t.p.kill())
	}
	return err
}

// Kill cuts the TPM's power.
func (t *TPM) Kill() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.on() {
		return nil
	}
	return t.p.kill()
}

// Restart is Stop and Start: one orderly reset.
func (t *TPM) Restart(ctx context.Context) error {
	if err := t.Stop(); err != nil {
		return err
	}
	return t.Start(ctx)
}

// Pause makes the TPM hang until Resume.
func (t *TPM) Pause() error { return t.signal(syscall.SIGSTOP) }

// Resume ends Pause.
func (t *TPM) Resume() error { return t.signal(syscall.SIGCONT) }

func (t *TPM) signal(s syscall.Signal) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.on() {
		return errOff
	}
	return t.p.signal(s)
}

var (
	errOn  = errors.New("the TPM is on: stop it first")
	errOff = errors.New("the TPM is off")
)

// Snapshot copies the state of a TPM that is off, and returns the directory of the copy, for Rollback.
func (t *TPM) Snapshot() (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.on() {
		return "", fmt.Errorf("copying the state: %w", errOn)
	}
	to, err := os.MkdirTemp(t.Dir, "snapshot-")
	if err != nil {
		return "", fmt.Errorf("copying the state: %w", err)
	}
	return to, os.CopyFS(filepath.Join(to, "state"), os.DirFS(t.path("state")))
}

// Rollback puts a snapshot in place of the state of a TPM that is off: the attack that no software TPM withstands. The snapshot
// stays good.
func (t *TPM) Rollback(snapshot string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.on() {
		return fmt.Errorf("putting back the state: %w", errOn)
	}
	from := filepath.Join(snapshot, "state")
	if _, err := os.Stat(from); err != nil {
		return fmt.Errorf("putting back the state: %w", err)
	}
	if err := os.RemoveAll(t.path("state")); err != nil {
		return fmt.Errorf("putting back the state: %w", err)
	}
	return os.CopyFS(t.path("state"), os.DirFS(from))
}

// shutdown tells the TPM that its power will go: TPM2_Shutdown(CLEAR) (TPM 2.0 Part 3, section 9.4).
func (t *TPM) shutdown() error {
	out := make([]byte, 10)
	if err := exchange(t.socket(), []byte{0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x45, 0, 0}, out); err != nil {
		return err
	}
	if rc := binary.BigEndian.Uint32(out[6:]); rc != 0 {
		return fmt.Errorf("TPM2_Shutdown: response code 0x%X", rc)
	}
	return nil
}

// Commands of swtpm's control channel (swtpm_ioctls(3)).
const (
	ctlCapability = 1
	ctlShutdown   = 3
)

// order gives one command without arguments on the control channel.
func (t *TPM) order(command uint32) error {
	out := make([]byte, 4)
	if err := exchange(t.control(), binary.BigEndian.AppendUint32(nil, command), out); err != nil {
		return err
	}
	if rc := binary.BigEndian.Uint32(out); rc != 0 {
		return fmt.Errorf("swtpm's control command %d: result 0x%X", command, rc)
	}
	return nil
}

// exchange sends a message to a socket and reads the beginning of the answer.
func exchange(socket string, in, out []byte) error {
	c, err := net.DialTimeout("unix", socket, tpmReply)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(tpmReply)); err != nil {
		return err
	}
	if _, err := c.Write(in); err != nil {
		return err
	}
	_, err = io.ReadFull(c, out)
	return err
}
