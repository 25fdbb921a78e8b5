package verify

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"bulla/attest"
	"bulla/ceremony"
	"bulla/clock"
	"bulla/record"
)

// fold is what only the order of entries shows: who governs, what time may be, what the TPM attested.
type fold struct {
	r       *run
	state   ceremony.State
	known   bool   // the genesis was read
	stopped bool   // an entry could not be read: what comes after cannot be followed
	sealed  uint64 // entries that checked seals cover

	replay    *attest.Replay // of the seals; nil until the genesis has enrolled a TPM
	seals     uint64         // seen
	head      headAt         // what replay asks for
	wanted    []int          // PCRs that the next seal must quote
	outline   outline
	sealAt    map[uint64]uint64 // entries of good seals, by number
	first     *attest.Enrolment // by the genesis
	later     []*attest.Enrolment
	endorsed  bool     // the first, by an authority that the policy names
	activated []uint64 // entries with a credential that the TPM opened; the last few
	boots     boots
	line      timeline

	grouped   *uint64          // the first event whose producer has the role only if through a group that is not recorded
	permitted *record.Producer // of the last event, if events of it are allowed in this state of governance; nil: to be found out
	clock     clock.Checker
	estimated uint64 // entries with an estimate of UTC
	past      past
}

func (f *fold) init(r *run) { f.r, f.line = r, newTimeline() }

// see takes the next entry that is not like the one before.
func (f *fold) see(ctx context.Context, e *record.Entry, leaf record.Hash) error {
	if f.stopped || e.Index < f.state.Next || e.Log != f.r.origin {
		return nil // the chain's rules have reported it
	}
	if !f.known && e.Index > 0 {
		return nil
	}
	f.state.Next = e.Index
	f.line.see(e)
	if e.Kind == record.KindEvent {
		f.event(e)
		return nil
	}
	f.permitted = nil
	if ceremony.Governs(e.Kind) {
		if err := f.govern(ctx, e, leaf); err != nil {
			return err
		}
	}
	f.time(e)
	switch e.Kind {
	case record.KindAccess:
		f.activation(e)
	case record.KindBlob:
		f.boots.blob(e)
	case record.KindSystem:
		f.boots.system(e)
	case record.KindToken:
		f.token(e)
	case record.KindSeal:
		return f.seal(ctx, e)
	}
	return nil
}

// event checks what only the state before an event shows of it.
func (f *fold) event(e *record.Entry) {
	f.time(e)
	if e.Producer == nil || f.permitted != nil && f.permitted.UID == e.Producer.UID && f.permitted.GID == e.Producer.GID {
		return
	}
	f.permitted = nil
	if ready, role := f.ready(e), f.role(e); ready && role {
		f.permitted = e.Producer
	}
}

// time checks an entry's stamp against the rounds of measurement before it, and a record of the clock against its samples.
func (f *fold) time(e *record.Entry) {
	var policy *clock.Policy // events are taken only as it permits
	if e.Kind == record.KindEvent {
		policy = &f.state.Policy.Clock
	}
	found := f.clock.Stamp(e.Stamp, policy)
	if e.Kind == record.KindClock {
		var evidence clock.Evidence
		if err := record.UnmarshalCanonical(e.Body, &evidence); err != nil {
			f.r.find(Finding{Rule: "entry.body", Index: at(e.Index), Expected: "a body of kind clock", Found: fmt.Sprintf("%.300s", err.Error())})
			return
		}
		found = append(found, f.clock.Evidence(&evidence)...)
		found = append(found, f.past.started(e.Index, &evidence)...)
		if used, ok := f.clock.Policy(); ok && used != f.state.Policy.Clock {
			found = append(found, clock.Finding{Rule: clock.RulePolicy, Field: "policy", Expected: fmt.Sprintf("%+v", f.state.Policy.Clock), Found: fmt.Sprintf("%+v", used)})
		}
	}
	if s := e.Stamp; len(found) == 0 && s.HasEstimate && (s.State == clock.Synced || s.State == clock.Holdover) {
		f.past = past{s.Earliest(), e.Index}
	}
	for _, x := range found {
		field := ""
		if x.Field != "" {
			field = x.Field + " "
		}
		f.r.find(Finding{Rule: timeRule(x.Rule), Index: at(e.Index), Expected: field + x.Expected, Found: fmt.Sprintf("%.300s", x.Found)})
	}
}

// past is what a daemon that starts must know of the time from the log.
type past struct {
	until int64  // UTC had come to here, ns
	at    uint64 // by this entry
}

// started checks that a clock which starts goes on from there, and so cannot date what follows before what is there already.
func (p *past) started(index uint64, e *clock.Evidence) []clock.Finding {
	t := e.Transition
	if t == nil || t.Reason != clock.ReasonStart {
		return nil
	}
	was := *p
	*p = past{t.NotBefore, index}
	if t.NotBefore < was.until && index-was.at <= clock.LearnBack {
		return []clock.Finding{{Rule: clock.RuleOrder, Field: "transition.not_before", Expected: fmt.Sprintf("at least %d", was.until), Found: fmt.Sprint(t.NotBefore)}}
	}
	return nil
}

// errNoRoot says that a root cannot be computed, for want of hashes.
var errNoRoot = errors.New("the root is not known")

// govern applies an entry that takes part in governance.
func (f *fold) govern(ctx context.Context, e *record.Entry, leaf record.Hash) error {
	var lookup error
	f.state.Root = func(size uint64) (root record.Hash, err error) {
		root, ok, err := f.r.rootAt(ctx, size)
		if err == nil && !ok {
			err = errNoRoot
		}
		lookup = err
		return root, err
	}
	before := f.state
	next, err := f.state.Apply(e, leaf)
	switch {
	case err == nil:
		f.state = next
		f.outline.governed(&before, &next, e)
		f.enacted(before, e)
		f.line.govern(e)
	case errors.Is(lookup, errNoRoot): // whether it is permitted is not known, nor what follows from it
		f.r.miss(fmt.Sprintf("the head that entry %d names cannot be computed", e.Index), ClaimGovernance)
		f.stopped = true
		return nil
	case lookup != nil:
		return lookup
	case e.Index == 0:
		f.r.find(Finding{Rule: "genesis.format", Index: at(0), Expected: "a genesis", Found: fmt.Sprintf("%.300s", err.Error())})
		return nil
	default:
		f.r.find(Finding{Rule: "governance.unauthorised", Index: at(e.Index), Expected: "an entry that the state of governance permits", Found: fmt.Sprintf("%.300s", err.Error())})
		return nil
	}
	if e.Index == 0 {
		f.known = true
		f.enrol()
		f.r.report.Genesis = hex.EncodeToString(leaf[:])
		if want, ok := f.r.policy.genesis(e.Log); ok && want != leaf {
			f.r.find(Finding{Rule: "genesis.fingerprint", Index: at(0), Expected: hex.EncodeToString(want[:]), Found: hex.EncodeToString(leaf[:])})
		}
	}
	return nil
}

// enacted follows what an enactment means for more than governance.
func (f *fold) enacted(before ceremony.State, e *record.Entry) {
	if e.Kind != record.KindEnactment || f.state.Changed != e.Index {
		return // or it failed
	}
	f.wanted = slices.DeleteFunc(slices.Clone(f.wanted), func(i int) bool { return !slices.Contains(f.state.Policy.Seal.PCRs, i) })
	body, err := ceremony.ParseEnactment(e.Body)
	if err != nil {
		return // it was just applied
	}
	for _, p := range before.Open() {
		if p.Proposal.Number != body.Number {
			continue
		}
		switch c := p.Proposal.Asks().(type) {
		case *ceremony.RecoveryDeclare:
			f.closed(e, c)
		case *ceremony.TPMEnrol:
			f.reenrol(e)
		}
	}
}

// ready checks that events were allowed: that enough officers had approved the genesis, and that the log was not closed.
func (f *fold) ready(e *record.Entry) bool {
	err := f.state.Ready()
	if err != nil {
		f.r.find(Finding{Rule: "governance.unauthorised", Index: at(e.Index), Expected: "no event in this state of governance", Found: fmt.Sprintf("%.300s", err.Error())})
	}
	return err == nil
}

// role checks that an event's producer may append. Supplementary groups are not recorded, so where a role is given to groups, a user
// may have it through one of them.
func (f *fold) role(e *record.Entry) bool {
	if f.state.Roles(e.Producer.UID, []uint32{e.Producer.GID}).Producer {
		return true
	}
	for _, role := range f.state.Policy.Roles {
		if role.Name == ceremony.Producer && len(role.GIDs) > 0 {
			if f.grouped == nil {
				f.grouped = at(e.Index)
			}
			return true
		}
	}
	f.r.find(Finding{Rule: "governance.role", Index: at(e.Index), Expected: "a user with the role producer", Found: fmt.Sprintf("uid %d, gid %d", e.Producer.UID, e.Producer.GID)})
	return false
}

// damaged says that the entry at index does not say what was logged. Nothing is verified from there on. If what is there is an event,
// it most likely was one, and the fold goes on for further findings; else what it changed is unknown, and the fold stops.
func (f *fold) damaged(index uint64, event bool) {
	f.r.covered(index, ClaimGovernance, ClaimTime, ClaimSeals, ClaimRollback)
	f.r.miss(fmt.Sprintf("what entry %d said is not known, nor what follows from it", index), ClaimGovernance, ClaimTime, ClaimSeals, ClaimRollback)
	f.stopped = f.stopped || !event
}

// followed reports whether everything that governs the log was read.
func (f *fold) followed() bool { return f.known && !f.stopped }

// vkeys are the keys that must sign a head over so many entries by the log's own governance.
func (f *fold) vkeys(size uint64) []string {
	if !f.followed() {
		return nil
	}
	keys, err := f.state.VKeysAt(size)
	if err != nil {
		return nil // a genesis with such a key was refused
	}
	return keys
}

// trusted reports whether the genesis is the one that the policy has.
func (f *fold) trusted() bool {
	want, ok := f.r.policy.genesis(f.r.origin)
	return ok && want == f.state.Genesis
}

// signers are the keys that must sign a head over so many entries: those that governed then, and those that the policy pins. A pinned
// key that a ceremony has replaced, or that has replaced another since, must not: from the trusted genesis on the log says itself
// who signs.
func (f *fold) signers(size uint64) (keys []string, trusted bool) {
	keys = f.vkeys(size)
	history := f.history()
	for _, v := range f.r.policy.keys(f.r.origin) {
		trusted = true
		if slices.Contains(history, v) {
			continue
		}
		keys = append(keys, v)
	}
	return keys, trusted
}

// history are all keys that the log's governance has or had for its lines.
func (f *fold) history() []string {
	if !f.followed() {
		return nil
	}
	return f.state.History()
}

// summarize fills in what the report says of governance, and settles the claims that the fold decides.
func (f *fold) summarize() {
	r := f.r
	g := &r.report.Governance
	g.Officers = []string{}
	if f.known {
		p := f.state.Policy
		g.Known, g.TPM, g.Thresholds, g.Keys = true, p.TPM != nil, p.Thresholds, f.vkeys(record.MaxInt)
		for _, o := range p.Officers {
			g.Officers = append(g.Officers, o.Name)
		}
		for _, role := range p.Roles {
			g.Roles = append(g.Roles, describeRole(role))
		}
		slices.Sort(g.Roles)
		if len(p.Officers) == 0 {
			r.remark("officers: none appointed; nothing of what governs the log can change, and nobody but the appliance vouches for its genesis")
		}
	} else if r.headOK {
		r.miss("there is no genesis that can be read", ClaimGovernance, ClaimTime, ClaimSeals, ClaimRollback)
	}
	if f.grouped != nil {
		r.remark("roles: entry %d, and perhaps others, is of a user whom no role names by uid or primary group; that another of the user's groups gave the right to append is the appliance's own word", *f.grouped)
	}
	pinned := r.pinned()
	g.Trusted = pinned && f.known && !r.claims[ClaimGovernance].violated
	switch {
	case r.policy == nil:
		r.miss("no policy was given: nothing says that this is the genesis to trust", ClaimGovernance)
	case !pinned:
		r.miss(fmt.Sprintf("the policy has no genesis of log %q", r.origin), ClaimGovernance)
	}
	if total := r.chain.at; f.estimated == 0 {
		r.miss("no entry has an estimate of UTC: their times are the machine's own word", ClaimTime)
	} else if f.estimated < total {
		r.remark("%d of %d entries have no estimate of UTC: their times are the machine's own word", total-f.estimated, total)
	}
	f.summarizeSeals()
	if len(r.earlier) == 0 {
		r.miss("no earlier export or checkpoint was given", ClaimContinuity)
	}
	if len(r.opt.Receipts) == 0 {
		r.miss("no receipt was given", ClaimReceipts)
	}
	r.covered(r.head.Size, ClaimGovernance, ClaimTime)
}

func describeRole(role ceremony.Role) string {
	s := role.Name + ":"
	if role.Any {
		s += " everyone"
	}
	if len(role.UIDs) > 0 {
		s += fmt.Sprintf(" uids %v", role.UIDs)
	}
	if len(role.GIDs) > 0 {
		s += fmt.Sprintf(" gids %v", role.GIDs)
	}
	return s
}
