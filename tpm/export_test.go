package tpm

import (
	"context"
	"errors"
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

// SealPlainly seals and unseals a secret as one does who does not care about the bus.
func SealPlainly(t *TPM, secret []byte) error {
	return t.do(context.Background(), func(b bus) error {
		srk, err := b.storageRoot()
		if err != nil {
			return err
		}
		public := sealedTemplate(nil)
		public.ObjectAttributes.UserWithAuth = true
		created, err := tpm2.Create{
			ParentHandle: authorised(srk), InPublic: tpm2.New2B(public),
			InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{Data: tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: secret})}},
		}.Execute(b)
		if err != nil {
			return err
		}
		loaded, err := tpm2.Load{ParentHandle: authorised(srk), InPrivate: created.OutPrivate, InPublic: created.OutPublic}.Execute(b)
		if err != nil {
			return err
		}
		_, err = tpm2.Unseal{ItemHandle: authorised(tpm2.NamedHandle{Handle: loaded.ObjectHandle, Name: loaded.Name})}.Execute(b)
		return errors.Join(err, flush(b, loaded.ObjectHandle))
	})
}

// Lockouts is how many failed authorisations the TPM has counted.
func Lockouts(t *TPM) (uint32, error) {
	v := make([]uint32, 1)
	err := t.do(context.Background(), func(b bus) error { return b.properties(tpm2.TPMPTLockoutCounter, v) })
	return v[0], err
}

// Loaded is how many transient objects and sessions the TPM holds.
func Loaded(t *TPM) (n int, err error) {
	err = t.do(context.Background(), func(b bus) error {
		for _, first := range []tpm2.TPMHandle{0x80000000, 0x02000000, 0x03000000} {
			handles, err := handlesFrom(b, first)
			if err != nil {
				return err
			}
			n += len(handles)
		}
		return nil
	})
	return n, err
}
