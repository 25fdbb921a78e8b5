package api

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"bulla/record"
)

// ErrUnknown means that it is not known whether the events were taken: the connection was lost, or the appliance said so. Ask again
// with the same stream numbers or ids; what was taken then is not taken twice.
var ErrUnknown = errors.New("outcome unknown: ask again with the same stream number or id")

// Result is where a request's events are.
type Result struct {
	Checkpoint []byte // signed note that covers them all
	Items      []Item
}

// Receipt is the i-th event's receipt, of a request that wanted receipts.
func (r *Result) Receipt(i int) record.Receipt {
	it := r.Items[i]
	return record.Receipt{Checkpoint: r.Checkpoint, Entry: it.Entry, Index: it.Index, Proof: it.Proof}
}

// Client is a connection to sign.sock. Its methods may be used concurrently; requests do not wait for each other.
type Client struct {
	conn  net.Conn
	hello Hello

	write sync.Mutex
	w     *bufio.Writer

	mu      sync.Mutex
	next    uint64
	waiting map[uint64]*call
	err     error // set: the connection is gone
}

type call struct {
	result Result
	done   chan error // buffered
}

// helloTime bounds the exchange of hellos.
const helloTime = 10 * time.Second

// Dial connects to the sign.sock at path.
func Dial(ctx context.Context, path string) (*Client, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("connecting to the appliance: %w (is bullad running?)", err)
	}
	c := &Client{conn: conn, w: bufio.NewWriterSize(conn, 64<<10), waiting: map[uint64]*call{}}
	r := bufio.NewReaderSize(conn, 64<<10)
	if err := c.greet(r); err != nil {
		return nil, errors.Join(fmt.Errorf("connecting to the appliance: %w", err), conn.Close())
	}
	go c.receive(r)
	return c, nil
}

func (c *Client) greet(r *bufio.Reader) error {
	if err := c.conn.SetDeadline(time.Now().Add(helloTime)); err != nil {
		return err
	}
	b, err := json.Marshal(Hello{V: Version, MaxFrame: MaxFrame})
	if err != nil {
		return err
	}
	if err := errors.Join(WriteFrame(c.w, b), c.w.Flush()); err != nil {
		return err
	}
	if b, err = ReadFrame(r, MaxFrame); err != nil {
		return err
	}
	if c.hello, err = ParseHello(b); err != nil {
		return err
	}
	return c.conn.SetDeadline(time.Time{})
}

// Logs are the origins of the logs that the appliance keeps.
func (c *Client) Logs() []string { return c.hello.Logs }

// Close ends the connection. What is under way may still be taken.
func (c *Client) Close() error { return c.conn.Close() }

// Append appends one event, given as JSON, to a log ("": the only one) and returns its receipt when it is durable and signed.
func (c *Client) Append(ctx context.Context, log string, event []byte) (record.Receipt, error) {
	res, err := c.AppendBatch(ctx, log, WantReceipt, event)
	if err != nil {
		return record.Receipt{}, err
	}
	return res.Receipt(0), nil
}

// AppendBatch appends events, all or none, and returns their receipts or leaf hashes as want says. An error is a *Refusal, or wraps
// ErrUnknown.
func (c *Client) AppendBatch(ctx context.Context, log, want string, events ...[]byte) (*Result, error) {
	k := &call{done: make(chan error, 1)}
	c.mu.Lock()
	if c.err != nil {
		defer c.mu.Unlock()
		return nil, c.err
	}
	c.next++
	id := c.next
	c.waiting[id] = k
	c.mu.Unlock()
	if err := c.send(id, log, want, events); err != nil {
		c.mu.Lock()
		delete(c.waiting, id)
		c.mu.Unlock()
		return nil, err
	}
	select {
	case err := <-k.done:
		return &k.result, err
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %w", ErrUnknown, ctx.Err())
	}
}

// send writes a request. Events are sent as they are.
func (c *Client) send(id uint64, log, want string, events [][]byte) error {
	size := 128 + len(log)
	for _, e := range events {
		size += len(e) + 1
	}
	if size > min(c.hello.MaxFrame, MaxFrame) {
		return &Refusal{Code: record.CodeTooLarge, Field: "events", Message: fmt.Sprintf("%d bytes do not fit into a frame of %d", size, min(c.hello.MaxFrame, MaxFrame))}
	}
	b := fmt.Appendf(make([]byte, 0, size), `{"id":%d,"op":"append","want":%q,`, id, want)
	if log != "" {
		name, err := json.Marshal(log)
		if err != nil {
			return err
		}
		b = append(append(append(b, `"log":`...), name...), ',')
	}
	b = append(b, `"events":[`...)
	for i, e := range events {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, e...)
	}
	b = append(b, "]}"...)
	c.write.Lock()
	defer c.write.Unlock()
	if err := errors.Join(WriteFrame(c.w, b), c.w.Flush()); err != nil {
		return fmt.Errorf("%w: sending: %w", ErrUnknown, err)
	}
	return nil
}

// receive hands answers to their callers until the connection ends.
func (c *Client) receive(r *bufio.Reader) {
	for {
		b, err := ReadFrame(r, MaxFrame)
		var a Answer
		if err == nil {
			err = json.Unmarshal(b, &a)
		}
		if err == nil && a.ID == 0 && a.Status == StatusRefused {
			err = fmt.Errorf("the appliance could not read what was sent: %w", a.error())
		}
		if err != nil {
			c.fail(err)
			return
		}
		c.mu.Lock()
		k := c.waiting[a.ID]
		if !a.More {
			delete(c.waiting, a.ID)
		}
		c.mu.Unlock()
		if k == nil {
			continue // its caller has gone
		}
		k.result.Checkpoint = []byte(a.Checkpoint)
		k.result.Items = append(k.result.Items, a.Items...)
		if !a.More {
			k.done <- a.error()
		}
	}
}

// error is what an answer means to the caller.
func (a *Answer) error() error {
	switch a.Status {
	case StatusOK:
		return nil
	case StatusRefused:
		return &Refusal{Code: a.Code, Message: a.Message, Field: a.Field, RetryAfter: time.Duration(a.RetryAfterMS) * time.Millisecond}
	}
	return fmt.Errorf("%w: %s", ErrUnknown, a.Message)
}

func (c *Client) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = fmt.Errorf("%w: the connection ended: %w", ErrUnknown, err)
	for id, k := range c.waiting {
		k.done <- c.err
		delete(c.waiting, id)
	}
	_ = c.conn.Close() // it is of no use any more
}
