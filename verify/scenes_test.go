package verify_test

import (
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"slices"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"bulla/attest"
	"bulla/ceremony"
	"bulla/clock"
	"bulla/record"
	"bulla/verify"
)

// The logs that vectors are made of, each the same every time.

// repeated is a builder whose keys sign the same every time.
func repeated(t testing.TB) *builder {
	b := newBuilder(t)
	b.keys = []crypto.Signer{repeatable{testKey(t, 1)}, testEd25519(1)}
	return b
}

// village is a log without anything: no TPM, no measured time, no officers.
func village(t testing.TB) *builder { return repeated(t).begin().events(5) }

// hamlet is a log with officers and measured time.
func hamlet(t testing.TB) *council {
	c := people(t, repeated(t))
	c.begin()
	c.approveGenesis("alice", "bob")
	c.startClock().measure().events(1)
	c.token(func(*record.Token) {})
	c.events(1)
	return c
}

// keep is a log with seals of two boots, and a record of a gap.
func keep(t testing.TB) *builder {
	b := repeated(t).enrolled()
	b.endorsed()
	b.begin().events(2)
	b.add(record.KindSystem, nil, []byte(`{"event":"gap","gap":{"after":3,"next":5,"stream":"s","uid":1000}}`))
	b.events(2).seal(b.head(b.tree.Size())).events(1)
	b.chip.reset()
	b.chip.increment = true
	return b.seal(b.head(b.tree.Size())).events(2)
}

// trust is the policy of an auditor who wants all that the log has.
func (b *builder) trust() *verify.Policy {
	p := b.policy()
	p.NoSeals, p.NoTime = b.chip == nil, b.machine == nil
	return p
}

// attester is the attestation key of the log's TPM; of a log without one, nobody's.
func (b *builder) attester() crypto.Signer {
	if b.chip == nil {
		return repeatable{testKey(b.t, 78)}
	}
	return repeatable{b.chip.key}
}

// scene is honest evidence, evidence that cannot be checked, or what another contradicts who is honest.
type scene struct {
	name, about string
	verdict     verify.Verdict
	make        func(t *testing.T) *vector
}

// of is a vector of a log, with the policy of somebody who wants all that it has.
func of(b *builder) *vector { return &vector{files: b.export(), policy: b.trust()} }

func (b *builder) system(body string) *builder {
	b.t.Helper()
	b.add(record.KindSystem, nil, []byte(body))
	return b
}

// restart has the daemon stop, or be killed, and begin again.
func (b *builder) restart(stop bool) *builder {
	b.t.Helper()
	if stop {
		b.system(`{"event":"stop"}`)
	}
	m := b.machine
	m.raw += int64(5 * time.Second)
	now := m.now()
	m.number = 0
	b.stamp = clock.Stamp{Sys: now.Sys, Epoch: now.Epoch + 1, State: clock.Unknown}
	m.discipline = clock.Discipline{}
	e, d := clock.Begin(clock.Start{Policy: b.genesis.Clock, Sources: []string{"s0", "s1", "s2", "s3", "s4"}, BootID: "boot", Reading: m.reading(), Resume: clock.Resume{Epoch: now.Epoch, Earliest: now.Earliest()}})
	m.discipline = d
	b.system(`{"event":"start"}`)
	b.clock(&e)
	if b.chip != nil {
		b.chip.increment = true
	}
	return b
}

// running is a sealed log with measured time.
func running(t *testing.T) *builder {
	b := repeated(t)
	b.genesis.Clock = clock.DefaultPolicy()
	b.enrolled().begin().system(`{"event":"start"}`).startClock().measure().events(1)
	return b.seal(b.head(b.tree.Size())).events(1)
}

// sealOn seals what is there, and goes on.
func (b *builder) sealOn() *builder {
	b.t.Helper()
	return b.seal(b.head(b.tree.Size())).events(1)
}

var scenes = []scene{
	{"honest", "Officers, measured time, a token, a gap in a producer's numbering, seals of two boots, an endorsed TPM: all as it should be.", verify.OutcomeVerified, func(t *testing.T) *vector {
		return of(town(t).busy(6).builder)
	}},
	{"honest-empty", "A log of no entries: there is nothing to govern it yet.", verify.OutcomeNotCheckable, func(t *testing.T) *vector {
		return &vector{files: repeated(t).export(), policy: village(t).trust()}
	}},
	{"honest-one-entry", "A log of its genesis alone.", verify.OutcomeVerified, func(t *testing.T) *vector { return of(repeated(t).begin()) }},
	{"honest-256", "A log that fills one bundle and one tile, and no more.", verify.OutcomeVerified, func(t *testing.T) *vector {
		return of(repeated(t).begin().events(255))
	}},
	{"honest-restart", "The daemon stopped and was started again; the TPM went on.", verify.OutcomeVerified, func(t *testing.T) *vector {
		return of(running(t).restart(true).measure().events(1).sealOn())
	}},
	{"honest-kill", "The daemon was killed and started again: a start without a stop before it.", verify.OutcomeVerified, func(t *testing.T) *vector {
		return of(running(t).restart(false).measure().events(1).sealOn())
	}},
	{"honest-reboot", "The machine was started again: the TPM's PCRs began anew, and its counter grew.", verify.OutcomeVerified, func(t *testing.T) *vector {
		b := running(t)
		b.chip.reset()
		return of(b.restart(true).measure().events(1).sealOn())
	}},
	{"honest-power-cut", "The machine lost power within a seal: the next one lists it as abandoned.", verify.OutcomeVerified, func(t *testing.T) *vector {
		b := running(t)
		b.interrupt(b.head(b.tree.Size()))
		return of(b.restart(false).measure().events(1).sealOn())
	}},
	{"honest-suspend", "The machine slept: the TPM counted a restart and kept its PCRs, time was measured anew.", verify.OutcomeVerified, func(t *testing.T) *vector {
		b := running(t)
		b.machine.raw += int64(time.Second)
		b.chip.restarts++
		b.disturb(clock.ReasonSuspend, int64(time.Hour)).measure().measure().events(1)
		return of(b.sealOn())
	}},
	{"honest-clock-step", "The system's clock was set by a minute: true time is known all along.", verify.OutcomeVerified, func(t *testing.T) *vector {
		b := running(t)
		b.machine.stepped += int64(time.Minute)
		b.disturb(clock.ReasonStep, int64(time.Minute)).measure().events(1)
		return of(b.sealOn())
	}},
	{"honest-leap-second", "A leap second was announced, came and went.", verify.OutcomeVerified, func(t *testing.T) *vector {
		b := repeated(t)
		b.genesis.Clock = clock.DefaultPolicy()
		b.begin().startClock()
		m := b.machine
		m.announced = 1
		m.raw = leapAt - truth - int64(10*time.Minute)
		b.measure().events(1)
		m.raw = leapAt - truth + int64(time.Minute) // the kernel stepped back by the second that was inserted
		m.inserted, m.announced = int64(time.Second), 0
		return of(b.measure().events(1))
	}},
	{"honest-several-logs", "The machine seals three logs at once.", verify.OutcomeVerified, func(t *testing.T) *vector {
		b := running(t)
		b.chip.others = []attest.Head{{Hash: record.Hash{1}, Log: "a.example/log", Size: 7}, {Hash: record.Hash{2}, Log: "z.example/log", Size: 9}}
		return of(b.sealOn())
	}},
	{"honest-policy-set", "Officers gave a further user the right to append, and that user does.", verify.OutcomeVerified, func(t *testing.T) *vector {
		c := hamlet(t)
		document := c.propose(same)
		c.approve(1, document, "bob")
		c.enact(document)
		c.add(record.KindEvent, &record.Producer{UID: 1002, GID: 1002}, []byte(`{"type":"a"}`))
		return of(c.builder)
	}},
	{"honest-officers-set", "Officers appointed another one in the place of one of them.", verify.OutcomeVerified, func(t *testing.T) *vector {
		c := hamlet(t)
		c.follow()
		p := c.state.Policy
		content := &ceremony.OfficersSet{Officers: slices.Clone(p.Officers), ProposerCounts: true, Thresholds: p.Thresholds}
		content.Officers[2].Name = "dave"
		content.Officers[2].Key = authorized(t, testEd25519(103))
		document := c.proposing(content, same)
		c.approve(1, document, "bob")
		c.enact(document)
		return of(c.events(1))
	}},
	{"honest-rotation", "Officers had a new key made, and put it in the place of the old one, which signed the handover; receipts under either hold.", verify.OutcomeVerified, func(t *testing.T) *vector {
		return rotated(t)
	}},
	{"honest-new-tpm", "Officers enrolled another TPM, and seals go on in it.", verify.OutcomeVerified, func(t *testing.T) *vector {
		c := town(t)
		c.replaceTPM(func(*attest.Enrolment) {})
		return of(c.builder)
	}},
	{"honest-receipts", "A producer kept two receipts of the same event: of a log that has grown since.", verify.OutcomeVerified, func(t *testing.T) *vector {
		b := village(t)
		r := b.receipt(3)
		v := of(b.events(2))
		v.receipts = []verify.Receipt{jsonReceipt(t, r), {Name: "3.tlog-proof", Data: r.TLogProof()}}
		return v
	}},
	{"honest-witnesses", "A quorum of two witnesses cosigned: one an older head, one the head itself.", verify.OutcomeVerified, func(t *testing.T) *vector {
		b := village(t)
		old := b.sign()
		f := b.events(2).export()
		f["witness/0"], f["checkpoint"] = cosigned(t, old, 1), cosigned(t, f["checkpoint"], 2)
		return &vector{files: f, policy: witnessed(b)}
	}},
	{"honest-older-copies", "Beside the tiles lie smaller ones of an earlier size, as they were then.", verify.OutcomeVerified, func(t *testing.T) *vector {
		b := village(t)
		v := of(b)
		v.files["tile/0/000.p/3"] = b.tile(tlog.Tile{H: 8, L: 0, N: 0, W: 3})
		v.files["tile/entries/000.p/3"] = b.tile(tlog.Tile{H: 8, L: -1, N: 0, W: 3})
		return v
	}},
	{"honest-other-files", "Other files lie beside the evidence; they are reported, and nothing more.", verify.OutcomeVerified, func(t *testing.T) *vector {
		v := of(village(t))
		v.files["notes.txt"] = []byte("copied on Monday\n")
		return v
	}},
	{"honest-unknown-line", "A further line on the head, by a key that nobody names, is reported, and nothing more.", verify.OutcomeVerified, func(t *testing.T) *vector {
		b := village(t)
		v := of(b)
		v.files["checkpoint"] = cosigned(t, v.files["checkpoint"], 9)
		return v
	}},
	{"honest-earlier", "The log extends a head that an auditor kept, and what an earlier run remembered.", verify.OutcomeVerified, func(t *testing.T) *vector {
		b := keep(t)
		v := of(b)
		memory := v.run(t).Memory
		earlier := v.files["checkpoint"]
		v = of(b.sealOn())
		v.earlier, v.memory = earlier, memory
		return v
	}},
	{"honest-endorsed", "The policy names the TPM's maker and its attestation key, and another maker.", verify.OutcomeVerified, func(t *testing.T) *vector {
		b := keep(t)
		v := of(b)
		chain := b.genesis.TPM.EKCertificates
		v.policy.EKRoots = [][]byte{maker(t, 52, "Another maker"), chain[len(chain)-1]}
		v.policy.AKs = [][]byte{b.genesis.TPM.AKName}
		return v
	}},
	{"honest-recovery", "A store was put back. Its officers declared what was lost and closed the log; a receipt of that is *lost, declared*, and seals go on.", verify.OutcomeVerified, func(t *testing.T) *vector {
		log, lost, _ := recovered(t)
		v := of(log.builder)
		v.receipts = []verify.Receipt{jsonReceipt(t, lost)}
		return v
	}},
	{"recovery-not-pinned", "Of the same log the policy names no genesis: anybody with the key could have appointed those officers.", verify.OutcomeNotCheckable, func(t *testing.T) *vector {
		log, lost, _ := recovered(t)
		v := of(log.builder)
		v.policy.Genesis = nil
		v.receipts = []verify.Receipt{jsonReceipt(t, lost)}
		return v
	}},
	{"recovery-beyond", "Of the same log there is a receipt beyond the head that the officers declared known: it is not excused.", verify.OutcomeTampered, func(t *testing.T) *vector {
		log, _, hidden := recovered(t)
		v := of(log.builder)
		v.receipts = []verify.Receipt{jsonReceipt(t, hidden)}
		return v
	}},
	{"incomplete-rotation", "Of the same log a bundle is missing: the key that signed is not known then, which contradicts nothing.", verify.OutcomeNotCheckable, func(t *testing.T) *vector {
		v := rotated(t)
		delete(v.files, "tile/entries/000.p/15")
		return v
	}},
	{"no-policy", "Keys and genesis are then known from the log alone.", verify.OutcomeNotCheckable, func(t *testing.T) *vector {
		return &vector{files: village(t).export()}
	}},
	{"no-genesis", "The policy names no genesis: anybody with the key could have made another log of the same name.", verify.OutcomeNotCheckable, func(t *testing.T) *vector {
		v := of(village(t))
		v.policy.Genesis = nil
		return v
	}},
	{"policy-of-another-log", "The policy is of another log: nothing is known of this one.", verify.OutcomeNotCheckable, func(t *testing.T) *vector {
		v, other := of(village(t)), repeated(t)
		other.origin = "other.example/log"
		v.policy = other.begin().trust()
		return v
	}},
	{"no-seals", "The policy wants seals, and the log has none.", verify.OutcomeNotCheckable, func(t *testing.T) *vector {
		v := of(village(t))
		v.policy.NoSeals = false
		return v
	}},
	{"no-time", "The policy wants measured time, and the log has none.", verify.OutcomeNotCheckable, func(t *testing.T) *vector {
		v := of(village(t))
		v.policy.NoTime = false
		return v
	}},
	{"long-tail", "Two entries are without an anchor, and the policy allows one.", verify.OutcomeNotCheckable, func(t *testing.T) *vector {
		v, one := of(keep(t)), uint64(1)
		v.policy.Tail = &one
		return v
	}},
	{"no-quorum", "One of two witnesses cosigned, and the policy wants both.", verify.OutcomeNotCheckable, func(t *testing.T) *vector {
		b := village(t)
		f := b.export()
		f["witness/0"] = cosigned(t, f["checkpoint"], 1)
		return &vector{files: f, policy: witnessed(b)}
	}},
}

// leapAt is the end of the month that the tests' clocks are in, UTC.
var leapAt = time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC).UnixNano()

// rotated is a log whose key was replaced; the policy knows the old one.
func rotated(t *testing.T) *vector {
	c := hamlet(t)
	old, pinned := jsonReceipt(t, c.receipt(c.tree.Size()-1)), c.trust()
	next := repeatable{testKey(t, 2)}
	spki, err := x509.MarshalPKIXPublicKey(next.Public())
	c.must(err)
	key := ceremony.Key{Algorithm: "ecdsa-p256", Purpose: ceremony.PurposeLog, SPKI: spki}
	document := c.proposing(&ceremony.KeyGenerate{Algorithm: key.Algorithm, Purpose: key.Purpose}, same)
	c.approve(1, document, "bob")
	c.enactWith(1, document, &key)
	document = c.proposing(&ceremony.KeyRotate{Old: ceremony.OldSigns, Purpose: key.Purpose, SPKI: key.Hash()}, same)
	c.approve(2, document, "bob")
	replaced := c.keys
	c.keys = []crypto.Signer{replaced[0], next}
	c.enactWith(2, document, &ceremony.Rotated{Checkpoint: string(c.sign())})
	c.keys = []crypto.Signer{next, replaced[1]}
	v := of(c.events(1))
	v.policy = pinned
	v.receipts = []verify.Receipt{jsonReceipt(t, c.receipt(c.tree.Size()-1)), old}
	return v
}

// replaceTPM has officers enrol another TPM, after a change, and seals go on in it.
func (c *council) replaceTPM(change func(next *attest.Enrolment)) *attest.Enrolment {
	c.t.Helper()
	c.seal(c.head(c.tree.Size())).events(1)
	old := c.chip
	next := c.plug(79)
	change(next)
	next.Seal, next.Previous = old.number, old.quote
	c.chip.number, c.chip.quote, c.chip.increment = old.number, old.quote, true
	document := c.proposing(&ceremony.TPMEnrol{AKName: next.AKName, EK: sha256.Sum256(next.EK), PCR: next.PCR}, same)
	c.approve(1, document, "bob")
	c.enactWith(1, document, next)
	c.events(1).sealOn().sealOn()
	return next
}

// recovered is a log that was put back behind its first seal, and closed by its officers, who knew of all that was lost but one event;
// and receipts of an event that they knew to be lost, and of that one.
func recovered(t *testing.T) (log *council, lost, hidden record.Receipt) {
	c := town(t)
	c.events(3).sealOn()
	n, quote, size := c.chip.number, c.chip.quote, len(c.raw)
	c.events(1)
	lost, known := c.receipt(uint64(size)), c.whole()
	c.events(1)
	hidden = c.receipt(known.Size)
	c.seal(c.head(c.tree.Size()))
	log = c.cut(size)
	log.recovery(n, quote, known)
	log.seal(log.head(log.tree.Size())).system(`{"event":"stop"}`)
	return log, lost, hidden
}
