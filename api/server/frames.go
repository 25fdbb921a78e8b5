package server

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"time"

	"bulla/api"
	"bulla/ledger"
	"bulla/record"
)

// Bounds of one connection to sign.sock.
const (
	helloTime = 10 * time.Second
	frameTime = 30 * time.Second // from a frame's length to its last byte
	writeTime = 30 * time.Second // for the peer to take an answer
	window    = 256              // requests under way; beyond, the connection is not read
	partSize  = 2 << 20          // an ok is cut into parts of about this size
)

// serveFrames accepts connections to sign.sock until ctx ends, and then lets the requests under way finish.
func (s *server) serveFrames(ctx context.Context, l net.Listener) error {
	var conns sync.WaitGroup
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	for {
		c, err := l.Accept()
		if err != nil {
			conns.Wait()
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("accepting connections: %w", err)
		}
		conns.Go(func() {
			if err := s.serveConn(ctx, c); err != nil && ctx.Err() == nil {
				s.cfg.Log.Debug("connection to sign.sock ended", "error", err)
			}
		})
	}
}

// frameConn is one connection to sign.sock.
type frameConn struct {
	s      *server
	c      net.Conn
	caller *ledger.Caller

	mu sync.Mutex // guards w
	w  *bufio.Writer
}

func (s *server) serveConn(ctx context.Context, c net.Conn) (err error) {
	stop := context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	caller, err := peer(c)
	if err != nil {
		return errors.Join(err, c.Close())
	}
	f := &frameConn{s: s, c: c, caller: caller, w: bufio.NewWriterSize(c, 4096)}
	var requests sync.WaitGroup
	defer func() {
		requests.Wait()
		err = errors.Join(err, c.Close())
	}()
	r := bufio.NewReaderSize(c, 4096)
	if err := f.greet(r); err != nil {
		return err
	}
	free := make(chan struct{}, window)
	for {
		b, err := f.read(ctx, r)
		if errors.Is(err, io.EOF) || ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return f.malformed(err)
		}
		req, err := api.ParseRequest(b)
		if err != nil && req.ID == 0 {
			s.memory.put(len(b))
			return f.malformed(err)
		}
		free <- struct{}{}
		requests.Go(func() {
			defer func() { s.memory.put(len(b)); <-free }()
			if err == nil {
				err = f.append(req)
			} else {
				err = f.refuse(req.ID, invalid(err))
			}
			if err != nil { // the peer does not read its answers, or is gone
				_ = c.SetReadDeadline(time.Unix(1, 0))
			}
		})
	}
}

// greet exchanges hellos.
func (f *frameConn) greet(r *bufio.Reader) error {
	b, err := json.Marshal(api.Hello{V: api.Version, MaxFrame: api.MaxFrame, Logs: f.s.origins()})
	if err != nil {
		return err
	}
	if err := f.c.SetDeadline(time.Now().Add(helloTime)); err != nil {
		return err
	}
	if err := f.write(b); err != nil {
		return err
	}
	if b, err = api.ReadFrame(r, 64<<10); err != nil {
		if errors.Is(err, io.EOF) {
			return nil
		}
		return f.malformed(err)
	}
	if _, err := api.ParseHello(b); err != nil {
		return f.malformed(err)
	}
	return f.c.SetDeadline(time.Time{})
}

// read waits for the next frame as long as the peer likes, but not within it. The frame's bytes count against the budget.
func (f *frameConn) read(ctx context.Context, r *bufio.Reader) ([]byte, error) {
	if err := ctx.Err(); err != nil { // the deadline that ends reading may have been lifted
		return nil, err
	}
	if _, err := r.Peek(1); err != nil {
		return nil, err
	}
	if err := f.c.SetReadDeadline(time.Now().Add(frameTime)); err != nil {
		return nil, err
	}
	n, err := api.ReadLength(r, api.MaxFrame)
	if err != nil {
		return nil, noEOF(err)
	}
	// Memory is claimed as the bytes come: a length alone claims nothing.
	b := make([]byte, 0, min(n, 64<<10))
	claimed := 0
	for len(b) < n {
		part := min(n-len(b), max(64<<10, len(b)))
		if err := f.s.memory.take(ctx, part); err != nil {
			f.s.memory.put(claimed)
			return nil, err
		}
		claimed += part
		b = append(b, make([]byte, part)...)
		if _, err := io.ReadFull(r, b[len(b)-part:]); err != nil {
			f.s.memory.put(claimed)
			return nil, fmt.Errorf("a frame of %d bytes was not finished: %w", n, noEOF(err))
		}
	}
	return b, f.c.SetReadDeadline(time.Time{})
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// append hands a request to its ledger and writes the answer.
func (f *frameConn) append(req *api.Request) error {
	l, ok := f.s.find(req.Log)
	if !ok {
		message := fmt.Sprintf("there is no log %q", clip(req.Log))
		if req.Log == "" {
			message = "there are several logs: name one"
		}
		return f.refuse(req.ID, &ledger.Refusal{Code: record.CodeInvalid, Field: "log", Message: message})
	}
	events := make([]ledger.Event, len(req.Events))
	for i, e := range req.Events {
		events[i] = ledger.Event{Body: e.Body, Key: e.Key}
	}
	res, err := l.Append(context.Background(), f.caller, events) // closing is not cancelling
	if err != nil {
		return f.failed(req.ID, err)
	}
	return f.ok(req, res)
}

// ok writes the answer to a request that was taken, in parts that fit into frames.
func (f *frameConn) ok(req *api.Request, res *ledger.Result) error {
	checkpoint, err := json.Marshal(string(res.Checkpoint))
	if err != nil {
		return err
	}
	head := append(strconv.AppendUint([]byte(`{"id":`), req.ID, 10), `,"status":"ok","checkpoint":`...)
	head = append(append(head, checkpoint...), `,"items":[`...)
	b := append([]byte(nil), head...)
	for i := range res.Items {
		if len(b) > partSize {
			b = append(b, `],"more":true}`...)
			if err := f.send(b); err != nil {
				return err
			}
			b = append(b[:0], head...)
		}
		if len(b) > len(head) {
			b = append(b, ',')
		}
		if b, err = appendItem(b, res, i, req.Want); err != nil {
			return f.failed(req.ID, fmt.Errorf("%w: %w", ledger.ErrUnknown, err)) // it was taken; only the proof is missing
		}
	}
	return f.send(append(b, "]}"...))
}

// appendItem appends one event's place as JSON.
func appendItem(b []byte, res *ledger.Result, i int, want string) ([]byte, error) {
	it, err := res.Item(i)
	if err != nil {
		return b, err
	}
	b = strconv.AppendUint(append(b, `{"index":`...), it.Index, 10)
	if want == api.WantAck {
		b = base64.StdEncoding.AppendEncode(append(b, `,"leaf":"`...), it.Leaf[:])
		return append(b, `"}`...), nil
	}
	proof, err := res.Proof(i)
	if err != nil {
		return b, err
	}
	b = base64.StdEncoding.AppendEncode(append(b, `,"entry":"`...), it.Entry)
	b = append(b, `","proof":[`...)
	for j := range proof {
		if j > 0 {
			b = append(b, ',')
		}
		b = append(base64.StdEncoding.AppendEncode(append(b, '"'), proof[j][:]), '"')
	}
	return append(b, "]}"...), nil
}

// failed writes what an error of the ledger means.
func (f *frameConn) failed(id uint64, err error) error {
	var r *ledger.Refusal
	if errors.As(err, &r) {
		return f.refuse(id, r)
	}
	if errors.Is(err, ledger.ErrUnknown) {
		return f.answer(&api.Answer{ID: id, Status: api.StatusUnknown, Message: err.Error()})
	}
	return f.refuse(id, &ledger.Refusal{Code: record.CodeInternal, Message: err.Error()})
}

func (f *frameConn) refuse(id uint64, r *ledger.Refusal) error {
	return f.answer(&api.Answer{ID: id, Status: api.StatusRefused, Code: r.Code, Message: r.Message, Field: r.Field, RetryAfterMS: r.RetryAfter.Milliseconds()})
}

// malformed tells the peer what it sent, with id 0, and that this is the end.
func (f *frameConn) malformed(err error) error {
	return errors.Join(err, f.refuse(0, invalid(err)))
}

// invalid is the refusal of what could not be read.
func invalid(err error) *ledger.Refusal {
	r := &ledger.Refusal{Code: record.CodeInvalid, Message: err.Error()}
	var field *record.FieldError
	if errors.As(err, &field) {
		r.Field, r.Message = field.Field, field.Reason
		if field.TooLarge {
			r.Code = record.CodeTooLarge
		}
	}
	return r
}

func (f *frameConn) answer(a *api.Answer) error {
	b, err := json.Marshal(a)
	if err != nil {
		return err
	}
	return f.send(b)
}

// send writes one frame; frames of concurrent answers do not mix.
func (f *frameConn) send(b []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.c.SetWriteDeadline(time.Now().Add(writeTime)); err != nil {
		return err
	}
	return f.write(b)
}

func (f *frameConn) write(b []byte) error { return errors.Join(api.WriteFrame(f.w, b), f.w.Flush()) }

func clip(s string) string { return s[:min(len(s), 64)] }
