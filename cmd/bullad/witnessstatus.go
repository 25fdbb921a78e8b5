package main

import (
	"time"

	"bulla/api"
	"bulla/api/server"
)

// each calls f with the state of every log and witness, in the order of the configuration.
func (a *appliance) eachWitness(f func(log, witness string, s witnessState)) {
	w := a.witnesses
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, l := range a.logs {
		for _, one := range w.all {
			f(l.Name, one.name, *w.state[witnessOf{l.LogConfig.Origin, one.name}])
		}
	}
}

func (a *appliance) witnessStatus() []api.WitnessStatus {
	var out []api.WitnessStatus
	a.eachWitness(func(log, witness string, s witnessState) {
		one := api.WitnessStatus{Log: log, Witness: witness, Size: s.size, Failures: s.failures, LastError: s.fault, Conflicts: s.alarms, Conflict: s.conflict}
		if s.size > 0 {
			at := time.Unix(int64(s.time), 0).UTC()
			one.Time = &at
		}
		out = append(out, one)
	})
	return out
}

func (a *appliance) witnessGauges() []server.Gauge {
	var out []server.Gauge
	a.eachWitness(func(log, witness string, s witnessState) {
		labels := []server.Label{{Name: "log", Value: log}, {Name: "witness", Value: witness}}
		out = append(out,
			server.Gauge{Name: "bulla_witness_size", Help: "Entries of the largest head that the witness cosigned.", Labels: labels, Value: float64(s.size)},
			server.Gauge{Name: "bulla_witness_failures_total", Help: "Submissions to the witness that failed since the start.", Counter: true, Labels: labels, Value: float64(s.failures)},
			server.Gauge{Name: "bulla_witness_conflicts_total", Help: "Alarms since the start: the witness knows a larger tree than the log's, or another.", Counter: true, Labels: labels, Value: float64(s.alarms)})
		if s.size > 0 {
			out = append(out, server.Gauge{Name: "bulla_witness_age_seconds", Help: "Time since the witness cosigned, as it states.", Labels: labels, Value: time.Since(time.Unix(int64(s.time), 0)).Seconds()})
		}
	})
	return out
}
