package ceremony

import (
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"bulla/record"
)

// Describe says in words what the proposal would change in this state, a line each. Whatever somebody else wrote is made printable.
func (s State) Describe(p *Proposal) []string { return p.content.describe(&s) }

// Already reports whether what the proposal says is in force in this state already. The log takes such a proposal all the same.
func (s State) Already(p *Proposal) bool {
	c, ok := p.content.(interface{ changes(*State) []string })
	return ok && len(c.changes(&s)) == 0
}

func (c *PolicySet) describe(s *State) []string { return orNothing(c.changes(s)) }

func (c *PolicySet) changes(s *State) []string {
	was := PolicySet{Clock: s.Policy.Clock, Quotas: s.Policy.Quotas, Roles: s.Policy.Roles, Seal: s.Policy.Seal}
	return differences(was.flat(), c.flat())
}

// Describe says in words what governs by it, a line each. Whatever somebody else wrote is made printable.
func (g *Genesis) Describe() []string {
	policy := PolicySet{Clock: g.Clock, Quotas: g.Quotas, Roles: g.Roles, Seal: g.Seal}
	officers := OfficersSet{Officers: g.Officers, ProposerCounts: g.ProposerCounts, Thresholds: g.Thresholds}
	var out []string
	for _, values := range []map[string]string{officers.flat(), policy.flat()} {
		for _, name := range slices.Sorted(maps.Keys(values)) {
			out = append(out, name+": "+values[name])
		}
	}
	if p := g.Predecessor; p != nil {
		out = append(out, fmt.Sprintf("it succeeds log %s, closed at %d entries, root %s", quoted(p.Origin), p.Size, hexOf(p.Root)))
	}
	return out
}

// flat is the policy as named values.
func (c *PolicySet) flat() map[string]string {
	out := map[string]string{}
	for name, v := range map[string]any{"clock": c.Clock, "quotas": c.Quotas, "seal": c.Seal} {
		flatten(out, name, v)
	}
	for _, r := range c.Roles {
		var who []string
		if r.Any {
			who = append(who, "everyone")
		}
		if len(r.UIDs) > 0 {
			who = append(who, fmt.Sprintf("uids %v", r.UIDs))
		}
		if len(r.GIDs) > 0 {
			who = append(who, fmt.Sprintf("gids %v", r.GIDs))
		}
		out["role "+r.Name] = strings.Join(who, ", ")
	}
	return out
}

// durations are the members of a policy that are in ns.
var durations = []string{
	"clock.limit", "clock.warn", "clock.holdover_max", "clock.max_offset", "clock.poll", "clock.min_dist", "clock.max_dist", "clock.max_rtt",
	"seal.increment", "seal.interval", "seal.unsealed",
}

// flatten adds the members of a struct of plain values under their names in JSON.
func flatten(out map[string]string, prefix string, v any) {
	b, err := record.MarshalCanonical(v)
	if err != nil {
		out[prefix] = Printable(err.Error()) // such a policy was never valid
		return
	}
	var members map[string]any
	if err := json.Unmarshal(b, &members); err != nil {
		out[prefix] = Printable(string(b))
		return
	}
	for name, m := range members {
		name = prefix + "." + name
		switch m := m.(type) {
		case float64: // policies hold integers far below 2^53
			out[name] = strconv.FormatInt(int64(m), 10)
			if slices.Contains(durations, name) {
				out[name] = time.Duration(int64(m)).String()
			}
		case string:
			out[name] = Printable(m)
		default:
			out[name] = Printable(fmt.Sprint(m))
		}
	}
}

// differences are what was added, removed and changed, by name.
func differences(was, is map[string]string) []string {
	names := slices.Sorted(maps.Keys(was))
	for name := range is {
		if _, ok := was[name]; !ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	var out []string
	for _, name := range names {
		a, before := was[name]
		b, after := is[name]
		switch {
		case !before:
			out = append(out, fmt.Sprintf("%s: %s (new)", name, b))
		case !after:
			out = append(out, fmt.Sprintf("%s: %s is removed", name, a))
		case a != b:
			out = append(out, fmt.Sprintf("%s: %s becomes %s", name, a, b))
		}
	}
	return out
}

func orNothing(changes []string) []string {
	if len(changes) == 0 {
		return []string{"nothing: it says what is in force already"}
	}
	return changes
}

func (c *OfficersSet) describe(s *State) []string { return orNothing(c.changes(s)) }

func (c *OfficersSet) changes(s *State) []string {
	was := OfficersSet{Officers: s.Policy.Officers, ProposerCounts: s.Policy.ProposerCounts, Thresholds: s.Policy.Thresholds}
	return differences(was.flat(), c.flat())
}

func (c *OfficersSet) flat() map[string]string {
	out := map[string]string{"who proposes": "does not count"}
	if c.ProposerCounts {
		out["who proposes"] = "counts"
	}
	for i := range c.Officers {
		out["officer "+Printable(c.Officers[i].Name)] = c.Officers[i].describe()
	}
	for action, n := range c.Thresholds {
		out["threshold "+Printable(action)] = fmt.Sprintf("%d of %d", n, len(c.Officers))
	}
	return out
}

// describe says who an officer is, but for the name.
func (o *Officer) describe() string {
	kind, _, _ := strings.Cut(o.Key, " ")
	out := []string{Printable(kind) + " " + o.Fingerprint()}
	if o.Touch {
		out = append(out, "touch required")
	}
	if o.Verify {
		out = append(out, "PIN required")
	}
	if o.ValidFrom != "" {
		out = append(out, "from "+Printable(o.ValidFrom))
	}
	if o.ValidTo != "" {
		out = append(out, "until "+Printable(o.ValidTo))
	}
	return strings.Join(out, ", ")
}

func (c *KeyGenerate) describe(*State) []string {
	out := fmt.Sprintf("a new key of %s for %s is made in its device; it is not used before a rotation", Printable(c.Algorithm), Printable(c.Purpose))
	if c.Label != "" {
		out += "; label " + quoted(c.Label)
	}
	return []string{out}
}

func (c *KeyRotate) describe(s *State) []string {
	is := fmt.Sprintf("the key for %s becomes %s", Printable(c.Purpose), hexOf(c.SPKI))
	old := s.key(c.Purpose)
	if old == nil {
		return []string{is, "there was none"}
	}
	return []string{is, fmt.Sprintf("it was %s, which %s", hexOf(old.Hash()), map[string]string{
		OldSigns: "signs the handover", OldLost: "is lost", OldCompromised: "is compromised: receipts that it signed are good only against a later head",
	}[c.Old])}
}

func (c *KeyRetire) describe(s *State) []string {
	what := "a key that the log does not have"
	switch {
	case slices.ContainsFunc(s.Generated, func(k Key) bool { return k.Hash() == c.SPKI }):
		what = "a key that was never used"
	case slices.ContainsFunc(s.Past, func(k PastKey) bool { return k.Key.Hash() == c.SPKI }):
		what = "a key whose place was taken"
	case slices.ContainsFunc(s.Policy.Keys, func(k Key) bool { return k.Hash() == c.SPKI }):
		what = "a key that is in force"
	}
	return []string{fmt.Sprintf("the key %s is destroyed in its device: %s", hexOf(c.SPKI), what)}
}

func (c *TPMEnrol) describe(s *State) []string {
	out := []string{fmt.Sprintf("a TPM is enrolled: attestation key %s, endorsement key %s, seal PCR %d", hex.EncodeToString(c.AKName), hexOf(c.EK), c.PCR)}
	if old := s.Policy.TPM; old != nil {
		out = append(out, fmt.Sprintf("it takes the place of attestation key %s, seal PCR %d", hex.EncodeToString(old.AKName), old.PCR))
	}
	return out
}

func (c *PCRApprove) describe(*State) []string {
	out := []string{"the TPM may give out what is sealed while these PCRs have these values"}
	if c.Label != "" {
		out[0] += ": " + quoted(c.Label)
	}
	for _, p := range c.PCRs {
		out = append(out, fmt.Sprintf("PCR %d: %s", p.Index, hexOf(p.Value)))
	}
	return out
}

func (c *RecoveryDeclare) describe(*State) []string {
	out := []string{fmt.Sprintf("the log is closed for ever; what survives are its first %d entries, root %s", c.Surviving.Size, hexOf(c.Surviving.Root))}
	if n := c.Known.Size - c.Surviving.Size; n > 0 {
		out = append(out, fmt.Sprintf("%d entries are lost: %d to %d; root of what is known: %s", n, c.Surviving.Size, c.Known.Size-1, hexOf(c.Known.Root)))
	} else {
		out = append(out, "no entry is known to be lost")
	}
	if c.Successor != "" {
		out = append(out, "log "+quoted(c.Successor)+" goes on")
	}
	return append(out, "reason: \""+Printable(c.Reason)+"\"")
}

func hexOf(h record.Hash) string { return hex.EncodeToString(h[:]) }
