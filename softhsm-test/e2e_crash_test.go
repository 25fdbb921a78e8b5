package softhsmtest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"bulla/api"
	"bulla/record"
	"bulla/verify"
)

// crashRounds is how often TestCrash kills the daemon; BULLA_CRASH_ROUNDS says otherwise.
const crashRounds = 3

// TestCrash kills the daemon, and with it its TPM, at random moments under load and while it starts again. Afterwards every receipt ever given must be at its
// index with the same bytes, no event be there twice, and the whole log verify.
func TestCrash(t *testing.T) {
	t.Parallel()
	rounds := crashRounds
	if s := os.Getenv("BULLA_CRASH_ROUNDS"); s != "" {
		var err error
		if rounds, err = strconv.Atoi(s); err != nil || rounds < 1 {
			t.Fatalf("BULLA_CRASH_ROUNDS=%s: must be a positive number", s)
		}
	}
	dir := shortDir(t)
	daemon := startDev(t, dir)
	token := readTokenFile(t, dir)
	policy := readPolicy(t, dir)
	h := newHistory(t, policy)
	producers := []*producer{
		{stream: "one", batch: 1, want: api.WantReceipt},
		{stream: "two", batch: 1, want: api.WantReceipt},
		{stream: "ack", batch: 1, want: api.WantAck},
		{stream: "many", batch: 20, want: api.WantReceipt},
		{stream: "more", batch: 60, want: api.WantAck},
	}
	for round := range rounds {
		results := make([][]given, len(producers))
		var load sync.WaitGroup
		for i, p := range producers {
			load.Go(func() { results[i] = p.produce(t, dir) })
		}
		wait := time.Duration(rand.Int64N(int64(300 * time.Millisecond)))
		time.Sleep(wait) // the random moment
		daemon.kill()
		load.Wait()
		// The next crash is in the middle of recovering from this one: opening, settling the last seal, the first seal.
		daemon = startChild(t, nil, program(t, "bullad"), "dev", "--dir", dir)
		time.Sleep(time.Duration(rand.Int64N(int64(time.Second))))
		daemon.kill()
		token.repair(t)
		daemon = startDev(t, dir)
		w := browse(t, dir)
		count := 0
		for _, r := range results {
			count += len(r)
			h.add(t, r)
		}
		h.check(t, w)
		w.requireSeal(t)
		t.Logf("round %d: killed after %v, %d answers", round, wait, count)
		if round%50 == 49 || round == rounds-1 {
			h.checkAll(t, w, producers)
			w.requireVerified(t, policy, h.sample...)
		}
	}
	if len(h.leaves) == 0 {
		t.Error("no receipt was given in any round")
	}
	if code := daemon.stop(); code != 0 {
		t.Errorf("exit code %d:\n%s", code, daemon.stderr)
	}
}

// tokenFile is the file of SoftHSM that says what a token is. At each login SoftHSM empties it and writes it again: killed in between, about
// once in a thousand times, it has no such token any more. Hardware does not; so what the kill left is put back.
type tokenFile struct {
	path  string
	bytes []byte
}

func readTokenFile(t *testing.T, dir string) tokenFile {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "hsm", "tokens", "*", "token.object"))
	if err != nil || len(paths) != 1 {
		t.Fatalf("%q are no token of SoftHSM (%v)", paths, err)
	}
	b, err := os.ReadFile(paths[0])
	if err != nil {
		t.Fatal(err)
	}
	return tokenFile{paths[0], b}
}

func (f tokenFile) repair(t *testing.T) {
	t.Helper()
	b, err := os.ReadFile(f.path)
	if err != nil {
		t.Fatal(err)
	}
	if len(b) >= len(f.bytes) {
		return
	}
	t.Logf("SoftHSM was killed while it wrote its token: %d of %d bytes", len(b), len(f.bytes))
	if err := os.WriteFile(f.path, f.bytes, 0o600); err != nil {
		t.Fatal(err)
	}
}

// producer appends events of one gap-free stream until its connection ends, and again from where it does not know.
type producer struct {
	stream string
	batch  int
	want   string
	last   uint64 // number of the last acknowledged event
}

// given is what the appliance promised.
type given struct {
	stream  string
	n       uint64
	index   uint64
	leaf    record.Hash
	receipt *record.Receipt // nil when only the leaf hash was asked for
}

func (p *producer) produce(t *testing.T, dir string) []given {
	var out []given
	c, err := api.Dial(context.Background(), filepath.Join(dir, "sign.sock"))
	if err != nil {
		return nil // killed already
	}
	defer c.Close()
	for {
		events := make([][]byte, p.batch)
		for i := range events {
			events[i] = fmt.Appendf(nil, `{"type":"crash.test","stream":{"id":%q,"n":%d},"data":{"fill":%q}}`, p.stream, p.last+1+uint64(i), strings.Repeat("x", int(p.last%300)))
		}
		res, err := c.AppendBatch(context.Background(), "", p.want, events...)
		var refused *api.Refusal
		switch {
		case errors.As(err, &refused) && refused.RetryAfter > 0:
			time.Sleep(min(refused.RetryAfter, 10*time.Millisecond)) // as it asks for, or sooner
			continue
		case errors.As(err, &refused):
			t.Errorf("stream %s from %d: %v", p.stream, p.last+1, err)
			return out
		case err != nil:
			return out // unknown: the next round asks again
		}
		for i, it := range res.Items {
			g := given{stream: p.stream, n: p.last + 1 + uint64(i), index: it.Index}
			if p.want == api.WantReceipt {
				r := res.Receipt(i)
				g.receipt, g.leaf = &r, record.LeafHash(r.Entry)
			} else {
				g.leaf = *it.Leaf
			}
			out = append(out, g)
		}
		p.last += uint64(p.batch)
	}
}

// history is everything that the appliance ever promised.
type history struct {
	verifiers []note.Verifier
	leaves    map[uint64]record.Hash // by index
	roots     map[uint64]record.Hash // of signed heads, by size
	recent    []given                // not compared with the restarted log yet
	sample    []verify.Receipt       // one a round
}

func newHistory(t *testing.T, policy *verify.Policy) *history {
	h := &history{leaves: map[uint64]record.Hash{}, roots: map[uint64]record.Hash{}}
	for _, k := range policy.VKeys {
		v, err := record.NewVerifier(k)
		if err != nil {
			t.Fatal(err)
		}
		h.verifiers = append(h.verifiers, v)
	}
	return h
}

// add checks each receipt by itself and notes it.
func (h *history) add(t *testing.T, gs []given) {
	t.Helper()
	for i, g := range gs {
		if old, ok := h.leaves[g.index]; ok && old != g.leaf {
			t.Fatalf("index %d was given twice, to different entries", g.index)
		}
		h.leaves[g.index] = g.leaf
		if g.receipt == nil {
			continue
		}
		_, head, err := g.receipt.Verify(h.verifiers...)
		if err != nil {
			t.Fatalf("receipt of %s %d at %d: %v", g.stream, g.n, g.index, err)
		}
		if old, ok := h.roots[head.Size]; ok && old != head.Root {
			t.Fatalf("two heads of size %d were signed", head.Size)
		}
		h.roots[head.Size] = head.Root
		if i == len(gs)-1 {
			b, err := g.receipt.MarshalJSON()
			if err != nil {
				t.Fatal(err)
			}
			h.sample = append(h.sample, verify.Receipt{Name: fmt.Sprintf("%d.json", g.index), Data: b})
		}
	}
	h.recent = append(h.recent, gs...)
}

// check compares what was promised since the last check with the log.
func (h *history) check(t *testing.T, w *web) {
	t.Helper()
	if len(h.recent) == 0 {
		return
	}
	from := h.recent[0].index
	for _, g := range h.recent {
		from = min(from, g.index)
	}
	entries := map[uint64][]byte{}
	walk(t, w, from, func(i uint64, b []byte) { entries[i] = b })
	for _, g := range h.recent {
		b, ok := entries[g.index]
		switch {
		case !ok:
			t.Fatalf("entry %d (%s %d) was acknowledged and is lost: the log has %d entries", g.index, g.stream, g.n, from+uint64(len(entries)))
		case record.LeafHash(b) != g.leaf || g.receipt != nil && !bytes.Equal(b, g.receipt.Entry):
			t.Fatalf("entry %d (%s %d) is not what was acknowledged: %s", g.index, g.stream, g.n, b)
		}
	}
	h.recent = nil
}

// checkAll recomputes chain, tree and every head that was ever given, and looks for each producer's events: all, once, in order.
func (h *history) checkAll(t *testing.T, w *web, producers []*producer) {
	t.Helper()
	tree, err := record.NewTree(0, nil)
	if err != nil {
		t.Fatal(err)
	}
	var prev record.Hash
	last := map[string]int64{}
	walk(t, w, 0, func(i uint64, b []byte) {
		e, err := record.ParseEntry(b)
		if err != nil {
			t.Fatalf("entry %d: %v", i, err)
		}
		if e.Index != i || i > 0 && e.Prev != prev {
			t.Fatalf("entry %d does not follow on entry %d", e.Index, i-1)
		}
		prev = record.LeafHash(b)
		if leaf, ok := h.leaves[i]; ok && leaf != prev {
			t.Fatalf("entry %d is not what was acknowledged", i)
		}
		tree.Append(nil, prev)
		if root, ok := h.roots[tree.Size()]; ok && root != tree.Root() {
			t.Fatalf("the head of size %d that was given is not the log's", tree.Size())
		}
		if e.Kind != record.KindEvent {
			return
		}
		ev, err := record.ParseEvent(e.Body)
		if err != nil {
			t.Fatalf("entry %d: %v", i, err)
		}
		if s := ev.Stream; s != nil {
			if s.N != last[s.ID]+1 {
				t.Fatalf("entry %d has %s %d after %d", i, s.ID, s.N, last[s.ID])
			}
			last[s.ID] = s.N
		}
	})
	for i := range h.leaves {
		if i >= tree.Size() {
			t.Fatalf("entry %d was acknowledged and is lost", i)
		}
	}
	for _, p := range producers {
		if last[p.stream] < int64(p.last) {
			t.Errorf("stream %s ends at %d, %d was acknowledged", p.stream, last[p.stream], p.last)
		}
	}
}

// walk calls f with every entry that is served, from an index on.
func walk(t *testing.T, w *web, from uint64, f func(index uint64, entry []byte)) {
	t.Helper()
	for {
		var page api.Page
		w.getJSON(t, fmt.Sprintf("%s/v1/entries?from=%d&limit=1000", w.prefix, from), &page)
		for i, e := range page.Entries {
			f(from+uint64(i), e)
		}
		if page.Next == nil {
			return
		}
		from = *page.Next
	}
}
