package verify

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"bulla/record"
)

// readHead reads the checkpoint and its text. Signatures are judged at the end, when it is known whose must be there.
func (r *run) readHead(ctx context.Context) error {
	b, ok, err := read(ctx, r.src, checkpoint, record.MaxCheckpoint)
	if err != nil {
		return err
	}
	if !ok {
		r.miss("there is no checkpoint: without a signed head nothing says what the log is", claimNames...)
		return nil
	}
	r.signed = b
	if r.head, err = headText(b); err != nil {
		r.find(Finding{Rule: "checkpoint.format", File: checkpoint, Expected: "a signed note over origin, size and root", Found: err.Error()})
		r.miss("the checkpoint cannot be read", claimNames...)
		return nil
	}
	r.headOK, r.origin = true, r.head.Origin
	text := sha256.Sum256([]byte(r.head.Text()))
	r.report.Log, r.report.Size, r.report.Root, r.report.Head = r.head.Origin, r.head.Size, base64Hash(r.head.Root), hex.EncodeToString(text[:])
	return nil
}

// identify finds out which log this is. Where the first entry is of another log than the head, one finding says so, and the entries
// are judged as what they are.
func (r *run) identify(ctx context.Context) error {
	if r.head.Size == 0 {
		return nil
	}
	b, err := r.bundleAt(ctx, 0)
	if err != nil {
		return err
	}
	r.first = b.slots[0].leaf
	if len(b.items) > 0 && b.items[0].slot == 0 && b.slots[0].fault != nil && b.slots[0].fault.Rule == "entry.log" {
		if b.tile != nil && b.tile[0] != b.slots[0].leaf {
			return nil // the entry was changed, not the head
		}
		r.origin = b.items[0].entry.Log
		r.find(Finding{Rule: "checkpoint.origin", File: checkpoint, Expected: "origin " + quote(r.origin), Found: "origin " + quote(r.head.Origin)})
	}
	return nil
}

// headText reads a signed checkpoint's text without looking at its signatures.
func headText(signed []byte) (record.Checkpoint, error) {
	if len(signed) > record.MaxCheckpoint {
		return record.Checkpoint{}, fmt.Errorf("more than %d bytes", record.MaxCheckpoint)
	}
	text, lines, ok := bytes.Cut(signed, []byte("\n\n"))
	if !ok || len(lines) == 0 {
		return record.Checkpoint{}, fmt.Errorf("no signature lines")
	}
	return record.ParseCheckpoint(string(text) + "\n")
}

// judgeSignatures checks the head under every key of the log: those that the policy pins, and those that govern it. The ECDSA lines
// must be there; an additional Ed25519 line may be missing (it is not in receipts, nor in what comes from a store at rest), but not
// be wrong.
func (r *run) judgeSignatures() {
	required, pinned := r.fold.signers(r.head.Size)
	for _, vkey := range required {
		missing, err := r.checkLine(r.signed, vkey)
		if errors.Is(err, errNoLine) && !r.fold.followed() { // an incomplete copy contradicts nothing
			r.miss(fmt.Sprintf("the head has no line by %s, and what governs the log could not be followed: a ceremony may have replaced the key", short(vkey)), ClaimSignatures)
		} else if err != nil {
			r.find(Finding{Rule: "checkpoint.signature", File: checkpoint, Expected: "a valid line by " + short(vkey), Found: err.Error()})
		} else if missing {
			r.remark("the checkpoint has no line by the additional key %s; those who know only that key cannot check it", short(vkey))
		}
	}
	if other, name := r.foreignLine(); other {
		r.find(Finding{Rule: "checkpoint.origin", File: checkpoint, Expected: "origin " + quote(name), Found: "origin " + quote(r.head.Origin)})
	}
	r.remarkUnknown("the checkpoint", r.signed, required)
	if _, ok := r.policy.genesis(r.origin); pinned && !ok {
		r.remarkReplaced(required)
	}
	switch {
	case r.policy == nil:
		r.miss("no policy was given: the log's keys are known only from the log itself", ClaimSignatures)
	case !pinned:
		r.miss(fmt.Sprintf("the policy has no key of log %q", r.origin), ClaimSignatures)
	}
	r.covered(r.head.Size, ClaimSignatures)
}

// remarkReplaced misses the signatures where the policy's keys were replaced, and it has no genesis to say that they rightly were.
func (r *run) remarkReplaced(required []string) {
	for _, v := range r.policy.keys(r.origin) {
		if !slices.Contains(required, v) {
			r.miss(fmt.Sprintf("the log says that its key %s was replaced by a ceremony, and the policy has no genesis to trust that from", short(v)), ClaimSignatures)
		}
	}
}

// foreignLine reports whether the head carries a valid line of a log that the policy knows under another name: the key's holder
// signed this text, with an origin that is not its own.
func (r *run) foreignLine() (found bool, name string) {
	if r.policy == nil {
		return false, ""
	}
	for _, vkey := range r.policy.VKeys {
		if vkeyName(vkey) == r.head.Origin {
			continue
		}
		if v, err := record.NewVerifier(vkey); err == nil {
			if _, err := note.Open(r.signed, note.VerifierList(v)); err == nil {
				return true, vkeyName(vkey)
			}
		}
	}
	return false, ""
}

// remarkUnknown says how many signature lines of a note are by none of the keys, and by no witness of the policy.
func (r *run) remarkUnknown(name string, signed []byte, vkeys []string) {
	if unknown := r.unknownLines(signed, vkeys); unknown > 0 {
		r.remark("%d signature line(s) of %s are by keys that neither policy nor log name; they were not checked", unknown, name)
	}
}

// unknownLines counts the signature lines that are by none of the keys.
func (r *run) unknownLines(signed []byte, vkeys []string) int {
	vs, err := verifiers(vkeys)
	if err != nil {
		return 0
	}
	for _, w := range r.policy.witnesses() {
		if v, err := record.NewWitnessVerifier(w.VKey); err == nil {
			vs = append(vs, v)
		}
	}
	n, err := note.Open(signed, note.VerifierList(vs...))
	var unverified *note.UnverifiedNoteError
	if errors.As(err, &unverified) {
		n, err = unverified.Note, nil
	}
	if err != nil {
		return 0
	}
	return len(n.UnverifiedSigs)
}

var errNoLine = errors.New("no line by this key")

// checkLine checks a checkpoint's line by one key. Only the line of an additional key may be missing.
func (r *run) checkLine(signed []byte, vkey string) (missing bool, err error) {
	v, err := r.opt.thief.verifier(vkey)
	if err != nil {
		return false, err
	}
	_, _, err = record.OpenCheckpoint(signed, v)
	var unverified *note.UnverifiedNoteError
	var invalid *note.InvalidSignatureError
	switch {
	case errors.As(err, &unverified) && !isECDSA(vkey):
		return true, nil
	case errors.As(err, &unverified):
		return false, errNoLine
	case errors.As(err, &invalid):
		return false, errors.New("its signature is over other bytes")
	}
	return false, err
}

// short is a verifier key without the key itself: its name and hash.
func short(vkey string) string {
	name, rest, _ := strings.Cut(vkey, "+")
	hash, _, _ := strings.Cut(rest, "+")
	return name + "+" + hash
}

// quote shows text of the evidence so that it cannot disturb a terminal or a page, and cuts it.
func quote(s string) string { return fmt.Sprintf("%.200q", s) }
