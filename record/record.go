// Package record defines the bytes that are signed: what an entry of the log is, how it is hashed into a tree, what a checkpoint
// and a receipt say. It is pure: it opens no file, reads no clock and holds no key.
//
//	canonical.go  canonical JSON, the one encoding of everything below (RFC 8785, strict profile)
//	scan.go       the same rules in one pass without allocation: says "canonical" or "do not know"
//	event.go      what a producer may say; eventscan.go is its fast path
//	entry.go      the envelope around every body in the log; frame.go encodes it for a whole batch
//	bodies.go     bodies of the daemon's own entries: system, access, blob; token.go that of an RFC 3161 token
//	tree.go       the RFC 6962 Merkle tree as its right edge, and proofs from it; hasher.go hashes a whole log's fast
//	checkpoint.go the signed head (C2SP tlog-checkpoint); keys.go who signs it and how (C2SP signed-note)
//	receipt.go    what a producer keeps; proof.go the same as a C2SP tlog-proof file; bundle.go entries as tile data
//	words.go      a hash as words to read aloud
//
// Every format has one encoding. A parser accepts only what the encoder makes, so bytes that were accepted can be hashed, stored
// and compared as they are. All input is treated as hostile: size is checked before work, depth while reading, and a refusal is a
// *FieldError that names the member.
package record

import (
	"fmt"

	"golang.org/x/mod/sumdb/tlog"
)

// Hash is a SHA-256 hash; its text form is standard base64.
type Hash = tlog.Hash

// Limits of the formats.
const (
	MaxEntry       = 65535        // bytes of an entry: the length prefix of a C2SP entry bundle has two bytes
	MaxEvent       = 60000        // canonical bytes of an event, which leaves room for the envelope
	MaxEventSource = 6 * MaxEvent // bytes of an event as it is received, before canonicalization
	MaxDepth       = 8            // nested objects and arrays, counted from the entry
	MaxInt         = 1<<53 - 1    // numbers lie within +-MaxInt (RFC 7493 section 2.2)
	MaxOrigin      = 255          // bytes of a log's origin
	MaxCheckpoint  = 256 << 10    // bytes of a signed checkpoint: room for 16 post-quantum cosignatures
	MaxProof       = 63           // hashes of an inclusion proof
	MaxReceipt     = 512 << 10    // bytes of a receipt in either form
	MaxBundle      = 256          // entries of a bundle
	maxBundleBytes = 256 * (2 + MaxEntry)
)

// FieldError is input that was refused. Its text is meant for whoever sent the input.
type FieldError struct {
	Field    string // path of the member, as `data.items[3].name`; "" is the whole input
	Reason   string // what is wrong and what would be right
	TooLarge bool   // the input is over a limit of size
}

func (e *FieldError) Error() string {
	if e.Field == "" {
		return e.Reason
	}
	return e.Field + ": " + e.Reason
}

// within prefixes the path of a refused member with that of the value it was found in.
func within(path string, err error) error {
	fe, ok := err.(*FieldError)
	if !ok {
		return fmt.Errorf("%s: %w", path, err)
	}
	c := *fe
	switch {
	case c.Field == "":
		c.Field = path
	case c.Field[0] == '[':
		c.Field = path + c.Field
	default:
		c.Field = path + "." + c.Field
	}
	return &c
}

func refuse(field, format string, args ...any) error {
	return &FieldError{Field: field, Reason: fmt.Sprintf(format, args...)}
}

func tooLarge(field string, size, limit int) error {
	return &FieldError{Field: field, Reason: fmt.Sprintf("%d bytes are too many: the limit is %d", size, limit), TooLarge: true}
}

// Code says why something was refused; sockets, HTTP and the log's own records share the codes.
type Code string

const (
	CodeInvalid   Code = "invalid"   // the request is malformed: do not repeat it as it is
	CodeTooLarge  Code = "too_large" // over a limit of size or number
	CodeForbidden Code = "forbidden" // the caller has no right to it
	CodeConflict  Code = "conflict"  // the same id or stream number was used with other content
	CodeStale     Code = "stale"     // a stream number at or below the last one
	CodeBusy      Code = "busy"      // queues are full: try again
	CodeClock     Code = "clock"     // policy forbids events in this state of the clock
	CodeHSM       Code = "hsm"       // the signing key cannot be used
	CodeTPM       Code = "tpm"       // the TPM cannot be used, or a seal is pending
	CodeDisk      Code = "disk"      // the log cannot be made durable
	CodeRollback  Code = "rollback"  // the log is older than its TPM
	CodeUnsealed  Code = "unsealed"  // the last seal is too old
	CodeInternal  Code = "internal"  // a fault of the program
)

func (c Code) known() bool {
	switch c {
	case CodeInvalid, CodeTooLarge, CodeForbidden, CodeConflict, CodeStale, CodeBusy, CodeClock, CodeHSM, CodeTPM, CodeDisk, CodeRollback, CodeUnsealed, CodeInternal:
		return true
	}
	return false
}
