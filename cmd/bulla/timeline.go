package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"slices"

	"github.com/spf13/cobra"

	"bulla/api"
	"bulla/record"
)

// A timeline puts the entries of several logs into one order. What is known of an entry is the interval of true UTC that it was
// received in, and that it came after the entries before it in its own log. An entry is before another log's exactly if its latest time
// lies before the other's earliest; otherwise their order is not known, and that is said.

// order is what a timeline knows of an entry's place.
type order struct {
	Group   uint64 `json:"group"`   // entries of different groups are in proven order
	Ordered bool   `json:"ordered"` // before or after every entry of another log that is shown
}

// place is an entry on its way into a timeline.
type place struct {
	*hit
	earliest, latest int64 // UTC, ns
	lane             int   // which log
}

// lane is one log of a timeline.
type lane struct {
	s     *search
	next  func() (*hit, bool)
	stop  func()
	err   error
	ahead []place // the entries that follow, the first of them ready to be placed
	last  int64   // earliest time of the entry before
	ended bool
}

// maxAhead bounds the entries without an estimate that are read before one with an estimate says by when they were received.
const maxAhead = 10_000

func newLane(ctx context.Context, s *search) *lane {
	l := &lane{s: s, last: math.MinInt64}
	l.next, l.stop = iter.Pull(func(yield func(*hit) bool) {
		l.err = s.run(ctx, func(h *hit) error {
			if !yield(h) {
				return errEnough
			}
			return nil
		})
	})
	return l
}

// peek returns the log's next entry; nil at its end. An entry was received after the one before it and before the one behind it: that
// bounds those that have no estimate of their own.
func (l *lane) peek(lane int) (*place, error) {
	for !l.ended && (len(l.ahead) == 0 || l.ahead[len(l.ahead)-1].latest == math.MaxInt64 && len(l.ahead) < maxAhead) {
		h, ok := l.next()
		if !ok {
			l.ended = true
			if l.err != nil && !errors.Is(l.err, errEnough) {
				return nil, l.err
			}
			break
		}
		earliest, latest, _ := h.bounds()
		l.last = max(l.last, earliest)
		l.ahead = append(l.ahead, place{hit: h, earliest: l.last, latest: max(latest, l.last), lane: lane})
	}
	if len(l.ahead) == 0 {
		return nil, nil
	}
	p := &l.ahead[0]
	if p.latest == math.MaxInt64 {
		p.latest = l.ahead[len(l.ahead)-1].latest
	}
	return p, nil
}

// timeline is the merge of logs.
type timeline struct {
	lanes []*lane
	until []int64 // latest time of what was placed, by log; math.MinInt64: nothing was
	group uint64
}

// next returns the entry that is placed next, and what is known of its place; nil at the end.
func (t *timeline) next() (*place, order, error) {
	heads := make([]*place, len(t.lanes))
	first := -1
	for i, l := range t.lanes {
		var err error
		if heads[i], err = l.peek(i); err != nil {
			return nil, order{}, err
		}
		if heads[i] != nil && (first < 0 || heads[i].earliest < heads[first].earliest) {
			first = i
		}
	}
	if first < 0 {
		return nil, order{}, nil
	}
	p := *heads[first]
	t.lanes[first].ahead = t.lanes[first].ahead[1:]

	before, others := int64(math.MinInt64), int64(math.MaxInt64) // latest of other logs' placed, earliest of their next
	known, more := true, false
	for i := range t.lanes {
		if i == first {
			continue
		}
		before = max(before, t.until[i])
		if heads[i] != nil {
			more, others = true, min(others, heads[i].earliest)
			known = known && p.latest < heads[i].earliest
		}
	}
	after := before == math.MinInt64 || before < p.earliest
	// A group ends when nothing placed so far may be as late as anything of another log that comes.
	if t.group == 0 || after && (!more || t.until[first] < others) {
		t.group++
	}
	t.until[first] = max(t.until[first], p.latest)
	return &p, order{Group: t.group, Ordered: known && after}, nil
}

// size is how many entries the logs have.
func (t *timeline) size() (n uint64) {
	for _, l := range t.lanes {
		n += l.s.a.head.Size
	}
	return n
}

// timelineRun is a timeline being printed.
type timelineRun struct {
	flags searchFlags
	query *api.Query
	limit uint64
	svg   string
}

// maxLanes bounds the logs of a timeline.
const maxLanes = 64

func (t *tool) timelineCommand() *cobra.Command {
	r := &timelineRun{}
	cmd := &cobra.Command{
		Use:   "timeline EVIDENCE...",
		Short: "Put the entries of several logs into one order",
		Long: `timeline merges the entries of several exports, of one machine or of several, into one order by true UTC. Conditions are those of search:
so it follows a session, a transaction or a trace across them.

Each entry was received within an interval: its system's time, corrected by the offset, plus or minus the bound. Entries of different logs whose
intervals overlap cannot be ordered: they are marked with ~ and have the same group. Between groups the order is proven, as far as the clocks'
records are true, which bulla verify finds out. Entries of one log are always in its order, which also bounds those without an estimate.`,
		Example: `  bulla timeline /evidence/web /evidence/db --session s-77
  bulla timeline web.tar db.tar --trace 4bf92f3577b34da6a3ce929d0e0e4736 --format csv > trace.csv
  bulla timeline /evidence/* --since 2026-11-23T01:00:00Z --until 2026-11-23T02:00:00Z --svg timeline.svg`,
		Args: args(cobra.RangeArgs(1, maxLanes)),
		RunE: func(cmd *cobra.Command, given []string) error {
			var err error
			if r.query, _, err = r.flags.query(cmd); err != nil {
				return err
			}
			return t.timeline(cmd.Context(), r, given)
		},
	}
	r.flags.add(cmd)
	cmd.Flags().StringVar(&r.flags.format, "format", "table", "table, ndjson or csv")
	cmd.Flags().Uint64Var(&r.limit, "limit", 0, "the most entries to print; 0: all")
	cmd.Flags().StringVar(&r.svg, "svg", "", "draw the timeline into this file, too")
	return cmd
}

// timeline prints the merged entries of the logs at the paths.
func (t *tool) timeline(ctx context.Context, r *timelineRun, paths []string) (err error) {
	if t.json {
		if r.flags.format != "table" {
			return usagef("--json is a format of its own: leave out --format")
		}
		r.flags.format = "ndjson"
	}
	if err := free(r.svg); err != nil {
		return err
	}
	out, err := newPlaceWriter(t.out, r.flags.format)
	if err != nil {
		return err
	}
	line := &timeline{}
	defer func() {
		for _, l := range line.lanes {
			l.stop()
			l.s.a.done()
		}
	}()
	for _, path := range paths {
		a, err := openArchive(ctx, path)
		if err != nil {
			return err
		}
		if i := slices.IndexFunc(line.lanes, func(l *lane) bool { return l.s.a.head.Origin == a.head.Origin }); i >= 0 {
			a.done()
			return usagef("%s and %s are both of the log %s, so their entries could not be told apart: give one of them", line.lanes[i].s.a.path, path, printable(a.head.Origin, 80))
		}
		line.lanes = append(line.lanes, newLane(ctx, t.searchOf(ctx, a, &r.flags, r.query)))
		line.until = append(line.until, math.MinInt64)
	}
	picture, err := t.merge(line, out, r)
	if err != nil {
		return err
	}
	if err := out.end(line.lanes); err != nil {
		return err
	}
	if r.svg != "" {
		if err := t.drawTimeline(r.svg, line, picture); err != nil {
			return err
		}
	}
	return t.incomplete(line)
}

// merge prints, and returns what is to be drawn.
func (t *tool) merge(line *timeline, out placeWriter, r *timelineRun) (picture []drawn, err error) {
	if err := out.begin(line.lanes); err != nil {
		return nil, err
	}
	for n := uint64(0); ; n++ {
		p, o, err := line.next()
		if err != nil {
			return picture, err
		}
		if p == nil {
			if n == 0 && !t.json {
				t.note("nothing found among the %d entries", line.size())
			}
			return picture, nil
		}
		if r.limit > 0 && n == r.limit {
			t.note("there are more entries than --limit %d", r.limit)
			return picture, nil
		}
		if err := out.put(p, o); err != nil {
			return nil, err
		}
		if r.svg != "" {
			if len(picture) == maxDrawn {
				return nil, usagef("--svg: more than %d entries; narrow the search", maxDrawn)
			}
			picture = append(picture, drawnOf(p, o))
		}
	}
}

// incomplete says what could not be searched.
func (t *tool) incomplete(line *timeline) error {
	damaged := false
	for _, l := range line.lanes {
		for _, d := range l.s.damaged {
			t.note("%s: not searched: %s", l.s.a.path, printable(d.Why, 300))
		}
		damaged = damaged || len(l.s.damaged) > 0
	}
	if damaged {
		return coded(exitNotCheckable, errors.New("the timeline is not complete"))
	}
	return nil
}

// placeWriter prints a timeline.
type placeWriter interface {
	begin(lanes []*lane) error
	put(p *place, o order) error
	end(lanes []*lane) error
}

func newPlaceWriter(w io.Writer, format string) (placeWriter, error) {
	switch format {
	case "table":
		return &tablePlaces{w: w}, nil
	case "ndjson":
		return linePlaces{w}, nil
	case "csv":
		c, err := newHitWriter(w, "csv", nil)
		if err != nil {
			return nil, err
		}
		return csvPlaces{c.(csvHits)}, nil
	}
	return nil, usagef("--format: %q is none of table, ndjson and csv", format)
}

// tablePlaces prints a line for each entry, with a letter for its log.
type tablePlaces struct{ w io.Writer }

// letter names a log in a table.
func letter(i int) string {
	if i < 26 {
		return string(rune('A' + i))
	}
	return string(rune('A'+i/26-1)) + string(rune('A'+i%26))
}

func (t *tablePlaces) begin(lanes []*lane) error {
	for i, l := range lanes {
		if _, err := fmt.Fprintf(t.w, "%-2s %s (%s)\n", letter(i), printable(l.s.a.head.Origin, 120), printable(l.s.a.path, 200)); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(t.w, "\n%7s %s %-2s  %8s  %-30s  %-9s  %-9s  %s\n", "GROUP", " ", "", "ENTRY", "TIME (UTC)", "BOUND", "PRODUCER", "WHAT")
	return err
}

func (t *tablePlaces) put(p *place, o order) error {
	mark := " "
	if !o.Ordered {
		mark = "~"
	}
	text := what(p.hit)
	if p.event == nil {
		text = string(p.entry.Kind) + " " + text
	}
	_, err := fmt.Fprintf(t.w, "%7d %s %-2s  %8d  %s  %-9s  %-9s  %s\n", o.Group, mark, letter(p.lane), p.entry.Index, p.utc(), p.bound(), p.who(), text)
	return err
}

func (t *tablePlaces) end([]*lane) error { return nil }

// linePlaces prints JSON, a line for each entry. earliest and latest are as the log's order bounds them.
type linePlaces struct{ w io.Writer }

func (l linePlaces) begin([]*lane) error { return nil }
func (l linePlaces) end([]*lane) error   { return nil }

func (l linePlaces) put(p *place, o order) error {
	d := p.document(nil)
	d.Earliest, d.Latest = p.instants()
	d.order = &o
	b, err := jsonLine(d)
	if err == nil {
		_, err = l.w.Write(b)
	}
	return err
}

// instants are an entry's bounds as text, empty where there is none.
func (p *place) instants() (earliest, latest string) {
	if p.earliest != math.MinInt64 {
		earliest = string(record.AppendTime(nil, p.earliest))
	}
	if p.latest != math.MaxInt64 {
		latest = string(record.AppendTime(nil, p.latest))
	}
	return earliest, latest
}

// csvPlaces prints the columns of search behind group and ordered.
type csvPlaces struct{ csvHits }

func (c csvPlaces) begin([]*lane) error {
	return c.w.Write(append([]string{"group", "ordered"}, csvColumns...))
}

func (c csvPlaces) end([]*lane) error { return c.csvHits.end(nil) }

func (c csvPlaces) put(p *place, o order) error {
	row := p.csv()
	row[3], row[4] = p.instants()
	return c.w.Write(append([]string{fmt.Sprint(o.Group), fmt.Sprint(o.Ordered)}, row...))
}
