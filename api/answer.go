package api

import (
	"encoding/base64"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"bulla/record"
)

// Append appends the answer as JSON. It is the hot path of the server: what it writes is what encoding/json would, but for the
// escapes in strings.
func (a *Answer) Append(dst []byte) []byte {
	dst = strconv.AppendUint(append(dst, `{"id":`...), a.ID, 10)
	dst = AppendString(append(dst, `,"status":`...), a.Status)
	if a.Checkpoint != "" {
		dst = AppendString(append(dst, `,"checkpoint":`...), a.Checkpoint)
	}
	if len(a.Items) > 0 {
		dst = append(dst, `,"items":[`...)
		for i := range a.Items {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = a.Items[i].append(dst)
		}
		dst = append(dst, ']')
	}
	if a.More {
		dst = append(dst, `,"more":true`...)
	}
	if a.Code != "" {
		dst = AppendString(append(dst, `,"code":`...), string(a.Code))
	}
	if a.Message != "" {
		dst = AppendString(append(dst, `,"message":`...), a.Message)
	}
	if a.Field != "" {
		dst = AppendString(append(dst, `,"field":`...), a.Field)
	}
	if a.RetryAfterMS != 0 {
		dst = strconv.AppendInt(append(dst, `,"retry_after_ms":`...), a.RetryAfterMS, 10)
	}
	return append(dst, '}')
}

func (it *Item) append(dst []byte) []byte {
	dst = strconv.AppendUint(append(dst, `{"index":`...), it.Index, 10)
	if len(it.Entry) > 0 {
		dst = append(base64.StdEncoding.AppendEncode(append(dst, `,"entry":"`...), it.Entry), '"')
	}
	if len(it.Proof) > 0 {
		dst = appendHashes(append(dst, `,"proof":`...), it.Proof)
	}
	if it.Leaf != nil {
		dst = append(base64.StdEncoding.AppendEncode(append(dst, `,"leaf":"`...), it.Leaf[:]), '"')
	}
	return append(dst, '}')
}

func appendHashes(dst []byte, hashes []record.Hash) []byte {
	dst = append(dst, '[')
	for i := range hashes {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(base64.StdEncoding.AppendEncode(append(dst, '"'), hashes[i][:]), '"')
	}
	return append(dst, ']')
}

// Size is about how many bytes the item takes in an answer, and never less than it takes.
func (it *Item) Size() int { return 192 + (len(it.Entry)+2)/3*4 + 47*len(it.Proof) }

// AppendReceipt appends the canonical JSON of a receipt: the bytes of record.Receipt.MarshalJSON.
func AppendReceipt(dst []byte, checkpoint []byte, it *Item) []byte {
	dst = AppendString(append(dst, `{"checkpoint":`...), string(checkpoint))
	dst = base64.StdEncoding.AppendEncode(append(dst, `,"entry":"`...), it.Entry)
	dst = strconv.AppendUint(append(dst, `","index":`...), it.Index, 10)
	dst = appendHashes(append(dst, `,"proof":`...), it.Proof)
	return append(dst, '}')
}

// AppendString appends a JSON string with no more escapes than RFC 8785 has. What is not UTF-8 is replaced.
func AppendString(dst []byte, s string) []byte {
	if !utf8.ValidString(s) {
		s = strings.ToValidUTF8(s, "\uFFFD")
	}
	dst = append(dst, '"')
	from := 0
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c >= 0x20 && c != '"' && c != '\\' {
			continue
		}
		dst = append(dst, s[from:i]...)
		from = i + 1
		switch c {
		case '"', '\\':
			dst = append(dst, '\\', c)
		case '\b':
			dst = append(dst, '\\', 'b')
		case '\f':
			dst = append(dst, '\\', 'f')
		case '\n':
			dst = append(dst, '\\', 'n')
		case '\r':
			dst = append(dst, '\\', 'r')
		case '\t':
			dst = append(dst, '\\', 't')
		default:
			dst = append(dst, '\\', 'u', '0', '0', "0123456789abcdef"[c>>4], "0123456789abcdef"[c&15])
		}
	}
	return append(append(dst, s[from:]...), '"')
}

// Frame appends the answer as a frame.
func (a *Answer) Frame(dst []byte) []byte {
	at := len(dst)
	dst = a.Append(BeginFrame(dst))
	EndFrame(dst[at:])
	return dst
}

// Err is what an answer means to the caller: nil, a *Refusal, or an error that wraps ErrUnknown.
func (a *Answer) Err() error {
	switch a.Status {
	case StatusOK:
		return nil
	case StatusRefused:
		return &Refusal{Code: a.Code, Message: a.Message, Field: a.Field, RetryAfter: time.Duration(a.RetryAfterMS) * time.Millisecond}
	}
	return fmt.Errorf("%w: %s", ErrUnknown, a.Message)
}

// parseAnswer reads an answer; unknown members are ignored. The answer shares no memory with b.
func parseAnswer(b []byte) (*Answer, error) {
	a := new(Answer)
	p := answerParser{scanner: scanner{b: b}}
	err := p.object(func(name []byte) error {
		err := p.member(a, name)
		if err != nil {
			return within(string(name), err)
		}
		return nil
	})
	if err == nil {
		err = p.end()
	}
	if err != nil {
		return nil, fmt.Errorf("reading an answer: %w", err)
	}
	return a, nil
}

// answerParser decodes all entries of an answer into one buffer, and all proofs into few slices.
type answerParser struct {
	scanner
	entries []byte
	hashes  []record.Hash
}

func (p *answerParser) member(a *Answer, name []byte) (err error) {
	var n uint64
	switch string(name) {
	case "id":
		a.ID, err = p.number()
	case "status":
		a.Status, err = p.text()
	case "checkpoint":
		a.Checkpoint, err = p.long()
	case "items":
		err = p.array(func(int) error { return p.item(a) })
	case "more":
		from := p.i
		err = p.skip()
		a.More = string(p.b[from:p.i]) == "true"
	case "code":
		var code string
		code, err = p.text()
		a.Code = record.Code(code)
	case "message":
		a.Message, err = p.long()
	case "field":
		a.Field, err = p.long()
	case "retry_after_ms":
		n, err = p.number()
		a.RetryAfterMS = int64(min(n, 1<<40))
	default:
		err = p.skip()
	}
	return err
}

// long reads a string of any length.
func (p *answerParser) long() (string, error) {
	from := p.i
	raw, err := p.raw()
	if err != nil || plain(raw) {
		return string(raw), err
	}
	return p.decode(p.b[from:p.i])
}

func (p *answerParser) item(a *Answer) error {
	var it Item
	start := p.i
	err := p.object(func(name []byte) (err error) {
		switch string(name) {
		case "index":
			it.Index, err = p.number()
		case "entry":
			if p.entries == nil {
				p.entries = make([]byte, 0, len(p.b)/4*3)
			}
			from := len(p.entries)
			p.entries, err = p.base64(p.entries)
			it.Entry = p.entries[from:len(p.entries):len(p.entries)]
		case "proof":
			from := len(p.hashes)
			err = p.array(func(int) error {
				h, err := p.hash()
				p.hashes = append(p.hashes, h)
				return err
			})
			it.Proof = p.hashes[from:len(p.hashes):len(p.hashes)]
		case "leaf":
			var h record.Hash
			h, err = p.hash()
			it.Leaf = &h
		default:
			err = p.skip()
		}
		return err
	})
	if err != nil {
		return err
	}
	if len(a.Items) == MaxEvents {
		return p.fail("more than %d items", MaxEvents)
	}
	if a.Items == nil { // guess the number by the first one's size
		a.Items = make([]Item, 0, min(MaxEvents, max(1, len(p.b)/max(p.i-start, 32))))
		p.hashes = slices.Grow(p.hashes, len(it.Proof)*(cap(a.Items)-1))
	}
	a.Items = append(a.Items, it)
	return nil
}

func (p *answerParser) hash() (h record.Hash, err error) {
	var buf [len(h) + 3]byte
	raw, err := p.raw()
	if err != nil {
		return h, err
	}
	if len(raw) != base64.StdEncoding.EncodedLen(len(h)) {
		return h, p.fail("not a hash in base64")
	}
	n, err := base64.StdEncoding.Decode(buf[:], raw)
	if err != nil || n != len(h) {
		return h, p.fail("not a hash in base64")
	}
	return record.Hash(buf[:n]), nil
}
