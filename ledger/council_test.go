package ledger_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"bulla/attest"
	"bulla/ceremony"
	"bulla/ledger"
	"bulla/record"
)

// council are three officers, two of whom decide.
type council struct {
	names   []string
	signers []ssh.Signer
}

func newCouncil(t testing.TB) *council {
	t.Helper()
	c := &council{names: []string{"alice", "bob", "carol"}}
	for range c.names {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		s, err := ssh.NewSignerFromKey(key)
		if err != nil {
			t.Fatal(err)
		}
		c.signers = append(c.signers, s)
	}
	return c
}

func (c *council) appoint(g *ceremony.Genesis) {
	for i, name := range c.names {
		g.Officers = append(g.Officers, ceremony.Officer{Name: name, Key: strings.TrimSpace(string(ssh.MarshalAuthorizedKey(c.signers[i].PublicKey())))})
	}
	g.ProposerCounts, g.Thresholds = true, map[string]int{ceremony.Default: 2, ceremony.ActionGenesis: 2}
}

func (c *council) sign(t testing.TB, i int, document []byte) string {
	t.Helper()
	s, err := ceremony.Sign(rand.Reader, document, ceremony.Approve, c.signers[i])
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// approval is an officer's approval of a document.
func (c *council) approval(t testing.TB, i int, number uint64, document []byte) ledger.Governing {
	t.Helper()
	return governing(t, record.KindApproval, &ceremony.Approval{
		Decision: ceremony.Approve, Document: ceremony.DocumentHash(document), Number: number, Officer: c.names[i], Signature: c.sign(t, i, document),
	})
}

func governing(t testing.TB, kind record.Kind, body any) ledger.Governing {
	t.Helper()
	b, err := record.MarshalCanonical(body)
	if err != nil {
		t.Fatal(err)
	}
	return ledger.Governing{Kind: kind, Body: b}
}

func (c *council) approveGenesis(t testing.TB, l *ledger.Ledger) {
	t.Helper()
	document, err := ceremony.GenesisDocument(l.Origin(), l.State().Genesis)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		if _, err := l.Govern(context.Background(), c.approval(t, i, 0, document)); err != nil {
			t.Fatal(err)
		}
	}
}

// document proposes something against the log as it is.
func (c *council) document(t testing.TB, l *ledger.Ledger, content any) []byte {
	t.Helper()
	state, _, err := l.Governance()
	if err != nil {
		t.Fatal(err)
	}
	head := l.Head()
	b, err := state.Propose(content, c.names[0], ceremony.Head{Root: head.Root, Size: head.Size}, time.Now().Add(time.Hour).UnixNano())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (c *council) proposed(t testing.TB, document []byte) ledger.Governing {
	t.Helper()
	return governing(t, record.KindProposal, &ceremony.Proposed{Document: document, Signature: c.sign(t, 0, document)})
}

// recover proposes a recovery if none is, else approves and enacts it.
func (c *council) recover(t testing.TB, l *ledger.Ledger, s *ledger.Sealer) {
	t.Helper()
	state, waiting, err := l.Governance()
	if err != nil {
		t.Fatal(err)
	}
	if len(waiting) == 0 {
		policy := state.Policy
		other := c.document(t, l, &ceremony.PolicySet{Clock: policy.Clock, Quotas: policy.Quotas, Roles: policy.Roles, Seal: policy.Seal})
		if _, err := l.Govern(t.Context(), c.proposed(t, other)); !hasCode(err, record.CodeRollback) {
			t.Errorf("another proposal while the log is rolled back: %v", err)
		}
		head := l.Head()
		here := ceremony.Head{Root: head.Root, Size: head.Size}
		document := c.document(t, l, &ceremony.RecoveryDeclare{Known: here, Surviving: here, Reason: "the disk failed; restored from the backup of Sunday"})
		if res, err := l.Govern(t.Context(), c.proposed(t, document)); err != nil || res != nil {
			t.Fatalf("proposing: %v, %v", res, err)
		}
		if _, err := l.Enact(t.Context(), 1, ceremony.DocumentHash(document), &declaring{s}); !isRefused(err, ceremony.RuleThreshold) {
			t.Errorf("enacted by one officer: %v", err)
		}
		if open := l.State().Open(); len(open) > 0 {
			t.Errorf("the log took %d proposals", len(open))
		}
		return
	}
	p := state.Open()[0]
	if _, err := l.Govern(t.Context(), c.approval(t, 0, 1, p.Document)); !isRefused(err, ceremony.RuleDuplicate) {
		t.Errorf("the proposer approves once more: %v", err)
	}
	if res, err := l.Govern(t.Context(), c.approval(t, 1, 1, p.Document)); err != nil || res != nil {
		t.Fatalf("approving: %v, %v", res, err)
	}
	done, err := l.Enact(t.Context(), 1, p.Hash, &declaring{s})
	if err != nil {
		t.Fatal(err)
	}
	if closed := l.State().Closed; closed == nil || *closed != done.Index || len(done.Steps) != 1 {
		t.Errorf("closed: %v; %+v", closed, done)
	}
	if _, waiting, err := l.Governance(); err != nil || len(waiting) > 0 {
		t.Errorf("%d wait still: %v", len(waiting), err)
	}
}

// declaring is the executor of recoveries.
type declaring struct{ sealer *ledger.Sealer }

func (*declaring) Rehearse(context.Context, *ledger.Ledger, *ceremony.Pending) ([]string, error) {
	return nil, errors.New("not rehearsed here")
}

func (d *declaring) Execute(ctx context.Context, _ *ledger.Ledger, _ *ceremony.Pending, did func(what, answer string), commit func(outcome any) error) error {
	return d.sealer.Recover(ctx, func(r *attest.Recovery) error {
		did("read the TPM", "")
		return commit(&ceremony.Recovered{TPM: r})
	})
}

// recoveryIn is the recovery that an enactment declares; nil if it is another.
func recoveryIn(t testing.TB, body []byte) []byte {
	t.Helper()
	e, err := ceremony.ParseEnactment(body)
	if err != nil {
		t.Fatal(err)
	}
	var out struct {
		TPM json.RawMessage `json:"tpm"`
	}
	if err := json.Unmarshal(e.Outcome, &out); err != nil {
		return nil
	}
	return out.TPM
}

func hasCode(err error, code record.Code) bool {
	var r *ledger.Refusal
	return errors.As(err, &r) && r.Code == code
}

func isRefused(err error, rule ceremony.Rule) bool {
	var r *ceremony.Refused
	return errors.As(err, &r) && r.Rule == rule
}
