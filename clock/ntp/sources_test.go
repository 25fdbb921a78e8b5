package ntp

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"bulla/clock"
)

// testNetwork asks real sockets, faster than servers of others would like.
func testNetwork(sources ...Source) *network {
	n := newNetwork(local{}, sources, clock.DefaultPolicy)
	n.gap, n.timeout = time.Millisecond, 400*time.Millisecond
	return n
}

func (n *network) judged(ctx context.Context) (out []string) {
	for _, s := range n.ask(ctx) {
		reason := s.Judge(clock.DefaultPolicy()).Reason
		if s.Kiss != "" {
			reason += ":" + s.Kiss
		}
		out = append(out, reason)
	}
	return out
}

// Every way a server can misbehave, and what becomes of its sample.
func TestMisbehaviour(t *testing.T) {
	t.Parallel()
	secret := []byte("0123456789abcdef")
	key, err := ParseKey("7 SHA256 30313233343536373839616263646566")
	if err != nil {
		t.Fatal(err)
	}
	const year = 365 * 24 * time.Hour
	cases := []struct {
		name   string
		is     behaviour
		key    *Key
		reason string
	}{
		{"honest", behaviour{}, nil, ""},
		{"40 years ahead", behaviour{offset: 40 * year}, nil, ""}, // others agree on something else
		{"30 years behind", behaviour{offset: -30 * year}, nil, clock.ReasonEra},
		{"stratum 15", behaviour{stratum: 15}, nil, ""},
		{"stratum 16", behaviour{stratum: 16}, nil, clock.ReasonStratum},
		{"not synchronised", behaviour{leap: 3}, nil, clock.ReasonLeap},
		{"leap announced", behaviour{leap: 1}, nil, ""},
		{"version 2", behaviour{version: 2}, nil, clock.ReasonVersion},
		{"root dispersion 15 s", behaviour{rootDisp: 15 << 16}, nil, clock.ReasonDistance},
		{"root dispersion 17 s", behaviour{rootDisp: 17 << 16}, nil, clock.ReasonDistance},
		{"root delay 3 s", behaviour{rootDelay: 3 << 16}, nil, clock.ReasonDistance},
		{"reference two days old", behaviour{reference: 48 * time.Hour}, nil, clock.ReasonStale},
		{"reference in the future", behaviour{badRef: true}, nil, clock.ReasonReference},
		{"kiss RATE", behaviour{kiss: "RATE"}, nil, "kiss:RATE"},
		{"kiss DENY", behaviour{kiss: "DENY"}, nil, "kiss:DENY"},
		{"kiss RSTR without a time", behaviour{kiss: "RSTR", noTransmit: true}, nil, "kiss:RSTR"},
		{"kiss STEP", behaviour{kiss: "STEP"}, nil, "kiss:STEP"},
		{"forged kiss without a time", behaviour{kiss: "DENY", noTransmit: true, wrong: true}, nil, failTransmit},
		{"no transmit time", behaviour{noTransmit: true}, nil, failTransmit},
		{"another query's answer", behaviour{wrong: true}, nil, failMismatch},
		{"forged answer first", behaviour{spoof: true}, nil, failMismatch},
		{"rollback", behaviour{rollback: true}, nil, failBackwards},
		{"claims 100 ms of work", behaviour{claim: 100 * time.Millisecond}, nil, clock.ReasonNegative},
		{"client mode", behaviour{mode: 3}, nil, failMode},
		{"47 bytes", behaviour{short: true}, nil, failShort},
		{"silent", behaviour{silent: true}, nil, failTimeout},
		{"answer after 80 ms", behaviour{after: 80 * time.Millisecond}, nil, ""},
		{"query read after 80 ms", behaviour{before: 80 * time.Millisecond}, nil, ""},
		{"answer after 350 ms", behaviour{after: 350 * time.Millisecond}, nil, clock.ReasonDelay},
		{"authenticated", behaviour{key: secret}, key, ""},
		{"wrong MAC", behaviour{key: secret, wrongMAC: true}, key, failAuth},
		{"other key", behaviour{key: []byte("another key of 16")}, key, failAuth},
		{"no MAC", behaviour{}, key, failAuth},
		{"crypto-NAK", behaviour{nak: true}, key, failNak},
		{"kiss without a MAC", behaviour{kiss: "DENY"}, key, failAuth},
	}
	var sources []Source
	for _, c := range cases {
		sources = append(sources, Source{Name: c.name, Address: newResponder(t, c.is).address(), Key: c.key})
	}
	n := testNetwork(sources...)
	samples := n.ask(t.Context())
	for i, s := range samples {
		c := cases[i]
		j := s.Judge(clock.DefaultPolicy())
		reason := j.Reason
		if s.Kiss != "" && j.Reason == clock.ReasonKiss {
			reason += ":" + s.Kiss
		}
		if reason != c.reason {
			t.Errorf("%s: %q, want %q (%+v)", c.name, reason, c.reason, s)
		}
		if s.Name != c.name || s.Address != sources[i].Address {
			t.Errorf("%s: sample of %s %s", c.name, s.Name, s.Address)
		}
		if c.reason != "" {
			continue
		}
		if s.Good == 0 || s.RefID != "54455354" || (c.key != nil) != (s.Auth == "sha-256") {
			t.Errorf("%s: %+v", c.name, s)
		}
		truth := s.After.Real - s.After.Raw + int64(c.is.offset)
		if wrong := max(j.Theta-truth, truth-j.Theta); wrong > j.Distance {
			t.Errorf("%s: off by %d ns, distance %d", c.name, wrong, j.Distance)
		}
	}
}

func TestClosedPortAndNoName(t *testing.T) {
	t.Parallel()
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	closed := c.LocalAddr().String()
	c.Close()
	n := testNetwork(Source{Name: "closed", Address: closed}, Source{Name: "nowhere", Address: "nowhere.invalid:123"})
	n.lookup = func(context.Context, string) ([]netip.Addr, error) { return nil, errors.New("no such host") }
	if got := n.judged(t.Context()); !slices.Equal(got, []string{failRefused, failDNS}) {
		t.Error(got)
	}
}

func TestBurstKeepsTheShortestRoundTrip(t *testing.T) {
	t.Parallel()
	r := newResponder(t, behaviour{after: 30 * time.Millisecond})
	n := testNetwork(Source{Name: "a", Address: r.address()})
	go func() { // the second half of the burst is faster
		for r.queries.Load() < 2 {
			time.Sleep(time.Millisecond)
		}
		r.becomes(behaviour{})
	}()
	s := n.ask(t.Context())[0]
	if j := s.Judge(clock.DefaultPolicy()); s.Sent != burst || s.Good != burst || j.RTT > 25*ms || r.queries.Load() != burst {
		t.Errorf("%+v, round trip %d, %d queries", s, j.RTT, r.queries.Load())
	}
}

// One forged packet costs one query of the burst, not the source.
func TestSpoofedPacketCostsOneQuery(t *testing.T) {
	t.Parallel()
	r := newResponder(t, behaviour{spoof: true})
	n := testNetwork(Source{Name: "a", Address: r.address()})
	n.gap = 50 * time.Millisecond
	go func() {
		for r.queries.Load() < 1 {
			time.Sleep(time.Millisecond)
		}
		time.Sleep(10 * time.Millisecond)
		r.becomes(behaviour{})
	}()
	if s := n.ask(t.Context())[0]; s.Failure != "" || s.Good != 3 || s.Sent != 4 {
		t.Errorf("%+v", s)
	}
}

func TestKissCodesAreObeyed(t *testing.T) {
	t.Parallel()
	rate, deny := newResponder(t, behaviour{kiss: "RATE"}), newResponder(t, behaviour{kiss: "DENY"})
	n := testNetwork(Source{Name: "rate", Address: rate.address()}, Source{Name: "deny", Address: deny.address()})
	want := func(want ...string) {
		t.Helper()
		if got := n.judged(t.Context()); !slices.Equal(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	}
	want("kiss:RATE", "kiss:DENY")
	want(failHeld, failDenied)
	if rate.queries.Load() != 1 || deny.queries.Load() != 1 {
		t.Errorf("%d and %d queries, the burst goes on after a kiss", rate.queries.Load(), deny.queries.Load())
	}
	s := n.sources[0]
	if s.hold != 64*time.Second {
		t.Errorf("held for %v", s.hold)
	}
	s.held = time.Now() // a minute later
	want("kiss:RATE", failDenied)
	if s.hold != 128*time.Second {
		t.Errorf("held for %v the second time", s.hold)
	}
	rate.becomes(behaviour{})
	s.held = time.Now()
	want("", failDenied)
	if s.hold != 0 {
		t.Errorf("held for %v after an answer", s.hold)
	}
}

func TestNamesAreKeptWhenTheyDoNotResolve(t *testing.T) {
	t.Parallel()
	r := newResponder(t, behaviour{})
	_, port, err := net.SplitHostPort(r.address())
	if err != nil {
		t.Fatal(err)
	}
	n := testNetwork(Source{Name: "a", Address: net.JoinHostPort("time.example", port)}, Source{Name: "twin", Address: net.JoinHostPort("twin.example", port)})
	lookups := make(chan string, 100)
	var fails error
	addrs := []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	n.lookup = func(_ context.Context, host string) ([]netip.Addr, error) {
		lookups <- host
		return addrs, fails
	}
	want := func(looked int, want ...string) {
		t.Helper()
		got := n.judged(t.Context())
		if !slices.Equal(got, want) || len(lookups) != looked {
			t.Errorf("%q after %d lookups, want %q after %d", got, len(lookups), want, looked)
		}
		for len(lookups) > 0 {
			<-lookups
		}
	}
	want(2, "", failTwin) // one server must not count twice
	want(0, "", failTwin)
	fails = errors.New("server misbehaving")
	n.sources[0].resolved = time.Now().Add(-2 * resolveEvery)
	want(1, "", failTwin)
	want(0, "", failTwin)
	fails, addrs = nil, []netip.Addr{netip.MustParseAddr("127.0.0.2"), netip.MustParseAddr("::1")}
	n.sources[0].resolved = time.Now().Add(-2 * resolveEvery)
	want(1, failRefused, "") // it has moved, so its twin is not one any more
	n.sources[0].resolved = time.Now().Add(-2 * resolveAgain)
	n.judged(t.Context()) // silent: the name's next address
	if got := n.sources[0].address; got != net.JoinHostPort("::1", port) {
		t.Errorf("address %s", got)
	}
}

func TestAskEndsWithItsContext(t *testing.T) {
	t.Parallel()
	n := testNetwork(Source{Name: "a", Address: newResponder(t, behaviour{silent: true}).address()})
	n.timeout = time.Minute
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	begun := time.Now()
	n.ask(ctx)
	if d := time.Since(begun); d > 10*time.Second {
		t.Errorf("took %v", d)
	}
}
