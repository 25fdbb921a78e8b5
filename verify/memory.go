package verify

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math"

	"golang.org/x/mod/sumdb/tlog"

	"bulla/record"
)

// Earlier is a head that was seen of the log before, and that the log must extend. NewEarlier and ReadEarlier make it.
type Earlier struct {
	name   string
	signed []byte // the head as a signed note; nil of what a run remembered
	head   record.Checkpoint
	before int64   // the head was shown at this time or later, ns; math.MinInt64: not known
	memory *Memory // nil of a head
}

// ReadEarlier reads an earlier export's head and the time of its last entry. Whether the head's signatures hold is judged by Run.
func ReadEarlier(ctx context.Context, name string, src Source) (Earlier, error) {
	signed, ok, err := read(ctx, src, checkpoint, record.MaxCheckpoint)
	if err != nil {
		return Earlier{}, err
	}
	if !ok {
		return Earlier{}, fmt.Errorf("%s holds no checkpoint", name)
	}
	e, err := NewEarlier(name, signed)
	if err != nil || e.head.Size == 0 {
		return e, err
	}
	if last, err := lastEntry(ctx, src, e.head); err == nil { // without it the head is still one
		e.before = last.Stamp.Sys
	}
	return e, ctx.Err()
}

// NewEarlier reads an earlier checkpoint, a signed note.
func NewEarlier(name string, signed []byte) (Earlier, error) {
	head, err := headText(signed)
	if err != nil {
		return Earlier{}, fmt.Errorf("%s is no signed checkpoint: %w", name, err)
	}
	return Earlier{name: name, signed: signed, head: head, before: math.MinInt64}, nil
}

// lastEntry is an export's last entry, proved to be under its head.
func lastEntry(ctx context.Context, src Source, head record.Checkpoint) (*record.Entry, error) {
	last := head.Size - 1
	t := tileOf(entries, last, head.Size)
	b, ok, err := read(ctx, src, record.TilePath(t), maxBundle)
	if err != nil || !ok {
		return nil, fmt.Errorf("its last bundle is missing: %w", err)
	}
	raw, err := record.ParseBundle(b)
	if err != nil || len(raw) != t.W {
		return nil, fmt.Errorf("its last bundle is damaged: %w", err)
	}
	// The reader checks what it gives against the root.
	hashes, err := tlog.TileHashReader(tlog.Tree{N: int64(head.Size), Hash: head.Root}, tiles{ctx, src}).ReadHashes([]int64{tlog.StoredHashIndex(0, int64(last))})
	if err != nil {
		return nil, err
	}
	if hashes[0] != record.LeafHash(raw[len(raw)-1]) {
		return nil, fmt.Errorf("its last entry is not under its head")
	}
	return record.ParseEntry(raw[len(raw)-1])
}

// tiles gives a source's tiles to package tlog.
type tiles struct {
	ctx context.Context
	src Source
}

func (tiles) Height() int                     { return 8 }
func (tiles) SaveTiles([]tlog.Tile, [][]byte) {}
func (t tiles) ReadTiles(want []tlog.Tile) ([][]byte, error) {
	out := make([][]byte, len(want))
	for i, x := range want {
		b, ok, err := read(t.ctx, t.src, record.TilePath(x), tileWidth*tlog.HashSize)
		if err != nil || !ok {
			return nil, fmt.Errorf("%s is missing: %w", record.TilePath(x), err)
		}
		out[i] = b
	}
	return out, nil
}

// Memory is what a run leaves behind for the next one on the same log: what the log was, and how far its TPM had come.
type Memory struct {
	Genesis string      `json:"genesis"` // leaf hash of entry 0, hex
	Log     string      `json:"log"`     // origin
	Root    record.Hash `json:"root"`
	Seal    *MemorySeal `json:"seal,omitempty"` // the last one that held; absent: there was none
	Size    uint64      `json:"size"`           // entries
	Time    string      `json:"time"`           // the system's, of the last entry
	V       int         `json:"v"`

	File string `json:"-"` // where it was kept, for the report; "": not said
}

// name is what a report calls the run that left the memory.
func (m *Memory) name() string {
	if m.File == "" {
		return "the last run"
	}
	return "the last run (" + m.File + ")"
}

// MemorySeal is how far a TPM had come at a seal.
type MemorySeal struct {
	AK       []byte `json:"ak"`             // qualified Name of the attestation key
	Clock    uint64 `json:"clock,string"`   // TPMS_CLOCK_INFO of the quote; ms
	Counter  uint64 `json:"counter,string"` // value
	Name     []byte `json:"name"`           // of the counter
	Number   uint64 `json:"number"`         // of the seal
	Resets   uint32 `json:"resets"`
	Restarts uint32 `json:"restarts"`
}

// MaxMemory bounds a memory file, in bytes.
const MaxMemory = 4096

// Encode returns the memory as a file: canonical JSON and, on a second line, the SHA-256 of the first in hex.
func (m *Memory) Encode() ([]byte, error) {
	b, err := record.MarshalCanonical(m)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(b)
	return fmt.Appendf(b, "\n%x\n", sum), m.check()
}

// ParseMemory reads a memory file; it accepts what Encode makes and nothing else.
func ParseMemory(b []byte) (*Memory, error) {
	if len(b) > MaxMemory {
		return nil, fmt.Errorf("memory: more than %d bytes", MaxMemory)
	}
	text, _, _ := bytes.Cut(b, []byte("\n"))
	if sum := sha256.Sum256(text); !bytes.Equal(b, fmt.Appendf(bytes.Clone(text), "\n%x\n", sum)) {
		return nil, errors.New("memory: not two lines of which the second is the SHA-256 of the first: it was changed, or is no memory file")
	}
	m := new(Memory)
	if err := record.UnmarshalCanonical(text, m); err != nil {
		return nil, fmt.Errorf("memory: %w", err)
	}
	return m, m.check()
}

func (m *Memory) check() error {
	if m.V != 1 {
		return fmt.Errorf("memory: v is %d, not 1: another version of this program made it", m.V)
	}
	if m.Size == 0 || m.Size > 1<<53-1 {
		return fmt.Errorf("memory: size: %d entries", m.Size)
	}
	if _, err := parseHex("genesis", m.Genesis); err != nil {
		return fmt.Errorf("memory: %w", err)
	}
	if _, err := record.ParseTime(m.Time); err != nil {
		return fmt.Errorf("memory: time: %w", err)
	}
	if err := record.CheckOrigin(m.Log); err != nil {
		return fmt.Errorf("memory: log: %w", err)
	}
	return nil
}

// remember is what the next run is to find again; nil where the log was not read in full, is signed by no key that is known, or may
// not be all that was seen before.
func (r *run) remember() *Memory {
	keys, _ := r.fold.signers(r.head.Size)
	lacking := r.claims[ClaimTree].gap != "" || len(r.earlier) > 0 && r.claims[ClaimContinuity].gap != ""
	if r.report.Verdict == OutcomeTampered || !r.headOK || r.head.Size == 0 || lacking || len(keys) == 0 {
		return nil
	}
	return &Memory{
		Genesis: r.report.Genesis, Log: r.origin, Root: r.head.Root, Seal: r.fold.line.last, Size: r.head.Size, V: 1,
		Time: string(record.AppendTime(nil, r.fold.line.time)),
	}
}
