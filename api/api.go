// Package api is how programs talk to the appliance: the messages of its two sockets, and a client for Go.
//
// sign.sock takes events in frames: 4 bytes of length, big endian, and that many bytes of JSON. First each side sends a Hello. Then
// the client sends requests, as many as it likes without waiting, and the server answers each by its id, in any order. http.sock is
// HTTP/1.1 with JSON; docs/openapi.yaml describes it. docs/formats.md has the bytes of both.
package api

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"bulla/record"
)

// Version is the version of the frame protocol.
const Version = 1

// Bounds of the frame protocol.
const (
	MaxFrame  = 4 << 20 // bytes of JSON in a frame
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
	MaxFrame int      `json:"max_frame"`
	Logs     []string `json:"logs,omitempty"` // origins; from the server
}

// Answer is the server's answer to a request, or a part of it.
type Answer struct {
	ID           uint64      `json:"id"`
	Status       string      `json:"status"`
	Checkpoint   string      `json:"checkpoint,omitempty"` // signed note; the same in every part
	Items        []Item      `json:"items,omitempty"`      // one an event, in order
	More         bool        `json:"more,omitempty"`       // further parts follow
	Code         record.Code `json:"code,omitempty"`
	Message      string      `json:"message,omitempty"`
	Field        string      `json:"field,omitempty"`
	RetryAfterMS int64       `json:"retry_after_ms,omitempty"`
}

// Item is one event's place in the log.
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

// ReadFrame reads one frame of at most limit bytes. io.EOF means that the other side closed between frames.
func ReadFrame(r io.Reader, limit int) ([]byte, error) {
	n, err := ReadLength(r, limit)
	if err != nil {
		return nil, err
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, fmt.Errorf("reading a frame of %d bytes: %w", n, noEOF(err))
	}
	return b, nil
}

// ReadLength reads a frame's length and refuses one beyond the limit.
func ReadLength(r io.Reader, limit int) (int, error) {
	var h [4]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return 0, err
	}
	n := binary.BigEndian.Uint32(h[:])
	if n == 0 || uint64(n) > uint64(limit) {
		return 0, &record.FieldError{Reason: fmt.Sprintf("a frame of %d bytes: must be 1 to %d", n, limit), TooLarge: n != 0}
	}
	return int(n), nil
}

// noEOF makes an end in mid-frame what it is.
func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// WriteFrame writes one frame.
func WriteFrame(w *bufio.Writer, b []byte) error {
	var h [4]byte
	binary.BigEndian.PutUint32(h[:], uint32(len(b)))
	if _, err := w.Write(h[:]); err != nil {
		return err
	}
	_, err := w.Write(b)
	return err
}

// ParseHello reads the other side's first frame; unknown members are ignored.
func ParseHello(b []byte) (Hello, error) {
	var h Hello
	if err := json.Unmarshal(b, &h); err != nil {
		return h, fmt.Errorf("hello: %w", err)
	}
	if h.V != Version {
		return h, fmt.Errorf("hello: version %d, this side speaks %d", h.V, Version)
	}
	return h, nil
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

// Status is how the appliance is doing.
type Status struct {
	Version string         `json:"version,omitempty"`
	Logs    []LogStatus    `json:"logs"`
	Machine map[string]any `json:"machine,omitempty"` // clock, tpm, hsm
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
