package main

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"bulla/api"
	"bulla/ceremony"
)

// decision is what approve and reject are told beside what every signing is.
type decision struct {
	decision  ceremony.Decision
	genesis   bool
	signature string // file of one made elsewhere
}

func (o *officer) decideCommand(d ceremony.Decision) *cobra.Command {
	in := &decision{decision: d}
	cmd := &cobra.Command{
		Use:   "approve NUMBER|FILE|--genesis",
		Short: "Approve a proposal, or a log's genesis, with your signature",
		Long: `approve shows a document and what it would change, has your key sign its exact bytes, and brings the signature to the log. The document is
that of an open proposal, by its number or from a file, or with --genesis the one that approves the log itself: compare the hash, or the
words, with what the others have on paper.

--signature brings one made elsewhere by ` + "`ssh-keygen -Y sign -n ceremony@bulla`" + `; --out writes the document for that. With --offline nothing
is sent: the signature goes to FILE.sig, and whoever reaches the appliance brings it with --signature.`,
		Example: `  bulla ceremony approve 7 --as bob --key ~/.ssh/id_ed25519
  bulla ceremony approve --genesis --as bob
  bulla ceremony approve proposal.json --as bob --key bob.pub --offline
  bulla ceremony approve proposal.json --as bob --signature proposal.json.sig`,
		Args: args(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, given []string) error {
			if err := in.check(o, given); err != nil {
				return err
			}
			return o.decide(cmd.Context(), in, strings.Join(given, ""))
		},
	}
	if d == ceremony.Reject {
		cmd.Use, cmd.Short = "reject NUMBER|FILE", "Reject a proposal with your signature; the proposer's withdraws it"
		cmd.Long = `reject shows a proposal, has your key sign its exact bytes as rejected, and brings the signature to the log. It is final: who has rejected a
proposal cannot approve it any more, and an approval given before is taken back. The proposer's rejection withdraws the proposal.

The signature is of a namespace of its own: with plain ssh-keygen, ` + "`ssh-keygen -Y sign -n ceremony-reject@bulla`" + `.`
		cmd.Example = "  bulla ceremony reject 7 --as carol\n  bulla ceremony reject proposal.json --as carol --signature proposal.json.sig"
	} else {
		cmd.Flags().BoolVar(&in.genesis, "genesis", false, "the document is the one that approves the log's genesis")
	}
	cmd.Flags().StringVar(&in.signature, "signature", "", "file of a signature that ssh-keygen or --offline made elsewhere")
	return o.signing(cmd)
}

// check refuses what does not go together.
func (d *decision) check(o *officer, given []string) error {
	switch {
	case len(given) == 1 && given[0] == genesisNumber && d.decision == ceremony.Reject:
		return usagef("number 0 is the genesis: who does not approve it does not sign it")
	case len(given) == 1 && given[0] == genesisNumber:
		return usagef("number 0 is the genesis: approve it with --genesis")
	case d.genesis == (len(given) == 1):
		if d.decision == ceremony.Reject {
			return usagef("name a proposal by its number, or a document's file")
		}
		return usagef("name either a proposal, by its number or a document's file, or --genesis")
	case d.signature != "" && (o.key != "" || o.offline):
		return usagef("--signature is one that was made already: it goes without --key and --offline")
	case o.export != "" && !o.offline && !d.onlyWrites(o):
		return usagef("nothing is sent to an export: add --offline, or leave --export out")
	case o.as == "" && !d.onlyWrites(o):
		return usagef("--as: say by which name the log knows you")
	case o.offline && o.write == "" && (d.genesis || isNumber(given[0])):
		return usagef("--out: name a file for the document; the signature gets its name and .sig")
	}
	return nil
}

func isNumber(arg string) bool {
	_, ok := proposalNumber(arg)
	return ok
}

// onlyWrites reports whether nobody signs: only --out was asked for.
func (d *decision) onlyWrites(o *officer) bool {
	return o.as == "" && o.key == "" && o.write != "" && d.signature == "" && !o.offline
}

// decide shows a document, signs it and sends the decision.
func (o *officer) decide(ctx context.Context, in *decision, arg string) error {
	var g *governance
	var a *appliance
	if !o.offline || o.export != "" || in.genesis || isNumber(arg) {
		var err error
		if g, a, err = o.govern(ctx); err != nil {
			return err
		}
		defer g.done()
	}
	s, err := in.subject(g, arg)
	if err != nil {
		return err
	}
	if err := o.present(s.look(g)); err != nil {
		return err
	}
	files := o.files(arg, s.document)
	if err := files.check(o.offline); err != nil {
		return err
	}
	armored := ""
	if !in.onlyWrites(o) {
		if armored, err = o.armored(ctx, s, in, g); err != nil {
			return err
		}
	}
	if err := files.put(armored, o.offline); err != nil {
		return err
	}
	if o.offline || armored == "" {
		return o.wrote(s, files, in.decision)
	}
	var taken api.Taken
	approval := &ceremony.Approval{Decision: in.decision, Document: s.hash(), Number: s.number, Officer: o.as, Signature: armored}
	if err := a.post(ctx, "/v1/approvals", approval, &taken); err != nil {
		return err
	}
	return o.taken(&taken, map[ceremony.Decision]string{ceremony.Approve: "approved", ceremony.Reject: "rejected"}[in.decision]+" by "+o.as)
}

// subject is the document that is decided on.
func (d *decision) subject(g *governance, arg string) (*subject, error) {
	if d.genesis {
		return g.genesisSubject()
	}
	number, ok := proposalNumber(arg)
	if !ok {
		return subjectFile(arg)
	}
	p, err := g.open(number)
	if err != nil {
		return nil, err
	}
	return readSubject(p.Document)
}

// present shows what is going to be signed, beside JSON on standard error.
func (o *officer) present(d *shownDocument) error {
	to := o.out
	if o.json {
		to = o.err
	}
	_, err := fmt.Fprintln(to, d.text())
	return err
}

// armored is the signature: one made elsewhere, or one made here when whoever signs has said so.
func (o *officer) armored(ctx context.Context, s *subject, in *decision, g *governance) (string, error) {
	if in.signature != "" {
		return signatureFile(in.signature)
	}
	if g == nil {
		return o.signed(ctx, s.document, in.decision, nil)
	}
	if s.log != g.state.Policy.Origin || s.proposal == nil && s.leaf != g.state.Genesis {
		return "", usagef("the document is not for this log, which is %s with the genesis %x", g.state.Policy.Origin, g.state.Genesis[:])
	}
	return o.signed(ctx, s.document, in.decision, &g.state)
}

func signatureFile(path string) (string, error) {
	b, err := readFile(path)
	if err != nil {
		return "", err
	}
	armored, err := ceremony.Armor(b)
	if err != nil {
		return "", usagef("%s: %w", path, err)
	}
	return armored, nil
}

// signed asks whether to sign, and signs as an officer of the state; without one, by the key alone.
func (o *officer) signed(ctx context.Context, document []byte, d ceremony.Decision, s *ceremony.State) (string, error) {
	var appointed *ceremony.Officer
	if s != nil {
		var ok bool
		if appointed, ok = s.Policy.Officer(o.as); !ok {
			var all []string
			for _, p := range s.Policy.Officers {
				all = append(all, p.Name)
			}
			return "", usagef("--as: %q is not an officer of this log, whose are %s", o.as, listed(all))
		}
	}
	if err := o.confirm(ctx, fmt.Sprintf("%s this as %s? (yes/no) ", d, o.as)); err != nil {
		return "", err
	}
	return o.sign(ctx, document, d, appointed)
}

// confirm asks a person on a terminal; elsewhere what was asked for was meant.
func (o *officer) confirm(ctx context.Context, question string) error {
	if o.yes || !terminal(o.in) {
		return nil
	}
	fmt.Fprint(o.err, question)
	type answer struct {
		text string
		err  error
	}
	got := make(chan answer, 1)
	go func() {
		text, err := bufio.NewReader(o.in).ReadString('\n')
		got <- answer{text, err}
	}()
	select {
	case a := <-got:
		if a.err != nil && !errors.Is(a.err, io.EOF) {
			return fmt.Errorf("asking: %w", a.err)
		}
		if strings.TrimSpace(a.text) != "yes" {
			return usagef("nothing was signed")
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// files are what a command writes: a document, and a signature beside it.
type files struct {
	document  []byte
	path      string // of the document
	make      bool   // it is not there yet
	signature string // its path
}

// files are those of a document that is in file, or goes to --out.
func (o *officer) files(file string, document []byte) *files {
	f := &files{document: document, path: file}
	if o.write != "" {
		f.path, f.make = o.write, true
	}
	f.signature = f.path + ".sig"
	return f
}

// check refuses names that are taken, before anybody signs.
func (f *files) check(signature bool) error {
	if f.make {
		if err := free(f.path); err != nil {
			return err
		}
	}
	if signature {
		return free(f.signature)
	}
	return nil
}

func (f *files) put(armored string, signature bool) error {
	if f.make {
		if err := writeNew(f.path, f.document); err != nil {
			return err
		}
	}
	if signature {
		return writeNew(f.signature, []byte(armored))
	}
	return nil
}

// signedFiles is what is printed with --json when nothing is sent.
type signedFiles struct {
	Number    uint64 `json:"number"`
	Document  string `json:"document"`            // file
	Signature string `json:"signature,omitempty"` // file
	SHA256    string `json:"sha256"`              // of the document, hex
}

// wrote says what was written, and what to do with it.
func (o *officer) wrote(s *subject, f *files, d ceremony.Decision) error {
	h := s.hash()
	out := signedFiles{Number: s.number, Document: f.path, SHA256: hex.EncodeToString(h[:])}
	if o.offline {
		out.Signature = f.signature
	}
	if o.json {
		return o.printJSON(out)
	}
	namespace := map[ceremony.Decision]string{ceremony.Approve: ceremony.Namespace, ceremony.Reject: ceremony.NamespaceReject}[d]
	if out.Signature == "" {
		_, err := fmt.Fprintf(o.out, "the document is in %s; sign it with: ssh-keygen -Y sign -n %s -f KEY %[1]s\n", f.path, namespace)
		return err
	}
	_, err := fmt.Fprintf(o.out, "nothing was sent; the document is in %s, and the signature of %s in %s\nbring it with: bulla ceremony %s %[1]s --as %[2]s --signature %[3]s\n", f.path, o.as, f.signature, d)
	return err
}

// taken says what the log has taken, and what is next.
func (o *officer) taken(t *api.Taken, what string) error {
	if o.json {
		return o.printJSON(t)
	}
	name, where := fmt.Sprintf("proposal %d", t.Number), "waits outside the log"
	if t.Number == 0 {
		name = "the genesis"
	}
	if t.Index != nil {
		where = fmt.Sprintf("entry %d", *t.Index)
	}
	given := ""
	if t.Needed > 0 { // else it is not open any more
		given = fmt.Sprintf("; %d of %d approvals", t.Given, t.Needed)
	}
	next := "nothing is missing"
	switch {
	case t.Missing != "" && t.Number > 0 && t.Given < t.Needed:
		next = fmt.Sprintf("missing: %s\nothers approve it with: bulla ceremony approve %d --as NAME", ceremony.Printable(t.Missing), t.Number)
	case t.Missing != "":
		next = "missing: " + ceremony.Printable(t.Missing)
	case t.Number > 0:
		next += fmt.Sprintf("; carry it out with: bulla ceremony enact %d", t.Number)
	}
	_, err := fmt.Fprintf(o.out, "%s: %s (%s)%s\n%s\n", name, what, where, given, next)
	return err
}
