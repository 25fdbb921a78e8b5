package server

import (
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"bulla/api"
	"bulla/record"
)

// A peer cannot make numbers of names that it invents.
func TestMetricsOfLogsOnly(t *testing.T) {
	t.Parallel()
	r := newRig(t, everyone).serve()
	w := r.connect().greet()
	w.send(frame(`{"id":1,"log":"nobody.example/log","op":"delete","events":[]}`))
	w.requireRefusal("an unknown operation", 1, record.CodeInvalid, "op", "delete")
	r.requireMetric(`bulla_appends_total{code="invalid",log=""}`, "1")
	if b := r.do(r.browser(), "GET", "/metrics", "").body; strings.Contains(string(b), "nobody") {
		t.Errorf("%s", b)
	}
}

// Receipts are larger than the events they are for: the room for them is claimed before events are taken, so that whoever does not
// read them stays within its uid's bound, and others have theirs.
func TestUnreadReceiptsAreBounded(t *testing.T) {
	t.Parallel()
	r := newRig(t, everyone)
	r.lim.memory, r.lim.uidMemory, r.lim.reserve = 8<<20, 4<<20, 64<<10
	r.serve()
	held, release := r.holdSignatures()
	defer release()
	w := r.connect().greet()
	tiny := strings.Split(strings.TrimSuffix(strings.Repeat(`{"type":"a"},`, 1000), ","), ",")
	const requests = 20 // whose receipts are about 2 MB each, of 13 KB
	for i := range requests {
		w.send(frame(request(i+1, "", tiny...)))
	}
	for range requests - 1 { // one is taken, the next fits no more
		if a, _ := w.answer(); a.Status != api.StatusRefused || a.Code != record.CodeBusy || a.RetryAfterMS == 0 {
			t.Fatalf("%+v", a)
		}
	}
	<-held
	release()
	for n := 0; n < 1000; {
		a, _ := w.answer()
		if a.ID != 1 || a.Status != api.StatusOK || len(a.Items) == 0 {
			t.Fatalf("%d %s %s", a.ID, a.Status, a.Message)
		}
		n += len(a.Items)
	}
	r.requireMetric(`bulla_request_bytes{socket="sign"}`, "0")
}

// Connections to http.sock beyond a uid's bound take no more than a few places from others, though they send nothing.
func TestSilentConnectionsBeyondTheBound(t *testing.T) {
	t.Parallel()
	r := newRig(t, everyone)
	r.lim.conns, r.lim.uidConns = 200, 20
	r.serve()
	var conns []net.Conn
	for range 150 {
		c, err := net.Dial("unix", r.path("http.sock"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		conns = append(conns, c)
	}
	for _, c := range conns[20+maxTurned:] {
		if err := c.SetReadDeadline(time.Now().Add(r.lim.hello / 2)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Fatalf("not closed: %v", err)
		}
	}
	for _, c := range conns[:20+maxTurned] {
		if err := c.SetReadDeadline(time.Unix(1, 0)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("within the bound, and closed: %v", err)
		}
	}
}

// A query that cannot be read is not passed over.
func TestBrokenQueries(t *testing.T) {
	t.Parallel()
	r := newRig(t, everyone).serve()
	for _, q := range []string{"from=%zz", "from=1;limit=1", "x;y"} {
		got := r.rawHTTP("GET /v1/entries?"+q+" HTTP/1.1\r\nHost: b\r\nConnection: close\r\n\r\n", false)
		if !strings.HasPrefix(got, "HTTP/1.1 400") {
			t.Errorf("%s: %.200s", q, got)
		}
	}
}
