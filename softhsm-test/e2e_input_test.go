package softhsmtest_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"bulla/api"
	"bulla/record"
)

const (
	maxFrame     = 4 << 20         // bytes, as the hello says
	maxResident  = 300 << 20       // bytes that the daemon may ever hold
	maxDelay     = 8 * time.Second // less than a stalled frame is waited for
	idleConns    = 2000
	stalledConns = 100 // of frames that together are more than the daemon may hold
)

// badEvents are events that no socket takes, each with the field and the reason that the answer must name.
var badEvents = []struct{ name, event, field, reason string }{
	{"10,000 levels", `{"type":"bad.test","data":{"x":` + strings.Repeat("[", 10_000) + strings.Repeat("]", 10_000) + `}}`, "", "deep"},
	{"invalid UTF-8", "{\"type\":\"bad.test\",\"data\":{\"x\":\"\xff\"}}", "", "UTF-8"},
	{"lone surrogate", `{"type":"bad.test","data":{"x":"\ud800"}}`, "", "surrogate"},
	{"duplicate key", `{"type":"bad.test","data":{"x":1,"x":2}}`, "", "twice|duplicate"},
	{"duplicate member", `{"type":"bad.test","type":"bad.test"}`, "", "twice|duplicate"},
	{"float", `{"type":"bad.test","data":{"x":0.5}}`, "", "integer"},
	{"1.0", `{"type":"bad.test","data":{"x":1.0}}`, "", "integer"},
	{"-0", `{"type":"bad.test","data":{"x":-0}}`, "", "integer"},
	{"null", `{"type":"bad.test","data":{"x":null}}`, "", "null"},
	{"2^53", `{"type":"bad.test","data":{"x":9007199254740992}}`, "", "2\\^53"},
	{"2^53+1", `{"type":"bad.test","data":{"x":9007199254740993}}`, "", "2\\^53"},
	{"-2^53", `{"type":"bad.test","data":{"x":-9007199254740992}}`, "", "2\\^53"},
	{"1e400", `{"type":"bad.test","data":{"x":1e400}}`, "", "integer"},
	{"unknown field", `{"type":"bad.test","colour":"red"}`, "colour", "unknown"},
	{"unknown field within", `{"type":"bad.test","actor":{"id":"a","shoe":43}}`, "actor.shoe", "unknown"},
	{"missing type", `{"data":{}}`, "type", "required"},
	{"type in capitals", `{"type":"Bad.Test"}`, "type", ""},
	{"type of another kind", `{"type":7}`, "type", "string"},
	{"data is no object", `{"type":"bad.test","data":[1]}`, "data", "object"},
	{"no object", `"event"`, "", "object"},
	{"time without nanoseconds", `{"type":"bad.test","time":"2026-11-23T01:40:00Z"}`, "time", ""},
	{"stream without id", `{"type":"bad.test","stream":{"n":1}}`, "stream.id", "required"},
	{"stream number below zero", `{"type":"bad.test","stream":{"id":"s","n":-1}}`, "stream.n", ""},
	{"60,001 bytes", eventOf(60_001), "", "60000|60,000"},
}

// eventOf is an event of so many canonical bytes.
func eventOf(n int) string {
	const around = `{"data":{"x":""},"type":"bad.test"}`
	return `{"data":{"x":"` + strings.Repeat("x", n-len(around)) + `"},"type":"bad.test"}`
}

// code is what a bad event is refused with.
func codeOf(name string) record.Code {
	if name == "60,001 bytes" {
		return record.CodeTooLarge
	}
	return record.CodeInvalid
}

// bystander appends single events while others misbehave, and measures how long it waits.
type bystander struct {
	end   func() // ends it, and waits for that
	mu    sync.Mutex
	count int
	worst time.Duration
}

func startBystander(t *testing.T, dir string) *bystander {
	t.Helper()
	c := dial(t, dir)
	b := &bystander{}
	ctx, cancel := context.WithCancel(t.Context())
	var done sync.WaitGroup
	done.Go(func() {
		for n := 1; ctx.Err() == nil; n++ {
			start := time.Now()
			if _, err := c.Append(context.Background(), "", fmt.Appendf(nil, `{"type":"good.test","stream":{"id":"bystander","n":%d}}`, n)); err != nil {
				t.Errorf("the bystander's event %d: %v", n, err)
				return
			}
			b.mu.Lock()
			b.count++
			b.worst = max(b.worst, time.Since(start))
			b.mu.Unlock()
			select {
			case <-time.After(2 * time.Millisecond): // it is no attacker
			case <-ctx.Done():
			}
		}
	})
	b.end = func() { cancel(); done.Wait() }
	t.Cleanup(b.end)
	return b
}

// requireUnharmed checks that the bystander was served all the time, still is, and that the daemon never held much memory.
func (b *bystander) requireUnharmed(t *testing.T, daemon *child) {
	t.Helper()
	b.mu.Lock()
	before := b.count
	b.mu.Unlock()
	requireSoon(t, func() error {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.count < before+20 {
			return fmt.Errorf("the bystander got %d events through", b.count-before)
		}
		return nil
	})
	b.end()
	if b.worst > maxDelay {
		t.Errorf("the bystander waited %v for one event", b.worst)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", daemon.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(status)
	if m == nil {
		t.Fatal("no VmHWM")
	}
	kib, err := strconv.Atoi(string(m[1]))
	if err != nil || kib<<10 > maxResident {
		t.Errorf("the daemon held %d KiB: %v", kib, err)
	}
	t.Logf("the bystander: %d events, at worst %v; the daemon: %d KiB", b.count, b.worst, kib)
}

// wire is a raw connection to sign.sock, so that it can send anything.
type wire struct {
	t    *testing.T
	name string
	c    *net.UnixConn
	r    *bufio.Reader
}

func connect(t *testing.T, dir, name string) *wire {
	t.Helper()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: filepath.Join(dir, "sign.sock"), Net: "unix"})
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	t.Cleanup(func() { _ = c.Close() }) // it may be closed already
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return &wire{t, name, c, bufio.NewReader(c)}
}

// greet exchanges hellos.
func (w *wire) greet() *wire {
	w.t.Helper()
	w.send(frame(`{"v":1,"max_frame":4194304}`))
	var hello api.Hello
	if err := json.Unmarshal(w.read(), &hello); err != nil || hello.V != 1 || hello.MaxFrame != maxFrame {
		w.t.Fatalf("%s: hello %+v: %v", w.name, hello, err)
	}
	return w
}

func frame(s string) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(s))), s...)
}

func (w *wire) send(b []byte) {
	w.t.Helper()
	if _, err := w.c.Write(b); err != nil {
		w.t.Fatalf("%s: sending: %v", w.name, err)
	}
}

func (w *wire) read() []byte {
	w.t.Helper()
	var n uint32
	err := binary.Read(w.r, binary.BigEndian, &n)
	if err == nil && n > maxFrame {
		err = fmt.Errorf("a frame of %d bytes", n)
	}
	b := make([]byte, n)
	if err == nil {
		_, err = io.ReadFull(w.r, b)
	}
	if err != nil {
		w.t.Fatalf("%s: reading an answer: %v", w.name, err)
	}
	return b
}

func (w *wire) answer() api.Answer {
	w.t.Helper()
	var a api.Answer
	if err := json.Unmarshal(w.read(), &a); err != nil {
		w.t.Fatalf("%s: %v", w.name, err)
	}
	return a
}

// requireClosed checks that the server has closed the connection.
func (w *wire) requireClosed() {
	w.t.Helper()
	if _, err := w.r.ReadByte(); !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
		w.t.Errorf("%s: the connection was not closed: %v", w.name, err)
	}
}

func (w *wire) requireRefusal(id uint64, code record.Code, field, reason string) {
	w.t.Helper()
	a := w.answer()
	if a.ID != id || a.Status != api.StatusRefused || a.Code != code || !strings.HasPrefix(a.Field, field) || !regexp.MustCompile(reason).MatchString(a.Message) {
		w.t.Errorf("%s: answered %+v; want id %d, refused, %s, field %q, reason %q", w.name, a, id, code, field, reason)
	}
}

func request(id int, events ...string) string {
	return fmt.Sprintf(`{"id":%d,"op":"append","events":[%s]}`, id, strings.Join(events, ","))
}

const goodEvent = `{"type":"good.test"}`

// TestBadFrames sends everything to sign.sock that it must not take.
func TestBadFrames(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	daemon := startDev(t, dir)
	b := startBystander(t, dir)

	silent := connect(t, dir, "no hello")
	slow := connect(t, dir, "slow client").greet()
	slow.send(frame(request(1, goodEvent))[:20])

	// What cannot be read as a request is answered with id 0, and that is the end of the connection.
	for _, row := range []struct {
		name   string
		send   []byte
		end    bool // of what is sent
		code   record.Code
		reason string
	}{
		{"oversize frame", []byte{0x00, 0x40, 0x00, 0x01}, false, record.CodeTooLarge, "4194305"},
		{"frame of 4 GiB", []byte{0xff, 0xff, 0xff, 0xff}, false, record.CodeTooLarge, "4294967295"},
		{"empty frame", []byte{0, 0, 0, 0}, false, record.CodeInvalid, "0 bytes"},
		{"half a frame", frame(request(1, goodEvent))[:30], true, record.CodeInvalid, "not finished"},
		{"half a length", []byte{0, 0}, true, record.CodeInvalid, "EOF"},
		{"another protocol", []byte("GET / HTTP/1.1\r\n\r\n"), false, record.CodeTooLarge, "must be 1 to"},
		{"garbage", frame("\x00\x01\x02garbage"), false, record.CodeInvalid, "expected"},
		{"no object", frame("[]"), false, record.CodeInvalid, "expected"},
		{"no id", frame(`{"op":"append","events":[` + goodEvent + `]}`), false, record.CodeInvalid, "missing"},
		{"10,000 levels", frame(strings.Repeat("[", 10_000)), false, record.CodeInvalid, "expected"},
		{"id of 2^53", frame(`{"id":9007199254740992,"op":"append","events":[` + goodEvent + `]}`), false, record.CodeInvalid, "2\\^53"},
	} {
		w := connect(t, dir, row.name).greet()
		w.send(row.send)
		if row.end {
			if err := w.c.CloseWrite(); err != nil {
				t.Fatal(err)
			}
		}
		w.requireRefusal(0, row.code, "", row.reason)
		w.requireClosed()
	}
	for name, hello := range map[string]string{"version 2": `{"v":2,"max_frame":4194304}`, "no version": `{}`, "hello is garbage": `hello`} {
		w := connect(t, dir, name)
		w.read() // the server's
		w.send(frame(hello))
		w.requireRefusal(0, record.CodeInvalid, "", "hello")
		w.requireClosed()
	}

	// What is a request with something wrong in it is refused by its id, and the connection goes on.
	w := connect(t, dir, "").greet()
	id := 0
	refused := func(name, send string, code record.Code, field, reason string) {
		w.name = name
		w.send(frame(send))
		w.requireRefusal(uint64(id), code, field, reason)
	}
	for _, bad := range badEvents {
		id++
		field := "events[1]"
		if bad.field != "" {
			field += "." + bad.field
		}
		if bad.name == "10,000 levels" {
			field = "events" // too deep to find the event's end
		}
		refused(bad.name, request(id, goodEvent, bad.event), codeOf(bad.name), field, bad.reason)
	}
	for _, row := range []struct{ name, rest, field, reason string }{
		{"wrong operation", `"op":"remove","events":[` + goodEvent + `]`, "op", "append"},
		{"unknown member", `"op":"append","colour":"red","events":[` + goodEvent + `]`, "colour", "unknown"},
		{"member twice", `"op":"append","op":"append","events":[` + goodEvent + `]`, "op", "twice"},
		{"no events", `"op":"append"`, "events", "missing"},
		{"empty events", `"op":"append","events":[]`, "events", "empty"},
		{"wants much", `"op":"append","want":"everything","events":[` + goodEvent + `]`, "want", "receipt or ack"},
		{"no such log", `"op":"append","log":"bulla.example/none","events":[` + goodEvent + `]`, "log", "no log"},
	} {
		id++
		refused(row.name, fmt.Sprintf(`{"id":%d,%s}`, id, row.rest), record.CodeInvalid, row.field, row.reason)
	}
	id++
	refused("10,001 events", request(id, strings.Repeat(goodEvent+",", 10_000)+goodEvent), record.CodeTooLarge, "events", "10000|10,000")

	// The largest event there is, and the connection that saw all of that, are still good.
	id++
	w.name = "60,000 bytes"
	w.send(frame(request(id, eventOf(60_000))))
	if a := w.answer(); a.ID != uint64(id) || a.Status != api.StatusOK || len(a.Items) != 1 {
		t.Errorf("%s: %.300v", w.name, a)
	}
	streams(t, func(event string) (uint64, []byte, record.Code, string) {
		id++
		w.name = event
		w.send(frame(request(id, event)))
		if a := w.answer(); a.Status == api.StatusOK {
			return a.Items[0].Index, a.Items[0].Entry, "", ""
		} else {
			return 0, nil, a.Code, a.Message
		}
	})

	// Memory that others hold is refused to large requests, and to nobody else.
	stalled := stall(t, dir)
	deaf(t, dir)
	idle(t, dir, "sign.sock")
	late := connect(t, dir, "among the idle").greet()
	late.send(frame(request(1, goodEvent)))
	if a := late.answer(); a.Status != api.StatusOK {
		t.Errorf("among the idle: %.300v", a)
	}
	silent.read() // the server's hello
	silent.requireRefusal(0, record.CodeInvalid, "", "hello|time")
	silent.requireClosed()
	slow.requireRefusal(0, record.CodeInvalid, "", "not finished|time")
	slow.requireClosed()
	stalled.Wait()
	b.requireUnharmed(t, daemon)
	if code := daemon.stop(); code != 0 {
		t.Errorf("exit code %d:\n%s", code, daemon.stderr)
	}
}

// stall opens connections that send large frames and never their last byte; it is done when the server has given up on all of them.
func stall(t *testing.T, dir string) *sync.WaitGroup {
	t.Helper()
	var done sync.WaitGroup
	almost := frame(request(1, strings.TrimSuffix(strings.Repeat(eventOf(50_000)+",", 80), ",")))
	almost = almost[:len(almost)-1]
	for range stalledConns {
		w := connect(t, dir, "stalled").greet()
		done.Go(func() {
			_, _ = w.c.Write(almost) // the server may end it before
			if _, err := io.Copy(io.Discard, w.r); err != nil && !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("stalled: the server did not close: %v", err)
			}
		})
	}
	return &done
}

// deaf sends requests with large answers, and never reads one.
func deaf(t *testing.T, dir string) {
	t.Helper()
	w := connect(t, dir, "deaf").greet()
	large := frame(request(1, strings.TrimSuffix(strings.Repeat(eventOf(1_000)+",", 50), ",")))
	var done sync.WaitGroup
	done.Go(func() {
		for range 1000 {
			if _, err := w.c.Write(large); err != nil {
				return // the server reads no more of it
			}
		}
	})
	t.Cleanup(func() { _ = w.c.Close(); done.Wait() })
}

// idle opens connections that do nothing, and leaves them open to the test's end.
func idle(t *testing.T, dir, socket string) {
	t.Helper()
	for i := range idleConns {
		c, err := net.Dial("unix", filepath.Join(dir, socket))
		if err != nil {
			t.Fatalf("idle connection %d: %v", i, err)
		}
		t.Cleanup(func() { _ = c.Close() }) // nothing was asked of it
	}
}

// streams repeats, skips and goes back in a stream. take appends one event and returns its place, or why it was refused.
func streams(t *testing.T, take func(event string) (uint64, []byte, record.Code, string)) {
	t.Helper()
	event := func(n int, data string) string {
		return fmt.Sprintf(`{"type":"stream.test","stream":{"id":"wayward","n":%d},"data":{"x":%q}}`, n, data)
	}
	first, entry, code, reason := take(event(1, "a"))
	if code != "" {
		t.Fatalf("stream: number 1: %s: %s", code, reason)
	}
	if i, again, code, reason := take(event(1, "a")); code != "" || i != first || !bytes.Equal(again, entry) {
		t.Errorf("stream: repeated with the same content: entry %d, %s %s; want entry %d", i, code, reason, first)
	}
	if _, _, code, reason := take(event(1, "b")); code != record.CodeConflict {
		t.Errorf("stream: repeated with other content: %q %s", code, reason)
	}
	second, _, code, reason := take(event(5, "a"))
	if code != "" || second <= first {
		t.Errorf("stream: skipped: entry %d, %s %s", second, code, reason)
	}
	if _, _, code, reason := take(event(3, "a")); code != record.CodeStale || !strings.Contains(reason, "5") {
		t.Errorf("stream: going back: %q %s; want stale, naming 5", code, reason)
	}
	if i, _, code, reason := take(event(1, "a")); code != "" || i != first {
		t.Errorf("stream: repeated within the window: entry %d, %s %s; want entry %d", i, code, reason, first)
	}
	if i, _, code, reason := take(event(6, "a")); code != "" || i <= second {
		t.Errorf("stream: going on: entry %d, %s %s", i, code, reason)
	}
}

// TestBadRequests sends everything to http.sock that it must not take.
func TestBadRequests(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	daemon := startDev(t, dir)
	b := startBystander(t, dir)
	w := browse(t, dir)
	path := filepath.Join(dir, "http.sock")
	slow, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	if _, err := slow.Write([]byte("POST /v1/events HTTP/1.1\r\nHost: bulla\r\nContent-")); err != nil {
		t.Fatal(err)
	}

	const plain, lines = "application/json", "application/x-ndjson"
	post := func(name, path, kind, body string, status int, code record.Code, field, reason string) {
		t.Helper()
		got, b, err := w.do(t.Context(), "POST", path, kind, body)
		var f api.Failure
		if err == nil {
			err = json.Unmarshal(b, &f)
		}
		if e := f.Error; err != nil || got != status || e.Code != code || !strings.HasPrefix(e.Field, field) || !regexp.MustCompile(reason).MatchString(e.Message) {
			t.Errorf("%s: answered %d %s (%v); want %d, %s, field %q, reason %q", name, got, b, err, status, code, field, reason)
		}
	}
	for _, bad := range badEvents {
		status, field := http.StatusBadRequest, "events[1]"
		if codeOf(bad.name) == record.CodeTooLarge {
			status = http.StatusRequestEntityTooLarge
		}
		post(bad.name, "/v1/events", plain, bad.event, status, codeOf(bad.name), bad.field, bad.reason)
		if bad.field != "" {
			field += "." + bad.field
		}
		post(bad.name+" in an array", "/v1/events", plain, "["+goodEvent+","+bad.event+"]", status, codeOf(bad.name), field, bad.reason)
		// Lines are answered by lines: the status was sent before.
		post(bad.name+" in a line", "/v1/events", lines, bad.event+"\n", http.StatusOK, codeOf(bad.name), bad.field, bad.reason)
	}
	for _, row := range []struct {
		name, path, kind, body string
		status                 int
		code                   record.Code
		field, reason          string
	}{
		{"garbage", "/v1/events", plain, "\x00\x01garbage", 400, record.CodeInvalid, "", ""},
		{"nothing", "/v1/events", plain, "", 400, record.CodeInvalid, "", ""},
		{"an empty array", "/v1/events", plain, "[]", 400, record.CodeInvalid, "events", "empty"},
		{"half an event", "/v1/events", plain, goodEvent[:10], 400, record.CodeInvalid, "", ""},
		{"two events without an array", "/v1/events", plain, goodEvent + goodEvent, 400, record.CodeInvalid, "", ""},
		{"oversize body", "/v1/events", plain, "[" + strings.Repeat(" ", maxFrame) + goodEvent + "]", 413, record.CodeTooLarge, "", "4194304"},
		{"10,001 events", "/v1/events", plain, "[" + strings.Repeat(goodEvent+",", 10_000) + goodEvent + "]", 413, record.CodeTooLarge, "events", "10000|10,000"},
		{"another media type", "/v1/events", "text/plain", goodEvent, 400, record.CodeInvalid, "Content-Type", "application/json"},
		{"no media type", "/v1/events", "", goodEvent, 400, record.CodeInvalid, "Content-Type", "application/json"},
		{"base64 with a newline", "/v1/challenge", plain, `{"nonce":"AAAAAAAA\nAAAAAAAA"}`, 400, record.CodeInvalid, "nonce", "base64"},
		{"base64 with spare bits", "/v1/challenge", plain, `{"nonce":"AAAAAAAAAAB="}`, 400, record.CodeInvalid, "nonce", "base64"},
		{"base64 without padding", "/v1/challenge", plain, `{"nonce":"AAAAAAAAAAA"}`, 400, record.CodeInvalid, "nonce", "base64"},
		{"a challenge of two values", "/v1/challenge", plain, `{"nonce":"AAAAAAAAAAA="}{}`, 400, record.CodeInvalid, "", ""},
		{"a challenge with more in it", "/v1/challenge", plain, `{"nonce":"AAAAAAAAAAA=","x":1}`, 400, record.CodeInvalid, "x", "unknown"},
	} {
		post(row.name, row.path, row.kind, row.body, row.status, row.code, row.field, row.reason)
	}
	for _, row := range []struct {
		method, path string
		status       int
	}{
		{"DELETE", "/v1/events", 405}, {"GET", "/v1/events", 405}, {"PUT", "/checkpoint", 405}, {"POST", "/v1/entries", 405},
		{"GET", "/v1/nothing", 404}, {"GET", "/v1/entries/999999999", 404}, {"GET", "/v1/entries/-1", 400}, {"GET", "/v1/entries/x", 400},
		{"GET", "/v1/entries?from=-1", 400}, {"GET", "/v1/entries?limit=1001", 400}, {"GET", "/tile/0/0", 404}, {"GET", "/tile/0/000.p/256", 404},
		{"GET", "/tile/9/000.p/1", 404}, {"GET", "/tile/0/../../dev.db", 404}, {"GET", "/tile/x/000", 404},
	} {
		status, b, err := w.do(t.Context(), row.method, row.path, "", "")
		var f api.Failure
		if err == nil {
			err = json.Unmarshal(b, &f)
		}
		if err != nil || status != row.status || f.Error.Code != record.CodeInvalid || f.Error.Message == "" {
			t.Errorf("%s %s: %d %s: %v; want %d", row.method, row.path, status, b, err, row.status)
		}
	}
	for name, bad := range map[string]string{
		"not HTTP":      "\x00\x01\x02\r\n\r\n",
		"half a body":   "POST /v1/events HTTP/1.1\r\nHost: bulla\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n" + goodEvent,
		"large headers": "GET /checkpoint HTTP/1.1\r\nHost: bulla\r\nX: " + strings.Repeat("x", 1<<20),
	} {
		answer := rawHTTP(t, path, bad)
		if !regexp.MustCompile(`^HTTP/1.1 4\d\d `).MatchString(answer) {
			t.Errorf("%s: answered %.200q", name, answer)
		}
	}
	streams(t, func(event string) (uint64, []byte, record.Code, string) {
		status, b, err := w.do(t.Context(), "POST", "/v1/events", plain, event)
		if err != nil {
			t.Fatal(err)
		}
		if status == http.StatusCreated {
			r, err := record.ParseReceipt(bytes.TrimSpace(b))
			if err != nil {
				t.Fatal(err)
			}
			return r.Index, r.Entry, "", ""
		}
		var f api.Failure
		if err := json.Unmarshal(b, &f); err != nil || status != http.StatusConflict {
			t.Errorf("%s: %d %s: %v", event, status, b, err)
		}
		return 0, nil, f.Error.Code, f.Error.Message
	})

	idle(t, dir, "http.sock")
	if status, b, err := browse(t, dir).do(t.Context(), "POST", "/v1/events", plain, goodEvent); err != nil || status != http.StatusCreated {
		t.Errorf("among the idle: %d %.200s: %v", status, b, err)
	}
	if err := slow.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, slow); err != nil {
		t.Errorf("a slow client was not sent away: %v", err)
	}
	b.requireUnharmed(t, daemon)
	if code := daemon.stop(); code != 0 {
		t.Errorf("exit code %d:\n%s", code, daemon.stderr)
	}
}

// rawHTTP sends bytes, ends its side, and returns the answer.
func rawHTTP(t *testing.T, path, send string) string {
	t.Helper()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	_, _ = c.Write([]byte(send)) // the server may have had enough before the end
	_ = c.CloseWrite()
	b, err := io.ReadAll(c)
	if err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Fatal(err)
	}
	return string(b)
}
