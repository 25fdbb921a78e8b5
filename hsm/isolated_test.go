package hsm_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

const isolatedVariable = "HSM_TEST_ISOLATED"

// isolated runs the calling test in a process of its own, where its faults, and a crash, reach no other test. It is true there:
//
//	if !isolated(t) {
//		return
//	}
func isolated(t *testing.T) bool {
	t.Helper()
	if os.Getenv(isolatedVariable) == t.Name() {
		return true
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.v", "-test.count=1", "-test.timeout=110s", "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), isolatedVariable+"="+t.Name(), "TMPDIR="+t.TempDir()) // a crash leaves nothing behind
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()+" ") {
		t.Fatalf("in a process of its own: %v\n%s", err, out)
	}
	return false
}

// faults is the control of testdata/faulty.c, shared with the module.
type faults struct {
	violations, hanging, frozen uint64
	inside                      int64
	f                           [68]struct {
		calls, mode uint64
		count       int64
		code        uint64
	}
}

// The functions' places in CK_FUNCTION_LIST.
const (
	cInitialize        = 0
	cFinalize          = 1
	cGetSlotList       = 4
	cGetTokenInfo      = 6
	cOpenSession       = 12
	cGetSessionInfo    = 15
	cLogin             = 18
	cGetAttributeValue = 24
	cFindObjectsInit   = 26
	cFindObjects       = 27
	cFindObjectsFinal  = 28
	cSignInit          = 42
	cSign              = 43
	cGenerateKeyPair   = 59
)

const (
	fail      = 1 // return code, do nothing
	failAfter = 2 // do it, return code
	hang      = 3 // wait until the mode changes
	corrupt   = 4 // flip a bit of the signature
	setFlags  = 5 // set code in the token's flags
)

// faulty builds the faulty module in front of SoftHSM. It must come before the first Load of the process.
func faulty(t *testing.T) (path string, f *faults) {
	t.Helper()
	dir := t.TempDir()
	path = filepath.Join(dir, "faulty.so")
	run(t, "gcc", "-O1", "-shared", "-fPIC", "-o", path, "testdata/faulty.c", "-ldl")
	control := filepath.Join(dir, "control")
	if err := os.WriteFile(control, make([]byte, unsafe.Sizeof(faults{})), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.OpenFile(control, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	memory, err := syscall.Mmap(int(file.Fd()), 0, int(unsafe.Sizeof(faults{})), syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	// Both stay mapped to the end of the process, as the module does.
	f = (*faults)(unsafe.Pointer(&memory[0]))
	os.Setenv("FAULTY_REAL", softHSM)
	os.Setenv("FAULTY_CONTROL", control)
	t.Cleanup(func() {
		if n := atomic.LoadUint64(&f.violations); n != 0 {
			t.Errorf("%d times a session was in two calls at once, or C_Finalize ran beside another call", n)
		}
	})
	return path, f
}

// set has the next count calls (all, if negative) of function fail in the way of mode.
func (f *faults) set(function int, mode uint64, count int64, code uint64) {
	p := &f.f[function]
	atomic.StoreUint64(&p.mode, 0)
	atomic.StoreInt64(&p.count, count)
	atomic.StoreUint64(&p.code, code)
	atomic.StoreUint64(&p.mode, mode)
}

func (f *faults) clear() {
	for i := range f.f {
		atomic.StoreUint64(&f.f[i].mode, 0)
	}
}

// quietly runs sabotage while no call is in the module, as a device would that drops sessions: SoftHSM itself crashes when sessions
// are closed under its running calls.
func (f *faults) quietly(t *testing.T, sabotage func()) {
	t.Helper()
	atomic.StoreUint64(&f.frozen, 1)
	defer atomic.StoreUint64(&f.frozen, 0)
	eventually(t, 5*time.Second, "all calls return", func() bool { return atomic.LoadInt64(&f.inside) == 0 })
	sabotage()
}

func (f *faults) calls(function int) uint64 { return atomic.LoadUint64(&f.f[function].calls) }

func (f *faults) held() uint64 { return atomic.LoadUint64(&f.hanging) }

// eventually fails the test unless ok becomes true within a time.
func eventually(t *testing.T, within time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(within); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", within, what)
		}
	}
}
