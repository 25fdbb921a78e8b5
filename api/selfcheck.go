package api

import "time"

// SelfCheckStatus is how the daemon's check of what it has stored goes, for one log. What it counts, it counts since the start.
type SelfCheckStatus struct {
	Log      string      `json:"log"`               // its name
	Rounds   uint64      `json:"rounds"`            // full ones
	Last     *CheckRound `json:"last,omitempty"`    // the last full round; absent: none yet
	Position uint64      `json:"position"`          // entries that the round under way has read
	Entries  uint64      `json:"entries"`           // read in rounds
	Samples  uint64      `json:"samples"`           // entries read at random
	Bytes    uint64      `json:"bytes"`             // read in both
	Failures uint64      `json:"failures"`          // differences; of a sound store, 0
	Finding  string      `json:"finding,omitempty"` // the last difference: which entry, what was expected, what was found
}

// CheckRound is a round in which every entry and every tree hash of a log was read again.
type CheckRound struct {
	Began    time.Time `json:"began"` // by the system's clock
	Ended    time.Time `json:"ended"`
	Entries  uint64    `json:"entries"`
	Failures uint64    `json:"failures"`
}
