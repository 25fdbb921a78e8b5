package server

import (
	"fmt"
	"net"
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
// unit are observations: the process may be another by now, or may have passed the connection on.
func peer(c net.Conn) (*ledger.Caller, error) {
	if k, ok := c.(*counted); ok {
		c = k.Conn
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		return nil, fmt.Errorf("asking the kernel for the peer: %T is not a unix socket", c)
	}
	raw, err := u.SyscallConn()
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
		if n, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, soPeerPIDFD); err == nil {
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

// Socket options that package unix does not name.
const (
	soPeerGroups = 59
	soPeerPIDFD  = 77 // Linux 6.5
)

// peerGroups reads the peer's supplementary groups.
func peerGroups(fd uintptr) ([]uint32, error) {
	groups := make([]uint32, 64)
	for {
		size := uint32(len(groups) * 4)
		_, _, errno := syscall.Syscall6(syscall.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, soPeerGroups,
			uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch {
		case errno == 0:
			return groups[:size/4], nil
		case errno == syscall.ERANGE && len(groups) < 65536:
			groups = make([]uint32, max(2*len(groups), int(size/4)))
		default:
			return nil, errno
		}
	}
}

// observe reads what /proc says of a process, and keeps it only if the process that connected is still there afterwards: its number
// cannot have been given to another one meanwhile.
func observe(p *record.Producer, pid, pidfd int) {
	proc := fmt.Sprintf("/proc/%d/", pid)
	exe, _ := os.Readlink(proc + "exe")
	cgroup, _ := os.ReadFile(proc + "cgroup")
	if unix.PidfdSendSignal(pidfd, 0, nil, 0) == nil || os.Getuid() != 0 && alive(pidfd) {
		p.PID, p.Exe, p.Unit = pid, exe, unit(string(cgroup))
	}
}

// alive reports whether the process of a pidfd has not ended: the descriptor becomes readable when it does.
func alive(pidfd int) bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 0)
	return err == nil && n == 0
}

// unit is the systemd unit in a process's control group: its last component that is a service or scope.
func unit(cgroup string) string {
	line, _, _ := strings.Cut(cgroup, "\n")
	for dir := strings.TrimPrefix(line, "0::"); dir != "/" && dir != "." && dir != ""; dir = path.Dir(dir) {
		if base := path.Base(dir); strings.HasSuffix(base, ".service") || strings.HasSuffix(base, ".scope") {
			return base
		}
	}
	return ""
}
