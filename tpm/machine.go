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

// ErrOtherMachine means that the TPM is not the one that was enrolled, or no longer what it was: cleared, or its counter replaced.
var ErrOtherMachine = errors.New("not the enrolled TPM")

// Machine is an enrolled TPM; it is an attest.TPM.
type Machine struct {
	t       *TPM
	ak      tpm2.NamedHandle
	counter tpm2.NamedHandle
}

var _ attest.TPM = (*Machine)(nil)

// Attach finds the enrolled key, wherever it is persistent, and the enrolled counter.
func (t *TPM) Attach(ctx context.Context, e *attest.Enrolment) (*Machine, error) {
	m := &Machine{t: t}
	err := t.do(ctx, func(b bus) (err error) {
		if m.ak, err = b.find(e.AKName); err != nil {
			return fmt.Errorf("the attestation key: %w", err)
		}
		m.counter, err = b.nvName(tpm2.TPMHandle(e.Counter.Index))
		switch {
		case absent(err):
			return fmt.Errorf("%w: it has no counter at 0x%08X", ErrOtherMachine, e.Counter.Index)
		case err != nil:
			return err
		case !bytes.Equal(m.counter.Name.Buffer, e.Counter.Name):
			return fmt.Errorf("%w: its counter has the name %x, the enrolled one %x", ErrOtherMachine, m.counter.Name.Buffer, e.Counter.Name)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("attaching to the TPM: %w", err)
	}
	return m, nil
}

// find returns the persistent object that has a Name.
func (b bus) find(name []byte) (tpm2.NamedHandle, error) {
	handles, err := handlesFrom(b, 0x81000000)
	if err != nil {
		return tpm2.NamedHandle{}, err
	}
	for _, h := range handles {
		r, err := tpm2.ReadPublic{ObjectHandle: h}.Execute(b)
		if err != nil {
			return tpm2.NamedHandle{}, fmt.Errorf("TPM2_ReadPublic 0x%08X: %w", uint32(h), err)
		}
		if bytes.Equal(r.Name.Buffer, name) {
			return tpm2.NamedHandle{Handle: h, Name: r.Name}, nil
		}
	}
	return tpm2.NamedHandle{}, fmt.Errorf("%w: none of its %d persistent objects has the name %x", ErrOtherMachine, len(handles), name)
}

// Increment moves the counter on by one.
func (m *Machine) Increment(ctx context.Context) error {
	return m.t.do(ctx, func(b bus) error { return b.increment(m.counter) })
}

// Counter reads the counter.
func (m *Machine) Counter(ctx context.Context) (value uint64, err error) {
	err = m.t.do(ctx, func(b bus) error {
		value, err = b.counter(m.counter)
		return err
	})
	return value, err
}

// CertifyCounter signs the counter's value.
func (m *Machine) CertifyCounter(ctx context.Context, extra [32]byte) (out attest.Signed, err error) {
	err = m.t.do(ctx, func(b bus) error {
		r, err := tpm2.NVCertify{
			SignHandle: authorised(m.ak), AuthHandle: authorised(m.counter), NVIndex: m.counter,
			QualifyingData: tpm2.TPM2BData{Buffer: extra[:]}, InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull}, Size: 8,
		}.Execute(b)
		if err != nil {
			return fmt.Errorf("TPM2_NV_Certify: %w", err)
		}
		out = attest.Signed{Attest: r.CertifyInfo.Bytes(), Signature: tpm2.Marshal(r.Signature)}
		return nil
	})
	return out, err
}

// PCR reads one PCR of the SHA-256 bank.
func (m *Machine) PCR(ctx context.Context, index int) (value record.Hash, err error) {
	err = m.t.do(ctx, func(b bus) error {
		values, err := b.pcrs([]int{index})
		if err == nil {
			value = values[0].Value
		}
		return err
	})
	return value, err
}

// Extend extends a PCR of the SHA-256 bank.
func (m *Machine) Extend(ctx context.Context, index int, digest [32]byte) error {
	if _, err := selected([]int{index}); err != nil {
		return fmt.Errorf("TPM2_PCR_Extend: %w", err)
	}
	return m.t.do(ctx, func(b bus) error {
		_, err := tpm2.PCRExtend{
			PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(index), Auth: tpm2.PasswordAuth(nil)},
			Digests:   tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: digest[:]}}},
		}.Execute(b)
		if err != nil {
			return fmt.Errorf("TPM2_PCR_Extend %d: %w", index, outcome(err))
		}
		return nil
	})
}

// Quote signs the selected PCRs and reads their values. Reading is a command of its own, so values that another program changed in
// between are quoted again, and it is an error if they still do not match.
func (m *Machine) Quote(ctx context.Context, selection []int, extra [32]byte) (out attest.Quoted, err error) {
	err = m.t.do(ctx, func(b bus) error {
		for range 3 {
			q, matches, err := m.quote(b, selection, extra)
			if err != nil {
				return err
			}
			if matches {
				out = *q
				return nil
			}
		}
		return errors.New("TPM2_Quote: the PCRs keep changing while they are read")
	})
	return out, err
}

func (m *Machine) quote(b bus, selection []int, extra [32]byte) (q *attest.Quoted, matches bool, err error) {
	s, err := selected(selection)
	if err != nil {
		return nil, false, fmt.Errorf("TPM2_Quote: %w", err)
	}
	r, err := tpm2.Quote{
		SignHandle: authorised(m.ak), QualifyingData: tpm2.TPM2BData{Buffer: extra[:]},
		InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull}, PCRSelect: s,
	}.Execute(b)
	if err != nil {
		return nil, false, fmt.Errorf("TPM2_Quote: %w", err)
	}
	q = &attest.Quoted{Signed: attest.Signed{Attest: r.Quoted.Bytes(), Signature: tpm2.Marshal(r.Signature)}}
	if q.PCRs, err = b.pcrs(selection); err != nil {
		return nil, false, err
	}
	parsed, err := attest.ParseQuote(q.Attest)
	if err != nil {
		return nil, false, fmt.Errorf("TPM2_Quote: %w", err)
	}
	digest := attest.PCRDigest(q.PCRs)
	return q, bytes.Equal(digest[:], parsed.Digest), nil
}

// Clock reads the TPM's clock.
func (m *Machine) Clock(ctx context.Context) (out attest.ClockInfo, err error) {
	err = m.t.do(ctx, func(b bus) error {
		r, err := tpm2.ReadClock{}.Execute(b)
		if err != nil {
			return fmt.Errorf("TPM2_ReadClock: %w", err)
		}
		c := r.CurrentTime.ClockInfo
		out = attest.ClockInfo{Clock: c.Clock, ResetCount: c.ResetCount, RestartCount: c.RestartCount, Safe: bool(c.Safe)}
		return nil
	})
	return out, err
}
