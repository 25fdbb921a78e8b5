package record

import (
	"bytes"
	"testing"
)

func TestBlobParts(t *testing.T) {
	t.Parallel()
	for _, size := range []int{0, 1, MaxBlobPart - 1, MaxBlobPart, MaxBlobPart + 1, 5*MaxBlobPart + 17} {
		data := bytes.Repeat([]byte("evidence"), size/8+1)[:size]
		parts, err := SplitBlob("bootlog", data)
		if err != nil {
			t.Fatal(err)
		}
		for i := range parts {
			body, err := MarshalCanonical(parts[i])
			if err != nil {
				t.Fatal(err)
			}
			e := Entry{Index: 1, Kind: KindBlob, Log: testOrigin, Prev: Hash{1}, Stamp: testStamp(), Body: body}
			if _, err := e.Append(nil); err != nil {
				t.Fatalf("part %d of %d bytes does not fit an entry: %v", i, size, err)
			}
			got, err := ParseBlob(body)
			if err != nil {
				t.Fatal(err)
			}
			parts[i] = *got
		}
		got, err := JoinBlob(parts)
		if err != nil || !bytes.Equal(got, data) {
			t.Fatalf("%d bytes come back as %d: %v", size, len(got), err)
		}
	}
}

func TestJoinBlobRefuses(t *testing.T) {
	t.Parallel()
	split := func() []Blob {
		parts, err := SplitBlob("bootlog", bytes.Repeat([]byte("x"), 3*MaxBlobPart-5))
		if err != nil {
			t.Fatal(err)
		}
		return parts
	}
	other, err := SplitBlob("bootlog", bytes.Repeat([]byte("y"), 3*MaxBlobPart-5))
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func([]Blob) []Blob{
		"none":         func(p []Blob) []Blob { return nil },
		"last missing": func(p []Blob) []Blob { return p[:2] },
		"swapped":      func(p []Blob) []Blob { p[0], p[1] = p[1], p[0]; return p },
		"twice":        func(p []Blob) []Blob { p[1] = p[0]; return p },
		"of another":   func(p []Blob) []Blob { p[1] = other[1]; return p },
		"altered":      func(p []Blob) []Blob { p[1].Data = bytes.Repeat([]byte("z"), MaxBlobPart); return p },
		"other name":   func(p []Blob) []Blob { p[1].Name = "imalog"; return p },
		"shorter":      func(p []Blob) []Blob { p[2].Data = p[2].Data[1:]; return p },
	} {
		if _, err := JoinBlob(change(split())); err == nil {
			t.Errorf("%s: joined", name)
		}
	}
	if _, err := SplitBlob("x", make([]byte, MaxBlobPart*MaxBlobParts+1)); err == nil {
		t.Error("a blob over the limit was split")
	}
}

func FuzzBodies(f *testing.F) {
	for _, name := range []string{"system.json", "access.json", "blob.json"} {
		for _, s := range seeds(f, name) {
			f.Add(s)
		}
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		for _, name := range []string{"system", "access", "blob"} {
			if again, err := parsers[name](src, nil); err == nil && again != string(src) {
				t.Fatalf("%s: %q encodes as %q", name, src, again)
			}
		}
	})
}
