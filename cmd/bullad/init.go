package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"bulla/attest"
	"bulla/ceremony"
	"bulla/hsm"
	"bulla/ledger"
	"bulla/record"
	"bulla/store"
	"bulla/tpm"
)

func initCommand() *cobra.Command {
	var config, plan string
	var dry bool
	c := &cobra.Command{
		Use:   "init --config FILE --plan FILE",
		Short: "Make a log: its key, the TPM's enrolment, and its genesis",
		Long: `Make one log from a plan. Everything is checked before a device is touched: the log's file and its key must not exist yet.
bullad must not be running. The leaf hash that is printed at the end is what auditors trust: keep it elsewhere.`,
		Example: "  bullad init --config /etc/bulla/bullad.toml --plan genesis.toml --dry-run\n  bullad init --config /etc/bulla/bullad.toml --plan genesis.toml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadConfig(config)
			if err != nil {
				return err
			}
			p, err := loadPlan(plan)
			if err != nil {
				return err
			}
			return initialize(cmd.Context(), cfg, p, dry, cmd.OutOrStdout())
		},
	}
	c.Flags().StringVar(&config, "config", "/etc/bulla/bullad.toml", "configuration file")
	c.Flags().StringVar(&plan, "plan", "", "genesis plan")
	c.Flags().BoolVar(&dry, "dry-run", false, "check everything and change nothing")
	must(c.MarkFlagRequired("plan"))
	return c
}

// initialize makes the log that the plan describes.
func initialize(ctx context.Context, cfg *Config, p *Plan, dry bool, out io.Writer) (err error) {
	lc, err := p.check(cfg)
	if err != nil {
		return usage(err)
	}
	g := p.draft
	sealer := filepath.Join(cfg.State, sealerFile)
	if _, err := os.Lstat(lc.File); !errors.Is(err, fs.ErrNotExist) {
		return finishInit(lc, sealer, dry, out)
	}
	d, err := openDevices(ctx, cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	keys, err := d.vacant(ctx, lc)
	if err != nil {
		return err
	}
	enrolled, err := ledger.Enrolled(sealer)
	if err != nil {
		return err
	}
	if d.tpm != nil && enrolled == nil && cfg.TPM.Roots == "" {
		return usagef("tpm.roots: name the certificate authorities that the TPM's endorsement key must come from")
	}
	var auth tpm.Auth
	if d.tpm != nil {
		if err := p.TPM.check(enrolled == nil); err != nil {
			return usage(err)
		}
		if auth, err = p.TPM.open(ctx, d.tpm); err != nil {
			return err
		}
	}
	if dry {
		_, err := fmt.Fprintf(out, "%s: plan and configuration are consistent; key %s is free, %s is free; nothing was changed\n", lc.Origin, lc.Key, lc.File)
		return err
	}
	// The enrolment is kept before anything else is made: if init stops from here on, the next one goes on with it.
	if g.TPM = enrolled; d.tpm != nil && enrolled == nil {
		if g.TPM, err = enrol(ctx, d.tpm, cfg, *p.Seal.PCR); err != nil {
			return unfinished(err)
		}
		if err := ledger.Keep(sealer, g.TPM); err != nil {
			return err
		}
	}
	if g.TPM != nil && d.tpm != nil {
		if err := p.TPM.protect(ctx, d.tpm, g.TPM, auth, out); err != nil {
			return err
		}
	}
	signer, err := keys.generate(ctx, hsm.Algorithm(p.Algorithm), g)
	if err != nil {
		return err
	}
	lcfg := ledger.Config{Origin: lc.Origin, Clock: &lateClock{}, Signer: signer.of}
	if err := ledger.Create(lc.File, lcfg, g); err != nil {
		return err
	}
	if g.TPM != nil {
		if err := ledger.Cover(sealer, lc.Origin); err != nil {
			return err
		}
	}
	return printGenesis(lc, out)
}

func printGenesis(lc LogConfig, out io.Writer) error {
	leaf, err := genesisLeaf(lc.File)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "%s: genesis leaf hash %x\nto read aloud: %s\n", lc.Origin, leaf[:], strings.Join(record.Words(leaf), " "))
	return err
}

// genesisLeaf reads back what auditors trust.
func genesisLeaf(path string) (record.Hash, error) {
	entry, err := genesisEntry(path)
	if err != nil {
		return record.Hash{}, err
	}
	return record.LeafHash(entry), nil
}

// genesisEntry is entry 0 of a log that no daemon has open.
func genesisEntry(path string) ([]byte, error) {
	s, err := store.OpenAtRest(path)
	if err != nil {
		return nil, err
	}
	entry, err := s.Entry(0)
	return entry, errors.Join(err, s.Close())
}

// genesisState is the governance that entry 0 establishes.
func genesisState(entry []byte) (ceremony.State, error) {
	e, err := record.ParseEntry(entry)
	if err != nil {
		return ceremony.State{}, fmt.Errorf("entry 0: %w", err)
	}
	return ceremony.State{}.Apply(e, record.LeafHash(entry))
}

func enrol(ctx context.Context, t *tpm.TPM, cfg *Config, pcr int) (*attest.Enrolment, error) {
	roots, err := os.ReadFile(cfg.TPM.Roots)
	if err != nil {
		return nil, usage(err)
	}
	e, err := t.Enrol(ctx, tpm.EnrolConfig{Roots: roots, PCR: pcr})
	if err != nil {
		return nil, fmt.Errorf("enrolling the TPM: %w", err)
	}
	return e, nil
}

// places are where a log's keys will be made.
type places struct {
	devices      *devices
	log, interop string
}

// made are a log's keys, as signers, by purpose.
type made map[string]ledger.Signer

func (m made) of(k ceremony.Key) (ledger.Signer, error) { return m[k.Purpose], nil }

// vacant checks that the places for the log's keys are free.
func (d *devices) vacant(ctx context.Context, lc LogConfig) (*places, error) {
	for _, uri := range []string{lc.Key, lc.Interop} {
		if uri == "" {
			continue
		}
		_, _, err := d.signer(ctx, uri)
		switch {
		case err == nil:
			return nil, usagef("key %s exists already: a genesis makes its own. Name another; or, if no log is signed with it because an init stopped before its end, delete it (pkcs11-tool --delete-object, tpm2_evictcontrol)", uri)
		case errors.Is(err, hsm.ErrNoKey), errors.Is(err, tpm.ErrNoKey):
		default:
			return nil, err
		}
	}
	return &places{d, lc.Key, lc.Interop}, nil
}

// generate makes the keys in their devices and notes them in the genesis.
func (p *places) generate(ctx context.Context, a hsm.Algorithm, g *ceremony.Genesis) (made, error) {
	m := made{}
	for _, k := range []struct {
		uri, purpose string
		algorithm    hsm.Algorithm
	}{{p.log, ceremony.PurposeLog, a}, {p.interop, ceremony.PurposeInterop, hsm.Ed25519}} {
		if k.uri == "" {
			continue
		}
		key, signer, err := p.devices.generate(ctx, k.uri, k.algorithm, k.purpose)
		if err != nil {
			return nil, err
		}
		m[k.purpose] = signer
		g.Keys = append(g.Keys, key)
	}
	return m, nil
}

// generate makes one key where the URI says, and returns what the device tells of it.
func (d *devices) generate(ctx context.Context, uri string, a hsm.Algorithm, purpose string) (k ceremony.Key, s ledger.Signer, err error) {
	if strings.HasPrefix(uri, tpmKeys) {
		if a != hsm.ECDSAP256 {
			return k, s, usagef("key %s: keys in the TPM are ecdsa-p256", uri)
		}
		if _, err := d.tpm.GenerateKey(ctx, uri); err != nil {
			return k, s, err
		}
		return d.describe(ctx, uri, a, purpose)
	}
	u, err := hsm.ParseURI(uri)
	if err != nil {
		return k, s, usage(err)
	}
	t, err := d.token(ctx, u)
	if err != nil {
		return k, s, err
	}
	if _, err := t.Generate(ctx, a, u.Object); err != nil {
		return k, s, err
	}
	return d.describe(ctx, uri, a, purpose)
}

// describe opens the key that is where the URI says, and returns what the device tells of it.
func (d *devices) describe(ctx context.Context, uri string, a hsm.Algorithm, purpose string) (k ceremony.Key, s ledger.Signer, err error) {
	signer, code, err := d.signer(ctx, uri)
	if err != nil {
		return k, s, err
	}
	k = ceremony.Key{Algorithm: string(a), Purpose: purpose}
	if k.SPKI, err = x509.MarshalPKIXPublicKey(signer.Public()); err != nil {
		return k, s, fmt.Errorf("key %s: %w", uri, err)
	}
	switch key := signer.(type) {
	case *tpm.Key:
		info, err := key.Info(ctx)
		if err != nil {
			return k, s, err
		}
		k.Attributes, err = flatten(info)
		return k, ledger.Signer{Signer: signer, Device: code}, err
	case *hsm.Key:
		u, err := hsm.ParseURI(uri)
		if err != nil {
			return k, s, usage(err)
		}
		t, err := d.token(ctx, u)
		if err != nil {
			return k, s, err
		}
		token, err := t.Info(ctx)
		if err != nil {
			return k, s, err
		}
		info := key.Info()
		if info.Algorithm != a {
			return k, s, fmt.Errorf("key %s is of %s, not %s", uri, info.Algorithm, a)
		}
		k.Attributes, err = flatten(token, info)
		return k, ledger.Signer{Signer: signer, Device: code}, err
	}
	return k, s, fmt.Errorf("key %s: no device tells of it", uri)
}

// flatten turns what devices tell into text, for evidence. The public key has a member of its own.
func flatten(values ...any) (map[string]string, error) {
	out := map[string]string{}
	for _, v := range values {
		b, err := json.Marshal(v)
		if err != nil {
			return nil, err
		}
		var m map[string]any
		if err := json.Unmarshal(b, &m); err != nil {
			return nil, err
		}
		for k, x := range m {
			if k != "spki" && k != "algorithm" && x != nil && fmt.Sprint(x) != "" {
				out[k] = fmt.Sprint(x)
			}
		}
	}
	return out, nil
}

// must is for what only a mistake in this program can break.
func must(err error) {
	if err != nil {
		panic(err)
	}
}
