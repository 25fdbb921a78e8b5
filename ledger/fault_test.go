package ledger_test

import (
	"errors"
	"fmt"
	"sync/atomic"
	"testing"

	"bulla/clock"
	"bulla/ledger"
	"bulla/record"
	"bulla/store"
)

// The fault table: each step of sequence, failing before or after it took effect; the batch failing or the process stopping; the
// batch alone or with a successor behind it. After every row the whole log verifies, every receipt stands, and what was refused
// left no trace.
func TestFaultTable(t *testing.T) {
	t.Parallel()
	for _, step := range []string{"stamp", "sign", "commit"} {
		for _, effect := range []string{"before effect", "after effect"} {
			for _, class := range []string{"batch fails", "process stops"} {
				for _, behind := range []string{"alone", "successor waiting"} {
					t.Run(step+"/"+effect+"/"+class+"/"+behind, func(t *testing.T) {
						t.Parallel()
						f := &fault{step: step, after: effect == "after effect", successor: behind != "alone"}
						f.begin(t)
						if class == "process stops" {
							f.crash(t)
						} else {
							f.fail(t)
						}
					})
				}
			}
		}
	}
}

type fault struct {
	step             string
	after, successor bool

	d            *devices
	path         string
	l            *ledger.Ledger
	armed        atomic.Bool
	reached      chan struct{} // the faulty step is held
	release      chan struct{} // closed: it goes on to fail
	signs        chan struct{} // a signature was made
	before       *ledger.Result
	victim, next chan outcome
}

type outcome struct {
	res *ledger.Result
	err error
}

var errFault = errors.New("the device failed")

func (f *fault) due(step string) bool { return step == f.step && f.armed.CompareAndSwap(true, false) }

func (f *fault) hold() {
	close(f.reached)
	<-f.release
}

// begin opens a log with two acknowledged events and sends a third, which meets the fault and is held in it.
func (f *fault) begin(t *testing.T) {
	f.reached, f.release, f.signs = make(chan struct{}), make(chan struct{}), make(chan struct{}, 100)
	f.victim, f.next = make(chan outcome, 1), make(chan outcome, 1)
	f.d = newDevices(t)
	f.path = create(t, f.d)
	f.d.stamp = func(s clock.Stamp) clock.Stamp {
		if !f.due("stamp") {
			return s
		}
		f.hold()
		if f.after { // a reading was made, but it is out of policy
			s.Bound = 1 << 40
			return s
		}
		return clock.Stamp{Sys: s.Sys}
	}
	f.d.sign = func(real func() ([]byte, error)) ([]byte, error) {
		defer func() { f.signs <- struct{}{} }()
		if !f.due("sign") {
			return real()
		}
		if f.after {
			if _, err := real(); err != nil {
				t.Error(err)
			}
		}
		f.hold()
		return nil, errFault
	}
	f.d.write = func(real func() error) error {
		if !f.due("commit") {
			return real()
		}
		if f.after { // it is on disk, but nobody says so
			if err := real(); err != nil {
				t.Error(err)
			}
			f.hold()
			return fmt.Errorf("%w: %w", store.ErrUnknown, errFault)
		}
		f.hold()
		return fmt.Errorf("%w: %w", store.ErrFull, errFault)
	}
	f.l = open(t, f.d, f.path)
	f.before = mustAppend(t, f.l, event(t, named(1)), event(t, named(2)))
	<-f.signs
	f.armed.Store(true)
	go f.send(f.victim, event(t, named(3)))
	<-f.reached
	if f.successor {
		go f.send(f.next, event(t, named(4)))
		if f.step == "commit" {
			<-f.signs // the victim's
			<-f.signs // the successor's: it is signed, and waits behind the commit
		}
	}
}

func (f *fault) send(to chan outcome, e ledger.Event) {
	res, err := appendOne(f.l, e)
	to <- outcome{res, err}
}

// crash takes the disk as it is while the process hangs in the faulty step, and opens what survived.
func (f *fault) crash(t *testing.T) {
	survivor := open(t, &devices{key: f.d.key}, powerCut(t, f.path))
	defer closed(t, survivor)
	f.requireIntact(t, survivor)
	want := uint64(3)
	if f.step == "commit" && f.after {
		want = 4
	}
	if survivor.Size() != want {
		t.Errorf("%d entries survived, want %d", survivor.Size(), want)
	}
	select {
	case o := <-f.victim:
		t.Errorf("answered while its fate was open: %v", o)
	case o := <-f.next:
		t.Errorf("successor answered while its fate was open: %v", o)
	default:
	}
	// Asked again, the survivor takes or recognises both, once each.
	again := mustAppend(t, survivor, event(t, named(3)), event(t, named(4)))
	if again.Items[0].Index != 3 || again.Items[1].Index != 4 {
		t.Errorf("asked again: indices %d and %d, want 3 and 4", again.Items[0].Index, again.Items[1].Index)
	}
	f.requireIntact(t, survivor)
	close(f.release) // let the hanging process end
	closed(t, f.l)
}

// fail lets the step fail and checks what producers are told and what is left.
func (f *fault) fail(t *testing.T) {
	close(f.release)
	victim := <-f.victim
	if f.step == "commit" && f.after {
		f.stopped(t, victim)
		return
	}
	defer closed(t, f.l)
	r := requireCode(t, victim.err, map[string]record.Code{"stamp": record.CodeClock, "sign": record.CodeHSM, "commit": record.CodeDisk}[f.step])
	if f.step != "stamp" && !errors.Is(r, errFault) {
		t.Errorf("the refusal %v does not carry its cause", r)
	}
	if f.successor {
		next := <-f.next
		if f.step == "commit" { // it stood on the batch that failed
			requireCode(t, next.err, record.CodeDisk)
		} else if next.err != nil {
			t.Errorf("successor: %v", next.err)
		}
	}
	f.requireIntact(t, f.l)
	again := mustAppend(t, f.l, event(t, named(3)), event(t, named(4)))
	checkReceipts(t, f.l, f.d, again)
	f.requireIntact(t, f.l)
	if f.l.Size() != 5 {
		t.Errorf("%d entries, want 5: what was refused left a trace, or was taken twice", f.l.Size())
	}
}

// stopped checks that a commit of unknown outcome ends the ledger, and that opening the log again finds out.
func (f *fault) stopped(t *testing.T, victim outcome) {
	<-f.l.Done()
	if !errors.Is(victim.err, ledger.ErrUnknown) || !errors.Is(f.l.Err(), ledger.ErrUnknown) {
		t.Errorf("victim: %v, ledger: %v, want unknown", victim.err, f.l.Err())
	}
	if f.successor {
		if next := <-f.next; !errors.Is(next.err, ledger.ErrUnknown) {
			t.Errorf("successor: %v, want unknown", next.err)
		}
	}
	if _, err := appendOne(f.l, event(t, named(9))); !errors.Is(err, ledger.ErrUnknown) {
		t.Errorf("append to a stopped ledger: %v", err)
	}
	closed(t, f.l)
	l := open(t, &devices{key: f.d.key}, f.path)
	defer closed(t, l)
	f.requireIntact(t, l)
	if again := mustAppend(t, l, event(t, named(3))); again.Items[0].Index != 3 || l.Size() != 4 {
		t.Errorf("asked again: index %d, size %d, want 3 and 4", again.Items[0].Index, l.Size())
	}
}

func (f *fault) requireIntact(t *testing.T, l *ledger.Ledger) {
	t.Helper()
	checkReceipts(t, l, f.d, f.before)
	checkLog(t, l)
}
