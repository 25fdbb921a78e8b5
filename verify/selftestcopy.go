package verify

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"bulla/record"
)

// What somebody can do who has a copy of the evidence and no key: change files.

// edits is a mutation of one file.
func edits(name string, edit func([]byte) []byte) func(context.Context, *subject) (*trial, error) {
	return func(ctx context.Context, s *subject) (*trial, error) {
		o, err := s.edited(ctx, name, edit)
		return &trial{exhibit: exhibit{src: o}}, err
	}
}

// rebundles is a mutation of the bundle that holds the target, which is number k of raw; the finding must be at the target, or as many
// entries from it as place says.
func rebundles(place int, edit func(raw [][]byte, k int) [][]byte) func(context.Context, *subject) (*trial, error) {
	return func(ctx context.Context, s *subject) (*trial, error) {
		i, err := s.target.or("the log has no three entries")
		if err != nil {
			return nil, err
		}
		name, raw, err := s.bundleOf(ctx, i)
		if err != nil {
			return nil, err
		}
		data := joinBundle(edit(slices.Clone(raw), int(i%tileWidth)))
		return &trial{exhibit: exhibit{src: &overlay{base: s.src, files: map[string][]byte{name: data}}}, index: at(uint64(int(i) + place)), file: name}, nil
	}
}

// retiled is a mutation of an entry together with its hash in the tile.
func retiled(edit func(e *record.Entry)) func(context.Context, *subject) (*trial, error) {
	return func(ctx context.Context, s *subject) (*trial, error) {
		i, err := s.target.or("the log has no three entries")
		if err != nil {
			return nil, err
		}
		name, raw, err := s.bundleOf(ctx, i)
		if err != nil {
			return nil, err
		}
		k := i % tileWidth
		e, err := record.ParseEntry(raw[k])
		if err != nil {
			return nil, err
		}
		edit(e)
		if raw[k], err = e.Append(nil); err != nil {
			return nil, err
		}
		hash := record.LeafHash(raw[k])
		o, err := s.edited(ctx, record.TilePath(tileOf(0, i, s.head.Size)), func(b []byte) []byte {
			copy(b[k*tlog.HashSize:], hash[:])
			return b
		})
		if err != nil {
			return nil, err
		}
		o.files[name] = joinBundle(raw)
		return &trial{exhibit: exhibit{src: o}, index: &i}, nil
	}
}

// tiled is a mutation of the tile at a level that covers the target; place is its first entry, or the target.
func tiled(level int, edit func(b []byte, k int) []byte) func(context.Context, *subject) (*trial, error) {
	return func(ctx context.Context, s *subject) (*trial, error) {
		i, err := s.target.or("the log has no three entries")
		if err != nil {
			return nil, err
		}
		n := i >> (8 * level)
		if n >= s.head.Size>>(8*level) {
			n = 0
		}
		if s.head.Size>>(8*level) == 0 {
			return nil, inapplicable("the log is too small to have tiles above the lowest")
		}
		t := tileOf(level, n, s.head.Size)
		name := record.TilePath(t)
		o, err := s.edited(ctx, name, func(b []byte) []byte { return edit(b, int(n%tileWidth)) })
		return &trial{exhibit: exhibit{src: o}, file: name}, err
	}
}

// takes is a mutation that takes a file away: nothing contradicts then, and the answer says what is missing.
func takes(name func(s *subject) string) func(context.Context, *subject) (*trial, error) {
	return func(_ context.Context, s *subject) (*trial, error) {
		n := name(s)
		return &trial{exhibit: exhibit{src: &overlay{base: s.src, files: map[string][]byte{n: nil}}}, file: n}, nil
	}
}

// older puts an older, partial copy of the last tile or bundle beside it, changed.
func older(level int, flip func(b []byte)) func(context.Context, *subject) (*trial, error) {
	return func(ctx context.Context, s *subject) (*trial, error) {
		if s.head.Size < 2 {
			return nil, inapplicable("the log is too small to have had a smaller tile")
		}
		whole := tileOf(level, s.head.Size-1, s.head.Size)
		if whole.W < 2 {
			whole = tileOf(level, 0, s.head.Size)
		}
		b, ok, err := read(ctx, s.src, record.TilePath(whole), maxBundle)
		if err != nil || !ok {
			return nil, fmt.Errorf("%s is gone: %w", record.TilePath(whole), err)
		}
		part := whole
		part.W = 1
		if level >= 0 {
			b = b[:tlog.HashSize]
		} else {
			b = b[:2+binary.BigEndian.Uint16(b)]
		}
		flip(b)
		name := record.TilePath(part)
		return &trial{exhibit: exhibit{src: &overlay{base: s.src, files: map[string][]byte{name: b}}}, file: name}, nil
	}
}

// flipDigit changes the last digit of an entry's nanoseconds by one bit; it stays a digit, and the entry canonical.
func flipDigit(raw []byte) []byte {
	raw = bytes.Clone(raw)
	raw[bytes.LastIndex(raw, []byte(`Z","v":1}`))-1] ^= 1
	return raw
}

// replaced makes an entry another one, as little else as can be.
func replaced(e *record.Entry) {
	if e.Producer != nil {
		e.Producer.Exe = "/usr/bin/true"
	} else {
		e.Stamp.Sys ^= 1
	}
}

// spaced is an entry with a space in it.
func spaced(raw []byte) []byte {
	return bytes.Replace(raw, []byte(`,"index":`), []byte(`, "index":`), 1)
}

// flipSignature flips a bit of the line of the log's authoritative key.
func flipSignature(ctx context.Context, s *subject) (*trial, error) {
	return s.eachLine(func(raw []byte) []byte { raw[len(raw)/2] ^= 1; return raw })
}

// removeSignature takes that line away.
func removeSignature(ctx context.Context, s *subject) (*trial, error) {
	return s.eachLine(func([]byte) []byte { return nil })
}

// eachLine changes the line of the log's authoritative key; nil removes it. (A log always has one in force.)
func (s *subject) eachLine(edit func([]byte) []byte) (*trial, error) {
	v, err := record.NewVerifier(s.signers[slices.IndexFunc(s.signers, isECDSA)])
	if err != nil {
		return nil, err
	}
	text, lines, _ := bytes.Cut(s.signed, []byte("\n\n"))
	out := append(bytes.Clone(text), "\n\n"...)
	for line := range bytes.Lines(lines) {
		words := strings.Fields(string(line))
		raw, err := base64.StdEncoding.DecodeString(words[len(words)-1])
		if err != nil || len(raw) < 5 {
			return nil, fmt.Errorf("a signature line cannot be read: %w", err)
		}
		if binary.BigEndian.Uint32(raw) == v.KeyHash() && words[1] == v.Name() {
			raw = edit(raw)
			if line = nil; raw != nil {
				line = fmt.Appendf(nil, "— %s %s\n", v.Name(), base64.StdEncoding.EncodeToString(raw))
			}
		}
		out = append(out, line...)
	}
	if bytes.HasSuffix(out, []byte("\n\n")) { // a note has one signature at least
		other, err := s.foreign(s.head)
		if err != nil {
			return nil, err
		}
		_, lines, _ := bytes.Cut(other, []byte("\n\n"))
		out = append(out, lines...)
	}
	return &trial{exhibit: exhibit{src: &overlay{base: s.src, files: map[string][]byte{checkpoint: out}}}, file: checkpoint}, nil
}

// otherOrigin is a log that is nobody's.
const otherOrigin = "other.example/log"

// foreign is a head signed by the key of that log.
func (s *subject) foreign(c record.Checkpoint) ([]byte, error) {
	key, err := s.ecdsaKey("other log")
	if err != nil {
		return nil, err
	}
	signer, err := record.NewSigner(otherOrigin, key)
	if err != nil {
		return nil, err
	}
	return note.Sign(&note.Note{Text: c.Text()}, signer)
}

// signForeign adds a line by the key of another log that the policy trusts.
func signForeign(ctx context.Context, s *subject) (*trial, error) {
	key, err := s.ecdsaKey("other log")
	if err != nil {
		return nil, err
	}
	vkey, err := record.VKey(otherOrigin, key.Public())
	if err != nil {
		return nil, err
	}
	policy := *s.policy
	policy.VKeys = append(slices.Clone(policy.VKeys), vkey)
	line, err := s.foreign(s.head)
	if err != nil {
		return nil, err
	}
	_, line, _ = bytes.Cut(line, []byte("\n\n"))
	signed := append(bytes.Clone(s.signed), line...)
	return &trial{
		honest:  &exhibit{name: "another log in the policy", src: s.src, policy: &policy},
		exhibit: exhibit{src: &overlay{base: s.src, files: map[string][]byte{checkpoint: signed}}, policy: &policy}, file: checkpoint,
	}, nil
}

// changeCopy changes a copy for standard tools.
func changeCopy(ctx context.Context, s *subject) (*trial, error) {
	name := ""
	err := s.src.Walk(ctx, func(n string) error {
		if strings.HasSuffix(n, "/ak.tpmt") || strings.HasPrefix(n, "seals/") && strings.HasSuffix(n, "/quote.attest") {
			name = max(name, n)
		}
		return nil
	})
	if err != nil || name == "" {
		return nil, inapplicable("the evidence has no copies for standard tools")
	}
	o, err := s.edited(ctx, name, func(b []byte) []byte { b[len(b)/2] ^= 1; return b })
	return &trial{exhibit: exhibit{src: o}, file: name}, err
}

// cutBundle cuts a bundle in the midst of an entry, and takes away the tile that tells its entries apart.
func cutBundle(ctx context.Context, s *subject) (*trial, error) {
	i, err := s.target.or("the log has no three entries")
	if err != nil {
		return nil, err
	}
	o, err := s.edited(ctx, record.TilePath(tileOf(entries, i, s.head.Size)), func(b []byte) []byte { return b[:len(b)-7] })
	if err != nil {
		return nil, err
	}
	o.files[record.TilePath(tileOf(0, i, s.head.Size))] = nil
	return &trial{exhibit: exhibit{src: o}, index: at(i - i%tileWidth)}, nil
}

// flipLength flips a bit of the length in front of the target.
func flipLength(ctx context.Context, s *subject) (*trial, error) {
	i, err := s.target.or("the log has no three entries")
	if err != nil {
		return nil, err
	}
	name, raw, err := s.bundleOf(ctx, i)
	if err != nil {
		return nil, err
	}
	before := len(joinBundle(raw[:i%tileWidth]))
	o, err := s.edited(ctx, name, func(b []byte) []byte { b[before+1] ^= 1; return b })
	return &trial{exhibit: exhibit{src: o}, index: &i, file: name}, err
}

// editHead changes the head's text and leaves its signatures.
func editHead(edit func(c *record.Checkpoint)) func(context.Context, *subject) (*trial, error) {
	return func(ctx context.Context, s *subject) (*trial, error) {
		c := s.head
		edit(&c)
		o, err := s.edited(ctx, checkpoint, func(b []byte) []byte { return bytes.Replace(b, []byte(s.head.Text()), []byte(c.Text()), 1) })
		return &trial{exhibit: exhibit{src: o}, file: checkpoint}, err
	}
}

// unplaced is a mutation whose finding has no place.
func unplaced(make func(context.Context, *subject) (*trial, error)) func(context.Context, *subject) (*trial, error) {
	return func(ctx context.Context, s *subject) (*trial, error) {
		t, err := make(ctx, s)
		if err == nil {
			t.index, t.file = nil, ""
		}
		return t, err
	}
}
