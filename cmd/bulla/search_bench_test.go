package main

import (
	"fmt"
	"os"
	"strconv"
	"testing"
)

// BenchmarkSearch searches a made log for one transaction: by its index, opened anew each time as the command does; and by reading
// every entry. BULLA_SEARCH_ENTRIES is the log's size: 10000000 takes 5 GB of disk and some minutes.
func BenchmarkSearch(b *testing.B) {
	n := uint64(20_000)
	if text := os.Getenv("BULLA_SEARCH_ENTRIES"); text != "" {
		var err error
		if n, err = strconv.ParseUint(text, 10, 40); err != nil || n == 0 {
			b.Fatalf("BULLA_SEARCH_ENTRIES=%s is no number of entries", text)
		}
	}
	a := made(b, n)
	dir := indexPath(b.TempDir(), a.head)
	rate := func(b *testing.B) { b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "entries/s") }
	b.Run("index", func(b *testing.B) {
		for b.Loop() {
			if err := buildIndex(b.Context(), dir, a, nil); err != nil {
				b.Fatal(err)
			}
		}
		rate(b)
	})
	for _, by := range []string{"index", "scan"} {
		b.Run("transaction/"+by, func(b *testing.B) {
			i := n / 3
			for b.Loop() {
				var x *index
				if by == "index" {
					var err error
					if x, err = openIndex(dir, a.head); err != nil {
						b.Fatal(err)
					}
				}
				i = (i + 7919) % n
				got, s := found(b, a, x, queryOf(b, fmt.Sprint("transaction=t-", i)))
				if len(got) != 1 || got[0] != i || s.damaged != nil {
					b.Fatalf("t-%d: found %v, damaged %v", i, got, s.damaged)
				}
			}
			rate(b)
		})
	}
}
