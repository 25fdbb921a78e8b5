package ceremony_test

import (
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"bulla/ceremony"
	"bulla/record"
)

func at(year int) string {
	return string(record.AppendTime(nil, time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC).UnixNano()))
}

// Who governs must be told apart, must not act alone, and must not be locked out. The error names the field.
func TestOfficersAreRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	small, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p521 := plain(t, ecdsaKey(t, elliptic.P521()))
	text := func(s ssh.Signer) string { return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(s.PublicKey()))) }
	samePoint := newSK(t, ed25519Key(t))
	for _, c := range []struct {
		name, want string
		change     func(g *ceremony.Genesis)
	}{
		{"thresholds without officers", "thresholds: they need officers", func(g *ceremony.Genesis) { g.Officers = nil }},
		{"no default", "thresholds.default: required", func(g *ceremony.Genesis) { g.Thresholds = map[string]int{"policy.set": 2} }},
		{"one acts alone", "thresholds.default: 1 officer could act alone", func(g *ceremony.Genesis) { g.Thresholds["default"] = 1 }},
		{"one acts alone in one action", "thresholds.key.rotate: 1 officer could act alone", func(g *ceremony.Genesis) { g.Thresholds["key.rotate"] = 1 }},
		{"nobody at all", "thresholds.policy.set: 0 officer could act alone", func(g *ceremony.Genesis) { g.Thresholds["policy.set"] = 0 }},
		{"an unknown action", "thresholds.policy.get: there is no such action", func(g *ceremony.Genesis) { g.Thresholds["policy.get"] = 2 }},
		{"all are needed", "thresholds.default: 3 cannot be reached by the 3 officer(s)", func(g *ceremony.Genesis) { g.Thresholds["default"] = 3 }},
		{"more than there are", "thresholds.recovery.declare: 4 cannot be reached", func(g *ceremony.Genesis) { g.Thresholds["recovery.declare"] = 4 }},
		{"the proposer does not count", "who proposes does not count", func(g *ceremony.Genesis) { g.ProposerCounts = false }},
		{"more than there are, of the genesis", "thresholds.genesis: 4 cannot be reached", func(g *ceremony.Genesis) { g.Thresholds["genesis"] = 4 }},
		{"too few for ever", "everyone would be locked out", func(g *ceremony.Genesis) { g.Officers[0].ValidTo = at(2030) }},
		{"a name of two people", `officers[1].name: there is another "alice"`, func(g *ceremony.Genesis) { g.Officers[1].Name = "ALICE" }},
		{"a name with a space", "officers[0].name", func(g *ceremony.Genesis) { g.Officers[0].Name = "alice smith" }},
		{"a name that is an option", "officers[0].name", func(g *ceremony.Genesis) { g.Officers[0].Name = "-Oalice" }},
		{"a name in other letters", "officers[0].name", func(g *ceremony.Genesis) { g.Officers[0].Name = "аlice" }},
		{"a name too long", "officers[0].name", func(g *ceremony.Genesis) { g.Officers[0].Name = strings.Repeat("a", 65) }},
		{"one key of two officers", "officers[1].key: it is the key of alice too", func(g *ceremony.Genesis) { g.Officers[1].Key = g.Officers[0].Key }},
		{"one key as two kinds", "officers[1].key: it is the key of alice too", func(g *ceremony.Genesis) {
			g.Officers[0].Key, g.Officers[0].Touch = text(plain(t, samePoint.key)), false
			g.Officers[1].Key, g.Officers[1].Touch = text(samePoint), true
		}},
		{"a key with a comment", "officers[0].key", func(g *ceremony.Genesis) { g.Officers[0].Key += " alice@host" }},
		{"a key with options", "officers[0].key", func(g *ceremony.Genesis) { g.Officers[0].Key = "cert-authority " + g.Officers[0].Key }},
		{"a key of another type than it says", "officers[0].key", func(g *ceremony.Genesis) {
			g.Officers[0].Key = strings.Replace(g.Officers[0].Key, "ssh-ed25519", "ssh-rsa", 1)
		}},
		{"a key too long", "officers[0].key", func(g *ceremony.Genesis) { g.Officers[0].Key = "ssh-rsa " + strings.Repeat("A", 1600) }},
		{"no key", "officers[0].key", func(g *ceremony.Genesis) { g.Officers[0].Key = "" }},
		{"a small RSA key", "officers[0].key: an RSA key must have 3072", func(g *ceremony.Genesis) { g.Officers[0].Key = text(plain(t, small)) }},
		{"a curve that is not taken", "officers[0].key: keys of type", func(g *ceremony.Genesis) { g.Officers[0].Key = text(p521) }},
		{"touch of a key that cannot prove it", "officers[0].touch", func(g *ceremony.Genesis) { g.Officers[0].Touch = true }},
		{"a FIDO2 key without touch", "officers[2].touch", func(g *ceremony.Genesis) { g.Officers[2].Touch = false }},
		{"a PIN of a key that has none", "officers[0].verify", func(g *ceremony.Genesis) { g.Officers[0].Verify = true }},
		{"no time", "officers[0].valid_from", func(g *ceremony.Genesis) { g.Officers[0].ValidFrom = "2026-01-01" }},
		{"no time that ever is", "officers[0].valid_to: must be later", func(g *ceremony.Genesis) {
			g.Officers[0].ValidFrom, g.Officers[0].ValidTo = at(2031), at(2030)
		}},
		{"too many", "officers: 33 are too many", func(g *ceremony.Genesis) {
			for i := len(g.Officers); i < 33; i++ {
				g.Officers = append(g.Officers, ceremony.Officer{Name: fmt.Sprint("o", i), Key: text(plain(t, ed25519Key(t)))})
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := r.genesis()
			if err := g.Validate(); err != nil {
				t.Fatal(err)
			}
			c.change(g)
			if err := g.Validate(); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("should be refused with %q: %v", c.want, err)
			}
		})
	}
}

// An officer acts only while it is certain that he may; nobody is appointed so that the others would be too few.
func TestOfficersForATime(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	g := r.genesis() // at 2026-11-23
	g.Officers = r.officers("alice", "bob", "eve", "dave", "carol")
	g.Officers[3].ValidFrom, g.Officers[4].ValidTo = at(2028), at(2027)
	r.begin(g)
	n := r.propose(r.policy(5))
	refusedBy(t, r.try(record.KindApproval, r.decision(n, ceremony.Approve, "dave")), ceremony.RuleOfficer)
	r.approve(n, "carol")
	late := r.fork(t)

	// In time the approval counts.
	r.enact(n, nil)

	// Of one who may not act any more when it is enacted, it does not.
	end := time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC).UnixNano()
	d, err := late.state.Propose(late.policy(6), "alice", late.head(), end+int64(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	late.numbers[2] = d
	late.add(record.KindProposal, late.proposed(d, "alice"))
	late.approve(2, "carol")
	late.now = end - int64(time.Second) - 1_000_000 // the bound reaches beyond the end
	refusedBy(t, late.try(record.KindEnactment, late.enactment(2, nil)), ceremony.RuleThreshold)
	refusedBy(t, late.try(record.KindApproval, late.decision(2, ceremony.Reject, "carol")), ceremony.RuleOfficer)

	// A genesis whose officers begin too late would be locked out until then.
	r = newRig(t)
	g = r.genesis()
	g.Officers[0].ValidFrom = at(2028)
	if err := r.try(record.KindGenesis, g); err == nil || !strings.Contains(err.Error(), "locked out") {
		t.Error(err)
	}
	// And so would a log whose officers are set so.
	r = newRig(t)
	r.begin(r.genesis())
	late3 := r.officers("alice", "bob", "dave")
	late3[0].ValidFrom = at(2028)
	document := r.document(&ceremony.OfficersSet{Officers: late3, ProposerCounts: true, Thresholds: map[string]int{"default": 2}}, "alice")
	refusedBy(t, r.try(record.KindProposal, r.proposed(document, "alice")), ceremony.RuleDocument)
}
