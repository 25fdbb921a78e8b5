package server

import (
	"fmt"
	"net/http"
	"slices"
	"sort"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"bulla/api"
	"bulla/ledger"
	"bulla/record"
)

// pageLimit bounds the entries of a page, and is said to be what a page has where nothing is said.
const (
	pageLimit   = 1000
	pageDefault = 100
	pageBytes   = 16 << 20 // a page of one kind ends after as much
)

// page reads the parameters of a page.
func (c *call) page() (from uint64, limit int, err error) {
	if from, err = c.number("from", 0, 0, record.MaxInt); err != nil {
		return 0, 0, err
	}
	n, err := c.number("limit", pageDefault, 1, pageLimit)
	return from, int(n), err
}

func (c *call) number(name string, missing, lowest, highest uint64) (uint64, error) {
	if !c.r.URL.Query().Has(name) {
		return missing, nil
	}
	n, err := strconv.ParseUint(c.r.URL.Query().Get(name), 10, 64)
	if err != nil || n < lowest || n > highest {
		return 0, &ledger.Refusal{Code: record.CodeInvalid, Field: name, Message: fmt.Sprintf("must be a number from %d to %d", lowest, highest)}
	}
	return n, nil
}

// entries pages through the log, as far as its checkpoint reaches.
func (c *call) entries() error {
	if err := c.mayRead(); err != nil {
		return err
	}
	from, limit, err := c.page()
	if err != nil {
		return err
	}
	if c.r.URL.Query().Has("kind") {
		return c.entriesOf(record.Kind(c.r.URL.Query().Get("kind")), from, limit)
	}
	return c.send("application/json", func() ([]byte, error) {
		size := c.log.Ledger.Size()
		var entries [][]byte
		if from < size {
			if entries, err = c.log.Ledger.Entries(from, int(min(uint64(limit), size-from))); err != nil {
				return nil, err
			}
		}
		next := from + uint64(len(entries))
		c.gives = &disclosure{action: actionRead, from: from, to: next, entries: entries}
		return appendPage(entries, next, size, len(entries) > 0 && next < size), nil
	})
}

// listed are the kinds that a log finds without reading what lies between.
var listed = []record.Kind{record.KindGenesis, record.KindClock, record.KindSeal, record.KindProposal, record.KindApproval, record.KindEnactment,
	record.KindAccess, record.KindSystem, record.KindToken, record.KindBlob}

// entriesOf pages through the entries of one kind.
func (c *call) entriesOf(kind record.Kind, from uint64, limit int) error {
	if !slices.Contains(listed, kind) {
		return &ledger.Refusal{Code: record.CodeInvalid, Field: "kind", Message: fmt.Sprintf("must be one of %v; events are paged through without it", listed)}
	}
	return c.send("application/json", func() ([]byte, error) {
		size := c.log.Ledger.Size()
		indices, err := c.log.Ledger.Kind(kind, from, limit+1)
		if err != nil {
			return nil, err
		}
		indices = indices[:sort.Search(len(indices), func(i int) bool { return indices[i] >= size })]
		var entries [][]byte
		for total := 0; len(entries) < min(limit, len(indices)) && total < pageBytes; {
			b, err := c.log.Ledger.Entry(indices[len(entries)])
			if err != nil {
				return nil, err
			}
			entries, total = append(entries, b), total+len(b)
		}
		if len(entries) > 0 {
			c.gives = &disclosure{action: actionRead, query: "kind=" + string(kind), from: indices[0], to: indices[len(entries)-1] + 1}
		}
		if len(entries) < len(indices) {
			return appendPage(entries, indices[len(entries)], size, true), nil
		}
		return appendPage(entries, 0, size, false), nil
	})
}

// appendPage makes the JSON of an api.Page, in which each entry is its exact bytes. The next page, if there are more, is from next.
func appendPage(entries [][]byte, next, size uint64, more bool) []byte {
	n := 64
	for _, e := range entries {
		n += len(e) + 1
	}
	b := append(make([]byte, 0, n), `{"entries":[`...)
	for i, e := range entries {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, e...)
	}
	b = append(b, ']')
	if more {
		b = strconv.AppendUint(append(b, `,"next":`...), next, 10)
	}
	b = strconv.AppendUint(append(b, `,"size":`...), size, 10)
	return append(b, "}\n"...)
}

// index is the entry that the path names.
func (c *call) index() (uint64, error) {
	path := c.r.PathValue("index")
	n, err := strconv.ParseUint(path, 10, 53)
	if err != nil || strconv.FormatUint(n, 10) != path {
		return 0, &ledger.Refusal{Code: record.CodeInvalid, Field: "index", Message: "must be a number, without leading zeros"}
	}
	if n >= c.log.Ledger.Size() {
		return 0, fmt.Errorf("%w: the log has no entry %d", errNotFound, n)
	}
	return n, nil
}

// entry writes an entry's exact bytes.
func (c *call) entry() error {
	if err := c.mayRead(); err != nil {
		return err
	}
	i, err := c.index()
	if err != nil {
		return err
	}
	return c.send("application/json", func() ([]byte, error) {
		b, err := c.log.Ledger.Entry(i)
		c.gives = &disclosure{action: actionRead, from: i, to: i + 1, entries: [][]byte{b}}
		return b, err
	})
}

// proof writes an entry's receipt under a checkpoint that was current within the last second, as JSON or, where text is asked for, as a C2SP tlog-proof.
func (c *call) proof() error {
	if err := c.mayRead(); err != nil {
		return err
	}
	i, err := c.index()
	if err != nil {
		return err
	}
	text := strings.Contains(c.r.Header.Get("Accept"), "text/plain")
	kind := "application/json"
	if text {
		kind = "text/plain; charset=utf-8"
	}
	return c.send(kind, func() ([]byte, error) {
		r, err := c.receipt(i)
		if err == nil {
			c.gives = &disclosure{action: actionRead, from: i, to: i + 1, entries: [][]byte{r.Entry}}
		}
		switch {
		case err != nil:
			return nil, err
		case text:
			return r.TLogProof(), nil
		}
		it := api.Item{Index: r.Index, Entry: r.Entry, Proof: r.Proof}
		return append(api.AppendReceipt(nil, r.Checkpoint, &it), '\n'), nil
	})
}

func (c *call) receipt(index uint64) (*record.Receipt, error) {
	entry, err := c.log.Ledger.Entry(index)
	if err != nil {
		return nil, err
	}
	signed, size := c.log.Ledger.Covering(index)
	proof, err := c.log.Ledger.Proof(index, size)
	return &record.Receipt{Checkpoint: signed, Entry: entry, Index: index, Proof: proof}, err
}

// checkpoint writes the signed note.
func (c *call) checkpoint() error {
	c.w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	c.w.Header().Set("Cache-Control", "no-cache")
	return c.write(c.log.Ledger.Checkpoint())
}

// tile writes a tile of hashes, or a bundle of entries (C2SP tlog-tiles), as far as the current checkpoint reaches.
func (c *call) tile() error {
	path := "tile/" + c.r.PathValue("path")
	t, ok := record.ParseTilePath(path)
	if !ok {
		return fmt.Errorf("%w: %q is not the path of a tile", errNotFound, clip(path))
	}
	if t.L < 0 {
		if err := c.mayRead(); err != nil {
			return err
		}
	}
	have := c.log.Ledger.Size() >> (8 * max(t.L, 0)) // hashes of this level, or entries
	if uint64(t.N) > have>>8 || uint64(t.N)<<8+uint64(t.W) > have {
		return fmt.Errorf("%w: the log does not reach this tile", errNotFound)
	}
	return c.send("application/octet-stream", func() ([]byte, error) {
		b, err := c.log.Ledger.Tile(tlog.Tile{H: 8, L: t.L, N: t.N, W: t.W})
		if err == nil && t.L < 0 {
			raw, err := record.ParseBundle(b)
			if err != nil {
				return nil, err
			}
			from := uint64(t.N) << 8
			c.gives = &disclosure{action: actionExport, from: from, to: from + uint64(t.W), entries: raw}
		}
		if err == nil {
			c.w.Header().Set("Cache-Control", "max-age=31536000, immutable")
		}
		return b, err
	})
}

// seals lists where the seals are.
func (c *call) seals() error {
	if err := c.mayRead(); err != nil {
		return err
	}
	from, limit, err := c.page()
	if err != nil {
		return err
	}
	indices, err := c.log.Ledger.Kind(record.KindSeal, from, limit)
	if err != nil {
		return err
	}
	out := api.Seals{Indices: indices}
	if out.Indices == nil {
		out.Indices = []uint64{}
	}
	writeJSON(c.w, http.StatusOK, out)
	return nil
}
