package softhsmtest_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/pelletier/go-toml/v2"

	softhsmtest "bulla/softhsm-test"
)

// rig is an appliance whose devices belong to the test, so that it can break them under `bullad serve`.
type rig struct {
	t      *testing.T
	dir    string // as bullad dev made it
	tpm    *softhsmtest.TPM
	config config
}

// config is a configuration file, to be changed by tests.
type config struct {
	State   string         `toml:"state"`
	Sockets map[string]any `toml:"sockets"`
	TPM     map[string]any `toml:"tpm"`
	Clock   struct {
		Sources []map[string]any `toml:"source"`
	} `toml:"clock"`
	Logs      []logConfig    `toml:"log"`
	SelfCheck map[string]any `toml:"selfcheck,omitempty"`

	Witnesses []map[string]any `toml:"witness,omitempty"`
	PINs      []map[string]any `toml:"pin,omitempty"`
}

type logConfig struct {
	Name    string `toml:"name"`
	Origin  string `toml:"origin"`
	File    string `toml:"file"`
	Key     string `toml:"key"`
	Interop string `toml:"interop,omitempty"`
}

// newRig has bullad dev make an appliance, ends it, and takes over its devices.
func newRig(t *testing.T, args ...string) *rig {
	t.Helper()
	r := &rig{t: t, dir: shortDir(t)}
	daemon := startDev(t, r.dir, args...)
	if code := daemon.stop(); code != 0 {
		t.Fatalf("bullad dev: exit code %d:\n%s", code, daemon.stderr)
	}
	b, err := os.ReadFile(r.path("bullad.toml"))
	if err == nil {
		err = toml.Unmarshal(b, &r.config)
	}
	if err != nil {
		t.Fatal(err)
	}
	if r.tpm, err = softhsmtest.OpenTPM(t.Context(), r.path("tpm")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.tpm.Kill(); err != nil {
			t.Error(err)
		}
	})
	for i := range r.config.Clock.Sources {
		r.config.Clock.Sources[i]["address"] = softhsmtest.NTPFor(t, softhsmtest.Behaviour{}).Address
	}
	return r
}

func (r *rig) path(name string) string { return filepath.Join(r.dir, name) }

// write writes a configuration file and returns its path.
func (r *rig) write(name string, c any) string {
	r.t.Helper()
	b, err := toml.Marshal(c)
	if err == nil {
		err = os.WriteFile(r.path(name), b, 0o600)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	return r.path(name)
}

// bullad starts the daemon's program on the rig's devices.
func (r *rig) bullad(args ...string) *child {
	r.t.Helper()
	return startChild(r.t, []string{"SOFTHSM2_CONF=" + r.path("hsm/softhsm2.conf")}, program(r.t, "bullad"), args...)
}

// serve runs the appliance until it takes events.
func (r *rig) serve() *child {
	r.t.Helper()
	c := r.bullad("serve", "--config", r.write("serve.toml", r.config))
	w := browse(r.t, r.dir)
	requireSoon(r.t, func() error {
		select {
		case <-c.done:
			r.t.Fatalf("bullad serve ended (%v):\n%s", c.cmd.ProcessState, c.stderr)
		default:
		}
		status, b, err := w.do(r.t.Context(), "GET", "/health/ready", "", "")
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("GET /health/ready: %d %s", status, b)
		}
		return err
	})
	return c
}

// TestTPMKilled cuts the power of the TPM under the running daemon. Events go on, sealed by nothing for the moment; when the TPM is back
// seals resume, and an honest power cut is not taken for a rollback.
func TestTPMKilled(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	policy := readPolicy(t, r.dir)
	daemon := r.serve()
	w := browse(t, r.dir)
	l := startLoad(t, r.dir, "", 2)
	for range 2 {
		first := w.requireSeal(t)
		if err := r.tpm.Kill(); err != nil {
			t.Fatal(err)
		}
		if status, b, err := w.do(t.Context(), "POST", "/v1/seals", "", ""); err != nil || status != http.StatusServiceUnavailable {
			t.Errorf("a seal without a TPM: %d %s: %v", status, b, err)
		}
		l.requireMore(5*time.Second, 50)
		if err := r.tpm.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		if again := w.requireSeal(t); again.Number <= first.Number {
			t.Errorf("seal %d after seal %d", again.Number, first.Number)
		}
		l.requireMore(5*time.Second, 50)
	}
	given, refused := l.end()
	if len(refused) > 0 {
		t.Errorf("events were refused: %v", refused)
	}
	w.requireSeal(t)
	h := newHistory(t, policy)
	h.add(t, given)
	h.check(t, w)
	w.requireVerified(t, policy, h.sample...)
	if code := daemon.stop(); code != 0 {
		t.Errorf("exit code %d:\n%s", code, daemon.stderr)
	}
	// A power cut between two runs of the daemon is as honest.
	if err := r.tpm.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := r.tpm.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	daemon = r.serve()
	w = browse(t, r.dir)
	w.requireSeal(t)
	w.requireVerified(t, policy, h.sample...)
	if code := daemon.stop(); code != 0 {
		t.Errorf("exit code %d:\n%s", code, daemon.stderr)
	}
}

// TestTPMSignsTheLog has the TPM sign the log itself. Without it events are refused with the reason; when it is back they are taken.
func TestTPMSignsTheLog(t *testing.T) {
	t.Parallel()
	r := newRig(t, "--tpm-key")
	policy := readPolicy(t, r.dir)
	daemon := r.serve()
	w := browse(t, r.dir)
	l := startLoad(t, r.dir, "", 2)
	l.requireMore(patience, 20)
	if err := r.tpm.Kill(); err != nil {
		t.Fatal(err)
	}
	requireSoon(t, func() error {
		if l.refusals("tpm") < 5 {
			return fmt.Errorf("refused: %d with code tpm", l.refusals("tpm"))
		}
		return nil
	})
	if err := r.tpm.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	l.requireMore(10*time.Second, 20)
	w.requireSeal(t)
	given, refused := l.end()
	for code := range refused {
		if code != "tpm" && code != "busy" {
			t.Errorf("events were refused with code %s", code)
		}
	}
	h := newHistory(t, policy)
	h.add(t, given)
	h.check(t, w)
	w.requireSeal(t)
	w.requireVerified(t, policy, h.sample...)
	if code := daemon.stop(); code != 0 {
		t.Errorf("exit code %d:\n%s", code, daemon.stderr)
	}
}
