package main

import (
	"fmt"
	"math"
	"time"

	"bulla/internal/svg"
)

// drawn is what a picture has of an entry.
type drawn struct {
	lane             int
	index            uint64
	at               int64 // UTC, ns
	estimated        bool  // at is; otherwise it is the system's time
	earliest, latest int64
	ordered          bool
	what             string
}

// maxDrawn bounds the entries of a picture.
const maxDrawn = 2000

func drawnOf(p *place, o order) drawn {
	name := string(p.entry.Kind)
	if p.event != nil {
		name = p.event.Type // parts of a-z, 0-9, _ and -: it needs no escapes
	}
	d := drawn{lane: p.lane, index: p.entry.Index, at: between(p.entry.Stamp.UTC()), estimated: p.entry.Stamp.HasEstimate, earliest: p.earliest, latest: p.latest, ordered: o.Ordered, what: name}
	if d.earliest != math.MinInt64 {
		d.earliest = between(d.earliest)
	}
	if d.latest != math.MaxInt64 {
		d.latest = between(d.latest)
	}
	return d
}

// between is a time as it is drawn: plausible.
func between(ns int64) int64 { return min(max(ns, 0), 1<<62) }

// Measures and colours of a timeline; print tells what is not ordered by its hatching.
const (
	laneTop, laneHeight = 84.0, 64.0
	unorderedColour     = "#b4462b"
)

// drawTimeline draws a lane for each log: each entry as the interval that it was received in.
func (t *tool) drawTimeline(path string, line *timeline, entries []drawn) error {
	if len(entries) == 0 {
		return coded(exitNotCheckable, fmt.Errorf("there is no entry to draw"))
	}
	if err := writeNew(path, timelineSVG(line, entries)); err != nil {
		return err
	}
	_, err := fmt.Fprintf(t.err, "%s: %d entries of %d logs\n", path, len(entries), len(line.lanes))
	return err
}

// timelinePicture is an SVG of entries being drawn.
type timelinePicture struct{ svg.Picture }

func timelineSVG(line *timeline, entries []drawn) []byte {
	p := &timelinePicture{}
	p.X0, p.X1 = timelineRange(entries)
	floor := laneTop + laneHeight*float64(len(line.lanes))
	height := floor + 64
	p.Open(height, "timeline", fmt.Sprintf("%d entries of %d logs, by true UTC", len(entries), len(line.lanes)), "each entry as the interval that it was received in, a lane for each log")
	p.F(`<defs><pattern id="h" width="5" height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><rect width="5" height="5" fill="%s" fill-opacity="0.25"/><line x1="0" y1="0" x2="0" y2="5" stroke="%s" stroke-width="2"/></pattern></defs>`, unorderedColour, unorderedColour)
	p.Text(plotLeft, 26, "start", 16, fmt.Sprintf("%d entries of %d logs, by true UTC", len(entries), len(line.lanes)))
	p.F(`<rect x="%.1f" y="38" width="14" height="11" fill="%s" fill-opacity="0.5"/>`, plotLeft, svg.Line)
	p.Text(plotLeft+20, 48, "start", 12, "received within; in proven order")
	p.F(`<rect x="%.1f" y="38" width="14" height="11" fill="url(#h)"/>`, plotLeft+260)
	p.Text(plotLeft+280, 48, "start", 12, "hatched: overlaps an entry of another log, order not known")
	p.Line(plotLeft+657, 36, plotLeft+657, 51, `stroke="#222" stroke-width="0.8"`)
	p.Text(plotLeft+667, 48, "start", 12, "best estimate")
	for i, l := range line.lanes {
		y := laneTop + laneHeight*float64(i)
		p.F(`<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="none" stroke="#ccc"/>`, plotLeft, y, plotRight-plotLeft, laneHeight)
		p.Text(plotLeft+4, y+13, "start", 11, letter(i)+"  "+printable(l.s.a.head.Origin, 100))
	}
	for _, e := range entries {
		p.entry(e)
	}
	p.foot(floor)
	return p.Close()
}

// timelineRange is the time that is drawn: that of the estimates, and of intervals that are not wider than an hour.
func timelineRange(entries []drawn) (x0, x1 int64) {
	x0, x1 = math.MaxInt64, math.MinInt64
	for _, e := range entries {
		if !e.estimated {
			continue
		}
		x0, x1 = min(x0, e.at), max(x1, e.at)
		if e.latest-e.earliest < int64(time.Hour) {
			x0, x1 = min(x0, e.earliest), max(x1, e.latest)
		}
	}
	if x0 > x1 { // there are no estimates: what the system's clocks said
		for _, e := range entries {
			x0, x1 = min(x0, e.at), max(x1, e.at)
		}
	}
	margin := max((x1-x0)/50, int64(time.Microsecond))
	return x0 - margin, x1 + margin
}

// entry draws an interval, and within it the best estimate.
func (p *timelinePicture) entry(e drawn) {
	y := laneTop + laneHeight*float64(e.lane) + 22
	x0, x1 := plotLeft, plotRight
	if e.earliest != math.MinInt64 {
		x0 = min(max(p.X(e.earliest), plotLeft), plotRight)
	}
	if e.latest != math.MaxInt64 {
		x1 = min(max(p.X(e.latest), plotLeft), plotRight)
	}
	fill := fmt.Sprintf(`fill="%s" fill-opacity="0.5"`, svg.Line)
	if !e.ordered {
		fill = `fill="url(#h)"`
	}
	p.F(`<g><rect x="%.2f" y="%.1f" width="%.2f" height="%.1f" %s/>`, min(x0, x1), y, max(math.Abs(x1-x0), 1), laneHeight-30, fill)
	if e.estimated {
		at := p.X(e.at)
		p.Line(at, y-3, at, y+laneHeight-27, `stroke="#222" stroke-width="0.8"`)
	}
	p.F(`<title>entry %d: %s</title></g>`, e.index, e.what)
}

// foot draws the axis of time.
func (p *timelinePicture) foot(y float64) {
	for i := range 5 {
		at := p.X0 + (p.X1-p.X0)/4*int64(i)
		x := plotLeft + (plotRight-plotLeft)/4*float64(i)
		p.Line(x, laneTop, x, y+5, `stroke="#ddd"`)
		anchor := "middle"
		if i == 0 {
			anchor = "start"
		} else if i == 4 {
			anchor = "end"
		}
		p.Text(x, y+20, anchor, 11, time.Unix(0, at).UTC().Format("15:04:05.000000"))
	}
	p.Text((plotLeft+plotRight)/2, y+44, "middle", 12, time.Unix(0, p.X0).UTC().Format("2006-01-02")+" UTC")
}
