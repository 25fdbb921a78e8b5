package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"

	"bulla/ledger"
	"bulla/record"
)

// Bounds of the network listener, whose peers nobody vouches for.
const (
	tsaConns     = 512
	tsaPeerConns = 32 // of one address
	tsaIdle      = 30 * time.Second
)

// listen opens the network listener; nil without one.
func (t *TSA) listen() (net.Listener, error) {
	if t == nil || t.cfg.Listen == "" {
		return nil, nil
	}
	l, err := net.Listen("tcp", t.cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("listening for time-stamp requests: %w", err)
	}
	t.cfg.Log.Info("time-stamps are served", "address", l.Addr().String())
	return &crowd{Listener: l, seats: newSeats(tsaConns, tsaPeerConns)}, nil
}

// serveTSA serves POST /tsa, and nothing else, to whoever reaches the listener, until ctx ends.
func (s *server) serveTSA(ctx context.Context, l net.Listener) error {
	if l == nil {
		return nil
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /tsa", s.cfg.TSA.serve)
	h := &http.Server{
		Handler: mux, ReadHeaderTimeout: s.limits.hello, ReadTimeout: s.limits.hello, WriteTimeout: s.limits.hello + s.limits.write, IdleTimeout: tsaIdle,
		MaxHeaderBytes: maxHeader, ErrorLog: slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug), BaseContext: func(net.Listener) context.Context { return s.cut },
	}
	done := make(chan error, 1)
	go func() { done <- h.Serve(l) }()
	select {
	case err := <-done:
		return fmt.Errorf("serving time-stamps: %w", err)
	case <-ctx.Done():
	}
	if err := h.Shutdown(s.cut); err != nil {
		return h.Close() // it took too long
	}
	return nil
}

// serve answers a request from the network.
func (t *TSA) serve(w http.ResponseWriter, r *http.Request) {
	who, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		who = r.RemoteAddr
	}
	reply, err := t.answer(w, r, who)
	if err != nil {
		refused, _ := refusal(err)
		fail(w, statusOf(refused.Code), refused)
		return
	}
	w.Header().Set("Content-Type", replyType)
	_, _ = w.Write(reply) // the client may have gone
}

func (t *TSA) answer(w http.ResponseWriter, r *http.Request, who string) ([]byte, error) {
	if err := isQuery(r); err != nil {
		return nil, err
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxQuery))
	if err != nil {
		return nil, unfinished(err)
	}
	if !t.making.take(who) {
		return nil, &ledger.Refusal{Code: record.CodeBusy, Message: "too many time-stamps are being made already", RetryAfter: time.Second}
	}
	defer t.making.put(who)
	return t.respond(r.Context(), body)
}

// crowd is a listener of at most tsaConns connections at a time, tsaPeerConns of one address. One too many is closed.
type crowd struct {
	net.Listener
	seats *seats
}

func (l *crowd) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
			time.Sleep(10 * time.Millisecond) // until somebody hangs up
			continue
		}
		if err != nil {
			return nil, err
		}
		host, _, err := net.SplitHostPort(c.RemoteAddr().String())
		if err == nil && l.seats.take(host) {
			return &visitor{Conn: c, leave: sync.OnceFunc(func() { l.seats.put(host) })}, nil
		}
		_ = c.Close() // the peer sees the end
	}
}

// visitor is a connection that counts until it is closed.
type visitor struct {
	net.Conn
	leave func()
}

func (v *visitor) Close() error {
	v.leave()
	return v.Conn.Close()
}
