package verify

import (
	"golang.org/x/mod/sumdb/tlog"

	"bulla/record"
)

// Layout of a C2SP tlog-tiles tree: tiles of 256 hashes, bundles of 256 entries.
const (
	tileWidth  = record.TileWidth
	tileLevels = record.TileLevels
	entries    = -1
	maxBundle  = tileWidth * (2 + record.MaxEntry)
	checkpoint = "checkpoint"
)

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
