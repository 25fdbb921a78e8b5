package ledger

import (
	"testing"
	"time"
)

// The places at a device follow how long it takes: a slow one that can do more at a time gets more.
func TestPlacesAtADevice(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		parallel int
		took     []time.Duration // of signatures, one after the other
		want     int
	}{
		{1, nil, 2},
		{1, []time.Duration{time.Second, time.Second}, 2},
		{4, []time.Duration{time.Microsecond}, 2},
		{4, []time.Duration{time.Second}, 4},
		{64, []time.Duration{time.Second}, 4},
		{4, []time.Duration{time.Second, time.Microsecond}, 3},
		{4, []time.Duration{time.Second, time.Microsecond, time.Microsecond, time.Microsecond}, 2},
	} {
		turns := NewTurns(c.parallel)
		for _, took := range c.took {
			<-turns.free
			turns.back(took)
		}
		if got := len(turns.free); got != c.want {
			t.Errorf("a device for %d at a time, after %v: %d places, want %d", c.parallel, c.took, got, c.want)
		}
	}
}
