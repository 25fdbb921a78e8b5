package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	softhsmtest "bulla/softhsm-test"
)

// faultsFile is the file in a dev appliance's directory that says how its devices misbehave.
const faultsFile = "faults.toml"

// Faults are how the devices of a dev appliance misbehave. The zero value is an appliance that is well. They end with the process.
type Faults struct {
	TPMOff   bool       `toml:"tpm_off"`   // the TPM has no power
	FileSize *int64     `toml:"file_size"` // bytes: no file can be written beyond, as on a full disk; absent: no limit
	NTP      []NTPFault `toml:"ntp"`       // of each server, in their order; of those not named, none
}

// NTPFault is how one NTP server misbehaves.
type NTPFault struct {
	Offset duration `toml:"offset"` // its clock is ahead of UTC by this much
	Silent bool     `toml:"silent"` // no answer
}

// tpmOnTime is how long a TPM may take to answer after it got its power back.
const tpmOnTime = 30 * time.Second

// faults makes the devices misbehave as the file says, each time it is asked to until ctx ends, and says on out that they do, or why not.
func (t *throwaway) faults(ctx context.Context, ask <-chan os.Signal, out io.Writer) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-ask:
		}
		var f Faults
		err := loadTOML(t.path(faultsFile), &f)
		if err == nil {
			err = t.misbehave(ctx, &f)
		}
		if err != nil {
			fmt.Fprintf(out, "no faults: %s\n", strings.ReplaceAll(err.Error(), "\n", ": "))
			continue
		}
		fmt.Fprintln(out, "faults")
	}
}

func (t *throwaway) misbehave(ctx context.Context, f *Faults) error {
	if len(f.NTP) > len(t.servers) {
		return fmt.Errorf("ntp: %d are named, and there are %d servers", len(f.NTP), len(t.servers))
	}
	if f.FileSize != nil && *f.FileSize < 0 {
		return errors.New("file_size: must not be negative")
	}
	for i, s := range t.servers {
		var b softhsmtest.Behaviour
		if i < len(f.NTP) {
			b.Offset, b.Silent = time.Duration(f.NTP[i].Offset), f.NTP[i].Silent
		}
		s.Set(b)
	}
	if err := t.power(ctx, !f.TPMOff); err != nil { // before the limit, which a process started under it would inherit
		return err
	}
	return limitFiles(f.FileSize)
}

// power gives the TPM power, or cuts it.
func (t *throwaway) power(ctx context.Context, on bool) error {
	if t.tpmOff == !on {
		return nil
	}
	if !on {
		t.tpmOff = true
		return t.tpm.Kill()
	}
	ctx, cancel := context.WithTimeout(ctx, tpmOnTime)
	defer cancel()
	if err := t.tpm.Start(ctx); err != nil {
		return err
	}
	t.tpmOff = false
	return nil
}

// limitFiles has the kernel refuse to write files of this process beyond a size; nil: as it was.
func limitFiles(size *int64) error {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &l); err != nil {
		return fmt.Errorf("limiting the size of files: %w", err)
	}
	l.Cur = l.Max
	if size != nil {
		signal.Ignore(syscall.SIGXFSZ) // a write beyond fails, instead of ending the process
		l.Cur = min(uint64(*size), l.Max)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &l); err != nil {
		return fmt.Errorf("limiting the size of files: %w", err)
	}
	return nil
}

// clearTPM clears the TPM with TPM2_Clear (TPM 2.0 Part 3, section 24.6) by the empty authorisation of lockout, as root can where it was
// left open. Nothing else may have a connection to the TPM.
func (t *throwaway) clearTPM() (err error) {
	const wait = 10 * time.Second
	c, err := net.DialTimeout("unix", strings.TrimPrefix(t.tpm.Address(), "unix:"), wait)
	if err != nil {
		return fmt.Errorf("clearing the TPM: %w", err)
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	if err := c.SetDeadline(time.Now().Add(wait)); err != nil {
		return fmt.Errorf("clearing the TPM: %w", err)
	}
	command := []byte{
		0x80, 2, 0, 0, 0, 27, 0, 0, 1, 0x26, // TPM_ST_SESSIONS, size, TPM_CC_Clear
		0x40, 0, 0, 0x0A, // TPM_RH_LOCKOUT
		0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0, // one session: TPM_RS_PW, an empty password
	}
	if _, err := c.Write(command); err != nil {
		return fmt.Errorf("clearing the TPM: %w", err)
	}
	answer := make([]byte, 10)
	if _, err := io.ReadFull(c, answer); err != nil {
		return fmt.Errorf("clearing the TPM: %w", err)
	}
	if rc := answer[6:]; [4]byte(rc) != [4]byte{} {
		return fmt.Errorf("clearing the TPM: TPM2_Clear: response code 0x%X", rc)
	}
	return nil
}
