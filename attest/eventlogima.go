package attest

import (
	"bytes"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"bulla/record"
)

// IMAPCR is the PCR into which Linux measures what it opens and executes (IMA, the Integrity Measurement Architecture).
const IMAPCR = 10

// Measured is a file that the kernel measured.
type Measured struct {
	Path      string
	Algorithm string // as sha256
	Digest    []byte
}

// ErrIMA means that no beginning of an IMA list leads to the PCR's value.
var ErrIMA = errors.New("the IMA list does not lead to PCR 10")

// ReplayIMA reads the kernel's list of measurements (binary_runtime_measurements, little-endian; Linux, security/integrity/ima) and
// returns those that a value of PCR 10 in the SHA-256 bank proves: the beginning of the list that leads to it. What comes after was
// measured later. The kernel extends the SHA-256 of an entry's template data, up to Linux 5.7 its SHA-1 with zeros behind; an entry
// whose file was being written to is a violation, extends ones, and proves nothing about the file.
func ReplayIMA(list []byte, pcr record.Hash) ([]Measured, error) {
	if len(list) > record.MaxBlobPart*record.MaxBlobParts {
		return nil, fmt.Errorf("IMA list: %d bytes are too many", len(list))
	}
	var values [2]record.Hash // by SHA-256, and by SHA-1 with zeros
	var out []Measured
	for r := (&leReader{b: list}); len(r.b) > 0; {
		x, err := imaEntry(r)
		if err != nil {
			return nil, fmt.Errorf("IMA list: entry %d: %w", len(out)+1, err)
		}
		out = append(out, x.Measured)
		if len(out) > maxEvents*8 {
			return nil, errors.New("IMA list: too many entries")
		}
		for i, digest := range x.digests {
			if values[i] = ExtendPCR(values[i], digest); values[i] == pcr {
				return out, nil
			}
		}
	}
	return nil, ErrIMA
}

type imaMeasurement struct {
	Measured
	digests [2][32]byte // what may have been extended, by the kernel's version
}

// imaEntry reads an entry of the list. Templates other than those with a file's digest and name first are extended, and name nothing.
func imaEntry(r *leReader) (*imaMeasurement, error) {
	pcr, recorded := r.u32(), r.bytes(sha1.Size)
	name := r.bytes(int(r.u32()))
	if r.short || len(name) > 64 {
		return nil, errors.New("it is cut, or its template's name is too long")
	}
	if string(name) == "ima" {
		return nil, errors.New("it is of the template ima, whose data are not in the list as they were hashed: boot with ima_template=ima-ng")
	}
	data := r.bytes(int(r.u32()))
	if r.short {
		return nil, errors.New("it is cut")
	}
	if pcr != IMAPCR {
		return nil, fmt.Errorf("it is of PCR %d", pcr)
	}
	x := &imaMeasurement{}
	x.digests[0] = sha256.Sum256(data)
	sum := sha1.Sum(data)
	copy(x.digests[1][:], sum[:])
	if zero(recorded) { // a violation
		ones := bytes.Repeat([]byte{0xFF}, sha256.Size)
		copy(x.digests[0][:], ones)
		copy(x.digests[1][:], ones) // older kernels extend ones of every bank's size as well
		return x, nil
	}
	f := &leReader{b: data}
	digest, path := f.bytes(int(f.u32())), f.bytes(int(f.u32()))
	algorithm, value, ok := bytes.Cut(digest, []byte(":\x00"))
	if f.short || !ok {
		return x, nil
	}
	x.Measured = Measured{Path: strings.TrimRight(string(path), "\x00"), Algorithm: string(algorithm), Digest: value}
	return x, nil
}

// Find returns the path at which a file with the SHA-256 was measured, and whether it was.
func Find(measured []Measured, file record.Hash) (path string, ok bool) {
	for _, m := range measured {
		if m.Algorithm == "sha256" && hex.EncodeToString(m.Digest) == hex.EncodeToString(file[:]) {
			return m.Path, true
		}
	}
	return "", false
}
