package verify

import (
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"bulla/record"
)

// Layout of a C2SP tlog-tiles tree: tiles of 256 hashes, bundles of 256 entries.
const (
	tileWidth  = 256
	tileLevels = 8 // 256^7 > 2^53: no log has a hash in a tile above level 6
	entries    = -1
	maxBundle  = tileWidth * (2 + record.MaxEntry)
	checkpoint = "checkpoint"
)

// TilePath is the name of a tile in a C2SP tlog-tiles tree: `tile/0/x001/234` or, with fewer than 256 hashes,
// `tile/0/x001/234.p/5`; level -1 is `tile/entries/...`, the bundle of the same entries. t.H must be 8.
func TilePath(t tlog.Tile) string {
	level := strconv.Itoa(t.L)
	if t.L < 0 {
		level = "entries"
	}
	n := fmt.Sprintf("%03d", t.N%1000)
	for rest := t.N / 1000; rest > 0; rest /= 1000 {
		n = fmt.Sprintf("x%03d/", rest%1000) + n
	}
	if t.W < tileWidth {
		n += ".p/" + strconv.Itoa(t.W)
	}
	return "tile/" + level + "/" + n
}

// ParseTilePath is the inverse of TilePath; it accepts exactly what TilePath makes.
func ParseTilePath(path string) (tlog.Tile, bool) {
	rest, ok := strings.CutPrefix(path, "tile/")
	level, rest, found := strings.Cut(rest, "/")
	if !ok || !found || len(rest) > 64 {
		return tlog.Tile{}, false
	}
	t := tlog.Tile{H: 8, L: entries, W: tileWidth}
	if level != "entries" {
		l, err := strconv.Atoi(level)
		if err != nil || l < 0 || l >= tileLevels {
			return t, false
		}
		t.L = l
	}
	if n, w, partial := strings.Cut(rest, ".p/"); partial {
		width, err := strconv.Atoi(w)
		if err != nil || width < 1 || width >= tileWidth {
			return t, false
		}
		rest, t.W = n, width
	}
	for _, part := range strings.Split(strings.ReplaceAll(rest, "x", ""), "/") {
		n, err := strconv.Atoi(part)
		if err != nil || n < 0 || n > 999 || t.N > record.MaxInt/1000 {
			return t, false
		}
		t.N = t.N*1000 + int64(n)
	}
	return t, TilePath(t) == path
}

// tilesAt is how many full tiles a tree of the size has at a level, and how many hashes its partial tile has there.
func tilesAt(level int, size uint64) (full uint64, width int) {
	n := size >> (8 * uint(max(level, 0)))
	return n / tileWidth, int(n % tileWidth)
}

// Tiles calls f with every tile of a tree of the size, bundles first, and stops at the first error.
func Tiles(size uint64, f func(tlog.Tile) error) error {
	for level := entries; level < tileLevels; level++ {
		full, width := tilesAt(level, size)
		for n := range full {
			if err := f(tlog.Tile{H: 8, L: level, N: int64(n), W: tileWidth}); err != nil {
				return err
			}
		}
		if width > 0 {
			if err := f(tlog.Tile{H: 8, L: level, N: int64(full), W: width}); err != nil {
				return err
			}
		}
	}
	return nil
}

// tileOf is the tile of a tree of the size that holds place n of a level.
func tileOf(level int, n, size uint64) tlog.Tile {
	full, width := tilesAt(level, size)
	t := tlog.Tile{H: 8, L: level, N: int64(n / tileWidth), W: tileWidth}
	if uint64(t.N) == full {
		t.W = width
	}
	return t
}
