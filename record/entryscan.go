package record

import (
	"bytes"

	"bulla/clock"
)

// EntryParser is ParseEntry for entries of one log that are read one after the other: what an entry says in the same bytes as the one
// before it, as most of its envelope is, is not read again. The zero value is ready; it is for one goroutine.
type EntryParser struct {
	single   bool // nothing is remembered
	stamp    memo[clock.Stamp]
	name     memo[name]
	producer memo[*Producer]
	date     memo[int64] // ns of its midnight
}

// name is what kind of entry of which log it is.
type name struct {
	kind Kind
	log  string
}

// Parse reads an entry's bytes into e, with ParseEntry's result. A producer may be shared with entries that were read before, and is
// not to be changed.
func (p *EntryParser) Parse(e *Entry, b []byte) error {
	if len(b) > MaxEntry {
		return tooLarge("", len(b), MaxEntry)
	}
	if p.scan(e, b) {
		return nil
	}
	read, err := parseEntry(b)
	if err != nil {
		return err
	}
	*e = *read
	return nil
}

// scan reads an entry in one pass. Where it says no, parseEntry decides; whatever it accepts, parseEntry would read the same.
func (p *EntryParser) scan(e *Entry, b []byte) bool {
	*e = Entry{}
	c := cursor{b: b}
	c.literal(`{"body":`)
	isEvent := c.body(e)
	p.readStamp(&c, e)
	e.Index = uint64(c.int(0, MaxInt))
	p.readName(&c, e)
	if e.Index > 0 {
		c.literal(`,"prev":"`)
		c.hash(&e.Prev)
		c.literal(`"`)
	}
	p.readProducer(&c, e)
	p.readTime(&c, e)
	c.literal(`","v":1}`)
	return c.i == len(b) && (e.Index == 0) == (e.Prev == Hash{}) && (e.Kind != KindEvent || isEvent)
}

func (p *EntryParser) readStamp(c *cursor, e *Entry) {
	if p.stamp.again(c) {
		e.Stamp = p.stamp.value
		return
	}
	from := c.i
	c.literal(`,"clock":`)
	c.stamp(e)
	c.literal(`,"index":`)
	if !p.single {
		p.stamp.keep(c, from, e.Stamp)
	}
}

func (p *EntryParser) readName(c *cursor, e *Entry) {
	if p.name.again(c) {
		e.Kind, e.Log = p.name.value.kind, p.name.value.log
		return
	}
	from := c.i
	c.literal(`,"kind":"`)
	e.Kind = c.kind()
	c.literal(`,"log":`)
	if e.Log = c.text(MaxOrigin); CheckOrigin(e.Log) != nil {
		c.i = -1
	}
	if !p.single {
		p.name.keep(c, from, name{e.Kind, e.Log})
	}
}

func (p *EntryParser) readProducer(c *cursor, e *Entry) {
	if p.producer.again(c) {
		e.Producer = p.producer.value
		return
	}
	from := c.i
	if !c.option(`,"producer":`) {
		return
	}
	e.Producer = new(Producer)
	c.producer(e.Producer)
	if !p.single {
		p.producer.keep(c, from, e.Producer)
	}
}

func (p *EntryParser) readTime(c *cursor, e *Entry) {
	midnight := p.date.value
	if !p.date.again(c) {
		from := c.i
		c.literal(`,"time":"`)
		midnight = c.date()
		if !p.single {
			p.date.keep(c, from, midnight)
		}
	}
	e.Stamp.Sys = midnight + c.timeOfDay()
}

// memo is what the last text of some kind meant. The text ends where, whatever follows, its kind of text ends.
type memo[T any] struct {
	text  []byte
	value T
}

// again steps over the text if it is next again.
func (m *memo[T]) again(c *cursor) bool {
	if c.i < 0 || len(m.text) == 0 || !bytes.HasPrefix(c.b[c.i:], m.text) {
		return false
	}
	c.i += len(m.text)
	return true
}

// keep remembers what was read from an index on, if it was as expected.
func (m *memo[T]) keep(c *cursor, from int, value T) {
	if c.i >= 0 {
		m.text, m.value = append(m.text[:0], c.b[from:c.i]...), value
	}
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
	if c.i < 0 || len(c.b)-c.i < hashText || !scanHash(h, (*[hashText]byte)(c.b[c.i:])) {
		c.i = -1
		return
	}
	c.i += hashText
}

// date reads a date and the T behind it, and returns its midnight in ns since 1970.
func (c *cursor) date() int64 {
	const size = len("2006-01-02T")
	if c.i < 0 || len(c.b)-c.i < size {
		c.i = -1
		return 0
	}
	ns, ok := scanDate(c.b[c.i:][:size])
	if !ok {
		c.i = -1
		return 0
	}
	c.i += size
	return ns
}

// timeOfDay reads what stands behind a date, in ns.
func (c *cursor) timeOfDay() int64 {
	const size = len("15:04:05.000000000Z")
	if c.i < 0 || len(c.b)-c.i < size {
		c.i = -1
		return 0
	}
	ns, ok := scanTimeOfDay(c.b[c.i:][:size])
	if !ok {
		c.i = -1
		return 0
	}
	c.i += size
	return ns
}
