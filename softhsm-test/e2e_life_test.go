package softhsmtest_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"bulla/api"
	"bulla/ceremony"
	"bulla/record"
	"bulla/verify"
)

// tokenLost is the heading of the script that ends a log; all others are the life of one appliance.
const tokenLost = "Loss of the token"

// TestLife is the whole life of an appliance, by the scripts of docs/ceremonies.md as they stand: genesis, change of policy, rotation under load,
// a key destroyed, officers replaced, PCRs approved, another TPM, and in the end a backup that was put back and is declared, and the log that
// succeeds. It verifies from the genesis alone.
func TestLife(t *testing.T) {
	t.Parallel()
	l := newLife(t, func(heading string) bool { return heading != tokenLost })
	l.begin()

	// Governed and rotated under load; no event is refused.
	traffic := startLoad(t, l.dir, "", 3)
	traffic.requireMore(patience, 50)
	l.follow("Change of policy")
	traffic.requireMore(patience, 20)
	t.Logf("the longest time between two acknowledgements during the rotation: %v", l.longestWait(func() { l.follow("Rotation of the log's key") }))
	traffic.requireMore(patience, 20)
	l.follow("Rotation of the log's key") // the old key is destroyed
	l.follow("Change of officers")
	l.sh("ssh-add -q ../officers/dave")
	l.follow("Loss of an officer")
	l.sh("cd ../officers; ssh-add -q -d bob; ssh-add -q bob-new")
	traffic.requireMore(patience, 20)
	given, refused := traffic.end()
	if len(refused) > 0 {
		t.Errorf("events were refused: %v", refused)
	}
	policy := l.policy("auditor.policy")
	leaf := policy.Genesis["example.org/audit"]
	if printed := readFile(t, filepath.Join(l.work, "genesis.txt")); !bytes.Contains(printed, fmt.Appendf(nil, "genesis leaf hash %x\n", leaf[:])) {
		t.Errorf("the policy is not of the genesis that init printed: %s", printed)
	}
	h := newHistory(t, &verify.Policy{VKeys: append(l.vkeys(), policy.VKeys...)})
	h.add(t, given[:10]) // by the first key
	h.add(t, given[10:])
	w := browse(t, l.dir)
	h.check(t, w)
	w.requireSeal(t)
	w.requireVerified(t, policy, h.sample...)
	l.challenge("auditor.policy", akName(t, w))
	l.sh("bulla export --out before; bulla attest challenge-new before --ek-roots ../roots.pem --out old.json")

	// An update of the kernel. The twin has it; after the approval the machine gets it, too.
	l.follow("Approved values of PCRs")
	l.follow("Approved values of PCRs")
	l.take("", "with a sealed PIN")
	update, _ := extended(4, "kernel 6.12.9")
	l.extend(update)
	l.tool = l.tpm
	l.follow("Approved values of PCRs") // on the twin
	l.tool = l.own
	l.follow("Approved values of PCRs")
	l.stop()
	l.sh("tpm2_pcrextend " + update)
	l.start()
	l.take("", "after the update")

	// The twin's TPM in the place of the machine's own.
	l.stop()
	l.plug(l.tpm)
	l.sh("tpm2_clear -Q -c p") // nothing of another owner is in it
	l.writePIN()
	l.follow("Another TPM")
	l.requireRefused(record.CodeTPM, "bullad tpm-prepare")
	l.follow("Another TPM")
	l.take("", "with another TPM")
	w = browse(t, l.dir)
	w.requireSeal(t)
	w.requireVerified(t, policy, h.sample...)
	l.sh("(cat auditor.policy; echo ak " + akName(t, w) + ") > first.policy") // of the genesis
	l.sh("! bulla challenge --policy first.policy 2> refused.txt; grep 'the officers enrolled another TPM' refused.txt")
	l.sh("(cat auditor.policy; grep -o 'ak 000b.*' refused.txt) > second.policy")
	l.challenge("second.policy", lineOf(readFile(t, filepath.Join(l.work, "second.policy")), "ak"))
	l.firstDay(akName(t, w), lineOf(readFile(t, filepath.Join(l.work, "second.policy")), "ak"))

	// A backup, events that it lacks, and the backup put back.
	l.stop()
	backup := l.copyDisk()
	l.start()
	for range 20 {
		l.take("", "that the backup lacks")
	}
	lost := l.take("", "the last that the backup lacks")
	if err := os.WriteFile(filepath.Join(l.work, "receipt.json"), lost, 0o600); err != nil {
		t.Fatal(err)
	}
	browse(t, l.dir).requireSeal(t)
	l.stop()
	l.putBack(backup)
	l.start()
	l.requireRefused(record.CodeRollback, "recovery.declare")
	l.follow("Recovery, and the log that succeeds")
	l.configureSuccessor()
	l.follow("Recovery, and the log that succeeds")
	l.take("example.org/audit-2", "of the log that succeeds")

	l.follow("What happened")
	l.follow("What happened")
	l.requireFollowed()
	w = browse(t, l.dir)
	w.prefix = "/logs/audit"
	report := w.requireVerified(t, policy, append(h.sample, verify.Receipt{Name: "lost.json", Data: lost})...)
	if last := report.Receipts[len(report.Receipts)-1]; last.Status != verify.Lost {
		t.Errorf("the receipt of what was lost: %+v", last)
	}
	l.requireCeremonies("policy.set bob", "key.generate bob", "key.rotate carol", "key.retire bob", "officers.set bob", "officers.set dave", "key.generate bob", "key.rotate bob",
		"pcr.approve bob", "tpm.enrol bob", "recovery.declare bob")
	for name, want := range map[string]string{"minutes-0.html": "carol", "minutes-1.md": "quotas.streams", "minutes-3.md": "key.rotate", "minutes-11.html": "disk failed", "minutes-successor.md": "example.org/audit"} {
		if b, err := os.ReadFile(filepath.Join(l.work, name)); err != nil || !bytes.Contains(b, []byte(want)) {
			t.Errorf("%s has no %s: %v\n%.2000s", name, want, err, b)
		}
	}
	l.stop()
}

// TestLossOfToken is the end of a log whose key is gone for good: its last head, its export, and another log that names it.
func TestLossOfToken(t *testing.T) {
	t.Parallel()
	l := newLife(t, func(heading string) bool { return heading == "Genesis" || heading == tokenLost })
	l.begin()
	l.take("", "that is kept")
	browse(t, l.dir).requireSeal(t)
	if err := os.RemoveAll(l.path("hsm/tokens")); err != nil {
		t.Fatal(err)
	}
	l.requireRefused(record.CodeHSM, "")
	l.follow(tokenLost)

	l.newMachine()
	l.follow(tokenLost)
	l.requireFollowed()
	l.take("", "of another log")
	w := browse(t, l.dir)
	w.requireSeal(t)
	w.requireVerified(t, l.policy("auditor-2.policy"))
	if genesis := string(w.entriesOf(t, record.KindGenesis)[0]); !strings.Contains(genesis, `"predecessor":{"origin":"example.org/audit",`) {
		t.Errorf("the genesis names no predecessor: %s", genesis)
	}
	l.stop()
}

// begin makes the log, by its script. It takes no event before its officers have approved it.
func (l *life) begin() {
	l.t.Helper()
	l.follow("Genesis")
	l.requireRefused(record.CodeForbidden, "approval")
	l.follow("Genesis")
	l.follow("Genesis")
	l.follow("Genesis")
}

// challenge has the TPM attest the head, for auditors who trust the genesis, and so what the officers have made of the log's keys and its TPM
// since. Without a genesis nothing says that whoever replaced the keys might.
func (l *life) challenge(policy, ak string) {
	l.t.Helper()
	l.sh("bulla challenge --policy " + policy + " | grep '^verified'")
	l.sh("bulla challenge --genesis $(awk '/^genesis/ {print $2}' auditor.policy) | grep '^verified'")
	l.sh("(grep '^log ' auditor.policy; echo ak " + ak + ") > keys.policy")
	l.sh("! bulla challenge --policy keys.policy 2> refused.txt; grep 'a ceremony replaced its key .*, and the policy has no genesis' refused.txt")
}

// firstDay is docs/operations.md for an auditor who comes after the keys and the TPM were replaced; and for one who knew the old TPM, as the
// export and the challenge from before do, and first.policy.
func (l *life) firstDay(old, ak string) {
	l.t.Helper()
	l.sh(`cp ../roots.pem makers.pem
		bulla export --out evidence
		bulla attest challenge-new evidence --ek-roots makers.pem --out challenge.json 2> made.txt
		grep 'attestation key ` + ak + `;' made.txt
		bulla attest activate challenge.json --out answer.json
		bulla attest challenge-check challenge.json answer.json evidence --ek-roots makers.pem | tee checked.txt
		grep -x 'ak ` + ak + `' checked.txt
		bulla policy init --ek-roots makers.pem --out day.policy
		grep '^ak ' checked.txt >> day.policy
		code=0; bulla verify evidence --policy day.policy --no-memory > report.txt || code=$?
		test $code = 2; grep -o 'ak ` + old + `' report.txt | head -n 1 >> day.policy
		bulla verify evidence --policy day.policy --no-memory
		bulla challenge --policy day.policy
		bulla seal list evidence --plot seals.svg
		bulla seal list evidence --plot -`)
	exits := func(code int, words, args string) {
		l.t.Helper()
		l.sh(fmt.Sprintf("code=0; bulla attest %s > /dev/null 2> said.txt || code=$?\ncat said.txt; test $code = %d; grep '%s' said.txt", args, code, words))
	}
	exits(0, "attestation key "+ak+";", "challenge-new --ek-roots makers.pem")
	exits(0, "attestation key "+old+";", "challenge-new before --ek-roots makers.pem")
	exits(69, "the challenge is for the attestation key "+old, "activate old.json")
	exits(2, "made for a TPM that officers replaced", "challenge-check old.json answer.json evidence --ek-roots makers.pem")
	exits(0, "ak line names an old one; if it is right, add the line: ak "+ak, "challenge-new evidence --policy first.policy --ek-roots makers.pem")
	exits(0, "ak line names an old one; if it is right, add the line: ak "+ak, "challenge-check challenge.json answer.json --policy first.policy --ek-roots makers.pem")
	exits(2, "a ceremony replaced its key .*, and the policy has no genesis", "challenge-new --policy keys.policy --ek-roots makers.pem")
	exits(1, "not certified by those that you trust", "challenge-new evidence --ek-roots "+l.own.Roots())
	exits(2, "whose endorsement key is not certified", "challenge-new evidence --policy auditor.policy --ek-roots "+l.own.Roots())
	l.sh("sed 's/^genesis ..../genesis 0000/' auditor.policy > other.policy; echo ak " + old + " > old.policy")
	exits(1, "the policy says 0000", "challenge-new evidence --policy other.policy --ek-roots makers.pem")
	exits(2, "the policy has no genesis of example.org/audit to trust that from", "challenge-new evidence --policy old.policy --ek-roots makers.pem")
	l.sh("echo ak 000b$(printf '2%.0s' {1..64}) > wrong.policy")
	exits(1, "not one of the policy.s ak lines", "challenge-new evidence --policy wrong.policy --ek-roots makers.pem")
}

// requireCeremonies compares what bulla ceremony list has written: actions, and who approved beside alice, from the first proposal on.
func (l *life) requireCeremonies(want ...string) {
	l.t.Helper()
	var all []ceremony.Ceremony
	if err := json.Unmarshal(readFile(l.t, filepath.Join(l.work, "ceremonies.json")), &all); err != nil {
		l.t.Fatal(err)
	}
	var got []string
	for _, c := range all[1:] {
		if !c.Enacted || c.Proposer != "alice" || c.Needed != 2 || len(c.Approved) != 2 {
			l.t.Errorf("%+v", c)
			continue
		}
		got = append(got, c.Action+" "+c.Approved[1])
	}
	if genesis := strings.Join(all[0].Approved, " "); genesis != "alice bob carol" || !slices.Equal(got, want) {
		l.t.Errorf("the genesis was approved by %s; these were enacted: %q", genesis, got)
	}
}

// take has the log take an event as soon as it does, and returns the receipt.
func (l *life) take(log, what string) (receipt []byte) {
	l.t.Helper()
	c := dial(l.t, l.dir)
	requireSoon(l.t, func() error {
		r, err := c.Append(l.t.Context(), log, fmt.Appendf(nil, `{"type":"life.test","data":{"event":%q}}`, what))
		if err == nil {
			receipt, err = r.MarshalJSON()
		}
		return err
	})
	return receipt
}

// requireRefused waits until an event is refused, with a code, and with words of what to do about it.
func (l *life) requireRefused(code record.Code, words string) {
	l.t.Helper()
	c := dial(l.t, l.dir)
	requireSoon(l.t, func() error {
		_, err := c.Append(l.t.Context(), "", []byte(`{"type":"life.test"}`))
		var refused *api.Refusal
		if !errors.As(err, &refused) || refused.Code != code || !strings.Contains(refused.Message, words) {
			return fmt.Errorf("an event: %v, want it to be refused with code %s and %q", err, code, words)
		}
		return nil
	})
}

// longestWait runs f while a producer sends an event as soon as the last was acknowledged, and returns the longest time that one took. None may be
// refused.
func (l *life) longestWait(f func()) (longest time.Duration) {
	l.t.Helper()
	c := dial(l.t, l.dir)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
			}
			sent := time.Now()
			if _, err := c.Append(l.t.Context(), "", []byte(`{"type":"life.test"}`)); err != nil {
				l.t.Errorf("an event meanwhile: %v", err)
				return
			}
			longest = max(longest, time.Since(sent))
		}
	}()
	f()
	close(stop)
	<-done
	return longest
}

// policy is one that bulla policy init wrote before anything was changed: from the genesis alone.
func (l *life) policy(name string) *verify.Policy {
	l.t.Helper()
	b, err := os.ReadFile(filepath.Join(l.work, name))
	if err != nil {
		l.t.Fatal(err)
	}
	p, err := verify.ParsePolicy(b)
	if err != nil {
		l.t.Fatal(err)
	}
	return p
}

// vkeys are the log's verifier keys now.
func (l *life) vkeys() []string {
	l.t.Helper()
	var st api.Status
	browse(l.t, l.dir).getJSON(l.t, "/v1/status", &st)
	return st.Logs[0].VKeys
}

// ready reports whether the daemon serves officers: it knows the time.
func (l *life) ready(w *web) error {
	status, b, err := w.do(l.t.Context(), "GET", "/v1/status", "", "")
	if err == nil && (status != http.StatusOK || !bytes.Contains(b, []byte(`"synced"`))) {
		err = fmt.Errorf("GET /v1/status: %d %s", status, b)
	}
	return err
}
