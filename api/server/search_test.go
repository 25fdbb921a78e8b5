package server

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"bulla/api"
	"bulla/ceremony"
	"bulla/record"
)

// found follows next to the end and returns the indices of what was found.
func (r *rig) found(b *http.Client, query string) (indices []uint64, calls int) {
	r.t.Helper()
	for from := uint64(0); ; calls++ {
		p := r.do(b, "GET", fmt.Sprintf("/v1/search?from=%d&%s", from, query), "")
		var page api.Page
		if err := json.Unmarshal(p.body, &page); err != nil || p.status != http.StatusOK {
			r.t.Fatalf("%s: %d %s (%v)", query, p.status, p.body, err)
		}
		for _, raw := range page.Entries {
			e, err := record.ParseEntry(raw)
			if err != nil {
				r.t.Fatal(err)
			}
			indices = append(indices, e.Index)
		}
		if page.Next == nil {
			return indices, calls + 1
		}
		if *page.Next <= from {
			r.t.Fatalf("%s: from %d it goes on at %d", query, from, *page.Next)
		}
		from = *page.Next
	}
}

func TestSearch(t *testing.T) {
	t.Parallel()
	r := newRig(t, everyone).serve()
	batch := events(5, `{"session_id":"s-%d","type":"auth.login"}`)
	batch = append(batch, events(3, `{"data":{"n":%d},"session_id":"s-2","type":"auth.logout"}`)...)
	if _, err := r.dial().AppendBatch(t.Context(), "", api.WantAck, batch...); err != nil {
		t.Fatal(err)
	}
	b := r.browser()
	for query, want := range map[string]string{
		"session=s-2":                        "[3 6 7 8]",
		"session=s-2&type=auth.logout":       "[6 7 8]",
		"session=s-2&type=auth.*&text=1":     "[7]",
		"session=s-9":                        "[]",
		"kind=genesis":                       "[0]",
		"kind=event&session=s-0&limit=1":     "[1]",
		"session=s-2&until=" + "2000-01-01":  "[]",
		"session=s-2&since=" + "2000-01-01":  "[3 6 7 8]",
		"session=s-2&from=9&purpose_is_odd=": "",
	} {
		if want == "" {
			if p := r.do(b, "GET", "/v1/search?"+query, ""); p.status != http.StatusBadRequest {
				t.Errorf("%s: %d", query, p.status)
			}
			continue
		}
		if got, _ := r.found(b, query); fmt.Sprint(got) != want {
			t.Errorf("%s: %v, want %s", query, got, want)
		}
	}
	// Answers are as long as was asked for, and together they are all there is.
	if got, calls := r.found(b, "session=s-2&limit=1"); fmt.Sprint(got) != "[3 6 7 8]" || calls < 4 {
		t.Errorf("one at a time: %v in %d calls", got, calls)
	}
	for query, field := range map[string]string{"since=x": "since", "limit=0": "limit", "limit=1001": "limit", "src=x": "src", "nonsense=1": "nonsense"} {
		p := r.do(b, "GET", "/v1/search?"+query, "")
		if f := p.failure(t); p.status != http.StatusBadRequest || f.Field != field {
			t.Errorf("%s: %d %+v", query, p.status, f)
		}
	}
	long := url.Values{}
	for _, name := range []string{"actor", "target", "session", "transaction", "unit"} {
		long.Set(name, strings.Repeat("x", 1000))
	}
	if p := r.do(b, "GET", "/v1/search?"+long.Encode(), ""); p.status != http.StatusRequestEntityTooLarge {
		t.Errorf("a query of 5,000 bytes: %d %s", p.status, p.body)
	}
}

// That somebody searched is in the log when the answer is there: the query, and the range that was looked through, even if nothing
// was found there, and even if all of it was the caller's own.
func TestSearchIsRecorded(t *testing.T) {
	t.Parallel()
	r := newRig(t, everyone).serve()
	if _, err := r.dial().AppendBatch(t.Context(), "", api.WantAck, events(3, `{"session_id":"s-%d","type":"a"}`)...); err != nil {
		t.Fatal(err)
	}
	b := r.browser()
	for i, query := range []string{"session=s-1", "session=nobody", "text=%22a%22&type=a"} {
		size := r.log().Size()
		r.do(b, "GET", "/v1/search?"+query, "", "Bulla-Purpose: case 4711")
		all := r.accesses(0)
		if len(all) != i+1 {
			t.Fatalf("%s: %d records", query, len(all))
		}
		a := all[i]
		if a.Action != "search" || a.Query != query || *a.From != 0 || *a.To != size || a.Purpose != "case 4711" || a.Role != "auditor" {
			t.Errorf("%s: recorded as %+v, from %d to %d of %d", query, a, *a.From, *a.To, size)
		}
	}
}

func TestSearchIsForAuditors(t *testing.T) {
	t.Parallel()
	r := newRig(t, []ceremony.Role{{Name: ceremony.Producer, Any: true}}).serve()
	p := r.do(r.browser(), "GET", "/v1/search?type=a", "")
	if f := p.failure(t); p.status != http.StatusForbidden || f.Code != record.CodeForbidden {
		t.Errorf("%d %+v", p.status, f)
	}
}

// A search that has no time left looks at some entries all the same, and says where to go on.
func TestSearchIsBounded(t *testing.T) {
	t.Parallel()
	r := newRig(t, everyone)
	c := r.serve().dial()
	for range 3 {
		if _, err := c.AppendBatch(t.Context(), "", api.WantAck, events(1000, `{"data":{"n":%d},"type":"a"}`)...); err != nil {
			t.Fatal(err)
		}
	}
	q, err := api.ParseQuery(url.Values{"text": {"999"}})
	if err != nil {
		t.Fatal(err)
	}
	var indices []uint64
	var s *scan
	rounds := 0
	for from := uint64(0); from < 3001; from = s.next {
		s = &scan{log: r.log(), q: q, size: 3001, next: from, limit: 100} // end: long ago
		if err := s.run(); err != nil {
			t.Fatal(err)
		}
		if s.next <= from {
			t.Fatalf("from %d it goes on at %d", from, s.next)
		}
		for _, b := range s.found {
			e, err := record.ParseEntry(b)
			if err != nil {
				t.Fatal(err)
			}
			indices = append(indices, e.Index)
		}
		rounds++
	}
	if fmt.Sprint(indices) != "[1000 2000 3000]" || rounds < 3 {
		t.Errorf("found %v in %d rounds", indices, rounds)
	}
}
