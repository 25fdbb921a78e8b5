package verify

import (
	"slices"
	"strings"

	"bulla/attest"
)

// Rule is something that evidence can violate. Names are stable: reports, vectors and other implementations refer to them.
type Rule struct {
	Name    string `json:"name"`
	Claim   string `json:"claim"`   // the claim that a violation breaks
	Meaning string `json:"meaning"` // of a violation, in a sentence
}

// Rules returns every rule, in the order of the claims.
func Rules() []Rule { return slices.Clone(rules) }

var rules = append(ownRules, sealRules()...)

var ownRules = []Rule{
	{"checkpoint.format", ClaimBytes, "The checkpoint is not a signed note of three lines: it was damaged or made by something else."},
	{"bundle.format", ClaimBytes, "A bundle cannot be split into entries: it was damaged, cut or replaced."},
	{"bundle.length", ClaimBytes, "The length in front of an entry was changed; the entry itself is intact."},
	{"bundle.partial", ClaimBytes, "An older, partial copy of a bundle does not agree with the bundle: one of the two was changed."},
	{"entry.canonical", ClaimBytes, "The entry is not in the one form that entries have: it was changed after it was logged, or never made by the log."},
	{"entry.body", ClaimBytes, "The entry's body is not what its kind demands: it was not made by the log's software."},
	{"entry.producer", ClaimBytes, "Events have a producer, and the machine's own records have none: the entry claims to come from somebody else."},
	{"tile.format", ClaimBytes, "A tile does not have 32 bytes for each of its hashes: it was damaged, cut or replaced."},
	{"tile.hash", ClaimBytes, "A tile holds another hash than the entries lead to, while entries and head agree: the tile was changed."},
	{"tile.partial", ClaimBytes, "An older, partial copy of a tile does not agree with the tile: one of the two was changed."},
	{"copy.differs", ClaimBytes, "A copy for standard tools is not of what the entry holds: it was changed. The entry is the evidence."},

	{"entry.index", ClaimChain, "The entry says that it stands elsewhere in the log: it was moved, or entries before it were added or removed."},
	{"entry.log", ClaimChain, "The entry says that it belongs to another log: it was brought in from there, or the log was renamed."},
	{"chain.prev", ClaimChain, "The entry does not link to the one before it: one of the two was replaced."},

	{"tree.leaf", ClaimTree, "The entry's bytes are not those that the tree was built over: the entry was changed after it was logged."},
	{"entry.missing", ClaimTree, "An entry that the tree was built over is gone."},
	{"entry.extra", ClaimTree, "There is an entry that the tree was not built over: it was added later."},
	{"entry.order", ClaimTree, "The entry was moved from its place."},
	{"tree.root", ClaimTree, "The entries do not lead to the root that the head states: entries were changed together with their tiles, or the head is of another log."},

	{"checkpoint.origin", ClaimSignatures, "The head names another log than its entries or its signatures do: it was taken from there, or the log was renamed."},
	{"checkpoint.signature", ClaimSignatures, "A key that must sign the head did not: the head was changed, or was made by somebody without that key."},

	{"genesis.format", ClaimGovernance, "The first entry is not a genesis: nothing says who governs the log."},
	{"genesis.fingerprint", ClaimGovernance, "The log does not begin with the genesis that the policy trusts: it is another log under the same name, or was made anew."},
	{"governance.unauthorised", ClaimGovernance, "Something about who governs the log was changed without the approvals that it needs."},
	{"governance.role", ClaimGovernance, "An event came from a user who had no right to append: the entry is forged, or the appliance let it in wrongly."},

	{"time.evidence", ClaimTime, "A record of the clock is malformed, or comes before any start of the clock: it was not made by the log's software."},
	{"time.order", ClaimTime, "Rounds of measurement, epochs of the clock or the times of entries are not in order: entries or records of the clock were moved, removed, forged or dated back."},
	{"time.round", ClaimTime, "What a round of measurement claims does not follow from its samples: its offset or bound is made up."},
	{"time.state", ClaimTime, "A change of the clock's state does not follow from what came before: it was invented, or a record of the clock was removed."},
	{"time.missing", ClaimTime, "The entry names a round of measurement that is not before it in the log: its time rests on nothing."},
	{"time.stamp", ClaimTime, "The entry's offset, bound or state does not follow from the round that it names: its time was changed."},
	{"time.policy", ClaimTime, "Events were taken, or the clock was judged, by another policy on time than the one that governs the log."},
	{"time.token", ClaimTime, "A time-stamp token states another time or accuracy than its reading of the clock gave, or its entry was made long after: it was dated back, or its entry is forged."},

	{"receipt.format", ClaimReceipts, "The receipt cannot be read: it was damaged, or is none."},
	{"receipt.signature", ClaimReceipts, "The receipt was not signed by the log's key: it is forged, or of another log."},
	{"receipt.proof", ClaimReceipts, "The receipt's entry is not in the tree that it names: the receipt was changed."},
	{"receipt.entry", ClaimReceipts, "The log holds another entry where the receipt proves one, or was closed before it: the log was rewritten after the receipt was given."},
	{"receipt.tree", ClaimReceipts, "The log's tree is not the one that the receipt was given under: the log was rewritten, or shows different histories to different people."},

	{"witness.format", ClaimWitnesses, "A cosigned checkpoint cannot be read, or is of another log: it was damaged, or comes from elsewhere."},
	{"witness.signature", ClaimWitnesses, "A signature on a cosigned checkpoint is not over it: the checkpoint was changed, or the signature is forged."},
	{"witness.beyond", ClaimWitnesses, "The log showed a longer history than this one to a witness: its end was cut off, or an older state was put back."},
	{"witness.tree", ClaimWitnesses, "The log's tree is not the one that was shown to a witness: the log was rewritten, or shows different histories to different people."},

	{"continuity.signature", ClaimContinuity, "An earlier checkpoint carries a signature of the log's key that is not over it: the checkpoint was changed."},
	{"continuity.beyond", ClaimContinuity, "More was seen of the log before: its end was cut off, an older state was put back, or this is an older export, which says nothing of what came later."},
	{"continuity.tree", ClaimContinuity, "The log's tree is not the one that was seen before: the log was rewritten, or shows different histories to different people."},
	{"continuity.counter", ClaimContinuity, "The TPM's counter is below what it was seen to have reached: an older state of the TPM, or another one, was put in its place."},
	{"continuity.clock", ClaimContinuity, "The TPM's clock or its counts are behind what was seen before: an older state of the TPM was put back, or it was cleared."},

	{"enrolment.endorsement", ClaimSeals, "No authority that the policy trusts certifies the TPM's endorsement key: the TPM is not of a maker that is trusted, or is no TPM."},
	{"enrolment.ak", ClaimSeals, "The log's TPM has another attestation key than the policy trusts: the log is of another machine."},
	{"enrolment.activation", ClaimSeals, "What the log says of a credential that the TPM opened does not hold: the secret is not the credential's, or it is for another TPM."},
}

// timeRule is the name here of a rule of package clock.
func timeRule(name string) string { return "time." + strings.TrimPrefix(name, "clock-") }

var ruleByName = func() map[string]Rule {
	m := make(map[string]Rule, len(rules))
	for _, r := range rules {
		m[r.Name] = r
	}
	return m
}()

// sealRules are the rules of package attest. Those about the order of seals speak of rollback.
func sealRules() []Rule {
	var out []Rule
	for name, meaning := range attest.Rules {
		claim := ClaimSeals
		switch name {
		case attest.RuleClock, attest.RuleCounterGrow, attest.RuleCounterBoot, attest.RuleHeadOrder, attest.RulePCRReplay, attest.RuleRecovery:
			claim = ClaimRollback
		}
		out = append(out, Rule{string(name), claim, strings.ToUpper(meaning[:1]) + meaning[1:] + "."})
	}
	slices.SortFunc(out, func(a, b Rule) int { return strings.Compare(a.Claim+a.Name, b.Claim+b.Name) })
	return out
}
