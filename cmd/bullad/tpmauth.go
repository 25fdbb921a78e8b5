package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"bulla/attest"
	"bulla/internal/durable"
	"bulla/tpm"
)

// TPMPlan says what init does about the TPM's own authorisation.
type TPMPlan struct {
	Auth string `toml:"auth"` // file that officers take away; or leaveOpen
}

// leaveOpen has init leave the TPM's authorisation as it is.
const leaveOpen = "none"

// authFile is what officers keep: authorisation of owner and lockout, as the TPM takes them.
type authFile struct {
	Owner   string `toml:"owner"`
	Lockout string `toml:"lockout"`
}

// check refuses a plan that does not say who is to have the TPM, where that is decided.
func (p TPMPlan) check(enrols bool) error {
	switch {
	case p.Auth == "" && enrols:
		return fmt.Errorf("tpm.auth: name a file for the TPM's owner and lockout authorisation, on a medium that officers take away; %q leaves the TPM open to every program on the machine, and the genesis says so", leaveOpen)
	case p.Auth != "" && p.Auth != leaveOpen && !filepath.IsAbs(p.Auth):
		return fmt.Errorf("tpm.auth: %q must be an absolute path, or %q", p.Auth, leaveOpen)
	}
	return nil
}

// read reads the file that officers brought, or that an init made which stopped before its end; nothing when there is none.
func (p TPMPlan) read() (tpm.Auth, error) {
	if p.Auth == "" || p.Auth == leaveOpen {
		return tpm.Auth{}, nil
	}
	info, err := os.Lstat(p.Auth)
	if errors.Is(err, fs.ErrNotExist) {
		return tpm.Auth{}, nil
	}
	if err != nil {
		return tpm.Auth{}, usage(err)
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0 {
		return tpm.Auth{}, usagef("tpm.auth: %s must be a file that nobody else can read or write: chmod 0600", p.Auth)
	}
	var f authFile
	if err := loadTOML(p.Auth, &f); err != nil {
		return tpm.Auth{}, err
	}
	a := tpm.Auth(f)
	if err := a.Check(); err != nil {
		return tpm.Auth{}, usagef("tpm.auth: %s: %w", p.Auth, err)
	}
	return a, nil
}

// open reads the authorisations, and uses the owner's where the TPM asks for it: an open one is closed with them, and refuses them before.
func (p TPMPlan) open(ctx context.Context, t *tpm.TPM) (tpm.Auth, error) {
	auth, err := p.read()
	if err != nil {
		return tpm.Auth{}, err
	}
	now, err := t.Protection(ctx, auth)
	if err == nil && now.Owner != attest.AccessOpen {
		t.UseOwner(auth)
	}
	return auth, err
}

// protect closes the TPM, if the plan names a file, and says in the enrolment what is closed and what stays open. The file is on disk
// before the TPM has what is in it: nobody could change the TPM any more without.
func (p TPMPlan) protect(ctx context.Context, t *tpm.TPM, e *attest.Enrolment, auth tpm.Auth, out io.Writer) (err error) {
	closes := p.Auth != "" && p.Auth != leaveOpen
	if closes && auth == (tpm.Auth{}) {
		if auth, err = p.create(ctx, t); err != nil {
			return err
		}
	}
	if closes {
		if err := t.Protect(ctx, e.EK, auth); err != nil {
			return err
		}
	}
	if e.Protection, err = t.Protection(ctx, auth); err != nil || !closes {
		return err
	}
	if auth != (tpm.Auth{}) {
		fmt.Fprintf(out, "the TPM's owner and lockout authorisation is in %s: officers take it away; without it nobody can change the TPM, or make keys in it\n", p.Auth)
	}
	x := e.Protection
	_, err = fmt.Fprintf(out, "the TPM, as the genesis has it: owner %s, lockout %s, clear %s, endorsement %s, platform %s\n", x.Owner, x.Lockout, x.Clear, x.Endorsement, x.Platform)
	return err
}

// create makes authorisations for what has none yet.
func (p TPMPlan) create(ctx context.Context, t *tpm.TPM) (tpm.Auth, error) {
	now, err := t.Protection(ctx, tpm.Auth{})
	if err != nil {
		return tpm.Auth{}, err
	}
	a := tpm.NewAuth()
	if now.Owner != attest.AccessOpen {
		a.Owner = ""
	}
	if now.Lockout != attest.AccessOpen {
		a.Lockout = ""
	}
	if a == (tpm.Auth{}) {
		return a, nil
	}
	text := fmt.Sprintf("# Authorisation of a TPM, made by bullad init. Officers keep it; bullad needs it only to make keys in the TPM.\nowner = %q\nlockout = %q\n", a.Owner, a.Lockout)
	if err := durable.Create(p.Auth, []byte(text), 0o600); err != nil {
		return tpm.Auth{}, usagef("tpm.auth: %w", err)
	}
	return a, nil
}
