package server

import (
	"bytes"
	"crypto"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"slices"
	"time"
)

// The DER of RFC 3161: requests read, tokens (RFC 5652) and responses made. docs/adr/0007 says why it is not a library's: a token has no
// time in it but the one that was proved.

var (
	oidSignedData    = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}
	oidTSTInfo       = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 16, 1, 4}
	oidContentType   = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 3}
	oidMessageDigest = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 4}
	oidSigningCert   = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 16, 2, 47} // signing-certificate-v2, RFC 5816
	oidExtKeyUsage   = asn1.ObjectIdentifier{2, 5, 29, 37}
)

// imprint is an algorithm that a request may have hashed by.
type imprint struct {
	name string
	oid  asn1.ObjectIdentifier
	hash crypto.Hash
}

var imprints = []imprint{
	{"sha256", asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}, crypto.SHA256},
	{"sha384", asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 2}, crypto.SHA384},
	{"sha512", asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 3}, crypto.SHA512},
}

// failure is a PKIFailureInfo of RFC 3161 section 2.4.2; the value is its bit.
type failure int

const (
	failAlgorithm  failure = 0  // badAlg
	failRequest    failure = 2  // badRequest
	failFormat     failure = 5  // badDataFormat
	failTime       failure = 14 // timeNotAvailable
	failPolicy     failure = 15 // unacceptedPolicy
	failExtensions failure = 16 // unacceptedExtension
	failSystem     failure = 25 // systemFailure
)

// rejection is why there is no token, as the client is told.
type rejection struct {
	info failure
	text string
}

func (r *rejection) Error() string { return r.text }

// timeStampReq is TimeStampReq of RFC 3161 section 2.4.1.
type timeStampReq struct {
	Version    int
	Imprint    messageImprint
	Policy     asn1.ObjectIdentifier `asn1:"optional"`
	Nonce      *big.Int              `asn1:"optional"`
	CertReq    bool                  `asn1:"optional"`
	Extensions asn1.RawValue         `asn1:"optional,tag:0"`
}

type messageImprint struct {
	Raw       asn1.RawContent
	Algorithm pkix.AlgorithmIdentifier
	Hash      []byte
}

// query is a request that can be answered by a token.
type query struct {
	timeStampReq
	algorithm string // of the imprint
}

// maxQueryNonce is far above the 64 bits that clients use.
const maxQueryNonce = 512

// parseQuery reads a request under the given policy. What is wrong with it is a *rejection.
func parseQuery(der []byte, policy asn1.ObjectIdentifier) (*query, error) {
	var q query
	rest, err := asn1.Unmarshal(der, &q.timeStampReq)
	switch {
	case err != nil:
		return nil, &rejection{failFormat, "this is no RFC 3161 request in DER: " + err.Error()}
	case len(rest) > 0:
		return nil, &rejection{failFormat, "there is more behind the request"}
	case q.Version != 1:
		return nil, &rejection{failRequest, "the only version is 1"}
	}
	i := slices.IndexFunc(imprints, func(h imprint) bool { return h.oid.Equal(q.Imprint.Algorithm.Algorithm) })
	none := q.Imprint.Algorithm.Parameters.FullBytes
	switch {
	case i < 0 || len(none) > 0 && !bytes.Equal(none, asn1.NullBytes):
		return nil, &rejection{failAlgorithm, "the hash must be SHA-256, SHA-384 or SHA-512"}
	case len(q.Imprint.Hash) != imprints[i].hash.Size():
		return nil, &rejection{failFormat, "the hash does not have the length that its algorithm makes"}
	case q.Policy != nil && !q.Policy.Equal(policy):
		return nil, &rejection{failPolicy, "the policy is " + policy.String()}
	case len(q.Extensions.FullBytes) > 0:
		return nil, &rejection{failExtensions, "no extension is supported"}
	case q.Nonce != nil && q.Nonce.BitLen() > maxQueryNonce:
		return nil, &rejection{failFormat, "the nonce is too long"}
	}
	q.algorithm = imprints[i].name
	return &q, nil
}

// tstInfo is TSTInfo of RFC 3161 section 2.4.2. Ordering is false, and absent.
type tstInfo struct {
	Version  int
	Policy   asn1.ObjectIdentifier
	Imprint  asn1.RawValue
	Serial   *big.Int
	GenTime  asn1.RawValue
	Accuracy accuracy
	Nonce    *big.Int `asn1:"optional"`
}

type accuracy struct {
	Seconds int64 `asn1:"optional"`
	Millis  int64 `asn1:"optional,tag:0"`
	Micros  int64 `asn1:"optional,tag:1"`
}

// statement is what a token states, in DER. genTime is ns since 1970 in whole milliseconds, accurate ns in whole microseconds.
func statement(q *query, policy asn1.ObjectIdentifier, serial *big.Int, genTime, accurate int64) ([]byte, error) {
	const layout = "20060102150405.999Z" // DER has no trailing zeros
	return asn1.Marshal(tstInfo{
		Version: 1, Policy: policy, Imprint: asn1.RawValue{FullBytes: q.Imprint.Raw}, Serial: serial, Nonce: q.Nonce,
		GenTime:  asn1.RawValue{Tag: asn1.TagGeneralizedTime, Bytes: []byte(time.Unix(0, genTime).UTC().Format(layout))},
		Accuracy: accuracy{accurate / int64(time.Second), accurate / int64(time.Millisecond) % 1000, accurate / int64(time.Microsecond) % 1000},
	})
}

type contentInfo struct {
	Type    asn1.ObjectIdentifier
	Content any `asn1:"explicit,tag:0"`
}

type signedData struct {
	Version          int
	DigestAlgorithms []pkix.AlgorithmIdentifier `asn1:"set"`
	Content          encapsulated
	Certificates     asn1.RawValue `asn1:"optional"`
	Signers          []signerInfo  `asn1:"set"`
}

type encapsulated struct {
	Type    asn1.ObjectIdentifier
	Content []byte `asn1:"explicit,tag:0"`
}

type signerInfo struct {
	Version    int
	Issuer     issuerAndSerial
	Digest     pkix.AlgorithmIdentifier
	Attributes asn1.RawValue
	Signature  pkix.AlgorithmIdentifier
	Value      []byte
}

type issuerAndSerial struct {
	Issuer asn1.RawValue
	Serial *big.Int
}

// curve is how a key signs: ECDSA with the hash of its curve's size.
type curve struct {
	hash              crypto.Hash
	digest, signature pkix.AlgorithmIdentifier
}

// curves are those that keys may have.
var curves = map[elliptic.Curve]curve{
	elliptic.P256(): {crypto.SHA256, algorithm(imprints[0].oid), algorithm(asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2})},
	elliptic.P384(): {crypto.SHA384, algorithm(imprints[1].oid), algorithm(asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 3})},
}

// algorithm has no parameters (RFC 5754 sections 2 and 3.3).
func algorithm(oid asn1.ObjectIdentifier) pkix.AlgorithmIdentifier {
	return pkix.AlgorithmIdentifier{Algorithm: oid}
}

// sign makes the token of a statement: CMS SignedData in DER, with the chain if the client asked for it.
func sign(info []byte, key crypto.Signer, c curve, chain []*x509.Certificate, certificates bool) ([]byte, error) {
	attributes, err := signedAttributes(info, c, chain[0])
	if err != nil {
		return nil, err
	}
	signed, err := asn1.Marshal(asn1.RawValue{Tag: asn1.TagSet, IsCompound: true, Bytes: attributes})
	if err != nil {
		return nil, err
	}
	h := c.hash.New()
	h.Write(signed)
	value, err := key.Sign(rand.Reader, h.Sum(nil), c.hash)
	if err != nil {
		return nil, err
	}
	data := signedData{
		Version: 3, DigestAlgorithms: []pkix.AlgorithmIdentifier{c.digest}, Content: encapsulated{oidTSTInfo, info},
		Signers: []signerInfo{{
			Version: 1, Issuer: issuerAndSerial{asn1.RawValue{FullBytes: chain[0].RawIssuer}, chain[0].SerialNumber}, Digest: c.digest,
			Attributes: asn1.RawValue{Class: asn1.ClassContextSpecific, IsCompound: true, Bytes: attributes}, Signature: c.signature, Value: value,
		}},
	}
	if certificates {
		var all []byte
		for _, x := range chain {
			all = append(all, x.Raw...)
		}
		data.Certificates = asn1.RawValue{Class: asn1.ClassContextSpecific, IsCompound: true, Bytes: all}
	}
	return asn1.Marshal(contentInfo{oidSignedData, data})
}

// signedAttributes are the contents of the DER SET of what is signed: the statement's type and hash, and which certificate signs. There is
// no signing time: it would be the system's.
func signedAttributes(info []byte, c curve, cert *x509.Certificate) ([]byte, error) {
	h := c.hash.New()
	h.Write(info)
	of := sha256.Sum256(cert.Raw)
	type issuerSerial struct {
		Issuer []asn1.RawValue
		Serial *big.Int
	}
	type essCertID struct { // by SHA-256, the default
		Hash   []byte
		Issuer issuerSerial
	}
	directory := asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: cert.RawIssuer}
	var all [][]byte
	for _, a := range []struct {
		oid   asn1.ObjectIdentifier
		value any
	}{
		{oidContentType, oidTSTInfo},
		{oidMessageDigest, h.Sum(nil)},
		{oidSigningCert, struct{ Certs []essCertID }{[]essCertID{{of[:], issuerSerial{[]asn1.RawValue{directory}, cert.SerialNumber}}}}},
	} {
		value, err := asn1.Marshal(a.value)
		if err != nil {
			return nil, err
		}
		b, err := asn1.Marshal(struct {
			Type   asn1.ObjectIdentifier
			Values []asn1.RawValue `asn1:"set"`
		}{a.oid, []asn1.RawValue{{FullBytes: value}}})
		if err != nil {
			return nil, err
		}
		all = append(all, b)
	}
	slices.SortFunc(all, bytes.Compare) // DER, section 11.6 of X.690
	return slices.Concat(all...), nil
}

type timeStampResp struct {
	Status pkiStatusInfo
	Token  asn1.RawValue `asn1:"optional"`
}

type pkiStatusInfo struct {
	Status int
	Text   []asn1.RawValue `asn1:"optional"`
	Info   asn1.BitString  `asn1:"optional"`
}

// granted is the response with a token.
func granted(token []byte) ([]byte, error) {
	return asn1.Marshal(timeStampResp{Token: asn1.RawValue{FullBytes: token}})
}

// response is the response without one.
func (r *rejection) response() ([]byte, error) {
	bits := make([]byte, r.info/8+1)
	bits[r.info/8] = 0x80 >> (r.info % 8)
	const rejected = 2
	return asn1.Marshal(timeStampResp{Status: pkiStatusInfo{
		Status: rejected, Text: []asn1.RawValue{{Tag: asn1.TagUTF8String, Bytes: []byte(r.text)}}, Info: asn1.BitString{Bytes: bits, BitLength: int(r.info) + 1},
	}})
}
