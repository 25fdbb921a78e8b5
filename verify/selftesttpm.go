package verify

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"slices"

	"bulla/attest"
	"bulla/ceremony"
)

// What somebody can do who has the machine: its TPM signs for him, and says truthfully how it is.

// deviates is a mutation that appends, behind the last seal, the next one with a deviation.
func deviates(d deviation) func(context.Context, *subject) (*trial, error) {
	return func(ctx context.Context, s *subject) (*trial, error) {
		i, err := s.seal.or("the log holds no seal")
		if err != nil {
			return nil, err
		}
		next := s.history(i + 1)
		e, err := s.nextSeal(ctx, next, deviation{})
		if err != nil {
			return nil, err
		}
		honest, err := next.add(e).export(ctx)
		if err != nil {
			return nil, err
		}
		h := s.history(i + 1)
		if e, err = s.nextSeal(ctx, h, d); err != nil {
			return nil, err
		}
		return h.add(e).finish(ctx, &exhibit{name: "the next seal", src: honest}, at(i+1))
	}
}

// quotesLess has the next seal leave a PCR out that tells what was booted.
func quotesLess(ctx context.Context, s *subject) (*trial, error) {
	if s.enrolled == nil || len(s.governed.Seal.PCRs) < 2 {
		return nil, inapplicable("the policy wants no PCR quoted but that of the seals")
	}
	out := s.governed.Seal.PCRs[0]
	if out == s.enrolled.PCR {
		out = s.governed.Seal.PCRs[1]
	}
	return deviates(deviation{
		values: func(p []attest.PCRValue) []attest.PCRValue {
			return slices.DeleteFunc(p, func(v attest.PCRValue) bool { return v.Index == out })
		},
		quote: func(q *attestation) { q.rest[7+out/8] &^= 1 << (out % 8) }, // behind their number, the hash and its size
	})(ctx, s)
}

// abandonedWithoutReset has a seal list another one as interrupted, when the machine was not reset.
func abandonedWithoutReset(ctx context.Context, s *subject) (*trial, error) {
	i, err := s.seal.or("the log holds no seal")
	if err != nil {
		return nil, err
	}
	h := s.history(i + 1)
	e, err := s.nextSeal(ctx, h, deviation{})
	if err != nil {
		return nil, err
	}
	interrupted, err := attest.ParseSeal(e.Body)
	if err != nil {
		return nil, err
	}
	list, err := attest.Abandon(interrupted.Statement, interrupted.Counter)
	if err != nil {
		return nil, err
	}
	return deviates(deviation{
		counter: func(a *attestation) { a.clock += 100 },
		statement: func(st *attest.Statement) {
			st.Number++
			st.Abandoned = list
		},
	})(ctx, s)
}

// smallerHead seals the log as it was at its first entry.
func smallerHead(h *history, logs []attest.Head) error {
	c, err := h.s.history(1).checkpoint()
	logs[0] = attest.Head{Hash: sha256.Sum256([]byte(c.Text())), Log: c.Origin, Size: 1}
	return err
}

// swapAK has the genesis enrol another attestation key, of the thief's; the policy names the one that is to be.
func swapAK(ctx context.Context, s *subject) (*trial, error) {
	if s.enrolled == nil {
		return nil, inapplicable("the log began without a TPM")
	}
	policy := *s.policy
	policy.AKs = [][]byte{s.enrolled.AKName}
	t, err := regenesis(func(s *subject, g *ceremony.Genesis) error {
		key, err := s.ecdsaKey("attestation")
		if err != nil {
			return err
		}
		point, err := key.PublicKey.Bytes()
		if err != nil {
			return err
		}
		ak := bytes.Clone(g.TPM.AK) // ends with the coordinates of its point, each with its size
		ak = ak[:len(ak)-2*(2+32)]
		ak = sized(sized(ak, point[1:33]), point[33:])
		name := sha256.Sum256(ak)
		g.TPM.AK, g.TPM.AKName = ak, append([]byte{0x00, 0x0B}, name[:]...)
		return nil
	})(ctx, s)
	if err != nil {
		return nil, err
	}
	t.policy = &policy
	t.honest = &exhibit{name: "the attestation key in the policy", src: s.src, policy: &policy}
	return t, nil
}

// unendorse has the genesis enrol a TPM that no authority certifies, where the policy names the authority of the one that is to be.
func unendorse(ctx context.Context, s *subject) (*trial, error) {
	if s.enrolled == nil {
		return nil, inapplicable("the log began without a TPM")
	}
	chain := s.enrolled.EKCertificates
	policy := *s.policy
	if len(policy.EKRoots) == 0 {
		if len(chain) < 2 {
			return nil, inapplicable("no authority of the TPM's maker is in the evidence or in the policy")
		}
		policy.EKRoots = chain[len(chain)-1:]
	}
	t, err := regenesis(func(_ *subject, g *ceremony.Genesis) error {
		g.TPM.EKCertificates = [][]byte{}
		return nil
	})(ctx, s)
	if err != nil {
		return nil, err
	}
	t.policy = &policy
	t.honest = &exhibit{name: "the TPM's maker in the policy", src: s.src, policy: &policy}
	return t, nil
}

// unrestrictAK has the genesis enrol an attestation key that signs whatever it is given.
func unrestrictAK(s *subject, g *ceremony.Genesis) error {
	if g.TPM == nil {
		return inapplicable("the log has no TPM enrolled")
	}
	const restricted = 1 << 16 // of TPMA_OBJECT, behind type and nameAlg (TPM 2.0 Library, Part 2, section 8.3)
	ak := bytes.Clone(g.TPM.AK)
	binary.BigEndian.PutUint32(ak[4:], binary.BigEndian.Uint32(ak[4:])&^restricted)
	name := sha256.Sum256(ak)
	g.TPM.AK, g.TPM.AKName = ak, append([]byte{0x00, 0x0B}, name[:]...)
	return nil
}
