package main

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"bulla/clock"
)

// The picture's measures, in pixels.
const (
	plotWidth, plotHeight = 960.0, 560.0
	plotLeft, plotRight   = 84.0, 936.0
	plotTop, plotFloor    = 92.0, 320.0  // of the offset's axes
	boundTop, boundFloor  = 340.0, 460.0 // of the bound's: beside a step of the system's clock its band is too thin to read
	stripTop, stripFloor  = 474.0, 496.0 // of the strip of states
)

// stateFill are the colours of states; print tells them apart by lightness.
var stateFill = map[clock.State]string{
	clock.Unknown: "#f0f0f0", clock.Synced: "#b7dfb9", clock.Holdover: "#f2d58a", clock.Unsynced: "#d9735b", clock.Disrupted: "#8f4f8f",
}

// picture is an SVG being drawn.
type picture struct {
	bytes.Buffer
	x0, x1 int64 // UTC, ns
	offset scale
	bound  scale
}

// scale is a vertical axis: ns become pixels.
type scale struct {
	name       string
	low, high  float64 // ns
	top, floor float64 // pixels
}

func (s *scale) y(ns float64) float64 { return s.floor - (ns-s.low)/(s.high-s.low)*(s.floor-s.top) }

// room leaves some at the ends that are not zero.
func (s *scale) room() {
	margin := max((s.high-s.low)*0.06, 1)
	if s.high += margin; s.low < 0 {
		s.low -= margin
	}
}

// drawSVG draws offset and bound over time, with the changes of state.
func drawSVG(h *history) []byte {
	p := &picture{x0: h.points[0].at, x1: h.points[len(h.points)-1].at,
		offset: scale{name: "UTC \u2212 system time", top: plotTop, floor: plotFloor}, bound: scale{name: "Bound", top: boundTop, floor: boundFloor}}
	for _, c := range h.changes {
		p.x0, p.x1 = min(p.x0, c.at), max(p.x1, c.at)
	}
	if p.x1-p.x0 < int64(time.Second) {
		p.x1 = p.x0 + int64(time.Second)
	}
	bands := h.bands(p.x1)
	for _, b := range bands {
		p.offset.low, p.offset.high = min(p.offset.low, b.offset-b.end), max(p.offset.high, b.offset+b.end)
		p.bound.high = max(p.bound.high, b.begin, b.end)
	}
	p.offset.room()
	p.bound.room()
	p.f(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.0f %.0f" width="%.0f" height="%.0f" font-family="DejaVu Sans, Helvetica, Arial, sans-serif" font-size="12" fill="#222">`, plotWidth, plotHeight, plotWidth, plotHeight)
	p.f(`<rect width="100%%" height="100%%" fill="#fff"/>`)
	p.text(plotLeft, 26, "start", 16, "Clock of "+printable(h.origin, 80))
	p.times()
	p.axis(&p.offset)
	p.axis(&p.bound)
	p.bands(bands)
	p.points(h)
	p.changes(h)
	p.states(h)
	p.legend()
	p.f(`</svg>`)
	return p.Bytes()
}

// band is an estimate for as long as it was relied upon; the bound grows from begin to end, ns.
type band struct {
	from, to           int64
	offset, begin, end float64
}

func (h *history) bands(until int64) []band {
	var out []band
	for i, x := range h.points {
		to := until
		if i+1 < len(h.points) {
			to = h.points[i+1].at
		}
		if x.end != 0 {
			to = min(to, x.end)
		}
		to = max(to, x.at)
		grown := float64(x.bound) + float64(to-x.at)*float64(x.growth)/1e9
		out = append(out, band{x.at, to, float64(x.offset), float64(x.bound), grown})
	}
	return out
}

func (p *picture) f(format string, a ...any) { fmt.Fprintf(p, format+"\n", a...) }

func (p *picture) x(at int64) float64 {
	return plotLeft + float64(at-p.x0)/float64(p.x1-p.x0)*(plotRight-plotLeft)
}

func (p *picture) text(x, y float64, anchor string, size int, s string) {
	fmt.Fprintf(p, `<text x="%.1f" y="%.1f" text-anchor="%s" font-size="%d">`, x, y, anchor, size)
	xml.EscapeText(p, []byte(s)) // a buffer takes everything
	p.f(`</text>`)
}

func (p *picture) line(x0, y0, x1, y1 float64, style string) {
	p.f(`<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" %s/>`, x0, y0, x1, y1, style)
}

// axis draws a vertical axis, with its unit.
func (p *picture) axis(s *scale) {
	unit, name := 1e9, "s"
	for _, u := range []struct {
		ns   float64
		name string
	}{{1e6, "ms"}, {1e3, "us"}, {1, "ns"}} {
		if max(-s.low, s.high) < unit*0.8 {
			unit, name = u.ns, u.name
		}
	}
	step := niceStep((s.high - s.low) / ((s.floor - s.top) / 32))
	for k := math.Ceil(s.low / step); k*step <= s.high; k++ {
		style, number := `stroke="#ddd"`, strings.Replace(fmt.Sprintf("%.6g", k*step/unit), "-", "\u2212", 1)
		if k == 0 {
			style, number = `stroke="#888"`, "0"
		}
		p.line(plotLeft, s.y(k*step), plotRight, s.y(k*step), style)
		p.text(plotLeft-8, s.y(k*step)+4, "end", 12, number)
	}
	p.f(`<text transform="translate(22 %.1f) rotate(-90)" text-anchor="middle">%s [%s]</text>`, (s.top+s.floor)/2, s.name, name)
	p.f(`<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="none" stroke="#444"/>`, plotLeft, s.top, plotRight-plotLeft, s.floor-s.top)
}

// times draws the axis of time.
func (p *picture) times() {
	tick, layout := timeStep(p.x1 - p.x0)
	for at := (p.x0 + tick - 1) / tick * tick; at <= p.x1; at += tick {
		p.line(p.x(at), plotTop, p.x(at), stripFloor+5, `stroke="#ddd"`)
		p.text(p.x(at), stripFloor+20, "middle", 12, time.Unix(0, at).UTC().Format(layout))
	}
	from, to := time.Unix(0, p.x0).UTC(), time.Unix(0, p.x1).UTC()
	p.text((plotLeft+plotRight)/2, plotHeight-18, "middle", 12, "Time [UTC], "+from.Format("2006-01-02 15:04:05")+" to "+to.Format("2006-01-02 15:04:05"))
}

// niceStep is 1, 2 or 5 times a power of ten, at least v.
func niceStep(v float64) float64 {
	base := math.Pow(10, math.Floor(math.Log10(v)))
	for _, m := range []float64{1, 2, 5} {
		if m*base >= v {
			return m * base
		}
	}
	return 10 * base
}

// timeStep is the distance of the time axis's ticks, at most nine of them, and how their times are written.
func timeStep(length int64) (int64, string) {
	for _, d := range []time.Duration{time.Second, 2 * time.Second, 5 * time.Second, 10 * time.Second, 30 * time.Second} {
		if length/int64(d) < 9 {
			return int64(d), "15:04:05"
		}
	}
	for _, d := range []time.Duration{time.Minute, 2 * time.Minute, 5 * time.Minute, 10 * time.Minute, 30 * time.Minute, time.Hour, 2 * time.Hour, 4 * time.Hour} {
		if length/int64(d) < 9 {
			return int64(d), "15:04"
		}
	}
	day := int64(24 * time.Hour)
	for _, d := range []int64{day / 2, day, 2 * day, 7 * day, 30 * day} {
		if length/d < 9 {
			return d, "01-02 15:04"
		}
	}
	return (length/(8*day) + 1) * day, "2006-01-02"
}

// bands draws what may have been UTC, and below it the bound alone: estimates that follow on each other without a gap share one area.
func (p *picture) bands(bands []band) {
	for i := 0; i < len(bands); {
		j := i + 1
		for j < len(bands) && bands[j-1].to == bands[j].from {
			j++
		}
		var upper, lower, bound []string
		for _, b := range bands[i:j] {
			for _, e := range []struct {
				at    int64
				bound float64
			}{{b.from, b.begin}, {b.to, b.end}} {
				upper = append(upper, fmt.Sprintf("%.1f,%.1f", p.x(e.at), p.offset.y(b.offset+e.bound)))
				lower = append(lower, fmt.Sprintf("%.1f,%.1f", p.x(e.at), p.offset.y(b.offset-e.bound)))
				bound = append(bound, fmt.Sprintf("%.1f,%.1f", p.x(e.at), p.bound.y(e.bound)))
			}
		}
		slices.Reverse(lower)
		floor := fmt.Sprintf("%.1f,%.1f %.1f,%.1f", p.x(bands[j-1].to), p.bound.y(0), p.x(bands[i].from), p.bound.y(0))
		for _, area := range []string{strings.Join(append(upper, lower...), " "), strings.Join(append(bound, floor), " ")} {
			p.f(`<polygon points="%s" fill="#4a7db5" fill-opacity="0.25" stroke="#4a7db5" stroke-width="0.6"/>`, area)
		}
		for _, b := range bands[i:j] {
			p.line(p.x(b.from), p.offset.y(b.offset), p.x(b.to), p.offset.y(b.offset), `stroke="#1b3f66" stroke-width="1.2"`)
		}
		i = j
	}
}

// points marks rounds, unless they are too many to be told apart.
func (p *picture) points(h *history) {
	radius := 2.4
	if len(h.points) > 300 {
		radius = 1
	}
	last := math.Inf(-1)
	for _, x := range h.points {
		if p.x(x.at)-last < 0.5 {
			continue
		}
		last = p.x(x.at)
		p.f(`<circle cx="%.1f" cy="%.1f" r="%.1f" fill="#1b3f66"/>`, last, p.offset.y(float64(x.offset)), radius)
	}
}

// changes marks changes of state, and names those that there is room for.
func (p *picture) changes(h *history) {
	var free [2]float64 // where each line of names is free again
	for _, c := range h.changes {
		x := p.x(c.at)
		p.line(x, plotTop, x, stripFloor, `stroke="#b03a2e" stroke-width="1" stroke-dasharray="4 3"`)
		label := c.to.String() + " (" + printable(c.reason, 20) + ")"
		width := 6.2 * float64(len(label))
		at, anchor := x, "start"
		if x+width > plotRight {
			at, anchor = x-width, "end"
		}
		for row := range free {
			if at >= free[row] {
				free[row] = at + width + 6
				p.f(`<g fill="#8c2d23">`)
				p.text(x, plotTop-6-14*float64(row), anchor, 11, label)
				p.f(`</g>`)
				break
			}
		}
	}
}

// states draws the strip of states below the axes.
func (p *picture) states(h *history) {
	from := p.x0
	state := clock.Synced // there are rounds and no changes in this time
	if len(h.changes) > 0 {
		state = h.changes[0].from
	}
	draw := func(to int64) {
		fill, ok := stateFill[state]
		if !ok || to <= from {
			return
		}
		p.f(`<rect x="%.1f" y="%.1f" width="%.2f" height="%.1f" fill="%s"/>`, p.x(from), stripTop, p.x(to)-p.x(from), stripFloor-stripTop, fill)
		if name := state.String(); p.x(to)-p.x(from) > 8*float64(len(name)) {
			p.text((p.x(from)+p.x(to))/2, (stripTop+stripFloor)/2+4, "middle", 11, name)
		}
	}
	for _, c := range h.changes {
		draw(c.at)
		from, state = max(from, c.at), c.to
	}
	draw(p.x1)
	p.f(`<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="none" stroke="#444"/>`, plotLeft, stripTop, plotRight-plotLeft, stripFloor-stripTop)
	p.text(plotLeft-8, (stripTop+stripFloor)/2+4, "end", 12, "State")
}

func (p *picture) legend() {
	y := 48.0
	p.f(`<circle cx="%.1f" cy="%.1f" r="2.4" fill="#1b3f66"/>`, plotLeft+12, y-4)
	p.line(plotLeft, y-4, plotLeft+24, y-4, `stroke="#1b3f66" stroke-width="1.2"`)
	p.text(plotLeft+30, y, "start", 12, "offset, a point a round")
	p.f(`<rect x="%.1f" y="%.1f" width="24" height="11" fill="#4a7db5" fill-opacity="0.25" stroke="#4a7db5" stroke-width="0.6"/>`, plotLeft+200, y-10)
	p.text(plotLeft+230, y, "start", 12, "bound: UTC lies within")
	p.line(plotLeft+400, y-4, plotLeft+424, y-4, `stroke="#b03a2e" stroke-dasharray="4 3"`)
	p.text(plotLeft+430, y, "start", 12, "change of state (reason)")
}

// sparkWidth is the width of a line in the terminal, in characters.
const sparkWidth = 64

// sparklines are offset and bound as lines of text.
func sparklines(h *history) string {
	first, last := h.points[0].at, h.points[len(h.points)-1].at
	column := func(at int64) int {
		return int(float64(at-first) / float64(max(last-first, 1)) * (sparkWidth - 1))
	}
	line := func(name string, value func(clockPoint) int64) string {
		low, high := value(h.points[0]), value(h.points[0])
		for _, x := range h.points {
			low, high = min(low, value(x)), max(high, value(x))
		}
		cells := []rune(strings.Repeat(" ", sparkWidth))
		for _, x := range h.points { // of several rounds in a column, the highest is shown
			level := []rune("▁▂▃▄▅▆▇█")[int((float64(value(x))-float64(low))/max(float64(high)-float64(low), 1)*7)]
			if c := max(0, column(x.at)); c < sparkWidth {
				cells[c] = max(cells[c], level)
			}
		}
		return fmt.Sprintf("%-7s %s  %s to %s\n", name, string(cells), span(low), span(high))
	}
	out := line("offset", func(x clockPoint) int64 { return x.offset }) + line("bound", func(x clockPoint) int64 { return x.bound })
	const layout = "2006-01-02 15:04:05"
	return out + fmt.Sprintf("%-7s %s to %s UTC, %d rounds, %d changes of state\n", "", time.Unix(0, first).UTC().Format(layout), time.Unix(0, last).UTC().Format(layout), len(h.points), len(h.changes))
}
