package verify

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"

	"bulla/attest"
	"bulla/record"
)

// boots follows what was measured while the machine started, as far as the log holds it. It is evidence for people to judge: firmware
// errs, and operating systems measure into PCRs what no log says, so that a list which does not lead to the quoted values is reported
// and is no sign of tampering.
type boots struct {
	parts map[string][]record.Blob // of the last blob of each name, as far as it has come
	start *startSeal               // the last seal of a start that holds

	starts   int      // records of a start
	agree    int      // whose event log leads to the quoted values
	measured int      // in which the kernel had measured the executable that the daemon claims
	doubtful []string // what does not agree, the last few
}

// startSeal is the first seal of a start.
type startSeal struct {
	number uint64
	pcrs   []attest.PCRValue
	exe    record.Hash // claimed
	judged bool        // a record of the start was: replaying what was measured costs much, and there is one
}

// maxDoubtful bounds what is said about starts whose measurements do not agree.
const maxDoubtful = 5

// seal remembers the first seal of a start, which holds.
func (b *boots) seal(body []byte) {
	s, err := attest.ParseSeal(body)
	if err != nil {
		return
	}
	if st, err := attest.ParseStatement(s.Statement); err == nil && st.Reason == "start" {
		b.start = &startSeal{number: st.Number, pcrs: s.PCRs, exe: st.Software.Exe}
	}
}

// blob takes a part of a blob. Of each name only the last is kept, which is all that a start refers to.
func (b *boots) blob(e *record.Entry) {
	p, err := record.ParseBlob(e.Body)
	if err != nil || p.Name != attest.BlobEventLog && p.Name != attest.BlobIMA {
		return
	}
	if b.parts == nil {
		b.parts = map[string][]record.Blob{}
	}
	if p.Part == 0 {
		b.parts[p.Name] = nil
	}
	if have := b.parts[p.Name]; len(have) == p.Part && (p.Part == 0 || have[0].SHA256 == p.SHA256) {
		b.parts[p.Name] = append(have, *p)
	}
}

// whole is the last blob of a name, if it is complete and has the hash.
func (b *boots) whole(name string, want record.Hash) ([]byte, bool) {
	data, err := record.JoinBlob(b.parts[name])
	return data, err == nil && sha256.Sum256(data) == want
}

// system takes a record of how the machine was started.
func (b *boots) system(e *record.Entry) {
	s, err := record.ParseSystem(e.Body)
	if err != nil || s.Boot == nil {
		return
	}
	if b.start != nil && b.start.number == s.Boot.Seal && b.start.judged {
		return
	}
	b.starts++
	doubt := func(format string, args ...any) {
		if len(b.doubtful) == maxDoubtful {
			b.doubtful = b.doubtful[1:]
		}
		b.doubtful = append(b.doubtful, fmt.Sprintf("entry %d: ", e.Index)+fmt.Sprintf(format, args...))
	}
	if b.start == nil || b.start.number != s.Boot.Seal {
		doubt("the last good seal of a start is not seal %d", s.Boot.Seal)
		return
	}
	b.start.judged = true
	if want := s.Boot.EventLog; want != nil {
		if err := b.eventLog(*want); err != nil {
			doubt("%.200s", err.Error())
		} else {
			b.agree++
		}
	}
	if want := s.Boot.IMA; want != nil {
		if err := b.ima(*want); err != nil {
			doubt("%.200s", err.Error())
		} else {
			b.measured++
		}
	}
}

func (b *boots) eventLog(want record.Hash) error {
	data, ok := b.whole(attest.BlobEventLog, want)
	if !ok {
		return fmt.Errorf("the boot event log %x is not in the log", want[:])
	}
	values, err := attest.ReplayEventLog(data)
	if err != nil {
		return err
	}
	agree, differ := attest.Differing(values, b.start.pcrs)
	if len(differ) > 0 {
		return fmt.Errorf("the boot event log does not lead to the quoted values of PCRs %v", differ)
	}
	if agree == 0 {
		return fmt.Errorf("seal %d quotes no PCR of the boot event log", b.start.number)
	}
	return nil
}

func (b *boots) ima(want record.Hash) error {
	data, ok := b.whole(attest.BlobIMA, want)
	if !ok {
		return fmt.Errorf("the IMA list %x is not in the log", want[:])
	}
	i := slices.IndexFunc(b.start.pcrs, func(v attest.PCRValue) bool { return v.Index == attest.IMAPCR })
	if i < 0 {
		return fmt.Errorf("seal %d does not quote PCR %d", b.start.number, attest.IMAPCR)
	}
	measured, err := attest.ReplayIMA(data, b.start.pcrs[i].Value)
	if err != nil {
		return err
	}
	if _, ok := attest.Find(measured, b.start.exe); !ok {
		return fmt.Errorf("the kernel had not measured the executable that the daemon claims, SHA-256 %s", hex.EncodeToString(b.start.exe[:]))
	}
	return nil
}

// remark says what the measurements show.
func (b *boots) remark(r *run) {
	if b.starts == 0 {
		r.remark("boot: the log holds nothing of what was measured while the machine started; what ran on it is its own word")
		return
	}
	if b.agree > 0 {
		r.remark("boot: in %d of %d recorded starts the boot event log leads to the PCR values that the TPM quoted: firmware and boot loader were those that it names", b.agree, b.starts)
	}
	if b.measured > 0 {
		r.remark("boot: in %d of %d recorded starts the kernel had measured the executable that the daemon claims to be (IMA, PCR 10)", b.measured, b.starts)
	} else {
		r.remark("boot: no start has an IMA list that shows the executable: the hashes in statements are the daemon's own word")
	}
	for _, d := range b.doubtful {
		r.remark("boot: %s", d)
	}
}
