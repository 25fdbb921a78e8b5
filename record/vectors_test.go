package record

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"
)

const vectorDir = "../testdata/vectors/record"

// vectorFile is a file of testdata/vectors/record; the README there describes it.
type vectorFile struct {
	Format string
	About  string
	VKeys  []string
	Refuse []vector
	Accept []vector
}

type vector struct {
	Name   string
	Reason string
	Input  input
	Output *string // accept: what it means, in the form the format's row in the README names
	Field  *string // refuse: path of the member that is to blame
}

// input is text in parts: strings, {"text":S,"times":N} and {"hex":S}.
type input []byte

func (in *input) UnmarshalJSON(b []byte) error {
	var parts []json.RawMessage
	if b[0] == '"' {
		parts = []json.RawMessage{b}
	} else if err := json.Unmarshal(b, &parts); err != nil {
		return err
	}
	*in = input{}
	for _, p := range parts {
		if p[0] == '"' {
			var s string
			if err := json.Unmarshal(p, &s); err != nil {
				return err
			}
			*in = append(*in, s...)
			continue
		}
		var part struct {
			Text  string
			Times int
			Hex   string
		}
		if err := json.Unmarshal(p, &part); err != nil {
			return err
		}
		*in = append(*in, strings.Repeat(part.Text, part.Times)...)
		raw, err := hex.DecodeString(part.Hex)
		if err != nil {
			return err
		}
		*in = append(*in, raw...)
	}
	return nil
}

// A format reads an input and returns what it means, which is the input itself where there is one encoding only.
type format func(in []byte, vs []note.Verifier) (string, error)

var parsers = map[string]format{
	"canonical": func(in []byte, _ []note.Verifier) (string, error) {
		out, err := Canonicalize(in, MaxDepth)
		return string(out), err
	},
	"event": func(in []byte, _ []note.Verifier) (string, error) {
		body, key, err := CanonicalEvent(in)
		if err != nil {
			return "", err
		}
		e, err := ParseEvent(body)
		if err != nil {
			return "", err
		}
		if again, err := MarshalCanonical(e); err != nil || !bytes.Equal(again, body) || e.Key() != key {
			return "", errors.New("the event does not encode to what it was read from")
		}
		return string(body), nil
	},
	"entry": func(in []byte, _ []note.Verifier) (string, error) {
		e, err := ParseEntry(in)
		if err != nil {
			return "", err
		}
		if again, err := e.Append(nil); err != nil || !bytes.Equal(again, in) {
			return "", errors.New("the entry does not encode to what it was read from")
		}
		return hex.EncodeToString(hashBytes(LeafHash(in))), nil
	},
	"system": body(ParseSystem), "access": body(ParseAccess), "blob": body(ParseBlob),
	"token": func(in []byte, _ []note.Verifier) (string, error) {
		v, err := ParseToken(in)
		if err != nil {
			return "", err
		}
		again, err := v.Encode()
		return string(again), err
	},
	"vkey": func(in []byte, _ []note.Verifier) (string, error) {
		v, err := NewVerifier(string(in))
		if err != nil {
			return "", err
		}
		return v.Name(), nil
	},
	"checkpoint": func(in []byte, vs []note.Verifier) (string, error) {
		c, n, err := OpenCheckpoint(in, vs...)
		if err != nil {
			return "", err
		}
		if c.Text() != n.Text {
			return "", errors.New("the checkpoint does not encode to what it was read from")
		}
		return c.Text(), nil
	},
	"receipt": func(in []byte, vs []note.Verifier) (string, error) {
		r, err := ParseReceipt(in)
		if err != nil {
			return "", err
		}
		if again, err := r.MarshalJSON(); err != nil || !bytes.Equal(again, in) {
			return "", errors.New("the receipt does not encode to what it was read from")
		}
		e, _, err := r.Verify(vs...)
		if err != nil {
			return "", err
		}
		return string(e.Body), nil
	},
	"tlog-proof": func(in []byte, vs []note.Verifier) (string, error) {
		index, proof, checkpoint, err := ParseTLogProof(in)
		if err != nil {
			return "", err
		}
		r := Receipt{Checkpoint: checkpoint, Index: index, Proof: proof}
		if !bytes.Equal(r.TLogProof(), in) {
			return "", errors.New("the proof does not encode to what it was read from")
		}
		c, _, err := OpenCheckpoint(checkpoint, vs...)
		return c.Text(), err
	},
	"bundle": func(in []byte, _ []note.Verifier) (string, error) {
		entries, err := ParseBundle(in)
		if err != nil {
			return "", err
		}
		var again []byte
		for _, e := range entries {
			again = AppendBundle(again, e)
		}
		if !bytes.Equal(again, in) {
			return "", errors.New("the bundle does not encode to what it was read from")
		}
		return string(bytes.Join(entries, []byte(","))), nil
	},
	// The leaves are the lines of the input; what it means is the roots of all trees over the first n of them.
	"tree": func(in []byte, _ []note.Verifier) (string, error) {
		tree, roots := new(Tree), []string{hex.EncodeToString(hashBytes(new(Tree).Root()))}
		for line := range strings.Lines(string(in)) {
			leaf, err := hex.DecodeString(strings.TrimSuffix(line, "\n"))
			if err != nil {
				return "", err
			}
			tree.Append(nil, LeafHash(leaf))
			roots = append(roots, hex.EncodeToString(hashBytes(tree.Root())))
		}
		return strings.Join(roots, "\n"), nil
	},
}

// body is the format of a strict parser of canonical JSON.
func body[T any](parse func([]byte) (*T, error)) format {
	return func(in []byte, _ []note.Verifier) (string, error) {
		v, err := parse(in)
		if err != nil {
			return "", err
		}
		again, err := MarshalCanonical(v)
		return string(again), err
	}
}

func hashBytes(h Hash) []byte { return h[:] }

func readVectors(t testing.TB, path string) *vectorFile {
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

func TestVectors(t *testing.T) {
	t.Parallel()
	paths, err := filepath.Glob(filepath.Join(vectorDir, "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]bool)
	for _, path := range paths {
		file := readVectors(t, path)
		read := parsers[file.Format]
		if read == nil {
			t.Fatalf("%s: unknown format %q", path, file.Format)
		}
		seen[file.Format] = true
		var vs []note.Verifier
		for _, vkey := range file.VKeys {
			v, err := NewVerifier(vkey)
			if err != nil {
				t.Fatalf("%s: %v", path, err)
			}
			vs = append(vs, v)
		}
		t.Run(filepath.Base(path), func(t *testing.T) {
			t.Parallel()
			if len(file.Refuse)+len(file.Accept) == 0 {
				t.Fatal("no vectors")
			}
			names := make(map[string]bool)
			for _, v := range file.Refuse {
				checkName(t, names, v)
				v.checkRefused(t, read, vs)
			}
			for _, v := range file.Accept {
				checkName(t, names, v)
				out, err := read(v.Input, vs)
				if err != nil {
					t.Errorf("%s: refused: %v", v.Name, err)
				} else if v.Output == nil && out != string(v.Input) || v.Output != nil && out != *v.Output {
					t.Errorf("%s: is read as %q", v.Name, out)
				}
			}
		})
	}
	for name := range parsers {
		if !seen[name] {
			t.Errorf("format %s has no vectors", name)
		}
	}
}

func checkName(t *testing.T, names map[string]bool, v vector) {
	if v.Name == "" || v.Reason == "" || names[v.Name] {
		t.Errorf("vector %q has no reason, or its name is taken", v.Name)
	}
	names[v.Name] = true
}

func (v vector) checkRefused(t *testing.T, read format, vs []note.Verifier) {
	out, err := read(v.Input, vs)
	if err == nil {
		t.Errorf("%s: accepted as %.200q", v.Name, out)
		return
	}
	if v.Field == nil {
		return
	}
	var fe *FieldError
	if !errors.As(err, &fe) || fe.Field != *v.Field {
		t.Errorf("%s: field should be %q: %v", v.Name, *v.Field, err)
	}
}

// seeds returns the inputs of a file of vectors, for fuzzing.
func seeds(t testing.TB, name string) (out [][]byte) {
	file := readVectors(t, filepath.Join(vectorDir, name))
	for _, v := range append(file.Refuse, file.Accept...) {
		if len(v.Input) < 100_000 {
			out = append(out, v.Input)
		}
	}
	if len(out) < 5 {
		t.Fatalf("%s: only %d seeds", name, len(out))
	}
	return out
}
