package attest

import (
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"math/big"
	"strconv"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
)

// Files returns the seal's evidence as files that standard tools take, by name:
//
//	statement.json                   the statement, whose SHA-256 is the quote's qualifying data
//	quote.attest quote.sig           TPMS_ATTEST and TPMT_SIGNATURE of the quote
//	quote.der                        the same signature in DER, over the SHA-256 of quote.attest
//	quote.pcrs                       the values of the quoted PCRs, ascending, 32 bytes each
//	counter.attest counter.sig counter.der   the same of the counter's attestation
//	ak.pem ak.tpmt                   the attestation key, as SubjectPublicKeyInfo and as TPMT_PUBLIC
//	attest.pb                        the quote as go-tpm-tools' attest.Attestation
//
// Commands says how to check them. The seal is not checked here.
func (s *Seal) Files(e *Enrolment) (map[string][]byte, error) {
	out := map[string][]byte{
		"statement.json": s.Statement,
		"quote.attest":   s.Quote.Attest, "quote.sig": s.Quote.Signature,
		"counter.attest": s.Counter.Attest, "counter.sig": s.Counter.Signature,
		"ak.tpmt":   e.AK,
		"attest.pb": s.protobuf(e),
	}
	for _, p := range s.PCRs {
		out["quote.pcrs"] = append(out["quote.pcrs"], p.Value[:]...)
	}
	ak, err := ParseAK(e.AK)
	if err != nil {
		return nil, err
	}
	if out["ak.pem"], err = publicPEM(ak.Public); err != nil {
		return nil, err
	}
	if out["quote.der"], err = derSignature(s.Quote.Signature); err != nil {
		return nil, fmt.Errorf("the quote's signature: %w", err)
	}
	if out["counter.der"], err = derSignature(s.Counter.Signature); err != nil {
		return nil, fmt.Errorf("the signature of the counter's attestation: %w", err)
	}
	return out, nil
}

// Commands are shell commands that check the seal's files with standard tools, in the directory that holds them, with what each shows.
// Every one of them ends with status 0 if that holds.
func (s *Seal) Commands() []Command {
	index := make([]string, len(s.PCRs))
	sealPCR := 0
	st, err := ParseStatement(s.Statement)
	for i, p := range s.PCRs {
		index[i] = strconv.Itoa(p.Index)
		if err == nil && p.Index == st.PCR.Index {
			sealPCR = i
		}
	}
	return []Command{
		{"The TPM signed the quote, over this statement and these PCR values.",
			"tpm2_checkquote -u ak.pem -m quote.attest -s quote.sig -f quote.pcrs -F values -l sha256:" + strings.Join(index, ",") +
				" -g sha256 -q $(sha256sum < statement.json | cut -c1-64)"},
		{"The same signature, without TPM software.", "openssl dgst -sha256 -verify ak.pem -signature quote.der quote.attest"},
		{"The TPM signed the value of its counter.", "openssl dgst -sha256 -verify ak.pem -signature counter.der counter.attest"},
		{"The statement names that attestation of the counter.",
			`test "$(openssl dgst -sha256 -binary counter.attest | base64)" = "$(jq -r .counter.attest statement.json)"`},
		{"The counter was certified for the statement's heads.",
			`test "$(jq -cj .logs statement.json | sha256sum | cut -c1-64)" = "$(tail -c +45 counter.attest | head -c 32 | xxd -p -c 32)"`},
		{"The statement went into the seal PCR last: the PCR is SHA-256 of its value before and the statement's hash.",
			`test "$( (jq -r .pcr.before statement.json | base64 -d; openssl dgst -sha256 -binary statement.json) | sha256sum | cut -c1-64)" = ` +
				fmt.Sprintf(`"$(tail -c +%d quote.pcrs | head -c 32 | xxd -p -c 32)"`, 32*sealPCR+1)},
	}
}

// Command is a shell command and what it shows.
type Command struct{ Shows, Line string }

// Files returns the enrolment's evidence as files: the attestation key (ak.pem, ak.tpmt), the endorsement key (ek.tpmt), its
// certificate (ek.pem) and the authorities' above it (ek-chain.pem).
func (e *Enrolment) Files() (map[string][]byte, error) {
	out := map[string][]byte{"ak.tpmt": e.AK, "ek.tpmt": e.EK}
	ak, err := ParseAK(e.AK)
	if err != nil {
		return nil, err
	}
	if out["ak.pem"], err = publicPEM(ak.Public); err != nil {
		return nil, err
	}
	for i, der := range e.EKCertificates {
		name := "ek-chain.pem"
		if i == 0 {
			name = "ek.pem"
		}
		out[name] = append(out[name], pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return out, nil
}

func publicPEM(key *ecdsa.PublicKey) ([]byte, error) {
	spki, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, fmt.Errorf("AK: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki}), nil
}

// derSignature encodes a TPMT_SIGNATURE as an ECDSA-Sig-Value (RFC 3279, section 2.2.3).
func derSignature(b []byte) ([]byte, error) {
	s, err := parseSignature(b)
	if err != nil {
		return nil, err
	}
	return asn1.Marshal(struct{ R, S *big.Int }{s.r, s.s})
}

// protobuf encodes the quote as go-tpm-tools' attest.Attestation (proto/attest.proto, proto/tpm.proto), in ascending order of fields.
func (s *Seal) protobuf(e *Enrolment) []byte {
	bytes := func(b []byte, field protowire.Number, value []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(b, field, protowire.BytesType), value)
	}
	number := func(b []byte, field protowire.Number, value uint64) []byte {
		return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), value)
	}
	pcrs := number(nil, 1, 0x000B) // tpm.PCRs: hash, SHA256
	for _, p := range s.PCRs {
		pcrs = bytes(pcrs, 2, bytes(number(nil, 1, uint64(p.Index)), 2, p.Value[:])) // pcrs, a map
	}
	quote := bytes(bytes(bytes(nil, 1, s.Quote.Attest), 2, s.Quote.Signature), 3, pcrs) // tpm.Quote
	return bytes(bytes(nil, 1, e.AK), 2, quote)                                         // attest.Attestation: ak_pub, quotes
}
