package verify_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"bulla/attest"
	"bulla/ceremony"
	"bulla/clock"
	"bulla/record"
	"bulla/verify"
)

// council is a log with measured time that alice, bob and carol govern, two of them together; what it knows of the state is what a
// client would.
type council struct {
	*builder
	people map[string]ssh.Signer
	state  ceremony.State
	folded int // entries
}

func newCouncil(t *testing.T) *council {
	t.Helper()
	c := &council{builder: newBuilder(t), people: map[string]ssh.Signer{}}
	c.genesis.Clock = clock.DefaultPolicy()
	c.genesis.ProposerCounts, c.genesis.Thresholds = true, map[string]int{ceremony.Default: 2}
	for _, name := range []string{"alice", "bob", "carol"} {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		c.must(err)
		s, err := ssh.NewSignerFromSigner(key)
		c.must(err)
		c.people[name] = s
		c.genesis.Officers = append(c.genesis.Officers, ceremony.Officer{Name: name, Key: strings.TrimSpace(string(ssh.MarshalAuthorizedKey(s.PublicKey())))})
	}
	c.state.Root = c.rootAt
	c.begin()
	return c
}

// rootAt is the root that the log had at a size.
func (c *council) rootAt(size uint64) (record.Hash, error) {
	tree := &record.Tree{}
	for _, raw := range c.raw[:size] {
		tree.Append(nil, record.LeafHash(raw))
	}
	return tree.Root(), nil
}

// follow brings the state up to the log's end.
func (c *council) follow() {
	c.t.Helper()
	for ; c.folded < len(c.raw); c.folded++ {
		e, err := record.ParseEntry(c.raw[c.folded])
		c.must(err)
		if !ceremony.Governs(e.Kind) {
			c.state = c.state.Skip(1)
			continue
		}
		c.state, err = c.state.Apply(e, record.LeafHash(c.raw[c.folded]))
		c.must(err)
	}
}

func (c *council) body(kind record.Kind, body any) {
	c.t.Helper()
	raw, err := record.MarshalCanonical(body)
	c.must(err)
	c.add(kind, nil, raw)
}

func (c *council) approve(number uint64, document []byte, name string) {
	c.t.Helper()
	sig, err := ceremony.Sign(rand.Reader, document, ceremony.Approve, c.people[name])
	c.must(err)
	c.body(record.KindApproval, &ceremony.Approval{Decision: ceremony.Approve, Document: ceremony.DocumentHash(document), Number: number, Officer: name, Signature: sig})
}

func (c *council) approveGenesis(names ...string) *council {
	c.t.Helper()
	document, err := ceremony.GenesisDocument(c.origin, record.LeafHash(c.raw[0]))
	c.must(err)
	for _, name := range names {
		c.approve(0, document, name)
	}
	return c
}

// propose has alice propose that uid 1002 may append; the document names the root that head gives.
func (c *council) propose(head func(record.Hash) record.Hash) (document []byte) {
	c.t.Helper()
	c.follow()
	p := c.state.Policy
	return c.proposing(&ceremony.PolicySet{Clock: p.Clock, Quotas: p.Quotas, Seal: p.Seal, Roles: []ceremony.Role{{Name: ceremony.Producer, UIDs: []uint32{1000, 1001, 1002}}}}, head)
}

// proposing has alice propose anything.
func (c *council) proposing(content any, head func(record.Hash) record.Hash) (document []byte) {
	c.t.Helper()
	c.follow()
	document, err := c.state.Propose(content, "alice", ceremony.Head{Root: head(c.tree.Root()), Size: c.tree.Size()}, c.machine.now().UTC()+int64(time.Hour))
	c.must(err)
	sig, err := ceremony.Sign(rand.Reader, document, ceremony.Approve, c.people["alice"])
	c.must(err)
	c.body(record.KindProposal, &ceremony.Proposed{Document: document, Signature: sig})
	return document
}

func (c *council) enact(document []byte) {
	c.t.Helper()
	c.enactWith(1, document, nil)
}

// enactWith enacts a proposal with what its doing left.
func (c *council) enactWith(number uint64, document []byte, outcome any) {
	c.t.Helper()
	e := &ceremony.Enactment{Document: ceremony.DocumentHash(document), Number: number}
	if outcome != nil {
		var err error
		e.Outcome, err = record.MarshalCanonical(outcome)
		c.must(err)
	}
	c.body(record.KindEnactment, e)
}

// cut is the log of its first n entries, of the same machine and officers.
func (c *council) cut(n int) *council {
	out := *c
	out.builder = c.builder.cut(n)
	out.state, out.folded = ceremony.State{}, 0
	out.state.Root = out.rootAt
	return &out
}

// whole is the head of the log as it is.
func (c *council) whole() ceremony.Head {
	return ceremony.Head{Root: c.tree.Root(), Size: c.tree.Size()}
}

// recovery has officers declare what is lost of the log, up to a known head, in one go, as an appliance commits it: seals go on behind
// number n. It returns the index of the entry that closes the log.
func (c *council) recovery(n uint64, quote record.Hash, known ceremony.Head) uint64 {
	c.t.Helper()
	document := c.proposing(&ceremony.RecoveryDeclare{Known: known, Reason: "the disk failed", Surviving: c.whole()}, same)
	c.approve(1, document, "bob")
	var out ceremony.Recovered
	if x := c.chip; x != nil {
		out.TPM = &attest.Recovery{Clock: x.ticks, Counter: x.counter, PCR: x.pcr, Previous: quote, Resets: 3 + x.resets, Safe: true, Seal: n}
		x.number, x.quote, x.increment = n, quote, true
	}
	c.enactWith(1, document, &out)
	return c.tree.Size() - 1
}

func same(h record.Hash) record.Hash { return h }

func (c *council) report() *verify.Report {
	c.t.Helper()
	p := c.policy()
	p.NoTime = false
	return run(c.t, c.export(), p)
}

// A log that was governed as it should be is verified; what was enacted is in force from there on.
func TestGovernedLog(t *testing.T) {
	t.Parallel()
	c := newCouncil(t)
	c.approveGenesis("alice", "carol")
	c.startClock().measure().events(300)
	document := c.propose(same)
	c.approve(1, document, "bob")
	c.enact(document)
	c.add(record.KindEvent, &record.Producer{UID: 1002, GID: 1002}, []byte(`{"type":"a"}`))
	want(t, c.report(), verify.OutcomeVerified)
}

// What officers did not permit is found, though every entry is signed by the log's own keys.
func TestForgedGovernance(t *testing.T) {
	t.Parallel()
	for _, f := range []struct {
		name, reason, rules string
		forge               func(c *council)
	}{
		{"too few approvals", "threshold: proposal 1 has 1 of 2 approvals", "governance.unauthorised@306", func(c *council) {
			c.enact(c.propose(same))
		}},
		{"and what follows from it", "threshold: proposal 1 has 1 of 2 approvals", "governance.unauthorised@306 governance.role@307", func(c *council) {
			c.enact(c.propose(same))
			c.add(record.KindEvent, &record.Producer{UID: 1002, GID: 1002}, []byte(`{"type":"a"}`))
		}},
		{"a proposal made on a fork", "head: ", "governance.unauthorised@305", func(c *council) {
			c.propose(func(h record.Hash) record.Hash { h[0] ^= 1; return h })
		}},
		{"an approval replayed", "duplicate: bob", "governance.unauthorised@307", func(c *council) {
			document := c.propose(same)
			c.approve(1, document, "bob")
			c.approve(1, document, "bob")
		}},
	} {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			c := newCouncil(t)
			c.approveGenesis("alice", "carol")
			c.startClock().measure().events(300)
			f.forge(c)
			c.found(t, f.rules, f.reason)
		})
	}
}

// Events that came before the officers' approval, or with none, are found.
func TestEventsBeforeApproval(t *testing.T) {
	t.Parallel()
	c := newCouncil(t)
	c.approveGenesis("alice")
	c.startClock().measure().events(1)
	c.found(t, "governance.unauthorised@4", "the genesis has 1 approval(s) of its officers and needs 1 more")
}

// found checks that the report has these findings and no others, the first of them for this reason.
func (c *council) found(t *testing.T, rules, reason string) {
	t.Helper()
	rep := c.report()
	want(t, rep, verify.OutcomeTampered, strings.Fields(rules)...)
	if len(rep.Findings) > 0 && !strings.Contains(rep.Findings[0].Found, reason) {
		t.Errorf("found %s", rep.Findings[0].Found)
	}
}

// Which other groups a user was in is not in an entry; so what cannot be checked of a role is said.
func TestRoleThroughAGroup(t *testing.T) {
	t.Parallel()
	b := newBuilder(t)
	b.genesis.Roles = []ceremony.Role{{Name: ceremony.Producer, GIDs: []uint32{1000}}}
	b.begin().events(2)
	said := func() bool {
		rep := run(t, b.export(), b.policy())
		want(t, rep, verify.OutcomeVerified)
		return strings.Contains(strings.Join(rep.Remarks, "\n"), "roles: entry 3, and perhaps others, is of a user whom no role names")
	}
	if said() {
		t.Error("said of a user's primary group")
	}
	b.add(record.KindEvent, &record.Producer{UID: 7, GID: 7}, []byte(`{"type":"test.event"}`))
	if !said() {
		t.Error("not said of a user whom no role names")
	}
}
