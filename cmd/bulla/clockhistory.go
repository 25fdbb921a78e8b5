package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sort"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"bulla/api"
	"bulla/clock"
	"bulla/record"
	"bulla/verify"
)

// history is what a log's own records say of its clock. It is as they say it: verify finds out whether that is true.
type history struct {
	origin  string
	points  []clockPoint
	changes []clockChange
	from    int64 // records before it are left out; UTC or system time, ns
}

// clockPoint is a round that yielded an estimate.
type clockPoint struct {
	at            int64 // UTC by this estimate, ns
	offset, bound int64 // UTC minus the system's time, ns
	growth        int64 // ppb by which the bound grows afterwards
	end           int64 // until when the estimate was relied upon; 0: until the next
}

// clockChange is a change of state.
type clockChange struct {
	at     int64 // by the system's time, corrected by the last estimate
	from   clock.State
	to     clock.State
	reason string
}

// maxHistory bounds rounds and changes: a month of one a 32 s.
const maxHistory = 100_000

// add takes the next entry of kind clock.
func (h *history) add(e *record.Entry) error {
	var evidence clock.Evidence
	err := record.UnmarshalCanonical(e.Body, &evidence)
	if err == nil {
		err = evidence.Check()
	}
	if err != nil {
		return fmt.Errorf("entry %d is not a record of the clock: %w", e.Index, err)
	}
	if e.Stamp.Sys < h.from {
		return nil
	}
	if len(h.points) >= maxHistory || len(h.changes) >= maxHistory {
		return usagef("more than %d records of the clock lie in this time: draw a shorter one with --last", maxHistory)
	}
	if r := evidence.Round; r != nil && r.Mapping != nil {
		at := r.Reading.Raw + r.Mapping.UTCMinusRaw
		if !plausible(at) || !plausible(r.Reading.Real) {
			return fmt.Errorf("entry %d: times outside 1970 to 2116", e.Index)
		}
		h.points = append(h.points, clockPoint{at: at, offset: at - r.Reading.Real, bound: r.Mapping.Bound, growth: r.Mapping.Growth})
	}
	if t := evidence.Transition; t != nil {
		if !plausible(t.Reading.Real) {
			return fmt.Errorf("entry %d: times outside 1970 to 2116", e.Index)
		}
		h.change(t)
	}
	return nil
}

// plausible bounds times, so that what is computed of two of them cannot overflow.
func plausible(ns int64) bool { return ns >= 0 && ns <= 1<<62 }

func (h *history) change(t *clock.Transition) {
	c := clockChange{at: t.Reading.Real, from: t.From, to: t.To, reason: t.Reason}
	if n := len(h.points); n > 0 {
		last := &h.points[n-1]
		if c.at += last.offset; t.Reason == clock.ReasonRound {
			c.at = last.at
		}
		if usable := t.To == clock.Synced || t.To == clock.Holdover; !usable && last.end == 0 {
			last.end = max(c.at, last.at)
		}
	}
	h.changes = append(h.changes, c)
}

// servedHistory asks an appliance for the records of its clock.
func servedHistory(ctx context.Context, a *appliance, last time.Duration) (*history, error) {
	h := &history{origin: a.log.Origin}
	newest, err := a.stamp(ctx, a.log.Size-1)
	if err != nil {
		return nil, err
	}
	h.from = newest - int64(last)
	var failed error
	first := sort.Search(int(a.log.Size), func(i int) bool { // the system's clock may have been set: then more is read, and left out
		at, err := a.stamp(ctx, uint64(i))
		if err != nil {
			failed = err
		}
		return err != nil || at >= h.from
	})
	if failed != nil {
		return nil, failed
	}
	for from := uint64(first); ; {
		var p api.Page
		if err := a.getJSON(ctx, fmt.Sprintf("%s/v1/entries?kind=clock&from=%d&limit=1000", a.prefix, from), &p); err != nil {
			return nil, err
		}
		for _, b := range p.Entries {
			e, err := record.ParseEntry(b)
			if err == nil && e.Kind == record.KindClock {
				err = h.add(e)
			}
			if err != nil {
				return nil, fmt.Errorf("the appliance's answer: %w", err)
			}
		}
		if p.Next == nil {
			return h, nil
		}
		if *p.Next <= from {
			return nil, coded(exitUnavailable, errors.New("the appliance's answer: pages go round in a circle"))
		}
		from = *p.Next
	}
}

// stamp is the system's time at which an entry was received.
func (a *appliance) stamp(ctx context.Context, index uint64) (int64, error) {
	b, err := a.entry(ctx, index)
	if err != nil {
		return 0, err
	}
	e, err := record.ParseEntry(b)
	if err != nil {
		return 0, coded(exitUnavailable, fmt.Errorf("the appliance's answer: %w", err))
	}
	return e.Stamp.Sys, nil
}

// maxBundle bounds a bundle of entries that is read: 256 of the largest.
const maxBundle = 256 * (2 + 1<<16)

// exportedHistory reads the records of the clock from an export.
func exportedHistory(ctx context.Context, src verify.Source, last time.Duration) (*history, error) {
	text, err := readSource(ctx, src, "checkpoint", 1<<16)
	if err != nil {
		return nil, err
	}
	body, _, _ := strings.Cut(string(text), "\n\n")
	head, err := record.ParseCheckpoint(body + "\n")
	if err != nil {
		return nil, coded(exitNotCheckable, fmt.Errorf("the export's checkpoint: %w", err))
	}
	if head.Size == 0 {
		return nil, coded(exitNotCheckable, errors.New("the export has no entries"))
	}
	h := &history{origin: head.Origin}
	newest := int64(0)
	err = bundle(ctx, src, head.Size, (head.Size-1)/256, func(e *record.Entry) error { newest = e.Stamp.Sys; return nil }, "")
	if err != nil {
		return nil, err
	}
	h.from = newest - int64(last)
	for n := uint64(0); n*256 < head.Size; n++ {
		if err := bundle(ctx, src, head.Size, n, h.add, record.KindClock); err != nil {
			return nil, err
		}
	}
	return h, nil
}

// bundle calls f with the entries of a bundle that are of a kind; "": with all.
func bundle(ctx context.Context, src verify.Source, size, n uint64, f func(*record.Entry) error, kind record.Kind) error {
	contain := []byte(`"kind":"` + kind) // entries of others need not be parsed, but for those that hold such text
	t := tlog.Tile{H: 8, L: -1, N: int64(n), W: int(min(256, size-n*256))}
	name := record.TilePath(t)
	b, err := readSource(ctx, src, name, maxBundle)
	if err != nil {
		return err
	}
	for i := range t.W {
		if len(b) < 2 || len(b)-2 < int(binary.BigEndian.Uint16(b)) {
			return coded(exitNotCheckable, fmt.Errorf("%s ends within its entry %d; bulla verify says more", name, i))
		}
		raw := b[2 : 2+binary.BigEndian.Uint16(b)]
		b = b[2+len(raw):]
		if !bytes.Contains(raw, contain) {
			continue
		}
		e, err := record.ParseEntry(raw)
		if err == nil && (kind == "" || e.Kind == kind) {
			err = f(e)
		}
		if err != nil {
			return coded(exitNotCheckable, fmt.Errorf("%s: %w; bulla verify says more", name, err))
		}
	}
	return nil
}

// readSource reads a file of evidence.
func readSource(ctx context.Context, src verify.Source, name string, limit int64) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	f, err := src.Open(ctx, name)
	if err != nil {
		return nil, coded(exitNotCheckable, fmt.Errorf("reading the export: %w", err))
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("reading the export: %s: %w", name, err)
	}
	if int64(len(b)) > limit {
		return nil, coded(exitNotCheckable, fmt.Errorf("reading the export: %s is larger than %d bytes", name, limit))
	}
	return b, nil
}
