package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"bulla/ceremony"
	"bulla/ledger"
	"bulla/record"
	softhsmtest "bulla/softhsm-test"
)

// plantlet is a dev appliance's devices and logs within the test, opened and closed like a daemon that is killed.
type plantlet struct {
	t    *testing.T
	t2   *throwaway
	cfg  *Config
	a    *appliance
	said bytes.Buffer // by the daemon's log
	end  func()
}

func newPlantlet(t *testing.T) *plantlet {
	t.Helper()
	dir, err := os.MkdirTemp("", "e") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	p := &plantlet{t: t, t2: &throwaway{dir: dir}}
	t.Cleanup(func() {
		p.kill()
		if err := errors.Join(p.t2.close(), os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
	})
	f := devFlags{dir: dir, logs: 1}
	ctx := t.Context()
	if err := p.t2.create(ctx); err != nil {
		t.Fatal(err)
	}
	if err := p.t2.configure(f, true); err != nil {
		t.Fatal(err)
	}
	if p.cfg, err = loadConfig(p.t2.path("bullad.toml")); err != nil {
		t.Fatal(err)
	}
	p.cfg.TSA = nil
	if err := p.t2.initialize(ctx, p.cfg, io.Discard); err != nil {
		t.Fatal(err)
	}
	return p
}

// start opens the appliance, until its clock knows the time. Nothing is carried out yet.
func (p *plantlet) start() *openLog {
	p.t.Helper()
	p.said.Reset()
	ctx, cancel := context.WithCancel(context.Background())
	a, err := openAppliance(ctx, p.t2.path("bullad.toml"), p.cfg, slog.New(slog.NewTextHandler(&p.said, nil)))
	if err != nil {
		cancel()
		p.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := a.monitor.Run(ctx); !errors.Is(err, context.Canceled) {
			p.t.Error(err)
		}
	}()
	p.a, p.end = a, func() {
		cancel()
		<-done
		if err := a.Close(); err != nil {
			p.t.Error(err)
		}
		p.a, p.end = nil, nil
	}
	p.until(func() bool { return a.clock.Now().HasEstimate })
	return a.logs[0]
}

// kill ends it as it is.
func (p *plantlet) kill() {
	if p.end != nil {
		p.end()
	}
}

func (p *plantlet) until(as func() bool) {
	p.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(30 * time.Second); !as(); <-tick.C {
		if time.Now().After(end) {
			p.t.Fatal("not within 30 s")
		}
	}
}

// approved has a proposal approved by two officers.
func (p *plantlet) approved(l *openLog, content any, lasts time.Duration) *ceremony.Pending {
	p.t.Helper()
	head := l.Head()
	document, err := l.State().Propose(content, "alice", ceremony.Head{Root: head.Root, Size: head.Size}, time.Now().Add(lasts).UnixNano())
	if err != nil {
		p.t.Fatal(err)
	}
	number := l.State().Number()
	p.govern(l, record.KindProposal, &ceremony.Proposed{Document: document, Signature: p.sign("alice", document)})
	p.govern(l, record.KindApproval, &ceremony.Approval{
		Decision: ceremony.Approve, Document: ceremony.DocumentHash(document), Number: number, Officer: "bob", Signature: p.sign("bob", document),
	})
	pending, err := l.Pending(number, ceremony.DocumentHash(document))
	if err != nil {
		p.t.Fatal(err)
	}
	return pending
}

func (p *plantlet) sign(name string, document []byte) string {
	p.t.Helper()
	o, err := softhsmtest.OpenOfficer(p.t2.path("officers"), name)
	if err != nil {
		p.t.Fatal(err)
	}
	signer, err := o.Signer()
	if err != nil {
		p.t.Fatal(err)
	}
	s, err := ceremony.Sign(rand.Reader, document, ceremony.Approve, signer)
	if err != nil {
		p.t.Fatal(err)
	}
	return s
}

func (p *plantlet) govern(l *openLog, kind record.Kind, body any) {
	p.t.Helper()
	b, err := record.MarshalCanonical(body)
	if err != nil {
		p.t.Fatal(err)
	}
	if _, err := l.Govern(p.t.Context(), ledger.Governing{Kind: kind, Body: b}); err != nil {
		p.t.Fatal(err)
	}
}

var errKilled = errors.New("killed")

// interrupted carries a proposal out up to its entry, and is killed there.
func (p *plantlet) interrupted(l *openLog, pending *ceremony.Pending) {
	p.t.Helper()
	x := &executor{p.a, l.LogConfig}
	err := x.Execute(p.t.Context(), l.Ledger, pending, func(string, string) {}, func(any) error { return errKilled })
	if !errors.Is(err, errKilled) {
		p.t.Fatal(err)
	}
	p.kill()
}

// enact carries a proposal out to its end.
func (p *plantlet) enact(l *openLog, pending *ceremony.Pending) {
	p.t.Helper()
	if _, err := l.Enact(p.t.Context(), pending.Proposal.Number, pending.Hash, &executor{p.a, l.LogConfig}); err != nil {
		p.t.Fatal(err)
	}
}

// A daemon that is killed between what it did to a device and the entry that says so finishes at its next start, or undoes it where the
// approvals do not hold any more; and it says which.
func TestEnactmentInterrupted(t *testing.T) {
	t.Parallel()
	p := newPlantlet(t)
	resumed := func(want string) *openLog {
		t.Helper()
		l := p.start()
		p.a.resume(t.Context())
		if !strings.Contains(p.said.String(), want) {
			t.Errorf("it does not say %q:\n%s", want, &p.said)
		}
		return l
	}

	l := p.start()
	p.interrupted(l, p.approved(l, &ceremony.KeyGenerate{Algorithm: "ecdsa-p256", Purpose: ceremony.PurposeLog}, time.Hour))
	l = resumed("an enactment that was interrupted is finished")
	if n := len(l.State().Generated); n != 1 {
		t.Fatalf("%d keys were generated", n)
	}
	key := l.State().Generated[0]

	// One that expires before it can be finished is undone: its key is destroyed.
	pending := p.approved(l, &ceremony.KeyGenerate{Algorithm: "ecdsa-p256", Purpose: ceremony.PurposeLog}, 4*time.Second)
	p.interrupted(l, pending)
	l = p.start()
	p.until(func() bool { return l.State().Approved(pending, p.a.clock.Now()) != nil })
	p.a.resume(t.Context())
	if !strings.Contains(p.said.String(), "an enactment that was interrupted is given up") || len(l.State().Generated) != 1 || len(l.State().Open()) != 0 {
		t.Errorf("%d keys, %d open; it says\n%s", len(l.State().Generated), len(l.State().Open()), &p.said)
	}
	place, err := newPlace(l.Key, &ceremony.KeyGenerate{}, pending.Proposal.Number)
	if err != nil {
		t.Fatal(err)
	}
	if there, err := p.a.devices.exists(t.Context(), place); err != nil || there {
		t.Errorf("its key is still there: %t, %v", there, err)
	}

	// A rotation leaves nothing in a device before its entry: the old key signs on. After it, the new one does.
	old := l.State().Policy.Keys[0]
	pending = p.approved(l, &ceremony.KeyRotate{Old: ceremony.OldSigns, Purpose: ceremony.PurposeLog, SPKI: key.Hash()}, time.Hour)
	p.interrupted(l, pending)
	l = resumed("approved and nothing of it was begun")
	if now := l.State().Policy.Keys[0]; now.Hash() != old.Hash() {
		t.Error("the new key signs already")
	}
	p.enact(l, pending)
	p.kill()
	l = p.start()
	if now := l.State().Policy.Keys[0]; now.Hash() != key.Hash() {
		t.Error("the new key does not sign")
	}

	// What is destroyed cannot be undone: that is recorded.
	pending = p.approved(l, &ceremony.KeyRetire{SPKI: old.Hash()}, time.Hour)
	p.interrupted(l, pending)
	l = resumed("an enactment that was interrupted is finished")
	if past := l.State().Past; len(past) != 1 || past[0].Retired == 0 {
		t.Errorf("%+v", past)
	}
}
