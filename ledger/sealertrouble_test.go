package ledger_test

import (
	"context"
	"encoding/binary"
	"errors"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"bulla/attest"
	"bulla/ledger"
	"bulla/record"
)

// running is a daemon whose sealer runs while events are appended.
type running struct {
	*daemon
	cancel  context.CancelFunc
	done    chan error
	taken   atomic.Int64
	refused atomic.Int64
	stopped chan struct{}
}

func (p *plant) run(t *testing.T, fault func(attest.TPM) attest.TPM) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{daemon: p.open(t, fault), cancel: cancel, done: make(chan error, 1), stopped: make(chan struct{})}
	go func() { r.done <- r.sealer.Run(ctx) }()
	requireSoon(t, "the first seal", func() bool { return !r.sealer.Status().At.IsZero() })
	go func() {
		defer close(r.stopped)
		for ctx.Err() == nil {
			if _, err := appendOne(r.logs[0], event(t, "")); err != nil {
				r.refused.Add(1)
				select {
				case <-time.After(time.Millisecond): // a producer that tries again
				case <-ctx.Done():
				}
				continue
			}
			r.taken.Add(1)
		}
	}()
	return r
}

func (r *running) stop(t *testing.T) {
	t.Helper()
	r.cancel()
	if err := <-r.done; err != nil {
		t.Error(err)
	}
	<-r.stopped
	r.requireHonest(t)
	r.close(t)
}

func (r *running) requireEvents(t *testing.T, n int64) {
	t.Helper()
	before := r.taken.Load()
	requireSoon(t, "events", func() bool { return r.taken.Load() >= before+n })
}

func (r *running) requireSeals(t *testing.T, n uint64) {
	t.Helper()
	before := r.sealer.Status().Number
	requireSoon(t, "seals", func() bool { return r.sealer.Status().Number >= before+n })
}

func requireSoon(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); !is(); {
		if time.Now().After(deadline) {
			t.Fatalf("no %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// alarms are the events of code that a log's system entries report, in order.
func (d *daemon) alarms(t *testing.T, code record.Code) (events []string) {
	t.Helper()
	l := d.logs[0]
	indices, err := l.Kind(record.KindSystem, 0, 1000)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range indices {
		b, err := l.Entry(i)
		if err != nil {
			t.Fatal(err)
		}
		e, err := record.ParseEntry(b)
		if err != nil {
			t.Fatal(err)
		}
		if what, err := record.ParseSystem(e.Body); err != nil {
			t.Fatal(err)
		} else if what.Code == code {
			events = append(events, what.Event)
		}
	}
	return events
}

// A TPM that fails leaves events unharmed for as long as policy allows; then they are refused, and the log says from when until when.
func TestUnsealed(t *testing.T) {
	t.Parallel()
	p := newPlant(t, origin)
	if p.policy.Unsealed != int64(10*time.Minute) {
		t.Errorf("by default events are refused after %v", time.Duration(p.policy.Unsealed))
	}
	p.policy.Interval, p.policy.Unsealed = int64(10*time.Millisecond), int64(700*time.Millisecond)
	broken := &brokenTPM{}
	r := p.run(t, func(device attest.TPM) attest.TPM { broken.TPM = device; return broken })
	for range 2 {
		r.requireSeals(t, 2)
		broken.since.Store(time.Now().UnixNano())
		r.requireEvents(t, 20)
		requireSoon(t, "refusal", func() bool { return r.logs[0].Held() != nil })
		if held := r.logs[0].Held(); held.Code != record.CodeUnsealed || !strings.Contains(held.Message, "no seal for more than 700ms") {
			t.Errorf("refused with %v", held)
		}
		if took := time.Since(time.Unix(0, broken.since.Load())); took < 600*time.Millisecond {
			t.Errorf("refused after %v", took)
		}
		if _, err := appendOne(r.logs[0], event(t, "")); err == nil {
			t.Error("an event was taken")
		} else {
			requireCode(t, err, record.CodeUnsealed)
		}
		broken.since.Store(0)
		r.requireEvents(t, 20)
		r.requireSeals(t, 1)
	}
	requireSoon(t, "recovery in the log", func() bool { return len(r.alarms(t, record.CodeUnsealed)) == 4 })
	if got := r.alarms(t, record.CodeUnsealed); !slices.Equal(got, []string{record.SystemAlarm, record.SystemRecovery, record.SystemAlarm, record.SystemRecovery}) {
		t.Errorf("the log says %v", got)
	}
	r.stop(t)
}

// brokenTPM does not certify while since is set.
type brokenTPM struct {
	attest.TPM
	since atomic.Int64
}

func (b *brokenTPM) CertifyCounter(ctx context.Context, x [32]byte) (attest.Signed, error) {
	if b.since.Load() != 0 {
		return attest.Signed{}, errors.New("the TPM is in failure mode")
	}
	return b.TPM.CertifyCounter(ctx, x)
}

// A seal that fails on demand, with nothing new in the log, is made up for: events must not be refused for it later.
func TestFailureWithoutNewEntries(t *testing.T) {
	t.Parallel()
	p := newPlant(t, origin)
	p.policy.Interval = int64(5 * time.Millisecond)
	broken := &brokenTPM{}
	d := p.open(t, func(device attest.TPM) attest.TPM { broken.TPM = device; return broken })
	failed := false
	runSealer(t, d.sealer, func(st ledger.SealerStatus) bool {
		if !failed && !st.At.IsZero() {
			broken.since.Store(1)
			if _, err := d.sealer.Seal(context.Background(), ledger.ReasonDemand, nil); err == nil {
				t.Error("a broken TPM sealed")
			}
			broken.since.Store(0)
			failed = true
		}
		return failed && st.LastError == "" && st.Number >= 2
	})
	d.close(t)
}

// The TPM hangs, ends within a command, is locked out, has no room, is switched off in order and not: events go on, seals come back by
// themselves, and the log verifies.
func TestTPMTrouble(t *testing.T) {
	t.Parallel()
	p := newPlant(t, origin)
	p.policy.Interval = int64(10 * time.Millisecond)
	r := p.run(t, nil)
	failing := func() {
		t.Helper()
		requireSoon(t, "failed seal", func() bool { return r.sealer.Status().LastError != "" })
		r.requireEvents(t, 50)
	}
	for _, c := range []struct {
		name       string
		begin, end func() error
		fails      bool // seals do, meanwhile
	}{
		{"hangs", p.device.Pause, p.device.Resume, true},
		{"ends within a command", func() error { // stopped with a command before it, then killed
			if err := p.device.Pause(); err != nil {
				return err
			}
			before := r.taken.Load()
			requireSoon(t, "events", func() bool { return r.taken.Load() > before+20 })
			return p.device.Kill()
		}, func() error { return p.device.Start(context.Background()) }, true},
		{"is switched off in order", func() error {
			if err := p.device.Stop(); err != nil {
				t.Log(err) // our connection is in the way: it is off nevertheless
			}
			return nil
		}, func() error { return p.device.Start(context.Background()) }, true},
		{"loses its power", p.device.Kill, func() error { return p.device.Start(context.Background()) }, true},
	} {
		if err := c.begin(); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		failing()
		if err := c.end(); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		r.requireSeals(t, 3)
		r.requireEvents(t, 20)
	}
	if n := r.refused.Load(); n > 0 {
		t.Errorf("%d events were refused", n)
	}
	r.stop(t)

	// What others leave in the TPM: the connection is theirs in between.
	for _, c := range []struct {
		name string
		do   func()
	}{
		{"locked out", func() { p.lockOut(t) }},
		{"slots full", func() { p.fill(t) }},
	} {
		c.do()
		r = p.run(t, nil)
		r.requireSeals(t, 3)
		r.requireEvents(t, 20)
		if n := r.refused.Load(); n > 0 {
			t.Errorf("%s: %d events were refused", c.name, n)
		}
		r.stop(t)
	}
}

// lockOut has the TPM refuse everything under dictionary attack protection.
func (p *plant) lockOut(t *testing.T) {
	t.Helper()
	p.tool(t, "tpm2_dictionarylockout", "-s", "-n", "1", "-t", "1000", "-l", "1000")
	p.tool(t, "tpm2_createprimary", "-C", "o", "-G", "ecc256", "-p", "secret", "-c", "locked.ctx", "-a", "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|sign")
	wrong := func() string {
		if err := p.tpm.Close(); err != nil {
			t.Fatal(err)
		}
		defer p.connect(t)
		cmd := exec.Command("tpm2_sign", "-c", "locked.ctx", "-p", "wrong", "-g", "sha256", "-o", "signature", "sealer.json")
		cmd.Dir = p.dir
		cmd.Env = append(cmd.Environ(), "TPM2TOOLS_TCTI=swtpm:path="+strings.TrimPrefix(p.device.Address(), "unix:"))
		out, err := cmd.CombinedOutput()
		if err == nil {
			t.Fatal("a wrong secret was taken")
		}
		return string(out)
	}
	wrong()
	if out := wrong(); !strings.Contains(out, "lockout") && !strings.Contains(out, "0x921") && !strings.Contains(out, "0x00000921") {
		t.Fatalf("the TPM is not locked out: %s", out)
	}
}

// fill takes all slots of the TPM for objects and sessions, as programs do that end without letting go of them.
func (p *plant) fill(t *testing.T) {
	t.Helper()
	if err := p.tpm.Close(); err != nil {
		t.Fatal(err)
	}
	defer p.connect(t)
	for name, in := range map[string][]byte{"object": createPrimary, "session": startSession} {
		full, last := false, uint32(0)
		for range 70 {
			if rc := p.command(t, in); rc != 0 {
				last, full = rc, rc == 0x902 || rc == 0x903 // TPM_RC_OBJECT_MEMORY, TPM_RC_SESSION_MEMORY
				break
			}
		}
		if !full {
			t.Fatalf("the TPM is not full of %ss: response code 0x%X", name, last)
		}
	}
}

// createPrimary is TPM2_CreatePrimary of a P-256 key of the owner's; startSession is TPM2_StartAuthSession of an HMAC session.
var (
	createPrimary = command(0x8002, 0x131,
		0x40, 0, 0, 1, // the owner
		0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0, // authorisation: empty password
		0, 4, 0, 0, 0, 0, // no secret, no data
		0, 0x18, 0, 0x23, 0, 0xB, 0, 4, 0, 0x72, // ECC, SHA-256, sign
		0, 0, 0, 0x10, 0, 0x18, 0, 0xB, 0, 3, 0, 0x10, 0, 0, 0, 0, // no policy, no symmetric, ECDSA with SHA-256, P-256, no KDF, no point
		0, 0, 0, 0, 0, 0)
	startSession = command(0x8001, 0x176,
		0x40, 0, 0, 7, 0x40, 0, 0, 7, // no key, no bound entity
		0, 16, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, // nonce
		0, 0, 0, 0, 0x10, 0, 0xB) // no salt, HMAC, no symmetric, SHA-256
)

func command(tag uint16, code uint32, rest ...byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, tag)
	b = binary.BigEndian.AppendUint32(b, uint32(10+len(rest)))
	return append(binary.BigEndian.AppendUint32(b, code), rest...)
}

// The TPM's flash wears: the counter is written at a start, at a stop, and when policy says so, never for a seal as such.
func TestIncrements(t *testing.T) {
	t.Parallel()
	p := newPlant(t, origin)
	p.policy.Increment = int64(time.Hour)
	grown := func(want uint64, do func()) {
		t.Helper()
		before, err := p.attach(t).Counter(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		do()
		if after, err := p.attach(t).Counter(t.Context()); err != nil || after-before != want {
			t.Errorf("the counter grew by %d, want %d: %v", after-before, want, err)
		}
	}
	var d *daemon
	grown(1, func() { d = p.start(t) })
	for _, reason := range []string{ledger.ReasonInterval, ledger.ReasonDemand, ledger.ReasonChallenge} {
		grown(0, func() {
			for range 10 {
				d.append(t)
				d.seal(t, reason)
			}
		})
	}
	grown(1, func() { d.seal(t, ledger.ReasonStop) })
	d.close(t)
	p.policy.Increment, p.policy.Interval = int64(300*time.Millisecond), int64(10*time.Millisecond)
	d = p.open(t, nil)
	begin := time.Now()
	runSealer(t, d.sealer, func(st ledger.SealerStatus) bool { return time.Since(begin) > 1200*time.Millisecond && !st.At.IsZero() })
	took := time.Since(begin)
	d.close(t)
	d = p.open(t, nil)
	defer d.close(t)
	rules, _, _ := d.findings(t, 0)
	now, err := p.attach(t).Counter(t.Context())
	if limit := uint64(took/(300*time.Millisecond)) + 1; err != nil || rules != nil || now < p.enrolment.Counter.Value+5 || now > p.enrolment.Counter.Value+2+limit {
		t.Errorf("the counter is at %d after %v, %d when it was enrolled: %v, findings %v", now, took, p.enrolment.Counter.Value, err, rules)
	}
}
