package attest_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"maps"
	"os"
	"slices"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"bulla/attest"
	"bulla/record"
)

var update = flag.Bool("update", false, "write testdata/vectors/attest/seals.jsonl anew")

const vectorFile = "../testdata/vectors/attest/seals.jsonl"

// vector is a line of seals.jsonl; the README beside it describes it.
type vector struct {
	Name      string          `json:"name"`
	Rules     []attest.Rule   `json:"rules"`
	Enrolment json.RawMessage `json:"enrolment"`
	Size      uint64          `json:"size"`
	Steps     []step          `json:"steps"`
	Sealed    uint64          `json:"sealed"`
	Counted   uint64          `json:"counted"`
}

type step struct {
	Seal     string `json:"seal,omitempty"`
	Recovery string `json:"recovery,omitempty"`
}

// vectors are the stories of these tests, in the form of the file.
func vectors(t *testing.T) (out []vector) {
	t.Helper()
	add := func(c story, rules ...attest.Rule) {
		m := c.machine(t)
		e := m.enrolment()
		v := vector{Name: c.name, Rules: append([]attest.Rule{}, rules...), Enrolment: encoded(t, e)}
		for _, body := range c.run(m) {
			if bytes.HasPrefix(body, []byte(`{"clock":`)) {
				v.Steps = append(v.Steps, step{Recovery: string(body)})
			} else {
				v.Steps = append(v.Steps, step{Seal: string(body)})
			}
		}
		v.Size = m.size
		out = append(out, v)
	}
	for _, c := range honest {
		add(c)
	}
	for _, c := range violations {
		add(c, c.rule)
	}
	for _, c := range attacks {
		add(c.story, c.rules...)
	}
	for _, name := range slices.Sorted(maps.Keys(brokenAKs)) {
		m := newMachine(t)
		brokenAKs[name](&m.ak)
		e := m.enrolment()
		e.AK = tpm2.Marshal(m.ak)
		out = append(out, vector{Name: "an attestation key that is " + name, Rules: []attest.Rule{attest.RuleEnrolment}, Enrolment: encoded(t, e), Steps: []step{}})
	}
	for i := range out {
		out[i].Sealed, out[i].Counted, _ = out[i].replay(t)
	}
	return out
}

func encoded(t *testing.T, e attest.Enrolment) []byte {
	t.Helper()
	if e.EKCertificates == nil {
		e.EKCertificates = [][]byte{}
	}
	if e.EK == nil {
		e.EK = []byte{}
	}
	b, err := record.MarshalCanonical(&e)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// replay checks the vector's seals and returns how far the log is anchored, and what is violated.
func (v *vector) replay(t *testing.T) (sealed, counted uint64, rules []attest.Rule) {
	t.Helper()
	var e attest.Enrolment
	if err := record.UnmarshalCanonical(v.Enrolment, &e); err != nil {
		t.Fatal(err)
	}
	log := &machine{size: v.Size}
	r, err := attest.NewReplay(e, origin, log.head)
	if err != nil {
		return 0, 0, []attest.Rule{attest.RuleEnrolment}
	}
	found := map[attest.Rule]bool{}
	for _, s := range v.Steps {
		next, body := r.Next, s.Seal
		if s.Recovery != "" {
			next, body = r.Recover, s.Recovery
		}
		for _, f := range next([]byte(body)) {
			found[f.Rule] = true
		}
	}
	sealed, _ = r.Sealed()
	return sealed, r.Counted(), slices.Sorted(maps.Keys(found))
}

// The vectors are what these tests make, they hold, and each rule has one that violates it alone.
func TestVectors(t *testing.T) {
	t.Parallel()
	var made bytes.Buffer
	for _, v := range vectors(t) {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		made.Write(append(b, '\n'))
	}
	if *update {
		if err := os.WriteFile(vectorFile, made.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	stored, err := os.ReadFile(vectorFile)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(stored, made.Bytes()) {
		t.Errorf("%s is not what these tests make: run go test ./attest -run Vectors -update and review the difference", vectorFile)
	}
	alone, names := map[attest.Rule]bool{}, map[string]bool{}
	for line := range bytes.Lines(stored) {
		var v vector
		d := json.NewDecoder(bytes.NewReader(line))
		d.DisallowUnknownFields()
		if err := d.Decode(&v); err != nil {
			t.Fatal(err)
		}
		sealed, counted, rules := v.replay(t)
		if !slices.Equal(rules, v.Rules) || sealed != v.Sealed || counted != v.Counted {
			t.Errorf("%s: violates %v, sealed %d, counted %d; want %v, %d, %d", v.Name, rules, sealed, counted, v.Rules, v.Sealed, v.Counted)
		}
		if len(v.Rules) == 1 {
			alone[v.Rules[0]] = true
		}
		names[v.Name] = true
	}
	for rule := range attest.Rules {
		if !alone[rule] {
			t.Errorf("no vector violates %s alone", rule)
		}
	}
	if len(names) < 70 {
		t.Errorf("%d vectors", len(names))
	}
}
