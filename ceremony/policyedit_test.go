package ceremony_test

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"bulla/ceremony"
	"bulla/record"
)

// Every value of a policy can be set by the name that it is shown under.
func TestSetPolicy(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.begin(r.genesis())
	for _, c := range []struct{ name, value, shown string }{
		{"quotas.streams", "500", "quotas.streams: 0 becomes 500"},
		{"seal.interval", "5s", "seal.interval: 10s becomes 5s"},
		{"seal.unsealed", "0", "seal.unsealed: 10m0s becomes 0s"},
		{"seal.pcrs", "0,7,13", "seal.pcrs: [0 2 4 7 13] becomes [0 7 13]"},
		{"seal.pcrs", "[13]", "seal.pcrs: [0 2 4 7 13] becomes [13]"},
		{"clock.mode", "mark", "clock.mode: holdover becomes mark"},
		{"clock.strict", "true", "clock.strict: true (new)"},
		{"clock.limit", "900ms", "clock.limit: 1s becomes 900ms"},
		{"role.auditor", "uid:7, gid:8,uid:9", "role auditor: uids [1001] becomes uids [7 9], gids [8]"},
		{"role.operator", "any", "role operator: everyone (new)"},
		{"role.auditor", "", "role auditor: uids [1001] is removed"},
	} {
		p := r.policy(0)
		before, err := r.state.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Set(c.name, c.value); err != nil {
			t.Errorf("%s=%s: %v", c.name, c.value, err)
			continue
		}
		document := r.document(p, "alice")
		proposal, err := ceremony.ParseProposal(document)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{c.shown}, r.state.Describe(proposal)); diff != "" {
			t.Errorf("%s=%s: %s", c.name, c.value, diff)
		}
		if after, err := r.state.Encode(); err != nil || string(after) != string(before) {
			t.Errorf("%s: it changed the state itself", c.name)
		}
	}
}

// Whatever a policy has in ns is written with its unit, and shown with it.
func TestSetTimes(t *testing.T) {
	t.Parallel()
	p := new(ceremony.PolicySet)
	times := 0
	for section, of := range map[string]reflect.Value{"clock": reflect.ValueOf(&p.Clock).Elem(), "seal": reflect.ValueOf(&p.Seal).Elem(), "quotas": reflect.ValueOf(&p.Quotas).Elem()} {
		for i := range of.NumField() {
			tag, _, _ := strings.Cut(of.Type().Field(i).Tag.Get("json"), ",")
			if of.Field(i).Kind() != reflect.Int64 || strings.HasPrefix(tag, "growth") { // that is in ppb
				continue
			}
			times++
			name := section + "." + tag
			if err := p.Set(name, "1m30s"); err != nil || of.Field(i).Int() != int64(90*time.Second) {
				t.Errorf("%s: %v, %d ns", name, err, of.Field(i).Int())
			}
			if err := p.Set(name, "90"); err == nil || !strings.Contains(err.Error(), "write it with its unit, as 10s") {
				t.Errorf("%s without a unit: %v", name, err)
			}
		}
	}
	if times != 11 {
		t.Errorf("a policy has %d times", times)
	}
}

func TestSetPolicyRefuses(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.begin(r.genesis())
	for _, c := range []struct{ name, value, why string }{
		{"streams", "5", "values of clock, quotas and seal"},
		{"tpm.pcr", "5", "values of clock, quotas and seal"},
		{"quotas.stream", "5", `"quotas.stream": there is no such value; there are streams`},
		{"clock.max_age", "30s", "there are mode, limit, warn, "},
		{"quotas.streams", "5.5", "streams"},
		{"quotas.streams", "many", "streams"},
		{"seal.interval", "10", "with its unit"},
		{"seal.interval", "soon\u202e", `"soon\u202e" is not a time`},
		{"seal.pcrs", "0,x", "pcrs"},
		{"clock.f", "null", "null"},
		{"role.auditor", "bob", `"bob" is neither uid:N, gid:N nor any`},
		{"role.auditor", "uid:-1", "neither"},
		{"role.auditor", "uid:4294967296", "neither"},
		{"role.operator", "", "nobody has it"},
	} {
		p := r.policy(0)
		if err := p.Set(c.name, c.value); err == nil || !strings.Contains(err.Error(), c.why) {
			t.Errorf("%s=%s: %v, want %q", c.name, c.value, err, c.why)
		}
		if diff := cmp.Diff(r.policy(0), p); diff != "" {
			t.Errorf("%s=%s was refused and changed something: %s", c.name, c.value, diff)
		}
	}
}

// What Admits lets pass the log takes, and what it refuses the log refuses by the same rule.
func TestAdmits(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.begin(r.genesis())
	parse := func(document []byte) *ceremony.Proposal {
		p, err := ceremony.ParseProposal(document)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	good := r.document(r.policy(3), "alice")
	stamp := stampOf(t, r.entries[len(r.entries)-1])
	if err := r.state.Admits(parse(good), stamp); err != nil {
		t.Error(err)
	}
	refusedBy(t, r.state.Admits(parse(r.document(r.policy(3), "eve")), stamp), ceremony.RuleOfficer)
	refusedBy(t, r.state.Admits(parse(r.document(&ceremony.KeyRetire{SPKI: record.Hash{1}}, "alice")), stamp), ceremony.RuleDocument)
	late := stamp
	late.Sys += 2 * 3600e9
	refusedBy(t, r.state.Admits(parse(good), late), ceremony.RuleExpired)
	r.add(record.KindProposal, r.proposed(good, "alice"))
	refusedBy(t, r.state.Admits(parse(good), stamp), ceremony.RuleNumber)
}

// A chronicle gives out what was proposed, and the state before, of what is over too.
func TestChronicleProposal(t *testing.T) {
	t.Parallel()
	r := live(t)
	c := ceremony.NewChronicle(r.root)
	for _, b := range r.entries {
		e, err := record.ParseEntry(b)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Add(e, record.LeafHash(b)); err != nil {
			t.Fatal(err)
		}
	}
	for n, document := range r.numbers {
		p, before, ok := c.Proposal(n)
		if !ok || string(p.Document) != string(document) || p.Proposal.State != before.Hash() {
			t.Errorf("proposal %d: %v", n, ok)
		}
	}
	for _, n := range []uint64{0, uint64(len(r.numbers)) + 1} {
		if _, _, ok := c.Proposal(n); ok {
			t.Errorf("there is a proposal %d", n)
		}
	}
}

func TestGenesisDocument(t *testing.T) {
	t.Parallel()
	b, err := ceremony.GenesisDocument(origin, record.Hash{7})
	if err != nil {
		t.Fatal(err)
	}
	if log, leaf, err := ceremony.ParseGenesisDocument(b); err != nil || log != origin || leaf != (record.Hash{7}) {
		t.Errorf("%q %x %v", log, leaf, err)
	}
	for _, bad := range []string{
		"", "{}", strings.Replace(string(b), `"genesis"`, `"policy.set"`, 1), strings.Replace(string(b), `"v":1`, `"v":2`, 1),
		strings.Replace(string(b), origin, "x y", 1), string(b) + "\n",
	} {
		_, _, err := ceremony.ParseGenesisDocument([]byte(bad))
		refusedBy(t, err, ceremony.RuleDocument)
	}
}
