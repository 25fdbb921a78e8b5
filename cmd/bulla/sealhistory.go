package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"bulla/api"
	"bulla/attest"
	"bulla/ceremony"
	"bulla/record"
	"bulla/verify"
)

// sealHistory is what a log's own seals say. It is as they say it: verify finds out whether that is true.
type sealHistory struct {
	origin string
	quiet  time.Duration // the longest time that policy lets pass without a seal
	seals  []sealLine
}

// sealLine is what is listed and drawn of a seal.
type sealLine struct {
	Index     uint64    `json:"index"`
	Number    uint64    `json:"number"`
	Time      time.Time `json:"time"` // of its entry, corrected by the clock's estimate where it has one
	Reason    string    `json:"reason"`
	Counter   uint64    `json:"counter"`
	Boot      uint32    `json:"boot"`                // the TPM's reset count
	Size      uint64    `json:"size"`                // of the log that it covers
	Abandoned int       `json:"abandoned,omitempty"` // seals before it that a reset interrupted
}

// maxSeals bounds the seals of a history: eleven days of one a 10 s.
const maxSeals = 100_000

// sealHistory reads the seals of a running appliance's log, or of an export, back from the last one.
func (t *tool) sealHistory(ctx context.Context, dir []string, last time.Duration) (*sealHistory, error) {
	h := &sealHistory{seals: []sealLine{}}
	var err error
	if len(dir) == 0 {
		err = t.servedSeals(ctx, h)
	} else {
		err = exportedSeals(ctx, dir[0], h)
	}
	if err != nil {
		return nil, err
	}
	if n := len(h.seals); last > 0 && n > 0 {
		from := h.seals[n-1].Time.Add(-last)
		h.seals = slices.DeleteFunc(h.seals, func(l sealLine) bool { return l.Time.Before(from) })
	}
	return h, nil
}

// begin takes the genesis.
func (h *sealHistory) begin(e *record.Entry) error {
	if e.Kind != record.KindGenesis {
		return fmt.Errorf("entry %d is not a genesis", e.Index)
	}
	g, err := ceremony.ParseGenesis(e.Body)
	if err != nil {
		return err
	}
	h.origin, h.quiet = g.Origin, time.Duration(g.Seal.Increment+g.Seal.Interval)
	return nil
}

// add takes the next entry of kind seal.
func (h *sealHistory) add(e *record.Entry) error {
	if len(h.seals) >= maxSeals {
		return usagef("the log has more than %d seals", maxSeals)
	}
	s, err := attest.ParseSeal(e.Body)
	if err != nil {
		return err
	}
	st, err := attest.ParseStatement(s.Statement)
	if err != nil {
		return err
	}
	certified, err := attest.ParseCertify(s.Counter.Attest)
	if err != nil {
		return err
	}
	at := e.Stamp.Sys
	if e.Stamp.HasEstimate {
		at += e.Stamp.Offset
	}
	if !plausible(at) {
		return fmt.Errorf("a time outside 1970 to 2116")
	}
	l := sealLine{
		Index: e.Index, Number: st.Number, Time: time.Unix(0, at).UTC(), Reason: printable(st.Reason, 40), Counter: certified.Counter,
		Boot: certified.Clock.ResetCount, Abandoned: len(st.Abandoned),
	}
	for _, head := range st.Logs {
		if head.Log == h.origin {
			l.Size = head.Size
		}
	}
	h.seals = append(h.seals, l)
	return nil
}

// servedSeals asks an appliance.
func (t *tool) servedSeals(ctx context.Context, h *sealHistory) error {
	a, err := t.connect(ctx)
	if err != nil {
		return err
	}
	b, err := a.entry(ctx, 0)
	if err != nil {
		return err
	}
	e, err := record.ParseEntry(b)
	if err == nil {
		err = h.begin(e)
	}
	if err != nil {
		return coded(exitUnavailable, fmt.Errorf("the appliance's genesis: %w", err))
	}
	return a.eachOfKind(ctx, record.KindSeal, h.add)
}

// eachOfKind calls f with every entry of a kind in the log.
func (a *appliance) eachOfKind(ctx context.Context, kind record.Kind, f func(*record.Entry) error) error {
	for from := uint64(0); ; {
		var p api.Page
		if err := a.getJSON(ctx, fmt.Sprintf("%s/v1/entries?kind=%s&from=%d&limit=1000", a.prefix, kind, from), &p); err != nil {
			return err
		}
		for _, b := range p.Entries {
			e, err := record.ParseEntry(b)
			if err == nil && e.Kind == kind {
				err = f(e)
			}
			if err != nil {
				return coded(exitUnavailable, fmt.Errorf("the appliance's answer: %w", err))
			}
		}
		if p.Next == nil {
			return nil
		}
		if *p.Next <= from {
			return coded(exitUnavailable, errors.New("the appliance's answer: pages go round in a circle"))
		}
		from = *p.Next
	}
}

// exportedSeals reads an export.
func exportedSeals(ctx context.Context, dir string, h *sealHistory) (err error) {
	src, err := verify.OpenDir(dir)
	if err != nil {
		return usagef("%w", err)
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	size, err := exportedSize(ctx, src)
	if err != nil {
		return coded(exitNotCheckable, err)
	}
	if err := bundle(ctx, src, size, 0, h.begin, record.KindGenesis); err != nil {
		return err
	}
	if h.origin == "" {
		return coded(exitNotCheckable, errors.New("the export has no genesis"))
	}
	for n := uint64(0); n*256 < size; n++ {
		if err := bundle(ctx, src, size, n, h.add, record.KindSeal); err != nil {
			return err
		}
	}
	return nil
}

// sealGap is a time without a seal that is longer than it should be.
type sealGap struct{ from, to time.Time }

func (h *sealHistory) gaps() (out []sealGap) {
	for i := 1; i < len(h.seals); i++ {
		from, to := h.seals[i-1].Time, h.seals[i].Time
		if to.Sub(from) > h.quiet+h.quiet/10 { // a tenth for a slow TPM
			out = append(out, sealGap{from, to})
		}
	}
	return out
}

// sealBoot is a boot of the machine, as far as seals show it.
type sealBoot struct {
	count    uint32
	from, to time.Time // of its first and last seal
}

func (h *sealHistory) boots() (out []sealBoot) {
	for _, l := range h.seals {
		if n := len(out); n > 0 && out[n-1].count == l.Boot {
			out[n-1].to = l.Time
			continue
		}
		out = append(out, sealBoot{l.Boot, l.Time, l.Time})
	}
	return out
}
