package tpm

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"bulla/attest"
	"bulla/record"
)

// ErrOtherMachine means that the TPM is not the one that was enrolled.
var ErrOtherMachine = errors.New("not the enrolled TPM")

// Machine is an enrolled TPM; it is an attest.TPM.
type Machine struct {
	*TPM
	ak      tpm2.NamedHandle
	counter tpm2.NamedHandle
}

var _ attest.TPM = (*Machine)(nil)

// Attach finds the enrolled key and counter in the TPM.
func (t *TPM) Attach(_ context.Context, e *attest.Enrolment) (*Machine, error) {
	ak, err := tpm2.ReadPublic{ObjectHandle: akHandle}.Execute(t.conn)
	if err != nil {
		return nil, fmt.Errorf("attaching to the TPM: TPM2_ReadPublic of the AK: %w", err)
	}
	if !bytes.Equal(ak.Name.Buffer, e.AKName) {
		return nil, fmt.Errorf("attaching to the TPM: %w: its AK has the name %x, the enrolled one %x", ErrOtherMachine, ak.Name.Buffer, e.AKName)
	}
	index := tpm2.TPMHandle(e.Counter.Index)
	name, err := t.nvName(index)
	if err != nil {
		return nil, fmt.Errorf("attaching to the TPM: %w", err)
	}
	if !bytes.Equal(name.Buffer, e.Counter.Name) {
		return nil, fmt.Errorf("attaching to the TPM: %w: its counter has the name %x, the enrolled one %x", ErrOtherMachine, name.Buffer, e.Counter.Name)
	}
	return &Machine{TPM: t, ak: tpm2.NamedHandle{Handle: akHandle, Name: ak.Name}, counter: tpm2.NamedHandle{Handle: index, Name: name}}, nil
}

func authorised(h tpm2.NamedHandle) tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: h.Handle, Name: h.Name, Auth: tpm2.PasswordAuth(nil)}
}

// Increment moves the counter on by one.
func (m *Machine) Increment(context.Context) error {
	return m.increment(m.counter.Handle, m.counter.Name)
}

// Counter reads the counter.
func (m *Machine) Counter(context.Context) (uint64, error) {
	return m.TPM.counter(m.counter.Handle, m.counter.Name)
}

// CertifyCounter signs the counter's value.
func (m *Machine) CertifyCounter(_ context.Context, extra [32]byte) (attest.Signed, error) {
	r, err := tpm2.NVCertify{
		SignHandle: authorised(m.ak), AuthHandle: authorised(m.counter), NVIndex: m.counter,
		QualifyingData: tpm2.TPM2BData{Buffer: extra[:]}, InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull}, Size: 8,
	}.Execute(m.conn)
	if err != nil {
		return attest.Signed{}, fmt.Errorf("TPM2_NV_Certify: %w", err)
	}
	return attest.Signed{Attest: r.CertifyInfo.Bytes(), Signature: tpm2.Marshal(r.Signature)}, nil
}

// Extend extends a PCR of the SHA-256 bank.
func (m *Machine) Extend(_ context.Context, index int, digest [32]byte) error {
	_, err := tpm2.PCRExtend{
		PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(index), Auth: tpm2.PasswordAuth(nil)},
		Digests:   tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: digest[:]}}},
	}.Execute(m.conn)
	if err != nil {
		return fmt.Errorf("TPM2_PCR_Extend %d: %w", index, err)
	}
	return nil
}

// Quote signs the selected PCRs and reads their values. Reading is a command of its own, so that values that changed in between are
// read again, and an error if they still do not match.
func (m *Machine) Quote(ctx context.Context, selection []int, extra [32]byte) (attest.Quoted, error) {
	for range 3 {
		r, err := tpm2.Quote{
			SignHandle: authorised(m.ak), QualifyingData: tpm2.TPM2BData{Buffer: extra[:]},
			InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull}, PCRSelect: selected(selection),
		}.Execute(m.conn)
		if err != nil {
			return attest.Quoted{}, fmt.Errorf("TPM2_Quote: %w", err)
		}
		q := attest.Quoted{Signed: attest.Signed{Attest: r.Quoted.Bytes(), Signature: tpm2.Marshal(r.Signature)}}
		if q.PCRs, err = m.pcrs(selection); err != nil {
			return attest.Quoted{}, err
		}
		parsed, err := attest.ParseQuote(q.Attest)
		if err != nil {
			return attest.Quoted{}, fmt.Errorf("TPM2_Quote: %w", err)
		}
		if want := attest.PCRDigest(q.PCRs); bytes.Equal(want[:], parsed.Digest) {
			return q, nil
		}
		if err := ctx.Err(); err != nil {
			return attest.Quoted{}, err
		}
	}
	return attest.Quoted{}, errors.New("TPM2_Quote: the PCRs keep changing while they are read")
}

// Clock reads the TPM's clock.
func (m *Machine) Clock(context.Context) (attest.ClockInfo, error) {
	r, err := tpm2.ReadClock{}.Execute(m.conn)
	if err != nil {
		return attest.ClockInfo{}, fmt.Errorf("TPM2_ReadClock: %w", err)
	}
	c := r.CurrentTime.ClockInfo
	return attest.ClockInfo{Clock: c.Clock, ResetCount: c.ResetCount, RestartCount: c.RestartCount, Safe: bool(c.Safe)}, nil
}

// pcrs reads PCRs of the SHA-256 bank; a TPM gives at most eight at a time.
func (t *TPM) pcrs(selection []int) ([]attest.PCRValue, error) {
	out := make([]attest.PCRValue, 0, len(selection))
	for _, index := range selection {
		if index < 0 || index > 23 {
			return nil, fmt.Errorf("TPM2_PCR_Read: there is no PCR %d", index)
		}
		r, err := tpm2.PCRRead{PCRSelectionIn: selected([]int{index})}.Execute(t.conn)
		if err != nil {
			return nil, fmt.Errorf("TPM2_PCR_Read %d: %w", index, err)
		}
		if len(r.PCRValues.Digests) != 1 || len(r.PCRValues.Digests[0].Buffer) != len(record.Hash{}) {
			return nil, fmt.Errorf("TPM2_PCR_Read %d: it is not in the SHA-256 bank", index)
		}
		out = append(out, attest.PCRValue{Index: index, Value: record.Hash(r.PCRValues.Digests[0].Buffer)})
	}
	return out, nil
}

func selected(selection []int) tpm2.TPMLPCRSelection {
	bits := make([]byte, 3)
	for _, i := range selection {
		bits[i/8] |= 1 << (i % 8)
	}
	return tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: bits}}}
}
