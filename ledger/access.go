package ledger

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"bulla/record"
)

// How reading is recorded. A reader who comes back within the window for what an entry already names needs no other. The first few
// entries of a window name exactly what is given out; after them each names a range four times as large as the last one's, around
// what is asked for. So a person who looks at some entries is recorded to the entry, one who copies the log by a dozen entries a
// window, and whatever was given out lies in a range that was durable before.
const (
	accessWindow = time.Minute
	accessExact  = 8   // entries of a window that name exactly what is read
	accessBlock  = 256 // the range that the next one names, at least; a power of two
	accessLevels = 20  // how often that grows
	accessTime   = 10 * time.Second
	accessBurst  = 200         // entries a uid may cause at once,
	accessEvery  = time.Second // and on average: purposes and programs can be made up without end
)

// Reading is what somebody is about to be given of a log: the entries [From,To).
type Reading struct {
	By       *Caller
	Role     string // by which it is allowed: auditor, officer or operator
	Action   string // as record.Access has it
	Purpose  string // as the reader states it; may be empty
	Query    string // what was asked for, where it was not a range
	From, To uint64
}

// Access returns when the log says durably that r.By read r, and only then may it be given out. Otherwise the error, a *Refusal
// if the ledger goes on, says why it cannot be recorded.
func (l *Ledger) Access(ctx context.Context, r Reading) error {
	reader, free, err := l.readers.find(ctx, r)
	if err != nil {
		return err
	}
	defer free()
	from, to, covered := reader.open(r.From, r.To)
	if covered {
		return nil
	}
	if wait := l.readers.pay(r.By.UID, time.Now()); wait > 0 {
		return &Refusal{Code: record.CodeBusy, Message: "too many different readings are to be recorded; give them one purpose", RetryAfter: wait}
	}
	access := &record.Access{Action: r.Action, By: r.By.Producer, From: &from, Purpose: r.Purpose, Query: r.Query, Role: r.Role, To: &to}
	if err := access.Check(); err != nil {
		return fmt.Errorf("recording what is read: %w", err)
	}
	body, err := record.MarshalCanonical(access)
	if err != nil {
		return fmt.Errorf("recording what is read: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, accessTime)
	defer cancel()
	if _, err := l.Record(ctx, record.KindAccess, body); err != nil {
		return l.unrecorded(err)
	}
	reader.opened = append(reader.opened, span{from, to})
	return nil
}

// unrecorded is the refusal of a reading that could not be recorded.
func (l *Ledger) unrecorded(err error) error {
	var r *Refusal
	if errors.As(err, &r) || errors.Is(err, ErrUnknown) {
		return err
	}
	code, fault := l.stats.lastFault()
	if code == "" {
		code, fault = record.CodeBusy, "the log is busy"
	}
	return &Refusal{Code: code, Message: "what is read is recorded first, and that is not possible now: " + fault, RetryAfter: time.Second, Err: err}
}

// readers are those who read lately. The zero value has none.
type readers struct {
	mu   sync.Mutex
	open map[readerKey]*reader
	paid map[uint32]time.Time // by uid: when what it caused will be worked off
}

// readerKey is who reads and how: what one entry can speak of. A program that is started again and again is one reader, so the pid
// of an entry is that of the first.
type readerKey struct {
	uid, gid                          uint32
	exe, role, action, purpose, query string
}

// reader is one of them, in one window.
type reader struct {
	turn   chan struct{} // holds a token while somebody looks at the rest
	until  time.Time     // end of the window
	opened []span        // what is recorded
}

// span is a range of entries.
type span struct{ from, to uint64 }

// find returns the reader, for the caller alone until free is called.
func (s *readers) find(ctx context.Context, r Reading) (found *reader, free func(), err error) {
	key := readerKey{r.By.UID, r.By.GID, r.By.Exe, r.Role, r.Action, r.Purpose, r.Query}
	for {
		found = s.get(key, time.Now())
		select {
		case found.turn <- struct{}{}:
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
		if time.Now().Before(found.until) {
			return found, func() { <-found.turn }, nil
		}
		<-found.turn // its window ended while others were at it
	}
}

// get finds or makes a reader, and forgets those whose window has ended.
func (s *readers) get(key readerKey, now time.Time) *reader {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.open[key]; r != nil && now.Before(r.until) {
		return r
	}
	for k, r := range s.open {
		if !now.Before(r.until) {
			delete(s.open, k)
		}
	}
	if s.open == nil {
		s.open = map[readerKey]*reader{}
	}
	r := &reader{turn: make(chan struct{}, 1), until: now.Add(accessWindow)}
	s.open[key] = r
	return r
}

// pay counts an entry that a uid causes; if it is too many, it returns how long to wait.
func (s *readers) pay(uid uint32, now time.Time) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	for u, t := range s.paid {
		if !now.Before(t) {
			delete(s.paid, u)
		}
	}
	if s.paid == nil {
		s.paid = map[uint32]time.Time{}
	}
	until, ok := s.paid[uid]
	if !ok {
		until = now
	}
	if wait := until.Sub(now) - (accessBurst-1)*accessEvery; wait > 0 {
		return wait
	}
	s.paid[uid] = until.Add(accessEvery)
	return 0
}

// open returns the range to record before [from,to) may be given out, or that it is covered.
func (r *reader) open(from, to uint64) (first, end uint64, covered bool) {
	for _, o := range r.opened {
		if o.from <= from && to <= o.to {
			return 0, 0, true
		}
	}
	if len(r.opened) < accessExact {
		return from, to, false
	}
	block := uint64(accessBlock) << (2 * min(len(r.opened)-accessExact, accessLevels))
	return from &^ (block - 1), min((to+block-1)&^(block-1), record.MaxInt), false
}
