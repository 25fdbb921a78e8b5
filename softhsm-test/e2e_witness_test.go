package softhsmtest_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"bulla/api"
	"bulla/record"
	"bulla/verify"
)

// litewitness is a running witness of another project: filippo.io/torchwood's, in the version that the module names.
type litewitness struct {
	t    *testing.T
	name string
	db   string
	url  string
	vkey string
}

// buildLitewitness builds it, once a test: its own dependencies are not this module's.
func buildLitewitness(t *testing.T) string {
	t.Helper()
	version, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Version}}", "filippo.io/torchwood").Output()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	install := exec.CommandContext(t.Context(), "go", "install", "filippo.io/torchwood/cmd/litewitness@"+strings.TrimSpace(string(version)))
	install.Env = append(os.Environ(), "GOBIN="+dir, "GOFLAGS=-mod=mod")
	if out, err := install.CombinedOutput(); err != nil {
		t.Fatalf("building litewitness: %v: %s", err, out)
	}
	return filepath.Join(dir, "litewitness")
}

// startLitewitness runs a witness that knows a log and its Ed25519 key. Its own key is in an agent of the test's.
func startLitewitness(t *testing.T, program, name, origin, logKey string) *litewitness {
	t.Helper()
	dir := shortDir(t)
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	keys := agent.NewKeyring()
	if err := keys.Add(agent.AddedKey{PrivateKey: &private}); err != nil {
		t.Fatal(err)
	}
	socket, err := net.Listen("unix", filepath.Join(dir, "agent.sock"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := socket.Close(); err != nil {
			t.Error(err)
		}
	})
	go func() {
		for {
			c, err := socket.Accept()
			if err != nil {
				return // closed
			}
			go func() {
				_ = agent.ServeAgent(keys, c) // until the witness hangs up
				_ = c.Close()
			}()
		}
	}()
	w := &litewitness{t: t, name: name, db: filepath.Join(dir, "w.db")}
	if w.vkey, err = record.WitnessVKey(name, public); err != nil {
		t.Fatal(err)
	}
	w.sql(`CREATE TABLE log (origin TEXT PRIMARY KEY, tree_size INTEGER NOT NULL, tree_hash TEXT NOT NULL);
		CREATE TABLE key (origin TEXT NOT NULL, key TEXT NOT NULL, FOREIGN KEY(origin) REFERENCES log(origin));
		INSERT INTO log VALUES ('` + origin + `', 0, '47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=');
		INSERT INTO key VALUES ('` + origin + `', '` + logKey + `');`)
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := free.Addr().String()
	if err := free.Close(); err != nil {
		t.Fatal(err)
	}
	w.url = "http://" + address + "/"
	c := startChild(t, nil, program, "-db", w.db, "-ssh-agent", filepath.Join(dir, "agent.sock"), "-name", name, "-key", ssh.FingerprintSHA256(key), "-listen", address)
	requireSoon(t, func() error {
		res, err := http.Get(w.url)
		if err != nil {
			return fmt.Errorf("%w: %s", err, c.stderr)
		}
		return res.Body.Close()
	})
	return w
}

// sql changes the witness's memory.
func (w *litewitness) sql(script string) {
	w.t.Helper()
	if out, err := exec.CommandContext(w.t.Context(), "sqlite3", "-bail", w.db, ".timeout 10000", script).CombinedOutput(); err != nil {
		w.t.Fatalf("sqlite3: %v: %s", err, out)
	}
}

// TestWitnesses has two real witnesses cosign a log: the auditor's quorum of both anchors it. A witness that knows another tree, and
// one that knows a larger one because an old state was put back, are alarms in the log.
func TestWitnesses(t *testing.T) {
	t.Parallel()
	program := buildLitewitness(t)
	r := newRig(t)
	policy := readPolicy(t, r.dir)
	i := slices.IndexFunc(policy.VKeys, func(v string) bool { return !strings.Contains(v, "+Aj") })
	origin := r.config.Logs[0].Origin
	w1 := startLitewitness(t, program, "witness.example/w1", origin, policy.VKeys[i])
	w2 := startLitewitness(t, program, "witness.example/w2", origin, policy.VKeys[i])
	for _, w := range []*litewitness{w1, w2} {
		r.config.Witnesses = append(r.config.Witnesses, map[string]any{"url": w.url, "vkey": w.vkey, "interval": "50ms"})
		policy.Witnesses = append(policy.Witnesses, verify.Witness{Name: w.name, VKey: w.vkey})
	}
	policy.Groups, policy.Quorum = []verify.Group{{Name: "both", Threshold: 2, Members: []string{w1.name, w2.name}}}, "both"

	daemon := r.serve()
	w := browse(t, r.dir)
	size := r.appendAndWitness(w, 300)
	rep := w.requireVerified(t, policy)
	if c := rep.Claims[slices.IndexFunc(rep.Claims, func(c verify.Claim) bool { return c.Name == verify.ClaimWitnesses })]; c.Status != verify.Verified || c.To < size || !c.Required {
		t.Errorf("as served: %+v", c)
	}
	if code := daemon.stop(); code != 0 {
		t.Fatalf("exit code %d:\n%s", code, daemon.stderr)
	}
	old := r.snapshot()
	if a := r.exportAtRest("rest", policy); a < size {
		t.Errorf("at rest, %d entries are cosigned", a)
	}

	// A second witness that knows another tree of the same size.
	daemon = r.serve()
	w = browse(t, r.dir)
	r.appendAndWitness(w, 10)
	w2.sql(`UPDATE log SET tree_hash = 'AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=';`)
	if _, err := dial(t, r.dir).Append(t.Context(), "", []byte(`{"type":"witness.test"}`)); err != nil {
		t.Fatal(err)
	}
	r.requireAlarm(w, "witness "+w2.name+" knows another tree of log "+origin)
	before := len(w.alarms(t))
	if code := daemon.stop(); code != 0 {
		t.Fatalf("exit code %d:\n%s", code, daemon.stderr)
	}
	if before != 1 {
		t.Errorf("%d alarms", before)
	}

	// An old state is put back, all of it but the TPM's.
	for path, b := range old {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	daemon = r.bullad("serve", "--config", r.write("serve.toml", r.config))
	requireSoon(t, func() error {
		status, b, err := w.do(t.Context(), "GET", "/health/alive", "", "")
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("%d %s", status, b)
		}
		return err
	})
	r.requireAlarm(w, "witness "+w1.name+" knows a tree of log "+origin)
	if n := w.metric(t, `bulla_witness_conflicts_total{log="dev",witness="`+w1.name+`"}`); n == "" || n == "0" {
		t.Errorf("conflicts: %q", n)
	}
	daemon.stop()
}

// appendAndWitness appends events, and waits until all witnesses have cosigned them.
func (r *rig) appendAndWitness(w *web, n int) (size uint64) {
	r.t.Helper()
	client := dial(r.t, r.dir)
	for range n {
		rec, err := client.Append(r.t.Context(), "", []byte(`{"type":"witness.test"}`))
		if err != nil {
			r.t.Fatal(err)
		}
		size = rec.Index + 1
	}
	requireSoon(r.t, func() error {
		var s api.Status
		w.getJSON(r.t, "/v1/status", &s)
		if len(s.Machine.Witnesses) != len(r.config.Witnesses) {
			r.t.Fatalf("%d witnesses", len(s.Machine.Witnesses))
		}
		for _, one := range s.Machine.Witnesses {
			if one.Size < size || one.Time == nil {
				return fmt.Errorf("%+v, want %d", one, size)
			}
		}
		return nil
	})
	return size
}

// requireAlarm waits for an alarm in the log.
func (r *rig) requireAlarm(w *web, text string) {
	r.t.Helper()
	requireSoon(r.t, func() error {
		if a := w.alarms(r.t); !slices.ContainsFunc(a, func(s string) bool { return strings.HasPrefix(s, text) }) {
			return fmt.Errorf("alarms %q, want %q", a, text)
		}
		return nil
	})
}

// snapshot reads the appliance's own files: the logs and the state directory.
func (r *rig) snapshot() map[string][]byte {
	r.t.Helper()
	out := map[string][]byte{}
	for _, pattern := range []string{"*.db*", "*.json"} {
		paths, err := filepath.Glob(r.path(pattern))
		if err != nil {
			r.t.Fatal(err)
		}
		for _, path := range paths {
			if out[path], err = os.ReadFile(path); err != nil {
				r.t.Fatal(err)
			}
		}
	}
	return out
}

// exportAtRest exports the stopped appliance's log, verifies it, and returns how many entries witnesses vouch for.
func (r *rig) exportAtRest(name string, policy *verify.Policy) uint64 {
	r.t.Helper()
	c := r.bullad("export", "--config", r.path("serve.toml"), "--out", r.path(name))
	if code := c.exit(); code != 0 {
		r.t.Fatalf("bullad export: exit code %d:\n%s", code, c.stderr)
	}
	src, err := verify.OpenDir(r.path(name))
	if err != nil {
		r.t.Fatal(err)
	}
	rep, err := verify.Run(r.t.Context(), src, policy, verify.Options{})
	if err := src.Close(); err != nil {
		r.t.Error(err)
	}
	if err != nil || rep.Verdict != verify.OutcomeVerified {
		var text strings.Builder
		_ = rep.WriteText(&text) // to memory
		r.t.Fatalf("the export is not verified: %v\n%s", err, &text)
	}
	return rep.Claims[slices.IndexFunc(rep.Claims, func(c verify.Claim) bool { return c.Name == verify.ClaimWitnesses })].To
}
