package verify

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"bulla/record"
)

// judgeRest looks at every file that the head does not need. Partial tiles and bundles of earlier sizes must be the beginnings of
// those of the head; what lies beyond the head, or is not of the layout, is no evidence, and the report says so.
func (r *run) judgeRest(ctx context.Context) error {
	var beyond uint64
	var other, changed names
	copies := copies{r: r}
	err := r.src.Walk(ctx, func(name string) error {
		t, ok := record.ParseTilePath(name)
		if !ok {
			known, alike, err := copies.judge(ctx, name)
			switch {
			case known && !alike:
				changed.add(name)
			case name != checkpoint && !known && !r.isCosigned(name):
				other.add(name)
			}
			return err
		}
		full, width := tilesAt(t.L, r.head.Size)
		switch n := uint64(t.N); {
		case n < full && t.W == tileWidth, n == full && t.W == width: // read with the entries
		case n < full:
			return r.judgePart(ctx, t, tileWidth)
		case n == full && t.W < width:
			return r.judgePart(ctx, t, width)
		default:
			beyond++
		}
		return nil
	})
	if errors.Is(err, errors.ErrUnsupported) {
		r.remark("the evidence cannot be listed: only files that the head needs were looked at")
		err = nil
	}
	if beyond > 0 {
		r.remark("%d file(s) lie beyond the head; they were not checked", beyond)
	}
	if changed.n > 0 {
		r.remark("%s: not what this version of the program writes beside these entries. Another version made it, or somebody changed it; it is no evidence, and commands in it are not to be relied upon", &changed)
	}
	if other.n > 0 {
		r.remark("%d other file(s) are not evidence by themselves, and were not looked at: %s", other.n, &other)
	}
	return err
}

// names are those of files, of which the first few are said.
type names struct {
	n     uint64
	first []string
}

func (l *names) add(name string) {
	if l.n++; len(l.first) < 8 {
		l.first = append(l.first, quote(name))
	}
}

func (l *names) String() string {
	s := strings.Join(l.first, ", ")
	if more := l.n - uint64(len(l.first)); more > 0 {
		s += fmt.Sprintf(" and %d more", more)
	}
	return s
}

// judgePart compares a partial tile or bundle of an earlier size with the same one of the head, of the given width.
func (r *run) judgePart(ctx context.Context, t tlog.Tile, width int) error {
	name := record.TilePath(t)
	part, _, err := read(ctx, r.src, name, maxBundle)
	if err != nil {
		return err
	}
	t2 := t
	t2.W = width
	whole, ok, err := read(ctx, r.src, record.TilePath(t2), maxBundle)
	if err != nil || !ok {
		return err // missing: reported with the entries
	}
	first := uint64(t.N) * tileWidth << (8 * max(t.L, 0))
	if t.L >= 0 {
		if len(part) != t.W*tlog.HashSize || !bytes.HasPrefix(whole, part) {
			r.find(Finding{Rule: "tile.partial", File: name, Index: at(first), Expected: fmt.Sprintf("the first %d hashes of %s", t.W, record.TilePath(t2)), Found: "other bytes"})
		}
		return nil
	}
	if !bytes.HasPrefix(whole, part) || !isBundleOf(part, t.W) {
		r.find(Finding{Rule: "bundle.partial", File: name, Index: at(first), Expected: fmt.Sprintf("the first %d entries of %s", t.W, record.TilePath(t2)), Found: "other bytes"})
	}
	return nil
}

func isBundleOf(b []byte, width int) bool {
	raw, err := record.ParseBundle(b)
	return err == nil && len(raw) == width
}
