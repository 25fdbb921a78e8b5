package attest

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"

	"bulla/record"
)

// Names of blobs with what was measured while a machine started.
const (
	BlobEventLog = "boot.eventlog" // binary_bios_measurements
	BlobIMA      = "boot.ima"      // binary_runtime_measurements
)

// Events of a boot event log that say something about the log, and were not extended (TCG PC Client Platform Firmware Profile, section
// 10.4.1).
const eventNoAction = 3

// Bounds of a boot event log.
const (
	maxEvents     = 1 << 17
	maxAlgorithms = 16
)

// ReplayEventLog returns the values that the PCRs of the SHA-256 bank have, by a boot event log (TCG PC Client Platform Firmware
// Profile, section 10; crypto-agile), after the last event in it. Only PCRs that it has events of are there. What the log says of an
// event beside its hash is not proved by the PCRs, and is not looked at.
func ReplayEventLog(log []byte) (map[int]record.Hash, error) {
	if len(log) > record.MaxBlobPart*record.MaxBlobParts {
		return nil, fmt.Errorf("boot event log: %d bytes are too many", len(log))
	}
	r := &leReader{b: log}
	sizes, err := specification(r)
	if err != nil {
		return nil, fmt.Errorf("boot event log: %w", err)
	}
	pcrs := map[int]record.Hash{}
	for n := 0; len(r.b) > 0 && !zero(r.b); n++ {
		if n == maxEvents {
			return nil, fmt.Errorf("boot event log: more than %d events", maxEvents)
		}
		if err := replayEvent(r, sizes, pcrs); err != nil {
			return nil, fmt.Errorf("boot event log: event %d: %w", n+1, err)
		}
	}
	if len(pcrs) == 0 {
		return nil, errors.New("boot event log: nothing in it was extended")
	}
	return pcrs, nil
}

// specification reads the first event, in the older form, which says which digests the others have.
func specification(r *leReader) (sizes map[uint16]int, err error) {
	r.u32() // PCR
	kind := r.u32()
	r.bytes(20)
	head := &leReader{b: r.bytes(int(r.u32()))}
	if r.short || kind != eventNoAction || !bytes.Equal(head.bytes(16), []byte("Spec ID Event03\x00")) {
		return nil, errors.New("it is not in the crypto-agile form: it has no SHA-256 digests")
	}
	head.bytes(8) // platform class, version, size of an integer
	count := head.u32()
	if count == 0 || count > maxAlgorithms {
		return nil, fmt.Errorf("%d hash algorithms are not 1 to %d", count, maxAlgorithms)
	}
	sizes = map[uint16]int{}
	for range count {
		algorithm, size := head.u16(), head.u16()
		sizes[algorithm] = int(size)
	}
	if head.short || sizes[sha256Algorithm] != sha256.Size {
		return nil, errors.New("it has no SHA-256 digests")
	}
	return sizes, nil
}

// sha256Algorithm is TPM_ALG_SHA256.
const sha256Algorithm = 0x000B

// replayEvent reads an event and extends its digest.
func replayEvent(r *leReader, sizes map[uint16]int, pcrs map[int]record.Hash) error {
	pcr, kind, count := r.u32(), r.u32(), r.u32()
	if r.short || count > maxAlgorithms {
		return errors.New("it is cut, or has too many digests")
	}
	var digest []byte
	for range count {
		algorithm := r.u16()
		size, known := sizes[algorithm]
		if !known {
			return fmt.Errorf("a digest by algorithm %04x, which the log does not name", algorithm)
		}
		if d := r.bytes(size); algorithm == sha256Algorithm {
			digest = d
		}
	}
	data := r.bytes(int(r.u32()))
	if r.short {
		return errors.New("it is cut")
	}
	if kind == eventNoAction {
		// The locality from which the platform was started is in PCR 0 before anything is extended (section 10.4.5.3).
		if locality, ok := bytes.CutPrefix(data, []byte("StartupLocality\x00")); ok && len(locality) == 1 {
			if _, started := pcrs[0]; started {
				return errors.New("the startup locality comes after something was extended into PCR 0")
			}
			pcrs[0] = record.Hash{31: locality[0]}
		}
		return nil
	}
	if pcr > 23 || digest == nil {
		return fmt.Errorf("it is of PCR %d, with %d digests", pcr, count)
	}
	pcrs[int(pcr)] = ExtendPCR(pcrs[int(pcr)], [32]byte(digest))
	return nil
}

// Differing returns the PCRs, ascending, that a seal quotes with other values than a boot event log leads to, and how many are as it
// says. PCRs from 8 on belong to the operating system, which need not keep to the log: they count only where they agree.
func Differing(log map[int]record.Hash, quoted []PCRValue) (agree int, differ []int) {
	for _, pcr := range slices.Sorted(maps.Keys(log)) {
		i := slices.IndexFunc(quoted, func(v PCRValue) bool { return v.Index == pcr })
		switch {
		case i < 0:
		case quoted[i].Value == log[pcr]:
			agree++
		case pcr < 8:
			differ = append(differ, pcr)
		}
	}
	return agree, differ
}

func zero(b []byte) bool { return !slices.ContainsFunc(b, func(c byte) bool { return c != 0 }) }

// leReader reads what little-endian machines write. Reading beyond the end gives zeros, and short says so.
type leReader struct {
	b     []byte
	short bool
}

func (r *leReader) bytes(n int) []byte {
	if n < 0 || n > len(r.b) {
		r.short = true
		r.b = nil
		return nil
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

func (r *leReader) u16() uint16 {
	if b := r.bytes(2); b != nil {
		return binary.LittleEndian.Uint16(b)
	}
	return 0
}

func (r *leReader) u32() uint32 {
	if b := r.bytes(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}
