package server

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"bulla/api"
	"bulla/record"
)

func TestSocketsAreMine(t *testing.T) {
	t.Parallel()
	r := newRig(t, everyone)
	gid := os.Getgid()
	r.cfg.GID = &gid
	for _, s := range []string{"sign.sock", "http.sock"} { // left behind by a crash
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: r.path(s), Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(false)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	r.serve()
	for _, s := range []string{"sign.sock", "http.sock"} {
		if info, err := os.Stat(r.path(s)); err != nil || info.Mode() != fs.ModeSocket|0o660 {
			t.Errorf("%s: %v, %v", s, info.Mode(), err)
		}
	}
	cfg := r.cfg
	cfg.Ready = nil
	if err := Serve(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "stop that bullad first") {
		t.Errorf("a second server: %v", err)
	}
	if _, err := r.dial().Append(t.Context(), "", []byte(good)); err != nil {
		t.Errorf("the first one, afterwards: %v", err)
	}
	r.stop()
	r.serve() // and once more, in the same place

	cfg.Directory = r.path("none")
	if err := Serve(t.Context(), cfg); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
}

// Another program's socket is left alone.
func TestForeignSocket(t *testing.T) {
	t.Parallel()
	r := newRig(t, everyone)
	l, err := net.Listen("unix", r.path("http.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := Serve(t.Context(), r.cfg); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Error(err)
	}
	if _, err := os.Stat(r.path("sign.sock")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the other socket was left behind: %v", err)
	}
	c, err := net.Dial("unix", r.path("http.sock"))
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close() // it served its purpose
}

func TestBucket(t *testing.T) {
	t.Parallel()
	b := bucket{burst: 3, every: time.Second}
	now := time.Unix(1_800_000_000, 0)
	for i := range 3 {
		if wait := b.take(now); wait != 0 {
			t.Errorf("token %d: wait %v", i, wait)
		}
	}
	if wait := b.take(now); wait != time.Second {
		t.Errorf("a token too many: wait %v", wait)
	}
	if wait := b.take(now.Add(900 * time.Millisecond)); wait != 100*time.Millisecond {
		t.Errorf("early: wait %v", wait)
	}
	if b.take(now.Add(time.Second)) != 0 || b.take(now.Add(time.Second)) == 0 {
		t.Error("one token comes a second")
	}
	now = now.Add(time.Hour)
	for i := range 3 {
		if b.take(now) != 0 {
			t.Errorf("after an hour: token %d is missing", i)
		}
	}
	if b.take(now) == 0 {
		t.Error("tokens gather without bound")
	}
}

func TestBudget(t *testing.T) {
	t.Parallel()
	b := newBudget(limits{conns: 3, uidConns: 2, memory: 100, uidMemory: 60, reserve: 10})
	for i, c := range []struct {
		name string
		got  bool
		want bool
	}{
		{"1st of uid 1", b.connect(1), true}, {"2nd", b.connect(1), true}, {"3rd", b.connect(1), false}, {"1st of uid 2", b.connect(2), true}, {"4th of all", b.connect(3), false},
		{"large", b.take(1, 50, false), true}, {"the reserve, by a large one", b.take(1, 1, false), false}, {"the reserve", b.take(1, 10, true), true}, {"beyond a uid's", b.take(1, 1, true), false},
		{"another uid's", b.take(2, 30, false), true}, {"the common reserve, by a large one", b.take(2, 1, false), false}, {"the common reserve", b.take(2, 10, true), true}, {"beyond all", b.take(2, 1, true), false},
	} {
		if c.got != c.want {
			t.Errorf("%d, %s: %t", i, c.name, c.got)
		}
	}
	b.charge(2, 1000)
	b.put(2, 1000)
	b.put(1, 60)
	b.put(2, 40)
	b.disconnect(1)
	b.disconnect(1)
	if b.disconnect(2); len(b.uids) != 0 || b.inUse() != (share{}) {
		t.Errorf("left: %v, %+v", b.uids, b.inUse())
	}
}

func TestServeEndsWithItsContext(t *testing.T) {
	t.Parallel()
	r := newRig(t, everyone)
	ctx, cancel := context.WithCancel(t.Context())
	r.cfg.Ready = cancel
	if err := Serve(ctx, r.cfg); err != nil {
		t.Error(err)
	}
}

// The bounds and statuses that docs/formats.md states are those of the code.
func TestDocumentedBounds(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("../../docs/formats.md")
	if err != nil {
		t.Fatal(err)
	}
	want := defaultLimits
	want.conns, want.uidConns, want.memory, want.uidMemory, want.reserve = 4096, 3072, 64<<20, 32<<20, 12<<20
	want.hello, want.frame, want.body, want.write, want.idle = 10*time.Second, 10*time.Second, 30*time.Second, 30*time.Second, 120*time.Second
	if defaultLimits != want || window != 256 || freeSize != 16<<10 || chunkLines != 1000 || api.MinFrame != 1_048_576 || api.MaxFrame != 4_194_304 || api.MaxEvents != 10_000 {
		t.Error("docs/formats.md states other bounds")
	}
	for _, s := range []string{"4,096, of one uid 3,072", "64 MiB, of one uid 32 MiB; the last 12 MiB", "at least 1,048,576", "1 to 4,194,304", "1 to 10,000 events", "at most 1,000, all or none"} {
		if !strings.Contains(string(b), s) {
			t.Errorf("docs/formats.md does not say %q", s)
		}
	}
	_, section, _ := strings.Cut(string(b), "\n## HTTP\n")
	_, section, _ = strings.Cut(section, "**Errors**")
	section = strings.Join(strings.Fields(section), " ")
	statuses := regexp.MustCompile(`\b[45]\d\d\b`).FindAllStringIndex(section, -1)
	for _, code := range []record.Code{record.CodeInvalid, record.CodeTooLarge, record.CodeForbidden, record.CodeConflict, record.CodeStale, record.CodeBusy, record.CodeClock,
		record.CodeHSM, record.CodeTPM, record.CodeDisk, record.CodeRollback, record.CodeUnsealed, record.CodeInternal, api.CodeUnknown} {
		at := strings.Index(section, "`"+string(code)+"`")
		said := ""
		for _, s := range statuses {
			if s[0] < at {
				said = section[s[0]:s[1]]
			}
		}
		if said != strconv.Itoa(statusOf(code)) {
			t.Errorf("docs/formats.md says %q of %s, the server %d", said, code, statusOf(code))
		}
	}
}
