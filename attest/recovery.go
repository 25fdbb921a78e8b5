package attest

import (
	"bytes"
	"fmt"

	"bulla/record"
)

// Recovery is what sealing goes on from when a store was found to be older than its TPM and people decided to go on with it: the TPM
// as it was found, and the last seal that is known. It is declared, not attested; the next seal shows whether the TPM was like that.
type Recovery struct {
	Clock    uint64      `json:"clock,string"`      // of the TPM, ms
	Counter  uint64      `json:"counter,string"`    // its value
	PCR      record.Hash `json:"pcr"`               // value of the seal PCR
	Previous record.Hash `json:"previous,omitzero"` // SHA-256 of the quote of seal number Seal; absent with none
	Resets   uint32      `json:"resets"`
	Restarts uint32      `json:"restarts"`
	Safe     bool        `json:"safe,omitzero"`
	Seal     uint64      `json:"seal"` // number of the last seal that is known, of any log; 0: none
}

// Encode returns the object for the entry.
func (r *Recovery) Encode() ([]byte, error) { return record.MarshalCanonical(r) }

// ParseRecovery reads it; it accepts what Encode makes and nothing else.
func ParseRecovery(b []byte) (*Recovery, error) {
	r := new(Recovery)
	if err := record.UnmarshalCanonical(b, r); err != nil {
		return nil, fmt.Errorf("recovery: %w", err)
	}
	if again, err := r.Encode(); err != nil || !bytes.Equal(again, b) {
		return nil, fmt.Errorf("recovery: not in its one encoding")
	}
	if r.Seal > record.MaxInt || (r.Seal == 0) != (r.Previous == record.Hash{}) {
		return nil, fmt.Errorf("recovery: seal and previous must name one seal, or none")
	}
	return r, nil
}
