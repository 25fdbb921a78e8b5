package server

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"bulla/api"
	"bulla/ledger"
	"bulla/record"
)

// Bounds of one connection to sign.sock.
const (
	window   = 256      // requests under way; beyond, the connection is not read
	readSize = 4 << 10  // what an idle connection has for reading
	freeSize = 16 << 10 // bytes of a frame that are read before they count
	partSize = 1 << 20  // an ok is cut into parts of at most this size, where one item does not have more

	around     = 600 // bytes of an entry around its event, as most are
	usualProof = 24  // hashes of an inclusion proof, as few have more

	promptly   = 20 * time.Microsecond // a frame that comes in less was there already
	pooledSize = 4 << 10               // memory for an answer that is used again
	workerRest = 5 * time.Second       // that a goroutine waits for the next request
)

// serveFrames accepts connections to sign.sock until ctx ends, and then lets the requests under way finish.
func (s *server) serveFrames(ctx context.Context, l *limited) error {
	var conns sync.WaitGroup
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	for {
		c, err := l.Accept()
		if err != nil {
			conns.Wait()
			close(s.over)
			s.workers.Wait()
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("accepting connections: %w", err)
		}
		conns.Go(func() {
			if err := s.serveConn(ctx, c.(*conn)); err != nil && ctx.Err() == nil {
				s.cfg.Log.Debug("a connection to sign.sock ended", "error", err)
			}
		})
	}
}

// frameConn is one connection to sign.sock.
type frameConn struct {
	s      *server
	c      *conn
	caller *ledger.Caller
	limit  int // bytes of a frame that the peer reads

	requests sync.WaitGroup
	free     chan struct{} // holds a token for each request under way

	mu      sync.Mutex
	waiting []outgoing // answers to be written
	writing bool       // somebody does it
	broken  bool       // the peer is gone, or does not read: nothing is written any more
}

// outgoing is an answer to be written, and what to do then.
type outgoing struct {
	frame []byte
	sent  func()
}

// serveConn reads requests from one connection and answers them, until the peer closes it, sends what is no request, or ctx ends.
func (s *server) serveConn(ctx context.Context, c *conn) (err error) {
	defer func() { err = errors.Join(err, c.Close()) }()
	caller, err := peer(c)
	if err != nil {
		return err
	}
	f := &frameConn{s: s, c: c, caller: caller, limit: api.MaxFrame, free: make(chan struct{}, window)}
	if !s.frames.connect(caller.UID) {
		f.refuse(0, busy(s.limits.backoff, "too many connections"), nil)
		return nil
	}
	defer s.frames.disconnect(caller.UID)
	defer f.requests.Wait()
	stop := context.AfterFunc(ctx, func() { _ = c.CloseRead() })
	defer stop()
	kill := context.AfterFunc(s.cut, func() { _ = c.UnixConn.Close() })
	defer kill()

	r := bufio.NewReaderSize(c, readSize)
	if err := f.greet(r); err != nil {
		return f.malformed(err)
	}
	for {
		start := time.Now()
		b, err := f.read(r)
		if err != nil {
			return f.malformed(err)
		}
		// A peer that sends a small request at a time is served right here, which saves two switches; for others a goroutine a request.
		alone := len(f.free) == 0 && r.Buffered() == 0 && len(b) <= readSize && time.Since(start) > promptly
		if b == nil { // refused as busy
			continue
		}
		req, err := api.ParseRequest(b)
		if err != nil {
			s.frames.put(caller.UID, len(b))
			if req.ID == 0 {
				return f.malformed(err)
			}
			s.metrics.answered(s.nameOf(req.Log), invalid(err).Code)
			f.begin()
			f.refuse(req.ID, invalid(err), f.end)
			continue
		}
		f.begin()
		room := answerRoom(req.Events, req.Want)
		if !s.frames.take(caller.UID, room, true) {
			s.frames.put(caller.UID, len(b))
			full := busy(s.limits.backoff, "too many answers wait to be read")
			s.metrics.answered(s.nameOf(req.Log), full.Code)
			f.refuse(req.ID, full, f.end)
			continue
		}
		if j := (job{f, req, len(b) + room}); alone {
			f.serve(j.req, j.claimed)
		} else {
			s.work(j)
		}
	}
}

// answerRoom is about what the answer to a request takes. It is claimed before the events are taken, for then it has to be given.
func answerRoom(events []api.Event, want string) int {
	n := 0
	for i := range events {
		n += 192
		if want == api.WantReceipt {
			n += 4*(len(events[i].Body)+around)/3 + 47*usualProof
		}
	}
	return n
}

// begin and end count a request that is under way: one that was read, and whose answer is not written. begin waits for room.
func (f *frameConn) begin() {
	f.free <- struct{}{}
	f.requests.Add(1)
}

func (f *frameConn) end() {
	<-f.free
	f.requests.Done()
}

// greet exchanges hellos.
func (f *frameConn) greet(r *bufio.Reader) error {
	b, err := api.Hello{V: api.Version, MaxFrame: api.MaxFrame, Logs: f.s.origins()}.Frame()
	if err != nil {
		return err
	}
	if err := f.c.SetReadDeadline(time.Now().Add(f.s.limits.hello)); err != nil {
		return err
	}
	f.send(outgoing{frame: b})
	h, err := api.ReadHello(r)
	if errors.Is(err, io.EOF) {
		return err // it only looked whether somebody is there
	}
	if err != nil {
		return fmt.Errorf("the hello: %w", cut(err))
	}
	f.limit = h.MaxFrame
	return f.c.SetReadDeadline(time.Time{})
}

// read waits for the next frame as long as the peer likes, but not within it. Its bytes count against the budget as they come, a
// length alone claims nothing; the caller gives them back. Without room for them the frame is passed over and refused, and read
// returns nil.
func (f *frameConn) read(r *bufio.Reader) ([]byte, error) {
	if _, err := r.Peek(1); err != nil {
		return nil, err
	}
	whole := buffered(r)
	if !whole {
		if err := f.c.SetReadDeadline(time.Now().Add(f.s.limits.frame)); err != nil {
			return nil, err
		}
	}
	n, err := api.ReadLength(r, api.MaxFrame)
	if err != nil {
		return nil, cut(err)
	}
	claimed := 0
	defer func() { f.s.frames.put(f.caller.UID, claimed) }()
	b := make([]byte, min(n, freeSize))
	for have := 0; ; {
		if _, err := io.ReadFull(r, b[have:]); err != nil {
			return nil, fmt.Errorf("a frame of %d bytes: %w", n, cut(err))
		}
		have = len(b)
		want := min(n, 2*have)
		if !f.s.frames.take(f.caller.UID, want-claimed, n <= freeSize) {
			return nil, f.pass(r, b[:min(have, freeSize)], n-have)
		}
		claimed = want
		if have == n {
			break
		}
		b = append(b, make([]byte, want-have)...)
	}
	if !whole {
		if err := f.c.SetReadDeadline(time.Time{}); err != nil {
			return nil, err
		}
	}
	claimed = 0 // they are the caller's
	return b, nil
}

// buffered reports whether a whole frame can be read without waiting, as most can.
func buffered(r *bufio.Reader) bool {
	b, err := r.Peek(min(r.Buffered(), api.HeaderSize))
	return err == nil && len(b) == api.HeaderSize && uint64(r.Buffered()) >= api.HeaderSize+uint64(binary.BigEndian.Uint32(b))
}

// pass passes over what is left of a frame that there is no room for, and refuses it.
func (f *frameConn) pass(r *bufio.Reader, beginning []byte, left int) error {
	if _, err := io.CopyN(io.Discard, r, int64(left)); err != nil {
		return cut(err)
	}
	full := busy(f.s.limits.backoff, "too much is waiting already")
	id, ok := api.RequestID(beginning)
	if !ok {
		return full // as nobody can tell whose it was, the connection ends
	}
	f.s.metrics.answered("", full.Code)
	f.begin()
	f.refuse(id, full, f.end)
	return f.c.SetReadDeadline(time.Time{})
}

// cut is what an end or a silence within a frame means.
func cut(err error) error {
	var timeout net.Error
	switch {
	case errors.Is(err, io.EOF):
		return io.ErrUnexpectedEOF
	case errors.As(err, &timeout) && timeout.Timeout():
		return &record.FieldError{Reason: "the frame did not come in time"}
	}
	return err
}

// serve hands a request to its ledger and sends the answer. claimed is what it has of the budget.
func (f *frameConn) serve(req *api.Request, claimed int) {
	start := time.Now()
	log, ok := f.s.find(req.Log)
	if !ok {
		message := fmt.Sprintf("there is no log %q", clip(req.Log))
		if req.Log == "" {
			message = "there are several logs"
		}
		message += ", name one: " + strings.Join(f.s.origins(), ", ")
		f.s.frames.put(f.caller.UID, claimed)
		f.s.metrics.answered("", record.CodeInvalid)
		f.refuse(req.ID, &ledger.Refusal{Code: record.CodeInvalid, Field: "log", Message: message}, f.end)
		return
	}
	res, err := log.Ledger.Append(f.s.drain, f.caller, ledgerEvents(req.Events)) // closing is not cancelling
	defer f.s.frames.put(f.caller.UID, claimed)                                  // the answer's own bytes count by then
	f.s.metrics.appended(log.Name, err, time.Since(start))
	if err == nil {
		err = f.ok(req.ID, req.Want, res)
	}
	if err != nil {
		f.failed(req.ID, err)
	}
}

func ledgerEvents(events []api.Event) []ledger.Event {
	out := make([]ledger.Event, len(events))
	for i, e := range events {
		out[i] = ledger.Event(e)
	}
	return out
}

// ok sends the answer to a request that was taken, in parts that fit into frames. It is all encoded before any of it is sent: then
// a peer that is slow to read holds on to its own answer, and not to the batch that its events were in.
func (f *frameConn) ok(id uint64, want string, res *ledger.Result) error {
	var parts [][]byte
	a := api.Answer{ID: id, Status: api.StatusOK, Checkpoint: string(res.Checkpoint)}
	limit := min(f.limit, partSize) - 2*len(res.Checkpoint) - 256
	size := 0
	for i := range res.Items {
		it, err := item(res, i, want)
		if err != nil {
			return fmt.Errorf("%w: %w", ledger.ErrUnknown, err) // it was taken; only the proof is missing
		}
		n := it.Size()
		if size+n > limit && len(a.Items) > 0 {
			a.More = true
			parts = append(parts, a.Frame(f.s.buffer(size+2*len(res.Checkpoint)+256)))
			a.Items, a.More, size = a.Items[:0], false, 0
		}
		a.Items = append(a.Items, it)
		size += n
	}
	parts = append(parts, a.Frame(f.s.buffer(size+2*len(res.Checkpoint)+256)))
	total := 0
	for _, p := range parts {
		total += len(p)
	}
	uid := f.caller.UID
	f.s.frames.charge(uid, total)
	last := len(parts) - 1
	for _, p := range parts[:last] {
		f.send(outgoing{frame: p})
	}
	f.send(outgoing{parts[last], func() { f.s.frames.put(uid, total); f.end() }})
	return nil
}

// item is the i-th event's place in the log, as wanted.
func item(res *ledger.Result, i int, want string) (api.Item, error) {
	it, err := res.Item(i)
	if err != nil {
		return api.Item{}, err
	}
	if want == api.WantAck {
		return api.Item{Index: it.Index, Leaf: &it.Leaf}, nil
	}
	proof, err := res.Proof(i)
	return api.Item{Index: it.Index, Entry: it.Entry, Proof: proof}, err
}

// failed sends what an error of the ledger means.
func (f *frameConn) failed(id uint64, err error) {
	r, unknown := refusal(err)
	if !unknown {
		f.refuse(id, r, f.end)
		return
	}
	a := api.Answer{ID: id, Status: api.StatusUnknown, Message: r.Message}
	f.send(outgoing{a.Frame(nil), f.end})
}

func (f *frameConn) refuse(id uint64, r *ledger.Refusal, sent func()) {
	a := api.Answer{ID: id, Status: api.StatusRefused, Code: r.Code, Message: r.Message, Field: r.Field, RetryAfterMS: r.RetryAfter.Milliseconds()}
	f.send(outgoing{a.Frame(nil), sent})
}

// malformed ends a connection after err in reading. If the peer sent what it should not have, it is told so, with id 0.
func (f *frameConn) malformed(err error) error {
	if errors.Is(err, io.EOF) { // between frames
		return nil
	}
	var field *record.FieldError
	var r *ledger.Refusal
	switch {
	case errors.As(err, &field):
		r = invalid(err)
	case errors.Is(err, io.ErrUnexpectedEOF):
		r = &ledger.Refusal{Code: record.CodeInvalid, Message: "a frame was begun and not finished: " + err.Error()}
	case !errors.As(err, &r):
		return err
	}
	f.s.metrics.answered("", r.Code)
	f.requests.Add(1)
	f.refuse(0, r, f.requests.Done)
	return err
}

// send writes an answer, or leaves it to whoever is writing: what gathers meanwhile goes out in one system call. Answers do not mix.
func (f *frameConn) send(o outgoing) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.waiting = append(f.waiting, o)
	if f.writing {
		return
	}
	f.writing = true
	for len(f.waiting) > 0 {
		out := f.waiting
		f.waiting = nil
		f.mu.Unlock()
		f.write(out)
		f.mu.Lock()
	}
	f.writing = false
}

// write writes answers; a peer that does not take them in time is cut off. Only one write runs at a time.
func (f *frameConn) write(out []outgoing) {
	if !f.broken {
		err := f.c.SetWriteDeadline(time.Now().Add(f.s.limits.write))
		if err == nil && len(out) == 1 {
			_, err = f.c.UnixConn.Write(out[0].frame)
		} else if err == nil {
			frames := make(net.Buffers, len(out))
			for i, o := range out {
				frames[i] = o.frame
			}
			_, err = frames.WriteTo(f.c.UnixConn)
		}
		if err != nil {
			f.broken = true
			_ = f.c.UnixConn.Close() // ends reading, too
		}
	}
	for _, o := range out {
		f.s.recycle(o.frame)
		if o.sent != nil {
			o.sent()
		}
	}
}

// buffer returns memory for an answer of about n bytes; recycle takes it back.
func (s *server) buffer(n int) []byte {
	if n <= pooledSize {
		if b, ok := s.buffers.Get().(*[]byte); ok {
			return (*b)[:0]
		}
		n = pooledSize
	}
	return make([]byte, 0, n)
}

func (s *server) recycle(b []byte) {
	if cap(b) == pooledSize {
		s.buffers.Put(&b)
	}
}

// job is a request to be served.
type job struct {
	f       *frameConn
	req     *api.Request
	claimed int
}

// work has a job done by a goroutine that waits for one, or a new one. They are kept for a while: the stack that serving a request
// needs takes longer to grow than the request itself.
func (s *server) work(j job) {
	select {
	case s.jobs <- j:
	default:
		s.workers.Go(func() { s.worker(j) })
	}
}

func (s *server) worker(j job) {
	rest := time.NewTimer(workerRest)
	defer rest.Stop()
	for {
		j.f.serve(j.req, j.claimed)
		j = job{} // it holds memory
		rest.Reset(workerRest)
		select {
		case j = <-s.jobs:
		case <-rest.C:
			return
		case <-s.over:
			return
		}
	}
}

func clip(s string) string { return s[:min(len(s), 64)] }
