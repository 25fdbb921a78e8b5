package verify_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"bulla/verify"
)

const vectorDir = "../testdata/vectors/verify"

// vector is a case of testdata/vectors/verify/cases.json; the README there describes it.
type vector struct {
	Name, Reason string
	Policy       json.RawMessage
	Edits        []edit
	Receipt      bool
	ReceiptEdit  *edit `json:"receipt_edit"`
	Verdict      verify.Verdict
	Findings     []string
	AnyFindings  []string `json:"any_findings"`
	Unanchored   *[2]uint64
}

type edit struct {
	File   string
	Find   *string
	Put    string
	At     int
	Line   int
	Xor    byte
	Cut    *int
	Copy   string
	Delete bool
}

func (e *edit) apply(t *testing.T, f files) {
	t.Helper()
	if e.Delete {
		delete(f, e.File)
		return
	}
	if e.Copy != "" {
		f[e.File] = bytes.Clone(f[e.Copy])
	}
	b, ok := f[e.File]
	if !ok {
		t.Fatalf("no file %s", e.File)
	}
	if e.Cut != nil {
		f[e.File] = b[:*e.Cut]
	}
	if e.Find != nil {
		if !bytes.Contains(b, []byte(*e.Find)) {
			t.Fatalf("%s does not hold %q", e.File, *e.Find)
		}
		f[e.File] = bytes.Replace(b, []byte(*e.Find), []byte(e.Put), 1)
	}
	if e.Xor != 0 {
		at := e.At
		for range e.Line - 1 { // the last but one byte of a line: of a signature, not of its padding
			at += bytes.IndexByte(b[at:], '\n') + 1
		}
		if e.Line > 0 {
			at += bytes.IndexByte(b[at:], '\n') - 8
		}
		f[e.File][at] ^= e.Xor
	}
}

// load reads the vectors' evidence.
func load(t *testing.T) files {
	t.Helper()
	out := files{}
	root := filepath.Join(vectorDir, "sealed")
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		out[filepath.ToSlash(name)], err = os.ReadFile(path)
		return err
	})
	if err != nil || len(out) < 10 {
		t.Fatalf("%d files, %v", len(out), err)
	}
	return out
}

func readVector(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(vectorDir, name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestVectors(t *testing.T) {
	t.Parallel()
	honest, policy, receipt := load(t), readVector(t, "policy"), readVector(t, "receipt.json")
	var cases []vector
	d := json.NewDecoder(bytes.NewReader(readVector(t, "cases.json")))
	d.DisallowUnknownFields()
	if err := d.Decode(&cases); err != nil || len(cases) < 25 {
		t.Fatalf("%d cases, %v", len(cases), err)
	}
	for _, c := range cases {
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			f := honest.clone()
			for _, e := range c.Edits {
				e.apply(t, f)
			}
			var given []verify.Receipt
			if c.Receipt {
				r := files{"": bytes.Clone(receipt)}
				if c.ReceiptEdit != nil {
					c.ReceiptEdit.apply(t, r)
				}
				given = append(given, verify.Receipt{Name: "receipt.json", Data: r[""]})
			}
			rep := run(t, f, c.policy(t, policy, honest), given...)
			if c.AnyFindings == nil {
				want(t, rep, c.Verdict, c.Findings...)
			} else if rep.Verdict != c.Verdict || len(rep.Findings) > 4 || !slices.ContainsFunc(rep.Findings, func(f verify.Finding) bool { return f.Rule == c.AnyFindings[0] }) {
				t.Error(text(t, rep))
			}
			if u := c.Unanchored; u != nil && (rep.Unanchored == nil || *rep.Unanchored != verify.Range{From: u[0], To: u[1]}) {
				t.Errorf("unanchored: %+v", rep.Unanchored)
			}
		})
	}
}

// policy is the policy of a case. In its lines KEY, GENESIS, EKROOT and AKNAME stand for those of the evidence.
func (c *vector) policy(t *testing.T, file []byte, honest files) *verify.Policy {
	t.Helper()
	switch {
	case c.Policy == nil:
	case string(c.Policy) == "null":
		return nil
	default:
		var lines []string
		if err := json.Unmarshal(c.Policy, &lines); err != nil {
			t.Fatal(err)
		}
		var key, genesis string
		for line := range strings.Lines(string(file)) {
			words := strings.Fields(line)
			if words[0] == "log" && key == "" {
				key = words[1]
			} else if words[0] == "genesis" {
				genesis = words[1]
			}
		}
		root, ak := lastCertificate(t, honest["enrolment/ek-chain.pem"]), sha256.Sum256(honest["enrolment/ak.tpmt"])
		file = []byte(strings.NewReplacer("EKROOT", root, "KEY", key, "GENESIS", genesis, "AKNAME", fmt.Sprintf("000b%x", ak)).Replace(strings.Join(lines, "\n")))
	}
	p, err := verify.ParsePolicy(file)
	if err != nil {
		t.Fatal(fmt.Errorf("%s: %w", c.Name, err))
	}
	return p
}

// lastCertificate is the last certificate of a PEM file, in base64.
func lastCertificate(t *testing.T, file []byte) (der string) {
	t.Helper()
	for b, rest := pem.Decode(file); b != nil; b, rest = pem.Decode(rest) {
		der = base64.StdEncoding.EncodeToString(b.Bytes)
	}
	if der == "" {
		t.Fatal("no certificate")
	}
	return der
}

// No byte of real evidence can be flipped, but in what is no evidence: the README, and another project's encoding of a seal.
func TestNoByteOfSealedEvidenceCanBeFlipped(t *testing.T) {
	t.Parallel()
	honest := load(t)
	p, err := verify.ParsePolicy(readVector(t, "policy"))
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range honest {
		if name == "README.md" || strings.HasSuffix(name, "attest.pb") {
			continue
		}
		step := max(1, len(data)/12)
		for at := len(name) % step; at < len(data); at += step {
			bad := honest.clone()
			bad[name][at] ^= 1 << (at % 8)
			if rep := run(t, bad, p); rep.Verdict == verify.OutcomeVerified && !unknownLine(rep) {
				t.Fatalf("verified with byte %d of %s flipped\n%s", at, name, text(t, rep))
			}
		}
	}
}
