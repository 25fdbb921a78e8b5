// Package tpm talks to a TPM 2.0: quotes, a counter, signing keys, sealed secrets. It satisfies attest.TPM for an enrolled machine, and its keys are
// crypto.Signers.
//
//	transport.go device.go   commands and responses
//	tpm.go                   a TPM and what every operation needs
//	enrol.go ek.go           making a machine's attestation key and counter; endorsement keys and their certificates
//	machine.go               an enrolled machine
//	key.go                   keys that sign logs
//	secret.go policy.go      secrets sealed to approved PCR values
//	auth.go                  the authorisation of its hierarchies
//
// The transport is our own because a TPM hangs, restarts and loses answers: every command has a deadline, a broken connection is
// made anew for the next command, the TPM's "try again" codes are waited out, and a command whose answer was lost is reported as
// attest.ErrUnknown, so that nobody repeats an increment blindly. An operation has the TPM to itself until it ends.
package tpm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"bulla/attest"
	"bulla/record"
)

// Config says where a TPM is.
type Config struct {
	Address string        // /dev/tpmrm0, or unix:PATH of an swtpm's data socket
	Timeout time.Duration // of one command, waiting for "try again" included; 0: 10 s (a TPM may take seconds to make a key)
}

// TPM is an open TPM. Its methods may be used concurrently; the TPM executes one operation at a time.
type TPM struct {
	conn  *conn
	busy  chan struct{} // holds one element while an operation is under way
	owner []byte        // the owner's authorisation, for operations that need it; see UseOwner
}

// Open opens a TPM and makes sure that it answers. On one without a resource manager it flushes what an earlier process left loaded,
// then and whenever the connection has to be made anew: three objects or sessions fill a TPM.
func Open(ctx context.Context, cfg Config) (*TPM, error) {
	c, err := newConn(cfg)
	if err != nil {
		return nil, err
	}
	t := &TPM{conn: c, busy: make(chan struct{}, 1)}
	err = t.do(ctx, func(b bus) error {
		_, err := tpm2.ReadClock{}.Execute(b)
		return err
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening the TPM at %s: %w", cfg.Address, err), c.close())
	}
	return t, nil
}

// Close lets go of the TPM.
func (t *TPM) Close() error {
	t.busy <- struct{}{}
	defer func() { <-t.busy }()
	return t.conn.close()
}

// bus is the TPM for the time of one operation, which has it to itself. It is a go-tpm transport, which is why it holds the context.
type bus struct {
	ctx  context.Context
	c    *conn
	auth []byte // the owner's authorisation
}

var _ transport.TPM = bus{}

// Send sends a command and returns its response.
func (b bus) Send(in []byte) ([]byte, error) { return b.c.exchange(b.ctx, in) }

// do runs an operation.
func (t *TPM) do(ctx context.Context, operation func(b bus) error) error {
	select {
	case t.busy <- struct{}{}:
		defer func() { <-t.busy }()
	case <-ctx.Done():
		return fmt.Errorf("%w: waiting for another operation: %w", ErrUnavailable, ctx.Err())
	}
	return operation(bus{ctx, t.conn, t.owner})
}

// outcome is the error of a command that changes something: unless the TPM refused it, or it never left, it may have been executed.
func outcome(err error) error {
	var code tpm2.TPMRC
	if err == nil || errors.As(err, &code) || errors.Is(err, ErrUnavailable) || errors.Is(err, attest.ErrUnknown) {
		return err
	}
	return fmt.Errorf("%w: %w", attest.ErrUnknown, err)
}

// absent reports whether a command failed because there is nothing at a handle or index.
func absent(err error) bool { return errors.Is(err, tpm2.TPMRCHandle) }

// flushAll removes transient objects and sessions that were left behind.
func flushAll(b transport.TPM) error {
	for _, first := range []tpm2.TPMHandle{0x80000000, 0x02000000, 0x03000000} {
		handles, err := handlesFrom(b, first)
		if err != nil {
			return err
		}
		for _, h := range handles {
			if err := flush(b, h); err != nil {
				return err
			}
		}
	}
	return nil
}

func flush(b transport.TPM, h tpm2.TPMHandle) error {
	if _, err := (tpm2.FlushContext{FlushHandle: h}).Execute(b); err != nil {
		return fmt.Errorf("TPM2_FlushContext 0x%08X: %w", uint32(h), err)
	}
	return nil
}

// handlesFrom lists the handles in use of the first one's kind, from it on.
func handlesFrom(b transport.TPM, first tpm2.TPMHandle) ([]tpm2.TPMHandle, error) {
	r, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: uint32(first), PropertyCount: 254}.Execute(b)
	if err != nil {
		return nil, fmt.Errorf("TPM2_GetCapability handles 0x%08X: %w", uint32(first), err)
	}
	l, err := r.CapabilityData.Data.Handles()
	if err != nil {
		return nil, fmt.Errorf("TPM2_GetCapability handles 0x%08X: %w", uint32(first), err)
	}
	return l.Handle, nil
}

// property reads fixed properties, as many as out holds, from p on.
func (b bus) properties(p tpm2.TPMPT, out []uint32) error {
	r, err := tpm2.GetCapability{Capability: tpm2.TPMCapTPMProperties, Property: uint32(p), PropertyCount: uint32(len(out))}.Execute(b)
	if err != nil {
		return fmt.Errorf("TPM2_GetCapability property %x: %w", uint32(p), err)
	}
	l, err := r.CapabilityData.Data.TPMProperties()
	if err != nil {
		return fmt.Errorf("TPM2_GetCapability property %x: %w", uint32(p), err)
	}
	for i := range out {
		if i >= len(l.TPMProperty) || l.TPMProperty[i].Property != p+tpm2.TPMPT(i) {
			return fmt.Errorf("TPM2_GetCapability property %x: the TPM does not tell", uint32(p)+uint32(i))
		}
		out[i] = l.TPMProperty[i].Value
	}
	return nil
}

// Info is what a TPM says about itself.
type Info struct {
	Manufacturer string
	Model        string
	Firmware     string
	ClockUpdate  uint32 // how often it saves its clock, ms: by so much the clock may go back when power is cut
}

// Info reads the TPM's description of itself.
func (t *TPM) Info(ctx context.Context) (info *Info, err error) {
	err = t.do(ctx, func(b bus) error {
		info, err = b.info()
		return err
	})
	return info, err
}

func (b bus) info() (*Info, error) {
	manufacturer, model, firmware, update := make([]uint32, 1), make([]uint32, 4), make([]uint32, 2), make([]uint32, 1)
	err := errors.Join(b.properties(tpm2.TPMPTManufacturer, manufacturer), b.properties(tpm2.TPMPTVendorString1, model),
		b.properties(tpm2.TPMPTFirmwareVersion1, firmware), b.properties(tpm2.TPMPTClockUpdate, update))
	if err != nil {
		return nil, err
	}
	return &Info{
		Manufacturer: text(manufacturer), Model: text(model), Firmware: fmt.Sprintf("%08x%08x", firmware[0], firmware[1]), ClockUpdate: update[0],
	}, nil
}

// text reads properties that hold four characters each.
func text(values []uint32) string {
	var b []byte
	for _, v := range values {
		b = binary.BigEndian.AppendUint32(b, v)
	}
	b = slices.DeleteFunc(b, func(c byte) bool { return c < ' ' || c > '~' })
	return strings.TrimSpace(string(b))
}

// nvName reads the Name of an NV index.
func (b bus) nvName(index tpm2.TPMHandle) (tpm2.NamedHandle, error) {
	r, err := tpm2.NVReadPublic{NVIndex: index}.Execute(b)
	if err != nil {
		return tpm2.NamedHandle{}, fmt.Errorf("TPM2_NV_ReadPublic 0x%08X: %w", uint32(index), err)
	}
	return tpm2.NamedHandle{Handle: index, Name: r.NVName}, nil
}

func (b bus) nvRead(index tpm2.NamedHandle, size, offset uint16) ([]byte, error) {
	r, err := tpm2.NVRead{AuthHandle: authorised(index), NVIndex: index, Size: size, Offset: offset}.Execute(b)
	if err != nil {
		return nil, fmt.Errorf("TPM2_NV_Read 0x%08X: %w", uint32(index.Handle), err)
	}
	return r.Data.Buffer, nil
}

func (b bus) increment(index tpm2.NamedHandle) error {
	if _, err := (tpm2.NVIncrement{AuthHandle: authorised(index), NVIndex: index}).Execute(b); err != nil {
		return fmt.Errorf("TPM2_NV_Increment: %w", outcome(err))
	}
	return nil
}

func (b bus) counter(index tpm2.NamedHandle) (uint64, error) {
	v, err := b.nvRead(index, 8, 0)
	if err != nil {
		return 0, err
	}
	if len(v) != 8 {
		return 0, fmt.Errorf("TPM2_NV_Read: %d bytes are not a counter", len(v))
	}
	return binary.BigEndian.Uint64(v), nil
}

// pcrs reads PCRs of the SHA-256 bank, one command each: a TPM gives no more than eight at a time.
func (b bus) pcrs(selection []int) ([]attest.PCRValue, error) {
	out := make([]attest.PCRValue, 0, len(selection))
	for _, index := range selection {
		s, err := selected([]int{index})
		if err != nil {
			return nil, err
		}
		r, err := tpm2.PCRRead{PCRSelectionIn: s}.Execute(b)
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

// selected is a selection of PCRs of the SHA-256 bank.
func selected(selection []int) (tpm2.TPMLPCRSelection, error) {
	bits := make([]byte, 3)
	for _, i := range selection {
		if i < 0 || i > 23 {
			return tpm2.TPMLPCRSelection{}, fmt.Errorf("there is no PCR %d", i)
		}
		bits[i/8] |= 1 << (i % 8)
	}
	return tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: bits}}}, nil
}

// persist makes a loaded object permanent.
func (b bus) persist(object tpm2.NamedHandle, at tpm2.TPMHandle) error {
	_, err := tpm2.EvictControl{Auth: b.owner(), ObjectHandle: &object, PersistentHandle: at}.Execute(b)
	if err != nil {
		return fmt.Errorf("TPM2_EvictControl 0x%08X: %w", uint32(at), outcome(err))
	}
	return nil
}

// vacant refuses a handle or index at which there is something.
func (b bus) vacant(h tpm2.TPMHandle) error {
	var err error
	if h>>24 == 0x01 {
		_, err = tpm2.NVReadPublic{NVIndex: h}.Execute(b)
	} else {
		_, err = tpm2.ReadPublic{ObjectHandle: h}.Execute(b)
	}
	switch {
	case err == nil:
		return fmt.Errorf("%w: 0x%08X is taken", ErrExists, uint32(h))
	case absent(err):
		return nil
	}
	return fmt.Errorf("is 0x%08X free: %w", uint32(h), err)
}

// authorised is a handle whose authorisation is empty.
func authorised(h tpm2.NamedHandle) tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: h.Handle, Name: h.Name, Auth: tpm2.PasswordAuth(nil)}
}
