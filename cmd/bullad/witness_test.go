package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"golang.org/x/mod/sumdb/tlog"

	"bulla/ceremony"
	"bulla/clock"
	"bulla/ledger"
	"bulla/record"
	"bulla/store"
)

const witnessedOrigin = "test.example/log"

// still is a clock that knows nothing.
type still struct{}

func (still) Now() clock.Stamp { return clock.Stamp{Sys: time.Now().UnixNano(), State: clock.Unknown} }

// witnessedLog is a log with a key of each kind, in memory.
func witnessedLog(t *testing.T) *ledger.Ledger {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cfg := ledger.Config{Origin: witnessedOrigin, Clock: still{}, Signer: func(k ceremony.Key) (ledger.Signer, error) {
		if k.Purpose == ceremony.PurposeInterop {
			return ledger.Signer{Signer: ed, Device: record.CodeHSM}, nil
		}
		return ledger.Signer{Signer: key, Device: record.CodeHSM}, nil
	}}
	g := &ceremony.Genesis{Origin: witnessedOrigin, Clock: clock.DefaultPolicy(), Software: "test"}
	for _, k := range []struct {
		algorithm, purpose string
		public             any
	}{{"ecdsa-p256", ceremony.PurposeLog, key.Public()}, {"ed25519", ceremony.PurposeInterop, ed.Public()}} {
		spki, err := x509.MarshalPKIXPublicKey(k.public)
		if err != nil {
			t.Fatal(err)
		}
		g.Keys = append(g.Keys, ceremony.Key{Algorithm: k.algorithm, Purpose: k.purpose, SPKI: spki})
	}
	path := filepath.Join(t.TempDir(), "log.db")
	if err := ledger.Create(path, cfg, g); err != nil {
		t.Fatal(err)
	}
	s, err := store.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	l, err := ledger.Open(cfg, s)
	if err != nil {
		t.Fatal(err, s.Close())
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// cosigner is an honest witness, as C2SP tlog-witness has it.
type cosigner struct {
	key  ed25519.PrivateKey
	vkey string
	size uint64
	root record.Hash
}

func newCosigner(t *testing.T) *cosigner {
	t.Helper()
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	vkey, err := record.WitnessVKey("witness.example/w", pub)
	if err != nil {
		t.Fatal(err)
	}
	return &cosigner{key: key, vkey: vkey}
}

// line is the cosignature of a checkpoint's text.
func (c *cosigner) line(text string) string {
	v, err := record.NewWitnessVerifier(c.vkey)
	if err != nil {
		panic(err)
	}
	raw := binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint32(nil, v.KeyHash()), 1700000000)
	raw = append(raw, ed25519.Sign(c.key, record.CosignatureInput(1700000000, []byte(text)))...)
	return fmt.Sprintf("— %s %s\n", v.Name(), base64.StdEncoding.EncodeToString(raw))
}

func (c *cosigner) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body) // what is cut does not parse
	head, signed, _ := bytes.Cut(body, []byte("\n\n"))
	lines := strings.Split(string(head), "\n")
	text, _, _ := strings.Cut(string(signed), "\n\n")
	cp, err := record.ParseCheckpoint(text + "\n")
	var old uint64
	if _, bad := fmt.Sscanf(lines[0], "old %d", &old); r.URL.Path != "/prefix/add-checkpoint" || err != nil || bad != nil || strings.Count(string(signed), "— ") != 2 {
		http.Error(w, "malformed", http.StatusBadRequest)
		return
	}
	if old != c.size {
		w.Header().Set("Content-Type", "text/x.tlog.size")
		w.WriteHeader(http.StatusConflict)
		fmt.Fprintf(w, "%d\n", c.size)
		return
	}
	var proof tlog.TreeProof
	for _, l := range lines[1:] {
		h, err := tlog.ParseHash(l)
		if err != nil {
			http.Error(w, "malformed", http.StatusBadRequest)
			return
		}
		proof = append(proof, h)
	}
	if old > 0 && tlog.CheckTree(proof, int64(cp.Size), cp.Root, int64(old), c.root) != nil || old == 0 && len(proof) > 0 {
		http.Error(w, "bad proof", http.StatusUnprocessableEntity)
		return
	}
	c.size, c.root = cp.Size, cp.Root
	fmt.Fprint(w, c.line(cp.Text()))
}

// witnessing is an appliance of one log and one witness.
func witnessing(t *testing.T, vkey string, h http.Handler) (*appliance, *ledger.Ledger, *[]string) {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	l := witnessedLog(t)
	lc := LogConfig{Name: "log", Origin: witnessedOrigin, Interop: "x", File: "/x", Key: "x"}
	a := &appliance{
		cfg: &Config{State: t.TempDir(), Logs: []LogConfig{lc}, Witnesses: []WitnessConfig{{Name: "w", URL: srv.URL + "/prefix", VKey: vkey}}},
		log: slog.New(slog.DiscardHandler), logs: []*openLog{{lc, l}},
	}
	if err := a.openWitnesses(); err != nil {
		t.Fatal(err)
	}
	var alarms []string
	a.witnesses.alarm = func(_ context.Context, message string) error {
		alarms = append(alarms, message)
		return nil
	}
	return a, l, &alarms
}

func grow(t *testing.T, l *ledger.Ledger, n int) {
	t.Helper()
	for range n {
		if _, err := l.Record(t.Context(), record.KindSystem, []byte(`{"event":"stop"}`)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestWitnessCosigns(t *testing.T) {
	t.Parallel()
	c := newCosigner(t)
	a, l, alarms := witnessing(t, c.vkey, c)
	w := a.witnesses
	turn := func() {
		t.Helper()
		if err := w.turn(t.Context(), w.all[0], l); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range []int{0, 1, 0, 300, 7} {
		grow(t, l, n)
		turn()
		if s := w.state[witnessOf{witnessedOrigin, "w"}]; s.size != l.Size() || s.fault != "" || s.time != 1700000000 {
			t.Fatalf("%+v at size %d", s, l.Size())
		}
	}
	notes := w.cosigned(witnessedOrigin)
	if len(notes) != 1 || !bytes.HasPrefix(notes[0], l.Checkpoint()) && !strings.HasPrefix(string(notes[0]), l.Head().Text()) || !strings.HasSuffix(string(notes[0]), c.line(l.Head().Text())) {
		t.Errorf("%q", notes)
	}
	// What was kept is known after a restart, and a witness that lost its memory begins anew.
	alarm := w.alarm
	if err := a.openWitnesses(); err != nil {
		t.Fatal(err)
	}
	w = a.witnesses
	w.alarm = alarm
	if s := w.state[witnessOf{witnessedOrigin, "w"}]; s.size != l.Size() {
		t.Errorf("%+v", s)
	}
	c.size = 0
	grow(t, l, 1)
	turn()
	// A witness that another instance of the log showed less to is brought up.
	c.size, c.root = 3, mustRoot(t, l, 3)
	grow(t, l, 1)
	turn()
	if s := w.state[witnessOf{witnessedOrigin, "w"}]; s.size != l.Size() || len(*alarms) != 0 {
		t.Errorf("%+v, %q", s, *alarms)
	}
	// One that knows more is an alarm, once, however the log grows; and so is another tree.
	c.size += 1000
	for range 3 {
		grow(t, l, 2)
		turn()
	}
	c.size, c.root = 3, record.Hash{}
	for range 3 {
		grow(t, l, 2)
		turn()
	}
	if len(*alarms) != 2 || !strings.Contains((*alarms)[0], "knows a tree of log test.example/log over") || !strings.Contains((*alarms)[1], "knows another tree of log test.example/log over 3 entries") {
		t.Errorf("%q", *alarms)
	}
	out := collected(t, gauges(a.witnessGauges()))
	problems, err := promlint.New(strings.NewReader(out)).Lint()
	if err != nil || len(problems) > 0 || !strings.Contains(out, `bulla_witness_conflicts_total{log="log",witness="w"} 2`) {
		t.Errorf("%v %v\n%s", problems, err, out)
	}
	if s := a.witnessStatus(); len(s) != 1 || s[0].Conflicts != 2 || s[0].Failures != 6 || s[0].Log != "log" || !strings.Contains(s[0].Conflict, "another tree") {
		t.Errorf("%+v", s)
	}
}

func mustRoot(t *testing.T, l *ledger.Ledger, size uint64) record.Hash {
	t.Helper()
	root, err := l.RootAt(size)
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// A store that is not the one that a witness saw is found out without the witness.
func TestWitnessedHeadIsGone(t *testing.T) {
	t.Parallel()
	c := newCosigner(t)
	a, l, alarms := witnessing(t, c.vkey, c)
	w := a.witnesses
	grow(t, l, 9)
	if err := w.turn(t.Context(), w.all[0], l); err != nil {
		t.Fatal(err)
	}
	other := witnessedLog(t)
	for _, n := range []int{1, 12} {
		grow(t, other, n)
		if err := w.turn(t.Context(), w.all[0], other); err != nil {
			t.Fatal(err)
		}
	}
	if len(*alarms) != 2 || !strings.Contains((*alarms)[0], "cosigned a head of log test.example/log over 10 entries, and the log has 2") || !strings.Contains((*alarms)[1], "it was rewritten") {
		t.Errorf("%q", *alarms)
	}
}

// Nothing that a witness answers but a cosignature is kept, and nothing of it disturbs.
func TestWitnessesThatMisbehave(t *testing.T) {
	t.Parallel()
	c := newCosigner(t)
	stranger := newCosigner(t)
	answer := func(status int, kind, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", kind)
			w.WriteHeader(status)
			fmt.Fprint(w, body)
		}
	}
	size := func(body string) http.HandlerFunc { return answer(409, "text/x.tlog.size", body) }
	for _, x := range []struct {
		about string
		h     http.HandlerFunc
		want  string
	}{
		{"nothing", answer(200, "text/plain", ""), "is no cosignature"},
		{"no signature", answer(200, "text/plain", "hello\n"), "is no cosignature"},
		{"a cosignature of something else", answer(200, "text/plain", c.line("other.example/log\n1\nMSaNjJjKJBLy1QAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n")), "is no cosignature"},
		{"another's cosignature", answer(200, "text/plain", stranger.line("x")), "is no cosignature"},
		{"too much", answer(200, "text/plain", strings.Repeat("x", maxWitnessBody+1)), "more than 65536 bytes"},
		{"a redirect", answer(307, "text/plain", ""), "307 Temporary Redirect"},
		{"an unknown log", answer(404, "text/plain", "unknown log\n"), "is the log with its Ed25519 key known there?"},
		{"409 of another type", answer(409, "text/plain", "3\n"), "does not say the size"},
		{"409 without a number", size("x\n"), "does not say the size"},
		{"409 with two numbers", size("3\n4\n"), "does not say the size"},
		{"409 with a long number", size("99999999999999999999\n"), "does not say the size"},
		{"409 with 03", size("03\n"), "does not say the size"},
		{"409 without end", size("0\n"), "knew another size at each of 4 requests"},
		{"hanging up", func(w http.ResponseWriter, _ *http.Request) { panic(http.ErrAbortHandler) }, "EOF"},
	} {
		a, l, alarms := witnessing(t, c.vkey, x.h)
		w := a.witnesses
		if err := w.turn(t.Context(), w.all[0], l); err != nil {
			t.Fatal(err)
		}
		s := w.state[witnessOf{witnessedOrigin, "w"}]
		if !strings.Contains(s.fault, x.want) || s.failures != 1 || s.size != 0 || len(*alarms) != 0 || len(w.cosigned(witnessedOrigin)) != 0 {
			t.Errorf("%s: %+v, alarms %q", x.about, s, *alarms)
		}
	}
}

func TestWitnessConfiguration(t *testing.T) {
	t.Parallel()
	c := newCosigner(t)
	valid := func() *Config {
		return &Config{Logs: []LogConfig{{Interop: "x"}}, Witnesses: []WitnessConfig{{URL: "https://w.example/a/", VKey: c.vkey}}}
	}
	good := valid()
	if err := good.validateWitnesses(); err != nil || good.Witnesses[0].Name != "witness.example/w" {
		t.Errorf("%+v: %v", good.Witnesses, err)
	}
	soon := duration(time.Millisecond)
	for about, change := range map[string]func(*Config){
		"witness[0].vkey":           func(c *Config) { c.Witnesses[0].VKey = "w+1+2" },
		"witness[0].url":            func(c *Config) { c.Witnesses[0].URL = "ftp://w.example/" },
		"must be the prefix":        func(c *Config) { c.Witnesses[0].URL = "https://w.example/?a=b" },
		"witness[1]: its name":      func(c *Config) { c.Witnesses = append(c.Witnesses, c.Witnesses[0]) },
		"witness[0].interval":       func(c *Config) { c.Witnesses[0].Interval = &soon },
		"log[0].interop: witnesses": func(c *Config) { c.Logs[0].Interop = "" },
		"more than 64":              func(c *Config) { c.Witnesses = make([]WitnessConfig, 65) },
	} {
		c := valid()
		change(c)
		if err := c.validateWitnesses(); err == nil || !strings.Contains(err.Error(), about) {
			t.Errorf("%s: %v", about, err)
		}
	}
}

func TestWitnessNotesThatCannotBeRead(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), witnessFile)
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readWitnessNotes(path); err == nil || errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}
