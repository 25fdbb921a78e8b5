package api

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"bulla/record"
)

// appliance is a sign.sock that answers as it is told.
type appliance struct {
	t     *testing.T
	path  string
	conns atomic.Int64
	// answer makes the answer to a request; nil ends the connection instead.
	answer func(conn int64, r *Request) []Answer
}

func newAppliance(t *testing.T, answer func(conn int64, r *Request) []Answer) *appliance {
	t.Helper()
	dir, err := os.MkdirTemp("", "bulla")
	if err != nil {
		t.Fatal(err)
	}
	a := &appliance{t: t, path: filepath.Join(dir, "sign.sock"), answer: answer}
	l, err := net.Listen("unix", a.path)
	if err != nil {
		t.Fatal(err)
	}
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			n := a.conns.Add(1)
			conns.Go(func() {
				if err := a.serve(c, n); err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
					t.Log(err) // the client went away
				}
				_ = c.Close() // it may be closed already
			})
		}
	})
	t.Cleanup(func() {
		if err := errors.Join(l.Close(), os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
		conns.Wait()
	})
	return a
}

func (a *appliance) serve(c net.Conn, n int64) error {
	hello, err := Hello{V: Version, MaxFrame: MaxFrame, Logs: []string{"a.example/log"}}.Frame()
	if err != nil {
		return err
	}
	if _, err := c.Write(hello); err != nil {
		return err
	}
	r := bufio.NewReader(c)
	if _, err := ReadHello(r); err != nil {
		return err
	}
	for {
		b, err := readFrame(r, MaxFrame, nil)
		if err != nil {
			return err
		}
		req, err := ParseRequest(b)
		if err != nil {
			return err
		}
		answers := a.answer(n, req)
		if answers == nil {
			return c.Close()
		}
		for _, answer := range answers {
			if _, err := c.Write(answer.Frame(nil)); err != nil {
				return err
			}
		}
	}
}

func (a *appliance) dial() *Client {
	a.t.Helper()
	c, err := Dial(a.t.Context(), a.path)
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() {
		if err := c.Close(); err != nil {
			a.t.Error(err)
		}
	})
	return c
}

// taken is the answer to a request that was taken from index first on.
func taken(r *Request, first uint64) Answer {
	a := Answer{ID: r.ID, Status: StatusOK, Checkpoint: "x"}
	for i, e := range r.Events {
		it := Item{Index: first + uint64(i)}
		if r.Want == WantAck {
			h := record.LeafHash(e.Body)
			it.Leaf = &h
		} else {
			it.Entry, it.Proof = e.Body, []record.Hash{{1}}
		}
		a.Items = append(a.Items, it)
	}
	return a
}

func TestClient(t *testing.T) {
	t.Parallel()
	a := newAppliance(t, func(_ int64, r *Request) []Answer {
		if r.Log != "a.example/log" {
			return []Answer{{ID: r.ID, Status: StatusRefused, Code: record.CodeInvalid, Field: "log", Message: "no"}}
		}
		whole := taken(r, 40)
		part := whole
		part.More, part.Items, whole.Items = true, whole.Items[:len(whole.Items)/2], whole.Items[len(whole.Items)/2:]
		return []Answer{part, {ID: 999, Status: StatusOK}, whole} // the one in between is nobody's
	})
	c := a.dial()
	if logs := c.Logs(); len(logs) != 1 || logs[0] != "a.example/log" {
		t.Errorf("logs %q", logs)
	}
	res, err := c.AppendBatch(t.Context(), "a.example/log", WantReceipt, []byte(good), []byte(`{"id":"2","type":"a.b"}`), []byte(` {"type":"c"} `))
	if err != nil || len(res.Items) != 3 || string(res.Checkpoint) != "x" {
		t.Fatalf("%+v, %v", res, err)
	}
	if r := res.Receipt(1); r.Index != 41 || string(r.Entry) != `{"id":"2","type":"a.b"}` || len(r.Proof) != 1 || string(r.Checkpoint) != "x" {
		t.Errorf("%+v", r)
	}
	if r, err := c.Append(t.Context(), "a.example/log", []byte(good)); err != nil || string(r.Entry) != good {
		t.Errorf("%+v, %v", r, err)
	}
	if i, leaf, err := c.AppendAck(t.Context(), "a.example/log", []byte(good)); err != nil || i != 40 || leaf != record.LeafHash([]byte(good)) {
		t.Errorf("%d, %v, %v", i, leaf, err)
	}
	var r *Refusal
	if _, err := c.Append(t.Context(), `b"`, []byte(good)); !errors.As(err, &r) || r.Field != "log" || r.Code != record.CodeInvalid {
		t.Errorf("%v", err)
	}
	if _, err := c.AppendBatch(t.Context(), "", WantAck, make([]byte, MaxFrame)); !errors.As(err, &r) || r.Code != record.CodeTooLarge {
		t.Errorf("%v", err)
	}
}

// Many callers share a connection; each gets its own answer.
func TestConcurrentCallers(t *testing.T) {
	t.Parallel()
	a := newAppliance(t, func(_ int64, r *Request) []Answer { return []Answer{taken(r, r.ID)} })
	c := a.dial()
	var callers sync.WaitGroup
	for i := range 50 {
		callers.Go(func() {
			for j := range 20 {
				event := fmt.Sprintf(`{"id":"%d-%d","type":"a.b"}`, i, j)
				if r, err := c.Append(t.Context(), "", []byte(event)); err != nil || string(r.Entry) != event {
					t.Errorf("%s: %s, %v", event, r.Entry, err)
				}
			}
		})
	}
	callers.Wait()
	if a.conns.Load() != 1 {
		t.Errorf("%d connections", a.conns.Load())
	}
}

// When the connection is lost, the outcome of what was under way is unknown; the next call makes a new one.
func TestReconnect(t *testing.T) {
	t.Parallel()
	a := newAppliance(t, func(conn int64, r *Request) []Answer {
		if conn == 1 {
			return nil
		}
		return []Answer{taken(r, 0)}
	})
	c := a.dial()
	_, err := c.Append(t.Context(), "", []byte(good))
	if _, again := Retry(err); !errors.Is(err, ErrUnknown) || !again {
		t.Fatalf("%v", err)
	}
	if _, err := c.Append(t.Context(), "", []byte(good)); err != nil {
		t.Fatal(err)
	}
	if a.conns.Load() != 2 {
		t.Errorf("%d connections", a.conns.Load())
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	_, err = c.Append(t.Context(), "", []byte(good))
	if _, again := Retry(err); !errors.Is(err, errClosed) || again {
		t.Errorf("after Close: %v", err)
	}
	if c.Logs() != nil {
		t.Error("a closed client has logs")
	}
}

// Answers that say something else than was asked end the connection, and are not asked for again.
func TestImpossibleAnswers(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]func(r *Request) []Answer{
		"too few": func(r *Request) []Answer { return []Answer{{ID: r.ID, Status: StatusOK}} },
		"too many": func(r *Request) []Answer {
			x := taken(r, 1)
			return []Answer{{ID: r.ID, Status: StatusOK, More: true, Items: x.Items}, x}
		},
		"no receipt": func(r *Request) []Answer { return []Answer{{ID: r.ID, Status: StatusOK, Items: []Item{{Index: 7}}}} },
		"another way": func(r *Request) []Answer {
			return []Answer{{ID: r.ID, Status: StatusOK, Items: []Item{{Leaf: &record.Hash{}}}}}
		},
	} {
		a := newAppliance(t, func(_ int64, r *Request) []Answer { return answer(r) })
		_, err := a.dial().Append(t.Context(), "", []byte(good))
		if _, again := Retry(err); !errors.Is(err, ErrUnknown) || again {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The server says why it ends a connection.
	a := newAppliance(t, func(int64, *Request) []Answer {
		return []Answer{{ID: 0, Status: StatusRefused, Code: record.CodeTooLarge, Message: "a frame of 5 bytes"}}
	})
	var r *Refusal
	if _, err := a.dial().Append(t.Context(), "", []byte(good)); !errors.Is(err, ErrUnknown) || !errors.As(err, &r) || r.Code != record.CodeTooLarge {
		t.Errorf("%v", err)
	}
}

// A caller that gives up learns whether its request was sent; the others go on.
func TestCallersGiveUp(t *testing.T) {
	t.Parallel()
	asked, release := make(chan struct{}, 10), make(chan struct{})
	a := newAppliance(t, func(_ int64, r *Request) []Answer {
		asked <- struct{}{}
		<-release
		return []Answer{taken(r, 0)}
	})
	c := a.dial()
	ctx, cancel := context.WithCancel(t.Context())
	gone := make(chan error)
	go func() { _, err := c.Append(ctx, "", []byte(good)); gone <- err }()
	<-asked
	cancel()
	if err := <-gone; !errors.Is(err, ErrUnknown) || !errors.Is(err, context.Canceled) {
		t.Errorf("sent: %v", err)
	}
	// Nothing more is read: what does not fit into the socket's buffer waits, and may be given up.
	event := []byte(`{"data":{"x":"` + strings.Repeat("x", 50_000) + `"},"type":"a.b"}`)
	batch := make([][]byte, 50)
	for i := range batch {
		batch[i] = event
	}
	ctx, cancel = context.WithCancel(t.Context())
	const stuck = 3
	for range stuck {
		go func() { _, err := c.AppendBatch(ctx, "", WantAck, batch...); gone <- err }()
	}
	cancel()
	for range stuck {
		if err := <-gone; !errors.Is(err, context.Canceled) {
			t.Errorf("stuck: %v", err)
		}
	}
	close(release)
	if _, err := c.Append(t.Context(), "", []byte(good)); err != nil {
		t.Errorf("afterwards: %v", err)
	}
	if a.conns.Load() != 1 {
		t.Errorf("%d connections", a.conns.Load())
	}
}

func TestDialErrors(t *testing.T) {
	t.Parallel()
	if _, err := Dial(t.Context(), filepath.Join(t.TempDir(), "none.sock")); err == nil || !strings.Contains(err.Error(), "is bullad running?") {
		t.Errorf("no socket: %v", err)
	} else if _, again := Retry(err); !again {
		t.Error("an appliance that is not there may come")
	}
	dir, err := os.MkdirTemp("", "bulla")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	go func() { // it says nothing
		if c, err := l.Accept(); err == nil {
			defer c.Close()
			_, _ = io.ReadFull(c, make([]byte, 8)) // the client's hello has come
			cancel()
			_, _ = io.Copy(io.Discard, c)
		}
	}()
	if _, err := Dial(ctx, filepath.Join(dir, "s")); !errors.Is(err, context.Canceled) {
		t.Errorf("silent: %v", err)
	}
}

// An appliance that has no room says so at once, without waiting for a hello.
func TestDialRefused(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "bulla")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	var server sync.WaitGroup
	server.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			a := Answer{Status: StatusRefused, Code: record.CodeBusy, Message: "too many connections", RetryAfterMS: 100}
			if _, err := c.Write(a.Frame(nil)); err != nil {
				t.Error(err)
			}
			_ = c.Close() // with the client's hello unread, or not yet written
		}
	})
	for range 200 {
		var r *Refusal
		if _, err := Dial(t.Context(), filepath.Join(dir, "s")); !errors.As(err, &r) || r.Code != record.CodeBusy || r.RetryAfter != 100*time.Millisecond {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	server.Wait()
}

func TestRetry(t *testing.T) {
	t.Parallel()
	for _, code := range []record.Code{record.CodeBusy, record.CodeClock, record.CodeHSM, record.CodeTPM, record.CodeDisk, record.CodeRollback, record.CodeUnsealed, record.CodeInternal} {
		if wait, again := Retry(fmt.Errorf("x: %w", &Refusal{Code: code, RetryAfter: time.Second})); !again || wait != time.Second {
			t.Errorf("%s: %v, %t", code, wait, again)
		}
	}
	for _, code := range []record.Code{record.CodeInvalid, record.CodeTooLarge, record.CodeForbidden, record.CodeConflict, record.CodeStale} {
		if _, again := Retry(&Refusal{Code: code, RetryAfter: time.Second}); again {
			t.Errorf("%s is asked again", code)
		}
	}
}

// Whatever fails for the moment is repeated under the same numbers until every event is in, once and in order.
func TestStream(t *testing.T) {
	t.Parallel()
	const events = 3000
	var mu sync.Mutex
	log := map[int64][]byte{} // by number
	highest := int64(-1)
	requests := 0
	a := newAppliance(t, func(_ int64, r *Request) []Answer {
		mu.Lock()
		defer mu.Unlock()
		requests++
		switch requests {
		case 2:
			return []Answer{{ID: r.ID, Status: StatusRefused, Code: record.CodeBusy, RetryAfterMS: 1}}
		case 4:
			return nil // lost before it was taken
		case 7:
			return []Answer{{ID: r.ID, Status: StatusUnknown, Message: "disk"}}
		}
		for _, e := range r.Events {
			switch had := log[e.Key.N]; {
			case had == nil && e.Key.N != highest+1:
				t.Errorf("number %d after %d", e.Key.N, highest)
			case had != nil && !bytes.Equal(had, e.Body):
				t.Errorf("number %d again with other content", e.Key.N)
			}
			log[e.Key.N], highest = e.Body, max(highest, e.Key.N)
		}
		if requests == 5 || requests == 9 { // lost after it was taken
			return nil
		}
		return []Answer{taken(r, uint64(r.Events[0].Key.N))}
	})
	var acked []int64
	failed := 0
	s, err := a.dial().Stream(StreamConfig{ID: `s "1"`, Window: 200, Failed: func(error, time.Duration) { failed++ }, Acknowledged: func(first int64, r *Result) {
		for i := range r.Items {
			acked = append(acked, first+int64(i))
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	for i := range events {
		n, err := s.Send(t.Context(), fmt.Appendf(nil, ` {"data":{"i":%d},"type":"a.b"}`, i))
		if err != nil || n != int64(i) {
			t.Fatalf("%d: %d, %v", i, n, err)
		}
	}
	if err := s.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s.Last() != events-1 || len(log) != events || len(acked) != events || failed < 5 {
		t.Errorf("last %d, %d logged, %d acknowledged, %d failures", s.Last(), len(log), len(acked), failed)
	}
	for i, n := range acked {
		if n != int64(i) {
			t.Fatalf("number %d was acknowledged as the %d-th", n, i)
		}
	}
	if got := string(log[7]); got != `{"data":{"i":7},"stream":{"id":"s \"1\"","n":7},"type":"a.b"}` {
		t.Error(got)
	}
	if _, err := s.Send(t.Context(), []byte(good)); !errors.Is(err, errStreamClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// What is refused for good ends the stream; what is not even an event is refused at once, and uses no number.
func TestStreamRefusals(t *testing.T) {
	t.Parallel()
	a := newAppliance(t, func(_ int64, r *Request) []Answer {
		if r.Events[0].Key.N == 11 {
			return []Answer{{ID: r.ID, Status: StatusRefused, Code: record.CodeConflict, Field: "events[0].stream.n", Message: "other content"}}
		}
		return []Answer{taken(r, 0)}
	})
	c := a.dial()
	s, err := c.Stream(StreamConfig{ID: "s", Next: 10})
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{``, ` `, `[]`, `{}`, `{`, `{"type":"A"}`, `{"type":"a.b","stream":{"id":"s","n":1}}`, `{"type":"a.b","\u0073tream":{}}`, `{"type":"a.b"}{}`} {
		var f *record.FieldError
		if n, err := s.Send(t.Context(), []byte(bad)); !errors.As(err, &f) {
			t.Errorf("%q: %d, %v", bad, n, err)
		}
	}
	if n, err := s.Send(t.Context(), []byte(good)); n != 10 || err != nil {
		t.Fatal(n, err)
	}
	if err := s.Flush(t.Context()); err != nil || s.Last() != 10 {
		t.Fatal(s.Last(), err)
	}
	if _, err := s.Send(t.Context(), []byte(good)); err != nil {
		t.Fatal(err)
	}
	var r *Refusal
	if err := s.Flush(t.Context()); !errors.As(err, &r) || r.Code != record.CodeConflict || s.Last() != 10 || !strings.Contains(err.Error(), "number 11") {
		t.Errorf("%v", err)
	}
	if _, err := s.Send(t.Context(), []byte(good)); !errors.As(err, &r) {
		t.Errorf("%v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	for _, cfg := range []StreamConfig{{}, {ID: strings.Repeat("x", 256)}, {ID: "s", Next: -1}, {ID: "s", Next: record.MaxInt + 1}} {
		if s, err := c.Stream(cfg); err == nil {
			t.Errorf("%+v", cfg)
			_ = s.Close()
		}
	}
}

// A full window makes the sender wait, until it gives up or there is room.
func TestStreamWindow(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	a := newAppliance(t, func(_ int64, r *Request) []Answer {
		<-release
		return []Answer{taken(r, 0)}
	})
	s, err := a.dial().Stream(StreamConfig{ID: "s", Window: 2})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	var sent int64
	for {
		n, err := s.Send(ctx, []byte(good))
		if err != nil {
			if !errors.Is(err, context.DeadlineExceeded) || sent != 1 {
				t.Errorf("after number %d: %v", sent, err)
			}
			break
		}
		sent = n
	}
	if err := s.Flush(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("flush: %v", err)
	}
	close(release)
	if n, err := s.Send(t.Context(), []byte(good)); err != nil || n != 2 {
		t.Errorf("%d, %v", n, err)
	}
	if err := errors.Join(s.Flush(t.Context()), s.Close()); err != nil {
		t.Error(err)
	}
}

// An appliance that is not there is asked again, ever more slowly, and no more often than it says.
func TestStreamBacksOff(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := &Client{path: filepath.Join(t.TempDir(), "none.sock"), dial: make(chan struct{}, 1)}
		c.dial <- struct{}{}
		var waits []time.Duration
		s, err := c.Stream(StreamConfig{ID: "s", Failed: func(_ error, wait time.Duration) { waits = append(waits, wait) }})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Send(t.Context(), []byte(good)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute) // of the bubble's own time
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if len(waits) < 12 || len(waits) > 40 {
			t.Errorf("%d attempts in a minute", len(waits))
		}
		for i, w := range waits {
			longest := min(firstWait<<min(i, 10), longestWait)
			if w < longest/2 || w > longest {
				t.Errorf("wait %d is %v, not between %v and %v", i, w, longest/2, longest)
			}
		}
	})
}
