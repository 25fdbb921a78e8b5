package softhsmtest_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"

	"bulla/api"
	"bulla/record"
)

// TestSelfCheck flips a byte in the running daemon's log file, behind its back. It is found, counted and recorded once in the log; before,
// nothing was.
func TestSelfCheck(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.config.SelfCheck = map[string]any{"rate": 1 << 30, "round": "50ms", "sample": "50ms"}
	daemon := r.serve()
	client := dial(t, r.dir)
	const events = 300
	var index uint64
	for i := range events {
		rec, err := client.Append(t.Context(), "", fmt.Appendf(nil, `{"data":{"n":"selfcheck-%04d"},"type":"selfcheck.test"}`, i))
		if err != nil {
			t.Fatal(err)
		}
		if i == events/2 {
			index = rec.Index
		}
	}
	if code := daemon.stop(); code != 0 { // all of it is in the log's file then
		t.Fatalf("exit code %d:\n%s", code, daemon.stderr)
	}
	daemon = r.serve()
	w := browse(t, r.dir)
	sound := r.selfCheck(w, func(s api.SelfCheckStatus) bool { return s.Rounds > 2 && s.Last != nil && s.Last.Entries > events })
	if sound.Failures != 0 || sound.Finding != "" || len(w.alarms(t)) != 0 {
		t.Fatalf("a sound log: %+v, alarms %q", sound, w.alarms(t))
	}
	w.requireMetric(t, `bulla_selfcheck_failures_total{log="dev"} 0`)

	flip(t, r.config.Logs[0].File, fmt.Appendf(nil, "selfcheck-%04d", events/2))
	found := r.selfCheck(w, func(s api.SelfCheckStatus) bool { return s.Last.Failures > 0 })
	r.selfCheck(w, func(s api.SelfCheckStatus) bool { return s.Rounds > found.Rounds+3 })
	a := w.alarms(t)
	if len(a) != 1 || !regexp.MustCompile(fmt.Sprintf(`log bulla.example/dev differs.*: entry %d: expected leaf hash \S{44}, found leaf hash \S{44}`, index)).MatchString(a[0]) {
		t.Errorf("alarms %q, want one of entry %d", a, index)
	}
	if n := w.metric(t, `bulla_selfcheck_failures_total{log="dev"}`); n == "0" || n == "" {
		t.Errorf("the counter of failures is at %q", n)
	}
	if _, err := dial(t, r.dir).Append(t.Context(), "", []byte(`{"type":"selfcheck.test"}`)); err != nil {
		t.Error("appending must go on: ", err)
	}
	if code := daemon.stop(); code != 0 {
		t.Errorf("exit code %d:\n%s", code, daemon.stderr)
	}
}

// selfCheck waits until the self-check of the first log has come so far.
func (r *rig) selfCheck(w *web, enough func(api.SelfCheckStatus) bool) api.SelfCheckStatus {
	r.t.Helper()
	var s api.SelfCheckStatus
	requireSoon(r.t, func() error {
		var status api.Status
		w.getJSON(r.t, "/v1/status", &status)
		if s = status.Machine.SelfCheck[0]; !enough(s) {
			return fmt.Errorf("the self-check is at %+v", s)
		}
		return nil
	})
	return s
}

// alarms are the messages of the alarms in the log.
func (w *web) alarms(t *testing.T) []string {
	t.Helper()
	var page api.Page
	w.getJSON(t, "/v1/entries?kind=system&limit=1000", &page)
	var out []string
	for _, b := range page.Entries {
		e, err := record.ParseEntry(b)
		if err != nil {
			t.Fatal(err)
		}
		s, err := record.ParseSystem(e.Body)
		if err != nil {
			t.Fatal(err)
		}
		if s.Event == record.SystemAlarm {
			out = append(out, s.Message)
		}
	}
	return out
}

// metric is the value of a number for Prometheus; empty where there is none.
func (w *web) metric(t *testing.T, name string) string {
	t.Helper()
	status, b, err := w.do(t.Context(), "GET", "/metrics", "", "")
	if err != nil || status != http.StatusOK {
		t.Fatalf("GET /metrics: %d: %v", status, err)
	}
	for line := range strings.Lines(string(b)) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

func (w *web) requireMetric(t *testing.T, line string) {
	t.Helper()
	if name, value := line[:strings.LastIndex(line, " ")], line[strings.LastIndex(line, " ")+1:]; w.metric(t, name) != value {
		t.Errorf("%s is %q, want %s", name, w.metric(t, name), value)
	}
}

// flip changes the last byte of what a file holds, wherever it holds it.
func flip(t *testing.T, path string, text []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for at := 0; ; n++ {
		i := bytes.Index(b[at:], text)
		if i < 0 {
			break
		}
		at += i + len(text)
		if _, err := f.WriteAt([]byte{b[at-1] ^ 1}, int64(at-1)); err != nil {
			t.Fatal(err)
		}
	}
	if n == 0 {
		t.Fatalf("%s does not hold %q", path, text)
	}
}
