// Package verify checks an exported log offline, trusting nothing of the machine that made it.
//
// Its input is a C2SP tlog-tiles tree (checkpoint, tile/..., tile/entries/...), read through a Source. What an auditor trusts is in
// a Policy: the log's verifier keys and the leaf hash of its genesis. Everything else is evidence, and hostile until checked.
//
//	verify.go   Run, the main path, and what it is given
//	report.go   the answer: claims with their coverage, findings, verdict; text.go prints it, html.go as a page
//	rules.go    every rule a finding can name, what it is about and what a violation means
//	policy.go   the policy file (C2SP tlog-policy, extended)
//	source.go   evidence in a directory or a tar file
//	layout.go   names and sizes of tiles and bundles
//	bundle.go   reading, parsing and hashing 256 entries: on all cores, no order needed
//	chain.go    judging them one after the other: links, tree, and which of two witnesses of a hash is wrong
//	fold.go     what only the order of entries shows: governance, time, seals
//	head.go     the checkpoint: format and signatures
//	seals.go    what the TPM attested; enrolment.go why it is trusted; boot.go what was measured
//	history.go  roots and leaf hashes of earlier sizes, as they were judged
//	receipts.go receipts held outside the log
//	continuity.go what was seen of the log before; memory.go what a run remembers of it
//	timeline.go the log's course, for pictures of it
//	witness.go  heads that witnesses cosigned, and the policy's quorum
//	rest.go     files that the head does not need; copies.go those of seals for standard tools
//	selftest.go that tampering with this evidence is found; selftestlist.go in which ways
//	export.go   the other way: evidence copied from where it is served or stored; readme.go its README
//
// There are three answers. A log is tampered when something in it contradicts something else or the policy. It is verified when
// every claim that the policy requires was checked in full. Otherwise it is not checkable, and the report says what is missing. The
// verifier never says verified of what it did not check: every claim carries the range of entries that it covers, and the tail that
// no seal or receipt anchors is stated.
package verify

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync"

	"bulla/record"
)

// Options is what a run is given beside evidence and policy. The zero value is usable.
type Options struct {
	Receipts    []Receipt                // held outside the log, to be checked against it
	Earlier     []Earlier                // seen of the log before, to be found in it again
	Live        string                   // where the evidence is served; "": it is a copy at rest
	Progress    func(done, total uint64) // entries; called in order, from one goroutine; nil: not called
	Workers     int                      // goroutines that parse and hash; 0: one for each CPU, at most 16
	MaxFindings int                      // findings kept in the report, the rest is counted; 0: 100

	thief *thief // of the selftest; nil: nobody has stolen a key

	// Recall gives what an earlier run remembered (Report.Memory) of the log with this genesis, by its leaf hash; nil if nothing. It is
	// called before the entries are read, and its error ends the run. nil: nothing is remembered.
	Recall func(origin string, genesis record.Hash) (*Memory, error)
}

// Receipt is a receipt as its holder has it.
type Receipt struct {
	Name string // for the report, as a file name
	Data []byte // JSON (record.Receipt) or C2SP tlog-proof
}

// Run checks the evidence in src. A nil policy trusts nothing, and the answer is then at best not checkable. The error is about
// reading, or ctx's; what is wrong with the evidence is in the report.
func Run(ctx context.Context, src Source, policy *Policy, opt Options) (*Report, error) {
	return newRun(src, policy, opt).judge(ctx)
}

func (r *run) judge(ctx context.Context) (*Report, error) {
	if r.opt.Live != "" {
		r.remark("read live from %s: this judges what was served just now; what is to be shown later has to be exported and kept", quote(r.opt.Live))
	}

	// 1. The head says what the log claims to be: its origin, its size, its root.
	if err := r.readCosigned(ctx); err != nil {
		return nil, err
	}
	if err := r.readHead(ctx); err != nil {
		return nil, err
	}
	if r.headOK {
		if err := r.identify(ctx); err != nil {
			return nil, err
		}
		if err := r.recall(); err != nil {
			return nil, err
		}
		// 2. Every entry and every tile: parsed and hashed on all cores, judged in the order of the log.
		if err := r.readEntries(ctx); err != nil {
			return nil, err
		}
		// 3. The tree that the entries make is the one that the head signs.
		if err := r.judgeRoot(ctx); err != nil {
			return nil, err
		}

		// 4. The head is signed by the keys that the policy pins, and by those that govern the log at its end.
		r.judgeSignatures()

		// 5. What was handed out before is still in the log.
		if err := r.judgeReceipts(ctx); err != nil {
			return nil, err
		}
		// 6. What witnesses saw is still in the log.
		if err := r.judgeWitnesses(ctx); err != nil {
			return nil, err
		}
		// 7. What was seen of the log before is still in it.
		if err := r.judgeContinuity(ctx); err != nil {
			return nil, err
		}
		// 8. Files that the head does not need are prefixes of those that it does, or are no evidence.
		if err := r.judgeRest(ctx); err != nil {
			return nil, err
		}
	}
	// 9. Only now an answer.
	return r.conclude(), nil
}

// run is one verification under way. All of it belongs to the goroutine of Run; workers only make bundles.
type run struct {
	src    Source
	policy *Policy
	opt    Options
	report *Report

	signed []byte            // the checkpoint as it is
	head   record.Checkpoint // what its text says
	headOK bool              // the text could be read
	origin string            // the log that the entries belong to: the head's, unless the first entry says otherwise

	first     record.Hash // leaf hash of entry 0 as it is there
	earlier   []Earlier   // what was given, and what was remembered
	witnessed uint64      // entries that a quorum of witnesses vouches for
	cosigned  [][]byte    // checkpoints that witnesses cosigned, as they are

	claims map[string]*claimState
	chain  chain
	fold   fold

	bundles sync.Pool // of those that were judged
	buffers sync.Pool // of bundles' bytes
}

func newRun(src Source, policy *Policy, opt Options) *run {
	if opt.Workers <= 0 {
		opt.Workers = min(runtime.GOMAXPROCS(0), 16)
	}
	if opt.MaxFindings <= 0 {
		opt.MaxFindings = 100
	}
	r := &run{src: src, policy: policy, opt: opt, earlier: slices.Clone(opt.Earlier), report: &Report{Entries: map[string]uint64{}}, claims: map[string]*claimState{}}
	for _, name := range claimNames {
		r.claims[name] = &claimState{}
	}
	r.fold.init(r)
	return r
}

// claimState is what is known so far of one claim.
type claimState struct {
	violated bool
	gap      string // why something that belongs to it was not checked; "" when all was
	to       uint64 // checked in full from 0 to here; only while gap is ""
	from     uint64
}

// find records a violation. The claim that the rule belongs to is violated by it.
func (r *run) find(f Finding) {
	rule, ok := ruleByName[f.Rule]
	if !ok {
		panic(fmt.Sprintf("verify: finding by unknown rule %q", f.Rule))
	}
	r.claims[rule.Claim].violated = true
	if len(r.report.Findings) >= r.opt.MaxFindings {
		r.report.Omitted++
		return
	}
	f.Log, f.Meaning = r.origin, rule.Meaning
	r.report.Findings = append(r.report.Findings, f)
}

// miss records that claims cannot be checked in full, and why. The first reason stands.
func (r *run) miss(why string, claims ...string) {
	for _, name := range claims {
		if c := r.claims[name]; c.gap == "" {
			c.gap = why
		}
	}
}

// covered says that claims hold for all entries before to, as far as nothing was missed.
func (r *run) covered(to uint64, claims ...string) {
	for _, name := range claims {
		if c := r.claims[name]; c.gap == "" {
			c.to = max(c.to, to)
		}
	}
}

func (r *run) remark(format string, args ...any) {
	r.report.Remarks = append(r.report.Remarks, fmt.Sprintf(format, args...))
}

func at(index uint64) *uint64 { return &index }
