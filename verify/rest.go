package verify

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"golang.org/x/mod/sumdb/tlog"

	"bulla/record"
)

// judgeRest looks at every file that the head does not need. Partial tiles and bundles of earlier sizes must be the beginnings of
// those of the head; what lies beyond the head, or is not of the layout, is no evidence, and the report says so.
func (r *run) judgeRest(ctx context.Context) error {
	var beyond, other uint64
	example := ""
	copies := copies{r: r}
	err := r.src.Walk(ctx, func(name string) error {
		t, ok := record.ParseTilePath(name)
		if !ok {
			known, err := copies.judge(ctx, name)
			if name != checkpoint && !known && !r.isCosigned(name) {
				if other++; example == "" {
					example = name
				}
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
	if other > 0 {
		r.remark("%d other file(s), as %s, are not evidence by themselves; they were not checked", other, quote(example))
	}
	return err
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
