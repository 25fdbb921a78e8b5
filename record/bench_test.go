package record

import (
	"bytes"
	"crypto/elliptic"
	"testing"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// BenchmarkStage is what an entry costs in each stage of the way from its producer into the log, and back out to who checks it. Stages
// of other packages stand beside their code, under the same name; docs/performance.md lists them.
func BenchmarkStage(b *testing.B) {
	b.Run("validate", benchmarkValidate)
	b.Run("encode", benchmarkEncode)
	b.Run("hash", func(b *testing.B) {
		b.SetBytes(int64(len(event300)))
		for b.Loop() {
			LeafHash(event300)
		}
	})
	b.Run("tree", func(b *testing.B) {
		tree, leaf := new(Tree), leafOf(0)
		var dst []Hash
		for b.Loop() {
			dst = tree.Append(dst[:0], leaf)
		}
	})
	b.Run("prove", benchmarkProve)
	b.Run("sign/software", func(b *testing.B) { // a checkpoint, by a key in memory
		s, _ := newSigner(b, testOrigin, testKey(b, elliptic.P256(), "a"))
		text := Checkpoint{testOrigin, 0, new(Tree).Root()}.Text()
		for b.Loop() {
			if _, err := note.Sign(&note.Note{Text: text}, s); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("check", benchmarkCheck)
}

// benchmarkValidate is an event as canonical bytes, which are taken as they are, and in other spellings, which are not.
func benchmarkValidate(b *testing.B) {
	spaced := append([]byte(" "), event300...)
	escaped := bytes.Replace(event300, []byte("alice"), []byte("al\\\"ice"), 1)
	ipv6 := bytes.Replace(event300, []byte("192.0.2.7"), []byte("2001:db8::7"), 1)
	for _, c := range []struct {
		name string
		src  []byte
	}{{"canonical", event300}, {"escapes", escaped}, {"ipv6", ipv6}, {"ordinary", spaced}} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(c.src)))
			for b.Loop() {
				if _, _, err := CanonicalEvent(c.src); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// benchmarkEncode is the envelope around an event.
func benchmarkEncode(b *testing.B) {
	producer, err := (&Producer{Exe: "/usr/sbin/sshd", GID: 1000, PID: 4711, UID: 1000, Unit: "ssh.service"}).Append(nil)
	if err != nil {
		b.Fatal(err)
	}
	frame, prev := NewFrame(testOrigin, testStamp()), Hash{1}
	var dst []byte
	b.ReportAllocs()
	for b.Loop() {
		dst = frame.Append(dst[:0], KindEvent, 123456, prev, producer, event300)
	}
	b.SetBytes(int64(len(dst)))
}

// benchmarkProve is the proof of an entry in a receipt, from the hashes of its own batch.
func benchmarkProve(b *testing.B) {
	tree := new(Tree)
	for i := range 1_000_003 {
		tree.Append(nil, Hash{byte(i)})
	}
	span := Span{Base: tree.Clone()}
	for i := range 1000 {
		span.Hashes = tree.Append(span.Hashes, leafOf(i))
	}
	span.Size = tree.Size()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := tlog.ProveRecord(int64(span.Size), int64(span.Base.Size()+500), span); err != nil {
			b.Fatal(err)
		}
	}
}

// benchmarkCheck is what who trusts nobody does with an entry, with a checkpoint, and with a receipt.
func benchmarkCheck(b *testing.B) {
	b.Run("entry", func(b *testing.B) {
		e := Entry{Index: 1, Kind: KindEvent, Log: testOrigin, Prev: Hash{1}, Producer: &Producer{Exe: "/usr/sbin/sshd", PID: 7, Unit: "ssh.service"}, Stamp: testStamp(), Body: event300}
		src, err := e.Append(nil)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportAllocs()
		b.SetBytes(int64(len(src)))
		for b.Loop() {
			if _, err := ParseEntry(src); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("entries", func(b *testing.B) { // by one producer, each with a stamp of its own
		e := Entry{Index: 1, Kind: KindEvent, Log: testOrigin, Prev: Hash{1}, Producer: &Producer{Exe: "/usr/sbin/sshd", PID: 7, Unit: "ssh.service"}, Stamp: testStamp(), Body: event300}
		var src [2][]byte
		size := 0
		for i := range src {
			var err error
			e.Stamp.Sys, e.Stamp.Age = e.Stamp.Sys+1000, e.Stamp.Age+1000
			if src[i], err = e.Append(nil); err != nil {
				b.Fatal(err)
			}
			size = len(src[i])
		}
		b.ReportAllocs()
		b.SetBytes(int64(size))
		var p EntryParser
		for i := 0; b.Loop(); i++ {
			if err := p.Parse(&e, src[i%2]); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("checkpoint", func(b *testing.B) {
		s, v := newSigner(b, testOrigin, testKey(b, elliptic.P256(), "a"))
		signed, err := note.Sign(&note.Note{Text: Checkpoint{testOrigin, 0, new(Tree).Root()}.Text()}, s)
		if err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			if _, _, err := OpenCheckpoint(signed, v); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("receipt", func(b *testing.B) {
		receipts, v := testLog(b, 1000)
		b.ReportAllocs()
		for b.Loop() {
			if _, _, err := receipts[500].Verify(v); err != nil {
				b.Fatal(err)
			}
		}
	})
}
