package verify_test

import (
	"strings"
	"testing"

	"bulla/verify"
)

func TestReceiptsOfTheLog(t *testing.T) {
	t.Parallel()
	b := newBuilder(t).begin().events(300)
	early := b.receipt(7)
	last := b.receipt(300)
	b.events(700)
	later := b.receipt(900)
	f, p := b.export(), b.policy()
	given := []verify.Receipt{
		jsonReceipt(t, early), jsonReceipt(t, last), jsonReceipt(t, later),
		{Name: "7.tlog-proof", Data: early.TLogProof()},
		{Name: "pretty.json", Data: []byte(" " + strings.ReplaceAll(string(jsonReceipt(t, early).Data), ",", ",\n"))},
	}
	rep := run(t, f, p, given...)
	want(t, rep, verify.OutcomeVerified)
	for _, res := range rep.Receipts {
		if res.Status != verify.Verified {
			t.Errorf("%+v", res)
		}
	}
	// Receipts held elsewhere anchor what they cover.
	if rep := run(t, f, p, jsonReceipt(t, early)); rep.Unanchored == nil || *rep.Unanchored != (verify.Range{From: 301, To: 1001}) {
		t.Errorf("unanchored: %+v", rep.Unanchored)
	}
	if rep := run(t, f, p, jsonReceipt(t, later)); rep.Unanchored != nil {
		t.Errorf("unanchored: %+v", rep.Unanchored)
	}
	// Without trust they agree with the log, which proves little.
	if rep := run(t, f, nil, jsonReceipt(t, early)); rep.Receipts[0].Status != verify.NotCheckable {
		t.Errorf("%+v", rep.Receipts)
	}
}

// An honest older export is not tampered: what a receipt says of later is not checkable by it.
func TestReceiptsOfALaterLog(t *testing.T) {
	t.Parallel()
	b := newBuilder(t).begin().events(300)
	f := b.export()
	b.events(300)
	for _, index := range []uint64{7, 301, 555} {
		rep := run(t, f, b.policy(), jsonReceipt(t, b.receipt(index)))
		want(t, rep, verify.OutcomeNotCheckable)
		if !strings.Contains(rep.Receipts[0].Why, "the log ends at") {
			t.Errorf("%+v", rep.Receipts)
		}
		rep = run(t, f, b.policy(), verify.Receipt{Name: "x.tlog-proof", Data: b.receipt(index).TLogProof()})
		want(t, rep, verify.OutcomeNotCheckable)
	}
}

func TestReceiptOfAnotherLog(t *testing.T) {
	t.Parallel()
	b, other := newBuilder(t).begin().events(10), newBuilder(t)
	other.origin = "other.example/log"
	other.begin().events(10)
	rep := run(t, b.export(), b.policy(), jsonReceipt(t, other.receipt(3)))
	want(t, rep, verify.OutcomeNotCheckable)
}

func FuzzReceipt(f *testing.F) {
	b := newBuilder(f).begin().events(20)
	evidence, p := b.export(), b.policy()
	honest := jsonReceipt(f, b.receipt(9))
	f.Add(honest.Data)
	f.Add(b.receipt(3).TLogProof())
	f.Add([]byte("c2sp.org/tlog-proof@v1\nindex 0\n\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		rep, err := verify.Run(t.Context(), evidence, p, verify.Options{Receipts: []verify.Receipt{{Name: "x", Data: in}}})
		if err != nil {
			t.Fatal(err)
		}
		if rep.Receipts[0].Status == verify.Verified && *rep.Receipts[0].Index > 20 {
			t.Fatal("a receipt of an entry that is not there")
		}
	})
}
