// Package api is how programs talk to the appliance: the messages of its two sockets, and a client for Go.
//
// sign.sock takes events in frames: 4 bytes of length, big endian, and that many bytes of JSON. First each side sends a Hello. Then
// the client sends requests, as many as it likes without waiting, and the server answers each by its id, in any order. http.sock is
// HTTP/1.1 with JSON; docs/openapi.yaml describes it. docs/formats.md has the bytes of both.
//
//	api.go     messages          frame.go    framing and hello
//	request.go requests          answer.go   answers          scan.go  how both are read
//	client.go  one request at a time, or many at once        stream.go  a producer's numbered events, repeated until they are in
//	search.go  what is searched for      clock.go   status of the machine
package api

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"time"

	"bulla/record"
)

// Version is the version of the frame protocol.
const Version = 1

// Bounds of the frame protocol.
const (
	MaxFrame  = 4 << 20 // bytes of JSON in a frame
	MinFrame  = 1 << 20 // the least that either side must be ready to read
	MaxEvents = 10_000  // events in a request
)

// What a request wants for each event.
const (
	WantReceipt = "receipt" // the entry and its inclusion proof
	WantAck     = "ack"     // the leaf hash
)

// Statuses of an answer.
const (
	StatusOK      = "ok"
	StatusRefused = "refused" // nothing was taken
	StatusUnknown = "unknown" // it may have been taken: ask again with the same stream number or id
)

// Hello is the first frame of each side.
type Hello struct {
	V        int      `json:"v"`
	MaxFrame int      `json:"max_frame"`      // bytes of JSON that this side reads in a frame, MinFrame to MaxFrame
	Logs     []string `json:"logs,omitempty"` // origins; from the server
}

// Answer is the server's answer to a request, or a part of it.
type Answer struct {
	ID           uint64      `json:"id"` // of the request; 0: a frame could not be read, and the connection ends
	Status       string      `json:"status"`
	Checkpoint   string      `json:"checkpoint,omitempty"` // signed note; the same in every part
	Items        []Item      `json:"items,omitempty"`      // one an event, in order
	More         bool        `json:"more,omitempty"`       // further parts follow
	Code         record.Code `json:"code,omitempty"`
	Message      string      `json:"message,omitempty"`
	Field        string      `json:"field,omitempty"`
	RetryAfterMS int64       `json:"retry_after_ms,omitempty"`
}

// Item is one event's place in the log: with entry and proof, or with the leaf hash, as the request wanted.
type Item struct {
	Index uint64        `json:"index"`
	Entry []byte        `json:"entry,omitempty"`
	Proof []record.Hash `json:"proof,omitempty"`
	Leaf  *record.Hash  `json:"leaf,omitempty"`
}

// Refusal is a refused request: nothing of it was taken.
type Refusal struct {
	Code       record.Code
	Message    string
	Field      string
	RetryAfter time.Duration
}

func (r *Refusal) Error() string {
	if r.Field != "" {
		return fmt.Sprintf("refused (%s): %s: %s", r.Code, r.Field, r.Message)
	}
	return fmt.Sprintf("refused (%s): %s", r.Code, r.Message)
}

// Sockets returns the paths of both sockets, given either, or their directory's path with neither.
func Sockets(path string) (sign, http string) {
	dir := path
	switch filepath.Base(path) {
	case "sign.sock", "http.sock":
		dir = filepath.Dir(path)
	}
	return filepath.Join(dir, "sign.sock"), filepath.Join(dir, "http.sock")
}

// CodeUnknown stands in a Failure where it is not known whether the events were taken; it goes with HTTP status 504.
const CodeUnknown record.Code = "unknown"

// Failure is the body of an HTTP answer that is not a success.
type Failure struct {
	Error FailureDetail `json:"error"`
}

// FailureDetail says what was wrong.
type FailureDetail struct {
	Code    record.Code `json:"code"`
	Message string      `json:"message"`
	Field   string      `json:"field,omitempty"`
}

// Page is a page of entries, each the exact object that is hashed.
type Page struct {
	Entries []json.RawMessage `json:"entries"`
	Next    *uint64           `json:"next,omitempty"` // from, for the next page
	Size    uint64            `json:"size"`           // of the log
}

// Seals lists the indices of entries of kind seal.
type Seals struct {
	Indices []uint64 `json:"indices"`
}

// Challenge asks for a seal that carries a nonce.
type Challenge struct {
	Nonce []byte `json:"nonce"`
}

// Sealed says where a new seal is.
type Sealed struct {
	Number  uint64            `json:"number"`
	Entries map[string]uint64 `json:"entries"` // its index, by the logs' names
	Nonce   string            `json:"nonce,omitempty"`
}

// Activated is the transcript of a credential activation, and where it is recorded. The request is the challenge itself.
type Activated struct {
	Activation json.RawMessage   `json:"activation"`
	Entries    map[string]uint64 `json:"entries"` // its index, by the logs' names
}

// Status is how the appliance is doing.
type Status struct {
	Version string      `json:"version,omitempty"`
	Logs    []LogStatus `json:"logs"`
	Machine *Machine    `json:"machine,omitempty"`
}

// LogStatus is how one log is doing.
type LogStatus struct {
	Name       string            `json:"name"`
	Origin     string            `json:"origin"`
	Size       uint64            `json:"size"`
	Checkpoint string            `json:"checkpoint"`
	VKeys      []string          `json:"vkeys"`
	Genesis    string            `json:"genesis"` // leaf hash of entry 0, hex
	Refusing   *FailureDetail    `json:"refusing,omitempty"`
	LastFault  string            `json:"last_fault,omitempty"`
	Waiting    int               `json:"waiting"`
	Refused    map[string]uint64 `json:"refused,omitempty"` // since the start, by code
	Entries    uint64            `json:"entries"`           // since the start
	Batches    uint64            `json:"batches"`
}
