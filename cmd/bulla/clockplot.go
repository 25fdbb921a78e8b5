package main

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"bulla/clock"
	"bulla/internal/svg"
)

// The picture's measures, in pixels.
const (
	plotHeight           = 560.0
	plotLeft, plotRight  = svg.Left, svg.Right
	plotTop, plotFloor   = 92.0, 320.0  // of the offset's axes
	boundTop, boundFloor = 340.0, 460.0 // of the bound's: beside a step of the system's clock its band is too thin to read
	stripTop, stripFloor = 474.0, 496.0 // of the strip of states
)

// clockPicture is an SVG of a clock being drawn.
type clockPicture struct {
	svg.Picture
	offset svg.Scale
	bound  svg.Scale
}

// drawSVG draws offset and bound over time, with the changes of state.
func drawSVG(h *history) []byte {
	p := &clockPicture{Picture: svg.Picture{X0: h.points[0].at, X1: h.points[len(h.points)-1].at},
		offset: svg.Scale{Name: "UTC \u2212 system time", Top: plotTop, Floor: plotFloor}, bound: svg.Scale{Name: "Bound", Top: boundTop, Floor: boundFloor}}
	for _, c := range h.changes {
		p.X0, p.X1 = min(p.X0, c.at), max(p.X1, c.at)
	}
	if p.X1-p.X0 < int64(time.Second) {
		p.X1 = p.X0 + int64(time.Second)
	}
	bands := h.bands(p.X1)
	for _, b := range bands {
		p.offset.Low, p.offset.High = min(p.offset.Low, b.offset-b.end), max(p.offset.High, b.offset+b.end)
		p.bound.High = max(p.bound.High, b.begin, b.end)
	}
	p.offset.Room()
	p.bound.Room()
	p.Open(plotHeight, "clock", "Clock of "+printable(h.origin, 80), fmt.Sprintf("UTC minus the system's time with its bound, over %d rounds of measurement and %d changes of state", len(h.points), len(h.changes)))
	p.Text(plotLeft, 26, "start", 16, "Clock of "+printable(h.origin, 80))
	p.Times(plotTop, stripFloor)
	p.Durations(&p.offset)
	p.Durations(&p.bound)
	p.bands(bands)
	p.points(h)
	p.changes(h)
	p.states(h)
	p.legend()
	return p.Close()
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

// bands draws what may have been UTC, and below it the bound alone: estimates that follow on each other without a gap share one area.
func (p *clockPicture) bands(bands []band) {
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
				upper = append(upper, fmt.Sprintf("%.1f,%.1f", p.X(e.at), p.offset.Y(b.offset+e.bound)))
				lower = append(lower, fmt.Sprintf("%.1f,%.1f", p.X(e.at), p.offset.Y(b.offset-e.bound)))
				bound = append(bound, fmt.Sprintf("%.1f,%.1f", p.X(e.at), p.bound.Y(e.bound)))
			}
		}
		slices.Reverse(lower)
		floor := fmt.Sprintf("%.1f,%.1f %.1f,%.1f", p.X(bands[j-1].to), p.bound.Y(0), p.X(bands[i].from), p.bound.Y(0))
		for _, area := range []string{strings.Join(append(upper, lower...), " "), strings.Join(append(bound, floor), " ")} {
			p.F(`<polygon points="%s" fill="#4a7db5" fill-opacity="0.25" stroke="#4a7db5" stroke-width="0.6"/>`, area)
		}
		for _, b := range bands[i:j] {
			p.Line(p.X(b.from), p.offset.Y(b.offset), p.X(b.to), p.offset.Y(b.offset), `stroke="#1b3f66" stroke-width="1.2"`)
		}
		i = j
	}
}

// points marks rounds, unless they are too many to be told apart.
func (p *clockPicture) points(h *history) {
	radius := 2.4
	if len(h.points) > 300 {
		radius = 1
	}
	last := math.Inf(-1)
	for _, x := range h.points {
		if p.X(x.at)-last < 0.5 {
			continue
		}
		last = p.X(x.at)
		p.Dot(last, p.offset.Y(float64(x.offset)), radius)
	}
}

// changes marks changes of state, and names those that there is room for.
func (p *clockPicture) changes(h *history) {
	var free [2]float64 // where each line of names is free again
	for _, c := range h.changes {
		x := p.X(c.at)
		p.Line(x, plotTop, x, stripFloor, `stroke="#b03a2e" stroke-width="1" stroke-dasharray="4 3"`)
		label := c.to.String() + " (" + printable(c.reason, 20) + ")"
		width := 6.2 * float64(len(label))
		at, anchor := x, "start"
		if x+width > plotRight {
			at, anchor = x-width, "end"
		}
		for row := range free {
			if at >= free[row] {
				free[row] = at + width + 6
				p.F(`<g fill="#8c2d23">`)
				p.Text(x, plotTop-6-14*float64(row), anchor, 11, label)
				p.F(`</g>`)
				break
			}
		}
	}
}

// states draws the strip of states below the axes.
func (p *clockPicture) states(h *history) {
	from := p.X0
	state := clock.Synced // there are rounds and no changes in this time
	if len(h.changes) > 0 {
		state = h.changes[0].from
	}
	draw := func(to int64) {
		fill, ok := svg.Fill[state.String()]
		if !ok || to <= from {
			return
		}
		p.Strip(stripTop, stripFloor, from, to, fill, state.String())
	}
	for _, c := range h.changes {
		draw(c.at)
		from, state = max(from, c.at), c.to
	}
	draw(p.X1)
	p.Box(stripTop, stripFloor)
	p.Text(plotLeft-8, (stripTop+stripFloor)/2+4, "end", 12, "State")
}

func (p *clockPicture) legend() {
	y := 48.0
	p.F(`<circle cx="%.1f" cy="%.1f" r="2.4" fill="#1b3f66"/>`, plotLeft+12, y-4)
	p.Line(plotLeft, y-4, plotLeft+24, y-4, `stroke="#1b3f66" stroke-width="1.2"`)
	p.Text(plotLeft+30, y, "start", 12, "offset, a point a round")
	p.F(`<rect x="%.1f" y="%.1f" width="24" height="11" fill="#4a7db5" fill-opacity="0.25" stroke="#4a7db5" stroke-width="0.6"/>`, plotLeft+200, y-10)
	p.Text(plotLeft+230, y, "start", 12, "bound: UTC lies within")
	p.Line(plotLeft+400, y-4, plotLeft+424, y-4, `stroke="#b03a2e" stroke-dasharray="4 3"`)
	p.Text(plotLeft+430, y, "start", 12, "change of state (reason)")
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
	return out + fmt.Sprintf("%-7s %s to %s UTC, %d rounds (bound as of each), %d changes of state\n", "", time.Unix(0, first).UTC().Format(layout), time.Unix(0, last).UTC().Format(layout), len(h.points), len(h.changes))
}
