package clock

import (
	"math/big"
	"slices"
	"time"
)

// Drift is how fast UTC runs relative to CLOCK_MONOTONIC_RAW, as the rounds of the last hours show: a weighted linear regression.
type Drift struct {
	Rate   int64 `json:"rate"`   // ppb; positive if the oscillator is slow
	Sigma  int64 `json:"sigma"`  // ppb, the rate's standard error, rounded up
	Points int   `json:"points"` // rounds it rests on
	Span   int64 `json:"span"`   // ns between the first and the last
}

// point is what one round contributes to the drift.
type point struct{ raw, utc, bound int64 } // utc: minus raw

const (
	pointSpacing = int64(time.Minute)   // closer rounds say little more about the rate
	pointWindow  = 4 * int64(time.Hour) // older ones less and less: temperature moves the oscillator
	maxPoints    = 128
	minSpan      = int64(10 * time.Minute) // below, the rate says more about the network than about the oscillator
	rateSpan     = int64(time.Hour)        // from here on the rate is applied
	rateSigma    = 5_000 / 3               // ppb; if it is known this well
	maxRate      = 500_000                 // ppb; an oscillator this far off is broken
	rateNoise    = 2_000                   // ppb; what temperature does to an oscillator within hours
)

// remember adds a round to the points, and forgets what is too old. It leaves the argument as it is.
func remember(points []point, p point) []point {
	old := 0
	for old < len(points) && (sub(p.raw, points[old].raw) > pointWindow || len(points)-old >= maxPoints) {
		old++
	}
	points = points[old:]
	if n := len(points); n > 0 && sub(p.raw, points[n-1].raw) < pointSpacing {
		return points
	}
	return append(slices.Clip(points), p)
}

// fit is the drift that points show, the zero Drift if they span too little. Weights are the inverse squares of the bounds. It
// computes with integers of any size, so that it is exact until the last division.
func fit(points []point) Drift {
	n := len(points)
	if n < 3 || points[n-1].raw-points[0].raw < minSpan {
		return Drift{}
	}
	best := points[0].bound
	for _, p := range points {
		best = min(best, p.bound)
	}
	w := make([]*big.Int, n)
	x, y := make([]*big.Int, n), make([]*big.Int, n)
	sw, swx, swy := new(big.Int), new(big.Int), new(big.Int)
	for i, p := range points {
		ratio := new(big.Int).Div(big.NewInt(max(best, 1)<<10), big.NewInt(max(p.bound, 1)))
		w[i] = new(big.Int).Mul(ratio, ratio)
		x[i], y[i] = big.NewInt(p.raw-points[0].raw), big.NewInt(sub(p.utc, points[0].utc))
		sw.Add(sw, w[i])
		swx.Add(swx, product(w[i], x[i]))
		swy.Add(swy, product(w[i], y[i]))
	}
	// Centred on the means, scaled by sw so that everything stays an integer: rate = sxy/sxx.
	sxx, sxy := new(big.Int), new(big.Int)
	for i := range points {
		dx := new(big.Int).Sub(product(x[i], sw), swx)
		dy := new(big.Int).Sub(product(y[i], sw), swy)
		sxx.Add(sxx, product(w[i], dx, dx))
		sxy.Add(sxy, product(w[i], dx, dy))
	}
	if sxx.Sign() <= 0 {
		return Drift{}
	}
	// The residuals, scaled by sw*sxx: dy - rate*dx.
	ss := new(big.Int)
	for i := range points {
		dx := new(big.Int).Sub(product(x[i], sw), swx)
		dy := new(big.Int).Sub(product(y[i], sw), swy)
		r := new(big.Int).Sub(product(dy, sxx), product(dx, sxy))
		ss.Add(ss, product(w[i], r, r))
	}
	// sigma^2 = ss / ((n-2) * sxx^3), all scales cancelled.
	variance := new(big.Int).Div(product(ss, big.NewInt(billion), big.NewInt(billion)), product(big.NewInt(int64(n-2)), sxx, sxx, sxx))
	rate := new(big.Int).Quo(product(sxy, big.NewInt(billion)), sxx)
	sigma := new(big.Int).Sqrt(variance)
	return Drift{Rate: clipped(rate), Sigma: add(clipped(sigma), 1), Points: n, Span: points[n-1].raw - points[0].raw}
}

// jumped reports whether the rate of the later half of the points differs from that of the earlier by more than their errors and
// temperature explain: somebody drags the time slowly, or the machine runs on another oscillator.
func jumped(points []point) bool {
	a, b := fit(points[:len(points)/2]), fit(points[len(points)/2:])
	return a.Points > 0 && b.Points > 0 && abs(sub(a.Rate, b.Rate)) > rateNoise+3*add(a.Sigma, b.Sigma)
}

func product(f ...*big.Int) *big.Int {
	p := new(big.Int).Set(f[0])
	for _, x := range f[1:] {
		p.Mul(p, x)
	}
	return p
}

// clipped is x within +-MaxInt.
func clipped(x *big.Int) int64 {
	if !x.IsInt64() || abs(x.Int64()) > MaxInt {
		return int64(x.Sign()) * MaxInt
	}
	return x.Int64()
}

// known reports whether the rate may be applied.
func (d Drift) known() bool {
	return d.Span >= rateSpan && d.Sigma <= rateSigma && abs(d.Rate) <= maxRate
}

// apply is the rate to apply from now on, and by how much the bound grows with it. An unknown rate is not applied: then the bound
// grows by what oscillators may have, or by what the rounds so far show if that is more.
func (d Drift) apply(p Policy) (rate, growth int64) {
	if d.known() {
		return d.Rate, max(p.Growth, 3*d.Sigma)
	}
	if d.Points == 0 {
		return 0, p.GrowthFree
	}
	return 0, min(max(p.GrowthFree, sum(abs(d.Rate), d.Sigma, d.Sigma, d.Sigma)), billion)
}
