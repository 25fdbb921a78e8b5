package server

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"bulla/api"
	"bulla/ceremony"
	"bulla/clock"
	"bulla/ledger"
	"bulla/record"
)

// entries reads the log's entries over http.sock, from an index on.
func (r *rig) entries(from uint64) []*record.Entry {
	r.t.Helper()
	p := r.do(r.browser(), "GET", fmt.Sprintf("/v1/entries?from=%d&limit=1000", from), "")
	var page api.Page
	if err := json.Unmarshal(p.body, &page); err != nil || p.status != 200 {
		r.t.Fatalf("%d %s: %v", p.status, p.body, err)
	}
	var out []*record.Entry
	for _, raw := range page.Entries {
		e, err := record.ParseEntry(raw)
		if err != nil {
			r.t.Fatal(err)
		}
		out = append(out, e)
	}
	return out
}

func TestPostEvents(t *testing.T) {
	t.Parallel()
	r := newRig(t, everyone).serve()
	b := r.browser()
	p := r.do(b, "POST", "/v1/events", " { \"type\" : \"good.test\" }\n", asJSON)
	one, err := record.ParseReceipt(bytes.TrimSpace(p.body))
	if err != nil || p.status != http.StatusCreated || p.header.Get("Content-Type") != "application/json" {
		t.Fatalf("%d %s: %v", p.status, p.body, err)
	}
	r.requireReceipt(one, good)

	p = r.do(b, "POST", "/logs/log/v1/events", `[{"id":"1","type":"a"},{"type":"b","id":"2"}]`, "Content-Type: application/json; charset=utf-8")
	var several []record.Receipt
	if err := json.Unmarshal(p.body, &several); err != nil || len(several) != 2 || p.status != http.StatusCreated {
		t.Fatalf("%d %s: %v", p.status, p.body, err)
	}
	r.requireReceipt(several[1], `{"id":"2","type":"b"}`)
	if several[1].Index != several[0].Index+1 || !bytes.Equal(several[0].Checkpoint, several[1].Checkpoint) {
		t.Error("an array is one batch")
	}
	size := r.log().Size()
	p = r.do(b, "POST", "/v1/events", `[{"id":"3","type":"a"},{"id":"2","type":"other"}]`, asJSON)
	if f := p.failure(t); p.status != http.StatusConflict || f.Code != record.CodeConflict || f.Field != "events[1].id" || r.log().Size() != size {
		t.Errorf("other content: %d %s, %d entries", p.status, p.body, r.log().Size()-size)
	}
	if p = r.do(b, "POST", "/v1/events", `{"id":"2","type":"other"}`, asJSON); p.failure(t).Field != "id" {
		t.Errorf("other content: %s", p.body)
	}
	p = r.do(b, "POST", "/v1/events", `{"id":"2","type":"b"}`, asJSON)
	if again, err := record.ParseReceipt(bytes.TrimSpace(p.body)); err != nil || again.Index != several[1].Index || !bytes.Equal(again.Entry, several[1].Entry) {
		t.Errorf("repeated: %s: %v", p.body, err)
	}
}

// Each thing that http.sock must not take gets its own answer, and nothing of it is in the log.
func TestBadRequests(t *testing.T) {
	t.Parallel()
	r := newRig(t, everyone)
	r.lim.hello, r.lim.body = 300*time.Millisecond, 300*time.Millisecond
	r.cfg.Seal = func(context.Context, string, []byte) (uint64, error) { t.Error("a seal was made"); return 0, nil }
	r.serve()
	b := r.browser()
	before := r.log().Size()
	type row struct {
		about, method, path, body, kind string
		status                          int
		code                            record.Code
		field, why                      string
	}
	var rows []row
	for _, c := range badEvents {
		status := http.StatusBadRequest
		if c.code == record.CodeTooLarge {
			status = http.StatusRequestEntityTooLarge
		}
		field := "events[1]"
		if c.field != "" {
			field += "." + c.field
		}
		if c.name == "10,000 levels" {
			field = "events[1]" // its end cannot be found
		}
		rows = append(rows,
			row{c.name, "POST", "/v1/events", c.event, asJSON, status, c.code, c.field, c.why},
			row{c.name + " in an array", "POST", "/v1/events", "[" + good + "," + c.event + "]", asJSON, status, c.code, field, c.why},
			row{c.name + " in a line", "POST", "/v1/events", c.event, asLines, http.StatusOK, c.code, c.field, c.why})
	}
	for _, c := range append(rows, []row{
		{"nothing", "POST", "/v1/events", "", asJSON, 400, record.CodeInvalid, "", ""},
		{"half", "POST", "/v1/events", good[:9], asJSON, 400, record.CodeInvalid, "", ""},
		{"two", "POST", "/v1/events", good + good, asJSON, 400, record.CodeInvalid, "", ""},
		{"empty array", "POST", "/v1/events", "[]", asJSON, 400, record.CodeInvalid, "events", "empty"},
		{"oversize", "POST", "/v1/events", strings.Repeat(" ", api.MaxFrame) + good, asJSON, 413, record.CodeTooLarge, "", "4194304"},
		{"10,001 events", "POST", "/v1/events", "[" + strings.Repeat(good+",", api.MaxEvents) + good + "]", asJSON, 413, record.CodeTooLarge, "events", "10000"},
		{"a long line", "POST", "/v1/events", strings.Repeat("x", 400_000), asLines, 200, record.CodeTooLarge, "", "line 1: more than 360000"},
		{"no media type", "POST", "/v1/events", good, "X: y", 400, record.CodeInvalid, "Content-Type", "application/json"},
		{"media type", "POST", "/v1/events", good, "Content-Type: text/plain", 400, record.CodeInvalid, "Content-Type", "text/plain"},
		{"DELETE", "DELETE", "/v1/events", "", asJSON, 405, record.CodeInvalid, "", "use POST"},
		{"GET events", "GET", "/v1/events", "", asJSON, 405, record.CodeInvalid, "", "use POST"},
		{"POST to a page", "POST", "/v1/entries", "", asJSON, 405, record.CodeInvalid, "", "use GET"},
		{"no such path", "GET", "/v1/nothing", "", asJSON, 404, record.CodeInvalid, "", "openapi"},
		{"the root", "GET", "/", "", asJSON, 404, record.CodeInvalid, "", "openapi"},
		{"a path with dots", "GET", "/tile/0/../../etc/passwd", "", asJSON, 404, record.CodeInvalid, "", "nothing at this path"},
		{"a path with slashes", "GET", "//checkpoint", "", asJSON, 404, record.CodeInvalid, "", "nothing at this path"},
		{"no such log", "GET", "/logs/other/checkpoint", "", asJSON, 404, record.CodeInvalid, "", `no log "other"`},
		{"no such entry", "GET", "/v1/entries/9999999", "", asJSON, 404, record.CodeInvalid, "", "no entry"},
		{"no index", "GET", "/v1/entries/-1", "", asJSON, 400, record.CodeInvalid, "index", "number"},
		{"an index too large", "GET", "/v1/entries/99999999999999999999/proof", "", asJSON, 400, record.CodeInvalid, "index", "number"},
		{"an index with zeros before it", "GET", "/v1/entries/000", "", asJSON, 400, record.CodeInvalid, "index", "leading zeros"},
		{"from", "GET", "/v1/entries?from=-1", "", asJSON, 400, record.CodeInvalid, "from", "from 0"},
		{"limit", "GET", "/v1/entries?limit=1001", "", asJSON, 400, record.CodeInvalid, "limit", "from 1 to 1000"},
		{"limit 0", "GET", "/v1/seals?limit=0", "", asJSON, 400, record.CodeInvalid, "limit", "from 1 to 1000"},
		{"empty parameter", "GET", "/v1/entries?from=", "", asJSON, 400, record.CodeInvalid, "from", "number"},
		{"kind", "GET", "/v1/entries?kind=none", "", asJSON, 400, record.CodeInvalid, "kind", "must be one of"},
		{"kind event", "GET", "/v1/entries?kind=event", "", asJSON, 400, record.CodeInvalid, "kind", "must be one of"},
		{"unknown parameter", "GET", "/v1/entries?form=5", "", asJSON, 400, record.CodeInvalid, "form", "unknown"},
		{"parameter twice", "GET", "/v1/entries?from=5&from=6", "", asJSON, 400, record.CodeInvalid, "from", "twice"},
		{"parameter where none is", "GET", "/checkpoint?x=1", "", asJSON, 400, record.CodeInvalid, "x", "unknown"},
		{"no tile", "GET", "/tile/0/0", "", asJSON, 404, record.CodeInvalid, "", "not the path of a tile"},
		{"a tile beyond the log", "GET", "/tile/0/001", "", asJSON, 404, record.CodeInvalid, "", "does not reach"},
		{"a tile far beyond the log", "GET", "/tile/0/x072/x057/x594/x037/x927/936", "", asJSON, 404, record.CodeInvalid, "", ""},
		{"a partial tile beyond the log", "GET", "/tile/0/000.p/200", "", asJSON, 404, record.CodeInvalid, "", "does not reach"},
		{"a tile of level 63", "GET", "/tile/6/000.p/1", "", asJSON, 404, record.CodeInvalid, "", "does not reach"},
		{"a bundle beyond the log", "GET", "/tile/entries/000.p/255", "", asJSON, 404, record.CodeInvalid, "", "does not reach"},
		{"challenge: nothing", "POST", "/v1/challenge", "", asJSON, 400, record.CodeInvalid, "", ""},
		{"challenge: no nonce", "POST", "/v1/challenge", "{}", asJSON, 400, record.CodeInvalid, "nonce", "8 to 64"},
		{"challenge: short", "POST", "/v1/challenge", `{"nonce":"AAAAAAAAAA=="}`, asJSON, 400, record.CodeInvalid, "nonce", "8 to 64"},
		{"challenge: newline", "POST", "/v1/challenge", `{"nonce":"AAAAAAAA\nAAAA"}`, asJSON, 400, record.CodeInvalid, "nonce", "base64"},
		{"challenge: spare bits", "POST", "/v1/challenge", `{"nonce":"AAAAAAAAAAB="}`, asJSON, 400, record.CodeInvalid, "nonce", "base64"},
		{"challenge: case", "POST", "/v1/challenge", `{"Nonce":"AAAAAAAAAAA="}`, asJSON, 400, record.CodeInvalid, "Nonce", "unknown"},
		{"challenge: more", "POST", "/v1/challenge", `{"nonce":"AAAAAAAAAAA="}{}`, asJSON, 400, record.CodeInvalid, "", ""},
		{"challenge: oversize", "POST", "/v1/challenge", strings.Repeat(" ", 5000), asJSON, 413, record.CodeTooLarge, "", "4096"},
	}...) {
		p := r.do(b, c.method, c.path, c.body, c.kind)
		f := p.failure(t)
		if p.status != c.status || f.Code != c.code || !strings.HasPrefix(f.Field, c.field) || !strings.Contains(f.Message, c.why) {
			t.Errorf("%s: %d %s; want %d, %s, %q: %s", c.about, p.status, p.body, c.status, c.code, c.field, c.why)
		}
		if (p.status == 405) != (p.header.Get("Allow") != "") || !strings.HasPrefix(p.header.Get("Content-Type"), "application/") {
			t.Errorf("%s: %v", c.about, p.header)
		}
	}
	for about, c := range map[string]struct {
		send string
		end  bool // of what is sent
		want string
	}{
		"not HTTP":                 {"\x00\x01\r\n\r\n", true, "400"},
		"large headers":            {"GET /checkpoint HTTP/1.1\r\nHost: b\r\nX: " + strings.Repeat("x", 1<<20), true, "431"},
		"half a body, and the end": {"POST /v1/events HTTP/1.1\r\nHost: b\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n" + good, true, "400"},
		"half a body, and silence": {"POST /v1/events HTTP/1.1\r\nHost: b\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n" + good, false, "400"},
		"half a header, silence":   {"GET /checkpoint HTTP/1.1\r\nHo", false, "400"},
		"garbage in chunks":        {"POST /v1/events HTTP/1.1\r\nHost: b\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", false, "400"},
	} {
		answer := r.rawHTTP(c.send, c.end)
		if m := regexp.MustCompile(`^HTTP/1.1 (\d+) `).FindStringSubmatch(answer); m == nil || m[1] != c.want {
			t.Errorf("%s: %.200q, want %s", about, answer, c.want)
		}
	}
	if r.log().Size() != before {
		t.Errorf("%d entries came of it", r.log().Size()-before)
	}
	r.requireMetric(`bulla_request_bytes{socket="http"}`, "0")
}

// rawHTTP sends bytes to http.sock and returns what comes until the server closes.
func (r *rig) rawHTTP(send string, end bool) string {
	r.t.Helper()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: r.path("http.sock"), Net: "unix"})
	if err != nil {
		r.t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		r.t.Fatal(err)
	}
	_, _ = io.WriteString(c, send) // the server may have had enough before the end
	if end {
		_ = c.CloseWrite() // or have closed
	}
	b, err := io.ReadAll(c)
	if err != nil && !strings.Contains(err.Error(), "reset by peer") {
		r.t.Fatal(err)
	}
	return string(b)
}

// lineStream is a POST of lines under way.
type lineStream struct {
	t    *testing.T
	w    *io.PipeWriter
	body io.ReadCloser
	r    *bufio.Reader
}

func (r *rig) stream(t *testing.T) *lineStream {
	t.Helper()
	in, w := io.Pipe()
	req, err := http.NewRequestWithContext(t.Context(), "POST", "http://bulla/v1/events", in)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-ndjson")
	s := &lineStream{t: t, w: w}
	sent := make(chan struct{})
	go func() { // the answer begins with the first line
		defer close(sent)
		_, _ = io.WriteString(w, "{\"id\":\"1\",\"type\":\"a\"}\n")
	}()
	res, err := r.browser().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	<-sent
	if res.StatusCode != 200 || res.Header.Get("Content-Type") != "application/x-ndjson" {
		t.Errorf("%d %v", res.StatusCode, res.Header)
	}
	t.Cleanup(func() { _ = res.Body.Close(); _ = w.Close() })
	s.body, s.r = res.Body, bufio.NewReader(res.Body)
	return s
}

func (s *lineStream) receipt() record.Receipt {
	s.t.Helper()
	line, err := s.r.ReadBytes('\n')
	if err != nil {
		s.t.Fatalf("%s: %v", line, err)
	}
	r, err := record.ParseReceipt(bytes.TrimSpace(line))
	if err != nil {
		s.t.Fatalf("%s: %v", line, err)
	}
	return r
}

// requireEnd checks that the rest of the answer is one error, or nothing for "".
func (s *lineStream) requireEnd(code record.Code, field, why string) {
	s.t.Helper()
	rest, err := io.ReadAll(s.r)
	if err != nil {
		s.t.Fatal(err)
	}
	if code == "" {
		if len(rest) > 0 {
			s.t.Errorf("more came: %s", rest)
		}
		return
	}
	if f := (reply{body: rest}).failure(s.t); f.Code != code || f.Field != field || !strings.Contains(f.Message, why) {
		s.t.Errorf("%s; want %s, %q: %s", rest, code, field, why)
	}
}

func (s *lineStream) send(lines string) {
	s.t.Helper()
	if _, err := io.WriteString(s.w, lines); err != nil {
		s.t.Fatal(err)
	}
}

// Every line is answered while the stream goes on, in order.
func TestLines(t *testing.T) {
	t.Parallel()
	r := newRig(t, everyone).serve()
	s := r.stream(t)
	first := s.receipt()
	r.requireReceipt(first, `{"id":"1","type":"a"}`)
	s.send("\n  \r\n{\"type\":\"a\",\"id\":\"2\"}\r\n")
	r.requireReceipt(s.receipt(), `{"id":"2","type":"a"}`)
	s.send(`{"id":"3",`) // a line may come in parts
	s.send(`"type":"a"}` + "\n")
	r.requireReceipt(s.receipt(), `{"id":"3","type":"a"}`)
	var many strings.Builder
	const n = 5000
	for i := range n {
		fmt.Fprintf(&many, "{\"id\":\"m%d\",\"type\":\"a\"}\n", i)
	}
	go func() { // the last line need not end
		if _, err := io.WriteString(s.w, many.String()+`{"id":"last","type":"a"}`); err != nil {
			t.Error(err)
		}
	}()
	batches := map[string]bool{}
	for i := range n {
		c := s.receipt()
		r.requireReceipt(c, fmt.Sprintf(`{"id":"m%d","type":"a"}`, i))
		batches[string(c.Checkpoint)] = true
	}
	if len(batches) > n/100 || len(batches) < n/chunkLines {
		t.Errorf("%d lines in %d batches", n, len(batches))
	}
	if err := s.w.Close(); err != nil {
		t.Fatal(err)
	}
	r.requireReceipt(s.receipt(), `{"id":"last","type":"a"}`)
	s.requireEnd("", "", "")
	r.requireMetric(`bulla_request_bytes{socket="http"}`, "0")
}

// The first line that is refused ends the stream; all before it are answered, nothing behind it is taken.
func TestBadLines(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		about, lines string
		code         record.Code
		field, why   string
	}{
		{"not an event", "\n{\"id\":\"2\",\"type\":\"a\"}\n{\"colour\":1,\"type\":\"a\"}\n{\"type\":\"never\"}\n", record.CodeInvalid, "colour", "line 4: "},
		{"other content", "{\"id\":\"1\",\"type\":\"other\"}\n{\"type\":\"never\"}\n", record.CodeConflict, "id", "line 2: "},
		{"too long", strings.Repeat("x", 400_000) + "\n{\"type\":\"never\"}\n", record.CodeTooLarge, "", "line 2: "},
	} {
		r := newRig(t, everyone).serve()
		s := r.stream(t)
		s.receipt()
		go func() { _, _ = io.WriteString(s.w, c.lines) }() // the server may have had enough before the end
		if c.about == "not an event" {
			r.requireReceipt(s.receipt(), `{"id":"2","type":"a"}`)
		}
		s.requireEnd(c.code, c.field, c.why)
		for _, e := range r.entries(1) {
			if bytes.Contains(e.Body, []byte("never")) {
				t.Errorf("%s: a line behind it was taken", c.about)
			}
		}
		r.requireMetric(`bulla_request_bytes{socket="http"}`, "0")
	}
}

// A stream that falls silent is ended: sooner within a line than between lines.
func TestSilentLines(t *testing.T) {
	t.Parallel()
	r := newRig(t, everyone)
	r.lim.frame, r.lim.idle = 50*time.Millisecond, time.Second
	r.serve()
	within, between := r.stream(t), r.stream(t)
	within.receipt()
	between.receipt()
	start := time.Now()
	within.send(`{"type":`)
	within.requireEnd(record.CodeInvalid, "", "did not come to its end")
	if took := time.Since(start); took > r.lim.idle {
		t.Errorf("within a line: after %v", took)
	}
	between.requireEnd(record.CodeInvalid, "", "did not come to its end")
	if took := time.Since(start); took < r.lim.idle/2 {
		t.Errorf("between lines: after %v", took)
	}
}

func TestRoles(t *testing.T) {
	t.Parallel()
	uid := uint32(os.Getuid())
	public := []string{"/checkpoint", "/tile/0/000.p/1", "/v1/status", "/health/alive", "/health/ready", "/health/state", "/metrics"}
	closed := []string{"/v1/entries", "/v1/entries/0", "/v1/entries/0/proof", "/v1/seals", "/tile/entries/000.p/1"}
	for _, c := range []struct {
		about         string
		roles         []ceremony.Role
		reads, writes bool
		why           string
	}{
		{"producer", []ceremony.Role{{Name: ceremony.Producer, UIDs: []uint32{uid}}}, false, true, "nobody in such a role"},
		{"a group's auditor", []ceremony.Role{{Name: ceremony.Auditor, GIDs: []uint32{uint32(os.Getgid())}}}, true, false, ""},
		{"operator", []ceremony.Role{{Name: ceremony.Operator, UIDs: []uint32{uid}}}, true, false, ""},
		{"officer", []ceremony.Role{{Name: ceremony.Security, Any: true}}, true, false, ""},
		{"nobody", []ceremony.Role{{Name: ceremony.Auditor, UIDs: []uint32{uid + 1}}}, false, false, "neither auditor, operator nor officer"},
	} {
		r := newRig(t, c.roles)
		r.cfg.Seal = func(context.Context, string, []byte) (uint64, error) { return 7, nil }
		r.serve()
		b := r.browser()
		for _, path := range public {
			if p := r.do(b, "GET", path, ""); p.status != 200 {
				t.Errorf("%s: %s: %d %s", c.about, path, p.status, p.body)
			}
		}
		requireAllowed := func(p reply, allowed bool, what string) {
			if allowed && p.status/100 != 2 || !allowed && (p.status != 403 || p.failure(t).Code != record.CodeForbidden) {
				t.Errorf("%s: %s: %d %s", c.about, what, p.status, p.body)
			}
			if !allowed && what != "events" && what != "seals" && !strings.Contains(p.failure(t).Message, c.why) {
				t.Errorf("%s: %s: %s", c.about, what, p.body)
			}
		}
		for _, path := range closed {
			requireAllowed(r.do(b, "GET", path, ""), c.reads, path)
		}
		requireAllowed(r.do(b, "POST", "/v1/seals", ""), c.reads, "seals")
		requireAllowed(r.do(b, "POST", "/v1/events", good, asJSON), c.writes, "events")
	}
}

// Generic clients of transparency logs read ours: entries and tiles agree with the signed head, partial ones included.
func TestTiles(t *testing.T) {
	t.Parallel()
	r := newRig(t, everyone).serve()
	if _, err := r.dial().AppendBatch(t.Context(), "", api.WantAck, events(700, `{"id":"%d","type":"a"}`)...); err != nil {
		t.Fatal(err)
	}
	b := r.browser()
	p := r.do(b, "GET", "/checkpoint", "")
	head, _, err := record.OpenCheckpoint(p.body, r.verifier(0))
	if err != nil || head.Size != 701 || p.header.Get("Cache-Control") != "no-cache" || !strings.HasPrefix(p.header.Get("Content-Type"), "text/plain") {
		t.Fatalf("%+v, %v, %v", head, p.header, err)
	}
	tiles := tileReader{t, r, b}
	tree := tlog.Tree{N: int64(head.Size), Hash: head.Root}
	hashes := tlog.TileHashReader(tree, tiles)
	var all [][]byte
	for n := int64(0); n*256 < tree.N; n++ {
		w := int(min(256, tree.N-n*256))
		bundle, err := record.ParseBundle(tiles.read(tlog.Tile{H: 8, L: -1, N: n, W: w}))
		if err != nil || len(bundle) != w {
			t.Fatalf("bundle %d: %d entries, %v", n, len(bundle), err)
		}
		all = append(all, bundle...)
	}
	for _, i := range []int64{0, 1, 255, 256, 511, 512, 700} {
		leaf, err := hashes.ReadHashes([]int64{tlog.StoredHashIndex(0, i)})
		if err != nil || leaf[0] != record.LeafHash(all[i]) {
			t.Errorf("entry %d: %v", i, err)
		}
		e := r.do(b, "GET", fmt.Sprintf("/v1/entries/%d", i), "")
		if e.status != 200 || !bytes.Equal(e.body, all[i]) {
			t.Errorf("entry %d: %d %s", i, e.status, e.body)
		}
		proof := r.do(b, "GET", fmt.Sprintf("/v1/entries/%d/proof", i), "")
		receipt, err := record.ParseReceipt(bytes.TrimSpace(proof.body))
		if err != nil {
			t.Fatal(err)
		}
		if got, _, err := receipt.Verify(r.verifier(0)); err != nil || got.Index != uint64(i) {
			t.Errorf("proof of %d: %v", i, err)
		}
		text := r.do(b, "GET", fmt.Sprintf("/v1/entries/%d/proof", i), "", "Accept: text/plain")
		if !bytes.Equal(text.body, receipt.TLogProof()) || !strings.HasPrefix(text.header.Get("Content-Type"), "text/plain") {
			t.Errorf("proof of %d as text: %s", i, text.body)
		}
	}
	// A partial tile stays as it was when it is asked for again later; nobody keeps a checkpoint.
	if p := r.do(b, "HEAD", "/tile/0/000.p/5", ""); p.status != 200 || len(p.body) != 0 || !strings.Contains(p.header.Get("Cache-Control"), "immutable") {
		t.Errorf("HEAD: %d %v", p.status, p.header)
	}
	if p := r.do(b, "GET", "/tile/1/000.p/2", ""); p.status != 200 || len(p.body) != 64 {
		t.Errorf("level 1: %d, %d bytes", p.status, len(p.body))
	}
}

// tileReader reads tiles over http.sock.
type tileReader struct {
	t *testing.T
	r *rig
	b *http.Client
}

func (x tileReader) Height() int                             { return 8 }
func (x tileReader) SaveTiles(tiles []tlog.Tile, d [][]byte) {}

func (x tileReader) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	var out [][]byte
	for _, t := range tiles {
		out = append(out, x.read(t))
	}
	return out, nil
}

func (x tileReader) read(t tlog.Tile) []byte {
	x.t.Helper()
	p := x.r.do(x.b, "GET", "/"+record.TilePath(t), "")
	if p.status != 200 {
		x.t.Fatalf("%v: %d %s", t, p.status, p.body)
	}
	return p.body
}

func TestPages(t *testing.T) {
	t.Parallel()
	r := newRig(t, everyone).serve()
	if _, err := r.dial().AppendBatch(t.Context(), "", api.WantAck, events(249, `{"id":"%d","type":"a"}`)...); err != nil {
		t.Fatal(err)
	}
	b := r.browser()
	var seen, size uint64
	for path := "/v1/entries"; path != ""; {
		size = r.log().Size() // before the record that somebody read, if this makes one
		p := r.do(b, "GET", path, "")
		var page api.Page
		if err := json.Unmarshal(p.body, &page); err != nil || p.status != 200 || page.Size != size {
			t.Fatalf("%s: %d %s: %v", path, p.status, p.body, err)
		}
		for _, raw := range page.Entries {
			if want, err := r.log().Entry(seen); err != nil || !bytes.Equal(raw, want) {
				t.Fatalf("entry %d: %s, not %s (%v)", seen, raw, want, err)
			}
			seen++
		}
		path = ""
		if page.Next != nil {
			if *page.Next != seen {
				t.Errorf("next is %d after %d", *page.Next, seen)
			}
			path = fmt.Sprintf("/v1/entries?from=%d", seen)
		}
	}
	if seen != size || seen < 250 {
		t.Errorf("%d entries", seen)
	}
	size = r.log().Size()
	for path, want := range map[string]string{
		fmt.Sprintf("/v1/entries?from=%d", size): fmt.Sprintf(`{"entries":[],"size":%d}`, size),
		"/v1/entries?from=9999&limit=1":          fmt.Sprintf(`{"entries":[],"size":%d}`, size),
		"/v1/seals":                              "{\n  \"indices\": []\n}",
	} {
		if p := r.do(b, "GET", path, ""); p.status != 200 || strings.TrimSpace(string(p.body)) != want {
			t.Errorf("%s: %d %s", path, p.status, p.body)
		}
	}
	// A page has a bound in bytes, too.
	if _, err := r.dial().AppendBatch(t.Context(), "", api.WantAck, events(60, `{"data":{"x":"`+strings.Repeat("x", 59_000)+`"},"id":"big%d","type":"a"}`)...); err != nil {
		t.Fatal(err)
	}
	if _, err := r.dial().AppendBatch(t.Context(), "", api.WantAck, events(60, `{"data":{"x":"`+strings.Repeat("x", 59_000)+`"},"id":"more%d","type":"a"}`)...); err != nil {
		t.Fatal(err)
	}
	p := r.do(b, "GET", fmt.Sprintf("/v1/entries?from=%d&limit=1000", size), "")
	var page api.Page
	if err := json.Unmarshal(p.body, &page); err != nil || page.Next == nil || *page.Next != size+uint64(len(page.Entries)) || len(p.body) > 5<<20 {
		t.Errorf("%d bytes, %d entries, next %v, %v", len(p.body), len(page.Entries), page.Next, err)
	}
}

// With several logs, paths name the log.
func TestPathsOfSeveralLogs(t *testing.T) {
	t.Parallel()
	r := newRig(t, everyone, "a", "b")
	r.cfg.Cosigned = func(origin string) [][]byte { return [][]byte{[]byte("cosigned " + origin + "\n")} }
	r.serve()
	b := r.browser()
	for _, rt := range routes {
		if !rt.log || rt.method != "GET" {
			continue
		}
		path := strings.NewReplacer("{index}", "0", "{path...}", "0/000.p/1", "{n}", "0").Replace(rt.path)
		if p := r.do(b, "GET", path, ""); p.status != 404 || !strings.Contains(p.failure(t).Message, "/logs/NAME"+path) {
			t.Errorf("%s: %d %s", path, p.status, p.body)
		}
		if p := r.do(b, "GET", "/logs/b"+path, ""); p.status != 200 {
			t.Errorf("%s: %d %s", path, p.status, p.body)
		}
	}
	size := r.cfg.Logs[1].Ledger.Size() // with what was read of it
	p := r.do(b, "POST", "/logs/b/v1/events", good, asJSON)
	if c, err := record.ParseReceipt(bytes.TrimSpace(p.body)); err != nil {
		t.Errorf("%s: %v", p.body, err)
	} else if _, _, err := c.Verify(r.verifier(1)); err != nil {
		t.Error(err)
	}
	var s api.Status
	if err := json.Unmarshal(r.do(b, "GET", "/v1/status", "").body, &s); err != nil || len(s.Logs) != 2 || s.Logs[1].Size != size+1 || s.Logs[0].Size != 1 {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestStatusAndHealth(t *testing.T) {
	t.Parallel()
	r := newRig(t, everyone)
	r.cfg.Status = func() *api.Machine { return &api.Machine{Version: "1.2", Clock: &api.ClockStatus{State: "synced"}} }
	r.cfg.Gauges = func() []Gauge {
		return []Gauge{{Name: "bulla_clock_bound_seconds", Help: "x", Value: 0.5}, {Name: "bulla_x_total", Help: "x", Counter: true, Labels: []Label{{"source", "a"}}, Value: 2}}
	}
	r.serve()
	b := r.browser()
	if _, err := r.dial().Append(t.Context(), "", []byte(good)); err != nil {
		t.Fatal(err)
	}
	var s api.Status
	if err := json.Unmarshal(r.do(b, "GET", "/v1/status", "").body, &s); err != nil {
		t.Fatal(err)
	}
	l := s.Logs[0]
	vkey := l.VKeys[0]
	v, err := record.NewVerifier(vkey)
	if err != nil || v.KeyHash() != r.verifier(0).KeyHash() {
		t.Errorf("vkey %s: %v", vkey, err)
	}
	if c, _, err := record.OpenCheckpoint([]byte(l.Checkpoint), v); err != nil || c.Size != 2 || l.Size != 2 || l.Name != "log" || l.Origin != origin || l.Refusing != nil || l.Entries != 1 || l.Batches != 1 {
		t.Errorf("%+v: %v", l, err)
	}
	genesis, err := r.log().Entry(0)
	if leaf := record.LeafHash(genesis); err != nil || hex.EncodeToString(leaf[:]) != l.Genesis {
		t.Errorf("genesis %s: %v", l.Genesis, err)
	}
	if s.Machine == nil || s.Machine.Version != "1.2" || s.Machine.Clock.State != "synced" {
		t.Errorf("machine: %+v", s.Machine)
	}
	requireHealth := func(about string, code record.Code) {
		t.Helper()
		alive, ready, state := r.do(b, "GET", "/health/alive", ""), r.do(b, "GET", "/health/ready", ""), r.do(b, "GET", "/health/state", "")
		if alive.status != 200 || state.status != 200 {
			t.Errorf("%s: alive %d, state %d", about, alive.status, state.status)
		}
		var states map[string]api.FailureDetail
		if err := json.Unmarshal(state.body, &states); err != nil {
			t.Fatal(err)
		}
		metric := fmt.Sprintf("\nbulla_refusing{code=%q,log=\"log\"} 1\n", code)
		if code == "" {
			code, metric = "ok", "\nbulla_refusing{code=\"\",log=\"log\"} 0\n"
			if ready.status != 200 {
				t.Errorf("%s: ready: %d %s", about, ready.status, ready.body)
			}
		} else if f := ready.failure(t); ready.status != 503 || f.Code != code || ready.header.Get("Retry-After") == "" {
			t.Errorf("%s: ready: %d %s", about, ready.status, ready.body)
		}
		if states["log"].Code != code {
			t.Errorf("%s: state %s", about, state.body)
		}
		if m := r.do(b, "GET", "/metrics", "").body; !bytes.Contains(m, []byte(metric)) {
			t.Errorf("%s: no %q", about, metric)
		}
	}
	requireHealth("all is well", "")
	r.log().Hold(&ledger.Refusal{Code: record.CodeRollback, Message: "older than its TPM"})
	requireHealth("held", record.CodeRollback)
	p := r.do(b, "POST", "/v1/events", good, asJSON)
	if p.status != 503 || p.failure(t).Code != record.CodeRollback || p.header.Get("Retry-After") != "30" {
		t.Errorf("%d %v %s", p.status, p.header, p.body)
	}
	r.log().Hold(nil)
	r.mu.Lock()
	r.stamp = clock.Stamp{State: clock.Unsynced}
	r.mu.Unlock()
	requireHealth("no time", record.CodeClock)
	if p := r.do(b, "POST", "/v1/events", good, asJSON); p.status != 503 || p.header.Get("Retry-After") != "1" {
		t.Errorf("%d %v %s", p.status, p.header, p.body)
	}
	m := string(r.do(b, "GET", "/metrics", "").body)
	for _, want := range []string{
		`bulla_log_size{log="log"} 2`, `bulla_appends_total{code="ok",log="log"} 1`, `bulla_appends_total{code="rollback",log="log"} 1`, `bulla_appends_total{code="clock",log="log"} 1`,
		`bulla_append_seconds_count{log="log"} 1`, `bulla_batches_total{log="log"} 1`, `bulla_queue_events{log="log"} 0`, `bulla_clock_bound_seconds 0.5`, "# TYPE bulla_x_total counter", `bulla_x_total{source="a"} 2`, `bulla_connections{socket="sign"} 1`,
	} {
		if !strings.Contains(m, "\n"+want+"\n") {
			t.Errorf("no %s", want)
		}
	}
}

func TestSeals(t *testing.T) {
	t.Parallel()
	r := newRig(t, everyone)
	var reasons []string
	var nonces [][]byte
	fails := errors.New("no TPM answers")
	var fail error
	r.cfg.Seal = func(ctx context.Context, reason string, nonce []byte) (uint64, error) {
		if _, ok := ctx.Deadline(); !ok {
			t.Error("a seal may take for ever")
		}
		reasons, nonces = append(reasons, reason), append(nonces, nonce)
		return 7, fail
	}
	r.serve()
	b := r.browser()
	var s api.Sealed
	p := r.do(b, "POST", "/v1/seals", "")
	if err := json.Unmarshal(p.body, &s); err != nil || p.status != 201 || s.Number != 7 || s.Nonce != "" {
		t.Errorf("%d %s: %v", p.status, p.body, err)
	}
	nonce := base64.StdEncoding.EncodeToString([]byte("12345678"))
	p = r.do(b, "POST", "/v1/challenge", `{ "nonce" : "`+nonce+`" }`, asJSON)
	if err := json.Unmarshal(p.body, &s); err != nil || p.status != 201 || s.Nonce != nonce {
		t.Errorf("%d %s: %v", p.status, p.body, err)
	}
	if fmt.Sprint(reasons) != fmt.Sprint([]string{ledger.ReasonDemand, ledger.ReasonChallenge}) || nonces[0] != nil || string(nonces[1]) != "12345678" {
		t.Errorf("asked for %v with %q", reasons, nonces)
	}
	fail = fails
	if p = r.do(b, "POST", "/v1/seals", ""); p.status != 503 || p.failure(t).Code != record.CodeTPM || p.header.Get("Retry-After") != "1" {
		t.Errorf("%d %s", p.status, p.body)
	}
	fail = &ledger.Refusal{Code: record.CodeRollback, Message: "older than its TPM"}
	if p = r.do(b, "POST", "/v1/seals", ""); p.status != 503 || p.failure(t).Code != record.CodeRollback {
		t.Errorf("%d %s", p.status, p.body)
	}
	fail = nil
	for i := 0; p.status != 429; i++ {
		if p = r.do(b, "POST", "/v1/seals", ""); p.status != 201 && p.status != 429 || i > 2*sealBurst {
			t.Fatalf("%d: %d %s", i, p.status, p.body)
		}
	}
	if p.failure(t).Code != record.CodeBusy || p.header.Get("Retry-After") != "1" {
		t.Errorf("too many: %s", p.body)
	}
	none := newRig(t, everyone).serve()
	if p = none.do(none.browser(), "POST", "/v1/challenge", `{"nonce":"`+nonce+`"}`, asJSON); p.status != 503 || p.failure(t).Code != record.CodeTPM {
		t.Errorf("without a TPM: %d %s", p.status, p.body)
	}
}

// Idle connections to http.sock cost nobody anything; those beyond the bound are told so.
func TestHTTPConnectionsAreBounded(t *testing.T) {
	t.Parallel()
	r := newRig(t, everyone)
	r.lim.conns, r.lim.uidConns = 200, 100
	r.serve()
	b := r.browser()
	r.do(b, "GET", "/checkpoint", "") // the first connection
	for range 99 {
		c, err := net.Dial("unix", r.path("http.sock"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	// One more is accepted after those, and told.
	p := r.do(r.browser(), "POST", "/v1/events", good, asJSON)
	if f := p.failure(t); p.status != 429 || f.Code != record.CodeBusy || p.header.Get("Retry-After") != "1" {
		t.Errorf("%d %v %s", p.status, p.header, p.body)
	}
	if p := r.do(b, "POST", "/v1/events", good, asJSON); p.status != 201 {
		t.Errorf("the first connection: %d %s", p.status, p.body)
	}
}

// A client of http.sock that does not read its answer is cut off, and what it held comes back.
func TestHTTPClientThatDoesNotRead(t *testing.T) {
	t.Parallel()
	r := newRig(t, everyone)
	r.lim.write = 300 * time.Millisecond
	r.serve()
	for _, name := range []string{"a", "b"} {
		if _, err := r.dial().AppendBatch(t.Context(), "", api.WantAck, events(50, `{"data":{"x":"`+strings.Repeat("x", 59_000)+`"},"id":"`+name+`%d","type":"a"}`)...); err != nil {
			t.Fatal(err)
		}
	}
	c, err := net.Dial("unix", r.path("http.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "GET /v1/entries?limit=1000 HTTP/1.1\r\nHost: b\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	r.requireMetric(`bulla_request_bytes{socket="http"}`, `[1-9].*`)
	r.requireMetric(`bulla_request_bytes{socket="http"}`, "0")
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(c)
	if err != nil && !strings.Contains(err.Error(), "reset by peer") || len(b) > 3<<20 {
		t.Errorf("%d bytes came, %v", len(b), err)
	}
}
