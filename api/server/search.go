package server

import (
	"fmt"
	"net/url"
	"time"

	"bulla/api"
	"bulla/ledger"
	"bulla/record"
)

// A search reads the log without an index, so a call is bounded: the next one goes on where it ended. One runs at a time; appending
// goes first.
const (
	searchTime  = 500 * time.Millisecond
	searchBytes = 4 << 20 // of entries found, after which an answer ends
	searchChunk = 1000    // entries read at a time
)

const actionSearch = "search"

// search finds entries. That it was asked is recorded with the query and the range that was looked through: what is not in the answer
// is told, too.
func (c *call) search() error {
	if err := c.mayRead(); err != nil {
		return err
	}
	from, limit, err := c.page()
	if err != nil {
		return err
	}
	values := url.Values{}
	for _, name := range api.QueryFields {
		if given := c.r.URL.Query(); given.Has(name) {
			values.Set(name, given.Get(name))
		}
	}
	q, err := api.ParseQuery(values)
	if err != nil {
		return err
	}
	if n := len(values.Encode()); n > api.MaxQuery {
		return &ledger.Refusal{Code: record.CodeTooLarge, Message: fmt.Sprintf("the query has %d bytes: the limit is %d", n, api.MaxQuery)}
	}
	select {
	case c.s.searching <- struct{}{}:
		defer func() { <-c.s.searching }()
	case <-c.r.Context().Done():
		return c.r.Context().Err()
	case <-time.After(c.s.limits.body):
		return busy(c.s.limits.backoff, "others are searching")
	}
	return c.send("application/json", func() ([]byte, error) {
		s := &scan{log: c.log.Ledger, q: q, size: c.log.Ledger.Size(), next: from, limit: limit, end: time.Now().Add(searchTime)}
		if err := s.run(); err != nil {
			return nil, err
		}
		c.gives = &disclosure{action: actionSearch, query: values.Encode(), from: from, to: s.next}
		return appendPage(s.found, s.next, s.size, s.next < s.size), nil
	})
}

// scan is a search under way.
type scan struct {
	log   *ledger.Ledger
	q     *api.Query
	size  uint64
	next  uint64 // the first entry that was not looked at
	limit int
	end   time.Time
	found [][]byte
	bytes int
}

// run looks at entries until a bound is reached, and at some in any case.
func (s *scan) run() error {
	for s.next < s.size {
		entries, first, err := s.read()
		if err != nil {
			return err
		}
		for i, b := range entries {
			if s.take(first(i), b) {
				return nil
			}
		}
		if len(entries) == 0 {
			s.next = s.size
		}
		if time.Now().After(s.end) {
			return nil
		}
	}
	return nil
}

// read reads the next entries that may be wanted; index says which they are.
func (s *scan) read() (entries [][]byte, index func(int) uint64, err error) {
	if s.q.Kind == "" || s.q.Kind == record.KindEvent {
		from := s.next
		entries, err = s.log.Entries(from, int(min(searchChunk, s.size-from)))
		return entries, func(i int) uint64 { return from + uint64(i) }, err
	}
	indices, err := s.log.Kind(s.q.Kind, s.next, searchChunk/10) // the log finds what is rare
	total := 0
	for _, i := range indices {
		if i >= s.size || total > searchBytes {
			break
		}
		b, err := s.log.Entry(i)
		if err != nil {
			return nil, nil, err
		}
		entries, total = append(entries, b), total+len(b)
	}
	return entries, func(i int) uint64 { return indices[i] }, err
}

// take looks at an entry; it is true when a bound of the answer is reached.
func (s *scan) take(index uint64, b []byte) (full bool) {
	s.next = index + 1
	// What the store gives was checked when it was written; an entry that cannot be read any more is the self-check's finding.
	if _, ok, err := s.q.Match(b); err != nil || !ok {
		return false
	}
	s.found = append(s.found, b)
	s.bytes += len(b)
	return len(s.found) == s.limit || s.bytes >= searchBytes
}
