package server

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"bulla/api"
	"bulla/attest"
	"bulla/ceremony"
	"bulla/clock"
	"bulla/ledger"
	"bulla/record"
	"bulla/store"
)

const (
	origin   = "test.example/log"
	good     = `{"type":"good.test"}`
	patience = 20 * time.Second // more than anything here takes
)

// rig is a server and its logs, whose keys are in memory.
type rig struct {
	t    testing.TB
	dir  string
	cfg  Config
	lim  limits
	keys []*ecdsa.PrivateKey
	tpm  *attest.Enrolment // of logs to be made
	stop func()            // ends the server and waits until it has ended

	mu    sync.Mutex
	stamp clock.Stamp // what the clock shows, but for the time
	hold  chan struct{}
	held  chan struct{} // gets a token when a signature waits for hold
}

// everyone may append, read and ask for seals.
var everyone = []ceremony.Role{{Name: ceremony.Auditor, Any: true}, {Name: ceremony.Producer, Any: true}}

// newRig makes logs of the given roles ("": default) and does not serve them yet.
func newRig(t testing.TB, roles []ceremony.Role, names ...string) *rig {
	t.Helper()
	dir, err := os.MkdirTemp("", "bulla") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, dir: dir, lim: defaultLimits, stamp: clock.Stamp{HasEstimate: true, Bound: 1000, Round: 1, Epoch: 1, State: clock.Synced}}
	t.Cleanup(func() {
		if r.stop != nil {
			r.stop()
		}
		for _, l := range r.cfg.Logs {
			if err := l.Ledger.Close(); err != nil {
				t.Error(err)
			}
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	r.cfg = Config{Directory: dir, Log: slog.New(complaints{t}), Now: r.now}
	if len(names) == 0 {
		names = []string{"log"}
	}
	for _, name := range names {
		r.addLog(name, roles)
	}
	return r
}

// complaints makes what the server warns of the test's failure.
type complaints struct{ t testing.TB }

func (complaints) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelWarn }
func (c complaints) WithAttrs([]slog.Attr) slog.Handler         { return c }
func (c complaints) WithGroup(string) slog.Handler              { return c }

func (c complaints) Handle(_ context.Context, r slog.Record) error {
	c.t.Errorf("the server says: %s", r.Message)
	return nil
}

func (r *rig) now() clock.Stamp {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.stamp
	s.Sys = time.Now().UnixNano()
	return s
}

// Now makes the rig a clock.
func (r *rig) Now() clock.Stamp { return r.now() }

// signer signs with a key in memory, and waits while the rig holds signatures.
type signer struct {
	*ecdsa.PrivateKey
	r *rig
}

func (s signer) Sign(random io.Reader, digest []byte, o crypto.SignerOpts) ([]byte, error) {
	s.r.mu.Lock()
	hold, held := s.r.hold, s.r.held
	s.r.mu.Unlock()
	if hold != nil {
		held <- struct{}{}
		<-hold
	}
	return s.PrivateKey.Sign(random, digest, o)
}

// holdSignatures makes signatures wait until release is called; held gets a token for each that waits.
func (r *rig) holdSignatures() (held <-chan struct{}, release func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	hold := make(chan struct{})
	r.hold, r.held = hold, make(chan struct{}, 1000)
	return r.held, sync.OnceFunc(func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.hold = nil
		close(hold)
	})
}

func (r *rig) addLog(name string, roles []ceremony.Role) {
	r.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		r.t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		r.t.Fatal(err)
	}
	o := origin
	if name != "log" {
		o += "/" + name
	}
	cfg := ledger.Config{Origin: o, Clock: r, Signer: func(ceremony.Key) (ledger.Signer, error) {
		return ledger.Signer{Signer: signer{key, r}, Device: record.CodeHSM}, nil
	}}
	path := filepath.Join(r.dir, name+".db")
	genesis := &ceremony.Genesis{
		Origin: o, Clock: clock.DefaultPolicy(), Roles: roles, Software: "test", TPM: r.tpm,
		Keys: []ceremony.Key{{Algorithm: "ecdsa-p256", Purpose: ceremony.PurposeLog, SPKI: spki}},
	}
	if r.tpm != nil {
		genesis.Seal = ceremony.DefaultSealPolicy(r.tpm.PCR)
	}
	err = ledger.Create(path, cfg, genesis)
	if err != nil {
		r.t.Fatal(err)
	}
	s, err := store.Open(path)
	if err != nil {
		r.t.Fatal(err)
	}
	l, err := ledger.Open(cfg, s)
	if err != nil {
		r.t.Fatal(err, s.Close())
	}
	r.cfg.Logs = append(r.cfg.Logs, Log{Name: name, Ledger: l})
	r.keys = append(r.keys, key)
}

// serve starts the server.
func (r *rig) serve() *rig {
	r.t.Helper()
	ready, done := make(chan struct{}), make(chan error, 1)
	r.cfg.Ready = func() { close(ready) }
	ctx, cancel := context.WithCancel(context.Background())
	go func() { done <- serve(ctx, r.cfg, r.lim) }()
	select {
	case <-ready:
	case err := <-done:
		cancel()
		r.t.Fatal("the server did not start: ", err)
	}
	r.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				r.t.Error("the server ended with: ", err)
			}
		case <-time.After(patience):
			r.t.Error("the server does not end")
		}
	})
	return r
}

func (r *rig) log() *ledger.Ledger { return r.cfg.Logs[0].Ledger }

func (r *rig) verifier(i int) note.Verifier {
	r.t.Helper()
	vkey, err := record.VKey(r.cfg.Logs[i].Ledger.Origin(), r.keys[i].Public())
	if err != nil {
		r.t.Fatal(err)
	}
	v, err := record.NewVerifier(vkey)
	if err != nil {
		r.t.Fatal(err)
	}
	return v
}

// requireReceipt checks a receipt against the log's key and the event it should be for, and that the log has the entry.
func (r *rig) requireReceipt(c record.Receipt, event string) *record.Entry {
	r.t.Helper()
	e, _, err := c.Verify(r.verifier(0))
	if err != nil {
		r.t.Fatal(err)
	}
	if string(e.Body) != event {
		r.t.Errorf("the receipt is for %s, not for %s", e.Body, event)
	}
	if b, err := r.log().Entry(c.Index); err != nil || !bytes.Equal(b, c.Entry) {
		r.t.Errorf("entry %d is %s (%v), the receipt says %s", c.Index, b, err, c.Entry)
	}
	return e
}

func (r *rig) path(socket string) string { return filepath.Join(r.dir, socket) }

// dial connects a client to sign.sock.
func (r *rig) dial() *api.Client {
	r.t.Helper()
	c, err := api.Dial(r.t.Context(), r.path("sign.sock"))
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		if err := c.Close(); err != nil {
			r.t.Error(err)
		}
	})
	return c
}

// browser returns an HTTP client for http.sock, with connections of its own.
func (r *rig) browser() *http.Client {
	tr := &http.Transport{DisableCompression: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", r.path("http.sock"))
	}}
	r.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: patience, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// reply is an HTTP answer, read.
type reply struct {
	status int
	header http.Header
	body   []byte
}

// do sends an HTTP request; of headers, each is "Name: value".
func (r *rig) do(c *http.Client, method, path, body string, headers ...string) reply {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.t.Context(), method, "http://bulla"+path, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Set(name, value)
	}
	res, err := c.Do(req)
	if err != nil {
		r.t.Fatalf("%s %s %.100s: %v", method, path, body, err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		r.t.Fatalf("%s %s: %v", method, path, err)
	}
	p := reply{res.StatusCode, res.Header, b}
	r.checkReply(method, path, p)
	return p
}

const (
	asJSON  = "Content-Type: application/json"
	asLines = "Content-Type: application/x-ndjson"
)

// failure reads the error in an answer.
func (p reply) failure(t testing.TB) api.FailureDetail {
	t.Helper()
	var f api.Failure
	if err := json.Unmarshal(p.body, &f); err != nil || f.Error.Code == "" || f.Error.Message == "" {
		t.Errorf("%d %s is no error: %v", p.status, p.body, err)
	}
	return f.Error
}

// requireMetric waits until a number has a value, given as a pattern.
func (r *rig) requireMetric(name, value string) {
	r.t.Helper()
	b := r.browser()
	want := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(name) + " " + value + "$")
	var got []byte
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if got = r.do(b, "GET", "/metrics", "").body; want.Match(got) {
			return
		}
	}
	r.t.Errorf("%s never became %s:\n%s", name, value, strings.Join(regexp.MustCompile(`(?m)^bulla_.*$`).FindAllString(string(got), -1), "\n"))
}

// requireUnderway waits until so many events of the first log's wait, in the queue or each for its signature.
func (r *rig) requireUnderway(n int, held <-chan struct{}) {
	r.t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if s, err := r.log().Status(); err == nil && s.Waiting+len(held) == n {
			return
		}
	}
	r.t.Errorf("there are never %d events under way", n)
}

func events(n int, format string) [][]byte {
	out := make([][]byte, n)
	for i := range out {
		out[i] = fmt.Appendf(nil, format, i)
	}
	return out
}
