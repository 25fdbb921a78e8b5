package ledger

import (
	"bytes"
	"context"
	"fmt"
	"runtime"

	"golang.org/x/sync/errgroup"

	"bulla/record"
)

// A start reads the entries of the window again: parsed and hashed on all cores, and linked one to the next in their order.

// replayChunk is how many entries are handed on together.
const replayChunk = 1024

// chunk is a run of entries on its way through a replay.
type chunk struct {
	first uint64
	bytes []byte // of all entries, one behind the other
	ends  []int  // where each ends
	read  chan struct{}
	seen  []replayed // once read
	err   error
}

// replayed is what a replay needs to know of an entry.
type replayed struct {
	leaf, prev record.Hash
	uid        uint32
	key        record.EventKey
	named      bool // it is an event
}

// follow checks that the entries [from,size) stand where they say and link one to the next, fills the window with them, and advances
// h, the head before them.
func (l *Ledger) follow(h *head, from, size uint64) error {
	l.window.expect(size - from)
	g, ctx := errgroup.WithContext(context.Background())
	workers := runtime.GOMAXPROCS(0)
	jobs, order := make(chan *chunk, workers), make(chan *chunk, 4*workers)
	g.Go(func() error {
		defer close(jobs)
		defer close(order)
		return l.readChunks(ctx, from, size, jobs, order)
	})
	for range workers {
		g.Go(func() error {
			for c := range jobs {
				c.seen, c.err = l.readChunk(c)
				close(c.read)
			}
			return nil
		})
	}
	g.Go(func() error {
		next := from
		for c := range order {
			<-c.read
			if c.err != nil {
				return c.err
			}
			if err := l.link(h, c, &next); err != nil {
				return err
			}
		}
		if next != size && ctx.Err() == nil {
			return fmt.Errorf("%w: entry %d is missing", ErrInconsistent, next)
		}
		return nil
	})
	return g.Wait()
}

// readChunks reads the entries in the order of the log.
func (l *Ledger) readChunks(ctx context.Context, from, size uint64, jobs, order chan<- *chunk) error {
	c := &chunk{first: from}
	send := func() {
		c.read = make(chan struct{})
		for _, to := range []chan<- *chunk{jobs, order} {
			select {
			case to <- c:
			case <-ctx.Done():
			}
		}
	}
	next := from
	err := l.store.Range(from, size, func(i uint64, entry []byte) bool {
		if i != next {
			return false // the one that links them finds out
		}
		next++
		c.bytes = append(c.bytes, entry...)
		c.ends = append(c.ends, len(c.bytes))
		if len(c.ends) == replayChunk {
			send()
			c = &chunk{first: next, bytes: make([]byte, 0, len(c.bytes))}
		}
		return ctx.Err() == nil
	})
	if len(c.ends) > 0 {
		send()
	}
	return err
}

// readChunk parses and hashes a chunk's entries.
func (l *Ledger) readChunk(c *chunk) ([]replayed, error) {
	out := make([]replayed, len(c.ends))
	start := 0
	for i, end := range c.ends {
		entry, index := c.bytes[start:end], c.first+uint64(i)
		start = end
		e, err := record.ParseEntry(entry)
		if err != nil {
			return nil, fmt.Errorf("%w: entry %d: %w", ErrInconsistent, index, err)
		}
		if e.Index != index || e.Log != l.cfg.Origin {
			return nil, fmt.Errorf("%w: entry %d does not follow on the one before it", ErrInconsistent, index)
		}
		out[i] = replayed{leaf: record.LeafHash(entry), prev: e.Prev}
		if e.Kind != record.KindEvent || e.Producer == nil {
			continue
		}
		_, key, err := record.CanonicalEvent(bytes.Clone(e.Body))
		if err != nil {
			return nil, fmt.Errorf("%w: entry %d: %w", ErrInconsistent, index, err)
		}
		out[i].uid, out[i].key, out[i].named = e.Producer.UID, key, true
	}
	return out, nil
}

// link puts a chunk behind h.
func (l *Ledger) link(h *head, c *chunk, next *uint64) error {
	if c.first != *next {
		return fmt.Errorf("%w: entry %d is missing", ErrInconsistent, *next)
	}
	var stored []record.Hash
	for i := range c.seen {
		e := &c.seen[i]
		if *next > 0 && e.prev != h.prev {
			return fmt.Errorf("%w: entry %d does not follow on the one before it", ErrInconsistent, *next)
		}
		h.prev = e.leaf
		stored = h.tree.Append(stored[:0], h.prev)
		if e.named {
			l.window.add(e.uid, e.key, *next)
		}
		*next++
	}
	return nil
}
