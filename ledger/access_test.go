package ledger_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"bulla/ledger"
	"bulla/record"
	"bulla/store"
)

var auditor = &ledger.Caller{Producer: record.Producer{UID: 2000, GID: 20, PID: 7, Exe: "/usr/bin/bulla"}}

func reading(from, to uint64) ledger.Reading {
	return ledger.Reading{By: auditor, Role: "auditor", Action: "read", Purpose: "case 4711", From: from, To: to}
}

// accesses are the records of access in a log.
func accesses(t testing.TB, l *ledger.Ledger) []record.Access {
	t.Helper()
	indices, err := l.Kind(record.KindAccess, 0, 100_000)
	if err != nil {
		t.Fatal(err)
	}
	var out []record.Access
	for _, i := range indices {
		b, err := l.Entry(i)
		if err != nil {
			t.Fatal(err)
		}
		e, err := record.ParseEntry(b)
		if err != nil {
			t.Fatal(err)
		}
		a, err := record.ParseAccess(e.Body)
		if err != nil {
			t.Fatalf("entry %d: %v", i, err)
		}
		out = append(out, *a)
	}
	return out
}

func covered(all []record.Access, from, to uint64) bool {
	for _, a := range all {
		if *a.From <= from && to <= *a.To {
			return true
		}
	}
	return false
}

func TestAccessIsDurableBeforeItIsGranted(t *testing.T) {
	t.Parallel()
	d := newDevices(t)
	l := open(t, d, create(t, d))
	t.Cleanup(func() { closed(t, l) })
	mustAppend(t, l, event(t, ""))
	held, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	d.write = func(real func() error) error {
		once.Do(func() {
			close(held)
			<-release
		})
		return real()
	}
	granted := make(chan error)
	go func() { granted <- l.Access(t.Context(), reading(0, 2)) }()
	<-held
	select {
	case err := <-granted:
		t.Fatal("granted before it is durable: ", err)
	default:
	}
	close(release)
	if err := <-granted; err != nil {
		t.Fatal(err)
	}
	a := accesses(t, l)
	if len(a) != 1 || *a[0].From != 0 || *a[0].To != 2 || a[0].By != auditor.Producer || a[0].Purpose != "case 4711" || a[0].Action != "read" || a[0].Role != "auditor" {
		t.Errorf("%+v", a)
	}
	for range 100 { // the same again needs no other
		if err := l.Access(t.Context(), reading(1, 2)); err != nil {
			t.Fatal(err)
		}
	}
	if got := accesses(t, l); len(got) != 1 {
		t.Errorf("%d records", len(got))
	}
	for _, other := range []func(*ledger.Reading){
		func(r *ledger.Reading) { r.Purpose = "" }, func(r *ledger.Reading) { r.Action = "export" }, func(r *ledger.Reading) { r.Query = "q" },
		func(r *ledger.Reading) {
			r.By = &ledger.Caller{Producer: record.Producer{UID: 2001, GID: 20, Exe: auditor.Exe}}
		},
	} {
		r := reading(0, 2)
		other(&r)
		if err := l.Access(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	if got := accesses(t, l); len(got) != 5 {
		t.Errorf("other readings share a record: %d", len(got))
	}
}

// However somebody reads, what was given out is named by what was recorded before, and the log is not flooded.
func TestAccessIsBoundedAndLosesNothing(t *testing.T) {
	t.Parallel()
	const size = 1_000_000
	for name, next := range map[string]func(i uint64) (uint64, uint64){
		"one after the other":  func(i uint64) (uint64, uint64) { return i * 256 % size, i*256%size + 256 },
		"at random":            func(uint64) (uint64, uint64) { i := rand.Uint64N(size); return i, i + 1 },
		"backwards":            func(i uint64) (uint64, uint64) { return size - i*100, size - i*100 + 100 },
		"far apart":            func(i uint64) (uint64, uint64) { return (i * 7919 * 131) % size, (i*7919*131)%size + 3 },
		"the end, as it grows": func(i uint64) (uint64, uint64) { return size + i, size + i + 1 },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDevices(t)
			l := open(t, d, create(t, d))
			t.Cleanup(func() { closed(t, l) })
			for i := range uint64(3000) {
				from, to := next(i)
				if err := l.Access(t.Context(), reading(from, to)); err != nil {
					t.Fatal(err)
				}
				if i%500 == 0 || i < 20 {
					if !covered(accesses(t, l), from, to) {
						t.Fatalf("[%d,%d) was granted and is not recorded", from, to)
					}
				}
			}
			a := accesses(t, l)
			if len(a) > 25 {
				t.Errorf("%d records", len(a))
			}
			for i := range a[:min(8, len(a))] { // the first say exactly what
				if w := *a[i].To - *a[i].From; w > 256 {
					t.Errorf("record %d is of %d entries", i, w)
				}
			}
		})
	}
}

func TestAccessOfManyAtOnce(t *testing.T) {
	t.Parallel()
	d := newDevices(t)
	l := open(t, d, create(t, d))
	t.Cleanup(func() { closed(t, l) })
	var readers sync.WaitGroup
	for w := range uint64(16) {
		readers.Go(func() {
			for i := range uint64(200) {
				if err := l.Access(t.Context(), reading((i*16+w)*256, (i*16+w+1)*256)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	readers.Wait()
	a := accesses(t, l)
	if len(a) > 25 {
		t.Errorf("%d records", len(a))
	}
	for i := range uint64(3200) {
		if !covered(a, i*256, (i+1)*256) {
			t.Fatalf("bundle %d is not recorded", i)
		}
	}
}

func TestAccessWindowEnds(t *testing.T) {
	t.Parallel()
	d := newDevices(t)
	path := create(t, d)
	synctest.Test(t, func(t *testing.T) {
		l := open(t, d, path)
		defer closed(t, l)
		for range 3 {
			if err := l.Access(t.Context(), reading(5, 6)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
		}
		if a := accesses(t, l); len(a) != 3 {
			t.Errorf("%d records in three windows", len(a))
		}
		// Purposes made up without end are not recorded without end.
		n := 0
		var refused error
		for ; refused == nil && n < 1000; n++ {
			r := reading(5, 6)
			r.Purpose = fmt.Sprint("purpose ", n)
			refused = l.Access(t.Context(), r)
		}
		if r := requireCode(t, refused, record.CodeBusy); n < 150 || n > 300 || r.RetryAfter <= 0 {
			t.Errorf("after %d: %v", n, refused)
		} else {
			time.Sleep(r.RetryAfter)
		}
		r := reading(5, 6)
		r.Purpose = "one more"
		if err := l.Access(t.Context(), r); err != nil {
			t.Error(err)
		}
	})
}

// What cannot be recorded is not granted, and the refusal says why.
func TestAccessThatCannotBeRecorded(t *testing.T) {
	t.Parallel()
	d := newDevices(t)
	l := open(t, d, create(t, d))
	t.Cleanup(func() { closed(t, l) })
	full := true
	var mu sync.Mutex
	d.write = func(real func() error) error {
		mu.Lock()
		defer mu.Unlock()
		if full {
			return fmt.Errorf("%w: test", store.ErrFull)
		}
		return real()
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	requireCode(t, l.Access(ctx, reading(0, 1)), record.CodeDisk)
	if a := accesses(t, l); len(a) != 0 {
		t.Errorf("%+v", a)
	}
	mu.Lock()
	full = false
	mu.Unlock()
	if err := l.Access(t.Context(), reading(0, 1)); err != nil {
		t.Error(err)
	}
	r := reading(0, 1)
	r.Role = "nobody"
	if err := l.Access(t.Context(), r); err == nil || errors.Is(err, ledger.ErrUnknown) {
		t.Error("a role that does not exist: ", err)
	}
}
