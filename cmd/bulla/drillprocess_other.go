//go:build !linux

package main

import (
	"errors"
	"os"
	"os/exec"
)

// ours leaves the command as it is: bullad runs on Linux only.
func ours(*exec.Cmd) {}

// sendFaults has a bullad dev read its faults.
func sendFaults(*os.Process) error { return errors.ErrUnsupported }
