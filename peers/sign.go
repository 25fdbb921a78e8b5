package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// Where load must cost as little as it can, and come when it is due rather than when the appliance has answered, producers speak to
// sign.sock themselves, as docs/formats.md describes it. They look at an answer's id and status, and not at what else is in it.

// signer is one connection to sign.sock. It wants acknowledgements.
type signer struct {
	conn net.Conn
	in   *bufio.Reader
	buf  []byte
	form []byte // the next request, but for its numbers
	at   []int  // where they are: the id, and one an event
	next int    // id of the next request
}

// Requests carry numbers of the same width, so that they are changed in place.
const (
	digits  = 10
	firstID = 1_000_000_000
)

// dialSigner connects, and makes the requests of a producer: batch events of size bytes each, for a log ("": the only one).
func dialSigner(path, log, producer string, batch, size int) (*signer, error) {
	conn, err := net.Dial("unix", path)
	if err != nil {
		return nil, err
	}
	s := &signer{conn: conn, in: bufio.NewReaderSize(conn, 64<<10), next: firstID}
	hello := []byte(`{"v":1,"max_frame":4194304}`)
	_, err = conn.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(hello))), hello...))
	if err == nil {
		_, err = s.frame()
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	s.prepare(log, producer, batch, size)
	return s, nil
}

// prepare makes the request whose numbers are changed for each that is sent.
func (s *signer) prepare(log, producer string, batch, size int) {
	mark := strings.Repeat("0", digits)
	b := []byte(`0000{"id":` + mark + `,"op":"append","want":"ack","events":[`)
	if log != "" {
		b = []byte(`0000{"id":` + mark + `,"op":"append","want":"ack","log":"` + log + `","events":[`)
	}
	for i := range batch {
		if i > 0 {
			b = append(b, ',')
		}
		b = event(b, producer, 0, size)
	}
	b = append(b, "]}"...)
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	at := []int{4 + len(`{"id":`)}
	end := []byte(mark + `","type":"bench.event"}`)
	for from := at[0] + digits; ; {
		i := bytes.Index(b[from:], end)
		if i < 0 {
			break
		}
		at = append(at, from+i)
		from += i + len(end)
	}
	s.form, s.at = b, at
}

// request is the next request: its id, and its bytes until the next is made.
func (s *signer) request() (int, []byte) {
	events := len(s.at) - 1
	put(s.form[s.at[0]:], s.next)
	for i, p := range s.at[1:] {
		put(s.form[p:], (s.next-firstID)*events+i)
	}
	s.next++
	return s.next - 1, s.form
}

// put writes n with all its digits.
func put(b []byte, n int) {
	for i := digits - 1; i >= 0; i-- {
		b[i] = byte('0' + n%10)
		n /= 10
	}
}

func (s *signer) close() error { return s.conn.Close() }

// frame reads one frame. It is valid until the next is read.
func (s *signer) frame() ([]byte, error) {
	var h [4]byte
	if _, err := io.ReadFull(s.in, h[:]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint32(h[:]))
	if n > 4<<20 {
		return nil, fmt.Errorf("a frame of %d bytes", n)
	}
	if cap(s.buf) < n {
		s.buf = make([]byte, n)
	}
	_, err := io.ReadFull(s.in, s.buf[:n])
	return s.buf[:n], err
}

// errBusy is the appliance's answer to what it has no room for.
var errBusy = errors.New("busy")

// answer reads the next answer: the request's id, and nil, errBusy, or what else the appliance said.
func (s *signer) answer() (int, error) {
	for {
		b, err := s.frame()
		if err != nil {
			return 0, err
		}
		rest, ok := bytes.CutPrefix(b, []byte(`{"id":`))
		end := bytes.IndexByte(rest, ',')
		if !ok || end < 0 {
			return 0, fmt.Errorf("not an answer: %.100q", b)
		}
		id, err := strconv.Atoi(string(rest[:end]))
		switch rest = rest[end:]; {
		case err != nil:
			return 0, fmt.Errorf("not an answer: %.100q", b)
		case bytes.HasPrefix(rest, []byte(`,"status":"ok"`)) && bytes.HasSuffix(rest, []byte(`,"more":true}`)):
			continue
		case bytes.HasPrefix(rest, []byte(`,"status":"ok"`)):
			return id, nil
		case bytes.HasPrefix(rest, []byte(`,"status":"refused","code":"busy"`)):
			return id, errBusy
		}
		return id, fmt.Errorf("not taken: %.300q", b)
	}
}

// offered is what came of a load.
type offered struct {
	sent, taken, busy int       // entries
	took              latencies // of requests that were taken, since they were due
	refusal           latencies // of those that were not, since they were sent
}

// work is a load.
type work struct {
	producers, batch, size int
	logs                   int     // that the producers are spread over; 0: the appliance has one
	window                 int     // requests that a producer has under way; it sends the next when one was answered
	rate                   float64 // or entries a second of all producers, whether requests before were answered or not
}

// log is the log of the i-th producer, by its name in bullad dev.
func (w *work) log(i int) string {
	switch {
	case w.logs == 0:
		return ""
	case i%w.logs == 0:
		return "bulla.example/dev"
	}
	return fmt.Sprintf("bulla.example/dev%d", i%w.logs+1)
}

// load offers an appliance work.
func load(ctx context.Context, a *appliance, w work, d time.Duration) (offered, error) {
	var total offered
	var mu sync.Mutex
	signers := make([]*signer, w.producers)
	defer func() {
		for _, s := range signers {
			if s != nil {
				_ = s.close() // what it had to say was read
			}
		}
	}()
	run := time.Now().UnixMilli()
	for i := range signers {
		var err error
		if signers[i], err = dialSigner(a.sign(), w.log(i), fmt.Sprintf("%d-%04d", run, i), w.batch, w.size); err != nil {
			return total, err
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	end := context.AfterFunc(ctx, func() {
		for _, s := range signers {
			_ = s.conn.SetDeadline(time.Unix(1, 0))
		}
	})
	defer end()
	start := time.Now()
	for i, s := range signers {
		g.Go(func() error {
			var o offered
			var err error
			if w.rate == 0 {
				o, err = s.inTurn(w.window, start.Add(d))
			} else {
				every := time.Duration(float64(w.producers*w.batch) / w.rate * 1e9)
				o, err = s.onTime(start.Add(every*time.Duration(i)/time.Duration(w.producers)), every, start.Add(d))
			}
			mu.Lock()
			defer mu.Unlock()
			total.sent, total.taken, total.busy = total.sent+o.sent*w.batch, total.taken+o.taken*w.batch, total.busy+o.busy*w.batch
			total.took, total.refusal = append(total.took, o.took...), append(total.refusal, o.refusal...)
			return err
		})
	}
	return total, g.Wait()
}

// inTurn keeps window requests under way until end. Counts are of requests.
func (s *signer) inTurn(window int, end time.Time) (o offered, err error) {
	sent := map[int]time.Time{} // those that wait, by id
	for {
		for len(sent) < window && time.Now().Before(end) {
			id, b := s.request()
			sent[id] = time.Now()
			if _, err := s.conn.Write(b); err != nil {
				return o, err
			}
			o.sent++
		}
		if len(sent) == 0 {
			return o, nil
		}
		id, err := s.answer()
		if err := o.count(err, time.Since(sent[id])); err != nil {
			return o, err
		}
		delete(sent, id)
	}
}

// count notes what became of a request, and returns what is neither an answer nor a refusal for want of room.
func (o *offered) count(err error, took time.Duration) error {
	switch {
	case err == nil:
		o.taken++
		o.took = append(o.took, took)
	case errors.Is(err, errBusy):
		o.busy++
		o.refusal = append(o.refusal, took)
	default:
		return err
	}
	return nil
}

// onTime sends a request every so often until end, and reads the answers meanwhile. What is due while a write waits is sent late, and
// its time counts from when it was due. Counts are of requests.
func (s *signer) onTime(first time.Time, every time.Duration, end time.Time) (o offered, err error) {
	var last atomic.Int64 // id of the last request, once that is known
	failed := make(chan error, 1)
	go func() { failed <- s.send(first, every, end, &last) }()
	for o.sent = 0; last.Load() == 0 || int64(firstID+o.sent) <= last.Load(); o.sent++ {
		id, err := s.answer()
		took := time.Since(first.Add(time.Duration(id-firstID) * every))
		if err := o.count(err, took); err != nil {
			return o, errors.Join(err, s.conn.Close(), <-failed)
		}
	}
	return o, <-failed
}

// send sends what is due.
func (s *signer) send(at time.Time, every time.Duration, end time.Time, last *atomic.Int64) error {
	for done := false; !done; {
		time.Sleep(time.Until(at))
		at = at.Add(every)
		id, b := s.request()
		if done = !at.Before(end) || !time.Now().Before(end); done {
			last.Store(int64(id))
		}
		if _, err := s.conn.Write(b); err != nil {
			return err
		}
	}
	return nil
}
