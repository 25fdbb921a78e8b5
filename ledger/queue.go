package ledger

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"bulla/record"
	"bulla/store"
)

// Bounds of the queue and of a batch. A request is atomic and at most MaxRequest events.
const (
	MaxRequest = 10_000 // events in one request

	maxWaiting      = 200_000  // events waiting; beyond, producers are told "busy"
	maxWaitingBytes = 32 << 20 // their bytes
	maxOwn          = 10_000   // the daemon's own records waiting (no HSM for a day)
	entryBytes      = 364      // of an entry and its hashes around an event, about
	maxBatch        = store.AheadBytes * 15 / 16
	busyRetry       = 100 * time.Millisecond
)

// request is one caller's events, or one record of the daemon's own, or what a ceremony makes.
type request struct {
	own      bool
	kind     record.Kind // own: its kind and body
	body     []byte
	caller   *Caller
	producer []byte // canonical JSON of the caller, encoded in its goroutine
	events   []Event
	size     int // bytes, for the bounds

	governing []draft // what a ceremony makes; then there is nothing else

	places    []place // per event, set when it is admitted
	withdrawn bool    // own: nobody waits for it any more; guarded by the queue
	done      chan answer
}

// place is where an event of a request is: at an index of this batch, or as a repeat at an earlier one.
type place struct {
	index  uint64
	repeat bool
}

type answer struct {
	result *Result
	err    error
}

func newAppend(c *Caller, events []Event) (*request, error) {
	if len(events) == 0 || len(events) > MaxRequest {
		return nil, &Refusal{Code: record.CodeInvalid, Field: "events", Message: fmt.Sprintf("must be 1 to %d, not %d", MaxRequest, len(events))}
	}
	producer, err := c.canonical()
	if err != nil {
		return nil, fmt.Errorf("encoding the producer: %w", err)
	}
	r := &request{caller: c, producer: producer, events: events, done: make(chan answer, 1)}
	for i := range events {
		r.size += len(events[i].Body)
	}
	return r, nil
}

// governs reports whether r is what a ceremony makes. It is a batch by itself.
func (r *request) governs() bool { return len(r.governing) > 0 }

// queue holds what waits to be sequenced. It is bounded: what does not fit is refused at once.
type queue struct {
	mu     sync.Mutex
	own    []*request // the daemon's own records, and what ceremonies make
	events []*request
	n      int // events waiting
	bytes  int
	closed error         // set: everything is refused with it
	wake   chan struct{} // holds a token while something may wait
}

func newQueue() *queue { return &queue{wake: make(chan struct{}, 1)} }

func (q *queue) put(r *request) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case q.closed != nil:
		return q.closed
	case (r.own || r.governs()) && len(q.own) >= maxOwn:
		return &Refusal{Code: record.CodeBusy, Message: "too many of the daemon's own records wait", RetryAfter: time.Second}
	case r.own || r.governs():
		q.own = append(q.own, r)
	case q.n+len(r.events) > maxWaiting || q.bytes+r.size > maxWaitingBytes:
		return &Refusal{Code: record.CodeBusy, Message: fmt.Sprintf("%d events wait already; send more slowly", q.n), RetryAfter: busyRetry}
	default:
		q.events = append(q.events, r)
		q.n += len(r.events)
		q.bytes += r.size
	}
	q.signal()
	return nil
}

// take removes what the next batch holds: the daemon's own records and what ceremonies make first, then
// producers' requests in the order of arrival.
func (q *queue) take() []*request {
	q.mu.Lock()
	defer q.mu.Unlock()
	taken := q.own
	if i := slices.IndexFunc(q.own, (*request).governs); i >= 0 {
		i = max(i, 1) // what governs comes alone, in its turn
		taken, q.own = slices.Clone(q.own[:i]), q.own[i:]
		q.signal()
		if taken[0].governs() {
			return taken
		}
	} else {
		q.own = nil
	}
	i := 0
	for bytes := 0; i < len(q.events); i++ {
		r := q.events[i]
		if bytes += r.size + entryBytes*len(r.events); i > 0 && bytes > maxBatch {
			break
		}
		q.n -= len(r.events)
		q.bytes -= r.size
	}
	taken = append(taken, q.events[:i]...)
	if i == len(q.events) {
		q.events = nil
	} else {
		q.events = q.events[i:]
		q.signal()
	}
	return taken
}

// back puts requests of a failed batch back, before later ones; why it failed is for the daemon's own that were withdrawn.
func (q *queue) back(requests []*request, why error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	var own, events []*request
	for _, r := range requests {
		switch {
		case q.closed != nil:
			r.done <- answer{err: q.closed}
		case r.own && r.withdrawn:
			r.done <- answer{err: why}
		case r.own:
			own = append(own, r)
		default:
			events = append(events, r)
			q.n += len(r.events)
			q.bytes += r.size
		}
	}
	q.own, q.events = slices.Concat(own, q.own), slices.Concat(events, q.events)
	if len(events) > 0 {
		q.signal()
	}
}

// withdraw takes one of the daemon's own records back. It reports whether the record was still waiting and is gone; otherwise it is
// in a batch, and will be answered when that has succeeded or failed.
func (q *queue) withdraw(r *request) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	r.withdrawn = true
	i := slices.Index(q.own, r)
	if i >= 0 {
		q.own = slices.Delete(q.own, i, i+1)
	}
	return i >= 0
}

// close refuses everything that waits and everything that comes, with err.
func (q *queue) close(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = err
	for _, r := range slices.Concat(q.own, q.events) {
		r.done <- answer{err: err}
	}
	q.own, q.events, q.n, q.bytes = nil, nil, 0, 0
}

func (q *queue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// waiting returns how many events and bytes wait.
func (q *queue) waiting() (events, bytes int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.n, q.bytes
}
