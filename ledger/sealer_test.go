package ledger_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"bulla/attest"
	"bulla/ceremony"
	"bulla/ledger"
	"bulla/record"
	softhsmtest "bulla/softhsm-test"
	"bulla/tpm"
)

const sealPCR = 13

// machine is a TPM with an enrolment, one log, and what is needed to open them again.
type machine struct {
	dir    string
	device *softhsmtest.TPM
	tpm    *tpm.TPM
	d      *devices
	log    string // path
	policy ceremony.SealPolicy
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	dir, err := os.MkdirTemp("", "seal")
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{dir: dir, d: newDevices(t), log: filepath.Join(dir, "log.db")}
	if m.device, err = softhsmtest.CreateTPM(t.Context(), filepath.Join(dir, "t")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(m.device.Kill(), os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
	})
	if m.tpm, err = tpm.Open(t.Context(), tpm.Config{Address: m.device.Address(), Timeout: 2 * time.Second}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.tpm.Close(); err != nil {
			t.Error(err)
		}
	})
	roots, err := os.ReadFile(m.device.Roots())
	if err != nil {
		t.Fatal(err)
	}
	e, err := m.tpm.Enrol(t.Context(), tpm.EnrolConfig{Roots: roots, PCR: sealPCR})
	if err != nil {
		t.Fatal(err)
	}
	g := m.d.genesis(t)
	m.policy = ceremony.DefaultSealPolicy(sealPCR)
	g.TPM, g.Seal = e, m.policy
	if err := ledger.Create(m.log, m.d.config(), g); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(ledger.Keep(m.sealerPath(), e), ledger.Cover(m.sealerPath(), origin)); err != nil {
		t.Fatal(err)
	}
	return m
}

func (m *machine) sealerPath() string { return filepath.Join(m.dir, "sealer.json") }

// open opens the log and its sealer, with the TPM as fault makes it.
func (m *machine) open(t *testing.T, fault func(attest.TPM) attest.TPM) (*ledger.Ledger, *ledger.Sealer) {
	t.Helper()
	l := open(t, m.d, m.log)
	e, err := ledger.Enrolled(m.sealerPath())
	if err != nil && e == nil { // pending: the enrolment is in the genesis as well
		e = l.State().Policy.TPM
	}
	var device attest.TPM
	if device, err = m.tpm.Attach(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	if fault != nil {
		device = fault(device)
	}
	s, err := ledger.OpenSealer(ledger.SealerConfig{Path: m.sealerPath(), TPM: device, Logs: []*ledger.Ledger{l}, Policy: func() ceremony.SealPolicy { return m.policy }})
	if err != nil {
		t.Fatal(err)
	}
	return l, s
}

// replay checks all seals of the log as an auditor does, and returns how many there are.
func replay(t *testing.T, l *ledger.Ledger) int {
	t.Helper()
	r, err := attest.NewReplay(*l.State().Policy.TPM, origin, func(size uint64) (record.Hash, bool) {
		root, err := l.RootAt(size)
		return sha256.Sum256([]byte(record.Checkpoint{Origin: origin, Size: size, Root: root}.Text())), err == nil
	})
	if err != nil {
		t.Fatal(err)
	}
	seals, err := l.Kind(record.KindSeal, 0, 1000)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range seals {
		b, err := l.Entry(i)
		if err != nil {
			t.Fatal(err)
		}
		e, err := record.ParseEntry(b)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range r.Next(e.Body) {
			t.Errorf("seal at entry %d: %s: expected %s, found %s", i, f.Rule, f.Expected, f.Found)
		}
	}
	return len(seals)
}

func TestSeals(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	l, s := m.open(t, nil)
	for i, reason := range []string{ledger.ReasonStart, ledger.ReasonInterval, ledger.ReasonDemand, ledger.ReasonStop} {
		mustAppend(t, l, event(t, ""))
		if n, err := s.Seal(t.Context(), reason, nil); err != nil || n != uint64(i+1) {
			t.Fatalf("seal %d: number %d, %v", i+1, n, err)
		}
	}
	closed(t, l)
	if err := m.device.Stop(); err == nil {
		t.Log("stopped in order") // swtpm serves one client at a time; ours may still hold it
	}
	if err := m.device.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	l, s = m.open(t, nil)
	defer closed(t, l)
	if _, err := s.Seal(t.Context(), ledger.ReasonStart, []byte("nonce of an auditor")); err != nil {
		t.Fatal(err)
	}
	if n := replay(t, l); n != 5 {
		t.Errorf("%d seals, want 5", n)
	}
}

// runUntilSealed runs the sealer's start until it has made its first seal, and stops it.
func runUntilSealed(t *testing.T, s *ledger.Sealer) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for s.Status().At.IsZero() && s.Status().Rollback == "" {
		select {
		case <-tick.C:
		case err := <-done:
			t.Fatalf("the sealer ended: %v, %+v", err, s.Status())
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if st := s.Status(); st.Rollback != "" {
		t.Fatalf("status %+v", st)
	}
}

func put(t testing.TB, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// The first seal of a start quotes what was measured while the machine started too, and is told; those after it keep to the policy. A
// start whose TPM does not answer is made up for.
func TestFirstSealOfAStart(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	l := open(t, m.d, m.log)
	defer closed(t, l)
	device, err := m.tpm.Attach(t.Context(), l.State().Policy.TPM)
	if err != nil {
		t.Fatal(err)
	}
	m.policy.Interval = int64(10 * time.Millisecond)
	told := make(chan []byte, 10)
	s, err := ledger.OpenSealer(ledger.SealerConfig{
		Path: m.sealerPath(), TPM: &silentTPM{TPM: device, left: 2}, Logs: []*ledger.Ledger{l}, Policy: func() ceremony.SealPolicy { return m.policy },
		Boot: []int{0, 1, 10}, Started: func(seal []byte) { told <- seal },
	})
	if err != nil {
		t.Fatal(err)
	}
	runUntilSealed(t, s)
	if _, err := s.Seal(t.Context(), ledger.ReasonDemand, nil); err != nil {
		t.Fatal(err)
	}
	first, err := attest.ParseSeal(<-told)
	if err != nil {
		t.Fatal(err)
	}
	if len(told) != 0 {
		t.Error("a seal that is not of the start was told")
	}
	if got := selected(first); !slices.Equal(got, []int{0, 1, 2, 4, 7, 10, sealPCR}) {
		t.Errorf("the first seal quotes %v", got)
	}
	i, _, err := l.LastKind(record.KindSeal)
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Entry(i)
	if err != nil {
		t.Fatal(err)
	}
	e, err := record.ParseEntry(b)
	if err != nil {
		t.Fatal(err)
	}
	later, err := attest.ParseSeal(e.Body)
	if err != nil {
		t.Fatal(err)
	}
	if got := selected(later); !slices.Equal(got, m.policy.PCRs) {
		t.Errorf("a later seal quotes %v", got)
	}
	replay(t, l)
}

func selected(s *attest.Seal) (out []int) {
	for _, p := range s.PCRs {
		out = append(out, p.Index)
	}
	return out
}

// silentTPM does not certify its counter so many times.
type silentTPM struct {
	attest.TPM
	left int
}

func (s *silentTPM) CertifyCounter(ctx context.Context, x [32]byte) (attest.Signed, error) {
	if s.left--; s.left >= 0 {
		return attest.Signed{}, errors.New("no answer")
	}
	return s.TPM.CertifyCounter(ctx, x)
}
