package tpm

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"

	"github.com/google/go-tpm/tpm2"

	"bulla/attest"
	"bulla/record"
)

// A secret's policy is PolicyAuthorize alone (Part 3, section 23.16): the TPM takes any policy that the approval key has signed for the
// secret's Ref. What is signed here is PolicyPCR with certain values, so that values can be approved before the machine has them, with
// no need to seal again. Sealing again makes a new Ref, for which no earlier approval is good.

// CheckSelection refuses PCRs that nothing should be sealed to: the seal PCR, which changes all the time, and those from 16 on, which
// can be reset while the machine runs.
func CheckSelection(selection []int, sealPCR int) error {
	if len(selection) == 0 {
		return errors.New("name at least one PCR")
	}
	for i, pcr := range selection {
		switch {
		case pcr == sealPCR:
			return fmt.Errorf("PCR %d is the seal PCR: it changes with every seal", pcr)
		case pcr < 0 || pcr > 15:
			return fmt.Errorf("PCR %d is not one of 0 to 15, which last until the machine is reset", pcr)
		case i > 0 && pcr <= selection[i-1]:
			return fmt.Errorf("PCR %d is not after %d: name each once, in ascending order", pcr, selection[i-1])
		}
	}
	return nil
}

// Selection is the PCRs that the secret is sealed to.
func (s *Secret) Selection() []int { return indices(s.Approvals[0].PCRs) }

func indices(values []attest.PCRValue) []int {
	var out []int
	for _, v := range values {
		out = append(out, v.Index)
	}
	return out
}

// ParseSecret reads a sealed secret; it accepts what Encode makes and nothing else.
func ParseSecret(b []byte) (*Secret, error) {
	if len(b) > maxSealedFile {
		return nil, fmt.Errorf("a sealed secret of %d bytes: more than %d", len(b), maxSealedFile)
	}
	s := new(Secret)
	if err := record.UnmarshalCanonical(b, s); err != nil {
		return nil, fmt.Errorf("a sealed secret: %w", err)
	}
	return s, s.check()
}

// Encode returns the secret's one encoding, canonical JSON.
func (s *Secret) Encode() ([]byte, error) { return record.MarshalCanonical(s) }

// check refuses what is not consistent in itself.
func (s *Secret) check() error {
	switch {
	case s.V != 1:
		return fmt.Errorf("%w: v is %d, not 1", ErrAltered, s.V)
	case len(s.Approvals) == 0 || len(s.Approvals) > maxApprovals:
		return fmt.Errorf("%w: %d approvals are not 1 to %d", ErrAltered, len(s.Approvals), maxApprovals)
	}
	first := s.Selection()
	for i, a := range s.Approvals {
		if err := CheckSelection(indices(a.PCRs), -1); err != nil {
			return fmt.Errorf("%w: approvals[%d]: %w", ErrAltered, i, err)
		}
		if !slices.Equal(indices(a.PCRs), first) {
			return fmt.Errorf("%w: approvals[%d] is for other PCRs than approvals[0]", ErrAltered, i)
		}
	}
	policy, err := s.policy()
	if err != nil {
		return err
	}
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](s.Public)
	if err != nil {
		return fmt.Errorf("%w: public: %w", ErrAltered, err)
	}
	want := sealedTemplate(policy)
	if public.Type != want.Type || public.NameAlg != want.NameAlg || public.ObjectAttributes != want.ObjectAttributes {
		return fmt.Errorf("%w: public: not what is sealed here", ErrAltered)
	}
	if !bytes.Equal(public.AuthPolicy.Buffer, policy) {
		return fmt.Errorf("%w: public: its policy is not that of approver and ref", ErrAltered)
	}
	return nil
}

// policy is the digest that PolicyAuthorize leaves.
func (s *Secret) policy() ([]byte, error) {
	key, err := s.approver()
	if err != nil {
		return nil, err
	}
	name, err := tpm2.ObjectName(key)
	if err != nil {
		return nil, err
	}
	return calculate(tpm2.PolicyAuthorize{PolicyRef: tpm2.TPM2BDigest{Buffer: s.Ref[:]}, KeySign: *name})
}

// approver is the approval key as the TPM knows it. Its Name is part of the policy, so nothing of this may ever change.
func (s *Secret) approver() (*tpm2.TPMTPublic, error) {
	key, err := s.approverKey()
	if err != nil {
		return nil, err
	}
	point, err := key.Bytes() // 4 || X || Y
	if err != nil {
		return nil, err
	}
	return &tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{SignEncrypt: true},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			Scheme:  tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256})},
			CurveID: tpm2.TPMECCNistP256,
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: point[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: point[33:]},
		}),
	}, nil
}

func (s *Secret) approverKey() (*ecdsa.PublicKey, error) {
	pub, err := x509.ParsePKIXPublicKey(s.Approver)
	if err != nil {
		return nil, fmt.Errorf("%w: approver: %w", ErrAltered, err)
	}
	key, ok := pub.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, errors.New("the approval key must be a P-256 key")
	}
	return key, nil
}

// calculate is the digest of a policy of one command.
func calculate(command interface {
	Update(*tpm2.PolicyCalculator) error
}) ([]byte, error) {
	c, err := tpm2.NewPolicyCalculator(tpm2.TPMAlgSHA256)
	if err != nil {
		return nil, err
	}
	if err := command.Update(c); err != nil {
		return nil, err
	}
	return c.Hash().Digest, nil
}

// policy is the digest that PolicyPCR leaves with the approved values.
func (a *Approval) policy() ([]byte, error) {
	command, err := a.policyPCR()
	if err != nil {
		return nil, err
	}
	return calculate(command)
}

func (a *Approval) policyPCR() (tpm2.PolicyPCR, error) {
	selection, err := selected(indices(a.PCRs))
	digest := attest.PCRDigest(a.PCRs)
	return tpm2.PolicyPCR{PcrDigest: tpm2.TPM2BDigest{Buffer: digest[:]}, Pcrs: selection}, err
}

// Approve adds an approval of values, of all the PCRs that the secret is sealed to, signed by its approval key. It reports whether that
// was new. Approvals stay good until the secret is sealed again.
func (s *Secret) Approve(key crypto.Signer, values []attest.PCRValue) (added bool, err error) {
	if err := s.check(); err != nil {
		return false, err
	}
	if of := indices(values); !slices.Equal(of, s.Selection()) {
		return false, fmt.Errorf("approving PCR values: they are of PCRs %v, and the secret is sealed to %v", of, s.Selection())
	}
	for _, a := range s.Approvals {
		if slices.Equal(a.PCRs, values) {
			return false, nil
		}
	}
	if len(s.Approvals) == maxApprovals {
		return false, fmt.Errorf("approving PCR values: there are %d approvals already: seal again, which ends all of them", maxApprovals)
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return false, fmt.Errorf("the approval key: %w", err)
	}
	if !bytes.Equal(spki, s.Approver) {
		return false, errors.New("approving PCR values: the key is not the one that the secret was sealed for")
	}
	return true, s.approve(key, values)
}

func (s *Secret) approve(key crypto.Signer, values []attest.PCRValue) error {
	public, err := s.approverKey()
	if err != nil {
		return err
	}
	a := Approval{PCRs: slices.Clone(values)}
	policy, err := a.policy()
	if err != nil {
		return err
	}
	digest := s.approvalHash(policy)
	if a.Signature, err = key.Sign(nil, digest[:], crypto.SHA256); err != nil {
		return fmt.Errorf("signing the approval: %w", err)
	}
	if !ecdsa.VerifyASN1(public, digest[:], a.Signature) {
		return errors.New("signing the approval: the signature does not verify under the approval key")
	}
	s.Approvals = append(s.Approvals, a)
	return nil
}

// approvalHash is aHash: what the approval key signs.
func (s *Secret) approvalHash(policy []byte) [32]byte {
	return sha256.Sum256(append(slices.Clone(policy), s.Ref[:]...))
}

// approved finds the approval of values. An error says which PCRs differ from the approval that comes nearest.
func (s *Secret) approved(values []attest.PCRValue) (*Approval, error) {
	var nearest []string
	for i := range slices.Backward(s.Approvals) {
		var differ []string
		for j, v := range values {
			if s.Approvals[i].PCRs[j] != v {
				differ = append(differ, fmt.Sprint(v.Index))
			}
		}
		if len(differ) == 0 {
			return &s.Approvals[i], nil
		}
		if nearest == nil || len(differ) < len(nearest) {
			nearest = differ
		}
	}
	return nil, fmt.Errorf("%w: PCR %s changed", ErrNotApproved, strings.Join(nearest, ", "))
}

// satisfy brings a policy session to where the secret's policy is: PCRs as approved, and the approval verified by the TPM.
func (b bus) satisfy(session tpm2.Session, s *Secret, a *Approval) error {
	pcrs, err := a.policyPCR()
	if err != nil {
		return err
	}
	pcrs.PolicySession = session.Handle()
	if _, err := pcrs.Execute(b); errors.Is(err, tpm2.TPMRCValue) {
		return fmt.Errorf("%w: they changed just now: TPM2_PolicyPCR: %w", ErrNotApproved, err)
	} else if err != nil {
		return fmt.Errorf("TPM2_PolicyPCR: %w", err)
	}
	policy, err := a.policy()
	if err != nil {
		return err
	}
	ticket, name, err := b.verify(s, a, policy)
	if err != nil {
		return err
	}
	_, err = tpm2.PolicyAuthorize{
		PolicySession: session.Handle(), ApprovedPolicy: tpm2.TPM2BDigest{Buffer: policy}, PolicyRef: tpm2.TPM2BDigest{Buffer: s.Ref[:]},
		KeySign: name, CheckTicket: ticket,
	}.Execute(b)
	if err != nil {
		return fmt.Errorf("TPM2_PolicyAuthorize: %w", err)
	}
	return nil
}

// verify has the TPM verify an approval's signature; it makes a ticket about that.
func (b bus) verify(s *Secret, a *Approval, policy []byte) (ticket tpm2.TPMTTKVerified, name tpm2.TPM2BName, err error) {
	key, err := s.approver()
	if err != nil {
		return ticket, name, err
	}
	signature, err := signatureOf(a.Signature)
	if err != nil {
		return ticket, name, err
	}
	// Of the owner's hierarchy: tickets about keys of none are empty.
	loaded, err := tpm2.LoadExternal{InPublic: tpm2.New2B(*key), Hierarchy: tpm2.TPMRHOwner}.Execute(b)
	if err != nil {
		return ticket, name, fmt.Errorf("TPM2_LoadExternal of the approval key: %w", err)
	}
	defer func() { err = errors.Join(err, flush(b, loaded.ObjectHandle)) }()
	digest := s.approvalHash(policy)
	r, err := tpm2.VerifySignature{
		KeyHandle: tpm2.NamedHandle{Handle: loaded.ObjectHandle, Name: loaded.Name}, Digest: tpm2.TPM2BDigest{Buffer: digest[:]}, Signature: *signature,
	}.Execute(b)
	if errors.Is(err, tpm2.TPMRCSignature) {
		return ticket, name, fmt.Errorf("%w: their approval is not by the approval key, or for an earlier sealing: TPM2_VerifySignature: %w", ErrNotApproved, err)
	}
	if err != nil {
		return ticket, name, fmt.Errorf("TPM2_VerifySignature: %w", err)
	}
	return r.Validation, loaded.Name, nil
}

// signatureOf is an ECDSA signature as a TPM takes it.
func signatureOf(der []byte) (*tpm2.TPMTSignature, error) {
	var sig struct{ R, S *big.Int }
	rest, err := asn1.Unmarshal(der, &sig)
	if err != nil || len(rest) > 0 || sig.R.Sign() <= 0 || sig.S.Sign() <= 0 || sig.R.BitLen() > 256 || sig.S.BitLen() > 256 {
		return nil, fmt.Errorf("%w: an approval's signature is none", ErrAltered)
	}
	return &tpm2.TPMTSignature{
		SigAlg: tpm2.TPMAlgECDSA,
		Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgECDSA, &tpm2.TPMSSignatureECC{
			Hash:       tpm2.TPMAlgSHA256,
			SignatureR: tpm2.TPM2BECCParameter{Buffer: sig.R.FillBytes(make([]byte, 32))},
			SignatureS: tpm2.TPM2BECCParameter{Buffer: sig.S.FillBytes(make([]byte, 32))},
		}),
	}, nil
}
