package clock

import (
	"math"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
)

// trials is how many random rounds the property test makes: 100,000, or BULLA_CLOCK_TRIALS.
func trials(t *testing.T) int {
	v, ok := os.LookupEnv("BULLA_CLOCK_TRIALS")
	if !ok {
		return 100_000
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 1 {
		t.Fatalf("BULLA_CLOCK_TRIALS=%q is not a number of trials", v)
	}
	return n
}

// lies are ways in which liars lie: each says how wrong the k-th liar is, given the truth's honest neighbours.
var lies = map[string]func(r *rand.Rand, v *server, k int, common int64){
	"anyhow":   func(r *rand.Rand, v *server, k int, common int64) { v.wrong = r.Int64N(2*s1) - s1 },
	"together": func(r *rand.Rand, v *server, k int, common int64) { v.wrong = common },
	"overlapping": func(r *rand.Rand, v *server, k int, common int64) { // just off the edge, to trim everybody's interval
		v.wrong = int64(1-2*(k%2)) * (v.disp + v.delay/2 + r.Int64N(20*ms))
	},
	"precisely": func(r *rand.Rand, v *server, k int, common int64) { v.wrong, v.disp, v.delay = common/8, 1000, 0 },
	"by delay": func(r *rand.Rand, v *server, k int, common int64) { // no lie at all, but as asymmetric as can be
		v.out, v.back = r.Int64N(150*ms), 0
	},
}

// TestTruthIsInTheHull is the claim that everything rests on: if at most f of the sources lie, however they do, UTC is within the
// recorded bound. With more than f, what the samples show is refused or named.
func TestTruthIsInTheHull(t *testing.T) {
	t.Parallel()
	total := trials(t)
	type kind struct {
		n, f, liars int
		lie         string
	}
	var kinds []kind
	for _, nf := range [][2]int{{4, 1}, {5, 1}, {6, 2}, {7, 2}, {9, 4}, {12, 3}} {
		for liars := 0; liars <= nf[1]+1; liars++ {
			for _, lie := range []string{"anyhow", "together", "overlapping", "precisely", "by delay"} {
				kinds = append(kinds, kind{nf[0], nf[1], liars, lie})
			}
		}
	}
	var good, refused, wrong, over, overRefused, overNamed, overUnseen int
	rng := rand.New(rand.NewPCG(1, 2))
	w := newWorld()
	for i := range total {
		k := kinds[i%len(kinds)]
		p := DefaultPolicy()
		p.F, p.MinSources, p.MinDist = k.f, k.n, 10_000
		w.truth = 1795397000*s1 + rng.Int64N(s1)
		w.real = w.truth + rng.Int64N(20*s1) - 10*s1
		servers := make([]server, k.n)
		common := rng.Int64N(400*ms) - 200*ms
		for j := range servers {
			v := &servers[j]
			v.disp, v.delay = rng.Int64N(50*ms), rng.Int64N(20*ms)
			v.out, v.back = rng.Int64N(40*ms), rng.Int64N(40*ms)
			if most := v.disp + v.delay/2; j < k.liars {
				lies[k.lie](rng, v, j, common)
			} else {
				v.wrong = rng.Int64N(2*most+1) - most
			}
		}
		_, d := Begin(Start{Policy: p, Sources: names[:k.n], Reading: w.reading()})
		e, d := d.Measure(Measurement{Number: 1, Reading: w.reading(), Samples: w.ask(servers...)})
		est := d.Estimate()
		s := est.At(w.reading())
		utc := w.raw + w.truth
		holds := s.HasEstimate && s.Earliest() <= utc && utc <= s.Latest()
		honestLie := k.lie == "by delay"
		named := 0
		for _, x := range e.Round.Samples {
			if x.Verdict == Falseticker {
				named++
			}
		}
		switch {
		case k.liars <= k.f || honestLie:
			switch {
			case !s.HasEstimate:
				refused++
			case !holds:
				wrong++
				t.Errorf("trial %d: n=%d f=%d, %d lie %s: truth %d outside %d..%d", i, k.n, k.f, k.liars, k.lie, utc, s.Earliest(), s.Latest())
			default:
				good++
			}
		default:
			over++
			switch {
			case !s.HasEstimate:
				overRefused++
			case named > 0:
				overNamed++
			default:
				overUnseen++
				// The samples show nothing: every answer agrees with the hull, so no honest one can be told from a lie.
				if e.Round.Agree != e.Round.Usable {
					t.Errorf("trial %d: %d of %d meet the hull, and none is named", i, e.Round.Agree, e.Round.Usable)
				}
			}
		}
	}
	t.Logf("%d trials. At most f lie: truth inside %d, refused %d, truth outside %d. More than f lie: %d, refused %d, named %d, not to be seen in the samples %d",
		total, good, refused, wrong, over, overRefused, overNamed, overUnseen)
	if good < total/3 || refused > total/100 || over < total/10 || overRefused == 0 || overNamed == 0 {
		t.Error("the trials do not try what they should")
	}
}

// hull against its definition, on small numbers.
func TestHullIsWhatItSays(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(3, 4))
	for range 20_000 {
		s := make([]interval, 1+rng.IntN(7))
		for i := range s {
			s[i].low = rng.Int64N(20)
			s[i].high = s[i].low + rng.Int64N(8)
		}
		f := rng.IntN(len(s) + 1)
		low, high := int64(math.MaxInt64), int64(math.MinInt64)
		for x := int64(0); x < 30; x++ {
			n := 0
			for _, i := range s {
				if i.low <= x && x <= i.high {
					n++
				}
			}
			if n >= len(s)-f && n > 0 && f < len(s) {
				low, high = min(low, x), max(high, x)
			}
		}
		h, ok := hull(s, f)
		if ok != (low <= high) || ok && (h.low != low || h.high != high) {
			t.Fatalf("hull(%v, %d) = %v %v, want %d..%d", s, f, h, ok, low, high)
		}
	}
}
