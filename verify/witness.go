package verify

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"

	"golang.org/x/mod/sumdb/note"

	"bulla/record"
)

// Witness is somebody who cosigns the heads of logs (C2SP tlog-cosignature), each only if it extends all that they saw before.
type Witness struct {
	Name string // in the policy
	VKey string // verifier key, of type 0x04
	URL  string // for those who submit; may be empty
}

// Group is satisfied when so many of its members are: witnesses, or groups named before it.
type Group struct {
	Name      string
	Threshold int
	Members   []string
}

// maxWitnesses bounds the witnesses and the groups of a policy, and the cosigned checkpoints in evidence.
const maxWitnesses = 256

// noQuorum is the name that stands for no quorum.
const noQuorum = "none"

// witnessLine reads a line about witnesses as C2SP tlog-policy has them: `witness NAME VKEY [URL]`, `group NAME any|all|K MEMBER...` or
// `quorum NAME|none`. What a line names must be named before it, and be a member of one group at most.
func (p *Policy) witnessLine(key string, args []string) error {
	switch {
	case key == "quorum" && len(args) == 1:
		if args[0] == noQuorum {
			return nil
		}
		if !p.names(args[0]) {
			return fmt.Errorf("quorum: no witness or group %.100q is named before", args[0])
		}
		p.Quorum = args[0]
		return nil
	case key == "witness" && (len(args) == 2 || len(args) == 3):
		w := Witness{Name: args[0], VKey: args[1]}
		if len(args) == 3 {
			w.URL = args[2]
		}
		if _, err := record.NewWitnessVerifier(w.VKey); err != nil {
			return fmt.Errorf("witness: %w", err)
		}
		if slices.ContainsFunc(p.Witnesses, func(o Witness) bool { return o.VKey == w.VKey }) {
			return errors.New("witness: the same key twice")
		}
		p.Witnesses = append(p.Witnesses, w)
		return p.newName(w.Name, len(p.Witnesses))
	case key == "group" && len(args) >= 3:
		g := Group{Name: args[0], Members: args[2:]}
		if err := p.members(g.Members); err != nil {
			return fmt.Errorf("group %.100q: %w", g.Name, err)
		}
		switch n, err := strconv.Atoi(args[1]); {
		case args[1] == "any":
			g.Threshold = 1
		case args[1] == "all":
			g.Threshold = len(g.Members)
		case err != nil || n < 1 || n > len(g.Members) || strconv.Itoa(n) != args[1]:
			return fmt.Errorf("group %.100q: must need any, all, or a number from 1 to %d of its members", g.Name, len(g.Members))
		default:
			g.Threshold = n
		}
		p.Groups = append(p.Groups, g)
		return p.newName(g.Name, len(p.Groups))
	}
	return errors.New("the lines are `witness NAME VKEY [URL]`, `group NAME any|all|K MEMBER...`, `quorum NAME` and `quorum none`")
}

// newName refuses a name that is taken, and one line too many.
func (p *Policy) newName(name string, lines int) error {
	count := 0
	for _, w := range p.Witnesses {
		if w.Name == name {
			count++
		}
	}
	for _, g := range p.Groups {
		if g.Name == name {
			count++
		}
	}
	switch {
	case count > 1 || name == noQuorum:
		return fmt.Errorf("the name %.100q is taken", name)
	case lines > maxWitnesses:
		return fmt.Errorf("more than %d witnesses or groups", maxWitnesses)
	}
	return nil
}

func (p *Policy) names(name string) bool {
	return slices.ContainsFunc(p.Witnesses, func(w Witness) bool { return w.Name == name }) || slices.ContainsFunc(p.Groups, func(g Group) bool { return g.Name == name })
}

func (p *Policy) members(names []string) error {
	for i, name := range names {
		if !p.names(name) {
			return fmt.Errorf("no witness or group %.100q is named before", name)
		}
		taken := slices.Contains(names[:i], name)
		for _, g := range p.Groups {
			taken = taken || slices.Contains(g.Members, name)
		}
		if taken {
			return fmt.Errorf("%.100q is a member already", name)
		}
	}
	return nil
}

// appendWitnesses writes the lines about witnesses; those that use a name come behind those that give it.
func (p *Policy) appendWitnesses(b []byte) []byte {
	for _, w := range p.Witnesses {
		b = fmt.Appendf(b, "witness %s %s", w.Name, w.VKey)
		if w.URL != "" {
			b = fmt.Appendf(b, " %s", w.URL)
		}
		b = append(b, '\n')
	}
	for _, g := range p.Groups {
		b = fmt.Appendf(b, "group %s %d", g.Name, g.Threshold)
		for _, m := range g.Members {
			b = fmt.Appendf(b, " %s", m)
		}
		b = append(b, '\n')
	}
	return fmt.Appendf(b, "quorum %s\n", cmp.Or(p.Quorum, noQuorum))
}

// quorum is what the policy asks of witnesses; "" if nothing.
func (p *Policy) quorum() string {
	if p == nil {
		return ""
	}
	return p.Quorum
}

func (p *Policy) witnesses() []Witness {
	if p == nil {
		return nil
	}
	return p.Witnesses
}

// satisfied reports whether the witness or group has what it needs, if holds says which witnesses do.
func (p *Policy) satisfied(name string, holds func(witness string) bool) bool {
	for _, g := range p.Groups {
		if g.Name == name {
			n := 0
			for _, m := range g.Members {
				if p.satisfied(m, holds) {
					n++
				}
			}
			return n >= g.Threshold
		}
	}
	return holds(name)
}

// WitnessFile is the name of the n-th cosigned checkpoint in evidence, from 0 without a gap: signed notes over earlier heads of the log,
// with the log's lines and those of witnesses.
func WitnessFile(n int) string { return "witness/" + strconv.Itoa(n) }

// WitnessResult is what is known of a witness that the policy names.
type WitnessResult struct {
	Name string  `json:"name"`
	Size *uint64 `json:"size,omitempty"` // of the largest tree of this log that it cosigned; absent: no cosignature was found
	Time uint64  `json:"time,omitempty"` // when, as it states: seconds of Unix time
}

// readCosigned reads the checkpoints that witnesses cosigned. It comes before the head is read: of a log that is being written to,
// none is then over a larger tree.
func (r *run) readCosigned(ctx context.Context) error {
	for len(r.cosigned) < maxWitnesses {
		b, ok, err := read(ctx, r.src, WitnessFile(len(r.cosigned)), record.MaxCheckpoint)
		if err != nil || !ok {
			return err
		}
		r.cosigned = append(r.cosigned, b)
	}
	return nil
}

// judgeWitnesses checks the checkpoints that witnesses cosigned, and finds out up to where a quorum of them vouches for the log.
func (r *run) judgeWitnesses(ctx context.Context) error {
	for _, w := range r.policy.witnesses() {
		r.report.Witnesses = append(r.report.Witnesses, WitnessResult{Name: w.Name})
	}
	if err := r.judgeCosigned(ctx, checkpoint, r.signed); err != nil {
		return err
	}
	for i, b := range r.cosigned {
		if err := r.judgeCosigned(ctx, WitnessFile(i), b); err != nil {
			return err
		}
	}
	r.countWitnesses()
	return nil
}

// contradicted records that a cosigned head is not of this log, unless witnesses saw it before a recovery that declares it lost.
func (r *run) contradicted(head record.Checkpoint, times []uint64, f Finding) {
	before := int64(math.MaxInt64)
	if len(times) > 0 {
		before = int64(min(slices.Max(times), math.MaxInt64/uint64(time.Second))) * int64(time.Second)
	}
	x := r.lost(head.Size, before)
	if x == nil {
		r.find(f)
		return
	}
	why := fmt.Sprintf("%s is over %d entries: %s", f.File, head.Size, x.declares())
	r.remark("%s", why)
	if !r.pinned() {
		r.miss(why, ClaimWitnesses)
	}
}

// judgeCosigned checks one signed note against the log's history, and counts the cosignatures on it.
func (r *run) judgeCosigned(ctx context.Context, name string, signed []byte) error {
	head, err := headText(signed)
	if err != nil || head.Origin != r.head.Origin {
		found := "a head of log " + quote(head.Origin)
		if err != nil {
			found = fmt.Sprintf("%.300s", err.Error())
		}
		r.find(Finding{Rule: "witness.format", File: name, Expected: "a signed note over a head of log " + quote(r.head.Origin), Found: found})
		return nil
	}
	known := 0              // valid lines by keys that policy or log name
	if name != checkpoint { // whose own lines are judged as the head's
		for _, vkey := range r.knownKeys() {
			switch missing, bad := r.signedBy(signed, vkey); {
			case bad != "":
				r.find(Finding{Rule: "witness.signature", File: name, Expected: "a valid line by " + short(vkey), Found: bad})
				return nil
			case !missing:
				known++
			}
		}
	}
	if name != checkpoint {
		r.remarkUnknown(name, signed, r.knownKeys())
	}
	var by []int // witnesses of the policy
	var times []uint64
	for i, w := range r.policy.witnesses() {
		at, found, bad := cosignature(signed, w.VKey)
		if bad != "" {
			r.find(Finding{Rule: "witness.signature", File: name, Expected: "a valid cosignature by " + short(w.VKey), Found: bad})
			return nil
		}
		if found {
			by, times, known = append(by, i), append(times, at), known+1
		}
	}
	switch {
	case name == checkpoint && len(by) == 0:
		return nil
	case known == 0:
		r.remark("%s is signed by nobody whom policy or log name; it was not checked", name)
		return nil
	case head.Size > r.head.Size:
		r.contradicted(head, times, Finding{Rule: "witness.beyond", File: name, Expected: fmt.Sprintf("a log of at least %d entries", head.Size), Found: fmt.Sprintf("%d entries", r.head.Size)})
		return nil
	}
	root, ok, err := r.rootAt(ctx, head.Size)
	if err != nil || !ok {
		return err
	}
	if root != head.Root {
		r.contradicted(head, times, Finding{Rule: "witness.tree", File: name, Expected: fmt.Sprintf("root %v at size %d", head.Root, head.Size), Found: "root " + root.String()})
		return nil
	}
	for n, i := range by {
		if res := &r.report.Witnesses[i]; res.Size == nil || *res.Size < head.Size {
			res.Size, res.Time = at(head.Size), times[n]
		}
	}
	return nil
}

// knownKeys are the log's keys: those that the policy pins, and those that govern it or did.
func (r *run) knownKeys() []string {
	keys := slices.Clone(r.policy.keys(r.origin))
	for _, v := range r.fold.history() {
		if !slices.Contains(keys, v) {
			keys = append(keys, v)
		}
	}
	return keys
}

// signedBy checks a note's line by one of the log's keys.
func (r *run) signedBy(signed []byte, vkey string) (missing bool, bad string) {
	v, err := r.opt.thief.verifier(vkey)
	if err != nil {
		return true, ""
	}
	_, missing, bad = checkNote(signed, v)
	return missing, bad
}

// cosignature finds a witness's line on a note, and the time that it states.
func cosignature(signed []byte, vkey string) (time uint64, found bool, bad string) {
	v, err := record.NewWitnessVerifier(vkey)
	if err != nil {
		return 0, false, ""
	}
	sig, missing, bad := checkNote(signed, v)
	if missing || bad != "" {
		return 0, false, bad
	}
	if time, err = record.CosignatureTime(sig); err != nil {
		return 0, false, err.Error()
	}
	return time, true, ""
}

// checkNote checks a note's line by one key.
func checkNote(signed []byte, v note.Verifier) (sig note.Signature, missing bool, bad string) {
	n, err := record.OpenNote(signed, v)
	var unverified *note.UnverifiedNoteError
	var invalid *note.InvalidSignatureError
	switch {
	case errors.As(err, &unverified):
		return sig, true, ""
	case errors.As(err, &invalid):
		return sig, false, "its signature is over other bytes"
	case err != nil:
		return sig, false, fmt.Sprintf("%.300s", err.Error())
	}
	return n.Sigs[0], false, ""
}

// countWitnesses finds the largest size that a quorum vouches for: who cosigned a larger tree vouches for the smaller one in it.
func (r *run) countWitnesses() {
	quorum := r.policy.quorum()
	if quorum == "" {
		r.miss("the policy asks for no witnesses", ClaimWitnesses)
		return
	}
	for _, candidate := range r.report.Witnesses {
		size := candidate.Size
		if size == nil || *size <= r.witnessed {
			continue
		}
		if r.policy.satisfied(quorum, func(name string) bool {
			return slices.ContainsFunc(r.report.Witnesses, func(w WitnessResult) bool { return w.Name == name && w.Size != nil && *w.Size >= *size })
		}) {
			r.witnessed = *size
		}
	}
	if r.witnessed == 0 {
		r.miss(fmt.Sprintf("quorum %s is not reached: cosignatures were found of %d of the policy's %d witnesses; have the log cosigned and export again",
			quorum, r.cosigners(), len(r.report.Witnesses)), ClaimWitnesses)
		return
	}
	r.covered(r.witnessed, ClaimWitnesses)
}

func (r *run) cosigners() int {
	n := 0
	for _, w := range r.report.Witnesses {
		if w.Size != nil {
			n++
		}
	}
	return n
}

// isCosigned reports whether a file is a cosigned checkpoint that was looked at.
func (r *run) isCosigned(name string) bool {
	for n := range r.cosigned {
		if name == WitnessFile(n) {
			return true
		}
	}
	return false
}
