package verify

import (
	"bytes"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"bulla/attest"
	"bulla/ceremony"
	"bulla/clock"
	"bulla/record"
)

// Timeline is the log's course, for pictures of it: as much of it as was followed. It is of bounded size however long the log is. What
// there is too much of is put together over equal lengths of time, with the least and the most of what was in each; of what happened
// once, the last is named. Times are UTC where the log has an estimate of it, and otherwise what the system said; RFC 3339.
type Timeline struct {
	Clock      []ClockSpan `json:"clock,omitempty"`
	Seals      []SealSpan  `json:"seals,omitempty"` // those that hold
	Boots      []BootSpan  `json:"boots,omitempty"` // of the machine, as the TPM counts them
	Ceremonies []Milestone `json:"ceremonies,omitempty"`
	Events     []Milestone `json:"events,omitempty"`        // starts, stops, alarms and recoveries of the appliance
	Omitted    uint64      `json:"omitted,omitempty"`       // ceremonies and events before those named
	Gaps       uint64      `json:"producer_gaps,omitempty"` // numbers that producers left out were recorded so often
}

// ClockSpan is how good the times of the entries of a span were.
type ClockSpan struct {
	From  string `json:"from"`
	To    string `json:"to"`
	State string `json:"state"` // the worst
	// Of UTC minus the system's time, in ns; absent where no entry has an estimate:
	Estimate *ClockEstimate `json:"estimate,omitempty"`

	from, to  int64
	state     clock.State
	estimated bool
	estimate  ClockEstimate
}

// ClockEstimate is the least and the most of estimates.
type ClockEstimate struct {
	Least    int64 `json:"least"` // offset
	Most     int64 `json:"most"`
	Earliest int64 `json:"earliest"` // offset less bound
	Latest   int64 `json:"latest"`   // offset and bound
	Bound    int64 `json:"bound"`    // the largest
}

// SealSpan is one seal, or those of a span.
type SealSpan struct {
	From    string `json:"from"`
	To      string `json:"to"`
	First   uint64 `json:"first"` // number of the first seal
	Last    uint64 `json:"last"`
	Entry   uint64 `json:"entry"`          // of the last
	Size    uint64 `json:"size"`           // entries that it covers
	Counter uint64 `json:"counter,string"` // as it attests it
	Longest int64  `json:"longest"`        // the longest time without a seal before one of them, ns

	from, to int64
}

// BootSpan is one boot of the machine from its first seal to its last, or several.
type BootSpan struct {
	From   string `json:"from"`
	To     string `json:"to"`
	Resets uint32 `json:"resets"` // the TPM's count, in the last
	Boots  uint64 `json:"boots"`
	Seals  uint64 `json:"seals"`

	from, to int64
}

// Milestone is something that happened once.
type Milestone struct {
	Entry uint64 `json:"entry"`
	Time  string `json:"time"`
	What  string `json:"what"`           // one of the words below
	Text  string `json:"text,omitempty"` // as the log says it

	at int64
}

// What milestones are.
const (
	MarkGenesis  = "genesis"
	MarkProposed = "proposed"
	MarkApproved = "approved"
	MarkRejected = "rejected"
	MarkEnacted  = "enacted"
	MarkRotated  = "rotated" // enacted, and a key or the TPM is another
	MarkFailed   = "failed"  // enacted, without effect
	MarkLost     = "lost"    // enacted: a recovery, which closed the log
	// The others are those of system entries: start, stop, config, alarm, recovery, boot.
)

// Bounds of a timeline.
const (
	maxSpans      = 500
	maxMilestones = 250
	maxActions    = 64 // proposals whose action is remembered
	maxTold       = 300
)

// timeline follows what is to be told of the log's course.
type timeline struct {
	time int64       // of the last entry, by the system's clock, ns
	last *MemorySeal // that holds

	clock      spans[ClockSpan]
	seals      spans[SealSpan]
	boots      []BootSpan
	boot       []byte // attestation key of the last
	sealed     int64  // when the last seal was
	ceremonies []Milestone
	events     []Milestone
	actions    map[uint64]string // by number
	omitted    uint64
	gaps       uint64
}

// spans puts what comes together over equal lengths of time, which double when there would be too many.
type spans[T any] struct {
	width int64 // ns
	by    map[int64]*T
	join  func(a, b *T) // b is the later one, and goes into a
	last  *T            // that was added to, from begin on
	begin int64
	next  T // what is joined, here so that it is not allocated anew
}

func newSpans[T any](join func(a, b *T)) spans[T] {
	return spans[T]{by: map[int64]*T{}, width: int64(time.Second), join: join}
}

// near is the span that was added to last, if at is within it too, as it nearly always is; else nil.
func (s *spans[T]) near(at int64) *T {
	if s.last != nil && at >= s.begin && at-s.begin < s.width {
		return s.last
	}
	return nil
}

func (s *spans[T]) add(at int64, v T) {
	s.next = v
	if last := s.near(at); last != nil {
		s.join(last, &s.next)
		return
	}
	k := at / s.width
	if at%s.width < 0 {
		k--
	}
	if old := s.by[k]; old != nil {
		s.join(old, &s.next)
	} else {
		first := v
		s.by[k] = &first
	}
	s.last, s.begin = s.by[k], k*s.width
	for len(s.by) > maxSpans {
		wider := make(map[int64]*T, maxSpans)
		for _, k := range slices.Sorted(maps.Keys(s.by)) {
			if old := wider[k>>1]; old != nil {
				s.join(old, s.by[k])
			} else {
				wider[k>>1] = s.by[k]
			}
		}
		s.by, s.width, s.last = wider, s.width*2, nil
	}
}

func (s *spans[T]) sorted() []T {
	var out []T
	for _, k := range slices.Sorted(maps.Keys(s.by)) {
		out = append(out, *s.by[k])
	}
	return out
}

func newTimeline() timeline {
	return timeline{clock: newSpans(joinClock), seals: newSpans(joinSeals)}
}

// see takes the next entry that is not like the one before.
func (l *timeline) see(e *record.Entry) {
	l.time = e.Stamp.Sys
	at, s := e.Stamp.UTC(), &e.Stamp
	var estimate ClockEstimate
	if s.HasEstimate {
		estimate = ClockEstimate{s.Offset, s.Offset, s.Offset - s.Bound, s.Offset + s.Bound, s.Bound}
	}
	if last := l.clock.near(at); last != nil {
		last.join(at, at, s.State, s.HasEstimate, &estimate)
	} else {
		l.clock.add(at, ClockSpan{from: at, to: at, state: s.State, estimated: s.HasEstimate, estimate: estimate})
	}
	if e.Kind == record.KindSystem {
		l.system(e)
	}
}

func joinClock(a, b *ClockSpan) { a.join(b.from, b.to, b.state, b.estimated, &b.estimate) }

// join adds what another span, or an entry, says.
func (c *ClockSpan) join(from, to int64, state clock.State, estimated bool, y *ClockEstimate) {
	c.from, c.to = min(c.from, from), max(c.to, to)
	if c.state != state && worse(state) > worse(c.state) {
		c.state = state
	}
	switch x := &c.estimate; {
	case !estimated:
	case !c.estimated:
		c.estimated, *x = true, *y
	default:
		*x = ClockEstimate{min(y.Least, x.Least), max(y.Most, x.Most), min(y.Earliest, x.Earliest), max(y.Latest, x.Latest), max(y.Bound, x.Bound)}
	}
}

// worse orders states.
func worse(s clock.State) int {
	return slices.Index([]clock.State{clock.Synced, clock.Holdover, clock.Unknown, clock.Unsynced, clock.Disrupted}, s)
}

// system takes what the appliance said of itself.
func (l *timeline) system(e *record.Entry) {
	s, err := record.ParseSystem(e.Body)
	if err != nil {
		return // reported with the bundle
	}
	what, text := s.Event, s.Message
	switch {
	case s.Event == record.SystemGap:
		l.gaps++
		return
	case s.Event == record.SystemStart:
		text = s.Version
	case s.Code != "" && text != "":
		text = string(s.Code) + ": " + text
	case s.Code != "":
		text = string(s.Code)
	}
	l.mark(&l.events, e, what, text)
}

func (l *timeline) mark(list *[]Milestone, e *record.Entry, what, text string) {
	if len(*list) == maxMilestones {
		*list = (*list)[1:]
		l.omitted++
	}
	*list = append(*list, Milestone{Entry: e.Index, What: what, Text: fmt.Sprintf("%.*s", maxTold, text), at: e.Stamp.UTC()})
}

// govern takes an entry of governance that was permitted.
func (l *timeline) govern(e *record.Entry) {
	switch e.Kind {
	case record.KindGenesis:
		l.mark(&l.ceremonies, e, MarkGenesis, "the log is made")
	case record.KindProposal:
		_, p, err := ceremony.ParseProposed(e.Body)
		if err != nil {
			return
		}
		if l.actions == nil || len(l.actions) == maxActions {
			l.actions = map[uint64]string{}
		}
		l.actions[p.Number] = p.Action
		l.mark(&l.ceremonies, e, MarkProposed, fmt.Sprintf("%s, number %d, by %s", p.Action, p.Number, p.Proposer))
	case record.KindApproval:
		a, err := ceremony.ParseApproval(e.Body)
		if err != nil {
			return
		}
		what := MarkApproved
		if a.Decision == ceremony.Reject {
			what = MarkRejected
		}
		l.mark(&l.ceremonies, e, what, l.named(a.Number)+", by "+a.Officer)
	case record.KindEnactment:
		x, err := ceremony.ParseEnactment(e.Body)
		if err != nil {
			return
		}
		what, text := MarkEnacted, l.named(x.Number)
		switch action := l.actions[x.Number]; {
		case x.Failed != "":
			what, text = MarkFailed, text+": "+x.Failed
		case action == ceremony.ActionKeyRotate || action == ceremony.ActionTPMEnrol:
			what = MarkRotated
		case action == ceremony.ActionRecoveryDeclare:
			what = MarkLost
		}
		l.mark(&l.ceremonies, e, what, text)
	}
}

// named names a proposal.
func (l *timeline) named(number uint64) string {
	if number == 0 {
		return "the genesis"
	}
	if action, ok := l.actions[number]; ok {
		return fmt.Sprintf("%s, number %d", action, number)
	}
	return fmt.Sprintf("number %d", number)
}

// seal takes a seal that holds, over so many entries.
func (l *timeline) seal(e *record.Entry, size uint64) {
	s, err := attest.ParseSeal(e.Body)
	if err != nil {
		return // it would not hold
	}
	st, err := attest.ParseStatement(s.Statement)
	if err != nil {
		return
	}
	a, err := attest.ParseCertify(s.Counter.Attest)
	if err != nil {
		return
	}
	q, err := attest.ParseQuote(s.Quote.Attest)
	if err != nil {
		return
	}
	at := e.Stamp.UTC()
	span := SealSpan{First: st.Number, Last: st.Number, Entry: e.Index, Size: size, Counter: a.Counter, from: at, to: at}
	if l.last != nil {
		span.Longest = max(at-l.sealed, 0)
	}
	l.seals.add(at, span)
	l.sealed = at
	if n := len(l.boots); n > 0 && bytes.Equal(l.boot, q.Signer) && l.boots[n-1].Resets == q.Clock.ResetCount {
		l.boots[n-1].Seals++
		l.boots[n-1].to = max(l.boots[n-1].to, at)
	} else {
		l.boots, l.boot = append(l.boots, BootSpan{Resets: q.Clock.ResetCount, Boots: 1, Seals: 1, from: at, to: at}), q.Signer
	}
	if len(l.boots) > maxSpans {
		l.boots = halved(l.boots)
	}
	l.last = &MemorySeal{
		AK: q.Signer, Clock: q.Clock.Clock, Counter: a.Counter, Name: a.Name, Number: st.Number, Resets: q.Clock.ResetCount, Restarts: q.Clock.RestartCount,
	}
}

func joinSeals(a, b *SealSpan) {
	joined := *a
	if b.Last >= a.Last {
		joined = *b
	}
	joined.First, joined.Longest = min(a.First, b.First), max(a.Longest, b.Longest)
	joined.from, joined.to = min(a.from, b.from), max(a.to, b.to)
	*a = joined
}

// halved joins boots in pairs, but leaves the last, which may go on, as it is.
func halved(boots []BootSpan) []BootSpan {
	var out []BootSpan
	last := len(boots) - 1
	for i := 0; i < last; i += 2 {
		b := boots[i]
		if i+1 < last {
			next := boots[i+1]
			b = BootSpan{Resets: next.Resets, Boots: b.Boots + next.Boots, Seals: b.Seals + next.Seals, from: min(b.from, next.from), to: max(b.to, next.to)}
		}
		out = append(out, b)
	}
	return append(out, boots[last])
}

// report is what was followed; nil if there was nothing.
func (l *timeline) report() *Timeline {
	t := &Timeline{Clock: l.clock.sorted(), Seals: l.seals.sorted(), Boots: l.boots, Ceremonies: l.ceremonies, Events: l.events, Omitted: l.omitted, Gaps: l.gaps}
	if len(t.Clock) == 0 {
		return nil
	}
	for i := range t.Clock {
		c := &t.Clock[i]
		c.From, c.To, c.State = shown(c.from), shown(c.to), c.state.String()
		if c.estimated {
			c.Estimate = &c.estimate
		}
	}
	for i := range t.Seals {
		s := &t.Seals[i]
		s.From, s.To = shown(s.from), shown(s.to)
	}
	for i := range t.Boots {
		b := &t.Boots[i]
		b.From, b.To = shown(b.from), shown(b.to)
	}
	for _, list := range [][]Milestone{t.Ceremonies, t.Events} {
		for i := range list {
			list[i].Time = shown(list[i].at)
		}
	}
	return t
}

// shown is a time as the log has them.
func shown(ns int64) string { return string(record.AppendTime(nil, ns)) }

// between is the time that a timeline is about.
func (t *Timeline) between() (from, to int64) {
	from, to = math.MaxInt64, math.MinInt64
	for _, c := range t.Clock {
		from, to = min(from, c.from), max(to, c.to)
	}
	return from, to
}
