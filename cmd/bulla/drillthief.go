package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"bulla/record"
	"bulla/verify"
)

// drillStolenKey has a thief of the HSM and its PIN rewrite history: once with the real keys, and then in all ways that the verifier's
// selftest knows.
func drillStolenKey(ctx context.Context, x *trying) error {
	if x.lab.tpmSigns {
		return x.notRun("the TPM signs this log, and gives its key to nobody; a dev appliance whose HSM signs has one to steal")
	}
	stolen, err := x.copy()
	if err != nil {
		return err
	}
	forged := filepath.Join(x.lab.work, "forged")
	if err := x.lab.forge(ctx, stolen, forged); err != nil {
		return err
	}
	policy, _, err := readPolicy(filepath.Join(x.lab.base, "auditor.policy"))
	if err != nil {
		return err
	}
	x.attack("A thief with the token and its PIN changed a sealed event in the exported evidence, chained all that follows anew, and signed the new head with the log's real keys (bullad dev sign). " +
		"Then the evidence was tampered with in every way of the selftest's catalogue that needs the signing key (docs/selftest.md): there a throwaway key stands in for the stolen one, and the verifier takes it for that.")
	x.expect(ctx, byVerifier, "bulla verify, which accepts the signatures, finds seal.head", func(ctx context.Context) (string, error) {
		return judgeForged(ctx, forged, policy)
	})
	x.expect(ctx, byVerifier, "bulla verify --selftest: each forgery is found by the rule that should", func(ctx context.Context) (string, error) {
		return judgeThieves(ctx, x.lab.evidence, policy)
	})
	x.res.Service = "not concerned: the forgeries were shown to an auditor"
	return nil
}

// judgeForged says by which rule a forged seal's head is found, if the forged head's signatures hold.
func judgeForged(ctx context.Context, dir string, policy *verify.Policy) (string, error) {
	src, err := verify.OpenDir(dir)
	if err != nil {
		return "", err
	}
	rep, err := verify.Run(ctx, src, policy, verify.Options{})
	if err = errors.Join(err, src.Close()); err != nil {
		return "", err
	}
	for _, c := range rep.Claims {
		if (c.Name == verify.ClaimSignatures || c.Name == verify.ClaimTree || c.Name == verify.ClaimChain) && c.Status != verify.Verified {
			return "", fmt.Errorf("the forgery is bad: %s: %s", c.Name, c.Status)
		}
	}
	for _, f := range rep.Findings {
		if f.Rule == "seal.head" && f.Index != nil {
			return fmt.Sprintf("entry %d: %s: %s", *f.Index, f.Rule, f.Meaning), nil
		}
	}
	return "", fmt.Errorf("the forged log is %s", rep.Verdict)
}

// judgeThieves runs the verifier's selftest, and says by which rules forgeries with the signing key were found, if all were.
func judgeThieves(ctx context.Context, dir string, policy *verify.Policy) (string, error) {
	src, err := verify.OpenDir(dir)
	if err != nil {
		return "", err
	}
	rep, err := verify.Selftest(ctx, src, policy, verify.SelftestOptions{})
	if err = errors.Join(err, src.Close()); err != nil {
		return "", err
	}
	if len(rep.Trials) == 0 {
		return "", errors.New("the evidence is not verified to begin with")
	}
	caught, tried := map[string]int{}, 0
	for i := range rep.Trials {
		m := &rep.Trials[i]
		switch {
		case m.Needs != verify.NeedsKey || m.Outcome == verify.NotApplicable:
			continue
		case m.Outcome != verify.Caught:
			return "", fmt.Errorf("%s is %s: %s", m.Name, m.Outcome, m.Why)
		case m.Finding == nil: // nothing contradicts: the answer was "not checkable", as it must be
			caught["not checkable"]++
		default:
			caught[m.Finding.Rule]++
		}
		tried++
	}
	var rules []string
	for _, rule := range sortedKeys(caught) {
		rules = append(rules, fmt.Sprintf("%s (%d)", rule, caught[rule]))
	}
	return fmt.Sprintf("%d forgeries: %s", tried, strings.Join(rules, ", ")), nil
}

// forge makes evidence of another history in a new directory: the exported one, with another mark, signed by the keys of a stolen
// appliance.
func (l *lab) forge(ctx context.Context, stolen, to string) error {
	src, err := verify.OpenDir(l.evidence)
	if err != nil {
		return err
	}
	raw, err := l.rewrite(ctx, src)
	if err = errors.Join(err, src.Close()); err != nil {
		return err
	}
	tree, err := growTree(raw)
	if err != nil {
		return err
	}
	root, err := tlog.TreeHash(int64(len(raw)), tree)
	if err != nil {
		return err
	}
	head := record.Checkpoint{Origin: l.origin, Size: uint64(len(raw)), Root: root}
	signed, err := l.signStolen(ctx, stolen, head)
	if err != nil {
		return err
	}
	out, err := verify.CreateDir(to)
	if err != nil {
		return err
	}
	if err := out.Put("checkpoint", signed); err != nil {
		return err
	}
	err = verify.Tiles(head.Size, func(t tlog.Tile) error {
		var data []byte
		if t.L >= 0 {
			b, err := tlog.ReadTileData(t, tree)
			if err != nil {
				return err
			}
			data = b
		} else {
			first := int(t.N) * record.TileWidth
			for _, e := range raw[first : first+t.W] {
				data = record.AppendBundle(data, e)
			}
		}
		return out.Put(record.TilePath(t), data)
	})
	return errors.Join(err, out.Sync())
}

// rewrite returns the entries of exported evidence, with another mark, each chained to the one before.
func (l *lab) rewrite(ctx context.Context, src verify.Source) ([][]byte, error) {
	signed, err := readEvidence(ctx, src, "checkpoint")
	if err != nil {
		return nil, err
	}
	head, err := headOf(signed)
	if err != nil {
		return nil, err
	}
	other := []byte(l.mark)
	other[0] ^= 1
	var raw [][]byte
	var prev record.Hash
	err = verify.Tiles(head.Size, func(t tlog.Tile) error {
		if t.L >= 0 {
			return nil
		}
		b, err := readEvidence(ctx, src, record.TilePath(t))
		if err != nil {
			return err
		}
		bundle, err := record.ParseBundle(b)
		if err != nil {
			return err
		}
		for _, b := range bundle {
			e, err := record.ParseEntry(b)
			if err != nil {
				return err
			}
			e.Prev, e.Body = prev, bytes.ReplaceAll(e.Body, []byte(l.mark), other)
			if b, err = e.Append(nil); err != nil {
				return err
			}
			raw, prev = append(raw, b), record.LeafHash(b)
		}
		return nil
	})
	return raw, err
}

func readEvidence(ctx context.Context, src verify.Source, name string) ([]byte, error) {
	f, err := src.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, answerLimit))
	return b, errors.Join(err, f.Close())
}

// growTree hashes entries into a tree.
func growTree(raw [][]byte) (tlog.HashReader, error) {
	var stored []tlog.Hash
	tree := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		out := make([]tlog.Hash, len(indexes))
		for i, x := range indexes {
			out[i] = stored[x]
		}
		return out, nil
	})
	for i, b := range raw {
		more, err := tlog.StoredHashes(int64(i), b, tree)
		if err != nil {
			return nil, err
		}
		stored = append(stored, more...)
	}
	return tree, nil
}

// signStolen has the keys of a stolen appliance sign a head.
func (l *lab) signStolen(ctx context.Context, stolen string, head record.Checkpoint) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, drillPatience)
	defer cancel()
	c := exec.CommandContext(ctx, l.bullad, "dev", "sign", "--dir", stolen, "--log", l.log)
	var says lastWords
	c.Stdin, c.Stderr = strings.NewReader(head.Text()), &says
	signed, err := c.Output()
	if err != nil {
		return nil, fmt.Errorf("signing with the stolen keys: %w: %s", err, printable(says.String(), 500))
	}
	return signed, nil
}
