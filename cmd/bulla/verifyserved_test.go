package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"bulla/record"
)

const vectors = "../../testdata/vectors/verify/"

// verifying runs `bulla verify` without a memory.
func verifying(args ...string) (code int, out, errOut string) {
	var o, e bytes.Buffer
	code = run(append([]string{"verify", "--no-memory"}, args...), strings.NewReader(""), &o, &e)
	return code, o.String(), e.String()
}

// Evidence that a plain web server gives out is verified as it is on the disk.
func TestVerifyServedTree(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	files := http.StripPrefix("/logs/2026", http.FileServer(http.Dir(vectors+"sealed")))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		files.ServeHTTP(w, r)
	}))
	defer server.Close()
	for _, address := range []string{server.URL + "/logs/2026", server.URL + "/logs/2026/"} {
		code, out, errOut := verifying(address, "--policy", vectors+"policy", "--receipt", vectors+"receipt.json")
		if code != exitOK || !strings.HasPrefix(out, "VERIFIED\n") || !strings.Contains(out, "read live from \""+server.URL+"/logs/2026\"") {
			t.Errorf("%d\n%s%s", code, out, errOut)
		}
	}
	if n := asked.Load(); n < 6 || n > 100 {
		t.Errorf("%d requests", n)
	}
	if code, out, _ := verifying(server.URL+"/logs/2025", "--policy", vectors+"policy"); code != exitNotCheckable || !strings.Contains(out, "there is no checkpoint") {
		t.Errorf("%d\n%s", code, out)
	}
}

// A tree that is changed where it is served is found out, there as anywhere.
func TestVerifyServedTreeThatLies(t *testing.T) {
	t.Parallel()
	files := http.FileServer(http.Dir(vectors + "sealed"))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.URL.Path, "/tile/entries/") {
			files.ServeHTTP(w, r)
			return
		}
		rec := httptest.NewRecorder()
		files.ServeHTTP(rec, r)
		_, _ = w.Write(bytes.Replace(rec.Body.Bytes(), []byte(`"kind":"event"`), []byte(`"kind":"evenu"`), 1)) // the client may have gone
	}))
	defer server.Close()
	if code, out, _ := verifying(server.URL, "--policy", vectors+"policy"); code != exitTampered || !strings.Contains(out, "entry.canonical (entry 5,") {
		t.Errorf("%d\n%s", code, out)
	}
}

func newServed(server *httptest.Server) *served {
	return &served{client: server.Client(), base: server.URL, pause: time.Millisecond}
}

// readServed is what a source gives of a file.
func readServed(t *testing.T, s *served, name string) ([]byte, error) {
	t.Helper()
	r, err := s.Open(t.Context(), name)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return b, r.Close()
}

// What fails for a while is asked for again; what is refused is not.
func TestServedIsAskedAgain(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		about string
		fails int64 // so often, before it succeeds
		how   func(w http.ResponseWriter)
		tries int64
		err   string
	}{
		{"busy", 3, func(w http.ResponseWriter) { w.WriteHeader(http.StatusTooManyRequests) }, 4, ""},
		{"broken off", 3, func(w http.ResponseWriter) { w.Header().Set("Content-Length", "100"); fmt.Fprint(w, "half") }, 4, ""},
		{"down", 100, func(w http.ResponseWriter) { w.WriteHeader(http.StatusBadGateway) }, servedTries, "502 Bad Gateway"},
		{"forbidden", 100, func(w http.ResponseWriter) {
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprint(w, `{"error":{"code":"forbidden","message":"not \u001b[2Jyou"}}`)
		}, 1, `not \u001b[2Jyou`},
	} {
		var asked atomic.Int64
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if asked.Add(1) <= c.fails {
				c.how(w)
				return
			}
			fmt.Fprint(w, "whole")
		}))
		b, err := readServed(t, newServed(server), "checkpoint")
		server.Close()
		if asked.Load() != c.tries || c.err == "" && (err != nil || string(b) != "whole") || c.err != "" && (err == nil || !strings.HasSuffix(err.Error(), c.err)) {
			t.Errorf("%s: %q, %v after %d requests", c.about, b, err, asked.Load())
		}
		if err != nil && exitCode(err) != exitUnavailable {
			t.Errorf("%s: exit code %d", c.about, exitCode(err))
		}
	}
}

// Who never stops sending is cut off; who sends nothing is given up.
func TestServedWithoutEnd(t *testing.T) {
	t.Parallel()
	silent := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/tile/0/000" {
			<-silent
			return
		}
		for block := make([]byte, 1<<16); ; {
			if _, err := w.Write(block); err != nil {
				return
			}
		}
	}))
	defer server.Close()
	defer close(silent)
	s := newServed(server)
	for name, limit := range map[string]int{"checkpoint": record.MaxCheckpoint, "tile/entries/000": 256 * (2 + record.MaxEntry), "tile/0/001": 256 * 32} {
		if b, err := readServed(t, s, name); err != nil || len(b) != limit+1 {
			t.Errorf("%s: %d bytes, %v", name, len(b), err)
		}
	}
	s.client.Timeout = 20 * time.Millisecond
	if _, err := readServed(t, s, "tile/0/000"); err == nil || exitCode(err) != exitUnavailable {
		t.Error(err)
	}
}

// A partial tile that is not served any more is the beginning of the full one.
func TestServedPartialTileIsGone(t *testing.T) {
	t.Parallel()
	var hashes, bundle []byte
	for i := range 256 {
		hashes = append(hashes, bytes.Repeat([]byte{byte(i)}, 32)...)
		bundle = record.AppendBundle(bundle, fmt.Appendf(nil, "entry %d", i))
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/tile/0/000":
			_, _ = w.Write(hashes) // the client may have gone
		case "/tile/entries/000":
			_, _ = w.Write(bundle)
		default:
			http.NotFound(w, r)
		}
	}))
	defer server.Close()
	s := newServed(server)
	if b, err := readServed(t, s, "tile/0/000.p/7"); err != nil || !bytes.Equal(b, hashes[:7*32]) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if b, err := readServed(t, s, "tile/entries/000.p/7"); err != nil || !bytes.Equal(b, bundle[:7*(2+len("entry 0"))]) {
		t.Errorf("%q, %v", b, err)
	}
	for _, name := range []string{"tile/0/001.p/7", "tile/1/000", "checkpoint"} {
		if _, err := readServed(t, s, name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Tiles of hashes are asked for once, as long as they are among the last; nothing else is kept.
func TestServedTilesAreKept(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		fmt.Fprint(w, r.URL.Path)
	}))
	defer server.Close()
	s := newServed(server)
	read := func(name string, want int64) {
		t.Helper()
		asked.Store(0)
		if b, err := readServed(t, s, name); err != nil || string(b) != "/"+name || asked.Load() != want {
			t.Errorf("%s: %q, %v after %d requests, want %d", name, b, err, asked.Load(), want)
		}
	}
	read("tile/0/000", 1)
	read("tile/0/000", 0)
	for _, name := range []string{"checkpoint", "tile/entries/000"} {
		read(name, 1)
		read(name, 1)
	}
	for i := range servedTiles {
		read(fmt.Sprintf("tile/0/%03d", i+1), 1)
	}
	read("tile/0/002", 0)
	read("tile/0/000", 1)
	if len(s.tiles) != servedTiles || len(s.recent) != servedTiles {
		t.Errorf("%d tiles, %d names are kept", len(s.tiles), len(s.recent))
	}
}

// Whose evidence it is does not change on the way.
func TestServedElsewhere(t *testing.T) {
	t.Parallel()
	files := http.FileServer(http.Dir(vectors + "sealed"))
	other := httptest.NewServer(files)
	defer other.Close()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if rest, ok := strings.CutPrefix(r.URL.Path, "/old"); ok {
			http.Redirect(w, r, rest, http.StatusMovedPermanently)
			return
		}
		if strings.HasPrefix(r.URL.Path, "/other") {
			http.Redirect(w, r, other.URL+strings.TrimPrefix(r.URL.Path, "/other"), http.StatusFound)
			return
		}
		files.ServeHTTP(w, r)
	}))
	defer server.Close()
	if code, out, errOut := verifying(server.URL+"/old", "--policy", vectors+"policy"); code != exitOK {
		t.Errorf("%d\n%s%s", code, out, errOut)
	}
	if _, _, err := newServedAt(t, server.URL+"/other").once(t.Context(), "checkpoint", 100); err == nil || !strings.Contains(err.Error(), "it redirects to "+other.URL+"/checkpoint: give that address if you mean it") {
		t.Error(err)
	}
}

func newServedAt(t *testing.T, address string) *served {
	t.Helper()
	src, _, err := new(tool).liveEvidence(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	return src.(*served)
}
