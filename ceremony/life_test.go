package ceremony_test

import (
	"crypto/sha256"
	"testing"

	"bulla/attest"
	"bulla/ceremony"
	"bulla/record"
)

var recovery = &ceremony.Recovered{TPM: &attest.Recovery{Clock: 99, Counter: 12, PCR: record.Hash{1}, Previous: record.Hash{2}, Resets: 3, Seal: 4}}

// live is the life of a log, in which everything happens once.
func live(t testing.TB) *rig {
	t.Helper()
	r := newRig(t)
	r.begin(r.genesis())

	r.carry(r.policy(7), nil)
	r.event()
	old := r.rotate()
	r.carry(&ceremony.KeyRetire{SPKI: old}, nil)

	// carol is replaced by dave
	officers := &ceremony.OfficersSet{Officers: r.officers("alice", "bob", "dave"), ProposerCounts: true, Thresholds: map[string]int{ceremony.Default: 2, ceremony.ActionKeyRotate: 2}}
	n := r.propose(officers)
	r.approve(n, "carol")
	r.enact(n, nil)

	tpm := enrolment(t)
	r.carry(&ceremony.TPMEnrol{AKName: tpm.AKName, EK: sha256.Sum256(tpm.EK), PCR: tpm.PCR}, tpm)

	k := r.newKey(ceremony.PurposePCR)
	r.carry(&ceremony.KeyGenerate{Algorithm: "ecdsa-p256", Purpose: ceremony.PurposePCR}, k)
	r.carry(&ceremony.KeyRotate{Old: ceremony.OldNone, Purpose: ceremony.PurposePCR, SPKI: k.Hash()}, nil)
	pcrs := []attest.PCRValue{{Index: 4, Value: record.Hash{4}}, {Index: 7, Value: record.Hash{7}}}
	r.carry(&ceremony.PCRApprove{Label: "kernel 6.12.9", PCRs: pcrs}, r.pcrSignature(pcrs, k.Hash()))

	// rejected, withdrawn after an approval, failed
	n = r.propose(r.policy(8))
	r.add(record.KindApproval, r.decision(n, ceremony.Reject, "bob"))
	r.add(record.KindApproval, r.decision(n, ceremony.Reject, "dave"))
	n = r.propose(r.policy(9))
	r.approve(n, "bob")
	r.add(record.KindApproval, r.decision(n, ceremony.Reject, "alice"))
	n = r.propose(&ceremony.KeyGenerate{Algorithm: "ed25519", Purpose: ceremony.PurposeInterop})
	r.approve(n, "dave")
	r.add(record.KindEnactment, &ceremony.Enactment{Document: ceremony.DocumentHash(r.numbers[n]), Number: n, Failed: "the token is full: CKR_DEVICE_MEMORY"})

	known := ceremony.Head{Root: record.Hash{9}, Size: r.head().Size + 100}
	r.carry(&ceremony.RecoveryDeclare{Known: known, Reason: "restored from backup \u202ereversed", Successor: "log.example/audit2", Surviving: r.head()}, recovery)
	return r
}

func TestLife(t *testing.T) {
	t.Parallel()
	r := live(t)
	s := r.state
	if s.Policy.Quotas.Streams != 7 || len(s.PCRs) != 1 || len(s.Past) != 1 || s.Past[0].Retired == 0 || s.Policy.TPM == nil || len(s.Policy.Keys) != 2 || len(s.Open()) != 0 {
		t.Errorf("the state is %+v", s)
	}
	if o, ok := s.Policy.Officer("dave"); !ok || !o.Touch {
		t.Error("dave is no officer")
	}
	refusedBy(t, s.Ready(), ceremony.RuleClosed)
	refusedBy(t, r.try(record.KindEvent, []byte(`{"type":"auth.login"}`)), ceremony.RuleClosed)
	refusedBy(t, r.try(record.KindProposal, r.proposed(r.document(r.policy(1), "alice"), "alice")), ceremony.RuleClosed)
}

// The state after every entry is a value: what a fold made does not change when it goes on, and another fold makes the same.
func TestStateIsAValue(t *testing.T) {
	t.Parallel()
	r := live(t)
	var states []ceremony.State
	var hashes []record.Hash
	s := ceremony.State{Root: r.root}
	for i, b := range r.entries {
		e, err := record.ParseEntry(b)
		if err != nil {
			t.Fatal(err)
		}
		if ceremony.Governs(e.Kind) {
			if s, err = s.Apply(e, record.LeafHash(b)); err != nil {
				t.Fatalf("entry %d: %v", i, err)
			}
		} else {
			s = s.Skip(1)
		}
		states, hashes = append(states, s), append(hashes, s.Hash())
	}
	seen := map[record.Hash]bool{}
	for i, s := range states {
		b, err := s.Encode()
		if err != nil || sha256.Sum256(b) != hashes[i] {
			t.Fatalf("the state after entry %d has changed since", i)
		}
		if i > 0 && hashes[i] != hashes[i-1] && seen[hashes[i]] {
			t.Errorf("the state after entry %d was there before", i)
		}
		seen[hashes[i]] = true
	}
	if len(seen) != 1+10 { // genesis and what was enacted
		t.Errorf("%d states", len(seen))
	}
	if s.Hash() != r.state.Hash() {
		t.Error("two folds of one log differ")
	}
}

// Events are refused until enough officers have approved the genesis; more may.
func TestGenesisIsApprovedFirst(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	refusedBy(t, r.state.Ready(), ceremony.RuleClosed)
	r.add(record.KindGenesis, r.genesis())
	for _, name := range []string{"alice", "carol"} {
		refusedBy(t, r.state.Ready(), ceremony.RuleThreshold)
		refusedBy(t, r.try(record.KindEvent, []byte(`{"type":"a"}`)), ceremony.RuleThreshold)
		refusedBy(t, r.try(record.KindProposal, r.proposed(r.document(r.policy(1), "alice"), "alice")), ceremony.RuleThreshold)
		r.add(record.KindSystem, []byte(`{"event":"stop"}`))
		r.add(record.KindApproval, r.genesisApproval(name))
	}
	if err := r.state.Ready(); err != nil {
		t.Error(err)
	}
	r.event()
	r.add(record.KindApproval, r.genesisApproval("bob"))
	if votes := r.state.GenesisVotes(); len(votes) != 3 || votes[1].Officer != "carol" || votes[1].Presence == nil || !votes[1].Presence.Verified {
		t.Errorf("%+v", votes)
	}
	r.carry(r.policy(3), nil)
	refusedBy(t, r.try(record.KindApproval, r.genesisApproval("bob")), ceremony.RuleClosed)
}

// A log without officers takes events at once, and nothing of it ever changes.
func TestWithoutOfficers(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	g := r.genesis()
	g.Officers, g.Thresholds, g.ProposerCounts = nil, nil, false
	r.begin(g)
	refusedBy(t, r.try(record.KindProposal, r.proposed(r.document(r.policy(1), "alice"), "alice")), ceremony.RuleOfficer)
	refusedBy(t, r.try(record.KindApproval, r.genesisApproval("alice")), ceremony.RuleOfficer)
}

// Where the proposer does not count, others must be enough.
func TestProposerDoesNotCount(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	g := r.genesis()
	g.Officers, g.ProposerCounts = r.officers("alice", "bob", "carol", "dave"), false
	r.begin(g)
	n := r.propose(r.policy(5))
	r.approve(n, "bob")
	refusedBy(t, r.try(record.KindApproval, r.decision(n, ceremony.Approve, "alice")), ceremony.RuleProposer)
	refusedBy(t, r.try(record.KindEnactment, r.enactment(n, nil)), ceremony.RuleThreshold)
	r.approve(n, "dave")
	r.enact(n, nil)
}

// Two proposals may be open, of which the first that is enacted ends the other.
func TestOneProposalOfAStateIsEnacted(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.begin(r.genesis())
	a, b := r.propose(r.policy(1)), r.propose(r.policy(2))
	r.approve(a, "bob")
	r.approve(b, "carol")
	if open := r.state.Open(); len(open) != 2 || r.state.Approved(open[0], stampOf(t, r.entries[len(r.entries)-1])) != nil {
		t.Errorf("open: %+v", open)
	}
	r.enact(b, nil)
	refusedBy(t, r.try(record.KindEnactment, r.enactment(a, nil)), ceremony.RuleClosed)
	if r.state.Policy.Quotas.Streams != 2 || r.state.Number() != 3 {
		t.Errorf("%+v", r.state.Policy.Quotas)
	}
}

// No more than MaxOpen proposals are open; those that have expired make room.
func TestOpenProposalsAreBounded(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.begin(r.genesis())
	for range ceremony.MaxOpen {
		r.propose(r.policy(1))
	}
	refusedBy(t, r.try(record.KindProposal, r.proposed(r.document(r.policy(2), "alice"), "alice")), ceremony.RuleClosed)
	r.now += int64(2 * 3600e9)
	r.propose(r.policy(2))
	if n := len(r.state.Open()); n != 1 {
		t.Errorf("%d are open", n)
	}
}
