package api

import (
	"errors"
	"net/url"
	"strings"
	"testing"

	"bulla/clock"
	"bulla/record"
)

// entryOf makes an entry that was received at 2026-11-23T01:23:20Z, sure within 10 ms, by a system clock that was 1 s slow.
func entryOf(t *testing.T, kind record.Kind, body string) []byte {
	t.Helper()
	e := &record.Entry{
		Index: 7, Kind: kind, Log: "test.example/log", Prev: record.Hash{1}, Body: []byte(body),
		Stamp: clock.Stamp{Sys: 1795396999_000000000, Offset: 1_000_000_000, Bound: 10_000_000, Round: 1, Epoch: 1, State: clock.Synced, HasEstimate: true},
	}
	if kind == record.KindEvent {
		e.Producer = &record.Producer{UID: 1000, GID: 1000, Unit: "ssh.service"}
	}
	b, err := e.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

const searched = `{"actor":{"id":"1000","name":"al\"ice","on_behalf_of":"ops"},"data":{"Path":"/Etc/Größe\n2","n":4711,"sub":[{"deep":"END"}]},` +
	`"id":"e1","outcome":"failure","session_id":"s-77","severity":17,"src":{"ip":"192.0.2.7","port":22},"target":{"id":"host-1"},` +
	`"trace_id":"4bf92f3577b34da6a3ce929d0e0e4736","transaction_id":"t-9","type":"auth.login"}`

// Each condition by itself, met and not; what is met is never left out by the quick look.
func TestQueryConditions(t *testing.T) {
	t.Parallel()
	event := entryOf(t, record.KindEvent, searched)
	for _, c := range []struct {
		name, value string
		met         bool
	}{
		{"since", "2026-11-23T01:23:20.010Z", true}, // the last instant that it may have been at
		{"since", "2026-11-23T01:23:20.010000001Z", false},
		{"until", "2026-11-23T01:23:19.990000001Z", true},
		{"until", "2026-11-23T01:23:19.990Z", false}, // the first one
		{"since", "2026-11-23", true},
		{"until", "2026-11-23", false},
		{"since", "2026-11-23T02:23:20+01:00", true},
		{"until", "2026-11-23T01:24", true},
		{"kind", "event", true},
		{"kind", "seal", false},
		{"type", "auth.login", true},
		{"type", "auth", false},
		{"type", "auth.*", true},
		{"type", "authx.*", false},
		{"type", "auth.login.*", false},
		{"actor", "1000", true},
		{"actor", `al"ice`, true},
		{"actor", "ops", true},
		{"actor", "al", false},
		{"target", "host-1", true},
		{"target", "e1", false},
		{"session", "s-77", true},
		{"session", "s-7", false},
		{"transaction", "t-9", true},
		{"transaction", "s-77", false},
		{"trace", "4bf92f3577b34da6a3ce929d0e0e4736", true},
		{"trace", "4bf92f3577b34da6a3ce929d0e0e4737", false},
		{"uid", "1000", true},
		{"uid", "100", false},
		{"unit", "ssh.service", true},
		{"unit", "ssh", false},
		{"src", "192.0.2.7", true},
		{"src", "192.0.2.0/24", true},
		{"src", "192.0.2.9/24", true},
		{"src", "192.0.2.8", false},
		{"src", "198.51.100.0/24", false},
		{"src", "2001:db8::/32", false},
		{"outcome", "failure", true},
		{"outcome", "success", false},
		{"severity", "17", true},
		{"severity", "9", true},
		{"severity", "18", false},
		{"text", "größe", true},
		{"text", "GRÖSSE", false},
		{"text", "e\n2", true},
		{"text", "path", true},
		{"text", "471", true},
		{"text", "end", true},
		{"text", "n2", false},           // an n only as it is escaped
		{"text", `"deep":"END"`, false}, // what is between strings is no text
		{"text", "auth.login", false},   // of an event, only its data
		{"text", `\u`, false},
	} {
		q, err := ParseQuery(url.Values{c.name: {c.value}})
		if err != nil {
			t.Errorf("%s=%s: %v", c.name, c.value, err)
			continue
		}
		e, met, err := q.Match(event)
		if err != nil || met != c.met {
			t.Errorf("%s=%s: %t (%v), want %t", c.name, c.value, met, err, c.met)
		}
		if c.met && (e == nil || e.Index != 7) {
			t.Errorf("%s=%s: the entry is not told", c.name, c.value)
		}
		// What a query asks of events, other entries never meet.
		if _, met, err := q.Match(entryOf(t, record.KindSystem, `{"event":"stop"}`)); err != nil || met && c.name != "since" && c.name != "until" {
			t.Errorf("%s=%s: a stop of the daemon meets it (%v)", c.name, c.value, err)
		}
	}
}

func TestQueryConditionsAreJoined(t *testing.T) {
	t.Parallel()
	for query, met := range map[string]bool{
		"":                                      true,
		"session=s-77&transaction=t-9&uid=1000": true,
		"session=s-77&transaction=t-8":          false,
		"severity=1&text=4711&src=192.0.2.0/24&since=2026-01-01&until=2027-01-01&kind=event": true,
	} {
		v, err := url.ParseQuery(query)
		if err != nil {
			t.Fatal(err)
		}
		q, err := ParseQuery(v)
		if err != nil {
			t.Fatal(err)
		}
		if _, got, err := q.Match(entryOf(t, record.KindEvent, searched)); err != nil || got != met {
			t.Errorf("%q: %t (%v), want %t", query, got, err, met)
		}
	}
	q, err := ParseQuery(url.Values{"text": {"SHUT"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, met, err := q.Match(entryOf(t, record.KindSystem, `{"event":"stop","message":"shut down"}`)); err != nil || !met {
		t.Errorf("the text of what the daemon says is not found: %t, %v", met, err)
	}
}

// Without an estimate of UTC an entry may have been received at any time, and is never left out because of it.
func TestQueryWithoutEstimate(t *testing.T) {
	t.Parallel()
	e := &record.Entry{Index: 1, Kind: record.KindSystem, Log: "test.example/log", Prev: record.Hash{1}, Body: []byte(`{"event":"stop"}`), Stamp: clock.Stamp{Sys: 1795396999_000000000, Epoch: 1}}
	b, err := e.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	q, err := ParseQuery(url.Values{"since": {"2030-01-01"}, "until": {"2030-01-02"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, met, err := q.Match(b); err != nil || !met {
		t.Errorf("it is left out (%v)", err)
	}
}

func TestQueryRefuses(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, value, say string }{
		{"since", "yesterday", "must be a time"},
		{"until", "0001-01-01", "between the years 1678 and 2261"},
		{"kind", "events", "must be one of [genesis event"},
		{"type", "auth*", "as auth.*"},
		{"type", "*", "as auth.*"},
		{"uid", "root", "must be the number of a user"},
		{"uid", "4294967296", "must be the number of a user"},
		{"src", "192.0.2", "must be an address or a network"},
		{"src", "fe80::1%eth0", "must be an address or a network"},
		{"outcome", "ok", "must be success, failure or unknown"},
		{"severity", "0", "from 1 to 24"},
		{"severity", "25", "from 1 to 24"},
		{"actor", "", "1 to 1024 bytes"},
		{"text", strings.Repeat("x", 1025), "1 to 1024 bytes"},
		{"session", "\xff", "UTF-8"},
		{"text", "\xff", "UTF-8"},
	} {
		_, err := ParseQuery(url.Values{c.name: {c.value}})
		var field *record.FieldError
		if !errors.As(err, &field) || field.Field != c.name || !strings.Contains(field.Reason, c.say) {
			t.Errorf("%s=%.20s: %v, want it to say %q", c.name, c.value, err, c.say)
		}
	}
	var field *record.FieldError
	if _, err := ParseQuery(url.Values{"since": {"2030-01-02"}, "until": {"2030-01-02"}}); !errors.As(err, &field) || field.Field != "until" {
		t.Errorf("no time at all: %v", err)
	}
	q, err := ParseQuery(url.Values{"session": {"s-77"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := q.Match([]byte(`{"session_id":"s-77"}`)); err == nil {
		t.Error("what is no entry, and may be wanted, is passed over in silence")
	}
}
