package clock

import (
	"math"
	"math/bits"
)

// billion is what ppb are of, and how many ns a second has.
const billion = 1_000_000_000

// add is a+b, at the limits of int64 where it would overflow.
func add(a, b int64) int64 {
	s := a + b
	switch {
	case a > 0 && b > 0 && s < 0:
		return math.MaxInt64
	case a < 0 && b < 0 && s >= 0:
		return math.MinInt64
	}
	return s
}

// sub is a-b, at the limits of int64 where it would overflow.
func sub(a, b int64) int64 {
	d := a - b
	switch {
	case a >= 0 && b < 0 && d < 0:
		return math.MaxInt64
	case a < 0 && b > 0 && d >= 0:
		return math.MinInt64
	}
	return d
}

// sum is the saturating sum of terms.
func sum(terms ...int64) int64 {
	s := int64(0)
	for _, t := range terms {
		s = add(s, t)
	}
	return s
}

func abs(a int64) int64 {
	if a < 0 {
		return sub(0, a)
	}
	return a
}

// half is a/2, rounded away from zero: half of an uncertainty must not become smaller than it was.
func half(a int64) int64 { return a/2 + a%2 }

// middle is (a+b)/2 without overflow, rounded towards zero.
func middle(a, b int64) int64 {
	if a < 0 != (b < 0) {
		return (a + b) / 2
	}
	return a/2 + b/2 + (a%2+b%2)/2
}

// drifted is x*ppb/1e9, rounded towards zero: how far a clock that runs off by ppb gets in x ns.
func drifted(x, ppb int64) int64 {
	q, _, neg := mulBillionth(x, ppb)
	if neg {
		return -q
	}
	return q
}

// grown is |x*ppb/1e9|, rounded up: how much an uncertainty that grows by ppb grows in x ns.
func grown(x, ppb int64) int64 {
	q, rest, _ := mulBillionth(x, ppb)
	if rest {
		q = add(q, 1)
	}
	return q
}

// mulBillionth is |x*y|/1e9 in 128 bits, whether it left a remainder, and whether x*y is negative.
func mulBillionth(x, y int64) (q int64, rest, neg bool) {
	hi, lo := bits.Mul64(magnitude(x), magnitude(y))
	if hi >= billion {
		return math.MaxInt64, false, x < 0 != (y < 0)
	}
	u, r := bits.Div64(hi, lo, billion)
	return int64(min(u, math.MaxInt64)), r > 0, x < 0 != (y < 0)
}

func magnitude(x int64) uint64 {
	if x < 0 {
		return -uint64(x)
	}
	return uint64(x)
}
