package main

import (
	"fmt"
	"io"
	"math"
	"strings"
	"time"

	"bulla/internal/durable"
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
	if err := durable.Replace(path, sealSVG(h), 0o644); err != nil {
		return err
	}
	_, err := fmt.Fprintf(t.err, "%s: %d seals, %d boots, %d gaps\n", path, len(h.seals), len(h.boots()), len(h.gaps()))
	return err
}

// sealPicture is an SVG of seals being drawn: heads above, the counter below, boots in the strip, gaps across all.
type sealPicture struct {
	picture
	h      *sealHistory
	heads  scale
	values scale
}

// Colours of seals by reason; print tells the three apart by shape as well.
const (
	sealColour   = "#1b3f66"
	demandColour = "#b8860b"
	gapColour    = "#d9735b"
)

func sealSVG(h *sealHistory) []byte {
	first, last := h.seals[0], h.seals[len(h.seals)-1]
	p := &sealPicture{h: h, heads: scale{name: "Entries sealed", top: plotTop, floor: plotFloor}, values: scale{name: "TPM counter", top: boundTop, floor: boundFloor}}
	p.x0, p.x1 = first.Time.UnixNano(), last.Time.UnixNano()
	p.heads.low, p.values.low = float64(first.Size), float64(first.Counter)
	for _, l := range h.seals { // an honest log's grow, but it is drawn as it is
		at := l.Time.UnixNano()
		p.x0, p.x1 = min(p.x0, at), max(p.x1, at)
		p.heads.low, p.heads.high = min(p.heads.low, float64(l.Size)), max(p.heads.high, float64(l.Size))
		p.values.low, p.values.high = min(p.values.low, float64(l.Counter)), max(p.values.high, float64(l.Counter))
	}
	if p.x1-p.x0 < int64(time.Second) {
		p.x1 = p.x0 + int64(time.Second)
	}
	for _, s := range []*scale{&p.heads, &p.values} {
		margin := max((s.high-s.low)*0.06, 1)
		s.low, s.high = max(0, s.low-margin), s.high+margin
	}
	p.f(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.0f %.0f" width="%.0f" height="%.0f" font-family="DejaVu Sans, Helvetica, Arial, sans-serif" font-size="12" fill="#222">`, plotWidth, plotHeight, plotWidth, plotHeight)
	p.f(`<rect width="100%%" height="100%%" fill="#fff"/>`)
	p.text(plotLeft, 26, "start", 16, "Seals of "+printable(h.origin, 80))
	p.gaps()
	p.times()
	p.counts(&p.heads)
	p.counts(&p.values)
	p.steps(&p.heads, func(l sealLine) float64 { return float64(l.Size) })
	p.steps(&p.values, func(l sealLine) float64 { return float64(l.Counter) })
	p.marks()
	p.boots()
	p.sealLegend()
	p.f(`</svg>`)
	return p.Bytes()
}

// gaps shades times without a seal.
func (p *sealPicture) gaps() {
	for _, g := range p.h.gaps() {
		x0, x1 := p.x(g.from.UnixNano()), p.x(g.to.UnixNano())
		p.f(`<rect x="%.1f" y="%.1f" width="%.2f" height="%.1f" fill="%s" fill-opacity="0.25"/>`, min(x0, x1), plotTop, math.Abs(x1-x0), stripFloor-plotTop, gapColour)
		if label := "no seal for " + span(int64(g.to.Sub(g.from))); x1-x0 > 6.5*float64(len(label)) {
			p.text((x0+x1)/2, plotTop+16, "middle", 11, label)
		}
	}
}

// counts draws a vertical axis of whole numbers.
func (p *sealPicture) counts(s *scale) {
	step := max(niceStep((s.high-s.low)/((s.floor-s.top)/32)), 1)
	for k := math.Ceil(s.low / step); k*step <= s.high; k++ {
		p.line(plotLeft, s.y(k*step), plotRight, s.y(k*step), `stroke="#ddd"`)
		p.text(plotLeft-8, s.y(k*step)+4, "end", 12, fmt.Sprintf("%.0f", k*step))
	}
	p.f(`<text transform="translate(22 %.1f) rotate(-90)" text-anchor="middle">%s</text>`, (s.top+s.floor)/2, s.name)
	p.f(`<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="none" stroke="#444"/>`, plotLeft, s.top, plotRight-plotLeft, s.floor-s.top)
}

// steps draws a value that holds from seal to seal.
func (p *sealPicture) steps(s *scale, value func(sealLine) float64) {
	var points []string
	before := 0.0
	for i, l := range p.h.seals {
		x, y := p.x(l.Time.UnixNano()), s.y(value(l))
		if i > 0 {
			points = append(points, fmt.Sprintf("%.1f,%.1f", x, before))
		}
		points = append(points, fmt.Sprintf("%.1f,%.1f", x, y))
		before = y
	}
	p.f(`<polyline points="%s" fill="none" stroke="#4a7db5" stroke-width="1.2"/>`, strings.Join(points, " "))
}

// marks marks seals, unless they are too many to be told apart; starts, stops and what somebody asked for always.
func (p *sealPicture) marks() {
	last := math.Inf(-1)
	for _, l := range p.h.seals {
		x, y := p.x(l.Time.UnixNano()), p.heads.y(float64(l.Size))
		switch l.Reason {
		case "start":
			p.line(x, plotTop, x, boundFloor, `stroke="#2e7d32" stroke-width="1" stroke-dasharray="4 3"`)
			p.f(`<path d="M%.1f %.1f l-5 9 h10 z" fill="#2e7d32"/>`, x, y-5)
		case "stop":
			p.f(`<rect x="%.1f" y="%.1f" width="8" height="8" fill="#444"/>`, x-4, y-4)
		case "demand", "challenge":
			p.f(`<path d="M%.1f %.1f l5 5 l-5 5 l-5 -5 z" fill="%s"/>`, x, y-5, demandColour)
		default:
			if x-last < 1 {
				continue
			}
			p.f(`<circle cx="%.1f" cy="%.1f" r="2.2" fill="%s"/>`, x, y, sealColour)
		}
		last = x
		if l.Abandoned > 0 {
			p.text(max(x-6, plotLeft+80), y-6, "end", 11, fmt.Sprintf("%d abandoned", l.Abandoned))
		}
	}
}

// boots draws the strip of boots, each from its first seal to its last: what was between is not known.
func (p *sealPicture) boots() {
	for i, b := range p.h.boots() {
		x0, x1 := p.x(b.from.UnixNano()), p.x(b.to.UnixNano())
		fill := "#b7dfb9"
		if i%2 == 1 {
			fill = "#dcd0ec"
		}
		p.f(`<rect x="%.1f" y="%.1f" width="%.2f" height="%.1f" fill="%s"/>`, x0, stripTop, max(x1-x0, 2), stripFloor-stripTop, fill)
		if label := fmt.Sprintf("boot %d", b.count); x1-x0 > 8*float64(len(label)) {
			p.text((x0+x1)/2, (stripTop+stripFloor)/2+4, "middle", 11, label)
		}
	}
	p.f(`<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="none" stroke="#444"/>`, plotLeft, stripTop, plotRight-plotLeft, stripFloor-stripTop)
	p.text(plotLeft-8, (stripTop+stripFloor)/2+4, "end", 12, "Boot")
}

func (p *sealPicture) sealLegend() {
	y, x := 48.0, plotLeft
	for _, e := range []struct {
		shape, text string
	}{
		{fmt.Sprintf(`<circle cx="%%.1f" cy="%.1f" r="2.2" fill="%s"/>`, y-4, sealColour), "seal"},
		{fmt.Sprintf(`<path d="M%%.1f %.1f l-5 9 h10 z" fill="#2e7d32"/>`, y-9), "first of a start"},
		{fmt.Sprintf(`<rect x="%%.1f" y="%.1f" width="8" height="8" fill="#444"/>`, y-8), "stop"},
		{fmt.Sprintf(`<path d="M%%.1f %.1f l5 5 l-5 5 l-5 -5 z" fill="%s"/>`, y-9, demandColour), "asked for"},
		{fmt.Sprintf(`<rect x="%%.1f" y="%.1f" width="14" height="11" fill="%s" fill-opacity="0.25"/>`, y-10, gapColour), "no seal for longer than " + span(int64(p.h.quiet))},
	} {
		p.f(e.shape, x+8)
		p.text(x+26, y, "start", 12, e.text)
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
