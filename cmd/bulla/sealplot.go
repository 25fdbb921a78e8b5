package main

import (
	"fmt"
	"io"
	"math"
	"strings"
	"time"

	"bulla/internal/svg"
)

// plotSeals draws seals into a file, or on standard output as text.
func (t *tool) plotSeals(h *sealHistory, path string) error {
	if len(h.seals) == 0 {
		return coded(exitNotCheckable, fmt.Errorf("%s has no seal to draw", printable(h.origin, 80)))
	}
	if path == "-" {
		out := t.out
		if t.json { // standard output is one JSON value
			out = t.err
		}
		_, err := io.WriteString(out, sealLines(h))
		return err
	}
	if err := writeNew(path, sealSVG(h)); err != nil {
		return err
	}
	_, err := fmt.Fprintf(t.err, "%s: %d seals, %d boots, %d gaps\n", path, len(h.seals), len(h.boots()), len(h.gaps()))
	return err
}

// sealPicture is an SVG of seals being drawn: heads above, the counter below, boots in the strip, gaps across all.
type sealPicture struct {
	svg.Picture
	h      *sealHistory
	heads  svg.Scale
	values svg.Scale
}

func sealSVG(h *sealHistory) []byte {
	first, last := h.seals[0], h.seals[len(h.seals)-1]
	p := &sealPicture{h: h, heads: svg.Scale{Name: "Entries sealed", Top: plotTop, Floor: plotFloor}, values: svg.Scale{Name: "TPM counter", Top: boundTop, Floor: boundFloor}}
	p.X0, p.X1 = first.Time.UnixNano(), last.Time.UnixNano()
	p.heads.Low, p.values.Low = float64(first.Size), float64(first.Counter)
	for _, l := range h.seals { // an honest log's grow, but it is drawn as it is
		at := l.Time.UnixNano()
		p.X0, p.X1 = min(p.X0, at), max(p.X1, at)
		p.heads.Low, p.heads.High = min(p.heads.Low, float64(l.Size)), max(p.heads.High, float64(l.Size))
		p.values.Low, p.values.High = min(p.values.Low, float64(l.Counter)), max(p.values.High, float64(l.Counter))
	}
	if p.X1-p.X0 < int64(time.Second) {
		p.X1 = p.X0 + int64(time.Second)
	}
	for _, s := range []*svg.Scale{&p.heads, &p.values} {
		margin := max((s.High-s.Low)*0.06, 1)
		s.Low, s.High = max(0, s.Low-margin), s.High+margin
	}
	p.Open(plotHeight, "seals", "Seals of "+printable(h.origin, 80), fmt.Sprintf("entries sealed and the TPM's counter, over %d seals, %d boots and %d gaps", len(h.seals), len(h.boots()), len(h.gaps())))
	p.Text(plotLeft, 26, "start", 16, "Seals of "+printable(h.origin, 80))
	p.gaps()
	p.Times(plotTop, stripFloor)
	p.Counts(&p.heads)
	p.Counts(&p.values)
	p.steps(&p.heads, func(l sealLine) float64 { return float64(l.Size) })
	p.steps(&p.values, func(l sealLine) float64 { return float64(l.Counter) })
	p.marks()
	p.boots()
	p.sealLegend()
	return p.Close()
}

// gaps shades times without a seal.
func (p *sealPicture) gaps() {
	for _, g := range p.h.gaps() {
		x0, x1 := p.X(g.from.UnixNano()), p.X(g.to.UnixNano())
		p.F(`<rect x="%.1f" y="%.1f" width="%.2f" height="%.1f" fill="%s" fill-opacity="0.25"/>`, min(x0, x1), plotTop, math.Abs(x1-x0), stripFloor-plotTop, svg.Gap)
		if label := "no seal for " + span(int64(g.to.Sub(g.from))); x1-x0 > 6.5*float64(len(label)) {
			p.Text((x0+x1)/2, plotTop+16, "middle", 11, label)
		}
	}
}

// steps draws a value that holds from seal to seal.
func (p *sealPicture) steps(s *svg.Scale, value func(sealLine) float64) {
	var points []string
	before := 0.0
	for i, l := range p.h.seals {
		x, y := p.X(l.Time.UnixNano()), s.Y(value(l))
		if i > 0 {
			points = append(points, fmt.Sprintf("%.1f,%.1f", x, before))
		}
		points = append(points, fmt.Sprintf("%.1f,%.1f", x, y))
		before = y
	}
	p.F(`<polyline points="%s" fill="none" stroke="#4a7db5" stroke-width="1.2"/>`, strings.Join(points, " "))
}

// marks marks seals, unless they are too many to be told apart; starts, stops and what somebody asked for always.
func (p *sealPicture) marks() {
	last := math.Inf(-1)
	for _, l := range p.h.seals {
		x, y := p.X(l.Time.UnixNano()), p.heads.Y(float64(l.Size))
		switch l.Reason {
		case "start":
			p.Line(x, plotTop, x, boundFloor, `stroke="#2e7d32" stroke-width="1" stroke-dasharray="4 3"`)
			p.Triangle(x, y)
		case "stop":
			p.Square(x, y)
		case "demand", "challenge":
			p.Diamond(x, y)
		default:
			if x-last < 1 {
				continue
			}
			p.Dot(x, y, 2.2)
		}
		last = x
		if l.Abandoned > 0 {
			p.Text(max(x-6, plotLeft+80), y-6, "end", 11, fmt.Sprintf("%d abandoned", l.Abandoned))
		}
	}
}

// boots draws the strip of boots, each from its first seal to its last: what was between is not known.
func (p *sealPicture) boots() {
	for i, b := range p.h.boots() {
		fill := "#b7dfb9"
		if i%2 == 1 {
			fill = "#dcd0ec"
		}
		p.Strip(stripTop, stripFloor, b.from.UnixNano(), b.to.UnixNano(), fill, fmt.Sprintf("boot %d", b.count))
	}
	p.Box(stripTop, stripFloor)
	p.Text(plotLeft-8, (stripTop+stripFloor)/2+4, "end", 12, "Boot")
}

func (p *sealPicture) sealLegend() {
	y, x := 48.0, plotLeft
	for _, e := range []struct {
		mark func(x, y float64)
		text string
	}{
		{func(x, y float64) { p.Dot(x, y, 2.2) }, "seal"},
		{p.Triangle, "first of a start"},
		{p.Square, "stop"},
		{p.Diamond, "asked for"},
		{func(x, y float64) {
			p.F(`<rect x="%.1f" y="%.1f" width="14" height="11" fill="%s" fill-opacity="0.25"/>`, x-6, y-6, svg.Gap)
		}, "no seal for longer than " + span(int64(p.h.quiet))},
	} {
		e.mark(x+8, y-4)
		p.Text(x+26, y, "start", 12, e.text)
		x += 50 + 7.2*float64(len(e.text))
	}
}

// sealLines are heads, counter, boots and gaps as lines of text.
func sealLines(h *sealHistory) string {
	first, last := h.seals[0].Time, h.seals[len(h.seals)-1].Time
	column := func(at time.Time) int {
		c := int(float64(at.Sub(first)) / float64(max(last.Sub(first), 1)) * (sparkWidth - 1))
		return min(max(c, 0), sparkWidth-1)
	}
	blank := func() []rune { return []rune(strings.Repeat(" ", sparkWidth)) }
	line := func(name string, value func(sealLine) uint64) string {
		low, high := uint64(math.MaxUint64), uint64(0)
		for _, l := range h.seals {
			low, high = min(low, value(l)), max(high, value(l))
		}
		cells := blank()
		for _, l := range h.seals { // of several seals in a column, the highest is shown
			level := []rune("▁▂▃▄▅▆▇█")[int(float64(value(l)-low)/max(float64(high-low), 1)*7)]
			cells[column(l.Time)] = max(cells[column(l.Time)], level)
		}
		return fmt.Sprintf("%-8s %s  %d to %d\n", name, string(cells), low, high)
	}
	out := line("heads", func(l sealLine) uint64 { return l.Size }) + line("counter", func(l sealLine) uint64 { return l.Counter })
	cells, boots := blank(), h.boots()
	for i, b := range boots {
		for c := column(b.from); c <= column(b.to); c++ {
			cells[c] = rune("ABCDEFGHIJKLMNOPQRSTUVWXYZ"[i%26])
		}
	}
	out += fmt.Sprintf("%-8s %s  %d, reset counts %d to %d\n", "boots", string(cells), len(boots), boots[0].count, boots[len(boots)-1].count)
	cells = blank()
	longest := time.Duration(0)
	for _, g := range h.gaps() {
		longest = max(longest, g.to.Sub(g.from))
		for c := column(g.from); c <= column(g.to); c++ {
			cells[c] = '░'
		}
	}
	gaps := "none"
	if longest > 0 {
		gaps = fmt.Sprintf("%d, the longest %s", len(h.gaps()), span(int64(longest)))
	}
	out += fmt.Sprintf("%-8s %s  %s\n", "gaps", string(cells), gaps)
	const layout = "2006-01-02 15:04:05"
	return out + fmt.Sprintf("%-8s %s to %s UTC, %d seals\n", "", first.Format(layout), last.Format(layout), len(h.seals))
}
