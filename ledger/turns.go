package ledger

import (
	"sync"
	"time"
)

// Turns is shared by the ledgers whose keys are in one device. A batch is made when the device has a place for it, which it keeps until
// it is signed; what else arrives for any of these logs gathers meanwhile. Without that, many logs make many small batches, which
// then wait for each other at the device.
type Turns struct {
	free chan struct{}
	mu   sync.Mutex
	n    int // places, free or taken
}

// How many batches are under way at a time, of a log and at a device. While one is signed and committed the next is made and signed,
// so that a signature covers what came during a commit. More would only make them smaller, but for a device that takes longer than
// everything else: it is asked for several signatures at once.
const (
	underway     = 2
	underwaySlow = 4
	slowDevice   = 2 * time.Millisecond
)

// NewTurns is for a device that can work on so many signatures at a time.
func NewTurns(parallel int) *Turns {
	t := &Turns{free: make(chan struct{}, max(underway, min(parallel, underwaySlow)))}
	for range underway {
		t.free <- struct{}{}
	}
	t.n = underway
	return t
}

// back gives a place back, after the device took so long: by that there are more places or fewer.
func (t *Turns) back(took time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	want := underway
	if took > slowDevice {
		want = cap(t.free)
	}
	for ; t.n < want; t.n++ {
		t.free <- struct{}{}
	}
	if t.n > want {
		t.n--
		return
	}
	t.free <- struct{}{}
}
