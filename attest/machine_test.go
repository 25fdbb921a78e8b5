package attest_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/asn1"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"bulla/attest"
	"bulla/record"
)

const (
	origin  = "example.com/audit"
	sealPCR = 13
)

// machine makes what a TPM and a sealer make, in memory, and lets a test change any of it before it is signed.
type machine struct {
	t       *testing.T
	key     *ecdsa.PrivateKey
	ak      tpm2.TPMTPublic
	signer  []byte // qualified Name
	clock   attest.ClockInfo
	pcrs    [24]record.Hash
	counter uint64

	last      attest.Statement // what the next seal follows on
	quote     record.Hash
	abandoned []attest.Abandoned
	size      uint64 // of the log
}

// edit changes one seal on its way.
type edit struct {
	increment bool
	certify   func(*tpm2.TPMSAttest) // before it is signed
	statement func(*attest.Statement)
	extend    func() // between statement and quote
	pcrs      func([]attest.PCRValue) []attest.PCRValue
	quote     func(*tpm2.TPMSAttest) // before it is signed
	seal      func(*attest.Seal)     // at last
}

// newMachine makes the same machine each time, and its signatures are deterministic: vectors can be made again.
func newMachine(t *testing.T) *machine {
	t.Helper()
	return machineWith(t, 1)
}

func machineWith(t *testing.T, seed byte) *machine {
	t.Helper()
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), bytes.Repeat([]byte{seed}, 32))
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{t: t, key: key, counter: 7, clock: attest.ClockInfo{Clock: 100_000, ResetCount: 3, RestartCount: 1, Safe: true}}
	point, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	m.ak = tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true, Restricted: true, SignEncrypt: true,
		},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			Scheme:  tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256})},
			CurveID: tpm2.TPMECCNistP256,
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: point[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: point[33:]},
		}),
	}
	m.signer = primary(tpm2.TPMRHEndorsement, m.name())
	return m
}

// primary is the qualified Name of a primary key (Part 1, section 26.5).
func primary(hierarchy tpm2.TPMHandle, name []byte) []byte {
	sum := sha256.Sum256(append(binary.BigEndian.AppendUint32(nil, uint32(hierarchy)), name...))
	return append([]byte{0, 11}, sum[:]...)
}

func (m *machine) name() []byte {
	n, err := tpm2.ObjectName(&m.ak)
	if err != nil {
		m.t.Fatal(err)
	}
	return n.Buffer
}

func (m *machine) enrolment() attest.Enrolment {
	return attest.Enrolment{
		AK: tpm2.Marshal(m.ak), AKName: m.name(), Base: m.pcrs[sealPCR], ClockUpdate: 4096,
		Counter: attest.Counter{Index: 0x01800B01, Name: counterName, Value: m.counter}, PCR: sealPCR, Seal: m.last.Number, Previous: m.quote,
	}
}

var counterName = append([]byte{0, 11}, bytes.Repeat([]byte{0xC0}, 32)...)

// head is the hash of the log's checkpoint text at a size; the log is made up.
func (m *machine) head(size uint64) (record.Hash, bool) {
	return sha256.Sum256(fmt.Appendf(nil, "%s\n%d\n", origin, size)), size <= m.size
}

func (m *machine) attested(kind tpm2.TPMST, extra []byte) tpm2.TPMSAttest {
	m.clock.Clock += 10
	return tpm2.TPMSAttest{
		Magic: tpm2.TPMGeneratedValue, Type: kind, QualifiedSigner: tpm2.TPM2BName{Buffer: m.signer}, ExtraData: tpm2.TPM2BData{Buffer: extra},
		ClockInfo:       tpm2.TPMSClockInfo{Clock: m.clock.Clock, ResetCount: m.clock.ResetCount, RestartCount: m.clock.RestartCount, Safe: tpm2.TPMIYesNo(m.clock.Safe)},
		FirmwareVersion: 0x20240001,
	}
}

func (m *machine) sign(a tpm2.TPMSAttest, change func(*tpm2.TPMSAttest)) attest.Signed {
	m.t.Helper()
	if change != nil {
		change(&a)
	}
	b := tpm2.Marshal(a)
	digest := sha256.Sum256(b)
	der, err := m.key.Sign(nil, digest[:], crypto.SHA256) // RFC 6979
	if err != nil {
		m.t.Fatal(err)
	}
	var signature struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(der, &signature); err != nil {
		m.t.Fatal(err)
	}
	return attest.Signed{Attest: b, Signature: tpm2.Marshal(tpm2.TPMTSignature{
		SigAlg: tpm2.TPMAlgECDSA,
		Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgECDSA, &tpm2.TPMSSignatureECC{
			Hash:       tpm2.TPMAlgSHA256,
			SignatureR: tpm2.TPM2BECCParameter{Buffer: signature.R.FillBytes(make([]byte, 32))},
			SignatureS: tpm2.TPM2BECCParameter{Buffer: signature.S.FillBytes(make([]byte, 32))},
		}),
	})}
}

// pending is a seal up to its statement.
type pending struct {
	a         attest.Signed
	statement []byte
}

// begin certifies the counter and makes the statement.
func (m *machine) begin(x edit) pending {
	m.t.Helper()
	if x.increment {
		m.counter++
	}
	h, _ := m.head(m.size)
	logs := []attest.Head{{Hash: record.Hash{1}, Log: "example.com/another", Size: 5}, {Hash: h, Log: origin, Size: m.size}}
	st := attest.Statement{
		Abandoned: m.abandoned, Logs: logs, Number: m.last.Number + uint64(len(m.abandoned)) + 1, PCR: attest.StatementPCR{Before: m.pcrs[sealPCR], Index: sealPCR},
		Previous: m.quote, Reason: "interval", V: 1,
	}
	st.Counter.Name = counterName
	heads, err := attest.HeadsHash(st.Logs)
	if err != nil {
		m.t.Fatal(err)
	}
	a := m.attested(tpm2.TPMSTAttestNV, heads[:])
	a.Attested = tpm2.NewTPMUAttest(tpm2.TPMSTAttestNV, &tpm2.TPMSNVCertifyInfo{
		IndexName: tpm2.TPM2BName{Buffer: counterName}, NVContents: tpm2.TPM2BData{Buffer: binary.BigEndian.AppendUint64(nil, m.counter)},
	})
	p := pending{a: m.sign(a, x.certify)}
	st.Counter.Attest = sha256.Sum256(p.a.Attest)
	if x.statement != nil {
		x.statement(&st)
	}
	if p.statement, err = st.Encode(); err != nil {
		m.t.Fatal(err)
	}
	return p
}

func (m *machine) extend(digest [32]byte) {
	m.pcrs[sealPCR] = attest.ExtendPCR(m.pcrs[sealPCR], digest)
}

// finish extends, quotes, and makes the seal's body.
func (m *machine) finish(p pending, x edit) []byte {
	m.t.Helper()
	digest := sha256.Sum256(p.statement)
	m.extend(digest)
	if x.extend != nil {
		x.extend()
	}
	values := []attest.PCRValue{{Index: 0, Value: m.pcrs[0]}, {Index: 7, Value: m.pcrs[7]}, {Index: sealPCR, Value: m.pcrs[sealPCR]}}
	if x.pcrs != nil {
		values = x.pcrs(values)
	}
	selected := make([]byte, 3)
	for _, v := range values {
		selected[v.Index/8] |= 1 << (v.Index % 8)
	}
	q := m.attested(tpm2.TPMSTAttestQuote, digest[:])
	sum := attest.PCRDigest(values)
	q.Attested = tpm2.NewTPMUAttest(tpm2.TPMSTAttestQuote, &tpm2.TPMSQuoteInfo{
		PCRSelect: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: selected}}},
		PCRDigest: tpm2.TPM2BDigest{Buffer: sum[:]},
	})
	s := attest.Seal{Counter: p.a, Quote: m.sign(q, x.quote), PCRs: values, Statement: json.RawMessage(p.statement)}
	if x.seal != nil {
		x.seal(&s)
	}
	body, err := s.Encode()
	if err != nil {
		m.t.Fatal(err)
	}
	st, err := attest.ParseStatement(p.statement)
	if err != nil {
		m.t.Fatal(err)
	}
	m.last, m.quote, m.abandoned = *st, sha256.Sum256(s.Quote.Attest), nil
	m.size += 4 // the seal and some events
	return body
}

func (m *machine) seal(x edit) []byte {
	m.t.Helper()
	return m.finish(m.begin(x), x)
}

// abandon gives a begun seal up.
func (m *machine) abandon(p pending) {
	m.t.Helper()
	var err error
	if m.abandoned, err = attest.Abandon(p.statement, p.a); err != nil {
		m.t.Fatal(err)
	}
}

// recovery declares that the log goes on behind seal number n, the last one that is known, with the TPM as it is.
func (m *machine) recovery(n uint64, quote record.Hash) []byte {
	m.t.Helper()
	c := m.clock
	b, err := (&attest.Recovery{
		Clock: c.Clock, Counter: m.counter, PCR: m.pcrs[sealPCR], Previous: quote, Resets: c.ResetCount, Restarts: c.RestartCount, Safe: c.Safe, Seal: n,
	}).Encode()
	if err != nil {
		m.t.Fatal(err)
	}
	m.last.Number, m.quote = n, quote
	return b
}

// reset cuts the power, after which the TPM's clock is behind by so many ms.
func (m *machine) reset(behind uint64) {
	m.clock.ResetCount++
	m.clock.RestartCount = 0
	m.clock.Clock -= behind
	m.clock.Safe = m.clock.Safe && behind == 0
	m.pcrs = [24]record.Hash{}
}

// cleared is what root makes of the TPM: TPM2_Clear, the same key and a counter made anew, the clock set forward, and so many resets that
// their count is above what it was.
func (m *machine) cleared() {
	m.clock = attest.ClockInfo{Clock: m.clock.Clock + 60_000, ResetCount: m.clock.ResetCount + 1, Safe: true}
	m.pcrs = [24]record.Hash{}
}

// replayed returns the rules that the seals violate.
func replayed(t *testing.T, e attest.Enrolment, head func(uint64) (record.Hash, bool), seals ...[]byte) []attest.Rule {
	t.Helper()
	r, err := attest.NewReplay(e, origin, head)
	if err != nil {
		t.Fatal(err)
	}
	found := map[attest.Rule]bool{}
	for i, body := range seals {
		next := r.Next
		if bytes.HasPrefix(body, []byte(`{"clock":`)) {
			next = r.Recover
		}
		for _, f := range next(body) {
			t.Logf("seal %d: %s: expected %s, found %s", i+1, f.Rule, f.Expected, f.Found)
			if attest.Rules[f.Rule] == "" {
				t.Errorf("the rule %s has no meaning", f.Rule)
			}
			found[f.Rule] = true
		}
	}
	return slices.Sorted(maps.Keys(found))
}
