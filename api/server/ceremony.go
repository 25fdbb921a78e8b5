package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"bulla/api"
	"bulla/ceremony"
	"bulla/ledger"
	"bulla/record"
)

// What is done in ceremonies, as entries of kind access name it. Who signs is proved by signatures; the entry says who brought them.
const (
	actionPropose  = "ceremony.propose"
	actionDecide   = "ceremony.decide"
	actionEnact    = "ceremony.enact"
	actionRehearse = "ceremony.rehearse"
)

// Bounds of officers' calls: each leaves an entry, refused or not.
const (
	ceremonyBurst = 60
	ceremonyEvery = time.Second // and on average
	enactTime     = 2 * time.Minute

	maxBodyDepth = 7 // levels, of an entry's body
)

// propose takes a document that an officer proposes.
func (c *call) propose() error {
	var p *ceremony.Proposal
	body, err := c.ceremonyBody(func(b []byte) (err error) { _, p, err = ceremony.ParseProposed(b); return err })
	if err != nil {
		return c.ceremonyRefused(actionPropose, "", err)
	}
	what := fmt.Sprintf("proposal %d, %s by %s", p.Number, p.Action, p.Proposer)
	if err := c.courier(); err != nil {
		return c.ceremonyRefused(actionPropose, what, err)
	}
	taken, err := c.govern(actionPropose, what, ledger.Governing{Kind: record.KindProposal, Body: body})
	if err != nil {
		return err
	}
	return c.taken(p.Number, taken)
}

// decide takes an officer's approval or rejection, of a proposal or of the genesis.
func (c *call) decide() error {
	var a *ceremony.Approval
	body, err := c.ceremonyBody(func(b []byte) (err error) { a, err = ceremony.ParseApproval(b); return err })
	if err != nil {
		return c.ceremonyRefused(actionDecide, "", err)
	}
	what := fmt.Sprintf("%s proposal %d by %s", a.Decision, a.Number, a.Officer)
	if err := c.courier(); err != nil {
		return c.ceremonyRefused(actionDecide, what, err)
	}
	taken, err := c.govern(actionDecide, what, ledger.Governing{Kind: record.KindApproval, Body: body})
	if err != nil {
		return err
	}
	return c.taken(a.Number, taken)
}

// govern has the log take what a ceremony makes. It is recorded who brought it, taken or not.
func (c *call) govern(action, what string, g ledger.Governing) (index *uint64, err error) {
	ctx, cancel := context.WithTimeout(c.r.Context(), accessTime)
	defer cancel()
	res, err := c.log.Ledger.Govern(ctx, g)
	switch {
	case err != nil:
		return nil, c.ceremonyRefused(action, what, err)
	case res == nil: // it waits outside the log
		return nil, nil
	}
	return &res.Items[0].Index, c.recordCeremony(action, what, false)
}

// taken answers with where a proposal stands.
func (c *call) taken(number uint64, index *uint64) error {
	out := api.Taken{Number: number, Index: index}
	state, _, err := c.log.Ledger.Governance()
	if err != nil {
		return err
	}
	if number == 0 {
		out.Given, out.Needed = len(state.GenesisVotes()), state.Policy.Threshold(ceremony.ActionGenesis)
		if err := state.Ready(); err != nil {
			out.Missing = reason(err)
		}
	}
	open := state.Open()
	if i := slices.IndexFunc(open, func(p *ceremony.Pending) bool { return p.Proposal.Number == number }); i >= 0 {
		out.Given, out.Needed = len(open[i].Approvals), open[i].Needed
		if err := state.Approved(open[i], c.log.Ledger.Now()); err != nil {
			out.Missing = reason(err)
		}
	} else if number > 0 {
		out.Missing = "it is not open any more"
	}
	writeJSON(c.w, http.StatusCreated, out)
	return nil
}

// enact has a proposal carried out, or rehearsed.
func (c *call) enact() error {
	number, err := strconv.ParseUint(c.r.PathValue("number"), 10, 64)
	if err != nil || number == 0 || strconv.FormatUint(number, 10) != c.r.PathValue("number") {
		return fmt.Errorf("%w: %q is no number of a proposal", errNotFound, clip(c.r.PathValue("number")))
	}
	var in api.Enact
	if _, err := c.ceremonyBody(func(b []byte) error { return record.UnmarshalCanonical(b, &in) }); err != nil {
		return c.ceremonyRefused(actionEnact, "", err)
	}
	action, do := actionEnact, c.log.Ledger.Enact
	if in.DryRun {
		action, do = actionRehearse, c.log.Ledger.Rehearse
	}
	what := fmt.Sprintf("proposal %d", number)
	if err := c.courier(); err != nil {
		return c.ceremonyRefused(action, what, err)
	}
	if c.log.Executor == nil {
		return &ledger.Refusal{Code: record.CodeInternal, Message: "nothing can be carried out here"}
	}
	// Who goes away leaves nothing half done, and learns of it from the log.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.r.Context()), enactTime)
	defer cancel()
	done, err := do(ctx, number, in.Document, c.log.Executor)
	if err != nil {
		return c.ceremonyRefused(action, what, err)
	}
	if err := c.recordCeremony(action, what, false); err != nil {
		return err
	}
	out := api.Enacted{Number: number, DryRun: in.DryRun, Failed: done.Failed, Steps: done.Steps, Outcome: done.Outcome}
	if out.Steps == nil {
		out.Steps = []ceremony.Step{}
	}
	if !in.DryRun {
		out.Index = &done.Index
	}
	if done.Missing != nil {
		out.Missing = reason(done.Missing)
	}
	writeJSON(c.w, http.StatusCreated, out)
	return nil
}

// recovery gives out what waits outside a log that was rolled back.
func (c *call) recovery() error {
	if err := c.mayRead(); err != nil {
		return err
	}
	_, waiting, err := c.log.Ledger.Governance()
	if err != nil {
		return err
	}
	var out api.Waiting
	for _, g := range waiting {
		if g.Kind == record.KindProposal {
			p, _, err := ceremony.ParseProposed(g.Body)
			if err != nil {
				return err
			}
			out.Proposals = append(out.Proposals, *p)
			continue
		}
		a, err := ceremony.ParseApproval(g.Body)
		if err != nil {
			return err
		}
		out.Decisions = append(out.Decisions, *a)
	}
	writeJSON(c.w, http.StatusOK, out)
	return nil
}

// ceremonyBody reads a request's body as canonical JSON, which need not be written so.
func (c *call) ceremonyBody(parse func(b []byte) error) ([]byte, error) {
	if wait := c.s.ceremonies.take(time.Now()); wait > 0 {
		return nil, busy(wait, "too many officers' calls")
	}
	b, free, err := c.body(api.MaxCeremony)
	if err != nil {
		return nil, err
	}
	defer free()
	if b, err = record.Canonicalize(bytes.TrimSpace(b), maxBodyDepth); err != nil {
		return nil, err
	}
	return b, parse(b)
}

// courier refuses callers who may not bring what officers signed: where the policy says who the officers' users are, anybody else; where
// it does not, anybody but operators.
func (c *call) courier() error {
	state := c.log.Ledger.State()
	r := state.Roles(c.caller.UID, c.caller.Groups)
	mapped := slices.ContainsFunc(state.Policy.Roles, func(r ceremony.Role) bool { return r.Name == ceremony.Security })
	if r.Officer && !r.Producer || !mapped && r.Operator {
		return nil
	}
	who := "an operator, and no user is an officer"
	if mapped {
		who = "an officer"
	}
	if r.Producer && r.Officer {
		who = "an officer alone, but a producer too"
	}
	return &ledger.Refusal{Code: record.CodeForbidden, Message: fmt.Sprintf("uid %d may not bring what officers signed: the policy of %s does not make it %s", c.caller.UID, c.log.Ledger.Origin(), who)}
}

// ceremonyRefused records a refusal and returns it as the answer.
func (c *call) ceremonyRefused(action, what string, err error) error {
	var refused *ceremony.Refused
	var r *ledger.Refusal
	if errors.As(err, &refused) && !errors.As(err, &r) {
		err = ledger.Ungoverned(err)
	}
	if errors.As(err, &r) && (r.Code == record.CodeBusy || r.Code == record.CodeRollback || r.Code == record.CodeDisk) || errors.Is(err, ledger.ErrUnknown) {
		return err
	}
	why := reason(err)
	if what != "" {
		why = what + ": " + why
	}
	if e := c.recordCeremony(action, why, true); e != nil {
		c.s.cfg.Log.Error("a refusal could not be recorded", "action", action, "refused", why, "error", e)
	}
	return err
}

// recordCeremony records who brought what.
func (c *call) recordCeremony(action, what string, denied bool) error {
	role := c.reading()
	if role == "" {
		role = record.RoleNone
	}
	a := &record.Access{Action: action, By: c.caller.Producer, Denied: denied, Query: shorten(what, record.MaxMessage), Role: role}
	if err := a.Check(); err != nil {
		return fmt.Errorf("recording %s: %w", action, err)
	}
	body, err := record.MarshalCanonical(a)
	if err != nil {
		return fmt.Errorf("recording %s: %w", action, err)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.r.Context()), accessTime)
	defer cancel()
	_, err = c.log.Ledger.Record(ctx, record.KindAccess, body)
	return err
}

// accessTime bounds how long a record of access may wait.
const accessTime = 10 * time.Second

// reason is what a refusal says to people, without its code.
func reason(err error) string {
	var refused *ceremony.Refused
	var r *ledger.Refusal
	switch {
	case errors.As(err, &refused):
		return refused.Error()
	case errors.As(err, &r):
		return r.Message
	}
	return err.Error()
}

// shorten cuts text to n bytes, and leaves it UTF-8.
func shorten(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "")
}

// governance gives out all entries that govern the log, and those that record refused ceremonies: as they are, a line each, so that
// whoever reads them need not believe the appliance what it makes of them.
func (c *call) governance() error {
	if err := c.mayRead(); err != nil {
		return err
	}
	return c.send("application/x-ndjson", func() ([]byte, error) {
		l := c.log.Ledger
		size := l.Size()
		var indices []uint64
		for _, kind := range []record.Kind{record.KindGenesis, record.KindProposal, record.KindApproval, record.KindEnactment} {
			found, err := all(l, kind, size)
			if err != nil {
				return nil, err
			}
			indices = append(indices, found...)
		}
		accesses, err := all(l, record.KindAccess, size)
		if err != nil {
			return nil, err
		}
		var out []byte
		for _, i := range accesses {
			b, err := l.Entry(i)
			if err != nil {
				return nil, err
			}
			if bytes.Contains(b, []byte(`"action":"ceremony.`)) {
				indices = append(indices, i)
			}
		}
		slices.Sort(indices)
		for _, i := range indices {
			b, err := l.Entry(i)
			if err != nil {
				return nil, err
			}
			out = append(append(out, b...), '\n')
			if len(out) > maxGovernance {
				return nil, &ledger.Refusal{Code: record.CodeTooLarge, Message: "there are too many entries for one answer: export the log and use --export"}
			}
		}
		c.gives = &disclosure{action: actionRead, query: "governance", from: 0, to: size}
		return out, nil
	})
}

// maxGovernance bounds an answer with all that governs, in bytes.
const maxGovernance = 64 << 20

// all finds the entries of a kind before size.
func all(l *ledger.Ledger, kind record.Kind, size uint64) ([]uint64, error) {
	const page = 1000
	var out []uint64
	from := uint64(0)
	for {
		found, err := l.Kind(kind, from, page)
		if err != nil {
			return nil, err
		}
		for _, i := range found {
			if i < size {
				out = append(out, i)
			}
			from = i + 1
		}
		if len(found) < page {
			return out, nil
		}
	}
}
