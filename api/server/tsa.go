package server

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"mime"
	"net/http"
	"slices"
	"sync"
	"time"

	"bulla/clock"
	"bulla/ledger"
	"bulla/record"
)

// Bounds of a time-stamping authority.
const (
	maxQuery      = 4 << 10         // bytes of a request: one with SHA-512 and a nonce has 120
	tokenTime     = 5 * time.Second // from the reading of the clock until the token's entry is durable
	maxTokens     = 64              // being made at the same time,
	maxPeerTokens = 16              // and for one uid or address
)

// Media types of RFC 3161 section 3.4.
const (
	queryType = "application/timestamp-query"
	replyType = "application/timestamp-reply"
)

// TSA issues RFC 3161 time-stamp tokens. Each has an entry in a log, which is durable before the token is given out.
type TSA struct {
	cfg   TSAConfig
	curve curve
	cert  record.Hash // of the certificate

	making *seats
	warned bucket // warnings
}

// TSAConfig is what a TSA works with.
type TSAConfig struct {
	Ledger *ledger.Ledger     // takes the tokens' entries; its policy on time is the tokens', but for mark
	Clock  func() clock.Stamp // that the ledger stamps with
	// Key signs the tokens, with ECDSA on P-256 or P-384. Like a ledger's, it verifies its signatures before it returns them.
	Key    crypto.Signer
	Chain  []*x509.Certificate   // of the key, and of those that issued it, each followed by its issuer
	Policy asn1.ObjectIdentifier // what the tokens are issued under
	Listen string                // TCP address that serves everybody who reaches it; empty: none
	Log    *slog.Logger
}

// NewTSA checks that the certificate is one for time-stamping (RFC 3161 section 2.3), of that key, and valid now.
func NewTSA(cfg TSAConfig, now time.Time) (*TSA, error) {
	if len(cfg.Chain) == 0 {
		return nil, errors.New("there is no certificate")
	}
	cert := cfg.Chain[0]
	public, ok := cfg.Key.Public().(*ecdsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("the key is a %T: make one on P-256 or P-384", cfg.Key.Public())
	}
	c, ok := curves[public.Curve]
	if !ok {
		return nil, fmt.Errorf("the key is on %s: make one on P-256 or P-384", public.Curve.Params().Name)
	}
	if !public.Equal(cert.PublicKey) {
		return nil, fmt.Errorf("the certificate of %s is of another key: name the key that it was issued for, or have one issued for this", cert.Subject)
	}
	if err := checkCertificate(cert); err != nil {
		return nil, fmt.Errorf("the certificate of %s: %w", cert.Subject, err)
	}
	if err := valid(cert, now); err != nil {
		return nil, err
	}
	for i, issuer := range cfg.Chain[1:] {
		if err := cfg.Chain[i].CheckSignatureFrom(issuer); err != nil {
			return nil, fmt.Errorf("certificate %d in the chain, of %s, did not issue the one before it: %w", i+2, issuer.Subject, err)
		}
	}
	return &TSA{cfg: cfg, curve: c, cert: sha256.Sum256(cert.Raw), making: newSeats(maxTokens, maxPeerTokens), warned: bucket{burst: 1, every: time.Second}}, nil
}

// checkCertificate refuses what clients would not take a token from.
func checkCertificate(cert *x509.Certificate) error {
	i := slices.IndexFunc(cert.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(oidExtKeyUsage) })
	switch {
	case i < 0 || !cert.Extensions[i].Critical || len(cert.UnknownExtKeyUsage) > 0 || !slices.Equal(cert.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageTimeStamping}):
		return errors.New("its extended key usage must be critical, and timeStamping alone")
	case cert.KeyUsage != 0 && cert.KeyUsage&^(x509.KeyUsageDigitalSignature|x509.KeyUsageContentCommitment) != 0:
		return errors.New("its key usage must be digitalSignature or nonRepudiation alone")
	case cert.IsCA:
		return errors.New("it is an authority's: have one issued for time-stamping alone")
	}
	return nil
}

func valid(cert *x509.Certificate, now time.Time) error {
	if now.Before(cert.NotBefore) || now.After(cert.NotAfter) {
		return fmt.Errorf("the certificate of %s is valid from %s to %s, and now it is %s: have a new one issued", cert.Subject,
			cert.NotBefore.UTC().Format(time.RFC3339), cert.NotAfter.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return nil
}

// respond answers one request. Whatever is wrong is a response too.
func (t *TSA) respond(ctx context.Context, der []byte) ([]byte, error) {
	token, err := t.issue(ctx, der)
	if err == nil {
		return granted(token)
	}
	var r *rejection
	if !errors.As(err, &r) {
		if t.warned.take(time.Now()) == 0 {
			t.cfg.Log.Warn("no time-stamp was issued", "error", err)
		}
		r = &rejection{failSystem, "the appliance cannot issue tokens now: try again later"} // the reason is not for everybody
	}
	return r.response()
}

// issue makes the token that a request asks for, and returns it when its entry is durable.
func (t *TSA) issue(ctx context.Context, der []byte) ([]byte, error) {
	q, err := parseQuery(der, t.cfg.Policy)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), tokenTime) // what has begun is finished, whoever has gone
	defer cancel()

	// 1. Read the clock. What keeps events out keeps tokens out.
	reading := t.cfg.Clock()
	if err := t.fit(reading); err != nil {
		return nil, err
	}

	// 2. State the time: UTC by that reading, not the system's.
	entry := t.draft(q, reading)
	serial, err := hex.DecodeString(entry.Serial)
	if err != nil {
		return nil, fmt.Errorf("a serial number: %w", err)
	}
	info, err := statement(q, t.cfg.Policy, new(big.Int).SetBytes(serial), entry.GenTime, entry.Accuracy)
	if err != nil {
		return nil, fmt.Errorf("encoding what the token states: %w", err)
	}

	// 3. Sign. The token stays here until step 5: nothing signed leaves before it is durable.
	token, err := sign(info, t.cfg.Key, t.curve, t.cfg.Chain, q.CertReq)
	if err != nil {
		return nil, fmt.Errorf("signing a token: %w", err)
	}
	entry.Token = sha256.Sum256(token)

	// 4. Record it. If that fails, the token is destroyed.
	stamp, err := t.record(ctx, entry)
	if err != nil {
		return nil, err
	}

	// 5. The clock must not have been disturbed meanwhile: an auditor who finds the entry can then rely on the time that the token states.
	if err := t.fit(stamp); err != nil {
		return nil, err
	}
	if err := entry.Agrees(stamp); err != nil {
		return nil, fmt.Errorf("a token's entry: %w", err)
	}
	return token, nil
}

// fit is why no token may be issued on this reading of the clock, or nil.
func (t *TSA) fit(s clock.Stamp) error {
	if r := t.cfg.Ledger.Held(); r != nil {
		return &rejection{failSystem, "the appliance refuses events at the moment (" + string(r.Code) + "): try again later"}
	}
	if err := allows(t.cfg.Ledger.State().Policy.Clock, s); err != nil {
		return &rejection{failTime, err.Error()}
	}
	if err := valid(t.cfg.Chain[0], time.Unix(0, s.UTC())); err != nil {
		return err
	}
	return nil
}

// allows is why a policy on time forbids tokens, or nil. A token cannot say that its time is doubtful, as an entry can.
func allows(p clock.Policy, s clock.Stamp) error {
	if p.Mode == clock.Mark {
		p.Mode = clock.InHold
	}
	p.Leap = clock.LeapHold
	return p.Allows(s)
}

// draft is the entry of a token to be made, but for the token's hash. Its serial number is random: 126 bits make it unique without a
// memory that a restart, or a store put back, could lose (RFC 3161 section 2.4.2).
func (t *TSA) draft(q *query, reading clock.Stamp) *record.Token {
	serial := make([]byte, 16)
	rand.Read(serial) // never fails
	serial[0] = serial[0]&0x3f | 0x40
	e := &record.Token{
		Certificate: t.cert, Imprint: record.Imprint{Algorithm: q.algorithm, Hash: q.Imprint.Hash}, Policy: t.cfg.Policy.String(),
		Reading: reading, Serial: hex.EncodeToString(serial),
	}
	e.GenTime, e.Accuracy = record.TokenTime(reading)
	return e
}

// record returns the stamp of the entry when it is durable.
func (t *TSA) record(ctx context.Context, token *record.Token) (clock.Stamp, error) {
	body, err := token.Encode()
	if err == nil {
		err = ctx.Err() // signing took too long
	}
	if err != nil {
		return clock.Stamp{}, fmt.Errorf("recording a token: %w", err)
	}
	result, err := t.cfg.Ledger.Record(ctx, record.KindToken, body)
	if err != nil {
		return clock.Stamp{}, fmt.Errorf("recording a token: %w", err)
	}
	item, err := result.Item(0)
	if err != nil {
		return clock.Stamp{}, fmt.Errorf("recording a token: %w", err)
	}
	e, err := record.ParseEntry(item.Entry)
	if err != nil {
		return clock.Stamp{}, fmt.Errorf("recording a token: %w", err)
	}
	return e.Stamp, nil
}

// seats bounds how much of something is used, in all and by each.
type seats struct {
	all, each int

	mu    sync.Mutex
	taken int
	by    map[string]int
}

func newSeats(all, each int) *seats { return &seats{all: all, each: each, by: map[string]int{}} }

// take takes one for somebody, if there is one.
func (s *seats) take(who string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.taken >= s.all || s.by[who] >= s.each {
		return false
	}
	s.taken++
	s.by[who]++
	return true
}

// put gives it back.
func (s *seats) put(who string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taken--
	if s.by[who]--; s.by[who] == 0 {
		delete(s.by, who)
	}
}

// timestamp serves POST /tsa on http.sock. A token is an entry in the log: whoever may append may have one.
func (c *call) timestamp() error {
	t := c.s.cfg.TSA
	if t == nil {
		return fmt.Errorf("%w: this appliance issues no time-stamps: it has no [tsa] in its configuration", errNotFound)
	}
	if !t.cfg.Ledger.State().Roles(c.caller.UID, c.caller.Groups).Producer {
		return &ledger.Refusal{Code: record.CodeForbidden, Message: fmt.Sprintf("uid %d may not have time-stamps: the policy of %s does not make it a producer", c.caller.UID, t.cfg.Ledger.Origin())}
	}
	if err := isQuery(c.r); err != nil {
		return err
	}
	body, free, err := c.body(maxQuery)
	if err != nil {
		return err
	}
	defer free()
	who := fmt.Sprintf("uid %d", c.caller.UID)
	if !t.making.take(who) {
		return busy(c.s.limits.backoff, "too many time-stamps are being made already")
	}
	defer t.making.put(who)
	reply, err := t.respond(c.r.Context(), body)
	if err != nil {
		return err
	}
	c.w.Header().Set("Content-Type", replyType)
	return c.write(reply)
}

// isQuery refuses a body that says it is something else.
func isQuery(r *http.Request) error {
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != queryType {
		return &ledger.Refusal{Code: record.CodeInvalid, Field: "Content-Type", Message: "must be " + queryType}
	}
	return nil
}
