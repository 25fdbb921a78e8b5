package record

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
)

// Checkpoint is a log's head (C2SP tlog-checkpoint v1.0.0, exactly three lines, no extension lines).
type Checkpoint struct {
	Origin string
	Size   uint64 // entries, at most MaxInt
	Root   Hash   // RFC 6962 tree head; SHA-256 of nothing at size 0
}

// Text is what is signed: origin, size and root, a line each. A checkpoint's identity is the SHA-256 of this text, never of the
// signed note: ECDSA signatures are malleable.
func (c Checkpoint) Text() string {
	return c.Origin + "\n" + strconv.FormatUint(c.Size, 10) + "\n" + c.Root.String() + "\n"
}

// ParseCheckpoint reads the text of a checkpoint; it accepts exactly what Text makes.
func ParseCheckpoint(text string) (Checkpoint, error) {
	if len(text) > MaxOrigin+1+16+1+44+1 {
		return Checkpoint{}, tooLarge("checkpoint", len(text), MaxOrigin+1+16+1+44+1)
	}
	lines := strings.Split(text, "\n")
	if len(lines) != 4 || lines[3] != "" {
		return Checkpoint{}, refuse("checkpoint", "must be three lines: origin, size, root hash")
	}
	c := Checkpoint{Origin: lines[0]}
	if err := CheckOrigin(c.Origin); err != nil {
		return Checkpoint{}, within("checkpoint.origin", err)
	}
	size, ok := integer([]byte(lines[1]))
	if !ok || size < 0 {
		return Checkpoint{}, refuse("checkpoint.size", "must be a decimal number of at most 2^53-1 without leading zero")
	}
	c.Size = uint64(size)
	if c.Root, ok = decodeHash(lines[2]); !ok {
		return Checkpoint{}, refuse("checkpoint.root", "must be the base64 of 32 bytes")
	}
	if c.Size == 0 && c.Root != sha256.Sum256(nil) {
		return Checkpoint{}, refuse("checkpoint.root", "must be the hash of nothing at size 0")
	}
	return c, nil
}

// OpenCheckpoint verifies a signed checkpoint. At least one of vs whose name is the checkpoint's origin must have signed it, and
// no signature of any of vs may be bad; signatures of others are in the note, unverified. Which of the verified ones suffice (all
// keys of a policy, a quorum of witnesses) is for the caller to judge by the note's Sigs.
func OpenCheckpoint(signed []byte, vs ...note.Verifier) (Checkpoint, *note.Note, error) {
	n, err := OpenNote(signed, vs...)
	if err != nil {
		return Checkpoint{}, nil, err
	}
	c, err := ParseCheckpoint(n.Text)
	if err != nil {
		return Checkpoint{}, nil, fmt.Errorf("opening checkpoint: %w", err)
	}
	for _, s := range n.Sigs {
		if s.Name == c.Origin {
			return c, n, nil
		}
	}
	return Checkpoint{}, nil, fmt.Errorf("opening checkpoint: origin %q is not the name of a key that signed it", c.Origin)
}

// OpenNote is note.Open for the one encoding of a note.
func OpenNote(signed []byte, vs ...note.Verifier) (*note.Note, error) {
	if len(signed) > MaxCheckpoint {
		return nil, tooLarge("checkpoint", len(signed), MaxCheckpoint)
	}
	if err := checkSignatureLines(signed, vs); err != nil {
		return nil, err
	}
	n, err := note.Open(signed, note.VerifierList(vs...))
	if err != nil {
		return nil, fmt.Errorf("opening checkpoint: %w", err)
	}
	return n, nil
}

// checkSignatureLines refuses what note.Open lets pass: base64 with spare bits, and a second line of a known key, which it would
// not verify.
func checkSignatureLines(signed []byte, vs []note.Verifier) error {
	split := bytes.LastIndex(signed, []byte("\n\n"))
	if split < 0 {
		return refuse("checkpoint", "not a signed note")
	}
	type key struct{ name, id string }
	seen := make(map[key]bool)
	for line := range strings.Lines(string(signed[split+2:])) {
		name, sig, ok := strings.Cut(strings.TrimPrefix(strings.TrimSuffix(line, "\n"), "— "), " ")
		raw, valid := decodeBase64(sig)
		if !ok || !valid || len(raw) < 5 {
			return refuse("checkpoint", "malformed signature line")
		}
		k := key{name, string(raw[:4])}
		if seen[k] && isKnown(vs, name, raw[:4]) {
			return refuse("checkpoint", "two signatures by one key of %q", clip(name, 40))
		}
		seen[k] = true
	}
	return nil
}
