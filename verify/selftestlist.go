package verify

import (
	"bytes"
	"context"
	"slices"
	"time"

	"bulla/attest"
	"bulla/ceremony"
	"bulla/clock"
	"bulla/record"
)

// catalogue is every mutation, by what it needs. docs/selftest.md is made of it.
var catalogue = slices.Concat(withCopy, withKey, withOthers, withMachine)

// found lists rules that may find a mutation; the first must.
func found(rules ...string) []string { return rules }

// withCopy is what somebody can do to a copy of the evidence.
var withCopy = []Mutation{
	{"flip-entry", "Flips one bit of an entry: the last digit of its time.", NeedsCopy, found("tree.leaf"),
		rebundles(0, func(raw [][]byte, k int) [][]byte { raw[k] = flipDigit(raw[k]); return raw })},
	{"respace-entry", "Adds a space to an entry, which changes nothing of what it says.", NeedsCopy, found("entry.canonical"),
		rebundles(0, func(raw [][]byte, k int) [][]byte { raw[k] = spaced(raw[k]); return raw })},
	{"flip-length", "Flips one bit of the length in front of an entry.", NeedsCopy, found("bundle.length"), flipLength},
	{"flip-tile", "Flips one bit of an entry's hash in a tile.", NeedsCopy, found("tile.hash"),
		tiled(0, func(b []byte, k int) []byte { b[k*32] ^= 1; return b })},
	{"flip-upper-tile", "Flips one bit of a hash in a tile above the lowest level.", NeedsCopy, found("tile.hash"),
		tiled(1, func(b []byte, k int) []byte { b[k*32] ^= 1; return b })},
	{"cut-tile", "Cuts the last byte off a tile.", NeedsCopy, found("tile.format"),
		tiled(0, func(b []byte, _ int) []byte { return b[:len(b)-1] })},
	{"flip-signature", "Flips one bit of the head's signature.", NeedsCopy, found("checkpoint.signature"), flipSignature},
	{"remove-signature", "Takes the authoritative signature off the head.", NeedsCopy, found("checkpoint.signature"), removeSignature},
	{"edit-head", "Writes another root into the head.", NeedsCopy, found("checkpoint.signature", "tree.root", "witness.signature"),
		editHead(func(c *record.Checkpoint) { c.Root[0] ^= 1 })},
	{"rename-head", "Writes the name of another log into the head.", NeedsCopy, found("checkpoint.origin", "checkpoint.signature", "witness.signature", "witness.format"),
		editHead(func(c *record.Checkpoint) { c.Origin = otherOrigin })},
	{"extend-head", "Adds a line to the head's text.", NeedsCopy, found("checkpoint.format"),
		edits(checkpoint, func(b []byte) []byte { return bytes.Replace(b, []byte("\n\n"), []byte("\nmore\n\n"), 1) })},
	{"sign-foreign", "Adds a signature of the head by the key of another log that the auditor trusts.", NeedsCopy, found("checkpoint.origin"), signForeign},
	{"drop-entry", "Takes an entry out.", NeedsCopy, found("entry.missing"),
		rebundles(0, func(raw [][]byte, k int) [][]byte { return slices.Delete(raw, k, k+1) })},
	{"insert-entry", "Puts an entry in.", NeedsCopy, found("entry.extra"),
		rebundles(0, func(raw [][]byte, k int) [][]byte { return slices.Insert(raw, k, flipDigit(raw[k])) })},
	{"duplicate-entry", "Puts an entry in twice.", NeedsCopy, found("entry.extra"),
		rebundles(1, func(raw [][]byte, k int) [][]byte { return slices.Insert(raw, k, raw[k]) })},
	{"swap-entries", "Swaps two entries.", NeedsCopy, found("entry.order"),
		rebundles(0, func(raw [][]byte, k int) [][]byte { raw[k], raw[k+1] = raw[k+1], raw[k]; return raw })},
	{"reorder-entries", "Moves an entry to the end of its bundle.", NeedsCopy, found("entry.order"),
		rebundles(0, func(raw [][]byte, k int) [][]byte { e := raw[k]; return append(slices.Delete(raw, k, k+1), e) })},
	{"truncate-bundle", "Cuts a bundle off behind an entry.", NeedsCopy, found("entry.missing"),
		rebundles(1, func(raw [][]byte, k int) [][]byte { return raw[:k+1] })},
	{"cut-bundle", "Cuts a bundle within an entry and takes its tile away.", NeedsCopy, found("bundle.format"), cutBundle},
	{"replace-entry", "Replaces an entry together with its hash in the tile.", NeedsCopy, found("tree.root", "chain.prev", "tile.hash", "seal.head", "seal.pcr.replay", "governance.unauthorised", "governance.role", "witness.tree", "checkpoint.signature"),
		unplaced(retiled(replaced))},
	{"splice-entry", "Puts an entry of another log in the place of one, with its hash.", NeedsCopy, found("entry.log", "chain.prev", "tile.hash", "tree.root", "seal.head", "seal.pcr.replay", "governance.unauthorised", "governance.role", "witness.tree", "checkpoint.signature"),
		retiled(func(e *record.Entry) { e.Log = otherOrigin })},
	{"change-older-bundle", "Shows an older copy of a bundle beside it, changed.", NeedsCopy, found("bundle.partial"),
		older(entries, func(b []byte) { b[len(b)-2] ^= 1 })},
	{"change-older-tile", "Shows an older copy of a tile beside it, changed.", NeedsCopy, found("tile.partial"),
		older(0, func(b []byte) { b[0] ^= 1 })},
	{"change-copy", "Changes a file that is there for standard tools.", NeedsCopy, found("copy.differs"), changeCopy},
	{"stale-head", "Shows an older head, which the log once signed, over the tiles that there are now.", NeedsReceipt, nil, staleHead},
	{"remove-bundle", "Takes a bundle of entries away.", NeedsCopy, nil,
		takes(func(s *subject) string { return record.TilePath(tileOf(entries, 0, s.head.Size)) })},
	{"remove-tile", "Takes a tile away.", NeedsCopy, nil,
		takes(func(s *subject) string { return record.TilePath(tileOf(0, 0, s.head.Size)) })},
	{"remove-head", "Takes the head away.", NeedsCopy, nil, takes(func(*subject) string { return checkpoint })},
}

// ofSealed are the rules that find another history under a seal: a ceremony in it names a head that is not this history's, so that what
// it said of the TPM does not count.
var ofSealed = found("seal.head", "governance.unauthorised", "seal.pcr.replay")

// withKey is what a thief of the log's signing key can do.
var withKey = []Mutation{
	{"rewrite-event", "Rewrites a sealed event and all that follows, and signs it.", NeedsKey, ofSealed,
		rewrites(func(ctx context.Context, h *history, i uint64) (uint64, error) {
			return i + 1, h.edit(ctx, i, harmless)
		})},
	{"remove-event", "Takes a sealed event out, numbers and chains the rest anew, and signs it.", NeedsKey, ofSealed,
		rewrites(func(_ context.Context, _ *history, i uint64) (uint64, error) { return i + 1, nil })},
	{"insert-event", "Puts an event in where the log is sealed, numbers and chains the rest anew, and signs it.", NeedsKey, ofSealed,
		rewrites(func(ctx context.Context, h *history, i uint64) (uint64, error) { return i, h.edit(ctx, i, harmless) })},
	{"change-producer", "Has a sealed event come from another program of the same user, and signs it.", NeedsKey, ofSealed,
		rewrites(func(ctx context.Context, h *history, i uint64) (uint64, error) {
			return i + 1, h.edit(ctx, i, func(e *record.Entry) { e.Producer.Exe = "/usr/bin/true" })
		})},
	{"remove-gap", "Takes the record of a gap in a producer's numbering out of the sealed log, and signs it.", NeedsKey, found("seal.head"), removeGap},
	{"remove-seal", "Takes a seal out, chains the rest anew, and signs it.", NeedsKey,
		found("seal.number", "seal.previous", "seal.pcr.replay", "seal.head", "seal.counter.growth", "seal.counter.boot", "seal.clock.order", "seal.abandoned"), removeSeal},
	{"garble-seal", "Puts something else in the place of a seal, and signs it.", NeedsKey, found("seal.format"), notSeal},
	{"forge-quote", "Changes a seal's quote, which only the TPM can sign, and signs the log.", NeedsKey, found("seal.quote.signature"),
		garbleSeal(func(x *attest.Seal) { x.Quote.Signature[len(x.Quote.Signature)-1] ^= 1 })},
	{"forge-counter", "Changes the attestation of a seal's counter, which only the TPM can sign, and signs the log.", NeedsKey, found("seal.counter.signature"),
		garbleSeal(func(x *attest.Seal) { x.Counter.Signature[len(x.Counter.Signature)-1] ^= 1 })},
	{"replace-linked", "Puts an event behind one that was replaced, without linking it, and signs it.", NeedsKey, found("chain.prev"), unlinked},
	{"sign-other-root", "Signs the head of another history over these entries.", NeedsKey, found("tree.root"), otherRoot},
	{"replay-entry", "Appends an event again as it is.", NeedsKey, found("entry.index"),
		forges(func(h *history, e *record.Entry) { e.Prev = h.prev; h.addAs(e) })},
	{"splice-log", "Appends an entry of another log, linked into this one.", NeedsKey, found("entry.log"),
		forges(func(h *history, e *record.Entry) { e.Log = otherOrigin; h.add(e) })},
	{"sign-spaced", "Appends an entry with a space in it.", NeedsKey, found("entry.canonical"), signSpaced},
	{"forge-record", "Appends a record of the machine of a kind that there is not.", NeedsKey, found("entry.body"),
		forges(func(h *history, e *record.Entry) { h.add(own(e, record.KindSystem, []byte(`{"event":"party"}`))) })},
	{"orphan-event", "Appends an event that comes from nobody.", NeedsKey, found("entry.producer"),
		forges(func(h *history, e *record.Entry) { e.Producer = nil; h.add(e) })},
	{"impersonate-machine", "Has a user append a record of the machine.", NeedsKey, found("entry.producer"), impersonate},
	{"append-without-right", "Appends an event of a user who may not append.", NeedsKey, found("governance.role"), noRight},
	{"remake-log", "Begins the log anew, under the same name and with the same keys.", NeedsKey, found("genesis.fingerprint"),
		regenesis(func(_ *subject, g *ceremony.Genesis) error { g.Software = "selftest"; return nil })},
	{"remove-genesis", "Begins the log with something else than a genesis.", NeedsKey, found("genesis.format"), notGenesis},
	{"second-genesis", "Appends another genesis, which would give the log to somebody else.", NeedsKey, found("governance.unauthorised"), secondGenesis},
	{"forge-proposal", "Appends a proposal that no officer signed.", NeedsKey, found("governance.unauthorised"),
		forges(func(h *history, e *record.Entry) {
			h.add(own(e, record.KindProposal, []byte(`{"action":"officers.set"}`)))
		})},
	{"forge-enactment", "Appends an enactment of what nobody proposed.", NeedsKey, found("governance.unauthorised"), forgeEnactment},
	{"recover-falsely", "Declares what was logged behind an event lost, without the officers.", NeedsKey, found("governance.unauthorised"), recoverFalsely},
	{"recover-elsewhere", "Has a recovery that officers declared go on from another seal than the last.", NeedsKey, found("seal.recovery"), recoverElsewhere},
	{"forge-approval", "Has an officer approve something else than what was signed.", NeedsKey, found("governance.unauthorised"), forgeApproval},
	{"replay-approval", "Shows an officer's approval again.", NeedsKey, found("governance.unauthorised"), replayApproval},
	{"remove-approvals", "Takes the officers' approval of the genesis out.", NeedsKey, found("governance.unauthorised", "seal.head"), removeApprovals},

	{"move-clock", "Dates an event back by an hour.", NeedsKey, found("time.stamp"), forgesTime(func(t *clock.Stamp) { t.Sys -= int64(time.Hour) })},
	{"shrink-stamp", "Claims that an event's time is known twice as exactly.", NeedsKey, found("time.stamp"), forgesTime(func(t *clock.Stamp) { t.Bound /= 2 })},
	{"invent-round", "Has an event name a round of measurement that there is not.", NeedsKey, found("time.missing"), forgesTime(func(t *clock.Stamp) { t.Round += 1000 })},
	{"remove-round", "Takes a round of measurement out that entries rest on.", NeedsKey, found("time.missing", "time.order", "time.state", "time.stamp", "time.token", "seal.head"), removeRound},
	{"shrink-round", "Claims a smaller bound than a round's samples give.", NeedsKey, found("time.round"),
		forgesClock(false, false, func(x *clock.Evidence) { x.Round.Mapping.Bound /= 2 })},
	{"move-sample", "Has the servers of a round have answered a second later.", NeedsKey, found("time.round", "time.state"),
		forgesClock(false, false, moveSamples)},
	{"repeat-round", "Shows a round of measurement again.", NeedsKey, found("time.order"), forgesClock(false, true, func(*clock.Evidence) {})},
	{"invent-state", "Has the clock lose its sources when no time has passed.", NeedsKey, found("time.state"),
		forgesClock(false, true, func(x *clock.Evidence) {
			r := x.Round
			*x = clock.Evidence{Transition: &clock.Transition{Base: r.Number, Reason: clock.ReasonAge, From: r.State, To: clock.Holdover, Epoch: r.Epoch, Reading: r.Reading}}
		})},
	{"garble-clock", "Puts a record of the clock that says nothing in the place of one.", NeedsKey, found("time.evidence"),
		forgesClock(false, false, func(x *clock.Evidence) { *x = clock.Evidence{} })},
	{"swap-clock-policy", "Judges the clock by a looser policy than the governed one.", NeedsKey, found("time.policy"),
		forgesClock(true, false, func(x *clock.Evidence) { x.Transition.Policy.Limit++ })},
	{"date-token-back", "Has a time-stamp token state a time an hour earlier.", NeedsKey, found("time.token"), forgeToken},
}

// withOthers is what is held by others than the log: receipts, and what witnesses saw.
var withOthers = []Mutation{
	{"rewrite-receipted", "Rewrites an event that somebody has a receipt of, and signs it.", NeedsKey, found("receipt.entry"),
		receipted(func(ctx context.Context, h *history, i uint64) error {
			h.goOn(ctx, i-1, i)
			return h.edit(ctx, i, harmless)
		})},
	{"rewrite-before-receipt", "Rewrites what stands before an event that somebody has a receipt of, as far as the chain lets it, and signs it.", NeedsKey, found("receipt.tree", "chain.prev", "time.missing", "seal.head", "governance.unauthorised", "governance.role"), beforeReceipt},
	{"cut-receipted", "Cuts the log off before an event that somebody has a receipt of, and signs it.", NeedsKey, nil, cutReceipted},
	{"garble-receipt", "Shows something else as a receipt.", NeedsReceipt, found("receipt.format"), spoils(false, func(*record.Receipt) []byte { return []byte(`{"entry":1}`) })},
	{"edit-receipt-head", "Writes another size into a receipt's head.", NeedsReceipt, found("receipt.signature"), spoils(true, func(r *record.Receipt) []byte {
		c, err := headText(r.Checkpoint)
		if err == nil {
			text := c.Text()
			c.Size++
			r.Checkpoint = bytes.Replace(r.Checkpoint, []byte(text), []byte(c.Text()), 1)
		}
		return nil
	})},
	{"edit-receipt-entry", "Changes the entry that a receipt is of.", NeedsReceipt, found("receipt.proof"),
		spoils(true, func(r *record.Receipt) []byte { r.Entry = flipDigit(r.Entry); return nil })},
	{"cut-cosigned", "Shows an older head, signed by the log, than the one that a witness saw: the log's end is cut off.", NeedsKey, found("witness.beyond"),
		witnessed(func(ctx context.Context, s *subject, cosigned []byte) (Source, []byte, error) {
			src, err := cutTo(ctx, s)
			return src, cosigned, err
		})},
	{"rewrite-cosigned", "Rewrites the end of the log that a witness saw, and signs it.", NeedsKey, found("witness.tree"),
		witnessed(func(ctx context.Context, s *subject, cosigned []byte) (Source, []byte, error) {
			src, err := rewriteEnd(ctx, s)
			return src, cosigned, err
		})},
	{"edit-cosigned", "Writes another size into a cosigned head.", NeedsWitness, found("witness.signature"),
		witnessed(func(_ context.Context, s *subject, cosigned []byte) (Source, []byte, error) {
			c := s.head
			c.Size--
			return nil, bytes.Replace(cosigned, []byte(s.head.Text()), []byte(c.Text()), 1), nil
		})},
	{"extend-cosigned", "Adds a line to a cosigned head's text.", NeedsWitness, found("witness.format"),
		witnessed(func(_ context.Context, s *subject, cosigned []byte) (Source, []byte, error) {
			return nil, bytes.Replace(cosigned, []byte("\n\n"), []byte("\nmore\n\n"), 1), nil
		})},
	{"cut-remembered", "Cuts the end off a log that was verified before, and signs an older head.", NeedsKey, found("continuity.beyond"),
		remembered(func(ctx context.Context, s *subject, e *exhibit) (err error) { e.src, err = cutTo(ctx, s); return err })},
	{"rewrite-remembered", "Rewrites the end of a log that was verified before, and signs it.", NeedsKey, found("continuity.tree"),
		remembered(func(ctx context.Context, s *subject, e *exhibit) (err error) {
			e.src, err = rewriteEnd(ctx, s)
			return err
		})},
	{"edit-earlier", "Writes another root into a head that was kept.", NeedsMemory, found("continuity.signature"),
		remembered(func(_ context.Context, s *subject, e *exhibit) (err error) {
			c := s.head
			c.Root[0] ^= 1
			e.earlier[0], err = NewEarlier("earlier", bytes.Replace(s.signed, []byte(s.head.Text()), []byte(c.Text()), 1))
			return err
		})},
	{"older-counter", "Shows a log whose TPM's counter is behind what an earlier run knew of it.", NeedsMachine, found("continuity.counter"),
		behind(func(seal *MemorySeal) { seal.Counter++ })},
	{"older-clock", "Shows a log whose TPM's clock is behind what an earlier run knew of it.", NeedsMachine, found("continuity.clock"),
		behind(func(seal *MemorySeal) { seal.Clock++ })},
}

// withMachine is what somebody can do who has the machine: its TPM signs what he has it sign.
var withMachine = []Mutation{
	{"seal-other-history", "Seals a head that is not the log's.", NeedsMachine, found("seal.head"),
		deviates(deviation{heads: func(_ *history, logs []attest.Head) error { logs[0].Hash[0] ^= 1; return nil }})},
	{"seal-other-log", "Seals another log only.", NeedsMachine, found("seal.head"),
		deviates(deviation{heads: func(_ *history, logs []attest.Head) error { logs[0].Log = otherOrigin; return nil }})},
	{"seal-beyond", "Seals entries that there are not.", NeedsMachine, found("seal.head"),
		deviates(deviation{heads: func(_ *history, logs []attest.Head) error { logs[0].Size += 1000; return nil }})},
	{"seal-less", "Seals an older, shorter log after it was sealed longer.", NeedsMachine, found("seal.head.order"), deviates(deviation{heads: smallerHead})},
	{"set-counter-back", "Seals with the counter set back.", NeedsMachine, found("seal.counter.growth"),
		deviates(deviation{counter: func(a *attestation) { a.value(a.counted() - 1) }})},
	{"jump-counter", "Seals after another program used the counter.", NeedsMachine, found("seal.counter.growth"),
		deviates(deviation{counter: func(a *attestation) { a.value(a.counted() + 2) }})},
	{"reset-without-counting", "Resets the machine and seals without a new value of the counter.", NeedsMachine, found("seal.counter.boot"),
		deviates(deviation{
			counter:   func(a *attestation) { a.resets++ },
			statement: func(st *attest.Statement) { st.PCR.Before = record.Hash{} },
		})},
	{"set-tpm-clock-back", "Seals with the TPM's clock set back, as an older state of it or another TPM would have it.", NeedsMachine, found("seal.clock.order"),
		deviates(deviation{counter: func(a *attestation) { a.clock -= 21 }})},
	{"extend-seal-pcr", "Extends something that is no statement into the seal PCR: a fork of the log, or another program.", NeedsMachine, found("seal.pcr.replay"),
		deviates(deviation{statement: func(st *attest.Statement) { st.PCR.Before[0] ^= 1 }})},
	{"skip-extension", "Quotes without having extended the statement.", NeedsMachine, found("seal.pcr.extend"),
		deviates(deviation{values: func(p []attest.PCRValue) []attest.PCRValue {
			for i := range p {
				p[i].Value[0] ^= 1
			}
			return p
		}})},
	{"change-pcr-values", "Shows other PCR values than were quoted.", NeedsMachine, found("seal.pcr.digest"),
		deviates(deviation{quote: func(q *attestation) { q.rest[len(q.rest)-1] ^= 1 }})},
	{"drop-seal-pcr", "Shows the values of other PCRs than were quoted.", NeedsMachine, found("seal.pcr.selection"),
		deviates(deviation{values: func(p []attest.PCRValue) []attest.PCRValue { return p[:1:1] }, statement: func(st *attest.Statement) { st.PCR.Index ^= 1 }})},
	{"quote-less", "Leaves a PCR that the policy wants quoted out of the quote.", NeedsMachine, found("seal.pcr.selection"), quotesLess},
	{"swap-heads", "Has the counter certified for other heads than the statement names.", NeedsMachine, found("seal.counter.heads"),
		deviates(deviation{counter: func(a *attestation) { a.extra = bytes.Clone(a.extra); a.extra[0] ^= 1 }})},
	{"swap-statement", "Has another statement quoted than the one that is shown.", NeedsMachine, found("seal.quote.statement"),
		deviates(deviation{quote: func(q *attestation) { q.extra = bytes.Clone(q.extra); q.extra[0] ^= 1 }})},
	{"swap-counter", "Has another counter certified than the enrolled one.", NeedsMachine, found("seal.counter.name"),
		deviates(deviation{counter: func(a *attestation) { a.rest[10] ^= 1 }})},
	{"swap-attestation", "Has the statement name another attestation of the counter.", NeedsMachine, found("seal.counter.attest"),
		deviates(deviation{statement: func(st *attest.Statement) { st.Counter.Attest[0] ^= 1 }})},
	{"reset-within-seal", "Has the machine reset between the two signatures of a seal.", NeedsMachine, found("seal.clock.one-boot"),
		deviates(deviation{quote: func(q *attestation) { q.resets++ }})},
	{"change-firmware", "Changes the TPM's firmware between the two signatures of a seal.", NeedsMachine, found("seal.firmware"),
		deviates(deviation{quote: func(q *attestation) { q.firmware++ }})},
	{"swap-signer", "Signs with a key outside the endorsement hierarchy, to which the TPM reports its counts obfuscated.", NeedsMachine, found("seal.signer"),
		deviates(deviation{quote: func(q *attestation) { q.signer = bytes.Clone(q.signer); q.signer[5] ^= 1 }})},
	{"skip-number", "Leaves a seal's number out: one is held back.", NeedsMachine, found("seal.number"),
		deviates(deviation{statement: func(st *attest.Statement) { st.Number++ }})},
	{"seal-on-other", "Seals on another seal than the one before.", NeedsMachine, found("seal.previous"),
		deviates(deviation{statement: func(st *attest.Statement) { st.Previous[0] ^= 1 }})},
	{"abandon-falsely", "Calls a seal interrupted by a reset that there was not.", NeedsMachine, found("seal.abandoned", "seal.pcr.replay"), abandonedWithoutReset},
	{"forge-activation", "Records that the TPM opened a credential which it did not.", NeedsKey, found("enrolment.activation"), forgedActivation},
	{"unrestrict-ak", "Begins the log anew with an attestation key that signs whatever it is given.", NeedsOther, found("seal.enrolment", "genesis.fingerprint", "enrolment.ak", "enrolment.endorsement"),
		regenesis(unrestrictAK)},
	{"swap-ak", "Begins the log anew on another machine's TPM.", NeedsOther, found("enrolment.ak", "genesis.fingerprint", "enrolment.endorsement"), swapAK},
	{"unendorse-tpm", "Begins the log anew with a TPM that no authority certifies.", NeedsOther, found("enrolment.endorsement", "genesis.fingerprint"), unendorse},
}
