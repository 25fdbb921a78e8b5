package ceremony_test

import (
	"bytes"
	"path/filepath"
	"testing"

	"bulla/ceremony"
	"bulla/record"
)

// fuzzParser holds a parser to its word: what it accepts encodes to the same bytes.
func fuzzParser(f *testing.F, format string) {
	file := readVectors(f, filepath.Join(vectorDir, format+".json"))
	all := append(file.Refuse, file.Accept...)
	if len(all) < 10 {
		f.Fatalf("only %d seeds", len(all))
	}
	for _, v := range all {
		f.Add([]byte(v.Input))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		out, err := parsers[format](in)
		if err == nil && !bytes.Equal(out, in) && format != "armor" {
			t.Errorf("%q is taken, and encodes to %q", in, out)
		}
	})
}

func FuzzProposal(f *testing.F)  { fuzzParser(f, "proposal") }
func FuzzProposed(f *testing.F)  { fuzzParser(f, "proposed") }
func FuzzApproval(f *testing.F)  { fuzzParser(f, "approval") }
func FuzzEnactment(f *testing.F) { fuzzParser(f, "enactment") }
func FuzzGenesis(f *testing.F)   { fuzzParser(f, "genesis") }

// FuzzArmor: a signature that was read is one that the log takes.
func FuzzArmor(f *testing.F) {
	file := readVectors(f, filepath.Join(vectorDir, "armor.json"))
	for _, v := range append(file.Refuse, file.Accept...) {
		f.Add([]byte(v.Input))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		out, err := ceremony.Armor(in)
		if err != nil {
			return
		}
		if again, err := ceremony.Armor([]byte(out)); err != nil || again != out {
			t.Errorf("%q becomes %q, and that %q, %v", in, out, again, err)
		}
	})
}

// FuzzApply: no body of an entry makes the fold panic, or change what it refuses.
func FuzzApply(f *testing.F) {
	log := readVectors(f, filepath.Join(vectorDir, "log.json"))
	base := log.Logs["proposed"]
	for _, v := range log.Refuse {
		e, err := record.ParseEntry([]byte(v.Entries[len(v.Entries)-1]))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(e.Kind), []byte(e.Body))
	}
	f.Fuzz(func(t *testing.T, kind string, body []byte) {
		r := newReader(t)
		for _, raw := range base {
			if err := r.read([]byte(raw)); err != nil {
				t.Fatal(err)
			}
		}
		last, err := record.ParseEntry(r.entries[len(r.entries)-1])
		if err != nil {
			t.Fatal(err)
		}
		e := *last
		e.Index, e.Kind, e.Body = r.state.Next, record.Kind(kind), body
		before := r.state.Hash()
		next, err := r.state.Apply(&e, record.Hash{})
		if err != nil && next.Hash() != before || r.state.Hash() != before {
			t.Error("what was refused has changed the state")
		}
	})
}
