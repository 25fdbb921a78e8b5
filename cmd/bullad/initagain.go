package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"bulla/attest"
	"bulla/ceremony"
	"bulla/ledger"
	"bulla/store"
	"bulla/tpm"
)

// finishInit is for a log's file that is there already: either it is a log, which nothing touches, or it is the last thing that an init
// made which then stopped. That one lacks only its place among the logs that are sealed.
func finishInit(lc LogConfig, sealer string, dry bool, out io.Writer) error {
	taken := usagef("%s exists already: a genesis never touches a file that is there", lc.File)
	g, size, err := readGenesis(lc.File)
	if err != nil {
		return errors.Join(taken, err)
	}
	covered, err := ledger.Covered(sealer)
	if err != nil {
		return err
	}
	enrolled, err := ledger.Enrolled(sealer)
	if err != nil {
		return err
	}
	if g.Origin != lc.Origin || size != 1 || g.TPM == nil || enrolled == nil || slices.Contains(covered, lc.Origin) || !sameMachine(g.TPM, enrolled) {
		return taken
	}
	if dry {
		_, err := fmt.Fprintf(out, "%s: an init stopped before its end; init would finish it; nothing was changed\n", lc.Origin)
		return err
	}
	if err := ledger.Cover(sealer, lc.Origin); err != nil {
		return err
	}
	return printGenesis(lc, out)
}

// sameMachine reports whether two enrolments are of one TPM, key and counter, and begin at the same seal.
func sameMachine(a, b *attest.Enrolment) bool {
	return slices.Equal(a.AK, b.AK) && slices.Equal(a.Counter.Name, b.Counter.Name) && a.Counter.Value == b.Counter.Value && a.Seal == b.Seal && a.Previous == b.Previous
}

// readGenesis reads a log's genesis and its size.
func readGenesis(path string) (g *ceremony.Genesis, size uint64, err error) {
	s, err := store.OpenAtRest(path)
	if err != nil {
		return nil, 0, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	if size, err = s.Size(); err != nil {
		return nil, 0, err
	}
	entry, err := s.Entry(0)
	if err != nil {
		return nil, 0, err
	}
	state, err := genesisState(entry)
	return &state.Policy, size, err
}

// unfinished says what to do about a key or counter that an init left in the TPM which stopped before it could note them.
func unfinished(err error) error {
	if !errors.Is(err, tpm.ErrExists) {
		return err
	}
	var undo []string
	for handle, command := range map[string]string{
		"0x81010B01": "tpm2_evictcontrol -C o -c 0x81010B01", // the attestation key
		"0x01800B01": "tpm2_nvundefine -C o 0x01800B01",      // the counter
	} {
		if strings.Contains(err.Error(), handle) {
			undo = append(undo, command)
		}
	}
	slices.Sort(undo)
	return usagef("%w, and %s does not know of it. If another installation uses it, do not touch it: its seals would end. If an init stopped before its end, remove what it left and try again:\n  %s",
		err, sealerFile, strings.Join(undo, "\n  "))
}
