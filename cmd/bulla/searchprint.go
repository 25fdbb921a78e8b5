package main

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"

	"bulla/record"
)

// hitWriter prints results, one after the other as they are found.
type hitWriter interface {
	begin(s *searchSummary) error
	put(h *hit, receipt []byte) error // receipt: canonical JSON, or nil
	end(s *searchSummary) error
}

func newHitWriter(w io.Writer, format string, classes ocsfClasses) (hitWriter, error) {
	if classes != nil && format != "ocsf" {
		return nil, usagef("--ocsf-classes is for --format ocsf")
	}
	switch format {
	case "table":
		return tableHits{w}, nil
	case "ndjson":
		return lineHits{w}, nil
	case "json":
		return &documentHits{w: w}, nil
	case "csv":
		return csvHits{csv.NewWriter(w)}, nil
	case "ocsf":
		return ocsfHits{w, classes}, nil
	}
	return nil, usagef("--format: %q is none of table, ndjson, csv and ocsf", format)
}

// tableHits prints a line for each result.
type tableHits struct{ w io.Writer }

func (t tableHits) begin(*searchSummary) error {
	_, err := fmt.Fprintf(t.w, "%8s  %-30s  %-9s  %-9s  %-9s  %s\n", "ENTRY", "TIME (UTC)", "BOUND", "KIND", "PRODUCER", "WHAT")
	return err
}

func (t tableHits) put(h *hit, _ []byte) error {
	_, err := fmt.Fprintf(t.w, "%8d  %s  %-9s  %-9s  %-9s  %s\n", h.entry.Index, h.utc(), h.bound(), h.entry.Kind, h.who(), what(h))
	return err
}

func (t tableHits) end(*searchSummary) error { return nil }

// utc is when the entry was received by the best estimate there is.
func (h *hit) utc() string { return string(record.AppendTime(nil, h.entry.Stamp.UTC())) }

// bound is how sure that is, for people.
func (h *hit) bound() string {
	if !h.entry.Stamp.HasEstimate {
		return "unknown"
	}
	return "±" + span(h.entry.Stamp.Bound)
}

func (h *hit) who() string {
	if h.entry.Producer == nil {
		return "-"
	}
	return fmt.Sprintf("uid=%d", h.entry.Producer.UID)
}

// what is what an entry is about, with what ties it to others. Canonical JSON escapes control characters; printable does the rest.
func what(h *hit) string {
	ev := h.event
	if ev == nil {
		return printable(string(h.entry.Body), 200)
	}
	parts := []string{ev.Type}
	add := func(name, value string) {
		if value != "" {
			parts = append(parts, name+"="+value)
		}
	}
	if a := ev.Actor; a != nil {
		add("actor", firstOf(a.Name, a.ID, a.OnBehalfOf))
	}
	if ev.Src != nil {
		add("src", ev.Src.IP)
	}
	if ev.Target != nil {
		add("target", ev.Target.ID)
	}
	add("outcome", ev.Outcome)
	add("session", ev.SessionID)
	add("transaction", ev.TransactionID)
	add("trace", ev.TraceID)
	if len(ev.Data) > 0 {
		parts = append(parts, string(ev.Data))
	}
	return printable(strings.Join(parts, " "), 200)
}

func firstOf(texts ...string) string {
	for _, s := range texts {
		if s != "" {
			return s
		}
	}
	return ""
}

// hitJSON is a result as JSON: the entry's exact bytes, and what follows from them.
type hitJSON struct {
	Log      string          `json:"log"`
	Index    uint64          `json:"index"`
	UTC      string          `json:"utc"`                // the best estimate; without one, the system's time
	Earliest string          `json:"earliest,omitempty"` // absent without an estimate: any time
	Latest   string          `json:"latest,omitempty"`
	Leaf     record.Hash     `json:"leaf"`
	Entry    json.RawMessage `json:"entry"`
	Receipt  json.RawMessage `json:"receipt,omitempty"`
	*order                   // in a timeline
}

func (h *hit) document(receipt []byte) hitJSON {
	d := hitJSON{Log: h.entry.Log, Index: h.entry.Index, UTC: h.utc(), Leaf: record.LeafHash(h.raw), Entry: h.raw, Receipt: receipt}
	if earliest, latest, ok := h.bounds(); ok {
		d.Earliest, d.Latest = string(record.AppendTime(nil, earliest)), string(record.AppendTime(nil, latest))
	}
	return d
}

// jsonLine is JSON on one line. What is canonical in it stays as it is, byte for byte.
func jsonLine(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, fmt.Errorf("encoding output: %w", err)
	}
	return b.Bytes(), nil
}

// lineHits prints JSON, a line for each result.
type lineHits struct{ w io.Writer }

func (l lineHits) begin(*searchSummary) error { return nil }
func (l lineHits) end(*searchSummary) error   { return nil }

func (l lineHits) put(h *hit, receipt []byte) error {
	b, err := jsonLine(h.document(receipt))
	if err == nil {
		_, err = l.w.Write(b)
	}
	return err
}

// documentHits prints one JSON document, a result a line within it.
type documentHits struct {
	w   io.Writer
	any bool
}

func (d *documentHits) begin(*searchSummary) error {
	_, err := io.WriteString(d.w, `{"results":[`)
	return err
}

func (d *documentHits) put(h *hit, receipt []byte) error {
	b, err := jsonLine(h.document(receipt))
	if err != nil {
		return err
	}
	before := "\n"
	if d.any {
		before = ",\n"
	}
	d.any = true
	_, err = fmt.Fprintf(d.w, "%s%s", before, bytes.TrimSuffix(b, []byte("\n")))
	return err
}

func (d *documentHits) end(s *searchSummary) error {
	b, err := jsonLine(s)
	if err == nil {
		_, err = fmt.Fprintf(d.w, "],\n\"summary\":%s}\n", bytes.TrimSuffix(b, []byte("\n")))
	}
	return err
}

// csvHits prints comma-separated values (RFC 4180).
type csvHits struct{ w *csv.Writer }

var csvColumns = []string{"log", "index", "utc", "earliest", "latest", "clock", "kind", "uid", "unit", "type", "actor_id", "actor_name", "on_behalf_of", "target_id", "src_ip",
	"src_port", "session_id", "transaction_id", "trace_id", "outcome", "severity", "data", "leaf"}

func (c csvHits) begin(*searchSummary) error { return c.w.Write(csvColumns) }

func (c csvHits) end(*searchSummary) error {
	c.w.Flush()
	return c.w.Error()
}

func (c csvHits) put(h *hit, _ []byte) error { return c.w.Write(h.csv()) }

func (h *hit) csv() []string {
	d := h.document(nil)
	row := []string{d.Log, strconv.FormatUint(d.Index, 10), d.UTC, d.Earliest, d.Latest, h.entry.Stamp.State.String(), string(h.entry.Kind), "", "", "", "", "", "", "", "", "", "", "", "", "", "", "", d.Leaf.String()}
	set := func(name, value string) {
		for i := range csvColumns {
			if csvColumns[i] == name {
				row[i] = inert(value)
			}
		}
	}
	if p := h.entry.Producer; p != nil {
		set("uid", strconv.FormatUint(uint64(p.UID), 10))
		set("unit", p.Unit)
	}
	ev := h.event
	if ev == nil {
		set("data", string(h.entry.Body))
		return row
	}
	set("type", ev.Type)
	set("session_id", ev.SessionID)
	set("transaction_id", ev.TransactionID)
	set("trace_id", ev.TraceID)
	set("outcome", ev.Outcome)
	set("data", string(ev.Data))
	if ev.Severity > 0 {
		set("severity", strconv.Itoa(ev.Severity))
	}
	if a := ev.Actor; a != nil {
		set("actor_id", a.ID)
		set("actor_name", a.Name)
		set("on_behalf_of", a.OnBehalfOf)
	}
	if ev.Target != nil {
		set("target_id", ev.Target.ID)
	}
	if ev.Src != nil {
		set("src_ip", ev.Src.IP)
		if ev.Src.Port != nil {
			set("src_port", strconv.Itoa(*ev.Src.Port))
		}
	}
	return row
}

// inert is a text that a spreadsheet does not take for a formula: producers choose what they write.
func inert(s string) string {
	if s != "" && strings.ContainsRune("=+-@\t\r", rune(s[0])) {
		return "'" + s
	}
	return s
}
