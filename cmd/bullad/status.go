package main

import (
	"bytes"
	"strings"
	"time"

	"bulla/api"
	"bulla/api/server"
	"bulla/clock"
	"bulla/clock/ntp"
)

// machineStatus is what /v1/status shows beside the logs.
func (a *appliance) machineStatus() *api.Machine {
	out := &api.Machine{Version: version(), Clock: clockStatus(a.monitor.Status()), HSM: map[string]any{}}
	if a.sealer != nil {
		s := a.sealer.Status()
		out.Seal = &api.SealStatus{Number: s.Number, Counter: s.Counter, Pending: s.Pending, Rollback: s.Rollback, LastError: s.LastError}
		if !s.At.IsZero() {
			age := int64(time.Since(s.At).Seconds())
			out.Seal.AgeSeconds = &age
		}
	}
	out.SelfCheck, out.Witnesses = a.selfCheckStatus(), a.witnessStatus()
	for id, t := range a.devices.tokens {
		_, name, _ := bytes.Cut([]byte(id), []byte("\n"))
		out.HSM[string(name)] = t.Health()
	}
	return out
}

func clockStatus(s ntp.Status) *api.ClockStatus {
	out := &api.ClockStatus{
		State: s.Stamp.State.String(), Epoch: s.Stamp.Epoch, Rounds: s.Rounds, Failed: s.Failed, Unrecorded: s.Unrecorded,
		Policy:  api.ClockPolicy{Mode: s.Policy.Mode, Limit: s.Policy.Limit, Warn: s.Policy.Warn, F: s.Policy.F},
		Sources: make([]api.ClockSource, 0, len(s.Sources)), Steps: make([]api.ClockStep, 0, len(s.Steps)),
	}
	if s.Stamp.HasEstimate {
		out.Estimate = &api.ClockEstimate{Offset: s.Stamp.Offset, Bound: s.Stamp.Bound, Age: s.Stamp.Age, Round: s.Stamp.Round}
	}
	if r := s.Round; r != nil {
		out.Reason, out.Alarms = r.Reason, r.Alarms
		if d := r.Drift; d != nil {
			out.Drift = &api.ClockDrift{Rate: d.Rate, Sigma: d.Sigma}
		}
	}
	for _, x := range s.Sources {
		out.Sources = append(out.Sources, api.ClockSource{
			Name: x.Name, Address: x.Address, Asked: x.Asked, Verdict: x.Verdict, Reason: x.Reason, Auth: x.Auth, Stratum: x.Stratum,
			Offset: x.Offset, Distance: x.Distance, RTT: x.RTT, Verdicts: x.Verdicts,
		})
	}
	for _, t := range s.Steps {
		out.Steps = append(out.Steps, api.ClockStep{
			Time: time.Unix(0, t.Reading.Real).UTC(), From: t.From.String(), To: t.To.String(), Reason: t.Reason, Size: t.Moved,
		})
	}
	return out
}

// gauges are the machine's numbers for /metrics.
func (a *appliance) gauges() []server.Gauge {
	out := append(clockGauges(a.monitor.Status()), a.selfCheckGauges()...)
	out = append(out, a.witnessGauges()...)
	if a.sealer == nil {
		return out
	}
	s := a.sealer.Status()
	out = append(out,
		server.Gauge{Name: "bulla_seal_number", Help: "Number of the last seal.", Value: float64(s.Number)},
		server.Gauge{Name: "bulla_seal_counter", Help: "The TPM's counter as last read.", Value: float64(s.Counter)})
	if !s.At.IsZero() {
		out = append(out, server.Gauge{Name: "bulla_seal_age_seconds", Help: "Time since the TPM attested a head.", Value: time.Since(s.At).Seconds()})
	}
	return out
}

// clockGauges are the clock's. Without an estimate those of an estimate are absent: a zero would look like a perfect clock.
func clockGauges(s ntp.Status) []server.Gauge {
	var out []server.Gauge
	gauge := func(name, help string, v float64, labels ...server.Label) {
		out = append(out, server.Gauge{Name: "bulla_clock_" + name, Help: help, Counter: strings.HasSuffix(name, "_total"), Value: v, Labels: labels})
	}
	for state := clock.Unknown; state <= clock.Disrupted; state++ {
		v := 0.0
		if state == s.Stamp.State {
			v = 1
		}
		gauge("state", "1 for the state that the clock is in.", v, server.Label{Name: "state", Value: state.String()})
	}
	gauge("limit_seconds", "The greatest bound that the policy lets events be taken with.", seconds(s.Policy.Limit))
	if s.Stamp.HasEstimate {
		gauge("offset_seconds", "UTC minus the system's time.", seconds(s.Stamp.Offset))
		gauge("bound_seconds", "By how much UTC, as stamped, may be wrong, either way.", seconds(s.Stamp.Bound))
		gauge("round_age_seconds", "Time since the round of measurement that stamps rest on.", seconds(s.Stamp.Age))
	}
	if s.Round != nil {
		gauge("alarms", "Alarms of the last round: rate, kernel, chronyd.", float64(len(s.Round.Alarms)))
		if d := s.Round.Drift; d != nil {
			gauge("drift_ratio", "How much UTC gains on the machine's oscillator, seconds per second.", seconds(d.Rate))
			gauge("drift_error_ratio", "Standard error of bulla_clock_drift_ratio.", seconds(d.Sigma))
		}
	}
	const rounds = "Rounds of measurement since the start, by whether they yielded an estimate."
	gauge("rounds_total", rounds, float64(s.Rounds-s.Failed), server.Label{Name: "result", Value: "ok"})
	gauge("rounds_total", rounds, float64(s.Failed), server.Label{Name: "result", Value: "failed"})
	for _, x := range s.Sources {
		for _, verdict := range []string{clock.OK, clock.Falseticker, clock.Rejected} {
			gauge("source_verdicts_total", "Rounds since the start, by source and what its sample was judged to be.", float64(x.Verdicts[verdict]),
				server.Label{Name: "source", Value: x.Name}, server.Label{Name: "verdict", Value: verdict})
		}
		if x.Verdict != "" && x.Verdict != clock.Rejected {
			gauge("source_offset_seconds", "By how much the system's time is behind the source's, in the last round.", seconds(x.Offset), server.Label{Name: "source", Value: x.Name})
		}
	}
	return out
}

// seconds are ns as Prometheus wants them; likewise, ppb as a ratio.
func seconds(ns int64) float64 { return float64(ns) / 1e9 }
