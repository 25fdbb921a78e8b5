package server

import (
	"sync"
	"time"
)

// budget bounds what the peers of a socket use, in all and each uid: connections, and bytes of requests and answers in memory. It
// never makes anybody wait: what does not fit is refused as busy.
type budget struct {
	limits
	mu   sync.Mutex
	used share
	uids map[uint32]*share
}

type share struct{ conns, bytes int }

func newBudget(l limits) *budget { return &budget{limits: l, uids: map[uint32]*share{}} }

// connect counts a connection, if there may be one more.
func (b *budget) connect(uid uint32) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if u := b.uids[uid]; b.used.conns >= b.conns || u != nil && u.conns >= b.uidConns {
		return false
	}
	b.add(uid, share{conns: 1})
	return true
}

// disconnect ends what connect began.
func (b *budget) disconnect(uid uint32) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.add(uid, share{conns: -1})
}

// take claims n bytes, if they may be had. Those of a request that is not small leave a reserve, so that it takes no room from events
// that come one by one.
func (b *budget) take(uid uint32, n int, small bool) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	want := n
	if !small {
		want += b.reserve
	}
	if u := b.uids[uid]; b.used.bytes+want > b.memory || u != nil && u.bytes+want > b.uidMemory {
		return false
	}
	b.add(uid, share{bytes: n})
	return true
}

// charge claims n bytes in any case: an answer to what was taken has to be given. What is over the bounds then is for the next request.
func (b *budget) charge(uid uint32, n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.add(uid, share{bytes: n})
}

// put gives n bytes back.
func (b *budget) put(uid uint32, n int) { b.charge(uid, -n) }

func (b *budget) add(uid uint32, d share) {
	u := b.uids[uid]
	if u == nil {
		u = new(share)
		b.uids[uid] = u
	}
	u.conns, u.bytes = u.conns+d.conns, u.bytes+d.bytes
	b.used.conns, b.used.bytes = b.used.conns+d.conns, b.used.bytes+d.bytes
	if *u == (share{}) {
		delete(b.uids, uid)
	}
}

// inUse returns how much is used now.
func (b *budget) inUse() share {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used
}

// bucket lets something happen so often: a token comes every so often, and at most burst are kept.
type bucket struct {
	burst int
	every time.Duration

	mu    sync.Mutex
	empty time.Time // when the tokens that are used will all be back
}

// take uses a token; without one, it returns how long to wait for the next.
func (b *bucket) take(now time.Time) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.empty.Before(now) {
		b.empty = now
	}
	full := b.empty.Add(b.every)
	if wait := full.Sub(now) - time.Duration(b.burst)*b.every; wait > 0 {
		return wait
	}
	b.empty = full
	return 0
}
