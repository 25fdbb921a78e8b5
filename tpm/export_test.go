package tpm

import (
	"context"

	"github.com/google/go-tpm/tpm2"
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
