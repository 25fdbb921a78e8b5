package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

	"bulla/clock"
	"bulla/record"
)

var updateOCSF = flag.Bool("update-ocsf", false, "write testdata/ocsf/golden.jsonl anew")

// ocsfEntries are the events of testdata/ocsf as they were logged, and an entry of the daemon without an estimate of UTC.
func ocsfEntries(t *testing.T) (hits []*hit) {
	t.Helper()
	events, err := os.ReadFile("testdata/ocsf/events.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	add := func(e *record.Entry) {
		t.Helper()
		e.Index, e.Log, e.Prev = uint64(len(hits)+1), "log.example/audit", record.Hash{1}
		raw, err := e.Append(nil)
		if err != nil {
			t.Fatal(err)
		}
		if e, err = record.ParseEntry(raw); err != nil {
			t.Fatal(err)
		}
		hits = append(hits, newHit(nil, raw, e))
	}
	for line := range bytes.Lines(events) {
		add(&record.Entry{
			Kind: record.KindEvent, Body: bytes.TrimSpace(line), Producer: &record.Producer{UID: 1000, GID: 1000, PID: 4711, Exe: "/usr/sbin/sshd", Unit: "ssh.service"},
			Stamp: clock.Stamp{Sys: logStart, Offset: -30217, Bound: 1840211, Age: 4120331, Round: 7, Epoch: 1, State: clock.Synced, HasEstimate: true},
		})
	}
	add(&record.Entry{Kind: record.KindSystem, Body: []byte(`{"event":"stop"}`), Stamp: clock.Stamp{Sys: logStart, Epoch: 2}})
	return hits
}

func TestOCSFGolden(t *testing.T) {
	t.Parallel()
	classes, err := readClasses("testdata/ocsf/classes")
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	w := ocsfHits{&out, classes}
	hits := ocsfEntries(t)
	for _, h := range hits {
		if err := w.put(h, nil); err != nil {
			t.Fatal(err)
		}
	}
	const path = "testdata/ocsf/golden.jsonl"
	if *updateOCSF {
		if err := os.WriteFile(path, out.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), out.String()); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	i := 0
	for line := range bytes.Lines(out.Bytes()) {
		var o ocsfEvent
		if err := json.Unmarshal(line, &o); err != nil {
			t.Fatal(err)
		}
		if o.RawData != string(hits[i].raw) {
			t.Errorf("line %d: the evidence that it carries is %q, not %q", i, o.RawData, hits[i].raw)
		}
		if o.TypeUID != int64(o.ClassUID)*100+int64(o.ActivityID) || o.CategoryUID != o.ClassUID/1000 {
			t.Errorf("line %d: %+v does not fit together", i, o)
		}
		i++
	}
	if i != 6 {
		t.Errorf("%d lines", i)
	}
}
