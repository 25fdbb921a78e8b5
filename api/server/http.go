package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"path"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"bulla/api"
	"bulla/ceremony"
	"bulla/ledger"
	"bulla/record"
	"bulla/store"
)

// maxTurned bounds the connections beyond a uid's bound that wait to be told so: they take room from others while they send nothing.
const maxTurned = 16

// maxHeader bounds the headers of a request, in bytes.
const maxHeader = 16 << 10

// guest is who is at the other end of a connection to http.sock.
type guest struct {
	caller *ledger.Caller
	full   bool // its uid has too many connections
}

// guestKey finds a connection's guest in a request's context.
type guestKey struct{}

// serveHTTP serves http.sock until ctx ends, and then lets the requests under way finish.
func (s *server) serveHTTP(ctx context.Context, l *limited) error {
	h := &http.Server{
		Handler:           s.handler(),
		ReadHeaderTimeout: s.limits.hello,
		IdleTimeout:       s.limits.idle,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelWarn),
		BaseContext:       func(net.Listener) context.Context { return s.cut },
		ConnContext:       func(ctx context.Context, c net.Conn) context.Context { return s.welcome(ctx, c.(*conn)) },
	}
	done := make(chan error, 1)
	go func() { done <- h.Serve(l) }()
	select {
	case err := <-done:
		return errors.Join(fmt.Errorf("serving http.sock: %w", err), l.Close())
	case <-ctx.Done():
	}
	if err := h.Shutdown(s.cut); err != nil {
		return h.Close() // it took too long
	}
	return nil
}

// welcome finds out who connected.
func (s *server) welcome(ctx context.Context, c *conn) context.Context {
	caller, err := peer(c)
	if err != nil {
		s.cfg.Log.Error("a peer of http.sock is unknown", "error", err)
		return ctx
	}
	g := &guest{caller: caller, full: !s.http.connect(caller.UID)}
	if !g.full {
		c.closed = func() { s.http.disconnect(caller.UID) }
		return context.WithValue(ctx, guestKey{}, g)
	}
	select {
	case s.turned <- struct{}{}:
		c.closed = func() { <-s.turned }
	default:
		_ = c.UnixConn.Close() // it sees the end instead; net/http closes what counts it
	}
	return context.WithValue(ctx, guestKey{}, g)
}

// route is one operation of http.sock. With a log, it also exists below /logs/{name}/.
type route struct {
	method, path string
	log          bool
	query        []string // parameters that it knows
	handle       func(*call) error
}

// routes of http.sock; docs/openapi.yaml describes each.
var routes = []route{
	{"POST", "/v1/events", true, nil, (*call).appendEvents},
	{"GET", "/v1/entries", true, []string{"from", "limit", "kind"}, (*call).entries},
	{"GET", "/v1/entries/{index}", true, nil, (*call).entry},
	{"GET", "/v1/entries/{index}/proof", true, nil, (*call).proof},
	{"GET", "/v1/search", true, append([]string{"from", "limit"}, api.QueryFields...), (*call).search},
	{"GET", "/v1/seals", true, []string{"from", "limit"}, (*call).seals},
	{"POST", "/v1/seals", false, nil, (*call).seal},
	{"POST", "/v1/challenge", false, nil, (*call).challenge},
	{"POST", "/v1/activation", false, nil, (*call).activate},
	{"GET", "/v1/governance", true, nil, (*call).governance},
	{"GET", "/v1/recovery", true, nil, (*call).recovery},
	{"POST", "/v1/proposals", true, nil, (*call).propose},
	{"POST", "/v1/approvals", true, nil, (*call).decide},
	{"POST", "/v1/proposals/{number}/enact", true, nil, (*call).enact},
	{"GET", "/v1/status", false, nil, (*call).status},
	{"POST", "/tsa", false, nil, (*call).timestamp},
	{"GET", "/checkpoint", true, nil, (*call).checkpoint},
	{"GET", "/tile/{path...}", true, nil, (*call).tile},
	{"GET", "/witness/{n}", true, nil, (*call).witness},
	{"GET", "/metrics", false, nil, (*call).metrics},
	{"GET", "/health/alive", false, nil, (*call).alive},
	{"GET", "/health/ready", false, nil, (*call).ready},
	{"GET", "/health/state", false, nil, (*call).state},
}

// call is one request being served.
type call struct {
	s      *server
	w      http.ResponseWriter
	r      *http.Request
	caller *ledger.Caller
	log    *Log
	gives  *disclosure // what the answer gives out of the log, if it does
}

// handler serves all routes.
func (s *server) handler() http.Handler {
	methods := map[string][]string{}
	byMethod := map[string]route{}
	for _, r := range routes {
		paths := []string{r.path}
		if r.log {
			paths = append(paths, "/logs/{name}"+r.path)
		}
		for _, p := range paths {
			methods[p] = append(methods[p], r.method)
			byMethod[r.method+" "+p] = r
		}
	}
	mux := http.NewServeMux()
	for p, allowed := range methods {
		mux.HandleFunc(p, func(w http.ResponseWriter, r *http.Request) {
			method := r.Method
			if method == http.MethodHead {
				method = http.MethodGet
			}
			rt, ok := byMethod[method+" "+p]
			if !ok {
				w.Header().Set("Allow", strings.Join(allowed, ", "))
				fail(w, http.StatusMethodNotAllowed, &ledger.Refusal{Code: record.CodeInvalid, Message: fmt.Sprintf("%s is not possible here: use %s", clip(r.Method), strings.Join(allowed, " or "))})
				return
			}
			s.serveRoute(rt, w, r)
		})
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// For the whole of it; what may be long sets its own while it writes.
		if err := http.NewResponseController(w).SetWriteDeadline(time.Now().Add(s.limits.body + sealTime + s.limits.write)); err != nil {
			s.cfg.Log.Debug("a connection to http.sock ended", "error", err)
			return
		}
		// A path that is not clean would be redirected; no path here is ever written in two ways.
		if _, pattern := mux.Handler(r); pattern == "" || path.Clean(r.URL.Path) != r.URL.Path {
			fail(w, http.StatusNotFound, &ledger.Refusal{Code: record.CodeInvalid, Message: "there is nothing at this path; docs/openapi.yaml lists what there is"})
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// serveRoute serves one request: it finds out who calls and which log is meant.
func (s *server) serveRoute(rt route, w http.ResponseWriter, r *http.Request) {
	c := &call{s: s, w: w, r: r}
	if err := c.prepare(rt); err != nil {
		c.answer(err)
		return
	}
	if err := rt.handle(c); err != nil {
		c.answer(err)
	}
}

func (c *call) prepare(rt route) error {
	g, ok := c.r.Context().Value(guestKey{}).(*guest)
	if !ok {
		return &ledger.Refusal{Code: record.CodeForbidden, Message: "the kernel did not say who is calling"}
	}
	if g.full {
		c.w.Header().Set("Connection", "close")
		return busy(c.s.limits.backoff, "too many connections")
	}
	c.caller = g.caller
	query, err := url.ParseQuery(c.r.URL.RawQuery)
	if err != nil { // URL.Query leaves out what it cannot read
		return &ledger.Refusal{Code: record.CodeInvalid, Message: "the query cannot be read: " + err.Error()}
	}
	for name, values := range query {
		if !slices.Contains(rt.query, name) {
			return &ledger.Refusal{Code: record.CodeInvalid, Field: name, Message: "unknown parameter"}
		}
		if len(values) > 1 {
			return &ledger.Refusal{Code: record.CodeInvalid, Field: name, Message: "is there twice"}
		}
	}
	if rt.log {
		return c.pick(c.r.PathValue("name"))
	}
	return nil
}

// errNotFound makes an answer 404.
var errNotFound = errors.New("not found")

// pick finds the log that a path names; bare paths need a single one.
func (c *call) pick(name string) error {
	logs := c.s.cfg.Logs
	for i := range logs {
		if logs[i].Name == name || name == "" && len(logs) == 1 {
			c.log = &logs[i]
			return nil
		}
	}
	if name == "" {
		return fmt.Errorf("%w: there are several logs: use /logs/NAME%s", errNotFound, c.r.URL.Path)
	}
	return fmt.Errorf("%w: there is no log %q", errNotFound, clip(name))
}

// refusal is what an error means to whoever called; unknown: it is not known whether the events were taken.
func refusal(err error) (r *ledger.Refusal, unknown bool) {
	var field *record.FieldError
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &r):
		return r, false
	case errors.As(err, &field):
		return invalid(err), false
	case errors.As(err, &large):
		return &ledger.Refusal{Code: record.CodeTooLarge, Message: fmt.Sprintf("the body is larger than %d bytes", large.Limit)}, false
	case errors.Is(err, ledger.ErrUnknown):
		return &ledger.Refusal{Code: api.CodeUnknown, Message: err.Error()}, true
	}
	return &ledger.Refusal{Code: record.CodeInternal, Message: err.Error()}, false
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

// busy asks to come back later.
func busy(wait time.Duration, why string) *ledger.Refusal {
	return &ledger.Refusal{Code: record.CodeBusy, Message: why, RetryAfter: wait}
}

// answer writes an error.
func (c *call) answer(err error) {
	if errors.Is(err, errNotFound) || errors.Is(err, store.ErrNotFound) {
		fail(c.w, http.StatusNotFound, &ledger.Refusal{Code: record.CodeInvalid, Message: err.Error()})
		return
	}
	r, _ := refusal(err)
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
	case api.CodeUnknown:
		return http.StatusGatewayTimeout
	}
	return http.StatusServiceUnavailable
}

// slowRetry is what Retry-After says, in seconds, where waiting alone does not help.
const slowRetry = 30

// fail writes a refusal. Those that may end by themselves say when to come back.
func fail(w http.ResponseWriter, status int, r *ledger.Refusal) {
	if status == http.StatusServiceUnavailable || status == http.StatusTooManyRequests {
		seconds := slowRetry
		if r.RetryAfter > 0 {
			seconds = int((r.RetryAfter + time.Second - 1) / time.Second)
		}
		w.Header().Set("Retry-After", strconv.Itoa(seconds))
	}
	writeJSON(w, status, api.Failure{Error: api.FailureDetail{Code: r.Code, Message: r.Message, Field: r.Field}})
}

// mayRead refuses callers without a role that reads entries. Checkpoints, tiles of hashes, status, health and metrics are for whoever
// may open the socket: they have nothing in them that a producer said. What is read of entries is recorded: see disclose.
func (c *call) mayRead() error {
	state := c.log.Ledger.State()
	r := state.Roles(c.caller.UID, c.caller.Groups)
	if r.Auditor || r.Operator || r.Officer {
		_, err := c.purpose()
		return err
	}
	why := fmt.Sprintf("uid %d may not read entries of %s: its policy makes it neither auditor, operator nor officer", c.caller.UID, c.log.Ledger.Origin())
	if !slices.ContainsFunc(state.Policy.Roles, func(r ceremony.Role) bool { return r.Name != ceremony.Producer }) {
		why += "; it has nobody in such a role"
	}
	return &ledger.Refusal{Code: record.CodeForbidden, Message: why}
}

// body reads a request's body of at most limit bytes. They count against the budget as they come, until free is called.
func (c *call) body(limit int64) (b []byte, free func(), err error) {
	rc := http.NewResponseController(c.w)
	if err := rc.SetReadDeadline(time.Now().Add(c.s.limits.body)); err != nil {
		return nil, nil, err
	}
	claimed := 0
	release := func() { c.s.http.put(c.caller.UID, claimed) }
	defer func() {
		if err != nil {
			release()
		}
	}()
	r := http.MaxBytesReader(c.w, c.r.Body, limit)
	for {
		if len(b) == cap(b) {
			more := max(4<<10, len(b))
			if !c.s.http.take(c.caller.UID, more, claimed+more <= freeSize) {
				return nil, nil, busy(c.s.limits.backoff, "too much is waiting already")
			}
			claimed += more
			b = slices.Grow(b, more)
		}
		n, err := r.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		if errors.Is(err, io.EOF) {
			return b, release, rc.SetReadDeadline(time.Time{})
		}
		if err != nil {
			return nil, nil, unfinished(err)
		}
	}
}

// unfinished is what an error in reading a body means to whoever sent it.
func unfinished(err error) error {
	var large *http.MaxBytesError
	if errors.As(err, &large) {
		return err
	}
	return &ledger.Refusal{Code: record.CodeInvalid, Message: "the body did not come to its end: " + err.Error(), Err: err}
}

// Readers is how many answers are read from logs at the same time; half of the processors stay for what is written. What is not in
// memory is read by page faults, during which a reader keeps one of Go's processors from everybody else: a process that serves needs
// so many more of them than the machine has.
func Readers() int { return max(2, runtime.NumCPU()/2) }

// send writes what get reads from the log, which may be much: it counts until it is written.
func (c *call) send(kind string, get func() ([]byte, error)) error {
	select {
	case c.s.reading <- struct{}{}:
	case <-c.r.Context().Done():
		return c.r.Context().Err()
	}
	b, err := get()
	ok := err == nil && c.s.http.take(c.caller.UID, len(b), len(b) <= freeSize)
	<-c.s.reading
	if err != nil {
		return err
	}
	if !ok {
		return busy(c.s.limits.backoff, "too many answers wait to be read")
	}
	defer c.s.http.put(c.caller.UID, len(b))
	if c.gives != nil {
		if err := c.disclose(c.gives); err != nil {
			return err
		}
	}
	c.w.Header().Set("Content-Type", kind)
	return c.write(b)
}

// write writes a body, within bounds of time. If that fails the client has gone, or does not read.
func (c *call) write(b []byte) error {
	if err := http.NewResponseController(c.w).SetWriteDeadline(time.Now().Add(c.s.limits.write)); err != nil {
		return err
	}
	if _, err := c.w.Write(b); err != nil {
		c.s.cfg.Log.Debug("a connection to http.sock ended", "error", err)
	}
	return nil
}
