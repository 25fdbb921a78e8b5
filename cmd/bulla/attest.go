package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"bulla/api"
	"bulla/attest"
	"bulla/internal/durable"
	"bulla/record"
	"bulla/verify"
)

func (t *tool) attestCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "attest",
		Short: "Find out whether seals are by a genuine TPM, and what it measured",
		Long: `Seals are signed by a TPM's attestation key. The log says, in its genesis or in the ceremony that enrolled another TPM since, that the key is
held by the TPM whose endorsement key the maker certified; credential activation proves it:

  challenge-new     the auditor, anywhere, makes a credential that only that TPM can open
  activate          the appliance has its TPM open it, and records what came of it in its logs
  challenge-check   the auditor judges the answer

What was measured while the machine started is in the log too, and boots lists it.

The two documents travel by any way; neither is secret.`,
		Example: "  bulla attest challenge-new evidence --ek-roots makers.pem --out challenge.json\n  bulla attest activate challenge.json --out answer.json\n  bulla attest challenge-check challenge.json answer.json evidence --ek-roots makers.pem",
		Args:    cobra.ArbitraryArgs,
		RunE:    help,
	}
	cmd.AddCommand(t.challengeNewCommand(), t.activateCommand(), t.challengeCheckCommand(), t.bootsCommand())
	return cmd
}

// trusted is where what an auditor trusts of a TPM comes from.
type trusted struct{ policy, roots string }

func (x *trusted) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&x.policy, "policy", "", "policy file with ek-root lines; the log's genesis, and ak lines, are held against it too")
	cmd.Flags().StringVar(&x.roots, "ek-roots", "", "PEM file of the authorities that certify TPMs' endorsement keys")
}

// read reads it.
func (x *trusted) read() (*verify.Policy, error) {
	p := &verify.Policy{}
	if x.policy != "" {
		text, err := os.ReadFile(x.policy)
		if err != nil {
			return nil, usagef("%w", err)
		}
		if p, err = verify.ParsePolicy(text); err != nil {
			return nil, usagef("%s: %w", x.policy, err)
		}
	}
	if x.roots != "" {
		roots, err := readRoots(x.roots)
		if err != nil {
			return nil, err
		}
		p.EKRoots = append(p.EKRoots, roots...)
	}
	if len(p.EKRoots) == 0 {
		return nil, usagef("say who certifies TPMs: --ek-roots FILE, or --policy FILE with ek-root lines; without that, anybody's software is as good as a TPM")
	}
	return p, nil
}

func (t *tool) challengeNewCommand() *cobra.Command {
	var trust trusted
	var out string
	cmd := &cobra.Command{
		Use:   "challenge-new [DIR]",
		Short: "Make a credential that only the enrolled TPM can open",
		Long: `challenge-new reads the enrolment of the TPM in force from the log in DIR, an export, or of a running appliance: from the genesis on it
follows what officers changed. It checks that the maker certifies the TPM's endorsement key, and writes a challenge. Keep the challenge: the
answer is judged by it. It holds no secret that you could lose.

A policy with a genesis makes sure that it is that log. If its ak lines name an old TPM, that is said, and the challenge is made for the new one.`,
		Example: "  bulla attest challenge-new evidence --ek-roots tpm-makers.pem --out challenge.json",
		Args:    args(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, given []string) error {
			p, err := trust.read()
			if err != nil {
				return err
			}
			g, err := t.inForce(cmd.Context(), given, p)
			if err != nil {
				return err
			}
			e := g.state.Policy.TPM
			c, err := attest.NewCredentialChallenge(e)
			if err != nil {
				return coded(exitNotCheckable, err)
			}
			b, err := c.Encode()
			if err != nil {
				return err
			}
			if err := t.putDocument(out, b); err != nil {
				return err
			}
			_, err = fmt.Fprintf(t.err, "bulla: a challenge for the TPM %s %s with the attestation key %x; next: bulla attest activate\n", printable(e.Manufacturer, 40), printable(e.Model, 40), e.AKName)
			return err
		},
	}
	trust.flags(cmd)
	cmd.Flags().StringVar(&out, "out", "", "file to make; it must not exist (default: standard output)")
	return cmd
}

func (t *tool) activateCommand() *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use:   "activate CHALLENGE",
		Short: "Have the appliance's TPM open a challenge's credential",
		Long: `activate hands a challenge to the running appliance. Its TPM opens the credential, the appliance records challenge and secret in every log,
and the answer is for the auditor.`,
		Example: "  bulla attest activate challenge.json --out answer.json",
		Args:    args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, given []string) error {
			challenge, err := readDocument(given[0])
			if err != nil {
				return err
			}
			a, err := t.reach(cmd.Context())
			if err != nil {
				return err
			}
			b, err := a.do(cmd.Context(), http.MethodPost, "/v1/activation", "", bytes.NewReader(challenge))
			if err != nil {
				return err
			}
			var done api.Activated
			if err := json.Unmarshal(b, &done); err != nil {
				return coded(exitUnavailable, fmt.Errorf("the appliance's answer: %w", err))
			}
			answer, err := record.Canonicalize(done.Activation, record.MaxDepth)
			if err != nil {
				return coded(exitUnavailable, fmt.Errorf("the appliance's answer: %w", err))
			}
			if err := t.putDocument(out, answer); err != nil {
				return err
			}
			for _, name := range sortedKeys(done.Entries) {
				if _, err := fmt.Fprintf(t.err, "bulla: recorded as entry %d of log %s\n", done.Entries[name], printable(name, 80)); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "file to make; it must not exist (default: standard output)")
	return cmd
}

func (t *tool) challengeCheckCommand() *cobra.Command {
	var trust trusted
	cmd := &cobra.Command{
		Use:   "challenge-check CHALLENGE ANSWER [DIR]",
		Short: "Judge the answer to a challenge",
		Long: `challenge-check needs the challenge as its maker kept it, the answer, and the enrolment that the challenge was made for: the one in force in
the log in DIR, an export, or of a running appliance. It prints the ak line for your policy: seals by that key are then this TPM's, whatever
the log says.

Exit codes: 0 the TPM holds both keys; 1 it does not, or the answer was changed; 2 it cannot be told, as when the TPM was replaced since.`,
		Example: "  bulla attest challenge-check challenge.json answer.json evidence --ek-roots tpm-makers.pem",
		Args:    args(cobra.RangeArgs(2, 3)),
		RunE: func(cmd *cobra.Command, given []string) error {
			p, err := trust.read()
			if err != nil {
				return err
			}
			b, err := readDocument(given[0])
			if err != nil {
				return err
			}
			c, err := attest.ParseCredentialChallenge(b)
			if err != nil {
				return usagef("%s: %w", given[0], err)
			}
			if b, err = readDocument(given[1]); err != nil {
				return err
			}
			g, err := t.inForce(cmd.Context(), given[2:], p)
			if err != nil {
				return err
			}
			return t.challengeCheck(c, b, g)
		},
	}
	trust.flags(cmd)
	return cmd
}

// activation is what challenge-check prints with --json.
type activation struct {
	Verdict      string `json:"verdict"`
	AK           string `json:"ak"`
	Manufacturer string `json:"manufacturer,omitempty"`
	Model        string `json:"model,omitempty"`
}

// challengeCheck judges an answer to a challenge that was made for the TPM in force, whose endorsement key is certified.
func (t *tool) challengeCheck(c *attest.CredentialChallenge, answer []byte, g *governance) error {
	e := g.state.Policy.TPM
	err := c.Names(e)
	if err != nil && slices.ContainsFunc(g.tpms, func(old enrolled) bool { return c.Names(old.tpm) == nil }) {
		return coded(exitNotCheckable, fmt.Errorf("the challenge was made for a TPM that officers replaced, by entry %d: make one for the new TPM, with bulla attest challenge-new", g.tpms[len(g.tpms)-1].entry))
	}
	if err != nil {
		return coded(exitTampered, fmt.Errorf("the log's TPM is not the one that the challenge was made for: %w", err))
	}
	a, err := attest.ParseActivation(answer)
	if err != nil {
		return coded(exitTampered, fmt.Errorf("the answer: %w", err))
	}
	if err := a.Answers(c); err != nil {
		return coded(exitTampered, fmt.Errorf("the answer does not hold: %w", err))
	}
	if t.json {
		return t.printJSON(activation{string(verify.OutcomeVerified), hex.EncodeToString(e.AKName), e.Manufacturer, e.Model})
	}
	_, err = fmt.Fprintf(t.out, "verified: the TPM %s %s, which its maker certifies, holds the attestation key\nak %x\n", printable(e.Manufacturer, 40), printable(e.Model, 40), e.AKName)
	return err
}

// inForce is what governs a log, from an export or of a running appliance, whose TPM in force the policy's authorities certify. Where the policy
// has the genesis, that says who may replace keys and TPM; else the keys that the policy has must be in force.
func (t *tool) inForce(ctx context.Context, dir []string, p *verify.Policy) (*governance, error) {
	var g *governance
	var err error
	if len(dir) > 0 {
		g, err = t.exported(ctx, dir[0])
	} else {
		var a *appliance
		if a, err = t.connect(ctx); err == nil {
			g, err = a.governance(ctx)
		}
	}
	if err != nil {
		return nil, err
	}
	defer g.done()
	e, err := g.tpm()
	if err == nil {
		err = g.pinned(p)
	}
	if err == nil {
		err = g.signedFor(p)
	}
	if err != nil {
		return nil, err
	}
	known := genesisOf(p, g.state.Policy.Origin) != nil
	if err := g.endorsed(p, e, known); err != nil {
		return nil, err
	}
	err = g.pinnedAK(p, known)
	if errors.Is(err, errAnotherTPM) { // whether it is right is what a challenge finds out
		_, err = fmt.Fprintf(t.err, "bulla: %v\n", err)
	}
	return g, err
}

// signedFor checks that keys which a policy says the log has, and which governance does not know, signed the log's head.
func (g *governance) signedFor(p *verify.Policy) error {
	vkeys, err := logKeys(p, &g.state)
	if err != nil {
		return err
	}
	known := g.state.History()
	for _, vkey := range vkeys {
		if slices.Contains(known, vkey) {
			continue
		}
		v, err := record.NewVerifier(vkey)
		if err == nil {
			_, _, err = record.OpenCheckpoint(g.signed, v)
		}
		if err != nil {
			return coded(exitTampered, fmt.Errorf("the log's head is not signed by the policy's key %.100s: %w", vkey, err))
		}
	}
	return nil
}

// exportedSize is the size of the log that an export is of.
func exportedSize(ctx context.Context, src verify.Source) (uint64, error) {
	text, err := readSource(ctx, src, "checkpoint", record.MaxCheckpoint)
	if err != nil {
		return 0, err
	}
	body, _, _ := strings.Cut(string(text), "\n\n")
	head, err := record.ParseCheckpoint(body + "\n")
	if err != nil {
		return 0, fmt.Errorf("the export's checkpoint: %w", err)
	}
	if head.Size == 0 {
		return 0, errors.New("the export has no entries")
	}
	return head.Size, nil
}

// putDocument writes a document to a new file, or to standard output. It ends its only line.
func (t *tool) putDocument(out string, b []byte) error {
	b = append(b, '\n')
	if out == "" {
		_, err := t.out.Write(b)
		return err
	}
	err := durable.Create(out, b, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return usagef("%s exists: name another file", out)
	}
	return err
}

// readDocument reads a document that putDocument wrote.
func readDocument(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, usagef("%w", err)
	}
	b, err := io.ReadAll(io.LimitReader(f, attest.MaxActivation+2))
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, usagef("%w", err)
	}
	return bytes.TrimSuffix(b, []byte("\n")), nil
}
