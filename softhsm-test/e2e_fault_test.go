package softhsmtest_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"bulla/api"
	"bulla/record"
)

// load appends events of several producers until it is stopped, and keeps what was acknowledged.
type load struct {
	t    *testing.T
	stop context.CancelFunc
	done sync.WaitGroup

	mu      sync.Mutex
	given   []given
	refused map[record.Code]int
}

// startLoad has producers append single events to the sign.sock in dir, each as fast as it is answered.
func startLoad(t *testing.T, dir, log string, producers int) *load {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	l := &load{t: t, stop: cancel, refused: map[record.Code]int{}}
	for i := range producers {
		c := dial(t, dir)
		l.done.Go(func() { l.produce(ctx, c, log, fmt.Sprintf("load-%d", i)) })
	}
	t.Cleanup(func() { cancel(); l.done.Wait() })
	return l
}

func (l *load) produce(ctx context.Context, c *api.Client, log, stream string) {
	for n := uint64(1); ctx.Err() == nil; {
		// Not ctx: what is under way at the end is waited for.
		r, err := c.Append(context.Background(), log, fmt.Appendf(nil, `{"type":"load.test","stream":{"id":%q,"n":%d}}`, stream, n))
		var refused *api.Refusal
		switch {
		case errors.As(err, &refused):
			l.mu.Lock()
			l.refused[refused.Code]++
			l.mu.Unlock()
			select {
			case <-time.After(5 * time.Millisecond): // a producer in a hurry
			case <-ctx.Done():
			}
		case err != nil:
			l.t.Errorf("%s %d: %v", stream, n, err)
			return
		default:
			l.mu.Lock()
			l.given = append(l.given, given{stream: stream, n: n, index: r.Index, leaf: record.LeafHash(r.Entry), receipt: &r})
			l.mu.Unlock()
			n++
		}
	}
}

func (l *load) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.given)
}

func (l *load) refusals(c record.Code) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.refused[c]
}

// requireMore waits until n more events have been acknowledged.
func (l *load) requireMore(limit time.Duration, n int) {
	l.t.Helper()
	before := l.count()
	requireWithin(l.t, limit, func() error {
		if now := l.count(); now < before+n {
			l.mu.Lock()
			defer l.mu.Unlock()
			return fmt.Errorf("%d more events were taken, %d wanted; refused: %v", now-before, n, l.refused)
		}
		return nil
	})
}

// end stops the load and returns everything that was acknowledged, and the codes of what was refused.
func (l *load) end() ([]given, map[record.Code]int) {
	l.stop()
	l.done.Wait()
	return l.given, l.refused
}

// TestTokenAway takes the HSM's tokens away under load. Events are refused with the reason, service resumes within 5 s of their return
// without a restart, and what was acknowledged is there.
func TestTokenAway(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	daemon := startDev(t, dir)
	policy := readPolicy(t, dir)
	l := startLoad(t, dir, "", 4)
	l.requireMore(patience, 100)
	tokens, away := filepath.Join(dir, "hsm/tokens"), filepath.Join(dir, "hsm/away")
	for range 2 {
		if err := os.Rename(tokens, away); err != nil {
			t.Fatal(err)
		}
		before := l.refusals(record.CodeHSM)
		requireSoon(t, func() error {
			if n := l.refusals(record.CodeHSM) - before; n < 20 {
				return fmt.Errorf("%d refusals with code hsm", n)
			}
			return nil
		})
		if err := os.RemoveAll(tokens); err != nil { // the library may have made it anew
			t.Fatal(err)
		}
		if err := os.Rename(away, tokens); err != nil {
			t.Fatal(err)
		}
		l.requireMore(5*time.Second, 20)
	}
	given, refused := l.end()
	for code := range refused {
		if code != record.CodeHSM && code != record.CodeBusy {
			t.Errorf("events were refused with code %s", code)
		}
	}
	w := browse(t, dir)
	h := newHistory(t, policy)
	h.add(t, given)
	h.check(t, w)
	w.requireSeal(t)
	h.checkAll(t, w, nil)
	w.requireVerified(t, policy, h.sample...)
	if code := daemon.stop(); code != 0 {
		t.Errorf("exit code %d:\n%s", code, daemon.stderr)
	}
}
