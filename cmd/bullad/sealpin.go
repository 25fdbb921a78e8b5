package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"bulla/attest"
	"bulla/ceremony"
	"bulla/hsm"
	"bulla/internal/durable"
	"bulla/ledger"
	"bulla/tpm"
)

// sealPINOptions says what seal-pin does.
type sealPINOptions struct {
	file     string // of the [[pin]]; may be absent where there is one
	source   string // of the PIN
	generate bool
	approve  bool
	values   string // file
}

func sealPINCommand() *cobra.Command {
	var config string
	var o sealPINOptions
	c := &cobra.Command{
		Use:   "seal-pin --config FILE --pin-source SOURCE | --approve",
		Short: "Have the TPM keep an HSM token's PIN",
		Long: `Seal the PIN of a [[pin]] section in the TPM, to the PCR values of now: bullad then starts without the PIN on disk while the machine boots
what it does now. The source of the PIN is file:PATH (0600), credential:NAME (systemd) or fd:N (an open file descriptor); never the PIN itself.
Sealing again ends all approvals of before.

With --approve, further PCR values are approved by the approval key, those of now or those of a file, so that a planned update does not lock
bullad out. The file has a line "PCR: HEX" for each PCR that will change, as tpm2_pcrread sha256:... prints them. When the values of now are not
approved yet, the PIN is needed: give its source.`,
		Example: `  bullad seal-pin --config /etc/bulla/bullad.toml --pin-source file:/run/pin --generate
  bullad seal-pin --config /etc/bulla/bullad.toml --approve --values after-the-update
  bullad seal-pin --config /etc/bulla/bullad.toml --approve --pin-source fd:3 3</run/pin`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadConfig(config)
			if err != nil {
				return err
			}
			return sealPIN(cmd.Context(), cfg, o, cmd.OutOrStdout())
		},
	}
	c.Flags().StringVar(&config, "config", "/etc/bulla/bullad.toml", "configuration file")
	c.Flags().StringVar(&o.file, "file", "", "file of the [[pin]] section, where there are several")
	c.Flags().StringVar(&o.source, "pin-source", "", "where the PIN is: file:PATH, credential:NAME or fd:N")
	c.Flags().BoolVar(&o.generate, "generate", false, "make the approval key, which must not exist yet")
	c.Flags().BoolVar(&o.approve, "approve", false, "approve PCR values for the PIN that is sealed")
	c.Flags().StringVar(&o.values, "values", "", "with --approve: file of expected PCR values; PCRs that it does not name are as now")
	return c
}

// sealPIN seals a PIN, or approves PCR values for one that is sealed.
func sealPIN(ctx context.Context, cfg *Config, o sealPINOptions, out io.Writer) (err error) {
	p, err := cfg.pin(o.file)
	if err != nil {
		return err
	}
	switch {
	case o.approve && o.generate, !o.approve && o.values != "":
		return usagef("--generate is for sealing, --values for --approve")
	case !o.approve && o.source == "":
		return usagef("--pin-source: say where the PIN is: file:PATH, credential:NAME or fd:N")
	}
	var given givenPIN
	if o.source != "" {
		pin, err := readGivenPIN(o.source)
		if err != nil {
			return err
		}
		defer clear(pin) // after the tokens are closed, which could ask for it until then
		given = givenPIN{source: p.source(), pin: pin}
	}
	d, err := openDevices(ctx, cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	d.given = given
	if o.approve {
		return d.approvePCRs(ctx, p, o.values, out)
	}
	return d.sealPIN(ctx, cfg, p, o.generate, out)
}

// readGivenPIN reads a PIN from where an operator says it is. Errors never repeat what he wrote: it may have been the PIN.
func readGivenPIN(source string) ([]byte, error) {
	if n, ok := strings.CutPrefix(source, "fd:"); ok {
		fd, err := strconv.ParseUint(n, 10, 10)
		if err != nil {
			return nil, usagef("--pin-source: fd:N needs the number of an open file descriptor")
		}
		return readPINFrom(os.NewFile(uintptr(fd), "fd:"+n))
	}
	if !strings.HasPrefix(source, "file:") && !strings.HasPrefix(source, "credential:") && !filepath.IsAbs(source) {
		return nil, usagef("--pin-source: say where the PIN is: file:PATH, credential:NAME or fd:N; never the PIN itself")
	}
	pin, err := hsm.ReadPIN(source)
	return pin, usage(err)
}

// readPINFrom reads the one line that is there.
func readPINFrom(f *os.File) ([]byte, error) {
	buf := make([]byte, 257) // more than any PIN and a newline
	n, err := io.ReadFull(f, buf)
	if err = errors.Join(ignoreEOF(err), f.Close()); err != nil {
		clear(buf)
		return nil, usagef("--pin-source: %w", err)
	}
	pin := bytes.TrimSuffix(buf[:n], []byte("\n"))
	if len(pin) == 0 || n == len(buf) || bytes.ContainsAny(pin, "\x00\r\n") {
		clear(buf)
		return nil, usagef("--pin-source: it must hold the PIN alone, in one line")
	}
	return pin, nil
}

func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return err
}

// sealPIN tries the given PIN on every token that it is for, then has the TPM seal it.
func (d *devices) sealPIN(ctx context.Context, cfg *Config, p *PINConfig, generate bool, out io.Writer) error {
	sealPCR, err := sealPCR(cfg)
	if err != nil {
		return err
	}
	if err := tpm.CheckSelection(p.PCRs, sealPCR); err != nil {
		return usagef("pin.pcrs: %w", err)
	}
	for _, uri := range cfg.keyURIs() {
		u, err := hsm.ParseURI(uri)
		if err != nil || u.PINSource != p.source() {
			continue // not of this PIN
		}
		if _, err := d.token(ctx, u); err != nil {
			return err
		}
	}
	if generate {
		if err := d.generateApprover(ctx, p.Approver); err != nil {
			return err
		}
	}
	key, err := d.approver(ctx, p)
	if err != nil {
		return err
	}
	roots, err := os.ReadFile(cfg.TPM.Roots)
	if err != nil {
		return usage(err)
	}
	s, err := d.tpm.Seal(ctx, tpm.SecretConfig{Roots: roots, PCRs: p.PCRs, SealPCR: sealPCR, Approver: key}, d.given.pin)
	if err != nil {
		return err
	}
	if err := p.write(s); err != nil {
		return err
	}
	sum := sha256.Sum256(s.Approver)
	_, err = fmt.Fprintf(out, "the TPM keeps the PIN, and gave it back once: %s\napproval key (SHA-256 of its SPKI): %x\napproved:\n%s", p.File, sum[:], printPCRs(s.Approvals[0].PCRs))
	return err
}

// sealPCR is the machine's seal PCR; before the machine is enrolled, what a plan has that names none.
func sealPCR(cfg *Config) (int, error) {
	e, err := ledger.Enrolled(filepath.Join(cfg.State, sealerFile))
	if err != nil || e == nil {
		return defaultPCR, err
	}
	return e.PCR, nil
}

// generateApprover makes the approval key.
func (d *devices) generateApprover(ctx context.Context, uri string) error {
	_, _, err := d.signer(ctx, uri)
	switch {
	case err == nil:
		return usagef("the approval key %s exists already: leave out --generate, or name another", uri)
	case !errors.Is(err, hsm.ErrNoKey):
		return err
	}
	_, _, err = d.generate(ctx, uri, hsm.ECDSAP256, ceremony.PurposePCR)
	return err
}

func (d *devices) approver(ctx context.Context, p *PINConfig) (crypto.Signer, error) {
	key, _, err := d.signer(ctx, p.Approver)
	if errors.Is(err, hsm.ErrNoKey) {
		return nil, usagef("the approval key: %w; --generate makes it", err)
	}
	if err != nil {
		return nil, fmt.Errorf("the approval key: %w", err)
	}
	return key, nil
}

// approvePCRs adds an approval to the sealed PIN.
func (d *devices) approvePCRs(ctx context.Context, p *PINConfig, file string, out io.Writer) error {
	s, err := p.read()
	if err != nil {
		return err
	}
	values, err := d.tpm.PCRs(ctx, s.Selection())
	if err != nil {
		return err
	}
	if file != "" {
		if err := expected(file, values); err != nil {
			return err
		}
	}
	key, err := d.approver(ctx, p)
	if err != nil {
		return err
	}
	added, err := s.Approve(key, values)
	if err != nil {
		return usage(err)
	}
	if !added {
		_, err := fmt.Fprintf(out, "approved already; nothing was changed:\n%s", printPCRs(values))
		return err
	}
	if err := p.write(s); err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "approved, until the PIN is sealed again:\n%s", printPCRs(values))
	return err
}

// expected puts the values of a file in the place of those that PCRs have now.
func expected(path string, values []attest.PCRValue) error {
	f, err := os.Open(path)
	if err != nil {
		return usage(err)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxConfig))
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("reading %s: %w", path, err)
	}
	var seen []int
	n := 0
	for line := range strings.Lines(string(b)) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || line == "sha256:" || strings.HasPrefix(line, "#") {
			continue
		}
		v, err := parsePCR(line)
		if err != nil {
			return usagef("%s:%d: %w", path, n, err)
		}
		i := slices.IndexFunc(values, func(x attest.PCRValue) bool { return x.Index == v.Index })
		switch {
		case i < 0:
			return usagef("%s:%d: the PIN is not sealed to PCR %d", path, n, v.Index)
		case slices.Contains(seen, v.Index):
			return usagef("%s:%d: PCR %d is there twice", path, n, v.Index)
		}
		seen = append(seen, v.Index)
		values[i] = v
	}
	if len(seen) == 0 {
		return usagef(`%s: no values; it needs lines "PCR: HEX"`, path)
	}
	return nil
}

// parsePCR reads "7: HEX", in the way of tpm2_pcrread "7 : 0xHEX".
func parsePCR(line string) (v attest.PCRValue, err error) {
	index, value, _ := strings.Cut(line, ":")
	if v.Index, err = strconv.Atoi(strings.TrimSpace(index)); err != nil {
		return v, fmt.Errorf(`%.80q is not "PCR: HEX"`, line)
	}
	value = strings.TrimPrefix(strings.TrimSpace(value), "0x")
	b, err := hex.DecodeString(value)
	if err != nil || len(b) != len(v.Value) {
		return v, fmt.Errorf("PCR %d: %.80q is not %d hex digits", v.Index, value, 2*len(v.Value))
	}
	copy(v.Value[:], b)
	return v, nil
}

func printPCRs(values []attest.PCRValue) string {
	var b strings.Builder
	for _, v := range values {
		fmt.Fprintf(&b, "  %2d: %x\n", v.Index, v.Value[:])
	}
	return b.String()
}

// write replaces the sealed PIN's file.
func (p *PINConfig) write(s *tpm.Secret) error {
	b, err := s.Encode()
	if err != nil {
		return err
	}
	return durable.Replace(p.File, b, 0o600)
}
