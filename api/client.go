package api

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"

	"bulla/record"
)

// ErrUnknown means that it is not known whether the events were taken: the connection was lost, or the appliance said so. Ask again
// with the same stream numbers or ids; what was taken then is not taken twice.
var ErrUnknown = errors.New("outcome unknown: ask again with the same stream number or id")

var (
	// errClosed is what calls get after Close.
	errClosed = errors.New("the client was closed")
	// errProtocol means that the other side does not speak as docs/formats.md says; asking again will not help.
	errProtocol = errors.New("the answer cannot be understood")
)

// Result is where a request's events are.
type Result struct {
	Checkpoint []byte // signed note that covers them all
	Items      []Item // one an event, in order
}

// Receipt is the i-th event's receipt, of a request that wanted receipts.
func (r *Result) Receipt(i int) record.Receipt {
	it := r.Items[i]
	return record.Receipt{Checkpoint: r.Checkpoint, Entry: it.Entry, Index: it.Index, Proof: it.Proof}
}

// Client talks to sign.sock over one connection, and makes a new one when that is lost. Its methods may be used concurrently; requests
// do not wait for each other, and are taken in no particular order. Who numbers events uses Stream, or waits for each answer.
type Client struct {
	path string
	dial chan struct{} // holds a token while nobody connects

	mu     sync.Mutex
	link   *link // the current connection, perhaps lost already; nil after Close
	closed bool
}

// Dial connects to the sign.sock at path.
func Dial(ctx context.Context, path string) (*Client, error) {
	c := &Client{path: path, dial: make(chan struct{}, 1)}
	c.dial <- struct{}{}
	if _, err := c.connect(ctx); err != nil {
		return nil, err
	}
	return c, nil
}

// Logs are the origins of the logs that the appliance keeps, as it said when the connection was made.
func (c *Client) Logs() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.link == nil {
		return nil
	}
	return c.link.hello.Logs
}

// Close ends the connection. What is under way may still be taken.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	if c.link != nil {
		c.link.end(errClosed)
		c.link = nil
	}
	return nil
}

// Append appends one event, given as JSON, to a log ("": the only one) and returns its receipt when it is durable and signed.
func (c *Client) Append(ctx context.Context, log string, event []byte) (record.Receipt, error) {
	res, err := c.AppendBatch(ctx, log, WantReceipt, event)
	if err != nil {
		return record.Receipt{}, err
	}
	return res.Receipt(0), nil
}

// AppendAck is Append for those who need only the event's index and the leaf hash of its entry.
func (c *Client) AppendAck(ctx context.Context, log string, event []byte) (index uint64, leaf record.Hash, err error) {
	res, err := c.AppendBatch(ctx, log, WantAck, event)
	if err != nil {
		return 0, leaf, err
	}
	return res.Items[0].Index, *res.Items[0].Leaf, nil
}

// AppendBatch appends 1 to MaxEvents events, all or none, and returns their receipts or leaf hashes as want says. An error that wraps
// ErrUnknown leaves open whether they were taken; with any other, as a *Refusal, nothing was.
func (c *Client) AppendBatch(ctx context.Context, log, want string, events ...[]byte) (*Result, error) {
	l, err := c.connect(ctx)
	if err != nil {
		return nil, err
	}
	return l.request(ctx, log, want, events)
}

// connect returns the connection, a new one if there is none.
func (c *Client) connect(ctx context.Context) (*link, error) {
	if l, err := c.current(); l != nil || err != nil {
		return l, err
	}
	select {
	case <-c.dial:
		defer func() { c.dial <- struct{}{} }()
	case <-ctx.Done():
		return nil, fmt.Errorf("connecting to the appliance: %w", ctx.Err())
	}
	if l, err := c.current(); l != nil || err != nil { // somebody else was faster
		return l, err
	}
	l, err := dialLink(ctx, c.path)
	if err != nil {
		return nil, fmt.Errorf("connecting to the appliance: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		l.end(errClosed)
		return nil, errClosed
	}
	c.link = l
	return l, nil
}

// current is the connection, or nil if there is none that works.
func (c *Client) current() (*link, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, errClosed
	}
	if c.link == nil {
		return nil, nil
	}
	select {
	case <-c.link.lost:
		return nil, nil
	default:
		return c.link, nil
	}
}

// link is one connection to sign.sock.
type link struct {
	conn  net.Conn
	hello Hello
	out   chan []byte   // frames for send to write
	lost  chan struct{} // closed when the connection has ended; err says why

	writing sync.Mutex // held by who writes to conn

	mu      sync.Mutex
	next    uint64
	waiting map[uint64]*call
	flight  int // room that the frames under way take in the kernel, about
	err     error
}

// Bounds within which a socket takes a frame without waiting for its reader.
const (
	roomEach = 1 << 10
	roomAll  = 64 << 10
)

// call is a request that waits for its answer.
type call struct {
	id     uint64
	want   string
	events int
	size   int // of its frame, once that is known
	result Result
	done   chan error // buffered
}

// helloTime bounds the exchange of hellos.
const helloTime = 10 * time.Second

func dialLink(ctx context.Context, path string) (*link, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("%w (is bullad running?)", err)
	}
	l := &link{conn: conn, out: make(chan []byte), lost: make(chan struct{}), waiting: map[uint64]*call{}}
	r := bufio.NewReaderSize(conn, 16<<10)
	if err := l.greet(ctx, r); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	go l.send()
	go l.receive(r)
	return l, nil
}

func (l *link) greet(ctx context.Context, r *bufio.Reader) error {
	if err := l.conn.SetDeadline(time.Now().Add(helloTime)); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = l.conn.SetDeadline(time.Unix(1, 0)) }) // ends what is below
	defer stop()
	b, err := Hello{V: Version, MaxFrame: MaxFrame}.Frame()
	if err != nil {
		return err
	}
	// A server that refuses says so and closes without reading: what it said is there though the write may fail.
	_, writeErr := l.conn.Write(b)
	if l.hello, err = ReadHello(r); err == nil {
		err = writeErr
	}
	if err != nil {
		return l.because(ctx, err)
	}
	if !stop() {
		return ctx.Err()
	}
	return l.conn.SetDeadline(time.Time{})
}

func (l *link) because(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// request sends a request and waits for its answer.
func (l *link) request(ctx context.Context, log, want string, events [][]byte) (*Result, error) {
	k := &call{want: want, events: len(events), done: make(chan error, 1)}
	if err := l.register(k); err != nil {
		return nil, err
	}
	defer l.forget(k)
	frame, err := requestFrame(k.id, log, want, events, l.hello.MaxFrame)
	if err != nil {
		return nil, err
	}
	if !l.writeNow(k, frame) {
		select {
		case l.out <- frame:
		case err := <-k.done: // the connection ended
			return nil, err
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting to send: %w", ctx.Err()) // nothing was sent
		}
	}
	select {
	case err := <-k.done:
		if err != nil {
			return nil, err
		}
		return &k.result, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %w", ErrUnknown, ctx.Err())
	}
}

func (l *link) register(k *call) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return l.err
	}
	l.next++
	k.id = l.next
	l.waiting[k.id] = k
	return nil
}

func (l *link) forget(k *call) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.waiting, k.id)
	l.flight -= k.size
	k.size = 0
}

// writeNow writes a frame in the caller's goroutine if nobody else writes and so little is under way that it will not block, which
// no context could end.
func (l *link) writeNow(k *call, frame []byte) bool {
	l.mu.Lock()
	k.size = len(frame) + roomEach
	l.flight += k.size
	small := l.flight <= roomAll
	l.mu.Unlock()
	if !small || !l.writing.TryLock() {
		return false
	}
	defer l.writing.Unlock()
	if _, err := l.conn.Write(frame); err != nil {
		l.unwritable()
	}
	return true
}

// unwritable is called when the other side has closed. It may have said why: receive reads that, and ends the link.
func (l *link) unwritable() { _ = l.conn.SetReadDeadline(time.Now().Add(time.Second)) }

// requestFrame makes a request of events as they are given.
func requestFrame(id uint64, log, want string, events [][]byte, limit int) ([]byte, error) {
	size := 128 + 6*len(log)
	for _, e := range events {
		size += len(e) + 1
	}
	if size > limit {
		return nil, &Refusal{Code: record.CodeTooLarge, Field: "events", Message: fmt.Sprintf("%d bytes do not fit into a frame of %d: send fewer events at once", size, limit)}
	}
	b := BeginFrame(make([]byte, 0, HeaderSize+size))
	b = strconv.AppendUint(append(b, `{"id":`...), id, 10)
	b = AppendString(append(b, `,"op":"append","want":`...), want)
	if log != "" {
		b = AppendString(append(b, `,"log":`...), log)
	}
	b = append(b, `,"events":[`...)
	for i, e := range events {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, e...)
	}
	return EndFrame(append(b, "]}"...)), nil
}

// send writes what callers hand over, as much at a time as is there, until the connection ends.
func (l *link) send() {
	for {
		var frames net.Buffers
		select {
		case f := <-l.out:
			frames = append(frames, f)
		case <-l.lost:
			return
		}
	more:
		for len(frames) < 256 {
			select {
			case f := <-l.out:
				frames = append(frames, f)
			default:
				break more
			}
		}
		if err := l.write(frames); err != nil {
			l.unwritable()
			return
		}
	}
}

func (l *link) write(frames net.Buffers) (err error) {
	l.writing.Lock()
	defer l.writing.Unlock()
	if len(frames) == 1 {
		_, err = l.conn.Write(frames[0])
	} else {
		_, err = frames.WriteTo(l.conn)
	}
	return err
}

// receive hands answers to their callers until the connection ends.
func (l *link) receive(r *bufio.Reader) {
	buf := make([]byte, 0, 4<<10)
	for {
		b, err := readFrame(r, MaxFrame, buf)
		if err != nil {
			l.end(err)
			return
		}
		if cap(b) > cap(buf) && cap(b) <= 256<<10 { // small ones are read into the same memory
			buf = b
		}
		if err := l.deliver(b); err != nil {
			l.end(err)
			return
		}
	}
}

// deliver hands one answer to its caller. An error ends the connection: what is read next cannot be trusted to be an answer.
func (l *link) deliver(b []byte) error {
	a, err := parseAnswer(b)
	if err != nil {
		return fmt.Errorf("%w: %w", errProtocol, err)
	}
	if a.ID == 0 {
		return fmt.Errorf("the appliance ended the connection: %w", a.Err())
	}
	l.mu.Lock()
	k := l.waiting[a.ID]
	if !a.More || a.Status != StatusOK {
		delete(l.waiting, a.ID)
	}
	l.mu.Unlock()
	if k == nil {
		return nil // its caller has gone
	}
	k.result.Checkpoint = []byte(a.Checkpoint)
	k.result.Items = append(k.result.Items, a.Items...)
	switch {
	case a.Status != StatusOK:
		k.done <- a.Err()
	case len(k.result.Items) > k.events || !a.More && len(k.result.Items) != k.events:
		err := fmt.Errorf("%w: %w: the appliance answered for %d of %d events", ErrUnknown, errProtocol, len(k.result.Items), k.events)
		l.forget(k) // or end, too, would tell the caller, who may not listen any more
		k.done <- err
		return err
	case !a.More:
		k.done <- k.complete()
	}
	return nil
}

// complete checks that an answer has what was wanted.
func (k *call) complete() error {
	for i, it := range k.result.Items {
		if k.want == WantAck && it.Leaf == nil || k.want == WantReceipt && len(it.Entry) == 0 {
			return fmt.Errorf("%w: %w: what was wanted is missing for event %d", ErrUnknown, errProtocol, i)
		}
	}
	return nil
}

// end ends the connection; callers that wait learn that their outcome is unknown.
func (l *link) end(why error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return
	}
	l.err = fmt.Errorf("%w: the connection ended: %w", ErrUnknown, why)
	for id, k := range l.waiting {
		k.done <- l.err
		delete(l.waiting, id)
	}
	close(l.lost)
	_ = l.conn.Close() // it is of no use any more
}
