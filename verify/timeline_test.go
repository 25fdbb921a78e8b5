package verify

import (
	"encoding/json"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"bulla/clock"
	"bulla/record"
)

// However long a log is and whatever its times, a timeline stays small, and keeps the least and the most of everything.
func TestTimelineIsBoundedAndKeepsExtremes(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2))
	for about, step := range map[string]func(i int) int64{
		"a second apart": func(i int) int64 { return int64(i) * int64(time.Second) }, "all at once": func(int) int64 { return 5 },
		"anywhere": func(int) int64 { return random.Int64() - math.MaxInt64/2 }, "backwards": func(i int) int64 { return -int64(i) * int64(time.Hour) },
	} {
		line := newTimeline()
		l := &line
		want := ClockEstimate{Least: math.MaxInt64, Most: math.MinInt64, Earliest: math.MaxInt64, Latest: math.MinInt64}
		const n = 20_000
		for i := range n {
			s := clock.Stamp{Sys: step(i), Offset: random.Int64N(2e9) - 1e9, Bound: random.Int64N(1e6), State: clock.Synced, HasEstimate: i%5 > 0}
			if i == n/2 {
				s.State = clock.Disrupted
			}
			if s.HasEstimate {
				want = ClockEstimate{min(want.Least, s.Offset), max(want.Most, s.Offset), min(want.Earliest, s.Offset-s.Bound), max(want.Latest, s.Offset+s.Bound), max(want.Bound, s.Bound)}
			} else {
				s.Offset, s.Bound = 0, 0
			}
			l.see(&record.Entry{Index: uint64(i), Kind: record.KindEvent, Stamp: s})
		}
		for i := range n {
			l.mark(&l.events, &record.Entry{Index: uint64(i)}, "start", "")
		}
		got := (&Report{Timeline: l.report()}).estimate()
		if got == nil || *got != want {
			t.Errorf("%s: %+v, want %+v", about, got, want)
		}
		tl := l.report()
		if !slices.ContainsFunc(tl.Clock, func(c ClockSpan) bool { return c.State == "disrupted" }) {
			t.Errorf("%s: the one disruption is gone", about)
		}
		if !slices.IsSortedFunc(tl.Clock, func(a, b ClockSpan) int { return int(a.from/2 - b.from/2) }) && about != "anywhere" {
			t.Errorf("%s: not in order", about)
		}
		if len(tl.Clock) > maxSpans || len(tl.Events) != maxMilestones || tl.Events[0].Entry != n-maxMilestones || tl.Omitted != n-maxMilestones {
			t.Errorf("%s: %d spans, %d events from %d on, %d omitted", about, len(tl.Clock), len(tl.Events), tl.Events[0].Entry, tl.Omitted)
		}
		if b, err := json.Marshal(tl); err != nil || len(b) > 200_000 {
			t.Errorf("%s: %d bytes, %v", about, len(b), err)
		}
		rep := &Report{Timeline: tl}
		if page := slices.Concat(rep.course(), rep.clockPicture()); len(page) > 500_000 || slices.Contains([]string{"", "NaN"}, string(page)) {
			t.Errorf("%s: pictures of %d bytes", about, len(page))
		}
	}
}

func TestBootsAreHalved(t *testing.T) {
	t.Parallel()
	for n := 1; n < 9; n++ {
		var boots []BootSpan
		for i := range n {
			boots = append(boots, BootSpan{Resets: uint32(i), Boots: 1, Seals: 2, from: int64(i), to: int64(i)})
		}
		got := halved(boots)
		count, seals := uint64(0), uint64(0)
		for _, b := range got {
			count, seals = count+b.Boots, seals+b.Seals
		}
		if count != uint64(n) || seals != uint64(2*n) || got[len(got)-1].Boots != 1 || got[len(got)-1].Resets != uint32(n-1) || len(got) != n/2+1 {
			t.Errorf("%d boots became %+v", n, got)
		}
	}
}
