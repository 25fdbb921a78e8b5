package server

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"time"

	"bulla/api"
	"bulla/ledger"
	"bulla/record"
)

// Bounds of seals on demand: a seal keeps the TPM busy for a while.
const (
	sealBurst = 10
	sealEvery = time.Second // and on average
	sealTime  = time.Minute // for one to be made
	minNonce  = 8           // bytes
	maxNonce  = 64
)

// seal makes a seal now.
func (c *call) seal() error { return c.makeSeal(ledger.ReasonDemand, nil) }

// challenge makes a seal whose statement carries the caller's nonce.
func (c *call) challenge() error {
	body, free, err := c.body(4 << 10)
	if err != nil {
		return err
	}
	defer free()
	b, err := record.Canonicalize(body, 1)
	if err != nil {
		return err
	}
	var in api.Challenge
	err = record.UnmarshalCanonical(b, &in)
	var field *record.FieldError
	switch {
	case errors.As(err, &field) && (field.Field == "nonce" || field.Field == ""), err == nil && (len(in.Nonce) < minNonce || len(in.Nonce) > maxNonce):
		return &ledger.Refusal{Code: record.CodeInvalid, Field: "nonce", Message: fmt.Sprintf("must be %d to %d bytes in standard base64, padded, in one line", minNonce, maxNonce)}
	case err != nil:
		return err
	}
	return c.makeSeal(ledger.ReasonChallenge, in.Nonce)
}

// maySeal refuses callers who may not ask for seals. They are the machine's: a role in any log will do.
func (c *call) maySeal() error {
	for _, l := range c.s.cfg.Logs {
		if r := l.Ledger.State().Roles(c.caller.UID, c.caller.Groups); r.Operator || r.Auditor || r.Officer {
			return nil
		}
	}
	return &ledger.Refusal{Code: record.CodeForbidden, Message: fmt.Sprintf("uid %d may not ask for seals: no log's policy makes it auditor, operator or officer", c.caller.UID)}
}

func (c *call) makeSeal(reason string, nonce []byte) error {
	if err := c.maySeal(); err != nil {
		return err
	}
	if c.s.cfg.Seal == nil {
		return &ledger.Refusal{Code: record.CodeTPM, Message: "the appliance has no TPM"}
	}
	if wait := c.s.seals.take(time.Now()); wait > 0 {
		return busy(wait, "too many seals were asked for")
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.r.Context()), sealTime) // a client that goes away leaves no seal half made
	defer cancel()
	if err := c.recordSealing(ctx, nonce); err != nil { // what the seal attests has it
		return err
	}
	number, err := c.s.cfg.Seal(ctx, reason, nonce)
	if err != nil {
		var r *ledger.Refusal
		if errors.As(err, &r) {
			return r
		}
		return &ledger.Refusal{Code: record.CodeTPM, Message: err.Error(), RetryAfter: time.Second}
	}
	out := api.Sealed{Number: number, Entries: map[string]uint64{}}
	for _, l := range c.s.cfg.Logs {
		i, ok, err := l.Ledger.LastKind(record.KindSeal)
		if err != nil {
			return err
		}
		if ok {
			out.Entries[l.Name] = i
		}
	}
	if nonce != nil {
		out.Nonce = base64.StdEncoding.EncodeToString(nonce)
	}
	writeJSON(c.w, http.StatusCreated, out)
	return nil
}

// recordSealing records in every log who asks for a seal, or challenges the machine, and with what.
func (c *call) recordSealing(ctx context.Context, nonce []byte) error {
	role, err := c.auditing()
	if err != nil {
		return err
	}
	purpose, err := c.purpose()
	if err != nil {
		return err
	}
	a := &record.Access{Action: actionSeal, By: c.caller.Producer, Purpose: purpose, Role: role}
	if nonce != nil {
		a.Action, a.Query = actionChallenge, base64.StdEncoding.EncodeToString(nonce)
	}
	_, err = c.recordAccess(ctx, a)
	return err
}
