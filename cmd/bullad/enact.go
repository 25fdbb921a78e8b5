package main

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"bulla/attest"
	"bulla/ceremony"
	"bulla/clock"
	"bulla/hsm"
	"bulla/ledger"
	"bulla/record"
	"bulla/tpm"
)

// executor does to this machine's devices what a log's officers have approved.
type executor struct {
	a  *appliance
	lc LogConfig
}

var _ ledger.Executor = (*executor)(nil)

// Rehearse implements ledger.Executor.
func (x *executor) Rehearse(ctx context.Context, l *ledger.Ledger, p *ceremony.Pending) ([]string, error) {
	job, err := x.job(l, p)
	if err != nil {
		return nil, err
	}
	return job.rehearse(ctx)
}

// Execute implements ledger.Executor.
func (x *executor) Execute(ctx context.Context, l *ledger.Ledger, p *ceremony.Pending, did func(what, answer string), commit func(outcome any) error) error {
	job, err := x.job(l, p)
	if err != nil {
		return err
	}
	if _, err := job.rehearse(ctx); err != nil {
		return err
	}
	return job.execute(ctx, did, commit)
}

// job is one action on the devices.
type job interface {
	rehearse(ctx context.Context) (steps []string, err error)
	// execute is only called after rehearse found nothing in its way.
	execute(ctx context.Context, did func(what, answer string), commit func(outcome any) error) error
}

func (x *executor) job(l *ledger.Ledger, p *ceremony.Pending) (job, error) {
	base := work{x, l, p.Proposal.Number, l.State()}
	switch c := p.Proposal.Asks().(type) {
	case *ceremony.PolicySet:
		return &setPolicy{base, c}, nil
	case *ceremony.OfficersSet:
		return &setOfficers{}, nil
	case *ceremony.KeyGenerate:
		return &generateKey{work: base, KeyGenerate: c}, nil
	case *ceremony.KeyRotate:
		return &rotateKey{base, c}, nil
	case *ceremony.KeyRetire:
		return &retireKey{base, c}, nil
	case *ceremony.PCRApprove:
		return &approvePCRs{base, c}, nil
	case *ceremony.TPMEnrol:
		return &enrolTPM{base, c}, nil
	case *ceremony.RecoveryDeclare:
		return &declareRecovery{base, c}, nil
	}
	return nil, refusedf(record.CodeInvalid, "%s is not carried out while the appliance serves", p.Proposal.Action)
}

// work is what every action works with.
type work struct {
	*executor
	l      *ledger.Ledger
	number uint64
	state  ceremony.State
}

func refusedf(code record.Code, format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	return &ledger.Refusal{Code: code, Message: err.Error(), Err: err}
}

// device is the refusal for a device's failure.
func device(err error) error {
	var r *ledger.Refusal
	if err == nil || errors.As(err, &r) {
		return err
	}
	return refusedf(record.CodeHSM, "%w", err)
}

// setPolicy makes another policy that of the clock and the sealer.
type setPolicy struct {
	work
	*ceremony.PolicySet
}

func (j *setPolicy) rehearse(context.Context) ([]string, error) {
	machine := j.Clock != j.state.Policy.Clock || !slices.Equal(j.Seal.PCRs, j.state.Policy.Seal.PCRs)
	if machine && len(j.a.logs) > 1 {
		return nil, refusedf(record.CodeInvalid, "the machine has one clock and one seal PCR for its %d logs: policies on them cannot differ from log to log", len(j.a.logs))
	}
	if err := j.a.monitor.Governable(j.Clock); err != nil {
		return nil, refusedf(record.CodeInvalid, "%w", err)
	}
	return []string{"the policy governs from its enactment on; the clock records that it does"}, nil
}

func (j *setPolicy) execute(_ context.Context, _ func(what, answer string), commit func(outcome any) error) error {
	if j.Clock == j.state.Policy.Clock {
		return commit(nil)
	}
	return j.a.monitor.Govern(j.Clock, func() error { return commit(nil) })
}

// setOfficers changes nothing but the log.
type setOfficers struct{}

func (*setOfficers) rehearse(context.Context) ([]string, error) {
	return []string{"the officers and thresholds govern from their enactment on"}, nil
}

func (*setOfficers) execute(_ context.Context, _ func(what, answer string), commit func(outcome any) error) error {
	return commit(nil)
}

// generateKey makes a key in its device.
type generateKey struct {
	work
	*ceremony.KeyGenerate
	uri   string
	there bool // an attempt that was interrupted made it
}

func (j *generateKey) rehearse(ctx context.Context) ([]string, error) {
	first, err := j.a.cfg.uri(j.lc, j.Purpose)
	if err == nil {
		j.uri, err = newPlace(first, j.KeyGenerate, j.number)
	}
	if err != nil {
		return nil, refusedf(record.CodeInvalid, "%w", err)
	}
	if j.there, err = j.a.devices.exists(ctx, j.uri); err != nil {
		return nil, device(err)
	}
	if !j.there {
		return []string{fmt.Sprintf("generate an %s key for %q: %s", j.Algorithm, j.Purpose, shown(j.uri))}, nil
	}
	k, _, err := j.a.devices.describe(ctx, j.uri, hsm.Algorithm(j.Algorithm), j.Purpose)
	if err != nil {
		return nil, device(err)
	}
	for _, l := range j.a.logs {
		if _, known := l.State().Find(k.Hash()); known {
			return nil, refusedf(record.CodeConflict, "there is a key already: %s, which log %s knows; choose another label", shown(j.uri), l.Name)
		}
	}
	return []string{"take the key that an interrupted attempt made: " + shown(j.uri)}, nil
}

func (j *generateKey) execute(ctx context.Context, did func(what, answer string), commit func(outcome any) error) error {
	make, how := j.a.devices.generate, "generated"
	if j.there {
		make, how = j.a.devices.describe, "found the key of an interrupted attempt"
	}
	k, _, err := make(ctx, j.uri, hsm.Algorithm(j.Algorithm), j.Purpose)
	if err != nil {
		return device(err)
	}
	hash := k.Hash()
	did(fmt.Sprintf("%s: %s key %s", how, j.Algorithm, shown(j.uri)), fmt.Sprintf("SHA-256 of its SPKI %x", hash[:]))
	return commit(&k)
}

// undo destroys the key that an interrupted attempt made.
func (j *generateKey) undo(ctx context.Context, did func(what, answer string)) error {
	k, _, err := j.a.devices.describe(ctx, j.uri, hsm.Algorithm(j.Algorithm), j.Purpose)
	if err != nil {
		return err
	}
	if _, err := j.a.devices.destroy(ctx, j.uri, k); err != nil {
		return err
	}
	did("destroyed the key that an interrupted attempt made: "+shown(j.uri), "it is gone")
	return nil
}

// rotateKey has a generated key sign from its enactment on.
type rotateKey struct {
	work
	*ceremony.KeyRotate
}

func (j *rotateKey) rehearse(ctx context.Context) ([]string, error) {
	if _, err := j.key(ctx); err != nil {
		return nil, err
	}
	if j.Purpose == ceremony.PurposePCR {
		return []string{fmt.Sprintf("PCR values are approved by the key %x from its enactment on", j.SPKI[:])}, nil
	}
	who := "the new key"
	if j.Old == ceremony.OldSigns {
		who = "the old key and the new one"
	}
	return []string{"sign the log's head by " + who, fmt.Sprintf("the key %x signs from its enactment on", j.SPKI[:])}, nil
}

// key opens the key that is to sign.
func (j *rotateKey) key(ctx context.Context) (ledger.Signer, error) {
	i := slices.IndexFunc(j.state.Generated, func(k ceremony.Key) bool { return k.Hash() == j.SPKI })
	if i < 0 {
		return ledger.Signer{}, refusedf(record.CodeConflict, "there is no generated key %x", j.SPKI[:])
	}
	s, err := j.a.signer(ctx, j.lc, j.state.Generated[i])
	return s, device(err)
}

func (j *rotateKey) execute(ctx context.Context, did func(what, answer string), commit func(outcome any) error) error {
	if j.Purpose == ceremony.PurposePCR {
		return commit(nil)
	}
	to, err := j.key(ctx)
	if err != nil {
		return err
	}
	checkpoint, err := j.l.Handover(j.Purpose, to, j.Old == ceremony.OldSigns)
	if err != nil {
		return device(err)
	}
	head := sha256.Sum256([]byte(checkpoint))
	did("signed the head that is handed over", fmt.Sprintf("SHA-256 of the signed note %x", head))
	return commit(&ceremony.Rotated{Checkpoint: checkpoint})
}

// retireKey destroys a key in its device.
type retireKey struct {
	work
	*ceremony.KeyRetire
}

func (j *retireKey) rehearse(context.Context) ([]string, error) {
	k, uri, err := j.key()
	if err != nil {
		return nil, err
	}
	return []string{fmt.Sprintf("destroy the key for %q with SPKI %x, beside %s", k.Purpose, j.SPKI[:], shown(uri))}, nil
}

func (j *retireKey) key() (k ceremony.Key, uri string, err error) {
	k, ok := j.state.Find(j.SPKI)
	if !ok {
		return k, "", refusedf(record.CodeConflict, "the log has no key %x", j.SPKI[:])
	}
	if uri, err = j.a.cfg.uri(j.lc, k.Purpose); err != nil {
		return k, "", refusedf(record.CodeInvalid, "%w", err)
	}
	return k, uri, nil
}

func (j *retireKey) execute(ctx context.Context, did func(what, answer string), commit func(outcome any) error) error {
	k, uri, err := j.key()
	if err != nil {
		return err
	}
	found, err := j.a.devices.destroy(ctx, uri, k)
	if err != nil {
		return device(err)
	}
	answer := "it is gone"
	if !found {
		answer = "it was not there any more"
	}
	did(fmt.Sprintf("destroyed the key for %q, label or handle %s", k.Purpose, k.Attributes["label"]+k.Attributes["handle"]), answer)
	return commit(nil)
}

// gone says what cannot be undone.
func (j *retireKey) gone(_ context.Context, did func(what, answer string)) error {
	did(fmt.Sprintf("looked for the key with SPKI %x", j.SPKI[:]), "it is gone, although its retirement was not recorded")
	return nil
}

// approvePCRs signs values of PCRs, and has the PINs that the TPM keeps given out for them too.
type approvePCRs struct {
	work
	*ceremony.PCRApprove
}

func (j *approvePCRs) rehearse(ctx context.Context) ([]string, error) {
	if _, err := j.key(ctx); err != nil {
		return nil, err
	}
	steps := []string{fmt.Sprintf("approve values of %d PCRs with the key for %q", len(j.PCRs), ceremony.PurposePCR)}
	for i := range j.a.cfg.PINs {
		steps = append(steps, "have the TPM give the PIN of "+j.a.cfg.PINs[i].File+" for them, if it is sealed to these PCRs under this key")
	}
	return steps, nil
}

func (j *approvePCRs) key(ctx context.Context) (ledger.Signer, error) {
	i := slices.IndexFunc(j.state.Policy.Keys, func(k ceremony.Key) bool { return k.Purpose == ceremony.PurposePCR })
	if i < 0 {
		return ledger.Signer{}, refusedf(record.CodeConflict, "there is no key for %q", ceremony.PurposePCR)
	}
	s, err := j.a.signer(ctx, j.lc, j.state.Policy.Keys[i])
	return s, device(err)
}

func (j *approvePCRs) execute(ctx context.Context, did func(what, answer string), commit func(outcome any) error) error {
	key, err := j.key(ctx)
	if err != nil {
		return err
	}
	policy := ceremony.PCRPolicy(j.PCRs)
	digest := sha256.Sum256(policy[:])
	signature, err := key.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		return device(err)
	}
	did("signed the policy of these values", fmt.Sprintf("%x", policy[:]))
	for i := range j.a.cfg.PINs {
		answer, err := j.pin(&j.a.cfg.PINs[i], key)
		if err != nil {
			return device(err)
		}
		did("approved them for the PIN of "+j.a.cfg.PINs[i].File, answer)
	}
	return commit(&ceremony.PCRApproved{Signature: signature})
}

// pin approves the values for a PIN that the TPM keeps under the same key.
func (j *approvePCRs) pin(p *PINConfig, key ledger.Signer) (answer string, err error) {
	if _, err := os.Stat(p.File); errors.Is(err, fs.ErrNotExist) {
		return "it is not sealed yet", nil
	}
	s, err := p.read()
	if err != nil {
		return "", err
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return "", err
	}
	if !slices.Equal(spki, s.Approver) {
		return "it is sealed under another approval key", nil
	}
	added, err := s.Approve(key, j.PCRs)
	switch {
	case err != nil:
		return "", err
	case !added:
		return "they were approved already", nil
	}
	return "approved", p.write(s)
}

// declareRecovery closes a log that lost entries.
type declareRecovery struct {
	work
	*ceremony.RecoveryDeclare
}

func (j *declareRecovery) rehearse(context.Context) ([]string, error) {
	steps := []string{fmt.Sprintf("close the log: entries behind %d, up to %d, are lost", j.Surviving.Size, j.Known.Size)}
	if j.a.sealer != nil {
		steps = append([]string{"read counter, PCR and clock of the TPM as they are"}, steps...)
	}
	return steps, nil
}

func (j *declareRecovery) execute(ctx context.Context, did func(what, answer string), commit func(outcome any) error) error {
	if j.a.sealer == nil {
		return commit(&ceremony.Recovered{})
	}
	return j.a.sealer.Recover(ctx, func(r *attest.Recovery) error {
		did("read the TPM as it is", fmt.Sprintf("counter %d, PCR %x, clock %d ms, resets %d, restarts %d; the last seal known is %d", r.Counter, r.PCR[:], r.Clock, r.Resets, r.Restarts, r.Seal))
		return commit(&ceremony.Recovered{TPM: r})
	})
}

// shown is a key's URI without what is not for evidence: where the PIN is.
func shown(uri string) string {
	u, err := hsm.ParseURI(uri)
	if err != nil {
		return uri // of the TPM
	}
	u.PINSource, u.ModulePath, u.ModuleInit = "", "", ""
	return u.String()
}

// resume finishes or undoes what an enactment that was interrupted left in the devices, and says which.
func (a *appliance) resume(ctx context.Context) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	at := a.clock.Now()
	for ; !at.HasEstimate; at = a.clock.Now() { // without it nobody can say what has expired
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
	for _, l := range a.logs {
		state := l.State()
		for _, p := range state.Open() {
			if len(p.Approvals) >= p.Needed {
				a.resumeOne(ctx, l, p, at)
			}
		}
	}
}

func (a *appliance) resumeOne(ctx context.Context, l *openLog, p *ceremony.Pending, at clock.Stamp) {
	log := a.log.With("log", l.Name, "proposal", p.Proposal.Number, "action", p.Proposal.Action)
	x := &executor{a, l.LogConfig}
	left, undo, err := x.left(ctx, l.Ledger, p)
	approved := l.State().Approved(p, at)
	switch {
	case err != nil:
		log.Error("whether an enactment was interrupted cannot be told", "error", err)
	case !left && approved == nil:
		log.Info("a proposal is approved and nothing of it was begun; bulla ceremony enact carries it out")
	case left && approved == nil:
		done, err := l.Enact(ctx, p.Proposal.Number, p.Hash, x)
		if err != nil {
			log.Error("an enactment that was interrupted could not be finished; bulla ceremony enact tries again", "error", err)
			return
		}
		log.Warn("an enactment that was interrupted is finished", "entry", done.Index)
	case left:
		done, err := l.Abandon(ctx, p, "interrupted, and it cannot be finished: "+approved.Error(), undo)
		if err != nil {
			log.Error("an enactment that was interrupted could not be undone", "error", err)
			return
		}
		log.Warn("an enactment that was interrupted is given up", "because", approved, "entry", done.Index)
	}
}

// left reports whether an interrupted attempt left something in a device, and how to undo it.
func (x *executor) left(ctx context.Context, l *ledger.Ledger, p *ceremony.Pending) (left bool, undo func(context.Context, func(what, answer string)) error, err error) {
	j, err := x.job(l, p)
	if err != nil {
		return false, nil, nil // not an action that is begun while the appliance serves
	}
	switch j := j.(type) {
	case *generateKey:
		_, err := j.rehearse(ctx)
		return j.there, j.undo, err
	case *retireKey:
		k, uri, err := j.key()
		if err != nil {
			return false, nil, err
		}
		_, err = j.a.devices.governed(ctx, uri, k)
		if errors.Is(err, hsm.ErrNoKey) || errors.Is(err, tpm.ErrNoKey) {
			return true, j.gone, nil
		}
		return false, nil, err
	}
	return false, nil, nil
}
