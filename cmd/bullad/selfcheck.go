package main

import (
	"fmt"
	"time"

	"bulla/api"
	"bulla/api/server"
	"bulla/ledger"
)

// SelfCheckConfig says how fast the daemon reads again what it has stored. It is part of the configuration, whose hash every start
// records, and cannot be turned off.
type SelfCheckConfig struct {
	Rate   *int64    `toml:"rate"`   // bytes a second
	Round  *duration `toml:"round"`  // between the beginnings of full rounds
	Sample *duration `toml:"sample"` // between random entries
}

// Bounds of a self-check's settings: it must neither be in the way nor end.
const (
	minCheckRate  = 4 << 10
	maxCheckRate  = 1 << 30
	maxCheckPause = 7 * 24 * time.Hour
)

func (c *SelfCheckConfig) validate() error {
	if c.Rate != nil && (*c.Rate < minCheckRate || *c.Rate > maxCheckRate) {
		return fmt.Errorf("selfcheck.rate: must be from %d to %d bytes a second", minCheckRate, maxCheckRate)
	}
	for _, d := range []struct {
		key   string
		value *duration
	}{{"round", c.Round}, {"sample", c.Sample}} {
		if d.value != nil && (time.Duration(*d.value) < 10*time.Millisecond || time.Duration(*d.value) > maxCheckPause) {
			return fmt.Errorf("selfcheck.%s: must be from 10ms to %v", d.key, maxCheckPause)
		}
	}
	return nil
}

// openSelfCheck makes the check of all logs' stores.
func (a *appliance) openSelfCheck() {
	c := a.cfg.SelfCheck
	var cfg ledger.SelfCheckConfig
	set(&cfg.Rate, c.Rate)
	set((*duration)(&cfg.Round), c.Round)
	set((*duration)(&cfg.Sample), c.Sample)
	for _, l := range a.logs {
		cfg.Logs = append(cfg.Logs, l.Ledger)
	}
	a.selfCheck = ledger.NewSelfCheck(cfg)
}

func (a *appliance) selfCheckStatus() []api.SelfCheckStatus {
	var out []api.SelfCheckStatus
	for i, s := range a.selfCheck.Status() {
		one := api.SelfCheckStatus{
			Log: a.logs[i].Name, Rounds: s.Rounds, Position: s.Position, Entries: s.Entries, Samples: s.Samples, Bytes: s.Bytes,
			Failures: s.Failures, Finding: s.Finding,
		}
		if s.Rounds > 0 {
			one.Last = &api.CheckRound{Began: s.Last.Began.UTC(), Ended: s.Last.Ended.UTC(), Entries: s.Last.Entries, Failures: s.Last.Failures}
		}
		out = append(out, one)
	}
	return out
}

func (a *appliance) selfCheckGauges() []server.Gauge {
	var out []server.Gauge
	for i, s := range a.selfCheck.Status() {
		log := []server.Label{{Name: "log", Value: a.logs[i].Name}}
		out = append(out,
			server.Gauge{Name: "bulla_selfcheck_failures_total", Help: "Differences found in what is stored since the start; of a sound store, 0.", Counter: true, Labels: log, Value: float64(s.Failures)},
			server.Gauge{Name: "bulla_selfcheck_rounds_total", Help: "Full rounds of reading again everything stored, since the start.", Counter: true, Labels: log, Value: float64(s.Rounds)},
			server.Gauge{Name: "bulla_selfcheck_entries_total", Help: "Entries read again in rounds since the start.", Counter: true, Labels: log, Value: float64(s.Entries)},
			server.Gauge{Name: "bulla_selfcheck_samples_total", Help: "Entries read again at random since the start.", Counter: true, Labels: log, Value: float64(s.Samples)},
			server.Gauge{Name: "bulla_selfcheck_bytes_total", Help: "Bytes of entries and tree hashes read again since the start.", Counter: true, Labels: log, Value: float64(s.Bytes)})
		if s.Rounds > 0 {
			out = append(out, server.Gauge{Name: "bulla_selfcheck_round_age_seconds", Help: "Time since the last full round ended.", Labels: log, Value: time.Since(s.Last.Ended).Seconds()})
		}
	}
	return out
}
