package verify_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/x509"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"sync"
	"testing"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"bulla/ceremony"
	"bulla/clock"
	"bulla/record"
	"bulla/verify"
)

const origin = "test.example/log"

// files is evidence in memory.
type files map[string][]byte

func (f files) Open(_ context.Context, name string) (io.ReadCloser, error) {
	b, ok := f[name]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

func (f files) Walk(_ context.Context, visit func(string) error) error {
	for _, name := range slices.Sorted(maps.Keys(f)) {
		if err := visit(name); err != nil {
			return err
		}
	}
	return nil
}

func (f files) clone() files {
	out := files{}
	for name, b := range f {
		out[name] = bytes.Clone(b)
	}
	return out
}

// testKey is a key of the tests: made of a number, so that vectors can be made again.
func testKey(t testing.TB, n byte) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), bytes.Repeat([]byte{n}, 32))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func testEd25519(n byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{n}, ed25519.SeedSize))
}

// builder makes logs as an appliance would, or as somebody would who has taken it over.
type builder struct {
	t       testing.TB
	origin  string
	keys    []crypto.Signer
	raw     [][]byte
	hashes  []record.Hash // stored hashes, in tlog order
	tree    *record.Tree
	prev    record.Hash
	stamp   clock.Stamp
	genesis *ceremony.Genesis
	machine *machine // nil: stamps without an estimate
	chip    *chip    // nil: no seals
}

func newBuilder(t testing.TB) *builder {
	b := &builder{t: t, origin: origin, keys: []crypto.Signer{testKey(t, 1), testEd25519(1)}, tree: &record.Tree{}}
	b.stamp = clock.Stamp{Sys: 1795398000123456789, Epoch: 1, State: clock.Unknown}
	policy := clock.DefaultPolicy()
	policy.Mode = clock.Mark
	b.genesis = &ceremony.Genesis{
		Clock: policy, Origin: origin, Software: "test",
		Roles: []ceremony.Role{{Name: ceremony.Producer, UIDs: []uint32{1000, 1001}}},
	}
	return b
}

func (b *builder) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

// begin appends the genesis.
func (b *builder) begin() *builder {
	b.t.Helper()
	for i, k := range b.keys {
		spki, err := x509.MarshalPKIXPublicKey(k.Public())
		b.must(err)
		key := ceremony.Key{Algorithm: "ecdsa-p256", Purpose: ceremony.PurposeLog, SPKI: spki}
		if i > 0 {
			key.Algorithm, key.Purpose = "ed25519", ceremony.PurposeInterop
		}
		b.genesis.Keys = append(b.genesis.Keys, key)
	}
	b.genesis.Origin = b.origin
	body, err := record.MarshalCanonical(b.genesis)
	b.must(err)
	b.add(record.KindGenesis, nil, body)
	return b
}

// entry makes the next entry without appending it.
func (b *builder) entry(kind record.Kind, producer *record.Producer, body []byte) *record.Entry {
	if b.stamp.Sys++; b.machine != nil {
		b.stamp = b.machine.now()
	}
	return &record.Entry{Index: b.tree.Size(), Kind: kind, Log: b.origin, Prev: b.prev, Producer: producer, Stamp: b.stamp, Body: body}
}

func (b *builder) add(kind record.Kind, producer *record.Producer, body []byte) {
	b.t.Helper()
	raw, err := b.entry(kind, producer, body).Append(nil)
	b.must(err)
	b.addRaw(raw)
}

func (b *builder) append(e *record.Entry) {
	b.t.Helper()
	raw, err := e.Append(nil)
	b.must(err)
	b.addRaw(raw)
}

// addRaw appends any bytes as an entry.
func (b *builder) addRaw(raw []byte) {
	b.raw = append(b.raw, raw)
	b.prev = record.LeafHash(raw)
	b.hashes = b.tree.Append(b.hashes, b.prev)
}

// events appends n events.
func (b *builder) events(n int) *builder {
	b.t.Helper()
	for range n {
		b.add(record.KindEvent, &record.Producer{UID: 1000, GID: 1000, PID: 7}, fmt.Appendf(nil, `{"data":{"line":"number %d"},"type":"test.event"}`, b.tree.Size()))
	}
	return b
}

func (b *builder) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, x := range indexes {
		out[i] = b.hashes[x]
	}
	return out, nil
}

// sign makes the checkpoint over what is there.
func (b *builder) sign() []byte {
	b.t.Helper()
	var signers []note.Signer
	for _, k := range b.keys {
		s, err := record.NewSigner(b.origin, k)
		b.must(err)
		signers = append(signers, s)
	}
	signed, err := note.Sign(&note.Note{Text: record.Checkpoint{Origin: b.origin, Size: b.tree.Size(), Root: b.tree.Root()}.Text()}, signers...)
	b.must(err)
	return signed
}

// export makes evidence of what is there.
func (b *builder) export() files {
	b.t.Helper()
	out := files{"checkpoint": b.sign()}
	b.must(verify.Tiles(b.tree.Size(), func(t tlog.Tile) error {
		out[record.TilePath(t)] = b.tile(t)
		return nil
	}))
	return out
}

func (b *builder) tile(t tlog.Tile) []byte {
	b.t.Helper()
	if t.L >= 0 {
		data, err := tlog.ReadTileData(t, b)
		b.must(err)
		return data
	}
	return bundle(b.raw[t.N*256:][:t.W])
}

func bundle(raw [][]byte) []byte {
	var out []byte
	for _, e := range raw {
		out = record.AppendBundle(out, e)
	}
	return out
}

// receipt is what a producer got for an entry under the tree as it is now.
func (b *builder) receipt(index uint64) record.Receipt {
	b.t.Helper()
	proof, err := tlog.ProveRecord(int64(b.tree.Size()), int64(index), b)
	b.must(err)
	return record.Receipt{Checkpoint: b.sign(), Entry: b.raw[index], Index: index, Proof: proof}
}

func jsonReceipt(t testing.TB, r record.Receipt) verify.Receipt {
	t.Helper()
	data, err := r.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	return verify.Receipt{Name: fmt.Sprintf("%d.json", r.Index), Data: data}
}

// policy trusts the log from its genesis on; it does without what these logs have not.
func (b *builder) policy() *verify.Policy {
	b.t.Helper()
	p := &verify.Policy{Genesis: map[string]record.Hash{b.origin: record.LeafHash(b.raw[0])}, NoSeals: true, NoTime: true}
	for _, k := range b.keys {
		v, err := record.VKey(b.origin, k.Public())
		b.must(err)
		p.VKeys = append(p.VKeys, v)
	}
	return p
}

func run(t testing.TB, src verify.Source, p *verify.Policy, receipts ...verify.Receipt) *verify.Report {
	t.Helper()
	rep, err := verify.Run(t.Context(), src, p, verify.Options{Receipts: receipts})
	if err != nil {
		t.Fatal(err)
	}
	return rep
}

func text(t testing.TB, rep *verify.Report) string {
	t.Helper()
	var b bytes.Buffer
	if err := rep.WriteText(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// want fails unless the report has the verdict, and exactly the findings named as "rule@index" or "rule".
func want(t testing.TB, rep *verify.Report, verdict verify.Verdict, findings ...string) {
	t.Helper()
	var got []string
	for _, f := range rep.Findings {
		s := f.Rule
		if f.Index != nil {
			s += fmt.Sprintf("@%d", *f.Index)
		}
		got = append(got, s)
	}
	if rep.Verdict != verdict || !slices.Equal(got, findings) {
		t.Errorf("verdict %q with findings %v, want %q with %v\n%s", rep.Verdict, got, verdict, findings, text(t, rep))
	}
}

func claim(t testing.TB, rep *verify.Report, name string) verify.Claim {
	t.Helper()
	for _, c := range rep.Claims {
		if c.Name == name {
			return c
		}
	}
	t.Fatalf("the report has no claim %s", name)
	return verify.Claim{}
}

// large is a log that reaches level 2 of the tree, made once: 256*256 + 257 entries.
func large(t testing.TB) (files, *verify.Policy) {
	t.Helper()
	largeLog.once.Do(func() {
		b := newBuilder(t).begin().events(256*256 + 256)
		largeLog.files, largeLog.policy = b.export(), b.policy()
	})
	if largeLog.files == nil {
		t.Fatal("the large log could not be made")
	}
	return largeLog.files, largeLog.policy
}

var largeLog struct {
	once   sync.Once
	files  files
	policy *verify.Policy
}
