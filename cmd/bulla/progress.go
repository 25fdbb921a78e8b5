package main

import (
	"fmt"
	"io"
	"time"
)

// progress shows how far long work is, on a terminal and nowhere else.
type progress struct {
	w     io.Writer // nil: not shown
	what  string
	unit  string // of what is counted
	start time.Time
	last  time.Time
}

func (t *tool) progress(what string) *progress {
	p := &progress{what: what, unit: "entries", start: time.Now()}
	if terminal(t.err) {
		p.w = t.err
	}
	return p
}

// show says that done of total units are through; total 0: it is not known.
func (p *progress) show(done, total uint64) {
	now := time.Now()
	if p.w == nil || now.Sub(p.last) < 100*time.Millisecond {
		return
	}
	p.last = now
	rate := float64(done) / max(now.Sub(p.start).Seconds(), 0.001)
	line := fmt.Sprintf("%s %d %s, %.0f/s", p.what, done, p.unit, rate)
	if total > 0 {
		left := time.Duration(float64(total-min(done, total)) / max(rate, 1) * float64(time.Second)).Round(time.Second)
		line = fmt.Sprintf("%s %d of %d %s (%d %%), %.0f/s, %v left", p.what, done, total, p.unit, 100*done/total, rate, left)
	}
	fmt.Fprintf(p.w, "\r\033[K%s", line)
}

// clear removes the line.
func (p *progress) clear() {
	if p.w != nil && !p.last.IsZero() {
		fmt.Fprint(p.w, "\r\033[K")
	}
}
