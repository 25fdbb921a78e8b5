package verify

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"bulla/attest"
	"bulla/ceremony"
	"bulla/record"
)

// judgeEnrolment checks a log's first TPM against what the policy trusts: makers of TPMs, and attestation keys. What the policy does not know of
// it, but of one that officers enrolled later, is missing, not wrong: whoever wrote the policy came after the TPM was replaced.
func (f *fold) judgeEnrolment(later []*attest.Enrolment) {
	p, e := f.r.policy, f.first
	if p == nil || e == nil {
		return
	}
	if err := p.Endorses(e); err == nil {
		f.endorsed = len(p.EKRoots) > 0
	} else if slices.ContainsFunc(later, func(e *attest.Enrolment) bool { return p.Endorses(e) == nil }) {
		f.r.miss("the genesis enrols a TPM that officers replaced, which none of the policy's authorities certifies; if it is right, add an ek-root line", ClaimSeals, ClaimRollback)
	} else {
		f.r.find(Finding{Rule: "enrolment.endorsement", Index: at(0), Expected: fmt.Sprintf("an endorsement key that one of %d authorities certifies", len(p.EKRoots)), Found: fmt.Sprintf("%.300s", err.Error())})
	}
	switch {
	case p.PinsAK(e):
	case slices.ContainsFunc(later, p.PinsAK):
		f.r.miss(fmt.Sprintf("the genesis enrols a TPM that officers replaced; if it is right, add the line: ak %x", e.AKName), ClaimSeals, ClaimRollback)
	default:
		var names []string
		for _, n := range p.AKs {
			names = append(names, hex.EncodeToString(n))
		}
		f.r.find(Finding{Rule: "enrolment.ak", Index: at(0), Expected: fmt.Sprintf("%.300s", strings.Join(names, " or ")), Found: hex.EncodeToString(e.AKName)})
	}
}

// reenrol has the replay of seals go on in the TPM that officers enrolled in the place of another. What the policy does not know of it is
// missing, not wrong: who trusts the genesis leaves it to its officers to replace a TPM.
func (f *fold) reenrol(at *record.Entry) {
	e := f.state.Policy.TPM
	f.later = append(f.later, e)
	if f.replay == nil {
		return // the first was reported
	}
	found, err := f.replay.Enrol(*e)
	if err != nil {
		f.r.find(Finding{Rule: string(attest.RuleEnrolment), Index: &at.Index, Expected: "the attestation key of a TPM", Found: fmt.Sprintf("%.300s", err.Error())})
		return
	}
	for _, x := range found {
		f.r.find(Finding{Rule: string(x.Rule), Index: &at.Index, Expected: fmt.Sprintf("%.300s", x.Expected), Found: fmt.Sprintf("%.300s", x.Found)})
	}
	f.r.remark("seals: from entry %d on they are of another TPM, which officers enrolled: %s", at.Index, ceremony.Printable(e.Manufacturer+" "+e.Model))
	if f.r.policy == nil {
		return
	}
	if err := f.r.policy.Endorses(e); err != nil {
		f.r.miss(fmt.Sprintf("entry %d enrols another TPM, which none of the policy's authorities certifies; if it is right, add an ek-root line", at.Index), ClaimSeals, ClaimRollback)
	}
	if !f.r.policy.PinsAK(e) {
		f.r.miss(fmt.Sprintf("entry %d enrols another TPM; if it is right, add the line: ak %x", at.Index, e.AKName), ClaimSeals, ClaimRollback)
	}
}

// Endorses checks that an authority that the policy names certifies the enrolment's endorsement key. A policy that names none trusts
// any.
func (p *Policy) Endorses(e *attest.Enrolment) error {
	if len(p.EKRoots) == 0 {
		return nil
	}
	roots := x509.NewCertPool()
	for _, der := range p.EKRoots {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return fmt.Errorf("the policy's ek-root: %w", err)
		}
		roots.AddCert(c)
	}
	return e.CheckEndorsement(roots)
}

// PinsAK reports whether the enrolment's attestation key is one that the policy names. A policy that names none leaves it to the
// genesis.
func (p *Policy) PinsAK(e *attest.Enrolment) bool {
	return len(p.AKs) == 0 || slices.ContainsFunc(p.AKs, func(name []byte) bool { return bytes.Equal(name, e.AKName) })
}

// maxActivated is how many activations the report names.
const maxActivated = 8

// activation checks the transcript of a credential activation. What it proves, it proves to whoever made the challenge.
func (f *fold) activation(e *record.Entry) {
	a, err := record.ParseAccess(e.Body)
	if err != nil || a.Action != record.AccessActivate {
		return // a body that is none is reported with the bundle
	}
	wrong := func(expected string, err error) {
		f.r.find(Finding{Rule: "enrolment.activation", Index: at(e.Index), Expected: expected, Found: fmt.Sprintf("%.300s", err.Error())})
	}
	x, err := attest.ParseActivation(a.Activation)
	if err != nil {
		wrong("the transcript of an activation", err)
		return
	}
	if a.Denied {
		if len(x.Secret) > 0 {
			wrong("no secret in what was refused", fmt.Errorf("a secret"))
		}
		return
	}
	tpm := f.state.Policy.TPM
	if tpm == nil {
		wrong("no activation: the log has no TPM enrolled", fmt.Errorf("one"))
		return
	}
	if err := x.Challenge.Names(tpm); err != nil {
		wrong("a challenge for the enrolled TPM", err)
		return
	}
	if err := x.Proves(); err != nil {
		wrong("the credential's secret", err)
		return
	}
	if len(f.activated) == maxActivated {
		f.activated = f.activated[1:]
	}
	f.activated = append(f.activated, e.Index)
}

// remarkEnrolment says why the attestation key is trusted.
func (f *fold) remarkEnrolment() {
	switch {
	case f.endorsed:
		f.r.remark("seals: an authority of the policy certifies the endorsement key of the TPM")
	case f.r.policy == nil || len(f.r.policy.EKRoots) == 0:
		f.r.remark("seals: the attestation key is trusted because the genesis names it; its certificate was not checked against a manufacturer's")
	}
	if len(f.activated) > 0 {
		f.r.remark("seals: the TPM opened credentials in entries %v: to whoever made those challenges this proves that it holds the endorsement key and the attestation key", f.activated)
	} else {
		f.r.remark("seals: nothing in the log shows that the attestation key is held by the TPM of the endorsement key: `bulla attest challenge-new` asks for that")
	}
}
