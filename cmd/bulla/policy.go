package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"bulla/ceremony"
	"bulla/internal/durable"
	"bulla/record"
	"bulla/verify"
)

func (t *tool) policyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "policy",
		Short:   "Make the file that says what an auditor trusts",
		Example: "  bulla policy init --out auditor.policy",
		Args:    cobra.ArbitraryArgs,
		RunE:    help,
	}
	var out, roots string
	initialize := &cobra.Command{
		Use:   "init",
		Short: "Make a policy of what a running appliance says of itself",
		Long: `init asks a running appliance for its verifier keys and its genesis, and makes a policy of them.

What it writes is worth what the way to the appliance is worth: compare the genesis hash and the keys with what the ceremony's minutes
or the operator's records say before trusting it. Do this once, when the log is made, and keep the file elsewhere.

--ek-roots adds the authorities that certify TPMs' endorsement keys, from their makers: the log's TPM must then be certified by one.`,
		Example: "  bulla policy init --out auditor.policy\n  bulla policy init --ek-roots tpm-makers.pem --out auditor.policy",
		Args:    args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			a, err := t.connect(cmd.Context())
			if err != nil {
				return err
			}
			return t.policyInit(cmd.Context(), a, roots, out)
		},
	}
	initialize.Flags().StringVar(&out, "out", "", "file to make; it must not exist (default: standard output)")
	initialize.Flags().StringVar(&roots, "ek-roots", "", "PEM file of the authorities that certify TPMs' endorsement keys")
	cmd.AddCommand(initialize)
	return cmd
}

func (t *tool) policyInit(ctx context.Context, a *appliance, roots, out string) error {
	b, err := a.entry(ctx, 0)
	if err != nil {
		return err
	}
	p, words, err := policyOf(b)
	if err != nil {
		return coded(exitUnavailable, fmt.Errorf("the appliance's genesis: %w", err))
	}
	if roots != "" {
		if p.EKRoots, err = readRoots(roots); err != nil {
			return err
		}
		if err := a.certified(ctx, p, roots); err != nil {
			return err
		}
	}
	text, err := p.MarshalText()
	if err != nil {
		return coded(exitUnavailable, err)
	}
	head := fmt.Sprintf("# What the appliance of log %s said of itself. Compare it with the minutes before trusting it.\n# The genesis in words: %s\n", a.log.Origin, words)
	text = append([]byte(head), text...)
	if out == "" {
		_, err = t.out.Write(text)
	} else if err = durable.Create(out, text, 0o644); errors.Is(err, fs.ErrExist) {
		return usagef("%s exists: a policy is made once; remove it first if you mean it", out)
	}
	if err != nil {
		return err
	}
	fmt.Fprintln(t.err, "bulla: this policy rests on the appliance's own word: compare the genesis hash with the minutes of the ceremony")
	return nil
}

// certified checks that an authority that a policy took from a file certifies the TPM in force.
func (a *appliance) certified(ctx context.Context, p *verify.Policy, roots string) error {
	g, err := a.governance(ctx)
	if err == nil {
		err = g.pinned(p)
	}
	if err != nil {
		return err
	}
	tpm := g.state.Policy.TPM
	if tpm == nil {
		err = errors.New("it has none")
	} else {
		err = p.Endorses(tpm)
	}
	if err != nil {
		return coded(exitTampered, fmt.Errorf("the appliance's TPM, by the authorities in %s: %w", roots, err))
	}
	return nil
}

// maxRoots bounds a file of authorities' certificates, in bytes.
const maxRoots = 1 << 20

// readRoots reads the self-signed certificates in a PEM file. Those between them and an endorsement key are in the enrolment.
func readRoots(path string) (roots [][]byte, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, usagef("%w", err)
	}
	if len(text) > maxRoots {
		return nil, usagef("%s: %d bytes are more than %d", path, len(text), maxRoots)
	}
	for b, rest := pem.Decode(text); b != nil; b, rest = pem.Decode(rest) {
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return nil, usagef("%s: %w", path, err)
		}
		if bytes.Equal(c.RawIssuer, c.RawSubject) {
			roots = append(roots, c.Raw)
		}
	}
	if len(roots) == 0 {
		return nil, usagef("%s: no self-signed certificate in PEM form", path)
	}
	return roots, nil
}

// policyOf is the policy that trusts a log from its genesis on, and the genesis's hash in words.
func policyOf(entry []byte) (*verify.Policy, string, error) {
	e, err := record.ParseEntry(entry)
	if err != nil {
		return nil, "", err
	}
	leaf := record.LeafHash(entry)
	state, err := ceremony.State{}.Apply(e, leaf)
	if err != nil {
		return nil, "", err
	}
	p := &verify.Policy{Genesis: map[string]record.Hash{e.Log: leaf}, NoSeals: state.Policy.TPM == nil}
	if p.VKeys, err = state.VKeys(); err != nil {
		return nil, "", err
	}
	words := ""
	for i, w := range record.Words(leaf) {
		if i > 0 {
			words += " "
		}
		words += w
	}
	return p, words, nil
}
