package record

import (
	"bytes"
	"encoding/base64"
	"strconv"
)

const proofHeader = "c2sp.org/tlog-proof@v1\n"

// TLogProof returns the receipt, without the entry, as a C2SP tlog-proof file.
func (r Receipt) TLogProof() []byte {
	out := append([]byte(proofHeader), "index "...)
	out = append(strconv.AppendUint(out, r.Index, 10), '\n')
	for _, h := range r.Proof {
		out = append(base64.StdEncoding.AppendEncode(out, h[:]), '\n')
	}
	return append(append(out, '\n'), r.Checkpoint...)
}

// ParseTLogProof reads a C2SP tlog-proof file; it accepts exactly what TLogProof makes, so no `extra` line: nothing would
// authenticate it. The checkpoint is a part of b, not yet opened.
func ParseTLogProof(b []byte) (index uint64, proof []Hash, checkpoint []byte, err error) {
	if limit := len(proofHeader) + 32 + MaxProof*45 + MaxCheckpoint; len(b) > limit {
		return 0, nil, nil, tooLarge("", len(b), limit)
	}
	rest, ok := bytes.CutPrefix(b, []byte(proofHeader))
	if !ok {
		return 0, nil, nil, refuse("", "not a c2sp.org/tlog-proof@v1 file")
	}
	line, rest, ok := bytes.Cut(rest, []byte("\n"))
	number, isIndex := bytes.CutPrefix(line, []byte("index "))
	n, isInt := integer(number)
	if !ok || !isIndex || !isInt || n < 0 {
		return 0, nil, nil, refuse("index", "must be `index` and a decimal number of at most 2^53-1")
	}
	for {
		if line, rest, ok = bytes.Cut(rest, []byte("\n")); !ok {
			return 0, nil, nil, refuse("proof", "must end in an empty line")
		}
		if len(line) == 0 {
			break
		}
		h, ok := decodeHash(string(line))
		if !ok {
			return 0, nil, nil, refuse("proof", "hash %d must be the base64 of 32 bytes", len(proof))
		}
		if len(proof) == MaxProof {
			return 0, nil, nil, refuse("proof", "more than %d hashes", MaxProof)
		}
		proof = append(proof, h)
	}
	if len(rest) == 0 || len(rest) > MaxCheckpoint {
		return 0, nil, nil, refuse("checkpoint", "must have 1 to %d bytes", MaxCheckpoint)
	}
	return uint64(n), proof, rest, nil
}
