package main

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"bulla/record"
)

// Events in the Open Cybersecurity Schema Framework, by the mapping in docs/formats.md. What has no class of its own is a base event.

// ocsfVersion is the schema's version that the attributes are of.
const ocsfVersion = "1.7.0"

// ocsfClass is what a type of event is in OCSF.
type ocsfClass struct{ class, activity int }

// ocsfClasses says it, by type; `auth.*` is for all that begin with `auth.`.
type ocsfClasses map[string]ocsfClass

// readClasses reads lines of TYPE CLASS_UID ACTIVITY_ID. Empty lines and what follows # count for nothing.
func readClasses(path string) (ocsfClasses, error) {
	if path == "" {
		return nil, nil
	}
	b, err := readSmall(path)
	if err != nil {
		return nil, err
	}
	out := ocsfClasses{}
	n := 0
	for line := range strings.Lines(string(b)) {
		n++
		line, _, _ = strings.Cut(line, "#")
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		if len(words) != 3 {
			return nil, usagef("%s: line %d: write TYPE CLASS_UID ACTIVITY_ID, as: auth.login 3002 1", path, n)
		}
		class, err1 := strconv.Atoi(words[1])
		activity, err2 := strconv.Atoi(words[2])
		if err1 != nil || err2 != nil || class < 0 || class > 99_999_999 || activity < 0 || activity > 99 {
			return nil, usagef("%s: line %d: a class is a number, and an activity one from 0 to 99", path, n)
		}
		if _, twice := out[words[0]]; twice {
			return nil, usagef("%s: line %d: %s is there twice", path, n, words[0])
		}
		out[words[0]] = ocsfClass{class, activity}
	}
	return out, nil
}

// of is the class of a type: its own, or that of the longest beginning; otherwise the base event's, with activity Other.
func (c ocsfClasses) of(typ string) ocsfClass {
	if class, ok := c[typ]; ok {
		return class
	}
	for rest := typ; ; {
		i := strings.LastIndexByte(rest, '.')
		if i < 0 {
			return ocsfClass{0, 99}
		}
		rest = rest[:i]
		if class, ok := c[rest+".*"]; ok {
			return class
		}
	}
}

type ocsfEvent struct {
	ActivityID   int              `json:"activity_id"`
	ActivityName string           `json:"activity_name"`
	Actor        *ocsfActor       `json:"actor,omitempty"`
	CategoryUID  int              `json:"category_uid"`
	ClassUID     int              `json:"class_uid"`
	Enrichments  []ocsfEnrichment `json:"enrichments,omitempty"`
	Metadata     ocsfMetadata     `json:"metadata"`
	RawData      string           `json:"raw_data"`
	RawDataHash  ocsfFingerprint  `json:"raw_data_hash"`
	Resources    []ocsfResource   `json:"resources,omitempty"`
	SeverityID   int              `json:"severity_id"`
	SrcEndpoint  *ocsfEndpoint    `json:"src_endpoint,omitempty"`
	StatusID     *int             `json:"status_id,omitempty"`
	Time         int64            `json:"time"` // ms: the producer's, otherwise when it was received
	TypeUID      int64            `json:"type_uid"`
	Unmapped     json.RawMessage  `json:"unmapped,omitempty"`
}

type ocsfActor struct {
	InvokedBy string       `json:"invoked_by,omitempty"`
	Session   *ocsfSession `json:"session,omitempty"`
	User      *ocsfUser    `json:"user,omitempty"`
}

type ocsfSession struct {
	UID string `json:"uid"`
}

type ocsfUser struct {
	Name string `json:"name,omitempty"`
	Type string `json:"type,omitempty"`
	UID  string `json:"uid,omitempty"`
}

type ocsfMetadata struct {
	CorrelationUID string      `json:"correlation_uid,omitempty"`
	LogName        string      `json:"log_name"`
	LogSource      string      `json:"log_source,omitempty"`
	LoggedTime     int64       `json:"logged_time"` // ms: when it was received, by the best estimate
	Product        ocsfProduct `json:"product"`
	Sequence       uint64      `json:"sequence"`
	UID            string      `json:"uid,omitempty"`
	Version        string      `json:"version"`
}

type ocsfProduct struct {
	Name string `json:"name"`
}

type ocsfFingerprint struct {
	Algorithm   string `json:"algorithm"`
	AlgorithmID int    `json:"algorithm_id"`
	Value       string `json:"value"`
}

type ocsfResource struct {
	Type string `json:"type,omitempty"`
	UID  string `json:"uid,omitempty"`
}

type ocsfEndpoint struct {
	IP   string `json:"ip,omitempty"`
	Port *int   `json:"port,omitempty"`
}

type ocsfEnrichment struct {
	Data  any    `json:"data"`
	Name  string `json:"name"`
	Value string `json:"value"`
}

// ocsfSeverity maps severities of OpenTelemetry.
func ocsfSeverity(n int) int {
	switch {
	case n == 0:
		return 0
	case n <= 12:
		return 1
	case n <= 16:
		return 3
	case n <= 20:
		return 4
	}
	return 6
}

// ocsf is a result as an OCSF event that carries our evidence: the entry's exact bytes and their leaf hash.
func (h *hit) ocsf(classes ocsfClasses) (*ocsfEvent, error) {
	leaf := record.LeafHash(h.raw)
	received := milliseconds(h.entry.Stamp.UTC())
	o := &ocsfEvent{
		ActivityID: 99, ActivityName: string(h.entry.Kind), Time: received, RawData: string(h.raw),
		RawDataHash: ocsfFingerprint{Algorithm: "RFC 6962 leaf hash: SHA-256 of a zero byte and raw_data", AlgorithmID: 99, Value: hex.EncodeToString(leaf[:])},
		Metadata:    ocsfMetadata{LogName: h.entry.Log, LoggedTime: received, Product: ocsfProduct{Name: "bulla"}, Sequence: h.entry.Index, Version: ocsfVersion},
	}
	o.enrich(h)
	if h.event == nil {
		o.Unmapped = json.RawMessage(h.entry.Body)
	} else if err := o.event(h.event, classes); err != nil {
		return nil, fmt.Errorf("entry %d: %w", h.entry.Index, err)
	}
	o.CategoryUID, o.TypeUID = o.ClassUID/1000, int64(o.ClassUID)*100+int64(o.ActivityID)
	return o, nil
}

// event fills in what an event says.
func (o *ocsfEvent) event(ev *record.Event, classes ocsfClasses) error {
	c := classes.of(ev.Type)
	o.ClassUID, o.ActivityID, o.ActivityName = c.class, c.activity, ev.Type
	o.SeverityID, o.Unmapped = ocsfSeverity(ev.Severity), ev.Data
	o.Metadata.UID, o.Metadata.CorrelationUID, o.Metadata.LogSource = ev.ID, ev.TransactionID, ev.Source
	if ev.Source != "" {
		o.Metadata.Product.Name = ev.Source
	}
	if ev.Time != "" {
		t, err := time.Parse(time.RFC3339Nano, ev.Time)
		if err != nil {
			return fmt.Errorf("time: %w", err)
		}
		o.Time = t.UnixMilli()
	}
	if a := ev.Actor; a != nil {
		o.Actor = &ocsfActor{InvokedBy: a.OnBehalfOf}
		if a.ID != "" || a.Name != "" || a.Type != "" {
			o.Actor.User = &ocsfUser{UID: a.ID, Name: a.Name, Type: a.Type}
		}
	}
	if ev.SessionID != "" {
		if o.Actor == nil {
			o.Actor = &ocsfActor{}
		}
		o.Actor.Session = &ocsfSession{ev.SessionID}
	}
	if ev.Target != nil {
		o.Resources = []ocsfResource{{UID: ev.Target.ID, Type: ev.Target.Type}}
	}
	if ev.Src != nil {
		o.SrcEndpoint = &ocsfEndpoint{IP: ev.Src.IP, Port: ev.Src.Port}
	}
	if id, ok := map[string]int{"success": 1, "failure": 2, "unknown": 0}[ev.Outcome]; ok {
		o.StatusID = &id
	}
	if ev.TraceID != "" || ev.SpanID != "" {
		o.Enrichments = append(o.Enrichments, ocsfEnrichment{Name: "metadata.correlation_uid", Value: ev.TraceID, Data: map[string]string{"trace_id": ev.TraceID, "span_id": ev.SpanID}})
	}
	return nil
}

// enrich adds how good the time is, and who sent the event.
func (o *ocsfEvent) enrich(h *hit) {
	s := h.entry.Stamp
	quality := map[string]any{"state": s.State.String(), "epoch": s.Epoch}
	if d := h.document(nil); s.HasEstimate {
		quality["offset"], quality["bound"], quality["round"] = s.Offset, s.Bound, s.Round
		quality["earliest"], quality["latest"] = d.Earliest, d.Latest
	}
	o.Enrichments = append(o.Enrichments, ocsfEnrichment{Name: "metadata.logged_time", Value: h.utc(), Data: quality})
	if p := h.entry.Producer; p != nil {
		o.Enrichments = append(o.Enrichments, ocsfEnrichment{Name: "metadata.product", Value: "uid " + strconv.FormatUint(uint64(p.UID), 10), Data: p})
	}
}

// milliseconds are whole ones, rounded down.
func milliseconds(ns int64) int64 { return time.Unix(0, ns).UnixMilli() }

// ocsfHits prints OCSF events, one a line.
type ocsfHits struct {
	w       io.Writer
	classes ocsfClasses
}

func (o ocsfHits) begin(*searchSummary) error { return nil }
func (o ocsfHits) end(*searchSummary) error   { return nil }

func (o ocsfHits) put(h *hit, _ []byte) error {
	e, err := h.ocsf(o.classes)
	if err != nil {
		return err
	}
	b, err := jsonLine(e)
	if err == nil {
		_, err = o.w.Write(b)
	}
	return err
}
