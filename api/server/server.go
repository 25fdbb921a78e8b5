// Package server serves the appliance's two sockets: it says who calls, by what the kernel proves, and hands events to the ledgers,
// which decide.
//
//	server.go   what is served, and where         budget.go   what peers may use up
//	frames.go   sign.sock                         peer.go     who is at the other end
//	http.go     http.sock: routes and errors      events.go   POST /v1/events      read.go   entries, proofs, tiles
//	seal.go     seals on demand                   status.go   health               metrics.go
//	ceremony.go what officers bring
//	activate.go an auditor's credential             search.go   GET /v1/search
//	tsa.go      RFC 3161 time-stamps                tsader.go   their encoding         tsalisten.go  for the network
//
// Everything that a peer can use up is bounded: connections, requests under way, bytes in memory, time within a frame. No peer has to
// wait for another, and one uid cannot use up what others need.
package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"bulla/api"
	"bulla/attest"
	"bulla/clock"
	"bulla/ledger"
)

// Config says what to serve, and where.
type Config struct {
	Directory string // where sign.sock and http.sock are made
	GID       *int   // group of the sockets; nil: the process's own
	Logs      []Log  // at least one
	Log       *slog.Logger
	// Now is the clock that entries are stamped with, so that a log whose policy it does not meet is shown to refuse events. Nil: not shown.
	Now func() clock.Stamp
	// Status returns what is known of the machine beyond its logs, to be shown beside them.
	Status func() *api.Machine
	// Cosigned returns the checkpoints of a log that witnesses cosigned, the one over the largest tree first; nil: there are none.
	Cosigned func(origin string) [][]byte
	// Gauges returns further numbers for /metrics.
	Gauges func() []Gauge
	// Seal makes a seal now and returns its number; nil without a TPM. A nonce makes it an answer to a challenge.
	Seal func(ctx context.Context, reason string, nonce []byte) (number uint64, err error)
	// Activate has the enrolled TPM open an auditor's credential; nil without a TPM. An error that wraps attest.ErrNotOpened says that
	// it is not for this TPM.
	Activate func(ctx context.Context, e *attest.Enrolment, c attest.Credential) (secret []byte, err error)
	// TSA issues time-stamps; nil: there are none.
	TSA *TSA
	// Ready is called once when both sockets accept connections.
	Ready func()
}

// Log is a log and its name in paths.
type Log struct {
	Name     string
	Ledger   *ledger.Ledger
	Executor ledger.Executor // does to devices what officers have approved; nil: nothing is carried out
}

// limits bound what peers can use, and for how long.
type limits struct {
	conns     int // connections to each socket, and of one uid
	uidConns  int
	memory    int // bytes of requests, and of answers that wait to be read, in all and of one uid
	uidMemory int
	reserve   int // bytes of both that only small requests may use

	hello   time.Duration // for a hello, or the headers of an HTTP request
	frame   time.Duration // from a frame's first byte to its last; from a line's, too
	body    time.Duration // for the body of an HTTP request
	write   time.Duration // for a peer to take an answer
	idle    time.Duration // between HTTP requests, and between lines of events
	drain   time.Duration // for what is under way when the server ends; then its outcome is unknown
	grace   time.Duration // for peers to take those answers
	backoff time.Duration // that busy peers are asked to wait
}

var defaultLimits = limits{
	conns: 4096, uidConns: 3072, memory: 64 << 20, uidMemory: 32 << 20, reserve: 12 << 20,
	hello: 10 * time.Second, frame: 10 * time.Second, body: 30 * time.Second, write: 30 * time.Second, idle: 2 * time.Minute,
	drain: 5 * time.Second, grace: time.Second, backoff: 100 * time.Millisecond,
}

// server is the state that both sockets share.
type server struct {
	cfg        Config
	limits     limits
	frames     *budget // of sign.sock
	http       *budget // of http.sock
	reading    chan struct{}
	searching  chan struct{} // holds a token while somebody searches
	turned     chan struct{} // holds a token for each connection to http.sock that is only to be told that it is one too many
	seals      bucket
	ceremonies bucket
	metrics    *metrics
	buffers    sync.Pool // of answers
	jobs       chan job
	workers    sync.WaitGroup
	over       chan struct{}   // closed when no more jobs come
	drain      context.Context // ends when what is under way is not waited for any longer
	cut        context.Context // ends when connections that are still open are cut
}

// Serve serves both sockets until ctx ends. What is under way then is finished, within bounds.
func Serve(ctx context.Context, cfg Config) error { return serve(ctx, cfg, defaultLimits) }

func serve(ctx context.Context, cfg Config, lim limits) error {
	unlock, err := lock(cfg.Directory)
	if err != nil {
		return err
	}
	defer unlock()
	sign, err := listen(filepath.Join(cfg.Directory, "sign.sock"), cfg.GID, lim.conns)
	if err != nil {
		return err
	}
	web, err := listen(filepath.Join(cfg.Directory, "http.sock"), cfg.GID, lim.conns)
	if err != nil {
		return errors.Join(err, sign.Close())
	}
	stamps, err := cfg.TSA.listen()
	if err != nil {
		return errors.Join(err, sign.Close(), web.Close())
	}
	s, stop := newServer(ctx, cfg, lim)
	defer stop()
	if cfg.Ready != nil {
		cfg.Ready()
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.serveFrames(ctx, sign) })
	g.Go(func() error { return s.serveHTTP(ctx, web) })
	g.Go(func() error { return s.serveTSA(ctx, stamps) })
	return g.Wait()
}

func newServer(ctx context.Context, cfg Config, lim limits) (s *server, stop func()) {
	s = &server{
		cfg: cfg, limits: lim, frames: newBudget(lim), http: newBudget(lim), reading: make(chan struct{}, Readers()), searching: make(chan struct{}, 1),
		turned: make(chan struct{}, maxTurned), jobs: make(chan job), over: make(chan struct{}),
		seals: bucket{burst: sealBurst, every: sealEvery}, ceremonies: bucket{burst: ceremonyBurst, every: ceremonyEvery},
	}
	s.metrics = newMetrics(s)
	base, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.drain = after(base, ctx, lim.drain)
	s.cut = after(base, s.drain, lim.grace)
	return s, stop
}

// after returns a context that ends so long after another one, or with its base.
func after(base, other context.Context, d time.Duration) context.Context {
	ctx, cancel := context.WithCancel(base)
	context.AfterFunc(other, func() {
		t := time.AfterFunc(d, cancel)
		context.AfterFunc(ctx, func() { t.Stop() })
	})
	return ctx
}

// lock keeps other processes from serving in the same directory for as long as this one lives.
func lock(dir string) (unlock func(), err error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("the sockets' directory: %w; make it, for bullad alone to write to", err)
	}
	if err := unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = errors.New("another process serves its sockets: stop that bullad first")
		}
		return nil, errors.Join(fmt.Errorf("%s: %w", dir, err), d.Close())
	}
	return func() { _ = d.Close() }, nil // which unlocks
}

// listen makes a socket of mode 0660. A socket that a process still serves is left alone; a stale one is replaced.
func listen(path string, gid *int, conns int) (*limited, error) {
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		return nil, errors.Join(fmt.Errorf("%s is served by another process; stop that bullad first", path), c.Close())
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("replacing a stale socket: %w", err)
	}
	// The socket is made with the mode of its descriptor: nobody else gets in before its group is set.
	mine := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var chmod error
		err := c.Control(func(fd uintptr) { chmod = unix.Fchmod(int(fd), 0o600) })
		return errors.Join(err, chmod)
	}}
	l, err := mine.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, fmt.Errorf("making a socket: %w", err)
	}
	if gid != nil {
		err = os.Chown(path, -1, *gid)
	}
	if err := errors.Join(err, os.Chmod(path, 0o660)); err != nil {
		return nil, errors.Join(fmt.Errorf("making a socket: %w", err), l.Close())
	}
	return &limited{Listener: l, free: make(chan struct{}, conns)}, nil
}

// limited is a listener of at most so many connections at a time. One that ends removes its socket.
type limited struct {
	net.Listener
	free chan struct{}
}

func (l *limited) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
			time.Sleep(10 * time.Millisecond) // until somebody hangs up
			continue
		}
		if err != nil {
			return nil, err
		}
		u, ok := c.(*net.UnixConn)
		if !ok {
			return nil, errors.Join(fmt.Errorf("accepting a connection: it is a %T", c), c.Close())
		}
		select {
		case l.free <- struct{}{}:
			return &conn{UnixConn: u, free: l.free}, nil
		default:
			_ = c.Close() // full: the peer sees the end
		}
	}
}

// conn is a connection that counts until it is closed.
type conn struct {
	*net.UnixConn
	free   chan struct{}
	closed func() // if set, called once when the connection is closed
	once   sync.Once
}

func (c *conn) Close() error {
	c.once.Do(func() {
		if <-c.free; c.closed != nil {
			c.closed()
		}
	})
	return c.UnixConn.Close()
}

// find returns the log of an origin; with "", the only one.
func (s *server) find(origin string) (*Log, bool) {
	for i := range s.cfg.Logs {
		if l := &s.cfg.Logs[i]; l.Ledger.Origin() == origin || origin == "" && len(s.cfg.Logs) == 1 {
			return l, true
		}
	}
	return nil, false
}

// nameOf is the name of the log of an origin, for metrics; what is no log's has none, or peers could make up names without end.
func (s *server) nameOf(origin string) string {
	if l, ok := s.find(origin); ok {
		return l.Name
	}
	return ""
}

func (s *server) origins() []string {
	var out []string
	for _, l := range s.cfg.Logs {
		out = append(out, l.Ledger.Origin())
	}
	return out
}

// writeJSON writes a value as the body of a response.
func writeJSON(w http.ResponseWriter, status int, v any) {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(b, '\n')) // the client may have gone
}
