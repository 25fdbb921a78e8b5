package verify_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/asn1"
	"encoding/binary"
	"encoding/json"
	"maps"
	"math/big"
	"slices"
	"strings"

	"github.com/google/go-tpm/tpm2"

	"bulla/attest"
	"bulla/record"
)

// chip is a TPM of the tests, as far as a seal needs one. Package attest tests what a seal may and may not be.
type chip struct {
	key     *ecdsa.PrivateKey
	ak      tpm2.TPMTPublic
	ticks   uint64
	counter uint64
	pcr     record.Hash
	number  uint64
	quote   record.Hash

	boot map[int]record.Hash // further PCRs; the next seal is the first of a start and quotes them
	exe  record.Hash         // that the daemon claims

	increment bool // the next seal does
	resets    uint32
	restarts  uint32

	others    []attest.Head      // of the machine's other logs
	abandoned []attest.Abandoned // for the next statement to list
}

// reset begins a new boot.
func (c *chip) reset() {
	c.resets++
	c.pcr = record.Hash{}
}

const sealPCR = 13

var counterName = append([]byte{0, 11}, bytes.Repeat([]byte{0xc0}, 32)...)

// enrolled gives the log's machine a TPM; it is to be called before begin.
func (b *builder) enrolled() *builder {
	b.t.Helper()
	b.genesis.TPM = b.plug(77)
	b.genesis.Seal.Interval, b.genesis.Seal.Increment, b.genesis.Seal.PCRs = 1, 1, []int{0, sealPCR}
	return b
}

// plug gives it a TPM of the number, and returns what enrols it.
func (b *builder) plug(n byte) *attest.Enrolment {
	b.t.Helper()
	c := &chip{key: testKey(b.t, n), counter: 7, ticks: 100_000}
	point, err := c.key.PublicKey.Bytes()
	b.must(err)
	scheme := tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256})
	c.ak = tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true, Restricted: true, SignEncrypt: true},
		Parameters:       tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{Scheme: tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgECDSA, Details: scheme}, CurveID: tpm2.TPMECCNistP256}),
		Unique:           tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{X: tpm2.TPM2BECCParameter{Buffer: point[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: point[33:]}}),
	}
	b.chip = c
	return &attest.Enrolment{
		AK: tpm2.Marshal(c.ak), AKName: b.akName(), ClockUpdate: 4096, PCR: sealPCR, EK: []byte{1}, EKCertificates: [][]byte{},
		Counter: attest.Counter{Index: 0x01800b01, Name: counterName, Value: c.counter},
	}
}

func (b *builder) akName() []byte {
	name, err := tpm2.ObjectName(&b.chip.ak)
	b.must(err)
	return name.Buffer
}

func (b *builder) attested(kind tpm2.TPMST, extra [32]byte) tpm2.TPMSAttest {
	b.chip.ticks += 10
	name := sha256.Sum256(append(binary.BigEndian.AppendUint32(nil, uint32(tpm2.TPMRHEndorsement)), b.akName()...))
	return tpm2.TPMSAttest{
		Magic: tpm2.TPMGeneratedValue, Type: kind, QualifiedSigner: tpm2.TPM2BName{Buffer: append([]byte{0, 11}, name[:]...)},
		ExtraData: tpm2.TPM2BData{Buffer: extra[:]}, FirmwareVersion: 1,
		ClockInfo: tpm2.TPMSClockInfo{Clock: b.chip.ticks, ResetCount: 3 + b.chip.resets, RestartCount: b.chip.restarts, Safe: tpm2.TPMIYesNo(true)},
	}
}

func (b *builder) signed(a tpm2.TPMSAttest) attest.Signed {
	raw := tpm2.Marshal(a)
	digest := sha256.Sum256(raw)
	der, err := b.chip.key.Sign(nil, digest[:], crypto.SHA256) // the same every time (RFC 6979)
	b.must(err)
	var sig struct{ R, S *big.Int }
	_, err = asn1.Unmarshal(der, &sig)
	b.must(err)
	r, s := sig.R, sig.S
	return attest.Signed{Attest: raw, Signature: tpm2.Marshal(tpm2.TPMTSignature{
		SigAlg: tpm2.TPMAlgECDSA,
		Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgECDSA, &tpm2.TPMSSignatureECC{Hash: tpm2.TPMAlgSHA256,
			SignatureR: tpm2.TPM2BECCParameter{Buffer: r.FillBytes(make([]byte, 32))}, SignatureS: tpm2.TPM2BECCParameter{Buffer: s.FillBytes(make([]byte, 32))}}),
	})}
}

// head is the log's head at a size.
func (b *builder) head(size uint64) attest.Head {
	b.t.Helper()
	tree := &record.Tree{}
	for _, raw := range b.raw[:size] {
		tree.Append(nil, record.LeafHash(raw))
	}
	text := record.Checkpoint{Origin: b.origin, Size: size, Root: tree.Root()}.Text()
	return attest.Head{Hash: sha256.Sum256([]byte(text)), Log: b.origin, Size: size}
}

// seal makes a seal over a head and appends it.
func (b *builder) seal(head attest.Head) *builder {
	b.t.Helper()
	b.add(record.KindSeal, nil, b.sealed(head))
	return b
}

// cut is a log of the first n entries, of the same machine: what is there when an older copy was put back.
func (b *builder) cut(n int) *builder {
	out := *b
	out.raw, out.hashes, out.tree, out.prev = nil, nil, &record.Tree{}, record.Hash{}
	for _, raw := range b.raw[:n] {
		out.addRaw(raw)
	}
	return &out
}

// stated attests the counter for a head and makes the statement over it.
func (b *builder) stated(head attest.Head) (counter attest.Signed, statement []byte) {
	b.t.Helper()
	c := b.chip
	logs := slices.SortedFunc(slices.Values(append(slices.Clone(c.others), head)), func(a, b attest.Head) int { return strings.Compare(a.Log, b.Log) })
	heads, err := attest.HeadsHash(logs)
	b.must(err)
	if c.number == 0 || c.increment { // a boot's first seal exceeds every value before it
		c.counter++
		c.increment = false
	}
	c.number++
	a := b.attested(tpm2.TPMSTAttestNV, heads)
	a.Attested = tpm2.NewTPMUAttest(tpm2.TPMSTAttestNV, &tpm2.TPMSNVCertifyInfo{
		IndexName: tpm2.TPM2BName{Buffer: counterName}, NVContents: tpm2.TPM2BData{Buffer: binary.BigEndian.AppendUint64(nil, c.counter)},
	})
	counter = b.signed(a)
	st := attest.Statement{
		Counter: attest.StatementCounter{Attest: sha256.Sum256(counter.Attest), Name: counterName}, Logs: logs, Number: c.number,
		PCR: attest.StatementPCR{Before: c.pcr, Index: sealPCR}, Previous: c.quote, Reason: "interval", V: 1,
		Software: attest.Software{Exe: c.exe}, Abandoned: c.abandoned,
	}
	if c.boot != nil {
		st.Reason = "start"
	}
	statement, err = st.Encode()
	b.must(err)
	return counter, statement
}

// interrupt resets the machine within a seal over a head: the counter was attested, the quote was not made.
func (b *builder) interrupt(head attest.Head) {
	b.t.Helper()
	counter, statement := b.stated(head)
	var err error
	b.chip.abandoned, err = attest.Abandon(statement, counter)
	b.must(err)
	b.chip.reset()
	b.chip.increment = true
}

// sealed makes the body of a seal over a head.
func (b *builder) sealed(head attest.Head) []byte {
	b.t.Helper()
	c := b.chip
	counter, statement := b.stated(head)
	c.abandoned = nil
	digest := sha256.Sum256(statement)
	c.pcr = attest.ExtendPCR(c.pcr, digest)
	all := maps.Clone(c.boot)
	if c.boot = nil; all == nil {
		all = map[int]record.Hash{0: {}}
	}
	all[sealPCR] = c.pcr
	var values []attest.PCRValue
	selected := make([]byte, 3)
	for _, pcr := range slices.Sorted(maps.Keys(all)) {
		values = append(values, attest.PCRValue{Index: pcr, Value: all[pcr]})
		selected[pcr/8] |= 1 << (pcr % 8)
	}
	sum := attest.PCRDigest(values)
	q := b.attested(tpm2.TPMSTAttestQuote, digest)
	q.Attested = tpm2.NewTPMUAttest(tpm2.TPMSTAttestQuote, &tpm2.TPMSQuoteInfo{
		PCRSelect: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: selected}}},
		PCRDigest: tpm2.TPM2BDigest{Buffer: sum[:]},
	})
	quote := b.signed(q)
	c.quote = sha256.Sum256(quote.Attest)
	s := attest.Seal{Counter: counter, Quote: quote, PCRs: values, Statement: json.RawMessage(statement)}
	body, err := s.Encode()
	b.must(err)
	return body
}
