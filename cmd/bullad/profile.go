package main

import (
	"crypto"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"time"
)

// Where a dev appliance spends its time is written to files when it ends; no socket ever gives it out, and serve has no flag for it.

// Rates of the profiles that cost something while they are taken.
const (
	blockRate     = int(10 * time.Microsecond) // a sample for so long that goroutines waited, in ns
	mutexFraction = 100                        // one of so many contentions
)

// profiles are being taken since startProfiles.
type profiles struct {
	dir string
	cpu *os.File
}

// startProfiles begins to profile this process into dir, which is made if it is missing.
func startProfiles(dir string) (*profiles, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, usage(err)
	}
	f, err := os.Create(filepath.Join(dir, "cpu.prof"))
	if err != nil {
		return nil, usage(err)
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return nil, errors.Join(fmt.Errorf("profiling: %w", err), f.Close())
	}
	runtime.SetBlockProfileRate(blockRate)
	runtime.SetMutexProfileFraction(mutexFraction)
	return &profiles{dir, f}, nil
}

// stop writes cpu.prof, allocs.prof, heap.prof, block.prof and mutex.prof.
func (p *profiles) stop() error {
	pprof.StopCPUProfile()
	runtime.SetBlockProfileRate(0)
	runtime.SetMutexProfileFraction(0)
	errs := []error{p.cpu.Close()}
	runtime.GC() // allocs and heap are as of the last collection
	for _, name := range []string{"allocs", "heap", "block", "mutex"} {
		errs = append(errs, p.write(name))
	}
	return errors.Join(errs...)
}

func (p *profiles) write(name string) (err error) {
	f, err := os.Create(filepath.Join(p.dir, name+".prof"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := pprof.Lookup(name).WriteTo(f, 0); err != nil {
		return fmt.Errorf("writing the %s profile: %w", name, err)
	}
	return nil
}

// slowKey is a key whose device takes longer for each signature. Only dev makes one.
type slowKey struct {
	crypto.Signer
	delay time.Duration
}

func (k slowKey) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	time.Sleep(k.delay)
	return k.Signer.Sign(rand, digest, opts)
}
