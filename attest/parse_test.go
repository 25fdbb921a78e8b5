package attest_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"bulla/attest"
	"bulla/record"
)

func statement() *attest.Statement {
	return &attest.Statement{
		Counter: attest.StatementCounter{Attest: record.Hash{1}, Name: counterName},
		Logs:    []attest.Head{{Hash: record.Hash{2}, Log: "example.com/a", Size: 1}, {Hash: record.Hash{3}, Log: "example.com/b", Size: 1<<53 - 1}},
		Number:  1, PCR: attest.StatementPCR{Before: record.Hash{4}, Index: sealPCR}, Reason: "start", V: 1,
	}
}

func TestStatement(t *testing.T) {
	t.Parallel()
	want := statement()
	want.Nonce = []byte("nonce")
	b, err := want.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := attest.ParseStatement(b)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	for name, change := range map[string]func(*attest.Statement){
		"v":               func(s *attest.Statement) { s.V = 2 },
		"number":          func(s *attest.Statement) { s.Number = 0 },
		"too high number": func(s *attest.Statement) { s.Number = 1 << 53 },
		"no logs":         func(s *attest.Statement) { s.Logs = nil },
		"logs unordered":  func(s *attest.Statement) { s.Logs[0].Log = "example.com/c" },
		"a log twice":     func(s *attest.Statement) { s.Logs[0].Log = "example.com/b" },
		"no origin":       func(s *attest.Statement) { s.Logs[0].Log = "" },
		"no reason":       func(s *attest.Statement) { s.Reason = "" },
		"a long reason":   func(s *attest.Statement) { s.Reason = strings.Repeat("x", 65) },
		"a long nonce":    func(s *attest.Statement) { s.Nonce = make([]byte, 65) },
		"no such PCR":     func(s *attest.Statement) { s.PCR.Index = 24 },
		"a negative PCR":  func(s *attest.Statement) { s.PCR.Index = -1 },
		"many logs":       func(s *attest.Statement) { s.Logs = make([]attest.Head, 257) },
		"many abandoned":  func(s *attest.Statement) { s.Abandoned = make([]attest.Abandoned, 65) },
		"a long name":     func(s *attest.Statement) { s.Counter.Name = make([]byte, 35) },
	} {
		s := statement()
		change(s)
		if _, err := s.Encode(); err == nil {
			t.Errorf("%s: encoded", name)
		}
	}
	for name, replace := range map[string][2]string{
		"unknown member":  {`"v":1`, `"v":1,"w":1`},
		"another case":    {`"reason"`, `"Reason"`},
		"empty nonce":     {`"nonce":"bm9uY2U="`, `"nonce":""`},
		"space":           {`"v":1`, `"v": 1`},
		"missing reason":  {`"reason":"start",`, ``},
		"null":            {`"nonce":"bm9uY2U="`, `"nonce":null`},
		"a short hash":    {`"before":"BAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="`, `"before":"BAAAAA=="`},
		"base64 by line":  {`"nonce":"bm9uY2U="`, `"nonce":"bm9u\nY2U="`},
		"number as text":  {`"number":1`, `"number":"1"`},
		"a real number":   {`"number":1`, `"number":1.0`},
		"duplicate":       {`"v":1`, `"v":1,"v":1`},
		"trailing object": {`"v":1}`, `"v":1}{}`},
	} {
		changed := strings.Replace(string(b), replace[0], replace[1], 1)
		if changed == string(b) {
			t.Fatalf("%s: nothing to change in %s", name, b)
		}
		if _, err := attest.ParseStatement([]byte(changed)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// Abandoned statements stay within the depth of canonical JSON however many there are, up to their bound.
func TestAbandonManyTimes(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.size = 3
	e := m.enrolment()
	for range 20 {
		m.abandon(m.begin(start))
		m.reset(0)
	}
	if n := len(m.abandoned); n != 20 {
		t.Fatalf("%d abandoned", n)
	}
	body := m.seal(start)
	if got := replayed(t, e, m.head, body, m.seal(edit{})); got != nil {
		t.Errorf("findings %v", got)
	}
	entry := record.Entry{Kind: record.KindSeal, Index: 5, Log: origin, Prev: record.Hash{1}, Body: body}
	if b, err := entry.Append(nil); err != nil {
		t.Error(err)
	} else if _, err := record.ParseEntry(b); err != nil {
		t.Error(err)
	}
	if _, err := attest.Abandon([]byte("{}"), attest.Signed{}); err == nil {
		t.Error("abandoned something else")
	}
}

func FuzzParseStatement(f *testing.F) {
	b, err := statement().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := attest.ParseStatement(b)
		if err != nil {
			return
		}
		if again, err := s.Encode(); err != nil || !bytes.Equal(b, again) {
			t.Errorf("%s encodes to %s (%v)", b, again, err)
		}
	})
}

func FuzzParseSeal(f *testing.F) {
	st, err := statement().Encode()
	if err != nil {
		f.Fatal(err)
	}
	s := attest.Seal{Statement: json.RawMessage(st), PCRs: []attest.PCRValue{{Index: 0}, {Index: sealPCR, Value: record.Hash{1}}}}
	b, err := s.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := attest.ParseSeal(b)
		if err != nil {
			return
		}
		if again, err := s.Encode(); err != nil || !bytes.Equal(b, again) {
			t.Errorf("%s encodes to %s (%v)", b, again, err)
		}
	})
}

// FuzzParseRecovery: what is accepted has one encoding, and replay goes on from it as it says.
func FuzzParseRecovery(f *testing.F) {
	t := new(testing.T)
	m := newMachine(t)
	e := m.enrolment()
	f.Add(m.recovery(0, record.Hash{}))
	f.Add(m.recovery(3, record.Hash{1}))
	f.Add([]byte(`{"clock":"1","counter":"1","pcr":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","resets":0,"restarts":0,"safe":false,"seal":0}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		x, err := attest.ParseRecovery(b)
		if err == nil {
			if again, err := x.Encode(); err != nil || !bytes.Equal(again, b) {
				t.Errorf("accepted %s, which is encoded as %s: %v", b, again, err)
			}
		}
		r, rerr := attest.NewReplay(e, origin, m.head)
		if rerr != nil {
			t.Fatal(rerr)
		}
		if found := r.Recover(b); (len(found) == 0) != (err == nil) {
			t.Errorf("%s: findings %v, error %v", b, found, err)
		} else if _, n := r.Sealed(); err == nil && n != x.Seal {
			t.Errorf("replay goes on behind seal %d, not %d", n, x.Seal)
		}
	})
}

// FuzzReplay feeds a seal whose statement and attestations are the fuzzer's: it is refused with a finding, never accepted.
func FuzzReplay(f *testing.F) {
	t := new(testing.T)
	m := newMachine(t)
	m.size = 3
	e := m.enrolment()
	body := m.seal(start)
	s, err := attest.ParseSeal(body)
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(s.Statement), s.Counter.Attest, s.Counter.Signature, s.Quote.Attest, s.Quote.Signature)
	f.Add([]byte("{}"), s.Quote.Attest, s.Counter.Signature, s.Counter.Attest, s.Quote.Signature)
	f.Fuzz(func(t *testing.T, statement, a, asig, q, qsig []byte) {
		x := attest.Seal{Counter: attest.Signed{Attest: a, Signature: asig}, Quote: attest.Signed{Attest: q, Signature: qsig}, PCRs: s.PCRs, Statement: statement}
		r, err := attest.NewReplay(e, origin, m.head)
		if err != nil {
			t.Fatal(err)
		}
		b, err := x.Encode()
		if err != nil {
			return
		}
		if f := r.Next(b); len(f) == 0 && !bytes.Equal(b, body) && (!bytes.Equal(statement, s.Statement) || !bytes.Equal(a, s.Counter.Attest) || !bytes.Equal(q, s.Quote.Attest)) {
			t.Error("accepted a seal that was never made")
		}
		if _, err := x.Files(&e); err == nil && len(x.Commands()) == 0 {
			t.Error("files without commands")
		}
	})
}

func FuzzParseAttest(f *testing.F) {
	t := new(testing.T)
	m := newMachine(t)
	m.size = 3
	s, err := attest.ParseSeal(m.seal(start))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(s.Counter.Attest)
	f.Add(s.Quote.Attest)
	e := m.enrolment()
	f.Add(e.AK)
	f.Fuzz(func(t *testing.T, b []byte) {
		nv, err1 := attest.ParseCertify(b)
		q, err2 := attest.ParseQuote(b)
		if err1 == nil && err2 == nil {
			t.Errorf("%x is both: %+v, %+v", b, nv, q)
		}
		if ak, err := attest.ParseAK(b); err == nil && len(ak.Name) != 2+sha256.Size {
			t.Errorf("an AK with the name %x", ak.Name)
		}
	})
}
