package verify

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"html/template"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"bulla/record"
)

// Page is a report to be read and printed, with what it does not say itself.
type Page struct {
	Report   *Report
	Evidence string    // where it was read from
	Policy   []byte    // the policy file; nil: there was none
	Tool     string    // program and version
	Made     time.Time // when
}

//go:embed html.tmpl
var pageText string

//go:embed html.css
var pageStyle string

var pageTemplate = template.Must(template.New("page").Funcs(template.FuncMap{
	"number": number, "place": numberAt, "entries": spanOf, "these": these, "words": words, "at": atUTC, "span": duration, "symbol": symbol, "class": class, "join": strings.Join, "unix": unixUTC,
}).Parse(pageText))

// WriteHTML writes the report as one page: no script, nothing loaded from elsewhere, and whatever the evidence says as text that can
// neither be markup nor disturb the order of characters.
func (p *Page) WriteHTML(w io.Writer) error {
	var b bytes.Buffer
	held, required := p.Report.required()
	findings, more := p.Report.printed()
	style := sha256.Sum256([]byte(pageStyle))
	err := pageTemplate.Execute(&b, map[string]any{
		"Page": p, "Report": p.Report, "Style": template.CSS(pageStyle), "StyleHash": base64.StdEncoding.EncodeToString(style[:]),
		"Answer": answers[p.Report.Verdict], "Policy": p.policy(), "Claims": p.claims(), "Kinds": p.kinds(),
		"Findings": findings, "More": more, "Count": uint64(len(p.Report.Findings)) + p.Report.Omitted, "Held": held, "Required": required, "Tampered": p.Report.Verdict == OutcomeTampered, "Anchored": p.Report.anchored(),
		"Anchors": template.HTML(p.Report.anchorBar()), "Course": template.HTML(p.Report.course()), "Clock": template.HTML(p.Report.clockPicture()), "Estimate": p.Report.estimate(),
	})
	if err != nil {
		return fmt.Errorf("writing the page: %w", err)
	}
	_, err = w.Write(bytes.Map(visible, b.Bytes()))
	return err
}

// visible puts a sign in place of what is not seen: control characters, and those that turn the order of others round. The template
// has none but line ends.
func visible(r rune) rune {
	switch {
	case r == '\n' || unicode.IsPrint(r):
		return r
	case r < 0x20:
		return 0x2400 + r // control pictures
	}
	return unicode.ReplacementChar
}

// required counts the claims that the verdict depends on, and those of them that hold.
func (rep *Report) required() (held, all int) {
	for _, c := range rep.Claims {
		if !c.Required {
			continue
		}
		if all++; c.Status == Verified {
			held++
		}
	}
	return held, all
}

// anchored is how many entries something anchors.
func (rep *Report) anchored() uint64 {
	if rep.Unanchored != nil {
		return rep.Unanchored.From
	}
	return rep.Size
}

// answers says what a verdict is.
var answers = map[Verdict]string{
	OutcomeVerified:     "Everything that the policy requires was checked, and holds.",
	OutcomeTampered:     "The evidence contradicts itself, the policy, or what was seen before.",
	OutcomeNotCheckable: "Nothing contradicts, but something that is needed is missing.",
}

// symbol tells statuses and verdicts apart without colour.
func symbol(s any) string {
	switch fmt.Sprint(s) {
	case string(Verified):
		return "✓"
	case string(Violated), string(OutcomeTampered):
		return "✕"
	case string(Lost):
		return "–"
	}
	return "?"
}

// class is the class of a status or verdict in the style.
func class(s any) string {
	switch fmt.Sprint(s) {
	case string(Verified):
		return "good"
	case string(Violated), string(OutcomeTampered):
		return "bad"
	}
	return "open"
}

// claimMeanings says what each claim is.
var claimMeanings = map[string]string{
	ClaimBytes:      "Every byte of entries, bundles and tiles is what it must be.",
	ClaimChain:      "Entries are numbered, named, and linked one to the next.",
	ClaimTree:       "The entries are the leaves of the signed tree.",
	ClaimSignatures: "The head is signed by the log's keys.",
	ClaimGovernance: "Everything was permitted, from the trusted genesis on.",
	ClaimTime:       "The times recorded follow from the measurements recorded.",
	ClaimSeals:      "The TPM attested the heads that the seals name.",
	ClaimRollback:   "Counter, PCR and clock of the TPM never go back.",
	ClaimReceipts:   "The receipts given are of this log.",
	ClaimWitnesses:  "A quorum of witnesses cosigned heads of this log.",
	ClaimContinuity: "The log extends what was seen of it before.",
}

// claimRow is a claim with how much of the log it covers.
type claimRow struct {
	Claim
	Meaning string
	Bar     template.HTML
}

func (p *Page) claims() []claimRow {
	var out []claimRow
	for _, c := range p.Report.Claims {
		out = append(out, claimRow{c, claimMeanings[c.Name], template.HTML(coverageBar(c, p.Report.Size))})
	}
	return out
}

func (p *Page) policy() string {
	if p.Policy == nil {
		return ""
	}
	sum := sha256.Sum256(p.Policy)
	return hex.EncodeToString(sum[:])
}

// kind is how many entries of a kind there are.
type kind struct {
	Name  string
	Count uint64
}

func (p *Page) kinds() []kind {
	var out []kind
	for _, name := range slices.Sorted(maps.Keys(p.Report.Entries)) {
		out = append(out, kind{name, p.Report.Entries[name]})
	}
	return out
}

// numberAt is a number that may be absent.
func numberAt(n *uint64) string {
	if n == nil {
		return ""
	}
	return number(*n)
}

// number writes a number with its thousands apart.
func number(n uint64) string {
	s := strconv.FormatUint(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// spanOf names the entries [from,to).
func spanOf(from, to uint64) string {
	switch {
	case to <= from:
		return "none"
	case to == from+1:
		return number(from)
	}
	return number(from) + " to " + number(to-1)
}

// these names the entries [from,to) in a sentence.
func these(from, to uint64) string {
	if to == from+1 {
		return "entry " + number(from)
	}
	return "entries " + spanOf(from, to)
}

// words are those of a hash in hex, to be read to each other.
func words(hash string) string {
	b, err := hex.DecodeString(hash)
	if err != nil || len(b) != sha256.Size {
		return ""
	}
	return strings.Join(record.Words(record.Hash(b)), " ")
}

// atUTC is a time of the log, to the second.
func atUTC(t string) string {
	ns, err := record.ParseTime(t)
	if err != nil {
		return t
	}
	return time.Unix(0, ns).UTC().Format("2006-01-02 15:04:05")
}

func unixUTC(seconds uint64) string {
	return time.Unix(int64(min(seconds, 1<<40)), 0).UTC().Format("2006-01-02 15:04:05")
}

// duration writes ns with a unit that fits.
func duration(ns int64) string {
	d := time.Duration(ns)
	switch a := d.Abs(); {
	case a >= 2*time.Minute:
		return d.Round(time.Second).String()
	case a >= time.Second:
		return strconv.FormatFloat(d.Seconds(), 'g', 4, 64) + " s"
	case a >= time.Millisecond:
		return strconv.FormatFloat(float64(d)/1e6, 'g', 4, 64) + " ms"
	case a >= time.Microsecond:
		return strconv.FormatFloat(float64(d)/1e3, 'g', 4, 64) + " µs"
	}
	return strconv.FormatInt(ns, 10) + " ns"
}
