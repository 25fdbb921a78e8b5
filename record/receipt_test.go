package record

import (
	"bytes"
	"crypto/elliptic"
	"encoding/json"
	"errors"
	"reflect"
	"testing"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// testLog makes a log of n entries and returns them with receipts under one signed checkpoint.
func testLog(t testing.TB, n int) (receipts []Receipt, v note.Verifier) {
	t.Helper()
	s, v := newSigner(t, testOrigin, testKey(t, elliptic.P256(), "receipt"))
	tree, span, frame := new(Tree), Span{Base: new(Tree)}, NewFrame(testOrigin, testStamp())
	var prev Hash
	for i := range n {
		entry := frame.Append(nil, KindEvent, uint64(i), prev, []byte(`{"gid":0,"uid":0}`), event300)
		prev = LeafHash(entry)
		span.Hashes = tree.Append(span.Hashes, prev)
		receipts = append(receipts, Receipt{Entry: entry, Index: uint64(i)})
	}
	span.Size = tree.Size()
	signed, err := note.Sign(&note.Note{Text: Checkpoint{testOrigin, tree.Size(), tree.Root()}.Text()}, s)
	if err != nil {
		t.Fatal(err)
	}
	for i := range receipts {
		proof, err := tlog.ProveRecord(int64(span.Size), int64(i), span)
		if err != nil {
			t.Fatal(err)
		}
		receipts[i].Checkpoint, receipts[i].Proof = signed, proof
	}
	return receipts, v
}

func TestReceiptsVerify(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 2, 3, 8, 13, 64, 100} {
		receipts, v := testLog(t, n)
		for i, r := range receipts {
			b, err := json.Marshal(r) // through encoding/json, as any program would
			if err != nil {
				t.Fatal(err)
			}
			var inside struct{ Receipt Receipt }
			if err := json.Unmarshal([]byte(" { \"receipt\" : "+string(b)+"}"), &inside); err != nil {
				t.Fatal(err)
			}
			got, err := ParseReceipt(b)
			if err != nil || !reflect.DeepEqual(got, inside.Receipt) {
				t.Fatalf("%d of %d: %v", i, n, err)
			}
			e, c, err := got.Verify(v)
			if err != nil || e.Index != uint64(i) || c.Size != uint64(n) || !bytes.Equal(e.Body, event300) {
				t.Fatalf("%d of %d: %v", i, n, err)
			}
		}
	}
}

// What we hand out, another implementation must accept, although its own policy files know no ECDSA keys.
func TestTorchwoodVerifiesOurProof(t *testing.T) {
	t.Parallel()
	receipts, v := testLog(t, 21)
	policy := torchwood.ThresholdPolicy(2, torchwood.OriginPolicy(testOrigin), torchwood.SingleVerifierPolicy(v))
	for i, r := range receipts {
		file := r.TLogProof()
		if want := torchwood.FormatProof(int64(r.Index), r.Proof, r.Checkpoint); !bytes.Equal(file, want) {
			t.Fatalf("our file %q, torchwood's %q", file, want)
		}
		if err := torchwood.VerifyProof(policy, LeafHash(r.Entry), file); err != nil {
			t.Fatalf("entry %d: %v", i, err)
		}
		if err := torchwood.VerifyProof(policy, LeafHash(receipts[(i+1)%21].Entry), file); err == nil {
			t.Fatalf("entry %d: another entry verifies", i)
		}
	}
}

// Any flipped bit of a receipt must be noticed, wherever it is.
func TestReceiptEveryBitCounts(t *testing.T) {
	t.Parallel()
	receipts, v := testLog(t, 3)
	r := receipts[1]
	check := func(what string, i int, r Receipt) {
		if _, _, err := r.Verify(v); err == nil {
			t.Errorf("%s: bit %d does not count", what, i)
		}
	}
	for i := range len(r.Entry) * 8 {
		c := r
		c.Entry = flipped(r.Entry, i)
		check("entry", i, c)
	}
	for i := range len(r.Checkpoint) * 8 {
		c := r
		c.Checkpoint = flipped(r.Checkpoint, i)
		check("checkpoint", i, c)
	}
	for i := range len(r.Proof) * 256 {
		c := r
		c.Proof = append([]Hash(nil), r.Proof...)
		c.Proof[i/256][i%256/8] ^= 1 << (i % 8)
		check("proof", i, c)
	}
	for i := range 64 {
		c := r
		c.Index ^= 1 << i
		check("index", i, c)
	}
}

func flipped(b []byte, bit int) []byte {
	c := bytes.Clone(b)
	c[bit/8] ^= 1 << (bit % 8)
	return c
}

func TestReceiptRefusesBadSignature(t *testing.T) {
	t.Parallel()
	receipts, v := testLog(t, 2)
	r := receipts[0]
	r.Checkpoint = bytes.Replace(r.Checkpoint, []byte("\n2\n"), []byte("\n3\n"), 1)
	_, _, err := r.Verify(v)
	if bad := new(note.InvalidSignatureError); !errors.As(err, &bad) {
		t.Error(err)
	}
}

func vectorVerifiers(t testing.TB, name string) (vs []note.Verifier) {
	for _, vkey := range readVectors(t, vectorDir+"/"+name).VKeys {
		v, err := NewVerifier(vkey)
		if err != nil {
			t.Fatal(err)
		}
		vs = append(vs, v)
	}
	return vs
}

func FuzzReceipt(f *testing.F) {
	for _, s := range seeds(f, "receipt.json") {
		f.Add(s)
	}
	vs := vectorVerifiers(f, "receipt.json")
	f.Fuzz(func(t *testing.T, src []byte) {
		r, err := ParseReceipt(src)
		if err != nil {
			return
		}
		if again, err := r.MarshalJSON(); err != nil || !bytes.Equal(again, src) {
			t.Fatalf("%q encodes as %q, %v", src, again, err)
		}
		e, c, err := r.Verify(vs...)
		if err == nil && (e.Index != r.Index || e.Index >= c.Size || e.Log != c.Origin) {
			t.Fatalf("%q", src)
		}
	})
}

func FuzzTLogProof(f *testing.F) {
	for _, s := range seeds(f, "proof.json") {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		index, proof, checkpoint, err := ParseTLogProof(src)
		if err != nil {
			return
		}
		if again := (Receipt{Checkpoint: checkpoint, Index: index, Proof: proof}).TLogProof(); !bytes.Equal(again, src) {
			t.Fatalf("%q encodes as %q", src, again)
		}
	})
}

func FuzzBundle(f *testing.F) {
	for _, s := range seeds(f, "bundle.json") {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		entries, err := ParseBundle(src)
		if err != nil {
			return
		}
		var again []byte
		for _, e := range entries {
			again = AppendBundle(again, e)
		}
		if !bytes.Equal(again, src) || len(entries) > MaxBundle {
			t.Fatalf("%q encodes as %q", src, again)
		}
	})
}
