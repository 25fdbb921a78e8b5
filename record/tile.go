package record

import (
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/tlog"
)

// Shape of a C2SP tlog-tiles tree.
const (
	TileWidth  = 256 // hashes of a full tile, and entries of a full bundle
	TileLevels = 8   // 256^7 > 2^53: no log has a hash in a tile above level 6
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
	if t.W < TileWidth {
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
	t := tlog.Tile{H: 8, L: -1, W: TileWidth}
	if level != "entries" {
		l, err := strconv.Atoi(level)
		if err != nil || l < 0 || l >= TileLevels {
			return t, false
		}
		t.L = l
	}
	if n, w, partial := strings.Cut(rest, ".p/"); partial {
		width, err := strconv.Atoi(w)
		if err != nil || width < 1 || width >= TileWidth {
			return t, false
		}
		rest, t.W = n, width
	}
	for _, part := range strings.Split(strings.ReplaceAll(rest, "x", ""), "/") {
		n, err := strconv.Atoi(part)
		if err != nil || n < 0 || n > 999 || t.N > MaxInt/1000 {
			return t, false
		}
		t.N = t.N*1000 + int64(n)
	}
	return t, TilePath(t) == path
}
