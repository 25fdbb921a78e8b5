package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"math"
	"time"

	"github.com/spf13/cobra"

	"bulla/api"
	"bulla/ceremony"
	"bulla/record"
)

// maxExpires bounds how long a proposal may be open: until then people have forgotten what it was.
const maxExpires = 366 * 24 * time.Hour

// proposing is how the content of a proposal comes to be.
type proposing struct {
	content any    // a pointer to the struct of the action
	file    string // that has it; "": build makes it of flags and of what is in force
	flags   []string
	build   func(g *governance) error
	expires string
}

func (o *officer) proposeCommand() *cobra.Command {
	var document, signature string
	cmd := &cobra.Command{
		Use:   "propose ACTION",
		Short: "Propose a change, as a document that you sign",
		Long: `propose makes the document of a proposal against the state in force, shows what it would change, has your key sign it, and brings it to the
log. Each ACTION has flags of its own, or takes the exact content as JSON with --content FILE.

--out writes the document, for others to sign or to compare. With --offline nothing is sent: document and signature are written, and brought
later, by anyone, with --document and --signature.`,
		Example: `  bulla ceremony propose policy.set --set seal.interval=5s --as alice
  bulla ceremony propose key.generate --purpose log --as alice --out proposal.json
  bulla ceremony propose --document proposal.json --signature proposal.json.sig`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, given []string) error {
			switch {
			case len(given) > 0:
				return usagef("there is no action %q; see `%s --help`", given[0], cmd.CommandPath())
			case document == "" && signature == "":
				return cmd.Help()
			case document == "" || signature == "":
				return usagef("--document and --signature go together")
			}
			return o.bring(cmd.Context(), document, signature)
		},
	}
	cmd.Flags().StringVar(&document, "document", "", "file of a document that was made and signed elsewhere")
	cmd.Flags().StringVar(&signature, "signature", "", "file of its proposer's signature")
	cmd.AddCommand(o.policySet(), o.officersSet(), o.keyGenerate(), o.keyRotate(), o.keyRetire(), o.tpmEnrol(), o.pcrApprove(), o.recoveryDeclare())
	return cmd
}

// action completes the command of one action, whose own flags are there.
func (o *officer) action(cmd *cobra.Command, p *proposing) *cobra.Command {
	cmd.Args = args(cobra.NoArgs)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if p.file != "" {
			for _, name := range p.flags {
				if cmd.Flags().Changed(name) {
					return usagef("--content is the whole content: it goes without --%s", name)
				}
			}
		}
		return o.propose(cmd.Context(), p)
	}
	cmd.Flags().StringVar(&p.file, "content", "", "JSON file of the exact content, instead of flags (docs/formats.md)")
	cmd.Flags().StringVar(&p.expires, "expires", "24h", "when the proposal ends if it was not enacted: from now, as 24h, or a time, as 2026-11-30T12:00:00Z")
	return o.signing(cmd)
}

// propose makes a document, signs it, and sends it.
func (o *officer) propose(ctx context.Context, p *proposing) error {
	switch {
	case o.as == "":
		return usagef("--as: say by which name the log knows you")
	case o.offline && o.write == "":
		return usagef("--out: name a file for the document; the signature gets its name and .sig")
	case o.export != "" && !o.offline:
		return usagef("nothing is sent to an export: add --offline, or leave --export out")
	}
	expires, err := expiry(p.expires, time.Now())
	if err != nil {
		return err
	}
	g, a, err := o.govern(ctx)
	if err != nil {
		return err
	}
	defer g.done()
	s, err := o.draft(g, p, expires)
	if err != nil {
		return err
	}
	d := s.look(g)
	d.Missing, d.Needed = "", 0 // of what is not proposed yet
	if err := o.present(d); err != nil {
		return err
	}
	files := o.files("", s.document)
	if err := files.check(o.offline); err != nil {
		return err
	}
	armored, err := o.signed(ctx, s.document, ceremony.Approve, &g.state)
	if err != nil {
		return err
	}
	if err := files.put(armored, o.offline); err != nil {
		return err
	}
	if !o.offline {
		return o.send(ctx, a, s, d, armored)
	}
	if o.json {
		return o.wrote(s, files, ceremony.Approve)
	}
	_, err = fmt.Fprintf(o.out, "nothing was sent; the document is in %s, and the signature of %s in %s\nbring it with: bulla ceremony propose --document %[1]s --signature %[3]s\n", files.path, o.as, files.signature)
	return err
}

// draft makes the document, and refuses what the log would.
func (o *officer) draft(g *governance, p *proposing, expires int64) (*subject, error) {
	err := p.read()
	if p.file == "" {
		err = p.build(g)
	}
	if err != nil {
		return nil, err
	}
	document, err := g.state.Propose(p.content, o.as, g.head, expires)
	if err != nil {
		return nil, usagef("the proposal: %w", err)
	}
	s, err := readSubject(document)
	if err != nil {
		return nil, err
	}
	if err := g.state.Admits(s.proposal, here()); err != nil {
		if c := exitCode(err); c != exitIO {
			return nil, err
		}
		return nil, usagef("the log would refuse the proposal: %w", err)
	}
	if g.state.Already(s.proposal) {
		return nil, usagef("the proposal changes nothing: it is already so")
	}
	return s, nil
}

// read reads the content from its file, if there is one.
func (p *proposing) read() error {
	if p.file == "" {
		return nil
	}
	b, err := readFile(p.file)
	if err == nil {
		if b, err = record.Canonicalize(b, record.MaxDepth); err == nil {
			err = record.UnmarshalCanonical(b, p.content)
		}
		if err != nil {
			err = usagef("%s: not the content of the action: %w", p.file, err)
		}
	}
	return err
}

// expiry reads when a proposal ends, in ns since 1970, by this machine's clock, in whole seconds.
func expiry(text string, now time.Time) (int64, error) {
	at, err := time.Parse(time.RFC3339Nano, text)
	if d, e := time.ParseDuration(text); e == nil {
		at, err = now.Add(d).Truncate(time.Second), nil
	}
	switch {
	case err != nil:
		return 0, usagef("--expires: %q is neither a time from now, as 24h, nor one as 2026-11-30T12:00:00Z", text)
	case !at.After(now):
		return 0, usagef("--expires: %s is over", at.UTC().Format(time.RFC3339))
	case at.Sub(now) > maxExpires:
		return 0, usagef("--expires: a proposal is open for at most %d days", int(maxExpires/(24*time.Hour)))
	}
	return at.UnixNano(), nil
}

// bring sends a document and a signature that were made elsewhere.
func (o *officer) bring(ctx context.Context, document, signature string) error {
	s, err := subjectFile(document)
	if err != nil {
		return err
	}
	if s.proposal == nil {
		return usagef("%s approves a genesis, it proposes nothing: bring it with `bulla ceremony approve`", document)
	}
	armored, err := signatureFile(signature)
	if err != nil {
		return err
	}
	o.as = s.proposal.Proposer
	g, a, err := o.govern(ctx)
	if err != nil {
		return err
	}
	defer g.done()
	d := s.look(g)
	if err := o.present(d); err != nil {
		return err
	}
	return o.send(ctx, a, s, d, armored)
}

// proposed is what is printed with --json when a proposal was sent.
type proposed struct {
	api.Taken
	SHA256  string   `json:"sha256"` // of the document, hex
	Words   []string `json:"words"`  // of the same
	Changes []string `json:"changes"`
}

func (o *officer) send(ctx context.Context, a *appliance, s *subject, d *shownDocument, armored string) error {
	out := proposed{SHA256: d.SHA256, Words: d.Words, Changes: d.Changes}
	if err := a.post(ctx, "/v1/proposals", &ceremony.Proposed{Document: s.document, Signature: armored}, &out.Taken); err != nil {
		return err
	}
	if o.json {
		return o.printJSON(out)
	}
	return o.taken(&out.Taken, "proposed by "+o.as)
}

// hexHash reads a hash that a flag names.
func hexHash(flag, text string) (record.Hash, error) {
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != len(record.Hash{}) {
		return record.Hash{}, usagef("--%s: %q is not a SHA-256: %d hex digits", flag, clipped(text), 2*len(record.Hash{}))
	}
	return record.Hash(b), nil
}

// clipped is what a user wrote, for a message.
func clipped(s string) string { return printable(s, 100) }

// instant reads a time that a flag names, as documents have it.
func instant(flag, text string) (string, error) {
	at, err := time.Parse(time.RFC3339Nano, text)
	if err != nil || at.Unix() < 0 || at.Unix() > math.MaxInt64/int64(time.Second) {
		return "", usagef("--%s: %q is not a time, as 2026-11-30T12:00:00Z", flag, clipped(text))
	}
	return string(record.AppendTime(nil, at.UnixNano())), nil
}
