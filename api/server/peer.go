package server

import (
	"fmt"
	"os"
	"path"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"bulla/ledger"
	"bulla/record"
)

// peer asks the kernel who is at the other end of a connection. The uid, gid and groups are those at connect, and proven; pid, exe and
// unit are observations of the process that connected: it may have passed the connection on, or run another program since.
func peer(c syscall.Conn) (*ledger.Caller, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("asking the kernel for the peer: %w", err)
	}
	var cred *unix.Ucred
	var groups []uint32
	var opErr error
	pidfd := -1
	err = raw.Control(func(fd uintptr) {
		if cred, opErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); opErr != nil {
			return
		}
		if groups, opErr = peerGroups(fd); opErr != nil {
			return
		}
		if n, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PEERPIDFD); err == nil { // Linux 6.5
			pidfd = n
		}
	})
	if err == nil {
		err = opErr
	}
	if err != nil {
		return nil, fmt.Errorf("asking the kernel for the peer: %w", err)
	}
	caller := &ledger.Caller{Producer: record.Producer{UID: cred.Uid, GID: cred.Gid}, Groups: append(groups, cred.Gid)}
	if pidfd >= 0 {
		observe(&caller.Producer, int(cred.Pid), pidfd)
		if err := unix.Close(pidfd); err != nil {
			return nil, fmt.Errorf("asking the kernel for the peer: %w", err)
		}
	}
	caller.Producer.DropUnrecordable()
	return caller, nil
}

// peerGroups reads the peer's supplementary groups.
func peerGroups(fd uintptr) ([]uint32, error) {
	groups := make([]uint32, 64)
	for {
		size := uint32(len(groups) * 4)
		_, _, errno := syscall.Syscall6(syscall.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch {
		case errno == 0:
			return groups[:size/4], nil
		case errno == syscall.ERANGE && len(groups) < 65536: // as many as Linux knows
			groups = make([]uint32, max(2*len(groups), int(size/4)))
		default:
			return nil, errno
		}
	}
}

// observe reads what /proc says of a process, and keeps it only if the process that connected is still there afterwards: its number
// cannot have been given to another one meanwhile. In another PID namespace than ours it has none (0).
func observe(p *record.Producer, pid, pidfd int) {
	if pid == 0 {
		return
	}
	proc := fmt.Sprintf("/proc/%d/", pid)
	exe, _ := os.Readlink(proc + "exe")       // what cannot be read
	cgroup, _ := os.ReadFile(proc + "cgroup") // is left out
	if alive(pidfd) {
		p.PID, p.Exe, p.Unit = pid, exe, unit(string(cgroup))
	}
}

// alive reports whether the process of a pidfd has not ended: the descriptor becomes readable when it does.
func alive(pidfd int) bool {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 0)
		if err != unix.EINTR {
			return err == nil && n == 0
		}
	}
}

// unit is the systemd unit in a process's control group (/proc/PID/cgroup): the last component that is a service or scope, in the
// unified hierarchy or systemd's own.
func unit(cgroup string) string {
	for line := range strings.Lines(cgroup) {
		number, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		controllers, dir, _ := strings.Cut(rest, ":")
		if (number != "0" || controllers != "") && controllers != "name=systemd" {
			continue
		}
		for ; dir != "/" && dir != "." && dir != ""; dir = path.Dir(dir) {
			if base := path.Base(dir); strings.HasSuffix(base, ".service") || strings.HasSuffix(base, ".scope") {
				return base
			}
		}
	}
	return ""
}
