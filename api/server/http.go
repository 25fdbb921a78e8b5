package server

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"bulla/api"
	"bulla/ledger"
	"bulla/record"
	"bulla/store"
)

// Bounds of http.sock.
const (
	headerTime = 10 * time.Second
	bodyTime   = 60 * time.Second
	idleTime   = 2 * time.Minute
	maxHeader  = 16 << 10
	chunk      = 1000 // lines of application/x-ndjson that are appended together
	pageLimit  = 1000 // entries a page
	maxNonce   = 64
)

// callerKey finds a connection's peer in a request's context.
type callerKey struct{}

// serveHTTP serves http.sock until ctx ends.
func (s *server) serveHTTP(ctx context.Context, l net.Listener) error {
	h := &http.Server{
		Handler:           s.routes(),
		ReadHeaderTimeout: headerTime,
		IdleTimeout:       idleTime,
		MaxHeaderBytes:    maxHeader,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			caller, err := peer(c)
			if err != nil {
				s.cfg.Log.Error("a peer of http.sock is unknown", "error", err)
				return ctx
			}
			return context.WithValue(ctx, callerKey{}, caller)
		},
	}
	done := make(chan error, 1)
	go func() { done <- h.Serve(l) }()
	select {
	case err := <-done:
		return fmt.Errorf("serving http.sock: %w", err)
	case <-ctx.Done():
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
	defer cancel()
	if err := h.Shutdown(drain); err != nil {
		return h.Close()
	}
	return nil
}

// route is one operation of http.sock. With a log, it also exists below /logs/{name}/.
type route struct {
	method, path string
	log          bool
	handle       func(*call) error
}

// call is one request being served.
type call struct {
	s      *server
	w      http.ResponseWriter
	r      *http.Request
	caller *ledger.Caller
	log    *Log
}

// Routes of http.sock; docs/openapi.yaml describes each.
func (s *server) table() []route {
	return []route{
		{"POST", "/v1/events", true, (*call).appendEvents},
		{"GET", "/v1/entries", true, (*call).entries},
		{"GET", "/v1/entries/{index}", true, (*call).entry},
		{"GET", "/v1/entries/{index}/proof", true, (*call).proof},
		{"GET", "/v1/seals", true, (*call).seals},
		{"POST", "/v1/seals", false, (*call).seal},
		{"POST", "/v1/challenge", false, (*call).challenge},
		{"GET", "/v1/status", false, (*call).status},
		{"GET", "/checkpoint", true, (*call).checkpoint},
		{"GET", "/tile/{path...}", true, (*call).tile},
		{"GET", "/metrics", false, (*call).metrics},
		{"GET", "/health/alive", false, (*call).alive},
		{"GET", "/health/ready", false, (*call).ready},
		{"GET", "/health/state", false, (*call).state},
	}
}

func (s *server) routes() http.Handler {
	methods := map[string][]string{}
	handlers := map[string]http.HandlerFunc{}
	for _, r := range s.table() {
		paths := []string{r.path}
		if r.log {
			paths = append(paths, "/logs/{name}"+r.path)
		}
		for _, p := range paths {
			methods[p] = append(methods[p], r.method)
			handlers[r.method+" "+p] = s.handler(r)
		}
	}
	mux := http.NewServeMux()
	for p, allowed := range methods {
		mux.HandleFunc(p, func(w http.ResponseWriter, r *http.Request) {
			method := r.Method
			if method == http.MethodHead {
				method = http.MethodGet
			}
			h, ok := handlers[method+" "+p]
			if !ok {
				w.Header().Set("Allow", strings.Join(allowed, ", "))
				fail(w, http.StatusMethodNotAllowed, &ledger.Refusal{Code: record.CodeInvalid, Message: fmt.Sprintf("%s is not possible here: use %s", r.Method, strings.Join(allowed, " or "))})
				return
			}
			h(w, r)
		})
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fail(w, http.StatusNotFound, &ledger.Refusal{Code: record.CodeInvalid, Message: "there is nothing at this path; docs/openapi.yaml lists what there is"})
	})
	return mux
}

func (s *server) handler(rt route) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		c := &call{s: s, w: w, r: r}
		var ok bool
		if c.caller, ok = r.Context().Value(callerKey{}).(*ledger.Caller); !ok {
			c.answer(&ledger.Refusal{Code: record.CodeForbidden, Message: "the kernel did not say who is calling"})
			return
		}
		if rt.log {
			if err := c.pick(r.PathValue("name")); err != nil {
				c.answer(err)
				return
			}
		}
		if err := rt.handle(c); err != nil {
			c.answer(err)
		}
	}
}

// errNotFound makes an answer 404.
var errNotFound = errors.New("not found")

// pick finds the log that a path names; bare paths need a single one.
func (c *call) pick(name string) error {
	logs := c.s.cfg.Logs
	if name == "" && len(logs) == 1 {
		c.log = &logs[0]
		return nil
	}
	for i := range logs {
		if logs[i].Name == name {
			c.log = &logs[i]
			return nil
		}
	}
	if name == "" {
		return fmt.Errorf("%w: there are several logs: use /logs/NAME%s", errNotFound, c.r.URL.Path)
	}
	return fmt.Errorf("%w: there is no log %q", errNotFound, clip(name))
}

// answer writes an error.
func (c *call) answer(err error) {
	var r *ledger.Refusal
	var field *record.FieldError
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &r):
	case errors.As(err, &field):
		r = invalid(err)
	case errors.Is(err, io.ErrUnexpectedEOF):
		r = &ledger.Refusal{Code: record.CodeInvalid, Message: "the body ends early"}
	case errors.As(err, &large):
		r = &ledger.Refusal{Code: record.CodeTooLarge, Message: fmt.Sprintf("the body is larger than %d bytes", large.Limit)}
	case errors.Is(err, errNotFound), errors.Is(err, store.ErrNotFound):
		fail(c.w, http.StatusNotFound, &ledger.Refusal{Code: record.CodeInvalid, Message: err.Error()})
		return
	case errors.Is(err, ledger.ErrUnknown):
		fail(c.w, http.StatusGatewayTimeout, &ledger.Refusal{Code: "unknown", Message: err.Error()})
		return
	default:
		r = &ledger.Refusal{Code: record.CodeInternal, Message: err.Error()}
	}
	fail(c.w, statusOf(r.Code), r)
}

// statusOf maps a refusal's code to HTTP.
func statusOf(code record.Code) int {
	switch code {
	case record.CodeInvalid:
		return http.StatusBadRequest
	case record.CodeTooLarge:
		return http.StatusRequestEntityTooLarge
	case record.CodeForbidden:
		return http.StatusForbidden
	case record.CodeConflict, record.CodeStale:
		return http.StatusConflict
	case record.CodeBusy:
		return http.StatusTooManyRequests
	case record.CodeInternal:
		return http.StatusInternalServerError
	}
	return http.StatusServiceUnavailable
}

func fail(w http.ResponseWriter, status int, r *ledger.Refusal) {
	if r.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.FormatInt(int64((r.RetryAfter+time.Second-1)/time.Second), 10))
	}
	writeJSON(w, status, api.Failure{Error: api.FailureDetail{Code: r.Code, Message: r.Message, Field: r.Field}})
}

// mayRead refuses callers without a role that reads entries.
func (c *call) mayRead() error {
	r := c.log.Ledger.State().Roles(c.caller.UID, c.caller.Groups)
	if r.Auditor || r.Operator || r.Officer {
		return nil
	}
	return &ledger.Refusal{Code: record.CodeForbidden, Message: fmt.Sprintf("uid %d may not read entries of %s: its policy makes it neither auditor, operator nor officer", c.caller.UID, c.log.Ledger.Origin())}
}

// mayOperate refuses callers who may not ask for seals.
func (c *call) mayOperate() error {
	for _, l := range c.s.cfg.Logs {
		if r := l.Ledger.State().Roles(c.caller.UID, c.caller.Groups); r.Operator || r.Auditor || r.Officer {
			return nil
		}
	}
	return &ledger.Refusal{Code: record.CodeForbidden, Message: fmt.Sprintf("uid %d may not ask for seals: no log's policy makes it auditor, operator or officer", c.caller.UID)}
}

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

func (c *call) appendJSON() error {
	if err := http.NewResponseController(c.w).SetReadDeadline(time.Now().Add(bodyTime)); err != nil {
		return err
	}
	if err := c.s.memory.take(c.r.Context(), api.MaxFrame); err != nil {
		return err
	}
	defer c.s.memory.put(api.MaxFrame)
	body, err := io.ReadAll(http.MaxBytesReader(c.w, c.r.Body, api.MaxFrame))
	if err != nil {
		return err
	}
	body = bytes.TrimSpace(body)
	events, err := api.ParseEvents(body)
	if err != nil {
		return err
	}
	receipts, err := c.take(events)
	if err != nil {
		return err
	}
	c.w.Header().Set("Content-Type", "application/json")
	c.w.WriteHeader(http.StatusCreated)
	out := bytes.Join(receipts, []byte(","))
	if body[0] == '[' {
		out = append(append([]byte{'['}, out...), ']')
	}
	_, _ = c.w.Write(append(out, '\n')) // the client may have gone; the events are in the log
	return nil
}

// take appends events and returns their receipts as JSON.
func (c *call) take(events []api.Event) ([][]byte, error) {
	in := make([]ledger.Event, len(events))
	for i, e := range events {
		in[i] = ledger.Event{Body: e.Body, Key: e.Key}
	}
	res, err := c.log.Ledger.Append(context.WithoutCancel(c.r.Context()), c.caller, in)
	if err != nil {
		var r *ledger.Refusal
		if len(events) == 1 && errors.As(err, &r) {
			r.Field = strings.TrimPrefix(r.Field, "events[0].")
		}
		return nil, err
	}
	out := make([][]byte, len(res.Items))
	for i := range res.Items {
		it, err := res.Item(i)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ledger.ErrUnknown, err)
		}
		proof, err := res.Proof(i)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ledger.ErrUnknown, err)
		}
		if out[i], err = (record.Receipt{Checkpoint: res.Checkpoint, Entry: it.Entry, Index: it.Index, Proof: proof}).MarshalJSON(); err != nil {
			return nil, fmt.Errorf("%w: %w", ledger.ErrUnknown, err)
		}
	}
	return out, nil
}

// appendLines takes a stream of events, one a line, and answers each with a line: its receipt, or an error. Lines are appended in
// chunks that are atomic by themselves; a bad line refuses its chunk, and the stream ends there.
func (c *call) appendLines() error {
	rc := http.NewResponseController(c.w)
	if err := rc.EnableFullDuplex(); err != nil {
		return err
	}
	c.w.Header().Set("Content-Type", "application/x-ndjson")
	lines := bufio.NewScanner(c.r.Body)
	lines.Buffer(make([]byte, 0, 64<<10), 512<<10)
	n := 0
	for more := true; more; {
		var events []api.Event
		size := 0
		for len(events) < chunk && size < 1<<20 {
			if err := rc.SetReadDeadline(time.Now().Add(bodyTime)); err != nil {
				return err
			}
			if more = lines.Scan(); !more {
				break
			}
			n++
			line := bytes.Clone(bytes.TrimSpace(lines.Bytes()))
			if len(line) == 0 {
				continue
			}
			body, key, err := record.CanonicalEvent(line)
			if err != nil {
				return c.line(fmt.Errorf("line %d: %w", n, err))
			}
			events = append(events, api.Event{Body: body, Key: key})
			size += len(body)
		}
		if len(events) == 0 {
			break
		}
		receipts, err := c.take(events)
		if err != nil {
			return c.line(err)
		}
		for _, r := range receipts {
			if _, err := c.w.Write(append(r, '\n')); err != nil {
				return nil // the client has gone
			}
		}
		if err := rc.Flush(); err != nil {
			return nil
		}
	}
	if err := lines.Err(); err != nil {
		return c.line(fmt.Errorf("line %d: %w", n+1, err))
	}
	return nil
}

// line writes an error as a line of its own: the status was sent long ago.
func (c *call) line(err error) error {
	r := invalid(err)
	var refusal *ledger.Refusal
	if errors.As(err, &refusal) {
		r = refusal
	}
	if errors.Is(err, ledger.ErrUnknown) {
		r.Code = "unknown"
	}
	b, err := json.Marshal(api.Failure{Error: api.FailureDetail{Code: r.Code, Message: r.Message, Field: r.Field}})
	if err != nil {
		return err
	}
	_, _ = c.w.Write(append(b, '\n'))
	return nil
}

// entries pages through the log.
func (c *call) entries() error {
	if err := c.mayRead(); err != nil {
		return err
	}
	from, err := c.query("from", 0, record.MaxInt)
	if err != nil {
		return err
	}
	limit, err := c.query("limit", 100, pageLimit)
	if err != nil {
		return err
	}
	size := c.log.Ledger.Size()
	entries, err := c.log.Ledger.Entries(from, int(max(limit, 1)))
	if err != nil {
		return err
	}
	page := api.Page{Entries: make([]json.RawMessage, len(entries)), Size: size}
	for i, e := range entries {
		page.Entries[i] = e
	}
	if next := from + uint64(len(entries)); len(entries) > 0 && next < size {
		page.Next = &next
	}
	writeJSONCompact(c.w, page)
	return nil
}

func writeJSONCompact(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	_ = e.Encode(v) // the client may have gone
}

func (c *call) query(name string, missing, limit uint64) (uint64, error) {
	v := c.r.URL.Query().Get(name)
	if v == "" {
		return missing, nil
	}
	n, err := strconv.ParseUint(v, 10, 64)
	if err != nil || n > limit {
		return 0, &ledger.Refusal{Code: record.CodeInvalid, Field: name, Message: fmt.Sprintf("must be a number from 0 to %d", limit)}
	}
	return n, nil
}

func (c *call) index() (uint64, error) {
	n, err := strconv.ParseUint(c.r.PathValue("index"), 10, 63)
	if err != nil {
		return 0, &ledger.Refusal{Code: record.CodeInvalid, Field: "index", Message: "must be a number"}
	}
	if n >= c.log.Ledger.Size() {
		return 0, fmt.Errorf("%w: the log has no entry %d", errNotFound, n)
	}
	return n, nil
}

// entry writes an entry's exact bytes.
func (c *call) entry() error {
	if err := c.mayRead(); err != nil {
		return err
	}
	i, err := c.index()
	if err != nil {
		return err
	}
	b, err := c.log.Ledger.Entry(i)
	if err != nil {
		return err
	}
	c.w.Header().Set("Content-Type", "application/json")
	_, _ = c.w.Write(b)
	return nil
}

// proof writes an entry's receipt under the current checkpoint.
func (c *call) proof() error {
	if err := c.mayRead(); err != nil {
		return err
	}
	i, err := c.index()
	if err != nil {
		return err
	}
	entry, err := c.log.Ledger.Entry(i)
	if err != nil {
		return err
	}
	signed := c.log.Ledger.Checkpoint()
	text, _, _ := strings.Cut(string(signed), "\n\n")
	head, err := record.ParseCheckpoint(text + "\n")
	if err != nil {
		return err
	}
	proof, err := c.log.Ledger.Proof(i, head.Size)
	if err != nil {
		return err
	}
	r := record.Receipt{Checkpoint: signed, Entry: entry, Index: i, Proof: proof}
	if strings.Contains(c.r.Header.Get("Accept"), "text/plain") {
		c.w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = c.w.Write(r.TLogProof())
		return nil
	}
	b, err := r.MarshalJSON()
	if err != nil {
		return err
	}
	c.w.Header().Set("Content-Type", "application/json")
	_, _ = c.w.Write(append(b, '\n'))
	return nil
}

// seals lists where the seals are.
func (c *call) seals() error {
	if err := c.mayRead(); err != nil {
		return err
	}
	from, err := c.query("from", 0, record.MaxInt)
	if err != nil {
		return err
	}
	limit, err := c.query("limit", 100, pageLimit)
	if err != nil {
		return err
	}
	indices, err := c.log.Ledger.Kind(record.KindSeal, from, int(max(limit, 1)))
	if err != nil {
		return err
	}
	out := api.Seals{Indices: indices}
	if out.Indices == nil {
		out.Indices = []uint64{}
	}
	writeJSON(c.w, http.StatusOK, out)
	return nil
}

// seal makes a seal now.
func (c *call) seal() error { return c.makeSeal(ledger.ReasonDemand, nil) }

// challenge makes a seal whose statement carries the caller's nonce.
func (c *call) challenge() error {
	body, err := io.ReadAll(http.MaxBytesReader(c.w, c.r.Body, 4096))
	if err != nil {
		return err
	}
	canonical, err := record.Canonicalize(body, 1)
	if err != nil {
		return err
	}
	var in api.Challenge
	err = record.UnmarshalCanonical(canonical, &in)
	var field *record.FieldError
	switch {
	case errors.As(err, &field) && field.Field == "nonce", err == nil && (len(in.Nonce) < 8 || len(in.Nonce) > maxNonce):
		return &ledger.Refusal{Code: record.CodeInvalid, Field: "nonce", Message: fmt.Sprintf("must be 8 to %d bytes in standard base64, padded, in one line", maxNonce)}
	case err != nil:
		return err
	}
	return c.makeSeal(ledger.ReasonChallenge, in.Nonce)
}

func (c *call) makeSeal(reason string, nonce []byte) error {
	if err := c.mayOperate(); err != nil {
		return err
	}
	if c.s.cfg.Seal == nil {
		return &ledger.Refusal{Code: record.CodeTPM, Message: "the appliance has no TPM"}
	}
	number, err := c.s.cfg.Seal(c.r.Context(), reason, nonce)
	if err != nil {
		return &ledger.Refusal{Code: record.CodeTPM, Message: err.Error(), RetryAfter: time.Second}
	}
	out := api.Sealed{Number: number, Entries: map[string]uint64{}}
	for _, l := range c.s.cfg.Logs {
		if i, ok, err := l.Ledger.LastKind(record.KindSeal); err == nil && ok {
			out.Entries[l.Name] = i
		}
	}
	if nonce != nil {
		out.Nonce = base64.StdEncoding.EncodeToString(nonce)
	}
	writeJSON(c.w, http.StatusCreated, out)
	return nil
}

// checkpoint writes the signed note.
func (c *call) checkpoint() error {
	c.w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	c.w.Header().Set("Cache-Control", "no-cache")
	_, _ = c.w.Write(c.log.Ledger.Checkpoint())
	return nil
}

// tile writes a tile of hashes, or a bundle of entries (C2SP tlog-tiles).
func (c *call) tile() error {
	t, err := api.ParseTilePath(c.r.PathValue("path"))
	if err != nil {
		return fmt.Errorf("%w: %w", errNotFound, err)
	}
	if t.L < 0 {
		if err := c.mayRead(); err != nil {
			return err
		}
	}
	// A tile exists as far as the current checkpoint reaches.
	level := max(t.L, 0)
	if have := c.log.Ledger.Size() >> (8 * level); uint64(t.N)<<8+uint64(t.W) > have {
		return fmt.Errorf("%w: the log does not reach this tile", errNotFound)
	}
	b, err := c.log.Ledger.Tile(tlog.Tile{H: 8, L: t.L, N: t.N, W: t.W})
	if err != nil {
		return err
	}
	c.w.Header().Set("Content-Type", "application/octet-stream")
	c.w.Header().Set("Cache-Control", "max-age=31536000, immutable")
	_, _ = c.w.Write(b)
	return nil
}
