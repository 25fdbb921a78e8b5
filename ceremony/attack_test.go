package ceremony_test

import (
	"bytes"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hiddeco/sshsig"

	"bulla/ceremony"
	"bulla/clock"
	"bulla/record"
)

// attack is something that must be refused. It gets a log in which alice has proposed number 1, a quota of 5 streams, and nobody else
// has decided; two of alice, bob and carol are needed, and the proposer counts. What it adds is allowed; what it returns is not.
type attack struct {
	name   string
	reason string
	rule   ceremony.Rule
	make   func(r *rig) (record.Kind, any)
}

var attacks = []attack{
	{"one officer twice", "an officer counts once", ceremony.RuleDuplicate, func(r *rig) (record.Kind, any) {
		n := r.propose(r.policy(6))
		r.approve(n, "bob")
		return record.KindApproval, r.decision(n, ceremony.Approve, "bob")
	}},
	{"the proposer again", "a proposer who counts has counted already", ceremony.RuleDuplicate, func(r *rig) (record.Kind, any) {
		return record.KindApproval, r.decision(1, ceremony.Approve, "alice")
	}},
	{"the same signature under another name", "who signed is shown by the key, not by what the entry says", ceremony.RuleKey, func(r *rig) (record.Kind, any) {
		a := r.decision(1, ceremony.Approve, "bob")
		a.Officer = "carol"
		return record.KindApproval, a
	}},
	{"a second key of one officer", "an officer has the key that the officer was appointed with", ceremony.RuleKey, func(r *rig) (record.Kind, any) {
		r.people["bob"] = plain(r.t, ecdsaKey(r.t, elliptic.P256()))
		return record.KindApproval, r.decision(1, ceremony.Approve, "bob")
	}},
	{"an unknown key under an unknown name", "only officers approve", ceremony.RuleOfficer, func(r *rig) (record.Kind, any) {
		return record.KindApproval, r.decision(1, ceremony.Approve, "eve")
	}},
	{"an unknown key under an officer's name", "only officers approve", ceremony.RuleKey, func(r *rig) (record.Kind, any) {
		r.people["bob"] = r.people["eve"]
		return record.KindApproval, r.decision(1, ceremony.Approve, "bob")
	}},
	{"an officer's key in the signature, another's signature", "the key that a signature names proves nothing", ceremony.RuleSignature, func(r *rig) (record.Kind, any) {
		forged := unarmor(r.t, r.decision(1, ceremony.Approve, "alice").Signature)
		p := r.proposed(r.document(r.policy(6), "alice"), "eve")
		forged.Signature = unarmor(r.t, p.Signature).Signature
		p.Signature = armor(r.t, forged)
		return record.KindProposal, p
	}},
	{"a signature of another proposal", "a signature is good for the bytes that it was made of", ceremony.RuleSignature, func(r *rig) (record.Kind, any) {
		n := r.propose(r.policy(6))
		a := r.decision(1, ceremony.Approve, "bob")
		a.Signature = r.decision(n, ceremony.Approve, "bob").Signature
		return record.KindApproval, a
	}},
	{"a signature of another log's proposal", "the document names its log", ceremony.RuleSignature, func(r *rig) (record.Kind, any) {
		a := r.decision(1, ceremony.Approve, "bob")
		a.Signature = r.sign(bytes.Replace(r.numbers[1], []byte(origin), []byte("log.example/other"), 1), ceremony.Approve, "bob")
		return record.KindApproval, a
	}},
	{"another log's proposal", "the document names its log", ceremony.RuleLog, func(r *rig) (record.Kind, any) {
		d := bytes.Replace(r.document(r.policy(6), "alice"), []byte(origin), []byte("log.example/other"), 1)
		return record.KindProposal, r.proposed(d, "alice")
	}},
	{"a signature for another namespace", "a signature for git or for files is none for ceremonies", ceremony.RuleNamespace, func(r *rig) (record.Kind, any) {
		a := r.decision(1, ceremony.Approve, "bob")
		a.Signature = signFor(r, r.numbers[1], "file", sshsig.HashSHA512)
		return record.KindApproval, a
	}},
	{"a rejection shown as an approval", "rejections have a namespace of their own", ceremony.RuleNamespace, func(r *rig) (record.Kind, any) {
		a := r.decision(1, ceremony.Reject, "bob")
		a.Decision = ceremony.Approve
		return record.KindApproval, a
	}},
	{"a signature with SHA-256", "there is one hash: ssh-keygen's default", ceremony.RuleSignature, func(r *rig) (record.Kind, any) {
		a := r.decision(1, ceremony.Approve, "bob")
		a.Signature = signFor(r, r.numbers[1], ceremony.Namespace, sshsig.HashSHA256)
		return record.KindApproval, a
	}},
	{"a document altered by one byte", "the exact bytes are what was signed", ceremony.RuleSignature, func(r *rig) (record.Kind, any) {
		p := r.proposed(r.document(r.policy(6), "alice"), "alice")
		p.Document = bytes.Replace(p.Document, []byte(`"streams":6`), []byte(`"streams":7`), 1)
		return record.KindProposal, p
	}},
	{"an approval of an altered document", "approvals name the document by its hash", ceremony.RuleDocument, func(r *rig) (record.Kind, any) {
		a := r.decision(1, ceremony.Approve, "bob")
		a.Document[31] ^= 1
		return record.KindApproval, a
	}},
	{"a signature altered by one byte", "it does not verify", ceremony.RuleSignature, func(r *rig) (record.Kind, any) {
		a := r.decision(1, ceremony.Approve, "carol")
		sig := unarmor(r.t, a.Signature)
		sig.Signature.Blob[9] ^= 1
		a.Signature = armor(r.t, sig)
		return record.KindApproval, a
	}},
	{"an armor with other lines", "there is one spelling of a signature", ceremony.RuleSignature, func(r *rig) (record.Kind, any) {
		a := r.decision(1, ceremony.Approve, "bob")
		a.Signature = string(sshsig.Armor(unarmor(r.t, a.Signature)))
		return record.KindApproval, a
	}},
	{"expired", "nothing is approved after its time", ceremony.RuleExpired, func(r *rig) (record.Kind, any) {
		r.now += int64(time.Hour)
		return record.KindApproval, r.decision(1, ceremony.Approve, "bob")
	}},
	{"expired before it is enacted", "nothing is enacted after its time", ceremony.RuleExpired, func(r *rig) (record.Kind, any) {
		r.approve(1, "bob")
		r.now += int64(time.Hour)
		return record.KindEnactment, r.enactment(1, nil)
	}},
	{"expired at the latest possible time", "the bound of the clock counts against the proposal", ceremony.RuleExpired, func(r *rig) (record.Kind, any) {
		r.approve(1, "bob")
		r.stamp = func(s *clock.Stamp) { s.Bound = int64(time.Hour) }
		return record.KindEnactment, r.enactment(1, nil)
	}},
	{"expired while the time is unknown", "without an estimate of UTC nobody knows that it has not expired", ceremony.RuleExpired, func(r *rig) (record.Kind, any) {
		r.approve(1, "bob")
		r.stamp = func(s *clock.Stamp) { *s = clock.Stamp{Sys: s.Sys, Epoch: 1, State: clock.Unknown} }
		return record.KindEnactment, r.enactment(1, nil)
	}},
	{"expired, with the system's clock set back", "the offset that was measured counts, not the system's clock", ceremony.RuleExpired, func(r *rig) (record.Kind, any) {
		r.approve(1, "bob")
		r.now += int64(2 * time.Hour)
		r.stamp = func(s *clock.Stamp) { s.Sys, s.Offset = s.Sys-int64(2*time.Hour), s.Offset+int64(2*time.Hour) }
		return record.KindEnactment, r.enactment(1, nil)
	}},
	{"expired, with clock and time servers set back", "the log itself shows that the time has passed", ceremony.RuleExpired, func(r *rig) (record.Kind, any) {
		r.approve(1, "bob")
		d, err := r.state.Propose(r.policy(6), "alice", r.head(), r.now+int64(3*time.Hour))
		if err != nil {
			r.t.Fatal(err)
		}
		r.add(record.KindProposal, r.proposed(d, "alice"))
		r.numbers[2] = d
		r.now += int64(2 * time.Hour)
		r.approve(2, "bob")
		r.now -= int64(2 * time.Hour)
		return record.KindEnactment, r.enactment(1, nil)
	}},
	{"proposed when it has expired", "it can never be enacted", ceremony.RuleExpired, func(r *rig) (record.Kind, any) {
		d, err := r.state.Propose(r.policy(6), "alice", r.head(), r.now)
		if err != nil {
			r.t.Fatal(err)
		}
		return record.KindProposal, r.proposed(d, "alice")
	}},
	{"an enactment replayed", "a proposal is enacted once", ceremony.RuleClosed, func(r *rig) (record.Kind, any) {
		r.approve(1, "bob")
		r.enact(1, nil)
		return record.KindEnactment, r.enactment(1, nil)
	}},
	{"a proposal replayed after its enactment", "a number is used once", ceremony.RuleNumber, func(r *rig) (record.Kind, any) {
		r.approve(1, "bob")
		r.enact(1, nil)
		return record.KindProposal, r.proposed(r.numbers[1], "alice")
	}},
	{"an approval replayed after the enactment", "what ended is not decided on", ceremony.RuleClosed, func(r *rig) (record.Kind, any) {
		r.approve(1, "bob")
		r.enact(1, nil)
		return record.KindApproval, r.decision(1, ceremony.Approve, "carol")
	}},
	{"a number left out", "numbers have no gaps, so that nobody can use them up", ceremony.RuleNumber, func(r *rig) (record.Kind, any) {
		return record.KindProposal, r.proposed(edited(r, r.document(r.policy(6), "alice"), "number", json.Number("9007199254740991")), "alice")
	}},
	{"approvals from before a change of officers", "an approval is given in view of a state; when that changes, it is void", ceremony.RuleClosed, func(r *rig) (record.Kind, any) {
		r.approve(1, "carol")
		n := r.propose(&ceremony.OfficersSet{Officers: r.officers("alice", "bob", "dave"), ProposerCounts: true, Thresholds: map[string]int{ceremony.Default: 2}})
		r.approve(n, "bob")
		r.enact(n, nil)
		return record.KindEnactment, r.enactment(1, nil)
	}},
	{"an officer who was replaced", "officers are those at the entry's index", ceremony.RuleOfficer, func(r *rig) (record.Kind, any) {
		n := r.propose(&ceremony.OfficersSet{Officers: r.officers("alice", "bob", "dave"), ProposerCounts: true, Thresholds: map[string]int{ceremony.Default: 2}})
		r.approve(n, "bob")
		r.enact(n, nil)
		return record.KindApproval, r.decision(r.propose(r.policy(6)), ceremony.Approve, "carol")
	}},
	{"a FIDO2 key that was not touched", "ssh-keygen -Y verify accepts it; it proves no person", ceremony.RuleTouch, func(r *rig) (record.Kind, any) {
		r.people["carol"] = r.people["carol"].(sk).with(0x04)
		return record.KindApproval, r.decision(1, ceremony.Approve, "carol")
	}},
	{"a FIDO2 key used without PIN", "the officer is appointed with the demand for it", ceremony.RulePIN, func(r *rig) (record.Kind, any) {
		r.people["carol"] = r.people["carol"].(sk).with(0x01)
		return record.KindApproval, r.decision(1, ceremony.Approve, "carol")
	}},
	{"a FIDO2 signature with other flags", "flags that mean nothing to us are not taken on trust", ceremony.RuleSignature, func(r *rig) (record.Kind, any) {
		r.people["carol"] = r.people["carol"].(sk).with(0x45)
		return record.KindApproval, r.decision(1, ceremony.Approve, "carol")
	}},
	{"touch written into the signature", "the key signs the flags too", ceremony.RuleSignature, func(r *rig) (record.Kind, any) {
		r.people["carol"] = r.people["carol"].(sk).with(0x00)
		a := r.decision(1, ceremony.Approve, "carol")
		sig := unarmor(r.t, a.Signature)
		sig.Signature.Rest[0] = 0x05
		a.Signature = armor(r.t, sig)
		return record.KindApproval, a
	}},
	{"made against another state", "what was reviewed must be what is changed", ceremony.RuleState, func(r *rig) (record.Kind, any) {
		r.approve(1, "bob")
		stale := r.document(r.policy(6), "alice")
		r.enact(1, nil)
		return record.KindProposal, r.proposed(edited(r, stale, "number", json.Number("2")), "alice")
	}},
	{"made against the same policy of an earlier time", "a state does not come back with its policy", ceremony.RuleState, func(r *rig) (record.Kind, any) {
		r.carry(r.policy(0), nil)
		stale := r.document(r.policy(6), "alice")
		r.carry(r.policy(1), nil)
		r.carry(r.policy(0), nil)
		return record.KindProposal, r.proposed(edited(r, stale, "number", json.Number("5")), "alice")
	}},
	{"a head that is not in the log", "the proposer saw a fork, or another log", ceremony.RuleHead, func(r *rig) (record.Kind, any) {
		d, err := r.state.Propose(r.policy(6), "alice", ceremony.Head{Root: record.Hash{1}, Size: 3}, r.now+int64(time.Hour))
		if err != nil {
			r.t.Fatal(err)
		}
		return record.KindProposal, r.proposed(d, "alice")
	}},
	{"a head beyond the log", "nobody can have seen it", ceremony.RuleHead, func(r *rig) (record.Kind, any) {
		h := r.head()
		h.Size++
		d, err := r.state.Propose(r.policy(6), "alice", h, r.now+int64(time.Hour))
		if err != nil {
			r.t.Fatal(err)
		}
		return record.KindProposal, r.proposed(d, "alice")
	}},
	{"too few approvals", "an enactment needs its threshold, whoever signs the log", ceremony.RuleThreshold, func(r *rig) (record.Kind, any) {
		return record.KindEnactment, r.enactment(1, nil)
	}},
	{"too few approvals, as a failure", "what was not approved is not tried", ceremony.RuleThreshold, func(r *rig) (record.Kind, any) {
		e := r.enactment(1, nil)
		e.Failed = "the device is gone"
		return record.KindEnactment, e
	}},
	{"an approval that was taken back", "a rejection takes the approval back", ceremony.RuleThreshold, func(r *rig) (record.Kind, any) {
		r.approve(1, "bob")
		r.add(record.KindApproval, r.decision(1, ceremony.Reject, "bob"))
		return record.KindEnactment, r.enactment(1, nil)
	}},
	{"an approval after a rejection", "a rejection is final", ceremony.RuleDuplicate, func(r *rig) (record.Kind, any) {
		r.add(record.KindApproval, r.decision(1, ceremony.Reject, "bob"))
		return record.KindApproval, r.decision(1, ceremony.Approve, "bob")
	}},
	{"an approval of what was withdrawn", "the proposer's rejection ends it", ceremony.RuleClosed, func(r *rig) (record.Kind, any) {
		r.add(record.KindApproval, r.decision(1, ceremony.Reject, "alice"))
		return record.KindApproval, r.decision(1, ceremony.Approve, "bob")
	}},
	{"an approval of what was rejected", "it ends when too few are left", ceremony.RuleClosed, func(r *rig) (record.Kind, any) {
		r.add(record.KindApproval, r.decision(1, ceremony.Reject, "bob"))
		r.add(record.KindApproval, r.decision(1, ceremony.Reject, "carol"))
		return record.KindEnactment, r.enactment(1, nil)
	}},
	{"an enactment of another document", "an enactment names the document by its hash", ceremony.RuleDocument, func(r *rig) (record.Kind, any) {
		r.approve(1, "bob")
		e := r.enactment(1, nil)
		e.Document[0] ^= 1
		return record.KindEnactment, e
	}},
	{"a proposal in another's name", "who proposes signs", ceremony.RuleKey, func(r *rig) (record.Kind, any) {
		return record.KindProposal, &ceremony.Proposed{Document: r.document(r.policy(6), "bob"), Signature: r.sign(r.document(r.policy(6), "bob"), ceremony.Approve, "alice")}
	}},
	{"a proposal by a stranger", "only officers propose", ceremony.RuleOfficer, func(r *rig) (record.Kind, any) {
		return record.KindProposal, r.proposed(r.document(r.policy(6), "eve"), "eve")
	}},
	{"rotation to a key that was not generated", "a key is generated in a ceremony before it is used", ceremony.RuleDocument, func(r *rig) (record.Kind, any) {
		k := r.newKey(ceremony.PurposeLog)
		return record.KindProposal, r.proposed(r.document(&ceremony.KeyRotate{Old: ceremony.OldSigns, Purpose: ceremony.PurposeLog, SPKI: k.Hash()}, "alice"), "alice")
	}},
	{"rotation to a key other than the named one", "the proposal names the key by its hash", ceremony.RuleOutcome, func(r *rig) (record.Kind, any) {
		n := rotation(r, ceremony.OldSigns)
		return record.KindEnactment, r.enactment(n, r.handover(r.keyInForce(ceremony.PurposeLog), r.state.Generated[1].Hash()))
	}},
	{"rotation that the old key did not sign", "it was to sign the handover", ceremony.RuleOutcome, func(r *rig) (record.Kind, any) {
		n := rotation(r, ceremony.OldSigns)
		return record.KindEnactment, r.enactment(n, r.handover(r.state.Generated[0].Hash()))
	}},
	{"rotation that the new key did not sign", "nothing shows that the device holds it", ceremony.RuleOutcome, func(r *rig) (record.Kind, any) {
		n := rotation(r, ceremony.OldLost)
		return record.KindEnactment, r.enactment(n, r.handover(r.keyInForce(ceremony.PurposeLog)))
	}},
	{"rotation with a head of a fork", "the handover is at a head of this log", ceremony.RuleHead, func(r *rig) (record.Kind, any) {
		n := rotation(r, ceremony.OldSigns)
		r.roots[len(r.roots)-1][0] ^= 1
		out := r.handover(r.keyInForce(ceremony.PurposeLog), r.state.Generated[0].Hash())
		r.roots[len(r.roots)-1][0] ^= 1
		return record.KindEnactment, r.enactment(n, out)
	}},
	{"rotation with a head from before it was proposed", "the handover is the last head of the old key", ceremony.RuleOutcome, func(r *rig) (record.Kind, any) {
		old := r.handover(r.keyInForce(ceremony.PurposeLog), addKey(r))
		n := r.propose(&ceremony.KeyRotate{Old: ceremony.OldSigns, Purpose: ceremony.PurposeLog, SPKI: r.state.Generated[0].Hash()})
		r.approve(n, "bob")
		return record.KindEnactment, r.enactment(n, old)
	}},
	{"a rotation without its evidence", "nothing shows that it was done", ceremony.RuleOutcome, func(r *rig) (record.Kind, any) {
		n := rotation(r, ceremony.OldSigns)
		return record.KindEnactment, r.enactment(n, nil)
	}},
	{"a generated key of another purpose", "the outcome is what was approved", ceremony.RuleOutcome, func(r *rig) (record.Kind, any) {
		n := r.propose(&ceremony.KeyGenerate{Algorithm: "ecdsa-p256", Purpose: ceremony.PurposePCR})
		r.approve(n, "bob")
		return record.KindEnactment, r.enactment(n, r.newKey(ceremony.PurposeLog))
	}},
	{"a generated key that the log had before", "a key is made, not brought", ceremony.RuleOutcome, func(r *rig) (record.Kind, any) {
		n := r.propose(&ceremony.KeyGenerate{Algorithm: "ecdsa-p256", Purpose: ceremony.PurposeLog})
		r.approve(n, "bob")
		return record.KindEnactment, r.enactment(n, r.state.Policy.Keys[0])
	}},
	{"retiring the key that signs", "the log could never be signed again", ceremony.RuleDocument, func(r *rig) (record.Kind, any) {
		return record.KindProposal, r.proposed(r.document(&ceremony.KeyRetire{SPKI: r.keyInForce(ceremony.PurposeLog)}, "alice"), "alice")
	}},
	{"another TPM than the named one", "the proposal names attestation and endorsement key", ceremony.RuleOutcome, func(r *rig) (record.Kind, any) {
		tpm := enrolment(r.t)
		n := r.propose(&ceremony.TPMEnrol{AKName: tpm.AKName, EK: sha256.Sum256([]byte("another")), PCR: tpm.PCR})
		r.approve(n, "bob")
		return record.KindEnactment, r.enactment(n, tpm)
	}},
	{"a policy that could not work", "what is proposed is tried on the state first", ceremony.RuleDocument, func(r *rig) (record.Kind, any) {
		p := r.policy(6)
		p.Roles = append(slices.Clone(p.Roles), ceremony.Role{Name: ceremony.Security, UIDs: []uint32{1000}})
		raw, err := record.MarshalCanonical(p)
		if err != nil {
			r.t.Fatal(err)
		}
		return record.KindProposal, r.proposed(edited(r, r.document(r.policy(6), "alice"), "content", json.RawMessage(raw)), "alice")
	}},
	{"declaring lost what is there", "the surviving head must be the log's", ceremony.RuleHead, func(r *rig) (record.Kind, any) {
		fork := ceremony.Head{Root: record.Hash{5}, Size: 2}
		return record.KindProposal, r.proposed(r.document(&ceremony.RecoveryDeclare{Known: ceremony.Head{Root: record.Hash{6}, Size: 9}, Reason: "x", Surviving: fork}, "alice"), "alice")
	}},
	{"an approval of the genesis of another log with the same plan", "approvals are of the leaf hash, which names keys and devices", ceremony.RuleDocument, func(r *rig) (record.Kind, any) {
		twin := newRig(r.t)
		twin.people = r.people
		twin.add(record.KindGenesis, twin.genesis())
		return record.KindApproval, twin.genesisApproval("carol")
	}},
	{"the genesis of this log, approved by a signature for another", "approvals are of the leaf hash, which names keys and devices", ceremony.RuleSignature, func(r *rig) (record.Kind, any) {
		twin := newRig(r.t)
		twin.people = r.people
		twin.add(record.KindGenesis, twin.genesis())
		a := r.genesisApproval("carol")
		a.Signature = twin.genesisApproval("carol").Signature
		return record.KindApproval, a
	}},
	{"the genesis approved by one officer twice", "an officer counts once", ceremony.RuleDuplicate, func(r *rig) (record.Kind, any) {
		return record.KindApproval, r.genesisApproval("alice")
	}},
}

// proposedOnce is the log that attacks begin with.
func proposedOnce(t testing.TB) *rig {
	t.Helper()
	r := newRig(t)
	r.begin(r.genesis())
	r.propose(r.policy(5))
	return r
}

func TestAttacks(t *testing.T) {
	t.Parallel()
	base := proposedOnce(t)
	for _, a := range attacks {
		t.Run(a.name, func(t *testing.T) {
			t.Parallel()
			r := base.fork(t)
			kind, body := a.make(r)
			before := r.state.Hash()
			err := r.try(kind, body)
			refusedBy(t, err, a.rule)
			if r.state.Hash() != before {
				t.Error("what was refused has changed the state")
			}
			t.Log(err)
		})
	}
}

// The same proposal goes through when nobody attacks: the table does not refuse because of its own faults.
func TestNoAttack(t *testing.T) {
	t.Parallel()
	r := proposedOnce(t)
	r.approve(1, "carol")
	r.enact(1, nil)
	if r.state.Policy.Quotas.Streams != 5 {
		t.Error("the policy was not set")
	}
	n := rotation(r, ceremony.OldSigns)
	r.enact(n, r.handover(r.keyInForce(ceremony.PurposeLog), r.state.Generated[0].Hash()))
	if len(r.state.Past) != 1 || r.state.Past[0].Until != uint64(len(r.entries)-1) {
		t.Errorf("%+v", r.state.Past)
	}
}

// rotation proposes and approves the rotation to the first of two generated keys.
func rotation(r *rig, old string) uint64 {
	r.t.Helper()
	first := addKey(r)
	addKey(r)
	n := r.propose(&ceremony.KeyRotate{Old: old, Purpose: ceremony.PurposeLog, SPKI: first})
	r.approve(n, "bob")
	return n
}

func addKey(r *rig) record.Hash {
	r.t.Helper()
	k := r.newKey(ceremony.PurposeLog)
	r.carry(&ceremony.KeyGenerate{Algorithm: "ecdsa-p256", Purpose: ceremony.PurposeLog}, k)
	return k.Hash()
}

// edited is a document with one member changed.
func edited(r *rig, document []byte, member string, value any) []byte {
	r.t.Helper()
	return altered(r.t, json.RawMessage(document), func(m map[string]any) { m[member] = value })
}

func signFor(r *rig, document []byte, namespace string, h sshsig.HashAlgorithm) string {
	r.t.Helper()
	sig, err := sshsig.SignWithRand(bytes.NewReader(document), rand.Reader, r.people["bob"], h, namespace)
	if err != nil {
		r.t.Fatal(err)
	}
	return armor(r.t, sig)
}

func unarmor(t testing.TB, armored string) *sshsig.Signature {
	t.Helper()
	sig, err := sshsig.Unarmor([]byte(armored))
	if err != nil {
		t.Fatal(err)
	}
	return sig
}

// armor spells a signature as ssh-keygen does.
func armor(t testing.TB, sig *sshsig.Signature) string {
	t.Helper()
	b64 := base64.StdEncoding.EncodeToString(sig.Marshal())
	var lines []string
	for chunk := range slices.Chunk([]byte(b64), 70) {
		lines = append(lines, string(chunk))
	}
	return "-----BEGIN SSH SIGNATURE-----\n" + strings.Join(lines, "\n") + "\n-----END SSH SIGNATURE-----\n"
}
