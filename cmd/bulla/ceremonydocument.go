package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"bulla/ceremony"
	"bulla/record"
)

// subject is a document that a command is about.
type subject struct {
	document []byte
	proposal *ceremony.Proposal // nil: the document is a genesis's
	leaf     record.Hash        // of the genesis
	log      string             // origin
	number   uint64             // 0: the genesis
}

// readSubject reads a document: of a proposal, or of a genesis.
func readSubject(document []byte) (*subject, error) {
	if log, leaf, err := ceremony.ParseGenesisDocument(document); err == nil {
		return &subject{document: document, leaf: leaf, log: log}, nil
	}
	p, err := ceremony.ParseProposal(document)
	if err != nil {
		return nil, err
	}
	return &subject{document: document, proposal: p, log: p.Log, number: p.Number}, nil
}

// genesisSubject is the genesis of the log, to be approved.
func (g *governance) genesisSubject() (*subject, error) {
	document, err := ceremony.GenesisDocument(g.state.Policy.Origin, g.state.Genesis)
	if err != nil {
		return nil, err
	}
	return readSubject(document)
}

// subjectOf reads what an argument names: the number of a proposal, or a file.
func (g *governance) subjectOf(arg string) (*subject, error) {
	number, ok := proposalNumber(arg)
	if arg == genesisNumber && g != nil {
		return g.genesisSubject()
	}
	if !ok && arg != genesisNumber {
		return subjectFile(arg)
	}
	if g == nil {
		return nil, usagef("number %d is in a log: name the document's file instead, or the log with --export", number)
	}
	if p, err := g.open(number); err == nil {
		return readSubject(p.Document)
	}
	p, _, ok := g.chronicle.Proposal(number)
	if !ok {
		return nil, usagef("there is no proposal %d; see `bulla ceremony list`", number)
	}
	return readSubject(p.Document)
}

// genesisNumber is what lists and minutes have the genesis under. It is no proposal: nobody decides on it by that number.
const genesisNumber = "0"

// proposalNumber reports whether an argument is a number, which it then is rather than a file's name.
func proposalNumber(arg string) (uint64, bool) {
	n, err := strconv.ParseUint(arg, 10, 53)
	return n, err == nil && n > 0
}

func subjectFile(path string) (*subject, error) {
	b, err := readFile(path)
	if err != nil {
		return nil, err
	}
	s, err := readSubject(b)
	if err != nil {
		return nil, usagef("%s: not the exact bytes of a document: %w", path, err)
	}
	return s, nil
}

func (s *subject) hash() record.Hash { return ceremony.DocumentHash(s.document) }

// shownDocument is what can be said of a document: the JSON of show.
type shownDocument struct {
	Action   string          `json:"action"`
	Number   uint64          `json:"number"`
	Log      string          `json:"log"`
	Proposer string          `json:"proposer,omitempty"`
	Document json.RawMessage `json:"document"`
	SHA256   string          `json:"sha256"`         // of the document, hex
	Words    []string        `json:"words"`          // of the same
	Leaf     string          `json:"leaf,omitempty"` // of a genesis: leaf hash of entry 0, hex
	Changes  []string        `json:"changes,omitempty"`
	Expires  string          `json:"expires,omitempty"`
	Approved []string        `json:"approved,omitempty"`
	Rejected []string        `json:"rejected,omitempty"`
	Given    int             `json:"given"`  // approvals that count
	Needed   int             `json:"needed"` // 0: nobody asked a log
	Ended    string          `json:"ended,omitempty"`
	Missing  string          `json:"missing,omitempty"` // what it lacks to be enacted, by this machine's clock
	Remarks  []string        `json:"remarks,omitempty"`
}

// look says what can be said of a document, with the log that it is for, or without one (g is nil).
func (s *subject) look(g *governance) *shownDocument {
	h := s.hash()
	out := &shownDocument{Action: ceremony.ActionGenesis, Number: s.number, Log: s.log, Document: s.document, SHA256: hex.EncodeToString(h[:]), Words: record.Words(h)}
	if s.proposal != nil {
		out.Action, out.Proposer, out.Expires = s.proposal.Action, s.proposal.Proposer, s.proposal.Expires
	} else {
		out.Leaf = hex.EncodeToString(s.leaf[:])
	}
	switch {
	case g == nil:
		out.Remarks = append(out.Remarks, "no log was asked: what this would change, and whether it can be enacted, is not known here")
	case s.log != g.state.Policy.Origin:
		out.Remarks = append(out.Remarks, "it is for another log than this, "+g.state.Policy.Origin)
	case s.proposal == nil:
		out.genesis(s, g)
	default:
		out.proposal(s, g)
	}
	if g != nil && g.remark != "" {
		out.Remarks = append(out.Remarks, g.remark)
	}
	return out
}

func (d *shownDocument) genesis(s *subject, g *governance) {
	if s.leaf != g.state.Genesis {
		d.Remarks = append(d.Remarks, fmt.Sprintf("it approves another genesis than this log's, whose leaf hash is %x", g.state.Genesis[:]))
		return
	}
	first := g.chronicle.Ceremonies()[0]
	if g.state.Changed == 0 {
		d.Changes = g.state.Policy.Describe()
	}
	d.Approved, d.Given, d.Needed, d.Ended = first.Approved, len(first.Approved), first.Needed, first.Ended
	if err := g.state.Ready(); err != nil {
		d.Missing = err.Error()
	}
}

func (d *shownDocument) proposal(s *subject, g *governance) {
	if i := slices.IndexFunc(g.state.Open(), func(p *ceremony.Pending) bool { return p.Hash == s.hash() }); i >= 0 {
		p := g.state.Open()[i]
		d.Changes, d.Given, d.Needed = g.state.Describe(s.proposal), len(p.Approvals), p.Needed
		d.Approved, d.Rejected = names(p.Approvals), names(p.Rejections)
		d.Ended = g.over(s.number)
		if err := g.state.Approved(p, here()); err != nil && d.Ended == "" {
			d.Missing = err.Error()
		}
		if slices.Contains(g.waiting, p) {
			d.Remarks = append(d.Remarks, "it waits outside the log, which was rolled back, until it is enacted")
		}
		return
	}
	if p, before, ok := g.chronicle.Proposal(s.number); ok && p.Hash == s.hash() {
		d.Changes = before.Describe(s.proposal)
		for _, l := range g.chronicle.Ceremonies() {
			if l.Number == s.number {
				d.Approved, d.Rejected, d.Given, d.Needed, d.Ended = l.Approved, l.Rejected, len(l.Approved), l.Needed, l.Ended
			}
		}
		return
	}
	d.Needed = g.state.Policy.Threshold(s.proposal.Action)
	if s.proposal.State == g.state.Hash() {
		d.Changes = g.state.Describe(s.proposal)
	}
	if err := g.state.Admits(s.proposal, here()); err != nil {
		d.Missing = "the log does not have it, and would refuse it: " + err.Error()
	} else {
		d.Missing = "the log does not have it: it must be proposed first"
	}
}

func names(votes []ceremony.Vote) (out []string) {
	for _, v := range votes {
		out = append(out, v.Officer)
	}
	return out
}

// text is the document for people.
func (d *shownDocument) text() string {
	var b strings.Builder
	if d.Number == 0 {
		fmt.Fprintf(&b, "approval of the genesis of log %s\n", ceremony.Printable(d.Log))
	} else {
		fmt.Fprintf(&b, "proposal %d: %s in log %s, by %s\nexpires %s\n", d.Number, ceremony.Printable(d.Action), ceremony.Printable(d.Log), d.Proposer, d.Expires)
	}
	if d.Changes != nil {
		fmt.Fprintf(&b, "\nwhat it changes\n%s", indent(strings.Join(d.Changes, "\n")))
	}
	fmt.Fprintf(&b, "\ndocument\n%s", indent(legible(d.Document)))
	if d.Leaf != "" {
		fmt.Fprintf(&b, "\nleaf hash of the genesis\n%s", indent(aloud(d.Leaf)))
	}
	fmt.Fprintf(&b, "\nSHA-256 of the document\n%s\n", indent(aloud(d.SHA256)))
	if d.Needed > 0 {
		fmt.Fprintf(&b, "approved by %s: %d of %d needed\n", listed(d.Approved), d.Given, d.Needed)
	}
	if d.Rejected != nil {
		fmt.Fprintf(&b, "rejected by %s\n", listed(d.Rejected))
	}
	if d.Ended != "" {
		fmt.Fprintf(&b, "ended: %s\n", d.Ended)
	}
	if d.Missing != "" {
		fmt.Fprintf(&b, "missing: %s\n", d.Missing)
	}
	for _, r := range d.Remarks {
		fmt.Fprintf(&b, "note: %s\n", r)
	}
	return strings.TrimRight(b.String(), "\n") + "\n"
}

// aloud is a hash, given in hex, as people read it to each other.
func aloud(text string) string {
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != len(record.Hash{}) {
		return text
	}
	return ceremony.Aloud(record.Hash(b))
}

func listed(names []string) string {
	if len(names) == 0 {
		return "nobody"
	}
	return strings.Join(names, ", ")
}

func (o *officer) showCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "show NUMBER|FILE",
		Short: "Show a document, what it would change, and what it lacks",
		Long: `show prints a proposal's document, by its number in the log or from a file, or with number 0 the document that approves the genesis, with everything in it made printable; what it changes, in
words; its hash, in hex and as words to read to each other; who has approved it, and what it lacks to be enacted. With --offline FILE is
shown without asking any log.`,
		Example: "  bulla ceremony show 7\n  bulla ceremony show 0\n  bulla ceremony show proposal.json --offline\n  bulla ceremony show 7 --export /media/evidence --json | jq -r .sha256",
		Args:    args(cobra.ExactArgs(1)),
		RunE:    func(cmd *cobra.Command, given []string) error { return o.show(cmd.Context(), given[0]) },
	}
	cmd.Flags().BoolVar(&o.offline, "offline", false, "ask no appliance")
	return o.reading(cmd)
}

func (o *officer) show(ctx context.Context, arg string) error {
	var g *governance
	if !o.offline || o.export != "" {
		var err error
		if g, _, err = o.govern(ctx); err != nil {
			return err
		}
		defer g.done()
	}
	s, err := g.subjectOf(arg)
	if err != nil {
		return err
	}
	d := s.look(g)
	if o.json {
		return o.printJSON(d)
	}
	_, err = fmt.Fprint(o.out, d.text())
	return err
}
