package api

import (
	"fmt"
	"strings"

	"golang.org/x/mod/sumdb/tlog"
)

// ParseTilePath reads the part of a C2SP tlog-tiles path behind "tile/": "0/x001/234.p/5", or "entries/x001/234". It accepts the one
// encoding of each tile. Entry bundles have level -1.
func ParseTilePath(path string) (tlog.Tile, error) {
	p := path
	if rest, ok := strings.CutPrefix(path, "entries/"); ok {
		p = "data/" + rest
	}
	t, err := tlog.ParseTilePath("tile/8/" + p)
	if err != nil || t.L > 63 || TilePath(t) != path {
		return tlog.Tile{}, fmt.Errorf("%q is not the path of a tile", clip(path))
	}
	return t, nil
}

// TilePath is the inverse of ParseTilePath.
func TilePath(t tlog.Tile) string {
	p := strings.TrimPrefix(t.Path(), "tile/8/")
	if rest, ok := strings.CutPrefix(p, "data/"); ok {
		return "entries/" + rest
	}
	return p
}
