package record

import (
	"encoding/base64"

	"golang.org/x/mod/sumdb/tlog"
)

// scanEntry reads an entry in one pass. Where it says no, parseEntry decides; whatever it accepts, parseEntry would read the same.
func scanEntry(b []byte) (*Entry, bool) {
	e := new(Entry)
	c := cursor{b: b}
	c.literal(`{"body":`)
	isEvent := c.body(e)
	c.literal(`,"clock":`)
	c.stamp(e)
	c.literal(`,"index":`)
	e.Index = uint64(c.int(0, MaxInt))
	c.literal(`,"kind":"`)
	e.Kind = c.kind()
	c.literal(`,"log":`)
	e.Log = c.text(MaxOrigin)
	if e.Index > 0 {
		c.literal(`,"prev":"`)
		c.hash(&e.Prev)
		c.literal(`"`)
	}
	if c.option(`,"producer":`) {
		e.Producer = new(Producer)
		c.producer(e.Producer)
	}
	c.literal(`,"time":"`)
	e.Stamp.Sys = c.time()
	c.literal(`","v":1}`)
	ok := c.i == len(b) && (e.Index == 0) == (e.Prev == Hash{}) && CheckOrigin(e.Log) == nil && (e.Kind != KindEvent || isEvent)
	return e, ok
}

// cursor reads canonical text from the front; i is -1 from the first thing on that is not as expected.
type cursor struct {
	b []byte
	i int
}

func (c *cursor) literal(s string) {
	if c.i >= 0 {
		c.i = scanLiteral(c.b, c.i, s)
	}
}

func (c *cursor) option(s string) bool {
	if c.i < 0 || scanLiteral(c.b, c.i, s) < 0 {
		return false
	}
	c.i += len(s)
	return true
}

// body reads the body and reports whether it would do for an event.
func (c *cursor) body(e *Entry) (isEvent bool) {
	if c.i < 0 || c.i >= len(c.b) || c.b[c.i] != '{' {
		c.i = -1
		return false
	}
	from := c.i
	if c.i = scanEvent(c.b, from, nil); c.i > 0 && c.i-from <= MaxEvent {
		isEvent = true
	} else {
		c.i = scanObject(c.b, from, MaxDepth-1)
	}
	if c.i > 0 {
		e.Body = c.b[from:c.i:c.i]
	}
	return isEvent
}

func (c *cursor) stamp(e *Entry) {
	s := &e.Stamp
	c.literal(`{`)
	if c.option(`"age":`) {
		s.HasEstimate = true
		s.Age = c.int(0, MaxInt)
		c.literal(`,"bound":`)
		s.Bound = c.int(0, MaxInt)
		c.literal(`,`)
	}
	c.literal(`"epoch":`)
	s.Epoch = uint32(c.int(0, 1<<32-1))
	if s.HasEstimate {
		c.literal(`,"offset":`)
		s.Offset = c.int(-MaxInt, MaxInt)
		c.literal(`,"round":`)
		s.Round = uint64(c.int(0, MaxInt))
	}
	c.literal(`,"state":"`)
	var ok bool
	if s.State, ok = parseState(string(c.word())); !ok {
		c.i = -1
	}
	c.literal(`}`)
}

func (c *cursor) producer(p *Producer) {
	c.literal(`{`)
	if c.option(`"exe":`) {
		p.Exe = c.text(MaxExe)
		c.literal(`,`)
	}
	c.literal(`"gid":`)
	p.GID = uint32(c.int(0, 1<<32-1))
	if c.option(`,"pid":`) {
		p.PID = int(c.int(1, 1<<31-1))
	}
	c.literal(`,"uid":`)
	p.UID = uint32(c.int(0, 1<<32-1))
	if c.option(`,"unit":`) {
		p.Unit = c.text(MaxUnit)
	}
	c.literal(`}`)
	if !printable(p.Exe) || !printable(p.Unit) {
		c.i = -1
	}
}

// word reads lower-case letters up to and with the quote that ends them.
func (c *cursor) word() []byte {
	if c.i < 0 {
		return nil
	}
	from := c.i
	for i := from; i < len(c.b); i++ {
		switch ch := c.b[i]; {
		case ch == '"':
			c.i = i + 1
			return c.b[from:i]
		case ch < 'a' || ch > 'z':
			c.i = -1
			return nil
		}
	}
	c.i = -1
	return nil
}

func (c *cursor) kind() Kind {
	w := c.word()
	if string(w) == string(KindEvent) {
		return KindEvent // without a copy
	}
	k := Kind(w)
	if !k.known() {
		c.i = -1
	}
	return k
}

// text reads a string of 1 to limit bytes.
func (c *cursor) text(limit int) string {
	if c.i < 0 {
		return ""
	}
	from := c.i
	if c.i = scanText(c.b, from, limit); c.i < 0 {
		return ""
	}
	return string(unescape(c.b[from+1 : c.i-1]))
}

func (c *cursor) int(lowest, highest int64) (n int64) {
	if c.i >= 0 {
		n, c.i = scanInt(c.b, c.i, lowest, highest)
	}
	return n
}

func (c *cursor) hash(h *Hash) {
	const size = 44 // base64 of 32 bytes
	if c.i < 0 || len(c.b)-c.i < size {
		c.i = -1
		return
	}
	// The decoder steps over line ends, but then 44 characters are not 32 bytes.
	var raw [tlog.HashSize + 2]byte // the decoder wants room for whole groups
	n, err := base64.StdEncoding.Strict().Decode(raw[:], c.b[c.i:c.i+size])
	if err != nil || n != tlog.HashSize {
		c.i = -1
		return
	}
	*h = Hash(raw[:tlog.HashSize])
	c.i += size
}

func (c *cursor) time() int64 {
	if c.i < 0 || len(c.b)-c.i < len(timeLayout) {
		c.i = -1
		return 0
	}
	ns, ok := scanTime(c.b[c.i : c.i+len(timeLayout)])
	if !ok {
		c.i = -1
		return 0
	}
	c.i += len(timeLayout)
	return ns
}
