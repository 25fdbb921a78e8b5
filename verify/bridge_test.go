package verify

import (
	"crypto"

	"golang.org/x/mod/sumdb/note"
)

// Tried is a mutant as the selftest gave it to the verifier.
type Tried struct {
	Source   Source
	Policy   *Policy
	Receipts []Receipt
	Index    *uint64
}

// SelftestWith has a selftest tamper with the log's own keys, and show each mutant.
func SelftestWith(opt SelftestOptions, heads func(origin string) ([]note.Signer, error), seals crypto.Signer, see func(*Mutation, Tried, *Report)) SelftestOptions {
	if heads != nil {
		opt.keys = &keyring{heads: heads, seals: seals}
	}
	opt.tried = func(m *Mutation, t *trial, rep *Report) {
		see(m, Tried{t.src, t.policy, t.receipts, t.index}, rep)
	}
	return opt
}
