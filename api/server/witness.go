package server

import (
	"fmt"
	"strconv"
)

// witness writes a checkpoint that witnesses cosigned, with their lines: the n-th, from the one over the largest tree on.
func (c *call) witness() error {
	path := c.r.PathValue("n")
	n, err := strconv.ParseUint(path, 10, 16)
	if err != nil || strconv.FormatUint(n, 10) != path {
		return fmt.Errorf("%w: %q is not the number of a cosigned checkpoint", errNotFound, clip(path))
	}
	var notes [][]byte
	if c.s.cfg.Cosigned != nil {
		notes = c.s.cfg.Cosigned(c.log.Ledger.Origin())
	}
	if n >= uint64(len(notes)) {
		return fmt.Errorf("%w: witnesses cosigned %d checkpoints of this log", errNotFound, len(notes))
	}
	c.w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	c.w.Header().Set("Cache-Control", "no-cache")
	return c.write(notes[n])
}
