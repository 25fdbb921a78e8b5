package verify_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"bulla/verify"
)

// Every byte of every file matters: whichever is flipped, the answer is not verified.
func TestNoByteCanBeFlipped(t *testing.T) {
	t.Parallel()
	b := timed(t).events(260)
	honest := b.export()
	honest["tile/entries/000.p/9"] = b.tile(tlog.Tile{H: 8, L: -1, N: 0, W: 9}) // an older, partial bundle and tile
	honest["tile/0/000.p/9"] = b.tile(tlog.Tile{H: 8, L: 0, N: 0, W: 9})
	p := b.policy()
	p.NoTime = false
	want(t, run(t, honest, p), verify.OutcomeVerified)

	for _, name := range slices.Sorted(maps.Keys(honest)) {
		step := 1
		if len(honest[name]) > 4000 {
			step = 997 // a prime: all places within entries are met
		}
		for at := 0; at < len(honest[name]); at += step {
			bit := byte(1) << (at % 8)
			bad := maps.Clone(honest)
			bad[name] = bytes.Clone(honest[name])
			bad[name][at] ^= bit
			rep := run(t, bad, p)
			if rep.Verdict == verify.OutcomeVerified && !unknownLine(rep) {
				t.Fatalf("verified with byte %d of %s flipped by %#x\n%s", at, name, bit, text(t, rep))
			}
			if len(rep.Findings) > 3 {
				t.Fatalf("%d findings for byte %d of %s\n%s", len(rep.Findings), at, name, text(t, rep))
			}
		}
	}
}

// unknownLine reports whether all that is different is a signature line by a key that nobody knows: such lines are ignored, and the
// report says so. The additional line, which may be missing, becomes one when its name or key ID is changed.
func unknownLine(rep *verify.Report) bool {
	return slices.ContainsFunc(rep.Remarks, func(s string) bool { return strings.Contains(s, "by keys that neither policy nor log name") })
}

func TestNoFileCanBeCutOrMissing(t *testing.T) {
	t.Parallel()
	b := newBuilder(t).begin().events(600)
	honest := b.export()
	for name, data := range honest {
		gone := maps.Clone(honest)
		delete(gone, name)
		rep := run(t, gone, b.policy())
		want(t, rep, verify.OutcomeNotCheckable)
		if len(rep.Missing) == 0 {
			t.Errorf("%s: the report does not say what is missing", name)
		}
		for _, c := range rep.Claims {
			if c.Status == verify.Violated || c.Status == verify.NotCheckable && c.Why == "" {
				t.Errorf("%s: %+v", name, c)
			}
		}
		for _, n := range []int{0, 1, len(data) / 2, len(data) - 1} {
			cut := maps.Clone(honest)
			cut[name] = data[:n]
			if rep := run(t, cut, b.policy()); rep.Verdict == verify.OutcomeVerified {
				t.Errorf("%s cut to %d bytes: %s", name, n, rep.Verdict)
			}
		}
		longer := maps.Clone(honest)
		longer[name] = append(bytes.Clone(data), 'x')
		if rep := run(t, longer, b.policy()); rep.Verdict != verify.OutcomeTampered {
			t.Errorf("%s with a byte more: %s", name, rep.Verdict)
		}
	}
}

// A head of absurd size ends soon.
func TestHeadOfAbsurdSizeEnds(t *testing.T) {
	t.Parallel()
	b := newBuilder(t).begin().events(600)
	f := b.export()
	f["checkpoint"] = bytes.Replace(f["checkpoint"], []byte("\n601\n"), []byte("\n9007199254740991\n"), 1)
	rep := run(t, f, b.policy())
	if rep.Verdict != verify.OutcomeTampered || len(rep.Findings) > 4 {
		t.Error(text(t, rep))
	}
}

func TestFindingsAreBounded(t *testing.T) {
	t.Parallel()
	b := newBuilder(t).begin().events(600)
	f := b.export()
	for i, raw := range b.raw {
		b.raw[i] = bytes.Replace(raw, []byte("number"), []byte("numbre"), 1)
	}
	f["tile/entries/001"] = bundle(b.raw[256:512])
	f["tile/entries/002.p/89"] = bundle(b.raw[512:])
	rep, err := verify.Run(t.Context(), f, b.policy(), verify.Options{MaxFindings: 10})
	if err != nil || len(rep.Findings) != 10 || rep.Omitted != 256+89-10 {
		t.Errorf("%d findings, %d omitted, %v", len(rep.Findings), rep.Omitted, err)
	}
}

// failing is a disk that fails at one file.
type failing struct {
	files
	name string
}

var errDisk = errors.New("the disk fails")

func (f failing) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	if name == f.name {
		return nil, errDisk
	}
	return f.files.Open(ctx, name)
}

func TestReadErrorsAreNoAnswer(t *testing.T) {
	t.Parallel()
	f, p := large(t)
	for _, name := range []string{"checkpoint", "tile/entries/000", "tile/entries/257.p/1", "tile/0/100", "tile/1/000", "tile/2/000.p/1"} {
		if _, ok := f[name]; !ok {
			t.Fatalf("no %s", name)
		}
		if rep, err := verify.Run(t.Context(), failing{f, name}, p, verify.Options{}); !errors.Is(err, errDisk) || rep != nil {
			t.Errorf("%s: %v, %v", name, rep, err)
		}
	}
}

func TestCancelling(t *testing.T) {
	t.Parallel()
	b := newBuilder(t).begin().events(6000)
	ctx, cancel := context.WithCancel(t.Context())
	_, err := verify.Run(ctx, b.export(), b.policy(), verify.Options{Progress: func(done, total uint64) {
		if done >= 1000 {
			cancel()
		}
	}})
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// FuzzEvidence changes evidence: nothing changed is ever verified, and nothing makes the verifier panic.
func FuzzEvidence(f *testing.F) {
	b := timed(f).events(300)
	honest := b.export()
	p := b.policy()
	p.NoTime = false
	names := slices.Sorted(maps.Keys(honest))
	receipt := jsonReceipt(f, b.receipt(9))
	f.Add(uint8(0), uint16(3), uint16(2), []byte("x"))
	f.Add(uint8(2), uint16(300), uint16(0), []byte(`{"body":`))
	f.Add(uint8(3), uint16(0), uint16(60000), []byte{})
	f.Add(uint8(9), uint16(10), uint16(1), []byte("\x00\x00"))
	f.Fuzz(func(t *testing.T, file uint8, at, drop uint16, put []byte) {
		changed := maps.Clone(honest)
		given := receipt
		target := int(file) % (len(names) + 1)
		data := receipt.Data
		if target < len(names) {
			data = honest[names[target]]
		}
		from := int(at) % (len(data) + 1)
		to := min(from+int(drop), len(data))
		edited := slices.Concat(data[:from], put, data[to:])
		if target < len(names) {
			changed[names[target]] = edited
		} else {
			given.Data = edited
		}
		rep, err := verify.Run(t.Context(), changed, p, verify.Options{Receipts: []verify.Receipt{given}})
		if err != nil {
			t.Fatal(err)
		}
		if rep.Verdict == verify.OutcomeVerified && target < len(names) && !bytes.Equal(edited, data) {
			// A further signature line, by a key that nobody names, is none of our business; the report says so.
			if names[target] != "checkpoint" || !unknownLine(rep) && !bytes.HasPrefix(data, edited) {
				t.Fatalf("verified with %s changed at %d:\n%s", names[target], from, text(t, rep))
			}
		}
		if target == len(names) && rep.Verdict == verify.OutcomeVerified && rep.Receipts[0].Status != verify.Verified {
			t.Fatal(fmt.Sprint("verified with a receipt that is not: ", rep.Receipts))
		}
	})
}
