// Package ceremony holds the governance of a log: who may do what, and how that changes.
//
// State is a pure fold over the log: the genesis (entry 0) makes it, each enactment changes it, and Apply refuses what was not
// authorised. The ledger folds while it writes and the verifier folds while it reads, with this same code; so an auditor who
// knows the genesis leaf hash knows everything that was ever permitted.
//
//	state.go     the state and its fold           genesis.go    what a log begins with
//	officer.go   who officers are, and thresholds that neither lock out nor let one act alone
//	proposal.go  the document that is signed      action.go     what a document may ask for, and what its doing leaves
//	bodies.go    entries: a document, a decision on it, its enactment
//	signature.go signatures of officers (SSHSIG)  refused.go    why something is refused
//	describe.go  a document as words: what it would change        policyedit.go  and from words: one value of a policy
//	minutes.go   a ceremony as words, from the log alone; minutesformat.go writes them
//
// A proposal names the state that it was made against by its hash, and an enactment changes the state; so at most one of the open
// proposals is ever enacted, and no approval outlives what it was given in view of.
package ceremony

import (
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"slices"

	"bulla/clock"
	"bulla/record"
)

// State is what governs the log before entry Next. The zero State is that of an empty log. A State is a value: Apply makes a new
// one and shares nothing that changes.
type State struct {
	Genesis record.Hash // leaf hash of entry 0: the trust root
	Next    uint64      // index of the first entry that this state does not include
	Policy  Genesis     // what is in force: the genesis as changed by enactments

	Changed   uint64    // index of the entry that changed it last
	Generated []Key     // made by key.generate, and not yet in force
	Past      []PastKey // once in force, oldest first
	PCRs      []PCRSet  // approved values
	Closed    *uint64   // index of the entry that closed the log; nil: it is open

	// Root looks up the root of the log's tree over its first size entries. Apply asks it for the heads that documents name; where
	// it is nil, no proposal is taken. An error says that it cannot be told, never that the log has another root.
	Root func(size uint64) (record.Hash, error)

	last     uint64     // the highest number of a proposal
	open     []*Pending // what can still be enacted; none is changed once it is here
	ended    []ended    // the last proposals that are not open any more
	missing  int        // approvals that the genesis still needs
	approved []Vote     // of the genesis
	floor    int64      // UTC had certainly come to here, ns since 1970: the greatest of the fold's stamps
	hash     *record.Hash
}

// PastKey is a key that was in force.
type PastKey struct {
	Key     Key    `json:"key"`
	Old     string `json:"old"`              // one of the Old constants
	Retired uint64 `json:"retired,omitzero"` // entry that records its end in the device; 0: it still exists
	Until   uint64 `json:"until"`            // entry that replaced it: it signed heads of at most so many entries
}

// Pending is a proposal that can be decided on.
type Pending struct {
	Document   []byte
	Hash       record.Hash // DocumentHash
	Index      uint64      // of the entry that proposed it
	Proposal   *Proposal
	Needed     int    // approvals
	Approvals  []Vote // the proposer's too, if it counts
	Rejections []Vote
}

// Vote is an officer's signed decision.
type Vote struct {
	Index    uint64 // of the entry
	Officer  string
	Presence *Presence // nil of a key that says nothing of it
}

// ended remembers why a proposal is not open, for whoever still signs it.
type ended struct {
	number uint64
	why    string
}

// Limits of what the state remembers.
const (
	MaxOpen  = 16
	maxEnded = 64
)

// Apply returns the state after the entry at index s.Next, whose leaf hash is leaf. An error means that the entry is not allowed
// in this state, which then holds on; of an entry that a ceremony made it is a *Refused, or what Root returned.
func (s State) Apply(e *record.Entry, leaf record.Hash) (State, error) {
	if e.Index != s.Next {
		return s, fmt.Errorf("entry %d cannot follow on a state of %d entries", e.Index, s.Next)
	}
	if (e.Kind == record.KindGenesis) != (e.Index == 0) {
		return s, fmt.Errorf("entry %d is of kind %s: a log has one genesis, its first entry", e.Index, e.Kind)
	}
	next := s
	var err error
	switch e.Kind {
	case record.KindGenesis:
		err = next.begin(e, leaf)
	case record.KindEvent:
		err = s.Ready()
	case record.KindProposal:
		err = next.propose(e)
	case record.KindApproval:
		err = next.decide(e)
	case record.KindEnactment:
		err = next.enact(e)
	}
	if err != nil {
		return s, fmt.Errorf("entry %d: %w", e.Index, err)
	}
	if Governs(e.Kind) && e.Stamp.HasEstimate {
		next.floor = max(next.floor, e.Stamp.Earliest())
	}
	next.Next++
	return next, nil
}

// Skip returns the state after n entries that govern nothing: the machine's records, and events, which whoever folds must have asked
// Ready about.
func (s State) Skip(n uint64) State {
	s.Next += n
	return s
}

// Governs reports whether an entry of the kind takes part in the fold; all others only count.
func Governs(k record.Kind) bool {
	switch k {
	case record.KindGenesis, record.KindProposal, record.KindApproval, record.KindEnactment:
		return true
	}
	return false
}

// Ready says why events are not allowed in this state: the officers have not approved the genesis yet, or the log is closed. It is
// nil when they are.
func (s State) Ready() error {
	switch {
	case s.Next == 0:
		return refuse(RuleClosed, "the log has no genesis")
	case s.Closed != nil:
		return refuse(RuleClosed, "the log was closed by entry %d", *s.Closed)
	case s.missing > 0:
		return refuse(RuleThreshold, "the genesis has %d approval(s) of its officers and needs %d more", len(s.approved), s.missing)
	}
	return nil
}

// Open are the proposals that can be decided on or enacted, oldest first. They are not to be changed.
func (s State) Open() []*Pending { return slices.Clone(s.open) }

// Number is that of the next proposal.
func (s State) Number() uint64 { return s.last + 1 }

// GenesisVotes are the officers' approvals of the genesis, in order.
func (s State) GenesisVotes() []Vote { return slices.Clone(s.approved) }

// begin takes the genesis.
func (s *State) begin(e *record.Entry, leaf record.Hash) error {
	g, err := ParseGenesis(e.Body)
	if err != nil {
		return err
	}
	if g.Origin != e.Log {
		return fmt.Errorf("genesis of %q in log %q", g.Origin, e.Log)
	}
	if err := g.enoughFrom(e.Stamp.UTC()); err != nil {
		return fmt.Errorf("genesis: %w", err)
	}
	s.Genesis, s.Policy, s.floor = leaf, *g, always
	s.missing = g.Threshold(ActionGenesis)
	return s.rehash()
}

// propose takes a document that an officer proposes.
func (s *State) propose(e *record.Entry) error {
	if len(s.Policy.Officers) == 0 {
		return refuse(RuleOfficer, "no officers are appointed who could propose")
	}
	if err := s.Ready(); err != nil {
		return err
	}
	body, p, err := ParseProposed(e.Body)
	if err != nil {
		return err
	}
	if err := s.fits(p, e); err != nil {
		return err
	}
	o, err := s.officer(p.Proposer, e.Stamp)
	if err != nil {
		return err
	}
	presence, err := o.Check(body.Document, Approve, body.Signature)
	if err != nil {
		return err
	}
	pending := &Pending{Document: body.Document, Hash: DocumentHash(body.Document), Index: e.Index, Proposal: p, Needed: s.Policy.Threshold(p.Action)}
	if s.Policy.ProposerCounts {
		pending.Approvals = []Vote{{Index: e.Index, Officer: o.Name, Presence: presence}}
	}
	s.open, s.last = slices.Clone(s.open), p.Number
	for _, old := range slices.Clone(s.open) {
		if e.Stamp.HasEstimate && e.Stamp.Earliest() >= old.Proposal.expires() {
			s.end(old, "%s", old.Proposal.Over())
		}
	}
	if len(s.open) >= MaxOpen {
		return refuse(RuleClosed, "%d proposals are open; enact, reject or withdraw one first", len(s.open))
	}
	s.open = append(s.open, pending)
	return nil
}

// fits refuses a document that is not about this log as it is at entry e, or that asks for what cannot be.
func (s *State) fits(p *Proposal, e *record.Entry) error {
	switch {
	case p.Log != s.Policy.Origin:
		return refuse(RuleLog, "the document is for log %s, this is %s", quoted(p.Log), quoted(s.Policy.Origin))
	case p.Number <= s.last:
		return refuse(RuleNumber, "%s: the next number is %d", s.why(p.Number), s.last+1)
	case p.Number > s.last+1:
		return refuse(RuleNumber, "the next number is %d, not %d", s.last+1, p.Number)
	case p.State != *s.hash:
		return refuse(RuleState, "it was made against state %x; that in force is %x, since entry %d: propose anew", p.State[:], s.hash[:], s.Changed)
	}
	if err := s.inTime(p, e.Stamp); err != nil {
		return err
	}
	if err := s.inLog("head", p.Head); err != nil {
		return err
	}
	scratch := *s
	return p.content.prepare(&scratch, e.Stamp)
}

// inTime refuses a document that may have expired at a time. The latest time that it may have been decides, and what the log
// itself says of the time before: a clock that was set back does not bring a proposal back.
func (s *State) inTime(p *Proposal, at clock.Stamp) error {
	switch t := p.expires(); {
	case s.floor >= t:
		return refuse(RuleExpired, "it expired on %s, which had passed by an earlier entry", p.Expires)
	case !at.HasEstimate:
		return refuse(RuleExpired, "nobody knows what time it is, so it may have expired (%s): wait until the clock is synced", p.Expires)
	case at.Latest() >= t:
		return refuse(RuleExpired, "it expired on %s", p.Expires)
	}
	return nil
}

// Expired reports whether a proposal has certainly expired at a time, or had by what the log itself says of the time.
func (s State) Expired(p *Proposal, at clock.Stamp) bool {
	return s.floor >= p.expires() || at.HasEstimate && at.Earliest() >= p.expires()
}

// inLog refuses a head that is not one of this log, up to the entry that is being applied.
func (s *State) inLog(field string, h Head) error {
	if h.Size > s.Next {
		return refuse(RuleHead, "%s: of %d entries, but the log has %d", field, h.Size, s.Next)
	}
	if s.Root == nil {
		return refuse(RuleHead, "%s: there is nothing to compare it with", field)
	}
	root, err := s.Root(h.Size)
	if err != nil {
		return fmt.Errorf("looking up the root at size %d: %w", h.Size, err)
	}
	if root != h.Root {
		return refuse(RuleHead, "%s: at size %d this log has another root: the document is of a fork, or was made for another log", field, h.Size)
	}
	return nil
}

// officer finds one who may act at a time.
func (s *State) officer(name string, at clock.Stamp) (*Officer, error) {
	o, ok := s.Policy.Officer(name)
	if !ok {
		return nil, refuse(RuleOfficer, "%s is not an officer of this log", quoted(name))
	}
	return o, o.validAt(at, s.floor)
}

// decide takes an officer's decision.
func (s *State) decide(e *record.Entry) error {
	a, err := ParseApproval(e.Body)
	if err != nil {
		return err
	}
	if a.Number == 0 {
		return s.approveGenesis(a, e)
	}
	old, err := s.pending(a.Number, a.Document)
	if err != nil {
		return err
	}
	if err := s.inTime(old.Proposal, e.Stamp); err != nil {
		return err
	}
	o, err := s.officer(a.Officer, e.Stamp)
	if err != nil {
		return err
	}
	if err := s.mayDecide(old, a); err != nil {
		return err
	}
	presence, err := o.Check(old.Document, a.Decision, a.Signature)
	if err != nil {
		return err
	}
	p, vote := *old, Vote{Index: e.Index, Officer: o.Name, Presence: presence}
	if a.Decision == Approve {
		p.Approvals = append(slices.Clone(p.Approvals), vote)
	} else {
		p.Approvals = slices.DeleteFunc(slices.Clone(p.Approvals), by(o.Name))
		p.Rejections = append(slices.Clone(p.Rejections), vote)
	}
	s.open = slices.Clone(s.open)
	s.open[slices.Index(s.open, old)] = &p
	switch {
	case a.Decision == Reject && o.Name == p.Proposal.Proposer:
		s.end(&p, "withdrawn by %s at entry %d", o.Name, e.Index)
	case s.couldApprove(&p) < p.Needed:
		s.end(&p, "rejected: at entry %d too few were left who could approve it", e.Index)
	}
	return nil
}

func by(officer string) func(Vote) bool {
	return func(v Vote) bool { return v.Officer == officer }
}

// mayDecide refuses a decision that the officer has made already, or that does not count.
func (s *State) mayDecide(p *Pending, a *Approval) error {
	switch {
	case slices.ContainsFunc(p.Rejections, by(a.Officer)):
		return refuse(RuleDuplicate, "%s has rejected proposal %d, and that is final", a.Officer, a.Number)
	case a.Decision == Reject:
		return nil
	case a.Officer == p.Proposal.Proposer && !s.Policy.ProposerCounts:
		return refuse(RuleProposer, "%s proposes, and who proposes does not count", a.Officer)
	case slices.ContainsFunc(p.Approvals, by(a.Officer)):
		return refuse(RuleDuplicate, "%s has approved proposal %d already", a.Officer, a.Number)
	}
	return nil
}

// couldApprove is how many officers have approved or still may.
func (s *State) couldApprove(p *Pending) int {
	n := 0
	for i := range s.Policy.Officers {
		name := s.Policy.Officers[i].Name
		if !slices.ContainsFunc(p.Rejections, by(name)) && (s.Policy.ProposerCounts || name != p.Proposal.Proposer) {
			n++
		}
	}
	return n
}

// approveGenesis takes an officer's approval of entry 0.
func (s *State) approveGenesis(a *Approval, e *record.Entry) error {
	document, err := GenesisDocument(s.Policy.Origin, s.Genesis)
	if err != nil {
		return err
	}
	switch {
	case a.Decision != Approve:
		return refuse(RuleDocument, "decision: who does not approve a genesis does not sign it")
	case a.Document != DocumentHash(document):
		return refuse(RuleDocument, "document: it approves another genesis than this log's, whose leaf hash is %x", s.Genesis[:])
	case s.Changed > 0 || s.Closed != nil:
		return refuse(RuleClosed, "the genesis has been changed since by entry %d", s.Changed)
	}
	o, err := s.officer(a.Officer, e.Stamp)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(s.approved, by(o.Name)) {
		return refuse(RuleDuplicate, "%s has approved the genesis already", o.Name)
	}
	presence, err := o.Check(document, Approve, a.Signature)
	if err != nil {
		return err
	}
	s.approved = append(slices.Clone(s.approved), Vote{Index: e.Index, Officer: o.Name, Presence: presence})
	s.missing = max(0, s.missing-1)
	return nil
}

// enact carries out a proposal that enough officers have approved, and who still may.
func (s *State) enact(e *record.Entry) error {
	b, err := ParseEnactment(e.Body)
	if err != nil {
		return err
	}
	p, err := s.pending(b.Number, b.Document)
	if err != nil {
		return err
	}
	if b.Failed != "" { // that may be said late, but not of what was never to be tried
		if len(p.Approvals) < p.Needed {
			return refuse(RuleThreshold, "proposal %d has %d approval(s) and needs %d to be tried", b.Number, len(p.Approvals), p.Needed)
		}
		s.end(p, "failed at entry %d", e.Index)
		return nil
	}
	if err := s.Approved(p, e.Stamp); err != nil {
		return err
	}
	if p.Proposal.State != *s.hash { // open proposals end when the state changes: this holds it in one place
		return refuse(RuleState, "the state has changed since it was approved")
	}
	if err := p.Proposal.content.prepare(s, e.Stamp); err != nil {
		return err
	}
	if err := p.Proposal.content.finish(s, e, p, b.Outcome); err != nil {
		return err
	}
	s.Changed = e.Index
	s.end(p, "enacted at entry %d", e.Index)
	for _, other := range slices.Clone(s.open) {
		s.end(other, "made against a state that entry %d changed", e.Index)
	}
	return s.rehash()
}

// Approved says what p, an open proposal, lacks to be enacted at a time: approvals of enough officers who may act then, or time. It is
// nil where nothing is.
func (s State) Approved(p *Pending, at clock.Stamp) error {
	if err := s.inTime(p.Proposal, at); err != nil {
		return err
	}
	n, why := 0, ""
	for _, v := range p.Approvals {
		if _, err := s.officer(v.Officer, at); err != nil {
			why += fmt.Sprintf("; %v", err)
			continue
		}
		n++
	}
	if n < p.Needed {
		return refuse(RuleThreshold, "proposal %d has %d of %d approvals%s", p.Proposal.Number, n, p.Needed, why)
	}
	return nil
}

// pending finds an open proposal by number and document.
func (s *State) pending(number uint64, document record.Hash) (*Pending, error) {
	i := slices.IndexFunc(s.open, func(p *Pending) bool { return p.Proposal.Number == number })
	if i < 0 {
		return nil, refuse(RuleClosed, "%s", s.why(number))
	}
	if s.open[i].Hash != document {
		return nil, refuse(RuleDocument, "document: proposal %d is %x, not %x", number, s.open[i].Hash[:], document[:])
	}
	return s.open[i], nil
}

// end closes a proposal, and remembers why.
func (s *State) end(p *Pending, why string, args ...any) {
	s.open = slices.DeleteFunc(slices.Clone(s.open), func(o *Pending) bool { return o.Proposal.Number == p.Proposal.Number })
	s.ended = append(slices.Clone(s.ended), ended{p.Proposal.Number, fmt.Sprintf(why, args...)})
	if len(s.ended) > maxEnded {
		s.ended = s.ended[len(s.ended)-maxEnded:]
	}
}

// why says what became of a proposal.
func (s *State) why(number uint64) string {
	for _, e := range s.ended {
		if e.number == number {
			return fmt.Sprintf("proposal %d is not open: %s", number, e.why)
		}
	}
	switch {
	case slices.ContainsFunc(s.open, func(p *Pending) bool { return p.Proposal.Number == number }):
		return fmt.Sprintf("proposal %d is there already", number)
	case number <= s.last:
		return fmt.Sprintf("proposal %d is not open: it ended long ago", number)
	}
	return fmt.Sprintf("there is no proposal %d", number)
}

// valid refuses a state that could not work.
func (s *State) valid() error {
	if err := s.Policy.Validate(); err != nil {
		return refuse(RuleDocument, "content.%v", err)
	}
	return nil
}

// Encode is the governed state in canonical JSON: what documents name by its hash. It changes with every enactment, back to the same
// policy too, and no two logs have the same.
func (s State) Encode() ([]byte, error) {
	return record.MarshalCanonical(struct {
		Changed   uint64      `json:"changed"`
		Closed    *uint64     `json:"closed,omitempty"`
		Generated []Key       `json:"generated,omitempty"`
		Genesis   record.Hash `json:"genesis"`
		Past      []PastKey   `json:"past,omitempty"`
		PCRs      []PCRSet    `json:"pcrs,omitempty"`
		Policy    *Genesis    `json:"policy"`
		V         int         `json:"v"`
	}{s.Changed, s.Closed, s.Generated, s.Genesis, s.Past, s.PCRs, &s.Policy, 1})
}

// Hash is the SHA-256 of Encode; zero before the genesis.
func (s State) Hash() record.Hash {
	if s.hash == nil {
		return record.Hash{}
	}
	return *s.hash
}

func (s *State) rehash() error {
	b, err := s.Encode()
	if err != nil {
		return err
	}
	h := record.Hash(sha256.Sum256(b))
	s.hash = &h
	return nil
}

// Propose makes the document of a proposal against this state, and refuses what the log would. Head is the log's as the proposer
// knows it, expires in ns since 1970; content is one of the actions' structs.
func (s State) Propose(content any, proposer string, head Head, expires int64) ([]byte, error) {
	raw, err := record.MarshalCanonical(content)
	if err != nil {
		return nil, fmt.Errorf("proposing: %w", err)
	}
	p := &Proposal{Action: actionOf(content), Content: raw, Expires: string(record.AppendTime(nil, expires)), Head: head,
		Log: s.Policy.Origin, Number: s.last + 1, Proposer: proposer, State: s.Hash(), V: 1}
	document, err := record.MarshalCanonical(p)
	if err != nil {
		return nil, fmt.Errorf("proposing: %w", err)
	}
	_, err = ParseProposal(document)
	return document, err
}

// Admits says what the log, in this state and at a time, would refuse a proposal for, whoever signed it. It is nil where nothing is.
// Next must not be below the size of the head that the proposal names.
func (s State) Admits(p *Proposal, at clock.Stamp) error {
	if err := s.Ready(); err != nil {
		return err
	}
	if _, err := s.officer(p.Proposer, at); err != nil {
		return err
	}
	return s.fits(p, &record.Entry{Index: s.Next, Stamp: at})
}

// Key returns the public key in force for a purpose.
func (s State) Key(purpose string) (crypto.PublicKey, bool) {
	k := s.key(purpose)
	if k == nil {
		return nil, false
	}
	pub, err := x509.ParsePKIXPublicKey(k.SPKI)
	return pub, err == nil
}

func (s *State) key(purpose string) *Key {
	for i := range s.Policy.Keys {
		if s.Policy.Keys[i].Purpose == purpose {
			return &s.Policy.Keys[i]
		}
	}
	return nil
}

// find returns a key that the log has or had; nil: none.
func (s *State) find(h record.Hash) *Key {
	all := slices.Concat(s.Policy.Keys, s.Generated)
	for _, k := range s.Past {
		all = append(all, k.Key)
	}
	if i := slices.IndexFunc(all, func(k Key) bool { return k.Hash() == h }); i >= 0 {
		return &all[i]
	}
	return nil
}

// Find returns a key that the log has or had, by the SHA-256 of its SubjectPublicKeyInfo.
func (s State) Find(spki record.Hash) (Key, bool) {
	if k := s.find(spki); k != nil {
		return *k, true
	}
	return Key{}, false
}

// VKeys are the verifier keys (C2SP signed-note) of every line that a checkpoint must carry in this state, the authoritative first.
func (s State) VKeys() ([]string, error) { return s.VKeysAt(record.MaxInt) }

// VKeysAt are the verifier keys of every line that a checkpoint over so many entries must carry: keys sign heads until they are
// replaced.
func (s State) VKeysAt(size uint64) ([]string, error) {
	var out []string
	for _, purpose := range []string{PurposeLog, PurposeInterop} {
		k := s.key(purpose)
		for i := len(s.Past) - 1; i >= 0 && size <= s.Past[i].Until; i-- {
			if s.Past[i].Key.Purpose == purpose {
				k = &s.Past[i].Key
			}
		}
		if k == nil {
			continue
		}
		v, err := k.VKey(s.Policy.Origin)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}

// History are the verifier keys of every line that a checkpoint of the log has or had, those in force first.
func (s State) History() []string {
	all := slices.Clone(s.Policy.Keys)
	for _, p := range s.Past {
		all = append(all, p.Key)
	}
	var out []string
	for i := range all {
		if all[i].Purpose == PurposePCR {
			continue
		}
		if v, err := all[i].VKey(s.Policy.Origin); err == nil { // a genesis with such a key was refused
			out = append(out, v)
		}
	}
	return out
}

// VKey is the key as a verifier key (C2SP signed-note) of a log.
func (k *Key) VKey(origin string) (string, error) {
	pub, err := x509.ParsePKIXPublicKey(k.SPKI)
	if err != nil {
		return "", fmt.Errorf("key for %s: %w", k.Purpose, err)
	}
	v, err := record.VKey(origin, pub)
	if err != nil {
		return "", fmt.Errorf("key for %s: %w", k.Purpose, err)
	}
	return v, nil
}

// Roles is what one caller may do.
type Roles struct{ Producer, Auditor, Operator, Officer bool }

// Roles decides what a local user may do, from the ids that the kernel proved.
func (s State) Roles(uid uint32, gids []uint32) Roles {
	var r Roles
	for _, role := range s.Policy.Roles {
		if !role.Any && !slices.Contains(role.UIDs, uid) && !slices.ContainsFunc(gids, func(g uint32) bool { return slices.Contains(role.GIDs, g) }) {
			continue
		}
		switch role.Name {
		case Producer:
			r.Producer = true
		case Auditor:
			r.Auditor = true
		case Operator:
			r.Operator = true
		case Security:
			r.Officer = true
		}
	}
	return r
}

// StreamQuota is the number of streams one uid may use.
func (s State) StreamQuota() int {
	if n := s.Policy.Quotas.Streams; n > 0 {
		return n
	}
	return DefaultStreams
}
