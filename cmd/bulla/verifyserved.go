package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"bulla/api"
	"bulla/record"
	"bulla/verify"
)

// served is evidence as somebody serves it: a C2SP tlog-tiles tree over HTTP, or an appliance's own.
type served struct {
	client *http.Client
	base   string              // URL that names are appended to
	state  func(*http.Request) // what is to be said with a request; nil: nothing
	pause  time.Duration       // before the first repetition; it doubles with each

	mu     sync.Mutex
	tiles  map[string][]byte // of hashes, read last: each seal has the verifier look at one again
	recent []string          // their names, the oldest first
}

// Reading what is served.
const (
	servedTiles   = 64 // kept, of 8 KiB each
	servedTries   = 6  // of one file, with pauses of 8 s in all
	servedPause   = 250 * time.Millisecond
	servedTimeout = 2 * time.Minute // of one try, for at most 16 MiB
	servedWait    = 30 * time.Second
)

// liveEvidence is the evidence that a URL names, or the appliance's behind --socket; where says which to people.
func (t *tool) liveEvidence(ctx context.Context, address string) (src verify.Source, where string, err error) {
	if path, ok := strings.CutPrefix(address, "http+unix://"); ok {
		t.socket, address = path, ""
	}
	if address == "" {
		a, err := t.connect(ctx)
		if err != nil {
			return nil, "", err
		}
		_, path := t.sockets()
		a.client.Timeout = servedTimeout
		return &served{client: a.client, base: "http://bulla" + a.prefix, state: a.state, pause: servedPause}, "the appliance at " + path, nil
	}
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return nil, "", usagef("%s: must be the URL that a tile tree lies under, as https://log.example/2026 (where checkpoint and tile/ are)", printable(address, 200))
	}
	base := strings.TrimSuffix(u.String(), "/")
	return &served{client: &http.Client{Timeout: servedTimeout, CheckRedirect: sameHost, Transport: &http.Transport{
		Proxy: http.ProxyFromEnvironment, MaxIdleConnsPerHost: fetchers, ForceAttemptHTTP2: true, TLSHandshakeTimeout: servedWait, ResponseHeaderTimeout: servedWait,
	}}, base: base, pause: servedPause}, base, nil
}

// isServed reports whether evidence is named by a URL.
func isServed(name string) bool {
	for _, scheme := range []string{"http://", "https://", "http+unix://"} {
		if strings.HasPrefix(name, scheme) {
			return true
		}
	}
	return false
}

// sameHost follows redirections within a host: whose evidence it is should be what was asked for.
func sameHost(req *http.Request, via []*http.Request) error {
	if first := via[0].URL; len(via) > 3 || req.URL.Host != first.Host || req.URL.Scheme != first.Scheme {
		return fmt.Errorf("it redirects to %s: give that address if you mean it", printable(req.URL.Redacted(), 200))
	}
	return nil
}

// Walk implements verify.Source: what is served cannot be listed.
func (s *served) Walk(context.Context, func(string) error) error { return errors.ErrUnsupported }

// Open implements verify.Source. Who serves may drop a partial tile once there is the full one, which begins with it (C2SP tlog-tiles).
func (s *served) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	t, isTile := record.ParseTilePath(name)
	limit := record.MaxCheckpoint
	if isTile && t.L < 0 {
		limit = record.TileWidth * (2 + record.MaxEntry)
	}
	if isTile && t.L >= 0 {
		limit = record.TileWidth * tlog.HashSize
		if b, ok := s.kept(name); ok {
			return io.NopCloser(bytes.NewReader(b)), nil
		}
	}
	b, err := s.get(ctx, name, limit)
	if isTile && t.W < record.TileWidth && errors.Is(err, fs.ErrNotExist) {
		full := t
		full.W = record.TileWidth
		if whole, fullErr := s.get(ctx, record.TilePath(full), limit); fullErr == nil {
			b, err = beginning(t, whole), nil
		} else if !errors.Is(fullErr, fs.ErrNotExist) {
			err = fullErr
		}
	}
	if err != nil {
		return nil, err
	}
	if isTile && t.L >= 0 {
		s.keep(name, b)
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

func (s *served) kept(name string) ([]byte, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, ok := s.tiles[name]
	return b, ok
}

func (s *served) keep(name string, b []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tiles == nil {
		s.tiles = map[string][]byte{}
	}
	if _, twice := s.tiles[name]; !twice {
		if len(s.recent) == servedTiles {
			delete(s.tiles, s.recent[0])
			s.recent = s.recent[1:]
		}
		s.recent = append(s.recent, name)
	}
	s.tiles[name] = b
}

// beginning is the partial tile that a full one begins with. What is no tile is judged as it is.
func beginning(t tlog.Tile, whole []byte) []byte {
	if t.L >= 0 {
		return whole[:min(len(whole), t.W*tlog.HashSize)]
	}
	raw, err := record.ParseBundle(whole)
	if err != nil {
		return whole
	}
	n := 0
	for _, e := range raw[:min(len(raw), t.W)] {
		n += 2 + len(e)
	}
	return whole[:n]
}

// get fetches a file, of which it reads one byte more than limit at most, and tries again where that may help.
func (s *served) get(ctx context.Context, name string, limit int) ([]byte, error) {
	pause := s.pause
	for try := 1; ; try++ {
		b, wait, err := s.once(ctx, name, limit)
		if err == nil || wait < 0 || try == servedTries {
			return b, err
		}
		timer := time.NewTimer(max(wait, pause))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil, ctx.Err()
		case <-timer.C:
		}
		pause *= 2
	}
}

// once fetches a file; wait is how long to wait at least before trying again, -1 if that does not help.
func (s *served) once(ctx context.Context, name string, limit int) (b []byte, wait time.Duration, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.base+"/"+name, nil)
	if err != nil {
		return nil, -1, usagef("%s: %w", s.base, err)
	}
	if s.state != nil {
		s.state(req)
	}
	res, err := s.client.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, -1, ctx.Err()
		}
		return nil, 0, coded(exitUnavailable, err)
	}
	b, err = io.ReadAll(io.LimitReader(res.Body, int64(limit)+1))
	err = errors.Join(err, res.Body.Close())
	switch code := res.StatusCode; {
	case ctx.Err() != nil:
		return nil, -1, ctx.Err()
	case code == http.StatusNotFound || code == http.StatusGone:
		return nil, -1, &fs.PathError{Op: "get", Path: name, Err: fs.ErrNotExist}
	case code == http.StatusOK && err == nil:
		return b, 0, nil
	case code == http.StatusOK:
		return nil, 0, coded(exitUnavailable, fmt.Errorf("%s/%s: %w", s.base, name, err))
	}
	if wait = -1; res.StatusCode == http.StatusTooManyRequests || res.StatusCode >= 500 {
		seconds, _ := strconv.ParseUint(res.Header.Get("Retry-After"), 10, 8) // no number: no more than the usual pause
		wait = min(time.Duration(seconds)*time.Second, servedWait)
	}
	why := res.Status
	var f api.Failure
	if json.Unmarshal(b, &f) == nil && f.Error.Message != "" {
		why = f.Error.Message
	}
	return nil, wait, coded(exitUnavailable, fmt.Errorf("%s/%s: %s", s.base, name, printable(why, 300)))
}
