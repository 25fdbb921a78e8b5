package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bulla/api"
	"bulla/record"
)

// scripted is an appliance that answers requests as told, one connection at a time.
type scripted struct {
	t        *testing.T
	l        net.Listener
	requests []*api.Request
}

// answer is what becomes of one request; "" ends the connection.
func (s *scripted) serve(answers ...string) {
	for len(answers) > 0 {
		c, err := s.l.Accept()
		if err != nil {
			return
		}
		n, err := s.converse(c, answers)
		if err = errors.Join(err, c.Close()); err != nil {
			s.t.Error(err)
			return
		}
		answers = answers[n:]
	}
}

func (s *scripted) converse(c net.Conn, answers []string) (used int, err error) {
	r := bufio.NewReader(c)
	hello, err := api.Hello{V: api.Version, MaxFrame: api.MaxFrame}.Frame()
	if err != nil {
		return 0, err
	}
	if _, err := c.Write(hello); err != nil {
		return 0, err
	}
	if _, err := api.ReadHello(r); err != nil {
		return 0, err
	}
	for used < len(answers) {
		n, err := api.ReadLength(r, api.MaxFrame)
		if errors.Is(err, io.EOF) { // the client connects anew
			return used, nil
		}
		b := make([]byte, n)
		if err == nil {
			_, err = io.ReadFull(r, b)
		}
		if err != nil {
			return used, err
		}
		req, err := api.ParseRequest(b)
		if err != nil {
			return used, err
		}
		s.requests = append(s.requests, req)
		answer := answers[used]
		used++
		if answer == "" {
			return used, nil
		}
		answer = strings.Replace(answer, `"id":ID`, fmt.Sprintf(`"id":%d`, req.ID), 1)
		if _, err := c.Write(api.EndFrame(append(api.BeginFrame(nil), answer...))); err != nil {
			return used, err
		}
	}
	return used, nil
}

func script(t *testing.T) (*scripted, string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "bulla")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "sign.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = l.Close() // twice does no harm
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return &scripted{t: t, l: l}, path
}

const leaf = "KRMFcAPOpcXjw5JQ3YcB0kUEDw2NsfoY6CamxwArX/g="

// Busy, then no answer, then the appliance does not know: the same event is sent until it is answered for good.
func TestRequestsAreRepeated(t *testing.T) {
	t.Parallel()
	s, path := script(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.serve(`{"id":ID,"status":"refused","code":"busy","message":"full","retry_after_ms":1}`, "",
			`{"id":ID,"status":"unknown","message":"who knows"}`,
			`{"id":ID,"status":"ok","checkpoint":"x","items":[{"index":7,"leaf":"`+leaf+`"}]}`)
	}()
	var out, errOut bytes.Buffer
	if code := run([]string{"append", "--type", "a.b", "--socket", path}, nil, &out, &errOut); code != exitOK || out.String() != "7 "+leaf+"\n" {
		t.Fatalf("exit %d, %s%s", code, &out, &errOut)
	}
	<-done
	if len(s.requests) != 4 {
		t.Fatalf("%d requests", len(s.requests))
	}
	for _, r := range s.requests {
		if !bytes.Equal(r.Events[0].Body, s.requests[0].Events[0].Body) || r.Events[0].Key.ID == "" {
			t.Errorf("another event, or one that can be taken twice: %s", r.Events[0].Body)
		}
	}
}

func TestAnswersThatEndARun(t *testing.T) {
	t.Parallel()
	receipt := func(body string) string {
		e := record.Entry{Index: 1, Kind: record.KindEvent, Log: "a", Prev: record.Hash{1}, Body: []byte(body)}
		raw, err := e.Append(nil)
		if err != nil {
			t.Fatal(err)
		}
		b, err := json.Marshal(api.Answer{ID: 1, Status: api.StatusOK, Checkpoint: "a\n2\n" + leaf + "\n\n— a x\n", Items: []api.Item{{Index: 1, Entry: raw}}})
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for _, c := range []struct {
		about, answer, want string
		code                int
		args                []string
	}{
		{"refused for good", `{"id":ID,"status":"refused","code":"forbidden","message":"not you"}`, "refused (forbidden): not you", exitUnavailable, nil},
		{"unknown for longer than --retry", `{"id":ID,"status":"unknown","message":"disk"}`, "outcome unknown", exitUnavailable, nil},
		{"too few places", `{"id":ID,"status":"ok","checkpoint":"x","items":[]}`, "answered for 0 of 1 events", exitUnavailable, nil},
		{"a receipt of another event", receipt(`{"type":"other"}`), "not of the event that was sent", exitTampered, []string{"--json"}},
		{"a receipt that proves nothing", receipt(`{"id":"x","type":"a.b"}`), "does not lead to its checkpoint", exitTampered, []string{"--json"}},
	} {
		s, path := script(t)
		done := make(chan struct{})
		go func() { defer close(done); s.serve(c.answer) }()
		var out, errOut bytes.Buffer
		args := append([]string{"append", "--retry", "0s", "--event", `{"id":"x","type":"a.b"}`, "--socket", path}, c.args...)
		if code := run(args, nil, &out, &errOut); code != c.code || !strings.Contains(errOut.String(), c.want) || out.Len() > 0 {
			t.Errorf("%s: exit %d, %s%s", c.about, code, &out, &errOut)
		}
		<-done
	}
}

func TestHistogram(t *testing.T) {
	t.Parallel()
	var h histogram
	for ns := uint64(1); ns < 1<<40; ns = ns*9/8 + 1 {
		low := lowest(bucket(ns))
		if low > float64(ns) || low < float64(ns)*0.96-1 {
			t.Fatalf("%d ns are in the bucket from %.0f", ns, low)
		}
	}
	for i := range 1000 {
		h.buckets[bucket(uint64(i+1)*1_000_000)]++
		h.count++
	}
	for q, want := range map[float64]float64{0.5: 500, 0.99: 990, 0.999: 1000} {
		if got := h.quantile(q); got < want*0.95 || got > want*1.01 {
			t.Errorf("quantile %v is %v ms, want about %v", q, got, want)
		}
	}
}

// Who interrupts a followed file gets an answer for everything that was read.
func TestInterruptedFollowing(t *testing.T) {
	t.Parallel()
	s, path := script(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.serve(`{"id":ID,"status":"ok","checkpoint":"x","items":[{"index":7,"leaf":"` + leaf + `"}]}`)
	}()
	file := filepath.Join(t.TempDir(), "app.log")
	if err := os.WriteFile(file, []byte("one\ntw"), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	out := written{first: cancel}
	tool := &tool{in: strings.NewReader(""), out: &out, err: io.Discard, socket: path}
	if err := tool.append(ctx, appendFlags{kind: "a.b", lines: true, follow: true, retry: time.Second}, file); err != nil || out.String() != "7 "+leaf+"\n" {
		t.Errorf("%v, %s", err, &out)
	}
	<-done
}

// written calls first when something is written.
type written struct {
	bytes.Buffer
	first func()
}

func (w *written) Write(b []byte) (int, error) {
	w.first()
	return w.Buffer.Write(b)
}
