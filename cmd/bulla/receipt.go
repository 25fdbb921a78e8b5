package main

import (
	"bytes"
	"fmt"

	"golang.org/x/mod/sumdb/tlog"

	"bulla/record"
)

// checkReceipt checks what a producer can check without the log's key: that the entry holds the event that was sent, and that the
// proof leads from it to the root that the checkpoint states.
func checkReceipt(r record.Receipt, event []byte) error {
	e, err := record.ParseEntry(r.Entry)
	if err != nil {
		return fmt.Errorf("the receipt's entry: %w", err)
	}
	if e.Index != r.Index || !bytes.Equal(e.Body, event) {
		return fmt.Errorf("the receipt is not of the event that was sent")
	}
	text, _, ok := bytes.Cut(r.Checkpoint, []byte("\n\n"))
	if !ok {
		return fmt.Errorf("the receipt's checkpoint is not a signed note")
	}
	head, err := record.ParseCheckpoint(string(text) + "\n")
	if err != nil {
		return fmt.Errorf("the receipt's checkpoint: %w", err)
	}
	if head.Origin != e.Log || r.Index >= head.Size {
		return fmt.Errorf("the receipt's checkpoint does not cover its entry")
	}
	if err := tlog.CheckRecord(r.Proof, int64(head.Size), head.Root, int64(r.Index), record.LeafHash(r.Entry)); err != nil {
		return fmt.Errorf("the receipt's proof does not lead to its checkpoint: %w", err)
	}
	return nil
}
