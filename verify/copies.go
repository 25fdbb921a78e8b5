package verify

import (
	"bytes"
	"context"
	"fmt"
	"path"
	"strconv"
	"strings"

	"bulla/record"
)

// copies compares the files beside the evidence, made for standard tools, with the entries that they are copies of.
type copies struct {
	r     *run
	dir   string // whose files are in memory, if made
	made  bool
	files map[string][]byte
}

// maxCopy bounds a copy, in bytes: that of a seal lies within an entry.
const maxCopy = 4 * record.MaxEntry

// judge compares a file; known is false when it is no copy of anything. Of a file whose bytes another version of this program may make
// in another way, a difference is no finding: alike is false then.
func (c *copies) judge(ctx context.Context, name string) (known, alike bool, err error) {
	dir, base := path.Split(name)
	if dir != c.dir || !c.made {
		c.dir, c.made = dir, true
		if c.files, err = c.make(ctx, strings.TrimSuffix(dir, "/")); err != nil {
			return false, false, err
		}
	}
	want, ok := c.files[base]
	if !ok {
		return false, false, nil
	}
	got, _, err := read(ctx, c.r.src, name, maxCopy)
	if err != nil || bytes.Equal(got, want) {
		return true, true, err
	}
	if dir == "" || base == "attest.pb" {
		return true, false, nil
	}
	c.r.find(Finding{Rule: "copy.differs", File: name, Expected: fmt.Sprintf("the %d bytes that the entry holds", len(want)), Found: "other bytes"})
	return true, true, nil
}

// make makes the files of a directory anew; there are none for a directory of anything else.
func (c *copies) make(ctx context.Context, dir string) (map[string][]byte, error) {
	o := &c.r.fold.outline
	if dir == "" {
		last, err := c.seal(ctx, o.lastAt)
		return map[string][]byte{"README.md": o.readme(c.r.head, &c.r.fold.state, len(c.r.cosigned), last.commands, nil).text()}, err
	}
	if tpm := o.current(); dir == "enrolment" && tpm != nil {
		files, err := tpm.Files()
		if err != nil {
			return nil, nil // reported with the genesis
		}
		return files, nil
	}
	text, ok := strings.CutPrefix(dir, "seals/")
	number, err := strconv.ParseUint(text, 10, 64)
	index, seen := c.r.fold.sealAt[number]
	if !ok || err != nil || !seen || strconv.FormatUint(number, 10) != text {
		return nil, nil
	}
	s, err := c.seal(ctx, index)
	return s.files, err
}

// seal makes the copies of the seal in an entry; there are none of what is none, which was reported.
func (c *copies) seal(ctx context.Context, index uint64) (sealCopies, error) {
	tpm := c.r.fold.outline.tpm(index)
	if tpm == nil || index >= c.r.head.Size {
		return sealCopies{}, nil
	}
	b, ok, err := read(ctx, c.r.src, record.TilePath(tileOf(entries, index, c.r.head.Size)), maxBundle)
	if err != nil || !ok {
		return sealCopies{}, err
	}
	raw, err := record.ParseBundle(b)
	if err != nil || index%tileWidth >= uint64(len(raw)) {
		return sealCopies{}, nil
	}
	e, err := record.ParseEntry(raw[index%tileWidth])
	if err != nil {
		return sealCopies{}, nil
	}
	s, err := copiesOf(tpm.Enrolment, e.Body)
	if err != nil {
		return sealCopies{}, nil
	}
	return s, nil
}
