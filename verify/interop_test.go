package verify_test

import (
	"context"
	"fmt"
	"io/fs"
	"strings"
	"testing"
	"time"

	"filippo.io/torchwood"
	"github.com/transparency-dev/tessera/api/layout"
	"github.com/transparency-dev/tessera/fsck"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"bulla/record"
)

// tessera reads evidence as transparency-dev/tessera lays it out.
type tessera struct{ files }

func (s tessera) get(name string) ([]byte, error) {
	b, ok := s.files[name]
	if !ok {
		return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	}
	return b, nil
}

func (s tessera) ReadCheckpoint(context.Context) ([]byte, error) { return s.get("checkpoint") }

func (s tessera) ReadTile(_ context.Context, l, i uint64, p uint8) ([]byte, error) {
	return s.get(layout.TilePath(l, i, p))
}

func (s tessera) ReadEntryBundle(_ context.Context, i uint64, p uint8) ([]byte, error) {
	return s.get(layout.EntriesPath(i, p))
}

func TestTesseraAcceptsOurTiles(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 256, 600} {
		b := newBuilder(t).begin().events(n - 1)
		vkey, err := record.VKey(origin, b.keys[0].Public()) // the ECDSA line
		b.must(err)
		v, err := record.NewVerifier(vkey)
		b.must(err)
		hash := func(bundle []byte) ([][]byte, error) {
			raw, err := record.ParseBundle(bundle)
			out := make([][]byte, len(raw))
			for i, e := range raw {
				h := tlog.RecordHash(e)
				out[i] = h[:]
			}
			return out, err
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		if err := fsck.New(origin, v, tessera{b.export()}, hash, fsck.Opts{N: 4}).Check(ctx); err != nil {
			t.Errorf("%d entries: %v", n, err)
		}
		cancel()
	}
}

func TestTorchwoodAcceptsOurProofs(t *testing.T) {
	t.Parallel()
	b := newBuilder(t).begin().events(300)
	ecdsa, err := record.VKey(origin, b.keys[0].Public())
	b.must(err)
	v, err := record.NewVerifier(ecdsa)
	b.must(err)
	edKey, err := record.VKey(origin, b.keys[1].Public())
	b.must(err)
	ed, err := note.NewVerifier(edKey) // golang.org/x/mod knows the Ed25519 line
	b.must(err)
	policies := map[string]torchwood.Policy{
		"ECDSA line":   torchwood.ThresholdPolicy(2, torchwood.OriginPolicy(origin), torchwood.SingleVerifierPolicy(v)),
		"Ed25519 line": torchwood.ThresholdPolicy(2, torchwood.OriginPolicy(origin), torchwood.SingleVerifierPolicy(ed)),
	}
	if policies["its own policy file"], err = torchwood.ParsePolicy([]byte("log " + edKey + "\nquorum none\n")); err != nil {
		t.Fatal(err)
	}
	r := b.receipt(123)
	for name, p := range policies {
		if err := torchwood.VerifyProof(p, tlog.RecordHash(r.Entry), r.TLogProof()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := note.Open(b.export()["checkpoint"], note.VerifierList(ed)); err != nil {
		t.Error(err)
	}
}

// Our names of tiles are those of three other implementations.
func TestTilePaths(t *testing.T) {
	t.Parallel()
	for _, tile := range []tlog.Tile{
		{H: 8, L: 0, N: 0, W: 256}, {H: 8, L: 0, N: 0, W: 1}, {H: 8, L: 3, N: 999, W: 255}, {H: 8, L: 0, N: 1000, W: 256},
		{H: 8, L: -1, N: 1234067, W: 256}, {H: 8, L: -1, N: 1234067, W: 7}, {H: 8, L: 6, N: 35184372088831, W: 9},
	} {
		path := record.TilePath(tile)
		if want := torchwood.TilePath(tile); path != want {
			t.Errorf("%+v: %s, torchwood says %s", tile, path, want)
		}
		if tile.L >= 0 {
			if want := layout.TilePath(uint64(tile.L), uint64(tile.N), uint8(tile.W)); path != want {
				t.Errorf("%+v: %s, tessera says %s", tile, path, want)
			}
		}
		if back, ok := record.ParseTilePath(path); !ok || back != tile {
			t.Errorf("%s is read as %+v, %t", path, back, ok)
		}
	}
	for _, bad := range []string{
		"", "tile", "tile/", "tile/0", "tile/0/", "tile/0/0", "tile/0/00", "tile/0/0000", "tile/0/x000/001", "tile/00/001", "tile/8/001", "tile/-1/001", "tile/+1/001",
		"tile/0/001.p", "tile/0/001.p/", "tile/0/001.p/0", "tile/0/001.p/256", "tile/0/001.p/01", "tile/0/001/002", "tile/0/x001/x002/003/004", "tile/0/x1/002",
		"tile/entries/x001/002x", "tile/data/001", "tile/0/001.p/5/6", "tile/0/" + strings.Repeat("x001/", 10) + "001", "tile/0/ 01", "tile/0/٠٠١",
	} {
		if tile, ok := record.ParseTilePath(bad); ok {
			t.Errorf("%q is read as %+v", bad, tile)
		}
	}
}
