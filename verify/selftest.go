package verify

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"golang.org/x/mod/sumdb/note"

	"bulla/record"
)

// Mutation is one way to tamper with evidence, of the catalogue that Selftest tries. Names are stable.
type Mutation struct {
	Name  string   `json:"name"`
	Does  string   `json:"does"`  // in a sentence
	Needs string   `json:"needs"` // what whoever does it must have: one of the Needs constants
	Rules []string `json:"rules"` // that may find it, the first must; none: nothing contradicts, and the answer must be "not checkable"

	make func(ctx context.Context, s *subject) (*trial, error)
}

// What a mutation needs.
const (
	NeedsCopy    = "a copy of the evidence" // to write to, and no key
	NeedsReceipt = "a receipt"              // to show, and no key
	NeedsWitness = "a cosigned head"        // to show, and no key
	NeedsMemory  = "what an auditor kept"   // of the log, and no key
	NeedsKey     = "the signing key"        // of the log: a stolen HSM, or the right to use it
	NeedsMachine = "the key and the TPM"    // of the log's machine, which signs what it is made to, and says truthfully how it is
	NeedsOther   = "another machine"        // in the place of the log's
)

// Mutations returns the catalogue.
func Mutations() []Mutation { return slices.Clone(catalogue) }

// Outcome says what came of a mutation.
type Outcome string

// Outcomes of mutations.
const (
	Caught        Outcome = "caught"         // by the rule that should, at the place where it should
	Missed        Outcome = "missed"         // nothing was found
	Misattributed Outcome = "misattributed"  // something was found, but not by that rule or not at that place
	NotApplicable Outcome = "not applicable" // the evidence has nothing to do it to
)

// Trial is what came of trying one mutation.
type Trial struct {
	Mutation
	Outcome Outcome  `json:"outcome"`
	Why     string   `json:"why,omitempty"`    // not applicable, or what was found instead
	Index   *uint64  `json:"index,omitempty"`  // entry where the finding must be
	File    string   `json:"file,omitempty"`   // file where it must be
	Finding *Finding `json:"finding,omitzero"` // that caught it
	Others  []string `json:"others,omitempty"` // further rules that found something
}

// SelftestReport is the outcome of a selftest. Its JSON form is stable: members may be added, none changes its meaning.
type SelftestReport struct {
	Evidence *Report         `json:"evidence"` // of the evidence as it was given; nothing was tried unless it is verified
	Counts   map[Outcome]int `json:"counts"`
	Trials   []Trial         `json:"trials"`
}

// Passed reports whether every mutation that can be tried was caught.
func (r *SelftestReport) Passed() bool {
	return len(r.Trials) > 0 && r.Counts[Missed]+r.Counts[Misattributed] == 0 && r.Counts[Caught] > 0
}

// SelftestOptions is what a selftest is given beside evidence and policy. The zero value is usable.
type SelftestOptions struct {
	Receipts []Receipt                // held outside the log
	Progress func(done, total uint64) // mutations; called from one goroutine; nil: not called
	Workers  int                      // as in Options

	only  []Mutation                               // instead of the catalogue
	keys  *keyring                                 // what a thief has stolen; nil: throwaway keys
	tried func(m *Mutation, e *trial, rep *Report) // sees each mutant; nil: not called
}

// Selftest tampers with copies of the evidence in every way of the catalogue, one at a time, and has each verified as Run does. The
// evidence itself is only read: a copy is the evidence with a few files of its own in memory. Where evidence is not verified to
// begin with, nothing is tried.
//
// Private keys of the log and of its TPM are not in evidence. Where a thief of such a key is imitated, he has a throwaway key, and
// the verifier is told to accept its signatures as those of the stolen one, for that run. Whether that alone changes anything is
// tried first: honest evidence under such keys must be verified without a finding.
func Selftest(ctx context.Context, src Source, policy *Policy, opt SelftestOptions) (*SelftestReport, error) {
	out := &SelftestReport{Counts: map[Outcome]int{Caught: 0, Missed: 0, Misattributed: 0, NotApplicable: 0}, Trials: []Trial{}}
	r := newRun(src, policy, Options{Receipts: opt.Receipts, Workers: opt.Workers})
	var err error
	if out.Evidence, err = r.judge(ctx); err != nil {
		return nil, err
	}
	if out.Evidence.Verdict != OutcomeVerified {
		return out, nil
	}
	s, err := newSubject(ctx, r, opt)
	if err != nil {
		return nil, fmt.Errorf("selftest: %w", err)
	}
	mutations := catalogue
	if opt.only != nil {
		mutations = opt.only
	}
	for i, m := range mutations {
		if opt.Progress != nil {
			opt.Progress(uint64(i), uint64(len(mutations)))
		}
		t, err := s.try(ctx, m)
		if err != nil {
			return nil, fmt.Errorf("selftest: %s: %w", m.Name, err)
		}
		out.Counts[t.Outcome]++
		out.Trials = append(out.Trials, *t)
	}
	return out, nil
}

// trial is a mutation of given evidence: what is verified, and where the finding must be.
type trial struct {
	honest *exhibit // the same without the mutation: nothing may be found in it; nil: the evidence as it was given
	exhibit
	index *uint64
	file  string
}

// exhibit is what one run of the verifier is given.
type exhibit struct {
	name     string // of honest exhibits, which are tried once
	src      Source
	policy   *Policy
	receipts []Receipt
	earlier  []Earlier
	memory   *Memory // of an earlier run
}

// inapplicable says why evidence has nothing to do a mutation to.
type inapplicable string

func (e inapplicable) Error() string { return string(e) }

// try makes a mutant, and judges what the verifier finds.
func (s *subject) try(ctx context.Context, m Mutation) (*Trial, error) {
	out := &Trial{Mutation: m, Outcome: NotApplicable}
	t, err := m.make(ctx, s)
	var no inapplicable
	if errors.As(err, &no) {
		out.Why = string(no)
		return out, nil
	} else if err != nil {
		return nil, err
	}
	if out.Why, err = s.honestly(ctx, t.honest); err != nil || out.Why != "" {
		return out, err
	}
	rep, err := s.verify(ctx, &t.exhibit)
	if err != nil {
		return nil, err
	}
	if s.opt.tried != nil {
		s.opt.tried(&m, t, rep)
	}
	out.Index, out.File = t.index, t.file
	out.judge(rep)
	return out, nil
}

// honestly says what is wrong with an honest exhibit; "" when nothing is.
func (s *subject) honestly(ctx context.Context, e *exhibit) (string, error) {
	if e == nil {
		return "", nil
	}
	why, tried := s.honest[e.name]
	if !tried {
		rep, err := s.verify(ctx, e)
		if err != nil {
			return "", err
		}
		if len(rep.Findings) > 0 {
			f := rep.Findings[0]
			why = fmt.Sprintf("what the machine would have done next (%s) cannot be imitated after this evidence: %s", e.name, f.Rule+place(f.Index, f.File))
		}
		s.honest[e.name] = why
	}
	return why, nil
}

func (s *subject) verify(ctx context.Context, e *exhibit) (*Report, error) {
	policy := e.policy
	if policy == nil {
		policy = s.policy
	}
	opt := Options{Receipts: e.receipts, Earlier: e.earlier, Workers: s.opt.Workers, thief: s.keys.thief}
	if e.memory != nil {
		opt.Recall = func(string, record.Hash) (*Memory, error) { return e.memory, nil }
	}
	return Run(ctx, e.src, policy, opt)
}

// judge says whether a mutant was caught as it should be.
func (t *Trial) judge(rep *Report) {
	if len(t.Rules) == 0 {
		t.Outcome = Caught
		if rep.Verdict != OutcomeNotCheckable || !slices.ContainsFunc(rep.Missing, func(s string) bool { return strings.Contains(s, t.File) }) {
			t.Outcome, t.Why = Missed, fmt.Sprintf("the answer is %q, and what is missing %q", rep.Verdict, rep.Missing)
		}
		return
	}
	t.Outcome = Missed
	for _, f := range rep.Findings {
		if t.Outcome != Caught && f.Rule == t.Rules[0] && (t.Index == nil || f.Index != nil && *f.Index == *t.Index) && (t.File == "" || f.File == t.File) {
			t.Outcome, t.Finding = Caught, &f
		} else {
			t.Others = append(t.Others, f.Rule+place(f.Index, f.File))
		}
	}
	switch {
	case t.Outcome == Caught && rep.Verdict != OutcomeTampered:
		t.Outcome, t.Why = Missed, fmt.Sprintf("the answer is %q", rep.Verdict)
	case t.Outcome != Caught && len(rep.Findings) > 0:
		t.Outcome, t.Why = Misattributed, fmt.Sprintf("expected %s%s, found %s", t.Rules[0], place(t.Index, t.File), strings.Join(t.Others, ", "))
	case t.Outcome != Caught:
		t.Why = fmt.Sprintf("expected %s%s, found nothing: %s", t.Rules[0], place(t.Index, t.File), rep.Verdict)
	}
}

func place(index *uint64, file string) string {
	switch {
	case index != nil:
		return fmt.Sprintf(" at entry %d", *index)
	case file != "":
		return " in " + file
	}
	return ""
}

// WriteText prints the report for people: what failed first, then every mutation.
func (r *SelftestReport) WriteText(w io.Writer) error {
	p := &printer{w: w}
	if len(r.Trials) == 0 {
		p.printf("nothing was tried: the evidence itself is %s, and a selftest begins with evidence that is verified\n\n", r.Evidence.Verdict)
		if p.err != nil {
			return p.err
		}
		return r.Evidence.WriteText(w)
	}
	for _, t := range r.Trials {
		if t.Outcome == Missed || t.Outcome == Misattributed {
			p.printf("FAILED  %s: %s\n        %s\n", t.Name, t.Why, t.Does)
		}
	}
	p.printf("selftest of %s, %d entries: %d mutations caught, %d missed, %d caught otherwise than expected, %d not applicable\n\n", r.Evidence.Log, r.Evidence.Size, r.Counts[Caught], r.Counts[Missed], r.Counts[Misattributed], r.Counts[NotApplicable])
	table := tabwriter.NewWriter(p, 0, 0, 2, ' ', 0)
	fmt.Fprintf(table, "MUTATION\tOUTCOME\tBY, AT\tNEEDS\n")
	for _, t := range r.Trials {
		by := t.Why
		if t.Finding != nil {
			by = t.Finding.Rule + place(t.Finding.Index, t.Finding.File)
		} else if t.Outcome == Caught {
			by = "the answer: not checkable, for " + t.File
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", t.Name, t.Outcome, by, t.Needs)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	return p.err
}

// printer remembers the first error of writing.
type printer struct {
	w   io.Writer
	err error
}

func (p *printer) Write(b []byte) (int, error) {
	if p.err != nil {
		return 0, p.err
	}
	var n int
	n, p.err = p.w.Write(b)
	return n, p.err
}

func (p *printer) printf(format string, args ...any) { fmt.Fprintf(p, format, args...) }

// thief holds throwaway keys, which a run takes for keys of the log that were stolen.
type thief struct {
	heads ed25519.PublicKey // in place of every key that signs heads
	seals *ecdsa.PublicKey  // in place of the attestation key
}

// verifier is that of a key of the log; it also accepts what the thief signs in that key's place.
func (t *thief) verifier(vkey string) (note.Verifier, error) {
	v, err := record.NewVerifier(vkey)
	if err != nil || t == nil {
		return v, err
	}
	return &robbed{v, t.heads}, nil
}

// robbed is the verifier of a key that was stolen.
type robbed struct {
	note.Verifier
	thief ed25519.PublicKey
}

func (r *robbed) Verify(msg, sig []byte) bool {
	return r.Verifier.Verify(msg, sig) || ed25519.Verify(r.thief, msg, sig)
}
