package main

import (
	"context"
	"errors"
	"os"
	"time"
)

// testCase is a load that all stores take.
type testCase struct {
	name, title      string
	producers, batch int
	aim              map[string]float64 // how many times a store's rate Bulla's is to be
	stores           []contender
}

// contender is a store, or the disk itself, in one configuration.
type contender struct {
	name, note string
	open       func(context.Context, string) (store, error) // of a peer
	want       string                                       // of Bulla, by its own client: ack or receipt
	bare       bool                                         // Bulla, by a client that costs next to nothing
	disk       bool
}

// Names that the report knows.
const (
	bullaAck     = "Bulla, acknowledgements"
	bullaReceipt = "Bulla, receipts"
	bullaBare    = "Bulla, bare client"
	diskName     = "disk: 4 KiB fdatasync"

	aimed = bullaAck // what the ratios are of
)

var (
	bulla = []contender{
		{name: bullaAck, note: "`bulla bench --want ack` over sign.sock: validated, stamped, chained, in the tree, signed by SoftHSM P-256, synced", want: "ack"},
		{name: bullaReceipt, note: "the same with `--want receipt`: each answer carries entry, proof and signed head", want: "receipt"},
		{name: bullaBare, note: "acknowledgements to a client that looks at their status alone: what is left is the appliance", bare: true},
	}
	theDisk  = contender{name: diskName, note: "one file filled with zeros, one write and fdatasync after the other", disk: true}
	sqlites  = contender{name: "SQLite", note: "modernc.org/sqlite, WAL, synchronous=FULL; one writer takes all that waits into one transaction", open: openSQLite}
	defaults = contender{name: "immudb", note: "embedded/store as shipped: synced, sync every 20 ms at most, index of keys built behind", open: immudbOpener(20*time.Millisecond, true)}
	tuned    = contender{name: "immudb, tuned", note: "sync every 1 ms at most, and no index of keys", open: immudbOpener(time.Millisecond, false)}
)

var cases = []testCase{
	{"single", "One producer, one entry at a time", 1, 1, nil, []contender{theDisk, bulla[0], bulla[1], bulla[2],
		{name: "Tessera POSIX", note: "batches of 1; an entry is waited for until it is integrated and synced", open: tesseraOpener(1, 10*time.Millisecond)}, defaults, tuned, sqlites}},
	{"many", "256 producers, one entry at a time", 256, 1, map[string]float64{"Tessera POSIX": 2, "immudb": 2, "immudb, tuned": 2}, []contender{theDisk, bulla[0], bulla[1], bulla[2],
		{name: "Tessera POSIX", note: "batches of 256 or 10 ms", open: tesseraOpener(256, 10*time.Millisecond)}, defaults, tuned, sqlites}},
	{"bulk", "16 producers x 100 entries a request", 16, 100, map[string]float64{"immudb": 1.5, "immudb, tuned": 1.5}, []contender{theDisk, bulla[0], bulla[1], bulla[2],
		{name: "Tessera POSIX", note: "batches of 1600 or 10 ms; it knows single entries only", open: tesseraOpener(1600, 10*time.Millisecond)}, defaults, tuned, sqlites}},
}

func tesseraOpener(size uint, age time.Duration) func(context.Context, string) (store, error) {
	return func(ctx context.Context, dir string) (store, error) { return openTessera(ctx, dir, size, age) }
}

func immudbOpener(every time.Duration, index bool) func(context.Context, string) (store, error) {
	return func(_ context.Context, dir string) (store, error) { return openImmudb(dir, every, index) }
}

// measure runs a case once. A peer gets an empty directory, which is gone afterwards; Bulla's log grows on from round to round.
func (c contender) measure(ctx context.Context, s *settings, tc testCase, a *appliance, dir string) (m measurement, err error) {
	switch {
	case c.disk:
		return disk(ctx, s.disk, s.length())
	case c.bare:
		before, counted := flushes(a.dir)
		o, err := load(ctx, a, work{producers: tc.producers, batch: tc.batch, size: eventSize, window: 1}, s.length())
		m := o.took.measurement(s.length(), o.taken)
		m.flushed(a.dir, before, counted)
		return m, err
	case c.want != "":
		return a.bench(ctx, tc.producers, tc.batch, eventSize, c.want, s.length())
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	st, err := c.open(ctx, dir)
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, st.close()) }()
	return drive(ctx, st, dir, tc.producers, tc.batch, s.length())
}
