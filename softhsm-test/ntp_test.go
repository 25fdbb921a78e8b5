package softhsmtest_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"slices"
	"testing"
	"time"

	softhsmtest "bulla/softhsm-test"
)

// answer is what came back to a query, and when.
type answer struct {
	packet       []byte
	asked, heard time.Time
}

const origin = "origin!!" // of every query here

// dialNTP connects to a server.
func dialNTP(t *testing.T, address string) *net.UDPConn {
	t.Helper()
	a, err := net.ResolveUDPAddr("udp4", address)
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.DialUDP("udp4", nil, a)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// ask sends a query, with what authenticates it, and waits for one packet.
func ask(t *testing.T, c *net.UDPConn, within time.Duration, mac ...byte) (answer, error) {
	t.Helper()
	query := make([]byte, 48)
	query[0] = 4<<3 | 3
	copy(query[40:], origin)
	if err := c.SetDeadline(time.Now().Add(within)); err != nil {
		t.Fatal(err)
	}
	a := answer{asked: time.Now(), packet: make([]byte, 200)}
	if _, err := c.Write(append(query, mac...)); err != nil {
		return a, err
	}
	n, err := c.Read(a.packet)
	a.heard, a.packet = time.Now(), a.packet[:max(n, 0)]
	return a, err
}

// must is ask of a server that answers.
func must(t *testing.T, s *softhsmtest.NTP) answer {
	t.Helper()
	a, err := ask(t, dialNTP(t, s.Address), 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// at is the time in a field of the answer (RFC 5905, section 6), which is of this era.
func (a answer) at(field int) time.Time {
	sec, frac := binary.BigEndian.Uint32(a.packet[field:]), binary.BigEndian.Uint32(a.packet[field+4:])
	return time.Unix(int64(sec)-2208988800, int64(uint64(frac)*1e9>>32))
}

// short is a duration in a field of the answer.
func (a answer) short(field int) time.Duration {
	return time.Duration(uint64(binary.BigEndian.Uint32(a.packet[field:])) * 1e9 >> 16)
}

// Fields of an answer, as bytes from its beginning.
const (
	fieldDelay, fieldDisp, fieldID = 4, 8, 12
	fieldRef, fieldOrigin          = 16, 24
	fieldReceived, fieldSent       = 32, 40
)

// near reports whether two times differ by less than what writing them down loses.
func near(a, b time.Duration) bool { return (a - b).Abs() < 20*time.Microsecond }

func TestNTPHonest(t *testing.T) {
	t.Parallel()
	s := softhsmtest.NTPFor(t, softhsmtest.Behaviour{})
	a := must(t, s)
	p := a.packet
	if len(p) != 48 || p[0] != 4<<3|4 || p[1] != 1 || string(p[fieldOrigin:fieldOrigin+8]) != origin || !near(a.short(fieldDisp), 100*time.Microsecond) || a.short(fieldDelay) != 0 {
		t.Errorf("answer % x", p)
	}
	order := []time.Time{a.asked, a.at(fieldReceived), a.at(fieldSent), a.heard}
	for i := 1; i < len(order); i++ {
		if order[i].Before(order[i-1].Add(-time.Microsecond)) { // what writing them down loses
			t.Errorf("asked, received, sent, heard: %v", order)
		}
	}
	if age := a.at(fieldReceived).Sub(a.at(fieldRef)); !near(age, time.Second) {
		t.Errorf("it was set %v ago", age)
	}
	must(t, s)
	if s.Queries() != 2 {
		t.Errorf("%d queries, want 2", s.Queries())
	}
}

// Each behaviour shows in the answer, and in nothing else of it that is compared here.
func TestNTPBehaviours(t *testing.T) {
	t.Parallel()
	s := softhsmtest.NTPFor(t, softhsmtest.Behaviour{})
	const lie = 250 * time.Millisecond
	received := func(a answer) time.Duration { return a.at(fieldReceived).Sub(a.asked) } // beyond the truth, and the way
	spent := func(a answer) time.Duration { return a.at(fieldSent).Sub(a.at(fieldReceived)) }
	for _, c := range []struct {
		name string
		b    softhsmtest.Behaviour
		is   func(a answer) bool
	}{
		{"ahead", softhsmtest.Behaviour{Offset: time.Hour}, func(a answer) bool {
			return received(a) >= time.Hour && received(a) < time.Hour+a.heard.Sub(a.asked)+time.Millisecond
		}},
		{"behind", softhsmtest.Behaviour{Offset: -30 * 365 * 24 * time.Hour}, func(a answer) bool { return a.asked.Sub(a.at(fieldSent)) > 29*365*24*time.Hour }},
		{"running away", softhsmtest.Behaviour{DriftPPM: 1e9}, func(a answer) bool { return received(a) > lie/1000 }},
		{"stratum", softhsmtest.Behaviour{Stratum: 16}, func(a answer) bool { return a.packet[1] == 16 }},
		{"leap", softhsmtest.Behaviour{Leap: 3}, func(a answer) bool { return a.packet[0]>>6 == 3 }},
		{"mode", softhsmtest.Behaviour{Mode: 3}, func(a answer) bool { return a.packet[0]&7 == 3 }},
		{"version", softhsmtest.Behaviour{Version: 2}, func(a answer) bool { return a.packet[0]>>3&7 == 2 }},
		{"kiss", softhsmtest.Behaviour{Kiss: "RATE"}, func(a answer) bool { return a.packet[1] == 0 && string(a.packet[fieldID:fieldID+4]) == "RATE" }},
		{"root delay", softhsmtest.Behaviour{RootDelay: lie}, func(a answer) bool { return near(a.short(fieldDelay), lie) }},
		{"root dispersion", softhsmtest.Behaviour{RootDisp: 17 * time.Second}, func(a answer) bool { return near(a.short(fieldDisp), 17*time.Second) }},
		{"no root dispersion", softhsmtest.Behaviour{RootDisp: -1}, func(a answer) bool { return a.short(fieldDisp) == 0 }},
		{"the greatest root dispersion", softhsmtest.Behaviour{RootDisp: 100 * time.Hour}, func(a answer) bool { return binary.BigEndian.Uint32(a.packet[fieldDisp:]) == 0xFFFFFFFF }},
		{"stale", softhsmtest.Behaviour{RefAge: 48 * time.Hour}, func(a answer) bool { return a.asked.Sub(a.at(fieldRef)) >= 48*time.Hour }},
		{"set in the future", softhsmtest.Behaviour{RefAge: -time.Hour}, func(a answer) bool { return a.at(fieldRef).Sub(a.heard) > 59*time.Minute }},
		{"slow to reach", softhsmtest.Behaviour{DelayIn: lie}, func(a answer) bool { return received(a) >= lie && a.heard.Sub(a.asked) >= lie }},
		{"slow to answer", softhsmtest.Behaviour{DelayOut: lie}, func(a answer) bool { return a.heard.Sub(a.at(fieldSent)) >= lie }},
		{"claims work", softhsmtest.Behaviour{Processing: time.Hour}, func(a answer) bool { return spent(a) >= time.Hour }},
		{"claims less than no work", softhsmtest.Behaviour{Processing: -time.Hour}, func(a answer) bool { return spent(a) < -time.Minute }},
		{"backwards", softhsmtest.Behaviour{Backwards: true}, func(a answer) bool { return near(spent(a), -time.Second) }},
		{"another's answer", softhsmtest.Behaviour{BadOrigin: true}, func(a answer) bool { return string(a.packet[fieldOrigin:fieldOrigin+8]) != origin }},
		{"no transmit time", softhsmtest.Behaviour{NoTransmit: true}, func(a answer) bool { return bytes.Equal(a.packet[fieldSent:], make([]byte, 8)) }},
		{"half", softhsmtest.Behaviour{Half: true}, func(a answer) bool { return len(a.packet) == 24 }},
		{"NAK", softhsmtest.Behaviour{NAK: true}, func(a answer) bool { return bytes.Equal(a.packet[48:], make([]byte, 4)) }},
	} {
		s.Set(c.b)
		a := must(t, s)
		if len(a.packet) < 48 {
			if !c.is(a) {
				t.Errorf("%s: % x", c.name, a.packet)
			}
			continue
		}
		if !c.is(a) {
			t.Errorf("%s: asked %v, received %v, sent %v, heard %v: % x", c.name, a.asked, a.at(fieldReceived), a.at(fieldSent), a.heard, a.packet)
		}
		s.Set(softhsmtest.Behaviour{})
		if honest := must(t, s); c.is(honest) && c.name != "running away" {
			t.Errorf("%s: so is an honest server", c.name)
		}
	}
}

func TestNTPSpoofed(t *testing.T) {
	t.Parallel()
	s := softhsmtest.NTPFor(t, softhsmtest.Behaviour{SpoofFirst: true})
	c := dialNTP(t, s.Address)
	forged, err := ask(t, c, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	real := make([]byte, 100)
	n, err := c.Read(real)
	if err != nil {
		t.Fatal(err)
	}
	if ahead := forged.at(fieldSent).Sub(forged.heard); string(forged.packet[fieldOrigin:fieldOrigin+8]) == origin || ahead < 59*time.Minute {
		t.Errorf("forged: % x", forged.packet)
	}
	if a := (answer{packet: real[:n]}); n != 48 || string(real[fieldOrigin:fieldOrigin+8]) != origin || a.at(fieldSent).After(forged.heard.Add(time.Minute)) {
		t.Errorf("real: % x", real[:n])
	}
}

func TestNTPSilent(t *testing.T) {
	t.Parallel()
	s := softhsmtest.NTPFor(t, softhsmtest.Behaviour{Silent: true})
	c := dialNTP(t, s.Address)
	if a, err := ask(t, c, 100*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("answer % x, %v", a.packet, err)
	}
	if s.Queries() != 1 {
		t.Errorf("%d queries, want 1", s.Queries())
	}
	s.Set(softhsmtest.Behaviour{})
	if err := c.SetDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	for _, refused := range [][]byte{nil, []byte("short"), append([]byte{4<<3 | 4}, make([]byte, 47)...)} { // the last is an answer, not a query
		if _, err := c.Write(refused); err != nil {
			t.Fatal(err)
		}
	}
	if a, err := ask(t, c, 10*time.Second); err != nil || len(a.packet) != 48 {
		t.Errorf("answer % x, %v", a.packet, err)
	}
	if s.Queries() != 2 {
		t.Errorf("%d queries, want 2", s.Queries())
	}
}

func TestNTPAddresses(t *testing.T) {
	t.Parallel()
	var hosts []string
	for range 20 {
		s := softhsmtest.NTPFor(t, softhsmtest.Behaviour{})
		host, _, err := net.SplitHostPort(s.Address)
		if err != nil || slices.Contains(hosts, host) {
			t.Errorf("address %s beside %v (%v)", s.Address, hosts, err)
		}
		hosts = append(hosts, host)
	}
	s, err := softhsmtest.StartNTP(softhsmtest.Behaviour{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := softhsmtest.RestartNTP(s.Address, softhsmtest.Behaviour{}); err == nil {
		t.Error("two servers at one address")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := ask(t, dialNTP(t, s.Address), 10*time.Second); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("asking nobody: %v, want refused", err)
	}
	again, err := softhsmtest.RestartNTP(s.Address, softhsmtest.Behaviour{Stratum: 2})
	if err != nil {
		t.Fatal(err)
	}
	if a := must(t, again); a.packet[1] != 2 || again.Address != s.Address {
		t.Errorf("at %s: % x", again.Address, a.packet)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
	if _, err := softhsmtest.RestartNTP("192.0.2.1:0", softhsmtest.Behaviour{}); err == nil {
		t.Error("served the network")
	}
}

// Answers that wait are bounded, and do not hold up the end.
func TestNTPEndsWithAnswersWaiting(t *testing.T) {
	t.Parallel()
	s, err := softhsmtest.StartNTP(softhsmtest.Behaviour{DelayOut: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	c := dialNTP(t, s.Address)
	query := append([]byte{4<<3 | 3}, make([]byte, 47)...)
	const many, atOnce = 1000, 50 // what the socket holds unread
	for i := range int64(many) {
		if _, err := c.Write(query); err != nil {
			t.Fatal(err)
		}
		if (i+1)%atOnce == 0 {
			eventually(t, 10*time.Second, "the queries are read", func() bool { return s.Queries() > i })
		}
	}
	s.Set(softhsmtest.Behaviour{}) // others are served meanwhile
	must(t, s)
	begun := time.Now()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if took := time.Since(begun); took > 10*time.Second {
		t.Errorf("closing took %v", took)
	}
}
