package server

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/digitorus/timestamp"

	"bulla/ceremony"
	"bulla/clock"
	"bulla/ledger"
	"bulla/record"
)

var testPolicy = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 32473, 1}

// stampKey is a TSA's key, of which a test decides what happens when it signs.
type stampKey struct {
	*ecdsa.PrivateKey
	before func() error
}

func (k stampKey) Sign(random io.Reader, digest []byte, o crypto.SignerOpts) ([]byte, error) {
	if k.before != nil {
		if err := k.before(); err != nil {
			return nil, err
		}
	}
	return k.PrivateKey.Sign(random, digest, o)
}

func newKey(t testing.TB, c elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// timeStamping is the extension of a TSA's certificate.
func timeStamping(t testing.TB, critical bool, uses ...asn1.ObjectIdentifier) pkix.Extension {
	t.Helper()
	if uses == nil {
		uses = []asn1.ObjectIdentifier{{1, 3, 6, 1, 5, 5, 7, 3, 8}}
	}
	b, err := asn1.Marshal(uses)
	if err != nil {
		t.Fatal(err)
	}
	return pkix.Extension{Id: oidExtKeyUsage, Critical: critical, Value: b}
}

// certify has an authority issue a certificate for a key, changed as a test wants it.
func certify(t testing.TB, public crypto.PublicKey, change func(*x509.Certificate)) []*x509.Certificate {
	t.Helper()
	now := time.Now()
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour)}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "TSA"}, KeyUsage: x509.KeyUsageDigitalSignature,
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour), ExtraExtensions: []pkix.Extension{timeStamping(t, true)}}
	if change != nil {
		change(leaf)
	}
	key := newKey(t, elliptic.P256())
	var chain []*x509.Certificate
	for _, c := range []struct {
		template *x509.Certificate
		public   crypto.PublicKey
	}{{leaf, public}, {ca, key.Public()}} {
		der, err := x509.CreateCertificate(rand.Reader, c.template, ca, c.public, key)
		if err != nil {
			t.Fatal(err)
		}
		x, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		chain = append(chain, x)
	}
	return chain
}

// tsa gives the rig an authority with a key on the curve.
func (r *rig) tsa(c elliptic.Curve, before func() error, change func(*TSAConfig)) *rig {
	r.t.Helper()
	key := stampKey{newKey(r.t, c), before}
	cfg := TSAConfig{Ledger: r.log(), Clock: r.now, Key: key, Chain: certify(r.t, key.Public(), nil), Policy: testPolicy, Log: slog.New(complaints{r.t})}
	if change != nil {
		change(&cfg)
	}
	t, err := NewTSA(cfg, time.Now())
	if err != nil {
		r.t.Fatal(err)
	}
	r.cfg.TSA = t
	return r
}

const asQuery = "Content-Type: " + queryType

// tsQuery makes a request.
func tsQuery(t testing.TB, q timestamp.Request) string {
	t.Helper()
	if q.HashAlgorithm == 0 {
		q.HashAlgorithm = crypto.SHA256
	}
	if q.HashedMessage == nil {
		h := q.HashAlgorithm.New()
		h.Write([]byte("a document"))
		q.HashedMessage = h.Sum(nil)
	}
	b, err := q.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// tokens are the entries of kind token in the log.
func (r *rig) tokens() (out []*record.Token) {
	r.t.Helper()
	indices, err := r.log().Kind(record.KindToken, 0, 10_000)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, i := range indices {
		b, err := r.log().Entry(i)
		if err != nil {
			r.t.Fatal(err)
		}
		e, err := record.ParseEntry(b)
		if err != nil {
			r.t.Fatal(err)
		}
		token, err := record.ParseToken(e.Body)
		if err != nil {
			r.t.Fatal(err)
		}
		if err := token.Agrees(e.Stamp); err != nil {
			r.t.Error(err)
		}
		out = append(out, token)
	}
	return out
}

// reading guards a variable of the library: it reads one token at a time.
var reading sync.Mutex

// parseReply reads a reply with a token by another implementation, which checks the signature where there is a certificate.
func parseReply(reply []byte) (*timestamp.Timestamp, error) {
	reading.Lock()
	defer reading.Unlock()
	return timestamp.ParseResponse(reply)
}

// requireToken checks a reply and its entry, the log's last, against the request.
func (r *rig) requireToken(reply []byte, q timestamp.Request) *timestamp.Timestamp {
	r.t.Helper()
	ts, err := parseReply(reply)
	if err != nil {
		r.t.Fatal(err)
	}
	all := r.tokens()
	if len(all) == 0 {
		r.t.Fatal("a token was given out, and there is no entry")
	}
	e := all[len(all)-1]
	switch {
	case e.Token != sha256.Sum256(ts.RawToken):
		r.t.Error("the entry is of another token")
	case e.Serial != hex.EncodeToString(ts.SerialNumber.Bytes()) || e.Policy != ts.Policy.String() || !bytes.Equal(e.Imprint.Hash, ts.HashedMessage):
		r.t.Errorf("the entry has serial %s, policy %s, imprint %x; the token %x, %s, %x", e.Serial, e.Policy, e.Imprint.Hash, ts.SerialNumber, ts.Policy, ts.HashedMessage)
	case ts.Time.UnixNano() != e.GenTime || int64(ts.Accuracy) != e.Accuracy:
		r.t.Errorf("the entry says %d within %d ns, the token %d within %d", e.GenTime, e.Accuracy, ts.Time.UnixNano(), ts.Accuracy)
	case ts.Ordering || !ts.Policy.Equal(testPolicy) || ts.HashAlgorithm != q.HashAlgorithm:
		r.t.Errorf("ordering %t, policy %s, hash %v", ts.Ordering, ts.Policy, ts.HashAlgorithm)
	case (ts.Nonce == nil) != (q.Nonce == nil) || ts.Nonce != nil && ts.Nonce.Cmp(q.Nonce) != 0:
		r.t.Errorf("nonce %v, not %v", ts.Nonce, q.Nonce)
	case q.Certificates != (len(ts.Certificates) == 2):
		r.t.Errorf("%d certificates", len(ts.Certificates))
	case e.Certificate != sha256.Sum256(r.cfg.TSA.cfg.Chain[0].Raw):
		r.t.Error("the entry names another certificate")
	}
	return ts
}

// A token states UTC by the clock, not the system's time, and says how sure that is; its entry has the same, and its hash.
func TestTimestamp(t *testing.T) {
	t.Parallel()
	for _, c := range []elliptic.Curve{elliptic.P256(), elliptic.P384()} {
		t.Run(c.Params().Name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, everyone).tsa(c, nil, nil)
			r.stamp.Offset, r.stamp.Bound = int64(100*time.Second), int64(1500*time.Millisecond)/2
			r.serve()
			b := r.browser()
			for _, q := range []timestamp.Request{
				{HashAlgorithm: crypto.SHA256},
				{HashAlgorithm: crypto.SHA256, Nonce: big.NewInt(0), Certificates: true, TSAPolicyOID: testPolicy},
				{HashAlgorithm: crypto.SHA384, Nonce: new(big.Int).Lsh(big.NewInt(1), 63), Certificates: true},
				{HashAlgorithm: crypto.SHA512, Nonce: big.NewInt(-5), Certificates: true},
			} {
				before := time.Now()
				p := r.do(b, "POST", "/tsa", tsQuery(t, q), asQuery)
				if p.status != http.StatusOK || p.header.Get("Content-Type") != replyType {
					t.Fatalf("%d %q", p.status, p.body)
				}
				ts := r.requireToken(p.body, q)
				first, last := before.Add(100*time.Second), time.Now().Add(100*time.Second)
				if ts.Time.Add(ts.Accuracy).Before(first) || ts.Time.After(last) || ts.Accuracy < 750*time.Millisecond || ts.Accuracy >= 752*time.Millisecond {
					t.Errorf("%v within %v, between %v and %v", ts.Time, ts.Accuracy, first, last)
				}
			}
		})
	}
}

// failInfo reads the failure of a rejection, or -1 where there is a token.
func failInfo(t testing.TB, reply []byte) failure {
	t.Helper()
	var r timeStampResp
	if rest, err := asn1.Unmarshal(reply, &r); err != nil || len(rest) > 0 {
		t.Fatalf("%x is no response: %v", reply, err)
	}
	if r.Status.Status == 0 {
		return -1
	}
	if len(r.Token.FullBytes) > 0 || r.Status.Status != 2 || len(r.Status.Text) != 1 || len(r.Status.Text[0].Bytes) == 0 {
		t.Errorf("a rejection with status %d, %d texts and a token of %d bytes", r.Status.Status, len(r.Status.Text), len(r.Token.FullBytes))
	}
	i := r.Status.Info
	if i.BitLength == 0 || i.At(i.BitLength-1) != 1 || bytes.Count(i.Bytes, []byte{0}) != len(i.Bytes)-1 {
		t.Errorf("failure %x of %d bits is not DER, or not one", i.Bytes, i.BitLength)
	}
	return failure(i.BitLength - 1)
}

// Whatever is wrong with a request has its PKIFailureInfo, and no entry.
func TestTimestampRequestsAreRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t, everyone).tsa(elliptic.P256(), nil, nil).serve()
	b := r.browser()
	plain := tsQuery(t, timestamp.Request{})
	raw := func(q any) string {
		der, err := asn1.Marshal(q)
		if err != nil {
			t.Fatal(err)
		}
		return string(der)
	}
	imprint := func(oid asn1.ObjectIdentifier, params asn1.RawValue, size int) messageImprint {
		return messageImprint{Algorithm: pkix.AlgorithmIdentifier{Algorithm: oid, Parameters: params}, Hash: make([]byte, size)}
	}
	sha := imprints[0].oid
	extension, err := asn1.MarshalWithParams([]pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3}, Value: []byte{5, 0}}}, "tag:0")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, body string
		want       failure
	}{
		{"good", plain, -1},
		{"without parameters", raw(timeStampReq{Version: 1, Imprint: imprint(sha, asn1.RawValue{}, 32)}), -1},
		{"empty", "", failFormat},
		{"text", "stamp this", failFormat},
		{"cut", plain[:len(plain)-1], failFormat},
		{"more behind", plain + "\x00", failFormat},
		{"two requests", plain + plain, failFormat},
		{"version 2", raw(timeStampReq{Version: 2, Imprint: imprint(sha, asn1.NullRawValue, 32)}), failRequest},
		{"SHA-1", tsQuery(t, timestamp.Request{HashAlgorithm: crypto.SHA1}), failAlgorithm},
		{"unknown hash", raw(timeStampReq{Version: 1, Imprint: imprint(asn1.ObjectIdentifier{1, 2, 3}, asn1.NullRawValue, 32)}), failAlgorithm},
		{"hash with parameters", raw(timeStampReq{Version: 1, Imprint: imprint(sha, asn1.RawValue{Tag: 2, Bytes: []byte{7}}, 32)}), failAlgorithm},
		{"short hash", tsQuery(t, timestamp.Request{HashedMessage: make([]byte, 31)}), failFormat},
		{"no hash", raw(timeStampReq{Version: 1, Imprint: imprint(sha, asn1.NullRawValue, 0)}), failFormat},
		{"another policy", tsQuery(t, timestamp.Request{TSAPolicyOID: asn1.ObjectIdentifier{1, 2, 3}}), failPolicy},
		{"extension", raw(timeStampReq{Version: 1, Imprint: imprint(sha, asn1.NullRawValue, 32), Extensions: asn1.RawValue{FullBytes: extension}}), failExtensions},
		{"nonce of 600 bits", tsQuery(t, timestamp.Request{Nonce: new(big.Int).Lsh(big.NewInt(1), 600)}), failFormat},
		{"a response", string(r.do(b, "POST", "/tsa", "x", asQuery).body), failFormat},
	} {
		before := len(r.tokens())
		p := r.do(b, "POST", "/tsa", c.body, asQuery)
		if p.status != http.StatusOK {
			t.Errorf("%s: %d %s", c.name, p.status, p.body)
			continue
		}
		got := failInfo(t, p.body)
		if got != c.want {
			t.Errorf("%s: failure %d, want %d", c.name, got, c.want)
		}
		if made := len(r.tokens()) - before; made != 0 && got >= 0 || made != 1 && got < 0 {
			t.Errorf("%s: %d entries", c.name, made)
		}
	}
}

// What is no request at all is an HTTP error, as everywhere.
func TestTimestampHTTP(t *testing.T) {
	t.Parallel()
	r := newRig(t, everyone).tsa(elliptic.P256(), nil, nil).serve()
	b := r.browser()
	query := tsQuery(t, timestamp.Request{})
	for _, c := range []struct {
		name, method, path, body string
		status                   int
		headers                  []string
	}{
		{"another type", "POST", "/tsa", query, 400, []string{asJSON}},
		{"no type", "POST", "/tsa", query, 400, nil},
		{"too large", "POST", "/tsa", strings.Repeat("x", maxQuery+1), 413, []string{asQuery}},
		{"a parameter", "POST", "/tsa?policy=1", query, 400, []string{asQuery}},
		{"GET", "GET", "/tsa", "", 405, nil},
		{"of a log", "POST", "/logs/log/tsa", query, 404, []string{asQuery}},
	} {
		if p := r.do(b, c.method, c.path, c.body, c.headers...); p.status != c.status {
			t.Errorf("%s: %d %s", c.name, p.status, p.body)
		}
	}
	if n := len(r.tokens()); n != 0 {
		t.Errorf("%d tokens were recorded", n)
	}
	none := newRig(t, everyone).serve()
	if p := none.do(none.browser(), "POST", "/tsa", query, asQuery); p.status != 404 || !strings.Contains(string(p.body), "[tsa]") {
		t.Errorf("without a TSA: %d %s", p.status, p.body)
	}
	readers := newRig(t, []ceremony.Role{{Name: ceremony.Auditor, Any: true}}).tsa(elliptic.P256(), nil, nil).serve()
	if p := readers.do(readers.browser(), "POST", "/tsa", query, asQuery); p.status != 403 {
		t.Errorf("to an auditor: %d %s", p.status, p.body)
	}
}

// Out of policy there is no token, in any mode: it could not say that its time is doubtful.
func TestTimestampNeedsTheClock(t *testing.T) {
	t.Parallel()
	r := newRig(t, everyone).tsa(elliptic.P256(), nil, nil).serve()
	b := r.browser()
	good := r.stamp
	for _, c := range []struct {
		name   string
		change func(s *clock.Stamp)
		want   failure
	}{
		{"synced", func(*clock.Stamp) {}, -1},
		{"holdover", func(s *clock.Stamp) { s.State = clock.Holdover; s.Age = int64(time.Hour) }, -1},
		{"past holdover", func(s *clock.Stamp) { s.State = clock.Holdover; s.Age = int64(5 * time.Hour) }, failTime},
		{"unsynced", func(s *clock.Stamp) { s.State = clock.Unsynced }, failTime},
		{"disrupted", func(s *clock.Stamp) { s.State = clock.Disrupted }, failTime},
		{"unknown", func(s *clock.Stamp) { *s = clock.Stamp{Epoch: 1} }, failTime},
		{"no estimate", func(s *clock.Stamp) { *s = clock.Stamp{Epoch: 1, State: clock.Synced} }, failTime},
		{"bound above the limit", func(s *clock.Stamp) { s.Bound = int64(2 * time.Second) }, failTime},
		{"in a leap second", func(s *clock.Stamp) { s.Flags = clock.InLeap }, failTime},
		{"system's clock too far off", func(s *clock.Stamp) { s.Offset = int64(20 * time.Minute) }, failTime},
	} {
		s := good
		c.change(&s)
		r.mu.Lock()
		r.stamp = s
		r.mu.Unlock()
		before := len(r.tokens())
		p := r.do(b, "POST", "/tsa", tsQuery(t, timestamp.Request{}), asQuery)
		if got := failInfo(t, p.body); got != c.want || (len(r.tokens()) > before) != (got < 0) {
			t.Errorf("%s: failure %d, want %d; %d entries", c.name, got, c.want, len(r.tokens())-before)
		}
	}
	r.mu.Lock()
	r.stamp = good
	r.mu.Unlock()
	r.log().Hold(&ledger.Refusal{Code: record.CodeUnsealed, Message: "the last seal is too old"})
	if got := failInfo(t, r.do(b, "POST", "/tsa", tsQuery(t, timestamp.Request{}), asQuery).body); got != failSystem {
		t.Errorf("while events are refused: failure %d", got)
	}
	r.log().Hold(nil)

	mode := clock.DefaultPolicy()
	mode.Mode = clock.Mark
	if mode.Allows(clock.Stamp{State: clock.Unsynced}) != nil {
		t.Error("mode mark refuses events")
	}
	if err := allows(mode, clock.Stamp{State: clock.Unsynced}); err == nil {
		t.Error("in mode mark there are tokens while the clock is unsynced")
	}
}

// The entry is durable before the token is given out.
func TestTimestampIsDurableFirst(t *testing.T) {
	t.Parallel()
	r := newRig(t, everyone).tsa(elliptic.P256(), nil, nil).serve()
	held, release := r.holdSignatures()
	defer release()
	replied := make(chan []byte, 1)
	q := timestamp.Request{HashAlgorithm: crypto.SHA256}
	go func() { replied <- r.do(r.browser(), "POST", "/tsa", tsQuery(t, q), asQuery).body }()
	<-held // the token is signed; the log is about to sign the head over its entry
	select {
	case <-replied:
		t.Fatal("a token was given out whose entry is not in the log")
	case <-time.After(50 * time.Millisecond): // a reply that must not come cannot be waited for
	}
	if n := len(r.tokens()); n != 0 {
		t.Errorf("%d entries are there already", n)
	}
	release()
	r.requireToken(<-replied, q)
}

// When anything fails between the reading of the clock and the durable entry, nothing is given out.
func TestTimestampFailures(t *testing.T) {
	t.Parallel()
	query := tsQuery(t, timestamp.Request{})
	quiet := func(c *TSAConfig) { c.Log = slog.New(slog.DiscardHandler) }

	r := newRig(t, everyone).tsa(elliptic.P256(), func() error { return errors.New("the token was pulled") }, quiet).serve()
	reply := r.do(r.browser(), "POST", "/tsa", query, asQuery).body
	if got := failInfo(t, reply); got != failSystem || len(r.tokens()) != 0 {
		t.Errorf("the key does not sign: failure %d, %d entries", got, len(r.tokens()))
	}
	if bytes.Contains(reply, []byte("pulled")) {
		t.Error("a reason that is the operator's was given out")
	}

	var disturbed *rig
	disturbed = newRig(t, everyone).tsa(elliptic.P256(), func() error {
		disturbed.mu.Lock()
		defer disturbed.mu.Unlock()
		disturbed.stamp = clock.Stamp{Epoch: 2, State: clock.Disrupted}
		return nil
	}, quiet).serve()
	if got := failInfo(t, disturbed.do(disturbed.browser(), "POST", "/tsa", query, asQuery).body); got != failTime || len(disturbed.tokens()) != 1 {
		t.Errorf("the clock was disturbed while the token was signed: failure %d, %d entries", got, len(disturbed.tokens()))
	}

	late := newRig(t, everyone)
	late.stamp.Round = 2
	late.tsa(elliptic.P256(), nil, func(c *TSAConfig) {
		quiet(c)
		c.Clock = func() clock.Stamp {
			s := late.now()
			s.Sys, s.Round = s.Sys-int64(time.Minute), 1
			return s
		}
	}).serve()
	if got := failInfo(t, late.do(late.browser(), "POST", "/tsa", query, asQuery).body); got != failSystem {
		t.Errorf("the entry is a minute late: failure %d", got)
	}

	expired := newRig(t, everyone)
	expired.stamp.Offset = int64(15 * time.Minute)
	expired.tsa(elliptic.P256(), nil, func(c *TSAConfig) {
		quiet(c)
		c.Chain = certify(t, c.Key.Public(), func(c *x509.Certificate) { c.NotAfter = time.Now().Add(10 * time.Minute) })
	}).serve()
	if got := failInfo(t, expired.do(expired.browser(), "POST", "/tsa", query, asQuery).body); got != failSystem || len(expired.tokens()) != 0 {
		t.Errorf("the certificate has expired, by UTC and not by the system's clock: failure %d, %d entries", got, len(expired.tokens()))
	}

	closed := newRig(t, everyone).tsa(elliptic.P256(), nil, quiet)
	if err := closed.log().Close(); err != nil {
		t.Fatal(err)
	}
	closed.cfg.Logs = nil
	response, err := closed.cfg.TSA.respond(t.Context(), []byte(query))
	if err != nil {
		t.Fatal(err)
	}
	if got := failInfo(t, response); got != failSystem {
		t.Errorf("the log is closed: failure %d", got)
	}
}

// Tokens that are made at the same time have serial numbers of their own, and one who asks has a share of them.
func TestTimestampsAtOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t, everyone).tsa(elliptic.P256(), nil, nil).serve()
	query := tsQuery(t, timestamp.Request{})
	held, release := r.holdSignatures()
	defer release()
	var wg sync.WaitGroup
	serials := make(chan string, 4*maxPeerTokens)
	for range maxPeerTokens {
		wg.Go(func() {
			b := r.browser()
			p := r.do(b, "POST", "/tsa", query, asQuery)
			for end := time.Now().Add(patience); p.status == http.StatusTooManyRequests && time.Now().Before(end); time.Sleep(time.Millisecond) {
				p = r.do(b, "POST", "/tsa", query, asQuery) // the one who asks below was in the way
			}
			ts, err := parseReply(p.body)
			if err != nil {
				t.Error(err)
				return
			}
			serials <- ts.SerialNumber.String()
		})
	}
	<-held
	b := r.browser()
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		p := r.do(b, "POST", "/tsa", tsQuery(t, timestamp.Request{HashAlgorithm: crypto.SHA1}), asQuery)
		if p.status == http.StatusTooManyRequests && p.header.Get("Retry-After") != "" {
			break
		}
		if time.Now().After(end) {
			t.Fatal("one uid has all there is")
		}
	}
	release()
	wg.Wait()
	close(serials)
	seen := map[string]bool{}
	for s := range serials {
		if seen[s] {
			t.Errorf("serial number %s twice", s)
		}
		seen[s] = true
	}
	if len(seen) != maxPeerTokens || len(r.tokens()) != maxPeerTokens {
		t.Errorf("%d tokens, %d entries", len(seen), len(r.tokens()))
	}
	if len(r.cfg.TSA.making.by) != 0 || r.cfg.TSA.making.taken != 0 {
		t.Error("some are still counted")
	}
}

// From the network there are time-stamps and nothing else.
func TestTimestampListener(t *testing.T) {
	t.Parallel()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := free.Addr().String()
	if err := free.Close(); err != nil {
		t.Fatal(err)
	}
	r := newRig(t, []ceremony.Role{{Name: ceremony.Auditor, Any: true}}).tsa(elliptic.P256(), nil, func(c *TSAConfig) { c.Listen = address }).serve()
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	q := timestamp.Request{HashAlgorithm: crypto.SHA256, Certificates: true}
	post := func(path, kind, body string) (int, []byte) {
		t.Helper()
		res, err := c.Post("http://"+address+path, kind, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, b
	}
	status, body := post("/tsa", queryType, tsQuery(t, q))
	if status != http.StatusOK {
		t.Fatalf("%d %s", status, body)
	}
	r.requireToken(body, q)
	if status, body = post("/tsa", queryType, "x"); status != 200 || failInfo(t, body) != failFormat {
		t.Errorf("nonsense: %d %x", status, body)
	}
	for _, c := range []struct {
		path, kind, body string
		status           int
	}{
		{"/tsa", "text/plain", "x", 400}, {"/tsa", queryType, strings.Repeat("x", maxQuery+1), 413},
		{"/v1/events", "application/json", good, 404}, {"/v1/status", "", "", 404}, {"/", queryType, "", 404},
	} {
		if status, body := post(c.path, c.kind, c.body); status != c.status {
			t.Errorf("POST %s %s: %d %s", c.path, c.kind, status, body)
		}
	}

	var open []net.Conn
	for range tsaPeerConns + 1 {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		open = append(open, conn)
	}
	last := open[tsaPeerConns]
	if err := last.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := last.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("connection %d of one address: %v", tsaPeerConns+1, err)
	}
	if err := open[0].Close(); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		if res, err := c.Post("http://"+address+"/tsa", queryType, strings.NewReader("x")); err == nil {
			if err := res.Body.Close(); err != nil {
				t.Error(err)
			}
			break
		}
		if time.Now().After(end) {
			t.Fatal("a place that was given up is not free")
		}
	}
}

func TestCertificatesAreRefused(t *testing.T) {
	t.Parallel()
	key := newKey(t, elliptic.P256())
	wide, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	good := certify(t, key.Public(), nil)
	for _, c := range []struct {
		name  string
		key   crypto.Signer
		chain []*x509.Certificate
		want  string
	}{
		{"good", key, good, ""},
		{"without its issuer", key, good[:1], ""},
		{"nonRepudiation", key, certify(t, key.Public(), func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageContentCommitment }), ""},
		{"none", key, nil, "no certificate"},
		{"of another key", newKey(t, elliptic.P256()), good, "another key"},
		{"RSA", wide, certify(t, wide.Public(), nil), "P-256 or P-384"},
		{"P-521", newKey(t, elliptic.P521()), good, "P-256 or P-384"},
		{"usage not critical", key, certify(t, key.Public(), func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{timeStamping(t, false)}
		}), "must be critical"},
		{"no usage", key, certify(t, key.Public(), func(c *x509.Certificate) { c.ExtraExtensions = nil }), "must be critical"},
		{"another usage beside", key, certify(t, key.Public(), func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{timeStamping(t, true, asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 8}, asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 3})}
		}), "timeStamping alone"},
		{"an unknown usage beside", key, certify(t, key.Public(), func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{timeStamping(t, true, asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 8}, asn1.ObjectIdentifier{1, 2, 3})}
		}), "timeStamping alone"},
		{"for encryption too", key, certify(t, key.Public(), func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageKeyAgreement }), "digitalSignature"},
		{"an authority's", key, certify(t, key.Public(), func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }), "authority"},
		{"expired", key, certify(t, key.Public(), func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }), "have a new one issued"},
		{"not valid yet", key, certify(t, key.Public(), func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }), "valid from"},
		{"a chain of strangers", key, []*x509.Certificate{good[0], certify(t, key.Public(), nil)[1]}, "did not issue"},
	} {
		_, err := NewTSA(TSAConfig{Key: c.key, Chain: c.chain, Policy: testPolicy}, time.Now())
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// Whatever comes is answered by a response in DER.
func FuzzTimestampQuery(f *testing.F) {
	for _, q := range []timestamp.Request{{}, {HashAlgorithm: crypto.SHA512, Nonce: big.NewInt(77), Certificates: true}, {TSAPolicyOID: testPolicy}, {HashAlgorithm: crypto.SHA1}} {
		f.Add([]byte(tsQuery(f, q)))
	}
	key := newKey(f, elliptic.P256())
	chain := certify(f, key.Public(), nil)
	f.Fuzz(func(t *testing.T, der []byte) {
		q, err := parseQuery(der, testPolicy)
		var r *rejection
		switch {
		case errors.As(err, &r):
			b, err := r.response()
			if err != nil || failInfo(t, b) != r.info {
				t.Fatalf("%v: %v", r, err)
			}
			return
		case err != nil:
			t.Fatal(err)
		}
		info, err := statement(q, testPolicy, big.NewInt(7), 1795396800123000000, 1_001_001_000)
		if err != nil {
			t.Fatal(err)
		}
		token, err := sign(info, key, curves[elliptic.P256()], chain, true)
		if err != nil {
			t.Fatal(err)
		}
		b, err := granted(token)
		if err != nil {
			t.Fatal(err)
		}
		ts, err := parseReply(b)
		if err != nil || !bytes.Equal(ts.HashedMessage, q.Imprint.Hash) || ts.Accuracy != 1001001*time.Microsecond || ts.Time.UnixNano() != 1795396800123000000 {
			t.Fatalf("%+v: %v", ts, err)
		}
	})
}
