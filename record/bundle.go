package record

import "encoding/binary"

// AppendBundle appends an entry to a C2SP tlog-tiles entry bundle: its length in two bytes, big-endian, and its bytes. The entry
// has at most MaxEntry bytes, as every entry has.
func AppendBundle(dst []byte, entry []byte) []byte {
	if len(entry) > MaxEntry {
		panic("record: an entry over MaxEntry was put into a bundle")
	}
	return append(binary.BigEndian.AppendUint16(dst, uint16(len(entry))), entry...)
}

// ParseBundle splits a bundle into its 1 to MaxBundle entries, which are parts of b and not yet checked.
func ParseBundle(b []byte) ([][]byte, error) { return AppendEntries(nil, b) }

// AppendEntries is ParseBundle into a slice that is there: it appends the entries.
func AppendEntries(dst [][]byte, b []byte) ([][]byte, error) {
	if len(b) > maxBundleBytes {
		return nil, tooLarge("", len(b), maxBundleBytes)
	}
	entries := dst
	for len(b) > 0 {
		if len(entries)-len(dst) == MaxBundle {
			return nil, refuse("", "a bundle has at most %d entries", MaxBundle)
		}
		if len(b) < 2 || len(b)-2 < int(binary.BigEndian.Uint16(b)) {
			return nil, refuse("", "the bundle ends within entry %d", len(entries)-len(dst))
		}
		n := 2 + int(binary.BigEndian.Uint16(b))
		entries = append(entries, b[2:n:n])
		b = b[n:]
	}
	if len(entries) == len(dst) {
		return nil, refuse("", "the bundle is empty")
	}
	return entries, nil
}
