package server

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"bulla/api"
	"bulla/ceremony"
	"bulla/record"
)

// wire is a raw connection to sign.sock, so that it can send anything.
type wire struct {
	t testing.TB
	*net.UnixConn
	r *bufio.Reader
}

func (r *rig) connect() *wire {
	r.t.Helper()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: r.path("sign.sock"), Net: "unix"})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = c.Close() }) // it may be closed already
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		r.t.Fatal(err)
	}
	return &wire{r.t, c, bufio.NewReader(c)}
}

// greet exchanges hellos.
func (w *wire) greet() *wire {
	w.t.Helper()
	w.send(frame(`{"v":1,"max_frame":1048576}`))
	if h, err := api.ReadHello(w.r); err != nil || h.MaxFrame != api.MaxFrame || len(h.Logs) == 0 {
		w.t.Fatalf("hello %+v: %v", h, err)
	}
	return w
}

func frame(s string) []byte { return api.EndFrame(append(api.BeginFrame(nil), s...)) }

func (w *wire) send(b []byte) {
	w.t.Helper()
	if _, err := w.Write(b); err != nil {
		w.t.Fatal(err)
	}
}

// answer reads one answer, as any client would.
func (w *wire) answer() (a api.Answer, size int) {
	w.t.Helper()
	n, err := api.ReadLength(w.r, api.MaxFrame)
	b := make([]byte, n)
	if err == nil {
		_, err = io.ReadFull(w.r, b)
	}
	if err == nil {
		err = json.Unmarshal(b, &a)
	}
	if err != nil {
		w.t.Fatalf("reading an answer: %v", err)
	}
	return a, n
}

func (w *wire) requireRefusal(about string, id uint64, code record.Code, field, why string) {
	w.t.Helper()
	if a, _ := w.answer(); a.ID != id || a.Status != api.StatusRefused || a.Code != code || a.Field != field || !strings.Contains(a.Message, why) {
		w.t.Errorf("%s: %+v; want id %d, %s, %q: %s", about, a, id, code, field, why)
	}
}

func (w *wire) requireClosed(about string) {
	w.t.Helper()
	if _, err := w.r.ReadByte(); !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
		w.t.Errorf("%s: not closed: %v", about, err)
	}
}

func request(id int, rest string, events ...string) string {
	return fmt.Sprintf(`{"id":%d,"op":"append",%s"events":[%s]}`, id, rest, strings.Join(events, ","))
}

// eventOf is an event of so many canonical bytes.
func eventOf(n int) string {
	const around = `{"data":{"x":""},"type":"good.test"}`
	return `{"data":{"x":"` + strings.Repeat("x", n-len(around)) + `"},"type":"good.test"}`
}

// What is wrong with an event, whichever way it comes. (Package record's vectors have more.)
var badEvents = []struct {
	name, event, field, why string
	code                    record.Code
}{
	{"10,000 levels", `{"data":{"x":` + strings.Repeat("[", 10_000) + strings.Repeat("]", 10_000) + `},"type":"a"}`, "data.x", "deep", record.CodeInvalid},
	{"invalid UTF-8", "{\"data\":{\"x\":\"\xff\"},\"type\":\"a\"}", "data.x", "UTF-8", record.CodeInvalid},
	{"lone surrogate", `{"data":{"x":"\ud800"},"type":"a"}`, "data.x", "surrogate", record.CodeInvalid},
	{"duplicate key", `{"data":{"x":1,"x":1},"type":"a"}`, "data.x", "twice", record.CodeInvalid},
	{"float", `{"data":{"x":0.5},"type":"a"}`, "data.x", "integer", record.CodeInvalid},
	{"1.0", `{"data":{"x":1.0},"type":"a"}`, "data.x", "integer", record.CodeInvalid},
	{"-0", `{"data":{"x":-0},"type":"a"}`, "data.x", "integer", record.CodeInvalid},
	{"null", `{"data":{"x":null},"type":"a"}`, "data.x", "null", record.CodeInvalid},
	{"2^53+1", `{"data":{"x":9007199254740993},"type":"a"}`, "data.x", "2^53", record.CodeInvalid},
	{"1e400", `{"data":{"x":1e400},"type":"a"}`, "data.x", "integer", record.CodeInvalid},
	{"unknown field", `{"colour":"red","type":"a"}`, "colour", "unknown", record.CodeInvalid},
	{"missing type", `{"data":{}}`, "type", "required", record.CodeInvalid},
	{"60,001 bytes", eventOf(60_001), "", "60000", record.CodeTooLarge},
}

// Each thing that sign.sock must not take gets its own answer, and nothing of it is in the log.
func TestBadFrames(t *testing.T) {
	t.Parallel()
	r := newRig(t, everyone)
	r.lim.hello, r.lim.frame = 300*time.Millisecond, 300*time.Millisecond
	r.serve()
	before := r.log().Size()

	// What is no request is answered with id 0, and ends the connection.
	for _, c := range []struct {
		about string
		send  string
		end   bool // of what is sent
		code  record.Code
		field string
		why   string
	}{
		{"oversize frame", "\x00\x40\x00\x01", false, record.CodeTooLarge, "", "4194305"},
		{"4 GiB", "\xff\xff\xff\xff", false, record.CodeTooLarge, "", "4294967295"},
		{"nothing in it", "\x00\x00\x00\x00", false, record.CodeInvalid, "", "0 bytes"},
		{"half a frame, and the end", string(frame(request(1, "", good))[:30]), true, record.CodeInvalid, "", "not finished"},
		{"half a length, and the end", "\x00\x00", true, record.CodeInvalid, "", "not finished"},
		{"half a frame, and silence", string(frame(request(1, "", good))[:30]), false, record.CodeInvalid, "", "in time"},
		{"half a large frame, and silence", string(frame(request(1, "", eventOf(50_000)))[:40_000]), false, record.CodeInvalid, "", "in time"},
		{"HTTP", "GET / HTTP/1.1\r\n\r\n", false, record.CodeTooLarge, "", "must be 1 to"},
		{"garbage", string(frame("\x00\x01garbage")), false, record.CodeInvalid, "", "expected"},
		{"no id", string(frame(`{"op":"append","events":[` + good + `]}`)), false, record.CodeInvalid, "id", "missing"},
		{"id 0", string(frame(request(0, "", good))), false, record.CodeInvalid, "id", "missing"},
	} {
		w := r.connect().greet()
		w.send([]byte(c.send))
		if c.end {
			if err := w.CloseWrite(); err != nil {
				t.Fatal(err)
			}
		}
		w.requireRefusal(c.about, 0, c.code, c.field, c.why)
		w.requireClosed(c.about)
	}
	for about, c := range map[string]struct{ send, field, why string }{
		"version 2":        {string(frame(`{"v":2,"max_frame":4194304}`)), "v", "version 2"},
		"small frames":     {string(frame(`{"v":1,"max_frame":1000}`)), "max_frame", "at least 1048576"},
		"no hello":         {string(frame(`garbage`)), "", "hello"},
		"silence":          {"", "", "in time"},
		"half a hello":     {string(frame(`{"v":1,"max_frame":4194304}`)[:10]), "", "in time"},
		"a hello too long": {"\x00\x02\x00\x00", "", "65536"},
	} {
		w := r.connect()
		if _, err := api.ReadHello(w.r); err != nil {
			t.Fatal(err)
		}
		w.send([]byte(c.send))
		code := record.CodeInvalid
		if about == "a hello too long" {
			code = record.CodeTooLarge
		}
		w.requireRefusal(about, 0, code, c.field, c.why)
		w.requireClosed(about)
	}

	// What is wrong within a request is answered by its id, and the connection goes on.
	w := r.connect().greet()
	id := 0
	refused := func(about, send string, code record.Code, field, why string) {
		w.send(frame(send))
		w.requireRefusal(about, uint64(id), code, field, why)
	}
	for _, c := range badEvents {
		id++
		field := "events[1]"
		if c.field != "" {
			field += "." + c.field
		}
		if c.name == "10,000 levels" {
			refused(c.name, request(id, "", good, c.event), c.code, "events", "deep") // its end cannot be found
			continue
		}
		refused(c.name, request(id, "", good, c.event), c.code, field, c.why)
	}
	for _, c := range []struct{ about, rest, field, why string }{
		{"operation", `"op":"remove","events":[` + good + `]`, "op", "append"},
		{"unknown member", `"op":"append","colour":"red","events":[` + good + `]`, "colour", "unknown"},
		{"no events", `"op":"append"`, "events", "missing"},
		{"want", `"op":"append","want":"all","events":[` + good + `]`, "want", "receipt or ack"},
		{"log", `"op":"append","log":"other.example","events":[` + good + `]`, "log", `there is no log "other.example", name one: `},
	} {
		id++
		refused(c.about, fmt.Sprintf(`{"id":%d,%s}`, id, c.rest), record.CodeInvalid, c.field, c.why)
	}
	id++
	refused("10,001 events", request(id, "", strings.Repeat(good+",", api.MaxEvents)+good), record.CodeTooLarge, "events", "10000")
	if r.log().Size() != before {
		t.Errorf("%d entries came of it", r.log().Size()-before)
	}
	id++
	w.send(frame(request(id, "", eventOf(60_000))))
	if a, _ := w.answer(); a.Status != api.StatusOK || len(a.Items) != 1 {
		t.Errorf("the largest event: %.200v", a)
	}
	r.requireMetric(`bulla_request_bytes{socket="sign"}`, "0")
}

// A request is all or nothing, its events have consecutive indices, and repeats keep theirs.
func TestRequestsAreAtomic(t *testing.T) {
	t.Parallel()
	r := newRig(t, everyone).serve()
	c := r.dial()
	numbered := func(n int, data string) []byte {
		return fmt.Appendf(nil, `{"data":{"x":%q},"stream":{"id":"s","n":%d},"type":"a"}`, data, n)
	}
	res, err := c.AppendBatch(t.Context(), "", api.WantReceipt, numbered(1, "a"), numbered(2, "a"), []byte(good))
	if err != nil {
		t.Fatal(err)
	}
	for i := range res.Items {
		if res.Items[i].Index != res.Items[0].Index+uint64(i) {
			t.Errorf("event %d is entry %d", i, res.Items[i].Index)
		}
	}
	e := r.requireReceipt(res.Receipt(1), string(numbered(2, "a")))
	if p := e.Producer; p == nil || p.UID != uint32(os.Getuid()) || p.GID != uint32(os.Getgid()) || p.PID != os.Getpid() {
		t.Errorf("producer %+v", p)
	}
	size := r.log().Size()
	var refusal *api.Refusal
	if _, err := c.AppendBatch(t.Context(), origin, api.WantAck, []byte(good), numbered(3, "a"), numbered(2, "b"), []byte(good)); !errors.As(err, &refusal) ||
		refusal.Code != record.CodeConflict || refusal.Field != "events[2].stream.n" {
		t.Errorf("other content: %v", err)
	}
	if r.log().Size() != size {
		t.Error("a part of a refused request was taken")
	}
	again, err := c.AppendBatch(t.Context(), "", api.WantReceipt, numbered(2, "a"), numbered(3, "a"))
	if err != nil {
		t.Fatal(err)
	}
	if again.Items[0].Index != res.Items[1].Index || !bytes.Equal(again.Items[0].Entry, res.Items[1].Entry) || again.Items[1].Index != size {
		t.Errorf("repeated: entries %d and %d, want %d and %d", again.Items[0].Index, again.Items[1].Index, res.Items[1].Index, size)
	}
	r.requireReceipt(again.Receipt(0), string(numbered(2, "a")))
	ack, err := c.AppendBatch(t.Context(), "", api.WantAck, numbered(3, "a"))
	if err != nil || *ack.Items[0].Leaf != record.LeafHash(again.Items[1].Entry) || ack.Items[0].Entry != nil {
		t.Errorf("ack of a repeat: %+v, %v", ack, err)
	}
	if _, err := c.AppendBatch(t.Context(), "", api.WantAck, numbered(9, "a")); err != nil {
		t.Errorf("skipped: %v", err)
	}
	if _, err := c.AppendBatch(t.Context(), "", api.WantAck, numbered(5, "a")); !errors.As(err, &refusal) || refusal.Code != record.CodeStale {
		t.Errorf("going back: %v", err)
	}
}

func TestCallersWithoutTheRole(t *testing.T) {
	t.Parallel()
	r := newRig(t, []ceremony.Role{{Name: ceremony.Producer, UIDs: []uint32{uint32(os.Getuid()) + 1}}}).serve()
	var refusal *api.Refusal
	if _, err := r.dial().Append(t.Context(), "", []byte(good)); !errors.As(err, &refusal) || refusal.Code != record.CodeForbidden {
		t.Error(err)
	}
}

func TestSeveralLogs(t *testing.T) {
	t.Parallel()
	r := newRig(t, everyone, "a", "b").serve()
	c := r.dial()
	if logs := c.Logs(); len(logs) != 2 || logs[1] != origin+"/b" {
		t.Errorf("logs %q", logs)
	}
	var refusal *api.Refusal
	if _, err := c.Append(t.Context(), "", []byte(good)); !errors.As(err, &refusal) || refusal.Field != "log" || !strings.Contains(refusal.Message, "several") {
		t.Error(err)
	}
	got, err := c.Append(t.Context(), origin+"/b", []byte(good))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := got.Verify(r.verifier(1)); err != nil {
		t.Error(err)
	}
}

// An answer that is too large for the peer's frames comes in several.
func TestLargeAnswers(t *testing.T) {
	t.Parallel()
	r := newRig(t, everyone).serve()
	w := r.connect().greet() // it reads frames of 1 MiB
	var big []string
	for range 60 {
		big = append(big, eventOf(60_000))
	}
	w.send(frame(request(7, "", big...)))
	var items []api.Item
	parts := 0
	for {
		a, size := w.answer()
		if a.ID != 7 || a.Status != api.StatusOK || size > api.MinFrame || a.Checkpoint == "" || a.More != (len(items)+len(a.Items) < len(big)) {
			t.Fatalf("part %d: %d bytes, id %d, %s, more: %t after %d items", parts, size, a.ID, a.Status, a.More, len(items)+len(a.Items))
		}
		for i, it := range a.Items {
			r.requireReceipt(record.Receipt{Checkpoint: []byte(a.Checkpoint), Entry: it.Entry, Index: it.Index, Proof: it.Proof}, big[len(items)+i])
		}
		items = append(items, a.Items...)
		if parts++; !a.More {
			break
		}
	}
	if parts < 5 || len(items) != len(big) {
		t.Errorf("%d items in %d parts", len(items), parts)
	}
	// The largest request there is, through the client.
	if res, err := r.dial().AppendBatch(t.Context(), "", api.WantReceipt, events(api.MaxEvents, `{"id":"%d","type":"a"}`)...); err != nil || len(res.Items) != api.MaxEvents {
		t.Fatal(err)
	} else {
		r.requireReceipt(res.Receipt(api.MaxEvents-1), fmt.Sprintf(`{"id":"%d","type":"a"}`, api.MaxEvents-1))
	}
	r.requireMetric(`bulla_request_bytes{socket="sign"}`, "0")
}

// Requests on one connection do not wait for each other, and closing does not cancel.
func TestPipelining(t *testing.T) {
	t.Parallel()
	r := newRig(t, everyone).serve()
	w := r.connect().greet()
	held, release := r.holdSignatures()
	defer release()
	const n = 2 * window // more than may be under way: the rest waits in the socket
	sent := make(chan error, 1)
	go func() {
		for i := 1; i <= n; i++ {
			if _, err := w.Write(frame(request(i, `"want":"ack",`, fmt.Sprintf(`{"id":"%d","type":"a"}`, i)))); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	<-held
	release()
	seen := map[uint64]bool{}
	for range n {
		a, _ := w.answer()
		if a.Status != api.StatusOK || seen[a.ID] || a.ID < 1 || a.ID > n || a.Items[0].Leaf == nil {
			t.Fatalf("%+v", a)
		}
		seen[a.ID] = true
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	// Answered or not, what was sent before the end is taken.
	size := r.log().Size()
	held, release = r.holdSignatures()
	defer release()
	w.send(frame(request(1, "", `{"id":"last","type":"a"}`)))
	<-held
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	release()
	if _, err := r.dial().Append(t.Context(), "", []byte(`{"id":"last","type":"a"}`)); err != nil || r.log().Size() != size+1 {
		t.Errorf("%d entries more, %v", r.log().Size()-size, err)
	}
}

// A peer that does not read its answers is cut off in time; nobody waits for it, and what it held comes back.
func TestPeerThatDoesNotRead(t *testing.T) {
	t.Parallel()
	r := newRig(t, everyone)
	r.lim.write = 300 * time.Millisecond
	r.serve()
	w := r.connect().greet()
	big := request(1, "", eventOf(60_000), eventOf(60_000))
	cut := make(chan error, 1)
	go func() { // it sends until it is cut off
		for {
			if _, err := w.Write(frame(big)); err != nil {
				cut <- err
				return
			}
		}
	}()
	c := r.dial()
	for {
		if _, err := c.Append(t.Context(), "", []byte(good)); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-cut:
			if !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
				t.Error(err)
			}
			r.requireMetric(`bulla_connections{socket="sign"}`, "1")
			r.requireMetric(`bulla_request_bytes{socket="sign"}`, "0")
			return
		default:
		}
	}
}

// Large requests have a bound in memory, beyond which they are refused as busy, by id; single events go on all the while.
func TestMemoryIsBounded(t *testing.T) {
	t.Parallel()
	r := newRig(t, everyone)
	r.lim.memory, r.lim.uidMemory, r.lim.reserve = 1<<20, 600<<10, 100<<10
	r.serve()
	large := request(5, `"want":"ack",`, eventOf(60_000), eventOf(60_000), eventOf(60_000), eventOf(60_000))
	var stalled []*wire
	for range 2 { // each holds 256 KiB, and waits with its last byte
		w := r.connect().greet()
		b := frame(large)
		w.send(b[:len(b)-1])
		stalled = append(stalled, w)
	}
	r.requireMetric(`bulla_request_bytes{socket="sign"}`, fmt.Sprint(2*len(large)))
	w := r.connect().greet()
	w.send(frame(large))
	w.requireRefusal("the third", 5, record.CodeBusy, "", "waiting")
	unnamed := `{"events":[` + eventOf(60_000) + "," + eventOf(60_000) + "," + eventOf(60_000) + `],"op":"append","id":6}`
	w.send(frame(unnamed)) // whose it is cannot be told without reading it all
	w.requireRefusal("the third, with its id behind", 0, record.CodeBusy, "", "waiting")
	w.requireClosed("the third")
	small := r.dial()
	for range 50 {
		if _, err := small.Append(t.Context(), "", []byte(good)); err != nil {
			t.Fatal(err)
		}
	}
	for _, w := range stalled {
		b := frame(large)
		w.send(b[len(b)-1:])
		if a, _ := w.answer(); a.Status != api.StatusOK || len(a.Items) != 4 {
			t.Errorf("stalled: %+v", a)
		}
	}
	r.requireMetric(`bulla_request_bytes{socket="sign"}`, "0")
}

func TestConnectionsAreBounded(t *testing.T) {
	t.Parallel()
	r := newRig(t, everyone)
	r.lim.conns, r.lim.uidConns = 5, 3
	r.serve()
	var open []*wire
	for range 3 {
		open = append(open, r.connect().greet())
	}
	w := r.connect()
	w.requireRefusal("one too many of a uid", 0, record.CodeBusy, "", "too many connections")
	w.requireClosed("one too many of a uid")
	var refusal *api.Refusal
	if _, err := api.Dial(t.Context(), r.path("sign.sock")); !errors.As(err, &refusal) || refusal.Code != record.CodeBusy {
		t.Errorf("the client: %v", err)
	} else if _, again := api.Retry(err); !again {
		t.Error("the client will not try again")
	}
	if err := open[0].Close(); err != nil {
		t.Fatal(err)
	}
	r.requireMetric(`bulla_connections{socket="sign"}`, "2")
	r.connect().greet()
}

// Two thousand connections that do nothing cost little, and nobody waits for them.
func TestIdleConnections(t *testing.T) {
	r := newRig(t, everyone).serve()
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	const n = 2000
	conns := make([]*wire, n)
	for i := range conns {
		conns[i] = r.connect().greet()
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if each := int(after.HeapInuse+after.StackInuse-before.HeapInuse-before.StackInuse) / n; each > 40<<10 { // both sides
		t.Errorf("%d bytes each", each)
	}
	if _, err := r.dial().Append(t.Context(), "", []byte(good)); err != nil {
		t.Error(err)
	}
	last := conns[n-1]
	last.send(frame(request(1, "", good)))
	if a, _ := last.answer(); a.Status != api.StatusOK {
		t.Errorf("%+v", a)
	}
}

// When the server ends, what is under way is answered, idle connections are closed, and the sockets go away.
func TestEnd(t *testing.T) {
	t.Parallel()
	r := newRig(t, everyone).serve()
	idle, half, busy := r.connect().greet(), r.connect().greet(), r.connect().greet()
	half.send(frame(request(1, "", good))[:10])
	held, release := r.holdSignatures()
	defer release()
	busy.send(frame(request(3, "", good)))
	<-held
	var ended sync.WaitGroup
	ended.Go(r.stop)
	idle.requireClosed("idle")
	half.requireRefusal("half a frame", 0, record.CodeInvalid, "", "not finished")
	half.requireClosed("half a frame")
	release()
	if a, _ := busy.answer(); a.ID != 3 || a.Status != api.StatusOK {
		t.Errorf("under way: %+v", a)
	}
	busy.requireClosed("under way")
	ended.Wait()
	for _, s := range []string{"sign.sock", "http.sock"} {
		if _, err := os.Stat(r.path(s)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left behind: %v", s, err)
		}
	}
}

// A device that does not answer does not keep the server from ending; whoever waits for it is told that the outcome is unknown.
func TestEndWithoutTheDevice(t *testing.T) {
	t.Parallel()
	r := newRig(t, everyone)
	r.lim.drain = 50 * time.Millisecond
	r.serve()
	held, release := r.holdSignatures()
	defer release()
	w := r.connect().greet()
	w.send(frame(request(3, "", good)))
	<-held
	b, post := r.browser(), make(chan reply, 1)
	go func() { post <- r.do(b, "POST", "/v1/events", good, asJSON) }()
	r.requireUnderway(1, held)
	r.stop()
	if a, _ := w.answer(); a.ID != 3 || a.Status != api.StatusUnknown {
		t.Errorf("sign.sock: %+v", a)
	}
	if p := <-post; p.status != 504 || p.failure(t).Code != api.CodeUnknown {
		t.Errorf("http.sock: %d %s", p.status, p.body)
	}
}
