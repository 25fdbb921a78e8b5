package verify_test

import (
	"bytes"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/binary"
	"os"
	"strings"
	"testing"

	"bulla/attest"
	"bulla/record"
	"bulla/verify"
)

// blob records evidence in parts, and returns its hash.
func (b *builder) blob(name string, data []byte) *record.Hash {
	b.t.Helper()
	parts, err := record.SplitBlob(name, data)
	b.must(err)
	for i := range parts {
		body, err := record.MarshalCanonical(&parts[i])
		b.must(err)
		b.add(record.KindBlob, nil, body)
	}
	return &parts[0].SHA256
}

// measured records what was measured at a start, by the last seal.
func (b *builder) measured(boot record.Boot) {
	b.t.Helper()
	body, err := record.MarshalCanonical(&record.System{Event: record.SystemBoot, Boot: &boot})
	b.must(err)
	b.add(record.KindSystem, nil, body)
}

// imaList is a kernel's list with one file in it, and the value of PCR 10 that it leads to.
func imaList(path string, file record.Hash) (list []byte, pcr record.Hash) {
	u32 := func(v int) []byte { return binary.LittleEndian.AppendUint32(nil, uint32(v)) }
	digest := append([]byte("sha256:\x00"), file[:]...)
	data := bytes.Join([][]byte{u32(len(digest)), digest, u32(len(path) + 1), []byte(path), {0}}, nil)
	sum := sha1.Sum(data)
	list = bytes.Join([][]byte{u32(10), sum[:], u32(6), []byte("ima-ng"), u32(len(data)), data}, nil)
	return list, attest.ExtendPCR(record.Hash{}, sha256.Sum256(data))
}

// What was measured is held against what was quoted, and the report says what that shows. A list that does not lead there is no
// tampering: firmware errs.
func TestMeasurements(t *testing.T) {
	t.Parallel()
	eventLog, err := os.ReadFile("../testdata/eventlog/rhel8-uefi.bin")
	if err != nil {
		t.Fatal(err)
	}
	pcrs, err := attest.ReplayEventLog(eventLog)
	if err != nil {
		t.Fatal(err)
	}
	exe := record.Hash{31: 7}
	list, ten := imaList("/usr/bin/bullad", exe)
	const agrees, shown = "boot: in 1 of 1 recorded starts the boot event log leads to", "boot: in 1 of 1 recorded starts the kernel had measured the executable"
	for _, c := range []struct {
		about  string
		change func(b *builder)                    // before the seal
		record func(b *builder, boot *record.Boot) // what is recorded of it
		want   []string
	}{
		{"as it should be", nil, nil, []string{agrees, shown}},
		{"another boot loader", func(b *builder) { b.chip.boot[4] = record.Hash{1} }, nil, []string{shown, "does not lead to the quoted values of PCRs [4]"}},
		{"the operating system measured on", func(b *builder) { b.chip.boot[9] = record.Hash{1} }, nil, []string{agrees, shown}},
		{"another executable", func(b *builder) { b.chip.exe = record.Hash{9} }, nil, []string{agrees, "hashes in statements are the daemon's own word", "had not measured the executable"}},
		{"another kernel list", func(b *builder) { b.chip.boot[10] = record.Hash{9} }, nil, []string{agrees, "the IMA list does not lead to PCR 10"}},
		{"a blob that is not there", nil, func(b *builder, boot *record.Boot) { boot.EventLog = &record.Hash{5} }, []string{shown, "the boot event log 05000000"}},
		{"another seal", nil, func(b *builder, boot *record.Boot) { boot.Seal++ }, []string{"the last good seal of a start is not seal 2"}},
		{"said again", nil, func(b *builder, boot *record.Boot) { b.measured(*boot) }, []string{agrees, shown}},
		{"no IMA", nil, func(b *builder, boot *record.Boot) { boot.IMA = nil }, []string{agrees, "the hashes in statements are the daemon's own word"}},
	} {
		b := newBuilder(t).enrolled().begin().events(2)
		b.chip.boot, b.chip.exe = map[int]record.Hash{10: ten}, exe
		for i, v := range pcrs {
			b.chip.boot[i] = v
		}
		if c.change != nil {
			c.change(b)
		}
		b.seal(b.head(b.tree.Size()))
		boot := record.Boot{EventLog: b.blob(attest.BlobEventLog, eventLog), IMA: b.blob(attest.BlobIMA, list), Seal: 1}
		if c.record != nil {
			c.record(b, &boot)
		}
		b.measured(boot)
		rep := run(t, b.export(), b.sealedPolicy())
		want(t, rep, verify.OutcomeVerified)
		all := strings.Join(rep.Remarks, "\n")
		for _, w := range c.want {
			if !strings.Contains(all, w) {
				t.Errorf("%s: nothing says %q:\n%s", c.about, w, all)
			}
		}
	}
}

func TestNothingMeasured(t *testing.T) {
	t.Parallel()
	b := newBuilder(t).enrolled().begin().events(2)
	b.seal(b.head(b.tree.Size()))
	rep := run(t, b.export(), b.sealedPolicy())
	if all := strings.Join(rep.Remarks, "\n"); !strings.Contains(all, "what ran on it is its own word") || strings.Count(all, "boot: ") != 1 {
		t.Error(all)
	}
}
