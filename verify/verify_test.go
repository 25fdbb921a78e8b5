package verify_test

import (
	"fmt"
	"testing"

	"bulla/verify"
)

func TestHonestLogsVerify(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 2, 3, 255, 256, 257, 511, 512, 700, 65536} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			b := newBuilder(t).begin().events(n - 1)
			rep := run(t, b.export(), b.policy())
			want(t, rep, verify.OutcomeVerified)
		})
	}
}

func TestLargeLogVerifies(t *testing.T) {
	t.Parallel()
	f, p := large(t)
	want(t, run(t, f, p), verify.OutcomeVerified)
}

func TestFlippedByteInAnEntryNamesIt(t *testing.T) {
	t.Parallel()
	b := newBuilder(t).begin().events(300)
	honest := b.export()
	index := uint64(0)
	for _, name := range []string{"tile/entries/000", "tile/entries/001.p/45"} {
		data := honest[name]
		for at := 0; at < len(data); index++ {
			n := int(data[at])<<8 | int(data[at+1])
			for _, k := range []int{0, 1, 2, 3, n / 2, n, n + 1} { // the length, the first byte, the last
				if index%7 != 0 && (k != n/2 || index%2 != 0) {
					continue
				}
				bad := honest.clone()
				bad[name][at+k] ^= 1
				rep := run(t, bad, b.policy())
				if rep.Verdict != verify.OutcomeTampered || len(rep.Findings) != 1 || rep.Findings[0].Index == nil || *rep.Findings[0].Index != index {
					t.Fatalf("byte %d of entry %d:\n%s", k, index, text(t, rep))
				}
			}
			at += 2 + n
		}
	}
}
