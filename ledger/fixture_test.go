package ledger_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"bulla/ceremony"
	"bulla/clock"
	"bulla/ledger"
	"bulla/record"
	"bulla/store"
)

const origin = "test.example/log"

// devices are the parts that a ledger works with; a test may take hold of each.
type devices struct {
	key   *ecdsa.PrivateKey
	sign  func(real func() ([]byte, error)) ([]byte, error) // nil: real
	stamp func(real clock.Stamp) clock.Stamp
	write func(real func() error) error
}

func (d *devices) Public() crypto.PublicKey { return d.key.Public() }

func (d *devices) Sign(r io.Reader, digest []byte, o crypto.SignerOpts) ([]byte, error) {
	real := func() ([]byte, error) { return d.key.Sign(rand.Reader, digest, o) }
	if d.sign != nil {
		return d.sign(real)
	}
	return real()
}

func (d *devices) Now() clock.Stamp {
	s := clock.Stamp{Sys: time.Now().UnixNano(), HasEstimate: true, Bound: 1000, Round: 1, Epoch: 1, State: clock.Synced}
	if d.stamp != nil {
		return d.stamp(s)
	}
	return s
}

type faultyStore struct {
	*store.Log
	d *devices
}

func (f faultyStore) Commit(b *store.Batch) error {
	real := func() error { return f.Log.Commit(b) }
	if f.d.write != nil {
		return f.d.write(real)
	}
	return real()
}

func newDevices(t testing.TB) *devices {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &devices{key: key}
}

func (d *devices) config() ledger.Config {
	return ledger.Config{Origin: origin, Clock: d, Signer: func(ceremony.Key) (ledger.Signer, error) {
		return ledger.Signer{Signer: d, Device: record.CodeHSM}, nil
	}}
}

func (d *devices) genesis(t testing.TB) *ceremony.Genesis {
	t.Helper()
	spki, err := x509.MarshalPKIXPublicKey(d.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return &ceremony.Genesis{
		Origin:   origin,
		Clock:    clock.DefaultPolicy(),
		Keys:     []ceremony.Key{{Algorithm: "ecdsa-p256", Purpose: ceremony.PurposeLog, SPKI: spki}},
		Roles:    []ceremony.Role{{Name: ceremony.Producer, UIDs: []uint32{1000, 1001}}},
		Quotas:   ceremony.Quotas{Streams: 3},
		Software: "test",
	}
}

// create makes a log and returns its path.
func create(t testing.TB, d *devices) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "log.db")
	if err := ledger.Create(path, d.config(), d.genesis(t)); err != nil {
		t.Fatal(err)
	}
	return path
}

// open opens the log at path with the devices' faults in place.
func open(t testing.TB, d *devices, path string) *ledger.Ledger {
	t.Helper()
	return openWith(t, d.config(), d, path)
}

func openWith(t testing.TB, cfg ledger.Config, d *devices, path string) *ledger.Ledger {
	t.Helper()
	s, err := store.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	l, err := ledger.Open(cfg, faultyStore{s, d})
	if err != nil {
		t.Fatal(err, s.Close())
	}
	return l
}

func closed(t testing.TB, l *ledger.Ledger) {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

var producer = &ledger.Caller{Producer: record.Producer{UID: 1000, GID: 1000, PID: 42}}

// event makes an event; fields is JSON to go before the type, as `"id":"a",`.
func event(t testing.TB, fields string) ledger.Event {
	t.Helper()
	body, key, err := record.CanonicalEvent([]byte(`{` + fields + `"type":"test.event"}`))
	if err != nil {
		t.Fatal(err)
	}
	return ledger.Event{Body: body, Key: key}
}

func appendOne(l *ledger.Ledger, e ...ledger.Event) (*ledger.Result, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return l.Append(ctx, producer, e)
}

func mustAppend(t testing.TB, l *ledger.Ledger, e ...ledger.Event) *ledger.Result {
	t.Helper()
	res, err := appendOne(l, e...)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// checkReceipts fails unless every item of res is proved by its checkpoint, and still stands in the log.
func checkReceipts(t testing.TB, l *ledger.Ledger, d *devices, res *ledger.Result) {
	t.Helper()
	vkey, err := record.VKey(origin, d.Public())
	if err != nil {
		t.Fatal(err)
	}
	v, err := record.NewVerifier(vkey)
	if err != nil {
		t.Fatal(err)
	}
	for i := range res.Items {
		it, err := res.Item(i)
		if err != nil {
			t.Fatal(err)
		}
		proof, err := res.Proof(i)
		if err != nil {
			t.Fatal(err)
		}
		r := record.Receipt{Checkpoint: res.Checkpoint, Entry: it.Entry, Index: it.Index, Proof: proof}
		if _, _, err := r.Verify(v); err != nil {
			t.Fatalf("receipt of entry %d: %v", it.Index, err)
		}
		if again, err := l.Entry(it.Index); err != nil || !bytes.Equal(again, it.Entry) {
			t.Fatalf("entry %d is not in the log as its receipt says: %v", it.Index, err)
		}
	}
}

// checkLog re-reads the whole log: every entry parses, links and hashes to the signed root.
func checkLog(t testing.TB, l *ledger.Ledger) {
	t.Helper()
	size := l.Size()
	tree, err := record.NewTree(0, nil)
	if err != nil {
		t.Fatal(err)
	}
	var prev record.Hash
	for i := uint64(0); i < size; i++ {
		b, err := l.Entry(i)
		if err != nil {
			t.Fatal(err)
		}
		e, err := record.ParseEntry(b)
		if err != nil {
			t.Fatalf("entry %d: %v", i, err)
		}
		if e.Index != i || i > 0 && e.Prev != prev {
			t.Fatalf("entry %d does not link to the one before", i)
		}
		prev = record.LeafHash(b)
		tree.Append(nil, prev)
	}
	if _, err := l.Entry(size); err == nil {
		t.Fatalf("an entry beyond the signed head of size %d", size)
	}
	if head := l.Head(); head.Size != size || head.Root != tree.Root() {
		t.Fatalf("head %v is not over the entries", head)
	}
	if root, err := l.RootAt(size); err != nil || root != tree.Root() {
		t.Fatalf("the stored tree hashes lead to %v (%v), the entries to %v", root, err, tree.Root())
	}
	if _, err := tlog.ProveTree(int64(size), 1, readHashes{l}); err != nil {
		t.Fatal(err)
	}
}

type readHashes struct{ l *ledger.Ledger }

func (r readHashes) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, x := range indexes {
		tile := tlog.TileForIndex(8, x)
		width := (r.l.Size() >> (8 * uint(tile.L))) - uint64(tile.N)<<8
		tile.W = int(min(width, 256))
		data, err := r.l.Tile(tile)
		if err != nil {
			return nil, err
		}
		if out[i], err = tlog.HashFromTile(tile, data, x); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// powerCut returns a copy of the log as it is now: what a machine would find that lost power at this moment.
func powerCut(t testing.TB, path string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "survived.db")
	for _, suffix := range []string{"-wal", ""} { // in this order: what is moved meanwhile is in both
		b, err := os.ReadFile(path + suffix)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to+suffix, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return to
}

func requireCode(t testing.TB, err error, code record.Code) *ledger.Refusal {
	t.Helper()
	r, ok := err.(*ledger.Refusal)
	if !ok || r.Code != code {
		t.Fatalf("error %v, want a refusal with code %s", err, code)
	}
	return r
}

func named(i int) string { return fmt.Sprintf(`"id":"event-%d",`, i) }
