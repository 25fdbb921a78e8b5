package ledger

import (
	"bytes"
	"fmt"
	"maps"
	"time"

	"bulla/clock"
	"bulla/record"
)

// admit decides each request of b, all of it or nothing: it refuses, or recognises repeats, or drafts entries. b.requests then
// holds those that await the commit.
func (l *Ledger) admit(b *batch, stamp clock.Stamp) {
	if l.resnapshot.CompareAndSwap(true, false) {
		for k := range maps.Keys(l.window.streams) {
			l.window.changed[k] = struct{}{}
		}
	}
	unfit := l.unfit(stamp)
	waiting := b.requests[:0]
	for _, r := range b.requests {
		var err error
		switch {
		case r.own:
			r.places = []place{{index: b.draft(draft{kind: r.kind, body: r.body})}}
		case r.governs():
			for _, d := range r.governing {
				r.places = append(r.places, place{index: b.draft(d)})
			}
		case unfit != nil:
			err = unfit
		default:
			err = l.admitEvents(b, r)
		}
		if err != nil {
			r.done <- answer{err: err}
			continue
		}
		waiting = append(waiting, r)
	}
	b.requests = waiting
	b.streams = l.window.dirty(b.base.size() + uint64(len(b.drafts)))
}

// unfit is why no event may be taken now, whoever sends it, or nil.
func (l *Ledger) unfit(stamp clock.Stamp) error {
	if r := l.hold.Load(); r != nil {
		return r
	}
	if err := l.tip.state.Ready(); err != nil {
		return &Refusal{Code: record.CodeForbidden, Message: err.Error(), Err: err}
	}
	if err := l.tip.state.Policy.Clock.Allows(stamp); err != nil {
		return &Refusal{Code: record.CodeClock, Message: err.Error(), RetryAfter: time.Second, Err: err}
	}
	return nil
}

// draft adds an entry to the batch and returns its index.
func (b *batch) draft(d draft) uint64 {
	b.drafts = append(b.drafts, d)
	return b.base.size() + uint64(len(b.drafts)) - 1
}

// admitEvents drafts a producer's events, or refuses the request and leaves no trace of it.
func (l *Ledger) admitEvents(b *batch, r *request) error {
	drafts, undo := len(b.drafts), len(b.undo)
	err := l.draftEvents(b, r)
	if err != nil {
		for i := len(b.undo) - 1; i >= undo; i-- {
			b.undo[i]()
		}
		b.drafts, b.undo = b.drafts[:drafts], b.undo[:undo]
	}
	return err
}

func (l *Ledger) draftEvents(b *batch, r *request) error {
	uid := r.caller.UID
	if !l.tip.state.Roles(uid, r.caller.Groups).Producer {
		return &Refusal{Code: record.CodeForbidden, Message: fmt.Sprintf("uid %d may not append to %s: its policy does not make it a producer", uid, l.cfg.Origin)}
	}
	// Gap records come before the request's first event, so that its events stay consecutive; hence two passes.
	gaps, err := l.gaps(r, uid)
	if err != nil {
		return err
	}
	for _, g := range gaps {
		body, err := record.MarshalCanonical(&g)
		if err != nil {
			return fmt.Errorf("recording a gap: %w", err)
		}
		b.draft(draft{kind: record.KindSystem, body: body})
	}
	r.places = make([]place, len(r.events))
	for i, e := range r.events {
		at, repeat, err := l.find(b, uid, e)
		if err != nil {
			return inEvent(i, err)
		}
		if repeat {
			r.places[i] = place{index: at, repeat: true}
			continue
		}
		if err := l.fresh(uid, e.Key); err != nil {
			return inEvent(i, err)
		}
		at = b.draft(draft{kind: record.KindEvent, uid: uid, producer: r.producer, body: e.Body})
		r.places[i] = place{index: at}
		if undo := l.window.add(uid, e.Key, at); undo != nil {
			b.undo = append(b.undo, undo)
		}
	}
	return nil
}

// gaps finds the numbers that the request's streams skip. Numbering starts at 0 or 1.
func (l *Ledger) gaps(r *request, uid uint32) ([]record.System, error) {
	var gaps []record.System
	ahead := map[string]int64{}
	for _, e := range r.events {
		k := e.Key
		if !k.HasStream {
			continue
		}
		last, known := ahead[k.Stream]
		if !known {
			last, known = l.window.streams[streamKey{uid, k.Stream}]
		}
		if !known {
			last = -1
		}
		if k.N > last+1 && (known || k.N > 1) {
			gaps = append(gaps, record.System{Event: record.SystemGap, Gap: &record.Gap{UID: uid, Stream: k.Stream, After: last, Next: k.N}})
		}
		ahead[k.Stream] = max(last, k.N)
	}
	return gaps, nil
}

// find looks for an earlier sending of the same event by the same uid. The same name with other content is a conflict.
func (l *Ledger) find(b *batch, uid uint32, e Event) (index uint64, repeat bool, err error) {
	keys, n := l.window.keys(uid, e.Key)
	for _, key := range keys[:n] {
		at, ok := l.window.seen[key]
		if !ok {
			continue
		}
		body, by, err := l.event(b, at)
		if err != nil {
			return 0, false, &Refusal{Code: record.CodeInternal, Message: fmt.Sprintf("entry %d could not be read back", at), Err: err}
		}
		if by == uid && bytes.Equal(body, e.Body) {
			return at, true, nil
		}
		_, k, err := record.CanonicalEvent(body)
		if err != nil {
			return 0, false, &Refusal{Code: record.CodeInternal, Message: fmt.Sprintf("entry %d could not be read back", at), Err: err}
		}
		switch {
		case by != uid: // a collision of hashes
		case k.HasStream && e.Key.HasStream && k.Stream == e.Key.Stream && k.N == e.Key.N:
			return 0, false, &Refusal{Code: record.CodeConflict, Field: "stream.n", Message: fmt.Sprintf("number %d of stream %q is already at index %d with other content", k.N, k.Stream, at)}
		case k.ID != "" && k.ID == e.Key.ID:
			return 0, false, &Refusal{Code: record.CodeConflict, Field: "id", Message: fmt.Sprintf("event %q is already at index %d with other content", k.ID, at)}
		}
	}
	return 0, false, nil
}

// fresh refuses a number that its stream has passed, and a stream too many.
func (l *Ledger) fresh(uid uint32, k record.EventKey) error {
	if !k.HasStream {
		return nil
	}
	last, known := l.window.streams[streamKey{uid, k.Stream}]
	if known && k.N <= last {
		return &Refusal{Code: record.CodeStale, Field: "stream.n", Message: fmt.Sprintf("number %d of stream %q is not after its last, %d, and is not among the log's last entries", k.N, k.Stream, last)}
	}
	if limit := l.tip.state.StreamQuota(); !known && l.window.perUID[uid] >= limit {
		return &Refusal{Code: record.CodeForbidden, Field: "stream.id", Message: fmt.Sprintf("uid %d uses %d streams already, which is its quota", uid, limit)}
	}
	return nil
}

// event returns an event's body and its producer's uid, from this batch, the one in flight, or the store.
func (l *Ledger) event(b *batch, index uint64) (body []byte, uid uint32, err error) {
	if at := index - b.base.size(); index >= b.base.size() {
		return b.drafts[at].body, b.drafts[at].uid, nil
	}
	entry, err := l.entry(index)
	if err != nil {
		return nil, 0, err
	}
	e, err := record.ParseEntry(entry)
	if err != nil {
		return nil, 0, err
	}
	if e.Kind != record.KindEvent || e.Producer == nil {
		return nil, 0, fmt.Errorf("entry %d is of kind %s", index, e.Kind)
	}
	return e.Body, e.Producer.UID, nil
}

// entry reads an entry that is committed or in flight.
func (l *Ledger) entry(index uint64) ([]byte, error) {
	for _, f := range l.line {
		if len(f.drafts) > 0 && index >= f.base.size() {
			return f.content.Entries[index-f.base.size()], nil
		}
	}
	return l.store.Entry(index)
}

func inEvent(i int, err error) error {
	if r, ok := err.(*Refusal); ok {
		r.Field = fmt.Sprintf("events[%d].%s", i, r.Field)
	}
	return err
}
