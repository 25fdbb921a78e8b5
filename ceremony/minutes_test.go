package ceremony_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"bulla/ceremony"
	"bulla/record"
)

const minutesDir = "testdata/minutes"

// chronicle follows the log that the vectors have.
func chronicle(t testing.TB) *ceremony.Chronicle {
	t.Helper()
	log := readVectors(t, filepath.Join(vectorDir, "log.json")).Logs["life"]
	var entries [][]byte
	for _, raw := range log {
		entries = append(entries, []byte(raw))
	}
	return follow(t, entries)
}

func follow(t testing.TB, entries [][]byte) *ceremony.Chronicle {
	t.Helper()
	r := newReader(t)
	c := ceremony.NewChronicle(r.root)
	for _, raw := range entries {
		e, err := record.ParseEntry(raw)
		if err != nil {
			t.Fatal(err)
		}
		leaf := record.LeafHash(raw)
		if err := c.Add(e, leaf); err != nil {
			t.Fatal(err)
		}
		r.tree.Append(nil, leaf)
		r.roots = append(r.roots, r.tree.Root())
	}
	return c
}

func makeMinutes(t *testing.T) {
	t.Helper()
	c := chronicle(t)
	for _, l := range c.Ceremonies() {
		m, err := c.Minutes(l.Number)
		if err != nil {
			t.Fatal(err)
		}
		for ext, b := range map[string][]byte{"md": m.Markdown(), "html": m.HTML()} {
			if err := os.WriteFile(fmt.Sprintf("%s/%d.%s", minutesDir, l.Number, ext), b, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// The minutes of every ceremony of the log in the vectors, byte for byte, and twice the same.
func TestMinutes(t *testing.T) {
	t.Parallel()
	first, again := chronicle(t), chronicle(t)
	all := first.Ceremonies()
	files, err := filepath.Glob(minutesDir + "/*")
	if err != nil || len(files) != 2*len(all) || len(all) != 14 {
		t.Fatalf("%d files for %d ceremonies, %v", len(files), len(all), err)
	}
	for _, l := range all {
		m, err := first.Minutes(l.Number)
		if err != nil {
			t.Fatal(err)
		}
		m2, err := again.Minutes(l.Number)
		if err != nil || !bytes.Equal(m2.Markdown(), m.Markdown()) || !bytes.Equal(m2.HTML(), m.HTML()) {
			t.Errorf("ceremony %d: not the same again: %v", l.Number, err)
		}
		for ext, b := range map[string][]byte{"md": m.Markdown(), "html": m.HTML()} {
			want, err := os.ReadFile(fmt.Sprintf("%s/%d.%s", minutesDir, l.Number, ext))
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), string(b)); d != "" {
				t.Errorf("ceremony %d: -file +now\n%s", l.Number, d)
			}
		}
	}
	if _, err := first.Minutes(99); err == nil {
		t.Error("there are minutes of what never was")
	}
}

// The list says who proposed, who approved, and what came of it.
func TestCeremonies(t *testing.T) {
	t.Parallel()
	var got []string
	for _, l := range chronicle(t).Ceremonies() {
		ended, _, _ := strings.Cut(l.Ended, " at entry")
		got = append(got, fmt.Sprintf("%d %s by %s: %v of %d, not %v: %t %s", l.Number, l.Action, l.Proposer, l.Approved, l.Needed, l.Rejected, l.Enacted, ended))
	}
	want := []string{
		"0 genesis by : [alice bob] of 2, not []: true approved",
		"1 policy.set by alice: [alice bob] of 2, not []: true enacted",
		"2 key.generate by alice: [alice bob] of 2, not []: true enacted",
		"3 key.rotate by alice: [alice bob] of 2, not []: true enacted",
		"4 key.retire by alice: [alice bob] of 2, not []: true enacted",
		"5 officers.set by alice: [alice carol] of 2, not []: true enacted",
		"6 tpm.enrol by alice: [alice bob] of 2, not []: true enacted",
		"7 key.generate by alice: [alice bob] of 2, not []: true enacted",
		"8 key.rotate by alice: [alice bob] of 2, not []: true enacted",
		"9 pcr.approve by alice: [alice bob] of 2, not []: true enacted",
		"10 policy.set by alice: [alice] of 2, not [bob dave]: false rejected:",
		"11 policy.set by alice: [alice bob] of 2, not [alice]: false withdrawn by alice",
		"12 key.generate by alice: [alice dave] of 2, not []: false failed",
		"13 recovery.declare by alice: [alice bob] of 2, not []: true enacted",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

// What went wrong is in the minutes: somebody was refused, a key's counter went back, the time was not known. What others wrote
// cannot pass for something else.
func TestExceptions(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	g := r.genesis()
	g.Software = "1.0 <script>alert(1)</script> | `x` \u202e"
	g.Keys[0].Attributes["label"] = "a|b\n# c\u202e<b>"
	r.begin(g)
	n := r.propose(r.policy(5))
	access := &record.Access{Action: "ceremony.approve", By: record.Producer{UID: 1000, GID: 1000}, Denied: true, Query: "officer: \"eve\" is not an officer\u2066", Role: "officer"}
	_, raw := r.make(record.KindAccess, access)
	leaf := record.LeafHash(raw)
	r.state, r.prev = r.state.Skip(1), leaf
	r.tree.Append(nil, leaf)
	r.entries, r.roots = append(r.entries, raw), append(r.roots, r.tree.Root())
	r.approve(n, "carol")
	r.enact(n, nil)
	key := r.people["carol"].(sk)
	*key.counter -= 1
	n = r.propose(r.policy(6))
	r.approve(n, "carol")

	c := follow(t, r.entries)
	text := func(n uint64) (string, string) {
		m, err := c.Minutes(n)
		if err != nil {
			t.Fatal(err)
		}
		return string(m.Markdown()), string(m.HTML())
	}
	md, _ := text(1)
	if !strings.Contains(md, `Refused at entry 5: ceremony.approve by uid 1000: officer: "eve" is not an officer\\u2066`) {
		t.Errorf("%s", md)
	}
	md, _ = text(2)
	if !strings.Contains(md, "this was number 1, after number 1. It may be a copy") || !strings.Contains(md, "It is not over.") || strings.Contains(md, "Refused at") {
		t.Errorf("%s", md)
	}
	md, page := text(0)
	for _, s := range []string{"<script>", "\u202e", "<b>"} {
		if strings.Contains(md, "1.0 "+s) || strings.Contains(page, "1.0 "+s) || strings.Contains(md, "c"+s) || strings.Contains(page, "c"+s) {
			t.Errorf("%q is in the minutes as it was written", s)
		}
	}
	if !strings.Contains(md, `a\|b\\n\# c\\u202e\<b\>`) || !strings.Contains(page, `1.0 &lt;script&gt;alert(1)&lt;/script&gt; | `) {
		t.Errorf("%s\n%s", md, page)
	}
}

// A document as words: what would change, and nothing else; text of others is escaped.
func TestDescribe(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.begin(r.genesis())
	policy := r.policy(3)
	policy.Clock.Limit, policy.Clock.Warn = 2e9, 1e9
	policy.Roles = []ceremony.Role{{Name: ceremony.Producer, UIDs: []uint32{1000, 1002}}}
	officers := r.officers("alice", "bob", "carol", "dave")
	officers[3].ValidTo = at(2030)
	officers[2].Verify = false
	for _, c := range []struct {
		content any
		want    []string
	}{
		{policy, []string{"clock.limit: 1s becomes 2s", "clock.warn: 50ms becomes 1s", "quotas.streams: 0 becomes 3", "role auditor: uids [1001] is removed", "role producer: uids [1000] becomes uids [1000 1002]"}},
		{r.policy(0), []string{"nothing: it says what is in force already"}},
		{&ceremony.OfficersSet{Officers: officers, ProposerCounts: true, Thresholds: map[string]int{"default": 2, "key.rotate": 2}}, []string{
			"officer carol: " + keyOf(officers[2]) + ", touch required, PIN required becomes " + keyOf(officers[2]) + ", touch required",
			"officer dave: " + keyOf(officers[3]) + ", touch required, until 2030-01-01T00:00:00.000000000Z (new)",
			"threshold default: 2 of 3 becomes 2 of 4", "threshold key.rotate: 2 of 4 (new)",
		}},
		{&ceremony.KeyGenerate{Algorithm: "ecdsa-p256", Label: "log\u202e\n-2", Purpose: "log"}, []string{
			`a new key of ecdsa-p256 for log is made in its device; it is not used before a rotation; label "log\u202e\n-2"`}},
		{&ceremony.RecoveryDeclare{Known: ceremony.Head{Root: record.Hash{1}, Size: 9}, Reason: "restored", Surviving: r.head()}, []string{
			"the log is closed for ever; what survives are its first 4 entries, root " + fmt.Sprintf("%x", [32]byte(r.head().Root)),
			"5 entries are lost: 4 to 8; root of what is known: 01" + strings.Repeat("0", 62), `reason: "restored"`}},
	} {
		p, err := ceremony.ParseProposal(r.document(c.content, "alice"))
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(c.want, r.state.Describe(p)); d != "" {
			t.Error(d)
		}
	}
}

func keyOf(o ceremony.Officer) string {
	kind, _, _ := strings.Cut(o.Key, " ")
	return kind + " " + o.Fingerprint()
}
