package record

import (
	"bytes"

	"bulla/clock"
)

// EntryParser is ParseEntry for entries of one log that are read one after the other: what an entry says in the same bytes as one
// before it, as most of its envelope is, is not read again. The zero value is ready; it is for one goroutine.
type EntryParser struct {
	single bool // nothing is remembered
	stamp  memo[clock.Stamp]
	round  memo[clock.Stamp]
	name   memo[name]
	tails  [4]memo[tail] // the last one first: several producers may take turns
}

// name is what kind of entry of which log it is: what stands from the index to the hash of the entry before.
type name struct {
	kind Kind
	log  string
}

// tail is what stands behind that hash.
type tail struct {
	producer *Producer
	midnight int64 // of the day, ns since 1970
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
		c.hash(&e.Prev)
	}
	e.Stamp.Sys = p.readTail(&c, e) + c.timeOfDay()
	c.literal(`","v":1}`)
	return c.i == len(b) && (e.Index == 0) == (e.Prev == Hash{}) && (e.Kind != KindEvent || isEvent)
}

func (p *EntryParser) readStamp(c *cursor, e *Entry) {
	if p.stamp.again(c) {
		e.Stamp = p.stamp.value
		return
	}
	from := c.i
	c.literal(`,"clock":{`)
	if c.option(`"age":`) {
		c.estimate(&e.Stamp)
	} else {
		c.literal(`"epoch":`)
		e.Stamp.Epoch = uint32(c.int(0, 1<<32-1))
	}
	p.readRound(c, &e.Stamp)
	if !p.single {
		p.stamp.keep(c, from, e.Stamp)
	}
}

// readRound reads what many stamps share that differ in age and offset: the round of measurement and the clock's state.
func (p *EntryParser) readRound(c *cursor, s *clock.Stamp) {
	if last := &p.round.value; s.HasEstimate == last.HasEstimate && p.round.again(c) {
		s.Round, s.State = last.Round, last.State
		return
	}
	from := c.i
	if s.HasEstimate {
		c.literal(`,"round":`)
		s.Round = uint64(c.int(0, MaxInt))
	}
	c.literal(`,"state":"`)
	var ok bool
	if s.State, ok = parseState(string(c.word())); !ok {
		c.i = -1
	}
	c.literal(`},"index":`)
	if !p.single {
		p.round.keep(c, from, *s)
	}
}

func (p *EntryParser) readName(c *cursor, e *Entry) {
	chained := e.Index > 0
	if chained && p.name.again(c) {
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
	if chained {
		c.literal(`,"prev":"`)
	}
	if chained && !p.single {
		p.name.keep(c, from, name{e.Kind, e.Log})
	}
}

// readTail returns the midnight of the entry's day.
func (p *EntryParser) readTail(c *cursor, e *Entry) int64 {
	chained := e.Index > 0
	for i := range p.tails {
		if t := &p.tails[i]; chained && t.again(c) {
			e.Producer = t.value.producer
			midnight := t.value.midnight
			p.tails[0], *t = *t, p.tails[0]
			return midnight
		}
	}
	from := c.i
	if chained {
		c.literal(`"`)
	}
	if c.option(`,"producer":`) {
		e.Producer = new(Producer)
		c.producer(e.Producer)
	}
	c.literal(`,"time":"`)
	midnight := c.date()
	if chained && !p.single {
		last := len(p.tails) - 1
		p.tails[0], p.tails[last] = p.tails[last], p.tails[0]
		p.tails[0].keep(c, from, tail{e.Producer, midnight})
	}
	return midnight
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

// estimate reads what a stamp with an estimate has from the age to the offset.
func (c *cursor) estimate(s *clock.Stamp) {
	s.HasEstimate = true
	s.Age = c.int(0, MaxInt)
	c.literal(`,"bound":`)
	s.Bound = c.int(0, MaxInt)
	c.literal(`,"epoch":`)
	s.Epoch = uint32(c.int(0, 1<<32-1))
	c.literal(`,"offset":`)
	s.Offset = c.int(-MaxInt, MaxInt)
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
