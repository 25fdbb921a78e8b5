package record

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"unicode/utf8"
)

// System is the body of an entry of kind system: what the daemon has to say about itself.
type System struct {
	Boot    *Boot   `json:"boot,omitzero"`    // boot
	Code    Code    `json:"code,omitzero"`    // alarm: what is refused; recovery: what was
	Config  *Hash   `json:"config,omitzero"`  // start, config: SHA-256 of the configuration
	Event   string  `json:"event"`            // one of the System constants
	Exe     *Hash   `json:"exe,omitzero"`     // start: SHA-256 of the executable
	Gap     *Gap    `json:"gap,omitzero"`     // gap
	Message string  `json:"message,omitzero"` // for people, at most MaxMessage bytes
	Size    *uint64 `json:"size,omitzero"`    // start: entries found in the log
	Version string  `json:"version,omitzero"` // start: of the software
}

// What a System entry reports.
const (
	SystemStart    = "start"    // the daemon began to serve
	SystemStop     = "stop"     // the daemon ends in order; a start without a stop before it followed a crash
	SystemConfig   = "config"   // a configuration was loaded
	SystemAlarm    = "alarm"    // events began to be refused, for the reason Code
	SystemGap      = "gap"      // a producer's numbering skipped
	SystemRecovery = "recovery" // what an alarm reported is over
	SystemBoot     = "boot"     // how the machine was started, as it was measured
)

// MaxMessage bounds the texts of the daemon's own entries, in bytes.
const MaxMessage = 4096

// Gap is a hole in a producer's numbering: the numbers After+1 to Next-1 of the stream were never received.
type Gap struct {
	After  int64  `json:"after"` // -1 when the stream began above 0
	Next   int64  `json:"next"`
	Stream string `json:"stream"`
	UID    uint32 `json:"uid"`
}

// Boot names what was measured while the machine started: lists that are recorded as blobs, and the seal whose PCR values they lead to.
type Boot struct {
	EventLog *Hash  `json:"event_log,omitzero"` // SHA-256 of the boot event log (TCG binary_bios_measurements)
	IMA      *Hash  `json:"ima,omitzero"`       // SHA-256 of the kernel's IMA list (binary_runtime_measurements)
	Replayed bool   `json:"replayed,omitzero"`  // the daemon found that the event log leads to those values
	Seal     uint64 `json:"seal"`               // number of the first seal of the start
}

// ParseSystem reads the body of an entry of kind system.
func ParseSystem(body []byte) (*System, error) {
	s := new(System)
	if err := UnmarshalCanonical(body, s); err != nil {
		return nil, err
	}
	return s, s.Check()
}

// Check refuses what ParseSystem would not accept.
func (s *System) Check() error {
	switch s.Event {
	case SystemStart, SystemStop, SystemConfig, SystemAlarm, SystemRecovery, SystemBoot:
		if s.Gap != nil {
			return refuse("gap", "only an event gap has it")
		}
	case SystemGap:
		if s.Gap == nil {
			return refuse("gap", "required")
		}
		if g := s.Gap; g.Stream == "" || len(g.Stream) > MaxID || g.After < -1 || g.Next > MaxInt || g.After+1 >= g.Next {
			return refuse("gap", "must name a stream and leave out at least one number")
		}
	default:
		return refuse("event", "unknown event %q", clip(s.Event, 40))
	}
	if (s.Event == SystemBoot) != (s.Boot != nil) {
		return refuse("boot", "an event boot has it, others do not")
	}
	if b := s.Boot; b != nil && (b.EventLog == nil && b.IMA == nil || b.Replayed && b.EventLog == nil || b.Seal == 0 || b.Seal > MaxInt) {
		return refuse("boot", "must name a list and the number of a seal")
	}
	if (s.Event == SystemAlarm) != (s.Code != "") && s.Event != SystemRecovery {
		return refuse("code", "an alarm has it, other events do not")
	}
	if s.Code != "" && !s.Code.known() {
		return refuse("code", "unknown code %q", clip(string(s.Code), 40))
	}
	if s.Size != nil && *s.Size > MaxInt {
		return refuse("size", "must be at most 2^53-1")
	}
	return checkTexts(text{"message", s.Message, MaxMessage}, text{"version", s.Version, MaxID})
}

// Access is the body of an entry of kind access: what somebody read of the log.
type Access struct {
	Action string `json:"action"` // what was done, in the form of an event's type: read, search, export, challenge, activate
	// Activation is the transcript of a credential activation, an object; package attest reads it. Only the action activate has it.
	Activation json.RawMessage `json:"activation,omitzero"`
	By         Producer        `json:"by"`               // who
	From       *uint64         `json:"from,omitzero"`    // first index
	Purpose    string          `json:"purpose,omitzero"` // what for, as the reader states it, at most MaxPurpose bytes
	Query      string          `json:"query,omitzero"`   // the search or nonce as it was given, at most MaxMessage bytes
	Role       string          `json:"role"`             // auditor, officer or operator
	To         *uint64         `json:"to,omitzero"`      // first index not read
	Denied     bool            `json:"denied,omitzero"`  // it was tried and refused
}

// MaxPurpose bounds a stated purpose, in bytes.
const MaxPurpose = 512

// AccessActivate is the action of an auditor who had a credential activated.
const AccessActivate = "activate"

// ParseAccess reads the body of an entry of kind access.
func ParseAccess(body []byte) (*Access, error) {
	a := new(Access)
	if err := UnmarshalCanonical(body, a); err != nil {
		return nil, err
	}
	return a, a.Check()
}

// Check refuses what ParseAccess would not accept.
func (a *Access) Check() error {
	if reason := checkType([]byte(a.Action)); reason != "" {
		return refuse("action", "%s", reason)
	}
	if (a.Action == AccessActivate) != (len(a.Activation) > 0 && a.Activation[0] == '{') {
		return refuse("activation", "the action %s has it, others do not", AccessActivate)
	}
	if err := a.By.check(); err != nil {
		return within("by", err)
	}
	switch {
	case a.Role == "auditor" || a.Role == "officer" || a.Role == "operator":
	case a.Role == RoleNone && a.Denied:
	default:
		return refuse("role", "must be auditor, officer or operator; %s of who was refused", RoleNone)
	}
	if a.From != nil && *a.From > MaxInt || a.To != nil && *a.To > MaxInt || a.From != nil && a.To != nil && *a.From > *a.To {
		return refuse("to", "must not be before from, and at most 2^53-1")
	}
	return checkTexts(text{"purpose", a.Purpose, MaxPurpose}, text{"query", a.Query, MaxMessage})
}

// RoleNone is the role of who has none that would matter, and was refused.
const RoleNone = "none"

// Blob is the body of an entry of kind blob: one part of evidence that is too large for one entry. Other entries refer to the
// whole by its SHA-256.
type Blob struct {
	Data   []byte `json:"data"`   // at most MaxBlobPart bytes; all parts but the last have exactly that many
	Name   string `json:"name"`   // what it is, as `bootlog`; in the form of an event's type
	Part   int    `json:"part"`   // from 0
	Parts  int    `json:"parts"`  // 1 to MaxBlobParts
	SHA256 Hash   `json:"sha256"` // of the whole
	Size   int    `json:"size"`   // bytes of the whole
}

// Limits of blobs.
const (
	MaxBlobPart  = 32 << 10
	MaxBlobParts = 512 // 16 MiB
)

// SplitBlob returns the parts of data, in order.
func SplitBlob(name string, data []byte) ([]Blob, error) {
	if reason := checkType([]byte(name)); reason != "" {
		return nil, refuse("name", "%s", reason)
	}
	if limit := MaxBlobPart * MaxBlobParts; len(data) > limit {
		return nil, tooLarge("data", len(data), limit)
	}
	sum := Hash(sha256.Sum256(data))
	parts := make([]Blob, blobParts(len(data)))
	for i := range parts {
		part := data[i*MaxBlobPart : min((i+1)*MaxBlobPart, len(data))]
		parts[i] = Blob{Data: part, Name: name, Part: i, Parts: len(parts), SHA256: sum, Size: len(data)}
	}
	return parts, nil
}

func blobParts(size int) int { return max(1, (size+MaxBlobPart-1)/MaxBlobPart) }

// JoinBlob returns the whole of which parts are all the parts, in order.
func JoinBlob(parts []Blob) ([]byte, error) {
	var data []byte
	for i, p := range parts {
		if err := p.Check(); err != nil {
			return nil, within(fmt.Sprintf("[%d]", i), err)
		}
		if p.Part != i || p.Parts != len(parts) || p.SHA256 != parts[0].SHA256 || p.Name != parts[0].Name || p.Size != parts[0].Size {
			return nil, refuse(fmt.Sprintf("[%d]", i), "is not part %d of %d of the same blob", i, len(parts))
		}
		data = append(data, p.Data...)
	}
	if len(parts) == 0 || sha256.Sum256(data) != parts[0].SHA256 {
		return nil, refuse("sha256", "the parts do not add up to the blob")
	}
	return data, nil
}

// ParseBlob reads the body of an entry of kind blob.
func ParseBlob(body []byte) (*Blob, error) {
	b := new(Blob)
	if err := UnmarshalCanonical(body, b); err != nil {
		return nil, err
	}
	return b, b.Check()
}

// Check refuses what ParseBlob would not accept.
func (b *Blob) Check() error {
	if reason := checkType([]byte(b.Name)); reason != "" {
		return refuse("name", "%s", reason)
	}
	if b.Size < 0 || b.Size > MaxBlobPart*MaxBlobParts {
		return tooLarge("size", b.Size, MaxBlobPart*MaxBlobParts)
	}
	if b.Parts != blobParts(b.Size) || b.Part < 0 || b.Part >= b.Parts {
		return refuse("part", "part %d of %d does not fit a size of %d bytes", b.Part, b.Parts, b.Size)
	}
	if want := min(MaxBlobPart, b.Size-b.Part*MaxBlobPart); len(b.Data) != want {
		return refuse("data", "must have %d bytes", want)
	}
	return nil
}

type text struct {
	field, value string
	limit        int
}

func checkTexts(texts ...text) error {
	for _, t := range texts {
		if len(t.value) > t.limit {
			return tooLarge(t.field, len(t.value), t.limit)
		}
		if !utf8.ValidString(t.value) {
			return refuse(t.field, "must be UTF-8")
		}
	}
	return nil
}
