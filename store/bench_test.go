package store_test

import (
	"fmt"
	"path/filepath"
	"testing"

	"bulla/record"
)

// BenchmarkStage is a batch made durable, on the disk of the tests' directory.
func BenchmarkStage(b *testing.B) {
	for _, n := range []int{1, 100, 1000, 10000} {
		b.Run(fmt.Sprintf("commit/%d", n), func(b *testing.B) {
			l := fill(b, filepath.Join(b.TempDir(), "log.db"), 1)
			defer l.Close()
			tree, err := record.NewTree(0, nil)
			if err != nil {
				b.Fatal(err)
			}
			batch(tree, 1)
			for b.Loop() {
				b.StopTimer()
				next := batch(tree, n)
				b.StartTimer()
				if err := l.Commit(next); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N*n)/b.Elapsed().Seconds(), "entries/s")
		})
	}
}
