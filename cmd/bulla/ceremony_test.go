package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"bulla/api"
	"bulla/ceremony"
	"bulla/record"
)

// Three officers, two needed: from the genesis to minutes that an export yields byte for byte.
func TestCeremony(t *testing.T) {
	t.Parallel()
	c := newCouncil(t).begin()
	out := c.propose(500, "--out", c.path("proposal.json"))
	for _, want := range []string{"quotas.streams: 0 becomes 500", "proposal 1: proposed by alice (entry 4); 1 of 2 approvals", "missing: threshold: "} {
		if !strings.Contains(out, want) {
			t.Errorf("propose does not say %q:\n%s", want, out)
		}
	}
	sign := exec.Command("ssh-keygen", "-Y", "sign", "-q", "-n", ceremony.Namespace, "-f", c.path("carol"), c.path("proposal.json"))
	if b, err := sign.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	out = c.ok("approve", c.path("proposal.json"), "--as", "carol", "--signature", c.path("proposal.json.sig"))
	if want := "nothing is missing; carry it out with: bulla ceremony enact 1"; !strings.Contains(out, want) {
		t.Errorf("approve does not say %q:\n%s", want, out)
	}
	var rehearsal api.Enacted
	if err := json.Unmarshal([]byte(c.ok("enact", "1", "--dry-run", "--json")), &rehearsal); err != nil || !rehearsal.DryRun || rehearsal.Index != nil {
		t.Errorf("%+v %v", rehearsal, err)
	}
	out = c.ok("enact", "1")
	if !strings.Contains(out, `1. asked the device`+"\n   it \\u202edid\n") || !strings.Contains(out, "is enacted by entry 6") {
		t.Errorf("enact says\n%s", out)
	}
	if n := c.log.state.Policy.Quotas.Streams; n != 500 {
		t.Errorf("%d streams", n)
	}
	var listed []ceremony.Ceremony
	if err := json.Unmarshal([]byte(c.ok("list", "--json")), &listed); err != nil || len(listed) != 2 || !listed[1].Enacted || strings.Join(listed[1].Approved, " ") != "alice carol" {
		t.Errorf("%+v %v", listed, err)
	}
	if err := c.log.export(c.path("evidence")); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"minutes", "0"}, {"minutes", "1"}, {"minutes", "1", "--html"}, {"minutes", "1", "--json"}, {"list"}, {"list", "--json"}, {"show", "1"}, {"show", "1", "--json"}} {
		served, evidence := c.ok(args...), c.ok(append(args, "--export", c.path("evidence"))...)
		if served != evidence || served == "" {
			t.Errorf("%v of the appliance:\n%s\nof its export:\n%s", args, served, evidence)
		}
	}
	c.ok("minutes", "1", "--out", c.path("minutes.md"))
	if b, err := os.ReadFile(c.path("minutes.md")); err != nil || string(b) != c.ok("minutes", "1") {
		t.Errorf("the minutes in a file are others: %v", err)
	}
	c.fails(exitUsage, []string{"exists"}, "minutes", "1", "--out", c.path("minutes.md"))
}

// A proposal whose time is over is not open, even if no entry says so: by the clock of whoever asks now, and in minutes by the log's own newest entry.
func TestExpiredProposal(t *testing.T) {
	t.Parallel()
	c := newCouncilOf(t, 2*time.Hour).begin()
	c.expired()
	check := func(minutes string) {
		t.Helper()
		if err := c.log.export(c.path(minutes)); err != nil {
			t.Fatal(err)
		}
		for _, export := range [][]string{nil, {"--export", c.path(minutes)}} {
			if out := c.ok(append([]string{"list"}, export...)...); !strings.Contains(out, "alice        2       expired on 20") || strings.Contains(out, "open") {
				t.Errorf("list says\n%s", out)
			}
			if out := c.ok(append([]string{"show", "1"}, export...)...); !strings.Contains(out, "\nended: expired on 20") || strings.Contains(out, "missing") {
				t.Errorf("show says\n%s", out)
			}
			if out := c.ok(append([]string{"minutes", "1"}, export...)...); !strings.Contains(out, minutes) {
				t.Errorf("the minutes do not say %q:\n%s", minutes, out)
			}
		}
	}
	check("It is not over.")
	c.log.mu.Lock()
	c.log.ago = 0
	err := c.log.event()
	c.log.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	check("It was not enacted: expired on 20")
	c.fails(exitUnavailable, []string{"expired"}, "approve", "1", "--as", "bob")
	c.fails(exitUnavailable, []string{"would be refused: expired: "}, "enact", "1", "--dry-run")
}

// What survives is named by its size alone, and its root is the tree's. A log that has grown to the size of the head that is known is a fork of what
// was lost, and the officers learn how to say so.
func TestRecoveryOfGrownLog(t *testing.T) {
	t.Parallel()
	c := newCouncil(t).begin()
	size := c.log.state.Next
	declare := func(more ...string) []string {
		return append([]string{"propose", "recovery.declare", "--reason", "disk lost", "--as", "alice"}, more...)
	}
	head := func(n uint64) string { return fmt.Sprintf("%d:%s", n, c.log.roots[n]) }
	lost := record.Hash{1}
	c.fails(exitUsage, []string{"at 3 entries the log itself has the root " + c.log.roots[3].String(), "two roots at one size are a fork", fmt.Sprintf("has %d entries now", size), "--surviving SIZE, less than 3"},
		declare("--known", "3:"+lost.String())...)
	c.fails(exitUsage, []string{"--surviving SIZE, less than 3"}, declare("--known", "3:"+lost.String(), "--surviving", "3")...)
	c.fails(exitUsage, []string{"nothing that it covers is lost"}, declare("--known", head(3))...)
	c.fails(exitUsage, []string{"a head of no entries"}, declare("--known", "0:"+lost.String())...)
	c.fails(exitUsage, []string{fmt.Sprintf("the log has %d entries", size)}, declare("--surviving", "0")...)
	c.fails(exitUsage, []string{fmt.Sprintf("the log has %d entries", size)}, declare("--surviving", fmt.Sprint(size+1))...)
	for i, x := range []struct {
		more             []string
		known, surviving ceremony.Head
	}{
		{[]string{"--known", "3:" + lost.String(), "--surviving", "2"}, ceremony.Head{Root: lost, Size: 3}, ceremony.Head{Root: c.log.roots[2], Size: 2}},
		{[]string{"--known", head(size)}, ceremony.Head{Root: c.log.roots[size], Size: size}, ceremony.Head{Root: c.log.roots[size], Size: size}},
		{[]string{"--surviving", "2"}, ceremony.Head{Root: c.log.roots[2], Size: 2}, ceremony.Head{Root: c.log.roots[2], Size: 2}},
	} {
		file := c.path(fmt.Sprint("recovery", i))
		c.ok(declare(append(x.more, "--offline", "--out", file)...)...)
		document, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		p, err := ceremony.ParseProposal(document)
		if err != nil {
			t.Fatal(err)
		}
		if got := p.Asks().(*ceremony.RecoveryDeclare); got.Known != x.known || got.Surviving != x.surviving {
			t.Errorf("%v: %+v", x.more, got)
		}
	}
}
