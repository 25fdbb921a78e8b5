package verify

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"golang.org/x/crypto/ssh"

	"bulla/attest"
	"bulla/ceremony"
	"bulla/clock"
	"bulla/record"
)

// What somebody can do who has the log's signing key: another history, signed. What the TPM attested, what officers signed, what was
// measured, and what others hold are not in his hands.

// finish makes a trial of a history, which the verifier must find wrong at an entry.
func (h *history) finish(ctx context.Context, honest *exhibit, index *uint64) (*trial, error) {
	o, err := h.export(ctx)
	return &trial{honest: honest, exhibit: exhibit{src: o}, index: index}, err
}

// resigned is the evidence under another signature.
func (s *subject) resigned(ctx context.Context) (*exhibit, error) {
	o, err := s.history(s.head.Size).export(ctx)
	return &exhibit{name: "signing the same head again", src: o}, err
}

// forges is a mutation that appends, behind the last event, what forge makes of a repetition of that event: honestly, a further event
// of the same producer at the same instant.
func forges(forge func(h *history, e *record.Entry)) func(context.Context, *subject) (*trial, error) {
	return func(ctx context.Context, s *subject) (*trial, error) {
		return s.forge(ctx, s.event, func(h *history, e *record.Entry) error { forge(h, e); return nil })
	}
}

func (s *subject) forge(ctx context.Context, from place64, forge func(h *history, e *record.Entry) error) (*trial, error) {
	i, err := from.or("the log holds no such event")
	if err != nil {
		return nil, err
	}
	e, err := s.entry(ctx, i)
	if err != nil {
		return nil, err
	}
	same := *e
	honest, err := s.history(i + 1).add(&same).export(ctx)
	if err != nil {
		return nil, err
	}
	e, err = s.entry(ctx, i)
	if err != nil {
		return nil, err
	}
	h := s.history(i + 1)
	if err := forge(h, e); err != nil {
		return nil, err
	}
	return h.finish(ctx, &exhibit{name: fmt.Sprintf("a further event behind entry %d", i), src: honest}, at(i+1))
}

// own makes an entry one of the machine's own records.
func own(e *record.Entry, kind record.Kind, body []byte) *record.Entry {
	e.Kind, e.Producer, e.Body = kind, nil, body
	return e
}

// rewrites is a mutation of the history behind an event that the last seal covers: what rewrite makes, and then what was given up to
// that seal.
func rewrites(rewrite func(ctx context.Context, h *history, i uint64) (next uint64, err error)) func(context.Context, *subject) (*trial, error) {
	return func(ctx context.Context, s *subject) (*trial, error) {
		i, err := s.lastSealed()
		if err != nil {
			return nil, err
		}
		return s.rewrite(ctx, i, rewrite)
	}
}

func (s *subject) rewrite(ctx context.Context, i uint64, rewrite func(ctx context.Context, h *history, i uint64) (next uint64, err error)) (*trial, error) {
	honest, err := s.resigned(ctx)
	if err != nil {
		return nil, err
	}
	h := s.history(i)
	next, err := rewrite(ctx, h, i)
	if err != nil {
		return nil, err
	}
	h.goOn(ctx, next, s.seal.index+1)
	return h.finish(ctx, honest, at(h.size()-1))
}

// edit appends the given entry with a change.
func (h *history) edit(ctx context.Context, i uint64, edit func(e *record.Entry)) error {
	e, err := h.s.entry(ctx, i)
	if err != nil {
		return err
	}
	edit(e)
	h.add(e)
	return h.err
}

// harmless makes an event another one.
func harmless(e *record.Entry) { e.Body = []byte(`{"type":"selftest.harmless"}`) }

func removeGap(ctx context.Context, s *subject) (*trial, error) {
	i, err := s.gap.or("no seal covers the record of a gap")
	if err != nil {
		return nil, err
	}
	return s.rewrite(ctx, i, func(_ context.Context, _ *history, i uint64) (uint64, error) { return i + 1, nil })
}

func removeSeal(ctx context.Context, s *subject) (*trial, error) {
	i, err := s.seals.or("the log holds no two seals that follow on each other")
	if err != nil {
		return nil, err
	}
	return s.rewrite(ctx, i, func(_ context.Context, _ *history, i uint64) (uint64, error) { return i + 1, nil })
}

// garbleSeal changes the last seal and signs.
func garbleSeal(edit func(x *attest.Seal)) func(context.Context, *subject) (*trial, error) {
	return func(ctx context.Context, s *subject) (*trial, error) {
		i, err := s.seal.or("the log holds no seal")
		if err != nil {
			return nil, err
		}
		honest, err := s.resigned(ctx)
		if err != nil {
			return nil, err
		}
		h := s.history(i)
		err = h.edit(ctx, i, func(e *record.Entry) {
			x, err := attest.ParseSeal(e.Body)
			if err == nil {
				edit(x)
				e.Body, err = x.Encode()
			}
			h.err = err
		})
		if err != nil {
			return nil, err
		}
		return h.finish(ctx, honest, &i)
	}
}

// unlinked replaces an event without linking what follows to it.
func unlinked(ctx context.Context, s *subject) (*trial, error) {
	i, err := s.event.or("the log holds no event")
	if err != nil {
		return nil, err
	}
	return s.forge(ctx, place64{i, true}, func(h *history, e *record.Entry) error {
		h.prev = record.LeafHash([]byte("what was here before"))
		harmless(e)
		h.add(e)
		return nil
	})
}

// otherRoot signs a head that is of another history.
func otherRoot(ctx context.Context, s *subject) (*trial, error) {
	honest, err := s.resigned(ctx)
	if err != nil {
		return nil, err
	}
	c := s.head
	c.Root[0] ^= 1
	signed, err := s.keys.sign(c)
	if err != nil {
		return nil, err
	}
	t := &trial{honest: honest, exhibit: exhibit{src: &overlay{base: honest.src, files: map[string][]byte{checkpoint: signed}}}}
	return t, nil
}

// noRight has an event come from a user without the right to append.
func noRight(ctx context.Context, s *subject) (*trial, error) {
	for _, r := range s.governed.Roles {
		if r.Name == ceremony.Producer && (r.Any || len(r.GIDs) > 0) {
			return nil, inapplicable("everyone may append, or groups may: evidence does not tell who is in them")
		}
	}
	const nobody = 4294967294
	return s.forge(ctx, s.event, func(h *history, e *record.Entry) error {
		e.Producer = &record.Producer{UID: nobody, GID: nobody}
		h.add(e)
		return nil
	})
}

// regenesis is a mutation of the genesis: a log of nothing else.
func regenesis(edit func(s *subject, g *ceremony.Genesis) error) func(context.Context, *subject) (*trial, error) {
	return func(ctx context.Context, s *subject) (*trial, error) {
		e, err := s.entry(ctx, 0)
		if err != nil {
			return nil, err
		}
		g, err := ceremony.ParseGenesis(e.Body)
		if err != nil {
			return nil, err
		}
		if err := edit(s, g); err != nil {
			return nil, err
		}
		if e.Body, err = record.MarshalCanonical(g); err != nil {
			return nil, err
		}
		return s.history(0).add(e).finish(ctx, nil, at(0))
	}
}

// notGenesis is a log that begins with something else.
func notGenesis(ctx context.Context, s *subject) (*trial, error) {
	e, err := s.entry(ctx, 0)
	if err != nil {
		return nil, err
	}
	own(e, record.KindGenesis, []byte(`{"origin":"nobody"}`))
	return s.history(0).add(e).finish(ctx, nil, at(0))
}

// Governance.

// forgeApproval has another sign than the officer.
func forgeApproval(ctx context.Context, s *subject) (*trial, error) {
	i, err := s.approval.or("no officer approved anything in this log")
	if err != nil {
		return nil, err
	}
	honest, err := s.resigned(ctx)
	if err != nil {
		return nil, err
	}
	h := s.history(i)
	err = h.edit(ctx, i, func(e *record.Entry) {
		var x *ceremony.Approval
		if x, h.err = ceremony.ParseApproval(e.Body); h.err == nil {
			x.Document[0] ^= 1
			e.Body, h.err = record.MarshalCanonical(x)
		}
	})
	if err != nil {
		return nil, err
	}
	return h.finish(ctx, honest, &i)
}

// replayApproval shows an approval again.
func replayApproval(ctx context.Context, s *subject) (*trial, error) {
	i, err := s.approval.or("no officer approved anything in this log")
	if err != nil {
		return nil, err
	}
	honest, err := s.resigned(ctx)
	if err != nil {
		return nil, err
	}
	h := s.history(s.head.Size)
	at := h.size()
	if err := h.edit(ctx, i, func(*record.Entry) {}); err != nil {
		return nil, err
	}
	return h.finish(ctx, honest, &at)
}

// removeApprovals has events begin without the officers' approval of the genesis.
func removeApprovals(ctx context.Context, s *subject) (*trial, error) {
	if len(s.approvals) == 0 || !s.first.ok {
		return nil, inapplicable("no officer approved the genesis, or no event followed")
	}
	honest, err := s.resigned(ctx)
	if err != nil {
		return nil, err
	}
	h := s.history(s.approvals[0])
	for i := s.approvals[0]; i <= s.first.index; i++ {
		if !slices.Contains(s.approvals, i) {
			h.goOn(ctx, i, i+1)
		}
	}
	return h.finish(ctx, honest, at(h.size()-1))
}

// Time.

// forgesTime is a mutation of the stamp of an event.
func forgesTime(edit func(t *clock.Stamp)) func(context.Context, *subject) (*trial, error) {
	return func(ctx context.Context, s *subject) (*trial, error) {
		if !s.timed.ok {
			return nil, inapplicable("no event has an estimate of UTC")
		}
		return s.forge(ctx, s.timed, func(h *history, e *record.Entry) error {
			edit(&e.Stamp)
			h.add(e)
			return nil
		})
	}
}

// forgesClock is a mutation of a record of the clock: forge makes it of the one at from, and it stands there, or behind it.
func forgesClock(start, behind bool, forge func(x *clock.Evidence)) func(context.Context, *subject) (*trial, error) {
	return func(ctx context.Context, s *subject) (*trial, error) {
		from := s.round
		if start {
			from = s.start
		}
		i, err := from.or("the log holds no such record of the clock")
		if err != nil {
			return nil, err
		}
		honest, err := s.resigned(ctx)
		if err != nil {
			return nil, err
		}
		index := i
		if behind {
			index++
		}
		h := s.history(index)
		err = h.edit(ctx, i, func(e *record.Entry) {
			var x clock.Evidence
			if h.err = record.UnmarshalCanonical(e.Body, &x); h.err == nil {
				forge(&x)
				e.Body, h.err = record.MarshalCanonical(&x)
			}
		})
		if err != nil {
			return nil, err
		}
		return h.finish(ctx, honest, &index)
	}
}

// removeRound takes away a round that an entry names.
func removeRound(ctx context.Context, s *subject) (*trial, error) {
	i, err := s.round.or("no entry names a round of measurement")
	if err != nil {
		return nil, err
	}
	honest, err := s.resigned(ctx)
	if err != nil {
		return nil, err
	}
	h := s.history(i).goOn(ctx, i+1, s.named.index+1)
	return h.finish(ctx, honest, at(h.size()-1))
}

// forgeToken dates a token back.
func forgeToken(ctx context.Context, s *subject) (*trial, error) {
	i, err := s.token.or("the log holds no time-stamp token")
	if err != nil {
		return nil, err
	}
	honest, err := s.resigned(ctx)
	if err != nil {
		return nil, err
	}
	h := s.history(i)
	err = h.edit(ctx, i, func(e *record.Entry) {
		var x *record.Token
		if x, h.err = record.ParseToken(e.Body); h.err == nil {
			x.GenTime -= int64(time.Hour)
			e.Body, h.err = x.Encode()
		}
	})
	if err != nil {
		return nil, err
	}
	return h.finish(ctx, honest, &i)
}

// What others hold.

// receipted is a mutation of the history that somebody has a receipt of: of the last event, under a tree that ends with it. The
// history is gone on with from an entry that is back entries before.
func receipted(make func(ctx context.Context, h *history, i uint64) error) func(context.Context, *subject) (*trial, error) {
	return func(ctx context.Context, s *subject) (*trial, error) {
		i, err := s.event.or("the log holds no event")
		if err != nil {
			return nil, err
		}
		if i < 2 {
			return nil, inapplicable("nothing but the genesis stands before the event")
		}
		held, err := s.receiptOf(ctx, i)
		if err != nil {
			return nil, err
		}
		h := s.history(i - 1)
		if err := make(ctx, h, i); err != nil {
			return nil, err
		}
		o, err := h.export(ctx)
		if err != nil {
			return nil, err
		}
		return &trial{
			honest:  &exhibit{name: "a receipt of the last event", src: s.src, receipts: []Receipt{held}},
			exhibit: exhibit{src: o, receipts: []Receipt{held}}, index: &i,
		}, nil
	}
}

// receiptOf is a receipt of an entry, as its producer would have got it.
func (s *subject) receiptOf(ctx context.Context, i uint64) (Receipt, error) {
	r, err := s.history(i+1).receipt(ctx, i)
	if err != nil {
		return Receipt{}, err
	}
	b, err := r.MarshalJSON()
	return Receipt{Name: fmt.Sprintf("%d.json", i), Data: b}, err
}

// spoils is a mutation of a receipt.
func spoils(place bool, edit func(r *record.Receipt) (json []byte)) func(context.Context, *subject) (*trial, error) {
	return func(ctx context.Context, s *subject) (*trial, error) {
		i, err := s.event.or("the log holds no event")
		if err != nil {
			return nil, err
		}
		held, err := s.receiptOf(ctx, i)
		if err != nil {
			return nil, err
		}
		r, err := record.ParseReceipt(held.Data)
		if err != nil {
			return nil, err
		}
		spoilt := Receipt{Name: held.Name, Data: edit(&r)}
		if spoilt.Data == nil {
			if spoilt.Data, err = r.MarshalJSON(); err != nil {
				return nil, err
			}
		}
		t := &trial{
			honest:  &exhibit{name: "a receipt of the last event", src: s.src, receipts: []Receipt{held}},
			exhibit: exhibit{src: s.src, receipts: []Receipt{spoilt}}, file: held.Name,
		}
		if place {
			t.index = &i
		}
		return t, nil
	}
}

// witnessed is a mutation of evidence that holds a cosigned checkpoint. A witness that is nobody, but that the policy names, cosigned
// the given head; make says which history is shown instead (nil: the given one), and with which cosigned checkpoint.
func witnessed(make func(ctx context.Context, s *subject, cosigned []byte) (src Source, shown []byte, err error)) func(context.Context, *subject) (*trial, error) {
	return func(ctx context.Context, s *subject) (*trial, error) {
		if s.head.Size < 2 {
			return nil, inapplicable("the log has no two entries")
		}
		vkey, err := record.WitnessVKey("witness.example/selftest", s.key("witness").Public().(ed25519.PublicKey))
		if err != nil {
			return nil, err
		}
		policy := *s.policy
		policy.Witnesses = append(slices.Clone(policy.Witnesses), Witness{Name: "selftest", VKey: vkey})
		name := ""
		for n := 0; ; n++ { // the first that the evidence has not
			name = fmt.Sprintf("witness/%d", n)
			if _, ok, err := read(ctx, s.src, name, record.MaxCheckpoint); err != nil {
				return nil, err
			} else if !ok {
				break
			}
		}
		cosigned, err := s.cosigned(vkey)
		if err != nil {
			return nil, err
		}
		src, shown, err := make(ctx, s, cosigned)
		if err != nil {
			return nil, err
		}
		honest := &exhibit{name: "a cosigned head", src: &overlay{base: s.src, files: map[string][]byte{name: cosigned}}, policy: &policy}
		if src == nil {
			src = s.src
		} else { // another history: whatever else was cosigned is not shown
			name = "witness/0"
		}
		return &trial{honest: honest, exhibit: exhibit{src: &overlay{base: src, files: map[string][]byte{name: shown}}, policy: &policy}, file: name}, nil
	}
}

// cosigned is the given head with a witness's line.
func (s *subject) cosigned(vkey string) ([]byte, error) {
	v, err := record.NewWitnessVerifier(vkey)
	if err != nil {
		return nil, err
	}
	seconds := uint64(max(s.time, 0))/1e9 + 1
	raw := binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint32(nil, v.KeyHash()), seconds)
	raw = append(raw, ed25519.Sign(s.key("witness"), record.CosignatureInput(seconds, []byte(s.head.Text())))...)
	return fmt.Appendf(nil, "%s\n— %s %s\n", s.head.Text(), v.Name(), base64.StdEncoding.EncodeToString(raw)), nil
}

// cutTo is the given history cut off before its last entry.
func cutTo(ctx context.Context, s *subject) (Source, error) {
	return s.history(s.head.Size - 1).export(ctx)
}

// forgedActivation records an activation of a credential that nobody opened.
func forgedActivation(ctx context.Context, s *subject) (*trial, error) {
	if s.governed.TPM == nil {
		return nil, inapplicable("the log has no TPM enrolled")
	}
	return s.forge(ctx, s.event, func(h *history, e *record.Entry) error {
		x, err := (&attest.Activation{Secret: bytes.Repeat([]byte{5}, 32), Challenge: attest.CredentialChallenge{
			AKName: s.governed.TPM.AKName, Commitment: record.Hash{1}, EK: record.LeafHash(s.governed.TPM.EK), V: 1,
			Credential: attest.Credential{Blob: []byte{1}, Secret: []byte{2}},
		}}).Encode()
		if err != nil {
			return err
		}
		body, err := record.MarshalCanonical(&record.Access{Action: record.AccessActivate, By: *e.Producer, Role: ceremony.Auditor, Activation: json.RawMessage(x)})
		if err != nil {
			return err
		}
		h.add(own(e, record.KindAccess, body))
		return nil
	})
}

// notSeal puts something else in the place of the last seal.
func notSeal(ctx context.Context, s *subject) (*trial, error) {
	i, err := s.seal.or("the log holds no seal")
	if err != nil {
		return nil, err
	}
	honest, err := s.resigned(ctx)
	if err != nil {
		return nil, err
	}
	h := s.history(i)
	if err := h.edit(ctx, i, func(e *record.Entry) { e.Body = []byte(`{}`) }); err != nil {
		return nil, err
	}
	return h.finish(ctx, honest, &i)
}

// signSpaced appends an event with a space in it.
func signSpaced(ctx context.Context, s *subject) (*trial, error) {
	return s.forge(ctx, s.event, func(h *history, e *record.Entry) error {
		e.Index, e.Prev = h.size(), h.prev
		raw, err := e.Append(nil)
		h.addRaw(spaced(raw))
		return err
	})
}

// impersonate has a user append a record of the machine.
func impersonate(ctx context.Context, s *subject) (*trial, error) {
	return s.forge(ctx, s.event, func(h *history, e *record.Entry) error {
		e.Kind, e.Body = record.KindSystem, []byte(`{"event":"config"}`)
		h.add(e)
		return nil
	})
}

// secondGenesis appends the genesis again.
func secondGenesis(ctx context.Context, s *subject) (*trial, error) {
	return s.forge(ctx, s.event, func(h *history, e *record.Entry) error {
		g, err := s.entry(ctx, 0)
		if err != nil {
			return err
		}
		h.add(own(e, record.KindGenesis, g.Body))
		return nil
	})
}

// forgeEnactment enacts what nobody proposed.
func forgeEnactment(ctx context.Context, s *subject) (*trial, error) {
	return s.forge(ctx, s.event, func(h *history, e *record.Entry) error {
		body, err := record.MarshalCanonical(&ceremony.Enactment{Document: record.Hash{1}, Number: 1 << 40})
		if err != nil {
			return err
		}
		h.add(own(e, record.KindEnactment, body))
		return nil
	})
}

// recoverFalsely proposes a recovery, which an officer is said to have signed, and enacts it as if enough had approved.
func recoverFalsely(ctx context.Context, s *subject) (*trial, error) {
	if len(s.governed.Officers) == 0 {
		return nil, inapplicable("no officers are appointed who could declare one")
	}
	var outcome ceremony.Recovered
	if s.governed.TPM != nil {
		outcome.TPM = &attest.Recovery{}
	}
	if s.seal.ok {
		var err error
		if outcome.TPM, err = s.left(ctx, s.seal.index); err != nil {
			return nil, err
		}
	}
	t, err := s.forge(ctx, s.event, func(h *history, e *record.Entry) error {
		document, proposed, err := s.falseRecovery(h, e.Stamp)
		if err != nil {
			return err
		}
		raw, err := record.MarshalCanonical(&outcome)
		if err != nil {
			return err
		}
		enacted, err := record.MarshalCanonical(&ceremony.Enactment{Document: ceremony.DocumentHash(document), Number: s.state.Number(), Outcome: raw})
		next := *e
		h.add(own(e, record.KindProposal, proposed)).add(own(&next, record.KindEnactment, enacted))
		return err
	})
	if err == nil {
		*t.index++ // the enactment
	}
	return t, err
}

// falseRecovery is a document that declares the rest of the log lost, and its proposal under somebody else's signature.
func (s *subject) falseRecovery(h *history, stamp clock.Stamp) (document, proposed []byte, err error) {
	c, err := h.checkpoint()
	if err != nil {
		return nil, nil, err
	}
	head := ceremony.Head{Root: c.Root, Size: c.Size}
	content := &ceremony.RecoveryDeclare{Known: ceremony.Head{Root: record.Hash{1}, Size: s.head.Size + 1}, Reason: "selftest", Surviving: head}
	if document, err = s.state.Propose(content, s.governed.Officers[0].Name, head, stamp.UTC()+int64(time.Hour)); err != nil {
		return nil, nil, err
	}
	thief, err := ssh.NewSignerFromSigner(s.key("officer"))
	if err != nil {
		return nil, nil, err
	}
	signature, err := ceremony.Sign(rand.Reader, document, ceremony.Approve, thief)
	if err != nil {
		return nil, nil, err
	}
	proposed, err = record.MarshalCanonical(&ceremony.Proposed{Document: document, Signature: signature})
	return document, proposed, err
}

// left is the TPM as a seal left it, as far as that is known without the counter's attestation.
func (s *subject) left(ctx context.Context, seal uint64) (*attest.Recovery, error) {
	e, err := s.entry(ctx, seal)
	if err != nil {
		return nil, err
	}
	x, err := attest.ParseSeal(e.Body)
	if err != nil {
		return nil, err
	}
	st, err := attest.ParseStatement(x.Statement)
	if err != nil {
		return nil, err
	}
	return &attest.Recovery{PCR: attest.ExtendPCR(st.PCR.Before, sha256.Sum256(x.Statement)), Previous: sha256.Sum256(x.Quote.Attest), Seal: st.Number}, nil
}

// recoverElsewhere has the recovery that officers declared go on from a seal that the log does not have: what they approved does not
// say from which, the machine does.
func recoverElsewhere(ctx context.Context, s *subject) (*trial, error) {
	i, err := s.declared.or("officers have declared no recovery of this log behind a seal")
	if err != nil {
		return nil, err
	}
	tpm, err := s.left(ctx, s.behind)
	if err != nil {
		return nil, err
	}
	tpm.Previous[0] ^= 1
	honest, err := s.resigned(ctx)
	if err != nil {
		return nil, err
	}
	h := s.history(i)
	err = h.edit(ctx, i, func(e *record.Entry) {
		var x *ceremony.Enactment
		if x, h.err = ceremony.ParseEnactment(e.Body); h.err != nil {
			return
		}
		if x.Outcome, h.err = record.MarshalCanonical(&ceremony.Recovered{TPM: tpm}); h.err == nil {
			e.Body, h.err = record.MarshalCanonical(x)
		}
	})
	if err != nil {
		return nil, err
	}
	return h.finish(ctx, honest, &i)
}

// moveSamples has every server have answered a second later than it did.
func moveSamples(x *clock.Evidence) {
	for i := range x.Round.Samples {
		x.Round.Samples[i].T2 += int64(time.Second)
		x.Round.Samples[i].T3 += int64(time.Second)
	}
}

// beforeReceipt rewrites the entry before the one that a receipt is of. The receipt's own entry is kept, bytes and all.
func beforeReceipt(ctx context.Context, s *subject) (*trial, error) {
	return receipted(func(ctx context.Context, h *history, i uint64) error {
		if i-1 == 0 {
			return inapplicable("nothing but the genesis stands before the event")
		}
		if err := h.edit(ctx, i-1, func(e *record.Entry) { own(e, record.KindSystem, []byte(`{"event":"config"}`)) }); err != nil {
			return err
		}
		_, raw, err := s.bundleOf(ctx, i)
		if err != nil {
			return err
		}
		h.addRaw(raw[i%tileWidth])
		return h.err
	})(ctx, s)
}

// cutReceipted cuts the log off before the last event, which somebody has a receipt of.
func cutReceipted(ctx context.Context, s *subject) (*trial, error) {
	t, err := receipted(func(ctx context.Context, h *history, i uint64) error {
		h.goOn(ctx, i-1, i)
		return h.err
	})(ctx, s)
	if err == nil {
		t.file = t.receipts[0].Name
	}
	return t, err
}

// remembered is a mutation of what an auditor kept of the log, or of the log that he kept something of: its head as it is, and what a
// run on it remembered.
func remembered(make func(ctx context.Context, s *subject, e *exhibit) error) func(context.Context, *subject) (*trial, error) {
	return func(ctx context.Context, s *subject) (*trial, error) {
		if s.head.Size < 2 || s.memory == nil {
			return nil, inapplicable("the log has no two entries")
		}
		kept, err := NewEarlier("earlier", s.signed)
		if err != nil {
			return nil, err
		}
		memory := *s.memory
		if memory.Seal != nil {
			seal := *memory.Seal
			memory.Seal = &seal
		}
		t := &trial{honest: &exhibit{name: "the head, and what was remembered of the log", src: s.src, earlier: []Earlier{kept}, memory: s.memory}}
		t.exhibit = exhibit{src: s.src, earlier: []Earlier{kept}, memory: &memory}
		return t, make(ctx, s, &t.exhibit)
	}
}

// staleHead shows an older head, over tiles that have grown since.
func staleHead(ctx context.Context, s *subject) (*trial, error) {
	size := s.head.Size - 1
	if size%tileWidth == 0 && size > 0 {
		size-- // of full tiles an older head is as good as then
	}
	if size == 0 {
		return nil, inapplicable("the log has no two entries")
	}
	signed, err := s.history(size).sign()
	return &trial{
		exhibit: exhibit{src: &overlay{base: s.src, files: map[string][]byte{checkpoint: signed}}},
		file:    record.TilePath(tileOf(0, size-1, size)),
	}, err
}

// rewriteEnd makes the last entry another one.
func rewriteEnd(ctx context.Context, s *subject) (Source, error) {
	h := s.history(s.head.Size - 1)
	if err := h.edit(ctx, s.head.Size-1, func(e *record.Entry) { own(e, record.KindSystem, []byte(`{"event":"config"}`)) }); err != nil {
		return nil, err
	}
	return h.export(ctx)
}

// behind has the TPM be behind what was remembered of it.
func behind(edit func(seal *MemorySeal)) func(context.Context, *subject) (*trial, error) {
	return remembered(func(_ context.Context, _ *subject, e *exhibit) error {
		if e.memory.Seal == nil {
			return inapplicable("the log holds no seal")
		}
		edit(e.memory.Seal)
		return nil
	})
}
