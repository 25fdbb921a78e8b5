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
	dir   string // whose files are in memory
	files map[string][]byte
}

// maxCopy bounds a copy, in bytes: that of a seal lies within an entry.
const maxCopy = 4 * record.MaxEntry

// judge compares a file; known is false when it is no copy of anything.
func (c *copies) judge(ctx context.Context, name string) (known bool, err error) {
	dir, base := path.Split(name)
	if dir != c.dir {
		c.dir = dir
		if c.files, err = c.make(ctx, strings.TrimSuffix(dir, "/")); err != nil {
			return false, err
		}
	}
	want, ok := c.files[base]
	if !ok || base == "attest.pb" { // whose encoding is another project's
		return false, nil
	}
	got, _, err := read(ctx, c.r.src, name, maxCopy)
	if err == nil && !bytes.Equal(got, want) {
		c.r.find(Finding{Rule: "copy.differs", File: name, Expected: fmt.Sprintf("the %d bytes that the entry holds", len(want)), Found: "other bytes"})
	}
	return true, err
}

// make makes the files of a directory anew; there are none for a directory of anything else.
func (c *copies) make(ctx context.Context, dir string) (map[string][]byte, error) {
	tpm := c.r.fold.state.Policy.TPM
	if tpm == nil {
		return nil, nil
	}
	if dir == "enrolment" && c.r.fold.enrolled != nil {
		files, err := c.r.fold.enrolled.Files()
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
	b, ok, err := read(ctx, c.r.src, record.TilePath(tileOf(entries, index, c.r.head.Size)), maxBundle)
	if err != nil || !ok {
		return nil, err
	}
	raw, err := record.ParseBundle(b)
	if err != nil || index%tileWidth >= uint64(len(raw)) {
		return nil, nil // reported with the bundle
	}
	e, err := record.ParseEntry(raw[index%tileWidth])
	if err != nil {
		return nil, nil // reported with the entry
	}
	_, files, _, err := sealFiles(tpm, e.Body)
	if err != nil {
		return nil, nil // reported with the seal
	}
	return files, nil
}
