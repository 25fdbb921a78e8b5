package verify_test

import (
	"fmt"
	"testing"
	"time"

	"bulla/clock"
	"bulla/record"
	"bulla/verify"
)

// machine is the clock of an appliance in the tests: it measures five honest servers, and stamps as package clock says.
type machine struct {
	raw        int64
	number     uint64
	discipline clock.Discipline
	stepped    int64 // ns by which the system's clock was set
	inserted   int64 // ns of leap seconds since the start
	announced  int   // leap second at the end of the month, as servers say
}

const truth, system = 1795397000 * int64(time.Second), -3 * int64(time.Millisecond) // UTC minus RAW; the system's error

func (m *machine) reading() clock.Reading {
	return clock.Reading{Real: m.raw + m.system(), Mono: m.raw, Raw: m.raw, Boot: m.raw, Width: 400}
}

// system is the system's clock minus RAW, utc is UTC minus RAW.
func (m *machine) system() int64 { return m.utc() + system + m.stepped }
func (m *machine) utc() int64    { return truth - m.inserted }

// startClock begins the log's evidence of time.
func (b *builder) startClock() *builder {
	b.t.Helper()
	b.machine = &machine{raw: 1000 * int64(time.Second)}
	return b.beginClock(clock.Resume{})
}

// beginClock begins it as a daemon does at its start.
func (b *builder) beginClock(resume clock.Resume) *builder {
	b.t.Helper()
	m := b.machine
	e, d := clock.Begin(clock.Start{Policy: b.genesis.Clock, Sources: []string{"s0", "s1", "s2", "s3", "s4"}, BootID: "boot", Reading: m.reading(), Resume: resume})
	b.clock(&e)
	m.discipline = d
	return b
}

// disturb records that the clock was disturbed.
func (b *builder) disturb(reason string, moved int64) *builder {
	b.t.Helper()
	e, d := b.machine.discipline.Disturb(reason, moved, "", b.machine.reading())
	b.clock(&e)
	b.machine.discipline = d
	return b
}

// clock appends a record of the clock.
func (b *builder) clock(e *clock.Evidence) {
	b.t.Helper()
	body, err := record.MarshalCanonical(e)
	b.must(err)
	b.add(record.KindClock, nil, body)
}

// round measures, and says what would be recorded of it.
func (b *builder) round() (clock.Evidence, clock.Discipline) {
	m := b.machine
	if m == nil {
		m = &machine{raw: 1000 * int64(time.Second)}
	}
	m.raw += 16 * int64(time.Second)
	m.number++
	var samples []clock.Sample
	for i := range 5 {
		const wire = 2 * int64(time.Millisecond)
		sent := m.raw - 2*wire - 2000
		t2 := sent + wire + m.utc()
		samples = append(samples, clock.Sample{
			Name: fmt.Sprintf("s%d", i), Sent: 1, Good: 1,
			T1: sent + m.system(), T2: t2, T3: t2 + 500, T4: sent + 2*wire + 500 + m.system(),
			Before:  clock.Reading{Real: sent - 1000 + m.system(), Raw: sent - 1000, Width: 400},
			After:   clock.Reading{Real: m.raw + m.system(), Raw: m.raw, Width: 400},
			RefTime: t2 - 10*int64(time.Second), Disp: int64(time.Millisecond), Prec: 60, Stratum: 1, RefID: "54455354", Leap: m.announced, Version: 4,
		})
	}
	return m.discipline.Measure(clock.Measurement{Number: m.number, Reading: m.reading(), Samples: samples})
}

// measure measures, records it, and goes on from it.
func (b *builder) measure() *builder {
	b.t.Helper()
	e, d := b.round()
	b.clock(&e)
	b.machine.discipline = d
	return b
}

// now is the next stamp.
func (m *machine) now() clock.Stamp {
	m.raw += int64(time.Millisecond)
	e := m.discipline.Estimate()
	return e.At(m.reading())
}

// timed is a log with measured time, of which a round stands at index 2, events from 3 on.
func timed(t testing.TB) *builder {
	b := newBuilder(t)
	b.genesis.Clock = clock.DefaultPolicy()
	return b.begin().startClock().measure()
}

// mistimed is a log of whose entries or records of the clock some are false, and signed.
func mistimed(forge func(b *builder)) func(*testing.T) (files, *verify.Policy, []verify.Receipt) {
	return func(t *testing.T) (files, *verify.Policy, []verify.Receipt) {
		b := timed(t).events(7)
		forge(b)
		p := b.policy()
		p.NoTime = false
		return b.export(), p, nil
	}
}

// An event that is appended now cannot be dated back: not by an older round of measurement, nor by a clock that begins anew and does
// not know what time it has been.
func TestEntriesAreInOrderOfTime(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		forge    func(b *builder)
		findings []string
	}{
		"honest":  {func(b *builder) { b.measure().events(2) }, nil},
		"restart": {func(b *builder) { b.restart(true).measure().measure().events(2) }, nil},
		"an older round": {func(b *builder) {
			older := b.machine.discipline
			was := b.machine.raw
			for range 4 {
				b.measure()
			}
			now, newer := b.machine.raw, b.machine.discipline
			b.machine.raw, b.machine.discipline = was, older
			b.events(1)
			b.machine.raw, b.machine.discipline = now, newer
			b.events(1)
		}, []string{"time.order@14"}},
		"a clock that forgot": {func(b *builder) {
			b.machine.raw -= int64(10 * time.Minute)
			b.beginClock(clock.Resume{Epoch: 1}).measure().measure().events(1)
		}, []string{"time.order@10"}},
	} {
		b := timed(t).events(7)
		c.forge(b)
		p := b.policy()
		p.NoTime = false
		verdict := verify.OutcomeVerified
		if c.findings != nil {
			verdict = verify.OutcomeTampered
		}
		t.Log(name)
		want(t, run(t, b.export(), p), verdict, c.findings...)
	}
}

func TestMeasuredTimeIsVerified(t *testing.T) {
	t.Parallel()
	b := timed(t)
	for range 20 {
		b.events(30).measure()
	}
	p := b.policy()
	p.NoTime = false
	rep := run(t, b.export(), p)
	want(t, rep, verify.OutcomeVerified)
	if c := claim(t, rep, verify.ClaimTime); c.Status != verify.Verified || c.To != b.tree.Size() {
		t.Errorf("%+v", c)
	}
}

func TestTimeThatNobodyMeasuredIsNotChecked(t *testing.T) {
	t.Parallel()
	b := newBuilder(t).begin().events(20)
	p := b.policy()
	p.NoTime = false
	rep := run(t, b.export(), p)
	want(t, rep, verify.OutcomeNotCheckable)
	if c := claim(t, rep, verify.ClaimTime); c.Status != verify.NotCheckable || c.Why == "" {
		t.Errorf("%+v", c)
	}
}
