package ledger

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/mod/sumdb/note"

	"bulla/ceremony"
	"bulla/clock"
	"bulla/record"
	"bulla/store"
)

// ownRetry is how long the daemon's own records wait after a failed batch before they are sequenced anew.
const ownRetry = 250 * time.Millisecond

// batch is what one signature and one commit cover.
type batch struct {
	requests []*request
	turns    *Turns // where it has a place until it is signed
	base     *head  // what it stands on
	next     *head  // what it makes
	drafts   []draft
	content  store.Batch
	span     record.Span // proves the batch's own entries in its own tree
	undo     []func()    // takes back what admitting did to the window, last first
	streams  []store.Stream

	done     chan struct{} // closed when it is durable, or failed with one of these
	unsigned error         // of the device, before anything was written
	err      error
}

// room reports whether another batch may be made.
func (l *Ledger) room() bool {
	if l.took() > slowDevice {
		return len(l.line) < underwaySlow
	}
	return len(l.line) < underway
}

// took is how long the last signature did.
func (l *Ledger) took() time.Duration { return time.Duration(l.signing.Load()) }

// draft is an entry before it has a place in the chain.
type draft struct {
	kind     record.Kind
	uid      uint32 // of an event's producer
	producer []byte // canonical JSON, nil for the daemon's own records
	body     []byte
}

// run sequences until the context ends or a commit's outcome is unknown.
func (l *Ledger) run(ctx context.Context) {
	defer close(l.done)
	retry := time.NewTimer(0)
	<-retry.C
	waiting := false // something is, for its turn at the device
	for {
		var wake <-chan struct{}
		var turn <-chan struct{}
		switch {
		case !l.room():
		case waiting:
			turn = l.tip.lines.turns.free
		default:
			wake = l.queue.wake
		}
		var err error
		select {
		case <-wake:
			waiting = true
		case <-turn:
			waiting = false
			err = l.sequence(l.queue.take())
		case <-retry.C:
			l.queue.signal()
		case <-l.moved():
			err = l.advance()
		case <-ctx.Done():
			if err := l.drain(); errors.Is(err, ErrUnknown) {
				l.fatal.Store(&err)
			}
			l.queue.close(&Refusal{Code: record.CodeInternal, Message: "the appliance is shutting down"})
			return
		}
		switch {
		case errors.Is(err, ErrUnknown):
			l.fatal.Store(&err)
			l.queue.close(err)
			return
		case err != nil:
			retry.Reset(ownRetry)
		}
	}
}

// sequence turns what was waiting into evidence. A batch is signed while the one before it is signed and committed; everything else
// is in order. The error says why the batch failed; its requests have been answered or put back by then.
func (l *Ledger) sequence(requests []*request) error {
	b := &batch{requests: requests, turns: l.tip.lines.turns, done: make(chan struct{})}
	carried := false
	defer func() {
		if !carried {
			b.turns.back(l.took())
		}
	}()

	// 0. What officers say is judged by what is durable: nothing is under way meanwhile.
	if len(requests) == 1 && requests[0].governs() {
		if err := l.drain(); err != nil {
			l.answer(b, err)
			return err
		}
	}
	b.base = l.tip

	// 1. Stamp. One reading for the batch: when its requests had been received. It is taken before their order is fixed, so
	// that time never runs backwards along the log unless the machine's clock does.
	stamp := l.cfg.Clock.Now()

	// 2. Admit or refuse each request, all of it or nothing, and number what is new.
	if l.admit(b, stamp); len(b.requests) == 0 {
		return nil
	}

	// 3. Chain: encode each entry with its index and the hash of the one before, and extend the tree.
	if err := l.chain(b, stamp); err != nil {
		if r := Ungoverned(err); r != nil {
			if b.streams != nil {
				l.resnapshot.Store(true)
			}
			l.answer(b, r)
			return nil
		}
		return l.abandon(b, &Refusal{Code: record.CodeInternal, Message: "an entry could not be encoded", Err: err})
	}

	var before *batch
	if len(l.line) > 0 {
		before = l.line[len(l.line)-1]
	}
	l.tip, l.line, carried = b.next, append(l.line, b), true
	go l.carry(b, before)
	return nil
}

// carry makes b durable behind the batch before it, if there is one under way. The next batch forms meanwhile.
func (l *Ledger) carry(b, before *batch) {
	// 4. Sign the new head. The signature stays here until step 6 has returned: nothing signed leaves before it is durable.
	b.unsigned = l.sign(b)
	b.turns.back(l.took())

	// 5. Wait in line. If the batch before fails, this one stands on nothing, and its signature is destroyed.
	if before != nil {
		<-before.done
	}

	// 6. Commit entries, tree and signed head in one transaction; then answer. What failed is left to advance, which knows what was
	// stacked on it.
	switch {
	case before.failed():
		b.err = errStacked
	case b.unsigned == nil:
		b.err = l.commit(b)
	}
	close(b.done)
	if !b.failed() {
		l.answer(b, nil)
	}
}

var errStacked = errors.New("the batch before failed")

// failed reports it of a batch that is done; none has not.
func (b *batch) failed() bool { return b != nil && (b.unsigned != nil || b.err != nil) }

// moved is readable when the first batch in line is done; never when there is none.
func (l *Ledger) moved() <-chan struct{} {
	if len(l.line) == 0 {
		return nil
	}
	return l.line[0].done
}

// advance takes the first batch, which is done, from the line.
func (l *Ledger) advance() error {
	b := l.line[0]
	switch {
	case b.unsigned != nil:
		why := &Refusal{Code: b.next.lines.device, Message: "the log cannot be signed: " + b.unsigned.Error(), RetryAfter: time.Second, Err: b.unsigned}
		return l.fail(why, true)
	case b.err != nil:
		return l.fail(b.err, false)
	}
	l.line = l.line[1:]
	l.window.forget(b.next.size())
	return nil
}

// fail gives up the first batch in line, and those stacked on it: all are undone, last first, and the ledger is back at the head
// before them. The stacked ones' requests share the fate of the first, or are sequenced again.
func (l *Ledger) fail(why error, again bool) error {
	first, stacked := l.line[0], l.line[1:]
	for _, b := range slices.Backward(stacked) {
		<-b.done
		if again {
			l.undo(b)
			l.queue.back(b.requests, why)
			continue
		}
		_ = l.abandon(b, why)
	}
	l.tip, l.line = first.base, nil
	return l.abandon(first, why)
}

// drain waits until nothing is under way. The error is of a batch that failed meanwhile.
func (l *Ledger) drain() error {
	for len(l.line) > 0 {
		<-l.moved()
		if err := l.advance(); err != nil {
			return err
		}
	}
	return nil
}

// chain makes the entries of b's drafts, and the head over them with the keys that are to sign it.
func (l *Ledger) chain(b *batch, stamp clock.Stamp) error {
	if len(b.drafts) == 0 { // only repeats: the head before covers them
		b.next, b.span = b.base, record.Span{Base: b.base.tree, Size: b.base.size()}
		return nil
	}
	next, err := l.compose(b, stamp)
	if err != nil {
		return err
	}
	if next.state.Changed != b.base.state.Changed || next.lines == nil {
		next.lines, err = l.open(next.state)
		if err != nil && b.base.lines != nil {
			return &Refusal{Code: b.base.lines.device, Message: "the key that is to sign the log cannot be used: " + err.Error(), Err: err}
		}
		if err != nil {
			return err
		}
	}
	b.next = next
	b.span = record.Span{Base: b.base.tree, Hashes: b.content.Hashes, Size: next.size()}
	return nil
}

// compose encodes b's drafts behind the head that it stands on, and follows them with tree and governance.
func (l *Ledger) compose(b *batch, stamp clock.Stamp) (*head, error) {
	next := &head{tree: b.base.tree.Clone(), prev: b.base.prev, state: b.base.state, lines: b.base.lines}
	first := b.base.size()
	b.content = store.Batch{First: first, Entries: make([][]byte, len(b.drafts))}
	frame := record.NewFrame(l.cfg.Origin, stamp)
	size := 0
	for i := range b.drafts {
		size += len(b.drafts[i].body) + len(b.drafts[i].producer) + envelope
	}
	buf := make([]byte, 0, size)
	for i, d := range b.drafts {
		index := first + uint64(i)
		at := len(buf)
		buf = frame.Append(buf, d.kind, index, next.prev, d.producer, d.body)
		entry := buf[at:len(buf):len(buf)]
		if len(entry) > record.MaxEntry {
			return nil, fmt.Errorf("entry %d: %d bytes are more than %d", index, len(entry), record.MaxEntry)
		}
		next.prev = record.LeafHash(entry)
		b.content.Entries[i] = entry
		b.content.Hashes = next.tree.Append(b.content.Hashes, next.prev)
		if d.kind != record.KindEvent {
			b.content.Marks = append(b.content.Marks, store.Mark{Kind: d.kind, Index: index})
		}
		if err := fold(&next.state, d.kind, entry, next.prev); err != nil {
			return nil, err
		}
	}
	return next, nil
}

// envelope is a guess at the bytes around a body, so that a batch's buffer rarely grows.
const envelope = 512

// fold applies an entry to the governed state; most kinds only count.
func fold(s *ceremony.State, kind record.Kind, entry []byte, leaf record.Hash) error {
	if kind == record.KindEvent {
		if err := s.Ready(); err != nil {
			return err
		}
	}
	if !ceremony.Governs(kind) {
		*s = s.Skip(1)
		return nil
	}
	e, err := record.ParseEntry(entry)
	if err != nil {
		return err
	}
	*s, err = s.Apply(e, leaf)
	return err
}

// sign makes the signed checkpoint over b's head. Signers verify what their device returned before they return it.
func (l *Ledger) sign(b *batch) error {
	if len(b.drafts) == 0 {
		return nil
	}
	start := time.Now()
	signed, err := note.Sign(&note.Note{Text: l.text(b.next)}, b.next.lines.log)
	took := time.Since(start)
	l.signing.Store(int64(took))
	l.stats.signed(took)
	if err != nil {
		return err
	}
	b.next.checkpoint, b.content.Checkpoint = signed, signed
	return nil
}

// text is the checkpoint of a head, unsigned.
func (l *Ledger) text(h *head) string {
	return record.Checkpoint{Origin: l.cfg.Origin, Size: h.size(), Root: h.tree.Root()}.Text()
}

// commit makes b durable.
func (l *Ledger) commit(b *batch) error {
	if len(b.drafts) == 0 {
		return nil
	}
	start := time.Now()
	if err := l.store.Commit(&b.content); err != nil {
		return failure(err)
	}
	l.stats.committed(len(b.drafts), time.Since(start))
	l.committed.Store(b.next)
	if b.streams != nil {
		l.background.Go(func() { l.snapshot(b.streams, b.next.size()) })
	}
	return nil
}

// failure is what a failed commit means to producers.
func failure(err error) error {
	switch {
	case errors.Is(err, store.ErrUnknown):
		return fmt.Errorf("%w: %w", ErrUnknown, err)
	case errors.Is(err, store.ErrFull):
		return &Refusal{Code: record.CodeDisk, Message: "the disk is full; nothing was taken: make room", RetryAfter: time.Second, Err: err}
	default:
		return &Refusal{Code: record.CodeDisk, Message: "the disk refused the batch; nothing was taken: " + err.Error(), RetryAfter: time.Second, Err: err}
	}
}

// abandon undoes what admitting b did to numbers and streams, answers its requests with why, and returns why.
func (l *Ledger) abandon(b *batch, why error) error {
	l.undo(b)
	l.stats.failed(why)
	l.answer(b, why)
	return why
}

// undo takes back what admitting b did to the window.
func (l *Ledger) undo(b *batch) {
	for i := len(b.undo) - 1; i >= 0; i-- {
		b.undo[i]()
	}
	if b.streams != nil {
		l.resnapshot.Store(true)
	}
}

// answer tells every request of b how it went; without an error, b is durable. The daemon's own records of a batch that failed go
// back into the queue.
func (l *Ledger) answer(b *batch, err error) {
	var own []*request
	for _, r := range b.requests {
		switch {
		case err == nil:
			r.done <- answer{result: l.result(b, r)}
		case r.own && !errors.Is(err, ErrUnknown):
			own = append(own, r)
		default:
			r.done <- answer{err: err}
		}
	}
	if len(own) > 0 {
		l.queue.back(own, err)
	}
}
