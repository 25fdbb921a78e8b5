package ledger_test

import (
	"testing"
	"time"

	"bulla/ceremony"
	"bulla/ledger"
	"bulla/record"
)

// Two logs share a device that is at work for one of them. What arrives for the other gathers, and becomes one batch.
func TestBatchesAreMadeInTurn(t *testing.T) {
	t.Parallel()
	const requests = 5
	turns := ledger.NewTurns(1)
	start := func(d *devices) *ledger.Ledger {
		path, cfg := create(t, d), d.config()
		cfg.Signer = func(ceremony.Key) (ledger.Signer, error) {
			return ledger.Signer{Signer: d, Device: record.CodeHSM, Turns: turns}, nil
		}
		return openWith(t, cfg, d, path)
	}
	held, release := make(chan struct{}, 2), make(chan struct{})
	busy, other := newDevices(t), newDevices(t)
	a, b := start(busy), start(other)
	defer closed(t, a)
	defer closed(t, b)
	busy.sign = func(real func() ([]byte, error)) ([]byte, error) {
		held <- struct{}{}
		<-release
		return real()
	}
	before, err := b.Status()
	if err != nil {
		t.Fatal(err)
	}
	answers := make(chan outcome, 2+requests)
	send := func(l *ledger.Ledger, i int) {
		res, err := appendOne(l, event(t, named(i)))
		answers <- outcome{res, err}
	}
	for i := range 2 { // one is signed, the other made meanwhile
		go send(a, i)
		<-held
	}
	for i := range requests {
		go send(b, i)
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		s, err := b.Status()
		if err != nil {
			t.Fatal(err)
		}
		if s.Waiting == requests {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%d requests wait, not %d", s.Waiting, requests)
		}
	}
	close(release)
	for range 2 + requests {
		if o := <-answers; o.err != nil {
			t.Error(o.err)
		}
	}
	after, err := b.Status()
	if err != nil {
		t.Fatal(err)
	}
	if n := after.Stats.Batches - before.Stats.Batches; n != 1 {
		t.Errorf("they became %d batches, not one", n)
	}
	checkLog(t, a)
	checkLog(t, b)
}
