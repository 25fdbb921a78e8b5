package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"bulla/api"
	"bulla/record"
)

// appendFlags is what `bulla append` is told.
type appendFlags struct {
	kind      string
	source    string
	actor     string
	actorName string
	target    string
	outcome   string
	severity  int
	session   string
	txn       string
	id        string
	data      []string
	event     string
	lines     bool
	latin1    bool
	follow    bool
	stream    string
	receipts  string
	retry     time.Duration
}

func (t *tool) appendCommand() *cobra.Command {
	var f appendFlags
	cmd := &cobra.Command{
		Use:   "append [FILE]",
		Short: "Append events, and print where they are",
		Long: `append appends events to a log and prints, for each, its index and the leaf hash of its entry once it is durable and signed.

  --type T ...       one event, made of flags
  --event JSON       one event, given as JSON
  [FILE]             one event a line, as JSON (NDJSON); without FILE or with - from standard input
  --lines --type T   one event of type T a line of plain text, in data.line; empty lines are left out

--receipts DIR writes each event's receipt as INDEX.json and INDEX.tlog-proof.

A line that is not UTF-8 ends the run with its number; --latin1 takes every byte for a character of ISO 8859-1 instead. --follow goes
on as the file grows or is replaced, like tail -F, until it is interrupted.

Repeating is safe: events without an id or stream of their own are numbered in a stream, named after the file's first line (or by
--stream), so that appending the same file again changes nothing and gives the same places, as long as the appliance remembers them
(the last million entries). When the outcome of a request is unknown, or the appliance is busy or cannot sign for the moment, the
request is repeated for --retry.`,
		Example: `  bulla append --type auth.login --actor alice --outcome success --data method=publickey
  bulla append --lines --type nginx.access --follow /var/log/nginx/access.log
  journalctl -o cat -f | bulla append --lines --type journal.line --stream journal-2026-11-23`,
		Args: args(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, given []string) error {
			path := ""
			if len(given) == 1 {
				path = given[0]
			}
			if err := f.check(path); err != nil {
				return err
			}
			return t.append(cmd.Context(), f, path)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.kind, "type", "", "what happened, as auth.login")
	flags.StringVar(&f.source, "source", "", "the program or system that speaks")
	flags.StringVar(&f.actor, "actor", "", "identifier of who did it")
	flags.StringVar(&f.actorName, "actor-name", "", "name of who did it")
	flags.StringVar(&f.target, "target", "", "identifier of what it was done to")
	flags.StringVar(&f.outcome, "outcome", "", "success, failure or unknown")
	flags.IntVar(&f.severity, "severity", 0, "1 to 24, as in OpenTelemetry")
	flags.StringVar(&f.session, "session", "", "session that it belongs to")
	flags.StringVar(&f.txn, "transaction", "", "transaction that it belongs to")
	flags.StringVar(&f.id, "id", "", "your own identifier; repeating it repeats nothing (default: a random one)")
	flags.StringArrayVar(&f.data, "data", nil, "NAME=TEXT, or a JSON object; may be repeated")
	flags.StringVar(&f.event, "event", "", "a whole event as JSON")
	flags.BoolVar(&f.lines, "lines", false, "each line of plain text is an event")
	flags.BoolVar(&f.latin1, "latin1", false, "with --lines: bytes are ISO 8859-1, not UTF-8")
	flags.BoolVar(&f.follow, "follow", false, "go on as FILE grows, like tail -F")
	flags.StringVar(&f.stream, "stream", "", "name of the numbering of these events")
	flags.StringVar(&f.receipts, "receipts", "", "directory to write receipts to")
	flags.DurationVar(&f.retry, "retry", time.Minute, "how long to repeat a request whose outcome is unknown")
	return cmd
}

func (f *appendFlags) check(path string) error {
	single := f.event != "" || f.kind != "" && !f.lines
	switch {
	case f.event != "" && (f.kind != "" || f.lines):
		return usagef("--event is the whole event: leave --type and --lines out")
	case f.lines && f.kind == "":
		return usagef("--lines needs --type: what each line is, as nginx.access")
	case single && (path != "" || f.follow):
		return usagef("give one event by flags, or FILE with events; for plain lines add --lines")
	case f.follow && (path == "" || path == "-"):
		return usagef("--follow needs a FILE")
	case f.latin1 && !f.lines:
		return usagef("--latin1 is for --lines: JSON is UTF-8")
	case !f.lines && f.kind == "" && (len(f.data) > 0 || f.actor != "" || f.target != "" || f.outcome != ""):
		return usagef("an event by flags needs --type: what happened, as auth.login")
	}
	return nil
}

// append reads events and sends them in order; the lines are read while requests are under way.
func (t *tool) append(ctx context.Context, f appendFlags, path string) error {
	if f.receipts != "" {
		if err := os.MkdirAll(f.receipts, 0o755); err != nil {
			return err
		}
	}
	sign, _ := t.sockets()
	client, err := api.Dial(ctx, sign)
	if err != nil {
		return coded(exitUnavailable, fmt.Errorf("%w; see --socket", err))
	}
	defer client.Close() // everything sent was answered, or its outcome reported
	s := &sender{t: t, f: f, client: client, progress: t.progress("appended")}
	if terminal(t.out) {
		s.progress.w = nil // the answers themselves show it
	}
	if f.event != "" || f.kind != "" && !f.lines {
		event, err := f.single()
		if err != nil {
			return err
		}
		return s.send(ctx, []pending{{event: event}})
	}
	queue := make(chan pending, 10*batchEvents)
	reading, stop := context.WithCancel(ctx)
	defer stop()
	read := make(chan error, 1)
	go func() {
		defer close(queue)
		read <- f.read(reading, t, path, func(p pending) error {
			select {
			case queue <- p:
				return nil
			case <-reading.Done():
				return reading.Err()
			}
		})
	}()
	// An interrupt ends the reading. What was read is still sent, and answered.
	err = s.drain(context.WithoutCancel(ctx), queue)
	s.progress.clear()
	if err != nil {
		return err
	}
	switch err := <-read; {
	case ctx.Err() != nil && f.follow:
		return nil
	case ctx.Err() != nil:
		return coded(exitUnavailable, fmt.Errorf("interrupted%s", s.appended()))
	default:
		return err
	}
}

// read gives each event of the input to f.
func (f *appendFlags) read(ctx context.Context, t *tool, path string, give func(pending) error) error {
	n := numbering{flags: f, generation: -1}
	each := func(l line) error {
		p, err := n.event(l)
		if err != nil {
			return err
		}
		return give(p)
	}
	if path == "" || path == "-" {
		return eachLineFrom(ctx, t.in, each)
	}
	return eachLine(ctx, path, f.follow, each)
}

// numbering makes events of lines, and gives each that has none a place in a stream.
type numbering struct {
	flags      *appendFlags
	generation int
	stream     string
	next       int64
}

// event makes the event of a line.
func (n *numbering) event(l line) (pending, error) {
	if l.generation != n.generation {
		n.generation, n.next = l.generation, 0
		n.stream = n.flags.stream
		if n.stream == "" {
			n.stream = fingerprint(n.flags.kind, n.flags.source, string(l.text))
		} else if l.generation > 0 {
			n.stream = fmt.Sprintf("%s/%d", n.flags.stream, l.generation)
		}
	}
	if n.flags.lines {
		return n.plain(l)
	}
	body, key, err := record.CanonicalEvent(l.text)
	if err != nil && !bytes.HasPrefix(bytes.TrimSpace(l.text), []byte("{")) {
		return pending{}, usagef("line %d is no JSON object: for lines of plain text add --lines --type T", l.number)
	}
	if err != nil {
		return pending{}, usagef("line %d: %w", l.number, err)
	}
	if key.ID != "" || key.HasStream {
		return pending{event: body, line: l.number}, nil
	}
	e, err := record.ParseEvent(body)
	if err != nil {
		return pending{}, usagef("line %d: %w", l.number, err)
	}
	return n.number(e, l)
}

func (n *numbering) plain(l line) (pending, error) {
	text, err := l.decode(n.flags.latin1)
	if err != nil {
		return pending{}, err
	}
	data, err := record.MarshalCanonical(map[string]string{"line": text})
	if err != nil {
		return pending{}, usagef("line %d: %w", l.number, err)
	}
	return n.number(&record.Event{Type: n.flags.kind, Source: n.flags.source, Data: data}, l)
}

func (n *numbering) number(e *record.Event, l line) (pending, error) {
	e.Stream = &record.Stream{ID: n.stream, N: n.next}
	n.next++
	b, err := json.Marshal(e)
	if err != nil {
		return pending{}, fmt.Errorf("encoding an event: %w", err)
	}
	body, _, err := record.CanonicalEvent(b)
	if err != nil {
		return pending{}, usagef("line %d: %w", l.number, err)
	}
	return pending{event: body, line: l.number}, nil
}

// single is the event that flags or --event describe. It gets an identifier, so that repeating the request repeats nothing.
func (f *appendFlags) single() ([]byte, error) {
	e := &record.Event{}
	if f.event != "" {
		body, _, err := record.CanonicalEvent([]byte(f.event))
		if err != nil {
			return nil, usagef("--event: %w", err)
		}
		if e, err = record.ParseEvent(body); err != nil {
			return nil, usagef("--event: %w", err)
		}
	} else {
		data, err := parseData(f.data)
		if err != nil {
			return nil, err
		}
		*e = record.Event{Type: f.kind, Source: f.source, Outcome: f.outcome, Severity: f.severity, SessionID: f.session, TransactionID: f.txn, ID: f.id, Data: data}
		if f.actor != "" || f.actorName != "" {
			e.Actor = &record.Actor{ID: f.actor, Name: f.actorName}
		}
		if f.target != "" {
			e.Target = &record.Target{ID: f.target}
		}
	}
	if e.ID == "" && e.Stream == nil {
		e.ID = "bulla-" + rand.Text()
	}
	b, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("encoding the event: %w", err)
	}
	body, _, err := record.CanonicalEvent(b)
	if err != nil {
		return nil, usagef("%w", err)
	}
	return body, nil
}

// parseData makes the event's data of NAME=TEXT and JSON objects.
func parseData(given []string) (json.RawMessage, error) {
	if len(given) == 0 {
		return nil, nil
	}
	out := map[string]json.RawMessage{}
	for _, d := range given {
		if strings.HasPrefix(strings.TrimSpace(d), "{") {
			canonical, err := record.Canonicalize([]byte(d), record.MaxDepth)
			if err != nil {
				return nil, usagef("--data: %w", err)
			}
			if err := json.Unmarshal(canonical, &out); err != nil {
				return nil, usagef("--data: %w", err)
			}
			continue
		}
		name, value, ok := strings.Cut(d, "=")
		if !ok || name == "" {
			return nil, usagef("--data %q: write NAME=TEXT or a JSON object", d)
		}
		text, err := json.Marshal(value)
		if err != nil {
			return nil, usagef("--data %q: %w", d, err)
		}
		out[name] = text
	}
	return json.Marshal(out)
}

// pending is an event to be sent, canonical.
type pending struct {
	event []byte
	line  int // of the input; 0: there is none
}

// A request holds what is waiting, up to these.
const (
	batchEvents = 1000
	batchBytes  = 1 << 20
)

// retryEvery is the least time between two attempts.
const retryEvery = 100 * time.Millisecond

// sender sends events in order, one request at a time: so no number of a stream overtakes another.
type sender struct {
	t        *tool
	f        appendFlags
	client   *api.Client
	done     uint64
	progress *progress
}

// drain sends what comes until the queue closes.
func (s *sender) drain(ctx context.Context, queue <-chan pending) error {
	for first := range queue {
		batch, size := []pending{first}, len(first.event)
	more:
		for len(batch) < batchEvents && size < batchBytes {
			select {
			case p, ok := <-queue:
				if !ok {
					break more
				}
				batch, size = append(batch, p), size+len(p.event)
			default:
				break more
			}
		}
		if err := s.send(ctx, batch); err != nil {
			return err
		}
	}
	return nil
}

// send sends one request until it is answered for good, and prints the answer.
func (s *sender) send(ctx context.Context, batch []pending) error {
	events := make([][]byte, len(batch))
	for i, p := range batch {
		events[i] = p.event
	}
	want := api.WantAck
	if s.f.receipts != "" || s.t.json {
		want = api.WantReceipt
	}
	for give := time.Now().Add(s.f.retry); ; {
		res, err := s.request(ctx, want, events)
		if err == nil {
			return s.print(batch, res)
		}
		// Repeating is safe: every event has an identifier or a number.
		wait, again := api.Retry(err)
		wait = max(wait, retryEvery)
		if !again || time.Now().Add(wait).After(give) || ctx.Err() != nil {
			return s.describe(batch, err)
		}
		if err := sleep(ctx, wait); err != nil {
			return s.describe(batch, err)
		}
	}
}

func (s *sender) request(ctx context.Context, want string, events [][]byte) (*api.Result, error) {
	res, err := s.client.AppendBatch(ctx, s.t.log, want, events...)
	if err == nil && len(res.Items) != len(events) {
		return nil, &api.Refusal{Code: record.CodeInvalid, Message: fmt.Sprintf("the appliance answered for %d of %d events", len(res.Items), len(events))}
	}
	return res, err
}

// describe is what a user is told of a request that failed for good.
func (s *sender) describe(batch []pending, err error) error {
	r := (*api.Refusal)(nil)
	if errors.As(err, &r) && r.Code == record.CodeInvalid && r.Field == "log" {
		return usagef("--log: %s", printable(r.Message, 2000))
	}
	where := ""
	if first, last := batch[0].line, batch[len(batch)-1].line; first > 0 {
		where = fmt.Sprintf("lines %d to %d: ", first, last)
		if r != nil {
			if i, ok := eventIndex(r.Field); ok && i < len(batch) {
				where = fmt.Sprintf("line %d: ", batch[i].line)
			}
		}
	}
	return coded(exitUnavailable, fmt.Errorf("%s%w%s", where, err, s.appended()))
}

func (s *sender) appended() string {
	if s.done == 0 {
		return ""
	}
	return fmt.Sprintf(" (%d events before were appended)", s.done)
}

// eventIndex reads the 3 of `events[3].type`.
func eventIndex(field string) (int, bool) {
	rest, ok := strings.CutPrefix(field, "events[")
	number, _, found := strings.Cut(rest, "]")
	i, err := strconv.Atoi(number)
	return i, ok && found && err == nil
}

// print checks the answer against what was sent, and shows it.
func (s *sender) print(batch []pending, res *api.Result) error {
	for i, it := range res.Items {
		if it.Leaf == nil {
			r := res.Receipt(i)
			if err := s.receipt(r, batch[i]); err != nil {
				return err
			}
			leaf := record.LeafHash(r.Entry)
			it.Leaf = &leaf
		}
		s.done++
		if !s.t.json {
			if _, err := fmt.Fprintf(s.t.out, "%d %s\n", it.Index, base64.StdEncoding.EncodeToString(it.Leaf[:])); err != nil {
				return err
			}
		}
	}
	s.progress.show(s.done, 0)
	return nil
}

// receipt checks that a receipt is over the event that was sent, and writes or prints it. Whether the log's key signed it can be
// told only with a policy: `bulla verify --receipt` does.
func (s *sender) receipt(r record.Receipt, p pending) error {
	if err := checkReceipt(r, p.event); err != nil {
		return coded(exitTampered, fmt.Errorf("entry %d: %w", r.Index, err))
	}
	b, err := r.MarshalJSON()
	if err != nil {
		return err
	}
	if s.t.json {
		if _, err := fmt.Fprintf(s.t.out, "%s\n", b); err != nil {
			return err
		}
	}
	if s.f.receipts == "" {
		return nil
	}
	return writeReceipt(s.f.receipts, r, b)
}

// writeReceipt writes both forms of a receipt. They are not synced one by one: a receipt that a crash of this machine takes away is
// had again by appending the same event again.
func writeReceipt(dir string, r record.Receipt, canonical []byte) error {
	name := filepath.Join(dir, strconv.FormatUint(r.Index, 10))
	if err := os.WriteFile(name+".tlog-proof", r.TLogProof(), 0o644); err != nil {
		return fmt.Errorf("writing a receipt: %w", err)
	}
	if err := os.WriteFile(name+".json", canonical, 0o644); err != nil {
		return fmt.Errorf("writing a receipt: %w", err)
	}
	return nil
}
