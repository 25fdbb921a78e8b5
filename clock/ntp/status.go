package ntp

import (
	"maps"
	"slices"

	"bulla/clock"
)

// Status is how the clock is doing, for people and metrics.
type Status struct {
	Stamp      clock.Stamp // now
	Policy     clock.Policy
	Sources    []SourceStatus
	Steps      []clock.Transition // the last ones, oldest first
	Round      *clock.Round       // the last one; nil before the first
	Rounds     uint64             // since the start
	Failed     uint64             // of these, without an estimate
	Unrecorded string             // why evidence cannot be recorded at present, empty if it can
}

// SourceStatus is one source as the last round saw it.
type SourceStatus struct {
	Name     string
	Address  string // as configured
	Asked    string // IP:port
	Verdict  string // empty before the first round
	Reason   string
	Kiss     string
	Auth     string
	RefID    string
	Stratum  int
	Offset   int64             // ns by which the system's clock is behind this source's
	Distance int64             // ns by which that may be wrong
	RTT      int64             // ns
	Verdicts map[string]uint64 // how often each verdict, since the start
}

// progress is what Status remembers, under the monitor's lock.
type progress struct {
	round          *clock.Round
	rounds, failed uint64
	steps          []clock.Transition
	verdicts       []map[string]uint64 // by source
	err            error
}

func (p *progress) recorded(e *clock.Evidence, err error) {
	if p.err = err; err != nil {
		return
	}
	if t := e.Transition; t != nil {
		if len(p.steps) >= maxSteps {
			p.steps = slices.Delete(p.steps, 0, 1)
		}
		p.steps = append(p.steps, *t)
	}
	r := e.Round
	if r == nil {
		return
	}
	p.round = r
	p.rounds++
	if r.Mapping == nil {
		p.failed++
	}
	for i, s := range r.Samples {
		if i >= len(p.verdicts) {
			p.verdicts = append(p.verdicts, map[string]uint64{})
		}
		p.verdicts[i][s.Verdict]++
	}
}

// Status is a snapshot. What it points to is shared, and must not be changed.
func (m *Monitor) Status() Status {
	s := Status{Stamp: m.Now()}
	m.mu.Lock()
	defer m.mu.Unlock()
	p := &m.status
	s.Policy, s.Round, s.Rounds, s.Failed, s.Steps = m.policy, p.round, p.rounds, p.failed, slices.Clone(p.steps)
	if p.err != nil {
		s.Unrecorded = p.err.Error()
	}
	for i, c := range m.cfg.Sources {
		out := SourceStatus{Name: c.Name, Address: c.Address, Auth: c.Key.name()}
		if p.round != nil {
			out.seen(p.round, i)
			out.Verdicts = maps.Clone(p.verdicts[i])
		}
		s.Sources = append(s.Sources, out)
	}
	return s
}

func (out *SourceStatus) seen(r *clock.Round, i int) {
	s := r.Samples[i]
	out.Asked, out.Verdict, out.Reason, out.Kiss, out.RefID, out.Stratum = s.Address, s.Verdict, s.Reason, s.Kiss, s.RefID, s.Stratum
	if s.Verdict != clock.Rejected {
		out.Offset, out.Distance, out.RTT = r.Reading.Raw+s.Theta-r.Reading.Real, s.Distance, s.RTT
	}
}
