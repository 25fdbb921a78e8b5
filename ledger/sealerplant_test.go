package ledger_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bulla/attest"
	"bulla/ceremony"
	"bulla/ledger"
	"bulla/record"
	softhsmtest "bulla/softhsm-test"
	"bulla/store"
	"bulla/tpm"
)

// plant is a TPM with an enrolment, and logs that its seals cover. What is on its disk can be copied and put back.
type plant struct {
	dir       string
	device    *softhsmtest.TPM
	tpm       *tpm.TPM
	enrolment *attest.Enrolment
	policy    ceremony.SealPolicy
	logs      []*plantLog
	kept      disk
	council   *council // who governs the logs; nil: nobody
}

type plantLog struct {
	origin, path string
	devices      *devices
}

// daemon is what has been opened of a plant.
type daemon struct {
	logs   []*ledger.Ledger
	sealer *ledger.Sealer
}

func newPlant(t testing.TB, origins ...string) *plant {
	t.Helper()
	dir, err := os.MkdirTemp("", "plant")
	if err != nil {
		t.Fatal(err)
	}
	p := &plant{dir: dir, policy: ceremony.DefaultSealPolicy(sealPCR)}
	if p.device, err = softhsmtest.CreateTPM(context.Background(), filepath.Join(dir, "t")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(p.tpm.Close(), p.device.Kill(), os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
	})
	p.connect(t)
	roots, err := os.ReadFile(p.device.Roots())
	if err != nil {
		t.Fatal(err)
	}
	if p.enrolment, err = p.tpm.Enrol(context.Background(), tpm.EnrolConfig{Roots: roots, PCR: sealPCR}); err != nil {
		t.Fatal(err)
	}
	if err := ledger.Keep(p.sealer(), p.enrolment); err != nil {
		t.Fatal(err)
	}
	for _, origin := range origins {
		p.create(t, origin, p.enrolment)
	}
	return p
}

// newGovernedPlant makes a plant whose logs have officers.
func newGovernedPlant(t testing.TB, origins ...string) *plant {
	t.Helper()
	p := newPlant(t)
	p.council = newCouncil(t)
	for _, origin := range origins {
		p.create(t, origin, p.enrolment)
	}
	d := p.open(t, nil)
	defer d.close(t)
	for _, l := range d.logs {
		p.council.approveGenesis(t, l)
	}
	return p
}

// create makes one more log.
func (p *plant) create(t testing.TB, origin string, e *attest.Enrolment) {
	t.Helper()
	l := &plantLog{origin: origin, path: filepath.Join(p.dir, strings.ReplaceAll(origin, "/", "_")), devices: newDevices(t)}
	g := l.devices.genesis(t)
	g.Origin, g.TPM, g.Seal = origin, e, p.policy
	if p.council != nil {
		p.council.appoint(g)
	}
	if err := ledger.Create(l.path, l.config(), g); err != nil {
		t.Fatal(err)
	}
	if err := ledger.Cover(p.sealer(), origin); err != nil {
		t.Fatal(err)
	}
	p.logs = append(p.logs, l)
}

func (l *plantLog) config() ledger.Config {
	c := l.devices.config()
	c.Origin, c.Waiting = l.origin, l.path+"-recovery"
	return c
}

func (p *plant) connect(t testing.TB) {
	t.Helper()
	var err error
	if p.tpm, err = tpm.Open(context.Background(), tpm.Config{Address: p.device.Address(), Timeout: 2 * time.Second}); err != nil {
		t.Fatal(err)
	}
}

func (p *plant) sealer() string { return filepath.Join(p.dir, "sealer.json") }

// open opens logs and sealer, with the TPM as fault makes it; it asks nothing of the TPM's state yet.
func (p *plant) open(t testing.TB, fault func(attest.TPM) attest.TPM) *daemon {
	t.Helper()
	d := &daemon{}
	for _, l := range p.logs {
		s, err := store.Open(l.path)
		if err != nil {
			t.Fatal(err)
		}
		opened, err := ledger.Open(l.config(), faultyStore{s, l.devices})
		if err != nil {
			t.Fatal(err, s.Close())
		}
		d.logs = append(d.logs, opened)
	}
	var device attest.TPM
	device, err := p.tpm.Attach(context.Background(), p.enrolment)
	if err != nil {
		t.Fatal(err)
	}
	if fault != nil {
		device = fault(device)
	}
	if d.sealer, err = ledger.OpenSealer(ledger.SealerConfig{Path: p.sealer(), TPM: device, Logs: d.logs, Policy: func() ceremony.SealPolicy { return p.policy }}); err != nil {
		t.Fatal(err)
	}
	return d
}

// start opens the plant as a daemon does that starts: when it returns, the first seal is made.
func (p *plant) start(t testing.TB) *daemon {
	t.Helper()
	d := p.open(t, nil)
	runSealer(t, d.sealer, func(st ledger.SealerStatus) bool { return !st.At.IsZero() })
	return d
}

// requireRollback starts a daemon, which must find that the store is not as the TPM knows it, and must stay with that: events are
// refused, reads go on, no seal is made, and the log has an alarm. It returns what was found.
func (p *plant) requireRollback(t testing.TB) string {
	t.Helper()
	d := p.open(t, nil)
	defer d.close(t)
	var refused error
	st := runSealer(t, d.sealer, func(st ledger.SealerStatus) bool {
		if st.Rollback == "" {
			return false
		}
		if _, err := d.sealer.Seal(context.Background(), ledger.ReasonDemand, nil); !errors.Is(err, ledger.ErrRollback) {
			t.Errorf("a seal on demand: %v", err)
		}
		_, refused = appendOne(d.logs[0], event(t, ""))
		return d.alarmed(t, d.logs[len(d.logs)-1])
	})
	requireCode(t, refused, record.CodeRollback)
	for _, l := range d.logs {
		if !d.alarmed(t, l) {
			t.Errorf("the last entry of %s is no alarm", l.Origin())
		}
	}
	return st.Rollback
}

// alarmed reports whether the last entry of a log is an alarm of a rollback.
func (d *daemon) alarmed(t testing.TB, l *ledger.Ledger) bool {
	t.Helper()
	b, err := l.Entry(l.Size() - 1)
	if err != nil {
		t.Fatal(err)
	}
	e, err := record.ParseEntry(b)
	if err != nil {
		t.Fatal(err)
	}
	if e.Kind != record.KindSystem {
		return false
	}
	what, err := record.ParseSystem(e.Body)
	if err != nil {
		t.Fatal(err)
	}
	return what.Event == record.SystemAlarm && what.Code == record.CodeRollback
}

// runSealer runs a sealer until it is as it should be.
func runSealer(t testing.TB, s *ledger.Sealer, as func(ledger.SealerStatus) bool) ledger.SealerStatus {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !as(s.Status()) {
		select {
		case <-tick.C:
		case err := <-done:
			t.Fatalf("the sealer ended: %v, %+v", err, s.Status())
		}
	}
	st := s.Status()
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return st
}

// append appends an event to each log.
func (d *daemon) append(t testing.TB) {
	t.Helper()
	for _, l := range d.logs {
		mustAppend(t, l, event(t, ""))
	}
}

func (d *daemon) seal(t testing.TB, reason string) {
	t.Helper()
	if _, err := d.sealer.Seal(context.Background(), reason, nil); err != nil {
		t.Fatal(err)
	}
}

func (d *daemon) close(t testing.TB) {
	t.Helper()
	for _, l := range d.logs {
		closed(t, l)
	}
}

// findings replays the seals of a log as the verifier does, and returns the rules that they violate.
func (d *daemon) findings(t testing.TB, i int) (rules []attest.Rule, seals int, counted uint64) {
	t.Helper()
	l := d.logs[i]
	r, err := attest.NewReplay(*l.State().Policy.TPM, l.Origin(), func(size uint64) (record.Hash, bool) {
		root, err := l.RootAt(size)
		return sha256.Sum256([]byte(record.Checkpoint{Origin: l.Origin(), Size: size, Root: root}.Text())), err == nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for i := range l.Size() {
		b, err := l.Entry(i)
		if err != nil {
			t.Fatal(err)
		}
		e, err := record.ParseEntry(b)
		if err != nil {
			t.Fatal(err)
		}
		var found []attest.Finding
		switch e.Kind {
		case record.KindSeal:
			seals++
			found = r.Next(e.Body)
		case record.KindEnactment:
			if x := recoveryIn(t, e.Body); x != nil {
				found = r.Recover(x)
			}
		}
		for _, f := range found {
			t.Logf("%s, entry %d: %s: expected %s, found %s", l.Origin(), i, f.Rule, f.Expected, f.Found)
			rules = append(rules, f.Rule)
		}
	}
	return rules, seals, r.Counted()
}

// requireHonest replays all logs: there must be no finding.
func (d *daemon) requireHonest(t testing.TB) {
	t.Helper()
	for i, l := range d.logs {
		if rules, _, _ := d.findings(t, i); rules != nil {
			t.Errorf("log %s: findings %v", l.Origin(), rules)
		}
		checkLog(t, l)
	}
}

// disk is what was on a plant's disk.
type disk map[string][]byte

// copy reads what is on the disk: of the logs named, or of all, and the sealer's file. The plant must not be open.
func (p *plant) copy(t testing.TB, origins ...string) disk {
	t.Helper()
	out := disk{}
	paths := []string{p.sealer()}
	for _, l := range p.logs {
		for _, origin := range origins {
			if origin != l.origin {
				continue
			}
			paths = append(paths, l.path, l.path+"-wal")
		}
		if len(origins) == 0 {
			paths = append(paths, l.path, l.path+"-wal")
		}
	}
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		out[path] = b
	}
	return out
}

// put puts a copy back; except leaves files as they are.
func (p *plant) put(t testing.TB, c disk, except ...string) {
	t.Helper()
	for path, b := range c {
		switch {
		case len(except) > 0 && path == except[0]:
		case b == nil:
			if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
		default:
			put(t, path, b)
		}
	}
}

// reset cuts the TPM's power.
func (p *plant) reset(t testing.TB) {
	t.Helper()
	if err := p.device.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := p.device.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// restart resets the TPM in order, with TPM2_Shutdown(CLEAR).
func (p *plant) restart(t testing.TB) {
	t.Helper()
	if err := errors.Join(p.tpm.Close(), p.device.Restart(context.Background())); err != nil {
		t.Fatal(err)
	}
	p.connect(t)
}

// hibernate has the TPM go through TPM2_Shutdown(STATE) and TPM2_Startup(CLEAR): PCRs begin anew, the reset count stays, the restart
// count grows (TPM 2.0 Part 1, section 12.2.3, TPM Restart).
func (p *plant) hibernate(t testing.TB) {
	t.Helper()
	if err := p.tpm.Close(); err != nil {
		t.Fatal(err)
	}
	if rc := p.command(t, []byte{0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x45, 0, 1}); rc != 0 {
		t.Fatalf("TPM2_Shutdown(STATE): response code 0x%X", rc)
	}
	p.reset(t)
	p.connect(t)
}

// command gives the TPM one command over a connection of its own, and returns the response code. The plant must not be connected.
func (p *plant) command(t testing.TB, in []byte) uint32 {
	t.Helper()
	c, err := net.Dial("unix", strings.TrimPrefix(p.device.Address(), "unix:"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	out := make([]byte, 4096)
	if _, err := c.Write(in); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(out); err != nil || n < 10 {
		t.Fatalf("%d bytes: %v", n, err)
	}
	return uint32(out[6])<<24 | uint32(out[7])<<16 | uint32(out[8])<<8 | uint32(out[9])
}
