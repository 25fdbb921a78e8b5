package server

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"time"

	"bulla/api"
	"bulla/attest"
	"bulla/ledger"
	"bulla/record"
)

// activate has the TPM open an auditor's credential, and records who asked, what, and what came of it in every log before it answers.
func (c *call) activate() error {
	challenge, err := c.credentialChallenge()
	if err != nil {
		return err
	}
	role, err := c.auditing()
	if err != nil {
		return err
	}
	purpose, err := c.purpose()
	if err != nil {
		return err
	}
	enrolled := c.s.cfg.Logs[0].Ledger.State().Policy.TPM // the machine's: all its logs have it
	if c.s.cfg.Activate == nil || enrolled == nil {
		return &ledger.Refusal{Code: record.CodeTPM, Message: "the appliance has no TPM"}
	}
	if wait := c.s.seals.take(time.Now()); wait > 0 {
		return busy(wait, "the TPM was asked too often")
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.r.Context()), sealTime) // what the TPM has opened is recorded
	defer cancel()
	transcript := &attest.Activation{Challenge: *challenge}
	refused := challenge.Names(enrolled)
	if refused == nil {
		transcript.Secret, err = c.s.cfg.Activate(ctx, enrolled, challenge.Credential)
		switch {
		case errors.Is(err, attest.ErrNotOpened):
			refused = &record.FieldError{Field: "credential", Reason: err.Error()}
		case err != nil: // it is not known whether it would have
			return &ledger.Refusal{Code: record.CodeTPM, Message: err.Error(), RetryAfter: time.Second}
		}
	}
	body, err := transcript.Encode()
	if err != nil {
		return err
	}
	access := &record.Access{Action: record.AccessActivate, Activation: body, By: c.caller.Producer, Denied: refused != nil, Purpose: purpose, Role: role}
	entries, err := c.recordAccess(ctx, access)
	if err != nil {
		return err
	}
	if refused != nil {
		return refused
	}
	writeJSON(c.w, http.StatusCreated, api.Activated{Activation: body, Entries: entries})
	return nil
}

// credentialChallenge reads the challenge in a request.
func (c *call) credentialChallenge() (*attest.CredentialChallenge, error) {
	body, free, err := c.body(attest.MaxActivation)
	if err != nil {
		return nil, err
	}
	defer free()
	b, err := record.Canonicalize(bytes.TrimSpace(body), 2)
	if err != nil {
		return nil, err
	}
	return attest.ParseCredentialChallenge(b)
}

// auditing is the role by which the caller may ask the machine for evidence: in any log, for it is the machine's.
func (c *call) auditing() (string, error) {
	if err := c.maySeal(); err != nil {
		return "", err
	}
	for _, l := range c.s.cfg.Logs {
		switch r := l.Ledger.State().Roles(c.caller.UID, c.caller.Groups); {
		case r.Auditor:
			return "auditor", nil
		case r.Officer:
			return "officer", nil
		}
	}
	return "operator", nil
}

// recordAccess writes a record of access to the machine into every log, and returns its indices when all have it durable.
func (c *call) recordAccess(ctx context.Context, a *record.Access) (map[string]uint64, error) {
	if err := a.Check(); err != nil {
		return nil, err
	}
	body, err := record.MarshalCanonical(a)
	if err != nil {
		return nil, err
	}
	out := map[string]uint64{}
	for _, l := range c.s.cfg.Logs {
		res, err := l.Ledger.Record(ctx, record.KindAccess, body)
		if err != nil {
			return nil, err
		}
		out[l.Name] = res.Items[0].Index
	}
	return out, nil
}
