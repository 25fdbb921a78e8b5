package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"bulla/api"
	"bulla/ceremony"
	"bulla/clock"
	"bulla/record"
	"bulla/verify"
)

const governedOrigin = "governed.example/audit"

// governedLog is a log under governance in memory, served as an appliance serves it: it folds with package ceremony, and its devices do
// what they are asked.
type governedLog struct {
	mu      sync.Mutex
	state   ceremony.State
	entries [][]byte
	stored  []record.Hash // the tree, by tlog.StoredHashIndex
	roots   []record.Hash // by size
	tree    record.Tree
	prev    record.Hash
	key     crypto.Signer                      // of the log
	made    map[record.Hash]crypto.Signer      // by key.generate
	ago     time.Duration                      // how old its next entry is
	rolled  bool                               // recoveries wait outside
	waiting api.Waiting                        //
	fail    string                             // why devices fail; "": they do not
	tamper  func(path string, b []byte) []byte // changes answers
	posts   int
}

// newGovernedLog makes a log that began some time ago, whose officers have these keys, as authorized_keys has them. Two are needed, the proposer
// counts.
func newGovernedLog(ago time.Duration, officers ...ceremony.Officer) (*governedLog, error) {
	key, spki, err := p256()
	if err != nil {
		return nil, err
	}
	l := &governedLog{ago: ago, key: key, made: map[record.Hash]crypto.Signer{}, roots: []record.Hash{(&record.Tree{}).Root()}}
	l.state.Root = func(size uint64) (record.Hash, error) {
		if size >= uint64(len(l.roots)) {
			return record.Hash{}, errors.New("not that large yet")
		}
		return l.roots[size], nil
	}
	_, err = l.append(record.KindGenesis, &ceremony.Genesis{
		Clock: clock.DefaultPolicy(), Keys: []ceremony.Key{{Algorithm: "ecdsa-p256", Purpose: ceremony.PurposeLog, SPKI: spki}}, Officers: officers,
		Origin: governedOrigin, ProposerCounts: true, Roles: []ceremony.Role{{Name: ceremony.Producer, UIDs: []uint32{1000}}},
		Seal: ceremony.DefaultSealPolicy(13), Software: "test", Thresholds: map[string]int{ceremony.Default: 2},
	})
	return l, err
}

func p256() (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	return key, spki, err
}

// append adds an entry that the state permits, or says why it does not.
func (l *governedLog) append(kind record.Kind, body any) (uint64, error) {
	e, err := l.next(kind, body)
	if err != nil {
		return 0, err
	}
	b, err := e.Append(nil)
	if err != nil {
		return 0, err
	}
	leaf := record.LeafHash(b)
	next, err := l.state.Apply(e, leaf)
	if err != nil {
		return 0, err
	}
	l.state, l.prev = next, leaf
	l.stored = l.tree.Append(l.stored, leaf)
	l.entries, l.roots = append(l.entries, b), append(l.roots, l.tree.Root())
	return e.Index, nil
}

func (l *governedLog) next(kind record.Kind, body any) (*record.Entry, error) {
	raw, err := record.MarshalCanonical(body)
	e := &record.Entry{Index: uint64(len(l.entries)), Kind: kind, Log: governedOrigin, Prev: l.prev, Body: raw,
		Stamp: clock.Stamp{Sys: time.Now().Add(-l.ago).UnixNano(), Bound: 2_000_000, Age: 5, Round: 1, Epoch: 1, State: clock.Synced, HasEstimate: true}}
	if kind == record.KindEvent {
		e.Producer = &record.Producer{UID: 1000, GID: 1000}
	}
	return e, err
}

// event adds what a producer said.
func (l *governedLog) event() error {
	_, err := l.append(record.KindEvent, map[string]string{"type": "auth.login"})
	return err
}

// checkpoint is the head, signed by the keys given, or else by the log's.
func (l *governedLog) checkpoint(keys ...crypto.Signer) ([]byte, error) {
	if keys == nil {
		keys = []crypto.Signer{l.key}
	}
	var signers []note.Signer
	for _, k := range keys {
		s, err := record.NewSigner(governedOrigin, k)
		if err != nil {
			return nil, err
		}
		signers = append(signers, s)
	}
	n := uint64(len(l.entries))
	return note.Sign(&note.Note{Text: record.Checkpoint{Origin: governedOrigin, Size: n, Root: l.roots[n]}.Text()}, signers...)
}

// file is a file of the log in C2SP tlog-tiles layout.
func (l *governedLog) file(name string) ([]byte, error) {
	if name == "checkpoint" {
		return l.checkpoint()
	}
	tile, ok := record.ParseTilePath(name)
	if !ok {
		return nil, fmt.Errorf("%s is no tile", name)
	}
	if tile.L >= 0 {
		return tlog.ReadTileData(tile, tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
			out := make([]tlog.Hash, len(indexes))
			for i, x := range indexes {
				if x >= int64(len(l.stored)) {
					return nil, errors.New("not that large yet")
				}
				out[i] = l.stored[x]
			}
			return out, nil
		}))
	}
	var b []byte
	for i := tile.N * record.TileWidth; i < tile.N*record.TileWidth+int64(tile.W); i++ {
		b = record.AppendBundle(b, l.entries[i])
	}
	return b, nil
}

// export writes the log into a directory.
func (l *governedLog) export(dir string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	write := func(name string) error {
		b, err := l.file(name)
		path := filepath.Join(dir, filepath.FromSlash(name))
		return errors.Join(err, os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, b, 0o644))
	}
	err := verify.Tiles(uint64(len(l.entries)), func(t tlog.Tile) error { return write(record.TilePath(t)) })
	return errors.Join(err, write("checkpoint"))
}

// ServeHTTP answers like http.sock.
func (l *governedLog) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	l.mu.Lock()
	defer l.mu.Unlock()
	b, err := l.answer(r)
	var refused *ceremony.Refused
	switch {
	case errors.As(err, &refused):
		w.WriteHeader(http.StatusForbidden)
		b, err = json.Marshal(api.Failure{Error: api.FailureDetail{Code: record.CodeForbidden, Message: refused.Error(), Field: "ceremony." + string(refused.Rule)}})
	case err != nil:
		w.WriteHeader(http.StatusNotFound)
		b, err = json.Marshal(api.Failure{Error: api.FailureDetail{Code: record.CodeInvalid, Message: err.Error()}})
	}
	if l.tamper != nil {
		b = l.tamper(r.URL.Path, b)
	}
	if err == nil {
		_, err = w.Write(b)
	}
	if err != nil {
		panic(err) // net/http reports it, and the client fails
	}
}

func (l *governedLog) answer(r *http.Request) ([]byte, error) {
	path, of := strings.CutPrefix(r.URL.Path, "/logs/log/")
	switch {
	case r.URL.Path == "/v1/status":
		return json.Marshal(api.Status{Logs: []api.LogStatus{{Name: "log", Origin: governedOrigin, Size: uint64(len(l.entries))}}})
	case !of:
		return nil, errors.New("there is no such path")
	case r.Method == http.MethodPost:
		l.posts++
		body, err := io.ReadAll(io.LimitReader(r.Body, api.MaxCeremony))
		if err == nil {
			err = record.CheckCanonical(body, record.MaxDepth-1)
		}
		if err != nil {
			return nil, err
		}
		b, err := l.govern(path, body)
		if refused := (*ceremony.Refused)(nil); errors.As(err, &refused) {
			_, e := l.append(record.KindAccess, &record.Access{Action: "ceremony.call", Denied: true, Query: refused.Error(), Role: ceremony.Security})
			err = errors.Join(err, e)
		}
		return b, err
	case path == "v1/governance":
		var out []byte
		for _, b := range l.entries {
			e, err := record.ParseEntry(b)
			if err != nil {
				return nil, err
			}
			if ceremony.Governs(e.Kind) || e.Kind == record.KindAccess {
				out = append(append(out, b...), '\n')
			}
		}
		return out, nil
	case path == "v1/recovery":
		return json.Marshal(l.waiting)
	}
	return l.file(path)
}

func (l *governedLog) govern(path string, body []byte) ([]byte, error) {
	switch {
	case path == "v1/proposals":
		b, p, err := ceremony.ParseProposed(body)
		if err != nil {
			return nil, err
		}
		if l.rolled {
			l.waiting.Proposals = append(l.waiting.Proposals, *b)
			return json.Marshal(api.Taken{Number: p.Number, Needed: 2, Given: 1, Missing: "another approval"})
		}
		return l.take(record.KindProposal, b, p.Number)
	case path == "v1/approvals":
		a, err := ceremony.ParseApproval(body)
		if err != nil {
			return nil, err
		}
		if l.rolled {
			l.waiting.Decisions = append(l.waiting.Decisions, *a)
			return json.Marshal(api.Taken{Number: a.Number, Needed: 2, Given: 1 + len(l.waiting.Decisions)})
		}
		return l.take(record.KindApproval, a, a.Number)
	}
	var n uint64
	if _, err := fmt.Sscanf(path, "v1/proposals/%d/enact", &n); err != nil {
		return nil, err
	}
	var in api.Enact
	if err := record.UnmarshalCanonical(body, &in); err != nil {
		return nil, err
	}
	return l.enact(n, &in)
}

// take adds an entry and says where the proposal stands.
func (l *governedLog) take(kind record.Kind, body any, number uint64) ([]byte, error) {
	index, err := l.append(kind, body)
	if err != nil {
		return nil, err
	}
	out := api.Taken{Number: number, Index: &index, Missing: "it is not open any more"}
	if number == 0 {
		out.Given, out.Needed, out.Missing = len(l.state.GenesisVotes()), 2, ""
		if err := l.state.Ready(); err != nil {
			out.Missing = err.Error()
		}
	}
	for _, p := range l.state.Open() {
		if p.Proposal.Number != number {
			continue
		}
		out.Given, out.Needed, out.Missing = len(p.Approvals), p.Needed, ""
		if err := l.state.Approved(p, here()); err != nil {
			out.Missing = err.Error()
		}
	}
	return json.Marshal(out)
}

// enact carries out a proposal.
func (l *governedLog) enact(n uint64, in *api.Enact) ([]byte, error) {
	for _, body := range l.outside() { // a recovery comes in with its enactment
		if _, err := l.append(body.kind, body.body); err != nil {
			return nil, err
		}
	}
	e := &ceremony.Enactment{Document: in.Document, Number: n, Failed: l.fail, Steps: []ceremony.Step{{Did: "asked the device", Answer: "it \u202edid", Time: string(record.AppendTime(nil, time.Now().UnixNano()))}}}
	after := func() {}
	missing := ""
	for _, p := range l.state.Open() {
		if p.Proposal.Number != n || l.fail != "" {
			continue
		}
		if err := l.state.Approved(p, here()); err != nil {
			missing = err.Error()
		}
		var outcome any
		var err error
		if outcome, after, err = l.do(p.Proposal.Asks()); err != nil {
			return nil, err
		}
		if outcome != nil {
			if e.Outcome, err = record.MarshalCanonical(outcome); err != nil {
				return nil, err
			}
		}
	}
	out := api.Enacted{Number: n, DryRun: in.DryRun, Failed: e.Failed, Steps: e.Steps, Outcome: e.Outcome}
	if in.DryRun {
		out.Missing = missing
		return json.Marshal(out)
	}
	index, err := l.append(record.KindEnactment, e)
	if err != nil {
		return nil, err
	}
	after()
	out.Index = &index
	return json.Marshal(out)
}

type outsideBody struct {
	kind record.Kind
	body any
}

// outside takes what waits outside the log.
func (l *governedLog) outside() (all []outsideBody) {
	for i := range l.waiting.Proposals {
		all = append(all, outsideBody{record.KindProposal, &l.waiting.Proposals[i]})
	}
	for i := range l.waiting.Decisions {
		all = append(all, outsideBody{record.KindApproval, &l.waiting.Decisions[i]})
	}
	l.waiting = api.Waiting{}
	return all
}

// do is what devices do.
func (l *governedLog) do(asks any) (outcome any, after func(), err error) {
	switch c := asks.(type) {
	case *ceremony.KeyGenerate:
		key, spki, err := p256()
		k := ceremony.Key{Algorithm: c.Algorithm, Purpose: c.Purpose, SPKI: spki}
		return &k, func() { l.made[k.Hash()] = key }, err
	case *ceremony.KeyRotate:
		key := l.made[c.SPKI]
		signed, err := l.checkpoint(key, l.key)
		return &ceremony.Rotated{Checkpoint: string(signed)}, func() { l.key = key }, err
	case *ceremony.RecoveryDeclare:
		return &ceremony.Recovered{}, func() {}, nil
	}
	return nil, func() {}, nil
}

// serveGoverned serves a log on http.sock in dir until stop is called.
func serveGoverned(l *governedLog, dir string) (stop func() error, err error) {
	listener, err := net.Listen("unix", filepath.Join(dir, "http.sock"))
	if err != nil {
		return nil, err
	}
	s := &http.Server{Handler: l, ReadHeaderTimeout: 10 * time.Second}
	done := make(chan error, 1)
	go func() { done <- s.Serve(listener) }()
	return func() error {
		err := s.Shutdown(context.Background())
		if served := <-done; !errors.Is(served, http.ErrServerClosed) {
			err = errors.Join(err, served)
		}
		return err
	}, nil
}

// keygen makes an officer's key with ssh-keygen: FILE and FILE.pub.
func keygen(file string, options ...string) (ceremony.Officer, error) {
	out, err := exec.Command("ssh-keygen", append([]string{"-q", "-C", "", "-f", file}, options...)...).CombinedOutput()
	if err != nil {
		return ceremony.Officer{}, fmt.Errorf("ssh-keygen: %w: %s", err, out)
	}
	return appointed(filepath.Base(file), file+".pub")
}

// sshAgent runs an ssh-agent in dir until stop is called; the officers' keys in the files are in it.
func sshAgent(dir string, files ...string) (socket string, stop func() error, err error) {
	socket = filepath.Join(dir, "agent.sock")
	cmd := exec.Command("ssh-agent", "-D", "-a", socket)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", nil, err
	}
	if err := cmd.Start(); err != nil {
		return "", nil, err
	}
	stop = func() error {
		err := cmd.Process.Kill()
		if exit := (*exec.ExitError)(nil); !errors.As(cmd.Wait(), &exit) {
			err = errors.Join(err, errors.New("ssh-agent ended by itself"))
		}
		return err
	}
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil { // it says its socket when that listens
		return "", nil, errors.Join(err, stop())
	}
	for _, file := range files {
		add := exec.Command("ssh-add", "-q", file)
		add.Env = append(os.Environ(), "SSH_AUTH_SOCK="+socket)
		if b, err := add.CombinedOutput(); err != nil {
			return "", nil, errors.Join(fmt.Errorf("ssh-add: %w: %s", err, b), stop())
		}
	}
	return socket, stop, nil
}

// council is a governed log with three officers, whose keys are files in dir: alice's alone, bob's in ssh-agent too, carol's as well.
type council struct {
	t      testing.TB
	log    *governedLog
	dir    string
	socket string // of ssh-agent
}

func newCouncil(t testing.TB) *council { return newCouncilOf(t, 0) }

// newCouncilOf has a log that began some time ago.
func newCouncilOf(t testing.TB, ago time.Duration) *council {
	t.Helper()
	dir, err := os.MkdirTemp("", "bulla") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	c := &council{t: t, dir: dir}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	var stop func() error
	c.log, c.socket, stop, err = convene(dir, ago)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// convene makes officers' keys, an agent that holds bob's and carol's, and a log that is served; all in dir.
func convene(dir string, ago time.Duration) (l *governedLog, socket string, stop func() error, err error) {
	var officers []ceremony.Officer
	for _, o := range [][]string{{"alice", "-t", "ed25519", "-N", ""}, {"bob", "-t", "ecdsa", "-b", "256", "-N", ""}, {"carol", "-t", "rsa", "-b", "3072", "-N", ""}} {
		officer, err := keygen(filepath.Join(dir, o[0]), o[1:]...)
		if err != nil {
			return nil, "", nil, err
		}
		officers = append(officers, officer)
	}
	if l, err = newGovernedLog(ago, officers...); err != nil {
		return nil, "", nil, err
	}
	socket, stopAgent, err := sshAgent(dir, filepath.Join(dir, "bob"), filepath.Join(dir, "carol"))
	if err != nil {
		return nil, "", nil, err
	}
	stopLog, err := serveGoverned(l, dir)
	if err != nil {
		return nil, "", nil, errors.Join(err, stopAgent())
	}
	return l, socket, func() error { return errors.Join(stopLog(), stopAgent()) }, nil
}

// bulla runs the command, and returns its exit code and what it printed. Officers sign with the files of their keys.
func (c *council) bulla(arguments ...string) (code int, out, errOut string) {
	c.t.Helper()
	if i := slices.Index(arguments, "--as"); i >= 0 && !slices.Contains(arguments, "--key") && !slices.Contains(arguments, "--signature") {
		arguments = append(slices.Clone(arguments), "--key", c.path(arguments[i+1]))
	}
	var stdout, stderr bytes.Buffer
	code = run(append([]string{"--socket", filepath.Join(c.dir, "http.sock"), "ceremony"}, arguments...), strings.NewReader(""), &stdout, &stderr)
	return code, stdout.String(), stderr.String()
}

// ok runs the command, which must succeed.
func (c *council) ok(arguments ...string) string {
	c.t.Helper()
	code, out, errOut := c.bulla(arguments...)
	if code != exitOK {
		c.t.Fatalf("bulla ceremony %s exits with %d: %s", strings.Join(arguments, " "), code, errOut)
	}
	return out
}

// fails runs the command, which must end with the code and say all of why.
func (c *council) fails(code int, why []string, arguments ...string) {
	c.t.Helper()
	got, out, errOut := c.bulla(arguments...)
	missing := slices.DeleteFunc(slices.Clone(why), func(w string) bool { return strings.Contains(errOut, w) })
	if got != code || len(missing) > 0 {
		c.t.Errorf("bulla ceremony %s exits with %d, want %d, and does not say %q: %s\n%s", strings.Join(arguments, " "), got, code, missing, errOut, out)
	}
}

// path is a file in the council's directory.
func (c *council) path(name string) string { return filepath.Join(c.dir, name) }

// expired has alice propose what has expired by now, though no entry is from after it. Its number is 1.
func (c *council) expired() {
	c.t.Helper()
	c.log.mu.Lock()
	defer c.log.mu.Unlock()
	in := &c.log.state.Policy
	n := c.log.state.Next
	document, err := c.log.state.Propose(&ceremony.PolicySet{Clock: in.Clock, Quotas: ceremony.Quotas{Streams: 5}, Roles: in.Roles, Seal: in.Seal}, "alice",
		ceremony.Head{Root: c.log.roots[n], Size: n}, time.Now().Add(-c.log.ago/2).UnixNano())
	if err != nil {
		c.t.Fatal(err)
	}
	file, err := os.ReadFile(c.path("alice"))
	if err != nil {
		c.t.Fatal(err)
	}
	key, err := ssh.ParsePrivateKey(file)
	if err != nil {
		c.t.Fatal(err)
	}
	signature, err := ceremony.Sign(rand.Reader, document, ceremony.Approve, key)
	if err != nil {
		c.t.Fatal(err)
	}
	if _, err := c.log.append(record.KindProposal, &ceremony.Proposed{Document: document, Signature: signature}); err != nil {
		c.t.Fatal(err)
	}
}

// begin has the genesis approved.
func (c *council) begin() *council {
	c.t.Helper()
	for _, name := range []string{"alice", "bob"} {
		c.ok("approve", "--genesis", "--as", name)
	}
	c.log.mu.Lock()
	defer c.log.mu.Unlock()
	if err := c.log.event(); err != nil {
		c.t.Fatal(err)
	}
	return c
}

// propose has alice propose another quota of streams.
func (c *council) propose(streams int, more ...string) string {
	c.t.Helper()
	return c.ok(append([]string{"propose", "policy.set", "--set", "quotas.streams=" + strconv.Itoa(streams), "--as", "alice"}, more...)...)
}
