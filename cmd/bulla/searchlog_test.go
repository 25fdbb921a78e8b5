package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"bulla/clock"
	"bulla/record"
	"bulla/verify"
)

// logStart is when the logs of these tests begin: 2026-11-23T01:40:00Z.
const logStart = 1795398000_000000000

// madeEvent is an event of a made log: sessions of ten events, traces of five, a transaction each, a few actors, addresses and outcomes.
func madeEvent(dst []byte, i uint64) []byte {
	return fmt.Appendf(dst, `{"actor":{"id":"%d","name":"user%d"},"data":{"line":"request number %d"},"id":"e-%d","outcome":"%s","session_id":"s-%d",`+
		`"severity":%d,"src":{"ip":"10.%d.%d.7"},"stream":{"id":"web","n":%d},"trace_id":"%032x","transaction_id":"t-%d","type":"http.%s"}`,
		1000+i%97, i%97, i, i, [...]string{"success", "failure"}[i%7/6], i/10, 9+i%3*4, i%5, i%256, i, i/5, i, [...]string{"get", "post", "put.begin", "put.end"}[i%4])
}

// madeLog writes an export of a log of n entries, without a genesis, into dir. Entry i was received i ms after start, sure within bound.
type madeLog struct {
	origin       string
	start, bound int64
	n            uint64
	event        func(dst []byte, i uint64) []byte
	stamp        func(i uint64) clock.Stamp // nil: as said above
}

func (m *madeLog) write(t testing.TB, dir string) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	producer, err := (&record.Producer{UID: 1000, GID: 1000, PID: 7, Exe: "/usr/sbin/nginx", Unit: "nginx.service"}).Append(nil)
	must(err)
	put := func(name string, b []byte) {
		path := filepath.Join(dir, name)
		must(os.MkdirAll(filepath.Dir(path), 0o755))
		must(os.WriteFile(path, b, 0o644))
	}
	stored := hashFile{}
	var tree record.Tree
	var prev record.Hash
	var buf, body, bundle []byte
	var hashes []record.Hash
	for i := range m.n {
		s := clock.Stamp{Sys: m.start + int64(i)*1_000_000, Bound: m.bound, Round: 1, Epoch: 1, State: clock.Synced, HasEstimate: true}
		if m.stamp != nil {
			s = m.stamp(i)
		}
		event := m.event
		if event == nil {
			event = madeEvent
		}
		body = event(body[:0], i)
		buf = record.NewFrame(m.origin, s).Append(buf[:0], record.KindEvent, i, prev, producer, body)
		prev = record.LeafHash(buf)
		hashes = tree.Append(hashes[:0], prev)
		stored = append(stored, hashes...)
		bundle = record.AppendBundle(bundle, buf)
		if (i+1)%256 == 0 || i+1 == m.n {
			put(record.TilePath(tlog.Tile{H: 8, L: -1, N: int64(i / 256), W: int(i%256) + 1}), bundle)
			bundle = bundle[:0]
		}
	}
	must(verify.Tiles(m.n, func(tile tlog.Tile) error {
		if tile.L < 0 {
			return nil
		}
		b, err := tlog.ReadTileData(tile, stored)
		put(record.TilePath(tile), b)
		return err
	}))
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	signer, err := record.NewSigner(m.origin, key)
	must(err)
	signed, err := note.Sign(&note.Note{Text: record.Checkpoint{Origin: m.origin, Size: m.n, Root: tree.Root()}.Text()}, signer)
	must(err)
	put("checkpoint", signed)
}

// hashFile are a tree's stored hashes.
type hashFile []record.Hash

func (f hashFile) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, x := range indexes {
		out[i] = f[x]
	}
	return out, nil
}

// made writes a log of n events and opens it.
func made(t testing.TB, n uint64) *archive {
	t.Helper()
	dir := t.TempDir()
	(&madeLog{origin: "test.example/made", start: logStart, bound: 500_000, n: n}).write(t, dir)
	return opened(t, dir)
}

func opened(t testing.TB, path string) *archive {
	t.Helper()
	a, err := openArchive(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.done)
	return a
}
