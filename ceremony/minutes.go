package ceremony

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"bulla/attest"
	"bulla/clock"
	"bulla/record"
)

// Chronicle follows a log and tells of its ceremonies. What it tells comes from the entries alone, so whoever has them, an auditor with
// an export too, writes the same minutes, byte for byte.
type Chronicle struct {
	state    State
	chapters []*chapter
	refusals []refusal
	counters map[string]uint32 // the last that an officer's FIDO2 key gave, by fingerprint
	at       clock.Stamp       // of the last entry that was added
}

// chapter is one ceremony: number 0 is the genesis.
type chapter struct {
	number   uint64
	pending  *Pending // nil of the genesis
	before   State    // when it was proposed; of the genesis, as that made it
	votes    []ballot
	steps    []step
	notes    []string // exceptions
	first    uint64   // entry
	last     uint64   // entry that ended it, or the last that was added
	end      string   // "" while it is open
	enacted  *Enactment
	after    record.Hash // of the state
	finished bool
}

// ballot is what an officer did in a ceremony.
type ballot struct {
	officer Officer
	did     string
	entry   uint64
	time    string
	by      string // presence
}

type step struct {
	time, what, answer string
	entry              uint64
}

type refusal struct {
	entry uint64
	text  string
}

// Ceremony is one line of a list of ceremonies.
type Ceremony struct {
	Action   string   `json:"action"`
	Approved []string `json:"approved,omitempty"` // officers, in order; the proposer too, if that counts
	Ended    string   `json:"ended,omitempty"`    // how and where, or that its time is over; absent while it is open
	Enacted  bool     `json:"enacted,omitzero"`
	Entry    uint64   `json:"entry"` // of the proposal
	Expires  string   `json:"expires,omitempty"`
	Needed   int      `json:"needed"` // approvals
	Number   uint64   `json:"number"` // 0: the genesis
	Proposer string   `json:"proposer,omitempty"`
	Rejected []string `json:"rejected,omitempty"`
}

// NewChronicle begins at an empty log. Root is State.Root.
func NewChronicle(root func(size uint64) (record.Hash, error)) *Chronicle {
	return &Chronicle{state: State{Root: root}, counters: map[string]uint32{}}
}

// State is what governs after the entries that were added.
func (c *Chronicle) State() State { return c.state }

// Add takes the next entry of the log. Entries that neither govern nor record that a ceremony was refused may be left out; the log's last says
// what has expired.
func (c *Chronicle) Add(e *record.Entry, leaf record.Hash) error {
	if e.Index < c.state.Next {
		return fmt.Errorf("entry %d was added before", e.Index)
	}
	s := c.state.Skip(e.Index - c.state.Next)
	c.at = e.Stamp
	if e.Kind == record.KindAccess {
		c.refused(e)
	}
	if !Governs(e.Kind) {
		c.state = s.Skip(1)
		return nil
	}
	next, err := s.Apply(e, leaf)
	if err != nil {
		return err
	}
	before := c.state
	c.state = next
	switch e.Kind {
	case record.KindGenesis:
		c.chapters = append(c.chapters, &chapter{before: next, first: e.Index, last: e.Index})
		c.chapters[0].step(e, "the log is made: entry 0", "")
		c.chapters[0].enacted = &Enactment{}
	case record.KindProposal:
		c.proposed(e, before)
	case record.KindApproval:
		return c.decided(e)
	case record.KindEnactment:
		return c.enacted(e)
	}
	c.close(e)
	return nil
}

func (c *Chronicle) proposed(e *record.Entry, before State) {
	p := c.state.open[len(c.state.open)-1]
	ch := &chapter{number: p.Proposal.Number, pending: p, before: before, first: e.Index, last: e.Index}
	c.chapters = append(c.chapters, ch)
	ch.step(e, p.Proposal.Proposer+" proposes "+p.Proposal.Action, "")
	did := "proposed; does not count"
	var presence *Presence
	if len(p.Approvals) > 0 {
		did, presence = "proposed, and so approved", p.Approvals[0].Presence
	}
	c.vote(ch, e, p.Proposal.Proposer, did, presence)
}

func (c *Chronicle) decided(e *record.Entry) error {
	a, err := ParseApproval(e.Body)
	if err != nil {
		return err
	}
	ch := c.chapter(a.Number)
	document, err := ch.document()
	if err != nil {
		return err
	}
	o, ok := ch.before.Policy.Officer(a.Officer)
	if !ok {
		return fmt.Errorf("entry %d: no officer %s", e.Index, a.Officer)
	}
	presence, err := o.Check(document, a.Decision, a.Signature)
	if err != nil {
		return err
	}
	did := "approved"
	if a.Decision == Reject {
		did = "rejected"
		ch.notes = append(ch.notes, fmt.Sprintf("%s rejected it (entry %d).", a.Officer, e.Index))
	}
	ch.step(e, a.Officer+" "+did, "")
	c.vote(ch, e, a.Officer, did, presence)
	if ch.last = e.Index; ch.finished { // the genesis, by more than are needed
		return nil
	}
	c.close(e)
	return nil
}

// document is what officers sign in this ceremony.
func (ch *chapter) document() ([]byte, error) {
	if ch.pending != nil {
		return ch.pending.Document, nil
	}
	return GenesisDocument(ch.before.Policy.Origin, ch.before.Genesis)
}

// vote adds what an officer did, and what is strange about the key's counter.
func (c *Chronicle) vote(ch *chapter, e *record.Entry, name, did string, presence *Presence) {
	o, ok := ch.before.Policy.Officer(name)
	if !ok {
		return // Apply has found the officer
	}
	b := ballot{officer: *o, did: did, entry: e.Index, time: when(e.Stamp), by: "signature"}
	if presence != nil {
		b.by = "touch"
		if presence.Verified {
			b.by = "touch and PIN"
		}
		b.by += fmt.Sprintf(", signature %d of the key", presence.Counter)
		if last := c.counters[o.Key]; presence.Counter > 0 && presence.Counter <= last {
			ch.notes = append(ch.notes, fmt.Sprintf("The key of %s counts its signatures: this was number %d, after number %d. It may be a copy (entry %d).", name, presence.Counter, last, e.Index))
		}
		c.counters[o.Key] = presence.Counter
	}
	ch.votes = append(ch.votes, b)
}

func (c *Chronicle) enacted(e *record.Entry) error {
	b, err := ParseEnactment(e.Body)
	if err != nil {
		return err
	}
	ch := c.chapter(b.Number)
	for _, s := range b.Steps {
		ch.steps = append(ch.steps, step{time: s.Time, what: s.Did, answer: s.Answer, entry: e.Index})
	}
	ch.enacted, ch.after = b, c.state.Hash()
	what := "enacted"
	if b.Failed != "" {
		what = "failed"
		ch.notes = append(ch.notes, "It failed, and nothing was changed: "+Printable(b.Failed))
	}
	if k, ok := ch.pending.Proposal.content.(*KeyRotate); ok && (k.Old == OldLost || k.Old == OldCompromised) {
		ch.notes = append(ch.notes, "The key before is "+k.Old+": it did not sign the handover.")
	}
	ch.step(e, what, "")
	c.close(e)
	return nil
}

// close ends the chapters of proposals that are not open any more.
func (c *Chronicle) close(e *record.Entry) {
	for _, ch := range c.chapters {
		switch {
		case ch.finished:
		case ch.number == 0:
			switch {
			case len(ch.before.Policy.Officers) == 0:
				ch.end, ch.finished = "no officers are appointed who could approve it", true
			case c.state.missing == 0:
				ch.end, ch.finished = fmt.Sprintf("approved at entry %d", e.Index), true
			}
		case slices.ContainsFunc(c.state.open, func(p *Pending) bool { return p.Proposal.Number == ch.number }):
			ch.last = e.Index
		default:
			_, why, _ := strings.Cut(c.state.why(ch.number), "not open: ")
			ch.end, ch.last, ch.finished = why, e.Index, true
		}
	}
}

// ended is how and where a ceremony ended; "" while it is open.
func (c *Chronicle) ended(ch *chapter) string {
	if ch.end == "" && ch.pending != nil && c.state.Expired(ch.pending.Proposal, c.at) {
		return ch.pending.Proposal.Over()
	}
	return ch.end
}

// refused remembers that somebody was refused in a ceremony.
func (c *Chronicle) refused(e *record.Entry) {
	a, err := record.ParseAccess(e.Body)
	if err != nil || !a.Denied || !strings.HasPrefix(a.Action, "ceremony.") {
		return // of a log whose bodies are damaged, the verifier tells
	}
	text := fmt.Sprintf("Refused at entry %d: %s by uid %d", e.Index, Printable(a.Action), a.By.UID)
	if a.Query != "" {
		text += ": " + Printable(a.Query)
	}
	c.refusals = append(c.refusals, refusal{e.Index, text})
}

func (c *Chronicle) chapter(number uint64) *chapter {
	i := slices.IndexFunc(c.chapters, func(ch *chapter) bool { return ch.number == number })
	if i < 0 {
		return nil
	}
	return c.chapters[i]
}

func (ch *chapter) step(e *record.Entry, what, answer string) {
	if !e.Stamp.HasEstimate {
		ch.notes = append(ch.notes, fmt.Sprintf("The time of entry %d is the machine's own word: its clock had not been compared with others.", e.Index))
	}
	ch.steps = append(ch.steps, step{time: when(e.Stamp), what: what, answer: answer, entry: e.Index})
}

// when is the time of a stamp as people read it.
func when(s clock.Stamp) string {
	t := string(record.AppendTime(nil, s.UTC()))
	if s.HasEstimate {
		t += " ± " + time.Duration(s.Bound).String()
	}
	return t
}

// Ceremonies lists all, the genesis first.
func (c *Chronicle) Ceremonies() []Ceremony {
	var out []Ceremony
	for _, ch := range c.chapters {
		l := Ceremony{Action: ActionGenesis, Ended: c.ended(ch), Entry: ch.first, Number: ch.number, Needed: ch.before.Policy.Threshold(ActionGenesis)}
		if ch.pending != nil {
			p := ch.pending
			l.Action, l.Needed, l.Proposer, l.Expires = p.Proposal.Action, p.Needed, p.Proposal.Proposer, p.Proposal.Expires
		}
		l.Enacted = ch.finished && ch.enacted != nil && ch.enacted.Failed == ""
		for _, v := range ch.votes {
			switch v.did {
			case "rejected":
				l.Rejected = append(l.Rejected, v.officer.Name)
			case "approved", "proposed, and so approved":
				l.Approved = append(l.Approved, v.officer.Name)
			}
		}
		out = append(out, l)
	}
	return out
}

// Proposal is what was proposed under a number, as it was then, and the state that governed before it. Where it is still open,
// State().Open has the decisions on it. ok is false of a number that was never used, and of 0.
func (c *Chronicle) Proposal(number uint64) (p *Pending, before State, ok bool) {
	ch := c.chapter(number)
	if ch == nil || ch.pending == nil {
		return nil, State{}, false
	}
	return ch.pending, ch.before, true
}

// Minutes are what a ceremony was, for people: written as Markdown or as HTML to print.
type Minutes struct {
	title    string
	sections []section
}

// section is a heading with a table, or lines, or hashes to be compared.
type section struct {
	title  string
	header []string
	rows   [][]string
	lines  []string
	hashes []namedHash
}

type namedHash struct {
	name string
	hash record.Hash
}

// Minutes writes the minutes of a ceremony: of number 0, the genesis.
func (c *Chronicle) Minutes(number uint64) (*Minutes, error) {
	ch := c.chapter(number)
	if ch == nil {
		return nil, fmt.Errorf("there is no ceremony %d in this log", number)
	}
	m := &Minutes{title: fmt.Sprintf("Minutes of ceremony %d: %s", number, ch.action())}
	m.add(section{title: "Summary", rows: c.summary(ch)})
	m.add(section{title: "Purpose", lines: ch.purpose()})
	m.add(section{title: "Participants", header: []string{"Officer", "Key", "Did", "Entry", "Time (UTC)", "Shown by"}, rows: ch.participants()})
	m.add(section{title: "Steps", header: []string{"#", "Time (UTC)", "Entry", "Step", "Answer"}, rows: ch.script()})
	if rows := ch.devices(); len(rows) > 0 {
		m.add(section{title: "Devices", header: []string{"Device", "Attribute", "Value"}, rows: rows})
	}
	m.add(section{title: "Exceptions", lines: c.exceptions(ch)})
	m.add(section{title: "Hashes", hashes: ch.hashes()})
	m.add(section{title: "Sign-off", header: []string{"Name", "Role", "Signature", "Date"}, rows: ch.signOff()})
	return m, nil
}

func (m *Minutes) add(s section) { m.sections = append(m.sections, s) }

func (ch *chapter) action() string {
	if ch.pending == nil {
		return ActionGenesis
	}
	return ch.pending.Proposal.Action
}

func (c *Chronicle) summary(ch *chapter) [][]string {
	end := cmp.Or(c.ended(ch), "open")
	rows := [][]string{{"Log", ch.before.Policy.Origin}, {"Result", end}, {"Entries", fmt.Sprintf("%d to %d", ch.first, ch.last)}}
	if p := ch.pending; p != nil {
		return append(rows, []string{"Proposed by", p.Proposal.Proposer}, []string{"Approvals needed", fmt.Sprintf("%d of %d officers", p.Needed, len(ch.before.Policy.Officers))},
			[]string{"Valid until", p.Proposal.Expires}, []string{"Head when proposed", fmt.Sprintf("%d entries", p.Proposal.Head.Size)})
	}
	return append(rows, []string{"Approvals needed", fmt.Sprintf("%d of %d officers", ch.before.Policy.Threshold(ActionGenesis), len(ch.before.Policy.Officers))},
		[]string{"Software", Printable(ch.before.Policy.Software)})
}

func (ch *chapter) purpose() []string {
	if ch.pending != nil {
		return ch.before.Describe(ch.pending.Proposal)
	}
	return append([]string{"the log begins, governed by:"}, ch.before.Policy.Describe()...)
}

func (ch *chapter) participants() [][]string {
	var rows [][]string
	for _, v := range ch.votes {
		kind, _, _ := strings.Cut(v.officer.Key, " ")
		rows = append(rows, []string{v.officer.Name, kind + " " + v.officer.Fingerprint(), v.did, fmt.Sprint(v.entry), v.time, v.by})
	}
	return rows
}

func (ch *chapter) script() [][]string {
	var rows [][]string
	for i, s := range ch.steps {
		rows = append(rows, []string{fmt.Sprint(i + 1), s.time, fmt.Sprint(s.entry), Printable(s.what), Printable(s.answer)})
	}
	return rows
}

// devices is what devices said of what they made.
func (ch *chapter) devices() [][]string {
	if ch.pending == nil {
		var rows [][]string
		for i := range ch.before.Policy.Keys {
			rows = append(rows, keyRows("", &ch.before.Policy.Keys[i])...)
		}
		return append(rows, tpmRows(ch.before.Policy.TPM)...)
	}
	s := &ch.before
	switch a := ch.pending.Proposal.content.(type) {
	case *KeyRotate:
		return append(keyRows("new ", s.find(a.SPKI)), keyRows("old ", s.key(a.Purpose))...)
	case *KeyRetire:
		return keyRows("", s.find(a.SPKI))
	case *KeyGenerate:
		var k Key
		if ch.enacted != nil && readOutcome(ch.enacted.Outcome, &k) == nil {
			return keyRows("new ", &k)
		}
	case *TPMEnrol:
		var t attest.Enrolment
		if ch.enacted != nil && readOutcome(ch.enacted.Outcome, &t) == nil {
			return tpmRows(&t)
		}
	case *RecoveryDeclare:
		var out Recovered
		if ch.enacted != nil && readOutcome(ch.enacted.Outcome, &out) == nil && out.TPM != nil {
			t := out.TPM
			return [][]string{{"TPM", "counter", fmt.Sprint(t.Counter)}, {"TPM", "seal PCR", hexOf(t.PCR)}, {"TPM", "clock", fmt.Sprintf("%d ms, %d resets, %d restarts", t.Clock, t.Resets, t.Restarts)}, {"TPM", "last seal known", fmt.Sprint(t.Seal)}}
		}
	}
	return nil
}

func keyRows(which string, k *Key) [][]string {
	if k == nil {
		return nil
	}
	name := which + "key for " + k.Purpose
	rows := [][]string{{name, "algorithm", k.Algorithm}, {name, "SHA-256 of SPKI", hexOf(k.Hash())}}
	for _, a := range slices.Sorted(maps.Keys(k.Attributes)) {
		rows = append(rows, []string{name, Printable(a), Printable(k.Attributes[a])})
	}
	return rows
}

func tpmRows(t *attest.Enrolment) [][]string {
	if t == nil {
		return nil
	}
	return [][]string{{"TPM", "manufacturer", Printable(t.Manufacturer)}, {"TPM", "model", Printable(t.Model)}, {"TPM", "firmware", Printable(t.Firmware)},
		{"TPM", "attestation key", hex.EncodeToString(t.AKName)}, {"TPM", "counter", fmt.Sprintf("0x%08x at %d", t.Counter.Index, t.Counter.Value)},
		{"TPM", "seal PCR", fmt.Sprint(t.PCR)}, {"TPM", "certificates", fmt.Sprint(len(t.EKCertificates))}}
}

func (c *Chronicle) exceptions(ch *chapter) []string {
	out := slices.Clone(ch.notes)
	for _, r := range c.refusals {
		if ch.first <= r.entry && (r.entry <= ch.last || !ch.finished) {
			out = append(out, r.text)
		}
	}
	switch end := c.ended(ch); {
	case end == "":
		out = append(out, "It is not over.")
	case ch.enacted == nil:
		out = append(out, "It was not enacted: "+end+".")
	}
	if len(out) == 0 {
		return []string{"None."}
	}
	return out
}

func (ch *chapter) hashes() []namedHash {
	out := []namedHash{{"Genesis (leaf hash of entry 0)", ch.before.Genesis}}
	if ch.pending == nil {
		return append(out, namedHash{"State of governance", ch.before.Hash()})
	}
	out = append(out, namedHash{"Document that was signed", ch.pending.Hash}, namedHash{"Head when proposed (root)", ch.pending.Proposal.Head.Root}, namedHash{"State before", ch.before.Hash()})
	if ch.enacted != nil && ch.enacted.Failed == "" {
		out = append(out, namedHash{"State after", ch.after})
	}
	switch a := ch.pending.Proposal.content.(type) {
	case *KeyRotate:
		out = append(out, namedHash{"Key that is put in force", a.SPKI})
	case *KeyRetire:
		out = append(out, namedHash{"Key that is retired", a.SPKI})
	case *KeyGenerate:
		var k Key
		if ch.enacted != nil && readOutcome(ch.enacted.Outcome, &k) == nil {
			out = append(out, namedHash{"Key that was made", k.Hash()})
		}
	case *TPMEnrol:
		out = append(out, namedHash{"Endorsement key", a.EK})
	}
	return out
}

func (ch *chapter) signOff() [][]string {
	var rows [][]string
	for _, v := range ch.votes {
		if !slices.ContainsFunc(rows, func(r []string) bool { return r[0] == v.officer.Name }) {
			rows = append(rows, []string{v.officer.Name, "officer", "", ""})
		}
	}
	return append(rows, []string{"", "operator", "", ""}, []string{"", "witness", "", ""})
}
