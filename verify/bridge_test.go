package verify

import (
	"context"
	"crypto"

	"golang.org/x/mod/sumdb/note"
)

// Tried is a mutant as the selftest gave it to the verifier.
type Tried struct {
	Source   Source
	Policy   *Policy
	Receipts []Receipt
	Earlier  []byte // a head
	Memory   *Memory
}

// SelftestWith has a selftest tamper with the log's own keys, and show each mutant.
func SelftestWith(opt SelftestOptions, heads func(origin string) ([]note.Signer, error), seals crypto.Signer, see func(*Mutation, Tried, *Report)) SelftestOptions {
	if heads != nil {
		opt.keys = &keyring{heads: heads, seals: seals}
	}
	opt.tried = func(m *Mutation, t *trial, rep *Report) {
		x := Tried{Source: t.src, Policy: t.policy, Receipts: t.receipts, Memory: t.memory}
		if len(t.earlier) > 0 {
			x.Earlier = t.earlier[0].signed
		}
		see(m, x, rep)
	}
	return opt
}

// MutationOf is a mutation that puts files in the place of the evidence's, and is to be found at entry 3.
func MutationOf(name string, files map[string][]byte, rules ...string) Mutation {
	return Mutation{Name: name, Rules: rules, make: func(_ context.Context, s *subject) (*trial, error) {
		return &trial{exhibit: exhibit{src: &overlay{base: s.src, files: files}}, index: at(3)}, nil
	}}
}

// SelftestOf tries one mutation.
func SelftestOf(ctx context.Context, src Source, policy *Policy, m Mutation) (*SelftestReport, error) {
	return Selftest(ctx, src, policy, SelftestOptions{only: []Mutation{m}})
}
