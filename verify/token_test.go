package verify_test

import (
	"crypto/sha256"
	"testing"
	"time"

	"bulla/clock"
	"bulla/record"
	"bulla/verify"
)

// token appends the entry of a time-stamp token.
func (b *builder) token(change func(*record.Token)) {
	b.t.Helper()
	b.add(record.KindToken, nil, b.tokenBody(change))
}

// tokenBody is that of a token that was made as the appliance makes it, but for a change.
func (b *builder) tokenBody(change func(*record.Token)) []byte {
	b.t.Helper()
	hash := sha256.Sum256([]byte("a document"))
	t := &record.Token{
		Certificate: record.Hash{1}, Imprint: record.Imprint{Algorithm: "sha256", Hash: hash[:]}, Policy: "1.3.6.1.4.1.32473.1",
		Reading: b.machine.now(), Serial: "5f", Token: record.Hash{2},
	}
	rederived(t)
	change(t)
	body, err := t.Encode()
	b.must(err)
	return body
}

// mistoken is a log of which one token was not made as the appliance makes it.
func mistoken(change func(b *builder, t *record.Token)) func(*testing.T) (files, *verify.Policy, []verify.Receipt) {
	return mistimed(func(b *builder) { b.token(func(t *record.Token) { change(b, t) }) })
}

// rederived has a token state what its reading says now.
func rederived(t *record.Token) { t.GenTime, t.Accuracy = record.TokenTime(t.Reading) }

var tokenViolations = []violation{
	{"time.token", "10", "a token states a time an hour ago", mistoken(func(_ *builder, t *record.Token) { t.GenTime -= int64(time.Hour) })},
	{"time.token", "10", "a token states a time to come", mistoken(func(_ *builder, t *record.Token) { t.GenTime += int64(time.Hour) })},
	{"time.token", "10", "a token claims to be accurate to a microsecond", mistoken(func(_ *builder, t *record.Token) { t.Accuracy = 1000 })},
	{"time.token", "10", "the reading was altered with the token's time", mistoken(func(_ *builder, t *record.Token) { t.Reading.Sys -= int64(time.Hour); rederived(t) })},
	{"time.token", "10", "the reading claims a smaller bound than its round gives", mistoken(func(_ *builder, t *record.Token) { t.Reading.Bound /= 2; rederived(t) })},
	{"time.token", "10", "the reading names a round that is not in the log", mistoken(func(_ *builder, t *record.Token) { t.Reading.Round = 2; rederived(t) })},
	{"time.token", "10", "the entry was made a minute after the time that the token states", mistoken(func(b *builder, _ *record.Token) { b.machine.raw += int64(time.Minute) })},
	{"time.token", "10", "the reading was made after the entry that has it", mistoken(func(b *builder, _ *record.Token) { b.machine.raw -= 3 * int64(time.Millisecond) })},
	{"time.token", "11", "a round came, and the token was dated back to before it", mistimed(func(b *builder) {
		reading := b.machine.now()
		b.machine.raw += int64(time.Hour)
		b.measure()
		b.token(func(t *record.Token) { t.Reading = reading; rederived(t) })
	})},
	{"entry.body", "10", "a token's entry does not say which token", mistimed(func(b *builder) { b.add(record.KindToken, nil, []byte(`{"serial":"5f"}`)) })},
	{"entry.producer", "10", "a token's entry from a user", mistimed(func(b *builder) {
		b.add(record.KindToken, &record.Producer{UID: 1000}, b.tokenBody(func(*record.Token) {}))
	})},
}

// A token that was issued in order is no finding, nor is one whose entry was made after a round, a step or a disturbance of the clock.
func TestTokensAreVerified(t *testing.T) {
	t.Parallel()
	b := timed(t).events(7)
	b.token(func(*record.Token) {})
	body := b.tokenBody(func(*record.Token) {})
	b.measure().add(record.KindToken, nil, body)
	body = b.tokenBody(func(*record.Token) {})
	e, d := b.machine.discipline.Disturb(clock.ReasonPause, int64(time.Hour), "", b.machine.reading())
	b.clock(&e)
	b.machine.discipline = d
	b.add(record.KindToken, nil, body)
	p := b.events(0).policy()
	p.NoTime = false
	want(t, run(t, b.export(), p), verify.OutcomeVerified)
}
