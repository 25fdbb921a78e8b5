package main

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"strconv"

	"bulla/api"
	"bulla/record"
)

// Terms: what an index knows of entries. Each is a hash of a field's letter and a value; if two meet, a bundle more is read.
const (
	termActor       = 'a'
	termTarget      = 'g'
	termNet         = 'i'
	termUnit        = 'n'
	termOutcome     = 'o'
	termTrace       = 'r'
	termSession     = 's'
	termTransaction = 't'
	termUID         = 'u'
	termType        = 'y'
	termBelow       = 'Y'
)

// maxTerms bounds the terms of an entry: a type of 255 bytes has 128 parts.
const maxTerms = 160

// termOf is FNV-1a of the letter and the value, 64 bits.
func termOf[T string | []byte](field byte, value T) uint64 {
	const prime = 1099511628211
	h := (uint64(14695981039346656037) ^ uint64(field)) * prime
	for i := range len(value) {
		h = (h ^ uint64(value[i])) * prime
	}
	return h
}

// networks are the lengths of network prefixes that are indexed, the longest first.
var networks = map[bool][]int{true: {32, 24, 16, 8}, false: {128, 64, 48, 32}}

// queryTerms are terms that a bundle has if an entry in it meets the query.
func queryTerms(q *api.Query) (out []uint64) {
	add := func(field byte, value string) {
		if value != "" {
			out = append(out, termOf(field, value))
		}
	}
	if q.UID != nil {
		add(termUID, strconv.FormatUint(uint64(*q.UID), 10))
	}
	add(termUnit, q.Unit)
	if q.Below {
		add(termBelow, q.Type)
	} else {
		add(termType, q.Type)
	}
	add(termActor, q.Actor)
	add(termTarget, q.Target)
	add(termSession, q.Session)
	add(termTransaction, q.Transaction)
	add(termTrace, q.Trace)
	add(termOutcome, q.Outcome)
	if q.Src.IsValid() {
		for _, bits := range networks[q.Src.Addr().Is4()] {
			if bits <= q.Src.Bits() {
				add(termNet, netip.PrefixFrom(q.Src.Addr(), bits).Masked().String())
				break
			}
		}
	}
	return out
}

// add adds an entry to its bundle's row, and appends its terms.
func (r *row) add(raw []byte, terms []uint64) []uint64 {
	e, err := record.ParseEntry(raw)
	if err != nil {
		r.opaque = true
		return terms
	}
	r.kinds |= kindBit(e.Kind)
	r.earliest, r.latest = min(r.earliest, e.Stamp.Earliest()), max(r.latest, e.Stamp.Latest())
	if p := e.Producer; p != nil {
		terms = append(terms, termOf(termUID, strconv.FormatUint(uint64(p.UID), 10)))
		if p.Unit != "" {
			terms = append(terms, termOf(termUnit, p.Unit))
		}
	}
	if e.Kind != record.KindEvent {
		return terms
	}
	members(e.Body, func(name string, value []byte) {
		switch name {
		case "actor":
			members(value, func(name string, value []byte) {
				if name != "type" {
					terms = append(terms, termOf(termActor, text(value)))
				}
			})
		case "target":
			members(value, func(name string, value []byte) {
				if name == "id" {
					terms = append(terms, termOf(termTarget, text(value)))
				}
			})
		case "src":
			members(value, func(name string, value []byte) {
				if name == "ip" {
					terms = appendNetworks(terms, text(value))
				}
			})
		case "session_id":
			terms = append(terms, termOf(termSession, text(value)))
		case "transaction_id":
			terms = append(terms, termOf(termTransaction, text(value)))
		case "trace_id":
			terms = append(terms, termOf(termTrace, text(value)))
		case "outcome":
			terms = append(terms, termOf(termOutcome, text(value)))
		case "type":
			terms = appendTypes(terms, text(value))
		case "severity":
			n, err := strconv.ParseUint(string(value), 10, 8)
			r.severity, r.opaque = max(r.severity, uint8(n)), r.opaque || err != nil
		}
	})
	return terms
}

func appendTypes(terms []uint64, typ []byte) []uint64 {
	for i, c := range typ {
		if c == '.' {
			terms = append(terms, termOf(termBelow, typ[:i+1]))
		}
	}
	return append(terms, termOf(termType, typ))
}

func appendNetworks(terms []uint64, ip []byte) []uint64 {
	addr, err := netip.ParseAddr(string(ip))
	if err != nil {
		return terms // then no query finds it either
	}
	var b [64]byte
	for _, bits := range networks[addr.Is4()] {
		terms = append(terms, termOf(termNet, netip.PrefixFrom(addr, bits).Masked().AppendTo(b[:0])))
	}
	return terms
}

// members calls f with the name and value of each member of a canonical object that has been checked; names here need no escapes, and
// one that has some is none of those that are asked for.
func members(object []byte, f func(name string, value []byte)) {
	for i := 1; i < len(object) && object[i] == '"'; i++ {
		end := skipValue(object, i)
		name := object[i+1 : end-1]
		from := end + 1 // the colon
		i = skipValue(object, from)
		f(string(name), object[from:i])
	}
}

// skipValue is where the value that begins at i of canonical JSON ends.
func skipValue(b []byte, i int) int {
	depth := 0
	for ; i < len(b); i++ {
		switch b[i] {
		case '"':
			for i++; b[i] != '"'; i++ {
				if b[i] == '\\' {
					i++
				}
			}
		case '{', '[':
			depth++
			continue
		case '}', ']':
			if depth == 0 {
				return i // of the object around it
			}
			depth--
		case ',', ':':
			if depth == 0 {
				return i
			}
			continue
		default:
			continue
		}
		if depth == 0 {
			return i + 1
		}
	}
	return i
}

// text is what a canonical JSON string says.
func text(value []byte) []byte {
	if !bytes.ContainsRune(value, '\\') {
		return value[1 : len(value)-1]
	}
	var s string
	if err := json.Unmarshal(value, &s); err != nil {
		panic("bulla: a string that was checked cannot be read: " + err.Error())
	}
	return []byte(s)
}
