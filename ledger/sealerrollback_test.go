package ledger_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"bulla/attest"
	"bulla/ledger"
	"bulla/record"
	"bulla/tpm"
)

const other = "test.example/other"

// grown starts the plant and seals three heads, under two values of the counter.
func (p *plant) grown(t *testing.T) {
	t.Helper()
	d := p.start(t)
	d.append(t)
	d.seal(t, ledger.ReasonInterval)
	d.append(t)
	d.seal(t, ledger.ReasonStop)
	d.close(t)
}

// A store that is put back to an older copy: the next start finds it, in the same boot always.
func TestStorePutBack(t *testing.T) {
	t.Parallel()
	p := newPlant(t, origin, other)
	p.grown(t)
	for _, c := range []struct {
		name, found string
		between     func() // copy and putting back
		put         func(disk)
	}{
		{"with the sealer's file", "counter is at", func() { p.grown(t) }, func(old disk) { p.put(t, old) }},
		{"without the sealer's file", "ends before seal", func() { p.grown(t) }, func(old disk) { p.put(t, old, p.sealer()) }},
		{"by one seal", "PCR 13", func() {
			d := p.start(t)
			d.append(t)
			old := p.sealedTwice(t, d)
			p.put(t, old)
		}, func(disk) {}},
		{"one log of two", "log " + other + " ends before seal", func() { p.grown(t) }, func(old disk) {
			one := disk{}
			for path, b := range old {
				if strings.HasPrefix(path, p.logs[1].path) {
					one[path] = b
				}
			}
			p.put(t, one)
		}},
		{"and the machine rebooted, past an increment", "counter is at", func() { p.grown(t); p.restart(t) }, func(old disk) { p.put(t, old) }},
		{"and power was cut, past an increment", "counter is at", func() { p.grown(t); p.reset(t) }, func(old disk) { p.put(t, old) }},
		{"under a seal that was being made", "does not hold the head", func() {
			p.grown(t)
			p.dying(t, &death{at: len(p.dying(t, &death{})) - 1}) // its quote is stored, the logs do not have it
		}, func(old disk) { p.put(t, old, p.sealer()) }},
	} {
		old := p.copy(t)
		c.between()
		now := p.copy(t)
		c.put(old)
		if found := p.requireRollback(t); !strings.Contains(found, c.found) {
			t.Errorf("%s: found %s", c.name, found)
		}
		if c.name == "by one seal" {
			p.put(t, p.kept)
			continue
		}
		p.put(t, now)
		d := p.start(t)
		d.requireHonest(t)
		d.close(t)
	}
}

// sealedTwice makes two seals under one value of the counter, closes the daemon, keeps what is there then, and returns what was on the
// disk between them.
func (p *plant) sealedTwice(t *testing.T, d *daemon) disk {
	t.Helper()
	d.seal(t, ledger.ReasonInterval)
	d.close(t)
	old := p.copy(t)
	d = p.open(t, nil)
	d.append(t)
	d.seal(t, ledger.ReasonInterval)
	d.close(t)
	p.kept = p.copy(t)
	return old
}

// A copy that is younger than the last increment, put back after a reboot of the machine, looks as if the machine had just started:
// neither start nor seals show it, and the verifier admits that the span is not anchored against somebody who could do that. Who holds
// a receipt, an earlier export, or the head that he saw last, sees it.
func TestYoungCopyPutBack(t *testing.T) {
	t.Parallel()
	p := newPlant(t, origin)
	p.grown(t)
	d := p.start(t)
	sealed := d.logs[0].Size()
	old := p.sealedTwice(t, d)
	d = p.open(t, nil)
	lost := d.logs[0].Size() - 1
	entry, err := d.logs[0].Entry(lost)
	if err != nil {
		t.Fatal(err)
	}
	d.close(t)

	p.put(t, old)
	p.restart(t)
	d = p.start(t)
	defer d.close(t)
	for d.logs[0].Size() <= lost {
		d.append(t)
	}
	d.seal(t, ledger.ReasonInterval)
	rules, _, counted := d.findings(t, 0)
	if rules != nil || counted > sealed+2 {
		t.Errorf("findings %v, anchored up to %d of %d", rules, counted, sealed)
	}
	if now, err := d.logs[0].Entry(lost); err != nil || bytes.Equal(now, entry) {
		t.Errorf("a receipt of entry %d must not agree: %v", lost, err)
	}
}

// Something else than bullad has the TPM attest, or extends its PCR: the next start finds it, and so does the next seal, before the
// verifier has anything to find.
func TestForks(t *testing.T) {
	t.Parallel()
	p := newPlant(t, origin)
	p.grown(t)
	extend := func() {
		t.Helper()
		if err := p.attach(t).Extend(t.Context(), sealPCR, [32]byte{1}); err != nil {
			t.Fatal(err)
		}
	}

	// While it runs.
	d := p.start(t)
	extend()
	d.append(t)
	if _, err := d.sealer.Seal(t.Context(), ledger.ReasonInterval, nil); !errors.Is(err, ledger.ErrRollback) || !strings.Contains(err.Error(), "PCR 13") {
		t.Errorf("a seal after a foreign extension: %v", err)
	}
	d.requireHonest(t)
	d.close(t)
	// Before it starts.
	if found := p.requireRollback(t); !strings.Contains(found, "PCR 13") {
		t.Errorf("found %s", found)
	}
	// In a new boot, before it starts: what a fork's seal leaves behind that does not touch the counter.
	p.restart(t)
	p.start(t).close(t)
	p.restart(t)
	extend()
	if found := p.requireRollback(t); !strings.Contains(found, "PCR 13") {
		t.Errorf("found %s", found)
	}
	// A whole fork: somebody starts a copy of store and sealer in a new boot, then puts the true ones back.
	p.restart(t)
	p.start(t).close(t)
	p.restart(t)
	truth := p.copy(t)
	d = p.start(t)
	d.append(t)
	d.seal(t, ledger.ReasonInterval)
	d.requireHonest(t)
	d.close(t)
	p.put(t, truth)
	if found := p.requireRollback(t); !strings.Contains(found, "counter is at") {
		t.Errorf("found %s", found)
	}
	// The counter alone.
	p.restart(t)
	if err := p.attach(t).Increment(t.Context()); err != nil {
		t.Fatal(err)
	}
	if found := p.requireRollback(t); !strings.Contains(found, "counter is at") {
		t.Errorf("found %s", found)
	}
}

// A TPM whose state is put back: what a software TPM cannot withstand. Its counter gives it away, until somebody regrows it; and store and
// TPM put back together are as they once were: only what is held elsewhere shows that.
func TestTPMPutBack(t *testing.T) {
	t.Parallel()
	p := newPlant(t, origin)
	p.grown(t)
	if err := p.device.Stop(); err == nil {
		t.Log("stopped in order") // ours may still hold its one connection
	}
	snapshot, err := p.device.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	old := p.copy(t)
	start := func() {
		t.Helper()
		if err := p.device.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	start()
	p.grown(t)
	if err := errors.Join(p.device.Kill(), p.device.Rollback(snapshot)); err != nil {
		t.Fatal(err)
	}
	start()
	if found := p.requireRollback(t); !strings.Contains(found, "counter is at") {
		t.Errorf("found %s", found)
	}
	p.put(t, old)
	d := p.start(t)
	d.requireHonest(t)
	d.close(t)
}

// A log that is moved to another TPM, or whose TPM was cleared, has none that is its own.
func TestOtherTPM(t *testing.T) {
	t.Parallel()
	p, q := newPlant(t, origin), newPlant(t, other)
	p.grown(t)
	if _, err := q.tpm.Attach(t.Context(), p.enrolment); !errors.Is(err, tpm.ErrOtherMachine) {
		t.Errorf("attached to another TPM: %v", err)
	}
	p.tool(t, "tpm2_clear")
	if _, err := p.tpm.Attach(t.Context(), p.enrolment); !errors.Is(err, tpm.ErrOtherMachine) {
		t.Errorf("attached to a cleared TPM: %v", err)
	}
}

func (p *plant) attach(t *testing.T) *tpm.Machine {
	t.Helper()
	m, err := p.tpm.Attach(t.Context(), p.enrolment)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// tool runs one of the tpm2-tools on the plant's TPM: root does not need our programs.
func (p *plant) tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	if err := p.tpm.Close(); err != nil { // the TPM has one connection
		t.Fatal(err)
	}
	defer p.connect(t)
	cmd := exec.Command(name, args...)
	cmd.Dir = p.dir
	cmd.Env = append(os.Environ(), "TPM2TOOLS_TCTI=swtpm:path="+strings.TrimPrefix(p.device.Address(), "unix:"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
	return string(out)
}

const counterAttributes = "authread|authwrite|ownerread|no_da|nt=counter"

// A TPM that was cleared is another one, although its endorsement key is the same: a key that is made anew is never the enrolled key.
func TestClearedTPMIsAnother(t *testing.T) {
	t.Parallel()
	p := newPlant(t, origin)
	p.tool(t, "tpm2_clear")
	roots, err := os.ReadFile(p.device.Roots())
	if err != nil {
		t.Fatal(err)
	}
	e, err := p.tpm.Enrol(t.Context(), tpm.EnrolConfig{Roots: roots, PCR: sealPCR})
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(e.AKName, p.enrolment.AKName) || !bytes.Equal(e.EK, p.enrolment.EK) {
		t.Errorf("attestation key %x, before %x; the same endorsement key: %t", e.AKName, p.enrolment.AKName, bytes.Equal(e.EK, p.enrolment.EK))
	}
	if _, err := p.tpm.Attach(t.Context(), p.enrolment); !errors.Is(err, tpm.ErrOtherMachine) {
		t.Errorf("attaching to the enrolment from before: %v", err)
	}
}

// redefined has root make the counter anew.
func (p *plant) redefined(t *testing.T) {
	t.Helper()
	p.tool(t, "tpm2_nvundefine", "0x1800B01", "-C", "o")
	p.tool(t, "tpm2_nvdefine", "0x1800B01", "-C", "o", "-s", "8", "-a", counterAttributes)
	p.tool(t, "tpm2_nvincrement", "0x1800B01")
}

// A TPM whose counter was redefined, and the store put back past an increment: the counter goes on above its old value, and the start finds it. So does the verifier, where somebody seals with a sealer of his own nevertheless.
func TestCounterMadeAnew(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		do   func(*plant, *testing.T)
	}{{"redefined", (*plant).redefined}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := newPlant(t, origin)
			p.grown(t)
			old := p.copy(t)
			p.grown(t)
			c.do(p, t)
			p.put(t, old)
			if found := p.requireRollback(t); !strings.Contains(found, "counter is at") {
				t.Errorf("found %s", found)
			}
			p.restart(t)
			d := p.forged(t)
			defer d.close(t)
			if rules, _, _ := d.findings(t, 0); !slices.Equal(rules, []attest.Rule{attest.RuleCounterGrow}) {
				t.Errorf("the verifier finds %v", rules)
			}
		})
		// Within one, nothing shows it: what was sealed since the counter grew last before is not anchored against that, and the verifier
		// says so.
		t.Run(c.name+", put back within an increment", func(t *testing.T) {
			t.Parallel()
			p := newPlant(t, origin)
			p.grown(t)
			d := p.start(t)
			d.append(t)
			counted := d.logs[0].Size()
			old := p.sealedTwice(t, d)
			c.do(p, t)
			p.put(t, old)
			p.restart(t)
			d = p.forged(t)
			defer d.close(t)
			rules, _, at := d.findings(t, 0)
			if rules != nil || at < counted || at > d.logs[0].Size()-4 {
				t.Errorf("the verifier finds %v; anchored up to %d, %d was sealed", rules, at, counted)
			}
		})
	}
}

// forged seals with a sealer's file that was changed to take the counter as it is.
func (p *plant) forged(t *testing.T) *daemon {
	t.Helper()
	now, err := p.attach(t).Counter(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(p.sealer())
	if err != nil {
		t.Fatal(err)
	}
	last := regexp.MustCompile(`"last":\{"clock":\d+,"counter":\d+`)
	clock := regexp.MustCompile(`"clock":\d+`).FindString(last.FindString(string(b)))
	put(t, p.sealer(), last.ReplaceAll(b, []byte(`"last":{`+clock+`,"counter":`+strconv.FormatUint(now-1, 10))))
	b, err = os.ReadFile(p.sealer())
	if err != nil {
		t.Fatal(err)
	}
	put(t, p.sealer(), bytes.Replace(b, []byte(`"last":`), []byte(`"intent":`+strconv.FormatUint(now, 10)+`,"last":`), 1))
	d := p.start(t)
	d.append(t)
	d.seal(t, ledger.ReasonInterval)
	return d
}

// Officers declare a recovery while the log is rolled back: what they decide waits outside it, for a later start too, and is written
// with the enactment. Then events are refused because the log is closed, and sealing goes on.
func TestRecover(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		origins []string // put back; nil: all, with the sealer's file
		between func(t *testing.T, p *plant)
	}{
		{"both logs", nil, func(*testing.T, *plant) {}},
		{"one log", []string{other}, func(*testing.T, *plant) {}},
		{"both logs, after a power cut", nil, func(t *testing.T, p *plant) { p.reset(t) }},
		{"both logs, with a seal under way", nil, func(t *testing.T, p *plant) {
			p.dying(t, &death{at: len(p.dying(t, &death{})) - 3, executed: true})
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := newGovernedPlant(t, origin, other)
			p.grown(t)
			old := p.copy(t, c.origins...)
			p.grown(t)
			c.between(t, p)
			p.put(t, old, pick(len(c.origins) > 0, "", p.sealer()))
			p.requireRollback(t)
			for range 2 { // proposed by one start, enacted by the next
				p.rolledBack(t, func(d *daemon) {
					for _, l := range d.logs {
						if c.origins == nil || slices.Contains(c.origins, l.Origin()) {
							p.council.recover(t, l, d.sealer)
						}
					}
				})
			}
			d := p.start(t)
			d.seal(t, ledger.ReasonInterval)
			d.requireHonest(t)
			for _, l := range d.logs {
				closed := c.origins == nil || slices.Contains(c.origins, l.Origin())
				_, err := appendOne(l, event(t, ""))
				if closed {
					requireCode(t, err, record.CodeForbidden)
				} else if err != nil {
					t.Error(err)
				}
			}
			sealer, err := os.ReadFile(p.sealer())
			if err != nil {
				t.Fatal(err)
			}
			d.close(t)
			// The recovery itself put back is a rollback again.
			old = p.copy(t)
			d = p.start(t)
			d.seal(t, ledger.ReasonInterval)
			d.close(t)
			p.put(t, old)
			put(t, p.sealer(), sealer)
			p.requireRollback(t)
		})
	}
}

// A recovery that ends between the log and the sealer's file is not declared again: the log says that it was.
func TestRecoverStopped(t *testing.T) {
	t.Parallel()
	p := newGovernedPlant(t, origin)
	p.grown(t)
	old := p.copy(t)
	p.grown(t)
	p.put(t, old)
	for i := range 2 {
		var sealer []byte
		p.rolledBack(t, func(d *daemon) {
			var err error
			if sealer, err = os.ReadFile(p.sealer()); err != nil {
				t.Fatal(err)
			}
			p.council.recover(t, d.logs[0], d.sealer)
		})
		if i == 1 {
			put(t, p.sealer(), sealer) // as if it had not come that far
		}
	}
	d := p.start(t)
	d.seal(t, ledger.ReasonInterval)
	d.requireHonest(t)
	d.close(t)
}

// rolledBack has f act while a daemon runs that found the store older than its TPM.
func (p *plant) rolledBack(t testing.TB, f func(d *daemon)) {
	t.Helper()
	d := p.open(t, nil)
	defer d.close(t)
	runSealer(t, d.sealer, func(st ledger.SealerStatus) bool {
		if st.Rollback == "" || !d.alarmed(t, d.logs[len(d.logs)-1]) {
			return false
		}
		f(d)
		return true
	})
}
