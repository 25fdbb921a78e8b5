package server

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"bulla/api"
	"bulla/attest"
	"bulla/ceremony"
	"bulla/record"
)

var (
	enrolled = &attest.Enrolment{AK: []byte{1}, AKName: append([]byte{0, 11}, bytes.Repeat([]byte{7}, 32)...), EK: []byte{2}, EKCertificates: [][]byte{}, PCR: 13}
	secret   = bytes.Repeat([]byte{9}, 32) // what the TPM finds in the challenge's credential
)

func credentialChallenge(t *testing.T, change func(*attest.CredentialChallenge)) string {
	t.Helper()
	c := &attest.CredentialChallenge{
		AKName: enrolled.AKName, Commitment: sha256.Sum256(secret), Credential: attest.Credential{Blob: []byte("blob"), Secret: []byte("seed")},
		EK: sha256.Sum256(enrolled.EK), V: 1,
	}
	if change != nil {
		change(c)
	}
	b, err := json.MarshalIndent(c, "", " ") // as no program has to write it
	if err != nil {
		t.Fatal(err)
	}
	return string(b) + "\n"
}

// activations are the transcripts in a log.
func (r *rig) activations(log int) (out []record.Access) {
	r.t.Helper()
	l := r.cfg.Logs[log].Ledger
	indices, err := l.Kind(record.KindAccess, 0, 1000)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, i := range indices {
		b, err := l.Entry(i)
		if err != nil {
			r.t.Fatal(err)
		}
		e, err := record.ParseEntry(b)
		if err != nil {
			r.t.Fatal(err)
		}
		a, err := record.ParseAccess(e.Body)
		if err != nil {
			r.t.Fatal(err)
		}
		if _, err := attest.ParseActivation(a.Activation); err != nil {
			r.t.Fatal(err)
		}
		out = append(out, *a)
	}
	return out
}

// What the TPM opened, or would not open, is in every log before the answer is given.
func TestActivation(t *testing.T) {
	t.Parallel()
	r := newRig(t, everyone)
	r.tpm = enrolled
	r.addLog("sealed", everyone)
	slices.Reverse(r.cfg.Logs)
	slices.Reverse(r.keys)
	var asked int
	var fail error
	r.cfg.Activate = func(ctx context.Context, e *attest.Enrolment, c attest.Credential) ([]byte, error) {
		asked++
		if _, ok := ctx.Deadline(); !ok || !bytes.Equal(e.AKName, enrolled.AKName) || string(c.Blob) != "blob" || string(c.Secret) != "seed" {
			t.Errorf("asked for %+v", c)
		}
		return secret, fail
	}
	r.serve()
	b := r.browser()

	p := r.do(b, "POST", "/v1/activation", credentialChallenge(t, nil), asJSON)
	var got api.Activated
	if err := json.Unmarshal(p.body, &got); err != nil || p.status != 201 || len(got.Entries) != 2 || asked != 1 {
		t.Fatalf("%d %s: %v", p.status, p.body, err)
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, got.Activation); err != nil {
		t.Fatal(err)
	}
	transcript, err := attest.ParseActivation(compact.Bytes())
	if err != nil || transcript.Proves() != nil {
		t.Fatalf("%+v: %v", transcript, err)
	}
	for i := range r.cfg.Logs {
		all := r.activations(i)
		if len(all) != 1 || all[0].Denied || all[0].Role != "auditor" || !bytes.Equal(all[0].Activation, compact.Bytes()) {
			t.Errorf("log %d holds %+v", i, all)
		}
	}

	for _, c := range []struct {
		about    string
		body     string
		fail     error
		status   int
		code     record.Code
		field    string
		recorded bool
	}{
		{"for another attestation key", credentialChallenge(t, func(c *attest.CredentialChallenge) { c.AKName = append([]byte{0, 11}, make([]byte, 32)...) }), nil, 400, record.CodeInvalid, "ak_name", true},
		{"for another endorsement key", credentialChallenge(t, func(c *attest.CredentialChallenge) { c.EK[0] ^= 1 }), nil, 400, record.CodeInvalid, "ek", true},
		{"not for this TPM", credentialChallenge(t, nil), fmt.Errorf("activating: %w", attest.ErrNotOpened), 400, record.CodeInvalid, "credential", true},
		{"the TPM does not answer", credentialChallenge(t, nil), errors.New("no TPM answers"), 503, record.CodeTPM, "", false},
		{"no challenge", "{}", nil, 400, record.CodeInvalid, "", false},
		{"v 2", credentialChallenge(t, func(c *attest.CredentialChallenge) { c.V = 2 }), nil, 400, record.CodeInvalid, "v", false},
		{"a name too short", credentialChallenge(t, func(c *attest.CredentialChallenge) { c.AKName = c.AKName[1:] }), nil, 400, record.CodeInvalid, "ak_name", false},
		{"an empty credential", credentialChallenge(t, func(c *attest.CredentialChallenge) { c.Credential.Blob = []byte{} }), nil, 400, record.CodeInvalid, "credential.blob", false},
		{"a large seed", credentialChallenge(t, func(c *attest.CredentialChallenge) { c.Credential.Secret = make([]byte, 1025) }), nil, 400, record.CodeInvalid, "credential.secret", false},
		{"a member more", strings.Replace(credentialChallenge(t, nil), "{", `{"x":1,`, 1), nil, 400, record.CodeInvalid, "x", false},
		{"oversize", strings.Repeat(" ", 9000), nil, 413, record.CodeTooLarge, "", false},
	} {
		fail = c.fail
		before := len(r.activations(0))
		p := r.do(b, "POST", "/v1/activation", c.body, asJSON)
		if f := p.failure(t); p.status != c.status || f.Code != c.code || c.field != "" && f.Field != c.field {
			t.Errorf("%s: %d %s", c.about, p.status, p.body)
		}
		all := r.activations(0)
		if (len(all) > before) != c.recorded || c.recorded && !all[len(all)-1].Denied {
			t.Errorf("%s: recorded %t", c.about, len(all) > before)
		}
	}
	fail = nil
	for i := 0; p.status != 429; i++ {
		if p = r.do(b, "POST", "/v1/activation", credentialChallenge(t, nil), asJSON); p.status != 201 && p.status != 429 || i > 2*sealBurst {
			t.Fatalf("%d: %d %s", i, p.status, p.body)
		}
	}
	if p.failure(t).Code != record.CodeBusy || p.header.Get("Retry-After") == "" {
		t.Errorf("too many: %s", p.body)
	}
}

func TestActivationNeedsARoleAndATPM(t *testing.T) {
	t.Parallel()
	none := newRig(t, everyone).serve()
	if p := none.do(none.browser(), "POST", "/v1/activation", credentialChallenge(t, nil), asJSON); p.status != 503 || p.failure(t).Code != record.CodeTPM {
		t.Errorf("without a TPM: %d %s", p.status, p.body)
	}
	producers := newRig(t, []ceremony.Role{{Name: ceremony.Producer, Any: true}}).serve()
	if p := producers.do(producers.browser(), "POST", "/v1/activation", credentialChallenge(t, nil), asJSON); p.status != 403 || p.failure(t).Code != record.CodeForbidden {
		t.Errorf("without a role: %d %s", p.status, p.body)
	}
}
