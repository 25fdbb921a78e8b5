package api

import "time"

// Machine is how the machine is doing, beside its logs.
type Machine struct {
	Version string         `json:"version,omitempty"`
	Clock   *ClockStatus   `json:"clock,omitempty"`
	Seal    *SealStatus    `json:"seal,omitempty"` // absent without a TPM
	HSM     map[string]any `json:"hsm,omitempty"`  // health by token

	SelfCheck []SelfCheckStatus `json:"selfcheck,omitempty"` // by log
	Witnesses []WitnessStatus   `json:"witnesses,omitempty"` // by log and witness
}

// SealStatus is how sealing is doing.
type SealStatus struct {
	Number     uint64 `json:"number"`
	Counter    uint64 `json:"counter"`
	Pending    bool   `json:"pending"`
	AgeSeconds *int64 `json:"age_seconds,omitempty"` // of the last seal; absent: none since the start
	Rollback   string `json:"rollback,omitempty"`
	LastError  string `json:"last_error,omitempty"`
}

// ClockStatus is how the clock is doing. Durations are ns.
type ClockStatus struct {
	State      string         `json:"state"` // unknown, synced, holdover, unsynced or disrupted
	Epoch      uint32         `json:"epoch"` // counts starts and disruptions
	Estimate   *ClockEstimate `json:"estimate,omitempty"`
	Drift      *ClockDrift    `json:"drift,omitempty"` // absent until the rounds of ten minutes show it
	Policy     ClockPolicy    `json:"policy"`
	Rounds     uint64         `json:"rounds"` // since the start
	Failed     uint64         `json:"failed"` // of these, without an estimate
	Reason     string         `json:"reason,omitempty"`
	Alarms     []string       `json:"alarms,omitempty"`     // of the last round
	Unrecorded string         `json:"unrecorded,omitempty"` // why evidence cannot be recorded at present
	Sources    []ClockSource  `json:"sources"`
	Steps      []ClockStep    `json:"steps"` // the last transitions, oldest first
}

// ClockEstimate is what an entry would be stamped with now: UTC is the system's time plus Offset, give or take Bound.
type ClockEstimate struct {
	Offset int64  `json:"offset_ns"`
	Bound  int64  `json:"bound_ns"`
	Age    int64  `json:"age_ns"` // of the round
	Round  uint64 `json:"round"`
}

// ClockDrift is how fast UTC gains on the machine's oscillator, in ppb.
type ClockDrift struct {
	Rate  int64 `json:"rate_ppb"`
	Sigma int64 `json:"sigma_ppb"` // its standard error
}

// ClockPolicy is what the logs' policy demands of the clock, as far as a person wants to see it beside the state.
type ClockPolicy struct {
	Mode  string `json:"mode"`
	Limit int64  `json:"limit_ns"`
	Warn  int64  `json:"warn_ns"`
	F     int    `json:"f"`
}

// ClockSource is a time source as the last round saw it.
type ClockSource struct {
	Name     string            `json:"name"`
	Address  string            `json:"address"`           // as configured
	Asked    string            `json:"asked,omitempty"`   // IP:port
	Verdict  string            `json:"verdict,omitempty"` // ok, falseticker or rejected; empty before the first round
	Reason   string            `json:"reason,omitempty"`  // why rejected
	Auth     string            `json:"auth,omitempty"`    // algorithm of its symmetric key
	Stratum  int               `json:"stratum,omitempty"`
	Offset   int64             `json:"offset_ns"` // by which the system's clock is behind it; 0 when rejected
	Distance int64             `json:"distance_ns"`
	RTT      int64             `json:"rtt_ns"`
	Verdicts map[string]uint64 `json:"verdicts,omitempty"` // how often each, since the start
}

// ClockStep is a transition of the clock's state.
type ClockStep struct {
	Time   time.Time `json:"time"` // by the system's clock
	From   string    `json:"from"`
	To     string    `json:"to"`
	Reason string    `json:"reason"`
	Size   int64     `json:"size_ns,omitempty"` // the step, the time suspended, the pause
}
