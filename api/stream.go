package api

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"time"

	"bulla/record"
)

// StreamConfig says how a stream's events are numbered and sent.
type StreamConfig struct {
	Log  string // origin of the log; "": the only one
	ID   string // name of the numbering, at most record.MaxID bytes, scoped to the log and the caller's uid
	Next int64  // number of the first event: 0 for a new stream, later one more than the last that was acknowledged
	Want string // WantAck or WantReceipt; "": WantAck
	// Window bounds the events that are sent and not yet acknowledged; beyond, Send waits. 0: 10,000. Their bytes are bounded too.
	Window int
	// Acknowledged is called, in order, for the events from number first on that a request took, one each of its items. A producer
	// that wants to continue after a crash of its own keeps the last number here, durably, and where its source stood then. May be nil.
	Acknowledged func(first int64, r *Result)
	// Failed is called after each attempt that failed and will be repeated after wait, for a log. May be nil.
	Failed func(err error, wait time.Duration)
}

// Stream sends events in order under gap-free numbers, which make it safe to ask again: whatever fails for the moment (the outcome is
// unknown, the connection is lost, the appliance is busy, or cannot sign) is repeated with the same numbers until it is answered.
//
// What has gathered while a request was under way goes into the next one. There is one at a time, for numbers must not overtake each
// other: if a request was refused as busy and its successor taken, the log would record a gap, and then refuse the first as stale.
type Stream struct {
	client *Client
	cfg    StreamConfig
	prefix []byte // of each event, up to its number
	cancel context.CancelFunc
	ended  chan struct{} // closed when nothing is sent any more

	mu      sync.Mutex
	queue   [][]byte // not acknowledged, in order
	bytes   int
	acked   int64         // the number after the last that was acknowledged
	err     error         // why the stream ended
	changed chan struct{} // closed, and replaced, at every change of the above that somebody may wait for
	work    chan struct{} // holds a token while there may be something to send
}

// Bounds of a stream, and of one of its requests.
const (
	streamWindow  = 10_000
	streamBytes   = 16 << 20
	requestEvents = 1000
	requestBytes  = MinFrame - 32<<10 // what is around the events fits in, too
	firstWait     = 50 * time.Millisecond
	longestWait   = 5 * time.Second
)

// Stream starts a stream. It lives until Close, or until the appliance refuses an event for good.
func (c *Client) Stream(cfg StreamConfig) (*Stream, error) {
	if cfg.ID == "" || len(cfg.ID) > record.MaxID {
		return nil, fmt.Errorf("a stream needs a name of 1 to %d bytes", record.MaxID)
	}
	if cfg.Next < 0 || cfg.Next > record.MaxInt {
		return nil, fmt.Errorf("stream %s: its next number cannot be %d", cfg.ID, cfg.Next)
	}
	if cfg.Want == "" {
		cfg.Want = WantAck
	}
	if cfg.Window <= 0 {
		cfg.Window = streamWindow
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &Stream{
		client: c, cfg: cfg, acked: cfg.Next, cancel: cancel, ended: make(chan struct{}),
		prefix: append(AppendString([]byte(`{"stream":{"id":`), cfg.ID), `,"n":`...), changed: make(chan struct{}), work: make(chan struct{}, 1),
	}
	go s.run(ctx)
	return s, nil
}

// Send takes an event, a JSON object without `stream`, gives it the next number and returns that; sending goes on behind it. It waits
// while the window is full. An event that is not valid is refused with a *record.FieldError and uses no number.
func (s *Stream) Send(ctx context.Context, event []byte) (int64, error) {
	fits := func() bool {
		return len(s.queue) < s.cfg.Window && (s.bytes+len(event) <= streamBytes || len(s.queue) == 0)
	}
	if err := s.wait(ctx, fits); err != nil {
		return 0, err
	}
	defer s.mu.Unlock() // wait returned with it
	n := s.acked + int64(len(s.queue))
	b, err := s.number(event, n)
	if err != nil {
		return 0, err
	}
	s.queue = append(s.queue, b)
	s.bytes += len(b)
	select {
	case s.work <- struct{}{}:
	default:
	}
	return n, nil
}

// number puts the stream into an event and makes it canonical.
func (s *Stream) number(event []byte, n int64) ([]byte, error) {
	i := 0
	for i < len(event) && (event[i] == ' ' || event[i] == '\t' || event[i] == '\n' || event[i] == '\r') {
		i++
	}
	if i == len(event) || event[i] != '{' {
		return nil, &record.FieldError{Reason: "an event is an object"}
	}
	b := slices.Grow(slices.Clone(s.prefix), len(event)+24)
	b = append(strconv.AppendInt(b, n, 10), '}', ',')
	b, _, err := record.CanonicalEvent(append(b, event[i+1:]...))
	if err == nil {
		return b, nil
	}
	if _, _, own := record.CanonicalEvent(event); own != nil {
		return nil, own // in terms of what was given
	}
	return nil, err
}

// Flush waits until everything that was sent is acknowledged.
func (s *Stream) Flush(ctx context.Context) error {
	if err := s.wait(ctx, func() bool { return len(s.queue) == 0 }); err != nil {
		return err
	}
	s.mu.Unlock()
	return nil
}

// Last is the number of the last event that was acknowledged; one less than StreamConfig.Next if none was.
func (s *Stream) Last() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.acked - 1
}

// Close ends the stream. Events that are not acknowledged by then (see Flush) may be taken or not; sent again under the same numbers
// they are taken once.
func (s *Stream) Close() error {
	s.cancel()
	<-s.ended
	return nil
}

// wait returns, holding the lock, when ok; or with an error, not holding it, when the stream or the context has ended.
func (s *Stream) wait(ctx context.Context, ok func() bool) error {
	for {
		s.mu.Lock()
		if s.err != nil {
			defer s.mu.Unlock()
			return s.err
		}
		if ok() {
			return nil
		}
		changed := s.changed
		s.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *Stream) change() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// run sends requests, each until it is answered for good.
func (s *Stream) run(ctx context.Context) {
	defer close(s.ended)
	for {
		events, err := s.next(ctx)
		if err == nil {
			err = s.take(ctx, events)
		}
		if err != nil {
			s.mu.Lock()
			s.err = err
			s.change()
			s.mu.Unlock()
			return
		}
	}
}

// next waits for events and returns as many as make a request. They stay in the queue until they are acknowledged.
func (s *Stream) next(ctx context.Context) ([][]byte, error) {
	for {
		s.mu.Lock()
		n, size := 0, 0
		for n < len(s.queue) && n < requestEvents && (n == 0 || size+len(s.queue[n]) < requestBytes) {
			size += len(s.queue[n]) + 1
			n++
		}
		events := slices.Clone(s.queue[:n])
		s.mu.Unlock()
		if n > 0 {
			return events, nil
		}
		select {
		case <-s.work:
		case <-ctx.Done():
			return nil, errStreamClosed
		}
	}
}

var errStreamClosed = errors.New("the stream was closed")

// take asks until the events are taken, or refused for good.
func (s *Stream) take(ctx context.Context, events [][]byte) error {
	for wait := firstWait; ; wait = min(2*wait, longestWait) {
		r, err := s.client.AppendBatch(ctx, s.cfg.Log, s.cfg.Want, events...)
		if err == nil {
			s.acknowledge(len(events), r)
			return nil
		}
		if ctx.Err() != nil {
			return errStreamClosed
		}
		hint, again := Retry(err)
		if !again {
			return fmt.Errorf("stream %s, events from number %d on: %w", s.cfg.ID, s.Last()+1, err)
		}
		pause := max(hint, wait/2+rand.N(wait/2)) // not all producers at once
		if s.cfg.Failed != nil {
			s.cfg.Failed(err, pause)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return errStreamClosed
		}
	}
}

// acknowledge takes the first n events off the queue.
func (s *Stream) acknowledge(n int, r *Result) {
	if s.cfg.Acknowledged != nil {
		s.cfg.Acknowledged(s.Last()+1, r)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.queue[:n] {
		s.bytes -= len(e)
	}
	s.queue = s.queue[n:]
	s.acked += int64(n)
	s.change()
}

// Retry reports whether a request that failed with err can be expected to be answered another way later, and how long the appliance
// asked to wait at least. With events that have stream numbers or ids, it is always safe to ask again.
func Retry(err error) (wait time.Duration, again bool) {
	var r *Refusal
	if errors.As(err, &r) {
		switch r.Code {
		case record.CodeBusy, record.CodeClock, record.CodeHSM, record.CodeTPM, record.CodeDisk, record.CodeRollback, record.CodeUnsealed, record.CodeInternal:
			return r.RetryAfter, true
		}
		return 0, false
	}
	var hello *record.FieldError // its version, for one
	return 0, !errors.Is(err, errClosed) && !errors.Is(err, errProtocol) && !errors.As(err, &hello)
}
