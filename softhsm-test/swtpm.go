package softhsmtest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// TPM is a software TPM 2.0 with endorsement keys and certificates from a CA of its own. Its state is files: it is a test of logic,
// not protection.
type TPM struct {
	Dir string // absolute

	mu sync.Mutex
	p  *process
}

// CreateTPM manufactures a TPM in dir, which must not exist, and starts it.
func CreateTPM(ctx context.Context, dir string) (*TPM, error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making a TPM: %w", err)
	}
	t := &TPM{Dir: dir}
	if err := t.manufacture(ctx); err != nil {
		return nil, fmt.Errorf("making a TPM in %s: %w", dir, err)
	}
	return t, t.Start(ctx)
}

// OpenTPM starts a TPM that CreateTPM made.
func OpenTPM(ctx context.Context, dir string) (*TPM, error) {
	t := &TPM{Dir: dir}
	if _, err := os.Stat(t.path("state")); err != nil {
		return nil, fmt.Errorf("opening a TPM: %w", err)
	}
	return t, t.Start(ctx)
}

func (t *TPM) path(name string) string { return filepath.Join(t.Dir, name) }

// Address is where the TPM answers, as package tpm takes it.
func (t *TPM) Address() string { return "unix:" + t.path("tpm.sock") }

// Roots is a PEM file of the certificate authorities above the endorsement keys: root and intermediate.
func (t *TPM) Roots() string { return t.path("roots.pem") }

func (t *TPM) manufacture(ctx context.Context) error {
	for _, d := range []string{"cfg", "ca", "state", "certs"} {
		if err := os.Mkdir(t.path(d), 0o700); err != nil {
			return err
		}
	}
	for name, text := range map[string]string{
		"swtpm-localca.conf":    fmt.Sprintf("statedir = %[1]s\nsigningkey = %[1]s/signkey.pem\nissuercert = %[1]s/issuercert.pem\ncertserial = %[1]s/certserial\n", t.path("ca")),
		"swtpm-localca.options": "--platform-manufacturer Bulla\n--platform-version 1.0\n--platform-model Throwaway\n",
		"swtpm_setup.conf": fmt.Sprintf("create_certs_tool = /usr/bin/swtpm_localca\ncreate_certs_tool_config = %[1]s/swtpm-localca.conf\ncreate_certs_tool_options = %[1]s/swtpm-localca.options\nactive_pcr_banks = sha256\n",
			t.path("cfg")),
	} {
		if err := os.WriteFile(filepath.Join(t.path("cfg"), name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	cmd := exec.CommandContext(ctx, "swtpm_setup", "--tpm2", "--config", t.path("cfg/swtpm_setup.conf"), "--tpmstate", t.path("state"),
		"--create-ek-cert", "--create-platform-cert", "--lock-nvram", "--pcr-banks", "sha256", "--overwrite",
		"--vmid", "throwaway", "--write-ek-cert-files", t.path("certs"))
	cmd.Env = append(os.Environ(), "XDG_CONFIG_HOME="+t.path("cfg"))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", missing("swtpm_setup", err), out)
	}
	var roots []byte
	for _, name := range []string{"swtpm-localca-rootca-cert.pem", "issuercert.pem"} {
		b, err := os.ReadFile(filepath.Join(t.path("ca"), name))
		if err != nil {
			return err
		}
		roots = append(roots, b...)
	}
	return os.WriteFile(t.Roots(), roots, 0o600)
}

// Start powers the TPM on and waits until it answers.
func (t *TPM) Start(ctx context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	sock := t.path("tpm.sock")
	if len(sock) > 100 {
		return fmt.Errorf("starting a TPM: the path %s is too long for a socket: use a shorter directory", sock)
	}
	for _, s := range []string{sock, sock + ".ctrl"} {
		if err := os.Remove(s); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	p, err := start("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+t.path("state")+",mode=0600",
		"--server", "type=unixio,path="+sock+",mode=0600", "--ctrl", "type=unixio,path="+sock+".ctrl,mode=0600",
		"--log", "file="+t.path("swtpm.log")+",level=1", "--flags", "not-need-init,startup-clear")
	if err != nil {
		return err
	}
	t.p = p
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for {
		if err := t.ping(); err == nil {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("swtpm ended: %v: %s", p.err, p.output)
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("swtpm does not answer: %s: %w", p.output, ctx.Err()), p.kill())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// ping asks for a random number; shutdown tells the TPM that power will go.
func (t *TPM) ping() error {
	return t.command([]byte{0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x7B, 0, 8})
}

func (t *TPM) shutdown() error {
	return t.command([]byte{0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x45, 0, 0})
}

// command sends one command without sessions and requires success.
func (t *TPM) command(in []byte) error {
	c, err := net.DialTimeout("unix", t.path("tpm.sock"), time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	if _, err := c.Write(in); err != nil {
		return err
	}
	var h [10]byte
	if _, err := io.ReadFull(c, h[:]); err != nil {
		return err
	}
	if rc := binary.BigEndian.Uint32(h[6:]); rc != 0 {
		return fmt.Errorf("TPM response code 0x%X", rc)
	}
	return nil
}

// Stop powers the TPM off in order (TPM2_Shutdown first). No other program may hold its connection.
func (t *TPM) Stop() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	err := t.shutdown()
	return errors.Join(err, t.p.kill())
}

// Kill cuts the TPM's power.
func (t *TPM) Kill() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.p.kill()
}

// Pause makes the TPM hang until Resume.
func (t *TPM) Pause() error { return t.p.signal(syscall.SIGSTOP) }

// Resume ends Pause.
func (t *TPM) Resume() error { return t.p.signal(syscall.SIGCONT) }

// Snapshot copies the state of a TPM that is off, for Rollback.
func (t *TPM) Snapshot() (string, error) {
	to, err := os.MkdirTemp(t.Dir, "snapshot-")
	if err != nil {
		return "", err
	}
	return to, os.CopyFS(filepath.Join(to, "state"), os.DirFS(t.path("state")))
}

// Rollback puts a snapshot's state in place of the one of a TPM that is off.
func (t *TPM) Rollback(snapshot string) error {
	if err := os.RemoveAll(t.path("state")); err != nil {
		return err
	}
	return os.CopyFS(t.path("state"), os.DirFS(filepath.Join(snapshot, "state")))
}
