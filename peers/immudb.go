package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/codenotary/immudb/embedded/logger"
	immu "github.com/codenotary/immudb/embedded/store"
)

// immudb is immudb's store, embedded. A commit returns when its transaction is synced; building the index of keys is not waited for.
type immudb struct {
	store *immu.ImmuStore
	next  atomic.Uint64
}

// openImmudb makes a store. Its syncer waits for more transactions for up to every. Without an index its entries are found by
// transaction only.
func openImmudb(dir string, every time.Duration, index bool) (store, error) {
	o := immu.DefaultOptions().WithSynced(true).WithSyncFrequency(every).WithMaxConcurrency(512).WithMaxActiveTransactions(4096).
		WithMaxTxEntries(1024).WithMultiIndexing(!index).WithLogger(logger.NewSimpleLogger("immudb", io.Discard))
	s, err := immu.Open(dir, o)
	if err != nil {
		return nil, fmt.Errorf("opening immudb: %w", err)
	}
	return &immudb{store: s}, nil
}

func (s *immudb) append(ctx context.Context, events [][]byte) error {
	tx, err := s.store.NewWriteOnlyTx(ctx)
	if err != nil {
		return err
	}
	first := s.next.Add(uint64(len(events))) - uint64(len(events))
	for i, e := range events {
		key := binary.BigEndian.AppendUint64(nil, first+uint64(i))
		if err := tx.Set(key, nil, e); err != nil {
			return err
		}
	}
	_, err = tx.AsyncCommit(ctx)
	return err
}

func (s *immudb) close() error { return s.store.Close() }
