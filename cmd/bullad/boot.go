package main

import (
	"context"
	"crypto"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"slices"

	pb "github.com/google/go-tpm-tools/proto/attest"
	"github.com/google/go-tpm-tools/server"
	"google.golang.org/protobuf/proto"

	"bulla/attest"
	"bulla/record"
)

// Where Linux shows what was measured (securityfs).
const (
	defaultEventLog = "/sys/kernel/security/tpm0/binary_bios_measurements"
	defaultIMAList  = "/sys/kernel/security/ima/binary_runtime_measurements"
)

// maxMeasurements bounds a list of measurements, in bytes: what a blob holds.
const maxMeasurements = record.MaxBlobPart * record.MaxBlobParts

// boot is what was measured while the machine started, by its firmware, and since then by the kernel, where they do that.
type boot struct {
	eventLog []byte // nil: the machine has none
	imaList  string // path; "": the kernel has none
	seals    chan []byte
}

// readBoot looks for what was measured. Where the kernel shows it, but not to this user, it says so.
func readBoot(c TPMConfig, log *slog.Logger) (*boot, error) {
	b := &boot{seals: make(chan []byte, 1)}
	var err error
	if b.eventLog, err = readMeasurements(c.EventLog, defaultEventLog); errors.Is(err, fs.ErrPermission) && c.EventLog == "" {
		log.Warn("the boot event log will not be recorded: let the daemon's user read it", "error", err)
	} else if err != nil {
		return nil, err
	}
	path := c.IMAList
	if path == "" {
		path = defaultIMAList
	}
	if _, err := os.Stat(path); err == nil {
		b.imaList = path
	} else if c.IMAList != "" {
		return nil, usagef("tpm.ima_list: %w", err)
	}
	return b, nil
}

// readMeasurements reads a list of measurements. Without a configured path the kernel's is read, if there is one.
func readMeasurements(configured, usual string) ([]byte, error) {
	path := configured
	if path == "" {
		path = usual
	}
	f, err := os.Open(path)
	if configured == "" && errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, usage(err)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxMeasurements+1)) // files of securityfs have no size
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("reading measurements: %w", err)
	}
	if len(b) > maxMeasurements {
		return nil, usagef("%s: more than %d bytes", path, maxMeasurements)
	}
	return b, nil
}

// pcrs are those that the measurements are in, beside the seal PCR.
func (b *boot) pcrs(sealPCR int) []int {
	var out []int
	if b.eventLog != nil {
		values, err := attest.ReplayEventLog(b.eventLog)
		if err != nil { // then by what firmware measures into
			values = map[int]record.Hash{0: {}, 1: {}, 2: {}, 3: {}, 4: {}, 5: {}, 6: {}, 7: {}}
		}
		for pcr := range values {
			out = append(out, pcr)
		}
	}
	if b.imaList != "" {
		out = append(out, attest.IMAPCR)
	}
	out = slices.DeleteFunc(out, func(pcr int) bool { return pcr == sealPCR })
	slices.Sort(out)
	return slices.Compact(out)
}

// started takes the first seal of the start.
func (b *boot) started(seal []byte) {
	select {
	case b.seals <- seal:
	default: // there is one
	}
}

// recordBoot waits for the first seal of the start, and records what was measured until then in every log. A machine that measures
// nothing has nothing to record.
func (a *appliance) recordBoot(ctx context.Context) error {
	if a.boot == nil || a.boot.eventLog == nil && a.boot.imaList == "" {
		return nil
	}
	var body []byte
	select {
	case body = <-a.boot.seals:
	case <-ctx.Done():
		return nil
	}
	if err := a.recordMeasurements(ctx, body); err != nil && ctx.Err() == nil {
		a.log.Error("what was measured while the machine started could not be recorded", "error", err)
	}
	return nil
}

func (a *appliance) recordMeasurements(ctx context.Context, body []byte) error {
	seal, err := attest.ParseSeal(body)
	if err != nil {
		return err
	}
	st, err := attest.ParseStatement(seal.Statement)
	if err != nil {
		return err
	}
	s := &record.System{Event: record.SystemBoot, Boot: &record.Boot{Seal: st.Number}}
	if b := a.boot.eventLog; b != nil {
		if s.Boot.EventLog, err = a.recordBlob(ctx, attest.BlobEventLog, b); err != nil {
			return err
		}
		if err := replayed(a.logs[0].State().Policy.TPM, seal, b); err != nil {
			s.Message = fmt.Sprintf("the boot event log: %.1000s", err)
			a.log.Warn("the boot event log does not explain the quoted PCRs", "error", err)
		} else {
			s.Boot.Replayed = true
		}
	}
	if a.boot.imaList != "" { // read after the quote: its beginning leads to what was quoted
		list, err := readMeasurements(a.boot.imaList, "")
		if err != nil {
			a.log.Warn("the IMA list is not recorded", "error", err)
		} else if s.Boot.IMA, err = a.recordBlob(ctx, attest.BlobIMA, list); err != nil {
			return err
		}
	}
	if s.Boot.EventLog == nil && s.Boot.IMA == nil {
		return nil
	}
	return a.system(ctx, s)
}

// recordBlob records evidence in every log that does not have it as the last of its name, and returns its hash.
func (a *appliance) recordBlob(ctx context.Context, name string, data []byte) (*record.Hash, error) {
	sum := record.Hash(sha256.Sum256(data))
	parts, err := record.SplitBlob(name, data)
	if err != nil {
		return nil, err
	}
	for _, l := range a.logs {
		have, err := l.hasBlob(parts[len(parts)-1])
		if err != nil {
			return nil, fmt.Errorf("log %s: %w", l.Name, err)
		}
		if have {
			continue
		}
		for i := range parts {
			body, err := record.MarshalCanonical(&parts[i])
			if err != nil {
				return nil, err
			}
			if _, err := l.Record(ctx, record.KindBlob, body); err != nil {
				return nil, fmt.Errorf("log %s: %w", l.Name, err)
			}
		}
	}
	return &sum, nil
}

// hasBlob reports whether the last blob of a name in the log is the one with this last part. Parts are recorded in order: if the last
// is there, all are.
func (l *openLog) hasBlob(last record.Blob) (bool, error) {
	indices, err := l.Kind(record.KindBlob, 0, maxBlobs)
	if err != nil {
		return false, err
	}
	for _, i := range slices.Backward(indices) {
		b, err := l.Entry(i)
		if err != nil {
			return false, err
		}
		e, err := record.ParseEntry(b)
		if err != nil {
			return false, fmt.Errorf("entry %d: %w", i, err)
		}
		found, err := record.ParseBlob(e.Body)
		if err != nil {
			return false, fmt.Errorf("entry %d: %w", i, err)
		}
		if found.Name == last.Name {
			return found.SHA256 == last.SHA256 && found.Part == last.Part, nil
		}
	}
	return false, nil
}

// maxBlobs bounds how many blobs of a log are looked at: parts of some thousand starts.
const maxBlobs = 1 << 20

// replayed has go-tpm-tools check that a boot event log leads to the PCR values that a seal quotes.
func replayed(e *attest.Enrolment, seal *attest.Seal, eventLog []byte) error {
	files, err := seal.Files(e)
	if err != nil {
		return err
	}
	a := &pb.Attestation{}
	if err := proto.Unmarshal(files["attest.pb"], a); err != nil {
		return fmt.Errorf("attest.pb: %w", err)
	}
	a.EventLog = eventLog
	ak, err := attest.ParseAK(e.AK)
	if err != nil {
		return err
	}
	digest := sha256.Sum256(seal.Statement)
	_, err = server.VerifyAttestation(a, server.VerifyOpts{
		Nonce: digest[:], TrustedAKs: []crypto.PublicKey{ak.Public}, Loader: server.UnsupportedLoader, AllowEmptySBVar: true, AllowEFIAppBeforeCallingEvent: true,
	})
	return err
}
