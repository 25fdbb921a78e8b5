package attest_test

import (
	"bytes"
	"crypto/sha256"
	"slices"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"bulla/attest"
	"bulla/record"
)

var nonce = []byte("a number that nobody could know")

// asked makes the statement answer a challenge.
func asked(s *attest.Statement) { s.Nonce, s.Reason = nonce, "challenge" }

// An answer is looked at by itself: it need not be the machine's first seal, and what it says is what comes back.
func TestAnswer(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.size = 3
	e := m.enrolment()
	m.seal(start)
	m.seal(edit{})
	body := m.seal(edit{statement: asked})
	a, found, err := attest.CheckAnswer(e, body, attest.Challenge{Nonce: nonce, Counter: m.counter, Log: origin, Head: m.head})
	if err != nil || len(found) > 0 {
		t.Fatalf("%v, %v", found, err)
	}
	if a.Number != 3 || a.Counter != m.counter || a.Head.Size != 11 || a.Reason != "challenge" || a.Clock.Clock != m.clock.Clock || len(a.PCRs) != 3 {
		t.Errorf("the answer says %+v", a)
	}
}

// Each thing that is wrong with an answer is found, by its name and alone.
func TestAnswersThatDoNotHold(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		edit edit
		want func(*attest.Challenge)
		rule attest.Rule
	}{
		{"another nonce", edit{}, func(w *attest.Challenge) { w.Nonce = []byte("mine, and another") }, attest.RuleNonce},
		{"no nonce", edit{statement: func(s *attest.Statement) { s.Nonce = nil }}, nil, attest.RuleNonce},
		{"a counter below what was seen", edit{}, func(w *attest.Challenge) { w.Counter = 100 }, attest.RuleLeast},
		{"another log's head", edit{}, func(w *attest.Challenge) { w.Log = "example.com/third" }, attest.RuleHead},
		{"a head that the log never had", edit{}, func(w *attest.Challenge) {
			w.Head = func(uint64) (record.Hash, bool) { return record.Hash{1}, true }
		}, attest.RuleHead},
		{"a quote of other PCR values", edit{pcrs: nil, seal: func(s *attest.Seal) { s.PCRs[0].Value[0] ^= 1 }}, nil, attest.RulePCRDigest},
		{"another key", edit{quote: nil, seal: func(s *attest.Seal) { s.Quote.Signature[20] ^= 1 }}, nil, attest.RuleQuoteSig},
		{"another counter", edit{certify: func(a *tpm2.TPMSAttest) {
			nv, err := a.Attested.NV()
			if err != nil {
				t.Error(err)
				return
			}
			nv.IndexName.Buffer = append([]byte{0, 11}, make([]byte, 32)...)
			a.Attested = tpm2.NewTPMUAttest(tpm2.TPMSTAttestNV, nv)
		}}, nil, attest.RuleCounterName},
		{"no seal", edit{}, nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t)
			m.size = 3
			e := m.enrolment()
			change := c.edit.statement
			c.edit.increment = true
			c.edit.statement = func(s *attest.Statement) {
				asked(s)
				if change != nil {
					change(s)
				}
			}
			body := m.seal(c.edit)
			want := attest.Challenge{Nonce: nonce, Log: origin, Head: m.head}
			if c.want != nil {
				c.want(&want)
			}
			if c.rule == "" {
				body, c.rule = []byte("{}"), attest.RuleFormat
			}
			_, found, err := attest.CheckAnswer(e, body, want)
			if err != nil {
				t.Fatal(err)
			}
			if len(found) != 1 || found[0].Rule != c.rule {
				t.Errorf("findings %+v, want %s", found, c.rule)
			}
			if attest.Rules[c.rule] == "" && attest.ChallengeRules[c.rule] == "" {
				t.Errorf("%s has no meaning", c.rule)
			}
		})
	}
}

// A challenge commits to its secret and to the keys; the transcript that answers it proves it, and no other does.
func TestActivationTranscript(t *testing.T) {
	t.Parallel()
	secret := bytes.Repeat([]byte{3}, 32)
	e := &attest.Enrolment{AKName: append([]byte{0, 11}, make([]byte, 32)...), EK: []byte("an endorsement key")}
	c := &attest.CredentialChallenge{
		AKName: e.AKName, Commitment: sha256.Sum256(secret), Credential: attest.Credential{Blob: []byte{1}, Secret: []byte{2}}, EK: sha256.Sum256(e.EK), V: 1,
	}
	text, err := c.Encode()
	if err != nil {
		t.Fatal(err)
	}
	again, err := attest.ParseCredentialChallenge(text)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Names(e); err != nil {
		t.Error(err)
	}
	a := &attest.Activation{Challenge: *again, Secret: secret}
	if err := a.Answers(c); err != nil {
		t.Error(err)
	}
	body, err := a.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := attest.ParseActivation(body); err != nil {
		t.Error(err)
	}
	for name, wrong := range map[string]attest.Activation{
		"no secret":         {Challenge: *c},
		"another secret":    {Challenge: *c, Secret: bytes.Repeat([]byte{4}, 32)},
		"a longer secret":   {Challenge: *c, Secret: append(slices.Clone(secret), 0)},
		"another challenge": {Challenge: attest.CredentialChallenge{AKName: c.AKName, Commitment: c.Commitment, Credential: attest.Credential{Blob: []byte{9}, Secret: []byte{2}}, EK: c.EK, V: 1}, Secret: secret},
	} {
		if err := wrong.Answers(c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	for name, b := range map[string][]byte{
		"nothing": nil, "a space": append(slices.Clone(text), ' '), "cut": text[:len(text)-1], "too large": bytes.Repeat([]byte(" "), attest.MaxActivation+1),
		"v 2": bytes.Replace(text, []byte(`"v":1`), []byte(`"v":2`), 1), "a member more": bytes.Replace(text, []byte(`{"ak`), []byte(`{"a":1,"ak`), 1),
	} {
		if _, err := attest.ParseCredentialChallenge(b); err == nil {
			t.Errorf("%s: read as a challenge", name)
		}
		if _, err := attest.ParseActivation(b); err == nil {
			t.Errorf("%s: read as a transcript", name)
		}
	}
	if _, err := attest.NewCredentialChallenge(e); err == nil {
		t.Error("a challenge was made for keys that are none")
	}
}

func FuzzParseActivation(f *testing.F) {
	c := attest.CredentialChallenge{AKName: append([]byte{0, 11}, make([]byte, 32)...), Credential: attest.Credential{Blob: []byte{1}, Secret: []byte{2}}, V: 1}
	for _, a := range []attest.Activation{{Challenge: c}, {Challenge: c, Secret: []byte{1}}} {
		b, err := a.Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := attest.ParseActivation(b)
		if err != nil {
			return
		}
		if again, err := a.Encode(); err != nil || !bytes.Equal(again, b) {
			t.Errorf("%q encodes as %q (%v)", b, again, err)
		}
	})
}
