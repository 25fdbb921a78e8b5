package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"

	"bulla/api"
	"bulla/clock"
	"bulla/record"
	"bulla/verify"
)

// drill is one attack or failure.
type drill struct {
	name string
	does string // in a few words
	run  func(ctx context.Context, x *trying) error
}

// drills are all there are; the slowest first.
var drills = []drill{
	{"clock-step", "every time server's clock jumps ahead by an hour", drillClock},
	{"rollback", "the store is put back to an older copy", drillRollback},
	{"stolen-key", "a thief of the log's key rewrites history and signs it", drillStolenKey},
	{"fork", "two copies of the whole appliance go on apart", drillFork},
	{"hsm-loss", "the HSM's token is gone for a while", drillHSM},
	{"tpm-reset", "the TPM loses its power under the running daemon", drillTPMReset},
	{"tpm-clear", "the TPM is cleared while the daemon is stopped", drillTPMClear},
	{"disk-full", "the disk takes no more", drillDisk},
	{"flip", "one bit of what is stored is flipped", drillFlip},
}

// trying is a drill under way.
type trying struct {
	lab      *lab
	drill    *drill
	res      *drillResult
	copies   int
	running  []*devAppliance
	attacked time.Time // what is waited for is timed from here
}

// notRun says why a drill cannot be carried out here.
func (x *trying) notRun(why string) error {
	x.res.Why = why
	return nil
}

// copy makes a copy of the appliance.
func (x *trying) copy() (string, error) {
	x.copies++
	dir := filepath.Join(x.lab.work, fmt.Sprintf("%s-%d", x.drill.name, x.copies))
	return dir, copyAppliance(x.lab.base, dir)
}

// start starts an appliance, which ends with the drill at the latest.
func (x *trying) start(ctx context.Context, dir string, args ...string) (*devAppliance, error) {
	d, err := x.lab.t.startDev(ctx, x.lab.bullad, dir, args...)
	if err == nil {
		x.running = append(x.running, d)
	}
	return d, err
}

// sound starts an appliance and waits until it takes events.
func (x *trying) sound(ctx context.Context, dir string) (*devAppliance, error) {
	d, err := x.start(ctx, dir)
	if err != nil {
		return nil, err
	}
	_, err = d.line(ctx, "ready")
	return d, err
}

// soundCopy copies the appliance and starts the copy.
func (x *trying) soundCopy(ctx context.Context) (*devAppliance, error) {
	dir, err := x.copy()
	if err != nil {
		return nil, err
	}
	return x.sound(ctx, dir)
}

func (x *trying) stop(d *devAppliance) error {
	x.running = slices.DeleteFunc(x.running, func(r *devAppliance) bool { return r == d })
	return d.stop()
}

// attack says what is done now.
func (x *trying) attack(format string, args ...any) {
	x.res.Did, x.attacked = fmt.Sprintf(format, args...), time.Now()
}

// expect waits until something is noticed: look returns what, or nothing yet.
func (x *trying) expect(ctx context.Context, by, what string, look func(context.Context) (string, error)) {
	n := drillNotice{By: by, Expected: what}
	ctx, cancel := context.WithTimeout(ctx, drillPatience)
	defer cancel()
	for {
		limit := drillCall
		if by == byVerifier || by == byExport || by == byStart { // no single call
			limit = drillPatience
		}
		call, end := context.WithTimeout(ctx, limit)
		found, err := look(call)
		end()
		if err == nil && found != "" {
			n.Found, n.Seconds = printable(found, 500), rounded(time.Since(x.attacked))
			break
		}
		if err != nil && ctx.Err() == nil {
			n.Instead = printable(err.Error(), 300)
		}
		select {
		case <-time.After(drillAgain):
			continue
		case <-ctx.Done():
		}
		break
	}
	x.res.Noticed = append(x.res.Noticed, n)
}

// expectRefusal expects events to be refused with a code.
func (x *trying) expectRefusal(ctx context.Context, d *devAppliance, code record.Code) {
	x.expect(ctx, byRefusal, fmt.Sprintf("events are refused with code %s", code), func(ctx context.Context) (string, error) { return d.refused(ctx, code) })
}

// expectAlarm expects an alarm with a code in the log.
func (x *trying) expectAlarm(ctx context.Context, d *devAppliance, code record.Code) {
	x.expect(ctx, byAlarm, fmt.Sprintf("an alarm with code %s in the log", code), func(ctx context.Context) (string, error) {
		return d.alarm(ctx, code, x.lab.size)
	})
}

// expectStatus expects the status to say something.
func (x *trying) expectStatus(ctx context.Context, d *devAppliance, what string, said func(*api.Status) string) {
	x.expect(ctx, byStatus, what, func(ctx context.Context) (string, error) {
		s, err := d.now(ctx)
		if err != nil {
			return "", err
		}
		return said(s), nil
	})
}

// expectRule expects the verifier, given what its user kept, to find a violation of one of some rules.
func (x *trying) expectRule(ctx context.Context, d *devAppliance, opt verify.Options, rules ...string) {
	x.expect(ctx, byVerifier, "bulla verify finds "+strings.Join(rules, " or "), func(ctx context.Context) (string, error) {
		rep, err := d.judge(ctx, opt)
		if err != nil {
			return "", err
		}
		for _, f := range rep.Findings {
			if slices.Contains(rules, f.Rule) {
				return fmt.Sprintf("%s: %s", f.Rule, f.Meaning), nil
			}
		}
		return "", fmt.Errorf("the log is %s", rep.Verdict)
	})
}

// expectNoStart expects the daemon to end at its start, and to say why.
func (x *trying) expectNoStart(ctx context.Context, why, dir string, args ...string) {
	x.expect(ctx, byStart, "the daemon does not start: "+why, func(ctx context.Context) (string, error) {
		d, err := x.start(ctx, dir, args...)
		switch {
		case err == nil:
			return "", errors.Join(errors.New("it started"), x.stop(d))
		case strings.Contains(err.Error(), why):
			return err.Error(), nil
		}
		return "", err
	})
}

// resumes requires that events are taken again, sealed, and verified by the auditor's policy.
func (x *trying) resumes(ctx context.Context, d *devAppliance, after string) error {
	began := time.Now()
	err := d.soon(ctx, "service did not resume", func(ctx context.Context) error {
		_, err := d.take(ctx, map[string]string{"is": "after the failure"})
		return err
	})
	if err != nil {
		return err
	}
	seconds := rounded(time.Since(began))
	if err := x.verified(ctx, d); err != nil {
		return err
	}
	x.res.Resumed = &seconds
	x.res.Service = fmt.Sprintf("resumed %s after %s; the log verifies", lasting(seconds), after)
	return nil
}

// verified requires the log, sealed to its end, to be verified.
func (x *trying) verified(ctx context.Context, d *devAppliance) error {
	if err := d.soon(ctx, "no seal", func(ctx context.Context) error { _, err := d.sealNow(ctx); return err }); err != nil {
		return err
	}
	rep, err := d.judge(ctx, verify.Options{})
	if err != nil {
		return err
	}
	if rep.Verdict != verify.OutcomeVerified {
		var text bytes.Buffer
		if err := rep.WriteText(&text); err != nil {
			return err
		}
		return fmt.Errorf("the log is not verified: %s", printable(text.String(), 1000))
	}
	return nil
}

func drillRollback(ctx context.Context, x *trying) error {
	dir, err := x.copy()
	if err != nil {
		return err
	}
	old, err := x.keep(dir)
	if err != nil {
		return err
	}
	d, err := x.sound(ctx, dir)
	if err != nil {
		return err
	}
	if err := d.work(ctx, "after the copy", 3); err != nil {
		return err
	}
	seen, err := d.seen(ctx)
	if err != nil {
		return err
	}
	if err := x.stop(d); err != nil {
		return err
	}
	newest, err := x.keep(dir)
	if err != nil {
		return err
	}
	if err := x.putBack(old, dir); err != nil {
		return err
	}
	x.attack("The daemon took and sealed 3 events and was stopped; its log and the sealer's file were put back to copies from before, and it was started.")
	if d, err = x.start(ctx, dir); err != nil {
		return err
	}
	x.expectRefusal(ctx, d, record.CodeRollback)
	x.expectAlarm(ctx, d, record.CodeRollback)
	x.expectRule(ctx, d, verify.Options{Earlier: []verify.Earlier{seen}}, "continuity.beyond", "continuity.tree")
	if err := x.stop(d); err != nil {
		return err
	}
	if err := x.putBack(newest, dir); err != nil {
		return err
	}
	if d, err = x.start(ctx, dir); err != nil {
		return err
	}
	return x.resumes(ctx, d, "the newer files were put back and the daemon answered")
}

// keep copies the files of a stopped appliance's logs; putBack puts the copies in their place.
func (x *trying) keep(dir string) (string, error) {
	names, err := logFiles(dir)
	if err != nil {
		return "", err
	}
	x.copies++
	to := filepath.Join(x.lab.work, fmt.Sprintf("%s-kept-%d", x.drill.name, x.copies))
	if err := os.Mkdir(to, 0o700); err != nil {
		return "", err
	}
	for _, name := range names {
		if err := copyFile(filepath.Join(dir, name), filepath.Join(to, name)); err != nil {
			return "", err
		}
	}
	return to, nil
}

func (x *trying) putBack(kept, dir string) error {
	names, err := os.ReadDir(kept)
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := copyFile(filepath.Join(kept, n.Name()), filepath.Join(dir, n.Name())); err != nil {
			return err
		}
	}
	return nil
}

// seen is what an auditor remembers of the log's head.
func (d *devAppliance) seen(ctx context.Context) (verify.Earlier, error) {
	b, err := d.get(ctx, d.prefix+"/checkpoint")
	if err != nil {
		return verify.Earlier{}, err
	}
	return verify.NewEarlier("an earlier head", b)
}

func drillFork(ctx context.Context, x *trying) error {
	d, err := x.soundCopy(ctx)
	if err != nil {
		return err
	}
	if err := d.work(ctx, "on the one copy", 2); err != nil {
		return err
	}
	receipt, err := d.take(ctx, map[string]string{"is": "on the one copy"})
	if err != nil {
		return err
	}
	given, err := receipt.MarshalJSON()
	if err != nil {
		return err
	}
	seen, err := d.seen(ctx)
	if err != nil {
		return err
	}
	if err := x.stop(d); err != nil {
		return err
	}
	if d, err = x.soundCopy(ctx); err != nil {
		return err
	}
	if err := d.work(ctx, "on the other copy", 9); err != nil {
		return err
	}
	if err := x.verified(ctx, d); err != nil { // by itself it is as good as the other
		return err
	}
	x.attack("The appliance was copied with its HSM and TPM, as only software lets itself be; both copies took and sealed events of their own. By itself each is verified. Then somebody who kept a head and a receipt of the one was shown the other.")
	x.expectRule(ctx, d, verify.Options{Earlier: []verify.Earlier{seen}}, "continuity.tree")
	x.expectRule(ctx, d, verify.Options{Receipts: []verify.Receipt{{Name: "a receipt of the other copy", Data: given}}}, "receipt.entry", "receipt.tree")
	x.res.Service = "went on: neither copy can know of the other. Witnesses that see the heads of both would; producers and auditors who keep receipts and heads do"
	return nil
}

func drillHSM(ctx context.Context, x *trying) error {
	if x.lab.tpmSigns {
		return x.notRun("the TPM signs this log: it has no HSM to lose")
	}
	d, err := x.soundCopy(ctx)
	if err != nil {
		return err
	}
	tokens, away := filepath.Join(d.dir, "hsm", "tokens"), filepath.Join(d.dir, "hsm", "away")
	x.attack("The token's directory was moved out of the HSM's sight, as a device that is unplugged.")
	if err := os.Rename(tokens, away); err != nil {
		return err
	}
	x.expectRefusal(ctx, d, record.CodeHSM)
	x.expectStatus(ctx, d, "the status names the fault", x.refusing(record.CodeHSM))
	if err := os.RemoveAll(tokens); err != nil { // the library may have made it anew, empty
		return err
	}
	if err := os.Rename(away, tokens); err != nil {
		return err
	}
	return x.resumes(ctx, d, "the token was back")
}

// refusing looks for the log's fault in the status.
func (x *trying) refusing(code record.Code) func(*api.Status) string {
	return func(s *api.Status) string {
		for _, l := range s.Logs {
			switch {
			case l.Refusing != nil && l.Refusing.Code == code:
				return fmt.Sprintf("refusing (%s): %s", l.Refusing.Code, l.Refusing.Message)
			case l.LastFault != "" && l.Refused[string(code)] > 0:
				return fmt.Sprintf("last fault: %s; refused with code %s: %d", l.LastFault, code, l.Refused[string(code)])
			}
		}
		return ""
	}
}

func drillTPMReset(ctx context.Context, x *trying) error {
	d, err := x.soundCopy(ctx)
	if err != nil {
		return err
	}
	if err := d.work(ctx, "before the TPM lost its power", 1); err != nil {
		return err
	}
	before, err := d.lastSeal(ctx, x.lab.size)
	if err != nil {
		return err
	}
	x.attack("The TPM was killed, without TPM2_Shutdown, and started again.")
	if err := d.faults(ctx, "tpm_off = true\n"); err != nil {
		return err
	}
	x.expect(ctx, byRefusal, "a seal is refused with code tpm", func(ctx context.Context) (string, error) {
		_, err := d.sealNow(ctx)
		var r *api.Refusal
		switch {
		case err == nil:
			return "", errors.New("a seal was made")
		case errors.As(err, &r) && r.Code == record.CodeTPM:
			return r.Error(), nil
		}
		return "", err
	})
	x.expectStatus(ctx, d, "the status has the TPM's last error", func(s *api.Status) string { return s.Machine.Seal.LastError })
	taken := "events were refused as long as the TPM, which signs this log, had no power"
	if x.lab.tpmSigns {
		x.expectRefusal(ctx, d, record.CodeTPM)
	} else {
		taken = "events were taken throughout"
		if _, err := d.take(ctx, map[string]string{"is": "while the TPM has no power"}); err != nil {
			return fmt.Errorf("an event while the TPM has no power: %w", err)
		}
	}
	if err := d.faults(ctx, ""); err != nil {
		return err
	}
	x.expect(ctx, bySeal, "the next seal attests another reset of the TPM", func(ctx context.Context) (string, error) {
		if _, err := d.sealNow(ctx); err != nil {
			return "", err
		}
		now, err := d.lastSeal(ctx, x.lab.size)
		if err != nil || now.Boot == before.Boot {
			return "", err
		}
		return fmt.Sprintf("seal %d, entry %d: reset count %d, before it %d", now.Number, now.Index, now.Boot, before.Boot), nil
	})
	if err := x.resumes(ctx, d, "the TPM was back"); err != nil {
		return err
	}
	x.res.Service = taken + "; seals resumed when the TPM was back; the log verifies"
	return nil
}

// lastSeal is the log's last seal, as it says itself; there are not many from the index on.
func (d *devAppliance) lastSeal(ctx context.Context, from uint64) (sealLine, error) {
	all, err := d.entries(ctx, record.KindSeal, from)
	if err != nil {
		return sealLine{}, err
	}
	if len(all) == 0 {
		return sealLine{}, errors.New("there is no seal")
	}
	h := sealHistory{origin: d.log.Origin}
	if err := h.add(all[len(all)-1]); err != nil {
		return sealLine{}, err
	}
	return h.seals[0], nil
}

func drillTPMClear(ctx context.Context, x *trying) error {
	dir, err := x.copy()
	if err != nil {
		return err
	}
	x.attack("While the daemon was stopped the TPM was cleared (TPM2_Clear), and the daemon was started: its attestation key and its counter were gone.")
	if x.lab.tpmSigns {
		x.expectNoStart(ctx, "no such key in the TPM", dir, "--clear-tpm")
		x.res.Service = "ended: the key that signs this log is gone; bullad export copies the log"
		return nil
	}
	d, err := x.start(ctx, dir, "--clear-tpm")
	if err != nil {
		return err
	}
	x.expectRefusal(ctx, d, record.CodeTPM)
	x.expect(ctx, byRefusal, "the appliance is not ready: not the enrolled TPM", func(ctx context.Context) (string, error) {
		_, err := d.get(ctx, "/health/ready")
		var r *api.Refusal
		switch {
		case err == nil:
			return "", errors.New("the appliance is ready")
		case errors.As(err, &r) && strings.Contains(r.Message, "not the enrolled TPM"):
			return r.Error(), nil
		}
		return "", err
	})
	x.res.Service = "refuses events and serves reads until officers enrol the TPM that is there (bulla ceremony propose tpm.enrol), which this drill leaves out"
	return nil
}

func drillClock(ctx context.Context, x *trying) error {
	d, err := x.soundCopy(ctx)
	if err != nil {
		return err
	}
	s, err := d.now(ctx)
	if err != nil {
		return err
	}
	var after uint64
	for _, l := range s.Logs {
		after = max(after, l.Size)
	}
	x.attack("All %d time servers answer with a clock that is an hour ahead. The machine's own clock was left alone.", len(s.Machine.Clock.Sources))
	if err := d.faults(ctx, strings.Repeat("[[ntp]]\noffset = \"1h\"\n", len(s.Machine.Clock.Sources))); err != nil {
		return err
	}
	x.expect(ctx, byClock, "a round in the log that contradicts the one before it", func(ctx context.Context) (string, error) {
		return d.contradiction(ctx, after)
	})
	x.expectRefusal(ctx, d, record.CodeClock)
	if err := d.faults(ctx, ""); err != nil {
		return err
	}
	return x.resumes(ctx, d, "the servers were honest again")
}

// contradiction looks for a round of measurement that cannot be true if the one before it was.
func (d *devAppliance) contradiction(ctx context.Context, from uint64) (string, error) {
	all, err := d.entries(ctx, record.KindClock, from)
	if err != nil {
		return "", err
	}
	for _, e := range all {
		var c clock.Evidence
		if err := record.UnmarshalCanonical(e.Body, &c); err != nil {
			return "", err
		}
		if c.Round != nil && c.Round.Reason == clock.ReasonDiscontinuity {
			return fmt.Sprintf("entry %d: round %d: %s, the clock is %s", e.Index, c.Round.Number, c.Round.Reason, c.Round.State), nil
		}
	}
	return "", nil
}

func drillDisk(ctx context.Context, x *trying) error {
	d, err := x.soundCopy(ctx)
	if err != nil {
		return err
	}
	x.attack("The kernel refused every write of the daemon to a file (RLIMIT_FSIZE 0, EFBIG), which it takes like a disk without room (ENOSPC).")
	if err := d.faults(ctx, "file_size = 0\n"); err != nil {
		return err
	}
	x.expectRefusal(ctx, d, record.CodeDisk)
	x.expectStatus(ctx, d, "the status names the fault", x.refusing(record.CodeDisk))
	if err := d.faults(ctx, ""); err != nil {
		return err
	}
	return x.resumes(ctx, d, "there was room again")
}

func drillFlip(ctx context.Context, x *trying) error {
	dir, err := x.copy()
	if err != nil {
		return err
	}
	if err := checkOften(dir); err != nil {
		return err
	}
	d, err := x.sound(ctx, dir)
	if err != nil {
		return err
	}
	n, err := flipIn(dir, x.lab.mark)
	if err != nil {
		return err
	}
	x.attack("One bit of an event was flipped in the log's file (in %d places that hold it), behind the back of the running daemon, whose self-check has a full round a second (selfcheck.round). Later the daemon was stopped and started.", n)
	x.expectAlarm(ctx, d, record.CodeDisk)
	x.expectStatus(ctx, d, "the self-check counts a failure", func(s *api.Status) string {
		for i := range s.Machine.SelfCheck {
			if s.Machine.SelfCheck[i].Failures > 0 {
				return selfCheckLine(&s.Machine.SelfCheck[i])
			}
		}
		return ""
	})
	x.expectRule(ctx, d, verify.Options{}, "tree.leaf")
	if _, err := d.take(ctx, map[string]string{"is": "after the flip"}); err != nil {
		return fmt.Errorf("an event after the flip: %w", err)
	}
	if err := x.stop(d); err != nil {
		return err
	}
	x.expectNoStart(ctx, "does not agree with its signed head", dir)
	x.res.Service = "went on until the daemon was stopped; it does not start on a store that contradicts its head, which bullad export copies as evidence"
	return nil
}

// checkOften has an appliance read again all that it has stored once a second.
func checkOften(dir string) error {
	path := filepath.Join(dir, "bullad.toml")
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var c map[string]any
	if err := toml.Unmarshal(b, &c); err != nil {
		return err
	}
	c["selfcheck"] = map[string]any{"round": "1s"}
	if b, err = toml.Marshal(c); err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o600)
}

// flipIn flips the lowest bit of the last byte of a text wherever the logs' files hold it.
func flipIn(dir, text string) (places int, err error) {
	names, err := logFiles(dir)
	if err != nil {
		return 0, err
	}
	for _, name := range names {
		n, err := eachPlace(filepath.Join(dir, name), []byte(text), func(f *os.File, at int64) error {
			_, err := f.WriteAt([]byte{text[len(text)-1] ^ 1}, at+int64(len(text))-1)
			return err
		})
		if err != nil {
			return 0, err
		}
		places += n
	}
	if places == 0 {
		return 0, fmt.Errorf("the store in %s does not hold the event", dir)
	}
	return places, nil
}
