package ceremony_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"bulla/ceremony"
	"bulla/record"
)

const vectorDir = "../testdata/vectors/ceremony"

// Each run makes other keys: what is committed are public keys and signatures by keys that nobody has any more.
var update = flag.Bool("update", false, "make "+vectorDir+" and testdata anew")

// vectorFile is a file of testdata/vectors/ceremony; the README there describes it.
type vectorFile struct {
	Format string              `json:"format"`
	About  string              `json:"about"`
	Logs   map[string][]string `json:"logs,omitempty"`
	Refuse []vector            `json:"refuse"`
	Accept []vector            `json:"accept"`
}

type vector struct {
	Name    string        `json:"name"`
	Reason  string        `json:"reason"`
	Rule    ceremony.Rule `json:"rule,omitempty"`
	Input   string        `json:"input,omitempty"`
	Log     string        `json:"log,omitempty"`   // log: which one it begins with
	First   int           `json:"first,omitempty"` // log: so many entries of it
	Entries []string      `json:"entries,omitempty"`
	State   string        `json:"state,omitempty"` // log: hex of the state's hash after them
}

// encoded returns what v encodes to: a parser that takes anything else is a bug.
func encoded(v any, err error) ([]byte, error) {
	if err != nil {
		return nil, err
	}
	return record.MarshalCanonical(v)
}

// parsers read one format each, and return what they read as it encodes.
var parsers = map[string]func(in []byte) ([]byte, error){
	"proposal": func(in []byte) ([]byte, error) { return encoded(ceremony.ParseProposal(in)) },
	"proposed": func(in []byte) ([]byte, error) {
		p, document, err := ceremony.ParseProposed(in)
		if err != nil {
			return nil, err
		}
		if again, err := record.MarshalCanonical(document); err != nil || !bytes.Equal(again, p.Document) {
			return nil, errors.New("the document does not encode to what it was read from")
		}
		return record.MarshalCanonical(p)
	},
	"approval":  func(in []byte) ([]byte, error) { return encoded(ceremony.ParseApproval(in)) },
	"enactment": func(in []byte) ([]byte, error) { return encoded(ceremony.ParseEnactment(in)) },
	"genesis":   func(in []byte) ([]byte, error) { return encoded(ceremony.ParseGenesis(in)) },
	"armor": func(in []byte) ([]byte, error) {
		s, err := ceremony.Armor(in)
		return []byte(s), err
	},
}

func TestVectors(t *testing.T) {
	if *update { // before the tests that read them
		makeVectors(t)
		makeMinutes(t)
	}
	t.Parallel()
	paths, err := filepath.Glob(filepath.Join(vectorDir, "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, path := range paths {
		file := readVectors(t, path)
		seen[file.Format] = true
		t.Run(filepath.Base(path), func(t *testing.T) {
			t.Parallel()
			names := map[string]bool{}
			for _, v := range append(file.Refuse, file.Accept...) {
				if v.Name == "" || v.Reason == "" || names[v.Name] {
					t.Errorf("vector %q has no reason, or its name is taken", v.Name)
				}
				names[v.Name] = true
			}
			if len(file.Refuse) == 0 || len(file.Accept) == 0 {
				t.Error("there is nothing to refuse, or nothing to accept")
			}
			for _, v := range file.Refuse {
				if err := file.judge(t, v); err == nil {
					t.Errorf("%s: accepted", v.Name)
				} else if v.Rule != "" {
					refusedBy(t, err, v.Rule)
				}
			}
			for _, v := range file.Accept {
				if err := file.judge(t, v); err != nil {
					t.Errorf("%s: %v", v.Name, err)
				}
			}
		})
	}
	for _, format := range []string{"proposal", "proposed", "approval", "enactment", "genesis", "armor", "log"} {
		if !seen[format] {
			t.Errorf("format %s has no vectors", format)
		}
	}
}

func readVectors(t testing.TB, path string) *vectorFile {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	file := new(vectorFile)
	if err := d.Decode(file); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return file
}

func (f *vectorFile) judge(t *testing.T, v vector) error {
	t.Helper()
	if f.Format == "log" {
		return f.judgeLog(t, v)
	}
	out, err := parsers[f.Format]([]byte(v.Input))
	if err == nil && string(out) != v.Input {
		return errors.New("it encodes to something else")
	}
	return err
}

// judgeLog folds a log; all entries but the last must be permitted.
func (f *vectorFile) judgeLog(t *testing.T, v vector) error {
	t.Helper()
	r := newReader(t)
	entries := append(f.Logs[v.Log][:v.First:v.First], v.Entries...)
	for i, raw := range entries {
		err := r.read([]byte(raw))
		switch {
		case err != nil && i < len(entries)-1:
			t.Errorf("%s: entry %d should be permitted: %v", v.Name, i, err)
			return nil
		case err != nil:
			return err
		}
	}
	if h := r.state.Hash(); v.State != "" && v.State != hex.EncodeToString(h[:]) {
		return errors.New("the state's hash is another")
	}
	return nil
}

// newReader is a rig that takes entries as they are.
func newReader(t testing.TB) *rig {
	t.Helper()
	tree, err := record.NewTree(0, nil)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, tree: tree, roots: []record.Hash{tree.Root()}}
	r.state.Root = r.root
	return r
}

func (r *rig) read(raw []byte) error {
	e, err := record.ParseEntry(raw)
	if err != nil {
		return err
	}
	leaf := record.LeafHash(raw)
	next, err := r.state.Apply(e, leaf)
	if err != nil {
		return err
	}
	r.state = next
	r.tree.Append(nil, leaf)
	r.entries, r.roots = append(r.entries, raw), append(r.roots, r.tree.Root())
	return nil
}

func stringsOf(entries [][]byte) (out []string) {
	for _, e := range entries {
		out = append(out, string(e))
	}
	return out
}

// makeVectors writes the vectors anew, from the tables of the tests.
func makeVectors(t *testing.T) {
	t.Helper()
	live := live(t)
	writeVectors(t, "log.json", logVectors(t, live))
	for kind, format := range map[record.Kind]string{record.KindProposal: "proposed", record.KindApproval: "approval", record.KindEnactment: "enactment", record.KindGenesis: "genesis"} {
		f := &vectorFile{Format: format, About: "the body of an entry of kind " + string(kind)}
		for _, raw := range live.entries {
			e, err := record.ParseEntry(raw)
			if err != nil {
				t.Fatal(err)
			}
			if e.Kind == kind && len(f.Accept) < 24 {
				f.Accept = append(f.Accept, vector{Name: "entry " + string(rune('A'+len(f.Accept))), Reason: "of the log life", Input: string(e.Body)})
			}
		}
		for _, m := range bodyFaults[format] {
			f.Refuse = append(f.Refuse, vector{Name: m.name, Reason: m.reason, Rule: m.rule, Input: m.in(t, f.Accept[0].Input)})
		}
		writeVectors(t, format+".json", f)
	}
	f := &vectorFile{Format: "proposal", About: "a document that officers sign"}
	for n := uint64(1); live.numbers[n] != nil; n++ {
		p, err := ceremony.ParseProposal(live.numbers[n])
		if err != nil {
			t.Fatal(err)
		}
		f.Accept = append(f.Accept, vector{Name: string(rune('A'+n-1)) + " " + p.Action, Reason: "of the log life", Input: string(live.numbers[n])})
	}
	for _, m := range documentFaults {
		f.Refuse = append(f.Refuse, vector{Name: m.name, Reason: m.reason, Rule: m.rule, Input: m.in(t, f.Accept[0].Input)})
	}
	for _, c := range contentFaults {
		in := string(altered(t, json.RawMessage(f.Accept[0].Input), func(m map[string]any) { m["action"], m["content"] = c.action, json.RawMessage(c.content) }))
		f.Refuse = append(f.Refuse, vector{Name: c.action + ": " + c.name, Reason: "no state permits it", Rule: ceremony.RuleDocument, Input: in})
	}
	writeVectors(t, "proposal.json", f)

	armored := live.sign(live.numbers[1], ceremony.Approve, "carol")
	f = &vectorFile{Format: "armor", About: "a signature as the log takes it (openssh PROTOCOL.sshsig)", Accept: []vector{
		{Name: "Ed25519", Reason: "as ssh-keygen writes it", Input: live.sign(live.numbers[1], ceremony.Approve, "alice")},
		{Name: "ECDSA", Reason: "as ssh-keygen writes it", Input: live.sign(live.numbers[1], ceremony.Approve, "bob")},
		{Name: "FIDO2", Reason: "flags and counter follow the signature", Input: armored},
	}}
	for _, m := range armorFaults {
		f.Refuse = append(f.Refuse, vector{Name: m.name, Reason: m.reason, Rule: m.rule, Input: m.in(t, armored)})
	}
	writeVectors(t, "armor.json", f)
}

func logVectors(t *testing.T, live *rig) *vectorFile {
	t.Helper()
	base := proposedOnce(t)
	f := &vectorFile{Format: "log", About: "entries in order; all but the last are permitted, and the last of what is to be refused is not",
		Logs: map[string][]string{"life": stringsOf(live.entries), "proposed": stringsOf(base.entries)}}
	for _, a := range attacks {
		r := base.fork(t)
		kind, body := a.make(r)
		_, last := r.make(kind, body)
		f.Refuse = append(f.Refuse, vector{Name: a.name, Reason: a.reason, Rule: a.rule, Log: "proposed", First: len(base.entries),
			Entries: append(stringsOf(r.entries[len(base.entries):]), string(last))})
	}
	h := live.state.Hash()
	f.Accept = []vector{{Name: "life", Reason: "every action once, and proposals that came to nothing", Log: "life", First: len(live.entries), State: hex.EncodeToString(h[:])}}
	for i, raw := range live.entries {
		if e, err := record.ParseEntry(raw); err == nil && e.Kind == record.KindEnactment && i < len(live.entries)-1 {
			r := newReader(t)
			for _, raw := range live.entries[:i+1] {
				if err := r.read(raw); err != nil {
					t.Fatal(err)
				}
			}
			h := r.state.Hash()
			f.Accept = append(f.Accept, vector{Name: "life until entry " + string(record.AppendTime(nil, e.Stamp.Sys)), Reason: "an enactment", Log: "life", First: i + 1, State: hex.EncodeToString(h[:])})
		}
	}
	return f
}

func writeVectors(t *testing.T, name string, f *vectorFile) {
	t.Helper()
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", " ")
	if err := enc.Encode(f); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(vectorDir, name), b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

// fault makes of a good input a bad one.
type fault struct {
	name, reason string
	rule         ceremony.Rule
	in           func(t *testing.T, good string) string
}

func replace(name, reason string, rule ceremony.Rule, old, put string) fault {
	return fault{name, reason, rule, func(t *testing.T, good string) string {
		t.Helper()
		if !strings.Contains(good, old) {
			t.Fatalf("%s: there is no %s in %s", name, old, good)
		}
		return strings.Replace(good, old, put, 1)
	}}
}

func member(name, reason string, rule ceremony.Rule, key string, value any) fault {
	return fault{name, reason, rule, func(t *testing.T, good string) string {
		t.Helper()
		return string(altered(t, json.RawMessage(good), func(m map[string]any) {
			if m[key] = value; value == nil {
				delete(m, key)
			}
		}))
	}}
}

func number(s string) any { return json.Number(s) }

const doc = ceremony.RuleDocument

var documentFaults = []fault{
	replace("white space", "canonical JSON has none", doc, ",", ", "),
	replace("a member twice", "the second could be shown and the first be used", doc, `"action"`, `"action":"key.retire","action"`),
	member("an unknown member", "it would be signed and not be shown", doc, "comment", "x"),
	member("a member in other case", "names are exact", doc, "Action", "policy.set"),
	member("no version", "required", doc, "v", nil),
	member("another version", "there is one", doc, "v", number("2")),
	member("no number", "required", doc, "number", nil),
	member("number 0", "that is the genesis", doc, "number", number("0")),
	replace("a number too large", "numbers are exact up to 2^53-1", doc, `"number":1`, `"number":9007199254740992`),
	member("a time without nanoseconds", "times have one spelling", doc, "expires", "2026-11-23T02:00:00Z"),
	member("a time elsewhere", "times are UTC", doc, "expires", "2026-11-23T02:00:00.000000000+01:00"),
	member("a day that is none", "the month has 30", doc, "expires", "2026-11-31T02:00:00.000000000Z"),
	member("no head", "required", doc, "head", nil),
	member("the head of nothing", "a log has a genesis", doc, "head", map[string]any{"root": "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=", "size": number("0")}),
	member("a root too short", "it is a SHA-256", doc, "head", map[string]any{"root": "47DEQpj8HBSa", "size": number("1")}),
	member("a log's name with a space", "it could be shown as another", doc, "log", "log.example/audit "),
	member("no proposer", "required", doc, "proposer", nil),
	member("a proposer's name with a line end", "it could be shown as another", doc, "proposer", "alice\n"),
	member("an unknown action", "named exactly", doc, "action", "policy.set "),
	member("an action of the genesis", "that is no proposal", doc, "action", "genesis"),
	member("no content", "required", doc, "content", nil),
	member("a content that is no object", "required", doc, "content", []any{}),
	member("a content of another action", "members are named exactly", doc, "content", map[string]any{"spki": "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="}),
	member("too large", "bounded", doc, "proposer", strings.Repeat("a", ceremony.MaxDocument)),
}

var contentFaults = []struct{ name, action, content string }{
	{"no officers", "officers.set", `{"officers":[],"thresholds":{}}`},
	{"one officer", "officers.set", `{"officers":[{"key":"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f","name":"alice"}],"proposer_counts":true,"thresholds":{"default":2}}`},
	{"a threshold of one", "officers.set", `{"officers":[{"key":"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f","name":"alice"}],"proposer_counts":true,"thresholds":{"default":1}}`},
	{"a false member", "officers.set", `{"officers":[],"proposer_counts":false,"thresholds":{}}`},
	{"an unknown purpose", "key.generate", `{"algorithm":"ecdsa-p256","purpose":"tls"}`},
	{"an unknown algorithm", "key.generate", `{"algorithm":"rsa-2048","purpose":"log"}`},
	{"an algorithm of another purpose", "key.generate", `{"algorithm":"ed25519","purpose":"log"}`},
	{"an empty label", "key.generate", `{"algorithm":"ecdsa-p256","label":"","purpose":"log"}`},
	{"a label too long", "key.generate", `{"algorithm":"ecdsa-p256","label":"` + strings.Repeat("a", 1025) + `","purpose":"log"}`},
	{"nothing said of the old key", "key.rotate", `{"purpose":"log","spki":"47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="}`},
	{"something else said of the old key", "key.rotate", `{"old":"retired","purpose":"log","spki":"47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="}`},
	{"a hash too short", "key.rotate", `{"old":"signs","purpose":"log","spki":"47DEQpj8HBSa"}`},
	{"nothing named", "key.retire", `{}`},
	{"a name too short", "tpm.enrol", `{"ak_name":"AAs=","ek":"47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=","pcr":13}`},
	{"a PCR that any program can reset", "tpm.enrol", `{"ak_name":"AAu5lUIa38awzz/GKYLr1thYTPf4F61SNnHw+yCavri9vA==","ek":"47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=","pcr":16}`},
	{"no PCR", "pcr.approve", `{"pcrs":[]}`},
	{"a PCR twice", "pcr.approve", `{"pcrs":[{"index":7,"value":"47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="},{"index":7,"value":"47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="}]}`},
	{"a PCR that is none", "pcr.approve", `{"pcrs":[{"index":24,"value":"47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="}]}`},
	{"no reason", "recovery.declare", `{"known":{"root":"47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=","size":5},"surviving":{"root":"47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=","size":4}}`},
	{"less known than survives", "recovery.declare", `{"known":{"root":"47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=","size":3},"reason":"x","surviving":{"root":"47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=","size":4}}`},
	{"two roots at one size", "recovery.declare", `{"known":{"root":"ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=","size":4},"reason":"x","surviving":{"root":"47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=","size":4}}`},
	{"a successor without a name", "recovery.declare", `{"known":{"root":"47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=","size":4},"reason":"x","successor":"a b","surviving":{"root":"47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=","size":4}}`},
}

var bodyFaults = map[string][]fault{
	"proposed": {
		member("an unknown member", "named exactly", doc, "approvals", []any{}),
		member("no signature", "who proposes signs", doc, "signature", nil),
		member("an empty signature", "who proposes signs", ceremony.RuleSignature, "signature", ""),
		member("the document as text", "it is an object", doc, "document", "{}"),
		member("no document", "required", doc, "document", nil),
		replace("a signature with other line ends", "one spelling", ceremony.RuleSignature, `SIGNATURE-----\n`, `SIGNATURE-----\r\n`),
	},
	"approval": {
		member("an unknown member", "named exactly", doc, "key", "x"),
		member("an unknown decision", "named exactly", doc, "decision", "abstain"),
		member("no decision", "required", doc, "decision", nil),
		member("no number", "required", doc, "number", nil),
		member("a negative number", "numbers count from 0", doc, "number", number("-1")),
		member("a hash too long", "it is a SHA-256", doc, "document", "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFUA"),
		member("an officer's name with a space", "names have none", doc, "officer", "alice "),
		member("a signature too long", "bounded", ceremony.RuleSignature, "signature", strings.Repeat("a", ceremony.MaxSignature+1)),
		member("something else than a signature", "armored", ceremony.RuleSignature, "signature", "-----BEGIN SSH SIGNATURE-----\nAAAA\n-----END SSH SIGNATURE-----\n"),
	},
	"enactment": {
		member("an unknown member", "named exactly", doc, "note", "x"),
		member("number 0", "the genesis is not enacted", doc, "number", number("0")),
		member("an outcome that is no object", "it is one", doc, "outcome", []any{}),
		member("an empty failure", "absent means absent", doc, "failed", ""),
		member("a failure too long", "bounded", doc, "failed", strings.Repeat("a", ceremony.MaxText+1)),
		fault{"an outcome of a failure", "what failed has none", doc, func(t *testing.T, good string) string {
			return string(altered(t, json.RawMessage(good), func(m map[string]any) { m["failed"], m["outcome"] = "x", map[string]any{} }))
		}},
		member("no steps", "absent means absent", doc, "steps", []any{}),
		member("a step without a time", "required", doc, "steps", []any{map[string]any{"did": "x"}}),
		member("a step that did nothing", "required", doc, "steps", []any{map[string]any{"did": "", "time": "2026-11-23T02:00:00.000000000Z"}}),
		member("a step with a long answer", "bounded", doc, "steps", []any{map[string]any{"answer": strings.Repeat("a", ceremony.MaxText+1), "did": "x", "time": "2026-11-23T02:00:00.000000000Z"}}),
		fault{"too many steps", "bounded", doc, func(t *testing.T, good string) string {
			return string(altered(t, json.RawMessage(good), func(m map[string]any) {
				var steps []any
				for range ceremony.MaxSteps + 1 {
					steps = append(steps, map[string]any{"did": "x", "time": "2026-11-23T02:00:00.000000000Z"})
				}
				m["steps"] = steps
			}))
		}},
	},
	"genesis": {
		member("one officer may act alone", "at least two approve", "", "thresholds", map[string]any{"default": number("1")}),
		member("everyone may be locked out", "one officer may be lost", "", "thresholds", map[string]any{"default": number("3")}),
		member("everyone may be locked out of one action", "one officer may be lost", "", "thresholds", map[string]any{"default": number("2"), "key.rotate": number("3")}),
		member("a threshold of no action", "named exactly", "", "thresholds", map[string]any{"default": number("2"), "key.delete": number("2")}),
		member("no threshold", "required with officers", "", "thresholds", nil),
		member("no officers", "thresholds need them", "", "officers", nil),
		member("the proposer does not count among three", "one officer may be lost, one proposes", "", "proposer_counts", nil),
		member("the proposer does not count, said twice", "absent means absent", "", "proposer_counts", false),
		replace("a key that SSH calls otherwise", "one spelling", "", "ssh-ed25519 ", "ssh-ed25519  "),
		replace("touch of a key that proves none", "only a FIDO2 key proves it", "", `"name":"alice"`, `"name":"alice","touch":true`),
		replace("two officers of one name", "told apart whatever the case", "", `"name":"bob"`, `"name":"ALICE"`),
		replace("a producer who is an officer too", "separated", "", `{"name":"auditor","uids":[1001]`, `{"name":"officer","uids":[1000]`),
	},
}

var armorFaults = []fault{
	replace("other lines", "base64 comes in lines of 70", "", "\n-----END", "-----END"),
	replace("text before it", "nothing but the signature", "", "-----BEGIN", "hello\n-----BEGIN"),
	replace("text after it", "nothing but the signature", "", "END SSH SIGNATURE-----\n", "END SSH SIGNATURE-----\nhello\n"),
	replace("something else in armor", "named exactly", ceremony.RuleSignature, "BEGIN SSH SIGNATURE-----", "BEGIN PGP SIGNATURE-----"),
	replace("a header", "there are none", ceremony.RuleSignature, "BEGIN SSH SIGNATURE-----\n", "BEGIN SSH SIGNATURE-----\nVersion: 1\n\n"),
	replace("no end of line at the end", "one spelling", "", "END SSH SIGNATURE-----\n", "END SSH SIGNATURE-----"),
	replace("another magic", "SSHSIG", ceremony.RuleSignature, "U1NIU0lH", "U1NIU0lI"),
	replace("another version", "1", ceremony.RuleSignature, "U1NIU0lHAAAAAQ", "U1NIU0lHAAAAAg"),
}
