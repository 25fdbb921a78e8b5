package tpm

import (
	"context"
	"os"

	"github.com/google/go-tpm/tpm2"

	"bulla/attest"
)

// Leak loads objects and does not flush them.
func Leak(t *TPM, n int) error {
	return t.do(context.Background(), func(b bus) error {
		for range n {
			if _, err := (tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}).Execute(b); err != nil {
				return err
			}
		}
		return nil
	})
}

// Endorsed returns the enrolment once with each endorsement key whose certificate leads to one of the roots.
func Endorsed(t *TPM, e *attest.Enrolment, roots string) (all []*attest.Enrolment, err error) {
	text, err := os.ReadFile(roots)
	if err != nil {
		return nil, err
	}
	pool, others, err := parseCertificates(text)
	if err != nil {
		return nil, err
	}
	err = t.do(context.Background(), func(b bus) error {
		for _, k := range endorsements {
			der, err := b.certificate(k.certificate)
			if absent(err) {
				continue
			}
			if err != nil {
				return err
			}
			chain, err := attest.VerifyEK(der, pool, others)
			if err != nil {
				return err
			}
			with := *e
			if with.EK, err = b.certified(chain[0], k.key, k.template); err != nil {
				return err
			}
			all = append(all, &with)
		}
		return nil
	})
	return all, err
}

// EvictEndorsements leaves the endorsement keys to be made from their templates.
func EvictEndorsements(t *TPM) error {
	return t.do(context.Background(), func(b bus) error {
		for _, k := range endorsements {
			r, err := tpm2.ReadPublic{ObjectHandle: k.key}.Execute(b)
			if absent(err) {
				continue
			}
			if err != nil {
				return err
			}
			if err := b.evict(tpm2.NamedHandle{Handle: k.key, Name: r.Name}); err != nil {
				return err
			}
		}
		return nil
	})
}

// StoreChain puts authorities' certificates where a TPM's maker puts them.
func StoreChain(t *TPM, chain []byte) error {
	return t.do(context.Background(), func(b bus) error {
		for i := firstChain; len(chain) > 0; i++ {
			part := chain[:min(len(chain), 700)]
			chain = chain[len(part):]
			_, err := tpm2.NVDefineSpace{
				AuthHandle: tpm2.TPMRHOwner,
				PublicInfo: tpm2.New2B(tpm2.TPMSNVPublic{
					NVIndex: i, NameAlg: tpm2.TPMAlgSHA256, DataSize: uint16(len(part)),
					Attributes: tpm2.TPMANV{NT: tpm2.TPMNTOrdinary, AuthRead: true, AuthWrite: true, OwnerRead: true, NoDA: true},
				}),
			}.Execute(b)
			if err != nil {
				return err
			}
			index, err := b.nvName(i)
			if err != nil {
				return err
			}
			if _, err := (tpm2.NVWrite{AuthHandle: authorised(index), NVIndex: index, Data: tpm2.TPM2BMaxNVBuffer{Buffer: part}}).Execute(b); err != nil {
				return err
			}
		}
		return nil
	})
}
