package ledger_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"bulla/ledger"
	"bulla/record"
)

// A full disk refuses events and says so, loses nothing, and takes events again when there is room. The disk is a small tmpfs in a
// mount namespace of a child process's own.
func TestDiskFull(t *testing.T) {
	const inside = "BULLA_TEST_DISK"
	if os.Getenv(inside) != "" {
		fillDisk(t)
		return
	}
	t.Parallel()
	child := exec.Command(os.Args[0], "-test.run=^TestDiskFull$", "-test.v")
	child.Env = append(os.Environ(), inside+"=1")
	child.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWNS | syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	out, err := child.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestDiskFull") {
		t.Fatalf("on the small disk: %v\n%s", err, out)
	}
}

func fillDisk(t *testing.T) {
	disk := t.TempDir()
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, "size=40m"); err != nil {
		t.Fatal("mounting a small disk: ", err)
	}
	defer func() {
		if err := syscall.Unmount(disk, 0); err != nil {
			t.Error(err)
		}
	}()
	ballast := filepath.Join(disk, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 12<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	d := newDevices(t)
	path := filepath.Join(disk, "log.db")
	if err := ledger.Create(path, d.config(), d.genesis(t)); err != nil {
		t.Fatal(err)
	}
	l := open(t, d, path)
	var taken []*ledger.Result
	fill := func() error {
		for i := 0; i < 1000; i++ {
			res, err := appendOne(l, event(t, fmt.Sprintf(`"data":{"fill":%q},`, strings.Repeat("x", 40_000))))
			if err != nil {
				return err
			}
			taken = append(taken, res)
		}
		return nil
	}
	for range 3 {
		requireCode(t, fill(), record.CodeDisk)
	}
	before := len(taken)
	if before == 0 {
		t.Fatal("nothing was taken before the disk was full")
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	for tries := 0; len(taken) == before; tries++ { // the first may meet an attempt that began before
		if requireCode(t, fill(), record.CodeDisk); tries > 10 {
			t.Fatal("nothing was taken after there was room again")
		}
	}
	for range 2 { // still running, and after a restart
		for _, res := range taken {
			checkReceipts(t, l, d, res)
		}
		checkLog(t, l)
		closed(t, l)
		l = open(t, d, path)
	}
	closed(t, l)
}
