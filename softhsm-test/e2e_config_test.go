package softhsmtest_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"bulla/api"
	"bulla/record"
	"bulla/verify"
)

// plan is a genesis plan under which everybody may do everything.
func plan(origin string) string {
	p := fmt.Sprintf("origin = %q\n", origin)
	for _, role := range []string{"producer", "auditor", "operator"} {
		p += fmt.Sprintf("\n[[role]]\nname = %q\nany = true\n", role)
	}
	return p
}

// addLog makes a second log in the rig's token.
func (r *rig) addLog(name string) {
	r.t.Helper()
	first := r.config.Logs[0]
	l := logConfig{Name: name, Origin: "bulla.example/" + name, File: r.path(name + ".db"), Key: strings.Replace(first.Key, "object=log", "object="+name, 1)}
	r.config.Logs = append(r.config.Logs, l)
	if err := os.WriteFile(r.path(name+".toml"), []byte(plan(l.Origin)), 0o600); err != nil {
		r.t.Fatal(err)
	}
	c := r.bullad("init", "--config", r.write("serve.toml", r.config), "--plan", r.path(name+".toml"))
	if code := c.exit(); code != 0 {
		r.t.Fatalf("bullad init: exit code %d:\n%s", code, c.stderr)
	}
}

// TestSeveralLogs runs two logs in one daemon: each with its own origin, key and file, both covered by each seal.
func TestSeveralLogs(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.addLog("second")
	daemon := r.serve()
	w := browse(t, r.dir)
	client := dial(t, r.dir)
	origins := []string{"bulla.example/dev", "bulla.example/second"}
	if got := client.Logs(); !slices.Equal(got, origins) {
		t.Errorf("the hello names %q", got)
	}
	event := []byte(`{"type":"several.test","stream":{"id":"s","n":1}}`)
	for _, log := range origins { // the same stream number twice: streams belong to a log
		rec, err := client.Append(t.Context(), log, event)
		if err != nil {
			t.Fatal(err)
		}
		if e, err := record.ParseEntry(rec.Entry); err != nil || e.Log != log {
			t.Errorf("the entry is of log %q: %v", e.Log, err)
		}
	}
	for log, field := range map[string]string{"": "log", "bulla.example/third": "log"} {
		_, err := client.Append(t.Context(), log, event)
		var refused *api.Refusal
		if !errors.As(err, &refused) || refused.Code != record.CodeInvalid || refused.Field != field {
			t.Errorf("append to log %q: %v", log, err)
		}
	}
	for path, want := range map[string]int{
		"/checkpoint": 404, "/v1/entries": 404, "/v1/seals": 404, "/tile/0/000.p/1": 404, "/logs/third/checkpoint": 404,
		"/logs/dev/checkpoint": 200, "/logs/second/checkpoint": 200, "/logs/second/v1/entries": 200, "/logs/second/v1/entries/0/proof": 200, "/v1/status": 200,
	} {
		if status, b, err := w.do(t.Context(), "GET", path, "", ""); err != nil || status != want {
			t.Errorf("GET %s: %d %s: %v", path, status, b, err)
		}
	}
	if status, b, err := w.do(t.Context(), "POST", "/v1/events", "application/json", string(event)); err != nil || status != http.StatusNotFound {
		t.Errorf("POST /v1/events: %d %s: %v", status, b, err)
	}
	r.requireCovered(w, w.requireSeal(t))
	if code := daemon.stop(); code != 0 {
		t.Errorf("exit code %d:\n%s", code, daemon.stderr)
	}

	all := r.config.Logs
	r.config.Logs = all[:1]
	r.requireRefusal("covered log is not configured", []string{"bulla.example/second", "configure it again"})
	r.config.Logs = all
	if err := os.Rename(r.path("second.db"), r.path("hidden")); err != nil {
		t.Fatal(err)
	}
	c := r.bullad("serve", "--config", r.write("serve.toml", r.config))
	if code := c.exit(); code == 0 || !strings.Contains(c.stderr.String(), "second.db") {
		t.Errorf("covered log's file is missing: exit code %d: %s", code, c.stderr)
	}
	if _, err := os.Stat(r.path("second.db")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a log was made where one was missing: %v", err)
	}
	if err := os.Rename(r.path("hidden"), r.path("second.db")); err != nil {
		t.Fatal(err)
	}
	daemon = r.serve()
	w = browse(t, r.dir)
	r.requireCovered(w, w.requireSeal(t))
	if code := daemon.stop(); code != 0 {
		t.Errorf("exit code %d:\n%s", code, daemon.stderr)
	}
}

// requireCovered checks that a seal is in every log and attests every log's head, and that each log verifies alone.
func (r *rig) requireCovered(w *web, sealed api.Sealed) {
	r.t.Helper()
	var status api.Status
	w.getJSON(r.t, "/v1/status", &status)
	if len(status.Logs) != len(r.config.Logs) {
		r.t.Fatalf("the status shows %d logs", len(status.Logs))
	}
	for _, l := range status.Logs {
		one := &web{client: w.client, prefix: "/logs/" + l.Name}
		var entry struct {
			Body struct {
				Statement struct {
					Number uint64
					Logs   []struct{ Log string }
				}
			}
		}
		one.getJSON(r.t, fmt.Sprintf("%s/v1/entries/%d", one.prefix, sealed.Entries[l.Name]), &entry)
		if st := entry.Body.Statement; st.Number != sealed.Number || len(st.Logs) != len(r.config.Logs) {
			r.t.Errorf("log %s, entry %d: not seal %d over all logs: %+v", l.Name, sealed.Entries[l.Name], sealed.Number, st)
		}
		var genesis record.Hash
		if n, err := hex.Decode(genesis[:], []byte(l.Genesis)); err != nil || n != len(genesis) {
			r.t.Fatalf("genesis %q: %v", l.Genesis, err)
		}
		one.requireVerified(r.t, &verify.Policy{VKeys: l.VKeys, Genesis: map[string]record.Hash{l.Origin: genesis}})
	}
}

// requireRefusal checks that the daemon refuses the rig's configuration: exit 64, one line that has the words, nothing changed.
func (r *rig) requireRefusal(name string, words []string, env ...string) {
	r.t.Helper()
	path := r.write("serve.toml", r.config)
	before := r.hash()
	c := startChild(r.t, append([]string{"SOFTHSM2_CONF=" + r.path("hsm/softhsm2.conf")}, env...), program(r.t, "bullad"), "serve", "--config", path)
	code := c.exit()
	message := c.stderr.String()
	if code != 64 {
		r.t.Errorf("%s: exit code %d: %s", name, code, message)
	}
	if strings.Count(message, "\n") != 1 {
		r.t.Errorf("%s: not one line: %q", name, message)
	}
	for _, word := range words {
		if !strings.Contains(message, word) {
			r.t.Errorf("%s: %q is not in the message: %s", name, word, message)
		}
	}
	r.t.Log(strings.TrimSpace(message))
	after := r.hash()
	for path, h := range after {
		if before[path] != h {
			r.t.Errorf("%s: %s was changed or made", name, path)
		}
	}
	for path := range before {
		if _, ok := after[path]; !ok {
			r.t.Errorf("%s: %s was removed", name, path)
		}
	}
}

// hash returns the hash of every file of the rig, but for those that devices keep for themselves: the TPM's, and SoftHSM's locks,
// generations and PIN flags.
func (r *rig) hash() map[string]string {
	r.t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(r.dir, func(path string, d fs.DirEntry, err error) error {
		switch name := filepath.Base(path); {
		case err != nil:
			return err
		case path == r.path("tpm"):
			return fs.SkipDir
		case strings.HasSuffix(name, ".lock"), name == "generation", name == "token.object", name == "spy":
			return nil
		}
		content := []byte{}
		if d.Type().IsRegular() {
			if content, err = os.ReadFile(path); err != nil {
				return err
			}
		}
		info, err := d.Info()
		out[path] = fmt.Sprintf("%x %v", sha256.Sum256(content), info.Mode())
		return err
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return out
}

// TestWrongConfiguration has the daemon refuse what the operator must mend: each with one line that says what to do.
func TestWrongConfiguration(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	pin, err := os.ReadFile(r.path("hsm/dev.pin"))
	if err != nil {
		t.Fatal(err)
	}
	for i, object := range []string{"stranger", "twin", "twin"} {
		c := startChild(t, []string{"SOFTHSM2_CONF=" + r.path("hsm/softhsm2.conf"), "PIN=" + strings.TrimSpace(string(pin))}, "pkcs11-tool",
			"--module", r.module(), "--token-label", "dev", "--login", "--pin", strings.TrimSpace(string(pin)), "--keypairgen", "--key-type", "EC:prime256v1", "--usage-sign", "--label", object, "--id", fmt.Sprintf("f%d", i))
		if code := c.exit(); code != 0 {
			t.Fatalf("pkcs11-tool: exit code %d:\n%s", code, c.stderr)
		}
	}
	for name, file := range map[string]struct {
		text []byte
		mode fs.FileMode
	}{
		"wrong.pin": {[]byte("not the PIN\n"), 0o600},
		"open.pin":  {pin, 0o644},
	} {
		if err := os.WriteFile(r.path(name), file.text, file.mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(r.path(name), file.mode); err != nil { // whatever the umask
			t.Fatal(err)
		}
	}
	good := r.config.Logs[0]
	for _, row := range []struct {
		name   string
		change func(l *logConfig)
		words  []string
	}{
		{"missing PIN file", func(l *logConfig) { l.replace("hsm/dev.pin", "hsm/none.pin") }, []string{"hsm/none.pin", "correct the path"}},
		{"PIN file readable by others", func(l *logConfig) { l.replace("hsm/dev.pin", "open.pin") }, []string{"open.pin", "chmod"}},
		{"wrong PIN", func(l *logConfig) { l.replace("hsm/dev.pin", "wrong.pin") }, []string{"PIN refused", "correct it and restart"}},
		{"no such token", func(l *logConfig) { l.replace("token=dev", "token=nowhere") }, []string{"token=nowhere", "correct token="}},
		{"no such key", func(l *logConfig) { l.replace("object=log", "object=nothing") }, []string{"object=nothing", "correct object="}},
		{"two keys matching", func(l *logConfig) { l.replace("object=log", "object=twin") }, []string{"object=twin", "more than one", "name it by id"}},
		{"key that is not the log's", func(l *logConfig) { l.replace("object=log", "object=stranger") }, []string{"the log's", "correct key"}},
		{"log file of another origin", func(l *logConfig) { l.Origin = "bulla.example/other" }, []string{"bulla.example/other", "bulla.example/dev", "correct origin or file"}},
		{"no such module", func(l *logConfig) { l.replace("libsofthsm2.so", "libnothing.so") }, []string{"libnothing.so", "correct the path"}},
		{"no key at all", func(l *logConfig) { l.Key = "" }, []string{"log[0].key"}},
		{"a key of no kind", func(l *logConfig) { l.Key = "file:/key.pem" }, []string{"pkcs11:"}},
	} {
		l := good
		row.change(&l)
		r.config.Logs[0] = l
		r.requireRefusal(row.name, row.words)
	}
	r.config.Logs[0] = good
	r.requireOneLogin()
	r.config.Sockets = map[string]any{"directory": r.dir, "colour": "red"}
	r.requireRefusal("unknown key", []string{"sockets.colour", "unknown key"})
}

func (l *logConfig) replace(old, to string) { l.Key = strings.Replace(l.Key, old, to, 1) }

// module is the path of the PKCS#11 library that the rig's configuration names.
func (r *rig) module() string {
	_, path, _ := strings.Cut(r.config.Logs[0].Key, "module-path=")
	path, _, _ = strings.Cut(path, "&")
	return strings.ReplaceAll(path, "%2F", "/")
}

// requireOneLogin counts the attempts at a wrong PIN, through a module that records all calls: a device may lock itself after three.
func (r *rig) requireOneLogin() {
	r.t.Helper()
	spies, err := filepath.Glob("/usr/lib/*/pkcs11-spy.so")
	if err != nil || len(spies) == 0 {
		r.t.Fatalf("pkcs11-spy.so was not found (%v): run make deps (it is in Debian's package opensc-pkcs11)", err)
	}
	good := r.config.Logs[0]
	defer func() { r.config.Logs[0] = good }()
	l := good
	l.Interop = ""
	l.replace("hsm/dev.pin", "wrong.pin")
	module := r.module()
	l.replace(module, spies[0])
	r.config.Logs[0] = l
	r.requireRefusal("wrong PIN, counted", []string{"PIN refused"}, "PKCS11SPY="+module, "PKCS11SPY_OUTPUT="+r.path("spy"))
	log, err := os.ReadFile(r.path("spy"))
	if err != nil {
		r.t.Fatal(err)
	}
	if n := bytes.Count(log, []byte("C_Login\n")); n != 1 {
		r.t.Errorf("a wrong PIN was tried %d times", n)
	}
}
