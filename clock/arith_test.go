package clock

import (
	"math"
	"math/big"
	"math/rand/v2"
	"testing"
)

// extremes and random numbers of every magnitude.
func numbers() []int64 {
	out := []int64{0, 1, -1, 2, -2, billion, -billion, math.MaxInt64, math.MinInt64, math.MaxInt64 - 1, math.MinInt64 + 1, MaxInt, -MaxInt}
	rng := rand.New(rand.NewPCG(5, 6))
	for range 200 {
		out = append(out, int64(rng.Uint64())>>rng.IntN(63))
	}
	return out
}

func saturated(x *big.Int) int64 {
	switch {
	case x.IsInt64():
		return x.Int64()
	case x.Sign() < 0:
		return math.MinInt64
	}
	return math.MaxInt64
}

func TestArithmeticAgainstBigIntegers(t *testing.T) {
	t.Parallel()
	z := func() *big.Int { return new(big.Int) }
	for _, a := range numbers() {
		for _, b := range numbers() {
			x, y := big.NewInt(a), big.NewInt(b)
			check := func(op string, got, want int64) {
				t.Helper()
				if got != want {
					t.Fatalf("%d %s %d = %d, want %d", a, op, b, got, want)
				}
			}
			check("+", add(a, b), saturated(z().Add(x, y)))
			check("-", sub(a, b), saturated(z().Sub(x, y)))
			check("middle", middle(a, b), saturated(z().Quo(z().Add(x, y), big.NewInt(2))))
			p := z().Mul(x, y)
			want := saturated(z().Quo(p, big.NewInt(billion)))
			check("drifted", drifted(a, b), max(want, -math.MaxInt64))
			up := z().Quo(z().Add(z().Abs(p), big.NewInt(billion-1)), big.NewInt(billion))
			check("grown", grown(a, b), saturated(up))
		}
	}
}

func TestHalfNeverShrinks(t *testing.T) {
	t.Parallel()
	for a, want := range map[int64]int64{0: 0, 1: 1, 2: 1, 3: 2, -1: -1, -3: -2} {
		if got := half(a); got != want {
			t.Errorf("half(%d) = %d, want %d", a, got, want)
		}
	}
}
