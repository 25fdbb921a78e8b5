package api

import "time"

// WitnessStatus is how it goes with a witness and a log.
type WitnessStatus struct {
	Log       string     `json:"log"` // its name
	Witness   string     `json:"witness"`
	Size      uint64     `json:"size"`                 // of the largest head that it cosigned; 0: none
	Time      *time.Time `json:"time,omitempty"`       // when, as it states
	Failures  uint64     `json:"failures"`             // submissions that failed since the start
	LastError string     `json:"last_error,omitempty"` // of the last submission
	Conflicts uint64     `json:"conflicts"`            // alarms since the start
	Conflict  string     `json:"conflict,omitempty"`   // what the last one says
}
