// Package svg draws pictures of a log over time: what all of them have in common is here, from the axis of time to what a bound is
// drawn as. A picture needs no script and no other file, and whatever text somebody else wrote is escaped.
package svg

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"math"
	"strings"
	"time"
)

// Measures that all pictures share, in pixels.
const (
	Width       = 960.0
	Left, Right = 84.0, 936.0 // of what is drawn over time
)

// Colours that mean the same in all pictures. None means anything alone: print tells by shape, label or hatching as well.
const (
	Ink    = "#222"
	Grid   = "#ddd"
	Frame  = "#444"
	Line   = "#1b3f66"
	Area   = "#4a7db5"
	Pale   = "#c9d9e9"
	Start  = "#2e7d32"
	Demand = "#b8860b"
	Gap    = "#d9735b"
	Change = "#b03a2e"
)

// Fill are the colours of a clock's states by name; print tells them apart by lightness.
var Fill = map[string]string{"unknown": "#f0f0f0", "synced": "#b7dfb9", "holdover": "#f2d58a", "unsynced": "#d9735b", "disrupted": "#8f4f8f"}

// Picture is an SVG being drawn.
type Picture struct {
	bytes.Buffer
	X0, X1 int64 // the time that is drawn: UTC, ns
}

// Scale is a vertical axis: values become pixels.
type Scale struct {
	Name       string
	Low, High  float64
	Top, Floor float64 // pixels
}

// Y is where a value is drawn.
func (s *Scale) Y(value float64) float64 {
	return s.Floor - (value-s.Low)/(s.High-s.Low)*(s.Floor-s.Top)
}

// Room leaves some at the ends that are not zero.
func (s *Scale) Room() {
	margin := max((s.High-s.Low)*0.06, 1)
	if s.High += margin; s.Low < 0 {
		s.Low -= margin
	}
}

// Open begins a picture of a height. Its title and description are read out to whoever does not see it; id is its own within a page.
func (p *Picture) Open(height float64, id, title, description string) {
	p.F(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.0f %.0f" width="%.0f" height="%.0f" font-family="DejaVu Sans, Helvetica, Arial, sans-serif" font-size="12" fill="%s" role="img" aria-labelledby="%s-title %s-description">`,
		Width, height, Width, height, Ink, id, id)
	p.element("title", id+"-title", title)
	p.element("desc", id+"-description", description)
	p.F(`<rect width="100%%" height="100%%" fill="#fff"/>`)
}

func (p *Picture) element(name, id, text string) {
	fmt.Fprintf(p, `<%s id="%s">`, name, id)
	xml.EscapeText(p, []byte(text)) // a buffer takes everything
	p.F(`</%s>`, name)
}

// Close ends it.
func (p *Picture) Close() []byte {
	p.F(`</svg>`)
	return p.Bytes()
}

// F writes a line of markup. No text of others may go through it.
func (p *Picture) F(format string, a ...any) { fmt.Fprintf(p, format+"\n", a...) }

// X is where a time is drawn.
func (p *Picture) X(at int64) float64 {
	return Left + float64(at-p.X0)/float64(p.X1-p.X0)*(Right-Left)
}

// Text writes a text of anybody's.
func (p *Picture) Text(x, y float64, anchor string, size int, s string) {
	fmt.Fprintf(p, `<text x="%.1f" y="%.1f" text-anchor="%s" font-size="%d">`, x, y, anchor, size)
	xml.EscapeText(p, []byte(s)) // a buffer takes everything
	p.F(`</text>`)
}

// Line draws one.
func (p *Picture) Line(x0, y0, x1, y1 float64, style string) {
	p.F(`<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" %s/>`, x0, y0, x1, y1, style)
}

// Box draws the frame of something over the whole time.
func (p *Picture) Box(top, floor float64) {
	p.F(`<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="none" stroke="%s"/>`, Left, top, Right-Left, floor-top, Frame)
}

// Durations draws a vertical axis of ns, with a unit that fits.
func (p *Picture) Durations(s *Scale) {
	unit, name := 1e9, "s"
	for _, u := range []struct {
		ns   float64
		name string
	}{{1e6, "ms"}, {1e3, "us"}, {1, "ns"}} {
		if max(-s.Low, s.High) < unit*0.8 {
			unit, name = u.ns, u.name
		}
	}
	step := niceStep((s.High - s.Low) / ((s.Floor - s.Top) / 32))
	for k := math.Ceil(s.Low / step); k*step <= s.High; k++ {
		style, number := `stroke="`+Grid+`"`, strings.Replace(fmt.Sprintf("%.6g", k*step/unit), "-", "\u2212", 1)
		if k == 0 {
			style, number = `stroke="#888"`, "0"
		}
		p.Line(Left, s.Y(k*step), Right, s.Y(k*step), style)
		p.Text(Left-8, s.Y(k*step)+4, "end", 12, number)
	}
	p.name(s, " ["+name+"]")
}

// Counts draws a vertical axis of whole numbers.
func (p *Picture) Counts(s *Scale) {
	step := max(niceStep((s.High-s.Low)/((s.Floor-s.Top)/32)), 1)
	for k := math.Ceil(s.Low / step); k*step <= s.High; k++ {
		p.Line(Left, s.Y(k*step), Right, s.Y(k*step), `stroke="`+Grid+`"`)
		p.Text(Left-8, s.Y(k*step)+4, "end", 12, fmt.Sprintf("%.0f", k*step))
	}
	p.name(s, "")
}

func (p *Picture) name(s *Scale, unit string) {
	p.F(`<text transform="translate(22 %.1f) rotate(-90)" text-anchor="middle">%s%s</text>`, (s.Top+s.Floor)/2, s.Name, unit)
	p.Box(s.Top, s.Floor)
}

// Times draws the axis of time below floor, and its lines up to top.
func (p *Picture) Times(top, floor float64) {
	tick, layout := timeStep(p.X1 - p.X0)
	for at := (p.X0 + tick - 1) / tick * tick; at <= p.X1; at += tick {
		p.Line(p.X(at), top, p.X(at), floor+5, `stroke="`+Grid+`"`)
		p.Text(p.X(at), floor+20, "middle", 12, time.Unix(0, at).UTC().Format(layout))
	}
	const layoutAll = "2006-01-02 15:04:05"
	p.Text((Left+Right)/2, floor+46, "middle", 12, "Time [UTC], "+time.Unix(0, p.X0).UTC().Format(layoutAll)+" to "+time.Unix(0, p.X1).UTC().Format(layoutAll))
}

// Strip draws a part of a strip, with its name where there is room.
func (p *Picture) Strip(top, floor float64, from, to int64, fill, name string) {
	x0, x1 := p.X(from), p.X(to)
	p.F(`<rect x="%.1f" y="%.1f" width="%.2f" height="%.1f" fill="%s"/>`, x0, top, max(x1-x0, 1), floor-top, fill)
	if x1-x0 > 8*float64(len(name)) {
		p.Text((x0+x1)/2, (top+floor)/2+4, "middle", 11, name)
	}
}

// Triangle marks a start.
func (p *Picture) Triangle(x, y float64) {
	p.F(`<path d="M%.1f %.1f l-5 9 h10 z" fill="%s"/>`, x, y-5, Start)
}

// Square marks a stop.
func (p *Picture) Square(x, y float64) {
	p.F(`<rect x="%.1f" y="%.1f" width="8" height="8" fill="%s"/>`, x-4, y-4, Frame)
}

// Diamond marks what somebody asked for or decided.
func (p *Picture) Diamond(x, y float64) {
	p.F(`<path d="M%.1f %.1f l5 5 l-5 5 l-5 -5 z" fill="%s"/>`, x, y-5, Demand)
}

// Cross marks what went wrong.
func (p *Picture) Cross(x, y float64) {
	p.F(`<path d="M%.1f %.1f l8 8 m0 -8 l-8 8" fill="none" stroke="%s" stroke-width="2.4"/>`, x-4, y-4, Change)
}

// Dot marks one of many.
func (p *Picture) Dot(x, y, radius float64) {
	p.F(`<circle cx="%.1f" cy="%.1f" r="%.1f" fill="%s"/>`, x, y, radius, Line)
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
