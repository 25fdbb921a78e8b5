package verify_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"bulla/record"
	"bulla/verify"
)

// hostile is what somebody would write to have a page say something else.
const hostile = "</p><script>alert(1)</script><img src=x onerror=alert(1)> \u202e\u2066 \x1b[2J {{.}} ' \" & -->"

// eventful is a log with everything that a page tells of: measured time, seals over several boots, ceremonies, and what happened.
func eventful(t testing.TB) (*builder, *verify.Policy) {
	t.Helper()
	b := newBuilder(t).enrolled().begin()
	b.startClock().measure()
	tell := func(s record.System) {
		body, err := record.MarshalCanonical(&s)
		b.must(err)
		b.add(record.KindSystem, nil, body)
	}
	tell(record.System{Event: record.SystemStart, Version: "1.0"})
	for range 6 {
		for range 8 {
			b.events(5)
			b.machine.raw += 2 * int64(time.Second)
		}
		b.seal(b.head(b.tree.Size())).measure()
	}
	tell(record.System{Event: record.SystemAlarm, Code: record.CodeTPM, Message: hostile})
	tell(record.System{Event: record.SystemGap, Gap: &record.Gap{Stream: "s", After: 1, Next: 5}})
	tell(record.System{Event: record.SystemRecovery, Code: record.CodeTPM})
	tell(record.System{Event: record.SystemStop})
	b.chip.reset()
	b.chip.increment = true
	b.machine.raw += 30 * int64(time.Second)
	tell(record.System{Event: record.SystemStart, Version: "1.1"})
	b.seal(b.head(b.tree.Size())).measure().events(30)
	p := b.sealedPolicy()
	p.NoTime = false
	return b, p
}

// page is a report as HTML.
func page(t testing.TB, rep *verify.Report) string {
	t.Helper()
	var b bytes.Buffer
	if err := (&verify.Page{Report: rep, Evidence: hostile, Policy: []byte("policy"), Tool: "bulla 1.0", Made: time.Unix(1795398000, 0)}).WriteHTML(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestTimelineOfALog(t *testing.T) {
	t.Parallel()
	b, p := eventful(t)
	rep := run(t, b.export(), p)
	want(t, rep, verify.OutcomeVerified)
	l := rep.Timeline
	var told []string
	for _, m := range l.Events {
		told = append(told, m.What)
	}
	if got := strings.Join(told, " "); got != "start alarm recovery stop start" || l.Gaps != 1 {
		t.Errorf("%s, %d gaps", got, l.Gaps)
	}
	if len(l.Boots) != 2 || l.Boots[0].Seals != 6 || l.Boots[1].Seals != 1 || l.Boots[1].Resets != l.Boots[0].Resets+1 {
		t.Errorf("%+v", l.Boots)
	}
	if n := len(l.Seals); n < 2 || l.Seals[n-1].Last != 7 || l.Seals[0].First != 1 || l.Seals[n-1].Counter != 9 || l.Seals[1].Longest < int64(10*time.Second) {
		t.Errorf("%+v", l.Seals)
	}
	if n := len(l.Clock); n < 5 || l.Clock[n-1].State != "synced" || l.Clock[n-1].Estimate.Bound <= 0 {
		t.Errorf("%+v", l.Clock)
	}
	if len(l.Ceremonies) != 1 || l.Ceremonies[0].What != verify.MarkGenesis {
		t.Errorf("%+v", l.Ceremonies)
	}
	// The JSON form says it all.
	raw, err := json.Marshal(rep)
	if err != nil {
		t.Fatal(err)
	}
	var again verify.Report
	if err := json.Unmarshal(raw, &again); err != nil || len(again.Timeline.Seals) != len(l.Seals) || again.Timeline.Events[0] == (verify.Milestone{}) {
		t.Errorf("%v\n%s", err, raw)
	}
}

func TestTimelineOfCeremonies(t *testing.T) {
	t.Parallel()
	c := newCouncil(t)
	c.approveGenesis("alice", "bob")
	c.startClock().measure().events(3)
	document := c.propose(same)
	c.approve(1, document, "bob")
	c.enact(document)
	rep := c.report()
	want(t, rep, verify.OutcomeVerified)
	var told []string
	for _, m := range rep.Timeline.Ceremonies {
		told = append(told, m.What+": "+m.Text)
	}
	if got := strings.Join(told, "\n"); !strings.HasPrefix(got, "genesis: the log is made\napproved: the genesis, by alice\napproved: the genesis, by bob\nproposed: policy.set, number 1, by alice\napproved: policy.set, number 1, by bob\nenacted: policy.set, number 1") {
		t.Error(got)
	}
}

// A page has everything that the report has, whatever the verdict.
func TestPageSaysWhatTheReportSays(t *testing.T) {
	t.Parallel()
	b, p := eventful(t)
	honest := b.export()
	tampered := honest.clone()
	replace(tampered, "tile/entries/000", "number 20", "number 29")
	cut := honest.clone()
	delete(cut, "tile/0/000")
	for _, rep := range []*verify.Report{
		run(t, honest, p), run(t, honest, nil), run(t, tampered, p, jsonReceipt(t, b.receipt(7))), run(t, cut, p), run(t, files{}, p), run(t, files{"checkpoint": []byte("x")}, p),
	} {
		got := page(t, rep)
		want := []string{`<strong>` + string(rep.Verdict) + `</strong>`, `<h2 id="findings">`}
		for _, c := range rep.Claims {
			want = append(want, `<th scope="row">`+c.Name+`<br>`, c.Why)
		}
		for i, f := range rep.Findings {
			want = append(want, fmt.Sprintf(`<details open id="finding-%d"><summary>%s `, i, f.Rule))
			if f.Index != nil {
				want = append(want, fmt.Sprintf("entry %d", *f.Index))
			}
		}
		for _, r := range rep.Receipts {
			want = append(want, fmt.Sprintf(`<th scope="row">%s</th><td class="t">%d</td>`, r.Name, *r.Index))
		}
		for _, w := range want {
			if !strings.Contains(got, escaped(w)) {
				t.Errorf("%s: the page does not say %q", rep.Verdict, w)
			}
		}
		wellFormed(t, got)
	}
}

// escaped is text as it stands in the page; markup is left as it is.
func escaped(s string) string {
	return strings.NewReplacer("'", "&#39;", "+", "&#43;", "`", "&#96;").Replace(s)
}

// wellFormed checks that elements nest, and that nothing is loaded or run.
func wellFormed(t *testing.T, page string) {
	t.Helper()
	for _, bad := range []string{"<script", "<img", "<iframe", "<object", "<link", "http://", "https://", "url(h", "@import", " style=", " onclick", "javascript:", "\u202e", "\u2066", "\x1b", "ZgotmplZ", "NaN"} {
		if strings.Contains(strings.ReplaceAll(page, `xmlns="http://www.w3.org/2000/svg"`, ""), bad) {
			t.Errorf("the page has %q", bad)
		}
	}
	style := regexp.MustCompile(`(?s)<style>(.*)</style>`).FindStringSubmatch(page)
	sum := sha256.Sum256([]byte(style[1]))
	if !strings.Contains(page, "style-src &#39;sha256-"+strings.ReplaceAll(base64.StdEncoding.EncodeToString(sum[:]), "+", "&#43;")+"&#39;") &&
		!strings.Contains(page, "style-src 'sha256-"+strings.ReplaceAll(base64.StdEncoding.EncodeToString(sum[:]), "+", "&#43;")+"'") {
		t.Error("the content security policy does not permit the page's own style")
	}
	var open []string
	for _, m := range regexp.MustCompile(`<(/?)([a-z][a-z0-9]*)((?:[^<>"]|"[^"]*")*?)(/?)>`).FindAllStringSubmatch(page[len("<!DOCTYPE html>"):], -1) {
		switch {
		case m[4] == "/" || m[2] == "meta" || m[2] == "br":
		case m[1] == "":
			open = append(open, m[2])
		case len(open) == 0 || open[len(open)-1] != m[2]:
			t.Fatalf("%s closes %v", m[0], open)
		default:
			open = open[:len(open)-1]
		}
	}
	if len(open) > 0 {
		t.Errorf("%v stay open", open)
	}
	ids := map[string]bool{}
	for _, m := range regexp.MustCompile(` id="([^"]+)"`).FindAllStringSubmatch(page, -1) {
		if ids[m[1]] {
			t.Errorf("id %s is there twice", m[1])
		}
		ids[m[1]] = true
	}
	for _, m := range regexp.MustCompile(` (?:href="#|aria-labelledby=")([^"]+)"`).FindAllStringSubmatch(page, -1) {
		for _, id := range strings.Fields(m[1]) {
			if !ids[id] {
				t.Errorf("nothing has the id %s", id)
			}
		}
	}
}

// hostileReport is a report whose every text is hostile.
func hostileReport(t *testing.T) *verify.Report {
	t.Helper()
	b, p := eventful(t)
	rep := run(t, b.export(), p)
	raw, err := json.Marshal(rep)
	if err != nil {
		t.Fatal(err)
	}
	var anything any
	if err := json.Unmarshal(raw, &anything); err != nil {
		t.Fatal(err)
	}
	spoilt, err := json.Marshal(spoil(anything, ""))
	if err != nil {
		t.Fatal(err)
	}
	full := &verify.Report{}
	if err := json.Unmarshal(spoilt, full); err != nil {
		t.Fatal(err)
	}
	index := uint64(1)
	full.Findings = []verify.Finding{{Rule: hostile, Log: hostile, Index: &index, File: hostile, Expected: hostile, Found: hostile, Meaning: hostile}}
	full.Missing, full.Remarks = []string{hostile}, []string{hostile}
	full.Recovery = &verify.Recovery{Why: hostile}
	full.Receipts = []verify.ReceiptResult{{Name: hostile, Index: &index, Status: hostile, Why: hostile}}
	full.Witnesses = []verify.WitnessResult{{Name: hostile, Size: &index}}
	full.Earlier = []verify.EarlierResult{{Name: hostile, Status: hostile, Why: hostile}}
	full.Governance.Officers, full.Governance.Thresholds = []string{hostile}, map[string]int{hostile: 2}
	return full
}

// Whatever a page says of the evidence is text, in every member of a report.
func TestHostileReport(t *testing.T) {
	t.Parallel()
	got := page(t, hostileReport(t))
	wellFormed(t, got)
	if n := strings.Count(got, "&lt;script&gt;"); n < 30 {
		t.Errorf("the hostile text is there %d times", n)
	}
}

// spoil puts the hostile text in place of every string but those that a program reads.
func spoil(v any, name string) any {
	switch x := v.(type) {
	case map[string]any:
		for k := range x {
			x[k] = spoil(x[k], k)
		}
		return x
	case []any:
		for i := range x {
			x[i] = spoil(x[i], name)
		}
		return x
	case string:
		if name == "counter" {
			return x
		}
		return hostile
	}
	return v
}

// While something contradicts, neither page nor text says how much is anchored for certain.
func TestNothingIsAnchoredForCertainWhileSomethingContradicts(t *testing.T) {
	t.Parallel()
	b, p := eventful(t)
	honest := run(t, b.export(), p)
	bad := b.export()
	replace(bad, "tile/entries/000", "number 20", "number 29")
	rep := run(t, bad, p)
	want(t, rep, verify.OutcomeTampered, "tree.leaf@20")
	const tile = `<div><dt>Entries anchored</dt><dd>`
	for _, c := range []struct {
		in     string
		yes    []string
		noneOf []string
	}{
		{page(t, honest), []string{tile + "2"}, []string{"The findings come first"}},
		{page(t, rep), []string{tile + "– <small>not for certain", "<strong>The findings come first:</strong>"}, []string{tile + "2", "Every entry is anchored"}},
		{text(t, honest), nil, []string{"findings leave it"}},
		{text(t, rep), []string{"; the rest is anchored only as far as the findings leave it\n"}, nil},
	} {
		for _, s := range c.yes {
			if !strings.Contains(c.in, s) {
				t.Errorf("%q is not in\n%s", s, c.in)
			}
		}
		for _, s := range c.noneOf {
			if strings.Contains(c.in, s) {
				t.Errorf("%q is in\n%s", s, c.in)
			}
		}
	}
}

// What repeats itself is printed a few times, and its meaning once; how much there is, always.
func TestFindingsThatRepeat(t *testing.T) {
	t.Parallel()
	b := newBuilder(t).begin().events(300)
	f := b.export()
	for i := 120; i < 250; i++ {
		replace(f, "tile/entries/000", fmt.Sprintf("number %d", i), fmt.Sprintf("number %d", i+500))
	}
	f["tile/0/001.p/45"][0] ^= 1
	rep := run(t, f, b.policy())
	got, html := text(t, rep), page(t, rep)
	meaning := ""
	for _, r := range verify.Rules() {
		if r.Name == "tree.leaf" {
			meaning = r.Meaning
		}
	}
	for s, n := range map[string]int{"\n  tree.leaf (entry ": 5, meaning: 1, "\n  and 95 more of tree.leaf, which --json lists\n": 1, "\n  and 31 more that are not listed\n": 1} {
		if strings.Count(got, s) != n {
			t.Errorf("%q is there %d times, not %d:\n%s", s, strings.Count(got, s), n, got)
		}
	}
	for s, n := range map[string]int{"<summary>tree.leaf ": 5, "<p>And 95 more of tree.leaf, which <code>--json</code> lists.</p>": 1, "<p>And 31 more that are not listed.</p>": 1} {
		if strings.Count(html, s) != n {
			t.Errorf("on the page, %q is there %d times, not %d", s, strings.Count(html, s), n)
		}
	}
}
