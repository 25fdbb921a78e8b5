package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"math"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Every store gets the same bytes: canonical JSON of just the size that was asked for.
func TestEvent(t *testing.T) {
	t.Parallel()
	for _, size := range []int{64, 82, 83, 300, 4096, 60_000} {
		b := event(nil, "1795397000123-0007", 42, size)
		var e map[string]any
		if err := json.Unmarshal(b, &e); err != nil || len(b) != size {
			t.Errorf("%d bytes instead of %d (%v): %.100s", len(b), size, err, b)
		}
		again, err := json.Marshal(e) // sorts keys, and has no spaces
		if err != nil || !bytes.Equal(again, b) {
			t.Errorf("not canonical: %.100s", b)
		}
		if id, ok := e["id"].(string); !ok || !strings.HasSuffix(id, "1795397000123-0007-0000000042") {
			t.Errorf("id %v", e["id"])
		}
	}
}

// A producer that speaks to the socket itself numbers its requests and events.
func TestSigner(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "sign.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	answers := []string{
		`{"v":1,"max_frame":4194304,"logs":["a"]}`,
		`{"id":1000000000,"status":"ok","checkpoint":"x","items":[],"more":true}`, `{"id":1000000000,"status":"ok","checkpoint":"x","items":[]}`,
		`{"id":1000000001,"status":"refused","code":"busy","message":"m","retry_after_ms":100}`, `{"id":1000000001,"status":"refused","code":"clock","message":"m"}`, `{"items":[]}`,
	}
	go func() {
		c, err := l.Accept()
		if err != nil {
			return // the test has failed
		}
		for _, a := range answers {
			_, _ = c.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(a))), a...))
		}
	}()
	s, err := dialSigner(path, "a.example/log", "p", 3, 300)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	for n := range 2 {
		id, b := s.request()
		var r struct {
			ID     int                   `json:"id"`
			Log    string                `json:"log"`
			Events []struct{ ID string } `json:"events"`
		}
		if err := json.Unmarshal(b[4:], &r); err != nil || int(binary.BigEndian.Uint32(b)) != len(b)-4 {
			t.Fatalf("%v: %s", err, b)
		}
		if r.ID != id || id != firstID+n || r.Log != "a.example/log" || len(r.Events) != 3 || r.Events[2].ID[len(r.Events[2].ID)-10:] != []string{"0000000002", "0000000005"}[n] {
			t.Errorf("request %d: %+v", n, r)
		}
	}
	if id, err := s.answer(); id != firstID || err != nil {
		t.Errorf("%d, %v", id, err)
	}
	if id, err := s.answer(); id != firstID+1 || err != errBusy {
		t.Errorf("%d, %v", id, err)
	}
	if _, err := s.answer(); err == nil || !strings.Contains(err.Error(), "clock") {
		t.Error(err)
	}
	if _, err := s.answer(); err == nil || !strings.Contains(err.Error(), "not an answer") {
		t.Error(err)
	}
}

func TestNumbers(t *testing.T) {
	t.Parallel()
	l := latencies{5 * time.Millisecond, time.Millisecond, 2 * time.Millisecond, 3 * time.Millisecond}
	if m := l.measurement(2*time.Second, 400); m.Rate != 200 || m.P50 != 3 || m.P99 != 5 || m.Answers != 4 {
		t.Errorf("%+v", m)
	}
	if got := spreadOf([]float64{4, 1, 3, 2}).String(); got != "2.50 (1.00–4.00)" {
		t.Error(got)
	}
	for x, want := range map[float64]string{1234567: "1,234,600", 9999: "9999", 99.96: "100.0", 0.0123: "0.012", 0: "0.00"} {
		if got := number(x); got != want {
			t.Errorf("%v is written as %s", x, got)
		}
	}
	if got := number(math.NaN()); got != "–" {
		t.Error(got)
	}
	flushes := uint64(3)
	if (measurement{Answers: 4, Flushes: &flushes}).durable() || !(measurement{Answers: 3, Flushes: &flushes}).durable() || !(measurement{Answers: 3}).durable() {
		t.Error("three flushes are enough for three answers, and not for four")
	}
}

func TestDocument(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "doc.md")
	r := &report{}
	if err := os.WriteFile(path, []byte("before\n"+beginMark+"old\n"+endMark+"after\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.writeDoc(path); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if text := string(b); !strings.HasPrefix(text, "before\n"+beginMark) || !strings.HasSuffix(text, endMark+"after\n") || strings.Contains(text, "old") {
		t.Errorf("%s", text)
	}
	if err := os.WriteFile(path, []byte("no section"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.writeDoc(path); err == nil {
		t.Error("a document without a section was written to")
	}
}

func TestDirectoryInMemoryIsRefused(t *testing.T) {
	t.Parallel()
	if err := onDisk("/dev/shm"); err == nil {
		t.Error("/dev/shm was taken for a disk")
	}
}
