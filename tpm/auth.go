package tpm

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"bulla/attest"
)

// ErrAuth means that the TPM refused an authorisation of the owner or of lockout.
var ErrAuth = errors.New("the TPM refused the authorisation")

// Auth authorises what changes a TPM itself. Officers keep it; nothing that runs every day needs it. An empty one is not known.
type Auth struct {
	Owner   string // makes and removes persistent keys and NV indices: the attestation key and the counter among them
	Lockout string // would end a lockout, and disable TPM2_Clear
}

// MaxAuth bounds an authorisation, in bytes: as much as every TPM takes.
const MaxAuth = 32

// NewAuth makes authorisations at random, 130 bits each, that can be read and typed.
func NewAuth() Auth { return Auth{Owner: rand.Text(), Lockout: rand.Text()} }

// Check refuses what a TPM, or a tool to use it with, would not take as it is.
func (a Auth) Check() error {
	for _, x := range []struct{ name, value string }{{"owner", a.Owner}, {"lockout", a.Lockout}} {
		if len(x.value) > MaxAuth {
			return fmt.Errorf("%s: more than %d bytes", x.name, MaxAuth)
		}
		for i := range len(x.value) {
			if c := x.value[i]; c <= ' ' || c > '~' {
				return fmt.Errorf("%s: only printable ASCII characters without spaces", x.name)
			}
		}
	}
	return nil
}

// UseOwner has operations authorise themselves as the owner, from now on. The TPM never sees it in clear: it keys the HMAC of a
// session (Part 1, section 19.6).
func (t *TPM) UseOwner(a Auth) {
	t.busy <- struct{}{}
	defer func() { <-t.busy }()
	t.owner = []byte(a.Owner)
}

// owner is the owner's hierarchy with its authorisation.
func (b bus) owner() tpm2.AuthHandle {
	h := hierarchy(tpm2.TPMRHOwner)
	if len(b.auth) > 0 {
		h.Auth = tpm2.HMAC(tpm2.TPMAlgSHA256, 16, tpm2.Auth(b.auth))
	}
	return h
}

// hierarchy is a hierarchy whose authorisation is empty.
func hierarchy(h tpm2.TPMHandle) tpm2.AuthHandle {
	return authorised(tpm2.NamedHandle{Handle: h, Name: tpm2.HandleName(h)})
}

// Protect closes the TPM to whoever has not a: where lockout and owner have no authorisation yet they get it, and TPM2_Clear is disabled
// before. Values go to the TPM encrypted for the endorsement key, given as TPMT_PUBLIC. What was closed before stays as it is; repeating
// it does no harm. The storage root key, which only the owner can make, is made before if there is none.
func (t *TPM) Protect(ctx context.Context, ek []byte, a Auth) error {
	if err := a.Check(); err != nil {
		return fmt.Errorf("protecting the TPM: %w", err)
	}
	err := t.do(ctx, func(b bus) error { return b.protect(ek, a) })
	if err != nil {
		return fmt.Errorf("protecting the TPM: %w", err)
	}
	t.UseOwner(a)
	return nil
}

func (b bus) protect(ek []byte, a Auth) error {
	p, err := b.permanent()
	if err != nil {
		return err
	}
	if p&ownerAuthSet != 0 && a.Owner != "" {
		if err := b.prove(tpm2.TPMRHOwner, a.Owner); err != nil {
			return refused("owner", err)
		}
		b.auth = []byte(a.Owner)
	}
	if p&lockoutAuthSet != 0 && a.Lockout != "" {
		if err := b.prove(tpm2.TPMRHLockout, a.Lockout); err != nil {
			return refused("lockout", err)
		}
	}
	if p&ownerAuthSet == 0 || a.Owner != "" {
		if _, err := b.storageRoot(); err != nil {
			return err
		}
	}
	if p&disableClear == 0 && (p&lockoutAuthSet == 0 || a.Lockout != "") {
		lockout := a.Lockout
		if p&lockoutAuthSet == 0 {
			lockout = ""
		}
		if err := b.disableClear(lockout); err != nil {
			return err
		}
	}
	for _, h := range []struct {
		handle tpm2.TPMHandle
		set    uint32
		value  string
	}{{tpm2.TPMRHLockout, lockoutAuthSet, a.Lockout}, {tpm2.TPMRHOwner, ownerAuthSet, a.Owner}} {
		if p&h.set != 0 || h.value == "" {
			continue
		}
		if err := b.setAuth(ek, h.handle, h.value); err != nil {
			return err
		}
	}
	return nil
}

// prove has the TPM check the authorisation of a hierarchy, and does nothing with it. A wrong one has consequences for lockout only.
func (b bus) prove(h tpm2.TPMHandle, value string) error {
	session, done, err := tpm2.PolicySession(b, tpm2.TPMAlgSHA256, 16)
	if err != nil {
		return fmt.Errorf("TPM2_StartAuthSession: %w", err)
	}
	with := hierarchy(h)
	with.Auth = tpm2.HMAC(tpm2.TPMAlgSHA256, 16, tpm2.Auth([]byte(value)))
	_, err = tpm2.PolicySecret{AuthHandle: with, PolicySession: session.Handle(), NonceTPM: session.NonceTPM()}.Execute(b)
	if err != nil {
		err = fmt.Errorf("TPM2_PolicySecret: %w", err)
	}
	return errors.Join(err, done())
}

// refused names the authorisation that a TPM refused.
func refused(which string, err error) error {
	switch {
	case errors.Is(err, tpm2.TPMRCBadAuth):
		return fmt.Errorf("%w of the %s: it is another: %w", ErrAuth, which, err)
	case errors.Is(err, tpm2.TPMRCAuthFail), errors.Is(err, tpm2.TPMRCLockout):
		return fmt.Errorf("%w of the %s: it is another, and the TPM takes none for a while: %w", ErrAuth, which, err)
	}
	return err
}

// setAuth sets the authorisation of a hierarchy that has none. The new one is encrypted; the old one, which is empty, authorises by
// password, because the answer to a session would be keyed with the new one (Part 1, section 19.6.5).
func (b bus) setAuth(ek []byte, h tpm2.TPMHandle, value string) error {
	session, done, err := b.salted(ek, tpm2.HMACSession, tpm2.AESEncryption(128, tpm2.EncryptIn))
	if err != nil {
		return err
	}
	_, err = tpm2.HierarchyChangeAuth{AuthHandle: hierarchy(h), NewAuth: tpm2.TPM2BAuth{Buffer: []byte(value)}}.Execute(b, session)
	if err != nil {
		err = fmt.Errorf("TPM2_HierarchyChangeAuth 0x%08X: %w", uint32(h), outcome(err))
	}
	return errors.Join(err, done())
}

// starter starts a session that done ends: tpm2.HMACSession or tpm2.PolicySession.
type starter = func(transport.TPM, tpm2.TPMIAlgHash, int, ...tpm2.AuthOption) (session tpm2.Session, done func() error, err error)

// salted starts a session whose secret only the TPM with a pinned endorsement key, given as TPMT_PUBLIC, can know besides us.
func (b bus) salted(ek []byte, start starter, encryption tpm2.AuthOption) (session tpm2.Session, done func() error, err error) {
	err = b.withPinned(ek, func(key tpm2.NamedHandle, public *tpm2.TPMTPublic) error {
		if session, done, err = start(b, tpm2.TPMAlgSHA256, 16, tpm2.Salted(key.Handle, *public), encryption); err != nil {
			return fmt.Errorf("TPM2_StartAuthSession: %w", err)
		}
		return nil
	})
	if err != nil && session != nil { // the endorsement key could not be flushed
		err = errors.Join(err, done())
	}
	return session, done, err
}

// disableClear forbids TPM2_Clear (TPM2_ClearControl; Part 3, section 24.7): only the platform, which is firmware, can allow it again.
func (b bus) disableClear(lockout string) (err error) {
	session, done, err := tpm2.HMACSession(b, tpm2.TPMAlgSHA256, 16, tpm2.Auth([]byte(lockout)))
	if err != nil {
		return fmt.Errorf("TPM2_StartAuthSession: %w", err)
	}
	defer func() { err = errors.Join(err, done()) }()
	if err := b.command(tpm2.TPMCCClearControl, tpm2.TPMRHLockout, session, []byte{1}); err != nil {
		return fmt.Errorf("TPM2_ClearControl: %w", outcome(err))
	}
	return nil
}

// command executes one that go-tpm does not know: with one handle, which a session authorises, and parameters that are not answered
// (Part 1, section 18).
func (b bus) command(cc tpm2.TPMCC, handle tpm2.TPMHandle, session tpm2.Session, parameters []byte) error {
	if err := session.NewNonceCaller(); err != nil {
		return err
	}
	names := []tpm2.TPM2BName{tpm2.HandleName(handle)}
	auth, err := session.Authorize(cc, parameters, nil, names, 0)
	if err != nil {
		return err
	}
	area := tpm2.Marshal(auth)
	in := []byte{0x80, 0x02, 0, 0, 0, 0} // TPM_ST_SESSIONS
	in = binary.BigEndian.AppendUint32(in, uint32(cc))
	in = binary.BigEndian.AppendUint32(in, uint32(handle))
	in = binary.BigEndian.AppendUint32(in, uint32(len(area)))
	in = append(append(in, area...), parameters...)
	binary.BigEndian.PutUint32(in[2:], uint32(len(in)))
	out, err := b.Send(in)
	if err != nil {
		return err
	}
	if rc := tpm2.TPMRC(binary.BigEndian.Uint32(out[6:])); rc != 0 {
		return rc
	}
	if len(out) < 14 || !bytes.Equal(out[10:14], make([]byte, 4)) {
		return fmt.Errorf("an answer of %d bytes", len(out))
	}
	answer, err := tpm2.Unmarshal[tpm2.TPMSAuthResponse](out[14:])
	if err != nil {
		return err
	}
	return session.Validate(tpm2.TPMRCSuccess, cc, nil, names, 0, answer)
}

// Bits of TPMA_PERMANENT (Part 2, section 8.6), and of TPMA_STARTUP_CLEAR (section 8.7).
const (
	ownerAuthSet       = 1 << 0
	endorsementAuthSet = 1 << 1
	lockoutAuthSet     = 1 << 2
	disableClear       = 1 << 8

	platformEnabled = 1 << 0
)

func (b bus) permanent() (uint32, error) {
	v := make([]uint32, 1)
	err := b.properties(tpm2.TPMPTPermanent, v)
	return v[0], err
}

// Protection says what is open and what is closed now. a is what officers keep; an authorisation that is set and that it does not have
// is others'.
func (t *TPM) Protection(ctx context.Context, a Auth) (p *attest.Protection, err error) {
	err = t.do(ctx, func(b bus) error {
		p, err = b.protection(a)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("looking at the TPM's protection: %w", err)
	}
	return p, nil
}

func (b bus) protection(a Auth) (*attest.Protection, error) {
	permanent, err := b.permanent()
	if err != nil {
		return nil, err
	}
	state := func(set uint32, officers string) string {
		switch {
		case permanent&set == 0:
			return attest.AccessOpen
		case officers == "":
			return attest.AccessOthers
		}
		return attest.AccessOfficers
	}
	p := &attest.Protection{
		Clear: attest.AccessOpen, Endorsement: state(endorsementAuthSet, ""), Lockout: state(lockoutAuthSet, a.Lockout), Owner: state(ownerAuthSet, a.Owner),
	}
	if permanent&disableClear != 0 {
		p.Clear = attest.AccessClosed
	}
	p.Platform, err = b.platform()
	return p, err
}

// platform says whether the platform hierarchy, which is firmware's, is closed: firmware should disable it, or set its authorisation,
// before it starts anything else. Failed authorisations of it have no consequences.
func (b bus) platform() (string, error) {
	v := make([]uint32, 1)
	if err := b.properties(tpm2.TPMPTStartupClear, v); err != nil {
		return "", err
	}
	if v[0]&platformEnabled == 0 {
		return attest.AccessClosed, nil
	}
	err := b.prove(tpm2.TPMRHPlatform, "")
	switch {
	case err == nil:
		return attest.AccessOpen, nil
	case errors.Is(err, tpm2.TPMRCBadAuth), errors.Is(err, tpm2.TPMRCAuthFail):
		return attest.AccessOthers, nil
	case errors.Is(err, tpm2.TPMRCHierarchy):
		return attest.AccessClosed, nil
	}
	return "", err
}
