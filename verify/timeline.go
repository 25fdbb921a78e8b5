package verify

import (
	"bulla/attest"
	"bulla/record"
)

// timeline follows what is to be told of the log's course.
type timeline struct {
	time int64       // of the last entry, by the system's clock, ns
	last *MemorySeal // that holds
}

// see takes the next entry that is not like the one before.
func (l *timeline) see(e *record.Entry) { l.time = e.Stamp.Sys }

// seal takes a seal that holds.
func (l *timeline) seal(e *record.Entry) {
	s, err := attest.ParseSeal(e.Body)
	if err != nil {
		return // it would not hold
	}
	st, err := attest.ParseStatement(s.Statement)
	if err != nil {
		return
	}
	a, err := attest.ParseCertify(s.Counter.Attest)
	if err != nil {
		return
	}
	q, err := attest.ParseQuote(s.Quote.Attest)
	if err != nil {
		return
	}
	l.last = &MemorySeal{
		AK: q.Signer, Clock: q.Clock.Clock, Counter: a.Counter, Name: a.Name, Number: st.Number, Resets: q.Clock.ResetCount, Restarts: q.Clock.RestartCount,
	}
}
