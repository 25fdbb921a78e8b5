package clock

import "slices"

// interval is where one source puts UTC minus CLOCK_MONOTONIC_RAW.
type interval struct{ low, high int64 }

func (i interval) middle() int64             { return middle(i.low, i.high) }
func (i interval) meets(o interval) bool     { return i.low <= o.high && o.low <= i.high }
func (i interval) widened(by int64) interval { return interval{sub(i.low, by), add(i.high, by)} }

// clamp is the point of i nearest to x.
func (i interval) clamp(x int64) int64 { return min(max(x, i.low), i.high) }

// hull is the smallest interval that holds every point covered by at least len(s)-f of the intervals s; ok is false if there is no
// such point.
//
// If at most f of the sources lie, the truth is covered by at least len(s)-f honest intervals, so it lies in the hull. RFC 5905's
// own intersection uses the smallest f that happens to work and lacks this property: a liar whose interval overlaps everybody's
// can trim it so that the truth is outside. f is therefore fixed by policy, and never derived from who answered.
func hull(s []interval, f int) (h interval, ok bool) {
	need := len(s) - f
	if need < 1 {
		return h, false
	}
	lows, highs := make([]int64, len(s)), make([]int64, len(s))
	for i, x := range s {
		lows[i], highs[i] = x.low, x.high
	}
	slices.Sort(lows)
	slices.Sort(highs)
	// The first point that is covered often enough is a low end, the last one is a high end.
	low := slices.IndexFunc(lows, func(x int64) bool { return covered(lows, highs, x) >= need })
	if low < 0 {
		return h, false
	}
	h.low = lows[low]
	for _, x := range slices.Backward(highs) {
		if covered(lows, highs, x) >= need {
			h.high = x
			break
		}
	}
	return h, true
}

// covered is how many of the intervals with the given sorted ends hold x, touching ones included.
func covered(lows, highs []int64, x int64) int {
	begun, _ := slices.BinarySearch(lows, x)
	for begun < len(lows) && lows[begun] == x {
		begun++
	}
	ended, _ := slices.BinarySearch(highs, x)
	return begun - ended
}

// intersect is the selection of RFC 5905 section 11.2.1: the intersection of the largest majority clique, with the midpoints of
// all but as many sources as are left out inside. It serves to name falsetickers only; no bound depends on it.
func intersect(s []interval) (in interval, ok bool) {
	for allow := 0; 2*allow < len(s); allow++ {
		in, ok = hull(s, allow)
		if !ok {
			continue
		}
		outside := 0
		for _, x := range s {
			if m := x.middle(); m < in.low || m > in.high {
				outside++
			}
		}
		if outside <= allow {
			return in, true
		}
	}
	return interval{}, false
}
