package tpm

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"

	"github.com/google/go-tpm/tpm2"

	"bulla/attest"
	"bulla/record"
)

// Handles of what enrolment makes, in the ranges that the TCG leaves to owners.
const (
	akHandle     tpm2.TPMHandle = 0x81010B01 // endorsement hierarchy, vendor range
	counterIndex tpm2.TPMHandle = 0x01800B01
)

// ErrEnrolled means that the TPM has been enrolled before: enrolment never takes over what exists.
var ErrEnrolled = errors.New("the TPM is enrolled already")

// EnrolConfig says what to enrol.
type EnrolConfig struct {
	Roots []byte // PEM: authorities that endorsement keys are certified by
	PCR   int    // the seal PCR; 16 and 23, which anyone can reset, are refused
}

// Endorsement keys and their certificates, as the TCG's EK Credential Profile places them (section 2.2.1.4).
var endorsements = []struct {
	certificate, key tpm2.TPMHandle
}{
	{0x01C0000A, 0x81010002}, // ECC P-256
	{0x01C00016, 0x81010016}, // ECC P-384
	{0x01C00002, 0x81010001}, // RSA 2048
}

// Enrol makes the attestation key and the counter in the TPM, and returns the evidence for them. The endorsement key's certificate
// must lead to one of the roots, and be for a key that the TPM has.
func (t *TPM) Enrol(ctx context.Context, cfg EnrolConfig) (*attest.Enrolment, error) {
	if cfg.PCR < 0 || cfg.PCR > 22 || cfg.PCR == 16 {
		return nil, fmt.Errorf("enrolling: PCR %d can be reset by any program, or does not exist", cfg.PCR)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	certificates, err := t.endorsement(cfg.Roots)
	if err != nil {
		return nil, fmt.Errorf("enrolling: %w", err)
	}
	ak, err := t.createAK()
	if err != nil {
		return nil, fmt.Errorf("enrolling: %w", err)
	}
	counter, err := t.createCounter(ctx)
	if err != nil {
		return nil, fmt.Errorf("enrolling: %w", err)
	}
	base, err := t.PCR(ctx, cfg.PCR)
	if err != nil {
		return nil, fmt.Errorf("enrolling: %w", err)
	}
	info, err := t.Info()
	if err != nil {
		return nil, fmt.Errorf("enrolling: %w", err)
	}
	key, err := attest.ParseAK(ak)
	if err != nil {
		return nil, fmt.Errorf("enrolling: %w", err)
	}
	return &attest.Enrolment{
		AK: ak, AKName: key.Name, Base: base, Counter: *counter, EKCertificates: certificates,
		Firmware: info.Firmware, Manufacturer: info.Manufacturer, PCR: cfg.PCR,
	}, nil
}

// createAK makes the attestation key in the endorsement hierarchy: attestations by a key of the owner's have their reset counts and
// firmware obfuscated (Part 1, section 36.7).
func (t *TPM) createAK() ([]byte, error) {
	if err := t.free(akHandle); err != nil {
		return nil, err
	}
	created, err := tpm2.CreatePrimary{
		PrimaryHandle: tpm2.TPMRHEndorsement,
		InPublic:      tpm2.New2B(signingTemplate(true)),
	}.Execute(t.conn)
	if err != nil {
		return nil, fmt.Errorf("TPM2_CreatePrimary of the AK: %w", err)
	}
	public, err := created.OutPublic.Contents()
	if err == nil {
		err = t.persist(created.ObjectHandle, created.Name, akHandle)
	}
	if err := errors.Join(err, t.flush(created.ObjectHandle)); err != nil {
		return nil, fmt.Errorf("making the AK: %w", err)
	}
	return tpm2.Marshal(public), nil
}

// signingTemplate is a P-256 signing key that never leaves the TPM and that failed authorisations do not lock.
func signingTemplate(restricted bool) tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true, Restricted: restricted, SignEncrypt: true,
		},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			Scheme:  tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256})},
			CurveID: tpm2.TPMECCNistP256,
		}),
	}
}

// createCounter defines the machine's counter and moves it once, without which it has no value.
func (t *TPM) createCounter(ctx context.Context) (*attest.Counter, error) {
	if _, err := (tpm2.NVReadPublic{NVIndex: counterIndex}).Execute(t.conn); err == nil {
		return nil, fmt.Errorf("%w: NV index 0x%08X exists", ErrEnrolled, uint32(counterIndex))
	}
	_, err := tpm2.NVDefineSpace{
		AuthHandle: tpm2.TPMRHOwner,
		PublicInfo: tpm2.New2B(tpm2.TPMSNVPublic{
			NVIndex: counterIndex, NameAlg: tpm2.TPMAlgSHA256, DataSize: 8,
			Attributes: tpm2.TPMANV{NT: tpm2.TPMNTCounter, AuthRead: true, AuthWrite: true, OwnerRead: true, NoDA: true},
		}),
	}.Execute(t.conn)
	if err != nil {
		return nil, fmt.Errorf("TPM2_NV_DefineSpace of the counter: %w", err)
	}
	name, err := t.nvName(counterIndex)
	if err != nil {
		return nil, err
	}
	if err := t.increment(counterIndex, name); err != nil {
		return nil, err
	}
	if name, err = t.nvName(counterIndex); err != nil { // the first write changes it
		return nil, err
	}
	value, err := t.counter(counterIndex, name)
	if err != nil {
		return nil, err
	}
	return &attest.Counter{Index: uint32(counterIndex), Name: name.Buffer, Value: value}, ctx.Err()
}

func (t *TPM) nvName(index tpm2.TPMHandle) (tpm2.TPM2BName, error) {
	r, err := tpm2.NVReadPublic{NVIndex: index}.Execute(t.conn)
	if err != nil {
		return tpm2.TPM2BName{}, fmt.Errorf("TPM2_NV_ReadPublic 0x%08X: %w", uint32(index), err)
	}
	return r.NVName, nil
}

func (t *TPM) increment(index tpm2.TPMHandle, name tpm2.TPM2BName) error {
	_, err := tpm2.NVIncrement{
		AuthHandle: tpm2.AuthHandle{Handle: index, Name: name, Auth: tpm2.PasswordAuth(nil)},
		NVIndex:    tpm2.NamedHandle{Handle: index, Name: name},
	}.Execute(t.conn)
	if err != nil {
		return fmt.Errorf("TPM2_NV_Increment: %w", err)
	}
	return nil
}

func (t *TPM) counter(index tpm2.TPMHandle, name tpm2.TPM2BName) (uint64, error) {
	b, err := t.nvRead(index, name, 8, 0)
	if err != nil {
		return 0, err
	}
	if len(b) != 8 {
		return 0, fmt.Errorf("TPM2_NV_Read: %d bytes are not a counter", len(b))
	}
	return binary.BigEndian.Uint64(b), nil
}

func (t *TPM) nvRead(index tpm2.TPMHandle, name tpm2.TPM2BName, size, offset uint16) ([]byte, error) {
	r, err := tpm2.NVRead{
		AuthHandle: tpm2.AuthHandle{Handle: index, Name: name, Auth: tpm2.PasswordAuth(nil)},
		NVIndex:    tpm2.NamedHandle{Handle: index, Name: name},
		Size:       size, Offset: offset,
	}.Execute(t.conn)
	if err != nil {
		return nil, fmt.Errorf("TPM2_NV_Read 0x%08X: %w", uint32(index), err)
	}
	return r.Data.Buffer, nil
}

// endorsement returns the certificate of one of the TPM's endorsement keys, and the chain to a root.
func (t *TPM) endorsement(rootsPEM []byte) ([][]byte, error) {
	roots, others, err := parseCertificates(rootsPEM)
	if err != nil {
		return nil, err
	}
	var tried []error
	for _, e := range endorsements {
		chain, err := t.endorsedBy(e.certificate, e.key, roots, others)
		if err == nil {
			return chain, nil
		}
		tried = append(tried, fmt.Errorf("certificate at 0x%08X: %w", uint32(e.certificate), err))
	}
	return nil, fmt.Errorf("no endorsement key is certified by the given roots: %w", errors.Join(tried...))
}

func (t *TPM) endorsedBy(certificate, key tpm2.TPMHandle, roots, others *x509.CertPool) ([][]byte, error) {
	der, err := t.certificate(certificate)
	if err != nil {
		return nil, err
	}
	chain, err := attest.VerifyEK(der, roots, others)
	if err != nil {
		return nil, err
	}
	public, err := tpm2.ReadPublic{ObjectHandle: key}.Execute(t.conn)
	if err != nil {
		return nil, fmt.Errorf("TPM2_ReadPublic 0x%08X: %w", uint32(key), err)
	}
	contents, err := public.OutPublic.Contents()
	if err != nil {
		return nil, err
	}
	pub, err := tpm2.Pub(*contents)
	if err != nil {
		return nil, err
	}
	spki, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(spki, chain[0].RawSubjectPublicKeyInfo) {
		return nil, errors.New("it is for another key than the TPM's")
	}
	var out [][]byte
	for _, c := range chain {
		out = append(out, c.Raw)
	}
	return out, nil
}

// certificate reads a DER certificate from NV, where it may be padded.
func (t *TPM) certificate(index tpm2.TPMHandle) ([]byte, error) {
	r, err := tpm2.NVReadPublic{NVIndex: index}.Execute(t.conn)
	if err != nil {
		return nil, fmt.Errorf("TPM2_NV_ReadPublic: %w", err)
	}
	public, err := r.NVPublic.Contents()
	if err != nil {
		return nil, err
	}
	var b []byte
	for len(b) < int(public.DataSize) {
		part, err := t.nvRead(index, r.NVName, min(512, public.DataSize-uint16(len(b))), uint16(len(b)))
		if err != nil {
			return nil, err
		}
		if len(part) == 0 {
			return nil, errors.New("TPM2_NV_Read: nothing")
		}
		b = append(b, part...)
	}
	var der asn1.RawValue
	if _, err := asn1.Unmarshal(b, &der); err != nil {
		return nil, fmt.Errorf("not a certificate: %w", err)
	}
	return der.FullBytes, nil
}

// parseCertificates sorts a PEM file into self-signed roots and the rest.
func parseCertificates(b []byte) (roots, others *x509.CertPool, err error) {
	roots, others = x509.NewCertPool(), x509.NewCertPool()
	n := 0
	for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, nil, fmt.Errorf("roots: %w", err)
		}
		if bytes.Equal(c.RawIssuer, c.RawSubject) {
			roots.AddCert(c)
			n++
		} else {
			others.AddCert(c)
		}
	}
	if n == 0 {
		return nil, nil, errors.New("roots: no self-signed certificate in PEM form")
	}
	return roots, others, nil
}

// Info is what a TPM says about itself.
type Info struct {
	Manufacturer string
	Firmware     string
}

// Info reads the TPM's description of itself.
func (t *TPM) Info() (*Info, error) {
	m, err := t.property(tpm2.TPMPTManufacturer)
	if err != nil {
		return nil, err
	}
	f1, err := t.property(tpm2.TPMPTFirmwareVersion1)
	if err != nil {
		return nil, err
	}
	f2, err := t.property(tpm2.TPMPTFirmwareVersion2)
	if err != nil {
		return nil, err
	}
	name := strings.Trim(string(binary.BigEndian.AppendUint32(nil, m)), "\x00 ")
	return &Info{Manufacturer: name, Firmware: fmt.Sprintf("%08x%08x", f1, f2)}, nil
}

// free refuses a persistent handle that is taken.
func (t *TPM) free(h tpm2.TPMHandle) error {
	_, err := tpm2.ReadPublic{ObjectHandle: h}.Execute(t.conn)
	if err == nil {
		return fmt.Errorf("%w: handle 0x%08X is taken", ErrEnrolled, uint32(h))
	}
	if errors.Is(err, ErrUnavailable) || errors.Is(err, attest.ErrUnknown) {
		return err
	}
	return nil
}

func (t *TPM) persist(h tpm2.TPMHandle, name tpm2.TPM2BName, at tpm2.TPMHandle) error {
	_, err := tpm2.EvictControl{Auth: tpm2.TPMRHOwner, ObjectHandle: &tpm2.NamedHandle{Handle: h, Name: name}, PersistentHandle: at}.Execute(t.conn)
	if err != nil {
		return fmt.Errorf("TPM2_EvictControl 0x%08X: %w", uint32(at), err)
	}
	return nil
}

func (t *TPM) flush(h tpm2.TPMHandle) error {
	if _, err := (tpm2.FlushContext{FlushHandle: h}).Execute(t.conn); err != nil {
		return fmt.Errorf("TPM2_FlushContext: %w", err)
	}
	return nil
}

// PCR reads one PCR of the SHA-256 bank.
func (t *TPM) PCR(_ context.Context, index int) (record.Hash, error) {
	values, err := t.pcrs([]int{index})
	if err != nil {
		return record.Hash{}, err
	}
	return values[0].Value, nil
}
