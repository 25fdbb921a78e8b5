package api

import (
	"bytes"
	"errors"
	"testing"
)

// The largest request of a stream fits into the smallest frame that a server may be ready to read.
func TestStreamRequestsFitEveryServer(t *testing.T) {
	t.Parallel()
	for _, size := range []int{20, 1048, 60_000} {
		s := &Stream{work: make(chan struct{}, 1)}
		for range 2 * requestEvents {
			s.queue = append(s.queue, bytes.Repeat([]byte{'x'}, size))
		}
		events, err := s.next(t.Context())
		if err != nil || len(events) == 0 {
			t.Fatal(len(events), err)
		}
		if _, err := requestFrame(1<<53-1, string(bytes.Repeat([]byte{'x'}, 255)), WantReceipt, events, MinFrame); err != nil {
			t.Errorf("%d events of %d bytes: %v", len(events), size, err)
		}
	}
}

// An answer for too many events ends the connection although its caller does not listen any more, and there might be more to come.
func TestTooManyItemsForNobody(t *testing.T) {
	t.Parallel()
	k := &call{id: 1, want: WantAck, events: 1, done: make(chan error, 1)}
	l := &link{waiting: map[uint64]*call{1: k}}
	a := Answer{ID: 1, Status: StatusOK, More: true, Items: []Item{{Index: 1}, {Index: 2}}}
	if err := l.deliver(a.Append(nil)); !errors.Is(err, errProtocol) {
		t.Fatal(err)
	}
	if len(l.waiting) != 0 {
		t.Error("the caller would be told twice, and whoever does it would wait, holding the lock")
	}
	if err := <-k.done; !errors.Is(err, ErrUnknown) {
		t.Error(err)
	}
}
