package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"bulla/attest"
	"bulla/ceremony"
	"bulla/internal/durable"
	"bulla/record"
	"bulla/tpm"
)

// preparedFile is the enrolment of a TPM that no log is sealed by yet, in the state directory.
const preparedFile = "tpm-prepared.json"

func tpmPrepareCommand() *cobra.Command {
	var config string
	var p TPMPlan
	pcr := defaultPCR
	c := &cobra.Command{
		Use:   "tpm-prepare --config FILE --auth FILE",
		Short: "Make attestation key and counter in another TPM, for officers to enrol it",
		Long: `When the machine has another TPM, or the old one was cleared, this makes an attestation key and a counter in it and writes their
evidence to the state directory. Nothing is sealed by it until officers have enrolled it: the command that proposes that is printed. --auth is as
tpm.auth in a genesis plan: a file for officers to take away, or "none".`,
		Example: "  bullad tpm-prepare --config /etc/bulla/bullad.toml --auth /media/officers/tpm-auth.toml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadConfig(config)
			if err != nil {
				return err
			}
			return prepareTPM(cmd.Context(), cfg, p, pcr, cmd.OutOrStdout())
		},
	}
	c.Flags().StringVar(&config, "config", "/etc/bulla/bullad.toml", "configuration file")
	c.Flags().StringVar(&p.Auth, "auth", "", "file for the TPM's owner and lockout authorisation, or none")
	c.Flags().IntVar(&pcr, "pcr", pcr, "the seal PCR")
	return c
}

// prepareTPM enrols the TPM, and keeps the enrolment for officers to decide on.
func prepareTPM(ctx context.Context, cfg *Config, p TPMPlan, pcr int, out io.Writer) (err error) {
	path := filepath.Join(cfg.State, preparedFile)
	if _, err := os.Lstat(path); err == nil {
		return usagef("%s is there already: a TPM is prepared; remove the file if it is not the machine's any more", path)
	}
	switch {
	case cfg.TPM.Device == "":
		return usagef("tpm.device: name the TPM in the configuration")
	case cfg.TPM.Roots == "":
		return usagef("tpm.roots: name the certificate authorities that the TPM's endorsement key must come from")
	}
	if err := p.check(true); err != nil {
		return usage(err)
	}
	d, err := openDevices(ctx, cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	auth, err := p.open(ctx, d.tpm)
	if err != nil {
		return err
	}
	e, err := enrol(ctx, d.tpm, cfg, pcr)
	if err != nil {
		return unfinished(err)
	}
	if err := p.protect(ctx, d.tpm, e, auth, out); err != nil {
		return err
	}
	b, err := record.MarshalCanonical(e)
	if err != nil {
		return err
	}
	if err := durable.Create(path, b, 0o600); err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "prepared: %s %s\nfor the officers: bulla ceremony propose tpm.enrol --ak-name %x --ek %x --pcr %d\n", e.Manufacturer, e.Model, e.AKName, sha256.Sum256(e.EK), e.PCR)
	return err
}

// prepared reads what tpm-prepare made.
func prepared(state string) (*attest.Enrolment, error) {
	b, err := os.ReadFile(filepath.Join(state, preparedFile))
	if err != nil {
		return nil, refusedf(record.CodeInvalid, "no TPM is prepared: bullad tpm-prepare does that: %w", err)
	}
	e := new(attest.Enrolment)
	if err := record.UnmarshalCanonical(b, e); err != nil {
		return nil, refusedf(record.CodeInvalid, "%s: %w", preparedFile, err)
	}
	return e, nil
}

// enrolTPM has seals go on in the TPM that was prepared.
type enrolTPM struct {
	work
	*ceremony.TPMEnrol
}

func (j *enrolTPM) rehearse(ctx context.Context) ([]string, error) {
	e, _, err := j.open(ctx)
	if err != nil {
		return nil, err
	}
	return []string{fmt.Sprintf("seal with the TPM %s %s, firmware %s, attestation key %x, from its counter and PCR %d as they are then", e.Manufacturer, e.Model, e.Firmware, e.AKName, e.PCR)}, nil
}

// open attaches to the TPM that was prepared, if it is the one that is meant.
func (j *enrolTPM) open(ctx context.Context) (*attest.Enrolment, *tpm.Machine, error) {
	if j.a.sealer == nil || j.a.devices.tpm == nil {
		return nil, nil, refusedf(record.CodeInvalid, "the log has no TPM enrolled that could be replaced")
	}
	e, err := prepared(j.a.cfg.State)
	if err != nil {
		return nil, nil, err
	}
	if !bytes.Equal(e.AKName, j.AKName) || sha256.Sum256(e.EK) != j.EK || e.PCR != j.PCR {
		return nil, nil, refusedf(record.CodeConflict, "the TPM that is prepared is another: attestation key %x, endorsement key %x, PCR %d", e.AKName, sha256.Sum256(e.EK), e.PCR)
	}
	m, err := j.a.devices.tpm.Attach(ctx, e)
	if err != nil {
		return nil, nil, refusedf(record.CodeTPM, "%w", err)
	}
	return e, m, nil
}

func (j *enrolTPM) execute(ctx context.Context, did func(what, answer string), commit func(outcome any) error) error {
	e, m, err := j.open(ctx)
	if err != nil {
		return err
	}
	err = j.a.sealer.Enrol(ctx, *e, m, func(e *attest.Enrolment) error {
		did("read counter and PCR of the TPM", fmt.Sprintf("counter %d, PCR %d is %x; seals go on behind number %d", e.Counter.Value, e.PCR, e.Base[:], e.Seal))
		if err := commit(e); err != nil {
			return err
		}
		j.a.machine.Store(m)
		return nil
	})
	if err != nil {
		return err
	}
	return os.Remove(filepath.Join(j.a.cfg.State, preparedFile))
}
