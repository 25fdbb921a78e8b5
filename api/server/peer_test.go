package server

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"bulla/api"
	"bulla/ledger"
)

// asPeer makes this test binary another process, which connects and does as it is told.
const asPeer = "BULLA_TEST_PEER"

func TestMain(m *testing.M) {
	switch what, path, _ := strings.Cut(os.Getenv(asPeer), ":"); what {
	case "":
		os.Exit(m.Run())
	case "append":
		os.Exit(peerAppends(path))
	case "connect":
		if err := unix.Connect(3, &unix.SockaddrUnix{Name: path}); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0) // the parent has the connection, too
	}
}

func peerAppends(path string) int {
	c, err := net.Dial("unix", path)
	if err == nil {
		_, err = c.Write(frame(`{"v":1,"max_frame":1048576}`))
	}
	if err == nil {
		_, err = api.ReadHello(c)
	}
	if err == nil {
		_, err = c.Write(frame(request(1, "", good)))
	}
	var a api.Answer
	if err == nil {
		var n int
		n, err = api.ReadLength(c, api.MaxFrame)
		b := make([]byte, n)
		if err == nil {
			_, err = c.Read(b) // small, and sent at once
		}
		if err == nil {
			err = json.Unmarshal(b, &a)
		}
	}
	if err != nil || a.Status != api.StatusOK {
		fmt.Fprintln(os.Stderr, err, a)
		return 1
	}
	return 0
}

func peerProcess(t *testing.T, what string, extra ...*os.File) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), asPeer+"="+what)
	cmd.ExtraFiles = extra
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", what, err, out)
	}
	return cmd
}

// The entry says which process of which user sent the event.
func TestProducerInTheEntry(t *testing.T) {
	t.Parallel()
	r := newRig(t, everyone).serve()
	other := peerProcess(t, "append:"+r.path("sign.sock"))
	c, err := r.dial().Append(t.Context(), "", []byte(good))
	if err != nil {
		t.Fatal(err)
	}
	mine := r.requireReceipt(c, good)
	page := r.entries(1)
	if p := page[0].Producer; p == nil || p.PID != other.Process.Pid || p.UID != uint32(os.Getuid()) || p.Exe != mine.Producer.Exe {
		t.Errorf("the other process: %+v", p)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if p := mine.Producer; p.PID != os.Getpid() || p.Exe != exe {
		t.Errorf("this process: %+v", p)
	}
}

// Of a process that is gone nothing is said that may be true of another one by now.
func TestPeerThatIsGone(t *testing.T) {
	t.Parallel()
	r := newRig(t, everyone)
	l, err := net.Listen("unix", r.path("s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "socket")
	defer f.Close()
	peerProcess(t, "connect:"+r.path("s"), f)
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	caller, err := peer(c.(syscall.Conn))
	if err != nil {
		t.Fatal(err)
	}
	if caller.PID != 0 || caller.Exe != "" || caller.Unit != "" {
		t.Errorf("said of a process that is gone: %+v", caller.Producer)
	}
	if caller.UID != uint32(os.Getuid()) || caller.GID != uint32(os.Getgid()) {
		t.Errorf("proven at connect: %+v", caller)
	}
}

func TestGroups(t *testing.T) {
	t.Parallel()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fds[0]), "socket")
	defer f.Close()
	defer unix.Close(fds[1])
	c, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	caller, err := peer(c.(syscall.Conn))
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.Getgroups()
	if err != nil {
		t.Fatal(err)
	}
	requireGroups(t, caller, append(want, os.Getgid()))
}

func requireGroups(t *testing.T, c *ledger.Caller, want []int) {
	t.Helper()
	got := map[uint32]bool{}
	for _, g := range c.Groups {
		got[g] = true
	}
	for _, g := range want {
		if !got[uint32(g)] {
			t.Errorf("group %d is missing in %v", g, c.Groups)
		}
		delete(got, uint32(g))
	}
	if len(got) > 0 {
		t.Errorf("groups too many: %v", got)
	}
}

func TestUnit(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"0::/system.slice/ssh.service\n":                                           "ssh.service",
		"0::/system.slice/docker-0a.scope/init\n":                                  "docker-0a.scope",
		"0::/user.slice/user-1000.slice/user@1000.service/app.slice/app-x.scope\n": "app-x.scope",
		"0::/system.slice/a:b.service\n":                                           "a:b.service",
		"12:pids:/other.service\n1:name=systemd:/system.slice/ssh.service\n0::/\n": "ssh.service",
		"12:pids:/system.slice/other.service\n":                                    "",
		"0::/\n":                                                                   "",
		"0::\n":                                                                    "",
		"":                                                                         "",
		"garbage":                                                                  "",
		"0::/user.slice":                                                           "",
	} {
		if got := unit(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
