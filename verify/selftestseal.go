package verify

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"encoding/asn1"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/big"
	"slices"

	"bulla/attest"
	"bulla/record"
)

// deviation is how a forged seal differs from the one that the TPM would have made next. Each member may change one thing, in this
// order; what is derived from it follows.
type deviation struct {
	heads     func(h *history, logs []attest.Head) error // over which the counter is certified
	counter   func(a *attestation)                       // before it is signed
	statement func(st *attest.Statement)
	values    func(p []attest.PCRValue) []attest.PCRValue // before they are quoted
	quote     func(q *attestation)                        // before it is signed
	seal      func(x *attest.Seal)
}

// nextSeal makes the seal that follows the last one of the evidence, over the history's end.
func (s *subject) nextSeal(ctx context.Context, h *history, d deviation) (*record.Entry, error) {
	e, err := s.entry(ctx, s.seal.index)
	if err != nil {
		return nil, err
	}
	last, err := attest.ParseSeal(e.Body)
	if err != nil {
		return nil, err
	}
	st, err := attest.ParseStatement(last.Statement)
	if err != nil {
		return nil, err
	}
	a, q, err := attestations(last)
	if err != nil {
		return nil, err
	}
	c, err := h.checkpoint()
	if err != nil {
		return nil, err
	}
	// What a TPM says next: of the same boot, a little later, with the counter as it is.
	extended := attest.ExtendPCR(st.PCR.Before, sha256.Sum256(last.Statement))
	logs := []attest.Head{{Hash: sha256.Sum256([]byte(c.Text())), Log: c.Origin, Size: c.Size}}
	if d.heads != nil {
		if err := d.heads(h, logs); err != nil {
			return nil, err
		}
	}
	heads, err := attest.HeadsHash(logs)
	if err != nil {
		return nil, err
	}
	a.clock, a.resets, a.restarts, a.safe, a.firmware, a.extra = q.clock+10, q.resets, q.restarts, q.safe, q.firmware, heads[:]
	if d.counter != nil {
		d.counter(a)
	}
	q.clock, q.resets, q.restarts, q.firmware = a.clock+10, a.resets, a.restarts, a.firmware
	out := &attest.Seal{}
	if out.Counter, err = s.attest(a); err != nil {
		return nil, err
	}
	next := &attest.Statement{
		Counter: attest.StatementCounter{Attest: sha256.Sum256(out.Counter.Attest), Name: st.Counter.Name}, Logs: logs, Number: st.Number + 1,
		PCR: attest.StatementPCR{Before: extended, Index: st.PCR.Index}, Previous: sha256.Sum256(last.Quote.Attest), Reason: "interval", Software: st.Software, V: 1,
	}
	if d.statement != nil {
		d.statement(next)
	}
	statement, err := next.Encode()
	if err != nil {
		return nil, err
	}
	digest := sha256.Sum256(statement)
	out.Statement, out.PCRs = json.RawMessage(statement), slices.Clone(last.PCRs)
	for i := range out.PCRs {
		if out.PCRs[i].Index == next.PCR.Index {
			out.PCRs[i].Value = attest.ExtendPCR(next.PCR.Before, digest)
		}
	}
	if d.values != nil {
		out.PCRs = d.values(out.PCRs)
	}
	values := attest.PCRDigest(out.PCRs)
	q.extra = digest[:]
	copy(q.rest[len(q.rest)-len(values):], values[:])
	if d.quote != nil {
		d.quote(q)
	}
	if out.Quote, err = s.attest(q); err != nil {
		return nil, err
	}
	if d.seal != nil {
		d.seal(out)
	}
	if e.Body, err = out.Encode(); err != nil {
		return nil, err
	}
	return e, nil
}

// attest signs an attestation as a TPM does (TPMT_SIGNATURE: ECDSA with SHA-256; TPM 2.0 Library, Part 2, section 11.3.4).
func (s *subject) attest(a *attestation) (attest.Signed, error) {
	out := attest.Signed{Attest: a.encode()}
	digest := sha256.Sum256(out.Attest)
	der, err := s.keys.seals.Sign(nil, digest[:], crypto.SHA256)
	if err != nil {
		return out, fmt.Errorf("signing an attestation: %w", err)
	}
	var sig struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(der, &sig); err != nil {
		return out, fmt.Errorf("signing an attestation: %w", err)
	}
	out.Signature = []byte{0x00, 0x18, 0x00, 0x0B}
	for _, x := range []*big.Int{sig.R, sig.S} {
		out.Signature = sized(out.Signature, x.FillBytes(make([]byte, 32)))
	}
	return out, nil
}

// attestation is a TPMS_ATTEST taken apart (TPM 2.0 Library, Part 2, section 10.12.12), as far as it is changed.
type attestation struct {
	kind             []byte // magic and type
	signer, extra    []byte
	clock            uint64
	resets, restarts uint32
	safe             byte
	firmware         uint64
	rest             []byte // what is attested: of a counter its Name, an offset and 8 bytes; of a quote the selection and a digest
}

// value sets the counter that an attestation certifies.
func (a *attestation) value(n uint64) { binary.BigEndian.PutUint64(a.rest[len(a.rest)-8:], n) }

// counted is the counter that it certifies.
func (a *attestation) counted() uint64 { return binary.BigEndian.Uint64(a.rest[len(a.rest)-8:]) }

// attestations takes those of a seal apart.
func attestations(x *attest.Seal) (a, q *attestation, err error) {
	if _, err := attest.ParseCertify(x.Counter.Attest); err != nil {
		return nil, nil, err
	}
	if _, err := attest.ParseQuote(x.Quote.Attest); err != nil {
		return nil, nil, err
	}
	return takeApart(x.Counter.Attest), takeApart(x.Quote.Attest), nil
}

// takeApart takes bytes apart that package attest has parsed.
func takeApart(b []byte) *attestation {
	b = bytes.Clone(b)
	next := func(n int) (out []byte) {
		out, b = b[:n:n], b[n:]
		return out
	}
	sized := func() []byte { return next(int(binary.BigEndian.Uint16(next(2)))) }
	a := &attestation{kind: next(6)}
	a.signer = sized()
	a.extra = sized()
	a.clock = binary.BigEndian.Uint64(next(8))
	a.resets = binary.BigEndian.Uint32(next(4))
	a.restarts = binary.BigEndian.Uint32(next(4))
	a.safe = next(1)[0]
	a.firmware = binary.BigEndian.Uint64(next(8))
	a.rest = b
	return a
}

func (a *attestation) encode() []byte {
	out := slices.Clone(a.kind)
	out = sized(sized(out, a.signer), a.extra)
	out = binary.BigEndian.AppendUint64(out, a.clock)
	out = binary.BigEndian.AppendUint32(out, a.resets)
	out = append(binary.BigEndian.AppendUint32(out, a.restarts), a.safe)
	out = binary.BigEndian.AppendUint64(out, a.firmware)
	return append(out, a.rest...)
}

func sized(dst, b []byte) []byte {
	return append(binary.BigEndian.AppendUint16(dst, uint16(len(b))), b...)
}
