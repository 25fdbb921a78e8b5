package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"
	"time"

	"bulla/record"
)

var answers = []Answer{
	{ID: 1, Status: StatusOK, Checkpoint: "a.example/log\n2\nKRMF=\n\n— a.example/log x\n", Items: []Item{{Index: 0, Entry: []byte(`{"v":1}`)}, {Index: record.MaxInt, Entry: []byte{0}, Proof: []record.Hash{{1}, {2}}}}},
	{ID: 2, Status: StatusOK, Checkpoint: "x", Items: []Item{{Index: 7, Leaf: &record.Hash{9}}}, More: true},
	{ID: 3, Status: StatusRefused, Code: record.CodeInvalid, Message: "\"quoted\" \\ \x00\x1f\b\f\n\r\t é € 😀 \u2028 <>&", Field: "events[3].type"},
	{ID: 4, Status: StatusRefused, Code: record.CodeBusy, Message: "full", RetryAfterMS: 100},
	{ID: record.MaxInt, Status: StatusUnknown, Message: "disk"},
}

// What Append writes is what encoding/json reads, and what parseAnswer reads is what encoding/json wrote.
func TestAnswers(t *testing.T) {
	t.Parallel()
	for _, a := range answers {
		var std Answer
		if err := json.Unmarshal(a.Append(nil), &std); err != nil || !reflect.DeepEqual(std, a) {
			t.Errorf("%s: %v", a.Append(nil), err)
		}
		b, err := json.Marshal(a)
		if err != nil {
			t.Fatal(err)
		}
		for _, in := range [][]byte{a.Append(nil), b, bytes.Replace(b, []byte(`{"id"`), []byte(` { "later" : [ {"x":"]}"}, null, 1.5e3 ] , "id" `), 1)} {
			if got, err := parseAnswer(in); err != nil || !reflect.DeepEqual(*got, a) {
				t.Errorf("%s: %+v, %v", in, got, err)
			}
		}
	}
}

func TestBrokenAnswers(t *testing.T) {
	t.Parallel()
	for _, in := range []string{
		``, `{`, `[]`, `{"id":-1}`, `{"id":1}{}`, `{"id":1,"status":7}`, `{"items":[{"index":1.5}]}`, `{"items":[{"entry":"*"}]}`,
		`{"items":[{"leaf":"AAAA"}]}`, `{"items":[{"proof":["KRMFcAPOpcXjw5JQ3YcB0kUEDw2NsfoY6CamxwArX/==="]}]}`, `{"items":{}}`,
		`{"items":[` + strings.Repeat(`{"index":1},`, MaxEvents) + `{"index":1}]}`, `{"x":` + strings.Repeat("[", 10_000) + `}`,
	} {
		if a, err := parseAnswer([]byte(in)); err == nil {
			t.Errorf("%.60s is read as %+v", in, a)
		}
	}
}

func TestItemSize(t *testing.T) {
	t.Parallel()
	for _, it := range []Item{
		{Index: record.MaxInt, Leaf: &record.Hash{}}, {Index: record.MaxInt, Entry: make([]byte, 1)}, {Index: record.MaxInt, Entry: make([]byte, record.MaxEntry), Proof: make([]record.Hash, record.MaxProof)},
	} {
		if n := len(it.append(nil)); n > it.Size() || n < it.Size()-192 {
			t.Errorf("%d bytes, said to be %d", n, it.Size())
		}
	}
}

// A receipt is written in its one encoding.
func TestAppendReceipt(t *testing.T) {
	t.Parallel()
	for _, a := range answers[:1] {
		for i := range a.Items {
			it := &a.Items[i]
			want, err := record.Receipt{Checkpoint: []byte(a.Checkpoint), Entry: it.Entry, Index: it.Index, Proof: it.Proof}.MarshalJSON()
			if err != nil {
				t.Fatal(err)
			}
			got := AppendReceipt(nil, []byte(a.Checkpoint), it)
			if it.Proof != nil && !bytes.Equal(got, want) {
				t.Errorf("%s, not %s", got, want)
			}
			if _, err := record.ParseReceipt(got); err != nil {
				t.Errorf("%s: %v", got, err)
			}
		}
	}
}

// AppendString and the reference agree on every string, once it is UTF-8.
func FuzzAppendString(f *testing.F) {
	for _, a := range answers {
		f.Add(a.Message + a.Checkpoint)
	}
	f.Add("\xff\xfe")
	f.Fuzz(func(t *testing.T, s string) {
		got := AppendString(nil, s)
		if err := record.CheckCanonical(got, 1); err != nil {
			t.Fatalf("%q: %s: %v", s, got, err)
		}
		var back string
		if err := json.Unmarshal(got, &back); err != nil || back != strings.ToValidUTF8(s, "\uFFFD") {
			t.Fatalf("%q came back as %q: %v", s, back, err)
		}
	})
}

// What parseAnswer reads, encoding/json reads in the same way, and it survives being written and read again.
func FuzzParseAnswer(f *testing.F) {
	for _, a := range answers {
		f.Add(a.Append(nil))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := parseAnswer(b)
		if err != nil {
			return
		}
		again, err := parseAnswer(a.Append(nil))
		if err != nil {
			t.Fatalf("%q: %v", b, err)
		}
		for _, x := range []*Answer{a, again} { // what is absent and what is empty is the same
			for i := range x.Items {
				if len(x.Items[i].Entry) == 0 {
					x.Items[i].Entry = nil
				}
				if len(x.Items[i].Proof) == 0 {
					x.Items[i].Proof = nil
				}
			}
		}
		a.Status, a.Message, a.Field = strings.ToValidUTF8(a.Status, "\uFFFD"), strings.ToValidUTF8(a.Message, "\uFFFD"), strings.ToValidUTF8(a.Field, "\uFFFD")
		a.Checkpoint, a.Code = strings.ToValidUTF8(a.Checkpoint, "\uFFFD"), record.Code(strings.ToValidUTF8(string(a.Code), "\uFFFD"))
		if !reflect.DeepEqual(a, again) {
			t.Fatalf("%q: %+v, again %+v", b, a, again)
		}
	})
}

func TestHello(t *testing.T) {
	t.Parallel()
	b, err := Hello{V: 1, MaxFrame: 9 << 20, Logs: []string{"a"}}.Frame()
	if err != nil {
		t.Fatal(err)
	}
	h, err := ReadHello(bytes.NewReader(b))
	if err != nil || !reflect.DeepEqual(h, Hello{V: 1, MaxFrame: MaxFrame, Logs: []string{"a"}}) {
		t.Errorf("%+v, %v", h, err)
	}
	for in, field := range map[string]string{`{}`: "v", `{"v":2,"max_frame":4194304}`: "v", `{"v":1}`: "max_frame", `{"v":1,"max_frame":1048575}`: "max_frame", `[]`: "", `{"v":"1"}`: ""} {
		var f *record.FieldError
		if _, err := parseHello([]byte(in)); !errors.As(err, &f) || f.Field != field {
			t.Errorf("%s: %v", in, err)
		}
	}
	var r *Refusal
	if _, err := parseHello([]byte(`{"id":0,"status":"refused","code":"busy","retry_after_ms":100}`)); !errors.As(err, &r) || r.Code != record.CodeBusy || r.RetryAfter != 100*time.Millisecond {
		t.Errorf("a refusal instead of a hello: %v", err)
	}
	if _, err := parseHello([]byte(`{"v":1,"max_frame":4194304,"later":{}}`)); err != nil {
		t.Errorf("a hello of a later minor version: %v", err)
	}
}

func TestFrames(t *testing.T) {
	t.Parallel()
	b := EndFrame(append(BeginFrame(nil), "{}"...))
	if string(b) != "\x00\x00\x00\x02{}" {
		t.Errorf("%q", b)
	}
	for in, want := range map[string]error{"": io.EOF, "\x00\x00": io.ErrUnexpectedEOF, "\x00\x00\x00\x03{}": io.ErrUnexpectedEOF} {
		if _, err := readFrame(strings.NewReader(in), 10, nil); !errors.Is(err, want) {
			t.Errorf("%q: %v", in, err)
		}
	}
	for in, large := range map[string]bool{"\x00\x00\x00\x00": false, "\x00\x00\x00\x0b": true, "\xff\xff\xff\xff": true} {
		var f *record.FieldError
		if _, err := ReadLength(strings.NewReader(in), 10); !errors.As(err, &f) || f.TooLarge != large {
			t.Errorf("%q: %v", in, err)
		}
	}
}

func TestSockets(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"/run/bulla", "/run/bulla/sign.sock", "/run/bulla/http.sock", "/run/bulla/"} {
		if sign, web := Sockets(path); sign != "/run/bulla/sign.sock" || web != "/run/bulla/http.sock" {
			t.Errorf("%s: %s, %s", path, sign, web)
		}
	}
}
