package attest_test

import (
	"bytes"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

	"bulla/attest"
	"bulla/record"
)

// The values that go-tpm-tools' tests have for the same log, read from the machine that made it.
var rhel8 = map[int]string{
	0:  "24af52a4f429b71a3184a6d64cddad17e54ea030e2aa6576bf3a5a3d8bd3328f",
	1:  "454220afaa80c83c3839f6cccd8b3c88bf4f562316a9dda1121c578c9e005a53",
	2:  "3d458cfe55cc03ea1f443f1562beec8df51c75e14a9fcf9a7234a13f198e7969",
	3:  "3d458cfe55cc03ea1f443f1562beec8df51c75e14a9fcf9a7234a13f198e7969",
	4:  "758a3d35f1b0ff5b135dacd07db0c8132c0ac665d944090d4bf96e66447a245c",
	5:  "53d0ee36163219201e686167bbb71ec505b3ba2917b9d9183ed84aad26cfeb89",
	6:  "3d458cfe55cc03ea1f443f1562beec8df51c75e14a9fcf9a7234a13f198e7969",
	7:  "5fd54361d580eb7592adb8deb236ff35444ceeac7148f24b3de63c041f12b3da",
	8:  "25c3874041ebd4e9a21b6ed71b624a7bfa99907a8dcea7f129a4c64cbaf5829a",
	9:  "d43b2f61eb18b4791812ff5f20ab20e4ef621ba683370bedf5dbdf518b3a8078",
	14: "d8f57ebcc1a23cc46832696e1a657f720e1be8f5b405bb7204682114e363b455",
}

func eventLog(t testing.TB) []byte {
	t.Helper()
	b, err := os.ReadFile("../testdata/eventlog/rhel8-uefi.bin")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestReplayEventLog(t *testing.T) {
	t.Parallel()
	log := eventLog(t)
	got, err := attest.ReplayEventLog(log)
	if err != nil {
		t.Fatal(err)
	}
	text := map[int]string{}
	var quoted []attest.PCRValue
	for pcr, v := range got {
		text[pcr] = hex.EncodeToString(v[:])
		quoted = append(quoted, attest.PCRValue{Index: pcr, Value: v})
	}
	if d := cmp.Diff(rhel8, text); d != "" {
		t.Error(d)
	}
	if again, err := attest.ReplayEventLog(append(bytes.Clone(log), make([]byte, 100)...)); err != nil || len(again) != len(got) {
		t.Errorf("with zeros behind it: %v", err)
	}
	if agree, differ := attest.Differing(got, quoted); agree != 11 || differ != nil {
		t.Errorf("%d agree, %v differ", agree, differ)
	}
	for i := range quoted {
		quoted[i].Value[3] ^= 1
	}
	if agree, differ := attest.Differing(got, quoted); agree != 0 || len(differ) != 8 || differ[7] != 7 {
		t.Errorf("%d agree, %v differ", agree, differ)
	}
}

// PCR 0 of a machine that was started from another locality begins with it (section 10.4.5.3 of the profile).
func TestStartupLocality(t *testing.T) {
	t.Parallel()
	u32 := func(v uint32) []byte { return binary.LittleEndian.AppendUint32(nil, v) }
	spec := append([]byte("Spec ID Event03\x00"), 0, 0, 0, 0, 0, 2, 0, 2, 1, 0, 0, 0, 0x0B, 0, 32, 0, 0)
	log := bytes.Join([][]byte{u32(0), u32(3), make([]byte, 20), u32(uint32(len(spec))), spec}, nil)
	locality := []byte("StartupLocality\x00\x03")
	log = bytes.Join([][]byte{log, u32(0), u32(3), u32(1), {0x0B, 0}, make([]byte, 32), u32(uint32(len(locality))), locality}, nil)
	digest := sha256.Sum256([]byte("firmware"))
	log = bytes.Join([][]byte{log, u32(0), u32(8), u32(1), {0x0B, 0}, digest[:], u32(0)}, nil)
	got, err := attest.ReplayEventLog(log)
	if want := attest.ExtendPCR(record.Hash{31: 3}, digest); err != nil || len(got) != 1 || got[0] != want {
		t.Errorf("%x, %v; want %x", got, err, want)
	}
}

func TestEventLogRefusals(t *testing.T) {
	t.Parallel()
	log := eventLog(t)
	for name, b := range map[string][]byte{
		"nothing":           nil,
		"the first event":   log[:69],
		"zeros":             make([]byte, 1000),
		"cut":               log[:len(log)-1],
		"cut in a digest":   log[:120],
		"too large":         make([]byte, 17<<20),
		"older form":        append(make([]byte, 32), log[32+37:]...),
		"unknown algorithm": bytes.Replace(log, []byte{4, 0, 20, 0, 11, 0, 32, 0}, []byte{4, 0, 20, 0, 99, 0, 32, 0}, 1),
		"no SHA-256":        bytes.Replace(log, []byte{11, 0, 32, 0}, []byte{11, 0, 20, 0}, 1),
	} {
		if _, err := attest.ReplayEventLog(b); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func FuzzReplayEventLog(f *testing.F) {
	log := eventLog(f)
	f.Add(log)
	f.Add(log[:3000])
	f.Fuzz(func(t *testing.T, b []byte) {
		if got, err := attest.ReplayEventLog(b); err == nil && (len(got) == 0 || len(got) > 24) {
			t.Errorf("%d PCRs", len(got))
		}
	})
}

// imaList makes a list as Linux does (ima_template_lib.c, template ima-ng), and the value of PCR 10 after each of its entries.
type imaList struct {
	list   []byte
	padded bool // a kernel before 5.8
	pcr    record.Hash
	after  []record.Hash
}

func (l *imaList) add(path, algorithm string, digest []byte, violation bool) {
	u32 := func(v int) []byte { return binary.LittleEndian.AppendUint32(nil, uint32(v)) }
	field := append([]byte(algorithm+":\x00"), digest...)
	name := []byte(path + "\x00")
	data := bytes.Join([][]byte{u32(len(field)), field, u32(len(name)), name}, nil)
	recorded := sha1.Sum(data)
	extended := sha256.Sum256(data)
	if l.padded {
		extended = [32]byte{}
		copy(extended[:], recorded[:])
	}
	if violation {
		recorded = [20]byte{}
		copy(extended[:], bytes.Repeat([]byte{0xFF}, 32))
	}
	l.list = bytes.Join([][]byte{l.list, u32(10), recorded[:], u32(6), []byte("ima-ng"), u32(len(data)), data}, nil)
	l.pcr = attest.ExtendPCR(l.pcr, extended)
	l.after = append(l.after, l.pcr)
}

// The beginning of the list that leads to the PCR's value is proved by it, and no more.
func TestReplayIMA(t *testing.T) {
	t.Parallel()
	daemon := sha256.Sum256([]byte("bullad"))
	for _, padded := range []bool{false, true} {
		l := &imaList{padded: padded}
		l.add("boot_aggregate", "sha256", make([]byte, 32), false)
		l.add("/usr/bin/open", "sha1", make([]byte, 20), true)
		l.add("/usr/bin/bullad", "sha256", daemon[:], false)
		l.add("/usr/bin/late", "sha256", make([]byte, 32), false)
		got, err := attest.ReplayIMA(l.list, l.after[2])
		if err != nil || len(got) != 3 || got[2].Path != "/usr/bin/bullad" || got[1].Path != "" {
			t.Fatalf("padded %t: %+v, %v", padded, got, err)
		}
		if path, ok := attest.Find(got, daemon); !ok || path != "/usr/bin/bullad" {
			t.Errorf("padded %t: not found", padded)
		}
		before, err := attest.ReplayIMA(l.list, l.after[1])
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := attest.Find(before, daemon); ok {
			t.Error("found in what the PCR does not prove")
		}
		if _, err := attest.ReplayIMA(l.list, record.Hash{1}); err == nil {
			t.Error("another PCR value was accepted")
		}
		for _, cut := range []int{1, 30, len(l.list) - 1} {
			if _, err := attest.ReplayIMA(l.list[:cut], l.pcr); err == nil {
				t.Errorf("cut at %d: accepted", cut)
			}
		}
	}
}
