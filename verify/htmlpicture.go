package verify

import (
	"bytes"
	"fmt"
	"strings"

	"bulla/internal/svg"
)

// coverageBar draws which part of the log a claim was checked for. The words beside it say the same.
func coverageBar(c Claim, size uint64) []byte {
	var b bytes.Buffer
	const width = 120.0
	x := func(n uint64) float64 { return width * float64(min(n, size)) / float64(max(size, 1)) }
	fmt.Fprintf(&b, `<svg class="bar" viewBox="0 0 120 10" width="120" height="10" aria-hidden="true" focusable="false"><rect x="0.5" y="0.5" width="119" height="9" fill="#fff" stroke="#8a94a3"/>`)
	if c.To > c.From {
		fmt.Fprintf(&b, `<rect x="%.2f" y="1" width="%.2f" height="8" fill="%s"/>`, x(c.From), max(x(c.To)-x(c.From), 1), map[bool]string{true: svg.Line, false: "#7d8896"}[c.Status == Verified])
	}
	b.WriteString(`</svg>`)
	return b.Bytes()
}

// anchorBar draws what anchors which part of the log.
func (rep *Report) anchorBar() []byte {
	if rep.Size == 0 {
		return nil
	}
	anchored := rep.anchored()
	kept := anchored // also against a reset of the TPM
	if rep.Resettable != nil {
		kept = min(anchored, rep.Resettable.From)
	}
	p := &svg.Picture{}
	p.Open(96, "anchors", "What anchors the log", fmt.Sprintf("entries before %d are anchored against everybody, those before %d unless the TPM was reset, the rest to %d by nothing", kept, anchored, rep.Size))
	x := func(n uint64) float64 { return svg.Left + (svg.Right-svg.Left)*float64(n)/float64(rep.Size) }
	p.F(`<defs><pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><rect width="6" height="6" fill="#d7e2ee"/><line x1="0" y1="0" x2="0" y2="6" stroke="%s" stroke-width="2"/></pattern></defs>`, svg.Area)
	p.F(`<rect x="%.1f" y="40" width="%.2f" height="22" fill="%s"/>`, svg.Left, x(kept)-svg.Left, svg.Line)
	p.F(`<rect x="%.2f" y="40" width="%.2f" height="22" fill="url(#hatch)"/>`, x(kept), x(anchored)-x(kept))
	p.Box(40, 62)
	p.Text(svg.Left, 80, "start", 12, "entry 0")
	p.Text(svg.Right, 80, "end", 12, "entry "+number(rep.Size-1))
	legend := svg.Left
	for _, e := range []struct{ fill, text string }{{svg.Line, "anchored"}, {"url(#hatch)", "anchored unless the TPM was reset"}, {"#fff", "not anchored"}} {
		p.F(`<rect x="%.1f" y="14" width="16" height="12" fill="%s" stroke="%s"/>`, legend, e.fill, svg.Frame)
		p.Text(legend+22, 25, "start", 12, e.text)
		legend += 60 + 6.6*float64(len(e.text))
	}
	return p.Close()
}

// when limits a picture to plausible times: those of a log that was made up may be anything.
func when(ns int64) int64 { return min(max(ns, 0), 1<<62) }

// over is a picture of a height over the timeline's time.
func (t *Timeline) over(height float64, id, title, description string) *svg.Picture {
	from, to := t.between()
	p := &svg.Picture{X0: when(from), X1: when(to)}
	p.X1 = max(p.X1, p.X0+1e9)
	p.Open(height, id, title, description)
	return p
}

// course draws what became of the log: entries sealed, the counter, boots, ceremonies, and what happened to the appliance.
func (rep *Report) course() []byte {
	t := rep.Timeline
	if t == nil {
		return nil
	}
	const top, floor, counterTop, counterFloor, bootTop, bootFloor, ceremonies, events, bottom = 56.0, 206.0, 226.0, 306.0, 322.0, 344.0, 366.0, 396.0, 412.0
	p := t.over(bottom+60, "course", "The course of the log", fmt.Sprintf("%d spans with seals, %d with boots, %d steps of ceremonies and %d events of the appliance; the tables below name them", len(t.Seals), len(t.Boots), len(t.Ceremonies), len(t.Events)))
	p.Times(top, bottom)
	sealed := svg.Scale{Name: "Entries sealed", Top: top, Floor: floor, High: 1}
	counter := svg.Scale{Name: "TPM counter", Top: counterTop, Floor: counterFloor, High: 1}
	for i, s := range t.Seals {
		v := float64(s.Counter)
		if i == 0 {
			counter.Low, counter.High = v, v
		}
		sealed.High = max(sealed.High, float64(s.Size))
		counter.Low, counter.High = min(counter.Low, v), max(counter.High, v)
	}
	sealed.Room()
	counter.Low, counter.High = max(0, counter.Low-1), counter.High+1
	p.Counts(&sealed)
	p.Counts(&counter)
	steps(p, t.Seals, &sealed, func(s SealSpan) float64 { return float64(s.Size) })
	steps(p, t.Seals, &counter, func(s SealSpan) float64 { return float64(s.Counter) })
	last := -10.0
	for _, s := range t.Seals {
		if x := p.X(when(s.to)); x-last > 4 {
			p.Dot(x, sealed.Y(float64(s.Size)), 2.4)
			last = x
		}
	}
	for i, b := range t.Boots {
		name := fmt.Sprintf("boot %d", b.Resets)
		if b.Boots > 1 {
			name = fmt.Sprintf("%d boots", b.Boots)
		}
		p.Strip(bootTop, bootFloor, when(b.from), when(b.to), []string{"#dfe9f3", "#b9cde2"}[i%2], name)
	}
	for _, lane := range []struct {
		name       string
		top, floor float64
	}{{"Boots", bootTop, bootFloor}, {"Ceremonies", ceremonies - 12, ceremonies + 12}, {"Appliance", events - 12, events + 12}} {
		p.Text(svg.Left-8, (lane.top+lane.floor)/2+4, "end", 12, lane.name)
		p.Box(lane.top, lane.floor)
	}
	for _, m := range t.Ceremonies {
		mark(p, m, ceremonies)
	}
	for _, m := range t.Events {
		mark(p, m, events)
	}
	x := svg.Left
	for _, e := range []struct {
		mark func(x, y float64)
		text string
	}{
		{func(x, y float64) { p.Dot(x, y, 2.4) }, "seal, or other step"}, {p.Triangle, "start"}, {p.Square, "stop"},
		{p.Diamond, "enacted"}, {func(x, y float64) { key(p, x, y) }, "key or TPM is another"}, {p.Cross, "alarm, failure or loss"},
	} {
		e.mark(x+8, 26)
		p.Text(x+20, 30, "start", 12, e.text)
		x += 44 + 6.6*float64(len(e.text))
	}
	return p.Close()
}

// mark marks a milestone by a shape of its own.
func mark(p *svg.Picture, m Milestone, y float64) {
	x := p.X(when(m.at))
	switch m.What {
	case "start", MarkGenesis:
		p.Triangle(x, y)
	case "stop":
		p.Square(x, y)
	case MarkEnacted:
		p.Diamond(x, y)
	case MarkRotated:
		key(p, x, y)
	case "alarm", MarkFailed, MarkLost, MarkRejected:
		p.Cross(x, y)
	default:
		p.Dot(x, y, 2.4)
	}
}

// key marks that a key is another: a ring with a dot.
func key(p *svg.Picture, x, y float64) {
	p.F(`<circle cx="%.1f" cy="%.1f" r="6" fill="#fff" stroke="%s" stroke-width="2"/>`, x, y, svg.Line)
	p.Dot(x, y, 2.2)
}

// steps draws a value that holds from seal to seal.
func steps(p *svg.Picture, seals []SealSpan, s *svg.Scale, value func(SealSpan) float64) {
	var points []string
	before := 0.0
	for i, x := range seals {
		y := s.Y(value(x))
		if i > 0 {
			points = append(points, fmt.Sprintf("%.1f,%.1f", p.X(when(x.from)), before))
		}
		points = append(points, fmt.Sprintf("%.1f,%.1f %.1f,%.1f", p.X(when(x.from)), y, p.X(when(x.to)), y))
		before = y
	}
	if len(points) > 0 {
		p.F(`<polyline points="%s" fill="none" stroke="%s" stroke-width="1.4"/>`, strings.Join(points, " "), svg.Area)
	}
}

// estimate is the least and the most over the whole log; nil where no entry has an estimate.
func (rep *Report) estimate() *ClockEstimate {
	if rep.Timeline == nil {
		return nil
	}
	var all ClockSpan
	for _, c := range rep.Timeline.Clock {
		joinClock(&all, &c)
	}
	if !all.estimated {
		return nil
	}
	return &all.estimate
}

// clockPicture draws UTC less the system's time, its bound, and the states.
func (rep *Report) clockPicture() []byte {
	all := rep.estimate()
	if all == nil {
		return nil
	}
	t := rep.Timeline
	const top, floor, boundTop, boundFloor, stateTop, stateFloor = 46.0, 226.0, 246.0, 326.0, 342.0, 364.0
	p := t.over(stateFloor+60, "clock", "The clock", fmt.Sprintf("UTC less the system's time between %s and %s, sure within at most %s", duration(all.Least), duration(all.Most), duration(all.Bound)))
	p.Times(top, stateFloor)
	offset := svg.Scale{Name: "UTC \u2212 system time", Low: min(float64(all.Earliest), 0), High: max(float64(all.Latest), 0), Top: top, Floor: floor}
	bound := svg.Scale{Name: "Bound", High: float64(all.Bound), Top: boundTop, Floor: boundFloor}
	offset.Room()
	bound.Room()
	follow := max((p.X1-p.X0)/50, 2e9) // entries that are no further apart are drawn as one band
	var best []string
	for i, c := range t.Clock {
		from, to := when(c.from), when(c.to)
		if i+1 < len(t.Clock) && when(t.Clock[i+1].from)-to < follow {
			to = max(to, when(t.Clock[i+1].from))
		}
		e := c.Estimate
		if e == nil {
			continue
		}
		x0 := p.X(from)
		best = append(best, fmt.Sprintf("%.1f,%.1f", x0, offset.Y((float64(e.Least)+float64(e.Most))/2)))
		w := max(p.X(to)-x0+0.4, 1.5) // without a seam to the next
		p.F(`<rect x="%.2f" y="%.2f" width="%.2f" height="%.2f" fill="%s"/>`, x0, offset.Y(float64(e.Latest)), w, max(offset.Y(float64(e.Earliest))-offset.Y(float64(e.Latest)), 0.5), svg.Pale)
		p.F(`<rect x="%.2f" y="%.2f" width="%.2f" height="%.2f" fill="%s"/>`, x0, offset.Y(float64(e.Most))-0.7, w, offset.Y(float64(e.Least))-offset.Y(float64(e.Most))+1.4, svg.Line)
		p.F(`<rect x="%.2f" y="%.2f" width="%.2f" height="%.2f" fill="%s"/>`, x0, bound.Y(float64(e.Bound)), w, boundFloor-bound.Y(float64(e.Bound)), svg.Pale)
	}
	p.Durations(&offset) // over the bands
	p.Durations(&bound)
	p.F(`<polyline points="%s" fill="none" stroke="%s" stroke-width="1" stroke-dasharray="1 4"/>`, strings.Join(best, " "), svg.Line)
	states(p, t, stateTop, stateFloor)
	p.Box(stateTop, stateFloor)
	p.Text(svg.Left-8, (stateTop+stateFloor)/2+4, "end", 12, "State")
	p.F(`<rect x="%.1f" y="18" width="22" height="11" fill="%s"/>`, svg.Left, svg.Pale)
	p.Text(svg.Left+30, 28, "start", 12, "UTC lies within")
	p.F(`<rect x="%.1f" y="22" width="22" height="3" fill="%s"/>`, svg.Left+160, svg.Line)
	p.Text(svg.Left+190, 28, "start", 12, "best estimate, least to most; dotted: no entry says")
	return p.Close()
}

// states draws the strip of states: where one stays the same it is named once.
func states(p *svg.Picture, t *Timeline, top, floor float64) {
	for i := 0; i < len(t.Clock); {
		j := i
		for j+1 < len(t.Clock) && t.Clock[j+1].State == t.Clock[i].State {
			j++
		}
		to := when(t.Clock[j].to)
		if j+1 < len(t.Clock) {
			to = when(t.Clock[j+1].from)
		}
		p.Strip(top, floor, when(t.Clock[i].from), to, svg.Fill[t.Clock[i].State], t.Clock[i].State)
		i = j + 1
	}
}
