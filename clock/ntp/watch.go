package ntp

import (
	"time"

	"bulla/clock"
)

const (
	watchEvery = time.Second
	pauseAfter = 5 * time.Second         // a watch that is this late: the machine stood still, and its clocks perhaps too
	stepSize   = int64(time.Millisecond) // of CLOCK_REALTIME against CLOCK_MONOTONIC; slews move both
)

// disturbance is something that happened to the machine's clocks between two readings.
type disturbance struct {
	reason string
	moved  int64 // ns
}

// disturbed compares a reading with the one before. The causes exclude each other in this order: a machine that was suspended has
// also paused, and its system clock may have been set from the hardware clock.
func disturbed(before, now clock.Reading) (d disturbance, ok bool) {
	width := before.Width + now.Width
	slept := (now.Boot - now.Mono) - (before.Boot - before.Mono)
	stepped := (now.Real - now.Mono) - (before.Real - before.Mono)
	late := now.Raw - before.Raw - int64(watchEvery)
	switch {
	case now.Raw < before.Raw:
		return disturbance{clock.ReasonRaw, now.Raw - before.Raw}, true
	case slept > stepSize+width:
		return disturbance{clock.ReasonSuspend, slept}, true
	case late > int64(pauseAfter):
		return disturbance{clock.ReasonPause, late}, true
	case stepped > stepSize+width || stepped < -stepSize-width:
		return disturbance{clock.ReasonStep, stepped}, true
	}
	return disturbance{}, false
}
