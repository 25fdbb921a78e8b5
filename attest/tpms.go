package attest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"

	"github.com/google/go-tpm/tpm2"

	"bulla/record"
)

// maxStructure bounds a TPM structure, in bytes.
const maxStructure = 4096

// Attested is a parsed TPMS_ATTEST (Part 2, section 10.12.8).
type Attested struct {
	Signer   []byte // qualified Name of the key
	Extra    []byte
	Clock    ClockInfo
	Firmware uint64

	// Of NV_Certify:
	Name    []byte // of the counter
	Counter uint64
	// Of a quote:
	Selection []int // of the SHA-256 bank
	Digest    []byte
}

func parseAttest(b []byte, want tpm2.TPMST) (*tpm2.TPMSAttest, *Attested, error) {
	if len(b) > maxStructure {
		return nil, nil, fmt.Errorf("TPMS_ATTEST: %d bytes are too many", len(b))
	}
	a, err := tpm2.Unmarshal[tpm2.TPMSAttest](b)
	if err != nil {
		return nil, nil, fmt.Errorf("TPMS_ATTEST: %w", err)
	}
	if !bytes.Equal(tpm2.Marshal(a), b) {
		return nil, nil, errors.New("TPMS_ATTEST: trailing or non-canonical bytes")
	}
	if a.Magic != tpm2.TPMGeneratedValue {
		return nil, nil, fmt.Errorf("TPMS_ATTEST: magic %x is not the TPM's", uint32(a.Magic))
	}
	if a.Type != want {
		return nil, nil, fmt.Errorf("TPMS_ATTEST: type %x, not %x", uint16(a.Type), uint16(want))
	}
	c := a.ClockInfo
	return a, &Attested{
		Signer: a.QualifiedSigner.Buffer, Extra: a.ExtraData.Buffer, Firmware: a.FirmwareVersion,
		Clock: ClockInfo{Clock: c.Clock, ResetCount: c.ResetCount, RestartCount: c.RestartCount, Safe: bool(c.Safe)},
	}, nil
}

// ParseCertify reads the attestation of a counter (TPM2_NV_Certify over all of it).
func ParseCertify(b []byte) (*Attested, error) {
	a, out, err := parseAttest(b, tpm2.TPMSTAttestNV)
	if err != nil {
		return nil, err
	}
	nv, err := a.Attested.NV()
	if err != nil {
		return nil, fmt.Errorf("TPMS_ATTEST: %w", err)
	}
	if nv.Offset != 0 || len(nv.NVContents.Buffer) != 8 {
		return nil, fmt.Errorf("TPMS_ATTEST: %d bytes at offset %d are not a counter", len(nv.NVContents.Buffer), nv.Offset)
	}
	out.Name, out.Counter = nv.IndexName.Buffer, binary.BigEndian.Uint64(nv.NVContents.Buffer)
	return out, nil
}

// ParseQuote reads a quote (TPM2_Quote) over PCRs of the SHA-256 bank.
func ParseQuote(b []byte) (*Attested, error) {
	a, out, err := parseAttest(b, tpm2.TPMSTAttestQuote)
	if err != nil {
		return nil, err
	}
	q, err := a.Attested.Quote()
	if err != nil {
		return nil, fmt.Errorf("TPMS_ATTEST: %w", err)
	}
	s := q.PCRSelect.PCRSelections
	if len(s) != 1 || s[0].Hash != tpm2.TPMAlgSHA256 || len(s[0].PCRSelect) > 3 {
		return nil, errors.New("TPMS_ATTEST: the quote is not over PCRs 0 to 23 of the SHA-256 bank alone")
	}
	for i := range len(s[0].PCRSelect) * 8 {
		if s[0].PCRSelect[i/8]&(1<<(i%8)) != 0 {
			out.Selection = append(out.Selection, i)
		}
	}
	out.Digest = q.PCRDigest.Buffer
	return out, nil
}

// PCRDigest is what a quote over the values holds (Part 3, section 18.4): SHA-256 of them in ascending order.
func PCRDigest(values []PCRValue) record.Hash {
	h := sha256.New()
	for _, v := range values {
		h.Write(v.Value[:])
	}
	return record.Hash(h.Sum(nil))
}

// AK is an attestation key's public part, checked to be one.
type AK struct {
	Public *ecdsa.PublicKey
	Name   []byte
	also   *ecdsa.PublicKey // see Replay.Also
}

// ParseAK reads a TPMT_PUBLIC and requires that it is a restricted P-256 signing key that never leaves its TPM.
func ParseAK(b []byte) (*AK, error) {
	p, err := parsePublic(b)
	if err != nil {
		return nil, err
	}
	a := p.ObjectAttributes
	for _, c := range []struct {
		name string
		has  bool
		want bool
	}{
		{"fixedTPM", a.FixedTPM, true}, {"fixedParent", a.FixedParent, true}, {"sensitiveDataOrigin", a.SensitiveDataOrigin, true},
		{"restricted", a.Restricted, true}, {"sign", a.SignEncrypt, true}, {"decrypt", a.Decrypt, false}, {"noDA", a.NoDA, true},
	} {
		if c.has != c.want {
			return nil, fmt.Errorf("AK: %s is %t", c.name, c.has)
		}
	}
	parms, err := p.Parameters.ECCDetail()
	if err != nil {
		return nil, fmt.Errorf("AK: %w", err)
	}
	if p.NameAlg != tpm2.TPMAlgSHA256 || parms.CurveID != tpm2.TPMECCNistP256 || parms.Scheme.Scheme != tpm2.TPMAlgECDSA {
		return nil, errors.New("AK: not ECDSA P-256 with SHA-256")
	}
	scheme, err := parms.Scheme.Details.ECDSA()
	if err != nil || scheme.HashAlg != tpm2.TPMAlgSHA256 {
		return nil, errors.New("AK: its scheme is not ECDSA with SHA-256")
	}
	name, err := tpm2.ObjectName(p)
	if err != nil {
		return nil, fmt.Errorf("AK: %w", err)
	}
	pub, err := tpm2.Pub(*p)
	if err != nil {
		return nil, fmt.Errorf("AK: %w", err)
	}
	key, ok := pub.(*ecdsa.PublicKey)
	if !ok {
		return nil, errors.New("AK: not an ECDSA key")
	}
	if _, err := key.ECDH(); err != nil {
		return nil, fmt.Errorf("AK: not a point of P-256: %w", err)
	}
	return &AK{Public: key, Name: name.Buffer}, nil
}

func parsePublic(b []byte) (*tpm2.TPMTPublic, error) {
	if len(b) > maxStructure {
		return nil, fmt.Errorf("TPMT_PUBLIC: %d bytes are too many", len(b))
	}
	p, err := tpm2.Unmarshal[tpm2.TPMTPublic](b)
	if err != nil {
		return nil, fmt.Errorf("TPMT_PUBLIC: %w", err)
	}
	if !bytes.Equal(tpm2.Marshal(p), b) {
		return nil, errors.New("TPMT_PUBLIC: trailing or non-canonical bytes")
	}
	return p, nil
}

// verify checks the key's signature (TPMT_SIGNATURE) over an attestation.
func (k *AK) verify(s Signed) error {
	sig, err := parseSignature(s.Signature)
	if err != nil {
		return err
	}
	digest := sha256.Sum256(s.Attest)
	if !ecdsa.Verify(k.Public, digest[:], sig.r, sig.s) && (k.also == nil || !ecdsa.Verify(k.also, digest[:], sig.r, sig.s)) {
		return errors.New("the signature is not the AK's")
	}
	return nil
}

type signature struct{ r, s *big.Int }

func parseSignature(b []byte) (*signature, error) {
	if len(b) > maxStructure {
		return nil, fmt.Errorf("TPMT_SIGNATURE: %d bytes are too many", len(b))
	}
	t, err := tpm2.Unmarshal[tpm2.TPMTSignature](b)
	if err != nil {
		return nil, fmt.Errorf("TPMT_SIGNATURE: %w", err)
	}
	if !bytes.Equal(tpm2.Marshal(t), b) {
		return nil, errors.New("TPMT_SIGNATURE: trailing or non-canonical bytes")
	}
	if t.SigAlg != tpm2.TPMAlgECDSA {
		return nil, fmt.Errorf("TPMT_SIGNATURE: algorithm %x is not ECDSA", uint16(t.SigAlg))
	}
	e, err := t.Signature.ECDSA()
	if err != nil || e.Hash != tpm2.TPMAlgSHA256 {
		return nil, errors.New("TPMT_SIGNATURE: not ECDSA with SHA-256")
	}
	return &signature{new(big.Int).SetBytes(e.SignatureR.Buffer), new(big.Int).SetBytes(e.SignatureS.Buffer)}, nil
}
