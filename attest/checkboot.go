package attest

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"bulla/record"
)

// Boot is what is known of a TPM since it last attested something: enough to tell whether it went on as an honest one does. The
// sealer asks before it seals, and the verifier afterwards, by the same rules.
type Boot struct {
	Clock *ClockInfo    // at the last attestation; nil: not known, as after an enrolment
	PCR   []record.Hash // values that the seal PCR may have, while PCRs last
	Late  []record.Hash // values that it may have once PCRs have begun anew: zero, or with an interrupted extension
	Ended bool          // the last attestation was of an abandoned seal: PCRs must have begun anew
	Saved uint64        // a reset does not set the TPM's clock back behind this, ms
}

// Follows checks what a TPM shows later: its clock, and the seal PCR. PCRs began anew when the machine was reset, or hibernated; the
// counter must then have grown by the next seal.
func (b Boot) Follows(now ClockInfo, pcr record.Hash) (anew bool, findings []Finding) {
	return b.follows(now, pcr, false)
}

// follows does, also for an abandoned seal, of which the PCR may have been read after the reset that interrupted it.
func (b Boot) follows(now ClockInfo, pcr record.Hash, abandoned bool) (anew bool, findings []Finding) {
	c := &checker{}
	may := b.PCR
	if last := b.Clock; last != nil {
		if !now.follows(*last, b.Saved) {
			c.fail(RuleClock, "after "+last.String(), now.String())
		}
		switch {
		case now.ResetCount != last.ResetCount:
			may, anew = b.Late, true
		case now.RestartCount != last.RestartCount: // suspended, and PCRs last; or hibernated, and they do not
			anew = !slices.Contains(may, pcr) && slices.Contains(b.Late, pcr)
			may = slices.Concat(may, b.Late)
		}
		if b.Ended && !anew {
			c.fail(RuleAbandoned, "a reset after "+last.String(), now.String())
		}
	}
	if abandoned {
		may = append(slices.Clone(may), record.Hash{})
	}
	if !slices.Contains(may, pcr) {
		c.fail(RulePCRReplay, hashes(may), hex.EncodeToString(pcr[:]))
	}
	return anew, c.findings
}

// Interrupted is what is known of the TPM after the last of a list of abandoned seals, which Abandon made.
func Interrupted(list []Abandoned) (Boot, error) {
	if len(list) == 0 {
		return Boot{}, fmt.Errorf("no abandoned seal")
	}
	x := list[len(list)-1]
	a, err := ParseCertify(x.Attest)
	if err != nil {
		return Boot{}, err
	}
	st, err := ParseStatement(x.Statement)
	if err != nil {
		return Boot{}, err
	}
	return interrupted(list, st, a)
}

// interrupted does; st and a are those of the list's last seal. Its statement is hashed with those before it, as it listed them. It may
// have been extended into the PCR or not, before the reset that interrupted it or after.
func interrupted(list []Abandoned, st *Statement, a *Attested) (Boot, error) {
	whole := *st
	whole.Abandoned = list[:len(list)-1]
	listed, err := whole.Encode()
	if err != nil {
		return Boot{}, err
	}
	digest := sha256.Sum256(listed)
	return Boot{
		Clock: &a.Clock,
		PCR:   []record.Hash{st.PCR.Before, ExtendPCR(st.PCR.Before, digest)},
		Late:  []record.Hash{{}, ExtendPCR(record.Hash{}, digest)},
		Ended: true,
	}, nil
}

// follows reports whether a TPM's clock may read c after it read last. It never goes back while the counts stay. A reset without
// TPM2_Shutdown sets it back to where it was saved, and it is not safe then until it is saved again. A TPM is to save it every few
// seconds; swtpm does when something else is saved, as a counter is, and calls it safe too early. So a clock that says that it is
// safe is held against saved, which it read before the counter last grew.
func (c ClockInfo) follows(last ClockInfo, saved uint64) bool {
	if c.ResetCount == last.ResetCount {
		return c.RestartCount >= last.RestartCount && c.Clock >= last.Clock
	}
	return c.ResetCount > last.ResetCount && (c.Clock >= saved || !c.Safe)
}

func (c ClockInfo) String() string {
	safe := ""
	if !c.Safe {
		safe = ", not safe"
	}
	return fmt.Sprintf("%d ms, reset count %d, restart count %d%s", c.Clock, c.ResetCount, c.RestartCount, safe)
}

func hashes(all []record.Hash) string {
	var out []string
	for _, h := range all {
		out = append(out, hex.EncodeToString(h[:]))
	}
	return strings.Join(out, " or ")
}
