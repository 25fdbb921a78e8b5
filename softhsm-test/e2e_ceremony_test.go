package softhsmtest_test

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"bulla/api"
	"bulla/ceremony"
	"bulla/record"
	softhsmtest "bulla/softhsm-test"
	"bulla/verify"
)

// council are the officers of a dev appliance, over http.sock.
type council struct {
	t     *testing.T
	w     *web
	dir   string
	heads map[uint64]record.Hash // that their documents name
}

func newCouncil(t *testing.T, w *web, dir string) *council {
	return &council{t: t, w: w, dir: dir, heads: map[uint64]record.Hash{}}
}

// chronicle folds what the appliance gives out of its governance.
func (c *council) chronicle() *ceremony.Chronicle {
	c.t.Helper()
	status, b, err := c.w.do(c.t.Context(), "GET", "/v1/governance", "", "")
	if err != nil || status != http.StatusOK {
		c.t.Fatalf("GET /v1/governance: %d %s: %v", status, b, err)
	}
	ch := ceremony.NewChronicle(func(size uint64) (record.Hash, error) {
		if root, ok := c.heads[size]; ok {
			return root, nil
		}
		return record.Hash{}, fmt.Errorf("no head of size %d was seen", size)
	})
	lines := bufio.NewScanner(bytes.NewReader(b))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := bytes.Clone(lines.Bytes())
		e, err := record.ParseEntry(line)
		if err == nil {
			if e.Kind == record.KindEnactment {
				c.handedOver(e.Body)
			}
			err = ch.Add(e, record.LeafHash(line))
		}
		if err != nil {
			c.t.Fatal(err)
		}
	}
	if err := lines.Err(); err != nil {
		c.t.Fatal(err)
	}
	return ch
}

// handedOver remembers the head in a rotation's outcome.
func (c *council) handedOver(body []byte) {
	e, err := ceremony.ParseEnactment(body)
	if err != nil {
		c.t.Fatal(err)
	}
	var out ceremony.Rotated
	if err := json.Unmarshal(e.Outcome, &out); err == nil && out.Checkpoint != "" {
		head := parseHead(c.t, out.Checkpoint)
		c.heads[head.Size] = head.Root
	}
}

func parseHead(t *testing.T, checkpoint string) record.Checkpoint {
	t.Helper()
	text, _, _ := strings.Cut(checkpoint, "\n\n")
	head, err := record.ParseCheckpoint(text + "\n")
	if err != nil {
		t.Fatal(err)
	}
	return head
}

// head is the log's as it is now.
func (c *council) head() ceremony.Head {
	c.t.Helper()
	status, b, err := c.w.do(c.t.Context(), "GET", "/checkpoint", "", "")
	if err != nil || status != http.StatusOK {
		c.t.Fatalf("GET /checkpoint: %d %s: %v", status, b, err)
	}
	head := parseHead(c.t, string(b))
	c.heads[head.Size] = head.Root
	return ceremony.Head{Root: head.Root, Size: head.Size}
}

func (c *council) sign(officer string, document []byte, d ceremony.Decision) string {
	c.t.Helper()
	o, err := softhsmtest.OpenOfficer(filepath.Join(c.dir, "officers"), officer)
	if err != nil {
		c.t.Fatal(err)
	}
	signer, err := o.Signer()
	if err != nil {
		c.t.Fatal(err)
	}
	signature, err := ceremony.Sign(rand.Reader, document, d, signer)
	if err != nil {
		c.t.Fatal(err)
	}
	return signature
}

// post sends a message; failure is what was refused.
func (c *council) post(path string, message, answer any) (failure api.FailureDetail) {
	c.t.Helper()
	body, err := record.MarshalCanonical(message)
	if err != nil {
		c.t.Fatal(err)
	}
	status, b, err := c.w.do(c.t.Context(), "POST", path, "application/json", string(body))
	if err != nil {
		c.t.Fatal(err)
	}
	if status != http.StatusCreated {
		var f api.Failure
		if err := json.Unmarshal(b, &f); err != nil {
			c.t.Fatalf("POST %s: %d %s", path, status, b)
		}
		return f.Error
	}
	if err := json.Unmarshal(b, answer); err != nil {
		c.t.Fatalf("POST %s: %d %s: %v", path, status, b, err)
	}
	return failure
}

// propose has alice propose, and returns the document and its number.
func (c *council) propose(content any) (document []byte, number uint64) {
	c.t.Helper()
	state := c.chronicle().State()
	document, err := state.Propose(content, "alice", c.head(), time.Now().Add(time.Hour).UnixNano())
	if err != nil {
		c.t.Fatal(err)
	}
	var taken api.Taken
	if f := c.post("/v1/proposals", &ceremony.Proposed{Document: document, Signature: c.sign("alice", document, ceremony.Approve)}, &taken); f.Code != "" {
		c.t.Fatalf("proposing: %+v", f)
	}
	return document, taken.Number
}

func (c *council) approve(officer string, document []byte, number uint64) (api.Taken, api.FailureDetail) {
	c.t.Helper()
	var taken api.Taken
	f := c.post("/v1/approvals", &ceremony.Approval{
		Decision: ceremony.Approve, Document: ceremony.DocumentHash(document), Number: number, Officer: officer, Signature: c.sign(officer, document, ceremony.Approve),
	}, &taken)
	return taken, f
}

func (c *council) enact(document []byte, number uint64, dry bool) (api.Enacted, api.FailureDetail) {
	c.t.Helper()
	var done api.Enacted
	f := c.post(fmt.Sprintf("/v1/proposals/%d/enact", number), &api.Enact{Document: ceremony.DocumentHash(document), DryRun: dry}, &done)
	return done, f
}

// carry has a content proposed, approved, rehearsed and enacted.
func (c *council) carry(content any) api.Enacted {
	c.t.Helper()
	document, number := c.propose(content)
	if _, f := c.enact(document, number, false); f.Field != "ceremony.threshold" {
		c.t.Fatalf("enacted by one officer: %+v", f)
	}
	if done, f := c.enact(document, number, true); f.Code != "" || done.Missing != fmt.Sprintf("threshold: proposal %d has 1 of 2 approvals", number) || len(done.Steps) == 0 {
		c.t.Fatalf("rehearsed before it is approved: %+v, %+v", done, f)
	}
	if taken, f := c.approve("bob", document, number); f.Code != "" || taken.Missing != "" {
		c.t.Fatalf("approving: %+v, %+v", taken, f)
	}
	if done, f := c.enact(document, number, true); f.Code != "" || done.Missing != "" {
		c.t.Fatalf("rehearsing: %+v, %+v", done, f)
	}
	done, f := c.enact(document, number, false)
	if f.Code != "" || done.Failed != "" || done.Index == nil {
		c.t.Fatalf("enacting: %+v, %+v", done, f)
	}
	return done
}

// TestCeremonies changes all that officers can change while a load is running: nothing of it is refused, and what was acknowledged under
// the old key verifies from the genesis fingerprint alone.
func TestCeremonies(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	daemon := startDev(t, dir)
	policy := readPolicy(t, dir)
	w := browse(t, dir)
	c := newCouncil(t, w, dir)
	l := startLoad(t, dir, "", 3)
	l.requireMore(patience, 50)

	// Another policy, of the clock too.
	in := c.chronicle().State().Policy
	in.Clock.Limit /= 2
	in.Quotas.Streams = 77
	c.carry(&ceremony.PolicySet{Clock: in.Clock, Quotas: in.Quotas, Roles: in.Roles, Seal: in.Seal})
	l.requireMore(patience, 50)

	// Another key.
	var key ceremony.Key
	made := c.carry(&ceremony.KeyGenerate{Algorithm: "ecdsa-p256", Purpose: ceremony.PurposeLog})
	if err := json.Unmarshal(made.Outcome, &key); err != nil || len(made.Steps) != 1 {
		t.Fatalf("%+v: %v", made, err)
	}
	old := c.chronicle().State().Policy.Keys[0]
	rotated := c.carry(&ceremony.KeyRotate{Old: ceremony.OldSigns, Purpose: ceremony.PurposeLog, SPKI: key.Hash()})
	l.requireMore(patience, 50)

	// The old one is destroyed, and an officer replaced.
	c.carry(&ceremony.KeyRetire{SPKI: old.Hash()})
	dave, err := softhsmtest.CreateOfficer(filepath.Join(dir, "officers"), "dave")
	if err != nil {
		t.Fatal(err)
	}
	officers := slices.Clone(c.chronicle().State().Policy.Officers)
	officers[2] = ceremony.Officer{Name: "dave", Key: dave.Key}
	c.carry(&ceremony.OfficersSet{Officers: officers, ProposerCounts: true, Thresholds: in.Thresholds})
	document, number := c.propose(&ceremony.KeyGenerate{Algorithm: "ed25519", Purpose: ceremony.PurposeInterop})
	if _, f := c.approve("carol", document, number); f.Field != "ceremony.officer" {
		t.Errorf("who is not an officer any more approves: %+v", f)
	}
	if _, f := c.approve("dave", document, number); f.Code != "" {
		t.Errorf("the new officer: %+v", f)
	}

	given, refused := l.end()
	if len(refused) > 0 {
		t.Errorf("events were refused: %v", refused)
	}
	vkeys, err := c.chronicle().State().VKeys()
	if err != nil {
		t.Fatal(err)
	}
	h := newHistory(t, &verify.Policy{VKeys: append(vkeys, policy.VKeys...)})
	h.add(t, given[:20]) // under the old key
	h.add(t, given[20:])
	h.check(t, w)
	w.requireSeal(t)
	// From the genesis alone: whose keys sign today is for the log to say.
	report := w.requireVerified(t, &verify.Policy{VKeys: policy.VKeys, Genesis: policy.Genesis}, h.sample...)
	if !slices.Equal(report.Governance.Officers, []string{"alice", "bob", "dave"}) {
		t.Errorf("officers: %v", report.Governance.Officers)
	}
	if code := daemon.stop(); code != 0 {
		t.Errorf("exit code %d:\n%s", code, daemon.stderr)
	}

	// The next start finds the key that governs, and carries out nothing by itself that nobody began.
	daemon = startDev(t, dir)
	w = browse(t, dir)
	c.w = w
	if _, err := dial(t, dir).Append(t.Context(), "", []byte(`{"type":"after.rotation"}`)); err != nil {
		t.Fatal(err)
	}
	requireSoon(t, func() error {
		if text := daemon.stderr.String(); !strings.Contains(text, "approved and nothing of it was begun") {
			return fmt.Errorf("the start does not tell of what is approved: %s", text)
		}
		return nil
	})
	w.requireSeal(t)
	w.requireVerified(t, policy, h.sample...)
	all := c.chronicle().Ceremonies()
	if n := len(all); n != 7 || !all[0].Enacted || !all[5].Enacted || all[6].Enacted || all[3].Action != ceremony.ActionKeyRotate {
		t.Errorf("%+v", all)
	}
	minutes, err := c.chronicle().Minutes(3)
	if err != nil {
		t.Fatal(err)
	}
	if text := string(minutes.Markdown()); !strings.Contains(text, "alice") || !strings.Contains(text, fmt.Sprint(*rotated.Index)) {
		t.Errorf("the minutes:\n%s", text)
	}
	if code := daemon.stop(); code != 0 {
		t.Errorf("exit code %d:\n%s", code, daemon.stderr)
	}
	if _, err := os.Stat(filepath.Join(dir, "dev.db")); err != nil {
		t.Error(err)
	}
}

// TestCeremonyAttacks tries at a running appliance what must not be taken. Each is refused by its rule, and the refusal is in the log.
func TestCeremonyAttacks(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	daemon := startDev(t, dir)
	w := browse(t, dir)
	c := newCouncil(t, w, dir)
	state := c.chronicle().State()
	policy := state.Policy
	set := &ceremony.PolicySet{Clock: policy.Clock, Quotas: policy.Quotas, Roles: policy.Roles, Seal: policy.Seal}
	if _, err := softhsmtest.CreateOfficer(filepath.Join(dir, "officers"), "mallory"); err != nil {
		t.Fatal(err)
	}
	soon := time.Now().Add(time.Hour).UnixNano()
	document := func(change func(p *ceremony.Proposal)) []byte {
		t.Helper()
		b, err := state.Propose(set, "alice", c.head(), soon)
		if err != nil {
			t.Fatal(err)
		}
		p, err := ceremony.ParseProposal(b)
		if err != nil {
			t.Fatal(err)
		}
		change(p)
		if b, err = record.MarshalCanonical(p); err != nil {
			t.Fatal(err)
		}
		return b
	}
	propose := func(document []byte, signature string) api.FailureDetail {
		var taken api.Taken
		return c.post("/v1/proposals", &ceremony.Proposed{Document: document, Signature: signature}, &taken)
	}
	proposing := func(change func(p *ceremony.Proposal)) func() api.FailureDetail {
		return func() api.FailureDetail {
			d := document(change)
			return propose(d, c.sign("alice", d, ceremony.Approve))
		}
	}
	honest := func(*ceremony.Proposal) {}
	open, number := c.propose(set)
	other := document(func(p *ceremony.Proposal) { p.Number = number })
	approve := func(officer, signature string) api.FailureDetail {
		var taken api.Taken
		return c.post("/v1/approvals", &ceremony.Approval{Decision: ceremony.Approve, Document: ceremony.DocumentHash(open), Number: number, Officer: officer, Signature: signature}, &taken)
	}
	otherGenesis, err := ceremony.GenesisDocument(policy.Origin, record.Hash{1})
	if err != nil {
		t.Fatal(err)
	}
	refused := map[string]int{}
	try := func(name string, rule ceremony.Rule, attempt func() api.FailureDetail) {
		t.Helper()
		f := attempt()
		if f.Field != "ceremony."+string(rule) {
			t.Errorf("%s: %+v, want a refusal by rule %s", name, f, rule)
		}
		refused[f.Message]++
	}
	next := func(p *ceremony.Proposal) { p.Number = number + 1 }
	try("another log", ceremony.RuleLog, proposing(func(p *ceremony.Proposal) { next(p); p.Log = "elsewhere.example/log" }))
	try("a number that was used", ceremony.RuleNumber, proposing(honest))
	try("another state", ceremony.RuleState, proposing(func(p *ceremony.Proposal) { next(p); p.State = record.Hash{1} }))
	try("a head that is not in the log", ceremony.RuleHead, proposing(func(p *ceremony.Proposal) { next(p); p.Head.Root = record.Hash{1} }))
	try("expired", ceremony.RuleExpired, proposing(func(p *ceremony.Proposal) {
		next(p)
		p.Expires = string(record.AppendTime(nil, time.Now().Add(-time.Minute).UnixNano()))
	}))
	try("altered by a byte", ceremony.RuleSignature, func() api.FailureDetail {
		signed := c.sign("alice", document(next), ceremony.Approve)
		return propose(document(func(p *ceremony.Proposal) { next(p); p.Expires = string(record.AppendTime(nil, soon+1)) }), signed)
	})
	try("a rotation to a key that nobody generated", ceremony.RuleDocument, func() api.FailureDetail {
		d, err := c.chronicle().State().Propose(&ceremony.KeyRotate{Old: ceremony.OldSigns, Purpose: ceremony.PurposeLog, SPKI: record.Hash{1}}, "alice", c.head(), soon)
		if err != nil {
			t.Fatal(err)
		}
		return propose(d, c.sign("alice", d, ceremony.Approve))
	})
	try("one officer twice", ceremony.RuleDuplicate, func() api.FailureDetail { return approve("alice", c.sign("alice", open, ceremony.Approve)) })
	try("another key of an officer", ceremony.RuleKey, func() api.FailureDetail { return approve("bob", c.sign("mallory", open, ceremony.Approve)) })
	try("an unknown officer", ceremony.RuleOfficer, func() api.FailureDetail { return approve("mallory", c.sign("mallory", open, ceremony.Approve)) })
	try("another namespace", ceremony.RuleNamespace, func() api.FailureDetail { return approve("bob", c.sign("bob", open, ceremony.Reject)) })
	try("the signature of another proposal", ceremony.RuleSignature, func() api.FailureDetail { return approve("bob", c.sign("bob", other, ceremony.Approve)) })
	try("the genesis of another log from the same plan", ceremony.RuleDocument, func() api.FailureDetail {
		var taken api.Taken
		return c.post("/v1/approvals", &ceremony.Approval{
			Decision: ceremony.Approve, Document: ceremony.DocumentHash(otherGenesis), Officer: "carol", Signature: c.sign("carol", otherGenesis, ceremony.Approve),
		}, &taken)
	})
	try("enacted by too few", ceremony.RuleThreshold, func() api.FailureDetail { _, f := c.enact(open, number, false); return f })

	// Approved, and then the state changes under it: it is void. What was enacted is not enacted again.
	if _, f := c.approve("bob", open, number); f.Code != "" {
		t.Fatal(f)
	}
	c.carry(set)
	try("approvals from before the state changed", ceremony.RuleClosed, func() api.FailureDetail { _, f := c.enact(open, number, false); return f })
	all := c.chronicle().Ceremonies()
	if last := all[len(all)-1]; !last.Enacted {
		t.Fatalf("%+v", all)
	}
	// The policy says now who the officers' users are, and a producer is none of them.
	users := *set
	me := uint32(os.Getuid())
	users.Roles = []ceremony.Role{{Name: ceremony.Producer, UIDs: []uint32{me}}, {Name: ceremony.Auditor, Any: true}, {Name: ceremony.Security, UIDs: []uint32{me + 1}}}
	c.carry(&users)
	if _, f := c.approve("bob", open, number); f.Code != record.CodeForbidden || !strings.Contains(f.Message, fmt.Sprintf("uid %d", me)) {
		t.Errorf("a producer's user on the officers' calls: %+v", f)
	} else {
		refused[f.Message]++
	}
	for _, a := range w.accesses(t) {
		if a.Denied && strings.HasPrefix(a.Action, "ceremony.") {
			for message := range refused {
				if strings.Contains(a.Query, message) {
					refused[message]--
				}
			}
		}
	}
	for message, missing := range refused {
		if missing > 0 {
			t.Errorf("%d refusals are not in the log: %s", missing, message)
		}
	}
	if code := daemon.stop(); code != 0 {
		t.Errorf("exit code %d:\n%s", code, daemon.stderr)
	}
}
