package main

import (
	"os"
	"os/exec"
	"syscall"
)

// ours makes a command end with this program, however that ends, and keeps a terminal's Ctrl-C, which is for this program, from it. The
// kernel ends it with the thread that starts it, which must be kept.
func ours(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// sendFaults has a bullad dev read its faults.
func sendFaults(p *os.Process) error { return p.Signal(syscall.SIGUSR1) }
