package server

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
	"time"

	"bulla/api"
	"bulla/ledger"
	"bulla/record"
)

// appendEvents takes one event or an array, all or none, or lines of events.
func (c *call) appendEvents() error {
	kind, _, err := mime.ParseMediaType(c.r.Header.Get("Content-Type"))
	if err != nil {
		return &ledger.Refusal{Code: record.CodeInvalid, Field: "Content-Type", Message: "must be application/json or application/x-ndjson"}
	}
	switch kind {
	case "application/json":
		return c.appendJSON()
	case "application/x-ndjson":
		return c.appendLines()
	}
	return &ledger.Refusal{Code: record.CodeInvalid, Field: "Content-Type", Message: fmt.Sprintf("%q is not application/json or application/x-ndjson", clip(kind))}
}

// appendJSON takes one event, or an array of them, all or none. The answer has the same shape.
func (c *call) appendJSON() error {
	body, free, err := c.body(api.MaxFrame)
	if err != nil {
		return err
	}
	defer free()
	events, array, err := api.ParseEvents(bytes.TrimSpace(body))
	if err != nil {
		c.s.metrics.answered(c.log.Name, invalid(err).Code)
		return err
	}
	room := answerRoom(events, api.WantReceipt)
	if !c.s.http.take(c.caller.UID, room, room <= freeSize) {
		return busy(c.s.limits.backoff, "too many answers wait to be read")
	}
	defer c.s.http.put(c.caller.UID, room)
	res, err := c.take(events)
	if err != nil {
		var r *ledger.Refusal
		if !array && errors.As(err, &r) {
			r.Field = strings.TrimPrefix(r.Field, "events[0].")
		}
		return err
	}
	open, comma, end := "", "", "\n"
	if array {
		open, comma, end = "[", ",", "]\n"
	}
	out, err := receipts([]byte(open), res, comma)
	if err != nil {
		return err
	}
	c.w.Header().Set("Content-Type", "application/json")
	c.w.WriteHeader(http.StatusCreated)
	return c.write(append(out, end...))
}

// take appends events to the log of the call. A client that goes away does not cancel.
func (c *call) take(events []api.Event) (*ledger.Result, error) {
	start := time.Now()
	ctx, cancel := context.WithCancel(context.WithoutCancel(c.r.Context()))
	defer cancel()
	stop := context.AfterFunc(c.s.drain, cancel)
	defer stop()
	res, err := c.log.Ledger.Append(ctx, c.caller, ledgerEvents(events))
	c.s.metrics.appended(c.log.Name, err, time.Since(start))
	return res, err
}

// receipts appends the receipts of a result to dst, with a separator between them.
func receipts(dst []byte, res *ledger.Result, separator string) ([]byte, error) {
	for i := range res.Items {
		it, err := item(res, i, api.WantReceipt)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ledger.ErrUnknown, err) // it was taken; only the proof is missing
		}
		if i > 0 {
			dst = append(dst, separator...)
		}
		dst = api.AppendReceipt(dst, res.Checkpoint, &it)
	}
	return dst, nil
}

// Bounds of a stream of lines.
const (
	chunkLines = 1000     // lines that are appended together
	chunkBytes = 1 << 20  // their bytes
	lineBuffer = 64 << 10 // what is read ahead
)

// lines is a stream of events, one a line, being appended.
type lines struct {
	*call
	rc *http.ResponseController
	r  *bufio.Reader
	n  int // lines read
}

// appendLines takes a stream of events, one a line, and answers each with a line: its receipt, or an error, which ends the stream. What
// has come when the answers before are written is appended together, all or none.
func (c *call) appendLines() error {
	if !c.s.http.take(c.caller.UID, lineBuffer, false) {
		return busy(c.s.limits.backoff, "too much is waiting already")
	}
	defer c.s.http.put(c.caller.UID, lineBuffer)
	c.w.Header().Set("Content-Type", "application/x-ndjson")
	c.w.Header().Set("Connection", "close") // net/http cannot go on with a connection of which a body in full duplex was left unread
	l := &lines{call: c, rc: http.NewResponseController(c.w), r: bufio.NewReaderSize(c.r.Body, lineBuffer)}
	if err := l.rc.EnableFullDuplex(); err != nil {
		return err
	}
	for {
		end, err := l.chunk()
		if err != nil {
			return l.fail(err)
		}
		if end {
			return nil
		}
	}
}

// fail ends the stream with an error, which is a line as the other answers are.
func (l *lines) fail(err error) error {
	r, _ := refusal(err)
	b := api.AppendString([]byte(`{"error":{"code":`), string(r.Code))
	b = api.AppendString(append(b, `,"message":`...), r.Message)
	if r.Field != "" {
		b = api.AppendString(append(b, `,"field":`...), r.Field)
	}
	return l.write(append(b, "}}\n"...))
}

// chunk appends the lines that are there, after waiting for the first. A bad line cuts the chunk before it.
func (l *lines) chunk() (end bool, err error) {
	var events []api.Event
	var numbers []int // of their lines
	claimed := 0
	defer func() { l.s.http.put(l.caller.UID, claimed) }()
	var bad error
	for len(events) < chunkLines && claimed < chunkBytes && (len(events) == 0 || l.lineWaits()) {
		line, err := l.line()
		if err != nil {
			bad = err
			break
		}
		if len(line) == 0 {
			continue
		}
		if !l.s.http.take(l.caller.UID, len(line), false) {
			bad = busy(l.s.limits.backoff, "too much is waiting already")
			break
		}
		claimed += len(line)
		body, key, err := record.CanonicalEvent(line)
		if err != nil {
			l.s.metrics.answered(l.log.Name, invalid(err).Code)
			bad = l.at(l.n, err)
			break
		}
		events, numbers = append(events, api.Event{Body: body, Key: key}), append(numbers, l.n)
	}
	if len(events) > 0 {
		if err := l.append(events, numbers); err != nil {
			return false, err
		}
	}
	if errors.Is(bad, io.EOF) {
		return true, nil
	}
	return false, bad
}

func (l *lines) append(events []api.Event, numbers []int) error {
	room := answerRoom(events, api.WantReceipt)
	if !l.s.http.take(l.caller.UID, room, room <= freeSize) {
		return busy(l.s.limits.backoff, "too many answers wait to be read")
	}
	defer l.s.http.put(l.caller.UID, room)
	res, err := l.take(events)
	if err != nil {
		return l.blame(numbers, err)
	}
	out, err := receipts(nil, res, "\n")
	if err != nil {
		return err
	}
	if err := l.write(append(out, '\n')); err != nil {
		return err
	}
	return l.rc.Flush()
}

// lineWaits reports whether a whole line can be read without waiting.
func (l *lines) lineWaits() bool {
	b, err := l.r.Peek(l.r.Buffered())
	return err == nil && bytes.IndexByte(b, '\n') >= 0
}

// line reads the next line, which may be empty, into memory of its own; io.EOF is the end.
func (l *lines) line() ([]byte, error) {
	if l.r.Buffered() == 0 { // between lines it may take longer than within one
		if err := l.rc.SetReadDeadline(time.Now().Add(l.s.limits.idle)); err != nil {
			return nil, err
		}
		if _, err := l.r.Peek(1); errors.Is(err, io.EOF) {
			return nil, io.EOF
		} else if err != nil {
			return nil, unfinished(err)
		}
	}
	var line []byte
	for {
		if !l.lineWaits() {
			if err := l.rc.SetReadDeadline(time.Now().Add(l.s.limits.frame)); err != nil {
				return nil, err
			}
		}
		part, err := l.r.ReadSlice('\n')
		if len(line)+len(part) > record.MaxEventSource+2 {
			return nil, l.at(l.n+1, &record.FieldError{Reason: fmt.Sprintf("more than %d bytes", record.MaxEventSource), TooLarge: true})
		}
		line = append(line, part...)
		switch {
		case err == nil, errors.Is(err, io.EOF) && len(line) > 0:
			l.n++
			return bytes.TrimSpace(line), nil
		case errors.Is(err, io.EOF):
			return nil, io.EOF
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, unfinished(err)
		}
	}
}

// at puts a line's number before what is wrong with it.
func (l *lines) at(n int, err error) error {
	r := *invalid(err)
	r.Message = fmt.Sprintf("line %d: %s", n, r.Message)
	return &r
}

// blame says of which line a refusal speaks; which of a chunk's events it was is in its field.
func (l *lines) blame(numbers []int, err error) error {
	var r *ledger.Refusal
	if !errors.As(err, &r) {
		return err
	}
	out := *r
	i := -1
	rest, ok := strings.CutPrefix(r.Field, "events[")
	if ok {
		if _, err := fmt.Sscanf(rest, "%d]", &i); err == nil && i >= 0 && i < len(numbers) {
			_, field, _ := strings.Cut(rest, "].")
			out.Field, out.Message = field, fmt.Sprintf("line %d: %s", numbers[i], r.Message)
		}
	}
	return &out
}
