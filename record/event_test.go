package record

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"
)

// event300 is an ordinary event of about 300 bytes, already canonical.
var event300 = []byte(`{"actor":{"id":"1000","name":"alice","type":"user"},"data":{"attempt":3,"method":"publickey","text":"Accepted publickey for alice"},"id":"01JD3Z1W5V9T5Z8K6Q4X2Y7B3C","outcome":"success","source":"sshd","src":{"ip":"192.0.2.7","port":52144},"time":"2026-11-23T01:40:00.123456789Z","type":"auth.login"}`)

func TestCanonicalEventKeepsCanonicalBytes(t *testing.T) {
	body, key, err := CanonicalEvent(event300)
	if err != nil || &body[0] != &event300[0] || len(body) != len(event300) {
		t.Fatalf("not the same bytes: %v", err)
	}
	if key != (EventKey{ID: "01JD3Z1W5V9T5Z8K6Q4X2Y7B3C"}) {
		t.Errorf("key %+v", key)
	}
	without := bytes.Replace(event300, []byte(`"id":"01JD3Z1W5V9T5Z8K6Q4X2Y7B3C",`), nil, 1)
	if n := testing.AllocsPerRun(100, func() {
		if _, _, err := CanonicalEvent(without); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestIsIPv4AgreesWithNetip(t *testing.T) {
	t.Parallel()
	parts := []string{"", "0", "00", "1", "01", "10", "99", "100", "255", "256", "260", "1000", "a", "-1", " 1", "1:"}
	for _, a := range parts {
		for _, b := range parts {
			for _, s := range []string{a + "." + b + ".0.1", "1." + a + ".2." + b, a + "." + b, a + "." + b + ".3", a + "." + b + ".3.4.5", "." + a + "." + b + ".1", a + "." + b + ".1.2."} {
				addr, err := netip.ParseAddr(s)
				if want := err == nil && addr.Is4(); isIPv4([]byte(s)) != want {
					t.Errorf("isIPv4(%q) should be %v", s, want)
				}
			}
		}
	}
}

// The key must not point into the buffer that the event was received in.
func TestEventKeyIsACopy(t *testing.T) {
	t.Parallel()
	src := []byte(`{"id":"abc","stream":{"id":"def","n":7},"type":"a"}`)
	_, key, err := CanonicalEvent(src)
	if err != nil {
		t.Fatal(err)
	}
	clear(src)
	if want := (EventKey{ID: "abc", Stream: "def", N: 7, HasStream: true}); key != want {
		t.Errorf("key %+v", key)
	}
}

// A caller answers too_large rather than invalid, so the error must say which it is.
func TestTooLarge(t *testing.T) {
	t.Parallel()
	for _, n := range []int{MaxEvent, MaxEvent + 1, MaxEventSource, MaxEventSource + 1, 4 << 20} {
		for name, src := range map[string]string{
			"text":  `{"data":{"a":"` + strings.Repeat("x", n-23) + `"},"type":"a"}`,
			"space": `{"type":"a"` + strings.Repeat(" ", n-12) + `}`,
		} {
			_, _, err := CanonicalEvent([]byte(src))
			fe, ok := err.(*FieldError)
			if want := name == "text" && n+14 > MaxEvent || n > MaxEventSource; want != (ok && fe.TooLarge && fe.Field == "") {
				t.Errorf("%s of %d bytes: %v", name, len(src), err)
			}
		}
	}
}

// The fast path and the reference must agree on every text: what the fast path accepts is what the reference makes of it, with
// the same key; and it accepts everything that the reference leaves as it is.
func FuzzEvent(f *testing.F) {
	for _, s := range seeds(f, "event.json") {
		f.Add(s)
	}
	f.Add(event300)
	f.Fuzz(func(t *testing.T, src []byte) {
		checkEventPaths(t, src)
	})
}

func checkEventPaths(t *testing.T, src []byte) {
	body, key, err := canonicalEvent(src)
	var fast EventKey
	ok := isEvent(src, &fast)
	if want := err == nil && bytes.Equal(body, src); ok != want {
		t.Fatalf("fast path says %v, reference %q, %v", ok, body, err)
	}
	if ok && fast != key {
		t.Fatalf("key is %+v, should be %+v", fast, key)
	}
	if !ok && fast != (EventKey{}) {
		t.Fatalf("key %+v of what was refused", fast)
	}
	if err != nil {
		if _, ok := err.(*FieldError); !ok {
			t.Fatalf("%T: %v", err, err)
		}
		return
	}
	checkAcceptedEvent(t, body, key)
}

func checkAcceptedEvent(t *testing.T, body []byte, key EventKey) {
	var fast EventKey
	if !isEvent(body, &fast) || fast != key {
		t.Fatalf("fast path refuses %q, or its key %+v is not %+v", body, fast, key)
	}
	e, err := ParseEvent(body)
	if err != nil {
		t.Fatalf("ParseEvent refuses %q: %v", body, err)
	}
	if again, err := MarshalCanonical(e); err != nil || !bytes.Equal(again, body) || e.Key() != key {
		t.Fatalf("%q encodes as %q, %v", body, again, err)
	}
}
