// Package server serves the appliance's two sockets: it says who calls, by what the kernel proves, and hands events to the ledgers,
// which decide. frames.go is sign.sock, http.go is http.sock, peer.go asks the kernel.
//
// Everything that a peer can use up is bounded: connections, requests under way, bytes in memory, time within a frame. Connections
// do not wait for each other.
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
	// Status returns what is known of the machine beyond its logs, to be shown as JSON beside them: clock, tpm, hsm.
	Status func() map[string]any
	// Gauges returns further numbers for /metrics, by name.
	Gauges func() map[string]float64
	// Seal makes a seal now and returns its number; nil without a TPM. A nonce makes it an answer to a challenge.
	Seal func(ctx context.Context, reason string, nonce []byte) (number uint64, err error)
	// Ready is called once when both sockets accept connections.
	Ready func()
}

// Log is a log and its name in paths.
type Log struct {
	Name   string
	Ledger *ledger.Ledger
}

// Bounds of what peers can use.
const (
	maxConns   = 4096      // connections to each socket
	maxMemory  = 256 << 20 // bytes of requests and bodies in memory
	socketMode = fs.FileMode(0o660)
	drainTime  = 5 * time.Second
)

// server is the state that both sockets share.
type server struct {
	cfg    Config
	memory *budget
}

// Serve serves both sockets until ctx ends.
func Serve(ctx context.Context, cfg Config) error {
	s := &server{cfg: cfg, memory: newBudget(maxMemory)}
	sign, err := listen(filepath.Join(cfg.Directory, "sign.sock"), cfg.GID)
	if err != nil {
		return err
	}
	web, err := listen(filepath.Join(cfg.Directory, "http.sock"), cfg.GID)
	if err != nil {
		return errors.Join(err, sign.Close())
	}
	if cfg.Ready != nil {
		cfg.Ready()
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.serveFrames(ctx, sign) })
	g.Go(func() error { return s.serveHTTP(ctx, web) })
	return g.Wait()
}

// listen makes a socket of mode 0660. A socket that a process still serves is left alone; a stale one is replaced.
func listen(path string, gid *int) (*limited, error) {
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		return nil, errors.Join(fmt.Errorf("%s is served by another process; stop that bullad first", path), c.Close())
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("replacing a stale socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("making a socket: %w", err)
	}
	if gid != nil {
		err = os.Chown(path, -1, *gid)
	}
	if err := errors.Join(err, os.Chmod(path, socketMode)); err != nil { // the umask let nobody in so far
		return nil, errors.Join(fmt.Errorf("making a socket: %w", err), l.Close())
	}
	return &limited{Listener: l, free: make(chan struct{}, maxConns)}, nil
}

// limited is a listener of at most so many connections at a time.
type limited struct {
	net.Listener
	free chan struct{}
}

func (l *limited) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
			time.Sleep(10 * time.Millisecond)
			continue
		}
		if err != nil {
			return nil, err
		}
		select {
		case l.free <- struct{}{}:
			return &counted{Conn: c, free: l.free}, nil
		default:
			_ = c.Close() // full: the peer sees the end
		}
	}
}

type counted struct {
	net.Conn
	free chan struct{}
	once sync.Once
}

func (c *counted) Close() error {
	c.once.Do(func() { <-c.free })
	return c.Conn.Close()
}

// budget bounds the bytes in memory over all connections.
type budget struct {
	mu   sync.Mutex
	left int
	wait []*claim
}

type claim struct {
	n    int
	done chan struct{}
}

func newBudget(n int) *budget { return &budget{left: n} }

// take waits until n bytes are free, first come first served.
func (b *budget) take(ctx context.Context, n int) error {
	b.mu.Lock()
	if len(b.wait) == 0 && b.left >= n {
		b.left -= n
		b.mu.Unlock()
		return nil
	}
	c := &claim{n, make(chan struct{})}
	b.wait = append(b.wait, c)
	b.mu.Unlock()
	select {
	case <-c.done:
		return nil
	case <-ctx.Done():
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range b.wait {
		if b.wait[i] == c {
			b.wait = append(b.wait[:i], b.wait[i+1:]...)
			return ctx.Err()
		}
	}
	b.give(n) // it was granted meanwhile
	return ctx.Err()
}

// put gives n bytes back.
func (b *budget) put(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.give(n)
}

func (b *budget) give(n int) {
	b.left += n
	for len(b.wait) > 0 && b.wait[0].n <= b.left {
		b.left -= b.wait[0].n
		close(b.wait[0].done)
		b.wait = b.wait[1:]
	}
}

// find returns the log of an origin; with "", the only one.
func (s *server) find(origin string) (*ledger.Ledger, bool) {
	if origin == "" && len(s.cfg.Logs) == 1 {
		return s.cfg.Logs[0].Ledger, true
	}
	for _, l := range s.cfg.Logs {
		if l.Ledger.Origin() == origin {
			return l.Ledger, true
		}
	}
	return nil, false
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
