package verify_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"bulla/record"
	"bulla/verify"
)

// vectorDir holds a vector in each directory; the README there describes them.
const vectorDir = "../testdata/vectors/verify"

var update = flag.Bool("update", false, "write the vectors and docs/selftest.md anew")

// vector is what a verifier is given.
type vector struct {
	about    string
	files    files
	policy   *verify.Policy // nil: none
	receipts []verify.Receipt
	earlier  []byte // a head
	memory   *verify.Memory
}

// verdict is what it must say, as verdict.json has it.
type verdict struct {
	About      string                 `json:"about"`
	Verdict    verify.Verdict         `json:"verdict"`
	Findings   []place                `json:"findings,omitempty"`
	Claims     map[string]claimed     `json:"claims"`
	Unanchored *verify.Range          `json:"unanchored,omitempty"`
	Resettable *verify.Range          `json:"resettable,omitempty"`
	Receipts   []verify.ReceiptResult `json:"receipts,omitempty"`
}

type place struct {
	Rule  string  `json:"rule"`
	Index *uint64 `json:"index,omitempty"`
	File  string  `json:"file,omitempty"`
}

type claimed struct {
	Status   verify.Status `json:"status"`
	From     uint64        `json:"from"`
	To       uint64        `json:"to"`
	Required bool          `json:"required"`
}

// says is a report without what another verifier would say in other words.
func says(about string, rep *verify.Report) []byte {
	v := verdict{About: about, Verdict: rep.Verdict, Claims: map[string]claimed{}, Unanchored: rep.Unanchored, Resettable: rep.Resettable}
	for _, f := range rep.Findings {
		v.Findings = append(v.Findings, place{f.Rule, f.Index, f.File})
	}
	for _, c := range rep.Claims {
		v.Claims[c.Name] = claimed{c.Status, c.From, c.To, c.Required}
	}
	for _, r := range rep.Receipts {
		r.Why = ""
		v.Receipts = append(v.Receipts, r)
	}
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		panic(err) // nothing in it can fail
	}
	return append(b, '\n')
}

func (v *vector) run(t testing.TB) *verify.Report {
	t.Helper()
	opt := verify.Options{Receipts: v.receipts}
	if v.earlier != nil {
		e, err := verify.NewEarlier("earlier", v.earlier)
		if err != nil {
			t.Fatal(err)
		}
		opt.Earlier = append(opt.Earlier, e)
	}
	if v.memory != nil {
		opt.Recall = func(string, record.Hash) (*verify.Memory, error) { return v.memory, nil }
	}
	rep, err := verify.Run(t.Context(), v.files, v.policy, opt)
	if err != nil {
		t.Fatal(err)
	}
	return rep
}

// disk is a vector as it lies on disk, without its name.
func (v *vector) disk(t testing.TB) files {
	t.Helper()
	out := files{"verdict.json": says(v.about, v.run(t))}
	for name, b := range v.files {
		out["evidence/"+name] = b
	}
	if v.policy != nil {
		text, err := v.policy.MarshalText()
		if err != nil {
			t.Fatal(err)
		}
		out["policy"] = text
	}
	for _, r := range v.receipts {
		out["receipts/"+r.Name] = r.Data
	}
	if v.earlier != nil {
		out["earlier"] = v.earlier
	}
	if v.memory != nil {
		b, err := v.memory.Encode()
		if err != nil {
			t.Fatal(err)
		}
		out["memory"] = b
	}
	return out
}

// readTree reads the files below a directory.
func readTree(t testing.TB, dir string) files {
	t.Helper()
	out := files{}
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, name)
		if err != nil {
			return err
		}
		out[filepath.ToSlash(rel)], err = os.ReadFile(name)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// readVector reads a file beside the vectors.
func readVector(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(vectorDir, name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// load reads the evidence of a real appliance.
func load(t testing.TB) files {
	t.Helper()
	out := readTree(t, filepath.Join(vectorDir, "sealed"))
	if len(out) < 10 {
		t.Fatalf("%d files", len(out))
	}
	return out
}

// parse is a vector from its files.
func parse(t testing.TB, disk files) *vector {
	t.Helper()
	v := &vector{files: files{}, earlier: disk["earlier"]}
	var err error
	for _, name := range slices.Sorted(maps.Keys(disk)) {
		b := disk[name]
		switch dir, rest, _ := strings.Cut(name, "/"); {
		case dir == "evidence":
			v.files[rest] = b
		case dir == "receipts":
			v.receipts = append(v.receipts, verify.Receipt{Name: rest, Data: b})
		case name == "policy":
			v.policy, err = verify.ParsePolicy(b)
		case name == "memory":
			v.memory, err = verify.ParseMemory(b)
		case name == "verdict.json":
			var want verdict
			err = json.Unmarshal(b, &want)
			v.about = want.About
		case name != "earlier":
			err = errors.New("it does not belong there")
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	return v
}

// TestVectors runs the vectors as another implementation would.
func TestVectors(t *testing.T) {
	t.Parallel()
	if *update {
		return // they are being written
	}
	paths, err := filepath.Glob(filepath.Join(vectorDir, "*", "verdict.json"))
	if err != nil || len(paths) < 100 {
		t.Fatalf("%d vectors, %v", len(paths), err)
	}
	tampered := map[string]bool{}
	for _, p := range paths {
		disk := readTree(t, filepath.Dir(p))
		v := parse(t, disk)
		rep := v.run(t)
		if diff := cmp.Diff(string(disk["verdict.json"]), string(says(v.about, rep))); diff != "" {
			t.Errorf("%s:\n%s\n%s", p, diff, text(t, rep))
		}
		for _, f := range rep.Findings {
			tampered[f.Rule] = true
		}
	}
	for _, r := range verify.Rules() {
		if !tampered[r.Name] {
			t.Errorf("no vector breaks %s", r.Name)
		}
	}
}

// appliance is the evidence of a real appliance.
func appliance(t testing.TB) *vector {
	t.Helper()
	v := &vector{
		about: "Two boots of an appliance: an HSM key, a software TPM, measured time, five seals, entries behind the last.",
		files: load(t), receipts: []verify.Receipt{{Name: "receipt.json", Data: readVector(t, "receipt.json")}},
	}
	var err error
	if v.policy, err = verify.ParsePolicy(readVector(t, "policy")); err != nil {
		t.Fatal(err)
	}
	return v
}

// The selftest finds all of its mutations in evidence of a real appliance, with keys that nobody knows.
func TestSelftestOfAnAppliance(t *testing.T) {
	t.Parallel()
	v := appliance(t)
	rep := selftest(t, v.files, v.policy, verify.SelftestOptions{Receipts: v.receipts})
	if n := rep.Counts[verify.Caught]; n < 95 {
		t.Errorf("%d caught", n)
	}
}

// TestVectorsAreCurrent fails when the vectors are not those that these tests make.
func TestVectorsAreCurrent(t *testing.T) {
	t.Parallel()
	real := appliance(t)
	made := files{"verdict.json": says(real.about, real.run(t))}
	put := func(name string, v *vector) {
		if _, twice := made[name+"/verdict.json"]; twice {
			t.Errorf("two vectors %s", name)
		}
		for file, b := range v.disk(t) {
			made[name+"/"+file] = b
		}
	}
	for name, v := range mutants(t) {
		put(name, v)
	}
	for _, s := range scenes {
		v := s.make(t)
		v.about = s.about
		if got := v.run(t); got.Verdict != s.verdict || (len(got.Findings) > 0) != (s.verdict == verify.OutcomeTampered) {
			t.Errorf("%s: %s", s.name, text(t, got))
		}
		put(s.name, v)
	}
	on := readTree(t, vectorDir)
	for name := range on {
		if name != "verdict.json" && (!strings.Contains(name, "/") || strings.HasPrefix(name, "sealed/")) {
			delete(on, name)
		}
	}
	if *update {
		for name := range on {
			if err := os.Remove(filepath.Join(vectorDir, name)); err != nil {
				t.Error(err)
			}
		}
		for name, b := range made {
			full := filepath.Join(vectorDir, name)
			if err := errors.Join(os.MkdirAll(path.Dir(full), 0o755), os.WriteFile(full, b, 0o644)); err != nil {
				t.Error(err)
			}
		}
		return
	}
	size := 0
	for name, b := range made {
		if size += len(b); !bytes.Equal(b, on[name]) {
			t.Errorf("%s is not what these tests make: run go test ./verify -run Vectors -update, and review the difference", name)
		}
		delete(on, name)
	}
	for name := range on {
		t.Errorf("%s belongs to no vector", name)
	}
	if size > 2<<20 {
		t.Errorf("the vectors have %d bytes", size)
	}
}

// mutants are the mutations of the catalogue, made with the logs' own keys, each of the smallest log that it can be made of.
func mutants(t *testing.T) map[string]*vector {
	t.Helper()
	out := map[string]*vector{}
	closed, _, _ := recovered(t)
	for _, b := range []*builder{village(t), hamlet(t).builder, keep(t), town(t).busy(6).builder, village(t).events(251), closed.builder} {
		given, p := b.export(), b.trust()
		if b.chip != nil && b.machine == nil {
			given = withCopies(t, given)
			maps.DeleteFunc(given, func(name string, _ []byte) bool {
				return name == "README.md" || strings.HasPrefix(name, "seals/") || strings.HasSuffix(name, ".pem")
			})
		}
		opt := verify.SelftestWith(verify.SelftestOptions{}, b.ownKeys, b.attester(), func(m *verify.Mutation, x verify.Tried, rep *verify.Report) {
			if out[m.Name] != nil {
				return
			}
			v := &vector{about: m.Does, files: snapshot(t, x.Source), policy: x.Policy, receipts: x.Receipts, earlier: x.Earlier, memory: x.Memory}
			if v.policy == nil {
				v.policy = p
			}
			out[m.Name] = v
		})
		selftest(t, given, p, opt)
	}
	if len(out) != len(verify.Mutations()) {
		for _, m := range verify.Mutations() {
			if out[m.Name] == nil {
				t.Errorf("no vector of %s", m.Name)
			}
		}
	}
	return out
}

// snapshot reads all of a source.
func snapshot(t *testing.T, src verify.Source) files {
	t.Helper()
	out := files{}
	err := src.Walk(t.Context(), func(name string) error {
		f, err := src.Open(t.Context(), name)
		if err != nil {
			return err
		}
		out[name], err = io.ReadAll(f)
		return errors.Join(err, f.Close())
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
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
