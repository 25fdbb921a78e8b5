package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"

	"bulla/api"
	"bulla/record"
)

// An index says which bundles of a log may hold what is searched for. It is made from the entries, can be thrown away at any time, and
// is never believed: what it names is read and confirmed, and what it leaves out counts only as far as the index is whole. So it is
// kept only of entries that lead to the checkpoint's root, in a directory that is named after that root; it carries a checksum of each
// part, each is checked before it is used, and an index that does not hold together is made anew.
//
//	manifest  which log, size and root; the checksums of rows and of each run's directory; its own checksum
//	rows      for each bundle: its root, earliest and latest time, kinds, highest severity
//	run-N     postings (term, bundle) in order, in pages; behind them the directory: each page's first term and checksum
//
// A run is what fits in memory while the index is made: they are written one after the other, and never merged.
type index struct {
	dir  string
	rows []row
	runs []indexRun
}

// row is what an index has of a bundle.
type row struct {
	root             record.Hash
	earliest, latest int64  // UTC, ns; of all its entries
	kinds            uint16 // a bit for each of indexKinds
	severity         uint8  // the highest
	opaque           bool   // it has an entry that cannot be read: it may hold anything
}

// indexRun is a file of postings.
type indexRun struct {
	path     string
	postings int
	first    []uint64      // term, by page
	sums     []record.Hash // by page
}

// posting says that a bundle has a term.
type posting struct {
	term   uint64
	bundle uint32
}

// Sizes of the files' parts, in bytes and in postings.
const (
	indexVersion = 1 // of the files and of what terms are
	rowSize      = 32 + 8 + 8 + 2 + 1 + 1
	postingSize  = 8 + 4
	pagePostings = 4096
	pageEntry    = 8 + 32 // of a directory
	runPostings  = 2 << 20
	maxManifest  = 1 << 20
	maxIndexed   = 256 << 32 // entries of a log: bundles have numbers of 32 bits
)

// indexKinds are the kinds that a row tells apart; a kind that is not here has the last bit.
var indexKinds = []record.Kind{record.KindEvent, record.KindGenesis, record.KindClock, record.KindSeal, record.KindProposal, record.KindApproval,
	record.KindEnactment, record.KindAccess, record.KindSystem, record.KindToken, record.KindBlob}

func kindBit(k record.Kind) uint16 {
	if i := slices.Index(indexKinds, k); i >= 0 {
		return 1 << i
	}
	return 1 << 15
}

// manifest is the file that names the others.
type manifest struct {
	V    int           `json:"v"`
	Log  string        `json:"log"`
	Size uint64        `json:"size"`
	Root record.Hash   `json:"root"`
	Rows record.Hash   `json:"rows"` // SHA-256 of the file
	Runs []manifestRun `json:"runs"`
}

type manifestRun struct {
	Postings  int         `json:"postings"`
	Directory record.Hash `json:"directory"` // SHA-256
}

// errIndex is an index that is not there, not whole, or of something else. It is made anew.
var errIndex = errors.New("the index cannot be used")

// indexPath is the directory of the index of a log under a head.
func indexPath(base string, head record.Checkpoint) string {
	sum := sha256.Sum256([]byte(head.Text()))
	return filepath.Join(base, hex.EncodeToString(sum[:16]))
}

// openIndex opens the index of a log under a head, if there is a whole one.
func openIndex(dir string, head record.Checkpoint) (*index, error) {
	m, err := readManifest(dir)
	if err != nil {
		return nil, err
	}
	if m.V != indexVersion || m.Size > maxIndexed || m.Log != head.Origin || m.Size != head.Size || m.Root != head.Root {
		return nil, fmt.Errorf("%w: %s is of another log or version", errIndex, dir)
	}
	x := &index{dir: dir}
	bundles := int((head.Size + record.TileWidth - 1) / record.TileWidth)
	b, err := readPart(filepath.Join(dir, "rows"), 0, bundles*rowSize, m.Rows)
	if err != nil {
		return nil, err
	}
	x.rows = make([]row, bundles)
	var tree record.Tree
	var stored []record.Hash
	for i := range x.rows {
		x.rows[i] = parseRow(b[i*rowSize:])
		stored = tree.Append(stored[:0], x.rows[i].root) // the tree over subtrees of one size is the tree
	}
	if tree.Root() != head.Root {
		return nil, fmt.Errorf("%w: its rows do not lead to the root", errIndex)
	}
	for i, r := range m.Runs {
		opened, err := openRun(runPath(dir, i), r)
		if err != nil {
			return nil, err
		}
		x.runs = append(x.runs, opened)
	}
	return x, nil
}

func runPath(dir string, i int) string { return filepath.Join(dir, fmt.Sprintf("run-%d", i)) }

func readManifest(dir string) (*manifest, error) {
	b, err := os.ReadFile(filepath.Join(dir, "manifest"))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errIndex, err)
	}
	text, sum, ok := bytes.Cut(b, []byte("\n"))
	want := sha256.Sum256(text)
	if !ok || len(b) > maxManifest || string(sum) != hex.EncodeToString(want[:])+"\n" {
		return nil, fmt.Errorf("%w: its manifest is damaged", errIndex)
	}
	m := new(manifest)
	if err := json.Unmarshal(text, m); err != nil {
		return nil, fmt.Errorf("%w: its manifest: %w", errIndex, err)
	}
	return m, nil
}

func (m *manifest) encode() ([]byte, error) {
	b, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encoding the index's manifest: %w", err)
	}
	sum := sha256.Sum256(b)
	return append(append(b, '\n'), hex.EncodeToString(sum[:])+"\n"...), nil
}

// readPart reads a part of a file and checks it.
func readPart(path string, at int64, size int, sum record.Hash) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errIndex, err)
	}
	defer func() { _ = f.Close() }() // read only
	info, err := f.Stat()
	if err != nil || info.Size() < at+int64(size) {
		return nil, fmt.Errorf("%w: %s is too short (%v)", errIndex, path, err)
	}
	b := make([]byte, size)
	if _, err := f.ReadAt(b, at); err != nil && (size > 0 || !errors.Is(err, io.EOF)) {
		return nil, fmt.Errorf("%w: %s: %w", errIndex, path, err)
	}
	if sha256.Sum256(b) != sum {
		return nil, fmt.Errorf("%w: %s is damaged", errIndex, path)
	}
	return b, nil
}

func openRun(path string, m manifestRun) (indexRun, error) {
	if m.Postings < 0 || m.Postings > runPostings+record.TileWidth*maxTerms {
		return indexRun{}, fmt.Errorf("%w: its manifest is damaged", errIndex)
	}
	pages := (m.Postings + pagePostings - 1) / pagePostings
	b, err := readPart(path, int64(m.Postings)*postingSize, pages*pageEntry, m.Directory)
	if err != nil {
		return indexRun{}, err
	}
	r := indexRun{path: path, postings: m.Postings, first: make([]uint64, pages), sums: make([]record.Hash, pages)}
	for i := range pages {
		r.first[i] = binary.BigEndian.Uint64(b[i*pageEntry:])
		r.sums[i] = record.Hash(b[i*pageEntry+8:][:32])
	}
	return r, nil
}

// find appends the bundles that have a term.
func (r *indexRun) find(term uint64, out []uint32) ([]uint32, error) {
	page := sort.Search(len(r.first), func(i int) bool { return r.first[i] >= term })
	for page = max(page-1, 0); page < len(r.first) && r.first[page] <= term; page++ {
		n := min(pagePostings, r.postings-page*pagePostings)
		b, err := readPart(r.path, int64(page)*pagePostings*postingSize, n*postingSize, r.sums[page])
		if err != nil {
			return nil, err
		}
		at := func(i int) uint64 { return binary.BigEndian.Uint64(b[i*postingSize:]) }
		for i := sort.Search(n, func(i int) bool { return at(i) >= term }); i < n && at(i) == term; i++ {
			out = append(out, binary.BigEndian.Uint32(b[i*postingSize+8:]))
		}
	}
	return out, nil
}

func (x *index) root(n uint64) record.Hash { return x.rows[n].root }

// candidates are the bundles that may hold what meets a query, in order.
func (x *index) candidates(q *api.Query) ([]uint32, error) {
	out := make([]uint32, 0, 64)
	for n := range x.rows {
		if x.rows[n].may(q) {
			out = append(out, uint32(n))
		}
	}
	for _, term := range queryTerms(q) {
		var have []uint32
		for i := range x.runs {
			var err error
			if have, err = x.runs[i].find(term, have); err != nil {
				return nil, err
			}
		}
		slices.Sort(have)
		out = slices.DeleteFunc(out, func(n uint32) bool {
			_, ok := slices.BinarySearch(have, n)
			return !ok && !x.rows[n].opaque
		})
	}
	return out, nil
}

// may reports whether a bundle's row lets it hold what meets a query.
func (r *row) may(q *api.Query) bool {
	switch {
	case r.opaque:
		return true
	case q.Since != nil && r.latest < q.Since.UnixNano(),
		q.Until != nil && r.earliest >= q.Until.UnixNano(),
		q.Kind != "" && r.kinds&kindBit(q.Kind) == 0,
		int(r.severity) < q.Severity:
		return false
	}
	return true
}

func (r *row) append(b []byte) []byte {
	b = append(b, r.root[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(r.earliest))
	b = binary.BigEndian.AppendUint64(b, uint64(r.latest))
	b = binary.BigEndian.AppendUint16(b, r.kinds)
	opaque := byte(0)
	if r.opaque {
		opaque = 1
	}
	return append(b, r.severity, opaque)
}

func parseRow(b []byte) row {
	return row{
		root: record.Hash(b[:32]), earliest: int64(binary.BigEndian.Uint64(b[32:])), latest: int64(binary.BigEndian.Uint64(b[40:])),
		kinds: binary.BigEndian.Uint16(b[48:]), severity: b[50], opaque: b[51] != 0,
	}
}

// newRow is the row of no entries.
func newRow() row { return row{earliest: math.MaxInt64, latest: math.MinInt64} }

// cacheDir is where indices lie if nothing else is said.
func cacheDir() (string, error) {
	dir, err := os.UserCacheDir() // honours XDG_CACHE_HOME
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "bulla", "index"), nil
}

// isStale reports whether a name in the index's directory is of a build that did not finish.
func isStale(name string) bool { return strings.Contains(name, ".tmp-") }
